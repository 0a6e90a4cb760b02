//! What a finding stands on: the series that its rule names, as they are on the newest page.

use std::collections::BTreeSet;

use super::promql::eval::Evaluator;
use super::promql::expression;
use super::{Finding, History, rules};

/// Lines of one finding at the most; those of one metric that fit it alike are all the same to a reader.
const MOST: usize = 6;
const MOST_OF_ONE: usize = 3;

/// The series behind this finding, as a page has them: `name{label="value"}` and the value.
pub fn evidence(finding: &Finding, history: &History) -> Vec<(String, f64)> {
    let Some((_, newest)) = history.span() else { return Vec::new() };
    let at = Evaluator::new(&history.store, newest);
    let mut names = BTreeSet::new();
    for rule in rules::groups().iter().flat_map(|group| &group.rules) {
        if rule.alert.as_deref() == Some(finding.alert) {
            expression::names(&rule.expr, &mut names);
        }
    }
    // Facts about the node decide the severity, and are no evidence.
    let about_us =
        |name: &str| name == "up" || name.starts_with("headroom_collector_") && finding.mode != super::EXPORTER;
    names.retain(|name| !name.contains(':') && name != "headroom_control_plane" && !about_us(name));
    let mut lines = Vec::new();
    for name in names {
        let Ok(vector) = expression::parse(&name).and_then(|expr| at.vector(&expr)) else { continue };
        let fits = |labels: &super::Labels| {
            labels
                .iter()
                .all(|(label, value)| finding.labels.get(label).is_none_or(|own| own.is_empty() || own == value))
        };
        let mut fitting: Vec<_> = vector.into_iter().filter(|element| fits(&element.labels)).collect();
        fitting.sort_by(|a, b| b.value.total_cmp(&a.value));
        lines.extend(fitting.into_iter().take(MOST_OF_ONE).map(|element| {
            let labels = element.labels.iter().filter(|(label, _)| !matches!(*label, super::NAME | "instance" | "job"));
            let labels: Vec<String> = labels.map(|(label, value)| format!("{label}={value:?}")).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            (format!("{name}{labels}"), element.value)
        }));
    }
    lines.truncate(MOST);
    lines
}
