//! What the integration tests share: the real binary as a child process, an HTTP client of a few lines, and a reader of
//! pages.
#![allow(unreachable_pub, missing_docs, reason = "shared by several test binaries")]
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

pub mod alone;
pub mod apiserver;
pub mod board;
pub mod browser;
pub mod compatibility;
pub mod containerd;
pub mod docker;
pub mod fake_runtime;
pub mod generated;
pub mod helper;
pub mod hierarchies;
pub mod hung;
pub mod hungry;
pub mod netns;
pub mod node;
pub mod prometheus;
pub mod recorded;
pub mod series;
pub mod sleepers;
pub mod tls_server;
pub mod vm;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Says loudly that a test could not run here, and what is missing, and ends it. `HEADROOM_TESTS_STRICT=1` (as
/// `.ci/run` sets it) makes it a failure.
#[macro_export]
macro_rules! skip {
    ($($what:tt)*) => {{
        $crate::common::say_skip(format_args!($($what)*));
        return;
    }};
}

/// Runs the rest of this test in a process, and as root in namespaces, of its own: `alone.rs` says for what.
#[macro_export]
macro_rules! alone {
    () => {
        fn here() {}
        if $crate::common::alone::ran_elsewhere(std::any::type_name_of_val(&here)) {
            return;
        }
    };
}

/// Past the test harness, which would swallow it.
pub fn say_skip(what: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "SKIP: {what}");
    assert!(std::env::var_os("HEADROOM_TESTS_STRICT").is_none(), "a SKIP is a failure here: {what}");
}

/// Says loudly that a part of a test could not run because the kernel lacks something that the CI machines' kernel
/// lacks by design (VLANs, bonds): never a failure, not even where a SKIP is one. For nothing that can be installed or
/// configured.
pub fn not_in_this_kernel(what: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "NOT IN THIS KERNEL: {what}");
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// True if this program is on the PATH.
pub fn has(program: &str) -> bool {
    Command::new("sh").args(["-c", &format!("command -v {program}")]).stdout(Stdio::null()).status().unwrap().success()
}

/// Runs a shell command and returns what it printed.
///
/// # Panics
/// If it fails.
pub fn shell(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A short name that nobody else on this machine has. A process id is none: it is one in each pid namespace.
pub fn unique() -> String {
    format!("{:08x}", fastrand::u32(..))
}

/// True if what is mounted here is mounted on the machine. The link `/proc/1/ns/mnt` tells that only to whoever has
/// every capability that process 1 has; the first mount of a namespace has an id of its own.
pub fn is_in_the_machines_mount_namespace() -> bool {
    let first = |process: &str| {
        let table = std::fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap();
        table.split(' ').next().unwrap().to_owned()
    };
    first("1") == first("self")
}

/// Held by who makes a kubepods tree or counts cgroups, for all runs of the tests on this machine: the kernel has one
/// tree and one number of them, whatever namespaces a test is in.
pub fn machine_lock() -> std::fs::File {
    let lock = std::fs::File::create("/tmp/headroom-kernel-cgroup.lock").unwrap();
    lock.lock().unwrap();
    lock
}

/// How long to wait here for what takes seconds elsewhere: where processors are emulated all takes longer.
pub fn patience(seconds: u64) -> Duration {
    Duration::from_secs(if vm::inside() { 6 * seconds } else { seconds })
}

/// How many threads of a process do something, or hang in it: those of its guarded calls that wait for the next one
/// have a name of their own.
pub fn threads_at_work(pid: u32) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let name = |task: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(task.ok()?.path().join("comm")).ok();
    tasks.filter_map(name).filter(|name| name != "idle-guard\n").count()
}

/// Looks until it is so, for at most ten seconds, or as long as that takes here.
pub fn eventually(what: &str, so: impl FnMut() -> bool) {
    eventually_within(10, what, so);
}

/// The same for what takes longer, in seconds of a quiet machine.
pub fn eventually_within(seconds: u64, what: &str, mut so: impl FnMut() -> bool) {
    let patience = patience(seconds);
    let until = Instant::now() + patience;
    while !so() {
        assert!(Instant::now() < until, "not so after {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The exporter as users run it. Killed when dropped.
pub struct Exporter {
    pub child: Child,
    pub address: SocketAddr,
    log: std::thread::JoinHandle<String>,
}

impl Exporter {
    /// Starts it on a free port of the loopback with these further arguments.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_as(Command::new(env!("CARGO_BIN_EXE_headroom-exporter")), arguments)
    }

    /// As [`Exporter::start`], by a command that ends in the binary (`setpriv …`, `prlimit …`).
    pub fn start_as(command: Command, arguments: &[&str]) -> Self {
        Self::start_by(command, arguments, Command::spawn)
    }

    /// As [`Exporter::start_as`], where starting the command takes more than `spawn`.
    pub fn start_by(
        mut command: Command,
        arguments: &[&str],
        spawn: impl FnOnce(&mut Command) -> std::io::Result<Child>,
    ) -> Self {
        command.arg("--web.listen-address=127.0.0.1:0").args(arguments);
        let mut child = spawn(command.stderr(Stdio::piped()).stdout(Stdio::null())).unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut log = String::new();
        let address = loop {
            let start = log.len();
            assert_ne!(stderr.read_line(&mut log).unwrap(), 0, "the exporter ended: {log}");
            let listening = log[start..].split(' ').find_map(|word| word.strip_prefix("listening="));
            if let Some(address) = listening {
                break address.parse().unwrap();
            }
        };
        let log = std::thread::spawn(move || {
            let _ = stderr.read_to_string(&mut log);
            log
        });
        Exporter { child, address, log }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// GET with these header lines.
    pub fn get(&self, path: &str, headers: &[&str]) -> Response {
        get(self.address, path, headers)
    }

    /// The metrics page, parsed.
    pub fn scrape(&self) -> Page {
        let response = self.get("/metrics", &[]);
        assert_eq!(response.status, 200);
        Page::parse(&response.text())
    }

    /// Sends it a signal and returns how it ended and what it logged.
    pub fn stop(mut self, signal: rustix::process::Signal) -> (std::process::ExitStatus, String) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
        let status = self.child.wait().unwrap();
        let log = std::mem::replace(&mut self.log, std::thread::spawn(String::new)).join().unwrap();
        (status, log)
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Response {
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// GET over HTTP/1.0: no chunks, no keep-alive, nothing to interpret.
pub fn get(address: SocketAddr, path: &str, headers: &[&str]) -> Response {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n{headers}\r\n").unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a response head");
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Response { status, head, body: bytes[end + 4..].to_vec() }
}

/// A page as name-with-labels → value.
#[derive(Debug)]
pub struct Page(pub BTreeMap<String, f64>);

impl Page {
    pub fn parse(text: &str) -> Self {
        let rows = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(|line| {
            let (series, value) = line.rsplit_once(' ').expect("a series and its value");
            (series.to_owned(), value.parse().expect("a number"))
        });
        Page(rows.collect())
    }

    /// The value of exactly this series.
    ///
    /// # Panics
    /// If it is not on the page.
    pub fn value(&self, series: &str) -> f64 {
        self.get(series).unwrap_or_else(|| panic!("{series} is not on the page: {self:#?}"))
    }

    pub fn get(&self, series: &str) -> Option<f64> {
        self.0.get(series).copied()
    }

    /// Every series of one family.
    pub fn family<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> + 'a {
        let rows = self.0.iter().filter(move |(series, _)| series.split('{').next() == Some(name));
        rows.map(|(series, value)| (series.as_str(), *value))
    }

    /// The outcome of a collector.
    pub fn outcome(&self, collector: &str) -> &'static str {
        ["ok", "not_applicable", "failed"]
            .into_iter()
            .find(|outcome| {
                let series = format!("headroom_collector_outcome{{collector=\"{collector}\",outcome=\"{outcome}\"}}");
                self.get(&series) == Some(1.0)
            })
            .unwrap_or_else(|| panic!("no outcome of {collector}: {self:#?}"))
    }

    /// 0 for a reason that has not happened since the exporter started: it has no series.
    pub fn errors(&self, collector: &str, reason: &str) -> f64 {
        self.outcome(collector);
        let series = format!("headroom_collector_errors_total{{collector=\"{collector}\",reason=\"{reason}\"}}");
        self.get(&series).unwrap_or(0.0)
    }
}
