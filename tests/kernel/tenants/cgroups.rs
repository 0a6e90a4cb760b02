//! A tenant's own cgroups: names of a victim, and more of them, or deeper, than anybody needs. And our own place among
//! them, in a cgroup namespace as a pod on cgroup v2 has one.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use headroom::kubelet::kubepods;
use headroom::modes::pod_interface::{PODS, PodInterface, Settings, WITHOUT};
use headroom::services::Services;
use serde_json::Value;

use super::NOBODY;
use crate::common::{self, Exporter, Page, hierarchies};
use crate::pod_interface::{Lab, NOW, remove};

const VICTIM: &str = "11111111-2222-4333-8444-000000000001";
const TENANT: &str = "11111111-2222-4333-8444-000000000002";
const EXPORTER: &str = "11111111-2222-4333-8444-000000000003";
const QUIET: [&str; 3] = ["--no-runtime", "--apiserver.url=off", "--kubelet.url=off"];

/// A part of the machine's cgroup2 hierarchy that is mounted, for us, where a machine has the whole: as a node that is
/// a container has it.
struct Node {
    top: PathBuf,
    sys: tempfile::TempDir,
    processes: Vec<Child>,
    slices: bool,
}

impl Node {
    /// With names by the systemd or the cgroupfs driver.
    fn new(slices: bool) -> Option<Self> {
        if !common::is_root() {
            common::say_skip("not root: cannot make cgroups and namespaces");
            return None;
        }
        let missing = ["unshare", "setpriv", "bash"].into_iter().find(|program| !common::has(program));
        if let Some(program) = missing {
            common::say_skip(format_args!("no {program} here"));
            return None;
        }
        if !Path::new(hierarchies::v2()).join("cgroup.procs").exists() {
            common::say_skip(format_args!("no cgroup2 mount at {}", hierarchies::v2()));
            return None;
        }
        let top = Path::new(hierarchies::v2()).join(format!("headroom-tenants-{}", common::unique()));
        let sys = tempfile::tempdir().unwrap();
        fs::create_dir_all(sys.path().join("fs/cgroup")).unwrap();
        fs::create_dir(&top).unwrap();
        Some(Node { top, sys, processes: Vec::new(), slices })
    }

    fn container(&self, uid: &str) -> PathBuf {
        let id = uid[uid.len() - 1..].repeat(64);
        let path = if self.slices {
            let pod = format!("kubepods-burstable-pod{}.slice", uid.replace('-', "_"));
            format!("kubepods.slice/kubepods-burstable.slice/{pod}/cri-containerd-{id}.scope")
        } else {
            format!("kubepods/burstable/pod{uid}/{id}")
        };
        fs::create_dir_all(self.top.join(&path)).unwrap();
        path.into()
    }

    /// A process of nobody in this cgroup, with 289 open files and a limit of 300: what it is called, by its number.
    fn full(&mut self, cgroup: &Path, then: &str) -> u32 {
        let script = format!(
            "echo $$ > \"$0/cgroup.procs\" && exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups bash -c \
             'cgroup=$0; {then}; ulimit -n 300; for ((fd = 11; fd < 297; fd++)); do eval \"exec $fd</dev/null\"; done; exec sleep 600' \
             \"$0\""
        );
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).arg(self.top.join(cgroup)).stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().unwrap();
        let pid = child.id();
        self.processes.push(child);
        let comm = format!("/proc/{pid}/comm");
        common::eventually("it holds its files", || fs::read_to_string(&comm).is_ok_and(|comm| comm == "sleep\n"));
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        assert!((286..=300).contains(&fds), "{fds}");
        pid
    }

    /// The exporter in a container of this node, in a cgroup namespace of its own. `seen`: it is shown the machine's
    /// cgroups, too.
    fn exporter(&self, seen: bool, program: &str) -> Command {
        let own = self.container(EXPORTER);
        let base = self.sys.path().join("fs/cgroup");
        let hide = if seen { "true" } else { "umount \"$base\"" };
        // The outer namespace makes `top` the root of what is mounted; the inner one is the container's.
        let script = format!(
            "echo $$ > '{top}/cgroup.procs' && base='{base}' own='{own}' exec unshare --cgroup --mount sh -c '\
             mount -t cgroup2 cgroup2 \"$base\" && echo $$ > \"$base/$own/cgroup.procs\" && {hide} && \
             exec unshare --cgroup \"$0\" \"$@\"' {program} --path.sysfs={sys} \"$@\"",
            top = self.top.display(),
            base = base.display(),
            own = own.display(),
            sys = self.sys.path().display(),
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh"]);
        command
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for child in &mut self.processes {
            let _ = child.kill();
            let _ = child.wait();
        }
        common::eventually("its cgroups are gone", || {
            remove(&self.top);
            !self.top.exists()
        });
    }
}

fn exporter_binary() -> &'static str {
    env!("CARGO_BIN_EXE_headroom-exporter")
}

/// The pod that a process is said to be in.
fn pod_of(page: &Page, pid: u32) -> Option<(String, String)> {
    let label =
        |series: &str, name: &str| Some(series.split_once(&format!("{name}=\""))?.1.split_once('"')?.0.to_owned());
    let wanted = format!("pid=\"{pid}\"");
    let (series, _) = page.family("headroom_process_open_fds").find(|(series, _)| series.contains(&wanted))?;
    Some((label(series, "pod_uid").unwrap_or_default(), label(series, "container_id").unwrap_or_default()))
}

/// A page for which there was time enough: emulated processors may take longer than a scrape has.
fn whole(exporter: &Exporter) -> Page {
    let mut timeouts = 0.0;
    for _ in 0..5 {
        let page = exporter.scrape();
        let before = std::mem::replace(&mut timeouts, page.errors("open_files", "timeout"));
        if timeouts == before || !common::vm::inside() {
            return page;
        }
    }
    exporter.scrape()
}

/// The severities of HeadroomProcessNearFdLimit by process.
fn near_limit(node: &Node, seen: bool) -> Vec<(u32, String)> {
    let mut command = node.exporter(seen, &format!("{} doctor", exporter_binary()));
    let output = command.args(QUIET).args(["--json", "--for=1s", "--mode=open_files"]).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let findings = report["modes"].as_array().unwrap().iter().flat_map(|mode| mode["findings"].as_array().unwrap());
    let near = findings.filter(|finding| finding["alert"] == "HeadroomProcessNearFdLimit");
    let mut near: Vec<(u32, String)> = near
        .map(|finding| {
            let pid = finding["labels"]["pid"].as_str().unwrap().parse().unwrap();
            (pid, finding["severity"].as_str().unwrap().to_owned())
        })
        .collect();
    near.sort();
    near
}

/// In a container of cgroup v2 as containerd and CRI-O make one, by both drivers' names.
#[test]
fn in_a_cgroup_namespace_of_our_own_each_process_is_its_pods() {
    alone!();
    for slices in [false, true] {
        let Some(mut node) = Node::new(slices) else { return };
        let (of_victim, of_tenant) = (node.container(VICTIM), node.container(TENANT));
        let victim = node.full(&of_victim, "true");
        // It was given its cgroup, and makes in it what a kubelet would make for the victim.
        let given = node.top.join(&of_tenant);
        for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            std::os::unix::fs::chown(given.join(file), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let fake = format!("kubepods/pod{VICTIM}/{}", "1".repeat(64));
        let moves = format!("mkdir -p $cgroup/{fake} && echo $$ > $cgroup/{fake}/cgroup.procs");
        let tenant = node.full(&of_tenant, &moves);
        let cgroup = fs::read_to_string(format!("/proc/{tenant}/cgroup")).unwrap();
        assert!(cgroup.contains(&fake), "{cgroup}");
        fs::create_dir_all(node.top.join("system.slice/daemon.service")).unwrap();
        let daemon = node.full(Path::new("system.slice/daemon.service"), "true");

        let of = |uid: &str| (uid.to_owned(), uid[uid.len() - 1..].repeat(64));
        let exporter = Exporter::start_as(node.exporter(true, exporter_binary()), &QUIET);
        for _ in 0..2 {
            let page = whole(&exporter);
            if page.outcome("open_files") != "ok" {
                panic!("{}", exporter.stop(rustix::process::Signal::TERM).1);
            }
            assert_eq!(pod_of(&page, victim), Some(of(VICTIM)), "{slices}");
            assert_eq!(pod_of(&page, tenant), Some(of(TENANT)), "{slices}");
            assert_eq!(pod_of(&page, exporter.pid()), Some(of(EXPORTER)), "{slices}");
            assert_eq!(pod_of(&page, daemon), Some(Default::default()), "{slices}");
        }
        drop(exporter);
        let severity = |pid: u32, severity: &str| (pid, severity.to_owned());
        let mut expected = [severity(victim, "warning"), severity(tenant, "warning"), severity(daemon, "critical")];
        expected.sort();
        assert_eq!(near_limit(&node, true), expected);

        // Without the machine's cgroups nothing is known of anybody, and that is said: no tenant is a daemon.
        let exporter = Exporter::start_as(node.exporter(false, exporter_binary()), &QUIET);
        let page = whole(&exporter);
        assert_eq!(page.outcome("open_files"), "failed");
        assert!(page.errors("open_files", "malformed") >= 1.0, "{page:?}");
        for pid in [victim, tenant, daemon] {
            assert_eq!(pod_of(&page, pid), Some(("unknown".to_owned(), String::new())), "{pid}: {page:#?}");
        }
        drop(exporter);
        let mut expected = [victim, tenant, daemon].map(|pid| severity(pid, "warning"));
        expected.sort();
        assert_eq!(near_limit(&node, false), expected);
    }
}

/// Deep, wide and threaded cgroups of one pod. The victim has lost its network.
#[test]
fn a_pod_with_endless_cgroups_costs_itself() {
    alone!();
    let Some(lab) = Lab::of(true, false) else { return };
    let processes: Vec<_> = (0..4).map(|_| crate::common::sleepers::Process::alone()).collect();
    let [first, second, tenant, threaded] = &processes[..] else { unreachable!() };
    lab.container(9, 91, first);
    lab.container(9, 92, second);
    lab.container(1, 11, tenant);
    let given = lab.directory(1, 12);
    fs::create_dir_all(&given).unwrap();
    // A domain whose processes are all in a threaded cgroup, which names none.
    fs::create_dir_all(given.join("domain/threads")).unwrap();
    fs::write(given.join("domain/threads/cgroup.type"), "threaded").unwrap();
    fs::write(given.join("domain/cgroup.procs"), threaded.pid().to_string()).unwrap();
    fs::write(given.join("domain/threads/cgroup.threads"), threaded.pid().to_string()).unwrap();
    fs::create_dir_all(given.join("domain/threads/invalid")).unwrap();
    let unsupported = fs::read_to_string(given.join("domain/threads/cgroup.procs")).unwrap_err();
    assert_eq!(unsupported.raw_os_error(), Some(95), "EOPNOTSUPP");
    fs::create_dir_all(given.join("frozen")).unwrap();
    fs::write(given.join("frozen/cgroup.freeze"), "1").unwrap();
    for number in 0..300 {
        fs::create_dir_all(given.join(format!("wide/{number}"))).unwrap();
    }
    let mut deep = given.join("deep");
    for _ in 0..200 {
        deep.push("d");
    }
    fs::create_dir_all(&deep).unwrap();

    let collector = |most: Option<usize>| {
        let mut settings = kubepods::Settings::default();
        settings.max_directories = most.unwrap_or(settings.max_directories);
        let settings_of_mode = Settings { grace: NOW, ..Settings::default() };
        PodInterface::new(settings_of_mode, &Services::with_kubepods(settings))
    };
    for most in [None, Some(60)] {
        let collector = collector(most);
        for _ in 0..2 {
            let samples = lab.well(&collector);
            assert_eq!(samples.value(&WITHOUT, &[]), Some(2.0), "the victim, and the tenant: {most:?}");
            assert_eq!(samples.value(&PODS, &[]), Some(2.0));
            let lost = samples.dropped_by();
            assert_eq!(lost.node, 0, "{most:?}");
            let [(pod, count)] = &lost.pods[..] else { panic!("{:?}", lost.pods) };
            assert_eq!(*pod.uid, Lab::uid(1));
            // Below the 128th level of 200 on the fifth: kubepods is the first, the container's the fourth.
            let (deeper, all) = (200 + 5 - 128, 300 + 1 + 201 + 4);
            match most {
                None => assert_eq!(*count, deeper),
                Some(most) => assert!((all - most as u64..=all).contains(count), "{count} of {all}"),
            }
        }
    }
    // One who may not read what somebody closed: that is of whoever did it.
    for (file, mode) in [("wide", 0o000), ("frozen/cgroup.procs", 0o000), ("deep/cgroup.events", 0o000)] {
        fs::set_permissions(given.join(file), std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    }
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={NOBODY}"), "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]);
    command.arg(exporter_binary());
    let sys = format!("--path.sysfs={}", lab.sys().display());
    let only = ["--collector.disable-defaults", "--collector.cgroup_leak", &sys];
    let exporter = Exporter::start_as(command, &[&QUIET[..], &only].concat());
    let page = exporter.scrape();
    assert_eq!(page.outcome("cgroup_leak"), "ok", "{page:?}");
    assert_eq!(page.get("headroom_kubepods_cgroups{kind=\"container\",qos=\"besteffort\"}"), Some(4.0));
    let lost = format!("headroom_series_dropped{{collector=\"cgroup_leak\",cap=\"pod\",pod_uid=\"{}\"}}", Lab::uid(1));
    assert!(page.get(&lost).is_some_and(|count| count > 300.0), "{lost}");
}
