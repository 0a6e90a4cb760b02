//! The functions that our rules use, by Prometheus's own definitions (promql/functions.go).

use promql_parser::label::MatchOp;
use promql_parser::parser::{Call, Expr};

use super::aggregate::mean;
use super::eval::{Element, Evaluator, Range, Value, offset, unique};
use super::labels::{Labels, NAME};
use super::store::Point;

/// Functions that tell a slope: their value over seconds says little of hours. `increase` and `changes` count what has
/// happened; a short history can only miss some of it.
pub(in crate::verdict) const SLOPES: [&str; 2] = ["deriv", "rate"];

const OF_RANGES: [&str; 9] = [
    "last_over_time",
    "rate",
    "increase",
    "changes",
    "resets",
    "deriv",
    "min_over_time",
    "max_over_time",
    "avg_over_time",
];
const OTHERS: [&str; 3] = ["time", "timestamp", "absent"];

/// Every function that the evaluator knows: those that a rule uses, and no others. A test compares.
pub(in crate::verdict) fn names() -> impl Iterator<Item = &'static str> {
    OF_RANGES.into_iter().chain(OTHERS)
}

pub(in crate::verdict) fn known(name: &str) -> bool {
    names().any(|known| known == name)
}

pub(in crate::verdict) fn call(evaluator: &Evaluator<'_>, call: &Call) -> Result<Value, String> {
    let name = call.func.name;
    let argument = call.args.args.first().map(|argument| bare(argument));
    if OF_RANGES.contains(&name) {
        return of_ranges(evaluator, name, argument).map(Value::Vector);
    }
    let vector = || argument.map_or_else(|| Err(format!("{name}: of what?")), |of| evaluator.vector(of));
    match name {
        "time" => Ok(Value::Scalar(evaluator.at as f64 / 1000.0)),
        "timestamp" => {
            let at = |labels: &Labels, at: i64| Element { labels: labels.without_name(), value: at as f64 / 1000.0 };
            // Of a selector it is the sample's own time, of anything else that of the evaluation.
            let times = match argument {
                Some(Expr::VectorSelector(selector)) => {
                    evaluator.instant(selector).map(|(labels, point)| at(labels, point.at)).collect()
                }
                _ => vector()?.iter().map(|element| at(&element.labels, evaluator.at)).collect(),
            };
            unique(times).map(Value::Vector)
        }
        "absent" => Ok(Value::Vector(if vector()?.is_empty() { vec![absence(argument)] } else { Vec::new() })),
        _ => Err(format!("function {name} is not supported")),
    }
}

fn bare(mut expr: &Expr) -> &Expr {
    while let Expr::Paren(paren) = expr {
        expr = &paren.expr;
    }
    expr
}

/// 1, with the labels that the selector demands once and exactly.
fn absence(argument: Option<&Expr>) -> Element {
    let matchers = match argument {
        Some(Expr::VectorSelector(selector)) => &selector.matchers.matchers[..],
        _ => &[],
    };
    let demanded = matchers.iter().filter(|matcher| {
        let once = matchers.iter().filter(|other| other.name == matcher.name).count() == 1;
        once && matcher.op == MatchOp::Equal && matcher.name != NAME
    });
    let labels = demanded.map(|matcher| (matcher.name.as_str(), matcher.value.as_str()));
    Element { labels: Labels::from_pairs(labels), value: 1.0 }
}

fn of_ranges(evaluator: &Evaluator<'_>, name: &str, argument: Option<&Expr>) -> Result<Vec<Element>, String> {
    let Some(Expr::MatrixSelector(selector)) = argument else { return Err(format!("{name}: of no range")) };
    let length = selector.range.as_millis() as i64;
    let end = evaluator.at - offset(&selector.vs);
    let window = Window { start: end - length, end };
    let each = |Range { labels, points }| {
        Some(Element { labels: labels.without_name(), value: of_range(name, &points, window)? })
    };
    unique(evaluator.range(&selector.vs, length).into_iter().filter_map(each).collect())
}

#[derive(Clone, Copy)]
struct Window {
    start: i64,
    end: i64,
}

fn of_range(name: &str, points: &[Point], window: Window) -> Option<f64> {
    let values = points.iter().map(|point| point.value);
    let pairs = || points.windows(2).map(|pair| (pair[0].value, pair[1].value));
    let replace = |wanted: fn(f64, f64) -> bool| {
        values.clone().reduce(|kept, next| if wanted(kept, next) || kept.is_nan() { next } else { kept })
    };
    match name {
        "rate" => increase(points, window).map(|value| value / ((window.end - window.start) as f64 / 1000.0)),
        "increase" => increase(points, window),
        "changes" => Some(pairs().filter(|(a, b)| a != b && !(a.is_nan() && b.is_nan())).count() as f64),
        "resets" => Some(pairs().filter(|(a, b)| b < a).count() as f64),
        "deriv" => slope(points),
        "last_over_time" => points.last().map(|point| point.value),
        "min_over_time" => replace(|kept, next| next < kept),
        "max_over_time" => replace(|kept, next| next > kept),
        "avg_over_time" => Some(mean(values)),
        _ => None,
    }
}

/// The increase between the first and the last point, stretched to the window's ends where these are near, and else by
/// half a step. A counter that falls was reset, and none was ever below zero: to where it would be, it is stretched no
/// further (before Prometheus 2.52, prometheus/prometheus#13725, also beyond half a step).
fn increase(points: &[Point], window: Window) -> Option<f64> {
    let [first, .., last] = points else { return None };
    let resets = points.windows(2).filter(|pair| pair[1].value < pair[0].value).map(|pair| pair[0].value);
    let increase = last.value - first.value + resets.sum::<f64>();
    let seconds = |from: i64, to: i64| (to - from) as f64 / 1000.0;
    let sampled = seconds(first.at, last.at);
    let average = sampled / (points.len() - 1) as f64;
    let threshold = average * 1.1;
    let stretch = |gap: f64| if gap < threshold { gap } else { average / 2.0 };
    let (mut to_start, to_end) = (stretch(seconds(window.start, first.at)), stretch(seconds(last.at, window.end)));
    if increase > 0.0 && first.value >= 0.0 {
        to_start = to_start.min(sampled * (first.value / increase));
    }
    Some(increase * ((sampled + to_start + to_end) / sampled))
}

/// The slope per second, by least squares.
fn slope(points: &[Point]) -> Option<f64> {
    let first = points.first().filter(|_| points.len() > 1)?;
    if points.iter().all(|point| point.value == first.value) {
        return Some(if first.value.is_infinite() { f64::NAN } else { 0.0 });
    }
    let (mut x, mut y, mut xy, mut xx) = (Sum::default(), Sum::default(), Sum::default(), Sum::default());
    for point in points {
        let at = (point.at - first.at) as f64 / 1000.0;
        x.add(at);
        y.add(point.value);
        xy.add(at * point.value);
        xx.add(at * at);
    }
    let (n, x, y, xy, xx) = (points.len() as f64, x.total(), y.total(), xy.total(), xx.total());
    Some((xy - x * y / n) / (xx - x * x / n))
}

/// A sum that keeps what rounding loses (Kahan, Neumaier).
#[derive(Default)]
struct Sum {
    sum: f64,
    lost: f64,
}

impl Sum {
    fn add(&mut self, value: f64) {
        let sum = self.sum + value;
        self.lost += if self.sum.abs() >= value.abs() { (self.sum - sum) + value } else { (value - sum) + self.sum };
        self.sum = sum;
    }

    fn total(&self) -> f64 {
        self.sum + self.lost
    }
}
