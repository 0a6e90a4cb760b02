//! What a restart of the kubelet would change: its configuration as it runs beside its files and flags as they are now.
//!
//! Compared is what the values mean: `1Gi` and `1024Mi` are the same threshold, `0%` and nothing as well.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::error::Result;
use crate::kubelet::configuration::Configuration;
use crate::kubelet::signals::Signal;
use crate::kubelet::thresholds::{Thresholds, Value};

/// One setting, twice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Drift {
    /// The signal that it is about.
    pub signal: Signal,
    /// `hard`, `soft`, `image_gc_high` or `image_gc_low`.
    pub kind: &'static str,
    /// In the running kubelet, in its words; `none` if it is not set.
    pub running: String,
    /// In the files and flags.
    pub configured: String,
    /// True if a restart would change it.
    pub differs: bool,
}

type Bound = fn(&Configuration) -> i32;
type Maps = fn(&Configuration) -> (&BTreeMap<String, String>, Option<&BTreeMap<String, String>>);

/// Every threshold that is set on either side, and the bounds of image collection.
///
/// # Errors
/// Malformed where a kubelet would refuse to start.
pub fn compare(running: &Configuration, configured: &Configuration) -> Result<Vec<Drift>> {
    let hard: Maps = |configuration| (&configuration.eviction_hard, None);
    let soft: Maps = |configuration| (&configuration.eviction_soft, Some(&configuration.eviction_soft_grace_period));
    let mut rows = Vec::new();
    for (kind, maps) in [("hard", hard), ("soft", soft)] {
        let meant = [meanings(kind, running)?, meanings(kind, configured)?];
        let named: BTreeSet<Signal> = [running, configured]
            .iter()
            .flat_map(|configuration| maps(configuration).0.keys())
            .filter_map(|name| Signal::parse(name))
            // Whatever is configured for these, the kubelet puts copies of others in its place.
            .filter(|signal| !matches!(signal, Signal::ContainerfsAvailable | Signal::ContainerfsInodesFree))
            .collect();
        rows.extend(named.into_iter().map(|signal| {
            let [running, configured] = [running, configured].map(|side| words(maps(side), signal.as_str()));
            Drift { signal, kind, running, configured, differs: meant[0].get(&signal) != meant[1].get(&signal) }
        }));
    }
    let bounds: [(&str, Bound); 2] = [
        ("image_gc_high", |configuration| configuration.image_gc_high_percent),
        ("image_gc_low", |configuration| configuration.image_gc_low_percent),
    ];
    for (kind, bound) in bounds {
        let (running, configured) = (bound(running), bound(configured));
        rows.push(Drift {
            signal: Signal::ImagefsAvailable,
            kind,
            running: format!("{running}%"),
            configured: format!("{configured}%"),
            differs: running != configured,
        });
    }
    Ok(rows)
}

/// The thresholds of one of the two maps.
fn meanings(kind: &str, configuration: &Configuration) -> Result<BTreeMap<Signal, (Value, Duration)>> {
    let mut alone = configuration.clone();
    // No copies for the pods' cgroup: they would tell the same difference again.
    alone.enforce_node_allocatable.clear();
    if kind == "hard" {
        alone.eviction_soft.clear();
    } else {
        alone.eviction_hard.clear();
    }
    let all = Thresholds::parse(&alone)?.all;
    Ok(all.into_iter().map(|threshold| (threshold.signal, (threshold.value, threshold.grace_period))).collect())
}

fn words((map, periods): (&BTreeMap<String, String>, Option<&BTreeMap<String, String>>), signal: &str) -> String {
    let Some(value) = map.get(signal) else { return "none".to_owned() };
    match periods.and_then(|periods| periods.get(signal)) {
        Some(period) => format!("{value} for {period}"),
        None => value.clone(),
    }
}
