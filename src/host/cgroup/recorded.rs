//! The cgroup trees of the two recorded nodes, built again as folders for tests.

use std::path::{Path, PathBuf};

use crate::host::{Host, Roots};

macro_rules! fixture {
    ($path:literal) => {
        include_str!(concat!("../../../tests/fixtures/node/", $path))
    };
}

/// A machine made of folders, removed when dropped.
pub(crate) struct Machine {
    dir: tempfile::TempDir,
    pub(crate) host: Host,
}

impl Machine {
    /// A machine without a single file.
    pub(crate) fn empty() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [proc, sys, root] = ["proc", "sys", "root"].map(|name| dir.path().join(name));
        let host = Host::new(Roots { proc, sys, root });
        Machine { dir, host }
    }

    /// Kubernetes 1.36 on 6.18: each v1 controller in a hierarchy of its own, cgroupfs driver. A directory that is a container's
    /// has a process.
    pub(crate) fn v1() -> Self {
        let machine = Machine::empty();
        machine.kernel("6.18.44-fc-v657", fixture!("k8s-1.36-cgroupv1/proc/host/meminfo.txt"));
        machine.proc("cgroups", fixture!("k8s-1.36-cgroupv1/cgroup/proc-cgroups.txt"));
        for controller in ["blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "memory", "pids"] {
            machine.cgroup(&format!("{controller}/notify_on_release"), "0\n");
            machine.cgroup(&format!("{controller}/release_agent"), "\n");
        }
        let lists =
            [fixture!("k8s-1.36-cgroupv1/cgroup/top-dirs.txt"), fixture!("k8s-1.36-cgroupv1/cgroup/kubepods-dirs.txt")];
        for path in lists.into_iter().flat_map(str::lines).map(relative) {
            let container = path.file_name().unwrap().len() == 64;
            machine.cgroup(&format!("{}/cgroup.procs", path.display()), if container { "4711\n" } else { "" });
        }
        let usage = fixture!("k8s-1.36-cgroupv1/cgroup/memory/root/memory.kmem.usage_in_bytes");
        machine.cgroup("memory/memory.kmem.usage_in_bytes", usage);
        let usage = fixture!("k8s-1.36-cgroupv1/cgroup/memory/kubepods/memory.kmem.usage_in_bytes");
        machine.cgroup("memory/kubepods/memory.kmem.usage_in_bytes", usage);
        machine
    }

    /// Kubernetes 1.36 on Debian's 6.1: pure v2, systemd driver.
    pub(crate) fn v2() -> Self {
        let machine = Machine::empty();
        machine.kernel("6.1.0-56-amd64", fixture!("k8s-1.36-cgroupv2/proc/host/meminfo.txt"));
        machine.proc("cgroups", fixture!("k8s-1.36-cgroupv2/cgroup/proc-cgroups.txt"));
        let lists =
            [fixture!("k8s-1.36-cgroupv2/cgroup/top-dirs.txt"), fixture!("k8s-1.36-cgroupv2/cgroup/kubepods-dirs.txt")];
        for path in lists.into_iter().flat_map(str::lines).map(relative) {
            let file = |name: &str| format!("{}/{name}", path.display());
            // Which processes were in it is not recorded.
            machine.cgroup(&file("cgroup.procs"), "");
            machine.cgroup(&file("cgroup.events"), fixture!("k8s-1.36-cgroupv2/cgroup/pod/cgroup.events"));
            // What systemd gives to the children of a service that asked for no more.
            let service = path.extension().is_some_and(|extension| extension == "service");
            machine.cgroup(&file("cgroup.subtree_control"), if service { "pids\n" } else { "memory pids\n" });
        }
        machine.cgroup("cgroup.controllers", fixture!("k8s-1.36-cgroupv2/cgroup/root/cgroup.controllers"));
        machine.cgroup("cgroup.subtree_control", fixture!("k8s-1.36-cgroupv2/cgroup/root/cgroup.subtree_control"));
        machine.cgroup("cgroup.stat", fixture!("k8s-1.36-cgroupv2/cgroup/root/cgroup.stat"));
        machine.cgroup("memory.stat", fixture!("k8s-1.36-cgroupv2/cgroup/root/memory.stat"));
        machine.cgroup("kubepods.slice/memory.stat", fixture!("k8s-1.36-cgroupv2/cgroup/kubepods/memory.stat"));
        machine
    }

    fn kernel(&self, release: &str, meminfo: &str) {
        self.proc("sys/kernel/osrelease", release);
        self.proc("cmdline", "root=/dev/vda quiet\n");
        self.proc("meminfo", meminfo);
    }

    /// Writes a file of procfs.
    pub(crate) fn proc(&self, path: &str, text: &str) {
        write(&self.host.proc(path), text);
    }

    /// Writes a file below `sys/fs/cgroup`, making its directories.
    pub(crate) fn cgroup(&self, path: &str, text: &str) {
        write(&self.cgroup_path(path), text);
    }

    /// Our path of something below `sys/fs/cgroup`.
    pub(crate) fn cgroup_path(&self, path: &str) -> PathBuf {
        self.host.sys("fs/cgroup").join(path)
    }

    /// Where everything lies.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

fn relative(line: &str) -> PathBuf {
    Path::new(line).strip_prefix("/sys/fs/cgroup").unwrap().to_owned()
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}
