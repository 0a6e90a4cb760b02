//! Reads the evidence: what the kubelet was told, memory, pids, and the file systems of the three roles.

use std::path::Path;

use crate::error::{Error, Result};
use crate::host::cgroup::{self, Layout};
use crate::host::filesystem::Filesystem;
use crate::host::{Host, text};
use crate::kubelet::cgroup_name::pods_cgroups;
use crate::kubelet::configuration::{Configuration, Source};
use crate::kubelet::configz::drift::Drift;
use crate::kubelet::handle::{Effective, Kubelet};
use crate::kubelet::process::PassedOver;
use crate::kubelet::signals::{self, Observation, Signal};
use crate::kubelet::thresholds::Thresholds;
use crate::kubelet::version::{self, Version};
use crate::modes::Context;
use crate::runtime::{Images, Runtime};
use crate::services::node_filesystems::{Containerfs, Disks, NodeFilesystems};

/// Everything that one scrape read.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// The configuration and its thresholds; `None` if the kubelet's could not be had (the errors say why).
    pub kubelet: Option<(Configuration, Thresholds)>,
    /// Where it came from.
    pub sources: Vec<Source>,
    /// What a restart of the kubelet would change; empty unless both sides are known.
    pub drift: Vec<Drift>,
    /// `memory.available`
    pub memory: Option<Observation>,
    /// `MemAvailable` of meminfo.
    pub mem_available: Option<u64>,
    /// `allocatableMemory.available`
    pub allocatable: Option<Observation>,
    /// `pid.available`
    pub pids: Option<Observation>,
    /// The file system of the kubelet's root directory.
    pub nodefs: Option<Filesystem>,
    /// The file system of the runtime's image store.
    pub imagefs: Option<Filesystem>,
    /// The file system of the containers' writable layers, as this kubelet takes it.
    pub containerfs: Containerfs,
    /// This kubelet asks `zfs list` about ZFS, whose capacity is another than `statfs(2)` gives, and which counts no
    /// inodes (cAdvisor's `fs/zfs/plugin.go`, since 1.36).
    pub asks_zfs: bool,
    /// The images in it, where a runtime tells.
    pub images: Option<Images>,
    /// What could not be read.
    pub errors: Vec<Error>,
    /// Why the kubelet itself could not be asked, where its files and flags tell all the same.
    pub unasked: Option<Error>,
    /// Its process and when that started; `None` while it does not run or cannot be looked at.
    pub process: Option<(u32, u64)>,
    /// Who looks like this node's kubelet and is not.
    pub passed_over: Vec<PassedOver>,
}

impl Snapshot {
    /// Reads it all. What cannot be read is `None`, with an error unless the kernel merely has no such file.
    ///
    /// # Errors
    /// Timeout, if a look at the kubelet that is under way does not end in time.
    pub fn read(
        context: Context<'_>,
        kubelet: &Kubelet,
        runtime: &Runtime,
        filesystems: &NodeFilesystems,
    ) -> Result<Self> {
        let Context { host, deadline, began } = context;
        let mut snapshot = Snapshot::default();
        let version = kubelet.version();
        snapshot.asks_zfs = !version::before(version.as_ref(), 36);
        snapshot.read_memory(host, version.as_ref());
        snapshot.read_pids(host);

        let look = kubelet.look(host, deadline, began)?;
        if let Some(found) = snapshot.ok(look.found()) {
            snapshot.passed_over.clone_from(&found.passed_over);
        }
        snapshot.process = look.instance(host).ok().flatten();
        let Effective { configuration, sources, drift, errors, unasked } = look.effective(host, deadline).clone();
        (snapshot.kubelet, snapshot.sources, snapshot.drift) = (configuration, sources, drift);
        snapshot.unasked = unasked;
        snapshot.errors.extend(errors);
        let pods = Signal::AllocatableMemoryAvailable;
        let allowed = snapshot.kubelet.as_ref().filter(|(_, thresholds)| thresholds.watch(pods));
        if let Some((configuration, _)) = allowed.filter(|_| !snapshot.sources.contains(&Source::Default)) {
            let pods = pods_memory(host, &configuration.cgroup_root);
            snapshot.allocatable = snapshot.ok(pods).flatten();
        }

        // Last, so that a runtime that does not answer takes no time from the others.
        let disks = filesystems.look(host, kubelet, runtime, deadline, began)?;
        let Disks { nodefs, imagefs, containerfs, images, errors, .. } = (*disks).clone();
        (snapshot.nodefs, snapshot.imagefs, snapshot.containerfs) = (nodefs, imagefs, containerfs);
        snapshot.images = images;
        snapshot.errors.extend(errors);
        Ok(snapshot)
    }

    /// True if nothing of what a node has was there, and nothing stood in the way of reading it.
    pub fn is_empty(&self) -> bool {
        let observed = self.memory.is_some() || self.mem_available.is_some() || self.pids.is_some();
        let observed = observed || self.nodefs.is_some() || self.imagefs.is_some();
        !observed && self.errors.iter().all(Error::is_gone)
    }

    fn ok<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.errors.push(error)).ok()
    }

    fn read_memory(&mut self, host: &Host, version: Option<&Version>) {
        let meminfo = host.read_some(host.proc("meminfo"));
        let Some(meminfo) = self.ok(meminfo).flatten() else { return };
        self.mem_available = text::meminfo_bytes(&meminfo, "MemAvailable");
        let Some(total) = text::meminfo_bytes(&meminfo, "MemTotal") else {
            self.errors.push(Error::malformed(format!("{}: no MemTotal", host.proc("meminfo").display())));
            return;
        };
        let working_set = node_working_set(host, version, &meminfo);
        self.memory = self.ok(working_set).flatten().map(|working_set| signals::memory(total, working_set));
    }

    fn read_pids(&mut self, host: &Host) {
        let mut number = |name: &str| {
            let path = host.proc(name);
            let read = match host.read_number(path) {
                Ok(number) => Ok(Some(number)),
                Err(error) if error.is_gone() => Ok(None),
                Err(error) => Err(error),
            };
            self.ok(read).flatten()
        };
        let (pid_max, threads_max) = (number("sys/kernel/pid_max"), number("sys/kernel/threads-max"));
        let loadavg = host.read_some(host.proc("loadavg"));
        if let Some(loadavg) = self.ok(loadavg).flatten() {
            self.pids = signals::pids(pid_max, threads_max, &loadavg);
        }
    }
}

/// The node's working set; `None` on a kernel that does not account memory by cgroup. A container's own cgroup, which a
/// runtime shows in its `/sys`, has the same files: never the node's.
fn node_working_set(host: &Host, version: Option<&Version>, meminfo: &str) -> Result<Option<u64>> {
    let malformed =
        |path: &Path| Error::malformed(format!("{}: figures of the working set are missing", path.display()));
    // The v1 controller wins on a hybrid hierarchy: its cgroup2 has no memory controller.
    let v1 = host.sys("fs/cgroup/memory");
    match host.read_number(v1.join("memory.usage_in_bytes")) {
        Ok(usage) => {
            cgroup::is_the_machines(host, &v1)?;
            let path = v1.join("memory.stat");
            let stat = host.read(&path)?;
            return signals::node_working_set_v1(usage, &stat).map(Some).ok_or_else(|| malformed(&path));
        }
        Err(error) if error.is_gone() => {}
        Err(error) => return Err(error),
    }
    let path = host.sys("fs/cgroup/memory.stat");
    match host.read_some(&path)? {
        Some(stat) => {
            cgroup::is_the_machines(host, &host.sys("fs/cgroup"))?;
            signals::node_working_set_v2(version, &stat, meminfo).map(Some).ok_or_else(|| malformed(&path))
        }
        // Fails if there are cgroups that we are not shown.
        None => Layout::find(host).map(|_| None).map_err(|error| error.context("memory.available")),
    }
}

/// Memory of the cgroup of all pods: `kubepods`, or `kubepods.slice` where systemd makes it, below the kubelet's
/// `cgroupRoot`. `None` if there is none or it has no limit.
fn pods_memory(host: &Host, cgroup_root: &str) -> Result<Option<Observation>> {
    let v1 = host.sys("fs/cgroup/memory");
    let v2 = host.sys("fs/cgroup");
    for name in pods_cgroups(cgroup_root) {
        let dir = v1.join(&name);
        if let Some(limit) = host.read_some(dir.join("memory.limit_in_bytes"))? {
            return observe_pods(host, &dir, &limit, "memory.usage_in_bytes", "total_inactive_file");
        }
        let dir = v2.join(&name);
        if let Some(limit) = host.read_some(dir.join("memory.max"))? {
            return observe_pods(host, &dir, &limit, "memory.current", "inactive_file");
        }
    }
    Ok(None)
}

fn observe_pods(host: &Host, dir: &Path, limit: &str, usage: &str, inactive: &str) -> Result<Option<Observation>> {
    let limit = match limit.trim() {
        "max" => return Ok(None),
        text => {
            text.parse().map_err(|_| Error::malformed(format!("{}: not a memory limit: {text:?}", dir.display())))?
        }
    };
    let usage = host.read_number(dir.join(usage))?;
    let path = dir.join("memory.stat");
    let inactive = text::keyed(&host.read(&path)?, inactive)
        .ok_or_else(|| Error::malformed(format!("{}: no {inactive}", path.display())))?;
    Ok(signals::allocatable(limit, signals::working_set(usage, inactive)))
}
