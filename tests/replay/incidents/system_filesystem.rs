//! I3, the part that no eviction helps against: etcd on a disk that other things fill; and a `/run` without inodes.

use std::fs;

use super::drill::Drill;
use super::machine::{Machine, NO_CGROUPS};
use super::pace::Pace;
use super::stack::Stack;
use super::{possible, tell};
use crate::common;
use crate::common::prometheus::Release;

const MODE: (&str, &str) = ("mode", "system_filesystem");

/// An ext4 of its own, as etcd should have it, and as a machine has it where something else writes there too.
fn with_etcds_disk(machine: &Machine) -> Result<(), String> {
    let (image, at) = (machine.at("disk"), machine.at("etcd-disk"));
    fs::File::create(&image).unwrap().set_len(1024 << 20).unwrap();
    fs::create_dir(&at).unwrap();
    let (image, at) = (image.display(), at.display());
    // All but 29 % of it is taken before; no bytes are written.
    let script = format!(
        "mkfs.ext4 -q -F -m 1 -E lazy_itable_init=0,lazy_journal_init=0 {image} && mount -o loop {image} {at} &&
         mkdir {at}/etcd && set -- $(stat -f -c '%S %b %a' {at}) && fallocate -l $(($1 * ($3 - $2 * 29 / 100))) {at}/before"
    );
    let output = machine.namespace.command("sh").args(["-ec", &script]).output().unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

fn left(machine: &Machine, mountpoint: &str, resource: &str) -> f64 {
    let page = machine.scrape();
    let labels = format!("mountpoint=\"{mountpoint}\"");
    let of_resource = format!("resource=\"{resource}\"");
    let mut rows = page.family("headroom_system_filesystem_headroom_ratio");
    let row = rows.find(|(series, _)| series.contains(&labels) && series.contains(&of_resource));
    row.expect("the file system is on the page").1
}

pub fn i3_etcd_on_a_disk_that_other_things_fill() {
    if !possible() {
        return;
    }
    let pace = Pace::of_this_run();
    let machine = Machine::new();
    if let Err(error) = with_etcds_disk(&machine) {
        return common::say_skip(format_args!("no loop-mounted ext4: {error}"));
    }
    let disk = machine.at("etcd-disk").display().to_string();
    let etcd = machine.idle("etcd", &[format!("--data-dir={disk}/etcd")]);
    let machine = machine.with("", &NO_CGROUPS);
    assert_eq!(machine.scrape().get("headroom_control_plane"), Some(1.0));
    assert!((0.27..0.3).contains(&left(&machine, &disk, "bytes")), "{}", left(&machine, &disk, "bytes"));
    let stack = Stack::start(&machine.namespace, machine.exporter().address, pace, Release::Installed);
    stack.is_calm();
    let words = format!("disk --path {disk} --leave {} --over 50s", 75 << 20);
    let mut writer = Drill::start(&machine.namespace, &words);
    let fault = writer.says("t=0s");
    let predicted = stack.arrives("HeadroomSystemFilesystemPredicted", &[MODE, ("severity", "critical")]);
    let percent = left(&machine, &disk, "bytes") * 100.0;
    tell(&format!("I3, {percent:.1} % of etcd's disk left"), pace, fault, &predicted);
    assert!(percent > 2.0, "before ENOSPC: {percent} %");
    predicted.says("summary", &["is full in", "by trend (bytes)"]);
    predicted.says("description", &["It holds datastore", "the kubelet evicts nothing"]);
    let near = stack.arrives("HeadroomSystemFilesystemNearFull", &[MODE, ("severity", "critical")]);
    tell("I3, etcd's disk", pace, fault, &near);
    near.says("summary", &["of its bytes left"]);
    assert!(left(&machine, &disk, "bytes") > 0.05, "before ENOSPC");
    writer.end(&[]);
    stack.all_resolve();
    stack.only(&["HeadroomSystemFilesystemPredicted", "HeadroomSystemFilesystemNearFull"]);
    drop(etcd);
}

/// Nobody who looks at the bytes sees it.
pub fn a_run_without_inodes() {
    if !possible() {
        return;
    }
    let pace = Pace::of_this_run();
    let machine = Machine::new();
    machine.namespace.run("mount -t tmpfs -o size=64m tmpfs /run");
    let machine = machine.with("", &NO_CGROUPS);
    let stack = Stack::start(&machine.namespace, machine.exporter().address, pace, Release::Three);
    stack.is_calm();
    let mut files = Drill::start(&machine.namespace, "system-filesystem --inodes");
    let fault = files.says("t=0s");
    let labels = [MODE, ("severity", "critical"), ("mountpoint", "/run/k0s"), ("resource", "inodes")];
    let near = stack.arrives("HeadroomSystemFilesystemNearFull", &labels);
    tell("/run without inodes", pace, fault, &near);
    near.says("description", &["It holds runtime_state", "no container starts or stops"]);
    assert!(left(&machine, "/run/k0s", "bytes") > 0.9, "bytes are left");
    files.end(&["HeadroomSystemFilesystemNearFull"]);
    stack.all_resolve();
    stack.only(&["HeadroomSystemFilesystemNearFull"]);
}
