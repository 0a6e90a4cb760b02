//! Processes in network namespaces, as those of pods are.
#![allow(unreachable_pub, missing_docs, reason = "shared by several test binaries")]
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::fs;
use std::process::{Child, Command, Stdio};

use crate::common::{eventually, shell};

/// A process that sleeps, killed when dropped.
pub struct Process(Child);

impl Process {
    /// In a namespace by its name, with a sysfs of it at /sys, as a container has.
    pub fn inside(namespace: &str) -> Self {
        Self::start(Command::new("ip").args(["netns", "exec", namespace, "sleep", "600"]))
    }

    pub fn on_the_host() -> Self {
        Self::start(Command::new("sleep").arg("600"))
    }

    /// In a new network namespace with nothing but `lo`.
    pub fn alone() -> Self {
        Self::start(Command::new("unshare").args(["--net", "sleep", "600"]))
    }

    /// In the network namespace of another.
    pub fn beside(other: &Process) -> Self {
        Self::start(Command::new("nsenter").args(["-t", &other.pid().to_string(), "-n", "sleep", "600"]))
    }

    fn start(command: &mut Command) -> Self {
        let process = Process(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
        let comm = format!("/proc/{}/comm", process.pid());
        eventually("it sleeps", || fs::read_to_string(&comm).is_ok_and(|comm| comm == "sleep\n"));
        process
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Gives its namespace an interface.
    pub fn connect(&self) {
        shell(&format!("nsenter -t {} -n ip tuntap add eth0 mode tap", self.pid()));
    }

    /// The interfaces that it sees, as `ip` tells in its namespace: `2: eth0@if9: <BROADCAST,…`
    pub fn interfaces(&self) -> Vec<String> {
        interface_names(&shell(&format!("nsenter -t {} -n ip -o link", self.pid())))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The names in what `ip -o link` prints.
pub fn interface_names(lines: &str) -> Vec<String> {
    let name = |line: &str| Some(line.split(' ').nth(1)?.trim_end_matches(':').split('@').next()?.to_owned());
    lines.lines().filter_map(name).collect()
}
