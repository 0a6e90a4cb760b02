//! Runs the modes for one scrape: under one deadline, each at most once at a time, and none held up by another.
//!
//! This is the only place that knows concurrency, deadlines and panics, and the only one that decides an outcome.
//! Whatever a collector does (hang in the kernel, panic, return half of its numbers) the page comes, on time, with
//! everything else on it.
//!
//! ```text
//! scrape ──► slot per mode ──► no run under way   start one on the scrape's thread, wait for it until the deadline
//!                              a run under way    wait for that one: two Prometheis at once cost one read
//!                              an overdue run     answer `busy` at once: however many scrapes come, a hung
//!                                                 collector holds one thread
//! ```
//!
//! **Whose deadline.** A scrape waits as long as it wants, and that is nobody else's business: a reader in a hurry goes
//! without what was not there in time, and the run goes on for the others. A run has the deadline of whoever started
//! it, or of the most patient who waits; whoever joined one with less time than his own, and got what time had cut
//! short, has it made again. An error counts if the run had the time it was given, not if a reader left before.

mod runners;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use crate::error::{Error, Reason, Result};
use crate::host::{Deadline, Host};
use crate::metric::{Metric, Samples, Unit};
use crate::modes::{Collector, Context, Mode};
use crate::services::Services;
use runners::Runners;

static OUTCOME: Metric = Metric::gauge(
    "headroom_collector_outcome",
    Unit::None,
    &["collector", "outcome"],
    "1 for the outcome of the collector in this scrape, 0 for the others: ok, not_applicable (this machine has no \
     such thing), failed.\n\n\
     failed: at least one source could not be read; its series are missing, the others are true.",
);
static DURATION: Metric = Metric::gauge(
    "headroom_collector_duration_seconds",
    Unit::Seconds,
    &["collector"],
    "How long this collector took in this scrape",
);
static ERRORS: Metric = Metric::counter(
    "headroom_collector_errors_total",
    &["collector", "reason"],
    "What the collector could not read since the exporter started, by reason (absent, denied, malformed, vanished, timeout, busy, panic, io); the log says what and where.\n\n\
     A reason has no series before it first happens.",
);
static DROPPED: Metric = Metric::gauge(
    "headroom_series_dropped",
    Unit::None,
    &["collector", "cap", "namespace", "pod", "pod_uid"],
    "What a cap (series, directories, readlinks) left out of this scrape: the node's cap, or the share of one pod.\n\n\
     node: the collector's settings raise it. pod: nobody else loses anything by it; the 16 pods that lost most have \
     a row each, others are together without a name.",
);

/// The metrics that every collector has.
pub static METRICS: &[&Metric] = &[&OUTCOME, &DURATION, &ERRORS, &DROPPED];

/// How a collector fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything was read.
    Ok,
    /// This machine has no such thing.
    NotApplicable,
    /// Something could not be read.
    Failed,
}

impl Outcome {
    /// Every outcome, in the order of the page.
    pub const ALL: [Outcome; 3] = [Outcome::Ok, Outcome::NotApplicable, Outcome::Failed];

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::NotApplicable => "not_applicable",
            Outcome::Failed => "failed",
        }
    }
}

/// One finished run of one collector.
#[derive(Debug)]
pub struct Run {
    /// How it fared.
    pub outcome: Outcome,
    /// What it found.
    pub samples: Arc<Samples>,
    /// How long it took.
    pub duration: Duration,
}

impl Run {
    /// True if more time might have got more.
    fn is_cut_short(&self) -> bool {
        self.samples.errors().iter().any(|error| error.reason() == Reason::Timeout)
    }

    fn of(mode: &Mode, result: Result<Samples>, duration: Duration) -> Self {
        match result {
            Ok(mut samples) => {
                samples.refuse_undeclared(mode.metrics);
                samples.refuse_duplicates();
                let outcome = if samples.errors().is_empty() { Outcome::Ok } else { Outcome::Failed };
                Run { outcome, samples: Arc::new(samples), duration }
            }
            Err(error) => {
                let outcome = if error.reason() == Reason::Absent { Outcome::NotApplicable } else { Outcome::Failed };
                let mut samples = Samples::new();
                samples.fail(error);
                Run { outcome, samples: Arc::new(samples), duration }
            }
        }
    }
}

/// How long a scrape waits, and how long what it starts may take.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Until when this scrape waits.
    pub wait: Deadline,
    /// The deadline of a run that it starts; not before `wait`.
    pub run: Deadline,
    /// From when on such a run is overdue: nobody waits for it any more. Not before `run`.
    pub overdue: Deadline,
}

impl From<Deadline> for Terms {
    fn from(deadline: Deadline) -> Self {
        Terms { wait: deadline, run: deadline, overdue: deadline }
    }
}

/// A deadline that ends this much before another is the same one: of two scrapes at once.
const AS_GOOD: Duration = Duration::from_millis(250);

/// What a scrape starts runs with.
#[derive(Clone)]
struct Start {
    host: Arc<Host>,
    runners: Arc<Runners>,
    terms: Terms,
    /// When the scrape began.
    began: Instant,
}

/// A run under way.
#[derive(Clone)]
struct Flight {
    started: Instant,
    deadline: Deadline,
    overdue: Deadline,
    result: watch::Receiver<Option<Arc<Run>>>,
    /// It was told that it did not keep its deadline.
    late: bool,
}

impl Flight {
    /// Waits for its result, until this moment at the most.
    async fn landed(&mut self, until: Deadline) -> Option<Arc<Run>> {
        let until = until.instant().min(self.overdue.instant());
        let waited = tokio::time::timeout_at(until.into(), self.result.wait_for(Option::is_some)).await;
        waited.ok()?.ok()?.clone()
    }
}

/// One mode with its collector, its run under way and its error counters.
struct Slot {
    mode: &'static Mode,
    collector: Box<dyn Collector>,
    flight: Mutex<Option<Flight>>,
    /// The deadlines that those who wait now would give to a run of their own.
    waiting: Mutex<Vec<Instant>>,
    errors: [AtomicU64; Reason::ALL.len()],
    /// The last errors and notes that were logged: the same ones are not logged again with every scrape.
    logged: Mutex<(String, String)>,
}

impl Slot {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Flight>> {
        self.flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Vec<Instant>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the run under way or starts one; an error if that run is overdue.
    fn join(self: &Arc<Self>, by: &Start) -> Result<Flight> {
        let &Start { terms, began, .. } = by;
        let mut flight = self.lock();
        if let Some(flight) = &*flight {
            if flight.overdue.expired() {
                let hanging = flight.started.elapsed().as_secs();
                return Err(Error::new(Reason::Busy, format!("an earlier run has hung for {hanging} s")));
            }
            return Ok(flight.clone());
        }
        let (sender, result) = watch::channel(None);
        let started = Instant::now();
        let patient = self.waiting().iter().copied().max().unwrap_or(started);
        let deadline = terms.run.or_at(patient);
        let overdue = terms.overdue.or_at(deadline.instant());
        let new = Flight { started, deadline, overdue, result, late: false };
        *flight = Some(new.clone());
        let (slot, host) = (Arc::clone(self), Arc::clone(&by.host));
        by.runners.run(move || {
            // It may have waited for other modes until now.
            let begun = Instant::now();
            let context = Context { host: &host, deadline, began };
            let result = catch_unwind(AssertUnwindSafe(|| slot.collector.collect(context)))
                .unwrap_or_else(|panic| Err(Error::new(Reason::Panic, panic_text(&*panic))));
            let run = Run::of(slot.mode, result, begun.elapsed());
            *slot.lock() = None;
            if overdue.expired() {
                tracing::info!(
                    collector = slot.mode.id,
                    seconds = run.duration.as_secs_f64(),
                    "a hung collector came back, too late for its result"
                );
            } else {
                slot.note(&run);
                let _ = sender.send(Some(Arc::new(run)));
            }
        });
        Ok(new)
    }

    /// A run, and whether it is one that this scrape did not wait for long enough to say anything about it.
    async fn run(self: Arc<Self>, by: Start) -> (Arc<Run>, bool) {
        let patience = by.terms.run.instant();
        self.waiting().push(patience);
        let result = self.fly(&by).await;
        let mut waiting = self.waiting();
        if let Some(index) = waiting.iter().position(|other| *other == patience) {
            waiting.swap_remove(index);
        }
        drop(waiting);
        result
    }

    async fn fly(self: &Arc<Self>, by: &Start) -> (Arc<Run>, bool) {
        let terms = by.terms;
        let mut again = true;
        loop {
            let mut flight = match self.join(by) {
                Ok(joined) => joined,
                Err(busy) => return (self.failed(busy, Duration::ZERO), false),
            };
            let Some(run) = flight.landed(terms.wait).await else { return self.left(&flight) };
            let less = flight.deadline.instant() + AS_GOOD < terms.run.instant();
            if !(less && again && run.is_cut_short()) {
                return (run, false);
            }
            // From now on every run that somebody starts has our time: we wait.
            again = false;
        }
    }

    /// What a scrape gets that does not wait longer.
    fn left(&self, flight: &Flight) -> (Arc<Run>, bool) {
        let duration = flight.started.elapsed();
        if !flight.deadline.expired() {
            let error = Error::new(Reason::Timeout, "this scrape did not wait for the answer");
            return (Arc::new(Run::of(self.mode, Err(error), duration)), true);
        }
        let error = Error::new(Reason::Timeout, "no answer before the deadline");
        let mut under_way = self.lock();
        let this = under_way.as_mut().filter(|other| other.started == flight.started);
        // Once a run, however many wait for it.
        let told = this.is_some_and(|flight| std::mem::replace(&mut flight.late, true));
        drop(under_way);
        if told {
            (Arc::new(Run::of(self.mode, Err(error), duration)), false)
        } else {
            (self.failed(error, duration), false)
        }
    }

    fn failed(&self, error: Error, duration: Duration) -> Arc<Run> {
        let run = Run::of(self.mode, Err(error), duration);
        self.note(&run);
        Arc::new(run)
    }

    /// Counts and logs what went wrong, once per run however many scrapes share it.
    fn note(&self, run: &Run) {
        let mut text = String::new();
        for error in run.samples.errors() {
            if run.outcome == Outcome::Failed {
                self.errors[error.reason() as usize].fetch_add(1, Ordering::Relaxed);
            }
            if !text.is_empty() {
                text.push_str("; ");
            }
            text.push_str(&error.to_string());
        }
        let notes = run.samples.notes().join("; ");
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if *logged == (text.clone(), notes.clone()) {
            return;
        }
        match (run.outcome, run.samples.errors().first()) {
            (Outcome::Failed, Some(first)) => {
                tracing::warn!(collector = self.mode.id, reason = %first.reason(), error = text, "collector failed");
            }
            (Outcome::NotApplicable, _) => {
                tracing::info!(collector = self.mode.id, why = text, "collector not applicable");
            }
            _ if notes.is_empty() => tracing::info!(collector = self.mode.id, "collector ok"),
            _ => tracing::info!(collector = self.mode.id, note = notes, "collector ok"),
        }
        *logged = (text, notes);
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("the collector panicked: {}", text.unwrap_or_default())
}

/// The result of one scrape: a run per selected mode, and the samples about the collectors themselves.
#[derive(Debug)]
pub struct Scrape {
    /// In the order of the modes.
    pub runs: Vec<(&'static Mode, Arc<Run>)>,
    /// Outcome, duration, errors and dropped series of each.
    pub about: Samples,
    /// What is known of the node whatever mode is off.
    pub node: Samples,
    /// It left before a run had the time that it was given: that is no word on the machine.
    pub hasty: bool,
}

/// The enabled modes of one machine.
pub struct Scraper {
    host: Arc<Host>,
    services: Services,
    slots: Vec<Arc<Slot>>,
}

impl Scraper {
    /// A scraper of these modes, each with its collector, which share these services.
    pub fn new(host: Arc<Host>, services: Services, modes: Vec<(&'static Mode, Box<dyn Collector>)>) -> Self {
        let slot = |(mode, collector)| {
            Arc::new(Slot {
                mode,
                collector,
                flight: Mutex::new(None),
                waiting: Mutex::default(),
                errors: Default::default(),
                logged: Mutex::default(),
            })
        };
        Scraper { host, services, slots: modes.into_iter().map(slot).collect() }
    }

    /// The modes that it runs.
    pub fn modes(&self) -> impl Iterator<Item = &'static Mode> + '_ {
        self.slots.iter().map(|slot| slot.mode)
    }

    /// The machine that it reads.
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Runs the modes that `selected` picks, and waits for them as `terms` say.
    ///
    /// # Panics
    /// Outside a tokio runtime with a blocking pool.
    pub async fn scrape(&self, terms: impl Into<Terms>, selected: impl Fn(&Mode) -> bool) -> Scrape {
        let terms = terms.into();
        let picked: Vec<_> = self.slots.iter().filter(|slot| selected(slot.mode)).collect();
        let began = Instant::now();
        let (runners, _watch) = Runners::start();
        let start = Start { host: Arc::clone(&self.host), runners: Arc::clone(&runners), terms, began };
        let waiting: Vec<_> = picked.iter().map(|slot| tokio::spawn(Arc::clone(slot).run(start.clone()))).collect();
        let (services, host) = (self.services.clone(), Arc::clone(&self.host));
        let (sender, node) = oneshot::channel();
        // After the modes, which ask for the same.
        tokio::spawn(async move {
            runners.run(move || {
                let samples = catch_unwind(AssertUnwindSafe(|| services.samples(&host, terms.run, began)));
                let _ = sender.send(samples.unwrap_or_default());
            });
        });
        drop(start);
        let runs = Vec::with_capacity(picked.len());
        let mut scrape = Scrape { runs, about: Samples::new(), node: Samples::new(), hasty: false };
        for (slot, waiting) in picked.into_iter().zip(waiting) {
            let (run, hasty) = waiting.await.unwrap_or_else(|error| {
                let error = Error::new(Reason::Panic, format!("the scrape task: {error}"));
                (slot.failed(error, Duration::ZERO), false)
            });
            describe(slot, &run, &mut scrape.about);
            scrape.runs.push((slot.mode, run));
            scrape.hasty |= hasty;
        }
        if let Ok(Ok(node)) = tokio::time::timeout_at(terms.wait.instant().into(), node).await {
            scrape.node = node;
        }
        self.services.learned(&mut scrape.node);
        scrape
    }
}

fn describe(slot: &Slot, run: &Run, about: &mut Samples) {
    let id = slot.mode.id;
    for outcome in Outcome::ALL {
        about.push(&OUTCOME, &[id, outcome.as_str()], f64::from(u8::from(outcome == run.outcome)));
    }
    about.push(&DURATION, &[id], run.duration.as_secs_f64());
    // A row for each reason that never was would be eight for each collector, for nobody: an alert asks what grows.
    for reason in Reason::ALL {
        let count = slot.errors[reason as usize].load(Ordering::Relaxed);
        if count > 0 {
            about.push(&ERRORS, &[id, reason.as_str()], count as f64);
        }
    }
    let dropped = run.samples.dropped_by();
    about.push(&DROPPED, &[id, "node", "", "", ""], dropped.node as f64);
    for (pod, count) in &dropped.pods {
        about.push(&DROPPED, &[id, "pod", &pod.namespace, &pod.name, &pod.uid], *count as f64);
    }
    if dropped.other_pods > 0 {
        about.push(&DROPPED, &[id, "pod", "", "", ""], dropped.other_pods as f64);
    }
}

#[cfg(test)]
mod tests;
