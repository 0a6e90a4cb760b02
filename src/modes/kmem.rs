//! Is kernel memory of this node's pods accounted, and is this a kernel that leaks with it?
//!
//! **What fails.** Before Linux 4.0, a cgroup with kernel memory charged to it could be removed and live on inside the
//! kernel for ever. A kubelet or runc that switches the accounting on makes every pod start leak there, until no cgroup
//! can be made ([`super::cgroup_leak`]) a year later. This mode says so before it has cost anything.
//!
//! **Evidence.** v1 before 4.6: accounting is per cgroup, active once a limit was written to
//! `memory.kmem.limit_in_bytes`. The limit reads "unlimited" either way and proves nothing; usage above 0 does, or a
//! `memory.kmem.slabinfo` that can be read and is not empty (it answers EIO while inactive). Since 4.6 (commit
//! b313aeee2509) v1 accounts every cgroup, as v2 always did, unless booted with `cgroup.memory=nokmem`. A kernel built
//! without it has no `memory.kmem.*` files on v1.
//!
//! **Charged kernel memory.** The kernel charges nothing to the root cgroup itself: the root's figure is the sum of all
//! other cgroups (v1 `memory.kmem.usage_in_bytes` on 6.18 equals that of its children; v2 `memory.stat` of 6.1 had 19.9
//! MB of slab at the root where meminfo had 62.7 MB). So "node" is what cgroups are charged with; slab and per-CPU
//! memory of the whole machine are from `/proc/meminfo`. v2 prints the sum `kernel` since 5.18; on older kernels it is
//! left out, because the parts that they print are not all of it.
//!
//! **When it misleads.** A long dead cgroup is not among `kmem_accounted_cgroups`: only directories can be seen.
//! Per-CPU memory has other users than cgroups.

mod rule;
mod snapshot;
#[cfg(test)]
mod tests;

use super::{Collector, Context, Mode, alerts};
use crate::error::{Error, Result};
use crate::kubelet::kubepods::{Charged, Kind, Kubepods};
use crate::metric::{Metric, Samples, Unit};
use rule::{Rule, leak_prone};
use snapshot::Snapshot;

/// The kernel.
pub static KERNEL_INFO: Metric = Metric::info(
    "headroom_kernel_info",
    &["release", "cgroup_mode", "kmem"],
    "Kernel release, cgroup version (cgroup_mode) and state of kernel memory accounting (kmem).\n\n\
     cgroup_mode: v1, hybrid or v2. kmem: on, off (boot option), per_cgroup (v1 before 4.6: where a limit was \
     written), unsupported (not built in, or no memory controller).",
);
/// On or off.
pub static ENABLED: Metric = Metric::gauge(
    "headroom_kmem_accounting_enabled",
    Unit::None,
    &[],
    "1 if kernel memory of container cgroups is accounted. On v1 before Linux 4.6: 1 if it is seen active on any cgroup \
     below kubepods.",
);
/// Where it is active.
pub static ACCOUNTED: Metric = Metric::gauge(
    "headroom_kmem_accounted_cgroups",
    Unit::None,
    &["kind"],
    "Pod and container cgroups whose kernel memory is accounted: all of them where this kernel always does, on v1 before Linux \
     4.6 those that prove it (usage above 0 or a slabinfo that is not empty).",
);
/// The warning.
pub static LEAK_PRONE: Metric = Metric::gauge(
    "headroom_kmem_leak_prone",
    Unit::None,
    &["reason"],
    "1 if kernel memory accounting is active on a kernel known to leak cgroups with it: cgroup v1 before Linux 4.0.\n\n\
     reason: kernel_before_4_0, kernel_4_0_or_newer, accounting_off, unsupported.",
);
/// Charged.
pub static USAGE: Metric = Metric::gauge(
    "headroom_kmem_usage_bytes",
    Unit::Bytes,
    &["scope"],
    "Kernel memory charged to cgroups: to all of them (node), or to those below kubepods. Kernel memory charged to no \
     cgroup is missing.\n\n\
     v1: memory.kmem.usage_in_bytes; v2: kernel in memory.stat, Linux 5.18 and later.",
);
/// Slab.
pub static SLAB: Metric = Metric::gauge(
    "headroom_slab_bytes",
    Unit::Bytes,
    &["scope", "reclaimable"],
    "Slab memory of the kernel. node: all of it, SReclaimable and SUnreclaim of /proc/meminfo; kubepods: what is charged there, \
     memory.stat, only on v2.",
);
/// Per-CPU.
pub static PERCPU: Metric = Metric::gauge(
    "headroom_percpu_bytes",
    Unit::Bytes,
    &[],
    "Per-CPU memory of the kernel: Percpu of /proc/meminfo. It grows with a cgroup leak, and has other users too.\n\n\
     Linux 4.20 and later. Each cgroup takes some, dying ones too.",
);

/// This mode.
pub static MODE: Mode = Mode {
    id: "kmem",
    title: "kernel-memory accounting on a kernel that leaks with it",
    happened: "kernel memory accounting is on, on a kernel that leaks with it",
    alerts: alerts!("kmem"),
    metrics: &[&KERNEL_INFO, &ENABLED, &ACCOUNTED, &LEAK_PRONE, &USAGE, &SLAB, &PERCPU],
    // A kernel leaks or does not.
    utilization: None,
    keeps: None,
    needs_runtime: false,
    build: |_settings, services| Box::new(Kmem { kubepods: services.kubepods.clone() }),
};

/// The collector. Has no state.
#[derive(Debug)]
struct Kmem {
    kubepods: Kubepods,
}

impl Collector for Kmem {
    fn collect(&self, context: Context<'_>) -> Result<Samples> {
        let mut samples = Samples::new();
        let look = samples.ok(self.kubepods.look(context.host, context.deadline, context.began));
        let look = look.as_ref().map(|look| &*look.value);
        let snapshot = snapshot::read(context, look, &mut samples);
        assess(&snapshot, &mut samples);
        if samples.rows().is_empty() {
            let none = || Error::absent("no kernel release, no meminfo and no cgroups");
            return Err(samples.errors().iter().find(|error| !error.is_gone()).cloned().unwrap_or_else(none));
        }
        Ok(samples)
    }
}

fn assess(snapshot: &Snapshot<'_>, samples: &mut Samples) {
    let active = active(snapshot);
    let rule = snapshot.rule;
    if let Some(kernel) = &snapshot.kernel {
        let kmem = rule.map_or("", |rule| rule.label(snapshot.nokmem, active));
        let mode = snapshot.cgroup_mode.map_or("", |mode| mode.as_str());
        samples.info(&KERNEL_INFO, &[&kernel.release, mode, kmem]);
    }
    samples.push_some(&ENABLED, &[], active.map(f64::from));
    if let (Some(rule), Some(active), Some(kernel)) = (rule, active, &snapshot.kernel) {
        let (prone, reason) = leak_prone(rule, active, kernel.version);
        samples.push(&LEAK_PRONE, &[reason], f64::from(prone));
    }
    if let (Some(rule), Some(directories)) = (rule, &snapshot.kubepods) {
        for kind in [Kind::Pod, Kind::Container] {
            let of_kind = || directories.iter().filter(|one| one.kind == kind);
            let count = match rule {
                Rule::On => Some(of_kind().count()),
                Rule::Off | Rule::Unsupported => Some(0),
                Rule::PerCgroup if of_kind().any(|one| one.kernel_memory.is_none()) => None,
                Rule::PerCgroup => Some(of_kind().filter(|one| one.kernel_memory == Some(true)).count()),
            };
            samples.push_some(&ACCOUNTED, &[kind.as_str()], count.map(|count| count as f64));
        }
    }
    let mut charged = |scope, charged: &Charged| {
        samples.push_some(&USAGE, &[scope], charged.kernel.map(|bytes| bytes as f64));
    };
    charged("node", &snapshot.node);
    charged("kubepods", &snapshot.below_kubepods);
    let Snapshot { machine, below_kubepods, .. } = snapshot;
    for (scope, reclaimable, bytes) in [
        ("node", "true", machine.slab_reclaimable),
        ("node", "false", machine.slab_unreclaimable),
        ("kubepods", "true", below_kubepods.slab_reclaimable),
        ("kubepods", "false", below_kubepods.slab_unreclaimable),
    ] {
        samples.push_some(&SLAB, &[scope, reclaimable], bytes.map(|bytes| bytes as f64));
    }
    samples.push_some(&PERCPU, &[], snapshot.percpu.map(|bytes| bytes as f64));
}

/// Whether kernel memory of container cgroups is accounted; `None` if that cannot be told.
fn active(snapshot: &Snapshot<'_>) -> Option<bool> {
    match snapshot.rule? {
        Rule::On => Some(true),
        Rule::Off | Rule::Unsupported => Some(false),
        Rule::PerCgroup => {
            let directories = snapshot.kubepods.unwrap_or_default();
            let unsure = snapshot.cut || directories.iter().any(|one| one.kernel_memory.is_none());
            if !snapshot.proven && unsure { None } else { Some(snapshot.proven) }
        }
    }
}
