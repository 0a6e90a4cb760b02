//! Which limits judge a volume. See the mode's documentation for the rule.

use std::collections::{HashMap, HashSet};

use super::Volume;
use super::cgroups::Pod;
use crate::host::filesystem::{DeviceNumber, Usage};

/// A volume with all that is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Measured {
    pub(super) volume: Volume,
    pub(super) usage: Option<Usage>,
    /// Of its pod's cgroup.
    pub(super) pod_limit: Option<u64>,
    /// The smallest of the containers that mount it.
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

/// Limits of containers that mount a volume, while they are down.
#[derive(Debug, Default)]
pub(super) struct Remembered(HashMap<DeviceNumber, Known>);

#[derive(Clone, Copy, Debug)]
struct Known {
    /// So many containers with a limit mounted it when most were up.
    containers: usize,
    smallest: u64,
}

impl Remembered {
    /// Puts everything together; what is remembered of volumes that are gone goes.
    pub(super) fn judge(&mut self, volumes: &[Volume], usages: Vec<Option<Usage>>, pods: &[Pod]) -> Vec<Measured> {
        let present: HashSet<DeviceNumber> = volumes.iter().map(|volume| volume.device).collect();
        self.0.retain(|device, _| present.contains(device));
        let judged = volumes.iter().zip(usages).map(|(volume, usage)| {
            // A cgroup driver that was changed leaves a second one behind.
            let of_pod: Vec<&Pod> = pods.iter().filter(|pod| pod.uid == volume.pod_uid).collect();
            Measured {
                volume: volume.clone(),
                usage,
                pod_limit: of_pod.iter().filter_map(|pod| pod.limit).min(),
                container_limit: if of_pod.is_empty() { None } else { self.smallest(volume.device, &of_pod) },
            }
        });
        judged.collect()
    }

    fn smallest(&mut self, device: DeviceNumber, pods: &[&Pod]) -> Option<u64> {
        let containers = || pods.iter().flat_map(|pod| &pod.containers);
        let mounting = containers().filter(|one| one.mounts.as_ref().is_some_and(|mounts| mounts.contains(&device)));
        let mut limits: Vec<u64> = mounting.map(|one| one.limit).collect();
        if limits.is_empty() {
            limits = containers().filter(|one| one.mounts.is_none()).map(|one| one.limit).collect();
        }
        let before = self.0.get(&device).copied();
        let now = limits.iter().min().map(|&smallest| Known { containers: limits.len(), smallest });
        let known = match (before, now) {
            // With fewer up than before, the one that is down may be the one that matters.
            (Some(before), Some(now)) if now.containers < before.containers => {
                Known { smallest: before.smallest.min(now.smallest), ..before }
            }
            (_, Some(now)) => now,
            (before, None) => before?,
        };
        self.0.insert(device, known);
        Some(known.smallest)
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
        let judged = remembered.judge(&[volume()], vec![None], &[pod]);
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
        let gone = remembered.judge(&[], vec![], &[]);
        assert!(gone.is_empty() && remembered.0.is_empty());
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
