//! Which memory-backed emptyDirs are mounted, and how full they are.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::Volume;
use crate::error::{Error, Result};
use crate::host::filesystem::{DeviceNumber, Mount, Usage};
use crate::host::{CallBudget, Deadline, Host};
use crate::metric::Samples;

/// The directory of every emptyDir in its pod's (`pkg/volume/emptydir/empty_dir.go:67`, the `/` of the plugin's name
/// escaped).
pub(super) const EMPTY_DIR: &str = "kubernetes.io~empty-dir";

/// Every memory-backed emptyDir below the kubelet's `root_dir`: what the machine has, whether or not it was passed on
/// to our own mount namespace.
pub(super) fn find(host: &Host, kubelet: Option<u32>, root_dir: &Path, deadline: Deadline) -> Result<Vec<Volume>> {
    let found = mounted(host, kubelet, deadline)?;
    // The kernel shows where a mount really is. Links are only followed if that explains something.
    let elsewhere = found.iter().any(|(of_kubelet, _)| of_kubelet != root_dir);
    let resolved = if elsewhere { host.resolve(root_dir, deadline) } else { Ok(root_dir.to_owned()) };
    let resolved = match resolved {
        Err(error) if error.is_gone() => root_dir.to_owned(),
        other => other.map_err(|error| error.context("the kubelet's root directory"))?,
    };
    let ours = found.into_iter().filter(|(of_kubelet, _)| of_kubelet == root_dir || *of_kubelet == resolved);
    Ok(ours.map(|(_, volume)| volume).collect())
}

/// By the mount tables of pid 1 and of the kubelet, which may have a mount namespace of its own: then the volumes are
/// there, and what was mounted before it got that is still where it was.
fn mounted(host: &Host, kubelet: Option<u32>, deadline: Deadline) -> Result<Vec<(PathBuf, Volume)>> {
    let of = |pid: u32| {
        let table = host.mount_table(pid, deadline);
        table.map(|table| parse(&table, &host.roots().root)).map_err(|error| error.context("mount table"))
    };
    match (of(1), kubelet.map(of)) {
        (Ok(machine), Some(Ok(kubelet))) => {
            let mut all: BTreeMap<_, _> = machine.into_iter().map(|found| (found.1.path.clone(), found)).collect();
            all.extend(kubelet.into_iter().map(|found| (found.1.path.clone(), found)));
            Ok(all.into_values().collect())
        }
        (_, Some(Err(error))) if !error.is_gone() => Err(error),
        (_, Some(Ok(one))) | (Ok(one), _) => Ok(one),
        (Err(error), _) => Err(error),
    }
}

/// The tmpfs mounts of a mountinfo text that are emptyDirs, each with the root directory of its kubelet. `rootfs`:
/// where the machine's root is mounted, in case that it is the table of a container.
pub(super) fn parse(mountinfo: &str, rootfs: &Path) -> Vec<(PathBuf, Volume)> {
    let mut found = BTreeMap::new();
    for line in mountinfo.lines().filter(|line| line.contains(EMPTY_DIR)) {
        let Some((device, mount)) = DeviceNumber::of_row(line).zip(Mount::parse(line)) else { continue };
        if mount.fstype != "tmpfs" {
            continue;
        }
        let below = mount.mountpoint.strip_prefix(rootfs).map(|below| Path::new("/").join(below));
        let path = below.unwrap_or(mount.mountpoint);
        if let Some((root_dir, pod_uid, name)) = place(&path) {
            let volume = Volume { pod_uid: pod_uid.to_owned(), name: name.to_owned(), path: path.clone(), device };
            let root_dir = root_dir.to_owned();
            // Of two at one place the later covers the earlier.
            found.insert(path, (root_dir, volume));
        }
    }
    found.into_values().collect()
}

/// `<root-dir>/pods/<uid>/volumes/kubernetes.io~empty-dir/<name>`, taken apart.
fn place(path: &Path) -> Option<(&Path, &str, &str)> {
    let name = path.file_name()?.to_str()?;
    let plugin = path.parent()?;
    let volumes = plugin.parent()?;
    let pod = volumes.parent()?;
    let pods = pod.parent()?;
    let shaped = plugin.ends_with(EMPTY_DIR) && volumes.ends_with("volumes") && pods.ends_with("pods");
    shaped.then_some((pods.parent()?, pod.file_name()?.to_str()?, name))
}

/// How full each of `volumes` is; `None` where that cannot be had.
pub(super) fn measure(
    host: &Host,
    kubelet: Option<u32>,
    volumes: &[Volume],
    deadline: Deadline,
    samples: &mut Samples,
) -> Vec<Option<Usage>> {
    let mut usages = vec![None; volumes.len()];
    let mut hidden: Vec<usize> = (0..volumes.len()).collect();
    let mut patience = CallBudget::new(deadline);
    // A kubelet in a container, or in a mount namespace of its own, may see what the machine's root does not show.
    for tree in [host.tree()].into_iter().chain(kubelet.map(|pid| host.tree_of(pid))) {
        let asked = std::mem::take(&mut hidden);
        let mounts: Vec<_> = asked.iter().map(|&index| (&*volumes[index].path, volumes[index].device)).collect();
        for (index, answer) in asked.into_iter().zip(host.usages(&tree, &mounts, &mut patience)) {
            match answer {
                Ok(Some(usage)) => usages[index] = Some(usage),
                Ok(None) => hidden.push(index),
                Err(error) if error.is_gone() => hidden.push(index),
                Err(error) => samples.fail(error),
            }
        }
    }
    if !hidden.is_empty() {
        // Those that were unmounted meanwhile are no failure.
        let now = mounted(host, kubelet, deadline).unwrap_or_default();
        let now: HashMap<PathBuf, DeviceNumber> =
            now.into_iter().map(|(_, volume)| (volume.path, volume.device)).collect();
        hidden.retain(|&index| now.get(&volumes[index].path) == Some(&volumes[index].device));
    }
    if let Some(&first) = hidden.first() {
        samples.fail(Error::malformed(format!(
            "{}: not the file system that the mount table names ({} such volumes): something is mounted over it, or \
             --path.rootfs is mounted without mountPropagation: HostToContainer",
            volumes[first].path.display(),
            hidden.len()
        )));
    }
    usages
}
