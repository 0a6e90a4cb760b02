//! A node of its own for one replay: network, mounts and processes in a namespace, with something called kubelet in it
//! whose configuration the exporter finds by itself, and the exporter with every collector that looks at nothing but
//! this node.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::common::netns::Namespace;
use crate::common::{Exporter, Page};

/// Killed when dropped.
pub struct Process(pub Child);

impl Process {
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What ends first comes first.
pub struct Machine {
    pub exporter: Option<Exporter>,
    pub processes: Vec<Process>,
    pub namespace: Namespace,
    pub directory: tempfile::TempDir,
}

impl Machine {
    pub fn new() -> Self {
        let machine = Machine {
            exporter: None,
            processes: Vec::new(),
            namespace: Namespace::new(),
            directory: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(machine.at("kubelet")).unwrap();
        // Disks of its own, on which nobody else writes.
        machine.namespace.run(&format!(
            "mount -t tmpfs -o size=64m tmpfs {}; mount -t tmpfs -o size=64m tmpfs /var/lib; mkdir /var/lib/containerd",
            machine.root_dir().display()
        ));
        machine
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn root_dir(&self) -> PathBuf {
        self.at("kubelet")
    }

    /// Starts a command among its processes.
    pub fn spawn(&self, command: &mut Command) -> Process {
        Process(self.namespace.spawn(command.stdin(Stdio::piped())).unwrap())
    }

    /// A program of this name that does nothing.
    pub fn idle(&self, name: &str, arguments: &[String]) -> Process {
        let program = self.at(name);
        if !program.is_file() {
            fs::write(&program, "#!/bin/sh\nread line\n").unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        }
        self.spawn(self.namespace.command(&program).args(arguments))
    }

    /// With a kubelet of this configuration (YAML below `kind`), and the exporter with these further flags.
    pub fn with(mut self, config: &str, flags: &[&str]) -> Self {
        let file = self.at("config.yaml");
        fs::write(&file, format!("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n{config}"))
            .unwrap();
        fs::create_dir_all(self.at("bin")).unwrap();
        let arguments = [format!("--config={}", file.display()), format!("--root-dir={}", self.root_dir().display())];
        let kubelet = self.idle("bin/kubelet", &arguments);
        self.processes.push(kubelet);
        let command = self.namespace.command(env!("CARGO_BIN_EXE_headroom-exporter"));
        let flags: Vec<&str> = ["--no-runtime"].into_iter().chain(flags.iter().copied()).collect();
        self.exporter = Some(Exporter::start_by(command, &flags, |command| self.namespace.spawn(command)));
        self
    }

    pub fn exporter(&self) -> &Exporter {
        self.exporter.as_ref().expect("it was started")
    }

    pub fn scrape(&self) -> Page {
        self.namespace.inside(|| self.exporter().scrape())
    }
}

/// The collectors of what a namespace does not part from the rest of the machine, its cgroups, are left out.
pub const NO_CGROUPS: [&str; 4] = [
    "--no-collector.cgroup_leak",
    "--no-collector.memory_volume",
    "--no-collector.pod_interface",
    "--no-collector.task_limit",
];

/// Removes a cgroup with all below it, as far as that goes.
pub fn remove(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(path);
}
