//! Series by name: what an expression is evaluated over.

use std::collections::BTreeMap;
use std::sync::Arc;

use promql_parser::label::{MatchOp, Matcher};

use super::labels::{Labels, NAME};

/// What Prometheus writes when a series is on the page no more: a NaN of its own, told by its bits.
pub const STALE: f64 = f64::from_bits(0x7ff0_0000_0000_0002);

/// Whether a value is the stale marker.
pub(in crate::verdict) fn is_stale(value: f64) -> bool {
    value.to_bits() == STALE.to_bits()
}

/// One value at one time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Milliseconds since 1970.
    pub at: i64,
    /// The value, or [`STALE`].
    pub value: f64,
}

/// Series by name, each name's sorted by labels.
#[derive(Clone, Debug, Default)]
pub struct Store {
    pub(in crate::verdict) series: BTreeMap<Arc<str>, BTreeMap<Labels, Vec<Point>>>,
}

impl Store {
    /// Appends a point. Points of one series come in the order of time; a second one of the same time is ignored, as
    /// Prometheus does.
    pub fn append(&mut self, labels: Labels, at: i64, value: f64) {
        let name = labels.get(NAME);
        if !self.series.contains_key(name) {
            self.series.insert(name.into(), BTreeMap::new());
        }
        let Some(family) = self.series.get_mut(name) else { return };
        let points = family.entry(labels).or_default();
        if points.last().is_none_or(|last| last.at < at) {
            points.push(Point { at, value });
        }
    }

    /// The series that a selector names.
    pub(in crate::verdict) fn select<'a>(
        &'a self,
        name: Option<&'a str>,
        matchers: &'a [Matcher],
    ) -> impl Iterator<Item = (&'a Labels, &'a [Point])> {
        let name = name.or_else(|| {
            let exact = matchers.iter().find(|matcher| matcher.name == NAME && matcher.op == MatchOp::Equal);
            exact.map(|matcher| matcher.value.as_str())
        });
        let one = name.and_then(|name| self.series.get(name));
        let all = if name.is_none() { Some(self.series.values()) } else { None };
        let families = one.into_iter().chain(all.into_iter().flatten());
        families
            .flatten()
            .filter(|(labels, _)| matchers.iter().all(|matcher| matcher.is_match(labels.get(&matcher.name))))
            .map(|(labels, points)| (labels, points.as_slice()))
    }
}
