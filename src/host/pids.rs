//! Processes by number: a cheap look at every one of them, for those who only search for a few.
//!
//! One open directory of procfs and three system calls per process (`openat`, `read`, `close`). What is read of a
//! process that exits meanwhile is an error that [`crate::error::Error::is_gone`] knows.
//!
//! **What can block.** To read a command line or an environment the kernel takes the memory lock of that process, and
//! for a mount table the lock of all mounts. A process in trouble holds its own for hours; anybody who may mount FUSE
//! can hold his for as long as he likes (`ps` hangs on such a process). So these three are read on a thread that
//! nobody waits for beyond a moment ([`Host::cmdline`], [`Host::judge_cmdlines`], [`Host::environ`],
//! [`Host::mount_table`]): one that hangs costs that thread, once. Name, state, status, cgroup, limits and links take
//! no such lock.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;

use super::cgroup::vantage::Vantage;
use super::process::Processes;
use super::process::parse::{self, decimal};
use super::{CallBudget, Deadline, Host, read};
use crate::error::{Error, Reason, Result};

/// The longest command line that we read: what Linux allows for one argument.
const LONGEST_CMDLINE: usize = 128 << 10;

/// The machine's procfs, open.
#[derive(Debug)]
pub struct Pids {
    dir: OwnedFd,
    path: PathBuf,
    vantage: Arc<Vantage>,
}

/// What a process cannot choose for itself: its user, its pid namespaces, its cgroups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Its effective uid, as this procfs has it.
    pub uid: Option<u32>,
    /// In how many pid namespaces it is, from this procfs' inwards: one for a process of the machine's own.
    pub namespaces: Option<usize>,
    /// Its `/proc/PID/cgroup`, a line for each hierarchy, with paths from the hierarchy's root where that is known;
    /// else as our own cgroup namespace shows them.
    pub cgroup: String,
}

impl Host {
    /// Opens the machine's procfs to look at processes.
    ///
    /// # Errors
    /// The operating system's, with the path.
    pub fn pids(&self) -> Result<Pids> {
        let path = self.roots().proc.clone();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&path, flags, Mode::empty())
            .map_err(|errno| Error::os(path.display(), &io::Error::from(errno)))?;
        Ok(Pids { dir, path, vantage: Arc::clone(&self.vantage) })
    }

    /// The arguments of process `pid`, the program first: `/proc/PID/cmdline`. Empty for a kernel thread and for a
    /// zombie.
    ///
    /// # Errors
    /// The operating system's; gone if it exited; `timeout` if it keeps us waiting, and `busy` for as long as it does.
    pub fn cmdline(&self, pid: u32, deadline: Deadline) -> Result<Vec<String>> {
        let pids = self.pids()?;
        self.of_process(pid, "cmdline", deadline, move || pids.cmdline(pid))
    }

    /// Its arguments and its environment, with why that cannot be read.
    ///
    /// # Errors
    /// As [`Host::cmdline`].
    pub fn started_with(&self, pid: u32, deadline: Deadline) -> Result<(Vec<String>, Result<Vec<String>>)> {
        let pids = self.pids()?;
        self.of_process(pid, "cmdline and environ", deadline, move || Ok((pids.cmdline(pid)?, pids.environ(pid))))
    }

    /// What `judge` makes of the arguments of each of these processes. All are read on one thread, as long as none
    /// hangs, and none is kept.
    pub fn judge_cmdlines<T: Send + 'static>(
        &self,
        of: &[u32],
        deadline: Deadline,
        judge: fn(&[String]) -> T,
    ) -> Vec<Result<T>> {
        let pids = match self.pids() {
            Ok(pids) => Arc::new(pids),
            Err(error) => return of.iter().map(|_| Err(error.clone())).collect(),
        };
        let items = of.iter().map(|&pid| (key(pid, "cmdline"), (Arc::clone(&pids), pid, judge))).collect();
        self.processes.run_each(items, &mut CallBudget::of_processes(deadline), |(pids, pid, judge)| {
            pids.cmdline(pid).map(|argv| judge(&argv))
        })
    }

    /// The environment that process `pid` was started with, `NAME=value` each: `/proc/PID/environ`. What a program sets
    /// for itself later is not in it.
    ///
    /// # Errors
    /// As [`Host::cmdline`]; denied without `CAP_SYS_PTRACE` if it is another user's.
    pub fn environ(&self, pid: u32, deadline: Deadline) -> Result<Vec<String>> {
        let pids = self.pids()?;
        self.of_process(pid, "environ", deadline, move || pids.environ(pid))
    }

    /// The numbers of the network namespaces in which one of these processes is: what mount tables call them,
    /// `net:[4026532165]`.
    ///
    /// # Errors
    /// Denied without `CAP_SYS_PTRACE`: unknown is not empty; timeout.
    pub fn inhabited_network_namespaces(&self, pids: &[u32], deadline: Deadline) -> Result<HashSet<u64>> {
        let processes = self.pids()?;
        let (mut numbers, mut refused) = (HashSet::new(), None);
        let mut refusals = 0;
        for &pid in pids {
            if deadline.expired() {
                return Err(Error::new(
                    Reason::Timeout,
                    "network namespaces of processes: not all before the deadline",
                ));
            }
            match processes.network_namespace_number(pid) {
                Ok(number) => _ = numbers.insert(number),
                Err(error) if error.is_gone() => {}
                Err(error) if error.reason() == Reason::Denied => {
                    refusals += 1;
                    refused = refused.or(Some(error));
                }
                Err(error) => return Err(error),
            }
        }
        match refused {
            Some(error) if !Processes::protect_themselves(refusals, Processes::open(self)?.entitled()) => Err(error),
            _ => Ok(numbers),
        }
    }

    fn of_process<T: Send + 'static>(
        &self,
        pid: u32,
        file: &str,
        deadline: Deadline,
        call: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.processes.run(&key(pid, file), CallBudget::of_processes(deadline).next(), call)
    }

    /// The mounts that process `pid` sees: `/proc/PID/mountinfo`.
    ///
    /// # Errors
    /// As [`Host::cmdline`]. Of one whose parent has not noticed its end yet the kernel says `EINVAL`
    /// (`mounts_open_common`).
    pub fn mount_table(&self, pid: u32, deadline: Deadline) -> Result<String> {
        let path = self.proc(format!("{pid}/mountinfo"));
        self.of_process(pid, "mountinfo", deadline, move || read::text(&path)).map_err(|error| {
            let zombie = || self.pids().is_ok_and(|pids| pids.is_zombie(pid));
            if error.reason() == Reason::Io && zombie() {
                Error::new(Reason::Vanished, error.to_string())
            } else {
                error
            }
        })
    }
}

impl Pids {
    /// The processes that are there now, in ascending order.
    ///
    /// # Errors
    /// The operating system's, with the path.
    pub fn list(&self) -> Result<Vec<u32>> {
        let os = |errno: Errno| Error::os(self.path.display(), &errno.into());
        rustix::fs::seek(&self.dir, SeekFrom::Start(0)).map_err(os)?;
        let mut buffer = Vec::with_capacity(32 << 10);
        let mut entries = RawDir::new(&self.dir, buffer.spare_capacity_mut());
        let mut pids = Vec::with_capacity(1 << 10);
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(os)?;
            pids.extend(decimal(entry.file_name().to_bytes()).and_then(|pid| u32::try_from(pid).ok()));
        }
        // A procfs lists them in order; a folder of recorded files does not.
        if !pids.is_sorted() {
            pids.sort_unstable();
        }
        Ok(pids)
    }

    /// Its name, at most 15 bytes: `/proc/PID/comm`.
    ///
    /// # Errors
    /// The operating system's; gone if it exited.
    pub fn comm(&self, pid: u32) -> Result<String> {
        let bytes = self.read(pid, "comm", 64)?;
        let bytes = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    fn cmdline(&self, pid: u32) -> Result<Vec<String>> {
        self.read(pid, "cmdline", LONGEST_CMDLINE).map(|bytes| strings(&bytes))
    }

    /// True if it ended and nobody has noticed yet: the third field of `/proc/PID/stat`.
    pub fn is_zombie(&self, pid: u32) -> bool {
        self.stat(pid, 0).is_ok_and(|state| state.is_some_and(|state| state == "Z" || state == "X"))
    }

    fn environ(&self, pid: u32) -> Result<Vec<String>> {
        self.read(pid, "environ", LONGEST_CMDLINE).map(|bytes| strings(&bytes))
    }

    /// Where it stands on the machine.
    ///
    /// # Errors
    /// The operating system's; gone if it exited.
    pub fn standing(&self, pid: u32) -> Result<Standing> {
        // A process without a status has none for us either: a kernel that lacks one of these files says less.
        let some = |name: &str, limit: usize| match self.read(pid, name, limit) {
            Ok(bytes) => Ok(bytes),
            Err(error) if error.is_gone() => self.comm(pid).map(|_| Vec::new()),
            Err(error) => Err(error),
        };
        let (status, cgroup) = (some("status", 4096)?, some("cgroup", 64 << 10)?);
        let cgroup = String::from_utf8_lossy(&cgroup).into_owned();
        Ok(Standing {
            uid: parse::effective_uid(&status),
            namespaces: parse::pid_namespaces(&status),
            cgroup: self.vantage.absolute(cgroup.clone()).unwrap_or(cgroup),
        })
    }

    /// Its parent: the fourth field of `/proc/PID/stat`.
    ///
    /// # Errors
    /// The operating system's; gone if it exited; malformed if there is no such field.
    pub fn parent(&self, pid: u32) -> Result<u32> {
        let parent = self.stat(pid, 1)?.and_then(|parent| parent.parse().ok());
        parent.ok_or_else(|| Error::malformed(format!("{}/{pid}/stat: no parent in it", self.path.display())))
    }

    /// When it started, in clock ticks since the machine did: the 22nd field of `/proc/PID/stat`. With the pid it names
    /// one process for ever.
    ///
    /// # Errors
    /// The operating system's; gone if it exited; malformed if there is no such field.
    pub fn started(&self, pid: u32) -> Result<u64> {
        let started = self.stat(pid, 19)?.and_then(|started| started.parse().ok());
        started.ok_or_else(|| Error::malformed(format!("{}/{pid}/stat: no start time in it", self.path.display())))
    }

    /// A field of `/proc/PID/stat`, counted from behind the name, which may hold anything.
    fn stat(&self, pid: u32, field: usize) -> Result<Option<String>> {
        let stat = self.read(pid, "stat", 4096)?;
        let stat = String::from_utf8_lossy(&stat);
        Ok(stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(field).map(str::to_owned)))
    }

    /// How many threads it has, by one `stat`: `/proc/PID/task` has as many directories (`proc_task_getattr`).
    ///
    /// # Errors
    /// The operating system's; gone if it exited.
    pub fn threads(&self, pid: u32) -> Result<u64> {
        let stat = rustix::fs::statat(&self.dir, format!("{pid}/task"), AtFlags::empty())
            .map_err(|errno| Error::os(format_args!("{}/{pid}/task", self.path.display()), &io::Error::from(errno)))?;
        #[allow(clippy::useless_conversion, reason = "32 bits wide on some architectures")]
        let links = u64::from(stat.st_nlink);
        // Of one that ends no thread is left.
        let gone = || Error::new(Reason::Vanished, format!("{}/{pid}/task: no thread", self.path.display()));
        links.checked_sub(2).filter(|threads| *threads > 0).ok_or_else(gone)
    }

    /// The number of its network namespace, as mount tables have it.
    ///
    /// # Errors
    /// The operating system's; denied without `CAP_SYS_PTRACE` if it is another user's; gone if it exited.
    pub fn network_namespace_number(&self, pid: u32) -> Result<u64> {
        let link = rustix::fs::readlinkat(&self.dir, format!("{pid}/ns/net"), Vec::new()).map_err(|errno| {
            Error::os(format_args!("{}/{pid}/ns/net", self.path.display()), &io::Error::from(errno))
        })?;
        let number = link.to_str().ok().and_then(|link| link.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok());
        number.ok_or_else(|| Error::malformed(format!("{}/{pid}/ns/net: {link:?}", self.path.display())))
    }

    /// Its working directory: where `/proc/PID/cwd` leads.
    ///
    /// # Errors
    /// The operating system's; denied without `CAP_SYS_PTRACE` if it is another user's.
    pub fn cwd(&self, pid: u32) -> Result<PathBuf> {
        use std::os::unix::ffi::OsStringExt as _;
        let link = rustix::fs::readlinkat(&self.dir, format!("{pid}/cwd"), Vec::new())
            .map_err(|errno| Error::os(format_args!("{}/{pid}/cwd", self.path.display()), &io::Error::from(errno)))?;
        Ok(std::ffi::OsString::from_vec(link.into_bytes()).into())
    }

    fn read(&self, pid: u32, name: &str, limit: usize) -> Result<Vec<u8>> {
        let relative = format!("{pid}/{name}");
        let os = |errno| Error::os(format_args!("{}/{relative}", self.path.display()), &io::Error::from(errno));
        let fd =
            rustix::fs::openat(&self.dir, &relative, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(os)?;
        let mut bytes = vec![0; limit.min(4096)];
        let mut length = 0;
        loop {
            let read = rustix::io::read(&fd, &mut bytes[length..]).map_err(os)?;
            length += read;
            // A short read of these files is their end; a full buffer may not be.
            if read == 0 || length < bytes.len() || bytes.len() == limit {
                break;
            }
            bytes.resize((bytes.len() * 2).min(limit), 0);
        }
        bytes.truncate(length);
        Ok(bytes)
    }
}

/// What one call of many is known by.
fn key(pid: u32, file: &str) -> String {
    format!("process {pid}: {file}")
}

/// Strings that a zero byte ends, each.
fn strings(bytes: &[u8]) -> Vec<String> {
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    if bytes.is_empty() {
        return Vec::new();
    }
    bytes.split(|&byte| byte == 0).map(|string| String::from_utf8_lossy(string).into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Reason;
    use crate::host::Roots;

    #[test]
    fn we_find_ourselves() {
        let pids = Host::new(Roots::default()).pids().unwrap();
        let me = std::process::id();
        assert!(pids.list().unwrap().binary_search(&me).is_ok());
        assert_eq!(pids.cmdline(me).unwrap(), std::env::args().collect::<Vec<_>>());
        assert_eq!(pids.parent(me).unwrap(), std::os::unix::process::parent_id());
        let path = std::env::var("PATH").unwrap();
        assert!(pids.environ(me).unwrap().contains(&format!("PATH={path}")));
        assert_eq!(pids.cwd(me).unwrap(), std::env::current_dir().unwrap());
        assert_eq!(pids.started(me).unwrap(), procfs::process::Process::myself().unwrap().stat().unwrap().starttime);
    }

    #[test]
    fn odd_names_and_long_command_lines() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("7")).unwrap();
        std::fs::create_dir(at("irq")).unwrap();
        std::fs::write(at("7/comm"), b"a) \xc3\"x\n").unwrap();
        std::fs::write(at("7/stat"), b"7 (a) \xc3\"x) S 42 7 7").unwrap();
        let long = "x".repeat(10_000);
        std::fs::write(at("7/cmdline"), format!("kubelet\0\0--a={long}\0")).unwrap();
        let pids = Host::new(Roots { proc: dir.path().into(), ..Roots::default() }).pids().unwrap();
        assert_eq!(pids.list().unwrap(), [7]);
        assert_eq!(pids.comm(7).unwrap(), "a) \u{fffd}\"x");
        assert_eq!(pids.parent(7).unwrap(), 42);
        assert_eq!(pids.cmdline(7).unwrap(), ["kubelet", "", &format!("--a={long}")]);
        assert_eq!(pids.comm(8).unwrap_err().reason(), Reason::Absent);
    }

    #[test]
    fn a_kernel_thread_has_no_arguments() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("2")).unwrap();
        std::fs::write(dir.path().join("2/cmdline"), "").unwrap();
        let pids = Host::new(Roots { proc: dir.path().into(), ..Roots::default() }).pids().unwrap();
        assert!(pids.cmdline(2).unwrap().is_empty());
    }
}
