//! Mode cni_leak on the running kernel: mounts of the machine and of an exporter in a mount namespace of its own,
//! beside the mount tables as this test reads them; named network namespaces beside what `ip netns` says of them.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::fs;
use std::process::Command;

use crate::common::fake_runtime::{self, Fake, reply, sandbox_status};
use crate::common::{self, Exporter, Page, eventually, eventually_within, has, shell};

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

/// Network namespaces with names; gone when dropped, with whoever is in them.
struct Named(Vec<String>);

impl Drop for Named {
    fn drop(&mut self) {
        for name in &self.0 {
            shell(&format!("for pid in $(ip netns pids {name}); do kill $pid; done; ip netns delete {name} || true"));
        }
    }
}

/// Those that a runtime might have made and that `ip netns` finds nobody in.
fn empty_ones() -> f64 {
    let list = "ip netns list | cut -d' ' -f1 | grep -E '^(cni-)?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'";
    shell(&format!("for name in $({list}); do [ -n \"$(ip netns pids $name)\" ] || echo $name; done")).lines().count()
        as f64
}

#[test]
fn network_namespaces_that_nobody_has_and_nobody_is_in() {
    if !common::is_root() || !has("ip") || !common::is_in_the_machines_mount_namespace() {
        skip!("not root, no ip (Debian: iproute2), or not in the machine's mount namespace");
    }
    let _lock = common::machine_lock();
    let folder = tempfile::tempdir().unwrap();
    let before = empty_ones();
    let tag: String = common::unique().bytes().rev().map(|byte| format!("{byte:02x}")).take(6).collect();
    let name = |number: u32| format!("cni-{number:08x}-0000-4000-8000-{tag}");
    let named = Named(vec![name(1), name(2), name(3), name(4)[4..].to_owned(), format!("blue{tag}")]);
    for name in &named.0 {
        shell(&format!("ip netns add {name}"));
    }
    // 1 is a sandbox's, and 3 has somebody in it: another runtime's pod. 2 and 4 are nobody's.
    shell(&format!("ip netns exec {} sleep 1000 >/dev/null 2>&1 &", name(3)));
    let mut replies = fake_runtime::empty();
    let sandbox = fake_runtime::Sandbox { id: "a".repeat(64), ..Default::default() };
    replies.insert("ListPodSandbox", reply(&fake_runtime::Sandboxes { items: vec![sandbox] }));
    replies.insert("PodSandboxStatus", sandbox_status(Some(&format!("/var/run/netns/{}", name(1)))));
    let socket = folder.path().join("containerd.sock");
    let runtime = Fake::start(&socket, replies);
    let exporter = Exporter::start(&[
        &format!("--runtime.endpoint=unix://{}", socket.display()),
        "--collector.disable-defaults",
        "--collector.cni_leak",
        "--collector.cni_leak.leak-grace=6s",
        &format!("--kubelet.root-dir={}", folder.path().display()),
    ]);
    let orphaned = || exporter.scrape().get("headroom_orphaned_network_namespaces");
    assert_eq!(orphaned(), Some(0.0), "not at first sight");
    eventually_within(40, "2 and 4", || orphaned() == Some(before + 2.0));
    assert_eq!(empty_ones(), before + 3.0, "and 1, which is a sandbox's");
    let calls = runtime.calls();
    for _ in 0..3 {
        assert_eq!(orphaned(), Some(before + 2.0));
    }
    assert!(runtime.calls() - calls <= 6, "each sandbox is asked once: {}", runtime.calls() - calls);
    let page = exporter.scrape();
    assert_eq!(page.outcome("cni_leak"), "ok");
    let all = shell("ip netns list").lines().count() as f64;
    assert_eq!(page.get("headroom_named_network_namespaces"), Some(all));
    shell(&format!("ip netns delete {}", name(2)));
    assert_eq!(orphaned(), Some(before + 1.0), "as the runbook says");

    // The sandbox is gone, and its namespace stays.
    runtime.set("ListPodSandbox", reply(&fake_runtime::Sandboxes::default()));
    eventually_within(40, "1 and 4", || orphaned() == Some(before + 2.0));
    // Not asked for, no answer: that is no zero.
    drop(runtime);
    eventually("the runtime is away", || orphaned().is_none());
}
