//! Every flag of the daemon, one to switch each collector on or off, and their environment variables.

use clap::builder::{BoolishValueParser, Resettable, StyledStr};
use clap::{Arg, ArgAction, ArgMatches, Args as _, Command};

use super::Flags;
use crate::modes::{MODES, Mode};

/// Adds every flag of the daemon with its environment variable.
pub(super) fn with_flags(command: Command) -> Command {
    // A group of flags would put its own words in the place of the command's.
    let words = |text: Option<&StyledStr>| text.cloned().map_or(Resettable::Reset, Resettable::Value);
    let (about, long_about) = (words(command.get_about()), words(command.get_long_about()));
    let mut command = Flags::augment_args(command).about(about).long_about(long_about).arg(
        Arg::new("collector.disable-defaults")
            .long("collector.disable-defaults")
            .help("Run only the collectors that are switched on by name")
            .help_heading("Collectors")
            .action(ArgAction::SetTrue),
    );
    for mode in MODES {
        let (on, off) = (switch(mode), format!("no-{}", switch(mode)));
        command = command
            .arg(
                Arg::new(&on)
                    .long(&on)
                    .help(format!("{} (on by default)", mode.title))
                    .help_heading("Collectors")
                    .num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value("true")
                    .value_name("BOOL")
                    .hide_possible_values(true)
                    .value_parser(BoolishValueParser::new())
                    .overrides_with(&off),
            )
            .arg(
                Arg::new(&off)
                    .long(&off)
                    .help_heading("Collectors")
                    .help(format!("Switch {} off", mode.id))
                    .action(ArgAction::SetTrue)
                    .overrides_with(&on),
            );
    }
    // `--web.max-requests` is HEADROOM_WEB_MAX_REQUESTS; a `--no-…` is the other's variable with the value false.
    command.mut_args(|arg| match arg.get_long().map(str::to_owned) {
        Some(long) if !long.starts_with("no-") && long != "help" && long != "version" => {
            arg.env(environment_variable(&long)).hide_env(true)
        }
        _ => arg,
    })
}

/// The variable of a flag: `web.max-requests` → `HEADROOM_WEB_MAX_REQUESTS`.
pub fn environment_variable(long: &str) -> String {
    format!("HEADROOM_{}", long.replace(['.', '-'], "_").to_ascii_uppercase())
}

fn switch(mode: &Mode) -> String {
    format!("collector.{}", mode.id)
}

pub(super) fn enabled(mode: &Mode, matches: &ArgMatches) -> bool {
    let on = switch(mode);
    if matches.get_flag(&format!("no-{on}")) {
        return false;
    }
    matches.get_one::<bool>(&on).copied().unwrap_or_else(|| !matches.get_flag("collector.disable-defaults"))
}
