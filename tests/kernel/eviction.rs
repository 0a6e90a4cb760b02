//! Mode eviction on the running kernel: real file systems that fill up, real processes called kubelet, the real memory
//! cgroup. Every figure has a witness that shares no code with us: `stat -f`, Python's `statvfs`, shell and awk.
//!
//! Needs root to mount. What is missing on a machine is said on stderr, as SKIP.
#![allow(clippy::disallowed_methods, reason = "a test makes its machine of files")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use headroom::host::{Deadline, Host, Roots};
use headroom::kubelet::handle;
use headroom::kubelet::sources::Overrides;
use headroom::metric::Samples;
use headroom::modes::eviction::{
    self, AVAILABLE_BYTES, AVAILABLE_INODES, AVAILABLE_PIDS, CAPACITY_BYTES, CAPACITY_INODES, CAPACITY_PIDS,
    CONFIG_INFO, FILESYSTEM_INFO, FILESYSTEM_READONLY, HEADROOM, MINIMUM_RECLAIM_BYTES, THRESHOLD_BYTES,
    THRESHOLD_INODES, THRESHOLD_MET,
};
use headroom::modes::{Collector, Context};
use headroom::services::{CONTROL_PLANE, Services};

use crate::common;

fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(format!("{program}: {}", text(&output.stderr))) }
}

fn shell(script: &str) -> String {
    run("sh", &["-c", script]).unwrap()
}

/// A mount that goes away with the test.
struct Mounted {
    at: tempfile::TempDir,
    _image: Option<tempfile::NamedTempFile>,
}

impl Mounted {
    fn tmpfs(options: &str) -> Result<Self, String> {
        let at = tempfile::tempdir().unwrap();
        run("mount", &["-t", "tmpfs", "-o", options, "headroom-test", at.path().to_str().unwrap()])?;
        Ok(Mounted { at, _image: None })
    }

    /// 64 MB of ext4 with 5 % kept for root. After an error it takes no writes.
    fn ext4() -> Result<Self, String> {
        let eager = "lazy_itable_init=0,lazy_journal_init=0";
        let make = ["mkfs.ext4", "-q", "-F", "-m", "5", "-N", "2048", "-e", "remount-ro", "-E", eager];
        Self::on_a_loop(64 << 20, &make)
    }

    fn xfs() -> Result<Self, String> {
        Self::on_a_loop(320 << 20, &["mkfs.xfs", "-q", "-f"])
    }

    fn btrfs(image: tempfile::NamedTempFile) -> Result<Self, String> {
        Self::on_this(image, 256 << 20, &["mkfs.btrfs", "-q", "-f"])
    }

    fn on_a_loop(bytes: u64, make: &[&str]) -> Result<Self, String> {
        Self::on_this(tempfile::NamedTempFile::new().unwrap(), bytes, make)
    }

    fn on_this(image: tempfile::NamedTempFile, bytes: u64, make: &[&str]) -> Result<Self, String> {
        let at = tempfile::tempdir().unwrap();
        image.as_file().set_len(bytes).unwrap();
        let path = image.path().to_str().unwrap();
        run(make[0], &[&make[1..], &[path]].concat())?;
        run("mount", &["-o", "loop", path, at.path().to_str().unwrap()])?;
        Ok(Mounted { at, _image: Some(image) })
    }

    fn path(&self) -> &Path {
        self.at.path()
    }

    fn name(&self) -> &str {
        self.path().to_str().unwrap()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = run("umount", &["-l", self.name()]) {
            eprintln!("left behind: {error}");
        }
    }
}

/// What Python says: (capacity, available, free with root's reserve, inodes, free inodes).
fn statvfs(path: &Path) -> [f64; 5] {
    let script = "import os, sys; s = os.statvfs(sys.argv[1]); \
        print(s.f_frsize * s.f_blocks, s.f_frsize * s.f_bavail, s.f_frsize * s.f_bfree, s.f_files, s.f_ffree)";
    let text = run("python3", &["-c", script, path.to_str().unwrap()]).unwrap();
    let numbers: Vec<f64> = text.split(' ').map(|number| number.parse().unwrap()).collect();
    numbers.try_into().unwrap()
}

fn services(kubelet: &Overrides) -> Services {
    Services::with_kubelet(handle::Settings { overrides: kubelet.clone(), ..handle::Settings::default() })
}

pub(crate) fn control_plane() -> Option<f64> {
    let deadline = Deadline::after(Duration::from_secs(10));
    let samples = Services::default().samples(&Host::new(Roots::default()), deadline, Instant::now());
    samples.value(&CONTROL_PLANE, &[])
}

pub(crate) fn collect(kubelet: &Overrides) -> Samples {
    look(&*collector(kubelet))
}

pub(crate) fn collector(kubelet: &Overrides) -> Box<dyn Collector> {
    (eviction::MODE.build)(&Default::default(), &services(kubelet))
}

pub(crate) fn look(collector: &dyn Collector) -> Samples {
    let samples = page(collector);
    assert!(samples.errors().is_empty(), "{:?}", samples.errors());
    samples
}

pub(crate) fn page(collector: &dyn Collector) -> Samples {
    let host = Host::new(Roots::default());
    let deadline = Deadline::after(Duration::from_secs(20));
    let mut samples = collector.collect(Context::new(&host, deadline)).unwrap();
    samples.refuse_duplicates();
    samples
}

/// nodefs at `path`, with the kubelet's default thresholds for it.
fn nodefs(path: &Path, config: &Path) -> Overrides {
    let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
    std::fs::write(config, text).unwrap();
    Overrides { root_dir: Some(path.into()), config: Some(config.into()), ..Overrides::default() }
}

/// Checks every figure of nodefs against the witnesses; returns (bytes, inodes) of headroom as ratios.
fn check(samples: &Samples, path: &Path) -> (f64, f64) {
    let [capacity, available, _, inodes, inodes_free] = statvfs(path);
    let (bytes, files) = ("nodefs.available", "nodefs.inodesFree");
    assert_eq!(samples.value(&CAPACITY_BYTES, &[bytes]), Some(capacity));
    assert_eq!(samples.value(&AVAILABLE_BYTES, &[bytes]), Some(available));
    assert_eq!(samples.value(&CAPACITY_INODES, &[files]), Some(inodes));
    assert_eq!(samples.value(&AVAILABLE_INODES, &[files]), Some(inodes_free));
    let stat = run("stat", &["-f", "-c", "%S %b %a %c %d", path.to_str().unwrap()]).unwrap();
    let n: Vec<f64> = stat.split(' ').map(|number| number.parse().unwrap()).collect();
    assert_eq!(
        [n[0] * n[1], n[0] * n[2], n[3], n[4]],
        [capacity, available, inodes, inodes_free],
        "the witnesses agree"
    );
    let threshold = samples.value(&THRESHOLD_BYTES, &[bytes, "hard"]).unwrap();
    assert_eq!(threshold, (capacity * f64::from(0.1_f32)).floor());
    assert_eq!(samples.value(&THRESHOLD_INODES, &[files, "hard"]), Some((inodes * f64::from(0.05_f32)).floor()));
    let headroom = |signal| samples.value(&HEADROOM, &[signal, "hard"]).unwrap();
    assert_eq!(headroom(bytes), (available - threshold) / capacity);
    (headroom(bytes), headroom(files))
}

#[test]
fn bytes_run_out_on_ext4() {
    alone!();
    let disk = match Mounted::ext4() {
        Ok(disk) => disk,
        Err(error) => return common::say_skip(format_args!("no loop-mounted ext4: {error}")),
    };
    let config = tempfile::NamedTempFile::new().unwrap();
    let settings = nodefs(disk.path(), config.path());
    run("sync", &["-f", disk.name()]).unwrap();
    let samples = collect(&settings);
    let (before, _) = check(&samples, disk.path());
    assert!(before > 0.0, "an empty file system is far from eviction: {before}");
    let device = run("findmnt", &["-n", "-o", "SOURCE", disk.name()]).unwrap();
    assert_eq!(samples.value(&FILESYSTEM_INFO, &["nodefs", &device, disk.name(), "ext4"]), Some(1.0));
    assert_eq!(samples.value(&FILESYSTEM_READONLY, &["nodefs"]), Some(0.0));

    // Down to 1 MiB below the threshold. What root alone may still use (5 %) is free, and not available.
    let [capacity, available, ..] = statvfs(disk.path());
    let fill = (available - capacity * 0.1) as u64 + (1 << 20);
    std::fs::write(disk.path().join("fill"), vec![0x5a; usize::try_from(fill).unwrap()]).unwrap();
    run("sync", &["-f", disk.name()]).unwrap();
    let (after, inodes) = check(&collect(&settings), disk.path());
    assert!(after < 0.0 && after > -0.05, "{after}");
    assert!(inodes > 0.5, "bytes are gone, not inodes: {inodes}");
    let [_, available, free, ..] = statvfs(disk.path());
    assert!(free - available >= capacity * 0.04, "root's reserve is there: {free} {available}");

    // Into the reserve: nothing is available any more, though the kernel still has free blocks.
    let rest = usize::try_from(available as u64 + (1 << 20)).unwrap();
    std::fs::write(disk.path().join("rest"), vec![0x5a; rest]).unwrap();
    run("sync", &["-f", disk.name()]).unwrap();
    let samples = collect(&settings);
    check(&samples, disk.path());
    assert_eq!(samples.value(&AVAILABLE_BYTES, &["nodefs.available"]), Some(0.0));
    assert!(statvfs(disk.path())[2] > 0.0);

    run("mount", &["-o", "remount,ro", disk.name()]).unwrap();
    assert_eq!(collect(&settings).value(&FILESYSTEM_READONLY, &["nodefs"]), Some(1.0));
}

/// Whatever the mount table says: as the kernel does it when a disk fails.
#[test]
fn a_file_system_that_has_stopped_itself_takes_no_writes() {
    alone!();
    let config = tempfile::NamedTempFile::new().unwrap();
    match Mounted::ext4() {
        Err(error) => common::say_skip(format_args!("no loop-mounted ext4: {error}")),
        Ok(disk) => {
            let settings = nodefs(disk.path(), config.path());
            assert_eq!(collect(&settings).value(&FILESYSTEM_READONLY, &["nodefs"]), Some(0.0));
            let device = run("findmnt", &["-n", "-o", "SOURCE", disk.name()]).unwrap();
            let trigger = format!("/sys/fs/ext4/{}/trigger_fs_error", device.trim_start_matches("/dev/"));
            std::fs::write(trigger, "1").unwrap();
            assert!(std::fs::write(disk.path().join("new"), "x").is_err(), "it takes no writes");
            // The kernel counts the error a moment later, and some before Linux 6.15 have no other sign of it.
            common::eventually("the file system is seen to have stopped itself", || {
                collect(&settings).value(&FILESYSTEM_READONLY, &["nodefs"]) == Some(1.0)
            });
        }
    }
    match Mounted::xfs() {
        Err(error) => common::not_in_this_kernel(format_args!("XFS, or its programs: {error}")),
        Ok(disk) => {
            let settings = nodefs(disk.path(), config.path());
            assert_eq!(collect(&settings).value(&FILESYSTEM_READONLY, &["nodefs"]), Some(0.0));
            run("xfs_io", &["-x", "-c", "shutdown", disk.name()]).unwrap();
            let samples = collect(&settings);
            assert_eq!(samples.value(&FILESYSTEM_READONLY, &["nodefs"]), Some(1.0));
            assert!(samples.value(&CAPACITY_BYTES, &["nodefs.available"]).is_some(), "statfs answers all the same");
        }
    }
}

/// Its disk is a file on a file system that fills up: what the kernel writes to it then fails, as on a disk that dies.
#[test]
fn a_btrfs_has_no_inodes_to_run_out_of_and_stops_when_its_disk_fails() {
    alone!();
    let disk = Mounted::tmpfs("size=40m").unwrap();
    let image = tempfile::NamedTempFile::new_in(disk.path()).unwrap();
    let btrfs = match Mounted::btrfs(image) {
        Ok(btrfs) => btrfs,
        Err(error) => return common::not_in_this_kernel(format_args!("btrfs, or its programs: {error}")),
    };
    let config = tempfile::NamedTempFile::new().unwrap();
    let settings = nodefs(btrfs.path(), config.path());
    let samples = collect(&settings);
    let [capacity, available, _, inodes, _] = statvfs(btrfs.path());
    assert_eq!(inodes, 0.0, "it makes them as it needs them");
    assert_eq!(samples.value(&CAPACITY_BYTES, &["nodefs.available"]), Some(capacity));
    assert_eq!(samples.value(&AVAILABLE_BYTES, &["nodefs.available"]), Some(available));
    assert_eq!(samples.value(&CAPACITY_INODES, &["nodefs.inodesFree"]), None);
    assert_eq!(samples.value(&HEADROOM, &["nodefs.inodesFree", "hard"]), None, "no inodes are no shortage of them");
    assert_eq!(samples.value(&FILESYSTEM_READONLY, &["nodefs"]), Some(0.0));

    let mut written = 0;
    common::eventually("the file system has stopped itself", || {
        let block = vec![0xa5; 1 << 20];
        let _ = std::fs::write(btrfs.path().join(written.to_string()), block);
        let _ = run("sync", &["-f", btrfs.name()]);
        written += 1;
        std::fs::write(btrfs.path().join("probe"), "x").is_err_and(|error| error.raw_os_error() == Some(30))
    });
    assert_eq!(collect(&settings).value(&FILESYSTEM_READONLY, &["nodefs"]), Some(1.0));
}

#[test]
fn inodes_run_out_on_tmpfs() {
    alone!();
    let disk = match Mounted::tmpfs("size=8m,nr_inodes=200") {
        Ok(disk) => disk,
        Err(error) => return common::say_skip(format_args!("no tmpfs: {error}")),
    };
    let config = tempfile::NamedTempFile::new().unwrap();
    let settings = nodefs(disk.path(), config.path());
    let (_, before) = check(&collect(&settings), disk.path());
    assert!(before > 0.9, "{before}");
    let mut made = 0;
    // 5 % of 200 are 10: with exactly 10 left the kubelet does not evict, with 9 it does.
    while statvfs_inodes_free(&disk) > 10 {
        std::fs::write(disk.path().join(made.to_string()), "").unwrap();
        made += 1;
    }
    let (bytes, at) = check(&collect(&settings), disk.path());
    assert_eq!(at, 0.0, "at the threshold");
    std::fs::write(disk.path().join("one more"), "").unwrap();
    let (_, below) = check(&collect(&settings), disk.path());
    assert!(below < 0.0, "{below}");
    assert!(bytes > 0.5, "inodes are gone, not bytes: {bytes}");
}

fn statvfs_inodes_free(disk: &Mounted) -> u64 {
    rustix::fs::statvfs(disk.path()).unwrap().f_ffree
}

/// As k3s and RKE2 start their kubelets.
const RECLAIM: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
    evictionHard: {nodefs.available: 5%}\nevictionMinimumReclaim: {nodefs.available: 10%}\n";

/// So much of a tmpfs is available afterwards.
fn leave(disk: &Mounted, part: f64) {
    let file = disk.path().join("fill");
    let _ = std::fs::remove_file(&file);
    let [capacity, available, ..] = statvfs(disk.path());
    std::fs::write(file, vec![0x5a; (available - capacity * part) as usize]).unwrap();
}

fn met(collector: &dyn Collector) -> Option<f64> {
    look(collector).value(&THRESHOLD_MET, &["nodefs.available", "hard"])
}

#[test]
fn a_crossed_threshold_is_met_until_the_minimum_reclaim_is_free() {
    alone!();
    let disk = match Mounted::tmpfs("size=32m") {
        Ok(disk) => disk,
        Err(error) => return common::say_skip(format_args!("no tmpfs: {error}")),
    };
    let config = tempfile::NamedTempFile::new().unwrap();
    let settings = nodefs(disk.path(), config.path());
    std::fs::write(config.path(), RECLAIM).unwrap();
    let first = collector(&settings);
    let reclaim = look(&*first).value(&MINIMUM_RECLAIM_BYTES, &["nodefs.available"]);
    assert_eq!(reclaim, Some((statvfs(disk.path())[0] * f64::from(0.1_f32)).floor()));
    for (part, expected) in [(0.5, 0.0), (0.08, 0.0), (0.04, 1.0), (0.08, 1.0), (0.03, 1.0), (0.14, 1.0)] {
        leave(&disk, part);
        assert_eq!(met(&*first), Some(expected), "{part}");
    }
    assert!(look(&*first).value(&HEADROOM, &["nodefs.available", "hard"]).unwrap() > 0.0);
    // An exporter that starts now cannot tell.
    let second = collector(&settings);
    assert_eq!(met(&*second), None);
    leave(&disk, 0.16);
    assert_eq!((met(&*first), met(&*second)), (Some(0.0), Some(0.0)));
    leave(&disk, 0.08);
    assert_eq!((met(&*first), met(&*second)), (Some(0.0), Some(0.0)));
}

#[test]
fn another_kubelet_has_met_nothing_yet() {
    alone!();
    if !no_kubelet_here() {
        return;
    }
    let disk = match Mounted::tmpfs("size=32m") {
        Ok(disk) => disk,
        Err(error) => return common::say_skip(format_args!("no tmpfs: {error}")),
    };
    let dir = programs(&["kubelet"]);
    std::fs::write(dir.path().join("k.yaml"), RECLAIM).unwrap();
    let kubelet = || {
        let mut command = Command::new(dir.path().join("kubelet"));
        command.current_dir(dir.path()).args(["--config=k.yaml", "--root-dir", disk.name()]);
        start(&mut command, "kubelet")
    };
    let exporter = collector(&Overrides::default());
    let old = kubelet();
    for (part, expected) in [(0.04, 1.0), (0.08, 1.0)] {
        leave(&disk, part);
        assert_eq!(met(&*exporter), Some(expected), "{part}");
    }
    drop(old);
    assert_eq!(met(&*exporter), Some(1.0), "it is away, and nobody else is there");
    let _new = kubelet();
    // While there is none, processes are looked through every ten seconds.
    let until = Instant::now() + common::patience(30);
    while met(&*exporter).is_some() {
        assert!(Instant::now() < until, "the new one is not seen");
        std::thread::sleep(Duration::from_millis(100));
    }
    leave(&disk, 0.04);
    assert_eq!(met(&*exporter), Some(1.0));
    leave(&disk, 0.16);
    assert_eq!(met(&*exporter), Some(0.0));
}

#[test]
fn memory_and_pids_by_shell_arithmetic() {
    alone!();
    let script = r#"
        total=$(awk '/^MemTotal:/ {printf "%.0f", $2 * 1024}' /proc/meminfo)
        if [ -e /sys/fs/cgroup/memory/memory.usage_in_bytes ]; then
            usage=$(cat /sys/fs/cgroup/memory/memory.usage_in_bytes)
            inactive=$(awk '$1 == "total_inactive_file" {print $2}' /sys/fs/cgroup/memory/memory.stat)
        elif [ -e /sys/fs/cgroup/memory.stat ]; then
            # The version of no kubelet here is known: of the two ways to count, the one that leaves less.
            usage=$(awk '$1 == "anon" || $1 == "file" {sum += $2} END {printf "%.0f", sum}' /sys/fs/cgroup/memory.stat)
            not_free=$(awk '/^MemTotal:/ {sum += $2} /^MemFree:/ {sum -= $2} END {printf "%.0f", sum * 1024}' /proc/meminfo)
            if [ "$not_free" -gt "$usage" ]; then usage=$not_free; fi
            inactive=$(awk '$1 == "inactive_file" {print $2}' /sys/fs/cgroup/memory.stat)
        else
            exit 0
        fi
        echo "$total $((total - usage + inactive))"
    "#;
    let witness = || {
        let text = shell(script);
        text.split_once(' ')
            .map(|(total, available)| (total.parse::<f64>().unwrap(), available.parse::<f64>().unwrap()))
    };
    let Some((total, before)) = witness() else {
        return common::say_skip(format_args!("this kernel has no memory cgroup"));
    };
    let samples = collect(&Overrides::default());
    let (_, after) = witness().unwrap();
    // Other programs allocate and free between our reading and the shell's: a build on the same machine moves some 100
    // MB.
    let slack = 512.0 * 1024.0 * 1024.0;
    let ours = samples.value(&AVAILABLE_BYTES, &["memory.available"]).unwrap();
    assert_eq!(samples.value(&CAPACITY_BYTES, &["memory.available"]), Some(total));
    assert!(ours > before.min(after) - slack && ours < before.max(after) + slack, "{before} {ours} {after}");

    let limit: f64 =
        shell("cat /proc/sys/kernel/pid_max /proc/sys/kernel/threads-max | sort -n | head -n 1").parse().unwrap();
    assert_eq!(samples.value(&CAPACITY_PIDS, &["pid.available"]), Some(limit));
    let threads: f64 = shell("cut -d ' ' -f 4 /proc/loadavg | cut -d / -f 2").parse().unwrap();
    let ours = limit - samples.value(&AVAILABLE_PIDS, &["pid.available"]).unwrap();
    assert!((ours - threads).abs() < 500.0, "{ours} threads, {threads} a moment later");
}

/// A process that goes away with the test.
pub(crate) struct Process(pub(crate) Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `command`, which waits for its standard input to end, and waits until the kernel shows it as `comm`.
pub(crate) fn start(command: &mut Command, comm: &str) -> Process {
    let child = Process(command.stdin(Stdio::piped()).spawn().unwrap());
    let path = format!("/proc/{}/comm", child.0.id());
    let patience = Instant::now() + Duration::from_secs(20);
    while std::fs::read_to_string(&path).unwrap_or_default().trim() != comm {
        assert!(Instant::now() < patience, "{comm} does not start");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

/// A folder with programs of these names that take any flags and do nothing.
pub(crate) fn programs(names: &[&str]) -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    for name in names {
        let path = dir.path().join(name);
        std::fs::write(&path, "#!/bin/sh\nread line\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    dir
}

/// False, and a word about it, if something on this machine is a kubelet already.
pub(crate) fn no_kubelet_here() -> bool {
    let samples = collect(&Overrides::default());
    let none = samples.value(&CONFIG_INFO, &["default", ""]).is_some();
    if !none {
        common::say_skip(format_args!("a kubelet runs on this machine"));
    }
    none
}

const CONFIG: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
    evictionHard: {memory.available: 321Mi}\n";

/// These stand-ins do not make themselves a /var/lib/kubelet, as a kubelet does.
pub(crate) fn on_root() -> Overrides {
    Overrides { root_dir: Some("/".into()), ..Overrides::default() }
}

pub(crate) fn hard_memory(samples: &Samples) -> Option<f64> {
    samples.value(&THRESHOLD_BYTES, &["memory.available", "hard"])
}

#[test]
fn a_running_kubelet_is_found_with_its_files() {
    alone!();
    if !no_kubelet_here() {
        return;
    }
    assert_eq!(hard_memory(&collect(&Overrides::default())), Some(100.0 * 1_048_576.0), "its default");
    let dir = programs(&["kubelet", "etcd"]);
    std::fs::write(dir.path().join("k.yaml"), CONFIG).unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    // A relative path is relative to where the kubelet was started, which is not where we are.
    let mut command = Command::new(dir.path().join("kubelet"));
    command.current_dir(dir.path()).args(["--config=k.yaml", "--image-gc-high-threshold=91", "--root-dir"]).arg(&root);
    let kubelet = start(&mut command, "kubelet");
    let samples = collect(&Overrides::default());
    assert_eq!(hard_memory(&samples), Some(321.0 * 1_048_576.0));
    let path = dir.path().join("k.yaml").display().to_string();
    assert_eq!(samples.value(&CONFIG_INFO, &["file", &path]), Some(1.0));
    assert_eq!(samples.value(&CONFIG_INFO, &["flag", ""]), Some(1.0));
    assert_eq!(samples.value(&eviction::IMAGE_GC, &["high"]), Some(0.91));
    assert_eq!(samples.value(&CAPACITY_BYTES, &["nodefs.available"]), Some(statvfs(&root)[0]));
    if control_plane() == Some(0.0) {
        let _etcd = start(&mut Command::new(dir.path().join("etcd")), "etcd");
        assert_eq!(control_plane(), Some(1.0));
    } else {
        common::say_skip(format_args!("a control plane runs on this machine"));
    }
    drop(kubelet);
    let samples = collect(&Overrides::default());
    assert_eq!(samples.value(&CONFIG_INFO, &["default", ""]), Some(1.0));
}

#[test]
fn a_kubelet_by_another_name_runs_on_flags_only() {
    alone!();
    if !no_kubelet_here() {
        return;
    }
    let _kubelet = start(Command::new("bash").args(["-c", "exec -a kubelet sleep 600"]), "sleep");
    let samples = collect(&on_root());
    assert_eq!(samples.value(&CONFIG_INFO, &["flag", ""]), Some(1.0));
    assert_eq!(hard_memory(&samples), None, "no file, no thresholds");
    assert!(samples.value(&AVAILABLE_BYTES, &["memory.available"]).is_some());
}

#[test]
fn a_kubelet_in_a_mount_namespace_of_its_own() {
    alone!();
    if !no_kubelet_here() {
        return;
    }
    let dir = programs(&["kubelet"]);
    let inside = dir.path().join("inside");
    std::fs::create_dir(&inside).unwrap();
    let (inside, program) = (inside.to_str().unwrap(), dir.path().join("kubelet").display().to_string());
    let script = format!(
        "mount -t tmpfs headroom-test {inside} && printf '{}' > {inside}/k.yaml && exec {program} --config={inside}/k.yaml",
        CONFIG.replace('\n', "\\n")
    );
    if let Err(error) = run("unshare", &["--mount", "true"]) {
        return common::say_skip(format_args!("no mount namespaces: {error}"));
    }
    let _kubelet = start(Command::new("unshare").args(["--mount", "sh", "-c", &script]), "kubelet");
    assert!(!PathBuf::from(inside).join("k.yaml").exists(), "the machine itself does not have it");
    assert_eq!(hard_memory(&collect(&on_root())), Some(321.0 * 1_048_576.0));
}
