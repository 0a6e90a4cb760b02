//! Names of pods and containers, by the word of the runtime, for the ids that a cgroup path carries.

use std::collections::HashMap;

use crate::kubelet::cgroup_name::PodPlace;
use crate::runtime::{Inventory, Pod};

/// Who a process belongs to, as people call it. Empty where the runtime does not know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) namespace: String,
    pub(super) pod: String,
    /// Empty for the pause process of a sandbox, too.
    pub(super) container: String,
}

impl Names {
    fn new(pod: &Pod, container: &str) -> Self {
        Names { namespace: pod.namespace.clone(), pod: pod.name.clone(), container: container.to_owned() }
    }
}

/// Fills in the names. Two passes over what may be thousands of containers, for the few processes that matter. A
/// container that is known by nothing but its pod's uid has its pod's names.
pub(super) fn fill(slots: Vec<(&PodPlace, &mut Names)>, inventory: &Inventory) {
    let places = || slots.iter().map(|(place, _)| *place);
    let mut by_id: HashMap<String, Option<Names>> =
        places().filter_map(|place| place.container_id.clone()).map(|id| (id, None)).collect();
    let uids: Vec<String> = places().map(|place| place.pod_uid.clone()).collect();
    let by_uid = inventory.pods(&uids.iter().map(String::as_str).collect());
    let containers = inventory.containers.iter().map(|one| (&one.id, &one.pod, one.name.as_str()));
    let sandboxes = inventory.sandboxes.iter().map(|one| (&one.id, &one.pod, ""));
    for (id, pod, container) in containers.chain(sandboxes) {
        if let Some(slot) = by_id.get_mut(id) {
            *slot = Some(Names::new(pod, container));
        }
    }
    for (place, slot) in slots {
        let of_container = place.container_id.as_ref().and_then(|id| by_id.get(id)?.clone());
        let of_pod = || by_uid.get(place.pod_uid.as_str()).map(|pod| Names::new(pod, ""));
        *slot = of_container.or_else(of_pod).unwrap_or_default();
    }
}
