//! Numbers become a page: OpenMetrics 1.0 or the classic text format 0.0.4. The only importer of `prometheus_client`.
//!
//! prometheus-client escapes, formats numbers and knows OpenMetrics; order, grouping and the classic dialect are ours.
//! A page is rendered whole before a byte of it is sent, so that a scrape gets everything or an error, never a torn
//! page.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabel as _, EncodeLabelSet, LabelSetEncoder, MetricEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::metric::{Histogram, Kind, Metric, Samples};

/// A text format that Prometheus reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0: counters are declared without `_total`, units are stated, the page ends in `# EOF`.
    OpenMetrics,
    /// Prometheus text 0.0.4: every name is declared as it is written.
    Classic,
}

impl Format {
    /// The exact content type. Prometheus 3 refuses a page without one.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Classic => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// Picks the format that an `Accept` header prefers. Anything that is neither asked for nor refused gets the
    /// classic text, as every exporter answers.
    pub fn negotiate(accept: &str) -> Self {
        let mut best = (0.0, Format::Classic);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or("").to_ascii_lowercase();
            let (mut quality, mut version) = (1.0, None);
            for parameter in parts {
                match parameter.split_once('=') {
                    Some(("q", value)) => quality = value.trim().parse().unwrap_or(0.0),
                    Some(("version", value)) => version = Some(value.trim_matches('"')),
                    _ => {}
                }
            }
            let format = match (media.as_str(), version) {
                ("application/openmetrics-text", None | Some("1.0.0")) => Format::OpenMetrics,
                ("text/plain", None | Some("0.0.4")) | ("text/*" | "*/*", _) => Format::Classic,
                _ => continue,
            };
            if quality > best.0 {
                best = (quality, format);
            }
        }
        best.1
    }
}

/// A page under construction: what is declared, beside what was measured.
#[derive(Debug, Default)]
pub struct Page {
    parts: Vec<(&'static [&'static Metric], Arc<Samples>)>,
}

impl Page {
    /// Adds the families of `declared` that have rows in `samples`.
    pub fn add(&mut self, declared: &'static [&'static Metric], samples: Arc<Samples>) {
        self.parts.push((declared, samples));
    }

    /// The complete text.
    ///
    /// # Errors
    /// Never in practice: writing to a string does not fail.
    pub fn render(self, format: Format) -> Result<String, fmt::Error> {
        let rows: usize = self.parts.iter().map(|(_, samples)| samples.rows().len()).sum();
        let mut page = String::with_capacity((16 << 10) + 128 * rows);
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Rendering { page: self, format }));
        text::encode_registry(&mut page, &registry)?;
        if format == Format::OpenMetrics {
            text::encode_eof(&mut page)?;
        }
        Ok(page)
    }
}

/// A page as prometheus-client wants to be handed one.
#[derive(Debug)]
struct Rendering {
    page: Page,
    format: Format,
}

/// One line, or the lines of one histogram.
struct Row<'a> {
    metric: &'static Metric,
    labels: Labels<'a>,
    value: Value<'a>,
}

enum Value<'a> {
    Number(f64),
    Histogram(&'a Histogram),
}

impl Collector for Rendering {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (declared, samples) in &self.page.parts {
            let numbers = samples.rows().iter().map(|row| Row {
                metric: row.metric,
                labels: Labels { names: row.metric.labels, values: &row.labels },
                value: Value::Number(row.value),
            });
            let histograms = samples.distributions().iter().map(|row| Row {
                metric: row.metric,
                labels: Labels { names: row.metric.labels, values: &row.labels },
                value: Value::Histogram(&row.histogram),
            });
            // Rows of one family must stand together, and a collector adds them in whatever order it likes.
            let mut rows: Vec<Row<'_>> = numbers.chain(histograms).collect();
            rows.sort_by_key(|row| declared.iter().position(|metric| std::ptr::eq(*metric, row.metric)));
            for family in rows.chunk_by(|a, b| std::ptr::eq(a.metric, b.metric)) {
                self.family(&mut encoder, family)?;
            }
        }
        Ok(())
    }
}

impl Rendering {
    fn family(&self, encoder: &mut DescriptorEncoder<'_>, rows: &[Row<'_>]) -> fmt::Result {
        let metric = rows[0].metric;
        let kind = match metric.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Histogram => MetricType::Histogram,
            Kind::Gauge | Kind::Info => MetricType::Gauge,
        };
        // prometheus-client appends the unit and `_total` itself, so OpenMetrics gets the bare name. The classic
        // dialect has neither convention: there the whole name is declared, and a counter's rows are written like a
        // gauge's, as they are.
        let openmetrics = self.format == Format::OpenMetrics;
        let (name, unit) = if openmetrics { bare(metric) } else { (metric.name, None) };
        let append_total = metric.kind == Kind::Counter && openmetrics;
        let mut family = encoder.encode_descriptor(name, metric.summary(), unit.as_ref(), kind)?;
        for row in rows {
            if row.labels.pairs().next().is_some() {
                row.value.write(&mut family.encode_family(&row.labels)?, append_total)?;
            } else {
                row.value.write(&mut family, append_total)?;
            }
        }
        Ok(())
    }
}

impl Value<'_> {
    fn write(&self, encoder: &mut MetricEncoder<'_>, append_total: bool) -> fmt::Result {
        match self {
            Value::Number(value) => number(encoder, *value, append_total),
            Value::Histogram(histogram) => {
                let buckets: Vec<_> = histogram.buckets().collect();
                encoder.encode_histogram::<NoLabelSet>(histogram.sum(), histogram.count(), &buckets, None)
            }
        }
    }
}

/// Writes the number, a whole one without a fraction: people read this page too.
fn number(encoder: &mut MetricEncoder<'_>, value: f64, append_total: bool) -> fmt::Result {
    // Beyond 2^53 an f64 has no room for odd numbers, and digits would only pretend.
    let whole = (value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0).then_some(value as i64);
    match (append_total, whole) {
        (true, Some(whole)) => encoder.encode_counter::<NoLabelSet, _, f64>(&whole.unsigned_abs(), None),
        (true, None) => encoder.encode_counter::<NoLabelSet, _, f64>(&value, None),
        (false, Some(whole)) => encoder.encode_gauge(&whole),
        (false, None) => encoder.encode_gauge(&value),
    }
}

/// The name without what prometheus-client appends, and the unit as it wants it.
fn bare(metric: &Metric) -> (&'static str, Option<Unit>) {
    let name = metric.name.strip_suffix("_total").unwrap_or(metric.name);
    match metric.unit.suffix() {
        Some(suffix) => {
            let stem = name.strip_suffix(suffix).and_then(|name| name.strip_suffix('_'));
            stem.map_or((name, None), |stem| (stem, Some(Unit::Other(suffix.to_owned()))))
        }
        None => (name, None),
    }
}

/// The labels of one row. An empty value is the same as no label to Prometheus and is left out.
#[derive(Debug)]
struct Labels<'a> {
    names: &'static [&'static str],
    values: &'a [Box<str>],
}

impl Labels<'_> {
    fn pairs(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let names = self.names.iter().copied();
        names.zip(self.values.iter().map(|value| &**value)).filter(|(_, value)| !value.is_empty())
    }
}

impl EncodeLabelSet for Labels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.pairs().try_for_each(|pair| pair.encode(encoder.encode_label()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static HANDLES: Metric = Metric::gauge("headroom_handles", crate::metric::Unit::None, &[], "Open files");
    static FREE: Metric = Metric::gauge("headroom_free_bytes", crate::metric::Unit::Bytes, &["path", "kind"], "Free");
    static ERRORS: Metric = Metric::counter("headroom_errors_total", &["reason"], "Errors");
    static INFO: Metric = Metric::info("headroom_build_info", &["version"], "Build");
    static TIMES: Metric =
        Metric::histogram("headroom_probe_duration_seconds", crate::metric::Unit::Seconds, &["phase"], "Times");
    static ALL: &[&Metric] = &[&HANDLES, &FREE, &ERRORS, &TIMES, &INFO];

    fn page(format: Format) -> String {
        let mut samples = Samples::new();
        samples.info(&INFO, &["1.0"]);
        samples.push(&FREE, &["a\"b\\c\nd", "x"], 4096.0);
        samples.push(&HANDLES, &[], 9_223_372_036_854_775_807.0);
        samples.push(&FREE, &["", ""], -0.5);
        samples.push(&ERRORS, &["denied"], 3.0);
        let mut times = Histogram::new(&[0.0001, 0.5]);
        [0.0001, 0.25, 0.25, 7.5].into_iter().for_each(|seconds| times.observe(seconds));
        samples.distribution(&TIMES, &["tls"], times);
        let mut page = Page::default();
        page.add(ALL, Arc::new(samples));
        page.render(format).unwrap()
    }

    #[test]
    fn openmetrics() {
        assert_eq!(
            page(Format::OpenMetrics),
            r#"# HELP headroom_handles Open files
# TYPE headroom_handles gauge
headroom_handles 9223372036854776000.0
# HELP headroom_free_bytes Free
# TYPE headroom_free_bytes gauge
# UNIT headroom_free_bytes bytes
headroom_free_bytes{path="a\"b\\c\nd",kind="x"} 4096
headroom_free_bytes -0.5
# HELP headroom_errors Errors
# TYPE headroom_errors counter
headroom_errors_total{reason="denied"} 3
# HELP headroom_probe_duration_seconds Times
# TYPE headroom_probe_duration_seconds histogram
# UNIT headroom_probe_duration_seconds seconds
headroom_probe_duration_seconds_sum{phase="tls"} 8.0001
headroom_probe_duration_seconds_count{phase="tls"} 4
headroom_probe_duration_seconds_bucket{le="0.0001",phase="tls"} 1
headroom_probe_duration_seconds_bucket{le="0.5",phase="tls"} 3
headroom_probe_duration_seconds_bucket{le="+Inf",phase="tls"} 4
# HELP headroom_build_info Build
# TYPE headroom_build_info gauge
headroom_build_info{version="1.0"} 1
# EOF
"#
        );
    }

    #[test]
    fn classic() {
        assert_eq!(
            page(Format::Classic),
            r#"# HELP headroom_handles Open files
# TYPE headroom_handles gauge
headroom_handles 9223372036854776000.0
# HELP headroom_free_bytes Free
# TYPE headroom_free_bytes gauge
headroom_free_bytes{path="a\"b\\c\nd",kind="x"} 4096
headroom_free_bytes -0.5
# HELP headroom_errors_total Errors
# TYPE headroom_errors_total counter
headroom_errors_total{reason="denied"} 3
# HELP headroom_probe_duration_seconds Times
# TYPE headroom_probe_duration_seconds histogram
headroom_probe_duration_seconds_sum{phase="tls"} 8.0001
headroom_probe_duration_seconds_count{phase="tls"} 4
headroom_probe_duration_seconds_bucket{le="0.0001",phase="tls"} 1
headroom_probe_duration_seconds_bucket{le="0.5",phase="tls"} 3
headroom_probe_duration_seconds_bucket{le="+Inf",phase="tls"} 4
# HELP headroom_build_info Build
# TYPE headroom_build_info gauge
headroom_build_info{version="1.0"} 1
"#
        );
    }

    #[test]
    fn negotiation() {
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
             application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
             text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        let prometheus_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
             text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (accept, format) in [
            (prometheus_3, Format::OpenMetrics),
            (prometheus_2, Format::OpenMetrics),
            ("", Format::Classic),
            ("*/*", Format::Classic),
            ("text/plain", Format::Classic),
            ("text/html,application/xhtml+xml,*/*;q=0.8", Format::Classic),
            ("application/openmetrics-text; version=1.0.0; charset=utf-8", Format::OpenMetrics),
            ("application/openmetrics-text", Format::OpenMetrics),
            ("application/openmetrics-text;version=2.0.0", Format::Classic),
            ("application/openmetrics-text;q=0, text/plain;q=0.1", Format::Classic),
            ("application/openmetrics-text;q=0.2, text/plain;version=0.0.4;q=0.9", Format::Classic),
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
                Format::Classic,
            ),
            ("application/openmetrics-text;q=zebra", Format::Classic),
        ] {
            assert_eq!(Format::negotiate(accept), format, "{accept}");
        }
    }
}
