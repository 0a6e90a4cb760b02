//! Recorded pages of nodes, and how they become a history.
#![allow(unreachable_pub, reason = "shared by several test binaries")]

use std::collections::{BTreeMap, BTreeSet};
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
        let text = std::fs::read_to_string(path).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
        let rows: Page = lines.map(|(name, value)| (series::labels(name), value.parse().unwrap())).collect();
        let infos: BTreeSet<&str> =
            rows.keys().map(|labels| labels.get(NAME)).filter(|name| name.ends_with("_info")).collect();
        page.retain(|known, _| !infos.contains(known.get(NAME)));
        page.extend(rows);
    }
    page
}

pub(crate) const HEALTHY: [&str; 2] = ["node/k8s-1.36-cgroupv2/page.prom", "dashboards/healthy.prom"];
pub(crate) const FAILING: [&str; 3] = [HEALTHY[0], HEALTHY[1], "dashboards/failing.prom"];

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
