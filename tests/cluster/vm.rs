//! The truth once more on other kernels, on pure cgroup v2 with systemd: this binary, Kubernetes and the exporter are
//! copied into a machine of each Debian suite, whose own containerd, runc and etcd they run with.
//! `HEADROOM_TEST_SUITES` names the suites; without it there is none.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::bed;
use crate::checks::say;
use crate::common::compatibility::{self, Machine};
use crate::common::vm::{self, Vm};

const TEST: &str = "truth::every_figure_is_its_witness_s";

fn the_truth_on(suite: &str) {
    if vm::inside() {
        return;
    }
    let suites = std::env::var("HEADROOM_TEST_SUITES").unwrap_or_default();
    if !suites.split_whitespace().any(|wanted| wanted == suite) {
        return say(format_args!("NOT ASKED FOR: a cluster on Debian {suite} (HEADROOM_TEST_SUITES)"));
    }
    if let Some(why) = vm::lacking(suite) {
        skip!("{why}");
    }
    let kubernetes = match bed::lacking() {
        Ok(folder) => std::fs::canonicalize(folder).unwrap(),
        Err(why) => skip!("{why}"),
    };
    let begun = Instant::now();
    let exe = std::env::current_exe().unwrap();
    let exporter = bed::exporter_binary();
    let files: Vec<PathBuf> = vec![exe.clone(), exporter.clone(), bed::drill_binary(), kubernetes.clone()];
    let files: Vec<(&Path, &Path)> = files.iter().map(|path| (path.as_path(), path.as_path())).collect();
    let mut vm = Vm::boot(suite, "", &files);
    let kernel = vm.run("uname -r; stat -fc %T /sys/fs/cgroup", Duration::from_secs(20)).output;
    say(format_args!("{suite}: {} up after {:?}", kernel.replace('\n', ", "), begun.elapsed()));
    let command = format!(
        "{}=1 HEADROOM_TESTS_STRICT=1 HEADROOM_TEST_ALONE={TEST} HEADROOM_TEST_KUBERNETES={} HEADROOM_TEST_EXPORTER={} \
         HEADROOM_TEST_PATIENCE=4 {} --exact {TEST} --nocapture",
        vm::INSIDE,
        kubernetes.display(),
        exporter.display(),
        exe.display()
    );
    let outcome = vm.run(&command, Duration::from_secs(1500));
    say(format_args!("{suite}: done after {:?}", begun.elapsed()));
    assert_eq!(outcome.status, 0, "on Debian {suite}:\n{}", outcome.output);
    let (release, _) = kernel.split_once('\n').unwrap();
    let machine = Machine { kernel: release.to_owned(), cgroups: "v2", suite: Some(suite.to_owned()) };
    let made = outcome.output.lines().find_map(|line| line.strip_prefix("truth: ")?.split(',').next());
    let version = bed::version().unwrap_or_default();
    compatibility::note(
        &machine,
        &version,
        "containerd and runc of that Debian",
        "truth",
        made.expect("its last word"),
    );
}

#[test]
fn bookworm() {
    the_truth_on("bookworm");
}

#[test]
fn trixie() {
    the_truth_on("trixie");
}

#[test]
fn forky() {
    the_truth_on("forky");
}
