//! The interfaces of the machine that others sit on, and what became of those that were there.
//!
//! Only what carries others is watched: VLANs and what is below them, bonds and their members, parents of macvlan and
//! ipvlan interfaces, of those inside pods too where that is known. Everything else comes and goes with pods.
//!
//! VLANs may come and go with pods as well: the VPC CNI of EKS makes one on the host for each pod with security groups
//! of its own (`vlan.eth.ID`), and deletes it with the pod. Nothing of the machine stands on such a one: no address, no
//! bridge, no other interface. Where its parent is well, its end is none to tell of.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use regex::Regex;

use crate::host::iflink::LinkPeer;
use crate::host::links::{Link, Links, Mac};

/// Interfaces that are remembered.
const MOST_DEVICES: usize = 128;

/// What an interface is to others: the label value.
pub(super) type Kind = &'static str;

/// Whether each is up, by device and kind.
pub(super) type States = Vec<(String, Kind, bool)>;

/// The addresses that interfaces of the machine take, by their numbers.
pub(super) type Taken = HashMap<u32, HashSet<Mac>>;

/// An interface that was seen to carry others.
#[derive(Debug)]
struct Device {
    index: u32,
    kinds: BTreeSet<Kind>,
    /// What it sits on, by name and number.
    parent: Option<(String, u32)>,
    /// It is more than a VLAN, or something stands on it: an address, a bridge, another interface.
    is_used: bool,
    first: Instant,
    last: Instant,
    /// It is gone, and that was counted.
    gone: bool,
}

impl Device {
    fn new(index: u32, now: Instant) -> Self {
        Device { index, kinds: BTreeSet::new(), parent: None, is_used: false, first: now, last: now, gone: false }
    }

    /// Takes in how it is now.
    fn see(&mut self, link: &Link, kinds: BTreeSet<Kind>, by_index: &HashMap<u32, &Link>, now: Instant) {
        let parent = link.lower.filter(|_| link.lower_namespace.is_none());
        self.parent = parent.and_then(|parent| Some((by_index.get(&parent)?.name.clone(), parent)));
        // What carries others of a kind that is watched has more kinds than its own.
        let carries = |above: &&Link| above.lower == Some(link.index) && above.lower_namespace.is_none();
        self.is_used = link.addressed
            || link.master.is_some()
            || kinds.iter().any(|kind| *kind != "vlan")
            || by_index.values().any(carries);
        (self.kinds, self.last) = (kinds, now);
    }

    /// A VLAN on which nothing stands, and whose parent is well: it was made for somebody, and went with him.
    fn went_by_itself(&self, by_name: &HashMap<&str, &Link>) -> bool {
        let is_well = |(name, index): &(String, u32)| {
            by_name.get(name.as_str()).is_some_and(|link| link.index == *index && link.running)
        };
        !self.is_used && self.parent.as_ref().is_some_and(is_well)
    }
}

/// What carries others, or did.
#[derive(Debug, Default)]
pub(super) struct Parents {
    /// Devices that are not watched.
    exclude: Option<Regex>,
    known: BTreeMap<String, Device>,
    /// Interfaces lost since the exporter started; `None` while they could never be read.
    pub(super) lost: Option<u64>,
}

/// What carries others now: numbers of interfaces with what they are.
fn roles<'a>(
    by_index: &HashMap<u32, &Link>,
    pods: impl Iterator<Item = &'a LinkPeer>,
    taken: &Taken,
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
        let Some(below) = by_index.get(&stacked.lower) else { continue };
        if is_on(stacked, below, taken) {
            // Where sysfs does not say what it is (macvlan, and before Linux 6.2 ipvlan), its address does: an ipvlan
            // has that of its parent.
            let by_address = if stacked.address == below.address { "ipvlan_parent" } else { "macvlan_parent" };
            let kind = stacked.devtype.as_deref().map_or(Some(by_address), parent_of);
            kind.into_iter().for_each(|kind| add(stacked.lower, kind));
        }
    }
    roles
}

/// Whether an interface that a pod has is on this one of the machine's. That it names the number proves nothing: it may
/// be of another namespace, which the pod made. What proves it is the machine's: it takes packets for its address. One
/// with the address of what it sits on (ipvlan, VLAN, macvlan in passthru mode) adds none, so there both must be the
/// same, and the lower one of a kind that does not come and go with pods: whoever lies about those, names what is worth
/// to be watched anyway.
fn is_on(stacked: &LinkPeer, below: &Link, taken: &Taken) -> bool {
    const LASTING: [&str; 4] = ["bond", "dummy", "team", "vlan"];
    let Some(address) = stacked.address else { return false };
    let lasting = below.kind.as_deref().is_none_or(|kind| LASTING.contains(&kind));
    taken.get(&below.index).is_some_and(|taken| taken.contains(&address)) || (lasting && below.address == Some(address))
}

/// The interfaces of the machine that those of pods claim to be on.
pub(super) fn claimed<'a>(links: &Links, pods: impl Iterator<Item = &'a LinkPeer>) -> HashSet<u32> {
    let claimed: HashSet<u32> = pods.map(|stacked| stacked.lower).collect();
    links.all.iter().map(|link| link.index).filter(|index| claimed.contains(index)).collect()
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
    /// Nothing is known yet, and devices that match are not watched.
    pub(super) fn without(exclude: Option<Regex>) -> Self {
        Parents { exclude, ..Parents::default() }
    }

    /// Takes in what was read `now`. Gives the state of each, and how many there was no room for. What was there for
    /// the grace period and is gone, or was replaced by another of its name, is lost; what was seen for less time
    /// passed by. `taken`: what the interfaces that pods claim to be on say ([`claimed`]); `None` if that was not to be
    /// had.
    pub(super) fn update<'a>(
        &mut self,
        links: &Links,
        pods: impl Iterator<Item = &'a LinkPeer>,
        taken: Option<&Taken>,
        grace: Duration,
        now: Instant,
    ) -> (States, u64) {
        let mut lost = self.lost.unwrap_or(0);
        let by_index: HashMap<u32, &Link> = links.all.iter().map(|link| (link.index, link)).collect();
        let by_name: HashMap<&str, &Link> = links.all.iter().map(|link| (link.name.as_str(), link)).collect();
        let mut roles = roles(&by_index, pods, taken.unwrap_or(&Taken::new()));
        if let Some(exclude) = &self.exclude {
            roles.retain(|index, _| !exclude.is_match(&by_index[index].name));
        }

        self.known.retain(|name, device| {
            let settled = device.last.duration_since(device.first) >= grace;
            let counts = settled && !device.gone && !device.went_by_itself(&by_name);
            let Some(link) = by_name.get(name.as_str()) else {
                if !links.whole {
                    return true;
                }
                lost += u64::from(counts);
                device.gone |= counts;
                return device.gone;
            };
            lost += u64::from(counts && device.index != link.index);
            (device.index, device.gone) = (link.index, false);
            // It is there; what no longer sits on it went by itself, and is watched by itself.
            match roles.remove(&link.index) {
                Some(kinds) => {
                    device.see(link, kinds, &by_index, now);
                    true
                }
                // Without `taken` it may still carry what a pod has.
                None => taken.is_none(),
            }
        });
        let mut dropped = 0;
        for (index, kinds) in roles {
            if self.known.len() < MOST_DEVICES {
                let link = by_index[&index];
                let mut device = Device::new(index, now);
                device.see(link, kinds, &by_index, now);
                self.known.insert(link.name.clone(), device);
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
