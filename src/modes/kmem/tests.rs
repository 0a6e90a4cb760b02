//! The whole mode on the recorded nodes, and on old kernels made from them.

use std::time::Duration;

use super::*;
use crate::error::Reason;
use crate::host::Deadline;
use crate::host::cgroup::recorded::Machine;

fn try_collect(machine: &Machine) -> Result<Samples> {
    let context = Context::new(&machine.host, Deadline::after(Duration::from_secs(30)));
    let mut samples = Kmem { kubepods: Kubepods::default() }.collect(context)?;
    samples.refuse_duplicates();
    Ok(samples)
}

fn collect(machine: &Machine) -> Samples {
    try_collect(machine).unwrap()
}

fn reasons(samples: &Samples) -> Vec<Reason> {
    samples.errors().iter().map(Error::reason).collect()
}

fn accounted(samples: &Samples) -> [Option<f64>; 2] {
    ["pod", "container"].map(|kind| samples.value(&ACCOUNTED, &[kind]))
}

#[test]
fn recorded_v1_node() {
    let samples = collect(&Machine::v1());
    assert_eq!(reasons(&samples), []);
    assert_eq!(samples.value(&KERNEL_INFO, &["6.18.44-fc-v657", "v1", "on"]), Some(1.0));
    assert_eq!(samples.value(&ENABLED, &[]), Some(1.0));
    assert_eq!(samples.value(&LEAK_PRONE, &["kernel_4_0_or_newer"]), Some(0.0));
    assert_eq!(accounted(&samples), [Some(11.0), Some(22.0)]);
    assert_eq!(samples.value(&USAGE, &["node"]), Some(57_950_208.0), "memory/root/memory.kmem.usage_in_bytes");
    assert_eq!(samples.value(&USAGE, &["kubepods"]), Some(4_235_264.0));
    assert_eq!(samples.value(&SLAB, &["node", "true"]), Some(60_532.0 * 1024.0));
    assert_eq!(samples.value(&SLAB, &["node", "false"]), Some(41_396.0 * 1024.0));
    assert_eq!(samples.value(&SLAB, &["kubepods", "true"]), None, "v1 does not tell");
    assert_eq!(samples.value(&PERCPU, &[]), Some(1_632.0 * 1024.0));
}

#[test]
fn recorded_v2_node() {
    let samples = collect(&Machine::v2());
    assert_eq!(reasons(&samples), []);
    assert_eq!(samples.value(&KERNEL_INFO, &["6.1.0-56-amd64", "v2", "on"]), Some(1.0));
    assert_eq!(samples.value(&LEAK_PRONE, &["kernel_4_0_or_newer"]), Some(0.0));
    assert_eq!(accounted(&samples), [Some(11.0), Some(22.0)]);
    assert_eq!(samples.value(&USAGE, &["node"]), Some(32_514_048.0));
    assert_eq!(samples.value(&USAGE, &["kubepods"]), Some(4_108_288.0));
    assert_eq!(samples.value(&SLAB, &["node", "true"]), Some(29_996.0 * 1024.0), "meminfo, not what is charged");
    assert_eq!(samples.value(&SLAB, &["kubepods", "true"]), Some(1_344_016.0));
    assert_eq!(samples.value(&SLAB, &["kubepods", "false"]), Some(974_248.0));
}

#[test]
fn v2_before_5_18_does_not_print_the_sum() {
    let machine = Machine::v2();
    machine.cgroup("memory.stat", "anon 1\nkernel_stack 4177920\nslab_reclaimable 1\n");
    let samples = collect(&machine);
    assert_eq!(samples.value(&USAGE, &["node"]), None);
    assert_eq!(reasons(&samples), []);
}

#[test]
fn the_boot_option() {
    for machine in [Machine::v1(), Machine::v2()] {
        machine.proc("cmdline", "quiet cgroup.memory=nosocket,nokmem\n");
        let samples = collect(&machine);
        assert_eq!(samples.value(&ENABLED, &[]), Some(0.0));
        assert_eq!(accounted(&samples), [Some(0.0), Some(0.0)]);
        assert_eq!(samples.value(&LEAK_PRONE, &["kernel_4_0_or_newer"]), Some(0.0));
        let info = samples.rows().iter().find(|row| row.metric.name == KERNEL_INFO.name).unwrap();
        assert_eq!(&*info.labels[2], "off");
    }
}

/// CentOS 7 as in the outage: accounting by cgroup.
fn old() -> (Machine, String) {
    let machine = Machine::v1();
    machine.proc("sys/kernel/osrelease", "3.10.0-957.el7.x86_64\n");
    let lists = include_str!("../../../tests/fixtures/node/k8s-1.36-cgroupv1/cgroup/kubepods-dirs.txt");
    let mut containers = Vec::new();
    for path in lists.lines().filter_map(|line| line.strip_prefix("/sys/fs/cgroup/memory/kubepods/")) {
        machine.cgroup(&format!("memory/kubepods/{path}/memory.kmem.usage_in_bytes"), "0\n");
        // EIO while inactive: reading a directory fails much the same.
        std::fs::create_dir(machine.cgroup_path(&format!("memory/kubepods/{path}/memory.kmem.slabinfo"))).unwrap();
        containers.push(format!("memory/kubepods/{path}"));
    }
    let container = containers.into_iter().rfind(|path| path.rsplit('/').next().unwrap().len() == 64).unwrap();
    (machine, container)
}

#[test]
fn an_old_kernel_without_accounting() {
    let (machine, _) = old();
    let samples = collect(&machine);
    assert_eq!(reasons(&samples), []);
    assert_eq!(samples.value(&KERNEL_INFO, &["3.10.0-957.el7.x86_64", "v1", "per_cgroup"]), Some(1.0));
    assert_eq!(samples.value(&ENABLED, &[]), Some(0.0));
    assert_eq!(samples.value(&LEAK_PRONE, &["accounting_off"]), Some(0.0));
    assert_eq!(accounted(&samples), [Some(0.0), Some(0.0)]);
}

#[test]
fn an_old_kernel_that_leaks() {
    for proof in ["memory.kmem.usage_in_bytes", "memory.kmem.slabinfo"] {
        let (machine, container) = old();
        let file = machine.cgroup_path(&format!("{container}/{proof}"));
        if file.is_dir() {
            std::fs::remove_dir(&file).unwrap();
            std::fs::write(&file, "slabinfo - version: 2.1\n").unwrap();
        } else {
            std::fs::write(&file, "4096\n").unwrap();
        }
        let samples = collect(&machine);
        assert_eq!(samples.value(&ENABLED, &[]), Some(1.0), "{proof}");
        assert_eq!(samples.value(&LEAK_PRONE, &["kernel_before_4_0"]), Some(1.0), "{proof}");
        assert_eq!(accounted(&samples), [Some(0.0), Some(1.0)], "{proof}");
        // The same on a kernel after the repair.
        machine.proc("sys/kernel/osrelease", "4.4.0-210-generic\n");
        let samples = collect(&machine);
        assert_eq!(samples.value(&ENABLED, &[]), Some(1.0), "{proof}");
        assert_eq!(samples.value(&LEAK_PRONE, &["kernel_4_0_or_newer"]), Some(0.0), "{proof}");
    }
}

#[test]
fn a_kernel_without_the_files_or_the_controller() {
    let machine = Machine::v1();
    std::fs::remove_file(machine.cgroup_path("memory/memory.kmem.usage_in_bytes")).unwrap();
    let samples = collect(&machine);
    assert_eq!(samples.value(&KERNEL_INFO, &["6.18.44-fc-v657", "v1", "unsupported"]), Some(1.0));
    assert_eq!(samples.value(&ENABLED, &[]), Some(0.0));
    assert_eq!((samples.value(&USAGE, &["node"]), accounted(&samples)), (None, [Some(0.0), Some(0.0)]));

    std::fs::remove_dir_all(machine.cgroup_path("memory")).unwrap();
    let samples = collect(&machine);
    assert_eq!(samples.value(&LEAK_PRONE, &["unsupported"]), Some(0.0));
    assert_eq!(accounted(&samples), [None, None], "no memory controller, no tree to look in");
    assert_eq!(reasons(&samples), []);
}

#[test]
fn what_cannot_be_read_is_not_guessed() {
    let error = try_collect(&Machine::empty()).unwrap_err();
    assert_eq!(error.reason(), Reason::Absent);

    let machine = Machine::v1();
    std::fs::remove_file(machine.path().join("proc/cmdline")).unwrap();
    machine.proc("meminfo", "SReclaimable: many kB\nPercpu:\n");
    let samples = collect(&machine);
    assert_eq!(reasons(&samples), [Reason::Absent]);
    assert_eq!(samples.value(&KERNEL_INFO, &["6.18.44-fc-v657", "v1", ""]), Some(1.0));
    assert_eq!((samples.value(&ENABLED, &[]), accounted(&samples)), (None, [None, None]));
    assert_eq!((samples.value(&SLAB, &["node", "true"]), samples.value(&PERCPU, &[])), (None, None));
    assert_eq!(samples.value(&USAGE, &["node"]), Some(57_950_208.0));
}

#[test]
fn a_cut_walk_on_an_old_kernel_is_no_all_clear() {
    let (machine, _) = old();
    let context = Context::new(&machine.host, Deadline::after(Duration::ZERO));
    let samples = Kmem { kubepods: Kubepods::default() }.collect(context).unwrap();
    assert_eq!(reasons(&samples), [Reason::Timeout]);
    assert_eq!((samples.value(&ENABLED, &[]), accounted(&samples)), (None, [None, None]));
    assert!(!samples.rows().iter().any(|row| row.metric.name == LEAK_PRONE.name));
}
