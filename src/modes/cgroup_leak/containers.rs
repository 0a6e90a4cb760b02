//! Which containers are alive, and who says so: the runtime, or without one the cgroups.

use super::{CONTAINERS, RUNTIME_INFO, SANDBOXES};
use crate::kubelet::kubepods::{Directory, Kind};
use crate::metric::Samples;
use crate::runtime::{ContainerState, Inventory};

/// The label value of a state.
fn word(state: ContainerState) -> &'static str {
    match state {
        ContainerState::Created => "created",
        ContainerState::Running => "running",
        ContainerState::Exited => "exited",
        ContainerState::Unknown => "unknown",
    }
}

/// Exposes what the runtime says; also the states that no container is in.
pub(super) fn from_runtime(inventory: &Inventory, samples: &mut Samples) {
    let identity = &inventory.identity;
    let labels = [identity.protocol.as_str(), &identity.name, &identity.version, &identity.endpoint];
    samples.info(&RUNTIME_INFO, &labels);
    use ContainerState::{Created, Exited, Running, Unknown};
    for state in [Running, Created, Exited, Unknown] {
        let count = inventory.containers.iter().filter(|container| container.state == state).count();
        samples.push(&CONTAINERS, &[word(state)], count as f64);
    }
    for (label, ready) in [("ready", true), ("notready", false)] {
        let count = inventory.sandboxes.iter().filter(|sandbox| sandbox.ready == ready).count();
        samples.push(&SANDBOXES, &[label], count as f64);
    }
}

/// Exposes what can be told without a runtime: a container is running while its cgroup has a process. Nothing if that
/// could not be read of each.
pub(super) fn from_cgroups(directories: &[Directory], samples: &mut Samples) {
    let (mut running, mut unknown) = (0_u64, 0_u64);
    for directory in directories.iter().filter(|directory| directory.kind == Kind::Container) {
        match directory.populated {
            Some(true) => running += 1,
            Some(false) => unknown += 1,
            None => return,
        }
    }
    samples.info(&RUNTIME_INFO, &["cgroup", "", "", ""]);
    samples.push(&CONTAINERS, &["running"], running as f64);
    samples.push(&CONTAINERS, &["unknown"], unknown as f64);
}
