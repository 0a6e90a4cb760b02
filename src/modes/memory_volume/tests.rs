//! The whole mode on the recorded nodes, on the recorded course of the incident, and on odd machines.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::error::Reason;
use crate::golden::{filesystem, fixtures, inventory};
use crate::host::cgroup::recorded::Machine;
use crate::host::filesystem::Filesystem;
use crate::host::{Deadline, Host, Roots};
use crate::kubelet::handle;
use crate::kubelet::sources::Overrides;
use crate::runtime::Inventory;
use crate::services::Services;

const V1: &str = "k8s-1.36-cgroupv1";
const V2: &str = "k8s-1.36-cgroupv2";
const ROOT_V1: &str = "/var/lib/tb/kubelet";
const ROOT_V2: &str = "/var/lib/kubelet";
const SOME_POD: &str = "memory/kubepods/burstable/podbcb1982f-2628-449a-accb-e40ecdefbb3b";

fn collector(root_dir: &str, runtime: Runtime) -> Box<dyn Collector> {
    let overrides = Overrides { root_dir: Some(root_dir.into()), ..Overrides::default() };
    let kubelet = Kubelet::new(handle::Settings { overrides, ..handle::Settings::default() });
    (MODE.build)(&Default::default(), &Services { kubelet, ..Services::with_runtime(runtime) })
}

fn try_collect(collector: &dyn Collector, host: &Host) -> Result<Samples> {
    let mut samples = collector.collect(Context::new(host, Deadline::after(Duration::from_secs(30))))?;
    samples.refuse_duplicates();
    samples.refuse_undeclared(MODE.metrics);
    Ok(samples)
}

fn collect(collector: &dyn Collector, host: &Host) -> Samples {
    try_collect(collector, host).unwrap()
}

fn reasons(samples: &Samples) -> Vec<Reason> {
    samples.errors().iter().map(Error::reason).collect()
}

/// Series of a family.
fn rows(samples: &Samples, metric: &'static Metric) -> usize {
    samples.rows().iter().filter(|row| std::ptr::eq(row.metric, metric)).count()
}

/// The node as it was recorded: mount table, statfs answers, and the container's own mount table.
fn recorded(machine: &Machine, name: &str, container: u32) -> Host {
    let text = |path: &str| std::fs::read_to_string(fixtures().join("node").join(name).join(path)).unwrap();
    machine.proc("1/mountinfo", &text("proc/host/mountinfo.txt"));
    machine.proc("vmstat", &text("proc/host/vmstat.txt"));
    machine.proc(&format!("{container}/mountinfo"), &text("proc/container/mountinfo.txt"));
    Host::recorded(machine.host.roots().clone(), text("proc/host/statfs.txt").lines().map(filesystem).collect())
}

fn named(name: &str) -> Runtime {
    Runtime::fixed(Ok(inventory::recorded(name)))
}

#[test]
fn the_recorded_nodes() {
    for (machine, name, container, root_dir, uid, node_kills) in [
        (Machine::v1(), V1, 11_133, ROOT_V1, "bcb1982f-2628-449a-accb-e40ecdefbb3b", 60.0),
        (Machine::v2(), V2, 2_870, ROOT_V2, "dffe967d-a11f-417e-8310-08020db089c7", 0.0),
    ] {
        let host = recorded(&machine, name, container);
        let samples = collect(&*collector(root_dir, named(name)), &host);
        assert_eq!(reasons(&samples), [], "{name}");
        let labels = ["default", "memvol", uid, "cache"];
        // statfs.txt: 16384 blocks of 4096, 14336 of them free.
        assert_eq!(samples.value(&USED, &labels), Some(8_388_608.0), "{name}");
        assert_eq!(samples.value(&SIZE, &labels), Some(67_108_864.0));
        assert_eq!(samples.value(&LIMIT, &labels), Some(67_108_864.0));
        for scope in ["pod", "container"] {
            let labels = ["default", "memvol", uid, "cache", scope];
            assert_eq!(samples.value(&CGROUP_LIMIT, &labels), Some(67_108_864.0), "{scope}");
        }
        assert_eq!(samples.value(&KILLS, &labels[..3]), Some(0.0), "it starts at 0");
        assert_eq!(samples.value(&NODE_KILLS, &[]), Some(node_kills));
        assert_eq!(rows(&samples, &USED), 1, "projected volumes are tmpfs, too, and no emptyDirs");
        assert_eq!(rows(&samples, &KILLS), 1, "nobody else was killed, or had a count recorded");
    }
}

/// One moment of the recorded incident.
struct Moment {
    /// Size of the volume and bytes in it, once it was mounted.
    volume: Option<(u64, u64)>,
    /// Of the pod and of each container: the name, cut short, the limit and the counts.
    cgroups: Vec<(String, String, String)>,
}

/// The recorded incident: rows of the mount table, and what was seen every few seconds.
fn incident(text: &str) -> (String, Vec<Moment>) {
    let mut moments: Vec<Moment> = Vec::new();
    for line in text.lines() {
        if line.starts_with("t=") {
            let field = |name: &str| {
                line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse::<u64>().ok())
            };
            let volume = field("blocks").map(|blocks| (4096 * blocks, 4096 * (blocks - field("bavail").unwrap())));
            moments.push(Moment { volume, cgroups: Vec::new() });
        } else if let Some(cgroup) = line.strip_prefix("   ").filter(|line| line.contains(" shmem=")) {
            let words: Vec<&str> = cgroup.split_whitespace().collect();
            let limit = words[2].split_once('=').unwrap().1;
            let counts: Vec<&str> = words[3..].iter().filter(|word| !word.contains('=')).copied().collect();
            let counts = counts.chunks(2).map(|pair| pair.join(" ") + "\n").collect();
            moments.last_mut().unwrap().cgroups.push((words[0].to_owned(), limit.to_owned(), counts));
        }
    }
    let table = text.lines().filter(|line| line.contains(" - tmpfs ")).map(|line| line.to_owned() + "\n").collect();
    (table, moments)
}

/// The pod of a recorded incident.
struct Subject {
    recording: &'static str,
    uid: &'static str,
    root_dir: &'static str,
    cgroup: &'static str,
    limit: &'static str,
    kills: &'static str,
}

impl Subject {
    /// Lays the moments out as files, one after the other, and says what the mode makes of each: used, limit, kills.
    fn replay(&self, machine: &Machine) -> Vec<[Option<u64>; 3]> {
        let (table, moments) = incident(self.recording);
        let collector = collector(self.root_dir, Runtime::default());
        let volume = format!("{}/pods/{}/volumes/kubernetes.io~empty-dir/cache", self.root_dir, self.uid);
        let mut said = Vec::new();
        for (index, moment) in moments.iter().enumerate() {
            self.lay_out(machine, index, &moment.cgroups);
            machine.proc("1/mountinfo", if moment.volume.is_some() { &table } else { "" });
            let answer = |(capacity_bytes, used)| {
                let available_bytes = capacity_bytes - used;
                (PathBuf::from(&volume), Filesystem { capacity_bytes, available_bytes, ..NOTHING })
            };
            let answers = moment.volume.map(answer).into_iter().collect();
            let samples = collect(&*collector, &Host::recorded(machine.host.roots().clone(), answers));
            assert_eq!(reasons(&samples), [], "{index}");
            let labels = ["", "", self.uid, "cache"];
            let used = samples.value(&USED, &labels);
            let values = [used, samples.value(&LIMIT, &labels), samples.value(&KILLS, &labels[..3])];
            said.push(values.map(|value| value.map(|value| value as u64)));
        }
        said
    }

    fn lay_out(&self, machine: &Machine, index: usize, cgroups: &[(String, String, String)]) {
        let pod = machine.cgroup_path(self.cgroup);
        for entry in std::fs::read_dir(&pod).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap();
            let gone = entry.path().is_dir() && !cgroups.iter().any(|(short, ..)| name.starts_with(short));
            if gone {
                // Moved, not removed: the inode number of a cgroup is never used again, that of a folder may be.
                std::fs::rename(entry.path(), machine.path().join(format!("{index}-{name}"))).unwrap();
            }
        }
        for (short, limit, counts) in cgroups {
            let directory = match short.strip_prefix("cri-containerd-") {
                Some(id) => format!("{}/cri-containerd-{id:0<64}.scope", self.cgroup),
                None if short.contains("pod") => self.cgroup.to_owned(),
                None => format!("{}/{short:0<64}", self.cgroup),
            };
            machine.cgroup(&format!("{directory}/{}", self.limit), limit);
            machine.cgroup(&format!("{directory}/{}", self.kills), counts);
        }
    }
}

const NOTHING: Filesystem =
    Filesystem { capacity_bytes: 0, available_bytes: 0, inodes: 0, inodes_free: 0, mount: None };

#[test]
fn the_recorded_incident_on_v1() {
    let subject = Subject {
        recording: include_str!("../../../tests/fixtures/memory_volume/v1-d-oom-tmpfs.txt"),
        uid: "3ae87ca0-50dc-450d-ad28-494da581d3e1",
        root_dir: ROOT_V1,
        cgroup: "memory/kubepods/burstable/pod3ae87ca0-50dc-450d-ad28-494da581d3e1",
        limit: "memory.limit_in_bytes",
        kills: "memory.oom_control",
    };
    let said = subject.replay(&Machine::v1());
    let kills: Vec<_> = said.iter().map(|[.., kills]| *kills).collect();
    // The container with 42 was replaced after 49 s; the new one counted 0, 0, 3, 7.
    let expected = [0, 1, 5, 10, 14, 18, 22, 26, 30, 34, 38, 42, 42, 42, 45, 49].map(Some);
    assert_eq!((kills[0], &kills[1..]), (None, &expected[..]), "no volume yet at first");
    assert_eq!(said[0], [None; 3]);
    // 40960 - 36864 blocks; 40960 - 33142: 95 % of the writer's limit, 20 % of the size.
    assert_eq!(said[1][0], Some(16_777_216));
    assert_eq!(said[15][0], Some(32_022_528), "what the kubelet said as well, in usedBytes");
    assert!(said[1..].iter().all(|[_, limit, _]| *limit == Some(32 << 20)), "{said:?}");
}

#[test]
fn the_recorded_incident_on_v2() {
    let subject = Subject {
        recording: include_str!("../../../tests/fixtures/memory_volume/v2-d-oom-tmpfs.txt"),
        uid: "8b432064-7347-4bb9-99e6-8814d9a61bae",
        root_dir: ROOT_V2,
        cgroup: "kubepods.slice/kubepods-burstable.slice/\
                 kubepods-burstable-pod8b432064_7347_4bb9_99e6_8814d9a61bae.slice",
        limit: "memory.max",
        kills: "memory.events",
    };
    let said = subject.replay(&Machine::v2());
    let [size, limit] = [160 << 20, 32 << 20].map(Some);
    assert_eq!(
        said,
        [
            [Some(0), size, Some(0)],
            [Some(8_388_608), limit, Some(0)],
            [Some(32_067_584), limit, Some(3)],
            // The container with the small limit is down, and not forgotten.
            [Some(32_067_584), limit, Some(3)],
            [Some(32_104_448), limit, Some(6)],
            [Some(32_104_448), limit, Some(6)],
        ]
    );
}

/// A v1 machine with what mountinfo has of volumes, and every answer the same.
fn with_volumes(machine: &Machine, rows: &[String]) -> Host {
    machine.proc("1/mountinfo", &(rows.join("\n") + "\n"));
    let paths = rows.iter().map(|row| PathBuf::from(row.split(' ').nth(4).unwrap()));
    let answers = paths.enumerate().map(|(index, path)| {
        (path, Filesystem { capacity_bytes: 2000, available_bytes: 2000 - index as u64, ..NOTHING })
    });
    Host::recorded(machine.host.roots().clone(), answers.collect())
}

fn row(minor: usize, uid: &str, name: &str) -> String {
    format!(
        "60 42 0:{minor} / {ROOT_V2}/pods/{uid}/volumes/kubernetes.io~empty-dir/{name} rw - tmpfs tmpfs rw,size=1k,noswap"
    )
}

#[test]
fn caps_leave_those_nearest_their_limit_and_the_last_that_were_killed() {
    let machine = Machine::v1();
    let mut settings = super::super::Settings::default();
    settings.memory_volume.max_volumes = 3;
    let collector = (MODE.build)(&settings, &Services::default());
    let rows_of: Vec<String> = (0..10).map(|index| row(index, &format!("v{index}"), "cache")).collect();
    let host = with_volumes(&machine, &rows_of);
    let kill = |pod: usize, count: usize| {
        let text = format!("oom_kill_disable 0\nunder_oom 0\noom_kill {count}\n");
        machine.cgroup(&format!("memory/kubepods/besteffort/podk{pod}/memory.oom_control"), &text);
    };
    (0..MOST_PODS + 20).for_each(|pod| kill(pod, usize::from(pod != 7)));
    let samples = collect(&*collector, &host);
    let shown = |index: usize| samples.value(&USED, &["", "", &format!("v{index}"), "cache"]).is_some();
    assert_eq!((0..10).filter(|&index| shown(index)).collect::<Vec<_>>(), [7, 8, 9], "the fullest");
    assert_eq!(rows(&samples, &KILLS), MOST_PODS);
    assert_eq!(samples.dropped(), 7 + 19);
    assert_eq!(samples.value(&KILLS, &["", "", "k7"]), None, "not one kill, no volume");

    // Whoever is killed now is shown.
    let before: Vec<usize> =
        (0..MOST_PODS + 20).filter(|pod| samples.value(&KILLS, &["", "", &format!("k{pod}")]).is_none()).collect();
    before.iter().for_each(|&pod| kill(pod, 2));
    let samples = collect(&*collector, &host);
    for pod in before {
        assert_eq!(samples.value(&KILLS, &["", "", &format!("k{pod}")]), Some(2.0));
    }
}

/// Each of the others is nearer its limit.
#[test]
fn a_pod_with_very_many_volumes_takes_no_place_from_another() {
    for (of_pod, most) in [(120, 100), (MOST_VOLUMES + 200, MOST_VOLUMES)] {
        let machine = Machine::v1();
        let mut settings = super::super::Settings::default();
        settings.memory_volume.max_volumes = most;
        let collector = (MODE.build)(&settings, &Services::default());
        let many = (1..=of_pod).map(|index| row(index, "a-many", &format!("v{index:04}")));
        let host = with_volumes(&machine, &[row(0, "victim", "cache")].into_iter().chain(many).collect::<Vec<_>>());
        let samples = collect(&*collector, &host);
        assert!(samples.value(&USED, &["", "", "victim", "cache"]).is_some());
        assert_eq!(rows(&samples, &USED), most);
        let lost: Vec<(&str, u64)> = samples.dropped_by().pods.iter().map(|(pod, count)| (&*pod.uid, *count)).collect();
        assert_eq!((lost, samples.dropped_by().node), (vec![("a-many", (of_pod + 1 - most) as u64)], 0));
    }
}

#[test]
fn a_runtime_that_is_silent_costs_names_only() {
    let silent = Runtime::fixed(Err(Error::new(Reason::Timeout, "no answer")));
    let none = Runtime::fixed(Err(Error::absent("no runtime here")));
    let empty = Inventory { containers: Vec::new(), sandboxes: Vec::new(), ..inventory::recorded(V1) };
    let uid = "bcb1982f-2628-449a-accb-e40ecdefbb3b";
    let forgetful = Runtime::fixed(Ok(empty)).that_names_at_once();
    for (runtime, expected) in [(silent, &[Reason::Timeout][..]), (none, &[]), (forgetful, &[])] {
        let machine = Machine::v1();
        let host = recorded(&machine, V1, 11_133);
        let samples = collect(&*collector(ROOT_V1, runtime), &host);
        assert_eq!(reasons(&samples), expected);
        assert_eq!(samples.value(&USED, &["", "", uid, "cache"]), Some(8_388_608.0));
        assert_eq!(samples.value(&KILLS, &["", "", uid]), Some(0.0));
    }
}

#[test]
fn the_series_of_a_pod_keep_their_names_through_its_life() {
    let machine = Machine::v1();
    let host = recorded(&machine, V1, 11_133);
    let uid = "bcb1982f-2628-449a-accb-e40ecdefbb3b";
    let whole = Arc::new(inventory::recorded(V1));
    let empty = Arc::new(Inventory { containers: Vec::new(), sandboxes: Vec::new(), ..inventory::recorded(V1) });
    let away = || Err(Error::new(Reason::Io, "connection refused"));
    let now = Arc::new(Mutex::new(Ok(Arc::clone(&empty))));
    let answer = Arc::clone(&now);
    let collector = collector(ROOT_V1, Runtime::answering(move || answer.lock().unwrap().clone()));
    // Before its sandbox there is nobody to name it: it is not shown under no name and then again under its own.
    let samples = collect(&*collector, &host);
    assert_eq!((rows(&samples, &USED), rows(&samples, &KILLS)), (0, 0));
    // Known, then the runtime is away, then it has forgotten what is about to go.
    for answer in [Ok(whole), away(), Ok(empty)] {
        *now.lock().unwrap() = answer;
        let samples = collect(&*collector, &host);
        assert_eq!(reasons(&samples), []);
        assert_eq!(samples.value(&USED, &["default", "memvol", uid, "cache"]), Some(8_388_608.0));
        assert_eq!(samples.value(&KILLS, &["default", "memvol", uid]), Some(0.0));
        assert_eq!(samples.value(&USED, &["", "", uid, "cache"]), None);
    }
}

#[test]
fn a_runtime_is_not_asked_without_a_pod_to_ask_about() {
    let machine = Machine::v1();
    machine.proc("1/mountinfo", "");
    let runtime = Runtime::answering(|| panic!("asked"));
    let kept = SOME_POD.to_owned() + "/memory.oom_control";
    machine.cgroup(&kept, "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n");
    let samples = collect(&*collector(ROOT_V1, runtime), &machine.host);
    assert_eq!((rows(&samples, &USED), rows(&samples, &KILLS)), (0, 0));
    assert_eq!(reasons(&samples), []);
}

#[test]
fn machines_without_any_of_it() {
    let machine = Machine::empty();
    let nothing = try_collect(&*collector(ROOT_V2, Runtime::default()), &machine.host);
    assert_eq!(nothing.unwrap_err().reason(), Reason::Absent);
    // Any Linux since 4.13.
    machine.proc("vmstat", "nr_free_pages 1\noom_kill 2\n");
    machine.proc("1/mountinfo", "24 1 254:0 / / rw - ext4 /dev/vda rw\n");
    let samples = collect(&*collector(ROOT_V2, Runtime::default()), &machine.host);
    assert_eq!(reasons(&samples), []);
    assert_eq!((samples.value(&NODE_KILLS, &[]), samples.rows().len()), (Some(2.0), 1));
    // An older one.
    machine.proc("vmstat", "nr_free_pages 1\n");
    let nothing = try_collect(&*collector(ROOT_V2, Runtime::default()), &machine.host);
    assert_eq!(nothing.unwrap_err().reason(), Reason::Absent);
}

#[test]
fn kernels_that_do_not_count_kills() {
    let machine = Machine::v1();
    let host = recorded(&machine, V1, 11_133);
    machine.cgroup(&format!("{SOME_POD}/memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\n");
    let samples = collect(&*collector(ROOT_V1, Runtime::default()), &host);
    assert_eq!((rows(&samples, &KILLS), rows(&samples, &USED)), (0, 1), "absent is not zero");
    assert_eq!(reasons(&samples), []);
}

#[test]
fn which_counts_add_up() {
    let counts = |count: u32| format!("oom_kill_disable 0\nunder_oom 0\noom_kill {count}\n");
    let machine = Machine::v1();
    let host = recorded(&machine, V1, 11_133);
    let id = "55f765a8788dcccb46fae55db15b169605b66df347604a06a4f6ed7c15f879c6";
    // v1: each for itself, also what a container made inside its own.
    machine.cgroup(&format!("{SOME_POD}/memory.oom_control"), &counts(1));
    machine.cgroup(&format!("{SOME_POD}/{id}/memory.oom_control"), &counts(20));
    machine.cgroup(&format!("{SOME_POD}/{id}/system.slice/memory.oom_control"), &counts(300));
    machine.cgroup("memory/kubepods/burstable/memory.oom_control", &counts(4000));
    machine.cgroup(&format!("memory/kubepods/burstable/{id}/memory.oom_control"), &counts(50_000));
    let samples = collect(&*collector(ROOT_V1, Runtime::default()), &host);
    let labels = ["", "", "bcb1982f-2628-449a-accb-e40ecdefbb3b"];
    assert_eq!((samples.value(&KILLS, &labels), rows(&samples, &KILLS)), (Some(321.0), 1));

    // v2: the pod's own has them all; without a volume nothing below it is read.
    let machine = Machine::v2();
    machine.proc("1/mountinfo", "");
    let pod = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podx_y.slice";
    machine.cgroup(&format!("{pod}/memory.events"), "low 0\nhigh 0\nmax 18\noom 1\noom_kill 3\noom_group_kill 1\n");
    machine.cgroup(&format!("{pod}/cri-containerd-{id}.scope/memory.events"), "oom_kill 2\n");
    let samples = collect(&*collector(ROOT_V2, Runtime::default()), &machine.host);
    assert_eq!(samples.value(&KILLS, &["", "", "x-y"]), Some(3.0));
    assert_eq!(reasons(&samples), []);
}

#[test]
fn limits_that_are_none_or_nonsense() {
    let machine = Machine::v1();
    let host = recorded(&machine, V1, 11_133);
    let id = "55f765a8788dcccb46fae55db15b169605b66df347604a06a4f6ed7c15f879c6";
    let files = [SOME_POD.to_owned(), format!("{SOME_POD}/{id}")].map(|dir| dir + "/memory.limit_in_bytes");
    let limits = |pod: &str, container: &str| {
        machine.cgroup(&files[0], pod);
        machine.cgroup(&files[1], container);
        let samples = collect(&*collector(ROOT_V1, Runtime::default()), &host);
        let labels = ["", "", "bcb1982f-2628-449a-accb-e40ecdefbb3b", "cache"];
        assert!(samples.value(&USED, &labels).is_some());
        (samples.value(&LIMIT, &labels), rows(&samples, &CGROUP_LIMIT), reasons(&samples))
    };
    let none = "9223372036854771712\n";
    assert_eq!(limits(none, none), (None, 0, vec![]), "what remains is the size");
    assert_eq!(limits(none, "33554432\n"), (Some(33_554_432.0), 1, vec![]));
    assert_eq!(limits("many\n", "33554432\n"), (Some(33_554_432.0), 1, vec![Reason::Malformed]));
}

#[test]
fn what_is_a_memory_backed_volume() {
    let at = |path: &str, fstype: &str| format!("60 42 0:7 / {path} rw shared:2 - {fstype} x rw,size=1k\n");
    let table = [
        at("/k/pods/u1/volumes/kubernetes.io~empty-dir/a", "tmpfs"),
        at(r"/k/pods/u1/volumes/kubernetes.io~empty-dir/with\040space", "tmpfs"),
        at("/data/k/pods/u2/volumes/kubernetes.io~empty-dir/a", "tmpfs"),
        at("/host/k/pods/u3/volumes/kubernetes.io~empty-dir/a", "tmpfs"),
        at("/k/pods/u1/volumes/kubernetes.io~empty-dir/huge", "hugetlbfs"),
        at("/k/pods/u1/volumes/kubernetes.io~empty-dir/disk", "ext4"),
        at("/k/pods/u1/volumes/kubernetes.io~secret/a", "tmpfs"),
        at("/k/pods/u1/volumes/kubernetes.io~projected/kubernetes.io~empty-dir", "tmpfs"),
        at("/k/pods/u1/plugins/kubernetes.io~empty-dir/wrapped_a", "tmpfs"),
        at("/k/pods/u1/volumes/kubernetes.io~empty-dir/a/below", "tmpfs"),
        at("/k/pods/u1/volumes/kubernetes.io~empty-dir/gone//deleted", "tmpfs"),
        at("/pods/u1/volumes/kubernetes.io~empty-dir", "tmpfs"),
        "60 42 x / /k/pods/u1/volumes/kubernetes.io~empty-dir/b rw - tmpfs x rw\nkubernetes.io~empty-dir/\n".to_owned(),
    ];
    let found: Vec<_> = volumes::parse(&table.concat(), Path::new("/host")).into_values().collect();
    let found: Vec<_> = found
        .iter()
        .map(|(root_dir, volume)| (root_dir.to_str().unwrap(), volume.pod_uid.as_str(), volume.name.as_str()))
        .collect();
    let expected = [("/data/k", "u2", "a"), ("/k", "u1", "a"), ("/k", "u1", "with space"), ("/k", "u3", "a")];
    assert_eq!(found, expected);
}

#[test]
fn a_root_directory_behind_a_link() {
    let machine = Machine::v1();
    std::fs::create_dir_all(machine.path().join("root/data/kubelet")).unwrap();
    std::fs::create_dir_all(machine.path().join("root/var/lib")).unwrap();
    std::os::unix::fs::symlink("/data/kubelet", machine.path().join("root/var/lib/kubelet")).unwrap();
    let host = with_volumes(
        &machine,
        &[
            row(1, "u1", "a").replace(ROOT_V2, "/data/kubelet"),
            row(2, "u2", "a").replace(ROOT_V2, "/of/another/kubelet"),
        ],
    );
    let samples = collect(&*collector(ROOT_V2, Runtime::default()), &host);
    assert!(samples.value(&USED, &["", "", "u1", "a"]).is_some());
    assert_eq!(rows(&samples, &USED), 1);
    assert_eq!(reasons(&samples), []);
}

#[test]
fn a_kubelet_with_a_mount_namespace_of_its_own() {
    let machine = Machine::v1();
    let at = |uid: &str| row(1, uid, "a").replace(ROOT_V2, "/srv/k") + "\n";
    machine.proc("1/mountinfo", &(row(1, "u0", "a") + "\n" + &at("u1") + &at("u2")));
    machine.proc("77/comm", "kubelet\n");
    machine.proc("77/cmdline", "/usr/bin/kubelet\0--root-dir=/srv/k\0");
    machine.proc("77/stat", "77 (kubelet) S 1 1 1");
    // Its first mount is its own: that is how the two tables are told apart.
    machine.proc("77/mountinfo", &("900 1 254:0 / / rw - ext4 /dev/vda rw\n".to_owned() + &at("u1") + &at("u3")));
    let answer = |(used, uid): (u64, &str)| {
        let path = format!("/srv/k/pods/{uid}/volumes/kubernetes.io~empty-dir/a");
        (path.into(), Filesystem { capacity_bytes: 100, available_bytes: 100 - used, ..NOTHING })
    };
    let answers = [(1, "u1"), (2, "u2"), (3, "u3")].into_iter().map(answer).collect();
    let host = Host::recorded(machine.host.roots().clone(), answers);
    let samples = collect(&*(MODE.build)(&Default::default(), &Services::default()), &host);
    let used = ["u0", "u1", "u2", "u3"].map(|uid| samples.value(&USED, &["", "", uid, "a"]));
    assert_eq!(
        used,
        [None, Some(1.0), Some(2.0), Some(3.0)],
        "its --root-dir; what it mounted, and what was there before"
    );
}

#[test]
fn a_mount_that_was_not_passed_on_to_us_is_said() {
    let machine = Machine::v1();
    machine.proc("1/mountinfo", &(row(999_999, "u1", "a") + "\n" + &row(999_998, "u2", "a") + "\n"));
    // The kubelet's directory is there; what was mounted on it is not.
    let roots = Roots { root: machine.path().join("root"), ..machine.host.roots().clone() };
    std::fs::create_dir_all(roots.root.join(format!("{}/pods/u1/volumes/kubernetes.io~empty-dir/a", &ROOT_V2[1..])))
        .unwrap();
    let samples = collect(&*collector(ROOT_V2, Runtime::default()), &Host::new(roots));
    assert_eq!(reasons(&samples), [Reason::Malformed]);
    let words = samples.errors()[0].to_string();
    assert!(words.contains("2 such volumes") && words.contains("HostToContainer"), "{words}");
    assert_eq!((rows(&samples, &USED), rows(&samples, &SIZE)), (0, 0), "not the figures of the disk below");
}

#[test]
fn without_any_mount_table_the_volumes_are_unknown() {
    let machine = Machine::v1();
    let samples = collect(&*collector(ROOT_V1, Runtime::default()), &machine.host);
    assert_eq!(reasons(&samples), [Reason::Absent], "kubepods are there, so it is no machine without pods");
}

#[test]
fn limits_and_kills_behind_a_mount_that_is_missing_are_not_none() {
    let machine = Machine::empty();
    machine.proc("vmstat", "oom_kill 3\n");
    machine.proc("1/mountinfo", "");
    let volumes = collector(ROOT_V1, Runtime::default());
    assert_eq!(reasons(&collect(&*volumes, &machine.host)), [], "a machine without cgroups");
    machine.proc("cgroups", "memory\t4\t73\t1\n");
    let samples = collect(&*volumes, &machine.host);
    assert_eq!((reasons(&samples), samples.value(&NODE_KILLS, &[])), (vec![Reason::Absent], Some(3.0)));
    assert!(samples.errors()[0].to_string().contains("--path.sysfs"));
}
