//! The exporter as users deploy it, by kustomize and by Helm, in namespaces in which Pod Security is enforced.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::json;

use crate::bed::{self, ADDRESS, Cluster, EXPORTER, Kubelet};
use crate::checks::{Checks, same, say};
use crate::common;
use crate::page::Page;

const NAMESPACE: &str = "headroom-exporter";

#[test]
fn by_kustomize_and_by_helm() {
    alone!();
    let Some(helm) = helm() else { skip!("no helm (tests/deploy/tools.sh)") };
    let mut cluster = match Cluster::start() {
        Ok(cluster) => cluster,
        Err(why) => skip!("{why}"),
    };
    bed::import_exporter(cluster.dir());
    let mut checks = Checks::new();
    by_kustomize(&mut cluster, &mut checks);
    by_helm(&cluster, &helm, &mut checks);
    refused_by_pod_security(&cluster, &helm, &mut checks);
    checks.end("deployed");
}

/// What is deployed from.
fn deploy(path: &str) -> PathBuf {
    let folder = std::env::var_os("HEADROOM_TEST_DEPLOY").map(PathBuf::from);
    folder.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")).join(path)
}

/// What tests/deploy/tools.sh has made, or what is on the PATH.
fn helm() -> Option<PathBuf> {
    let made = Path::new(env!("CARGO_BIN_EXE_headroom-exporter")).parent()?.parent()?.join("tools/helm");
    if made.exists() { Some(made) } else { common::has("helm").then(|| "helm".into()) }
}

fn by_kustomize(cluster: &mut Cluster, checks: &mut Checks) {
    let begun = Instant::now();
    let overlay = cluster.dir().join("overlay");
    std::fs::create_dir(&overlay).unwrap();
    // kustomize takes what is below the overlay only.
    common::shell(&format!("cp -rL {} {}/base", deploy("kustomize/base").display(), overlay.display()));
    let image =
        json!({"name": "ghcr.io/headroom-exporter/headroom-exporter", "newName": EXPORTER.0, "newTag": EXPORTER.1});
    let kustomization = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": ["base"], "images": [image],
    });
    std::fs::write(overlay.join("kustomization.yaml"), kustomization.to_string()).unwrap();
    let folder = overlay.to_str().unwrap();
    let applied = cluster.kubectl(&["apply", "-k", folder]);
    checks.check("kubectl apply -k", applied.map(drop));
    checks.check("kustomize: its DaemonSet is rolled out", rolled_out(cluster));
    say(format_args!("kustomize: Ready after {:.1} s", begun.elapsed().as_secs_f64()));
    checks.soon("kustomize: every collector is ok", 60, || page().every_collector_is_ok());
    checks.soon("kustomize: thresholds are the running kubelet's", 20, || {
        same(page().all("headroom_eviction_config_info", &[("source", "configz")]).count(), 1)
    });
    checks.soon("kustomize: doctor in its pod can tell of every mode", 60, || doctor(cluster));
    checks.soon("kustomize: its own pod has its name", 30, || {
        let page = page();
        let own =
            page.all("headroom_process_open_fds", &[("namespace", NAMESPACE), ("container", "headroom-exporter")]);
        same(own.count(), 1)
    });
    for kubelet in [Kubelet::SelfSigned, Kubelet::AtTheNode, Kubelet::Signed] {
        cluster.serve_kubelet(kubelet);
        checks.soon(&format!("the running kubelet is asked that serves {kubelet:?}"), 45, || {
            page().every_collector_is_ok()?;
            same(page().all("headroom_eviction_config_info", &[("source", "configz")]).count(), 1)
        });
    }
    let deleted = cluster.kubectl(&["delete", "-k", folder, "--wait=true", "--timeout=60s"]);
    checks.check("kubectl delete -k", deleted.map(drop));
    checks.soon("kustomize: nothing is left", 60, || nothing_left(cluster));
}

fn by_helm(cluster: &Cluster, helm: &Path, checks: &mut Checks) {
    let begun = Instant::now();
    cluster.kubectl(&["create", "namespace", NAMESPACE]).unwrap();
    // As the chart's README says.
    let level = "pod-security.kubernetes.io/enforce=privileged";
    cluster.kubectl(&["label", "namespace", NAMESPACE, level]).unwrap();
    checks.check("helm install", run_helm(cluster, helm, &["install"], &[]));
    checks.check("helm: its DaemonSet is rolled out", rolled_out(cluster));
    say(format_args!("helm: Ready after {:.1} s", begun.elapsed().as_secs_f64()));
    checks.soon("helm: every collector is ok", 60, || page().every_collector_is_ok());
    checks.soon("helm: doctor in its pod can tell of every mode", 60, || doctor(cluster));
    let started = page().one("process_start_time_seconds", &[]);
    let flag = "flags.collector\\.node_status\\.lease-interval=5s";
    checks.check("helm upgrade", run_helm(cluster, helm, &["upgrade"], &["--set", flag]));
    checks.check("helm: the upgrade is rolled out", rolled_out(cluster));
    checks.soon("helm: another process serves after the upgrade", 30, || {
        let (before, after) = (started.clone()?, page().one("process_start_time_seconds", &[])?);
        if after > before { Ok(()) } else { Err(format!("started at {before}, and at {after}")) }
    });
    checks.soon("helm: every collector is ok after the upgrade", 60, || page().every_collector_is_ok());
    let removed = helm_command(cluster, helm, &["uninstall", "headroom-exporter", "--wait", "--timeout=60s"]);
    checks.check("helm uninstall", removed);
    checks.check("helm: its namespace goes", cluster.kubectl(&["delete", "namespace", NAMESPACE]).map(drop));
    checks.soon("helm: nothing is left", 60, || nothing_left(cluster));
}

/// Under a level that does not admit it no pod comes, and the reason is to be seen. `helm test` needs no such level.
fn refused_by_pod_security(cluster: &Cluster, helm: &Path, checks: &mut Checks) {
    cluster.kubectl(&["create", "namespace", NAMESPACE]).unwrap();
    cluster.kubectl(&["label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=baseline"]).unwrap();
    checks.check("helm install under baseline", run_helm(cluster, helm, &["install"], &[]));
    checks.soon("baseline: the DaemonSet's events say why no pod comes", 30, || {
        let events =
            cluster.kubectl(&["get", "events", "--namespace", NAMESPACE, "-o=jsonpath={.items[*].message}"])?;
        let named = ["violates PodSecurity", "hostPath", "host namespaces"];
        match named.into_iter().find(|word| !events.contains(word)) {
            None => Ok(()),
            Some(word) => Err(format!("nothing of {word}: {events}")),
        }
    });
    // The pod of `helm test` is admitted at the strictest level, and the roles are there although no exporter is.
    let restricted = "pod-security.kubernetes.io/enforce=restricted";
    checks.check(
        "a namespace under restricted",
        cluster.kubectl(&["label", "--overwrite", "namespace", NAMESPACE, restricted]).map(drop),
    );
    checks.check("restricted: helm test", helm_command(cluster, helm, &["test", "headroom-exporter", "--timeout=60s"]));
    let leases = ["delete", "rolebinding", "headroom-exporter", "--namespace=kube-node-lease"];
    checks.check("a role is taken away", cluster.kubectl(&leases).map(drop));
    let failed = helm_command(cluster, helm, &["test", "headroom-exporter", "--timeout=60s"]);
    checks.check("restricted: helm test fails without a role", failed.err().map(drop).ok_or("it passed".to_owned()));
    checks.soon("restricted: the log says what is missing", 10, || {
        let log = cluster.kubectl(&["logs", "headroom-exporter-test", "--namespace", NAMESPACE])?;
        let said = log.split_whitespace().collect::<Vec<_>>().join(" ");
        if said.contains("get on leases") { Ok(()) } else { Err(log) }
    });
    checks.check("baseline: helm uninstall", helm_command(cluster, helm, &["uninstall", "headroom-exporter"]));
}

/// The page of the pod, which is on the node's network.
fn page() -> Page {
    Page::at(format!("{ADDRESS}:10843").parse::<SocketAddr>().unwrap())
}

/// The line of docs/doctor.md, word for word.
fn doctor(cluster: &Cluster) -> Result<(), String> {
    const LINE: &str = "exec -n headroom-exporter ds/headroom-exporter -- headroom-exporter doctor";
    let documents = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/doctor.md")).unwrap();
    assert!(documents.contains(&format!("\nkubectl {LINE}\n")), "docs/doctor.md has another line");
    let output = cluster.kubectl_output(&LINE.split(' ').collect::<Vec<_>>(), "");
    let report = String::from_utf8_lossy(&output.stdout);
    let said = || format!("{}: {report}{}", output.status, String::from_utf8_lossy(&output.stderr));
    // 1 is also said of a mode that cannot be told of.
    match (output.status.code(), report.contains("cannot tell"), report.lines().next()) {
        (Some(0..=2), false, Some(head)) if head.contains(" s of samples") => Ok(()),
        _ => Err(said()),
    }
}

fn rolled_out(cluster: &Cluster) -> Result<(), String> {
    let status = ["rollout", "status", "daemonset/headroom-exporter", "--namespace", NAMESPACE, "--timeout=90s"];
    cluster.kubectl(&status).map(drop).map_err(|why| {
        let pods = cluster.kubectl(&["describe", "pods", "--namespace", NAMESPACE]).unwrap_or_default();
        let last: Vec<&str> = pods.lines().rev().take(12).collect();
        format!("{why}: {}", last.into_iter().rev().collect::<Vec<_>>().join("\n"))
    })
}

/// Of objects and of processes.
fn nothing_left(cluster: &Cluster) -> Result<(), String> {
    for kind in ["clusterrole", "clusterrolebinding", "role", "rolebinding", "daemonset"] {
        let left = cluster.kubectl(&[
            "get",
            kind,
            "--all-namespaces",
            "-l=app.kubernetes.io/name=headroom-exporter",
            "-o=name",
        ])?;
        same((kind, left.trim()), (kind, ""))?;
    }
    let listening = common::shell("ss -tlnH sport = :10843");
    same(listening.trim(), "")
}

fn run_helm(cluster: &Cluster, helm: &Path, verb: &[&str], more: &[&str]) -> Result<(), String> {
    let chart = deploy("helm/headroom-exporter").display().to_string();
    let image = [format!("image.repository={}", EXPORTER.0), format!("image.tag={}", EXPORTER.1)];
    let arguments = [verb, &["headroom-exporter", &chart, "--set", &image[0], "--set", &image[1]], more].concat();
    helm_command(cluster, helm, &arguments)
}

fn helm_command(cluster: &Cluster, helm: &Path, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(helm)
        .args(arguments)
        .args(["--namespace", NAMESPACE])
        .env("KUBECONFIG", cluster.kubeconfig())
        .env("HOME", cluster.dir())
        .output()
        .unwrap();
    if output.status.success() {
        return Ok(());
    }
    Err(format!("helm {arguments:?}: {}", String::from_utf8_lossy(&output.stderr)))
}
