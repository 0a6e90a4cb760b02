//! The pods that run, with a process of each of their containers.

use std::collections::BTreeMap;

use super::{Kind, Tree};

/// A pod with at least one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its uid, as its cgroup has it.
    pub uid: String,
    /// The oldest first. That is the pause container, where the runtime makes one.
    pub containers: Vec<Container>,
}

/// A container of a pod with a process in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Of its cgroup: kernfs counts them up and never gives one twice, so they tell age and identity.
    pub inode: u64,
    /// The runtime's id.
    pub id: String,
    /// Its first process, maybe in a cgroup that it made in its own.
    pub pid: u32,
}

impl Tree {
    /// A process of each container that has any, by the container's index: its own first one, or one in a cgroup that
    /// was made in its own (crun's `container`, systemd or Docker inside).
    pub fn processes(&self) -> BTreeMap<usize, u32> {
        let mut processes = BTreeMap::new();
        for (index, directory) in self.directories.iter().enumerate() {
            let Some(pid) = directory.pid else { continue };
            let mut above = std::iter::successors(Some(index), |one| self.directories[*one].parent);
            if let Some(container) = above.find(|one| self.directories[*one].kind == Kind::Container) {
                processes.entry(container).or_insert(pid);
            }
        }
        processes
    }

    /// Puts processes into their containers, and these into their pods, in the order of the walk.
    pub fn running_pods(&self) -> Vec<Pod> {
        let mut pods: Vec<(usize, Pod)> = Vec::new();
        for (index, directory) in self.directories.iter().enumerate() {
            if directory.kind == Kind::Pod {
                let uid = directory.pod_uid().unwrap_or_default();
                pods.push((index, Pod { uid, containers: Vec::new() }));
            }
        }
        for (index, pid) in self.processes() {
            let container = &self.directories[index];
            let pod = container.pod.and_then(|pod| pods.binary_search_by_key(&pod, |(index, _)| *index).ok());
            let Some((_, pod)) = pod.map(|pod| &mut pods[pod]) else { continue };
            let id = container.container_id().unwrap_or_default().to_owned();
            pod.containers.push(Container { inode: container.inode, id, pid });
        }
        for (_, pod) in &mut pods {
            pod.containers.sort_unstable_by_key(|container| container.inode);
        }
        pods.into_iter().map(|(_, pod)| pod).filter(|pod| !pod.containers.is_empty()).collect()
    }
}
