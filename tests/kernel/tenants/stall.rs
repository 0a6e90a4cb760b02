//! Processes that keep whoever looks at them waiting, and readers in a hurry. Needs root, FUSE and python3.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{self, Exporter, Page};
use crate::eviction::{Process, no_kubelet_here, programs, start};

const NOBODY: u32 = 65534;
const THRESHOLD: &str = "headroom_eviction_threshold_bytes{signal=\"memory.available\",type=\"hard\"}";

/// A process of which nobody gets to read the command line.
struct Stuck {
    child: Child,
    _dir: tempfile::TempDir,
}

impl Stuck {
    /// `Err`: this kernel does not keep anybody waiting for such a process.
    fn start(comm: &str, uid: u32) -> Result<Self, String> {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/stuck.py");
        let mut command = Command::new("unshare");
        command.args(["--mount", "python3", script, dir.path().to_str().unwrap(), comm, &uid.to_string()]);
        let child = command.stdin(Stdio::piped()).spawn().map_err(|error| error.to_string())?;
        let mut stuck = Stuck { child, _dir: dir };
        let until = Instant::now() + common::patience(15);
        while !stuck.keeps_waiting(comm) {
            if let Some(ended) = stuck.child.try_wait().unwrap() {
                return Err(format!("stuck.py ended: {ended}"));
            }
            if Instant::now() > until {
                return Err("this kernel lets its command line be read".to_owned());
            }
        }
        Ok(stuck)
    }

    fn keeps_waiting(&self, comm: &str) -> bool {
        let path = format!("/proc/{}", self.child.id());
        let cat = format!("timeout --signal=KILL 1 cat {path}/cmdline >/dev/null");
        let read = || Command::new("sh").args(["-c", &cat]).stderr(Stdio::null()).status().unwrap().success();
        fs::read_to_string(format!("{path}/comm")).is_ok_and(|name| name.trim() == comm)
            && !read()
            && fs::metadata(path).is_ok()
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        // Its file system ends with its standard input: only then can it end.
        self.child.stdin = None;
        let _ = self.child.wait();
    }
}

/// A kubelet of this node, with a threshold of its own.
fn victim(dir: &tempfile::TempDir) -> Process {
    let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
    fs::write(dir.path().join("k.yaml"), format!("{head}evictionHard: {{memory.available: 321Mi}}\n")).unwrap();
    let config = format!("--config={}", dir.path().join("k.yaml").display());
    start(Command::new(dir.path().join("kubelet")).args([&config, "--root-dir=/"]), "kubelet")
}

/// Threads of it that wait for something they were sent to read.
fn hanging(exporter: &Exporter) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", exporter.pid())).unwrap();
    let name = |task: std::io::Result<fs::DirEntry>| fs::read_to_string(task.ok()?.path().join("comm")).ok();
    tasks.filter_map(name).filter(|name| name.starts_with("guarded-call")).count()
}

const MODES: [&str; 3] = ["eviction", "memory_volume", "apiserver_connection"];

/// The victim's figure is there, and no collector waited for anything.
fn all_is_well(page: &Page, outcomes: &[&str; 3]) {
    assert_eq!(page.value(THRESHOLD), 321.0 * 1_048_576.0);
    assert_eq!(page.value("headroom_kubelet_running"), 1.0);
    assert_eq!(MODES.map(|mode| page.outcome(mode)), *outcomes);
    for (mode, reason) in MODES.iter().flat_map(|mode| ["timeout", "busy"].map(|reason| (mode, reason))) {
        assert_eq!(page.errors(mode, reason), 0.0, "{mode} {reason}");
    }
}

#[test]
fn processes_that_keep_readers_waiting_are_not_read_and_hold_up_nobody() {
    alone!();
    if !common::is_root() || !common::has("python3") {
        skip!("needs root and python3");
    }
    if !no_kubelet_here() {
        return;
    }
    let dir = programs(&["kubelet"]);
    let kubelet = victim(&dir);
    let outcomes = MODES.map(|mode| Exporter::start(&[]).scrape().outcome(mode));
    // Of nobody: with the names that are looked at first, and with another.
    let mut stuck = Vec::new();
    for comm in ["kubelet", "k3s-server", "bash", "java"] {
        match Stuck::start(comm, NOBODY) {
            Ok(one) => stuck.push(one),
            Err(why) => skip!("no process that keeps its readers waiting: {why}"),
        }
    }
    let exporter = Exporter::start(&[]);
    for _ in 0..3 {
        let begun = Instant::now();
        all_is_well(&exporter.scrape(), &outcomes);
        assert!(begun.elapsed() < common::patience(3), "{:?}", begun.elapsed());
        common::eventually("nobody reads them", || hanging(&exporter) == 0);
    }
    drop(exporter);

    // Root's own are no tenant's, and hold up themselves: where no process is called kubelet, each of root's is read.
    drop((kubelet, stuck));
    let own = Stuck::start("java", 0).unwrap();
    let exporter = Exporter::start(&["--kubelet.root-dir=/"]);
    for _ in 0..3 {
        let begun = Instant::now();
        let page = exporter.scrape();
        assert_eq!(page.value(THRESHOLD), 100.0 * 1_048_576.0, "a kubelet's default: there is none");
        assert_eq!(MODES.map(|mode| page.errors(mode, "timeout") + page.errors(mode, "busy")), [0.0; 3]);
        assert!(begun.elapsed() < common::patience(4), "{:?}", begun.elapsed());
        common::eventually("one thread, however often", || hanging(&exporter) == 1);
    }
    drop(own);
    common::eventually("its thread has come back", || hanging(&exporter) == 0);
    let _kubelet = victim(&dir);
    common::eventually("the kubelet is found", || exporter.scrape().get(THRESHOLD) == Some(321.0 * 1_048_576.0));
}

#[test]
fn a_stuck_kubelet_runs_and_costs_what_only_it_knows() {
    alone!();
    if !common::is_root() || !common::has("python3") {
        skip!("needs root and python3");
    }
    if !no_kubelet_here() {
        return;
    }
    let _kubelet = match Stuck::start("kubelet", 0) {
        Ok(stuck) => stuck,
        Err(why) => skip!("no process that keeps its readers waiting: {why}"),
    };
    let exporter = Exporter::start(&[]);
    for _ in 0..3 {
        let begun = Instant::now();
        let page = exporter.scrape();
        assert!(begun.elapsed() < common::patience(4), "{:?}", begun.elapsed());
        assert_eq!(page.value("headroom_kubelet_running"), 1.0);
        assert_eq!(page.get(THRESHOLD), None, "unknown, and no default");
        assert_eq!((page.outcome("eviction"), page.outcome("open_files")), ("failed", "ok"));
        assert!(hanging(&exporter) <= 3, "its command line, its environment, its mounts");
    }
}

#[test]
fn readers_in_a_hurry_fail_nobodys_collectors() {
    alone!();
    let exporter = Exporter::start(&[]);
    let before = exporter.scrape();
    let errors = |page: &Page| -> f64 {
        let of = |(series, value): (&str, f64)| series.contains("reason=\"timeout\"").then_some(value);
        page.family("headroom_collector_errors_total").filter_map(of).sum()
    };
    let failed = |page: &Page| -> Vec<String> {
        let bad = page
            .family("headroom_collector_outcome")
            .filter(|(series, value)| *value == 1.0 && series.contains("outcome=\"failed\""));
        bad.map(|(series, _)| series.to_owned()).collect()
    };
    let stop = std::sync::atomic::AtomicBool::new(false);
    let pages = std::thread::scope(|scope| {
        for tiny in ["0.000001", "0", "-1", "NaN", "inf", "0.05", "0.000001", "1e-9"] {
            let (stop, exporter) = (&stop, &exporter);
            scope.spawn(move || {
                let header = format!("X-Prometheus-Scrape-Timeout-Seconds: {tiny}");
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    exporter.get("/metrics", &[&header]);
                }
            });
        }
        let honest = || {
            std::thread::sleep(Duration::from_millis(50));
            exporter.get("/metrics", &["X-Prometheus-Scrape-Timeout-Seconds: 10"])
        };
        let pages: Vec<_> = (0..20).map(|_| honest()).collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        pages
    });
    for page in pages {
        assert_eq!(page.status, 200);
        let page = Page::parse(&page.text());
        let counted: Vec<_> =
            page.family("headroom_collector_errors_total").filter(|(_, count)| *count > 0.0).collect();
        assert_eq!(failed(&page), failed(&before), "{counted:?}");
    }
    assert_eq!(errors(&exporter.scrape()), errors(&before));
}
