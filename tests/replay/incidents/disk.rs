//! I3: disk pressure evicts the control plane.

use std::fs;

use super::drill::Drill;
use super::machine::{Machine, NO_CGROUPS};
use super::pace::Pace;
use super::stack::Stack;
use super::{possible, tell};
use crate::common;
use crate::common::prometheus::Release;

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
         mkdir {at}/images && mount --bind {at}/images /var/lib/containerd"
    );
    let output = machine.namespace.command("sh").args(["-ec", &script]).output().unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// Makes a file there so large that this part of the disk is left. No bytes are written.
fn leave(machine: &Machine, file: &str, part: f64) {
    let at = machine.root_dir();
    let text = machine.namespace.run(&format!("stat -f -c '%S %b %a' {}", at.display()));
    let numbers: Vec<f64> = text.split_whitespace().map(|number| number.parse().unwrap()).collect();
    let bytes = numbers[0] * (numbers[2] - part * numbers[1]);
    machine.namespace.run(&format!("fallocate -l {bytes:.0} {}/{file}", at.display()));
}

/// Blocks in bytes, inodes: all of them.
fn capacity(machine: &Machine) -> (u64, u64) {
    let text = machine.namespace.run(&format!("stat -f -c '%S %b %c' {}", machine.root_dir().display()));
    let numbers: Vec<u64> = text.split_whitespace().map(|number| number.parse().unwrap()).collect();
    (numbers[0] * numbers[1], numbers[2])
}

/// Fills it, with nothing but this part of it left.
fn fill(machine: &Machine, drill: &str, part: f64, over: &str) -> Drill {
    let (bytes, inodes) = capacity(machine);
    let leave = if drill == "disk" { bytes } else { inodes } as f64 * part;
    let words = format!("{drill} --path {} --leave {leave:.0} --over {over}", machine.root_dir().display());
    Drill::start(&machine.namespace, &words)
}

/// The least of the disk's signals that are counted in bytes.
fn headroom(machine: &Machine) -> f64 {
    let page = machine.scrape();
    let of = |signal| page.value(&format!("headroom_eviction_headroom_ratio{{signal=\"{signal}\",type=\"hard\"}}"));
    f64::min(of("nodefs.available"), of("imagefs.available"))
}

pub fn i3_disk_pressure_evicts_the_control_plane() {
    if !possible() {
        return;
    }
    let pace = Pace::of_this_run();
    let machine = Machine::new();
    if let Err(error) = with_a_disk(&machine, 1024) {
        return common::say_skip(format_args!("no loop-mounted ext4: {error}"));
    }
    leave(&machine, "before", 0.33);
    let etcd = machine.idle("etcd", &[]);
    let machine = machine.with(CONFIG, &NO_CGROUPS);
    assert_eq!(machine.scrape().get("headroom_control_plane"), Some(1.0));
    let stack = Stack::start(&machine.namespace, machine.exporter().address, pace, Release::Three);
    stack.is_calm();
    let mut writer = fill(&machine, "disk", 0.16, "43s");
    let fault = writer.says("t=0s");
    let soon = stack.arrives("HeadroomEvictionPredicted", &[("mode", "eviction"), ("severity", "critical")]);
    let left = headroom(&machine);
    tell(&format!("I3, {:.1} % of the disk before eviction", left * 100.0), pace, fault, &soon);
    assert!(left > 0.05, "before the kubelet's threshold, which is {left} away");
    soon.says("summary", &["eviction in", "by trend"]);
    soon.says("description", &["meets the hard eviction threshold", "Find what grows"]);
    writer.end(&["HeadroomEvictionPredicted"]);
    // All at once: no trend says so in time, the distance does.
    let mut writer = fill(&machine, "disk", 0.17, "0s");
    let fault = writer.says("t=0s");
    let near = stack.arrives("HeadroomEvictionNear", &[("mode", "eviction"), ("severity", "critical")]);
    let left = headroom(&machine);
    tell(&format!("I3, {:.1} % of the disk before eviction", left * 100.0), pace, fault, &near);
    assert!(left > 0.0, "before the kubelet's threshold, which is {left} away");
    near.says("description", &["times the hard threshold of this node", "Free some now"]);
    writer.end(&["HeadroomEvictionNear"]);
    stack.all_resolve();
    stack.only(&["HeadroomEvictionPredicted", "HeadroomEvictionNear"]);
    drop(etcd);
}

/// Files without a byte: nobody who looks at the bytes sees it.
pub fn i3_a_disk_without_inodes() {
    if !possible() {
        return;
    }
    let pace = Pace::of_this_run();
    let machine = Machine::new();
    if let Err(error) = with_a_disk(&machine, 128) {
        return common::say_skip(format_args!("no loop-mounted ext4: {error}"));
    }
    let machine = machine.with(CONFIG, &NO_CGROUPS);
    let stack = Stack::start(&machine.namespace, machine.exporter().address, pace, Release::Installed);
    stack.is_calm();
    // 5 % is the threshold.
    let mut files = fill(&machine, "inodes", 0.055, "0s");
    let fault = files.says("t=0s");
    let labels = [("mode", "eviction"), ("severity", "warning"), ("signal", "nodefs.inodesFree")];
    let near = stack.arrives("HeadroomEvictionNear", &labels);
    tell("I3, inodes", pace, fault, &near);
    assert!(headroom(&machine) > 0.2, "bytes are left");
    files.end(&["HeadroomEvictionNear"]);
    stack.all_resolve();
    stack.only(&["HeadroomEvictionNear"]);
}
