//! The `pids` controller: how many tasks a cgroup has, how many it may have, and what was refused.
//!
//! It counts tasks, which is to say threads, of a cgroup and of everything below it; a process is one at least. There
//! are no such files in the root of a hierarchy. All are small: opened, read by one `read`, closed.
//!
//! **`pids.events`** (Linux 4.8) counts forks that a limit refused. Which cgroup counts one differs:
//!
//! | | counts in |
//! |---|---|
//! | v1; cgroup2 before 6.11, or with `pids_localevents` | the one of the task that wanted to fork, and no other |
//! | cgroup2 since 6.11 (`pids.events.local` is there) | the one whose limit refused it, and all above that |
//!
//! (`pids_can_fork` and `pids_event` in kernel/cgroup/pids.c, the "Separate semantics" series of May 2024. Seen on
//! 5.10, 6.1, 6.12, 6.18 and 7.2.)

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::Hierarchy;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::text::keyed;

/// Processes of one cgroup that are read at the most, in bytes of `cgroup.procs`.
const MOST_PROCS: usize = 8 << 10;

/// A hierarchy with the `pids` controller, open. Cgroups are named by their path from its root, without a slash in
/// front.
#[derive(Debug)]
pub struct TaskFiles {
    dir: OwnedFd,
    shown: String,
    /// On cgroup2.
    pub unified: bool,
}

impl TaskFiles {
    /// Opens it.
    ///
    /// # Errors
    /// The operating system's, with the path.
    pub fn open(hierarchy: &Hierarchy) -> Result<Self> {
        let shown = hierarchy.path.display().to_string();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&hierarchy.path, flags, Mode::empty());
        let dir = dir.map_err(|errno| Error::os(&shown, &errno.into()))?;
        Ok(TaskFiles { dir, shown, unified: hierarchy.unified })
    }

    /// Tasks in it and below: `pids.current`. `None` if it is gone, is the root, or the controller is not on here.
    ///
    /// # Errors
    /// The operating system's; malformed if it is no number.
    pub fn current(&self, cgroup: &str) -> Result<Option<u64>> {
        let text = self.read(cgroup, "pids.current")?;
        text.map(|text| text.trim().parse().map_err(|_| self.malformed(cgroup, "pids.current", &text))).transpose()
    }

    /// Its own limit, `pids.max`; [`u64::MAX`] without one. `None` as [`TaskFiles::current`].
    ///
    /// # Errors
    /// As [`TaskFiles::current`].
    pub fn max(&self, cgroup: &str) -> Result<Option<u64>> {
        let text = self.read(cgroup, "pids.max")?;
        let parse = |text: String| match text.trim() {
            "max" => Ok(u64::MAX),
            number => number.parse().map_err(|_| self.malformed(cgroup, "pids.max", &text)),
        };
        text.map(parse).transpose()
    }

    /// `max` of its `pids.events`: see the head of this file for what that counts. `None` as [`TaskFiles::current`],
    /// and before Linux 4.8.
    ///
    /// # Errors
    /// As [`TaskFiles::current`].
    pub fn refused(&self, cgroup: &str) -> Result<Option<u64>> {
        let text = self.read(cgroup, "pids.events")?;
        text.map(|text| keyed(&text, "max").ok_or_else(|| self.malformed(cgroup, "pids.events", &text))).transpose()
    }

    /// True if a refusal counts in the cgroup whose limit it was, and in all above; false if only in that of the task
    /// that wanted to fork. By any cgroup but the root.
    ///
    /// # Errors
    /// The operating system's.
    pub fn counts_by_limit(&self, host: &Host, cgroup: &str) -> Result<bool> {
        if !self.unified || self.read(cgroup, "pids.events.local")?.is_none() {
            return Ok(false);
        }
        // An option of the file system, the same in every mount of it.
        let mounts = host.read_some(host.proc("self/mountinfo"))?.unwrap_or_default();
        let local = |line: &str| line.contains(" - cgroup2 ") && line.contains("pids_localevents");
        Ok(!mounts.lines().any(local))
    }

    /// What tells it from a later one of its name; `None` if it is gone.
    pub fn inode(&self, cgroup: &str) -> Option<u64> {
        rustix::fs::statat(&self.dir, cgroup, AtFlags::SYMLINK_NOFOLLOW).ok().map(|stat| stat.st_ino)
    }

    /// The processes in it, not those below. `None` if they are more than a thousand or so, or it is gone or threaded.
    ///
    /// # Errors
    /// The operating system's.
    pub fn processes(&self, cgroup: &str) -> Result<Option<Vec<u32>>> {
        let mut buffer = vec![0; MOST_PROCS];
        let Some(length) = self.read_into(cgroup, "cgroup.procs", &mut buffer)? else { return Ok(None) };
        if length == MOST_PROCS {
            return Ok(None);
        }
        // A process outside of our pid namespace is 0.
        let pids = String::from_utf8_lossy(&buffer[..length]);
        Ok(Some(pids.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()))
    }

    fn read(&self, cgroup: &str, file: &str) -> Result<Option<String>> {
        let mut buffer = [0; 128];
        let length = self.read_into(cgroup, file, &mut buffer)?;
        Ok(length.map(|length| String::from_utf8_lossy(&buffer[..length]).into_owned()))
    }

    fn read_into(&self, cgroup: &str, file: &str, buffer: &mut [u8]) -> Result<Option<usize>> {
        let path = if cgroup.is_empty() { file.to_owned() } else { format!("{cgroup}/{file}") };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NOFOLLOW;
        let fd = rustix::fs::openat(&self.dir, &path, flags, Mode::empty());
        let mut length = 0;
        let read = fd.and_then(|fd| {
            while length < buffer.len() {
                let more = rustix::io::read(&fd, &mut buffer[length..])?;
                length += more;
                // A short read of these files is their end, but of cgroup.procs, which comes in pages.
                if more == 0 || (file != "cgroup.procs" && length < buffer.len()) {
                    break;
                }
            }
            Ok(())
        });
        match read {
            Ok(()) => Ok(Some(length)),
            Err(Errno::NOENT | Errno::NODEV | Errno::NOTDIR | Errno::OPNOTSUPP) => Ok(None),
            Err(errno) => Err(Error::os(format_args!("{}/{path}", self.shown), &errno.into())),
        }
    }

    fn malformed(&self, cgroup: &str, file: &str, text: &str) -> Error {
        Error::malformed(format!("{}/{cgroup}/{file}: {:?}", self.shown, text.trim()))
    }
}

/// The path of a process's cgroup in the hierarchy with the `pids` controller, by its `/proc/PID/cgroup`: without a
/// slash in front, and empty for the root.
pub fn path_in(cgroups: &str, unified: bool) -> Option<&str> {
    cgroups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let meant = if unified { number == "0" } else { controllers.split(',').any(|name| name == "pids") };
        let path = path.strip_suffix(" (deleted)").unwrap_or(path);
        if meant { path.strip_prefix('/') } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Reason;
    use crate::host::cgroup::recorded::Machine;

    #[test]
    fn the_file_of_a_process_names_its_cgroup() {
        let v1 = "9:name=systemd:/a\n8:pids:/system.slice/kubelet.service\n1:cpu,cpuacct:/b\n0::/c\n";
        assert_eq!(path_in(v1, false), Some("system.slice/kubelet.service"));
        assert_eq!(path_in(v1, true), Some("c"));
        assert_eq!(path_in("5:net_cls,pids:/x:y (deleted)\n0::/\n", false), Some("x:y"));
        assert_eq!(path_in("0::/\n", true), Some(""));
        assert_eq!(path_in("0::/\n", false), None);
    }

    #[test]
    fn each_file_is_there_or_not_or_nonsense() {
        let machine = Machine::v2();
        let files = |text: &str| {
            machine.cgroup("a/pids.current", text);
            machine.cgroup("a/pids.max", text);
            machine.cgroup("a/pids.events", text);
            let hierarchy = crate::host::cgroup::Layout::detect(&machine.host).unwrap().unified().unwrap().clone();
            let files = TaskFiles::open(&hierarchy).unwrap();
            let reason = |result: Result<Option<u64>>| result.map_err(|error| error.reason());
            [files.current("a"), files.max("a"), files.refused("a"), files.current("b")].map(reason)
        };
        let bad = Err(Reason::Malformed);
        assert_eq!(files("7\n"), [Ok(Some(7)), Ok(Some(7)), bad, Ok(None)]);
        assert_eq!(files("max\n"), [bad, Ok(Some(u64::MAX)), bad, Ok(None)]);
        assert_eq!(files("max 3\n"), [bad, bad, Ok(Some(3)), Ok(None)]);
    }
}
