//! What of the machine the cluster stands on: addresses, mounts, kernel settings and cgroups, and how all of it is left
//! as it was.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{ADDRESS, RUNTIME, configuration};
use crate::common::{self, containerd};

/// Where the kubelet, containerd and CNI write, whatever they are told: each is an empty tmpfs for as long as the
/// cluster is up.
const OWN: [&str; 4] = ["/run/containerd", "/var/lib/cni", "/var/lib/kubelet", "/var/log/containers"];

/// What the kubelet sets for the whole machine.
const SETTINGS: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

pub(crate) struct Ground {
    /// systemd is the first process here, and makes the pods' cgroups.
    pub(crate) systemd: bool,
    /// Directories that were not there, the deepest last.
    made: Vec<PathBuf>,
}

impl Ground {
    /// # Errors
    /// If this is a Kubernetes node already.
    pub(crate) fn prepare(folder: &Path) -> Result<Self, String> {
        if !kubepods().is_empty() {
            // A test that was killed leaves its cgroups, and no process in them.
            remove_kubepods();
        }
        if let Some(cgroup) = kubepods().first() {
            return Err(format!("{} exists: this is a Kubernetes node", cgroup.display()));
        }
        let systemd = fs::read_to_string("/proc/1/comm").unwrap().trim() == "systemd";
        let mut ground = Ground { systemd, made: Vec::new() };
        // As systemd leaves a machine: what is mounted in one place is seen in every view of it.
        common::shell("mount --make-rshared /");
        for own in OWN {
            ground.make(Path::new(own));
            common::shell(&format!("mount -t tmpfs -o mode=0755 tmpfs {own}"));
        }
        // The kubelet writes to copies of what is the whole machine's.
        fs::create_dir(folder.join("sysctl")).unwrap();
        for (number, setting) in SETTINGS.iter().enumerate() {
            let (copy, file) = (folder.join(format!("sysctl/{number}")), format!("/proc/sys/{setting}"));
            fs::write(&copy, fs::read(&file).unwrap()).unwrap();
            common::shell(&format!("mount --bind {} {file}", copy.display()));
        }
        common::shell(&format!("ip link set lo up; ip address replace {ADDRESS}/32 dev lo"));
        common::shell(&configuration::service_rules());
        Ok(ground)
    }

    fn make(&mut self, directory: &Path) {
        let missing: Vec<&Path> = directory.ancestors().take_while(|path| !path.exists()).collect();
        for path in missing.into_iter().rev() {
            fs::create_dir(path).unwrap();
            self.made.push(path.to_owned());
        }
    }

    /// After the daemons: pods, shims, mounts, cgroups.
    pub(crate) fn leave(&self, folder: &Path) {
        let until = Instant::now() + Duration::from_secs(10);
        while end_pods() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50));
        }
        // A shim carries the socket's path in its command line.
        containerd::end_processes_that_name(&format!("-address {RUNTIME}").replace(' ', "\0"));
        containerd::unmount_below(folder);
        OWN.iter().for_each(|own| containerd::unmount_below(Path::new(own)));
        for setting in SETTINGS {
            containerd::unmount_below(&Path::new("/proc/sys").join(setting));
        }
        for made in self.made.iter().rev() {
            let _ = fs::remove_dir(made);
        }
        remove_kubepods();
        // In namespaces of our own these are gone with them.
        let _ = Command::new("ip").args(["link", "delete", "headroom0"]).stderr(Stdio::null()).status();
        let _ = Command::new("ip").args(["address", "delete", &format!("{ADDRESS}/32"), "dev", "lo"]).status();
    }
}

/// Every mounted cgroup hierarchy.
pub(crate) fn hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let cgroups = mounts.lines().filter(|line| line.contains(" - cgroup"));
    cgroups.filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect()
}

/// The pods' trees that are there.
fn kubepods() -> Vec<PathBuf> {
    let trees = hierarchies().into_iter().flat_map(|at| [at.join("kubepods"), at.join("kubepods.slice")]);
    trees.filter(|tree| tree.exists()).collect()
}

fn remove_kubepods() {
    ["kubepods", "kubepods.slice"].into_iter().for_each(containerd::remove_cgroups_named);
}

/// Kills whoever is in a pod's cgroup; says whether somebody was.
fn end_pods() -> bool {
    let mut found = false;
    let mut trees = kubepods();
    while let Some(tree) = trees.pop() {
        let procs = fs::read_to_string(tree.join("cgroup.procs")).unwrap_or_default();
        // A process of another pid namespace is 0.
        for pid in procs.lines().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
            let _ = kill_process(pid, Signal::KILL);
            found = true;
        }
        let below = fs::read_dir(&tree).into_iter().flatten().flatten().map(|entry| entry.path());
        trees.extend(below.filter(|path| path.is_dir()));
    }
    found
}
