use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::super::history::{Finding, Look, PodHistory, Proof};
use crate::host::iflink::LinkPeer;
use crate::host::netns::NetworkNamespace;

const GRACE: Duration = Duration::from_secs(10);

/// Two namespaces that differ: of two files.
fn namespace(second: bool) -> NetworkNamespace {
    let dir = tempfile::tempdir().unwrap();
    let host = crate::host::Host::new(crate::host::Roots { proc: dir.path().into(), ..Default::default() });
    for pid in ["1", "2"] {
        std::fs::create_dir_all(dir.path().join(pid).join("net")).unwrap();
        std::fs::write(dir.path().join(pid).join("net/dev"), "").unwrap();
    }
    host.network_namespace_of(if second { 2 } else { 1 }).unwrap()
}

struct Story {
    lives: PodHistory,
    start: Instant,
    look: Look,
}

impl Story {
    fn new() -> Self {
        let look = Look {
            uid: "u".into(),
            containers: vec![1, 2],
            namespace: namespace(false),
            interfaces: BTreeSet::new(),
            proof: Proof::Running,
        };
        Story { lives: PodHistory::default(), start: Instant::now(), look }
    }

    /// Interfaces and what was lost, of a look at this second.
    fn at(&mut self, second: u64, interfaces: &[&str], proof: Proof) -> Option<(usize, Vec<String>)> {
        self.look.interfaces = interfaces.iter().map(|name| (*name).to_owned()).collect();
        self.look.proof = proof;
        let now = self.start + Duration::from_secs(second);
        let present = std::iter::once("u").collect();
        let findings = self.lives.update(std::slice::from_ref(&self.look), &present, true, GRACE, now);
        findings.into_iter().next().map(|Finding { interfaces, lost, .. }| (interfaces, lost))
    }
}

fn lost(interfaces: usize, names: &[&str]) -> Option<(usize, Vec<String>)> {
    Some((interfaces, names.iter().map(|name| (*name).to_owned()).collect()))
}

use Proof::{Running, Sandbox, Terminated};

#[test]
fn one_of_two_interfaces() {
    let mut story = Story::new();
    assert_eq!(story.at(0, &["eth0", "net1"], Running), None);
    assert_eq!(story.at(1, &["eth0"], Running), lost(1, &["net1"]));
    assert_eq!(story.at(2, &["eth0", "net1"], Running), None);
    assert_eq!(story.at(3, &[], Running), lost(0, &["eth0", "net1"]));
    assert_eq!(story.lives.lost, 3);
}

#[test]
fn a_pause_container_alone_needs_the_grace_period_without_a_break() {
    let mut story = Story::new();
    assert_eq!(story.at(0, &[], Sandbox), None);
    assert_eq!(story.at(9, &[], Sandbox), None);
    assert_eq!(story.at(10, &[], Sandbox), lost(0, &[]));
    assert_eq!(story.at(11, &["eth0"], Sandbox), None, "it only started late");
    assert_eq!(story.at(30, &[], Sandbox), None, "a new break begins");
    assert_eq!(story.at(40, &[], Sandbox), lost(0, &["eth0"]));
    assert_eq!(story.lives.lost, 1);
}

#[test]
fn what_was_proven_stays_while_containers_restart() {
    let mut story = Story::new();
    story.at(0, &["eth0"], Running);
    assert_eq!(story.at(1, &[], Running), lost(0, &["eth0"]));
    assert_eq!(story.at(2, &[], Sandbox), lost(0, &["eth0"]), "its container is between two restarts");
    assert_eq!(story.at(3, &[], Terminated), None, "it ends");
    assert_eq!(story.at(4, &[], Sandbox), None, "and is not proven any more");
    assert_eq!(story.lives.lost, 1, "counted once");
}

#[test]
fn an_ending_pod_loses_nothing() {
    let mut story = Story::new();
    story.at(0, &["eth0"], Running);
    for second in 1..60 {
        assert_eq!(story.at(second, &[], Terminated), None);
    }
    assert_eq!(story.lives.lost, 0);
}

#[test]
fn a_sandbox_made_anew_is_a_new_life() {
    for same_number in [true, false] {
        let mut story = Story::new();
        story.at(0, &["eth0", "net1"], Running);
        // Numbers of namespaces are given again; those of cgroups are not.
        story.look.containers = vec![3, 4];
        story.look.namespace = namespace(!same_number);
        assert_eq!(story.at(1, &["eth0"], Running), None, "{same_number}");
        assert_eq!(story.at(2, &[], Running), lost(0, &["eth0"]), "{same_number}");
    }
    let mut story = Story::new();
    story.at(0, &["eth0", "net1"], Running);
    story.look.containers = vec![1, 5];
    assert_eq!(story.at(1, &["eth0"], Running), lost(1, &["net1"]), "a container restarted, the sandbox did not");
}

#[test]
fn what_a_pod_makes_for_itself_may_go() {
    let mut story = Story::new();
    assert_eq!(story.at(0, &["eth0", "docker0", "veth12ab", "tun0", "br-1f"], Running), None);
    assert_eq!(story.at(1, &["eth0"], Running), None);
    assert_eq!(story.at(2, &["docker0"], Running), lost(1, &["eth0"]), "and is no substitute");
}

#[test]
fn memory_is_bounded() {
    let mut story = Story::new();
    let many: Vec<String> = (0..10_000).map(|number| format!("if{number}")).collect();
    story.at(0, &many.iter().map(String::as_str).collect::<Vec<_>>(), Running);
    let (_, lost) = story.at(1, &[], Running).unwrap();
    assert_eq!(lost.len(), 16);

    // A hundred rounds of other pods, of which no walk sees all.
    let present: Vec<String> = (0..100_u32).map(|number| number.to_string()).collect();
    let mut most = 0;
    for round in 0..100 {
        let looks: Vec<Look> =
            present.iter().map(|uid| Look { uid: format!("{round}-{uid}").into(), ..story.look.clone() }).collect();
        let present = looks.iter().map(|look| &*look.uid).collect();
        story.lives.update(&looks, &present, false, GRACE, story.start);
        most = most.max(format!("{:?}", story.lives).matches("Life {").count());
    }
    assert!(most <= 400, "{most} pods remembered");
    story.lives.update(&[], &std::collections::HashSet::new(), true, GRACE, story.start);
    assert_eq!(format!("{:?}", story.lives).matches("Life {").count(), 0, "nothing is kept of what is gone");
}

#[test]
fn who_has_no_sysfs_of_its_own_is_asked_as_seldom_as_who_has() {
    let peer = LinkPeer { index: 2, lower: 7, ..LinkPeer::default() };
    let mut story = Story::new();
    let start = story.start;
    let second = |second: u64| start + Duration::from_secs(second);
    let asked = |story: &mut Story, at: u64| {
        story.at(at, &["eth0"], Running);
        story.lives.wants_stacked("u", second(at))
    };
    // At first its process is still the runtime's.
    for at in [0, 15, 59] {
        assert!(asked(&mut story, at), "{at}");
        story.lives.set_unsettled("u", second(at));
    }
    assert!(asked(&mut story, 75));
    story.lives.set_unsettled("u", second(75));
    assert!(!asked(&mut story, 90) && !asked(&mut story, 374));
    assert!(asked(&mut story, 375));
    story.lives.set_unsettled("u", second(375));
    assert!(!asked(&mut story, 390));
    // What was known is not forgotten for a process that has just begun.
    story.lives.set_stacked("u", vec![peer.clone()], second(675));
    assert!(asked(&mut story, 975));
    story.lives.set_unsettled("u", second(975));
    assert!(asked(&mut story, 990));
    assert_eq!(story.lives.stacked().collect::<Vec<_>>(), [&peer]);
}
