//! What a scrape costs, beside what it cannot cost less than, and beside the exporters that people run today.
//!
//! `cargo bench` as root. The load: 2,000 processes holding 50 file descriptors each, and 2,000 cgroups. The floor: a loop of
//! only those system calls that no exporter of per-process file descriptors can do without. Figures are CPU time, not wall
//! time, over many scrapes; read the ratios, the absolute times are the machine's. `docs/performance.md` keeps a run.
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark, not the exporter")]

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use headroom::host::{Deadline, Host, Roots};
use headroom::modes::{Context, Mode, Settings, cgroup_leak, eviction, kmem, memory_volume, open_files};
use rustix::fs::{AtFlags, Mode as Access, OFlags, openat, statat};

const PROCESSES: usize = 2_000;
const FDS: usize = 50;
const CGROUPS: usize = 2_000;
const HOLD: &str = "HEADROOM_BENCH_HOLD";

fn main() {
    if std::env::var_os(HOLD).is_some() {
        return hold();
    }
    let _ = rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit { current: Some(16_384), maximum: Some(16_384) },
    );
    let flat = flat_over_many_scrapes();
    let load = Load::make();
    println!(
        "load: {} processes, {} file descriptors, {} cgroups made",
        PROCESSES,
        PROCESSES * FDS,
        load.cgroups.0.len()
    );

    let exporter = Server::exporter();
    let page = exporter.page("/metrics");
    let detailed: usize = sum(&page, "headroom_process_fds{");
    let floor = cpu_of(20, || floor(detailed));
    println!("\nCPU per collection, in this process ({detailed} readlinks in the floor)");
    println!("  {:<28}{:>9}", "floor (system calls only)", ms(floor));
    let host = Host::new(Roots::default());
    for mode in [&open_files::MODE, &cgroup_leak::MODE, &kmem::MODE, &eviction::MODE, &memory_volume::MODE] {
        let cost = collector(mode, &host);
        let ratio = if mode.id == "open_files" { format!("{:.2} × floor", cost / floor) } else { String::new() };
        println!("  {:<28}{:>9}  {ratio}", mode.id, ms(cost));
    }

    kubepods(&host);

    println!("\nCPU per scrape of the whole page, gzip as Prometheus asks, and memory");
    let ours = exporter.measure(100);
    println!("  {:<28}{:>9}            {:>6.1} MiB", "headroom-exporter", ms(ours.cpu), ours.resident_mib);
    for (peer, scrapes) in [(Server::node_exporter(), 50), (Server::process_exporter(), 10)] {
        match peer {
            Ok(server) => {
                let theirs = server.measure(scrapes);
                let ratio = theirs.cpu / ours.cpu;
                println!(
                    "  {:<28}{:>9}  {ratio:>6.1} ×  {:>6.1} MiB",
                    server.name,
                    ms(theirs.cpu),
                    theirs.resident_mib
                );
            }
            Err(why) => println!("  SKIP: {why}"),
        }
    }
    println!("\nseries on the page: {}", page.lines().filter(|line| !line.starts_with('#')).count());
    println!("{flat}");
}

/// The modes that walk below kubepods, with as many cgroups there: 666 pods, six times what a kubelet allows by default.
fn kubepods(host: &Host) {
    let top = PathBuf::from("/sys/fs/cgroup/memory/kubepods");
    if !top.parent().is_some_and(|hierarchy| hierarchy.join("cgroup.procs").exists()) || top.exists() {
        println!("  SKIP: needs cgroup v1 memory, and no kubepods of a kubelet");
        return;
    }
    let mut made = Directories(Vec::new());
    made.make(top.clone());
    made.make(top.join("burstable"));
    for pod in 0..666 {
        let pod_dir = top.join(format!("burstable/pod{pod:08}-0000-4000-8000-000000000000"));
        made.make(pod_dir.clone());
        (0..2).for_each(|container| made.make(pod_dir.join(format!("{pod:062x}{container:02x}"))));
    }
    println!("  with {} cgroups below kubepods:", made.0.len());
    for mode in [&cgroup_leak::MODE, &kmem::MODE, &memory_volume::MODE] {
        println!("  {:<28}{:>9}", mode.id, ms(collector(mode, host)));
    }
}

/// Directories made, gone when dropped.
struct Directories(Vec<PathBuf>);

impl Directories {
    fn make(&mut self, dir: PathBuf) {
        if fs::create_dir(&dir).is_ok() {
            self.0.push(dir);
        }
    }
}

impl Drop for Directories {
    fn drop(&mut self) {
        for dir in self.0.iter().rev() {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// The exporter's own file descriptors, threads and memory before and after many scrapes.
fn flat_over_many_scrapes() -> String {
    let exporter = Server::exporter();
    for _ in 0..100 {
        exporter.page("/metrics");
    }
    let before = exporter.footprint();
    for _ in 0..5_000 {
        exporter.page("/metrics");
    }
    format!("5,000 scrapes, (fds, threads, resident KiB): {before:?} → {:?}", exporter.footprint())
}

/// Two thousand processes and cgroups, gone when dropped.
struct Load {
    processes: Vec<Child>,
    /// Children end when this closes, even if this process is killed.
    lifeline: Option<OwnedFd>,
    cgroups: Directories,
}

impl Load {
    fn make() -> Self {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let me = std::env::current_exe().unwrap();
        let child = |_| {
            let mut command = Command::new(&me);
            command.env(HOLD, "1").stdin(Stdio::from(read.try_clone().unwrap()));
            command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
        };
        let mut processes: Vec<Child> = (0..PROCESSES).map(child).collect();
        for process in &mut processes {
            // One byte: it holds all of its descriptors.
            process.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        }
        let mut cgroups = Directories(Vec::new());
        for parent in ["/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"] {
            let parent = PathBuf::from(parent);
            if !parent.join("cgroup.procs").exists() {
                continue;
            }
            let top = parent.join(format!("headroom-bench-{}", std::process::id()));
            let all = std::iter::once(top.clone()).chain((1..CGROUPS / 2).map(|n| top.join(n.to_string())));
            all.for_each(|dir| cgroups.make(dir));
        }
        Load { processes, lifeline: Some(write), cgroups }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.lifeline = None;
        for process in &mut self.processes {
            let _ = process.wait();
        }
    }
}

/// What a child of the load does: opens descriptors of several kinds and waits for its lifeline to close.
fn hold() {
    let mut files = Vec::new();
    let mut sockets = Vec::new();
    while 3 + files.len() + 2 * sockets.len() < FDS {
        files.push(File::open("/dev/null").unwrap());
        if 3 + files.len() + 2 * sockets.len() + 2 <= FDS {
            sockets.push(std::os::unix::net::UnixStream::pair().unwrap());
        }
    }
    std::io::stdout().write_all(b"x").unwrap();
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().read(&mut [0]);
}

/// Only the system calls: the directory of each process, its limit, the size of its `fd` and its name; and, for the processes
/// shown in detail, one readlink per descriptor.
fn floor(readlinks: usize) {
    let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = rustix::fs::open("/proc", directory, Access::empty()).unwrap();
    let mut buffer = [0u8; 4096];
    let mut pids: Vec<CString> = Vec::with_capacity(4096);
    for entry in rustix::fs::Dir::read_from(&proc).unwrap().flatten() {
        if entry.file_name().to_bytes()[0].is_ascii_digit() {
            pids.push(entry.file_name().to_owned());
        }
    }
    let mut left = readlinks;
    for pid in pids.iter().rev() {
        let Ok(dir) = openat(&proc, pid, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Access::empty()) else {
            continue;
        };
        let number = pid.to_string_lossy().parse().unwrap_or(0);
        let _ = rlimit::prlimit(number, rlimit::Resource::NOFILE, None, Some((&mut 0, &mut 0)));
        let size = statat(&dir, c"fd", AtFlags::empty()).map_or(0, |stat| stat.st_size as usize);
        if let Ok(fd) = openat(&dir, c"comm", OFlags::RDONLY | OFlags::CLOEXEC, Access::empty()) {
            let _ = rustix::io::read(&fd, &mut buffer);
        }
        if left > 0 && size > 0 {
            let Ok(fds) = openat(&dir, c"fd", directory, Access::empty()) else { continue };
            for entry in rustix::fs::Dir::read_from(&fds).unwrap().flatten() {
                let _ = rustix::fs::readlinkat(&fds, entry.file_name(), Vec::with_capacity(64));
                left = left.saturating_sub(1);
            }
        }
    }
}

fn collector(mode: &Mode, host: &Host) -> f64 {
    let collector = (mode.build)(&Settings::default());
    let once = || {
        let deadline = Deadline::after(Duration::from_secs(60));
        std::hint::black_box(collector.collect(Context { host, deadline }).ok());
    };
    // Warm caches first: the steady state is what a node pays every few seconds for years.
    (0..30).for_each(|_| once());
    cpu_of(20, once)
}

/// CPU seconds that one call takes, user and system, of this process.
fn cpu_of(times: u32, mut call: impl FnMut()) -> f64 {
    call();
    let cpu = || {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
    };
    let before = cpu();
    (0..times).for_each(|_| call());
    (cpu() - before) / f64::from(times)
}

struct Cost {
    cpu: f64,
    resident_mib: f64,
}

/// An exporter under measurement. Killed when dropped.
struct Server {
    name: &'static str,
    child: Child,
    port: u16,
}

impl Server {
    fn start(name: &'static str, program: &str, arguments: &[&str]) -> Result<Self, String> {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let arguments = arguments.iter().map(|argument| argument.replace("ADDRESS", &address));
        let child = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let server = Server { name, child: child.map_err(|error| format!("{name} ({program}): {error}"))?, port };
        let until = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(&address).is_err() {
            if Instant::now() > until {
                return Err(format!("{name} does not listen"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    fn exporter() -> Self {
        let program = env!("CARGO_BIN_EXE_headroom-exporter");
        Self::start("headroom-exporter", program, &["--web.listen-address=ADDRESS", "--log.level=error"]).unwrap()
    }

    fn node_exporter() -> Result<Self, String> {
        let arguments = ["--web.listen-address=ADDRESS", "--collector.processes"];
        Self::start("node_exporter +processes", "prometheus-node-exporter", &arguments)
    }

    fn process_exporter() -> Result<Self, String> {
        let config = std::env::temp_dir().join(format!("headroom-bench-{}.yml", std::process::id()));
        fs::write(&config, "process_names:\n- name: \"{{.Comm}}\"\n  cmdline: ['.+']\n").unwrap();
        let path = config.display().to_string();
        let arguments = ["-web.listen-address", "ADDRESS", "-config.path", &path];
        let server = Self::start("process-exporter", "prometheus-process-exporter", &arguments);
        std::thread::sleep(Duration::from_secs(2));
        let _ = fs::remove_file(config);
        server
    }

    /// One page as a Prometheus fetches it, but readable.
    fn page(&self, path: &str) -> String {
        String::from_utf8_lossy(&self.get(path, "identity")).into_owned()
    }

    fn get(&self, path: &str, encoding: &str) -> Vec<u8> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
        write!(stream, "GET {path} HTTP/1.0\r\nAccept: {accept}\r\nAccept-Encoding: {encoding}\r\n\r\n").unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        assert!(bytes.starts_with(b"HTTP/1.0 200"), "{}", String::from_utf8_lossy(&bytes[..bytes.len().min(200)]));
        bytes
    }

    fn measure(&self, scrapes: u32) -> Cost {
        for _ in 0..scrapes / 3 {
            self.get("/metrics", "gzip");
        }
        let before = self.cpu_seconds();
        for _ in 0..scrapes {
            self.get("/metrics", "gzip");
        }
        let cpu = (self.cpu_seconds() - before) / f64::from(scrapes);
        Cost { cpu, resident_mib: self.footprint().2 as f64 / 1024.0 }
    }

    fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
        ticks / rustix::param::clock_ticks_per_second() as f64
    }

    /// Open file descriptors, threads and resident KiB.
    fn footprint(&self) -> (usize, usize, usize) {
        let pid = self.child.id();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| -> usize {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        (fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(), field("Threads:"), field("VmRSS:"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn sum(page: &str, prefix: &str) -> usize {
    let rows = page.lines().filter(|line| line.starts_with(prefix) && !line.contains("unexamined"));
    rows.filter_map(|line| line.rsplit_once(' ')?.1.parse::<usize>().ok()).sum()
}

fn ms(seconds: f64) -> String {
    format!("{:.2} ms", seconds * 1e3)
}
