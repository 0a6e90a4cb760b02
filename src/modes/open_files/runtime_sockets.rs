//! Who holds connections to the container runtime's sockets.
//!
//! **How it is found out.** The kernel lists listening unix sockets (`sock_diag`); those whose file (device and inode)
//! is the one that the machine has at a runtime's well-known path are the runtime's. A name alone is no proof: anyone
//! on the host's network may bind a socket to such a path in a mount namespace of its own. Each accepted connection to
//! one has a server's end with the listener's file. Its peer is the client's socket, and which process has that is told
//! by the links in `/proc/PID/fd`: those that are read for kinds anyway, and for the rest a search within
//! [`super::Settings::socket_max_readlinks`] whose answers are kept.
//!
//! A client that is gone leaves the server's end without a peer until the server reads from it: no process can be named
//! for it any more (moby#37061), so it is counted by listening path, `peer=none`.
//!
//! **Pods with a network of their own.** The server's end is made in the network namespace of the *client*
//! (`unix_stream_connect` in net/unix/af_unix.c), so that the host's dump shows neither side. `/proc/PID/net/unix` of
//! any process in such a namespace does, without a peer: these are counted per pod, `peer=namespace`, and no process of
//! it is named. A namespace that has a listener of the same path itself (Docker in Docker) is left out: whose its
//! connections are is not to be told.
//!
//! **When it misleads.** On a machine with more than 10,000 connected unix sockets the list is up to 1.5 ms old for
//! each of them. A connection that is closed while we look has no owner any more, `peer=unknown`. One socket that
//! several processes hold (after fork) counts for one of them. Where the machine's root cannot be looked into, no
//! socket is known to be the runtime's. On btrfs and overlayfs, where devices do not tell, a socket of the same path
//! and inode number counts as the runtime's.
//!
//! **Whose places.** Each pod has up to [`MOST_OF_POD`] rows and its turn when namespaces are looked into, and the
//! node's own processes have rows apart: no pod pushes another's leak, or a daemon's, into `peer=other`.

mod elsewhere;
mod rows;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::error::{Error, Reason, Result};
use crate::host::sockets::owners::{Hints, Owner, Owners};
use crate::host::sockets::{FileAtPath, UnixKind, UnixName, UnixSocket};
use crate::host::{Deadline, Host};
use crate::metric::{Metric, Samples, Unit};

use super::names::{Names, unknown_pod};
use super::namespaces::Namespaces;
use super::pods::Pods;
use rows::Row;
pub(super) use rows::Rows;

pub(super) static CONNECTIONS: Metric = Metric::gauge(
    "headroom_runtime_socket_connections",
    Unit::None,
    &["socket", "peer", "pid", "comm", "pod_uid", "container_id", "namespace", "pod", "container"],
    "Connections to a socket of the container runtime, by the holder of the other end. The sum is every accepted \
     connection.\n\n\
     peer=process: the named process. peer=none: nobody; the client is gone and the daemon has not closed its end. \
     peer=namespace: a pod, or a process with its own network; which process of it cannot be told, and pid and comm \
     are those of the lowest pid if it is not a pod. peer=unknown: closed during the look, not found within the \
     budget, or not permitted. peer=other: the sum of what was too small to be shown. Connections that wait to be \
     accepted: headroom_runtime_socket_backlog. On a node with more than 10,000 connected unix sockets this is up to \
     1.5 ms old for each of them (60,000: 90 s).",
);
pub(super) static BACKLOG: Metric = Metric::gauge(
    "headroom_runtime_socket_backlog",
    Unit::None,
    &["socket"],
    "Connections to a socket of the container runtime that the daemon has not accepted yet. It stays above 0 where a daemon hangs.",
);
pub(super) static BACKLOG_LIMIT: Metric = Metric::gauge(
    "headroom_runtime_socket_backlog_limit",
    Unit::None,
    &["socket"],
    "How many may wait: beyond it connect blocks, or fails with EAGAIN.",
);

/// Where runtimes put their sockets, beside those that the runtime is asked at.
const WELL_KNOWN: &[&str] = &[
    "/run/docker.sock",
    "/var/run/docker.sock",
    "/run/docker/containerd/containerd.sock",
    "/var/run/docker/containerd/containerd.sock",
    "/run/containerd/containerd.sock",
    "/var/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/var/run/crio/crio.sock",
    "/run/cri-dockerd.sock",
    "/var/run/cri-dockerd.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/k0s/containerd.sock",
    "/var/snap/microk8s/common/run/containerd.sock",
];
/// Clients shown, of the node's own and of pods each: those with the most connections.
const MOST_ROWS: usize = 50;
/// From so many connections on HeadroomRuntimeSocketClientLeak tells of a client: it is shown whatever others do...
const LEAK: u64 = 100;
/// ...up to so many of one pod...
const MOST_OF_POD: usize = 3;
/// ...and so many altogether, of the node's own and of pods each. No kubelet runs more pods.
const MOST_LEAKS: usize = 500;
/// Network namespaces that are looked into, one of each pod first. A node has one per pod.
const MOST_NAMESPACES: usize = 600;
/// Bytes of `net/unix` that one scrape reads: some 50,000 sockets.
const MOST_BYTES: usize = 4 << 20;

/// With more connected unix sockets than this on the machine they are listed less often...
const FEW: usize = 10_000;
/// ...by so much for each: listing one takes half a microsecond, and this is 3,000 times that.
const SERVES: Duration = Duration::from_micros(1_500);

/// The connections that were listed last. The kernel lists every unix socket that is connected, whoever's.
#[derive(Debug, Default)]
pub(super) struct Listed {
    made: Option<Instant>,
    /// How many sockets the kernel listed.
    all: usize,
    /// The listeners by cookie, and what is connected to them.
    listeners: Vec<u64>,
    served: Vec<UnixSocket>,
}

impl Listed {
    fn served_by(&mut self, host: &Host, listeners: &[UnixSocket], deadline: Deadline) -> Result<&[UnixSocket]> {
        let cookies: Vec<u64> = listeners.iter().map(|listener| listener.cookie).collect();
        let patience = if self.all > FEW { SERVES * self.all as u32 } else { Duration::ZERO };
        if self.listeners != cookies || self.made.is_none_or(|made| made.elapsed() >= patience) {
            self.made = None;
            (self.served, self.all) = host.unix_served_by(listeners, deadline)?;
            (self.listeners, self.made) = (cookies, Some(Instant::now()));
        }
        Ok(&self.served)
    }
}

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Peer {
    Process {
        pid: u32,
        comm: String,
    },
    /// In another network namespace: a process that stands for it.
    Namespace {
        pid: u32,
    },
    Unknown,
    None,
}

/// A connection whose client is in our network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    socket: String,
    /// Names the connection.
    cookie: u64,
    /// The client's socket.
    client: Option<u32>,
}

/// A listening socket of the runtime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Backlog {
    waiting: u64,
    limit: u64,
}

/// What one look found.
#[derive(Debug, Default)]
pub(super) struct Look {
    pub(super) listeners: BTreeMap<String, Backlog>,
    pub(super) connections: Vec<Connection>,
    /// Connections from other network namespaces, by socket and the process that stands for the namespace.
    pub(super) elsewhere: BTreeMap<(String, u32), u64>,
    /// Namespaces that were not, or not wholly, looked into, by whose they are.
    left_out: LeftOut,
    /// Why it is not known of a socket whether it is the runtime's.
    pub(super) unproven: Option<Error>,
}

/// What found no place: of the node's own, and by the uid of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LeftOut {
    pub(super) nodes: u64,
    pub(super) pods: BTreeMap<String, u64>,
}

impl LeftOut {
    fn add(&mut self, share: Option<&str>) {
        match share {
            None | Some("") => self.nodes += 1,
            Some(uid) => *self.pods.entry(uid.to_owned()).or_default() += 1,
        }
    }
}

impl Look {
    /// Asks the kernel.
    ///
    /// # Errors
    /// The kernel's. Absent on a machine of recorded files without sockets.
    pub(super) fn take(
        host: &Host,
        paths: &[String],
        listed: &mut Listed,
        namespaces: &Namespaces,
        pods: &Pods,
        deadline: Deadline,
    ) -> Result<Self> {
        let mut look = Look::default();
        let files: Vec<_> = paths.iter().map(|path| (path, host.unix_file(path))).collect();
        let mut listeners = host.unix_listeners(deadline)?;
        let mut labels = Vec::new();
        listeners.retain(|listener| {
            let label = label(listener, &files, &mut look.unproven);
            labels.extend(label.clone());
            label.is_some()
        });
        if listeners.is_empty() {
            return Ok(look);
        }
        for (listener, label) in listeners.iter().zip(&labels) {
            let backlog = look.listeners.entry(label.clone()).or_default();
            backlog.waiting += u64::from(listener.receive_queue.unwrap_or(0));
            backlog.limit += u64::from(listener.send_queue.unwrap_or(0));
        }
        for served in listed.served_by(host, &listeners, deadline)? {
            let Some(index) = listeners.iter().position(|listener| served.is_served_by(listener)) else { continue };
            let socket = labels[index].clone();
            look.connections.push(Connection { socket, cookie: served.cookie, client: served.peer });
        }
        (look.elsewhere, look.left_out) = elsewhere::look(host, &listeners, &labels, namespaces, pods, deadline);
        Ok(look)
    }

    /// The clients' sockets: whoever meets one among the fds of a process can say whose it is.
    pub(super) fn clients(&self) -> HashSet<u32> {
        self.connections.iter().filter_map(|connection| connection.client).collect()
    }

    /// Counts connections by socket and peer. `met`: owners that were met by inode number; the others are searched for.
    ///
    /// # Errors
    /// The procfs cannot be read.
    pub(super) fn by_peer(
        &self,
        host: &Host,
        met: &HashMap<u32, Owner>,
        owners: &mut Owners,
        pods: &Pods,
        most_links: usize,
        deadline: Deadline,
    ) -> Result<BTreeMap<(String, Peer), u64>> {
        let sought = self.connections.iter().filter_map(|connection| Some((connection.cookie, connection.client?)));
        let sought: Vec<_> = sought.filter(|(_, inode)| !met.contains_key(inode)).collect();
        let found = owners.find(
            host,
            &sought,
            Hints { first: &[], share: Some(&|pid| pods.share(pid)) },
            most_links,
            deadline,
        )?;
        let mut counts = BTreeMap::new();
        for connection in &self.connections {
            let owner =
                connection.client.map(|client| met.get(&client).or_else(|| found.owners.get(&connection.cookie)));
            let peer = match owner {
                None => Peer::None,
                Some(None) => Peer::Unknown,
                Some(Some(owner)) => Peer::Process { pid: owner.pid, comm: owner.comm.clone() },
            };
            *counts.entry((connection.socket.clone(), peer)).or_default() += 1;
        }
        let elsewhere = self.elsewhere.iter();
        counts
            .extend(elsewhere.map(|((socket, pid), count)| ((socket.clone(), Peer::Namespace { pid: *pid }), *count)));
        Ok(counts)
    }
}

/// What a listener is called if it is one of the runtime's: the path that it was bound to, or if that is relative the
/// one that leads to its file. `unproven` is told if its name is a runtime's and its file cannot be compared.
fn label(
    listener: &UnixSocket,
    files: &[(&String, Result<Option<FileAtPath>>)],
    unproven: &mut Option<Error>,
) -> Option<String> {
    let UnixSocket { name: Some(UnixName::Path(name)), kind: UnixKind::Stream, .. } = listener else {
        return None;
    };
    let found = files.iter().find(|(path, file)| matches!(file, Ok(Some(file)) if file.is_of(listener, path)));
    let Some((path, _)) = found else {
        let named = files.iter().find(|(path, _)| name.as_os_str() == path.as_str());
        if let Some((_, Err(error))) = named {
            unproven.get_or_insert_with(|| error.clone().context("is this the runtime's socket?"));
        }
        return None;
    };
    Some(if name.is_absolute() { name.to_string_lossy().into_owned() } else { (*path).clone() })
}

/// Every path at which a runtime's socket may be: where it is asked, what was named, and the well-known ones.
pub(super) fn paths(asked: Option<String>, named: &[String]) -> Vec<String> {
    let mut paths: Vec<String> = asked.into_iter().chain(named.iter().cloned()).collect();
    paths.extend(WELL_KNOWN.iter().map(|&path| path.to_owned()));
    paths.sort_unstable();
    paths.dedup();
    paths
}

impl Look {
    /// What pods lost by their own share, by uid.
    pub(super) fn left_out_of_pods<'a>(&'a self, rows: &'a Rows) -> impl Iterator<Item = (&'a String, u64)> {
        self.left_out.pods.iter().chain(&rows.left_out.pods).map(|(uid, count)| (uid, *count))
    }
}

/// The numbers. Pure.
pub(super) fn assess(look: &Look, rows: &Rows, samples: &mut Samples) {
    for (socket, backlog) in &look.listeners {
        samples.push(&BACKLOG, &[socket], backlog.waiting as f64);
        samples.push(&BACKLOG_LIMIT, &[socket], backlog.limit as f64);
    }
    samples.drop_count(look.left_out.nodes + rows.left_out.nodes);
    // One pod may have several network namespaces, and names that differ in bytes only are one text.
    let mut sums: BTreeMap<[&str; 9], u64> = BTreeMap::new();
    let pids: Vec<String> = rows.rows.iter().map(Row::pid).collect();
    for (row, pid) in rows.rows.iter().zip(&pids) {
        let (peer, comm) = match &row.peer {
            Peer::Process { comm, .. } => ("process", comm.as_str()),
            Peer::Namespace { .. } => ("namespace", row.comm.as_str()),
            Peer::Unknown => ("unknown", ""),
            Peer::None => ("none", ""),
        };
        let uid = row.place.as_ref().map_or(unknown_pod(row.unplaced), |place| &place.pod_uid);
        let container = row.place.as_ref().and_then(|place| place.container_id.as_deref()).unwrap_or("");
        let Names { namespace, pod, container: name } = &row.names;
        *sums.entry([&row.socket, peer, pid, comm, uid, container, namespace, pod, name]).or_default() += row.count;
    }
    for (socket, count) in &rows.others {
        sums.insert([socket, "other", "", "", "", "", "", "", ""], *count);
    }
    sums.iter().for_each(|(labels, count)| samples.push(&CONNECTIONS, labels, *count as f64));
}

/// An error of a list of sockets, as far as it is one: a kernel without such a list, or a machine of recorded files,
/// has none to tell.
pub(super) fn failure(error: Error) -> Option<Error> {
    (error.reason() != Reason::Absent).then_some(error)
}

#[cfg(test)]
mod tests;
