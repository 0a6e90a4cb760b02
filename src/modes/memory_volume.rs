//! A memory-backed emptyDir fills up to the memory limit of its pod: the kernel kills, the container restarts into the
//! same full volume, and is killed again.
//!
//! **What fails.** A tmpfs outlives the container that filled it. Its pages count as memory of whoever wrote them, so a
//! container that writes as much as its limit is OOM-killed, and the next one meets a volume that is as full as before.
//! Nothing says so: on v1 the pod goes on `Running` with no restart for most of a minute while its writers are killed
//! one by one; on v2 the whole container dies with reason `Error` (a kubelet before 1.28, or with
//! `singleProcessOOMKill`, which there is from 1.32, sets no `memory.oom.group`: then one by one there too); cAdvisor's
//! `container_oom_events_total` stays 0 in both (Kubernetes 1.36, containerd 1.6).
//!
//! **Evidence.** The mount tables of pid 1 and of the kubelet (`/proc/PID/mountinfo`): every tmpfs at
//! `<root-dir>/pods/<uid>/volumes/kubernetes.io~empty-dir/<name>` is such a volume. Secrets and projected volumes are
//! tmpfs as well and no emptyDirs; huge pages are `hugetlbfs`, which no memory limit counts: both are left out. Size
//! and use by `statfs(2)`, proved to be of that very mount by its device number. Limits: `memory.limit_in_bytes` (v1),
//! `memory.max` (v2). Kills: `oom_kill` of `memory.oom_control` (v1, Linux 4.13) or `memory.events` (v2), and of
//! `/proc/vmstat` for the node.
//!
//! **Which limit judges.** Pages are charged to the container whose process wrote them first, and through it to its
//! pod; when the container is gone they stay with the pod (seen on v1 and v2). So the container's limit judges what it
//! writes in one life, and the pod's limit judges all that is in the volume. `headroom_memory_volume_limit_bytes` is
//! the smaller of the two: of containers, the smallest limit among those that mount the volume, told by its device
//! number in their own mount tables (of those that cannot be looked at, among all, if no other does). Who mounts it and
//! is charged for next to none of what is in it (`shmem` of its `memory.stat`), a sidecar that reads, is not judged by
//! it; who once was charged for half of its limit is, for as long as the volume is there. One series
//! without a further label, so that used / limit is one division; both limits are beside it in
//! `headroom_memory_volume_cgroup_limit_bytes`. The kubelet gives a pod a limit only if each of its containers has one.
//! Without any limit there is no series: then the tmpfs size bounds it, which is the node's allocatable memory.
//!
//! **How kills are counted.** Processes killed, not times that memory ran out: a v2 container that dies as a group of
//! three (`memory.oom.group`) counts 3, as in `/proc/vmstat`. v2: the pod's own file counts for everything below and
//! outlives containers (since Linux 5.2, unless cgroup2 is mounted with `memory_localevents`: else it stays 0). v1:
//! each cgroup counts only its own processes and takes its count with it when it goes, so increases are added up here
//! by pod uid, and never go down while the pod has a cgroup. Pods with a volume start at 0; others appear with their
//! first kill, which `increase()` misses.
//!
//! **When it misleads.**
//! - v1: kills between the last scrape and the end of a container's cgroup are lost, and so is what had been added up
//!   when the exporter restarts: it begins with what the present cgroups say. The node's counter has them.
//! - A process of a pod that the node's own OOM killer took counts too.
//! - A container that is down has no cgroup: its limit is remembered while the volume is mounted. After a restart of
//!   the exporter in such a moment it is missing until the container is back.
//! - With swap for pods and no `noswap` on the mount, pages may have left for swap: they are used bytes, and no charge
//!   any more.
//! - Containers whose cgroup lies outside kubepods (kubelet with the systemd driver, runtime without it) are not found.
//! - Two volumes of one pod share its limit: each may look harmless. So does any memory of the containers that is no
//!   file.

mod assess;
mod cgroups;
mod kills;
mod limits;
#[cfg(test)]
mod tests;
mod volumes;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::{Collector, Context, Mode, Slope, Utilization, alerts};
use crate::error::{Error, Result};
use crate::humanize::humanize1024;
use crate::kubelet::handle::Kubelet;
use crate::kubelet::kubepods::{Kubepods, node_kills};
use crate::metric::{Metric, Samples, Unit};
use crate::runtime::Runtime;
use crate::values::defaults;
use assess::{Assessment, LeftOut, share_out};
use kills::Tallies;
use limits::Remembered;

const VOLUME: &[&str] = &["namespace", "pod", "pod_uid", "volume"];

/// What is in a volume.
pub static USED: Metric = Metric::gauge(
    "headroom_memory_volume_used_bytes",
    Unit::Bytes,
    VOLUME,
    "Bytes in a memory-backed emptyDir (statfs). They outlive the containers of the pod; pages in swap count.",
);
/// How much fits.
pub static SIZE: Metric = Metric::gauge(
    "headroom_memory_volume_size_bytes",
    Unit::Bytes,
    VOLUME,
    "Size of the tmpfs of a memory-backed emptyDir, as the kubelet mounted it.\n\n\
     The least of the sizeLimit, the sum of the containers' memory limits if each has one, and the node's allocatable \
     memory. With several containers this is more than one may write before it is killed.",
);
/// What judges.
pub static LIMIT: Metric = Metric::gauge(
    "headroom_memory_volume_limit_bytes",
    Unit::Bytes,
    VOLUME,
    "Memory limit that what is written to the volume counts against. Above 0.8 of it the next OOM kill is near, and a \
     restart does not help.\n\n\
     The smaller of the pod's limit and the smallest among the containers that mount the volume. Missing if neither \
     has a limit: then only the size of the volume bounds it.",
);
/// Both limits.
pub static CGROUP_LIMIT: Metric = Metric::gauge(
    "headroom_memory_volume_cgroup_limit_bytes",
    Unit::Bytes,
    &["namespace", "pod", "pod_uid", "volume", "scope"],
    "Memory limits behind headroom_memory_volume_limit_bytes: of the pod, and the smallest among the containers that \
     mount the volume.\n\n\
     pod: of the pod's cgroup; all that is in the volume counts, however old. container: only what that container \
     writes in one life counts; remembered while the container is down.",
);
/// Kills by pod.
pub static KILLS: Metric = Metric::counter(
    "headroom_oom_kills_total",
    &["namespace", "pod", "pod_uid"],
    "Processes of a pod killed by the OOM killer (oom_kill), also if the whole node was out of memory.\n\n\
     Source: memory.events or memory.oom_control. For pods with a memory-backed volume and those with a kill. v1: \
     added up over restarts of containers; kills between the last scrape and the end of a container are lost. \
     Restarting the exporter resets the counter.",
);
/// Kills on the node.
pub static NODE_KILLS: Metric = Metric::counter(
    "headroom_node_oom_kills_total",
    &[],
    "Processes that the OOM killer took on this node since boot, in cgroups and outside (oom_kill of /proc/vmstat, Linux 4.13).",
);

/// This mode.
pub static MODE: Mode = Mode {
    id: "memory_volume",
    title: "a memory-backed emptyDir over its memory limit: OOM, restart, OOM",
    happened: "a memory-backed emptyDir fills the pod's memory limit: OOM kill, restart, OOM kill",
    alerts: alerts!("memory_volume"),
    metrics: &[&USED, &SIZE, &LIMIT, &CGROUP_LIMIT, &KILLS, &NODE_KILLS],
    utilization: Some(Utilization {
        used: "headroom_memory_volume_used_bytes",
        limit: "headroom_memory_volume_limit_bytes",
        slope: Some(Slope::Rises("headroom_memory_volume_used_bytes")),
        text: |volume| {
            let pod = match volume.label("pod") {
                "" => volume.label("pod_uid").to_owned(),
                pod => format!("{}/{pod}", volume.label("namespace")),
            };
            let share = volume.share(|bytes| format!("{}B", humanize1024(bytes)));
            format!("{share} of memory in volume {} of pod {pod}", volume.label("volume"))
        },
    }),
    keeps: Some("OOM kills of cgroups that are gone, limits of containers that are down"),
    needs_runtime: true,
    build: |settings, services| {
        Box::new(MemoryVolume {
            settings: settings.memory_volume.clone(),
            kubelet: services.kubelet.clone(),
            kubepods: services.kubepods.clone(),
            runtime: services.runtime.clone(),
            state: Mutex::default(),
        })
    },
};

/// More volumes than this are not looked at in one scrape, and a larger [`Settings::max_volumes`] counts as this.
const MOST_VOLUMES: usize = 1000;
/// Pods without a volume that are shown with their kills.
const MOST_PODS: usize = 100;
/// How long the runtime may take.
const RUNTIME: Duration = Duration::from_secs(5);

/// Settings.
#[derive(clap::Args, Clone, Debug, PartialEq, Eq)]
#[group(skip)]
#[command(next_help_heading = "Collector memory_volume")]
pub struct Settings {
    /// Memory-backed volumes shown at the most: of each pod its share, those nearest their limit first
    #[arg(long = "collector.memory_volume.max-volumes", value_name = "N", default_value_t = 100)]
    pub max_volumes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        defaults()
    }
}

struct MemoryVolume {
    settings: Settings,
    kubelet: Kubelet,
    kubepods: Kubepods,
    runtime: Runtime,
    state: Mutex<State>,
}

/// What outlives a scrape.
#[derive(Debug, Default)]
struct State {
    kills: Tallies,
    limits: Remembered,
    cgroups: cgroups::Tables,
    volumes: volumes::Tables,
}

impl Collector for MemoryVolume {
    fn collect(&self, context: Context<'_>) -> Result<Samples> {
        let Context { host, deadline, began } = context;
        let mut samples = Samples::new();
        let of_kubelet = self.kubelet.look(host, deadline, began)?;
        samples.ok(of_kubelet.found());
        let kubelet = of_kubelet.process();
        let root_dir = of_kubelet.root_dir();
        let kubelet_pid = kubelet.map(|kubelet| kubelet.pid);
        // A panic of ours half-way leaves counts that are too small at worst.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { kills, limits, cgroups: of_cgroups, volumes: of_volumes } = &mut *state;
        let volumes = root_dir.and_then(|dir| volumes::find(host, kubelet_pid, &dir, of_volumes, deadline));
        let mut volumes = samples.ok(volumes).unwrap_or_default();
        let mut left_out = LeftOut::default();
        share_out(&mut volumes, MOST_VOLUMES, |volume| &volume.pod_uid, &mut left_out);

        let wanted: HashSet<&str> = volumes.iter().map(|volume| volume.pod_uid.as_str()).collect();
        let look = samples.ok(self.kubepods.look(host, deadline, began));
        // A walk that does not end says nothing, and the node's count is to be had all the same.
        let node_kills = look.as_ref().map_or_else(|| node_kills(host), |look| look.value.node_kills.clone());
        let node_kills = samples.ok(node_kills).flatten();
        samples.push_some(&NODE_KILLS, &[], node_kills.map(|kills| kills as f64));
        let cgroups =
            look.and_then(|look| cgroups::read(host, &look.value, &wanted, of_cgroups, &mut samples, deadline));
        let kubepods = cgroups.as_ref().is_some_and(|cgroups| cgroups.roots > 0);
        if kubelet.is_none() && !kubepods && volumes.is_empty() && node_kills.is_none() {
            let none = || Error::absent("no kubelet, no kubepods, and no oom_kill in vmstat");
            return Err(samples.errors().iter().find(|error| !error.is_gone()).cloned().unwrap_or_else(none));
        }
        let usages = volumes::measure(host, kubelet_pid, &volumes, of_volumes, deadline, &mut samples);

        if let Some(cgroups) = &cgroups {
            kills.update(&cgroups.pods, cgroups.complete);
        }
        let pods = cgroups.as_ref().map_or(&[][..], |cgroups| &cgroups.pods);
        let measured = limits.judge(&volumes, usages, pods, &mut |stat| cgroups::shared_memory(host, stat));
        let shown = Assessment::new(measured, pods, kills, self.settings.max_volumes.min(MOST_VOLUMES), left_out);
        drop(state);

        // Last, so that a runtime that does not answer takes no time from the others.
        let names = self.runtime.names(host, deadline.part(RUNTIME), &shown.uids(), &HashSet::new());
        if let Some(error) = &names.error {
            samples.fail(error.clone().context("names of pods"));
        }
        shown.expose(&names, &mut samples);
        Ok(samples)
    }
}

/// One memory-backed emptyDir.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Volume {
    pod_uid: String,
    name: String,
    /// As the machine calls it.
    path: PathBuf,
    device: crate::host::filesystem::DeviceNumber,
}
