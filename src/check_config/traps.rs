//! What a kubelet refuses, ignores, or takes for something else than was meant.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::Value as Json;

use super::{Limit, Row, source_name, yaml_line};
use crate::error::Error;
use crate::kubelet::configuration::{Configuration, KubeletInputs, Source, Text, default_eviction_hard};
use crate::kubelet::provenance::{self, FIELDS, Provenance};
use crate::kubelet::quantity;
use crate::kubelet::signals::{Counts, Signal};
use crate::kubelet::thresholds::{self, Value};
use crate::kubelet::version::before;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The kubelet does not start, or the input cannot be read.
    Error,
    /// It starts, and does something else than the file seems to say.
    Warning,
    /// Worth knowing.
    Note,
}

impl Severity {
    /// As it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        }
    }

    pub(super) fn exit_code(self) -> u8 {
        match self {
            Severity::Error => 2,
            Severity::Warning => 1,
            Severity::Note => 0,
        }
    }
}

/// Every trap by its id. `docs/check-config.md` has a row for each.
pub const TRAPS: [(&str, Severity); 19] = [
    ("unreadable", Severity::Error),
    ("refused", Severity::Error),
    ("unit", Severity::Error),
    ("soft-without-grace", Severity::Error),
    ("partial-map", Severity::Warning),
    ("no-hard-thresholds", Severity::Warning),
    ("lost-entry", Severity::Warning),
    ("merge-in-dropin", Severity::Warning),
    ("gc-meets-eviction", Severity::Warning),
    ("soft-below-hard", Severity::Warning),
    ("soft-is-hard", Severity::Warning),
    ("grace-without-soft", Severity::Warning),
    ("reclaim-without-threshold", Severity::Warning),
    ("switched-off", Severity::Warning),
    ("containerfs-ignored", Severity::Warning),
    ("tiny-quantity", Severity::Warning),
    ("misspelt-field", Severity::Warning),
    ("loose-yaml", Severity::Warning),
    ("no-pid-threshold", Severity::Note),
];

/// One trap that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// One of [`TRAPS`].
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// The file.
    pub path: Option<PathBuf>,
    /// The line in it, if it can be told.
    pub line: Option<usize>,
    /// The key, as `field` or `field.signal`.
    pub key: Option<String>,
    /// What happens.
    pub what: String,
    /// What to write in its place.
    pub instead: String,
}

impl Finding {
    fn new(id: &'static str, what: impl Into<String>, instead: impl Into<String>) -> Self {
        let severity = TRAPS.iter().find(|(trap, _)| *trap == id).map_or(Severity::Error, |(_, severity)| *severity);
        Finding { id, severity, path: None, line: None, key: None, what: what.into(), instead: instead.into() }
    }

    pub(super) fn unreadable(error: &Error) -> Self {
        Self::new("unreadable", error.to_string(), "")
    }

    pub(super) fn refused(error: &Error, told: &KubeletInputs) -> Self {
        let finding = Self::new("refused", format!("a kubelet does not start with this: {error}"), "");
        // The path stands in the words already where more than one file may be meant.
        match (&told.file, told.dropins.as_deref().unwrap_or_default()) {
            (Some(Text { path, .. }), []) => Finding { path: Some(path.clone()), ..finding },
            _ => finding,
        }
    }

    /// At this key of what `source` wrote.
    fn at(mut self, told: &KubeletInputs, source: &Source, field: &str, signal: Option<&str>) -> Self {
        let texts = told.file.iter().chain(told.dropins.iter().flatten());
        let text = texts.into_iter().find(|text| Some(text.path.as_path()) == source.path());
        self.line = text.and_then(|text| yaml_line::line(&text.text, field, signal));
        self.path = text.map(|text| text.path.clone());
        self.key = Some(signal.map_or_else(|| field.to_owned(), |signal| format!("{field}.{signal}")));
        self
    }

    /// `FILE:LINE`, or `FILE` with the key.
    pub(super) fn place(&self) -> Option<String> {
        let key = self.key.as_deref();
        match (&self.path, self.line) {
            (Some(path), Some(line)) => Some(format!("{}:{line}", path.display())),
            (Some(path), None) => {
                Some(key.map_or_else(|| path.display().to_string(), |key| format!("{} {key}", path.display())))
            }
            (None, _) => key.map(str::to_owned),
        }
    }
}

/// Fields about eviction and the collection of images that a kubelet 1.36 knows, and since which minor version.
const KNOWN: [(&str, u32); 12] = [
    ("evictionHard", 0),
    ("evictionSoft", 0),
    ("evictionSoftGracePeriod", 0),
    ("evictionPressureTransitionPeriod", 0),
    ("evictionMaxPodGracePeriod", 0),
    ("evictionMinimumReclaim", 0),
    ("mergeDefaultEvictionSettings", 33),
    ("imageGCHighThresholdPercent", 0),
    ("imageGCLowThresholdPercent", 0),
    ("imageMinimumGCAge", 0),
    ("imageMaximumGCAge", 29),
    ("enforceNodeAllocatable", 0),
];

/// The fields that this kubelet knows.
fn known(told: &KubeletInputs) -> impl Iterator<Item = &'static str> {
    KNOWN.iter().filter(|(_, since)| !before(told.version.as_ref(), *since)).map(|(field, _)| *field)
}

/// What stands in the files and flags as they are written.
pub(super) fn in_files(told: &KubeletInputs) -> Vec<Finding> {
    let mut found = Vec::new();
    for (source, document) in provenance::written(told) {
        let Ok(document) = document else { continue };
        for field in document.keys().filter(|field| is_misspelt(field, told)) {
            let right = known(told).find(|known| known.eq_ignore_ascii_case(field));
            let all = || format!("one of {}", known(told).collect::<Vec<_>>().join(", "));
            let instead = right.map_or_else(all, str::to_owned);
            let kubelet = told.version.as_ref().map(|version| format!(" {version}")).unwrap_or_default();
            let what = format!("a kubelet{kubelet} does not know the field {field}: what it says has no effect");
            found.push(Finding::new("misspelt-field", what, instead).at(told, &source, field, None));
        }
        let is_dropin = matches!(source, Source::Dropin(_));
        if is_dropin && document.get("mergeDefaultEvictionSettings") == Some(&Json::Bool(true)) {
            let what = "mergeDefaultEvictionSettings in a drop-in has no effect: defaults are filled in before drop-ins are read";
            let instead = "set it in the file of --config, or name every signal";
            found.push(Finding::new("merge-in-dropin", what, instead).at(
                told,
                &source,
                "mergeDefaultEvictionSettings",
                None,
            ));
        }
        for field in FIELDS {
            let entries = document.get(field).and_then(Json::as_object).into_iter().flatten();
            for (signal, text) in entries.filter_map(|(signal, text)| Some((signal, text.as_str()?))) {
                found.extend(unit(field, signal, text).map(|f| f.at(told, &source, field, Some(signal))));
            }
        }
    }
    if let Some(error) = provenance::forgiven(told) {
        let what = format!("a kubelet forgives this in the file of --config, and takes the last: {error}");
        let finding = Finding::new("loose-yaml", what, "each key once");
        found.push(Finding { path: told.file.as_ref().map(|file| file.path.clone()), ..finding });
    }
    for text in told.file.iter().chain(told.dropins.iter().flatten()) {
        if let Some(line) = second_document(&text.text) {
            let finding =
                Finding::new("loose-yaml", "a kubelet reads the first YAML document and no other", "one file each");
            found.push(Finding { path: Some(text.path.clone()), line: Some(line), ..finding });
        }
    }
    let flags = told.flags.iter().flat_map(|flags| {
        [&flags.eviction_hard, &flags.eviction_soft, &flags.eviction_soft_grace_period, &flags.eviction_minimum_reclaim]
    });
    for (field, (signal, text)) in
        FIELDS.iter().zip(flags).flat_map(|(field, map)| map.iter().flatten().map(move |entry| (field, entry)))
    {
        found.extend(unit(field, signal, text).map(|finding| finding.at(told, &Source::Flag, field, Some(signal))));
    }
    found.extend(without_grace(told));
    found
}

/// Looks like a field about eviction or image collection and is none.
fn is_misspelt(field: &str, told: &KubeletInputs) -> bool {
    let lower = field.to_ascii_lowercase();
    let about = lower.starts_with("eviction") || lower.starts_with("imagegc") || lower.starts_with("mergedefault");
    let meant = KNOWN.iter().any(|(known, _)| known.eq_ignore_ascii_case(field));
    (about || meant) && !known(told).any(|known| known == field)
}

/// Units that people write and Kubernetes does not know.
fn unit(field: &str, signal: &str, text: &str) -> Option<Finding> {
    let seconds = field == FIELDS[2];
    let wrong = if seconds { crate::values::duration(text).is_err() } else { quantity::quantity(text).is_err() };
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, suffix) = text.split_at(end);
    if !wrong || number.is_empty() || suffix.trim_end() == "%" && suffix == "%" {
        return None;
    }
    let right = match (seconds, suffix.trim().to_ascii_lowercase().as_str()) {
        (true, "d" | "day" | "days") => format!("{}h", number.parse::<u32>().ok()?.checked_mul(24)?),
        (true, "sec" | "secs" | "second" | "seconds") => format!("{number}s"),
        (true, "min" | "mins" | "minute" | "minutes") => format!("{number}m"),
        (true, _) => return None,
        (false, "k" | "kb" | "kib" | "ki") => format!("{number}Ki"),
        (false, "mb" | "mib" | "mi") => format!("{number}Mi"),
        (false, "g" | "gb" | "gib" | "gi") => format!("{number}Gi"),
        (false, "t" | "tb" | "tib" | "ti") => format!("{number}Ti"),
        (false, "%") => format!("{number}%"),
        _ => return None,
    };
    let what = format!("{field} {signal}: {text:?} is no unit of Kubernetes, and a kubelet does not start with it");
    Some(Finding::new("unit", what, format!("{signal}: {right:?}")))
}

/// The line at which a second document begins.
fn second_document(text: &str) -> Option<usize> {
    let mut content = false;
    let mut marker = None;
    for (number, line) in text.lines().enumerate() {
        let is_marker = line == "---" || line.starts_with("--- ");
        if is_marker && content {
            marker = Some(number + 1);
        } else if !is_marker && line != "..." && !line.trim().is_empty() && !line.trim_start().starts_with('#') {
            if marker.is_some() {
                return marker;
            }
            content = true;
        }
    }
    None
}

fn without_grace(told: &KubeletInputs) -> Vec<Finding> {
    let Ok(provenance) = provenance::trace(told) else { return Vec::new() };
    let missing = provenance.maps[1].iter().filter(|(signal, _)| !provenance.maps[2].contains_key(*signal));
    missing
        .filter(|(_, (text, _))| !matches!(thresholds::value(text), Ok(None)))
        .map(|(signal, (_, source))| {
            let what = format!("{signal} has a soft threshold and no grace period: a kubelet does not start with that");
            let instead = format!("evictionSoftGracePeriod: {{{signal}: \"1m30s\"}} beside it");
            Finding::new("soft-without-grace", what, instead).at(told, source, FIELDS[1], Some(signal))
        })
        .collect()
}

/// What comes of it all.
pub(super) fn in_effect(
    told: &KubeletInputs,
    configuration: &Configuration,
    provenance: &Provenance,
    rows: &[Row],
    found: &mut Vec<Finding>,
) {
    lost(told, provenance, found);
    missing(told, configuration, found);
    for row in rows {
        one_signal(told, row, found);
    }
    gc(told, configuration, rows, found);
}

/// Entries that a later source took away.
fn lost(told: &KubeletInputs, provenance: &Provenance, found: &mut Vec<Finding>) {
    // Defaults that a flag replaced are what `partial-map` speaks of.
    for lost in provenance.lost.iter().filter(|lost| (&lost.was, &lost.by) != (&Source::Default, &Source::Flag)) {
        let by = match &lost.by {
            Source::Flag => "the kubelet's flag, which replaces the whole map".to_owned(),
            other => format!("{}, which sets it to null", source_name(other)),
        };
        let (field, signal) = (lost.field, lost.signal.as_str());
        let what = format!("{field} {signal} {} ({}) is taken away by {by}", lost.value, source_name(&lost.was));
        let instead = format!("name {signal} there as well, if it is still wanted");
        found.push(Finding::new("lost-entry", what, instead).at(told, &lost.was, field, Some(signal)));
    }
}

/// Signals without a hard threshold.
fn missing(told: &KubeletInputs, configuration: &Configuration, found: &mut Vec<Finding>) {
    let hard = &configuration.eviction_hard;
    let gone: Vec<String> = default_eviction_hard(told.version.as_ref())
        .iter()
        .filter(|(signal, _)| !hard.contains_key(*signal))
        .map(|(signal, default)| format!("{signal} (default {default})"))
        .collect();
    let files = provenance::written(told);
    let writes = |(source, document): &(Source, crate::error::Result<serde_json::Map<String, Json>>)| {
        document.as_ref().is_ok_and(|document| document.contains_key(FIELDS[0])).then(|| source.clone())
    };
    let by_flag = told.flags.as_ref().is_some_and(|flags| flags.eviction_hard.is_some());
    let source = files.iter().find_map(writes).filter(|_| !by_flag).unwrap_or(Source::Flag);
    if hard.is_empty() {
        let what =
            "no hard eviction threshold at all: this kubelet fills the node until the kernel or the disk ends it";
        let instead = "a --config file without evictionHard for the defaults, or every signal by name";
        found.push(Finding::new("no-hard-thresholds", what, instead).at(told, &source, FIELDS[0], None));
    } else if !gone.is_empty() {
        let what =
            format!("evictionHard names some signals, and these have no threshold any more: {}", gone.join(", "));
        let instead = match source {
            Source::Flag => "every signal in --eviction-hard",
            _ if before(told.version.as_ref(), 33) => "every signal by name",
            _ => "mergeDefaultEvictionSettings: true in the --config file, or every signal by name",
        };
        found.push(Finding::new("partial-map", what, instead).at(told, &source, FIELDS[0], None));
    }
    if !hard.contains_key("pid.available") && !configuration.eviction_soft.contains_key("pid.available") {
        let what = "no threshold for pid.available, and the defaults have none: PIDPressure can never be true";
        found.push(Finding::new(
            "no-pid-threshold",
            what,
            "evictionHard: {pid.available: \"5%\"}, if pids can run out here",
        ));
    }
}

fn one_signal(told: &KubeletInputs, row: &Row, found: &mut Vec<Finding>) {
    let signal = row.signal.as_str();
    let mut tell = |id, source: &Source, field: &str, what: String, instead: String| {
        found.push(Finding::new(id, what, instead).at(told, source, field, Some(signal)));
    };
    let containerfs = matches!(row.signal, Signal::ContainerfsAvailable | Signal::ContainerfsInodesFree);
    for (limit, field) in [(&row.hard, FIELDS[0]), (&row.soft, FIELDS[1])] {
        let Some(limit) = limit else { continue };
        if containerfs {
            let what =
                format!("{field} {signal} is ignored: a kubelet puts its threshold for nodefs or imagefs in its place");
            tell("containerfs-ignored", &limit.source, field, what, "leave it out; set nodefs and imagefs".to_owned());
        } else if !limit.on {
            let what = format!("{field} {signal} {}: this value switches the threshold off", limit.text);
            tell(
                "switched-off",
                &limit.source,
                field,
                what,
                "a value between, or a comment that it is meant so".to_owned(),
            );
        } else if row.signal.counts() == Counts::Bytes
            && let (Ok(Some(Value::Quantity(quantity))), true) = (thresholds::value(&limit.text), is_tiny(limit))
        {
            let what = format!("{field} {signal} {}: that is {quantity} bytes, as good as nothing", limit.text);
            let number: String = limit.text.chars().take_while(char::is_ascii_digit).collect();
            tell("tiny-quantity", &limit.source, field, what, format!("\"{number}Mi\", if mebibytes are meant"));
        }
    }
    match (&row.soft, &row.grace) {
        (Some(soft), Some((period, source))) if period.is_zero() => {
            let what = format!("evictionSoft {signal} {} with a grace period of 0 is a hard threshold", soft.text);
            tell("soft-is-hard", source, FIELDS[2], what, "a grace period such as 1m30s".to_owned());
        }
        (None, Some((_, source))) => {
            let what = format!("a grace period for {signal}, which has no soft threshold: it has no effect");
            tell("grace-without-soft", source, FIELDS[2], what, format!("evictionSoft: {signal} as well"));
        }
        _ => {}
    }
    if let (Some(hard), Some(soft)) = (&row.hard, &row.soft)
        && hard.on
        && soft.on
        && below(soft, hard)
    {
        let what = format!(
            "the soft threshold of {signal}, {}, is not above the hard one, {}: it never counts",
            soft.text, hard.text
        );
        tell("soft-below-hard", &soft.source, FIELDS[1], what, format!("more than {}", hard.text));
    }
    if let (Some(reclaim), None, None) = (&row.reclaim, &row.hard, &row.soft) {
        let what = format!("a minimum reclaim for {signal}, which has no threshold: it has no effect");
        tell("reclaim-without-threshold", &reclaim.source, FIELDS[3], what, format!("evictionHard: {signal} as well"));
    }
}

/// Below 1 MiB: no node is saved by that.
fn is_tiny(limit: &Limit) -> bool {
    limit.figure.is_some_and(|bytes| bytes < 1 << 20)
}

/// True if it can be told that `soft` is not crossed before `hard`: both in per cent, or both figures known.
fn below(soft: &Limit, hard: &Limit) -> bool {
    match (thresholds::value(&soft.text), thresholds::value(&hard.text)) {
        (Ok(Some(Value::Fraction(soft))), Ok(Some(Value::Fraction(hard)))) => soft <= hard,
        _ => soft.figure.zip(hard.figure).is_some_and(|(soft, hard)| soft <= hard),
    }
}

/// Images are collected above so many per cent used; pods are evicted below so many per cent free.
fn gc(told: &KubeletInputs, configuration: &Configuration, rows: &[Row], found: &mut Vec<Finding>) {
    let high = configuration.image_gc_high_percent;
    let limits = rows.iter().filter(|row| row.signal == Signal::ImagefsAvailable);
    let limits = limits.flat_map(|row| [(&row.hard, FIELDS[0]), (&row.soft, FIELDS[1])]);
    for (limit, field) in limits.filter_map(|(limit, field)| Some((limit.as_ref()?, field))) {
        let Some(percent) = limit.text.strip_suffix('%').and_then(|text| text.parse::<f64>().ok()) else { continue };
        let sum = percent + f64::from(high);
        // At exactly 100 the two begin together, which is what the defaults do: 85 and 15.
        if limit.on && sum > 100.0 {
            let mut what = format!(
                "images are collected above {high}% used, and {field} imagefs.available evicts pods already below {percent}% free"
            );
            let _ = write!(what, ": pods go first, and images are collected too late");
            let highest = 100.0 - percent;
            let instead = format!("imageGCHighThresholdPercent of {} at the most", highest.floor());
            found.push(Finding::new("gc-meets-eviction", what, instead).at(
                told,
                &limit.source,
                field,
                Some("imagefs.available"),
            ));
        }
    }
}
