//! The whole mode on the recorded nodes. Expected numbers were counted in `kubepods-dirs.txt` and `top-dirs.txt` with
//! grep.

use std::sync::Arc;
use std::time::Instant;

use super::*;
use crate::error::{Error, Reason};
use crate::golden::inventory::recorded;
use crate::host::Deadline;
use crate::host::cgroup::recorded::Machine;
use crate::kubelet::kubepods;
use crate::runtime::Inventory;
use crate::services::Services;

const ID: &str = "55f765a8788dcccb46fae55db15b169605b66df347604a06a4f6ed7c15f879c6";

/// No container of the recorded nodes has it.
const ID_UNKNOWN: &str = "0000000000000000000000000000000000000000000000000000000000000000";

fn settings() -> Settings {
    Settings { orphan_grace: Duration::ZERO, ..Settings::default() }
}

fn without_runtime(settings: Settings) -> CgroupLeak {
    CgroupLeak::new(settings, &Services::with_runtime(Runtime::default()))
}

fn try_collect(collector: &CgroupLeak, machine: &Machine) -> Result<Samples> {
    let deadline = Deadline::after(Duration::from_secs(30));
    let mut samples = collector.collect(Context::new(&machine.host, deadline))?;
    samples.refuse_duplicates();
    Ok(samples)
}

fn collect(machine: &Machine) -> Samples {
    try_collect(&without_runtime(settings()), machine).unwrap()
}

fn reasons(samples: &Samples) -> Vec<Reason> {
    samples.errors().iter().map(crate::error::Error::reason).collect()
}

/// guaranteed, burstable, besteffort.
fn by_qos(samples: &Samples, kind: &str) -> [Option<f64>; 3] {
    ["guaranteed", "burstable", "besteffort"].map(|qos| samples.value(&KUBEPODS, &[kind, qos]))
}

#[test]
fn recorded_v1_node() {
    let samples = collect(&Machine::v1());
    assert_eq!(reasons(&samples), []);
    // /proc/cgroups: eight rows with a hierarchy; the other four are cgroup2's.
    assert_eq!(samples.rows().iter().filter(|row| row.metric.name == "headroom_cgroups").count(), 8);
    assert_eq!(samples.value(&CGROUPS, &["memory"]), Some(73.0));
    assert_eq!(samples.value(&CGROUPS, &["pids"]), Some(45.0));
    assert_eq!(samples.value(&CGROUPS, &["perf_event"]), None);
    // grep -c /memory/kubepods kubepods-dirs.txt = 36; grep -c /memory/system.slice top-dirs.txt = 7; the root.
    assert_eq!(samples.value(&DIRECTORIES, &["memory"]), Some(44.0));
    assert_eq!(samples.value(&DYING, &["memory"]), Some(29.0));
    assert_eq!(samples.value(&DIRECTORIES, &["pids"]), None, "only memory is walked by default");
    assert_eq!(samples.value(&MEMCG_IDS_USED, &[]), Some(44.0), "6.18: those that one can see");
    assert_eq!(samples.value(&MEMCG_IDS_LIMIT, &[]), Some(65535.0));
    assert_eq!(by_qos(&samples, "pod"), [Some(1.0), Some(7.0), Some(3.0)]);
    assert_eq!(by_qos(&samples, "container"), [Some(3.0), Some(14.0), Some(5.0)]);
    assert_eq!(by_qos(&samples, "other"), [Some(0.0); 3]);
    assert_eq!(samples.value(&CONTAINERS, &["running"]), Some(22.0));
    assert_eq!(samples.value(&CONTAINERS, &["unknown"]), Some(0.0));
    assert_eq!(samples.value(&RUNTIME_INFO, &["cgroup", "", "", ""]), Some(1.0));
    for kind in ["pod", "container", "other"] {
        assert_eq!(samples.value(&ORPHANED, &[kind]), Some(0.0), "{kind}");
    }
}

#[test]
fn recorded_v2_node() {
    let samples = collect(&Machine::v2());
    assert_eq!(reasons(&samples), []);
    // nr_descendants 63, nr_dying_descendants 29, and the root: 93, as each row of /proc/cgroups has it.
    assert_eq!(samples.value(&CGROUPS, &["unified"]), Some(93.0));
    assert_eq!(samples.value(&DIRECTORIES, &["unified"]), Some(64.0));
    assert_eq!(samples.value(&DYING, &["unified"]), Some(29.0));
    assert_eq!(samples.value(&CGROUPS, &["memory"]), None, "6.1 does not count by controller");
    // 36 below and with kubepods.slice, 18 with system.slice, the root; systemd-udevd.service/udev has no memory
    // controller.
    assert_eq!(samples.value(&MEMCG_IDS_USED, &[]), Some(54.0));
    assert_eq!(by_qos(&samples, "pod"), [Some(1.0), Some(7.0), Some(3.0)]);
    assert_eq!(by_qos(&samples, "container"), [Some(3.0), Some(14.0), Some(5.0)]);
    assert_eq!(samples.value(&CONTAINERS, &["running"]), Some(22.0));
}

#[test]
fn v2_on_a_kernel_that_counts_controllers() {
    let machine = Machine::v2();
    machine.cgroup(
        "cgroup.stat",
        "nr_descendants 63\nnr_subsys_memory 60\nnr_dying_descendants 29\nnr_dying_subsys_memory 27\n",
    );
    let samples = collect(&machine);
    assert_eq!(samples.value(&CGROUPS, &["memory"]), Some(87.0));
    assert_eq!(samples.value(&DIRECTORIES, &["memory"]), Some(60.0));
    assert_eq!(samples.value(&DYING, &["memory"]), Some(27.0));
    assert_eq!(samples.value(&MEMCG_IDS_USED, &[]), Some(60.0));
}

#[test]
fn ids_are_held_ones_before_4_8() {
    let machine = Machine::v1();
    for (release, ids) in [("3.10.0-1160.el7.x86_64", 73.0), ("4.7.10", 73.0), ("4.8.0", 44.0)] {
        machine.proc("sys/kernel/osrelease", release);
        assert_eq!(collect(&machine).value(&MEMCG_IDS_USED, &[]), Some(ids), "{release}");
    }
}

#[test]
fn hybrid_and_all_v1_hierarchies() {
    let machine = Machine::v1();
    machine.cgroup("unified/cgroup.controllers", "hugetlb\n");
    let stat =
        "nr_descendants 0\nnr_subsys_perf_event 1\nnr_subsys_hugetlb 1\nnr_subsys_memory 5\nnr_dying_descendants 0\n";
    machine.cgroup("unified/cgroup.stat", stat);
    let collector = without_runtime(Settings { v1_hierarchies: vec!["all".into()], ..settings() });
    let samples = try_collect(&collector, &machine).unwrap();
    assert_eq!(reasons(&samples), []);
    assert_eq!(samples.value(&CGROUPS, &["unified"]), Some(1.0));
    assert_eq!(samples.value(&DIRECTORIES, &["perf_event"]), Some(1.0));
    assert_eq!(samples.value(&DIRECTORIES, &["memory"]), Some(44.0), "what is mounted on v1 is counted there");
    // blkio has no system.slice: kubepods (36) and the root.
    assert_eq!(samples.value(&DIRECTORIES, &["blkio"]), Some(37.0));
    assert_eq!(samples.value(&DYING, &["blkio"]), Some(1.0));
    assert_eq!(by_qos(&samples, "pod"), [Some(1.0), Some(7.0), Some(3.0)], "counted in one hierarchy only");
}

#[test]
fn strays_and_what_a_container_made_for_itself() {
    let machine = Machine::v1();
    let pod = "memory/kubepods/besteffort/pod09db1d60-9264-4892-a9b0-1013901eb188";
    let container = format!("{pod}/594b28c0d534729d7d46245ae6d5ee6ab916095241e4f83c7204eee45cf1d7cb");
    for idle in [
        format!("memory/kubepods/burstable/{ID}"), // a container's, directly in a QoS directory
        "memory/kubepods/burstable/stray".into(),  // other
        format!("{container}/init.scope"),         // made by a live container: its own business
        format!("{pod}/crio-conmon-{ID}"),         // other, beside a live container
        "memory/kubepods/podold".into(),           // a pod's,
        format!("memory/kubepods/podold/{ID}"),    // and the container in it,
        format!("memory/kubepods/podold/{ID}/deep"), // and a cgroup in that
    ] {
        machine.cgroup(&format!("{idle}/cgroup.procs"), "");
    }
    // A container whose processes are all one level down is running.
    machine.cgroup(&format!("memory/kubepods/podnew/{ID}/cgroup.procs"), "");
    machine.cgroup("memory/kubepods/podnew/cgroup.procs", "");
    machine.cgroup(&format!("memory/kubepods/podnew/{ID}/init.scope/cgroup.procs"), "1\n");
    let samples = collect(&machine);
    assert_eq!(by_qos(&samples, "pod"), [Some(3.0), Some(7.0), Some(3.0)]);
    assert_eq!(by_qos(&samples, "container"), [Some(5.0), Some(15.0), Some(5.0)]);
    assert_eq!(by_qos(&samples, "other"), [Some(2.0), Some(1.0), Some(2.0)]);
    assert_eq!(samples.value(&CONTAINERS, &["running"]), Some(23.0));
    assert_eq!(samples.value(&CONTAINERS, &["unknown"]), Some(2.0));
    let orphaned = |kind| samples.value(&ORPHANED, &[kind]);
    assert_eq!((orphaned("pod"), orphaned("container"), orphaned("other")), (Some(1.0), Some(2.0), Some(3.0)));
    // With the default grace nothing is orphaned at first sight.
    let samples = try_collect(&without_runtime(Settings::default()), &machine).unwrap();
    assert_eq!(samples.value(&ORPHANED, &["container"]), Some(0.0));
}

#[test]
fn an_unpopulated_pod_of_v2_is_orphaned_with_all_below_it() {
    let machine = Machine::v2();
    let pod = "kubepods.slice/kubepods-pod020a8993_ffb4_499a_9de5_9cc87ef94d71.slice";
    machine.cgroup(&format!("{pod}/cgroup.events"), "populated 0\nfrozen 0\n");
    let samples = collect(&machine);
    assert_eq!(samples.value(&ORPHANED, &["pod"]), Some(1.0));
    assert_eq!(samples.value(&ORPHANED, &["container"]), Some(3.0), "the kernel says it of the whole subtree");
    assert_eq!(samples.value(&CONTAINERS, &["unknown"]), Some(3.0));
}

#[test]
fn a_tree_below_a_cgroup_root_and_two_trees() {
    let machine = Machine::empty();
    for (controller, file) in [("memory", "notify_on_release"), ("memory", "release_agent")] {
        machine.cgroup(&format!("{controller}/{file}"), "0\n");
    }
    machine.proc("cgroups", "memory 4 5 1\n");
    machine.proc("sys/kernel/osrelease", "6.18.1");
    machine.cgroup(&format!("memory/a/b/kubepods/podx/{ID}/cgroup.procs"), "1\n");
    machine.cgroup("memory/a/b/kubepods/podx/cgroup.procs", "");
    machine.cgroup("memory/a/b/c/kubepods/pody/cgroup.procs", "1\n");
    let samples = collect(&machine);
    assert_eq!(by_qos(&samples, "pod"), [Some(1.0), Some(0.0), Some(0.0)], "three levels down, not four");
    // At the root it is the node's own; what lies deeper is then somebody else's.
    machine.cgroup("memory/kubepods/podz/cgroup.procs", "1\n");
    machine.cgroup("memory/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podo.slice/cgroup.procs", "");
    let samples = collect(&machine);
    assert_eq!(
        by_qos(&samples, "pod"),
        [Some(1.0), Some(1.0), Some(0.0)],
        "the old driver's tree is a leak to be seen"
    );
    assert_eq!(by_qos(&samples, "container"), [Some(0.0); 3]);
    assert_eq!(samples.value(&ORPHANED, &["pod"]), Some(1.0));
}

#[test]
fn no_kubepods_no_series_about_them() {
    let machine = Machine::v1();
    std::fs::remove_dir_all(machine.cgroup_path("memory/kubepods")).unwrap();
    let samples = collect(&machine);
    assert_eq!(by_qos(&samples, "pod"), [None; 3]);
    assert!(samples.rows().iter().all(|row| {
        !["headroom_containers", "headroom_orphaned_cgroups", "headroom_runtime_info"].contains(&row.metric.name)
    }));
    assert_eq!(samples.value(&DIRECTORIES, &["memory"]), Some(8.0), "system.slice and the root");
}

#[test]
fn a_kernel_without_the_memory_controller() {
    let machine = Machine::v1();
    std::fs::remove_dir_all(machine.cgroup_path("memory")).unwrap();
    machine.proc(
        "cgroups",
        "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t1\t45\t1\npids\t8\t45\t1\nmemory\t0\t1\t0\n",
    );
    let samples = collect(&machine);
    assert_eq!(reasons(&samples), []);
    assert_eq!((samples.value(&MEMCG_IDS_USED, &[]), samples.value(&MEMCG_IDS_LIMIT, &[])), (None, None));
    assert_eq!(samples.value(&CGROUPS, &["pids"]), Some(45.0));
    assert_eq!(by_qos(&samples, "container"), [Some(3.0), Some(14.0), Some(5.0)], "from the pids hierarchy");
}

#[test]
fn a_machine_without_our_files() {
    let error = try_collect(&without_runtime(settings()), &Machine::empty()).unwrap_err();
    assert_eq!(error.reason(), Reason::Absent, "not applicable: {error}");
}

#[test]
fn garbage_in_proc_cgroups() {
    let machine = Machine::v1();
    machine.proc("cgroups", "\u{1}\u{2} what is this\nmemory\t4");
    let samples = collect(&machine);
    assert_eq!(reasons(&samples), [Reason::Malformed]);
    assert_eq!(samples.value(&CGROUPS, &["memory"]), None);
    assert_eq!(samples.value(&DYING, &["memory"]), None);
    assert_eq!(samples.value(&DIRECTORIES, &["memory"]), Some(44.0), "what can be counted is there all the same");
    assert_eq!(samples.value(&MEMCG_IDS_USED, &[]), Some(44.0));
    assert_eq!(samples.value(&CONTAINERS, &["running"]), Some(22.0));
}

#[test]
fn garbage_in_cgroup_stat() {
    let machine = Machine::v2();
    machine.cgroup("cgroup.stat", "nr_descendants many\n");
    let samples = collect(&machine);
    assert_eq!(reasons(&samples), [Reason::Malformed]);
    assert_eq!(samples.value(&CGROUPS, &["unified"]), None);
    assert_eq!(samples.value(&MEMCG_IDS_USED, &[]), Some(54.0));
}

#[test]
fn a_namespace_root_is_refused() {
    let machine = Machine::v2();
    machine.cgroup("cgroup.events", "populated 1\nfrozen 0\n");
    let error = try_collect(&without_runtime(settings()), &machine).unwrap_err();
    assert_eq!(error.reason(), Reason::Malformed);
    // On v1 the counts of /proc/cgroups are the machine's, wherever one looks from.
    let machine = Machine::v1();
    std::fs::remove_file(machine.cgroup_path("memory/release_agent")).unwrap();
    let samples = collect(&machine);
    assert_eq!(reasons(&samples), [Reason::Malformed]);
    assert_eq!(samples.value(&CGROUPS, &["memory"]), Some(73.0));
    assert_eq!((samples.value(&DIRECTORIES, &["memory"]), by_qos(&samples, "pod")), (None, [None; 3]));
}

#[test]
fn a_cut_walk_leaves_out_what_would_be_wrong() {
    for machine in [Machine::v1(), Machine::v2()] {
        let few = kubepods::Settings { max_directories: 20, ..kubepods::Settings::default() };
        let samples = try_collect(&CgroupLeak::new(settings(), &Services::with_kubepods(few)), &machine).unwrap();
        assert!(samples.dropped() > 0);
        assert_eq!(reasons(&samples), [], "a cap of ours is no failure");
        assert!(samples.rows().iter().any(|row| row.metric.name == "headroom_cgroups"));
        assert_eq!((samples.value(&MEMCG_IDS_USED, &[]), by_qos(&samples, "pod")), (None, [None; 3]));
        assert_eq!(samples.value(&DIRECTORIES, &["memory"]), None);

        let context = Context::new(&machine.host, Deadline::after(Duration::ZERO));
        let samples = without_runtime(settings()).collect(context).unwrap();
        assert_eq!(reasons(&samples), [Reason::Timeout]);
        assert_eq!((samples.value(&MEMCG_IDS_USED, &[]), by_qos(&samples, "pod")), (None, [None; 3]));
    }
}

#[test]
fn a_container_whose_processes_cannot_be_read_is_not_judged() {
    let machine = Machine::v1();
    let procs = machine.cgroup_path(&format!(
        "memory/kubepods/besteffort/pod09db1d60-9264-4892-a9b0-1013901eb188/{}/cgroup.procs",
        "594b28c0d534729d7d46245ae6d5ee6ab916095241e4f83c7204eee45cf1d7cb"
    ));
    std::fs::remove_file(&procs).unwrap();
    std::fs::create_dir(&procs).unwrap();
    let samples = collect(&machine);
    assert_eq!(reasons(&samples), [Reason::Io]);
    assert_eq!((samples.value(&CONTAINERS, &["running"]), samples.value(&ORPHANED, &["pod"])), (None, None));
    assert_eq!(by_qos(&samples, "container"), [Some(3.0), Some(14.0), Some(5.0)]);
}

/// The recorded node with what its runtime said, scraped at moments of our choosing.
struct Scraped {
    machine: Machine,
    kubepods: Kubepods,
    memories: Memories,
    start: Instant,
}

impl Scraped {
    fn new(machine: Machine) -> Self {
        let start = Instant::now();
        Scraped { machine, kubepods: Kubepods::default(), memories: Memories::default(), start }
    }

    /// One scrape, so many seconds after the first, with a grace period of a minute.
    fn at(&mut self, seconds: u64, answer: Result<&Inventory>) -> Samples {
        let mut samples = Samples::new();
        let deadline = Deadline::after(Duration::from_secs(30));
        let context = Context::new(&self.machine.host, deadline);
        let asked = self.start + Duration::from_secs(seconds);
        let span = |length| Span { began: asked, ended: asked + Duration::from_millis(length) };
        let word = match answer {
            Ok(inventory) => RuntimeAnswer::Inventory(inventory.clone().into(), span(0)),
            Err(error) if error.reason() == Reason::Absent => RuntimeAnswer::None,
            Err(_) => RuntimeAnswer::Failed,
        };
        let look = self.kubepods.look(context.host, deadline, context.began).unwrap().value;
        let bounds = self.kubepods.bounds(deadline);
        let snapshot = snapshot::read(context, &look, &settings(), bounds, &mut samples).unwrap();
        assess::kubepods(&snapshot, &word, &mut self.memories, Duration::from_secs(60), span(10), &mut samples);
        samples.refuse_duplicates();
        samples
    }
}

/// pod, container, other.
fn orphaned(samples: &Samples) -> [Option<f64>; 3] {
    ["pod", "container", "other"].map(|kind| samples.value(&ORPHANED, &[kind]))
}

const NONE: [Option<f64>; 3] = [Some(0.0); 3];

fn timeout() -> Error {
    Error::new(Reason::Timeout, "unix:///run/x.sock: no answer")
}

#[test]
fn the_runtime_of_each_recorded_node_knows_everything_below_kubepods() {
    for (machine, node) in [(Machine::v1(), "k8s-1.36-cgroupv1"), (Machine::v2(), "k8s-1.36-cgroupv2")] {
        let inventory = recorded(node);
        let mut scraped = Scraped::new(machine);
        for seconds in [0, 10, 100, 1000] {
            let samples = scraped.at(seconds, Ok(&inventory));
            assert_eq!(reasons(&samples), []);
            assert_eq!(orphaned(&samples), NONE, "{node} {seconds}");
            assert!(scraped.memories.strangers.is_empty(), "not even for a moment");
            let states = ["running", "created", "exited", "unknown"];
            let states = states.map(|state| samples.value(&CONTAINERS, &[state]));
            assert_eq!(states, [Some(11.0), Some(0.0), Some(2.0), Some(0.0)], "jq .state ListContainers.json");
            let sandboxes = ["ready", "notready"].map(|state| samples.value(&SANDBOXES, &[state]));
            assert_eq!(sandboxes, [Some(11.0), Some(1.0)]);
            let info = ["cri", "containerd", "1.6.20~ds1", "unix:///run/containerd/containerd.sock"];
            assert_eq!(samples.value(&RUNTIME_INFO, &info), Some(1.0));
            assert_eq!(by_qos(&samples, "container"), [Some(3.0), Some(14.0), Some(5.0)]);
        }
    }
}

#[test]
fn what_the_runtime_does_not_know_is_orphaned_after_the_grace_period() {
    let inventory = recorded("k8s-1.36-cgroupv1");
    let mut scraped = Scraped::new(Machine::v1());
    let live = "memory/kubepods/besteffort/pod09db1d60-9264-4892-a9b0-1013901eb188";
    let other = "a".repeat(64);
    for (left_over, procs) in [
        (format!("memory/kubepods/burstable/{ID_UNKNOWN}"), ""), // directly in a QoS directory
        (format!("{live}/{other}"), "4711\n"),                   // in a live pod, with a process that nobody knows
        ("memory/kubepods/podold".into(), ""),                   // a pod
        (format!("memory/kubepods/podold/{ID_UNKNOWN}"), ""),    // and its container
        (format!("{live}/stray"), ""),                           // other: by its processes, as without a runtime
    ] {
        scraped.machine.cgroup(&format!("{left_over}/cgroup.procs"), procs);
    }
    for seconds in [0, 10, 69] {
        let samples = scraped.at(seconds, Ok(&inventory));
        assert_eq!(orphaned(&samples)[..2], NONE[..2], "{seconds}");
    }
    let samples = scraped.at(70, Ok(&inventory));
    assert_eq!(reasons(&samples), []);
    assert_eq!(orphaned(&samples), [Some(1.0), Some(3.0), Some(1.0)], "proven at 10, a minute ago");
    // Removed and made again under the same name: another directory.
    std::fs::remove_dir_all(scraped.machine.cgroup_path("memory/kubepods/podold")).unwrap();
    assert_eq!(orphaned(&scraped.at(80, Ok(&inventory))), [Some(0.0), Some(2.0), Some(1.0)]);
}

#[test]
fn a_container_that_the_runtime_forgets_ages_from_then_on() {
    let mut inventory = recorded("k8s-1.36-cgroupv2");
    let mut scraped = Scraped::new(Machine::v2());
    for seconds in [0, 100, 200] {
        assert_eq!(orphaned(&scraped.at(seconds, Ok(&inventory))), NONE);
    }
    let static_pod = "8e27217630fd72e184db316e861ccccf";
    inventory.containers.retain(|container| container.pod.uid != static_pod);
    inventory.sandboxes.retain(|sandbox| sandbox.pod.uid != static_pod);
    for (seconds, expected) in [(300, NONE), (310, NONE), (369, NONE), (370, [Some(1.0), Some(2.0), Some(0.0)])] {
        assert_eq!(orphaned(&scraped.at(seconds, Ok(&inventory))), expected, "{seconds}");
    }
}

#[test]
fn a_runtime_that_does_not_answer_makes_no_orphan_and_forgets_none() {
    let inventory = recorded("k8s-1.36-cgroupv1");
    let mut scraped = Scraped::new(Machine::v1());
    scraped.machine.cgroup(&format!("memory/kubepods/podold/{ID_UNKNOWN}/cgroup.procs"), "");
    scraped.machine.cgroup("memory/kubepods/podold/cgroup.procs", "");
    for seconds in [0, 10, 40] {
        assert_eq!(orphaned(&scraped.at(seconds, Ok(&inventory))), NONE);
    }
    for seconds in [50, 100, 500] {
        let samples = scraped.at(seconds, Err(timeout()));
        assert_eq!(orphaned(&samples), [None, None, Some(0.0)], "nothing is said in its place");
        assert_eq!(samples.value(&CONTAINERS, &["running"]), None);
        assert_eq!(by_qos(&samples, "pod"), [Some(2.0), Some(7.0), Some(3.0)], "the rest is served");
    }
    for (seconds, expected) in [(1000, NONE), (1029, NONE), (1030, [Some(1.0), Some(1.0), Some(0.0)])] {
        assert_eq!(orphaned(&scraped.at(seconds, Ok(&inventory))), expected, "{seconds}: 30 s before the silence");
    }
}

#[test]
fn a_runtime_that_runs_none_of_these_pods_is_told_so() {
    let mut inventory = recorded("k8s-1.36-cgroupv1");
    inventory.containers.clear();
    inventory.sandboxes.clear();
    let mut scraped = Scraped::new(Machine::v1());
    for seconds in [0, 10] {
        assert_eq!(reasons(&scraped.at(seconds, Ok(&inventory))), [], "may be starting");
    }
    let samples = scraped.at(70, Ok(&inventory));
    assert_eq!(reasons(&samples), [Reason::Malformed]);
    assert_eq!(orphaned(&samples), [None, None, Some(0.0)], "22 containers run: no orphans, another runtime's");
}

#[test]
fn the_source_changes_with_the_socket() {
    let machine = Machine::v1();
    let answer = Arc::new(Mutex::new(Err(Error::absent("no socket"))));
    let double = Arc::clone(&answer);
    let collector = CgroupLeak::new(
        settings(),
        &Services::with_runtime(Runtime::answering(move || double.lock().unwrap().clone())),
    );
    let sources = |samples: &Samples| {
        let rows = samples.rows().iter().filter(|row| std::ptr::eq(row.metric, &RUNTIME_INFO));
        rows.map(|row| row.labels[0].to_string()).collect::<Vec<_>>()
    };
    let samples = try_collect(&collector, &machine).unwrap();
    assert_eq!((sources(&samples), reasons(&samples)), (vec!["cgroup".to_owned()], vec![]));
    assert_eq!(samples.value(&SANDBOXES, &["ready"]), None);

    *answer.lock().unwrap() = Ok(Arc::new(recorded("k8s-1.36-cgroupv1")));
    let samples = try_collect(&collector, &machine).unwrap();
    assert_eq!((sources(&samples), reasons(&samples)), (vec!["cri".to_owned()], vec![]));
    assert_eq!(samples.value(&CONTAINERS, &["exited"]), Some(2.0));

    *answer.lock().unwrap() = Err(timeout());
    let samples = try_collect(&collector, &machine).unwrap();
    assert_eq!((sources(&samples), reasons(&samples)), (vec![], vec![Reason::Timeout]));
    assert_eq!(samples.value(&CONTAINERS, &["running"]), None, "no fallback passed off as the runtime's");
    assert_eq!(samples.value(&DIRECTORIES, &["memory"]), Some(44.0), "everything else is there");
    assert_eq!(by_qos(&samples, "container"), [Some(3.0), Some(14.0), Some(5.0)]);
}

#[test]
fn a_runtime_without_kubepods() {
    let machine = Machine::v1();
    std::fs::remove_dir_all(machine.cgroup_path("memory/kubepods")).unwrap();
    let collector =
        CgroupLeak::new(settings(), &Services::with_runtime(Runtime::fixed(Ok(recorded("k8s-1.36-cgroupv1")))));
    let samples = try_collect(&collector, &machine).unwrap();
    assert_eq!(samples.value(&CONTAINERS, &["running"]), Some(11.0), "the runtime's word needs no cgroup of ours");
    assert_eq!(orphaned(&samples), [None; 3]);
}

#[test]
fn of_processes_that_the_kernel_does_not_name_nothing_is_said() {
    // Process 1, and not in the machine's own process namespace: a container without hostPID.
    let contained = |machine: &Machine| {
        std::fs::create_dir_all(machine.host.proc("1")).unwrap();
        std::os::unix::fs::symlink("1", machine.host.proc("self")).unwrap();
    };
    let (v1, v2) = (Machine::v1(), Machine::v2());
    contained(&v1);
    contained(&v2);
    // Every directory of the recorded node would look as if nobody was in it.
    let inventory = recorded("k8s-1.36-cgroupv1");
    let mut scraped = Scraped::new(v1);
    for seconds in [0, 10, 500] {
        let samples = scraped.at(seconds, Ok(&inventory));
        assert_eq!(reasons(&samples), [Reason::Denied]);
        assert!(samples.errors()[0].to_string().contains("hostPID"));
        assert_eq!(orphaned(&samples), [Some(0.0), Some(0.0), None], "of the others the runtime tells");
        assert_eq!(by_qos(&samples, "pod"), [Some(1.0), Some(7.0), Some(3.0)]);
    }
    let samples = scraped.at(600, Err(Error::absent("no runtime")));
    assert_eq!((reasons(&samples), orphaned(&samples)), (vec![Reason::Denied], [None; 3]));
    assert_eq!(samples.value(&CONTAINERS, &["running"]), None);

    // v2 says itself which cgroups have processes, whoever asks.
    let samples = collect(&v2);
    assert_eq!((reasons(&samples), orphaned(&samples)), (vec![], NONE));
}
