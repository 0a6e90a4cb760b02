//! The process with the most threads in each of a few cgroups.

use std::path::Path;

use super::MOST_OF_POD;
use super::cgroups::{NodeCgroup, Role, relative};
use super::pods::Pod;
use crate::host::cgroup::tasks::{TaskFiles, path_in};
use crate::host::pids::Pids;
use crate::host::{Deadline, Host};
use crate::kubelet::kubepods::Walk;

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Largest {
    pub(super) pid: u32,
    pub(super) comm: String,
    pub(super) threads: u64,
    /// `None` of a pod.
    pub(super) role: Option<Role>,
    /// Empty outside of pods.
    pub(super) pod_uid: String,
}

/// Of the units and of these pods. One whose processes are too many to be looked at, or may not be, has none.
pub(super) fn largest(
    host: &Host,
    files: &TaskFiles,
    node: &[NodeCgroup],
    pods: &[Pod],
    walk: Option<&Walk>,
    deadline: Deadline,
) -> Vec<Largest> {
    // The numbers in cgroup.procs must be those of this procfs.
    let told = host.require_host_pid().and_then(|()| host.is_told_of_the_machines_processes());
    let (Ok(()), Ok(pids)) = (told, host.pids()) else { return Vec::new() };
    let of_units = node
        .iter()
        .filter(|one| one.role.is_of_a_process())
        .map(|one| (Some(one.role), String::new(), vec![one.path.clone()]));
    let of_pods = pods.iter().zip(std::iter::repeat(walk)).filter_map(|(pod, walk)| {
        let walk = walk?;
        let below = walk.tree.directories.iter().enumerate().filter(|(_, one)| one.pod == Some(pod.index));
        let paths: Vec<String> = below.filter_map(|(index, _)| relative(walk, index)).take(MOST_OF_POD + 1).collect();
        (paths.len() <= MOST_OF_POD).then(|| (None, pod.uid.clone(), paths))
    });
    let all = of_units.chain(of_pods).take_while(|_| !deadline.expired());
    let found = all.filter_map(|(role, pod_uid, paths)| {
        let (pid, threads) = most(files, &pids, &paths)?;
        // The number may be another process's by now.
        let cgroups = host.cgroups_of(pid).ok()?;
        let path = path_in(&cgroups, files.unified)?;
        let inside = paths.iter().any(|above| Path::new(path).starts_with(above));
        inside.then_some(())?;
        Some(Largest { pid, comm: pids.comm(pid).ok()?, threads, role, pod_uid })
    });
    found.collect()
}

fn most(files: &TaskFiles, pids: &Pids, paths: &[String]) -> Option<(u32, u64)> {
    let mut most: Option<(u32, u64)> = None;
    for path in paths {
        for pid in files.processes(path).ok()?? {
            // One that ended meanwhile is not the largest.
            let Ok(threads) = pids.threads(pid) else { continue };
            if most.is_none_or(|(_, before)| threads > before) {
                most = Some((pid, threads));
            }
        }
    }
    most
}
