//! What CNI has left on the disk: configuration, reservations, named network namespaces. Read on a thread of its own,
//! and what has not changed not again.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::networks::{self, MOST, Network};
use super::ranges;
use crate::error::{Error, Result};
use crate::host::rootfs::Tree;
use crate::host::{Deadline, FileVersion, Host};

/// Reservations of one network: all of a /16. More are counted as left out.
const MOST_RESERVATIONS: usize = 70_000;
/// Where `ip netns` and the runtimes name network namespaces (`/var/run` is a link to `/run`, or is not seen here).
const NETNS: &str = "/run/netns";
/// Names in it.
const MOST_NAMES: usize = 100_000;

/// One address that host-local has given away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reservation {
    pub(super) address: IpAddr,
    /// Of the sandbox, as the runtime told host-local; empty while it is being written, or if that was cut off.
    pub(super) id: String,
}

/// A directory of reservations.
#[derive(Clone, Debug)]
pub(super) struct Store {
    version: Option<FileVersion>,
    /// False if there are more.
    whole: bool,
    pub(super) reservations: Arc<Vec<Reservation>>,
}

/// Where a network's reservations are, and its name.
pub(super) type Place = (String, String);

/// Everything that was found.
#[derive(Debug, Default)]
pub(super) struct Disk {
    pub(super) networks: Vec<Network>,
    pub(super) stores: BTreeMap<Place, Store>,
    /// Network namespaces that have a name; `None` where there is no such directory.
    pub(super) named_namespaces: Option<usize>,
    /// False if some were not read.
    pub(super) whole: bool,
    pub(super) errors: Vec<Error>,
}

/// Reads it, with what was found before.
///
/// # Errors
/// Timeout; busy while an earlier reading hangs.
pub(super) fn read(host: &Host, configuration: &[String], before: Disk, deadline: Deadline) -> Result<Disk> {
    let (tree, configuration) = (host.tree(), configuration.to_vec());
    host.bounded("the files of CNI", deadline, move || Ok(look(&tree, &configuration, before, deadline)))
}

fn look(tree: &Tree, configuration: &[String], mut before: Disk, deadline: Deadline) -> Disk {
    let (networks, errors) = networks::read(tree, configuration);
    let mut disk = Disk { networks, errors, whole: true, ..Disk::default() };
    for place in disk.places(tree) {
        let path = format!("{}/{}", place.0, place.1);
        match Store::read(tree, &path, before.stores.remove(&place), deadline) {
            Ok(store) => {
                disk.whole &= store.whole;
                disk.stores.insert(place, store);
            }
            Err(error) if error.is_gone() => {}
            Err(error) => disk.fail(error),
        }
    }
    match tree.names(NETNS, MOST_NAMES) {
        Ok((names, _)) => disk.named_namespaces = Some(names.len()),
        Err(error) if error.is_gone() => {}
        Err(error) => disk.fail(error),
    }
    disk
}

impl Disk {
    fn fail(&mut self, error: Error) {
        self.whole = false;
        self.errors.push(error);
    }

    /// Of each network where its configuration says, and whatever else lies there: what a configuration that is gone
    /// has left, or one that only multus knows.
    fn places(&mut self, tree: &Tree) -> Vec<Place> {
        let host_local = || self.networks.iter().filter(|network| network.is_host_local());
        let mut directories: Vec<String> = host_local().map(|network| network.data_dir.clone()).collect();
        directories.push(networks::DATA_DIR.to_owned());
        directories.sort();
        directories.dedup();
        let mut places: Vec<Place> =
            host_local().map(|network| (network.data_dir.clone(), network.name.clone())).collect();
        for directory in directories {
            let names = match tree.names(&directory, 2 * MOST) {
                Ok((names, _)) => names,
                Err(error) if error.is_gone() => continue,
                Err(error) => {
                    self.fail(error);
                    continue;
                }
            };
            let names = names.into_iter().filter_map(|name| name.into_string().ok()).filter(|name| name.len() <= 128);
            for name in names {
                // What lies in two directories is that of the one that is configured.
                if places.len() < 2 * MOST && !places.iter().any(|(_, other)| *other == name) {
                    places.push((directory.clone(), name));
                }
            }
        }
        places
    }
}

impl Store {
    fn read(tree: &Tree, path: &str, before: Option<Store>, deadline: Deadline) -> Result<Self> {
        let version = before.as_ref().and_then(|before| before.version);
        let files = tree.small_files(path, MOST_RESERVATIONS, version, deadline)?;
        let read = files.map(|files| {
            let mut reservations: Vec<Reservation> = files.files.iter().filter_map(reservation).collect();
            reservations.sort_by_key(|one| one.address);
            Store { version: files.version, whole: files.whole, reservations: Arc::new(reservations) }
        });
        read.or(before).ok_or_else(|| Error::malformed(format!("{path}: not read, and as before")))
    }
}

/// A file that is called by its address; `lock` and `last_reserved_ip.0` are none. The first line is the id of the
/// sandbox, the second the interface in it.
fn reservation((name, text): &(std::ffi::OsString, String)) -> Option<Reservation> {
    let address = ranges::address(name.to_str()?)?;
    let id = text.lines().next().unwrap_or_default().trim();
    let id = id.chars().take(128).collect();
    Some(Reservation { address, id })
}
