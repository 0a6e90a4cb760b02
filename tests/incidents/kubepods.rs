//! The replays that need a kubelet's cgroups: one at a time, since the machine has one tree of them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common;
use crate::machine::{Machine, Process, remove};
use crate::pace::Pace;
use crate::stack::Stack;
use crate::{possible, tell};

const MEMORY: &str = "/sys/fs/cgroup/memory";
const UID: &str = "bcb1982f-2628-449a-accb-e40ecdefbb3b";
const MIB: u64 = 1 << 20;

/// `kubepods` of the memory hierarchy, removed when dropped.
struct Kubepods {
    top: PathBuf,
    /// Shared with the other tests that count cgroups or make a kubepods tree.
    _lock: File,
}

impl Kubepods {
    fn open() -> Option<Self> {
        if !possible() {
            return None;
        }
        if !Path::new(MEMORY).join("memory.oom_control").exists() {
            common::say_skip("no cgroup v1 memory hierarchy");
            return None;
        }
        let lock = File::create(std::env::temp_dir().join("headroom-kernel-cgroup.lock")).unwrap();
        lock.lock().unwrap();
        let top = Path::new(MEMORY).join("kubepods");
        if top.exists() || Path::new(MEMORY).join("kubepods.slice").exists() {
            common::say_skip("kubepods exists: this is a Kubernetes node");
            return None;
        }
        fs::create_dir_all(top.join("burstable")).unwrap();
        Some(Kubepods { top, _lock: lock })
    }

    fn pod(&self) -> PathBuf {
        self.top.join("burstable").join(format!("pod{UID}"))
    }

    /// A new container of the pod.
    fn container(&self, number: u32) -> PathBuf {
        let path = self.pod().join(format!("{number:064x}"));
        fs::create_dir_all(&path).unwrap();
        path
    }
}

impl Drop for Kubepods {
    fn drop(&mut self) {
        let until = Instant::now() + Duration::from_secs(5);
        while self.top.exists() && Instant::now() < until {
            remove(&self.top);
            std::thread::sleep(Duration::from_millis(5));
        }
        if self.top.exists() {
            eprintln!("left behind: {}", self.top.display());
        }
    }
}

/// A process that sleeps in this cgroup, started by such a command.
fn inside(machine: &Machine, cgroup: &Path, command: &mut Command) -> Process {
    let process = machine.spawn(command);
    common::eventually("it sleeps", || {
        fs::read_to_string(format!("/proc/{}/comm", process.pid())).is_ok_and(|comm| comm == "sleep\n")
    });
    fs::write(cgroup.join("cgroup.procs"), process.pid().to_string()).unwrap();
    process
}

/// Cgroups of containers that nobody knows any more, on a node with one pod that is well.
#[test]
fn i1_cgroups_leak() {
    let Some(kubepods) = Kubepods::open() else { return };
    let pace = Pace::of_this_run();
    let grace = format!("--collector.cgroup_leak.orphan-grace={}ms", pace.short(Duration::from_secs(300)).as_millis());
    let machine = Machine::new().with("", &[&grace, "--no-collector.memory_volume"]);
    let _alive = inside(&machine, &kubepods.container(1), machine.namespace.command("sleep").arg("600"));
    let stack = Stack::start(&machine.namespace, machine.exporter().address, pace);
    stack.is_calm();
    let fault = Instant::now();
    let leaked: Vec<PathBuf> = (0x1000..0x1100).map(|number| kubepods.container(number)).collect();
    let notice = stack.arrives("HeadroomOrphanedCgroups", &[("mode", "cgroup_leak")]);
    tell("I1", pace, fault, &notice);
    assert_eq!(notice.label("severity"), "warning");
    notice.says("summary", &["256 kubepods cgroups whose pod or container does not exist"]);
    leaked.iter().for_each(|cgroup| remove(cgroup));
    stack.all_resolve();
    stack.only(&["HeadroomOrphanedCgroups"]);
}

/// The container's next life: it writes until the kernel kills it.
fn fill_until_killed(machine: &Machine, container: &Path, volume: &str) {
    let script = "echo 0 > \"$0/cgroup.procs\" && \
        exec dd if=/dev/zero of=\"$1/fill\" bs=64k count=2048 oflag=append conv=notrunc";
    let mut command = machine.namespace.command("sh");
    let status = command.arg("-c").arg(script).arg(container).arg(volume).output().unwrap().status;
    assert!(!status.success(), "the writer was not killed");
}

#[test]
fn i6_a_memory_volume_over_its_limit() {
    let Some(kubepods) = Kubepods::open() else { return };
    let pace = Pace::of_this_run();
    let container = kubepods.container(7);
    fs::write(container.join("memory.limit_in_bytes"), (16 * MIB).to_string()).unwrap();
    fs::write(kubepods.pod().join("memory.limit_in_bytes"), (24 * MIB).to_string()).unwrap();
    let machine = Machine::new();
    let at = machine.root_dir().join(format!("pods/{UID}/volumes/kubernetes.io~empty-dir/cache"));
    let volume = at.display().to_string();
    machine.namespace.run(&format!("mkdir -p {volume} && mount -t tmpfs -o size=64m tmpfs {volume}"));
    let machine = machine.with("", &[]);
    let stack = Stack::start(&machine.namespace, machine.exporter().address, pace);
    stack.is_calm();
    // What was written is near the limit, and nothing was killed yet.
    let fault = Instant::now();
    machine.namespace.run(&format!("head -c {} /dev/zero > {volume}/fill", 14 * MIB));
    let labels = [("mode", "memory_volume"), ("pod_uid", UID), ("volume", "cache")];
    let near = stack.arrives("HeadroomMemoryVolumeNearLimit", &labels);
    tell("I6, before", pace, fault, &near);
    assert_eq!(near.label("severity"), "warning");
    near.says("description", &["holds 87.5% of the memory"]);
    let fault = Instant::now();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _end = Stop(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                fill_until_killed(&machine, &container, &volume);
                std::thread::sleep(Duration::from_millis(600));
            }
        });
        let notice = stack.arrives("HeadroomMemoryVolumeOomLoop", &labels);
        tell("I6", pace, fault, &notice);
        assert_eq!(notice.label("severity"), "critical");
        notice.says("description", &["were OOM-killed in the last 5 minutes", "Delete the pod"]);
    });
    // As the page says: delete the pod.
    machine.namespace.run(&format!("umount {volume}"));
    common::eventually("the pod's cgroups are gone", || {
        remove(&kubepods.pod());
        !kubepods.pod().exists()
    });
    stack.all_resolve();
    // The node's own counter knows no namespace: whoever else is killed on this machine meanwhile is in it.
    // Kills of the last 15 minutes are counted after the pod is gone, and the volume that explained them is not there any more.
    stack.only_or(
        &["HeadroomMemoryVolumeNearLimit", "HeadroomMemoryVolumeOomLoop"],
        &["HeadroomPodOomKilledRepeatedly", "HeadroomNodeOomKills"],
    );
}

/// Ends the loop of another thread, also when this one panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A macvlan in a pod goes with the device that it sits on.
#[test]
fn i7_a_pods_interface_vanishes() {
    let Some(kubepods) = Kubepods::open() else { return };
    let pace = Pace::of_this_run();
    let machine = Machine::new().with("", &["--collector.pod_interface.grace=500ms", "--no-collector.memory_volume"]);
    // With a sysfs of its own network at /sys, as a container has.
    let script = "mount -t sysfs sysfs /sys && exec sleep 600";
    let mut command = machine.namespace.command("unshare");
    let pause = inside(&machine, &kubepods.container(1), command.args(["--net", "--mount", "sh", "-c", script]));
    let enter = format!("--net=/proc/{}/ns/net", pause.pid());
    let mount = format!("--mount=/proc/{}/ns/mnt", pause.pid());
    let app = inside(&machine, &kubepods.container(2), Command::new("nsenter").args([&enter, &mount, "sleep", "600"]));
    let connect = || {
        let pid = pause.pid();
        machine.namespace.run(&format!(
            "ip link add eno1 type veth peer name switch; ip link set eno1 up; ip link set switch up;
             ip link add mv0 link eno1 type macvlan mode bridge; ip link set mv0 netns {pid}"
        ));
        common::shell(&format!("nsenter {enter} ip link set mv0 name eth0; nsenter {enter} ip link set eth0 up"));
    };
    connect();
    let stack = Stack::start(&machine.namespace, machine.exporter().address, pace);
    stack.is_calm();
    let fault = Instant::now();
    machine.namespace.run("ip link del eno1");
    let parent = stack.arrives("HeadroomHostParentInterfaceDown", &[("severity", "critical"), ("device", "eno1")]);
    tell("I7, parent", pace, fault, &parent);
    parent.says("summary", &["interface eno1"]);
    let notice =
        stack.arrives("HeadroomPodWithoutNetworkInterface", &[("severity", "critical"), ("mode", "pod_interface")]);
    tell("I7", pace, fault, &notice);
    notice.says("description", &["lo and no other interface"]);
    connect();
    stack.all_resolve();
    // Once the parent is back: what sat on it was lost, which is news for ten minutes.
    stack.only_or(
        &["HeadroomHostParentInterfaceDown", "HeadroomPodWithoutNetworkInterface"],
        &["HeadroomHostInterfaceReplaced"],
    );
    drop(app);
}
