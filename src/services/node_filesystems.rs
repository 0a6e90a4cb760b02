//! nodefs, imagefs and containerfs: the file systems that the kubelet evicts for, and which they are.
//!
//! Two modes need them: one judges them by the kubelet's thresholds, the other must leave just these alone. So they are
//! looked at once a scrape, whoever asks.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, Reason, Result};
use crate::host::filesystem::{Filesystem, MountView};
use crate::host::single_flight::SingleFlight;
use crate::host::{CallBudget, Deadline, Host};
use crate::kubelet::handle::Kubelet;
use crate::kubelet::signals;
use crate::kubelet::version;
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

/// What one moment shows of them.
#[derive(Clone, Debug, Default)]
pub struct Disks {
    /// The file system of the kubelet's root directory.
    pub nodefs: Option<Filesystem>,
    /// The file system of the runtime's image store.
    pub imagefs: Option<Filesystem>,
    /// The file system of the containers' writable layers, as this kubelet takes it.
    pub containerfs: Containerfs,
    /// The socket at which the runtime answered, and the directory that it names for its images.
    pub runtime: Option<(String, Option<PathBuf>)>,
    /// The images in it, where a runtime tells.
    pub images: Option<Images>,
    /// Neither the runtime nor its store in its usual place could tell which imagefs is: it is not known that there is
    /// none.
    pub imagefs_untold: bool,
    /// What could not be read.
    pub errors: Vec<Error>,
    /// The mount table that this look used, for others of the same scrape.
    pub mounts: MountView,
}

/// Looks at them once a scrape. A clone shares that look.
#[derive(Clone, Debug, Default)]
pub struct NodeFilesystems(Arc<SingleFlight<Result<Arc<Disks>>>>);

impl NodeFilesystems {
    /// As they were at `since` or later.
    ///
    /// # Errors
    /// Timeout, if a look under way does not end before the deadline.
    pub fn look(
        &self,
        host: &Host,
        kubelet: &Kubelet,
        runtime: &Runtime,
        deadline: Deadline,
        since: Instant,
    ) -> Result<Arc<Disks>> {
        let look = || Disks::read(host, kubelet, runtime, deadline, since).map(Arc::new);
        let landed = self.0.since(since, deadline, look);
        let late = || Error::new(Reason::Timeout, "nodefs and imagefs: not looked at before the deadline");
        landed.ok_or_else(late)?.value
    }
}

impl Disks {
    fn read(host: &Host, kubelet: &Kubelet, runtime: &Runtime, deadline: Deadline, since: Instant) -> Result<Self> {
        let mut disks = Disks::default();
        let mounts = disks.mounts.clone();
        let mut statfs = Statfs { host, mounts, budget: CallBudget::new(deadline), asked: Vec::new() };
        let version = kubelet.version();
        let before = |minor| version::before(version.as_ref(), minor);
        let look = kubelet.look(host, deadline, since)?;
        let told_root = look.names_root_dir();
        if told_root || look.found().is_ok() {
            let root = look.root_dir().and_then(|dir| statfs.of_root_dir(&dir, told_root));
            disks.nodefs = disks.ok(root);
        }
        // Last, so that a runtime that does not answer takes no time from the others.
        match runtime.inventory(host, deadline.part(RUNTIME)) {
            Ok(inventory) => {
                disks.take_images(&inventory, &mut statfs);
                if let Some(path) = inventory.container_filesystem.as_ref().filter(|_| !before(31)) {
                    disks.take_containerfs(Path::new(path), &mut statfs);
                }
            }
            Err(error) if error.reason() == Reason::Absent => {
                let imagefs = statfs.of_image_store(look.runtime_endpoint(host, deadline));
                disks.imagefs_untold = imagefs.is_err();
                disks.imagefs = disks.ok(imagefs).flatten();
            }
            // Nor does the kubelet know an imagefs then, and what lies on the disk may be another runtime's.
            Err(error) => {
                disks.imagefs_untold = true;
                disks.errors.push(error.context("imagefs, by the runtime"));
            }
        }
        if before(29) {
            disks.containerfs = Containerfs::None;
        }
        Ok(disks)
    }

    fn ok<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.errors.push(error)).ok()
    }

    /// By the word of the runtime: the first file system it names, as the kubelet takes it
    /// (`stats/cri_stats_provider.go:505`), and its images.
    fn take_images(&mut self, inventory: &Inventory, statfs: &mut Statfs<'_>) {
        self.images = inventory.images;
        self.errors.extend(inventory.errors.iter().cloned());
        let store = inventory.image_filesystems.first().map(PathBuf::from);
        self.runtime = Some((inventory.identity.endpoint.clone(), store));
        let answer = match inventory.image_filesystems.first() {
            Some(mountpoint) => statfs.of(Path::new(mountpoint)),
            None if inventory.errors.is_empty() => Err(Error::malformed("the runtime names no image file system")),
            None => {
                self.imagefs_untold = true;
                return;
            }
        };
        self.imagefs_untold = answer.is_err();
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
}

/// Asks each path for its file system once per scrape.
struct Statfs<'a> {
    host: &'a Host,
    mounts: MountView,
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
        let answer = self.host.filesystem_seen(path, &self.mounts, self.budget.next());
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
        let mount = Mount {
            device: device.into(),
            mountpoint: "/".into(),
            fstype: "ext4".into(),
            readonly: false,
            number: None,
        };
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
        let (budget, mounts) = (CallBudget::new(deadline), MountView::default());
        let mut statfs = Statfs { host: &host, mounts, budget, asked: Vec::new() };
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
