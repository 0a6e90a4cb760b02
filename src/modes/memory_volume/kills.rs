//! Kills by pod, added up while the cgroups that count them come and go.

use std::collections::{HashMap, HashSet};

use super::cgroups::Pod;

/// Far more cgroups with kills than a node has. Beyond it those that were not seen are forgotten, also if a walk did
/// not see all.
const MOST_COUNTERS: usize = 10_000;

/// The pods with kills.
#[derive(Debug, Default)]
pub(super) struct Tallies {
    scrape: u64,
    pods: HashMap<String, Tally>,
}

#[derive(Debug, Default)]
struct Tally {
    total: u64,
    /// The scrape that saw the last kill.
    last: u64,
    /// What the cgroups that now exist said last, by inode; those that say 0 are left out.
    counters: HashMap<u64, u64>,
}

/// Kills of one pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kills {
    /// The scrape that saw the last one: the larger, the more recent.
    pub(super) last: u64,
    pub(super) total: u64,
}

impl Tallies {
    /// Takes in what was seen. `complete`: what was not seen is not there.
    pub(super) fn update(&mut self, pods: &[Pod], complete: bool) {
        self.scrape += 1;
        for pod in pods {
            for &(inode, count) in pod.kills.iter().filter(|(_, count)| *count > 0) {
                let tally = self.pods.entry(pod.uid.clone()).or_default();
                let before = tally.counters.insert(inode, count).unwrap_or(0);
                // The kernel's count never goes down: a smaller one is of another cgroup that got the number.
                let more = if count >= before { count - before } else { count };
                if more > 0 {
                    tally.total += more;
                    tally.last = self.scrape;
                }
            }
        }
        let counters: usize = self.pods.values().map(|tally| tally.counters.len()).sum();
        if complete || counters > MOST_COUNTERS {
            let uids: HashSet<&str> = pods.iter().map(|pod| pod.uid.as_str()).collect();
            let inodes: HashSet<u64> = pods.iter().flat_map(|pod| &pod.kills).map(|&(inode, _)| inode).collect();
            let keep = counters <= MOST_COUNTERS;
            let unsure = pods.iter().filter(|pod| keep && !pod.counted).map(|pod| pod.uid.as_str());
            let unsure: HashSet<&str> = unsure.collect();
            self.pods.retain(|uid, tally| {
                // What could not be read this time may be there all the same.
                tally.counters.retain(|inode, _| inodes.contains(inode) || unsure.contains(uid.as_str()));
                uids.contains(uid.as_str())
            });
        }
    }

    /// Of the pod of this uid.
    pub(super) fn of(&self, uid: &str) -> Kills {
        self.pods.get(uid).map(|tally| Kills { last: tally.last, total: tally.total }).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, kills: &[(u64, u64)]) -> Pod {
        Pod { uid: uid.into(), kills: kills.to_vec(), counted: true, ..Pod::default() }
    }

    #[test]
    fn counts_of_cgroups_that_come_and_go_add_up() {
        let mut tallies = Tallies::default();
        let mut totals = Vec::new();
        for kills in [
            &[(1, 0), (2, 0)][..],
            &[(1, 0), (2, 5)],
            &[(1, 0), (2, 42)],
            // A new container, and one more beside it.
            &[(1, 0), (3, 0)],
            &[(1, 0), (3, 2), (4, 1)],
            &[(1, 0), (4, 1)],
            // The number of an earlier one, which a hierarchy may use again on other kernels.
            &[(1, 0), (4, 0), (2, 1)],
        ] {
            tallies.update(&[pod("a", kills)], true);
            totals.push(tallies.of("a").total);
        }
        assert_eq!(totals, [0, 5, 42, 42, 45, 45, 46]);
        tallies.update(&[pod("b", &[(9, 1)])], true);
        assert_eq!((tallies.of("a").total, tallies.of("b").total), (0, 1), "a pod that is gone is forgotten");
        assert_eq!(tallies.pods.len(), 1);
    }

    #[test]
    fn a_walk_that_did_not_see_all_forgets_nothing() {
        let mut tallies = Tallies::default();
        tallies.update(&[pod("a", &[(1, 3)])], true);
        tallies.update(&[], false);
        assert_eq!(tallies.of("a").total, 3);
        tallies.update(&[pod("a", &[(1, 3)])], true);
        assert_eq!(tallies.of("a").total, 3, "counted once");
        let unread = Pod { counted: false, ..pod("a", &[]) };
        tallies.update(&[unread], true);
        tallies.update(&[pod("a", &[(1, 4)])], true);
        assert_eq!(tallies.of("a").total, 4, "one that could not be read for once is no new one");
    }

    #[test]
    fn the_last_kill_is_known() {
        let mut tallies = Tallies::default();
        tallies.update(&[pod("a", &[(1, 9)]), pod("b", &[(2, 1)])], true);
        tallies.update(&[pod("a", &[(1, 9)]), pod("b", &[(2, 2)])], true);
        assert!(tallies.of("b") > tallies.of("a"));
        assert_eq!(tallies.of("c"), Kills::default());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut tallies = Tallies::default();
        for first in (0..3 * MOST_COUNTERS as u64).step_by(1000) {
            let kills: Vec<_> = (first..first + 1000).map(|inode| (inode, 1)).collect();
            tallies.update(&[pod("a", &kills)], false);
            assert!(tallies.pods["a"].counters.len() <= MOST_COUNTERS);
        }
        assert_eq!(tallies.of("a").total, 3 * MOST_COUNTERS as u64);
    }
}
