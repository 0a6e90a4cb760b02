//! From a snapshot to numbers, without reading anything.

use std::time::{Duration, Instant};

use super::live::Live;
use super::orphans::Ages;
use super::snapshot::{Memory, Populated, Snapshot};
use super::{CGROUPS, DIRECTORIES, DYING, KUBEPODS, MEMCG_IDS, MEMCG_IDS_LIMIT, MEMCG_IDS_USED, ORPHANED};
use crate::kubelet::cgroup_name::Qos;
use crate::kubelet::kubepods::{Directory, Kind};
use crate::metric::Samples;

/// Held, visible, dying, and the ids.
pub(super) fn counts(snapshot: &Snapshot, samples: &mut Samples) {
    for controller in &snapshot.v1 {
        let labels = [controller.name.as_str()];
        // A cgroup made under the walk may be seen and not counted: that is no negative number of dying ones.
        let dying = controller.held.zip(controller.visible).map(|(held, visible)| held.saturating_sub(visible));
        samples.push_some(&CGROUPS, &labels, controller.held.map(|held| held as f64));
        samples.push_some(&DIRECTORIES, &labels, controller.visible.map(|visible| visible as f64));
        samples.push_some(&DYING, &labels, dying.map(|dying| dying as f64));
    }
    if let Some(stat) = &snapshot.unified {
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
fn ids_used(snapshot: &Snapshot) -> Option<u64> {
    match snapshot.memory {
        Memory::None => None,
        Memory::V1 => {
            let memory = snapshot.v1.iter().find(|controller| controller.name == "memory")?;
            if snapshot.kernel.as_ref()?.version < (4, 8) { memory.held } else { memory.visible }
        }
        Memory::Unified(walked) => {
            let printed = snapshot.unified.as_ref().and_then(|stat| stat.controller("memory"));
            printed.map(|memory| memory.live).or(walked)
        }
    }
}

/// What lies below kubepods, and what of it is nobody's.
pub(super) fn kubepods(snapshot: &Snapshot, ages: &mut Ages, grace: Duration, now: Instant, samples: &mut Samples) {
    let Some(directories) = &snapshot.kubepods else {
        ages.update(std::iter::empty(), snapshot.complete, now);
        return;
    };
    for kind in Kind::ALL {
        for qos in Qos::ALL {
            let count = directories.iter().filter(|one| one.kind == kind && one.qos == qos).count();
            samples.push(&KUBEPODS, &[kind.as_str(), qos.as_str()], count as f64);
        }
    }
    if let Some(live) = Live::from_cgroups(directories) {
        live.push(samples);
    }
    let idle = idle(directories);
    ages.update(idle.iter().map(|&index| directories[index].inode), snapshot.complete, now);
    if directories.iter().any(|directory| directory.data.is_none()) {
        return;
    }
    for kind in Kind::ALL {
        let orphaned = idle.iter().map(|&index| &directories[index]);
        let orphaned = orphaned.filter(|one| one.kind == kind && ages.reached(one.inode, grace, now)).count();
        samples.push(&ORPHANED, &[kind.as_str()], orphaned as f64);
    }
}

/// Directories without a process in or below them. Empty ones that a live container made in its own cgroup (systemd in a
/// container has dozens) are that container's business.
fn idle(directories: &[Directory<Populated>]) -> Vec<usize> {
    let mut owned = vec![false; directories.len()];
    for (index, directory) in directories.iter().enumerate() {
        owned[index] = directory.parent.is_some_and(|parent| {
            owned[parent] || (directories[parent].kind == Kind::Container && directories[parent].data == Some(true))
        });
    }
    (0..directories.len()).filter(|&index| directories[index].data == Some(false) && !owned[index]).collect()
}
