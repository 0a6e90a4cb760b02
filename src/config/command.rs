//! The command: the flags of `switches`, the subcommands, and what their help says beside them.

use clap::Command;

use super::switches::with_flags;
use super::{check, doctor, pages};
use crate::modes::MODES;
use crate::self_metrics;

/// The flags that `-h` shows, with the words that fit there; `--help` shows them all, in full.
const SUMMARY: [(&str, &str); 14] = [
    ("web.listen-address", "Where to listen; repeat it for several"),
    ("web.config.file", "TLS and passwords, as node_exporter's"),
    ("path.procfs", "The machine's procfs"),
    ("path.sysfs", "Its sysfs, with the cgroups"),
    ("path.rootfs", "Its root file system"),
    ("kubelet.config", "Its configuration [default: as it was started]"),
    ("kubelet.url", "Its API, for /configz, or off [default: in a pod]"),
    ("kubeconfig", "Apiserver and credentials, outside a pod"),
    ("apiserver.url", "The apiserver that our probe asks, or off"),
    ("node-name", "This node [default: as the kubelet calls it]"),
    ("no-runtime", "Never talk to the container runtime"),
    ("runtime.endpoint", "Its socket [default: a well-known one]"),
    ("log.level", "error, warn, info or debug"),
    ("log.format", "logfmt or json"),
];

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
    let command = with_flags(command).mut_args(|arg| {
        let short = arg.get_long().and_then(|long| SUMMARY.iter().find(|(name, _)| *name == long));
        match (short, arg.get_help().cloned()) {
            (Some((_, short)), Some(help)) => {
                let values = arg.get_action().takes_values();
                arg.help(*short).long_help(help).hide_possible_values(values)
            }
            // A man page shows the long text only of a flag that the summary does not have.
            (None, Some(help)) => arg.long_help(help).hide_short_help(true),
            _ => arg,
        }
    });
    command.subcommands([doctor::command(), check::command(), pages::completions_command(), pages::man_command()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_fits_a_screen() {
        let text = command().term_width(100).render_help().to_string();
        assert!(text.lines().count() <= 45, "{} lines:\n{text}", text.lines().count());
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        for (long, short) in SUMMARY {
            assert!(text.contains(&format!("--{long}")) && text.contains(short), "{long} is not in the summary");
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
