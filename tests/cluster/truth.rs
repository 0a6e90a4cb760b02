//! Every figure of the page beside somebody else who knows it, at the same moment: the kubelet, the apiserver,
//! containerd, and Linux' own tools.

mod eviction;
mod machine;
mod pods;

use serde_json::json;

use crate::bed::{Cluster, pod};
use crate::checks::{Checks, same};
use crate::page::Page;

#[test]
fn every_figure_is_its_witness_s() {
    alone!();
    match Cluster::start() {
        Ok(cluster) => truth(&cluster),
        Err(why) => skip!("{why}"),
    }
}

fn truth(cluster: &Cluster) {
    let mut checks = Checks::new();
    let exporter =
        cluster.exporter(&["--collector.node_status.node-interval=1s", "--collector.node_status.lease-interval=1s"]);
    std::fs::write(cluster.dir().join("static/still.json"), pod("still", json!({}), json!({})).to_string()).unwrap();
    cluster.apply(&objects().to_string());
    cluster.wait_for_pods(5, 90);

    checks.soon("every collector is ok", 30, || Page::of(&exporter).every_collector_is_ok());
    checks.check("nothing is dropped by a cap", same(Page::of(&exporter).sum("headroom_series_dropped", &[]), 0.0));
    checks.check(
        "this is a control plane",
        Page::of(&exporter).one("headroom_control_plane", &[]).and_then(|value| same(value, 1.0)),
    );
    eviction::check(cluster, &exporter, &mut checks);
    pods::check(cluster, &exporter, &mut checks);
    machine::check(cluster, &exporter, &mut checks);
    checks.end("truth");
}

/// Pods of every kind that the page tells apart.
fn objects() -> serde_json::Value {
    let limits = |memory: &str| json!({"limits": {"cpu": "500m", "memory": memory}, "requests": {"cpu": "10m", "memory": memory}});
    let cache = json!([{"name": "cache", "emptyDir": {"medium": "Memory"}}]);
    let mounts = json!([{"name": "cache", "mountPath": "/cache"}]);
    let fill = "/bin/busybox head -c 8388608 /dev/zero >/cache/fill; exec sleep 1000000";
    // One process too many, once: the whole container dies of it on cgroup v2, and is started again.
    let burst = "[ -e /cache/done ] || { : >/cache/done; /bin/busybox tail /dev/zero; }; exec sleep 1000000";
    json!({"apiVersion": "v1", "kind": "List", "items": [
        pod("plain", json!({}), json!({})),
        pod("host", json!({"resources": {"requests": {"cpu": "10m", "memory": "16Mi"}}}), json!({"hostNetwork": true})),
        pod("cache", json!({"command": ["sh", "-c", fill], "resources": limits("64Mi"), "volumeMounts": mounts}), json!({"volumes": cache})),
        pod("burst", json!({"command": ["sh", "-c", burst], "resources": limits("32Mi"), "volumeMounts": mounts}), json!({"volumes": cache})),
    ]})
}
