//! Judges this machine now, for a person in an incident: which failure is happening, how far it is from each, what to
//! do.
//!
//! It runs the same collectors and probes as the daemon, for a few seconds, and hands their pages to
//! [`crate::verdict`], which evaluates the very rules that page people. What comes of it is a [`Report`].
//!
//! **When it misleads.** It has no past. What takes minutes to prove (a slope, a cgroup that stays orphaned, an
//! interface that was lost before it came) it sees in part or not at all, and says on how much of a window a finding
//! stands. The running exporter's page at `/` has its hours.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::host::{Deadline, Host};
use crate::kubelet::handle::Kubelet;
use crate::modes::{self, Mode};
use crate::probes::Probes;
use crate::report::{self, Report};
use crate::scrape::{Scrape, Scraper};
use crate::self_metrics;
use crate::services::{self, Services};
use crate::verdict::{History, Limits};

/// From one sample to the next. Three in five seconds tell a slope from a step.
const STEP: Duration = Duration::from_secs(1);

/// The longest that one sample may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How much longer than asked it goes on while the apiserver has not answered: a probe that times out is an answer too.
const FOR_PROBES: Duration = Duration::from_secs(12);

/// A probe asks this often, since there are seconds and not hours.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// How long a cgroup must have been an orphan: the least that the proof by the runtime takes.
const ORPHAN_GRACE: Duration = Duration::from_secs(5);

/// How long it looks, and how it shows what it saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Ids of the modes that are shown; empty: all.
    pub modes: Vec<String>,
    /// From the first sample to the last.
    pub time: Duration,
    /// Print JSON.
    pub json: bool,
    /// Colour the output.
    pub color: bool,
    /// Say on the terminal how far it is.
    pub progress: bool,
}

/// Whom it examines: as the daemon would be started.
#[derive(Debug)]
pub struct Subject {
    /// The observed machine.
    pub host: Host,
    /// The modes that are on.
    pub modes: Vec<&'static Mode>,
    /// How what they share is found and asked.
    pub services: services::Settings,
    /// Their settings.
    pub settings: modes::Settings,
}

/// Samples this machine and judges it. `progress` is told how long it has sampled.
///
/// # Panics
/// Outside a tokio runtime.
pub async fn examine(subject: Subject, options: &Options, progress: impl Fn(Duration)) -> Report {
    let Subject { host, modes, services, settings } = subject;
    let (services, settings) = (Services::new(services), hasten(settings));
    let host = Arc::new(host);
    let modes: Vec<_> = modes.into_iter().map(|mode| (mode, (mode.build)(&settings, &services))).collect();
    let mut probes = Probes::default();
    for (_, collector) in &modes {
        probes.start(&host, &**collector);
    }
    let asked = modes.iter().any(|(mode, _)| mode.id == "apiserver_connection" || mode.id == "node_status")
        && services.apiserver.client(&host).is_some();
    let node = node_name(&services.kubelet, &host).await;
    let kubelet = services.kubelet.clone();
    let scraper = Scraper::new(Arc::clone(&host), services, modes);
    let mut history = History::new(&node, Limits::default());
    let began = Instant::now();
    let mut first = None;
    loop {
        progress(began.elapsed());
        let scrape = scraper.scrape(Deadline::after(PATIENCE), |_| true).await;
        let (at, about) = (SystemTime::now(), self_metrics::samples());
        history.add(at, scrape.runs.iter().map(|(_, run)| &*run.samples).chain([&scrape.node, &scrape.about, &about]));
        let first = *first.get_or_insert(at);
        let lasted = began.elapsed();
        let waiting = asked && !probes_answered(&scrape) && lasted < options.time + FOR_PROBES;
        if lasted >= options.time && !waiting {
            let root = kubelet_root(kubelet, &host).await;
            let mut rows = report::rows(&scrape.runs, &history, at, root.as_deref());
            rows.retain(|row| options.modes.is_empty() || options.modes.iter().any(|mode| *mode == row.verdict.mode));
            let kernel = host.kernel().ok().map(|kernel| kernel.release);
            return Report { node, kernel, at, sampled: at.duration_since(first).unwrap_or_default(), rows };
        }
        tokio::time::sleep(STEP.min(options.time.saturating_sub(lasted).max(STEP / 4))).await;
    }
}

/// Settings of a daemon, for one that has seconds.
fn hasten(mut settings: modes::Settings) -> modes::Settings {
    let shorten = |time: &mut Duration, most: Duration| *time = (*time).min(most);
    shorten(&mut settings.apiserver_connection.interval, PROBE_INTERVAL);
    shorten(&mut settings.node_status.lease_interval, PROBE_INTERVAL);
    shorten(&mut settings.node_status.node_interval, PROBE_INTERVAL);
    shorten(&mut settings.cgroup_leak.orphan_grace, ORPHAN_GRACE);
    settings
}

/// As the kubelet calls it, else as the machine calls itself.
async fn node_name(kubelet: &Kubelet, host: &Arc<Host>) -> String {
    match kubelet.node_name(host).await {
        Ok(name) => name,
        Err(_) => report::machine_name(),
    }
}

/// It reads procfs, which has no place on a thread that others wait for.
async fn kubelet_root(kubelet: Kubelet, host: &Arc<Host>) -> Option<PathBuf> {
    let host = Arc::clone(host);
    tokio::task::spawn_blocking(move || services::kubelet_root(&kubelet, &host)).await.ok()?
}

/// Each kind of probe has an end on record.
fn probes_answered(scrape: &Scrape) -> bool {
    let has = |name: &str| {
        scrape
            .runs
            .iter()
            .any(|(_, run)| run.samples.rows().iter().any(|row| row.metric.name == name && row.value > 0.0))
    };
    has("headroom_apiserver_probe_total") || has("headroom_node_object_requests_total")
}
