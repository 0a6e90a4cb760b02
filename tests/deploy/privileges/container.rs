//! The exporter as a runtime starts it: in a container of `runc`, with the system calls of `RuntimeDefault`, a root
//! that nobody can write, exactly the two capabilities, and what the kubelet hides or protects below /proc.
//!
//! The profile is the one of `containers/common` (CRI-O, Podman), of the same descent as Docker's and containerd's. It
//! is written for every architecture and set of capabilities at once; what runc is given is the part that a runtime
//! would give it here.

use std::path::Path;

use serde_json::{Value, json};

use crate::common::hierarchies;

pub(crate) const PROFILE: &str = "/usr/share/containers/seccomp.json";
const CAPABILITIES: [&str; 2] = ["CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"];

/// What this machine lacks for it.
pub(crate) fn lacking() -> Option<&'static str> {
    if !crate::common::has("runc") {
        return Some("runc (Debian: runc)");
    }
    (!Path::new(PROFILE).exists())
        .then_some("/usr/share/containers/seccomp.json (Debian: golang-github-containers-common)")
}

/// `config.json` of a container with this root, these mounts (bound recursively, read-only) and command.
pub(crate) fn config(id: &str, uid: u32, root: &Path, mounts: &[&Path], command: &[String]) -> Value {
    let proc =
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]});
    let binds = mounts.iter().map(|path| {
        json!({"destination": path, "type": "bind", "source": path, "options": ["rbind", "ro", "rslave", "nosuid", "nodev"]})
    });
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": uid, "gid": uid},
            "args": command,
            "env": ["PATH=/usr/bin:/bin"],
            "cwd": "/",
            "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
            "noNewPrivileges": true,
        },
        "root": {"path": root, "readonly": true},
        "mounts": std::iter::once(proc).chain(binds).collect::<Vec<_>>(),
        "linux": {
            // Those of the machine: processes, network, and users.
            "namespaces": hierarchies::own_namespaces(),
            "cgroupsPath": format!("/{id}"),
            "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
                "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            "seccomp": seccomp(),
        },
    })
}

/// The profile as the OCI specification has it.
fn seccomp() -> Value {
    let profile: Value = serde_json::from_slice(&std::fs::read(PROFILE).unwrap()).unwrap();
    let (arch, native) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", "SCMP_ARCH_X86_64"),
        "aarch64" => ("arm64", "SCMP_ARCH_AARCH64"),
        other => panic!("no architecture {other} here"),
    };
    let rows = profile["archMap"].as_array().unwrap();
    let row = rows.iter().find(|row| row["architecture"] == native).unwrap();
    let architectures: Vec<&Value> =
        std::iter::once(&row["architecture"]).chain(row["subArchitectures"].as_array().into_iter().flatten()).collect();
    let applies = |rule: &Value| {
        let any = |of: &str, what: &str, there: &dyn Fn(&str) -> bool| {
            let words = rule[of][what].as_array().filter(|words| !words.is_empty())?;
            Some(words.iter().any(|word| there(word.as_str().unwrap())))
        };
        let (ours, here) = (|cap: &str| CAPABILITIES.contains(&cap), |name: &str| name == arch);
        // `minKernel` is 4.8 at the most, which is older than anything that this runs on.
        any("includes", "caps", &ours) != Some(false)
            && any("includes", "arches", &here) != Some(false)
            && any("excludes", "caps", &ours) != Some(true)
            && any("excludes", "arches", &here) != Some(true)
    };
    let syscalls: Vec<Value> = profile["syscalls"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|rule| applies(rule))
        .map(|rule| {
            let mut call = json!({"names": rule["names"], "action": rule["action"]});
            if let Some(args) = rule["args"].as_array().filter(|args| !args.is_empty()) {
                call["args"] = json!(args);
            }
            if let Some(errno) = rule["errnoRet"].as_u64() {
                call["errnoRet"] = json!(errno);
            }
            call
        })
        .collect();
    assert!(syscalls.len() > 10, "{syscalls:?}");
    json!({
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": architectures,
        "syscalls": syscalls,
    })
}
