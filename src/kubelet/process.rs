//! Finding the kubelet, and whether this node runs a control plane, among all processes.
//!
//! A sweep reads the name of every process, so it is made rarely: a process that was found is only looked at again to
//! see that it is still there. Of one that has the name of a kubelet, or of a program that has one inside
//! ([`super::embedded`]), is read whose it is ([`super::identity`]), and only of this machine's own what it was told:
//! reading a command line waits for the memory lock of that process, which a stuck one holds and a hostile one can
//! hold. So none of a pod's is ever read, and of the others each for a moment only (see `host/pids.rs`).
//!
//! **One that does not let itself be read** is the kubelet by its name or it is not. Its arguments are unknown then,
//! unless the same process let us read them before.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::embedded::{self, Embedder, Started};
use super::identity::{self, Why};
use crate::error::{Error, Reason, Result};
use crate::host::pids::Pids;
use crate::host::{Deadline, Host};

/// How long a sweep holds, and how long while there is no kubelet: then one may be starting.
const SWEEP_HOLDS: Duration = Duration::from_secs(60);
const SWEEP_HOLDS_WITHOUT_KUBELET: Duration = Duration::from_secs(10);

/// Names of processes that only a control-plane node runs, if they are its own.
const CONTROL_PLANE: [&str; 2] = ["kube-apiserver", ETCD];
const ETCD: &str = "etcd";

/// Names of processes that may be a kubelet by their arguments: shells that run a script, the program of many commands.
/// What is named otherwise and cannot be read is taken for none.
const BY_ARGUMENTS: [&str; 8] = ["hyperkube", "sh", "bash", "dash", "ash", "ksh", "zsh", "busybox"];

/// More etcds than this are not told of: kops runs two.
const MOST_ETCDS: usize = 4;

/// More who look like a kubelet, or cannot be read, are not told of.
const MOST_PASSED_OVER: usize = 16;

/// How long the files may take that tell a kubelet inside another program.
const FILES: Duration = Duration::from_secs(2);

/// A kubelet that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KubeletProcess {
    /// Its process.
    pub pid: u32,
    /// What follows the program's name on its command line, or what stands for that where it is inside another program.
    pub arguments: Vec<String>,
    /// Why they are not all that it was told.
    pub untold: Option<Error>,
}

/// What a look at the processes found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The kubelet; of several the one with the lowest pid whose parent is not one of them.
    pub kubelet: Option<KubeletProcess>,
    /// Who looks like this node's kubelet as well, and is not.
    pub passed_over: Vec<PassedOver>,
    /// The apiserver or etcd runs here.
    pub control_plane: bool,
    /// Who keeps the cluster's data: this node's etcds, or the program that has one inside.
    pub datastores: Vec<DatastoreProcess>,
}

/// A process of the control plane that keeps the cluster's data.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DatastoreProcess {
    /// Its process.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// With the pid it is one process for ever.
    pub started: u64,
}

/// A process that looks like this node's kubelet, and is not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PassedOver {
    /// Its process.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// What speaks against it.
    pub why: Why,
}

/// Finds them, and remembers where they were.
#[derive(Debug, Default)]
pub struct Finder {
    /// Whose the kubelet is: 0 unless it is rootless.
    uid: u32,
    last: Mutex<Option<Sweep>>,
}

/// What the last sweep found.
#[derive(Clone, Debug)]
struct Sweep {
    at: Instant,
    kubelet: Option<Candidate>,
    passed_over: Vec<PassedOver>,
    control_plane: Option<Known>,
    etcds: Vec<Known>,
    /// Whose command lines could not be read.
    unread: Vec<Known>,
    /// Why it is not known whether one of these is a kubelet.
    unsure: Option<Error>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    pid: u32,
    comm: String,
    /// With the pid it is one process for ever; `None` if it cannot be read.
    started: Option<u64>,
}

/// The kubelet as a sweep saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Candidate {
    known: Known,
    /// What another program tells its kubelet: it is read once, as that program does.
    inside: Option<KubeletProcess>,
    /// What it was told itself, when that could last be read.
    arguments: Option<Vec<String>>,
}

impl Candidate {
    /// What it was told by its command line. `None`: it ended.
    fn told(&mut self, host: &Host, pids: &Pids, deadline: Deadline) -> Result<Option<KubeletProcess>> {
        let pid = self.known.pid;
        if let Some(inside) = &self.inside {
            let lives = self.known.is_there(pids) && !pids.is_zombie(pid);
            return Ok(lives.then(|| inside.clone()));
        }
        match host.cmdline(pid, deadline) {
            // A zombie: it ended and nobody has noticed yet.
            Ok(argv) if argv.is_empty() => return Ok(None),
            Ok(argv) => self.arguments = Some(arguments(&argv).to_vec()),
            // It exited between two looks; the next scrape sweeps.
            Err(error) if error.is_gone() => return Ok(None),
            Err(error) if keeps_us_waiting(&error) => {
                let untold = self.arguments.is_none().then_some(error);
                return Ok(Some(KubeletProcess { pid, arguments: self.arguments.clone().unwrap_or_default(), untold }));
            }
            Err(error) => return Err(error),
        }
        Ok(Some(KubeletProcess { pid, arguments: self.arguments.clone().unwrap_or_default(), untold: None }))
    }
}

fn keeps_us_waiting(error: &Error) -> bool {
    matches!(error.reason(), Reason::Timeout | Reason::Busy)
}

impl Known {
    fn of(pids: &Pids, pid: u32, comm: String) -> Self {
        Known { pid, comm, started: pids.started(pid).ok() }
    }

    /// True if they are one process.
    fn is(&self, other: &Known) -> bool {
        self.started.is_some() && self == other
    }

    fn is_there(&self, pids: &Pids) -> bool {
        pids.comm(self.pid).is_ok_and(|comm| comm == self.comm)
    }
}

impl Finder {
    /// One that looks for a kubelet of this user.
    pub fn of_user(uid: u32) -> Self {
        Finder { uid, ..Finder::default() }
    }

    /// The kubelet and the control plane as they are now. Where a sweep is needed it goes over the processes listed at
    /// `since` or later.
    ///
    /// # Errors
    /// Denied in a process namespace of our own; the operating system's if processes cannot be listed or the kubelet's
    /// command line not be read; timeout if there are too many to look at before the deadline, or one keeps us waiting
    /// that may be the kubelet.
    pub fn find(&self, host: &Host, deadline: Deadline, since: Instant) -> Result<Found> {
        host.require_host_pid()?;
        let pids = host.pids()?;
        // Not held while we look: what hangs is waited for by whoever asked, with his own deadline.
        let mut sweep = match self.lock().take() {
            Some(sweep) if sweep.holds(&pids) => sweep,
            before => {
                let all = host.pids_since(since, deadline)?;
                let sweep = Sweep::make(host, &pids, &all, self.uid, before.as_ref(), deadline)?;
                sweep.tell(before.as_ref());
                sweep
            }
        };
        let kubelet = match &mut sweep.kubelet {
            Some(candidate) => candidate.told(host, &pids, deadline),
            None => sweep.unsure.clone().map_or(Ok(None), Err),
        };
        let (passed_over, control_plane) = (sweep.passed_over.clone(), sweep.control_plane.is_some());
        let datastores = sweep.datastores();
        *self.lock() = Some(sweep);
        Ok(Found { kubelet: kubelet?, passed_over, control_plane, datastores })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Sweep>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sweep {
    fn holds(&self, pids: &Pids) -> bool {
        let limit = if self.kubelet.is_some() { SWEEP_HOLDS } else { SWEEP_HOLDS_WITHOUT_KUBELET };
        let known = self.kubelet.iter().map(|kubelet| &kubelet.known).chain(&self.control_plane).chain(&self.etcds);
        self.at.elapsed() < limit && known.into_iter().all(|known| known.is_there(pids))
    }

    fn datastores(&self) -> Vec<DatastoreProcess> {
        let embedder = self.control_plane.iter().filter(|known| Embedder::of_comm(&known.comm).is_some());
        let known = self.etcds.iter().chain(embedder);
        let told = known.filter_map(|Known { pid, comm, started }| {
            Some(DatastoreProcess { pid: *pid, comm: comm.clone(), started: (*started)? })
        });
        told.collect()
    }

    /// Says which kubelet counts and which do not, where that changed.
    fn tell(&self, before: Option<&Sweep>) {
        if let Some(Candidate { known, inside, .. }) = &self.kubelet {
            let told = before.and_then(|before| before.kubelet.as_ref());
            if told.is_none_or(|told| told.known != *known || told.inside != *inside) {
                tracing::info!(pid = known.pid, comm = known.comm, embedded = inside.is_some(), "found the kubelet");
            }
        }
        let known = |passed: &&PassedOver| before.is_some_and(|before| before.passed_over.contains(passed));
        for PassedOver { pid, comm, why } in self.passed_over.iter().filter(|passed| !known(passed)) {
            tracing::warn!(pid, comm, %why, "a process looks like this node's kubelet but is ignored");
        }
        let known = |unread: &&Known| before.is_some_and(|before| before.unread.contains(unread));
        for Known { pid, comm, .. } in self.unread.iter().filter(|unread| !known(unread)) {
            tracing::warn!(
                pid,
                comm,
                "this process may be the kubelet, but its command line cannot be read: the process is stuck or hides it"
            );
        }
    }

    fn make(
        host: &Host,
        pids: &Pids,
        all: &[u32],
        uid: u32,
        before: Option<&Sweep>,
        deadline: Deadline,
    ) -> Result<Self> {
        let mut sweep = Sweep {
            at: Instant::now(),
            kubelet: None,
            passed_over: Vec::new(),
            control_plane: None,
            etcds: Vec::new(),
            unread: Vec::new(),
            unsure: None,
        };
        let late = |index: usize| {
            let text =
                || format!("looking for the kubelet among {} processes did not end before the deadline", all.len());
            let late = index.is_multiple_of(64) && deadline.expired();
            if late { Err(Error::new(Reason::Timeout, text())) } else { Ok(()) }
        };
        let (mut named, mut embedders) = (Vec::new(), Vec::new());
        for (index, &pid) in all.iter().enumerate() {
            late(index)?;
            let Ok(comm) = pids.comm(pid) else { continue };
            if comm == "kubelet" {
                named.push(Known::of(pids, pid, comm));
            } else if let Some(embedder) = Embedder::of_comm(&comm) {
                embedders.push((embedder, Known::of(pids, pid, comm)));
            } else if CONTROL_PLANE.contains(&comm.as_str())
                && (sweep.control_plane.is_none() || comm == ETCD && sweep.etcds.len() < MOST_ETCDS)
                && identity::is_of_the_control_plane(pids, pid).unwrap_or(false)
            {
                let known = Known::of(pids, pid, comm);
                if known.comm == ETCD {
                    sweep.etcds.push(known.clone());
                }
                sweep.control_plane.get_or_insert(known);
            }
        }
        // Who it is first: a command line can be made to block by its process.
        named.retain(|known| sweep.admits(pids, known, uid));
        let mut candidates = sweep.with_arguments(host, named, deadline);
        for (embedder, known) in embedders {
            if sweep.admits(pids, &known, uid)
                && let Some(candidate) = sweep.look_inside(host, embedder, known, before, deadline)
            {
                candidates.push(candidate);
            }
        }
        if candidates.is_empty() {
            let mut own = Vec::new();
            for (index, &pid) in all.iter().enumerate() {
                late(index)?;
                if identity::against_a_kubelet(pids, pid, uid).is_ok_and(|why| why.is_none()) {
                    own.push(pid);
                }
            }
            candidates = sweep.by_arguments(host, pids, &own, deadline);
        }
        sweep.choose(pids, candidates);
        if let (Some(found), Some(known)) = (&mut sweep.kubelet, before.and_then(|before| before.kubelet.as_ref()))
            && found.known.is(&known.known)
        {
            found.arguments.clone_from(&known.arguments);
        }
        Ok(sweep)
    }

    /// Those that have arguments: a zombie has a name and none. An unreadable command line is an error to be told,
    /// later.
    fn with_arguments(&mut self, host: &Host, named: Vec<Known>, deadline: Deadline) -> Vec<Candidate> {
        let of: Vec<u32> = named.iter().map(|known| known.pid).collect();
        let empty = host.judge_cmdlines(&of, deadline, <[String]>::is_empty);
        let mut candidates = Vec::new();
        for (known, empty) in named.into_iter().zip(empty) {
            if empty.as_ref().is_err_and(keeps_us_waiting) {
                self.note_unread(known.clone());
            }
            if !empty.unwrap_or(false) {
                candidates.push(Candidate { known, inside: None, arguments: None });
            }
        }
        candidates
    }

    /// By another name: a script's shell, the program of many commands.
    fn by_arguments(&mut self, host: &Host, pids: &Pids, own: &[u32], deadline: Deadline) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        for (&pid, is) in own.iter().zip(host.judge_cmdlines(own, deadline, is_kubelet)) {
            let Ok(comm) = pids.comm(pid) else { continue };
            match is {
                Ok(true) => {
                    let known = Known::of(pids, pid, comm);
                    candidates.push(Candidate { known, inside: None, arguments: None });
                }
                Err(error) if keeps_us_waiting(&error) => {
                    if BY_ARGUMENTS.contains(&comm.as_str()) {
                        self.unsure
                            .get_or_insert_with(|| error.context(format_args!("it may be the kubelet ({comm})")));
                    }
                    self.note_unread(Known::of(pids, pid, comm));
                }
                Ok(false) | Err(_) => {}
            }
        }
        candidates
    }

    fn note_unread(&mut self, known: Known) {
        if self.unread.len() < MOST_PASSED_OVER {
            self.unread.push(known);
        }
    }

    /// True if nothing speaks against it. What does is remembered.
    fn admits(&mut self, pids: &Pids, known: &Known, uid: u32) -> bool {
        match identity::against_a_kubelet(pids, known.pid, uid) {
            Ok(None) => true,
            Ok(Some(why)) => {
                if self.passed_over.len() < MOST_PASSED_OVER {
                    self.passed_over.push(PassedOver { pid: known.pid, comm: known.comm.clone(), why });
                }
                false
            }
            // It exited.
            Err(_) => false,
        }
    }

    fn look_inside(
        &mut self,
        host: &Host,
        embedder: Embedder,
        known: Known,
        before: Option<&Sweep>,
        deadline: Deadline,
    ) -> Option<Candidate> {
        let (argv, environ) = match host.started_with(known.pid, deadline) {
            Ok((argv, _)) if argv.is_empty() => return None,
            Ok(read) => read,
            Err(error) if keeps_us_waiting(&error) => {
                self.note_unread(known.clone());
                let same = before.and_then(|before| before.kubelet.clone()).filter(|last| last.known.is(&known));
                if same.is_none() {
                    let comm = &known.comm;
                    self.unsure.get_or_insert_with(|| error.context(format_args!("a kubelet may be inside ({comm})")));
                }
                if let Some(last) =
                    before.and_then(|before| before.control_plane.as_ref()).filter(|last| last.is(&known))
                {
                    self.control_plane.get_or_insert_with(|| last.clone());
                }
                return same;
            }
            Err(_) => return None,
        };
        if self.control_plane.is_none() && embedder.is_control_plane(&known.comm, &argv) {
            self.control_plane = Some(known.clone());
        }
        let (environ, untold) = match environ {
            Ok(environ) => (environ, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        let tree = host.tree();
        let told = host.bounded("what tells an embedded kubelet", deadline.part(FILES), move || {
            embedded::arguments(embedder, Started { argv: &argv, environ: &environ }, &tree)
        });
        let pid = known.pid;
        let inside = match told {
            Ok(None) => return None,
            Ok(Some(arguments)) => KubeletProcess { pid, arguments, untold },
            Err(error) => KubeletProcess { pid, arguments: Vec::new(), untold: Some(error) },
        };
        Some(Candidate { known, inside: Some(inside), arguments: None })
    }

    /// The one with the lowest pid that is nobody's child of them.
    fn choose(&mut self, pids: &Pids, mut candidates: Vec<Candidate>) {
        candidates.sort_by_key(|candidate| candidate.known.pid);
        let all: Vec<u32> = candidates.iter().map(|candidate| candidate.known.pid).collect();
        candidates.retain(|candidate| !pids.parent(candidate.known.pid).is_ok_and(|parent| all.contains(&parent)));
        let mut candidates = candidates.into_iter();
        self.kubelet = candidates.next();
        let Some(first) = self.kubelet.as_ref().map(|first| first.known.pid) else { return };
        let others = candidates.map(|Candidate { known: Known { pid, comm, .. }, .. }| PassedOver {
            pid,
            comm,
            why: Why::Another(first),
        });
        self.passed_over.extend(others.take(MOST_PASSED_OVER));
    }
}

/// True if this is a kubelet's command line: the program itself, `hyperkube kubelet`, or a shell that runs a script of
/// that name.
pub fn is_kubelet(argv: &[String]) -> bool {
    program(argv).is_some_and(|index| base_name(&argv[index]) == "kubelet")
}

/// The arguments of the program, without those of a shell or of hyperkube before it.
pub fn arguments(argv: &[String]) -> &[String] {
    program(argv).and_then(|index| argv.get(index + 1..)).unwrap_or(&[])
}

/// Where the name of the program that really runs is on a command line.
fn program(argv: &[String]) -> Option<usize> {
    let first = base_name(argv.first()?);
    let second = argv.get(1).map(|argument| base_name(argument));
    match first {
        "hyperkube" if second == Some("kubelet") => Some(1),
        "sh" | "bash" | "dash" | "ash" | "ksh" | "zsh" | "busybox" => {
            // `-c` and what follows is a text, not a script. Without a script the shell itself is the program.
            let operand = argv.iter().skip(1).position(|argument| !argument.starts_with('-')).map(|index| index + 1);
            let index = operand.filter(|&index| !argv[1..index].iter().any(|argument| argument == "-c"));
            Some(index.filter(|&index| base_name(&argv[index]) == "kubelet").unwrap_or(0))
        }
        _ => Some(0),
    }
}

fn base_name(path: &str) -> &str {
    Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or(path)
}

#[cfg(test)]
mod tests;
