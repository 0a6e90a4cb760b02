//! What ran on which machine, for docs/compatibility.md: with HEADROOM_UPDATE_DOCS=1 whoever ran on a kernel or a
//! cluster writes its row there, with the day.

use std::path::Path;

use super::shell;

/// The rows stand between these.
const BEGIN: &str = "<!-- written by the tests that ran: HEADROOM_UPDATE_DOCS=1 tests/run --cluster -->";
const END: &str = "<!-- the end of what is written -->";

/// Where something ran.
pub struct Machine {
    pub kernel: String,
    pub cgroups: &'static str,
    /// The Debian that is emulated; else the machine of the tests.
    pub suite: Option<String>,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let cgroups = match (super::hierarchies::has_v1(), super::hierarchies::memory().is_some()) {
            (true, _) => "v1",
            (false, true) => "v2",
            (false, false) => "none",
        };
        Machine { kernel: shell("uname -r").trim().to_owned(), cgroups, suite: None }
    }
}

/// Writes the row of this machine, these versions and this test, in place of the one that an earlier run wrote.
pub fn note(machine: &Machine, kubernetes: &str, runtime: &str, what: &str, outcome: &str) {
    if std::env::var_os("HEADROOM_UPDATE_DOCS").is_none() {
        return;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/compatibility.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (head, rest) = text.split_once(BEGIN).expect("where rows begin");
    let (table, tail) = rest.split_once(END).expect("where rows end");
    let mut lines: Vec<String> = table.trim().lines().map(str::to_owned).collect();
    let minor: Vec<&str> = machine.kernel.splitn(3, ['.', '-']).take(2).collect();
    let place = machine
        .suite
        .as_ref()
        .map_or("the machine of the tests".to_owned(), |suite| format!("Debian {suite}, emulated"));
    let key = format!("| {} | {} | {place} | {kubernetes} | {runtime} | {what} |", minor.join("."), machine.cgroups);
    let today = shell("date -u +%F");
    lines.retain(|line| !line.starts_with(&key));
    lines.push(format!("{key} {outcome} | {} |", today.trim()));
    // The heading and its rule stay above.
    lines[2..].sort();
    std::fs::write(path, format!("{head}{BEGIN}\n{}\n{END}{tail}", lines.join("\n"))).unwrap();
}
