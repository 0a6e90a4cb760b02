//! Aggregations: one number, or the first few, of each group.

use std::collections::BTreeMap;

use promql_parser::parser::{AggregateExpr, LabelModifier};

use super::eval::{Element, Evaluator, Value};
use super::labels::Labels;

/// Every aggregation that the evaluator knows: those that a rule uses, and no others. A test compares.
pub(in crate::verdict) const NAMES: [&str; 6] = ["sum", "min", "max", "avg", "count", "topk"];

pub(in crate::verdict) fn aggregate(evaluator: &Evaluator<'_>, expr: &AggregateExpr) -> Result<Vec<Element>, String> {
    let op = expr.op.to_string();
    let mut groups: BTreeMap<Labels, Vec<Element>> = BTreeMap::new();
    for element in evaluator.vector(&expr.expr)? {
        let key = match &expr.modifier {
            Some(LabelModifier::Include(by)) => element.labels.keep(&by.labels),
            Some(LabelModifier::Exclude(without)) => element.labels.without(&without.labels),
            None => Labels::default(),
        };
        groups.entry(key).or_default().push(element);
    }
    if op == "topk" {
        let count = expr.param.as_ref().map(|param| evaluator.eval(param)).transpose()?;
        let Some(Value::Scalar(count)) = count else { return Err("topk of how many?".into()) };
        return Ok(groups.into_values().flat_map(|group| largest(group, count.max(0.0) as usize)).collect());
    }
    Ok(groups.into_iter().map(|(labels, group)| Element { labels, value: fold(&op, &group) }).collect())
}

/// NaN counts as the smallest.
fn largest(mut group: Vec<Element>, count: usize) -> Vec<Element> {
    group.sort_by(|a, b| b.value.partial_cmp(&a.value).unwrap_or_else(|| a.value.is_nan().cmp(&b.value.is_nan())));
    group.truncate(count);
    group
}

fn fold(op: &str, group: &[Element]) -> f64 {
    let values = group.iter().map(|element| element.value);
    let replace = |wanted: fn(f64, f64) -> bool| {
        values
            .clone()
            .reduce(|kept, next| if wanted(kept, next) || kept.is_nan() { next } else { kept })
            .unwrap_or(f64::NAN)
    };
    match op {
        "sum" => values.sum(),
        "avg" => mean(values),
        "count" => group.len() as f64,
        "min" => replace(|kept, next| kept > next),
        "max" => replace(|kept, next| kept < next),
        _ => f64::NAN,
    }
}

/// A running mean, so that large values do not overflow.
pub(in crate::verdict) fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (mut mean, mut count) = (0.0, 0.0);
    for value in values {
        count += 1.0;
        if f64::is_infinite(mean) && (value.is_infinite() && (mean > 0.0) == (value > 0.0) || value.is_finite()) {
            continue;
        }
        mean += value / count - mean / count;
    }
    mean
}
