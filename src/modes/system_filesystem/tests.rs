//! The whole mode on recorded file systems, with an etcd of each kind, and on odd machines.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::time::Duration;

use super::*;
use crate::error::Reason;
use crate::golden::inventory::recorded;
use crate::golden::{filesystem, fixtures};
use crate::host::filesystem::{DeviceNumber, Mount};
use crate::host::{Deadline, Host, Roots};
use crate::runtime::Inventory;
use crate::services::Services;

/// A node with these file systems, in the format of `stat -f` as it is recorded.
struct Node {
    dir: tempfile::TempDir,
    table: Vec<(PathBuf, Filesystem)>,
}

const ROOT: &str =
    "/var: type=ext2/ext3 bsize=4096 blocks=3069730 bfree=2657672 bavail=2496290 files=786432 ffree=767116";

impl Node {
    fn new(lines: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["proc", "root"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        Node { dir, table: lines.iter().copied().map(filesystem).collect() }
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn remove(&self, path: &str) {
        std::fs::remove_dir_all(self.dir.path().join(path)).unwrap();
    }

    /// A process of the node's own with this mount table.
    fn process(&self, pid: u32, comm: &str, line: &str, mountinfo: &str) {
        self.write(&format!("proc/{pid}/comm"), &format!("{comm}\n"));
        self.write(&format!("proc/{pid}/cmdline"), &(line.replace(' ', "\0") + "\0"));
        self.write(&format!("proc/{pid}/environ"), "HOME=/root\0");
        self.write(&format!("proc/{pid}/status"), &format!("Name:\t{comm}\nUid:\t0\t0\t0\t0\nNSpid:\t{pid}\n"));
        self.write(&format!("proc/{pid}/cgroup"), "0::/system.slice/x.service\n");
        self.write(&format!("proc/{pid}/stat"), &format!("{pid} ({comm}) S 1 {}{} 0", "0 ".repeat(17), pid + 1000));
        self.write(&format!("proc/{pid}/mountinfo"), mountinfo);
    }

    fn host(&self) -> Host {
        let at = |name: &str| self.dir.path().join(name);
        Host::recorded(Roots { proc: at("proc"), sys: at("sys"), root: at("root") }, self.table.clone())
    }

    fn on(&mut self, path: &str) -> &mut Filesystem {
        &mut self.table.iter_mut().find(|(at, _)| at == Path::new(path)).unwrap().1
    }

    fn mount(&mut self, path: &str) -> &mut Mount {
        self.on(path).mount.as_mut().unwrap()
    }
}

fn collector(runtime: Runtime) -> Box<dyn Collector> {
    (MODE.build)(&Default::default(), &Services { runtime, ..Services::default() })
}

fn collect(collector: &dyn Collector, node: &Node) -> Samples {
    let host = node.host();
    let mut samples = collector.collect(Context::new(&host, Deadline::after(Duration::from_secs(30)))).unwrap();
    samples.refuse_duplicates();
    samples.refuse_undeclared(MODE.metrics);
    samples
}

fn look(node: &Node) -> Samples {
    collect(&*collector(Runtime::default()), node)
}

fn reasons(samples: &Samples) -> Vec<Reason> {
    samples.errors().iter().map(Error::reason).collect()
}

/// Who judges each path.
fn judges(samples: &Samples) -> Vec<(String, String)> {
    let paths = samples.rows().iter().filter(|row| std::ptr::eq(row.metric, &PATH));
    paths.map(|row| (row.labels[0].to_string(), row.labels[5].to_string())).collect()
}

fn judge(samples: &Samples, path: &str) -> Option<String> {
    judges(samples).into_iter().find(|(of, _)| of == path).map(|(_, judge)| judge)
}

/// The lines of `stat -f` of a recording.
fn recording(name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(fixtures().join("system_filesystem").join(name)).unwrap();
    text.lines().filter(|line| line.starts_with("/run: ")).map(str::to_owned).collect()
}

#[test]
fn the_recorded_course_of_a_run_that_fills() {
    let mut of_bytes = Vec::new();
    for line in recording("run-bytes.txt") {
        let samples = look(&Node::new(&[ROOT, &line]));
        assert_eq!(reasons(&samples), []);
        let labels = ["/run", "runtime_state,cni"];
        assert_eq!(samples.value(&CAPACITY_BYTES, &labels), Some(8_388_608.0), "8 MiB");
        assert_eq!(samples.value(&READONLY, &labels), Some(0.0));
        of_bytes.push(samples.value(&HEADROOM, &["/run", "runtime_state,cni", "bytes"]).unwrap());
        assert!(samples.value(&HEADROOM, &["/run", "runtime_state,cni", "inodes"]).unwrap() > 0.99);
    }
    assert_eq!(of_bytes, [1.0, 0.375, 0.25, 0.125, 0.0]);
    let last = recording("run-inodes.txt").pop().unwrap();
    let samples = look(&Node::new(&[ROOT, &last]));
    let labels = ["/run", "runtime_state,cni"];
    assert_eq!(samples.value(&AVAILABLE_INODES, &labels), Some(0.0));
    assert_eq!(samples.value(&CAPACITY_INODES, &labels), Some(4000.0));
    assert_eq!(samples.value(&AVAILABLE_BYTES, &labels), Some(67_108_864.0));
}

#[test]
fn what_eviction_judges_is_only_named() {
    let runtime = || Runtime::fixed(Ok(recorded("k8s-1.36-cgroupv2")));
    let line = recording("run-bytes.txt").pop().unwrap();
    let samples = collect(&*collector(runtime()), &Node::new(&[ROOT, &line]));
    for path in ["/var/log", "/var/log/pods", "/var/lib/containerd", "/var/lib/cni"] {
        assert_eq!(judge(&samples, path).as_deref(), Some("eviction"), "{path}");
    }
    assert_eq!(judge(&samples, "/run").as_deref(), Some("system_filesystem"));
    let of_disk = samples.rows().iter().filter(|row| row.labels.iter().any(|label| &**label == "/"));
    assert!(of_disk.clone().all(|row| std::ptr::eq(row.metric, &PATH)), "no figures of nodefs");
    assert!(of_disk.count() > 3);
    assert_eq!(
        samples.value(&PATH, &["/run", "runtime_state", "/run", "tmpfs", "tmpfs", "system_filesystem"]),
        Some(1.0)
    );

    // Logs on a disk of their own.
    let mut node = Node::new(&[ROOT, &line, &ROOT.replacen("/var:", "/var/log:", 1)]);
    *node.mount("/var/log") =
        Mount { device: "/dev/vdb".into(), mountpoint: "/var/log".into(), ..node.mount("/var/log").clone() };
    let samples = collect(&*collector(runtime()), &node);
    assert_eq!(judge(&samples, "/var/log/pods").as_deref(), Some("system_filesystem"));
    assert_eq!(samples.value(&AVAILABLE_BYTES, &["/var/log", "logs"]), Some(2_496_290.0 * 4096.0));
    assert_eq!(samples.value(&HEADROOM, &["/var/log", "logs", "bytes"]), Some(2_496_290.0 / 3_069_730.0));
}

/// Two mounts of one file system, which no name of a device tells, and two file systems of one name.
#[test]
fn file_systems_are_told_by_their_number() {
    let line = recording("run-bytes.txt").remove(0);
    let mut node =
        Node::new(&[ROOT, &line, &line.replacen("/run:", "/var/log:", 1), &line.replacen("/run:", "/tmp:", 1)]);
    let number = |minor| Some(DeviceNumber { major: 0, minor });
    for (path, minor) in [("/var", 1), ("/run", 20), ("/var/log", 20), ("/tmp", 21)] {
        node.mount(path).number = number(minor);
    }
    let samples = look(&node);
    assert_eq!(samples.value(&CAPACITY_BYTES, &["/run", "runtime_state,cni,logs"]), Some(8_388_608.0));
    assert_eq!(samples.value(&CAPACITY_BYTES, &["/tmp", "tmp"]), Some(8_388_608.0));
    assert_eq!(samples.rows().iter().filter(|row| std::ptr::eq(row.metric, &CAPACITY_BYTES)).count(), 2);
}

#[test]
fn what_has_no_limit_is_absent() {
    let line = "/run: type=tmpfs bsize=4096 blocks=0 bfree=0 bavail=0 files=0 ffree=0";
    let samples = look(&Node::new(&[ROOT, line]));
    let figures = [&AVAILABLE_BYTES, &CAPACITY_BYTES, &AVAILABLE_INODES, &CAPACITY_INODES];
    assert!(figures.iter().all(|metric| samples.value(metric, &["/run", "runtime_state,cni"]).is_none()));
    assert!(!samples.rows().iter().any(|row| std::ptr::eq(row.metric, &HEADROOM)));
    assert_eq!(samples.value(&READONLY, &["/run", "runtime_state,cni"]), Some(0.0));
    assert_eq!(judge(&samples, "/run").as_deref(), Some("system_filesystem"));
}

#[test]
fn dead_ones_and_those_that_are_made_full() {
    let line = recording("run-bytes.txt").remove(0);
    let mut node = Node::new(&[ROOT, &line, &line.replacen("/run:", "/var/log:", 1)]);
    node.mount("/run").readonly = true;
    *node.mount("/var/log") =
        Mount { fstype: "erofs".into(), device: "/dev/dm-0".into(), ..node.mount("/var/log").clone() };
    let samples = look(&node);
    assert_eq!(samples.value(&READONLY, &["/run", "runtime_state,cni"]), Some(1.0));
    assert_eq!(judge(&samples, "/var/log").as_deref(), Some("none"));
    assert_eq!(samples.value(&CAPACITY_BYTES, &["/var/log", "logs"]), None);
}

#[test]
fn a_runtime_that_does_not_answer_makes_no_file_system_ours() {
    let dead = || Runtime::fixed(Err(Error::new(Reason::Timeout, "unix:///x: no answer")));
    let mut node =
        Node::new(&[ROOT, &ROOT.replacen("/var:", "/var/lib/containerd:", 1), &recording("run-bytes.txt")[0]]);
    *node.mount("/var/lib/containerd") = Mount { device: "/dev/vdb".into(), ..node.mount("/var").clone() };
    let samples = collect(&*collector(dead()), &node);
    assert_eq!(reasons(&samples), [], "eviction says why imagefs is missing");
    assert_eq!(judge(&samples, "/var/lib/containerd").as_deref(), Some("unknown"));
    assert_eq!(judge(&samples, "/run").as_deref(), Some("system_filesystem"));

    // What it said before holds.
    let said = std::sync::Arc::new(std::sync::Mutex::new(Ok(recorded("k8s-1.36-cgroupv2"))));
    let answers = std::sync::Arc::clone(&said);
    let collector = collector(Runtime::answering(move || answers.lock().unwrap().clone().map(std::sync::Arc::new)));
    assert_eq!(judge(&collect(&*collector, &node), "/var/lib/containerd").as_deref(), Some("eviction"));
    *said.lock().unwrap() = Err(Error::new(Reason::Timeout, "unix:///x: no answer"));
    assert_eq!(judge(&collect(&*collector, &node), "/var/lib/containerd").as_deref(), Some("eviction"));

    // Images elsewhere: the runtime's root is nobody's but ours.
    let inventory = Inventory { image_filesystems: vec!["/var".into()], ..recorded("k8s-1.36-cgroupv2") };
    let samples = collect(&*self::collector(Runtime::fixed(Ok(inventory))), &node);
    assert_eq!(judge(&samples, "/var/lib/containerd").as_deref(), Some("system_filesystem"));
    assert_eq!(samples.value(&READONLY, &["/", "runtime_root"]), Some(0.0));
}

const MACHINE: &str = "20 1 254:0 / / rw shared:1 - ext4 /dev/vda rw\n22 20 254:16 / /data rw - ext4 /dev/vdb rw\n";

/// A node with an etcd in a container, whose data is on a disk of its own.
fn with_etcd(line: &str, own: &str) -> Node {
    let mut node = Node::new(&[ROOT, &ROOT.replacen("/var:", "/data:", 1)]);
    *node.mount("/data") =
        Mount { device: "/dev/vdb".into(), mountpoint: "/data".into(), ..node.mount("/data").clone() };
    node.process(1, "systemd", "/sbin/init", MACHINE);
    node.process(70, "etcd", line, own);
    node.write("root/data/etcd/member/snap/db", "12345");
    node
}

#[test]
fn an_etcd_in_a_container() {
    let line = "etcd --data-dir=/var/lib/etcd --quota-backend-bytes=8589934592";
    let own = "90 80 0:70 / / rw - overlay overlay rw\n91 90 254:16 /etcd /var/lib/etcd rw - ext4 /dev/vdb rw\n";
    let node = with_etcd(line, own);
    let collector = collector(Runtime::default());
    let told = |samples: &Samples| {
        let of_disk = samples.value(&HEADROOM, &["/data", "datastore", "bytes"]);
        [of_disk, samples.value(&DATABASE, &["/data/etcd"]), samples.value(&QUOTA, &["/data/etcd"])]
    };
    let expected = [Some(2_496_290.0 / 3_069_730.0), Some(5.0), Some(8_589_934_592.0)];
    let samples = collect(&*collector, &node);
    assert_eq!((told(&samples), reasons(&samples)), (expected, vec![]));
    // It ended: its disk is what matters now.
    node.remove("proc/70");
    assert_eq!(told(&collect(&*collector, &node)), expected);
    // And came back.
    node.process(71, "etcd", "etcd --data-dir=/var/lib/etcd", own);
    let fresh = self::collector(Runtime::default());
    assert_eq!(told(&collect(&*fresh, &node))[2], Some(2_147_483_648.0), "etcd's own default");
    // Its directory is gone, and so is what was known of it.
    node.remove("proc/71");
    let mut gone = with_etcd(line, own);
    gone.remove("proc/70");
    gone.table.retain(|(path, _)| path != Path::new("/data"));
    assert_eq!(told(&collect(&*collector, &gone)), [None; 3]);
    assert_eq!(told(&collect(&*collector, &node)), [None; 3]);
}

/// Its disk was unmounted: what is below is not what it fills.
#[test]
fn an_etcd_whose_disk_is_not_there() {
    let mut node = with_etcd("etcd --data-dir=/data/etcd", MACHINE);
    let (major, minor) = (254, 16);
    node.mount("/data").number = Some(DeviceNumber { major, minor });
    let collector = collector(Runtime::default());
    let of_disk = |node: &Node| {
        let samples = collect(&*collector, node);
        (samples.value(&READONLY, &["/data", "datastore"]), reasons(&samples))
    };
    assert_eq!(of_disk(&node), (Some(0.0), vec![]));
    node.mount("/data").number = Some(DeviceNumber { major, minor: 0 });
    assert_eq!(of_disk(&node), (None, vec![Reason::Malformed]));
}

#[test]
fn an_etcd_that_is_set_up_or_keeps_its_data_in_its_container() {
    let own = "90 80 0:70 / / rw - overlay overlay rw\n";
    let samples = look(&with_etcd("etcd --data-dir=/var/lib/etcd", own));
    assert_eq!((reasons(&samples), samples.notes().len()), (vec![], 1), "{:?}", samples.notes());
    assert_eq!(samples.rows().iter().filter(|row| std::ptr::eq(row.metric, &QUOTA)).count(), 0);
    // On the machine itself, with no database yet; without a quota.
    let samples = look(&with_etcd("etcd --data-dir=/data/new --quota-backend-bytes=-1", MACHINE));
    assert_eq!(reasons(&samples), []);
    assert_eq!(samples.value(&READONLY, &["/data", "datastore"]), Some(0.0));
    assert_eq!([&DATABASE, &QUOTA].map(|metric| samples.value(metric, &["/data/new"])), [None; 2]);
    // What cannot be understood costs its own series.
    let samples = look(&with_etcd("etcd --data-dir=/data/etcd --quota-backend-bytes=8Gi", MACHINE));
    assert_eq!(reasons(&samples), [Reason::Malformed]);
    assert_eq!(samples.value(&DATABASE, &["/data/etcd"]), Some(5.0));
    assert_eq!(samples.value(&QUOTA, &["/data/etcd"]), None);
}

#[test]
fn whoever_only_calls_itself_etcd_says_nothing() {
    let node = with_etcd("etcd --data-dir=/data/etcd", MACHINE);
    node.write("proc/70/cgroup", "0::/kubepods.slice/kubepods-pod11111111_2222_3333_4444_555555555555.slice/x\n");
    let samples = look(&node);
    assert_eq!(reasons(&samples), []);
    assert!(!samples.rows().iter().any(|row| std::ptr::eq(row.metric, &QUOTA)));
}

#[test]
fn a_machine_that_is_not_where_we_look() {
    assert_eq!(reasons(&look(&Node::new(&[]))), [Reason::Absent]);
}
