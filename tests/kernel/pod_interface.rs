//! The mode `pod_interface` on the running kernel: cgroups shaped like pods, processes in network namespaces, macvlans
//! on a parent that is deleted and made again; witnesses are `ip -n`, `nsenter` and `/proc/PID/ns/net`. Needs root,
//! iproute2, and v1 memory and cgroup2 mounts as on the CI machines, or v2 alone. The cgroups are the kernel's, in a
//! tree of each test's own, so tests do not see each other's pods.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use headroom::error::Reason;
use headroom::host::{Deadline, Host, Roots};
use headroom::metric::Samples;
use headroom::modes::pod_interface::{INTERFACES, LOST, LOST_TOTAL, PARENT_UP, PODS, PodInterface, Settings, WITHOUT};
use headroom::modes::{Collector as _, Context};
use headroom::runtime::{self, Runtime};
use headroom::services::Services;

use crate::common;
use crate::common::containerd::{self, Containerd};
use crate::common::hierarchies::{self, V1};
use crate::common::sleepers::{self, Process};

pub(crate) const NOW: Duration = Duration::ZERO;
const NEVER: Duration = Duration::from_secs(3600);

pub(crate) fn succeeds(script: &str) -> bool {
    Command::new("sh").args(["-c", script]).stderr(Stdio::null()).stdout(Stdio::null()).status().unwrap().success()
}

/// A machine whose sysfs has one kubepods tree: a directory of the kernel's cgroups, mounted where the machine's would
/// be.
pub(crate) struct Lab {
    cgroup: PathBuf,
    mount: PathBuf,
    sys: tempfile::TempDir,
    host: Host,
    slices: bool,
}

impl Lab {
    /// By the cgroupfs driver's names, on whichever hierarchy this machine has.
    pub(crate) fn open() -> Option<Self> {
        Self::of(*hierarchies::PURE_V2, false)
    }

    /// On v1 or v2, by the names of the cgroupfs or the systemd driver.
    pub(crate) fn of(unified: bool, slices: bool) -> Option<Self> {
        let skip = |what: &str| {
            common::say_skip(what);
            None
        };
        if !common::is_root() {
            return skip("not root: cannot make network namespaces");
        }
        if let Some(missing) = ["ip", "nsenter", "unshare"].into_iter().find(|program| !common::has(program)) {
            return skip(&format!("no {missing} here (Debian: iproute2, util-linux)"));
        }
        let root = if unified { hierarchies::v2() } else { V1 };
        if !Path::new(root).join("cgroup.procs").exists() {
            return skip(&format!("no {root}: needs v1 memory and a cgroup2 mount beside it"));
        }
        if !Host::new(Roots::default()).shares_network_namespace(1).unwrap() {
            return skip("this is not the network namespace of the first process");
        }
        let cgroup = Path::new(root).join(format!("headroom-podif-{}", common::unique()));
        fs::create_dir(&cgroup).unwrap();
        let sys = tempfile::tempdir().unwrap();
        fs::set_permissions(sys.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let base = sys.path().join("fs/cgroup");
        let (top, files) = if unified {
            (base, &["cgroup.controllers", "cgroup.subtree_control"][..])
        } else {
            (base.join("memory"), &["notify_on_release", "release_agent"][..])
        };
        let mount = top.join(if slices { "kubepods.slice" } else { "kubepods" });
        fs::create_dir_all(&mount).unwrap();
        files.iter().for_each(|file| fs::write(top.join(file), "memory pids\n").unwrap());
        let host = Host::new(Roots { sys: sys.path().to_owned(), ..Roots::default() });
        let lab = Lab { cgroup, mount, sys, host, slices };
        common::shell(&format!("mount --bind {} {}", lab.cgroup.display(), lab.mount.display()));
        Some(lab)
    }

    pub(crate) fn uid(pod: u32) -> String {
        format!("11111111-0000-4000-8000-{pod:012}")
    }

    /// Puts a process into a container of a pod.
    pub(crate) fn container(&self, pod: u32, container: u32, process: &Process) {
        self.process(pod, container, process.pid());
    }

    pub(crate) fn process(&self, pod: u32, container: u32, pid: u32) {
        let directory = self.directory(pod, container);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    /// The cgroup of a container.
    pub(crate) fn directory(&self, pod: u32, container: u32) -> PathBuf {
        let uid = Self::uid(pod);
        let (pod, container) = if self.slices {
            let slice = format!("kubepods-besteffort.slice/kubepods-besteffort-pod{}.slice", uid.replace('-', "_"));
            (slice, format!("cri-containerd-{container:064}.scope"))
        } else {
            (format!("besteffort/pod{uid}"), format!("{container:064}"))
        };
        self.mount.join(pod).join(container)
    }

    /// Its sysfs.
    pub(crate) fn sys(&self) -> &Path {
        self.sys.path()
    }

    fn remove_pod(&self, pod: u32) {
        let directory = self.mount.join(format!("besteffort/pod{}", Self::uid(pod)));
        common::eventually("the pod's cgroups are empty", || {
            remove(&directory);
            !directory.exists()
        });
    }

    fn scrape(&self, collector: &PodInterface) -> Samples {
        let context = Context::new(&self.host, Deadline::after(Duration::from_secs(60)));
        let mut samples = collector.collect(context).unwrap();
        samples.refuse_duplicates();
        samples
    }

    pub(crate) fn well(&self, collector: &PodInterface) -> Samples {
        let mut samples = self.scrape(collector);
        // With emulated processors the kernel holds its lock for network configuration for seconds now and then.
        let patient = |samples: &Samples| samples.errors().iter().all(|error| error.reason() == Reason::Timeout);
        for _ in 0..5 {
            if !common::vm::inside() || samples.errors().is_empty() || !patient(&samples) {
                break;
            }
            samples = self.scrape(collector);
        }
        assert_eq!(samples.errors(), []);
        samples
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        succeeds(&format!("umount -l {}", self.mount.display()));
        let patience = Instant::now() + Duration::from_secs(10);
        while self.cgroup.exists() && Instant::now() < patience {
            remove(&self.cgroup);
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.sys.path();
    }
}

pub(crate) fn remove(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(path);
}

/// A network namespace of ours, removed when dropped.
pub(crate) struct Namespace(pub(crate) String);

impl Namespace {
    pub(crate) fn new() -> Self {
        let namespace = Namespace(format!("hrpodif{}", common::unique()));
        common::shell(&format!("ip netns add {}", namespace.0));
        namespace
    }

    /// The names of its interfaces, as `ip` tells.
    pub(crate) fn interfaces(&self) -> Vec<String> {
        sleepers::interface_names(&common::shell(&format!("ip -n {} -o link", self.0)))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        succeeds(&format!("ip netns del {}", self.0));
    }
}

/// An interface of this machine, deleted when dropped; a veth takes its other end with it.
pub(crate) struct Device(pub(crate) String);

impl Device {
    /// A pair that is up, so that each end has a carrier.
    pub(crate) fn pair(name: &str) -> Self {
        common::shell(&format!("ip link add {name}a type veth peer name {name}b"));
        let device = Device(format!("{name}a"));
        common::shell(&format!("ip link set {name}a up; ip link set {name}b up"));
        device
    }

    pub(crate) fn other_end(&self) -> String {
        format!("{}b", self.0.strip_suffix('a').unwrap())
    }

    /// A macvlan on it, moved into a namespace.
    pub(crate) fn macvlan(&self, namespace: &Namespace, name: &str) {
        // Each under a name of its own on its way.
        let passing = format!("m{}", common::unique());
        common::shell(&format!(
            "ip link add {passing} link {} type macvlan mode bridge; ip link set {passing} netns {} name {name}; \
             ip -n {} link set {name} up",
            self.0, namespace.0, namespace.0
        ));
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        succeeds(&format!("ip link del {}", self.0));
    }
}

pub(crate) fn collector(grace: Duration) -> PodInterface {
    PodInterface::new(Settings { grace, ..Settings::default() }, &Services::with_runtime(Runtime::default()))
}

/// Looked at, without an interface, lost in pods.
pub(crate) fn numbers(samples: &Samples) -> [f64; 3] {
    let value = |metric, labels: &[&str]| samples.value(metric, labels).expect("it is there");
    [value(&PODS, &[]), value(&WITHOUT, &[]), value(&LOST_TOTAL, &["pod"])]
}

fn of_pods(samples: &Samples) -> usize {
    samples.rows().iter().filter(|row| row.metric.labels.contains(&"pod_uid")).count()
}

/// As a driver upgrade does it: the parent is deleted, the macvlans on it in pods go with it, and it is made again. By
/// both drivers' names.
#[test]
fn a_parent_is_deleted_and_made_again() {
    alone!();
    for unified in [false, true] {
        if !unified && !hierarchies::has_v1() {
            continue;
        }
        let Some(lab) = Lab::of(unified, unified) else { return };
        let collector = collector(NOW);
        let name = format!("hp{}", common::unique());
        let (first, second) = (Namespace::new(), Namespace::new());
        let parent = Device::pair(&name);
        parent.macvlan(&first, "eth0");
        let veth = Device::pair(&format!("hv{}", common::unique()));
        common::shell(&format!("ip link set {} netns {} name eth0", veth.other_end(), second.0));
        let processes = [
            (1, Process::inside(&first.0)),
            (1, Process::inside(&first.0)),
            (2, Process::inside(&second.0)),
            (2, Process::inside(&second.0)),
            (3, Process::on_the_host()),
            (3, Process::on_the_host()),
        ];
        for (number, (pod, process)) in processes.iter().enumerate() {
            lab.container(*pod, number as u32, process);
        }
        let (pod, uid) = (&processes[0].1, Lab::uid(1));
        let [here, there] = [&lab.host, &Host::new(Roots::default())].map(|host| {
            let namespace = |pid: u32| host.network_namespace_of(pid).unwrap();
            processes.iter().map(|(_, process)| namespace(process.pid()) == namespace(1)).collect::<Vec<_>>()
        });
        // Ours is the first process's, whose own link we need not be allowed to read.
        let link = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
        let ours = link(std::process::id());
        let witness: Vec<bool> = processes.iter().map(|(_, process)| link(process.pid()) == ours).collect();
        assert_eq!((&here, &there), (&witness, &witness), "the same as /proc/PID/ns/net says");

        for _ in 0..2 {
            let samples = lab.well(&collector);
            assert_eq!(numbers(&samples), [2.0, 0.0, 0.0], "the pod on the host's network is none of these");
            assert_eq!(of_pods(&samples), 0);
            assert_eq!(samples.value(&PARENT_UP, &[&parent.0, "macvlan_parent"]), Some(1.0));
            assert_eq!(samples.value(&PARENT_UP, &[&veth.0, "macvlan_parent"]), None, "the other end of a veth");
        }
        assert_eq!(pod.interfaces(), ["lo", "eth0"]);

        common::shell(&format!("ip link set {} down", parent.0));
        let samples = lab.well(&collector);
        assert_eq!(samples.value(&PARENT_UP, &[&parent.0, "macvlan_parent"]), Some(0.0), "down");
        let lost_before = samples.value(&LOST_TOTAL, &["host"]).unwrap();

        drop(parent);
        assert_eq!(first.interfaces(), ["lo"]);
        assert_eq!(pod.interfaces(), ["lo"]);
        let parent = format!("{name}a");
        for _ in 0..2 {
            let samples = lab.well(&collector);
            assert_eq!(numbers(&samples), [2.0, 1.0, 1.0], "at the first scrape, and counted once");
            assert_eq!(samples.value(&INTERFACES, &["", "", &uid]), Some(0.0));
            assert_eq!(samples.value(&LOST, &["", "", &uid, "eth0"]), Some(1.0));
            assert_eq!(samples.value(&PARENT_UP, &[&parent, "macvlan_parent"]), Some(0.0), "gone");
            assert!(samples.value(&LOST_TOTAL, &["host"]).unwrap() > lost_before);
        }

        let parent = Device::pair(&name);
        let samples = lab.well(&collector);
        assert_eq!(samples.value(&PARENT_UP, &[&parent.0, "macvlan_parent"]), None, "it is back, and carries nothing");
        assert_eq!(numbers(&samples), [2.0, 1.0, 1.0]);
        parent.macvlan(&first, "eth0");
        let samples = lab.well(&collector);
        assert_eq!(numbers(&samples), [2.0, 0.0, 1.0]);
        assert_eq!(of_pods(&samples), 0);
        assert_eq!(samples.value(&PARENT_UP, &[&parent.0, "macvlan_parent"]), Some(1.0));
        assert_eq!(pod.interfaces(), ["lo", "eth0"]);
    }
}

/// One end of a veth is deleted on the machine: what TESTBED's experiment did.
#[test]
fn a_pods_veth_is_deleted() {
    alone!();
    let Some(lab) = Lab::open() else { return };
    let collector = collector(NEVER);
    let namespace = Namespace::new();
    let veth = Device::pair(&format!("hv{}", common::unique()));
    common::shell(&format!("ip link set {} netns {} name eth0", veth.other_end(), namespace.0));
    let (pause, app) = (Process::inside(&namespace.0), Process::inside(&namespace.0));
    lab.container(1, 1, &pause);
    lab.container(1, 2, &app);
    assert_eq!(numbers(&lab.well(&collector)), [1.0, 0.0, 0.0]);
    drop(veth);
    assert_eq!(numbers(&lab.well(&collector)), [1.0, 1.0, 1.0], "no grace: a container runs");
}

#[test]
fn a_pause_container_without_an_interface_is_given_time() {
    alone!();
    let Some(lab) = Lab::open() else { return };
    let grace = Duration::from_secs(3);
    let collector = collector(grace);
    let (late, never) = (Namespace::new(), Namespace::new());
    let (first, second) = (Process::inside(&late.0), Process::inside(&never.0));
    lab.container(1, 1, &first);
    lab.container(2, 2, &second);
    let start = Instant::now();
    let samples = lab.well(&collector);
    if start.elapsed() < grace {
        assert_eq!(numbers(&samples), [2.0, 0.0, 0.0]);
    }
    common::shell(&format!("ip -n {} tuntap add eth0 mode tap", late.0));
    let mut samples = lab.well(&collector);
    common::eventually("the other one counts", || {
        samples = lab.well(&collector);
        numbers(&samples)[1] > 0.0
    });
    assert!(start.elapsed() >= grace, "{:?}", start.elapsed());
    assert_eq!(numbers(&samples), [2.0, 1.0, 0.0]);
    assert_eq!(samples.value(&INTERFACES, &["", "", &Lab::uid(2)]), Some(0.0));
}

/// Pods that come and go as runtimes make them and take them away: the network first or last. None is ever without an
/// interface.
#[test]
fn pods_that_come_and_go_lose_nothing() {
    alone!();
    const PODS_IN_ALL: u32 = 16;
    let Some(lab) = Lab::open() else { return };
    let collector = collector(NEVER);
    let failed = AtomicBool::new(false);
    let mut scrapes = 0;
    let mut most = 0.0_f64;
    std::thread::scope(|scope| {
        let churn = |parity: u32| {
            let (lab, failed) = (&lab, &failed);
            move || {
                for pod in (0..PODS_IN_ALL).filter(|pod| pod % 2 == parity) {
                    if failed.load(Ordering::Relaxed) {
                        return;
                    }
                    let namespace = Namespace::new();
                    let connect = || common::shell(&format!("ip -n {} tuntap add eth0 mode tap", namespace.0));
                    // cri-dockerd starts the pause container first, containerd connects first.
                    let early = pod % 4 < 2;
                    if early {
                        connect();
                    }
                    let pause = Process::inside(&namespace.0);
                    lab.container(pod, 1, &pause);
                    if !early {
                        connect();
                    }
                    let app = Process::inside(&namespace.0);
                    lab.container(pod, 2, &app);
                    drop(app);
                    // CRI-O takes the network away before the pause container.
                    if !early {
                        common::shell(&format!("ip -n {} link del eth0", namespace.0));
                    }
                    drop(pause);
                    lab.remove_pod(pod);
                }
            }
        };
        let churners = [scope.spawn(churn(0)), scope.spawn(churn(1))];
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            while !churners.iter().all(|churner| churner.is_finished()) {
                let samples = lab.well(&collector);
                // Before its first pod the tree is there and empty.
                let [pods, without, lost] = numbers(&samples);
                assert_eq!((without, lost), (0.0, 0.0), "after {scrapes} scrapes");
                (scrapes, most) = (scrapes + 1, most.max(pods));
            }
        }));
        if let Err(panic) = outcome {
            failed.store(true, Ordering::Relaxed);
            std::panic::resume_unwind(panic);
        }
    });
    assert!(scrapes > 20 && most >= 1.0, "the test saw nothing: {scrapes} scrapes, at most {most} pods");
}

/// Without any capability, the interfaces are known; what those of pods sit on is not, and that is said once.
#[test]
fn without_capabilities() {
    alone!();
    let Some(lab) = Lab::open() else { return };
    let pods: Vec<(Process, Process)> = (0..3).map(|_| (Process::alone(), Process::on_the_host())).collect();
    for (number, (own, hosts)) in (0..).zip(&pods) {
        lab.container(number, 2 * number, own);
        lab.container(100 + number, 2 * number + 1, hosts);
    }
    pods[0].0.connect();
    let samples = std::thread::scope(|scope| {
        let unprivileged = scope.spawn(|| {
            let nobody = rustix::process::Uid::from_raw(65534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            lab.scrape(&collector(NOW))
        });
        unprivileged.join().unwrap()
    });
    assert_eq!(numbers(&samples), [3.0, 2.0, 0.0]);
    assert!(samples.value(&LOST_TOTAL, &["host"]).is_some(), "rtnetlink needs nothing");
    let reasons: Vec<Reason> = samples.errors().iter().map(headroom::error::Error::reason).collect();
    assert_eq!(reasons, [Reason::Denied], "{:?}", samples.errors());
}

#[test]
fn vlans_and_bonds_where_the_kernel_has_them() {
    alone!();
    let Some(lab) = Lab::open() else { return };
    let collector = collector(NOW);
    let name = format!("hp{}", common::unique());
    let parent = Device::pair(&name);
    let vlan = format!("{}.3", parent.0);
    if succeeds(&format!("ip link add link {} name {vlan} type vlan id 3 && ip link set {vlan} up", parent.0)) {
        let _ = lab.well(&collector);
        let samples = lab.well(&collector);
        assert_eq!(samples.value(&PARENT_UP, &[&vlan, "vlan"]), Some(1.0));
        assert_eq!(samples.value(&PARENT_UP, &[&parent.0, "vlan_parent"]), Some(1.0));
        common::shell(&format!("ip link del {}", parent.0));
        let samples = lab.well(&collector);
        assert_eq!(samples.value(&PARENT_UP, &[&vlan, "vlan"]), Some(0.0));
        assert_eq!(samples.value(&PARENT_UP, &[&parent.0, "vlan_parent"]), Some(0.0));
    } else {
        common::not_in_this_kernel("VLAN interfaces: their loss is tested on made messages only");
    }
    let member = Device::pair(&format!("hb{}", common::unique()));
    let bond = Device(format!("hb{}", common::unique()));
    let made = succeeds(&format!("ip link add {} type bond mode active-backup", bond.0));
    if made {
        common::shell(&format!(
            "ip link set {m} down; ip link set {m} master {}; ip link set {m} up",
            bond.0,
            m = member.0
        ));
        let samples = lab.well(&collector);
        assert!(samples.value(&PARENT_UP, &[&bond.0, "bond"]).is_some());
        assert!(samples.value(&PARENT_UP, &[&member.0, "bond_member"]).is_some());
        common::shell(&format!("ip link del {}", bond.0));
        assert_eq!(lab.well(&collector).value(&PARENT_UP, &[&bond.0, "bond"]), Some(0.0));
    } else {
        common::not_in_this_kernel("bonds: their loss is tested on made messages only");
    }
}

/// Cgroups of a containerd, in every hierarchy. Dropped, they go.
struct Cgroups(String);

impl Drop for Cgroups {
    fn drop(&mut self) {
        containerd::remove_cgroups_named(&self.0);
    }
}

/// Beside a real containerd with a slow CNI plugin, and without grace: nothing that starts or ends is ever without an
/// interface; what loses it is told by name, with its container and without, until its sandbox ends.
#[test]
fn pods_of_a_real_containerd() {
    alone!();
    let Some(lab) = Lab::open() else { return };
    let cgroups = Cgroups(lab.cgroup.file_name().unwrap().to_str().unwrap().to_owned());
    let containerd = match Containerd::start_with_network(&format!("/{}/besteffort", cgroups.0)) {
        Ok(containerd) => containerd,
        Err(why) => skip!("{why}"),
    };
    let settings = runtime::Settings {
        endpoint: Some(containerd.endpoint()),
        fresh: Duration::from_millis(50),
        ..runtime::Settings::default()
    };
    let grace = Settings { grace: NOW, ..Settings::default() };
    let collector = PodInterface::new(grace, &Services::with_runtime(Runtime::new(settings)));
    let resident = containerd.run_sandbox("resident", &Lab::uid(0));
    let container = containerd.run_container(&resident, "sleep", &["sleep", "1000000"]);
    assert_eq!(numbers(&lab.well(&collector)), [1.0, 0.0, 0.0]);

    let (mut scrapes, mut most) = (0, 0.0_f64);
    std::thread::scope(|scope| {
        let churn = |first: u32| {
            let containerd = &containerd;
            move || {
                for number in first..first + 6 {
                    let pod = containerd.run_sandbox(&format!("churn{number}"), &Lab::uid(number));
                    containerd.run_container(&pod, "sleep", &["sleep", "1000000"]);
                    containerd.remove_sandbox(&pod.id).unwrap();
                }
            }
        };
        let churners = [scope.spawn(churn(1)), scope.spawn(churn(101))];
        while !churners.iter().all(|churner| churner.is_finished()) {
            let samples = lab.well(&collector);
            let [pods, without, lost] = numbers(&samples);
            assert_eq!((without, lost), (0.0, 0.0), "after {scrapes} scrapes");
            (scrapes, most) = (scrapes + 1, most.max(pods));
        }
    });
    assert!(scrapes > 20 && most >= 2.0, "the test saw nothing: {scrapes} scrapes, at most {most} pods");

    let processes = fs::read_dir(lab.mount.join(format!("besteffort/pod{}", Lab::uid(0)))).unwrap().flatten();
    let pid = processes.filter_map(|entry| fs::read_to_string(entry.path().join("cgroup.procs")).ok());
    let pid = pid.filter_map(|pids| pids.lines().next().map(str::to_owned)).next().unwrap();
    common::shell(&format!("nsenter -t {pid} -n ip link del eth0"));
    let labels = ["default", "resident", &Lab::uid(0)];
    let told = |what: &str| {
        let samples = lab.well(&collector);
        assert_eq!(numbers(&samples), [1.0, 1.0, 1.0], "{what}");
        assert_eq!(samples.value(&INTERFACES, &labels), Some(0.0), "{what}");
        assert_eq!(samples.value(&LOST, &[labels[0], labels[1], labels[2], "eth0"]), Some(1.0), "{what}");
    };
    told("at once");
    containerd.stop_container(&container).unwrap();
    told("only the pause container runs, and the sandbox is ready");
    containerd.stop_sandbox(&resident.id).unwrap();
    let samples = lab.well(&collector);
    assert_eq!(numbers(&samples), [0.0, 0.0, 1.0], "it ended");
    assert_eq!(of_pods(&samples), 0);
}

/// What a scrape of a full node costs, printed; it fails only if that is absurd. Some of it is done on other threads,
/// so the process's time counts, that of tests at its side included.
#[test]
fn a_full_node_is_cheap() {
    alone!();
    const PODS_ON_NODE: u32 = 110;
    let Some(lab) = Lab::open() else { return };
    let mut processes = Vec::new();
    for pod in 0..PODS_ON_NODE {
        let pause = Process::alone();
        pause.connect();
        let app = Process::beside(&pause);
        lab.container(pod, 2 * pod, &pause);
        lab.container(pod, 2 * pod + 1, &app);
        processes.push((pause, app));
    }
    let collector = collector(NOW);
    let cpu = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    let cost = |what: &str, expected: [f64; 2]| {
        let mut best = Duration::MAX;
        for _ in 0..20 {
            let before = cpu();
            let samples = lab.well(&collector);
            best = best.min(cpu() - before);
            assert_eq!(numbers(&samples)[..2], expected);
        }
        eprintln!("{PODS_ON_NODE} pods, {what}: {best:?} of CPU a scrape");
        assert!(best < Duration::from_secs(1), "{best:?}");
    };
    cost("all well", [110.0, 0.0]);
    for (pause, _) in &processes {
        common::shell(&format!("nsenter -t {} -n ip link del eth0", pause.pid()));
    }
    cost("none with an interface", [110.0, 110.0]);
}
