//! The connection to the apiserver is dead, but in use: the node goes NotReady and a new connection would have worked
//! at once.
//!
//! **What fails.** A kubelet has one HTTP/2 connection for everything. If its path dies without a word (no RST, no
//! FIN), requests hang on it: leases are not renewed, the node flaps NotReady, `kubectl logs` times out. The kubelet's
//! own /healthz says ok. Its health check (Kubernetes ≥ 1.20) closes such a connection after about 45 s, unless it was
//! switched off; TCP alone takes 13 to 30 minutes.
//!
//! **Evidence, without touching anybody.** `passive.rs`: the kubelet's own sockets, and those of everybody else in the
//! host's network namespace, by `sock_diag` (`struct tcp_info`), attributed to their processes; the verdict "stalled"
//! is in `stall.rs`. Whose addresses are looked at: `endpoints.rs`. Which way the kubelet takes, by a balancer or a
//! proxy of this machine where there is one: `way.rs`. What the kubelet would do about a dead connection: its
//! environment ([`crate::kubelet::http2`]).
//!
//! **Evidence of our own.** `probe.rs`: a long-lived HTTP/2 connection (PING and a cheap GET) beside a new HTTP/1.1
//! connection each time, through [`crate::apiserver`]. Fresh works and reused does not is exactly "dead, but in use";
//! both slow is a slow server.
//!
//! **What we export.** The way; per owner, peer and leg of it the figures of TCP, each of the connection that is worst
//! in it; how our probes ended and how long their phases took; on demand whether the apiserver reaches the kubelet.
//!
//! **When it misleads.**
//! - Round-trip time keeps its last value on a dead connection: it never shows one.
//! - A balancer of this machine with several connections onward: which of them carries the kubelet's stream is not
//!   known. That nothing came back to the kubelet for a while tells that it is a dead one.
//! - What is dead behind a balancer of another machine does not show at the kubelet's connection; that nothing comes
//!   back does.
//! - Pods with a network of their own are not seen, and neither is anything if this exporter itself is in one (an error
//!   says so).
//! - Our probe may take another way than the kubelet: see [`crate::apiserver`]; `--apiserver.url` names the kubelet's.
//! - Without CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH connections are seen, but not whose they are.

mod endpoints;
mod instruments;
mod passive;
mod probe;
mod stall;
mod way;

use std::sync::Arc;
use std::time::Duration;

use super::{Collector, Context, Mode, Probe, Utilization, alerts};
use crate::apiserver::Address;
use crate::error::{Reason, Result};
use crate::humanize::grouped;
use crate::metric::Samples;
use crate::services::Services;
use crate::values::{defaults, some_time};
use endpoints::Endpoints;
use instruments::Instruments;
use passive::Passive;
use probe::{Shared, Worker};

/// This mode.
pub static MODE: Mode = Mode {
    id: "apiserver_connection",
    title: "the kubelet's connection to the apiserver is dead, but in use",
    happened: "the kubelet's one HTTP/2 connection is dead, and the kubelet goes on using it",
    alerts: alerts!("apiserver_connection"),
    metrics: &[
        &passive::ENDPOINTS,
        &passive::CONNECTIONS,
        &passive::RTT,
        &passive::RTTVAR,
        &passive::RETRANSMITS,
        &passive::UNACKED,
        &passive::BACKOFF,
        &passive::SEND_QUEUE,
        &passive::LAST_ACK,
        &passive::LAST_DATA,
        &passive::UNACKNOWLEDGED,
        &passive::UNREAD,
        &passive::STALLED,
        &passive::STALLS,
        &passive::WAY,
        &passive::SILENCE,
        &passive::HTTP2,
        &passive::HEALTH_CHECK,
        &instruments::DURATION,
        &instruments::PROBES,
        &instruments::FAILURES,
        &instruments::SUCCESS,
        &instruments::LAST_SUCCESS,
        &instruments::RECONNECTS,
        &instruments::RETRY_AFTER,
        &instruments::TO_KUBELET_DURATION,
        &instruments::TO_KUBELET,
    ],
    utilization: Some(Utilization {
        used: "sum by (instance) (headroom_apiserver_connection_stalled{leg=~\"kubelet|onward\"})",
        limit: "sum by (instance) (headroom_apiserver_connections{leg=~\"kubelet|onward\"}) > 0",
        slope: None,
        text: |connections| {
            let (stalled, all) = (grouped(connections.used), grouped(connections.limit));
            format!("{stalled} of {all} connections on the kubelet's way to the apiserver stalled")
        },
    }),
    keeps: Some("how long data has waited on a connection, whose sockets are whose"),
    needs_runtime: false,
    build: |settings, services| Box::new(ApiserverConnection::new(&settings.apiserver_connection, services)),
};

/// Settings.
#[derive(clap::Args, Clone, Debug, PartialEq, Eq)]
#[group(skip)]
#[command(next_help_heading = "Apiserver")]
pub struct Settings {
    /// From one probe of a kind to the next; docs/performance.md has its cost at the apiserver
    #[arg(id = "apiserver.probe-interval", long = "apiserver.probe-interval", value_name = "DURATION", default_value = "15s", value_parser = some_time)]
    pub interval: Duration,
    /// Ask the apiserver to ask this node's kubelet for /healthz; it needs the verb get on nodes/proxy, which lets its
    /// holder run commands in every pod
    #[arg(id = "apiserver.probe-kubelet", long = "apiserver.probe-kubelet")]
    pub probe_kubelet: bool,
    /// Further addresses whose connections count as the apiserver's, beside those of the kubelet's kubeconfig and the
    /// probe's
    #[arg(id = "apiserver.endpoints", long = "apiserver.endpoints", value_name = "HOST:PORT", value_delimiter = ',', value_parser = endpoint_flag)]
    pub endpoints: Vec<Address>,
    /// A connection on which written data waits longer than this for its acknowledgement is stalled
    #[arg(id = "apiserver.stall-threshold", long = "apiserver.stall-threshold", value_name = "DURATION", default_value = "10s", value_parser = some_time)]
    pub stall_threshold: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        defaults()
    }
}

fn endpoint_flag(text: &str) -> std::result::Result<Address, String> {
    let wrong = || format!("expected HOST:PORT, found {text:?}");
    if text.contains('/') {
        return Err(wrong());
    }
    Address::apiserver(&format!("https://{text}")).map_err(|_| wrong())
}

struct ApiserverConnection {
    passive: Arc<Passive>,
    instruments: Arc<Instruments>,
    shared: Arc<Shared>,
}

impl ApiserverConnection {
    fn new(settings: &Settings, services: &Services) -> Self {
        let endpoints = Arc::new(Endpoints::new(&settings.endpoints));
        let kubelet = services.kubelet.clone();
        let passive = Arc::new(Passive::new(Arc::clone(&endpoints), kubelet.clone(), settings.stall_threshold));
        let instruments = Arc::<Instruments>::default();
        let shared = Arc::new(Shared {
            apiserver: services.apiserver.clone(),
            kubelet,
            settings: settings.clone(),
            endpoints,
            passive: Arc::clone(&passive),
            instruments: Arc::clone(&instruments),
        });
        ApiserverConnection { passive, instruments, shared }
    }
}

impl Collector for ApiserverConnection {
    fn collect(&self, context: Context<'_>) -> Result<Samples> {
        let mut samples = Samples::new();
        match self.passive.look(context.host, context.deadline, context.began) {
            Ok(look) => passive::assess(look, &mut samples),
            Err(error) if error.reason() == Reason::Absent && !self.instruments.in_use() => return Err(error),
            Err(error) if error.reason() == Reason::Absent => {}
            Err(error) => samples.fail(error),
        }
        self.instruments.show(&mut samples);
        Ok(samples)
    }

    fn probes(&self) -> Vec<Arc<dyn Probe>> {
        Worker::all(&self.shared).map(|worker| Arc::new(worker) as Arc<dyn Probe>).collect()
    }
}
