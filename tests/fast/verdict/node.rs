//! Recorded nodes: a healthy one, one on which everything fails, and what the history makes of time.

use std::time::{Duration, Instant, SystemTime};

use headroom::modes::MODES;
use headroom::verdict::promql::eval::Evaluator;
use headroom::verdict::{Basis, EXPORTER, History, Labels, Level, Limits, NAME, Verdict, figure, judge};

use crate::common::recorded::{Page, Recorded, add, fixture, page, start};

/// Two pages, five seconds apart; counters of the second one are doubled.
fn two(page: &Page) -> (History, SystemTime) {
    let mut history = History::new("node-a", Limits::default());
    add(&mut history, start(), page);
    let grown = |(labels, value): (&Labels, &f64)| {
        (labels.clone(), if labels.get(NAME).ends_with("_total") { value * 2.0 } else { *value })
    };
    let now = start() + Duration::from_secs(5);
    add(&mut history, now, &page.iter().map(grown).collect());
    (history, now)
}

fn verdicts(history: &History, now: SystemTime) -> Vec<Verdict> {
    judge(history, now, MODES.iter().map(|mode| (mode.id, [].as_slice())))
}

#[test]
fn a_healthy_node_has_no_finding() {
    for page in [Recorded::Healthy.page(), page(&[fixture("node/k8s-1.36-cgroupv1/page.prom")])] {
        let (history, now) = two(&page);
        for verdict in verdicts(&history, now) {
            assert!(verdict.findings.is_empty(), "{verdict:#?}");
        }
    }
}

#[test]
fn a_node_on_which_all_fails_has_findings_of_each_kind() {
    let (history, now) = two(&Recorded::Failing.page());
    let verdicts = verdicts(&history, now);
    let modes: Vec<&str> = verdicts.iter().map(|verdict| verdict.mode).collect();
    assert_eq!(modes, MODES.iter().map(|mode| mode.id).chain([EXPORTER]).collect::<Vec<_>>());
    let found: Vec<(&str, Level)> =
        verdicts.iter().flat_map(|verdict| &verdict.findings).map(|finding| (finding.alert, finding.level)).collect();
    for expected in [
        ("HeadroomMemcgIdsHigh", Level::Watch),
        ("HeadroomOrphanedCgroups", Level::Watch),
        ("HeadroomEvictionNow", Level::ActNow),
        ("HeadroomPodWithoutNetworkInterface", Level::ActNow),
        ("HeadroomNodeNotReady", Level::ActNow),
    ] {
        assert!(found.contains(&expected), "{expected:?} is not among {found:#?}");
    }
    let text =
        verdicts.iter().flat_map(|verdict| &verdict.findings).map(|one| format!("{}{}", one.summary, one.description));
    text.for_each(|text| {
        assert!(text.contains("node-a") && !text.contains("<error") && !text.contains("<no value>"), "{text}")
    });
    let ids = figure("cgroup_leak", &history).unwrap();
    assert_eq!(ids.text, "58,210 of 65,535 (88.82%) memory cgroup ids");
    assert_eq!((ids.rate, ids.time_to_cliff), (None, None));
}

/// A node whose kubelet says MemoryPressure while our figure is above its threshold.
fn pressure() -> Page {
    let condition = |condition, status, value| {
        let labels = [(NAME, "headroom_node_condition"), ("condition", condition), ("status", status)];
        (Labels::from_pairs(labels), value)
    };
    let memory = ("signal", "memory.available");
    Page::from([
        condition("MemoryPressure", "true", 1.0),
        condition("Ready", "unknown", 0.0),
        (Labels::from_pairs([(NAME, "headroom_eviction_headroom_ratio"), memory, ("type", "hard")]), 0.3),
        (Labels::from_pairs([(NAME, "headroom_eviction_threshold_met"), memory, ("type", "hard")]), 0.0),
        (Labels::from_pairs([(NAME, "headroom_eviction_available_bytes"), memory]), 4e9),
        (Labels::from_pairs([(NAME, "headroom_eviction_pressure_transition_period_seconds")]), 300.0),
        (Labels::from_pairs([(NAME, "headroom_kubelet_running")]), 1.0),
    ])
}

#[test]
fn pressure_is_told_at_once_and_its_contradiction_after_a_while() {
    let found = |history: &History, now| -> Vec<(&'static str, Level)> {
        let of_all = verdicts(history, now).into_iter().flat_map(|verdict| verdict.findings);
        of_all.map(|finding| (finding.alert, finding.level)).collect()
    };
    // What the doctor has: some seconds. The kubelet may just keep a condition whose cause is gone.
    let (history, now) = two(&pressure());
    assert_eq!(found(&history, now), [("HeadroomNodePressure", Level::Watch)]);
    let mut history = History::new("node-a", Limits::default());
    let at = |minute: u64| start() + Duration::from_secs(minute * 60);
    (0..=20).for_each(|minute| add(&mut history, at(minute), &pressure()));
    let both = [("HeadroomNodePressureContradicted", Level::ActNow), ("HeadroomNodePressure", Level::Watch)];
    assert_eq!(found(&history, at(20)), both);
    // Below the threshold: nothing contradicts, and HeadroomEvictionNow says it.
    let mut below = pressure();
    let ratio = below.iter_mut().find(|(labels, _)| labels.get(NAME) == "headroom_eviction_headroom_ratio").unwrap();
    *ratio.1 = -0.01;
    add(&mut history, at(21), &below);
    assert_eq!(found(&history, at(21)), [("HeadroomEvictionNow", Level::ActNow)]);
}

fn ids(used: f64) -> Page {
    let rows = [("headroom_memcg_ids_used", used), ("headroom_memcg_ids_limit", 65535.0)];
    rows.map(|(name, value)| (Labels::from_pairs([(NAME, name)]), value)).into()
}

#[test]
fn a_slope_of_five_seconds_does_not_shout_and_one_of_hours_does() {
    let mut history = History::new("node-a", Limits::default());
    add(&mut history, start(), &ids(20_000.0));
    let soon = start() + Duration::from_secs(5);
    add(&mut history, soon, &ids(20_050.0));
    let found = verdicts(&history, soon).remove(0).findings;
    assert_eq!(
        (found[0].alert, &*found[0].severity, found[0].level),
        ("HeadroomMemcgIdsRunOut", "critical", Level::Watch)
    );
    let window = Duration::from_secs(900);
    assert_eq!(found[0].basis, Basis::Partial { covered: Duration::from_secs(5), window });
    assert_eq!(found[0].holds_for, Some(Duration::from_secs(120)));
    let soon = figure("cgroup_leak", &history).unwrap();
    assert_eq!((soon.rate, soon.time_to_cliff), (None, None), "five seconds are no trend: {soon:?}");

    let mut now = start();
    let mut history = History::new("node-a", Limits::default());
    for minute in 0..=360 {
        now = start() + Duration::from_secs(minute * 60);
        add(&mut history, now, &ids(20_000.0 + 100.0 * minute as f64));
    }
    assert!(history.pages() <= 24, "{}", history.pages());
    let verdict = verdicts(&history, now).remove(0);
    assert_eq!((verdict.level, verdict.findings[0].basis), (Level::ActNow, Basis::Full));
    let figure = figure("cgroup_leak", &history).unwrap();
    assert!((figure.rate.unwrap() - 100.0 / 60.0).abs() < 1e-6, "{figure:?}");
    assert_eq!(figure.time_to_cliff.unwrap().as_secs(), (9535.0_f64 * 0.6) as u64);
}

/// Whether a figure has a rate, and a time to the cliff, after so many pages so far apart.
#[test]
fn a_trend_needs_ten_minutes_and_four_pages_and_reaches_no_further_than_a_day_of_an_hour() {
    let after = |pages: u64, apart: u64, each: f64| {
        let mut history = History::new("node-a", Limits::default());
        for page in 0..pages {
            let now = start() + Duration::from_secs(page * apart);
            add(&mut history, now, &ids(20_000.0 + each * page as f64));
        }
        let figure = figure("cgroup_leak", &history).unwrap();
        (figure.rate.is_some(), figure.time_to_cliff.is_some())
    };
    // Five seconds of the doctor, whatever happens in them.
    assert_eq!(after(6, 1, 500.0), (false, false));
    assert_eq!(after(10, 60, 500.0), (false, false), "nine minutes");
    assert_eq!(after(11, 60, 500.0), (true, true), "ten minutes");
    assert_eq!(after(3, 300, 500.0), (false, false), "three pages of ten minutes");
    // At this rate it takes 45,000 minutes; an hour was seen.
    assert_eq!(after(61, 60, 1.0), (true, false));

    // It was away and is back: what it was before says nothing of what it is now.
    let mut history = History::new("node-a", Limits::default());
    for page in 0..=20_u64 {
        let now = start() + Duration::from_secs(page * 60);
        add(&mut history, now, &if page == 15 { Page::default() } else { ids(20_000.0 + 500.0 * page as f64) });
    }
    assert_eq!(figure("cgroup_leak", &history).unwrap().rate, None);
}

#[test]
fn what_cannot_be_told_is_not_ok() {
    let outcome = |outcome: &str| {
        let labels = [(NAME, "headroom_collector_outcome"), ("collector", "kmem"), ("outcome", outcome)];
        let mut history = History::new("node-a", Limits::default());
        add(&mut history, start(), &Page::from([(Labels::from_pairs(labels), 1.0)]));
        verdicts(&history, start()).into_iter().find(|verdict| verdict.mode == "kmem").unwrap()
    };
    assert_eq!(outcome("ok").level, Level::Ok);
    assert_eq!(outcome("not_applicable").level, Level::Ok);
    assert!(outcome("not_applicable").why.contains("nothing of the kind"));
    // Without an account at the apiserver: a kubelet's node, one whose kubelet has no apiserver, one without a kubelet.
    let status = |kubelet: bool, connections: &str| {
        let outcome = |mode: &'static str, outcome: &str| {
            let labels = [(NAME, "headroom_collector_outcome"), ("collector", mode), ("outcome", outcome)];
            (Labels::from_pairs(labels), 1.0)
        };
        let mut page =
            Page::from([outcome("node_status", "not_applicable"), outcome("apiserver_connection", connections)]);
        if kubelet {
            page.insert(Labels::from_pairs([(NAME, "headroom_kubelet_running")]), 1.0);
        }
        let mut history = History::new("node-a", Limits::default());
        add(&mut history, start(), &page);
        verdicts(&history, start()).into_iter().find(|verdict| verdict.mode == "node_status").unwrap()
    };
    let blind = status(true, "ok");
    assert_eq!(blind.level, Level::CannotTell);
    assert!(blind.why.contains("--kubeconfig") && !blind.why.contains("nothing of the kind"), "{}", blind.why);
    assert_eq!(status(true, "not_applicable").level, Level::Ok);
    assert_eq!(status(false, "ok").level, Level::Ok);
    assert_eq!(outcome("failed").level, Level::CannotTell);
    assert!(outcome("failed").why.contains("could not be read"));
    let empty = History::new("node-a", Limits::default());
    for verdict in verdicts(&empty, start()) {
        assert_eq!((verdict.level, verdict.findings.len()), (Level::CannotTell, 0), "{verdict:#?}");
    }
    let (healthy, now) = two(&Recorded::Healthy.page());
    let cgroup_leak = verdicts(&healthy, now).remove(0);
    assert_eq!((cgroup_leak.level, &*cgroup_leak.why), (Level::Ok, ""));
}

#[test]
fn what_left_the_page_is_gone() {
    let mut history = History::new("node-a", Limits::default());
    add(&mut history, start(), &ids(65_000.0));
    let later = start() + Duration::from_secs(5);
    add(&mut history, later, &Page::new());
    assert!(verdicts(&history, later)[0].findings.is_empty());
    assert!(figure("cgroup_leak", &history).is_none());
}

/// Loose bounds, for a loaded machine and a build without optimisation; the figures are printed.
#[test]
fn a_verdict_costs_little() {
    let mut big = Recorded::Failing.page();
    for pid in 0..750 {
        for (name, value) in [("headroom_process_open_fds", 100.0), ("headroom_process_fd_limit", 1024.0)] {
            let pid = format!("9{pid:05}");
            big.insert(Labels::from_pairs([(NAME, name), ("pid", &*pid), ("comm", "worker")]), value);
        }
    }
    let mut history = History::new("node-a", Limits::default());
    let mut now = start();
    let begun = Instant::now();
    for step in 0..30 {
        now = start() + Duration::from_secs(step * 600);
        add(&mut history, now, &big);
    }
    let adding = begun.elapsed() / 30;
    let begun = Instant::now();
    let found = verdicts(&history, now).iter().map(|verdict| verdict.findings.len()).sum::<usize>();
    let judging = begun.elapsed();
    eprintln!("{} series: a page {adding:?}, a verdict with {found} findings {judging:?}", big.len());
    assert!(adding < Duration::from_secs(2) && judging < Duration::from_secs(5), "{adding:?}, {judging:?}");
    assert!(history.pages() <= 24);
}

#[test]
fn an_evaluator_without_series_finds_only_absence() {
    let store = headroom::verdict::Store::default();
    let evaluator = Evaluator::new(&store, 1_000_000);
    let rules = headroom::verdict::rules::groups().iter().flat_map(|group| &group.rules);
    let active: Vec<_> = rules
        .filter(|rule| rule.alert.is_some() && !rule.active_at(&evaluator).unwrap().is_empty())
        .map(|rule| rule.alert.as_deref().unwrap())
        .collect();
    assert_eq!(active, ["HeadroomExporterAbsent"]);
}
