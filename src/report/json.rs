//! The report for a program. `docs/doctor.md` documents each field; within one `format` fields are added and never
//! change. `null`: there is none.

use serde::Serialize;

use super::{Report, Row};
use crate::self_metrics;
use crate::verdict::runbook::Steps;
use crate::verdict::{Basis, Finding, Level};

/// It changes when a field goes or means something else.
const FORMAT: u32 = 1;

#[derive(Serialize)]
struct Document<'a> {
    format: u32,
    exit_code: u8,
    exporter: &'static str,
    node: &'a str,
    kernel: Option<&'a str>,
    at: String,
    sampled_seconds: f64,
    verdict: &'static str,
    modes: Vec<Mode<'a>>,
}

#[derive(Serialize)]
struct Mode<'a> {
    mode: &'static str,
    title: &'static str,
    verdict: &'static str,
    why: Option<&'a str>,
    figure: Option<Figure<'a>>,
    unread: &'a [String],
    notes: &'a [String],
    facts: &'a [String],
    findings: Vec<Found<'a>>,
}

#[derive(Serialize)]
struct Figure<'a> {
    text: &'a str,
    ratio: f64,
    per_second: Option<f64>,
    seconds_left: Option<f64>,
    labels: &'a std::collections::BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Found<'a> {
    alert: &'static str,
    severity: &'a str,
    verdict: &'static str,
    labels: &'a std::collections::BTreeMap<String, String>,
    value: f64,
    summary: &'a str,
    description: &'a str,
    runbook: &'a str,
    holds_for_seconds: Option<f64>,
    covered_seconds: Option<f64>,
    window_seconds: Option<f64>,
    evidence: Vec<Series<'a>>,
    next: &'a [String],
    commands: &'a [String],
}

#[derive(Serialize)]
struct Series<'a> {
    series: &'a str,
    value: f64,
}

/// The report as one JSON object, with a line break at its end.
pub fn render(report: &Report) -> String {
    let document = Document {
        format: FORMAT,
        exit_code: report.exit_code(),
        exporter: self_metrics::VERSION,
        node: &report.node,
        kernel: report.kernel.as_deref(),
        at: jiff::Timestamp::try_from(report.at).map(|at| at.to_string()).unwrap_or_default(),
        sampled_seconds: report.sampled.as_secs_f64(),
        verdict: word(report.level()),
        modes: report.rows.iter().map(mode).collect(),
    };
    let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
    text.push('\n');
    text
}

/// A level as programs know it.
fn word(level: Level) -> &'static str {
    match level {
        Level::Ok => "ok",
        Level::CannotTell => "cannot_tell",
        Level::Watch => "watch",
        Level::ActNow => "act_now",
    }
}

fn mode(row: &Row) -> Mode<'_> {
    Mode {
        mode: row.verdict.mode,
        title: row.title,
        verdict: word(row.verdict.level),
        why: Some(&*row.verdict.why).filter(|why| !why.is_empty()),
        figure: row.figure.as_ref().map(|figure| Figure {
            text: &figure.text,
            ratio: figure.ratio,
            per_second: figure.rate,
            seconds_left: figure.time_to_cliff.map(|left| left.as_secs_f64()),
            labels: &figure.labels,
        }),
        unread: &row.unread,
        notes: &row.notes,
        facts: &row.facts,
        findings: row
            .verdict
            .findings
            .iter()
            .zip(&row.evidence)
            .zip(&row.steps)
            .map(|((finding, series), steps)| found(finding, series, steps))
            .collect(),
    }
}

fn found<'a>(finding: &'a Finding, evidence: &'a [(String, f64)], steps: &'a Steps) -> Found<'a> {
    let (covered, window) = match finding.basis {
        Basis::Full => (None, None),
        Basis::Partial { covered, window } => (Some(covered.as_secs_f64()), Some(window.as_secs_f64())),
    };
    Found {
        alert: finding.alert,
        severity: &finding.severity,
        verdict: word(finding.level),
        labels: &finding.labels,
        value: finding.value,
        summary: &finding.summary,
        description: &finding.description,
        runbook: &finding.runbook,
        holds_for_seconds: finding.holds_for.map(|time| time.as_secs_f64()),
        covered_seconds: covered,
        window_seconds: window,
        evidence: evidence.iter().map(|(series, value)| Series { series, value: *value }).collect(),
        next: &steps.mitigate,
        commands: &steps.check,
    }
}
