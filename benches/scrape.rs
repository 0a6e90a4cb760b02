//! What a scrape costs, beside what it cannot cost less than, and beside the exporters that people run today.
//!
//! `cargo bench` as root. The load: 2,000 processes holding 50 file descriptors each, and 2,000 cgroups. The floor: a
//! loop of only those system calls that no exporter of per-process file descriptors can do without. Figures are CPU
//! time, not wall time, over many scrapes; read the ratios, the absolute times are the machine's. `docs/performance.md`
//! keeps a run.
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark, not the exporter")]

#[path = "../tests/common/measure.rs"]
mod measure;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use headroom::host::{Host, Roots};
use headroom::modes::{cgroup_leak, eviction, kmem, memory_volume, open_files};
use measure::{Server, collector, cpu_of, floor, ms};

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

    let exporter = Server::exporter(&[]);
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
    for (peer, scrapes) in [(Server::node_exporter(&["--collector.processes"]), 50), (Server::process_exporter(), 10)] {
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

/// The modes that walk below kubepods, with as many cgroups there: 666 pods, six times what a kubelet allows by
/// default.
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
    let exporter = Server::exporter(&[]);
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

fn sum(page: &str, prefix: &str) -> usize {
    let rows = page.lines().filter(|line| line.starts_with(prefix) && !line.contains("unexamined"));
    rows.filter_map(|line| line.rsplit_once(' ')?.1.parse::<usize>().ok()).sum()
}
