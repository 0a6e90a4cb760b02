//! A few pages of samples, enough for the rules that look back: bounded, and thinned as it grows old.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::metric::{Metric, Samples};

use super::promql::labels::{Labels, NAME};
use super::promql::store::{STALE, Store, is_stale};

/// What the exporter's own target is called, for rules that name it.
const JOB: &str = "headroom-exporter";

/// How much a [`History`] keeps.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most pages.
    pub pages: usize,
    /// How far back, in seconds.
    pub seconds: u64,
}

/// The windows of the rules reach six hours back. 24 pages are one in a quarter of an hour.
impl Default for Limits {
    fn default() -> Self {
        Limits { pages: 24, seconds: 6 * 3600 }
    }
}

/// What the rules need of a history.
#[derive(Clone, Copy, Debug)]
pub(super) struct Needs {
    /// The metrics that are kept.
    pub(super) wanted: &'static BTreeSet<String>,
    /// The series that the rules record.
    pub(super) recorded: &'static BTreeSet<&'static str>,
    /// Evaluates the recording rules at a time, in milliseconds since 1970, and appends what they record.
    pub(super) record: fn(&mut Store, i64),
}

/// Pages of samples with their times. Only metrics that some rule, annotation or figure names are kept.
#[derive(Clone, Debug)]
pub struct History {
    node: String,
    limits: Limits,
    needs: Needs,
    /// When each page that is kept was made, in milliseconds since 1970.
    pages: Vec<i64>,
    pub(super) store: Store,
}

impl History {
    pub(super) fn empty(node: &str, limits: Limits, needs: Needs) -> Self {
        History { node: node.into(), limits, needs, pages: Vec::new(), store: Store::default() }
    }

    /// Adds a page, made of the samples of the modes and of the exporter's own. What is not on it and was on the page
    /// before is gone, as for Prometheus. A page that is not newer than the last one is ignored.
    pub fn add<'a>(&mut self, at: SystemTime, page: impl IntoIterator<Item = &'a Samples>) {
        let Some(at) = self.begin(at) else { return };
        for samples in page {
            for row in samples.rows() {
                self.sample(at, row.metric.name, pairs(row.metric, &row.labels), row.value);
            }
            for row in samples.distributions() {
                let name = row.metric.name;
                self.sample(at, &format!("{name}_sum"), pairs(row.metric, &row.labels), row.histogram.sum());
                self.sample(at, &format!("{name}_count"), pairs(row.metric, &row.labels), row.histogram.count() as f64);
            }
        }
        self.end(at);
    }

    /// Adds a page of bare rows: name, labels, value.
    pub fn add_rows<'a, L: IntoIterator<Item = (&'a str, &'a str)>>(
        &mut self,
        at: SystemTime,
        page: impl IntoIterator<Item = (&'a str, L, f64)>,
    ) {
        let Some(at) = self.begin(at) else { return };
        for (name, labels, value) in page {
            self.sample(at, name, labels, value);
        }
        self.end(at);
    }

    /// How many pages are kept.
    pub fn pages(&self) -> usize {
        self.pages.len()
    }

    /// The times of the oldest and the newest page, in milliseconds since 1970.
    pub(super) fn span(&self) -> Option<(i64, i64)> {
        Some((*self.pages.first()?, *self.pages.last()?))
    }

    /// The longest time between two pages that are kept, in milliseconds.
    pub(super) fn widest_gap(&self) -> i64 {
        self.pages.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0)
    }

    fn begin(&self, at: SystemTime) -> Option<i64> {
        let at = milliseconds(at);
        self.pages.last().is_none_or(|last| *last < at).then_some(at)
    }

    fn sample<'a>(&mut self, at: i64, name: &str, labels: impl IntoIterator<Item = (&'a str, &'a str)>, value: f64) {
        if !self.needs.wanted.contains(name) {
            return;
        }
        let mut labels = Labels::from_pairs(labels);
        labels.set(NAME, name);
        labels.set("instance", &self.node);
        labels.set("job", JOB);
        self.store.append(labels, at, value);
    }

    /// What Prometheus adds to a page: `up`, stale markers, and the recorded series.
    fn end(&mut self, at: i64) {
        self.sample(at, "up", [], 1.0);
        self.pages.push(at);
        let Needs { recorded, record, .. } = self.needs;
        let families = self.store.series.iter_mut().filter(|(name, _)| !recorded.contains(&***name));
        mark_stale(families.flat_map(|(_, family)| family.values_mut()), at);
        record(&mut self.store, at);
        let families = self.store.series.iter_mut().filter(|(name, _)| recorded.contains(&***name));
        mark_stale(families.flat_map(|(_, family)| family.values_mut()), at);
        self.thin(at);
    }

    /// Forgets what is too old; then, of the pages but the first and the last two, the one whose neighbours are
    /// closest.
    fn thin(&mut self, now: i64) {
        let oldest = now - self.limits.seconds as i64 * 1000;
        let mut gone: Vec<i64> = self.pages.iter().copied().filter(|at| *at < oldest).collect();
        self.pages.retain(|at| *at >= oldest);
        while self.pages.len() > self.limits.pages.max(3) {
            // In a plain ring the recent past would push out the distant one.
            let candidates = 1..self.pages.len() - 2;
            let Some(place) = candidates.min_by_key(|&place| self.pages[place + 1] - self.pages[place - 1]) else {
                break;
            };
            gone.push(self.pages.remove(place));
        }
        if gone.is_empty() {
            return;
        }
        for family in self.store.series.values_mut() {
            family.retain(|_, points| {
                let last = points.last().map(|last| last.at);
                points.retain(|point| {
                    !gone.contains(&point.at) || is_stale(point.value) && Some(point.at) == last && point.at >= oldest
                });
                points.iter().any(|point| !is_stale(point.value))
            });
        }
        self.store.series.retain(|_, family| !family.is_empty());
    }
}

fn mark_stale<'a>(series: impl Iterator<Item = &'a mut Vec<super::promql::store::Point>>, at: i64) {
    for points in series {
        if points.last().is_some_and(|last| last.at < at && !is_stale(last.value)) {
            points.push(super::promql::store::Point { at, value: STALE });
        }
    }
}

fn pairs<'a>(metric: &'static Metric, values: &'a [Box<str>]) -> impl Iterator<Item = (&'a str, &'a str)> {
    metric.labels.iter().copied().zip(values.iter().map(|value| &**value))
}

pub(super) fn milliseconds(at: SystemTime) -> i64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}
