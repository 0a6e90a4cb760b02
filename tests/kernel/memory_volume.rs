//! Mode memory_volume on the running kernel: a tmpfs at the kubelet's place, filled from inside a memory cgroup until
//! the kernel kills, again and again, as a container that is restarted into its full volume. The witnesses are
//! `stat -f`, the kernel's counts read by the test itself, and how the writer ended.
//!
//! Needs root and a cgroup hierarchy with the memory controller, v1 or v2, without a kubelet's cgroups; says loudly
//! what it skips elsewhere. Everything made here is removed again, also after a failure.
#![allow(clippy::disallowed_methods, reason = "a test makes its machine of files")]

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags};

use crate::common::hierarchies::{self, PURE_V2};
use crate::common::hung::HungFilesystem;
use crate::common::{self, Exporter, Page, eventually, has, shell};

pub(crate) const UID: &str = "bcb1982f-2628-449a-accb-e40ecdefbb3b";
pub(crate) const MIB: u64 = 1 << 20;

/// A kubepods tree with one pod in it, and a kubelet's root directory, held until dropped.
pub(crate) struct Lab {
    root_dir: tempfile::TempDir,
    mounts: Vec<PathBuf>,
    kubepods: PathBuf,
    /// Shared with the other tests that count cgroups or make a kubepods tree.
    _lock: File,
}

impl Lab {
    pub(crate) fn open() -> Option<Self> {
        let skip = |what: &str| {
            common::say_skip(format_args!("{what}"));
            None
        };
        if !common::is_root() {
            return skip("not root: cannot make cgroups");
        }
        let memory = Path::new(hierarchies::memory()?);
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        // A pid 1 that lets nobody look at it is taken for one of ours.
        if namespace("1").is_some_and(|machine| Some(machine) != namespace("self")) {
            return skip("a mount namespace of our own: what is mounted here is not on the machine");
        }
        let lock = common::machine_lock();
        let kubepods = memory.join("kubepods");
        if kubepods.exists() || memory.join("kubepods.slice").exists() {
            return skip("kubepods exists: this is a Kubernetes node");
        }
        fs::create_dir(&kubepods).unwrap();
        let lab = Lab { root_dir: tempfile::tempdir().unwrap(), mounts: Vec::new(), kubepods, _lock: lock };
        let pod = lab.pod(UID);
        fs::create_dir_all(&pod).unwrap();
        if *PURE_V2 {
            for above in [&lab.kubepods, &lab.kubepods.join("burstable"), &pod] {
                fs::write(above.join("cgroup.subtree_control"), "+memory").unwrap();
            }
        }
        Some(lab)
    }

    pub(crate) fn pod(&self, uid: &str) -> PathBuf {
        self.kubepods.join("burstable").join(format!("pod{uid}"))
    }

    /// A new container with a limit.
    fn container(&self, number: u32, limit: u64) -> PathBuf {
        let path = self.pod(UID).join(format!("{number:064x}"));
        fs::create_dir(&path).unwrap();
        set_limit(&path, limit);
        path
    }

    /// Mounts a volume of 64 MiB where the kubelet would.
    pub(crate) fn volume(&mut self, uid: &str, name: &str) -> PathBuf {
        let path = self.root_dir.path().join(format!("pods/{uid}/volumes/kubernetes.io~empty-dir/{name}"));
        fs::create_dir_all(&path).unwrap();
        rustix::mount::mount("tmpfs", &path, "tmpfs", MountFlags::empty(), Some(c"size=64m")).unwrap();
        self.mounts.push(path.clone());
        path
    }

    fn unmount(&mut self, path: &Path) {
        rustix::mount::unmount(path, UnmountFlags::empty()).unwrap();
        self.mounts.retain(|mounted| mounted != path);
    }

    pub(crate) fn exporter(&self) -> Exporter {
        let root_dir = format!("--kubelet.root-dir={}", self.root_dir.path().display());
        Exporter::start(&[&root_dir, "--collector.disable-defaults", "--collector.memory_volume", "--no-runtime"])
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for path in &self.mounts {
            let _ = rustix::mount::unmount(path, UnmountFlags::DETACH);
        }
        let until = Instant::now() + Duration::from_secs(5);
        while self.kubepods.exists() && Instant::now() < until {
            remove(&self.kubepods);
            std::thread::sleep(Duration::from_millis(5));
        }
        if self.kubepods.exists() {
            eprintln!("left behind: {}", self.kubepods.display());
        }
    }
}

/// Removes a cgroup with all below it, as far as that goes.
fn remove(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(path);
}

/// Removes a container's cgroup: the kernel may need a moment for its last process.
fn end(container: &Path) {
    eventually("the cgroup can be removed", || fs::remove_dir(container).is_ok() || !container.exists());
}

/// Appends zeros to a file of the volume from inside the container until the kernel kills the writer. How many it
/// killed, by its own count.
fn fill_until_killed(container: &Path, volume: &Path) -> u64 {
    let script = "echo $$ > \"$0/cgroup.procs\" && \
        exec dd if=/dev/zero of=\"$1/fill\" bs=64k count=2048 oflag=append conv=notrunc";
    let mut writer = Command::new("sh");
    writer.arg("-c").arg(script).arg(container).arg(volume).stderr(Stdio::null());
    let status = writer.status().unwrap();
    assert_eq!(status.signal(), Some(9), "the writer was not killed: {status}");
    oom_kill_of(container)
}

pub(crate) fn set_limit(cgroup: &Path, bytes: u64) {
    let file = if *PURE_V2 { "memory.max" } else { "memory.limit_in_bytes" };
    fs::write(cgroup.join(file), bytes.to_string()).unwrap();
}

/// Processes that the kernel killed in a cgroup, on v2 in those below it too.
fn oom_kill_of(cgroup: &Path) -> u64 {
    oom_kill(&cgroup.join(if *PURE_V2 { "memory.events" } else { "memory.oom_control" }))
}

fn oom_kill(file: &Path) -> u64 {
    let text = fs::read_to_string(file).unwrap();
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok()).unwrap()
}

/// (size, used) by another program.
fn stat(path: &Path) -> (f64, f64) {
    let text = shell(&format!("stat -f -c '%S %b %f' '{}'", path.display()));
    let n: Vec<f64> = text.split_whitespace().map(|number| number.parse().unwrap()).collect();
    (n[0] * n[1], n[0] * (n[1] - n[2]))
}

pub(crate) fn of_volume(page: &Page, what: &str, uid: &str, name: &str) -> Option<f64> {
    page.get(&format!("headroom_memory_volume_{what}_bytes{{pod_uid=\"{uid}\",volume=\"{name}\"}}"))
}

fn kills(page: &Page) -> Option<f64> {
    page.get(&format!("headroom_oom_kills_total{{pod_uid=\"{UID}\"}}"))
}

#[test]
fn a_volume_that_outlives_its_killed_containers() {
    alone!();
    let Some(mut lab) = Lab::open() else { return };
    set_limit(&lab.pod(UID), 24 * MIB);
    let volume = lab.volume(UID, "cache");
    let exporter = lab.exporter();
    let page = exporter.scrape();
    assert_eq!(page.outcome("memory_volume"), "ok");
    assert_eq!(kills(&page), Some(0.0), "it starts at 0, so that the first kill is an increase");
    assert_eq!(of_volume(&page, "used", UID, "cache"), Some(0.0));
    assert_eq!(
        of_volume(&page, "limit", UID, "cache"),
        Some((24 * MIB) as f64),
        "the pod's, while it has no container"
    );

    let (mut witness, mut used_before) = (0, 0.0);
    let node_before = oom_kill(Path::new("/proc/vmstat"));
    for restart in 0..3 {
        let container = lab.container(restart, 16 * MIB);
        let killed = fill_until_killed(&container, &volume);
        assert!(killed >= 1, "the kernel counted no kill");
        witness += killed;
        let (before, page, after) =
            (oom_kill(Path::new("/proc/vmstat")), exporter.scrape(), oom_kill(Path::new("/proc/vmstat")));
        let (size, used) = stat(&volume);
        assert_eq!(kills(&page), Some(witness as f64), "restart {restart}");
        assert_eq!(of_volume(&page, "used", UID, "cache"), Some(used), "restart {restart}");
        assert_eq!(of_volume(&page, "size", UID, "cache"), Some(size));
        let limit = of_volume(&page, "limit", UID, "cache").unwrap();
        assert_eq!(limit, (16 * MIB) as f64, "the container's, which is smaller");
        assert!(used / limit > 0.8 && used >= used_before, "the next one meets what the last one wrote: {used}");
        assert!(used <= (24 * MIB) as f64, "the pod's limit holds for all that was ever written");
        let node = page.value("headroom_node_oom_kills_total");
        assert!(node >= before as f64 && node <= after as f64 && node >= (node_before + witness) as f64);
        used_before = used;

        // Its count goes with it; ours stays, and so does what is known of its limit.
        end(&container);
        let page = exporter.scrape();
        assert_eq!(kills(&page), Some(witness as f64));
        assert_eq!(of_volume(&page, "limit", UID, "cache"), Some((16 * MIB) as f64));
        assert_eq!(of_volume(&page, "used", UID, "cache"), Some(used), "the volume outlives the container");
    }
    let of_pod = if *PURE_V2 { witness } else { 0 };
    assert_eq!(oom_kill_of(&lab.pod(UID)), of_pod, "the pod itself counts nothing on v1, and everything on v2");

    // What nobody looked at before the cgroup went is lost to us on v1, as documented, but not to the node's counter.
    let container = lab.container(7, 16 * MIB);
    let mut unseen = fill_until_killed(&container, &volume);
    end(&container);
    if *PURE_V2 {
        witness += std::mem::take(&mut unseen);
    }
    let page = exporter.scrape();
    assert_eq!(kills(&page), Some(witness as f64));
    assert!(page.value("headroom_node_oom_kills_total") >= (node_before + witness + unseen) as f64);

    lab.unmount(&volume);
    let page = exporter.scrape();
    assert_eq!(page.family("headroom_memory_volume_used_bytes").count(), 0, "what is gone is gone from the page");
    assert_eq!(page.family("headroom_memory_volume_limit_bytes").count(), 0);
    assert_eq!(kills(&page), Some(witness as f64), "a pod with kills stays");
    remove(&lab.pod(UID));
    let page = exporter.scrape();
    assert_eq!((kills(&page), page.outcome("memory_volume")), (None, "ok"));
}

/// A process in a cgroup, killed when dropped.
struct Process(Child);

impl Process {
    /// In a mount namespace of its own, where `prepare` is run first.
    fn start(cgroup: &Path, prepare: &str) -> Self {
        let script = format!("{prepare} && echo $$ > '{}/cgroup.procs' && echo in && exec sleep 600", cgroup.display());
        let mut command = Command::new("unshare");
        let child = command.args(["--mount", "sh", "-ec", &script]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut process = Process(child.unwrap());
        let mut line = [0; 3];
        std::io::Read::read_exact(&mut process.0.stdout.take().unwrap(), &mut line).unwrap();
        process
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_limit_is_that_of_the_container_that_mounts_it() {
    alone!();
    let Some(mut lab) = Lab::open() else { return };
    if !has("unshare") {
        return common::say_skip(format_args!("no unshare"));
    }
    let (cache, other) = (lab.volume(UID, "cache"), lab.volume(UID, "other"));
    let inside = tempfile::tempdir().unwrap();
    let bind = |volume: &Path| format!("mount --bind '{}' '{}'", volume.display(), inside.path().display());
    let (small, large) = (lab.container(1, 16 * MIB), lab.container(2, 32 * MIB));
    // Each sees the kubelet's own mounts as well, as an agent does that has the machine's root mounted.
    let sidecar = Process::start(&small, &bind(&other));
    let _writer = Process::start(&large, &bind(&cache));
    let exporter = lab.exporter();
    let page = exporter.scrape();
    assert_eq!(page.outcome("memory_volume"), "ok");
    assert_eq!(of_volume(&page, "limit", UID, "cache"), Some((32 * MIB) as f64));
    assert_eq!(of_volume(&page, "limit", UID, "other"), Some((16 * MIB) as f64));
    let scoped = |scope: &str| {
        let labels = format!("pod_uid=\"{UID}\",volume=\"cache\",scope=\"{scope}\"");
        page.get(&format!("headroom_memory_volume_cgroup_limit_bytes{{{labels}}}"))
    };
    assert_eq!((scoped("container"), scoped("pod")), (Some((32 * MIB) as f64), None), "the pod has none");
    drop(sidecar);
}

/// Pages are charged to who wrote them. The sidecar's process is in a cgroup of its own below the container's, as crun
/// puts it there, and systemd or Docker inside of one do.
#[test]
fn a_sidecar_that_only_reads_is_not_judged() {
    alone!();
    let Some(mut lab) = Lab::open() else { return };
    if !has("unshare") {
        return common::say_skip(format_args!("no unshare"));
    }
    let cache = lab.volume(UID, "cache");
    let inside = tempfile::tempdir().unwrap();
    let bind = format!("mount --bind '{}' '{}'", cache.display(), inside.path().display());
    let (small, large) = (lab.container(1, 16 * MIB), lab.container(2, 48 * MIB));
    let below = small.join("container");
    fs::create_dir(&below).unwrap();
    let (_reader, _writer) = (Process::start(&below, &bind), Process::start(&large, &bind));
    let exporter = lab.exporter();
    let limit = |page: &Page| of_volume(page, "limit", UID, "cache");
    assert_eq!(limit(&exporter.scrape()), Some((16 * MIB) as f64), "who will write is not known yet");

    let script = "echo $$ > \"$0/cgroup.procs\" && exec head -c 25165824 /dev/zero > \"$1/fill\"";
    let write = |container: &Path, file: &Path| {
        assert!(Command::new("sh").arg("-c").arg(script).arg(container).arg(file).status().unwrap().success());
    };
    write(&large, &cache);
    let page = exporter.scrape();
    assert_eq!(of_volume(&page, "used", UID, "cache"), Some((24 * MIB) as f64));
    assert_eq!(limit(&page), Some((48 * MIB) as f64), "the sidecar is charged for nothing of it");
    assert_eq!(limit(&exporter.scrape()), Some((48 * MIB) as f64));

    // Once it writes as well, it can be killed for it.
    fs::remove_file(cache.join("fill")).unwrap();
    let script = "echo $$ > \"$0/cgroup.procs\" && exec head -c 12582912 /dev/zero > \"$1/own\"";
    assert!(Command::new("sh").arg("-c").arg(script).arg(&below).arg(&cache).status().unwrap().success());
    assert_eq!(limit(&exporter.scrape()), Some((16 * MIB) as f64));
}

/// True if something on this machine is a kubelet, or calls itself one.
fn somebody_is_a_kubelet() -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes.into_iter().any(|process| {
        let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let program = command.split(|&byte| byte == 0).next().unwrap_or_default();
        program == b"kubelet" || program.ends_with(b"/kubelet")
    })
}

/// A kubelet that keeps its mounts to itself: they are in its table, and below `/proc/PID/root`.
#[test]
fn a_kubelet_in_a_mount_namespace_of_its_own() {
    alone!();
    let Some(mut lab) = Lab::open() else { return };
    let patience = Instant::now() + Duration::from_secs(60);
    while somebody_is_a_kubelet() {
        if Instant::now() > patience {
            return common::say_skip(format_args!("a kubelet runs on this machine"));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let shared = lab.volume("before", "cache");
    fs::write(shared.join("file"), vec![1; 1 << 20]).unwrap();
    let hidden = lab.root_dir.path().join("pods/inside/volumes/kubernetes.io~empty-dir/cache");
    fs::create_dir_all(&hidden).unwrap();
    let script = "mount -t tmpfs -o size=8m x \"$0\" && head -c 3145728 /dev/zero > \"$0/file\" && echo in && exec -a kubelet sleep 600";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation=private", "bash", "-c", script]).arg(&hidden);
    let mut kubelet = Process(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap());
    std::io::Read::read_exact(&mut kubelet.0.stdout.take().unwrap(), &mut [0; 3]).unwrap();
    let arguments = format!("/proc/{}/cmdline", kubelet.0.id());
    eventually("it is called kubelet", || fs::read(&arguments).unwrap().starts_with(b"kubelet\0"));
    assert!(!hidden.join("file").exists(), "the machine itself does not see it");

    let exporter = lab.exporter();
    let page = exporter.scrape();
    assert_eq!(of_volume(&page, "used", "before", "cache"), Some(stat(&shared).1));
    assert_eq!(of_volume(&page, "used", "inside", "cache"), Some(3_145_728.0));
    assert_eq!(of_volume(&page, "size", "inside", "cache"), Some(8_388_608.0));
    assert_eq!(page.outcome("memory_volume"), "ok");
    drop(kubelet);
    assert_eq!(of_volume(&exporter.scrape(), "used", "inside", "cache"), None, "gone with its namespace");
}

#[test]
fn a_hung_mount_costs_its_own_series() {
    alone!();
    let Some(mut lab) = Lab::open() else { return };
    let [before, stuck, after] = ["a", "b", "c"].map(|uid| lab.volume(uid, "cache"));
    fs::write(before.join("file"), vec![1; 3 << 20]).unwrap();
    fs::write(after.join("file"), vec![1; 5 << 20]).unwrap();
    let exporter = lab.exporter();
    assert_eq!(of_volume(&exporter.scrape(), "used", "b", "cache"), Some(0.0));
    let Ok(hung) = HungFilesystem::mount_at(&stuck) else {
        return common::say_skip(format_args!("this kernel cannot mount FUSE (/dev/fuse)"));
    };
    for round in 0..3 {
        let begun = Instant::now();
        let page = exporter.scrape();
        assert!(begun.elapsed() < Duration::from_secs(6), "round {round}: the page must come within the deadline");
        assert_eq!(of_volume(&page, "used", "b", "cache"), None, "round {round}");
        assert_eq!(of_volume(&page, "used", "a", "cache"), Some(stat(&before).1), "round {round}");
        assert_eq!(page.outcome("memory_volume"), "failed", "round {round}");
        assert!(page.get("headroom_node_oom_kills_total").is_some());
        let (first, later) = (page.errors("memory_volume", "timeout"), page.errors("memory_volume", "busy"));
        assert!(first >= 1.0 && later >= f64::from(round), "after the first time it is known to hang: {first} {later}");
    }
    // Those behind it are given less time, which a loaded machine may overrun once.
    eventually("the volume after it answers", || {
        of_volume(&exporter.scrape(), "used", "c", "cache") == Some(stat(&after).1)
    });
    drop(hung);
    eventually("the volume below it is back", || {
        let page = exporter.scrape();
        page.outcome("memory_volume") == "ok" && of_volume(&page, "used", "b", "cache") == Some(0.0)
    });
}
