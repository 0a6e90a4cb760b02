//! A hundred pods come and go under scraping: none of them may look like a leak, and none without its name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::bed::{BUSYBOX, Cluster};
use crate::checks::{Checks, same, say};
use crate::common::Exporter;
use crate::page::Page;

const REPLICAS: usize = 10;
const PODS: usize = 100;

#[test]
fn a_hundred_pods_leave_nothing_behind() {
    alone!();
    let cluster = match Cluster::start() {
        Ok(cluster) => cluster,
        Err(why) => skip!("{why}"),
    };
    let mut checks = Checks::new();
    // Five minutes otherwise: longer than any pod of these lives. On a busy machine the kubelet takes some seconds to
    // take leave of a pod.
    let exporter = cluster.exporter(&["--collector.cgroup_leak.orphan-grace=20s"]);
    checks.soon("every collector is ok", 90, || Page::of(&exporter).every_collector_is_ok());
    let churning = AtomicBool::new(true);
    let seen = std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch(&exporter, &churning));
        let pods = churn(&cluster);
        churning.store(false, Ordering::Release);
        checks.check("pods came and went", if pods >= PODS { Ok(()) } else { Err(format!("{pods} pods")) });
        watching.join().unwrap()
    });
    say(format_args!(
        "churn: {} scrapes, at most {:.3} s each and {} series; at most {} containers and {} sandboxes",
        seen.scrapes,
        seen.slowest.as_secs_f64(),
        seen.series,
        seen.containers,
        seen.sandboxes
    ));
    checks.check(
        "the pods were seen",
        if seen.sandboxes >= REPLICAS { Ok(()) } else { Err(format!("{}", seen.sandboxes)) },
    );
    checks.check("no cgroup was called orphaned", same(seen.orphaned, BTreeSet::new()));
    checks.check("no series lacked its pod's name", same(seen.nameless, BTreeMap::new()));
    checks.check("no collector failed", same(seen.failed, BTreeSet::new()));
    checks.soon("all is as it was before", 30, || {
        let page = Page::of(&exporter);
        same(page.sum("headroom_kubepods_cgroups", &[]), 0.0)?;
        same(page.sum("headroom_orphaned_cgroups", &[]), 0.0)
    });
    let (_, log) = exporter.stop(rustix::process::Signal::TERM);
    log.lines().filter(|line| line.contains("level=warn") || line.contains("level=error")).for_each(say);
    checks.end("churn");
}

/// Scales a deployment up and down until this many pods have run, and returns their number.
fn churn(cluster: &Cluster) -> usize {
    let labels = json!({"app": "churn"});
    let container = json!({
        "name": "main", "image": BUSYBOX, "imagePullPolicy": "Never", "command": ["sleep", "1000000"],
        "resources": {"requests": {"cpu": "1m", "memory": "8Mi"}, "limits": {"memory": "32Mi"}},
        "volumeMounts": [{"name": "cache", "mountPath": "/cache"}],
    });
    let volumes = json!([{"name": "cache", "emptyDir": {"medium": "Memory"}}]);
    let spec = json!({"terminationGracePeriodSeconds": 0, "containers": [container], "volumes": volumes});
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "churn", "namespace": "default"},
        "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}},
    });
    cluster.apply(&deployment.to_string());
    let mut names = BTreeSet::new();
    while names.len() < PODS {
        cluster.kubectl(&["scale", "deployment", "churn", &format!("--replicas={REPLICAS}")]).unwrap();
        cluster.wait_for_pods(REPLICAS, 120);
        names.extend(cluster.pods().unwrap().iter().map(|pod| pod["metadata"]["name"].to_string()));
        cluster.kubectl(&["scale", "deployment", "churn", "--replicas=0"]).unwrap();
        cluster.wait_for_pods(0, 120);
    }
    names.len()
}

#[derive(Default)]
struct Seen {
    scrapes: usize,
    slowest: Duration,
    series: usize,
    containers: usize,
    sandboxes: usize,
    orphaned: BTreeSet<String>,
    /// By family, how often.
    nameless: BTreeMap<String, usize>,
    failed: BTreeSet<String>,
}

/// A scrape each second.
fn watch(exporter: &Exporter, churning: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    while churning.load(Ordering::Acquire) {
        let begun = Instant::now();
        let page = Page::of(exporter);
        seen.scrapes += 1;
        seen.slowest = seen.slowest.max(page.took());
        seen.series = seen.series.max(page.series.len());
        seen.containers = seen.containers.max(page.sum("headroom_containers", &[]) as usize);
        seen.sandboxes = seen.sandboxes.max(page.sum("headroom_pod_sandboxes", &[]) as usize);
        let orphaned = page.all("headroom_orphaned_cgroups", &[]).filter(|series| series.value > 0.0);
        seen.orphaned.extend(orphaned.map(|series| format!("scrape {}: {series:?}", seen.scrapes)));
        // A series that has the label of a pod's uid and its value is about that pod; other is the sum of the rest.
        let of_a_pod = page.series.iter().filter(|series| !["", "other"].contains(&series.label("pod_uid")));
        let nameless = of_a_pod.filter(|series| series.label("pod").is_empty());
        nameless.for_each(|series| *seen.nameless.entry(series.name.clone()).or_default() += 1);
        if !page.collectors("failed").is_empty() {
            seen.failed.insert(format!("scrape {}: {:?}", seen.scrapes, page.every_collector_is_ok()));
        }
        std::thread::sleep(Duration::from_secs(1).saturating_sub(begun.elapsed()));
    }
    seen
}
