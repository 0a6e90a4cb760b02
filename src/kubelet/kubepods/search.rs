//! Finds kubepods in the course of a walk over a hierarchy, tells what lies below it apart by name, and reads each
//! directory.

use super::kernel_memory::{self, Charged, accounts_by_cgroup};
use super::recall::Known;
use super::{Directory, Kind, Tree, Unread};
use crate::error::{Error, Reason, Result};
use crate::host::Host;
use crate::host::cgroup::Hierarchy;
use crate::host::cgroup::walk::{Below, Entry};
use crate::host::text::keyed;
use crate::kubelet::cgroup_name::{CgroupRole, SEARCHED_LEVELS, is_root_in, may_hold_pods};

/// Where the walk is, as seen from kubepods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Position {
    /// Above any kubepods, so many levels below the hierarchy's root, in the directory of this base.
    Above(usize, usize),
    /// Where no kubepods will be met any more.
    Outside,
    /// In a kubepods tree.
    Within(Within),
}

impl Position {
    /// Where a walk of a whole hierarchy starts.
    pub(super) const TOP: Position = Position::Above(0, 0);
}

/// A directory of a kubepods tree, with what those in it must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Within {
    role: CgroupRole,
    base: usize,
    /// Its index, if it is one that counts.
    index: Option<usize>,
    pod: Option<usize>,
    /// A process was found in it or further up.
    found: bool,
}

/// Where an error of one kind of reading is noted.
type Slot = fn(&mut Unread) -> &mut Option<Error>;

/// Collects what lies below kubepods while something walks over the hierarchy.
pub(super) struct Search<'a> {
    known: Known<'a>,
    unified: bool,
    memory: bool,
    levels: usize,
    /// Whether the kernel names processes to us at all. Told of none, every v1 directory would look like one that
    /// nobody is in.
    told: Result<()>,
    accounts_by_cgroup: bool,
    tree: Tree,
    /// Directories that have nothing to do with pods, each a share of its own.
    outside: usize,
    /// The pod (or stray container) that the directory at hand is of, where whoever runs in it may close it to us.
    owner: Option<usize>,
    /// Some directory of a container could be read.
    open: bool,
    /// What those did not let us read.
    denied: Unread,
}

impl<'a> Search<'a> {
    /// A search in one hierarchy. A tree at its root is this node's; only without one are deeper levels looked at, so
    /// that a Kubernetes inside of a container is not taken for the node's.
    pub(super) fn new(host: &Host, hierarchy: &Hierarchy, known: Known<'a>) -> Self {
        let (unified, memory) = (hierarchy.unified, hierarchy.has("memory"));
        let at_root = ["kubepods", "kubepods.slice"].iter().any(|name| hierarchy.has_child(name));
        Search {
            known,
            unified,
            memory,
            levels: if at_root { 1 } else { SEARCHED_LEVELS },
            told: if unified { Ok(()) } else { host.is_told_of_the_machines_processes() },
            accounts_by_cgroup: memory && !unified && host.kernel().is_ok_and(|one| accounts_by_cgroup(one.version)),
            tree: Tree { bases: vec![hierarchy.path.clone()], ..Tree::default() },
            outside: 0,
            owner: None,
            open: false,
            denied: Unread::default(),
        }
    }

    /// Takes in one directory, and gives the position for those in it. What containers made in their own, and what has
    /// nothing to do with pods, is put off: whoever makes much of it must not take the room of pods.
    pub(super) fn step(&mut self, position: Position, entry: &Entry<'_>) -> Below<Position> {
        let below = self.place(position, entry);
        match (position, below) {
            (_, None) => Below::Leave,
            (Position::Above(..), Some(below @ Position::Outside)) => {
                self.outside += 1;
                Below::Apart(below, usize::MAX - self.outside)
            }
            (_, Some(below @ Position::Within(Within { index: Some(index), pod, .. }))) if pod != Some(index) => {
                Below::Apart(below, pod.unwrap_or(index))
            }
            (_, Some(below)) => Below::Enter(below),
        }
    }

    /// `None` if it went away.
    fn place(&mut self, position: Position, entry: &Entry<'_>) -> Option<Position> {
        match position {
            Position::Outside => Some(Position::Outside),
            Position::Within(within) => self.below(within, entry).map(Position::Within),
            Position::Above(level, base) => {
                let name = entry.name();
                let above = if level == 0 { None } else { self.tree.bases[base].file_name() };
                if is_root_in(above.map(|above| above.to_string_lossy()).as_deref(), &name) {
                    self.tree.roots += 1;
                    self.charge(entry);
                    let base = self.base(base, &name);
                    let root = Within { role: CgroupRole::Root, base, index: None, pod: None, found: false };
                    return Some(Position::Within(root));
                }
                let deeper = level + 1 < self.levels && may_hold_pods(&name);
                Some(if deeper { Position::Above(level + 1, self.base(base, &name)) } else { Position::Outside })
            }
        }
    }

    fn base(&mut self, above: usize, name: &str) -> usize {
        self.tree.bases.push(self.tree.bases[above].join(name));
        self.tree.bases.len() - 1
    }

    fn below(&mut self, above: Within, entry: &Entry<'_>) -> Option<Within> {
        let name = entry.name();
        let role = above.role.child(&name);
        let (kind, qos) = match role {
            CgroupRole::Root | CgroupRole::Qos(_) => {
                return Some(Within { role, base: self.base(above.base, &name), ..above });
            }
            CgroupRole::Pod(qos) => (Kind::Pod, qos),
            CgroupRole::Container(qos) => (Kind::Container, qos),
            CgroupRole::Other(qos) => (Kind::Other, qos),
        };
        let index = self.tree.directories.len();
        let pod = if kind == Kind::Pod { Some(index) } else { above.pod };
        let wants_pid = kind != Kind::Pod && !above.found;
        self.owner = (kind != Kind::Pod).then(|| pod.unwrap_or(index));
        let (populated, pid) = if self.unified {
            self.processes_by_events(entry, above.index, wants_pid)?
        } else {
            self.processes_of_v1(entry, wants_pid)?
        };
        let kills = if self.memory && pod.is_some() { self.kills(entry, kind)? } else { None };
        let kernel_memory = if self.accounts_by_cgroup {
            kernel_memory::proof(entry, &mut self.tree.unread.kernel_memory)?
        } else {
            None
        };
        self.tree.directories.push(Directory {
            kind,
            qos,
            inode: entry.inode,
            name: name.into(),
            parent: above.index,
            pod,
            populated,
            pid,
            kills,
            kernel_memory,
            base: above.base,
        });
        Some(Within { role, base: above.base, index: Some(index), pod, found: above.found || pid.is_some() })
    }

    /// Whether there are processes in a cgroup2 directory or below it, which it says itself, and the first one in it.
    /// Where nobody is further up, nobody is here.
    fn processes_by_events(
        &mut self,
        entry: &Entry<'_>,
        above: Option<usize>,
        wants_pid: bool,
    ) -> Option<(Option<bool>, Option<u32>)> {
        let above = above.and_then(|above| self.tree.directories[above].populated);
        let populated = if above == Some(false) {
            above
        } else {
            let events = self.read(entry, |entry| entry.first("cgroup.events"), |unread| &mut unread.population)?;
            let value = events.as_deref().map(|events| match keyed(events, "populated") {
                Some(value) => Ok(value != 0),
                None => Err(Error::malformed(format!("cgroup.events: {events:?}"))),
            });
            value.transpose().unwrap_or_else(|error| {
                self.tree.unread.population.get_or_insert(error);
                None
            })
        };
        if !wants_pid || populated == Some(false) {
            return Some((populated, None));
        }
        let procs = self.read(entry, |entry| entry.processes(), |unread| &mut unread.processes)?.flatten();
        Some((populated, procs.and_then(|procs| self.first(&procs))))
    }

    /// The same of a v1 directory, which names only its own processes: those below are added up in the end.
    fn processes_of_v1(&mut self, entry: &Entry<'_>, wants_pid: bool) -> Option<(Option<bool>, Option<u32>)> {
        let slot: Slot = if wants_pid { |unread| &mut unread.processes } else { |unread| &mut unread.population };
        let procs = self.read(entry, |entry| entry.first("cgroup.procs"), slot)?;
        let populated = if self.told.is_ok() { procs.as_deref().map(|procs| !procs.is_empty()) } else { None };
        if populated.is_none() {
            let unread = &mut self.tree.unread;
            unread.population = unread.population.take().or(self.told.clone().err()).or(unread.processes.clone());
        }
        if !wants_pid {
            return Some((populated, None));
        }
        Some((populated, procs.and_then(|procs| self.first(&procs))))
    }

    /// The first process of a `cgroup.procs`.
    fn first(&mut self, procs: &str) -> Option<u32> {
        let first = procs.lines().next()?;
        let error = match first.parse() {
            Ok(0) => Error::new(
                Reason::Denied,
                "cgroup.procs: the processes of pods are outside this exporter's pid namespace: it needs hostPID: true",
            ),
            Ok(pid) => return Some(pid),
            Err(_) => Error::malformed(format!("cgroup.procs: {first:?}")),
        };
        self.tree.unread.processes.get_or_insert(error);
        None
    }

    /// Outer `None` if the directory went away.
    fn kills(&mut self, entry: &Entry<'_>, kind: Kind) -> Option<Option<u64>> {
        let file = match (self.unified, kind) {
            (false, _) => "memory.oom_control",
            (true, Kind::Pod) => "memory.events",
            (true, Kind::Container | Kind::Other) => return Some(None),
        };
        if let Some(kills) = self.known.kills(entry.inode) {
            return Some(Some(kills));
        }
        // Without such a file this kernel does not count.
        let first = |entry: &Entry<'_>| match entry.first(file) {
            Err(error) if error.is_gone() && !entry.is_gone(&error) => Ok(None),
            other => other.map(Some),
        };
        let text = self.read(entry, first, |unread| &mut unread.kills)?.flatten();
        Some(text.and_then(|text| keyed(&text, "oom_kill")))
    }

    /// A small file of a directory. Inside: `None` if it cannot be read, which is noted unless there is an error
    /// already. Outside: `None` if the directory went away.
    fn read<T>(&mut self, entry: &Entry<'_>, file: impl Fn(&Entry<'_>) -> Result<T>, slot: Slot) -> Option<Option<T>> {
        match file(entry) {
            Ok(text) => {
                self.open |= self.owner.is_some();
                Some(Some(text))
            }
            Err(error) if entry.is_gone(&error) => None,
            Err(error) => {
                let owner = self.owner.filter(|_| error.reason() == Reason::Denied);
                owner.into_iter().for_each(|owner| *self.tree.closed.entry(owner).or_default() += 1);
                slot(if owner.is_some() { &mut self.denied } else { &mut self.tree.unread }).get_or_insert(error);
                Some(None)
            }
        }
    }

    /// Adds what is charged to a root.
    fn charge(&mut self, entry: &Entry<'_>) {
        if self.memory {
            let charged = kernel_memory::charged(entry, self.unified, &mut self.tree.unread.kernel_memory);
            self.tree.charged = Some(self.tree.charged.map_or(charged, |before: Charged| before.plus(charged)));
        }
    }

    /// What was found. One pod that closes its cgroups to us is no failure of ours; if all are closed, it is.
    pub(super) fn finish(mut self) -> Tree {
        if !self.open {
            self.tree.closed.clear();
            let (unread, denied) = (&mut self.tree.unread, self.denied);
            unread.population = unread.population.take().or(denied.population);
            unread.processes = unread.processes.take().or(denied.processes);
            unread.kills = unread.kills.take().or(denied.kills);
        }
        spread(&mut self.tree.directories);
        self.tree
    }
}

/// A directory is populated if one below it is.
fn spread(directories: &mut [Directory]) {
    for index in (0..directories.len()).rev() {
        let below = directories[index].populated;
        let Some(parent) = directories[index].parent else { continue };
        let parent = &mut directories[parent].populated;
        *parent = match (*parent, below) {
            (Some(true), _) | (_, Some(true)) => Some(true),
            (Some(false), Some(false)) => Some(false),
            _ => None,
        };
    }
}
