//! Whose network namespace: a socket dump shows that of the asking thread, and nothing tells which one that is but a comparison.

use super::Source;
use crate::error::{Error, Reason, Result};
use crate::host::Host;

/// A network namespace, by the file that stands for it. The numbers mean the same in every pid and mount namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetworkNamespace {
    device: u64,
    inode: u64,
}

impl NetworkNamespace {
    /// The one that this process is in, and of which it can list sockets.
    ///
    /// By `/proc/self` of our own procfs, not of the observed one: that may belong to a pid namespace in which we have no number,
    /// where its `self` leads nowhere.
    ///
    /// # Errors
    /// The operating system's.
    pub fn own() -> Result<Self> {
        Self::at("/proc/self/ns/net")
    }

    fn at(path: &str) -> Result<Self> {
        // Through the link: its text is no path, but a stat of it answers for the namespace.
        let stat = rustix::fs::stat(path).map_err(|errno| Error::os(path, &errno.into()))?;
        Ok(Self::of_stat(&stat))
    }

    pub(in crate::host) fn of_stat(stat: &rustix::fs::Stat) -> Self {
        NetworkNamespace { device: stat.st_dev, inode: stat.st_ino }
    }
}

impl Host {
    /// The network namespace of a process.
    ///
    /// # Errors
    /// Gone if it exited. Denied without `CAP_SYS_PTRACE` if it is another user's or has more capabilities than we.
    pub fn network_namespace_of(&self, pid: u32) -> Result<NetworkNamespace> {
        let path = self.proc(format!("{pid}/ns/net"));
        NetworkNamespace::at(&path.to_string_lossy()).map_err(|error| match error.reason() {
            Reason::Denied => error.context("the network namespace of another user's process takes CAP_SYS_PTRACE"),
            _ => error,
        })
    }

    /// Fails if our network namespace is not the machine's own: we would see our own pod's sockets and call them the node's. `pid`: a
    /// process that is in the machine's, if one is known.
    ///
    /// Without one, pid 1 is asked, and if it lets nobody look (an agent of a hypervisor), the first kernel thread, which
    /// is always in the namespace that the kernel began with.
    ///
    /// # Errors
    /// Denied if it is another one, or cannot be known for want of `CAP_SYS_PTRACE`.
    pub fn in_own_network(&self, pid: Option<u32>) -> Result<()> {
        let kthreadd = || self.read(self.proc("2/comm")).is_ok_and(|comm| comm == "kthreadd\n");
        let answer = match self.shares_network_namespace(pid.unwrap_or(1)) {
            Err(error) if error.reason() == Reason::Denied && kthreadd() => {
                // What it says of itself is worth as much; pid 1 has the better words for what is missing.
                self.shares_network_namespace(2).map_err(|_| error)
            }
            answer => answer,
        };
        match answer {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::new(
                Reason::Denied,
                "this exporter is not in the host's network namespace: it needs hostNetwork: true",
            )),
            // A machine of recorded files, or a process that has just gone: the next look finds out.
            Err(error) if error.is_gone() => Ok(()),
            Err(error) => Err(error.context("is this the host's network namespace?")),
        }
    }

    /// True if that process is in the network namespace of which [`Host::tcp_connections`] and [`Host::unix_sockets`] tell. On a
    /// machine of recorded files the recorded sockets are everybody's.
    ///
    /// # Errors
    /// As [`Host::network_namespace_of`]; absent if there are no recorded sockets.
    pub fn shares_network_namespace(&self, pid: u32) -> Result<bool> {
        match &self.sockets.0 {
            Source::Kernel => Ok(self.network_namespace_of(pid)? == NetworkNamespace::own()?),
            Source::Recorded { .. } => Ok(true),
            Source::None => Err(super::none_recorded()),
        }
    }
}
