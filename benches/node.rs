//! What the exporter costs a real Kubernetes node, beside node_exporter at its defaults.
//!
//! `cargo bench --bench node` as root, where `tests/run --cluster` has built Kubernetes. The cluster is that of
//! `tests/cluster`. Both exporters are scraped every 15 seconds, and before and after it neither runs: so that what we
//! cause elsewhere (runtime, apiserver, etcd, kubelet) can be told from what these do anyway.
//! `HEADROOM_BENCH_SECONDS`: how long both are scraped [default: 600]; `HEADROOM_BENCH_PODS`: how many pods
//! [default: 16]. `docs/performance.md` keeps a run.
#![allow(clippy::disallowed_methods, dead_code, unused_imports, reason = "a benchmark, not the exporter")]

#[macro_use]
#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/cluster"]
mod cluster {
    pub(crate) mod bed;
    pub(crate) mod checks;
}
#[path = "../tests/common/measure.rs"]
mod measure;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

// They call each other by these names.
use cluster::{bed, checks};

use bed::{Cluster, pod};
use checks::say;
use measure::{Server, cpu_seconds};
use serde_json::json;

/// The scrape interval.
const INTERVAL: Duration = Duration::from_secs(15);
/// Whose work is watched, and of these who works for what we ask.
const OTHERS: [&str; 4] = ["containerd", "kube-apiserver", "etcd", "kubelet"];
const ASKED: [&str; 2] = ["containerd", "kube-apiserver"];

fn main() {
    alone!();
    match Cluster::start() {
        Ok(cluster) => measure(&cluster),
        Err(why) => say(format_args!("SKIP: {why}")),
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

fn measure(cluster: &Cluster) {
    let pods = number("HEADROOM_BENCH_PODS", 16) as usize;
    cluster.apply(&objects(pods).to_string());
    cluster.wait_for_pods(pods, 600);
    // What starts is done by then.
    std::thread::sleep(Duration::from_secs(60));

    // Half of it before and half of it after, lest a drift of these daemons count as ours.
    let time = Duration::from_secs(number("HEADROOM_BENCH_SECONDS", 600));
    let mut without = spent(cluster, &[], time / 4);
    let flags = cluster.exporter_flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let begun = Instant::now();
    let exporter = Server::exporter(&flags);
    let page = exporter.page("/metrics");
    let first = begun.elapsed();
    let peer = Server::node_exporter(&[]);
    let servers: Vec<&Server> = std::iter::once(&exporter).chain(peer.as_ref().ok()).collect();
    // A first scrape is not what a node pays for years.
    servers.iter().for_each(|server| drop(server.get("/metrics", "gzip")));
    let with = spent(cluster, &servers, time);
    if let Err(why) = &peer {
        say(format_args!("SKIP: {why}"));
    }
    let pages = servers.iter().map(|server| Shown::of(server)).collect::<Vec<_>>();
    drop((exporter, peer));
    without.add(&spent(cluster, &[], time / 4));
    report(&without, &with, &pages, pods);
    let outcomes = page.lines().filter(|line| line.starts_with("headroom_collector_outcome") && line.ends_with(" 1"));
    let not_ok: Vec<&str> = outcomes.filter(|line| !line.contains("outcome=\"ok\"")).collect();
    say(format_args!("the first page came {:.2} s after the start; not ok on it: {not_ok:?}", first.as_secs_f64()));
}

/// What an exporter shows and holds.
struct Shown {
    name: &'static str,
    version: String,
    series: usize,
    resident_mib: f64,
}

impl Shown {
    fn of(server: &Server) -> Self {
        let series = server.page("/metrics").lines().filter(|line| !line.starts_with('#')).count();
        let resident_mib = server.footprint().2 as f64 / 1024.0;
        Shown { name: server.name, version: server.version.clone(), series, resident_mib }
    }
}

/// CPU seconds by name, and how long that took.
#[derive(Default)]
struct Spent {
    seconds: f64,
    scrapes: u32,
    cpu: BTreeMap<&'static str, f64>,
}

impl Spent {
    fn add(&mut self, other: &Spent) {
        self.seconds += other.seconds;
        self.scrapes += other.scrapes;
        for (name, cpu) in &other.cpu {
            *self.cpu.entry(name).or_default() += cpu;
        }
    }

    fn cores(&self, name: &str) -> f64 {
        self.cpu.get(name).copied().unwrap_or(0.0) / self.seconds
    }
}

/// Scrapes these in their turn for so long.
fn spent(cluster: &Cluster, servers: &[&Server], time: Duration) -> Spent {
    let look = || {
        let others = OTHERS.iter().map(|name| (*name, cpu_seconds(cluster.pid(name))));
        others.chain(servers.iter().map(|server| (server.name, cpu_seconds(server.pid())))).collect::<BTreeMap<_, _>>()
    };
    let (begun, before) = (Instant::now(), look());
    let mut scrapes = 0;
    let mut turns = servers.to_vec();
    while begun.elapsed() < time {
        turns.iter().for_each(|server| drop(server.get("/metrics", "gzip")));
        // The second finds what the first has warmed.
        turns.reverse();
        scrapes += 1;
        std::thread::sleep((INTERVAL * scrapes).saturating_sub(begun.elapsed()));
    }
    let cpu = look().into_iter().map(|(name, cpu)| (name, cpu - before[name])).collect();
    Spent { seconds: begun.elapsed().as_secs_f64(), scrapes, cpu }
}

fn report(without: &Spent, with: &Spent, pages: &[Shown], pods: usize) {
    say(format_args!(
        "{pods} pods, {:.0} s with both exporters and {:.0} s without; a scrape each 15 s",
        with.seconds, without.seconds
    ));
    for Shown { name, version, series, resident_mib } in pages {
        let (cores, page) = (with.cores(name), with.cpu[name] * 1e3 / f64::from(with.scrapes));
        say(format_args!(
            "  {name:<20} {version:<8} {cores:.5} cores  {page:>6.1} ms a scrape  {series:>5} series  {resident_mib:>5.1} MiB"
        ));
    }
    let (own, theirs) = (with.cores("headroom-exporter"), with.cores("node_exporter"));
    let mut all = own;
    for name in OTHERS {
        let (before, after) = (without.cores(name), with.cores(name));
        say(format_args!("  {name:<29} {before:.5} cores without, {after:.5} with both: {:+.5}", after - before));
        if ASKED.contains(&name) {
            all += after - before;
        }
    }
    say(format_args!(
        "ours beside node_exporter: {:.2} ×, with what {} did meanwhile {:.2} ×",
        own / theirs,
        ASKED.join(" and "),
        all / theirs
    ));
}

/// So many pods with one container each; every fourth has a memory-backed volume.
fn objects(pods: usize) -> serde_json::Value {
    let sleeps = |number: usize| {
        let resources = json!({"limits": {"memory": "64Mi"}, "requests": {"cpu": "1m", "memory": "4Mi"}});
        let (mut container, mut spec) = (json!({"resources": resources}), json!({}));
        if number.is_multiple_of(4) {
            container["volumeMounts"] = json!([{"name": "cache", "mountPath": "/cache"}]);
            spec["volumes"] = json!([{"name": "cache", "emptyDir": {"medium": "Memory"}}]);
        }
        pod(&format!("sleeps-{number}"), container, spec)
    };
    json!({"apiVersion": "v1", "kind": "List", "items": (0..pods).map(sleeps).collect::<Vec<_>>()})
}
