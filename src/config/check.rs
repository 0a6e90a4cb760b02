//! The options of `check-config`.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use clap::{Args as _, Command, FromArgMatches as _};

use super::values::{COLORS, Color, capacity};
use crate::check_config::{Capacity, Options};
use crate::kubelet::version::Version;

pub(super) const NAME: &str = "check-config";

#[derive(clap::Args, Debug)]
struct Flags {
    /// Configuration files, each checked by itself
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// A configuration file, as the kubelet's --config; the same as FILE
    #[arg(long = "kubelet-config", value_name = "FILE")]
    configs: Vec<PathBuf>,
    /// Drop-ins, as the kubelet's --config-dir; they are merged into each FILE
    #[arg(long = "kubelet-config-dir", value_name = "DIR")]
    config_dir: Option<PathBuf>,
    /// Flags of the kubelet in one argument, split at blanks
    #[arg(long = "kubelet-flags", value_name = "FLAGS", allow_hyphen_values = true)]
    kubelet_flags: Vec<String>,
    /// The version of the kubelet, such as 1.28 [default: judged as by 1.36]
    #[arg(long = "kubelet-version", value_name = "VERSION")]
    version: Option<Version>,
    /// What a node has, so that percentages become figures: memory, nodefs, nodefs-inodes, imagefs, imagefs-inodes,
    /// pids
    #[arg(long = "capacity", value_name = "NAME=N", value_delimiter = ',', value_parser = capacity)]
    capacities: Vec<Capacity>,
    /// Print JSON; docs/check-config.md has its fields
    #[arg(long)]
    json: bool,
    /// Colours in the output
    #[arg(long, value_name = "WHEN", default_value = "auto", value_parser = COLORS)]
    color: String,
    /// Flags of the kubelet, each as an argument of its own
    #[arg(last = true, value_name = "KUBELET FLAG")]
    further: Vec<String>,
}

pub(super) fn command() -> Command {
    let command = Command::new(NAME)
        .about("What a kubelet makes of configuration files and flags, and their traps")
        .override_usage("headroom-exporter check-config [OPTIONS] [FILE]... [-- KUBELET FLAGS]")
        .arg_required_else_help(true)
        .max_term_width(100)
        .after_help(
            "Exit codes: 0 nothing found or notes only; 1 warnings; 2 errors: a kubelet would not start, or a file \
             cannot be read.\n\n\
             Examples:\n  headroom-exporter check-config /var/lib/kubelet/config.yaml\n  \
             headroom-exporter check-config --capacity nodefs=100Gi,memory=64Gi nodes/*.yaml\n  \
             headroom-exporter check-config config.yaml -- '--eviction-hard=memory.available<500Mi'",
        );
    Flags::augment_args(command)
}

pub(super) fn options(matches: &clap::ArgMatches) -> Result<Options, clap::Error> {
    let Flags { files, configs, config_dir, kubelet_flags, capacities, version, json, color, further } =
        Flags::from_arg_matches(matches)?;
    let split = kubelet_flags.iter().flat_map(|flags| flags.split_whitespace().map(str::to_owned));
    Ok(Options {
        configs: files.into_iter().chain(configs).collect(),
        config_dir,
        flags: split.chain(further).collect(),
        version,
        capacities,
        json,
        color: Color::parse(&color).wanted(std::io::stdout().is_terminal()),
    })
}
