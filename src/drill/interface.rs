//! The drill `pod-interface`: a pod in a network namespace of its own loses its macvlan with the parent. Nothing but
//! what it made itself is ever touched.
//!
//! The pod has two containers with a process each, as one that runs has its pause container and another: of a pod with
//! one, that no runtime knows, nobody could say that it is not about to end. And beside a kubelet it has a volume, or
//! that would remove it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::cgroups::Place;
use super::cli::{Kubepods, duration};
use super::emptydir::EmptyDir;
use super::expect::{Page, page};
use super::journal::{Item, Journal, MARK, SHORT};
use super::kubelet::RootDir;
use super::{Fault, Result, Run, failed, run as command, tried};

/// At least one scrape must see that it is back, or the exporter tells of its loss until it is restarted.
const LAST: Duration = Duration::from_secs(75);
const CONTAINERS: u64 = 2;
/// Nothing is written into the volume.
const VOLUME: u64 = 1 << 20;

fn make_parent(parent: &str, other: &str) -> Result<()> {
    command("ip", &["link", "add", parent, "type", "veth", "peer", "name", other])?;
    command("ip", &["link", "set", parent, "up"])?;
    command("ip", &["link", "set", other, "up"]).map(drop)
}

fn names() -> (String, String, String) {
    let number = Journal::number();
    (format!("{MARK}{number}"), format!("{SHORT}{number:x}a"), format!("{SHORT}{number:x}b"))
}

#[derive(clap::Args, Debug)]
pub(super) struct PodInterface {
    /// How long the pod keeps its interface at first
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = duration)]
    pub(super) after: Duration,
    /// After this time make again what the interface sat on, so that its alert resolves [default: 75 s before the end]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(super) back_after: Option<Duration>,
    /// The kubelet's root directory [default: that of the running kubelet; without one the pod gets no volume]
    #[arg(long, value_name = "DIR")]
    pub(super) kubelet_root_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(super) kubepods: Kubepods,
}

impl Fault for PodInterface {
    fn plan(&self) -> Result<Vec<String>> {
        Place::find(&self.kubepods)?;
        let (namespace, parent, other) = names();
        let volume = match RootDir::if_any(self.kubelet_root_dir.as_deref())? {
            Some(root) => format!("a volume below {} ({})", root.path.display(), root.why),
            None => "no volume: no kubelet runs here".to_owned(),
        };
        Ok(vec![
            format!(
                "make the network namespace {namespace}, a veth pair {parent} and {other}, a macvlan eth0 on it inside, and a pod's \
                 cgroup with two processes there and {volume}"
            ),
            format!(
                "delete {parent} after {}s, and make it anew {}, without what sat on it; see headroom_pods_without_network_interface and \
                 headroom_network_interfaces_lost_total rise",
                self.after.as_secs(),
                self.back_after.map_or_else(
                    || format!("{}s before the end", LAST.as_secs()),
                    |after| format!("after {}s", after.as_secs())
                )
            ),
        ])
    }

    fn make(&self, run: &mut Run) -> Result<()> {
        let place = Place::find(&self.kubepods)?;
        let root = RootDir::if_any(self.kubelet_root_dir.as_deref())?;
        let (namespace, parent, other) = names();
        run.journal.note(Item::Netns(namespace.clone()))?;
        command("ip", &["netns", "add", &namespace])?;
        run.journal.note(Item::Link(parent.clone()))?;
        make_parent(&parent, &other)?;
        let passing = format!("{SHORT}{:x}m", Journal::number());
        run.journal.note(Item::Link(passing.clone()))?;
        command("ip", &["link", "add", &passing, "link", &parent, "type", "macvlan", "mode", "bridge"])?;
        command("ip", &["link", "set", &passing, "netns", &namespace, "name", "eth0"])?;
        command("ip", &["-n", &namespace, "link", "set", "eth0", "up"])?;

        let uid = place.note_pod(&mut run.journal)?;
        let volume = match &root {
            Some(root) => Some(EmptyDir::make(&mut run.journal, root, &uid, VOLUME)?),
            None => None,
        };
        let pod = place.make_pod(uid, CONTAINERS)?;
        let mut processes = Vec::new();
        for container in 0..CONTAINERS as usize {
            let pid = start_inside(run, &namespace)?;
            pod.put(container, pid)?;
            processes.push((container, pid));
        }

        let whole = run.until.saturating_duration_since(std::time::Instant::now());
        let back = self.back_after.unwrap_or_else(|| whole.saturating_sub(LAST)).max(self.after);
        let (mut deleted, mut is_back) = (false, false);
        run.every_second(|_, elapsed| {
            pod.check()?;
            for &(container, pid) in &processes {
                pod.check_holds(container, pid)?;
            }
            volume.iter().try_for_each(EmptyDir::check)?;
            check_links(&namespace, &parent, deleted, is_back)?;
            let elapsed = elapsed + Duration::from_millis(50);
            if !deleted && elapsed >= self.after {
                command("ip", &["link", "del", &parent])?;
                super::say(format_args!("deleted {parent}"));
                deleted = true;
            } else if deleted && !is_back && elapsed >= back {
                make_parent(&parent, &other)?;
                super::say(format_args!("made {parent} anew"));
                is_back = true;
            }
            Ok(format!("pod {} has {} interfaces besides lo", pod.uid, interfaces(&namespace)?))
        })
    }

    fn pages(&self) -> Vec<Page> {
        vec![
            page("HeadroomHostParentInterfaceDown", 40, "after the deletion"),
            page("HeadroomPodWithoutNetworkInterface", 115, "after the deletion"),
        ]
    }
}

/// A process of the drill in its network namespace.
fn start_inside(run: &mut Run, namespace: &str) -> Result<u32> {
    let ours = tried("the program's own path", std::env::current_exe())?;
    let mut inside = Command::new("ip");
    inside.args(["netns", "exec", namespace]).arg(ours).args(["helper", "sleep"]).stdin(Stdio::piped());
    let mut child = tried("a process in the namespace", inside.stdout(Stdio::null()).spawn())?;
    super::children::go(&mut child)?;
    run.journal.adopt(child)
}

fn interfaces(namespace: &str) -> Result<usize> {
    let links = command("ip", &["-n", namespace, "-o", "link"])?;
    Ok(links.lines().filter(|line| !line.contains(": lo:")).count())
}

/// An error if somebody else took an interface away, or put one there.
fn check_links(namespace: &str, parent: &str, deleted: bool, is_back: bool) -> Result<()> {
    if !Path::new("/run/netns").join(namespace).exists() {
        return failed(format_args!("the network namespace {namespace} was removed (ip netns del)"));
    }
    let inside = interfaces(namespace)?;
    if !deleted && inside == 0 {
        return failed(
            "the pod lost its interface before the drill took it away: something on this node deletes interfaces",
        );
    }
    if deleted && inside > 0 {
        return failed(
            "the pod got an interface again: something on this node makes interfaces in the namespaces of pods",
        );
    }
    // With their names, in the namespace that we are in.
    let there = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let there = there.lines().any(|line| line.trim_start().starts_with(&format!("{parent}:")));
    if there == deleted && !is_back || is_back && !there {
        let what = if there { "made anew" } else { "deleted" };
        return failed(format_args!("{parent} was {what} by somebody else: something on this node manages interfaces"));
    }
    Ok(())
}
