//! The two releases of Prometheus and Alertmanager that tests run: what holds for both holds for users of either.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A Prometheus with its promtool, and an Alertmanager with its amtool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// This machine's packages: on Debian bookworm 2.42 and 0.25, the oldest that are supported.
    Installed,
    /// Prometheus 3, and the Alertmanager of its time: `tests/replay/tools.sh` fetches them.
    Three,
}

impl Release {
    /// Those of which a test is to run these programs.
    pub fn with(programs: &[&str]) -> Vec<Self> {
        [Self::Installed, Self::Three].into_iter().filter(|release| release.runs(programs)).collect()
    }

    /// Whether a test is to run these programs of it: `HEADROOM_TEST_PROMETHEUS` names no other release, and they are
    /// there. If they are not, that says SKIP.
    pub fn runs(self, programs: &[&str]) -> bool {
        if asked_for().is_some_and(|only| only != self) {
            return false;
        }
        let lacking = self.lacking(programs);
        if let Some(lacking) = &lacking {
            super::say_skip(format_args!("{lacking}: nothing was tested with it"));
        }
        lacking.is_none()
    }

    /// The one that `HEADROOM_TEST_PROMETHEUS` names, or else this one: where a run with each takes too long.
    ///
    /// # Panics
    /// If the variable names neither.
    pub fn or_asked_for(self) -> Self {
        asked_for().unwrap_or(self)
    }

    /// Which of these programs is missing.
    pub fn lacking(self, programs: &[&str]) -> Option<String> {
        programs.iter().find_map(|program| match self {
            Self::Installed if !super::has(program) => {
                Some(format!("no {program} (Debian packages prometheus and prometheus-alertmanager)"))
            }
            Self::Three if !self.program(program).exists() => {
                Some(format!("no {program} of Prometheus 3 (tests/replay/tools.sh)"))
            }
            _ => None,
        })
    }

    /// Where it has a program, which has the name that Debian gives it: `prometheus`, `promtool`,
    /// `prometheus-alertmanager`, `amtool`.
    pub fn program(self, name: &str) -> PathBuf {
        match self {
            Self::Installed => name.into(),
            Self::Three => target().join("tools/prometheus-3").join(name),
        }
    }

    pub fn command(self, program: &str) -> Command {
        Command::new(self.program(program))
    }

    /// Whether it succeeds, and what it says.
    pub fn run(self, program: &str, arguments: &[&str], files: &[PathBuf]) -> (bool, String) {
        // A process of seconds on a machine with memory: collecting garbage less often saves it a fifth of its time.
        let output = self.command(program).args(arguments).args(files).env("GOGC", "400").output().unwrap();
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        (output.status.success(), said)
    }
}

fn asked_for() -> Option<Release> {
    match &*std::env::var("HEADROOM_TEST_PROMETHEUS").unwrap_or_default() {
        "" => None,
        "2" => Some(Release::Installed),
        "3" => Some(Release::Three),
        other => panic!("HEADROOM_TEST_PROMETHEUS={other}: neither 2 nor 3"),
    }
}

/// cargo's folder of what is built.
fn target() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_headroom-exporter")).parent().and_then(Path::parent).unwrap()
}
