//! Which network namespaces there are, and a process in each: an index kept from scrape to scrape.
//!
//! It takes a system call per process to know its namespace, a fifth of what the sweep costs, and it hardly ever
//! changes: so each process is asked when it is new or calls itself something else, and then a few in turn.

use std::collections::HashSet;

use crate::error::Reason;
use crate::host::netns::NetworkNamespace;
use crate::host::process::Process;

/// New processes that one scrape asks.
const MOST_NEW: usize = 2_000;
/// Known processes that one scrape asks again, in turn: an eighth of them, and at the most so many.
const AGAIN: usize = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not asked yet: the budget was used up.
    New,
    In(NetworkNamespace),
    Refused,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    pid: u32,
    comm: u32,
    state: State,
}

/// Empty at first; see the module's text.
#[derive(Debug, Default)]
pub(super) struct Namespaces {
    /// By pid.
    entries: Vec<Entry>,
    /// The entries of this round, until [`Namespaces::end`].
    observed: Vec<Entry>,
    /// Namespaces that were met in this round.
    met: HashSet<NetworkNamespace>,
    /// How far this round has come in `entries`.
    at: usize,
    new_left: usize,
    again_left: usize,
    /// The pid at which asking again goes on.
    turn: u32,
}

impl Namespaces {
    /// Begins a round.
    pub(super) fn begin(&mut self) {
        let again = (self.entries.len() / 8 + 1).min(AGAIN);
        (self.at, self.new_left, self.again_left) = (0, MOST_NEW, again);
        self.observed = Vec::with_capacity(self.entries.len() + 16);
        self.met.clear();
    }

    /// Notes a process of this round. They come in the order of their pids. True of the first in each namespace but
    /// this one: the one that [`Namespaces::others`] tells.
    pub(super) fn observe(&mut self, process: &Process, own: Option<NetworkNamespace>) -> bool {
        // A kernel thread or a zombie connects to nothing.
        if process.fds != Some(0) {
            self.note(process.pid, process.comm.map_or(0, |comm| comm.hash32()), || {
                match process.network_namespace() {
                    Ok(namespace) => Some(State::In(namespace)),
                    Err(error) if error.reason() == Reason::Denied => Some(State::Refused),
                    // It exited.
                    Err(_) => None,
                }
            });
        }
        match self.observed.last() {
            Some(Entry { pid, state: State::In(namespace), .. }) if *pid == process.pid => {
                Some(*namespace) != own && self.met.insert(*namespace)
            }
            _ => false,
        }
    }

    fn note(&mut self, pid: u32, comm: u32, ask: impl FnOnce() -> Option<State>) {
        while self.entries.get(self.at).is_some_and(|entry| entry.pid < pid) {
            self.at += 1;
        }
        let known = self.entries.get(self.at).filter(|entry| entry.pid == pid && entry.comm == comm);
        let known = known.map(|entry| entry.state).filter(|state| *state != State::New);
        let left = match known {
            None => &mut self.new_left,
            Some(_) if pid >= self.turn => &mut self.again_left,
            Some(_) => &mut 0,
        };
        let state = if *left > 0 {
            *left -= 1;
            if known.is_some() {
                self.turn = pid + 1;
            }
            ask()
        } else {
            known.or(Some(State::New))
        };
        self.observed.extend(state.map(|state| Entry { pid, comm, state }));
    }

    /// Ends a round.
    pub(super) fn end(&mut self) {
        self.entries = std::mem::take(&mut self.observed);
        if self.again_left > 0 {
            self.turn = 0;
        }
    }

    /// The process with the lowest pid of each namespace but this one, in the order of pids.
    pub(super) fn others(&self, own: NetworkNamespace) -> Vec<u32> {
        let mut seen = HashSet::from([own]);
        let entries = self.entries.iter().filter(|entry| match entry.state {
            State::In(namespace) => seen.insert(namespace),
            State::New | State::Refused => false,
        });
        entries.map(|entry| entry.pid).collect()
    }

    /// True unless this process is known to be in this namespace. One that has none to ask for (recorded files) is in
    /// it.
    pub(super) fn may_be_outside(&self, pid: u32, own: NetworkNamespace) -> bool {
        let index = self.entries.binary_search_by_key(&pid, |entry| entry.pid);
        index.is_ok_and(|index| self.entries[index].state != State::In(own))
    }

    /// Processes that were not asked yet, and those that may not be.
    pub(super) fn unknown(&self) -> (u64, u64) {
        let count = |state| self.entries.iter().filter(|entry| entry.state == state).count() as u64;
        (count(State::New), count(State::Refused))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn round(index: &mut Namespaces, pids: impl Iterator<Item = u32>, state: State) -> Vec<u32> {
        let mut asked = Vec::new();
        index.begin();
        for pid in pids {
            index.note(pid, 1, || {
                asked.push(pid);
                Some(state)
            });
        }
        index.end();
        asked
    }

    #[test]
    fn each_is_asked_once_and_then_in_turn() {
        let host = crate::host::Host::new(crate::host::Roots::default());
        let here = host.own_network_namespace().unwrap();
        let own = State::In(here);
        let mut index = Namespaces::default();
        assert_eq!(round(&mut index, 1..=3_000, own).len(), MOST_NEW);
        assert_eq!(index.unknown(), (1_000, 0));
        assert!(!index.may_be_outside(2_000, here) && index.may_be_outside(2_001, here), "not asked yet");
        // The rest, and some again.
        assert_eq!(round(&mut index, 1..=3_000, own).len(), 1_000 + AGAIN);
        assert_eq!(index.unknown(), (0, 0));
        let mut again = BTreeMap::new();
        for _ in 0..3_000 / AGAIN + 1 {
            round(&mut index, 1..=3_000, own).into_iter().for_each(|pid| *again.entry(pid).or_insert(0) += 1);
        }
        assert_eq!(again.len(), 3_000, "all of them, in turn");
        // One is gone, one is new.
        assert!(round(&mut index, 2..=3_001, own).contains(&3_001));
        round(&mut index, 5_000..5_001, State::Refused);
        assert_eq!(index.unknown(), (0, 1));
        assert!(index.may_be_outside(5_000, here) && !index.may_be_outside(1, here), "1 is gone");
        assert!(index.others(here).is_empty());
    }
}
