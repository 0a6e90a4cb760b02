//! The pods of this node and a process of each of their containers, as the cgroups below kubepods tell.

use crate::error::{Error, Reason};
use crate::host::cgroup::Layout;
use crate::host::cgroup::walk::{Bounds, Entry, Stopped, walk};
use crate::kubelet::cgroup_name;
use crate::kubelet::kubepods::{self, Directory, Kind, Position, Probe, Search};
use crate::metric::Samples;
use crate::modes::Context;

/// Directories that are walked at the most: more than there can be memory cgroups.
const MOST_DIRECTORIES: u64 = 100_000;

/// A container of a pod with a process in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Container {
    /// Of its cgroup: kernfs counts them up and never gives one twice, so they tell age and identity.
    pub(super) inode: u64,
    pub(super) id: Box<str>,
    pub(super) pid: u32,
}

/// A pod with at least one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) uid: Box<str>,
    /// The oldest first. That is the pause container, where the runtime makes one.
    pub(super) containers: Vec<Container>,
}

/// What the walk found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) pods: Vec<Pod>,
    /// Every pod is there: the walk was not cut short.
    pub(super) whole: bool,
}

/// Looks for pods; `None` on a machine without kubepods.
pub(super) fn find(context: Context<'_>, samples: &mut Samples) -> Option<Found> {
    let layout = samples.ok(Layout::find(context.host))??;
    let hierarchy = kubepods::hierarchy(&layout)?;
    let bounds = Bounds { directories: MOST_DIRECTORIES, deadline: context.deadline };
    let mut search = Search::new(hierarchy, FirstProcess::default());
    let extent = walk(&hierarchy.path, Position::TOP, bounds, |entry, position| {
        let position = search.step(position, entry)?;
        (position != Position::Outside).then_some(position)
    });
    let mut whole = false;
    match samples.ok(extent).map(|extent| extent.stopped) {
        Some(None) => whole = true,
        Some(Some(Stopped::Bound(left))) => samples.drop_count(left),
        Some(Some(Stopped::Failed(error))) => samples.fail(error),
        None => {}
    }
    if let Some(error) = search.probe.unread {
        samples.fail(error);
    }
    (search.roots > 0).then(|| Found { pods: pods(&search.directories), whole })
}

/// Puts containers into their pods, and processes further down into their containers.
fn pods(directories: &[Directory<Seen>]) -> Vec<Pod> {
    let mut pods: Vec<(usize, Pod)> = Vec::new();
    for (index, directory) in directories.iter().enumerate() {
        if directory.kind == Kind::Pod {
            let uid = directory.data.name.clone().unwrap_or_default();
            pods.push((index, Pod { uid, containers: Vec::new() }));
        }
        let Some(pid) = directory.data.pid else { continue };
        // Up to the container, and from there to the pod.
        let mut at = Some(index);
        while let Some(container) = at.filter(|&at| directories[at].kind != Kind::Container) {
            at = directories[container].parent;
        }
        let Some(container) = at.map(|at| &directories[at]) else { continue };
        let pod = pods.iter_mut().rev().find(|(pod, _)| Some(*pod) == container.parent);
        let Some((_, pod)) = pod else { continue };
        if pod.containers.iter().all(|known| known.inode != container.inode) {
            let id = container.data.name.clone().unwrap_or_default();
            pod.containers.push(Container { inode: container.inode, id, pid });
        }
    }
    for (_, pod) in &mut pods {
        pod.containers.sort_unstable_by_key(|container| container.inode);
    }
    pods.into_iter().map(|(_, pod)| pod).filter(|pod| !pod.containers.is_empty()).collect()
}

/// What is known of a directory.
#[derive(Debug)]
struct Seen {
    /// A pod's uid or a container's id.
    name: Option<Box<str>>,
    /// The first process in it.
    pid: Option<u32>,
    /// A process was found in it or further up.
    found: bool,
}

/// Reads the first process of each container; of the cgroups that it made in its own only while none was found further up.
#[derive(Default)]
struct FirstProcess {
    /// The first error; there is no use in a thousand of the same.
    unread: Option<Error>,
}

impl FirstProcess {
    fn read(&mut self, entry: &Entry<'_>) -> Option<u32> {
        let error = match entry.first("cgroup.procs") {
            Ok(text) => match text.lines().next()?.parse() {
                Ok(0) => Error::new(
                    Reason::Denied,
                    "cgroup.procs: processes of pods are of another pid namespace than ours (hostPID: true is missing)",
                ),
                Ok(pid) => return Some(pid),
                Err(_) => Error::malformed(format!("cgroup.procs: {:?}", text.lines().next())),
            },
            Err(error) if entry.is_gone(&error) => return None,
            Err(error) => error,
        };
        self.unread.get_or_insert(error);
        None
    }
}

impl Probe for FirstProcess {
    type Data = Seen;

    fn directory(&mut self, entry: &Entry<'_>, parent: Option<&Seen>) -> Option<Seen> {
        let name = entry.name();
        if let Some(uid) = cgroup_name::pod_uid(&name).filter(|_| parent.is_none()) {
            return Some(Seen { name: Some(uid.into()), pid: None, found: false });
        }
        if parent.is_some_and(|parent| parent.found) {
            return Some(Seen { name: None, pid: None, found: true });
        }
        let pid = self.read(entry);
        Some(Seen { name: cgroup_name::container_id(&name).map(Into::into), pid, found: pid.is_some() })
    }
}
