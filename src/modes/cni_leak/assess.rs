//! From what was read to numbers, without reading anything.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use super::disk::{Disk, Place, Reservation};
use super::mounts::{Group, Table, Tables, Whose, is_container_id};
use super::networks::Network;
use super::ranges::RangeSet;
use super::{FREE, LEAKED, MOUNTS, NETWORK_INFO, ORPHANED_MOUNTS, USED};
use crate::metric::Samples;
use crate::modes::unknown_to_runtime::UnknownToRuntime;
use crate::runtime::Inventory;

/// Sets of ranges that are shown, those with the least left first.
const MOST_SETS: usize = 12;
/// A set of many ranges has a long name.
const MOST_CHARS: usize = 200;

/// The container runtime's ids.
#[derive(Debug, Default)]
pub(super) struct Known<'a> {
    pods: HashSet<&'a str>,
    /// Sandboxes and containers.
    ids: HashSet<&'a str>,
}

impl<'a> Known<'a> {
    pub(super) fn new(inventory: &'a Inventory) -> Self {
        let (containers, sandboxes) = (&inventory.containers, &inventory.sandboxes);
        let pods = containers.iter().map(|one| &one.pod).chain(sandboxes.iter().map(|one| &one.pod));
        let ids = containers.iter().map(|one| &one.id).chain(sandboxes.iter().map(|one| &one.id));
        Known { pods: pods.map(|pod| pod.uid.as_str()).collect(), ids: ids.map(String::as_str).collect() }
    }

    fn owner(&self, group: Group, owner: &str) -> bool {
        if group == Group::Pods { self.pods.contains(owner) } else { self.ids.contains(owner) }
    }

    /// True if it knows this sandbox or container.
    pub(super) fn id(&self, id: &str) -> bool {
        self.ids.contains(id)
    }
}

/// What may be nobody's, as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// A reservation: a later one of the same address is another sandbox's.
    Address(Place, std::net::IpAddr, String),
    /// The mounts of one pod or container.
    Mounts(Whose, Group, String),
}

/// Networks that pods were seen to have addresses of. Others' reservations are other programs': Podman and nerdctl keep
/// theirs in the same directory, for containers that Kubernetes' runtime does not know.
pub(super) type PodNetworks = HashSet<Place>;

/// Takes note of the networks that are the pods': that of the file that the runtime takes, and those of which a sandbox
/// that it knows has an address.
pub(super) fn note_networks(disk: &Disk, known: &Known<'_>, networks: &mut PodNetworks) {
    networks.retain(|place| !disk.whole || disk.stores.contains_key(place));
    for (place, store) in &disk.stores {
        let first = || disk.networks.iter().any(|network| network.first && of(network) == *place);
        if first() || store.reservations.iter().any(|one| known.id(&one.id)) {
            networks.insert(place.clone());
        }
    }
}

fn of(network: &Network) -> Place {
    (network.data_dir.clone(), network.name.clone())
}

/// False of a reservation of another program than Kubernetes' runtime, whose ids look otherwise. What has no id yet, or
/// never got one because whoever wrote it was killed, is of nobody: nothing will ever take it back.
fn may_be_a_sandboxs(one: &Reservation) -> bool {
    one.id.is_empty() || is_container_id(&one.id)
}

/// All that might be nobody's, known or not.
pub(super) fn keys<'a>(disk: &'a Disk, tables: &'a Tables, networks: &'a PodNetworks) -> impl Iterator<Item = Key> {
    let stores = disk.stores.iter().filter(|(place, _)| networks.contains(*place));
    let addresses = stores.flat_map(|(place, store)| {
        let ours = store.reservations.iter().filter(|one| may_be_a_sandboxs(one));
        ours.map(|one| Key::Address(place.clone(), one.address, one.id.clone()))
    });
    let mounts = tables.of.iter().flat_map(|(whose, table)| {
        table.owners.keys().map(|(group, owner)| Key::Mounts(*whose, *group, owner.clone()))
    });
    addresses.chain(mounts)
}

/// True if the runtime knows it.
pub(super) fn is_known(key: &Key, known: &Known<'_>) -> bool {
    match key {
        Key::Address(_, _, id) => known.id(id),
        Key::Mounts(_, group, owner) => known.owner(*group, owner),
    }
}

/// What is nobody's, for the grace period.
pub(super) struct Leaks<'a> {
    pub(super) memory: &'a UnknownToRuntime<Key>,
    pub(super) networks: &'a PodNetworks,
    pub(super) grace: Duration,
}

/// How many addresses of one set of ranges are what.
struct Row {
    network: String,
    range_set: String,
    used: u64,
    /// `None` if no range is known.
    free: Option<u128>,
    /// `None` if it cannot be told.
    leaked: Option<u64>,
}

/// Addresses, by network and set of ranges.
pub(super) fn addresses(disk: &Disk, leaks: Option<&Leaks<'_>>, samples: &mut Samples) {
    let configured: BTreeMap<Place, &Network> = disk.networks.iter().map(|network| (of(network), network)).collect();
    for network in &disk.networks {
        samples.info(&NETWORK_INFO, &[&network.name, &network.ipam]);
        if let (true, Err(why)) = (network.first, &network.range_sets) {
            samples.note(format!("free addresses of network {} are not known: {why}", network.name));
        }
    }
    let places: std::collections::BTreeSet<&Place> = configured
        .iter()
        .filter(|(_, network)| network.is_host_local())
        .map(|(place, _)| place)
        .chain(disk.stores.keys())
        .collect();
    let mut rows = Vec::new();
    for place in places {
        let none = Vec::new();
        let reservations = disk.stores.get(place).map_or(&none, |store| &*store.reservations);
        let sets = configured.get(place).and_then(|network| network.range_sets.as_deref().ok()).unwrap_or_default();
        let leaked = |one: &&Reservation| {
            let key = || Key::Address(place.clone(), one.address, one.id.clone());
            leaks.is_some_and(|leaks| leaks.memory.reached(&key(), leaks.grace))
        };
        let judged = leaks.is_some_and(|leaks| leaks.networks.contains(place) || reservations.is_empty());
        let row = |set: Option<&RangeSet>, of: Vec<&Reservation>| Row {
            network: place.1.clone(),
            range_set: set.map_or_else(String::new, |set| set.to_string().chars().take(MOST_CHARS).collect()),
            used: of.len() as u64,
            free: set.map(|set| set.size().saturating_sub(of.len() as u128)),
            leaked: judged.then(|| of.iter().filter(|one| leaked(one)).count() as u64),
        };
        let mut rest: Vec<&Reservation> = reservations.iter().collect();
        for set in sets {
            let (within, without) = rest.into_iter().partition(|one| set.hands_out(one.address));
            rest = without;
            rows.push(row(Some(set), within));
        }
        if sets.is_empty() || !rest.is_empty() {
            rows.push(row(None, rest));
        }
    }
    // Nearest its end first; of those whose end is not known the fullest.
    rows.sort_by_key(|row| (row.free.is_none(), row.free, std::cmp::Reverse(row.used)));
    samples.drop_count(rows.len().saturating_sub(MOST_SETS) as u64);
    for row in rows.into_iter().take(MOST_SETS) {
        let labels = [row.network.as_str(), row.range_set.as_str()];
        samples.push(&USED, &labels, row.used as f64);
        samples.push_some(&FREE, &labels, row.free.map(|free| free as f64));
        samples.push_some(&LEAKED, &labels, row.leaked.map(|leaked| leaked as f64));
    }
}

/// Mounts, by namespace and group.
pub(super) fn mounts(tables: &Tables, leaks: Option<&Leaks<'_>>, samples: &mut Samples) {
    for (whose, table) in &tables.of {
        for group in Group::ALL {
            samples.push(&MOUNTS, &[whose.as_str(), group.as_str()], table.count(group) as f64);
        }
        samples.drop_count(table.left_out);
        let Some(leaks) = leaks else { continue };
        for group in Group::OWNED {
            samples.push(
                &ORPHANED_MOUNTS,
                &[whose.as_str(), group.as_str()],
                orphaned(*whose, table, group, leaks) as f64,
            );
        }
    }
}

fn orphaned(whose: Whose, table: &Table, group: Group, leaks: &Leaks<'_>) -> u64 {
    let of_group = table.owners.iter().filter(|((of, _), _)| *of == group);
    let old = |owner: &str| leaks.memory.reached(&Key::Mounts(whose, group, owner.to_owned()), leaks.grace);
    of_group.filter(|((_, owner), _)| old(owner)).map(|(_, count)| count).sum()
}
