//! imagefs and images by the word of a runtime, and what remains when it does not say.

use super::*;
use crate::error::Reason;
use crate::golden::inventory::recorded;
use crate::host::filesystem::{Filesystem, Mount};
use crate::host::{Deadline, Host, Roots};
use crate::kubelet::version::Version;
use crate::metric::Samples;
use crate::runtime::Inventory;
use crate::services::{self, Services};

/// Where containerd has its images unless told otherwise, and where it was told to have them.
const USUAL: &str = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs";
const NAMED: &str = "/data/images";

/// A node of two disks, with an image store in the usual place of the first.
struct Node(tempfile::TempDir);

impl Node {
    fn new() -> Self {
        let node = Node(tempfile::tempdir().unwrap());
        node.write("proc/meminfo", "MemTotal: 8 kB\nMemFree: 8 kB\nMemAvailable: 4 kB\n");
        node.write(&format!("root{USUAL}/x"), "");
        node
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn collect(&self, collector: &dyn Collector) -> Samples {
        self.collect_on("ext4", collector)
    }

    fn collect_on(&self, fstype: &str, collector: &dyn Collector) -> Samples {
        let at = |name: &str| self.0.path().join(name);
        let on = |device: &str, capacity_bytes: u64| {
            let mount = Mount {
                device: device.into(),
                mountpoint: "/".into(),
                fstype: fstype.into(),
                readonly: false,
                number: None,
            };
            let available_bytes = capacity_bytes / 2;
            Filesystem { capacity_bytes, available_bytes, inodes: 100, inodes_free: 50, mount: Some(mount) }
        };
        let table = vec![("/var/lib".into(), on("/dev/a", 1000)), (NAMED.into(), on("/dev/b", 2000))];
        let host = Host::recorded(Roots { proc: at("proc"), sys: at("sys"), root: at("root") }, table);
        let context = Context::new(&host, Deadline::after(std::time::Duration::from_secs(10)));
        collector.collect(context).unwrap()
    }
}

fn collect(runtime: Runtime) -> Samples {
    let services = Services { runtime, ..Services::default() };
    Node::new().collect(&*(MODE.build)(&Default::default(), &services))
}

fn answers(inventory: Inventory) -> Runtime {
    Runtime::fixed(Ok(inventory))
}

/// Capacities of imagefs, containerfs, nodefs.
fn capacities(samples: &Samples) -> [Option<f64>; 3] {
    ["imagefs.available", "containerfs.available", "nodefs.available"]
        .map(|signal| samples.value(&CAPACITY_BYTES, &[signal]))
}

fn images(samples: &Samples) -> [Option<f64>; 3] {
    [&IMAGES, &IMAGES_BYTES, &IMAGES_UNUSED_BYTES].map(|metric| samples.value(metric, &[]))
}

fn reasons(samples: &Samples) -> Vec<Reason> {
    samples.errors().iter().map(Error::reason).collect()
}

fn inventory() -> Inventory {
    Inventory { image_filesystems: vec![NAMED.into(), USUAL.into()], ..recorded("k8s-1.36-cgroupv1") }
}

#[test]
fn the_first_that_the_runtime_names_counts() {
    let samples = collect(answers(inventory()));
    assert_eq!(reasons(&samples), []);
    assert_eq!(capacities(&samples), [Some(2000.0), Some(2000.0), Some(1000.0)]);
    assert_eq!(samples.value(&FILESYSTEM_INFO, &["imagefs", "/dev/b", "/", "ext4"]), Some(1.0));
    assert_eq!(images(&samples), [Some(2.0), Some(2_909_442.0), Some(778_880.0)], "ListImages.json: 2130562 + 778880");
}

#[test]
fn without_a_runtime_the_usual_place_counts() {
    let samples = collect(Runtime::default());
    assert_eq!(reasons(&samples), []);
    assert_eq!(capacities(&samples), [Some(1000.0); 3]);
    assert_eq!(images(&samples), [None; 3]);
}

#[test]
fn a_mount_point_that_this_machine_has_not_costs_imagefs_only() {
    let samples = collect(answers(Inventory { image_filesystems: vec!["/elsewhere".into()], ..inventory() }));
    assert_eq!(reasons(&samples), [Reason::Absent]);
    assert!(samples.errors()[0].to_string().contains("/elsewhere"), "{:?}", samples.errors());
    assert_eq!(capacities(&samples), [None, None, Some(1000.0)], "no guess in its place");
    assert_eq!(images(&samples)[0], Some(2.0));
    assert_eq!(samples.value(&CAPACITY_BYTES, &["memory.available"]), None, "no cgroups here");
    assert_eq!(samples.value(&MEMORY_AVAILABLE, &[]), Some(4096.0));
}

#[test]
fn a_runtime_that_does_not_answer_costs_imagefs_only() {
    let samples = collect(Runtime::fixed(Err(Error::new(Reason::Timeout, "unix:///x: no answer"))));
    assert_eq!(reasons(&samples), [Reason::Timeout]);
    assert_eq!(capacities(&samples), [None, None, Some(1000.0)]);
    assert_eq!(images(&samples), [None; 3]);
}

/// CRI-O with an `imagestore`: images on a disk of their own, the containers' layers beside the kubelet's directory.
#[test]
fn a_split_image_store_is_as_the_version_sees_it() {
    let of = |version: &str, container: Option<&str>| {
        let inventory = Inventory { container_filesystem: container.map(str::to_owned), ..inventory() };
        let mut settings = services::Settings::default();
        settings.kubelet.version = Version::parse(version);
        settings.kubelet.overrides.config = Some("/k.yaml".into());
        let services = Services { runtime: answers(inventory), ..Services::new(settings) };
        let node = Node::new();
        let thresholds = "evictionHard: {nodefs.available: 10%, imagefs.available: 20%}\n";
        let head = "kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\n";
        node.write("root/k.yaml", &format!("{head}{thresholds}"));
        let samples = node.collect(&*(MODE.build)(&Default::default(), &services));
        assert_eq!(reasons(&samples), []);
        let threshold = samples.value(&THRESHOLD_BYTES, &["containerfs.available", "hard"]);
        (samples.value(&CAPACITY_BYTES, &["containerfs.available"]), threshold)
    };
    let split = Some("/var/lib");
    assert_eq!(of("v1.36.2", split), (Some(1000.0), Some(100.0)), "its own disk, with nodefs' threshold");
    assert_eq!(of("?", split), (Some(1000.0), Some(100.0)));
    assert_eq!(of("v1.30.14", split), (Some(2000.0), Some(400.0)), "taken for imagefs");
    assert_eq!(of("v1.36.2", Some(NAMED)), (Some(2000.0), Some(400.0)), "two directories of one device");
    assert_eq!(of("v1.36.2", None), (Some(2000.0), Some(400.0)));
    assert_eq!(of("v1.28.15", split), (None, None), "no such signal");
}

#[test]
fn zfs_is_as_the_version_sees_it_or_missing() {
    let of = |version: &str| {
        let mut settings = services::Settings::default();
        settings.kubelet.version = Version::parse(version);
        let services = Services::new(settings);
        let samples = Node::new().collect_on("zfs", &*(MODE.build)(&Default::default(), &services));
        let info = samples.value(&FILESYSTEM_INFO, &["nodefs", "/dev/a", "/", "zfs"]);
        assert_eq!((reasons(&samples), info), (vec![], Some(1.0)));
        (capacities(&samples), samples.notes().iter().any(|note| note.contains("zfs(8)")))
    };
    assert_eq!(of("v1.35.1"), ([Some(1000.0); 3], false), "as statfs says");
    assert_eq!(of("v1.36.0"), ([None; 3], true));
    assert_eq!(of("?"), ([None; 3], true));
}

#[test]
fn half_an_answer_is_half_an_answer() {
    let refused = |what: &str| Error::new(Reason::Io, what);
    let no_images = Inventory { images: None, errors: vec![refused("ListImages")], ..inventory() };
    let samples = collect(answers(no_images));
    assert_eq!((reasons(&samples), images(&samples)), (vec![Reason::Io], [None; 3]));
    assert_eq!(capacities(&samples)[0], Some(2000.0));

    let nowhere = Inventory { image_filesystems: vec![], errors: vec![refused("ImageFsInfo")], ..inventory() };
    let samples = collect(answers(nowhere));
    assert_eq!((reasons(&samples), capacities(&samples)[0]), (vec![Reason::Io], None));
    assert_eq!(images(&samples)[0], Some(2.0));

    let samples = collect(answers(Inventory { image_filesystems: vec![], ..inventory() }));
    assert_eq!((reasons(&samples), capacities(&samples)[0]), (vec![Reason::Malformed], None), "it must name one");
}

/// The kubelet's own endpoint counts, from when its socket is first there.
#[test]
fn a_socket_that_was_never_there_is_no_failure_and_one_that_was_is() {
    let node = Node::new();
    let config = "kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\ncontainerRuntimeEndpoint: \
                  unix:///run/containerd/other.sock\n";
    node.write("root/k.yaml", config);
    let mut settings = services::Settings::default();
    settings.kubelet.overrides.config = Some("/k.yaml".into());
    settings.runtime.fresh = std::time::Duration::ZERO;
    let collector = (MODE.build)(&Default::default(), &Services::new(settings));
    let samples = node.collect(&*collector);
    assert_eq!(samples.errors(), []);
    assert_eq!(capacities(&samples), [Some(1000.0); 3], "the usual place");

    node.write("root/run/containerd/x", "");
    let socket = node.0.path().join("root/run/containerd/other.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    for when in ["nobody listens", "and then it is gone altogether"] {
        let samples = node.collect(&*collector);
        assert_eq!(samples.errors().len(), 1, "{when}");
        assert!(samples.errors()[0].to_string().contains("other.sock"), "{when}: {:?}", samples.errors());
        assert_eq!(capacities(&samples), [None, None, Some(1000.0)], "{when}");
        let _ = std::fs::remove_file(&socket);
    }
}

#[test]
fn memory_behind_a_mount_that_is_missing_and_of_our_own_container() {
    let node = Node::new();
    let eviction = (MODE.build)(&Default::default(), &Services::default());
    let told = |samples: &Samples| {
        let errors = samples.errors().iter().filter(|error| error.to_string().contains("--path.sysfs"));
        let errors: Vec<_> = errors.map(Error::reason).collect();
        (samples.value(&CAPACITY_BYTES, &["memory.available"]), errors)
    };
    assert_eq!(told(&node.collect(&*eviction)), (None, vec![]), "a kernel without cgroups");
    node.write("proc/cgroups", "memory\t0\t93\t1\n");
    assert_eq!(told(&node.collect(&*eviction)), (None, vec![Reason::Absent]));
    // What a runtime shows in a container's own /sys.
    node.write("sys/fs/cgroup/memory.stat", "anon 100\nfile 100\ninactive_file 50\n");
    assert_eq!(told(&node.collect(&*eviction)), (Some(8192.0), vec![]), "the root of the machine has no cgroup.events");
    node.write("sys/fs/cgroup/cgroup.events", "populated 1\n");
    assert_eq!(told(&node.collect(&*eviction)), (None, vec![Reason::Malformed]));
    node.write("sys/fs/cgroup/memory/memory.usage_in_bytes", "100");
    node.write("sys/fs/cgroup/memory/memory.stat", "total_inactive_file 10\n");
    assert_eq!(told(&node.collect(&*eviction)), (Some(8192.0), vec![]));
    node.write("sys/fs/cgroup/memory/notify_on_release", "0");
    assert_eq!(told(&node.collect(&*eviction)), (None, vec![Reason::Malformed]));
}
