//! What is declared, as documents: `docs/metrics.md` from the metrics, `docs/flags.md` from the flags, the failures in
//! `README.md` and the state in `docs/architecture.md` from the modes.
//!
//! `tests/fast/catalog.rs` holds the committed files to this, so that neither can drift from the code.

use std::fmt::Write as _;

use crate::metric::{Kind, Metric};
use crate::modes::MODES;
use crate::{config, http, scrape, self_metrics, services};

/// Every declared metric with the collector that exposes it; `None` for the exporter's own.
pub fn metrics() -> impl Iterator<Item = (Option<&'static str>, &'static Metric)> {
    let own = self_metrics::METRICS.iter().chain(http::METRICS).chain(scrape::METRICS).chain(services::METRICS);
    let own = own.map(|metric| (None, *metric));
    own.chain(MODES.iter().flat_map(|mode| mode.metrics.iter().map(|metric| (Some(mode.id), *metric))))
}

/// The text of `docs/metrics.md`.
pub fn metrics_document() -> String {
    let mut text = String::from(
        "# Metrics\n\n\
         Generated from the declarations in the code; `tests/fast/catalog.rs` fails when this file differs from them.\n\n\
         Absent is not zero: a series that is missing could not be read, or this machine has no such thing. \
         `headroom_collector_outcome` and `headroom_collector_errors_total` say which.\n",
    );
    let mut section = |title: &str, note: &str, metrics: &[&'static Metric]| {
        let _ = writeln!(text, "\n## {title}\n\n{note}\n\n| metric | type | labels | meaning |\n|---|---|---|---|");
        for metric in metrics {
            let kind = match metric.kind {
                Kind::Gauge => "gauge",
                Kind::Counter => "counter",
                Kind::Info => "info",
                Kind::Histogram => "histogram",
            };
            let labels = metric.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
            let _ = writeln!(
                text,
                "| `{}` | {kind} | {labels} | {} |",
                metric.name,
                metric.help.replace('|', "\\|").replace("\n\n", "<br>")
            );
        }
    };
    for mode in MODES {
        section(mode.id, &format!("{}. `--no-collector.{}` switches it off.", mode.title, mode.id), mode.metrics);
    }
    section("the node", "What is known of the node itself, whatever collector is off.", services::METRICS);
    section("the collectors", "How each collector fared in this scrape.", scrape::METRICS);
    section("the web side", "Who asks the exporter, and who was not let in: docs/web.md.", http::METRICS);
    section("the exporter", "The exporter's own process.", self_metrics::METRICS);
    text
}

/// The table of the failures in `README.md`.
pub fn failures_table() -> String {
    let mut text = String::from("| collector | what happened |\n|---|---|\n");
    for mode in MODES {
        let _ = writeln!(text, "| `{}` | {} |", mode.id, mode.happened);
    }
    text
}

/// The table of what collectors keep between scrapes, in `docs/architecture.md`.
pub fn state_table() -> String {
    let mut text = String::from("| mode | what it keeps |\n|---|---|\n");
    for (mode, keeps) in MODES.iter().filter_map(|mode| Some((mode.id, mode.keeps?))) {
        let _ = writeln!(text, "| `{mode}` | {keeps} |");
    }
    text
}

/// The text of `docs/flags.md`.
pub fn flags_document() -> String {
    let mut text = String::from(
        "# Flags\n\n\
         Generated from the definitions in the code; `tests/fast/catalog.rs` fails when this file differs from them. \
         A flag on the command line wins over its environment variable.\n",
    );
    let mut command = config::command();
    command.build();
    flags_of(&command, "##", &mut text);
    for command in command.get_subcommands() {
        let _ = writeln!(text, "\n## {}\n", command.get_bin_name().unwrap_or(command.get_name()));
        let _ = writeln!(text, "{}.", command.get_about().map(ToString::to_string).unwrap_or_default());
        flags_of(command, "###", &mut text);
    }
    text
}

/// Tables of the arguments of one command, a table for each heading.
fn flags_of(command: &clap::Command, level: &str, text: &mut String) {
    let mut heading = None;
    for arg in command.get_arguments() {
        if arg.get_long().is_some_and(|long| matches!(long, "help" | "version")) {
            continue;
        }
        let title = arg.get_help_heading().unwrap_or("Options");
        if heading != Some(title) {
            heading = Some(title);
            let _ =
                writeln!(text, "\n{level} {title}\n\n| flag | environment | default | meaning |\n|---|---|---|---|");
        }
        let takes_value = arg.get_num_args().is_some_and(|range| range.min_values() > 0);
        let value = arg.get_value_names().and_then(|names| names.first()).filter(|_| takes_value);
        let value = value.map_or_else(String::new, ToString::to_string);
        let name = match arg.get_long() {
            Some(long) => format!("--{long} {value}"),
            None => value,
        };
        let variable = arg.get_env().map_or_else(String::new, |name| format!("`{}`", name.to_string_lossy()));
        let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        let default = if takes_value && !defaults.is_empty() && !arg.is_hide_default_value_set() {
            format!("`{}`", defaults.join(","))
        } else {
            String::new()
        };
        let help = arg.get_long_help().or_else(|| arg.get_help()).map(ToString::to_string).unwrap_or_default();
        let _ = writeln!(text, "| `{}` | {variable} | {default} | {} |", name.trim_end(), help.replace('|', "\\|"));
    }
}
