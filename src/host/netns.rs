//! Network namespaces, seen through the processes in them: which one it is, and which interfaces it has.
//!
//! `/proc/PID/net/dev` is a file of the namespace that the process is in, and each namespace has its own
//! (`dev_proc_net_init` in net/core/net-procfs.c): its inode number differs from namespace to namespace and is the same
//! for every process in one. So one open file tells both, of the same moment, and anyone may read it (tried on 6.18 as
//! uid 65534 without a capability; a procfs mounted with `hidepid` denies it). `/proc/PID/ns/net` tells the same, but
//! takes `CAP_SYS_PTRACE`.
//!
//! Like every number of a namespace, the inode number is given to a new one once the old is gone.
//!
//! The number by which a mount table, `ls -i /run/netns` and `lsns` call a namespace is another one, that of
//! `/proc/PID/ns/net`. Only whether somebody is in a namespace that is known by its mount is asked that way.

use std::os::unix::fs::MetadataExt as _;

use rustix::io::Errno;

use super::{Host, read};
use crate::error::{Error, Reason, Result};

/// A network namespace of the machine. Two that are alive at the same time differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetworkNamespace {
    device: u64,
    inode: u64,
}

/// What a process sees of the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// The namespace it is in.
    pub namespace: NetworkNamespace,
    /// The names of its interfaces, `lo` included, in the kernel's order.
    pub interfaces: Vec<String>,
}

impl NetworkNamespace {
    /// Of a `net/dev`.
    pub(super) fn of(stat: &rustix::fs::Stat) -> Self {
        NetworkNamespace { device: stat.st_dev, inode: stat.st_ino }
    }
}

impl Host {
    /// The network namespace of a process.
    ///
    /// # Errors
    /// The operating system's; gone if the process exited.
    pub fn network_namespace_of(&self, pid: u32) -> Result<NetworkNamespace> {
        self.open_net_dev(&pid.to_string()).map(|(namespace, _)| namespace)
    }

    /// The network namespace of a process and the interfaces in it; `None`, and nothing is read, if it is this one: the
    /// machine's own may have a thousand interfaces.
    ///
    /// # Errors
    /// The operating system's; gone if the process exited; malformed beyond 4 MiB.
    pub fn network_outside(&self, namespace: NetworkNamespace, pid: u32) -> Result<Option<Network>> {
        let process = pid.to_string();
        let (found, file) = self.open_net_dev(&process)?;
        if found == namespace {
            return Ok(None);
        }
        let text = read::contents(file).map_err(|error| self.net_dev_error(&process, &error))?;
        Ok(Some(Network { namespace: found, interfaces: interfaces(&text).map(str::to_owned).collect() }))
    }

    /// The network namespace that we are in, and of which sockets and interfaces can be listed. We know ourselves by
    /// `self` of the observed procfs, in which the machine's has a number for everybody.
    ///
    /// # Errors
    /// Absent on a folder of recorded files.
    pub fn own_network_namespace(&self) -> Result<NetworkNamespace> {
        self.open_net_dev("self").map(|(namespace, _)| namespace)
    }

    /// Fails if our network namespace is not the machine's own: we would see our own pod's sockets and call them the
    /// node's. `pid`: a process that is in the machine's, if one is known; without one, the machine's first.
    ///
    /// # Errors
    /// Denied if it is another one; the operating system's if that cannot be known.
    pub fn in_own_network(&self, pid: Option<u32>) -> Result<()> {
        match self.shares_network_namespace(pid.unwrap_or(1)) {
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

    /// True if we are in the network namespace of this process: of the machine's first one, or of the kubelet, what the
    /// kernel tells us of interfaces and sockets is then the machine's.
    ///
    /// # Errors
    /// Absent if there is no such file (a folder of recorded files), or the operating system's; gone if the process
    /// exited.
    pub fn shares_network_namespace(&self, pid: u32) -> Result<bool> {
        Ok(self.network_namespace_of(pid)? == self.own_network_namespace()?)
    }

    fn open_net_dev(&self, process: &str) -> Result<(NetworkNamespace, std::fs::File)> {
        let open = || -> std::io::Result<_> {
            let file = std::fs::File::open(self.proc(format!("{process}/net/dev")))?;
            let metadata = file.metadata()?;
            Ok((NetworkNamespace { device: metadata.dev(), inode: metadata.ino() }, file))
        };
        open().map_err(|error| self.net_dev_error(process, &error))
    }

    fn net_dev_error(&self, process: &str, error: &std::io::Error) -> Error {
        let place = self.proc(format!("{process}/net/dev"));
        match Errno::from_io_error(error) {
            // A process that is exiting has left its namespace before it leaves procfs.
            Some(Errno::NXIO | Errno::INVAL) => Error::new(Reason::Vanished, format!("{}: {error}", place.display())),
            _ => Error::os(place.display(), error),
        }
    }
}

/// The names in a `net/dev`: behind two lines of headings, each line begins with one and a colon, which no name may
/// hold.
fn interfaces(text: &str) -> impl Iterator<Item = &str> {
    text.lines().skip(2).filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Roots;

    macro_rules! fixture {
        ($path:literal) => {
            include_str!(concat!("../../tests/fixtures/node/", $path))
        };
    }

    #[test]
    fn names_of_recorded_files() {
        let names = |text: &'static str| interfaces(text).collect::<Vec<_>>();
        assert_eq!(names(fixture!("k8s-1.36-cgroupv1/proc/pause/net-dev.txt")), ["lo", "eth0"]);
        let host = names(fixture!("k8s-1.36-cgroupv2/proc/host/net-dev.txt"));
        assert!(host.contains(&"tbr0") && host.contains(&"veth1031a24d") && host.len() > 10, "{host:?}");
        assert_eq!(names("Inter-|\n face |\n  a.b-c:1 2\nnonsense\n"), ["a.b-c"]);
        assert!(names("").is_empty());
    }

    #[test]
    fn our_own_namespace_is_the_one_that_ns_net_says() {
        let host = Host::new(Roots::default());
        let me = std::process::id();
        let ours = host.network_namespace_of(me).unwrap();
        assert_eq!(host.network_outside(ours, me).unwrap(), None);
        let none = NetworkNamespace { device: 0, inode: 0 };
        let network = host.network_outside(none, me).unwrap().unwrap();
        assert_eq!(network.namespace, ours);
        assert!(network.interfaces.contains(&"lo".to_owned()));
        let link = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net"));
        if let (Ok(machine), Ok(ours)) = (link("1"), link("self")) {
            assert_eq!(host.shares_network_namespace(1).unwrap(), machine == ours);
        }
        assert!(host.network_namespace_of(u32::MAX / 2).unwrap_err().is_gone());
    }

    #[test]
    fn a_folder_of_recorded_files_is_no_machine_to_share_with() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(Roots { proc: dir.path().into(), ..Roots::default() });
        assert_eq!(host.shares_network_namespace(1).unwrap_err().reason(), Reason::Absent);
    }
}
