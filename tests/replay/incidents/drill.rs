//! The fault, made by `headroom-drill` itself among the node's processes, in its network and with its mounts.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::common::netns::Namespace;

/// A drill that runs. Ended when dropped, so that it cleans up also when the test fails.
pub struct Drill {
    child: Child,
    output: PathBuf,
    _directory: tempfile::TempDir,
}

impl Drill {
    /// Starts it with these words.
    pub fn start(namespace: &Namespace, words: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("output");
        let file = File::create(&output).unwrap();
        let mut command = namespace.command(env!("CARGO_BIN_EXE_headroom-drill"));
        command.arg("--i-know-this-node").arg("--state-dir").arg(directory.path().join("state"));
        command.args(["--for", "10m"]).args(words.split_whitespace()).stdin(Stdio::null());
        let child = namespace.spawn(command.stdout(file.try_clone().unwrap()).stderr(file)).unwrap();
        Drill { child, output, _directory: directory }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.output).unwrap()
    }

    /// Waits until it says this; since when.
    pub fn says(&mut self, what: &str) -> Instant {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            if self.said().contains(what) {
                return Instant::now();
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < until, "{what:?} was not said ({ended:?}): {}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn stop(&mut self) -> Option<i32> {
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let until = Instant::now() + Duration::from_secs(20);
        while Instant::now() < until {
            if let Ok(Some(status)) = self.child.try_wait() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        None
    }

    /// Ends it by SIGTERM. By its own word it leaves nothing, and it promised these pages. What it said.
    pub fn end(mut self, promised: &[&str]) -> String {
        let code = self.stop();
        let said = self.said();
        assert!(code == Some(0) && said.contains("all cleaned up"), "{code:?}: {said}");
        for alert in promised {
            assert!(said.contains(&format!("expect {alert} within ")), "{alert}: {said}");
        }
        said
    }
}

impl Drop for Drill {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.stop();
        }
        if std::thread::panicking() {
            eprintln!("--- the drill said:\n{}", self.said());
        }
    }
}

/// A process outside by the number that it has in its namespace, as a drill sees it.
pub fn number_inside(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap();
    line.split_whitespace().last().unwrap().parse().unwrap()
}
