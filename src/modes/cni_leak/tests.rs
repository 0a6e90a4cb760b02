//! The whole mode on recorded files: host-local's as Debian's binary wrote them, mount tables of the two recorded
//! nodes.

#![allow(clippy::disallowed_methods, reason = "a test makes its machine of files")]

use std::sync::Arc;

use super::*;
use crate::golden::inventory::recorded;
use crate::host::Deadline;
use crate::host::cgroup::recorded::Machine;
use crate::runtime::Inventory;
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
    }
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(30))
}

/// A mode that has seen this machine with this runtime for half an hour.
fn old(inventory: Inventory, machine: &Machine) -> (CniLeak, Samples) {
    let mode = mode(Runtime::fixed(Ok(inventory.clone())));
    collect(&mode, machine);
    mode.memory.lock().unwrap().strangers = UnknownToRuntime::default();
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
    let (_, samples) = old(nobody, &machine);
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
