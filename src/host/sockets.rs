//! The machine's sockets, asked of the kernel by `sock_diag` netlink: no file is read and no system call is made per
//! socket.
//!
//! **Which ones.** A dump lists the sockets of the network namespace of the asking thread. An exporter that is not in
//! the host's (`hostNetwork: true`) would tell its own pod's: [`Host::shares_network_namespace`] finds out.
//!
//! For unix sockets there is one trap more: the socket that a server accepts is made in the network namespace of
//! the *client* (`unix_stream_connect` in net/unix/af_unix.c; tried on 6.18). A pod with a network of its own that
//! connects to containerd's socket through a hostPath volume shows in the pod's dump, on both sides, and never in the
//! host's.
//!
//! **States.** Only established connections are asked for. A connection that its process has closed goes on in
//! FIN-WAIT-1 for minutes if the peer is dead, with inode 0 and nobody's; it is no longer the process's problem and
//! must not look like it.
//!
//! **When a unix client is gone** the server's socket is still there until the server reads from it. The kernel then
//! gives 0 for its peer, which is shown as `None`, and both directions are shut (tried on 6.18).
//!
//! **What one needs** (tried on 6.18 as uid 65534 without any capability): nothing for either dump, other users'
//! sockets and all their TCP information included. [`owners`] takes what [`super::process`] says of reading links in
//! fd: `CAP_DAC_READ_SEARCH` and `CAP_SYS_PTRACE`. The kernel may load its module for this (`tcp_diag`, `unix_diag`) at
//! the first request, as it does for `ss`.
//!
//! **What it costs.** The kernel walks its table of established connections, whose size goes by the memory of the
//! machine and not by the connections in it: see docs/performance.md.

pub mod owners;
mod proc_net_unix;
pub(super) mod tcp;
mod unix;

pub use proc_net_unix::Listed;
pub use tcp::{TcpConnection, TcpInfo, TcpState};
pub use unix::{UnixFile, UnixKind, UnixName, UnixSocket};

use super::{Deadline, Host};
use crate::error::{Error, Result};

/// The file that a machine has at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileAtPath {
    /// As `stat` tells it.
    pub file: UnixFile,
    /// Its device is the one that a socket there is said to be on. Not so on btrfs and overlayfs.
    pub own_device: bool,
}

impl FileAtPath {
    /// True if this socket is bound to it. Where devices do not tell, the path must be the one it was bound to.
    pub fn is_of(&self, socket: &UnixSocket, path: impl AsRef<std::path::Path>) -> bool {
        let (Some(file), path) = (socket.file, path.as_ref()) else { return false };
        let named = || socket.name == Some(UnixName::Path(path.to_owned()));
        file == self.file || (!self.own_device && file.inode == self.file.inode && named())
    }
}

/// Where a machine's sockets are known from.
#[derive(Clone, Debug, Default)]
pub struct Sockets(Source);

#[derive(Clone, Debug, Default)]
enum Source {
    /// The running kernel.
    Kernel,
    /// A fixed list.
    Recorded { tcp: Vec<TcpConnection>, unix: Vec<UnixSocket> },
    /// A machine of recorded files, of which no sockets were recorded.
    #[default]
    None,
}

impl Sockets {
    /// The running kernel's.
    pub(super) fn live() -> Self {
        Sockets(Source::Kernel)
    }

    /// A fixed list, for a machine of recorded files.
    pub fn recorded(tcp: Vec<TcpConnection>, unix: Vec<UnixSocket>) -> Self {
        Sockets(Source::Recorded { tcp, unix })
    }
}

impl Host {
    /// The same machine with these sockets: see [`Sockets::recorded`].
    #[must_use]
    pub fn with_sockets(self, sockets: Sockets) -> Self {
        Host { sockets, ..self }
    }

    /// The established TCP connections to these ports of any peer, in no particular order.
    ///
    /// # Errors
    /// Absent if this kernel has no `tcp_diag`, or nothing was recorded; timeout; busy if the kernel's table would not
    /// hold still; malformed beyond 65,536 connections.
    pub fn tcp_connections(&self, peer_ports: &[u16], deadline: Deadline) -> Result<Vec<TcpConnection>> {
        match &self.sockets.0 {
            Source::Kernel => tcp::connections(peer_ports, deadline),
            Source::Recorded { tcp, .. } => {
                let asked = |connection: &&TcpConnection| {
                    connection.state == TcpState::Established && peer_ports.contains(&connection.peer.port())
                };
                Ok(tcp.iter().filter(asked).cloned().collect())
            }
            Source::None => Err(none_recorded()),
        }
    }

    /// The established TCP connections that have this port on our own side: those that a listener here accepted, or has
    /// still to accept.
    ///
    /// # Errors
    /// As [`Host::tcp_connections`].
    pub fn tcp_connections_of(&self, local_port: u16, deadline: Deadline) -> Result<Vec<TcpConnection>> {
        match &self.sockets.0 {
            Source::Kernel => tcp::accepted(local_port, deadline),
            Source::Recorded { tcp, .. } => {
                let asked = |connection: &&TcpConnection| {
                    connection.state == TcpState::Established && connection.local.port() == local_port
                };
                Ok(tcp.iter().filter(asked).cloned().collect())
            }
            Source::None => Err(none_recorded()),
        }
    }

    /// These TCP connections as they are now, each asked for by itself, which costs a handful much less than a dump.
    /// `None` unless every one of them is still established.
    ///
    /// # Errors
    /// As [`Host::tcp_connections`].
    pub fn tcp_connections_again<'a>(
        &self,
        known: impl IntoIterator<Item = &'a TcpConnection>,
        deadline: Deadline,
    ) -> Result<Option<Vec<TcpConnection>>> {
        match &self.sockets.0 {
            Source::Kernel => tcp::again(known, deadline),
            Source::Recorded { tcp, .. } => {
                let now = |one: &TcpConnection| tcp.iter().find(|other| other.cookie == one.cookie).cloned();
                Ok(known.into_iter().map(now).collect())
            }
            Source::None => Err(none_recorded()),
        }
    }

    /// Every TCP connection in this state, whatever its ports.
    ///
    /// # Errors
    /// As [`Host::tcp_connections`].
    pub fn tcp_connections_in(&self, state: TcpState, deadline: Deadline) -> Result<Vec<TcpConnection>> {
        match &self.sockets.0 {
            Source::Kernel => tcp::all(state, deadline),
            Source::Recorded { tcp, .. } => Ok(tcp.iter().filter(|one| one.state == state).cloned().collect()),
            Source::None => Err(none_recorded()),
        }
    }

    /// The inode numbers of every TCP socket in this state, whatever its ports. Such as no process has any more are
    /// left out.
    ///
    /// # Errors
    /// As [`Host::tcp_connections`], malformed beyond a million.
    pub fn tcp_sockets_in(&self, state: TcpState, deadline: Deadline) -> Result<Vec<u32>> {
        match &self.sockets.0 {
            Source::Kernel => tcp::inodes(state, deadline),
            Source::Recorded { tcp, .. } => {
                Ok(tcp.iter().filter(|one| one.state == state).map(|one| one.inode).collect())
            }
            Source::None => Err(none_recorded()),
        }
    }

    /// The unix sockets that wait for connections: cheap however many others there are.
    ///
    /// # Errors
    /// As [`Host::unix_sockets`].
    pub fn unix_listeners(&self, deadline: Deadline) -> Result<Vec<UnixSocket>> {
        match &self.sockets.0 {
            Source::Kernel => unix::listeners(deadline),
            Source::Recorded { unix, .. } => Ok(unix.iter().filter(|socket| socket.listening).cloned().collect()),
            Source::None => Err(none_recorded()),
        }
    }

    /// The servers' ends of the accepted connections to these listeners, from clients in our network namespace.
    /// Whatever else there is costs time (about 0.4 ms per 1,000 sockets) and no memory: how many sockets were listed
    /// for it is returned, too.
    ///
    /// # Errors
    /// As [`Host::unix_sockets`].
    pub fn unix_served_by(&self, listeners: &[UnixSocket], deadline: Deadline) -> Result<(Vec<UnixSocket>, usize)> {
        match &self.sockets.0 {
            Source::Kernel => unix::served_by(listeners, deadline),
            Source::Recorded { unix, .. } => {
                let served = |socket: &&UnixSocket| listeners.iter().any(|listener| socket.is_served_by(listener));
                Ok((unix.iter().filter(served).cloned().collect(), unix.len()))
            }
            Source::None => Err(none_recorded()),
        }
    }

    /// The file that the machine has at this path, its links followed, as a unix socket would name it. `None` if there
    /// is none.
    ///
    /// # Errors
    /// The operating system's.
    pub fn unix_file(&self, path: impl AsRef<std::path::Path>) -> Result<Option<FileAtPath>> {
        // What these say of a file's device is another number than the kernel's own, which it tells of a socket.
        const SEVERAL_DEVICES: [rustix::fs::FsWord; 2] = [0x9123_683e, 0x794c_7630]; // btrfs, overlayfs
        let handle = match self.handle(path.as_ref()) {
            Err(error) if error.is_gone() => return Ok(None),
            handle => handle?,
        };
        let os = |errno: rustix::io::Errno| Error::os(path.as_ref().display(), &errno.into());
        let stat = rustix::fs::fstat(&handle).map_err(os)?;
        let device = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
        // The kernel tells 32 bits of a socket's.
        let file = UnixFile { device, inode: stat.st_ino as u32 };
        let own_device = rustix::fs::fstatfs(&handle).is_ok_and(|fs| !SEVERAL_DEVICES.contains(&fs.f_type));
        Ok(Some(FileAtPath { file, own_device }))
    }

    /// Every unix socket, in no particular order.
    ///
    /// # Errors
    /// As [`Host::tcp_connections`], with `unix_diag` and 200,000 sockets.
    pub fn unix_sockets(&self, deadline: Deadline) -> Result<Vec<UnixSocket>> {
        match &self.sockets.0 {
            Source::Kernel => unix::sockets(deadline),
            Source::Recorded { unix, .. } => Ok(unix.clone()),
            Source::None => Err(none_recorded()),
        }
    }
}

fn none_recorded() -> Error {
    Error::absent("sockets: none were recorded of this machine")
}

#[cfg(test)]
mod tests;
