//! What a finding stands on: the series that its rule names, as they are on the newest page.

use std::collections::{BTreeMap, BTreeSet};

use super::promql::eval::Evaluator;
use super::promql::expression;
use super::{Finding, History, rules};

/// Lines of one finding at the most; those of one metric that fit it alike are all the same to a reader.
const MOST: usize = 6;
const MOST_OF_ONE: usize = 3;

/// The series behind this finding, as a page has them: `name{label="value"}` and the value.
///
/// Only those that the rule itself selects and that fit the finding's labels: another signal's, pod's or process's are
/// no evidence of this one.
pub fn evidence(finding: &Finding, history: &History) -> Vec<(String, f64)> {
    let Some((_, newest)) = history.span() else { return Vec::new() };
    let at = Evaluator::new(&history.store, newest);
    // Facts about the node decide the severity, and are no evidence.
    let about_us =
        |name: &str| name == "up" || name.starts_with("headroom_collector_") && finding.mode != super::EXPORTER;
    let fits = |labels: &super::Labels| {
        labels.iter().all(|(label, value)| finding.labels.get(label).is_none_or(|own| own.is_empty() || own == value))
    };
    // By metric, so that a rule with several selectors of one shows it once.
    let mut found: BTreeMap<String, BTreeMap<String, f64>> = BTreeMap::new();
    for selector in selected(finding.alert) {
        let Ok(vector) = expression::parse(&selector).and_then(|expr| at.vector(&expr)) else { continue };
        for element in vector.into_iter().filter(|element| fits(&element.labels)) {
            let name = element.labels.get(super::NAME);
            if name == "headroom_control_plane" || about_us(name) {
                continue;
            }
            let labels = element.labels.iter().filter(|(label, _)| !matches!(*label, super::NAME | "instance" | "job"));
            let labels: Vec<String> = labels.map(|(label, value)| format!("{label}={value:?}")).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            found.entry(name.to_owned()).or_default().insert(format!("{name}{labels}"), element.value);
        }
    }
    let mut lines = Vec::new();
    for series in found.into_values() {
        let mut series: Vec<_> = series.into_iter().collect();
        series.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        lines.extend(series.into_iter().take(MOST_OF_ONE));
    }
    lines.truncate(MOST);
    lines
}

/// What the rules of this alert select; of a recorded series what it is made of.
fn selected(alert: &str) -> BTreeSet<String> {
    let rules = || rules::groups().iter().flat_map(|group| &group.rules);
    let mut selectors = BTreeSet::new();
    for rule in rules().filter(|rule| rule.alert.as_deref() == Some(alert)) {
        expression::selectors(&rule.expr, &mut selectors);
    }
    let (recorded, mut selectors): (BTreeSet<_>, BTreeSet<_>) =
        selectors.into_iter().partition(|selector| selector.split('{').next().is_some_and(|name| name.contains(':')));
    for name in recorded.iter().filter_map(|selector| selector.split('{').next()) {
        for rule in rules().filter(|rule| rule.record.as_deref() == Some(name)) {
            expression::selectors(&rule.expr, &mut selectors);
        }
    }
    selectors
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::super::{Level, Limits, judge};
    use super::*;

    #[test]
    fn another_signals_series_are_no_evidence() {
        let mut history = History::new("node-a", Limits::default());
        let row = |name, labels: &[(&'static str, &'static str)], value| (name, labels.to_vec(), value);
        let hard = |signal| [("signal", signal), ("type", "hard")];
        let page = [
            row("headroom_eviction_threshold_bytes", &hard("imagefs.available"), 15e9),
            row("headroom_eviction_threshold_bytes", &hard("nodefs.available"), 10e9),
            row("headroom_eviction_capacity_bytes", &[("signal", "imagefs.available")], 100e9),
            row("headroom_eviction_available_bytes", &[("signal", "imagefs.available")], 16e9),
            row("headroom_eviction_available_bytes", &[("signal", "nodefs.available")], 16e9),
            row("headroom_eviction_headroom_ratio", &hard("imagefs.available"), 0.01),
            row("headroom_eviction_headroom_ratio", &hard("nodefs.available"), 0.06),
            row("headroom_image_gc_threshold_ratio", &[("bound", "high")], 0.85),
            row("headroom_image_gc_threshold_ratio", &[("bound", "low")], 0.8),
        ];
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        history.add_rows(now, page);
        let verdict = judge(&history, now, [("eviction", &[][..])]).remove(0);
        assert!(verdict.level > Level::Ok);
        let of = |alert: &str| {
            let finding = verdict.findings.iter().find(|finding| finding.alert == alert).unwrap();
            evidence(finding, &history).into_iter().map(|(series, _)| series).collect::<Vec<_>>()
        };
        let collection = of("HeadroomImageGcNeverBeforeEviction");
        assert!(collection.iter().any(|series| series.contains("bound=\"high\"")), "{collection:?}");
        assert!(
            collection.iter().all(|series| !series.contains("nodefs") && !series.contains("low")),
            "{collection:?}"
        );
        let near = of("HeadroomEvictionNear");
        assert_eq!(near.len(), 2, "{near:?}");
        assert!(near.iter().all(|series| series.contains("imagefs.available")), "{near:?}");
    }

    /// Above its threshold, which was crossed: only the exporter's memory of that tells it from a node that is well.
    #[test]
    fn a_kubelet_that_goes_on_evicting_is_told_from_one_that_does_not() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let judged = |met: &[f64]| {
            let mut history = History::new("node-a", Limits::default());
            let labels = [("signal", "nodefs.available"), ("type", "hard")];
            let ratio = [("headroom_eviction_headroom_ratio", labels, 0.03)];
            let met = met.iter().map(|value| ("headroom_eviction_threshold_met", labels, *value));
            history.add_rows(now, ratio.into_iter().chain(met));
            let verdict = judge(&history, now, [("eviction", &[][..])]).remove(0);
            let finding = verdict.findings.into_iter().find(|finding| finding.alert == "HeadroomEvictionNow")?;
            let series = evidence(&finding, &history).into_iter().map(|(series, _)| series).collect::<Vec<_>>();
            Some((finding.summary, series))
        };
        let (summary, series) = judged(&[1.0]).unwrap();
        assert_eq!(summary, "node-a: still evicting pods: nodefs.available lacks its minimum reclaim");
        assert!(series.iter().any(|series| series.starts_with("headroom_eviction_threshold_met")), "{series:?}");
        assert_eq!((judged(&[0.0]), judged(&[])), (None, None));
    }
}
