//! Refused forks, added up while the cgroups that count them come and go.

use std::collections::{HashMap, HashSet};

use super::MOST_OF_POD;
use super::cgroups::{NodeCgroup, Role};
use super::pods::{Pod, TURNS};
use crate::error::Reason;
use crate::host::Host;
use crate::host::cgroup::tasks::TaskFiles;
use crate::kubelet::kubepods::Walk;
use crate::metric::{DroppedPod, Samples};

/// Far more cgroups with refusals than a node has. Beyond it those that were not seen are forgotten.
const MOST_COUNTERS: usize = 50_000;

/// Who refusals are added up for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Whose {
    Node(Role, String),
    Pod(String),
}

/// What was refused.
#[derive(Debug, Default)]
pub(super) struct Tallies {
    scrape: u64,
    of: HashMap<Whose, Tally>,
    /// What kubepods' own count was before pods were last read, where that tells of all of them.
    kubepods: Option<u64>,
    /// Pods whose sum has a part that is unknown.
    unknown: HashSet<String>,
}

#[derive(Debug, Default)]
struct Tally {
    total: u64,
    /// The scrape that saw the last refusal.
    last: u64,
    /// What each cgroup said last, by inode.
    counters: HashMap<u64, u64>,
}

/// How this kernel counts; `None` if there is no cgroup yet to tell by, or it cannot be told.
pub(super) fn by_limit(
    host: &Host,
    files: &TaskFiles,
    node: &[NodeCgroup],
    known: &mut Option<bool>,
    samples: &mut Samples,
) -> Option<bool> {
    if !files.unified {
        return Some(false);
    }
    if known.is_none()
        && let Some(any) = node.first()
    {
        *known = samples.ok(files.counts_by_limit(host, &any.path));
    }
    *known
}

impl Tallies {
    /// Reads what may have changed. `complete`: pods that were not seen are not there.
    #[allow(clippy::too_many_arguments, reason = "all that a scrape knows by now")]
    pub(super) fn read(
        &mut self,
        files: &TaskFiles,
        node: &[NodeCgroup],
        pods: &[Pod],
        walk: Option<&Walk>,
        by_limit: Option<bool>,
        turn: u64,
        complete: bool,
        samples: &mut Samples,
    ) {
        self.scrape += 1;
        self.unknown.clear();
        let mut kubepods = Some(0);
        for one in node.iter().filter(|one| one.role.is_of_a_process() || by_limit == Some(true)) {
            let count = samples.ok(files.refused(&one.path)).flatten();
            if one.role == Role::Kubepods {
                kubepods = kubepods.zip(count).map(|(sum, count)| sum + count);
            }
            if let Some((inode, count)) = files.inode(&one.path).zip(count) {
                let tally = self.of.entry(Whose::Node(one.role, one.path.clone())).or_default();
                // Of an earlier cgroup of this name nothing more will come.
                tally.counters.retain(|known, _| *known == inode);
                tally.take(inode, count, self.scrape);
            }
        }
        self.of.retain(|whose, _| match whose {
            Whose::Node(role, path) => node.iter().any(|one| one.role == *role && one.path == *path),
            Whose::Pod(_) => true,
        });
        let Some(walk) = walk else { return };
        match by_limit {
            Some(true) => self.of_limits(files, walk, pods, kubepods, samples),
            Some(false) => self.of_forks(files, walk, pods, turn, samples),
            None => self.unknown.extend(pods.iter().map(|pod| pod.uid.clone())),
        }
        self.forget(walk, pods, complete);
    }

    /// Each pod has a count of its own, and kubepods one of all: the kernel adds to the pod's first.
    fn of_limits(
        &mut self,
        files: &TaskFiles,
        walk: &Walk,
        pods: &[Pod],
        kubepods: Option<u64>,
        samples: &mut Samples,
    ) {
        if kubepods.is_some() && kubepods == self.kubepods {
            // A pod that is new has none.
            for pod in pods {
                self.of.entry(Whose::Pod(pod.uid.clone())).or_default();
            }
            return;
        }
        for pod in pods {
            self.take(files, pod, walk.tree.directories[pod.index].inode, &pod.path, samples);
        }
        // What could not be read is read again.
        self.kubepods = kubepods.filter(|_| self.unknown.is_empty());
    }

    /// Each of a pod's cgroups has a count.
    fn of_forks(&mut self, files: &TaskFiles, walk: &Walk, pods: &[Pod], turn: u64, samples: &mut Samples) {
        let directories = &walk.tree.directories;
        let by_index: HashMap<usize, &Pod> = pods.iter().map(|pod| (pod.index, pod)).collect();
        let mut many: HashMap<usize, usize> = HashMap::new();
        for (index, directory) in directories.iter().enumerate() {
            let Some(pod) = directory.pod.and_then(|pod| by_index.get(&pod)) else { continue };
            let number = many.entry(pod.index).or_default();
            *number += 1;
            let its_turn =
                directory.inode % TURNS == turn % TURNS || pod.is_near() || self.is_new(pod, directory.inode);
            if *number > MOST_OF_POD || !its_turn {
                continue;
            }
            let Some(path) = super::cgroups::relative(walk, index) else { continue };
            self.take(files, pod, directory.inode, &path, samples);
        }
        for (pod, count) in many.into_iter().filter(|(_, count)| *count > MOST_OF_POD) {
            let uid = by_index[&pod].uid.clone();
            samples.drop_of_pods([(
                DroppedPod { uid: uid.clone(), ..DroppedPod::default() },
                (count - MOST_OF_POD) as u64,
            )]);
            self.unknown.insert(uid);
        }
    }

    fn is_new(&self, pod: &Pod, inode: u64) -> bool {
        self.of.get(&Whose::Pod(pod.uid.clone())).is_none_or(|tally| !tally.counters.contains_key(&inode))
    }

    fn take(&mut self, files: &TaskFiles, pod: &Pod, inode: u64, path: &str, samples: &mut Samples) {
        match files.refused(path) {
            Ok(Some(count)) => {
                self.of.entry(Whose::Pod(pod.uid.clone())).or_default().take(inode, count, self.scrape);
            }
            // It is gone, or this kernel does not count: then no pod has a tally.
            Ok(None) => {}
            Err(error) => {
                self.unknown.insert(pod.uid.clone());
                // Whoever runs in it may close it to us.
                if error.reason() == Reason::Denied {
                    samples.drop_of_pods([(DroppedPod { uid: pod.uid.clone(), ..DroppedPod::default() }, 1)]);
                } else {
                    samples.fail(error);
                }
            }
        }
    }

    fn forget(&mut self, walk: &Walk, pods: &[Pod], complete: bool) {
        let counters: usize = self.of.values().map(|tally| tally.counters.len()).sum();
        if !complete && counters <= MOST_COUNTERS {
            return;
        }
        let inodes: HashSet<u64> = walk.tree.directories.iter().map(|directory| directory.inode).collect();
        let uids: HashSet<&str> = pods.iter().map(|pod| pod.uid.as_str()).collect();
        self.of.retain(|whose, tally| match whose {
            Whose::Node(..) => true,
            Whose::Pod(uid) => {
                tally.counters.retain(|inode, _| inodes.contains(inode));
                uids.contains(uid.as_str())
            }
        });
    }

    /// Of one of the node's own cgroups; `None` if that is not counted.
    pub(super) fn of_node(&self, one: &NodeCgroup) -> Option<u64> {
        self.of.get(&Whose::Node(one.role, one.path.clone())).map(|tally| tally.total)
    }

    /// Of a pod, and the scrape that saw the last one; `None` if that is not known.
    pub(super) fn of_pod(&self, uid: &str) -> Option<(u64, u64)> {
        let tally = self.of.get(&Whose::Pod(uid.to_owned())).filter(|_| !self.unknown.contains(uid))?;
        Some((tally.total, tally.last))
    }
}

impl Tally {
    fn take(&mut self, inode: u64, count: u64, scrape: u64) {
        let before = self.counters.insert(inode, count).unwrap_or(0);
        // The kernel's count never goes down: a smaller one is of another cgroup that got the number.
        let more = if count >= before { count - before } else { count };
        if more > 0 {
            self.total += more;
            self.last = scrape;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_cgroups_that_come_and_go_add_up() {
        let mut tally = Tally::default();
        let totals: Vec<u64> = [(1, 0), (2, 5), (2, 42), (3, 0), (3, 2), (2, 1)]
            .into_iter()
            .enumerate()
            .map(|(scrape, (inode, count))| {
                tally.take(inode, count, scrape as u64);
                tally.total
            })
            .collect();
        assert_eq!(totals, [0, 5, 42, 42, 44, 45]);
        assert_eq!(tally.last, 5, "when the last one came");
        tally.take(3, 2, 9);
        assert_eq!((tally.total, tally.last), (45, 5));
    }
}
