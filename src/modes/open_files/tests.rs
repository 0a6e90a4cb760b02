//! The mode on folders of files that look like a procfs.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::assess::*;
use super::inotify::{INSTANCES, INSTANCES_LIMIT, UNEXAMINED, WATCHES};
use super::*;
use crate::error::Reason;
use crate::golden::inventory::recorded;
use crate::golden::ss;
use crate::host::sockets::{Sockets, TcpConnection};
use crate::host::{Deadline, Roots};
use crate::runtime::Inventory;
use crate::services::Services;

/// Without a runtime.
pub(super) fn mode_with(settings: Settings) -> OpenFiles {
    OpenFiles::new(settings, &Services::with_runtime(Runtime::default()))
}

pub(super) struct FakeProc(tempfile::TempDir);

impl FakeProc {
    pub(super) fn new() -> Self {
        let fake = FakeProc(tempfile::tempdir().unwrap());
        fake.write("sys/fs/file-nr", include_bytes!("../../../tests/fixtures/open_files/v2-file-nr.txt"));
        fake.write("sys/fs/inotify/max_user_instances", b"128\n");
        fake.write("sys/fs/inotify/max_user_watches", b"192536\n");
        fake
    }

    pub(super) fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    pub(super) fn process(&self, pid: u32, comm: &[u8], limit: u64, links: &[&str]) {
        let _ = std::fs::remove_dir_all(self.path(&pid.to_string()));
        std::fs::create_dir_all(self.path(&format!("{pid}/fd"))).unwrap();
        self.write(&format!("{pid}/comm"), &[comm, b"\n"].concat());
        self.write(&format!("{pid}/limits"), format!("Max open files            {limit}   4096   files \n").as_bytes());
        self.write(&format!("{pid}/status"), b"Name:\tx\nUid:\t0\t1000\t0\t0\n");
        self.write(&format!("{pid}/cgroup"), b"0::/\n");
        for (fd, link) in links.iter().enumerate() {
            symlink(OsStr::from_bytes(link.as_bytes()), self.path(&format!("{pid}/fd/{fd}"))).unwrap();
            self.write(&format!("{pid}/fdinfo/{fd}"), b"pos:\t0\nino:\t29\n");
        }
    }

    /// A process as it was recorded on a node.
    fn recorded(&self, pid: u32, comm: &str, folder: &str) {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/open_files").join(folder);
        let file = |name: &str| self.host().read_some(folder.join(name)).unwrap().unwrap_or_default();
        self.process(pid, comm.as_bytes(), 0, &[]);
        for name in ["limits", "cgroup", "status"] {
            self.write(&format!("{pid}/{name}"), file(&format!("{name}.txt")).as_bytes());
        }
        for line in file("fd.txt").lines() {
            let Some((before, link)) = line.split_once(" -> ") else { continue };
            let fd = before.rsplit(' ').next().unwrap();
            symlink(link, self.path(&format!("{pid}/fd/{fd}"))).unwrap();
        }
        for block in file("fdinfo.txt").split("== ").skip(1) {
            let (fd, info) = block.split_once('\n').unwrap();
            self.write(&format!("{pid}/fdinfo/{}", fd.trim()), info.as_bytes());
        }
    }

    pub(super) fn watches(&self, pid: u32, fd: u32, watches: usize) {
        let lines = "inotify wd:1 ino:20096 sdev:fe00000 mask:fc6 ignored_mask:0\n".repeat(watches);
        self.write(&format!("{pid}/fdinfo/{fd}"), format!("pos:\t0\nflags:\t00\nino:\t29\n{lines}").as_bytes());
    }

    fn host(&self) -> Host {
        self.host_with(Sockets::default())
    }

    /// Of recorded files: the running kernel's sockets are none of this machine's.
    pub(super) fn host_with(&self, sockets: Sockets) -> Host {
        let roots = Roots { proc: self.0.path().into(), ..Roots::default() };
        Host::recorded(roots, Vec::new()).with_sockets(sockets)
    }

    pub(super) fn collect(&self, mode: &OpenFiles) -> Samples {
        let host = self.host();
        let mut samples = mode.collect(Context::new(&host, Deadline::after(Duration::from_secs(60)))).unwrap();
        samples.refuse_duplicates();
        samples
    }

    pub(super) fn collect_with(&self, settings: Settings) -> Samples {
        self.collect(&mode_with(settings))
    }
}

fn sum(samples: &Samples, metric: &'static crate::metric::Metric) -> f64 {
    samples.rows().iter().filter(|row| std::ptr::eq(row.metric, metric)).map(|row| row.value).sum()
}

pub(super) fn detailed(samples: &Samples) -> Vec<u32> {
    let rows = samples.rows().iter().filter(|row| std::ptr::eq(row.metric, &PROCESS_OPEN_FDS));
    rows.map(|row| row.labels[0].parse().unwrap()).collect()
}

pub(super) const FILE: &str = "/var/log/x";

#[test]
fn recorded_processes() {
    let fake = FakeProc::new();
    fake.recorded(1555, "kubelet", "v2-kubelet");
    fake.recorded(2000, "sleep", "v1-container");
    let samples = fake.collect_with(Settings::default());
    assert_eq!(samples.errors(), []);
    assert_eq!(samples.value(&HANDLES_ALLOCATED, &[]), Some(1056.0));
    let kubelet = ["1555", "kubelet", "", "", "", "", ""];
    assert_eq!(samples.value(&PROCESS_OPEN_FDS, &kubelet), Some(26.0));
    assert_eq!(samples.value(&PROCESS_FD_LIMIT, &kubelet), Some(1e6));
    assert_eq!(samples.value(&PROCESS_FDS, &["1555", "kubelet", "inotify"]), Some(7.0));
    let uid = "bcb1982f-2628-449a-accb-e40ecdefbb3b";
    let id = "55f765a8788dcccb46fae55db15b169605b66df347604a06a4f6ed7c15f879c6";
    assert_eq!(samples.value(&PROCESS_OPEN_FDS, &["2000", "sleep", uid, id, "", "", ""]), Some(3.0));
    assert_eq!(samples.value(&INSTANCES, &["0"]), Some(7.0));
    assert_eq!(samples.value(&INSTANCES_LIMIT, &["0"]), Some(128.0));
    let fdinfo = include_str!("../../../tests/fixtures/open_files/v2-kubelet/fdinfo.txt");
    let lines = fdinfo.lines().filter(|line| line.starts_with("inotify ")).count();
    assert_eq!(samples.value(&WATCHES, &["0"]), Some(lines as f64));
    assert_eq!(samples.value(&UNEXAMINED, &[]), Some(0.0));
}

#[test]
fn names_are_the_runtimes() {
    let fake = FakeProc::new();
    fake.recorded(1555, "kubelet", "v2-kubelet");
    fake.recorded(2000, "sleep", "v1-container");
    fake.recorded(2001, "pause", "v1-pause");
    fake.recorded(2002, "gone", "v2-container");
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let mut inventory = recorded("k8s-1.36-cgroupv1");
    let runtime = move |inventory: Inventory, count: Arc<AtomicUsize>| {
        let inventory = Arc::new(inventory);
        Runtime::answering(move || {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(Arc::clone(&inventory))
        })
        .that_names_at_once()
    };
    let samples = fake.collect(&OpenFiles::new(
        Settings::default(),
        &Services::with_runtime(runtime(inventory.clone(), Arc::clone(&count))),
    ));
    assert_eq!(samples.errors(), []);
    let uid = "bcb1982f-2628-449a-accb-e40ecdefbb3b";
    let (container, sandbox) = (
        "55f765a8788dcccb46fae55db15b169605b66df347604a06a4f6ed7c15f879c6",
        "5d254dd4d3bde41c7c4a6a3248daea1f1c364728b68bb57782b4a271430706dd",
    );
    let value = |samples: &Samples, labels: &[&str]| samples.value(&PROCESS_OPEN_FDS, labels);
    assert_eq!(value(&samples, &["2000", "sleep", uid, container, "default", "memvol", "w"]), Some(3.0));
    assert_eq!(value(&samples, &["2001", "pause", uid, sandbox, "default", "memvol", ""]), Some(3.0));
    // Of a pod of the other node, which this runtime does not know; and of none.
    let id = "fbac8099e388339f9fbcb5c13711ebbc562fb774b7a291a4387f6a5bceb13091";
    let ids_only = ["2002", "gone", "dffe967d-a11f-417e-8310-08020db089c7", id, "", "", ""];
    assert_eq!(value(&samples, &ids_only), Some(3.0));
    assert_eq!(value(&samples, &["1555", "kubelet", "", "", "", "", ""]), Some(26.0));
    assert_eq!(asked.load(Ordering::Relaxed), 1);

    // A container that the runtime has forgotten has its pod's names.
    inventory.containers.retain(|one| one.id != container);
    let samples = fake.collect(&OpenFiles::new(
        Settings::default(),
        &Services::with_runtime(runtime(inventory.clone(), Arc::clone(&count))),
    ));
    assert_eq!(value(&samples, &["2000", "sleep", uid, container, "default", "memvol", ""]), Some(3.0));

    // A runtime that does not answer costs names and nothing else, and without a pod's process nobody asks it.
    let silent = || {
        OpenFiles::new(
            Settings::default(),
            &Services::with_runtime(Runtime::fixed(Err(Error::new(Reason::Timeout, "x")))),
        )
    };
    let samples = fake.collect(&silent());
    assert_eq!(samples.errors().iter().map(Error::reason).collect::<Vec<_>>(), [Reason::Timeout]);
    assert_eq!(value(&samples, &["2000", "sleep", uid, container, "", "", ""]), Some(3.0));
    let fake = FakeProc::new();
    fake.recorded(1555, "kubelet", "v2-kubelet");
    assert_eq!(fake.collect(&silent()).errors(), []);
}

#[test]
fn a_procfs_without_our_files_is_absent() {
    let fake = FakeProc(tempfile::tempdir().unwrap());
    fake.write("meminfo", b"");
    let collect = |host: &Host| {
        let context = Context::new(host, Deadline::after(Duration::from_secs(60)));
        mode_with(Settings::default()).collect(context).unwrap_err().reason()
    };
    assert_eq!(collect(&fake.host()), Reason::Absent);
    let nothing = Host::new(Roots { proc: fake.path("nothing"), ..Roots::default() });
    assert_eq!(collect(&nothing), Reason::Absent);
}

#[test]
fn a_malformed_file_nr_spoils_nothing_else() {
    let fake = FakeProc::new();
    fake.write("sys/fs/file-nr", b"many\n");
    fake.process(7, b"a", 100, &[FILE]);
    let samples = fake.collect_with(Settings::default());
    assert_eq!(samples.errors().iter().map(Error::reason).collect::<Vec<_>>(), [Reason::Malformed]);
    assert_eq!((samples.value(&HANDLES_ALLOCATED, &[]), samples.value(&OPEN_FDS, &[])), (None, Some(1.0)));
}

#[test]
fn processes_that_vanish_are_no_errors() {
    let fake = FakeProc::new();
    fake.process(7, b"stays", 100, &[FILE]);
    std::fs::create_dir(fake.path("8")).unwrap(); // gone after its directory was opened
    fake.write("9", b"not even a directory");
    fake.process(10, b"half", 100, &[FILE]);
    std::fs::remove_file(fake.path("10/comm")).unwrap(); // gone between two files
    let samples = fake.collect_with(Settings::default());
    assert_eq!(samples.errors(), []);
    assert_eq!((samples.value(&PROCESSES, &[]), samples.value(&OPEN_FDS, &[])), (Some(1.0), Some(1.0)));
}

#[test]
fn odd_names_are_text_and_never_two_series() {
    let fake = FakeProc::new();
    fake.process(1, b"say \"hi\"\nx", 100, &[FILE]);
    fake.process(2, b"caf\xc3", 100, &[FILE]);
    fake.process(3, b"caf\xff", 100, &[FILE, FILE]);
    fake.process(4, b"other", 100, &[FILE; 9]);
    fake.process(5, b"", 100, &[FILE]);
    let samples = fake.collect_with(Settings::default());
    assert_eq!(samples.errors(), []);
    assert_eq!(samples.value(&COMMAND_OPEN_FDS, &["say \"hi\"\nx"]), Some(1.0));
    assert_eq!(samples.value(&COMMAND_OPEN_FDS, &["caf\u{fffd}"]), Some(3.0));
    assert_eq!(samples.value(&COMMAND_OPEN_FDS, &["other"]), Some(9.0));
    assert_eq!(samples.value(&COMMAND_OPEN_FDS, &[""]), Some(1.0));
    assert_eq!(samples.value(&PROCESS_OPEN_FDS, &["2", "caf\u{fffd}", "", "", "", "", ""]), Some(1.0));
}

#[test]
fn sums_by_command_are_exact() {
    let fake = FakeProc::new();
    for pid in 1..=60 {
        let links = vec![FILE; pid as usize % 7];
        fake.process(pid, format!("command{}", pid % 23).as_bytes(), 10, &links);
    }
    let samples = fake.collect_with(Settings { commands: 5, ..Settings::default() });
    assert_eq!(sum(&samples, &COMMAND_OPEN_FDS), samples.value(&OPEN_FDS, &[]).unwrap());
    assert_eq!(sum(&samples, &COMMAND_PROCESSES), samples.value(&PROCESSES, &[]).unwrap());
    assert_eq!(samples.value(&PROCESSES, &[]), Some(60.0));
    assert_eq!(samples.value(&COMMAND_WORST_RATIO, &["other"]), Some(0.6), "the worst of all that it stands for");
    assert_eq!(samples.rows().iter().filter(|row| std::ptr::eq(row.metric, &COMMAND_PROCESSES)).count(), 6);
}

#[test]
fn the_nearest_and_the_largest_are_shown() {
    let fake = FakeProc::new();
    for pid in 1..=20 {
        fake.process(pid, b"small", 1000, &[FILE; 2]);
    }
    fake.process(30, b"near", 300, &[FILE; 29]);
    fake.process(31, b"over", 256, &[FILE; 28]);
    fake.process(40, b"large", 1_000_000, &[FILE; 30]);
    // Alerts leave such limits out.
    fake.process(41, b"locked", 0, &[FILE]);
    fake.process(42, b"locked", 255, &[FILE; 20]);
    let samples = fake.collect_with(Settings { top: 2, ..Settings::default() });
    assert_eq!(detailed(&samples), [30, 31, 40]);
    let one = fake.collect_with(Settings { top: 1, ..Settings::default() });
    assert_eq!(detailed(&one), [31, 40]);
    let none = fake.collect_with(Settings { top: 0, ..Settings::default() });
    assert!(detailed(&none).is_empty());
}

#[test]
fn daemons_are_always_shown_and_capped() {
    let fake = FakeProc::new();
    fake.process(1, b"large", 1000, &[FILE; 9]);
    fake.process(2, b"kube-controller", 1000, &[FILE]);
    for pid in 100..600 {
        fake.process(pid, b"kubelet", 1000, &[FILE]);
    }
    let samples = fake.collect_with(Settings { top: 1, ..Settings::default() });
    assert_eq!(detailed(&samples).len(), MOST_DAEMONS + 1);
    assert_eq!(detailed(&samples)[..3], [1, 2, 100]);
    assert_eq!(samples.dropped_by().node, 501 - MOST_DAEMONS as u64);
    assert_eq!(samples.value(&OPEN_FDS, &[]), Some(510.0));
}

#[test]
fn kinds_within_a_budget_still_add_up() {
    let fake = FakeProc::new();
    fake.process(1, b"giant", 1000, &["socket:[1]"; 200]);
    fake.process(2, b"small", 1000, &["pipe:[1]", "anon_inode:[eventpoll]", FILE]);
    let samples = fake.collect_with(Settings { max_readlinks: 50, ..Settings::default() });
    let kind = |pid, comm, kind| samples.value(&PROCESS_FDS, &[pid, comm, kind]);
    assert_eq!((kind("2", "small", "pipe"), kind("2", "small", "eventpoll")), (Some(1.0), Some(1.0)));
    assert_eq!(kind("2", "small", "unexamined"), None);
    assert_eq!((kind("1", "giant", "socket"), kind("1", "giant", "unexamined")), (Some(47.0), Some(153.0)));
}

#[test]
fn sockets_in_close_wait_are_counted_or_absent() {
    let fake = FakeProc::new();
    fake.process(1, b"giant", 1000, &["socket:[9]"; 200]);
    fake.process(2, b"leaks", 1000, &["socket:[1]", "socket:[2]", "socket:[3]", FILE]);
    fake.process(3, b"well", 1000, &["socket:[4]", FILE]);
    fake.process(4, b"large", 1000, &["socket:[5]"; 100]);
    let socket =
        |state, inode| TcpConnection { state, inode, ..ss::connection("0 0 10.0.0.1:1 10.0.0.2:2 rto:200 rtt:1/1") };
    let tcp =
        [(TcpState::CloseWait, 1), (TcpState::CloseWait, 3), (TcpState::CloseWait, 9), (TcpState::Established, 4)];
    let sockets = Sockets::recorded(tcp.map(|(state, inode)| socket(state, inode)).to_vec(), Vec::new());
    let mode = mode_with(Settings { max_readlinks: 100, ..Settings::default() });
    let host = fake.host_with(sockets);
    let samples = mode.collect(Context::new(&host, Deadline::after(Duration::from_secs(60)))).unwrap();
    assert_eq!(samples.errors(), []);
    let value = |pid, comm| samples.value(&CLOSE_WAIT, &[pid, comm]);
    assert_eq!((value("2", "leaks"), value("3", "well")), (Some(2.0), Some(0.0)));
    // Both are examined in part: at least so many, and nothing that could be no 0.
    assert!(samples.value(&PROCESS_FDS, &["1", "giant", "unexamined"]).is_some());
    assert!(value("1", "giant").is_some_and(|count| count > 0.0 && count < 200.0));
    assert!(samples.value(&PROCESS_FDS, &["4", "large", "unexamined"]).is_some());
    assert_eq!(value("4", "large"), None);
    // A kernel that does not list its sockets: nothing is said.
    let samples = fake.collect(&mode);
    assert!(samples.errors().is_empty() && samples.value(&CLOSE_WAIT, &["2", "leaks"]).is_none());
}

#[test]
fn what_could_not_be_counted_is_absent_and_said_once() {
    let mut snapshot = Snapshot::default();
    let known = snapshot::Command { processes: 2, fds: 20, uncounted: 0, worst_ratio: Some(0.1) };
    let unknown = snapshot::Command { processes: 500, fds: 1, uncounted: 499, worst_ratio: Some(0.9) };
    snapshot.commands.insert(crate::host::process::parse::Comm::new(b"mine"), known);
    snapshot.commands.insert(crate::host::process::parse::Comm::new(b"yours"), unknown);
    let mut samples = Samples::new();
    assess::assess(snapshot, 5, None, 499, true, &mut samples);
    assert_eq!(samples.errors().iter().map(Error::reason).collect::<Vec<_>>(), [Reason::Denied]);
    assert!(samples.errors()[0].to_string().contains("499 processes"), "{}", samples.errors()[0]);
    assert_eq!((samples.value(&PROCESSES, &[]), samples.value(&OPEN_FDS, &[])), (Some(502.0), None));
    assert_eq!(samples.value(&COMMAND_OPEN_FDS, &["mine"]), Some(20.0));
    assert_eq!(samples.value(&COMMAND_OPEN_FDS, &["yours"]), None);
    assert_eq!(samples.value(&COMMAND_WORST_RATIO, &["yours"]), None);
    assert_eq!(samples.value(&COMMAND_PROCESSES, &["yours"]), Some(500.0));
}

#[test]
fn a_process_that_protects_itself_is_no_failure() {
    let run = |refused, entitled| {
        let denied = (refused, Error::new(Reason::Denied, "process 1: fd"));
        let snapshot = Snapshot { kinds_refused: Some(denied), ..Snapshot::default() };
        let mut samples = Samples::new();
        assess::assess(snapshot, 5, None, refused, entitled, &mut samples);
        assert_eq!(samples.dropped(), 0);
        (samples.errors().len(), samples.value(&assess::PROTECTED, &[]))
    };
    assert_eq!(run(1, true), (0, Some(1.0)));
    assert_eq!(run(1, false), (1, None), "it is for want of a capability");
    assert_eq!(run(30, true), (1, None), "it is we who are confined");
}

#[test]
fn a_passed_deadline_leaves_no_sums() {
    let fake = FakeProc::new();
    fake.process(1, b"a", 100, &[FILE, "anon_inode:inotify"]);
    let (mode, host) = (mode_with(Settings::default()), fake.host());
    assert_eq!(fake.collect(&mode).value(&INSTANCES, &["1000"]), Some(1.0));
    let late = mode.collect(Context::new(&host, Deadline::after(Duration::ZERO))).unwrap();
    assert!(late.errors().iter().all(|error| error.reason() == Reason::Timeout) && !late.errors().is_empty());
    for metric in [&PROCESSES, &OPEN_FDS, &COMMAND_OPEN_FDS, &COMMAND_PROCESSES, &INSTANCES] {
        assert!(!late.rows().iter().any(|row| std::ptr::eq(row.metric, metric)), "{}", metric.name);
    }
    // What the index knew is not lost by it.
    assert_eq!(fake.collect(&mode).value(&INSTANCES, &["1000"]), Some(1.0));
}

#[test]
fn inotify_is_absent_until_everything_was_examined() {
    let fake = FakeProc::new();
    fake.process(1, b"a", 5000, &[FILE; 2500]);
    fake.process(2, b"b", 100, &[FILE, "anon_inode:inotify", "anon_inode:inotify"]);
    fake.watches(2, 1, 3);
    fake.watches(2, 2, 4);
    let mode = mode_with(Settings { inotify_max_readlinks: 1000, ..Settings::default() });
    let mut before = f64::INFINITY;
    for _ in 0..2 {
        let samples = fake.collect(&mode);
        let left = samples.value(&UNEXAMINED, &[]).unwrap();
        assert!(left > 0.0 && left < before, "{left} after {before}");
        assert_eq!(samples.value(&INSTANCES, &["1000"]), None);
        before = left;
    }
    let samples = fake.collect(&mode);
    assert_eq!(samples.value(&UNEXAMINED, &[]), Some(0.0));
    assert_eq!(samples.value(&INSTANCES, &["1000"]), Some(2.0));
    assert_eq!(samples.value(&WATCHES, &["1000"]), Some(7.0));
    assert_eq!(samples.value(&INSTANCES, &["0"]), None, "the effective uid counts");
}

#[test]
fn inotify_follows_what_changes() {
    let fake = FakeProc::new();
    let mode = mode_with(Settings::default());
    let instances = |samples: &Samples| samples.value(&INSTANCES, &["1000"]);
    fake.process(1, b"a", 100, &[FILE, "anon_inode:inotify"]);
    fake.watches(1, 1, 2);
    assert_eq!(instances(&fake.collect(&mode)), Some(1.0));
    // More watches on the same instance.
    fake.watches(1, 1, 5);
    assert_eq!(fake.collect(&mode).value(&WATCHES, &["1000"]), Some(5.0));
    // A new fd: the count changed.
    fake.process(1, b"a", 100, &[FILE, "anon_inode:inotify", "anon_inode:inotify"]);
    assert_eq!(instances(&fake.collect(&mode)), Some(2.0));
    // One closed, another opened, the count as before: the closed one is noticed at once.
    fake.process(1, b"a", 100, &[FILE, "anon_inode:inotify", FILE]);
    assert_eq!(instances(&fake.collect(&mode)), Some(1.0));
    // And the other way round it is found in turn.
    fake.process(1, b"a", 100, &["anon_inode:inotify", "anon_inode:inotify", FILE]);
    assert!((0..9).any(|_| instances(&fake.collect(&mode)) == Some(2.0)), "an eighth of all at each scrape");
    // The pid now belongs to another program with as many fds.
    fake.process(1, b"b", 100, &[FILE, FILE, "anon_inode:inotify"]);
    assert_eq!(instances(&fake.collect(&mode)), Some(1.0));
    std::fs::remove_dir_all(fake.path("1")).unwrap();
    assert_eq!(instances(&fake.collect(&mode)), None);
}

#[test]
fn without_examination_in_turn_only_counts_tell() {
    let fake = FakeProc::new();
    let mode = mode_with(Settings { inotify_reexamine: 0, ..Settings::default() });
    fake.process(1, b"a", 100, &[FILE, "anon_inode:inotify"]);
    fake.collect(&mode);
    fake.process(1, b"a", 100, &["anon_inode:inotify", "anon_inode:inotify"]);
    assert_eq!(fake.collect(&mode).value(&INSTANCES, &["1000"]), Some(1.0));
}

#[test]
fn the_examination_in_turn_comes_round() {
    let fake = FakeProc::new();
    let mode = mode_with(Settings { inotify_reexamine: 10, ..Settings::default() });
    for pid in 1..=20 {
        fake.process(pid, b"a", 100, &[FILE; 25]);
    }
    fake.collect(&mode);
    let mut links = [FILE; 25];
    links[24] = "anon_inode:inotify";
    fake.process(20, b"a", 100, &links);
    // 500 fds, ten at a time; a process costs one scrape more where it was cut exactly at its end.
    let rounds = (1..=80).find(|_| fake.collect(&mode).value(&INSTANCES, &["1000"]).is_some());
    assert!(rounds.is_some_and(|rounds| rounds > 10), "{rounds:?}");
}

#[test]
fn a_new_process_that_waits_hides_nobody() {
    let fake = FakeProc::new();
    fake.process(1, b"a", 100, &["anon_inode:inotify"]);
    fake.process(2, b"a", 100, &["anon_inode:inotify"]);
    fake.write("2/status", b"Name:\tx\nUid:\t7\t7\t7\t7\n");
    let mode = mode_with(Settings { inotify_max_readlinks: 1000, ..Settings::default() });
    let samples = fake.collect(&mode);
    assert_eq!((samples.value(&INSTANCES, &["7"]), samples.value(&INSTANCES, &["1000"])), (Some(1.0), Some(1.0)));
    fake.process(3, b"giant", 5000, &[FILE; 1500]);
    let samples = fake.collect(&mode);
    assert_eq!((samples.value(&INSTANCES, &["7"]), samples.value(&INSTANCES, &["1000"])), (Some(1.0), Some(1.0)));
    assert!(samples.value(&UNEXAMINED, &[]).unwrap() > 0.0, "that there may be more is said");
}

#[test]
fn an_instance_with_very_many_watches_is_read_alone() {
    let fake = FakeProc::new();
    fake.process(1, b"a", 100, &["anon_inode:inotify"]);
    fake.watches(1, 0, 90_000);
    fake.process(2, b"b", 100, &["anon_inode:inotify"]);
    fake.write("2/status", b"Name:\tx\nUid:\t7\t7\t7\t7\n");
    fake.watches(2, 0, 3);
    let mode = mode_with(Settings::default());
    let watches = |samples: &Samples| [samples.value(&WATCHES, &["1000"]), samples.value(&WATCHES, &["7"])];
    let samples = fake.collect(&mode);
    assert_eq!((watches(&samples), samples.dropped()), ([None, Some(3.0)], 1), "the large one is not read at first");
    assert_eq!(samples.value(&UNEXAMINED, &[]), Some(1.0), "and that is said");
    assert_eq!(samples.value(&INSTANCES, &["1000"]), Some(1.0));
    let samples = fake.collect(&mode);
    assert_eq!((watches(&samples), samples.dropped()), ([Some(90_000.0), Some(3.0)], 0));
    // The large one rests now, the small one does not.
    fake.watches(1, 0, 90_001);
    fake.watches(2, 0, 4);
    assert_eq!(watches(&fake.collect(&mode)), [Some(90_000.0), Some(4.0)]);
    assert!((0..3).any(|_| watches(&fake.collect(&mode)) == [Some(90_001.0), Some(4.0)]));
}
