//! What a mode declares of its headline figure: how much of what runs out is in use.
//!
//! The expressions are PromQL over the same series as the rules; `verdict` evaluates them.

use std::collections::BTreeMap;

use crate::humanize;

/// How one mode's figure is found. Of several series the one with the highest ratio of used and limit is the figure.
#[derive(Debug)]
pub struct Utilization {
    /// What is used.
    pub used: &'static str,
    /// What may be used, with the same labels.
    pub limit: &'static str,
    /// What moves towards the cliff; nothing if its slope says nothing.
    pub slope: Option<Slope>,
    /// The figure in words.
    pub text: fn(&Fullest) -> String,
}

/// What moves towards the cliff, as a selector.
#[derive(Clone, Copy, Debug)]
pub enum Slope {
    /// What is used: it grows.
    Rises(&'static str),
    /// What is left: it falls.
    Falls(&'static str),
}

impl Slope {
    /// The selector.
    pub fn selector(self) -> &'static str {
        match self {
            Slope::Rises(selector) | Slope::Falls(selector) => selector,
        }
    }
}

/// The series that is the figure.
#[derive(Clone, Debug)]
pub struct Fullest {
    /// What is used.
    pub used: f64,
    /// What may be used.
    pub limit: f64,
    /// Which series it is: all its labels but `instance` and `job`.
    pub labels: BTreeMap<String, String>,
}

impl Fullest {
    /// The value of a label, or nothing at all.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }

    /// 12,034 of 65,535 (18.36%)
    pub fn share(&self, number: fn(f64) -> String) -> String {
        let (used, limit) = (number(self.used), number(self.limit));
        format!("{used} of {limit} ({})", humanize::percentage(self.used / self.limit))
    }
}
