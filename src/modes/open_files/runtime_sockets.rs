//! Who holds connections to the container runtime's sockets.
//!
//! **How it is found out.** The kernel lists listening unix sockets (`sock_diag`); those at a runtime's well-known
//! path, or whose file is the one at such a path, are the runtime's. Each accepted connection to one has a server's end
//! with the listener's name. Its peer is the client's socket, and which process has that is told by the links in
//! `/proc/PID/fd`: those that are read for kinds anyway, and for the rest a search within
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
//! **When it misleads.** A connection that is closed while we look has no owner any more, `peer=unknown`. One socket
//! that several processes hold (after fork) counts for one of them. A daemon in a container on the host's network that
//! listens at the same path counts as the runtime.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::error::{Error, Reason, Result};
use crate::host::sockets::owners::{Owner, Owners};
use crate::host::sockets::{UnixKind, UnixName, UnixSocket};
use crate::host::{Deadline, Host};
use crate::kubelet::cgroup_name::PodPlace;
use crate::kubelet::pod_places::PodPlaces;
use crate::metric::{Metric, Samples, Unit};

use super::names::{Names, unknown_pod};
use super::namespaces::Namespaces;

pub(super) static CONNECTIONS: Metric = Metric::gauge(
    "headroom_runtime_socket_connections",
    Unit::None,
    &["socket", "peer", "pid", "comm", "pod_uid", "container_id", "namespace", "pod", "container"],
    "Connections to a socket of the container runtime (docker.sock, containerd.sock, …), by who holds the other end. peer=process: the \
     named one. peer=none: nobody, the client is gone and the daemon has not closed its end. peer=namespace: a pod, or a process, with a \
     network of its own; which process of it is not to be known, pid and comm are those of the lowest pid if it is no pod. peer=unknown: closed while we \
     looked, not found within the budget, or not permitted. peer=other: the sum of what was too small to be shown. The sum over all is \
     every connection that was accepted; for the others see headroom_runtime_socket_backlog.",
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
/// Clients shown: those with the most connections.
const MOST_ROWS: usize = 50;
/// Network namespaces that are looked into, lowest pids first. A node has one per pod.
const MOST_NAMESPACES: usize = 300;
/// Bytes of `net/unix` that one scrape reads: some 50,000 sockets.
const MOST_BYTES: usize = 4 << 20;

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
    /// Namespaces that were not, or not wholly, looked into.
    pub(super) left_out: u64,
}

impl Look {
    /// Asks the kernel.
    ///
    /// # Errors
    /// The kernel's. Absent on a machine of recorded files without sockets.
    pub(super) fn take(host: &Host, paths: &[String], namespaces: &Namespaces, deadline: Deadline) -> Result<Self> {
        let mut look = Look::default();
        let files: Vec<_> = paths.iter().map(|path| (path, host.unix_file(path).ok().flatten())).collect();
        let mut listeners = host.unix_listeners(deadline)?;
        let mut labels = Vec::new();
        listeners.retain(|listener| {
            let label = label(listener, &files);
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
        for served in host.unix_served_by(&listeners, deadline)? {
            let Some(index) = listeners.iter().position(|listener| served.is_served_by(listener)) else { continue };
            let socket = labels[index].clone();
            look.connections.push(Connection { socket, cookie: served.cookie, client: served.peer });
        }
        look.look_elsewhere(host, &listeners, &labels, namespaces, deadline);
        Ok(look)
    }

    fn look_elsewhere(
        &mut self,
        host: &Host,
        listeners: &[UnixSocket],
        labels: &[String],
        namespaces: &Namespaces,
        deadline: Deadline,
    ) {
        use std::os::unix::ffi::OsStrExt as _;
        let Ok(own) = host.own_network_namespace() else { return };
        let by_path: HashMap<&[u8], &String> = listeners
            .iter()
            .zip(labels)
            .filter_map(|(listener, label)| match &listener.name {
                Some(UnixName::Path(path)) => Some((path.as_os_str().as_bytes(), label)),
                _ => None,
            })
            .collect();
        let others = namespaces.others(own);
        let mut left = MOST_BYTES;
        for (index, &pid) in others.iter().enumerate() {
            if index == MOST_NAMESPACES || left == 0 || deadline.expired() {
                self.left_out += (others.len() - index) as u64;
                return;
            }
            let (mut counts, mut its_own) = (BTreeMap::<&String, u64>::new(), HashSet::new());
            let read = host.unix_sockets_of(pid, left, |listed| {
                if let Some(&label) = by_path.get(listed.path) {
                    if listed.listening {
                        its_own.insert(label);
                    } else {
                        *counts.entry(label).or_default() += 1;
                    }
                }
            });
            match read {
                Ok((read, whole)) => {
                    left = left.saturating_sub(read);
                    self.left_out += u64::from(!whole);
                }
                // It exited, and the next scrape knows another of its namespace; or its rows are nonsense.
                Err(_) => continue,
            }
            let counts = counts.into_iter().filter(|(label, _)| !its_own.contains(label));
            self.elsewhere.extend(counts.map(|(label, count)| ((label.clone(), pid), count)));
        }
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
        most_links: usize,
        deadline: Deadline,
    ) -> Result<BTreeMap<(String, Peer), u64>> {
        let sought = self.connections.iter().filter_map(|connection| Some((connection.cookie, connection.client?)));
        let sought: Vec<_> = sought.filter(|(_, inode)| !met.contains_key(inode)).collect();
        let found = owners.find(host, &sought, &[], most_links, deadline)?;
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
/// one that leads to its file.
fn label(listener: &UnixSocket, files: &[(&String, Option<crate::host::sockets::UnixFile>)]) -> Option<String> {
    let UnixSocket { name: Some(UnixName::Path(name)), kind: UnixKind::Stream, file, .. } = listener else {
        return None;
    };
    let by_name = files.iter().find(|(path, _)| name.as_os_str() == path.as_str());
    let by_file = || files.iter().find(|(_, at_path)| file.is_some() && at_path == file);
    let (path, _) = by_name.or_else(by_file)?;
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

/// One client of one socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) socket: String,
    pub(super) peer: Peer,
    pub(super) count: u64,
    pub(super) place: Option<PodPlace>,
    /// Whether it is in a pod is not known.
    unplaced: bool,
    pub(super) names: Names,
    /// What the process that stands for a namespace calls itself.
    comm: String,
}

/// The rows that are shown and, by socket, what the others hold together; with how many those are.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub(super) rows: Vec<Row>,
    others: BTreeMap<String, u64>,
    left_out: u64,
}

impl Rows {
    /// The largest. What could not be named is always shown.
    pub(super) fn of(counts: BTreeMap<(String, Peer), u64>) -> Self {
        let mut rows: Vec<Row> = counts
            .into_iter()
            .map(|((socket, peer), count)| Row {
                socket,
                peer,
                count,
                place: None,
                unplaced: false,
                names: Names::default(),
                comm: String::new(),
            })
            .collect();
        rows.sort_by_key(|row| {
            (matches!(row.peer, Peer::Process { .. } | Peer::Namespace { .. }), u64::MAX - row.count)
        });
        let small = rows.split_off(MOST_ROWS.min(rows.len()));
        let mut others = BTreeMap::new();
        small.iter().for_each(|row| *others.entry(row.socket.clone()).or_default() += row.count);
        Rows { rows, others, left_out: small.len() as u64 }
    }

    /// Reads which pods they belong to.
    pub(super) fn place(&mut self, host: &Host, places: PodPlaces) {
        for row in &mut self.rows {
            let pid = match row.peer {
                Peer::Process { pid, .. } | Peer::Namespace { pid } => pid,
                Peer::Unknown | Peer::None => continue,
            };
            let cgroups = host.cgroups_of(pid);
            row.unplaced = cgroups.as_ref().is_err_and(|error| !error.is_gone());
            row.place = cgroups.ok().and_then(|cgroups| places.place(&cgroups));
            if let (Peer::Namespace { .. }, None) = (&row.peer, &row.place) {
                row.comm = host.pids().and_then(|pids| pids.comm(pid)).unwrap_or_default();
            }
            if let (Peer::Namespace { .. }, Some(place)) = (&row.peer, &mut row.place) {
                // Whichever container of the pod it is: the namespace is the pod's.
                place.container_id = None;
            }
        }
    }
}

/// The numbers. Pure.
pub(super) fn assess(look: &Look, rows: &Rows, samples: &mut Samples) {
    for (socket, backlog) in &look.listeners {
        samples.push(&BACKLOG, &[socket], backlog.waiting as f64);
        samples.push(&BACKLOG_LIMIT, &[socket], backlog.limit as f64);
    }
    samples.drop_count(look.left_out + rows.left_out);
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

impl Row {
    fn pid(&self) -> String {
        match self.peer {
            Peer::Process { pid, .. } => pid.to_string(),
            Peer::Namespace { pid } if self.place.is_none() => pid.to_string(),
            _ => String::new(),
        }
    }
}

/// An error of a list of sockets, as far as it is one: a kernel without such a list, or a machine of recorded files,
/// has none to tell.
pub(super) fn failure(error: Error) -> Option<Error> {
    (error.reason() != Reason::Absent).then_some(error)
}

#[cfg(test)]
mod tests;
