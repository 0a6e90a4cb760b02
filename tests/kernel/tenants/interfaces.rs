//! What a pod stacks in namespaces of its own, and what it mounts over its sysfs.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use headroom::modes::pod_interface::{LOST_TOTAL, PARENT_UP};

use super::NOBODY;
use crate::common::{self, sleepers::Process};
use crate::pod_interface::{Device, Lab, NOW, Namespace, collector, numbers, succeeds};

/// A pod on a macvlan of this machine: the victim, whose parent is watched.
struct Victim {
    parent: Device,
    _namespace: Namespace,
    _processes: [Process; 2],
}

impl Victim {
    fn new(lab: &Lab) -> Self {
        let parent = Device::pair(&format!("hp{}", common::unique()));
        let namespace = Namespace::new();
        parent.macvlan(&namespace, "eth0");
        let processes = [Process::inside(&namespace.0), Process::inside(&namespace.0)];
        lab.container(9, 91, &processes[0]);
        lab.container(9, 92, &processes[1]);
        Victim { parent, _namespace: namespace, _processes: processes }
    }
}

/// As Docker in Docker has them: the other end is in a namespace that the pod made, and its number there is by chance
/// that of an interface of the machine's.
#[test]
fn what_a_pod_stacks_in_its_own_namespaces_is_none_of_the_machines() {
    alone!();
    let Some(lab) = Lab::open() else { return };
    let victim = Victim::new(&lab);
    // The ends of other pods, as any network plugin has them, and a bridge.
    let [veth, bridge] = ["hc", "hb"].map(|name| format!("{name}{}", common::unique()));
    common::shell(&format!("ip link add {veth} index 950 type veth peer name {veth}p; ip link set {veth} up"));
    common::shell(&format!("ip link set {veth}p up"));
    let veth = Device(veth);
    let bridge = succeeds(&format!("ip link add {bridge} index 951 type bridge")).then_some(Device(bridge));
    if bridge.is_none() {
        common::not_in_this_kernel("bridges: as what a pod names by its number");
    }

    let (pod, nested) = (Namespace::new(), Namespace::new());
    let uplink = Device::pair(&format!("hu{}", common::unique()));
    common::shell(&format!("ip link set {} netns {} name eth0", uplink.other_end(), pod.0));
    for (own, other) in [("veth0", 950), ("veth1", 951)] {
        common::shell(&format!(
            "ip -n {1} link add {own} index {other} type veth peer name {own} netns {0}; ip -n {0} link set {own} up",
            pod.0, nested.0
        ));
    }
    // A macvlan that was moved to the pod from a namespace in which what it is on has that number.
    common::shell(&format!(
        "ip -n {0} link add hd index 952 type veth peer name hdp; ip -n {0} link set hd up; \
         ip -n {0} link add link hd name mac0 type macvlan mode bridge; ip -n {0} link set mac0 netns {1}; \
         ip -n {1} link set mac0 up",
        nested.0, pod.0
    ));
    let third = format!("hw{}", common::unique());
    common::shell(&format!("ip link add {third} index 952 type veth peer name {third}p; ip link set {third} up"));
    let third = Device(third);
    // And on what the pod has itself.
    common::shell(&format!("ip -n {} link set eth0 up", pod.0));
    let inner =
        format!("ip -n {0} link add link eth0 name eth0.7 type vlan id 7 && ip -n {0} link set eth0.7 up", pod.0);
    if !succeeds(&inner) {
        common::not_in_this_kernel("VLAN: one in a pod");
    }
    let processes = [Process::inside(&pod.0), Process::inside(&pod.0)];
    lab.container(1, 11, &processes[0]);
    lab.container(1, 12, &processes[1]);
    let iflink = |name: &str| {
        let path = format!("/proc/{}/root/sys/class/net/{name}/iflink", processes[0].pid());
        fs::read_to_string(path).unwrap().trim().to_owned()
    };
    assert_eq!([iflink("veth0"), iflink("veth1"), iflink("mac0")], ["950", "951", "952"]);

    let collector = collector(NOW);
    for _ in 0..3 {
        let samples = lab.well(&collector);
        assert_eq!(numbers(&samples), [2.0, 0.0, 0.0]);
        let parents: Vec<&str> =
            samples.rows().iter().filter(|row| row.metric.name == PARENT_UP.name).map(|row| &*row.labels[0]).collect();
        assert_eq!(parents, [&*victim.parent.0], "the victim's, and no other");
        assert_eq!(samples.value(&PARENT_UP, &[&victim.parent.0, "macvlan_parent"]), Some(1.0));
        assert_eq!(samples.value(&LOST_TOTAL, &["host"]), Some(0.0));
    }
    // The other pods end.
    drop((veth, bridge, third));
    let samples = lab.well(&collector);
    assert_eq!(samples.value(&LOST_TOTAL, &["host"]), Some(0.0));
    assert_eq!(samples.value(&PARENT_UP, &[&victim.parent.0, "macvlan_parent"]), Some(1.0));
    // What the victim is on goes, and is told.
    let parent = victim.parent.0.clone();
    drop(victim.parent);
    let samples = lab.well(&collector);
    assert_eq!(samples.value(&PARENT_UP, &[&parent, "macvlan_parent"]), Some(0.0));
    assert_eq!(samples.value(&LOST_TOTAL, &["host"]), Some(1.0));
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// In namespaces that it made itself, as anybody may: a FIFO that nobody writes to, over a file of sysfs.
#[test]
fn a_fifo_over_a_file_of_sysfs_holds_nobody_up() {
    alone!();
    let Some(lab) = Lab::open() else { return };
    let victim = Victim::new(&lab);
    let collector = collector(NOW);
    lab.well(&collector);
    let threads = || common::threads_at_work(std::process::id());
    let before = threads();
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let pod = Namespace::new();
    common::shell(&format!("ip -n {0} link add eth0 type veth peer name other", pod.0));
    let script = "mkfifo \"$0/fifo\" && for file in ifindex iflink uevent address; do \
                  mount --bind \"$0/fifo\" /sys/class/net/eth0/$file || exit 1; done; exec sleep 600";
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &pod.0, "setpriv", &format!("--reuid={NOBODY}"), &format!("--regid={NOBODY}")]);
    command.args(["--clear-groups", "unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]);
    let mut tenant = Killed(command.arg(place.path()).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
    let comm = format!("/proc/{}/comm", tenant.0.id());
    common::eventually("it has mounted them, or may not", || {
        tenant.0.try_wait().unwrap().is_some() || fs::read_to_string(&comm).is_ok_and(|comm| comm == "sleep\n")
    });
    if tenant.0.try_wait().unwrap().is_some() {
        common::say_skip("nobody may make user namespaces here");
        return;
    }
    let file = format!("/proc/{}/root/sys/class/net/eth0/ifindex", tenant.0.id());
    let kind = std::os::unix::fs::FileTypeExt::is_fifo(&fs::metadata(file).unwrap().file_type());
    assert!(kind, "a FIFO where sysfs has a number");
    lab.process(1, 11, tenant.0.id());

    for _ in 0..3 {
        let start = Instant::now();
        let samples = lab.well(&collector);
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        assert_eq!(samples.value(&PARENT_UP, &[&victim.parent.0, "macvlan_parent"]), Some(1.0));
        assert_eq!(numbers(&samples)[0], 2.0);
    }
    common::eventually("no thread is left behind", || threads() <= before);
    let parent = victim.parent.0.clone();
    drop(victim.parent);
    let samples = lab.well(&collector);
    assert_eq!(samples.value(&PARENT_UP, &[&parent, "macvlan_parent"]), Some(0.0));
}
