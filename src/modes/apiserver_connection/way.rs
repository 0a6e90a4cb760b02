//! The way that the kubelet really takes to the apiserver, followed from its own sockets.
//!
//! **The first leg** are the sockets of the kubelet's own process to the port of its server, or of its proxy. To which
//! addresses: the literal one; each that the server's name ever had; where the name has none that we know (the kubelet
//! asks another resolver) any; and those that it was connected to when we first saw it, or is for longer than a probe
//! of a pod takes: a load balancer's address may leave the name's while a kubelet stays on it. So 0 is only said where
//! the kubelet has no socket to that port at all.
//!
//! **The legs onward.** If the other end of such a connection is on this machine, the same dump has it: the socket that
//! somebody here accepted. If that is the apiserver itself, the way ends there. Otherwise it is a balancer (nginx,
//! haproxy, the agent of k3s and of RKE2, a proxy), and the connections that its process made are the node's way. To
//! the kubelet its balancer always looks well; what is dead is behind it, or is the balancer that accepts and no longer
//! reads: then the data waits in the accepted socket's receive queue.
//!
//! **Who a balancer is** is asked of the kernel alone: which process holds the accepted socket. A pod's process can be
//! it only on the host's network, and then it is.
//!
//! **When it misleads.** Of a balancer with several connections onward it is not known which one carries the kubelet's
//! stream. What another machine's load balancer does cannot be seen from here: its way is `direct`. A connection that
//! is redirected by NAT into another network namespace of this machine is `direct` too, unless it goes to loopback.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::endpoints::{Endpoints, Hop, Source};
use crate::apiserver::HostPort;
use crate::error::{Error, Result};
use crate::host::sockets::owners::{Held, Owner, held_by};
use crate::host::sockets::{TcpConnection, TcpState};
use crate::host::{Deadline, Host};
use crate::kubelet::identity;
use crate::kubelet::process::KubeletProcess;

/// Links of fds that one look reads of the kubelet, and of a balancer.
const MOST_LINKS: usize = 8_192;
/// A kubelet's connection that lasts longer is no probe of a pod.
const LASTS: Duration = Duration::from_secs(15);
/// Addresses that only a connection spoke for.
const MOST_ADOPTED: usize = 16;
/// Processes that were seen to be balancers.
const MOST_BALANCERS: usize = 64;
/// The ports of apiservers, of k3s's and RKE2's tunnel: behind a balancer that does other things as well, what goes to
/// these is the way.
const APISERVER_PORTS: [u16; 2] = [6443, 9345];

/// Part of the way a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Leg {
    /// The kubelet's own.
    Kubelet,
    /// Of the balancer that the kubelet's goes to.
    Onward,
    /// Somebody else's.
    Other,
}

impl Leg {
    /// The label value.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Leg::Kubelet => "kubelet",
            Leg::Onward => "onward",
            Leg::Other => "other",
        }
    }
}

/// Which way it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// To the apiserver, or to what is before it on another machine.
    Direct,
    /// To a process of this machine of this name, and from there on.
    Balancer(String),
    /// By this proxy.
    Proxy(String),
    /// To this address of this machine, and nothing onward is found there.
    Unknown(String),
}

impl Way {
    /// The values of the labels `way` and `via`.
    pub(super) fn labels(&self) -> [&str; 2] {
        match self {
            Way::Direct => ["direct", ""],
            Way::Balancer(via) => ["balancer", via],
            Way::Proxy(via) => ["proxy", via],
            Way::Unknown(via) => ["unknown", via],
        }
    }
}

/// The kubelet's own connections.
#[derive(Debug, Default)]
pub(super) struct First {
    /// Those to its server or proxy.
    pub(super) connections: Vec<TcpConnection>,
    /// It has no others to that port, and nothing was left out: if there are none, it has none.
    pub(super) is_complete: bool,
    /// What was adopted, for the list of endpoints.
    pub(super) adopted: Vec<SocketAddr>,
    /// The other ends that are on this machine, by the cookie of the kubelet's end.
    pub(super) accepted: HashMap<u64, TcpConnection>,
}

impl First {
    pub(super) fn has(&self, cookie: u64) -> bool {
        self.connections.iter().any(|connection| connection.cookie == cookie)
    }
}

/// The legs behind the kubelet's.
#[derive(Debug, Default)]
pub(super) struct Onward {
    /// Whose it is, and the connection.
    pub(super) connections: Vec<(String, TcpConnection)>,
    /// Balancers of which everything was seen, by name: what has no connection here has none.
    pub(super) whole: BTreeSet<String>,
    /// The processes of all balancers.
    pub(super) pids: BTreeSet<u32>,
    /// Which way this is; `None` if nothing tells.
    pub(super) way: Option<Way>,
    pub(super) errors: Vec<Error>,
}

/// What it takes to follow, from look to look.
#[derive(Debug, Default)]
pub(super) struct Follower {
    /// Of which kubelet, and where to.
    of: Option<(u32, HostPort)>,
    /// Sockets to that port by cookie: whether they are the kubelet's.
    mine: HashMap<u64, bool>,
    /// The kubelet's connections to addresses that its server's name does not have, since when.
    strangers: HashMap<u64, Instant>,
    adopted: BTreeSet<IpAddr>,
    /// Processes that were seen to connect onward.
    balancers: BTreeSet<(u32, String)>,
    way: Option<Way>,
}

impl Follower {
    /// The kubelet's own leg. `dump` has every connection to the hop's port.
    ///
    /// # Errors
    /// Denied if we may not see whose sockets are whose.
    pub(super) fn first(
        &mut self,
        host: &Host,
        kubelet: &KubeletProcess,
        hop: &Hop,
        dump: &[TcpConnection],
        endpoints: &Endpoints,
        deadline: Deadline,
    ) -> Result<First> {
        let now = Instant::now();
        let key = (kubelet.pid, hop.place.clone());
        let is_new = self.of.as_ref() != Some(&key);
        if is_new {
            *self = Follower { of: Some(key), balancers: std::mem::take(&mut self.balancers), ..Follower::default() };
        }
        let to_port = |connection: &&TcpConnection| connection.peer.port() == hop.port() && connection.inode != 0;
        let candidates: Vec<&TcpConnection> = dump.iter().filter(to_port).collect();
        let mut whole = true;
        if candidates.iter().any(|candidate| !self.mine.contains_key(&candidate.cookie)) {
            let held = held_by(host, kubelet.pid, MOST_LINKS, deadline)?;
            whole = held.whole;
            for candidate in &candidates {
                let mine = held.inodes.contains(&candidate.inode);
                if mine || whole {
                    self.mine.entry(candidate.cookie).or_insert(mine);
                }
            }
        }
        let cookies: HashSet<u64> = candidates.iter().map(|candidate| candidate.cookie).collect();
        self.mine.retain(|cookie, _| cookies.contains(cookie));
        self.strangers.retain(|cookie, _| cookies.contains(cookie));

        let mut first = First { is_complete: whole && hop.is_certain, ..First::default() };
        for candidate in candidates.into_iter().filter(|candidate| self.mine.get(&candidate.cookie) == Some(&true)) {
            let ip = candidate.peer.ip();
            if !hop.addresses.contains(&ip) && !self.adopted.contains(&ip) {
                let since = *self.strangers.entry(candidate.cookie).or_insert(now);
                let lasts = now.duration_since(since) >= LASTS;
                if !(hop.is_name && (is_new || hop.addresses.is_empty() || lasts)) {
                    if hop.is_name {
                        first.is_complete = false;
                        endpoints.look_up_now();
                    }
                    continue;
                }
                self.adopted.insert(ip);
            }
            first.connections.push(candidate.clone());
        }
        // A name without an address may be that of any socket, also of one that is not there at the moment.
        first.is_complete &= !hop.addresses.is_empty();
        let live: HashSet<IpAddr> = first.connections.iter().map(|connection| connection.peer.ip()).collect();
        while self.adopted.len() > MOST_ADOPTED {
            let gone = self.adopted.iter().find(|ip| !live.contains(*ip)).copied();
            let Some(gone) = gone.or_else(|| self.adopted.first().copied()) else { break };
            self.adopted.remove(&gone);
        }
        if !hop.is_proxy {
            first.adopted = self.adopted.iter().map(|ip| SocketAddr::new(*ip, hop.port())).collect();
        }
        first.accepted = accepted(host, &first.connections, hop.port(), deadline)?;
        Ok(first)
    }

    /// Where it goes on, by who accepted the kubelet's connections: `acceptors`, by the cookie of the accepted socket.
    #[allow(clippy::too_many_arguments, reason = "one look, taken apart")]
    pub(super) fn onward(
        &mut self,
        host: &Host,
        kubelet: &KubeletProcess,
        has_control_plane: bool,
        hop: &Hop,
        first: &First,
        acceptors: &HashMap<u64, Owner>,
        known: &BTreeMap<SocketAddr, Source>,
        deadline: Deadline,
    ) -> Onward {
        let mut onward = Onward::default();
        let mut ways = Vec::new();
        let mut processes: BTreeMap<u32, (String, BTreeSet<SocketAddr>)> = BTreeMap::new();
        for connection in &first.connections {
            let Some(accepted) = first.accepted.get(&connection.cookie) else {
                let hidden = connection.peer.ip().is_loopback();
                ways.push(if hidden { Way::Unknown(connection.peer.to_string()) } else { Way::Direct });
                continue;
            };
            match acceptors.get(&accepted.cookie) {
                None => ways.push(Way::Unknown(connection.peer.to_string())),
                Some(owner) if is_the_apiserver(host, owner, kubelet, has_control_plane) => ways.push(Way::Direct),
                Some(owner) => {
                    processes
                        .entry(owner.pid)
                        .or_insert_with(|| (owner.comm.clone(), BTreeSet::new()))
                        .1
                        .insert(connection.peer);
                }
            }
        }
        if !processes.is_empty() {
            let all = |state| host.tcp_connections_in(state, deadline);
            let made = all(TcpState::Established).and_then(|made| Ok((made, all(TcpState::SynSent)?)));
            let is_dumped = made.is_ok();
            let (established, asked) = made.unwrap_or_else(|error| {
                onward.errors.push(error);
                Default::default()
            });
            for (pid, (comm, listeners)) in processes {
                let held = held_by(host, pid, MOST_LINKS, deadline).unwrap_or_else(|error| {
                    if !error.is_gone() {
                        onward.errors.push(error.context(format_args!("where {comm} connects the kubelet to")));
                    }
                    Held::default()
                });
                let made_by = |connection: &&TcpConnection| {
                    let accepted = listeners.iter().any(|listener| listener.port() == connection.local.port());
                    let to_itself = listeners.contains(&connection.peer) || first.has(connection.cookie);
                    held.inodes.contains(&connection.inode) && !accepted && !to_itself
                };
                let found = narrowed(established.iter().filter(made_by).collect(), hop, known);
                let balancer = (pid, comm.clone());
                if !found.is_empty() || asked.iter().any(|connection| made_by(&connection)) {
                    if self.balancers.len() >= MOST_BALANCERS {
                        self.balancers.clear();
                    }
                    self.balancers.insert(balancer.clone());
                }
                if self.balancers.contains(&balancer) {
                    if is_dumped && held.whole {
                        onward.whole.insert(comm.clone());
                    }
                    onward.pids.insert(pid);
                    ways.push(Way::Balancer(comm.clone()));
                } else {
                    ways.extend(listeners.iter().map(|listener| Way::Unknown(listener.to_string())));
                }
                onward.connections.extend(found.into_iter().map(|connection| (comm.clone(), connection.clone())));
            }
        }
        onward.way = self.decide(ways, hop);
        onward
    }

    /// The way as a whole: what is unknown of one connection is unknown. Without any connection it is as it was.
    fn decide(&mut self, ways: Vec<Way>, hop: &Hop) -> Option<Way> {
        let rank = |way: &Way| match way {
            Way::Unknown(_) => 0,
            Way::Balancer(_) | Way::Proxy(_) => 1,
            Way::Direct => 2,
        };
        let found = ways.into_iter().min_by_key(rank).map(|way| match way {
            Way::Direct | Way::Balancer(_) if hop.is_proxy => Way::Proxy(hop.place.to_string()),
            way => way,
        });
        if found.is_some() {
            self.way = found;
        }
        self.way.clone()
    }
}

/// Of what a process connects to, the connections that are the way: those to apiservers, if it has any; else those to
/// other machines; else all.
fn narrowed<'a>(
    connections: Vec<&'a TcpConnection>,
    hop: &Hop,
    known: &BTreeMap<SocketAddr, Source>,
) -> Vec<&'a TcpConnection> {
    let ports: BTreeSet<u16> = known.keys().map(SocketAddr::port).chain([hop.port()]).chain(APISERVER_PORTS).collect();
    let to_apiservers = |connection: &&TcpConnection| ports.contains(&connection.peer.port());
    let to_others = |connection: &&TcpConnection| !connection.peer.ip().is_loopback();
    if connections.iter().any(to_apiservers) {
        connections.into_iter().filter(to_apiservers).collect()
    } else if connections.iter().any(to_others) {
        connections.into_iter().filter(to_others).collect()
    } else {
        connections
    }
}

/// The ends of these connections that are on this machine. The kernel gives a connection to an address of its own that
/// address as its source, too, so of the others nothing is looked for.
fn accepted(
    host: &Host,
    connections: &[TcpConnection],
    port: u16,
    deadline: Deadline,
) -> Result<HashMap<u64, TcpConnection>> {
    let is_local = |one: &TcpConnection| one.peer.ip().is_loopback() || one.peer.ip() == one.local.ip();
    if !connections.iter().any(is_local) {
        return Ok(HashMap::new());
    }
    let ends = host.tcp_connections_of(port, deadline)?;
    let ends: HashMap<(SocketAddr, SocketAddr), TcpConnection> =
        ends.into_iter().map(|end| ((end.peer, end.local), end)).collect();
    let of = |one: &TcpConnection| Some((one.cookie, ends.get(&(one.local, one.peer))?.clone()));
    Ok(connections.iter().filter_map(of).collect())
}

/// True if whoever accepted is this node's apiserver: a process of its own, or the kubelet's where both are in one.
fn is_the_apiserver(host: &Host, owner: &Owner, kubelet: &KubeletProcess, has_control_plane: bool) -> bool {
    if owner.pid == kubelet.pid {
        return has_control_plane;
    }
    owner.comm == "kube-apiserver"
        && host.pids().is_ok_and(|pids| identity::is_of_the_control_plane(&pids, owner.pid).unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::ss;
    use crate::host::Roots;
    use crate::host::sockets::Sockets;

    fn hop(place: &str, addresses: &[&str]) -> Hop {
        let (host, port) = place.rsplit_once(':').unwrap();
        Hop {
            place: HostPort { host: host.to_owned(), port: port.parse().unwrap() },
            is_proxy: false,
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
            is_name: host.parse::<IpAddr>().is_err(),
            error: None,
            is_certain: true,
        }
    }

    fn connection(line: &str) -> TcpConnection {
        ss::connection(&format!("0 0 {line} ino:7 sk:1 rto:204 rtt:1/2"))
    }

    #[test]
    fn the_worst_that_is_known_is_the_way() {
        let mut follower = Follower::default();
        let hop = hop("127.0.0.1:6443", &["127.0.0.1"]);
        let (nginx, unknown) = (Way::Balancer("nginx".to_owned()), Way::Unknown("127.0.0.1:6443".to_owned()));
        assert_eq!(follower.decide(vec![], &hop), None, "nothing was ever seen");
        assert_eq!(follower.decide(vec![Way::Direct, nginx.clone()], &hop), Some(nginx.clone()));
        assert_eq!(follower.decide(vec![], &hop), Some(nginx.clone()), "as it was");
        assert_eq!(follower.decide(vec![nginx, unknown.clone()], &hop), Some(unknown.clone()));
        let proxy = Hop { is_proxy: true, ..hop };
        assert_eq!(follower.decide(vec![Way::Direct], &proxy), Some(Way::Proxy("127.0.0.1:6443".to_owned())));
        assert_eq!(follower.decide(vec![unknown.clone()], &proxy), Some(unknown), "never well by being a proxy");
    }

    /// A machine on which process 7 is nginx, that accepted the kubelet's connection and made one onward, as long as
    /// its fds can be looked at.
    fn machine(fds: &[u32], tcp: Vec<TcpConnection>) -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        let fd = dir.path().join("7/fd");
        std::fs::create_dir_all(&fd).unwrap();
        for (number, inode) in fds.iter().enumerate() {
            std::os::unix::fs::symlink(format!("socket:[{inode}]"), fd.join(number.to_string())).unwrap();
        }
        let host = Host::new(Roots { proc: dir.path().into(), ..Roots::default() });
        (dir, host.with_sockets(Sockets::recorded(tcp, Vec::new())))
    }

    #[test]
    fn what_could_not_be_looked_at_is_no_balancer_without_a_connection() {
        let hop = hop("127.0.0.1:6443", &["127.0.0.1"]);
        let socket = |line: &str, inode| TcpConnection { inode, cookie: inode.into(), ..connection(line) };
        let near = socket("127.0.0.1:4000 127.0.0.1:6443", 1);
        let end = socket("127.0.0.1:6443 127.0.0.1:4000", 2);
        let far = socket("10.0.0.9:5000 10.0.0.1:6443", 3);
        let kubelet = KubeletProcess { pid: 5, ..KubeletProcess::default() };
        let mut follower = Follower::default();
        let mut onward = |host: &Host| {
            let first = First {
                connections: vec![near.clone()],
                accepted: HashMap::from([(near.cookie, end.clone())]),
                ..First::default()
            };
            let acceptors = HashMap::from([(end.cookie, Owner { pid: 7, comm: "nginx".to_owned() })]);
            let deadline = Deadline::after(Duration::from_secs(60));
            follower.onward(host, &kubelet, false, &hop, &first, &acceptors, &BTreeMap::new(), deadline)
        };
        let nginx = || BTreeSet::from(["nginx".to_owned()]);
        let (_dir, well) = machine(&[2, 3], vec![near.clone(), end.clone(), far.clone()]);
        let found = onward(&well);
        assert_eq!((found.connections.len(), &found.whole), (1, &nginx()));
        let (_dir, lost) = machine(&[2], vec![near.clone(), end.clone()]);
        let found = onward(&lost);
        assert_eq!((found.connections.len(), &found.whole), (0, &nginx()), "it has none any more");
        let (dir, unseen) = machine(&[2, 3], vec![near.clone(), end.clone(), far.clone()]);
        std::fs::remove_dir_all(dir.path().join("7")).unwrap();
        let without_sockets = Host::new(Roots { proc: dir.path().into(), ..Roots::default() });
        for host in [&unseen, &without_sockets] {
            let found = onward(host);
            assert_eq!((found.connections.len(), &found.whole), (0, &BTreeSet::new()), "nobody knows");
            assert_eq!(found.way, Some(Way::Balancer("nginx".to_owned())));
        }
    }

    #[test]
    fn of_a_balancer_that_does_other_things_what_goes_to_apiservers_is_the_way() {
        let hop = hop("127.0.0.1:6444", &["127.0.0.1"]);
        let lines = ["10.0.0.9:1 10.0.0.1:7443", "10.0.0.9:2 10.0.0.5:5432", "127.0.0.1:3 127.0.0.1:9000"];
        let all: Vec<TcpConnection> = lines.iter().map(|line| connection(line)).collect();
        let peers = |known: &[&str], which: &[usize]| {
            let known = known.iter().map(|peer| (peer.parse().unwrap(), Source::EndpointSlice)).collect();
            let which = which.iter().map(|index| &all[*index]).collect();
            let found = narrowed(which, &hop, &known);
            found.iter().map(|connection| connection.peer.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(peers(&["10.0.0.1:7443"], &[0, 1, 2]), ["10.0.0.1:7443"]);
        assert_eq!(peers(&[], &[0, 1, 2]), ["10.0.0.1:7443", "10.0.0.5:5432"], "which is which is not known");
        assert_eq!(peers(&[], &[2]), ["127.0.0.1:9000"], "onward on this machine");
    }
}
