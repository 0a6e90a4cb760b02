//! The cgroup trees of the two recorded nodes, built again as folders for tests.

use std::path::{Path, PathBuf};

use crate::host::{Host, Roots};

macro_rules! fixture {
    ($path:literal) => {
        include_str!(concat!("../../../tests/fixtures/node/", $path))
    };
}

/// The recorded pod with a memory-backed volume: its own cgroup, its container's, and that of its pause container.
const MEMVOL_V1: [&str; 3] = [
    "memory/kubepods/burstable/podbcb1982f-2628-449a-accb-e40ecdefbb3b",
    "memory/kubepods/burstable/podbcb1982f-2628-449a-accb-e40ecdefbb3b/55f765a8788dcccb46fae55db15b169605b66df347604a06a4f6ed7c15f879c6",
    "memory/kubepods/burstable/podbcb1982f-2628-449a-accb-e40ecdefbb3b/5d254dd4d3bde41c7c4a6a3248daea1f1c364728b68bb57782b4a271430706dd",
];
/// The same on the other node.
const MEMVOL_V2: [&str; 3] = [
    "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poddffe967d_a11f_417e_8310_08020db089c7.slice",
    "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poddffe967d_a11f_417e_8310_08020db089c7.slice/cri-containerd-fbac8099e388339f9fbcb5c13711ebbc562fb774b7a291a4387f6a5bceb13091.scope",
    "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poddffe967d_a11f_417e_8310_08020db089c7.slice/cri-containerd-d88fcaa715e9d276d183597b1e6912e7c96cf71eb75399adc78ba506767c4e51.scope",
];

macro_rules! tasks {
    ($folder:literal) => {
        [
            ("pids.current", include_str!(concat!("../../../tests/fixtures/task_limit/", $folder, "/pids.current"))),
            ("pids.max", include_str!(concat!("../../../tests/fixtures/task_limit/", $folder, "/pids.max"))),
            ("pids.events", include_str!(concat!("../../../tests/fixtures/task_limit/", $folder, "/pids.events"))),
        ]
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

    /// Kubernetes 1.36 on 6.18: each v1 controller in a hierarchy of its own, cgroupfs driver. A directory that is a
    /// container's has a process.
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
        for (directory, limit, kills) in [
            (
                MEMVOL_V1[0],
                fixture!("k8s-1.36-cgroupv1/cgroup/memory/pod/memory.limit_in_bytes"),
                fixture!("k8s-1.36-cgroupv1/cgroup/memory/pod/memory.oom_control"),
            ),
            (
                MEMVOL_V1[1],
                fixture!("k8s-1.36-cgroupv1/cgroup/memory/container/memory.limit_in_bytes"),
                fixture!("k8s-1.36-cgroupv1/cgroup/memory/container/memory.oom_control"),
            ),
            (
                MEMVOL_V1[2],
                fixture!("k8s-1.36-cgroupv1/cgroup/memory/pause/memory.limit_in_bytes"),
                fixture!("k8s-1.36-cgroupv1/cgroup/memory/pause/memory.oom_control"),
            ),
        ] {
            machine.cgroup(&format!("{directory}/memory.limit_in_bytes"), limit);
            machine.cgroup(&format!("{directory}/memory.oom_control"), kills);
        }
        let pids = MEMVOL_V1.map(|path| path.replacen("memory", "pids", 1));
        machine.tasks("pids/kubepods", tasks!("v1/kubepods"));
        machine.tasks(&pids[0], tasks!("v1/pod"));
        machine.tasks(&pids[1], tasks!("v1/container"));
        machine.tasks(&pids[2], tasks!("v1/pause"));
        let procs = fixture!("k8s-1.36-cgroupv1/cgroup/memory/container/cgroup.procs");
        machine.cgroup(&format!("{}/cgroup.procs", pids[1]), procs);
        machine.cgroup(&format!("{}/cgroup.procs", MEMVOL_V1[1]), procs);
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
        for (directory, max, events) in [
            (
                MEMVOL_V2[0],
                fixture!("k8s-1.36-cgroupv2/cgroup/pod/memory.max"),
                fixture!("k8s-1.36-cgroupv2/cgroup/pod/memory.events"),
            ),
            (
                MEMVOL_V2[1],
                fixture!("k8s-1.36-cgroupv2/cgroup/container/memory.max"),
                fixture!("k8s-1.36-cgroupv2/cgroup/container/memory.events"),
            ),
            (
                MEMVOL_V2[2],
                fixture!("k8s-1.36-cgroupv2/cgroup/pause/memory.max"),
                fixture!("k8s-1.36-cgroupv2/cgroup/pause/memory.events"),
            ),
        ] {
            machine.cgroup(&format!("{directory}/memory.max"), max);
            machine.cgroup(&format!("{directory}/memory.events"), events);
        }
        machine.tasks("kubepods.slice", tasks!("v2/kubepods"));
        machine.tasks("kubepods.slice/kubepods-burstable.slice", tasks!("v2/qos"));
        machine.tasks(MEMVOL_V2[0], tasks!("v2/pod"));
        machine.tasks(MEMVOL_V2[1], tasks!("v2/container"));
        machine.tasks(MEMVOL_V2[2], tasks!("v2/pause"));
        // Not recorded; subject.txt has the pid.
        machine.cgroup(&format!("{}/cgroup.procs", MEMVOL_V2[1]), "2870\n");
        machine
    }

    fn tasks(&self, directory: &str, files: [(&str, &str); 3]) {
        files.iter().for_each(|(name, text)| self.cgroup(&format!("{directory}/{name}"), text));
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
