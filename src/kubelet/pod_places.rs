//! In which pod a process is, by its cgroups.

use super::cgroup_name::{PodPlace, SEARCHED_LEVELS, of_path};
use crate::host::Host;

/// Where the hierarchies may be mounted, below `sys/fs/cgroup`: v2, and of v1 those that the kubelet always uses.
const HIERARCHIES: [&str; 5] = ["", "memory", "pids", "systemd", "unified"];

/// Where this node has its pods' cgroups.
#[derive(Clone, Copy, Debug)]
pub struct PodPlaces {
    levels: usize,
}

/// Of a machine that nobody looked at: anywhere where a kubelet may have them.
impl Default for PodPlaces {
    fn default() -> Self {
        PodPlaces { levels: SEARCHED_LEVELS }
    }
}

impl PodPlaces {
    /// A tree at a hierarchy's root is this node's. Only without one are deeper levels looked at, as
    /// [`super::kubepods`] does it: whoever makes a second one further down is no kubelet of this node's.
    pub fn of(host: &Host) -> Self {
        let at_root = HIERARCHIES.iter().any(|hierarchy| {
            let base = host.sys("fs/cgroup").join(hierarchy);
            ["kubepods", "kubepods.slice"].iter().any(|name| host.is_directory(base.join(name)))
        });
        PodPlaces { levels: if at_root { 1 } else { SEARCHED_LEVELS } }
    }

    /// The pod and the container of a process, by its `/proc/PID/cgroup`.
    pub fn place(self, cgroups: &str) -> Option<PodPlace> {
        // On v1 there is a line per hierarchy, and some may not go as deep as others.
        let places = cgroups.lines().filter_map(|line| of_path(line, self.levels));
        places.max_by_key(|place| place.container_id.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::cgroup::recorded::Machine;

    #[test]
    fn a_tree_at_the_root_is_the_only_one() {
        let id = "c".repeat(64);
        let uid = |places: PodPlaces, path: &str| {
            places.place(&format!("4:memory:{path}/{id}\n0::/\n")).map(|place| place.pod_uid)
        };
        for machine in [Machine::v1(), Machine::v2()] {
            let places = PodPlaces::of(&machine.host);
            assert_eq!(uid(places, "/kubepods/podreal").as_deref(), Some("real"));
            assert_eq!(uid(places, "/mine/kubepods/podvictim"), None);
        }
        let custom = Machine::empty();
        custom.cgroup("memory/mine/kubepods/podx/cgroup.procs", "");
        assert_eq!(uid(PodPlaces::of(&custom.host), "/mine/kubepods/podx").as_deref(), Some("x"));
    }
}
