//! The other tests of this binary on other kernels, with systemd: this binary and the exporter are copied into a
//! machine of each Debian suite and run there, on pure cgroup v2; in bullseye, whose Linux 5.10 is from before much of
//! what is read, on cgroup v1. `HEADROOM_TEST_SUITES` names the suites (bullseye, bookworm, trixie, forky); without it
//! there is none. They come last by their name, when the other tests are done: a machine takes all there is.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::common::compatibility::{self, Machine};
use crate::common::vm::{self, INSIDE, Vm};

/// The project as the tests know it: programs and files, at the places that the build wrote into them.
fn project() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = names.filter(|path| !path.ends_with("target") && !path.ends_with(".git")).collect();
    files.extend([env!("CARGO_BIN_EXE_headroom-exporter"), env!("CARGO_BIN_EXE_headroom-drill")].map(PathBuf::from));
    files.push(std::env::current_exe().unwrap());
    files
}

/// Words on the kernel's command line for the controllers on cgroup v1 and a v2 beside them, as systemd before 256
/// makes it.
const V1: &str = "systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=0";

/// What of these tests asks a runtime for CRI v1, which containerd has from 1.6.
const NEWER_RUNTIME: &str = "--skip containerd --skip runtime";

fn tests_pass_on(suite: &str, words: &str, without: &str) {
    if vm::inside() {
        return;
    }
    let suites = std::env::var("HEADROOM_TEST_SUITES").unwrap_or_default();
    if !suites.split_whitespace().any(|wanted| wanted == suite) {
        let _ =
            writeln!(std::io::stderr(), "NOT ASKED FOR: Debian {suite} in a virtual machine (HEADROOM_TEST_SUITES)");
        return;
    }
    if let Some(why) = vm::lacking(suite) {
        skip!("{why}");
    }
    let start = Instant::now();
    let files = project();
    let files: Vec<(&Path, &Path)> = files.iter().map(|path| (path.as_path(), path.as_path())).collect();
    let mut vm = Vm::boot(suite, words, &files);
    let kernel = vm.run("uname -r; stat -fc %T /sys/fs/cgroup", Duration::from_secs(20)).output;
    eprintln!("{suite}: {} up after {:?}", kernel.replace('\n', ", "), start.elapsed());
    let strict = if std::env::var_os("HEADROOM_TESTS_STRICT").is_some() { "HEADROOM_TESTS_STRICT=1 " } else { "" };
    let exe = std::env::current_exe().unwrap();
    let filter = std::env::var("HEADROOM_TEST_FILTER").unwrap_or_default();
    // What asks nothing of the kernel: TLS to a kubelet, which must answer within two seconds, and Docker. What a
    // scrape costs, and how many of them there can be, is no question to emulated processors.
    let skipped = "--skip vm:: --skip configz:: --skip docker --skip a_full_node_is_cheap --skip readers_in_a_hurry";
    let command = format!("{strict}{INSIDE}=1 {} {skipped} {without} --test-threads=2 {filter}", exe.display());
    let outcome = vm.run(&command, Duration::from_secs(1500));
    eprintln!("{suite}: done after {:?}", start.elapsed());
    assert_eq!(outcome.status, 0, "on Debian {suite}:\n{}", outcome.output);
    let (release, mounted) = kernel.split_once('\n').unwrap();
    let cgroups = if mounted.trim() == "cgroup2fs" { "v2" } else { "v1" };
    assert_eq!(cgroups == "v1", words == V1, "{mounted}");
    let machine = Machine { kernel: release.to_owned(), cgroups, suite: Some(suite.to_owned()) };
    let passed = outcome.output.lines().find_map(|line| line.strip_prefix("test result: ok. ")?.split(' ').next());
    let passed = format!("{} tests", passed.expect("the end of the tests"));
    compatibility::note(&machine, "none", "containerd and runc of that Debian", "kernel", &passed);
}

#[test]
fn bullseye() {
    tests_pass_on("bullseye", V1, NEWER_RUNTIME);
}

#[test]
fn bookworm() {
    tests_pass_on("bookworm", "", "");
}

#[test]
fn trixie() {
    tests_pass_on("trixie", "", "");
}

#[test]
fn forky() {
    tests_pass_on("forky", "", "");
}
