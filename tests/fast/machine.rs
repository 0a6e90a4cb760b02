//! A machine made of files: 8 GiB of memory, 30,000 process ids, pure cgroup v2, and one disk.
#![allow(clippy::disallowed_methods, reason = "a test makes its machine of files")]

use std::path::PathBuf;

use headroom::host::filesystem::{Filesystem, Mount};
use headroom::host::{Host, Roots};

pub(crate) const GIB: u64 = 1 << 30;
pub(crate) const DISK: u64 = 100 * GIB;
pub(crate) const INODES: u64 = 1_000_000;
pub(crate) const MEMORY: u64 = 8 * GIB;
pub(crate) const PIDS: u64 = 30_000;

/// Gone with the value.
pub(crate) struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    pub(crate) fn new() -> Self {
        let files = Files { dir: tempfile::tempdir().unwrap() };
        let (total, quarter) = (MEMORY / 1024, MEMORY / 4096);
        let meminfo = format!("MemTotal: {total} kB\nMemFree: {total} kB\nMemAvailable: {quarter} kB\n");
        files.write("proc/meminfo", &meminfo);
        files.write("proc/loadavg", "0.26 0.47 0.58 2/309 12826\n");
        files.write("proc/sys/kernel/pid_max", "4194304\n");
        files.write("proc/sys/kernel/threads-max", &format!("{PIDS}\n"));
        files.write("sys/fs/cgroup/memory.stat", "anon 1073741824\nfile 1073741824\ninactive_file 0\n");
        files.write("root/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/metadata.db", "");
        files
    }

    /// The cgroup of all pods, with a limit.
    pub(crate) fn limit_pods(&self) {
        self.write("sys/fs/cgroup/kubepods.slice/memory.max", &format!("{}\n", 6 * GIB));
        self.write("sys/fs/cgroup/kubepods.slice/memory.current", &format!("{GIB}\n"));
        self.write("sys/fs/cgroup/kubepods.slice/memory.stat", "inactive_file 0\n");
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub(crate) fn host(&self) -> Host {
        let mount = Mount {
            device: "/dev/vda1".into(),
            mountpoint: "/".into(),
            fstype: "ext4".into(),
            readonly: false,
            number: None,
        };
        let disk = Filesystem {
            capacity_bytes: DISK,
            available_bytes: 30 * GIB,
            inodes: INODES,
            inodes_free: INODES / 2,
            mount: Some(mount),
        };
        let roots = Roots { proc: self.path("proc"), sys: self.path("sys"), root: self.path("root") };
        Host::recorded(roots, vec![("/".into(), disk)])
    }
}
