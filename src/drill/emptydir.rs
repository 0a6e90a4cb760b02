//! A memory-backed emptyDir of a pod that no apiserver knows, which a running kubelet leaves alone.
//!
//! Every two seconds a kubelet removes the cgroup and the directory of each pod that it does not know, its processes
//! with it (`cleanupOrphanedPodCgroups` of `pkg/kubelet/kubelet_pods.go`, `cleanupOrphanedPodDirs` of
//! `kubelet_volumes.go`). It leaves those that have a volume mounted (`podVolumesExist`). So the pod's directory is
//! made with the mount in it under a name at which no kubelet looks, and renamed to its place: at no moment is it there
//! without the mount. The pod's cgroup must come after it, and go before.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::cgroups::mount_tmpfs;
use super::journal::{Item, Journal, MARK};
use super::kubelet::RootDir;
use super::paths::is_mounted_for;
use super::{Result, failed, refused, tried};

/// Below a pod's directory, as the kubelet has it.
const PLUGIN: &str = "volumes/kubernetes.io~empty-dir";

/// One that is mounted.
pub(super) struct EmptyDir {
    pub(super) path: PathBuf,
    /// `st_dev` of its tmpfs.
    device: u64,
}

/// Where it will be.
pub(super) fn place(root: &RootDir, uid: &str) -> PathBuf {
    pod(root, uid).join(volume())
}

fn pod(root: &RootDir, uid: &str) -> PathBuf {
    root.path.join("pods").join(uid)
}

fn volume() -> PathBuf {
    Path::new(PLUGIN).join(format!("{MARK}cache"))
}

impl EmptyDir {
    /// Mounts it in the directory of a pod.
    pub(super) fn make(journal: &mut Journal, root: &RootDir, uid: &str, size: u64) -> Result<Self> {
        let pod = pod(root, uid);
        let stage = root.path.join(format!("{MARK}{}", Journal::number()));
        if let Some(taken) = [&pod, &stage].into_iter().find(|path| path.exists()) {
            return refused(format_args!("{} exists: another drill's?", taken.display()));
        }
        // Where no kubelet ever ran.
        journal.make_dirs(&root.path.join("pods"))?;
        journal.note(Item::Dir(stage.clone()))?;
        let staged = stage.join(uid);
        // Whatever is undone is undone under both names: one of them is the right one at any moment.
        for pod in [&pod, &staged] {
            let volume = pod.join(volume());
            let inside: Vec<&Path> = volume.ancestors().skip(1).take_while(|path| path.starts_with(pod)).collect();
            for path in inside.into_iter().rev() {
                journal.note(Item::Dir(path.to_owned()))?;
            }
            // Should somebody unmount it, what writes into the volume may write one more file below.
            journal.note(Item::Tree(volume.clone()))?;
            journal.note(Item::Mount(volume))?;
        }
        let within = staged.join(volume());
        let made = fs::DirBuilder::new().recursive(true).mode(0o750).create(&within);
        tried(within.display(), made)?;
        mount_tmpfs(&within, size)?;
        if let Err(error) = fs::rename(&staged, &pod) {
            return failed(format_args!("{} to {}: {error}", staged.display(), pod.display()));
        }
        let path = pod.join(volume());
        if let Some(kubelet) = root.kubelet.filter(|kubelet| !is_mounted_for(&kubelet.to_string(), &path)) {
            return failed(format_args!(
                "the kubelet, process {kubelet}, does not see what is mounted at {}: run the drill among its mounts (nsenter \
                 --mount --target {kubelet})",
                path.display()
            ));
        }
        let device = tried(path.display(), fs::metadata(&path))?.dev();
        Ok(EmptyDir { path, device })
    }

    /// An error once it is not mounted any more.
    pub(super) fn check(&self) -> Result<()> {
        if fs::metadata(&self.path).is_ok_and(|meta| meta.dev() == self.device) {
            return Ok(());
        }
        failed(format_args!(
            "the volume at {} was unmounted: a kubelet that starts does so to volumes that it does not know, so look whether it was \
             restarted, and run the drill again",
            self.path.display()
        ))
    }
}
