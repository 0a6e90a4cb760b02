//! What is shown of it, and how. Pure: no system call, no clock.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};

use super::cgroups::Pod;
use super::kills::{Kills, Tallies};
use super::limits::Measured;
use super::{CGROUP_LIMIT, KILLS, LIMIT, MOST_PODS, SIZE, USED};
use crate::metric::{DroppedPod, Samples};
use crate::runtime::Names;

/// What the caps leave.
#[derive(Debug)]
pub(super) struct Assessment {
    volumes: Vec<Measured>,
    /// Kills by pod uid.
    kills: Vec<(String, u64)>,
    left_out: LeftOut,
}

/// What caps left out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct LeftOut {
    /// Of pods with more than their share, by uid.
    pub(super) pods: BTreeMap<String, u64>,
    /// Of others.
    pub(super) node: u64,
}

/// Leaves `most` of what is in order of importance, and keeps that order. Every pod has an equal share for its most
/// important ones; what pods do not need of theirs is for the most important of the rest. So whoever mounts a hundred
/// volumes takes no place from who has one.
pub(super) fn share_out<T>(all: &mut Vec<T>, most: usize, pod: impl Fn(&T) -> &str, left_out: &mut LeftOut) {
    if all.len() <= most {
        return;
    }
    let pods: HashSet<&str> = all.iter().map(&pod).collect();
    let share = (most / pods.len()).max(1);
    let mut of_pods: HashMap<&str, usize> = HashMap::new();
    let within: Vec<bool> = all
        .iter()
        .map(|one| {
            let number = of_pods.entry(pod(one)).or_insert(0);
            *number += 1;
            *number <= share
        })
        .collect();
    let mut room = most.saturating_sub(within.iter().filter(|within| **within).count());
    let mut of_node = most;
    let mut kept = within.iter().map(|&within| {
        // More pods than there are places: it is no pod's doing.
        let place = if within { &mut of_node } else { &mut room };
        let kept = *place > 0;
        *place = place.saturating_sub(1);
        kept
    });
    let mut within = within.iter();
    all.retain(|one| {
        let (kept, within) = (kept.next() == Some(true), within.next() == Some(&true));
        match (kept, within) {
            (true, _) => {}
            (false, true) => left_out.node += 1,
            (false, false) => *left_out.pods.entry(pod(one).to_owned()).or_insert(0) += 1,
        }
        kept
    });
}

impl Assessment {
    /// Chooses: the volumes nearest their limit, at most `max_volumes`, of each pod first; kills of the pods of those,
    /// and of the pods that had one last. `left_out`: what was not even measured.
    pub(super) fn new(
        mut volumes: Vec<Measured>,
        pods: &[Pod],
        tallies: &Tallies,
        max_volumes: usize,
        mut left_out: LeftOut,
    ) -> Self {
        volumes.sort_by(|a, b| {
            let ratio = |one: &Measured| one.ratio().unwrap_or(-1.0);
            ratio(b).total_cmp(&ratio(a)).then_with(|| a.volume.path.cmp(&b.volume.path))
        });
        share_out(&mut volumes, max_volumes, |one| &one.volume.pod_uid, &mut left_out);

        // A uid may have two cgroups; a sum with a part that is unknown is unknown.
        let mut counted: BTreeMap<&str, bool> = BTreeMap::new();
        for pod in pods {
            *counted.entry(&pod.uid).or_insert(true) &= pod.counted;
        }
        let known = counted.into_iter().filter(|(_, counted)| *counted).map(|(uid, _)| (uid, tallies.of(uid)));
        let of_volumes: HashSet<&str> = volumes.iter().map(|one| one.volume.pod_uid.as_str()).collect();
        let (mut kills, others): (Vec<(&str, Kills)>, Vec<_>) = known.partition(|(uid, _)| of_volumes.contains(uid));
        let mut others: Vec<_> = others.into_iter().filter(|(_, kills)| kills.total > 0).collect();
        others.sort_by_key(|(_, kills)| Reverse(*kills));
        left_out.node += others.len().saturating_sub(MOST_PODS) as u64;
        others.truncate(MOST_PODS);
        kills.extend(others);
        let kills = kills.into_iter().map(|(uid, kills)| (uid.to_owned(), kills.total)).collect();
        Assessment { volumes, kills, left_out }
    }

    /// The pods that names are wanted of.
    pub(super) fn uids(&self) -> HashSet<&str> {
        let of_volumes = self.volumes.iter().map(|one| one.volume.pod_uid.as_str());
        of_volumes.chain(self.kills.iter().map(|(uid, _)| uid.as_str())).collect()
    }

    /// With the names of pods; one whose name may still come is not shown yet, and one that nobody knows has none.
    pub(super) fn expose(&self, names: &Names, samples: &mut Samples) {
        let name = |uid: &str| names.pod(uid).map_or(("", ""), |pod| (pod.namespace.as_str(), pod.name.as_str()));
        for one in self.volumes.iter().filter(|one| !names.awaits(&one.volume.pod_uid)) {
            let uid = one.volume.pod_uid.as_str();
            let (namespace, pod) = name(uid);
            let labels = [namespace, pod, uid, &one.volume.name];
            let float = |bytes: Option<u64>| bytes.map(|bytes| bytes as f64);
            samples.push_some(&USED, &labels, float(one.sized().map(|usage| usage.used_bytes)));
            samples.push_some(&SIZE, &labels, float(one.sized().map(|usage| usage.capacity_bytes)));
            samples.push_some(&LIMIT, &labels, float(one.limit()));
            for (scope, limit) in [("pod", one.pod_limit), ("container", one.container_limit)] {
                samples.push_some(&CGROUP_LIMIT, &[namespace, pod, uid, &one.volume.name, scope], float(limit));
            }
        }
        for (uid, total) in self.kills.iter().filter(|(uid, _)| !names.awaits(uid)) {
            let (namespace, pod) = name(uid);
            samples.push(&KILLS, &[namespace, pod, uid], *total as f64);
        }
        samples.drop_count(self.left_out.node);
        samples.drop_of_pods(self.left_out.pods.iter().map(|(uid, &count)| {
            let (namespace, name) = name(uid);
            (DroppedPod { namespace: namespace.to_owned(), name: name.to_owned(), uid: uid.clone() }, count)
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(all: &[(&str, u32)], most: usize) -> (Vec<String>, LeftOut) {
        let (mut all, mut left_out) = (all.to_vec(), LeftOut::default());
        share_out(&mut all, most, |(pod, _)| pod, &mut left_out);
        (all.iter().map(|(pod, number)| format!("{pod}{number}")).collect(), left_out)
    }

    #[test]
    fn each_pod_has_its_share_and_the_nearest_the_rest() {
        let all = [("a", 1), ("a", 2), ("a", 3), ("a", 4), ("b", 1), ("c", 1), ("c", 2)];
        let of_pods = |pods: &[(&str, u64)]| LeftOut {
            pods: pods.iter().map(|&(uid, count)| (uid.to_owned(), count)).collect(),
            node: 0,
        };
        assert_eq!(shared(&all, 7).1, LeftOut::default());
        let (kept, left_out) = shared(&all, 6);
        assert_eq!(kept, ["a1", "a2", "a3", "b1", "c1", "c2"]);
        assert_eq!(left_out, of_pods(&[("a", 1)]));
        let (kept, left_out) = shared(&all, 4);
        assert_eq!(kept, ["a1", "a2", "b1", "c1"], "the nearest of the rest");
        assert_eq!(left_out, of_pods(&[("a", 2), ("c", 1)]));
        let (kept, left_out) = shared(&all, 2);
        assert_eq!(kept, ["a1", "b1"]);
        assert_eq!(left_out, LeftOut { node: 1, ..of_pods(&[("a", 3), ("c", 1)]) });
        assert_eq!(shared(&all, 0).0, [""; 0]);
    }
}
