//! The cgroups below `kubepods`: one bounded walk a scrape, shared by every mode that asks.
//!
//! The first mode of a scrape that needs them walks, on its own thread; the others wait for that walk
//! ([`SingleFlight`]). It reads of each directory what any of them needs, and an error of one kind of reading
//! concerns only the modes that need that kind ([`Unread`]). What takes more than the directory itself (limits, mount
//! tables) the modes read afterwards, of the few directories that they care about ([`Tree::path`]).
//!
//! On v1, and on cgroup2 where the kernel does not count memory ids, the walk covers the whole hierarchy that
//! kubepods lies in, because its directories are what is counted. There can be two trees at once: a kubelet whose
//! driver was changed leaves the old one behind (`kubepods` beside `kubepods.slice`), and nothing removes it.

mod kernel_memory;
mod pods;
mod recall;
mod search;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::cgroup_name::{self, Qos};
use crate::error::{Error, Reason, Result};
use crate::host::cgroup::walk::{Below, Bounds, Extent, walk};
use crate::host::cgroup::{Hierarchy, Layout, Stat, Subsystem, held};
use crate::host::single_flight::{Landed, SingleFlight};
use crate::host::text::keyed;
use crate::host::{Deadline, Host};
use crate::values::{at_least_one, defaults};
pub use kernel_memory::{Charged, accounts_by_cgroup};
pub use pods::{Container, Pod};
use recall::{Known, Recall};
use search::{Position, Search};

/// How the cgroups of pods are walked over.
#[derive(clap::Args, Clone, Debug, PartialEq, Eq)]
#[group(skip)]
#[command(next_help_heading = "Cgroups of pods")]
pub struct Settings {
    /// Cgroup directories that are walked in one scrape at the most
    #[arg(long = "kubepods.max-directories", value_name = "N", default_value_t = 100_000, value_parser = at_least_one)]
    pub max_directories: usize,
    /// Old name of --kubepods.max-directories; it wins if both are given
    #[arg(long = "collector.cgroup_leak.max-directories", value_name = "N", value_parser = at_least_one)]
    pub max_directories_by_old_name: Option<usize>,
}

impl Default for Settings {
    fn default() -> Self {
        defaults()
    }
}

/// The cgroups of pods of this node. A clone is the same handle.
#[derive(Clone, Debug, Default)]
pub struct Kubepods(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    settings: Settings,
    looks: SingleFlight<Arc<Look>>,
    recall: Mutex<Recall>,
}

impl Kubepods {
    /// A handle that walks as it is told here.
    pub fn new(settings: Settings) -> Self {
        Kubepods(Arc::new(Shared { settings, ..Shared::default() }))
    }

    /// What a walk saw that began at `since` or later. All who ask for the same moment share one, each until its own
    /// deadline.
    ///
    /// # Errors
    /// Timeout, if a walk under way does not end before the deadline. What the walk itself could not see is in the
    /// [`Look`].
    pub fn look(&self, host: &Host, deadline: Deadline, since: Instant) -> Result<Landed<Arc<Look>>> {
        let late = || Error::new(Reason::Timeout, "the cgroups of pods: reading them did not end before the deadline");
        let look = || {
            let mut recall = self.0.recall.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::new(Look::new(host, &mut recall, self.bounds(deadline)))
        };
        self.0.looks.since(since, deadline, look).ok_or_else(late)
    }

    /// What a walk may cost.
    pub fn bounds(&self, deadline: Deadline) -> Bounds {
        let Settings { max_directories, max_directories_by_old_name } = self.0.settings;
        Bounds { directories: max_directories_by_old_name.unwrap_or(max_directories) as u64, deadline }
    }

    /// How many looks were made since the exporter started.
    pub fn looks(&self) -> u64 {
        self.0.looks.runs()
    }
}

/// What one moment shows of the machine's cgroups.
#[derive(Debug)]
pub struct Look {
    /// What is mounted.
    pub layout: Result<Layout>,
    /// `/proc/cgroups`, the rows of controllers on v1 hierarchies, as they were before the walk.
    pub rows: Result<Vec<Subsystem>>,
    /// `cgroup.stat` of cgroup2's root; `None` without a cgroup2 mount, or before Linux 4.14.
    pub unified: Result<Option<Stat>>,
    /// The node's killed processes since boot, before the walk (`oom_kill` of `/proc/vmstat`, Linux 4.13).
    pub node_kills: Result<Option<u64>>,
    /// The walk over the hierarchy that kubepods lies in; `None` without cgroups.
    pub walk: Option<Walk>,
}

/// One walk.
#[derive(Debug)]
pub struct Walk {
    /// The hierarchy that kubepods was looked for in.
    pub hierarchy: Hierarchy,
    /// How much of it was seen: on v1 every directory, unless the walk was cut short; on cgroup2 those that it takes.
    pub extent: Extent,
    /// The kernel's own count of cgroups in it, of the same moment; only on v1.
    pub held: Option<u64>,
    /// Cgroups that have a memory id, where only a walk can count them: on cgroup2 before Linux 6.12. At the most,
    /// where a part was left out. `None` elsewhere, and if it was cut short.
    pub memory_ids: Result<Option<u64>>,
    /// What lies below kubepods.
    pub tree: Tree,
}

/// What lies below kubepods.
#[derive(Debug, Default)]
pub struct Tree {
    /// Kubepods roots; with 0 this is no node that runs pods.
    pub roots: u64,
    /// Everything below them except the QoS directories, parents before children.
    pub directories: Vec<Directory>,
    /// Kernel memory charged to the roots; `None` without one.
    pub charged: Option<Charged>,
    /// What could not be read.
    pub unread: Unread,
    /// How many files of its directories a pod does not let us read, by the index of its directory: whoever was given a
    /// cgroup may do that.
    pub closed: BTreeMap<usize, u64>,
    /// Our paths of the directories above: of roots and QoS directories, and where roots are looked for.
    bases: Vec<PathBuf>,
}

/// The first error of each kind of reading; there is no use in a thousand of the same.
#[derive(Debug, Default)]
pub struct Unread {
    /// Of [`Directory::populated`].
    pub population: Option<Error>,
    /// Of [`Directory::pid`].
    pub processes: Option<Error>,
    /// Of [`Directory::kills`].
    pub kills: Option<Error>,
    /// Of [`Tree::charged`] and [`Directory::kernel_memory`].
    pub kernel_memory: Option<Error>,
}

/// What a directory below kubepods is. The QoS directories themselves are none of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A pod's own.
    Pod,
    /// A container's, pause containers included.
    Container,
    /// Anything else.
    Other,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 3] = [Kind::Pod, Kind::Container, Kind::Other];

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Pod => "pod",
            Kind::Container => "container",
            Kind::Other => "other",
        }
    }
}

/// One directory below kubepods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// What it is.
    pub kind: Kind,
    /// Where it lies.
    pub qos: Qos,
    /// Its inode number: what tells it from a later directory of the same name.
    pub inode: u64,
    /// Its name in the directory that it lies in.
    pub name: Box<str>,
    /// The index of the directory that it lies in, always smaller than its own; `None` directly in a root or a QoS
    /// directory.
    pub parent: Option<usize>,
    /// The index of the pod's directory that it is, or lies in at any depth.
    pub pod: Option<usize>,
    /// Whether it or one below it has a process; `None` if that could not be read.
    pub populated: Option<bool>,
    /// The first process in it. Not read of a pod's own directory, and of what a container made in its own only while
    /// none was found further up.
    pub pid: Option<u32>,
    /// Processes of it that the OOM killer took: v1 its own, cgroup2 also those of everything below, and only of
    /// pods. `None` if this kernel does not count them, or it could not be read.
    pub kills: Option<u64>,
    /// Whether kernel memory is accounted here, only where that differs by cgroup ([`accounts_by_cgroup`]); `None` if
    /// that could not be read.
    pub kernel_memory: Option<bool>,
    base: usize,
}

impl Directory {
    /// The uid of the pod that it is named by.
    pub fn pod_uid(&self) -> Option<String> {
        cgroup_name::pod_uid(&self.name)
    }

    /// The id of the container that it is named by.
    pub fn container_id(&self) -> Option<&str> {
        cgroup_name::container_id(&self.name)
    }
}

impl Look {
    fn new(host: &Host, recall: &mut Recall, bounds: Bounds) -> Self {
        let node_kills = node_kills(host);
        let known = recall.begin(node_kills.as_ref().ok().copied().flatten());
        let (layout, rows) = (Layout::detect(host), held::rows(host));
        let root = layout.as_ref().ok().and_then(Layout::unified).map(|unified| unified.path.join("cgroup.stat"));
        let text = root.map(|path| host.read_some(path)).transpose().map(Option::flatten);
        let unified = text.and_then(|text| text.as_deref().map(Stat::parse).transpose());
        let hierarchy = layout.as_ref().ok().and_then(hierarchy);
        let walk = hierarchy.map(|hierarchy| {
            if hierarchy.unified {
                let printed = matches!(&unified, Ok(Some(stat)) if stat.controller("memory").is_some());
                Walk::unified(host, hierarchy, known, hierarchy.has("memory") && !printed, bounds)
            } else {
                let before = rows.as_ref().ok().and_then(|rows| held::of(rows, hierarchy));
                Walk::v1(host, hierarchy, known, before, bounds)
            }
        });
        if let Some(walk) = &walk {
            recall.end(&walk.tree);
        }
        Look { layout, rows, unified, node_kills, walk }
    }

    /// The walk, if it was over the memory controller's hierarchy: others do not tell of memory.
    pub fn memory(&self) -> Option<&Walk> {
        self.walk.as_ref().filter(|walk| walk.hierarchy.has("memory"))
    }
}

/// Processes that the OOM killer took on this node since boot; `None` if this kernel does not count them.
///
/// # Errors
/// `/proc/vmstat` cannot be read.
pub fn node_kills(host: &Host) -> Result<Option<u64>> {
    Ok(host.read_some(host.proc("vmstat"))?.and_then(|text| keyed(&text, "oom_kill")))
}

/// The one hierarchy to look for kubepods in: the memory controller's, where ids run out; else that of pids, which
/// the kubelet always uses too; else any.
fn hierarchy(layout: &Layout) -> Option<&Hierarchy> {
    layout.of("memory").or_else(|| layout.of("pids")).or_else(|| layout.hierarchies.first())
}

impl Walk {
    fn v1(host: &Host, hierarchy: &Hierarchy, known: Known<'_>, before: Option<u64>, bounds: Bounds) -> Self {
        let mut search = Search::new(host, hierarchy, known);
        let (extent, held) = held::beside(host, hierarchy, before, bounds.deadline, || {
            search = Search::new(host, hierarchy, known);
            walk(&hierarchy.path, Position::TOP, bounds, |entry, position| search.step(position, entry))
        });
        Walk { hierarchy: hierarchy.clone(), extent, held, memory_ids: Ok(None), tree: search.finish() }
    }

    /// Walks below kubepods, and where ids are to be counted, wherever one can be: a cgroup has one if its parent
    /// passes `memory` on.
    fn unified(host: &Host, hierarchy: &Hierarchy, known: Known<'_>, count_ids: bool, bounds: Bounds) -> Self {
        const CONTROL: &str = "cgroup.subtree_control";
        let passes_on = |control: &str| control.split_ascii_whitespace().any(|name| name == "memory");
        let control = count_ids.then(|| host.read(hierarchy.path.join(CONTROL))).transpose();
        let (control, mut unread) = control.map_or_else(|error| (None, Some(error)), |control| (control, None));
        // The root has an id of its own.
        let mut ids = 1;
        let mut search = Search::new(host, hierarchy, known);
        let top = (Position::TOP, control.as_deref().is_some_and(passes_on));
        let extent = walk(&hierarchy.path, top, bounds, |entry, (position, has_id)| {
            let step = search.step(position, entry);
            if step == Below::Leave {
                return Below::Leave;
            }
            ids += u64::from(has_id);
            let below = has_id && entry.may_have_children() && {
                let control = entry.first(CONTROL);
                unread = unread.take().or_else(|| control.as_ref().err().filter(|error| !error.is_gone()).cloned());
                control.is_ok_and(|control| passes_on(&control))
            };
            match step {
                Below::Enter(Position::Outside) | Below::Apart(Position::Outside, _) if !below => Below::Leave,
                Below::Enter(position) => Below::Enter((position, below)),
                Below::Apart(position, share) => Below::Apart((position, below), share),
                Below::Leave => Below::Leave,
            }
        });
        let extent = Extent::of(extent);
        // What was left out may all have an id: whoever made it could have as many either way.
        ids += extent.beyond.values().sum::<u64>();
        let counted = count_ids && extent.stopped.is_none();
        let memory_ids = unread.map_or(Ok(counted.then_some(ids)), Err);
        Walk { hierarchy: hierarchy.clone(), extent, held: None, memory_ids, tree: search.finish() }
    }
}

impl Walk {
    /// What is missing of pods by their own doing: directories too many or too deep, files that they closed. By pod
    /// uid. And how many directories of no pod were left out.
    pub fn missing(&self) -> (BTreeMap<String, u64>, u64) {
        let (mut pods, mut others) = (BTreeMap::new(), 0);
        let closed = self.tree.closed.iter().map(|(&share, &count)| (Some(share), count));
        for (share, count) in self.extent.beyond.iter().map(|(&share, &count)| (share, count)).chain(closed) {
            let pod = share.and_then(|share| self.tree.directories.get(share)).filter(|one| one.kind == Kind::Pod);
            match pod.and_then(Directory::pod_uid) {
                Some(uid) => *pods.entry(uid).or_insert(0) += count,
                None => others += count,
            }
        }
        (pods, others)
    }
}

impl Tree {
    /// Our path of a directory.
    pub fn path(&self, index: usize) -> PathBuf {
        let directory = &self.directories[index];
        let above = directory.parent.map_or_else(|| self.bases[directory.base].clone(), |parent| self.path(parent));
        above.join(&*directory.name)
    }
}
