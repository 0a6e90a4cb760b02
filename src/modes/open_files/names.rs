//! Names of pods and containers, by the word of the runtime, for the ids that a cgroup path carries.

use std::collections::HashSet;

use crate::kubelet::cgroup_name::PodPlace;
use crate::metric::DroppedPod;
use crate::runtime::{self, Pod};

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

/// The `pod_uid` of a process that has no place: none for one outside of pods, which alerts take for a daemon of the
/// node's. One that may be in a pod is none.
pub(super) fn unknown_pod(unplaced: bool) -> &'static str {
    if unplaced { "unknown" } else { "" }
}

/// Who is asked about in `places`: uids of pods, ids of containers.
pub(super) fn wanted<'a>(places: impl Iterator<Item = &'a PodPlace>) -> (HashSet<&'a str>, HashSet<&'a str>) {
    let (mut uids, mut containers) = (HashSet::new(), HashSet::new());
    for place in places {
        uids.insert(place.pod_uid.as_str());
        containers.extend(place.container_id.as_deref());
    }
    (uids, containers)
}

impl Names {
    /// A container that is known by nothing but its pod's uid has its pod's names.
    pub(super) fn of(place: &PodPlace, known: &runtime::Names) -> Self {
        let of_container = place.container_id.as_deref().and_then(|id| known.container(id));
        let of_pod = || known.pod(&place.pod_uid).map(|pod| (pod, ""));
        of_container.or_else(of_pod).map(|(pod, container)| Names::new(pod, container)).unwrap_or_default()
    }
}

/// A pod of which something was left out.
pub(super) fn dropped(uid: &str, known: &runtime::Names) -> DroppedPod {
    let (namespace, name) = known.pod(uid).map(|pod| (pod.namespace.clone(), pod.name.clone())).unwrap_or_default();
    DroppedPod { namespace, name, uid: uid.to_owned() }
}

/// True of a process whose names may still come.
pub(super) fn awaited(place: Option<&PodPlace>, known: &runtime::Names) -> bool {
    place.is_some_and(|place| {
        known.awaits(&place.pod_uid) || place.container_id.as_deref().is_some_and(|id| known.awaits(id))
    })
}
