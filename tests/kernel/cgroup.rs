//! The modes `cgroup_leak` and `kmem` on the running kernel: cgroups made here, counted by an independent witness
//! (`find`, `/proc/cgroups`, `cgroup.stat`), on v1 and on the cgroup2 mount. Needs root, and v1 memory and cgroup2
//! mounts as on the CI machines or v2 alone; says loudly what it skips elsewhere. Everything it makes is removed again,
//! also after a failure.
#![allow(clippy::disallowed_methods, reason = "tests make the files that the library may only read through `host`")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cgroups_rs::CgroupPid;
use cgroups_rs::fs::Cgroup;
use headroom::error::{Reason, Result};
use headroom::host::{Deadline, Host, Roots};
use headroom::metric::Samples;
use headroom::modes::cgroup_leak::{self, CgroupLeak, Settings};
use headroom::modes::{Collector as _, Context, kmem};
use headroom::runtime::Runtime;
use headroom::services::Services;

use crate::common;
use crate::common::hierarchies::{self, PURE_V2, V1, v2};

const ID: &str = "55f765a8788dcccb46fae55db15b169605b66df347604a06a4f6ed7c15f879c6";

/// What these tests need, held until dropped: root, the mounts, nobody else's kubepods, and no other test counting
/// cgroups.
struct Lab {
    _lock: File,
    /// `sys/fs/cgroup` as a pure v2 machine has it: a link to the cgroup2 mount.
    sys: tempfile::TempDir,
}

impl Lab {
    /// Where there are controllers on v1.
    fn with_v1() -> Option<Self> {
        if hierarchies::has_v1() { Self::open() } else { None }
    }

    fn open() -> Option<Self> {
        let skip = |what: &str| {
            common::say_skip(format_args!("{what}"));
            None
        };
        if !rustix::process::geteuid().is_root() {
            return skip("not root: cannot make cgroups");
        }
        let hybrid = ["memory/release_agent", "unified/cgroup.stat"];
        let needed = if *PURE_V2 { &["cgroup.stat"][..] } else { &hybrid[..] };
        for file in needed {
            if !Path::new("/sys/fs/cgroup").join(file).exists() {
                return skip(&format!("no /sys/fs/cgroup/{file}: needs v1 memory and a cgroup2 mount beside it"));
            }
        }
        let lock = common::machine_lock();
        for root in [V1, v2()] {
            for name in ["kubepods", "kubepods.slice"] {
                if Path::new(root).join(name).exists() {
                    return skip(&format!("{root}/{name} exists: this is a Kubernetes node"));
                }
            }
        }
        let sys = tempfile::tempdir().unwrap();
        fs::create_dir(sys.path().join("fs")).unwrap();
        std::os::unix::fs::symlink(v2(), sys.path().join("fs/cgroup")).unwrap();
        Some(Lab { _lock: lock, sys })
    }

    fn v1() -> Host {
        Host::new(Roots::default())
    }

    /// Each way to look at this machine, with the hierarchy that it is about.
    fn hosts(&self) -> Vec<(Host, &'static str)> {
        let v1 = (!*PURE_V2).then(|| (Self::v1(), V1));
        v1.into_iter().chain([(self.v2(), v2())]).collect()
    }

    fn v2(&self) -> Host {
        Host::new(Roots { sys: self.sys.path().to_owned(), ..Roots::default() })
    }
}

/// A cgroup tree of ours, removed with everything in it.
struct Tree(PathBuf);

impl Tree {
    fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        assert!(!path.exists(), "{} is somebody else's", path.display());
        fs::create_dir(&path).unwrap();
        Tree(path)
    }

    fn make(&self, below: &str) -> PathBuf {
        let path = self.0.join(below);
        fs::create_dir_all(&path).unwrap();
        path
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        for _ in 0..200 {
            remove(&self.0);
            if !self.0.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        eprintln!("{} could not be removed", self.0.display());
    }
}

fn remove(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(path);
}

/// A process that does nothing, killed when dropped.
struct Sleeper(Child);

impl Sleeper {
    fn new() -> Self {
        Sleeper(Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap())
    }

    fn pid(&self) -> u64 {
        u64::from(self.0.id())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn collector(grace: Duration) -> CgroupLeak {
    CgroupLeak::new(
        Settings { orphan_grace: grace, ..Settings::default() },
        &Services::with_runtime(Runtime::default()),
    )
}

fn collect(collector: &CgroupLeak, host: &Host) -> Result<Samples> {
    let mut samples = collector.collect(Context::new(host, Deadline::after(Duration::from_secs(60))))?;
    samples.refuse_duplicates();
    Ok(samples)
}

/// A collection between two equal answers of the witness: other programs on this machine make cgroups, too.
fn settled<W: PartialEq>(host: &Host, collector: &CgroupLeak, witness: impl Fn() -> W) -> (Samples, W) {
    for _ in 0..100 {
        let before = witness();
        let samples = collect(collector, host).unwrap();
        assert!(samples.errors().is_empty(), "{:?}", samples.errors());
        if witness() == before {
            return (samples, before);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("cgroups on this machine never hold still for one collection");
}

/// `find <root> -type d | wc -l`
fn find(root: &str) -> f64 {
    let output = Command::new("find").args([root, "-type", "d"]).output().unwrap();
    output.stdout.iter().filter(|&&byte| byte == b'\n').count() as f64
}

/// All cgroups of the hierarchy with the memory controller that the kernel holds, dying ones too.
fn held() -> f64 {
    if *PURE_V2 {
        return 1.0 + stat("nr_descendants ") + stat("nr_dying_descendants ");
    }
    let text = fs::read_to_string("/proc/cgroups").unwrap();
    let row = text.lines().find(|line| line.starts_with("memory\t")).unwrap();
    row.split('\t').nth(2).unwrap().parse().unwrap()
}

/// Cgroups that the memory controller has an id for: on v1 all, on v2 those in which it is switched on.
fn with_id(root: &str) -> f64 {
    let files = Command::new("find").args([root, "-name", "memory.stat"]).output().unwrap();
    files.stdout.iter().filter(|&&byte| byte == b'\n').count() as f64
}

/// Lets the children of a cgroup on v2 have the memory controller, as systemd and runtimes do.
fn account(path: &Path) {
    if *PURE_V2 {
        fs::write(path.join("cgroup.subtree_control"), "+memory").unwrap();
    }
}

/// Waits until the kernel has freed what was removed just before: it does so in the background.
fn calm() {
    let patience = Instant::now() + Duration::from_secs(30);
    let mut last = (held(), Instant::now());
    while last.1.elapsed() < Duration::from_secs(1) && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(50));
        let now = held();
        if now != last.0 {
            last = (now, Instant::now());
        }
    }
}

fn stat(key: &str) -> f64 {
    let text = fs::read_to_string(format!("{}/cgroup.stat", v2())).unwrap();
    text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok()).unwrap()
}

fn value(samples: &Samples, metric: &'static headroom::metric::Metric, labels: &[&str]) -> f64 {
    samples.value(metric, labels).unwrap_or_else(|| panic!("no {}{labels:?}", metric.name))
}

fn kubepods(samples: &Samples, kind: &str) -> [f64; 3] {
    ["guaranteed", "burstable", "besteffort"].map(|qos| value(samples, &cgroup_leak::KUBEPODS, &[kind, qos]))
}

#[test]
fn directories_of_v1_are_those_that_find_finds() {
    let Some(_lab) = Lab::with_v1() else { return };
    let tree = Tree::new(format!("{V1}/headroom-test"));
    for group in 0..20 {
        for leaf in 0..10 {
            tree.make(&format!("g{group}/l{leaf}"));
        }
    }
    let (samples, (found, counted)) = settled(&Lab::v1(), &collector(Duration::ZERO), || (find(V1), held()));
    assert!(found > 220.0);
    assert_eq!(value(&samples, &cgroup_leak::DIRECTORIES, &["memory"]), found);
    assert_eq!(value(&samples, &cgroup_leak::CGROUPS, &["memory"]), counted);
    assert_eq!(value(&samples, &cgroup_leak::DYING, &["memory"]), counted - found);
    assert_eq!(value(&samples, &cgroup_leak::MEMCG_IDS_USED, &[]), found, "this kernel is newer than 4.8");
    assert_eq!(samples.value(&cgroup_leak::KUBEPODS, &["pod", "guaranteed"]), None, "no kubepods here");
}

#[test]
fn directories_of_v2_are_those_that_find_finds() {
    let Some(lab) = Lab::open() else { return };
    let tree = Tree::new(format!("{}/headroom-test", v2()));
    for leaf in 0..100 {
        tree.make(&format!("g/l{leaf}"));
    }
    for host in [lab.v2(), Lab::v1()] {
        let witness = || (find(v2()), stat("nr_dying_descendants "));
        let (samples, (found, dying)) = settled(&host, &collector(Duration::ZERO), witness);
        assert!(found > 101.0);
        assert_eq!(value(&samples, &cgroup_leak::DIRECTORIES, &["unified"]), found);
        assert_eq!(value(&samples, &cgroup_leak::DYING, &["unified"]), dying);
        assert_eq!(value(&samples, &cgroup_leak::CGROUPS, &["unified"]), found + dying);
        // nr_subsys_* of the root counts the root itself: perf_event is in each cgroup of the hierarchy.
        if let Some(perf_event) = samples.value(&cgroup_leak::DIRECTORIES, &["perf_event"]) {
            assert_eq!(perf_event, found);
        }
    }
}

/// One pod and container of each class, one of them with a process, by the cgroupfs driver's names.
#[test]
fn pods_and_containers_on_v1() {
    let Some(_lab) = Lab::with_v1() else { return };
    let tree = Tree::new(format!("{V1}/kubepods"));
    let memory = || Some(vec!["memory".to_owned()]);
    let path = format!("kubepods/burstable/podbcb1982f-2628-449a-accb-e40ecdefbb3b/{ID}");
    let group = Cgroup::new_with_specified_controllers(cgroups_rs::fs::hierarchies::auto(), &path, memory()).unwrap();
    assert!(Path::new(V1).join(&path).is_dir());
    let sleeper = Sleeper::new();
    group.add_task_by_tgid(CgroupPid::from(sleeper.pid())).unwrap();
    tree.make(&format!("pod219043b8-1994-42e1-b2d1-ba3c55ae393c/{ID}"));
    tree.make(&format!("besteffort/{ID}"));
    tree.make(&format!("besteffort/crio-conmon-{ID}"));

    let collector = collector(Duration::ZERO);
    let samples = collect(&collector, &Lab::v1()).unwrap();
    assert!(samples.errors().is_empty(), "{:?}", samples.errors());
    assert_eq!(kubepods(&samples, "pod"), [1.0, 1.0, 0.0]);
    assert_eq!(kubepods(&samples, "container"), [1.0, 1.0, 1.0]);
    assert_eq!(kubepods(&samples, "other"), [0.0, 0.0, 1.0]);
    assert_eq!(value(&samples, &cgroup_leak::CONTAINERS, &["running"]), 1.0);
    assert_eq!(value(&samples, &cgroup_leak::CONTAINERS, &["unknown"]), 2.0);
    let orphaned =
        |samples: &Samples| ["pod", "container", "other"].map(|kind| value(samples, &cgroup_leak::ORPHANED, &[kind]));
    assert_eq!(orphaned(&samples), [1.0, 2.0, 1.0]);

    drop(sleeper);
    let samples = collect(&collector, &Lab::v1()).unwrap();
    assert_eq!(value(&samples, &cgroup_leak::CONTAINERS, &["running"]), 0.0);
    assert_eq!(orphaned(&samples), [2.0, 3.0, 1.0], "with its process gone, pod and container are nobody's");

    drop(group);
    drop(tree);
    let samples = collect(&collector, &Lab::v1()).unwrap();
    assert_eq!(samples.value(&cgroup_leak::ORPHANED, &["pod"]), None, "what is gone is gone from the page");
}

/// The same by the systemd driver's names on cgroup2, and ages that must be waited for.
#[test]
fn pods_and_containers_on_v2() {
    let Some(lab) = Lab::open() else { return };
    let tree = Tree::new(format!("{}/kubepods.slice", v2()));
    let pod = "kubepods-burstable.slice/kubepods-burstable-pod739d586d_5948_40c9_b92b_95f27d4fc921.slice";
    let container = tree.make(&format!("{pod}/cri-containerd-{ID}.scope"));
    // As systemd in a container does: all processes one level down, and an empty cgroup beside them.
    let init = tree.make(&format!("{pod}/cri-containerd-{ID}.scope/init.scope"));
    tree.make(&format!("{pod}/cri-containerd-{ID}.scope/system.slice"));
    tree.make("kubepods-pod020a8993_ffb4_499a_9de5_9cc87ef94d71.slice");
    let sleeper = Sleeper::new();
    fs::write(init.join("cgroup.procs"), sleeper.pid().to_string()).unwrap();
    assert!(fs::read_to_string(container.join("cgroup.procs")).unwrap().is_empty());

    let grace = Duration::from_millis(300);
    let collector = collector(grace);
    let samples = collect(&collector, &lab.v2()).unwrap();
    // It saw the directories before now.
    let seen = Instant::now();
    assert!(samples.errors().is_empty(), "{:?}", samples.errors());
    assert_eq!(kubepods(&samples, "pod"), [1.0, 1.0, 0.0]);
    assert_eq!(kubepods(&samples, "container"), [0.0, 1.0, 0.0]);
    assert_eq!(kubepods(&samples, "other"), [0.0, 2.0, 0.0]);
    assert_eq!(value(&samples, &cgroup_leak::CONTAINERS, &["running"]), 1.0);
    assert_eq!(value(&samples, &cgroup_leak::ORPHANED, &["pod"]), 0.0, "first seen just now");
    std::thread::sleep(grace.saturating_sub(seen.elapsed()) + Duration::from_millis(1));
    let samples = collect(&collector, &lab.v2()).unwrap();
    assert_eq!(value(&samples, &cgroup_leak::ORPHANED, &["pod"]), 1.0);
    assert_eq!(value(&samples, &cgroup_leak::ORPHANED, &["other"]), 0.0, "a live container's own cgroups");
    // A new directory of the same name has a new age.
    let idle = tree.0.join("kubepods-pod020a8993_ffb4_499a_9de5_9cc87ef94d71.slice");
    fs::remove_dir(&idle).unwrap();
    fs::create_dir(&idle).unwrap();
    let samples = collect(&collector, &lab.v2()).unwrap();
    assert_eq!(value(&samples, &cgroup_leak::ORPHANED, &["pod"]), 0.0);
}

/// A process in a fresh cgroup writes a page of tmpfs; the cgroup is removed and lives on until the file goes.
#[test]
fn dying_memory_cgroups_are_seen_and_seen_to_go() {
    const LEAKED: usize = 200;
    let Some(lab) = Lab::open() else { return };
    let Ok(files) = tempfile::tempdir_in("/dev/shm") else {
        return common::say_skip(format_args!("no tmpfs at /dev/shm"));
    };
    let (host, root) = lab.hosts().remove(0);
    let tree = Tree::new(format!("{root}/headroom-test"));
    account(&tree.0);
    let collector = collector(Duration::ZERO);
    let witness = || (held(), find(root), with_id(root));
    let name = if *PURE_V2 { "unified" } else { "memory" };
    calm();
    let (_, (before, ..)) = settled(&host, &collector, witness);
    for index in 0..LEAKED {
        let group = tree.make("leak");
        let script = "echo $$ > \"$0/cgroup.procs\" && echo x > \"$1\"";
        let file = files.path().join(index.to_string());
        assert!(Command::new("sh").arg("-c").arg(script).arg(&group).arg(&file).status().unwrap().success());
        while fs::remove_dir(&group).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let (samples, (leaked, visible, ids)) = settled(&host, &collector, witness);
    // Cgroups of others, held before, may have gone meanwhile; more than a few would be no test any more.
    let kept = if hierarchies::pages_hold_cgroups() { LEAKED as f64 } else { 0.0 };
    assert!((leaked - before - kept).abs() <= 20.0, "{before} cgroups before, {leaked} after");
    assert_eq!(value(&samples, &cgroup_leak::DYING, &[name]), leaked - visible);
    assert_eq!(value(&samples, &cgroup_leak::CGROUPS, &[name]), leaked);
    assert_eq!(value(&samples, &cgroup_leak::DIRECTORIES, &[name]), visible);
    assert_eq!(value(&samples, &cgroup_leak::MEMCG_IDS_USED, &[]), ids, "a dying cgroup has given its id back");

    drop(files);
    let patience = Instant::now() + Duration::from_secs(60);
    while held() > leaked - kept / 2.0 && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(100));
    }
    let (samples, (freed, visible, _)) = settled(&host, &collector, witness);
    assert!(kept == 0.0 || freed <= leaked - kept / 2.0, "{leaked} cgroups, {freed} after the files were deleted");
    assert_eq!(value(&samples, &cgroup_leak::DYING, &[name]), freed - visible);
}

/// Cgroups that come and go under the walk: no error, no negative number, nothing that was never there.
#[test]
fn churn_while_collecting() {
    let Some(lab) = Lab::open() else { return };
    for (host, root) in lab.hosts() {
        let tree = Tree::new(format!("{root}/kubepods"));
        tree.make("burstable");
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    for pod in 0..10 {
                        tree.make(&format!("burstable/podchurn{pod}/{ID}/inner"));
                    }
                    remove(&tree.0.join("burstable"));
                    tree.make("burstable");
                }
            });
            let (leak, kmem) =
                (collector(Duration::ZERO), (kmem::MODE.build)(&Default::default(), &Services::default()));
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                for _ in 0..200 {
                    let samples = collect(&leak, &host).unwrap();
                    assert!(samples.errors().is_empty(), "{:?}", samples.errors());
                    assert!(samples.rows().iter().all(|row| row.value >= 0.0));
                    for kind in ["pod", "container", "other"] {
                        assert!(kubepods(&samples, kind)[1] <= 10.0, "{kind}: {:?}", kubepods(&samples, kind));
                    }
                    let context = Context::new(&host, Deadline::after(Duration::from_secs(60)));
                    let samples = kmem.collect(context).unwrap();
                    assert!(samples.errors().is_empty(), "{:?}", samples.errors());
                }
            }));
            stop.store(true, Ordering::Relaxed);
            if let Err(panic) = outcome {
                std::panic::resume_unwind(panic);
            }
        });
    }
}

#[test]
fn a_directory_that_we_may_not_read() {
    let Some(lab) = Lab::open() else { return };
    for (host, root) in lab.hosts() {
        let tree = Tree::new(format!("{root}/kubepods"));
        let pod = tree.make("podx");
        tree.make(&format!("podx/{ID}"));
        rustix::fs::chmod(&pod, rustix::fs::Mode::empty()).unwrap();
        rustix::fs::chmod(lab.sys.path(), rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
        // Identities belong to threads: only this one is not root any more, and has lost its capabilities with that.
        let samples = std::thread::scope(|scope| {
            let unprivileged = scope.spawn(|| {
                let nobody = rustix::process::Uid::from_raw(65534);
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
                collect(&collector(Duration::ZERO), &host)
            });
            unprivileged.join().unwrap().unwrap()
        });
        assert!(!samples.errors().is_empty(), "nothing was said");
        assert!(samples.errors().iter().all(|error| error.reason() == Reason::Denied), "{:?}", samples.errors());
        assert_eq!(
            samples.value(&cgroup_leak::KUBEPODS, &["pod", "guaranteed"]),
            None,
            "what is below cannot be known"
        );
        assert!(
            samples.rows().iter().any(|row| row.metric.name == "headroom_cgroups"),
            "the kernel's counts are there"
        );
    }
}

/// These kernels account everything: usage grows with what a container makes the kernel allocate, and the root's is the
/// sum of all.
#[test]
fn kernel_memory_of_this_kernel() {
    let Some(lab) = Lab::open() else { return };
    let (host, root) = lab.hosts().remove(0);
    let kmem = (kmem::MODE.build)(&Default::default(), &Services::default());
    let collect = || {
        let samples = kmem.collect(Context::new(&host, Deadline::after(Duration::from_secs(60)))).unwrap();
        assert!(samples.errors().is_empty(), "{:?}", samples.errors());
        samples
    };
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let off = fs::read_to_string("/proc/cmdline").unwrap().contains("nokmem");
    let samples = collect();
    let mode = if *PURE_V2 { "v2" } else { "hybrid" };
    let label = if off { "off" } else { "on" };
    assert_eq!(samples.value(&kmem::KERNEL_INFO, &[release.trim(), mode, label]), Some(1.0));
    assert_eq!(samples.value(&kmem::ENABLED, &[]), Some(f64::from(!off)));
    assert_eq!(samples.value(&kmem::LEAK_PRONE, &["kernel_4_0_or_newer"]), Some(0.0));
    assert_eq!(samples.value(&kmem::ACCOUNTED, &["pod"]), None, "no kubepods");
    assert!(value(&samples, &kmem::PERCPU, &[]) > 0.0);
    if off {
        return common::say_skip(format_args!("booted with nokmem, nothing is charged"));
    }

    let tree = Tree::new(format!("{root}/kubepods"));
    let container = tree.make(&format!("podx/{ID}"));
    account(&tree.0);
    account(&tree.0.join("podx"));
    let before = collect();
    assert_eq!(["pod", "container"].map(|kind| value(&before, &kmem::ACCOUNTED, &[kind])), [1.0, 1.0]);
    // Each of these processes costs the kernel a stack, page tables, descriptors.
    let sleepers: Vec<Sleeper> = (0..50)
        .map(|_| {
            let mut shell = Command::new("sh");
            let script = "echo $$ > \"$0/cgroup.procs\" && echo in && exec sleep 600";
            shell.arg("-c").arg(script).arg(&container).stdin(Stdio::null()).stdout(Stdio::piped());
            let mut sleeper = Sleeper(shell.spawn().unwrap());
            let mut line = [0; 3];
            std::io::Read::read_exact(&mut sleeper.0.stdout.take().unwrap(), &mut line).unwrap();
            sleeper
        })
        .collect();
    let after = collect();
    let grown = value(&after, &kmem::USAGE, &["kubepods"]) - value(&before, &kmem::USAGE, &["kubepods"]);
    assert!(grown > 50.0 * 4096.0, "{grown} bytes for 50 processes");
    assert!(value(&after, &kmem::USAGE, &["node"]) > value(&after, &kmem::USAGE, &["kubepods"]));
    drop(sleepers);
}
