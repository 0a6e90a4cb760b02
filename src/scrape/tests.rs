use super::*;
use crate::host::Roots;
use crate::modes::Alerts;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc;

static X: Metric = Metric::gauge("headroom_x", Unit::None, &[], "x");
static UNDECLARED: Metric = Metric::gauge("headroom_undeclared", Unit::None, &[], "x");
static FAST: Mode = mode("fast");
static ODD: Mode = mode("odd");

const fn mode(id: &'static str) -> Mode {
    const METRICS: &[&Metric] = &[&X];
    let alerts = Alerts { rules: "", runbook: "" };
    Mode {
        id,
        title: "",
        happened: "",
        metrics: METRICS,
        alerts,
        utilization: None,
        keeps: None,
        needs_runtime: false,
        build: |_, _| unreachable!(),
    }
}

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
        let scrape = scraper.scrape(Deadline::after(Duration::from_secs(60)), |_| true).await;
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

/// Modes share a thread: what one waits for another is no time of its own.
#[tokio::test]
async fn how_long_a_mode_took_is_its_own_time() {
    let took = Arc::new(Mutex::new(Duration::ZERO));
    let tell = Arc::clone(&took);
    let host = Arc::new(Host::new(Roots::default()));
    let slow = Call(|context: Context<'_>| {
        std::thread::sleep(Duration::from_millis(100));
        one(context)
    });
    let behind = Call(move |context: Context<'_>| {
        let begun = Instant::now();
        let samples = one(context);
        *tell.lock().unwrap() = begun.elapsed();
        samples
    });
    let scraper = Scraper::new(host, Services::default(), vec![(&FAST, Box::new(slow)), (&ODD, Box::new(behind))]);
    let mut seen = Vec::new();
    // The machine may stop anybody for a moment; it does not do so each time.
    while seen.len() < 20 {
        let scrape = scraper.scrape(Deadline::after(Duration::from_secs(60)), |_| true).await;
        seen.push((scrape.runs[1].1.duration, *took.lock().unwrap()));
        if seen.last().is_some_and(|(told, took)| *told < *took + Duration::from_millis(10)) {
            return;
        }
    }
    panic!("{seen:?}");
}

#[tokio::test]
async fn outcomes_tell_absent_from_failed_and_keep_partial_numbers() {
    let absent = scraper(|_| Err(Error::absent("no such kernel")));
    let scrape = absent.scrape(soon(), |_| true).await;
    assert_eq!(about(&scrape, &OUTCOME, &["odd", "not_applicable"]), 1.0);
    assert_eq!(scrape.about.value(&ERRORS, &["odd", "absent"]), None, "not applicable is no error");

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

/// Waits a moment, and would let a run have all the time there is.
fn in_a_hurry(run: Duration) -> Terms {
    let after = |time| Deadline::after(time);
    Terms { wait: after(Duration::from_millis(1)), run: after(run), overdue: after(Duration::from_secs(60)) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_in_a_hurry_costs_nobody_but_itself() {
    let scraper = Arc::new(scraper(|context| {
        std::thread::sleep(Duration::from_millis(200));
        one(context)
    }));
    for _ in 0..3 {
        let hasty: Vec<_> = (0..20)
            .map(|_| {
                let scraper = Arc::clone(&scraper);
                tokio::spawn(async move { scraper.scrape(in_a_hurry(Duration::from_secs(60)), |_| true).await })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(20)).await;
        let honest = scraper.scrape(Deadline::after(Duration::from_secs(60)), |_| true).await;
        assert_eq!(about(&honest, &OUTCOME, &["odd", "ok"]), 1.0);
        assert_eq!(honest.about.value(&ERRORS, &["odd", "timeout"]), None, "nothing failed");
        assert!(!honest.hasty);
        for hasty in hasty {
            let hasty = hasty.await.unwrap();
            assert_eq!(about(&hasty, &OUTCOME, &["odd", "failed"]), 1.0, "its own page says what is not on it");
            assert!(hasty.hasty);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_anothers_deadline_cut_short_is_made_again() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let scraper = Arc::new(scraper(move |context| {
        counted.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(100));
        let mut samples = one(context)?;
        if context.deadline.remaining() < Duration::from_secs(10) {
            samples.fail(Error::new(Reason::Timeout, "half of it"));
        }
        Ok(samples)
    }));
    let hasty = {
        let scraper = Arc::clone(&scraper);
        tokio::spawn(async move {
            loop {
                scraper.scrape(in_a_hurry(Duration::from_secs(5)), |_| true).await;
            }
        })
    };
    while calls.load(Ordering::Relaxed) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for _ in 0..5 {
        let honest = scraper.scrape(Deadline::after(Duration::from_secs(60)), |_| true).await;
        assert_eq!(about(&honest, &OUTCOME, &["odd", "ok"]), 1.0);
    }
    hasty.abort();
}

#[tokio::test]
async fn a_run_that_all_left_is_overdue_all_the_same_and_counted_once() {
    let (release, hang) = mpsc::channel::<()>();
    let hang = Mutex::new(hang);
    let scraper = scraper(move |context| {
        let _ = hang.lock().unwrap().recv();
        one(context)
    });
    let terms = || {
        let after = |milliseconds| Deadline::after(Duration::from_millis(milliseconds));
        Terms { wait: after(1), run: after(100), overdue: after(5_000) }
    };
    let first = scraper.scrape(terms(), |mode| mode.id == "odd").await;
    assert_eq!(first.about.value(&ERRORS, &["odd", "timeout"]), None, "it had its time before it yet");
    tokio::time::sleep(Duration::from_millis(110)).await;
    let (a, b) = tokio::join!(
        scraper.scrape(terms(), |mode| mode.id == "odd"),
        scraper.scrape(terms(), |mode| mode.id == "odd")
    );
    assert!(!a.hasty && !b.hasty);
    // As long after that as another minute would be.
    if let Some(flight) = &mut *scraper.slots[1].lock() {
        flight.overdue = Deadline::after(Duration::ZERO);
    }
    let later = scraper.scrape(Deadline::after(Duration::from_secs(60)), |mode| mode.id == "odd").await;
    assert_eq!(about(&later, &ERRORS, &["odd", "timeout"]), 1.0);
    assert_eq!(about(&later, &ERRORS, &["odd", "busy"]), 1.0);
    drop(release);
}
