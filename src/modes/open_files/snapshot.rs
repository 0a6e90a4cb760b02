//! One sweep over every process, boiled down while it runs: sums by command, and the few processes worth a closer look.
//!
//! Nothing is kept of a process that is not one of those few, so memory does not grow with the number of processes.
//! Those few are kept *open*: what is read of them afterwards is of the same process, not of the next one with its
//! number.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use crate::error::Error;
use crate::host::Deadline;
use crate::host::process::fds::Kinds;
use crate::host::process::parse::{Comm, Limit};
use crate::host::process::{Process, Processes};
use crate::host::sockets::owners::Owner;
use crate::kubelet::cgroup_name::PodPlace;
use crate::kubelet::pod_places::PodPlaces;

use super::names::Names;
use super::{MOST_DAEMONS, MOST_TOP, Settings};

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

/// What one sweep found.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    /// Why the sweep did not reach every process: then nothing that is a sum is true.
    pub(super) cut: Option<Error>,
    pub(super) commands: HashMap<Comm, Command>,
    /// Processes without a name to sum them by: without fds, or not to be read at all.
    pub(super) nameless: Command,
    pub(super) detailed: Vec<Detail>,
    /// Daemons beyond the cap.
    pub(super) daemons_left_out: u64,
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
        deadline: Deadline,
        mut also: impl FnMut(&Process),
    ) -> (Self, Vec<Rc<Process>>) {
        let mut snapshot = Snapshot::default();
        let mut few = Few::new(settings, processes.own_pid());
        let sweep = processes.sweep(pids, deadline, |process| {
            also(&process);
            snapshot.sum(&process);
            few.offer(process);
        });
        snapshot.nameless.add(&Command { processes: sweep.closed, uncounted: sweep.closed, ..Command::default() });
        snapshot.cut = sweep.cut;
        snapshot.daemons_left_out = few.daemons_left_out;
        (snapshot, few.into_processes())
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
    /// what is left of the budget: one with a million fds must not hide what the others hold.
    ///
    /// Returns the owners of wanted sockets that were met.
    pub(super) fn look_closer(
        &mut self,
        mut few: Vec<Rc<Process>>,
        wanted: &Wanted,
        places: PodPlaces,
        budget: usize,
        deadline: Deadline,
    ) -> HashMap<u32, Owner> {
        let mut met = HashMap::new();
        few.sort_unstable_by_key(|process| (process.fds, process.pid));
        let mut left = budget;
        let many = few.len();
        for (done, process) in few.into_iter().enumerate() {
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
            let kinds = if deadline.expired() {
                Some(Kinds::unexamined(fds))
            } else {
                match process.kinds(left / (many - done), socket) {
                    Ok((kinds, examined)) => {
                        left = left.saturating_sub(examined);
                        Some(kinds)
                    }
                    Err(error) => {
                        if !error.is_gone() {
                            self.kinds_refused.get_or_insert((0, error)).0 += 1;
                        }
                        None
                    }
                }
            };
            let cgroups = process.cgroup();
            let unplaced = cgroups.as_ref().is_err_and(|error| !error.is_gone());
            let place = cgroups.ok().and_then(|cgroups| places.place(&cgroups));
            self.detailed.push(Detail {
                pid: process.pid,
                comm,
                fds,
                limit: process.limit,
                place,
                unplaced,
                names: Names::default(),
                kinds,
                close_wait,
            });
        }
        self.detailed.sort_unstable_by_key(|detail| detail.pid);
        met
    }
}

/// Used share of a limit. A limit of 0 counts as 1: the process holds what it opened before, and can open nothing.
pub(super) fn ratio(fds: u64, limit: Limit) -> Option<f64> {
    match limit {
        Limit::Files(limit) => Some(fds as f64 / limit.max(1) as f64),
        Limit::Unlimited => None,
    }
}

/// The processes worth a closer look, held open: nearest their limit, largest, daemons, ourselves.
struct Few {
    nearest: Top,
    largest: Top,
    daemons: Vec<Rc<Process>>,
    names: Vec<Comm>,
    ourselves: Option<u32>,
    daemons_left_out: u64,
}

impl Few {
    fn new(settings: &Settings, ourselves: Option<u32>) -> Self {
        let top = settings.top.min(MOST_TOP);
        Few {
            nearest: Top::new(top),
            largest: Top::new(top),
            daemons: Vec::new(),
            names: settings.daemons.iter().map(|name| Comm::new(name.as_bytes())).collect(),
            ourselves,
            daemons_left_out: 0,
        }
    }

    fn offer(&mut self, process: Process) {
        let (Some(fds @ 1..), Some(comm)) = (process.fds, process.comm) else { return };
        // A share of the limit in units of 2^-32, so that it can be compared exactly.
        let near = match process.limit {
            Some(Limit::Files(limit)) => (fds.min(u32::MAX.into()) << 32) / limit.max(1),
            Some(Limit::Unlimited) | None => 0,
        };
        let daemon = self.names.contains(&comm) || self.ourselves == Some(process.pid);
        if !(daemon || self.nearest.wants(near) || self.largest.wants(fds)) {
            return;
        }
        let process = Rc::new(process);
        self.nearest.offer(near, &process);
        self.largest.offer(fds, &process);
        if daemon {
            if self.daemons.len() < MOST_DAEMONS || self.ourselves == Some(process.pid) {
                self.daemons.push(process);
            } else {
                self.daemons_left_out += 1;
            }
        }
    }

    fn into_processes(self) -> Vec<Rc<Process>> {
        let mut few = self.daemons;
        few.extend(self.nearest.rows.into_iter().chain(self.largest.rows).map(|(_, process)| process));
        few.sort_unstable_by_key(|process| process.pid);
        few.dedup_by_key(|process| process.pid);
        few
    }
}

/// The processes with the largest keys. Offered in the order of pids, so of equal ones the lower pid stays.
struct Top {
    most: usize,
    rows: Vec<(u64, Rc<Process>)>,
}

impl Top {
    fn new(most: usize) -> Self {
        Top { most, rows: Vec::with_capacity(most + 1) }
    }

    fn wants(&self, key: u64) -> bool {
        self.rows.len() < self.most || self.rows.last().is_some_and(|(last, _)| key > *last)
    }

    fn offer(&mut self, key: u64, process: &Rc<Process>) {
        if self.wants(key) {
            let at = self.rows.partition_point(|(other, _)| *other >= key);
            self.rows.insert(at, (key, Rc::clone(process)));
            self.rows.truncate(self.most);
        }
    }
}
