//! A file system of the node itself fills that the kubelet does not look at: nothing is evicted, and no pod starts, no
//! log is written, or etcd stops.
//!
//! **What fails.** The kubelet evicts for nodefs, imagefs and containerfs. `/run` is none of them: its bytes (a tenth
//! or a fifth of the memory by default) and its inodes (819,200 by systemd's) hold the state of runc, containerd and
//! CRI-O, and once either is gone no container can be started, and many not even stopped. Directories that nobody
//! removes have filled its inodes on real nodes (cri-o#7222, kata-containers#6622, moby#22095), logs and state its
//! bytes (kubernetes#105928, containerd#1546). The same goes for `/var/log`, `/var/lib/cni` or the runtime's own root
//! where they are file systems of their own. etcd ends itself when its log cannot be written, and turns read-only
//! (alarm NOSPACE) when its database reaches its quota, however much room the disk has.
//!
//! **Evidence.** `statfs(2)` of each path that is there, and our own mount table (`/proc/self/mountinfo`) for what it
//! lies on: paths with one superblock number are one file system. Which three the kubelet evicts for, the services
//! say ([`crate::services::node_filesystems`]); a path on one of these is shown with `judge="eviction"` and without
//! figures, so that two modes never page for one device. etcd is a process of this node's control plane
//! ([`crate::kubelet::identity`]), its directory and quota what it was told ([`crate::kubelet::datastore`]), found in
//! the machine's mount table by the one that etcd itself has. Read-only and dead as in [`crate::modes::eviction`].
//!
//! **What we export.** A file system each: available, capacity and their ratio, bytes and inodes, whether it takes no
//! writes. A path each: where it lies and who judges it. A datastore each: the length of its database and etcd's quota.
//!
//! **When it misleads.**
//! - A tmpfs counts pages that memory must have: with little memory left it is full earlier than its size says.
//! - Available is what an unprivileged writer has. Root's reserve (5 % of an ext4) is not in it, and etcd and the
//!   runtime run as root: they go on for a while at 0.
//! - A file system without a limit (`size=0`, `nr_inodes=0`, btrfs's inodes) has no such series: absent, not 0.
//! - etcd compares its quota with the pages that its database has, and grows the file by up to 16 MiB before they are
//!   used (`AllocSize` of bbolt): the file is that much longer at most.
//! - The alarm NOSPACE itself is not shown. It is in etcd's database and behind its client port, which wants a client
//!   certificate; `/health` on a port for metrics tells of it, and whoever listens there may say so. A database at its
//!   quota has it.
//! - An etcd that is down is remembered, for as long as its directory is there: its disk is most likely why. Not over a
//!   restart of the exporter, until etcd is seen again.
//! - Which file systems a kubelet evicts for is unknown without a look at processes, and imagefs's while the runtime
//!   does not answer. What was known before counts then; where nothing was, `judge` is `unknown` and nothing is judged.
//! - File systems that are made to be full and never written (squashfs, EROFS, …) are shown with `judge="none"`.

mod assess;
mod datastores;
mod paths;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::{Collector, Context, Mode, Slope, Utilization, alerts};
use crate::error::{Error, Result};
use crate::host::CallBudget;
use crate::host::filesystem::Filesystem;
use crate::humanize::percentage;
use crate::kubelet::handle::Kubelet;
use crate::metric::{Metric, Samples, Unit};
use crate::runtime::Runtime;
use crate::services::node_filesystems::NodeFilesystems;
use assess::{Located, assess};
use datastores::Datastores;
use paths::Holds;

const FILESYSTEM: &[&str] = &["mountpoint", "holds"];

/// Bytes that are left.
pub static AVAILABLE_BYTES: Metric = Metric::gauge(
    "headroom_system_filesystem_available_bytes",
    Unit::Bytes,
    FILESYSTEM,
    "Bytes left of a file system that the node needs and the kubelet does not evict for (statfs f_bavail). Missing on a tmpfs without a limit.\n\n\
     Label holds: what of the node lies on it, separated by commas. Root's reserve is not in it.",
);
/// Bytes that there are.
pub static CAPACITY_BYTES: Metric = Metric::gauge(
    "headroom_system_filesystem_capacity_bytes",
    Unit::Bytes,
    FILESYSTEM,
    "Size of a file system that the node needs and the kubelet does not evict for (statfs f_blocks).",
);
/// Inodes that are left.
pub static AVAILABLE_INODES: Metric = Metric::gauge(
    "headroom_system_filesystem_available_inodes",
    Unit::None,
    FILESYSTEM,
    "Free inodes of a file system that the node needs and the kubelet does not evict for (statfs f_ffree). Missing where inodes have no limit.",
);
/// Inodes that there are.
pub static CAPACITY_INODES: Metric = Metric::gauge(
    "headroom_system_filesystem_capacity_inodes",
    Unit::None,
    FILESYSTEM,
    "All inodes of a file system that the node needs and the kubelet does not evict for (statfs f_files).",
);
/// How much of either is left.
pub static HEADROOM: Metric = Metric::gauge(
    "headroom_system_filesystem_headroom_ratio",
    Unit::Ratio,
    &["mountpoint", "holds", "resource"],
    "Available / capacity of a file system that the node needs and the kubelet does not evict for. At 0 writes fail with ENOSPC.\n\n\
     Label resource: bytes or inodes.",
);
/// Whether it can be written.
pub static READONLY: Metric = Metric::gauge(
    "headroom_system_filesystem_readonly",
    Unit::None,
    FILESYSTEM,
    "1 if the file system takes no writes, as ext4, XFS and btrfs do not after an error: read-only, stopped, or not even its directory opens. A read-only mount of a healthy file system is 0.",
);
/// What lies where.
pub static PATH: Metric = Metric::info(
    "headroom_system_path_info",
    &["path", "holds", "mountpoint", "device", "fstype", "judge"],
    "A directory that the node needs, and the file system on which it lies. Label judge: which collector judges how full that is.\n\n\
     holds: runtime_state (no container starts or stops without it), runtime_root (images and metadata of the runtime), \
     logs (of containers and the node), cni (addresses of pods), datastore (etcd, or what stands for it), tmp. judge: \
     eviction (nodefs, imagefs or containerfs, which the kubelet evicts for), system_filesystem, none (made to be full), \
     unknown (it could not be told whether the kubelet evicts for it).",
);
/// How large the cluster's database is.
pub static DATABASE: Metric = Metric::gauge(
    "headroom_datastore_database_bytes",
    Unit::Bytes,
    &["path"],
    "Length of the database file of this node's etcd (member/snap/db), or of k3s's SQLite. Label path: the data directory.\n\n\
     etcd grows the file by up to 16 MiB before it needs them. Only a defragmentation makes it shorter.",
);
/// How large it may be.
pub static QUOTA: Metric = Metric::gauge(
    "headroom_datastore_quota_bytes",
    Unit::Bytes,
    &["path"],
    "Quota of this node's etcd (--quota-backend-bytes, 2 GiB by default). Once its database has that size, etcd takes no writes until it is compacted, defragmented and disarmed.\n\n\
     Missing where etcd has none (a negative value), and where it is not to be read.",
);

/// This mode.
pub static MODE: Mode = Mode {
    id: "system_filesystem",
    title: "a file system that nobody evicts for is full: /run, logs, CNI's state, etcd's disk",
    happened: "`/run` is out of inodes, or something else fills the disk of etcd: nothing is evicted, \
               no container starts",
    alerts: alerts!("system_filesystem"),
    metrics: &[
        &AVAILABLE_BYTES,
        &CAPACITY_BYTES,
        &AVAILABLE_INODES,
        &CAPACITY_INODES,
        &HEADROOM,
        &READONLY,
        &PATH,
        &DATABASE,
        &QUOTA,
    ],
    utilization: Some(Utilization {
        used: "1 - headroom_system_filesystem_headroom_ratio",
        limit: "headroom_system_filesystem_headroom_ratio * 0 + 1",
        slope: Some(Slope::Falls("headroom_system_filesystem_headroom_ratio")),
        text: |fullest| {
            let (mountpoint, resource) = (fullest.label("mountpoint"), fullest.label("resource"));
            format!("{mountpoint} has {} of its {resource} left", percentage(fullest.limit - fullest.used))
        },
    }),
    keeps: Some("where the data of an etcd is that ended, which file systems were last known to be evicted for"),
    needs_runtime: false,
    build: |_settings, services| {
        Box::new(SystemFilesystem {
            kubelet: services.kubelet.clone(),
            runtime: services.runtime.clone(),
            filesystems: services.filesystems.clone(),
            state: Mutex::default(),
        })
    },
};

struct SystemFilesystem {
    kubelet: Kubelet,
    runtime: Runtime,
    filesystems: NodeFilesystems,
    state: Mutex<State>,
}

/// What outlives a scrape.
#[derive(Debug, Default)]
struct State {
    datastores: Datastores,
    evicted: Evicted,
}

/// What the kubelet evicts for and what the runtime says of itself, as they were last known: a runtime does not answer
/// when its file system is full.
#[derive(Debug, Default)]
struct Evicted {
    nodefs: Option<Filesystem>,
    /// imagefs and containerfs; `None` while nobody ever told.
    images: Option<Vec<Filesystem>>,
    /// Its socket, and the directory of its images.
    runtime: Option<(String, Option<PathBuf>)>,
}

impl Collector for SystemFilesystem {
    fn collect(&self, context: Context<'_>) -> Result<Samples> {
        let Context { host, deadline, began } = context;
        let mut samples = Samples::new();
        let look = self.kubelet.look(host, deadline, began)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { datastores, evicted } = &mut *state;
        if let Some(found) = samples.ok(look.found()) {
            datastores.look(host, &found.datastores, deadline, &mut samples);
        }
        // What hangs on a disk, or a runtime that does not answer, comes last and is told by the mode that needs it.
        let disks = self.filesystems.look(host, &self.kubelet, &self.runtime, deadline, began)?;
        evicted.learn(&disks);
        let (endpoint, store) =
            evicted.runtime.as_ref().map_or((None, None), |(endpoint, store)| (Some(endpoint), store.as_ref()));
        let paths =
            paths::candidates(endpoint.map(String::as_str), store.map(PathBuf::as_path), datastores.directories());
        let asked: Vec<&Path> = paths.iter().map(|(path, _)| path.as_path()).collect();
        let answers = host.filesystem_of_each(&asked, &disks.mounts, &mut CallBudget::new(deadline));
        let mut located = Vec::new();
        for ((path, holds), answer) in paths.iter().zip(answers) {
            match answer {
                Ok(filesystem) if *holds == Holds::Datastore && !datastores.is_meant(path, &filesystem) => {
                    let what = "not the file system on which etcd has its data: it was unmounted, something is mounted \
                                over it, or --path.rootfs is mounted without mountPropagation: HostToContainer";
                    samples.fail(Error::malformed(format!("{}: {what}", path.display())));
                }
                Ok(filesystem) => located.push(Located { path: path.clone(), holds: *holds, filesystem }),
                Err(error) if error.is_gone() => {}
                Err(error) => samples.fail(error),
            }
        }
        datastores.forget(|path| asked.contains(&path) && !located.iter().any(|one| one.path == path));
        if located.is_empty() && samples.errors().is_empty() {
            // No machine is without /run and /tmp.
            let what =
                "none of the directories that a node needs is there: is the machine's / where --path.rootfs says?";
            samples.fail(Error::absent(what));
        }
        let databases = datastores.measure(host, deadline, &mut samples);
        assess(&located, evicted, &databases, &mut samples);
        Ok(samples)
    }
}
