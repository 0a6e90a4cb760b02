//! A page of the exporter with its labels apart, and when it was made.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use crate::common::{self, Exporter};

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

impl Series {
    pub(crate) fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

#[derive(Debug)]
pub(crate) struct Page {
    /// Between these two it was made.
    pub(crate) asked: SystemTime,
    pub(crate) answered: SystemTime,
    pub(crate) series: Vec<Series>,
}

impl Page {
    pub(crate) fn of(exporter: &Exporter) -> Self {
        Self::at(exporter.address)
    }

    /// Of an exporter in a pod.
    pub(crate) fn at(address: SocketAddr) -> Self {
        let asked = SystemTime::now();
        let response = common::get(address, "/metrics", &[]);
        let answered = SystemTime::now();
        assert_eq!(response.status, 200, "{}", response.text());
        let text = response.text();
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        Page { asked, answered, series: lines.map(parse).collect() }
    }

    pub(crate) fn took(&self) -> Duration {
        self.answered.duration_since(self.asked).unwrap_or_default()
    }

    /// Every series of this family that has all of these labels.
    pub(crate) fn all<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Series> + 'a {
        let matches = move |series: &&Series| {
            series.name == name && labels.iter().all(|(label, value)| series.label(label) == *value)
        };
        self.series.iter().filter(matches)
    }

    /// The only one of them.
    pub(crate) fn one(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64, String> {
        let found: Vec<&Series> = self.all(name, labels).collect();
        match found[..] {
            [series] => Ok(series.value),
            [] => Err(format!("no {name} {labels:?} on the page")),
            _ => Err(format!("{} series of {name} {labels:?}", found.len())),
        }
    }

    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.all(name, labels).map(|series| series.value).sum()
    }

    /// Collectors with this outcome.
    pub(crate) fn collectors(&self, outcome: &str) -> Vec<&str> {
        let all = self.all("headroom_collector_outcome", &[]);
        all.filter(|series| series.label("outcome") == outcome && series.value == 1.0)
            .map(|series| series.label("collector"))
            .collect()
    }

    /// Every collector is `ok`.
    pub(crate) fn every_collector_is_ok(&self) -> Result<(), String> {
        let (failed, absent) = (self.collectors("failed"), self.collectors("not_applicable"));
        if !failed.is_empty() || !absent.is_empty() {
            let errors = self.all("headroom_collector_errors_total", &[]).filter(|series| series.value > 0.0);
            let errors: Vec<_> = errors.map(|series| (&series.labels, series.value)).collect();
            return Err(format!("failed: {failed:?}, not applicable: {absent:?}; {errors:?}"));
        }
        match self.collectors("ok").len() {
            count if count == headroom::modes::MODES.len() => Ok(()),
            count => Err(format!("{count} collectors are ok")),
        }
    }
}

/// `name{label="value",…} 1`; values of labels have `\\`, `\"` and `\n`.
fn parse(line: &str) -> Series {
    let (head, value) = line.rsplit_once(' ').expect("a series and its value");
    let value = value.parse().expect("a number");
    let Some((name, rest)) = head.split_once('{') else {
        return Series { name: head.to_owned(), labels: BTreeMap::new(), value };
    };
    let mut labels = BTreeMap::new();
    let mut rest = rest.strip_suffix('}').expect("the end of the labels");
    while let Some((label, after)) = rest.split_once("=\"") {
        let mut text = String::new();
        let mut characters = after.char_indices();
        let end = loop {
            match characters.next().expect("the end of a value") {
                (_, '\\') => match characters.next().expect("an escape").1 {
                    'n' => text.push('\n'),
                    other => text.push(other),
                },
                (at, '"') => break at,
                (_, other) => text.push(other),
            }
        };
        labels.insert(label.trim_start_matches(',').to_owned(), text);
        rest = &after[end + 1..];
    }
    Series { name: name.to_owned(), labels, value }
}
