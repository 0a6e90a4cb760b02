//! Where this machine has its cgroup hierarchies, seen without the library: v1 with a cgroup2 mount beside it (hybrid,
//! the machines of CI), or cgroup v2 alone (the virtual machines).
#![allow(unreachable_pub, missing_docs, reason = "shared by several test binaries")]
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::Path;
use std::sync::LazyLock;

pub const V1: &str = "/sys/fs/cgroup/memory";

/// True where everything is on cgroup v2.
pub static PURE_V2: LazyLock<bool> = LazyLock::new(|| Path::new("/sys/fs/cgroup/cgroup.controllers").exists());

/// The cgroup2 mount.
pub fn v2() -> &'static str {
    if *PURE_V2 { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/unified" }
}

/// True where a page of memory keeps the cgroup that it is charged to. Seen up to Linux 6.18; 7.2 gives the pages of a
/// removed cgroup to its parent. Where it is not so, that is said.
pub fn pages_hold_cgroups() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let major: u32 = release.split('.').next().unwrap().parse().unwrap();
    if major >= 7 {
        super::not_in_this_kernel("cgroups that are held by pages after they were removed");
    }
    major < 7
}

/// The hierarchy with the memory controller, `None` with a word where there is none.
pub fn memory() -> Option<&'static str> {
    let root = if *PURE_V2 { v2() } else { V1 };
    let there = Path::new(root).join("cgroup.procs").exists();
    if !there {
        super::say_skip(format_args!("no {root}: no cgroup hierarchy with the memory controller"));
    }
    there.then_some(root)
}

/// True where the memory controller is on v1. Where it cannot be, that is said.
pub fn has_v1() -> bool {
    if *PURE_V2 {
        super::not_in_this_kernel("cgroup v1: its controllers are all on v2, as it was booted");
        return false;
    }
    let there = Path::new(V1).join("cgroup.procs").exists();
    if !there {
        super::say_skip(format_args!("no {V1}: no cgroup v1 memory hierarchy"));
    }
    there
}

/// The namespaces that a container has of its own in a pod with hostPID and hostNetwork. On cgroup v2 containerd and
/// CRI-O add one of cgroups, unless it is privileged; on v1 they add none.
pub fn own_namespaces() -> Vec<serde_json::Value> {
    let cgroup = PURE_V2.then_some("cgroup");
    ["mount", "ipc", "uts"].into_iter().chain(cgroup).map(|kind| serde_json::json!({"type": kind})).collect()
}
