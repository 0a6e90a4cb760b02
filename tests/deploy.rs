//! What is installed: the Helm chart and the kustomize base, rendered by the real tools over a matrix of values, and held to each other, to the
//! schemas of Kubernetes 1.28–1.36, to the Prometheus operator's own types, to the alerts, the dashboards and the flags.
//!
//! `tests/deploy/tools.sh` puts the tools into `target/tools`. `HEADROOM_UPDATE_DOCS=1 cargo test --test deploy` writes what is generated anew.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

mod common;
#[path = "deploy/matrix.rs"]
mod matrix;
#[path = "deploy/render.rs"]
mod render;
#[path = "deploy/written.rs"]
mod written;

use std::collections::{BTreeMap, BTreeSet};

use headroom::config::{Config, command};
use render::{Objects, chart, helm, kustomize, kustomize_with, needs, parse_all, project, read, template, tool};
use serde_json::{Value, json};

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

/// Helm and kustomize make the same, but for Helm's labels and the namespace, which Helm cannot make with labels.
fn same(what: &str, helm: Objects, mut kustomize: Objects) {
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
    assert_eq!(all.len(), 10 + 1 + 9 + 3);
    same("with the operator", template("dashboards: {enabled: true}", "1.33.0", &OPERATOR), all);
    for (component, values, version) in [
        ("kubernetes-before-1.30", "", "1.29.4"),
        ("no-runtime", "runtime: {enabled: false}", "1.33.0"),
        ("no-apiserver", "apiserver: {enabled: false}", "1.33.0"),
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

fn is_operators(object: &Value) -> bool {
    object["apiVersion"] == "monitoring.coreos.com/v1"
}

/// Every object of the whole matrix, each once, for each version of Kubernetes.
fn every_object() -> BTreeMap<String, BTreeSet<String>> {
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
    put(30..=36, texts(kustomize_with(&["no-runtime", "no-apiserver"])));
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
    assert_eq!(kubernetes.keys().map(String::as_str).collect::<Vec<_>>(), [
        "1.28", "1.29", "1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36"
    ]);
    let validate = |objects: &Value| render::validate(&objects.to_string());
    let said = validate(&json!(kubernetes)).unwrap_or_else(|wrong| panic!("{wrong}"));
    println!("{said}");
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
    let operators: Vec<&str> = objects.iter().map(String::as_str).filter(|text| text.contains("monitoring.coreos")).collect();
    let kinds: BTreeSet<_> =
        operators.iter().map(|text| serde_json::from_str::<Value>(text).unwrap()["kind"].as_str().unwrap().to_owned()).collect();
    assert_eq!(kinds.iter().map(String::as_str).collect::<Vec<_>>(), ["PodMonitor", "PrometheusRule", "ServiceMonitor"]);
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
    needs!("helm", "kustomize", "promtool");
    let alerts = alerts();
    for objects in [template("", "1.33.0", &OPERATOR), kustomize("deploy/kustomize/prometheus-operator")] {
        let rules: Vec<&Value> = objects.values().filter(|object| object["kind"] == "PrometheusRule").collect();
        assert_eq!(rules.len(), alerts.len());
        for (mode, written) in &alerts {
            let name = format!("headroom-exporter-{}", mode.replace('_', "-"));
            let object = rules.iter().find(|object| object["metadata"]["name"] == name.as_str()).unwrap();
            assert_eq!(&object["spec"], written, "{mode}");
            let file = render::file(&object["spec"].to_string());
            common::shell(&format!("promtool check rules {}", file.path()));
        }
    }
    // Runbooks of one's own, and a mode left out.
    let own = template(matrix::values("operator"), "1.33.0", &[]);
    let text = own.values().map(Value::to_string).filter(|text| text.contains("PrometheusRule")).collect::<String>();
    assert!(text.contains("https://wiki.example.com/headroom/eviction/runbook.md#headroomevictionpredicted"));
    assert!(!text.contains("github.com") && !text.contains("headroom-exporter-kmem"));
    assert_eq!(text.matches("\"PrometheusRule\"").count(), alerts.len() - 1);
}

#[test]
fn the_dashboards_are_the_files_of_dashboards() {
    needs!("helm", "kustomize");
    let all = [template("dashboards: {enabled: true}", "1.33.0", &[]), kustomize("deploy/kustomize/prometheus-operator")];
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

/// The container of the DaemonSet.
fn container(objects: &Objects) -> &Value {
    let daemonset = objects.values().find(|object| object["kind"] == "DaemonSet").expect("a DaemonSet");
    &daemonset["spec"]["template"]["spec"]["containers"][0]
}

fn arguments(objects: &Objects) -> Vec<String> {
    let arguments = container(objects)["args"].as_array().unwrap();
    arguments.iter().map(|argument| argument.as_str().unwrap().replace("$(NODE_NAME)", "node-1")).collect()
}

/// Flags of the web side that an exporter without it does not have.
fn known(argument: &String) -> bool {
    let name = argument.trim_start_matches('-').split('=').next().unwrap();
    let coming = ["web.config.file", "web.kubernetes-auth"].contains(&name);
    !coming || command().get_arguments().any(|arg| arg.get_long() == Some(name))
}

#[test]
fn the_exporter_takes_every_command_line() {
    needs!("helm", "kustomize");
    let mut all: Vec<(String, Objects)> = matrix::CASES
        .iter()
        .map(|case| (case.name.to_owned(), template(case.values, "1.33.0", &[])))
        .collect();
    all.push(("kustomize".into(), kustomize_with(&["no-runtime", "no-apiserver"])));
    for (name, objects) in all {
        let arguments = arguments(&objects);
        let known: Vec<&String> = arguments.iter().filter(|argument| known(argument)).collect();
        let line = || std::iter::once("headroom-exporter").chain(known.iter().map(|argument| argument.as_str()));
        command().try_get_matches_from(line()).unwrap_or_else(|error| panic!("{name}: {error}"));
        // The file of the web configuration is in the pod only.
        if !arguments.iter().any(|argument| argument.starts_with("--web.config.file")) {
            Config::parse(line()).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        // Each argument is one that is listened to, not a value of the one before.
        assert!(arguments.iter().all(|argument| argument.starts_with("--")), "{name}: {arguments:?}");
    }
}

#[test]
fn every_flag_can_be_set() {
    needs!("helm");
    let (mut values, mut expected) = (serde_json::Map::new(), BTreeSet::new());
    for flag in written::flags().filter(|flag| !flag.is_own()) {
        let (value, arguments) = flag.sample();
        values.insert(flag.long.clone(), value);
        expected.extend(arguments);
    }
    assert!(values.len() > 40, "{}", values.len());
    let objects = template(&json!({ "flags": values }).to_string(), "1.33.0", &[]);
    let arguments = arguments(&objects);
    let missing: Vec<_> = expected.iter().filter(|argument| !arguments.contains(argument)).collect();
    assert!(missing.is_empty(), "{missing:?} not in {arguments:#?}");
    command().try_get_matches_from(std::iter::once("x").chain(arguments.iter().map(String::as_str))).unwrap();
    // `false` is the opposite.
    let off = template(r#"flags: {"collector.kmem": false, "apiserver.insecure-skip-verify": false}"#, "1.33.0", &[]);
    let off = render::text(&off);
    assert!(off.contains("--no-collector.kmem") && !off.contains("insecure-skip-verify"));
    // The chart's own flags have values of their own.
    for (long, values, argument) in written::OWN {
        if let Some(values) = values {
            let text = render::text(&template(values, "1.33.0", &[]));
            assert!(text.contains(&format!("\"{argument}\"")), "{long}: no {argument} with {values}");
        }
    }
}

/// What the roles allow: `get nodes`, `get endpointslices kubernetes` …
fn permissions(objects: &Objects) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for object in objects.values().filter(|object| object["kind"].as_str().unwrap().ends_with("Role")) {
        for rule in object["rules"].as_array().unwrap() {
            let words = |key: &str| -> Vec<String> {
                rule[key].as_array().into_iter().flatten().map(|word| word.as_str().unwrap().to_owned()).collect()
            };
            for verb in words("verbs") {
                for resource in words("resources") {
                    all.insert(format!("{verb} {resource} {}", words("resourceNames").join(",")).trim_end().to_owned());
                }
            }
        }
    }
    all
}

#[test]
fn the_roles_are_what_the_readme_says_and_no_more() {
    needs!("helm", "kustomize");
    let default = ["get endpointslices kubernetes", "get leases", "get nodes", "get nodes/configz"];
    let of = |values: &str| permissions(&template(values, "1.33.0", &[]));
    let set = |permissions: &[&str]| permissions.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    assert_eq!(of(""), set(&default));
    assert_eq!(permissions(&kustomize("deploy/kustomize/base")), set(&default));
    assert_eq!(of("apiserver: {probeKubelet: true}"), set(&[&default[..], &["get nodes/proxy"]].concat()));
    assert_eq!(
        of("web: {kubernetesAuth: true}"),
        set(&[&default[..], &["create tokenreviews", "create subjectaccessreviews"]].concat())
    );
    assert_eq!(of(r#"flags: {"collector.node_status": false}"#), set(&[default[0], default[3]]));
    assert_eq!(of(r#"flags: {"collector.disable-defaults": true, "collector.eviction": true}"#), set(&[default[3]]));
    // Nothing, and no token either.
    let none = template("apiserver: {enabled: false}", "1.33.0", &[]);
    assert!(none.keys().all(|key| !key.contains("Role")), "{:?}", none.keys());
    let pod = |objects: &Objects| {
        objects.values().find(|object| object["kind"] == "DaemonSet").unwrap()["spec"]["template"]["spec"].clone()
    };
    assert_eq!(pod(&none)["automountServiceAccountToken"], false);
    assert_eq!(none["v1 ServiceAccount headroom-exporter/headroom-exporter"]["automountServiceAccountToken"], false);

    let readme = read("README.md");
    let section = readme.split("\n## ").find(|section| section.starts_with("What the apiserver is asked")).unwrap();
    let named: BTreeSet<&str> =
        section.split("`get` on `").skip(1).map(|rest| rest.split('`').next().unwrap()).collect();
    let every: BTreeSet<String> = of("apiserver: {probeKubelet: true}");
    let every: BTreeSet<&str> = every.iter().map(|permission| permission.split(' ').nth(1).unwrap()).collect();
    // The kubelet is asked for its configuration, which that section is not about.
    assert!(readme.contains("`nodes/configz`"));
    assert_eq!(named.iter().copied().chain(["nodes/configz"]).collect::<BTreeSet<_>>(), every);
}

/// A comment of a role names series; all are declared.
#[test]
fn the_series_in_the_comments_of_the_roles_exist() {
    for file in ["deploy/kustomize/base/rbac.yaml", "deploy/helm/headroom-exporter/templates/rbac.yaml"] {
        let text = read(file);
        let names = text.lines().filter(|line| line.trim_start().starts_with('#')).flat_map(|line| {
            line.split(|c: char| !(c.is_ascii_lowercase() || c == '_')).filter(|word| word.starts_with("headroom_"))
        });
        let mut seen = 0;
        for name in names {
            seen += 1;
            let declared = headroom::catalog::metrics().any(|(_, metric)| metric.name.starts_with(name));
            assert!(declared, "{file}: {name}");
        }
        assert!(seen >= 5, "{file}: {seen}");
    }
}

#[test]
fn the_pod_is_bounded_and_read_only() {
    needs!("helm");
    let objects = template("", "1.33.0", &[]);
    let container = container(&objects);
    let context = &container["securityContext"];
    assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
    assert_eq!(context["readOnlyRootFilesystem"], true);
    assert_eq!(context["allowPrivilegeEscalation"], false);
    assert_eq!(context["privileged"], false);
    assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault");
    for mount in container["volumeMounts"].as_array().unwrap() {
        assert_eq!((&mount["readOnly"], &mount["mountPropagation"]), (&json!(true), &json!("HostToContainer")), "{mount}");
    }
    assert!(container["resources"]["limits"]["memory"].is_string());
    // With TLS the probes and the monitor come by TLS; who must show a certificate cannot be asked by the kubelet.
    let web = render::text(&template(matrix::values("tls"), "1.33.0", &OPERATOR));
    assert!(web.contains(r#""scheme":"HTTPS""#) && web.contains(r#""scheme":"https""#), "{web}");
    let client = template(matrix::values("client certificates"), "1.33.0", &[]);
    assert!(self::container(&client)["livenessProbe"]["tcpSocket"].is_object());
}

#[test]
fn a_package_has_the_real_files_and_renders_the_same() {
    needs!("helm");
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().to_str().unwrap();
    helm(&["package", &chart(), "-d", to]).unwrap();
    let package = format!("{to}/headroom-exporter-{}.tgz", env!("CARGO_PKG_VERSION"));
    let files = common::shell(&format!("tar tzf {package} | sort"));
    assert!(files.contains("/files/alerts/kmem/rules.yaml") && files.contains("/files/dashboards/node.json"), "{files}");
    for surplus in ["test.yaml", "runbook.md", "kustomization.yaml", "alerts/README.md"] {
        assert!(!files.contains(surplus), "{files}");
    }
    let packed = common::shell(&format!("tar xzOf {package} headroom-exporter/files/alerts/kmem/rules.yaml"));
    assert_eq!(packed, read("alerts/kmem/rules.yaml"));
    let values = "dashboards: {enabled: true}";
    let from_package = render::template_of(&package, values, "1.33.0", &OPERATOR);
    assert_eq!(from_package, template(values, "1.33.0", &OPERATOR));
}

#[test]
fn what_is_generated_is_up_to_date() {
    written::up_to_date("deploy/helm/headroom-exporter/values.schema.json", &written::schema());
    written::up_to_date("deploy/kustomize/prometheus-operator/rules.yaml", &written::rules());
    written::up_to_date("deploy/helm/headroom-exporter/README.md", &written::readme());
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
        files.extend(entries.map(|entry| format!("deploy/kustomize/{folder}/{}", entry.unwrap().file_name().display())));
    }
    for file in files {
        let text = read(&file);
        for line in text.lines().filter(|line| line.contains("app.kubernetes.io/version") || line.contains("image: ")) {
            assert!(line.trim_end_matches('"').ends_with(version), "{file}: {line}");
        }
    }
}
