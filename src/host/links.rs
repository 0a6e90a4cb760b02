//! The network interfaces of the machine and how they are stacked, by rtnetlink: one `RTM_GETLINK` dump, and where
//! there are VLANs, one of IP addresses (`RTM_GETADDR`).
//!
//! The kernel answers for the network namespace that *we* are in, so it is asked only if that is the machine's
//! ([`Host::shares_network_namespace`]). No capability is needed. Messages are taken apart by the netlink crates; of a
//! message's attributes only the six that are used are looked at, so one of a newer kernel, or of an odd driver, breaks
//! nothing. A machine of recorded files is never asked.
//!
//! The kernel may keep whoever asks waiting, and cannot be interrupted, while a driver holds its one lock for all
//! network configuration: as it does when a network card is taken out of service. So the question is put on a thread of
//! its own.
//!
//! While interfaces come and go, a dump may miss one that was there all the time; the kernel marks such a dump
//! (`NLM_F_DUMP_INTR`). It is then made again, a few times, and if it never succeeds [`Links::whole`] says so.

use std::collections::{HashMap, HashSet};

use netlink_packet_core::{DecodeError, Emitable as _, NlasIterator, parse_string, parse_u32};
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkHeader, LinkMessage};

use super::netlink::{Dump, Progress, Table};
use super::{Deadline, Host};
use crate::error::{Error, Reason, Result};

/// `include/uapi/linux/if_link.h`
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
/// `struct ifinfomsg`
const HEADER: usize = 16;

/// More interfaces than this are not remembered; a node with a thousand pods has a thousand.
const MOST_LINKS: usize = 20_000;
/// `struct ifaddrmsg`
const IP_ADDRESS: usize = 8;
/// `struct ndmsg`
const NEIGHBOUR: usize = 12;
const AF_BRIDGE: u8 = 7;
/// Addresses that are remembered of one interface: a node with a thousand pods has a thousand on one.
const MOST_ADDRESSES: usize = 4096;
/// How often an interrupted dump is made again.
const ATTEMPTS: u32 = 4;

/// A hardware address of Ethernet's.
pub type Mac = [u8; 6];

/// `None` for what is none, and for the one of those that have none.
pub(super) fn mac(bytes: &[u8]) -> Option<Mac> {
    Mac::try_from(bytes).ok().filter(|mac| *mac != Mac::default())
}

/// One network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number in this namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What made it (`vlan`, `bond`, `veth`, …); `None` for hardware, mostly.
    pub kind: Option<String>,
    /// It is switched on and can carry packets: `IFF_RUNNING`, which is operstate up, or unknown for drivers that do
    /// not tell.
    pub running: bool,
    /// The interface that it sits on, or for a veth its other end: its number, in the namespace of `lower_namespace`.
    pub lower: Option<u32>,
    /// The id by which this namespace calls that of `lower`; `None` if it is this one.
    pub lower_namespace: Option<i32>,
    /// The bond, bridge, … that it is a member of.
    pub master: Option<u32>,
    /// Its hardware address.
    pub address: Option<Mac>,
    /// It has an IP address by which the machine is reached there, not only one of the link itself (scopes link and
    /// host). Only told of VLANs.
    pub addressed: bool,
    /// Further addresses that it takes packets for ([`Host::taken_addresses`]), on a recorded machine.
    pub taken: Vec<Mac>,
}

/// The interfaces of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// Each one.
    pub all: Vec<Link>,
    /// False if some may be missing, because interfaces came and went all the time.
    pub whole: bool,
}

/// Who answers for interfaces: the kernel, or a recording, which may be empty-handed.
#[derive(Debug)]
pub(super) enum Source {
    Live,
    Recorded(Option<Vec<Link>>),
}

impl Host {
    /// The same machine, with its interfaces recorded.
    #[must_use]
    pub fn with_links(mut self, links: Vec<Link>) -> Self {
        self.links = Source::Recorded(Some(links));
        self
    }

    /// The interfaces of the machine.
    ///
    /// # Errors
    /// Absent on a machine of recorded files without a recording of this; denied if we are in another network namespace
    /// than the machine's; `timeout` at the deadline; the operating system's.
    pub fn links(&self, deadline: Deadline) -> Result<Links> {
        match &self.links {
            Source::Recorded(Some(links)) => return Ok(Links { all: links.clone(), whole: true }),
            Source::Recorded(None) => return Err(Error::absent("interfaces: not in the recording")),
            Source::Live => {}
        }
        if !self.shares_network_namespace(1)? {
            let what = "interfaces of the machine: this exporter is not in the host's network namespace: it needs hostNetwork: true";
            return Err(Error::new(Reason::Denied, what));
        }
        self.network.run("rtnetlink", deadline, move || {
            let mut links = Links::default();
            for _ in 0..ATTEMPTS {
                links = dump(deadline)?;
                if links.whole {
                    break;
                }
            }
            let is_vlan = |link: &&mut Link| link.kind.as_deref() == Some("vlan");
            if links.all.iter_mut().any(|link| is_vlan(&link)) {
                let addressed = addressed(deadline)?;
                links.all.iter_mut().filter(is_vlan).for_each(|link| link.addressed = addressed.contains(&link.index));
            }
            Ok(links)
        })
    }
}

impl Host {
    /// The addresses that each of these interfaces of the machine takes packets for, beside its own. The kernel adds
    /// one for each macvlan on it that is up, and for a VLAN with an address of its own, in whatever namespace those
    /// are: so it is the word of the machine for what is stacked on it.
    ///
    /// # Errors
    /// As [`Host::links`], which is asked first.
    pub fn taken_addresses(&self, of: HashSet<u32>, deadline: Deadline) -> Result<HashMap<u32, HashSet<Mac>>> {
        if let Source::Recorded(links) = &self.links {
            let links = links.iter().flatten().filter(|link| of.contains(&link.index));
            return Ok(links.map(|link| (link.index, link.taken.iter().copied().collect())).collect());
        }
        self.network.run("addresses of interfaces", deadline, move || {
            let mut taken: HashMap<u32, HashSet<Mac>> = HashMap::new();
            let mut request = vec![0; NEIGHBOUR];
            request[0] = AF_BRIDGE;
            // What a dump that was interrupted misses is there in the next scrape.
            Dump::new(Table::Addresses, "rtnetlink").run(&request, deadline, &mut |payload| {
                if let Some((index, address)) = taken_by(payload).filter(|(index, _)| of.contains(index)) {
                    let addresses = taken.entry(index).or_default();
                    if addresses.len() < MOST_ADDRESSES {
                        addresses.insert(address);
                    }
                }
                Ok(())
            })?;
            Ok(taken)
        })
    }
}

/// An interface, and an address of its own filter. `None` for what a bridge or a tunnel has learned from packets, which
/// anybody can send.
fn taken_by(payload: &[u8]) -> Option<(u32, Mac)> {
    const NTF_SELF: u8 = 2;
    const NUD_PERMANENT: u16 = 0x80;
    const NDA_LLADDR: u16 = 2;
    const NDA_MASTER: u16 = 9;
    let (header, rest) = payload.split_at_checked(NEIGHBOUR)?;
    let state = u16::from_ne_bytes([header[8], header[9]]);
    if header[10] & NTF_SELF == 0 || state & NUD_PERMANENT == 0 {
        return None;
    }
    let mut address = None;
    for (kind, value) in super::netlink::attributes(rest) {
        match kind {
            NDA_LLADDR => address = mac(value),
            NDA_MASTER => return None,
            _ => {}
        }
    }
    Some((u32::from_ne_bytes(header[4..8].try_into().ok()?), address?))
}

/// The interfaces with an IP address of a wider scope than their link.
fn addressed(deadline: Deadline) -> Result<HashSet<u32>> {
    let mut addressed = HashSet::new();
    // Family 0 is every one. What a dump that was interrupted misses is there in the next scrape.
    Dump::new(Table::IpAddresses, "rtnetlink").run(&[0; IP_ADDRESS], deadline, &mut |payload| {
        addressed.extend(addressed_by(payload).filter(|_| addressed.len() < MOST_LINKS));
        Ok(())
    })?;
    Ok(addressed)
}

/// The interface of an address, unless only its own link knows it.
fn addressed_by(payload: &[u8]) -> Option<u32> {
    const RT_SCOPE_LINK: u8 = 253;
    let header = payload.get(..IP_ADDRESS)?;
    (header[3] < RT_SCOPE_LINK).then(|| u32::from_ne_bytes([header[4], header[5], header[6], header[7]]))
}

fn dump(deadline: Deadline) -> Result<Links> {
    let mut links = Links { all: Vec::new(), whole: true };
    let dump = Dump::new(Table::Links, "rtnetlink");
    let progress = dump.run(&request(), deadline, &mut |payload| links.add(payload))?;
    links.whole &= progress == Progress::Done;
    Ok(links)
}

/// Every interface, without its statistics, which are half of an answer.
fn request() -> Vec<u8> {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let mut bytes = vec![0; link.buffer_len()];
    link.emit(&mut bytes);
    bytes
}

impl Links {
    fn add(&mut self, payload: &[u8]) -> Result<()> {
        let link = link(payload).map_err(|error| Error::malformed(format!("rtnetlink: {error}")))?;
        if self.all.len() < MOST_LINKS {
            self.all.push(link);
        } else {
            self.whole = false;
        }
        Ok(())
    }
}

fn link(payload: &[u8]) -> std::result::Result<Link, DecodeError> {
    let header = LinkHeader::parse(payload)?;
    let mut link = Link { index: header.index, running: header.flags.contains(LinkFlags::Running), ..Link::default() };
    for attribute in NlasIterator::new(payload.get(HEADER..).unwrap_or_default()) {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            IFLA_ADDRESS => link.address = mac(value),
            IFLA_IFNAME => link.name = text(value),
            // A device without one below it says its own number, or 0, or nothing.
            IFLA_LINK => link.lower = Some(parse_u32(value)?).filter(|lower| *lower != 0),
            IFLA_LINK_NETNSID => link.lower_namespace = Some(parse_u32(value)? as i32),
            IFLA_MASTER => link.master = Some(parse_u32(value)?),
            IFLA_LINKINFO => {
                for info in NlasIterator::new(value) {
                    let info = info?;
                    if info.kind() == IFLA_INFO_KIND {
                        link.kind = Some(text(info.value()));
                    }
                }
            }
            _ => {}
        }
    }
    if link.lower == Some(link.index) && link.lower_namespace.is_none() {
        link.lower = None;
    }
    Ok(link)
}

/// The kernel's own text, whatever bytes somebody named it with.
fn text(value: &[u8]) -> String {
    parse_string(value)
        .unwrap_or_else(|_| String::from_utf8_lossy(value.strip_suffix(b"\0").unwrap_or(value)).into_owned())
}

#[cfg(test)]
mod tests;
