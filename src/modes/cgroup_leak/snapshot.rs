//! What is read of the machine: counts of the kernel, and walks where it has none.

use super::Settings;
use crate::error::{Error, Result};
use crate::host::cgroup::walk::{Bounds, Entry, Extent, Stopped, walk};
use crate::host::cgroup::{Hierarchy, Layout, Mode, Stat, Subsystem, parse_subsystems};
use crate::host::{Host, Kernel};
use crate::kubelet::kubepods::{self, Directory, Position, Probe, Search};
use crate::metric::Samples;
use crate::modes::Context;

/// Whether a cgroup or one below it has a process; `None` if that could not be read.
pub(super) type Populated = Option<bool>;

/// What is known of one directory below kubepods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) populated: Populated,
    /// Its name, where a runtime is there that may know it.
    pub(super) name: Option<Box<str>>,
}

/// Everything that was read.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    pub(super) kernel: Option<Kernel>,
    /// Controllers on v1 hierarchies.
    pub(super) v1: Vec<Controller>,
    /// The root's `cgroup.stat` on hybrid and v2.
    pub(super) unified: Option<Stat>,
    /// Where the memory controller is.
    pub(super) memory: Memory,
    /// Below kubepods; `None` without such a tree or if the walk was cut short.
    pub(super) kubepods: Option<Vec<Directory<Seen>>>,
    /// False if directories below kubepods may have been missed: then what is not seen must not be forgotten.
    pub(super) complete: bool,
}

/// One v1 controller.
#[derive(Debug)]
pub(super) struct Controller {
    pub(super) name: String,
    /// `num_cgroups` of `/proc/cgroups`, if that could be read.
    pub(super) held: Option<u64>,
    /// Directories of its hierarchy, if they were counted.
    pub(super) visible: Option<u64>,
}

/// Where the memory controller is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Memory {
    /// Not built in, switched off, or not mounted.
    #[default]
    None,
    V1,
    /// On cgroup2. With the ids counted by a walk, where the kernel does not print them.
    Unified(Option<u64>),
}

/// Reads it all, with the `names` of directories or without. Errors of parts go to `samples`.
pub(super) fn read(context: Context<'_>, settings: &Settings, names: bool, samples: &mut Samples) -> Result<Snapshot> {
    let Context { host, deadline, .. } = context;
    let bounds = Bounds { directories: settings.max_directories as u64, deadline };
    let layout = Layout::detect(host);
    let rows = rows(host);
    // `/proc/cgroups` is true whatever we see of the cgroup file systems; without its v1 rows there is nothing to add.
    let layout = match layout {
        Ok(layout) => Some(layout),
        Err(error) if rows.as_ref().is_ok_and(|rows| !rows.is_empty()) => {
            samples.fail(error);
            None
        }
        Err(error) => return Err(error),
    };
    let mut snapshot = Snapshot { kernel: samples.ok(host.kernel()), ..Snapshot::default() };
    // A kernel with nothing on v1 need not have the file.
    let only_v2 = layout.as_ref().is_some_and(|layout| layout.mode == Mode::V2);
    let rows = if only_v2 { Ok(Vec::new()) } else { rows };
    if let Some(rows) = samples.ok(rows) {
        let controller =
            |row: &Subsystem| Controller { name: row.name.clone(), held: Some(row.cgroups), visible: None };
        snapshot.v1 = rows.iter().map(controller).collect();
    } else if let Some(layout) = &layout {
        let names = layout.hierarchies.iter().filter(|one| !one.unified).flat_map(|one| &one.controllers);
        // systemd's own hierarchy has no controller, and no row in /proc/cgroups either.
        let names = names.filter(|name| *name != "systemd");
        snapshot.v1 = names.map(|name| Controller { name: name.clone(), held: None, visible: None }).collect();
    }
    let Some(layout) = layout else { return Ok(snapshot) };

    if let Some(unified) = layout.unified() {
        let stat = host
            .read_some(unified.path.join("cgroup.stat"))
            .and_then(|text| text.as_deref().map(Stat::parse).transpose());
        snapshot.unified = samples.ok(stat).flatten();
    }
    snapshot.memory = match layout.of("memory") {
        None => Memory::None,
        Some(hierarchy) if hierarchy.unified => Memory::Unified(None),
        Some(_) => Memory::V1,
    };
    let of_kubepods = kubepods::hierarchy(&layout);
    if let Some(hierarchy) = of_kubepods.filter(|hierarchy| hierarchy.unified) {
        walk_unified(host, hierarchy, names, bounds, &mut snapshot, samples);
    }
    for hierarchy in layout.hierarchies.iter().filter(|hierarchy| !hierarchy.unified) {
        let counted = settings.v1_hierarchies.iter().any(|name| name == "all" || hierarchy.has(name));
        let searched = of_kubepods == Some(hierarchy);
        if counted || searched {
            walk_v1(host, hierarchy, Want { counted, searched, names }, bounds, &mut snapshot, samples);
        }
    }
    Ok(snapshot)
}

/// The rows of `/proc/cgroups` that say something about one controller: those on a v1 hierarchy.
fn rows(host: &Host) -> Result<Vec<Subsystem>> {
    let mut rows = parse_subsystems(&host.read(host.proc("cgroups"))?)?;
    rows.retain(|row| row.hierarchy != 0);
    Ok(rows)
}

/// Walks the cgroup2 hierarchy: below kubepods, and where the kernel does not count memory ids, wherever one can be.
fn walk_unified(
    host: &Host,
    hierarchy: &Hierarchy,
    names: bool,
    bounds: Bounds,
    snapshot: &mut Snapshot,
    samples: &mut Samples,
) {
    let printed = snapshot.unified.as_ref().is_some_and(|stat| stat.controller("memory").is_some());
    let count_ids = snapshot.memory == Memory::Unified(None) && !printed;
    let control = count_ids.then(|| host.read(hierarchy.path.join("cgroup.subtree_control"))).transpose();
    let control = samples.ok(control).flatten();
    let gives_memory = |control: &str| control.split_ascii_whitespace().any(|name| name == "memory");
    // The root has an id of its own.
    let mut ids = control.is_some().then_some(1);
    let mut unread = None;
    let mut search = Search::new(hierarchy, Population::new(hierarchy.unified, names, Ok(())));
    let top = (Position::TOP, control.as_deref().is_some_and(gives_memory));
    let extent = walk(&hierarchy.path, top, bounds, |entry, (position, has_id)| {
        let position = search.step(position, entry)?;
        ids = ids.map(|ids| ids + u64::from(has_id));
        let below = has_id && entry.may_have_children() && {
            match entry.first("cgroup.subtree_control") {
                Ok(control) => gives_memory(&control),
                Err(error) => {
                    if !error.is_gone() {
                        unread = Some(error);
                    }
                    false
                }
            }
        };
        (below || position != Position::Outside).then_some((position, below))
    });
    let whole = finish(extent, samples).is_some();
    if let Some(error) = unread {
        samples.fail(error);
    } else if whole && count_ids {
        snapshot.memory = Memory::Unified(ids);
    }
    take(search, whole, snapshot, samples);
}

/// What a walk of a v1 hierarchy is for.
#[derive(Clone, Copy)]
struct Want {
    /// To count its directories.
    counted: bool,
    /// To look below kubepods.
    searched: bool,
    /// And to remember the names of what is there.
    names: bool,
}

/// Walks a v1 hierarchy. `/proc/cgroups` is read before and after: cgroups made meanwhile are in one count and not in the
/// other. If the kernel's count moved, the walk is done once more; if it moves again, the smaller count is taken, so that
/// what was made meanwhile is never called dying.
fn walk_v1(
    host: &Host,
    hierarchy: &Hierarchy,
    want: Want,
    bounds: Bounds,
    snapshot: &mut Snapshot,
    samples: &mut Samples,
) {
    let held = |rows: &[Subsystem]| rows.iter().find(|row| hierarchy.has(&row.name)).map(|row| row.cgroups);
    // KubeletInputs of no process, every directory would look like one that nobody is in.
    let told = if want.searched { host.is_told_of_the_machines_processes() } else { Ok(()) };
    let mut before = snapshot.v1.iter().find(|one| hierarchy.has(&one.name)).and_then(|one| one.held);
    for first in [true, false] {
        let started = bounds.deadline.remaining();
        let mut search = Search::new(hierarchy, Population::new(false, want.names, told.clone()));
        let top = if want.searched { Position::TOP } else { Position::Outside };
        let extent = walk(&hierarchy.path, top, bounds, |entry, position| {
            let position = search.step(position, entry)?;
            (want.counted || position != Position::Outside).then_some(position)
        });
        let after =
            if want.counted && before.is_some() { rows(host).ok().and_then(|rows| held(&rows)) } else { before };
        let left = bounds.deadline.remaining();
        let time_for_another = started.saturating_sub(left) < left / 2;
        if first && after != before && extent.as_ref().is_ok_and(|extent| extent.stopped.is_none()) && time_for_another
        {
            before = after;
            continue;
        }
        let extent = finish(extent, samples);
        for controller in snapshot.v1.iter_mut().filter(|one| want.counted && hierarchy.has(&one.name)) {
            controller.visible = extent.as_ref().map(|extent| extent.directories);
            controller.held = before.min(after).or(controller.held);
        }
        if want.searched {
            take(search, extent.is_some(), snapshot, samples);
        }
        return;
    }
}

/// The extent of a walk that saw everything; otherwise it is noted why not.
fn finish(extent: Result<Extent>, samples: &mut Samples) -> Option<Extent> {
    let mut extent = samples.ok(extent)?;
    match extent.stopped.take() {
        None => return Some(extent),
        Some(Stopped::Bound(left)) => samples.drop_count(left),
        Some(Stopped::Failed(error)) => samples.fail(error),
    }
    None
}

/// Moves what a search found into the snapshot.
fn take(search: Search<Population>, whole: bool, snapshot: &mut Snapshot, samples: &mut Samples) {
    snapshot.complete = whole;
    if let Some(error) = search.probe.unread {
        samples.fail(error);
    }
    if whole && search.roots > 0 {
        let mut directories = search.directories;
        spread(&mut directories);
        snapshot.kubepods = Some(directories);
    }
}

/// A directory is populated if one below it is. (v2 says so itself; v1 names only a cgroup's own processes.)
fn spread(directories: &mut [Directory<Seen>]) {
    for index in (0..directories.len()).rev() {
        let below = directories[index].data.populated;
        let Some(parent) = directories[index].parent else { continue };
        let parent = &mut directories[parent].data.populated;
        *parent = match (*parent, below) {
            (Some(true), _) | (_, Some(true)) => Some(true),
            (Some(false), Some(false)) => Some(false),
            _ => None,
        };
    }
}

/// Reads whether a cgroup has processes.
struct Population {
    unified: bool,
    names: bool,
    /// Whether the kernel names processes to us at all.
    told: Result<()>,
    /// The first error; there is no use in a thousand of the same.
    unread: Option<Error>,
}

impl Population {
    fn new(unified: bool, names: bool, told: Result<()>) -> Self {
        Population { unified, names, told, unread: None }
    }

    fn read(&self, entry: &Entry<'_>) -> Result<bool> {
        self.told.clone()?;
        if !self.unified {
            return Ok(!entry.first("cgroup.procs")?.is_empty());
        }
        let events = entry.first("cgroup.events")?;
        let value = events.lines().find_map(|line| line.strip_prefix("populated "));
        value.map(|value| value.trim() != "0").ok_or_else(|| Error::malformed(format!("cgroup.events: {events:?}")))
    }
}

impl Probe for Population {
    type Data = Seen;

    fn directory(&mut self, entry: &Entry<'_>, parent: Option<&Seen>) -> Option<Seen> {
        let name = self.names.then(|| entry.name().into());
        if self.unified && parent.is_some_and(|parent| parent.populated == Some(false)) {
            return Some(Seen { populated: Some(false), name });
        }
        match self.read(entry) {
            Ok(populated) => Some(Seen { populated: Some(populated), name }),
            Err(error) if entry.is_gone(&error) => None,
            Err(error) => {
                self.unread.get_or_insert(error);
                Some(Seen { populated: None, name })
            }
        }
    }
}
