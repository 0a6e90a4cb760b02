//! Pods, containers, volumes, names and OOM kills, beside kubectl, containerd's `ctr`, `find`, `df` and the cgroups'
//! own files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::bed::{Cluster, RUNTIME, hierarchies};
use crate::checks::{Checks, same};
use crate::common::{self, Exporter};
use crate::page::Page;

pub(super) fn check(cluster: &Cluster, exporter: &Exporter, checks: &mut Checks) {
    checks.soon("containers and sandboxes are containerd's", 20, || containers(cluster, exporter));
    checks.soon("directories below kubepods are those of find", 20, || directories(exporter));
    checks.soon("memory-backed volumes are df's", 20, || volumes(cluster, exporter));
    checks.soon("names of pods are kubectl's", 20, || names(cluster, exporter));
    checks.soon("OOM kills are the cgroup's", 20, || oom_kills(cluster, exporter));
    checks.check("nothing is orphaned", same(Page::of(exporter).sum("headroom_orphaned_cgroups", &[]), 0.0));
    checks.soon("pods with a network of their own are kubectl's", 20, || {
        let own = cluster.pods()?.iter().filter(|pod| pod["spec"]["hostNetwork"] != true).count();
        let page = Page::of(exporter);
        let ours = ["headroom_pods_with_network_namespace", "headroom_pods_without_network_interface"];
        same((page.one(ours[0], &[])?, page.one(ours[1], &[])?), (own as f64, 0.0))
    });
    take_interface_away(cluster, exporter, checks);
}

fn ctr(arguments: &str) -> String {
    common::shell(&format!("ctr --address {RUNTIME} --namespace k8s.io {arguments}"))
}

fn containers(cluster: &Cluster, exporter: &Exporter) -> Result<(), String> {
    let pods = cluster.pods()?;
    let running: usize =
        pods.iter().map(|pod| statuses(pod).filter(|one| !one["state"]["running"].is_null()).count()).sum();
    let page = Page::of(exporter);
    let ours = (
        page.one("headroom_containers", &[("state", "running")])?,
        page.one("headroom_pod_sandboxes", &[("state", "ready")])?,
    );
    same(ours, (running as f64, pods.len() as f64))?;
    let tasks = ctr("tasks list").lines().filter(|line| line.ends_with("RUNNING")).count();
    same(ours.0 + ours.1, tasks as f64)?;
    // containerd has an image once by its digest and once by each of its names.
    let images = ctr("images list -q").lines().filter(|name| name.starts_with("sha256:")).count();
    same(page.one("headroom_images", &[])?, images as f64)?;
    let version = common::shell("containerd --version");
    let infos: Vec<_> = page.all("headroom_runtime_info", &[("source", "cri")]).collect();
    same(infos.len(), 1)?;
    let said = infos[0].label("version");
    if version.contains(said.trim_start_matches('v')) {
        Ok(())
    } else {
        Err(format!("{said}, and by itself {version}"))
    }
}

fn statuses(pod: &Value) -> impl Iterator<Item = &Value> {
    pod["status"]["containerStatuses"].as_array().into_iter().flatten()
}

/// The pods' tree of the hierarchy that the exporter counts in: v1's memory, or the unified one.
fn kubepods() -> PathBuf {
    let of_memory = hierarchies().into_iter().find(|path| path.ends_with("memory"));
    let hierarchy = of_memory.unwrap_or_else(|| PathBuf::from("/sys/fs/cgroup"));
    let trees = [hierarchy.join("kubepods"), hierarchy.join("kubepods.slice")];
    trees.into_iter().find(|tree| tree.exists()).expect("a tree of pods")
}

fn directories(exporter: &Exporter) -> Result<(), String> {
    let page = Page::of(exporter);
    let tree = kubepods();
    let found = common::shell(&format!("find {} -mindepth 1 -type d", tree.display()));
    let mut counts = BTreeMap::from([("pod", 0.0), ("container", 0.0)]);
    for path in found.lines().map(Path::new) {
        let (name, above) = (basename(path), basename(path.parent().unwrap()));
        if is_pod(name) {
            *counts.get_mut("pod").unwrap() += 1.0;
        } else if is_pod(above) {
            *counts.get_mut("container").unwrap() += 1.0;
        }
    }
    for (kind, count) in counts {
        same((kind, page.sum("headroom_kubepods_cgroups", &[("kind", kind)])), (kind, count))?;
    }
    same(("other", page.sum("headroom_kubepods_cgroups", &[("kind", "other")])), ("other", 0.0))
}

fn basename(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// `pod<uid>`, or `kubepods-burstable-pod<uid>.slice`.
fn is_pod(name: &str) -> bool {
    name.starts_with("pod") || (name.starts_with("kubepods-") && name.contains("-pod"))
}

/// uid → namespace and name. A static pod's uid is the hash of its file; its object in the apiserver has another.
fn pods_by_uid(cluster: &Cluster) -> Result<BTreeMap<String, (String, String)>, String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pods = cluster.pods()?.into_iter().map(|pod| {
        let meta = &pod["metadata"];
        let hash = &meta["annotations"]["kubernetes.io/config.hash"];
        (text(if hash.is_null() { &meta["uid"] } else { hash }), (text(&meta["namespace"]), text(&meta["name"])))
    });
    Ok(pods.collect())
}

fn names(cluster: &Cluster, exporter: &Exporter) -> Result<(), String> {
    let known = pods_by_uid(cluster)?;
    let page = Page::of(exporter);
    let named = page.series.iter().filter(|series| series.labels.contains_key("pod_uid"));
    let ours: BTreeSet<_> = named
        // Some modes sum up the pods that have no row of their own.
        .filter(|series| !["", "other"].contains(&series.label("pod_uid")))
        .map(|series| (series.label("pod_uid"), series.label("namespace"), series.label("pod")))
        .collect();
    if ours.is_empty() {
        return Err("no series names a pod".to_owned());
    }
    for (uid, namespace, pod) in ours {
        let theirs = known.get(uid).map(|(namespace, pod)| (namespace.as_str(), pod.as_str()));
        same((uid, Some((namespace, pod))), (uid, theirs))?;
    }
    Ok(())
}

fn volumes(cluster: &Cluster, exporter: &Exporter) -> Result<(), String> {
    let known = pods_by_uid(cluster)?;
    let page = Page::of(exporter);
    for (pod, limit) in [("cache", 64.0), ("burst", 32.0)] {
        let uid = known.iter().find(|(_, (_, name))| name == pod).map(|(uid, _)| uid).ok_or("no such pod")?;
        let mount = cluster.kubelet_root().join(format!("pods/{uid}/volumes/kubernetes.io~empty-dir/cache"));
        let df = common::shell(&format!("df --block-size=1 --output=used,size {}", mount.display()));
        let theirs: Vec<f64> =
            df.lines().last().unwrap().split_whitespace().map(|word| word.parse().unwrap()).collect();
        let labels = [("pod", pod), ("namespace", "default"), ("pod_uid", uid), ("volume", "cache")];
        let ours = |what: &str| page.one(&format!("headroom_memory_volume_{what}_bytes"), &labels);
        same((pod, ours("used")?, ours("size")?), (pod, theirs[0], theirs[1]))?;
        same((pod, ours("limit")?), (pod, limit * 1024.0 * 1024.0))?;
    }
    same(
        page.all("headroom_memory_volume_used_bytes", &[]).filter(|series| series.label("volume") == "cache").count(),
        2,
    )
}

/// v1 counts in the container's own cgroup, v2 also in the pod's, which outlives it.
fn oom_kills(cluster: &Cluster, exporter: &Exporter) -> Result<(), String> {
    let known = pods_by_uid(cluster)?;
    let uid = known.iter().find(|(_, (_, name))| name == "burst").map(|(uid, _)| uid.clone()).ok_or("no such pod")?;
    let page = Page::of(exporter);
    let found = common::shell(&format!("find {} -type d", kubepods().display()));
    let (plain, escaped) = (format!("pod{uid}"), format!("pod{}", uid.replace('-', "_")));
    let own = found.lines().map(Path::new).filter(|path| {
        let named = |path: &Path| basename(path).contains(&plain) || basename(path).contains(&escaped);
        named(path) || path.parent().is_some_and(named)
    });
    let (mut v1, mut v2) = (0.0, None);
    for path in own {
        let count = |file: &str| {
            let text = fs::read_to_string(path.join(file)).ok()?;
            text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse::<f64>().ok())
        };
        v1 += count("memory.oom_control").unwrap_or(0.0);
        if is_pod(basename(path)) {
            v2 = count("memory.events");
        }
    }
    let theirs = v2.unwrap_or(v1);
    if theirs < 1.0 {
        return Err("nothing was killed".to_owned());
    }
    same(page.one("headroom_oom_kills_total", &[("pod", "burst"), ("namespace", "default")])?, theirs)?;
    let vmstat = fs::read_to_string("/proc/vmstat").unwrap();
    let kills = vmstat.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse::<f64>().ok());
    same(Some(page.one("headroom_node_oom_kills_total", &[])?), kills)
}

/// `eth0` of one pod is deleted in its namespace: that pod is named, and no other.
fn take_interface_away(cluster: &Cluster, exporter: &Exporter, checks: &mut Checks) {
    let id =
        cluster.pods().unwrap().iter().find(|pod| pod["metadata"]["name"] == "plain").and_then(|pod| {
            Some(statuses(pod).next()?["containerID"].as_str()?.strip_prefix("containerd://")?.to_owned())
        });
    let id = id.expect("the container of the pod `plain`");
    let tasks = ctr("tasks list");
    let pid = tasks.lines().find(|line| line.starts_with(&id)).and_then(|line| line.split_whitespace().nth(1)).unwrap();
    common::shell(&format!("nsenter --target {pid} --net ip link delete eth0"));
    checks.soon("a pod without its interface is told, with its name", 40, || {
        let page = Page::of(exporter);
        let lost = page.all("headroom_pod_network_interfaces", &[]).map(|series| (series.label("pod"), series.value));
        same(lost.collect::<Vec<_>>(), vec![("plain", 0.0)])?;
        let labels = [("pod", "plain"), ("interface", "eth0")];
        same(page.one("headroom_pod_network_interface_lost", &labels)?, 1.0)
    });
}
