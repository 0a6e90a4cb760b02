//! The interfaces of the machine that others sit on, and what became of those that were there.
//!
//! Only what carries others is watched: VLANs and what is below them, bonds and their members, parents of macvlan and
//! ipvlan interfaces, of those inside pods too where that is known. Everything else comes and goes with pods.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::host::iflink::LinkPeer;
use crate::host::links::{Link, Links};

/// Interfaces that are remembered.
const MOST_DEVICES: usize = 128;

/// What an interface is to others: the label value.
pub(super) type Kind = &'static str;

/// Whether each is up, by device and kind.
pub(super) type States = Vec<(String, Kind, bool)>;

/// An interface that was seen to carry others.
#[derive(Debug)]
struct Device {
    index: u32,
    kinds: BTreeSet<Kind>,
    first: Instant,
    last: Instant,
    /// It is gone, and that was counted.
    gone: bool,
}

/// What carries others, or did.
#[derive(Debug, Default)]
pub(super) struct Parents {
    known: BTreeMap<String, Device>,
    /// Interfaces lost since the exporter started; `None` while they could never be read.
    pub(super) lost: Option<u64>,
}

/// What carries others now: numbers of interfaces with what they are.
fn roles<'a>(
    by_index: &HashMap<u32, &Link>,
    pods: impl Iterator<Item = &'a LinkPeer>,
) -> BTreeMap<u32, BTreeSet<Kind>> {
    let mut roles: BTreeMap<u32, BTreeSet<Kind>> = BTreeMap::new();
    let mut add = |index: u32, kind: Kind| {
        if by_index.contains_key(&index) {
            roles.entry(index).or_default().insert(kind);
        }
    };
    for link in by_index.values() {
        let lower = link.lower.filter(|_| link.lower_namespace.is_none());
        let kind = link.kind.as_deref();
        match kind {
            Some("vlan") => add(link.index, "vlan"),
            Some("bond") => add(link.index, "bond"),
            _ => {}
        }
        if let (Some(lower), Some(parent)) = (lower, kind.and_then(parent_of)) {
            add(lower, parent);
        }
        let master = link.master.and_then(|master| Some((master, by_index.get(&master)?)));
        if master.is_some_and(|(_, master)| master.kind.as_deref() == Some("bond")) {
            add(link.index, "bond_member");
        }
    }
    for stacked in pods {
        let kind = match stacked.devtype.as_deref() {
            Some(devtype) => parent_of(devtype),
            // Not told apart there: what has us for its own other end is a veth; else it is a macvlan.
            None => by_index.get(&stacked.lower).and_then(|below| {
                let other_end = below.lower == Some(stacked.index) && below.lower_namespace.is_some();
                (!other_end).then_some("macvlan_parent")
            }),
        };
        if let Some(kind) = kind {
            add(stacked.lower, kind);
        }
    }
    roles
}

/// What an interface below one of this kind is.
fn parent_of(kind: &str) -> Option<Kind> {
    match kind {
        "vlan" => Some("vlan_parent"),
        "macvlan" | "macvtap" => Some("macvlan_parent"),
        "ipvlan" | "ipvtap" => Some("ipvlan_parent"),
        _ => None,
    }
}

impl Parents {
    /// Takes in what was read `now`. Gives the state of each, and how many there was no room for. What was there for
    /// the grace period and is gone, or was replaced by another of its name, is lost; what was seen for less time
    /// passed by.
    pub(super) fn update<'a>(
        &mut self,
        links: &Links,
        pods: impl Iterator<Item = &'a LinkPeer>,
        grace: Duration,
        now: Instant,
    ) -> (States, u64) {
        let mut lost = self.lost.unwrap_or(0);
        let by_index: HashMap<u32, &Link> = links.all.iter().map(|link| (link.index, link)).collect();
        let by_name: HashMap<&str, &Link> = links.all.iter().map(|link| (link.name.as_str(), link)).collect();
        let mut roles = roles(&by_index, pods);

        self.known.retain(|name, device| {
            let settled = device.last.duration_since(device.first) >= grace;
            let Some(link) = by_name.get(name.as_str()) else {
                if !links.whole {
                    return true;
                }
                lost += u64::from(settled && !device.gone);
                device.gone |= settled;
                return device.gone;
            };
            lost += u64::from(settled && !device.gone && device.index != link.index);
            (device.index, device.gone) = (link.index, false);
            // It is there; what no longer sits on it went by itself, and is watched by itself.
            match roles.remove(&link.index) {
                Some(kinds) => {
                    (device.kinds, device.last) = (kinds, now);
                    true
                }
                None => false,
            }
        });
        let mut dropped = 0;
        for (index, kinds) in roles {
            if self.known.len() < MOST_DEVICES {
                let device = Device { index, kinds, first: now, last: now, gone: false };
                self.known.insert(by_index[&index].name.clone(), device);
            } else {
                dropped += 1;
            }
        }
        self.lost = Some(lost);

        let mut states = Vec::new();
        for (name, device) in &self.known {
            // Not seen in a dump that may have missed it: neither up nor down is known.
            let Some(up) = by_name.get(name.as_str()).map(|link| link.running).or(device.gone.then_some(false)) else {
                continue;
            };
            states.extend(device.kinds.iter().map(|kind| (name.clone(), *kind, up)));
        }
        (states, dropped)
    }
}
