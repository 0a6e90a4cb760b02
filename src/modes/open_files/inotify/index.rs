//! The index: which process holds which inotify instances, brought up to date within budgets.

use std::collections::BTreeMap;

use crate::error::{Error, Reason};
use crate::host::process::fds::Kind;
use crate::host::process::{Process, Processes};
use crate::host::{Deadline, Host};

use super::super::Settings;
use super::super::pods::Pods;
use super::watches::WatchCounter;
use super::{Usage, Used};

/// Instances remembered, of the node's own and of pods each. A node has hundreds; the kernel's limit is per user, so
/// users multiply it, and copies of an fd have none.
const MOST_INSTANCES: usize = 10_000;
/// Of one pod...
const MOST_OF_POD: usize = 1_000;
/// ...and so many even if others have used up what there is for all.
const LEAST_OF_POD: usize = 100;
/// A changed process with more fds than this waits for its next examination, so that it costs this many links per
/// scrape.
const LARGE: u32 = 1_000;
/// Bytes of fdinfo that one scrape reads: some 32,000 watches.
const FDINFO_BYTES: u64 = 4 << 20;
/// Bytes of the first look at an instance: nobody knows how many it has.
const FIRST_LOOK: u64 = 256 << 10;
/// Rounds for which the last known sum of a process stands while some of its instances are not known. Longer than an
/// alert waits, with two Prometheis and a scrape in 15 s.
pub(super) const HELD: u32 = 40;
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
    /// Whom the kernel charges.
    uid: u32,
    /// The pod whose share of the budgets it takes; `None` of the node's own.
    share: Share,
    instances: Vec<Instance>,
    /// One was closed since its fds were examined: there may be another in its place.
    lost: bool,
    /// Instances and watches when all were known, and the round of that.
    last: Option<(u64, u64, u32)>,
}

type Share = Option<Box<str>>;

/// With what an update looks.
#[derive(Clone, Copy)]
pub(in super::super) struct Look<'a> {
    pub(in super::super) processes: &'a Processes,
    pub(in super::super) host: &'a Host,
    pub(in super::super) pods: &'a Pods,
    pub(in super::super) deadline: Deadline,
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
    /// In which round a large fdinfo of whom was read.
    large: BTreeMap<Share, u32>,
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
            Some(entry) => {
                // What is soon read as a whole need not go on where it was cut.
                if entry.fds != fds && fds <= LARGE {
                    self.partial.remove(&pid);
                }
                Entry { fds, changed: entry.changed || entry.fds != fds, ..entry }
            }
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
    pub(in super::super) fn update(&mut self, look: Look<'_>, settings: &Settings, complete: bool) -> Usage {
        let rest = if complete { self.entries.len() } else { self.at.min(self.entries.len()) };
        // Those that were not observed because the sweep was cut are still there, as far as we know.
        let last = self.observed.last().map_or(0, |entry| entry.pid);
        self.observed.extend(self.entries[rest..].iter().filter(|entry| entry.pid > last));
        self.entries = std::mem::take(&mut self.observed);
        let entries = &self.entries;
        let lives = |pid: &u32| entries.binary_search_by_key(pid, |entry| entry.pid).is_ok();
        self.holders.retain(|pid, _| lives(pid));
        self.partial.retain(|pid, _| lives(pid));

        let left = self.examine_changed(look, settings.inotify_max_readlinks);
        self.check_known(look);
        // Whoever closed one and has as many fds as before has opened something.
        let left = self.examine_changed(look, left);
        self.examine_in_turn(look, settings.inotify_reexamine.min(self.part_in_turn()).min(left));
        self.count_watches(look);
        let round = self.round;
        self.holders.retain(|_, holder| !holder.instances.is_empty() || (holder.lost && holder.last(round).is_some()));
        self.warm |= complete && self.entries.iter().all(|entry| entry.state != State::New);
        self.usage(look.deadline)
    }

    /// New and changed processes, those that waited longest first, then small ones first. None takes more than half of
    /// what is left, so that a giant cannot keep all others waiting; and new ones leave half of all to the others, so
    /// that somebody who starts processes without end cannot.
    fn examine_changed(&mut self, look: Look<'_>, budget: usize) -> usize {
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
        let (new, changed): (Vec<u32>, Vec<u32>) =
            due.into_iter().partition(|&i| self.entries[i as usize].examined == 0);
        let kept = if new.is_empty() { 0 } else { budget / 2 };
        let left = self.examine_all(look, &changed, budget - kept) + kept;
        let left = self.examine_all(look, &new, left);
        self.examine_all(look, &changed, left)
    }

    /// Examines these processes as far as they have not been. Returns what is left of the budget.
    fn examine_all(&mut self, look: Look<'_>, entries: &[u32], budget: usize) -> usize {
        let mut left = budget;
        for i in entries.iter().map(|&i| i as usize) {
            if left == 0 || look.deadline.expired() {
                break;
            }
            if self.entries[i].changed {
                left = left.saturating_sub(self.examine(look, i, (left / 2).max(LARGE as usize).min(left)));
            }
        }
        left
    }

    /// Of all fds an eighth: a node with few of them need not read each at every scrape.
    fn part_in_turn(&self) -> usize {
        let counted = self.entries.iter().map(|entry| entry.fds).filter(|fds| *fds != UNKNOWN);
        // A process takes one even if nobody knows how many it has.
        counted.map(|fds| fds as usize).sum::<usize>() / 8 + self.entries.len() / 8 + 1
    }

    /// Looks again at what seems unchanged, going round by pid.
    fn examine_in_turn(&mut self, look: Look<'_>, budget: usize) {
        let start = self.entries.partition_point(|entry| entry.pid < self.turn);
        let mut left = budget;
        for step in 0..self.entries.len() {
            if left == 0 || look.deadline.expired() {
                break;
            }
            let i = (start + step) % self.entries.len();
            let Entry { pid, examined, changed, .. } = self.entries[i];
            // A changed one waits for its own turn, in `examine_changed`.
            if examined == self.round || changed {
                continue;
            }
            left = left.saturating_sub(self.examine(look, i, left).max(1));
            self.turn = if self.partial.contains_key(&pid) { pid } else { pid + 1 };
        }
    }

    /// Looks at up to `most` fds of one process, going on where an earlier examination was cut. Returns how many.
    fn examine(&mut self, look: Look<'_>, i: usize, most: usize) -> usize {
        let pid = self.entries[i].pid;
        let mut partial = self.partial.remove(&pid).unwrap_or_default();
        let found = &mut partial.found;
        let result = look.processes.open_fds(pid).and_then(|fds| {
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
                (self.remember(look, pid, partial.found), examined.looked_at.max(1))
            }
            // It exited: there is nothing that we do not know.
            Err(error) if error.is_gone() => (self.remember(look, pid, Vec::new()), 1),
            // We are out of fds or the like: not its fault, try again.
            Err(error) if error.reason() != Reason::Denied => return 1,
            Err(_) => (State::Refused, 1),
        };
        self.entries[i] = Entry { state, examined: self.round, changed: false, ..self.entries[i] };
        looked_at
    }

    /// Takes over which fds of a process are inotify, keeping what is known of those that were before.
    fn remember(&mut self, look: Look<'_>, pid: u32, mut found: Vec<u32>) -> State {
        found.sort_unstable();
        found.dedup();
        let old = self.holders.remove(&pid);
        if found.is_empty() {
            return State::Known;
        }
        let (uid, share) = match &old {
            Some(old) => (old.uid, old.share.clone()),
            None => match look.processes.charged_uid(pid) {
                Ok(uid) => (uid, look.pods.of_pid(look.host, pid).share().map(Box::from)),
                Err(error) if error.is_gone() => return State::Known,
                Err(_) => return State::Refused,
            },
        };
        let (mut alike, mut of_pod) = (found.len(), found.len());
        for other in self.holders.values() {
            alike += if other.share.is_some() == share.is_some() { other.instances.len() } else { 0 };
            of_pod += if other.share == share { other.instances.len() } else { 0 };
        }
        let too_many = match share {
            None => alike > MOST_INSTANCES,
            Some(_) => of_pod > MOST_OF_POD || (alike > MOST_INSTANCES && of_pod > LEAST_OF_POD),
        };
        if too_many {
            return State::Overflow;
        }
        let (old, last) = old.map_or((Vec::new(), None), |old| (old.instances, old.last));
        let instance = |fd| {
            let known = old.iter().find(|instance| instance.fd == fd).copied();
            let known = known.unwrap_or(Instance { fd, watches: None, bytes: 0, read: 0, checked: 0 });
            Instance { checked: self.round, ..known }
        };
        let instances = found.into_iter().map(instance).collect();
        self.holders.insert(pid, Holder { uid, share, instances, lost: false, last });
        State::Known
    }

    /// Drops instances that were closed since.
    fn check_known(&mut self, look: Look<'_>) {
        for (&pid, holder) in &mut self.holders {
            let (mut refused, before) = (false, holder.instances.len());
            holder.instances.retain_mut(|instance| {
                if instance.checked == self.round || look.deadline.expired() {
                    return true;
                }
                instance.checked = self.round;
                // One that runs a program of more rights now is closed to us from then on.
                look.processes.kind(pid, instance.fd).map_or_else(
                    |_| {
                        refused = true;
                        true
                    },
                    |kind| kind == Some(Kind::Inotify),
                )
            });
            let lost = holder.instances.len() < before;
            holder.lost |= lost;
            if let (true, Ok(i)) = (lost || refused, self.entries.binary_search_by_key(&pid, |entry| entry.pid)) {
                let entry = &mut self.entries[i];
                entry.state = if refused { State::Refused } else { entry.state };
                entry.changed |= lost;
            }
        }
    }

    /// The known instances in the order in which their watches are counted: of each pod one, then of each the second,
    /// and so on, and of the node's own eight each time. Of these first who waited longest.
    fn order(&self) -> Vec<(u32, usize)> {
        const OWN: usize = 8;
        let mut by_age: Vec<(u32, u32, usize)> = Vec::new();
        for (&pid, holder) in &self.holders {
            by_age.extend(holder.instances.iter().enumerate().map(|(i, instance)| (instance.read, pid, i)));
        }
        by_age.sort_unstable();
        let mut met: BTreeMap<&Share, usize> = BTreeMap::new();
        let mut order: Vec<(usize, u32, usize)> = Vec::with_capacity(by_age.len());
        for (_, pid, i) in by_age {
            let Some(holder) = self.holders.get(&pid) else { continue };
            let count = met.entry(&holder.share).or_default();
            order.push((if holder.share.is_none() { *count / OWN } else { *count }, pid, i));
            *count += 1;
        }
        order.sort_by_key(|(rank, ..)| *rank);
        order.into_iter().map(|(_, pid, i)| (pid, i)).collect()
    }

    /// Counts the watches of as many instances as the budget allows.
    fn count_watches(&mut self, look: Look<'_>) {
        self.debt = self.debt.saturating_sub(FDINFO_BYTES);
        let (mut left, mut large) = (FDINFO_BYTES, Vec::new());
        for (pid, i) in self.order() {
            let Some(instance) = self.holders.get(&pid).and_then(|holder| holder.instances.get(i)) else { continue };
            let most = match u64::from(instance.bytes) {
                0 => FIRST_LOOK.min(left),
                // It may have grown, but not into what others need.
                bytes if bytes <= left => (2 * bytes + (FIRST_LOOK / 4)).min(left),
                _ => {
                    large.push((instance.read, pid, i));
                    continue;
                }
            };
            if most > 0 {
                left = left.saturating_sub(self.count(look, pid, i, most));
            }
        }
        // Whoever's turn is longest ago.
        let shares: BTreeMap<u32, Share> = self.holders.iter().map(|(&pid, h)| (pid, h.share.clone())).collect();
        self.large.retain(|share, _| shares.values().any(|other| other == share));
        let rested = self.debt == 0;
        while rested && self.debt < FDINFO_BYTES && !look.deadline.expired() {
            let turn = |&(read, pid, _): &(u32, u32, usize)| {
                (shares.get(&pid).and_then(|share| self.large.get(share)).copied().unwrap_or(0), read, pid)
            };
            let Some(next) = (0..large.len()).min_by_key(|&at| turn(&large[at])) else { break };
            let (_, pid, i) = large.swap_remove(next);
            self.large.insert(shares.get(&pid).cloned().flatten(), self.round);
            self.debt += self.count(look, pid, i, FDINFO_BYTES_OF_ONE);
        }
        for (&pid, holder) in &mut self.holders {
            let before = holder.instances.len();
            holder.instances.retain(|instance| instance.checked != 0);
            if holder.instances.len() < before {
                holder.lost = true;
                if let Ok(i) = self.entries.binary_search_by_key(&pid, |entry| entry.pid) {
                    self.entries[i].changed = true;
                }
            }
        }
    }

    /// Counts the watches of one instance, reading so many bytes at the most. Returns how many it read.
    fn count(&mut self, look: Look<'_>, pid: u32, i: usize, most: u64) -> u64 {
        let round = self.round;
        let Some(instance) = self.holders.get_mut(&pid).and_then(|holder| holder.instances.get_mut(i)) else {
            return 0;
        };
        let mut counter = WatchCounter::default();
        let read = look.processes.fdinfo(pid, instance.fd, |chunk| {
            counter.feed(chunk);
            counter.bytes <= most && !look.deadline.expired()
        });
        let whole = counter.bytes <= most && !look.deadline.expired();
        let bytes = if whole || most == FDINFO_BYTES_OF_ONE { counter.bytes } else { FDINFO_BYTES + 1 };
        instance.bytes = bytes.try_into().unwrap_or(u32::MAX);
        match read {
            Ok(()) if whole => (instance.watches, instance.read) = (Some(counter.watches), round),
            // Cut: an earlier count stands, and its size says that it needs more next time.
            Ok(()) => {}
            // Closed just now.
            Err(error) if error.is_gone() => instance.checked = 0,
            Err(_) => instance.watches = None,
        }
        counter.bytes
    }

    fn usage(&mut self, deadline: Deadline) -> Usage {
        let mut usage = Usage::default();
        for entry in &self.entries {
            match entry.state {
                State::Known => continue,
                State::Overflow => usage.overflown.push(entry.pid),
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
        let round = self.round;
        let mut uids: BTreeMap<u32, Used> = BTreeMap::new();
        for holder in self.holders.values_mut() {
            let mut instances = holder.instances.len() as u64;
            let known: Vec<u64> = holder.instances.iter().filter_map(|one| one.watches.map(u64::from)).collect();
            let unknown = instances - known.len() as u64;
            let mut watches = (!known.is_empty()).then(|| known.iter().sum());
            if unknown == 0 && !holder.lost {
                holder.last = Some((instances, watches.unwrap_or(0), round));
            } else {
                // What it had a while ago it has still, or it is not known to have less.
                usage.unexamined += unknown.max(1);
                if unknown > 0 {
                    *usage.uncounted.entry(holder.share.as_deref().map(str::to_owned)).or_default() += unknown;
                }
                if let Some((last_instances, last_watches)) = holder.last(round) {
                    instances = instances.max(last_instances);
                    watches = watches.max(Some(last_watches));
                }
            }
            let used = uids.entry(holder.uid).or_insert(Used { instances: 0, watches: None });
            used.instances += instances;
            used.watches = used.watches.into_iter().chain(watches).reduce(|sum, watches| sum + watches);
        }
        usage.uids = Some(uids);
        usage
    }
}

impl Holder {
    /// Instances and watches when all were known, if that is not too long ago.
    fn last(&self, round: u32) -> Option<(u64, u64)> {
        self.last.filter(|(.., at)| round - at <= HELD).map(|(instances, watches, _)| (instances, watches))
    }
}
