//! Arguments and environment become plain data: the only reader of `argv` and of the environment.
//!
//! Every flag can also be given as an environment variable: `--web.max-requests` is `HEADROOM_WEB_MAX_REQUESTS`. The command
//! line wins. `docs/flags.md`, the shell completions and the man pages are generated from the same definitions.
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

use flags::{Apiserver, CgroupLeak, Kubelet, Log, MemoryVolume, NodeStatus, OpenFiles, Paths, PodInterface, Runtime};
use switches::enabled;
use values::{at_least_one, duration, some_time, telemetry_path};

use crate::apiserver::{self, Address};
use crate::check_config;
use crate::host::Roots;
use crate::http;
use crate::http::ListenAddress;
use crate::kubelet::configz;
use crate::kubelet::node::Node;
use crate::kubelet::process::Finder;
use crate::kubelet::sources::Overrides;
use crate::modes::{self, MODES, Mode};

/// The default port. 9100–9999 is allotted to the last number and a DaemonSet on the host network meets every other one.
pub const DEFAULT_LISTEN_ADDRESS: &str = ":10843";

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// `level=info msg=…`
    Logfmt,
    /// One JSON object a line.
    Json,
}

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
    /// Their settings.
    pub settings: modes::Settings,
    /// The lowest level that is logged.
    pub log_level: tracing::Level,
    /// How log lines look.
    pub log_format: LogFormat,
}

#[derive(clap::Args, Debug)]
struct Flags {
    #[command(flatten)]
    web: Web,
    #[command(flatten)]
    paths: Paths,
    #[command(flatten)]
    kubelet: Kubelet,
    #[command(flatten)]
    apiserver: Apiserver,
    #[command(flatten)]
    runtime: Runtime,
    #[command(flatten)]
    cgroup_leak: CgroupLeak,
    #[command(flatten)]
    open_files: OpenFiles,
    #[command(flatten)]
    memory_volume: MemoryVolume,
    #[command(flatten)]
    pod_interface: PodInterface,
    #[command(flatten)]
    node_status: NodeStatus,
    #[command(flatten)]
    log: Log,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Web")]
struct Web {
    /// Address to listen on; repeat it for several. ":PORT" means every address of the machine, IPv6 and IPv4
    #[arg(long = "web.listen-address", value_name = "HOST:PORT", default_value = DEFAULT_LISTEN_ADDRESS, value_delimiter = ',')]
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
    #[arg(long = "web.shutdown-timeout", value_name = "DURATION", default_value = "5s", value_parser = duration)]
    shutdown_timeout: Duration,
    /// TLS, passwords, headers and a rate limit, in the format of Prometheus's exporter-toolkit; read again when it changes (docs/web.md)
    #[arg(long = "web.config.file", value_name = "FILE")]
    config_file: Option<PathBuf>,
    /// Let in who sends a bearer token that the apiserver knows and that may get the metrics path; needs the ClusterRole system:auth-delegator
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
                "headroom-exporter: KUBERNETES_SERVICE_HOST={host:?} KUBERNETES_SERVICE_PORT={port:?} are passed over: {error}"
            );
            None
        }
    }
}

impl Invocation {
    /// Reads the arguments and the environment of this process. On `--help` and `--version` prints and exits 0; on a wrong value
    /// prints one line and exits 2.
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
        let kubelet = Overrides {
            config: flags.kubelet.config,
            config_dir: flags.kubelet.config_dir,
            root_dir: flags.kubelet.root_dir,
            kubeconfig: flags.kubelet.kubeconfig,
        };
        let finder = Finder::default();
        let settings = modes::Settings {
            node: Node::new(flags.apiserver.node_name, kubelet.clone(), finder.clone()),
            kubelet,
            finder,
            apiserver: apiserver::Apiserver::new(apiserver::Settings {
                ask: flags.apiserver.url.unwrap_or_else(|| apiserver::Ask::IfConfigured { in_cluster: in_cluster() }),
                kubeconfig: flags.apiserver.kubeconfig,
                token_file: flags.apiserver.token_file,
                ca_file: flags.apiserver.ca_file,
                server_name: flags.apiserver.server_name,
                insecure_skip_verify: flags.apiserver.insecure_skip_verify,
                path: flags.apiserver.probe_path,
                timeout: flags.apiserver.probe_timeout,
            }),
            apiserver_connection: modes::apiserver_connection::Settings {
                endpoints: flags.apiserver.endpoints,
                stall_threshold: flags.apiserver.stall_threshold,
                interval: flags.apiserver.probe_interval,
                probe_kubelet: flags.apiserver.probe_kubelet,
            },
            node_status: modes::node_status::Settings {
                lease_interval: flags.node_status.lease_interval,
                node_interval: flags.node_status.node_interval,
                set_once: flags.node_status.set_once,
            },
            cgroup_leak: modes::cgroup_leak::Settings {
                orphan_grace: flags.cgroup_leak.orphan_grace,
                max_directories: flags.cgroup_leak.max_directories,
                v1_hierarchies: flags.cgroup_leak.v1_hierarchies,
            },
            eviction: modes::eviction::Settings {
                configz: configz::Settings {
                    ask: flags.kubelet.url.unwrap_or(configz::Ask::IfToken),
                    token_file: flags.kubelet.token_file,
                    ca_file: flags.kubelet.ca_file,
                    server_name: flags.kubelet.server_name,
                    insecure_skip_verify: flags.kubelet.insecure_skip_verify,
                    interval: flags.kubelet.configz_interval,
                },
            },
            open_files: modes::open_files::Settings {
                top: flags.open_files.top,
                commands: flags.open_files.commands,
                max_readlinks: flags.open_files.max_readlinks,
                daemons: flags.open_files.daemons,
                runtime_sockets: flags.open_files.runtime_sockets,
                socket_max_readlinks: flags.open_files.socket_max_readlinks,
                inotify_max_readlinks: flags.open_files.inotify_max_readlinks,
                inotify_reexamine: flags.open_files.inotify_reexamine,
            },
            memory_volume: modes::memory_volume::Settings { max_volumes: flags.memory_volume.max_volumes },
            pod_interface: modes::pod_interface::Settings {
                max_pods: flags.pod_interface.max_pods,
                grace: flags.pod_interface.grace,
            },
            runtime: crate::runtime::Runtime::new(crate::runtime::Settings {
                endpoint: flags.runtime.endpoint,
                disabled: flags.runtime.disabled || !flags.runtime.enabled,
                ..crate::runtime::Settings::default()
            }),
        };
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
            settings,
            log_level: flags.log.level,
            log_format: flags.log.format,
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
        assert_eq!(config.settings.open_files, modes::open_files::Settings::default());
        assert_eq!(config.settings.cgroup_leak, modes::cgroup_leak::Settings::default());
        assert_eq!(config.settings.apiserver_connection, modes::apiserver_connection::Settings::default());
        assert_eq!(config.settings.node_status, modes::node_status::Settings::default());
        assert_eq!(config.settings.memory_volume, modes::memory_volume::Settings::default());
        assert_eq!(config.settings.pod_interface, modes::pod_interface::Settings::default());
        // Without flags the kubelet is asked where there is a token; what nobody set up at all asks nobody.
        let configz = modes::eviction::Settings::default().configz;
        let expected = configz::Settings { ask: configz::Ask::IfToken, ..configz };
        assert_eq!(config.settings.eviction.configz, expected);
    }

    #[test]
    fn collectors_are_switched_as_in_node_exporter() {
        assert_eq!(ids(&["--collector.disable-defaults", "--collector.kmem"]), ["kmem"]);
        assert_eq!(
            ids(&["--no-collector.kmem"]),
            [
                "cgroup_leak",
                "eviction",
                "open_files",
                "memory_volume",
                "pod_interface",
                "apiserver_connection",
                "node_status"
            ]
        );
        assert_eq!(ids(&["--no-collector.kmem", "--collector.kmem"]).len(), MODES.len());
        assert_eq!(ids(&["--collector.kmem", "--no-collector.kmem"]).len(), MODES.len() - 1);
        assert_eq!(ids(&["--collector.kmem=false"]).len(), MODES.len() - 1);
    }

    #[test]
    fn the_runtime_is_named_or_switched_off() {
        let runtime = |arguments| format!("{:?}", parse(arguments).unwrap().settings.runtime);
        assert_eq!(runtime(&["--no-runtime"]), "Runtime(None)");
        assert_eq!(runtime(&["--runtime=false"]), "Runtime(None)");
        assert!(runtime(&["--no-runtime", "--runtime"]).contains("endpoint: None"));
        let named = runtime(&["--runtime.endpoint=/run/crio/crio.sock"]);
        assert!(named.contains("unix:///run/crio/crio.sock"), "{named}");
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
