//! I3: disk pressure evicts the control plane.

use std::fs;
use std::time::Instant;

use crate::machine::{Machine, NO_CGROUPS, Process};
use crate::pace::Pace;
use crate::stack::Stack;
use crate::{common, possible, tell};

/// `imagefs.available: 15%` is the incident's own.
const CONFIG: &str = "evictionHard: {memory.available: 100Mi, nodefs.available: 10%, nodefs.inodesFree: 5%, imagefs.available: 15%}\n\
                      imageGCHighThresholdPercent: 80\nimageGCLowThresholdPercent: 70\n";

/// An ext4 of its own below the kubelet and the runtime's store, as a machine with one disk has it.
fn with_a_disk(machine: &Machine, megabytes: u64) -> Result<(), String> {
    let image = machine.at("disk");
    fs::File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
    let (image, at) = (image.display(), machine.root_dir());
    let at = at.display();
    let script = format!(
        "mkfs.ext4 -q -F -m 1 -E lazy_itable_init=0,lazy_journal_init=0 {image} && mount -o loop {image} {at} &&
         mkdir {at}/images && mount -t tmpfs tmpfs /var/lib && mkdir /var/lib/containerd && mount --bind {at}/images /var/lib/containerd"
    );
    let output = machine.namespace.command("sh").args(["-ec", &script]).output().unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// A file there that grows by this much each second.
fn writer(machine: &Machine, megabytes: u64) -> Process {
    let file = machine.root_dir().join("fill");
    let script = "size=0; while :; do size=$((size + $1)); fallocate -l ${size}M \"$0\" || exit; sleep 1; done";
    let mut command = machine.namespace.command("sh");
    command.args(["-c", script]).arg(file).arg(megabytes.to_string());
    machine.spawn(&mut command)
}

fn headroom(machine: &Machine, signal: &str) -> f64 {
    machine.scrape().value(&format!("headroom_eviction_headroom_ratio{{signal=\"{signal}\",type=\"hard\"}}"))
}

#[test]
fn i3_disk_pressure_evicts_the_control_plane() {
    if !possible() {
        return;
    }
    let pace = Pace::of_this_run();
    let machine = Machine::new();
    if let Err(error) = with_a_disk(&machine, 1024) {
        return common::say_skip(format_args!("no loop-mounted ext4: {error}"));
    }
    let etcd = machine.idle("etcd", &[]);
    let machine = machine.with(CONFIG, &NO_CGROUPS);
    assert_eq!(machine.scrape().get("headroom_control_plane"), Some(1.0));
    let stack = Stack::start(&machine.namespace, machine.exporter().address, pace);
    stack.is_calm();
    let fault = Instant::now();
    let writer = writer(&machine, 20);
    let notice = stack.arrives("HeadroomEvictionSoon", &[("mode", "eviction"), ("severity", "critical")]);
    let left = headroom(&machine, "imagefs.available");
    tell("I3", pace, fault, &notice);
    assert!(left > 0.0, "before the kubelet's threshold, which is {left} away");
    drop(writer);
    machine.namespace.run(&format!("rm {}/fill", machine.root_dir().display()));
    stack.all_resolve();
    stack.only(&["HeadroomEvictionSoon"]);
    drop(etcd);
}
