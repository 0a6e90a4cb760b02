//! Which limits judge a volume. See the mode's documentation for the rule.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;

use super::Volume;
use super::cgroups::{Container, Pod};
use crate::host::filesystem::{DeviceNumber, Usage};

/// A volume with all that is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Measured {
    pub(super) volume: Volume,
    pub(super) usage: Option<Usage>,
    /// Of its pod's cgroup.
    pub(super) pod_limit: Option<u64>,
    /// The smallest of the containers that mount it and write to it.
    pub(super) container_limit: Option<u64>,
}

impl Measured {
    /// The limit that judges.
    pub(super) fn limit(&self) -> Option<u64> {
        self.pod_limit.into_iter().chain(self.container_limit).min()
    }

    /// Bytes used, and bytes that fit. A tmpfs without a size counts neither.
    pub(super) fn sized(&self) -> Option<Usage> {
        self.usage.filter(|usage| usage.capacity_bytes > 0)
    }

    /// What part of its limit, or without one of its size, is used.
    pub(super) fn ratio(&self) -> Option<f64> {
        let usage = self.sized()?;
        let bound = self.limit().filter(|limit| *limit > 0).unwrap_or(usage.capacity_bytes);
        Some(usage.used_bytes as f64 / bound as f64)
    }
}

/// What was known of the containers that mount a volume, for when they are down, and for the next ones.
#[derive(Debug, Default)]
pub(super) struct Remembered(HashMap<DeviceNumber, Known>);

#[derive(Clone, Debug, Default)]
struct Known {
    /// So many containers with a limit mounted it when most were up.
    containers: usize,
    /// Of those that write to it.
    smallest: Option<u64>,
    /// Limits of containers that were seen to be charged for as much of it as matters to them. A container that is
    /// killed comes back with the same limit, and is charged for nothing yet.
    charged: BTreeSet<u64>,
}

/// Asks for the shared memory that a cgroup is charged for, by its `memory.stat`.
pub(super) type Charged<'a> = &'a mut dyn FnMut(&Path) -> Option<u64>;

/// Limits of one volume's writers that are remembered.
const MOST_LIMITS: usize = 64;

impl Remembered {
    /// Puts everything together; what is remembered of volumes that are gone goes.
    pub(super) fn judge(
        &mut self,
        volumes: &[Volume],
        usages: Vec<Option<Usage>>,
        pods: &[Pod],
        charged: Charged<'_>,
    ) -> Vec<Measured> {
        let present: HashSet<DeviceNumber> = volumes.iter().map(|volume| volume.device).collect();
        self.0.retain(|device, _| present.contains(device));
        let judged = volumes.iter().zip(usages).map(|(volume, usage)| {
            // A cgroup driver that was changed leaves a second one behind.
            let of_pod: Vec<&Pod> = pods.iter().filter(|pod| pod.uid == volume.pod_uid).collect();
            Measured {
                volume: volume.clone(),
                usage,
                pod_limit: of_pod.iter().filter_map(|pod| pod.limit).min(),
                container_limit: if of_pod.is_empty() {
                    None
                } else {
                    self.smallest(volume.device, usage.map(|usage| usage.used_bytes), &of_pod, charged)
                },
            }
        });
        judged.collect()
    }

    fn smallest(
        &mut self,
        device: DeviceNumber,
        used: Option<u64>,
        pods: &[&Pod],
        charged: Charged<'_>,
    ) -> Option<u64> {
        let containers = || pods.iter().flat_map(|pod| &pod.containers);
        let mounting = containers().filter(|one| one.mounts.as_ref().is_some_and(|mounts| mounts.contains(&device)));
        let mut candidates: Vec<&Container> = mounting.collect();
        if candidates.is_empty() {
            candidates = containers().filter(|one| one.mounts.is_none()).collect();
        }
        let known = self.0.entry(device).or_default();
        let writers = candidates.iter().filter(|one| known.is_charged(one, used, charged));
        let smallest = writers.map(|one| one.limit).min();
        // With fewer up than before, the one that is down may be the one that matters.
        if candidates.len() < known.containers {
            known.smallest = known.smallest.into_iter().chain(smallest).min();
        } else if !candidates.is_empty() {
            (known.containers, known.smallest) = (candidates.len(), smallest);
        }
        known.smallest
    }
}

impl Known {
    /// Whether what is in the volume can kill this container. As long as that is little it could; a container that is
    /// charged for less than half of its limit when more than that is in the volume only reads what others wrote.
    fn is_charged(&mut self, container: &Container, used: Option<u64>, charged: Charged<'_>) -> bool {
        let half = container.limit / 2;
        if self.charged.contains(&container.limit) || used.is_none_or(|used| used <= half) {
            return true;
        }
        // What cannot be read speaks for nobody.
        let Some(own) = charged(&container.memory_stat) else { return true };
        if own > half && self.charged.len() < MOST_LIMITS {
            self.charged.insert(container.limit);
        }
        own > half
    }
}

#[cfg(test)]
mod tests {
    use super::super::cgroups::Container;
    use super::*;

    const CACHE: DeviceNumber = DeviceNumber { major: 0, minor: 58 };
    const OTHER: DeviceNumber = DeviceNumber { major: 0, minor: 59 };

    fn volume() -> Volume {
        Volume { pod_uid: "a".into(), name: "cache".into(), path: "/x".into(), device: CACHE }
    }

    fn pod(limit: Option<u64>, containers: &[(u64, Option<&[DeviceNumber]>)]) -> Pod {
        let container = |&(limit, mounts): &(u64, Option<&[DeviceNumber]>)| Container {
            limit,
            mounts: mounts.map(<[DeviceNumber]>::to_vec),
            memory_stat: limit.to_string().into(),
        };
        Pod {
            uid: "a".into(),
            limit,
            containers: containers.iter().map(container).collect(),
            counted: true,
            ..Pod::default()
        }
    }

    fn limits(remembered: &mut Remembered, pod: Pod) -> (Option<u64>, Option<u64>) {
        let judged = remembered.judge(&[volume()], vec![None], &[pod], &mut |_| None);
        (judged[0].container_limit, judged[0].limit())
    }

    fn once(pod: Pod) -> (Option<u64>, Option<u64>) {
        limits(&mut Remembered::default(), pod)
    }

    #[test]
    fn the_smaller_of_pod_and_mounting_container() {
        let mounts = Some(&[OTHER, CACHE][..]);
        assert_eq!(once(pod(Some(160), &[(32, mounts), (128, mounts)])), (Some(32), Some(32)));
        assert_eq!(once(pod(Some(160), &[(32, Some(&[OTHER])), (128, mounts)])), (Some(128), Some(128)));
        assert_eq!(once(pod(Some(100), &[(128, mounts)])), (Some(128), Some(100)), "a pod-level limit of its own");
        assert_eq!(once(pod(Some(160), &[(32, Some(&[]))])), (None, Some(160)), "no container mounts it");
        assert_eq!(once(pod(None, &[])), (None, None), "no limit anywhere");
    }

    #[test]
    fn who_cannot_be_looked_at_counts_only_if_nobody_else_mounts_it() {
        let mounts = Some(&[CACHE][..]);
        assert_eq!(once(pod(None, &[(32, None), (128, None)])).0, Some(32));
        assert_eq!(once(pod(None, &[(32, None), (128, mounts)])).0, Some(128));
        assert_eq!(once(pod(None, &[(32, None), (16, Some(&[OTHER]))])).0, Some(32));
    }

    #[test]
    fn a_container_that_is_down_is_remembered() {
        let mounts = Some(&[CACHE][..]);
        let mut remembered = Remembered::default();
        let mut of = |up: &[u64]| {
            let containers: Vec<_> = up.iter().map(|&limit| (limit, mounts)).collect();
            limits(&mut remembered, pod(Some(160), &containers)).0
        };
        assert_eq!(of(&[32, 128]), Some(32));
        assert_eq!(of(&[128]), Some(32), "the writer is down");
        assert_eq!(of(&[]), Some(32));
        assert_eq!(of(&[64, 128]), Some(64), "it was resized");
        let gone = remembered.judge(&[], vec![], &[], &mut |_| None);
        assert!(gone.is_empty() && remembered.0.is_empty());
    }

    /// Pages are charged to who wrote them first.
    #[test]
    fn who_only_reads_a_volume_is_not_judged_by_it() {
        let mounts = Some(&[CACHE][..]);
        let mut remembered = Remembered::default();
        // The sidecar's limit is 64, the writer's 1024; each cgroup's memory.stat is called by its limit here.
        let mut at = |used_bytes, of_sidecar: Option<u64>, of_writer: Option<u64>| {
            let usage = Some(Usage { capacity_bytes: 10_000, used_bytes });
            let pod = pod(Some(1088), &[(64, mounts), (1024, mounts)]);
            let mut charged = |stat: &Path| if stat == Path::new("64") { of_sidecar } else { of_writer };
            let judged = remembered.judge(&[volume()], vec![usage], &[pod], &mut charged);
            (judged[0].container_limit, judged[0].limit())
        };
        assert_eq!(at(10, Some(0), Some(10)), (Some(64), Some(64)), "who will write is not known yet");
        assert_eq!(at(60, Some(0), Some(60)), (Some(1024), Some(1024)));
        assert_eq!(at(900, Some(0), Some(900)), (Some(1024), Some(1024)));
        assert_eq!(at(900, Some(0), Some(0)), (Some(1024), Some(1024)), "the writer was killed and is back");
        assert_eq!(at(900, None, Some(0)), (Some(64), Some(64)), "what cannot be read speaks for nobody");
        assert_eq!(at(900, Some(40), Some(0)), (Some(64), Some(64)), "it writes too");
        assert_eq!(at(900, Some(0), Some(0)), (Some(64), Some(64)), "and may again");
    }

    #[test]
    fn if_nobody_that_runs_wrote_it_the_pod_alone_is_judged() {
        let usage = || Some(Usage { capacity_bytes: 10_000, used_bytes: 900 });
        let pod = || pod(Some(1088), &[(64, Some(&[CACHE]))]);
        let judged = Remembered::default().judge(&[volume()], vec![usage()], &[pod()], &mut |_| Some(3));
        assert_eq!((judged[0].container_limit, judged[0].limit()), (None, Some(1088)));
    }

    #[test]
    fn a_tmpfs_without_a_size_has_no_ratio() {
        let measured = |usage, pod_limit| Measured { volume: volume(), usage, pod_limit, container_limit: None };
        let usage = |capacity_bytes, used_bytes| Some(Usage { capacity_bytes, used_bytes });
        assert_eq!(measured(usage(0, 0), Some(10)).ratio(), None);
        assert_eq!(measured(None, Some(10)).ratio(), None);
        assert_eq!(measured(usage(100, 50), Some(10)).ratio(), Some(5.0));
        assert_eq!(measured(usage(100, 50), None).ratio(), Some(0.5));
        assert_eq!(measured(usage(100, 50), Some(0)).ratio(), Some(0.5));
    }
}
