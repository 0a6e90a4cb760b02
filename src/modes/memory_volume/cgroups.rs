//! The cgroups of pods: how many of their processes were killed, and for pods with a volume, their limits.
//!
//! v2: one file for each pod; only pods with a volume are entered. v1: one file for each cgroup below a pod.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::volumes::EMPTY_DIR;
use crate::error::Error;
use crate::host::Host;
use crate::host::cgroup::walk::{Bounds, Entry, Stopped, walk};
use crate::host::cgroup::{Layout, memory_limit};
use crate::host::filesystem::DeviceNumber;
use crate::host::text::keyed;
use crate::kubelet::cgroup_name::{container_id, pod_uid};
use crate::kubelet::kubepods::{Position, Probe, Search};
use crate::metric::Samples;
use crate::modes::Context;

/// What one walk found.
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
}

/// A container gets its mounts before its program starts: a table that has been the same for so long is not read again.
const SETTLED: Duration = Duration::from_secs(30);

/// What containers have mounted, by the inode of their cgroup: a mount table is by far the longest file that is read here.
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

/// Walks over kubepods. `wanted`: uids of pods with volumes. `None` if there are no memory cgroups to be read.
pub(super) fn read(
    context: Context<'_>,
    max_directories: u64,
    wanted: &HashSet<&str>,
    tables: &mut Tables,
    samples: &mut Samples,
) -> Option<Cgroups> {
    let layout = samples.ok(Layout::find(context.host))??;
    let hierarchy = layout.of("memory")?;
    let (host, unified) = (context.host, hierarchy.unified);
    let probe = Pods { host, unified, wanted, tables, found: Vec::new(), unread: None };
    let mut search = Search::new(hierarchy, probe);
    let bounds = Bounds { directories: max_directories, deadline: context.deadline };
    let extent = walk(&hierarchy.path, Position::TOP, bounds, |entry, position| {
        let position = search.step(position, entry).filter(|&position| position != Position::Outside)?;
        match position {
            Position::Within(_, Some(index)) if !search.probe.worth_entering(search.directories[index].data) => None,
            _ => Some(position),
        }
    });
    let stopped = samples.ok(extent)?.stopped;
    let complete = stopped.is_none();
    match stopped {
        Some(Stopped::Bound(left)) => samples.drop_count(left),
        Some(Stopped::Failed(error)) => samples.fail(error),
        None => {}
    }
    search.probe.tables.end(complete);
    if let Some(error) = search.probe.unread {
        samples.fail(error);
    }
    Some(Cgroups { roots: search.roots, pods: search.probe.found, complete })
}

/// Where a directory is.
#[derive(Clone, Copy)]
enum Spot {
    /// In no pod.
    Stray,
    /// This pod's own.
    Pod(usize),
    /// Somewhere below it.
    Below(usize),
}

struct Pods<'a> {
    host: &'a Host,
    unified: bool,
    wanted: &'a HashSet<&'a str>,
    tables: &'a mut Tables,
    found: Vec<Pod>,
    unread: Option<Error>,
}

/// What became of a read.
enum Answer {
    Text(String),
    /// The cgroup is there, and has no such file or it cannot be read.
    Without,
    /// The cgroup is not there any more.
    Gone,
}

impl Pods<'_> {
    fn worth_entering(&self, spot: Spot) -> bool {
        match spot {
            Spot::Stray => false,
            Spot::Pod(pod) => !self.unified || self.is_wanted(pod),
            Spot::Below(_) => !self.unified,
        }
    }

    fn is_wanted(&self, pod: usize) -> bool {
        self.wanted.contains(self.found[pod].uid.as_str())
    }

    fn read(&mut self, entry: &Entry<'_>, file: &str) -> Answer {
        match entry.first(file) {
            Ok(text) => Answer::Text(text),
            Err(error) if entry.is_gone(&error) => Answer::Gone,
            Err(error) => {
                if !error.is_gone() {
                    self.unread.get_or_insert(error);
                }
                Answer::Without
            }
        }
    }

    /// Adds the count of `entry` to its pod. False if the cgroup went away.
    fn count(&mut self, entry: &Entry<'_>, pod: usize) -> bool {
        let file = if self.unified { "memory.events" } else { "memory.oom_control" };
        let count = match self.read(entry, file) {
            Answer::Gone => return false,
            Answer::Without => None,
            Answer::Text(text) => keyed(&text, "oom_kill"),
        };
        match count {
            Some(count) => self.found[pod].kills.push((entry.inode, count)),
            None => self.found[pod].counted = false,
        }
        true
    }

    fn limit(&mut self, entry: &Entry<'_>) -> Option<u64> {
        let file = if self.unified { "memory.max" } else { "memory.limit_in_bytes" };
        let Answer::Text(text) = self.read(entry, file) else { return None };
        match memory_limit(&text) {
            Ok(limit) => limit,
            Err(error) => {
                self.unread.get_or_insert(error.context(format_args!("{}/{file}", entry.name())));
                None
            }
        }
    }

    /// The tmpfs that the first process of a container sees. Where the machine's own mounts are passed into a container, the
    /// kubelet's path of a volume is among them: that is not what mounts it.
    fn mounts(&mut self, entry: &Entry<'_>) -> Option<Vec<DeviceNumber>> {
        if let Some(mounts) = self.tables.settled(entry.inode) {
            return Some(mounts);
        }
        let pids = entry.first("cgroup.procs").ok()?;
        // 0: a process outside of our pid namespace.
        let pid = pids.lines().next()?.trim().parse::<u32>().ok().filter(|pid| *pid != 0)?;
        let table = self.host.read(self.host.proc(format!("{pid}/mountinfo"))).ok()?;
        let rows = table.lines().filter(|line| line.contains(" - tmpfs ") && !line.contains(EMPTY_DIR));
        let mounts: Vec<_> = rows.filter_map(DeviceNumber::of_row).collect();
        self.tables.note(entry.inode, &mounts, Instant::now());
        Some(mounts)
    }
}

impl Probe for Pods<'_> {
    type Data = Spot;

    fn directory(&mut self, entry: &Entry<'_>, parent: Option<&Spot>) -> Option<Spot> {
        let name = entry.name();
        match parent {
            None => {
                let Some(uid) = pod_uid(&name) else { return Some(Spot::Stray) };
                let pod = self.found.len();
                self.found.push(Pod { uid, counted: true, ..Pod::default() });
                if !self.count(entry, pod) {
                    self.found.pop();
                    return None;
                }
                if self.is_wanted(pod) {
                    self.found[pod].limit = self.limit(entry);
                }
                Some(Spot::Pod(pod))
            }
            Some(Spot::Stray) => Some(Spot::Stray),
            Some(&(Spot::Pod(pod) | Spot::Below(pod))) => {
                if !self.unified && !self.count(entry, pod) {
                    return None;
                }
                let container = matches!(parent, Some(Spot::Pod(_))) && container_id(&name).is_some();
                if container
                    && self.is_wanted(pod)
                    && let Some(limit) = self.limit(entry)
                {
                    let mounts = self.mounts(entry);
                    self.found[pod].containers.push(Container { limit, mounts });
                }
                Some(Spot::Below(pod))
            }
        }
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
