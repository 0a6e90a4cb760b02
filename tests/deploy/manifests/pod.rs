//! The container of the DaemonSet without Kubernetes: a root of its own with the mounts, the capabilities, the
//! environment and the command line that were rendered, in the host's network namespace. Its processes are in a
//! namespace of their own with one more of another user: they stand for the host's, and no stand-in of a kubelet that
//! another test has made is among them.

use std::process::Command;

use serde_json::Value;

use super::render::environment;
use crate::common::Exporter;

const MAKE: &str = r#"
root=$1 witness=$2 binary=$3 capabilities=$4; shift 4
setpriv --reuid=61234 --regid=61234 --clear-groups sleep 600 3</dev/null 4</dev/null 5</dev/null &
mount -t tmpfs none "$root"
mkdir -p "$root/proc" "$root/bin" "$root/dev" "$root/usr" "$root/host/root" "$root/host/sys"
for name in lib lib64; do [ ! -e "/$name" ] || cp -a --no-dereference "/$name" "$root/$name" 2>/dev/null; done
mount --rbind -o ro /usr "$root/usr"
mount -t proc proc "$root/proc"
: >"$root/bin/headroom-exporter"
mount --bind "$binary" "$root/bin/headroom-exporter"
for name in root sys; do
    from=/; [ "$name" = root ] || from=/sys
    mount --rbind "$from" "$root/host/$name"
    mount --make-rslave "$root/host/$name"
    mount -o remount,bind,ro "$root/host/$name"
done
mount -o remount,ro "$root"
while [ "$(cat "$root/proc/$!/comm")" != sleep ]; do sleep 0.01; done
ls "$root/proc/$!/fd" | wc -l >"$witness"
# Not by exec: process 1 is the machine's init, and an exporter that is process 1 itself knows that it sees its own container only.
chroot "$root" /usr/bin/setpriv --inh-caps=-all --bounding-set="$capabilities" --no-new-privs /bin/headroom-exporter "$@" || exit $?
"#;

/// Starts it with exactly these capabilities. `root` in the folder is where its root is mounted, in a mount namespace
/// that goes with it; the file `witness` there says how many descriptors the other user's process has.
pub(crate) fn start(container: &Value, capabilities: &Value, folder: &std::path::Path) -> Exporter {
    std::fs::create_dir_all(folder.join("root")).unwrap();
    let mounts: Vec<&str> =
        container["volumeMounts"].as_array().unwrap().iter().map(|m| m["mountPath"].as_str().unwrap()).collect();
    assert_eq!(mounts, ["/host/root", "/host/sys"], "MAKE above knows these");
    let added =
        capabilities.as_array().unwrap().iter().map(|name| format!(",+{}", name.as_str().unwrap().to_lowercase()));
    let capabilities = format!("-all{}", added.collect::<String>());
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", MAKE, "sh"])
        .arg(folder.join("root"))
        .arg(folder.join("witness"))
        .arg(env!("CARGO_BIN_EXE_headroom-exporter"))
        .arg(capabilities);
    command.envs(environment(container));
    let arguments = container["args"].as_array().unwrap().iter().map(|argument| argument.as_str().unwrap());
    // The port would be the machine's.
    let arguments: Vec<&str> = arguments.filter(|argument| !argument.starts_with("--web.listen-address")).collect();
    Exporter::start_as(command, &arguments)
}
