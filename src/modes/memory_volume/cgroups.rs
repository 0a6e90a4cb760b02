//! The cgroups of pods: how many of their processes were killed, and for pods with a volume, their limits.
//!
//! v2: one file for each pod; only pods with a volume are entered. v1: one file for each cgroup below a pod.

use std::collections::HashSet;

use super::volumes::EMPTY_DIR;
use crate::error::{Error, Reason};
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

/// Walks over kubepods. `wanted`: uids of pods with volumes. `None` if there are no memory cgroups to be read.
pub(super) fn read(
    context: Context<'_>,
    max_directories: u64,
    wanted: &HashSet<&str>,
    samples: &mut Samples,
) -> Option<Cgroups> {
    let layout = match Layout::detect(context.host) {
        Err(error) if error.reason() == Reason::Absent => return None,
        other => samples.ok(other)?,
    };
    let hierarchy = layout.of("memory")?;
    let probe = Pods { host: context.host, unified: hierarchy.unified, wanted, found: Vec::new(), unread: None };
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
    fn mounts(&self, entry: &Entry<'_>) -> Option<Vec<DeviceNumber>> {
        let pids = entry.first("cgroup.procs").ok()?;
        // 0: a process outside of our pid namespace.
        let pid = pids.lines().next()?.trim().parse::<u32>().ok().filter(|pid| *pid != 0)?;
        let table = self.host.read(self.host.proc(format!("{pid}/mountinfo"))).ok()?;
        let rows = table.lines().filter(|line| line.contains(" - tmpfs ") && !line.contains(EMPTY_DIR));
        Some(rows.filter_map(DeviceNumber::of_row).collect())
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
