//! The whole mode on recorded files: host-local's as Debian's binary wrote them, mount tables of the two recorded
//! nodes.

#![allow(clippy::disallowed_methods, reason = "a test makes its machine of files")]

use std::sync::Arc;

use super::*;
use crate::golden::inventory::recorded;
use crate::host::Deadline;
use crate::host::cgroup::recorded::Machine;
use crate::runtime::{Inventory, SandboxNetwork};
use crate::tests::fixtures;

const NODE: &str = "k8s-1.36-cgroupv2";
const V4: [&str; 2] = ["kindnet", "10.244.1.1-10.244.1.6"];
const V6: [&str; 2] = ["kindnet", "fd00:10:244:1::1-fd00:10:244:1:ffff:ffff:ffff:ffff"];

/// The recorded node, with what host-local wrote.
fn machine() -> Machine {
    let machine = Machine::v2();
    copy(&fixtures().join("cni_leak/host-local"), &machine.path().join("root"));
    let table = std::fs::read_to_string(fixtures().join("node").join(NODE).join("proc/host/mountinfo.txt")).unwrap();
    machine.proc("1/mountinfo", &table);
    machine.proc("sys/fs/mount-max", "100000\n");
    machine
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to),
            false => _ = std::fs::copy(entry.path(), to).unwrap(),
        }
    }
}

fn mode(runtime: Runtime) -> CniLeak {
    CniLeak::new(Settings::default(), &Services::with_runtime(runtime))
}

fn collect(mode: &CniLeak, machine: &Machine) -> Samples {
    let mut samples = mode.collect(Context::new(&machine.host, Deadline::after(Duration::from_secs(30)))).unwrap();
    samples.refuse_duplicates();
    samples
}

fn reasons(samples: &Samples) -> Vec<Reason> {
    samples.errors().iter().map(Error::reason).collect()
}

/// Makes all that the mode knows older: as if it had been scraped long before, with the same answers.
fn age(mode: &CniLeak, machine: &Machine, inventory: &Inventory) {
    let memory = &mut *mode.memory.lock().unwrap();
    let tables = memory.mounts.read(&machine.host, None, "/var/lib/kubelet".as_ref(), soon(), &mut Samples::new());
    let known = Known::new(inventory);
    let unknown = |memory: &Memory| -> Vec<Key> {
        let keys = assess::keys(&memory.disk, &tables, &memory.networks);
        keys.filter(|key| !assess::is_known(key, &known)).collect()
    };
    let now = Instant::now();
    for minutes in [30, 20, 10] {
        let at = now.checked_sub(Duration::from_secs(minutes * 60)).unwrap();
        let span = Span { began: at, ended: at };
        let unknown = unknown(memory);
        memory.strangers.update(unknown.into_iter(), span, span, true);
        let poll = Poll { inventory: Arc::new(inventory.clone()), began: at, ended: at, server: None };
        let _ = memory.namespaces.update(tables.machine().unwrap(), Some(&poll), span);
        let _ = memory.shims.update(&machine.host, Some((&poll, &known)), span);
    }
}

fn forget(mode: &CniLeak) {
    let memory = &mut *mode.memory.lock().unwrap();
    (memory.strangers, memory.namespaces, memory.shims.strangers) = Default::default();
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(30))
}

/// A mode that has seen this machine with this runtime for half an hour.
fn old(inventory: Inventory, machine: &Machine) -> (CniLeak, Samples) {
    let mode = mode(Runtime::fixed(Ok(inventory.clone())));
    collect(&mode, machine);
    forget(&mode);
    age(&mode, machine, &inventory);
    let samples = collect(&mode, machine);
    (mode, samples)
}

#[test]
fn addresses_of_a_recorded_node() {
    let machine = machine();
    let (_, samples) = old(recorded(NODE), &machine);
    assert_eq!(reasons(&samples), []);
    assert_eq!(samples.value(&NETWORK_INFO, &["kindnet", "host-local"]), Some(1.0));
    for set in [V4, V6] {
        assert_eq!(samples.value(&USED, &set), Some(3.0), "{set:?}");
        assert_eq!(samples.value(&LEAKED, &set), Some(1.0), "{set:?}: of the sandbox that nobody has");
    }
    // /29: eight addresses, without network, broadcast and gateway.
    assert_eq!(samples.value(&FREE, &V4), Some(2.0));
    assert_eq!(samples.value(&FREE, &V6), Some(((1_u128 << 64) - 2 - 3) as f64));
    assert_eq!(samples.value(&USED, &["kindnet", ""]), None, "none lies outside");
    assert_eq!(samples.value(&NAMED_NAMESPACES, &[]), None, "no such directory");
}

#[test]
fn what_has_only_just_been_seen_is_no_leak() {
    let machine = machine();
    let mode = mode(Runtime::fixed(Ok(recorded(NODE))));
    for _ in 0..3 {
        let samples = collect(&mode, &machine);
        assert_eq!((samples.value(&USED, &V4), samples.value(&LEAKED, &V4)), (Some(3.0), Some(0.0)));
    }
}

#[test]
fn a_reservation_is_another_once_its_sandbox_is() {
    let machine = machine();
    let (mode, _) = old(recorded(NODE), &machine);
    let file = machine.path().join("root/run/cni-ipam-state/kindnet/10.244.1.4");
    assert!(std::fs::read_to_string(&file).unwrap().starts_with("000"));
    std::fs::remove_file(&file).unwrap();
    let samples = collect(&mode, &machine);
    assert_eq!((samples.value(&USED, &V4), samples.value(&LEAKED, &V4)), (Some(2.0), Some(0.0)));
    std::fs::write(&file, format!("{}\r\neth0", "1".repeat(64))).unwrap();
    let samples = collect(&mode, &machine);
    assert_eq!((samples.value(&USED, &V4), samples.value(&LEAKED, &V4)), (Some(3.0), Some(0.0)), "a new one");
}

#[test]
fn outside_the_range_and_of_other_programs() {
    let machine = machine();
    let at = |path: &str| {
        let path = machine.path().join("root").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    };
    let id = "a".repeat(64);
    for (name, text) in [
        ("10.9.9.9", format!("{id}\r\neth0")),
        ("10.244.1.1", format!("{id}\r\neth0")),
        ("10.244.1.5", String::new()),
        ("10.244.1.6", format!("k8s.io-{id}\r\neth0")),
        ("not-an-address", id.clone()),
    ] {
        std::fs::write(at(&format!("run/cni-ipam-state/kindnet/{name}")), text).unwrap();
    }
    std::fs::write(at("var/lib/cni/networks/podman/10.88.0.2"), format!("{id}\neth0")).unwrap();
    std::fs::write(at("var/lib/cni/networks/kindnet/10.244.1.2"), format!("{id}\neth0")).unwrap();
    let (_, samples) = old(recorded(NODE), &machine);
    assert_eq!((samples.value(&USED, &V4), samples.value(&FREE, &V4)), (Some(5.0), Some(0.0)));
    assert_eq!(samples.value(&LEAKED, &V4), Some(2.0), "one of nobody, one without an id; nerdctl's is not ours");
    assert_eq!(samples.value(&USED, &["kindnet", ""]), Some(2.0), "the gateway's is one that host-local never gives");
    assert_eq!(samples.value(&LEAKED, &["kindnet", ""]), Some(2.0));
    assert_eq!(samples.value(&USED, &["podman", ""]), Some(1.0));
    assert_eq!(samples.value(&LEAKED, &["podman", ""]), None, "no pod was ever seen in it");
    assert_eq!(reasons(&samples), []);
}

#[test]
fn without_a_runtime_or_with_a_silent_one_nothing_is_leaked() {
    let machine = machine();
    let samples = collect(&mode(Runtime::default()), &machine);
    assert_eq!(reasons(&samples), []);
    assert_eq!((samples.value(&USED, &V4), samples.value(&LEAKED, &V4)), (Some(3.0), None));
    let silent = || Runtime::fixed(Err(Error::new(Reason::Timeout, "no answer")));
    let samples = collect(&mode(silent()), &machine);
    assert_eq!(reasons(&samples), [Reason::Timeout]);
    assert_eq!((samples.value(&FREE, &V4), samples.value(&LEAKED, &V4)), (Some(2.0), None));
    assert_eq!(samples.value(&ORPHANED_MOUNTS, &["machine", "pods"]), None);
    let (mut mode, before) = old(recorded(NODE), &machine);
    assert_eq!(before.value(&LEAKED, &V4), Some(1.0));
    mode.runtime = silent();
    assert_eq!(collect(&mode, &machine).value(&LEAKED, &V4), None);
    mode.runtime = Runtime::fixed(Ok(recorded(NODE)));
    assert_eq!(collect(&mode, &machine).value(&LEAKED, &V4), Some(1.0), "nothing was forgotten");
}

#[test]
fn a_runtime_that_runs_none_of_the_pods_is_somebody_elses() {
    let machine = machine();
    let nobody = Inventory { containers: Vec::new(), sandboxes: Vec::new(), ..recorded(NODE) };
    let (mode, samples) = old(nobody, &machine);
    assert_eq!((reasons(&samples), samples.value(&LEAKED, &V4)), (vec![], None), "they may be about to be listed");
    *mode.memory.lock().unwrap().elsewhere.as_mut().unwrap() -= SETTLE * 2;
    let samples = collect(&mode, &machine);
    assert_eq!(reasons(&samples), [Reason::Malformed]);
    assert_eq!((samples.value(&USED, &V4), samples.value(&LEAKED, &V4)), (Some(3.0), None));
    // On a node whose cgroups say that nothing runs it is the truth.
    let idle = Machine::empty();
    copy(&fixtures().join("cni_leak/host-local"), &idle.path().join("root"));
    idle.proc("1/mountinfo", "");
    let nobody = Inventory { containers: Vec::new(), sandboxes: Vec::new(), ..recorded(NODE) };
    let (_, samples) = old(nobody, &idle);
    assert_eq!((reasons(&samples), samples.value(&LEAKED, &V4)), (vec![], Some(3.0)));
}

/// Counted with grep and awk in the recorded tables.
#[test]
fn mounts_of_the_recorded_node() {
    let machine = machine();
    let (_, samples) = old(recorded(NODE), &machine);
    let of = |group| samples.value(&MOUNTS, &["machine", group]);
    let groups = ["pods", "plugins", "overlay", "shm", "nsfs", "cgroup", "other"];
    assert_eq!(groups.iter().map(|group| of(group).unwrap()).sum::<f64>(), 79.0);
    assert_eq!(
        (of("overlay"), of("nsfs"), of("cgroup"), of("plugins")),
        (Some(22.0), Some(10.0), Some(1.0), Some(0.0))
    );
    assert_eq!(samples.value(&MOUNTS_LIMIT, &[]), Some(100_000.0));
    for group in ["pods", "overlay", "shm"] {
        assert_eq!(samples.value(&ORPHANED_MOUNTS, &["machine", group]), Some(0.0), "{group}: all are somebody's");
    }
    assert_eq!(samples.value(&MOUNTS, &["exporter", "pods"]), None, "it is recorded from outside");
}

#[test]
fn mounts_of_a_pod_that_is_gone() {
    let machine = machine();
    let mut inventory = recorded(NODE);
    let gone = "dffe967d-a11f-417e-8310-08020db089c7";
    let (_, before) = old(inventory.clone(), &machine);
    let sandbox = inventory.sandboxes.iter().position(|sandbox| sandbox.pod.uid == gone).unwrap();
    inventory.sandboxes.remove(sandbox);
    inventory.containers.retain(|container| container.pod.uid != gone);
    let (_, samples) = old(inventory, &machine);
    let of = |group| samples.value(&ORPHANED_MOUNTS, &["machine", group]).unwrap();
    let of_table = |what: &str| {
        let table = std::fs::read_to_string(machine.path().join("proc/1/mountinfo")).unwrap();
        table.lines().filter(|line| line.contains(what)).count() as f64
    };
    assert_eq!(of("pods"), of_table(gone));
    assert!(
        of("pods") >= 2.0 && of("overlay") >= 2.0 && of("shm") == 1.0,
        "its volumes, containers and pause container"
    );
    assert_eq!(before.value(&MOUNTS, &["machine", "pods"]), samples.value(&MOUNTS, &["machine", "pods"]));
}

#[test]
fn a_machine_without_anything_says_so() {
    let machine = Machine::empty();
    let mode = mode(Runtime::default());
    let context = Context::new(&machine.host, soon());
    let error = mode.collect(context);
    assert!(error.is_err_and(|error| error.reason() == Reason::Absent));
}

#[test]
fn the_runtime_answers_what_it_is_asked_each_time() {
    let machine = machine();
    let asked = Arc::new(Mutex::new(0));
    let count = Arc::clone(&asked);
    let runtime = Runtime::answering(move || {
        *count.lock().unwrap() += 1;
        Ok(Arc::new(recorded(NODE)))
    });
    let mode = mode(runtime);
    collect(&mode, &machine);
    collect(&mode, &machine);
    assert_eq!(*asked.lock().unwrap(), 2);
}

/// The recorded node's sandboxes with their network namespaces: of three it was recorded what containerd said; of the
/// others, the namespaces that are left, in no order.
fn told() -> Inventory {
    let mut inventory = recorded(NODE);
    let recording = fixtures().join("cni_leak").join(NODE).join("PodSandboxStatus-verbose.json");
    let recording: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(recording).unwrap()).unwrap();
    let table = std::fs::read_to_string(fixtures().join("node").join(NODE).join("proc/host/mountinfo.txt")).unwrap();
    let named = |name: &str| SandboxNetwork::Named(format!("/var/run/netns/{name}"));
    let mut rest: Vec<&str> = table.split_whitespace().filter_map(|word| word.strip_prefix("/run/netns/")).collect();
    assert_eq!(rest.len(), 10);
    for sandbox in &mut inventory.sandboxes {
        let status = recording.as_array().unwrap().iter().find(|one| one["status"]["id"] == sandbox.id.as_str());
        sandbox.network = match status {
            Some(status) => {
                let info: serde_json::Value = serde_json::from_str(status["info"]["info"].as_str().unwrap()).unwrap();
                let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().unwrap().clone();
                let network = namespaces.iter().find(|one| one["type"] == "network");
                let name = network.map(|one| one["path"].as_str().unwrap().rsplit('/').next().unwrap().to_owned());
                rest.retain(|left| Some(*left) != name.as_deref());
                name.map_or(SandboxNetwork::Unnamed, |name| named(&name))
            }
            None => SandboxNetwork::Unasked,
        };
    }
    let of_others = inventory.sandboxes.iter_mut().filter(|sandbox| sandbox.network == SandboxNetwork::Unasked);
    of_others.for_each(|sandbox| sandbox.network = named(rest.pop().unwrap()));
    assert!(rest.is_empty(), "{rest:?}");
    inventory
}

/// Its sandbox in the cluster's recording, and the number of the namespace that it has.
const SLEEPS: (&str, u64) = ("cc02f1dcf41aa5c17900ef6194a5fd6bbbdf78b338eef03c1e346b8e678bc414", 4_026_532_675);

#[test]
fn a_network_namespace_that_no_sandbox_has() {
    let machine = machine();
    let orphaned = |samples: &Samples| samples.value(&ORPHANED_NAMESPACES, &[]);
    let (_, samples) = old(told(), &machine);
    assert_eq!((reasons(&samples), orphaned(&samples)), (vec![], Some(0.0)), "each has its sandbox");

    let mut gone = told();
    gone.sandboxes.retain(|sandbox| sandbox.id != SLEEPS.0);
    let (mode, samples) = old(gone.clone(), &machine);
    assert_eq!((reasons(&samples), orphaned(&samples)), (vec![], Some(1.0)));
    // What others name, and what lies elsewhere, is not ours to judge.
    let table = machine.path().join("proc/1/mountinfo");
    let mut text = std::fs::read_to_string(&table).unwrap();
    text += "900 26 0:4 net:[4026539999] /run/netns/blue rw shared:300 - nsfs nsfs rw\n";
    text += "901 26 0:4 net:[4026539998] /run/docker/netns/1a2b3c4d5e6f rw shared:301 - nsfs nsfs rw\n";
    std::fs::write(&table, text).unwrap();
    let (_, samples) = old(gone.clone(), &machine);
    assert_eq!(orphaned(&samples), Some(1.0));

    // Another runtime's pod: somebody is in it.
    let process = machine.path().join("proc/4711/ns");
    std::fs::create_dir_all(&process).unwrap();
    std::os::unix::fs::symlink(format!("net:[{}]", SLEEPS.1), process.join("net")).unwrap();
    let (_, samples) = old(gone.clone(), &machine);
    assert_eq!((reasons(&samples), orphaned(&samples)), (vec![], Some(0.0)));
    assert_eq!(orphaned(&collect(&mode, &machine)), Some(1.0), "who looked a moment ago does not look again");
    std::fs::remove_dir_all(machine.path().join("proc/4711")).unwrap();

    // A stopped sandbox has it until it is removed.
    let mut stopped = told();
    stopped.sandboxes.iter_mut().find(|sandbox| sandbox.id == SLEEPS.0).unwrap().ready = false;
    assert_eq!(orphaned(&old(stopped, &machine).1), Some(0.0));
    assert_eq!(orphaned(&collect(&self::mode(Runtime::fixed(Ok(gone))), &machine)), Some(0.0), "not at first sight");
}

#[test]
fn while_the_runtime_does_not_say_whose_a_namespace_is_it_is_nobodys_business() {
    let machine = machine();
    let orphaned = |samples: &Samples| samples.value(&ORPHANED_NAMESPACES, &[]);
    let mut gone = told();
    gone.sandboxes.retain(|sandbox| sandbox.id != SLEEPS.0);
    let (mut mode, samples) = old(gone.clone(), &machine);
    assert_eq!(orphaned(&samples), Some(1.0));
    let failed = Error::new(Reason::Io, "as the test wants");
    for (network, expected) in [
        (SandboxNetwork::Unasked, vec![]),
        (SandboxNetwork::Untold, vec![]),
        (SandboxNetwork::Failed(failed), vec![Reason::Io]),
    ] {
        let mut inventory = gone.clone();
        inventory.sandboxes[0].network = network;
        mode.runtime = Runtime::fixed(Ok(inventory));
        let samples = collect(&mode, &machine);
        assert_eq!((reasons(&samples), orphaned(&samples)), (expected, None));
        assert_eq!(samples.value(&LEAKED, &V4), Some(1.0), "addresses and mounts do not hang on it");
    }
    mode.runtime = Runtime::fixed(Ok(gone));
    assert_eq!(orphaned(&collect(&mode, &machine)), Some(1.0), "and nothing is forgotten");
    // Where there is nothing to ask about nobody needs to answer.
    machine.proc("1/mountinfo", "");
    let mut docker = recorded(NODE);
    docker.sandboxes.iter_mut().for_each(|sandbox| sandbox.network = SandboxNetwork::Untold);
    assert_eq!(orphaned(&old(docker, &machine).1), Some(0.0));
}

/// A process of the machine's own: root's, in no container.
fn process(machine: &Machine, pid: u32, cgroup: &str, argv: &[&str]) {
    let comm: String = argv[0].rsplit('/').next().unwrap().chars().take(15).collect();
    machine.proc(&format!("{pid}/comm"), &format!("{comm}\n"));
    machine.proc(
        &format!("{pid}/stat"),
        &format!("{pid} ({comm}) S 1 {pid} {pid} 0 -1 4194560 1 0 0 0 2 1 0 0 20 0 11 0 7{pid} 1"),
    );
    machine.proc(&format!("{pid}/status"), &format!("Name:\t{comm}\nUid:\t0\t0\t0\t0\nNSpid:\t{pid}\n"));
    machine.proc(&format!("{pid}/cgroup"), &format!("0::{cgroup}\n"));
    machine.proc(&format!("{pid}/cmdline"), &format!("{}\0", argv.join("\0")));
}

const SERVICE: &str = "/system.slice/containerd.service";

fn shim<'a>(id: &'a str, namespace: &'a str, address: &'a str) -> [&'a str; 7] {
    ["/usr/bin/containerd-shim-runc-v2", "-namespace", namespace, "-id", id, "-address", address]
}

#[test]
fn a_shim_that_no_container_has() {
    let machine = machine();
    let socket = "/run/containerd/containerd.sock";
    let orphaned = |samples: &Samples| samples.value(&ORPHANED_SHIMS, &[]);
    let nobody = "b".repeat(64);
    process(&machine, 501, SERVICE, &shim(SLEEPS.0, "k8s.io", socket));
    process(&machine, 502, SERVICE, &shim(&nobody, "moby", socket));
    process(&machine, 503, SERVICE, &shim(&nobody, "k8s.io", "/run/k3s/containerd/containerd.sock"));
    // A pod's, with the host's pids, and one with its own; another user's.
    let pod = "/kubepods.slice/kubepods-pod11111111_2222_3333_4444_555555555555.slice/cri-containerd-x.scope";
    process(&machine, 504, pod, &shim(&nobody, "k8s.io", socket));
    process(&machine, 505, "/docker/x", &shim(&nobody, "k8s.io", socket));
    machine.proc("505/status", "Name:\tx\nUid:\t0\t0\t0\t0\nNSpid:\t505\t1\n");
    process(&machine, 506, "/user.slice/user-1000.slice", &shim(&nobody, "k8s.io", socket));
    machine.proc("506/status", "Name:\tx\nUid:\t1000\t1000\t1000\t1000\nNSpid:\t506\n");
    process(
        &machine,
        507,
        SERVICE,
        &["/usr/bin/containerd", "-namespace", "k8s.io", "-id", &nobody, "-address", socket],
    );
    let (_, samples) = old(told(), &machine);
    assert_eq!((reasons(&samples), orphaned(&samples)), (vec![], Some(0.0)));

    process(&machine, 508, SERVICE, &shim(&nobody, "k8s.io", socket));
    let (mode, samples) = old(told(), &machine);
    assert_eq!((reasons(&samples), orphaned(&samples)), (vec![], Some(1.0)));
    let mut gone = told();
    gone.sandboxes.retain(|sandbox| sandbox.id != SLEEPS.0);
    assert_eq!(orphaned(&old(gone, &machine).1), Some(2.0), "and the one of a sandbox that the runtime has forgotten");
    // Its number is another process's, which is called the same and is nobody's as well: the age is its own.
    let stat = std::fs::read_to_string(machine.path().join("proc/508/stat")).unwrap();
    machine.proc("508/stat", &stat.replace(" 7508 ", " 9508 "));
    assert_eq!(orphaned(&collect(&mode, &machine)), Some(0.0));
    std::fs::remove_dir_all(machine.path().join("proc/508")).unwrap();
    assert_eq!(orphaned(&collect(&mode, &machine)), Some(0.0));

    // One that became a shim after it was seen as something else is found in its turn.
    process(&machine, 509, SERVICE, &["/usr/bin/containerd"]);
    let mode = self::mode(Runtime::fixed(Ok(told())));
    collect(&mode, &machine);
    process(&machine, 509, SERVICE, &shim(&nobody, "k8s.io", socket));
    (0..32).for_each(|_| drop(collect(&mode, &machine)));
    forget(&mode);
    age(&mode, &machine, &told());
    assert_eq!(orphaned(&collect(&mode, &machine)), Some(1.0));

    let samples = collect(&self::mode(Runtime::default()), &machine);
    assert_eq!((reasons(&samples), orphaned(&samples)), (vec![], None), "nobody says what is known");
    let mut cri_dockerd = told();
    "docker".clone_into(&mut cri_dockerd.identity.name);
    assert_eq!(orphaned(&old(cri_dockerd, &machine).1), None);
}
