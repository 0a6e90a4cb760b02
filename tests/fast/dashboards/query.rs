//! What a query names, and the unit of what it answers: not a parser of PromQL, but strict about the part that we
//! write.

use std::collections::BTreeSet;

use headroom::catalog;
use headroom::metric::{Kind, Metric, Unit};

/// Labels that Prometheus or the people who run it add.
const ADDED: [&str; 4] = ["cluster", "instance", "job", "le"];
/// Of the series that Prometheus makes of our rules.
const OF_ALERTS: [&str; 4] = ["alertname", "alertstate", "severity", "mode"];
enum Named {
    Ours(&'static Metric, bool),
    /// `up` and `ALERTS`.
    Prometheus,
}

impl Named {
    fn has(&self, label: &str) -> bool {
        ADDED.contains(&label)
            || match self {
                Named::Ours(metric, _) => metric.labels.contains(&label),
                Named::Prometheus => OF_ALERTS.contains(&label),
            }
    }
}

/// The metric of this name; true beside it for the `_bucket` and `_count` rows of a histogram, which are counts.
fn named(name: &str) -> Option<Named> {
    if matches!(name, "up" | "ALERTS") {
        return Some(Named::Prometheus);
    }
    let find = |name: &str| catalog::metrics().map(|(_, metric)| metric).find(|metric| metric.name == name);
    if let Some(metric) = find(name) {
        return (metric.kind != Kind::Histogram).then_some(Named::Ours(metric, false));
    }
    let (stem, suffix) = name.rsplit_once('_')?;
    let metric = find(stem).filter(|metric| metric.kind == Kind::Histogram)?;
    matches!(suffix, "bucket" | "count" | "sum").then_some(Named::Ours(metric, suffix != "sum"))
}

/// Words of a query outside of strings, with what follows each.
fn words(query: &str) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    let mut quoted = false;
    let mut start = None;
    for (at, c) in query.char_indices().chain([(query.len(), ' ')]) {
        quoted ^= c == '"';
        let inside = !quoted && (c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '$'));
        match (inside, start) {
            (true, None) => start = Some(at),
            (false, Some(from)) => {
                found.push((&query[from..at], &query[at..]));
                start = None;
            }
            _ => {}
        }
    }
    found
}

fn series(query: &str) -> Vec<(&str, Named, &str)> {
    let words = words(query);
    words.into_iter().filter_map(|(word, rest)| Some((word, named(word)?, rest))).collect()
}

/// The contents of the braces or parentheses that come next.
fn group(rest: &str, open: char, close: char) -> Option<&str> {
    rest.trim_start().strip_prefix(open).and_then(|inner| inner.split(close).next())
}

/// Unknown metrics, and labels that those in the query do not have.
pub fn check_names(query: &str, legend: &str) -> Result<(), String> {
    let series = series(query);
    if series.is_empty() {
        return Err("names no metric that is declared".into());
    }
    for (word, _) in words(query) {
        if (word.contains("headroom_") || word.starts_with("process_")) && named(word).is_none() {
            return Err(format!("{word} is not declared"));
        }
    }
    for (name, metric, rest) in &series {
        let matchers = group(rest, '{', '}').ok_or_else(|| format!("{name} without a selector"))?;
        if !matchers.contains("cluster=~\"$cluster\"") && *name != "headroom_build_info" {
            return Err(format!("{name} of every cluster"));
        }
        // An exporter that is down has no series by which its job could be found.
        let job = if *name == "up" { "job=\"headroom-exporter\"" } else { "job=~\"$job\"" };
        if !matchers.contains(job) && !matches!(*name, "headroom_build_info" | "ALERTS") {
            return Err(format!("{name} of every job"));
        }
        for (label, rest) in words(matchers) {
            if rest.starts_with(['=', '!']) && !metric.has(label) {
                return Err(format!("{name} has no label {label}"));
            }
        }
    }
    let made: BTreeSet<&str> = query.split("label_replace").skip(1).map(|_| "of").collect();
    let known = |label: &str| made.contains(label) || series.iter().any(|(_, metric, _)| metric.has(label));
    for (word, rest) in words(query) {
        if matches!(word, "by" | "on" | "ignoring" | "without" | "group_left") {
            let labels = group(rest, '(', ')').unwrap_or_default();
            if let Some(label) = labels.split(',').map(str::trim).find(|label| !label.is_empty() && !known(label)) {
                return Err(format!("{word} ({label}): nothing here has it"));
            }
        }
    }
    let shown = legend.split("{{").skip(1).map(|rest| rest.split("}}").next().unwrap());
    match shown.into_iter().find(|label| !known(label)) {
        Some(label) => Err(format!("the legend shows {label}: nothing here has it")),
        None => Ok(()),
    }
}

/// In what the answer is counted, in Grafana's words.
pub fn unit(query: &str) -> Result<&'static str, String> {
    let units: BTreeSet<&str> = series(query).iter().map(|(_, metric, _)| unit_of(metric)).collect();
    if query.starts_with("count") {
        return Ok("short");
    }
    // What is left over how fast it goes: a time, whatever it is of.
    if query.contains("/ (0 - deriv(") {
        return Ok("s");
    }
    if query.contains("histogram_quantile(") || is_heatmap(query) {
        return Ok("s");
    }
    // CPU seconds in a second.
    if query.contains("rate(process_cpu_seconds_total") {
        return Ok("percentunit");
    }
    if query.contains(" / ") {
        let each_like_its_divisor = query.split(" / ").collect::<Vec<_>>().windows(2).all(|pair| {
            let last = series(pair[0]).last().map(|(_, metric, _)| unit_of(metric));
            let first = series(pair[1]).first().map(|(_, metric, _)| unit_of(metric));
            last.is_some() && last == first
        });
        return if each_like_its_divisor { Ok("percentunit") } else { Err("divides unlike things".into()) };
    }
    // What is only there to choose series does not count.
    let shown = query.split(" and on ").next().unwrap();
    let units: BTreeSet<&str> =
        if shown == query { units } else { series(shown).iter().map(|(_, metric, _)| unit_of(metric)).collect() };
    match units.iter().collect::<Vec<_>>()[..] {
        [unit] => Ok(unit),
        _ => Err(format!("mixes units: {units:?}")),
    }
}

/// Buckets as they are: the axis is what was measured.
fn is_heatmap(query: &str) -> bool {
    query.starts_with("sum by (le) (increase(")
}

fn unit_of(metric: &Named) -> &'static str {
    match metric {
        Named::Ours(metric, false) => match metric.unit {
            Unit::None => "short",
            Unit::Bytes => "bytes",
            Unit::Seconds => "s",
            Unit::Ratio => "percentunit",
        },
        Named::Ours(_, true) | Named::Prometheus => "short",
    }
}

/// True if a query of all nodes answers with a line for each of them: neither bounded nor summed up.
pub fn lines_grow_with_nodes(query: &str) -> bool {
    let bounded = query.starts_with("topk(") || query.starts_with("bottomk(");
    let over_all = ["sum(", "max(", "min(", "count("].iter().any(|start| query.starts_with(start));
    let outer =
        ["sum by (", "count by (", "max by (", "histogram_quantile("].iter().any(|start| query.starts_with(start));
    let grouping = query.split(" by (").nth(1).and_then(|rest| rest.split(')').next()).unwrap_or("instance");
    !(bounded || over_all || (outer && !grouping.contains("instance")))
}

#[test]
fn wrong_queries_are_found() {
    let c = "job=~\"$job\", cluster=~\"$cluster\"";
    for (wrong, why) in [
        (format!("headroom_no_such{{{c}}}"), "names no metric"),
        (format!("headroom_cgroups{{{c}}} / headroom_no_such{{{c}}}"), "not declared"),
        (format!("headroom_cgroups{{{c}, signal=\"x\"}}"), "no label signal"),
        (format!("sum by (pod) (headroom_cgroups{{{c}}})"), "by (pod)"),
        ("headroom_cgroups".to_owned(), "without a selector"),
        ("headroom_cgroups{}".to_owned(), "of every cluster"),
        ("headroom_cgroups{cluster=~\"$cluster\"}".to_owned(), "of every job"),
        (format!("headroom_apiserver_probe_duration_seconds{{{c}}}"), "names no metric"),
    ] {
        let found = check_names(&wrong, "").unwrap_err();
        assert!(found.contains(why), "{wrong}: {found}");
    }
    assert!(check_names(&format!("headroom_cgroups{{{c}}}"), "{{pod}}").is_err());
    assert!(check_names(&format!("headroom_cgroups{{{c}}}"), "{{subsystem}} {{instance}}").is_ok());
    assert_eq!(unit("sum(headroom_percpu_bytes{} or headroom_slab_bytes{})").unwrap(), "bytes");
    assert_eq!(unit("1 - headroom_slab_bytes{} / headroom_percpu_bytes{}").unwrap(), "percentunit");
    assert!(unit("headroom_slab_bytes{} / headroom_cgroups{}").is_err());
    assert!(unit("headroom_slab_bytes{} or headroom_cgroups{}").is_err());
    assert!(lines_grow_with_nodes("headroom_cgroups{}"));
    assert!(lines_grow_with_nodes("max by (cluster, instance) (headroom_cgroups{})"));
    assert!(!lines_grow_with_nodes("topk(10, headroom_cgroups{})"));
    assert!(!lines_grow_with_nodes("sum by (owner) (headroom_apiserver_connections{})"));
}
