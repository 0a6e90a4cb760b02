//! Mode task_limit on the running kernel: a cgroup below kubepods in which a shell forks to the limit, and a kubelet in
//! a cgroup with a limit of its own. The witnesses are the files of the cgroups and the listing of `/proc/PID/task`.
//! Which cgroup counts a refused fork differs by kernel and hierarchy: here it is told by what the files say.
//!
//! Needs root and a hierarchy with the pids controller, v1 or v2, without a kubelet's cgroups; says loudly what it
//! skips elsewhere. Everything made here is removed again, also after a failure.
#![allow(clippy::disallowed_methods, reason = "a test makes its machine of files")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use headroom::host::{Deadline, Host, Roots};
use headroom::kubelet::handle;
use headroom::kubelet::sources::Overrides;
use headroom::metric::{Metric, Samples};
use headroom::modes::{Collector, Context, task_limit};
use headroom::services::Services;

use crate::common::hierarchies::{self, PURE_V2, v2};
use crate::common::{self, eventually_within};
use crate::eviction::{no_kubelet_here, programs, start};

const UID: &str = "6ae71c5f-858e-4bfd-976d-43c5b79937a0";
const V1: &str = "/sys/fs/cgroup/pids";

/// Cgroups of one pod and one container, below kubepods in each hierarchy that is looked at; removed when dropped.
struct Lab {
    /// With the pids controller.
    pids: &'static Path,
    made: Vec<PathBuf>,
    _lock: File,
}

impl Lab {
    fn open() -> Option<Self> {
        let skip = |what: &str| {
            common::say_skip(format_args!("{what}"));
            None
        };
        if !common::is_root() {
            return skip("not root: cannot make cgroups");
        }
        let memory = Path::new(hierarchies::memory()?);
        let pids = Path::new(if *PURE_V2 { v2() } else { V1 });
        if !pids.join("cgroup.procs").exists() {
            return skip("no cgroup hierarchy with the pids controller");
        }
        let lock = common::machine_lock();
        let mut lab = Lab { pids, made: Vec::new(), _lock: lock };
        for root in [memory, pids] {
            let kubepods = root.join("kubepods");
            if lab.made.contains(&kubepods) {
                continue;
            }
            if kubepods.exists() || root.join("kubepods.slice").exists() {
                return skip("kubepods exists: this is a Kubernetes node");
            }
            lab.made.push(kubepods);
        }
        lab.container(1);
        Some(lab)
    }

    /// A cgroup of ours in the hierarchy of pids.
    fn at(&self, path: &str) -> PathBuf {
        self.pids.join(path)
    }

    fn pod(&self) -> PathBuf {
        self.at(&format!("kubepods/burstable/pod{UID}"))
    }

    /// Makes a container of the pod.
    fn container(&self, number: u32) -> PathBuf {
        let path = format!("burstable/pod{UID}/{number:064x}");
        for kubepods in &self.made {
            let container = kubepods.join(&path);
            fs::create_dir_all(container.parent().unwrap()).unwrap();
            if *PURE_V2 {
                for above in container
                    .ancestors()
                    .skip(1)
                    .take_while(|above| above.starts_with(kubepods))
                    .collect::<Vec<_>>()
                    .iter()
                    .rev()
                {
                    fs::write(above.join("cgroup.subtree_control"), "+memory +pids").unwrap();
                }
            }
            fs::create_dir(&container).unwrap();
        }
        self.pod().join(format!("{number:064x}"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for made in &self.made {
            empty(made);
        }
    }
}

/// Ends what is in a cgroup and below it, and removes it.
fn empty(cgroup: &Path) {
    for _ in 0..500 {
        for pid in processes(cgroup) {
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let _ = Command::new("find").arg(cgroup).args(["-depth", "-type", "d", "-delete"]).output();
        if !cgroup.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    eprintln!("{} could not be removed", cgroup.display());
}

fn files_below(cgroup: &Path, name: &str) -> Vec<PathBuf> {
    let found = Command::new("find").arg(cgroup).args(["-name", name]).output().unwrap();
    String::from_utf8(found.stdout).unwrap().lines().map(PathBuf::from).collect()
}

fn processes(cgroup: &Path) -> Vec<i32> {
    let texts =
        files_below(cgroup, "cgroup.procs").into_iter().map(|file| fs::read_to_string(file).unwrap_or_default());
    texts.collect::<String>().lines().map(|line| line.parse().unwrap()).collect()
}

/// `ls /proc/PID/task` of all of them.
fn tasks(cgroup: &Path) -> f64 {
    let of = |pid: i32| fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    processes(cgroup).into_iter().map(of).sum::<usize>() as f64
}

fn number(file: PathBuf) -> f64 {
    fs::read_to_string(file).unwrap().trim().parse().unwrap()
}

fn refused(file: &Path) -> f64 {
    fs::read_to_string(file).unwrap().lines().find_map(|line| line.strip_prefix("max ")?.parse().ok()).unwrap()
}

/// True where a refusal counts in the cgroup whose limit it was, and above.
fn counts_by_limit(lab: &Lab) -> bool {
    lab.pod().join("pids.events.local").exists()
}

/// What the kernel counted for the pod.
fn refused_in_pod(lab: &Lab) -> f64 {
    if counts_by_limit(lab) {
        return refused(&lab.pod().join("pids.events"));
    }
    files_below(&lab.pod(), "pids.events").iter().map(|file| refused(file)).sum()
}

/// A shell in this cgroup that starts sleeping processes until it may not.
fn fork_to_the_limit(cgroup: &Path) {
    let script = format!(
        "echo $$ > {}/cgroup.procs; i=0; while [ $i -lt 200 ]; do i=$((i+1)); sleep 600 & done",
        cgroup.display()
    );
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).stdin(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut shell = shell.stdout(std::process::Stdio::null()).spawn().unwrap();
    // A shell that is refused ends; bash tries it five times before.
    eventually_within(60, "the shell was refused", || shell.try_wait().unwrap().is_some());
}

fn collector() -> Box<dyn Collector> {
    let overrides = Overrides { root_dir: Some("/".into()), ..Overrides::default() };
    let services = Services::with_kubelet(handle::Settings { overrides, ..handle::Settings::default() });
    // No runtime is asked: pods have no names, and are not waited for.
    (task_limit::MODE.build)(&Default::default(), &Services { runtime: Default::default(), ..services })
}

fn collect(collector: &dyn Collector) -> Samples {
    let host = Host::new(Roots::default());
    let mut samples = collector.collect(Context::new(&host, Deadline::after(Duration::from_secs(30)))).unwrap();
    samples.refuse_duplicates();
    samples.refuse_undeclared(task_limit::MODE.metrics);
    assert!(samples.errors().is_empty(), "{:?}", samples.errors());
    samples
}

fn of_pod(samples: &Samples, metric: &'static Metric) -> Option<f64> {
    samples.value(metric, &["", "", UID])
}

/// Eight scrapes: in one of them it is the turn of what is not near.
fn collect_all(collector: &dyn Collector) -> Samples {
    (0..8).map(|_| collect(collector)).last().unwrap()
}

#[test]
fn forks_to_the_limit_of_a_pod_are_counted_as_the_kernel_counts_them() {
    alone!();
    let Some(lab) = Lab::open() else { return };
    let container = lab.pod().join(format!("{:064x}", 1));
    fs::write(lab.pod().join("pids.max"), "12").unwrap();
    let collector = collector();
    let samples = collect(&*collector);
    assert_eq!(of_pod(&samples, &task_limit::POD_TASKS), Some(0.0));
    assert_eq!(of_pod(&samples, &task_limit::POD_LIMIT), Some(12.0));
    assert_eq!(of_pod(&samples, &task_limit::POD_REFUSALS), Some(0.0), "it starts at 0");

    fork_to_the_limit(&container);
    let samples = collect(&*collector);
    let witness = tasks(&lab.pod());
    assert!((10.0..=12.0).contains(&witness), "{witness}");
    assert_eq!(of_pod(&samples, &task_limit::POD_TASKS), Some(witness));
    assert_eq!(witness, number(lab.pod().join("pids.current")));
    assert_eq!(of_pod(&samples, &task_limit::POD_LIMIT), Some(12.0));
    assert!(refused_in_pod(&lab) >= 1.0);
    assert_eq!(of_pod(&samples, &task_limit::POD_REFUSALS), Some(refused_in_pod(&lab)));
    let threads = samples.rows().iter().find(|row| std::ptr::eq(row.metric, &raw const task_limit::THREADS)).unwrap();
    let [pid, comm, role, _, _, uid] = &*threads.labels else { panic!("{threads:?}") };
    assert!(processes(&container).contains(&pid.parse().unwrap()));
    assert_eq!((&**comm, &**role, &**uid, threads.value), ("sleep", "pod", UID, 1.0));

    // The limit above binds, and refuses.
    let burstable = lab.at("kubepods/burstable");
    fs::write(burstable.join("pids.max"), witness.to_string()).unwrap();
    fs::write(lab.pod().join("pids.max"), "max").unwrap();
    let samples = collect_all(&*collector);
    assert_eq!(of_pod(&samples, &task_limit::POD_LIMIT), Some(witness));
    let (before, above) = (refused_in_pod(&lab), refused(&burstable.join("pids.events")));
    fork_to_the_limit(&container);
    let samples = collect_all(&*collector);
    assert_eq!(of_pod(&samples, &task_limit::POD_REFUSALS), Some(refused_in_pod(&lab)));
    let labels = ["burstable", "/kubepods/burstable"];
    if counts_by_limit(&lab) {
        assert_eq!(refused_in_pod(&lab), before, "it was not the pod's limit");
        assert!(refused(&burstable.join("pids.events")) > above);
        let count = samples.value(&task_limit::NODE_REFUSALS, &labels);
        assert_eq!(count, Some(refused(&burstable.join("pids.events"))));
    } else {
        assert!(refused_in_pod(&lab) > before, "the fork was the pod's");
        assert_eq!(samples.value(&task_limit::NODE_REFUSALS, &labels), None);
    }
    assert_eq!(samples.value(&task_limit::NODE_TASKS, &labels), Some(number(burstable.join("pids.current"))));

    // A container that goes takes no count along, and the next one adds to it.
    let so_far = of_pod(&samples, &task_limit::POD_REFUSALS);
    empty(&container);
    for other in lab.made.iter().filter(|other| !container.starts_with(other)) {
        empty(&other.join("burstable").join(format!("pod{UID}")).join(format!("{:064x}", 1)));
    }
    fs::write(lab.pod().join("pids.max"), "5").unwrap();
    let next = lab.container(2);
    assert_eq!(of_pod(&collect_all(&*collector), &task_limit::POD_REFUSALS), so_far);
    fork_to_the_limit(&next);
    let samples = collect_all(&*collector);
    let now = of_pod(&samples, &task_limit::POD_REFUSALS);
    assert!(now > so_far, "{now:?} {so_far:?}");
    if counts_by_limit(&lab) {
        assert_eq!(now, Some(refused_in_pod(&lab)));
    }
    // What the mode says of all pods is what kubepods has.
    let all: f64 = samples
        .rows()
        .iter()
        .filter(|row| std::ptr::eq(row.metric, &raw const task_limit::POD_TASKS))
        .map(|row| row.value)
        .sum();
    assert_eq!(all, number(lab.at("kubepods/pids.current")));
}

#[test]
fn the_unit_of_a_kubelet_is_found_by_its_process() {
    alone!();
    if !common::is_root() {
        skip!("not root: cannot make cgroups");
    }
    if !no_kubelet_here() {
        return;
    }
    let Some(lab) = Lab::open() else { return };
    let name = format!("headroom-task-{}.service", common::unique());
    let unit = lab.at(&name);
    fs::create_dir(&unit).unwrap();
    let unit = Unit(unit);
    fs::write(unit.0.join("pids.max"), "3").unwrap();
    let dir = programs(&["kubelet"]);
    let kubelet = start(&mut Command::new(dir.path().join("kubelet")), "kubelet");
    fs::write(unit.0.join("cgroup.procs"), kubelet.0.id().to_string()).unwrap();
    let collector = collector();
    let samples = collect(&*collector);
    let labels = ["kubelet", &format!("/{name}")];
    assert_eq!(samples.value(&task_limit::NODE_TASKS, &labels), Some(tasks(&unit.0)));
    assert_eq!(samples.value(&task_limit::NODE_LIMIT, &labels), Some(3.0));
    assert_eq!(samples.value(&task_limit::NODE_REFUSALS, &labels), Some(0.0));
    let pid = kubelet.0.id().to_string();
    assert_eq!(samples.value(&task_limit::THREADS, &[&pid, "kubelet", "kubelet", "", "", ""]), Some(1.0));

    fork_to_the_limit(&unit.0);
    let samples = collect(&*collector);
    assert_eq!(samples.value(&task_limit::NODE_TASKS, &labels), Some(tasks(&unit.0)));
    let count = refused(&unit.0.join("pids.events"));
    assert!(count >= 1.0);
    assert_eq!(samples.value(&task_limit::NODE_REFUSALS, &labels), Some(count));
}

/// A cgroup of a test's own.
struct Unit(PathBuf);

impl Drop for Unit {
    fn drop(&mut self) {
        empty(&self.0);
    }
}

/// Root's row of `/proc/key-users`, as the test reads it.
fn keys_of_root() -> [f64; 4] {
    let text = fs::read_to_string("/proc/key-users").unwrap();
    let row = text.lines().find(|line| line.trim_start().starts_with("0:")).unwrap();
    let numbers: Vec<f64> = row.split([' ', '/', ':']).filter_map(|word| word.parse().ok()).collect();
    numbers[numbers.len() - 4..].try_into().unwrap()
}

#[test]
fn keys_are_those_of_the_kernel() {
    if !Path::new("/proc/key-users").exists() {
        common::not_in_this_kernel("keys");
        return;
    }
    let collector = collector();
    for _ in 0..100 {
        let before = keys_of_root();
        let host = Host::new(Roots::default());
        let samples = collector.collect(Context::new(&host, Deadline::after(Duration::from_secs(30)))).unwrap();
        if keys_of_root() == before {
            use task_limit::{KEY_BYTES, KEY_LIMIT_BYTES, KEYS, KEYS_LIMIT};
            let shown = [&KEYS, &KEYS_LIMIT, &KEY_BYTES, &KEY_LIMIT_BYTES].map(|metric| samples.value(metric, &["0"]));
            assert_eq!(shown, before.map(Some));
            return;
        }
    }
    panic!("the keys of root never hold still for one collection");
}
