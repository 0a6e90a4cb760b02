//! Which pod a process is in, by its cgroup: what a tenant cannot choose. Every cap of this mode is shared out by pod,
//! so that what one pod does costs that pod.
//!
//! It takes three system calls to ask, and the answer hardly ever changes. So only those are asked of whom it matters,
//! once, and the answer is kept while the process lives.

use std::collections::HashMap;
use std::sync::Arc;

use crate::error::Result;
use crate::host::Host;
use crate::host::process::Process;
use crate::kubelet::cgroup_name::PodPlace;
use crate::kubelet::identity;
use crate::kubelet::pod_places::PodPlaces;

/// An answer is asked for again after so many rounds: a process can be moved to another cgroup.
const TRUSTED: u32 = 50;

/// Whose a process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// In no pod.
    Nodes,
    Pod(Arc<PodPlace>),
    /// We may not know: it takes none of the node's places.
    Unknown,
}

impl Whose {
    /// Of a `/proc/PID/cgroup`.
    fn of(cgroup: &Result<String>, places: PodPlaces) -> Self {
        match cgroup {
            Ok(cgroup) => places.place(cgroup).map_or(Whose::Nodes, |place| Whose::Pod(Arc::new(place))),
            // A kernel without cgroups has no pods, and a process that is gone no place.
            Err(error) if error.is_gone() => Whose::Nodes,
            Err(_) => Whose::Unknown,
        }
    }

    /// Whose share of a cap it takes: a pod's by its uid, empty where that is not known. `None`: the node's own.
    pub(super) fn share(&self) -> Option<&str> {
        match self {
            Whose::Nodes => None,
            Whose::Pod(place) => Some(&place.pod_uid),
            Whose::Unknown => Some(""),
        }
    }

    pub(super) fn place(&self) -> Option<&PodPlace> {
        match self {
            Whose::Pod(place) => Some(place),
            Whose::Nodes | Whose::Unknown => None,
        }
    }
}

#[derive(Clone, Debug)]
struct Entry {
    inode: Option<u64>,
    comm: u32,
    whose: Whose,
    /// Whether it is a daemon of the node's, if that was asked.
    daemon: Option<bool>,
    asked: u32,
    seen: u32,
}

/// What is known of processes. Empty at first; see the module's text.
#[derive(Debug, Default)]
pub(super) struct Pods {
    entries: HashMap<u32, Entry>,
    places: PodPlaces,
    round: u32,
}

impl Pods {
    /// Begins a round.
    pub(super) fn begin(&mut self, host: &Host) {
        self.places = PodPlaces::of(host);
        self.round = self.round.wrapping_add(1);
    }

    /// Notes a process of this round.
    pub(super) fn observe(&mut self, process: &Process) {
        let round = self.round;
        if let Some(entry) = self.entries.get_mut(&process.pid) {
            // A runtime moves what it starts before that becomes another program.
            let same = entry.inode == process.inode && entry.comm == hash(process);
            if same && round.wrapping_sub(entry.asked) < TRUSTED {
                entry.seen = round;
            } else {
                self.entries.remove(&process.pid);
            }
        }
    }

    /// Ends a round: what was not seen in it is forgotten.
    pub(super) fn end(&mut self) {
        self.entries.retain(|_, entry| entry.seen == self.round);
    }

    /// Whose this process is.
    pub(super) fn of(&mut self, process: &Process) -> Whose {
        self.entry(process).whose.clone()
    }

    /// True if this process, which has a daemon's name, is one of the node's: outside of any pod, or in a static one.
    pub(super) fn is_daemon(&mut self, process: &Process) -> bool {
        if let Some(daemon) = self.entries.get(&process.pid).and_then(|entry| entry.daemon) {
            return daemon;
        }
        let cgroup = process.cgroup();
        self.learn(process, &cgroup);
        let daemon = match (cgroup, process.pid_namespaces()) {
            (Ok(cgroup), Ok(namespaces)) => identity::is_of_the_node(namespaces, &cgroup),
            // Recorded files, and a kernel without cgroups.
            (cgroup, Err(error)) if error.is_gone() => {
                identity::is_of_the_node(None, cgroup.as_deref().unwrap_or_default())
            }
            _ => false,
        };
        self.entry(process).daemon = Some(daemon);
        daemon
    }

    /// Takes over what was read of this process just now.
    pub(super) fn learn(&mut self, process: &Process, cgroup: &Result<String>) -> Whose {
        let whose = Whose::of(cgroup, self.places);
        let (round, daemon) = (self.round, None);
        let entry = Entry {
            inode: process.inode,
            comm: hash(process),
            whose: whose.clone(),
            daemon,
            asked: round,
            seen: round,
        };
        let known = self.entries.insert(process.pid, entry);
        if let (Some(known), Some(entry)) = (known, self.entries.get_mut(&process.pid))
            && known.whose == entry.whose
        {
            entry.daemon = known.daemon;
        }
        whose
    }

    /// Whose the process with this pid is: what is known of it, or what it says now.
    pub(super) fn of_pid(&self, host: &Host, pid: u32) -> Whose {
        let known = self.entries.get(&pid).map(|entry| entry.whose.clone());
        known.unwrap_or_else(|| Whose::of(&host.cgroups_of(pid), self.places))
    }

    /// A number for the pod of this process, as far as it was asked.
    pub(super) fn share(&self, pid: u32) -> Option<u64> {
        use std::hash::BuildHasher as _;
        let whose = &self.entries.get(&pid)?.whose;
        whose.share().map(|share| self.entries.hasher().hash_one(share))
    }

    fn entry(&mut self, process: &Process) -> &mut Entry {
        let (round, inode, comm, places) = (self.round, process.inode, hash(process), self.places);
        self.entries.entry(process.pid).or_insert_with(|| {
            let whose = Whose::of(&process.cgroup(), places);
            Entry { inode, comm, whose, daemon: None, asked: round, seen: round }
        })
    }
}

fn hash(process: &Process) -> u32 {
    process.comm.map_or(0, |comm| comm.hash32())
}
