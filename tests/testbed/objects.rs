//! The recorded node and lease, with times that were so long ago.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

/// Type, status, seconds since the last heartbeat.
pub type Condition = (&'static str, &'static str, i64);

/// A quiet healthy node: heartbeats are minutes old.
pub const HEALTHY: [Condition; 4] = [
    ("MemoryPressure", "False", 200),
    ("DiskPressure", "False", 200),
    ("PIDPressure", "False", 200),
    ("Ready", "True", 200),
];

/// Long since nobody's.
pub const OUT_OF_DISK: Condition = ("OutOfDisk", "Unknown", 200 * 86_400);

pub fn node(conditions: &[Condition]) -> Value {
    let mut node: Value =
        serde_json::from_str(include_str!("../fixtures/node_status/k8s-1.36-cgroupv1/node.json")).unwrap();
    let of = |&(kind, status, age): &Condition| {
        let at = format!("{:.0}", Timestamp::now() - SignedDuration::from_secs(age));
        json!({"type": kind, "status": status, "lastHeartbeatTime": at, "lastTransitionTime": at, "reason": "Test", "message": ""})
    };
    node["status"]["conditions"] = conditions.iter().map(of).collect();
    node
}

pub fn lease(age: f64) -> Value {
    let mut lease: Value =
        serde_json::from_str(include_str!("../fixtures/node_status/k8s-1.36-cgroupv1/lease.json")).unwrap();
    lease["spec"]["renewTime"] = format!("{:.6}", Timestamp::now() - SignedDuration::from_secs_f64(age)).into();
    lease
}
