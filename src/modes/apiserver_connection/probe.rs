//! What works on clocks of its own: the probes, the looks between scrapes, and the search for addresses.
//!
//! **What it costs the apiserver** is in docs/performance.md, for one node and for five thousand.
//! `--apiserver.probe-interval` turns it down. Clocks tick together from a random moment on, so that a fleet
//! does not come all at once.

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
use crate::kubelet::handle::Kubelet;
use crate::modes::schedule::Clock;
use crate::modes::{Probe, Work};

/// How often the endpoints behind the service address are asked for, and how long the apiserver may tell us to wait.
const SLICE_EVERY: Duration = Duration::from_secs(300);
const SLICE_AT_LAST: Duration = Duration::from_secs(3600);
const SLICE: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
/// 401: who we are is not known. 403 is about the right.
const UNAUTHORIZED: u16 = 401;
const LARGEST_SLICE: usize = 64 << 10;
const LARGEST_HEALTHZ: usize = 4 << 10;
/// How long a machine without an apiserver to look for is left alone.
const NOBODY_HERE: Duration = Duration::from_secs(60);
/// How long one look at the connections may take.
const LOOK: Duration = Duration::from_secs(5);

/// Without it connections past the service address are taken for somebody else's, where nobody names their addresses.
const SLICE_PERMISSION: &str =
    "a Role in default with verb get on endpointslices of discovery.k8s.io, or --apiserver.endpoints";

/// The right that we lack, if this was refused: then what is asked for cannot be known, however well the apiserver is.
fn refusal(permission: &str, exchange: &Exchange) -> Option<Error> {
    (exchange.outcome == Outcome::Unauthorized).then(|| {
        let words = exchange.error.as_ref().map(ToString::to_string).unwrap_or_default();
        Error::new(Reason::Denied, format!("{words}; it needs {permission}"))
    })
}

/// What all of them share with the collector.
pub(super) struct Shared {
    pub(super) apiserver: Apiserver,
    pub(super) kubelet: Kubelet,
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
        let mut clock = Clock::of(self.settings.interval);
        // Its handshake would be in the times of the others.
        if kind == Kind::Fresh {
            clock = clock.apart();
        }
        sleep_until(clock.tick(Instant::now())).await;
        loop {
            let result = match kind {
                Kind::Reused => self.reused(&client).await,
                Kind::Fresh => client.fresh(&client.settings().path).await,
                Kind::ToKubelet => self.to_kubelet(&client, &host).await,
            };
            let next = clock.next(result.as_ref().ok());
            match result {
                Ok(exchange) => {
                    self.instruments.hindered(kind, refusal(kind.permission(), &exchange));
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
        let name = self.kubelet.node_name(host).await?;
        client.get(&format!("/api/v1/nodes/{name}/proxy/healthz"), LARGEST_HEALTHZ).await
    }

    /// What Prometheus would miss, coming once a minute: a stall that begins and heals in between. What it finds is
    /// kept where a scrape shows it; its errors are those that the next scrape meets as well.
    async fn look(self: Arc<Self>, host: Arc<Host>) {
        loop {
            sleep_until(Clock::of(self.passive.period()).next(None)).await;
            let (passive, host) = (Arc::clone(&self.passive), Arc::clone(&host));
            let look = tokio::task::spawn_blocking(move || passive.watch(&host, Deadline::after(LOOK)));
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
        let clock = Clock::of(self.settings.interval);
        sleep_until(clock.tick(Instant::now())).await;
        loop {
            let pause = match client.get(SLICE, LARGEST_SLICE).await {
                // The token is not known: that shows at the probes, and a new one may come at any moment.
                Ok(exchange) if exchange.status == Some(UNAUTHORIZED) => self.settings.interval,
                Ok(exchange) => {
                    self.instruments
                        .slice_refused(refusal(SLICE_PERMISSION, &exchange).filter(|_| !self.endpoints.were_told()));
                    if exchange.outcome == Outcome::Ok {
                        match endpoints::of_slice(&exchange.body) {
                            Ok(addresses) => self.endpoints.behind_service(addresses),
                            Err(error) => {
                                tracing::warn!(%error, "the endpoints of the Service kubernetes cannot be read")
                            }
                        }
                    }
                    exchange.retry_after.unwrap_or(SLICE_EVERY).clamp(SLICE_EVERY, SLICE_AT_LAST)
                }
                // The probes say so, for everybody to see.
                Err(_) => SLICE_EVERY,
            };
            sleep_until(clock.tick(Instant::now() + pause)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_refused_is_a_right_that_we_lack() {
        let exchange = |outcome| Exchange {
            outcome,
            failed_in: None,
            timings: Vec::new(),
            status: None,
            retry_after: None,
            body: Default::default(),
            error: Some(Error::new(Reason::Denied, "HTTP status 403")),
        };
        for outcome in Outcome::ALL {
            let refused = refusal(Kind::ToKubelet.permission(), &exchange(outcome));
            assert_eq!(refused.is_some(), outcome == Outcome::Unauthorized, "{outcome:?}");
            if let Some(error) = refused {
                assert_eq!(error.reason(), Reason::Denied);
                let text = error.to_string();
                assert!(text.contains("403") && text.contains("nodes/proxy"), "{text}");
            }
        }
    }
}
