//! Mode cni_leak on the running kernel: mounts of the machine and of an exporter in a mount namespace of its own,
//! beside the mount tables as this test reads them.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::fs;
use std::process::Command;

use crate::common::{self, Exporter, Page, eventually, has, shell};

fn rows(process: &str) -> f64 {
    fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap().lines().count() as f64
}

fn mounts(page: &Page, namespace: &str) -> f64 {
    let whose = format!("mount_namespace=\"{namespace}\"");
    page.family("headroom_mounts").filter(|(series, _)| series.contains(&whose)).map(|(_, count)| count).sum()
}

#[test]
fn mounts_of_the_machine_and_our_own_are_all_counted() {
    if !common::is_root() || !has("unshare") || !has("nsenter") {
        skip!("not root, or no unshare and nsenter: no mount namespace of its own");
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", env!("CARGO_BIN_EXE_headroom-exporter")]);
    let root_dir = tempfile::tempdir().unwrap();
    let root = root_dir.path().display();
    let exporter = Exporter::start_as(
        command,
        &[
            "--no-runtime",
            "--collector.disable-defaults",
            "--collector.cni_leak",
            &format!("--kubelet.root-dir={root}"),
        ],
    );
    let own = exporter.pid().to_string();
    let page = exporter.scrape();
    assert_eq!(page.outcome("cni_leak"), "ok");
    let limit: f64 = fs::read_to_string("/proc/sys/fs/mount-max").unwrap().trim().parse().unwrap();
    assert_eq!(page.get("headroom_mounts_limit"), Some(limit));
    // Others mount and unmount on this machine: at some moment both looks are of the same.
    eventually("the machine's are all counted", || mounts(&exporter.scrape(), "machine") == rows("1"));
    assert_eq!(mounts(&exporter.scrape(), "exporter"), rows(&own), "private: nothing comes and goes");

    // Once more where the exporter alone sees it, and gone again: the table is read again each time.
    let inside = |script: &str| shell(&format!("nsenter --mount --target {own} sh -ec '{script}'"));
    let before = exporter.scrape();
    inside(&format!(
        "for pod in 1 2 3; do mkdir -p {root}/pods/$pod/volumes/x; mount -t tmpfs t {root}/pods/$pod/volumes/x; done"
    ));
    let page = exporter.scrape();
    let pods = "headroom_mounts{mount_namespace=\"exporter\",group=\"pods\"}";
    assert_eq!((page.get(pods), mounts(&page, "exporter")), (Some(3.0), mounts(&before, "exporter") + 3.0));
    assert_eq!(page.get(&pods.replace("exporter", "machine")), Some(0.0));
    assert_eq!(page.family("headroom_orphaned_mounts").count(), 0, "nobody says whose they are");
    inside(&format!("umount {root}/pods/2/volumes/x"));
    let page = exporter.scrape();
    assert_eq!((page.get(pods), mounts(&page, "exporter")), (Some(2.0), rows(&own)));
}
