//! Parity with the kubelet: on two recorded nodes (kubelet 1.36, `fixtures/node/*`), what the exporter shows of every
//! signal is what that node's own kubelet said in `/stats/summary`, and its thresholds are `/configz` by the kubelet's
//! arithmetic; all to the byte.
//!
//! The recorded kernel files are some seconds younger than the summary, so figures that move cannot be compared with
//! them (`eviction_node.rs` holds those against the files). Here the kernel files are written anew from the
//! summary's *inputs*:
//!
//! | signal | kernel input made of the summary | compared with |
//! |---|---|---|
//! | memory | meminfo as recorded; root usage = usageBytes, inactive file = usageBytes − workingSetBytes | availableBytes; available + working set |
//! | allocatableMemory | the recorded limit of the pods' cgroup; usage and inactive file likewise, of systemContainers "pods" | the same |
//! | nodefs | statfs: blocks = capacityBytes, bavail = availableBytes (of 4096 each), files, ffree | node.fs |
//! | imagefs, containerfs | likewise of runtime.imageFs, at the mount point that the recorded ImageFsInfo names | runtime.imageFs, runtime.containerFs |
//! | pid | pid_max as recorded, threads-max = maxpid (not recorded), loadavg with curproc threads | maxpid, maxpid − curproc |
//!
//! So what is proved is our arithmetic and which input goes where, not that the kernel says the same twice. Capacities
//! and limits come from recorded files where there are any, and there the kubelet's figure is an independent witness.
//! Thresholds are computed in this file from configz's text, by the formulas of `pkg/kubelet/eviction`, with nothing of
//! the library.
#![allow(clippy::disallowed_methods, reason = "a test makes its machine of files")]

use std::ops::Deref;
use std::path::PathBuf;
use std::time::Duration;

use headroom::host::filesystem::Filesystem;
use headroom::host::{Deadline, Host};
use headroom::kubelet::handle::Settings;
use headroom::kubelet::version::Version;
use headroom::metric::{Metric, Samples};
use headroom::modes::Context;
use headroom::modes::eviction::{
    self, AVAILABLE_BYTES, AVAILABLE_INODES, AVAILABLE_PIDS, CAPACITY_BYTES, CAPACITY_INODES, CAPACITY_PIDS, HEADROOM,
    THRESHOLD_BYTES, THRESHOLD_INODES, THRESHOLD_PIDS,
};
use headroom::runtime::{Identity, Inventory, Protocol, Runtime};
use headroom::services::Services;

use serde_json::Value;

use crate::common::node::Recorded;

const BLOCK: u64 = 4096;

/// A signal, its families, what the kubelet saw of it (available, capacity), and the key of configz that rules it.
type Row = (&'static str, [&'static Metric; 3], (u64, u64), &'static str);

struct Node {
    recorded: Recorded,
    summary: Value,
    configz: Value,
}

impl Deref for Node {
    type Target = Recorded;

    fn deref(&self) -> &Recorded {
        &self.recorded
    }
}

impl Node {
    fn new(name: &str) -> Self {
        let recorded = Recorded::new(name);
        let summary = recorded.json("kubelet-http/stats-summary.json");
        let configz = recorded.json("kubelet-http/configz.json");
        let node = Node { recorded, summary, configz };
        let rlimit = &node.stats()["rlimit"];
        node.write("proc/sys/kernel/threads-max", &rlimit["maxpid"].to_string());
        node.write("proc/loadavg", &format!("0.1 0.1 0.1 1/{} 4711\n", rlimit["curproc"]));
        node
    }

    fn stats(&self) -> &Value {
        &self.summary["node"]
    }

    /// The cgroup of all pods, as the kubelet sees it.
    fn pods(&self) -> &Value {
        let containers = self.stats()["systemContainers"].as_array().unwrap();
        &containers.iter().find(|one| one["name"] == "pods").unwrap()["memory"]
    }

    /// Usage, and the inactive file pages that the kubelet's working set leaves out of it.
    fn usage(memory: &Value) -> (u64, u64) {
        let (usage, working_set) = (number(memory, "usageBytes"), number(memory, "workingSetBytes"));
        (usage, usage.checked_sub(working_set).unwrap())
    }

    /// A file system that answers `statfs` as the one did that the kubelet took these figures from.
    fn filesystem(&self, stats: &Value, path: &str) -> (PathBuf, Filesystem) {
        let whole_blocks = |bytes: u64| {
            assert_eq!(bytes % BLOCK, 0, "blocks of {BLOCK}");
            bytes / BLOCK * BLOCK
        };
        let filesystem = Filesystem {
            capacity_bytes: whole_blocks(number(stats, "capacityBytes")),
            available_bytes: whole_blocks(number(stats, "availableBytes")),
            inodes: number(stats, "inodes"),
            inodes_free: number(stats, "inodesFree"),
            mount: self.mount_of(path),
        };
        (path.into(), filesystem)
    }

    fn collect(&self, root_dir: &str) -> Samples {
        let info = self.json("cri/ImageFsInfo.json");
        let store = info["image_filesystems"][0]["fs_id"]["mountpoint"].as_str().unwrap().to_owned();
        let filesystems = vec![
            self.filesystem(&self.stats()["fs"], root_dir),
            self.filesystem(&self.stats()["runtime"]["imageFs"], &store),
        ];
        let runtime = Runtime::fixed(Ok(Inventory {
            identity: Identity {
                protocol: Protocol::Cri,
                name: "containerd".into(),
                version: "1.6.20~ds1".into(),
                endpoint: "unix:///run/containerd/containerd.sock".into(),
            },
            containers: Vec::new(),
            sandboxes: Vec::new(),
            images: None,
            image_filesystems: vec![store],
            container_filesystem: None,
            errors: Vec::new(),
        }));
        let host = Host::recorded(self.roots(), filesystems);
        let kubelet = Settings { version: Version::parse("v1.36.2"), ..Settings::default() };
        let services = Services { runtime, ..Services::with_kubelet(kubelet) };
        let collector = (eviction::MODE.build)(&Default::default(), &services);
        let context = Context::new(&host, Deadline::after(Duration::from_secs(10)));
        let mut samples = collector.collect(context).unwrap();
        samples.refuse_duplicates();
        assert_eq!(samples.errors(), []);
        samples
    }

    /// Every signal: available and capacity by the summary, threshold by configz.
    fn check(&self, samples: &Samples) {
        let stats = self.stats();
        let memory = |of: &Value| {
            let available = number(of, "availableBytes");
            (available, available + number(of, "workingSetBytes"))
        };
        let bytes = |of: &Value| (number(of, "availableBytes"), number(of, "capacityBytes"));
        let inodes = |of: &Value| (number(of, "inodesFree"), number(of, "inodes"));
        let (image, container) = (&stats["runtime"]["imageFs"], &stats["runtime"]["containerFs"]);
        let pids = number(&stats["rlimit"], "maxpid");
        let of_bytes = [&AVAILABLE_BYTES, &CAPACITY_BYTES, &THRESHOLD_BYTES];
        let of_inodes = [&AVAILABLE_INODES, &CAPACITY_INODES, &THRESHOLD_INODES];
        let of_pids = [&AVAILABLE_PIDS, &CAPACITY_PIDS, &THRESHOLD_PIDS];
        // Allocatable memory goes by the threshold of memory, and on one undivided file system containerfs by those of
        // nodefs (helpers.go:161-183, 186-359).
        let rows: [Row; 9] = [
            ("memory.available", of_bytes, memory(&stats["memory"]), "memory.available"),
            ("allocatableMemory.available", of_bytes, memory(self.pods()), "memory.available"),
            ("nodefs.available", of_bytes, bytes(&stats["fs"]), "nodefs.available"),
            ("nodefs.inodesFree", of_inodes, inodes(&stats["fs"]), "nodefs.inodesFree"),
            ("imagefs.available", of_bytes, bytes(image), "imagefs.available"),
            ("imagefs.inodesFree", of_inodes, inodes(image), "imagefs.inodesFree"),
            ("containerfs.available", of_bytes, bytes(container), "nodefs.available"),
            ("containerfs.inodesFree", of_inodes, inodes(container), "nodefs.inodesFree"),
            ("pid.available", of_pids, (pids - number(&stats["rlimit"], "curproc"), pids), "pid.available"),
        ];
        let mut thresholds = 0;
        for (signal, [available_metric, capacity_metric, threshold_metric], (available, capacity), key) in rows {
            assert_eq!(samples.value(available_metric, &[signal]), Some(available as f64), "{signal}: available");
            assert_eq!(samples.value(capacity_metric, &[signal]), Some(capacity as f64), "{signal}: capacity");
            for (kind, map) in [("hard", "evictionHard"), ("soft", "evictionSoft")] {
                // Only the hard threshold of memory becomes one of allocatable memory.
                let ruled = kind == "hard" || signal != "allocatableMemory.available";
                let told = self.configz["kubeletconfig"][map][key].as_str().filter(|_| ruled);
                let threshold = told.map(|value| quantity(value, capacity) as f64);
                assert_eq!(samples.value(threshold_metric, &[signal, kind]), threshold, "{signal}: {kind} threshold");
                let ratio = threshold.map(|threshold| (available as f64 - threshold) / capacity as f64);
                assert_eq!(samples.value(&HEADROOM, &[signal, kind]), ratio, "{signal}: {kind} headroom");
                thresholds += u32::from(threshold.is_some());
            }
        }
        // Five hard ones and a soft one, and the hard ones of allocatable memory and twice of containerfs.
        assert_eq!(thresholds, 9);
    }
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("{key}: {value}"))
}

/// `int64(float64(capacity) * float64(float32(v)/100))` (helpers.go:427, eviction/api/types.go:111), or so many
/// mebibytes.
fn quantity(value: &str, capacity: u64) -> i64 {
    match value.strip_suffix('%') {
        Some(percent) => (capacity as f64 * f64::from(percent.parse::<f32>().unwrap() / 100.0)) as i64,
        None => value.strip_suffix("Mi").unwrap().parse::<i64>().unwrap() << 20,
    }
}

#[test]
fn cgroup_v1() {
    let node = Node::new("k8s-1.36-cgroupv1");
    let (usage, inactive) = Node::usage(&node.stats()["memory"]);
    let root = "sys/fs/cgroup/memory";
    node.write(&format!("{root}/memory.usage_in_bytes"), &usage.to_string());
    node.write(&format!("{root}/memory.stat"), &format!("inactive_file 1\ntotal_inactive_file {inactive}\n"));
    let (usage, inactive) = Node::usage(node.pods());
    node.write(&format!("{root}/kubepods/memory.usage_in_bytes"), &usage.to_string());
    node.write(&format!("{root}/kubepods/memory.stat"), &format!("inactive_file 1\ntotal_inactive_file {inactive}\n"));
    let limit = node.text("cgroup/memory/kubepods/memory.limit_in_bytes");
    node.write(&format!("{root}/kubepods/memory.limit_in_bytes"), &limit);
    node.check(&node.collect("/var/lib/tb/kubelet"));
}

#[test]
fn cgroup_v2() {
    let node = Node::new("k8s-1.36-cgroupv2");
    // The root has no usage of its own: it is anon and file together. rssBytes is anon.
    let memory = &node.stats()["memory"];
    let (usage, inactive) = Node::usage(memory);
    let anon = number(memory, "rssBytes");
    let stat = format!("anon {anon}\nfile {}\ninactive_file {inactive}\nslab 12345678\n", usage - anon);
    node.write("sys/fs/cgroup/memory.stat", &stat);
    let (usage, inactive) = Node::usage(node.pods());
    let pods = "sys/fs/cgroup/kubepods.slice";
    node.write(&format!("{pods}/memory.current"), &usage.to_string());
    node.write(&format!("{pods}/memory.stat"), &format!("anon 1\ninactive_file {inactive}\n"));
    node.write(&format!("{pods}/memory.max"), &node.text("cgroup/kubepods/memory.max"));
    node.check(&node.collect("/var/lib/kubelet"));
}
