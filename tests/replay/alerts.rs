//! promtool's word on the alert rules, Prometheus 2's and 3's: they are rules without a complaint of its linter, every
//! case of theirs holds, and a healthy node fires none of them in a day.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use headroom::modes::MODES;

use crate::common::prometheus::Release;

fn folder(mode: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("alerts").join(mode)
}

fn present() -> Vec<&'static str> {
    let demanded = MODES.iter().map(|mode| mode.id).chain(["exporter"]);
    demanded.filter(|mode| folder(mode).join("rules.yaml").exists()).collect()
}

#[test]
fn promtool_2_takes_the_rules_and_every_case_holds() {
    every_case_holds(Release::Installed);
}

#[test]
fn promtool_3_takes_the_rules_and_every_case_holds() {
    every_case_holds(Release::Three);
}

fn every_case_holds(release: Release) {
    if !release.runs(&["promtool"]) {
        return;
    }
    let files = |name: &str| present().into_iter().map(|mode| folder(mode).join(name)).collect::<Vec<_>>();
    let check = ["check", "rules", "--lint=all", "--lint-fatal"];
    let (good, text) = release.run("promtool", &check, &files("rules.yaml"));
    assert!(good, "{release:?}: {text}");
    for file in files("test.yaml") {
        let (good, text) = release.run("promtool", &["test", "rules"], &[file]);
        assert!(good, "{release:?}: {text}");
    }
}

/// A recorded page as the steady input of a promtool test over 24 hours, a scrape a minute.
fn steady(page: &str, instance: &str, change: &dyn Fn(&str) -> Option<String>) -> String {
    let mut text =
        format!("      - {{series: 'up{{job=\"headroom-exporter\",instance=\"{instance}\"}}', values: '1+0x1440'}}\n");
    for line in page.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.strip_suffix('}').and_then(|s| s.split_once('{')).unwrap_or((series, ""));
        let comma = if labels.is_empty() { "" } else { "," };
        let series = format!("{name}{{{labels}{comma}job=\"headroom-exporter\",instance=\"{instance}\"}}");
        let values = change(&series).unwrap_or_else(|| format!("{value}+0x1440"));
        writeln!(text, "      - {{series: '{}', values: '{values}'}}", series.replace('\'', "''")).unwrap();
    }
    text
}

/// What fires in a day on these input series: empty, or what promtool says.
fn a_day(release: Release, series: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let rule_files: String =
        present().iter().map(|mode| format!("  - {}\n", folder(mode).join("rules.yaml").display())).collect();
    let path = directory.path().join("healthy.yaml");
    let test = format!(
        "rule_files:\n{rule_files}evaluation_interval: 1m\ntests:\n  - interval: 1m\n    input_series:\n{series}\
         \x20   promql_expr_test:\n      - {{expr: 'count by (alertname, instance) (count_over_time(ALERTS{{alertstate=\"firing\"}}[24h]))', \
         eval_time: 24h, exp_samples: []}}\n"
    );
    std::fs::write(&path, test).unwrap();
    let (good, text) = release.run("promtool", &["test", "rules"], &[path]);
    if good { String::new() } else { text }
}

fn golden(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/node").join(name).join("page.prom");
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn a_healthy_node_fires_nothing_in_a_day_of_prometheus_2() {
    a_healthy_node_fires_nothing(Release::Installed);
}

#[test]
fn a_healthy_node_fires_nothing_in_a_day_of_prometheus_3() {
    a_healthy_node_fires_nothing(Release::Three);
}

fn a_healthy_node_fires_nothing(release: Release) {
    if !release.runs(&["promtool"]) {
        return;
    }
    let nodes = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/node");
    let mut names: Vec<_> =
        std::fs::read_dir(nodes).unwrap().flatten().map(|e| e.file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(names.len() >= 2, "{names:?}");
    let all: String = names.iter().map(|name| steady(&golden(name), name, &|_| None)).collect();
    let fired = a_day(release, &all);
    assert!(fired.is_empty(), "{release:?}: {fired}");
    // The same page with one wrong number does fire, and by name: the silence above means something.
    let sick = steady(&golden(&names[0]), "sick", &|series| {
        let ids = series.starts_with("headroom_memcg_ids_used{");
        ids.then(|| "60000+0x1440".to_owned())
    });
    let fired = a_day(release, &sick);
    assert!(fired.contains("HeadroomMemcgIdsHigh"), "{release:?}: {fired}");
}
