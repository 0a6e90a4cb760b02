//! A second process of a test: the same test binary, started again with a role in the environment.
//!
//! The module that uses it has a test for it, which does nothing without a role:
//! ```ignore
//! const HELPER: &str = concat!(module_path!(), "::helper");
//!
//! #[test]
//! fn helper() {
//!     let Some((role, target)) = helper::role() else { return };
//!     …
//! }
//! ```
#![allow(unreachable_pub, missing_docs, reason = "shared by several test binaries")]
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::disallowed_methods, reason = "how a test tells its second process what to do")]

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

const ROLE: &str = "HEADROOM_TEST_ROLE";
const TARGET: &str = "HEADROOM_TEST_TARGET";

/// What this process is to do and with what, if it is such a second one.
pub fn role() -> Option<(String, String)> {
    let role = std::env::var(ROLE).ok()?;
    Some((role, std::env::var(TARGET).unwrap_or_default()))
}

/// A process of ours; ends when dropped, and by itself when we die (its standard input ends).
pub struct Helper(pub Child);

impl Helper {
    /// `test`: the helper's path from its crate on. `before`: a command that ends in the helper (`setpriv …`,
    /// `ip netns exec …`).
    pub fn start(test: &str, before: &[&str], role: &str, target: &str) -> Self {
        let exe = std::env::current_exe().unwrap();
        let mut words = before.iter().map(std::ffi::OsString::from).chain([exe.into_os_string()]);
        let mut command = Command::new(words.next().unwrap());
        let (_, test) = test.split_once("::").unwrap();
        command.args(words).args(["--exact", test, "--nocapture", "--test-threads=1"]);
        command.env(ROLE, role).env(TARGET, target).current_dir("/");
        Helper(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }

    /// Its output up to the line that says `ready`.
    pub fn ready(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        for line in BufReader::new(self.0.stdout.as_mut().unwrap()).lines() {
            let line = line.unwrap();
            if line == "ready" {
                return lines;
            }
            lines.push(line);
        }
        panic!("helper ended: {lines:?}");
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
