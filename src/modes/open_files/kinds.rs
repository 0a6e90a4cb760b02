//! What the file descriptors of the processes in detail are, without a link read for each at every scrape.
//!
//! Links are read again when a process has another number of fds, and every [`AGAIN`] scrapes, each process in its
//! turn. What changes in between without changing their number is that a process closes one thing and opens another.

use std::collections::HashMap;

use crate::error::Result;
use crate::host::process::Process;
use crate::host::process::fds::Kinds;

/// Links of a process with as many fds as before are read again after so many scrapes.
const AGAIN: u32 = 4;
/// Of a process with more fds than this nothing is kept: its links are bounded by a budget of their own.
const MOST_KEPT: u64 = 2_000;

#[derive(Debug)]
struct Kept {
    inode: u64,
    fds: u64,
    kinds: Kinds,
    sockets: Vec<u32>,
    seen: u32,
}

/// What was read of processes. Empty at first; see the module's text.
#[derive(Debug, Default)]
pub(super) struct KnownKinds {
    round: u32,
    kept: HashMap<u32, Kept>,
}

impl KnownKinds {
    /// Begins a round.
    pub(super) fn begin(&mut self) {
        self.round = self.round.wrapping_add(1);
    }

    /// The kinds of a process's fds, examining at most `most`, and how many were examined. `socket` is told the inode
    /// number of each socket.
    ///
    /// # Errors
    /// As [`Process::kinds`].
    pub(super) fn of(&mut self, process: &Process, most: usize, mut socket: impl FnMut(u32)) -> Result<(Kinds, usize)> {
        let (Some(inode), Some(fds @ ..=MOST_KEPT)) = (process.inode, process.fds) else {
            return process.kinds(most, socket);
        };
        let (round, is_due) = (self.round, self.round.wrapping_add(process.pid).is_multiple_of(AGAIN));
        if let Some(kept) = self.kept.get_mut(&process.pid)
            && !is_due
            && (kept.inode, kept.fds) == (inode, fds)
        {
            kept.seen = round;
            kept.sockets.iter().copied().for_each(socket);
            return Ok((kept.kinds.clone(), 0));
        }
        let mut sockets = Vec::new();
        let (kinds, examined) = process.kinds(most, |inode| {
            sockets.push(inode);
            socket(inode);
        })?;
        // One that opens and closes while it is looked at is no basis for the next scrape.
        if kinds.unexamined == 0 && kinds.total() == fds {
            let kept = Kept { inode, fds, kinds: kinds.clone(), sockets, seen: round };
            self.kept.insert(process.pid, kept);
        } else {
            self.kept.remove(&process.pid);
        }
        Ok((kinds, examined))
    }

    /// Ends a round: what was not asked for in it is forgotten.
    pub(super) fn end(&mut self) {
        self.kept.retain(|_, kept| kept.seen == self.round);
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::host::process::Processes;
    use crate::host::process::fds::Kind;
    use crate::host::process::known::Known;
    use crate::host::{Deadline, Host, Roots};

    /// Our own process is many tests at once, so another one is looked at.
    struct Cat(Child);

    impl Drop for Cat {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn look(processes: &Processes, pid: u32) -> Process {
        let mut found = None;
        let deadline = Deadline::after(std::time::Duration::from_secs(60));
        processes.sweep(&[pid], &mut Known::default(), deadline, |process| found = Some(process));
        found.unwrap()
    }

    #[test]
    fn links_are_read_when_their_number_changes_and_in_turn() {
        let host = Host::new(Roots::default());
        let processes = Processes::open(&host).unwrap();
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut command = Command::new("cat");
        let stdout = std::os::fd::OwnedFd::from(socket);
        let cat = Cat(command.stdin(Stdio::piped()).stdout(Stdio::from(stdout)).stderr(Stdio::null()).spawn().unwrap());
        let pid = cat.0.id();
        // It has opened what it will ever open once it waits for its input.
        let waits = || host.read(format!("/proc/{pid}/wchan")).unwrap_or_default();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while look(&processes, pid).comm.is_none_or(|comm| comm.text() != "cat") || !waits().contains("pipe") {
            assert!(std::time::Instant::now() < until, "{}", waits());
            std::thread::yield_now();
        }
        let mut known = KnownKinds::default();
        let mut look = |fds: Option<u64>| {
            let mut process = look(&processes, pid);
            process.fds = fds.or(process.fds);
            let mut sockets = Vec::new();
            known.begin();
            let (kinds, examined) = known.of(&process, 100, |inode| sockets.push(inode)).unwrap();
            known.end();
            (examined as u64, kinds, sockets)
        };
        let (fds, kinds, sockets) = look(None);
        assert!(fds == kinds.total() && kinds.get(Kind::Socket) == sockets.len() as u64, "{kinds:?} {sockets:?}");
        assert!([Kind::Pipe, Kind::Socket, Kind::Device].iter().all(|kind| kinds.get(*kind) > 0), "{kinds:?}");
        if !processes.counts_by_size() {
            assert!((0..3 * AGAIN).all(|_| look(None).0 == fds), "nothing tells the process from the next one");
            return;
        }
        let mut reads = Vec::new();
        for _ in 0..3 * AGAIN {
            let (examined, again, inodes) = look(None);
            assert_eq!((again, inodes), (kinds.clone(), sockets.clone()));
            reads.push(examined);
        }
        assert_eq!(reads.iter().filter(|examined| **examined == fds).count(), 3, "{reads:?}");
        assert_eq!(reads.iter().sum::<u64>(), 3 * fds, "{reads:?}");

        assert_eq!(look(Some(fds + 1)).0, fds, "another number of fds");
        assert_eq!(look(None).0, fds, "what moved while it was read is not kept");
        known.begin();
        known.end();
        assert!(known.kept.is_empty(), "what is no longer in detail is forgotten");
    }
}
