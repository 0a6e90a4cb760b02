//! Which memory-backed emptyDirs are mounted, and how full they are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Volume;
use crate::error::{Error, Result};
use crate::host::filesystem::{DeviceNumber, Mount, Usage};
use crate::host::mount_table::WatchedMounts;
use crate::host::{CallBudget, Deadline, Host};
use crate::metric::Samples;

/// The directory of every emptyDir in its pod's (`pkg/volume/emptydir/empty_dir.go:67`, the `/` of the plugin's name
/// escaped).
pub(super) const EMPTY_DIR: &str = "kubernetes.io~empty-dir";

/// Volumes by where they are mounted, each with the root directory of its kubelet.
type Found = BTreeMap<PathBuf, (PathBuf, Volume)>;

/// What the machine's mount table said when it last changed.
#[derive(Debug, Default)]
pub(super) struct Tables {
    machine: WatchedMounts,
    of_machine: Found,
}

/// Every memory-backed emptyDir below the kubelet's `root_dir`: what the machine has, whether or not it was passed on
/// to our own mount namespace.
pub(super) fn find(
    host: &Host,
    kubelet: Option<u32>,
    root_dir: &Path,
    tables: &mut Tables,
    deadline: Deadline,
) -> Result<Vec<Volume>> {
    let found = tables.mounted(host, kubelet, deadline)?;
    // The kernel shows where a mount really is. Links are only followed if that explains something.
    let elsewhere = found.values().any(|(of_kubelet, _)| of_kubelet != root_dir);
    let resolved = if elsewhere { host.resolve(root_dir, deadline) } else { Ok(root_dir.to_owned()) };
    let resolved = match resolved {
        Err(error) if error.is_gone() => root_dir.to_owned(),
        other => other.map_err(|error| error.context("the kubelet's root directory"))?,
    };
    let ours = found.into_values().filter(|(of_kubelet, _)| of_kubelet == root_dir || *of_kubelet == resolved);
    Ok(ours.map(|(_, volume)| volume).collect())
}

impl Tables {
    /// By the mount tables of pid 1 and of the kubelet, which may have a mount namespace of its own: then the volumes
    /// are there, and what was mounted before it got that is still where it was.
    fn mounted(&mut self, host: &Host, kubelet: Option<u32>, deadline: Deadline) -> Result<Found> {
        let machine = self.of_machine(host, deadline).map_err(|error| error.context("mount table"));
        let kubelet = kubelet.filter(|pid| {
            if machine.is_err() {
                return true;
            }
            let [first, of_kubelet] = host.first_mounts(["1", &pid.to_string()], deadline);
            first.is_none() || first != of_kubelet
        });
        let kubelet = kubelet.map(|pid| {
            let table = host.mount_table(pid, deadline);
            table.map(|table| parse(&table, &host.roots().root)).map_err(|error| error.context("mount table"))
        });
        match (machine, kubelet) {
            (Ok(mut all), Some(Ok(kubelet))) => {
                all.extend(kubelet);
                Ok(all)
            }
            (_, Some(Err(error))) if !error.is_gone() => Err(error),
            (_, Some(Ok(one))) | (Ok(one), _) => Ok(one),
            (Err(error), _) => Err(error),
        }
    }

    fn of_machine(&mut self, host: &Host, deadline: Deadline) -> Result<Found> {
        let rootfs = host.roots().root.clone();
        let changed =
            self.machine.read(host, "1", deadline, Found::new(), move |found, row| note(found, row, &rootfs))?;
        if let Some(found) = changed {
            self.of_machine = found;
        }
        Ok(self.of_machine.clone())
    }
}

/// The volumes of a mountinfo text. `rootfs`: where the machine's root is mounted, in case that it is the table of a
/// container.
pub(super) fn parse(mountinfo: &str, rootfs: &Path) -> Found {
    let mut found = Found::new();
    mountinfo.lines().for_each(|row| note(&mut found, row, rootfs));
    found
}

/// Takes in a row if it is of a tmpfs that is an emptyDir.
fn note(found: &mut Found, row: &str, rootfs: &Path) {
    if !row.contains(EMPTY_DIR) {
        return;
    }
    let Some((device, mount)) = DeviceNumber::of_row(row).zip(Mount::parse(row)) else { return };
    if mount.fstype != "tmpfs" {
        return;
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
    tables: &mut Tables,
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
        let now = tables.mounted(host, kubelet, deadline).unwrap_or_default();
        let device = |path: &Path| now.get(path).map(|(_, volume)| volume.device);
        hidden.retain(|&index| device(&volumes[index].path) == Some(volumes[index].device));
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
