//! I2: kernel-memory accounting on a kernel that leaks cgroups with it. Such a kernel cannot be had here: the recorded
//! node, with the release of CentOS 7 and one container whose accounting is active, is what the exporter reads. All
//! else is real.

use std::fs;
use std::path::Path;
use std::time::Instant;

use super::pace::Pace;
use super::stack::Stack;
use super::{possible, tell};
use crate::common::netns::Namespace;
use crate::common::prometheus::Release;
use crate::common::{self, Exporter};

const RECORDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/node/k8s-1.36-cgroupv1");

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// procfs and sysfs of that node in a directory; returns a file that says whether accounting is active.
fn old_node(directory: &Path) -> std::path::PathBuf {
    let recorded = |name: &str| fs::read_to_string(Path::new(RECORDED).join(name)).unwrap();
    let proc = |name: &str, text: &str| write(&directory.join("proc").join(name), text);
    proc("sys/kernel/osrelease", "3.10.0-957.el7.x86_64\n");
    proc("cmdline", "BOOT_IMAGE=/vmlinuz-3.10.0-957.el7.x86_64\n");
    proc("meminfo", &recorded("proc/host/meminfo.txt"));
    let memory = directory.join("sys/fs/cgroup/memory");
    for root in ["release_agent", "notify_on_release", "cgroup.procs"] {
        write(&memory.join(root), "");
    }
    write(&memory.join("memory.kmem.usage_in_bytes"), "57950208\n");
    let mut proof = None;
    for path in recorded("cgroup/kubepods-dirs.txt").lines() {
        let Some(path) = path.strip_prefix("/sys/fs/cgroup/memory/") else { continue };
        let usage = memory.join(path).join("memory.kmem.usage_in_bytes");
        write(&usage, "0\n");
        proof = Some(usage);
    }
    proof.expect("the recorded node has pods")
}

pub fn i2_a_kernel_that_leaks() {
    if !possible() {
        return;
    }
    let pace = Pace::of_this_run();
    let (namespace, directory) = (Namespace::new(), tempfile::tempdir().unwrap());
    let proof = old_node(directory.path());
    let path = |flag: &str, name: &str| format!("--path.{flag}={}", directory.path().join(name).display());
    let flags = [
        path("procfs", "proc"),
        path("sysfs", "sys"),
        "--collector.disable-defaults".to_owned(),
        "--collector.kmem".to_owned(),
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let command = namespace.command(env!("CARGO_BIN_EXE_headroom-exporter"));
    let exporter = Exporter::start_by(command, &flags, |command| namespace.spawn(command));
    let page = namespace.inside(|| exporter.scrape());
    assert_eq!(page.outcome("kmem"), "ok");
    let stack = Stack::start(&namespace, exporter.address, pace, Release::Installed);
    stack.is_calm();
    let fault = Instant::now();
    write(&proof, "4096\n");
    let notice = stack.arrives("HeadroomKmemLeakProne", &[("mode", "kmem"), ("reason", "kernel_before_4_0")]);
    tell("I2", pace, fault, &notice);
    assert_eq!(notice.label("severity"), "warning");
    notice.says("description", &["on a kernel before 4.0", "Nothing is broken yet"]);
    write(&proof, "0\n");
    stack.all_resolve();
    stack.only(&["HeadroomKmemLeakProne"]);
    common::eventually("the node is as before", || {
        namespace.inside(|| exporter.scrape()).get("headroom_kmem_leak_prone{reason=\"accounting_off\"}") == Some(0.0)
    });
}
