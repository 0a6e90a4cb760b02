//! Eviction: how far this node is from the point where the kubelet throws pods out.
//!
//! **What fails.** The kubelet evicts when less than a threshold is available of one of nine signals: a kubelet of old
//! evicted etcd and coredns on a node at 88 % disk use. Since Kubernetes 1.24 at the latest it spares static pods and
//! those of the system priority classes (`IsCriticalPod`); what threatens etcd now is the disk that goes on filling.
//! It looks at the file system under its root directory and at the one under the runtime's images, not at the machine's
//! total, and at the thresholds that *it* was given.
//!
//! **Evidence.** The arithmetic is the kubelet's, read from its sources of 1.24 to 1.36 and held against real nodes:
//! see [`crate::kubelet`]. Where versions differ, this kubelet's counts; of an unknown one what warns sooner. Sources:
//! its command line and files; the runtime's image file system and images; `statfs(2)`; `/proc/meminfo` and the root
//! memory cgroup (v1 `memory.usage_in_bytes`, v2 `memory.stat`); `/proc/loadavg`, `kernel.pid_max`,
//! `kernel.threads-max`.
//!
//! **What we export.** Per signal: available, capacity, thresholds and minimum reclaim (percentages resolved),
//! headroom, whether the kubelet still evicts. Which file systems the roles fall on, where the configuration came from,
//! when images are collected, whether a control plane runs here.
//!
//! **When it misleads.**
//! - The kubelet reads its configuration at its start; a file that was edited since shows what it will do after the
//!   next. Only with [`crate::kubelet::configz`] are the thresholds those of the running kubelet, and then
//!   `headroom_eviction_config_drift` shows such an edit; without it there is no sign of one.
//! - The kubelet looks every 10 s at figures that are up to 10 s old; ours are of this moment. What is crossed for less
//!   than that may escape it, and is met for us until the minimum reclaim is free; what is crossed between two scrapes
//!   escapes us.
//! - `memory.available` has no kernel memory in it: a slab leak exhausts a node while it looks healthy. That is what
//!   `headroom_memory_available_bytes` beside it is for.
//! - Without a kubelet on the machine nodefs is the file system on which `/var/lib/kubelet` is or would be.
//! - imagefs is what the runtime names first, as the kubelet takes it. A runtime that is there and does not answer
//!   leaves no imagefs (the kubelet has none then, either). Without a runtime it is the image store in its usual place:
//!   one that was configured elsewhere, or two stores on two devices, show as no imagefs (and then no containerfs) at
//!   all.
//! - A runtime counts an image by its own size: layers that two images share count twice, so deleting an image may free
//!   less.
//! - On ZFS a kubelet of 1.36 or later asks `zfs list`, which knows another capacity than `statfs(2)`: signals of disks
//!   are missing there.
//! - The kubelet knows the devices that were there when it started. An image store mounted since is a signal that it
//!   does not see, though we do.

mod assess;
mod met;
mod read;
#[cfg(test)]
mod tests;

use std::sync::{Mutex, PoisonError};

use super::{Collector, Context, Mode, Slope, Utilization, alerts};
use crate::error::{Error, Result};
use crate::humanize::percentage;
use crate::kubelet::handle::Kubelet;
use crate::metric::{Metric, Samples, Unit};
use crate::runtime::Runtime;
use crate::services::node_filesystems::NodeFilesystems;
pub use read::Snapshot;

/// This mode.
pub static MODE: Mode = Mode {
    id: "eviction",
    title: "disk, memory or pid pressure evicts pods, and a full disk stops what is left",
    happened: "the kubelet evicts pods at a disk threshold that no dashboard knew",
    alerts: alerts!("eviction"),
    metrics: &[
        &AVAILABLE_BYTES,
        &AVAILABLE_INODES,
        &AVAILABLE_PIDS,
        &CAPACITY_BYTES,
        &CAPACITY_INODES,
        &CAPACITY_PIDS,
        &THRESHOLD_BYTES,
        &THRESHOLD_INODES,
        &THRESHOLD_PIDS,
        &MINIMUM_RECLAIM_BYTES,
        &MINIMUM_RECLAIM_INODES,
        &MINIMUM_RECLAIM_PIDS,
        &THRESHOLD_MET,
        &HEADROOM,
        &GRACE_PERIOD,
        &TRANSITION_PERIOD,
        &CONFIG_INFO,
        &CONFIG_DRIFT,
        &FILESYSTEM_INFO,
        &FILESYSTEM_READONLY,
        &IMAGE_GC,
        &IMAGES,
        &IMAGES_BYTES,
        &IMAGES_UNUSED_BYTES,
        &MEMORY_AVAILABLE,
    ],
    utilization: Some(Utilization {
        // So that the ratio is the higher the nearer the threshold is.
        used: "1 - headroom_eviction_headroom_ratio{signal!~\"containerfs.+\"}",
        limit: "headroom_eviction_headroom_ratio{signal!~\"containerfs.+\"} * 0 + 1",
        slope: Some(Slope::Falls("headroom_eviction_headroom_ratio{signal!~\"containerfs.+\"}")),
        text: |nearest| {
            let room = nearest.limit - nearest.used;
            let side = if room >= 0.0 { "above" } else { "below" };
            let (signal, kind) = (nearest.label("signal"), nearest.label("type"));
            format!("{signal} is {} of its capacity {side} the {kind} threshold", percentage(room.abs()))
        },
    }),
    keeps: Some("which thresholds the kubelet has met and not yet resolved"),
    needs_runtime: true,
    build: |_settings, services| {
        let (kubelet, runtime) = (services.kubelet.clone(), services.runtime.clone());
        Box::new(Eviction { kubelet, runtime, filesystems: services.filesystems.clone(), met: Mutex::default() })
    },
};

/// What is available of a signal, in bytes.
pub static AVAILABLE_BYTES: Metric = Metric::gauge(
    "headroom_eviction_available_bytes",
    Unit::Bytes,
    &["signal"],
    "Available now of an eviction signal counted in bytes, by the kubelet's own arithmetic: memory less its working set, file systems without root's reserve. The kubelet acts on figures up to 20 s older.",
);

/// What is available of a signal, in inodes.
pub static AVAILABLE_INODES: Metric = Metric::gauge(
    "headroom_eviction_available_inodes",
    Unit::None,
    &["signal"],
    "Free inodes now of an eviction signal (statfs f_ffree). Missing on file systems that make inodes as they need them, such as btrfs.",
);

/// What is available of a signal, in process ids.
pub static AVAILABLE_PIDS: Metric = Metric::gauge(
    "headroom_eviction_available_pids",
    Unit::None,
    &["signal"],
    "Process ids left: capacity less the threads that exist (/proc/loadavg). By default no kubelet has a threshold for it, so nothing evicts before they are gone.",
);

/// The capacity of a signal, in bytes.
pub static CAPACITY_BYTES: Metric = Metric::gauge(
    "headroom_eviction_capacity_bytes",
    Unit::Bytes,
    &["signal"],
    "What percentages of an eviction signal counted in bytes are taken of: MemTotal, the limit of all pods, or the size of the file system (root's reserve included).",
);

/// The capacity of a signal, in inodes.
pub static CAPACITY_INODES: Metric = Metric::gauge(
    "headroom_eviction_capacity_inodes",
    Unit::None,
    &["signal"],
    "All inodes of the file system of an eviction signal (statfs f_files).",
);

/// The capacity of a signal, in process ids.
pub static CAPACITY_PIDS: Metric = Metric::gauge(
    "headroom_eviction_capacity_pids",
    Unit::None,
    &["signal"],
    "All process ids: the lesser of kernel.pid_max and kernel.threads-max, as the kubelet takes it. A cgroup may allow a pod fewer.",
);

/// The threshold of a signal, in bytes.
pub static THRESHOLD_BYTES: Metric = Metric::gauge(
    "headroom_eviction_threshold_bytes",
    Unit::Bytes,
    &["signal", "type"],
    "The kubelet evicts when less than this is available: type hard at once, soft after the grace period. No series: \
     no threshold.\n\n\
     As the running kubelet says (configz), else from its files and flags as they are now, which may be newer than \
     its last start: headroom_eviction_config_info says which.",
);

/// The threshold of a signal, in inodes.
pub static THRESHOLD_INODES: Metric = Metric::gauge(
    "headroom_eviction_threshold_inodes",
    Unit::None,
    &["signal", "type"],
    "The kubelet evicts once fewer inodes than this are free: type hard at once, soft after the grace period. No series: no threshold.",
);

/// The threshold of a signal, in process ids.
pub static THRESHOLD_PIDS: Metric = Metric::gauge(
    "headroom_eviction_threshold_pids",
    Unit::None,
    &["signal", "type"],
    "The kubelet evicts once fewer process ids than this are left: type hard at once, soft after the grace period. No series: no threshold, which is the kubelet's default.",
);

/// How much more is freed, in bytes.
pub static MINIMUM_RECLAIM_BYTES: Metric = Metric::gauge(
    "headroom_eviction_minimum_reclaim_bytes",
    Unit::Bytes,
    &["signal"],
    "Once a threshold is crossed, the kubelet goes on evicting until this much more than the threshold is available (evictionMinimumReclaim). No series: until the threshold is.",
);

/// How much more is freed, in inodes.
pub static MINIMUM_RECLAIM_INODES: Metric = Metric::gauge(
    "headroom_eviction_minimum_reclaim_inodes",
    Unit::None,
    &["signal"],
    "Once a threshold is crossed, the kubelet goes on evicting until this many more inodes than the threshold are free (evictionMinimumReclaim). No series: until the threshold is.",
);

/// How much more is freed, in process ids.
pub static MINIMUM_RECLAIM_PIDS: Metric = Metric::gauge(
    "headroom_eviction_minimum_reclaim_pids",
    Unit::None,
    &["signal"],
    "Once a threshold is crossed, the kubelet goes on evicting until this many more process ids than the threshold are left (evictionMinimumReclaim). No series: until the threshold is.",
);

/// Whether the kubelet evicts, or goes on to.
pub static THRESHOLD_MET: Metric = Metric::gauge(
    "headroom_eviction_threshold_met",
    Unit::None,
    &["signal", "type"],
    "1 from when a scrape sees the threshold crossed until threshold and minimum reclaim are available. The kubelet \
     evicts that long.\n\n\
     A soft threshold must be crossed for its grace period first. No series: the signal is between the two, and \
     whether it was crossed before is unknown, as after a start of the exporter or of the kubelet.",
);

/// How far a signal is from its threshold.
pub static HEADROOM: Metric = Metric::gauge(
    "headroom_eviction_headroom_ratio",
    Unit::Ratio,
    &["signal", "type"],
    "(available - threshold) / capacity of an eviction signal. Below 0 the kubelet evicts (hard), or counts down its \
     grace period (soft).\n\n\
     It goes on evicting above 0 while headroom_eviction_threshold_met is 1.",
);

/// How long a soft threshold may be crossed.
pub static GRACE_PERIOD: Metric = Metric::gauge(
    "headroom_eviction_grace_period_seconds",
    Unit::Seconds,
    &["signal"],
    "How long a soft threshold may be crossed before the kubelet evicts. The node condition appears at once.\n\n\
     0: the kubelet treats this soft threshold as a hard one, and so does the label type.",
);

/// How long a pressure condition outlives its cause.
pub static TRANSITION_PERIOD: Metric = Metric::gauge(
    "headroom_eviction_pressure_transition_period_seconds",
    Unit::Seconds,
    &[],
    "How long the kubelet keeps a pressure condition after a threshold was last crossed \
     (evictionPressureTransitionPeriod).\n\n\
     Conditions MemoryPressure, DiskPressure, PIDPressure. Missing if the kubelet's configuration could not be read.",
);

/// Where the thresholds come from.
pub static CONFIG_INFO: Metric = Metric::info(
    "headroom_eviction_config_info",
    &["source", "path"],
    "Sources of the eviction thresholds, one series each: configz, flag, file, dropin or default.\n\n\
     configz: the running kubelet's own word; if it is there it counts, and the others are only compared. flag: the \
     kubelet's command line. file: its --config or ours. dropin: --config-dir. default: no kubelet runs here; these \
     are what an unconfigured one would do.",
);

/// Whether a restart of the kubelet changes a threshold.
pub static CONFIG_DRIFT: Metric = Metric::gauge(
    "headroom_eviction_config_drift",
    Unit::None,
    &["signal", "type", "running", "configured"],
    "1 if a restart of the kubelet will change this setting: label running is what /configz says, configured what \
     files and flags say.\n\n\
     configured none: not set. Type: hard, soft, image_gc_high or image_gc_low. No series: /configz or the files \
     cannot be read.",
);

/// Which file systems the kubelet looks at.
pub static FILESYSTEM_INFO: Metric = Metric::info(
    "headroom_filesystem_info",
    &["role", "device", "mountpoint", "fstype"],
    "The file system behind nodefs, imagefs and containerfs. Roles on one device share its bytes and its first \
     threshold.\n\n\
     nodefs: the kubelet's root directory. imagefs: what the runtime names; without a runtime its store in the usual \
     place. containerfs: the kubelet takes it for imagefs, unless CRI-O splits its store.",
);

/// Whether it can be written.
pub static FILESYSTEM_READONLY: Metric = Metric::gauge(
    "headroom_filesystem_readonly",
    Unit::None,
    &["role"],
    "1 if the file system takes no writes, as ext4, XFS and btrfs do not after an error: read-only, stopped, or not even its directory opens. A read-only mount of a healthy file system is 0.",
);

/// When images are collected.
pub static IMAGE_GC: Metric = Metric::gauge(
    "headroom_image_gc_threshold_ratio",
    Unit::Ratio,
    &["bound"],
    "Part of imagefs in use at which the kubelet starts to delete unused images (high) and down to which it does (low). If 1 - high is at or below the imagefs.available threshold, eviction comes first.",
);

/// How many images there are.
pub static IMAGES: Metric = Metric::gauge(
    "headroom_images",
    Unit::None,
    &[],
    "Images in the runtime's store, as it lists them. Missing without a runtime.\n\n\
     This figure and the two of bytes are up to a minute old: the list is asked for again after that, and when a \
     container runs another image.",
);

/// How large they are.
pub static IMAGES_BYTES: Metric = Metric::gauge(
    "headroom_images_bytes",
    Unit::Bytes,
    &[],
    "Sum of the sizes that the runtime gives for its images. Layers that images share count once for each; some runtimes (containerd) give compressed sizes: the disk holds more or less than this.",
);

/// How much of that could go.
pub static IMAGES_UNUSED_BYTES: Metric = Metric::gauge(
    "headroom_images_unused_bytes",
    Unit::Bytes,
    &[],
    "Size of the images that no container uses and that are not pinned: roughly what the kubelet's image collection \
     could free.\n\n\
     A stopped container uses its image too. The pause image is among the unused ones if the runtime does not pin it.",
);

/// The kernel's own estimate.
pub static MEMORY_AVAILABLE: Metric = Metric::gauge(
    "headroom_memory_available_bytes",
    Unit::Bytes,
    &[],
    "MemAvailable of /proc/meminfo: the kernel's estimate of memory for new programs. Unlike the signal memory.available it goes down when kernel memory (slab) leaks; the kubelet does not look at it.",
);

struct Eviction {
    kubelet: Kubelet,
    runtime: Runtime,
    filesystems: NodeFilesystems,
    met: Mutex<met::Met>,
}

impl Collector for Eviction {
    fn collect(&self, context: Context<'_>) -> Result<Samples> {
        let snapshot = Snapshot::read(context, &self.kubelet, &self.runtime, &self.filesystems)?;
        if snapshot.is_empty() {
            return Err(Error::absent("no memory, pid or file-system figures to be read on this machine"));
        }
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(assess::assess(snapshot, &mut met, context.began))
    }
}
