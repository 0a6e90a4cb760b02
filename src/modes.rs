//! The failure modes: a file and a folder each, one line each in [`MODES`].
//!
//! A mode is one way in which a node fails while every dashboard is green. Whatever is said of all modes elsewhere
//! follows from [`MODES`] and from the folders that have a mode's name; `CONTRIBUTING.md` has what a new one touches,
//! and `tests/fast/catalog.rs` is red until each of it exists.

pub mod apiserver_connection;
pub mod cgroup_leak;
pub mod cni_leak;
pub mod eviction;
pub mod kmem;
pub mod memory_volume;
pub mod node_status;
pub mod open_files;
pub mod pod_interface;
mod schedule;
pub mod system_filesystem;
pub mod task_limit;
mod unknown_to_runtime;
mod utilization;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::host::cgroup::walk::{Extent, Stopped};
use crate::host::{Deadline, Host};
use crate::kubelet::kubepods::Walk;
use crate::metric::{DroppedPod, Metric, Samples};
use crate::services::Services;

pub use utilization::{Fullest, Slope, Utilization};

/// What a collector gets to work with for one scrape.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The machine that is read.
    pub host: &'a Host,
    /// When the answer must be there. Anything that loops looks at it now and then and stops, with a partial result.
    pub deadline: Deadline,
    /// When the scrape began. What several modes look at is looked at once after that, and shared.
    pub began: Instant,
}

impl<'a> Context<'a> {
    /// Of a scrape that begins now.
    pub fn new(host: &'a Host, deadline: Deadline) -> Self {
        Context { host, deadline, began: Instant::now() }
    }
}

/// True if a walk below kubepods saw every pod and container; else it is noted why not. What a pod makes in its own
/// cgroups may be missing all the same: that is noted as that pod's.
fn is_whole(walk: &Walk, samples: &mut Samples) -> bool {
    let (pods, others) = walk.missing();
    samples.drop_count(others);
    samples.drop_of_pods(pods.into_iter().map(|(uid, count)| (DroppedPod { uid, ..DroppedPod::default() }, count)));
    is_not_cut(&walk.extent, samples)
}

/// True if a walk came to its end; else it is noted why not.
fn is_not_cut(extent: &Extent, samples: &mut Samples) -> bool {
    match &extent.stopped {
        None => return true,
        Some(Stopped::Bound(left)) => samples.drop_count(*left),
        Some(Stopped::Failed(error)) => samples.fail(error.clone()),
    }
    false
}

/// Reads one mode's evidence. Called once per scrape, never twice at the same time.
///
/// What is *read* is built fresh each time, so that vanished objects vanish from the page. A collector may keep state
/// between scrapes behind a mutex (ages, caches of expensive facts), bounded by a cap of its own.
pub trait Collector: Send + Sync {
    /// The numbers, and in them the errors of what could not be read.
    ///
    /// # Errors
    /// [`crate::error::Reason::Absent`] means that this machine has no such thing at all: outcome `not_applicable`. Any
    /// other error means that nothing could be read: outcome `failed`. A partial result is `Ok` with [`Samples::fail`].
    fn collect(&self, context: Context<'_>) -> Result<Samples>;

    /// What of this mode works between scrapes. It shares its instruments with the collector, which shows them.
    fn probes(&self) -> Vec<Arc<dyn Probe>> {
        Vec::new()
    }
}

/// Works in the background on its own clock, where a scrape would be too late or too seldom: it tries something itself
/// and records each event in counters and histograms that live as long as the exporter.
///
/// [`crate::probes`] runs it and starts it anew should it panic.
pub trait Probe: Send + Sync {
    /// What it does, for the log.
    fn name(&self) -> &'static str;

    /// The work: for ever, or until there is nothing to do on this machine. Dropped at shutdown, wherever it is.
    fn run(self: Arc<Self>, host: Arc<Host>) -> Work;

    /// Told of a panic of [`Probe::run`], so that the next scrape shows it.
    fn panicked(&self, error: Error);
}

/// What a probe does.
pub type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One failure mode: everything that names it, in one place.
#[derive(Debug)]
pub struct Mode {
    /// The id: Rust file, `--collector.<id>`, `collector` label, alerts folder, fixture folder, dashboard row.
    pub id: &'static str,
    /// What fails, in a few words, for `--help` and the landing page.
    pub title: &'static str,
    /// What happened where it failed, in Markdown, for the README.
    pub happened: &'static str,
    /// Every metric that it may expose.
    pub metrics: &'static [&'static Metric],
    /// Its headline figure; nothing for a mode of which there is none.
    pub utilization: Option<Utilization>,
    /// What its collector keeps between scrapes, bounded, for docs/architecture.md.
    pub keeps: Option<&'static str>,
    /// It fails while the container runtime is away. That has an alert of its own, and none of each such collector.
    pub needs_runtime: bool,
    /// What people are told of it.
    pub alerts: Alerts,
    /// Builds its collector.
    pub build: fn(&Settings, &Services) -> Box<dyn Collector>,
}

/// One folder below `alerts/`: the same files that Prometheus and people read are built into the program.
#[derive(Debug)]
pub struct Alerts {
    /// The text of its rules.yaml.
    pub rules: &'static str,
    /// The text of its runbook.md.
    pub runbook: &'static str,
}

/// The [`Alerts`] of the folder with this name.
macro_rules! alerts {
    ($folder:literal) => {
        $crate::modes::Alerts {
            rules: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/alerts/", $folder, "/rules.yaml")),
            runbook: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/alerts/", $folder, "/runbook.md")),
        }
    };
}
pub(crate) use alerts;

/// The settings of every mode, each a group of flags that its file declares.
#[derive(clap::Args, Clone, Debug, Default)]
#[group(skip)]
pub struct Settings {
    /// Of [`apiserver_connection`]; first, because its flags go on with those of the apiserver's client.
    #[command(flatten)]
    pub apiserver_connection: apiserver_connection::Settings,
    /// Of [`cgroup_leak`].
    #[command(flatten)]
    pub cgroup_leak: cgroup_leak::Settings,
    /// Of [`open_files`].
    #[command(flatten)]
    pub open_files: open_files::Settings,
    /// Of [`memory_volume`].
    #[command(flatten)]
    pub memory_volume: memory_volume::Settings,
    /// Of [`task_limit`].
    #[command(flatten)]
    pub task_limit: task_limit::Settings,
    /// Of [`pod_interface`].
    #[command(flatten)]
    pub pod_interface: pod_interface::Settings,
    /// Of [`node_status`].
    #[command(flatten)]
    pub node_status: node_status::Settings,
    /// Of [`cni_leak`].
    #[command(flatten)]
    pub cni_leak: cni_leak::Settings,
}

/// Every mode, in the order of the page.
pub static MODES: &[&Mode] = &[
    &cgroup_leak::MODE,
    &kmem::MODE,
    &eviction::MODE,
    &open_files::MODE,
    &memory_volume::MODE,
    &pod_interface::MODE,
    &apiserver_connection::MODE,
    &node_status::MODE,
    &system_filesystem::MODE,
    &cni_leak::MODE,
    &task_limit::MODE,
];
