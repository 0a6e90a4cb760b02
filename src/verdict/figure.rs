//! The headline figure of each mode that declares its [`Utilization`]: how much of what runs out is in use.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::Duration;

use promql_parser::parser::Expr;

use super::history::History;
use super::promql::eval::Evaluator;
use super::promql::expression;
use super::promql::labels::Labels;
use super::promql::store::is_stale;
use crate::modes::{Fullest, MODES, Slope, Utilization};

/// The number that a mode's verdict turns on: how full the fullest thing is, or how near the nearest threshold.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// "12,034 of 65,535 (18.36%) memory cgroup ids"
    pub text: String,
    /// Used of the limit.
    pub ratio: f64,
    /// Change per second over all that the history has: of what is used, or of a headroom ratio. `None`
    /// if the series covers less than ten minutes, and where a slope says nothing.
    pub rate: Option<f64>,
    /// When the limit is met at that rate, if it is met within 24 times the time that the series covers.
    pub time_to_cliff: Option<Duration>,
    /// Which of several series it is: all its labels but `instance` and `job`.
    pub labels: BTreeMap<String, String>,
}

/// Least time that a series must cover before its slope is a trend. In seconds of samples one log file or one page
/// cache that grows makes a healthy node look minutes from eviction.
const TREND: Duration = Duration::from_secs(600);

/// Fewest samples of a trend: two ends make a line of anything.
const SAMPLES: usize = 4;

/// How many times what it covers a trend is drawn on.
const AHEAD: u32 = 24;

struct Parsed {
    mode: &'static str,
    declared: &'static Utilization,
    used: Expr,
    ratio: Expr,
    rate: Option<Expr>,
    limit: Expr,
}

static PARSED: LazyLock<Vec<Parsed>> = LazyLock::new(|| {
    let parse = |text: &str| expression::parse(text).expect("the expressions that are built in can be parsed");
    let each = |(mode, declared): (&'static str, &'static Utilization)| Parsed {
        mode,
        declared,
        used: parse(declared.used),
        ratio: parse(&format!("topk(1, ({}) / ({}))", declared.used, declared.limit)),
        rate: declared.slope.map(|slope| parse(&format!("deriv({}[6h])", slope.selector()))),
        limit: parse(declared.limit),
    };
    MODES.iter().filter_map(|mode| Some((mode.id, mode.utilization.as_ref()?))).map(each).collect()
});

pub(super) fn names(wanted: &mut BTreeSet<String>) {
    for parsed in PARSED.iter() {
        expression::names(&parsed.ratio, wanted);
    }
}

/// Every expression that a figure is found with.
#[cfg(test)]
pub(super) fn expressions() -> impl Iterator<Item = &'static Expr> {
    PARSED.iter().flat_map(|parsed| [&parsed.ratio].into_iter().chain(&parsed.rate))
}

/// The headline figure of a mode at the newest page: nothing for a mode that has none, or whose series are not on it.
pub fn figure(mode: &str, history: &History) -> Option<Figure> {
    let parsed = PARSED.iter().find(|parsed| parsed.mode == mode)?;
    let (_, newest) = history.span()?;
    let evaluator = Evaluator::new(&history.store, newest);
    let worst = evaluator.vector(&parsed.ratio).ok()?.into_iter().next()?;
    let of = |expr| {
        let vector = evaluator.vector(expr).ok()?;
        vector.into_iter().find(|element| element.labels.without_name() == worst.labels).map(|element| element.value)
    };
    let (used, limit) = (of(&parsed.used)?, of(&parsed.limit)?);
    let covered = parsed.declared.slope.and_then(|slope| covered(history, slope.selector(), &worst.labels));
    let rate = covered.and_then(|_| parsed.rate.as_ref().and_then(of));
    let falls = matches!(parsed.declared.slope, Some(Slope::Falls(_)));
    let towards = rate.map(|rate| if falls { -rate } else { rate });
    let left = towards.filter(|rate| *rate > 0.0).map(|rate| (limit - used).max(0.0) / rate);
    let labels = worst.labels.iter().filter(|(name, _)| !matches!(*name, "instance" | "job"));
    let labels = labels.map(|(name, value)| (name.into(), value.into())).collect();
    let fullest = Fullest { used, limit, labels };
    Some(Figure {
        text: (parsed.declared.text)(&fullest),
        ratio: worst.value,
        rate,
        time_to_cliff: left
            .and_then(|left| Duration::try_from_secs_f64(left).ok())
            .filter(|left| covered.is_some_and(|covered| *left <= covered * AHEAD)),
        labels: fullest.labels,
    })
}

/// How long the series of this selector with these labels has been there, if that is enough for a trend.
fn covered(history: &History, selector: &str, labels: &Labels) -> Option<Duration> {
    let name = selector.split('{').next();
    let mut series = history.store.select(name, &[]);
    let (_, points) = series.find(|(of, _)| of.without_name() == *labels)?;
    // A series that was away begins again: what it was before need not be the same thing.
    let since = points.iter().rposition(|point| is_stale(point.value)).map_or(0, |gap| gap + 1);
    let points = points.get(since..).filter(|points| points.len() >= SAMPLES)?;
    let covered = points.last()?.at - points.first()?.at;
    Some(Duration::from_millis(covered.unsigned_abs())).filter(|covered| *covered >= TREND)
}
