//! A real Docker daemon (Debian's `docker.io`) in a folder of its own, without networks: no bridge, no rules in the
//! machine's tables.
//!
//! `containerd.rs` builds its image.
#![allow(unreachable_pub, missing_docs, reason = "shared by several test binaries")]
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::containerd;
use crate::common;

pub struct Docker {
    folder: tempfile::TempDir,
    daemon: Mutex<Option<Child>>,
    /// `/headroom-test-…`: cgroups of its containers.
    cgroup_parent: String,
}

impl Docker {
    /// Starts it with our image in its store.
    ///
    /// # Errors
    /// In words, what this machine lacks.
    pub fn start() -> Result<Self, String> {
        if !common::is_root() {
            return Err("dockerd needs root".to_owned());
        }
        if let Some(missing) = ["dockerd", "docker", "busybox", "tar"].into_iter().find(|program| !common::has(program))
        {
            return Err(format!("no {missing} here (Debian: docker.io, busybox-static)"));
        }
        let folder = tempfile::Builder::new().prefix("dckr").tempdir().unwrap();
        let cgroup_parent = format!("/headroom-docker-{}", common::unique());
        let this = Docker { folder, daemon: Mutex::new(None), cgroup_parent };
        fs::create_dir_all(this.socket().parent().unwrap()).unwrap();
        this.launch()?;
        this.load_image(containerd::IMAGE)?;
        Ok(this)
    }

    fn dir(&self) -> &Path {
        self.folder.path()
    }

    /// Its socket, where a machine whose root is [`Docker::root`] has it.
    pub fn socket(&self) -> PathBuf {
        self.dir().join("run/docker.sock")
    }

    /// A root directory in which the socket is at its well-known place.
    pub fn root(&self) -> &Path {
        self.dir()
    }

    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Starts the daemon (again).
    pub fn launch(&self) -> Result<(), String> {
        let dir = self.dir();
        let log = fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
        let mut command = Command::new("dockerd");
        command.arg("--host").arg(self.endpoint()).arg("--data-root").arg(dir.join("root"));
        command.arg("--exec-root").arg(dir.join("exec")).arg("--pidfile").arg(dir.join("pid"));
        command.args(["--bridge=none", "--iptables=false", "--ip6tables=false", "--userland-proxy=false"]);
        command.arg(format!("--cgroup-parent={}", self.cgroup_parent));
        command.stdout(Stdio::null()).stderr(log);
        *self.daemon.lock().unwrap() = Some(command.spawn().map_err(|error| format!("dockerd: {error}"))?);
        let until = Instant::now() + Duration::from_secs(30);
        while let Err(why) = self.docker(&["version"]) {
            if Instant::now() > until {
                let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
                return Err(format!("dockerd does not start here: {why}: {}", log.lines().last().unwrap_or_default()));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// The `docker` command against this daemon; what it printed.
    pub fn docker(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new("docker");
        // Its configuration folder is ours too: nothing of root's is read.
        command.arg("--config").arg(self.dir().join("client")).arg("--host").arg(self.endpoint()).args(arguments);
        let output = command.output().map_err(|error| format!("docker: {error}"))?;
        if !output.status.success() {
            return Err(format!("docker {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr)));
        }
        Ok(String::from_utf8(output.stdout).unwrap().trim().to_owned())
    }

    /// Puts one more image of ours into the store.
    pub fn load_image(&self, name: &str) -> Result<(), String> {
        let archive = containerd::docker_archive(self.dir(), name);
        let result = self.docker(&["load", "--input", archive.to_str().unwrap()]);
        let _ = fs::remove_file(archive);
        result.map(|_| ())
    }

    /// Runs a container without network; its id.
    pub fn run(&self, name: &str, labels: &[(&str, &str)]) -> String {
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("--label={key}={value}")).collect();
        let mut arguments =
            vec!["run", "--detach", "--network=none", "--security-opt=seccomp=unconfined", "--name", name];
        arguments.extend(labels.iter().map(String::as_str));
        arguments.push(containerd::IMAGE);
        self.docker(&arguments).unwrap()
    }

    /// Kills the daemon. Its containers stay, and so does its socket's file.
    pub fn kill(&self) {
        if let Some(mut daemon) = self.daemon.lock().unwrap().take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        // Its containerd dies with it, and leaves a pid behind that the next one would wait for if nobody reaps it.
        let _ = fs::remove_file(self.dir().join("exec/containerd/containerd.pid"));
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir().join("log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(20).collect();
            eprintln!("dockerd said last (newest first):\n{}", tail.join("\n"));
        }
        if let Ok(containers) = self.docker(&["ps", "--all", "--quiet"])
            && !containers.is_empty()
        {
            let mut arguments = vec!["rm", "--force"];
            arguments.extend(containers.lines());
            let _ = self.docker(&arguments);
        }
        self.kill();
        // Its own containerd and what is left of the containers.
        let sockets = containerd::shim_sockets(&self.dir().join("exec/containerd/daemon"));
        containerd::end_processes_that_name(self.dir().to_str().unwrap());
        sockets.iter().for_each(|socket| drop(fs::remove_file(socket)));
        containerd::unmount_below(self.dir());
        containerd::remove_cgroups_named(self.cgroup_parent.trim_start_matches('/'));
    }
}
