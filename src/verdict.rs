//! The verdict on a node, by the very alert rules that page people, without a Prometheus.
//!
//! The files below `alerts/` are built in and evaluated over a few pages of the exporter's own samples. So whoever asks
//! the exporter itself and whoever is paged hear the same: there is one set of rules. The evaluator follows
//! Prometheus's semantics; `tests/fast/verdict.rs` holds it to the rules' own cases for promtool,
//! `tests/replay/verdict.rs` to Prometheus itself.
//!
//! Two things differ from Prometheus. `for` is not waited for: a [`Finding`] says how long it would have to hold. And a
//! history is short: a [`Finding`] says how much of the window that it looks back over is covered, and one that stands
//! on a slope over less than a quarter of its window counts a level less, since noise of five seconds must not shout.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crate::metric::Metric;

mod evidence;
mod facts;
mod figure;
mod history;
pub mod promql;
pub mod rules;
pub mod runbook;
mod wanted;

pub use evidence::evidence;
pub use facts::facts;
pub use figure::{Figure, figure};
pub use history::{History, Limits};
use promql::eval::{Element, Evaluator, LOOKBACK};
use promql::expression;
pub use promql::labels::{Labels, NAME};
pub use promql::store::{Point, STALE, Store};
use rules::{Active, Rule};

/// Why nothing can be told of `node_status` on a kubelet's node where nobody said how to ask the apiserver.
const NO_ACCOUNT: &str = "a kubelet runs here, and there is no account to ask its apiserver with: set --kubeconfig, or --apiserver.url and \
                          --apiserver.token-file";

/// The name of the verdict on the exporter itself.
pub const EXPORTER: &str = "exporter";

/// How bad it is, from the best to the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// No alert that is more than information.
    Ok,
    /// Nothing was found, but not everything could be looked at: [`Verdict::why`] says what.
    CannotTell,
    /// An alert of severity warning, or a critical one on too short a history.
    Watch,
    /// A critical alert.
    ActNow,
}

/// How much of what a rule looks back over the history has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// All of it, or the rule does not look back.
    Full,
    /// Only a part.
    Partial {
        /// What the history has.
        covered: Duration,
        /// The longest window of the rule.
        window: Duration,
    },
}

/// One alert that holds now.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The alert's name.
    pub alert: &'static str,
    /// Its severity, as in the rules: critical, warning or info.
    pub severity: String,
    /// The mode that it belongs to, or [`EXPORTER`].
    pub mode: String,
    /// What this finding counts as.
    pub level: Level,
    /// Labels of the alert, with `severity` and `mode`, without `alertname`.
    pub labels: BTreeMap<String, String>,
    /// The value of the rule's expression.
    pub value: f64,
    /// As Prometheus would write it.
    pub summary: String,
    /// As Prometheus would write it.
    pub description: String,
    /// Where to read on.
    pub runbook: String,
    /// How long the alert waits before it fires. Not waited for here.
    pub holds_for: Option<Duration>,
    /// How much of its window is covered.
    pub basis: Basis,
}

/// What can be said of one mode.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The mode's id, or [`EXPORTER`].
    pub mode: &'static str,
    /// The worst of the findings, or [`Level::CannotTell`].
    pub level: Level,
    /// Its collector is not switched on, so nothing can be told.
    pub off: bool,
    /// What could not be looked at and why, or why there is nothing to look at; often empty.
    pub why: String,
    /// What was found, the worst first.
    pub findings: Vec<Finding>,
}

impl History {
    /// An empty one of the node with this name, which becomes the label `instance`.
    pub fn new(node: &str, limits: Limits) -> Self {
        let needs = history::Needs { wanted: wanted::wanted(), recorded: rules::recorded(), record: rules::record };
        History::empty(node, limits, needs)
    }
}

/// The verdict on each of `modes` (id and metrics), in their order, and last on the exporter itself.
///
/// A severity of info stays [`Level::Ok`]: by the rules' own meaning nobody needs to do anything, so it must not change
/// an exit status; it is among the findings all the same.
pub fn judge(
    history: &History,
    now: SystemTime,
    modes: impl IntoIterator<Item = (&'static str, &'static [&'static Metric])>,
) -> Vec<Verdict> {
    let mut evaluator = Evaluator::new(&history.store, history::milliseconds(now));
    // The pages that are kept stand for those that were thinned out.
    evaluator.lookback = LOOKBACK.max(history.widest_gap());
    let (mut findings, mut errors) = (Vec::new(), Vec::new());
    // Of no page everything is absent, and that is no finding.
    let groups = if history.pages() == 0 { &[] } else { rules::groups() };
    for rule in groups.iter().flat_map(|group| &group.rules) {
        let Some(alert) = rule.alert.as_deref() else { continue };
        match find(alert, rule, &evaluator, history) {
            Ok(found) => findings.extend(found),
            Err(error) => {
                errors.push((rule.labels.get("mode").map_or(EXPORTER, String::as_str), format!("{alert}: {error}")))
            }
        }
    }
    worst_of_each(&mut findings);
    let findings: Vec<Finding> = findings.into_iter().map(|draft| draft.annotated(&evaluator)).collect();
    let modes = modes.into_iter().map(|(mode, metrics)| (mode, sight(mode, metrics, history, &evaluator)));
    let exporter = if history.pages() == 0 { Sight::Blind("there is no page yet".into()) } else { Sight::Clear };
    modes
        .chain([(EXPORTER, exporter)])
        .map(|(mode, sight)| {
            let own: Vec<Finding> = findings.iter().filter(|finding| finding.mode == mode).cloned().collect();
            let errors: Vec<&str> =
                errors.iter().filter(|(of, _)| *of == mode).map(|(_, text)| text.as_str()).collect();
            let sight = if errors.is_empty() { sight } else { Sight::Blind(errors.join("; ")) };
            let worst = own.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
            let off = matches!(sight, Sight::Off);
            let (level, why) = match sight {
                Sight::Clear => (worst, String::new()),
                Sight::Nothing(why) => (worst, why),
                Sight::Off => (worst.max(Level::CannotTell), "its collector is not switched on".into()),
                Sight::Blind(why) => (worst.max(Level::CannotTell), why),
            };
            Verdict { mode, level, off, why, findings: own }
        })
        .collect()
}

/// A finding before its texts are written: many fall away again.
struct Draft {
    finding: Finding,
    rule: &'static Rule,
    active: Active,
}

impl Draft {
    fn annotated(self, at: &Evaluator<'_>) -> Finding {
        let Draft { mut finding, rule, active } = self;
        let mut annotations = rule.annotate(at, &active);
        let mut annotation = |name: &str| annotations.remove(name).unwrap_or_default();
        finding.summary = annotation("summary");
        finding.description = annotation("description");
        finding.runbook = annotation("runbook_url");
        finding
    }
}

fn find(alert: &'static str, rule: &'static Rule, at: &Evaluator<'_>, history: &History) -> Result<Vec<Draft>, String> {
    let draft = |active: Active| {
        let label = |name: &str| active.labels.get(name).to_owned();
        let (basis, hasty) = basis(rule, &active, at, history);
        let level = match (active.labels.get("severity"), hasty) {
            ("critical", false) => Level::ActNow,
            ("critical", true) | ("warning", _) => Level::Watch,
            _ => Level::Ok,
        };
        let finding = Finding {
            alert,
            severity: label("severity"),
            mode: label("mode"),
            level,
            labels: active.labels.iter().map(|(name, value)| (name.into(), value.into())).collect(),
            value: active.value,
            summary: String::new(),
            description: String::new(),
            runbook: String::new(),
            holds_for: Some(rule.holds_for).filter(|holds_for| !holds_for.is_zero()),
            basis,
        };
        Draft { finding, rule, active }
    };
    Ok(rule.active_at(at)?.into_iter().map(draft).collect())
}

/// How much of the window of what made this alert active is covered, and whether it stands on a slope over too little.
///
/// Of alternatives (`or`) only the first one that holds counts: the others did not make it active.
fn basis(rule: &Rule, active: &Active, at: &Evaluator<'_>, history: &History) -> (Basis, bool) {
    let alternatives = expression::alternatives(&rule.expr);
    let holds = |vector: Vec<Element>| vector.iter().any(|element| element.labels.without_name() == active.series);
    let own = match alternatives.as_slice() {
        [only] => only,
        several => several.iter().find(|expr| at.vector(expr).is_ok_and(holds)).copied().unwrap_or(&rule.expr),
    };
    let windows = expression::windows(own);
    let oldest = history.span().map_or(at.at, |(oldest, _)| oldest);
    let covered = Duration::from_millis(u64::try_from(at.at - oldest).unwrap_or(0));
    let hasty = covered < windows.trend / 4;
    if covered >= windows.longest {
        return (Basis::Full, hasty);
    }
    (Basis::Partial { covered, window: windows.longest }, hasty)
}

/// Many alerts have a warning and a critical rule: of the same alert with the same labels the worse one stays.
fn worst_of_each(drafts: &mut Vec<Draft>) {
    drafts.sort_by_key(|Draft { finding, .. }| (std::cmp::Reverse(finding.level), finding.severity != "critical"));
    let mut seen = std::collections::HashSet::new();
    drafts.retain(|Draft { finding, .. }| {
        let mut labels = finding.labels.clone();
        labels.remove("severity");
        seen.insert((finding.alert, labels))
    });
}

/// Whether a mode could be looked at.
enum Sight {
    Clear,
    /// This machine has nothing of the kind.
    Nothing(String),
    /// Its collector does not run.
    Off,
    /// Something could not be read.
    Blind(String),
}

fn sight(mode: &str, metrics: &[&Metric], history: &History, at: &Evaluator<'_>) -> Sight {
    if history.pages() == 0 {
        return Sight::Blind("there is no page yet".into());
    }
    let ask = |text: String| expression::parse(&text).and_then(|expr| at.vector(&expr)).unwrap_or_default();
    let outcomes = ask(format!("headroom_collector_outcome{{collector=\"{mode}\"}}"));
    if outcomes.is_empty() {
        return Sight::Off;
    }
    let outcome = |name| outcomes.iter().any(|one| one.labels.get("outcome") == name && one.value == 1.0);
    if outcome("not_applicable") {
        let kubelet = !ask("headroom_kubelet_running".into()).is_empty();
        let alone = !ask(
            "headroom_collector_outcome{collector=\"apiserver_connection\",outcome=\"not_applicable\"} == 1".into(),
        )
        .is_empty();
        // What the apiserver has of this node is there, with or without an account by which to ask.
        return if mode == "node_status" && kubelet && !alone {
            Sight::Blind(NO_ACCOUNT.into())
        } else {
            Sight::Nothing("this machine has nothing of the kind".into())
        };
    }
    if !outcome("failed") {
        let lost = ask("headroom_kubelet_apiserver_way_info{way=\"unknown\"}".into());
        return match lost.first().filter(|_| mode == "apiserver_connection") {
            Some(lost) => Sight::Blind(format!(
                "the kubelet connects to {} on this machine, and where it goes on from there is not known",
                lost.labels.get("via")
            )),
            None => Sight::Clear,
        };
    }
    let errors = ask(format!("headroom_collector_errors_total{{collector=\"{mode}\"}} > 0"));
    let reasons: Vec<&str> = errors.iter().map(|error| error.labels.get("reason")).collect();
    let reasons = if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join(", ")) };
    let something = metrics.iter().any(|metric| !ask(metric.name.to_owned()).is_empty());
    Sight::Blind(if something {
        format!("not all of its sources could be read{reasons}")
    } else {
        format!("its sources could not be read{reasons}")
    })
}
