//! The one way to declare a metric, and the one way to hold what was measured.
//!
//! A [`Metric`] is a `static` with its full exposed name, so that one grep finds the code, the alert, the panel and the
//! test. [`Samples`] is what a collector returns: plain rows, plus what went wrong on the way. Nothing here knows how a
//! page is rendered (that is `exposition`) or who collects (that is `scrape`).

use crate::error::Error;

/// What kind of number a metric is, as Prometheus understands it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Goes up and down.
    Gauge,
    /// Only goes up while the exporter lives; the name ends in `_total`.
    Counter,
    /// A gauge that is always 1 and carries facts in its labels; the name ends in `_info`.
    Info,
    /// How often something took how long: `_bucket`, `_sum` and `_count` rows.
    Histogram,
}

/// The unit at the end of a metric's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A plain count; no suffix.
    None,
    /// `_bytes`
    Bytes,
    /// `_seconds`
    Seconds,
    /// `_ratio`: 0–1 (below 0 where the help text says so).
    Ratio,
}

impl Unit {
    /// The suffix without its underscore, or nothing.
    pub fn suffix(self) -> Option<&'static str> {
        match self {
            Unit::None => None,
            Unit::Bytes => Some("bytes"),
            Unit::Seconds => Some("seconds"),
            Unit::Ratio => Some("ratio"),
        }
    }
}

/// The declaration of one metric family. Declared once, as a `static`, by the mode that fills it.
#[derive(Debug)]
pub struct Metric {
    /// The full name as exposed, suffixes included: `headroom_cgroups`.
    pub name: &'static str,
    /// Gauge, counter or info.
    pub kind: Kind,
    /// The unit that the name ends with.
    pub unit: Unit,
    /// Label names in the order in which [`Samples::push`] takes their values.
    pub labels: &'static [&'static str],
    /// The page's HELP: what it is and its source, in at most two sentences and 200 characters. A second paragraph,
    /// after an empty line, has the caveats; it is in `docs/metrics.md` only.
    pub help: &'static str,
}

impl Metric {
    /// The first paragraph of the help: what stands on the page.
    pub fn summary(&self) -> &'static str {
        self.help.split("\n\n").next().unwrap_or_default()
    }

    /// A gauge.
    pub const fn gauge(name: &'static str, unit: Unit, labels: &'static [&'static str], help: &'static str) -> Self {
        Metric { name, kind: Kind::Gauge, unit, labels, help }
    }

    /// A counter without a unit; `name` ends in `_total`.
    pub const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Self {
        Metric { name, kind: Kind::Counter, unit: Unit::None, labels, help }
    }

    /// A histogram.
    pub const fn histogram(
        name: &'static str,
        unit: Unit,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Metric { name, kind: Kind::Histogram, unit, labels, help }
    }

    /// An info gauge; `name` ends in `_info`.
    pub const fn info(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Self {
        Metric { name, kind: Kind::Info, unit: Unit::None, labels, help }
    }
}

/// What was observed again and again, by size: for timings of what *we* do, kept for as long as the exporter lives.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// Upper bounds of the buckets, ascending, without the infinite one.
    bounds: &'static [f64],
    /// One count per bound and one for what is beyond them all; not cumulative.
    counts: Box<[u64]>,
    sum: f64,
}

impl Histogram {
    /// An empty one with these upper bounds, which ascend.
    pub fn new(bounds: &'static [f64]) -> Self {
        Histogram { bounds, counts: vec![0; bounds.len() + 1].into(), sum: 0.0 }
    }

    /// Counts one observation. A bound belongs to its bucket (`le`).
    pub fn observe(&mut self, value: f64) {
        self.counts[self.bounds.partition_point(|bound| *bound < value)] += 1;
        self.sum += value;
    }

    /// Sum of all observations.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Upper bound and count of each bucket, the last one infinite.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        self.bounds.iter().copied().chain([f64::INFINITY]).zip(self.counts.iter().copied())
    }
}

/// One histogram with its labels.
#[derive(Clone, Debug)]
pub struct Distribution {
    /// Which family it belongs to.
    pub metric: &'static Metric,
    /// As in [`Sample`].
    pub labels: Box<[Box<str>]>,
    /// What was observed.
    pub histogram: Histogram,
}

/// One measured number.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Which family it belongs to.
    pub metric: &'static Metric,
    /// One value per declared label. An empty value means that the label does not apply and is left out of the page.
    pub labels: Box<[Box<str>]>,
    /// The number.
    pub value: f64,
}

/// What one collector found in one scrape: numbers, what it left out, and what it could not read.
///
/// A collector that can read only part of its sources returns what it has *and* the errors: its outcome is `failed`,
/// with the reasons, and the numbers that are true are on the page all the same.
#[derive(Debug, Default)]
pub struct Samples {
    rows: Vec<Sample>,
    distributions: Vec<Distribution>,
    errors: Vec<Error>,
    notes: Vec<String>,
    dropped: Dropped,
}

/// What caps left out, by whose cap it was.
#[derive(Debug, Default)]
pub struct Dropped {
    /// By caps of the node as a whole.
    pub node: u64,
    /// By a pod's own share of a cap: the pods that lost most, at most [`Dropped::MOST_PODS`].
    pub pods: Vec<(DroppedPod, u64)>,
    /// The same of pods beyond those.
    pub other_pods: u64,
}

/// A pod as labels name it. Names are empty where the runtime told none.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct DroppedPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid: what tells it from all others.
    pub uid: String,
}

impl Dropped {
    /// Pods told by name. Somebody who makes pods that lose something must not make series without end.
    pub const MOST_PODS: usize = 16;

    fn total(&self) -> u64 {
        self.node + self.other_pods + self.pods.iter().map(|(_, count)| count).sum::<u64>()
    }
}

impl Samples {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one number. `labels` are the values for `metric.labels`, in that order.
    ///
    /// # Panics
    /// If the number of values is not the number of declared labels: a bug that the first test of a mode finds.
    pub fn push(&mut self, metric: &'static Metric, labels: &[&str], value: f64) {
        self.rows.push(Sample { metric, labels: label_values(metric, labels), value });
    }

    /// Adds a histogram. `labels` as in [`Samples::push`].
    ///
    /// # Panics
    /// As [`Samples::push`].
    pub fn distribution(&mut self, metric: &'static Metric, labels: &[&str], histogram: Histogram) {
        self.distributions.push(Distribution { metric, labels: label_values(metric, labels), histogram });
    }

    /// Adds a number that may be absent: absent is not zero, so nothing is added for `None`.
    pub fn push_some(&mut self, metric: &'static Metric, labels: &[&str], value: Option<f64>) {
        if let Some(value) = value {
            self.push(metric, labels, value);
        }
    }

    /// Adds a row of an info metric.
    pub fn info(&mut self, metric: &'static Metric, labels: &[&str]) {
        self.push(metric, labels, 1.0);
    }

    /// Notes something that could not be read, beside the numbers that could.
    pub fn fail(&mut self, error: Error) {
        self.errors.push(error);
    }

    /// Notes what an operator could make better, where nothing is missing from the page: it is logged once, and the
    /// doctor says it.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Hands through the value of `result`, or notes its error.
    pub fn ok<T>(&mut self, result: crate::error::Result<T>) -> Option<T> {
        result.map_err(|error| self.fail(error)).ok()
    }

    /// Notes that a cap of the node (cardinality, readlinks, directories) left `count` things out of this scrape.
    pub fn drop_count(&mut self, count: u64) {
        self.dropped.node += count;
    }

    /// Notes what pods lost by their own share of a cap, which costs nobody else anything. Each pod is named once.
    pub fn drop_of_pods(&mut self, lost: impl IntoIterator<Item = (DroppedPod, u64)>) {
        let lost = lost.into_iter().filter(|(_, count)| *count > 0);
        let mut pods = std::collections::BTreeMap::new();
        for (pod, count) in self.dropped.pods.drain(..).chain(lost) {
            *pods.entry(pod).or_insert(0) += count;
        }
        self.dropped.pods.extend(pods);
        self.dropped.pods.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let beyond = self.dropped.pods.len().min(Dropped::MOST_PODS);
        self.dropped.other_pods += self.dropped.pods.drain(beyond..).map(|(_, count)| count).sum::<u64>();
    }

    /// The numbers.
    pub fn rows(&self) -> &[Sample] {
        &self.rows
    }

    /// The histograms.
    pub fn distributions(&self) -> &[Distribution] {
        &self.distributions
    }

    /// What could not be read.
    pub fn errors(&self) -> &[Error] {
        &self.errors
    }

    /// What could be better.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What caps left out, by whose cap it was.
    pub fn dropped_by(&self) -> &Dropped {
        &self.dropped
    }

    /// How many things caps left out altogether.
    pub fn dropped(&self) -> u64 {
        self.dropped.total()
    }

    /// The value of one series, for tests and for the doctor: `labels` as in [`Samples::push`].
    pub fn value(&self, metric: &'static Metric, labels: &[&str]) -> Option<f64> {
        self.rows
            .iter()
            .find(|row| std::ptr::eq(row.metric, metric) && row.labels.iter().map(|l| &**l).eq(labels.iter().copied()))
            .map(|row| row.value)
    }

    /// Refuses duplicate series: Prometheus takes them silently and keeps an arbitrary one. The first stays, and an
    /// error is noted for each further one.
    pub fn refuse_duplicates(&mut self) {
        let mut seen = std::collections::HashSet::with_capacity(self.rows.len());
        let mut errors = Vec::new();
        let mut fresh = |metric: &Metric, labels: &[Box<str>]| {
            let fresh = seen.insert((metric.name, labels.to_vec()));
            if !fresh {
                errors.push(Error::malformed(format!("{}{labels:?}: duplicate series", metric.name)));
            }
            fresh
        };
        self.rows.retain(|row| fresh(row.metric, &row.labels));
        self.distributions.retain(|row| fresh(row.metric, &row.labels));
        self.errors.append(&mut errors);
    }

    /// Refuses rows of metrics that their mode does not declare: they would be on the page and in no documentation.
    pub fn refuse_undeclared(&mut self, declared: &[&'static Metric]) {
        let mut errors = Vec::new();
        let mut known = |metric: &'static Metric| {
            let known = declared.iter().any(|declared| std::ptr::eq(*declared, metric));
            if !known {
                errors.push(Error::malformed(format!("{}: not declared by its mode", metric.name)));
            }
            known
        };
        self.rows.retain(|row| known(row.metric));
        self.distributions.retain(|row| known(row.metric));
        self.errors.append(&mut errors);
    }
}

fn label_values(metric: &Metric, labels: &[&str]) -> Box<[Box<str>]> {
    assert_eq!(labels.len(), metric.labels.len(), "{}: wrong number of label values", metric.name);
    labels.iter().map(|&value| value.into()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    static SECONDS: Metric = Metric::histogram("headroom_x_seconds", Unit::Seconds, &["a"], "x");

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let mut histogram = Histogram::new(&[0.5, 1.0]);
        for value in [0.0, 0.5, 0.75, 1.0, 1.5, 100.0] {
            histogram.observe(value);
        }
        assert_eq!(histogram.buckets().collect::<Vec<_>>(), [(0.5, 2), (1.0, 2), (f64::INFINITY, 2)]);
        assert_eq!((histogram.count(), histogram.sum()), (6, 103.75));
    }

    #[test]
    fn duplicate_and_undeclared_histograms_are_refused() {
        let mut samples = Samples::new();
        samples.distribution(&SECONDS, &["1"], Histogram::new(&[1.0]));
        samples.distribution(&SECONDS, &["1"], Histogram::new(&[1.0]));
        samples.refuse_duplicates();
        assert_eq!((samples.distributions().len(), samples.errors().len()), (1, 1));
        samples.refuse_undeclared(&[&BYTES]);
        assert_eq!((samples.distributions().len(), samples.errors().len()), (0, 2));
    }

    static BYTES: Metric = Metric::gauge("headroom_x_bytes", Unit::Bytes, &["a"], "x");

    #[test]
    fn duplicates_are_refused_and_reported() {
        let mut samples = Samples::new();
        samples.push(&BYTES, &["1"], 1.0);
        samples.push(&BYTES, &["1"], 2.0);
        samples.push(&BYTES, &["2"], 3.0);
        samples.refuse_duplicates();
        assert_eq!(samples.rows().len(), 2);
        assert_eq!(samples.value(&BYTES, &["1"]), Some(1.0));
        assert_eq!(samples.errors().len(), 1);
        assert_eq!(samples.errors()[0].reason(), crate::error::Reason::Malformed);
    }

    #[test]
    fn what_a_pod_lost_is_its_own_and_pods_without_end_are_one_sum() {
        let pod = |uid: usize| DroppedPod { uid: uid.to_string(), ..DroppedPod::default() };
        let mut samples = Samples::new();
        samples.drop_count(3);
        samples.drop_of_pods([(pod(7), 2), (pod(8), 0)]);
        samples.drop_of_pods([(pod(7), 100)]);
        assert_eq!(samples.dropped_by().pods, [(pod(7), 102)]);
        samples.drop_of_pods((100..1_100).map(|uid| (pod(uid), 1)));
        let dropped = samples.dropped_by();
        assert_eq!((dropped.pods.len(), &dropped.pods[0]), (Dropped::MOST_PODS, &(pod(7), 102)));
        assert_eq!((dropped.node, dropped.other_pods, dropped.total()), (3, 985, 1_105));
    }

    #[test]
    fn absent_is_not_zero() {
        let mut samples = Samples::new();
        samples.push_some(&BYTES, &["1"], None);
        assert!(samples.rows().is_empty());
    }

    #[test]
    #[should_panic(expected = "wrong number of label values")]
    fn a_wrong_number_of_labels_is_a_bug() {
        Samples::new().push(&BYTES, &[], 1.0);
    }
}
