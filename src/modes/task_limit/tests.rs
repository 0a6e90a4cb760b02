//! The whole mode on the recorded nodes, on the recorded refusals of four kernels, and on odd machines.
#![allow(clippy::disallowed_methods, reason = "tests write the files of a recorded machine")]

use std::sync::Arc;

use super::*;
use crate::error::Reason;
use crate::golden::{fixtures, inventory};
use crate::host::Deadline;
use crate::host::cgroup::recorded::Machine;
use crate::runtime::Inventory;
use crate::services::Services;

const UID_V1: &str = "bcb1982f-2628-449a-accb-e40ecdefbb3b";
const UID_V2: &str = "dffe967d-a11f-417e-8310-08020db089c7";
const BURSTABLE_V2: &str = "kubepods.slice/kubepods-burstable.slice";

fn nobody() -> Arc<Inventory> {
    let mut inventory = inventory::recorded("k8s-1.36-cgroupv1");
    inventory.containers.clear();
    inventory.sandboxes.clear();
    Arc::new(inventory)
}

fn named(name: &str) -> Runtime {
    Runtime::fixed(Ok(inventory::recorded(name)))
}

fn unnamed() -> Runtime {
    Runtime::answering(|| Ok(nobody())).that_names_at_once()
}

fn with(runtime: Runtime, settings: Settings) -> Box<dyn Collector> {
    let settings = crate::modes::Settings { task_limit: settings, ..Default::default() };
    (MODE.build)(&settings, &Services::with_runtime(runtime))
}

fn collector(runtime: Runtime) -> Box<dyn Collector> {
    with(runtime, Settings::default())
}

fn collect(collector: &dyn Collector, machine: &Machine) -> Samples {
    let context = Context::new(&machine.host, Deadline::after(Duration::from_secs(30)));
    let mut samples = collector.collect(context).unwrap();
    samples.refuse_duplicates();
    samples.refuse_undeclared(MODE.metrics);
    samples
}

fn reasons(samples: &Samples) -> Vec<Reason> {
    samples.errors().iter().map(Error::reason).collect()
}

fn rows(samples: &Samples, metric: &'static Metric) -> usize {
    samples.rows().iter().filter(|row| std::ptr::eq(row.metric, metric)).count()
}

/// A burstable pod of this number, and its container.
fn pod(number: u64) -> (String, String, String) {
    let uid = format!("00000000-0000-4000-8000-{number:012}");
    let path = format!("pids/kubepods/burstable/pod{uid}");
    let container = format!("{path}/{number:064}");
    (uid, path, container)
}

/// A v1 machine with one pod of each of these: its tasks and its limit.
fn machine_with(pods: &[(u64, &str)]) -> Machine {
    let machine = Machine::empty();
    for controller in ["memory", "pids"] {
        machine.cgroup(&format!("{controller}/notify_on_release"), "0\n");
        machine.cgroup(&format!("{controller}/release_agent"), "\n");
    }
    machine.proc("cgroups", "memory 4 9 1\npids 8 9 1\n");
    machine.proc("sys/kernel/osrelease", "6.18.1\n");
    set(&machine, "pids/kubepods", pods.iter().map(|(tasks, _)| tasks).sum(), "max");
    set(&machine, "pids/kubepods/burstable", pods.iter().map(|(tasks, _)| tasks).sum(), "max");
    for (number, (tasks, max)) in (1..).zip(pods) {
        let (_, path, container) = pod(number);
        set(&machine, &path, *tasks, max);
        set(&machine, &container, *tasks, "max");
        machine.cgroup(&format!("{}/cgroup.procs", container.replacen("pids", "memory", 1)), "");
    }
    machine
}

fn set(machine: &Machine, path: &str, tasks: u64, max: &str) {
    machine.cgroup(&format!("{path}/pids.current"), &format!("{tasks}\n"));
    machine.cgroup(&format!("{path}/pids.max"), &format!("{max}\n"));
}

fn refuse(machine: &Machine, path: &str, count: u64) {
    machine.cgroup(&format!("{path}/pids.events"), &format!("max {count}\n"));
}

#[test]
fn the_recorded_nodes() {
    for (machine, name, uid, limit) in
        [(Machine::v1(), "k8s-1.36-cgroupv1", UID_V1, 32_748.0), (Machine::v2(), "k8s-1.36-cgroupv2", UID_V2, 7_055.0)]
    {
        let samples = collect(&*collector(named(name)), &machine);
        assert_eq!(reasons(&samples), [], "{name}");
        let labels = ["default", "memvol", uid];
        assert_eq!(samples.value(&POD_TASKS, &labels), Some(2.0), "{name}");
        // v1: the pod's two, and what kubepods has left of 32,768 with 22 tasks. v2: what systemd gave to a container.
        assert_eq!(samples.value(&POD_LIMIT, &labels), Some(limit), "{name}");
        assert_eq!(samples.value(&POD_REFUSALS, &labels), Some(0.0), "it starts at 0");
        assert_eq!(samples.value(&POD_TASKS, &["", "", "other"]), None, "of the other ten nothing was recorded");
    }
    let samples = collect(&*collector(named("k8s-1.36-cgroupv2")), &Machine::v2());
    let node = |metric, role, path: &str| samples.value(metric, &[role, path]);
    assert_eq!(node(&NODE_TASKS, "kubepods", "/kubepods.slice"), Some(22.0));
    assert_eq!(node(&NODE_LIMIT, "kubepods", "/kubepods.slice"), Some(47_038.0));
    assert_eq!(node(&NODE_TASKS, "burstable", &format!("/{BURSTABLE_V2}")), Some(14.0));
    assert_eq!(
        node(&NODE_LIMIT, "burstable", &format!("/{BURSTABLE_V2}")),
        Some(47_030.0),
        "14 and what is left above"
    );
    assert_eq!(rows(&samples, &NODE_REFUSALS), 0, "6.1 counts in the cgroup of who forks");
}

#[test]
fn the_nearest_limit_binds_wherever_it_is() {
    let machine = machine_with(&[(40, "100")]);
    let (uid, path, container) = pod(1);
    let limit = |machine: &Machine| {
        let samples = collect(&*collector(unnamed()), machine);
        assert_eq!(reasons(&samples), []);
        samples.value(&POD_LIMIT, &["", "", &uid])
    };
    assert_eq!(limit(&machine), Some(100.0), "its own");
    set(&machine, "pids/kubepods/burstable", 500, "510");
    assert_eq!(limit(&machine), Some(50.0), "40, and 10 left in the QoS directory");
    set(&machine, "pids/kubepods", 700, "705");
    assert_eq!(limit(&machine), Some(45.0), "40, and 5 left in kubepods");
    set(&machine, &container, 38, "40");
    assert_eq!(limit(&machine), Some(42.0), "40, and 2 left in its container");
    set(&machine, &container, 10, "90");
    assert_eq!(limit(&machine), Some(45.0), "far from it all the same");
    set(&machine, "pids/kubepods", 700, "max");
    set(&machine, "pids/kubepods/burstable", 500, "max");
    assert_eq!(limit(&machine), Some(90.0), "as if all were in that container");
    set(&machine, &path, 45, "100");
    set(&machine, &container, 10, "90");
    assert_eq!(limit(&machine), Some(100.0), "80 left there, 55 in the pod");
    set(&machine, &path, 40, "30");
    assert_eq!(limit(&machine), Some(40.0), "a limit below what is there leaves nothing");
    for path in ["pids/kubepods", "pids/kubepods/burstable", &path, &container] {
        set(&machine, path, 40, "max");
    }
    assert_eq!(limit(&machine), None, "no limit is no number");
}

#[test]
fn the_nearest_are_shown_and_the_others_add_up() {
    let machine = machine_with(&[(5, "1000"), (90, "100"), (300, "1000"), (7, "max"), (70, "100"), (8, "max")]);
    let samples = collect(&*with(unnamed(), Settings { nearest_pods: 3, ..Settings::default() }), &machine);
    assert_eq!(reasons(&samples), []);
    let tasks = |number| samples.value(&POD_TASKS, &["", "", &pod(number).0]);
    assert_eq!([1, 2, 3, 4, 5, 6].map(tasks), [None, Some(90.0), Some(300.0), None, Some(70.0), None]);
    assert_eq!(samples.value(&POD_TASKS, &["", "", "other"]), Some(20.0));
    assert_eq!(rows(&samples, &POD_LIMIT), 3);
    // Where nothing has a limit, the largest.
    let machine = machine_with(&[(5, "max"), (90, "max"), (7, "max")]);
    let samples = collect(&*with(unnamed(), Settings { nearest_pods: 1, ..Settings::default() }), &machine);
    assert_eq!(samples.value(&POD_TASKS, &["", "", &pod(2).0]), Some(90.0));
    assert_eq!(samples.value(&POD_TASKS, &["", "", "other"]), Some(12.0));
}

#[test]
fn a_pod_that_cannot_be_read_costs_the_sum() {
    let machine = machine_with(&[(5, "1000"), (90, "100")]);
    machine.cgroup(&format!("{}/pids.current", pod(1).1), "many\n");
    let samples = collect(&*collector(unnamed()), &machine);
    assert_eq!(reasons(&samples), [Reason::Malformed]);
    assert_eq!(samples.value(&POD_TASKS, &["", "", &pod(2).0]), Some(90.0));
    assert_eq!(samples.value(&POD_TASKS, &["", "", "other"]), None);
}

/// What a machine of `refused-….txt` had in its files: path below `sys/fs/cgroup` and text.
fn recorded_refusals(name: &str) -> [Vec<(String, String)>; 2] {
    let text = std::fs::read_to_string(fixtures().join("task_limit").join(name)).unwrap();
    let (first, second) = text.split_once("== a limit above\n").unwrap();
    [first, second].map(|text| {
        let rows = text.lines().map(|line| line.split_once(": ").unwrap());
        rows.map(|(file, text)| (file.to_owned(), format!("{text}\n"))).collect()
    })
}

/// The recorded `pod` as a pod, with the directory above it as kubepods and `c1` as its container.
fn put(machine: &Machine, base: &str, pod: &str, container: &str, files: &[(String, String)]) {
    for (file, text) in files {
        let place = match file.rsplit_once('/') {
            None => format!("{base}/{file}"),
            Some(("pod", file)) => format!("{base}/{pod}/{file}"),
            Some((_, file)) => format!("{base}/{pod}/{container}/{file}"),
        };
        machine.cgroup(&place, text);
    }
}

#[test]
fn each_kernel_counts_in_its_own_way() {
    let id = "c".repeat(64);
    let uid = "00000000-0000-4000-8000-000000000001";
    for (name, unified, pods, node) in [
        ("refused-5.10-v1.txt", false, [8.0, 11.0], [None, None]),
        ("refused-6.1-v2.txt", true, [3.0, 6.0], [None, None]),
        // What the limit above refused is not the pod's, whose own limit is gone by then.
        ("refused-6.12-v2.txt", true, [6.0, 6.0], [Some(6.0), Some(9.0)]),
        ("refused-7.2-v2.txt", true, [3.0, 3.0], [Some(3.0), Some(12.0)]),
    ] {
        let machine = Machine::empty();
        machine.proc("sys/kernel/osrelease", "6.1.0\n");
        let base = if unified { "kubepods" } else { "pids/kubepods" };
        if unified {
            machine.cgroup("cgroup.controllers", "memory pids\n");
        } else {
            for controller in ["memory", "pids"] {
                machine.cgroup(&format!("{controller}/notify_on_release"), "0\n");
                machine.cgroup(&format!("{controller}/release_agent"), "\n");
            }
            machine.cgroup(&format!("memory/kubepods/pod{uid}/{id}/cgroup.procs"), "");
        }
        let [first, second] = recorded_refusals(name);
        let collector = collector(unnamed());
        let look = |files: &[(String, String)]| {
            put(&machine, base, &format!("pod{uid}"), &id, files);
            // The pod's turn comes within eight.
            let samples = (0..8).map(|_| collect(&*collector, &machine)).last().unwrap();
            let refused = samples.value(&POD_REFUSALS, &["", "", uid]).unwrap();
            (refused, samples.value(&NODE_REFUSALS, &["kubepods", "/kubepods"]))
        };
        let looks = [look(&first), look(&second)];
        assert_eq!(looks.map(|(pod, _)| pod), pods, "{name}");
        assert_eq!(looks.map(|(_, node)| node), node, "{name}");
    }
}

#[test]
fn refusals_outlive_containers_and_not_pods() {
    let machine = machine_with(&[(99, "100"), (1, "100")]);
    let (uid, path, container) = pod(1);
    let refused = |samples: &Samples, uid: &str| samples.value(&POD_REFUSALS, &["", "", uid]);
    for path in [&path, &container] {
        refuse(&machine, path, 0);
    }
    refuse(&machine, &container, 7);
    let collector = collector(unnamed());
    assert_eq!(refused(&collect(&*collector, &machine), &uid), Some(7.0));
    assert_eq!(refused(&collect(&*collector, &machine), &pod(2).0), None, "this kernel counts nothing there");
    for tree in ["pids", "memory"] {
        std::fs::remove_dir_all(machine.cgroup_path(&container.replacen("pids", tree, 1))).unwrap();
    }
    assert_eq!(refused(&collect(&*collector, &machine), &uid), Some(7.0), "the container is gone, its count stays");
    let next = format!("{path}/{:064}", 77);
    set(&machine, &next, 99, "max");
    machine.cgroup(&format!("{}/cgroup.procs", next.replacen("pids", "memory", 1)), "");
    refuse(&machine, &next, 2);
    assert_eq!(refused(&collect(&*collector, &machine), &uid), Some(9.0), "the next one counts from 0");
    std::fs::remove_dir_all(machine.cgroup_path(&path.replacen("pids", "memory", 1))).unwrap();
    assert_eq!(refused(&collect(&*collector, &machine), &uid), None);
    machine.cgroup(&format!("{}/cgroup.procs", next.replacen("pids", "memory", 1)), "");
    assert_eq!(refused(&collect(&*collector, &machine), &uid), Some(2.0), "a pod that was gone begins anew");
}

#[test]
fn what_is_not_near_is_read_in_its_turn() {
    let machine = machine_with(&[(1, "100"), (90, "100")]);
    let (uid, path, _) = pod(1);
    for number in [1, 2] {
        let (_, path, container) = pod(number);
        refuse(&machine, &path, 0);
        refuse(&machine, &container, 0);
    }
    let collector = collector(unnamed());
    let _ = collect(&*collector, &machine);
    refuse(&machine, &path, 5);
    refuse(&machine, &pod(2).1, 6);
    machine.cgroup(&format!("{path}/pids.max"), "50\n");
    let mut seen = Vec::new();
    let mut limits = Vec::new();
    for scrape in 0..8 {
        let samples = collect(&*collector, &machine);
        assert_eq!(samples.value(&POD_REFUSALS, &["", "", &pod(2).0]), Some(6.0), "near its limit: at once, {scrape}");
        seen.push(samples.value(&POD_REFUSALS, &["", "", &uid]).unwrap());
        limits.push(samples.value(&POD_LIMIT, &["", "", &uid]).unwrap());
    }
    assert!(seen.is_sorted() && seen.last() == Some(&5.0), "{seen:?}");
    assert_eq!(
        seen.iter().filter(|count| **count < 5.0).count() + seen.iter().filter(|count| **count > 4.0).count(),
        8
    );
    assert_eq!(limits.last(), Some(&50.0), "{limits:?}");
}

#[test]
fn while_kubepods_counts_nothing_no_pod_is_read() {
    let machine = Machine::v2();
    let pod = format!("{BURSTABLE_V2}/kubepods-burstable-pod{}.slice", UID_V2.replace('-', "_"));
    for path in ["kubepods.slice", BURSTABLE_V2, &pod] {
        machine.cgroup(&format!("{path}/pids.events.local"), "max 0\n");
        refuse(&machine, path, 3);
    }
    let collector = collector(named("k8s-1.36-cgroupv2"));
    let refused = |samples: &Samples| samples.value(&POD_REFUSALS, &["default", "memvol", UID_V2]);
    let samples = collect(&*collector, &machine);
    assert_eq!(refused(&samples), Some(3.0));
    assert_eq!(samples.value(&NODE_REFUSALS, &["kubepods", "/kubepods.slice"]), Some(3.0));
    refuse(&machine, &pod, 9);
    assert_eq!(refused(&collect(&*collector, &machine)), Some(3.0), "the kernel would have counted it above, too");
    refuse(&machine, "kubepods.slice", 9);
    assert_eq!(refused(&collect(&*collector, &machine)), Some(9.0));
}

#[test]
fn the_old_way_to_count_can_be_mounted() {
    let machine = Machine::v2();
    machine.cgroup("kubepods.slice/pids.events.local", "max 0\n");
    machine.proc("self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,pids_localevents\n");
    let samples = collect(&*collector(named("k8s-1.36-cgroupv2")), &machine);
    assert_eq!(rows(&samples, &NODE_REFUSALS), 0);
}

#[test]
fn the_units_of_kubelet_and_sshd() {
    let machine = machine_with(&[(2, "max")]);
    let status = "Name:\tkubelet\nUid:\t0\t0\t0\t0\nNSpid:\t7\n";
    let kubelet = |cgroups: &str| {
        machine.proc("7/status", status);
        machine.proc("7/comm", "kubelet\n");
        machine.proc("7/cmdline", "/usr/bin/kubelet\0");
        machine.proc("7/stat", "7 (kubelet) S 1 7 7 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 99\n");
        machine.proc("7/cgroup", cgroups);
    };
    kubelet("8:pids:/system.slice/kubelet.service\n4:memory:/system.slice/other.service\n");
    set(&machine, "pids/system.slice", 100, "max");
    set(&machine, "pids/system.slice/kubelet.service", 17, "20");
    refuse(&machine, "pids/system.slice/kubelet.service", 4);
    machine.cgroup("pids/system.slice/kubelet.service/cgroup.procs", "7\n8\n");
    for (pid, threads) in [(7, 12), (8, 5)] {
        for number in 0..threads {
            machine.proc(&format!("{pid}/task/{number}/comm"), "x\n");
        }
    }
    set(&machine, "pids/system.slice/ssh.service", 0, "10");
    set(&machine, "pids/system.slice/sshd.service", 1, "10");
    let collector = collector(unnamed());
    let samples = collect(&*collector, &machine);
    assert_eq!(reasons(&samples), []);
    let unit = ["kubelet", "/system.slice/kubelet.service"];
    assert_eq!(samples.value(&NODE_TASKS, &unit), Some(17.0));
    assert_eq!(samples.value(&NODE_LIMIT, &unit), Some(20.0));
    assert_eq!(samples.value(&NODE_REFUSALS, &unit), Some(4.0));
    assert_eq!(samples.value(&NODE_TASKS, &["sshd", "/system.slice/sshd.service"]), Some(1.0));
    assert_eq!(samples.value(&NODE_TASKS, &["sshd", "/system.slice/ssh.service"]), None, "nobody is in it");
    assert_eq!(samples.value(&THREADS, &["7", "kubelet", "kubelet", "", "", ""]), Some(12.0));
    // The slice has a limit of its own.
    set(&machine, "pids/system.slice", 100, "101");
    assert_eq!(collect(&*collector, &machine).value(&NODE_LIMIT, &unit), Some(18.0));
    // A unit that was started again has another cgroup, which counts from 0.
    let path = machine.cgroup_path("pids/system.slice/kubelet.service");
    std::fs::rename(&path, machine.cgroup_path("pids/system.slice/old")).unwrap();
    set(&machine, "pids/system.slice/kubelet.service", 17, "20");
    refuse(&machine, "pids/system.slice/kubelet.service", 1);
    assert_eq!(collect(&*collector, &machine).value(&NODE_REFUSALS, &unit), Some(5.0));
    // In the root there is nothing to be read.
    kubelet("8:pids:/\n");
    let samples = collect(&*collector, &machine);
    assert_eq!((samples.value(&NODE_TASKS, &unit), reasons(&samples)), (None, vec![]));
}

#[test]
fn keys_without_cgroups_and_nothing_at_all() {
    let machine = Machine::empty();
    let context = Context::new(&machine.host, Deadline::after(Duration::from_secs(30)));
    assert_eq!(collector(unnamed()).collect(context).unwrap_err().reason(), Reason::Absent);
    let text = std::fs::read_to_string(fixtures().join("task_limit/key-users-6.12.txt")).unwrap();
    machine.proc("key-users", &text);
    let samples = collect(&*collector(unnamed()), &machine);
    assert_eq!(samples.value(&KEYS, &["0"]), Some(10.0));
    assert_eq!(samples.value(&KEYS_LIMIT, &["0"]), Some(1_000_000.0));
    assert_eq!(samples.value(&KEY_BYTES, &["997"]), Some(9.0));
    assert_eq!(samples.value(&KEY_LIMIT_BYTES, &["997"]), Some(20_000.0));
    machine.proc("key-users", "nonsense\n");
    let error = collector(unnamed()).collect(context).unwrap_err();
    assert_eq!(error.reason(), Reason::Malformed);
}
