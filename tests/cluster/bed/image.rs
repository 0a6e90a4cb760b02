//! Images without a registry: archives of what is on this machine, imported into containerd.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{RUNTIME, exporter_binary};
use crate::checks::say;
use crate::common::{self, containerd::docker_archive};

/// Image of the pods and of their sandboxes: a static busybox, `sleep` by default.
pub(crate) const BUSYBOX: &str = "localhost/busybox:test";

/// Image of the exporter, and its tag.
pub(crate) const EXPORTER: (&str, &str) = ("localhost/headroom-exporter", "test");

/// What the released image is made by; `tests/release` builds and runs that one.
const CONTAINERFILE: &str = include_str!("../../../deploy/image/Containerfile");

/// Puts busybox into the store, as soon as containerd is there.
pub(crate) fn import(dir: &Path) {
    import_archive(&docker_archive(dir, BUSYBOX));
}

/// # Panics
/// If containerd does not take it within half a minute.
pub(crate) fn import_archive(archive: &Path) {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let ctr = Command::new("ctr")
            .args(["--address", RUNTIME, "--namespace", "k8s.io", "images", "import", "--snapshotter", "overlayfs"])
            .arg(archive)
            .output()
            .unwrap();
        if ctr.status.success() {
            break;
        }
        assert!(Instant::now() < until, "ctr: {}", String::from_utf8_lossy(&ctr.stderr));
        std::thread::sleep(Duration::from_millis(100));
    }
    fs::remove_file(archive).unwrap();
}

/// Puts the image that is released into the store, as `tests/release` has built it since this build of the exporter;
/// else this build in an image that is laid out and configured as the Containerfile says. A build for tests is not
/// static: the libraries that it is linked to come along.
pub(crate) fn import_exporter(dir: &Path) {
    let released = Path::new(env!("CARGO_TARGET_TMPDIR")).join("image.tar");
    let made = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    if made(&released) > made(&exporter_binary()) {
        say("deploying the image of deploy/image/Containerfile");
        let copy = dir.join("exporter.tar");
        fs::copy(&released, &copy).unwrap();
        return import_archive(&copy);
    }
    say(
        "no newer image of deploy/image/Containerfile (cargo test --test release): deploying this build in one like it",
    );
    let (_, stage) = CONTAINERFILE.rsplit_once("FROM ").unwrap();
    let said = |instruction: &str| {
        let line = stage.lines().find_map(|line| line.strip_prefix(instruction)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{instruction} in the Containerfile")).to_owned()
    };
    let entrypoint: Vec<String> = serde_json::from_str(&said("ENTRYPOINT")).unwrap();
    let work = tempfile::tempdir_in(dir).unwrap();
    let (path, root, binary) = (work.path(), work.path().join("rootfs"), exporter_binary());
    let inside = root.join(entrypoint[0].trim_start_matches('/'));
    fs::create_dir_all(inside.parent().unwrap()).unwrap();
    fs::copy(&binary, &inside).unwrap();
    // Nothing of a static one.
    common::shell(&format!(
        "ldd {} | grep -o '/[^ ]*' | while read -r library; do install -D \"$library\" {}\"$library\"; done",
        binary.display(),
        root.display()
    ));
    common::shell(&format!(
        "tar --sort=name --mtime=@0 --owner=0 --group=0 -C {} -cf {}/layer.tar .",
        root.display(),
        path.display()
    ));
    let digest = common::shell(&format!("sha256sum {}/layer.tar", path.display()));
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {"Entrypoint": entrypoint, "User": said("USER"), "Env": [said("ENV")]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest.split(' ').next().unwrap())]},
        "history": [{"created": "1970-01-01T00:00:00Z"}],
    });
    let name = format!("{}:{}", EXPORTER.0, EXPORTER.1);
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
    fs::write(path.join("config.json"), config.to_string()).unwrap();
    fs::write(path.join("manifest.json"), manifest.to_string()).unwrap();
    let archive = dir.join("exporter.tar");
    common::shell(&format!("tar -C {} -cf {} config.json manifest.json layer.tar", path.display(), archive.display()));
    import_archive(&archive);
}
