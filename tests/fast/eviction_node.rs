//! Two real nodes, recorded file by file (`fixtures/node/*/README.md`): every signal by our arithmetic on the recorded
//! files, beside what the node's own kubelet said in `/stats/summary` and `/configz`.
//!
//! The files were copied seconds after the summary was taken, and the summary itself may be 10 s old. So what moves
//! (available memory, bytes, inodes, threads) is held against the files, exactly, and what does not (capacities,
//! limits, thresholds) also against the kubelet. `kernel.threads-max` was not recorded; its part is played by the
//! `maxpid` that the kubelet made of it.
#![allow(clippy::disallowed_methods, reason = "a test makes its machine of files")]

use std::ops::Deref;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use headroom::host::filesystem::Filesystem;
use headroom::host::{Deadline, Host};
use headroom::kubelet::handle::Settings;
use headroom::kubelet::version::Version;
use headroom::metric::Samples;
use headroom::modes::Context;
use headroom::modes::eviction::{
    self, AVAILABLE_BYTES, AVAILABLE_INODES, AVAILABLE_PIDS, CAPACITY_BYTES, CAPACITY_INODES, CAPACITY_PIDS,
    GRACE_PERIOD, HEADROOM, THRESHOLD_BYTES, THRESHOLD_INODES, THRESHOLD_PIDS,
};
use headroom::services::{CONTROL_PLANE, Services};

use serde_json::Value;

use crate::common::node::Recorded;

struct Node(Recorded);

impl Deref for Node {
    type Target = Recorded;

    fn deref(&self) -> &Recorded {
        &self.0
    }
}

impl Node {
    fn new(name: &str) -> Self {
        let node = Node(Recorded::new(name));
        node.write("proc/loadavg", &node.text("proc/host/loadavg.txt"));
        node
    }

    /// The recorded `stat -f` lines as file systems.
    fn filesystems(&self) -> Vec<(PathBuf, Filesystem)> {
        let parse = |line: &str| {
            let (path, fields) = line.split_once(": ").unwrap();
            let field = |name: &str| -> u64 {
                let text = fields.split(' ').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
                text.unwrap().parse().unwrap()
            };
            let filesystem = Filesystem {
                capacity_bytes: field("blocks") * field("bsize"),
                available_bytes: field("bavail") * field("bsize"),
                inodes: field("files"),
                inodes_free: field("ffree"),
                mount: self.mount_of(path),
            };
            (path.into(), filesystem)
        };
        self.text("proc/host/statfs.txt").lines().map(parse).collect()
    }

    fn collect(&self) -> Samples {
        self.collect_of("v1.36.2")
    }

    /// As a kubelet of this version sees it.
    fn collect_of(&self, version: &str) -> Samples {
        let kubelet = Settings { version: Version::parse(version), ..Settings::default() };
        let host = Host::recorded(self.roots(), self.filesystems());
        let deadline = Deadline::after(Duration::from_secs(10));
        let collector = (eviction::MODE.build)(&Default::default(), &Services::with_kubelet(kubelet));
        let mut samples = collector.collect(Context::new(&host, deadline)).unwrap();
        samples.refuse_duplicates();
        assert!(samples.errors().is_empty(), "{:?}", samples.errors());
        samples
    }

    /// Thresholds as `/configz` has them, all of the hard ones of this node.
    fn check_configz(&self) {
        let configz = self.json("kubelet-http/configz.json");
        let hard = serde_json::json!({
            "imagefs.available": "15%", "memory.available": "100Mi", "nodefs.available": "9%",
            "nodefs.inodesFree": "5%", "pid.available": "5%",
        });
        assert_eq!(configz["kubeletconfig"]["evictionHard"], hard, "what the golden thresholds below are made of");
        assert_eq!(configz["kubeletconfig"]["evictionSoft"], serde_json::json!({"memory.available": "200Mi"}));
    }
}

fn sum(stats: &Value, fields: [&str; 2]) -> Option<f64> {
    Some(stats[fields[0]].as_f64()? + stats[fields[1]].as_f64()?)
}

#[test]
fn cgroup_v1() {
    let node = Node::new("k8s-1.36-cgroupv1");
    for (from, to) in [
        ("root/memory.stat", "memory.stat"),
        ("root/memory.usage_in_bytes", "memory.usage_in_bytes"),
        ("kubepods/memory.stat", "kubepods/memory.stat"),
        ("kubepods/memory.usage_in_bytes", "kubepods/memory.usage_in_bytes"),
        ("kubepods/memory.limit_in_bytes", "kubepods/memory.limit_in_bytes"),
    ] {
        node.write(&format!("sys/fs/cgroup/memory/{to}"), &node.text(&format!("cgroup/memory/{from}")));
    }
    node.check_configz();
    let summary = node.json("kubelet-http/stats-summary.json");
    let stats = &summary["node"];
    let samples = node.collect();
    let signal = |metric, signal: &str| samples.value(metric, &[signal]);

    // 24684092 kB; less usage_in_bytes 1072603136, to which total_inactive_file 449298432 does not count.
    assert_eq!(signal(&CAPACITY_BYTES, "memory.available"), Some(25_276_510_208.0));
    assert_eq!(
        signal(&CAPACITY_BYTES, "memory.available"),
        sum(&stats["memory"], ["availableBytes", "workingSetBytes"])
    );
    assert_eq!(signal(&AVAILABLE_BYTES, "memory.available"), Some(24_653_205_504.0));
    // The limit of all pods, 25276510208, less usage 13795328 without its inactive 16384.
    assert_eq!(signal(&CAPACITY_BYTES, "allocatableMemory.available"), Some(25_276_510_208.0));
    let pods = &stats["systemContainers"][0];
    assert_eq!(pods["name"], "pods");
    let theirs = sum(&pods["memory"], ["availableBytes", "workingSetBytes"]);
    assert_eq!(signal(&CAPACITY_BYTES, "allocatableMemory.available"), theirs);
    assert_eq!(signal(&AVAILABLE_BYTES, "allocatableMemory.available"), Some(25_262_731_264.0));
    // pid_max 32768, 309 threads.
    assert_eq!(signal(&CAPACITY_PIDS, "pid.available"), stats["rlimit"]["maxpid"].as_f64());
    assert_eq!(signal(&AVAILABLE_PIDS, "pid.available"), Some(32_459.0));
    // 66053021 blocks of 4096, 18734112 of them for everyone; root's reserve (60965661 free) does not count.
    assert_eq!(signal(&CAPACITY_BYTES, "nodefs.available"), stats["fs"]["capacityBytes"].as_f64());
    assert_eq!(signal(&AVAILABLE_BYTES, "nodefs.available"), Some(76_734_922_752.0));
    assert_eq!(signal(&CAPACITY_INODES, "nodefs.inodesFree"), stats["fs"]["inodes"].as_f64());
    assert_eq!(signal(&AVAILABLE_INODES, "nodefs.inodesFree"), Some(16_238_002.0));
    // This node's containerd keeps its images at /var/lib/tb/containerd: only the runtime itself can tell.
    for name in ["imagefs.available", "containerfs.available"] {
        assert_eq!(signal(&AVAILABLE_BYTES, name), None);
        assert_eq!(samples.value(&THRESHOLD_BYTES, &[name, "hard"]), None);
    }

    let threshold = |metric, name: &str, kind: &str| samples.value(metric, &[name, kind]);
    assert_eq!(threshold(&THRESHOLD_BYTES, "memory.available", "hard"), Some(104_857_600.0));
    assert_eq!(threshold(&THRESHOLD_BYTES, "memory.available", "soft"), Some(209_715_200.0));
    assert_eq!(threshold(&THRESHOLD_BYTES, "allocatableMemory.available", "hard"), Some(104_857_600.0));
    assert_eq!(threshold(&THRESHOLD_BYTES, "allocatableMemory.available", "soft"), None);
    assert_eq!(threshold(&THRESHOLD_INODES, "nodefs.inodesFree", "hard"), Some(838_860.0));
    assert_eq!(threshold(&THRESHOLD_PIDS, "pid.available", "hard"), Some(1638.0));
    assert_eq!(signal(&GRACE_PERIOD, "memory.available"), Some(90.0));
    let headroom = threshold(&HEADROOM, "pid.available", "hard").unwrap();
    assert_eq!(headroom, (32_459.0 - 1638.0) / 32_768.0);
}

#[test]
fn cgroup_v2() {
    let node = Node::new("k8s-1.36-cgroupv2");
    for (from, to) in [
        ("root/memory.stat", "memory.stat"),
        ("kubepods/memory.stat", "kubepods.slice/memory.stat"),
        ("kubepods/memory.current", "kubepods.slice/memory.current"),
        ("kubepods/memory.max", "kubepods.slice/memory.max"),
    ] {
        node.write(&format!("sys/fs/cgroup/{to}"), &node.text(&format!("cgroup/{from}")));
    }
    let summary = node.json("kubelet-http/stats-summary.json");
    let stats = &summary["node"];
    node.write("proc/sys/kernel/threads-max", &stats["rlimit"]["maxpid"].to_string());
    let store = node.json("cri/ImageFsInfo.json")["image_filesystems"][0]["fs_id"]["mountpoint"].clone();
    let store = store.as_str().unwrap().to_owned();
    node.write(&format!("root{store}/metadata.db"), "");
    node.check_configz();
    let samples = node.collect();
    let signal = |metric, signal: &str| samples.value(metric, &[signal]);

    // 6065360 kB; less anon 488472576 and file 607141888, of which inactive_file 463081472 does not count.
    assert_eq!(signal(&CAPACITY_BYTES, "memory.available"), Some(6_210_928_640.0));
    assert_eq!(
        signal(&CAPACITY_BYTES, "memory.available"),
        sum(&stats["memory"], ["availableBytes", "workingSetBytes"])
    );
    assert_eq!(signal(&AVAILABLE_BYTES, "memory.available"), Some(5_578_395_648.0));
    // Free: 4816556 kB. What a kubelet of old has less than one of today is 175 MiB; its threshold is 100 MiB.
    for version in ["v1.28.15", "unknown"] {
        let available = node.collect_of(version).value(&AVAILABLE_BYTES, &["memory.available"]);
        assert_eq!(available, Some(4_816_556.0 * 1024.0 + 463_081_472.0), "{version}");
    }
    // Nothing moved in the pods between summary and files: equal to the byte.
    let pods = &stats["systemContainers"][1];
    assert_eq!(pods["name"], "pods");
    assert_eq!(signal(&AVAILABLE_BYTES, "allocatableMemory.available"), pods["memory"]["availableBytes"].as_f64());
    let theirs = sum(&pods["memory"], ["availableBytes", "workingSetBytes"]);
    assert_eq!(signal(&CAPACITY_BYTES, "allocatableMemory.available"), theirs);
    // threads-max is below pid_max 4194304; 320 threads.
    assert_eq!(signal(&CAPACITY_PIDS, "pid.available"), Some(47_038.0));
    assert_eq!(signal(&AVAILABLE_PIDS, "pid.available"), Some(46_718.0));
    assert_eq!(signal(&CAPACITY_BYTES, "nodefs.available"), stats["fs"]["capacityBytes"].as_f64());
    assert_eq!(signal(&AVAILABLE_BYTES, "nodefs.available"), Some(2_496_290.0 * 4096.0));
    assert_eq!(signal(&CAPACITY_INODES, "nodefs.inodesFree"), stats["fs"]["inodes"].as_f64());
    assert_eq!(signal(&AVAILABLE_INODES, "nodefs.inodesFree"), Some(767_116.0));
    for role in ["imagefs", "containerfs"] {
        let theirs = &stats["runtime"][if role == "imagefs" { "imageFs" } else { "containerFs" }];
        let (bytes, inodes) = (format!("{role}.available"), format!("{role}.inodesFree"));
        assert_eq!(signal(&CAPACITY_BYTES, &bytes), theirs["capacityBytes"].as_f64());
        assert_eq!(signal(&CAPACITY_INODES, &inodes), theirs["inodes"].as_f64());
        assert_eq!(signal(&AVAILABLE_BYTES, &bytes), Some(2_496_289.0 * 4096.0), "one block less, a moment later");
        assert_eq!(signal(&AVAILABLE_INODES, &inodes), Some(767_116.0));
        let row = [role, "/dev/vda", "/", "ext4"];
        assert_eq!(samples.value(&eviction::FILESYSTEM_INFO, &row), Some(1.0));
        assert_eq!(samples.value(&eviction::FILESYSTEM_READONLY, &[role]), Some(0.0));
    }

    let threshold = |metric, name: &str, kind: &str| samples.value(metric, &[name, kind]);
    let capacity = 12_573_614_080_f64;
    // float32(0.09) is 0.0900000035762786865234375.
    assert_eq!(
        threshold(&THRESHOLD_BYTES, "nodefs.available", "hard"),
        Some((capacity * 0.090_000_003_576_278_69).floor())
    );
    assert_eq!(
        threshold(&THRESHOLD_BYTES, "containerfs.available", "hard"),
        threshold(&THRESHOLD_BYTES, "nodefs.available", "hard")
    );
    assert_eq!(
        threshold(&THRESHOLD_BYTES, "imagefs.available", "hard"),
        Some((capacity * 0.150_000_005_960_464_48).floor())
    );
    assert_eq!(
        threshold(&THRESHOLD_INODES, "imagefs.inodesFree", "hard"),
        None,
        "this kubelet was told of no such threshold"
    );
    assert_eq!(threshold(&THRESHOLD_INODES, "containerfs.inodesFree", "hard"), Some(39_321.0));
    assert_eq!(threshold(&THRESHOLD_PIDS, "pid.available", "hard"), Some(2351.0));
    assert_eq!(threshold(&THRESHOLD_BYTES, "memory.available", "soft"), Some(209_715_200.0));
    assert_eq!(samples.value(&eviction::MEMORY_AVAILABLE, &[]), Some(5_202_948.0 * 1024.0));
    let host = Host::recorded(node.roots(), node.filesystems());
    let about = Services::default().samples(&host, Deadline::after(Duration::from_secs(10)), Instant::now());
    assert_eq!(about.value(&CONTROL_PLANE, &[]), Some(0.0), "its apiserver and etcd were not recorded");
}
