//! The cgroups that the node itself depends on, and what is left in a cgroup and those above it.

use std::collections::HashMap;

use crate::host::Host;
use crate::host::cgroup::tasks::{TaskFiles, path_in};
use crate::kubelet::cgroup_name::Qos;
use crate::kubelet::kubepods::{Kind, Walk};
use crate::metric::Samples;

/// Where sshd is on a machine with systemd: Debian's name and everybody else's. Only root makes cgroups there.
const SSHD: [&str; 2] = ["system.slice/ssh.service", "system.slice/sshd.service"];

/// What a cgroup is to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Role {
    Kubepods,
    Burstable,
    BestEffort,
    Kubelet,
    Runtime,
    Sshd,
}

impl Role {
    /// The label value.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Role::Kubepods => "kubepods",
            Role::Burstable => Qos::Burstable.as_str(),
            Role::BestEffort => Qos::BestEffort.as_str(),
            Role::Kubelet => "kubelet",
            Role::Runtime => "runtime",
            Role::Sshd => "sshd",
        }
    }

    /// It is of a process, and not of pods.
    pub(super) fn is_of_a_process(self) -> bool {
        matches!(self, Role::Kubelet | Role::Runtime | Role::Sshd)
    }
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodeCgroup {
    pub(super) role: Role,
    /// From the hierarchy's root, without a slash in front.
    pub(super) path: String,
    pub(super) tasks: u64,
    /// What it may have.
    pub(super) limit: Option<u64>,
}

/// What was read of cgroups in one scrape, each once.
pub(super) struct Chain<'a> {
    pub(super) files: &'a TaskFiles,
    pub(super) samples: &'a mut Samples,
    known: HashMap<String, Option<(u64, u64)>>,
}

impl<'a> Chain<'a> {
    pub(super) fn new(files: &'a TaskFiles, samples: &'a mut Samples) -> Self {
        Chain { files, samples, known: HashMap::new() }
    }

    /// Its tasks and its own limit, [`u64::MAX`] without one; `None` without the controller, or if it is gone.
    pub(super) fn read(&mut self, cgroup: &str) -> Option<(u64, u64)> {
        if let Some(known) = self.known.get(cgroup) {
            return *known;
        }
        let tasks = self.samples.ok(self.files.current(cgroup)).flatten();
        let read = tasks.and_then(|tasks| Some((tasks, self.samples.ok(self.files.max(cgroup)).flatten()?)));
        self.known.insert(cgroup.to_owned(), read);
        read
    }

    /// The least that is left in the cgroups above this one; `None` if none of them has a limit.
    pub(super) fn left_above(&mut self, cgroup: &str) -> Option<u64> {
        let mut least = None;
        let mut rest = cgroup;
        while let Some((above, _)) = rest.rsplit_once('/') {
            least = nearer(least, self.read(above).and_then(|(tasks, max)| left(tasks, max)));
            rest = above;
        }
        least
    }

    fn node(&mut self, role: Role, path: &str) -> Option<NodeCgroup> {
        let (tasks, max) = self.read(path)?;
        let left = nearer(left(tasks, max), self.left_above(path));
        Some(NodeCgroup { role, path: path.to_owned(), tasks, limit: left.map(|left| tasks.saturating_add(left)) })
    }
}

/// How many more there may be; `None` without a limit. A limit may be set below what is there.
pub(super) fn left(tasks: u64, max: u64) -> Option<u64> {
    (max != u64::MAX).then(|| max.saturating_sub(tasks))
}

/// The smaller of what there is.
pub(super) fn nearer(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).min()
}

/// The cgroups of the kubelet, the runtime and sshd.
pub(super) fn units(host: &Host, chain: &mut Chain<'_>, kubelet: Option<u32>, runtime: Option<u32>) -> Vec<NodeCgroup> {
    let mut units = Vec::new();
    // Process 1 listens for others, and is none of them.
    let runtime = runtime.filter(|pid| *pid > 1);
    for (role, pid) in [(Role::Kubelet, kubelet), (Role::Runtime, runtime)] {
        let Some(pid) = pid else { continue };
        match host.cgroups_of(pid) {
            Ok(cgroups) => {
                let path = path_in(&cgroups, chain.files.unified).filter(|path| !path.is_empty());
                units.extend(path.and_then(|path| chain.node(role, path)));
            }
            Err(error) if error.is_gone() => {}
            Err(error) => chain.samples.fail(error),
        }
    }
    // A unit whose service does not run has no cgroup.
    units.extend(SSHD.iter().filter_map(|path| chain.node(Role::Sshd, path)).find(|unit| unit.tasks > 0));
    units
}

/// The directories that pods lie in, by the pods that lie there, and what they are.
pub(super) fn above_pods(walk: &Walk) -> Vec<(Role, String)> {
    let mut above: Vec<(Role, String)> = Vec::new();
    let mut add = |role, path: &str| {
        if !above.iter().any(|(_, known)| known == path) {
            above.push((role, path.to_owned()));
        }
    };
    for (index, directory) in walk.tree.directories.iter().enumerate() {
        let Some(path) = (directory.kind == Kind::Pod).then(|| relative(walk, index)).flatten() else { continue };
        let Some((parent, _)) = path.rsplit_once('/') else { continue };
        let role = match directory.qos {
            Qos::Guaranteed => Role::Kubepods,
            Qos::Burstable => Role::Burstable,
            Qos::BestEffort => Role::BestEffort,
        };
        if role != Role::Kubepods
            && let Some((root, _)) = parent.rsplit_once('/')
        {
            add(Role::Kubepods, root);
        }
        add(role, parent);
    }
    above.sort_unstable();
    above
}

/// These, as they are now.
pub(super) fn of_kubepods(chain: &mut Chain<'_>, above: &[(Role, String)]) -> Vec<NodeCgroup> {
    above.iter().filter_map(|(role, path)| chain.node(*role, path)).collect()
}

/// The path of a directory of the walk from its hierarchy's root, which is the same in all.
pub(super) fn relative(walk: &Walk, index: usize) -> Option<String> {
    let path = walk.tree.path(index);
    path.strip_prefix(&walk.hierarchy.path).ok()?.to_str().map(str::to_owned)
}
