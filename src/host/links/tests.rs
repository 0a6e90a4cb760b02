use netlink_packet_core::{DoneMessage, NLM_F_DUMP_INTR, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkInfo};
use serde_json::Value;
use std::time::Duration;

use super::*;
use crate::host::Roots;

/// A dump of 6.18 in a network namespace with a veth pair, a macvlan on one end of it, a bridge with a port whose other
/// end is in another namespace, a vxlan and a tap; and what `ip -json -details link` printed there in the same moment.
const DUMP: &[u8] = include_bytes!("../../../tests/fixtures/pod_interface/links.bin");
const WITNESS: &str = include_str!("../../../tests/fixtures/pod_interface/links.json");

fn all(packet: &[u8]) -> Result<Links> {
    let mut links = Links { all: Vec::new(), whole: true };
    let progress = Dump::new(Table::Links, "rtnetlink").take(packet, &mut |payload| links.add(payload))?;
    links.whole &= progress != Progress::Interrupted;
    Ok(links)
}

/// What `ip` said, in our words.
fn witness(text: &str) -> Vec<Link> {
    let rows: Vec<Value> = serde_json::from_str(text).unwrap();
    let index_of = |name: &Value| rows.iter().find(|row| row["ifname"] == *name).map(|row| number(&row["ifindex"]));
    let has = |row: &Value, flag: &str| row["flags"].as_array().unwrap().iter().any(|one| one == flag);
    rows.iter()
        .map(|row| Link {
            index: number(&row["ifindex"]),
            name: row["ifname"].as_str().unwrap().to_owned(),
            kind: row["linkinfo"]["info_kind"].as_str().map(str::to_owned),
            // `ip` hides RUNNING, and says NO-CARRIER for what is up without it.
            running: has(row, "UP") && !has(row, "NO-CARRIER"),
            lower: row.get("link_index").map(number).or_else(|| index_of(&row["link"])),
            lower_namespace: row.get("link_netnsid").map(|id| id.as_i64().unwrap() as i32),
            master: index_of(&row["master"]),
            address: row["address"].as_str().and_then(address),
            addressed: row["addr_info"].as_array().is_some_and(|all| all.iter().any(|one| one["scope"] == "global")),
            taken: Vec::new(),
        })
        .collect()
}

fn address(text: &str) -> Option<Mac> {
    mac(&text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect::<Vec<u8>>())
}

fn number(value: &Value) -> u32 {
    value.as_u64().unwrap().try_into().unwrap()
}

#[test]
fn a_recorded_dump_is_what_ip_says() {
    let links = all(DUMP).unwrap();
    assert!(links.whole);
    assert_eq!(links.all, witness(WITNESS));
    let mac0 = links.all.iter().find(|link| link.name == "mac0").unwrap();
    assert_eq!((mac0.kind.as_deref(), mac0.lower, mac0.running), (Some("macvlan"), Some(3), true));
}

/// As the kernel would send it; made with the crate's own writer, since the kernel of the tests has neither VLANs nor
/// bonds.
fn message(index: u32, name: &str, kind: InfoKind, attributes: &[LinkAttribute], flags: u16) -> Vec<u8> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up | LinkFlags::Running;
    link.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    link.attributes.extend_from_slice(attributes);
    link.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
    let payload = NetlinkPayload::from(RouteNetlinkMessage::NewLink(link));
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), payload);
    message.header.flags = flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len().next_multiple_of(4)];
    message.serialize(&mut bytes);
    bytes
}

#[test]
fn vlans_and_bonds() {
    let packet = [
        message(4, "eth0", InfoKind::Dummy, &[LinkAttribute::Controller(6)], 0),
        message(5, "eth0.3", InfoKind::Vlan, &[LinkAttribute::Link(4)], 0),
        message(6, "bond4", InfoKind::Bond, &[LinkAttribute::Link(6)], 0),
        message(7, "ipvl", InfoKind::IpVlan, &[LinkAttribute::Link(2), LinkAttribute::LinkNetNsId(0)], 0),
    ];
    let links = all(&packet.concat()).unwrap().all;
    let link = |index, name: &str, kind: &str| Link {
        index,
        name: name.into(),
        kind: Some(kind.into()),
        running: true,
        ..Link::default()
    };
    assert_eq!(links[0], Link { master: Some(6), ..link(4, "eth0", "dummy") });
    assert_eq!(links[1], Link { lower: Some(4), ..link(5, "eth0.3", "vlan") });
    assert_eq!(links[2], link(6, "bond4", "bond"), "its own number means nothing below");
    assert_eq!(links[3], Link { lower: Some(2), lower_namespace: Some(0), ..link(7, "ipvl", "ipvlan") });
}

#[test]
fn an_interrupted_dump_is_not_whole() {
    let end = |flags| {
        let mut message = NetlinkMessage::<RouteNetlinkMessage>::new(
            NetlinkHeader::default(),
            NetlinkPayload::Done(DoneMessage::default()),
        );
        message.header.flags = flags;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    };
    let marked = message(4, "eth0", InfoKind::Dummy, &[], NLM_F_DUMP_INTR);
    let plain = message(4, "eth0", InfoKind::Dummy, &[], 0);
    assert!(!all(&[marked, end(0)].concat()).unwrap().whole);
    assert!(!all(&[plain.clone(), end(NLM_F_DUMP_INTR)].concat()).unwrap().whole);
    assert!(all(&[plain, end(0)].concat()).unwrap().whole);
}

#[test]
fn garbage_is_malformed_and_never_a_panic() {
    let packet = message(4, "eth0", InfoKind::Dummy, &[LinkAttribute::Link(4)], 0);
    for cut in 1..packet.len() {
        assert_eq!(all(&packet[..cut]).unwrap_err().reason(), Reason::Malformed, "{cut} bytes");
    }
    for position in 0..packet.len() {
        for value in [0, 1, 3, 0x7f, 0xff] {
            let mut packet = packet.clone();
            packet[position] = value;
            let _ = all(&packet);
        }
    }
    let mut odd = packet;
    let name = odd.windows(4).position(|window| window == b"eth0").unwrap();
    odd[name] = 0xc3;
    assert_eq!(all(&odd).unwrap().all[0].name, "\u{fffd}th0");
}

#[test]
fn a_refusal_is_an_error_of_the_system() {
    let mut message = NetlinkMessage::<RouteNetlinkMessage>::new(
        NetlinkHeader::default(),
        NetlinkPayload::Error({
            use netlink_packet_core::{ErrorBuffer, ErrorMessage, Parseable as _};
            ErrorMessage::parse(&ErrorBuffer::new(&[&(-1_i32).to_ne_bytes()[..], &[0; 16]].concat())).unwrap()
        }),
    );
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    assert_eq!(all(&bytes).unwrap_err().reason(), Reason::Denied, "EPERM");
}

#[test]
fn this_machine_is_what_ip_says() {
    let host = Host::new(Roots::default());
    if !host.shares_network_namespace(1).unwrap_or(false) {
        assert_eq!(host.links(Deadline::after(Duration::from_secs(10))).unwrap_err().reason(), Reason::Denied);
        return;
    }
    let ip = || std::process::Command::new("ip").args(["-j", "-d", "link"]).output().ok();
    // Other tests make interfaces meanwhile.
    for _ in 0..200 {
        let Some(before) = ip() else { return };
        let links = host.links(Deadline::after(Duration::from_secs(10))).unwrap();
        if links.whole && ip().is_some_and(|after| after.stdout == before.stdout) {
            assert_eq!(links.all, witness(std::str::from_utf8(&before.stdout).unwrap()));
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("interfaces of this machine never hold still");
}

#[test]
fn a_recording_is_not_the_kernel() {
    let host = Host::recorded(Roots::default(), Vec::new());
    let soon = Deadline::after(Duration::from_secs(10));
    assert_eq!(host.links(soon).unwrap_err().reason(), Reason::Absent);
    let eth0 = Link { index: 1, name: "eth0".into(), ..Link::default() };
    assert_eq!(host.with_links(vec![eth0.clone()]).links(soon).unwrap().all, [eth0]);
}
