//! What is deployed asks for the rights that `docs/security.md` proves, and for no other.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{SECURITY, lab};

fn read(path: &str) -> String {
    std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The code block in this language that begins with this line.
fn block(language: &str, first: &str) -> &'static str {
    let start = format!("```{language}\n{first}");
    let at = SECURITY.find(&start).unwrap_or_else(|| panic!("no block {start}"));
    let text = &SECURITY[at..][language.len() + 4..];
    text.split("```").next().unwrap()
}

/// Capabilities as they are called without `CAP_`, whoever writes them.
fn names<'a>(words: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    let name = |word: &str| word.trim_start_matches('+').to_uppercase().trim_start_matches("CAP_").to_owned();
    words.into_iter().map(name).collect()
}

/// The container's, with `add` as a set: its order means nothing.
fn normal(mut context: Value) -> (Value, BTreeSet<String>) {
    let add = context["capabilities"]["add"].take();
    (context, names(add.as_array().unwrap().iter().map(|word| word.as_str().unwrap())))
}

/// `hostPID`, `hostNetwork` of a pod or of the values.
fn namespaces(pod: &Value) -> (bool, bool) {
    (pod["hostPID"] == true, pod["hostNetwork"] == true)
}

#[test]
fn what_is_deployed_is_what_is_proved() {
    let said = yaml(block("yaml", "# Pod"));
    let (context, capabilities) = normal(said["securityContext"].clone());
    assert_eq!(namespaces(&said), (true, true));

    // What the row `full` and the container run with.
    let bounding = lab::FULL[0].strip_prefix("--bounding-set=-all,").unwrap();
    assert_eq!(names(bounding.split(',')), capabilities, "the test's own");

    let values = yaml(&read("deploy/helm/headroom-exporter/values.yaml"));
    assert_eq!(namespaces(&values), (true, true), "values.yaml");
    assert_eq!(normal(values["securityContext"].clone()), (context.clone(), capabilities.clone()), "values.yaml");
    assert_eq!(values["appArmorProfile"], "Unconfined");
    assert!(SECURITY.contains("appArmorProfile: {type: Unconfined}"));

    let daemonset = yaml(&read("deploy/kustomize/base/daemonset.yaml"));
    let pod = &daemonset["spec"]["template"]["spec"];
    let mut deployed = pod["containers"][0]["securityContext"].clone();
    // Beside the context in the values; Kubernetes before 1.30 has no such field.
    assert_eq!(deployed.as_object_mut().unwrap().remove("appArmorProfile").unwrap()["type"], "Unconfined");
    assert_eq!(namespaces(pod), (true, true), "kustomize");
    assert_eq!(normal(deployed), (context, capabilities.clone()), "kustomize");
    let initial = pod["initContainers"].as_array().into_iter().flatten().count();
    assert_eq!((pod["containers"].as_array().unwrap().len(), initial), (1, 0), "every container is looked at");

    let unit = read("deploy/systemd/headroom-exporter.service");
    let ini = block("ini", "# systemd");
    for setting in ["CapabilityBoundingSet", "NoNewPrivileges"] {
        let values = |text: &str| -> Vec<BTreeSet<String>> {
            let lines = text.lines().filter_map(|line| line.strip_prefix(setting)?.strip_prefix('='));
            lines.map(|value| names(value.split_whitespace())).collect()
        };
        assert_eq!(values(&unit), values(ini), "{setting}");
        assert_eq!(values(ini).len(), 1, "{setting}");
    }
    assert_eq!(
        names(ini.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap().split(' ')),
        capabilities
    );
}
