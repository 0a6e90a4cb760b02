//! A report on the screen and as JSON. `docs/check-config.md` documents the fields.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Limit, Report, Row, Severity, source_name};
use crate::kubelet::configuration::Source;
use crate::printable::printable;

/// Version of the JSON: it changes when a field goes or changes its meaning, not when one is added.
const FORMAT: u32 = 1;

pub(super) fn text(reports: &[Report], color: bool) -> String {
    // Names of files and what is written in them may be anybody's.
    let paint = |code: &str, text: &str| {
        let text = printable(text);
        if color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into_owned() }
    };
    let mut out = String::new();
    for (number, report) in reports.iter().enumerate() {
        if number > 0 {
            out.push('\n');
        }
        let title =
            report.file.as_ref().map_or_else(|| "no --config file".to_owned(), |file| file.display().to_string());
        let _ = writeln!(out, "{}", paint("1", &title));
        match &report.effective {
            Some(effective) => {
                table(&effective.rows, &mut out);
                let configuration = &effective.configuration;
                let (high, low) = (configuration.image_gc_high_percent, configuration.image_gc_low_percent);
                let _ = writeln!(out, "  images are collected above {high}% used, down to {low}%");
            }
            None => {
                let _ = writeln!(
                    out,
                    "  {}",
                    paint("31", "no thresholds: a kubelet does not start with this, or it cannot be read")
                );
            }
        }
        for finding in &report.findings {
            let colour = match finding.severity {
                Severity::Error => "31",
                Severity::Warning => "33",
                Severity::Note => "36",
            };
            let label = paint(colour, &format!("{} {}", finding.severity.as_str(), finding.id));
            let place = finding.place().map_or_else(String::new, |place| format!(" {place}:"));
            let _ = writeln!(out, "  {label}:{} {}", printable(&place), printable(&finding.what));
            if !finding.instead.is_empty() {
                let _ = writeln!(out, "      instead: {}", printable(&finding.instead));
            }
        }
    }
    let count = |number: usize, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
    let found = |severity: Severity| {
        let all = reports.iter().flat_map(|report| &report.findings);
        count(all.filter(|finding| finding.severity == severity).count(), severity.as_str())
    };
    let [errors, warnings, notes] = [Severity::Error, Severity::Warning, Severity::Note].map(found);
    let _ = writeln!(out, "\n{errors}, {warnings}, {notes} in {}", count(reports.len(), "configuration"));
    out
}

fn table(rows: &[Row], out: &mut String) {
    let head = ["signal", "hard", "soft", "grace", "reclaim", "source"].map(str::to_owned);
    let mut cells = vec![head];
    for row in rows {
        let limit = |limit: &Option<Limit>| limit.as_ref().map_or_else(|| "-".to_owned(), words);
        let hard = row.hard.as_ref().map_or_else(|| "none".to_owned(), words);
        let grace = row.grace.as_ref().map_or_else(|| "-".to_owned(), |(period, _)| format!("{period:?}"));
        let mut sources: Vec<String> = Vec::new();
        let limits = [&row.hard, &row.soft, &row.reclaim].into_iter().flatten().map(|limit| &limit.source);
        for source in limits.chain(row.grace.as_ref().map(|(_, source)| source)).map(source_name) {
            if !sources.contains(&source) {
                sources.push(source);
            }
        }
        let source = if sources.is_empty() { "-".to_owned() } else { sources.join(", ") };
        let source = printable(&source).into_owned();
        cells.push([row.signal.as_str().to_owned(), hard, limit(&row.soft), grace, limit(&row.reclaim), source]);
    }
    let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..6).map(width).collect();
    for row in &cells {
        let padded: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let _ = writeln!(out, "  {}", padded.join("  ").trim_end());
    }
}

fn words(limit: &Limit) -> String {
    match limit.figure {
        _ if !limit.on => format!("{} (off)", limit.text),
        Some(figure) if figure.to_string() != limit.text => format!("{} = {figure}", limit.text),
        _ => limit.text.clone(),
    }
}

pub(super) fn json(reports: &[Report], code: u8) -> String {
    let checks: Vec<Value> = reports.iter().map(check).collect();
    let document = json!({ "format": FORMAT, "exit_code": code, "checks": checks });
    format!("{document:#}\n")
}

fn check(report: &Report) -> Value {
    let effective = report.effective.as_ref();
    let findings: Vec<Value> = report
        .findings
        .iter()
        .map(|finding| {
            json!({
                "id": finding.id,
                "severity": finding.severity.as_str(),
                "path": finding.path.as_ref().map(|path| path.display().to_string()),
                "line": finding.line,
                "key": finding.key,
                "what": finding.what,
                "instead": finding.instead,
            })
        })
        .collect();
    json!({
        "file": report.file.as_ref().map(|file| file.display().to_string()),
        "sources": report.sources.iter().map(source).collect::<Vec<_>>(),
        "starts": effective.is_some(),
        "thresholds": effective.map(|effective| effective.rows.iter().map(row).collect::<Vec<_>>()),
        "image_gc": effective.map(|effective| json!({
            "high_percent": effective.configuration.image_gc_high_percent,
            "low_percent": effective.configuration.image_gc_low_percent,
        })),
        "findings": findings,
    })
}

fn source(source: &Source) -> Value {
    json!({ "kind": source.as_str(), "path": source.path().map(|path| path.display().to_string()) })
}

fn row(row: &Row) -> Value {
    let limit = |limit: &Option<Limit>| {
        limit.as_ref().map(|limit| {
            json!({ "value": limit.text, "figure": limit.figure, "on": limit.on, "source": source(&limit.source) })
        })
    };
    let grace =
        row.grace.as_ref().map(|(period, from)| json!({ "seconds": period.as_secs_f64(), "source": source(from) }));
    json!({
        "signal": row.signal.as_str(),
        "hard": limit(&row.hard),
        "soft": limit(&row.soft),
        "grace_period": grace,
        "minimum_reclaim": limit(&row.reclaim),
    })
}
