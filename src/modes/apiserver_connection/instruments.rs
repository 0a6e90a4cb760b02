//! What our own probes have met since the exporter started: counters and histograms that a scrape shows as they are.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::apiserver::{Exchange, Outcome, Phase, ReconnectReason};
use crate::error::Error;
use crate::metric::{Histogram, Metric, Samples, Unit};

/// From a loopback round trip to the longest that anybody waits.
const BUCKETS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Panics kept for the next scrape.
const MOST_PANICS: usize = 4;

pub(super) static DURATION: Metric = Metric::histogram(
    "headroom_apiserver_probe_duration_seconds",
    Unit::Seconds,
    &["connection", "phase"],
    "Time that each phase of this exporter's own successful apiserver probes took, by connection (reused, fresh) and \
     phase.\n\n\
     connection reused: one long-lived HTTP/2 connection, with dns, connect and tls only when it had to be made. \
     fresh: a new HTTP/1.1 connection each time. phase: dns, connect, tls, request (to the last byte of the answer), \
     ping (round trip of an HTTP/2 PING), total.",
);
pub(super) static PROBES: Metric = Metric::counter(
    "headroom_apiserver_probe_total",
    &["connection", "result"],
    "Probes by how they ended: ok, timeout, refused, reset, unreachable, dns, tls (certificate, alert), unauthorized (401, 403), throttled (429), \
     server_error (5xx), unexpected (any other answer).",
);
pub(super) static FAILURES: Metric = Metric::counter(
    "headroom_apiserver_probe_failures_total",
    &["connection", "phase", "result"],
    "Failed probes of the apiserver, by connection, by the phase that failed, and by result.\n\n\
     Reused, ping, timeout while fresh is ok: the connection is dead, the apiserver is not. Reused, request, timeout: \
     the connection lives, the apiserver does not answer.",
);
pub(super) static SUCCESS: Metric = Metric::gauge(
    "headroom_apiserver_probe_success",
    Unit::None,
    &["connection"],
    "1 if the last probe that ended was ok, 0 if not.",
);
pub(super) static LAST_SUCCESS: Metric = Metric::gauge(
    "headroom_apiserver_probe_last_success_timestamp_seconds",
    Unit::Seconds,
    &["connection"],
    "When a probe last ended well, in seconds since 1970. Missing before the first.",
);
pub(super) static RECONNECTS: Metric = Metric::counter(
    "headroom_apiserver_probe_reconnects_total",
    &["reason"],
    "Times that the probe's reused connection was made, by reason. Reasons other than start, goaway and renewed are \
     outages of that connection.\n\n\
     start: the first time. goaway: the apiserver asked for it, as it does when it restarts and with --goaway-chance. \
     closed: the apiserver ended it. reset: broken. dead: a PING was not acknowledged. refused: the apiserver refused \
     a stream without reading it. renewed: the address or the client certificate changed.",
);
pub(super) static RETRY_AFTER: Metric = Metric::gauge(
    "headroom_apiserver_retry_after_seconds",
    Unit::Seconds,
    &["connection"],
    "The Retry-After of the last 429 that a probe met, which it obeys up to five minutes. Missing before the first; a 429 without it leaves it as it \
     was.",
);
pub(super) static TO_KUBELET_DURATION: Metric = Metric::histogram(
    "headroom_apiserver_to_kubelet_duration_seconds",
    Unit::Seconds,
    &[],
    "How long GET /healthz of this node's kubelet through the apiserver's node proxy took, when it was answered with 200. Only with \
     --apiserver.probe-kubelet.",
);
pub(super) static TO_KUBELET: Metric = Metric::counter(
    "headroom_apiserver_to_kubelet_total",
    &["result"],
    "Requests to this node's kubelet through the apiserver's node proxy, by result as in \
     headroom_apiserver_probe_total.\n\n\
     server_error: the apiserver cannot reach the kubelet. It takes 30 to 120 s to say so, so a shorter \
     --apiserver.probe-timeout shows timeout. The apiserver keeps its connections: new ones can fail while an old one \
     still works.",
);

/// What is probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// The long-lived HTTP/2 connection.
    Reused,
    /// A new HTTP/1.1 connection.
    Fresh,
    /// The kubelet, through the apiserver.
    ToKubelet,
}

impl Kind {
    /// The label value, and the name in the log.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Kind::Reused => "reused",
            Kind::Fresh => "fresh",
            Kind::ToKubelet => "to_kubelet",
        }
    }
}

impl Kind {
    /// What has to be granted for it.
    pub(super) fn permission(self) -> &'static str {
        match self {
            Kind::Reused | Kind::Fresh => {
                "credentials that the apiserver accepts, and a ClusterRole with verb get on the path that is probed (--apiserver.probe-path)"
            }
            Kind::ToKubelet => "a ClusterRole with verb get on nodes/proxy, or no --apiserver.probe-kubelet",
        }
    }
}

/// What one kind of probe has met.
#[derive(Debug, Default)]
struct Met {
    results: BTreeMap<Outcome, u64>,
    failures: BTreeMap<(Phase, Outcome), u64>,
    durations: BTreeMap<Phase, Histogram>,
    success: bool,
    last_success: Option<SystemTime>,
    retry_after: Option<Duration>,
    /// The last thing that was logged about it.
    logged: Option<Outcome>,
}

impl Met {
    fn time(&mut self, timings: &[(Phase, Duration)]) {
        for (phase, duration) in timings {
            let histogram = self.durations.entry(*phase).or_insert_with(|| Histogram::new(BUCKETS));
            histogram.observe(duration.as_secs_f64());
        }
    }
}

#[derive(Debug, Default)]
struct State {
    met: BTreeMap<Kind, Met>,
    made: BTreeMap<ReconnectReason, u64>,
    /// ReconnectReason nothing can be asked at the moment: a file of ours that cannot be read.
    hindered: BTreeMap<Kind, Error>,
    /// ReconnectReason the endpoints behind the service stay unknown.
    slice: Option<Error>,
    /// Bugs that were not shown yet.
    panics: Vec<Error>,
}

/// The instruments of all probes.
#[derive(Debug, Default)]
pub(super) struct Instruments(Mutex<State>);

impl Instruments {
    /// There is somebody to probe: from now on its counters are on the page, at 0.
    pub(super) fn begin(&self, kind: Kind) {
        self.lock().met.entry(kind).or_default();
    }

    /// True once there is somebody to probe.
    pub(super) fn in_use(&self) -> bool {
        !self.lock().met.is_empty()
    }

    /// The reused connection had to be made. It was if there is a total, which is no probe's; an attempt that failed
    /// does not count the same loss once more.
    pub(super) fn made(&self, why: ReconnectReason, timings: &[(Phase, Duration)]) {
        let mut state = self.lock();
        let stands = timings.iter().any(|(phase, _)| *phase == Phase::Total);
        *state.made.entry(why).or_default() += u64::from(stands);
        let timings: Vec<_> = timings.iter().copied().filter(|(phase, _)| *phase != Phase::Total).collect();
        state.met.entry(Kind::Reused).or_default().time(&timings);
    }

    /// A probe ended.
    pub(super) fn note(&self, kind: Kind, exchange: &Exchange) {
        let mut state = self.lock();
        let met = state.met.entry(kind).or_default();
        let outcome = exchange.outcome;
        *met.results.entry(outcome).or_default() += 1;
        met.time(&exchange.timings);
        met.success = outcome == Outcome::Ok;
        if met.success {
            met.last_success = Some(SystemTime::now());
        } else {
            *met.failures.entry((exchange.failed_in.unwrap_or(Phase::Total), outcome)).or_default() += 1;
        }
        met.retry_after = exchange.retry_after.filter(|_| outcome == Outcome::Throttled).or(met.retry_after);
        // Once per change, not once per probe.
        if met.logged.replace(outcome) != Some(outcome) {
            let (probe, result) = (kind.as_str(), outcome.as_str());
            match &exchange.error {
                Some(error) => tracing::warn!(probe, result, %error, "probes of the apiserver fail"),
                None => tracing::info!(probe, result, "probes of the apiserver are answered"),
            }
        }
    }

    /// This cannot be asked, and why; `None` once it can.
    pub(super) fn hindered(&self, kind: Kind, error: Option<Error>) {
        let mut state = self.lock();
        match error {
            Some(error) => state.hindered.insert(kind, error),
            None => state.hindered.remove(&kind),
        };
    }

    /// The endpoints behind the service may not be known, and why; `None` once they may.
    pub(super) fn slice_refused(&self, error: Option<Error>) {
        self.lock().slice = error;
    }

    /// A probe met a bug of ours: the next scrape says so.
    pub(super) fn panicked(&self, error: Error) {
        let panics = &mut self.lock().panics;
        panics.truncate(MOST_PANICS - 1);
        panics.push(error);
    }

    /// Puts everything on the page.
    pub(super) fn show(&self, samples: &mut Samples) {
        let mut state = self.lock();
        state.panics.drain(..).for_each(|error| samples.fail(error));
        for (kind, met) in &state.met {
            let results = Outcome::ALL.map(|outcome| (outcome, met.results.get(&outcome).copied().unwrap_or(0) as f64));
            if *kind == Kind::ToKubelet {
                for (outcome, count) in results {
                    samples.push(&TO_KUBELET, &[outcome.as_str()], count);
                }
                if let Some(histogram) = met.durations.get(&Phase::Total) {
                    samples.distribution(&TO_KUBELET_DURATION, &[], histogram.clone());
                }
                continue;
            }
            let connection = kind.as_str();
            for (phase, histogram) in &met.durations {
                samples.distribution(&DURATION, &[connection, phase.as_str()], histogram.clone());
            }
            for (outcome, count) in results {
                samples.push(&PROBES, &[connection, outcome.as_str()], count);
            }
            for ((phase, outcome), count) in &met.failures {
                samples.push(&FAILURES, &[connection, phase.as_str(), outcome.as_str()], *count as f64);
            }
            let ended = met.logged.is_some();
            samples.push_some(&SUCCESS, &[connection], ended.then_some(f64::from(u8::from(met.success))));
            let epoch =
                |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).ok().map(|since| since.as_secs_f64());
            samples.push_some(&LAST_SUCCESS, &[connection], met.last_success.and_then(epoch));
            samples.push_some(&RETRY_AFTER, &[connection], met.retry_after.map(|time| time.as_secs_f64()));
        }
        if state.met.contains_key(&Kind::Reused) {
            for why in ReconnectReason::ALL {
                samples.push(&RECONNECTS, &[why.as_str()], state.made.get(&why).copied().unwrap_or(0) as f64);
            }
        }
        // The same file is missing to all of them: once is enough.
        let mut hindered: Vec<&Error> = state.hindered.values().chain(&state.slice).collect();
        hindered.dedup();
        hindered.into_iter().for_each(|error| samples.fail(error.clone()));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Reason;

    fn exchange(outcome: Outcome, failed_in: Option<Phase>, timings: &[(Phase, u64)]) -> Exchange {
        let timings = timings.iter().map(|(phase, micros)| (*phase, Duration::from_micros(*micros))).collect();
        Exchange { outcome, failed_in, timings, status: None, retry_after: None, body: Default::default(), error: None }
    }

    fn shown(instruments: &Instruments) -> Samples {
        let mut samples = Samples::new();
        instruments.show(&mut samples);
        samples.refuse_undeclared(super::super::MODE.metrics);
        samples.refuse_duplicates();
        samples
    }

    #[test]
    fn before_anybody_is_asked_there_is_nothing_and_then_zeros() {
        let instruments = Instruments::default();
        assert!(!instruments.in_use() && shown(&instruments).rows().is_empty());
        instruments.begin(Kind::Fresh);
        let samples = shown(&instruments);
        assert!(instruments.in_use());
        for outcome in Outcome::ALL {
            assert_eq!(samples.value(&PROBES, &["fresh", outcome.as_str()]), Some(0.0));
        }
        assert_eq!(samples.value(&SUCCESS, &["fresh"]), None, "no probe has ended");
        assert_eq!(samples.value(&RECONNECTS, &["start"]), None, "there is no reused connection");
    }

    #[test]
    fn a_loss_is_counted_once_however_many_attempts_it_takes() {
        let instruments = Instruments::default();
        instruments.begin(Kind::Reused);
        let phase = |phase| (phase, Duration::from_millis(1));
        instruments.made(ReconnectReason::Dead, &[]);
        instruments.made(ReconnectReason::Dead, &[phase(Phase::Connect)]);
        assert_eq!(shown(&instruments).value(&RECONNECTS, &["dead"]), Some(0.0));
        instruments.made(ReconnectReason::Dead, &[phase(Phase::Connect), phase(Phase::Tls), phase(Phase::Total)]);
        assert_eq!(shown(&instruments).value(&RECONNECTS, &["dead"]), Some(1.0));
    }

    #[test]
    fn dead_but_in_use_is_told_from_slow() {
        let instruments = Instruments::default();
        instruments.made(
            ReconnectReason::Start,
            &[(Phase::Tls, Duration::from_millis(3)), (Phase::Total, Duration::from_millis(5))],
        );
        instruments.note(
            Kind::Reused,
            &exchange(Outcome::Ok, None, &[(Phase::Request, 700), (Phase::Total, 700), (Phase::Ping, 90)]),
        );
        instruments.note(Kind::Reused, &exchange(Outcome::Timeout, Some(Phase::Ping), &[]));
        instruments.note(Kind::Fresh, &exchange(Outcome::Ok, None, &[(Phase::Connect, 200), (Phase::Total, 5_000)]));
        let samples = shown(&instruments);
        assert_eq!(samples.value(&FAILURES, &["reused", "ping", "timeout"]), Some(1.0));
        assert_eq!(samples.value(&PROBES, &["reused", "timeout"]), Some(1.0));
        assert_eq!((samples.value(&SUCCESS, &["reused"]), samples.value(&SUCCESS, &["fresh"])), (Some(0.0), Some(1.0)));
        assert!(samples.value(&LAST_SUCCESS, &["reused"]).is_some(), "an earlier one was well");
        assert_eq!(samples.value(&RECONNECTS, &["start"]), Some(1.0));
        let histogram = |connection: &str, phase: &str| {
            let mut rows = samples.distributions().iter();
            rows.find(|row| &*row.labels[0] == connection && &*row.labels[1] == phase).map(|row| &row.histogram)
        };
        assert_eq!(histogram("reused", "ping").unwrap().buckets().next(), Some((0.0001, 1)), "90 µs are resolved");
        assert_eq!(histogram("reused", "tls").unwrap().count(), 1);
        assert_eq!(histogram("reused", "total").unwrap().count(), 1, "the total of making a connection is no probe's");
        assert!(histogram("fresh", "dns").is_none(), "an address has no such phase");
    }

    #[test]
    fn retry_after_is_the_servers_last_word() {
        let instruments = Instruments::default();
        let throttled =
            |retry_after| Exchange { retry_after, ..exchange(Outcome::Throttled, Some(Phase::Request), &[]) };
        instruments.note(Kind::Fresh, &throttled(None));
        assert_eq!(shown(&instruments).value(&RETRY_AFTER, &["fresh"]), None);
        instruments.note(Kind::Fresh, &throttled(Some(Duration::from_secs(7))));
        instruments.note(Kind::Fresh, &exchange(Outcome::Ok, None, &[]));
        assert_eq!(shown(&instruments).value(&RETRY_AFTER, &["fresh"]), Some(7.0));
    }

    #[test]
    fn our_own_trouble_is_told_once_and_heals() {
        let instruments = Instruments::default();
        let missing = || Some(Error::malformed("token: not there"));
        instruments.hindered(Kind::Fresh, missing());
        instruments.hindered(Kind::Reused, missing());
        assert_eq!(shown(&instruments).errors().len(), 1);
        instruments.hindered(Kind::Fresh, None);
        instruments.hindered(Kind::Reused, None);
        assert!(shown(&instruments).errors().is_empty());
        (0..10).for_each(|_| instruments.panicked(Error::new(Reason::Panic, "bug")));
        assert_eq!(shown(&instruments).errors().len(), MOST_PANICS, "shown by the next scrape");
        assert!(shown(&instruments).errors().is_empty(), "and only by that");
    }

    #[test]
    fn endpoints_that_we_may_not_know_are_told_until_we_may() {
        let instruments = Instruments::default();
        instruments.slice_refused(Some(Error::new(Reason::Denied, "HTTP status 403")));
        for _ in 0..2 {
            assert_eq!(shown(&instruments).errors().iter().map(Error::reason).collect::<Vec<_>>(), [Reason::Denied]);
        }
        instruments.slice_refused(None);
        assert!(shown(&instruments).errors().is_empty());
    }

    #[test]
    fn the_kubelet_through_the_apiserver_has_families_of_its_own() {
        let instruments = Instruments::default();
        instruments.note(Kind::ToKubelet, &exchange(Outcome::ServerError, Some(Phase::Request), &[]));
        instruments.note(Kind::ToKubelet, &exchange(Outcome::Ok, None, &[(Phase::Total, 20_000)]));
        let samples = shown(&instruments);
        assert_eq!(samples.value(&TO_KUBELET, &["server_error"]), Some(1.0));
        assert_eq!(samples.distributions().len(), 1);
        assert!(samples.rows().iter().all(|row| std::ptr::eq(row.metric, &TO_KUBELET)));
    }
}
