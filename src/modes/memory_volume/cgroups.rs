//! The cgroups of pods: how many of their processes were killed, and for pods with a volume, their limits.
//!
//! v2: one count for each pod. v1: one for each cgroup at and below a pod.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::volumes::EMPTY_DIR;
use crate::error::Error;
use crate::host::cgroup::{Layout, memory_limit};
use crate::host::filesystem::DeviceNumber;
use crate::host::text::keyed;
use crate::host::{Deadline, Host};
use crate::kubelet::kubepods::{Directory, Kind, Look, Walk};
use crate::metric::Samples;
use crate::modes::is_whole;

/// What the walk found, and the limits.
#[derive(Debug, Default)]
pub(super) struct Cgroups {
    /// Kubepods trees.
    pub(super) roots: u64,
    /// The pods in them.
    pub(super) pods: Vec<Pod>,
    /// False if some may have been missed.
    pub(super) complete: bool,
}

/// One pod's cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) uid: String,
    /// Its own memory limit, if it was asked for and there is one.
    pub(super) limit: Option<u64>,
    /// Its containers that have a limit, if they were asked for.
    pub(super) containers: Vec<Container>,
    /// Counts of killed processes that add up, by the inode of the cgroup that has them.
    pub(super) kills: Vec<(u64, u64)>,
    /// False if a count could not be read, or this kernel has none.
    pub(super) counted: bool,
}

/// A container with a memory limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Container {
    pub(super) limit: u64,
    /// The tmpfs that are mounted in it; `None` if it has no process that we can look at.
    pub(super) mounts: Option<Vec<DeviceNumber>>,
    /// Our path of its cgroup's `memory.stat`.
    pub(super) memory_stat: PathBuf,
}

/// The shared memory (tmpfs among it) that a cgroup and those below it are charged for; `None` if this kernel does not
/// tell, or it is gone.
pub(super) fn shared_memory(host: &Host, memory_stat: &Path) -> Option<u64> {
    let text = host.read(memory_stat).ok()?;
    // v1 counts a cgroup's own in `shmem`, with those below it in `total_shmem`.
    keyed(&text, "total_shmem").or_else(|| keyed(&text, "shmem"))
}

/// A container gets its mounts before its program starts: a table that has been the same for so long is not read again.
const SETTLED: Duration = Duration::from_secs(30);

/// What containers have mounted, by the inode of their cgroup: a mount table is by far the longest file that is read
/// here.
#[derive(Debug, Default)]
pub(super) struct Tables {
    known: HashMap<u64, Table>,
}

#[derive(Debug)]
struct Table {
    mounts: Vec<DeviceNumber>,
    /// When it was first read with these mounts, and last.
    first: Instant,
    last: Instant,
    /// Its container was met in this walk.
    met: bool,
}

impl Tables {
    fn settled(&mut self, inode: u64) -> Option<Vec<DeviceNumber>> {
        let table = self.known.get_mut(&inode)?;
        table.met = true;
        (table.last - table.first >= SETTLED).then(|| table.mounts.clone())
    }

    fn note(&mut self, inode: u64, mounts: &[DeviceNumber], now: Instant) {
        match self.known.get_mut(&inode) {
            Some(table) if table.mounts == mounts => table.last = now,
            _ => {
                let table = Table { mounts: mounts.to_vec(), first: now, last: now, met: true };
                self.known.insert(inode, table);
            }
        }
    }

    /// Forgets what a complete walk did not meet.
    fn end(&mut self, complete: bool) {
        self.known.retain(|_, table| std::mem::take(&mut table.met) || !complete);
    }
}

/// Takes from `look` what it saw, and reads the limits of pods with volumes, whose uids are `wanted`. `None` if there
/// are no memory cgroups to be read.
pub(super) fn read(
    host: &Host,
    look: &Look,
    wanted: &HashSet<&str>,
    tables: &mut Tables,
    samples: &mut Samples,
    deadline: Deadline,
) -> Option<Cgroups> {
    samples.ok(Layout::found(host, look.layout.clone()))??;
    let walk = look.memory()?;
    let complete = is_whole(walk, samples);
    let tree = &walk.tree;
    let processes = tree.processes();
    let mut reader = Reader { host, walk, tables, processes: &processes, deadline, unread: tree.unread.kills.clone() };
    let mut pods: Vec<(usize, Pod)> = Vec::new();
    for (index, directory) in tree.directories.iter().enumerate() {
        if directory.kind == Kind::Pod {
            let uid = directory.pod_uid().unwrap_or_default();
            let limit = if wanted.contains(uid.as_str()) { reader.limit(index) } else { None };
            pods.push((index, Pod { uid, limit, counted: true, ..Pod::default() }));
        }
        let pod = directory.pod.and_then(|pod| pods.binary_search_by_key(&pod, |(index, _)| *index).ok());
        let Some((_, pod)) = pod.map(|pod| &mut pods[pod]) else { continue };
        // v2: the pod's own count has those below it.
        if !walk.hierarchy.unified || directory.kind == Kind::Pod {
            match directory.kills {
                Some(count) => pod.kills.push((directory.inode, count)),
                None => pod.counted = false,
            }
        }
        if directory.kind == Kind::Container
            && wanted.contains(pod.uid.as_str())
            && let Some(limit) = reader.limit(index)
        {
            let memory_stat = tree.path(index).join("memory.stat");
            pod.containers.push(Container { limit, mounts: reader.mounts(index, directory), memory_stat });
        }
    }
    if let Some(error) = reader.unread {
        samples.fail(error);
    }
    if !walk.hierarchy.unified {
        // v1: what was left out has counts of its own.
        let (missing, _) = walk.missing();
        pods.iter_mut().filter(|(_, pod)| missing.contains_key(&pod.uid)).for_each(|(_, pod)| pod.counted = false);
    }
    tables.end(complete);
    Some(Cgroups { roots: tree.roots, pods: pods.into_iter().map(|(_, pod)| pod).collect(), complete })
}

/// Reads what the walk did not, of cgroups that may have gone since then.
struct Reader<'a> {
    host: &'a Host,
    walk: &'a Walk,
    tables: &'a mut Tables,
    /// Of each container one, by its index.
    processes: &'a BTreeMap<usize, u32>,
    deadline: Deadline,
    /// The first error.
    unread: Option<Error>,
}

impl Reader<'_> {
    fn limit(&mut self, index: usize) -> Option<u64> {
        let file = if self.walk.hierarchy.unified { "memory.max" } else { "memory.limit_in_bytes" };
        let path = self.walk.tree.path(index).join(file);
        let limit = self.host.read_some(&path).and_then(|text| {
            let limit = text.as_deref().map(memory_limit).transpose();
            limit.map_err(|error| error.context(path.display()))
        });
        limit.map(Option::flatten).unwrap_or_else(|error| {
            self.unread.get_or_insert(error);
            None
        })
    }

    /// The tmpfs that the first process of a container sees. Where the machine's own mounts are passed into a
    /// container, the kubelet's path of a volume is among them: that is not what mounts it.
    fn mounts(&mut self, index: usize, container: &Directory) -> Option<Vec<DeviceNumber>> {
        if let Some(mounts) = self.tables.settled(container.inode) {
            return Some(mounts);
        }
        let table = self.host.mount_table(*self.processes.get(&index)?, self.deadline).ok()?;
        let rows = table.lines().filter(|line| line.contains(" - tmpfs ") && !line.contains(EMPTY_DIR));
        let mounts: Vec<_> = rows.filter_map(DeviceNumber::of_row).collect();
        self.tables.note(container.inode, &mounts, Instant::now());
        Some(mounts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_until_it_has_settled_and_forgotten_with_its_container() {
        let number = |minor| DeviceNumber { major: 0, minor };
        let start = Instant::now();
        let mut tables = Tables::default();
        tables.note(7, &[], start);
        assert_eq!(tables.settled(7), None);
        // Its program starts, with other mounts than those of whoever made it.
        tables.note(7, &[number(5)], start + SETTLED);
        assert_eq!(tables.settled(7), None, "these are new");
        tables.note(7, &[number(5)], start + SETTLED * 2);
        assert_eq!(tables.settled(7), Some(vec![number(5)]));
        tables.end(true);
        assert!(tables.settled(7).is_some(), "it was met in that walk");
        tables.end(true);
        tables.end(false);
        assert!(tables.settled(7).is_some(), "a cut walk says nothing");
        tables.end(true);
        tables.end(true);
        assert_eq!(tables.settled(7), None);
    }
}
