//! The report for a browser, in an incident, on a telephone: one answer, no script, nothing that is loaded from
//! anywhere.
//!
//! A verdict is told by its word, its colour and its shape. maud escapes every text; what comes from the machine (names
//! of processes and pods, texts of errors) goes through `Text` as well.

use std::time::Duration;

use jiff::Timestamp;
use maud::{DOCTYPE, Markup, PreEscaped, Render, html};

use super::text::{self, COMMANDS, EXPLAINED, PARAGRAPHS};
use super::{Report, Row};
use crate::humanize;
use crate::printable::is_hidden;
use crate::self_metrics;
use crate::verdict::runbook::Steps;
use crate::verdict::{Finding, Level};

/// The style, which is part of the page.
pub const STYLE: &str = include_str!("page.css");

/// What a browser may do with the page: nothing, but apply [`STYLE`], which it knows by its SHA-256, and show the icon.
pub const POLICY: &str = "default-src 'none'; style-src 'sha256-hxbHBhv9wauuEbKXJk/bddHcwPelr9N8Q6ilURbfTlQ='; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Where the documentation is.
const PROJECT: &str = "https://github.com/headroom-exporter/headroom-exporter/blob/main/";

/// Texts of what could not be read that are shown of one mode.
const UNREAD: usize = 6;

/// From this part of the limit on the bar shows how full it is.
const WORTH_A_BAR: f64 = 0.01;

/// What the page says beside the report.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// Where the metrics are.
    pub telemetry_path: &'a str,
    /// How long the machine has been up, if that could be read.
    pub uptime: Option<Duration>,
    /// How many pages of samples it stands on.
    pub pages: usize,
    /// How old the newest of them is, when none could be had for this page.
    pub age: Option<Duration>,
}

/// How a verdict looks.
struct Look {
    class: &'static str,
    word: &'static str,
    /// Within 16 by 16.
    shape: &'static str,
    /// Of the icon of the page: readable on light and dark.
    color: &'static str,
}

const ACT: Look = Look {
    class: "act",
    word: "ACT NOW",
    shape: "M5 0h6l5 5v6l-5 5H5l-5-5V5zM7 3v6h2V3zm0 8v2h2v-2z",
    color: "%23d93a32",
};
const WATCH: Look =
    Look { class: "watch", word: "watch", shape: "M8 1l8 14H0zM7 6v4h2V6zm0 5.4v2h2v-2z", color: "%23d79a14" };
const BLIND: Look =
    Look { class: "blind", word: "cannot tell", shape: "M8 0l8 8-8 8-8-8zM5 7v2h6V7z", color: "%237f94ba" };
const OK: Look = Look {
    class: "ok",
    word: "ok",
    shape: "M8 0a8 8 0 1 0 0 16A8 8 0 1 0 8 0zM6.8 11.8L3.2 8.2l1.4-1.4 2.2 2.2 4.6-4.6 1.4 1.4z",
    color: "%235fae7b",
};
const OFF: Look = Look {
    class: "off",
    word: "off",
    shape: "M8 0a8 8 0 1 0 0 16A8 8 0 1 0 8 0zm0 2a6 6 0 1 1 0 12A6 6 0 1 1 8 2z",
    color: "%23999999",
};

impl Look {
    const ALL: [&Look; 5] = [&ACT, &WATCH, &BLIND, &OK, &OFF];

    fn of(level: Level) -> &'static Look {
        match level {
            Level::ActNow => &ACT,
            Level::Watch => &WATCH,
            Level::CannotTell => &BLIND,
            Level::Ok => &OK,
        }
    }

    /// A collector that is switched off is no news of the node.
    fn of_row(row: &Row) -> &'static Look {
        if row.verdict.off { &OFF } else { Look::of(row.verdict.level) }
    }
}

impl Render for Look {
    fn render(&self) -> Markup {
        let Look { class, word, .. } = self;
        html! {
            span class={ "chip " (class) } {
                svg aria-hidden="true" { use href={ "#s-" (class) } {} }
                (word)
            }
        }
    }
}

/// Text from the machine: what would be invisible, or turn the rest of the line around, is shown as a replacement
/// character.
struct Text<'a>(&'a str);

impl Render for Text<'_> {
    fn render_to(&self, out: &mut String) {
        let hides = |c: char| is_hidden(c) && c != '\n';
        let shown = self.0.replace(hides, "\u{fffd}");
        // maud escapes the rest; it leaves the apostrophe, because it quotes attributes with `"`.
        for (place, part) in shown.split('\'').enumerate() {
            out.push_str(if place > 0 { "&#39;" } else { "" });
            part.render_to(out);
        }
    }
}

/// The report as one page.
pub fn render(report: &Report, site: Site<'_>) -> String {
    let mut rows: Vec<&Row> = report.rows.iter().collect();
    // Stable: the worst stays first.
    rows.sort_by_key(|row| row.verdict.off);
    let on = rows.iter().filter(|row| !row.verdict.off);
    let overall = on.map(|row| row.verdict.level).max().map_or(&OFF, Look::of);
    let page = html! {
        (DOCTYPE) "\n"
        html lang="en" {
            (head(report, overall))
            body {
                "\n"
                svg class="symbols" {
                    @for Look { class, shape, .. } in Look::ALL {
                        symbol id={ "s-" (class) } viewBox="0 0 16 16" { path fill-rule="evenodd" d=(shape) {} }
                    }
                }
                "\n"
                (header(report, site, overall, &rows)) "\n"
                main { "\n" @for row in &rows { (article(row, site)) "\n" } } "\n"
                (footer(site)) "\n"
            }
        }
        "\n"
    };
    page.into_string()
}

fn head(report: &Report, overall: &Look) -> Markup {
    let Look { word, shape, color, .. } = overall;
    // With single quotes inside, so that the attribute's own stay as they are.
    let icon = format!(
        "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E\
         %3Cpath fill='{color}' fill-rule='evenodd' d='{shape}'/%3E%3C/svg%3E"
    );
    html! {
        head {
            meta charset="utf-8"; "\n"
            meta name="viewport" content="width=device-width,initial-scale=1";
            meta name="color-scheme" content="light dark";
            meta name="robots" content="noindex"; "\n"
            title { (word) " · " (Text(&report.node)) " · headroom" } "\n"
            link rel="icon" href=(icon); "\n"
            style { (PreEscaped(STYLE)) }
        }
    }
}

fn header(report: &Report, site: Site<'_>, overall: &Look, rows: &[&Row]) -> Markup {
    let at = Timestamp::try_from(report.at).map(|at| at.strftime("%F %T UTC").to_string()).unwrap_or_default();
    let mut facts = Vec::new();
    facts.extend(report.kernel.as_ref().map(|release| format!("Linux {release}")));
    facts.extend(site.uptime.map(|up| format!("up {}", rough(up))));
    facts.push(at);
    facts.push(match (report.sampled.as_secs(), site.pages) {
        (_, 0) => "no sample yet".to_owned(),
        (0, _) => "one sample: what takes time to prove cannot be seen yet".to_owned(),
        (_, pages) => format!("{pages} samples over the last {}", rough(report.sampled)),
    });
    html! {
        header class=(overall.class) {
            h1 { (overall) (Text(&report.node)) } "\n"
            p class="tally" { (tally(rows)) } "\n"
            p class="facts" { (Text(&facts.join(" · "))) } "\n"
            @if let Some(age) = site.age {
                p class="old" {
                    "No scrape could be had now (--web.max-requests are under way): this is " (rough(age)) " old."
                }
                "\n"
            }
        }
    }
}

/// "1 to act on now: open_files · 7 ok", with a link to each that is named.
fn tally(rows: &[&Row]) -> Markup {
    let each = |look: &'static Look, text: &str, named: bool| {
        let of = rows.iter().filter(|row| std::ptr::eq(Look::of_row(row), look));
        let modes: Vec<&str> = of.map(|row| row.verdict.mode).collect();
        let part = html! {
            span {
                (modes.len()) " " (text)
                @if named {
                    @for (place, mode) in modes.iter().enumerate() {
                        (if place == 0 { ": " } else { ", " }) a href={ "#" (mode) } { (mode) }
                    }
                }
            }
        };
        (!modes.is_empty()).then_some(part)
    };
    let parts = [
        each(&ACT, "to act on now", true),
        each(&WATCH, "to watch", true),
        each(&BLIND, "cannot be told", true),
        each(&OK, "ok", false),
        each(&OFF, "switched off", false),
    ];
    html! {
        @for (place, part) in parts.iter().flatten().enumerate() { @if place > 0 { "\n" } (part) }
    }
}

fn footer(site: Site<'_>) -> Markup {
    let link = |to: &str, text: &str| html! { a href={ (PROJECT) (to) } { (text) } };
    html! {
        footer {
            nav {
                a href=(Text(site.telemetry_path)) { "Metrics" }
                a href="/healthz" { "Health" }
                a href="/readyz" { "Readiness" }
                (link("docs/doctor.md", "What the verdicts mean"))
                (link("docs/metrics.md", "Metrics explained"))
                (link("alerts/", "Runbooks"))
            }
            "\n"
            p {
                "The verdicts are the alerts of headroom-exporter " (self_metrics::VERSION)
                ", judged here. On the machine: " code { "headroom-exporter doctor" }
            }
        }
    }
}

fn article(row: &Row, site: Site<'_>) -> Markup {
    let (look, mode) = (Look::of_row(row), row.verdict.mode);
    let gist = text::gist(row);
    // "not seen: …" names it.
    let title = if gist.ends_with(row.title) { "" } else { row.title };
    html! {
        article id=(mode) class=(look.class) {
            (look)
            div {
                h2 {
                    @if row.verdict.off {
                        span { (mode) }
                    } @else {
                        a href={ (Text(site.telemetry_path)) "?collect[]=" (mode) } { (mode) }
                    }
                    (Text(title))
                }
                p class="gist" { (Text(&gist)) } "\n"
                (fill(row))
                @for fact in &row.facts { p class="gist" { (Text(fact)) } "\n" }
                @for note in &row.notes { p class="gist" { (Text(note)) } "\n" }
                @if text::has_details(row) && !row.verdict.off { (details(row)) "\n" }
            }
        }
    }
}

/// How full it is, and the time that is left.
fn fill(row: &Row) -> Markup {
    let Some(figure) = row.figure.as_ref().filter(|figure| figure.ratio >= WORTH_A_BAR) else { return html! {} };
    let width = (figure.ratio * 100.0).clamp(1.0, 100.0);
    html! {
        div class="fill" {
            svg aria-hidden="true" viewBox="0 0 100 4" preserveAspectRatio="none" {
                rect width=(format_args!("{width:.1}")) height="4" {}
            }
            @if let Some(left) = text::time_left(figure) { span { b { (rough(left)) } " to the limit" } }
        }
        "\n"
    }
}

fn details(row: &Row) -> Markup {
    let findings = &row.verdict.findings;
    let summary = match findings.len() {
        0 => "What could not be read".to_owned(),
        1 => "Evidence and what to do".to_owned(),
        many => format!("{many} findings: evidence and what to do"),
    };
    html! {
        details open[row.verdict.level == Level::ActNow] {
            summary { (summary) } "\n"
            @if !row.unread.is_empty() {
                div class="unread" {
                    h4 { "Not read" }
                    ul {
                        @for text in row.unread.iter().take(UNREAD) { li { (Text(text)) } }
                        @if row.unread.len() > UNREAD { li { "and " (row.unread.len() - UNREAD) " more" } }
                    }
                }
                "\n"
            }
            @for (place, (finding, evidence)) in findings.iter().zip(&row.evidence).enumerate() {
                // The same alert for a second process or volume has the same cure.
                @let known = findings[..place].iter().any(|other| other.alert == finding.alert);
                section {
                    h3 { (Look::of(finding.level)) " " (Text(finding.alert)) small { (Text(&finding.severity)) } } "\n"
                    @if place >= EXPLAINED {
                        p { (Text(text::without_instance(&finding.summary))) }
                    } @else {
                        (explained(finding, evidence))
                        @if !known { (steps(finding, &row.steps[place])) }
                    }
                }
                "\n"
            }
        }
    }
}

fn explained(finding: &Finding, evidence: &[(String, f64)]) -> Markup {
    html! {
        p { (Text(&finding.description)) } "\n"
        @for note in text::notes(finding) { p class="note" { (Text(&note)) } "\n" }
        @if !evidence.is_empty() {
            dl {
                @for (series, value) in evidence {
                    dt { code { (Text(series)) } }
                    dd { code { (humanize::plain(*value)) } }
                }
            }
            "\n"
        }
    }
}

fn steps(finding: &Finding, steps: &Steps) -> Markup {
    let commands = &steps.check[..steps.check.len().min(COMMANDS)];
    html! {
        @if !steps.mitigate.is_empty() {
            h4 { "Next" } "\n"
            (blocks(steps.mitigate.iter().take(PARAGRAPHS).map(String::as_str)))
        }
        @if !commands.is_empty() {
            h4 { "Look" } "\n"
            pre { (Text(&commands.join("\n"))) } "\n"
        }
        @if finding.runbook.starts_with("https://") {
            p { a href=(Text(&finding.runbook)) { "Runbook of " (Text(finding.alert)) } } "\n"
        }
    }
}

/// Paragraphs, items and commands as a runbook has them; neighbours of a kind share their element.
fn blocks<'a>(texts: impl Iterator<Item = &'a str>) -> Markup {
    let kind = |text: &'a str| match (text.strip_prefix("$ "), text.strip_prefix("- ")) {
        (Some(command), _) => ("pre", command),
        (_, Some(item)) => ("ul", item),
        _ => ("p", text),
    };
    let blocks: Vec<(&str, &str)> = texts.map(kind).collect();
    html! {
        @for block in blocks.chunk_by(|(kind, _), (next, _)| kind == next && *kind != "p") {
            @let texts = block.iter().map(|(_, text)| *text);
            @match block[0].0 {
                "pre" => pre { (Text(&texts.collect::<Vec<_>>().join("\n"))) },
                "ul" => ul { @for text in texts { li { (Text(text)) } } },
                _ => p { (Text(block[0].1)) },
            }
            "\n"
        }
    }
}

/// "5 h 40 min": the two largest units.
fn rough(time: Duration) -> String {
    let seconds = time.as_secs_f64().round() as u64;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, 0) => format!("{hours} h"),
        (0, ..) => format!("{hours} h {minutes} min"),
        (_, 0, _) => format!("{days} d"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
#[path = "html/tests.rs"]
mod tests;
