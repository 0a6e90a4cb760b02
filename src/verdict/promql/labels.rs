//! The labels of one series, sorted by name, the metric's name among them as `__name__`.

use std::fmt;
use std::sync::Arc;

/// The label that holds the metric's name.
pub const NAME: &str = "__name__";

/// Labels, sorted by name. An empty value is the same as no label, so none is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels(Vec<(Arc<str>, Arc<str>)>);

impl Labels {
    /// From pairs in any order.
    pub fn from_pairs<N: Into<Arc<str>>, V: Into<Arc<str>>>(pairs: impl IntoIterator<Item = (N, V)>) -> Self {
        let pairs = pairs.into_iter().map(|(name, value)| (name.into(), value.into()));
        let mut labels: Vec<(Arc<str>, Arc<str>)> =
            pairs.filter(|(_, value): &(_, Arc<str>)| !value.is_empty()).collect();
        labels.sort();
        Labels(labels)
    }

    /// The value of a label, or nothing at all, which is the same as an empty one.
    pub fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(known, _)| **known == *name).map_or("", |(_, value)| value)
    }

    /// Sets a label, or takes it away if the value is empty.
    pub fn set(&mut self, name: &str, value: &str) {
        match self.0.binary_search_by(|(known, _)| (**known).cmp(name)) {
            Ok(place) if value.is_empty() => drop(self.0.remove(place)),
            Ok(place) => self.0[place].1 = value.into(),
            Err(_) if value.is_empty() => {}
            Err(place) => self.0.insert(place, (name.into(), value.into())),
        }
    }

    /// Only these labels.
    pub fn keep(&self, names: &[String]) -> Self {
        Labels(self.0.iter().filter(|(name, _)| names.iter().any(|kept| **kept == **name)).cloned().collect())
    }

    /// All but these labels and the metric's name.
    pub fn without(&self, names: &[String]) -> Self {
        let gone = |name: &str| name == NAME || names.iter().any(|gone| *gone == *name);
        Labels(self.0.iter().filter(|(name, _)| !gone(name)).cloned().collect())
    }

    /// All but the metric's name.
    pub fn without_name(&self) -> Self {
        self.without(&[])
    }

    /// Name and value of each.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }
}

/// As Prometheus writes it: `name{a="b"}`.
impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{{", self.get(NAME))?;
        for (place, (name, value)) in self.iter().filter(|(name, _)| *name != NAME).enumerate() {
            write!(f, "{}{name}={value:?}", if place == 0 { "" } else { ", " })?;
        }
        f.write_str("}")
    }
}
