//! A recorded node (`fixtures/node/*`) laid out as folders that the exporter can read, with what stands still on it;
//! what moves each test writes itself.
#![allow(unreachable_pub, missing_docs, reason = "shared by several test binaries")]
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::path::{Path, PathBuf};

use headroom::host::Roots;
use headroom::host::filesystem::Mount;
use serde_json::Value;

pub struct Recorded {
    fixtures: PathBuf,
    dir: tempfile::TempDir,
}

impl Recorded {
    pub fn new(name: &str) -> Self {
        let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/node").join(name);
        let node = Recorded { fixtures, dir: tempfile::tempdir().unwrap() };
        for (from, to) in [
            ("proc/host/meminfo.txt", "proc/meminfo"),
            ("proc/host/sys-kernel-pid_max.txt", "proc/sys/kernel/pid_max"),
            ("proc/kubelet/stat.txt", "proc/77/stat"),
            ("config/kubelet-config.yaml", "root/var/lib/tb/kubelet-config.yaml"),
            ("config/kubelet.conf.d/10-eviction.conf", "root/var/lib/tb/kubelet.conf.d/10-eviction.conf"),
        ] {
            node.write(to, &node.text(from));
        }
        node.write("proc/77/comm", "kubelet\n");
        node.write("proc/77/cmdline", &node.text("proc/kubelet/cmdline.txt").replace('\n', "\0"));
        node
    }

    /// A file of the recording.
    pub fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.fixtures.join(name)).unwrap()
    }

    pub fn json(&self, name: &str) -> Value {
        serde_json::from_str(&self.text(name)).unwrap()
    }

    /// A file of the machine that is read.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// The mount of the recorded table that holds this path.
    pub fn mount_of(&self, path: &str) -> Option<Mount> {
        let mountinfo = self.text("proc/host/mountinfo.txt");
        let above = mountinfo.lines().filter_map(Mount::parse);
        let above = above.filter(|mount| Path::new(path).starts_with(&mount.mountpoint));
        above.max_by_key(|mount| mount.mountpoint.components().count())
    }

    pub fn roots(&self) -> Roots {
        let at = |name| self.dir.path().join(name);
        Roots { proc: at("proc"), sys: at("sys"), root: at("root") }
    }
}
