//! Connections from network namespaces that are not ours, by what `/proc/PID/net/unix` of a process in each lists.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::unix::ffi::OsStrExt as _;

use crate::host::sockets::{UnixName, UnixSocket};
use crate::host::{Deadline, Host};

use super::super::namespaces::Namespaces;
use super::super::pods::Pods;
use super::{LeftOut, MOST_BYTES, MOST_NAMESPACES};

/// A namespace to look into: how many of the same pod come before it, the process that stands for it, and its pod.
struct Visit {
    rank: usize,
    pid: u32,
    share: Option<String>,
}

/// Looks into namespaces: one of each pod, then the second of each, and so on. Those of one rank share what is left of
/// the bytes, and such as want more get what others did not need. Those of the node's own are all in the first rank.
pub(super) fn look(
    host: &Host,
    listeners: &[UnixSocket],
    labels: &[String],
    namespaces: &Namespaces,
    pods: &Pods,
    deadline: Deadline,
) -> (BTreeMap<(String, u32), u64>, LeftOut) {
    let (mut found, mut left_out) = (BTreeMap::new(), LeftOut::default());
    let Ok(own) = host.own_network_namespace() else { return (found, left_out) };
    let by_path: HashMap<&[u8], &String> = listeners
        .iter()
        .zip(labels)
        .filter_map(|(listener, label)| match &listener.name {
            Some(UnixName::Path(path)) => Some((path.as_os_str().as_bytes(), label)),
            _ => None,
        })
        .collect();
    let mut visits = order(namespaces.others(own).into_iter().map(|pid| {
        let whose = pods.of_pid(host, pid);
        (pid, whose.share().map(str::to_owned))
    }));
    visits.split_off(MOST_NAMESPACES.min(visits.len())).iter().for_each(|visit| left_out.add(visit.share.as_deref()));
    let mut left = MOST_BYTES;
    for rank in visits.chunk_by(|a, b| a.rank == b.rank) {
        let mut waiting: Vec<&Visit> = rank.iter().collect();
        // Whoever was cut is read again, with what the others did not need.
        for _ in 0..2 {
            let mut cut = Vec::new();
            for (done, &visit) in waiting.iter().enumerate() {
                let most = left / (waiting.len() - done);
                if most == 0 || deadline.expired() {
                    cut.push(visit);
                    continue;
                }
                // It exited, and the next scrape knows another of its namespace; or its rows are nonsense.
                let Some((counts, read, whole)) = counts(host, visit.pid, most, &by_path) else { continue };
                left = left.saturating_sub(read);
                found.extend(counts);
                if !whole {
                    cut.push(visit);
                }
            }
            waiting = cut;
        }
        waiting.iter().for_each(|visit| left_out.add(visit.share.as_deref()));
    }
    (found, left_out)
}

fn order(namespaces: impl Iterator<Item = (u32, Option<String>)>) -> Vec<Visit> {
    let mut of_pod: HashMap<String, usize> = HashMap::new();
    let mut visits: Vec<Visit> = namespaces
        .map(|(pid, share)| {
            let rank = share.as_ref().map_or(0, |share| {
                let count = of_pod.entry(share.clone()).or_default();
                *count += 1;
                *count - 1
            });
            Visit { rank, pid, share }
        })
        .collect();
    visits.sort_by_key(|visit| (visit.rank, visit.pid));
    visits
}

/// The connections of one namespace by socket and its process, how many bytes were read, and whether that was all.
type Counts = (BTreeMap<(String, u32), u64>, usize, bool);

fn counts(host: &Host, pid: u32, most: usize, by_path: &HashMap<&[u8], &String>) -> Option<Counts> {
    let (mut counts, mut its_own) = (BTreeMap::<&String, u64>::new(), HashSet::new());
    let read = host.unix_sockets_of(pid, most, |listed| {
        if let Some(&label) = by_path.get(listed.path) {
            if listed.listening {
                its_own.insert(label);
            } else {
                *counts.entry(label).or_default() += 1;
            }
        }
    });
    let (read, whole) = read.ok()?;
    let counts = counts.into_iter().filter(|(label, _)| !its_own.contains(label));
    Some((counts.map(|(label, count)| ((label.clone(), pid), count)).collect(), read, whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pod_has_its_turn_before_another_has_a_second() {
        let evil = (1..=400).map(|pid| (pid, Some("evil".to_owned())));
        let others = [(500, Some("victim".to_owned())), (501, None), (502, None)];
        let visits = order(evil.chain(others));
        let first: Vec<_> = visits.iter().take(5).map(|visit| (visit.rank, visit.pid)).collect();
        assert_eq!(first, [(0, 1), (0, 500), (0, 501), (0, 502), (1, 2)]);
        assert_eq!(visits.last().map(|visit| (visit.rank, visit.pid)), Some((399, 400)));
    }
}
