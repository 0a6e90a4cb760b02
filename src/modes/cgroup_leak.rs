//! Cgroups leak until none can be made: `mkdir …: no space left on device` on a disk that is not full.
//!
//! **What fails.** A memory cgroup takes one of 65,535 ids. When they are gone no container starts on the node (ENOSPC
//! on v2 and old v1, EBUSY on v1 of 6.18) while the node stays Ready: only counting warns. Two kinds of leak lead
//! there: directories that nobody removes, and removed cgroups that the kernel still holds (*dying* ones) because
//! something is charged to them: on kernels before 4.0 often for ever, on later ones until the page or object goes.
//!
//! **Who holds an id.** Before 4.8 a memory cgroup keeps it until it is freed, so ids used = cgroups held. Since 4.8 it
//! is given back when the directory is removed, unless swapped-out pages hold it, so ids used = cgroups one can see.
//! The root has one too: `mkdir` was seen to fail at exactly 65,535 directories, the root included (6.18, v1). On v2
//! only cgroups whose parent has `memory` in its `cgroup.subtree_control` have one.
//!
//! **Evidence.** v1: `num_cgroups` of `/proc/cgroups` counts dying ones; what one can see is counted by a bounded walk.
//! v2: `cgroup.stat` of the root has both (4.14), and per controller `nr_subsys_*` and `nr_dying_subsys_*` (6.12), all
//! without a walk; on older kernels memory ids are counted by walking. `/proc/cgroups` is no use on v2: each row shows
//! the whole hierarchy.
//!
//! **When it misleads.** A dying cgroup is normal for some milliseconds after each `rmdir`, and for as long as page
//! cache or a tmpfs file that it made lives (up to Linux 6.18 at least; 7.2 gives such pages to the parent): watch the
//! trend, not the number. The kubelet keeps a dead pod's directory
//! while its volumes are mounted, makes it before the first sandbox (while volumes are attached, for instance) and
//! removes it after the last: a pod directory that the runtime does not know is legitimate for minutes, and only its
//! age tells it from a leak. Ages start with the exporter, and stand still while the runtime does not answer. Without a
//! runtime, "live" means "has a process", pause containers included. On v1 that takes the host's process namespace:
//! without it nothing is said of what has a process (denied). How a directory is proven unknown, and why no race makes
//! a false one, is in `unknown_to_runtime.rs`.

mod assess;
mod containers;
mod idle;
mod snapshot;
#[cfg(test)]
mod tests;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::unknown_to_runtime::{Span, UnknownToRuntime};
use super::{Collector, Context, Mode, Slope, Utilization, alerts};
use crate::error::{Reason, Result};
use crate::humanize::grouped;
use crate::kubelet::kubepods::Kubepods;
use crate::metric::{Metric, Samples, Unit};
use crate::runtime::Runtime;
use crate::services::Services;
use crate::values::{defaults, duration_flag};
use assess::RuntimeAnswer;

/// Ids that the kernel has for memory cgroups: `MEM_CGROUP_ID_MAX`, 16 bits without 0, in every version.
pub const MEMCG_IDS: u64 = 65_535;

/// Held by the kernel.
pub static CGROUPS: Metric = Metric::gauge(
    "headroom_cgroups",
    Unit::None,
    &["subsystem"],
    "Cgroups that the kernel holds, the root and dying ones included. v1: num_cgroups of /proc/cgroups; v2: \
     cgroup.stat of the root.\n\n\
     v2: subsystem unified is all of them; Linux 6.12 and later also count each controller.",
);
/// Visible.
pub static DIRECTORIES: Metric = Metric::gauge(
    "headroom_cgroup_directories",
    Unit::None,
    &["subsystem"],
    "Directories in a cgroup hierarchy, the root included: the cgroups that are visible.\n\n\
     v1: counted by a walk, only of the hierarchies that are configured (memory by default); v2: cgroup.stat of the \
     root. Missing if the walk was cut short.",
);
/// Removed and still held.
pub static DYING: Metric = Metric::gauge(
    "headroom_cgroups_dying",
    Unit::None,
    &["subsystem"],
    "Cgroups removed from the tree that the kernel still holds because something is charged to them. Some are normal; \
     only steady growth is a leak.\n\n\
     v1: held minus directories; v2: cgroup.stat. Page cache and tmpfs files of dead pods hold some.",
);
/// Of 65,535.
pub static MEMCG_IDS_USED: Metric = Metric::gauge(
    "headroom_memcg_ids_used",
    Unit::None,
    &[],
    "Memory cgroup ids in use. With swap on Linux 4.8 and later the truth can be higher.\n\n\
     Before Linux 4.8 every held memory cgroup keeps its id. Since then only visible cgroups do, and removed ones \
     with pages in swap, which the kernel does not count.",
);
/// 65,535.
pub static MEMCG_IDS_LIMIT: Metric = Metric::gauge(
    "headroom_memcg_ids_limit",
    Unit::None,
    &[],
    "Memory cgroup ids that the kernel has. At the limit no container starts: mkdir fails with no space left on device, or \
     device or resource busy, and the node stays Ready.",
);
/// By kind and class.
pub static KUBEPODS: Metric = Metric::gauge(
    "headroom_kubepods_cgroups",
    Unit::None,
    &["kind", "qos"],
    "Directories below kubepods by kind, told by their names. Containers include the pause container of each pod.\n\n\
     Counted in one hierarchy, without the QoS directories. Missing on a machine without kubepods.",
);
/// By state.
pub static CONTAINERS: Metric = Metric::gauge(
    "headroom_containers",
    Unit::None,
    &["state"],
    "Containers by state (running, created, exited, unknown), as the source in headroom_runtime_info says.\n\n\
     Missing while a runtime is there and does not answer. Source cgroup: running is a container cgroup with a \
     process in or below it, unknown is one without, and pause containers count too.",
);
/// By readiness.
pub static SANDBOXES: Metric = Metric::gauge(
    "headroom_pod_sandboxes",
    Unit::None,
    &["state"],
    "Pod sandboxes by state, from the runtime: ready, or notready (stopped and not yet removed).\n\n\
     A pod can have old sandboxes beside its present one. Missing without a runtime.",
);
/// Nobody's.
pub static ORPHANED: Metric = Metric::gauge(
    "headroom_orphaned_cgroups",
    Unit::None,
    &["kind"],
    "Kubepods cgroups unknown to the container runtime for the grace period. Without a runtime: cgroups without \
     processes for that long.\n\n\
     pod: the runtime has no sandbox and no container of it. container: the runtime has neither that container nor \
     that sandbox. other: always judged by processes. The grace period is at least 5 s; ages reset when the exporter \
     restarts. A pod that waits for volumes, or is dead while they are mounted, can count.",
);
/// Who told.
pub static RUNTIME_INFO: Metric = Metric::info(
    "headroom_runtime_info",
    &["source", "runtime", "version", "endpoint"],
    "Source of container data: cri or docker (a runtime's socket), or cgroup if there is no runtime. Missing while a \
     runtime does not answer.\n\n\
     Source cgroup: a container is live while its cgroup has a process.",
);

/// This mode.
pub static MODE: Mode = Mode {
    id: "cgroup_leak",
    title: "cgroups leak until no container can start",
    happened: "leaked cgroups use up 65,535 memory cgroup ids: `mkdir …: no space left on device`, with \
               a disk that is not full",
    alerts: alerts!("cgroup_leak"),
    metrics: &[
        &CGROUPS,
        &DIRECTORIES,
        &DYING,
        &MEMCG_IDS_USED,
        &MEMCG_IDS_LIMIT,
        &KUBEPODS,
        &CONTAINERS,
        &SANDBOXES,
        &ORPHANED,
        &RUNTIME_INFO,
    ],
    utilization: Some(Utilization {
        used: "headroom_memcg_ids_used",
        limit: "headroom_memcg_ids_limit",
        slope: Some(Slope::Rises("headroom_memcg_ids_used")),
        text: |ids| format!("{} memory cgroup ids", ids.share(grouped)),
    }),
    keeps: Some("since when a cgroup has been empty, or unknown to the runtime"),
    needs_runtime: true,
    build: |settings, services| Box::new(CgroupLeak::new(settings.cgroup_leak.clone(), services)),
};

/// Settings of this mode.
#[derive(clap::Args, Clone, Debug, PartialEq, Eq)]
#[group(skip)]
#[command(next_help_heading = "Collector cgroup_leak")]
pub struct Settings {
    /// How long a kubepods cgroup must be unknown to the runtime (without a runtime: empty) before it counts as
    /// orphaned; with a runtime at least 5s. The kubelet keeps a dead pod's cgroup while its volumes are mounted
    #[arg(long = "collector.cgroup_leak.orphan-grace", value_name = "DURATION", default_value = "5m", value_parser = duration_flag)]
    pub orphan_grace: Duration,
    /// cgroup v1 hierarchies whose directories are counted, or "all"
    #[arg(
        long = "collector.cgroup_leak.v1-hierarchies",
        value_name = "NAME",
        default_value = "memory",
        value_delimiter = ','
    )]
    pub v1_hierarchies: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        defaults()
    }
}

/// How long the runtime may take, of the time there is: the walk may come after it.
const RUNTIME: Duration = Duration::from_secs(5);

/// The collector; between scrapes it remembers since when each directory has been nobody's.
#[derive(Debug)]
pub struct CgroupLeak {
    settings: Settings,
    kubepods: Kubepods,
    runtime: Runtime,
    memories: Mutex<Memories>,
}

/// What is remembered between scrapes, by inode number.
#[derive(Debug, Default)]
struct Memories {
    /// Without a process.
    idle: idle::Ages,
    /// Not known to the runtime.
    strangers: UnknownToRuntime<u64>,
}

impl CgroupLeak {
    /// A collector that has seen nothing yet.
    pub fn new(settings: Settings, services: &Services) -> Self {
        let (kubepods, runtime) = (services.kubepods.clone(), services.runtime.clone());
        CgroupLeak { settings, kubepods, runtime, memories: Mutex::default() }
    }
}

impl Collector for CgroupLeak {
    fn collect(&self, context: Context<'_>) -> Result<Samples> {
        let Context { host, deadline, began } = context;
        let mut samples = Samples::new();
        // First, so that a walk that nobody else needs begins afterwards and proves at once: `unknown_to_runtime` tells
        // how.
        let word = match self.runtime.inventory_and_when(host, deadline.part(RUNTIME)) {
            Ok(poll) => RuntimeAnswer::Inventory(poll.inventory, Span { began: poll.began, ended: poll.ended }),
            // Without a runtime the processes in the cgroups tell.
            Err(error) if error.reason() == Reason::Absent => RuntimeAnswer::None,
            Err(error) => {
                samples.fail(error);
                RuntimeAnswer::Failed
            }
        };
        let look = self.kubepods.look(host, deadline, began)?;
        let walk = Span { began: look.began, ended: look.ended };
        let bounds = self.kubepods.bounds(deadline);
        let snapshot = snapshot::read(context, &look.value, &self.settings, bounds, &mut samples)?;
        let mut memories = self.memories.lock().unwrap_or_else(PoisonError::into_inner);
        assess::counts(&snapshot, &mut samples);
        let grace = self.settings.orphan_grace;
        assess::kubepods(&snapshot, &word, &mut memories, grace, walk, &mut samples);
        Ok(samples)
    }
}
