//! The headline figure of each mode: how much of what runs out is in use, as expressions over the same series as the rules.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::Duration;

use promql_parser::parser::Expr;

use super::eval::Evaluator;
use super::history::History;
use super::{expression, humanize};

/// How one mode's figure is found. Of several series the one with the highest ratio is the figure.
struct Row {
    mode: &'static str,
    used: &'static str,
    limit: &'static str,
    /// In words, behind the numbers.
    what: &'static str,
    bytes: bool,
}

/// Modes without a room that fills up have none.
const ROWS: &[Row] = &[
    Row {
        mode: "cgroup_leak",
        used: "headroom_memcg_ids_used",
        limit: "headroom_memcg_ids_limit",
        what: "memory cgroup ids",
        bytes: false,
    },
    Row {
        mode: "open_files",
        used: "headroom_process_open_fds",
        limit: "headroom_process_fd_limit >= 256",
        what: "file descriptors of the fullest process",
        bytes: false,
    },
    Row {
        mode: "memory_volume",
        used: "headroom_memory_volume_used_bytes",
        limit: "headroom_memory_volume_limit_bytes",
        what: "the memory limit in the fullest memory volume",
        bytes: true,
    },
];

/// How full the fullest thing of a mode is.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// "12034 of 65535 memory cgroup ids (18.36%)"
    pub text: String,
    /// Used of the limit.
    pub ratio: f64,
    /// Change of what is used, per second, over all that the history has; nothing of fewer than two pages.
    pub rate: Option<f64>,
    /// When the limit is met at that rate, if what is used grows.
    pub time_to_cliff: Option<Duration>,
    /// Which of several series it is: all its labels but `instance` and `job`.
    pub labels: BTreeMap<String, String>,
}

struct Parsed {
    row: &'static Row,
    used: Expr,
    ratio: Expr,
    rate: Expr,
    limit: Expr,
}

static PARSED: LazyLock<Vec<Parsed>> = LazyLock::new(|| {
    let parse = |text: &str| expression::parse(text).expect("the expressions that are built in can be parsed");
    let each = |row: &'static Row| Parsed {
        row,
        used: parse(row.used),
        ratio: parse(&format!("topk(1, {} / ({}))", row.used, row.limit)),
        rate: parse(&format!("deriv({}[6h])", row.used)),
        limit: parse(row.limit),
    };
    ROWS.iter().map(each).collect()
});

pub(super) fn names(wanted: &mut BTreeSet<String>) {
    for parsed in PARSED.iter() {
        expression::names(&parsed.ratio, wanted);
    }
}

/// The headline figure of a mode at the newest page: nothing for a mode that has none, or whose series are not on it.
pub fn figure(mode: &str, history: &History) -> Option<Figure> {
    let parsed = PARSED.iter().find(|parsed| parsed.row.mode == mode)?;
    let (_, newest) = history.span()?;
    let evaluator = Evaluator::new(&history.store, newest);
    let worst = evaluator.vector(&parsed.ratio).ok()?.into_iter().next()?;
    let of = |expr| {
        let vector = evaluator.vector(expr).ok()?;
        vector.into_iter().find(|element| element.labels.without_name() == worst.labels).map(|element| element.value)
    };
    let (used, limit) = (of(&parsed.used)?, of(&parsed.limit)?);
    let rate = of(&parsed.rate);
    let number =
        |value: f64| if parsed.row.bytes { format!("{}B", humanize::humanize1024(value)) } else { grouped(value) };
    let left = rate.filter(|rate| *rate > 0.0).map(|rate| (limit - used).max(0.0) / rate);
    let labels = worst.labels.iter().filter(|(name, _)| !matches!(*name, "instance" | "job"));
    Some(Figure {
        text: format!(
            "{} of {} {} ({})",
            number(used),
            number(limit),
            parsed.row.what,
            humanize::percentage(worst.value)
        ),
        ratio: worst.value,
        rate,
        time_to_cliff: left.and_then(|left| Duration::try_from_secs_f64(left).ok()),
        labels: labels.map(|(name, value)| (name.into(), value.into())).collect(),
    })
}

/// 12,034
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
