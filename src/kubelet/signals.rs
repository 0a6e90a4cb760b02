//! The nine eviction signals, and how the kubelet computes what is available of each
//! (`pkg/kubelet/eviction/helpers.go:848`).

use crate::host::filesystem::Filesystem;
use crate::host::text::{keyed, meminfo_bytes};
use crate::kubelet::version::Version;

/// One eviction signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    /// Memory of the node.
    MemoryAvailable,
    /// Memory that pods may use: the limit of their cgroup.
    AllocatableMemoryAvailable,
    /// Bytes of the file system under the kubelet's root directory.
    NodefsAvailable,
    /// Its inodes.
    NodefsInodesFree,
    /// Bytes of the file system under the runtime's image store.
    ImagefsAvailable,
    /// Its inodes.
    ImagefsInodesFree,
    /// Bytes of the file system under the containers' writable layers.
    ContainerfsAvailable,
    /// Its inodes.
    ContainerfsInodesFree,
    /// Process ids, which threads use up as well.
    PidAvailable,
}

/// What a signal counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// Memory or disk.
    Bytes,
    /// Inodes.
    Inodes,
    /// Process ids.
    Pids,
}

impl Signal {
    /// Every signal, in the order of the page.
    pub const ALL: [Signal; 9] = [
        Signal::MemoryAvailable,
        Signal::AllocatableMemoryAvailable,
        Signal::NodefsAvailable,
        Signal::NodefsInodesFree,
        Signal::ImagefsAvailable,
        Signal::ImagefsInodesFree,
        Signal::ContainerfsAvailable,
        Signal::ContainerfsInodesFree,
        Signal::PidAvailable,
    ];

    /// Its name in the kubelet's configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Signal::MemoryAvailable => "memory.available",
            Signal::AllocatableMemoryAvailable => "allocatableMemory.available",
            Signal::NodefsAvailable => "nodefs.available",
            Signal::NodefsInodesFree => "nodefs.inodesFree",
            Signal::ImagefsAvailable => "imagefs.available",
            Signal::ImagefsInodesFree => "imagefs.inodesFree",
            Signal::ContainerfsAvailable => "containerfs.available",
            Signal::ContainerfsInodesFree => "containerfs.inodesFree",
            Signal::PidAvailable => "pid.available",
        }
    }

    /// The signal of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|signal| signal.as_str() == name)
    }

    /// What it counts.
    pub fn counts(self) -> Counts {
        match self {
            Signal::MemoryAvailable
            | Signal::AllocatableMemoryAvailable
            | Signal::NodefsAvailable
            | Signal::ImagefsAvailable
            | Signal::ContainerfsAvailable => Counts::Bytes,
            Signal::NodefsInodesFree | Signal::ImagefsInodesFree | Signal::ContainerfsInodesFree => Counts::Inodes,
            Signal::PidAvailable => Counts::Pids,
        }
    }
}

/// What there is of one signal now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// What is left.
    pub available: u64,
    /// What a percentage is a percentage of.
    pub capacity: u64,
}

/// The working set: usage less inactive page cache, never below 0 (cAdvisor `container/libcontainer/handler.go:839`).
pub fn working_set(usage: u64, inactive_file: u64) -> u64 {
    usage.saturating_sub(inactive_file)
}

/// The working set of the whole node on cgroup v1: root `memory.usage_in_bytes` and `memory.stat`.
pub fn node_working_set_v1(usage: u64, stat: &str) -> Option<u64> {
    Some(working_set(usage, keyed(stat, "total_inactive_file")?))
}

/// The working set of the whole node on cgroup v2, whose root has no `memory.current`: since 1.29 `anon` + `file` of
/// its `memory.stat` (opencontainers/cgroups `fs2/memory.go:224`), with no kernel memory in it; up to 1.28 all that is
/// not free, with slab, page tables and huge pages in it (runc before 1.1.9). Of an unknown version the larger one.
pub fn node_working_set_v2(version: Option<&Version>, stat: &str, meminfo: &str) -> Option<u64> {
    let inactive = keyed(stat, "inactive_file")?;
    let pages = || Some(keyed(stat, "anon")?.saturating_add(keyed(stat, "file")?));
    let not_free = || meminfo_bytes(meminfo, "MemTotal")?.checked_sub(meminfo_bytes(meminfo, "MemFree")?);
    let usage = match version {
        Some(version) if version.is_at_least(29) => pages(),
        Some(_) => not_free(),
        None => Some(pages()?.max(not_free()?)),
    };
    Some(working_set(usage?, inactive))
}

/// `memory.available`.
pub fn memory(total: u64, working_set: u64) -> Observation {
    Observation { available: total.saturating_sub(working_set), capacity: total }
}

/// `allocatableMemory.available`, unless the pods' cgroup has no limit: above 2^62 the kubelet takes it for unlimited
/// (`pkg/kubelet/stats/helper.go:353`).
pub fn allocatable(limit: u64, working_set: u64) -> Option<Observation> {
    let available = limit.saturating_sub(working_set);
    (limit <= 1 << 62).then(|| Observation { available, capacity: available.saturating_add(working_set) })
}

/// `pid.available`: the lesser of the two limits on threads, and the threads there are, the total in the fourth field
/// of `/proc/loadavg` (`pkg/kubelet/stats/pidlimit/pidlimit_linux.go:60`).
pub fn pids(pid_max: Option<u64>, threads_max: Option<u64>, loadavg: &str) -> Option<Observation> {
    let capacity = pid_max.into_iter().chain(threads_max).min()?;
    let threads: u64 = loadavg.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()?;
    Some(Observation { available: capacity.saturating_sub(threads), capacity })
}

/// The bytes of a file system.
pub fn bytes(filesystem: &Filesystem) -> Observation {
    Observation { available: filesystem.available_bytes, capacity: filesystem.capacity_bytes }
}

/// The inodes of a file system; none on one that makes them as it needs them and says 0 (btrfs).
pub fn inodes(filesystem: &Filesystem) -> Option<Observation> {
    (filesystem.inodes > 0).then_some(Observation { available: filesystem.inodes_free, capacity: filesystem.inodes })
}

/// True if two file systems are two devices to the kubelet, which makes the image file system a dedicated one
/// (`pkg/kubelet/stats/provider.go:182`). `None` if a mount table does not tell.
pub fn dedicated(nodefs: &Filesystem, imagefs: &Filesystem) -> Option<bool> {
    let device = |filesystem: &Filesystem| {
        let mount = filesystem.mount.as_ref()?;
        // These have no device of their own name; cAdvisor tells them apart by where they are mounted.
        let nameless = matches!(mount.fstype.as_str(), "tmpfs" | "overlay");
        Some((mount.device.clone(), nameless.then(|| mount.mountpoint.clone())))
    };
    Some(device(nodefs)? != device(imagefs)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::filesystem::Mount;

    #[test]
    fn names_go_both_ways() {
        for signal in Signal::ALL {
            assert_eq!(Signal::parse(signal.as_str()), Some(signal));
        }
        assert_eq!(Signal::parse("disk.available"), None);
        assert_eq!(Signal::parse("Memory.available"), None);
    }

    #[test]
    fn the_working_set_has_a_floor() {
        let stat = "inactive_file 12288\ntotal_inactive_file 449298432\n";
        assert_eq!(node_working_set_v1(1_072_603_136, stat), Some(623_304_704));
        assert_eq!(node_working_set_v1(5, stat), Some(0));
        assert_eq!(node_working_set_v1(5, ""), None);
    }

    #[test]
    fn the_working_set_on_v2_is_that_of_the_version() {
        let stat = "anon 488472576\nfile 607141888\nfile_mapped 1\ninactive_anon 7\ninactive_file 463081472\n";
        let meminfo = "MemTotal:        8000000 kB\nMemFree:         1000000 kB\n";
        let of = |version: &str, stat, meminfo| node_working_set_v2(Version::parse(version).as_ref(), stat, meminfo);
        assert_eq!(of("v1.29.0", stat, meminfo), Some(632_532_992));
        assert_eq!(of("v1.28.15", stat, meminfo), Some(7_000_000 * 1024 - 463_081_472));
        assert_eq!(of("?", stat, meminfo), Some(7_000_000 * 1024 - 463_081_472), "unknown: what warns sooner");
        assert_eq!(of("?", stat, "MemTotal: 1000000 kB\nMemFree: 900000 kB\n"), Some(632_532_992));
        assert_eq!(of("v1.29.0", "anon 1\ninactive_file 1", meminfo), None);
        assert_eq!(of("v1.29.0", stat, ""), Some(632_532_992), "nobody asks it");
        assert_eq!(of("v1.28.15", stat, "MemTotal: 8000000 kB\n"), None);
        // Vector of both sources: 5,000,000 kB of pages, 7,000,000 kB not free.
        let stat = "anon 5120000000\nfile 0\ninactive_file 0\n";
        let available = |version| memory(8_000_000 * 1024, of(version, stat, meminfo).unwrap()).available;
        assert_eq!((available("v1.28.15"), available("v1.29.0")), (1_024_000_000, 3_072_000_000));
    }

    #[test]
    fn an_unlimited_pods_cgroup_has_no_allocatable_memory() {
        let observation = Observation { available: 60, capacity: 100 };
        assert_eq!(allocatable(100, 40), Some(observation));
        assert_eq!(allocatable(100, 140), Some(Observation { available: 0, capacity: 140 }));
        assert_eq!(allocatable(9_223_372_036_854_771_712, 40), None);
        assert_eq!(allocatable((1 << 62) + 1, 40), None);
        assert!(allocatable(1 << 62, 40).is_some());
    }

    #[test]
    fn the_lesser_limit_on_pids_counts() {
        let loadavg = "4.09 3.67 2.18 3/320 6173\n";
        assert_eq!(
            pids(Some(4_194_304), Some(47_038), loadavg),
            Some(Observation { available: 46_718, capacity: 47_038 })
        );
        assert_eq!(pids(Some(32_768), Some(94_000), loadavg).unwrap().capacity, 32_768);
        assert_eq!(pids(Some(32_768), None, loadavg).unwrap().capacity, 32_768);
        assert_eq!(pids(Some(300), None, loadavg).unwrap().available, 0);
        assert_eq!(pids(None, None, loadavg), None);
        assert_eq!(pids(Some(1), None, "0.1 0.1 0.1"), None);
    }

    #[test]
    fn devices() {
        let on = |device: &str, fstype: &str, at: &str| Filesystem {
            capacity_bytes: 1,
            available_bytes: 1,
            inodes: 0,
            inodes_free: 0,
            mount: Some(Mount {
                device: device.into(),
                mountpoint: at.into(),
                fstype: fstype.into(),
                readonly: false,
                number: None,
            }),
        };
        let root = on("/dev/vda", "ext4", "/");
        assert_eq!(dedicated(&root, &on("/dev/vda", "ext4", "/var/lib/containerd")), Some(false));
        assert_eq!(dedicated(&root, &on("/dev/vdb", "ext4", "/var/lib/containerd")), Some(true));
        assert_eq!(dedicated(&on("tmpfs", "tmpfs", "/a"), &on("tmpfs", "tmpfs", "/b")), Some(true));
        assert_eq!(dedicated(&root, &Filesystem { mount: None, ..root.clone() }), None);
        assert_eq!(inodes(&root), None, "a file system that counts no inodes");
    }
}
