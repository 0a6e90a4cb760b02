//! The index: which process holds which inotify instances, brought up to date within budgets.

use std::collections::BTreeMap;

use crate::error::{Error, Reason};
use crate::host::Deadline;
use crate::host::process::fds::Kind;
use crate::host::process::{Process, Processes};

use super::super::Settings;
use super::watches::WatchCounter;
use super::{Usage, Used};

/// Instances remembered. A node has hundreds; the kernel's limit is per user, so users multiply it.
const MOST_INSTANCES: usize = 10_000;
/// A changed process with more fds than this waits for its next examination, so that it costs this many links per
/// scrape.
const LARGE: u32 = 1_000;
/// Bytes of fdinfo that one scrape reads: some 32,000 watches.
const FDINFO_BYTES: u64 = 4 << 20;
/// Bytes of fdinfo of one instance: some 250,000 watches. Larger ones than [`FDINFO_BYTES`] are read one at a time, and
/// then not for as many scrapes as their size would have filled.
const FDINFO_BYTES_OF_ONE: u64 = 32 << 20;

const UNKNOWN: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Never examined to the end.
    New,
    Known,
    /// We may not look.
    Refused,
    /// Too many instances on this machine to remember its own.
    Overflow,
}

/// A process with fds. 20 bytes: there may be tens of thousands.
#[derive(Clone, Copy, Debug)]
struct Entry {
    pid: u32,
    fds: u32,
    comm: u32,
    /// The round in which an examination was last completed or refused.
    examined: u32,
    state: State,
    changed: bool,
}

#[derive(Debug)]
struct Holder {
    uid: u32,
    instances: Vec<Instance>,
}

#[derive(Clone, Copy, Debug)]
struct Instance {
    fd: u32,
    watches: Option<u32>,
    /// Size of its fdinfo, as far as is known.
    bytes: u32,
    /// The round in which its watches were last counted.
    read: u32,
    /// The round in which its link was last read.
    checked: u32,
}

/// An examination that the budget cut.
#[derive(Debug, Default)]
struct Partial {
    next: Option<u64>,
    looked_at: u32,
    found: Vec<u32>,
}

/// Who holds which inotify instances. Empty at first; see the module's text.
#[derive(Debug, Default)]
pub(in super::super) struct Index {
    round: u32,
    /// By pid.
    entries: Vec<Entry>,
    /// The entries of this round, until [`Index::update`].
    observed: Vec<Entry>,
    /// How far this round has come in `entries`.
    at: usize,
    holders: BTreeMap<u32, Holder>,
    partial: BTreeMap<u32, Partial>,
    /// Every process was examined once.
    warm: bool,
    /// The pid at which the examination in turn goes on.
    turn: u32,
    /// Bytes of a large fdinfo that are not yet made up for.
    debt: u64,
}

impl Index {
    /// Begins a round.
    pub(in super::super) fn begin(&mut self) {
        self.round += 1;
        self.at = 0;
        self.observed = Vec::with_capacity(self.entries.len() + 16);
    }

    /// Notes a process of this round. They come in the order of their pids.
    pub(in super::super) fn observe(&mut self, process: &Process) {
        let fds = process.fds.map_or(UNKNOWN, |fds| fds.try_into().unwrap_or(UNKNOWN - 1));
        self.note(process.pid, fds, process.comm.map_or(0, |comm| comm.hash32()));
    }

    fn note(&mut self, pid: u32, fds: u32, comm: u32) {
        if fds == 0 {
            return;
        }
        while self.entries.get(self.at).is_some_and(|entry| entry.pid < pid) {
            self.at += 1;
        }
        let known = self.entries.get(self.at).filter(|entry| entry.pid == pid).copied();
        // One that calls itself something else may be another process with the same pid.
        let entry = match known.filter(|entry| entry.comm == comm) {
            Some(entry) => Entry { fds, changed: entry.changed || entry.fds != fds, ..entry },
            None => {
                if known.is_some() {
                    self.holders.remove(&pid);
                    self.partial.remove(&pid);
                }
                Entry { pid, fds, comm, examined: 0, state: State::New, changed: true }
            }
        };
        self.observed.push(entry);
    }

    /// Ends a round: examines within the budgets, and says what is in use. `complete`: every process was observed.
    pub(in super::super) fn update(
        &mut self,
        processes: &Processes,
        settings: &Settings,
        complete: bool,
        deadline: Deadline,
    ) -> Usage {
        let rest = if complete { self.entries.len() } else { self.at.min(self.entries.len()) };
        // Those that were not observed because the sweep was cut are still there, as far as we know.
        let last = self.observed.last().map_or(0, |entry| entry.pid);
        self.observed.extend(self.entries[rest..].iter().filter(|entry| entry.pid > last));
        self.entries = std::mem::take(&mut self.observed);
        let entries = &self.entries;
        let lives = |pid: &u32| entries.binary_search_by_key(pid, |entry| entry.pid).is_ok();
        self.holders.retain(|pid, _| lives(pid));
        self.partial.retain(|pid, _| lives(pid));

        let left = self.examine_changed(processes, settings.inotify_max_readlinks, deadline);
        self.examine_in_turn(processes, settings.inotify_reexamine.min(left), deadline);
        self.check_known(processes, deadline);
        self.count_watches(processes, deadline);
        self.holders.retain(|_, holder| !holder.instances.is_empty());
        self.warm |= complete && self.entries.iter().all(|entry| entry.state != State::New);
        self.usage(deadline)
    }

    /// New and changed processes, those that waited longest first, then small ones first. None takes more than half of
    /// what is left, so that a giant cannot keep all others waiting.
    fn examine_changed(&mut self, processes: &Processes, budget: usize, deadline: Deadline) -> usize {
        let round = self.round;
        let due = |entry: &Entry| {
            entry.changed
                && (entry.examined == 0 || entry.fds == UNKNOWN || round - entry.examined >= entry.fds / LARGE)
        };
        let mut due: Vec<u32> = (0..self.entries.len() as u32).filter(|&i| due(&self.entries[i as usize])).collect();
        due.sort_unstable_by_key(|&i| {
            let entry = &self.entries[i as usize];
            (entry.examined, entry.fds, entry.pid)
        });
        let mut left = budget;
        for i in due {
            if left == 0 || deadline.expired() {
                break;
            }
            left = left.saturating_sub(self.examine(processes, i as usize, (left / 2).max(LARGE as usize).min(left)));
        }
        left
    }

    /// Looks again at what seems unchanged, going round by pid.
    fn examine_in_turn(&mut self, processes: &Processes, budget: usize, deadline: Deadline) {
        let start = self.entries.partition_point(|entry| entry.pid < self.turn);
        let mut left = budget;
        for step in 0..self.entries.len() {
            if left == 0 || deadline.expired() {
                break;
            }
            let i = (start + step) % self.entries.len();
            let Entry { pid, examined, changed, .. } = self.entries[i];
            // A changed one waits for its own turn, in `examine_changed`.
            if examined == self.round || changed {
                continue;
            }
            left = left.saturating_sub(self.examine(processes, i, left).max(1));
            self.turn = if self.partial.contains_key(&pid) { pid } else { pid + 1 };
        }
    }

    /// Looks at up to `most` fds of one process, going on where an earlier examination was cut. Returns how many.
    fn examine(&mut self, processes: &Processes, i: usize, most: usize) -> usize {
        let pid = self.entries[i].pid;
        let mut partial = self.partial.remove(&pid).unwrap_or_default();
        let found = &mut partial.found;
        let result = processes.open_fds(pid).and_then(|fds| {
            fds.examine(partial.next, most, |fd, kind| {
                if kind == Kind::Inotify {
                    found.push(fd);
                }
            })
            .map_err(|errno| Error::os(pid, &errno.into()))
        });
        let (state, looked_at) = match result {
            Ok(examined) => {
                if examined.next.is_some() {
                    partial.next = examined.next;
                    partial.looked_at = partial.looked_at.saturating_add(examined.looked_at as u32);
                    self.partial.insert(pid, partial);
                    return examined.looked_at.max(1);
                }
                (self.remember(processes, pid, partial.found), examined.looked_at.max(1))
            }
            // It exited: there is nothing that we do not know.
            Err(error) if error.is_gone() => (self.remember(processes, pid, Vec::new()), 1),
            // We are out of fds or the like: not its fault, try again.
            Err(error) if error.reason() != Reason::Denied => return 1,
            Err(_) => (State::Refused, 1),
        };
        self.entries[i] = Entry { state, examined: self.round, changed: false, ..self.entries[i] };
        looked_at
    }

    /// Takes over which fds of a process are inotify, keeping what is known of those that were before.
    fn remember(&mut self, processes: &Processes, pid: u32, mut found: Vec<u32>) -> State {
        found.sort_unstable();
        found.dedup();
        if found.is_empty() {
            self.holders.remove(&pid);
            return State::Known;
        }
        let others: usize =
            self.holders.iter().filter(|(other, _)| **other != pid).map(|(_, h)| h.instances.len()).sum();
        if others + found.len() > MOST_INSTANCES {
            self.holders.remove(&pid);
            return State::Overflow;
        }
        let old = self.holders.remove(&pid);
        let uid = match &old {
            Some(old) => old.uid,
            None => match processes.effective_uid(pid) {
                Ok(uid) => uid,
                Err(error) if error.is_gone() => return State::Known,
                Err(_) => return State::Refused,
            },
        };
        let old = old.map(|old| old.instances).unwrap_or_default();
        let instance = |fd| {
            let known = old.iter().find(|instance| instance.fd == fd).copied();
            let known = known.unwrap_or(Instance { fd, watches: None, bytes: 0, read: 0, checked: 0 });
            Instance { checked: self.round, ..known }
        };
        let instances = found.into_iter().map(instance).collect();
        self.holders.insert(pid, Holder { uid, instances });
        State::Known
    }

    /// Drops instances that were closed since.
    fn check_known(&mut self, processes: &Processes, deadline: Deadline) {
        for (&pid, holder) in &mut self.holders {
            let mut refused = false;
            holder.instances.retain_mut(|instance| {
                if instance.checked == self.round || deadline.expired() {
                    return true;
                }
                instance.checked = self.round;
                // One that runs a program of more rights now is closed to us from then on.
                processes.kind(pid, instance.fd).map_or_else(
                    |_| {
                        refused = true;
                        true
                    },
                    |kind| kind == Some(Kind::Inotify),
                )
            });
            if let (true, Ok(i)) = (refused, self.entries.binary_search_by_key(&pid, |entry| entry.pid)) {
                self.entries[i].state = State::Refused;
            }
        }
    }

    /// Counts the watches of as many instances as the budget allows, those first that waited longest.
    fn count_watches(&mut self, processes: &Processes, deadline: Deadline) {
        let mut order: Vec<(u32, u32, usize)> = Vec::new();
        for (&pid, holder) in &self.holders {
            order.extend(holder.instances.iter().enumerate().map(|(i, instance)| (instance.read, pid, i)));
        }
        order.sort_unstable();
        self.debt = self.debt.saturating_sub(FDINFO_BYTES);
        let (mut left, mut large) = (FDINFO_BYTES, self.debt == 0);
        for (_, pid, i) in order {
            let Some(instance) = self.holders.get_mut(&pid).and_then(|holder| holder.instances.get_mut(i)) else {
                continue;
            };
            let budget = if u64::from(instance.bytes) <= left {
                left
            } else if std::mem::take(&mut large) {
                FDINFO_BYTES_OF_ONE
            } else {
                continue;
            };
            let mut counter = WatchCounter::default();
            let read = processes.fdinfo(pid, instance.fd, |chunk| {
                counter.feed(chunk);
                counter.bytes <= budget && !deadline.expired()
            });
            if budget > left {
                self.debt = counter.bytes;
            } else {
                left = left.saturating_sub(counter.bytes);
            }
            instance.bytes = counter.bytes.try_into().unwrap_or(u32::MAX);
            let whole = counter.bytes <= budget && !deadline.expired();
            match read {
                Ok(()) if whole => (instance.watches, instance.read) = (Some(counter.watches), self.round),
                // Cut: an earlier count stands, and its size says that it needs more next time.
                Ok(()) => {}
                // Closed just now.
                Err(error) if error.is_gone() => instance.checked = 0,
                Err(_) => instance.watches = None,
            }
        }
        for holder in self.holders.values_mut() {
            holder.instances.retain(|instance| instance.checked != 0);
        }
    }

    fn usage(&self, deadline: Deadline) -> Usage {
        let mut usage = Usage::default();
        for entry in &self.entries {
            match entry.state {
                State::Known => continue,
                State::Overflow => {
                    usage.dropped += 1;
                    continue;
                }
                State::Refused => usage.refused += 1,
                State::New => {}
            }
            let looked_at = self.partial.get(&entry.pid).map_or(0, |partial| partial.looked_at);
            let fds = if entry.fds == UNKNOWN { 1 } else { entry.fds };
            usage.unexamined += u64::from(fds.saturating_sub(looked_at).max(1));
        }
        usage.timeout = deadline.expired();
        if !self.warm || usage.timeout {
            return usage;
        }
        let mut uids: BTreeMap<u32, Used> = BTreeMap::new();
        for holder in self.holders.values() {
            let used = uids.entry(holder.uid).or_insert(Used { instances: 0, watches: Some(0) });
            used.instances += holder.instances.len() as u64;
            for instance in &holder.instances {
                used.watches = used.watches.zip(instance.watches).map(|(sum, watches)| sum + u64::from(watches));
                usage.dropped += u64::from(instance.watches.is_none());
            }
        }
        usage.uids = Some(uids);
        usage
    }
}
