//! The cgroups below `kubepods`: found in a hierarchy and told apart by name, in the course of a walk.
//!
//! Which files are read of each is the caller's business: it hands in a [`Probe`]. There can be two trees at once: a kubelet
//! whose driver was changed leaves the old one behind (`kubepods` beside `kubepods.slice`), and nothing removes it.

use crate::host::cgroup::walk::Entry;
use crate::host::cgroup::{Hierarchy, Layout};

use super::cgroup_name::{CgroupRole, Qos, is_root};

/// `--cgroup-root` may put the tree below other directories; further down than this it is not looked for.
const SEARCHED_LEVELS: u8 = 3;

/// What a directory below kubepods is. The QoS directories themselves are none of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A pod's own.
    Pod,
    /// A container's, pause containers included.
    Container,
    /// Anything else.
    Other,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 3] = [Kind::Pod, Kind::Container, Kind::Other];

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Pod => "pod",
            Kind::Container => "container",
            Kind::Other => "other",
        }
    }
}

/// One directory below kubepods, with what the probe read of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory<T> {
    /// What it is.
    pub kind: Kind,
    /// Where it lies.
    pub qos: Qos,
    /// Its inode number: what tells it from a later directory of the same name.
    pub inode: u64,
    /// The index of the directory that it lies in, always smaller than its own; `None` directly in the root or a QoS directory.
    pub parent: Option<usize>,
    /// What the probe read.
    pub data: T,
}

/// What is read of the directories that a [`Search`] finds.
pub trait Probe {
    /// Of each directory.
    type Data;

    /// Looks at a kubepods root.
    fn root(&mut self, _entry: &Entry<'_>) {}

    /// Looks at a directory below it, after its parent. `None` if it went away meanwhile: then it does not count.
    fn directory(&mut self, entry: &Entry<'_>, parent: Option<&Self::Data>) -> Option<Self::Data>;
}

/// Where the walk is, as seen from kubepods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// Above any kubepods, so many levels below the hierarchy's root.
    Above(u8),
    /// Where no kubepods will be met any more.
    Outside,
    /// In a kubepods tree; with the index of the directory, if it is one that counts.
    Within(CgroupRole, Option<usize>),
}

impl Position {
    /// Where a walk of a whole hierarchy starts.
    pub const TOP: Position = Position::Above(0);
}

/// Collects the directories below kubepods while something walks over the hierarchy.
#[derive(Debug)]
pub struct Search<P: Probe> {
    levels: u8,
    /// What reads the directories.
    pub probe: P,
    /// Kubepods roots met; with 0 this is no node that runs pods.
    pub roots: u64,
    /// Everything below them except the QoS directories.
    pub directories: Vec<Directory<P::Data>>,
}

impl<P: Probe> Search<P> {
    /// A search in one hierarchy. A tree at its root is this node's; only without one are deeper levels looked at, so that a
    /// Kubernetes inside of a container is not taken for the node's.
    pub fn new(hierarchy: &Hierarchy, probe: P) -> Self {
        let at_root = ["kubepods", "kubepods.slice"].iter().any(|name| hierarchy.has_child(name));
        let levels = if at_root { 1 } else { SEARCHED_LEVELS };
        Search { levels, probe, roots: 0, directories: Vec::new() }
    }

    /// Takes in one directory, and gives the position for those in it; `None` if it went away.
    pub fn step(&mut self, position: Position, entry: &Entry<'_>) -> Option<Position> {
        let (place, parent) = match position {
            Position::Outside => return Some(Position::Outside),
            Position::Above(_) if is_root(&entry.name()) => {
                self.roots += 1;
                self.probe.root(entry);
                return Some(Position::Within(CgroupRole::Root, None));
            }
            Position::Above(level) if level + 1 < self.levels => return Some(Position::Above(level + 1)),
            Position::Above(_) => return Some(Position::Outside),
            Position::Within(place, parent) => (place.child(&entry.name()), parent),
        };
        let (kind, qos) = match place {
            CgroupRole::Root | CgroupRole::Qos(_) => return Some(Position::Within(place, None)),
            CgroupRole::Pod(qos) => (Kind::Pod, qos),
            CgroupRole::Container(qos) => (Kind::Container, qos),
            CgroupRole::Other(qos) => (Kind::Other, qos),
        };
        let data = self.probe.directory(entry, parent.map(|parent| &self.directories[parent].data))?;
        self.directories.push(Directory { kind, qos, inode: entry.inode, parent, data });
        Some(Position::Within(place, Some(self.directories.len() - 1)))
    }
}

/// The one hierarchy to look for kubepods in: the memory controller's, where ids run out; else that of pids, which the kubelet
/// always uses too; else any.
pub fn hierarchy(layout: &Layout) -> Option<&Hierarchy> {
    layout.of("memory").or_else(|| layout.of("pids")).or_else(|| layout.hierarchies.first())
}
