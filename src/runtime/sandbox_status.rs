//! Which network namespace a sandbox was given, from what a runtime says of it when it is asked for more than the API
//! has fields for (`verbose`). containerd and CRI-O both put the OCI specification of the pause container there, as
//! `runtimeSpec`: in it a namespace that was made before has its path. What else stands there (labels, annotations,
//! environment of the pause container) is passed over and never kept.

use serde::Deserialize;

use super::SandboxNetwork;
use super::bounds;
use crate::error::{Error, Result};

#[derive(Deserialize)]
struct Info {
    #[serde(rename = "runtimeSpec")]
    spec: Option<Spec>,
}

#[derive(Deserialize)]
struct Spec {
    linux: Option<Linux>,
}

#[derive(Deserialize)]
struct Linux {
    #[serde(default)]
    namespaces: Vec<Namespace>,
}

#[derive(Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
}

/// The network namespace of a sandbox of which the runtime says this.
///
/// # Errors
/// Malformed.
pub(super) fn network(info: &str) -> Result<SandboxNetwork> {
    if info.is_empty() {
        return Ok(SandboxNetwork::Untold);
    }
    let info: Info =
        serde_json::from_str(info).map_err(|error| Error::malformed(format!("PodSandboxStatus: info: {error}")))?;
    let Some(linux) = info.spec.and_then(|spec| spec.linux) else { return Ok(SandboxNetwork::Untold) };
    match linux.namespaces.into_iter().find(|namespace| namespace.kind == "network") {
        Some(Namespace { path, .. }) if !path.is_empty() => {
            bounds::check(&[&path])?;
            Ok(SandboxNetwork::Named(path))
        }
        // None is the machine's own.
        _ => Ok(SandboxNetwork::Unnamed),
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test reads its recordings")]
mod tests {
    use super::*;
    use crate::error::Reason;

    /// As two real containerds answered.
    #[test]
    fn recorded_sandboxes() {
        let of = |node: &str| -> Vec<(String, SandboxNetwork)> {
            let path = crate::tests::fixtures().join("cni_leak").join(node);
            let statuses: serde_json::Value =
                serde_json::from_str(&std::fs::read_to_string(path.join("PodSandboxStatus-verbose.json")).unwrap())
                    .unwrap();
            let of = |status: &serde_json::Value| {
                let info = status["info"]["info"].as_str().unwrap();
                (status["status"]["metadata"]["name"].as_str().unwrap().to_owned(), network(info).unwrap())
            };
            statuses.as_array().unwrap().iter().map(of).collect()
        };
        let named = |pod: &str, id: &str| (pod.to_owned(), SandboxNetwork::Named(format!("/var/run/netns/cni-{id}")));
        let hostnet = ("hostnet".to_owned(), SandboxNetwork::Unnamed);
        assert_eq!(
            of("k8s-1.36-cgroupv1"),
            [
                named("static-web-tb-node", "a4995459-a058-ae26-c3b7-9f7e964042bb"),
                hostnet.clone(),
                named("memvol", "29e91da9-035b-86b4-aab0-6e4f19d913d7")
            ]
        );
        assert_eq!(
            of("k8s-1.36-cgroupv2"),
            [
                named("sleeps-56c794bd77-qcvcp", "9cda581d-29ff-6bb3-e433-165a9b43fdbf"),
                named("finished", "d007d9fe-051f-c39b-34f6-14dbda068296"),
                hostnet
            ]
        );
    }

    #[test]
    fn what_is_not_said_is_not_known() {
        for untold in ["", "{}", r#"{"runtimeSpec":null}"#, r#"{"runtimeSpec":{}}"#] {
            assert_eq!(network(untold), Ok(SandboxNetwork::Untold), "{untold}");
        }
        let of = |namespaces: &str| network(&format!(r#"{{"runtimeSpec":{{"linux":{{{namespaces}}}}}}}"#));
        assert_eq!(of(""), Ok(SandboxNetwork::Unnamed));
        assert_eq!(of(r#""namespaces":[{"type":"network"}]"#), Ok(SandboxNetwork::Unnamed));
        assert_eq!(network("[").unwrap_err().reason(), Reason::Malformed);
        let long = format!(r#""namespaces":[{{"type":"network","path":"/{}"}}]"#, "x".repeat(5000));
        assert_eq!(of(&long).unwrap_err().reason(), Reason::Malformed);
    }
}
