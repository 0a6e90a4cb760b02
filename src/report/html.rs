//! The report for a browser, in an incident, on a telephone: one answer, no script, nothing that is loaded from anywhere.
//!
//! A verdict is told by its word, its colour and its shape. Whatever comes from the machine (names of processes and pods, texts of
//! errors) goes through `Text`, which escapes it.

use std::fmt::{self, Write as _};
use std::time::Duration;

use jiff::Timestamp;

use super::text::{self, COMMANDS, EXPLAINED, PARAGRAPHS};
use super::{Report, Row};
use crate::self_metrics;
use crate::verdict::promql::humanize;
use crate::verdict::{self, Finding, Level};

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

impl fmt::Display for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Look { class, word, .. } = self;
        write!(
            f,
            "<span class=\"chip {class}\"><svg aria-hidden=\"true\"><use href=\"#s-{class}\"/></svg>{word}</span>"
        )
    }
}

/// Text from anywhere, safe inside an element or a quoted attribute. What would be invisible, or turn the rest of the line around, is
/// shown as a replacement character.
struct Text<'a>(&'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                '\n' => f.write_char(c)?,
                '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                    f.write_char('\u{fffd}')?
                }
                c if c.is_control() => f.write_char('\u{fffd}')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// The report as one page.
pub fn render(report: &Report, site: Site<'_>) -> String {
    let mut rows: Vec<&Row> = report.rows.iter().collect();
    // Stable: the worst stays first.
    rows.sort_by_key(|row| row.verdict.off);
    let on = rows.iter().filter(|row| !row.verdict.off);
    let overall = on.map(|row| row.verdict.level).max().map_or(&OFF, Look::of);
    let mut out = String::with_capacity(16 << 10);
    head(&mut out, report, overall);
    header(&mut out, report, site, overall, &rows);
    out.push_str("<main>\n");
    for row in rows {
        article(&mut out, row, site);
    }
    out.push_str("</main>\n");
    let _ = write!(
        out,
        "<footer><nav><a href=\"{path}\">Metrics</a><a href=\"/healthz\">Health</a><a href=\"/readyz\">Readiness</a>\
         <a href=\"{PROJECT}docs/doctor.md\">What the verdicts mean</a><a href=\"{PROJECT}docs/metrics.md\">Metrics explained</a>\
         <a href=\"{PROJECT}alerts/\">Runbooks</a></nav>\n\
         <p>The verdicts are the alerts of headroom-exporter {version}, judged here. On the machine: \
         <code>headroom-exporter doctor</code></p></footer>\n</body></html>\n",
        path = Text(site.telemetry_path),
        version = self_metrics::VERSION,
    );
    out
}

fn head(out: &mut String, report: &Report, overall: &Look) {
    let Look { word, shape, color, .. } = overall;
    let _ = write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><meta name=\"robots\" content=\"noindex\">\n\
         <title>{word} · {node} · headroom</title>\n\
         <link rel=\"icon\" href=\"data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E\
         %3Cpath fill='{color}' fill-rule='evenodd' d='{shape}'/%3E%3C/svg%3E\">\n\
         <style>{STYLE}</style></head><body>\n<svg class=\"symbols\">",
        node = Text(&report.node),
    );
    for Look { class, shape, .. } in Look::ALL {
        let _ = write!(
            out,
            "<symbol id=\"s-{class}\" viewBox=\"0 0 16 16\"><path fill-rule=\"evenodd\" d=\"{shape}\"/></symbol>"
        );
    }
    out.push_str("</svg>\n");
}

fn header(out: &mut String, report: &Report, site: Site<'_>, overall: &Look, rows: &[&Row]) {
    let at = Timestamp::try_from(report.at).map(|at| at.strftime("%F %T UTC").to_string()).unwrap_or_default();
    let _ = writeln!(out, "<header class=\"{}\"><h1>{overall}{}</h1>", overall.class, Text(&report.node));
    let _ = writeln!(out, "<p class=\"tally\">{}</p>", tally(rows));
    let mut facts = Vec::new();
    facts.extend(report.kernel.as_ref().map(|release| format!("Linux {release}")));
    facts.extend(site.uptime.map(|up| format!("up {}", rough(up))));
    facts.push(at);
    facts.push(match (report.sampled.as_secs(), site.pages) {
        (_, 0) => "no sample yet".to_owned(),
        (0, _) => "one sample: what takes time to prove cannot be seen yet".to_owned(),
        (_, pages) => format!("{pages} samples over the last {}", rough(report.sampled)),
    });
    let _ = writeln!(out, "<p class=\"facts\">{}</p>", Text(&facts.join(" · ")));
    if let Some(age) = site.age {
        let _ = writeln!(
            out,
            "<p class=\"old\">No scrape could be had now (--web.max-requests are under way): this is {} old.</p>",
            rough(age)
        );
    }
    out.push_str("</header>\n");
}

/// "1 to act on now: open_files · 7 ok", as HTML, with a link to each that is named.
fn tally(rows: &[&Row]) -> String {
    let each = |look: &'static Look, text: &str, named: bool| {
        let of = rows.iter().filter(|row| std::ptr::eq(Look::of_row(row), look)).map(|row| row.verdict.mode);
        let links: Vec<String> = of.map(|mode| format!("<a href=\"#{mode}\">{mode}</a>")).collect();
        let names = if named { format!(": {}", links.join(", ")) } else { String::new() };
        (!links.is_empty()).then(|| format!("<span>{} {text}{names}</span>", links.len()))
    };
    let parts = [
        each(&ACT, "to act on now", true),
        each(&WATCH, "to watch", true),
        each(&BLIND, "cannot be told", true),
        each(&OK, "ok", false),
        each(&OFF, "switched off", false),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join("\n")
}

fn article(out: &mut String, row: &Row, site: Site<'_>) {
    let (look, mode) = (Look::of_row(row), row.verdict.mode);
    let _ = write!(out, "<article id=\"{mode}\" class=\"{}\">{look}<div><h2>", look.class);
    if row.verdict.off {
        let _ = write!(out, "<span>{mode}</span>");
    } else {
        let _ = write!(out, "<a href=\"{}?collect[]={mode}\">{mode}</a>", Text(site.telemetry_path));
    }
    let gist = text::gist(row);
    // "not seen: …" names it.
    let title = if gist.ends_with(row.title) { "" } else { row.title };
    let _ = writeln!(out, "{}</h2><p class=\"gist\">{}</p>", Text(title), Text(&gist));
    fill(out, row);
    if text::has_details(row) && !row.verdict.off {
        details(out, row);
    }
    out.push_str("</div></article>\n");
}

/// How full it is, and the time that is left.
fn fill(out: &mut String, row: &Row) {
    let Some(figure) = row.figure.as_ref().filter(|figure| figure.ratio >= WORTH_A_BAR) else { return };
    let width = (figure.ratio * 100.0).clamp(1.0, 100.0);
    let _ = write!(
        out,
        "<div class=\"fill\"><svg aria-hidden=\"true\" viewBox=\"0 0 100 4\" preserveAspectRatio=\"none\">\
         <rect width=\"{width:.1}\" height=\"4\"/></svg>"
    );
    if let Some(left) = text::time_left(figure) {
        let _ = write!(out, "<span><b>{}</b> to the limit</span>", rough(left));
    }
    out.push_str("</div>\n");
}

fn details(out: &mut String, row: &Row) {
    let open = if row.verdict.level == Level::ActNow { " open" } else { "" };
    let summary = match row.verdict.findings.len() {
        0 => "What could not be read".to_owned(),
        1 => "Evidence and what to do".to_owned(),
        many => format!("{many} findings: evidence and what to do"),
    };
    let _ = writeln!(out, "<details{open}><summary>{summary}</summary>");
    if !row.unread.is_empty() {
        out.push_str("<div class=\"unread\"><h4>Not read</h4><ul>");
        for text in row.unread.iter().take(UNREAD) {
            let _ = write!(out, "<li>{}</li>", Text(text));
        }
        if row.unread.len() > UNREAD {
            let _ = write!(out, "<li>and {} more</li>", row.unread.len() - UNREAD);
        }
        out.push_str("</ul></div>\n");
    }
    for (place, (finding, evidence)) in row.verdict.findings.iter().zip(&row.evidence).enumerate() {
        let known = row.verdict.findings[..place].iter().any(|other| other.alert == finding.alert);
        let look = Look::of(finding.level);
        let _ =
            writeln!(out, "<section><h3>{look} {}<small>{}</small></h3>", Text(finding.alert), Text(&finding.severity));
        if place >= EXPLAINED {
            let _ = writeln!(out, "<p>{}</p></section>", Text(text::without_instance(&finding.summary)));
            continue;
        }
        let _ = writeln!(out, "<p>{}</p>", Text(&finding.description));
        for note in text::notes(finding) {
            let _ = writeln!(out, "<p class=\"note\">{}</p>", Text(&note));
        }
        if !evidence.is_empty() {
            out.push_str("<dl>");
            for (series, value) in evidence {
                let (series, value) = (Text(series), humanize::plain(*value));
                let _ = write!(out, "<dt><code>{series}</code></dt><dd><code>{value}</code></dd>");
            }
            out.push_str("</dl>\n");
        }
        // The same alert for a second process or volume has the same cure.
        if !known {
            steps(out, finding);
        }
        out.push_str("</section>\n");
    }
    out.push_str("</details>\n");
}

fn steps(out: &mut String, finding: &Finding) {
    let steps = verdict::runbook::steps(finding.alert);
    if !steps.mitigate.is_empty() {
        out.push_str("<h4>Next</h4>\n");
        blocks(out, steps.mitigate.iter().take(PARAGRAPHS).map(String::as_str));
    }
    if !steps.check.is_empty() {
        out.push_str("<h4>Look</h4>\n");
        let _ = writeln!(out, "<pre>{}</pre>", Text(&steps.check[..steps.check.len().min(COMMANDS)].join("\n")));
    }
    if finding.runbook.starts_with("https://") {
        let _ = writeln!(out, "<p><a href=\"{}\">Runbook of {}</a></p>", Text(&finding.runbook), Text(finding.alert));
    }
}

/// Paragraphs, items and commands as a runbook has them; neighbours of a kind share their element.
fn blocks<'a>(out: &mut String, texts: impl Iterator<Item = &'a str>) {
    let mut inside = "";
    for text in texts {
        let (kind, text) = match (text.strip_prefix("$ "), text.strip_prefix("- ")) {
            (Some(command), _) => ("pre", command),
            (_, Some(item)) => ("ul", item),
            _ => ("p", text),
        };
        let goes_on = kind == inside && kind != "p";
        if !goes_on {
            if !inside.is_empty() {
                let _ = writeln!(out, "</{inside}>");
            }
            let _ = write!(out, "<{kind}>");
        } else if kind == "pre" {
            out.push('\n');
        }
        let _ = if kind == "ul" { write!(out, "<li>{}</li>", Text(text)) } else { write!(out, "{}", Text(text)) };
        inside = kind;
    }
    if !inside.is_empty() {
        let _ = writeln!(out, "</{inside}>");
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
