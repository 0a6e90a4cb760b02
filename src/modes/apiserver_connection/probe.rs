//! What works on clocks of its own: the probes, the looks between scrapes, and the search for addresses.
//!
//! **What it costs the apiserver** is in docs/performance.md, for one node and for five thousand. `--apiserver.probe-interval` turns
//! it down. Clocks start at a random moment and wander by a tenth, so that a fleet does not come all at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::Settings;
use super::endpoints::{self, Endpoints};
use super::instruments::{Instruments, Kind};
use super::passive::Passive;
use crate::apiserver::{Apiserver, Client, Exchange, Outcome};
use crate::error::{Error, Reason, Result};
use crate::host::{Deadline, Host};
use crate::kubelet::node::Node;
use crate::modes::{Probe, Work, pace};

/// How often the endpoints behind the service address are asked for, and how often if we may not know them.
const SLICE_EVERY: Duration = Duration::from_secs(300);
const SLICE_DENIED: Duration = Duration::from_secs(3600);
const SLICE: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
const LARGEST_SLICE: usize = 64 << 10;
const LARGEST_HEALTHZ: usize = 4 << 10;
/// How long a machine without an apiserver to look for is left alone.
const NOBODY_HERE: Duration = Duration::from_secs(60);
/// How long one look at the connections may take.
const LOOK: Duration = Duration::from_secs(5);

/// What all of them share with the collector.
pub(super) struct Shared {
    pub(super) apiserver: Apiserver,
    pub(super) node: Node,
    pub(super) settings: Settings,
    pub(super) endpoints: Arc<Endpoints>,
    pub(super) passive: Arc<Passive>,
    pub(super) instruments: Arc<Instruments>,
}

/// One clock.
#[derive(Clone, Copy)]
enum Job {
    Ask(Kind),
    Look,
    Names,
    Slice,
}

/// What runs on it.
pub(super) struct Worker {
    job: Job,
    shared: Arc<Shared>,
}

impl Worker {
    /// Everything that this mode does between scrapes.
    pub(super) fn all(shared: &Arc<Shared>) -> impl Iterator<Item = Worker> + '_ {
        let kubelet = shared.settings.probe_kubelet.then_some(Job::Ask(Kind::ToKubelet));
        let jobs = [Job::Ask(Kind::Reused), Job::Ask(Kind::Fresh), Job::Look, Job::Names, Job::Slice];
        jobs.into_iter().chain(kubelet).map(|job| Worker { job, shared: Arc::clone(shared) })
    }
}

impl Probe for Worker {
    fn name(&self) -> &'static str {
        match self.job {
            Job::Ask(kind) => kind.as_str(),
            Job::Look => "look at connections",
            Job::Names => "names of apiservers",
            Job::Slice => "endpoints of the kubernetes service",
        }
    }

    fn run(self: Arc<Self>, host: Arc<Host>) -> Work {
        let shared = Arc::clone(&self.shared);
        match self.job {
            Job::Ask(kind) => Box::pin(shared.ask(kind, host)),
            Job::Look => Box::pin(shared.look(host)),
            Job::Names => Box::pin(Arc::clone(&shared.endpoints).resolve()),
            Job::Slice => Box::pin(shared.slice(host)),
        }
    }

    fn panicked(&self, error: Error) {
        self.shared.instruments.panicked(error);
    }
}

impl Shared {
    async fn ask(self: Arc<Self>, kind: Kind, host: Arc<Host>) {
        let Some(client) = self.apiserver.client(&host) else { return };
        self.instruments.begin(kind);
        let interval = self.settings.interval;
        sleep(pace::first(interval)).await;
        loop {
            let began = Instant::now();
            let result = match kind {
                Kind::Reused => self.reused(&client).await,
                Kind::Fresh => client.fresh(&client.settings().path).await,
                Kind::ToKubelet => self.to_kubelet(&client, &host).await,
            };
            let next = pace::next(began, interval, result.as_ref().ok());
            match result {
                Ok(exchange) => {
                    self.instruments.hindered(kind, None);
                    self.instruments.note(kind, &exchange);
                }
                // Of our own files: nobody was asked.
                Err(error) => self.instruments.hindered(kind, Some(error)),
            }
            if let Ok(address) = client.address().await {
                self.endpoints.probe_goes_to(&address);
            }
            sleep_until(next).await;
        }
    }

    /// The death of a connection is on record before the next check makes a new one.
    async fn reused(&self, client: &Client) -> Result<Exchange> {
        let check = client.check(&client.settings().path).await?;
        let (outcome, failed_in) = check.outcome();
        if let Some(made) = &check.made {
            self.instruments.made(made.why, &made.timings);
        }
        let mut exchange = Exchange { outcome, failed_in, ..check.request };
        if let Some(ping) = check.ping {
            exchange.timings.extend(ping.rtt.map(|rtt| (crate::apiserver::Phase::Ping, rtt)));
            // The connection's own trouble is the better story.
            if outcome != Outcome::Ok {
                exchange.error = ping.error.or(exchange.error);
            }
        }
        Ok(exchange)
    }

    async fn to_kubelet(&self, client: &Client, host: &Arc<Host>) -> Result<Exchange> {
        let name = self.node.name(host).await?;
        client.get(&format!("/api/v1/nodes/{name}/proxy/healthz"), LARGEST_HEALTHZ).await
    }

    /// What Prometheus would miss, coming once a minute: a stall that begins and heals in between. What it finds is kept where a
    /// scrape shows it; its errors are those that the next scrape meets as well.
    async fn look(self: Arc<Self>, host: Arc<Host>) {
        loop {
            sleep(self.passive.period()).await;
            let (passive, host) = (Arc::clone(&self.passive), Arc::clone(&host));
            let look = tokio::task::spawn_blocking(move || passive.look(&host, Deadline::after(LOOK)).map(drop));
            match look.await {
                // No kubelet, nobody to look at: one may come, and to search for it has its price.
                Ok(Err(error)) if error.reason() == Reason::Absent => sleep(NOBODY_HERE).await,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                _ => {}
            }
        }
    }

    async fn slice(self: Arc<Self>, host: Arc<Host>) {
        let Some(client) = self.apiserver.client(&host) else { return };
        sleep(pace::first(self.settings.interval)).await;
        loop {
            let pause = match client.get(SLICE, LARGEST_SLICE).await {
                Ok(exchange) if exchange.outcome == Outcome::Ok => {
                    match endpoints::of_slice(&exchange.body) {
                        Ok(addresses) => self.endpoints.behind_service(addresses),
                        Err(error) => tracing::warn!(%error, "endpoints of the kubernetes service"),
                    }
                    SLICE_EVERY
                }
                // A convenience: without the right the addresses that we were told have to do.
                Ok(exchange) if exchange.outcome == Outcome::Unauthorized => {
                    tracing::info!(
                        "the endpoints of the kubernetes service stay unknown: no right to get endpointslices in default"
                    );
                    SLICE_DENIED
                }
                Ok(exchange) => exchange.retry_after.unwrap_or(SLICE_EVERY).clamp(SLICE_EVERY, SLICE_DENIED),
                // The probes say so, for everybody to see.
                Err(_) => SLICE_EVERY,
            };
            sleep(pace::about(pause)).await;
        }
    }
}
