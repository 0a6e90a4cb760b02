//! Every `alerts/*/test.yaml` by our evaluator: the same alerts, labels and texts as promtool demands.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use headroom::verdict::promql::eval::Evaluator;
use headroom::verdict::promql::expression;
use headroom::verdict::rules::{self, Group, Rule};
use headroom::verdict::{Labels, STALE, Store};
use serde::Deserialize;

use crate::common::series;

#[derive(Deserialize)]
struct File {
    rule_files: Vec<String>,
    evaluation_interval: String,
    tests: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    #[serde(default)]
    name: String,
    interval: String,
    input_series: Vec<Series>,
    #[serde(default)]
    alert_rule_test: Vec<AlertTest>,
    #[serde(default)]
    promql_expr_test: Vec<ExprTest>,
}

#[derive(Deserialize)]
struct Series {
    series: String,
    values: String,
}

#[derive(Deserialize)]
struct AlertTest {
    eval_time: String,
    alertname: String,
    #[serde(default)]
    exp_alerts: Vec<Alert>,
}

#[derive(Debug, Default, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
struct Alert {
    #[serde(default)]
    exp_labels: BTreeMap<String, String>,
    #[serde(default)]
    exp_annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct ExprTest {
    eval_time: String,
    expr: String,
    #[serde(default)]
    exp_samples: Vec<Sample>,
}

#[derive(Deserialize)]
struct Sample {
    labels: String,
    value: f64,
}

fn milliseconds(text: &str) -> i64 {
    promql_parser::util::parse_duration(text).unwrap().as_millis() as i64
}

/// What was recorded the last time and is not now ends, as in Prometheus.
fn record(groups: &[&'static Group], store: &mut Store, before: &mut BTreeSet<Labels>, at: i64) {
    let mut now = BTreeSet::new();
    for rule in groups.iter().flat_map(|group| &group.rules).filter(|rule| rule.record.is_some()) {
        for element in rule.record_at(&Evaluator::new(store, at)).unwrap() {
            now.insert(element.labels.clone());
            store.append(element.labels, at, element.value);
        }
    }
    for ended in before.difference(&now) {
        store.append(ended.clone(), at, STALE);
    }
    *before = now;
}

/// Alerts of a rule that fire at `at`: active at each evaluation for as long as the rule demands.
fn firing(rule: &Rule, store: &Store, at: i64, step: i64) -> Vec<Alert> {
    let evaluator = Evaluator::new(store, at);
    let mut active = rule.active_at(&evaluator).unwrap();
    let held = (rule.holds_for.as_millis() as i64 + step - 1) / step;
    for back in 1..=held {
        if active.is_empty() || at < back * step {
            return Vec::new();
        }
        let earlier = rule.active_at(&Evaluator::new(store, at - back * step)).unwrap();
        let earlier: BTreeSet<&Labels> = earlier.iter().map(|active| &active.labels).collect();
        active.retain(|active| earlier.contains(&active.labels));
    }
    let alert = |active: &rules::Active| Alert {
        exp_labels: active.labels.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        exp_annotations: rule.annotate(&evaluator, active),
    };
    active.iter().map(alert).collect()
}

#[test]
fn every_case_of_promtool() {
    let alerts = Path::new(env!("CARGO_MANIFEST_DIR")).join("alerts");
    let (mut cases, mut checks, mut fired) = (0, 0, 0);
    for folder in rules::FOLDERS.iter().map(|folder| folder.name) {
        let text = std::fs::read_to_string(alerts.join(folder).join("test.yaml")).unwrap();
        let file: File = serde_saphyr::from_str(&text).unwrap();
        let names: Vec<&str> = file.rule_files.iter().map(|path| path.rsplit('/').nth(1).unwrap_or(folder)).collect();
        let groups: Vec<&Group> = rules::groups().iter().filter(|group| names.contains(&group.folder)).collect();
        let step = milliseconds(&file.evaluation_interval);
        for case in &file.tests {
            cases += 1;
            let (some_checks, some_fired) = run(case, &groups, step, folder);
            checks += some_checks;
            fired += some_fired;
        }
    }
    eprintln!("{cases} cases, {checks} checks, {fired} alerts that fire");
    assert!(cases > 100 && fired > 50, "{cases} cases, {fired} alerts that fire");
}

fn run(case: &Case, groups: &[&'static Group], step: i64, folder: &str) -> (usize, usize) {
    let interval = milliseconds(&case.interval);
    let mut store = Store::default();
    for one in &case.input_series {
        series::fill(&mut store, &one.series, &one.values, interval);
    }
    let rules: Vec<&Rule> = groups.iter().flat_map(|group| &group.rules).collect();
    let tested = case.alert_rule_test.iter().map(|test| milliseconds(&test.eval_time));
    if rules.iter().any(|rule| rule.alert.is_some() && uses_recorded(rule, groups)) {
        let last = tested.max().unwrap_or(0);
        let mut before = BTreeSet::new();
        (0..=last / step).for_each(|place| record(groups, &mut store, &mut before, place * step));
    }
    let (mut checks, mut fired) = (0, 0);
    for test in &case.alert_rule_test {
        let at = milliseconds(&test.eval_time) / step * step;
        let own = rules.iter().filter(|rule| rule.alert.as_deref() == Some(&*test.alertname));
        let mut ours: Vec<Alert> = own.flat_map(|rule| firing(rule, &store, at, step)).collect();
        ours.sort();
        let mut theirs: Vec<&Alert> = test.exp_alerts.iter().collect();
        theirs.sort();
        let place = format!("{folder}: {}: {} at {}", case.name, test.alertname, test.eval_time);
        assert_eq!(ours.iter().collect::<Vec<_>>(), theirs, "{place}");
        (checks, fired) = (checks + 1, fired + ours.len());
    }
    for test in &case.promql_expr_test {
        let at = milliseconds(&test.eval_time);
        let step = at / step * step;
        checks += 1;
        if test.expr == "ALERTS" {
            assert!(test.exp_samples.is_empty(), "{folder}: only that there are none can be checked");
            for rule in rules.iter().filter(|rule| rule.alert.is_some()) {
                let active = rule.active_at(&Evaluator::new(&store, step)).unwrap();
                assert!(
                    active.is_empty(),
                    "{folder}: {}: {:?} at {}: {active:?}",
                    case.name,
                    rule.alert,
                    test.eval_time
                );
            }
            continue;
        }
        let mut store = store.clone();
        record(groups, &mut store, &mut BTreeSet::new(), step);
        let vector = Evaluator::new(&store, at).vector(&expression::parse(&test.expr).unwrap()).unwrap();
        let mut ours: Vec<(Labels, f64)> = vector.into_iter().map(|element| (element.labels, element.value)).collect();
        let mut theirs: Vec<_> = test.exp_samples.iter().map(|one| (series::labels(&one.labels), one.value)).collect();
        ours.sort_by(|a, b| a.0.cmp(&b.0));
        theirs.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(ours, theirs, "{folder}: {}: {} at {}", case.name, test.expr, test.eval_time);
    }
    (checks, fired)
}

fn uses_recorded(rule: &Rule, groups: &[&Group]) -> bool {
    let text = format!("{} {:?}", rule.expr, rule.annotations);
    groups.iter().flat_map(|group| group.records()).any(|record| text.contains(record))
}

#[test]
fn the_rules_that_are_built_in_are_all_there_are() {
    let alerts = Path::new(env!("CARGO_MANIFEST_DIR")).join("alerts");
    let folders = std::fs::read_dir(&alerts).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let folders: BTreeSet<String> =
        folders.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    let built_in: BTreeSet<String> = rules::FOLDERS.iter().map(|folder| folder.name.to_owned()).collect();
    assert_eq!(built_in, folders);
    for folder in rules::FOLDERS.iter() {
        rules::parse(folder.name, folder.alerts.rules).unwrap();
    }
}

#[test]
fn what_the_evaluator_does_not_know_is_refused_when_it_is_parsed() {
    for expr in [
        "label_replace(x, \"a\", \"b\", \"c\", \"d\")",
        "max_over_time(x[5m:1m])",
        "x @ 3",
        "quantile(0.5, x)",
        "sqrt(x)",
    ] {
        let error = expression::parse(expr).unwrap_err();
        assert!(error.contains("not supported"), "{expr}: {error}");
    }
    let rule = "groups: [{name: x, rules: [{alert: X, expr: x > 0, annotations: {summary: '{{ $value | humanizeTimestamp }}'}}]}]";
    let error = rules::parse("x", rule).unwrap_err();
    assert!(error.contains("X: humanizeTimestamp: unknown"), "{error}");
}

#[test]
fn the_notation() {
    assert_eq!(
        series::values("1+2x2 _x2 4x1 -1-1e1x1"),
        [1.0, 3.0, 5.0, -9.0, -9.0, 4.0, 4.0, -1.0, -11.0].map(|v| (v != -9.0).then_some(v))
    );
    assert!(series::values("stale")[0].unwrap().is_nan());
}
