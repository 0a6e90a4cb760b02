//! The report for a person: one line for each mode, then what is known of the bad ones and what to do first.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;

use super::{Report, Row};
use crate::humanize;
use crate::printable::printable;
use crate::verdict::runbook::Steps;
use crate::verdict::{Basis, Figure, Finding, Level};

/// How wide a line may get.
const WIDTH: usize = 100;

/// Commands of a section Check that are shown: the first ones; the runbook has the rest.
pub(super) const COMMANDS: usize = 3;

/// Paragraphs of a section Mitigate that are shown.
pub(super) const PARAGRAPHS: usize = 5;

/// Findings of one mode that are explained; the others are named.
pub(super) const EXPLAINED: usize = 3;

/// What is further off than this is not worth a word.
const LONG: Duration = Duration::from_secs(30 * 86_400);

/// The report, coloured or plain.
pub fn render(report: &Report, color: bool) -> String {
    let paint = Paint { color };
    let mut out = String::new();
    let at = Timestamp::try_from(report.at).map(|at| at.strftime("%F %T UTC").to_string()).unwrap_or_default();
    let kernel = report.kernel.as_deref().map_or(String::new(), |release| format!(" · Linux {}", printable(release)));
    let _ = writeln!(
        out,
        "{}{kernel} · {at} · {} s of samples\n",
        paint.bold(&printable(&report.node)),
        seconds(report.sampled)
    );
    for row in &report.rows {
        line(&mut out, row, paint);
    }
    for row in report.rows.iter().filter(|row| row.verdict.level >= Level::CannotTell && has_details(row)) {
        details(&mut out, row, paint);
    }
    for row in report.rows.iter().filter(|row| !row.facts.is_empty()) {
        let _ = writeln!(out, "\n{}", paint.bold(&format!("{}, as it is", row.verdict.mode)));
        for text in &row.facts {
            item(&mut out, "", text);
        }
    }
    for row in report.rows.iter().filter(|row| !row.notes.is_empty()) {
        let _ = writeln!(out, "\n{}", paint.bold(&format!("{} could tell more", row.verdict.mode)));
        for text in &row.notes {
            item(&mut out, "", text);
        }
    }
    out
}

/// What a level is called.
pub fn name(level: Level) -> &'static str {
    match level {
        Level::Ok => "ok",
        Level::CannotTell => "cannot tell",
        Level::Watch => "watch",
        Level::ActNow => "ACT NOW",
    }
}

/// What a row says behind its name: the figure that matters and how it moves, else what was found, else why there is
/// nothing.
pub fn gist(row: &Row) -> String {
    let verdict = &row.verdict;
    let worst = verdict.findings.first().filter(|finding| finding.level > Level::Ok);
    let figure = row.figure.as_ref().map(|figure| {
        let mut text = figure.text.clone();
        if let Some(left) = time_left(figure) {
            let _ = write!(text, ", reached in {} at the present rate", humanize::duration(rounded(left)));
        }
        text
    });
    let found = worst.map(|finding| without_instance(&finding.summary).to_owned());
    let parts = [found, figure, (!verdict.why.is_empty()).then(|| verdict.why.clone())];
    let text = parts.into_iter().flatten().collect::<Vec<_>>().join("; ");
    if text.is_empty() { format!("not seen: {}", row.title) } else { text }
}

/// The time to the cliff, where it says something: far from the cliff the slope of a few seconds does not.
pub(super) fn time_left(figure: &Figure) -> Option<Duration> {
    figure.time_to_cliff.filter(|left| figure.ratio >= 0.25 && *left < LONG)
}

/// Summaries name the node first, as alerts must; here it stands above.
pub fn without_instance(summary: &str) -> &str {
    summary.split_once(": ").map_or(summary, |(_, rest)| rest)
}

fn line(out: &mut String, row: &Row, paint: Paint) {
    let level = row.verdict.level;
    let head = format!("{}  {:<22}", paint.level(level, &format!("{:<11}", name(level))), row.verdict.mode);
    let mut lines = wrap(&gist(row), WIDTH - 35).into_iter();
    let _ = writeln!(out, "{head}{}", lines.next().unwrap_or_default());
    for more in lines {
        let _ = writeln!(out, "{:35}{more}", "");
    }
}

pub(super) fn has_details(row: &Row) -> bool {
    !row.verdict.findings.is_empty() || row.verdict.level == Level::CannotTell && !row.unread.is_empty()
}

fn details(out: &mut String, row: &Row, paint: Paint) {
    let level = row.verdict.level;
    let _ = writeln!(out, "\n{}", paint.level(level, &format!("{} · {}", row.verdict.mode, row.title)));
    for text in &row.unread {
        item(out, "not read: ", text);
    }
    for (place, (finding, evidence)) in row.verdict.findings.iter().zip(&row.evidence).enumerate() {
        let known = row.verdict.findings[..place].iter().any(|other| other.alert == finding.alert);
        let _ = writeln!(out, "\n  {}", paint.bold(&printable(&format!("{} ({})", finding.alert, finding.severity))));
        if place >= EXPLAINED {
            item(out, "", without_instance(&finding.summary));
            continue;
        }
        for text in wrap(&finding.description, WIDTH - 4) {
            let _ = writeln!(out, "    {text}");
        }
        for note in notes(finding) {
            item(out, "", &note);
        }
        for (series, value) in evidence {
            let _ = writeln!(out, "    {} {}", paint.dim(&printable(series)), humanize::plain(*value));
        }
        // The same alert for a second process or volume has the same cure.
        if !known {
            steps(out, finding, &row.steps[place], paint);
        }
    }
}

/// What differs from a page by Alertmanager.
pub fn notes(finding: &Finding) -> Vec<String> {
    let mut notes = Vec::new();
    if let Basis::Partial { covered, window } = finding.basis {
        let (covered, window) = (humanize::duration(rounded(covered)), humanize::duration(rounded(window)));
        notes.push(format!("Stands on {covered} of the {window} that the alert looks back over."));
    }
    if let Some(time) = finding.holds_for {
        notes.push(format!("Pages once it has held for {}.", humanize::duration(rounded(time))));
    }
    notes
}

fn steps(out: &mut String, finding: &Finding, steps: &Steps, paint: Paint) {
    let _ = writeln!(out, "\n    {}", paint.bold("Next"));
    for text in steps.mitigate.iter().take(PARAGRAPHS) {
        item(out, "", text);
    }
    if !steps.check.is_empty() {
        let _ = writeln!(out, "    {}", paint.bold("Look"));
    }
    for command in steps.check.iter().take(COMMANDS) {
        // Not wrapped: a command must be one to copy.
        let _ = writeln!(out, "    $ {}", printable(command));
    }
    if !finding.runbook.is_empty() {
        let _ = writeln!(out, "    {}", paint.dim(&printable(&finding.runbook)));
    }
}

fn item(out: &mut String, lead: &str, text: &str) {
    if let Some(command) = text.strip_prefix("$ ") {
        let _ = writeln!(out, "    $ {}", printable(command));
        return;
    }
    for (place, line) in wrap(&format!("{lead}{text}"), WIDTH - 4).into_iter().enumerate() {
        let _ = writeln!(out, "    {}{line}", if place > 0 && text.starts_with("- ") { "  " } else { "" });
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.0}", time.as_secs_f64())
}

fn rounded(time: Duration) -> f64 {
    time.as_secs_f64().round()
}

/// Words into lines, safe to look at. A word that is longer than a line stays whole.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(&printable(word));
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}

/// ANSI colours, or none. The words say all that the colours do.
#[derive(Clone, Copy)]
struct Paint {
    color: bool,
}

impl Paint {
    fn with(self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    fn level(self, level: Level, text: &str) -> String {
        let code = match level {
            Level::Ok => "32",
            Level::CannotTell => "36",
            Level::Watch => "33",
            Level::ActNow => "1;37;41",
        };
        self.with(code, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_wrapped_and_long_ones_stay_whole() {
        assert_eq!(wrap("aa bb  cc\ndd", 5), ["aa bb", "cc dd"]);
        assert_eq!(wrap("a longwordthatdoesnotfit b", 5), ["a", "longwordthatdoesnotfit", "b"]);
        assert!(wrap("  ", 5).is_empty());
    }

    #[test]
    fn what_a_terminal_obeys_is_shown() {
        assert_eq!(wrap("pod\u{1b}[8m \u{202e}x\n\u{9b}1m", 90), ["pod\\u{1b}[8m \\u{202e}x \\u{9b}1m"]);
        let mut out = String::new();
        item(&mut out, "", "$ kill \u{1b}]0;x\u{7}\n$ rm");
        assert_eq!(out, "    $ kill \\u{1b}]0;x\\u{7}\\n$ rm\n");
    }

    #[test]
    fn the_node_is_not_named_again() {
        assert_eq!(without_instance("node-1: it fails: now"), "it fails: now");
        assert_eq!(without_instance("nothing"), "nothing");
    }
}
