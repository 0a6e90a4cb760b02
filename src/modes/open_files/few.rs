//! Which few of all processes are worth a closer look, and whose places they take.
//!
//! The node's own processes and those of pods have places apart, and no pod takes more than its share: what runs in one
//! can hide neither a daemon of the node nor what another pod must be told of. Beyond these, [`MOST_OF_POD`] processes
//! of each pod that an alert may read are shown by their numbers alone, those of different containers first. Where it
//! cannot be known whose a process is, all of these have the places of one more node.
//!
//! A process is not near a limit that is below [`LEAST_LIMIT`]: alerts leave it out, so it must not stand before one
//! that they read.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use crate::host::process::parse::{Comm, Limit};
use crate::host::process::{Process, Processes};
use crate::kubelet::cgroup_name::PodPlace;

use super::pods::{Pods, Whose};
use super::{MOST_DAEMONS, MOST_TOP, Settings};

/// As alerts/open_files/rules.yaml: programs that lock themselves up lower their limit to next to nothing on purpose.
const LEAST_LIMIT: u64 = 256;
/// Shares of a limit in units of 2^-32: above the first HeadroomProcessFdsRising looks at a process, above the second
/// HeadroomProcessNearFdLimit does.
const READ: u64 = (1 << 32) / 10;
const PAGED: u64 = (1 << 32) / 5 * 4;
/// Of one pod among the nearest and among the largest of all pods.
const MOST_OF_POD_IN_DETAIL: usize = 2;
/// Processes of pods that have a daemon's name, one of each pod: kube-proxy is such a one.
const MOST_NAMESAKES: usize = 32;
/// Of one pod, by their numbers.
const MOST_OF_POD: usize = 8;
/// Of all pods, by their numbers: no kubelet runs more pods, so that each has at least one.
const MOST_OF_PODS: usize = 500;
/// Pods that are told apart.
const MOST_PODS: usize = 2_000;

/// A process of a pod that is shown by its numbers alone.
#[derive(Clone, Debug)]
pub(super) struct Plain {
    pub(super) pid: u32,
    pub(super) comm: Comm,
    pub(super) fds: u64,
    pub(super) limit: Option<Limit>,
    pub(super) place: Arc<PodPlace>,
    near: u64,
    /// How many of its container are nearer.
    rank: usize,
}

/// What was chosen.
#[derive(Debug, Default)]
pub(super) struct Choice {
    /// The node's own, held open, by pid.
    pub(super) nodes: Vec<Rc<Process>>,
    /// Those of pods, and of nobody knows whom, held open, by pid.
    pub(super) pods: Vec<Rc<Process>>,
    /// None of the above.
    pub(super) plain: Vec<Plain>,
    /// Daemons and processes near their limit that found no place.
    pub(super) left_out: u64,
    /// The same of pods, by uid.
    pub(super) left_out_of_pods: BTreeMap<String, u64>,
}

/// The processes worth a closer look, held open: nearest their limit, largest, daemons, ourselves.
pub(super) struct Few {
    nodes: Places,
    pods: Places,
    unknown: Places,
    daemons: Vec<Rc<Process>>,
    namesakes: Top,
    ourselves: Option<(Rc<Process>, bool)>,
    shares: HashMap<Box<str>, Share>,
    names: Vec<Comm>,
    own_pid: Option<u32>,
    top: usize,
    /// Of the node's own, and of nobody knows whom: how many are near their limit.
    paged: u64,
    left_out: u64,
}

impl Few {
    pub(super) fn new(settings: &Settings, own_pid: Option<u32>) -> Self {
        let top = settings.top.min(MOST_TOP);
        Few {
            nodes: Places::new(top, top),
            pods: Places::new(top, MOST_OF_POD_IN_DETAIL),
            unknown: Places::new(top, top),
            daemons: Vec::new(),
            namesakes: Top::new(MOST_NAMESAKES, 1),
            ourselves: None,
            shares: HashMap::new(),
            names: settings.daemons.iter().map(|name| Comm::new(name.as_bytes())).collect(),
            own_pid,
            top,
            paged: 0,
            left_out: 0,
        }
    }

    /// Processes come in the order of their pids, so of equal ones the lower pid stays.
    /// What is shown of one is read now.
    pub(super) fn offer(&mut self, process: Process, processes: &Processes, pods: &mut Pods) {
        // Whose it is need not be asked of most.
        if self.looks_at(&process, None).is_none() || self.looks_at(&process, Some(&pods.of(&process))).is_none() {
            return;
        }
        let Some(process) = processes.fresh(process) else { return };
        // It may be another one by now.
        pods.observe(&process);
        let whose = pods.of(&process);
        let look = self.looks_at(&process, Some(&whose));
        let Some(Look { comm, fds, near, read, named, ourselves }) = look else { return };
        let daemon = named && pods.is_daemon(&process);
        let process = Rc::new(process);
        match (read, near, &whose) {
            (true, Some(near), Whose::Pod(place)) => self.share(&process, comm, fds, near, place),
            (true, Some(PAGED..), Whose::Nodes | Whose::Unknown) => self.paged += 1,
            _ => {}
        }
        match &whose {
            Whose::Nodes => self.nodes.offer(near, fds, "", &process),
            Whose::Unknown => self.unknown.offer(near, fds, "", &process),
            Whose::Pod(place) => self.pods.offer(near, fds, &place.pod_uid, &process),
        }
        if ourselves {
            self.ourselves = Some((process, whose.share().is_none()));
        } else if !daemon {
            if let (true, Some(share)) = (named, whose.share()) {
                self.namesakes.offer(fds, share, &process);
            }
        } else if self.daemons.len() < MOST_DAEMONS {
            self.daemons.push(process);
        } else {
            self.left_out += 1;
        }
    }

    /// Why a process is worth a closer look, if it is: of this owner, or of any.
    fn looks_at(&self, process: &Process, whose: Option<&Whose>) -> Option<Look> {
        let (Some(fds @ 1..), Some(comm)) = (process.fds, process.comm) else { return None };
        let near = near(process);
        let read = self.top > 0 && near.is_some_and(|near| near > READ);
        let named = self.names.contains(&comm);
        let ourselves = self.own_pid == Some(process.pid);
        let wanted = match whose {
            None => [&self.nodes, &self.pods, &self.unknown].iter().any(|places| places.want(near, fds, None)),
            Some(Whose::Nodes) => self.nodes.want(near, fds, Some("")),
            Some(Whose::Unknown) => self.unknown.want(near, fds, Some("")),
            Some(Whose::Pod(place)) => self.pods.want(near, fds, Some(&place.pod_uid)),
        };
        (read || named || ourselves || wanted).then_some(Look { comm, fds, near, read, named, ourselves })
    }

    fn share(&mut self, process: &Process, comm: Comm, fds: u64, near: u64, place: &Arc<PodPlace>) {
        if self.shares.len() >= MOST_PODS && !self.shares.contains_key(&*place.pod_uid) {
            self.left_out += u64::from(near >= PAGED);
            return;
        }
        let share = self.shares.entry(place.pod_uid.as_str().into()).or_default();
        let (pid, limit, place) = (process.pid, process.limit, Arc::clone(place));
        share.offer(Plain { pid, comm, fds, limit, place, near, rank: 0 });
    }

    pub(super) fn choose(self) -> Choice {
        let open = |rows: Vec<Rc<Process>>, places: Places| {
            let mut few = rows;
            few.extend(places.nearest.rows.into_iter().chain(places.largest.rows).map(|row| row.process));
            few.sort_unstable_by_key(|process| process.pid);
            few.dedup_by_key(|process| process.pid);
            few
        };
        let (mut daemons, mut namesakes) = (self.daemons, self.namesakes.into_processes());
        match self.ourselves {
            Some((process, true)) => daemons.push(process),
            Some((process, false)) => namesakes.push(process),
            None => {}
        }
        // A daemon in a static pod may stand among the nearest of pods, too.
        let nodes = open(daemons, self.nodes);
        let unknown = open(Vec::new(), self.unknown);
        let mut pods = open(namesakes, self.pods);
        let paged = |process: &&Rc<Process>| near(process).is_some_and(|near| near >= PAGED);
        let shown = nodes.iter().chain(&unknown).filter(paged).count() as u64;
        pods.extend(unknown);
        pods.sort_unstable_by_key(|process| process.pid);
        pods.dedup_by_key(|process| process.pid);
        let own: HashSet<u32> = nodes.iter().map(|process| process.pid).collect();
        pods.retain(|process| !own.contains(&process.pid));
        let mut choice = Choice { left_out: self.left_out + self.paged.saturating_sub(shown), ..Choice::default() };
        let detailed: HashSet<u32> = nodes.iter().chain(&pods).map(|process| process.pid).collect();
        // First the nearest of every container, then the second of each: no pod takes another's first place.
        let mut plain: Vec<Plain> = Vec::new();
        for (uid, share) in self.shares {
            let kept = share.rows.iter().filter(|row| row.near >= PAGED).count() as u64;
            if share.paged > kept {
                choice.left_out_of_pods.insert(uid.into(), share.paged - kept);
            }
            plain.extend(share.rows.into_iter().enumerate().map(|(place, row)| Plain { rank: place, ..row }));
        }
        plain.sort_unstable_by_key(|row| (row.rank, Reverse(row.near), row.pid));
        choice.left_out += plain.iter().skip(MOST_OF_PODS).filter(|row| row.near >= PAGED).count() as u64;
        plain.truncate(MOST_OF_PODS);
        plain.retain(|row| !detailed.contains(&row.pid));
        Choice { nodes, pods, plain, ..choice }
    }
}

/// Why a process is worth a closer look.
struct Look {
    comm: Comm,
    fds: u64,
    near: Option<u64>,
    /// An alert reads it.
    read: bool,
    /// It has a daemon's name.
    named: bool,
    ourselves: bool,
}

/// Which share of its limit a process has open, if alerts read that limit.
fn near(process: &Process) -> Option<u64> {
    match process.limit? {
        Limit::Files(limit @ LEAST_LIMIT..) => Some((process.fds?.min(u32::MAX.into()) << 32) / limit),
        _ => None,
    }
}

/// What one pod may be told of.
#[derive(Debug, Default)]
struct Share {
    /// In the order in which they give way, the last first.
    rows: Vec<Plain>,
    /// How many are near their limit.
    paged: u64,
}

impl Share {
    fn offer(&mut self, row: Plain) {
        self.paged += u64::from(row.near >= PAGED);
        self.rows.push(row);
        self.rows.sort_by_key(|row| Reverse(row.near));
        for at in 0..self.rows.len() {
            let container = &self.rows[at].place.container_id;
            let rank = self.rows[..at].iter().filter(|nearer| nearer.place.container_id == *container).count();
            self.rows[at].rank = rank;
        }
        self.rows.sort_by_key(|row| (row.rank, Reverse(row.near)));
        self.rows.truncate(MOST_OF_POD);
    }
}

/// The nearest to their limits and the largest.
struct Places {
    nearest: Top,
    largest: Top,
}

impl Places {
    fn new(most: usize, of_one: usize) -> Self {
        Places { nearest: Top::new(most, of_one), largest: Top::new(most, of_one) }
    }

    /// Of this share, or of any.
    fn want(&self, near: Option<u64>, fds: u64, share: Option<&str>) -> bool {
        near.is_some_and(|near| self.nearest.wants(near, share)) || self.largest.wants(fds, share)
    }

    fn offer(&mut self, near: Option<u64>, fds: u64, share: &str, process: &Rc<Process>) {
        if let Some(near) = near {
            self.nearest.offer(near, share, process);
        }
        self.largest.offer(fds, share, process);
    }
}

/// The processes with the largest keys, so many of one share at the most.
struct Top {
    most: usize,
    of_one: usize,
    rows: Vec<Row>,
}

struct Row {
    key: u64,
    share: Box<str>,
    process: Rc<Process>,
}

impl Top {
    fn new(most: usize, of_one: usize) -> Self {
        Top { most, of_one, rows: Vec::with_capacity(most + 1) }
    }

    fn wants(&self, key: u64, share: Option<&str>) -> bool {
        (self.rows.len() < self.most || self.rows.last().is_some_and(|last| key > last.key))
            && share.and_then(|share| self.last_of_full(share)).is_none_or(|last| self.rows[last].key < key)
    }

    /// The smallest of a share that has all the places it may have.
    fn last_of_full(&self, share: &str) -> Option<usize> {
        let of_share = |row: &Row| *row.share == *share;
        let is_full = self.rows.iter().filter(|row| of_share(row)).count() >= self.of_one;
        self.rows.iter().rposition(of_share).filter(|_| is_full)
    }

    fn offer(&mut self, key: u64, share: &str, process: &Rc<Process>) {
        if !self.wants(key, Some(share)) {
            return;
        }
        // The smallest of its own gives way.
        if let Some(last) = self.last_of_full(share) {
            self.rows.remove(last);
        }
        let at = self.rows.partition_point(|other| other.key >= key);
        self.rows.insert(at, Row { key, share: share.into(), process: Rc::clone(process) });
        self.rows.truncate(self.most);
    }

    fn into_processes(self) -> Vec<Rc<Process>> {
        self.rows.into_iter().map(|row| row.process).collect()
    }
}
