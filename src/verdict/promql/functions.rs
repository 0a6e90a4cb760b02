//! Functions, by Prometheus's own definitions (promql/functions.go).

use promql_parser::label::MatchOp;
use promql_parser::parser::{Call, Expr, VectorSelector};

use super::aggregate::mean;
use super::eval::{Element, Evaluator, Range, Value, offset, unique};
use super::labels::{Labels, NAME};
use super::store::Point;

/// Functions that tell a slope: their value over seconds says little of hours. `increase` and `changes` count what has
/// happened; a short history can only miss some of it.
pub(in crate::verdict) const SLOPES: [&str; 5] = ["deriv", "predict_linear", "rate", "irate", "delta"];

const OF_RANGES: [&str; 17] = [
    "rate",
    "increase",
    "delta",
    "irate",
    "changes",
    "resets",
    "deriv",
    "predict_linear",
    "min_over_time",
    "max_over_time",
    "avg_over_time",
    "sum_over_time",
    "count_over_time",
    "last_over_time",
    "present_over_time",
    "absent_over_time",
    "idelta",
];
const OF_NUMBERS: [&str; 11] =
    ["abs", "ceil", "floor", "exp", "ln", "sqrt", "sgn", "round", "clamp", "clamp_min", "clamp_max"];

pub(in crate::verdict) fn known(name: &str) -> bool {
    let others = ["time", "timestamp", "absent", "vector", "scalar"];
    OF_RANGES.contains(&name) || OF_NUMBERS.contains(&name) || others.contains(&name)
}

pub(in crate::verdict) fn call(evaluator: &Evaluator<'_>, call: &Call) -> Result<Value, String> {
    let name = call.func.name;
    let args: Vec<&Expr> = call.args.args.iter().map(|argument| bare(argument)).collect();
    if OF_RANGES.contains(&name) {
        return of_ranges(evaluator, name, &args).map(Value::Vector);
    }
    let vector = || args.first().map_or_else(|| Err(format!("{name}: of what?")), |first| evaluator.vector(first));
    let number = |place: usize| match args.get(place).map(|argument| evaluator.eval(argument)) {
        Some(Ok(Value::Scalar(value))) => Ok(value),
        Some(Err(error)) => Err(error),
        _ => Err(format!("{name}: argument {place} is no number")),
    };
    let map = |vector: Vec<Element>, by: &dyn Fn(f64) -> f64| {
        let each = |e: Element| Element { labels: e.labels.without_name(), value: by(e.value) };
        unique(vector.into_iter().map(each).collect()).map(Value::Vector)
    };
    match name {
        "time" => Ok(Value::Scalar(evaluator.at as f64 / 1000.0)),
        "vector" => Ok(Value::Vector(vec![Element { labels: Labels::default(), value: number(0)? }])),
        "scalar" => match vector()?.as_slice() {
            [one] => Ok(Value::Scalar(one.value)),
            _ => Ok(Value::Scalar(f64::NAN)),
        },
        "timestamp" => match args.first() {
            // Of a selector it is the sample's own time, of anything else that of the evaluation.
            Some(Expr::VectorSelector(selector)) => {
                let times = evaluator
                    .instant(selector)
                    .map(|(labels, point)| Element { labels: labels.without_name(), value: point.at as f64 / 1000.0 });
                unique(times.collect()).map(Value::Vector)
            }
            _ => map(vector()?, &|_| evaluator.at as f64 / 1000.0),
        },
        "absent" => {
            Ok(Value::Vector(if vector()?.is_empty() { vec![absence(args.first().copied())] } else { Vec::new() }))
        }
        "abs" => map(vector()?, &f64::abs),
        "ceil" => map(vector()?, &f64::ceil),
        "floor" => map(vector()?, &f64::floor),
        "exp" => map(vector()?, &f64::exp),
        "ln" => map(vector()?, &f64::ln),
        "sqrt" => map(vector()?, &f64::sqrt),
        "sgn" => map(vector()?, &|value| if value == 0.0 || value.is_nan() { value } else { value.signum() }),
        "round" => {
            let inverse = 1.0 / if args.len() > 1 { number(1)? } else { 1.0 };
            map(vector()?, &|value| (value * inverse + 0.5).floor() / inverse)
        }
        "clamp_min" => {
            let low = number(1)?;
            map(vector()?, &|value| larger(low, value))
        }
        "clamp_max" => {
            let high = number(1)?;
            map(vector()?, &|value| smaller(high, value))
        }
        "clamp" => {
            let (low, high) = (number(1)?, number(2)?);
            if high < low {
                return Ok(Value::Vector(Vec::new()));
            }
            map(vector()?, &|value| larger(low, smaller(high, value)))
        }
        _ => Err(format!("function {name} is not supported")),
    }
}

fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

fn smaller(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.min(b) }
}

fn bare(mut expr: &Expr) -> &Expr {
    while let Expr::Paren(paren) = expr {
        expr = &paren.expr;
    }
    expr
}

/// 1, with the labels that the selector demands once and exactly.
fn absence(argument: Option<&Expr>) -> Element {
    let selector: Option<&VectorSelector> = match argument {
        Some(Expr::VectorSelector(selector)) => Some(selector),
        Some(Expr::MatrixSelector(selector)) => Some(&selector.vs),
        _ => None,
    };
    let matchers = selector.map_or(&[][..], |selector| &selector.matchers.matchers);
    let demanded = matchers.iter().filter(|matcher| {
        let once = matchers.iter().filter(|other| other.name == matcher.name).count() == 1;
        once && matcher.op == MatchOp::Equal && matcher.name != NAME
    });
    let labels = demanded.map(|matcher| (matcher.name.as_str(), matcher.value.as_str()));
    Element { labels: Labels::from_pairs(labels), value: 1.0 }
}

fn of_ranges(evaluator: &Evaluator<'_>, name: &str, args: &[&Expr]) -> Result<Vec<Element>, String> {
    let Some(Expr::MatrixSelector(selector)) = args.first() else { return Err(format!("{name}: of no range")) };
    let length = selector.range.as_millis() as i64;
    let ranges = evaluator.range(&selector.vs, length);
    let end = evaluator.at - offset(&selector.vs);
    let window = Window { start: end - length, end };
    if name == "absent_over_time" {
        return Ok(if ranges.is_empty() { vec![absence(args.first().copied())] } else { Vec::new() });
    }
    let ahead = match (name, args.get(1).map(|argument| evaluator.eval(argument)).transpose()?) {
        ("predict_linear", Some(Value::Scalar(ahead))) => ahead,
        ("predict_linear", _) => return Err("predict_linear: how far?".into()),
        _ => 0.0,
    };
    let each = |Range { labels, points }| {
        let value = of_range(name, &points, window, ahead, evaluator.at)?;
        let labels: Labels = if name == "last_over_time" { labels.clone() } else { labels.without_name() };
        Some(Element { labels, value })
    };
    unique(ranges.into_iter().filter_map(each).collect())
}

#[derive(Clone, Copy)]
struct Window {
    start: i64,
    end: i64,
}

fn of_range(name: &str, points: &[Point], window: Window, ahead: f64, at: i64) -> Option<f64> {
    let values = points.iter().map(|point| point.value);
    let pairs = || points.windows(2).map(|pair| (pair[0].value, pair[1].value));
    let replace = |wanted: fn(f64, f64) -> bool| {
        values.clone().reduce(|kept, next| if wanted(kept, next) || kept.is_nan() { next } else { kept })
    };
    match name {
        "rate" => extrapolated(points, window, true).map(|value| value / ((window.end - window.start) as f64 / 1000.0)),
        "increase" => extrapolated(points, window, true),
        "delta" => extrapolated(points, window, false),
        "irate" | "idelta" => {
            let [.., before, last] = points else { return None };
            let reset = name == "irate" && last.value < before.value;
            let change = if reset { last.value } else { last.value - before.value };
            let seconds = (last.at - before.at) as f64 / 1000.0;
            Some(if name == "irate" { change / seconds } else { change })
        }
        "changes" => Some(pairs().filter(|(a, b)| a != b && !(a.is_nan() && b.is_nan())).count() as f64),
        "resets" => Some(pairs().filter(|(a, b)| b < a).count() as f64),
        "deriv" => regression(points, points.first()?.at).map(|(slope, _)| slope),
        "predict_linear" => regression(points, at).map(|(slope, intercept)| slope * ahead + intercept),
        "min_over_time" => replace(|kept, next| next < kept),
        "max_over_time" => replace(|kept, next| next > kept),
        "avg_over_time" => Some(mean(values)),
        "sum_over_time" => Some(values.sum()),
        "count_over_time" => Some(points.len() as f64),
        "last_over_time" => points.last().map(|point| point.value),
        _ => Some(1.0),
    }
}

/// The change between the first and the last point, stretched to the window's ends where these are near. A counter that
/// falls was reset, and none was ever below zero.
fn extrapolated(points: &[Point], window: Window, counter: bool) -> Option<f64> {
    let [first, .., last] = points else { return None };
    let mut change = last.value - first.value;
    if counter {
        change += points.windows(2).filter(|pair| pair[1].value < pair[0].value).map(|pair| pair[0].value).sum::<f64>();
    }
    let seconds = |from: i64, to: i64| (to - from) as f64 / 1000.0;
    let mut to_start = seconds(window.start, first.at);
    let to_end = seconds(last.at, window.end);
    let sampled = seconds(first.at, last.at);
    let average = sampled / (points.len() - 1) as f64;
    if counter && change > 0.0 && first.value >= 0.0 {
        to_start = to_start.min(sampled * (first.value / change));
    }
    let threshold = average * 1.1;
    let stretch = |gap: f64| if gap < threshold { gap } else { average / 2.0 };
    Some(change * ((sampled + stretch(to_start) + stretch(to_end)) / sampled))
}

/// Slope per second and value at `origin`, by least squares.
fn regression(points: &[Point], origin: i64) -> Option<(f64, f64)> {
    let first = points.first().filter(|_| points.len() > 1)?.value;
    if points.iter().all(|point| point.value == first) {
        return Some(if first.is_infinite() { (f64::NAN, f64::NAN) } else { (0.0, first) });
    }
    let (mut x, mut y, mut xy, mut xx) = (Sum::default(), Sum::default(), Sum::default(), Sum::default());
    for point in points {
        let at = (point.at - origin) as f64 / 1000.0;
        x.add(at);
        y.add(point.value);
        xy.add(at * point.value);
        xx.add(at * at);
    }
    let (n, x, y, xy, xx) = (points.len() as f64, x.total(), y.total(), xy.total(), xx.total());
    let slope = (xy - x * y / n) / (xx - x * x / n);
    Some((slope, y / n - slope * x / n))
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
