//! Arguments and environment become plain data: the only reader of `argv` and of the environment.
//!
//! Every flag can also be given as an environment variable: `--web.max-requests` is `HEADROOM_WEB_MAX_REQUESTS`. The command
//! line wins. `docs/flags.md` is generated from the same definitions.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{BoolishValueParser, PossibleValuesParser, TypedValueParser as _};
use clap::{Arg, ArgAction, ArgMatches, Args as _, Command, FromArgMatches as _};

use crate::apiserver::{self, Address};
use crate::host::Roots;
use crate::http::ListenAddress;
use crate::kubelet::configz;
use crate::kubelet::node::Node;
use crate::kubelet::process::Finder;
use crate::kubelet::sources::Overrides;
use crate::modes::{self, MODES, Mode};
use crate::{about, http};

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
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "The observed machine")]
struct Paths {
    /// Its procfs; in a pod with hostPID the pod's own /proc shows it
    #[arg(long = "path.procfs", value_name = "DIR", default_value = "/proc")]
    procfs: PathBuf,
    /// Its sysfs with the cgroup file systems below it; in a pod: a mount of the host's /sys
    #[arg(long = "path.sysfs", value_name = "DIR", default_value = "/sys")]
    sysfs: PathBuf,
    /// Its root file system; in a pod: a read-only mount of the host's /
    #[arg(long = "path.rootfs", value_name = "DIR", default_value = "/")]
    rootfs: PathBuf,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Kubelet")]
struct Kubelet {
    /// The kubelet's --root-dir, which decides what nodefs is [default: what the running kubelet says, else /var/lib/kubelet]
    #[arg(long = "kubelet.root-dir", value_name = "DIR")]
    root_dir: Option<PathBuf>,
    /// The kubelet's configuration file [default: what the running kubelet was started with]
    #[arg(long = "kubelet.config", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The kubelet's drop-in directory [default: what the running kubelet was started with]
    #[arg(long = "kubelet.config-dir", value_name = "DIR")]
    config_dir: Option<PathBuf>,
    /// The kubelet's own kubeconfig, which names the apiserver that it talks to; only its server is read [default: what the running kubelet was started with]
    #[arg(id = "kubelet.kubeconfig", long = "kubelet.kubeconfig", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The kubelet's API, whose /configz tells what it really runs with: https://HOST:PORT, or off [default: https://127.0.0.1:10250 in a pod with a service-account token, else off]
    #[arg(long = "kubelet.url", value_name = "URL", value_parser = kubelet_url)]
    url: Option<configz::Ask>,
    /// Token for the kubelet, read for each request; it needs the verb get on nodes/configz [default: that of the pod's service account]
    #[arg(long = "kubelet.token-file", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Who may have signed the kubelet's certificate, as PEM [default: ca.crt of the pod's service account]
    #[arg(long = "kubelet.ca-file", value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// The name that the kubelet's certificate must be made out to [default: the host of the URL; for a loopback address the machine's host name too]
    #[arg(long = "kubelet.server-name", value_name = "NAME")]
    server_name: Option<String>,
    /// Do not verify the kubelet's certificate: the token goes to whoever answers at that address
    #[arg(long = "kubelet.insecure-skip-verify")]
    insecure_skip_verify: bool,
    /// How long an answer of /configz holds while the kubelet's process is the same
    #[arg(long = "kubelet.configz-interval", value_name = "DURATION", default_value = "5m", value_parser = some_time)]
    configz_interval: Duration,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Apiserver")]
struct Apiserver {
    /// The apiserver that this exporter's own probe asks: https://HOST:PORT, or off [default: that of --kubeconfig, else in a pod with a service account the cluster's, else off]
    #[arg(id = "apiserver.url", long = "apiserver.url", value_name = "URL", value_parser = apiserver_url)]
    url: Option<apiserver::Ask>,
    /// A kubeconfig with the apiserver, the authority that signed its certificate, and our credentials (token or client certificate)
    #[arg(id = "kubeconfig", long = "kubeconfig", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Token for the apiserver, read for each request [default: that of the kubeconfig, else of the pod's service account]
    #[arg(id = "apiserver.token-file", long = "apiserver.token-file", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Who may have signed the apiserver's certificate, as PEM [default: as for the token]
    #[arg(id = "apiserver.ca-file", long = "apiserver.ca-file", value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// The name that the apiserver's certificate must be made out to [default: the host of the URL]
    #[arg(id = "apiserver.server-name", long = "apiserver.server-name", value_name = "NAME")]
    server_name: Option<String>,
    /// Do not verify the apiserver's certificate: the token goes to whoever answers at that address
    #[arg(id = "apiserver.insecure-skip-verify", long = "apiserver.insecure-skip-verify")]
    insecure_skip_verify: bool,
    /// What the probe asks for; /livez?exclude=etcd spares etcd, /version is answered without any check
    #[arg(id = "apiserver.probe-path", long = "apiserver.probe-path", value_name = "PATH", default_value = "/livez", value_parser = probe_path)]
    probe_path: String,
    /// From one probe of a kind to the next, give or take a tenth; docs/performance.md has its price at the apiserver
    #[arg(id = "apiserver.probe-interval", long = "apiserver.probe-interval", value_name = "DURATION", default_value = "15s", value_parser = some_time)]
    probe_interval: Duration,
    /// How long one probe, or one request for an object, may take
    #[arg(id = "apiserver.probe-timeout", long = "apiserver.probe-timeout", value_name = "DURATION", default_value = "10s", value_parser = some_time)]
    probe_timeout: Duration,
    /// Ask the apiserver to ask this node's kubelet for /healthz; it needs the verb get on nodes/proxy, which lets its holder run commands in every pod
    #[arg(id = "apiserver.probe-kubelet", long = "apiserver.probe-kubelet")]
    probe_kubelet: bool,
    /// Further addresses whose connections count as the apiserver's, beside those of the kubelet's kubeconfig and the probe's
    #[arg(id = "apiserver.endpoints", long = "apiserver.endpoints", value_name = "HOST:PORT", value_delimiter = ',', value_parser = apiserver_endpoint)]
    endpoints: Vec<Address>,
    /// A connection on which written data waits longer than this for its acknowledgement is stalled
    #[arg(id = "apiserver.stall-threshold", long = "apiserver.stall-threshold", value_name = "DURATION", default_value = "10s", value_parser = some_time)]
    stall_threshold: Duration,
    /// The name of this node [default: the kubelet's --hostname-override, else the machine's name]
    #[arg(long = "node-name", value_name = "NAME")]
    node_name: Option<String>,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Collector node_status")]
struct NodeStatus {
    /// From one read of this node's lease to the next, give or take a tenth
    #[arg(long = "collector.node_status.lease-interval", value_name = "DURATION", default_value = "15s", value_parser = some_time)]
    lease_interval: Duration,
    /// From one read of this node's object to the next
    #[arg(long = "collector.node_status.node-interval", value_name = "DURATION", default_value = "60s", value_parser = some_time)]
    node_interval: Duration,
    /// Conditions that whoever owns them sets once and never again, so that they are not orphaned when they are old
    #[arg(long = "collector.node_status.set-once", value_name = "NAME", default_values_t = modes::node_status::Settings::default().set_once, value_delimiter = ',')]
    set_once: Vec<String>,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Container runtime")]
struct Runtime {
    /// Ask the container runtime which containers and images there are (on by default). Only calls that list are made
    #[arg(id = "runtime", long = "runtime", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "true",
          default_missing_value = "true", hide_possible_values = true, hide_default_value = true,
          value_parser = BoolishValueParser::new(), overrides_with = "no-runtime")]
    enabled: bool,
    /// Never talk to the container runtime: its socket is as good as root
    #[arg(id = "no-runtime", long = "no-runtime", overrides_with = "runtime")]
    disabled: bool,
    /// The runtime's socket: CRI v1, or the Docker Engine API if it is called docker.sock [default: the first of the well-known ones that answers]
    #[arg(long = "runtime.endpoint", value_name = "unix:///PATH", value_parser = endpoint)]
    endpoint: Option<String>,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Collector cgroup_leak")]
struct CgroupLeak {
    /// How long the runtime must not have known a kubepods cgroup (without a runtime: it must have been empty) before it counts as orphaned; with a runtime at least 5s. A dead pod's is kept while its volumes are mounted
    #[arg(long = "collector.cgroup_leak.orphan-grace", value_name = "DURATION", default_value = "5m", value_parser = duration)]
    orphan_grace: Duration,
    /// Cgroup directories that are walked in one scrape at the most
    #[arg(long = "collector.cgroup_leak.max-directories", value_name = "N", default_value_t = 100_000, value_parser = at_least_one)]
    max_directories: usize,
    /// cgroup v1 hierarchies whose directories are counted, or "all"
    #[arg(
        long = "collector.cgroup_leak.v1-hierarchies",
        value_name = "NAME",
        default_value = "memory",
        value_delimiter = ','
    )]
    v1_hierarchies: Vec<String>,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Collector open_files")]
struct OpenFiles {
    /// Processes shown in detail: this many nearest their limit and this many with the most file descriptors
    #[arg(long = "collector.open_files.top", value_name = "N", default_value_t = 10)]
    top: usize,
    /// Commands shown by name; the rest is summed as "other"
    #[arg(long = "collector.open_files.commands", value_name = "N", default_value_t = 20)]
    commands: usize,
    /// File descriptors whose kind is read in one scrape at the most, over all processes in detail
    #[arg(long = "collector.open_files.max-readlinks", value_name = "N", default_value_t = 10_000)]
    max_readlinks: usize,
    /// Processes that are always shown in detail, by name
    #[arg(long = "collector.open_files.daemons", value_name = "NAME", default_values_t = open_files_defaults().daemons, value_delimiter = ',')]
    daemons: Vec<String>,
    /// Path of a further socket of the container runtime whose clients are shown, beside the well-known ones; repeat it for several
    #[arg(long = "collector.open_files.runtime-sockets", value_name = "PATH", value_delimiter = ',', value_parser = socket_path)]
    runtime_sockets: Vec<String>,
    /// File descriptors read in one scrape at the most to find who holds connections to the runtime's sockets
    #[arg(long = "collector.open_files.socket-max-readlinks", value_name = "N", default_value_t = open_files_defaults().socket_max_readlinks)]
    socket_max_readlinks: usize,
    /// File descriptors read in one scrape at the most to find inotify instances
    #[arg(long = "collector.open_files.inotify-max-readlinks", value_name = "N", default_value_t = 10_000)]
    inotify_max_readlinks: usize,
    /// Of these, file descriptors read again in turn although nothing says that they changed
    #[arg(long = "collector.open_files.inotify-reexamine", value_name = "N", default_value_t = 500)]
    inotify_reexamine: usize,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Collector memory_volume")]
struct MemoryVolume {
    /// Memory-backed volumes shown at the most: those nearest their limit
    #[arg(long = "collector.memory_volume.max-volumes", value_name = "N", default_value_t = 100)]
    max_volumes: usize,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Collector pod_interface")]
struct PodInterface {
    /// Pods whose interfaces are read in one scrape at the most
    #[arg(long = "collector.pod_interface.max-pods", value_name = "N", default_value_t = 500, value_parser = at_least_one)]
    max_pods: usize,
    /// How long a pod in which only the pause container is known to run must have lacked an interface before it counts, and how long an interface of the machine must have been there for its loss to count
    #[arg(long = "collector.pod_interface.grace", value_name = "DURATION", default_value = "10s", value_parser = duration)]
    grace: Duration,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Log")]
struct Log {
    /// Lowest level that is logged
    #[arg(long = "log.level", value_name = "LEVEL", default_value = "info",
          value_parser = PossibleValuesParser::new(["error", "warn", "info", "debug"]).try_map(|level| level.parse::<tracing::Level>()))]
    level: tracing::Level,
    /// Form of a log line
    #[arg(long = "log.format", value_name = "FORMAT", default_value = "logfmt",
          value_parser = PossibleValuesParser::new(["logfmt", "json"]).map(|format| if format == "json" { LogFormat::Json } else { LogFormat::Logfmt }))]
    format: LogFormat,
}

fn open_files_defaults() -> modes::open_files::Settings {
    modes::open_files::Settings::default()
}

fn telemetry_path(text: &str) -> Result<String, String> {
    let reserved = ["/healthz", "/readyz"];
    if !text.starts_with('/') || text.contains(['{', '}', '?', '#', '*', ' ']) {
        return Err("expected a path such as /metrics".to_owned());
    }
    if reserved.contains(&text) {
        return Err(format!("{text} is taken"));
    }
    Ok(text.to_owned())
}

fn endpoint(text: &str) -> Result<String, String> {
    match crate::runtime::endpoint_path(text) {
        Some(path) => Ok(format!("unix://{path}")),
        None => Err("expected unix:///PATH or /PATH of a socket".to_owned()),
    }
}

fn socket_path(text: &str) -> Result<String, String> {
    let path = crate::runtime::endpoint_path(text).ok_or("expected unix:///PATH or /PATH of a socket")?;
    Ok(path.to_owned())
}

fn kubelet_url(text: &str) -> Result<configz::Ask, String> {
    if text == "off" { Ok(configz::Ask::Never) } else { text.parse().map(configz::Ask::At) }
}

fn apiserver_url(text: &str) -> Result<apiserver::Ask, String> {
    if text == "off" { Ok(apiserver::Ask::Never) } else { text.parse().map(apiserver::Ask::At) }
}

fn apiserver_endpoint(text: &str) -> Result<Address, String> {
    let wrong = || format!("expected HOST:PORT, found {text:?}");
    if text.contains('/') {
        return Err(wrong());
    }
    format!("https://{text}").parse().map_err(|_| wrong())
}

fn probe_path(text: &str) -> Result<String, String> {
    let fits = |byte: u8| byte.is_ascii_graphic() && byte != b'#';
    if text.starts_with('/') && text.bytes().all(fits) {
        Ok(text.to_owned())
    } else {
        Err("expected a path such as /livez".to_owned())
    }
}

/// What Kubernetes tells every container of where its apiserver is.
fn in_cluster() -> Option<Address> {
    #[expect(clippy::disallowed_methods, reason = "this is the one reader of the environment")]
    let variable = |name: &str| std::env::var(name).ok();
    let (host, port) = (variable("KUBERNETES_SERVICE_HOST")?, variable("KUBERNETES_SERVICE_PORT")?);
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

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("{error}")),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    crate::kubelet::quantity::duration(text).map_err(|_| "expected a duration such as 500ms, 10s or 1m30s".to_owned())
}

fn some_time(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|time| if time.is_zero() { Err("must be longer than 0s".to_owned()) } else { Ok(time) })
}

/// The command with every flag, every environment variable and every help text.
pub fn command() -> Command {
    let command = Command::new("headroom-exporter")
        .about("Prometheus exporter: how far this node is from the failures that take nodes down while every dashboard is green")
        .version(about::VERSION)
        .args_override_self(true)
        .max_term_width(110);
    let mut command = Flags::augment_args(command).arg(
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

impl Config {
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
        let flags = Flags::from_arg_matches(&matches)?;
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
            },
            shutdown_grace: flags.web.shutdown_timeout,
            roots: Roots { proc: flags.paths.procfs, sys: flags.paths.sysfs, root: flags.paths.rootfs },
            modes: MODES.iter().copied().filter(|mode| enabled(mode, &matches)).collect(),
            settings,
            log_level: flags.log.level,
            log_format: flags.log.format,
        })
    }
}

fn enabled(mode: &Mode, matches: &ArgMatches) -> bool {
    let on = switch(mode);
    if matches.get_flag(&format!("no-{on}")) {
        return false;
    }
    matches.get_one::<bool>(&on).copied().unwrap_or_else(|| !matches.get_flag("collector.disable-defaults"))
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
        Config::parse(["headroom-exporter"].iter().chain(arguments))
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
            let long = arg.get_long().unwrap();
            let expected = !long.starts_with("no-") && !matches!(long, "help" | "version");
            assert_eq!(arg.get_env().is_some(), expected, "{long}");
        }
        assert_eq!(environment_variable("web.max-requests"), "HEADROOM_WEB_MAX_REQUESTS");
    }
}
