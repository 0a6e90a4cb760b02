//! Arguments and environment become plain data: the only reader of `argv` and of the environment.
//!
//! Every flag can also be given as an environment variable: `--web.max-requests` is `HEADROOM_WEB_MAX_REQUESTS`. The
//! command line wins. `docs/flags.md`, the shell completions and the man pages are generated from the same definitions.
//!
//! [`command`] puts the flags and the subcommands together, `flags` declares the flags, `switches` adds one for each
//! collector and the environment variables, `values` turns their texts into values; `check` and `doctor` are the
//! subcommands with options of their own, `pages` those that print.

mod check;
mod command;
mod doctor;
mod flags;
mod pages;
mod switches;
mod values;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgMatches, FromArgMatches as _};

pub use command::command;
pub use switches::environment_variable;

use flags::{Log, Paths};
use switches::enabled;
use values::telemetry_path;

use crate::apiserver::{self, Address};
use crate::check_config;
use crate::host::Roots;
use crate::http;
use crate::http::ListenAddress;
use crate::modes::{self, MODES, Mode};
use crate::services;
use crate::values::{at_least_one, duration_flag, some_time};
use crate::{kubelet, log, runtime};

/// The default port. 9100–9999 is allotted to the last number and a DaemonSet on the host network meets every other
/// one.
pub const DEFAULT_LISTEN_ADDRESS: &str = ":10843";

/// What this process was started for.
#[derive(Clone, Debug)]
pub enum Invocation {
    /// Without a subcommand: serve the metrics.
    Serve(Box<Config>),
    /// `doctor`: judge this machine now.
    Doctor(crate::doctor::Options, Box<Config>),
    /// `check-config`: say what a kubelet would make of configuration files.
    CheckConfig(check_config::Options),
    /// `completions` and `man`: print this text.
    Print(String),
}

/// Everything that was asked for, as plain data.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen.
    pub listen: Vec<ListenAddress>,
    /// The web side.
    pub http: http::Settings,
    /// How long requests under way may take at shutdown.
    pub shutdown_grace: Duration,
    /// The observed machine.
    pub roots: Roots,
    /// Whether we run in a container of Kubernetes.
    pub in_a_pod: bool,
    /// The modes that run.
    pub modes: Vec<&'static Mode>,
    /// How what they share is found and asked.
    pub services: services::Settings,
    /// Their settings.
    pub settings: modes::Settings,
    /// The lowest level that is logged.
    pub log_level: tracing::Level,
    /// How log lines look.
    pub log_format: log::Format,
    /// What systemd says of stderr, if it is connected to the journal (`JOURNAL_STREAM`).
    pub journal_stream: Option<String>,
}

#[derive(clap::Args, Debug)]
#[group(skip)]
struct Flags {
    #[command(flatten)]
    web: Web,
    #[command(flatten)]
    paths: Paths,
    #[command(flatten)]
    kubelet: kubelet::handle::Settings,
    #[command(flatten)]
    kubepods: kubelet::kubepods::Settings,
    #[command(flatten)]
    runtime: runtime::Settings,
    #[command(flatten)]
    apiserver: apiserver::Settings,
    #[command(flatten)]
    modes: modes::Settings,
    #[command(flatten)]
    log: Log,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Web")]
struct Web {
    /// Where to listen; repeat it for several
    #[arg(
        long_help = "Address to listen on; repeat it for several. \":PORT\" means every address of the machine, IPv6 and IPv4",
        long = "web.listen-address", value_name = "HOST:PORT", default_value = DEFAULT_LISTEN_ADDRESS, value_delimiter = ','
    )]
    listen_address: Vec<ListenAddress>,
    /// Path of the metrics page
    #[arg(long = "web.telemetry-path", value_name = "PATH", default_value = "/metrics", value_parser = telemetry_path)]
    telemetry_path: String,
    /// Scrapes answered at the same time; further ones get 503
    #[arg(long = "web.max-requests", value_name = "N", default_value_t = 40, value_parser = at_least_one)]
    max_requests: usize,
    /// The longest that a scrape may take; Prometheus's own scrape timeout, less half a second, if that is shorter
    #[arg(long = "web.scrape-timeout", value_name = "DURATION", default_value = "5s", value_parser = some_time)]
    scrape_timeout: Duration,
    /// How long requests under way may take once SIGTERM or SIGINT has come
    #[arg(long = "web.shutdown-timeout", value_name = "DURATION", default_value = "5s", value_parser = duration_flag)]
    shutdown_timeout: Duration,
    /// TLS and passwords, as node_exporter's
    #[arg(
        long_help = "TLS, passwords, headers and a rate limit, in the format of Prometheus's exporter-toolkit; read again when it changes (docs/web.md)",
        long = "web.config.file",
        value_name = "FILE"
    )]
    config_file: Option<PathBuf>,
    /// Let in only those whose bearer token the apiserver accepts and permits to get the metrics path; needs the
    /// ClusterRole system:auth-delegator
    #[arg(long = "web.kubernetes-auth")]
    kubernetes_auth: bool,
}

/// What the kubelet sets in every container.
const IN_A_POD: &str = "KUBERNETES_SERVICE_HOST";

fn variable(name: &str) -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "this is the one reader of the environment")]
    std::env::var(name).ok()
}

/// What Kubernetes tells every container of where its apiserver is.
fn in_cluster() -> Option<Address> {
    let (host, port) = (variable(IN_A_POD)?, variable("KUBERNETES_SERVICE_PORT")?);
    match Address::in_cluster(&host, &port) {
        Ok(address) => Some(address),
        Err(error) => {
            eprintln!(
                "headroom-exporter: KUBERNETES_SERVICE_HOST={host:?} KUBERNETES_SERVICE_PORT={port:?} are ignored: {error}"
            );
            None
        }
    }
}

impl Invocation {
    /// Reads the arguments and the environment of this process. On `--help` and `--version` prints and exits 0; on a
    /// wrong value prints one line and exits 2.
    pub fn from_process() -> Self {
        #[expect(clippy::disallowed_methods, reason = "this is the one reader of the arguments")]
        let arguments = std::env::args_os();
        Self::parse(arguments).unwrap_or_else(|error| {
            if error.use_stderr() {
                eprintln!("headroom-exporter: {}", one_line(&error));
                std::process::exit(2);
            }
            error.exit()
        })
    }

    /// Reads these arguments, and the environment for those that are not given.
    ///
    /// # Errors
    /// clap's, for help and version too.
    pub fn parse(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Self, clap::Error> {
        let matches = command().try_get_matches_from(arguments)?;
        Ok(match matches.subcommand() {
            Some((doctor::NAME, matches)) => {
                let (options, config) = doctor::options(matches)?;
                Invocation::Doctor(options, Box::new(config))
            }
            Some((check::NAME, matches)) => Invocation::CheckConfig(check::options(matches)?),
            Some((pages::COMPLETIONS, matches)) => Invocation::Print(pages::completions(matches, command())),
            Some((pages::MAN, matches)) => Invocation::Print(pages::man(matches, command())?),
            _ => Invocation::Serve(Box::new(Config::of(&matches)?)),
        })
    }
}

impl Config {
    /// From the flags of a command that has them all, as `switches::with_flags` adds them.
    fn of(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let flags = Flags::from_arg_matches(matches)?;
        let mut services = services::Settings {
            kubelet: flags.kubelet,
            kubepods: flags.kubepods,
            apiserver: flags.apiserver,
            runtime: flags.runtime,
        };
        if let apiserver::Ask::IfConfigured { in_cluster: address } = &mut services.apiserver.ask {
            *address = in_cluster();
        }
        Ok(Config {
            listen: flags.web.listen_address,
            http: http::Settings {
                telemetry_path: flags.web.telemetry_path,
                max_requests: flags.web.max_requests,
                scrape_timeout: flags.web.scrape_timeout,
                config_file: flags.web.config_file,
                kubernetes_auth: flags.web.kubernetes_auth,
                limits: http::Limits::default(),
            },
            shutdown_grace: flags.web.shutdown_timeout,
            roots: Roots { proc: flags.paths.procfs, sys: flags.paths.sysfs, root: flags.paths.rootfs },
            in_a_pod: variable(IN_A_POD).is_some(),
            modes: MODES.iter().copied().filter(|mode| enabled(mode, matches)).collect(),
            services,
            settings: flags.modes,
            log_level: flags.log.level,
            log_format: flags.log.format,
            journal_stream: variable("JOURNAL_STREAM"),
        })
    }
}

/// clap explains in several lines; an operator reads the last line of a crash loop.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let sentences = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let text = sentences.filter(|line| !line.is_empty() && !line.starts_with("For more")).collect::<Vec<_>>().join(" ");
    format!("{} (see --help)", text.strip_prefix("error: ").unwrap_or(&text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Deadline;
    use crate::kubelet::kubepods::Kubepods;

    fn parse(arguments: &[&str]) -> Result<Config, clap::Error> {
        match Invocation::parse(["headroom-exporter"].iter().chain(arguments))? {
            Invocation::Serve(config) => Ok(*config),
            other => panic!("{other:?}"),
        }
    }

    fn ids(arguments: &[&str]) -> Vec<&'static str> {
        parse(arguments).unwrap().modes.iter().map(|mode| mode.id).collect()
    }

    #[test]
    fn the_definitions_are_sound() {
        command().debug_assert();
    }

    #[test]
    fn defaults() {
        let config = parse(&[]).unwrap();
        assert_eq!(config.listen, ["".to_owned() + DEFAULT_LISTEN_ADDRESS].map(|text| text.parse().unwrap()));
        assert_eq!(config.roots, Roots::default());
        assert_eq!(config.modes.len(), MODES.len());
        // Without flags the kubelet and the apiserver are asked where a pod has a token for them.
        assert_eq!(config.services.kubelet, kubelet::handle::Settings::default());
        assert_eq!(config.services.kubelet.configz.ask, kubelet::configz::Ask::IfToken);
        assert_eq!(config.services.apiserver, apiserver::Settings::default());
    }

    #[test]
    fn collectors_are_switched_as_in_node_exporter() {
        assert_eq!(ids(&["--collector.disable-defaults", "--collector.kmem"]), ["kmem"]);
        let others: Vec<&str> = MODES.iter().map(|mode| mode.id).filter(|id| *id != "kmem").collect();
        assert_eq!(ids(&["--no-collector.kmem"]), others);
        assert_eq!(ids(&["--no-collector.kmem", "--collector.kmem"]).len(), MODES.len());
        assert_eq!(ids(&["--collector.kmem", "--no-collector.kmem"]).len(), MODES.len() - 1);
        assert_eq!(ids(&["--collector.kmem=false"]).len(), MODES.len() - 1);
    }

    #[test]
    fn the_runtime_is_named_or_switched_off() {
        let runtime = |arguments| {
            let settings = parse(arguments).unwrap().services.runtime;
            format!("{:?}", runtime::Runtime::new(settings))
        };
        assert_eq!(runtime(&["--no-runtime"]), "Runtime(None)");
        assert_eq!(runtime(&["--runtime=false"]), "Runtime(None)");
        assert!(runtime(&["--no-runtime", "--runtime"]).contains("endpoint: None"));
        let named = runtime(&["--runtime.endpoint=/run/crio/crio.sock"]);
        assert!(named.contains("unix:///run/crio/crio.sock"), "{named}");
    }

    #[test]
    fn the_cap_of_the_walk_has_an_old_name() {
        let most = |arguments: &[&str]| {
            let kubepods = Kubepods::new(parse(arguments).unwrap().services.kubepods);
            kubepods.bounds(Deadline::after(Duration::ZERO)).directories
        };
        let (new, old) = ("--kubepods.max-directories=7", "--collector.cgroup_leak.max-directories=8");
        assert_eq!([&[][..], &[new], &[old], &[old, new]].map(most), [100_000, 7, 8, 8]);
        assert!(one_line(&parse(&["--kubepods.max-directories=0"]).unwrap_err()).contains("at least 1"));
    }

    #[test]
    fn listen_addresses_repeat() {
        let config = parse(&["--web.listen-address", "127.0.0.1:1", "--web.listen-address=[::1]:2"]).unwrap();
        assert_eq!(config.listen.len(), 2);
    }

    #[test]
    fn a_wrong_value_is_one_clear_line() {
        for (arguments, what) in [
            (vec!["--web.listen-address=9100"], "expected HOST:PORT"),
            (vec!["--web.max-requests=0"], "at least 1"),
            (vec!["--web.scrape-timeout=soon"], "expected a duration such as"),
            (vec!["--web.scrape-timeout=0s"], "longer than 0s"),
            (vec!["--web.telemetry-path=metrics"], "expected a path"),
            (vec!["--web.telemetry-path=/healthz"], "is taken"),
            (vec!["--collector.cpu"], "--collector.cpu"),
            (vec!["--runtime.endpoint=tcp://127.0.0.1:2375"], "expected unix:///PATH"),
            (vec!["--log.level=loud"], "[possible values: error, warn, info, debug]"),
            (vec!["--kubelet.url=http://127.0.0.1:10250"], "expected https://"),
            (vec!["--apiserver.url=http://10.0.0.1:6443"], "expected https://"),
            (vec!["--apiserver.endpoints=10.0.0.1:x"], "expected HOST:PORT"),
            (vec!["--apiserver.probe-path=livez"], "expected a path such as /livez"),
            (vec!["surplus"], "surplus"),
        ] {
            let line = one_line(&parse(&arguments).unwrap_err());
            assert!(line.contains(what) && !line.contains('\n'), "{arguments:?}: {line}");
        }
    }

    #[test]
    fn every_flag_has_its_variable() {
        for arg in command().get_arguments() {
            let Some(long) = arg.get_long() else { continue };
            let expected = !long.starts_with("no-") && !matches!(long, "help" | "version");
            assert_eq!(arg.get_env().is_some(), expected, "{long}");
        }
        assert_eq!(environment_variable("web.max-requests"), "HEADROOM_WEB_MAX_REQUESTS");
    }
}
