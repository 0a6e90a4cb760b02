//! One recorded situation, two judges: what Prometheus would page for, by promtool, and what `judge` finds, for every
//! mode.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use headroom::modes::MODES;
use headroom::verdict::promql::eval::Evaluator;
use headroom::verdict::rules::{FOLDERS, groups};
use headroom::verdict::{EXPORTER, Finding, History, Labels, Level, Limits, NAME, Store, judge};

use crate::common::prometheus::Release;
use crate::common::recorded::{Page, Recorded, add, start};

/// Ten minutes, so that every `for` is over, and few enough pages that none is thinned out.
const STEPS: u64 = 20;
const STEP: u64 = 30;

/// Counters grow as a node's would on which things go wrong all the time; what is a gauge stays.
fn growth(labels: &Labels, value: f64) -> f64 {
    if labels.get(NAME).ends_with("_total") { value.max(1.0) } else { 0.0 }
}

/// What a rule says of one series.
type Alert = (String, BTreeMap<String, String>);

#[test]
fn alerts_and_verdicts_agree_on_a_healthy_node() {
    agree(&Recorded::Healthy.page(), "healthy", false);
}

#[test]
fn alerts_and_verdicts_agree_on_a_node_on_which_all_fails() {
    let failing = agree(&Recorded::Failing.page(), "failing", true);
    for mode in MODES.iter().map(|mode| mode.id) {
        assert!(failing.contains(mode), "nothing fires for {mode}: it proves nothing; {failing:?}");
    }
}

/// The modes for which something fires, when promtool and the verdict agree on every alert.
fn agree(page: &Page, name: &str, counters: bool) -> BTreeSet<String> {
    let growth = |labels: &Labels, value: f64| if counters { growth(labels, value) } else { 0.0 };
    let mut history = History::new("node-a", Limits { pages: 1_000, ..Limits::default() });
    let mut now = start();
    for step in 0..=STEPS {
        now = start() + Duration::from_secs(step * STEP);
        let at = page.iter().map(|(labels, value)| (labels.clone(), value + growth(labels, *value) * step as f64));
        add(&mut history, now, &at.collect());
    }
    let verdicts = judge(&history, now, MODES.iter().map(|mode| (mode.id, [].as_slice())));
    let found: Vec<&Finding> = verdicts.iter().flat_map(|verdict| &verdict.findings).collect();
    // The worst of each mode is its verdict.
    for verdict in verdicts.iter().filter(|verdict| verdict.mode != EXPORTER) {
        let severities: Vec<&str> = verdict.findings.iter().map(|finding| &*finding.severity).collect();
        let hasty =
            verdict.findings.iter().any(|finding| finding.level == Level::Watch && finding.severity == "critical");
        let expected = match () {
            () if severities.contains(&"critical") && !hasty => Level::ActNow,
            () if severities.iter().any(|severity| *severity != "info") => Level::Watch,
            () => verdict.level,
        };
        assert_eq!(verdict.level, expected, "{verdict:#?}");
    }

    let all = alerts_of_the_rules(page, &growth);
    let worst = |alerts: &[Alert]| {
        let mut worst: BTreeMap<Alert, String> = BTreeMap::new();
        for (alert, labels) in alerts {
            let mut labels = labels.clone();
            let severity = labels.remove("severity").unwrap_or_default();
            let known = worst.entry((alert.clone(), labels)).or_default();
            // "critical" < "info" < "warning": whichever is critical stays.
            if known.is_empty() || severity == "critical" {
                *known = severity;
            }
        }
        worst
    };
    let judged: Vec<Alert> = found.iter().map(|finding| (finding.alert.to_owned(), finding.labels.clone())).collect();
    assert_eq!(worst(&judged), worst(&all), "the verdict and the rules on {name}");

    for release in Release::with(&["promtool"]) {
        promtool(release, page, &growth, &all, name);
    }
    all.iter().filter_map(|(_, labels)| labels.get("mode").cloned()).collect()
}

/// Every alert of every rule at the end, both severities of those that have two.
fn alerts_of_the_rules(page: &Page, growth: &dyn Fn(&Labels, f64) -> f64) -> Vec<Alert> {
    let mut store = Store::default();
    let base = 1_800_000_000_000_i64;
    for step in 0..=STEPS {
        let at = base + (step * STEP * 1000) as i64;
        for (labels, value) in page {
            store.append(on_node(labels), at, value + growth(labels, *value) * step as f64);
        }
        let up = Labels::from_pairs([(NAME, "up"), ("instance", "node-a"), ("job", "headroom-exporter")]);
        store.append(up, at, 1.0);
        for rule in groups().iter().flat_map(|group| &group.rules).filter(|rule| rule.record.is_some()) {
            let recorded = rule.record_at(&Evaluator::new(&store, at)).unwrap();
            recorded.into_iter().for_each(|element| store.append(element.labels, at, element.value));
        }
    }
    let at = Evaluator::new(&store, base + (STEPS * STEP * 1000) as i64);
    let rules = groups().iter().flat_map(|group| &group.rules).filter(|rule| rule.alert.is_some());
    rules
        .flat_map(|rule| {
            let name = rule.alert.clone().unwrap();
            let active = rule.active_at(&at).unwrap();
            active.into_iter().map(move |active| {
                (
                    name.clone(),
                    active.labels.iter().map(|(label, value)| (label.to_owned(), value.to_owned())).collect(),
                )
            })
        })
        .collect()
}

fn on_node(labels: &Labels) -> Labels {
    let mut labels = labels.clone();
    labels.set("instance", "node-a");
    labels.set("job", "headroom-exporter");
    labels
}

/// Real Prometheus's rules over the same series: exactly these alerts, and no other.
fn promtool(release: Release, page: &Page, growth: &dyn Fn(&Labels, f64) -> f64, alerts: &[Alert], name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut yaml = String::from("rule_files:\n");
    for mode in FOLDERS.iter().map(|folder| folder.name) {
        let rules = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("alerts").join(mode).join("rules.yaml");
        let _ = writeln!(yaml, "  - {}", rules.display());
    }
    let _ = writeln!(yaml, "evaluation_interval: {STEP}s\ntests:\n  - interval: {STEP}s\n    input_series:");
    let mut series = |labels: &Labels, value: f64, growth: f64| {
        let pairs: Vec<String> = labels
            .iter()
            .filter(|(label, _)| *label != NAME)
            .map(|(label, value)| format!("{label}={value:?}"))
            .collect();
        let text = serde_json::to_string(&format!("{}{{{}}}", labels.get(NAME), pairs.join(","))).unwrap();
        let _ = writeln!(yaml, "      - series: {text}\n        values: {value:?}+{growth:?}x{STEPS}");
    };
    for (labels, value) in page {
        series(&on_node(labels), *value, growth(labels, *value));
    }
    series(&Labels::from_pairs([(NAME, "up"), ("instance", "node-a"), ("job", "headroom-exporter")]), 1.0, 0.0);
    yaml.push_str("    alert_rule_test:\n");
    let names: BTreeSet<&str> =
        groups().iter().flat_map(|group| &group.rules).filter_map(|rule| rule.alert.as_deref()).collect();
    for alert in names {
        let _ = writeln!(yaml, "      - eval_time: {}s\n        alertname: {alert}\n        exp_alerts:", STEPS * STEP);
        for (_, labels) in alerts.iter().filter(|(name, _)| name == alert) {
            let labels = serde_json::to_string(labels).unwrap();
            let _ = writeln!(yaml, "          - exp_labels: {labels}");
        }
    }
    let file = folder.path().join("test.yaml");
    std::fs::write(&file, yaml).unwrap();
    let (_, said) = release.run("promtool", &["test", "rules"], &[file]);
    // The words of the annotations are compared by the rules' own cases; here none are given, so only the labels may
    // speak.
    let firing: BTreeSet<&str> = alerts.iter().map(|(alert, _)| &**alert).collect();
    assert_eq!(said.matches("alertname:").count(), firing.len(), "{name}, {release:?}: promtool did not judge: {said}");
    let wrong = differences(&said);
    assert!(wrong.is_empty(), "{name}, {release:?}: {}\n{said}", wrong.join("\n"));
}

/// Of each alert that promtool complains of: whether the labels differ, and not only the annotations, which are not
/// given.
fn differences(said: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for complaint in said.split("alertname:").skip(1) {
        let labels = |part: &str| {
            let mut all: Vec<String> = part
                .split("Labels:")
                .skip(1)
                .map(|text| text[..text.find('}').map_or(text.len(), |end| end + 1)].trim().to_owned())
                .collect();
            all.sort();
            all
        };
        let (expected, got) = complaint.split_once("got:").unwrap_or((complaint, ""));
        if labels(expected) != labels(got) {
            wrong.push(complaint.to_owned());
        }
    }
    wrong
}
