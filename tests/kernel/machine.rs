//! The exporter as it is, on this machine as it is, with no kubelet and no container runtime in sight: no collector
//! fails, and what it says of the whole machine is what `find`, `cgroup.stat` and `uname` say. Needs root.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use crate::common::hierarchies::{PURE_V2, v2};
use crate::common::{self, Exporter, shell};

#[test]
fn a_machine_that_is_no_node() {
    alone!();
    if !common::is_root() {
        skip!("not root: much of the machine is not to be seen");
    }
    let _lock = common::machine_lock();
    // Emulated processors take longer for a debug build than a scrape has.
    let exporter = Exporter::start(&["--no-runtime", "--web.scrape-timeout=25s"]);
    let page = exporter.scrape();
    let modes = headroom::modes::MODES.iter().map(|mode| mode.id);
    let failed: Vec<&str> = modes.filter(|mode| page.outcome(mode) == "failed").collect();
    assert_eq!(failed, [""; 0], "{page:#?}");

    let release = shell("uname -r");
    let mode = if *PURE_V2 { "v2" } else { "hybrid" };
    let info = format!("headroom_kernel_info{{release=\"{}\",cgroup_mode=\"{mode}\",kmem=\"on\"}}", release.trim());
    assert_eq!(page.value(&info), 1.0);

    let witness = || {
        let script = format!(
            "find {0} -type d | wc -l; awk '$1 == \"nr_dying_descendants\" {{ print $2 }}' {0}/cgroup.stat",
            v2()
        );
        let numbers: Vec<f64> = shell(&script).lines().map(|line| line.trim().parse().unwrap()).collect();
        (numbers[0], numbers[1])
    };
    common::eventually("cgroups hold still for one scrape", || {
        let before = witness();
        let page = exporter.scrape();
        if witness() != before {
            return false;
        }
        let of = |what: &str| page.value(&format!("headroom_{what}{{subsystem=\"unified\"}}"));
        assert_eq!((of("cgroup_directories"), of("cgroups_dying")), before);
        assert_eq!(of("cgroups"), before.0 + before.1);
        true
    });
}

/// As a node of kind or k3d is: what its init and its kubelet have at `/sys/fs/cgroup` is the root of a cgroup
/// namespace, and is all there is of this machine.
#[test]
fn a_machine_that_is_a_container() {
    if !common::is_root() {
        skip!("not root: cgroups and namespaces need it");
    }
    let node = std::path::Path::new(v2()).join(format!("headroom-node-{}", common::unique()));
    std::fs::create_dir_all(node.join("own/deeper")).unwrap();
    let exporter = env!("CARGO_BIN_EXE_headroom-exporter");
    let page = {
        let script = format!(
            "echo 0 >{node}/cgroup.procs
             exec unshare --cgroup --mount --pid --fork --mount-proc --kill-child sh -ec '
                 [ \"$(stat -fc %T /sys/fs/cgroup)\" != cgroup2fs ] || umount -l /sys/fs/cgroup
                 mount -t cgroup2 cgroup2 /sys/fs/cgroup
                 {exporter} --no-runtime --web.listen-address=127.0.0.1:0 --web.scrape-timeout=25s 2>/tmp/{log} &
                 for i in $(seq 300); do
                     port=$(sed -n \"s/.*127.0.0.1:\\([0-9]*\\).*/\\1/p\" /tmp/{log} | head -n 1)
                     [ -z \"$port\" ] || break
                     sleep 0.1
                 done
                 curl -sf http://127.0.0.1:$port/metrics; kill $!; wait || true; rm /tmp/{log}'",
            node = node.display(),
            log = node.file_name().unwrap().display(),
        );
        common::Page::parse(&shell(&script))
    };
    std::fs::remove_dir(node.join("own/deeper")).unwrap();
    std::fs::remove_dir(node.join("own")).unwrap();
    common::eventually("the cgroup can be removed", || std::fs::remove_dir(&node).is_ok());
    let modes = headroom::modes::MODES.iter().map(|mode| mode.id);
    let failed: Vec<&str> = modes.filter(|mode| page.outcome(mode) == "failed").collect();
    assert_eq!(failed, [""; 0], "{page:#?}");
    assert_eq!(page.value("headroom_cgroup_directories{subsystem=\"unified\"}"), 3.0, "itself and two below");
}
