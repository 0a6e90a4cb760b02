//! What was found on a machine, the worst first, and how it is told: [`text`] to a person at a terminal, [`html`] to
//! one with a browser, [`json`] to a program. All three say the same of the same.

pub mod html;
pub mod json;
pub mod text;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::metric::Samples;
use crate::modes::{self, Mode};
use crate::scrape::Run;
use crate::verdict::runbook::{self, Steps};
use crate::verdict::{self, EXPORTER, Figure, History, Level, Verdict};

/// What was found.
#[derive(Debug)]
pub struct Report {
    /// The name of the node.
    pub node: String,
    /// The kernel's release, if it could be read.
    pub kernel: Option<String>,
    /// When the last sample was taken.
    pub at: SystemTime,
    /// From the first sample to the last.
    pub sampled: Duration,
    /// One for each mode, the worst first.
    pub rows: Vec<Row>,
}

/// What was found of one mode.
#[derive(Debug)]
pub struct Row {
    /// What fails, in a few words.
    pub title: &'static str,
    /// The verdict.
    pub verdict: Verdict,
    /// What the verdict turns on, if it is one number.
    pub figure: Option<Figure>,
    /// What could not be read, each with its place.
    pub unread: Vec<String>,
    /// What could be better, where nothing is missing.
    pub notes: Vec<String>,
    /// What a person wants to see beside the verdict, a line each.
    pub facts: Vec<String>,
    /// For each finding what it stands on.
    pub evidence: Vec<Vec<(String, f64)>>,
    /// For each finding what its runbook says first, about this node.
    pub steps: Vec<Steps>,
}

impl Report {
    /// The worst verdict.
    pub fn level(&self) -> Level {
        self.rows.iter().map(|row| row.verdict.level).max().unwrap_or(Level::Ok)
    }

    /// 0: ok. 1: watch, or something could not be told. 2: act now.
    pub fn exit_code(&self) -> u8 {
        match self.level() {
            Level::Ok => 0,
            Level::CannotTell | Level::Watch => 1,
            Level::ActNow => 2,
        }
    }
}

/// One row for each mode, the worst first: judged at `at`, with what the newest `runs` could not read. `kubelet_root`
/// is the directory of this node's kubelet, if that is known.
pub fn rows(
    runs: &[(&'static Mode, Arc<Run>)],
    history: &History,
    at: SystemTime,
    kubelet_root: Option<&Path>,
) -> Vec<Row> {
    let modes = modes::MODES.iter().map(|mode| (mode.id, mode.metrics));
    let row = |verdict: Verdict| {
        let mode = modes::MODES.iter().find(|mode| mode.id == verdict.mode);
        let errors = |samples: &Samples| samples.errors().iter().map(ToString::to_string).collect();
        let run = runs.iter().find(|(mode, _)| mode.id == verdict.mode);
        Row {
            title: mode.map_or("", |mode| mode.title),
            figure: verdict::figure(verdict.mode, history),
            unread: run.map(|(_, run)| errors(&run.samples)).unwrap_or_default(),
            notes: run.map(|(_, run)| run.samples.notes().to_vec()).unwrap_or_default(),
            facts: verdict::facts(verdict.mode, history),
            evidence: verdict.findings.iter().map(|finding| verdict::evidence(finding, history)).collect(),
            steps: verdict.findings.iter().map(|finding| runbook::steps(finding, history, kubelet_root)).collect(),
            verdict,
        }
    };
    // Not the exporter's own alerts: what its collectors could not read is said with each of them.
    let verdicts = verdict::judge(history, at, modes).into_iter().filter(|verdict| verdict.mode != EXPORTER);
    let mut rows: Vec<Row> = verdicts.map(row).collect();
    // Stable: of the same level they stay in the order of the modes.
    rows.sort_by_key(|row| std::cmp::Reverse(row.verdict.level));
    rows
}

/// What a machine is called where nothing tells how its kubelet calls it: a name helps to tell nodes apart, nothing
/// depends on it.
pub fn machine_name() -> String {
    sysinfo::System::host_name().unwrap_or_else(|| "this machine".to_owned())
}
