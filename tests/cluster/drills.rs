//! Every drill of `headroom-drill` beside the daemons that it is made for: what it makes stays for as long as it says,
//! the exporter shows it, and however the drill ends nothing is left.
#![cfg(feature = "drill")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::bed::{self, BUSYBOX, Cluster, NODE, RUNTIME, hierarchies};
use crate::checks::{Checks, same, say};
use crate::common::{self, Exporter};
use crate::page::Page;

/// `head` in hexadecimal: so begin the names of a drill's cgroups and the uids of its pods.
const HEX: &str = "68656164";
/// grpc-go closes what has not said a client's preface after 120 s.
const BEYOND_THE_HANDSHAKE: Duration = Duration::from_secs(131);
/// A kubelet looks for pods that it does not know every two seconds, and was seen to remove one after six.
const BEYOND_THE_CLEANUP: Duration = Duration::from_secs(15);
const CONNECTIONS: u64 = 110;
const USER: &str = "64998";

#[test]
fn beside_a_live_kubelet() {
    alone!();
    if !common::has("mkfs.ext4") {
        skip!("no mkfs.ext4 here (Debian: e2fsprogs)");
    }
    let cluster = match Cluster::start_on(|folder| bed::kubelet_disk(folder, 320 << 20)) {
        Ok(cluster) => cluster,
        Err(why) => skip!("{why}"),
    };
    let mut checks = Checks::new();
    let exporter = cluster.exporter(&["--collector.cgroup_leak.orphan-grace=6s"]);
    cluster.apply(&bystander().to_string());
    cluster.wait_for_pods(1, 90);
    checks.soon("every collector is ok", 60, || Page::of(&exporter).every_collector_is_ok());
    let bed = Bed { cluster: &cluster, exporter: &exporter };

    let kubelet = cluster.pid("kubelet");
    let connections = bed
        .start("runtime-socket", &format!("open-files --runtime-socket {RUNTIME} --count {CONNECTIONS} --every 100ms"));
    let begun = Instant::now();
    let files = bed.start("open-files", "open-files");
    let inotify = bed.start("inotify", &format!("inotify --uid {USER} --watches 500"));
    let leak = bed.start("cgroup-leak", "cgroup-leak --count 40");
    let dying = bed.start("dying", "cgroup-leak --dying --count 60");
    let volume = bed.start("memory-volume", "memory-volume --near-for 20s --restart-after 1s");
    let pod = bed.start("pod-interface", "pod-interface --after 50s");
    let disk = bed.start("disk", &format!("disk --path {} --leave 64Mi", cluster.kubelet_root().display()));

    bed.shows("open-files: near the limit", &mut checks, |page| {
        at_least(
            page.all("headroom_process_open_fds", &[("comm", "headroom-drill")])
                .map(|one| one.value)
                .fold(0.0, f64::max),
            972.0,
        )
    });
    bed.shows("inotify: instances of the user", &mut checks, |page| {
        let limit: f64 = common::shell("cat /proc/sys/fs/inotify/max_user_instances").trim().parse().unwrap();
        same(page.one("headroom_inotify_instances", &[("uid", USER)])?, (limit * 0.95).floor().min(8192.0))?;
        same(page.one("headroom_inotify_watches", &[("uid", USER)])?, 500.0)
    });
    bed.shows("cgroup-leak: orphans", &mut checks, |page| at_least(page.sum("headroom_orphaned_cgroups", &[]), 40.0));
    bed.shows("dying cgroups", &mut checks, |page| at_least(page.sum("headroom_cgroups_dying", &[]), 60.0));
    bed.shows("disk: nodefs is nearly full", &mut checks, |page| {
        let left = page.one("headroom_eviction_available_bytes", &[("signal", "nodefs.available")])?;
        if left < f64::from(70 << 20) { Ok(()) } else { Err(format!("{left} bytes")) }
    });
    bed.shows("pod-interface: seen with its interface", &mut checks, |page| {
        at_least(page.sum("headroom_pods_with_network_namespace", &[]), 2.0)
    });

    // Beyond the kubelet's clean-up.
    std::thread::sleep((begun + BEYOND_THE_CLEANUP).saturating_duration_since(Instant::now()));
    for (drill, holds) in [
        (&files, " holds 97"),
        (&inotify, " and 500 watches"),
        (&leak, "40 orphaned container-like cgroups; "),
        (&dying, "60 dying memory cgroups; "),
        (&volume, " starts, "),
        (&pod, " has 1 interfaces besides lo"),
        (&disk, " left on "),
    ] {
        checks.check(&format!("{}: it stands beyond the clean-up", drill.name), drill.stands(holds));
    }
    checks.check("the pods' cgroups are there", same(bed.pods_of_drills(), 2));

    checks.check("open-files ends by SIGINT", files.end(Signal::INT));
    checks.check("inotify ends by SIGKILL", inotify.end(Signal::KILL));
    checks.check("cgroup-leak ends by SIGKILL", leak.end(Signal::KILL));
    checks.check("cgroup-leak --dying ends by SIGTERM", dying.end(Signal::TERM));
    checks.check("disk ends by SIGKILL", disk.end(Signal::KILL));
    checks.soon("disk: nodefs is free again", 20, || {
        at_least(
            Page::of(&exporter)
                .one("headroom_eviction_headroom_ratio", &[("signal", "nodefs.available"), ("type", "hard")])?,
            0.7,
        )
    });
    let inodes = bed.start("inodes", &format!("inodes --path {} --leave 1000", cluster.kubelet_root().display()));

    let healed = bed.start("given-up", &format!("stalled-connection --pid {kubelet}"));
    bed.shows("stalled-connection: the kubelet's is stalled", &mut checks, |page| {
        at_least(page.sum("headroom_apiserver_connection_stalled", &[("owner", "kubelet")]), 1.0)
    });
    bed.shows("inodes: nodefs has few", &mut checks, |page| {
        let left = page.one("headroom_eviction_available_inodes", &[("signal", "nodefs.inodesFree")])?;
        if left < 1200.0 { Ok(()) } else { Err(format!("{left} inodes")) }
    });
    checks.check("inodes: it stands", inodes.stands(" left on "));
    checks.check("inodes ends by SIGTERM", inodes.end(Signal::TERM));
    bed.shows("pod-interface: a pod without an interface", &mut checks, |page| {
        let about: Vec<_> = page.series.iter().filter(|one| one.name.contains("network_")).collect();
        same(page.one("headroom_pods_without_network_interface", &[])?, 1.0)
            .map_err(|why| format!("{why}: {about:?}"))?;
        let down = page.all("headroom_host_parent_interface_up", &[]).filter(|one| one.value == 0.0);
        same(down.filter(|one| one.label("device").starts_with("hrdrill-")).count(), 1)
    });
    checks.check("pod-interface: it stands", pod.stands(" has 0 interfaces besides lo"));
    checks.check("pod-interface ends by SIGINT", pod.end(Signal::INT));
    bed.shows("memory-volume: a full volume whose writers are killed", &mut checks, |page| {
        at_least(
            page.one("headroom_memory_volume_used_bytes", &[("volume", "headroom-drill-cache")])?,
            f64::from(20 << 20),
        )?;
        let kills =
            page.all("headroom_oom_kills_total", &[]).filter(|one| one.label("pod_uid").starts_with("68656164-"));
        at_least(kills.map(|one| one.value).sum(), 1.0)
    });
    checks.check("memory-volume: it stands", volume.stands(" OOM kills"));
    checks.check("memory-volume, killed with its watchdog, is cleaned up by clean", volume.end_by_clean());
    checks
        .check("stalled-connection ends once the kubelet gave it up", healed.ended("gave up every stalled connection"));
    cluster.wait_until_ready(60);
    let killed = bed.start("killed", &format!("stalled-connection --pid {kubelet} --again"));
    bed.shows("stalled-connection: stalled again", &mut checks, |page| {
        at_least(page.sum("headroom_apiserver_connection_stalled", &[("owner", "kubelet")]), 1.0)
    });
    checks.check("stalled-connection ends by SIGKILL", killed.end(Signal::KILL));

    std::thread::sleep((begun + BEYOND_THE_HANDSHAKE).saturating_duration_since(Instant::now()));
    checks.check(
        "runtime-socket: none was closed",
        connections.stands(&format!(" holds {CONNECTIONS} of {CONNECTIONS} ")),
    );
    checks.check("runtime-socket: none was made anew", same(connections.last().contains("lost"), false));
    bed.shows("runtime-socket: the client's connections", &mut checks, |page| {
        same(page.sum("headroom_runtime_socket_connections", &[("comm", "headroom-drill")]), CONNECTIONS as f64)
    });
    say(format_args!("drills: after {:.0} s: {}", begun.elapsed().as_secs_f64(), connections.last()));
    checks.check("runtime-socket ends by SIGTERM", connections.end(Signal::TERM));

    checks.soon("nothing is left", 15, || bed.nothing_left());
    cluster.wait_until_ready(60);
    checks.check("the node and its own pod were left alone", bed.unharmed());
    checks.end("drills");
}

/// A pod that nothing happens to.
fn bystander() -> serde_json::Value {
    let container = json!({
        "name": "main", "image": BUSYBOX, "imagePullPolicy": "Never", "command": ["sleep", "1000000"],
        "volumeMounts": [{"name": "cache", "mountPath": "/cache"}],
    });
    let volumes = json!([{"name": "cache", "emptyDir": {"medium": "Memory"}}]);
    let spec = json!({"terminationGracePeriodSeconds": 1, "containers": [container], "volumes": volumes});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bystander", "namespace": "default"}, "spec": spec})
}

fn at_least(value: f64, least: f64) -> Result<(), String> {
    if value >= least { Ok(()) } else { Err(format!("{value}, and it should be {least} at least")) }
}

struct Bed<'a> {
    cluster: &'a Cluster,
    exporter: &'a Exporter,
}

impl Bed<'_> {
    fn start(&self, name: &'static str, words: &str) -> Drill {
        let folder = self.cluster.dir().join("drills").join(name);
        fs::create_dir_all(&folder).unwrap();
        let output = fs::File::create(folder.join("output")).unwrap();
        let child = Command::new(bed::drill_binary())
            .args(["--i-know-this-node", "--for", "10m", "--state-dir"])
            .arg(folder.join("state"))
            .args(words.split(' '))
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn();
        Drill { name, folder, child: child.unwrap() }
    }

    /// The exporter shows it, in time for what a name that never comes delays.
    fn shows(&self, what: &str, checks: &mut Checks, judge: impl Fn(&Page) -> Result<(), String>) {
        checks.soon(what, 90, || judge(&Page::of(self.exporter)));
    }

    /// Cgroups of pods that drills made, in the hierarchy of memory.
    fn pods_of_drills(&self) -> usize {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let top = if v1.exists() { v1 } else { Path::new("/sys/fs/cgroup") };
        let found = common::shell(&format!("find {} -type d -name '*pod68656164*'", top.display()));
        found.lines().count()
    }

    fn nothing_left(&self) -> Result<(), String> {
        for hierarchy in hierarchies() {
            let found = common::shell(&format!(
                "find {0} -type d -name '*{1}*'; find {0} -type d -name '*headroom-drill-*'",
                hierarchy.display(),
                HEX
            ));
            same(("cgroups", found.as_str()), ("cgroups", ""))?;
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mounts: Vec<&str> = mounts.lines().filter(|line| line.contains("headroom-drill")).collect();
        same(("mounts", mounts), ("mounts", Vec::new()))?;
        let root = self.cluster.kubelet_root();
        let paths = format!(
            "ls -d {0}/headroom-drill-* {0}/pods/{1}* /run/headroom-drill-* /tmp/headroom-drill-* {2}/drills/*/state/* \
             /run/netns/headroom-drill-* 2>/dev/null || true",
            root.display(),
            HEX,
            self.cluster.dir().display()
        );
        same(("paths", common::shell(&paths).as_str()), ("paths", ""))?;
        let network = common::shell("ip -o link; iptables -w -S; ip6tables -w -S");
        let network: Vec<&str> = network.lines().filter(|line| line.contains("drill-")).collect();
        same(("interfaces and rules", network), ("interfaces and rules", Vec::new()))?;
        let processes = common::shell("grep -l '^headroom-drill$' /proc/[0-9]*/comm 2>/dev/null || true");
        same(("processes", processes.as_str()), ("processes", ""))
    }

    fn unharmed(&self) -> Result<(), String> {
        let node = self.cluster.get(&["node", NODE])?;
        let pressure = node["status"]["conditions"].as_array().into_iter().flatten();
        let pressure: Vec<_> =
            pressure.filter(|one| one["type"] != "Ready" && one["status"] == "True").map(|one| &one["type"]).collect();
        same(pressure, Vec::new())?;
        let pods = self.cluster.pods()?;
        let states: Vec<_> = pods
            .iter()
            .map(|pod| (&pod["status"]["phase"], &pod["status"]["containerStatuses"][0]["restartCount"]))
            .collect();
        same(states, vec![(&json!("Running"), &json!(0))])
    }
}

/// One that runs.
struct Drill {
    name: &'static str,
    folder: PathBuf,
    child: Child,
}

impl Drill {
    fn said(&self) -> String {
        fs::read_to_string(self.folder.join("output")).unwrap()
    }

    fn last(&self) -> String {
        self.said().lines().last().unwrap_or_default().to_owned()
    }

    /// It runs, and its last word is of what it holds.
    fn stands(&self, what: &str) -> Result<(), String> {
        let runs = Path::new("/proc").join(self.child.id().to_string()).join("fd/0").exists();
        let last = self.last();
        if runs && last.contains(what) {
            Ok(())
        } else {
            Err(format!("{what:?} is not its last word: {}", self.said()))
        }
    }

    fn wait(&mut self, seconds: u64) -> Result<ExitStatus, String> {
        let until = Instant::now() + Duration::from_secs(seconds);
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return Ok(status),
                None if Instant::now() > until => return Err(format!("it does not end: {}", self.said())),
                None => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Orderly and with everything cleaned up, or, after SIGKILL, cleaned up by the watchdog.
    fn end(mut self, signal: Signal) -> Result<(), String> {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        let status = self.wait(30)?;
        if signal == Signal::KILL {
            same(status.code(), None)?;
        } else if status.code() != Some(0) || !self.last().contains("all cleaned up") {
            return Err(format!("{status}: {}", self.said()));
        }
        self.no_journal(15)
    }

    /// By itself, with this as its last word but one.
    fn ended(mut self, word: &str) -> Result<(), String> {
        let status = self.wait(90)?;
        let said = self.said();
        if status.code() == Some(0) && said.lines().rev().nth(1).is_some_and(|line| line.contains(word)) {
            return self.no_journal(0);
        }
        Err(format!("{status}: {said}"))
    }

    fn end_by_clean(mut self) -> Result<(), String> {
        let pid = Pid::from_child(&self.child);
        // Stopped, or it would see that its watchdog is gone.
        kill_process(pid, Signal::STOP).unwrap();
        let children = common::shell(&format!("cat /proc/{0}/task/{0}/children", self.child.id()));
        for child in children.split_whitespace() {
            kill_process(Pid::from_raw(child.parse().unwrap()).unwrap(), Signal::KILL).unwrap();
        }
        kill_process(pid, Signal::KILL).unwrap();
        self.wait(10)?;
        let mut clean = Command::new(bed::drill_binary());
        let output = clean.arg("--state-dir").arg(self.folder.join("state")).arg("clean").output().unwrap();
        if !output.status.success() {
            return Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)));
        }
        self.no_journal(0)
    }

    /// The last that goes.
    fn no_journal(&self, seconds: u64) -> Result<(), String> {
        let until = Instant::now() + Duration::from_secs(seconds);
        loop {
            let left = fs::read_dir(self.folder.join("state")).map_or(0, Iterator::count);
            if left == 0 {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(format!("its journal is still there: {}", self.said()));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Drill {
    fn drop(&mut self) {
        // Orderly: what it made must go also when the test fails.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
            let _ = self.wait(20);
        }
    }
}
