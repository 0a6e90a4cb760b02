//! The real kubectl as the cluster's administrator, and what the tests ask it most.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use super::{BUSYBOX, Cluster, NODE};

impl Cluster {
    /// What it prints.
    ///
    /// # Errors
    /// What it says if it fails.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        self.kubectl_fed(arguments, "")
    }

    pub(crate) fn kubectl_fed(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        let output = self.kubectl_output(arguments, input);
        if output.status.success() {
            return Ok(String::from_utf8(output.stdout).unwrap());
        }
        Err(format!("kubectl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }

    /// However it ends: `kubectl exec` ends as what it ran.
    pub(crate) fn kubectl_output(&self, arguments: &[&str], input: &str) -> Output {
        let mut child = Command::new(self.kubernetes.join("kubectl"))
            .args(["--kubeconfig", self.dir().join("admin.kubeconfig").to_str().unwrap()])
            .args(["--cache-dir", self.dir().join("kubectl").to_str().unwrap()])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // What a program does not read is no failure of it.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// `kubectl get -o json`.
    pub(crate) fn get(&self, arguments: &[&str]) -> Result<Value, String> {
        let text = self.kubectl(&[&["get", "-o=json"], arguments].concat())?;
        serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
    }

    /// Makes these objects, YAML or JSON. kubectl checks them by the apiserver's schema and waits for that no longer
    /// than 32 s, which is short for an emulated processor: whoever applies once more asks once more.
    pub(crate) fn apply(&self, objects: &str) {
        self.eventually("objects are applied", 40, || self.kubectl_fed(&["apply", "-f", "-"], objects).map(drop));
    }

    /// What the kubelet's API has here, by the apiserver's proxy: `stats/summary`.
    pub(crate) fn kubelet_api(&self, path: &str) -> Result<Value, String> {
        let text = self.kubectl(&["get", &format!("--raw=/api/v1/nodes/{NODE}/proxy/{path}")])?;
        serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
    }

    /// Every pod of the node.
    pub(crate) fn pods(&self) -> Result<Vec<Value>, String> {
        let list = self.get(&["pods", "--all-namespaces"])?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Waits until this many pods run, every container of them ready, and no other is there.
    pub(crate) fn wait_for_pods(&self, count: usize, seconds: u64) {
        self.eventually(&format!("{count} pods run"), seconds, || {
            let pods = self.pods()?;
            let ready =
                pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null() && is_ready(pod)).count();
            if (ready, pods.len()) == (count, count) {
                return Ok(());
            }
            let states = pods.iter().map(|pod| {
                format!("{} {} {}", pod["metadata"]["name"], pod["status"]["phase"], pod["status"]["containerStatuses"])
            });
            Err(format!("{ready} of {}: {}", pods.len(), states.collect::<Vec<_>>().join("; ")))
        });
    }
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// A pod with one container that sleeps, unless these parts of its container or of its spec say otherwise.
pub(crate) fn pod(name: &str, container: Value, spec: Value) -> Value {
    let mut own =
        json!({"name": "main", "image": BUSYBOX, "imagePullPolicy": "Never", "command": ["sleep", "1000000"]});
    own.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
    let mut whole = json!({"terminationGracePeriodSeconds": 1, "containers": [own]});
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": whole})
}
