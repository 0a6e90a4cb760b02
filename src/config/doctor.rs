//! The options of `doctor`: those of its own, and every flag of the daemon, so that the arguments of a pod can be
//! pasted as they are. Flags of the web side are taken and mean nothing there; help does not show them.

use std::io::IsTerminal as _;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Args as _, Command, FromArgMatches as _};

use super::Config;
use super::switches::with_flags;
use super::values::{COLORS, Color};
use crate::doctor::Options;
use crate::modes::MODES;
use crate::values::some_time;

/// The name of the subcommand.
pub(super) const NAME: &str = "doctor";

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Doctor")]
struct Own {
    /// Print the verdicts as JSON
    #[arg(long)]
    json: bool,
    /// Colours in the output
    #[arg(long, value_name = "WHEN", default_value = "auto", value_parser = COLORS)]
    color: String,
    /// Look at this failure mode only; repeat it for several [default: every one whose collector is on]
    #[arg(long = "mode", value_name = "MODE", value_parser = PossibleValuesParser::new(MODES.iter().map(|mode| mode.id)))]
    modes: Vec<String>,
    /// How long to sample, for rates and the time that is left
    #[arg(long = "for", value_name = "DURATION", default_value = "5s", value_parser = some_time)]
    time: Duration,
    /// No progress while it samples
    #[arg(long)]
    no_progress: bool,
}

/// The subcommand.
pub(super) fn command() -> Command {
    let command = Command::new(NAME)
        .about("Judge this machine now: what fails, how far the rest is, and what to do next")
        .args_override_self(true)
        .max_term_width(100);
    let command = with_flags(command).mut_args(|arg| {
        let arg = match arg.get_long_help().cloned() {
            Some(full) => arg.help(full).long_help(None),
            None => arg,
        };
        let web = arg.get_help_heading() == Some("Web");
        if web { arg.hide(true) } else { arg.hide_short_help(true) }
    });
    // There are seconds, and what was not read is in the report.
    let command = command
        .mut_arg("apiserver.probe-timeout", |arg| arg.default_value("3s"))
        .mut_arg("level", |arg| arg.default_value("error"));
    Own::augment_args(command)
}

/// What its arguments, and the environment for those that are not given, ask for.
///
/// # Errors
/// clap's.
pub(super) fn options(matches: &clap::ArgMatches) -> Result<(Options, Config), clap::Error> {
    let config = Config::of(matches)?;
    let Own { json, color, modes, time, no_progress } = Own::from_arg_matches(matches)?;
    let options = Options {
        modes,
        time,
        json,
        color: Color::parse(&color).wanted(std::io::stdout().is_terminal()),
        progress: !no_progress && std::io::stderr().is_terminal(),
    };
    Ok((options, config))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<(Options, Config), clap::Error> {
        options(&command().try_get_matches_from(["doctor"].iter().chain(arguments))?)
    }

    fn doctor(arguments: &[&str]) -> (Options, Config) {
        parse(arguments).unwrap()
    }

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn the_arguments_of_a_pod_can_be_pasted() {
        let (options, config) = doctor(&[
            "--web.listen-address=:1",
            "--path.rootfs=/host",
            "--no-collector.kmem",
            "--json",
            "--for=2s",
            "--color=always",
        ]);
        assert_eq!(config.roots.root, std::path::Path::new("/host"));
        assert_eq!(config.modes.len(), MODES.len() - 1);
        assert!(options.json && options.color);
        assert_eq!(options.time, Duration::from_secs(2));
        let every = |arg: &clap::Arg| arg.get_long().is_some_and(|long| long.starts_with("web.")) && !arg.is_hide_set();
        assert!(!command().get_arguments().any(every));
    }

    #[test]
    fn modes_by_name() {
        let modes = |arguments: &[&str]| doctor(arguments).0.modes;
        assert_eq!(modes(&["--mode=eviction", "--mode", "kmem"]), ["eviction", "kmem"]);
        assert!(modes(&[]).is_empty());
        assert!(parse(&["--mode=cpu"]).is_err());
    }

    #[test]
    fn its_variables_are_the_daemons() {
        let arg = command().get_arguments().find(|arg| arg.get_long() == Some("path.rootfs")).cloned().unwrap();
        assert_eq!(arg.get_env().unwrap(), "HEADROOM_PATH_ROOTFS");
    }
}
