//! Which page each drill must cause, and when: `docs/detection.md` reckons it. `tests/kernel/drill.rs` holds the names
//! to the rules.

use std::time::Duration;

use super::{Fault, say};

/// An alert of `alerts/`.
pub(super) struct Page {
    alert: &'static str,
    /// At worst, in seconds: scrapes and evaluations every 15 s, `group_wait` 10 s (2 s where `alerts/README.md` says
    /// so).
    within: u64,
    /// Of what it is reckoned from and what it takes.
    note: &'static str,
}

pub(super) const fn page(alert: &'static str, within: u64, note: &'static str) -> Page {
    Page { alert, within, note }
}

pub(super) const HOUR: u64 = 3600;

/// Series of a pod that the runtime does not know.
pub(super) const UNNAMED: &str =
    "a minute earlier without a container runtime: else the exporter waits for a name that never comes";

/// Says what must page.
pub(super) fn tell(fault: &dyn Fault, duration: Duration) {
    for Page { alert, within, note } in fault.pages() {
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
