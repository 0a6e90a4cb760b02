//! What a scrape of a node full of pods costs.
//!
//! `cargo bench --bench pods` as root. The load: 110 pods, each a network namespace with an interface, a pause and an
//! application process in cgroups below kubepods (v1); 20 of them with a memory-backed volume; a runtime's socket with
//! 30 clients on the host and 5 in pods. Figures are CPU time, user and system, of all threads, over many collections.
//! `docs/performance.md` keeps a run.
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark, not the exporter")]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/common/measure.rs"]
mod measure;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::sleepers::Process;
use headroom::host::{Host, Roots};
use headroom::kubelet::handle;
use headroom::kubelet::sources::Overrides;
use headroom::modes::{MODES, Settings};
use headroom::services::Services;
use measure::{Server, collection, cpu_of, floor, ms};

const PODS: usize = 110;
const VOLUMES: usize = 20;
const CLIENTS: usize = 30;
const SCRAPES: u32 = 200;
const SETTLED: std::time::Duration = std::time::Duration::from_secs(61);
const CLIENTS_IN_PODS: usize = 5;
const CLIENT: &str = "HEADROOM_BENCH_CLIENT";
const MEMORY: &str = "/sys/fs/cgroup/memory";

fn main() {
    if let Some(socket) = std::env::var_os(CLIENT) {
        return client(Path::new(&socket));
    }
    let Some(node) = Node::make() else { return };
    println!(
        "load: {PODS} pods of two processes, {VOLUMES} memory-backed volumes; CPU per collection, in this process"
    );
    let host = Host::new(Roots::default());
    let bare = of("open_files", &host, &node);
    let daemon = Daemon::start(&node);
    let (socket, root_dir) = (daemon.socket.display().to_string(), node.root_dir.display().to_string());
    let flags = ["--collector.open_files.runtime-sockets", &socket, "--kubelet.root-dir", &root_dir];
    let exporter = Server::exporter(&flags);
    let page = exporter.page("/metrics");
    expect(&page, "headroom_pods_with_network_namespace", PODS);
    expect(&page, "headroom_memory_volume_used_bytes", VOLUMES << 20);
    expect(&page, "headroom_runtime_socket_connections", CLIENTS + CLIENTS_IN_PODS);

    let detailed = sum(&page, "headroom_process_fds");
    let floor = cpu_of(20, || floor(detailed));
    println!("  {:<34}{:>9}  of open_files: system calls only", "floor", ms(floor));
    let ratio = |cost: f64| format!("{:.2} × floor", cost / floor);
    println!("  {:<34}{:>9}  {}", "open_files, no runtime listens", ms(bare), ratio(bare));
    let mut pods = 0.0;
    for id in ["open_files", "memory_volume", "pod_interface", "cgroup_leak", "kmem"] {
        let cost = of(id, &host, &node);
        match id {
            "open_files" => {
                println!("  {:<34}{:>9}  {}", "open_files, with who holds sockets", ms(cost), ratio(cost));
                pods += cost - bare;
            }
            _ => println!("  {id:<34}{:>9}", ms(cost)),
        }
        if ["memory_volume", "pod_interface"].contains(&id) {
            pods += cost;
        }
    }
    println!("  {:<34}{:>9}  (target: < 20 ms)", "memory_volume, pod_interface, who", ms(pods));
    drop(exporter);
    println!("\nCPU per scrape over HTTP, gzip, {SCRAPES} of each: modes share the walks of one scrape");
    let three = ["task_limit", "system_filesystem", "cni_leak"];
    let eight: Vec<&str> = MODES.iter().map(|mode| mode.id).filter(|id| !three.contains(id)).collect();
    let of_pods = ["memory_volume", "pod_interface", "cgroup_leak", "kmem"];
    let started = [of_pods.as_slice(), &eight, &[]].map(|modes| {
        let only = modes.iter().map(|mode| format!("--collector.{mode}")).collect::<Vec<_>>();
        let alone = Some("--collector.disable-defaults").filter(|_| !only.is_empty());
        Server::exporter(&flags.into_iter().chain(alone).chain(only.iter().map(String::as_str)).collect::<Vec<_>>())
    });
    // What a container has mounted is read until it has been the same for half a minute, and what its interfaces sit on
    // is asked at every scrape in its first minute.
    let pages = started.each_ref().map(|exporter| exporter.page("/metrics"));
    std::thread::sleep(SETTLED);
    let names = ["these of pods", "all but the last three", "all"];
    let targets = ["< 8 ms", "< 1,500 series", "< 1,800 series, < 1.5 × floor"];
    let mut costs = [0.0; 3];
    for (index, exporter) in started.iter().enumerate() {
        let cost = exporter.measure(SCRAPES);
        costs[index] = cost.cpu;
        let series = pages[index].lines().filter(|line| !line.starts_with('#')).count();
        let (name, target, resident) = (names[index], targets[index], cost.resident_mib);
        println!("  {name:<34}{:>9}  {series:>5} series {resident:>5.1} MiB  (target: {target})", ms(cost.cpu));
    }
    println!("  {:<34}{:>9}  (target: < 3 ms)", three.join(", "), ms(costs[2] - costs[1]));
    let floor_now = cpu_of(20, || measure::floor(detailed));
    println!("  {:<34}{:>9}  {}", "floor, once more", ms(floor_now), ratio(costs[2]));
}

/// Checks that what is measured is what was made.
fn expect(page: &str, family: &str, expected: usize) {
    assert_eq!(sum(page, family), expected, "{family}: {page}");
}

fn sum(page: &str, family: &str) -> usize {
    let of_family = |line: &&str| line.split(['{', ' ']).next() == Some(family) && !line.contains("unexamined");
    page.lines().filter(of_family).filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum::<f64>() as usize
}

/// CPU seconds of one collection of this mode.
fn of(id: &str, host: &Host, node: &Node) -> f64 {
    let mut settings = Settings::default();
    settings.open_files.runtime_sockets = vec![node.socket().display().to_string()];
    let mode = MODES.iter().find(|mode| mode.id == id).unwrap();
    let overrides = Overrides { root_dir: Some(node.root_dir.clone()), ..Overrides::default() };
    let services = Services::with_kubelet(handle::Settings { overrides, ..handle::Settings::default() });
    collection(&*(mode.build)(&settings, &services), host)
}

/// A node's pods. A shell takes everything away when its standard input ends, which is when this is dropped, panics or
/// is killed.
struct Node {
    janitor: Child,
    root_dir: PathBuf,
    processes: Vec<(Process, Process)>,
    /// Shared with the tests that count cgroups or make a kubepods tree.
    _lock: File,
}

impl Node {
    fn make() -> Option<Self> {
        let programs = ["ip", "nsenter", "unshare", "xargs"];
        let missing = if !common::is_root() {
            Some("root".to_owned())
        } else if let Some(program) = programs.into_iter().find(|program| !common::has(program)) {
            Some(program.to_owned())
        } else if !Path::new(MEMORY).join("memory.oom_control").exists() {
            Some("a cgroup v1 memory hierarchy".to_owned())
        } else {
            None
        };
        if let Some(missing) = missing {
            common::say_skip(format_args!("needs {missing}"));
            return None;
        }
        let lock = File::create(std::env::temp_dir().join("headroom-kernel-cgroup.lock")).unwrap();
        lock.lock().unwrap();
        let top = Path::new(MEMORY).join("kubepods");
        if top.exists() || top.with_extension("slice").exists() {
            common::say_skip("kubepods exists: this is a Kubernetes node");
            return None;
        }
        let root_dir = std::env::temp_dir().join(format!("headroom-bench-pods-{}", std::process::id()));
        fs::create_dir(&root_dir).unwrap();
        fs::create_dir(&top).unwrap();
        let script = "cat > /dev/null
            for patience in $(seq 100); do
                find \"$0\" -name cgroup.procs -exec cat {} + | xargs -r kill -9
                awk -v under=\"$1/\" 'index($2, under) == 1 { print $2 }' /proc/self/mounts | xargs -r -n 1 umount -l
                find \"$0\" -depth -type d -exec rmdir {} ';'
                [ -d \"$0\" ] || break
                sleep 0.1
            done
            rm -rf --one-file-system \"$1\"";
        let mut janitor = Command::new("sh");
        // In a group of its own: Ctrl-C is for us.
        janitor.args(["-c", script]).args([&top, &root_dir]).process_group(0);
        janitor.stdin(Stdio::piped()).stderr(Stdio::null());
        // It prints nothing. Holding the lock, it can meet nobody else's cgroups, even where it outlives us.
        let janitor = janitor.stdout(lock.try_clone().unwrap()).spawn().unwrap();
        let mut node = Node { janitor, root_dir, processes: Vec::new(), _lock: lock };
        for pod in 0..PODS {
            let uid = format!("{pod:08}-0000-4000-8000-000000000000");
            let pause = Process::alone();
            pause.connect();
            let app = Process::beside(&pause);
            for (container, process) in [&pause, &app].into_iter().enumerate() {
                let cgroup = top.join(format!("burstable/pod{uid}/{pod:062x}{container:02x}"));
                fs::create_dir_all(&cgroup).unwrap();
                fs::write(cgroup.join("memory.limit_in_bytes"), "268435456").unwrap();
                fs::write(cgroup.join("cgroup.procs"), process.pid().to_string()).unwrap();
            }
            if pod < VOLUMES {
                node.volume(&uid);
            }
            node.processes.push((pause, app));
        }
        Some(node)
    }

    /// One with a file of 1 MiB, where the kubelet would put it.
    fn volume(&self, uid: &str) {
        let path = self.root_dir.join(format!("pods/{uid}/volumes/kubernetes.io~empty-dir/cache"));
        fs::create_dir_all(&path).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", &path, "tmpfs", flags, Some(c"size=64m")).unwrap();
        fs::write(path.join("file"), vec![1; 1 << 20]).unwrap();
    }

    fn socket(&self) -> PathBuf {
        self.root_dir.join("runtime.sock")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.janitor.stdin.take());
        self.processes.clear();
        let _ = self.janitor.wait();
    }
}

/// A stand-in for the runtime, and its clients.
struct Daemon {
    socket: PathBuf,
    _listener: UnixListener,
    _held: Vec<UnixStream>,
    _clients: Vec<Client>,
}

impl Daemon {
    fn start(node: &Node) -> Self {
        let socket = node.socket();
        let listener = UnixListener::bind(&socket).unwrap();
        let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::start(&[], &socket)).collect();
        for (pause, _) in node.processes.iter().take(CLIENTS_IN_PODS) {
            clients.push(Client::start(&["nsenter", "-t", &pause.pid().to_string(), "-n"], &socket));
        }
        let held = clients.iter().map(|_| listener.accept().unwrap().0).collect();
        Daemon { socket, _listener: listener, _held: held, _clients: clients }
    }
}

/// A process with a connection, which ends with us.
struct Client(Child);

impl Client {
    fn start(before: &[&str], socket: &Path) -> Self {
        let me = std::env::current_exe().unwrap();
        let mut words = before.iter().map(std::ffi::OsString::from).chain([me.into_os_string()]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).env(CLIENT, socket).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut client = Client(command.spawn().unwrap());
        client.0.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        client
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// What a client does.
fn client(socket: &Path) {
    let _connection = UnixStream::connect(socket).unwrap();
    std::io::stdout().write_all(b"x").unwrap();
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().read(&mut [0]);
}
