//! The machine that is read: three roots, and the only place that touches the file system and asks the kernel.
//!
//! [`Host`] holds where procfs, sysfs and the root file system of the *observed* machine are mounted. On the machine
//! itself these are `/proc`, `/sys` and `/`; in a pod they are the host's, mounted somewhere; in a test they are
//! folders of recorded files. Everything above this module asks a `Host` and never a path of its own, so the same code
//! runs in all three. Nothing here knows Kubernetes, and nothing here writes.
#![allow(clippy::disallowed_methods, reason = "this is the one module that may touch the file system")]

mod bounded_call;
pub mod cgroup;
mod deadline;
mod ext4;
mod file_version;
pub mod filesystem;
pub mod iflink;
pub mod links;
pub mod mount_table;
mod netlink;
pub mod netns;
mod pid_namespace;
pub mod pids;
pub mod process;
mod read;
pub mod rootfs;
pub mod single_flight;
pub mod sockets;
pub mod text;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use crate::error::{Error, Reason, Result};
use cgroup::vantage::Vantage;
pub use deadline::{CallBudget, Deadline};
pub use file_version::FileVersion;
use filesystem::{DeviceNumber, Filesystem, Filesystems, MountView, Usage};
use rootfs::Tree;
use single_flight::SingleFlight;
use sockets::Sockets;

/// The kernel of the observed machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// As `uname -r` prints it: `6.1.0-56-amd64`.
    pub release: String,
    /// Major and minor version: `(6, 1)`.
    pub version: (u32, u32),
}

impl Kernel {
    /// Parses a release string as in `/proc/sys/kernel/osrelease`.
    pub fn parse(release: &str) -> Option<Self> {
        let release = release.trim();
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        let major = numbers.next()?.parse().ok()?;
        let minor = numbers.next()?.parse().ok()?;
        Some(Kernel { release: release.to_owned(), version: (major, minor) })
    }
}

/// Where the observed machine's file systems are mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    /// Its procfs (`--path.procfs`).
    pub proc: PathBuf,
    /// Its sysfs, cgroup file systems included (`--path.sysfs`).
    pub sys: PathBuf,
    /// Its root file system (`--path.rootfs`).
    pub root: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Roots { proc: "/proc".into(), sys: "/sys".into(), root: "/".into() }
    }
}

/// The observed machine.
pub struct Host {
    roots: Roots,
    filesystems: Filesystems,
    sockets: Sockets,
    links: links::Source,
    /// Questions about interfaces that the kernel may keep us waiting for.
    network: bounded_call::Guard,
    /// Looking at what containers have made, who may keep us waiting: whoever does must not use up the others' threads.
    containers: bounded_call::Guard,
    /// Reading of files that may lie on a file system that hangs.
    files: bounded_call::Guard,
    /// Reading of what processes can keep from us. Apart from files: stuck processes must not use up their threads.
    processes: bounded_call::Guard,
    listing: SingleFlight<Result<Arc<[u32]>>>,
    vantage: Arc<Vantage>,
    in_a_pod: bool,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("roots", &self.roots).finish_non_exhaustive()
    }
}

impl Host {
    /// A machine with its file systems at these roots.
    pub fn new(roots: Roots) -> Self {
        Host::with(roots, Filesystems::live(), links::Source::Live, Sockets::live())
    }

    fn with(roots: Roots, filesystems: Filesystems, links: links::Source, sockets: Sockets) -> Self {
        Host {
            vantage: Arc::new(Vantage::new(roots.clone())),
            roots,
            filesystems,
            links,
            network: bounded_call::Guard::default(),
            containers: bounded_call::Guard::default(),
            files: bounded_call::Guard::default(),
            processes: bounded_call::Guard::default(),
            sockets,
            listing: SingleFlight::default(),
            in_a_pod: false,
        }
    }

    /// Says whether we run in a container of Kubernetes, where process 1 may be one of the same pod.
    #[must_use]
    pub fn in_a_pod(mut self, so: bool) -> Self {
        self.in_a_pod = so;
        self
    }

    /// A machine whose `statfs` answers were recorded: what a test on recorded files uses, since a folder of fixtures
    /// has the sizes of the disk it lies on. `recorded` maps a path on the observed machine to its file system; a path
    /// that is not listed is on the file system of its nearest listed parent. Its interfaces and sockets are not known
    /// either, unless they are added ([`Host::with_links`], [`Host::with_sockets`]).
    pub fn recorded(roots: Roots, recorded: Vec<(PathBuf, Filesystem)>) -> Self {
        Host::with(roots, Filesystems::recorded(recorded), links::Source::Recorded(None), Sockets::default())
    }

    /// Where this machine's file systems are mounted.
    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// Our path of a file below the machine's procfs: `proc("sys/fs/file-nr")`.
    pub fn proc(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.roots.proc.join(relative)
    }

    /// Our path of a file below the machine's sysfs: `sys("fs/cgroup")`.
    pub fn sys(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.roots.sys.join(relative)
    }

    /// The text of a file that we know by *our* path (see [`Host::proc`], [`Host::sys`]). Bytes that are not UTF-8
    /// are replaced: this is the one place where a kernel's odd bytes become text.
    ///
    /// # Errors
    /// The operating system's, with the path; malformed beyond 4 MiB.
    pub fn read(&self, ours: impl AsRef<Path>) -> Result<String> {
        read::text(ours.as_ref())
    }

    /// As [`Host::read`], with `None` for a file that this kernel lacks or that went away: a missing file is an answer.
    ///
    /// # Errors
    /// Any other than "not there".
    pub fn read_some(&self, ours: impl AsRef<Path>) -> Result<Option<String>> {
        match self.read(ours) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.is_gone() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A handle on what the *machine* calls `path`, its symbolic links resolved inside the machine's root: nothing is
    /// opened for reading. `/proc/self/fd/N` of it names the object itself, which is how a unix socket in another root
    /// is connected to.
    ///
    /// # Errors
    /// The operating system's, with the path.
    pub fn handle(&self, path: impl AsRef<Path>) -> Result<std::os::fd::OwnedFd> {
        let path = path.as_ref();
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        read::open_in_root(&self.roots.root, path, flags).map_err(|error| Error::os(path.display(), &error))
    }

    /// What tells one state of a file from another, by our path; the file is not opened.
    ///
    /// # Errors
    /// The operating system's, with the path.
    pub fn stamp(&self, ours: impl AsRef<Path>) -> Result<FileVersion> {
        FileVersion::of(ours.as_ref())
    }

    /// A whole file that holds one number.
    ///
    /// # Errors
    /// As [`Host::read`]; malformed if it is not a number.
    pub fn read_number(&self, ours: impl AsRef<Path>) -> Result<u64> {
        let path = ours.as_ref();
        let text = self.read(path)?;
        text.trim()
            .parse()
            .map_err(|_| Error::malformed(format!("{}: not a number: {:?}", path.display(), text.trim())))
    }

    /// Names of the entries of a directory that we know by our path, in no particular order.
    ///
    /// # Errors
    /// The operating system's, with the path.
    pub fn list(&self, ours: impl AsRef<Path>) -> Result<Vec<std::ffi::OsString>> {
        read::list(ours.as_ref())
    }

    /// True if there is a directory at our path, itself and not by a symbolic link.
    pub fn is_directory(&self, ours: impl AsRef<Path>) -> bool {
        std::fs::symlink_metadata(ours).is_ok_and(|metadata| metadata.is_dir())
    }

    /// The file system that holds what the machine calls `path`: sizes by `statfs(2)`, device and type by mountinfo.
    ///
    /// The call runs on a thread of its own, because `statfs` on a dead network or FUSE mount never returns and cannot
    /// be interrupted. A hung one costs that thread once: until it comes back, asking again answers `busy` at once.
    ///
    /// # Errors
    /// The operating system's; `timeout` for the first call that hangs, `busy` for later ones.
    pub fn filesystem(&self, path: impl AsRef<Path>, deadline: Deadline) -> Result<Filesystem> {
        self.filesystems.of(&self.roots, path.as_ref(), &MountView::default(), deadline)
    }

    /// The same with the mount table that several looks share.
    ///
    /// # Errors
    /// As [`Host::filesystem`].
    pub fn filesystem_seen(&self, path: impl AsRef<Path>, seen: &MountView, deadline: Deadline) -> Result<Filesystem> {
        self.filesystems.of(&self.roots, path.as_ref(), seen, deadline)
    }

    /// The same of many paths, on one thread as long as none hangs.
    pub fn filesystem_of_each(
        &self,
        paths: &[&Path],
        seen: &MountView,
        patience: &mut CallBudget,
    ) -> Vec<Result<Filesystem>> {
        self.filesystems.of_each(&self.roots, paths, seen, patience)
    }

    /// How full the file systems are that `tree` has at these paths, as far as they are the ones of these numbers;
    /// `None` where another one is: mounted over it, or a mount that was never passed on to us. Costs no look at a
    /// mount table, and one thread for all of them; guarded as [`Host::filesystem`] is.
    pub fn usages(
        &self,
        tree: &Tree,
        mounts: &[(&Path, DeviceNumber)],
        patience: &mut CallBudget,
    ) -> Vec<Result<Option<Usage>>> {
        self.filesystems.usages(tree.root(), mounts, patience)
    }

    /// What the machine calls `path` once its symbolic links are followed; guarded as [`Host::filesystem`] is.
    ///
    /// # Errors
    /// As [`Host::filesystem`].
    pub fn resolve(&self, path: impl AsRef<Path>, deadline: Deadline) -> Result<PathBuf> {
        self.filesystems.resolve(&self.roots.root, path.as_ref(), deadline)
    }

    /// Runs `call`, which reads files that may lie on a file system that hangs, on a thread of its own: a call that
    /// hangs costs that thread once, and never the caller.
    ///
    /// # Errors
    /// The call's own; `timeout` for the first call under this name that hangs, `busy` for later ones.
    pub fn bounded<T: Send + 'static>(
        &self,
        name: &str,
        deadline: Deadline,
        call: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.files.run(name, deadline, call)
    }

    /// The processes that were there at `since` or later, in ascending order. All of one scrape share one listing.
    ///
    /// # Errors
    /// The operating system's, with the path; `timeout` if a listing under way does not end in time.
    pub fn pids_since(&self, since: Instant, deadline: Deadline) -> Result<Arc<[u32]>> {
        let list = || self.pids().and_then(|pids| pids.list()).map(Arc::from);
        let listed = self.listing.since(since, deadline, list);
        let late =
            || Error::new(Reason::Timeout, format!("{}: not listed before the deadline", self.proc("").display()));
        listed.ok_or_else(late)?.value
    }

    /// Fails where it cannot be told which cgroups processes are in: we are in a cgroup namespace of our own, and do
    /// not find ourselves among the machine's cgroups. What [`Pids::standing`] and [`process::Process::cgroup`] say is
    /// then nothing.
    ///
    /// # Errors
    /// Malformed.
    ///
    /// [`Pids::standing`]: pids::Pids::standing
    pub fn knows_cgroups_of_processes(&self) -> Result<()> {
        self.vantage.is_known()
    }

    /// The cgroups of a process, a row for each hierarchy as in `/proc/PID/cgroup`, each path from the root of the
    /// machine's hierarchy, whatever cgroup namespace we are in.
    ///
    /// # Errors
    /// The operating system's; gone if it exited; malformed as [`Host::knows_cgroups_of_processes`].
    pub fn cgroups_of(&self, pid: u32) -> Result<String> {
        self.vantage.absolute(self.read(self.proc(format!("{pid}/cgroup")))?)
    }

    /// The running kernel, from `sys/kernel/osrelease` of procfs.
    ///
    /// # Errors
    /// As [`Host::read`]; malformed if it does not begin with two numbers.
    pub fn kernel(&self) -> Result<Kernel> {
        let path = self.proc("sys/kernel/osrelease");
        let text = self.read(&path)?;
        Kernel::parse(&text)
            .ok_or_else(|| Error::malformed(format!("{}: not a kernel release: {:?}", path.display(), text.trim())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases() {
        let version = |release| Kernel::parse(release).map(|kernel| kernel.version);
        assert_eq!(version("6.1.0-56-amd64\n"), Some((6, 1)));
        assert_eq!(version("3.10.0-1160.el7.x86_64"), Some((3, 10)));
        assert_eq!(version("6.18.44-fc-v657"), Some((6, 18)));
        assert_eq!(version("4.4-rc1"), Some((4, 4)));
        assert_eq!(version("none"), None);
    }

    #[test]
    fn missing_files_are_an_answer_and_directories_an_error() {
        let host = Host::new(Roots::default());
        assert_eq!(host.read_some("/nonexistent/x").unwrap(), None);
        assert_eq!(host.read("/nonexistent/x").unwrap_err().reason(), Reason::Absent);
        assert_eq!(host.read("/").unwrap_err().reason(), Reason::Io);
    }
}
