//! What the benchmarks share: CPU time of a call, of a collector and of an exporter that is scraped, and the floor
//! beside it.
#![allow(unreachable_pub, missing_docs, reason = "shared by several benchmarks")]
#![allow(dead_code, reason = "each benchmark uses its own part")]
#![allow(clippy::disallowed_methods, reason = "benchmarks look at the machine with their own eyes")]

use std::ffi::CString;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use headroom::host::{Deadline, Host};
use headroom::modes::{Collector, Context, Mode, Settings};
use headroom::services::Services;
use rustix::fs::{AtFlags, Mode as Access, OFlags, openat, statat};

/// Only the system calls: the directory of each process, its limit, the size of its `fd` and its name; and, for the
/// processes shown in detail, one readlink per descriptor.
pub fn floor(readlinks: usize) {
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

/// CPU seconds of one collection by this mode, by its default settings.
pub fn collector(mode: &Mode, host: &Host) -> f64 {
    collection(&*(mode.build)(&Settings::default(), &Services::default()), host)
}

/// CPU seconds of one collection.
pub fn collection(collector: &dyn Collector, host: &Host) -> f64 {
    let once = || {
        let deadline = Deadline::after(Duration::from_secs(60));
        std::hint::black_box(collector.collect(Context::new(host, deadline)).ok());
    };
    // Warm caches first: the steady state is what a node pays every few seconds for years.
    (0..30).for_each(|_| once());
    cpu_of(20, once)
}

/// CPU seconds that one call takes, user and system, of this process.
pub fn cpu_of(times: u32, mut call: impl FnMut()) -> f64 {
    call();
    let cpu = || {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
    };
    let before = cpu();
    (0..times).for_each(|_| call());
    (cpu() - before) / f64::from(times)
}

pub struct Cost {
    pub cpu: f64,
    pub resident_mib: f64,
}

/// What `benches/peers.sh` built, else the program of Debian's package.
fn built_or(name: &str, packaged: &str) -> String {
    let tools = Path::new(env!("CARGO_BIN_EXE_headroom-exporter")).ancestors().nth(2).unwrap().join("tools");
    let built = tools.join(name);
    if built.exists() { built.display().to_string() } else { packaged.to_owned() }
}

/// An exporter under measurement. Killed when dropped.
pub struct Server {
    pub name: &'static str,
    pub version: String,
    child: Child,
    port: u16,
}

impl Server {
    fn start(name: &'static str, program: &str, arguments: &[&str]) -> Result<Self, String> {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let arguments = arguments.iter().map(|argument| argument.replace("ADDRESS", &address));
        let child = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.map_err(|error| format!("{name} ({program}): {error}"))?;
        let server = Server { name, version: version(program), child, port };
        let until = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(&address).is_err() {
            if Instant::now() > until {
                return Err(format!("{name} does not listen"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// Ours, with these further arguments.
    pub fn exporter(arguments: &[&str]) -> Self {
        let program = env!("CARGO_BIN_EXE_headroom-exporter");
        let arguments = [&["--web.listen-address=ADDRESS", "--log.level=error"], arguments].concat();
        Self::start("headroom-exporter", program, &arguments).unwrap()
    }

    /// With these further arguments: the one that `benches/peers.sh` built, or Debian's.
    pub fn node_exporter(arguments: &[&str]) -> Result<Self, String> {
        let program = built_or("node_exporter", "prometheus-node-exporter");
        Self::start("node_exporter", &program, &[&["--web.listen-address=ADDRESS"], arguments].concat())
    }

    /// One group for each name of a command. Chosen as [`Server::node_exporter`].
    pub fn process_exporter() -> Result<Self, String> {
        let config = std::env::temp_dir().join(format!("headroom-bench-{}.yml", std::process::id()));
        fs::write(&config, "process_names:\n- name: \"{{.Comm}}\"\n  cmdline: ['.+']\n").unwrap();
        let path = config.display().to_string();
        let arguments = ["-web.listen-address", "ADDRESS", "-config.path", &path];
        let program = built_or("process-exporter", "prometheus-process-exporter");
        let server = Self::start("process-exporter", &program, &arguments);
        std::thread::sleep(Duration::from_secs(2));
        let _ = fs::remove_file(config);
        server
    }

    /// One page as a Prometheus fetches it, but readable.
    pub fn page(&self, path: &str) -> String {
        String::from_utf8_lossy(&self.get(path, "identity")).into_owned()
    }

    pub fn get(&self, path: &str, encoding: &str) -> Vec<u8> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
        write!(stream, "GET {path} HTTP/1.0\r\nAccept: {accept}\r\nAccept-Encoding: {encoding}\r\n\r\n").unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        assert!(bytes.starts_with(b"HTTP/1.0 200"), "{}", String::from_utf8_lossy(&bytes[..bytes.len().min(200)]));
        bytes
    }

    pub fn measure(&self, scrapes: u32) -> Cost {
        for _ in 0..scrapes / 3 {
            self.get("/metrics", "gzip");
        }
        let before = cpu_seconds(self.pid());
        for _ in 0..scrapes {
            self.get("/metrics", "gzip");
        }
        let cpu = (cpu_seconds(self.pid()) - before) / f64::from(scrapes);
        Cost { cpu, resident_mib: self.footprint().2 as f64 / 1024.0 }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Open file descriptors, threads and resident KiB.
    pub fn footprint(&self) -> (usize, usize, usize) {
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

/// CPU seconds of a process until now, user and system, of all its threads.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks / rustix::param::clock_ticks_per_second() as f64
}

/// What a program says of its version: the first word with a dot and a digit in it.
fn version(program: &str) -> String {
    let output = Command::new(program).arg("--version").output();
    let text = output.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let is_version = |word: &&str| word.starts_with(|first: char| first.is_ascii_digit()) && word.contains('.');
    text.split_whitespace().find(is_version).unwrap_or("?").to_owned()
}

pub fn ms(seconds: f64) -> String {
    format!("{:.2} ms", seconds * 1e3)
}
