//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use super::Drill;
use crate::values::duration as go_duration;

/// Makes a failure on purpose, so that you see whether you are paged. Needs root and a node that may fail. In brackets:
/// the failure mode whose alerts fire.
#[derive(clap::Parser, Debug)]
#[command(name = "headroom-drill", version, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 ended and cleaned up, 1 the fault could not be made, 2 refused, 3 something is left (run clean)"
)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) common: Common,
    #[command(subcommand)]
    pub(super) drill: Drill,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Every drill")]
pub(super) struct Common {
    /// Say that this machine may fail: without it nothing is made
    #[arg(long, global = true)]
    pub(super) i_know_this_node: bool,
    /// Say what would be made and where, and make nothing
    #[arg(long, global = true)]
    pub(super) dry_run: bool,
    /// End after this time (30s, 5m, 1h), at most a day
    #[arg(long = "for", value_name = "DURATION", default_value = "5m", value_parser = duration, global = true)]
    pub(super) duration: Duration,
    /// Where the journals of running drills are; made with mode 0700
    #[arg(long, value_name = "DIR", default_value = "/run/headroom-drill", global = true)]
    pub(super) state_dir: PathBuf,
}

/// A process of a drill's own.
#[derive(clap::Subcommand, Debug)]
pub(super) enum Helper {
    OpenFiles { count: u64, limit: u64 },
    Connections { count: u64, limit: u64, socket: PathBuf, every_ms: u64 },
    Inotify { instances: u64, watches: u64, uid: u32, directory: PathBuf },
    Write { file: PathBuf, bytes: u64 },
    Tasks { count: u64 },
    Sleep,
}

#[derive(clap::Args, Debug)]
pub(super) struct Kubepods {
    /// The kubepods cgroup, relative to the memory hierarchy [default: that of the running kubelet, or what is
    /// called kubepods or kubepods.slice]
    #[arg(long, value_name = "CGROUP")]
    pub(super) kubepods: Option<PathBuf>,
    /// Make that cgroup if it does not exist
    #[arg(long)]
    pub(super) make_kubepods: bool,
}

// Of `files.rs`, and of `runtime_socket.rs`, which it calls.
#[derive(clap::Args, Debug)]
pub(super) struct OpenFiles {
    /// How many open files or connections [default: 95 % of the limit, or 100 connections]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(super) count: Option<u64>,
    /// The limit on open files of the process that opens them
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(64..=1_048_576))]
    pub(super) limit: u64,
    /// Leak connections to this unix socket, instead of opening files
    #[arg(long, value_name = "PATH")]
    pub(super) runtime_socket: Option<PathBuf>,
    /// Time between two connections
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration)]
    pub(super) every: Duration,
}

/// At most a day.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let duration = go_duration(text).map_err(|_| "expected a duration such as 500ms, 10s or 1m30s")?;
    if duration > Duration::from_secs(86_400) { Err("at most a day".to_owned()) } else { Ok(duration) }
}

/// With the suffixes Ki, Mi and Gi.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..end].parse().map_err(|_| "not a number")?;
    let shift = match &text[end..] {
        "" => 0,
        "Ki" => 10,
        "Mi" => 20,
        "Gi" => 30,
        _ => return Err("suffixes are Ki, Mi and Gi".to_owned()),
    };
    number.checked_mul(1 << shift).ok_or_else(|| "too large".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_with_units() {
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for wrong in ["5", "m", "25h", "1d", "99999999999999999999s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        assert_eq!((bytes("7"), bytes("32Mi")), (Ok(7), Ok(32 << 20)));
        for wrong in ["", "Mi", "1M", "99999999999999999Gi"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
