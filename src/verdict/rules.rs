//! The alert rules, as they are in `alerts/`: the same files that Prometheus reads are built into the program.
//!
//! They are parsed when somebody first asks, so that an exporter which only serves pages pays nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::Duration;

use promql_parser::parser::Expr;
use promql_parser::util::parse_duration;
use serde::Deserialize;

use super::promql::eval::{Element, Evaluator};
use super::promql::labels::{Labels, NAME};
use super::promql::store::Store;
use super::promql::{expression, template};
use crate::modes::{Alerts, MODES, alerts};

/// One folder below `alerts/`.
#[derive(Debug)]
pub struct Folder {
    /// Its name.
    pub name: &'static str,
    /// What is in it.
    pub alerts: &'static Alerts,
}

/// What is said of the exporter itself.
static EXPORTER: Alerts = alerts!("exporter");

/// Every folder below `alerts/`, by name: one of each mode, and the exporter's own.
pub static FOLDERS: LazyLock<Vec<Folder>> = LazyLock::new(|| {
    let of_modes = MODES.iter().map(|mode| Folder { name: mode.id, alerts: &mode.alerts });
    let mut folders: Vec<Folder> = of_modes.chain([Folder { name: "exporter", alerts: &EXPORTER }]).collect();
    folders.sort_unstable_by_key(|folder| folder.name);
    folders
});

/// One group: its rules are evaluated in order.
#[derive(Debug)]
pub struct Group {
    /// The folder that it is from.
    pub folder: &'static str,
    /// Its rules.
    pub rules: Vec<Rule>,
}

impl Group {
    /// The names of the series that it records.
    pub fn records(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().filter_map(|rule| rule.record.as_deref())
    }
}

/// One rule: it alerts or records.
#[derive(Debug)]
pub struct Rule {
    /// The alert's name.
    pub alert: Option<String>,
    /// The name of the series that it records.
    pub record: Option<String>,
    /// Its expression.
    pub expr: Expr,
    /// How long it must hold before the alert fires.
    pub holds_for: Duration,
    /// Labels that it adds.
    pub labels: BTreeMap<String, String>,
    /// Annotations, as templates.
    pub annotations: BTreeMap<String, String>,
}

/// One element of an alert rule's result.
#[derive(Clone, Debug)]
pub struct Active {
    /// Labels of the element without its name: what tells one alert of a rule from the next.
    pub series: Labels,
    /// Labels of the alert, without `alertname`.
    pub labels: Labels,
    /// The value.
    pub value: f64,
}

impl Rule {
    /// What a recording rule records at the evaluator's time.
    ///
    /// # Errors
    /// What Prometheus would refuse to evaluate.
    pub fn record_at(&self, evaluator: &Evaluator<'_>) -> Result<Vec<Element>, String> {
        let mut vector = evaluator.vector(&self.expr)?;
        for element in &mut vector {
            element.labels.set(NAME, self.record.as_deref().unwrap_or_default());
            self.labels.iter().for_each(|(name, value)| element.labels.set(name, value));
        }
        Ok(vector)
    }

    /// What an alert rule finds at the evaluator's time. `for` is the caller's.
    ///
    /// # Errors
    /// What Prometheus would refuse to evaluate.
    pub fn active_at(&self, evaluator: &Evaluator<'_>) -> Result<Vec<Active>, String> {
        let vector = evaluator.vector(&self.expr)?;
        Ok(vector.into_iter().map(|element| self.active(evaluator, &element)).collect())
    }

    fn active(&self, evaluator: &Evaluator<'_>, element: &Element) -> Active {
        let series = element.labels.without_name();
        let mut labels = series.clone();
        for (name, text) in &self.labels {
            labels.set(name, &template::render(text, &series, element.value, evaluator));
        }
        Active { series, labels, value: element.value }
    }

    /// The annotations of one alert, as Prometheus writes them.
    pub fn annotate(&self, evaluator: &Evaluator<'_>, active: &Active) -> BTreeMap<String, String> {
        let render = |text: &String| template::render(text, &active.series, active.value, evaluator);
        self.annotations.iter().map(|(name, text)| (name.clone(), render(text))).collect()
    }
}

#[derive(Deserialize)]
struct File {
    groups: Vec<FileGroup>,
}

#[derive(Deserialize)]
struct FileGroup {
    rules: Vec<FileRule>,
}

#[derive(Deserialize)]
struct FileRule {
    alert: Option<String>,
    record: Option<String>,
    expr: String,
    #[serde(rename = "for")]
    holds_for: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// Parses a rules file.
///
/// # Errors
/// What is no rules file, and what the evaluator or the renderer of annotations does not know.
pub fn parse(folder: &'static str, text: &str) -> Result<Vec<Group>, String> {
    let file: File = serde_saphyr::from_str(text).map_err(|error| format!("{folder}: {error}"))?;
    let rule = |rule: FileRule| {
        let name = rule.alert.as_ref().or(rule.record.as_ref()).cloned().unwrap_or_default();
        let context = |error| format!("{folder}: {name}: {error}");
        for text in rule.labels.values().chain(rule.annotations.values()) {
            template::check(text).map_err(context)?;
        }
        // Prometheus's durations (`1d`, whole numbers) are others than Go's (`1.5h`), which `kubelet::quantity` reads.
        let holds_for = rule.holds_for.as_deref().map_or(Ok(Duration::ZERO), parse_duration).map_err(context)?;
        let expr = expression::parse(&rule.expr).map_err(context)?;
        let FileRule { alert, record, labels, annotations, .. } = rule;
        Ok(Rule { alert, record, expr, holds_for, labels, annotations })
    };
    let group = |group: FileGroup| {
        Ok(Group { folder, rules: group.rules.into_iter().map(rule).collect::<Result<_, String>>()? })
    };
    file.groups.into_iter().map(group).collect()
}

static GROUPS: LazyLock<Vec<Group>> = LazyLock::new(|| {
    let files = FOLDERS.iter().map(|folder| parse(folder.name, folder.alerts.rules));
    let groups: Result<Vec<_>, String> = files.collect();
    // The files are part of the program, and a test parses them all.
    groups.expect("the rules that are built in can be parsed").into_iter().flatten().collect()
});

/// Every group, in the order of [`FOLDERS`].
pub fn groups() -> &'static [Group] {
    &GROUPS
}

/// The names of all series that the rules record.
pub(super) fn recorded() -> &'static BTreeSet<&'static str> {
    static RECORDED: LazyLock<BTreeSet<&str>> = LazyLock::new(|| groups().iter().flat_map(Group::records).collect());
    &RECORDED
}

/// Evaluates the recording rules in their order, and appends what each records before the next one is evaluated.
pub(super) fn record(store: &mut Store, at: i64) {
    for rule in groups().iter().flat_map(|group| &group.rules).filter(|rule| rule.record.is_some()) {
        for element in rule.record_at(&Evaluator::new(store, at)).unwrap_or_default() {
            store.append(element.labels, at, element.value);
        }
    }
}
