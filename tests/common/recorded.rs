//! Recorded pages of nodes, and how they become a history.
#![allow(unreachable_pub, reason = "shared by several test binaries")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use headroom::verdict::{History, Labels, NAME};

use super::series;

pub(crate) type Page = BTreeMap<Labels, f64>;

/// Pages laid over each other, as `tests/fixtures/dashboards/README.md` says.
pub(crate) fn page(files: &[&str]) -> Page {
    let mut page = Page::new();
    for file in files {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(file);
        for line in std::fs::read_to_string(path).unwrap().lines().filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            let labels = series::labels(name);
            if labels.get(NAME).ends_with("_info") {
                page.retain(|known, _| known.get(NAME) != labels.get(NAME));
            }
            page.insert(labels, value.parse().unwrap());
        }
    }
    page
}

pub(crate) const HEALTHY: [&str; 2] = ["node/k8s-1.36-cgroupv2/page.prom", "dashboards/healthy.prom"];
pub(crate) const FAILING: [&str; 3] = [HEALTHY[0], HEALTHY[1], "dashboards/failing.prom"];

pub(crate) const MODES: [&str; 8] = [
    "cgroup_leak",
    "kmem",
    "eviction",
    "open_files",
    "memory_volume",
    "pod_interface",
    "apiserver_connection",
    "node_status",
];

pub(crate) fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

pub(crate) fn add(history: &mut History, at: SystemTime, page: &Page) {
    let rows = page.iter().map(|(labels, value)| {
        let pairs: Vec<(&str, &str)> = labels.iter().filter(|(name, _)| *name != NAME).collect();
        (labels.get(NAME), pairs, *value)
    });
    history.add_rows(at, rows);
}
