//! The flags that concern the observed machine, what is collected of it, and the log. Those of the web side are in `config.rs`.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{BoolishValueParser, PossibleValuesParser, TypedValueParser as _};

use super::LogFormat;
use super::values::{
    apiserver_endpoint, apiserver_url, at_least_one, duration, endpoint, kubelet_url, probe_path, socket_path,
    some_time,
};
use crate::apiserver::{self, Address};
use crate::kubelet::configz;
use crate::modes;

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "The observed machine")]
pub(super) struct Paths {
    /// Its procfs; in a pod with hostPID the pod's own /proc shows it
    #[arg(long = "path.procfs", value_name = "DIR", default_value = "/proc")]
    pub(super) procfs: PathBuf,
    /// Its sysfs with the cgroup file systems below it; in a pod: a mount of the host's /sys
    #[arg(long = "path.sysfs", value_name = "DIR", default_value = "/sys")]
    pub(super) sysfs: PathBuf,
    /// Its root file system; in a pod: a read-only mount of the host's /
    #[arg(long = "path.rootfs", value_name = "DIR", default_value = "/")]
    pub(super) rootfs: PathBuf,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Kubelet")]
pub(super) struct Kubelet {
    /// The kubelet's --root-dir, which decides what nodefs is [default: what the running kubelet says, else /var/lib/kubelet]
    #[arg(long = "kubelet.root-dir", value_name = "DIR")]
    pub(super) root_dir: Option<PathBuf>,
    /// The kubelet's configuration file [default: what the running kubelet was started with]
    #[arg(long = "kubelet.config", value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// The kubelet's drop-in directory [default: what the running kubelet was started with]
    #[arg(long = "kubelet.config-dir", value_name = "DIR")]
    pub(super) config_dir: Option<PathBuf>,
    /// The kubelet's own kubeconfig, which names the apiserver that it talks to; only its server is read [default: what the running kubelet was started with]
    #[arg(id = "kubelet.kubeconfig", long = "kubelet.kubeconfig", value_name = "FILE")]
    pub(super) kubeconfig: Option<PathBuf>,
    /// The kubelet's API, whose /configz tells what it really runs with: https://HOST:PORT, or off [default: https://127.0.0.1:10250 in a pod with a service-account token, else off]
    #[arg(long = "kubelet.url", value_name = "URL", value_parser = kubelet_url)]
    pub(super) url: Option<configz::Ask>,
    /// Token for the kubelet, read for each request; it needs the verb get on nodes/configz [default: that of the pod's service account]
    #[arg(long = "kubelet.token-file", value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// Who may have signed the kubelet's certificate, as PEM [default: ca.crt of the pod's service account]
    #[arg(long = "kubelet.ca-file", value_name = "FILE")]
    pub(super) ca_file: Option<PathBuf>,
    /// The name that the kubelet's certificate must be made out to [default: the host of the URL; for a loopback address the machine's host name too]
    #[arg(long = "kubelet.server-name", value_name = "NAME")]
    pub(super) server_name: Option<String>,
    /// Do not verify the kubelet's certificate: the token goes to whoever answers at that address
    #[arg(long = "kubelet.insecure-skip-verify")]
    pub(super) insecure_skip_verify: bool,
    /// How long an answer of /configz holds while the kubelet's process is the same
    #[arg(long = "kubelet.configz-interval", value_name = "DURATION", default_value = "5m", value_parser = some_time)]
    pub(super) configz_interval: Duration,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Apiserver")]
pub(super) struct Apiserver {
    /// The apiserver that this exporter's own probe asks: https://HOST:PORT, or off [default: that of --kubeconfig, else in a pod with a service account the cluster's, else off]
    #[arg(id = "apiserver.url", long = "apiserver.url", value_name = "URL", value_parser = apiserver_url)]
    pub(super) url: Option<apiserver::Ask>,
    /// A kubeconfig with the apiserver, the authority that signed its certificate, and our credentials (token or client certificate)
    #[arg(id = "kubeconfig", long = "kubeconfig", value_name = "FILE")]
    pub(super) kubeconfig: Option<PathBuf>,
    /// Token for the apiserver, read for each request [default: that of the kubeconfig, else of the pod's service account]
    #[arg(id = "apiserver.token-file", long = "apiserver.token-file", value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// Who may have signed the apiserver's certificate, as PEM [default: as for the token]
    #[arg(id = "apiserver.ca-file", long = "apiserver.ca-file", value_name = "FILE")]
    pub(super) ca_file: Option<PathBuf>,
    /// The name that the apiserver's certificate must be made out to [default: the host of the URL]
    #[arg(id = "apiserver.server-name", long = "apiserver.server-name", value_name = "NAME")]
    pub(super) server_name: Option<String>,
    /// Do not verify the apiserver's certificate: the token goes to whoever answers at that address
    #[arg(id = "apiserver.insecure-skip-verify", long = "apiserver.insecure-skip-verify")]
    pub(super) insecure_skip_verify: bool,
    /// What the probe asks for; /livez?exclude=etcd spares etcd, /version is answered without any check
    #[arg(id = "apiserver.probe-path", long = "apiserver.probe-path", value_name = "PATH", default_value = "/livez", value_parser = probe_path)]
    pub(super) probe_path: String,
    /// From one probe of a kind to the next, give or take a tenth; docs/performance.md has its price at the apiserver
    #[arg(id = "apiserver.probe-interval", long = "apiserver.probe-interval", value_name = "DURATION", default_value = "15s", value_parser = some_time)]
    pub(super) probe_interval: Duration,
    /// How long one probe, or one request for an object, may take
    #[arg(id = "apiserver.probe-timeout", long = "apiserver.probe-timeout", value_name = "DURATION", default_value = "10s", value_parser = some_time)]
    pub(super) probe_timeout: Duration,
    /// Ask the apiserver to ask this node's kubelet for /healthz; it needs the verb get on nodes/proxy, which lets its holder run commands in every pod
    #[arg(id = "apiserver.probe-kubelet", long = "apiserver.probe-kubelet")]
    pub(super) probe_kubelet: bool,
    /// Further addresses whose connections count as the apiserver's, beside those of the kubelet's kubeconfig and the probe's
    #[arg(id = "apiserver.endpoints", long = "apiserver.endpoints", value_name = "HOST:PORT", value_delimiter = ',', value_parser = apiserver_endpoint)]
    pub(super) endpoints: Vec<Address>,
    /// A connection on which written data waits longer than this for its acknowledgement is stalled
    #[arg(id = "apiserver.stall-threshold", long = "apiserver.stall-threshold", value_name = "DURATION", default_value = "10s", value_parser = some_time)]
    pub(super) stall_threshold: Duration,
    /// The name of this node [default: the kubelet's --hostname-override, else the machine's name]
    #[arg(long = "node-name", value_name = "NAME")]
    pub(super) node_name: Option<String>,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Collector node_status")]
pub(super) struct NodeStatus {
    /// From one read of this node's lease to the next, give or take a tenth
    #[arg(long = "collector.node_status.lease-interval", value_name = "DURATION", default_value = "10s", value_parser = some_time)]
    pub(super) lease_interval: Duration,
    /// From one read of this node's object to the next
    #[arg(long = "collector.node_status.node-interval", value_name = "DURATION", default_value = "60s", value_parser = some_time)]
    pub(super) node_interval: Duration,
    /// Conditions that whoever owns them sets once and never again, so that they are not orphaned when they are old
    #[arg(long = "collector.node_status.set-once", value_name = "NAME", default_values_t = modes::node_status::Settings::default().set_once, value_delimiter = ',')]
    pub(super) set_once: Vec<String>,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Container runtime")]
pub(super) struct Runtime {
    /// Ask the container runtime which containers and images there are (on by default). Only calls that list are made
    #[arg(id = "runtime", long = "runtime", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "true",
          default_missing_value = "true", hide_possible_values = true, hide_default_value = true,
          value_parser = BoolishValueParser::new(), overrides_with = "no-runtime")]
    pub(super) enabled: bool,
    /// Never talk to the container runtime: its socket is as good as root
    #[arg(id = "no-runtime", long = "no-runtime", overrides_with = "runtime")]
    pub(super) disabled: bool,
    /// The runtime's socket: CRI v1, or the Docker Engine API if it is called docker.sock [default: the first of the well-known ones that answers]
    #[arg(long = "runtime.endpoint", value_name = "unix:///PATH", value_parser = endpoint)]
    pub(super) endpoint: Option<String>,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Collector cgroup_leak")]
pub(super) struct CgroupLeak {
    /// How long the runtime must not have known a kubepods cgroup (without a runtime: it must have been empty) before it counts as orphaned; with a runtime at least 5s. A dead pod's is kept while its volumes are mounted
    #[arg(long = "collector.cgroup_leak.orphan-grace", value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub(super) orphan_grace: Duration,
    /// Cgroup directories that are walked in one scrape at the most
    #[arg(long = "collector.cgroup_leak.max-directories", value_name = "N", default_value_t = 100_000, value_parser = at_least_one)]
    pub(super) max_directories: usize,
    /// cgroup v1 hierarchies whose directories are counted, or "all"
    #[arg(
        long = "collector.cgroup_leak.v1-hierarchies",
        value_name = "NAME",
        default_value = "memory",
        value_delimiter = ','
    )]
    pub(super) v1_hierarchies: Vec<String>,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Collector open_files")]
pub(super) struct OpenFiles {
    /// Processes shown in detail: this many nearest their limit and this many with the most file descriptors
    #[arg(long = "collector.open_files.top", value_name = "N", default_value_t = 10)]
    pub(super) top: usize,
    /// Commands shown by name; the rest is summed as "other"
    #[arg(long = "collector.open_files.commands", value_name = "N", default_value_t = 20)]
    pub(super) commands: usize,
    /// File descriptors whose kind is read in one scrape at the most, over all processes in detail
    #[arg(long = "collector.open_files.max-readlinks", value_name = "N", default_value_t = 10_000)]
    pub(super) max_readlinks: usize,
    /// Processes that are always shown in detail, by name
    #[arg(long = "collector.open_files.daemons", value_name = "NAME", default_values_t = open_files_defaults().daemons, value_delimiter = ',')]
    pub(super) daemons: Vec<String>,
    /// Path of a further socket of the container runtime whose clients are shown, beside the well-known ones; repeat it for several
    #[arg(long = "collector.open_files.runtime-sockets", value_name = "PATH", value_delimiter = ',', value_parser = socket_path)]
    pub(super) runtime_sockets: Vec<String>,
    /// File descriptors read in one scrape at the most to find who holds connections to the runtime's sockets
    #[arg(long = "collector.open_files.socket-max-readlinks", value_name = "N", default_value_t = open_files_defaults().socket_max_readlinks)]
    pub(super) socket_max_readlinks: usize,
    /// File descriptors read in one scrape at the most to find inotify instances
    #[arg(long = "collector.open_files.inotify-max-readlinks", value_name = "N", default_value_t = 10_000)]
    pub(super) inotify_max_readlinks: usize,
    /// Of these, file descriptors read again in turn although nothing says that they changed
    #[arg(long = "collector.open_files.inotify-reexamine", value_name = "N", default_value_t = 500)]
    pub(super) inotify_reexamine: usize,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Collector memory_volume")]
pub(super) struct MemoryVolume {
    /// Memory-backed volumes shown at the most: those nearest their limit
    #[arg(long = "collector.memory_volume.max-volumes", value_name = "N", default_value_t = 100)]
    pub(super) max_volumes: usize,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Collector pod_interface")]
pub(super) struct PodInterface {
    /// Pods whose interfaces are read in one scrape at the most
    #[arg(long = "collector.pod_interface.max-pods", value_name = "N", default_value_t = 500, value_parser = at_least_one)]
    pub(super) max_pods: usize,
    /// How long a pod in which only the pause container is known to run must have lacked an interface before it counts, and how long an interface of the machine must have been there for its loss to count
    #[arg(long = "collector.pod_interface.grace", value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub(super) grace: Duration,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Log")]
pub(super) struct Log {
    /// Lowest level that is logged
    #[arg(long = "log.level", value_name = "LEVEL", default_value = "info",
          value_parser = PossibleValuesParser::new(["error", "warn", "info", "debug"]).try_map(|level| level.parse::<tracing::Level>()))]
    pub(super) level: tracing::Level,
    /// Form of a log line
    #[arg(long = "log.format", value_name = "FORMAT", default_value = "logfmt",
          value_parser = PossibleValuesParser::new(["logfmt", "json"]).map(|format| if format == "json" { LogFormat::Json } else { LogFormat::Logfmt }))]
    pub(super) format: LogFormat,
}

fn open_files_defaults() -> modes::open_files::Settings {
    modes::open_files::Settings::default()
}
