//! A Node and a Lease as the apiserver writes them, as far as we need them.

use std::time::SystemTime;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::kubelet::version::Version;

/// Far more conditions than any node has.
const MOST_CONDITIONS: usize = 32;

/// What a condition may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    True,
    False,
    Unknown,
}

impl Status {
    /// In the order of the page.
    pub(super) const ALL: [Status; 3] = [Status::True, Status::False, Status::Unknown];

    /// The label value, written as kube-state-metrics writes it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Status::True => "true",
            Status::False => "false",
            Status::Unknown => "unknown",
        }
    }
}

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) name: String,
    pub(super) status: Status,
    /// When its owner last said so; some never say when.
    pub(super) heartbeat: Option<SystemTime>,
}

/// Taints of a node that is about to be removed: by the cluster autoscaler, and by Karpenter 1 and before.
const REMOVAL: [&str; 3] = ["ToBeDeletedByClusterAutoscaler", "karpenter.sh/disrupted", "karpenter.sh/disruption"];

/// The conditions of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Node {
    /// Somebody keeps new pods away from it, as before it is taken out of the cluster.
    pub(super) unschedulable: bool,
    pub(super) conditions: Vec<Condition>,
    /// Its kubelet's version, if it is one.
    pub(super) kubelet: Option<Version>,
    /// Beyond the most that we keep.
    pub(super) dropped: u64,
}

/// The lease of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) renewed: Option<SystemTime>,
    pub(super) duration_seconds: Option<u32>,
}

#[derive(Deserialize)]
struct NodeObject {
    kind: String,
    #[serde(default)]
    spec: NodeSpec,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Default, Deserialize)]
struct NodeSpec {
    #[serde(default)]
    unschedulable: bool,
    #[serde(default)]
    taints: Vec<Taint>,
}

#[derive(Deserialize)]
struct Taint {
    key: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeStatus {
    #[serde(default)]
    conditions: Vec<ConditionObject>,
    #[serde(default)]
    node_info: NodeInfo,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeInfo {
    #[serde(default)]
    kubelet_version: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConditionObject {
    r#type: String,
    status: String,
    #[serde(default)]
    last_heartbeat_time: Option<String>,
}

#[derive(Deserialize)]
struct LeaseObject {
    kind: String,
    #[serde(default)]
    spec: LeaseSpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeaseSpec {
    #[serde(default)]
    renew_time: Option<String>,
    #[serde(default)]
    lease_duration_seconds: Option<u32>,
}

impl Node {
    /// # Errors
    /// Malformed, saying what is wrong, if it is no Node.
    pub(super) fn parse(body: &[u8]) -> Result<Self> {
        let object: NodeObject = serde_json::from_slice(body).map_err(|error| malformed("Node", error))?;
        if object.kind != "Node" {
            return Err(malformed("Node", format!("its kind is {:?}", object.kind)));
        }
        let tainted = object.spec.taints.iter().any(|taint| REMOVAL.contains(&taint.key.as_str()));
        let kubelet = Version::parse(&object.status.node_info.kubelet_version);
        let mut node = Node { unschedulable: object.spec.unschedulable || tainted, kubelet, ..Node::default() };
        for condition in object.status.conditions {
            let twin = node.conditions.iter().position(|known| known.name == condition.r#type);
            if twin.is_none() && node.conditions.len() == MOST_CONDITIONS {
                node.dropped += 1;
                continue;
            }
            let status = match condition.status.as_str() {
                "True" => Status::True,
                "False" => Status::False,
                _ => Status::Unknown,
            };
            let heartbeat = condition.last_heartbeat_time.as_deref().map(time).transpose()?;
            let condition = Condition { name: condition.r#type, status, heartbeat };
            match twin.map(|twin| &mut node.conditions[twin]) {
                // The type is its name: of two the newer counts.
                Some(twin) if twin.heartbeat <= condition.heartbeat => *twin = condition,
                Some(_) => {}
                None => node.conditions.push(condition),
            }
        }
        Ok(node)
    }
}

impl Lease {
    /// # Errors
    /// Malformed, saying what is wrong, if it is no Lease.
    pub(super) fn parse(body: &[u8]) -> Result<Self> {
        let object: LeaseObject = serde_json::from_slice(body).map_err(|error| malformed("Lease", error))?;
        if object.kind != "Lease" {
            return Err(malformed("Lease", format!("its kind is {:?}", object.kind)));
        }
        let LeaseSpec { renew_time, lease_duration_seconds } = object.spec;
        Ok(Lease { renewed: renew_time.as_deref().map(time).transpose()?, duration_seconds: lease_duration_seconds })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VersionObject {
    git_version: String,
}

/// Which Kubernetes an apiserver is, by its answer to `/version`.
///
/// # Errors
/// Malformed, saying what is wrong, if it is no version of Kubernetes 1.
pub(super) fn apiserver_version(body: &[u8]) -> Result<Version> {
    let object: VersionObject = serde_json::from_slice(body).map_err(|error| malformed("version", error))?;
    Version::parse(&object.git_version)
        .ok_or_else(|| malformed("version", format!("{:?} is not a version of Kubernetes 1", object.git_version)))
}

fn malformed(what: &str, why: impl std::fmt::Display) -> Error {
    Error::malformed(format!("{what} from the apiserver: {why}"))
}

/// RFC 3339, with or without a fraction (`metav1.Time`, `metav1.MicroTime`).
fn time(text: &str) -> Result<SystemTime> {
    let malformed = |error: jiff::Error| malformed("time", format!("{text:?}: {error}"));
    text.parse::<jiff::Timestamp>().map_err(malformed)?.try_into().map_err(malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const NODE: &[u8] = include_bytes!("../../../tests/fixtures/node_status/k8s-1.36-cgroupv1/node.json");
    const LEASE: &[u8] = include_bytes!("../../../tests/fixtures/node_status/k8s-1.36-cgroupv1/lease.json");

    #[test]
    fn recorded_objects() {
        let node = Node::parse(NODE).unwrap();
        let names: Vec<_> = node.conditions.iter().map(|c| (c.name.as_str(), c.status)).collect();
        let pressure = Status::False;
        assert_eq!(
            names,
            [
                ("MemoryPressure", pressure),
                ("DiskPressure", pressure),
                ("PIDPressure", pressure),
                ("Ready", Status::True)
            ]
        );
        // `date -u -d 2026-11-20T20:36:38Z +%s`
        let witness = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_206_998);
        assert_eq!(node.conditions[0].heartbeat, Some(witness));
        let lease = Lease::parse(LEASE).unwrap();
        assert_eq!(lease.duration_seconds, Some(40));
        assert_eq!(lease.renewed.unwrap().duration_since(witness).unwrap(), Duration::from_micros(41_246_043));
    }

    #[test]
    fn what_is_missing_is_not_made_up() {
        let node = br#"{"kind":"Node","status":{"conditions":[{"type":"OutOfDisk","status":"odd","lastHeartbeatTime":null}]}}"#;
        let condition = Condition { name: "OutOfDisk".into(), status: Status::Unknown, heartbeat: None };
        assert_eq!(Node::parse(node).unwrap().conditions, [condition]);
        assert!(Node::parse(br#"{"kind":"Node"}"#).unwrap().conditions.is_empty(), "registered a moment ago");
        let lease = Lease::parse(br#"{"kind":"Lease","spec":{"holderIdentity":"x"}}"#).unwrap();
        assert_eq!(lease, Lease { renewed: None, duration_seconds: None });
    }

    #[test]
    fn a_node_that_is_to_go() {
        let unschedulable = |spec: &str| {
            let body = format!(r#"{{"kind":"Node","spec":{spec}}}"#);
            Node::parse(body.as_bytes()).unwrap().unschedulable
        };
        assert!(!Node::parse(NODE).unwrap().unschedulable);
        assert!(unschedulable(r#"{"unschedulable":true}"#));
        assert!(unschedulable(r#"{"taints":[{"key":"x"},{"key":"karpenter.sh/disrupted","effect":"NoSchedule"}]}"#));
        assert!(!unschedulable(
            r#"{"taints":[{"key":"node-role.kubernetes.io/control-plane","effect":"NoSchedule"}]}"#
        ));
    }

    #[test]
    fn nonsense_is_named() {
        for odd in ["", "<html>", "[]", "{}", r#"{"kind":"Status","code":200}"#] {
            assert!(Node::parse(odd.as_bytes()).is_err() && Lease::parse(odd.as_bytes()).is_err(), "{odd}");
        }
        let error = Lease::parse(br#"{"kind":"Lease","spec":{"renewTime":"yesterday"}}"#).unwrap_err();
        assert!(error.to_string().contains("yesterday"), "{error}");
    }

    #[test]
    fn the_version_of_its_kubelet() {
        let version = |text: &str| {
            let body = format!(r#"{{"kind":"Node","status":{{"nodeInfo":{{"kubeletVersion":"{text}"}}}}}}"#);
            Node::parse(body.as_bytes()).unwrap().kubelet.map(|version| version.minor())
        };
        assert_eq!(version("v1.28.15+rke2r1"), Some(28));
        assert_eq!(version("v0.0.0-master+$Format:%H$"), None, "built by hand");
        assert_eq!(Node::parse(br#"{"kind":"Node"}"#).unwrap().kubelet, None);
    }

    #[test]
    fn the_version_of_an_apiserver() {
        // As apiservers of 1.31 and of 1.34 and later write it.
        let old = br#"{"major":"1","minor":"31","gitVersion":"v1.31.9","gitCommit":"b2e3f5a","gitTreeState":"clean",
            "buildDate":"2025-05-15T03:06:05Z","goVersion":"go1.23.8","compiler":"gc","platform":"linux/amd64"}"#;
        let new = br#"{"major":"1","minor":"36","emulationMajor":"1","emulationMinor":"36","minCompatibilityMajor":"1",
            "minCompatibilityMinor":"35","gitVersion":"v1.36.1+k3s1","platform":"linux/arm64"}"#;
        let minor = |body: &[u8]| apiserver_version(body).map(|version| version.minor());
        assert_eq!((minor(old), minor(new)), (Ok(31), Ok(36)));
        let error = minor(br#"{"gitVersion":"v0.0.0-master+$Format:%H$"}"#).unwrap_err().to_string();
        assert!(error.contains("v0.0.0-master"), "{error}");
        for odd in ["", "ok", "{}", r#"{"gitVersion":null}"#] {
            assert!(minor(odd.as_bytes()).is_err(), "{odd}");
        }
    }

    #[test]
    fn a_thousand_conditions_are_cut() {
        let condition = |number| format!(r#"{{"type":"X{number}","status":"True"}}"#);
        let conditions: Vec<String> = (0..1000).map(condition).collect();
        let body = format!(r#"{{"kind":"Node","status":{{"conditions":[{}]}}}}"#, conditions.join(","));
        let node = Node::parse(body.as_bytes()).unwrap();
        assert_eq!((node.conditions.len(), node.dropped), (32, 968));
    }
}
