//! What people see: refusals, what `helm install` says, the generated documents.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::render::{self, chart, helm, needs, parse_all, project, read};
use super::{cluster, matrix, written};
use crate::common::generated;

#[test]
fn a_wrong_value_fails_clearly() {
    needs!("helm");
    for (values, words) in matrix::WRONG {
        let file = render::file(values);
        let said = helm(&["template", "x", &chart(), "--kube-version", "1.33.0", "-f", file.path()]).expect_err(values);
        for word in *words {
            assert!(said.contains(word), "{values}: {word:?} is not in: {said}");
        }
    }
    let old = helm(&["template", "x", &chart(), "--kube-version", "1.27.9"]).unwrap_err();
    assert!(old.contains("requires kubeVersion: >=1.28"), "{old}");
}

/// What `helm install` says, as people see it.
fn installed(with_operator: bool, values: &str) -> String {
    let cluster = cluster::Cluster::start(with_operator);
    let values = render::file(values);
    let arguments =
        ["--dry-run=server", "--disable-openapi-validation", "--kube-apiserver", &cluster.url, "-f", values.path()];
    let said = helm(&[&["install", "headroom-exporter", &chart(), "--namespace", "nodes"], &arguments[..]].concat());
    said.unwrap_or_else(|said| panic!("{said}"))
}

#[test]
fn the_cluster_decides_whether_there_are_monitors() {
    needs!("helm");
    let (plain, operator) = (installed(false, ""), installed(true, ""));
    assert!(!plain.contains("kind: PodMonitor") && !plain.contains("kind: PrometheusRule"));
    assert!(
        plain.contains("no PodMonitor was made (the cluster has no such CRD)") && plain.contains("Nobody is paged")
    );
    assert!(operator.contains("kind: PodMonitor") && operator.contains("kind: PrometheusRule"));
    assert!(operator.contains("Prometheus: PodMonitor nodes/headroom-exporter, job \"headroom-exporter\""));
    for said in [&plain, &operator] {
        assert!(said.contains("kubectl label namespace nodes pod-security.kubernetes.io/enforce=privileged"), "{said}");
        assert!(said.contains("as good as root") && said.contains("can read the metrics"), "{said}");
    }
    assert!(plain.contains("helm -n nodes test headroom-exporter\n"), "{plain}");
    let less = installed(true, matrix::values("tls"));
    assert!(
        less.contains("curl -k -s https://127.0.0.1:10843/metrics") && !less.contains("can read the metrics"),
        "{less}"
    );
    let less = installed(true, "{runtime: {enabled: false}, apiserver: {enabled: false}, monitor: {enabled: false}}");
    assert!(less.contains("never talks to the container runtime") && less.contains("has no token"), "{less}");
    assert!(!less.contains(" test headroom-exporter"), "{less}");
    assert!(less.contains("(monitor.enabled is false)"), "{less}");
    assert!(plain.contains("not a shared or slave mount") && plain.contains("--set mountPropagation=None"), "{plain}");
    let private = installed(false, "mountPropagation: None");
    assert!(private.contains("mountPropagation is None") && !private.contains("shared or slave"), "{private}");
    assert!(installed(true, "apiserver: {probeKubelet: true}").contains("WARNING: apiserver.probeKubelet"));
    assert!(installed(true, "web: {kubernetesAuth: true}").contains("WARNING: web.kubernetesAuth without TLS"));
}

#[test]
fn what_is_generated_is_up_to_date() {
    generated::file("deploy/helm/headroom-exporter/values.schema.json", &written::schema());
    generated::file("deploy/kustomize/prometheus-operator/rules.yaml", &written::rules());
    generated::part("deploy/helm/headroom-exporter/README.md", "values", &written::values());
}

#[test]
fn every_value_has_its_words_and_its_schema() {
    let values = parse_all(&read("deploy/helm/headroom-exporter/values.yaml")).remove(0);
    let schema: Value = serde_json::from_str(&read("deploy/helm/headroom-exporter/values.schema.json")).unwrap();
    let mut wrong = written::differences(&values, &schema);
    let rows: BTreeSet<String> = written::rows().into_iter().map(|row| row.path).collect();
    for (name, value) in values.as_object().unwrap() {
        let described = rows.contains(name)
            || value.as_object().is_some_and(|keys| keys.keys().all(|key| rows.contains(&format!("{name}.{key}"))));
        if !described {
            wrong.push(format!("{name}: no comment above it"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn versions_are_one() {
    let version = env!("CARGO_PKG_VERSION");
    let chart = parse_all(&read("deploy/helm/headroom-exporter/Chart.yaml")).remove(0);
    assert_eq!((&chart["version"], &chart["appVersion"]), (&json!(version), &json!(version)));
    let mut files = vec!["dashboards/kustomization.yaml".to_owned()];
    for folder in ["base", "prometheus-operator"] {
        let entries = std::fs::read_dir(project(&format!("deploy/kustomize/{folder}"))).unwrap();
        files
            .extend(entries.map(|entry| format!("deploy/kustomize/{folder}/{}", entry.unwrap().file_name().display())));
    }
    for file in files {
        let text = read(&file);
        for line in text.lines().filter(|line| line.contains("app.kubernetes.io/version") || line.contains("image: ")) {
            assert!(line.trim_end_matches('"').ends_with(version), "{file}: {line}");
        }
    }
}
