//! From a snapshot to numbers, without reading anything.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::snapshot::{Memory, Snapshot};
use super::{
    CGROUPS, DIRECTORIES, DYING, KUBEPODS, MEMCG_IDS, MEMCG_IDS_LIMIT, MEMCG_IDS_USED, Memories, ORPHANED, containers,
};
use crate::error::Error;
use crate::kubelet::cgroup_name::Qos;
use crate::kubelet::kubepods::{Directory, Kind};
use crate::metric::Samples;
use crate::modes::unknown_to_runtime::{SETTLE, Span};
use crate::runtime::Inventory;

/// Held, visible, dying, and the ids.
pub(super) fn counts(snapshot: &Snapshot<'_>, samples: &mut Samples) {
    for controller in &snapshot.v1 {
        let labels = [controller.name.as_str()];
        // A cgroup made under the walk may be seen and not counted: that is no negative number of dying ones.
        let dying = controller.held.zip(controller.visible).map(|(held, visible)| held.saturating_sub(visible));
        samples.push_some(&CGROUPS, &labels, controller.held.map(|held| held as f64));
        samples.push_some(&DIRECTORIES, &labels, controller.visible.map(|visible| visible as f64));
        samples.push_some(&DYING, &labels, dying.map(|dying| dying as f64));
    }
    if let Some(stat) = snapshot.unified {
        // The kernel counts what is below the root; controllers at and below it.
        let all = ("unified", stat.descendants + 1, stat.dying_descendants);
        let controllers = stat.controllers.iter().map(|one| (one.name.as_str(), one.live, one.dying));
        let mounted = |name: &str| snapshot.v1.iter().any(|controller| controller.name == name);
        for (name, live, dying) in std::iter::once(all).chain(controllers.filter(|(name, ..)| !mounted(name))) {
            samples.push(&CGROUPS, &[name], (live + dying) as f64);
            samples.push(&DIRECTORIES, &[name], live as f64);
            samples.push(&DYING, &[name], dying as f64);
        }
    }
    if snapshot.memory != Memory::None {
        samples.push_some(&MEMCG_IDS_USED, &[], ids_used(snapshot).map(|ids| ids as f64));
        samples.push(&MEMCG_IDS_LIMIT, &[], MEMCG_IDS as f64);
    }
}

/// Memory cgroup ids in use, by the rule of this kernel (see the mode's documentation).
fn ids_used(snapshot: &Snapshot<'_>) -> Option<u64> {
    match snapshot.memory {
        Memory::None => None,
        Memory::V1 => {
            let memory = snapshot.v1.iter().find(|controller| controller.name == "memory")?;
            if snapshot.kernel.as_ref()?.version < (4, 8) { memory.held } else { memory.visible }
        }
        Memory::Unified(walked) => {
            let printed = snapshot.unified.and_then(|stat| stat.controller("memory"));
            printed.map(|memory| memory.live).or(walked)
        }
    }
}

/// What the container runtime had to say.
pub(super) enum RuntimeAnswer {
    /// There is no runtime: the cgroups are asked.
    None,
    /// There is one, and it did not answer: nothing is said in its place.
    Failed,
    /// What it knew, and when that poll was.
    Inventory(Arc<Inventory>, Span),
}

/// What lies below kubepods, and what of it is nobody's.
pub(super) fn kubepods(
    snapshot: &Snapshot<'_>,
    word: &RuntimeAnswer,
    memories: &mut Memories,
    grace: Duration,
    walk: Span,
    samples: &mut Samples,
) {
    if let RuntimeAnswer::Inventory(inventory, _) = word {
        containers::from_runtime(inventory, samples);
    }
    let directories = snapshot.kubepods.unwrap_or_default();
    let idle = idle(directories);
    memories.idle.update(idle.iter().map(|&index| directories[index].inode), snapshot.complete, walk.ended);
    let unknown = match word {
        RuntimeAnswer::Inventory(inventory, poll) => {
            let unknown = Known::new(inventory).without(directories);
            memories.strangers.update(unknown.iter().map(|one| one.inode), *poll, walk, snapshot.complete);
            unknown
        }
        RuntimeAnswer::None | RuntimeAnswer::Failed => {
            if !memories.strangers.is_empty() {
                let present = directories.iter().map(|directory| directory.inode).collect();
                memories.strangers.pause(&present, snapshot.complete);
            }
            Vec::new()
        }
    };
    if snapshot.kubepods.is_none() {
        return;
    }

    for kind in Kind::ALL {
        for qos in Qos::ALL {
            let count = directories.iter().filter(|one| one.kind == kind && one.qos == qos).count();
            samples.push(&KUBEPODS, &[kind.as_str(), qos.as_str()], count as f64);
        }
    }
    let push = |samples: &mut Samples, kind: Kind, count: usize| {
        samples.push(&ORPHANED, &[kind.as_str()], count as f64);
    };
    let all_read = directories.iter().all(|directory| directory.populated.is_some());
    let idle_for = |kind: Kind, grace: Duration| {
        let of_kind = idle.iter().map(|&index| &directories[index]).filter(|one| one.kind == kind);
        of_kind.filter(|one| memories.idle.reached(one.inode, grace, walk.ended)).count()
    };
    match word {
        RuntimeAnswer::None => {
            containers::from_cgroups(directories, samples);
            if all_read {
                Kind::ALL.into_iter().for_each(|kind| push(samples, kind, idle_for(kind, grace)));
            }
        }
        RuntimeAnswer::Failed | RuntimeAnswer::Inventory(..) => {
            if let RuntimeAnswer::Inventory(inventory, _) = word {
                let old = |one: &&&Directory| memories.strangers.reached(&one.inode, grace);
                let orphans: Vec<_> = unknown.iter().filter(old).collect();
                let mine = directories.iter().filter(|one| one.kind != Kind::Other).count();
                if unknown.len() == mine && orphans.iter().any(|one| one.populated == Some(true)) {
                    samples.fail(somebody_elses(inventory));
                } else {
                    for kind in [Kind::Pod, Kind::Container] {
                        push(samples, kind, orphans.iter().filter(|one| one.kind == kind).count());
                    }
                }
            }
            if all_read {
                push(samples, Kind::Other, idle_for(Kind::Other, grace.max(SETTLE)));
            }
        }
    }
}

/// Processes run in pods, and the runtime that answers knows none of these pods: it is not the one that runs them.
fn somebody_elses(inventory: &Inventory) -> Error {
    let endpoint = &inventory.identity.endpoint;
    Error::malformed(format!(
        "{endpoint} knows none of the pods that run on this node: set --runtime.endpoint to the socket of the kubelet's \
         runtime"
    ))
}

/// The ids that the runtime knows.
struct Known<'a> {
    pods: HashSet<&'a str>,
    /// Containers and sandboxes.
    containers: HashSet<&'a str>,
}

impl<'a> Known<'a> {
    fn new(inventory: &'a Inventory) -> Self {
        let (containers, sandboxes) = (&inventory.containers, &inventory.sandboxes);
        let pods = containers.iter().map(|one| &one.pod).chain(sandboxes.iter().map(|one| &one.pod));
        let ids = containers.iter().map(|one| &one.id).chain(sandboxes.iter().map(|one| &one.id));
        Known { pods: pods.map(|pod| pod.uid.as_str()).collect(), containers: ids.map(String::as_str).collect() }
    }

    /// The directories of pods and containers that it does not know.
    fn without<'d>(&self, directories: &'d [Directory]) -> Vec<&'d Directory> {
        let known = |one: &Directory| match one.kind {
            Kind::Pod => one.pod_uid().is_some_and(|uid| self.pods.contains(uid.as_str())),
            Kind::Container => one.container_id().is_some_and(|id| self.containers.contains(id)),
            Kind::Other => true,
        };
        directories.iter().filter(|one| !known(one)).collect()
    }
}

/// Directories without a process in or below them. Empty ones that a live container made in its own cgroup (systemd in
/// a container has dozens) are that container's business.
fn idle(directories: &[Directory]) -> Vec<usize> {
    let mut owned = vec![false; directories.len()];
    for (index, directory) in directories.iter().enumerate() {
        owned[index] = directory.parent.is_some_and(|parent| {
            let above = &directories[parent];
            owned[parent] || (above.kind == Kind::Container && above.populated == Some(true))
        });
    }
    (0..directories.len()).filter(|&index| directories[index].populated == Some(false) && !owned[index]).collect()
}
