//! What the exporter says of itself: its version, and the standard `process_*` set that every Prometheus client
//! exposes.
//!
//! These come from *our own* `/proc/self`, never from the observed machine's procfs, through the procfs crate.

use std::sync::OnceLock;

use procfs::WithCurrentSystemInfo as _;
use procfs::process::{LimitValue, Process};

use crate::metric::{Metric, Samples, Unit};

static BUILD: Metric = Metric::info(
    "headroom_build_info",
    &["version", "revision", "arch"],
    "1, with the version of the exporter and the commit it was built from in its labels",
);
static CPU: Metric = Metric::counter(
    "process_cpu_seconds_total",
    &[],
    "User and system CPU time that the exporter has used, in seconds (/proc/self/stat)",
);
static OPEN_FDS: Metric =
    Metric::gauge("process_open_fds", Unit::None, &[], "File descriptors that the exporter has open (/proc/self/fd)");
static MAX_FDS: Metric = Metric::gauge(
    "process_max_fds",
    Unit::None,
    &[],
    "Soft limit of the exporter's file descriptors (/proc/self/limits)",
);
static RESIDENT: Metric = Metric::gauge(
    "process_resident_memory_bytes",
    Unit::Bytes,
    &[],
    "Resident memory of the exporter (/proc/self/stat)",
);
static VIRTUAL: Metric =
    Metric::gauge("process_virtual_memory_bytes", Unit::Bytes, &[], "Virtual memory of the exporter (/proc/self/stat)");
static START: Metric = Metric::gauge(
    "process_start_time_seconds",
    Unit::Seconds,
    &[],
    "When the exporter started, in seconds since 1970 (/proc/self/stat)",
);
static THREADS: Metric = Metric::gauge("process_threads", Unit::None, &[], "Threads of the exporter (/proc/self/stat)");

/// What [`samples`] may contain.
pub static METRICS: &[&Metric] = &[&BUILD, &CPU, &OPEN_FDS, &MAX_FDS, &RESIDENT, &VIRTUAL, &START, &THREADS];

/// The version, as `headroom_build_info` tells it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that it was built from; `build.rs` says how that is known, and when it is "unknown".
pub const REVISION: &str = env!("HEADROOM_REVISION");

/// Both, as `--version` tells them.
pub const VERSION_AND_REVISION: &str =
    concat!(env!("CARGO_PKG_VERSION"), " (revision ", env!("HEADROOM_SHORT_REVISION"), ")");

/// The present figures of this process. What cannot be read is left out.
pub fn samples() -> Samples {
    let mut samples = Samples::new();
    samples.info(&BUILD, &[VERSION, REVISION, std::env::consts::ARCH]);
    let Ok(myself) = Process::myself() else { return samples };
    if let Ok(stat) = myself.stat() {
        let ticks = (stat.utime + stat.stime) as f64;
        samples.push(&CPU, &[], ticks / procfs::ticks_per_second() as f64);
        samples.push(&RESIDENT, &[], stat.rss_bytes().get() as f64);
        samples.push(&VIRTUAL, &[], stat.vsize as f64);
        samples.push(&THREADS, &[], stat.num_threads as f64);
        // The boot time is in /proc/stat, which is long on a machine with many processors: once is enough.
        static STARTED: OnceLock<Option<f64>> = OnceLock::new();
        let started = STARTED.get_or_init(|| {
            let boot = procfs::boot_time_secs().ok()?;
            Some(boot as f64 + stat.starttime as f64 / procfs::ticks_per_second() as f64)
        });
        samples.push_some(&START, &[], *started);
    }
    samples.push_some(&OPEN_FDS, &[], myself.fd_count().ok().map(|count| count as f64));
    if let Ok(limits) = myself.limits()
        && let LimitValue::Value(soft) = limits.max_open_files.soft_limit
    {
        samples.push(&MAX_FDS, &[], soft as f64);
    }
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_equal_a_witness() {
        let samples = samples();
        let pid = std::process::id();
        let witness = format!("prlimit -p {pid} -n -o SOFT --noheadings");
        let limit = std::process::Command::new("sh").arg("-c").arg(witness).output().unwrap();
        let limit: f64 = String::from_utf8(limit.stdout).unwrap().trim().parse().unwrap();
        assert_eq!(samples.value(&MAX_FDS, &[]), Some(limit));
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
        let started = samples.value(&START, &[]).unwrap();
        assert!((now - 3600.0..=now + 1.0).contains(&started), "{started} beside {now}");
        assert!(samples.value(&RESIDENT, &[]).unwrap() > 500_000.0);
        assert!(METRICS.iter().all(|metric| samples.rows().iter().any(|row| std::ptr::eq(row.metric, *metric))));
    }
}
