//! From the fault to the page on a real node: the faults are real, Prometheus has the rules of `alerts/` and scrapes
//! every 15 s, and every interval is the default. What it prints is what docs/detection.md says of live faults.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bed::{self, BUSYBOX, Cluster, NODE};
use crate::checks::{Checks, say};
use crate::common::{self, Exporter};
use crate::page::Page;

/// The file system below the kubelet's root directory. Its kubelet evicts below a tenth of it.
const DISK: u64 = 400 << 20;

#[test]
fn of_pods_and_of_the_disk() {
    alone!();
    let (cluster, mut watch, mut checks) = match healthy() {
        Ok(healthy) => healthy,
        Err(why) => skip!("{why}"),
    };
    in_the_pods_and_on_the_disk(&cluster, &mut watch, &mut checks);
    inodes_run_out(&cluster, &mut watch, &mut checks);
    watch.end(checks, "pages of pods and of the disk");
}

#[test]
fn of_who_stops_and_who_is_let_in_no_more() {
    alone!();
    let (mut cluster, mut watch, mut checks) = match healthy() {
        Ok(healthy) => healthy,
        Err(why) => skip!("{why}"),
    };
    who_stops(&mut cluster, &mut watch, &mut checks);
    who_is_let_in_no_more(&mut cluster, &mut watch, &mut checks);
    node_deleted(&mut cluster, &mut watch, &mut checks);
    watch.end(checks, "pages of who stops");
}

/// A node on which nobody is paged, or why there can be none here.
fn healthy() -> Result<(Cluster, Watch, Checks), String> {
    if !common::has("prometheus") {
        return Err("prometheus (Debian package) is not installed".to_owned());
    }
    let cluster = Cluster::start_on(|folder| bed::kubelet_disk_that_evicts(folder, DISK))?;
    let mut checks = Checks::new();
    let exporter = cluster.exporter(&[]);
    let pods = [pod("lonely", &json!({}), "exec sleep 1000000"), pod("writer", &json!({}), "exec sleep 1000000")];
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": pods}).to_string());
    cluster.wait_for_pods(2, 90);
    let mut watch = Watch { prometheus: Prometheus::start(exporter.address), exporter, faults: Vec::new() };
    checks.soon("every collector is ok", 30, || Page::of(&watch.exporter).every_collector_is_ok());
    watch.go_on(Duration::from_secs(75), |_| false);
    let before = watch.prometheus.firing();
    checks.check(
        "nobody is paged on a healthy node",
        if before.is_empty() { Ok(()) } else { Err(format!("{before:?}")) },
    );
    Ok((cluster, watch, checks))
}

/// Four at once, each in its own place.
fn in_the_pods_and_on_the_disk(cluster: &Cluster, watch: &mut Watch, checks: &mut Checks) {
    let taken = cluster.kubectl(&["exec", "lonely", "--", "/bin/busybox", "ip", "link", "delete", "eth0"]);
    checks.check("eth0 can be taken from a pod", taken.map(drop));
    watch.made("eth0 deleted in a pod", "HeadroomPodWithoutNetworkInterface", |page| {
        page.sum("headroom_pods_without_network_interface", &[]) > 0.0
    });

    let limits = json!({"limits": {"cpu": "500m", "memory": "32Mi"}, "requests": {"cpu": "10m", "memory": "32Mi"}});
    let again = "while :; do /bin/busybox head -c 50331648 /dev/zero >>/data/fill; /bin/busybox sleep 3; done";
    cluster.apply(&pod_on("burst", &limits, again, &json!({"medium": "Memory"})).to_string());
    // On v1 the kills of a container that ends between two scrapes are lost: where no container of the pod starts any
    // more, because the volume fills the pod's limit, it is the volume that pages.
    let alerts = "HeadroomMemoryVolumeOomLoop|HeadroomMemoryVolumeNearLimit";
    watch.made("a volume in memory outgrows its limit", alerts, |page| {
        let of = |name: &str| page.sum(name, &[("pod", "burst")]);
        let full = of("headroom_memory_volume_used_bytes") > 0.9 * of("headroom_memory_volume_limit_bytes").max(1.0);
        full || of("headroom_oom_kills_total") > 0.0
    });

    let long_ago = "2019-06-04T11:43:12Z";
    let condition = json!({"type": "OutOfDisk", "status": "Unknown", "reason": "NodeStatusNeverUpdated",
        "lastHeartbeatTime": long_ago, "lastTransitionTime": long_ago});
    let patch = json!({"status": {"conditions": [condition]}}).to_string();
    let patched = cluster.kubectl(&["patch", "node", NODE, "--subresource=status", "--type=strategic", "-p", &patch]);
    checks.check("a condition that nobody sets can be patched in", patched.map(drop));
    watch.made("an OutOfDisk condition of 2019", "HeadroomNodeConditionOrphaned", |page| {
        page.sum("headroom_node_condition_orphaned", &[("condition", "OutOfDisk")]) > 0.0
    });

    // Of no pod: what the kubelet evicts gives none back, so that scrapes come before the end. A little is the
    // writer's, which is evicted first for that.
    let files = cluster.kubelet_root().join("headroom-disk");
    std::fs::create_dir(&files).unwrap();
    std::fs::write(volume_of(cluster, "writer").join("little"), vec![1; DISK as usize / 400]).unwrap();
    fill(&files, 0.115);
    watch.made("the disk has 1.15 times the threshold left", "HeadroomEvictionNear", |page| {
        let of = |name: &str| page.sum(name, &[("signal", "nodefs.available")]);
        of("headroom_eviction_available_bytes") < 1.3 * of("headroom_eviction_threshold_bytes")
    });
    // Others are evicted too: what they are paged for comes before.
    let before = ["HeadroomEvictionNear", "HeadroomPodWithoutNetworkInterface", alerts];
    watch.go_on(Duration::from_secs(150), |watch| before.iter().all(|alert| watch.paged(alert)));
    checks.check(
        "the page comes before the kubelet evicts",
        match phase(cluster, "writer") {
            (phase, _) if phase == "Running" => Ok(()),
            other => Err(format!("{other:?}")),
        },
    );
    fill(&files, 0.095);
    let begun = Instant::now();
    watch.made("the disk is below the threshold", "HeadroomEvictionNow", |page| {
        page.sum("headroom_eviction_headroom_ratio", &[("signal", "nodefs.available"), ("type", "hard")]) < 0.0
    });
    let mut evicted = None;
    watch.go_on(Duration::from_secs(120), |watch| {
        if evicted.is_none() && phase(cluster, "writer").1 == "Evicted" {
            evicted = Some(begun.elapsed().as_secs_f64());
        }
        evicted.is_some() && watch.paged("HeadroomEvictionNow")
    });
    say(format_args!("the kubelet evicted {evicted:?} s after the threshold was crossed"));
    checks.check("the kubelet really evicts", evicted.map(drop).ok_or_else(|| "not within two minutes".to_owned()));
    watch.go_on(Duration::from_secs(420), Watch::all_paged);

    let drop_condition = json!([{"op": "test", "path": "/status/conditions/0/type", "value": "OutOfDisk"},
        {"op": "remove", "path": "/status/conditions/0"}]);
    let of_node = |at: usize| {
        let text = drop_condition.to_string().replace("/conditions/0", &format!("/conditions/{at}"));
        cluster.kubectl(&["patch", "node", NODE, "--subresource=status", "--type=json", "-p", &text]).is_ok()
    };
    checks.check(
        "the condition can be taken back",
        if (0..12).any(of_node) { Ok(()) } else { Err("not found".to_owned()) },
    );
    std::fs::remove_dir_all(&files).unwrap();
    let deleted = cluster.kubectl(&["delete", "pods", "--all", "--grace-period=0", "--force"]);
    checks.check("the pods can be deleted", deleted.map(drop));
    watch.healed();
    watch.go_on(Duration::from_secs(600), Watch::all_resolved);
}

fn inodes_run_out(cluster: &Cluster, watch: &mut Watch, checks: &mut Checks) {
    cluster.apply(&pod("maker", &json!({}), "exec sleep 1000000").to_string());
    cluster.wait_for_pods(1, 90);
    // Of no pod: what the kubelet evicts gives none back, so that scrapes come before the end.
    let files = cluster.kubelet_root().join("headroom-inodes");
    std::fs::create_dir(&files).unwrap();
    use_inodes(&files, 0.04);
    watch.made("inodes are below the threshold", "HeadroomEvictionNow", |page| {
        page.sum("headroom_eviction_headroom_ratio", &[("signal", "nodefs.inodesFree"), ("type", "hard")]) < 0.0
    });
    let mut evicted = false;
    watch.go_on(Duration::from_secs(120), |watch| {
        evicted = evicted || phase(cluster, "maker").1 == "Evicted";
        evicted && watch.all_paged()
    });
    checks.check("the kubelet really evicts for inodes", if evicted { Ok(()) } else { Err("not so".to_owned()) });
    std::fs::remove_dir_all(&files).unwrap();
    let deleted = cluster.kubectl(&["delete", "pods", "--all", "--grace-period=0", "--force"]);
    checks.check("the pod can be deleted", deleted.map(drop));
    watch.healed();
    watch.go_on(Duration::from_secs(600), Watch::all_resolved);
}

/// The kubelet's certificate expires while it runs, and then our own token.
fn who_is_let_in_no_more(cluster: &mut Cluster, watch: &mut Watch, checks: &mut Checks) {
    let valid = Duration::from_secs(60);
    let expires = Instant::now() + valid;
    cluster.kubelet_with_certificate_for(Some(valid));
    watch.go_on(expires.saturating_duration_since(Instant::now()), |_| false);
    watch.made("the kubelet's client certificate expired", "HeadroomNodeLeaseOld|HeadroomNodeLeaseExpiring", |page| {
        page.sum("headroom_node_lease_age_seconds", &[]) > 20.0
    });
    watch.go_on(Duration::from_secs(90), Watch::all_paged);
    cluster.kubelet_with_certificate_for(None);
    watch.healed();
    watch.go_on(Duration::from_secs(180), Watch::all_resolved);

    let token = cluster.dir().join("exporter.token");
    let good = std::fs::read(&token).unwrap();
    std::fs::write(&token, "of-an-account-that-was-deleted").unwrap();
    watch.made("the exporter's token is refused", "HeadroomCollectorFailed", |page| {
        page.sum("headroom_collector_outcome", &[("collector", "node_status"), ("outcome", "failed")]) > 0.0
    });
    watch.go_on(Duration::from_secs(900), Watch::all_paged);
    std::fs::write(&token, good).unwrap();
    watch.healed();
    checks.soon("the token is good again: every collector is ok", 120, || {
        Page::of(&watch.exporter).every_collector_is_ok()
    });
    watch.go_on(Duration::from_secs(900), Watch::all_resolved);
}

fn who_stops(cluster: &mut Cluster, watch: &mut Watch, checks: &mut Checks) {
    cluster.stop("kubelet");
    let old = |page: &Page| page.sum("headroom_node_lease_age_seconds", &[]) > 20.0;
    watch.made("the kubelet stopped", "HeadroomNodeLeaseOld|HeadroomNodeLeaseExpiring", old);
    watch.go_on(Duration::from_secs(90), Watch::all_paged);
    cluster.launch("kubelet");
    watch.healed();
    cluster.wait_until_ready(90);
    watch.go_on(Duration::from_secs(180), Watch::all_resolved);

    cluster.stop("kube-apiserver");
    watch.made("the apiserver stopped", "HeadroomApiserverUnreachable", |page| {
        page.sum("headroom_apiserver_probe_success", &[("connection", "fresh")]) == 0.0
    });
    watch.go_on(Duration::from_secs(150), Watch::all_paged);
    cluster.launch("kube-apiserver");
    watch.healed();
    checks.soon("apiserver back: every collector is ok", 120, || Page::of(&watch.exporter).every_collector_is_ok());
    cluster.wait_until_ready(90);
    watch.go_on(Duration::from_secs(180), Watch::all_resolved);
}

fn node_deleted(cluster: &mut Cluster, watch: &mut Watch, checks: &mut Checks) {
    checks
        .check("the node object can be deleted", cluster.kubectl(&["delete", "node", NODE, "--wait=false"]).map(drop));
    watch.made("the node object deleted", "HeadroomNodeObjectMissing", |page| {
        page.one("headroom_node_object_present", &[("object", "node")]) == Ok(0.0)
    });
    watch.go_on(Duration::from_secs(240), Watch::all_paged);
    // It registers itself at its start.
    cluster.stop("kubelet");
    cluster.launch("kubelet");
    watch.healed();
    cluster.wait_until_ready(90);
    watch.go_on(Duration::from_secs(240), Watch::all_resolved);
}

/// With a volume on the disk, and the right to take its own interface away.
fn pod(name: &str, resources: &Value, script: &str) -> Value {
    pod_on(name, resources, script, &json!({}))
}

fn pod_on(name: &str, resources: &Value, script: &str, volume: &Value) -> Value {
    let container = json!({
        "name": "main", "image": BUSYBOX, "imagePullPolicy": "Never", "command": ["sh", "-c", script], "resources": resources,
        "securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}, "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    });
    let volumes = json!([{"name": "data", "emptyDir": volume}]);
    let spec = json!({"terminationGracePeriodSeconds": 1, "containers": [container], "volumes": volumes});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": spec})
}

fn uid(cluster: &Cluster, pod: &str) -> String {
    cluster.kubectl(&["get", "pod", pod, "-o=jsonpath={.metadata.uid}"]).unwrap()
}

/// Where its volume is.
fn volume_of(cluster: &Cluster, pod: &str) -> PathBuf {
    cluster.kubelet_root().join(format!("pods/{}/volumes/kubernetes.io~empty-dir/data", uid(cluster, pod)))
}

/// Its phase and the reason for it.
fn phase(cluster: &Cluster, pod: &str) -> (String, String) {
    let of = |field: &str| cluster.kubectl(&["get", "pod", pod, &format!("-o=jsonpath={{.status.{field}}}")]);
    (of("phase").unwrap_or_default(), of("reason").unwrap_or_default())
}

/// Until this part of the file system is left to those who are not root, as the kubelet counts it.
fn fill(directory: &Path, left: f64) {
    let stat = rustix::fs::statvfs(directory).unwrap();
    let (available, capacity) = (stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize);
    let size = available.saturating_sub((capacity as f64 * left) as u64);
    let file = directory.join(format!("fill-{}", common::unique()));
    common::shell(&format!("fallocate -l {size} {}", file.display()));
}

/// Until this part of the file system's inodes is left.
fn use_inodes(directory: &Path, left: f64) {
    let stat = rustix::fs::statvfs(directory).unwrap();
    let count = stat.f_favail.saturating_sub((stat.f_files as f64 * left) as u64);
    for file in 0..count {
        std::fs::File::create(directory.join(file.to_string())).unwrap();
    }
}

/// One fault and what came of it, in seconds.
struct Fault {
    what: &'static str,
    /// One of these names, `|` between them.
    alerts: &'static str,
    shows: fn(&Page) -> bool,
    made: Instant,
    seen: Option<f64>,
    paged: Option<f64>,
    healed: Option<Instant>,
    resolved: Option<f64>,
}

struct Watch {
    prometheus: Prometheus,
    exporter: Exporter,
    faults: Vec<Fault>,
}

impl Watch {
    fn made(&mut self, what: &'static str, alerts: &'static str, shows: fn(&Page) -> bool) {
        let made = Instant::now();
        let fault = Fault { what, alerts, shows, made, seen: None, paged: None, healed: None, resolved: None };
        self.faults.push(fault);
    }

    fn healed(&mut self) {
        self.faults
            .iter_mut()
            .filter(|fault| fault.healed.is_none())
            .for_each(|fault| fault.healed = Some(Instant::now()));
    }

    /// Looks each second until it is so, or the time is over.
    fn go_on(&mut self, most: Duration, mut enough: impl FnMut(&Self) -> bool) {
        let until = Instant::now() + most;
        while !enough(self) && Instant::now() < until {
            let page = Page::of(&self.exporter);
            let firing = self.prometheus.firing();
            for fault in &mut self.faults {
                let fires = fault.alerts.split('|').any(|alert| firing.contains(alert));
                if fault.healed.is_none() && (fault.shows)(&page) {
                    fault.seen.get_or_insert(fault.made.elapsed().as_secs_f64());
                }
                if fires && fault.healed.is_none() {
                    fault.paged.get_or_insert(fault.made.elapsed().as_secs_f64());
                }
                if let Some(healed) = fault.healed.filter(|_| !fires) {
                    fault.resolved.get_or_insert(healed.elapsed().as_secs_f64());
                }
            }
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    fn paged(&self, alert: &str) -> bool {
        self.faults.iter().any(|fault| fault.alerts == alert && fault.paged.is_some())
    }

    fn all_paged(&self) -> bool {
        self.faults.iter().all(|fault| fault.paged.is_some())
    }

    fn all_resolved(&self) -> bool {
        self.faults.iter().all(|fault| fault.resolved.is_some())
    }

    /// Says what docs/detection.md has of it.
    fn end(&self, mut checks: Checks, name: &str) {
        say(self.table());
        checks.check("each fault has its page, and the page its end", self.all_told());
        checks.end(name);
    }

    fn all_told(&self) -> Result<(), String> {
        let wrong = self
            .faults
            .iter()
            .filter(|fault| fault.seen.is_none() || fault.paged.is_none() || fault.resolved.is_none());
        let wrong: Vec<&str> = wrong.map(|fault| fault.what).collect();
        if wrong.is_empty() { Ok(()) } else { Err(format!("{wrong:?}")) }
    }

    /// Rows of docs/detection.md.
    fn table(&self) -> String {
        let seconds = |time: Option<f64>| time.map_or_else(|| "-".to_owned(), |time| format!("{time:.0} s"));
        let row = |fault: &Fault| {
            let Fault { what, alerts, seen, paged, resolved, .. } = fault;
            format!("| {what} | {alerts} | {} | {} | {} |", seconds(*seen), seconds(*paged), seconds(*resolved))
        };
        self.faults.iter().map(row).collect::<Vec<_>>().join("\n")
    }
}

/// Debian's, with the project's rules as they are.
struct Prometheus {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    fn start(exporter: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let alerts = Path::new(env!("CARGO_MANIFEST_DIR")).join("alerts");
        let modes = std::fs::read_dir(alerts).unwrap().map(|entry| entry.unwrap().path().join("rules.yaml"));
        let rules: Vec<PathBuf> = modes.filter(|file| file.exists()).collect();
        let targets = json!([{"targets": [exporter], "labels": {"instance": NODE}}]);
        let configuration = json!({
            "global": {"scrape_interval": "15s", "evaluation_interval": "15s"},
            "rule_files": rules,
            "scrape_configs": [{"job_name": "headroom-exporter", "static_configs": targets}],
        });
        std::fs::write(at("prometheus.yml"), configuration.to_string()).unwrap();
        let address: SocketAddr = "127.0.0.1:9090".parse().unwrap();
        let log = std::fs::File::create(at("log")).unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", at("prometheus.yml")))
            .arg(format!("--storage.tsdb.path={}", at("data")))
            .arg(format!("--web.listen-address={address}"))
            .env("GOMAXPROCS", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        common::eventually("Prometheus is ready", || {
            std::net::TcpStream::connect(address).is_ok() && common::get(address, "/-/ready", &[]).status == 200
        });
        Prometheus { child, address, _folder: folder }
    }

    /// Names of the alerts that fire.
    fn firing(&self) -> BTreeSet<String> {
        let answer: Value = serde_json::from_str(&common::get(self.address, "/api/v1/alerts", &[]).text()).unwrap();
        let alerts = answer["data"]["alerts"].as_array().expect("a list of alerts");
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        firing.map(|alert| alert["labels"]["alertname"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
