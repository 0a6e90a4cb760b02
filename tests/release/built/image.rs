//! The image: built by buildah from `deploy/image/Containerfile`, and run by runc as its configuration says.
//!
//! Nothing is pulled. What it is built in is this machine itself: an image of empty folders, into which its toolchain
//! and cargo's sources are mounted read-only. What is compiled stays below `target/`, so only the first run takes
//! minutes.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, Weak};

use serde_json::{Value, json};

use crate::common::{self, Exporter};

pub(crate) const REVISION: &str = "0123456789abcdef0123456789abcdef01234567";
/// What counts as the time of the commit.
pub(crate) const WHEN: &str = "1700000000";

/// One build at a time: they share what is compiled. And one image for all tests that run at the same time.
static BUILDING: Mutex<Weak<Image>> = Mutex::new(Weak::new());

/// The built image, in a store of its own. Dropped, both go.
pub(crate) struct Image {
    store: tempfile::TempDir,
    id: String,
    /// What is in it; not to be changed.
    pub(crate) root: PathBuf,
    /// Its configuration, as the OCI specification has it.
    pub(crate) config: Value,
}

impl Image {
    /// # Errors
    /// In words, what this machine lacks.
    pub(crate) fn shared() -> Result<Arc<Self>, String> {
        let mut shared = BUILDING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(image) = shared.upgrade() {
            return Ok(image);
        }
        let image = Arc::new(Image::build()?);
        *shared = Arc::downgrade(&image);
        Ok(image)
    }

    /// Built once more, from the same sources.
    pub(crate) fn again() -> Self {
        let _one_at_a_time = BUILDING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Image::build().unwrap()
    }

    fn build() -> Result<Self, String> {
        if !common::is_root() {
            return Err("building an image needs root here".to_owned());
        }
        for (program, package) in [("buildah", "buildah"), ("runc", "runc")] {
            if !common::has(program) {
                return Err(format!("no {program} here (Debian: {package})"));
            }
        }
        let store = tempfile::tempdir().unwrap();
        let mut image = Image { store, id: String::new(), root: PathBuf::new(), config: Value::Null };
        image.make_builder();

        let sysroot = common::shell("rustc --print sysroot");
        let cargo = common::shell(r#"echo "${CARGO_HOME:-$HOME/.cargo}""#);
        let compiled = Path::new(env!("CARGO_TARGET_TMPDIR")).join("image");
        fs::create_dir_all(&compiled).unwrap();
        image.buildah(&[
            "build",
            // What takes no more than a chroot needs neither a runtime nor a network of its own.
            "--isolation=chroot",
            "--file=deploy/image/Containerfile",
            &format!("--timestamp={WHEN}"),
            "--build-arg=BUILDER=localhost/builder",
            &format!("--build-arg=REVISION={REVISION}"),
            &format!("--build-arg=VERSION={}", env!("CARGO_PKG_VERSION")),
            "--volume=/usr:/usr:ro",
            &format!("--volume={}:/toolchain:ro", sysroot.trim()),
            &format!("--volume={}:/cargo:ro", cargo.trim()),
            &format!("--volume={}:/target", compiled.display()),
            "--tag=exporter",
            env!("CARGO_MANIFEST_DIR"),
        ]);
        let inspected = image.buildah(&["inspect", "--type=image", "exporter"]);
        let inspected: Value = serde_json::from_str(&inspected).unwrap();
        image.id = inspected["FromImageID"].as_str().unwrap().to_owned();
        image.config = inspected["OCIv1"].clone();
        image.root = image.copy();
        image.leave_archive();
        Ok(image)
    }

    /// Where the tests on a real cluster look for what is released: they deploy it if it is newer than their exporter.
    fn leave_archive(&self) {
        let archive = Path::new(env!("CARGO_TARGET_TMPDIR")).join("image.tar");
        let _ = fs::remove_file(&archive);
        self.buildah(&[
            "push",
            "exporter",
            &format!("docker-archive:{}:localhost/headroom-exporter:test", archive.display()),
        ]);
    }

    /// A root of its own for a container: runc makes in it what things are mounted on.
    fn copy(&self) -> PathBuf {
        let container = self.buildah(&["from", "exporter"]);
        self.buildah(&["mount", container.trim()]).trim().into()
    }

    /// By its content: the digest of its configuration, which names those of its layers.
    pub(crate) fn id(&self) -> &str {
        assert_eq!(self.id.len(), 64, "{}", self.id);
        &self.id
    }

    pub(crate) fn binary(&self) -> PathBuf {
        self.root.join("bin/headroom-exporter")
    }

    /// An image with folders and links for what is mounted into it.
    fn make_builder(&self) {
        let container = self.buildah(&["from", "scratch"]);
        let container = container.trim();
        let root = self.buildah(&["mount", container]);
        common::shell(&format!(
            "cd {} && mkdir -p usr etc tmp root src target toolchain cargo && cp -a /etc/alternatives etc/
             for folder in bin sbin lib lib64; do [ ! -L /$folder ] || ln -s usr/$folder $folder; done",
            root.trim()
        ));
        let environment = ["PATH=/toolchain/bin:/usr/bin:/bin", "CARGO_HOME=/cargo", "CARGO_TARGET_DIR=/target"];
        let mut arguments = vec!["config", "--env=CARGO_NET_OFFLINE=true"];
        for variable in environment {
            arguments.extend(["--env", variable]);
        }
        arguments.push(container);
        self.buildah(&arguments);
        self.buildah(&["commit", "--rm", container, "builder"]);
    }

    fn buildah(&self, arguments: &[&str]) -> String {
        let store = self.store.path().display();
        let output = Command::new("buildah")
            .args(["--storage-driver=vfs", &format!("--root={store}/root"), &format!("--runroot={store}/run")])
            .args(arguments)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "buildah {arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts it with these arguments. `change` may give the container more than nothing: it gets a user as the image
    /// says, no capability, no way to get one, a root that is read-only, the machine's processes and its network.
    pub(crate) fn run(&self, arguments: &[&str], change: impl FnOnce(&mut Value)) -> Container {
        let id = format!("headroom-image-{}", common::unique());
        let config = &self.config["config"];
        let user = config["User"].as_str().unwrap();
        let (uid, gid) = user.split_once(':').unwrap();
        let (uid, gid): (u32, u32) = (uid.parse().unwrap(), gid.parse().unwrap());
        let mut command = config["Entrypoint"].as_array().unwrap().clone();
        command.push(json!("--web.listen-address=127.0.0.1:0"));
        command.extend(arguments.iter().map(|argument| json!(argument)));
        let mut bundle = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": uid, "gid": gid},
                "args": command,
                "env": config["Env"],
                "cwd": "/",
                "capabilities": {},
                "noNewPrivileges": true,
            },
            "root": {"path": self.copy(), "readonly": true},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            ],
            "linux": {
                "namespaces": common::hierarchies::own_namespaces(),
                "cgroupsPath": format!("/{id}"),
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/scsi"],
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            },
        });
        change(&mut bundle);
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), bundle.to_string()).unwrap();
        let mut runc = Command::new("sh");
        // What Exporter adds to the command line goes to the shell, which does not care.
        runc.args(["-c", &format!("exec runc run --bundle {} {id}", folder.path().display()), "runc"]);
        let guard = Deleted(id);
        let exporter = Exporter::start_as(runc, &[]);
        Container { guard, exporter, _folder: folder }
    }
}

/// A container that runs. Dropped, it goes.
pub(crate) struct Container {
    guard: Deleted,
    pub(crate) exporter: Exporter,
    _folder: tempfile::TempDir,
}

impl Container {
    /// What the kernel says of its process: this field of `/proc/PID/status`.
    pub(crate) fn status(&self, field: &str) -> String {
        let state = common::shell(&format!("runc state {}", self.guard.0));
        let state: Value = serde_json::from_str(&state).unwrap();
        let status = fs::read_to_string(format!("/proc/{}/status", state["pid"])).unwrap();
        let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(":\t"));
        value.unwrap_or_else(|| panic!("no {field}: {status}")).to_owned()
    }
}

struct Deleted(String);

impl Drop for Deleted {
    fn drop(&mut self) {
        let _ = Command::new("runc").args(["delete", "--force", &self.0]).output();
    }
}
