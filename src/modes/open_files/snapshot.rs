//! One sweep over every process, boiled down while it runs: sums by command, and the few processes worth a closer look.
//!
//! Nothing is kept of a process that is not one of those few, so memory does not grow with the number of processes.
//! Those few are kept *open*: what is read of them afterwards is of the same process, not of the next one with its
//! number.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::error::Error;
use crate::host::Deadline;
use crate::host::process::fds::Kinds;
use crate::host::process::known::Known;
use crate::host::process::parse::{Comm, Limit};
use crate::host::process::{Process, Processes};
use crate::host::sockets::owners::Owner;
use crate::kubelet::cgroup_name::PodPlace;

use super::Settings;
use super::few::{Choice, Few};
use super::kinds::KnownKinds;
use super::names::Names;
use super::pods::{Pods, Whose};

/// Sums over the processes of one name.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Command {
    pub(super) processes: u64,
    /// Of those that could be counted.
    pub(super) fds: u64,
    /// Processes whose fds could not be counted.
    pub(super) uncounted: u64,
    /// The largest share of its limit that one of them uses.
    pub(super) worst_ratio: Option<f64>,
}

impl Command {
    pub(super) fn add(&mut self, other: &Command) {
        self.processes += other.processes;
        self.fds += other.fds;
        self.uncounted += other.uncounted;
        self.worst_ratio = self.worst_ratio.into_iter().chain(other.worst_ratio).reduce(f64::max);
    }
}

/// One process in detail.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Detail {
    pub(super) pid: u32,
    pub(super) comm: String,
    pub(super) fds: u64,
    pub(super) limit: Option<Limit>,
    pub(super) place: Option<PodPlace>,
    /// Whether it is in a pod is not known.
    pub(super) unplaced: bool,
    /// Of that place.
    pub(super) names: Names,
    pub(super) kinds: Option<Kinds>,
    /// Its TCP sockets in CLOSE_WAIT, among the fds that were examined. `None` if none could be looked for.
    pub(super) close_wait: Option<u64>,
}

/// Sockets that are looked for among the fds of the processes in detail, by inode number.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// Whose owners are wanted.
    pub(super) clients: HashSet<u32>,
    /// `None` if the kernel did not tell.
    pub(super) close_wait: Option<HashSet<u32>>,
}

/// With what the few are looked at.
pub(super) struct Closer<'a> {
    pub(super) wanted: &'a Wanted,
    pub(super) known: &'a mut KnownKinds,
    pub(super) whose: &'a mut Pods,
    pub(super) deadline: Deadline,
}

/// What one sweep found.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    /// Why the sweep did not reach every process: then nothing that is a sum is true.
    pub(super) cut: Option<Error>,
    pub(super) commands: HashMap<Comm, Command>,
    /// Processes without a name to sum them by: without fds, or not to be read at all.
    pub(super) nameless: Command,
    pub(super) detailed: Vec<Detail>,
    /// What should be shown and found no place, see [`Choice::left_out`].
    pub(super) left_out: u64,
    /// The same of pods, by uid.
    pub(super) left_out_of_pods: BTreeMap<String, u64>,
    /// Detailed processes whose fds could not be looked at, and the first error.
    pub(super) kinds_refused: Option<(u64, Error)>,
}

impl Snapshot {
    /// Sweeps over the processes of this list. `also` sees every process, in order of pids. Returns the processes worth
    /// a closer look, too.
    pub(super) fn take(
        processes: &Processes,
        pids: &[u32],
        settings: &Settings,
        known: &mut Known,
        whose: &mut Pods,
        deadline: Deadline,
        mut also: impl FnMut(&Process, &mut Pods),
    ) -> (Self, Choice) {
        let mut snapshot = Snapshot::default();
        let mut few = Few::new(settings, processes.own_pid());
        let sweep = processes.sweep(pids, known, deadline, |process| {
            whose.observe(&process);
            also(&process, whose);
            snapshot.sum(&process);
            few.offer(process, processes, whose);
        });
        snapshot.nameless.add(&Command { processes: sweep.closed, uncounted: sweep.closed, ..Command::default() });
        snapshot.cut = sweep.cut;
        let mut choice = few.choose();
        snapshot.left_out = choice.left_out;
        snapshot.left_out_of_pods = std::mem::take(&mut choice.left_out_of_pods);
        (snapshot, choice)
    }

    /// True if there is not one process.
    pub(super) fn is_empty(&self) -> bool {
        self.commands.is_empty() && self.nameless.processes == 0 && self.cut.is_none()
    }

    fn sum(&mut self, process: &Process) {
        let command = match process.comm {
            Some(comm) => self.commands.entry(comm).or_default(),
            None => &mut self.nameless,
        };
        command.add(&Command {
            processes: 1,
            fds: process.fds.unwrap_or(0),
            uncounted: process.fds.is_none().into(),
            worst_ratio: process.fds.zip(process.limit).and_then(|(fds, limit)| ratio(fds, limit)),
        });
    }

    /// Reads pod and kinds of the few. Processes with few fds come first, and none gets more than an equal share of
    /// what is left of the budget: one with a million fds must not hide what the others hold. Pods get at most half of
    /// what the node's own need.
    ///
    /// Returns the owners of wanted sockets that were met.
    pub(super) fn look_closer(&mut self, choice: Choice, budget: usize, mut with: Closer<'_>) -> HashMap<u32, Owner> {
        let mut met = HashMap::new();
        let Choice { nodes, mut pods, plain, .. } = choice;
        let of_pods: u64 = pods.iter().filter_map(|process| process.fds).sum();
        let kept = usize::try_from(of_pods).unwrap_or(usize::MAX).min(budget / 2);
        let mut few = nodes;
        few.sort_unstable_by_key(|process| (process.fds, process.pid));
        pods.sort_unstable_by_key(|process| (process.fds, process.pid));
        let mut left = budget - kept;
        let (of_nodes, many) = (few.len(), few.len() + pods.len());
        few.append(&mut pods);
        for (done, process) in few.into_iter().enumerate() {
            if done == of_nodes {
                left += kept;
            }
            let sharers = if done < of_nodes { of_nodes - done } else { many - done };
            let looked_at = self.look_at(&process, left / sharers, &mut with, &mut met);
            left = left.saturating_sub(looked_at);
        }
        self.detailed.extend(plain.into_iter().map(|row| Detail {
            pid: row.pid,
            comm: row.comm.text().into_owned(),
            fds: row.fds,
            limit: row.limit,
            place: Some((*row.place).clone()),
            unplaced: false,
            names: Names::default(),
            kinds: None,
            close_wait: None,
        }));
        self.detailed.sort_unstable_by_key(|detail| detail.pid);
        met
    }

    /// Reads pod and kinds of one process, looking at so many fds at the most. Returns how many it looked at.
    fn look_at(
        &mut self,
        process: &Process,
        most: usize,
        with: &mut Closer<'_>,
        met: &mut HashMap<u32, Owner>,
    ) -> usize {
        let wanted = with.wanted;
        let fds = process.fds.unwrap_or(0);
        let comm = process.comm.map(|comm| comm.text().into_owned()).unwrap_or_default();
        let mut close_wait = wanted.close_wait.as_ref().map(|_| 0);
        let socket = |inode| {
            if wanted.clients.contains(&inode) {
                met.entry(inode).or_insert_with(|| Owner { pid: process.pid, comm: comm.clone() });
            }
            if let (Some(count), Some(sockets)) = (&mut close_wait, &wanted.close_wait)
                && sockets.contains(&inode)
            {
                *count += 1;
            }
        };
        let (kinds, looked_at) = if with.deadline.expired() {
            (Some(Kinds::unexamined(fds)), 0)
        } else {
            match with.known.of(process, most, socket) {
                Ok((kinds, examined)) => (Some(kinds), examined),
                Err(error) => {
                    if !error.is_gone() {
                        self.kinds_refused.get_or_insert((0, error)).0 += 1;
                    }
                    (None, 0)
                }
            }
        };
        let whose = with.whose.learn(process, &process.cgroup());
        self.detailed.push(Detail {
            pid: process.pid,
            comm,
            fds,
            limit: process.limit,
            place: whose.place().cloned(),
            unplaced: whose == Whose::Unknown,
            names: Names::default(),
            kinds,
            close_wait,
        });
        looked_at
    }
}

/// Used share of a limit. A limit of 0 counts as 1: the process holds what it opened before, and can open nothing.
pub(super) fn ratio(fds: u64, limit: Limit) -> Option<f64> {
    match limit {
        Limit::Files(limit) => Some(fds as f64 / limit.max(1) as f64),
        Limit::Unlimited => None,
    }
}
