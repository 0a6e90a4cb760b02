//! Which clients are shown, and whose places they take.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use crate::host::Host;
use crate::kubelet::cgroup_name::PodPlace;

use super::super::names::Names;
use super::super::pods::{Pods, Whose};
use super::{LEAK, LeftOut, MOST_LEAKS, MOST_OF_POD, MOST_ROWS, Peer};

/// One client of one socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Row {
    pub(super) socket: String,
    pub(super) peer: Peer,
    pub(super) count: u64,
    pub(in super::super) place: Option<PodPlace>,
    /// Whether it is in a pod is not known.
    pub(super) unplaced: bool,
    pub(in super::super) names: Names,
    /// What the process that stands for a namespace calls itself.
    pub(super) comm: String,
    share: Option<String>,
}

/// The rows that are shown and, by socket, what the others hold together; with whose those are.
#[derive(Debug, Default)]
pub(in super::super) struct Rows {
    pub(in super::super) rows: Vec<Row>,
    pub(super) others: BTreeMap<String, u64>,
    pub(super) left_out: LeftOut,
}

impl Rows {
    /// Reads which pods they belong to, makes one of all the namespaces of a pod, and chooses.
    pub(in super::super) fn of(counts: BTreeMap<(String, Peer), u64>, host: &Host, pods: &Pods) -> Self {
        let mut rows: Vec<Row> = Vec::with_capacity(counts.len());
        let mut of_pod: HashMap<(String, String), usize> = HashMap::new();
        for ((socket, peer), count) in counts {
            let (place, unplaced, names, comm, share) = (None, false, Names::default(), String::new(), None);
            let mut row = Row { socket, peer, count, place, unplaced, names, comm, share };
            row.find_place(host, pods);
            if let (Peer::Namespace { .. }, Some(place)) = (&row.peer, &row.place) {
                let key = (row.socket.clone(), place.pod_uid.clone());
                if let Some(&known) = of_pod.get(&key) {
                    rows[known].count += row.count;
                    continue;
                }
                of_pod.insert(key, rows.len());
            }
            rows.push(row);
        }
        let mut chosen = Self::choose(rows);
        for row in &mut chosen.rows {
            if let (Peer::Namespace { pid }, None) = (&row.peer, &row.place) {
                row.comm = host.pids().and_then(|pids| pids.comm(*pid)).unwrap_or_default();
            }
        }
        chosen
    }

    /// The largest of the node's own, and the largest of pods, each pod's first one before another's second. What could
    /// not be named is always shown, and so is a leak, up to [`MOST_OF_POD`] of one pod.
    fn choose(rows: Vec<Row>) -> Self {
        let (mut chosen, mut nodes, mut of_pods) = (Rows::default(), Vec::new(), Vec::new());
        for row in rows {
            match (&row.peer, &row.share) {
                (Peer::Unknown | Peer::None, _) => chosen.rows.push(row),
                (_, None) => nodes.push(row),
                (_, Some(_)) => of_pods.push(row),
            }
        }
        nodes.sort_by_key(|row| Reverse(row.count));
        of_pods.sort_by_key(|row| Reverse(row.count));
        let mut seen: HashMap<String, usize> = HashMap::new();
        let mut of_pods: Vec<(usize, Row)> = of_pods
            .into_iter()
            .map(|row| {
                let rank = seen.entry(row.share.clone().unwrap_or_default()).or_default();
                *rank += 1;
                (*rank - 1, row)
            })
            .collect();
        of_pods.sort_by_key(|(rank, row)| (*rank, Reverse(row.count)));
        let fits = |index, row: &Row| index < MOST_ROWS || (row.count >= LEAK && index < MOST_LEAKS);
        for (index, row) in nodes.into_iter().enumerate() {
            if fits(index, &row) {
                chosen.rows.push(row);
            } else {
                chosen.leave_out(&row, None);
            }
        }
        for (index, (rank, row)) in of_pods.into_iter().enumerate() {
            if rank < MOST_OF_POD && fits(index, &row) {
                chosen.rows.push(row);
            } else {
                // What another pod's first one took was a place of all, beyond that it is the pod's own share.
                let share = row.share.clone().filter(|_| rank > 0);
                chosen.leave_out(&row, share.as_deref());
            }
        }
        chosen
    }

    fn leave_out(&mut self, row: &Row, share: Option<&str>) {
        *self.others.entry(row.socket.clone()).or_default() += row.count;
        self.left_out.add(share);
    }
}

impl Row {
    fn find_place(&mut self, host: &Host, pods: &Pods) {
        let pid = match self.peer {
            Peer::Process { pid, .. } | Peer::Namespace { pid } => pid,
            Peer::Unknown | Peer::None => return,
        };
        let whose: Whose = pods.of_pid(host, pid);
        self.share = whose.share().map(str::to_owned);
        self.place = whose.place().cloned();
        self.unplaced = whose == Whose::Unknown;
        if let (Peer::Namespace { .. }, Some(place)) = (&self.peer, &mut self.place) {
            // Whichever container of the pod it is: the namespace is the pod's.
            place.container_id = None;
        }
    }

    pub(super) fn pid(&self) -> String {
        match self.peer {
            Peer::Process { pid, .. } => pid.to_string(),
            Peer::Namespace { pid } if self.place.is_none() => pid.to_string(),
            _ => String::new(),
        }
    }
}
