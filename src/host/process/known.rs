//! What earlier sweeps read of processes, so that one that goes on as before costs a single system call.
//!
//! **That it is the same process** is proved by the inode number of its `/proc/PID/fd`: the kernel gives a new one to
//! each process (`get_next_ino`), and drops the name with the process (`pid_revalidate` in fs/proc/base.c). Under
//! memory pressure it may give a living process another one: then it is read again.
//!
//! **What may be outdated**: the name and the limit, which `execve(2)`, `prctl(2)`, `setrlimit(2)` and `prlimit(2)`
//! change under the same inode. They are read again one sweep after the first, when the number of fds changed (most
//! programs that start another one close some), and every [`AGAIN`] sweeps.

use super::Process;
use super::parse::{Comm, Limit};

/// A process that does not change is read again after so many sweeps, each in its turn.
pub const AGAIN: u32 = 16;

#[derive(Clone, Copy, Debug)]
struct Entry {
    pid: u32,
    inode: u64,
    fds: u64,
    limit: Option<Limit>,
    comm: Option<Comm>,
    /// Read twice: what it was started as is behind it.
    is_settled: bool,
}

/// Processes by pid. Empty at first; see the module's text.
#[derive(Debug, Default)]
pub struct Known {
    round: u32,
    entries: Vec<Entry>,
    /// The entries of this sweep.
    observed: Vec<Entry>,
    /// How far this sweep has come in `entries`.
    at: usize,
}

/// What is known of a process that goes on as before.
pub(super) struct Facts {
    pub(super) limit: Option<Limit>,
    pub(super) comm: Option<Comm>,
}

impl Known {
    pub(super) fn begin(&mut self) {
        self.round = self.round.wrapping_add(1);
        self.at = 0;
        self.observed.clear();
    }

    /// What is known of the process that has this fd directory now, unless it must be read. Asked in the order of pids.
    pub(super) fn of(&mut self, pid: u32, inode: u64, fds: u64) -> Option<Facts> {
        let entry = *self.find(pid)?;
        let is_due = !entry.is_settled || self.round.wrapping_add(pid).is_multiple_of(AGAIN);
        if is_due || (entry.inode, entry.fds) != (inode, fds) {
            return None;
        }
        self.observed.push(entry);
        Some(Facts { limit: entry.limit, comm: entry.comm })
    }

    /// Takes over what was read of a process just now.
    pub(super) fn learn(&mut self, process: &Process) {
        let Process { pid, limit, comm, .. } = *process;
        let (Some(inode), Some(fds)) = (process.inode, process.fds) else { return };
        let is_settled = self.find(pid).is_some_and(|entry| (entry.inode, entry.comm) == (inode, comm));
        self.observed.push(Entry { pid, inode, fds, limit, comm, is_settled });
    }

    /// Ends a sweep. If that was cut, what it did not come to is still there, as far as we know.
    pub(super) fn end(&mut self, is_whole: bool) {
        let last = self.observed.last().map_or(0, |entry| entry.pid);
        if !is_whole {
            let rest = self.entries.iter().filter(|entry| entry.pid > last);
            self.observed.extend(rest);
        }
        std::mem::swap(&mut self.entries, &mut self.observed);
    }

    fn find(&mut self, pid: u32) -> Option<&Entry> {
        while self.entries.get(self.at).is_some_and(|entry| entry.pid < pid) {
            self.at += 1;
        }
        self.entries.get(self.at).filter(|entry| entry.pid == pid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::process::Processes;
    use crate::host::{Deadline, Host, Roots};
    use std::time::Duration;

    fn process(host: &Processes, inode: u64, fds: u64, limit: u64) -> Process {
        let (inode, fds, limit) = (Some(inode), Some(fds), Some(Limit::Files(limit)));
        Process { inode, fds, limit, comm: Some(Comm::new(b"x")), ..host.unread(7) }
    }

    /// In how many of 100 sweeps it was read, if each finds this.
    fn reads(known: &mut Known, found: impl Fn(u32) -> Process) -> Vec<u32> {
        let mut reads = Vec::new();
        for round in 0..100 {
            known.begin();
            let process = found(round);
            if known.of(7, process.inode.unwrap(), process.fds.unwrap()).is_none() {
                known.learn(&process);
                reads.push(round);
            }
            known.end(true);
        }
        reads
    }

    #[test]
    fn what_goes_on_as_before_is_read_in_turn() {
        let host = Processes::open(&Host::new(Roots::default())).unwrap();
        let unchanged = reads(&mut Known::default(), |_| process(&host, 1, 5, 10));
        assert_eq!(unchanged[..2], [0, 1], "when it is new, and once more");
        assert!(unchanged[1..].windows(2).all(|two| two[1] - two[0] <= AGAIN), "{unchanged:?}");
        assert!((7..=9).contains(&unchanged.len()), "{unchanged:?}");
        let busy = reads(&mut Known::default(), |round| process(&host, 1, round.into(), 10));
        assert_eq!(busy.len(), 100, "its fds change");
        let another = reads(&mut Known::default(), |round| process(&host, u64::from(round / 50), 5, 10));
        assert!(another.contains(&50) && another.contains(&51), "another process with its number: {another:?}");
    }

    #[test]
    fn a_sweep_that_is_cut_forgets_nobody() {
        let host = Host::new(Roots::default());
        let (processes, mut known) = (Processes::open(&host).unwrap(), Known::default());
        let pids = host.pids().unwrap().list().unwrap();
        let mut sweep = |deadline| processes.sweep(&pids, &mut known, Deadline::after(deadline), drop).cut.is_some();
        assert!(!sweep(Duration::from_secs(60)) && sweep(Duration::ZERO));
        assert!(known.entries.len() > 1 || !processes.counts_by_size());
    }
}
