//! What is read: the kernel, its boot options, and the memory controller's files.

use super::rule::{Memory, Rule, nokmem};
use crate::error::{Error, Reason, Result};
use crate::host::Kernel;
use crate::host::cgroup::walk::{Bounds, Entry, Stopped, walk};
use crate::host::cgroup::{Hierarchy, Layout, Mode};
use crate::host::text::{keyed, meminfo_bytes};
use crate::kubelet::kubepods::{Directory, Position, Probe, Search};
use crate::metric::Samples;
use crate::modes::Context;

/// Everything that was read.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    pub(super) kernel: Option<Kernel>,
    pub(super) cgroup_mode: Option<Mode>,
    pub(super) nokmem: bool,
    pub(super) rule: Option<Rule>,
    /// Below kubepods, with whether accounting is proven active where that differs by cgroup; `None` without such a tree.
    pub(super) kubepods: Option<Vec<Directory<Option<bool>>>>,
    /// True if accounting was seen active on any cgroup below kubepods.
    pub(super) proven: bool,
    /// False if directories may have been missed.
    pub(super) complete: bool,
    /// Charged to all cgroups.
    pub(super) node: Charged,
    /// Charged below kubepods.
    pub(super) below_kubepods: Charged,
    /// Of `/proc/meminfo`, charged or not.
    pub(super) machine: Charged,
    /// Of `/proc/meminfo`.
    pub(super) percpu: Option<u64>,
}

/// Kernel memory in bytes; what this kernel does not print is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Charged {
    pub(super) kernel: Option<u64>,
    pub(super) slab_reclaimable: Option<u64>,
    pub(super) slab_unreclaimable: Option<u64>,
}

impl Charged {
    /// From the `memory.stat` of a v2 cgroup. `kernel` is there since Linux 5.18.
    pub(super) fn from_stat(stat: &str) -> Self {
        Charged {
            kernel: keyed(stat, "kernel"),
            slab_reclaimable: keyed(stat, "slab_reclaimable"),
            slab_unreclaimable: keyed(stat, "slab_unreclaimable"),
        }
    }

    /// From `memory.kmem.usage_in_bytes` of a v1 cgroup.
    fn from_usage(usage: &str) -> Self {
        Charged { kernel: usage.trim().parse().ok(), ..Charged::default() }
    }

    /// The sum, of what both have.
    fn plus(self, other: Self) -> Self {
        let sum = |a: Option<u64>, b: Option<u64>| Some(a? + b?);
        Charged {
            kernel: sum(self.kernel, other.kernel),
            slab_reclaimable: sum(self.slab_reclaimable, other.slab_reclaimable),
            slab_unreclaimable: sum(self.slab_unreclaimable, other.slab_unreclaimable),
        }
    }
}

/// Reads it all. Errors of parts go to `samples`.
pub(super) fn read(context: Context<'_>, max_directories: u64, samples: &mut Samples) -> Result<Snapshot> {
    let host = context.host;
    let mut snapshot = Snapshot { kernel: samples.ok(host.kernel()), complete: true, ..Snapshot::default() };
    if let Some(text) = samples.ok(host.read(host.proc("meminfo"))) {
        snapshot.machine.slab_reclaimable = meminfo_bytes(&text, "SReclaimable");
        snapshot.machine.slab_unreclaimable = meminfo_bytes(&text, "SUnreclaim");
        snapshot.percpu = meminfo_bytes(&text, "Percpu");
    }
    let Some(layout) = samples.ok(Layout::detect(host)) else { return Ok(snapshot) };
    snapshot.cgroup_mode = Some(layout.mode);
    let cmdline = samples.ok(host.read(host.proc("cmdline")));
    snapshot.nokmem = cmdline.as_deref().is_some_and(nokmem);
    let version = snapshot.kernel.as_ref().map(|kernel| kernel.version);

    let memory = layout.of("memory");
    let place = match memory {
        None => Memory::None,
        Some(hierarchy) if hierarchy.unified => {
            // Older kernels have no such file in the root.
            let stat = samples.ok(host.read_some(hierarchy.path.join("memory.stat"))).flatten();
            snapshot.node = stat.as_deref().map(Charged::from_stat).unwrap_or_default();
            Memory::V2
        }
        Some(hierarchy) => {
            let usage = samples.ok(host.read_some(hierarchy.path.join("memory.kmem.usage_in_bytes"))).flatten();
            snapshot.node = usage.as_deref().map(Charged::from_usage).unwrap_or_default();
            Memory::V1 { files: usage.is_some() }
        }
    };
    // Without the boot options "on" would be a guess.
    snapshot.rule = cmdline.and_then(|_| Rule::of(place, version, snapshot.nokmem));
    if let Some(hierarchy) = memory {
        below_kubepods(
            hierarchy,
            Bounds { directories: max_directories, deadline: context.deadline },
            &mut snapshot,
            samples,
        );
    }
    Ok(snapshot)
}

/// Walks over the kubepods tree.
fn below_kubepods(hierarchy: &Hierarchy, bounds: Bounds, snapshot: &mut Snapshot, samples: &mut Samples) {
    let per_cgroup = snapshot.rule == Some(Rule::PerCgroup);
    let mut search =
        Search::new(hierarchy, Kernelmem { unified: hierarchy.unified, per_cgroup, charged: None, unread: None });
    let extent = walk(&hierarchy.path, Position::TOP, bounds, |entry, position| {
        search.step(position, entry).filter(|&position| position != Position::Outside)
    });
    let stopped = samples.ok(extent).map(|extent| extent.stopped);
    snapshot.complete = matches!(stopped, Some(None));
    match stopped.flatten() {
        Some(Stopped::Bound(left)) => samples.drop_count(left),
        Some(Stopped::Failed(error)) => samples.fail(error),
        None => {}
    }
    if let Some(error) = search.probe.unread {
        samples.fail(error);
    }
    // One proof is enough to say that accounting is active, however much was not seen.
    snapshot.proven = search.directories.iter().any(|one| one.data == Some(true));
    if snapshot.complete && search.roots > 0 {
        snapshot.kubepods = Some(search.directories);
        snapshot.below_kubepods = search.probe.charged.unwrap_or_default();
    }
}

/// Reads what is charged to each kubepods root, and where accounting is by cgroup, whether it is active.
struct Kernelmem {
    unified: bool,
    per_cgroup: bool,
    charged: Option<Charged>,
    unread: Option<Error>,
}

impl Kernelmem {
    fn note(&mut self, error: Error) {
        if !error.is_gone() {
            self.unread.get_or_insert(error);
        }
    }
}

impl Probe for Kernelmem {
    type Data = Option<bool>;

    fn root(&mut self, entry: &Entry<'_>) {
        let file = if self.unified { "memory.stat" } else { "memory.kmem.usage_in_bytes" };
        let parse = if self.unified { Charged::from_stat } else { Charged::from_usage };
        let charged = match entry.first(file) {
            Ok(text) => parse(&text),
            Err(error) => {
                self.note(error);
                Charged::default()
            }
        };
        self.charged = Some(self.charged.map_or(charged, |before| before.plus(charged)));
    }

    fn directory(&mut self, entry: &Entry<'_>, _parent: Option<&Option<bool>>) -> Option<Option<bool>> {
        if !self.per_cgroup {
            return Some(None);
        }
        let proof = entry.first("memory.kmem.usage_in_bytes").and_then(|usage| {
            let used = usage.trim().parse::<u64>().is_ok_and(|bytes| bytes > 0);
            Ok(used || slabinfo(entry)?)
        });
        match proof {
            Ok(active) => Some(Some(active)),
            // No such file in a cgroup that is there: this kernel has nothing to account with.
            Err(error) if error.is_gone() => (!entry.is_gone(&error)).then_some(Some(false)),
            Err(error) => {
                self.note(error);
                Some(None)
            }
        }
    }
}

/// Whether `memory.kmem.slabinfo` can be read and has anything in it, be it only its header. While accounting is not active
/// the old kernels answer EIO.
fn slabinfo(entry: &Entry<'_>) -> Result<bool> {
    match entry.first("memory.kmem.slabinfo") {
        Ok(text) => Ok(!text.trim().is_empty()),
        Err(error) if error.reason() == Reason::Io || (error.is_gone() && !entry.is_gone(&error)) => Ok(false),
        Err(error) => Err(error),
    }
}
