//! Which containers are alive, and who says so. Here only the cgroups are asked; a container runtime comes in front of them as
//! another way to make the same [`Live`].

use super::snapshot::Populated;
use super::{CONTAINERS, RUNTIME_INFO};
use crate::kubelet::kubepods::{Directory, Kind};
use crate::metric::Samples;

/// The containers of this node by state, with the source of that knowledge.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Live {
    /// `cgroup`; `cri` and `docker` are the runtimes'.
    source: &'static str,
    runtime: String,
    version: String,
    endpoint: String,
    /// Each state that this source can tell, also those that no container is in.
    states: Vec<(&'static str, u64)>,
}

impl Live {
    /// What can be told without a runtime: a container is running while its cgroup has a process. `None` if that could not be
    /// read of each.
    pub(super) fn from_cgroups(directories: &[Directory<Populated>]) -> Option<Self> {
        let (mut running, mut unknown) = (0, 0);
        for directory in directories.iter().filter(|directory| directory.kind == Kind::Container) {
            *(if directory.data? { &mut running } else { &mut unknown }) += 1;
        }
        Some(Live {
            source: "cgroup",
            runtime: String::new(),
            version: String::new(),
            endpoint: String::new(),
            states: vec![("running", running), ("unknown", unknown)],
        })
    }

    /// Exposes it.
    pub(super) fn push(&self, samples: &mut Samples) {
        samples.info(&RUNTIME_INFO, &[self.source, &self.runtime, &self.version, &self.endpoint]);
        for &(state, count) in &self.states {
            samples.push(&CONTAINERS, &[state], count as f64);
        }
    }
}
