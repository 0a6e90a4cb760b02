//! From what was read to numbers. Pure.

use std::time::{Duration, SystemTime};

use super::Settings;
use super::objects::{Condition, Lease, Status};
use super::probe::{ApiserverVersion, Object, Read, Snapshot};
use crate::apiserver::Outcome;
use crate::kubelet::version::Version;
use crate::metric::{Metric, Samples, Unit};

pub(super) static NODE: Metric = Metric::info(
    "headroom_node_info",
    &["node"],
    "The node whose object and lease are read: --node-name, else the kubelet's --hostname-override, else the machine's name.",
);
pub(super) static CONDITION: Metric = Metric::gauge(
    "headroom_node_condition",
    Unit::None,
    &["condition", "status"],
    "1 for the present status (true, false, unknown) of a condition of this node's object, 0 for the others.\n\n\
     Read every --collector.node_status.node-interval; headroom_node_object_read_age_seconds says how long ago.",
);
pub(super) static HEARTBEAT_AGE: Metric = Metric::gauge(
    "headroom_node_condition_heartbeat_age_seconds",
    Unit::Seconds,
    &["condition"],
    "Age of the lastHeartbeatTime of a node condition when it was read. A healthy and quiet kubelet posts every 2.5 \
     to 7.5 minutes.\n\n\
     NetworkUnavailable is mostly posted once. Missing if the condition has no heartbeat.",
);
pub(super) static ORPHANED: Metric = Metric::gauge(
    "headroom_node_condition_orphaned",
    Unit::None,
    &["condition"],
    "1 for a condition that nothing updates any more: its heartbeat is over an hour older than the kubelet's.\n\n\
     Missing while the kubelet itself is not heard of, and for a condition without a heartbeat. The kubelet's own \
     four and those of --collector.node_status.set-once never count.",
);
pub(super) static LEASE_AGE: Metric = Metric::gauge(
    "headroom_node_lease_age_seconds",
    Unit::Seconds,
    &[],
    "Time since the kubelet last renewed this node's lease, when the lease was read. Healthy: up to about 10 s.\n\n\
     At headroom_node_lease_duration_seconds the lease has expired; at headroom_node_monitor_grace_period_seconds the \
     node is marked NotReady.",
);
pub(super) static LEASE_DURATION: Metric = Metric::gauge(
    "headroom_node_lease_duration_seconds",
    Unit::Seconds,
    &[],
    "For how long a renewal of this node's lease holds (spec.leaseDurationSeconds, 40 by default).",
);
pub(super) static PRESENT: Metric = Metric::gauge(
    "headroom_node_object_present",
    Unit::None,
    &["object"],
    "1 if the apiserver has this node's object (node) and lease (lease), 0 if it says that there is none: a kubelet never deletes its own, \
     so that a missing one was deleted or never made.",
);
pub(super) static UNSCHEDULABLE: Metric = Metric::gauge(
    "headroom_node_unschedulable",
    Unit::None,
    &[],
    "1 if this node is cordoned (spec.unschedulable), or tainted for its removal by the cluster autoscaler or Karpenter.",
);
pub(super) static READ_AGE: Metric = Metric::gauge(
    "headroom_node_object_read_age_seconds",
    Unit::Seconds,
    &["object"],
    "How long ago this node's object or lease was last read from the apiserver. What was read is shown for three intervals, then it is missing.",
);
pub(super) static REQUESTS: Metric = Metric::counter(
    "headroom_node_object_requests_total",
    &["object", "result"],
    "Requests for this node's object and lease, by result as in headroom_apiserver_probe_total.\n\n\
     unexpected: 404 among others. throttled: the apiserver had no seat for the request (429).",
);
pub(super) static RETRY_AFTER: Metric = Metric::gauge(
    "headroom_node_object_retry_after_seconds",
    Unit::Seconds,
    &["object"],
    "The Retry-After of the last 429 to a request for this object, which we obey up to five minutes. Missing before the first.",
);
pub(super) static APISERVER: Metric = Metric::info(
    "headroom_apiserver_info",
    &["version"],
    "The version of the apiserver that answered this node last (/version), asked once an hour and after it was away.",
);
pub(super) static MONITOR_GRACE_PERIOD: Metric = Metric::gauge(
    "headroom_node_monitor_grace_period_seconds",
    Unit::Seconds,
    &[],
    "How long after its last lease renewal kube-controller-manager marks this node NotReady.\n\n\
     40 before Kubernetes 1.32 and 50 since, by the apiserver's version, or \
     --collector.node_status.monitor-grace-period. Missing while neither is known.",
);

/// What this mode may show.
pub(super) static METRICS: &[&Metric] = &[
    &NODE,
    &CONDITION,
    &HEARTBEAT_AGE,
    &ORPHANED,
    &LEASE_AGE,
    &LEASE_DURATION,
    &PRESENT,
    &UNSCHEDULABLE,
    &READ_AGE,
    &REQUESTS,
    &RETRY_AFTER,
    &APISERVER,
    &MONITOR_GRACE_PERIOD,
];

/// The conditions that a kubelet owns (`pkg/kubelet/kubelet_node_status.go`, `defaultNodeStatusFuncs`): with them the
/// others are compared.
const KUBELETS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// By how much a heartbeat must be older than the kubelet's: far more than the kubelet's own 7.5 minutes, and than any
/// owner takes that reports by the hour.
const ORPHANED_AFTER: Duration = Duration::from_secs(3_600);
/// A kubelet that posted within this time is alive, where its lease cannot be read.
const ALIVE: Duration = Duration::from_secs(600);

/// kube-controller-manager's default of `--node-monitor-grace-period`
/// (`pkg/controller/nodelifecycle/config/v1alpha1/defaults.go`), raised so that a kubelet can find a dead connection
/// (45 s) before. It is a program of its own, as new as the apiserver but for the time of an upgrade.
fn monitor_grace_period(apiserver: &Version) -> Duration {
    Duration::from_secs(if apiserver.is_at_least(32) { 50 } else { 40 })
}

/// The numbers of what was read, as seen at `now`.
pub(super) fn assess(snapshot: &Snapshot, settings: &Settings, now: SystemTime, samples: &mut Samples) {
    if let Some(name) = &snapshot.name {
        samples.info(&NODE, &[name]);
    }
    if let Some(read) = &snapshot.node {
        about_read(Object::Node, read, now, samples);
        if let Some(node) = &read.object {
            samples.drop_count(node.dropped);
            samples.push(&UNSCHEDULABLE, &[], f64::from(u8::from(node.unschedulable)));
            conditions(&node.conditions, read.at, snapshot.lease.as_ref(), settings, samples);
        }
    }
    if let Some(read) = &snapshot.lease {
        about_read(Object::Lease, read, now, samples);
        if let Some(lease) = &read.object {
            let age = lease.renewed.map(|renewed| age(renewed, read.at).as_secs_f64());
            samples.push_some(&LEASE_AGE, &[], age);
            samples.push_some(&LEASE_DURATION, &[], lease.duration_seconds.map(f64::from));
        }
    }
    for object in Object::ALL {
        for outcome in Outcome::ALL {
            let count = snapshot.results.get(&(object, outcome)).copied().unwrap_or(0);
            samples.push(&REQUESTS, &[object.as_str(), outcome.as_str()], count as f64);
        }
        let time = snapshot.retry_after.get(&object).map(|time| time.as_secs_f64());
        samples.push_some(&RETRY_AFTER, &[object.as_str()], time);
    }
    about_apiserver(snapshot.version.as_ref(), settings.monitor_grace_period, samples);
    snapshot.errors.iter().for_each(|error| samples.fail(error.clone()));
}

fn about_apiserver(version: Option<&ApiserverVersion>, configured: Option<Duration>, samples: &mut Samples) {
    let known = match version {
        Some(ApiserverVersion::Known { version, .. }) => Some(version),
        Some(ApiserverVersion::Unknown(why)) => {
            let lost = match configured {
                Some(_) => "headroom_apiserver_info is missing",
                None => {
                    "the alerts assume that a node is marked NotReady 40 s after its last renewal, as before Kubernetes 1.32 \
                     (--collector.node_status.monitor-grace-period sets another time)"
                }
            };
            samples.note(format!("the version of the apiserver is unknown ({why}): {lost}"));
            None
        }
        None => None,
    };
    if let Some(version) = known {
        samples.info(&APISERVER, &[&version.to_string()]);
    }
    let period = configured.or_else(|| known.map(monitor_grace_period));
    samples.push_some(&MONITOR_GRACE_PERIOD, &[], period.map(|period| period.as_secs_f64()));
}

fn about_read<T>(object: Object, read: &Read<T>, now: SystemTime, samples: &mut Samples) {
    samples.push(&PRESENT, &[object.as_str()], f64::from(u8::from(read.object.is_some())));
    samples.push(&READ_AGE, &[object.as_str()], age(read.at, now).as_secs_f64());
}

fn conditions(
    conditions: &[Condition],
    at: SystemTime,
    lease: Option<&Read<Lease>>,
    settings: &Settings,
    samples: &mut Samples,
) {
    let kubelets = |condition: &&Condition| KUBELETS.contains(&condition.name.as_str());
    let newest = conditions.iter().filter(kubelets).filter_map(|condition| condition.heartbeat).max();
    let alive = match lease.and_then(|read| read.object.map(|lease| (read.at, lease))) {
        Some((read_at, Lease { renewed: Some(renewed), duration_seconds: Some(duration) })) => {
            age(renewed, read_at) < Duration::from_secs(duration.into())
        }
        _ => newest.is_some_and(|newest| age(newest, at) < ALIVE),
    };
    for condition in conditions {
        let name = &*condition.name;
        for status in Status::ALL {
            samples.push(&CONDITION, &[name, status.as_str()], f64::from(u8::from(status == condition.status)));
        }
        let heartbeat_age = condition.heartbeat.map(|heartbeat| age(heartbeat, at).as_secs_f64());
        samples.push_some(&HEARTBEAT_AGE, &[name], heartbeat_age);

        // A kubelet whose lease is fresh is alive now, even if what it last posted is some minutes old.
        let (Some(reference), true) = (newest, alive) else { continue };
        let exempt = KUBELETS.contains(&name) || settings.set_once.iter().any(|once| once == name);
        let old = condition.heartbeat.map(|heartbeat| age(heartbeat, reference) > ORPHANED_AFTER);
        let orphaned = if exempt { Some(false) } else { old };
        samples.push_some(&ORPHANED, &[name], orphaned.map(|orphaned| f64::from(u8::from(orphaned))));
    }
}

/// From `then` to `now`; nothing if the clocks disagree by a little.
fn age(then: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(then).unwrap_or_default()
}
