//! Many checks in one test: every one is made, and all that failed are told at the end.

use std::fmt::Debug;
use std::io::Write as _;
use std::time::{Duration, Instant};

use crate::bed;
use crate::common;
use crate::common::compatibility::{self, Machine};

/// Past the test harness, which would swallow it.
pub(crate) fn say(what: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{what}");
}

pub(crate) struct Checks {
    begun: Instant,
    made: usize,
    failed: Vec<String>,
}

impl Checks {
    pub(crate) fn new() -> Self {
        Checks { begun: Instant::now(), made: 0, failed: Vec::new() }
    }

    pub(crate) fn check(&mut self, what: &str, outcome: Result<(), String>) {
        self.made += 1;
        if let Err(why) = outcome {
            say(format_args!("  failed: {what}: {why}"));
            self.failed.push(format!("{what}: {why}"));
        }
    }

    /// Asks for at most this long until it is so: two looks at something that moves are seldom from the same moment.
    pub(crate) fn soon(&mut self, what: &str, seconds: u64, mut ask: impl FnMut() -> Result<(), String>) {
        let until = Instant::now() + bed::patience(seconds);
        let outcome = loop {
            match ask() {
                Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(300)),
                outcome => break outcome,
            }
        };
        self.check(what, outcome);
    }

    /// # Panics
    /// If a check failed, or none was made.
    pub(crate) fn end(self, name: &str) {
        let (made, failed) = (self.made, self.failed.len());
        if failed == 0 {
            let runtime =
                common::shell("containerd --version | cut -d' ' -f3; runc --version | sed -n 's/runc version //p'");
            let runtime: Vec<&str> = runtime.split_whitespace().collect();
            let runtime = format!("containerd {}", runtime.join(", runc "));
            let kubernetes = bed::version().unwrap_or_default();
            compatibility::note(&Machine::here(), &kubernetes, &runtime, name, &format!("{made} checks"));
        }
        say(format_args!("{name}: {made} checks, {failed} failed, {:.1} s", self.begun.elapsed().as_secs_f64()));
        assert!(made > 0, "nothing was looked at");
        assert!(failed == 0, "{failed} of {made} checks:\n{}", self.failed.join("\n"));
    }
}

/// Ours beside a witness's.
pub(crate) fn same<T: PartialEq + Debug>(ours: T, theirs: T) -> Result<(), String> {
    if ours == theirs { Ok(()) } else { Err(format!("{ours:?}, and by the witness {theirs:?}")) }
}
