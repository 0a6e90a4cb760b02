//! TCP connections: `tcp_diag` and `struct tcp_info`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use netlink_packet_core::{Emitable as _, Parseable as _};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags};
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, INET_DIAG_INFO, IPPROTO_TCP, TCP_CLOSE_WAIT, TCP_ESTABLISHED, TCP_SYN_SENT,
};

use super::super::netlink::{self, Table};
use crate::error::{Error, Reason, Result};
use crate::host::Deadline;

/// More than this many matching connections are an error, not a list that takes our memory.
const MOST: usize = 65_536;
/// The same of inode numbers, of which each takes four bytes.
const MOST_INODES: usize = 1_000_000;

/// `struct inet_diag_msg` of include/uapi/linux/inet_diag.h; attributes follow.
const RESPONSE: usize = 72;

/// Where a TCP connection is in its life: of the states those that we ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpState {
    /// Asked for, and not answered yet.
    SynSent,
    /// Both sides may send.
    Established,
    /// The peer has closed its side, and our process has not yet closed its own.
    CloseWait,
}

impl TcpState {
    fn of(number: u8) -> Option<Self> {
        match number {
            TCP_SYN_SENT => Some(TcpState::SynSent),
            TCP_ESTABLISHED => Some(TcpState::Established),
            TCP_CLOSE_WAIT => Some(TcpState::CloseWait),
            _ => None,
        }
    }

    /// What is told of such sockets beside their addresses: of others than established ones nothing is wanted.
    fn extensions(self) -> ExtensionFlags {
        match self {
            TcpState::Established => ExtensionFlags::INFO,
            TcpState::SynSent | TcpState::CloseWait => ExtensionFlags::empty(),
        }
    }

    fn flags(self) -> StateFlags {
        match self {
            TcpState::SynSent => StateFlags::SYN_SENT,
            TcpState::Established => StateFlags::ESTABLISHED,
            TcpState::CloseWait => StateFlags::CLOSE_WAIT,
        }
    }
}

/// One TCP connection of the network namespace that we are in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpConnection {
    /// Where it is in its life.
    pub state: TcpState,
    /// Our machine's side. The address of a socket that is IPv6 and talks IPv4 (v4-mapped) is shown as IPv4.
    pub local: SocketAddr,
    /// The other side.
    pub peer: SocketAddr,
    /// Of the socket's file. 0 if it has none: it was not accepted yet, or belongs to MPTCP inside the kernel.
    pub inode: u32,
    /// Names this socket as long as the kernel runs; an inode number may be used again.
    pub cookie: u64,
    /// Who opened it.
    pub uid: u32,
    /// Written by the process and not yet acknowledged by the peer, sent or not (`idiag_wqueue`).
    pub send_queue_bytes: u32,
    /// Received and not yet read by the process.
    pub receive_queue_bytes: u32,
    /// What TCP knows of it; `None` if the kernel told nothing.
    pub info: Option<TcpInfo>,
}

/// `struct tcp_info` of include/uapi/linux/tcp.h, as far as it was of use. It grew at its end over the years: a field
/// that the running kernel does not have is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpInfo {
    /// Smoothed round-trip time. It keeps its last value on a dead connection. `None` if none was measured yet (the
    /// kernel's own mark for that is 0).
    pub rtt: Option<Duration>,
    /// Its mean deviation; `None` with it.
    pub rtt_variance: Option<Duration>,
    /// The smallest round-trip time of late; the kernel forgets it after five minutes (`tcp_min_rtt_wlen`). Linux ≥
    /// 4.6.
    pub min_rtt: Option<Duration>,
    /// When the next retransmission is due, counted from the last; doubled by each.
    pub rto: Duration,
    /// Segments sent again in the life of this connection (`tcpi_total_retrans`); none that our own packet filter
    /// dropped.
    pub retransmitted_segments: u32,
    /// Segments sent and not yet acknowledged. What our own machine's packet filter drops on its way out was never
    /// sent: then this is 0, while the send queue is not and the backoff grows (tried on 6.18).
    pub unacked_segments: u32,
    /// Timeouts in a row without any acknowledgement; 0 again after one.
    pub retransmits: u8,
    /// How often the timeout was doubled since the last acknowledgement.
    pub backoff: u8,
    /// Keep-alive or zero-window probes sent and not answered.
    pub probes: u8,
    /// Since any segment with an acknowledgement came in, be it an old one: a peer that sends its own data again,
    /// because *our* acknowledgements are lost, keeps this young although nothing of ours arrives.
    /// [`TcpInfo::bytes_acked`] does not move then.
    pub last_ack_received: Duration,
    /// Since data was last sent; since the handshake if there was none.
    pub last_data_sent: Duration,
    /// Since data last came in; since the handshake if there was none.
    pub last_data_received: Duration,
    /// Acknowledged by the peer in the life of this connection. Linux ≥ 4.1.
    pub bytes_acked: Option<u64>,
    /// Received in the life of this connection. Linux ≥ 4.1.
    pub bytes_received: Option<u64>,
    /// Of the send queue, what was not even sent once. Linux ≥ 4.6.
    pub unsent_bytes: Option<u32>,
    /// How long data was outstanding in the life of this connection. Linux ≥ 4.10.
    pub busy: Option<Duration>,
}

impl TcpInfo {
    /// Reads the bytes that the kernel sent. `None` if they end before `tcpi_total_retrans`, which Linux 2.6 had
    /// already.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let number = |offset| netlink::number(bytes, offset);
        let micros = |offset| number(offset).map(u64::from).map(Duration::from_micros);
        let millis = |offset| number(offset).map(u64::from).map(Duration::from_millis);
        let rtt = micros(68)?;
        let measured = !rtt.is_zero();
        Some(TcpInfo {
            rtt: measured.then_some(rtt),
            rtt_variance: micros(72).filter(|_| measured),
            // All ones: none was measured in the window.
            min_rtt: number(148).filter(|&micros| micros != u32::MAX).map(|us| Duration::from_micros(us.into())),
            rto: micros(8)?,
            retransmitted_segments: number(100)?,
            unacked_segments: number(24)?,
            retransmits: *bytes.get(2)?,
            probes: *bytes.get(3)?,
            backoff: *bytes.get(4)?,
            last_data_sent: millis(44)?,
            last_data_received: millis(52)?,
            last_ack_received: millis(56)?,
            bytes_acked: netlink::long(bytes, 120),
            bytes_received: netlink::long(bytes, 128),
            unsent_bytes: number(144),
            busy: netlink::long(bytes, 168).map(Duration::from_micros),
        })
    }
}

/// The ports of the sockets that are asked for. `inet_diag_dump_icsk` in net/ipv4/inet_diag.c compares them in a dump,
/// too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::host) enum Ports {
    /// This one of the peer.
    Peer(u16),
    /// This one of our own machine.
    Local(u16),
    /// Whichever.
    Any,
}

/// The established connections to these ports of whichever peers: one dump per port, filtered by the kernel.
///
/// A byte code could ask for several ports at once, but there are one or two, and an empty walk of the table takes well
/// below a millisecond.
pub(super) fn connections(peer_ports: &[u16], deadline: Deadline) -> Result<Vec<TcpConnection>> {
    let mut ports = peer_ports.to_vec();
    ports.sort_unstable();
    ports.dedup();
    let mut connections = Vec::new();
    // Port 0 would be no filter at all, and no peer has it.
    for port in ports.into_iter().filter(|&port| port != 0) {
        let most = MOST - connections.len();
        connections.extend(in_state(Ports::Peer(port), TcpState::Established, most, deadline)?);
    }
    Ok(connections)
}

/// The established connections of this port of our own.
pub(super) fn accepted(local_port: u16, deadline: Deadline) -> Result<Vec<TcpConnection>> {
    if local_port == 0 {
        Ok(Vec::new())
    } else {
        in_state(Ports::Local(local_port), TcpState::Established, MOST, deadline)
    }
}

/// These connections as they are now; `None` unless every one is still established. The kernel finds each by its
/// addresses and holds its cookie against it (`inet_diag_find_one_icsk` in net/ipv4/inet_diag.c).
pub(super) fn again<'a>(
    known: impl IntoIterator<Item = &'a TcpConnection>,
    deadline: Deadline,
) -> Result<Option<Vec<TcpConnection>>> {
    let requests = known.into_iter().map(|connection| {
        let [(source, source_port), (destination, destination_port)] =
            [connection.local, connection.peer].map(|address| (address.ip(), address.port()));
        let id = if connection.local.is_ipv4() { SocketId::new_v4() } else { SocketId::new_v6() };
        let cookie = netlink::cookie_bytes(connection.cookie);
        emit(InetRequest {
            family: if connection.local.is_ipv4() { AF_INET } else { AF_INET6 },
            protocol: IPPROTO_TCP,
            extensions: TcpState::Established.extensions(),
            states: TcpState::Established.flags(),
            socket_id: SocketId {
                source_port,
                destination_port,
                source_address: source,
                destination_address: destination,
                cookie,
                ..id
            },
        })
    });
    let found = netlink::single_sockets("sock_diag: a known connection", requests, deadline, parse)?;
    let established = |one: Option<TcpConnection>| one.filter(|one| one.state == TcpState::Established);
    Ok(found.into_iter().map(established).collect())
}

/// All connections in this state.
pub(super) fn all(state: TcpState, deadline: Deadline) -> Result<Vec<TcpConnection>> {
    in_state(Ports::Any, state, MOST, deadline)
}

fn in_state(ports: Ports, state: TcpState, most: usize, deadline: Deadline) -> Result<Vec<TcpConnection>> {
    dump(ports, state, most, deadline, Some)
}

/// The inode numbers of all sockets in this state: nothing else of them is kept, so there may be very many.
pub(super) fn inodes(state: TcpState, deadline: Deadline) -> Result<Vec<u32>> {
    dump(Ports::Any, state, MOST_INODES, deadline, |socket| Some(socket.inode).filter(|inode| *inode != 0))
}

/// What `of` makes of the sockets of both families. The kernel walks its table once for each dump, and that is what a
/// dump costs. The request that it keeps for programs of before 2012 (`TCPDIAG_GETSOCK`) names no family, so that one
/// walk is enough. A kernel that has it no more is asked for each family.
fn dump<T>(
    ports: Ports,
    state: TcpState,
    most: usize,
    deadline: Deadline,
    of: impl Fn(TcpConnection) -> Option<T>,
) -> Result<Vec<T>> {
    let what = match ports {
        Ports::Peer(port) => format!("connections to port {port}"),
        Ports::Local(port) => format!("connections of port {port}"),
        Ports::Any => format!("sockets in {state:?}"),
    };
    let read = |payload: &[u8]| Ok(parse(payload)?.filter(|socket| socket.state == state).and_then(&of));
    let what_of_both = format!("sock_diag: {what}");
    let both = netlink::sockets(Table::TcpSockets, &what_of_both, &of_both(ports, state), deadline, most, read);
    match both {
        Err(error) if matches!(error.reason(), Reason::Absent | Reason::Io) => {}
        both => return both,
    }
    let mut sockets = Vec::new();
    for (family, name) in [(AF_INET, "IPv4"), (AF_INET6, "IPv6")] {
        let (what, request) = (format!("sock_diag: {name} {what}"), request(family, ports, state));
        sockets.extend(netlink::sockets(Table::Sockets, &what, &request, deadline, most - sockets.len(), read)?);
    }
    Ok(sockets)
}

/// The older request for the same, `struct inet_diag_req` of include/uapi/linux/inet_diag.h: the kernel does not look
/// at the family in it (`inet_diag_dump_compat` in net/ipv4/inet_diag.c).
pub(in crate::host) fn of_both(ports: Ports, state: TcpState) -> Vec<u8> {
    let newer = request(AF_INET, ports, state);
    let (extensions, states, socket_id) = (newer[2], &newer[4..8], &newer[8..]);
    [&[AF_INET, 0, 0, extensions], socket_id, states, &[0; 4]].concat()
}

pub(in crate::host) fn request(family: u8, ports: Ports, state: TcpState) -> Vec<u8> {
    // Port 0 is no filter.
    let (source_port, destination_port) = match ports {
        Ports::Peer(port) => (0, port),
        Ports::Local(port) => (port, 0),
        Ports::Any => (0, 0),
    };
    let id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    emit(InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: state.extensions(),
        states: state.flags(),
        socket_id: SocketId { source_port, destination_port, cookie: [0xff; 8], ..id },
    })
}

fn emit(request: InetRequest) -> Vec<u8> {
    let mut bytes = vec![0; request.buffer_len()];
    request.emit(&mut bytes);
    bytes
}

/// One reply; `None` if it is in no state that we know.
pub(super) fn parse(payload: &[u8]) -> Result<Option<TcpConnection>> {
    let header = InetResponseHeader::parse(payload)
        .map_err(|error| Error::malformed(format!("sock_diag: an inet_diag_msg: {error}")))?;
    let Some(state) = TcpState::of(header.state) else { return Ok(None) };
    let id = &header.socket_id;
    let address = |ip: IpAddr, port| SocketAddr::new(ip.to_canonical(), port);
    let attributes = payload.get(RESPONSE..).unwrap_or_default();
    let info = netlink::attributes(attributes).find(|(kind, _)| *kind == INET_DIAG_INFO);
    Ok(Some(TcpConnection {
        state,
        local: address(id.source_address, id.source_port),
        peer: address(id.destination_address, id.destination_port),
        inode: header.inode,
        cookie: netlink::cookie(id.cookie),
        uid: header.uid,
        send_queue_bytes: header.send_queue,
        receive_queue_bytes: header.recv_queue,
        info: info.and_then(|(_, bytes)| TcpInfo::parse(bytes)),
    }))
}
