//! The drill `pod-interface`: a pod in a network namespace of its own loses its macvlan with the parent. Nothing but
//! what it made itself is ever touched.

use std::process::{Command, Stdio};
use std::time::Duration;

use super::cgroups::Place;
use super::cli::PodInterface;
use super::journal::{Item, Journal, MARK, SHORT};
use super::{Result, Run, run as command, tried};

/// At least one scrape must see that it is back, or the exporter tells of its loss until it is restarted.
const LAST: Duration = Duration::from_secs(75);

fn make_parent(parent: &str, other: &str) -> Result<()> {
    command("ip", &["link", "add", parent, "type", "veth", "peer", "name", other])?;
    command("ip", &["link", "set", parent, "up"])?;
    command("ip", &["link", "set", other, "up"]).map(drop)
}

fn names() -> (String, String, String) {
    let number = Journal::number();
    (format!("{MARK}{number}"), format!("{SHORT}{number:x}a"), format!("{SHORT}{number:x}b"))
}

pub(super) fn plan(options: &PodInterface) -> Result<Vec<String>> {
    Place::find(&options.kubepods)?;
    let (namespace, parent, other) = names();
    Ok(vec![
        format!(
            "make the network namespace {namespace}, a veth pair {parent} and {other}, a macvlan eth0 on it inside, and a pod's cgroup with a process there"
        ),
        format!(
            "delete {parent} after {}s, and make it anew {}, without what sat on it; see headroom_pods_without_network_interface and \
             headroom_network_interfaces_lost_total rise",
            options.after.as_secs(),
            options.back_after.map_or_else(
                || format!("{}s before the end", LAST.as_secs()),
                |after| format!("after {}s", after.as_secs())
            )
        ),
    ])
}

pub(super) fn make(options: &PodInterface, run: &mut Run) -> Result<()> {
    let place = Place::find(&options.kubepods)?;
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

    let pod = place.make_pod(&mut run.journal)?;
    let ours = tried("the program's own path", std::env::current_exe())?;
    let mut inside = Command::new("ip");
    inside.args(["netns", "exec", &namespace]).arg(ours).args(["helper", "sleep"]).stdin(Stdio::piped());
    let mut child = tried("a process in the namespace", inside.stdout(Stdio::null()).spawn())?;
    super::children::go(&mut child)?;
    pod.put(run.journal.adopt(child)?)?;

    let whole = run.until.saturating_duration_since(std::time::Instant::now());
    let back = options.back_after.unwrap_or_else(|| whole.saturating_sub(LAST)).max(options.after);
    let (mut deleted, mut is_back) = (false, false);
    run.every_second(|_, elapsed| {
        let elapsed = elapsed + Duration::from_millis(50);
        if !deleted && elapsed >= options.after {
            command("ip", &["link", "del", &parent])?;
            super::say(format_args!("deleted {parent}"));
            deleted = true;
        } else if deleted && !is_back && elapsed >= back {
            make_parent(&parent, &other)?;
            super::say(format_args!("made {parent} anew"));
            is_back = true;
        }
        let links = command("ip", &["-n", &namespace, "-o", "link"])?;
        let has = links.lines().filter(|line| !line.contains(": lo:")).count();
        Ok(format!("pod {} has {has} interfaces besides lo", pod.uid))
    })
}
