//! The command: the flags of `switches`, the subcommands, and what their help says beside them.

use clap::Command;

use super::switches::with_flags;
use super::{check, doctor, pages};
use crate::modes::MODES;
use crate::self_metrics;

const EXAMPLES: &str = "\
Examples:
  headroom-exporter
          Serve the metrics of this machine on port 10843
  headroom-exporter --path.sysfs=/host/sys --path.rootfs=/host
          The same in a pod with hostPID that has the machine's / mounted at /host
  headroom-exporter --no-runtime --no-collector.node_status
          Without talking to the container runtime, and without reading the node's lease and conditions
  headroom-exporter doctor
          Which of the failures is happening here, how far it is from each, what to do first
  headroom-exporter check-config /var/lib/kubelet/config.yaml
          What a kubelet makes of this file, and where it holds a trap

Every flag is an environment variable too: --web.max-requests is HEADROOM_WEB_MAX_REQUESTS. The command line wins.";

/// The command with every flag, every environment variable and every help text.
pub fn command() -> Command {
    let collectors = MODES.iter().map(|mode| mode.id).collect::<Vec<_>>().join(", ");
    let command = Command::new("headroom-exporter")
        .about("How far this node is from the failures that take nodes down while every dashboard is green")
        .long_about("Prometheus exporter: how far this node is from the failures that take nodes down while every dashboard is green")
        .version(self_metrics::VERSION_AND_REVISION)
        .args_override_self(true)
        .args_conflicts_with_subcommands(true)
        .disable_help_subcommand(true)
        .override_usage("headroom-exporter [FLAGS]\n       headroom-exporter COMMAND ...")
        .max_term_width(100)
        .after_help(format!(
            "--no-collector.NAME switches a collector off: {collectors}.\n--help has every flag, in full; each is an environment variable too."
        ))
        .after_long_help(EXAMPLES);
    // `-h` shows the flags that have a short text beside the full one; `--help` shows them all, in full.
    let command = with_flags(command).mut_args(|arg| match (arg.get_long_help(), arg.get_help().cloned()) {
        (Some(_), _) => {
            let values = arg.get_action().takes_values();
            arg.hide_possible_values(values)
        }
        // A man page shows no short text of a flag that `-h` does not show.
        (None, Some(help)) => arg.long_help(help).hide_short_help(true),
        (None, None) => arg,
    });
    command.subcommands([doctor::command(), check::command(), pages::completions_command(), pages::man_command()])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The flags that are worth a line of `-h`.
    const SUMMARY: [&str; 14] = [
        "apiserver.url",
        "kubeconfig",
        "kubelet.config",
        "kubelet.url",
        "log.format",
        "log.level",
        "no-runtime",
        "node-name",
        "path.procfs",
        "path.rootfs",
        "path.sysfs",
        "runtime.endpoint",
        "web.config.file",
        "web.listen-address",
    ];

    #[test]
    fn the_summary_fits_a_screen() {
        let text = command().term_width(100).render_help().to_string();
        assert!(text.lines().count() <= 45, "{} lines:\n{text}", text.lines().count());
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        let command = command();
        let shown = command.get_arguments().filter(|arg| !arg.is_hide_short_help_set());
        let shown: Vec<_> = shown.filter_map(|arg| Some((arg.get_long()?, arg.get_help()?.to_string()))).collect();
        let mut names: Vec<&str> = shown.iter().map(|(long, _)| *long).collect();
        names.sort_unstable();
        assert_eq!(names, SUMMARY);
        // One line for each, at a width that fits a terminal of 100 columns: what needs more has it in `--help`.
        for line in text.lines() {
            assert!(line.chars().count() <= 100, "{line}");
            let continued = line.starts_with("                ") && !line.trim_start().starts_with('-');
            assert!(!continued, "a second line of help in the summary: {line}");
        }
        for (long, short) in shown {
            assert!(text.contains(&format!("--{long}")) && text.contains(&short), "{long} is not in the summary");
        }
    }

    #[test]
    fn the_full_text_has_every_flag_and_collector() {
        let text = command().term_width(100).render_long_help().to_string();
        for arg in command().get_arguments() {
            let long = arg.get_long().unwrap();
            assert!(text.contains(&format!("--{long}")), "{long}");
        }
        assert!(text.contains("Examples:") && text.contains("Commands:") && text.contains("HEADROOM_"), "{text}");
        // What the summary says in short is there in full.
        assert!(text.contains("\":PORT\" means every address"), "{text}");
    }
}
