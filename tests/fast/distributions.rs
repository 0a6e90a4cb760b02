//! Kubelets as distributions run them: inside k3s or MicroK8s, rootless, and beside others that are not this node's.
//! The files are those that each distribution writes, by its sources; processes are files too.
#![allow(clippy::disallowed_methods, reason = "a test makes its machine of files")]

use std::time::Duration;

use headroom::host::Deadline;
use headroom::kubelet::handle;
use headroom::metric::Samples;
use headroom::modes::{Context, eviction};
use headroom::services::Services;

use crate::machine::Files;

const SERVICE: &str = "/system.slice/k.service";
const POD: &str = "/kubepods/burstable/pod11111111-2222-3333-4444-555555555555/x";
const DROPIN: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
                      evictionHard: {imagefs.available: 5%, nodefs.available: 5%}\n\
                      evictionMinimumReclaim: {imagefs.available: 10%, nodefs.available: 10%}\n";

struct Machine {
    files: Files,
}

impl Machine {
    fn new() -> Self {
        let machine = Machine { files: Files::new() };
        machine.write("proc/sys/kernel/hostname", "node-7\n");
        machine
    }

    fn write(&self, path: &str, text: &str) {
        self.files.write(path, text);
    }

    /// A process of this user, in this cgroup, with these pids from the machine's pid namespace inwards.
    fn process(&self, pids: &str, comm: &str, line: &str, uid: u32, cgroup: &str) {
        let pid = pids.split('\t').next().unwrap();
        let file = |name: &str, text: &str| self.write(&format!("proc/{pid}/{name}"), text);
        file("comm", &format!("{comm}\n"));
        file("stat", &format!("{pid} ({comm}) S 1 {}{pid} 0 0\n", "0 ".repeat(17)));
        file("cmdline", &(line.replace(' ', "\0") + "\0"));
        file("environ", "PATH=/bin\0SNAP_DATA=/var/snap/microk8s/7\0SNAP_COMMON=/var/snap/microk8s/common\0");
        let ids = format!("{uid}\t{uid}\t{uid}\t{uid}");
        file("status", &format!("Name:\t{comm}\nUid:\t{ids}\nGid:\t{ids}\nNSpid:\t{pids}\nNSpgid:\t{pids}\n"));
        file("cgroup", &format!("0::{cgroup}\n"));
    }

    fn page(&self, kubelet: handle::Settings) -> Samples {
        let host = self.files.host();
        let collector = (eviction::MODE.build)(&Default::default(), &Services::with_kubelet(kubelet));
        collector.collect(Context::new(&host, Deadline::after(Duration::from_secs(20)))).unwrap()
    }
}

/// Every threshold, as `signal value`, and where they come from.
fn told(page: &Samples) -> (Vec<String>, Vec<String>) {
    let of = |name: &str| page.rows().iter().filter(|row| row.metric.name.starts_with(name)).collect::<Vec<_>>();
    let thresholds = of("headroom_eviction_threshold_");
    let mut thresholds: Vec<String> = thresholds
        .iter()
        .filter(|row| !row.labels[0].starts_with("containerfs") && !row.metric.name.ends_with("_met"))
        .map(|row| format!("{} {}", row.labels[0], row.value))
        .collect();
    thresholds.sort();
    let sources = of("headroom_eviction_config_info").iter().map(|row| row.labels[0].to_string()).collect();
    (thresholds, sources)
}

fn errors(page: &Samples) -> String {
    page.errors().iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[test]
fn k3s_evicts_at_five_percent_of_its_disks_and_at_nothing_else() {
    for (comm, line) in [("k3s-agent", "/usr/local/bin/k3s agent"), ("k3s-server", "/usr/local/bin/k3s server")] {
        let machine = Machine::new();
        machine.process("900", comm, line, 0, "/system.slice/k3s.service");
        machine.write("root/var/lib/rancher/k3s/agent/kubelet.kubeconfig", "");
        machine.write("root/var/lib/rancher/k3s/agent/etc/kubelet.conf.d/00-k3s-defaults.conf", DROPIN);
        machine.write("root/var/lib/kubelet/x", "");
        let page = machine.page(handle::Settings::default());
        assert_eq!(errors(&page), "");
        // In the kubelet's arithmetic 5 % of 100 GiB are a little more.
        let (thresholds, sources) = told(&page);
        assert_eq!(thresholds, ["imagefs.available 5368709200", "nodefs.available 5368709200"]);
        assert_eq!(sources, ["dropin"]);
        // Once it evicts, it does so up to 15 %.
        for signal in ["imagefs.available", "nodefs.available", "containerfs.available"] {
            let reclaim = page.value(&eviction::MINIMUM_RECLAIM_BYTES, &[signal]);
            assert_eq!(reclaim, Some(10_737_418_400.0), "{signal}");
            assert_eq!(page.value(&eviction::THRESHOLD_MET, &[signal, "hard"]), Some(0.0), "{signal}");
        }
    }
}

#[test]
fn what_k3s_before_1_32_told_its_kubelet_nobody_knows() {
    let machine = Machine::new();
    machine.process("900", "k3s-agent", "/usr/local/bin/k3s agent", 0, "/system.slice/k3s.service");
    machine.write("root/var/lib/rancher/k3s/agent/kubelet.kubeconfig", "");
    let page = machine.page(handle::Settings::default());
    assert_eq!(told(&page), (Vec::new(), Vec::new()));
    assert!(errors(&page).contains("/var/lib/rancher/k3s/agent/etc/kubelet.conf.d"), "{}", errors(&page));
}

#[test]
fn microk8s_and_its_file_of_flags() {
    let machine = Machine::new();
    let line = "/snap/microk8s/7/kubelite --kubelet-args-file=/var/snap/microk8s/7/args/kubelet";
    machine.process("900", "kubelite", line, 0, "/system.slice/snap.microk8s.daemon-kubelite.service");
    machine.write(
        "root/var/snap/microk8s/7/args/kubelet",
        "--root-dir=${SNAP_COMMON}/var/lib/kubelet\n--eviction-hard=\"memory.available<100Mi,nodefs.available<1Gi\"\n",
    );
    machine.write("root/var/snap/microk8s/common/var/lib/kubelet/x", "");
    let page = machine.page(handle::Settings::default());
    assert_eq!(errors(&page), "");
    let (thresholds, sources) = told(&page);
    assert!(thresholds.contains(&format!("memory.available {}", 100 << 20)), "{thresholds:?}");
    assert!(thresholds.contains(&format!("nodefs.available {}", 1 << 30)), "{thresholds:?}");
    assert_eq!(sources, ["flag"]);
    // Without that file nothing is known, and the defaults would be a guess.
    std::fs::remove_file(machine.files.path("root/var/snap/microk8s/7/args/kubelet")).unwrap();
    let page = machine.page(handle::Settings::default());
    assert_eq!(told(&page), (Vec::new(), Vec::new()));
    assert!(errors(&page).contains("/var/snap/microk8s/7/args/kubelet"), "{}", errors(&page));
    // Nor is its root directory or its kubeconfig the usual one; and one that has stopped has not been told more.
    let host = machine.files.host();
    let kubelet = handle::Kubelet::default();
    let (deadline, running) = (Deadline::after(Duration::from_secs(20)), [Some(true), Some(false)]);
    for runs in running {
        let look = kubelet.look(&host, deadline, std::time::Instant::now()).unwrap();
        assert_eq!(look.runs(), runs);
        assert!(look.root_dir().is_err() && look.kubeconfig(&host, deadline).is_err());
        assert!(
            look.effective(&host, deadline).configuration.is_none() && look.effective(&host, deadline).drift.is_empty()
        );
        // A zombie: it has no arguments any more.
        machine.write("proc/900/cmdline", "");
        machine.write("proc/900/stat", "900 (kubelite) Z 1 1 1");
    }
}

#[test]
fn a_rootless_kubelet_is_the_nodes_if_we_are_told_so() {
    let machine = Machine::new();
    machine.process("900", "kubelet", "kubelet --config=/k.yaml", 1000, "/user.slice/user-1000.slice");
    machine.write("root/k.yaml", &DROPIN.replace("5%", "7%"));
    machine.write("root/var/lib/kubelet/x", "");
    let page = machine.page(handle::Settings::default());
    assert_eq!(told(&page), (Vec::new(), Vec::new()));
    assert!(errors(&page).contains("--kubelet.uid=1000"), "{}", errors(&page));
    let page = machine.page(handle::Settings { uid: 1000, ..handle::Settings::default() });
    assert_eq!((errors(&page).as_str(), told(&page).1), ("", vec!["file".to_owned()]));
}

/// Of a pod, or of a Kubernetes in a container, with a lower pid than the node's own.
#[test]
fn whoever_calls_itself_kubelet_elsewhere_changes_nothing() {
    let plain = |with_others: bool| {
        let machine = Machine::new();
        machine.process("900", "kubelet", "kubelet --config=/k.yaml", 0, SERVICE);
        machine.write("root/k.yaml", DROPIN);
        machine.write("root/evil.yaml", &DROPIN.replace("5%", "90%"));
        machine.write("root/var/lib/kubelet/x", "");
        if with_others {
            machine.process("100", "kubelet", "kubelet --config=/evil.yaml", 0, POD);
            machine.process("101\t1", "kubelet", "kubelet --config=/evil.yaml", 0, "/docker/x");
            machine.process("102", "kubelet", "kubelet --config=/evil.yaml", 65_534, SERVICE);
            machine.process("103\t7", "kubelite", "kubelite --kubelet-args-file=/evil", 0, POD);
            machine.process("104\t1", "etcd", "etcd", 0, POD);
        }
        machine.page(handle::Settings::default())
    };
    let (alone, beside) = (plain(false), plain(true));
    assert_eq!((told(&alone), errors(&alone)), (told(&beside), errors(&beside)));
    assert_eq!((alone.notes().len(), beside.notes().len()), (0, 4), "{:?}", beside.notes());
    assert!(beside.notes()[0].contains("pod 11111111-2222-3333-4444-555555555555"), "{:?}", beside.notes());
}
