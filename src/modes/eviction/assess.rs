//! From what was read to what is exposed. Pure.

use std::time::Instant;

use super::met::{Met, Reading};
use super::read::Snapshot;
use super::*;
use crate::host::filesystem::Filesystem;
use crate::kubelet::configuration::{Configuration, Source};
use crate::kubelet::process::PassedOver;
use crate::kubelet::signals::{self, Counts, Observation, Signal};
use crate::kubelet::thresholds::Thresholds;
use crate::metric::{Metric, Samples};
use crate::services::node_filesystems::Containerfs;

/// A configuration of more files than this is shown in part.
const MOST_SOURCES: usize = 32;

/// The numbers, and the errors of what is missing. `met` is what earlier looks have seen.
pub(super) fn assess(snapshot: Snapshot, met: &mut Met, now: Instant) -> Samples {
    let mut samples = Samples::new();
    let containerfs = match &snapshot.containerfs {
        Containerfs::Imagefs => snapshot.imagefs.as_ref(),
        Containerfs::Own(filesystem) => Some(filesystem),
        Containerfs::None => None,
    };
    let observations = observations(&snapshot, containerfs);
    for &(signal, Observation { available, capacity }) in &observations {
        let [available_metric, capacity_metric, ..] = by_unit(signal);
        samples.push(available_metric, &[signal.as_str()], available as f64);
        samples.push(capacity_metric, &[signal.as_str()], capacity as f64);
    }
    samples.push_some(&MEMORY_AVAILABLE, &[], snapshot.mem_available.map(|bytes| bytes as f64));
    met.is_of(snapshot.process);
    if let Some((configuration, thresholds)) = &snapshot.kubelet {
        let dedicated = match &snapshot.containerfs {
            Containerfs::Own(_) => Some(false),
            _ => snapshot.nodefs.as_ref().zip(containerfs).and_then(|(node, image)| signals::dedicated(node, image)),
        };
        let thresholds = thresholds.clone().on_filesystems(dedicated);
        push_thresholds(&mut samples, &observations, &thresholds);
        push_met(&mut samples, &observations, &thresholds, met, now);
        let period = configuration.eviction_pressure_transition_period;
        samples.push(&TRANSITION_PERIOD, &[], period.as_secs_f64());
        push_image_gc(&mut samples, configuration);
    }
    push_sources(&mut samples, &snapshot.sources);
    for drift in &snapshot.drift {
        let labels = [drift.signal.as_str(), drift.kind, &drift.running, &drift.configured];
        samples.push(&CONFIG_DRIFT, &labels, f64::from(u8::from(drift.differs)));
    }
    let roles =
        [("nodefs", snapshot.nodefs.as_ref()), ("imagefs", snapshot.imagefs.as_ref()), ("containerfs", containerfs)];
    for (role, filesystem) in roles {
        push_filesystem(&mut samples, role, filesystem);
    }
    if let Some(images) = snapshot.images {
        samples.push(&IMAGES, &[], images.count as f64);
        samples.push(&IMAGES_BYTES, &[], images.bytes as f64);
        samples.push(&IMAGES_UNUSED_BYTES, &[], images.unused_bytes as f64);
    }
    if snapshot.asks_zfs && roles.into_iter().any(|(_, filesystem)| filesystem.is_some_and(is_zfs)) {
        samples.note(
            "signals of ZFS are missing: a kubelet from 1.36 on asks zfs(8), which gives another capacity than statfs(2) \
             (if this one is older, set --kubelet.version)"
                .to_owned(),
        );
    }
    snapshot.errors.into_iter().for_each(|error| samples.fail(error));
    for PassedOver { pid, comm, why } in snapshot.passed_over {
        samples.note(format!("process {pid} ({comm}) looks like this node's kubelet but is ignored: {why}"));
    }
    if let Some(unasked) = snapshot.unasked {
        samples.note(format!(
            "thresholds are from the kubelet's files and flags as they are now; whether it runs with them is unknown \
             (headroom_eviction_config_drift is missing), because it could not be asked: {unasked}"
        ));
    }
    samples
}

fn observations(snapshot: &Snapshot, containerfs: Option<&Filesystem>) -> Vec<(Signal, Observation)> {
    let disks = [snapshot.nodefs.as_ref(), snapshot.imagefs.as_ref(), containerfs];
    let [nodefs, imagefs, containerfs] = disks.map(|disk| disk.filter(|disk| !(snapshot.asks_zfs && is_zfs(disk))));
    let observe = |signal| match signal {
        Signal::MemoryAvailable => snapshot.memory,
        Signal::AllocatableMemoryAvailable => snapshot.allocatable,
        Signal::NodefsAvailable => nodefs.map(signals::bytes),
        Signal::NodefsInodesFree => nodefs.and_then(signals::inodes),
        Signal::ImagefsAvailable => imagefs.map(signals::bytes),
        Signal::ImagefsInodesFree => imagefs.and_then(signals::inodes),
        Signal::ContainerfsAvailable => containerfs.map(signals::bytes),
        Signal::ContainerfsInodesFree => containerfs.and_then(signals::inodes),
        Signal::PidAvailable => snapshot.pids,
    };
    Signal::ALL.into_iter().filter_map(|signal| Some((signal, observe(signal)?))).collect()
}

fn push_thresholds(samples: &mut Samples, observations: &[(Signal, Observation)], thresholds: &Thresholds) {
    for &(signal, Observation { available, capacity }) in observations {
        for (kind, hard) in [("hard", true), ("soft", false)] {
            // Without an observation the kubelet skips a threshold, and a percentage of nothing cannot be said.
            let Some(threshold) = thresholds.resolve(signal, hard, capacity) else { continue };
            let labels = [signal.as_str(), kind];
            samples.push(by_unit(signal)[2], &labels, threshold);
            let ratio = (available as f64 - threshold) / capacity as f64;
            samples.push_some(&HEADROOM, &labels, (capacity > 0).then_some(ratio));
        }
    }
    for (signal, period) in &thresholds.grace_periods {
        samples.push(&GRACE_PERIOD, &[signal.as_str()], period.as_secs_f64());
    }
}

fn push_met(
    samples: &mut Samples,
    observations: &[(Signal, Observation)],
    thresholds: &Thresholds,
    met: &mut Met,
    now: Instant,
) {
    for &(signal, Observation { available, capacity }) in observations {
        let reclaim = thresholds.reclaim(signal, capacity);
        samples.push_some(by_unit(signal)[3], &[signal.as_str()], reclaim);
        for (kind, hard) in [("hard", true), ("soft", false)] {
            let Some(threshold) = thresholds.resolve(signal, hard, capacity) else { continue };
            let reading = Reading::of(available as f64, threshold, reclaim.unwrap_or(0.0));
            let grace = thresholds.grace_periods.get(&signal).copied().filter(|_| !hard).unwrap_or_default();
            let is_met = met.look((signal, hard), reading, grace, now);
            samples.push_some(&THRESHOLD_MET, &[signal.as_str(), kind], is_met.map(f64::from));
        }
    }
}

fn push_image_gc(samples: &mut Samples, configuration: &Configuration) {
    samples.push(&IMAGE_GC, &["high"], f64::from(configuration.image_gc_high_percent) / 100.0);
    samples.push(&IMAGE_GC, &["low"], f64::from(configuration.image_gc_low_percent) / 100.0);
}

fn push_sources(samples: &mut Samples, sources: &[Source]) {
    for source in sources.iter().take(MOST_SOURCES) {
        let path = source.path().map(|path| path.display().to_string()).unwrap_or_default();
        samples.info(&CONFIG_INFO, &[source.as_str(), &path]);
    }
    samples.drop_count(sources.len().saturating_sub(MOST_SOURCES) as u64);
}

fn push_filesystem(samples: &mut Samples, role: &str, filesystem: Option<&Filesystem>) {
    let Some(mount) = filesystem.and_then(|filesystem| filesystem.mount.as_ref()) else { return };
    let mountpoint = mount.mountpoint.display().to_string();
    samples.info(&FILESYSTEM_INFO, &[role, &mount.device, &mountpoint, &mount.fstype]);
    samples.push(&FILESYSTEM_READONLY, &[role], f64::from(mount.readonly));
}

fn is_zfs(filesystem: &Filesystem) -> bool {
    filesystem.mount.as_ref().is_some_and(|mount| mount.fstype == "zfs")
}

/// The families of a signal: available, capacity, threshold, minimum reclaim.
fn by_unit(signal: Signal) -> [&'static Metric; 4] {
    match signal.counts() {
        Counts::Bytes => [&AVAILABLE_BYTES, &CAPACITY_BYTES, &THRESHOLD_BYTES, &MINIMUM_RECLAIM_BYTES],
        Counts::Inodes => [&AVAILABLE_INODES, &CAPACITY_INODES, &THRESHOLD_INODES, &MINIMUM_RECLAIM_INODES],
        Counts::Pids => [&AVAILABLE_PIDS, &CAPACITY_PIDS, &THRESHOLD_PIDS, &MINIMUM_RECLAIM_PIDS],
    }
}
