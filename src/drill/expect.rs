//! Which page each drill must cause, and when: `docs/detection.md` reckons it. `tests/kernel/drill.rs` holds the names
//! to the rules.

use std::time::Duration;

use super::cli::Drill;
use super::say;

/// An alert of `alerts/`.
struct Page {
    alert: &'static str,
    /// At worst, in seconds: scrapes and evaluations every 15 s, `group_wait` 10 s (2 s where `alerts/README.md` says
    /// so).
    within: u64,
    /// Of what it is reckoned from and what it takes.
    note: &'static str,
}

const fn page(alert: &'static str, within: u64, note: &'static str) -> Page {
    Page { alert, within, note }
}

const HOUR: u64 = 3600;

/// Series of a pod that the runtime does not know.
const UNNAMED: &str =
    "a minute earlier without a container runtime: else the exporter waits for a name that never comes";

fn pages(drill: &Drill) -> Vec<Page> {
    match drill {
        Drill::CgroupLeak(options) if options.dying => {
            vec![page("HeadroomDyingCgroupsGrowing", 5 * HOUR + 400, "500 more, spread over five hours by --over")]
        }
        Drill::CgroupLeak(_) => vec![page("HeadroomOrphanedCgroups", 655, "ten at least")],
        Drill::OpenFiles(options) if options.runtime_socket.is_some() => {
            vec![page("HeadroomRuntimeSocketClientLeak", 355, "after the 100th connection")]
        }
        Drill::OpenFiles(_) => vec![page("HeadroomProcessNearFdLimit", 175, "where --limit is at least 256")],
        Drill::Inotify(_) => vec![page("HeadroomInotifyInstancesNearLimit", 355, "")],
        Drill::MemoryVolume(options) => {
            let near = page("HeadroomMemoryVolumeNearLimit", 175, UNNAMED);
            let (within, note) =
                if options.near_for.is_zero() { (175, UNNAMED) } else { (115, "after the first kill") };
            vec![near, page("HeadroomMemoryVolumeOomLoop", within, note)]
        }
        Drill::TaskLimit(options) => {
            let refused = page("HeadroomForksRefused", 40, "after the first refused fork");
            let near = page("HeadroomPodTasksNearLimit", 175, UNNAMED);
            if options.near_for.is_zero() { vec![refused, near] } else { vec![near, refused] }
        }
        Drill::Disk(_) | Drill::Inodes(_) => vec![
            page("HeadroomEvictionNear", 115, "once less than 1.3 times the threshold is left of nodefs or imagefs"),
            page(
                "HeadroomEvictionPredicted",
                1060,
                "with --over 20m or more, if what is left then is less than a quarter of an hour away, by a trend of that time",
            ),
        ],
        Drill::SystemFilesystem(_) => vec![
            page("HeadroomSystemFilesystemNearFull", 115, "once less than a tenth is left"),
            page(
                "HeadroomSystemFilesystemPredicted",
                1060,
                "with --over 20m or more, by a trend of a quarter of an hour",
            ),
        ],
        Drill::OrphanedMounts(_) => {
            vec![page("HeadroomOrphanedMounts", 655, "twenty at least, with a container runtime that answers")]
        }
        Drill::StalledConnection(options) if options.pid.is_some() => {
            vec![page("HeadroomApiserverConnectionStalled", 42, "of a kubelet")]
        }
        Drill::StalledConnection(_) => Vec::new(),
        Drill::PodInterface(_) => vec![
            page("HeadroomHostParentInterfaceDown", 40, "after the deletion"),
            page("HeadroomPodWithoutNetworkInterface", 115, "after the deletion"),
        ],
        Drill::Clean | Drill::Panic | Drill::Helper(_) | Drill::Watchdog { .. } => Vec::new(),
    }
}

/// Says what must page.
pub(super) fn tell(drill: &Drill, duration: Duration) {
    for Page { alert, within, note } in pages(drill) {
        let note = if note.is_empty() { String::new() } else { format!(" ({note})") };
        let short = if duration.as_secs() < within { ": --for is too short for that" } else { "" };
        say(format_args!("expect {alert} within {}{note}{short}; it resolves when the drill has ended", words(within)));
    }
}

fn words(seconds: u64) -> String {
    match (seconds / HOUR, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}
