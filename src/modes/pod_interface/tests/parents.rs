use std::time::{Duration, Instant};

use serde_json::Value;

use super::super::parents::Parents;
use crate::host::iflink::LinkPeer;
use crate::host::links::{Link, Links, Mac};

const GRACE: Duration = Duration::from_secs(10);

fn link(index: u32, name: &str, kind: &str) -> Link {
    let kind = (!kind.is_empty()).then(|| kind.to_owned());
    Link { index, name: name.into(), kind, running: true, ..Link::default() }
}

fn addressed(link: Link) -> Link {
    Link { addressed: true, ..link }
}

fn on(lower: u32, link: Link) -> Link {
    Link { lower: Some(lower), ..link }
}

fn member(master: u32, link: Link) -> Link {
    Link { master: Some(master), ..link }
}

/// Two NICs in a bond with a VLAN on it, a VLAN on a third, a macvlan and an ipvlan on a fourth and fifth.
fn machine() -> Vec<Link> {
    vec![
        link(1, "lo", ""),
        member(4, link(2, "eth0", "")),
        member(4, link(3, "eth1", "")),
        link(4, "bond4", "bond"),
        addressed(on(4, link(5, "bond4.3", "vlan"))),
        link(6, "eth2", ""),
        addressed(on(6, link(7, "eth2.3", "vlan"))),
        link(8, "eth3", ""),
        on(8, link(9, "mac0", "macvlan")),
        link(10, "eth4", ""),
        on(10, link(11, "ipv0", "ipvlan")),
        link(12, "cni0", "bridge"),
    ]
}

struct Story {
    parents: Parents,
    start: Instant,
    pods: Vec<LinkPeer>,
}

impl Story {
    fn new() -> Self {
        Story { parents: Parents::default(), start: Instant::now(), pods: Vec::new() }
    }

    /// `device kind state`, of a dump at this second.
    fn at(&mut self, second: u64, links: &[Link], whole: bool) -> Vec<String> {
        let links = Links { all: links.to_vec(), whole };
        let now = self.start + Duration::from_secs(second);
        let taken = links.all.iter().map(|link| (link.index, link.taken.iter().copied().collect())).collect();
        let (states, _) = self.parents.update(&links, self.pods.iter(), Some(&taken), GRACE, now);
        states.into_iter().map(|(device, kind, up)| format!("{device} {kind} {}", u8::from(up))).collect()
    }

    fn lost(&self) -> u64 {
        self.parents.lost.unwrap()
    }
}

fn without(names: &[&str]) -> Vec<Link> {
    machine().into_iter().filter(|link| !names.contains(&link.name.as_str())).collect()
}

#[test]
fn what_carries_others() {
    let mut links = machine();
    links[2].running = false;
    assert_eq!(
        Story::new().at(0, &links, true),
        [
            "bond4 bond 1",
            "bond4 vlan_parent 1",
            "bond4.3 vlan 1",
            "eth0 bond_member 1",
            "eth1 bond_member 0",
            "eth2 vlan_parent 1",
            "eth2.3 vlan 1",
            "eth3 macvlan_parent 1",
            "eth4 ipvlan_parent 1",
        ]
    );
}

/// As a driver upgrade does it: the card goes, what was on it goes with it, the card comes back under another number.
#[test]
fn a_card_vanishes_and_comes_back() {
    let mut story = Story::new();
    story.at(0, &machine(), true);
    story.at(15, &machine(), true);
    let states = story.at(30, &without(&["eth2", "eth2.3"]), true);
    assert!(states.contains(&"eth2 vlan_parent 0".into()) && states.contains(&"eth2.3 vlan 0".into()), "{states:?}");
    assert_eq!(story.lost(), 2);
    story.at(45, &without(&["eth2", "eth2.3"]), true);
    assert_eq!(story.lost(), 2, "counted once");

    let mut back = without(&["eth2", "eth2.3"]);
    back.push(link(20, "eth2", ""));
    let states = story.at(60, &back, true);
    assert!(!states.iter().any(|state| state.starts_with("eth2 ")), "it is there, and carries nothing: {states:?}");
    assert!(states.contains(&"eth2.3 vlan 0".into()), "{states:?}");
    back.push(on(20, link(21, "eth2.3", "vlan")));
    let states = story.at(75, &back, true);
    assert!(states.contains(&"eth2 vlan_parent 1".into()) && states.contains(&"eth2.3 vlan 1".into()), "{states:?}");
    assert_eq!(story.lost(), 2);
}

#[test]
fn made_anew_between_two_scrapes_is_lost_and_up() {
    let mut story = Story::new();
    story.at(0, &machine(), true);
    story.at(15, &machine(), true);
    let mut links = without(&["eth2", "eth2.3"]);
    links.extend([link(20, "eth2", ""), on(20, link(21, "eth2.3", "vlan"))]);
    let states = story.at(30, &links, true);
    assert!(states.contains(&"eth2 vlan_parent 1".into()) && states.contains(&"eth2.3 vlan 1".into()), "{states:?}");
    assert_eq!(story.lost(), 2);
    story.at(45, &links, true);
    assert_eq!(story.lost(), 2);
}

/// EKS's security groups for pods: a VLAN for each, made and deleted with it.
#[test]
fn a_vlan_that_a_pod_took_along_is_not_lost() {
    let mut story = Story::new();
    let nic = || link(2, "eth1", "");
    let of_pod = |index: u32, id: &str| on(2, link(index, &format!("vlan.eth.{id}"), "vlan"));
    for second in [0, 11] {
        story.at(second, &[nic(), of_pod(3, "a"), of_pod(4, "b")], true);
    }
    let states = story.at(22, &[nic(), of_pod(4, "b")], true);
    assert_eq!(states, ["eth1 vlan_parent 1", "vlan.eth.b vlan 1"]);
    assert_eq!(story.at(33, &[nic()], true), [""; 0], "nothing is on the card any more");
    assert_eq!(story.lost(), 0);
    // The card's own end takes it along, and so does its cable.
    for second in [40, 51] {
        story.at(second, &[nic(), of_pod(5, "c")], true);
    }
    let states = story.at(62, &[link(1, "lo", "")], true);
    assert_eq!(states, ["eth1 vlan_parent 0", "vlan.eth.c vlan 0"]);
    assert_eq!(story.lost(), 2);
}

#[test]
fn a_vlan_on_which_something_stands_is_lost() {
    for used in [
        [addressed(on(2, link(3, "eth1.7", "vlan"))), link(4, "other", "")],
        [member(4, on(2, link(3, "eth1.7", "vlan"))), link(4, "br0", "bridge")],
        [on(2, link(3, "eth1.7", "vlan")), on(3, link(4, "mac0", "macvlan"))],
    ] {
        let mut story = Story::new();
        let [vlan, other] = used;
        for second in [0, 11] {
            story.at(second, &[link(2, "eth1", ""), vlan.clone(), other.clone()], true);
        }
        let states = story.at(22, &[link(2, "eth1", ""), link(4, "other", "")], true);
        assert!(states.iter().any(|state| state == "eth1.7 vlan 0"), "{states:?}");
        assert!(story.lost() >= 1);
    }
}

#[test]
fn who_is_excluded_is_not_watched() {
    let exclude = Some(regex::Regex::new("^eth2").unwrap());
    let mut story = Story { parents: Parents::without(exclude), ..Story::new() };
    let states = story.at(0, &machine(), true);
    assert!(
        states.iter().all(|state| !state.starts_with("eth2")) && states.contains(&"bond4 bond 1".into()),
        "{states:?}"
    );
}

#[test]
fn what_passes_by_is_not_lost() {
    let mut story = Story::new();
    story.at(0, &machine(), true);
    // A VLAN that a CNI plugin makes here and moves into a pod.
    let mut links = machine();
    links.push(on(6, link(30, "tmp7", "vlan")));
    story.at(15, &links, true);
    let states = story.at(30, &machine(), true);
    assert!(!states.iter().any(|state| state.starts_with("tmp7")), "{states:?}");
    assert_eq!(story.lost(), 0);
}

#[test]
fn a_thousand_veths_are_nobody() {
    let mut story = Story::new();
    let steady = story.at(0, &machine(), true);
    for round in 0..20 {
        let mut links = machine();
        for pod in 0..1_000 {
            let index = 100 + round * 1_000 + pod;
            let veth =
                Link { lower_namespace: Some(pod as i32), ..on(2, link(index, &format!("veth{index:x}"), "veth")) };
            links.push(member(12, veth));
        }
        links.extend([link(90, "tunl0", "ipip"), link(91, "cali12", "veth"), link(92, "tap0", "tun")]);
        story.pods = (0..1_000)
            .map(|pod| LinkPeer { index: 2, lower: 100 + round * 1_000 + pod, ..LinkPeer::default() })
            .collect();
        assert_eq!(story.at(15 * u64::from(round), &links, true), steady);
    }
    story.pods.clear();
    assert_eq!(story.at(400, &machine(), true), steady);
    assert_eq!(story.lost(), 0);
}

const MACVLAN: Mac = [2, 0, 0, 0, 0, 9];

fn of_address(byte: u8, link: Link) -> Link {
    Link { address: Some([2, 0, 0, 0, 1, byte]), ..link }
}

fn in_a_pod(lower: u32, devtype: &str, address: Mac) -> LinkPeer {
    LinkPeer { index: 9, lower, address: Some(address), devtype: (!devtype.is_empty()).then(|| devtype.to_owned()) }
}

#[test]
fn parents_of_interfaces_inside_pods() {
    let mut story = Story::new();
    let links = [
        Link { taken: vec![MACVLAN], ..of_address(2, link(2, "eth0", "")) },
        of_address(3, link(3, "eth1", "")),
        of_address(4, link(4, "eth2", "bond")),
        of_address(5, Link { lower_namespace: Some(0), ..on(7, link(5, "veth1", "veth")) }),
    ];
    let (eth1, eth2) = (links[1].address.unwrap(), links[2].address.unwrap());
    story.pods = vec![
        in_a_pod(2, "", MACVLAN),
        in_a_pod(3, "vlan", eth1),
        in_a_pod(4, "ipvlan", eth2),
        in_a_pod(5, "", [2, 0, 0, 0, 2, 1]),
        in_a_pod(77, "", MACVLAN),
    ];
    let states = ["eth0 macvlan_parent 1", "eth1 vlan_parent 1", "eth2 ipvlan_parent 1"];
    assert_eq!(story.at(0, &links, true)[1..], ["eth1 vlan_parent 1", "eth2 bond 1", "eth2 ipvlan_parent 1"]);
    assert_eq!(story.at(5, &links, true)[0], states[0]);
    story.at(10, &links, true);
    assert_eq!(story.at(20, &links[1..], true)[0], "eth0 macvlan_parent 0");
    story.pods.clear();
    assert_eq!(story.at(30, &links[1..2], true)[0], "eth0 macvlan_parent 0");
    assert_eq!(story.at(40, &links[..2], true)[..1], ["eth2 bond 0"], "the others carry nothing any more");
}

/// As Docker in Docker and a nested namespace have them: the number is of another namespace, and by chance or on
/// purpose that of an interface of the machine.
#[test]
fn what_a_pod_stacks_in_namespaces_of_its_own_is_on_nothing_of_the_machine() {
    let mut story = Story::new();
    let links = [
        of_address(2, link(2, "eth0", "")),
        of_address(5, Link { lower_namespace: Some(0), ..on(7, link(5, "cali1", "veth")) }),
        Link { taken: vec![MACVLAN], ..of_address(6, link(6, "cni0", "bridge")) },
        of_address(7, link(7, "tap0", "tun")),
    ];
    let unknown = [2, 0, 0, 0, 2, 1];
    for lower in [2, 5, 6, 7] {
        for devtype in ["", "vlan", "macvlan", "ipvlan"] {
            story.pods.push(in_a_pod(lower, devtype, unknown));
            story.pods.push(LinkPeer { lower, index: 9, ..LinkPeer::default() });
        }
    }
    // Whoever sees the address of an interface that comes and goes with pods can take it.
    for (lower, byte) in [(5, 5), (6, 6), (7, 7)] {
        story.pods.push(in_a_pod(lower, "ipvlan", [2, 0, 0, 0, 1, byte]));
    }
    assert_eq!(story.at(0, &links, true), [""; 0]);
    story.at(20, &links, true);
    assert_eq!(story.at(40, &links[..1], true), [""; 0]);
    assert_eq!(story.lost(), 0);
}

#[test]
fn without_the_machines_word_what_was_known_stays() {
    let mut story = Story::new();
    let links =
        [Link { taken: vec![MACVLAN], ..of_address(2, link(2, "eth0", "")) }, of_address(3, link(3, "eth1", ""))];
    story.pods = vec![in_a_pod(2, "", MACVLAN), in_a_pod(3, "", MACVLAN)];
    assert_eq!(story.at(0, &links, true), ["eth0 macvlan_parent 1"]);
    let links = Links { all: links.to_vec(), whole: true };
    let now = story.start + Duration::from_secs(15);
    let (states, _) = story.parents.update(&links, story.pods.iter(), None, GRACE, now);
    assert_eq!(states, [("eth0".to_owned(), "macvlan_parent", true)]);
}

#[test]
fn a_dump_that_is_not_whole_proves_no_loss() {
    let mut story = Story::new();
    story.at(0, &machine(), true);
    story.at(15, &machine(), true);
    let states = story.at(30, &without(&["eth2.3"]), false);
    assert!(!states.iter().any(|state| state.starts_with("eth2.3")), "{states:?}");
    assert_eq!(story.lost(), 0);
    assert!(story.at(45, &machine(), true).contains(&"eth2.3 vlan 1".into()));
    assert_eq!(story.lost(), 0);
}

#[test]
fn a_cap_keeps_it_small() {
    let vlans = (0..500).map(|number| on(6, link(100 + number, &format!("vlan{number}"), "vlan")));
    let links = Links { all: machine().into_iter().chain(vlans).collect(), whole: true };
    let (states, dropped) = Parents::default().update(&links, [].iter(), None, GRACE, Instant::now());
    assert!(states.len() < 140, "{}", states.len());
    assert_eq!(dropped, 508 - 128);
}

/// The recorded nodes have neither VLANs nor bonds: nothing there is watched.
#[test]
fn recorded_nodes() {
    for text in [
        include_str!("../../../../tests/fixtures/node/k8s-1.36-cgroupv1/net/ip-link.json"),
        include_str!("../../../../tests/fixtures/node/k8s-1.36-cgroupv2/net/ip-link.json"),
    ] {
        let rows: Vec<Value> = serde_json::from_str(text).unwrap();
        let number = |value: &Value| value.as_u64().map(|number| number as u32);
        let links: Vec<Link> = rows
            .iter()
            .map(|row| Link {
                index: number(&row["ifindex"]).unwrap(),
                name: row["ifname"].as_str().unwrap().to_owned(),
                kind: None,
                running: row["operstate"] == "UP",
                lower: number(&row["link_index"]),
                lower_namespace: row["link_netnsid"].as_i64().map(|id| id as i32),
                master: rows.iter().find(|one| one["ifname"] == row["master"]).and_then(|one| number(&one["ifindex"])),
                ..Link::default()
            })
            .collect();
        assert!(links.iter().any(|link| link.master.is_some()) && links.len() > 10);
        let mut story = Story::new();
        story.pods = links.iter().map(|link| LinkPeer { index: 2, lower: link.index, ..LinkPeer::default() }).collect();
        story.pods.retain(|stacked| links.iter().any(|link| link.index == stacked.lower && link.lower == Some(2)));
        assert_eq!(story.at(0, &links, true), [""; 0]);
        story.at(20, &[], true);
        assert_eq!(story.lost(), 0);
    }
}
