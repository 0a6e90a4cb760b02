//! What is installed: the Helm chart and the kustomize base, rendered by the real tools over a matrix of values, and
//! held to each other, to the schemas of Kubernetes 1.28–1.36, to the Prometheus operator's own types, to the alerts,
//! the dashboards and the flags.
//!
//! `tests/deploy/tools.sh` puts the tools into `target/tools`.
//! `HEADROOM_UPDATE_DOCS=1 cargo test --test deploy manifests` writes what is generated anew.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

mod cluster;
mod command_line;
mod matrix;
mod mixin;
mod pod;
mod render;
mod rights;
mod words;
mod written;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use render::{Objects, chart, helm, kustomize, kustomize_with, needs, parse_all, project, read, template, tool};
use serde_json::{Value, json};

use crate::common;
use crate::common::prometheus::Release;

/// Those that only Helm writes.
const HELM_LABELS: [&str; 2] = ["helm.sh/chart", "app.kubernetes.io/managed-by"];
const OPERATOR: [&str; 6] = [
    "--api-versions",
    "monitoring.coreos.com/v1/PodMonitor",
    "--api-versions",
    "monitoring.coreos.com/v1/ServiceMonitor",
    "--api-versions",
    "monitoring.coreos.com/v1/PrometheusRule",
];

fn without_helm_labels(objects: Objects) -> Objects {
    let strip = |mut object: Value| {
        let labels = object["metadata"]["labels"].as_object_mut().unwrap();
        HELM_LABELS.iter().for_each(|label| drop(labels.remove(*label).expect("a label of Helm's")));
        object
    };
    objects.into_iter().map(|(key, object)| (key, strip(object))).collect()
}

/// Helm and kustomize make the same, but for Helm's labels, its test, and the namespace, which Helm cannot make with
/// labels.
fn same(what: &str, mut helm: Objects, mut kustomize: Objects) {
    helm.retain(|_, object| object["kind"] != "Pod");
    let namespace = kustomize.remove("v1 Namespace /headroom-exporter").expect("a namespace");
    assert_eq!(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "privileged");
    let helm = without_helm_labels(helm);
    let names = |objects: &Objects| objects.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&helm), names(&kustomize), "{what}");
    for (key, object) in &helm {
        assert_eq!(object, &kustomize[key], "{what}: {key}");
    }
}

#[test]
fn helm_and_kustomize_make_the_same() {
    needs!("helm", "kustomize");
    let base = kustomize("deploy/kustomize/base");
    assert_eq!(base.len(), 10);
    same("default", template("", "1.33.0", &[]), base);
    let all = kustomize("deploy/kustomize/prometheus-operator");
    // A rule file for each mode and one for the exporter.
    assert_eq!(all.len(), 10 + 1 + (headroom::modes::MODES.len() + 1) + 3);
    same("with the operator", template("dashboards: {enabled: true}", "1.33.0", &OPERATOR), all);
    for (component, values, version) in [
        ("kubernetes-before-1.30", "", "1.29.4"),
        ("no-runtime", "runtime: {enabled: false}", "1.33.0"),
        ("no-apiserver", "apiserver: {enabled: false}", "1.33.0"),
        ("private-root", "mountPropagation: None", "1.33.0"),
    ] {
        same(component, template(values, version, &[]), kustomize_with(&[component]));
    }
}

#[test]
fn the_linter_has_nothing_to_say() {
    needs!("helm");
    for case in matrix::CASES {
        let values = render::file(case.values);
        let said = helm(&["lint", "--strict", "--quiet", "--kube-version", "1.33.0", "-f", values.path(), &chart()]);
        assert!(said.is_ok(), "{}: {}", case.name, said.unwrap_err());
    }
}

/// Each file of values for a distribution is in the matrix, by its name, and in the table; each says something.
#[test]
fn every_distribution_is_rendered() {
    let table = render::read("deploy/helm/examples/README.md");
    let mut seen = 0;
    for entry in std::fs::read_dir(render::project("deploy/helm/examples")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name == "README.md" {
            continue;
        }
        seen += 1;
        let values = matrix::values(&name);
        assert!(table.contains(&format!("]({name})")), "{name}: not in the table");
        if tool("helm").is_some() {
            let [ours, default] = [values, ""].map(|values| render::text(&template(values, "1.33.0", &[])));
            assert_ne!(ours, default, "{name} changes nothing");
        }
    }
    assert!(seen >= 7, "{seen} distributions");
}

fn is_operators(object: &Value) -> bool {
    object["apiVersion"] == "monitoring.coreos.com/v1"
}

/// Every object of the whole matrix, each once, for each version of Kubernetes.
fn every_object() -> &'static BTreeMap<String, BTreeSet<String>> {
    static ALL: LazyLock<BTreeMap<String, BTreeSet<String>>> = LazyLock::new(render_everything);
    &ALL
}

fn render_everything() -> BTreeMap<String, BTreeSet<String>> {
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let texts = |objects: Objects| objects.into_values().map(|object| object.to_string()).collect::<BTreeSet<_>>();
    let mut put = |versions: std::ops::RangeInclusive<u32>, objects: BTreeSet<String>| {
        for minor in versions {
            all.entry(format!("1.{minor}")).or_default().extend(objects.iter().cloned());
        }
    };
    for case in matrix::CASES {
        // The profile of AppArmor is a field from 1.30 on; nothing else depends on the version.
        put(28..=29, texts(template(case.values, "1.28.0", &OPERATOR)));
        put(30..=36, texts(template(case.values, "1.36.2", &OPERATOR)));
    }
    put(28..=29, texts(kustomize_with(&["kubernetes-before-1.30"])));
    put(30..=36, texts(kustomize("deploy/kustomize/prometheus-operator")));
    put(30..=36, texts(kustomize_with(&["no-runtime", "no-apiserver", "private-root"])));
    all
}

#[test]
fn every_object_fits_the_schemas_of_kubernetes() {
    needs!("helm", "kustomize", "schemas");
    let parse = |text: &String| serde_json::from_str::<Value>(text).unwrap();
    let kubernetes: BTreeMap<String, Vec<Value>> = every_object()
        .iter()
        .map(|(version, texts)| (version.clone(), texts.iter().map(parse).filter(|o| !is_operators(o)).collect()))
        .collect();
    assert_eq!(
        kubernetes.keys().map(String::as_str).collect::<Vec<_>>(),
        ["1.28", "1.29", "1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36"]
    );
    let validate = |objects: &Value| render::validate(&objects.to_string());
    let said = validate(&json!(kubernetes)).unwrap_or_else(|wrong| panic!("{wrong}"));
    assert!(said.contains(" objects checked, 0 wrong"), "{said}");
    // The schemas do refuse.
    let mut wrong = kubernetes["1.36"].iter().find(|object| object["kind"] == "DaemonSet").unwrap().clone();
    wrong["spec"]["template"]["spec"]["hostPid"] = json!(true);
    let said = validate(&json!({ "1.36": [wrong] })).unwrap_err();
    assert!(said.contains("hostPid"), "{said}");
    let field = kubernetes["1.30"].iter().find(|object| object.to_string().contains("appArmorProfile")).unwrap();
    assert!(validate(&json!({ "1.29": [field] })).unwrap_err().contains("appArmorProfile"));
}

#[test]
fn every_object_of_the_operator_fits_its_types() {
    needs!("helm", "kustomize", "operator");
    let objects = &every_object()["1.36"];
    let operators: Vec<&str> =
        objects.iter().map(String::as_str).filter(|text| text.contains("monitoring.coreos")).collect();
    let kinds: BTreeSet<_> = operators
        .iter()
        .map(|text| serde_json::from_str::<Value>(text).unwrap()["kind"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        kinds.iter().map(String::as_str).collect::<Vec<_>>(),
        ["PodMonitor", "PrometheusRule", "ServiceMonitor"]
    );
    render::fed(&tool("operator").unwrap(), &[], &operators.join("\n")).unwrap_or_else(|wrong| panic!("{wrong}"));
    let wrong = operators[0].replacen("\"spec\":{", "\"spec\":{\"bogus\":1,", 1);
    assert!(render::fed(&tool("operator").unwrap(), &[], &wrong).unwrap_err().contains("bogus"));
}

/// Mode → what alerts/ says.
fn alerts() -> BTreeMap<String, Value> {
    let folders = std::fs::read_dir(project("alerts")).unwrap().map(|entry| entry.unwrap().path());
    folders
        .filter(|folder| folder.is_dir())
        .map(|folder| {
            let rules = std::fs::read_to_string(folder.join("rules.yaml")).unwrap();
            (folder.file_name().unwrap().to_str().unwrap().to_owned(), parse_all(&rules).remove(0))
        })
        .collect()
}

#[test]
fn the_rules_are_the_files_of_alerts() {
    needs!("helm", "kustomize");
    let releases = Release::with(&["promtool"]);
    let alerts = alerts();
    for objects in [template("", "1.33.0", &OPERATOR), kustomize("deploy/kustomize/prometheus-operator")] {
        let rules: Vec<&Value> = objects.values().filter(|object| object["kind"] == "PrometheusRule").collect();
        assert_eq!(rules.len(), alerts.len());
        for (mode, written) in &alerts {
            let name = format!("headroom-exporter-{}", mode.replace('_', "-"));
            let object = rules.iter().find(|object| object["metadata"]["name"] == name.as_str()).unwrap();
            assert_eq!(&object["spec"], written, "{mode}");
            let file = render::file(&object["spec"].to_string());
            for release in &releases {
                let (good, said) = release.run("promtool", &["check", "rules"], &[file.path().into()]);
                assert!(good, "{release:?}: {said}");
            }
        }
    }
    // Runbooks of one's own, and a mode left out.
    let own = template(matrix::values("operator"), "1.33.0", &[]);
    let text = own.values().map(Value::to_string).filter(|text| text.contains("PrometheusRule")).collect::<String>();
    assert!(text.contains("https://wiki.example.com/headroom/eviction/runbook.md#headroomevictionpredicted"));
    assert!(!text.contains("github.com") && !text.contains("headroom-exporter-kmem"));
    assert_eq!(text.matches("\"PrometheusRule\"").count(), alerts.len() - 1);
}

/// The rules know the exporter by its job, and the operator's labels of our own pod must not meet ours of the pods that
/// are observed.
#[test]
fn the_monitors_name_the_job_and_leave_our_labels_alone() {
    needs!("helm", "kustomize");
    let rules = read("alerts/exporter/rules.yaml");
    let job = rules.split("job=\"").nth(1).unwrap().split('"').next().unwrap();
    let operators = ["namespace", "pod", "container", "endpoint", "service"];
    let ours: BTreeSet<&str> =
        headroom::catalog::metrics().flat_map(|(_, metric)| metric.labels.iter().copied()).collect();
    assert!(operators.iter().any(|label| ours.contains(label)), "then nothing would have to be dropped");
    let service = "monitor: {enabled: true, kind: ServiceMonitor}";
    let all = [
        template("", "1.33.0", &OPERATOR),
        template(service, "1.33.0", &[]),
        kustomize("deploy/kustomize/prometheus-operator"),
    ];
    for objects in all {
        let monitor = objects.values().find(|object| object["kind"].as_str().unwrap().ends_with("Monitor")).unwrap();
        let endpoints = if monitor["kind"] == "PodMonitor" { "podMetricsEndpoints" } else { "endpoints" };
        let relabelings = monitor["spec"][endpoints][0]["relabelings"].as_array().unwrap();
        let rule = |key: &str, value: &str| relabelings.iter().find(|rule| rule[key] == value).unwrap_or(&Value::Null);
        assert_eq!(rule("targetLabel", "job")["replacement"], job);
        assert_eq!(rule("targetLabel", "instance")["sourceLabels"], json!(["__meta_kubernetes_pod_node_name"]));
        let dropped: Vec<&str> = rule("action", "labeldrop")["regex"].as_str().unwrap().split('|').collect();
        assert_eq!(dropped, operators);
    }
}

#[test]
fn the_dashboards_are_the_files_of_dashboards() {
    needs!("helm", "kustomize");
    let all =
        [template("dashboards: {enabled: true}", "1.33.0", &[]), kustomize("deploy/kustomize/prometheus-operator")];
    for objects in all {
        for name in ["apiserver", "fleet", "node"] {
            let map = &objects[&format!("v1 ConfigMap headroom-exporter/headroom-exporter-dashboard-{name}")];
            let file = format!("{name}.json");
            assert_eq!(map["data"][&file], read(&format!("dashboards/{file}")).as_str(), "{name}");
            assert_eq!(map["metadata"]["labels"]["grafana_dashboard"], "1");
            // What `kubectl apply` writes into its annotation, and the apiserver's limit for all annotations together.
            assert!(map.to_string().len() < 262_144, "{name}: too large for kubectl apply");
        }
    }
}

#[test]
fn a_package_has_the_real_files_and_renders_the_same() {
    needs!("helm");
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().to_str().unwrap();
    helm(&["package", &chart(), "-d", to]).unwrap();
    let package = format!("{to}/headroom-exporter-{}.tgz", env!("CARGO_PKG_VERSION"));
    let files = common::shell(&format!("tar tzf {package} | sort"));
    assert!(
        files.contains("/files/alerts/kmem/rules.yaml") && files.contains("/files/dashboards/node.json"),
        "{files}"
    );
    for surplus in ["test.yaml", "panels.json", "runbook.md", "kustomization.yaml", "alerts/README.md"] {
        assert!(!files.contains(surplus), "{files}");
    }
    let packed = common::shell(&format!("tar xzOf {package} headroom-exporter/files/alerts/kmem/rules.yaml"));
    assert_eq!(packed, read("alerts/kmem/rules.yaml"));
    let values = "dashboards: {enabled: true}";
    let from_package = render::template_of(&package, values, "1.33.0", &OPERATOR);
    assert_eq!(from_package, template(values, "1.33.0", &OPERATOR));
}
