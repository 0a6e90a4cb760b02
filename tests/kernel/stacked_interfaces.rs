//! What an upgrade of a network driver does to a node whose pods sit on layers: a bond of two NICs, VLANs on it,
//! macvlans of pods on those; and ipvlans on another NIC. NICs are dummies. Witnesses are `ip` and `/proc/PID/net/dev`.
//! Needs a kernel with all of these.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::time::Duration;

use headroom::error::Reason;
use headroom::host::{Deadline, Host, Roots};
use headroom::metric::Samples;
use headroom::modes::pod_interface::{LOST, LOST_TOTAL, PARENT_UP, PodInterface};

use crate::common;
use crate::common::sleepers::Process;
use crate::pod_interface::{Device, Lab, NOW, Namespace, collector, numbers, succeeds};

/// Names of the layers.
struct Layers {
    nics: [String; 2],
    bond: String,
    vlan: String,
    other: String,
}

impl Layers {
    /// `None`, said, where the kernel cannot make one of them.
    fn new() -> Option<(Self, Vec<Device>)> {
        let name = common::unique();
        let nics = ["a", "b"].map(|end| format!("hn{name}{end}"));
        let bond = format!("hb{name}");
        let layers = Layers { nics, vlan: format!("{bond}.3"), bond, other: format!("ho{name}") };
        // Deleted from the last to the first.
        let mut devices = Vec::new();
        for (device, kind) in [
            (&layers.other, "type dummy"),
            (&layers.nics[0], "type dummy"),
            (&layers.nics[1], "type dummy"),
            (&layers.bond, "type bond mode active-backup miimon 20"),
        ] {
            if !succeeds(&format!("ip link add {device} {kind}")) {
                common::not_in_this_kernel(format_args!("{kind}: stacked interfaces"));
                return None;
            }
            devices.push(Device(device.clone()));
        }
        let probe = format!("ip link add hv{name} link {} type ipvlan mode l2 && ip link del hv{name}", layers.other);
        if !succeeds(&probe) || !succeeds("modprobe -qn 8021q || [ -e /proc/net/vlan ]") {
            common::not_in_this_kernel("ipvlan or VLAN: stacked interfaces");
            return None;
        }
        common::shell(&format!("ip link set {0} up; ip link set {1} up", layers.other, layers.bond));
        layers.nics.iter().for_each(|nic| layers.plug(nic));
        layers.tag();
        Some((layers, devices))
    }

    fn plug(&self, nic: &str) {
        common::shell(&format!(
            "ip link set {nic} down; ip link set {nic} master {0}; ip link set {nic} up",
            self.bond
        ));
    }

    fn tag(&self) {
        common::shell(&format!(
            "ip link set {0} up; ip link add link {0} name {1} type vlan id 3; ip link set {1} up",
            self.bond, self.vlan
        ));
    }

    /// Whether `ip` calls it up, with a carrier.
    fn witness(device: &str) -> f64 {
        let line = common::shell(&format!("ip -o link show dev {device}"));
        f64::from(line.contains("LOWER_UP"))
    }

    fn vlan_parents(&self) -> Vec<(&str, &'static str)> {
        let members = self.nics.iter().map(|nic| (nic.as_str(), "bond_member"));
        let above = [(&*self.bond, "bond"), (&*self.bond, "vlan_parent"), (&*self.vlan, "vlan")];
        above.into_iter().chain(members).collect()
    }
}

/// An interface of this kind on a device, in a namespace as eth0.
fn attach(namespace: &Namespace, device: &str, kind: &str) {
    let passing = format!("m{}", common::unique());
    common::shell(&format!(
        "ip link add {passing} link {device} type {kind}; ip link set {passing} netns {0} name eth0; \
         ip -n {0} link set eth0 up",
        namespace.0
    ));
}

fn up(samples: &Samples, device: &str, kind: &str) -> Option<f64> {
    samples.value(&PARENT_UP, &[device, kind])
}

/// Waits until the kernel has settled what is up, and compares.
fn as_ip_says(lab: &Lab, collector: &PodInterface, of: &[(&str, &str)], expected: f64) -> Samples {
    let devices: std::collections::BTreeSet<&str> = of.iter().map(|(device, _)| *device).collect();
    let there = |device: &&&str| succeeds(&format!("ip link show dev {device}"));
    common::eventually(&format!("{devices:?} are {expected}"), || {
        devices.iter().filter(there).all(|device| Layers::witness(device) == expected)
    });
    let samples = lab.well(collector);
    for (device, kind) in of {
        assert_eq!(up(&samples, device, kind), Some(expected), "{device} {kind}");
    }
    samples
}

#[test]
fn a_driver_upgrade_below_bond_and_vlan() {
    alone!();
    let Some(lab) = Lab::open() else { return };
    let Some((layers, devices)) = Layers::new() else { return };
    let collector = collector(NOW);
    let (on_vlan, on_other) = (Namespace::new(), Namespace::new());
    attach(&on_vlan, &layers.vlan, "macvlan mode bridge");
    attach(&on_other, &layers.other, "ipvlan mode l2");
    // Of each pod the pause container and the application.
    let processes = [&on_vlan, &on_vlan, &on_other, &on_other].map(|namespace| Process::inside(&namespace.0));
    for (number, process) in (0..).zip(&processes) {
        lab.container(1 + number / 2, number, process);
    }
    let (first, second) = (&processes[0], &processes[2]);
    let well = [layers.vlan_parents(), vec![(&*layers.vlan, "macvlan_parent")]].concat();
    let samples = as_ip_says(&lab, &collector, &well, 1.0);
    assert_eq!(numbers(&samples), [2.0, 0.0, 0.0]);
    // Also where sysfs does not say what is in the pod: before Linux 6.2.
    let parent_of_ipvlan = |samples: &Samples| up(samples, &layers.other, "ipvlan_parent");
    assert_eq!(parent_of_ipvlan(&samples), Some(1.0));
    assert_eq!(up(&samples, &layers.other, "macvlan_parent"), None);
    let lost_before = samples.value(&LOST_TOTAL, &["host"]).unwrap();

    // The driver is unloaded: both NICs go, the bond stays, without a carrier. So do those above it.
    layers.nics.iter().for_each(|nic| drop(common::shell(&format!("ip link del {nic}"))));
    let samples = as_ip_says(&lab, &collector, &well, 0.0);
    assert_eq!(samples.value(&LOST_TOTAL, &["host"]), Some(lost_before + 2.0), "two NICs");
    assert_eq!(numbers(&samples), [2.0, 0.0, 0.0], "each pod still has its interface");
    assert_eq!(parent_of_ipvlan(&samples), Some(1.0), "another NIC");

    // The network is configured anew: bond and VLAN go, and with them what the pod has.
    common::shell(&format!("ip link del {}", layers.bond));
    assert_eq!((on_vlan.interfaces(), first.interfaces()), (vec!["lo".to_owned()], vec!["lo".to_owned()]));
    let samples = lab.well(&collector);
    assert_eq!(numbers(&samples), [2.0, 1.0, 1.0]);
    assert_eq!(samples.value(&LOST, &["", "", &Lab::uid(1), "eth0"]), Some(1.0));
    assert_eq!(samples.value(&LOST_TOTAL, &["host"]), Some(lost_before + 4.0), "bond and VLAN too");
    for (device, kind) in &well {
        assert_eq!(up(&samples, device, kind), Some(0.0), "{device} {kind} is gone");
    }

    // All is made again, under the same names; the pod is not.
    common::shell(&format!("ip link add {} type bond mode active-backup miimon 20", layers.bond));
    for nic in &layers.nics {
        common::shell(&format!("ip link add {nic} type dummy"));
        layers.plug(nic);
    }
    layers.tag();
    let samples = as_ip_says(&lab, &collector, &layers.vlan_parents(), 1.0);
    assert_eq!(numbers(&samples), [2.0, 1.0, 1.0], "the pod has none until it is made again");
    attach(&on_vlan, &layers.vlan, "macvlan mode bridge");
    let samples = as_ip_says(&lab, &collector, &well, 1.0);
    assert_eq!(numbers(&samples), [2.0, 0.0, 1.0]);

    // The other NIC goes, and its ipvlan with it.
    common::shell(&format!("ip link del {}", layers.other));
    assert_eq!(second.interfaces(), ["lo"]);
    let samples = lab.well(&collector);
    assert_eq!(numbers(&samples), [2.0, 1.0, 2.0]);
    assert_eq!(parent_of_ipvlan(&samples), Some(0.0));
    drop(devices);
}

/// As the VPC CNI of EKS makes one for each pod with security groups of its own. One that the machine uses is another
/// thing.
#[test]
fn vlans_that_come_and_go_with_pods() {
    alone!();
    let Some(lab) = Lab::open() else { return };
    let nic = format!("hn{}", common::unique());
    if !succeeds(&format!("ip link add {nic} type dummy && ip link set {nic} up")) {
        return common::not_in_this_kernel("dummy: VLANs of pods");
    }
    let _device = Device(nic.clone());
    if !succeeds(&format!("ip link add link {nic} name {nic}.9 type vlan id 9 && ip link del {nic}.9")) {
        return common::not_in_this_kernel("VLAN: VLANs of pods");
    }
    let collector = collector(NOW);
    let lost = |samples: &Samples| samples.value(&LOST_TOTAL, &["host"]).unwrap();
    let before = lost(&lab.well(&collector));
    let vlans: Vec<String> = (1..=10).map(|id| format!("{nic}.{id}")).collect();
    for round in 0..10 {
        let add = |(id, vlan): (usize, &String)| {
            common::shell(&format!("ip link add link {nic} name {vlan} type vlan id {}; ip link set {vlan} up", id + 1))
        };
        vlans.iter().enumerate().map(add).for_each(drop);
        for _ in 0..2 {
            let samples = lab.well(&collector);
            assert_eq!(up(&samples, &vlans[3], "vlan"), Some(1.0), "round {round}");
        }
        vlans.iter().for_each(|vlan| drop(common::shell(&format!("ip link del {vlan}"))));
        let samples = lab.well(&collector);
        assert_eq!(lost(&samples), before, "round {round}");
        for vlan in &vlans {
            assert_eq!(up(&samples, vlan, "vlan"), None, "{vlan}, round {round}");
        }
    }

    let used = format!("{nic}.50");
    common::shell(&format!(
        "ip link add link {nic} name {used} type vlan id 50; ip addr add 192.0.2.7/24 dev {used}; ip link set {used} up"
    ));
    assert_eq!(up(&lab.well(&collector), &used, "vlan"), Some(1.0));
    common::shell(&format!("ip link del {used}"));
    let samples = lab.well(&collector);
    assert_eq!((up(&samples, &used, "vlan"), lost(&samples)), (Some(0.0), before + 1.0));
}

/// A container whose first process is runc's still: in the pod's namespaces, and before `pivot_root` with the machine's
/// root. A hook that does not return keeps it there.
struct Unfinished {
    bundle: tempfile::TempDir,
    name: String,
    runc: std::process::Child,
}

impl Unfinished {
    fn of(namespace: &Namespace) -> Self {
        let bundle = tempfile::tempdir().unwrap();
        let (folder, name) = (bundle.path().display().to_string(), format!("headroom-{}", common::unique()));
        common::shell(&format!("cd {folder} && mkdir rootfs && runc spec"));
        let file = bundle.path().join("config.json");
        let mut spec: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        spec["process"]["terminal"] = false.into();
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        let network = namespaces.iter_mut().find(|one| one["type"] == "network").unwrap();
        network["path"] = format!("/var/run/netns/{}", namespace.0).into();
        let hook = format!("cat > {folder}/state.new; mv {folder}/state.new {folder}/state; exec sleep 600");
        spec["hooks"] = serde_json::json!({"prestart": [{"path": "/bin/sh", "args": ["sh", "-c", hook]}]});
        std::fs::write(&file, spec.to_string()).unwrap();
        let mut command = std::process::Command::new("runc");
        command.args(["--root", &format!("{folder}/runc"), "create", "--bundle", &folder, &name]);
        // It says that its hook was killed, in the end.
        command.stderr(std::process::Stdio::null());
        let unfinished = Unfinished { runc: command.spawn().unwrap(), bundle, name };
        common::eventually("runc calls its hook", || unfinished.bundle.path().join("state").exists());
        unfinished
    }

    /// Of its first process, as runc tells the hook.
    fn pid(&self) -> u32 {
        let state = std::fs::read(self.bundle.path().join("state")).unwrap();
        let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
        state["pid"].as_u64().unwrap().try_into().unwrap()
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let folder = self.bundle.path().display().to_string();
        succeeds(&format!("pkill -KILL -P {}; kill -KILL {}", self.runc.id(), self.pid()));
        let _ = self.runc.wait();
        succeeds(&format!("runc --root {folder}/runc delete --force {}", self.name));
    }
}

/// A sysfs shows the interfaces of the network namespace that it was mounted in; the cgroups go with it.
const SYSFS_OF_THIS_NETWORK: &str = "cgroups=$(mktemp -d) && mount --rbind /sys/fs/cgroup $cgroups && \
     mount -t sysfs sysfs /sys && mount --rbind $cgroups /sys/fs/cgroup && umount -l $cgroups && rmdir $cgroups";

/// What such a process sees in `/sys` are the machine's interfaces, and none of them is on a pod's. A pair with both
/// ends on the machine, as Cilium has one, would be taken for parents, and its end for a loss.
#[test]
fn a_container_that_runc_still_makes_names_no_parents() {
    alone!();
    if !common::is_root() || !common::has("runc") {
        skip!("not root, or no runc here (Debian: runc)");
    }
    common::shell(SYSFS_OF_THIS_NETWORK);
    let Some(lab) = Lab::open() else { return };
    // What the lab has of a sysfs are cgroups only.
    std::os::unix::fs::symlink("/sys/class", lab.sys().join("class")).unwrap();
    let collector = collector(NOW);
    let (namespace, pair) = (Namespace::new(), Device::pair(&format!("hc{}", common::unique())));
    let other_end = pair.other_end();
    let veth = Device::pair(&format!("hv{}", common::unique()));
    common::shell(&format!("ip link set {} netns {} name eth0", veth.other_end(), namespace.0));
    let pause = Process::inside(&namespace.0);
    lab.container(1, 1, &pause);
    let unfinished = Unfinished::of(&namespace);
    lab.process(1, 2, unfinished.pid());
    let root = std::path::PathBuf::from(format!("/proc/{}/root", unfinished.pid()));
    assert!(root.join("sys/class/net").join(&pair.0).exists(), "it has the machine's root");

    let host = Host::new(Roots::default());
    let seen = host.iflinks(&[pause.pid(), unfinished.pid()], Deadline::after(Duration::from_secs(10)));
    assert_eq!(seen[0].as_ref().unwrap().len(), 1, "eth0 of the pod");
    assert_eq!(seen[1].as_ref().unwrap_err().reason(), Reason::Vanished);
    let mut exited = std::process::Command::new("true").spawn().unwrap();
    exited.wait().unwrap();
    let seen = host.iflinks(&[exited.id()], Deadline::after(Duration::from_secs(10)));
    assert_eq!(seen[0].as_ref().unwrap_err().reason(), Reason::Absent, "which tells it from the machine's /sys");

    let samples = lab.well(&collector);
    for device in [&pair.0, &other_end, &veth.0] {
        for kind in ["macvlan_parent", "ipvlan_parent"] {
            assert_eq!(up(&samples, device, kind), None, "{device} {kind}");
        }
    }
    let before = samples.value(&LOST_TOTAL, &["host"]);
    drop(pair);
    let samples = lab.well(&collector);
    assert_eq!((numbers(&samples), samples.value(&LOST_TOTAL, &["host"])), ([1.0, 0.0, 0.0], before));
}
