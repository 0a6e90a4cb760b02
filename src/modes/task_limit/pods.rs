//! How many tasks each pod has and may have, at the price of one file each where nothing is near.

use std::collections::{HashMap, HashSet};

use super::MOST_OF_POD;
use super::cgroups::{Chain, left, nearer, relative};
use crate::error::Reason;
use crate::host::Deadline;
use crate::kubelet::kubepods::{Kind, Walk};
use crate::metric::DroppedPod;

/// What is not near is read again once in so many scrapes.
pub(super) const TURNS: u64 = 8;

/// One pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) uid: String,
    /// Of its directory in the walk.
    pub(super) index: usize,
    pub(super) path: String,
    pub(super) tasks: u64,
    /// What it may have.
    pub(super) limit: Option<u64>,
}

impl Pod {
    /// Has half of what it may have.
    pub(super) fn is_near(&self) -> bool {
        self.limit.is_some_and(|limit| self.tasks >= limit.div_ceil(2))
    }
}

/// Limits of pods and containers, by the inode of the walk: they are set when these are made.
#[derive(Debug, Default)]
pub(super) struct Memory {
    limits: HashMap<u64, u64>,
    /// Pods that could not be read in this scrape.
    unread: u64,
}

impl Memory {
    /// How many pods could not be read: then the sum of the others is none.
    pub(super) fn unread(&self) -> u64 {
        self.unread
    }

    /// Reads every pod of the walk.
    pub(super) fn read(&mut self, walk: &Walk, chain: &mut Chain<'_>, turn: u64, deadline: Deadline) -> Vec<Pod> {
        let directories = &walk.tree.directories;
        let mut containers: HashMap<usize, Vec<usize>> = HashMap::new();
        for (index, directory) in directories.iter().enumerate() {
            if let (Kind::Container, Some(pod)) = (directory.kind, directory.pod) {
                containers.entry(pod).or_default().push(index);
            }
        }
        self.unread = 0;
        let mut met = HashSet::new();
        let mut pods = Vec::new();
        let mut above: HashMap<String, Option<u64>> = HashMap::new();
        for (index, directory) in directories.iter().enumerate().filter(|(_, one)| one.kind == Kind::Pod) {
            if deadline.expired() {
                let left = directories[index..].iter().filter(|one| one.kind == Kind::Pod).count();
                chain.samples.fail(crate::error::Error::new(
                    Reason::Timeout,
                    format!("tasks of pods: {left} pods were not read before the deadline"),
                ));
                self.unread += left as u64;
                break;
            }
            let Some(path) = relative(walk, index) else { continue };
            let tasks = match chain.files.current(&path) {
                Ok(Some(tasks)) => tasks,
                Ok(None) => {
                    // It may be gone, or without the controller.
                    self.unread += u64::from(chain.files.inode(&path).is_some());
                    continue;
                }
                Err(error) => {
                    self.unread += 1;
                    chain.samples.fail(error);
                    continue;
                }
            };
            let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent).to_owned();
            let left_above = *above.entry(parent).or_insert_with(|| chain.left_above(&path));
            let own = self.limit(chain, directory.inode, &path, tasks, turn);
            met.insert(directory.inode);
            let mut least = nearer(own.and_then(|own| left(tasks, own)), left_above);
            for &container in containers.get(&index).into_iter().flatten().take(MOST_OF_POD) {
                let inode = directories[container].inode;
                met.insert(inode);
                let Some(path) = relative(walk, container) else { continue };
                let Some(max) = self.limit(chain, inode, &path, tasks, turn) else { continue };
                // It has no more than its pod: far from its limit that is near enough.
                let near = max != u64::MAX && tasks >= max / 2;
                let its = if near { chain.samples.ok(chain.files.current(&path)).flatten() } else { Some(tasks) };
                least = nearer(least, its.and_then(|its| left(its, max)));
            }
            let uid = directory.pod_uid().unwrap_or_default();
            pods.push(Pod { uid, index, path, tasks, limit: least.map(|least| tasks.saturating_add(least)) });
        }
        self.limits.retain(|inode, _| met.contains(inode));
        for (&pod, containers) in &containers {
            let beyond = containers.len().saturating_sub(MOST_OF_POD) as u64;
            if let (1.., Some(uid)) = (beyond, directories[pod].pod_uid()) {
                chain.samples.drop_of_pods([(DroppedPod { uid, ..DroppedPod::default() }, beyond)]);
            }
        }
        pods
    }

    /// `pids.max` of a pod or a container that has, or whose pod has, so many tasks.
    fn limit(&mut self, chain: &mut Chain<'_>, inode: u64, path: &str, tasks: u64, turn: u64) -> Option<u64> {
        let known = self.limits.get(&inode).copied();
        if let Some(known) = known
            && tasks < known / 2
            && inode % TURNS != turn % TURNS
        {
            return Some(known);
        }
        let read = chain.samples.ok(chain.files.max(path)).flatten()?;
        self.limits.insert(inode, read);
        Some(read)
    }
}
