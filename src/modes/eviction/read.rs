//! Reads the evidence: what the kubelet was told, memory, pids, and the file systems of the three roles.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Reason, Result};
use crate::host::cgroup::{self, Layout};
use crate::host::filesystem::Filesystem;
use crate::host::{CallBudget, Host, text};
use crate::kubelet::cgroup_name::pods_cgroups;
use crate::kubelet::configuration::{Configuration, Source};
use crate::kubelet::configz::drift::Drift;
use crate::kubelet::handle::{Effective, Kubelet};
use crate::kubelet::process::PassedOver;
use crate::kubelet::signals::{self, Observation, Signal};
use crate::kubelet::thresholds::Thresholds;
use crate::kubelet::version::{self, Version};
use crate::modes::Context;
use crate::runtime::{Images, Inventory, Runtime};

/// How long the runtime may take.
const RUNTIME: Duration = Duration::from_secs(5);

/// What a kubelet takes for the file system of the containers' writable layers.
#[derive(Clone, Debug, Default)]
pub enum Containerfs {
    /// That of the images: on the CRI path always.
    #[default]
    Imagefs,
    /// One of its own, with the thresholds of nodefs (KEP-4191): of CRI-O, since 1.31.
    Own(Filesystem),
    /// None: before 1.29 there is no such signal.
    None,
}

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
    pub fn read(context: Context<'_>, kubelet: &Kubelet, runtime: &Runtime) -> Result<Self> {
        let Context { host, deadline, began } = context;
        let mut snapshot = Snapshot::default();
        let mut statfs = Statfs { host, budget: CallBudget::new(deadline), asked: Vec::new() };
        let version = kubelet.version();
        let before = |minor| version::before(version.as_ref(), minor);
        snapshot.asks_zfs = !before(36);
        snapshot.read_memory(host, version.as_ref());
        snapshot.read_pids(host);

        let look = kubelet.look(host, deadline, began)?;
        let found =
            snapshot.ok(look.found()).map(|found| snapshot.passed_over.clone_from(&found.passed_over)).is_some();
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

        let told_root = look.names_root_dir();
        if told_root || found {
            let root = look.root_dir().and_then(|dir| statfs.of_root_dir(&dir, told_root));
            snapshot.nodefs = snapshot.ok(root);
        }
        // Last, so that a runtime that does not answer takes no time from the others.
        match runtime.inventory(host, deadline.part(RUNTIME)) {
            Ok(inventory) => {
                snapshot.take_images(&inventory, &mut statfs);
                if let Some(path) = inventory.container_filesystem.as_ref().filter(|_| !before(31)) {
                    snapshot.take_containerfs(Path::new(path), &mut statfs);
                }
            }
            Err(error) if error.reason() == Reason::Absent => {
                let imagefs = statfs.of_image_store(look.runtime_endpoint(host, deadline));
                snapshot.imagefs = snapshot.ok(imagefs).flatten();
            }
            // Nor does the kubelet know an imagefs then, and what lies on the disk may be another runtime's.
            Err(error) => snapshot.errors.push(error.context("imagefs, by the runtime")),
        }
        if before(29) {
            snapshot.containerfs = Containerfs::None;
        }
        Ok(snapshot)
    }

    /// By the word of the runtime: the first file system it names, as the kubelet takes it
    /// (`stats/cri_stats_provider.go:505`), and its images.
    fn take_images(&mut self, inventory: &Inventory, statfs: &mut Statfs<'_>) {
        self.images = inventory.images;
        self.errors.extend(inventory.errors.iter().cloned());
        let answer = match inventory.image_filesystems.first() {
            Some(mountpoint) => statfs.of(Path::new(mountpoint)),
            None if inventory.errors.is_empty() => Err(Error::malformed("the runtime names no image file system")),
            None => return,
        };
        self.imagefs = self.ok(answer.map_err(|error| error.context("imagefs, by the runtime")));
    }

    /// A split image store: images on one device and the containers' layers on another.
    fn take_containerfs(&mut self, path: &Path, statfs: &mut Statfs<'_>) {
        let own = self.ok(statfs.of(path).map_err(|error| error.context("containerfs, by the runtime")));
        if let (Some(imagefs), Some(own)) = (&self.imagefs, own)
            && signals::dedicated(imagefs, &own) == Some(true)
        {
            self.containerfs = Containerfs::Own(own);
        }
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

/// Asks each path for its file system once per scrape.
struct Statfs<'a> {
    host: &'a Host,
    budget: CallBudget,
    asked: Vec<(PathBuf, Result<Filesystem>)>,
}

/// Where runtimes keep images unless they are told otherwise: the word in their endpoint, and the directory.
const IMAGE_STORES: [(&str, &str); 5] = [
    // Before containerd, whose word is in this endpoint as well: /run/k3s/containerd/containerd.sock.
    ("/k3s/", "/var/lib/rancher/k3s/agent/containerd"),
    ("/k3s/", "/var/lib/rancher/rke2/agent/containerd"),
    ("containerd", "/var/lib/containerd"),
    ("crio", "/var/lib/containers/storage"),
    ("docker", "/var/lib/docker"),
];

impl Statfs<'_> {
    fn of(&mut self, path: &Path) -> Result<Filesystem> {
        if let Some((_, answer)) = self.asked.iter().find(|(asked, _)| asked == path) {
            return answer.clone();
        }
        let answer = self.host.filesystem(path, self.budget.next());
        self.budget.note(&answer);
        self.asked.push((path.to_owned(), answer.clone()));
        answer
    }

    /// nodefs. Where nobody named the directory and it is not there, the file system that it would come to lie on.
    fn of_root_dir(&mut self, dir: &Path, told: bool) -> Result<Filesystem> {
        let mut dir = dir;
        loop {
            match (self.of(dir), dir.parent()) {
                (Err(error), Some(parent)) if error.is_gone() && !told => dir = parent,
                (answer, _) => {
                    let about = "nodefs, the kubelet's root directory (--kubelet.root-dir names another)";
                    return answer.map_err(|error| error.context(about));
                }
            }
        }
    }

    /// imagefs: the store of the runtime that the kubelet's endpoint names; without a name the one that is there, if
    /// all that are there lie on one device. Otherwise nothing: a guess would be wrong on just the nodes that matter.
    fn of_image_store(&mut self, endpoint: Option<&str>) -> Result<Option<Filesystem>> {
        let named = endpoint.and_then(|endpoint| IMAGE_STORES.iter().find(|(word, _)| endpoint.contains(word)));
        let candidates = IMAGE_STORES.iter().filter(|(word, _)| named.is_none_or(|(name, _)| name == word));
        if endpoint.is_some() && named.is_none() {
            return Ok(None);
        }
        let mut stores: Vec<Filesystem> = Vec::new();
        for (_, dir) in candidates {
            stores.extend(self.of_store(Path::new(dir))?);
        }
        let first = stores.first().cloned();
        let one_device =
            |first: &Filesystem| stores.iter().all(|store| signals::dedicated(first, store) == Some(false));
        Ok(first.filter(|first| stores.len() == 1 || one_device(first)))
    }

    fn of_store(&mut self, dir: &Path) -> Result<Option<Filesystem>> {
        let about = |error: Error| error.context("imagefs, the runtime's image store");
        // Asked first: to list a directory on a dead mount would hang us.
        match self.of(dir) {
            Err(error) if error.is_gone() => return Ok(None),
            Err(error) => return Err(about(error)),
            Ok(_) => {}
        }
        let Ok(entries) = self.host.tree().list(dir) else { return Ok(None) };
        let exists = |name: &str| entries.iter().any(|(entry, _)| entry == name);
        // The directories that ImageFsInfo names as mount points.
        let below = match dir.file_name().and_then(|name| name.to_str()) {
            Some("containerd") => {
                let prefix = "io.containerd.snapshotter.v1.";
                let overlayfs = format!("{prefix}overlayfs");
                let any = entries.iter().filter_map(|(name, _)| name.to_str()).find(|name| name.starts_with(prefix));
                if exists(&overlayfs) { Some(overlayfs) } else { any.map(str::to_owned) }
            }
            Some("storage") => exists("overlay-images").then(|| "overlay-images".to_owned()),
            _ => None,
        };
        match below {
            Some(name) => self.of(&dir.join(name)).map(Some).map_err(about),
            None => self.of(dir).map(Some).map_err(about),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::filesystem::Mount;
    use crate::host::{Deadline, Roots};

    fn on(device: &str, capacity_bytes: u64) -> Filesystem {
        let mount = Mount { device: device.into(), mountpoint: "/".into(), fstype: "ext4".into(), readonly: false };
        Filesystem { capacity_bytes, available_bytes: 1, inodes: 9, inodes_free: 1, mount: Some(mount) }
    }

    /// The capacity of the image store found on a machine with these directories and file systems.
    fn store(dirs: &[&str], disks: &[(&str, &str, u64)], endpoint: Option<&str>) -> Option<u64> {
        let dir = tempfile::tempdir().unwrap();
        for name in dirs {
            std::fs::create_dir_all(dir.path().join(&name[1..])).unwrap();
        }
        // Every store directory has an entry of its own, absent ones none, so that what is not there is not there.
        let table = disks.iter().map(|&(path, device, size)| (path.into(), on(device, size))).collect();
        let host = Host::recorded(Roots { root: dir.path().into(), ..Roots::default() }, table);
        let deadline = Deadline::after(Duration::from_secs(5));
        let mut statfs = Statfs { host: &host, budget: CallBudget::new(deadline), asked: Vec::new() };
        statfs.of_image_store(endpoint).unwrap().map(|filesystem| filesystem.capacity_bytes)
    }

    const CONTAINERD: &str = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs";
    const NATIVE: &str = "/var/lib/containerd/io.containerd.snapshotter.v1.native";
    const CRIO: &str = "/var/lib/containers/storage/overlay-images";
    const DOCKER: &str = "/var/lib/docker";

    #[test]
    fn the_named_runtime_counts() {
        let disks = [("/", "/dev/a", 1), (CONTAINERD, "/dev/a", 2), (CRIO, "/dev/b", 3), (DOCKER, "/dev/a", 4)];
        let all = [CONTAINERD, NATIVE, CRIO, DOCKER];
        assert_eq!(store(&all, &disks, Some("unix:///run/containerd/containerd.sock")), Some(2));
        assert_eq!(store(&all, &disks, Some("unix:///var/run/crio/crio.sock")), Some(3));
        assert_eq!(store(&all, &disks, Some("unix:///run/cri-dockerd.sock")), Some(4));
        assert_eq!(store(&all, &disks, Some("unix:///run/k3s/containerd/containerd.sock")), None);
        assert_eq!(store(&all, &disks, Some("unix:///run/other.sock")), None, "a runtime that we do not know");
        assert_eq!(store(&[DOCKER], &disks, Some("unix:///run/crio/crio.sock")), None, "its store is elsewhere");
    }

    #[test]
    fn unnamed_it_is_taken_only_if_there_is_no_doubt() {
        let disks = [("/", "/dev/a", 1), (CONTAINERD, "/dev/a", 2), (CRIO, "/dev/b", 3), (DOCKER, "/dev/a", 4)];
        assert_eq!(store(&[CONTAINERD], &disks, None), Some(2));
        assert_eq!(store(&[CONTAINERD, DOCKER], &disks, None), Some(2), "two on one device");
        assert_eq!(store(&[CONTAINERD, CRIO], &disks, None), None, "two on two devices");
        assert_eq!(store(&[], &disks, None), None);
    }

    #[test]
    fn the_snapshotter_may_lie_on_a_disk_of_its_own() {
        let disks = [("/", "/dev/a", 1), (NATIVE, "/dev/b", 5)];
        assert_eq!(store(&[NATIVE], &disks, None), Some(5));
        assert_eq!(store(&["/var/lib/containerd"], &disks, None), Some(1));
    }
}
