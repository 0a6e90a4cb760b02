//! Declared ≡ documented ≡ exposed: the one test that is red until every place that names a metric, a mode or a flag
//! agrees.
//!
//! `HEADROOM_UPDATE_DOCS=1 cargo test --test fast catalog` writes the generated documents anew.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::collections::BTreeSet;
use std::path::Path;

use headroom::catalog;
use headroom::metric::{Kind, Unit};
use headroom::modes::MODES;

use crate::common::{self, generated};
use crate::links;

fn project(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[test]
fn generated_documents_are_up_to_date() {
    generated::file("docs/metrics.md", &catalog::metrics_document());
    generated::file("docs/flags.md", &catalog::flags_document());
    generated::part("README.md", "the failures", &catalog::failures_table());
    generated::part("docs/architecture.md", "state", &catalog::state_table());
}

#[test]
fn names_follow_the_conventions() {
    let mut seen = BTreeSet::new();
    for (mode, metric) in catalog::metrics() {
        let name = metric.name;
        assert!(seen.insert(name), "{name} is declared twice");
        let legal = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        assert!(legal, "{name}");
        assert!(name.starts_with("headroom_") || (mode.is_none() && name.starts_with("process_")), "{name}");
        assert_eq!(name.ends_with("_total"), metric.kind == Kind::Counter, "{name}: _total is for counters");
        assert_eq!(name.ends_with("_info"), metric.kind == Kind::Info, "{name}: _info is for info metrics");
        let stem = name.strip_suffix("_total").unwrap_or(name);
        for unit in [Unit::Bytes, Unit::Seconds, Unit::Ratio] {
            let suffix = format!("_{}", unit.suffix().unwrap());
            let declared = metric.unit == unit || (metric.kind == Kind::Counter && metric.unit == Unit::None);
            assert!(!stem.ends_with(&suffix) || declared, "{name}: ends in a unit that it does not declare");
        }
        if let Some(suffix) = metric.unit.suffix() {
            assert!(stem.ends_with(&format!("_{suffix}")), "{name}: does not end in its unit");
        }
        for label in metric.labels {
            let legal = label.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            assert!(legal && !label.starts_with("__"), "{name}: label {label}");
            assert!(!["le", "quantile", "job", "instance"].contains(label), "{name}: label {label} is taken");
        }
        assert!(metric.help.len() > 20, "{name}: a help text that helps nobody");
        let paragraphs: Vec<&str> = metric.help.split("\n\n").collect();
        assert!(paragraphs.len() <= 2 && paragraphs.iter().all(|text| !text.contains('\n')), "{name}: {paragraphs:?}");
        let help = metric.summary();
        assert!(help.chars().count() <= 200, "{name}: {} characters of HELP", help.chars().count());
        assert!(help.trim_end_matches('.').matches(". ").count() <= 1, "{name}: more than two sentences: {help}");
        assert!(paragraphs.iter().all(|text| !text.is_empty() && text.trim() == *text), "{name}: {paragraphs:?}");
    }
}

#[test]
fn every_exposed_series_is_declared_and_every_mode_exposes_something() {
    // Nobody answers there, which is something to tell as well.
    let exporter = common::Exporter::start(&["--apiserver.url=https://127.0.0.1:1"]);
    let text = exporter.get("/metrics", &[]).text();
    let declared: BTreeSet<&str> = catalog::metrics().map(|(_, metric)| metric.name).collect();
    let page = common::Page::parse(&text);
    // The rows of a histogram have names of their own.
    let is_histogram = |name: &str| catalog::metrics().any(|(_, m)| m.name == name && m.kind == Kind::Histogram);
    let family = |series: &String| {
        let name = series.split('{').next().unwrap();
        let stem = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        stem.filter(|stem| is_histogram(stem)).unwrap_or(name).to_owned()
    };
    let exposed: BTreeSet<String> = page.0.keys().map(family).collect();
    let unknown: Vec<_> = exposed.iter().filter(|name| !declared.contains(name.as_str())).collect();
    assert!(unknown.is_empty(), "exposed and not declared: {unknown:?}");
    for mode in MODES {
        assert!(mode.metrics.iter().any(|metric| exposed.contains(metric.name)), "{} exposes nothing here", mode.id);
    }
    // The budget of CONTRACT: 1,500 series on a node with 110 pods. This machine has none, and nothing here depends on
    // pods yet.
    assert!(page.0.len() < 1_000, "{} series", page.0.len());
}

#[test]
fn every_mode_has_its_file_and_its_words() {
    for mode in MODES {
        assert!(project(&format!("src/modes/{}.rs", mode.id)).exists(), "{}: no source file of its name", mode.id);
        assert!(!mode.title.is_empty() && mode.title.len() < 90, "{}: title", mode.id);
        assert!((30..150).contains(&mode.happened.len()), "{}: what happened", mode.id);
    }
}

#[test]
fn the_readme_is_short_and_the_index_leads_to_every_document() {
    let readme = std::fs::read_to_string(project("README.md")).unwrap();
    assert!(readme.lines().count() <= 100, "README.md: {} lines", readme.lines().count());
    let index = std::fs::read_to_string(project("docs/README.md")).unwrap();
    for entry in std::fs::read_dir(project("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") && name != "README.md" {
            assert!(index.contains(&format!("({name})")), "docs/README.md leads nobody to {name}");
        }
    }
}

/// Every link from one file of this repository to another leads somewhere, to the heading that it names.
#[test]
fn no_link_between_documents_is_broken() {
    let mut documents = vec!["README.md", "CONTRIBUTING.md", "SECURITY.md", "deploy/README.md", "alerts/README.md"];
    documents.push("deploy/helm/headroom-exporter/README.md");
    let mut documents: Vec<_> = documents.into_iter().map(project).collect();
    let folder = std::fs::read_dir(project("docs")).unwrap().map(|entry| entry.unwrap().path());
    documents.extend(folder.filter(|path| path.extension().is_some_and(|end| end == "md")));
    let (seen, wrong): (Vec<usize>, Vec<Vec<String>>) = documents.iter().map(|path| links::check(path)).unzip();
    let (seen, wrong) = (seen.iter().sum::<usize>(), wrong.concat());
    assert!(wrong.is_empty() && seen > 80, "{seen} links: {wrong:#?}");
}

#[test]
fn the_lines_shown_in_the_readme_are_on_the_golden_page() {
    let readme = std::fs::read_to_string(project("README.md")).unwrap();
    let page = std::fs::read_to_string(project("tests/fixtures/node/k8s-1.36-cgroupv2/page.prom")).unwrap();
    // What stands after two spaces is an explanation.
    let shown = readme.lines().filter(|line| line.starts_with("headroom_"));
    let shown: Vec<&str> = shown.map(|line| line.split("  ").next().unwrap()).collect();
    assert!(shown.len() > 10, "the picture of the page is gone");
    for line in shown {
        assert!(page.lines().any(|golden| golden == line), "not on the golden page: {line}");
    }
}
