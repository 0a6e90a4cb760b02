//! What is known of the machine: counts of the kernel, and of walks where it has none.

use super::Settings;
use crate::error::Result;
use crate::host::Kernel;
use crate::host::cgroup::walk::{Bounds, Extent, walk};
use crate::host::cgroup::{Layout, Mode, Stat, Subsystem, held};
use crate::kubelet::kubepods::{Directory, Look};
use crate::metric::Samples;
use crate::modes::{Context, is_not_cut, is_whole};

/// Everything that was read.
#[derive(Debug, Default)]
pub(super) struct Snapshot<'a> {
    pub(super) kernel: Option<Kernel>,
    /// Controllers on v1 hierarchies.
    pub(super) v1: Vec<Controller>,
    /// The root's `cgroup.stat` on hybrid and v2.
    pub(super) unified: Option<&'a Stat>,
    /// Where the memory controller is.
    pub(super) memory: Memory,
    /// Below kubepods; `None` without such a tree or if the walk was cut short.
    pub(super) kubepods: Option<&'a [Directory]>,
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

/// Takes from `look` what it saw, and walks over the other v1 hierarchies that are to be counted. Errors of parts go
/// to `samples`.
pub(super) fn read<'a>(
    context: Context<'_>,
    look: &'a Look,
    settings: &Settings,
    bounds: Bounds,
    samples: &mut Samples,
) -> Result<Snapshot<'a>> {
    // `/proc/cgroups` is true whatever we see of the cgroup file systems; without its v1 rows there is nothing to add.
    let layout = match (&look.layout, &look.rows) {
        (Ok(layout), _) => Some(layout),
        (Err(error), Ok(rows)) if !rows.is_empty() => {
            samples.fail(error.clone());
            None
        }
        (Err(error), _) => return Err(error.clone()),
    };
    let mut snapshot = Snapshot { kernel: samples.ok(context.host.kernel()), ..Snapshot::default() };
    snapshot.v1 = controllers(look, layout, samples);
    let Some(layout) = layout else { return Ok(snapshot) };

    snapshot.unified = samples.ok(look.unified.as_ref().map_err(Clone::clone)).and_then(Option::as_ref);
    snapshot.memory = match layout.of("memory") {
        None => Memory::None,
        Some(hierarchy) if hierarchy.unified => Memory::Unified(None),
        Some(_) => Memory::V1,
    };
    if let Some(walk) = &look.walk {
        snapshot.complete = is_whole(walk, samples);
        if let Some(error) = &walk.tree.unread.population {
            samples.fail(error.clone());
        }
        if let (Memory::Unified(ids), Some(counted)) = (&mut snapshot.memory, samples.ok(walk.memory_ids.clone())) {
            *ids = counted;
        }
        if snapshot.complete && walk.tree.roots > 0 {
            snapshot.kubepods = Some(&walk.tree.directories);
        }
    }
    count(context, layout, look, settings, bounds, &mut snapshot, samples);
    Ok(snapshot)
}

/// The controllers on v1 hierarchies, by the kernel's word, or where that cannot be read, by the names of what is
/// mounted.
fn controllers(look: &Look, layout: Option<&Layout>, samples: &mut Samples) -> Vec<Controller> {
    let controller = |name: &String, held| Controller { name: name.clone(), held, visible: None };
    // A kernel with nothing on v1 need not have the file.
    if layout.is_some_and(|layout| layout.mode == Mode::V2) {
        return Vec::new();
    }
    match samples.ok(look.rows.as_ref().map_err(Clone::clone)) {
        Some(rows) => rows.iter().map(|Subsystem { name, cgroups, .. }| controller(name, Some(*cgroups))).collect(),
        None => {
            let mounted = layout.into_iter().flat_map(|layout| &layout.hierarchies).filter(|one| !one.unified);
            // systemd's own hierarchy has no controller, and no row in /proc/cgroups either.
            let names = mounted.flat_map(|one| &one.controllers).filter(|name| *name != "systemd");
            names.map(|name| controller(name, None)).collect()
        }
    }
}

/// How many directories there are, if none was left out: the others would be taken for ones that are dying.
fn seen(extent: &Extent) -> Option<u64> {
    extent.beyond.is_empty().then_some(extent.directories)
}

/// Counts the directories of the v1 hierarchies for which that is wanted.
fn count(
    context: Context<'_>,
    layout: &Layout,
    look: &Look,
    settings: &Settings,
    bounds: Bounds,
    snapshot: &mut Snapshot<'_>,
    samples: &mut Samples,
) {
    for hierarchy in layout.hierarchies.iter().filter(|hierarchy| !hierarchy.unified) {
        if !settings.v1_hierarchies.iter().any(|name| name == "all" || hierarchy.has(name)) {
            continue;
        }
        let (visible, held) = match &look.walk {
            Some(walk) if walk.hierarchy == *hierarchy => (seen(&walk.extent).filter(|_| snapshot.complete), walk.held),
            _ => {
                let before = snapshot.v1.iter().find(|one| hierarchy.has(&one.name)).and_then(|one| one.held);
                let count = || walk(&hierarchy.path, (), bounds, |_, ()| Some(()));
                let (extent, held) = held::beside(context.host, hierarchy, before, bounds.deadline, count);
                samples.drop_count(extent.beyond.values().sum());
                (seen(&extent).filter(|_| is_not_cut(&extent, samples)), held)
            }
        };
        for controller in snapshot.v1.iter_mut().filter(|one| hierarchy.has(&one.name)) {
            controller.visible = visible;
            controller.held = held.or(controller.held);
        }
    }
}
