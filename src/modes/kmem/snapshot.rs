//! What is read: the kernel, its boot options, and the memory controller's files.

use super::rule::{Memory, Rule, nokmem};
use crate::host::Kernel;
use crate::host::cgroup::Mode;
use crate::host::text::meminfo_bytes;
use crate::kubelet::kubepods::{Charged, Directory, Look, Walk};
use crate::metric::Samples;
use crate::modes::{Context, is_whole};

/// Everything that was read.
#[derive(Debug, Default)]
pub(super) struct Snapshot<'a> {
    pub(super) kernel: Option<Kernel>,
    pub(super) cgroup_mode: Option<Mode>,
    pub(super) nokmem: bool,
    pub(super) rule: Option<Rule>,
    /// Below kubepods; `None` without such a tree, or if some of it may have been missed.
    pub(super) kubepods: Option<&'a [Directory]>,
    /// True if accounting was seen active on any cgroup below kubepods.
    pub(super) proven: bool,
    /// True if directories may have been missed.
    pub(super) cut: bool,
    /// Charged to all cgroups.
    pub(super) node: Charged,
    /// Charged below kubepods.
    pub(super) below_kubepods: Charged,
    /// Of `/proc/meminfo`, charged or not.
    pub(super) machine: Charged,
    /// Of `/proc/meminfo`.
    pub(super) percpu: Option<u64>,
}

/// Reads it all. Errors of parts go to `samples`.
pub(super) fn read<'a>(context: Context<'_>, look: Option<&'a Look>, samples: &mut Samples) -> Snapshot<'a> {
    let host = context.host;
    let mut snapshot = Snapshot { kernel: samples.ok(host.kernel()), ..Snapshot::default() };
    if let Some(text) = samples.ok(host.read(host.proc("meminfo"))) {
        snapshot.machine.slab_reclaimable = meminfo_bytes(&text, "SReclaimable");
        snapshot.machine.slab_unreclaimable = meminfo_bytes(&text, "SUnreclaim");
        snapshot.percpu = meminfo_bytes(&text, "Percpu");
    }
    let Some(look) = look else { return snapshot };
    let Some(layout) = samples.ok(look.layout.as_ref().map_err(Clone::clone)) else { return snapshot };
    snapshot.cgroup_mode = Some(layout.mode);
    let cmdline = samples.ok(host.read(host.proc("cmdline")));
    snapshot.nokmem = cmdline.as_deref().is_some_and(nokmem);
    let version = snapshot.kernel.as_ref().map(|kernel| kernel.version);

    let place = match layout.of("memory") {
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
    if let Some(walk) = look.memory() {
        below_kubepods(walk, &mut snapshot, samples);
    }
    snapshot
}

/// Takes what the walk saw below kubepods.
fn below_kubepods<'a>(walk: &'a Walk, snapshot: &mut Snapshot<'a>, samples: &mut Samples) {
    let tree = &walk.tree;
    snapshot.cut = !is_whole(walk, samples);
    if let Some(error) = &tree.unread.kernel_memory {
        samples.fail(error.clone());
    }
    // One proof is enough to say that accounting is active, however much was not seen.
    snapshot.proven = tree.directories.iter().any(|one| one.kernel_memory == Some(true));
    if !snapshot.cut && tree.roots > 0 {
        snapshot.kubepods = Some(&tree.directories);
        snapshot.below_kubepods = tree.charged.unwrap_or_default();
    }
}
