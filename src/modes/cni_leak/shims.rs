//! Shims that serve no container any more: the process that a runtime leaves with each sandbox or container, so that
//! these outlive it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::assess::Known;
use crate::error::{Error, Reason, Result};
use crate::host::Host;
use crate::host::pids::Pids;
use crate::kubelet::identity;
use crate::modes::Context;
use crate::modes::unknown_to_runtime::{Span, UnknownToRuntime};
use crate::runtime::{Identity, Poll, Protocol, endpoint_path};

/// As `/proc/PID/comm` has it, 15 bytes at the most: `containerd-shim-runc-v2`, `containerd-shim-kata-v2`, …
const SHIM: &str = "containerd-shim";
/// CRI-O's.
const CONMON: &str = "conmon";
/// Processes whose name was no shim's are looked at again in so many turns: one may have been another process by then,
/// or on its way to be a shim.
const TURNS: u32 = 32;
/// More shims are not remembered.
const MOST: usize = 20_000;

/// What a command line says of the container that a shim is for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Serves {
    /// A container of this containerd's, in this namespace of it.
    Containerd { namespace: String, address: String, id: String },
    /// A container of CRI-O's.
    Crio { id: String },
}

/// By the arguments, of a process that is called like a shim.
fn serves(argv: &[String]) -> Option<Serves> {
    let program = argv.first()?.rsplit('/').next()?;
    let after = |name: &str| {
        let at = argv.iter().position(|argument| argument == name)?;
        argv.get(at + 1).cloned()
    };
    if program.starts_with(SHIM) {
        return Some(Serves::Containerd {
            namespace: after("-namespace")?,
            address: after("-address")?,
            id: after("-id")?,
        });
    }
    // Podman's have another.
    let exits = after("--exit-dir")?;
    (program == CONMON && exits.trim_start_matches("/var").starts_with("/run/crio/")).then_some(())?;
    Some(Serves::Crio { id: after("-c")? })
}

/// `/var/run` is a link to `/run`, where it is none of its own.
fn path(address: &str) -> &str {
    let path = endpoint_path(address).unwrap_or(address);
    path.strip_prefix("/var").filter(|path| path.starts_with("/run/")).unwrap_or(path)
}

impl Serves {
    /// The container, if it is one of the runtime that answers; `None` of any other.
    fn container_of(&self, runtime: &Identity) -> Option<&str> {
        match self {
            Serves::Containerd { namespace, address, id } => {
                let ours = match (runtime.protocol, runtime.name.as_str()) {
                    (Protocol::Cri, "containerd") => namespace == "k8s.io" && path(address) == path(&runtime.endpoint),
                    // Of all that Docker runs, each container is in its list.
                    (Protocol::Docker, "docker") => namespace == "moby",
                    _ => false,
                };
                ours.then_some(id)
            }
            Serves::Crio { id } => (runtime.name == "cri-o").then_some(id),
        }
    }
}

/// Its number and when it started: one process for ever.
type Key = (u32, u64);

/// What is remembered between scrapes: command lines never change, and the shims of running pods stay.
#[derive(Debug, Default)]
pub(super) struct Shims {
    /// By number.
    known: HashMap<u32, (u64, Serves)>,
    /// Every process of the last look, in ascending order.
    seen: Arc<[u32]>,
    turn: u32,
    pub(super) strangers: UnknownToRuntime<Key>,
}

impl Shims {
    /// Finds those that are there now. The first error of those that cannot be read is noted after the rest.
    pub(super) fn look(&mut self, context: Context<'_>) -> Result<()> {
        let Context { host, deadline, began } = context;
        let (listed, pids) = (host.pids_since(began, deadline)?, host.pids()?);
        self.known.retain(|pid, _| listed.binary_search(pid).is_ok());
        self.turn = (self.turn + 1) % TURNS;
        let mut candidates = Vec::new();
        let mut seen = self.seen.iter().peekable();
        for &pid in &*listed {
            while seen.next_if(|before| **before < pid).is_some() {}
            let fresh = seen.peek() != Some(&&pid);
            if !(fresh || pid % TURNS == self.turn) || self.known.contains_key(&pid) {
                continue;
            }
            if deadline.expired() {
                let what = format!("shims among {} processes: not all looked at before the deadline", listed.len());
                return Err(Error::new(Reason::Timeout, what));
            }
            match candidate(&pids, pid) {
                Ok(started) => candidates.extend(started.map(|started| (pid, started))),
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
        let numbers: Vec<u32> = candidates.iter().map(|(pid, _)| *pid).collect();
        let mut failed = Ok(());
        for ((pid, started), told) in candidates.into_iter().zip(host.judge_cmdlines(&numbers, deadline, serves)) {
            match told {
                Ok(Some(serves)) if self.known.len() < MOST && pids.started(pid) == Ok(started) => {
                    self.known.insert(pid, (started, serves));
                }
                Err(error) if !error.is_gone() => failed = failed.and(Err(error.context("a shim"))),
                _ => {}
            }
        }
        self.seen = listed;
        failed
    }

    /// Takes in for which of them the runtime knows no container; true if that can be said.
    pub(super) fn update(&mut self, host: &Host, answer: Option<(&Poll, &Known<'_>)>, walk: Span) -> Result<bool> {
        let all = || self.known.iter().map(|(pid, (started, serves))| ((*pid, *started), serves));
        let Some((poll, known)) = answer.filter(|(poll, _)| is_told_of(&poll.inventory.identity)) else {
            self.strangers.pause(&all().map(|(key, _)| key).collect(), true);
            return Ok(false);
        };
        let pids = host.pids()?;
        let runtime = &poll.inventory.identity;
        let unknown = all().filter(|(_, serves)| serves.container_of(runtime).is_some_and(|id| !known.id(id)));
        // The number may be another process's since the list was made.
        let unknown = unknown.map(|(key, _)| key).filter(|(pid, started)| pids.started(*pid) == Ok(*started));
        let unknown: Vec<Key> = unknown.collect();
        self.strangers.update(unknown.into_iter(), Span { began: poll.began, ended: poll.ended }, walk, true);
        Ok(true)
    }

    /// How many have been without a container for the grace period.
    pub(super) fn orphaned(&self, grace: Duration) -> usize {
        let keys = self.known.iter().map(|(pid, (started, _))| (*pid, *started));
        keys.filter(|key| self.strangers.reached(key, grace)).count()
    }
}

/// True of a runtime whose shims are known by sight, and that knows every container that they may be for. cri-dockerd
/// knows only those of pods.
fn is_told_of(runtime: &Identity) -> bool {
    matches!((runtime.protocol, &*runtime.name), (Protocol::Cri, "containerd" | "cri-o") | (Protocol::Docker, "docker"))
}

/// When a process started that is called like a shim, and is the machine's own and root's.
fn candidate(pids: &Pids, pid: u32) -> Result<Option<u64>> {
    let comm = pids.comm(pid)?;
    if (comm != SHIM && comm != CONMON) || !identity::is_of_the_machine(pids, pid)? {
        return Ok(None);
    }
    pids.started(pid).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    fn runtime(protocol: Protocol, name: &str, endpoint: &str) -> Identity {
        Identity { protocol, name: name.to_owned(), version: String::new(), endpoint: format!("unix://{endpoint}") }
    }

    #[test]
    fn whose_shim_it_is() {
        let cri = runtime(Protocol::Cri, "containerd", "/run/containerd/containerd.sock");
        let k3s = runtime(Protocol::Cri, "containerd", "/run/k3s/containerd/containerd.sock");
        let docker = runtime(Protocol::Docker, "docker", "/var/run/docker.sock");
        let cri_dockerd = runtime(Protocol::Cri, "docker", "/run/cri-dockerd.sock");
        let crio = runtime(Protocol::Cri, "cri-o", "/run/crio/crio.sock");
        let all = [&cri, &k3s, &docker, &cri_dockerd, &crio];
        let whose = |line: &str| {
            let serves = serves(&words(line));
            let of = |runtime: &&Identity| serves.as_ref().and_then(|one| one.container_of(runtime)).is_some();
            all.map(|runtime| of(&runtime))
        };
        let shim =
            "/usr/bin/containerd-shim-runc-v2 -namespace k8s.io -id 5d25 -address /run/containerd/containerd.sock";
        assert_eq!(whose(shim), [true, false, false, false, false]);
        assert_eq!(whose(&shim.replace("/run/", "/var/run/")), [true, false, false, false, false]);
        assert_eq!(whose(&shim.replace("/run/", "/run/k3s/")), [false, true, false, false, false]);
        assert_eq!(whose(&shim.replace("k8s.io", "moby")), [false, false, true, false, false]);
        assert_eq!(whose(&shim.replace("k8s.io", "default")), [false; 5], "nerdctl's");
        assert_eq!(whose(&shim.replace("-id 5d25", "")), [false; 5]);
        assert_eq!(whose(&shim.replace("containerd-shim-runc-v2", "sh")), [false; 5]);
        let conmon = "/usr/bin/conmon -b /run/containers/storage/overlay-containers/5d25/userdata -c 5d25 \
             --exit-dir /var/run/crio/exits -u 5d25";
        assert_eq!(whose(conmon), [false, false, false, false, true]);
        assert_eq!(whose(&conmon.replace("/var/run/crio", "/run/libpod")), [false; 5], "Podman's");
        assert_eq!(serves(&[]), None);
        assert_eq!(serves(&words("containerd-shim -namespace")), None);
        assert!(is_told_of(&cri) && is_told_of(&docker) && is_told_of(&crio) && !is_told_of(&cri_dockerd));
    }
}
