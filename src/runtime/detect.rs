//! Which socket to ask.
//!
//! The endpoint that was set, or the kubelet's own, is the only one asked. Without either, the well-known sockets are
//! asked in order, anew at every poll, so that one which appears later is found:
//!
//! - no socket, or one that does not serve CRI (Docker's own containerd): the next one;
//! - an answer with pods or containers in it: this one, from now on;
//! - an empty answer: perhaps the next one has more. Debian's containerd serves CRI even where only Docker uses it, and
//!   taking its empty list for the truth would make an orphan of every container;
//! - an error: another CRI socket may still answer, but never Docker in its place: what Docker knows of a node whose
//!   containerd is dead is not what runs there.

use std::time::Duration;

use crate::error::{Error, Reason, Result};
use crate::host::{Deadline, Host};

use super::connection::{Failure, Link};
use super::{Inventory, Protocol, cri, docker};

/// Where runtimes put their sockets, in the order in which they are asked.
const WELL_KNOWN: [(Protocol, &str); 8] = [
    (Protocol::Cri, "/run/containerd/containerd.sock"),
    (Protocol::Cri, "/run/crio/crio.sock"),
    (Protocol::Cri, "/var/run/cri-dockerd.sock"),
    (Protocol::Cri, "/run/k3s/containerd/containerd.sock"),
    (Protocol::Cri, "/run/k0s/containerd.sock"),
    (Protocol::Cri, "/var/snap/microk8s/common/run/containerd.sock"),
    (Protocol::Docker, "/var/run/docker.sock"),
    (Protocol::Docker, "/run/docker.sock"),
];

/// The path of `unix:///run/x.sock` or `/run/x.sock`.
pub(super) fn path(endpoint: &str) -> Option<&str> {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    (path.starts_with('/') && path.len() > 1).then_some(path)
}

/// What speaks on a socket that somebody named: Docker's API has no other sign than the name of its socket.
fn protocol(path: &str) -> Protocol {
    match path.rsplit('/').next() {
        Some("docker.sock" | "podman.sock") => Protocol::Docker,
        _ => Protocol::Cri,
    }
}

/// One socket, with the connection to it if there is one.
struct Candidate {
    path: String,
    /// It has answered before: that it is gone now is no "there never was one".
    answered: bool,
    link: Connected,
}

enum Connected {
    Cri(Option<Link<cri::Client>>),
    Docker(Option<Link<docker::Client>>),
}

impl Candidate {
    fn new(protocol: Protocol, path: &str) -> Self {
        let link = match protocol {
            Protocol::Cri => Connected::Cri(None),
            Protocol::Docker => Connected::Docker(None),
        };
        Candidate { path: path.to_owned(), answered: false, link }
    }

    fn server(&self) -> Option<u32> {
        match &self.link {
            Connected::Cri(link) => link.as_ref()?.server,
            Connected::Docker(link) => link.as_ref()?.server,
        }
    }

    fn protocol(&self) -> Protocol {
        match self.link {
            Connected::Cri(_) => Protocol::Cri,
            Connected::Docker(_) => Protocol::Docker,
        }
    }

    fn poll(
        &mut self,
        host: &Host,
        store: Duration,
        networks: bool,
        deadline: Deadline,
    ) -> std::result::Result<Inventory, Failure> {
        let path = self.path.as_str();
        let endpoint = &format!("unix://{path}");
        let result = match &mut self.link {
            Connected::Cri(link) => {
                let connect = || Link::connect(host, path, deadline, cri::Client::handshake);
                through(link, connect, |link| {
                    link.run(deadline, async |client| client.inventory(endpoint, store, networks, deadline).await)
                })
            }
            Connected::Docker(link) => {
                let connect = || Link::connect(host, path, deadline, docker::Client::handshake);
                through(link, connect, |link| {
                    link.run(deadline, async |client| client.inventory(endpoint, store, deadline).await)
                })
            }
        };
        result.map_err(|failure| failure.context(endpoint))
    }
}

/// Asks over the connection that is there, or over a new one: at once if the old one turns out to be dead (the daemon
/// was restarted). After any failure the connection goes, because nobody knows what state it is in.
fn through<C, T>(
    kept: &mut Option<Link<C>>,
    connect: impl Fn() -> std::result::Result<Link<C>, Failure>,
    ask: impl Fn(&mut Link<C>) -> std::result::Result<T, Failure>,
) -> std::result::Result<T, Failure> {
    if let Some(mut link) = kept.take() {
        match ask(&mut link) {
            Err(Failure::Lost(_)) => {}
            Err(failure @ Failure::Failed(_)) => return Err(failure),
            answer => {
                *kept = Some(link);
                return answer;
            }
        }
    }
    let mut link = connect()?;
    let answer = ask(&mut link);
    if matches!(answer, Ok(_) | Err(Failure::Unimplemented(_))) {
        *kept = Some(link);
    }
    answer
}

/// The sockets, and what was learnt about them.
pub(super) struct Poller {
    candidates: Vec<Candidate>,
    /// The only candidate, if somebody named one: that it is missing is an error.
    named: Option<String>,
    /// The one that showed containers last: as long as it lives, one further down the list does not take its place, and
    /// when it is gone that is an error.
    chosen: Option<usize>,
    /// How long a list of the image store serves.
    store: Duration,
}

impl Poller {
    /// Asks this endpoint, or the well-known ones. `store`: how long a list of the image store serves.
    pub(super) fn new(endpoint: Option<&str>, store: Duration) -> Self {
        let candidates = match endpoint.map(|endpoint| path(endpoint).unwrap_or(endpoint)) {
            Some(path) => vec![Candidate::new(protocol(path), path)],
            None => WELL_KNOWN.iter().map(|(protocol, path)| Candidate::new(*protocol, path)).collect(),
        };
        Poller { candidates, named: endpoint.map(str::to_owned), chosen: None, store }
    }

    /// What it was made for.
    pub(super) fn endpoint(&self) -> Option<&str> {
        self.named.as_deref()
    }

    /// The process at the other end of the connection that answered last, if there is one.
    pub(super) fn server(&self) -> Option<u32> {
        let only = self.named.as_ref().map(|_| 0);
        self.candidates.get(only.or(self.chosen)?)?.server()
    }

    /// One poll of whoever is there. `networks`: sandboxes are asked for their network namespaces.
    pub(super) fn poll(&mut self, host: &Host, networks: bool, deadline: Deadline) -> Result<Inventory> {
        if self.named.is_some() {
            let answer = self.candidates[0].poll(host, self.store, networks, deadline.part(Duration::MAX));
            return answer.map_err(|failure| gone(failure.into_error()));
        }
        let (mut empty, mut failed, mut vanished) = (None, None, None);
        for (index, candidate) in self.candidates.iter_mut().enumerate() {
            let chosen = self.chosen == Some(index);
            if failed.is_some() && !chosen && candidate.protocol() == Protocol::Docker {
                break;
            }
            match candidate.poll(host, self.store, networks, deadline.part(Duration::MAX)) {
                Ok(inventory) => {
                    candidate.answered = true;
                    if chosen || !(inventory.sandboxes.is_empty() && inventory.containers.is_empty()) {
                        self.chosen = Some(index);
                        return Ok(inventory);
                    }
                    empty = empty.or(Some(inventory));
                }
                Err(Failure::Unimplemented(_)) if !chosen => {}
                Err(failure) => match failure.into_error() {
                    error if chosen => return Err(gone(error)),
                    error if error.reason() != Reason::Absent => failed = failed.or(Some(error)),
                    error if candidate.answered => vanished = Some(gone(error)),
                    _ => {}
                },
            }
        }
        match (failed, empty, vanished) {
            (Some(error), ..) | (None, None, Some(error)) => Err(error),
            (None, Some(inventory), _) => Ok(inventory),
            (None, None, None) => Err(Error::absent("no socket of a container runtime was found")),
        }
    }
}

/// A socket that ought to be there and is not: that is a failure, where "absent" would say that none is to be expected.
fn gone(error: Error) -> Error {
    if error.reason() != Reason::Absent {
        return error;
    }
    let hint = "this socket was configured or answered before: check that the host's /run is visible under --path.rootfs, or pass --no-runtime";
    Error::new(Reason::Vanished, format!("{error}; {hint}"))
}
