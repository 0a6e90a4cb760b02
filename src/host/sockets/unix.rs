//! Unix sockets: `unix_diag`.

use std::cell::Cell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use netlink_packet_core::{Emitable as _, Parseable as _};
use netlink_packet_sock_diag::unix::{ShowFlags, StateFlags, UnixRequest, UnixResponseHeader};
use netlink_packet_sock_diag::{
    TCP_ESTABLISHED, TCP_LISTEN, UNIX_DIAG_NAME, UNIX_DIAG_PEER, UNIX_DIAG_RQLEN, UNIX_DIAG_SHUTDOWN, UNIX_DIAG_VFS,
};

use super::super::netlink::{self, Table};
use crate::error::{Error, Result};
use crate::host::Deadline;

/// More than this many are an error, not a list that takes our memory.
const MOST: usize = 200_000;

/// `struct unix_diag_msg` of include/uapi/linux/unix_diag.h; attributes follow.
const RESPONSE: usize = 16;

/// How a unix socket transports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UnixKind {
    /// `SOCK_STREAM`: what container runtimes listen on.
    Stream,
    /// `SOCK_DGRAM`
    Datagram,
    /// `SOCK_SEQPACKET`
    SequentialPackets,
    /// None that we know.
    Other,
}

/// What a unix socket is bound to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UnixName {
    /// A path, letter by letter as it was given to `bind(2)`: in the mount namespace of whoever bound it, through links
    /// such as `/var/run`, and perhaps relative. [`UnixSocket::file`] says which file it is whatever the path.
    Path(PathBuf),
    /// A name in the abstract namespace, without its leading zero byte.
    Abstract(Vec<u8>),
}

/// The file that a socket is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixFile {
    /// Major and minor number of its file system.
    pub device: (u32, u32),
    /// Its inode number, of which the kernel tells 32 bits.
    pub inode: u32,
}

/// One unix socket of the network namespace that we are in. An accepted one has the name and the file of the listener;
/// a client that bound itself to nothing has neither.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixSocket {
    /// Of the socket's file. A server's end that was not accepted yet has none, and a dump leaves it out.
    pub inode: u32,
    /// Names this socket as long as the kernel runs; an inode number may be used again.
    pub cookie: u64,
    /// The inode of the other end. `None` if it is not connected or the other end was closed: on a server's side that
    /// is how one sees that the client is gone and the server has not noticed.
    pub peer: Option<u32>,
    /// Both directions are shut, as they are when the other end of a stream was closed. Tells a socket that had a peer
    /// from one that never had.
    pub shut: bool,
    /// It waits for connections.
    pub listening: bool,
    /// How it transports.
    pub kind: UnixKind,
    /// What it is bound to.
    pub name: Option<UnixName>,
    /// Which file that is, while there is one. It can be unlinked.
    pub file: Option<UnixFile>,
    /// Unread bytes; of a listening one, connections that wait to be accepted.
    pub receive_queue: Option<u32>,
    /// Bytes that the other end has not read; of a listening one, how many connections may wait.
    pub send_queue: Option<u32>,
}

impl UnixSocket {
    /// True if this is the server's end of a connection to that listener: it has the listener's file, which nobody can
    /// bind a second socket to. A name proves nothing: anyone may bind a socket to that path in a mount namespace of
    /// its own. Only where neither has a file (the abstract namespace) a name is as unique.
    pub fn is_served_by(&self, listener: &UnixSocket) -> bool {
        let same = self.file == listener.file && (self.file.is_some() || self.name == listener.name);
        !self.listening && self.kind == listener.kind && same
    }
}

/// Every state: a socket that is not connected is in none that has a name here.
pub(super) const EVERY_STATE: u32 = u32::MAX;

pub(super) fn sockets(deadline: Deadline) -> Result<Vec<UnixSocket>> {
    netlink::sockets(Table::Sockets, "sock_diag: unix sockets", &request(EVERY_STATE), deadline, MOST, |payload| {
        parse(payload).map(Some)
    })
}

/// The kernel leaves out the others before it writes anything.
pub(super) fn listeners(deadline: Deadline) -> Result<Vec<UnixSocket>> {
    let request = request(1 << TCP_LISTEN);
    netlink::sockets(Table::Sockets, "sock_diag: listening unix sockets", &request, deadline, MOST, |payload| {
        parse(payload).map(Some)
    })
}

/// What is not kept costs its part of the dump and no memory. Returns how many were listed, too.
pub(super) fn served_by(listeners: &[UnixSocket], deadline: Deadline) -> Result<(Vec<UnixSocket>, usize)> {
    let (request, all) = (request(1 << TCP_ESTABLISHED), Cell::new(0));
    let served =
        netlink::sockets(Table::Sockets, "sock_diag: unix connections", &request, deadline, MOST, |payload| {
            all.set(all.get() + 1);
            let socket = parse(payload)?;
            // Most are clients and pairs, which have no name.
            let named = socket.name.is_some();
            Ok((named && listeners.iter().any(|listener| socket.is_served_by(listener))).then_some(socket))
        })?;
    Ok((served, all.get()))
}

pub(super) fn request(states: u32) -> Vec<u8> {
    let request = UnixRequest {
        state_flags: StateFlags::from_bits_retain(states),
        inode: 0,
        show_flags: ShowFlags::NAME | ShowFlags::VFS | ShowFlags::PEER | ShowFlags::RQLEN,
        cookie: [0xff; 8],
    };
    let mut bytes = vec![0; request.buffer_len()];
    request.emit(&mut bytes);
    bytes
}

pub(super) fn parse(payload: &[u8]) -> Result<UnixSocket> {
    /// `SHUT_RD` and `SHUT_WR`, one bit each.
    const BOTH: u8 = 3;
    let header = UnixResponseHeader::parse(payload)
        .map_err(|error| Error::malformed(format!("sock_diag: a unix_diag_msg: {error}")))?;
    let mut socket = UnixSocket {
        inode: header.inode,
        cookie: netlink::cookie(header.cookie),
        peer: None,
        shut: false,
        listening: header.state == TCP_LISTEN,
        kind: match header.kind {
            1 => UnixKind::Stream,
            2 => UnixKind::Datagram,
            5 => UnixKind::SequentialPackets,
            _ => UnixKind::Other,
        },
        name: None,
        file: None,
        receive_queue: None,
        send_queue: None,
    };
    for (kind, value) in netlink::attributes(payload.get(RESPONSE..).unwrap_or_default()) {
        match kind {
            UNIX_DIAG_NAME => socket.name = name(value),
            UNIX_DIAG_VFS => socket.file = file(value),
            // 0: the other end was closed.
            UNIX_DIAG_PEER => socket.peer = netlink::number(value, 0).filter(|&inode| inode != 0),
            UNIX_DIAG_SHUTDOWN => socket.shut = value.first().is_some_and(|&shut| shut & BOTH == BOTH),
            UNIX_DIAG_RQLEN => {
                (socket.receive_queue, socket.send_queue) = (netlink::number(value, 0), netlink::number(value, 4));
            }
            _ => {}
        }
    }
    Ok(socket)
}

fn name(value: &[u8]) -> Option<UnixName> {
    match value {
        [] => None,
        [0, name @ ..] => Some(UnixName::Abstract(name.to_vec())),
        path => {
            // It ends with a zero byte, unless it fills the 108 bytes of its address.
            let path = path.split(|&byte| byte == 0).next().unwrap_or_default();
            Some(UnixName::Path(OsStr::from_bytes(path).into()))
        }
    }
}

/// `struct unix_diag_vfs`: the inode, then the device as the kernel numbers it inside (20 bits of minor).
fn file(value: &[u8]) -> Option<UnixFile> {
    let (inode, device) = (netlink::number(value, 0)?, netlink::number(value, 4)?);
    Some(UnixFile { device: (device >> 20, device & 0xf_ffff), inode })
}
