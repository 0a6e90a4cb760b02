//! What the pod may do: the roles, the mounts, the capabilities; and that with them it reads what it must.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::render::{self, Objects, container, kustomize, needs, read, template};
use super::{OPERATOR, common, matrix, pod};

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

    let security = read("docs/security.md");
    let section = security.split("\n### ").find(|section| section.starts_with("What the apiserver is asked")).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let named: BTreeSet<&str> =
        section.split("`get` on `").skip(1).map(|rest| rest.split('`').next().unwrap()).collect();
    let every: BTreeSet<String> = of("apiserver: {probeKubelet: true}");
    let every: BTreeSet<&str> = every.iter().map(|permission| permission.split(' ').nth(1).unwrap()).collect();
    // The kubelet is asked for its configuration, which that section is not about.
    assert!(security.contains("`nodes/configz`"));
    assert_eq!(named.iter().copied().chain(["nodes/configz"]).collect::<BTreeSet<_>>(), every);
}

/// What `helm test` runs asks the apiserver as the exporter does, and has none of the exporter's rights on the node.
#[test]
fn the_test_pod_fits_the_level_restricted() {
    const KEY: &str = "v1 Pod headroom-exporter/headroom-exporter-test";
    needs!("helm");
    for case in matrix::CASES {
        let objects = template(case.values, "1.33.0", &[]);
        let Some(test) = objects.values().find(|object| object["kind"] == "Pod") else { continue };
        let daemonset = objects.values().find(|object| object["kind"] == "DaemonSet").unwrap();
        let (name, spec) = (case.name, &test["spec"]);
        assert_eq!(test["metadata"]["annotations"]["helm.sh/hook"], "test", "{name}");
        for key in ["hostPID", "hostNetwork", "hostIPC", "volumes", "priorityClassName"] {
            assert!(spec[key].is_null(), "{name}: {key}");
        }
        assert_eq!(
            spec["securityContext"],
            json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}})
        );
        assert_eq!(
            spec["containers"][0]["securityContext"],
            json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}})
        );
        let pod = &daemonset["spec"]["template"]["spec"];
        for key in ["serviceAccountName", "nodeSelector", "tolerations", "affinity", "imagePullSecrets"] {
            assert_eq!(spec[key], pod[key], "{name}: {key}");
        }
        assert_eq!(spec["containers"][0]["image"], pod["containers"][0]["image"], "{name}");
        let selected = daemonset["spec"]["selector"]["matchLabels"].as_object().unwrap();
        let labels = &test["metadata"]["labels"];
        assert!(selected.iter().any(|(key, value)| &labels[key] != value), "{name}: the DaemonSet would take it");
        let environment = render::environment(&spec["containers"][0]);
        assert!(environment.iter().all(|(name, _)| !name.starts_with("HEADROOM_PATH_")), "{name}: {environment:?}");
    }
    let has = |values: &str| template(values, "1.33.0", &[]).contains_key(KEY);
    assert!(has("") && has("rbac: {create: false}"));
    for without in [
        "apiserver: {enabled: false}",
        "flags: {collector.node_status: false}",
        "flags: {collector.disable-defaults: true}",
        "flags: {apiserver.url: \"off\"}",
        "flags: {kubeconfig: /host/root/etc/kubernetes/kubelet.conf}",
    ] {
        assert!(!has(without), "{without}");
    }
    // The command line is one that the binary takes, and whom it may not ask is a failure.
    let objects = template("", "1.33.0", &[]);
    let container = &objects[KEY]["spec"]["containers"][0];
    let arguments = container["args"].as_array().unwrap().iter().map(|argument| argument.as_str().unwrap());
    let doctor = std::process::Command::new(env!("CARGO_BIN_EXE_headroom-exporter"))
        .args(arguments)
        .args(["--for=1s", "--apiserver.url=https://127.0.0.1:9"])
        .envs(render::environment(container))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&doctor.stdout);
    assert!(doctor.status.code() == Some(1) && said.contains("cannot tell  node_status"), "{doctor:?}");
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
        assert_eq!(
            (&mount["readOnly"], &mount["mountPropagation"]),
            (&json!(true), &json!("HostToContainer")),
            "{mount}"
        );
    }
    let private = template(matrix::values("a host whose / is private"), "1.33.0", &[]);
    let mounts = render::container(&private)["volumeMounts"].as_array().unwrap();
    assert!(mounts.iter().all(|mount| mount["mountPropagation"] == "None"), "{mounts:?}");
    assert!(container["resources"]["limits"]["memory"].is_string());
    // A provider's version is a pre-release to a comparison that does not know better.
    let provider = render::text(&template("", "1.30.2-gke.1587000", &[]));
    assert!(provider.contains(r#""appArmorProfile":{"type":"Unconfined"}"#), "{provider}");
    // With TLS the probes and the monitor come by TLS; who must show a certificate cannot be asked by the kubelet.
    let web = render::text(&template(matrix::values("tls"), "1.33.0", &OPERATOR));
    assert!(web.contains(r#""scheme":"HTTPS""#) && web.contains(r#""scheme":"https""#), "{web}");
    let client = template(matrix::values("client certificates"), "1.33.0", &[]);
    assert!(render::container(&client)["livenessProbe"]["tcpSocket"].is_object());
}

/// Errors for want of permission, by collector.
fn denied(page: &common::Page) -> Vec<(&str, f64)> {
    let errors = page.family("headroom_collector_errors_total");
    errors.filter(|(series, count)| series.contains("reason=\"denied\"") && *count > 0.0).collect()
}

#[test]
fn the_pod_as_rendered_reads_what_it_must() {
    needs!("kustomize");
    if !common::is_root() {
        skip!("only root can give a process the pod's mounts and capabilities");
    }
    let objects = kustomize("deploy/kustomize/base");
    let container = container(&objects);
    let folder = tempfile::tempdir().unwrap();
    let page_with = |capabilities: &Value| {
        let mut container = container.clone();
        let arguments = container["args"].as_array_mut().unwrap();
        arguments.push(json!("--collector.open_files.daemons=sleep"));
        let exporter = pod::start(&container, capabilities, folder.path());
        common::eventually("it is ready", || exporter.get("/readyz", &[]).status == 200);
        exporter.scrape()
    };
    let page = page_with(&container["securityContext"]["capabilities"]["add"]);
    assert_eq!(denied(&page), []);
    // What somebody else's descriptors are shows only to who may look at the process.
    let witness: f64 = std::fs::read_to_string(folder.path().join("witness")).unwrap().trim().parse().unwrap();
    let kinds = page.family("headroom_process_fds").filter(|(series, _)| series.contains("comm=\"sleep\""));
    assert_eq!(kinds.map(|(_, count)| count).sum::<f64>(), witness, "{page:#?}");
    for collector in ["cgroup_leak", "open_files", "pod_interface", "kmem"] {
        assert_ne!(page.outcome(collector), "failed", "{collector}: {page:#?}");
    }
    // Without them it says so.
    assert_ne!(denied(&page_with(&json!([]))), []);
}
