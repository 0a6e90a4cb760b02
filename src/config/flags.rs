//! The flags that concern the observed machine and the log. Those of the web side are in `config.rs`, those of a mode
//! or a service beside its code.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser as _};

use crate::log::Format;

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "The observed machine")]
pub(super) struct Paths {
    /// The machine's procfs
    #[arg(
        long_help = "The machine's procfs; in a pod with hostPID the pod's own /proc shows it",
        long = "path.procfs",
        value_name = "DIR",
        default_value = "/proc"
    )]
    pub(super) procfs: PathBuf,
    /// Its sysfs, with the cgroups
    #[arg(
        long_help = "The machine's sysfs with the cgroup file systems below it; in a pod: a mount of the host's /sys",
        long = "path.sysfs",
        value_name = "DIR",
        default_value = "/sys"
    )]
    pub(super) sysfs: PathBuf,
    /// Its root file system
    #[arg(
        long_help = "The machine's root file system; in a pod: a read-only mount of the host's /",
        long = "path.rootfs",
        value_name = "DIR",
        default_value = "/"
    )]
    pub(super) rootfs: PathBuf,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Log")]
pub(super) struct Log {
    /// error, warn, info or debug
    #[arg(long_help = "Lowest level that is logged", long = "log.level", value_name = "LEVEL", default_value = "info",
          value_parser = PossibleValuesParser::new(["error", "warn", "info", "debug"]).try_map(|level| level.parse::<tracing::Level>()))]
    pub(super) level: tracing::Level,
    /// logfmt or json
    #[arg(long_help = "Format of log lines", long = "log.format", value_name = "FORMAT", default_value = "logfmt",
          value_parser = PossibleValuesParser::new(["logfmt", "json"]).map(|format| if format == "json" { Format::Json } else { Format::Logfmt }))]
    pub(super) format: Format,
}
