//! What is shown of it, and how. Pure: no system call, no clock.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};

use super::cgroups::Pod;
use super::kills::{Kills, Tallies};
use super::limits::Measured;
use super::{CGROUP_LIMIT, KILLS, LIMIT, MOST_PODS, SIZE, USED};
use crate::metric::Samples;
use crate::runtime::Names;

/// What the caps leave.
#[derive(Debug)]
pub(super) struct Assessment {
    volumes: Vec<Measured>,
    /// Kills by pod uid.
    kills: Vec<(String, u64)>,
    dropped: u64,
}

impl Assessment {
    /// Chooses: the `max_volumes` nearest their limit; kills of the pods of those, and of the pods that had one last.
    pub(super) fn new(mut volumes: Vec<Measured>, pods: &[Pod], tallies: &Tallies, max_volumes: usize) -> Self {
        volumes.sort_by(|a, b| {
            let ratio = |one: &Measured| one.ratio().unwrap_or(-1.0);
            ratio(b).total_cmp(&ratio(a)).then_with(|| a.volume.path.cmp(&b.volume.path))
        });
        let mut dropped = volumes.len().saturating_sub(max_volumes);
        volumes.truncate(max_volumes);

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
        dropped += others.len().saturating_sub(MOST_PODS);
        others.truncate(MOST_PODS);
        kills.extend(others);
        let kills = kills.into_iter().map(|(uid, kills)| (uid.to_owned(), kills.total)).collect();
        Assessment { volumes, kills, dropped: dropped as u64 }
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
        samples.drop_count(self.dropped);
    }
}
