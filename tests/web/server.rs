//! The web side of the real binary: negotiation, selection, limits, shutdown, and the bad day of a file system that
//! hangs.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use headroom::modes::MODES;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::Signal;

use crate::common::prometheus::Release;
use crate::common::{Exporter, Page, eventually, get, has, is_root, shell};

#[test]
fn formats_are_negotiated_with_their_exact_content_types() {
    alone!();
    let exporter = Exporter::start(&[]);
    let classic = exporter.get("/metrics", &[]);
    assert_eq!(classic.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert!(!classic.text().contains("# EOF") && !classic.text().contains("# UNIT"));
    let openmetrics = exporter.get("/metrics", &["Accept: application/openmetrics-text;version=1.0.0,*/*;q=0.1"]);
    let expected = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(openmetrics.header("content-type"), Some(expected));
    assert!(openmetrics.text().ends_with("\n# EOF\n"));

    let gzipped = exporter.get("/metrics", &["Accept-Encoding: gzip"]);
    assert_eq!(gzipped.header("content-encoding"), Some("gzip"));
    let mut text = String::new();
    flate2::read::GzDecoder::new(&gzipped.body[..]).read_to_string(&mut text).unwrap();
    assert!(Page::parse(&text).get("process_threads").is_some());
    assert_eq!(exporter.get("/metrics", &["Accept-Encoding: br"]).header("content-encoding"), None);
}

/// The journal is a socket of which systemd tells device and inode; a file has both as well.
#[test]
fn lines_for_the_journal_have_a_priority() {
    let journal = tempfile::NamedTempFile::new().unwrap();
    let stat = rustix::fs::fstat(&journal).unwrap();
    let start = |stream: String| {
        journal.as_file().set_len(0).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_headroom-exporter"))
            .args(["--web.listen-address=127.0.0.1:0", "--web.config.file=/dev/null/it's", "--no-runtime"])
            .env("JOURNAL_STREAM", stream)
            .stdout(Stdio::null())
            .stderr(File::options().append(true).open(journal.path()).unwrap())
            .spawn()
            .unwrap();
        let ended = child.wait().unwrap();
        assert!(!ended.success());
        std::fs::read_to_string(journal.path()).unwrap()
    };
    let lines = start(format!("{}:{}", stat.st_dev, stat.st_ino));
    assert!(lines.starts_with("<3>"), "{lines}");
    let line = lines.lines().find(|line| line.contains("level=error")).unwrap();
    assert!(line.contains("it's") && !line.contains("\\'"), "{line}");
    let elsewhere = start("1:1".to_owned());
    assert!(elsewhere.contains("level=error") && !elsewhere.contains("<3>"), "{elsewhere}");
}

#[test]
fn collectors_are_selected_per_scrape() {
    alone!();
    let exporter = Exporter::start(&["--no-collector.kmem"]);
    let ids = |path: &str| {
        let response = exporter.get(path, &[]);
        let page = Page::parse(&response.text());
        page.family("headroom_collector_duration_seconds").count()
    };
    assert_eq!(ids("/metrics"), MODES.len() - 1);
    assert_eq!(ids("/metrics?collect[]=eviction&collect%5B%5D=open_files"), 2);
    assert_eq!(ids("/metrics?exclude[]=eviction"), MODES.len() - 2);
    for (path, text) in [
        ("/metrics?collect[]=cpu", "unknown collector \"cpu\""),
        ("/metrics?collect[]=kmem", "disabled collector \"kmem\""),
        ("/metrics?collect[]=eviction&exclude[]=open_files", "cannot be combined"),
    ] {
        let response = exporter.get(path, &[]);
        assert_eq!(response.status, 400);
        assert!(response.text().contains(text), "{}", response.text());
    }
}

#[test]
fn the_other_pages() {
    alone!();
    let exporter = Exporter::start(&["--web.telemetry-path=/headroom"]);
    assert_eq!((exporter.get("/healthz", &[]).status, exporter.get("/headroom", &[]).status), (200, 200));
    assert_eq!(exporter.get("/metrics", &[]).status, 404);
    eventually("ready", || exporter.get("/readyz", &[]).status == 200);
    let landing = exporter.get("/", &[]);
    assert_eq!(landing.header("content-type"), Some("text/html; charset=utf-8"));
    assert!(MODES.iter().all(|mode| landing.text().contains(mode.id)) && landing.text().contains("href=\"/headroom\""));
}

#[test]
fn two_prometheis_at_once_both_get_a_full_page() {
    alone!();
    let exporter = Exporter::start(&[]);
    let address = exporter.address;
    let scrapes: Vec<_> =
        (0..8).map(|_| std::thread::spawn(move || Page::parse(&get(address, "/metrics", &[]).text()))).collect();
    for scrape in scrapes {
        let page = scrape.join().unwrap();
        for id in MODES.iter().map(|mode| mode.id) {
            assert_eq!(page.errors(id, "timeout") + page.errors(id, "busy"), 0.0, "{page:#?}");
        }
        assert!(page.get("headroom_open_fds").is_some() && page.get("headroom_memcg_ids_limit").is_some());
    }
}

#[test]
fn a_request_that_is_no_http_costs_nobody_else() {
    alone!();
    let exporter = Exporter::start(&[]);
    let mut garbage = TcpStream::connect(exporter.address).unwrap();
    garbage.write_all(b"\x16\x03\x01 not http\r\n\r\n").unwrap();
    let mut long = TcpStream::connect(exporter.address).unwrap();
    let _ = long.write_all(format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(1 << 20)).as_bytes());
    let _idle = TcpStream::connect(exporter.address).unwrap();
    assert_eq!(exporter.get("/metrics", &[]).status, 200);
}

#[test]
fn signals_end_it_with_success_and_soon() {
    alone!();
    for signal in [Signal::TERM, Signal::INT] {
        let exporter = Exporter::start(&["--web.shutdown-timeout=1s"]);
        let _kept_alive = TcpStream::connect(exporter.address).unwrap();
        let begun = Instant::now();
        let (status, log) = exporter.stop(signal);
        assert!(status.success(), "{log}");
        assert!(begun.elapsed() < Duration::from_secs(5), "shutdown is bounded");
        assert!(log.contains("shutting down"), "{log}");
    }
}

#[test]
fn an_address_in_use_is_one_clear_line_and_a_failure() {
    alone!();
    let first = Exporter::start(&[]);
    let address = format!("--web.listen-address={}", first.address);
    let second = Command::new(env!("CARGO_BIN_EXE_headroom-exporter")).arg(address).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let text = String::from_utf8(second.stderr).unwrap();
    assert!(text.contains("cannot listen on") && text.contains("in use"), "{text}");
}

#[test]
fn flags_come_from_the_environment_too() {
    alone!();
    let mut command = Command::new(env!("CARGO_BIN_EXE_headroom-exporter"));
    command.env("HEADROOM_COLLECTOR_KMEM", "false").env("HEADROOM_WEB_TELEMETRY_PATH", "/m");
    let exporter = Exporter::start_as(command, &[]);
    let page = Page::parse(&exporter.get("/m", &[]).text());
    assert_eq!(page.family("headroom_collector_duration_seconds").count(), MODES.len() - 1);
}

#[test]
fn the_page_passes_promtool() {
    alone!();
    let releases = Release::with(&["promtool"]);
    let exporter = Exporter::start(&[]);
    let page = exporter.get("/metrics", &[]).text();
    for release in releases {
        let mut promtool = release
            .command("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        promtool.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
        let output = promtool.wait_with_output().unwrap();
        assert!(output.status.success(), "{release:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn odd_process_names_do_not_break_the_page() {
    alone!();
    use std::os::unix::ffi::OsStrExt as _;
    let dir = tempfile::tempdir().unwrap();
    // A quote, a newline, a backslash, and UTF-8 that the kernel cuts in the middle at 15 bytes.
    let names: [&[u8]; 3] = [b"say \"hi\"", b"new\nli\\ne", "0123456789abcd\u{e9}".as_bytes()];
    let mut sleepers = Vec::new();
    for name in names {
        let program = dir.path().join(std::ffi::OsStr::from_bytes(name));
        std::fs::copy("/bin/sleep", &program).unwrap();
        // Three of four file descriptors: among the nearest to their limit.
        let sleeper = Command::new("prlimit").arg("--nofile=4").arg(program).arg("60").spawn().unwrap();
        sleepers.push(sleeper);
    }
    let exporter = Exporter::start(&["--collector.open_files.top=100"]);
    let shown = |page: &str, name: &str| page.contains(&format!("comm=\"{name}\""));
    eventually("all three are on the page", || {
        let page = exporter.get("/metrics", &[]).text();
        [r#"say \"hi\""#, r"new\nli\\ne", "0123456789abcd\u{fffd}"].iter().all(|name| shown(&page, name))
    });
    let page = exporter.get("/metrics", &["Accept: application/openmetrics-text"]).text();
    assert!(
        page.lines().all(|line| line.starts_with('#') || line.starts_with("headroom_") || line.starts_with("process_"))
    );
    for mut sleeper in sleepers {
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
    }
}

#[test]
fn without_permission_it_says_so_and_shows_what_it_may() {
    alone!();
    if !is_root() || !has("setpriv") {
        skip!("root and setpriv are needed to become somebody else");
    }
    // Where nobody may run it: the target folder can be root's alone.
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let program = dir.path().join("headroom-exporter");
    std::fs::copy(env!("CARGO_BIN_EXE_headroom-exporter"), &program).unwrap();
    let mut nobody = Command::new("setpriv");
    nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]);
    nobody.arg(program);
    // Whether there is a runtime's socket nobody may not even know; that is another test's business.
    let exporter = Exporter::start_as(nobody, &["--no-runtime"]);
    let page = exporter.scrape();
    assert_eq!(page.outcome("open_files"), "failed");
    assert!(page.errors("open_files", "denied") >= 1.0);
    assert!(page.get("headroom_file_handles_allocated").is_some() && page.get("headroom_processes").is_some());
    let own = format!("headroom_process_fds{{pid=\"{}\"", exporter.pid());
    assert!(page.0.keys().any(|series| series.starts_with(&own)), "its own kinds it may read");
    assert_eq!(page.get("headroom_inotify_instances{uid=\"0\"}"), None, "absent, not zero");
    for id in ["cgroup_leak", "kmem"] {
        assert_eq!(page.outcome(id), "ok", "{id} needs no permission");
    }
    // buildah and podman make a folder that only root may enter, and an image store may be in it.
    let closed = std::fs::metadata("/var/lib/containers")
        .is_ok_and(|folder| std::os::unix::fs::PermissionsExt::mode(&folder.permissions()) & 0o001 == 0);
    assert_eq!(page.outcome("eviction"), if closed { "failed" } else { "ok" });
    assert_eq!(page.errors("eviction", "denied") >= 1.0, closed);
    assert!(page.get("headroom_eviction_available_bytes{signal=\"nodefs.available\"}").is_some());
}

#[test]
fn a_real_prometheus_scrapes_it() {
    alone!();
    if !has("prometheus") || !has("curl") {
        skip!("prometheus or curl (Debian packages) is not installed");
    }
    if !is_root() {
        skip!("root is needed for every collector to be ok");
    }
    // In a pid namespace of its own, since a machine may have a process that not even root may look into. Process 1
    // there is not the exporter: it would take that for a container.
    let mut unshare = Command::new("unshare");
    unshare.args(["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", "\"$0\" \"$@\" || exit $?"]);
    unshare.arg(env!("CARGO_BIN_EXE_headroom-exporter"));
    let exporter = Exporter::start_as(unshare, &[]);
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("prometheus.yml");
    let target = exporter.address;
    std::fs::write(
        &config,
        format!("global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n- {{job_name: headroom, static_configs: [{{targets: ['{target}']}}]}}\n"),
    )
    .unwrap();
    // A port that was free a moment ago; Prometheus cannot be asked to pick one and tell.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let log = File::create(dir.path().join("log")).unwrap();
    let mut prometheus = Command::new("prometheus")
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .stderr(log)
        .spawn()
        .unwrap();
    let query = |expression: &str| -> Option<Vec<(serde_json::Value, f64)>> {
        let url = format!("http://127.0.0.1:{port}/api/v1/query");
        let expression = format!("query={expression}");
        let output = Command::new("curl").args(["-sfG", &url, "--data-urlencode", &expression]).output().unwrap();
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        let rows = answer["data"]["result"].as_array()?;
        Some(
            rows.iter()
                .map(|row| (row["metric"].clone(), row["value"][1].as_str().unwrap().parse().unwrap()))
                .collect(),
        )
    };
    let up = || query("up{job=\"headroom\"}").is_some_and(|rows| rows.iter().any(|(_, value)| *value == 1.0));
    eventually("Prometheus says up=1", up);
    // Some modes have nothing to look at on a machine without Kubernetes.
    let outcomes = query("headroom_collector_outcome{outcome=\"failed\"}").unwrap();
    let types = shell(&format!("curl -sf http://127.0.0.1:{port}/api/v1/targets/metadata?metric=process_cpu_seconds"));
    prometheus.kill().unwrap();
    prometheus.wait().unwrap();
    assert_eq!(outcomes.len(), MODES.len());
    for (metric, value) in outcomes {
        assert_eq!(value, 0.0, "{metric}");
    }
    assert!(types.contains("\"type\":\"counter\""), "{types}");
}

/// A FUSE mount whose server never answers: every `statfs` on it waits for ever.
struct HungFilesystem {
    dir: tempfile::TempDir,
    server: Option<File>,
}

impl HungFilesystem {
    fn mount() -> std::io::Result<Self> {
        use std::os::fd::AsRawFd as _;
        let dir = tempfile::tempdir()?;
        let server = File::options().read(true).write(true).open("/dev/fuse")?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount("hung", dir.path(), "fuse", MountFlags::empty(), Some(options.as_c_str()))?;
        Ok(HungFilesystem { dir, server: Some(server) })
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The server dies: whoever waits gets an error.
    fn release(&mut self) {
        self.server = None;
    }
}

impl Drop for HungFilesystem {
    fn drop(&mut self) {
        self.release();
        let _ = rustix::mount::unmount(self.path(), UnmountFlags::DETACH);
    }
}

#[test]
fn a_hung_filesystem_costs_its_own_series_and_no_threads() {
    alone!();
    if !is_root() {
        skip!("root is needed to mount a FUSE file system");
    }
    let Ok(mut hung) = HungFilesystem::mount() else { skip!("this kernel cannot mount FUSE (/dev/fuse)") };
    let root_dir = format!("--kubelet.root-dir={}", hung.path().display());
    let exporter = Exporter::start(&[&root_dir, "--web.scrape-timeout=2s"]);
    // Those that hang, and perhaps one that has just answered. Others wait for the next scrape, and a busy machine has
    // a few more of them.
    let threads = || {
        let script = format!("cat /proc/{}/task/*/comm | grep -c '^guarded-call'", exporter.pid());
        shell(&script).trim().parse::<usize>().unwrap()
    };
    let mut counts = Vec::new();
    for round in 0..10 {
        let begun = Instant::now();
        let page = exporter.scrape();
        assert!(begun.elapsed() < Duration::from_secs(5), "round {round}: the page must come within the deadline");
        assert_eq!(page.outcome("eviction"), "failed", "round {round}");
        for id in ["cgroup_leak", "kmem"] {
            assert_ne!(page.outcome(id), "failed", "round {round}: {id}");
        }
        assert!(page.get("headroom_open_fds").is_some(), "round {round}");
        assert!(page.get("headroom_eviction_available_bytes{signal=\"memory.available\"}").is_some(), "{page:#?}");
        assert!(page.get("headroom_eviction_available_bytes{signal=\"nodefs.available\"}").is_none());
        counts.push(threads());
    }
    assert!(counts[9] <= counts[1] + 2, "threads grow: {counts:?}");
    hung.release();
    drop(hung);
    eventually("eviction no longer times out", || {
        let page = exporter.scrape();
        page.get("headroom_eviction_available_bytes{signal=\"memory.available\"}").is_some()
            && page.errors("eviction", "busy") > 0.0
    });
    let begun = Instant::now();
    let (status, _) = exporter.stop(Signal::TERM);
    assert!(status.success() && begun.elapsed() < Duration::from_secs(8));
}

/// glibc reserves 64 MiB, so aligned, for each heap but the first (malloc/arena.c).
#[test]
fn all_threads_share_a_heap() {
    const RESERVED: u64 = 64 << 20;
    let exporter = Exporter::start(&[]);
    for _ in 0..3 {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| exporter.scrape());
            }
        });
    }
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", exporter.pid())).unwrap();
    let ranges = maps.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (from, to) = fields.next()?.split_once('-')?;
        let [from, to] = [from, to].map(|address| u64::from_str_radix(address, 16).unwrap());
        Some((from, to, fields.next()?.to_owned()))
    });
    let ranges: Vec<_> = ranges.collect();
    let heap = |pair: &&[(u64, u64, String)]| {
        let [(from, between, used), (next, to, rest)] = pair else { unreachable!("windows of two") };
        let together = between == next && from % RESERVED == 0 && to - from == RESERVED;
        together && used == "rw-p" && rest == "---p"
    };
    assert_eq!(ranges.windows(2).filter(heap).count(), 0, "{maps}");
    assert!(maps.contains("[heap]"), "{maps}");
}

#[test]
fn it_ends_although_a_thread_hangs_in_the_kernel() {
    alone!();
    if !is_root() {
        skip!("root is needed to mount a FUSE file system");
    }
    let Ok(hung) = HungFilesystem::mount() else { skip!("this kernel cannot mount FUSE (/dev/fuse)") };
    let root_dir = format!("--kubelet.root-dir={}", hung.path().display());
    let exporter = Exporter::start(&[&root_dir, "--web.scrape-timeout=1s", "--web.shutdown-timeout=1s"]);
    exporter.scrape();
    let begun = Instant::now();
    // Exiting kills the stuck thread: FUSE waits killably, as NFS does.
    let (status, log) = exporter.stop(Signal::TERM);
    assert!(status.success() && begun.elapsed() < Duration::from_secs(8), "{log}");
}

#[test]
fn over_the_limit_of_requests_it_answers_503() {
    alone!();
    if !is_root() {
        skip!("root is needed to mount a FUSE file system");
    }
    let Ok(hung) = HungFilesystem::mount() else { skip!("this kernel cannot mount FUSE (/dev/fuse)") };
    let root_dir = format!("--kubelet.root-dir={}", hung.path().display());
    let exporter = Exporter::start(&[&root_dir, "--web.max-requests=1"]);
    let address = exporter.address;
    // The first to come waits two seconds for the file system; the others come meanwhile.
    let requests: Vec<_> = (0..8).map(|_| std::thread::spawn(move || get(address, "/metrics", &[]))).collect();
    let answers: Vec<_> = requests.into_iter().map(|request| request.join().unwrap()).collect();
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status == 503).collect();
    assert!(answers.iter().any(|answer| answer.status == 200), "one at a time is answered");
    assert!(!refused.is_empty(), "and not more than one");
    assert!(refused.iter().all(|answer| answer.text().contains("--web.max-requests")));
    assert_eq!(exporter.get("/healthz", &[]).status, 200);
}

#[test]
fn its_own_file_descriptors_stay_flat() {
    alone!();
    let exporter = Exporter::start(&[]);
    let fds = || shell(&format!("ls /proc/{}/fd | wc -l", exporter.pid())).trim().parse::<usize>().unwrap();
    exporter.scrape();
    let before = fds();
    for _ in 0..200 {
        exporter.get("/metrics", &[]);
    }
    eventually("file descriptors are back where they were", || fds() <= before);
}
