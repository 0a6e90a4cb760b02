//! What happens to a node, made to happen: the kubelet, containerd and the apiserver stop and come back, and the
//! kubelet's connection goes dead. What is known of a node does not end with who told it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::bed::{ADDRESS, BUSYBOX, Cluster};
use crate::checks::{Checks, same, say};
use crate::common::{self, Exporter};
use crate::page::Page;

#[test]
fn what_stops_and_comes_back() {
    alone!();
    let mut cluster = match Cluster::start() {
        Ok(cluster) => cluster,
        Err(why) => skip!("{why}"),
    };
    let mut checks = Checks::new();
    let exporter = cluster.exporter(&[
        "--apiserver.probe-interval=2s",
        "--apiserver.probe-timeout=2s",
        "--collector.node_status.lease-interval=1s",
        "--collector.node_status.node-interval=2s",
        // Each page asks anew: what was answered before must be what counts while nobody answers.
        "--kubelet.configz-interval=1s",
    ]);
    cluster.apply(&pod().to_string());
    cluster.wait_for_pods(1, 90);
    checks.soon("every collector is ok", 30, || Page::of(&exporter).every_collector_is_ok());
    checks.soon("the pod's volume and kills are there", 30, || {
        let page = Page::of(&exporter);
        page.one("headroom_memory_volume_used_bytes", &[("pod", "cache")])?;
        page.one("headroom_oom_kills_total", &[("pod", "cache")]).map(drop)
    });
    let before = Known::of(&Page::of(&exporter));

    kubelet_stops(&mut cluster, &exporter, &before, &mut checks);
    containerd_restarts(&mut cluster, &exporter, &before, &mut checks);
    apiserver_stops(&mut cluster, &exporter, &before, &mut checks);
    checks.end("faults");
}

#[test]
fn a_connection_that_is_dead_and_in_use() {
    alone!();
    let cluster = match Cluster::start() {
        Ok(cluster) => cluster,
        Err(why) => skip!("{why}"),
    };
    let mut checks = Checks::new();
    let exporter = cluster.exporter(&["--collector.node_status.lease-interval=1s"]);
    checks.soon("every collector is ok", 90, || Page::of(&exporter).every_collector_is_ok());
    for directions in [&["sport", "dport"][..], &["sport"][..]] {
        blackhole(&cluster, &exporter, directions, &mut checks);
    }
    checks.end("a dead connection");
}

/// With a volume that is nearly full of its limit, and one process killed by it.
fn pod() -> serde_json::Value {
    let burst = "/bin/busybox head -c 8388608 /dev/zero >/cache/fill
        [ -e /cache/done ] || { : >/cache/done; /bin/busybox tail /dev/zero; }; exec sleep 1000000";
    let limits = json!({"cpu": "500m", "memory": "32Mi"});
    let container = json!({
        "name": "main", "image": BUSYBOX, "imagePullPolicy": "Never", "command": ["sh", "-c", burst],
        "resources": {"limits": limits, "requests": {"cpu": "10m", "memory": "32Mi"}},
        "volumeMounts": [{"name": "cache", "mountPath": "/cache"}],
    });
    let volumes = json!([{"name": "cache", "emptyDir": {"medium": "Memory"}}]);
    let spec = json!({"terminationGracePeriodSeconds": 1, "containers": [container], "volumes": volumes});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "cache", "namespace": "default"}, "spec": spec})
}

/// What a stop of whoever told it does not change.
#[derive(Clone, Debug, PartialEq)]
struct Known {
    /// Thresholds and capacities of eviction: series with labels → value.
    thresholds: BTreeMap<String, String>,
    /// Labels of every series about a pod.
    pods: BTreeSet<String>,
    file_systems: BTreeSet<String>,
    node: BTreeSet<String>,
}

impl Known {
    fn of(page: &Page) -> Self {
        let labels = |names: &[&str]| -> BTreeSet<String> {
            let series = page.series.iter().filter(|series| names.contains(&series.name.as_str()));
            series.map(|series| format!("{} {:?}", series.name, series.labels)).collect()
        };
        let thresholds = page.series.iter().filter(|series| series.name.starts_with("headroom_eviction_threshold_"));
        Known {
            thresholds: thresholds
                .map(|series| (format!("{} {:?}", series.name, series.labels), series.value.to_string()))
                .collect(),
            pods: labels(&[
                "headroom_memory_volume_used_bytes",
                "headroom_memory_volume_limit_bytes",
                "headroom_oom_kills_total",
            ]),
            file_systems: labels(&["headroom_filesystem_info"]),
            node: labels(&["headroom_node_info"]),
        }
    }

    /// Without what only the runtime tells: where its file systems are.
    fn without_the_runtime(&self) -> Self {
        let of_the_kubelet = |text: &str| !text.contains("imagefs") && !text.contains("containerfs");
        Known {
            thresholds: self
                .thresholds
                .iter()
                .filter(|(series, _)| of_the_kubelet(series))
                .map(|(series, value)| (series.clone(), value.clone()))
                .collect(),
            file_systems: self.file_systems.iter().filter(|series| of_the_kubelet(series)).cloned().collect(),
            ..self.clone()
        }
    }

    /// What became of it on this page.
    fn still(&self, page: &Page) -> Result<(), String> {
        self.is(page, &Known::of(page))
    }

    fn is(&self, page: &Page, now: &Known) -> Result<(), String> {
        let mut wrong = Vec::new();
        for (what, before, after) in [
            ("pods", &self.pods, &now.pods),
            ("file systems", &self.file_systems, &now.file_systems),
            ("node", &self.node, &now.node),
        ] {
            if before != after {
                let gone: Vec<_> = before.difference(after).collect();
                let new: Vec<_> = after.difference(before).collect();
                wrong.push(format!("{what}: gone {gone:?}, new {new:?}"));
            }
        }
        if self.thresholds != now.thresholds {
            let (before, now) = (self.thresholds.iter(), now.thresholds.iter());
            let (before, now): (BTreeSet<_>, BTreeSet<_>) = (before.collect(), now.collect());
            let (gone, new): (Vec<_>, Vec<_>) = (before.difference(&now).collect(), now.difference(&before).collect());
            wrong.push(format!("thresholds: gone {gone:?}, new {new:?}"));
        }
        let drift = page.sum("headroom_eviction_config_drift", &[]);
        if drift != 0.0 {
            wrong.push(format!("{drift} settings drift, and nobody changed one"));
        }
        let guessed = page.all("headroom_eviction_config_info", &[("source", "default")]).count();
        if guessed > 0 {
            wrong.push("thresholds are a guess".to_owned());
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
    }
}

/// Every page of this time is as before; the first that is not is told.
fn throughout(
    exporter: &Exporter,
    seconds: u64,
    mut judge: impl FnMut(&Page) -> Result<(), String>,
) -> Result<(), String> {
    let begun = Instant::now();
    let (mut pages, mut wrong, mut first) = (0, 0, None);
    while begun.elapsed() < Duration::from_secs(seconds) {
        let page = Page::of(exporter);
        pages += 1;
        if let Err(why) = judge(&page) {
            wrong += 1;
            first.get_or_insert(format!("after {:.1} s: {why}", begun.elapsed().as_secs_f64()));
        }
        std::thread::sleep(Duration::from_millis(400));
    }
    first.map_or(Ok(()), |first| Err(format!("{wrong} of {pages} pages; {first}")))
}

fn no_failure_but(page: &Page, expected: &[&str]) -> Result<(), String> {
    let failed: Vec<&str> = page.collectors("failed").into_iter().filter(|name| !expected.contains(name)).collect();
    if failed.is_empty() { Ok(()) } else { Err(format!("failed: {failed:?}; {:?}", page.every_collector_is_ok())) }
}

/// As a zombie whom nobody waited for, then as no process at all, then back.
fn kubelet_stops(cluster: &mut Cluster, exporter: &Exporter, before: &Known, checks: &mut Checks) {
    cluster.kill("kubelet");
    let as_before = |page: &Page| before.still(page);
    let running = || Page::of(exporter).one("headroom_kubelet_running", &[]);
    checks.soon("kubelet a zombie: it does not run", 5, || same(running()?, 0.0));
    checks.check("kubelet a zombie: what is known stays", throughout(exporter, 4, as_before));
    checks.check("kubelet a zombie: no collector fails", throughout(exporter, 2, |page| no_failure_but(page, &[])));
    cluster.bury("kubelet");
    checks.check("kubelet gone: what is known stays", throughout(exporter, 6, as_before));
    checks.check("kubelet gone: no collector fails", throughout(exporter, 2, |page| no_failure_but(page, &[])));
    checks.soon("kubelet gone: it has no connection", 5, || {
        let page = Page::of(exporter);
        same(page.sum("headroom_apiserver_connections", &[("owner", "kubelet")]), 0.0)
    });
    // Its lease is renewed every ten seconds.
    checks.soon("kubelet gone: its lease grows old", 30, || {
        match Page::of(exporter).one("headroom_node_lease_age_seconds", &[])? {
            age if age > 15.0 => Ok(()),
            age => Err(format!("{age} s")),
        }
    });
    cluster.launch("kubelet");
    checks.soon("kubelet back: every collector is ok", 60, || Page::of(exporter).every_collector_is_ok());
    checks.soon("kubelet back: it runs", 5, || same(running()?, 1.0));
    checks.soon("kubelet back: its lease is young", 30, || {
        match Page::of(exporter).one("headroom_node_lease_age_seconds", &[])? {
            age if age < 12.0 => Ok(()),
            age => Err(format!("{age} s")),
        }
    });
    cluster.wait_until_ready(90);
    checks.soon("kubelet back: all is as before", 20, || before.still(&Page::of(exporter)));
}

fn containerd_restarts(cluster: &mut Cluster, exporter: &Exporter, before: &Known, checks: &mut Checks) {
    let kills = Page::of(exporter).one("headroom_oom_kills_total", &[("pod", "cache")]);
    let up = || Page::of(exporter).one("headroom_runtime_up", &[]);
    checks.check("containerd runs: the runtime is up", up().and_then(|up| same(up, 1.0)));
    cluster.stop("containerd");
    checks.soon("containerd gone: the runtime is not up", 10, || same(up()?, 0.0));
    let kubelets = before.without_the_runtime();
    let still = |page: &Page| kubelets.is(page, &Known::of(page).without_the_runtime());
    checks.check("containerd gone: what is known stays", throughout(exporter, 6, still));
    checks.check(
        "containerd gone: no kill is counted again",
        kills.and_then(|kills| same(Page::of(exporter).sum("headroom_oom_kills_total", &[]), kills)),
    );
    checks.check(
        "containerd gone: nothing is orphaned",
        same(Page::of(exporter).sum("headroom_orphaned_cgroups", &[]), 0.0),
    );
    cluster.launch("containerd");
    checks.soon("containerd back: every collector is ok", 60, || Page::of(exporter).every_collector_is_ok());
    checks.soon("containerd back: the runtime is up", 10, || same(up()?, 1.0));
    cluster.wait_until_ready(90);
    checks.soon("containerd back: all is as before", 20, || before.still(&Page::of(exporter)));
}

/// With the apiserver away the kubelet cannot judge our token: what it answered last holds.
fn apiserver_stops(cluster: &mut Cluster, exporter: &Exporter, before: &Known, checks: &mut Checks) {
    cluster.stop("kube-apiserver");
    checks.soon("apiserver gone: the probes say so", 20, || {
        let page = Page::of(exporter);
        for connection in ["reused", "fresh"] {
            same(
                (connection, page.one("headroom_apiserver_probe_success", &[("connection", connection)])?),
                (connection, 0.0),
            )?;
        }
        same(page.sum("headroom_apiserver_connections", &[]), 0.0)
    });
    let as_before = throughout(exporter, 8, |page| before.still(page));
    checks.check("apiserver gone: what is known stays", as_before);
    let failures = throughout(exporter, 8, |page| no_failure_but(page, &["node_status", "apiserver_connection"]));
    checks.check("apiserver gone: only who asks it may fail", failures);
    cluster.launch("kube-apiserver");
    checks.soon("apiserver back: every collector is ok", 90, || Page::of(exporter).every_collector_is_ok());
    checks.soon("apiserver back: the kubelet is connected", 60, || {
        match Page::of(exporter).one("headroom_apiserver_connections", &[("owner", "kubelet")])? {
            count if count >= 1.0 => Ok(()),
            count => Err(format!("{count}")),
        }
    });
    cluster.wait_until_ready(90);
    checks.soon("apiserver back: all is as before", 20, || before.still(&Page::of(exporter)));
}

/// Drops what the kubelet's connections carry, out and in or in only, until the kubelet has given them up.
fn blackhole(cluster: &Cluster, exporter: &Exporter, directions: &[&str], checks: &mut Checks) {
    let name = if directions.len() == 2 { "both ways" } else { "inbound only" };
    let connected = |page: &Page| page.sum("headroom_apiserver_connections", &[("owner", "kubelet")]) >= 1.0;
    checks.soon(&format!("{name}: the kubelet is connected"), 30, || {
        let page = Page::of(exporter);
        same(
            (connected(&page), page.sum("headroom_apiserver_connection_stalled", &[("owner", "kubelet")])),
            (true, 0.0),
        )
    });
    let stalls = |page: &Page| page.sum("headroom_apiserver_connection_stalls_total", &[("owner", "kubelet")]);
    let before = stalls(&Page::of(exporter));
    // Its present connections by their ports: new ones go through.
    let kubelet = cluster.pid("kubelet");
    let lines = common::shell(&format!("ss -tnpH state established src {ADDRESS} dport = :6443"));
    let ports: Vec<&str> = lines
        .lines()
        .filter(|line| line.contains(&format!("pid={kubelet},")))
        .filter_map(|line| line.split_whitespace().nth(2)?.rsplit(':').next())
        .collect();
    checks.check(&format!("{name}: there is a connection"), if ports.is_empty() { Err(lines.clone()) } else { Ok(()) });
    // Dropped where it arrives: refused on its way out it would never have been sent, and the socket knows that.
    let rules: Vec<String> = ports
        .iter()
        .flat_map(|port| {
            let rule = |direction: &&str| match *direction {
                "dport" => format!("INPUT -p tcp --sport {port} --dport 6443 -j DROP"),
                _ => format!("INPUT -p tcp --sport 6443 --dport {port} -j DROP"),
            };
            directions.iter().map(rule).collect::<Vec<_>>()
        })
        .collect();
    rules.iter().for_each(|rule| drop(common::shell(&format!("iptables -w -I {rule}"))));
    let begun = Instant::now();
    let seconds = |begun: Instant| begun.elapsed().as_secs_f64();
    // A renewal of the lease within ten seconds, and ten more of waiting; a quiet machine and a slow one.
    let mut stalled = None;
    checks.soon(&format!("{name}: the connection is stalled"), 32, || {
        let page = Page::of(exporter);
        same(page.sum("headroom_apiserver_connection_stalled", &[("owner", "kubelet")]), 1.0)?;
        stalled = Some(seconds(begun));
        same(page.one("headroom_apiserver_probe_success", &[("connection", "reused")])?, 1.0)
    });
    // Thirty seconds without a byte and fifteen for its PING.
    let mut healed = None;
    checks.soon(&format!("{name}: the kubelet gives it up, and a new one is its connection"), 60, || {
        let page = Page::of(exporter);
        same(
            (connected(&page), page.sum("headroom_apiserver_connection_stalled", &[("owner", "kubelet")])),
            (true, 0.0),
        )?;
        healed = Some(seconds(begun));
        Ok(())
    });
    checks.check(&format!("{name}: that was one stall"), same(stalls(&Page::of(exporter)), before + 1.0));
    rules.iter().for_each(|rule| drop(common::shell(&format!("iptables -w -D {rule}"))));
    checks.soon(&format!("{name}: the lease is renewed again"), 30, || {
        match Page::of(exporter).one("headroom_node_lease_age_seconds", &[])? {
            age if age < 12.0 => Ok(()),
            age => Err(format!("{age} s")),
        }
    });
    say(format_args!("{name}: stalled after {stalled:?} s, healed after {healed:?} s"));
}
