//! An instant evaluator of PromQL: one expression at one time, by Prometheus's own semantics (promql/engine.go).
//!
//! Ranges and the lookback leave out a sample that lies exactly at the older end, as since Prometheus 3; Prometheus 2
//! counts it. A dot in a matcher's regex does not match a newline, as it does since 3: the rules have regexes only for
//! labels with a closed set of values.

use std::borrow::Cow;

use promql_parser::parser::{Expr, Offset, VectorSelector};

use super::labels::Labels;
use super::store::{Point, Store, is_stale};
use super::{aggregate, functions, matching};

/// How old a sample may be for an instant selector: Prometheus's default.
pub const LOOKBACK: i64 = 5 * 60 * 1000;

/// One element of an instant vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Element {
    /// Its labels.
    pub labels: Labels,
    /// Its value.
    pub value: f64,
}

/// One series of a range vector, without stale markers.
#[derive(Clone, Debug)]
pub(in crate::verdict) struct Range<'a> {
    pub(in crate::verdict) labels: &'a Labels,
    pub(in crate::verdict) points: Cow<'a, [Point]>,
}

/// What an expression can be.
#[derive(Clone, Debug)]
pub enum Value {
    /// A number.
    Scalar(f64),
    /// Numbers with labels.
    Vector(Vec<Element>),
    /// A text: an argument of some functions.
    Text(String),
}

/// Evaluates expressions over a store at one time.
#[derive(Clone, Copy, Debug)]
pub struct Evaluator<'a> {
    pub(in crate::verdict) store: &'a Store,
    /// Milliseconds since 1970.
    pub(in crate::verdict) at: i64,
    pub(in crate::verdict) lookback: i64,
}

impl<'a> Evaluator<'a> {
    /// At a time in milliseconds since 1970.
    pub fn new(store: &'a Store, at: i64) -> Self {
        Evaluator { store, at, lookback: LOOKBACK }
    }

    /// The value of an expression.
    ///
    /// # Errors
    /// What Prometheus would refuse: many-to-many matching and the like.
    pub fn eval(&self, expr: &Expr) -> Result<Value, String> {
        match expr {
            Expr::NumberLiteral(number) => Ok(Value::Scalar(number.val)),
            Expr::StringLiteral(text) => Ok(Value::Text(text.val.clone())),
            Expr::Paren(paren) => self.eval(&paren.expr),
            Expr::Unary(unary) => Ok(match self.eval(&unary.expr)? {
                Value::Scalar(value) => Value::Scalar(-value),
                Value::Vector(vector) => Value::Vector(
                    vector.into_iter().map(|e| Element { labels: e.labels.without_name(), value: -e.value }).collect(),
                ),
                Value::Text(_) => return Err("a text has no sign".into()),
            }),
            Expr::VectorSelector(selector) => Ok(Value::Vector(
                self.instant(selector)
                    .map(|(labels, point)| Element { labels: labels.clone(), value: point.value })
                    .collect(),
            )),
            Expr::Binary(binary) => matching::binary(self, binary),
            Expr::Aggregate(expr) => aggregate::aggregate(self, expr).map(Value::Vector),
            Expr::Call(call) => functions::call(self, call),
            Expr::MatrixSelector(_) => Err("a range vector stands where none can".into()),
            Expr::Subquery(_) | Expr::Extension(_) => Err("subqueries are not supported".into()),
        }
    }

    /// The value of an expression that is a vector; a scalar becomes a vector without labels, as in a rule.
    ///
    /// # Errors
    /// As [`Evaluator::eval`]; and two elements with the same labels.
    pub fn vector(&self, expr: &Expr) -> Result<Vec<Element>, String> {
        match self.eval(expr)? {
            Value::Vector(vector) => Ok(vector),
            Value::Scalar(value) => Ok(vec![Element { labels: Labels::default(), value }]),
            Value::Text(_) => Err("a text stands where none can".into()),
        }
    }

    /// The newest point of each series at the selector's time.
    pub(in crate::verdict) fn instant(
        &self,
        selector: &'a VectorSelector,
    ) -> impl Iterator<Item = (&'a Labels, Point)> {
        let at = self.at - offset(selector);
        let lookback = self.lookback;
        let series = self.store.select(selector.name.as_deref(), &selector.matchers.matchers);
        series.filter_map(move |(labels, points)| {
            let place = points.partition_point(|point| point.at <= at).checked_sub(1)?;
            let point = points[place];
            (point.at > at - lookback && !is_stale(point.value)).then_some((labels, point))
        })
    }

    /// The points of each series in the window, where there are any.
    pub(in crate::verdict) fn range(&self, selector: &'a VectorSelector, milliseconds: i64) -> Vec<Range<'a>> {
        let end = self.at - offset(selector);
        let start = end - milliseconds;
        let series = self.store.select(selector.name.as_deref(), &selector.matchers.matchers);
        let ranges = series.map(|(labels, points)| {
            let window =
                points.partition_point(|point| point.at <= start)..points.partition_point(|point| point.at <= end);
            let points = &points[window];
            let points = if points.iter().any(|point| is_stale(point.value)) {
                points.iter().copied().filter(|point| !is_stale(point.value)).collect()
            } else {
                Cow::Borrowed(points)
            };
            Range { labels, points }
        });
        ranges.filter(|range| !range.points.is_empty()).collect()
    }
}

/// How far back a selector is moved, in milliseconds.
pub(in crate::verdict) fn offset(selector: &VectorSelector) -> i64 {
    match &selector.offset {
        Some(Offset::Pos(by)) => by.as_millis() as i64,
        Some(Offset::Neg(by)) => -(by.as_millis() as i64),
        None => 0,
    }
}

/// Refuses two elements with the same labels.
pub(in crate::verdict) fn unique(vector: Vec<Element>) -> Result<Vec<Element>, String> {
    let mut seen = std::collections::HashSet::with_capacity(vector.len());
    match vector.iter().find(|element| !seen.insert(&element.labels)) {
        Some(element) => Err(format!("vector cannot contain metrics with the same labelset: {}", element.labels)),
        None => Ok(vector),
    }
}
