//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

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

#[derive(clap::Subcommand, Debug)]
pub(super) enum Drill {
    /// Cgroups below kubepods that belong to no container (cgroup_leak)
    CgroupLeak(CgroupLeak),
    /// A process close to its limit of open files, or one that leaks connections to the runtime's socket (open_files)
    OpenFiles(OpenFiles),
    /// Inotify instances and watches of a user that nothing else runs as (open_files)
    Inotify(Inotify),
    /// A memory-backed emptyDir whose writer is killed and started again (memory_volume)
    MemoryVolume(MemoryVolume),
    /// A pod at its limit of processes and threads (task_limit)
    TaskLimit(TaskLimit),
    /// A file system without free bytes (eviction)
    Disk(Disk),
    /// A file system without free inodes (eviction)
    Inodes(Disk),
    /// A file system that nobody evicts for, without free bytes or inodes (system_filesystem)
    SystemFilesystem(SystemFilesystem),
    /// Mounts of a pod that no longer exists (cni_leak)
    OrphanedMounts(OrphanedMounts),
    /// A connection whose replies vanish while new ones work (apiserver_connection)
    StalledConnection(StalledConnection),
    /// A pod that loses its network interface (pod_interface)
    PodInterface(PodInterface),
    /// Remove what a killed drill left
    Clean,
    #[command(hide = true, subcommand)]
    Helper(Helper),
    #[command(hide = true)]
    Watchdog { journal: PathBuf },
    /// Makes a file and a process, and panics: for the test of that end
    #[command(hide = true)]
    Panic,
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

#[derive(clap::Args, Debug)]
pub(super) struct CgroupLeak {
    /// How many cgroups
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=20_000))]
    pub(super) count: u64,
    /// Make dying memory cgroups instead: removed, but kept by a page of a tmpfs
    #[arg(long)]
    pub(super) dying: bool,
    /// Make them little by little over this time
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    pub(super) over: Duration,
    #[command(flatten)]
    pub(super) kubepods: Kubepods,
}

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

#[derive(clap::Args, Debug)]
pub(super) struct Inotify {
    /// The user that holds them: one that nothing else runs as
    #[arg(long, default_value_t = 64_999, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) uid: u32,
    /// How many instances [default: 95 % of fs.inotify.max_user_instances]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=8192))]
    pub(super) instances: Option<u64>,
    /// How many watches
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    pub(super) watches: u64,
    /// Where the watched files are made
    #[arg(long, value_name = "DIR", default_value = "/tmp")]
    pub(super) scratch: PathBuf,
}

#[derive(clap::Args, Debug)]
pub(super) struct MemoryVolume {
    /// The kubelet's root directory [default: that of the running kubelet, else /var/lib/kubelet]
    #[arg(long, value_name = "DIR")]
    pub(super) kubelet_root_dir: Option<PathBuf>,
    /// The container's memory limit, in bytes (suffixes Ki, Mi, Gi)
    #[arg(long, value_name = "BYTES", default_value = "32Mi", value_parser = bytes)]
    pub(super) limit: u64,
    /// Size of the tmpfs, larger than the limit
    #[arg(long, value_name = "BYTES", default_value = "64Mi", value_parser = bytes)]
    pub(super) size: u64,
    /// Stay at seven eighths of the limit for this time first, with nothing killed
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    pub(super) near_for: Duration,
    /// Time between a kill and the next start
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = duration)]
    pub(super) restart_after: Duration,
    #[command(flatten)]
    pub(super) kubepods: Kubepods,
}

#[derive(clap::Args, Debug)]
pub(super) struct TaskLimit {
    /// The kubelet's root directory [default: that of the running kubelet, else /var/lib/kubelet]
    #[arg(long, value_name = "DIR")]
    pub(super) kubelet_root_dir: Option<PathBuf>,
    /// Processes and threads that the pod may have
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(20..=1000))]
    pub(super) limit: u64,
    /// Stay at nine tenths of the limit for this time first, with nothing refused
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    pub(super) near_for: Duration,
    #[command(flatten)]
    pub(super) kubepods: Kubepods,
}

#[derive(clap::Args, Clone, Debug)]
#[command(group(clap::ArgGroup::new("where").required(true).args(["mount", "path"])))]
pub(super) struct Disk {
    /// Mount an ext4 here and fill that: an empty directory, or one that does not exist yet
    #[arg(long, value_name = "DIR")]
    pub(super) mount: Option<PathBuf>,
    /// Fill the file system of this directory, by one entry in it; --leave says how far
    #[arg(long, value_name = "DIR", requires = "leave")]
    pub(super) path: Option<PathBuf>,
    /// What stays free: bytes (Ki, Mi, Gi), or inodes [default: with --mount 2 %]
    #[arg(long, value_name = "N", value_parser = bytes)]
    pub(super) leave: Option<u64>,
    /// Size of the ext4
    #[arg(long, value_name = "BYTES", default_value = "256Mi", value_parser = bytes)]
    pub(super) size: u64,
    /// Where the image of the ext4 is made, as a sparse file
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    pub(super) image_dir: PathBuf,
    /// Fill it little by little over this time
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    pub(super) over: Duration,
}

#[derive(clap::Args, Clone, Debug)]
pub(super) struct SystemFilesystem {
    /// Mount a tmpfs here and fill that: a directory that the exporter watches and this node has not
    #[arg(long, value_name = "DIR", default_value = "/run/k0s")]
    pub(super) mount: PathBuf,
    /// Size of the tmpfs
    #[arg(long, value_name = "BYTES", default_value = "16Mi", value_parser = bytes)]
    pub(super) size: u64,
    /// Use up its inodes instead of its bytes
    #[arg(long)]
    pub(super) inodes: bool,
    /// Fill it little by little over this time
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    pub(super) over: Duration,
}

#[derive(clap::Args, Clone, Debug)]
pub(super) struct OrphanedMounts {
    /// So many mounts, and the tmpfs that they are in
    #[arg(long, value_name = "N", default_value_t = 24)]
    pub(super) count: u32,
    /// The kubelet's root directory [default: that of the running kubelet, else /var/lib/kubelet]
    #[arg(long, value_name = "DIR")]
    pub(super) kubelet_root_dir: Option<PathBuf>,
}

#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("whose").required(true).args(["pid", "connect"])))]
pub(super) struct StalledConnection {
    /// Stall a connection of this process, for example the kubelet's
    #[arg(long)]
    pub(super) pid: Option<u32>,
    /// Make a connection of its own to this address, and stall that
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(super) connect: Option<SocketAddr>,
    /// With --pid: the peer's port
    #[arg(long, default_value_t = 6443)]
    pub(super) port: u16,
    /// With --pid: stall each connection that the process makes afterwards too, up to 32
    #[arg(long)]
    pub(super) again: bool,
}

#[derive(clap::Args, Debug)]
pub(super) struct PodInterface {
    /// How long the pod keeps its interface at first
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = duration)]
    pub(super) after: Duration,
    /// After this time make again what the interface sat on, so that its alert resolves [default: 75 s before the end]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(super) back_after: Option<Duration>,
    /// The kubelet's root directory [default: that of the running kubelet; without one the pod gets no volume]
    #[arg(long, value_name = "DIR")]
    pub(super) kubelet_root_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(super) kubepods: Kubepods,
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = go_duration(text).map_err(|_| "expected a duration such as 500ms, 10s or 1m30s")?;
    if duration > Duration::from_secs(86_400) { Err("at most a day".to_owned()) } else { Ok(duration) }
}

fn bytes(text: &str) -> Result<u64, String> {
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
