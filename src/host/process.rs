//! Every process of the machine, at the price of the system calls that cannot be avoided.
//!
//! A sweep makes one system call for a process that goes on as before: one `stat` tells how many fds it has, and by
//! its inode number that it is the process that we know ([`known`]). One that is new or changed takes seven more, and
//! three if it has no fds: open `/proc/PID` (`O_PATH`), ask for the limit and the number of fds, read `comm`, close.
//! Everything is read relative to that one directory fd, which belongs to the process and not to the number: if the
//! process exits and its pid is used again, reads fail.
//!
//! **The limit.** `prlimit(2)` answers in 0.5 µs what `/proc/PID/limits` takes 9 µs to print, half of a sweep. It goes
//! by number, so it is asked only if the procfs counts pids as we do, and before the fds are: their answer through the
//! directory fd proves that the process still lived, and so had that number. For another uid it takes
//! `CAP_SYS_RESOURCE`; wherever it is refused the file is read, which anyone may.
//!
//! **Counting.** Since Linux 6.2 (`proc_fd_getattr` in fs/proc/fd.c) the `st_size` of `/proc/PID/fd` is the number of
//! fds. Before, it is 0; on a folder of recorded files it is the size of a directory. So each sweep first looks whether
//! this is a procfs at all, and whether it counts our own fds; where not, it reads directories.
//!
//! **What else it costs.** The kernel caches a dentry and an inode for every entry of procfs that is looked up, until
//! the process exits or memory gets scarce, and charges them to the memory cgroup of the reader. Measured on 6.18 with
//! 2,000 processes and 100,000 fds: 5 MiB after a sweep, 90 MiB once every link was read. It is reclaimed on demand:
//! with a limit of 32 MiB the same work goes on, and nothing is killed. It is not resident memory, but it is in the
//! container's working set.
//!
//! **What one needs** (tried on 6.18, uid by uid and capability by capability):
//!
//! | | another user's process | own uid, but it has more capabilities |
//! |---|---|---|
//! | `st_size` of fd, `limits`, `comm`, `status`, `cgroup` | nothing | nothing |
//! | list fd (also: count before 6.2) | `CAP_DAC_READ_SEARCH` | nothing |
//! | read the links in fd (kinds) | `CAP_DAC_READ_SEARCH` and `CAP_SYS_PTRACE` | `CAP_SYS_PTRACE` |
//! | fdinfo (inotify watches) | `CAP_SYS_PTRACE` | `CAP_SYS_PTRACE` |
//!
//! A security module may refuse the last two rows all the same: AppArmor's default profiles for containers keep a
//! container from reading processes of the host (`ptrace (read)`), whatever its capabilities.
//!
//! A procfs mounted with `hidepid=1` denies the first row too, and with `hidepid=2` it hides the processes altogether:
//! nothing tells us that they are missing.

pub mod fds;
pub mod known;
pub mod parse;
mod user_namespace;

use std::cell::OnceCell;
use std::ffi::CStr;
use std::io::Write as _;
use std::mem::MaybeUninit;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::path::DecInt;

use super::cgroup::vantage::Vantage;
use super::netns::NetworkNamespace;
use super::{Deadline, Host};
use crate::error::{Error, Reason, Result};
use fds::{Fds, Kind};
use known::{Facts, Known};
use parse::{Comm, Limit};

fn is_gone(errno: Errno) -> bool {
    // ENOTDIR: a plain file whose name is a number, in a folder of recorded files.
    matches!(errno, Errno::NOENT | Errno::SRCH | Errno::NODEV | Errno::NOTDIR)
}

fn is_denied(errno: Errno) -> bool {
    matches!(errno, Errno::ACCESS | Errno::PERM)
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const PLACE: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// One process as a sweep found it. What is asked of it goes through its directory, which is open from then on;
/// dropping it closes that.
#[derive(Debug)]
pub struct Process {
    /// In the pid namespace of the procfs that is read.
    pub pid: u32,
    /// Open file descriptors; `None` if we may not know. 0 for kernel threads and zombies.
    pub fds: Option<u64>,
    /// The soft limit of open files. Not read (`None`) for a process without fds.
    pub limit: Option<Limit>,
    /// What it calls itself. Not read (`None`) for a process without fds.
    pub comm: Option<Comm>,
    /// Tells it from the next process with its number, for nothing: the inode number of its fd directory, which the
    /// kernel gives anew to each. It may change under memory pressure. `None` where fds are not counted by size.
    pub inode: Option<u64>,
    dir: OnceCell<OwnedFd>,
    procfs: Arc<OwnedFd>,
    sized: bool,
    vantage: Arc<Vantage>,
}

impl Process {
    /// Its directory. `ESTALE` where it cannot be told that this process has the number still.
    fn dir(&self) -> rustix::io::Result<&OwnedFd> {
        if let Some(dir) = self.dir.get() {
            return Ok(dir);
        }
        let dir = rustix::fs::openat(&*self.procfs, DecInt::new(self.pid).as_c_str(), PLACE, Mode::empty())?;
        if Some(rustix::fs::statat(&dir, c"fd", AtFlags::empty())?.st_ino) != self.inode {
            return Err(Errno::STALE);
        }
        Ok(self.dir.get_or_init(|| dir))
    }

    /// Its opened fd directory.
    ///
    /// # Errors
    /// Denied for another user's process without `CAP_DAC_READ_SEARCH`; gone if it exited.
    pub fn open_fds(&self) -> Result<Fds> {
        let fds = self.dir().and_then(|dir| open_fds(dir, c"fd", self.sized));
        fds.map_err(|errno| self.error("fd", errno))
    }

    /// Its fds by kind, examining at most `most`, and how many were examined. `socket` is told the inode number of each
    /// socket.
    ///
    /// # Errors
    /// As [`Process::open_fds`], and denied without `CAP_SYS_PTRACE`.
    pub fn kinds(&self, most: usize, socket: impl FnMut(u32)) -> Result<(fds::Kinds, usize)> {
        self.open_fds()?.kinds(most, socket).map_err(|errno| self.error("fd", errno))
    }

    /// The network namespace that it is in.
    ///
    /// # Errors
    /// Gone if it exited.
    pub fn network_namespace(&self) -> Result<NetworkNamespace> {
        let stat = self.dir().and_then(|dir| rustix::fs::statat(dir, c"net/dev", AtFlags::empty()));
        stat.map(|stat| NetworkNamespace::of(&stat)).map_err(|errno| self.error("net/dev", errno))
    }

    /// Its `/proc/PID/cgroup`: one line per hierarchy, with paths from the hierarchy's root whatever cgroup namespace
    /// we are in.
    ///
    /// # Errors
    /// Gone if it exited; malformed if we do not know where we are ourselves
    /// ([`Host::knows_cgroups_of_processes`]).
    pub fn cgroup(&self) -> Result<String> {
        let mut buffer = Vec::with_capacity(16 << 10);
        let read = self
            .dir()
            .and_then(|dir| open_file(dir, c"cgroup"))
            .and_then(|file| rustix::io::read(file, rustix::buffer::spare_capacity(&mut buffer)));
        read.map_err(|errno| self.error("cgroup", errno))?;
        self.vantage.absolute(String::from_utf8_lossy(&buffer).into_owned())
    }

    /// In how many pid namespaces it is; `None` before Linux 4.1.
    ///
    /// # Errors
    /// Gone if it exited.
    pub fn pid_namespaces(&self) -> Result<Option<usize>> {
        let mut status = [MaybeUninit::uninit(); 4096];
        let status = self.dir().and_then(|dir| head(dir, c"status", &mut status));
        let status = status.map_err(|errno| self.error("status", errno))?;
        Ok(parse::pid_namespaces(status))
    }

    fn error(&self, file: &str, errno: Errno) -> Error {
        Error::os(format_args!("process {}: {file}", self.pid), &errno.into())
    }
}

/// How a sweep ended.
#[derive(Debug, Default)]
pub struct Sweep {
    /// Processes that we could not even open.
    pub closed: u64,
    /// Why it did not reach every process: the deadline, or the machine being out of fds.
    pub cut: Option<Error>,
}

/// The processes of a machine: its opened procfs.
#[derive(Debug)]
pub struct Processes {
    dir: Arc<OwnedFd>,
    path: PathBuf,
    sized: bool,
    /// A pid in this procfs is the same process's to a system call of ours.
    own_numbers: bool,
    vantage: Arc<Vantage>,
}

impl Processes {
    /// Opens the procfs of `host` and finds out how fds can be counted in it.
    ///
    /// # Errors
    /// The operating system's.
    pub fn open(host: &Host) -> Result<Self> {
        let path = host.proc("");
        let dir = rustix::fs::open(&path, DIRECTORY, Mode::empty())
            .map(Arc::new)
            .map_err(|errno| Error::os(path.display(), &errno.into()))?;
        let mut processes =
            Processes { dir, path, sized: false, own_numbers: false, vantage: Arc::clone(&host.vantage) };
        processes.sized = processes.sizes_are_counts();
        processes.own_numbers = processes.is_procfs() && processes.numbers_are_ours();
        Ok(processes)
    }

    fn is_procfs(&self) -> bool {
        rustix::fs::fstatfs(&self.dir).is_ok_and(|fs| fs.f_type == rustix::fs::PROC_SUPER_MAGIC)
    }

    /// True if this procfs is of our own pid namespace: seen from it, we have one pid (`NSpid`), and it is the one we
    /// know.
    fn numbers_are_ours(&self) -> bool {
        let mut status = [MaybeUninit::uninit(); 4096];
        let only = head(&self.dir, c"self/status", &mut status).ok().and_then(parse::only_pid);
        only == Some(u64::from(std::process::id()))
    }

    /// True if the size of an fd directory is the number of fds. A procfs that does not count says 0, and our own
    /// directory has at least the fd through which we look at it. (To compare with its listing would race with our own
    /// other threads.)
    fn sizes_are_counts(&self) -> bool {
        self.is_procfs() && open_fds(&self.dir, c"self/fd", false).is_ok_and(|own| matches!(own.size(), Ok(1..)))
    }

    /// True if fds are counted by one `stat` per process, whoever owns it (Linux ≥ 6.2).
    pub fn counts_by_size(&self) -> bool {
        self.sized
    }

    /// Our own pid in this procfs, which may be another pid namespace's than ours.
    pub fn own_pid(&self) -> Option<u32> {
        let mut link = [MaybeUninit::uninit(); 16];
        let (link, _) = rustix::fs::readlinkat_raw(&self.dir, c"self", &mut link).ok()?;
        parse::decimal(link)?.try_into().ok()
    }

    /// True if so few processes refuse us although we have every right: they protect themselves (an agent of the
    /// hypervisor, a security module), which nobody can mend. Were we confined ourselves it would be many.
    pub fn protect_themselves(refused: u64, entitled: bool) -> bool {
        entitled && refused <= 3
    }

    /// True if we hold the capabilities to read every process, and hold them over the whole machine and not just over a
    /// user namespace of our own. A security module may still refuse single ones.
    pub fn entitled(&self) -> bool {
        const DAC_OVERRIDE: u64 = 1 << 1;
        const DAC_READ_SEARCH: u64 = 1 << 2;
        const SYS_PTRACE: u64 = 1 << 19;
        let mut status = [MaybeUninit::uninit(); 4096];
        let namespace = rustix::fs::statat(&self.dir, c"self/ns/user", AtFlags::empty());
        namespace.is_ok_and(|namespace| namespace.st_ino == user_namespace::FIRST)
            && head(&self.dir, c"self/status", &mut status)
                .ok()
                .and_then(parse::effective_capabilities)
                .is_some_and(|held| held & SYS_PTRACE != 0 && held & (DAC_READ_SEARCH | DAC_OVERRIDE) != 0)
    }

    /// Shows the processes of this list (see [`Host::pids_since`]) to `visit`, in its order. One that exits meanwhile
    /// is not shown. What is in `known` need not be read again.
    pub fn sweep(&self, pids: &[u32], known: &mut Known, deadline: Deadline, mut visit: impl FnMut(Process)) -> Sweep {
        let mut sweep = Sweep::default();
        known.begin();
        for (done, &pid) in pids.iter().enumerate() {
            if deadline.expired() {
                let text = format!(
                    "{}: only {done} of {} processes were read before the deadline",
                    self.path.display(),
                    pids.len()
                );
                sweep.cut = Some(Error::new(Reason::Timeout, text));
                break;
            }
            match self.known_or_read(pid, known) {
                Ok(process) => visit(process),
                Err(errno) if is_gone(errno) => {}
                Err(errno) if is_denied(errno) => sweep.closed += 1,
                Err(errno) => {
                    sweep.cut = Some(Error::os(format_args!("{}/{pid}", self.path.display()), &errno.into()));
                    break;
                }
            }
        }
        known.end(sweep.cut.is_none());
        sweep
    }

    /// A process that was shown, as it is now; `None` if it is gone. Whoever has its number now if that is another one.
    pub fn fresh(&self, process: Process) -> Option<Process> {
        if process.dir.get().is_some() { Some(process) } else { self.process(process.pid).ok() }
    }

    fn known_or_read(&self, pid: u32, known: &mut Known) -> rustix::io::Result<Process> {
        if self.sized {
            match self.fds_of(pid) {
                Ok(stat) => {
                    let (inode, fds) = (stat.st_ino, stat.st_size as u64);
                    if let Some(Facts { limit, comm }) = known.of(pid, inode, fds) {
                        return Ok(Process { fds: Some(fds), limit, comm, inode: Some(inode), ..self.unread(pid) });
                    }
                }
                Err(errno) if is_gone(errno) => return Err(errno),
                // What is refused is refused below.
                Err(_) => {}
            }
        }
        let process = self.process(pid)?;
        known.learn(&process);
        Ok(process)
    }

    /// Reads one process. What of it is denied is `None`; an error says that it is gone, or that *we* cannot go on.
    fn process(&self, pid: u32) -> rustix::io::Result<Process> {
        let dir = rustix::fs::openat(&self.dir, DecInt::new(pid).as_c_str(), PLACE, Mode::empty())?;
        let mut process = self.unread(pid);
        let dir = process.dir.get_or_init(|| dir).as_fd();
        let limit = if self.own_numbers { ask_limit(pid) } else { None };
        process.fds = permitted(if self.sized {
            rustix::fs::statat(dir, c"fd", AtFlags::empty()).map(|stat| {
                process.inode = Some(stat.st_ino);
                stat.st_size as u64
            })
        } else {
            open_fds(dir, c"fd", false).and_then(|fds| fds.read_count())
        })?;
        if process.fds != Some(0) {
            // One read gets all of either file: limits has 1.3 KiB, and the row that we want is the eighth of sixteen.
            let mut buffer = [MaybeUninit::uninit(); 1024];
            process.limit = match limit {
                Some(limit) => Some(limit),
                None => permitted(head(dir, c"limits", &mut buffer))?.and_then(parse::soft_open_files),
            };
            process.comm = permitted(head(dir, c"comm", &mut buffer))?.map(Comm::from_file);
        }
        Ok(process)
    }

    fn unread(&self, pid: u32) -> Process {
        let (fds, limit, comm, inode, dir) = (None, None, None, None, OnceCell::new());
        let (procfs, vantage, sized) = (Arc::clone(&self.dir), Arc::clone(&self.vantage), self.sized);
        Process { pid, fds, limit, comm, inode, dir, procfs, sized, vantage }
    }

    /// The fd directory of a process by its pid: of whoever has that pid *now*.
    ///
    /// # Errors
    /// As [`Process::open_fds`].
    pub fn open_fds(&self, pid: u32) -> Result<Fds> {
        let mut path = [0; 32];
        open_fds(&self.dir, in_process(&mut path, pid, format_args!("fd")), self.sized)
            .map_err(|errno| self.error(pid, "fd", errno))
    }

    /// How many fds a process has, whoever owns it; `None` if it is gone or this procfs does not count (Linux < 6.2).
    pub fn size_of_fds(&self, pid: u32) -> Option<u64> {
        let stat = self.sized.then(|| self.fds_of(pid))?;
        stat.ok()?.st_size.try_into().ok()
    }

    /// The fd directory of a process: its number of fds, and an inode number that is its own.
    fn fds_of(&self, pid: u32) -> rustix::io::Result<rustix::fs::Stat> {
        let mut path = [0; 32];
        rustix::fs::statat(&self.dir, in_process(&mut path, pid, format_args!("fd")), AtFlags::empty())
    }

    /// What fd number `fd` of process `pid` is now; `None` if it is closed or the process is gone.
    ///
    /// # Errors
    /// Denied as in [`Fds::examine`].
    pub fn kind(&self, pid: u32, fd: u32) -> Result<Option<Kind>> {
        let (mut path, mut link) = ([0; 32], [MaybeUninit::uninit(); 64]);
        match rustix::fs::readlinkat_raw(&self.dir, in_process(&mut path, pid, format_args!("fd/{fd}")), &mut link) {
            Ok((link, _)) => Ok(Some(Kind::of(link))),
            Err(errno) if is_gone(errno) => Ok(None),
            Err(errno) => Err(self.error(pid, "fd", errno)),
        }
    }

    /// The effective uid of a process, by its status: the owner of `/proc/PID` is root for one that is not dumpable.
    ///
    /// # Errors
    /// Gone, or malformed.
    fn effective_uid(&self, pid: u32) -> Result<u32> {
        let (mut path, mut buffer) = ([0; 32], [MaybeUninit::uninit(); 1024]);
        let status = head(&self.dir, in_process(&mut path, pid, format_args!("status")), &mut buffer)
            .map_err(|errno| self.error(pid, "status", errno))?;
        parse::effective_uid(status)
            .ok_or_else(|| Error::malformed(format!("{}/{pid}/status: no Uid line", self.path.display())))
    }

    /// The user who is charged for what this process makes, where the kernel counts by user: its effective user, or the
    /// owner of the highest user namespace below the first that it is in.
    ///
    /// # Errors
    /// Gone, or malformed; denied without `CAP_SYS_PTRACE`; for a process in a user namespace of its own before Linux
    /// 4.11.
    pub fn charged_uid(&self, pid: u32) -> Result<u32> {
        let uid = self.effective_uid(pid)?;
        let mut path = [0; 32];
        user_namespace::charged(&self.dir, in_process(&mut path, pid, format_args!("ns/user")), uid)
            .map_err(|errno| self.error(pid, "ns/user", errno))
    }

    /// Shows the fdinfo file of an fd to `chunk`, piece by piece, until that returns false or the file ends.
    ///
    /// # Errors
    /// Denied without `CAP_SYS_PTRACE`; gone if it was closed.
    pub fn fdinfo(&self, pid: u32, fd: u32, mut chunk: impl FnMut(&[u8]) -> bool) -> Result<()> {
        let (mut path, mut buffer) = ([0; 32], [MaybeUninit::uninit(); 16 << 10]);
        let os = |errno| self.error(pid, "fdinfo", errno);
        let file = open_file(&self.dir, in_process(&mut path, pid, format_args!("fdinfo/{fd}"))).map_err(os)?;
        loop {
            let (read, _) = rustix::io::read(&file, &mut buffer).map_err(os)?;
            if read.is_empty() || !chunk(read) {
                return Ok(());
            }
        }
    }

    fn error(&self, pid: u32, file: &str, errno: Errno) -> Error {
        Error::os(format_args!("{}/{pid}/{file}", self.path.display()), &errno.into())
    }
}

/// The soft limit of open files by system call; `None` if that is refused.
fn ask_limit(pid: u32) -> Option<Limit> {
    let (mut soft, mut hard) = (0, 0);
    let answer = Some((&mut soft, &mut hard));
    rlimit::prlimit(pid.try_into().ok()?, rlimit::Resource::NOFILE, None, answer).ok()?;
    Some(if soft == rlimit::INFINITY { Limit::Unlimited } else { Limit::Files(soft) })
}

/// `None` for what we may not read.
fn permitted<T>(result: rustix::io::Result<T>) -> rustix::io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(errno) if is_denied(errno) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn open_file(dir: impl AsFd, path: &CStr) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(dir, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

fn open_fds(dir: impl AsFd, path: &CStr, sized: bool) -> rustix::io::Result<Fds> {
    Ok(Fds { dir: rustix::fs::openat(dir, path, DIRECTORY, Mode::empty())?, sized })
}

/// What one read gets of a file.
fn head<'b>(dir: impl AsFd, path: &CStr, buffer: &'b mut [MaybeUninit<u8>]) -> rustix::io::Result<&'b [u8]> {
    let file = open_file(dir, path)?;
    Ok(rustix::io::read(file, buffer)?.0)
}

/// `PID/what` without an allocation. 32 bytes hold the longest: two ten-digit numbers and a word.
fn in_process<'b>(buffer: &'b mut [u8; 32], pid: u32, what: std::fmt::Arguments<'_>) -> &'b CStr {
    let mut rest = &mut buffer[..31];
    // Cannot fail for what we write; were it cut, the path would not exist.
    let _ = write!(rest, "{pid}/{what}");
    CStr::from_bytes_until_nul(buffer).unwrap_or(c"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    struct Sleep(Child);

    impl Drop for Sleep {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn sleep() -> Sleep {
        Sleep(Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap())
    }

    /// A process that has opened what it will ever open: it answered.
    fn settled() -> Sleep {
        use std::io::{Read as _, Write as _};
        let mut cat = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        cat.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        cat.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        Sleep(cat)
    }

    fn find(processes: &Processes, pid: u32) -> Option<Process> {
        let mut found = None;
        let pids = Host::new(crate::host::Roots::default()).pids().unwrap().list().unwrap();
        let sweep =
            processes.sweep(&pids, &mut Known::default(), Deadline::after(Duration::from_secs(60)), |process| {
                if process.pid == pid {
                    found = Some(process);
                }
            });
        assert!(sweep.cut.is_none());
        found
    }

    #[test]
    fn size_and_listing_count_the_same() {
        let host = Host::new(crate::host::Roots::default());
        let child = settled();
        let by_size = Processes::open(&host).unwrap();
        assert_eq!(by_size.counts_by_size(), host.kernel().unwrap().version >= (6, 2));
        assert_eq!(by_size.own_pid(), Some(std::process::id()));
        assert!(by_size.own_numbers);
        // The other way to count, and the other way to get the limit.
        let by_listing = Processes { sized: false, own_numbers: false, ..Processes::open(&host).unwrap() };
        let counts = [&by_size, &by_listing].map(|processes| {
            let process = find(processes, child.0.id()).unwrap();
            assert_eq!(process.comm, Some(Comm::new(b"cat")));
            assert!(matches!(process.limit, Some(Limit::Files(1..))), "{:?}", process.limit);
            (process.fds, process.limit)
        });
        assert!(counts[0].0.is_some_and(|fds| fds >= 3), "{counts:?}");
        assert_eq!(counts[0], counts[1]);
    }

    #[test]
    fn a_kept_process_is_never_another_one() {
        let processes = Processes::open(&Host::new(crate::host::Roots::default())).unwrap();
        let child = sleep();
        let process = find(&processes, child.0.id()).unwrap();
        assert!(process.kinds(10, |_| {}).is_ok());
        drop(child);
        assert!(process.kinds(10, |_| {}).unwrap_err().is_gone());
        assert!(process.cgroup().unwrap_err().is_gone());
    }

    #[test]
    fn kernel_threads_have_no_fds() {
        let processes = Processes::open(&Host::new(crate::host::Roots::default())).unwrap();
        // Only where the procfs is that of the first pid namespace.
        let Some(kthreadd) = find(&processes, 2).filter(|_| processes.entitled()) else {
            let text = "SKIP: kernel_threads_have_no_fds: needs the procfs of the first pid namespace\n";
            let _ = std::io::stderr().write_all(text.as_bytes());
            return;
        };
        assert_eq!(kthreadd.fds, Some(0));
        assert_eq!((kthreadd.comm, kthreadd.limit), (None, None), "nothing else is read of it");
    }

    #[test]
    fn a_folder_is_never_counted_by_size() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("self/fd")).unwrap();
        let roots = crate::host::Roots { proc: dir.path().into(), ..crate::host::Roots::default() };
        let processes = Processes::open(&Host::new(roots)).unwrap();
        assert!(!processes.counts_by_size() && !processes.entitled() && processes.own_pid().is_none());
    }
}
