//! Recorded pages of nodes, and how they become a history.
#![allow(unreachable_pub, reason = "shared by several test binaries")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use headroom::modes::MODES;
use headroom::verdict::{History, Labels, NAME};

use super::board::project;
use super::series;

pub(crate) type Page = BTreeMap<Labels, f64>;

/// A recorded node of cgroup v2, made whole as `tests/fixtures/README.md` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recorded {
    Healthy,
    /// In every way at once.
    Failing,
}

impl Recorded {
    /// The files of its page; each is laid over those before it.
    pub(crate) fn files(self) -> Vec<PathBuf> {
        let laid = match self {
            Recorded::Healthy => &["healthy.prom"][..],
            Recorded::Failing => &["healthy.prom", "failing.prom"],
        };
        let folders = || MODES.iter().map(|mode| mode.id).chain(["exporter"]);
        let of_modes = laid.iter().flat_map(|file| folders().map(move |folder| fixture(&format!("{folder}/{file}"))));
        let recording = fixture("node/k8s-1.36-cgroupv2/page.prom");
        std::iter::once(recording).chain(of_modes.filter(|file| file.exists())).collect()
    }

    pub(crate) fn page(self) -> Page {
        page(&self.files())
    }
}

pub(crate) fn fixture(path: &str) -> PathBuf {
    project("tests/fixtures").join(path)
}

/// Pages laid over each other.
pub(crate) fn page(files: &[impl AsRef<Path>]) -> Page {
    let mut page = Page::new();
    for file in files {
        let text = std::fs::read_to_string(file).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
        let rows: Page = lines.map(|(name, value)| (series::labels(name), value.parse().unwrap())).collect();
        let infos: BTreeSet<&str> =
            rows.keys().map(|labels| labels.get(NAME)).filter(|name| name.ends_with("_info")).collect();
        page.retain(|known, _| !infos.contains(known.get(NAME)));
        page.extend(rows);
    }
    page
}

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
