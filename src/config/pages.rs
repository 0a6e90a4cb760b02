//! `completions` and `man`: what the command says about itself, in the form that shells and man(1) read.

use clap::error::ErrorKind;
use clap::{Arg, ArgMatches, Command};
use clap_complete::Shell;

pub(super) const COMPLETIONS: &str = "completions";
pub(super) const MAN: &str = "man";

pub(super) fn completions_command() -> Command {
    Command::new(COMPLETIONS)
        .about("Print the completions for a shell")
        .arg(
            Arg::new("shell")
                .value_name("SHELL")
                .help("Which shell")
                .required(true)
                .value_parser(clap::value_parser!(Shell)),
        )
        .after_help("For bash: headroom-exporter completions bash > /etc/bash_completion.d/headroom-exporter")
}

pub(super) fn man_command() -> Command {
    Command::new(MAN)
        .about("Print the man page")
        .arg(Arg::new("command").value_name("COMMAND").help("That of this command instead"))
        .after_help("To read it: headroom-exporter man | man -l -")
}

pub(super) fn completions(matches: &ArgMatches, mut command: Command) -> String {
    let mut text = Vec::new();
    if let Some(shell) = matches.get_one::<Shell>("shell") {
        clap_complete::generate(*shell, &mut command, "headroom-exporter", &mut text);
    }
    // clap_complete 4.6 sets a name for a subcommand and looks for another where the program's own name has a hyphen in
    // it.
    String::from_utf8_lossy(&text).replace("headroom__subcmd__exporter__subcmd__", "headroom__exporter__subcmd__")
}

pub(super) fn man(matches: &ArgMatches, mut command: Command) -> Result<String, clap::Error> {
    command.build();
    if let Some(name) = matches.get_one::<String>("command") {
        let Some(found) = command.find_subcommand(name).cloned() else {
            return Err(command.error(ErrorKind::InvalidSubcommand, format!("there is no command {name:?}")));
        };
        command = found;
    }
    let mut text = Vec::new();
    clap_mangen::Man::new(command).render(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
