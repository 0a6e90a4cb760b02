#![allow(clippy::disallowed_methods, reason = "tests write the files of a recorded machine")]

mod history;
mod parents;

use super::*;
use crate::golden::inventory;
use crate::host::Deadline;
use crate::host::cgroup::recorded::Machine;
use crate::runtime::{Container, Pod as RuntimePod};
use crate::services::Services;

/// The pod of both recordings that there are files of inside.
const UID: &str = "bcb1982f-2628-449a-accb-e40ecdefbb3b";
const PAUSE: &str = "5d254dd4d3bde41c7c4a6a3248daea1f1c364728b68bb57782b4a271430706dd";
const APP: &str = "55f765a8788dcccb46fae55db15b169605b66df347604a06a4f6ed7c15f879c6";
const HOST: &str = include_str!("../../../tests/fixtures/node/k8s-1.36-cgroupv1/proc/host/net-dev.txt");
const POD: &str = include_str!("../../../tests/fixtures/node/k8s-1.36-cgroupv1/proc/pause/net-dev.txt");

/// The recorded pod's `net/dev` once its eth0 was deleted (experiments of the recording: "interfaces: lo").
fn bare() -> String {
    POD.lines().filter(|line| !line.trim_start().starts_with("eth0:")).map(|line| line.to_owned() + "\n").collect()
}

fn below(container: &str) -> String {
    format!("memory/kubepods/burstable/pod{UID}/{container}/cgroup.procs")
}

/// The recorded v1 node, with the network of its first process and of the two of the pod.
fn node() -> Machine {
    let machine = Machine::v1();
    machine.proc("1/net/dev", HOST);
    machine.cgroup(&below(PAUSE), "10758\n");
    machine.cgroup(&below(APP), "11133\n11150\n");
    network(&machine, &[10_758, 11_133], POD);
    machine
}

/// Puts processes into one namespace with this `net/dev`: as on a procfs, it is one file.
fn network(machine: &Machine, pids: &[u32], text: &str) {
    machine.proc(&format!("{}/net/dev", pids[0]), text);
    let first = machine.host.proc(format!("{}/net/dev", pids[0]));
    for pid in &pids[1..] {
        let other = machine.host.proc(format!("{pid}/net/dev"));
        std::fs::create_dir_all(other.parent().unwrap()).unwrap();
        let _ = std::fs::remove_file(&other);
        std::fs::hard_link(&first, other).unwrap();
    }
}

fn collector(runtime: Runtime) -> PodInterface {
    PodInterface::new(Settings::default(), &Services::with_runtime(runtime))
}

fn recorded_runtime() -> Runtime {
    Runtime::fixed(Ok(inventory::recorded("k8s-1.36-cgroupv1")))
}

fn scrape(collector: &PodInterface, machine: &Machine) -> Samples {
    let context = Context::new(&machine.host, Deadline::after(Duration::from_secs(60)));
    let mut samples = collector.collect(context).unwrap();
    samples.refuse_duplicates();
    samples.refuse_undeclared(MODE.metrics);
    samples
}

fn numbers(samples: &Samples) -> [Option<f64>; 3] {
    assert_eq!(samples.errors(), []);
    [samples.value(&PODS, &[]), samples.value(&WITHOUT, &[]), samples.value(&LOST_TOTAL, &["pod"])]
}

fn shown(samples: &Samples) -> usize {
    let of_pods = |row: &&crate::metric::Sample| row.metric.labels.contains(&"pod_uid");
    samples.rows().iter().filter(of_pods).count()
}

#[test]
fn a_recorded_pod_loses_its_interface_and_gets_it_back() {
    let machine = node();
    let collector = collector(recorded_runtime());
    let samples = scrape(&collector, &machine);
    assert_eq!(numbers(&samples), [Some(1.0), Some(0.0), Some(0.0)]);
    assert_eq!(shown(&samples), 0, "no series for a pod that is well");

    network(&machine, &[10_758, 11_133], &bare());
    for _ in 0..3 {
        let samples = scrape(&collector, &machine);
        assert_eq!(numbers(&samples), [Some(1.0), Some(1.0), Some(1.0)], "at once, and counted once");
        assert_eq!(samples.value(&INTERFACES, &["default", "memvol", UID]), Some(0.0));
        assert_eq!(samples.value(&LOST, &["default", "memvol", UID, "eth0"]), Some(1.0));
    }

    network(&machine, &[10_758, 11_133], POD);
    let samples = scrape(&collector, &machine);
    assert_eq!(numbers(&samples), [Some(1.0), Some(0.0), Some(1.0)]);
    assert_eq!(shown(&samples), 0);
}

#[test]
fn without_a_runtime_there_are_no_names_and_all_the_rest() {
    let machine = node();
    network(&machine, &[10_758, 11_133], &bare());
    let samples = scrape(&collector(Runtime::default()), &machine);
    assert_eq!(numbers(&samples), [Some(1.0), Some(1.0), Some(0.0)], "what it had is not known");
    assert_eq!(samples.value(&INTERFACES, &["", "", UID]), Some(0.0));
}

#[test]
fn a_runtime_that_does_not_answer_costs_names() {
    let machine = node();
    let dead = Error::new(Reason::Timeout, "no answer");
    let collector = collector(Runtime::fixed(Err(dead.clone())));
    assert_eq!(scrape(&collector, &machine).errors(), [], "nobody needs it");
    network(&machine, &[10_758, 11_133], &bare());
    let samples = scrape(&collector, &machine);
    assert_eq!(samples.errors(), [dead]);
    assert_eq!(samples.value(&INTERFACES, &["", "", UID]), Some(0.0));
}

#[test]
fn a_pod_on_the_host_network_never_counts() {
    let machine = node();
    network(&machine, &[1, 10_758, 11_133], HOST);
    assert_eq!(numbers(&scrape(&collector(recorded_runtime()), &machine)), [Some(0.0), Some(0.0), Some(0.0)]);
    network(&machine, &[1], &bare());
    let samples = scrape(&collector(recorded_runtime()), &machine);
    assert_eq!(numbers(&samples), [Some(0.0), Some(0.0), Some(0.0)], "whatever the machine has");
}

#[test]
fn idle_tunnels_of_the_kernel_connect_nobody() {
    let machine = node();
    let tunnels = bare() + " tunl0: 0 0\nip6tnl0: 0 0\n  sit0: 0 0\n";
    network(&machine, &[10_758, 11_133], &tunnels);
    assert_eq!(numbers(&scrape(&collector(recorded_runtime()), &machine)), [Some(1.0), Some(1.0), Some(0.0)]);
    network(&machine, &[10_758, 11_133], &(tunnels + "  net1: 0 0\n"));
    assert_eq!(numbers(&scrape(&collector(recorded_runtime()), &machine)), [Some(1.0), Some(0.0), Some(0.0)]);
}

/// Only the pause container lives, as in the first and the last moments of a pod; and what the runtime says of it.
#[test]
fn a_pod_that_starts_or_ends_never_counts() {
    let machine = node();
    machine.cgroup(&below(APP), "");
    network(&machine, &[10_758], &bare());
    let mut inventory = inventory::recorded("k8s-1.36-cgroupv1");
    let patient = |inventory: Inventory| {
        let settings = Settings { grace: Duration::ZERO, ..Settings::default() };
        numbers(&scrape(&PodInterface::new(settings, &Services::with_runtime(Runtime::fixed(Ok(inventory)))), &machine))
    };
    let [fine, missed] = [[Some(1.0), Some(0.0), Some(0.0)], [Some(1.0), Some(1.0), Some(0.0)]];
    assert_eq!(patient(inventory.clone()), missed, "ready, and the grace period is over");
    assert_eq!(numbers(&scrape(&collector(recorded_runtime()), &machine)), fine, "ready, but just seen");
    assert_eq!(numbers(&scrape(&collector(Runtime::default()), &machine)), fine, "nobody knows, and just seen");

    inventory.sandboxes.iter_mut().find(|sandbox| sandbox.id == PAUSE).unwrap().ready = false;
    assert_eq!(patient(inventory.clone()), fine, "it ends");
    inventory.sandboxes.retain(|sandbox| sandbox.id != PAUSE);
    assert_eq!(patient(inventory.clone()), fine, "containerd lists a sandbox once it has its network");

    // CRI-O makes no pause container: the one there is runs by the runtime's word.
    let pod = RuntimePod { namespace: "default".into(), name: "memvol".into(), uid: UID.into() };
    let running =
        Container { id: PAUSE.into(), name: "c".into(), state: ContainerState::Running, pod, image: String::new() };
    inventory.containers.push(running);
    let samples = scrape(&collector(Runtime::fixed(Ok(inventory))), &machine);
    assert_eq!(numbers(&samples), missed, "at once");
    assert_eq!(samples.value(&INTERFACES, &["default", "memvol", UID]), Some(0.0));
}

#[test]
fn a_pod_that_gets_its_interface_under_our_eyes_is_well() {
    let machine = std::sync::Arc::new(node());
    machine.cgroup(&below(PAUSE), "");
    network(&machine, &[11_133], &bare());
    let on_question = std::sync::Arc::clone(&machine);
    let collector = collector(Runtime::answering(move || {
        network(&on_question, &[11_133], POD);
        Ok(Arc::new(inventory::recorded("k8s-1.36-cgroupv1")))
    }));
    assert_eq!(numbers(&scrape(&collector, &machine)), [Some(1.0), Some(0.0), Some(0.0)]);
}

#[test]
fn processes_that_exit_meanwhile() {
    let machine = node();
    std::fs::remove_dir_all(machine.host.proc("10758")).unwrap();
    assert_eq!(numbers(&scrape(&collector(recorded_runtime()), &machine)), [Some(1.0), Some(0.0), Some(0.0)]);
    std::fs::remove_dir_all(machine.host.proc("11133")).unwrap();
    assert_eq!(numbers(&scrape(&collector(recorded_runtime()), &machine)), [Some(0.0), Some(0.0), Some(0.0)]);
}

#[test]
fn processes_further_down_and_beside_a_container() {
    let machine = node();
    machine.cgroup(&below(PAUSE), "");
    machine.cgroup(&below(APP), "");
    machine.cgroup(&below(&format!("{APP}/init.scope")), "11133\n");
    // A monitor process is on the host's network and no container's.
    machine.cgroup(&below(&format!("crio-conmon-{APP}")), "77\n");
    network(&machine, &[1, 77], HOST);
    let samples = scrape(&collector(recorded_runtime()), &machine);
    assert_eq!(numbers(&samples), [Some(1.0), Some(0.0), Some(0.0)]);
}

#[test]
fn what_cannot_be_read_is_said_once() {
    let machine = node();
    for container in [PAUSE, APP] {
        machine.cgroup(&below(container), "0\n0\n");
    }
    let samples = scrape(&collector(recorded_runtime()), &machine);
    assert_eq!(samples.errors().len(), 1, "{:?}", samples.errors());
    assert_eq!(samples.errors()[0].reason(), Reason::Denied, "of another pid namespace");

    let machine = node();
    std::fs::remove_dir_all(machine.host.proc("1")).unwrap();
    let samples = scrape(&collector(recorded_runtime()), &machine);
    assert_eq!(samples.errors().len(), 1, "{:?}", samples.errors());
    assert_eq!(samples.value(&PODS, &[]), None, "whose network it is cannot be told");
}

#[test]
fn pods_are_looked_at_up_to_a_number() {
    let machine = node();
    let settings = Settings { max_pods: 3, ..Settings::default() };
    let samples = scrape(&PodInterface::new(settings, &Services::with_runtime(recorded_runtime())), &machine);
    let pods = std::fs::read_dir(machine.cgroup_path("memory/kubepods/burstable")).unwrap();
    assert!(samples.dropped() > 0 && samples.dropped() as usize > pods.count() - 3, "{}", samples.dropped());
}

#[test]
fn a_hundred_pods_without_interface_are_shown_and_no_more() {
    let machine = Machine::v1();
    machine.proc("1/net/dev", HOST);
    for number in 0..200_u32 {
        let pod = format!("memory/kubepods/besteffort/pod11111111-0000-4000-8000-{number:012}");
        for (container, pid) in [(1, 20_000), (2, 30_000)] {
            machine.cgroup(&format!("{pod}/{container:064}/cgroup.procs"), &format!("{}\n", pid + number));
        }
        network(&machine, &[20_000 + number, 30_000 + number], &bare());
    }
    let samples = scrape(&collector(Runtime::default()), &machine);
    assert_eq!(numbers(&samples), [Some(200.0), Some(200.0), Some(0.0)], "all are counted");
    assert_eq!((shown(&samples), samples.dropped()), (MOST_PODS_SHOWN, 200 - MOST_PODS_SHOWN as u64));
}

#[test]
fn no_kubepods_and_no_interfaces_is_no_such_machine() {
    let machine = Machine::empty();
    let context = Context::new(&machine.host, Deadline::after(Duration::from_secs(60)));
    let error = collector(Runtime::default()).collect(context).unwrap_err();
    assert_eq!(error.reason(), Reason::Absent);
}

#[test]
fn the_recorded_v2_node() {
    let machine = Machine::v2();
    machine.proc("1/net/dev", HOST);
    let pod =
        "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poddffe967d_a11f_417e_8310_08020db089c7.slice";
    let pause = "cri-containerd-d88fcaa715e9d276d183597b1e6912e7c96cf71eb75399adc78ba506767c4e51.scope";
    let app = "cri-containerd-fbac8099e388339f9fbcb5c13711ebbc562fb774b7a291a4387f6a5bceb13091.scope";
    machine.cgroup(&format!("{pod}/{pause}/cgroup.procs"), "2406\n");
    machine.cgroup(&format!("{pod}/{app}/cgroup.procs"), "2870\n");
    network(&machine, &[2406, 2870], &bare());
    let samples = scrape(&collector(Runtime::fixed(Ok(inventory::recorded("k8s-1.36-cgroupv2")))), &machine);
    assert_eq!(numbers(&samples), [Some(1.0), Some(1.0), Some(0.0)]);
    let uid = "dffe967d-a11f-417e-8310-08020db089c7";
    assert_eq!(samples.value(&INTERFACES, &["default", "memvol", uid]), Some(0.0));
}

#[test]
fn pods_behind_a_mount_that_is_missing_are_not_none() {
    let machine = Machine::empty();
    machine.proc("cgroups", "memory\t0\t93\t1\n");
    let samples = scrape(&collector(Runtime::default()), &machine);
    assert_eq!(samples.value(&PODS, &[]), None);
    let errors: Vec<_> = samples.errors().iter().map(Error::reason).collect();
    assert_eq!(errors, [Reason::Absent]);
    assert!(samples.errors()[0].to_string().contains("--path.sysfs"));
}
