//! What a kubelet would make of configuration files and flags that it has not seen yet, and the traps in them.
//!
//! The thresholds come from the code that the collector `eviction` reads a running kubelet's files with
//! (`kubelet::configuration`, `kubelet::thresholds`), so the answer is that of kubelet 1.36, or of `--kubelet-version`,
//! its figures to the byte. `traps` looks for what such a kubelet refuses, ignores, or takes for something else than
//! was meant; `render` prints it.
//!
//! **When it misleads.** A field that has nothing to do with eviction is not looked at, so a file that passes may still
//! be refused. What percentages come to depends on the node: give `--capacity`.

mod render;
mod traps;
mod yaml_line;

pub use traps::{Finding, Severity, TRAPS};

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::Error;
use crate::host::{Deadline, Host, Roots};
use crate::kubelet::configuration::{Configuration, KubeletInputs, Source};
use crate::kubelet::flags::Flags;
use crate::kubelet::provenance::{self, Provenance};
use crate::kubelet::signals::Signal;
use crate::kubelet::sources;
use crate::kubelet::thresholds::{self, Thresholds};
use crate::kubelet::version::Version;
use crate::values::duration;

/// For one configuration: files may be on a file system that hangs.
const PATIENCE: Duration = Duration::from_secs(10);

/// What to check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The files of `--config`, each checked by itself; none: flags and drop-ins alone.
    pub configs: Vec<PathBuf>,
    /// `--config-dir`
    pub config_dir: Option<PathBuf>,
    /// Further arguments of the kubelet.
    pub flags: Vec<String>,
    /// Which kubelet is to run with it; `None`: 1.36.
    pub version: Option<Version>,
    /// What the node has.
    pub capacities: Vec<Capacity>,
    /// Print JSON.
    pub json: bool,
    /// Colour the output.
    pub color: bool,
}

/// What a node has of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// One of [`Capacity::NAMES`].
    pub name: &'static str,
    /// Bytes, inodes or pids.
    pub amount: u64,
}

impl Capacity {
    /// What can have one.
    pub const NAMES: [&str; 6] = ["memory", "nodefs", "nodefs-inodes", "imagefs", "imagefs-inodes", "pids"];

    fn of(signal: Signal, all: &[Capacity]) -> Option<u64> {
        let name = match signal {
            Signal::MemoryAvailable => "memory",
            Signal::NodefsAvailable => "nodefs",
            Signal::NodefsInodesFree => "nodefs-inodes",
            Signal::ImagefsAvailable => "imagefs",
            Signal::ImagefsInodesFree => "imagefs-inodes",
            Signal::PidAvailable => "pids",
            Signal::AllocatableMemoryAvailable | Signal::ContainerfsAvailable | Signal::ContainerfsInodesFree => {
                return None;
            }
        };
        all.iter().rev().find(|capacity| capacity.name == name).map(|capacity| capacity.amount)
    }
}

/// One configuration, checked.
#[derive(Clone, Debug)]
pub struct Report {
    /// The file of `--config`.
    pub file: Option<PathBuf>,
    /// Everything that was read.
    pub sources: Vec<Source>,
    /// What the kubelet runs with; `None`: it does not start.
    pub effective: Option<Effective>,
    /// The worst first.
    pub findings: Vec<Finding>,
}

/// What a kubelet runs with.
#[derive(Clone, Debug)]
pub struct Effective {
    /// As `/configz` would show it.
    pub configuration: Configuration,
    /// Every signal that a threshold can be set for, and those that were named.
    pub rows: Vec<Row>,
}

/// What there is about one signal.
#[derive(Clone, Debug)]
pub struct Row {
    /// The signal.
    pub signal: Signal,
    /// Evict at once.
    pub hard: Option<Limit>,
    /// Evict after the grace period.
    pub soft: Option<Limit>,
    /// The grace period.
    pub grace: Option<(Duration, Source)>,
    /// How much more is freed.
    pub reclaim: Option<Limit>,
}

/// One threshold.
#[derive(Clone, Debug)]
pub struct Limit {
    /// As it was written.
    pub text: String,
    /// Who wrote it.
    pub source: Source,
    /// Bytes, inodes or pids; `None` for a percentage without a capacity, and for a threshold that is switched off.
    pub figure: Option<u64>,
    /// False: 0% and 100% switch it off.
    pub on: bool,
}

/// Checks everything and says what to print and which exit code it makes: 0, 1 for warnings, 2 for errors.
pub fn run(options: &Options) -> (String, u8) {
    let reports = check(options);
    let code = reports.iter().flat_map(|report| &report.findings).map(|finding| finding.severity.exit_code()).max();
    let code = code.unwrap_or(0);
    (if options.json { render::json(&reports, code) } else { render::text(&reports, options.color) }, code)
}

/// Checks each configuration by itself.
pub fn check(options: &Options) -> Vec<Report> {
    let host = Host::new(Roots::default());
    let flags = Flags::parse(options.flags.iter().map(String::as_str));
    let configs: Vec<Option<&Path>> = if options.configs.is_empty() {
        vec![flags.config.as_deref()]
    } else {
        options.configs.iter().map(|path| Some(path.as_path())).collect()
    };
    let config_dir = options.config_dir.as_deref().or(flags.config_dir.as_deref());
    configs
        .into_iter()
        .map(|config| {
            let told = sources::named(&host, config, config_dir, flags.clone(), Deadline::after(PATIENCE));
            match told {
                Ok(told) => {
                    let told = KubeletInputs { version: options.version.clone(), ..told };
                    report(config, &told, &options.capacities)
                }
                Err(error) => unreadable(config, &error),
            }
        })
        .collect()
}

fn unreadable(config: Option<&Path>, error: &Error) -> Report {
    let findings = vec![Finding::unreadable(error)];
    Report { file: config.map(Path::to_owned), sources: Vec::new(), effective: None, findings }
}

fn report(config: Option<&Path>, told: &KubeletInputs, capacities: &[Capacity]) -> Report {
    let effective = told.effective().and_then(|configuration| {
        let thresholds = Thresholds::parse(&configuration).map_err(|error| told.blame(error))?;
        let provenance = provenance::trace(told)?;
        Ok((configuration, thresholds, provenance))
    });
    let mut findings = traps::in_files(told);
    let effective = match effective {
        Ok((configuration, thresholds, provenance)) => {
            let rows = rows(&thresholds, &provenance, capacities);
            // What a later source has mended stops no kubelet.
            findings.retain(|finding| finding.severity != Severity::Error);
            traps::in_effect(told, &configuration, &provenance, &rows, &mut findings);
            Some(Effective { configuration, rows })
        }
        Err(error) => {
            // Where a trap has a name of its own, the general words add nothing.
            if !findings.iter().any(|finding| finding.severity == Severity::Error) {
                findings.push(Finding::refused(&error, told));
            }
            None
        }
    };
    findings.sort_by_key(|finding| finding.severity);
    Report { file: config.map(Path::to_owned), sources: told.sources(), effective, findings }
}

fn rows(thresholds: &Thresholds, provenance: &Provenance, capacities: &[Capacity]) -> Vec<Row> {
    let derived = |signal| {
        matches!(signal, Signal::ContainerfsAvailable | Signal::ContainerfsInodesFree)
            || signal == Signal::AllocatableMemoryAvailable
    };
    let named = |signal: Signal| provenance.maps.iter().any(|entries| entries.contains_key(signal.as_str()));
    let signals = Signal::ALL.into_iter().filter(|&signal| !derived(signal) || named(signal));
    signals
        .map(|signal| {
            let entry = |map: usize| provenance.maps[map].get(signal.as_str());
            let limit = |map: usize| {
                let (text, source) = entry(map)?.clone();
                let value = thresholds::value(&text).ok().flatten();
                let capacity = Capacity::of(signal, capacities);
                let figure = value.and_then(|value| match value {
                    thresholds::Value::Quantity(quantity) => u64::try_from(quantity).ok(),
                    thresholds::Value::Fraction(_) => capacity.map(|capacity| value.of(capacity) as u64),
                });
                Some(Limit { text, source, figure, on: value.is_some() })
            };
            let grace = entry(2).and_then(|(text, source)| Some((duration(text).ok()?, source.clone())));
            let mut reclaim = limit(3);
            if let (Some(reclaim), Some(value)) = (&mut reclaim, thresholds.minimum_reclaim.get(&signal)) {
                // Other bounds than a threshold's: 0 is allowed here, and 100% means it.
                reclaim.on = true;
                reclaim.figure = match value {
                    thresholds::Value::Quantity(quantity) => u64::try_from(*quantity).ok(),
                    thresholds::Value::Fraction(_) => {
                        Capacity::of(signal, capacities).map(|capacity| value.of(capacity) as u64)
                    }
                };
            }
            Row { signal, hard: limit(0), soft: limit(1), grace, reclaim }
        })
        .collect()
}

/// What a person calls a source: its path, or the flag or default that it is.
fn source_name(source: &Source) -> String {
    source.path().map_or_else(|| source.as_str().to_owned(), |path| path.display().to_string())
}
