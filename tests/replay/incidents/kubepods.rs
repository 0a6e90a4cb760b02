//! The replays that need a kubelet's cgroups: one at a time, since the machine has one tree of them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::drill::Drill;
use super::machine::{Machine, Process, remove};
use super::pace::Pace;
use super::stack::Stack;
use super::{possible, tell};
use crate::common;
use crate::common::prometheus::Release;

const MEMORY: &str = "/sys/fs/cgroup/memory";
const UID: &str = "bcb1982f-2628-449a-accb-e40ecdefbb3b";

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
        let lock = common::machine_lock();
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
pub fn i1_cgroups_leak() {
    let Some(kubepods) = Kubepods::open() else { return };
    let pace = Pace::of_this_run();
    let grace = format!("--collector.cgroup_leak.orphan-grace={}ms", pace.short(Duration::from_secs(300)).as_millis());
    let machine = Machine::new().with("", &[&grace, "--no-collector.memory_volume"]);
    let _alive = inside(&machine, &kubepods.container(1), machine.namespace.command("sleep").arg("600"));
    let stack = Stack::start(&machine.namespace, machine.exporter().address, pace, Release::Installed);
    stack.is_calm();
    let mut leak = Drill::start(&machine.namespace, "cgroup-leak --count 256");
    let fault = leak.says("t=0s");
    let notice = stack.arrives("HeadroomOrphanedCgroups", &[("mode", "cgroup_leak")]);
    tell("I1", pace, fault, &notice);
    assert_eq!(notice.label("severity"), "warning");
    notice.says("summary", &["256 cgroups of pods or containers that no longer exist"]);
    leak.end(&["HeadroomOrphanedCgroups"]);
    stack.all_resolve();
    stack.only(&["HeadroomOrphanedCgroups"]);
}

pub fn i6_a_memory_volume_over_its_limit() {
    let Some(_kubepods) = Kubepods::open() else { return };
    let pace = Pace::of_this_run();
    let machine = Machine::new().with("", &[]);
    let stack = Stack::start(&machine.namespace, machine.exporter().address, pace, Release::Three);
    stack.is_calm();
    // What was written is near the limit, and nothing is killed yet.
    let near_for = pace.short(Duration::from_secs(360)).as_secs();
    let root = machine.root_dir();
    let words =
        format!("memory-volume --kubelet-root-dir {} --near-for {near_for}s --restart-after 600ms", root.display());
    let before = killed();
    let mut drill = Drill::start(&machine.namespace, &words);
    let fault = drill.says(" 1 starts, 0 OOM kills");
    let labels = [("mode", "memory_volume"), ("volume", "headroom-drill-cache")];
    let near = stack.arrives("HeadroomMemoryVolumeNearLimit", &labels);
    tell("I6, before", pace, fault, &near);
    assert_eq!(near.label("severity"), "warning");
    near.says("description", &["holds 87.5% of the memory", near.label("pod_uid")]);
    let fault = drill.says(" 1 OOM kills");
    let notice = stack.arrives("HeadroomMemoryVolumeOomLoop", &labels);
    tell("I6", pace, fault, &notice);
    assert_eq!((notice.label("severity"), notice.label("pod_uid")), ("critical", near.label("pod_uid")));
    notice.says("description", &["were OOM-killed in the last 5 minutes", "Delete the pod"]);
    // The pod is deleted, as the page says.
    let said = drill.end(&["HeadroomMemoryVolumeNearLimit", "HeadroomMemoryVolumeOomLoop"]);
    stack.all_resolve();
    // The node's own counter knows no namespace: whoever else is killed on this machine meanwhile is in it. One kill
    // may not be said any more.
    let ours =
        said.lines().rev().find_map(|line| line.strip_suffix(" OOM kills")?.rsplit(' ').next()?.parse::<u64>().ok());
    let others = killed() - before > ours.unwrap() + 1;
    let perhaps: &[&str] = if others { &["HeadroomNodeOomKills"] } else { &[] };
    stack.only_or(&["HeadroomMemoryVolumeNearLimit", "HeadroomMemoryVolumeOomLoop"], perhaps);
}

/// A pod that has nine tenths of its processes and threads, and then wants more than there are.
pub fn a_pod_at_its_limit_of_tasks() {
    if !Path::new("/sys/fs/cgroup/pids/cgroup.procs").exists() {
        common::say_skip("no cgroup v1 pids hierarchy");
        return;
    }
    let Some(_kubepods) = Kubepods::open() else { return };
    let pace = Pace::of_this_run();
    let machine = Machine::new().with("", &["--no-collector.memory_volume"]);
    let stack = Stack::start(&machine.namespace, machine.exporter().address, pace, Release::Three);
    stack.is_calm();
    let near_for = pace.short(Duration::from_secs(360)).as_secs();
    let words = format!("task-limit --kubelet-root-dir {} --near-for {near_for}s", machine.root_dir().display());
    let mut drill = Drill::start(&machine.namespace, &words);
    let fault = drill.says(": 90 tasks of a limit of 100, 0 forks refused");
    let near = stack.arrives("HeadroomPodTasksNearLimit", &[("mode", "task_limit")]);
    tell("task_limit, before", pace, fault, &near);
    assert_eq!(near.label("severity"), "warning");
    near.says("description", &["has 90% of the processes and threads", near.label("pod_uid")]);
    let fault = drill.says(", 1 forks refused");
    let notice = stack.arrives("HeadroomForksRefused", &[("mode", "task_limit")]);
    tell("task_limit", pace, fault, &notice);
    assert_eq!((notice.label("severity"), notice.label("pod_uid")), ("warning", near.label("pod_uid")));
    notice.says("description", &["were refused by a limit", near.label("pod_uid")]);
    drill.end(&["HeadroomPodTasksNearLimit", "HeadroomForksRefused"]);
    stack.all_resolve();
    stack.only(&["HeadroomPodTasksNearLimit", "HeadroomForksRefused"]);
}

/// Of the whole machine, since it was started.
fn killed() -> u64 {
    let text = fs::read_to_string("/proc/vmstat").unwrap();
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok()).unwrap()
}

/// A macvlan in a pod goes with the device that it sits on.
pub fn i7_a_pods_interface_vanishes() {
    let Some(_kubepods) = Kubepods::open() else { return };
    let pace = Pace::of_this_run();
    let machine = Machine::new().with("", &["--collector.pod_interface.grace=500ms", "--no-collector.memory_volume"]);
    // For the names of network namespaces.
    machine.namespace.run("mount -t tmpfs tmpfs /run");
    let stack = Stack::start(&machine.namespace, machine.exporter().address, pace, Release::Installed);
    stack.is_calm();
    let seconds = |real| pace.short(Duration::from_secs(real)).as_secs();
    // In real time the pod is to be seen for the exporter's grace period, and the fault until all have paged.
    let words = format!("pod-interface --after {}s --back-after {}s", seconds(120), seconds(420));
    let mut drill = Drill::start(&machine.namespace, &words);
    let fault = drill.says("deleted hrdrill-");
    let parent = stack.arrives("HeadroomHostParentInterfaceDown", &[("severity", "critical")]);
    tell("I7, parent", pace, fault, &parent);
    assert!(parent.label("device").starts_with("hrdrill-"), "{}", parent.alert);
    parent.says("summary", &[&format!("interface {}", parent.label("device"))]);
    let notice =
        stack.arrives("HeadroomPodWithoutNetworkInterface", &[("severity", "critical"), ("mode", "pod_interface")]);
    tell("I7", pace, fault, &notice);
    notice.says("description", &["lo and no other interface", "The pod with uid 68656164-726f-"]);
    drill.says("made hrdrill-");
    stack.resolves("HeadroomHostParentInterfaceDown");
    drill.end(&["HeadroomHostParentInterfaceDown", "HeadroomPodWithoutNetworkInterface"]);
    stack.all_resolve();
    stack.only(&["HeadroomHostParentInterfaceDown", "HeadroomPodWithoutNetworkInterface"]);
}
