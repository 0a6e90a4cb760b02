//! What a containerd says on a full `/run`, and what the exporter's page says beside it.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::process::{Child, Command, Stdio};

use crate::common::{self, Exporter};

/// In the mount namespace of this test alone, with its state on a `/run` of `options`.
struct Containerd {
    daemon: Child,
    dir: tempfile::TempDir,
}

impl Containerd {
    fn start(options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs", "/run"]).status().unwrap();
        assert!(mounted.success(), "a tmpfs at /run");
        std::fs::create_dir_all(dir.path().join("rootfs/bin")).unwrap();
        std::fs::copy("/bin/busybox", dir.path().join("rootfs/bin/true")).unwrap();
        let config = format!(
            "version = 2\nroot = \"{}/root\"\nstate = \"/run/containerd\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\n  address = \"/run/containerd/containerd.sock\"\n",
            dir.path().display()
        );
        std::fs::write(dir.path().join("config.toml"), config).unwrap();
        let mut command = Command::new("containerd");
        command.arg("-c").arg(dir.path().join("config.toml")).stdout(Stdio::null()).stderr(Stdio::null());
        let this = Containerd { daemon: command.spawn().unwrap(), dir };
        common::eventually("containerd answers", || {
            Command::new("ctr").arg("version").output().is_ok_and(|output| output.status.success())
        });
        this
    }

    /// Runs a container: what it says if that fails.
    fn run(&self, name: &str) -> Result<(), String> {
        let rootfs = self.dir.path().join("rootfs");
        let output =
            Command::new("ctr").args(["run", "--rootfs", "--rm"]).arg(rootfs).args([name, "/bin/true"]).output();
        let output = output.unwrap();
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

fn left(resource: &str) -> f64 {
    let exporter = Exporter::start(&["--no-runtime", "--collector.disable-defaults", "--collector.system_filesystem"]);
    let page = exporter.scrape();
    assert_eq!(page.outcome("system_filesystem"), "ok", "{page:#?}");
    let of_run = format!("mountpoint=\"/run\",holds=\"runtime_state\",resource=\"{resource}\"");
    page.0[&format!("headroom_system_filesystem_headroom_ratio{{{of_run}}}")]
}

fn missing() -> Option<String> {
    if !common::is_root() {
        return Some("containerd needs root".to_owned());
    }
    let missing = ["containerd", "ctr", "runc", "busybox"].into_iter().find(|program| !common::has(program))?;
    Some(format!("no {missing} here (Debian: containerd, runc, busybox-static)"))
}

#[test]
fn no_container_starts_without_bytes_and_the_page_says_so() {
    alone!();
    if let Some(why) = missing() {
        skip!("{why}");
    }
    let containerd = Containerd::start("size=8m,mode=755");
    if let Err(why) = containerd.run("before") {
        skip!("containerd runs no container here: {why}");
    }
    assert!(left("bytes") > 0.9, "nothing is amiss: {}", left("bytes"));
    // Until nothing more fits.
    let mut fill = std::fs::File::create("/run/fill").unwrap();
    while std::io::Write::write_all(&mut fill, &[b'x'; 4096]).is_ok() {}
    let why = containerd.run("after").unwrap_err();
    assert!(why.contains("/run/containerd/") && why.contains("no space left on device"), "{why}");
    assert!(left("bytes") < 0.01, "{why} beside {}", left("bytes"));
}

#[test]
fn no_container_starts_without_inodes_and_the_page_says_so() {
    alone!();
    if let Some(why) = missing() {
        skip!("{why}");
    }
    let containerd = Containerd::start("size=64m,nr_inodes=2000,mode=755");
    if let Err(why) = containerd.run("before") {
        skip!("containerd runs no container here: {why}");
    }
    assert!(left("inodes") > 0.9, "nothing is amiss: {}", left("inodes"));
    while std::fs::create_dir(format!("/run/left-behind-{}", common::unique())).is_ok() {}
    let why = containerd.run("after").unwrap_err();
    assert!(why.contains("/run/containerd/") && why.contains("no space left on device"), "{why}");
    assert_eq!((left("inodes"), left("bytes") > 0.9), (0.0, true), "{why}");
}
