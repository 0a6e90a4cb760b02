//! What the apiserver holds about this node goes stale: its lease is not renewed, a condition stays for ever, requests
//! are refused.
//!
//! **What fails.** The kubelet renews its lease every 10 s; 40 s after the last time it has expired, and 40 s (before
//! Kubernetes 1.32) or 50 s after it the node controller marks the node. A condition whose owner is gone (`OutOfDisk`
//! after an upgrade) stays on the node object with the status it had, or `Unknown`, and nothing removes it. An
//! apiserver that has no seat left answers 429.
//!
//! **Evidence.** This node's own object and lease, by GET with `resourceVersion=0` (answered from the apiserver's
//! cache), in the background: never a list, never a watch, never another node's. `/version`, which everybody may read,
//! once an hour. Through [`crate::apiserver`], over the connection that the probe keeps open anyway. Ages are of the
//! moment of the read, by this machine's clock, which is the kubelet's as well.
//!
//! **What we export.** Each condition with its status and the age of its heartbeat; which of them nobody owns any more;
//! age and duration of the lease, and after how long without a renewal the node is marked; how our requests ended.
//!
//! **Orphaned** is a condition other than the kubelet's own four whose heartbeat is over an hour older than the
//! kubelet's, while the kubelet is alive (its lease is fresh, or its Ready condition is). `NetworkUnavailable` is set
//! once by whoever makes the network and never again, so it never counts (`--collector.node_status.set-once`).
//!
//! **When it misleads.** A healthy quiet node has heartbeats up to 7.5 minutes old
//! (`pkg/kubelet/kubelet_node_status.go:590`): only the lease tells sooner. The node controller sets conditions to
//! `Unknown` without touching their heartbeat. A clock that is wrong by seconds makes a lease look old if another
//! machine renewed it, which only happens in tests. With API priority and fairness our requests wait in another queue
//! than the kubelet's: our 429 is a sign, and not its own.

mod assess;
mod objects;
mod probe;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{Collector, Context, Mode, Probe, Utilization, alerts};
use crate::error::{Error, Result};
use crate::humanize::duration;
use crate::metric::Samples;
use crate::values::{defaults, some_time};
use probe::{Shared, Worker};

/// This mode.
pub static MODE: Mode = Mode {
    id: "node_status",
    title: "the node's lease expires, or one of its conditions is no longer updated",
    happened: "stale node conditions, NotReady flaps, an apiserver out of seats",
    alerts: alerts!("node_status"),
    metrics: assess::METRICS,
    utilization: Some(Utilization {
        used: "headroom_node_lease_age_seconds",
        limit: "headroom_node_lease_duration_seconds",
        slope: None,
        text: |lease| {
            let (age, expires) = (duration(lease.used.round()), duration(lease.limit));
            format!("the lease was {age} old when it was read, and expires after {expires}")
        },
    }),
    keeps: None,
    needs_runtime: false,
    build: |settings, services| {
        let (apiserver, kubelet) = (services.apiserver.clone(), services.kubelet.clone());
        Box::new(NodeStatus(Arc::new(Shared::new(apiserver, kubelet, settings.node_status.clone()))))
    },
};

/// Settings.
#[derive(clap::Args, Clone, Debug, PartialEq, Eq)]
#[group(skip)]
#[command(next_help_heading = "Collector node_status")]
pub struct Settings {
    /// From one read of this node's lease to the next
    #[arg(long = "collector.node_status.lease-interval", value_name = "DURATION", default_value = "10s", value_parser = some_time)]
    pub lease_interval: Duration,
    /// From one read of this node's object to the next
    #[arg(long = "collector.node_status.node-interval", value_name = "DURATION", default_value = "60s", value_parser = some_time)]
    pub node_interval: Duration,
    /// Conditions that are set once and never updated, as events are: however old they are, they are not orphaned
    #[arg(
        long = "collector.node_status.set-once",
        value_name = "NAME",
        default_value = "NetworkUnavailable,DrainScheduled,DrainInProgress,Drained",
        value_delimiter = ','
    )]
    pub set_once: Vec<String>,
    /// How long after the last renewal of its lease this cluster's kube-controller-manager marks a node NotReady (its
    /// --node-monitor-grace-period) [default: by the apiserver's version, 40s before 1.32 and 50s since]
    #[arg(long = "collector.node_status.monitor-grace-period", value_name = "DURATION", value_parser = some_time)]
    pub monitor_grace_period: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        defaults()
    }
}

struct NodeStatus(Arc<Shared>);

impl Collector for NodeStatus {
    fn collect(&self, _: Context<'_>) -> Result<Samples> {
        let Some(snapshot) = self.0.snapshot() else {
            return Err(Error::absent(
                "no apiserver to ask: no service account is mounted, and neither --apiserver.url nor --kubeconfig is set",
            ));
        };
        let mut samples = Samples::new();
        assess::assess(&snapshot, &self.0.settings, SystemTime::now(), &mut samples);
        Ok(samples)
    }

    fn probes(&self) -> Vec<Arc<dyn Probe>> {
        Worker::all(&self.0).map(|worker| Arc::new(worker) as Arc<dyn Probe>).into()
    }
}
