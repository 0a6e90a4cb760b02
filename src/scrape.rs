//! Runs the modes for one scrape: at once, under one deadline, each at most once at a time.
//!
//! This is the only place that knows concurrency, deadlines and panics, and the only one that decides an outcome.
//! Whatever a collector does (hang in the kernel, panic, return half of its numbers) the page comes, on time, with
//! everything else on it.
//!
//! ```text
//! scrape ──► slot per mode ──► no run under way   start one on a blocking thread, wait for it until the deadline
//!                              a run under way    wait for that one: two Prometheis at once cost one read
//!                              an overdue run     answer `busy` at once: however many scrapes come, a hung
//!                                                 collector holds one thread
//! ```

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::error::{Error, Reason, Result};
use crate::host::{Deadline, Host};
use crate::metric::{Metric, Samples, Unit};
use crate::modes::{Collector, Context, Mode};
use crate::services::Services;

static OUTCOME: Metric = Metric::gauge(
    "headroom_collector_outcome",
    Unit::None,
    &["collector", "outcome"],
    "1 on the present outcome of the collector, 0 on the others: ok; not_applicable (this machine has no such thing); failed (at least one source could not be read: its series are missing, the others are true)",
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
    "What the collector could not read since the exporter started, by reason (absent, denied, malformed, vanished, timeout, busy, panic, io); the log says what and where",
);
static DROPPED: Metric = Metric::gauge(
    "headroom_series_dropped",
    Unit::None,
    &["collector", "cap", "namespace", "pod", "pod_uid"],
    "What a cap (series, directories, readlinks) left out of this scrape, by whose cap it was: node (the collector's settings raise it), or pod (this pod's own share; nobody else loses anything by it; the 16 pods that lost most, others together without a name)",
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

/// A run under way.
struct Flight {
    started: Instant,
    result: watch::Receiver<Option<Arc<Run>>>,
    /// A scrape has waited for it in vain: later ones do not wait again.
    overdue: bool,
}

/// One mode with its collector, its run under way and its error counters.
struct Slot {
    mode: &'static Mode,
    collector: Box<dyn Collector>,
    flight: Mutex<Option<Flight>>,
    errors: [AtomicU64; Reason::ALL.len()],
    /// The last errors and notes that were logged: the same ones are not logged again with every scrape.
    logged: Mutex<(String, String)>,
}

impl Slot {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Flight>> {
        self.flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the run under way or starts one; an error if that run is overdue.
    fn join(
        self: &Arc<Self>,
        host: &Arc<Host>,
        deadline: Deadline,
        began: Instant,
    ) -> Result<(Instant, watch::Receiver<Option<Arc<Run>>>)> {
        let mut flight = self.lock();
        if let Some(flight) = &*flight {
            if flight.overdue {
                let hanging = flight.started.elapsed().as_secs();
                return Err(Error::new(Reason::Busy, format!("an earlier run hangs, since {hanging} s")));
            }
            return Ok((flight.started, flight.result.clone()));
        }
        let (sender, result) = watch::channel(None);
        let started = Instant::now();
        *flight = Some(Flight { started, result: result.clone(), overdue: false });
        let (slot, host) = (Arc::clone(self), Arc::clone(host));
        tokio::task::spawn_blocking(move || {
            let context = Context { host: &host, deadline, began };
            let result = catch_unwind(AssertUnwindSafe(|| slot.collector.collect(context)))
                .unwrap_or_else(|panic| Err(Error::new(Reason::Panic, panic_text(&*panic))));
            let run = Run::of(slot.mode, result, started.elapsed());
            let overdue = slot.lock().take().is_some_and(|flight| flight.overdue);
            if overdue {
                tracing::info!(collector = slot.mode.id, seconds = run.duration.as_secs_f64(), "a hung run came back");
            } else {
                slot.note(&run);
                let _ = sender.send(Some(Arc::new(run)));
            }
        });
        Ok((started, result))
    }

    async fn run(self: Arc<Self>, host: Arc<Host>, deadline: Deadline, began: Instant) -> Arc<Run> {
        let (started, mut result) = match self.join(&host, deadline, began) {
            Ok(joined) => joined,
            Err(busy) => return self.failed(busy, Duration::ZERO),
        };
        let waited = tokio::time::timeout_at(deadline.instant().into(), result.wait_for(Option::is_some)).await;
        if let Ok(Ok(run)) = waited
            && let Some(run) = &*run
        {
            return Arc::clone(run);
        }
        if let Some(flight) = self.lock().as_mut().filter(|flight| flight.started == started) {
            flight.overdue = true;
        }
        self.failed(Error::new(Reason::Timeout, "no answer before the deadline"), started.elapsed())
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

    /// Runs the modes that `selected` picks, all at once, and waits for them until `deadline`.
    ///
    /// # Panics
    /// Outside a tokio runtime with a blocking pool.
    pub async fn scrape(&self, deadline: Deadline, selected: impl Fn(&Mode) -> bool) -> Scrape {
        let picked: Vec<_> = self.slots.iter().filter(|slot| selected(slot.mode)).collect();
        let began = Instant::now();
        let start = |slot: &&Arc<Slot>| tokio::spawn(Arc::clone(slot).run(Arc::clone(&self.host), deadline, began));
        let waiting: Vec<_> = picked.iter().map(start).collect();
        let (services, host) = (self.services.clone(), Arc::clone(&self.host));
        let node = tokio::task::spawn_blocking(move || services.samples(&host, deadline, began));
        let mut scrape = Scrape { runs: Vec::with_capacity(picked.len()), about: Samples::new(), node: Samples::new() };
        for (slot, waiting) in picked.into_iter().zip(waiting) {
            let run = waiting.await.unwrap_or_else(|error| {
                slot.failed(Error::new(Reason::Panic, format!("the scrape task: {error}")), Duration::ZERO)
            });
            describe(slot, &run, &mut scrape.about);
            scrape.runs.push((slot.mode, run));
        }
        if let Ok(Ok(node)) = tokio::time::timeout_at(deadline.instant().into(), node).await {
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
    for reason in Reason::ALL {
        let count = slot.errors[reason as usize].load(Ordering::Relaxed);
        about.push(&ERRORS, &[id, reason.as_str()], count as f64);
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
mod tests {
    use super::*;
    use crate::host::Roots;
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc;

    static X: Metric = Metric::gauge("headroom_x", Unit::None, &[], "x");
    static UNDECLARED: Metric = Metric::gauge("headroom_undeclared", Unit::None, &[], "x");
    static FAST: Mode = Mode { id: "fast", title: "", metrics: &[&X], build: |_, _| unreachable!() };
    static ODD: Mode = Mode { id: "odd", title: "", metrics: &[&X], build: |_, _| unreachable!() };

    struct Call<F>(F);
    impl<F: Fn(Context<'_>) -> Result<Samples> + Send + Sync> Collector for Call<F> {
        fn collect(&self, context: Context<'_>) -> Result<Samples> {
            (self.0)(context)
        }
    }

    fn one(_: Context<'_>) -> Result<Samples> {
        let mut samples = Samples::new();
        samples.push(&X, &[], 1.0);
        Ok(samples)
    }

    fn scraper(odd: impl Fn(Context<'_>) -> Result<Samples> + Send + Sync + 'static) -> Scraper {
        let host = Arc::new(Host::new(Roots::default()));
        Scraper::new(host, Services::default(), vec![(&FAST, Box::new(Call(one))), (&ODD, Box::new(Call(odd)))])
    }

    fn soon() -> Deadline {
        Deadline::after(Duration::from_millis(100))
    }

    fn about(scrape: &Scrape, metric: &'static Metric, labels: &[&str]) -> f64 {
        scrape.about.value(metric, labels).unwrap()
    }

    #[tokio::test]
    async fn a_panic_costs_its_own_collector() {
        let scraper = scraper(|_| panic!("bug"));
        for round in 1..=3 {
            let scrape = scraper.scrape(soon(), |_| true).await;
            assert_eq!(about(&scrape, &OUTCOME, &["odd", "failed"]), 1.0);
            assert_eq!(about(&scrape, &ERRORS, &["odd", "panic"]), f64::from(round));
            assert_eq!(about(&scrape, &OUTCOME, &["fast", "ok"]), 1.0);
            assert_eq!(scrape.runs[0].1.samples.value(&X, &[]), Some(1.0));
        }
    }

    #[tokio::test]
    async fn a_hang_costs_one_thread_and_heals() {
        let (release, hang) = mpsc::channel::<()>();
        let (hang, calls) = (Mutex::new(hang), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&calls);
        let scraper = scraper(move |context| {
            counted.fetch_add(1, Ordering::Relaxed);
            let _ = hang.lock().unwrap().recv();
            one(context)
        });
        let first = scraper.scrape(soon(), |_| true).await;
        assert_eq!(about(&first, &ERRORS, &["odd", "timeout"]), 1.0);
        for _ in 0..20 {
            let later = scraper.scrape(Deadline::after(Duration::from_secs(60)), |_| true).await;
            assert_eq!(about(&later, &OUTCOME, &["odd", "failed"]), 1.0);
            assert_eq!(later.runs[0].1.outcome, Outcome::Ok);
        }
        assert_eq!(calls.load(Ordering::Relaxed), 1, "one thread, however many scrapes");
        drop(release);
        loop {
            let scrape = scraper.scrape(Deadline::after(Duration::from_secs(60)), |_| true).await;
            if scrape.runs[1].1.outcome == Outcome::Ok {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn two_scrapes_at_once_share_one_run_and_both_are_full() {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let scraper = scraper(move |context| {
            counted.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(50));
            one(context)
        });
        let deadline = Deadline::after(Duration::from_secs(60));
        let (a, b) = tokio::join!(scraper.scrape(deadline, |_| true), scraper.scrape(deadline, |_| true));
        for scrape in [a, b] {
            assert!(scrape.runs.iter().all(|(_, run)| run.samples.value(&X, &[]) == Some(1.0)));
        }
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn outcomes_tell_absent_from_failed_and_keep_partial_numbers() {
        let absent = scraper(|_| Err(Error::absent("no such kernel")));
        let scrape = absent.scrape(soon(), |_| true).await;
        assert_eq!(about(&scrape, &OUTCOME, &["odd", "not_applicable"]), 1.0);
        assert_eq!(about(&scrape, &ERRORS, &["odd", "absent"]), 0.0, "not applicable is no error");

        let partial = scraper(|context| {
            let mut samples = one(context)?;
            samples.fail(Error::new(Reason::Denied, "/proc/1/fd"));
            samples.drop_count(3);
            Ok(samples)
        });
        let scrape = partial.scrape(soon(), |_| true).await;
        assert_eq!(about(&scrape, &OUTCOME, &["odd", "failed"]), 1.0);
        assert_eq!(about(&scrape, &ERRORS, &["odd", "denied"]), 1.0);
        assert_eq!(about(&scrape, &DROPPED, &["odd", "node", "", "", ""]), 3.0);
        assert_eq!(scrape.runs[1].1.samples.value(&X, &[]), Some(1.0));
    }

    #[tokio::test]
    async fn undeclared_series_are_refused() {
        let scraper = scraper(|context| {
            let mut samples = one(context)?;
            samples.push(&UNDECLARED, &[], 1.0);
            Ok(samples)
        });
        let scrape = scraper.scrape(soon(), |_| true).await;
        assert_eq!(scrape.runs[1].1.samples.rows().len(), 1);
        assert_eq!(scrape.runs[1].1.outcome, Outcome::Failed);
    }

    #[tokio::test]
    async fn only_selected_modes_run() {
        let scraper = scraper(|_| panic!("not selected"));
        let scrape = scraper.scrape(soon(), |mode| mode.id == "fast").await;
        assert_eq!(scrape.runs.len(), 1);
        assert_eq!(scrape.about.value(&OUTCOME, &["odd", "ok"]), None);
    }
}
