//! The connections to the apiserver that others on this machine really use, as the kernel sees them.
//!
//! Looked at with each scrape and, because a kubelet heals itself within 45 s and Prometheus may come once a minute, by
//! a clock of our own in between: what is counted then is how often a stall began.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::endpoints::{Endpoints, Hop, Known, Source};
use super::stall::{Judged, Tracker, Verdict};
use super::way::{First, Follower, Leg, Onward, Way};
use crate::error::{Error, Reason, Result};
use crate::host::process::Processes;
use crate::host::sockets::TcpConnection;
use crate::host::sockets::owners::{Found, Hints, Owner, Owners};
use crate::host::{Deadline, Host};
use crate::kubelet::handle::{self, Kubelet};
use crate::kubelet::http2::Http2;
use crate::kubelet::process::KubeletProcess;
use crate::metric::{Metric, Samples, Unit};

pub(super) static ENDPOINTS: Metric = Metric::info(
    "headroom_apiserver_endpoint_info",
    &["endpoint", "source"],
    "Addresses that this exporter takes for the apiserver's, by source: flag, kubeconfig, probe, endpointslice or \
     connection.\n\n\
     flag: --apiserver.endpoints. kubeconfig: the kubelet's own. probe: where this exporter's probe connects. \
     endpointslice: the addresses behind the kubernetes service, if the exporter may read them. connection: the \
     kubelet is connected to this address, and the name in its kubeconfig resolves to another address or does not \
     resolve here.",
);
pub(super) static CONNECTIONS: Metric = Metric::gauge(
    "headroom_apiserver_connections",
    Unit::None,
    &["owner", "leg"],
    "Established TCP connections from the host's network namespace to the apiserver (sock_diag), by owner and leg. \
     Connections of pods with their own network are not counted.\n\n\
     owner: the name of the process; self is this exporter, unknown a process whose file descriptors the exporter may \
     not read. leg: kubelet (the kubelet's own, to its server, proxy or local balancer), onward (of that balancer), \
     other. 0 for a kubelet without a connection and for a balancer that no longer has one; missing where that is not \
     known.",
);
const GROUP: &[&str] = &["owner", "peer", "leg"];
pub(super) static RTT: Metric = Metric::gauge(
    "headroom_apiserver_connection_rtt_seconds",
    Unit::Seconds,
    GROUP,
    "Smoothed round-trip time as TCP measured it (tcpi_rtt); of several connections the largest, as with all figures \
     here.\n\n\
     It keeps its last value on a dead connection: stalled and unacknowledged_seconds tell.",
);
pub(super) static RTTVAR: Metric = Metric::gauge(
    "headroom_apiserver_connection_rttvar_seconds",
    Unit::Seconds,
    GROUP,
    "Mean deviation of the round-trip time (tcpi_rttvar), the largest of the connections.",
);
pub(super) static RETRANSMITS: Metric = Metric::gauge(
    "headroom_apiserver_connection_retransmits",
    Unit::None,
    GROUP,
    "Segments sent again in the life of a connection (tcpi_total_retrans), the most of the connections. It falls when that connection is \
     replaced.",
);
pub(super) static UNACKED: Metric = Metric::gauge(
    "headroom_apiserver_connection_unacked_segments",
    Unit::None,
    GROUP,
    "Segments sent and not yet acknowledged (tcpi_unacked), the most of the connections.",
);
pub(super) static BACKOFF: Metric = Metric::gauge(
    "headroom_apiserver_connection_backoff",
    Unit::None,
    GROUP,
    "How often the retransmission timeout was doubled since the last acknowledgement (tcpi_backoff), the most of the connections: 0 on a path \
     that works, 5 after 10 s and 7 after 30 s on one that is dead.",
);
pub(super) static SEND_QUEUE: Metric = Metric::gauge(
    "headroom_apiserver_connection_send_queue_bytes",
    Unit::Bytes,
    GROUP,
    "Written by the process and not yet acknowledged by the apiserver (Send-Q of ss), the most of the connections.",
);
pub(super) static LAST_ACK: Metric = Metric::gauge(
    "headroom_apiserver_connection_last_ack_seconds",
    Unit::Seconds,
    GROUP,
    "Since the last acknowledgement came in (tcpi_last_ack_recv), the longest of the connections. It grows on an idle connection too.",
);
pub(super) static LAST_DATA: Metric = Metric::gauge(
    "headroom_apiserver_connection_last_data_received_seconds",
    Unit::Seconds,
    GROUP,
    "Since data last came in (tcpi_last_data_recv), the longest of the connections. A kubelet renews its lease every 10 s, so that its own \
     stays below that.",
);
pub(super) static UNREAD: Metric = Metric::gauge(
    "headroom_apiserver_connection_unread_seconds",
    Unit::Seconds,
    GROUP,
    "Lower bound of how long received data has waited for this process to read it: the longest of its connections, 0 \
     if none waits.\n\n\
     For the kubelet's connections to a local balancer this includes data that the balancer has accepted and does not \
     read.",
);
pub(super) static UNACKNOWLEDGED: Metric = Metric::gauge(
    "headroom_apiserver_connection_unacknowledged_seconds",
    Unit::Seconds,
    GROUP,
    "Lower bound of how long written data has waited for its acknowledgement: the longest of the connections, 0 if \
     nothing is outstanding.\n\n\
     From the retransmission timer and from earlier looks at the socket.",
);
pub(super) static STALLED: Metric = Metric::gauge(
    "headroom_apiserver_connection_stalled",
    Unit::None,
    GROUP,
    "1 if data on a connection of this process has waited longer than --apiserver.stall-threshold: the connection is \
     dead but in use.\n\n\
     Data that waits for its acknowledgement, or, on the kubelet's way, to be read on this machine. With default \
     settings a kubelet gives such a connection up about 45 s after the last byte that it read.",
);
pub(super) static STALLS: Metric = Metric::counter(
    "headroom_apiserver_connection_stalls_total",
    GROUP,
    "How often a connection began to be stalled since the exporter started, looked at every half --apiserver.stall-threshold whether or not \
     anybody scrapes.\n\n\
     A connection that is new is found by the next scrape, or after four such looks.",
);
pub(super) static WAY: Metric = Metric::info(
    "headroom_kubelet_apiserver_way_info",
    &["way", "via"],
    "How the kubelet reaches the apiserver, by its own sockets: direct, balancer, proxy or unknown.\n\n\
     balancer: via names the process of this machine that accepts its connections and connects onward. proxy: via is \
     its address. unknown: via is an address of this machine behind which no onward connection is found; a server \
     there may be dead and look healthy.",
);
pub(super) static SILENCE: Metric = Metric::gauge(
    "headroom_kubelet_apiserver_last_data_received_seconds",
    Unit::Seconds,
    &[],
    "Time since data last arrived on any of the kubelet's apiserver connections (tcpi_last_data_recv). A healthy \
     kubelet stays near 10 s.\n\n\
     The youngest of the connections. A kubelet renews its lease every 10 s, and the answer is data. Missing without \
     a connection.",
);
pub(super) static HTTP2: Metric = Metric::info(
    "headroom_kubelet_http2_info",
    &["enabled", "read_idle_timeout", "ping_timeout"],
    "How the kubelet checks its HTTP/2 connection for life, by the environment that it was started with. \
     read_idle_timeout 0s: it never checks.\n\n\
     Variables DISABLE_HTTP2, HTTP2_READ_IDLE_TIMEOUT_SECONDS and HTTP2_PING_TIMEOUT_SECONDS; else the defaults of \
     Kubernetes 1.20 and later.",
);
pub(super) static HEALTH_CHECK: Metric = Metric::gauge(
    "headroom_kubelet_http2_health_check_seconds",
    Unit::Seconds,
    &[],
    "Longest time until the kubelet gives up a connection on which nothing comes back: its read-idle and ping \
     timeouts together.\n\n\
     Missing if HTTP/2 or its health check is switched off: then TCP takes 13 to 30 minutes.",
);

/// Pairs of owner and peer that are shown; a node has about five.
const MOST_GROUPS: usize = 40;
/// So many looks in a row may be at connections that are known, one that is new is found by the next. With the default
/// threshold these are the ones between two scrapes 15 s apart.
const LOOKS_OF_KNOWN: u32 = 3;
/// More than this many are dumped sooner than asked for one by one.
const MOST_KNOWN: usize = 64;
/// Links of file descriptors that one look reads at the most to find whose a new socket is.
const MOST_LINKS: usize = 10_000;

/// Looks at connections, and remembers what it takes to judge them.
#[derive(Debug)]
pub(super) struct Passive {
    endpoints: Arc<Endpoints>,
    kubelet: Kubelet,
    threshold: Duration,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    owners: Owners,
    tracker: Tracker,
    follower: Follower,
    stalls: BTreeMap<Group, u64>,
    /// Connections whose owner the last look did not find.
    unknown: BTreeSet<u64>,
    last: Option<Kept>,
}

/// What a look found, for those between it and the next one.
#[derive(Debug)]
struct Kept {
    at: Instant,
    seen: Vec<(TcpConnection, String, Leg)>,
    accepted: HashMap<u64, TcpConnection>,
    found: Found,
}

impl Kept {
    fn all(&self) -> impl Iterator<Item = &TcpConnection> {
        self.seen.iter().map(|(connection, ..)| connection).chain(self.accepted.values())
    }

    /// Takes in what they are now, in the order of [`Kept::all`].
    fn refresh(&mut self, now: Vec<TcpConnection>) {
        let all = self.seen.iter_mut().map(|(connection, ..)| connection).chain(self.accepted.values_mut());
        all.zip(now).for_each(|(connection, now)| *connection = now);
    }
}

/// Connections that are shown as one: whose they are, to whom, and which leg of the kubelet's way.
type Group = (String, SocketAddr, Leg);

/// One connection, judged.
#[derive(Clone, Debug)]
struct Seen {
    connection: TcpConnection,
    verdict: Verdict,
    owner: String,
    leg: Leg,
}

/// What one look found.
#[derive(Debug, Default)]
pub(super) struct Look {
    endpoints: BTreeMap<SocketAddr, Source>,
    connections: Vec<Seen>,
    /// The kubelet runs, and where it connects to is known: then none of its own is 0.
    kubelet_is_complete: bool,
    /// Those that the kubelet's way goes by, of which everything was seen: then no connection onward is 0.
    balancers: BTreeSet<String>,
    way: Option<Way>,
    stalls: BTreeMap<Group, u64>,
    http2: Option<Http2>,
    errors: Vec<Error>,
}

impl Passive {
    pub(super) fn new(endpoints: Arc<Endpoints>, kubelet: Kubelet, threshold: Duration) -> Self {
        Passive { endpoints, kubelet, threshold, memory: Mutex::default() }
    }

    /// How often it wants to look, scraped or not.
    pub(super) fn period(&self) -> Duration {
        (self.threshold / 2).max(Duration::from_millis(500))
    }

    /// A look between two others: whether a stall began on a connection that is known. A dump walks over a table of
    /// hundreds of thousands of places for a handful of sockets, so these are asked for by their addresses; if one is
    /// gone, or the last look was too long ago to know all, it is a whole look after all.
    ///
    /// # Errors
    /// As [`Passive::look`].
    pub(super) fn watch(&self, host: &Host, deadline: Deadline) -> Result<()> {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let young = |kept: &Kept| kept.at.elapsed() < self.period() * LOOKS_OF_KNOWN + self.period() / 2;
        if let Some(mut kept) = memory.last.take().filter(young)
            && (1..=MOST_KNOWN).contains(&kept.all().count())
            && let Some(now) = host.tcp_connections_again(kept.all(), deadline)?
        {
            kept.refresh(now);
            let Kept { seen, accepted, found, .. } = &kept;
            memory.judge(seen.clone(), accepted, found, self.threshold, &mut Look::default());
            memory.last = Some(kept);
            return Ok(());
        }
        drop(memory);
        self.look(host, deadline, Instant::now()).map(drop)
    }

    /// One look, with the kubelet as it was at `since` or later.
    ///
    /// # Errors
    /// Absent if nobody here names an apiserver.
    pub(super) fn look(&self, host: &Host, deadline: Deadline, since: Instant) -> Result<Look> {
        let mut look = Look::default();
        let node = self.kubelet.look(host, deadline, since)?;
        look.errors.extend(node.found().err());
        let environment = node.environment(host, deadline).map_err(|error| error.context("the kubelet's environment"));
        let known = self.endpoints.known(host, &node, environment.as_ref().ok().and_then(Option::as_ref), deadline);
        if !known.named {
            return Err(Error::absent(
                "no kubelet with a kubeconfig runs here, no service account is mounted and no flag names an apiserver",
            ));
        }
        // A panic of ours half-way leaves it outdated at worst.
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.last = None;
        look.http2 = environment.map_err(|error| look.errors.push(error)).ok().flatten().map(|found| found.http2);
        match self.connections(host, &node, known, &mut memory, &mut look, deadline) {
            Ok(()) => {}
            Err(error) => look.errors.push(error.context("connections to the apiserver")),
        }
        look.stalls = memory.stalls.clone();
        Ok(look)
    }

    fn connections(
        &self,
        host: &Host,
        node: &handle::Look,
        known: Known,
        memory: &mut Memory,
        look: &mut Look,
        deadline: Deadline,
    ) -> Result<()> {
        look.errors.extend(known.errors);
        look.endpoints = known.addresses;
        let kubelet = node.process();
        let has_control_plane = node.found().is_ok_and(|found| found.control_plane);
        host.in_own_network(kubelet.map(|kubelet| kubelet.pid))?;
        let hop = known.hop.as_ref();
        let ports: BTreeSet<u16> = look.endpoints.keys().map(SocketAddr::port).chain(hop.map(Hop::port)).collect();
        let ports: Vec<u16> = ports.into_iter().collect();
        let mut dump = host.tcp_connections(&ports, deadline)?;

        let mut first = First::default();
        if let (Some(kubelet), Some(hop)) = (kubelet, hop) {
            match memory.follower.first(host, kubelet, hop, &dump, &self.endpoints, deadline) {
                Ok(found) => first = found,
                Err(error) if error.is_gone() => {}
                Err(error) => look.errors.push(error.context("finding the kubelet's connections")),
            }
            // Where it is connected, its name does not matter.
            look.errors.extend(hop.error.clone().filter(|_| first.connections.is_empty()));
        } else {
            look.errors.extend(hop.and_then(|hop| hop.error.clone()));
        }
        for address in &first.adopted {
            look.endpoints.entry(*address).or_insert(Source::Connection);
        }
        dump.retain(|connection| look.endpoints.contains_key(&connection.peer) && !first.has(connection.cookie));

        // Not accepted yet, or inside the kernel: nobody's.
        let owned = dump.iter().chain(first.accepted.values()).filter(|connection| connection.inode != 0);
        let wanted: Vec<_> = owned.map(|connection| (connection.cookie, connection.inode)).collect();
        let hints: Vec<u32> = kubelet.map(|kubelet| kubelet.pid).into_iter().chain([std::process::id()]).collect();
        let found = memory.owners.find(host, &wanted, Hints { first: &hints, share: None }, MOST_LINKS, deadline)?;
        look.errors.extend(memory.unknown_owners(host, &ports, &wanted, &found, deadline));
        look.kubelet_is_complete = first.is_complete;

        let mut onward = Onward::default();
        if let (Some(kubelet), Some(hop)) = (kubelet, hop) {
            onward = memory.follower.onward(
                host,
                kubelet,
                has_control_plane,
                hop,
                &first,
                &found.owners,
                &look.endpoints,
                deadline,
            );
        }
        look.errors.append(&mut onward.errors);
        look.balancers = std::mem::take(&mut onward.whole);
        look.way = onward.way.take();
        let is_onward: BTreeSet<u64> = onward.connections.iter().map(|(_, connection)| connection.cookie).collect();

        let mut seen: Vec<(TcpConnection, String, Leg)> = Vec::new();
        let kubelets = std::mem::take(&mut first.connections).into_iter();
        seen.extend(kubelets.map(|connection| (connection, "kubelet".to_owned(), Leg::Kubelet)));
        seen.extend(onward.connections.into_iter().map(|(owner, connection)| (connection, owner, Leg::Onward)));
        let others = dump.into_iter().filter(|connection| !is_onward.contains(&connection.cookie));
        seen.extend(others.map(|connection| {
            let found = found.owners.get(&connection.cookie);
            // One that a balancer had at the first look and closed before the second, as its checks are.
            match found.filter(|owner| onward.pids.contains(&owner.pid)) {
                Some(balancer) => (connection, balancer.comm.clone(), Leg::Onward),
                None => (connection, owner(found, kubelet), Leg::Other),
            }
        }));
        memory.judge(seen.clone(), &first.accepted, &found, self.threshold, look);
        memory.last = Some(Kept { at: Instant::now(), seen, accepted: first.accepted, found });
        Ok(())
    }
}

/// The name of a process, whatever the kubelet and we ourselves are called.
fn owner(found: Option<&Owner>, kubelet: Option<&KubeletProcess>) -> String {
    match found {
        Some(owner) if kubelet.is_some_and(|kubelet| kubelet.pid == owner.pid) => "kubelet".to_owned(),
        Some(owner) if owner.pid == std::process::id() => "self".to_owned(),
        Some(owner) => owner.comm.clone(),
        None => "unknown".to_owned(),
    }
}

impl Memory {
    /// Judges what was seen, together with the other ends of the kubelet's own that are on this machine.
    fn judge(
        &mut self,
        seen: Vec<(TcpConnection, String, Leg)>,
        accepted: &HashMap<u64, TcpConnection>,
        found: &Found,
        threshold: Duration,
        look: &mut Look,
    ) {
        let ends: Vec<(u64, &TcpConnection)> = accepted.iter().map(|(cookie, end)| (*cookie, end)).collect();
        let judged = seen
            .iter()
            .map(|(connection, _, leg)| Judged { connection, is_link: *leg != Leg::Other })
            .chain(ends.iter().map(|(_, connection)| Judged { connection, is_link: true }));
        let verdicts = self.tracker.judge(judged, threshold, Instant::now());
        let (verdicts, of_ends) = verdicts.split_at(seen.len());
        let of_ends: HashMap<u64, Verdict> =
            ends.iter().map(|(cookie, _)| *cookie).zip(of_ends.iter().copied()).collect();
        for ((connection, owner, leg), verdict) in seen.into_iter().zip(verdicts) {
            let end = if leg == Leg::Kubelet { of_ends.get(&connection.cookie) } else { None };
            let verdict = end.map_or(*verdict, |end| verdict.and(*end));
            let key = (owner.clone(), connection.peer, leg);
            // One of ours is nobody's for the moment in which it is made; that is no owner to count for ever.
            let lasting = leg != Leg::Other || found.owners.contains_key(&connection.cookie) || verdict.begins;
            if self.stalls.contains_key(&key) || (lasting && self.stalls.len() < MOST_GROUPS) {
                *self.stalls.entry(key).or_default() += u64::from(verdict.begins);
            }
            if verdict.begins {
                let seconds = |time: Option<Duration>| time.unwrap_or_default().as_secs_f64();
                let (waiting, unread) = (seconds(verdict.waiting), seconds(verdict.unread));
                tracing::warn!(owner, leg = leg.as_str(), peer = %connection.peer, local = %connection.local, waiting, unread, "a connection to the apiserver is stalled");
            }
            look.connections.push(Seen { connection, verdict, owner, leg });
        }
    }

    /// One that is missing because the budget or the time ended is found by a later look, and one that ended while we
    /// looked is missing once. Whose it is where a process protects itself, nobody can know.
    fn unknown_owners(
        &mut self,
        host: &Host,
        ports: &[u16],
        wanted: &[(u64, u32)],
        found: &Found,
        deadline: Deadline,
    ) -> Option<Error> {
        let missing = wanted.iter().map(|(cookie, _)| *cookie).filter(|cookie| !found.owners.contains_key(cookie));
        let missing: BTreeSet<u64> = missing.collect();
        let mut lasting: BTreeSet<u64> = missing.intersection(&self.unknown).copied().collect();
        self.unknown = missing;
        let entitled = || Processes::open(host).is_ok_and(|processes| processes.entitled());
        if lasting.is_empty() || found.refused == 0 || Processes::protect_themselves(found.refused, entitled()) {
            return None;
        }
        // What vanished while we looked was not kept from us.
        if let Ok(now) = host.tcp_connections(ports, deadline) {
            let now: BTreeSet<u64> = now.iter().map(|connection| connection.cookie).collect();
            lasting.retain(|cookie| now.contains(cookie));
        }
        if lasting.is_empty() {
            return None;
        }
        Some(Error::new(
            Reason::Denied,
            format!(
                "{} connections without a known owner: the file descriptors of {} processes cannot be read: give the exporter \
                 CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH",
                lasting.len(),
                found.refused
            ),
        ))
    }
}

/// Connections of one owner to one peer, each figure of the one that is worst in it.
#[derive(Debug, Default)]
struct Figures {
    rtt: Option<Duration>,
    rttvar: Option<Duration>,
    retransmits: Option<u32>,
    unacked: Option<u32>,
    backoff: Option<u8>,
    send_queue: u32,
    last_ack: Option<Duration>,
    last_data: Option<Duration>,
    waiting: Option<Duration>,
    unread: Duration,
    stalled: bool,
}

impl Figures {
    fn add(&mut self, connection: &TcpConnection, verdict: Verdict) {
        self.send_queue = self.send_queue.max(connection.send_queue_bytes);
        self.stalled |= verdict.stalled;
        self.unread = self.unread.max(verdict.unread.unwrap_or_default());
        let Some(info) = &connection.info else { return };
        self.rtt = self.rtt.max(info.rtt);
        self.rttvar = self.rttvar.max(info.rtt_variance);
        self.retransmits = self.retransmits.max(Some(info.retransmitted_segments));
        self.unacked = self.unacked.max(Some(info.unacked_segments));
        self.backoff = self.backoff.max(Some(info.backoff));
        self.last_ack = self.last_ack.max(Some(info.last_ack_received));
        self.last_data = self.last_data.max(Some(info.last_data_received));
        self.waiting = self.waiting.max(Some(verdict.waiting.unwrap_or_default()));
    }
}

/// The numbers of one look.
pub(super) fn assess(look: Look, samples: &mut Samples) {
    for (address, source) in &look.endpoints {
        samples.info(&ENDPOINTS, &[&address.to_string(), source.as_str()]);
    }
    if let Some(http2) = look.http2 {
        let seconds = |time: Duration| format!("{}s", time.as_secs());
        let read_idle = seconds(http2.read_idle_timeout.unwrap_or_default());
        samples.info(&HTTP2, &[&http2.enabled.to_string(), &read_idle, &seconds(http2.ping_timeout)]);
        samples.push_some(&HEALTH_CHECK, &[], http2.heals_within().map(|time| time.as_secs_f64()));
    }

    if let Some(way) = &look.way {
        samples.info(&WAY, &way.labels());
    }
    let kubelets = look.connections.iter().filter(|seen| seen.leg == Leg::Kubelet);
    let silence = kubelets.filter_map(|seen| Some(seen.connection.info.as_ref()?.last_data_received)).min();
    samples.push_some(&SILENCE, &[], silence.map(|time| time.as_secs_f64()));

    let mut owners: BTreeMap<(Leg, &str), u64> = BTreeMap::new();
    if look.kubelet_is_complete {
        owners.insert((Leg::Kubelet, "kubelet"), 0);
    }
    owners.extend(look.balancers.iter().map(|balancer| ((Leg::Onward, balancer.as_str()), 0)));
    let mut groups: BTreeMap<(&str, SocketAddr, Leg), Figures> = BTreeMap::new();
    for Seen { connection, verdict, owner, leg } in &look.connections {
        *owners.entry((*leg, owner)).or_default() += 1;
        groups.entry((owner, connection.peer, *leg)).or_default().add(connection, *verdict);
    }
    // Nearest to failure first; those that matter most of the rest.
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|((owner, _, leg), group)| {
        (!group.stalled, *leg == Leg::Other && *owner != "self", group.waiting.map(std::cmp::Reverse))
    });
    samples.drop_count(groups.len().saturating_sub(MOST_GROUPS) as u64);
    groups.truncate(MOST_GROUPS);
    let mut others = 0;
    for (index, ((leg, owner), count)) in owners.iter().enumerate() {
        if index < MOST_GROUPS {
            samples.push(&CONNECTIONS, &[owner, leg.as_str()], *count as f64);
        } else {
            others += 1;
        }
    }
    samples.drop_count(others);
    for ((owner, peer, leg), group) in &groups {
        let peer = peer.to_string();
        let labels = [*owner, &*peer, leg.as_str()];
        let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
        samples.push_some(&RTT, &labels, seconds(group.rtt));
        samples.push_some(&RTTVAR, &labels, seconds(group.rttvar));
        samples.push_some(&RETRANSMITS, &labels, group.retransmits.map(f64::from));
        samples.push_some(&UNACKED, &labels, group.unacked.map(f64::from));
        samples.push_some(&BACKOFF, &labels, group.backoff.map(f64::from));
        samples.push(&SEND_QUEUE, &labels, f64::from(group.send_queue));
        samples.push_some(&LAST_ACK, &labels, seconds(group.last_ack));
        samples.push_some(&LAST_DATA, &labels, seconds(group.last_data));
        samples.push_some(&UNACKNOWLEDGED, &labels, seconds(group.waiting));
        samples.push_some(&UNREAD, &labels, group.waiting.map(|_| group.unread.as_secs_f64()));
        // Without TCP's own figures there is no verdict.
        samples.push_some(&STALLED, &labels, group.waiting.map(|_| f64::from(u8::from(group.stalled))));
    }
    for ((owner, peer, leg), count) in &look.stalls {
        samples.push(&STALLS, &[owner, &peer.to_string(), leg.as_str()], *count as f64);
    }
    look.errors.into_iter().for_each(|error| samples.fail(error));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::ss;

    fn peer() -> SocketAddr {
        "10.250.0.1:6443".parse().unwrap()
    }

    /// A connection as `ss` prints it, whose numbers are in `changes`.
    fn connection(cookie: u64, changes: &str) -> TcpConnection {
        let line = format!("0 0 10.250.0.9:40000 10.250.0.1:6443 ino:7 sk:{cookie:x} rto:204 rtt:1/2 {changes}");
        ss::connection(&line)
    }

    fn assessed(look: Look) -> Samples {
        let mut samples = Samples::new();
        assess(look, &mut samples);
        samples.refuse_undeclared(super::super::MODE.metrics);
        samples.refuse_duplicates();
        samples
    }

    const WELL: Verdict = Verdict { waiting: None, unread: None, stalled: false, begins: false };

    fn seen(connection: TcpConnection, verdict: Verdict, owner: &str) -> Seen {
        let leg = if owner == "kubelet" { Leg::Kubelet } else { Leg::Other };
        Seen { connection, verdict, owner: owner.to_owned(), leg }
    }

    #[test]
    fn each_figure_is_of_the_connection_that_is_worst_in_it() {
        let stalled = Verdict { waiting: Some(Duration::from_secs(12)), stalled: true, begins: true, ..WELL };
        let look = Look {
            connections: vec![
                seen(connection(1, "retrans:0/9 lastack:5 lastrcv:5"), WELL, "kubelet"),
                seen(connection(2, "unacked:2 backoff:5 lastack:20000 lastrcv:20500"), stalled, "kubelet"),
                seen(connection(3, ""), WELL, "kube-proxy"),
            ],
            kubelet_is_complete: true,
            stalls: BTreeMap::from([(("kubelet".to_owned(), peer(), Leg::Kubelet), 3)]),
            ..Look::default()
        };
        let samples = assessed(look);
        let kubelet = ["kubelet", "10.250.0.1:6443", "kubelet"];
        assert_eq!(samples.value(&CONNECTIONS, &["kubelet", "kubelet"]), Some(2.0));
        assert_eq!(samples.value(&SILENCE, &[]), Some(0.005), "the youngest: something came in there");
        assert_eq!(samples.value(&RETRANSMITS, &kubelet), Some(9.0));
        assert_eq!(samples.value(&BACKOFF, &kubelet), Some(5.0));
        assert_eq!(samples.value(&UNACKED, &kubelet), Some(2.0));
        assert_eq!(samples.value(&LAST_ACK, &kubelet), Some(20.0));
        assert_eq!(samples.value(&LAST_DATA, &kubelet), Some(20.5));
        assert_eq!(samples.value(&UNACKNOWLEDGED, &kubelet), Some(12.0));
        assert_eq!(samples.value(&STALLED, &kubelet), Some(1.0));
        assert_eq!(samples.value(&STALLS, &kubelet), Some(3.0));
        assert_eq!(samples.value(&STALLED, &["kube-proxy", "10.250.0.1:6443", "other"]), Some(0.0));
    }

    #[test]
    fn no_connection_is_0_only_if_none_could_have_been_the_kubelets() {
        let look = |kubelet_is_complete| Look { kubelet_is_complete, ..Look::default() };
        assert_eq!(assessed(look(true)).value(&CONNECTIONS, &["kubelet", "kubelet"]), Some(0.0));
        assert_eq!(assessed(look(false)).value(&CONNECTIONS, &["kubelet", "kubelet"]), None);
    }

    #[test]
    fn a_balancer_without_a_connection_onward_has_none() {
        let look = Look {
            connections: vec![seen(connection(1, "lastrcv:300"), WELL, "kubelet")],
            balancers: BTreeSet::from(["nginx".to_owned()]),
            way: Some(Way::Balancer("nginx".to_owned())),
            ..Look::default()
        };
        let samples = assessed(look);
        assert_eq!(samples.value(&CONNECTIONS, &["nginx", "onward"]), Some(0.0));
        assert!(samples.value(&WAY, &["balancer", "nginx"]).is_some());
        assert_eq!(samples.value(&SILENCE, &[]), Some(0.3));
    }

    #[test]
    fn without_tcps_own_figures_there_is_no_verdict() {
        let bare = TcpConnection { info: None, ..connection(1, "") };
        let look = Look { connections: vec![seen(bare, WELL, "kubelet")], ..Look::default() };
        let samples = assessed(look);
        assert_eq!(samples.value(&CONNECTIONS, &["kubelet", "kubelet"]), Some(1.0));
        assert_eq!(samples.value(&STALLED, &["kubelet", "10.250.0.1:6443", "kubelet"]), None);
        assert_eq!(samples.value(&RTT, &["kubelet", "10.250.0.1:6443", "kubelet"]), None);
    }

    #[test]
    fn of_too_many_the_stalled_and_the_nodes_own_are_kept() {
        let stalled = Verdict { waiting: Some(Duration::from_secs(12)), stalled: true, ..WELL };
        let mut connections: Vec<_> =
            (0..200).map(|n| seen(connection(n, ""), WELL, &format!("agent-{n:03}"))).collect();
        connections.push(seen(connection(900, ""), WELL, "kubelet"));
        connections.push(seen(connection(901, ""), stalled, "zebra"));
        let samples = assessed(Look { connections, ..Look::default() });
        assert_eq!(samples.value(&STALLED, &["zebra", "10.250.0.1:6443", "other"]), Some(1.0));
        assert_eq!(samples.value(&STALLED, &["kubelet", "10.250.0.1:6443", "kubelet"]), Some(0.0));
        let shown = samples.rows().iter().filter(|row| std::ptr::eq(row.metric, &STALLED)).count();
        assert_eq!(shown, MOST_GROUPS);
        assert!(samples.dropped() >= 2 * (202 - MOST_GROUPS as u64) - 2, "{}", samples.dropped());
    }

    #[test]
    fn settings_of_the_kubelet() {
        let with = |environ: &[&str]| {
            let http2 = Some(Http2::of_environ(environ.iter().copied()));
            assessed(Look { http2, ..Look::default() })
        };
        let samples = with(&[]);
        assert!(samples.value(&HTTP2, &["true", "30s", "15s"]).is_some());
        assert_eq!(samples.value(&HEALTH_CHECK, &[]), Some(45.0));
        let samples = with(&["HTTP2_READ_IDLE_TIMEOUT_SECONDS=0"]);
        assert!(samples.value(&HTTP2, &["true", "0s", "15s"]).is_some());
        assert_eq!(samples.value(&HEALTH_CHECK, &[]), None);
        assert!(with(&["DISABLE_HTTP2=false"]).value(&HTTP2, &["false", "30s", "15s"]).is_some());
    }
}
