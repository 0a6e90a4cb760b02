//! From what was read to what is exposed. Pure.

use std::path::PathBuf;

use super::datastores::Database;
use super::paths::Holds;
use super::{
    AVAILABLE_BYTES, AVAILABLE_INODES, CAPACITY_BYTES, CAPACITY_INODES, DATABASE, Evicted, HEADROOM, PATH, QUOTA,
    READONLY,
};
use crate::host::filesystem::Filesystem;
use crate::kubelet::signals;
use crate::metric::Samples;
use crate::services::node_filesystems::{Containerfs, Disks};

/// Made once, full from then on and never written: no word on the node.
const MADE_FULL: [&str; 5] = ["squashfs", "erofs", "iso9660", "cramfs", "romfs"];

/// One directory that is there.
#[derive(Clone, Debug)]
pub(super) struct Located {
    pub(super) path: PathBuf,
    pub(super) holds: Holds,
    pub(super) filesystem: Filesystem,
}

/// Whose affair a file system is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judge {
    Eviction,
    Us,
    Nobody,
    Unknown,
}

impl Judge {
    fn as_str(self) -> &'static str {
        match self {
            Judge::Eviction => "eviction",
            Judge::Us => "system_filesystem",
            Judge::Nobody => "none",
            Judge::Unknown => "unknown",
        }
    }
}

impl Evicted {
    /// Takes note of what was told; what was not stays as it was.
    pub(super) fn learn(&mut self, disks: &Disks) {
        if disks.nodefs.is_some() {
            self.nodefs.clone_from(&disks.nodefs);
        }
        if disks.runtime.is_some() {
            self.runtime.clone_from(&disks.runtime);
        }
        if !disks.imagefs_untold {
            let own = match &disks.containerfs {
                Containerfs::Own(own) => Some(own),
                Containerfs::Imagefs | Containerfs::None => None,
            };
            self.images = Some(disks.imagefs.iter().chain(own).cloned().collect());
        }
    }

    fn judge(&self, filesystem: &Filesystem, holds: &[Holds]) -> Judge {
        let evicted = self.nodefs.iter().chain(self.images.iter().flatten());
        if evicted.into_iter().any(|other| is_one(filesystem, other)) {
            return Judge::Eviction;
        }
        if filesystem.mount.as_ref().is_some_and(|mount| MADE_FULL.contains(&mount.fstype.as_str())) {
            return Judge::Nobody;
        }
        let may_be_images = self.images.is_none() && holds.contains(&Holds::RuntimeRoot);
        if self.nodefs.is_none() || may_be_images || filesystem.mount.is_none() { Judge::Unknown } else { Judge::Us }
    }
}

/// True if both are one file system: by the number of its superblock, which all its mounts and subvolumes have; as the
/// kubelet takes them for one where that is not known.
fn is_one(one: &Filesystem, other: &Filesystem) -> bool {
    let number = |filesystem: &Filesystem| filesystem.mount.as_ref().and_then(|mount| mount.number);
    match (number(one), number(other)) {
        (Some(one), Some(other)) => one == other,
        _ => signals::dedicated(one, other) == Some(false),
    }
}

/// The numbers: a file system each, a path each, a database each.
pub(super) fn assess(located: &[Located], evicted: &Evicted, databases: &[Database], samples: &mut Samples) {
    let mut filesystems: Vec<(&Filesystem, Vec<&Located>)> = Vec::new();
    for one in located {
        match filesystems.iter_mut().find(|(filesystem, _)| is_one(filesystem, &one.filesystem)) {
            Some((_, paths)) => paths.push(one),
            None => filesystems.push((&one.filesystem, vec![one])),
        }
    }
    let mut shown: Vec<String> = Vec::new();
    for (filesystem, paths) in filesystems {
        let mut holds: Vec<Holds> = paths.iter().map(|one| one.holds).collect();
        holds.sort_unstable();
        holds.dedup();
        let judge = evicted.judge(filesystem, &holds);
        let empty =
            |of: fn(&crate::host::filesystem::Mount) -> String| filesystem.mount.as_ref().map_or_else(String::new, of);
        let (device, fstype) = (empty(|mount| mount.device.clone()), empty(|mount| mount.fstype.clone()));
        for one in &paths {
            let mountpoint = one.filesystem.mount.as_ref().map(|mount| mount.mountpoint.display().to_string());
            let (path, mountpoint) = (one.path.display().to_string(), mountpoint.unwrap_or_default());
            samples.info(&PATH, &[&path, one.holds.as_str(), &mountpoint, &device, &fstype, judge.as_str()]);
        }
        if judge == Judge::Unknown {
            let paths: Vec<_> = paths.iter().map(|one| one.path.display().to_string()).collect();
            samples.note(format!(
                "not judged, because it is unknown whether the kubelet evicts for it: {}",
                paths.join(", ")
            ));
        }
        if judge == Judge::Us {
            let mountpoint = empty(|mount| mount.mountpoint.display().to_string());
            // One over the other at one place: the upper one has the first path that is seen.
            let place = if shown.contains(&mountpoint) { paths[0].path.display().to_string() } else { mountpoint };
            let holds: Vec<&str> = holds.iter().map(|holds| holds.as_str()).collect();
            push_filesystem(filesystem, &place, &holds.join(","), samples);
            shown.push(place);
        }
    }
    for Database { data_dir, bytes, quota } in databases {
        let path = data_dir.display().to_string();
        samples.push_some(&DATABASE, &[&path], bytes.map(|bytes| bytes as f64));
        samples.push_some(&QUOTA, &[&path], quota.map(|bytes| bytes as f64));
    }
}

fn push_filesystem(filesystem: &Filesystem, mountpoint: &str, holds: &str, samples: &mut Samples) {
    let Filesystem { capacity_bytes, available_bytes, inodes, inodes_free, ref mount } = *filesystem;
    let figures = [
        ("bytes", &AVAILABLE_BYTES, &CAPACITY_BYTES, available_bytes, capacity_bytes),
        ("inodes", &AVAILABLE_INODES, &CAPACITY_INODES, inodes_free, inodes),
    ];
    for (resource, available_metric, capacity_metric, available, capacity) in figures {
        // Without a limit there is nothing that could be full.
        if capacity > 0 {
            samples.push(available_metric, &[mountpoint, holds], available as f64);
            samples.push(capacity_metric, &[mountpoint, holds], capacity as f64);
            samples.push(&HEADROOM, &[mountpoint, holds, resource], available as f64 / capacity as f64);
        }
    }
    let readonly = mount.as_ref().map(|mount| f64::from(u8::from(mount.readonly)));
    samples.push_some(&READONLY, &[mountpoint, holds], readonly);
}
