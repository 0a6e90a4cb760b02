//! One daemon of the cluster, as a child of the test with a log of its own. It ends with the test.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

pub(crate) struct Daemon {
    child: Child,
}

impl Daemon {
    /// Its words are appended to `log/<name>.log` of the cluster's folder.
    pub(crate) fn start(name: &str, command: &[String], dir: &Path) -> Self {
        let log = fs::File::options().create(true).append(true).open(dir.join(format!("log/{name}.log"))).unwrap();
        let child = Command::new(&command[0])
            .args(&command[1..])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", dir)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        Daemon { child: child.unwrap_or_else(|error| panic!("{command:?}: {error}")) }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
    }

    /// SIGTERM; SIGKILL if that takes longer than it should.
    pub(crate) fn stop(mut self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let until = Instant::now() + Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last lines of every log.
pub(crate) fn last_words(dir: &Path) -> String {
    let logs = fs::read_dir(dir.join("log")).into_iter().flatten().flatten();
    let tails = logs.map(|log| {
        let text = fs::read(log.path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().rev().take(12).collect();
        let lines: Vec<String> = lines.into_iter().rev().map(|line| line.chars().take(300).collect()).collect();
        format!("--- {}\n{}", log.file_name().display(), lines.join("\n"))
    });
    tails.collect::<Vec<_>>().join("\n")
}
