//! Golden pages: the whole page that the exporter shows on two recorded nodes, every mode at once.
//!
//! Single figures are held against the recording in each mode's own tests; here it is seen as a user sees it, and every
//! change of it must be looked at. `HEADROOM_UPDATE_DOCS=1 cargo test --lib golden` writes the pages anew.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::exposition::{Format, Page};
use crate::host::cgroup::recorded::Machine;
use crate::host::sockets::Sockets;
use crate::host::{Deadline, Host};
use crate::kubelet::{self, version::Version};
use crate::modes::{MODES, Settings};
use crate::runtime::Runtime;
use crate::scrape::{self, Outcome, Scrape, Scraper};
use crate::services::{self, Services};
use crate::tests::{filesystem, fixtures, inventory, ss};

const KUBECONFIG: &str = "kind: Config\ncurrent-context: tb\ncontexts: [{name: tb, context: {cluster: tb, user: kubelet}}]\n\
    clusters: [{name: tb, cluster: {server: 'https://10.250.0.1:6443'}}]\n";

/// A recorded node with its processes, its kubelet's files, its file systems and what its runtime said.
struct Node {
    machine: Machine,
    folder: PathBuf,
    host: Arc<Host>,
    runtime: Runtime,
}

impl Node {
    fn new(machine: Machine, name: &str, kubelet: (u32, &str), others: &[(u32, &str, &str)]) -> Self {
        let folder = fixtures().join("node").join(name);
        let text = |path: &str| std::fs::read_to_string(folder.join(path)).unwrap();
        machine.proc("loadavg", &text("proc/host/loadavg.txt"));
        machine.proc("sys/kernel/pid_max", &text("proc/host/sys-kernel-pid_max.txt"));
        // Not recorded; min(pid_max, threads-max) was, as `rlimit.maxpid` of /stats/summary.
        let summary: serde_json::Value = serde_json::from_str(&text("kubelet-http/stats-summary.json")).unwrap();
        machine.proc("sys/kernel/threads-max", &summary["node"]["rlimit"]["maxpid"].to_string());
        machine.proc("sys/fs/file-nr", &text(&format!("../../open_files/{}-file-nr.txt", &name[name.len() - 2..])));
        machine.proc("sys/fs/inotify/max_user_instances", "128\n");
        machine.proc("sys/fs/inotify/max_user_watches", "192536\n");

        machine.proc("1/net/dev", &text("proc/host/net-dev.txt"));

        let (pid, recording) = kubelet;
        process(&machine, pid, "kubelet", recording);
        machine.proc(&format!("{pid}/stat"), &text("proc/kubelet/stat.txt"));
        machine.proc(&format!("{pid}/cmdline"), &text("proc/kubelet/cmdline.txt").trim().replace('\n', "\0"));
        machine.proc(&format!("{pid}/mountinfo"), &text("proc/host/mountinfo.txt"));
        machine.proc("vmstat", &text("proc/host/vmstat.txt"));
        for (pid, comm, recording) in others {
            process(&machine, *pid, comm, recording);
        }
        // The last of them is the container with the volume.
        let (container, ..) = others.last().unwrap();
        machine.proc(&format!("{container}/mountinfo"), &text("proc/container/mountinfo.txt"));
        for file in ["kubelet-config.yaml", "kubelet.conf.d/10-eviction.conf"] {
            let place = machine.path().join("root/var/lib/tb").join(file);
            std::fs::create_dir_all(place.parent().unwrap()).unwrap();
            std::fs::copy(folder.join("config").join(file), place).unwrap();
        }
        // Not recorded, because it holds keys; where its server was is what its sockets say.
        std::fs::write(machine.path().join("root/var/lib/tb/kubelet.kubeconfig"), KUBECONFIG).unwrap();
        machine.proc(&format!("{pid}/environ"), "HOME=/root\0PATH=/usr/bin:/bin\0");
        let sockets = text(&format!("../../apiserver_connection/ss-to-apiserver-{}.txt", &name[name.len() - 2..]));
        let sockets = Sockets::recorded(ss::connections(&sockets), Vec::new());
        let table = text("proc/host/statfs.txt").lines().map(filesystem).collect();
        let host = Arc::new(Host::recorded(machine.host.roots().clone(), table).with_sockets(sockets));
        let runtime = Runtime::fixed(Ok(inventory::recorded(name)));
        Node { machine, folder, host, runtime }
    }

    /// Puts the recorded pause process into its cgroup and its network. Of no other pod is there a recording from
    /// inside.
    fn pause(&self, cgroup: &str, pid: u32) {
        self.machine.cgroup(&format!("{cgroup}/cgroup.procs"), &format!("{pid}\n"));
        let text = std::fs::read_to_string(self.folder.join("proc/pause/net-dev.txt")).unwrap();
        self.machine.proc(&format!("{pid}/net/dev"), &text);
    }

    /// One scrape of all modes, but for one.
    async fn scrape(&self, off: &str) -> Scrape {
        let settings = Settings::default();
        // Its object was recorded from a build that says no version.
        let kubelet = kubelet::handle::Settings { version: Version::parse("v1.36.1"), ..Default::default() };
        let services = Services { runtime: self.runtime.clone(), ..Services::with_kubelet(kubelet) };
        let on = MODES.iter().filter(|mode| mode.id != off);
        let modes = on.map(|mode| (*mode, (mode.build)(&settings, &services))).collect();
        let kubepods = services.kubepods.clone();
        let scraper = Scraper::new(Arc::clone(&self.host), services, modes);
        let scrape = scraper.scrape(Deadline::after(Duration::from_secs(60)), |_| true).await;
        assert_eq!(kubepods.looks(), 1, "one walk serves all modes");
        scrape
    }

    async fn page(&self) -> String {
        let scrape = self.scrape("none").await;
        let mut page = Page::default();
        page.add(scrape::METRICS, Arc::new(scrape.about));
        page.add(services::METRICS, Arc::new(scrape.node));
        for (mode, run) in scrape.runs {
            // Nobody answers as the apiserver here: see the mode's own tests.
            let expected = if mode.id == "node_status" { Outcome::NotApplicable } else { Outcome::Ok };
            assert_eq!(run.outcome, expected, "{}: {:?}", mode.id, run.samples.errors());
            page.add(mode.metrics, Arc::clone(&run.samples));
        }
        let page = page.render(Format::OpenMetrics).unwrap();
        // Durations differ each time, and the temporary folder is nobody's business.
        let lines = page.lines().filter(|line| !line.starts_with("headroom_collector_duration_seconds{"));
        lines.map(|line| line.replace(&*self.machine.path().to_string_lossy(), "") + "\n").collect()
    }

    async fn equals_golden(&self) {
        let (page, golden) = (self.page().await, self.folder.join("page.prom"));
        if std::env::var_os("HEADROOM_UPDATE_DOCS").is_some() {
            std::fs::write(&golden, &page).unwrap();
        }
        let committed = std::fs::read_to_string(&golden).unwrap_or_default();
        let differs: Vec<_> = committed.lines().zip(page.lines()).filter(|(a, b)| a != b).take(3).collect();
        assert!(committed == page, "{}: differs (HEADROOM_UPDATE_DOCS=1 writes it): {differs:#?}", golden.display());
    }
}

fn process(machine: &Machine, pid: u32, comm: &str, recording: &str) {
    let folder = fixtures().join("open_files").join(recording);
    machine.proc(&format!("{pid}/comm"), &format!("{comm}\n"));
    for name in ["limits", "cgroup", "status"] {
        let text = std::fs::read_to_string(folder.join(format!("{name}.txt"))).unwrap();
        machine.proc(&format!("{pid}/{name}"), &text);
    }
    // `ls -l /proc/PID/fd` and, one block a descriptor, /proc/PID/fdinfo.
    let fds = machine.host.proc(format!("{pid}/fd"));
    std::fs::create_dir_all(&fds).unwrap();
    for line in std::fs::read_to_string(folder.join("fd.txt")).unwrap().lines() {
        if let Some((before, link)) = line.split_once(" -> ") {
            std::os::unix::fs::symlink(link, fds.join(before.rsplit(' ').next().unwrap())).unwrap();
        }
    }
    for block in std::fs::read_to_string(folder.join("fdinfo.txt")).unwrap_or_default().split("== ").skip(1) {
        let (fd, info) = block.split_once('\n').unwrap();
        machine.proc(&format!("{pid}/fdinfo/{}", fd.trim()), info);
    }
}

fn v1() -> Node {
    let others = [(10_758, "pause", "v1-pause"), (11_133, "sleep", "v1-container")];
    let node = Node::new(Machine::v1(), "k8s-1.36-cgroupv1", (10_153, "v1-kubelet"), &others);
    let pod = "memory/kubepods/burstable/podbcb1982f-2628-449a-accb-e40ecdefbb3b";
    node.pause(&format!("{pod}/5d254dd4d3bde41c7c4a6a3248daea1f1c364728b68bb57782b4a271430706dd"), 10_758);
    let memory = "memory/memory";
    for (place, folder) in [(memory, "root"), ("memory/kubepods/memory", "kubepods")] {
        for file in ["stat", "usage_in_bytes", "limit_in_bytes"] {
            let path = node.folder.join(format!("cgroup/memory/{folder}/memory.{file}"));
            if let Ok(text) = std::fs::read_to_string(path) {
                node.machine.cgroup(&format!("{place}.{file}"), &text);
            }
        }
    }
    node
}

fn v2() -> Node {
    let others = [(2_406, "pause", "v2-pause"), (2_870, "sleep", "v2-container")];
    let node = Node::new(Machine::v2(), "k8s-1.36-cgroupv2", (1_555, "v2-kubelet"), &others);
    let pod =
        "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poddffe967d_a11f_417e_8310_08020db089c7.slice";
    let pause = "cri-containerd-d88fcaa715e9d276d183597b1e6912e7c96cf71eb75399adc78ba506767c4e51.scope";
    node.pause(&format!("{pod}/{pause}"), 2_406);
    for file in ["memory.current", "memory.max"] {
        let text = std::fs::read_to_string(node.folder.join("cgroup/kubepods").join(file)).unwrap();
        node.machine.cgroup(&format!("kubepods.slice/{file}"), &text);
    }
    node
}

#[tokio::test]
async fn the_page_of_a_cgroup_v1_node() {
    v1().equals_golden().await;
}

#[tokio::test]
async fn the_page_of_a_cgroup_v2_node() {
    v2().equals_golden().await;
}

/// What modes share is no mode's: whichever is off, the others say the same, and so does the node.
#[tokio::test]
async fn switching_a_mode_off_changes_nothing_on_the_others() {
    for node in [v1(), v2()] {
        let told = |scrape: &Scrape, off: &str| -> Vec<(&str, String)> {
            let runs = scrape.runs.iter().filter(|(mode, _)| mode.id != off);
            let runs = runs.map(|(mode, run)| (mode.id, format!("{:?} {:#?}", run.outcome, run.samples)));
            runs.chain([("node", format!("{:#?}", scrape.node))]).collect()
        };
        let all = node.scrape("none").await;
        for mode in MODES {
            let others = node.scrape(mode.id).await;
            assert_eq!(others.runs.len(), MODES.len() - 1);
            assert_eq!(told(&others, mode.id), told(&all, mode.id), "without {}", mode.id);
        }
        assert_eq!(all.node.value(&services::CONTROL_PLANE, &[]), Some(0.0));
    }
}
