//! Mode `open_files`: who holds connections to the runtime's sockets, and TCP sockets in CLOSE_WAIT, on the running
//! kernel, against `ss`.
//!
//! Helpers are this same test binary, started again with a role in the environment.
#![allow(clippy::disallowed_methods, reason = "witnesses read the machine themselves")]
#![allow(clippy::print_stdout, reason = "how a helper answers")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use headroom::host::{Deadline, Host, Roots};
use headroom::metric::Samples;
use headroom::modes::{Collector, Context, Settings, open_files};
use headroom::services::Services;

use crate::common::docker;
use crate::common::helper::{self, Helper};
use crate::common::{self, eventually, shell};

const HELPER: &str = concat!(module_path!(), "::helper");
const CONNECTIONS: &str = "headroom_runtime_socket_connections";

fn mode(socket: &Path, change: impl FnOnce(&mut open_files::Settings)) -> Box<dyn Collector> {
    let mut settings = Settings::default();
    settings.open_files.runtime_sockets = vec![socket.to_str().unwrap().to_owned()];
    change(&mut settings.open_files);
    (open_files::MODE.build)(&settings, &Services::default())
}

fn collect(mode: &dyn Collector) -> Samples {
    let host = Host::new(Roots::default());
    let deadline = Deadline::after(Duration::from_secs(60));
    let mut samples = mode.collect(Context::new(&host, deadline)).unwrap();
    samples.refuse_duplicates();
    samples.refuse_undeclared(open_files::MODE.metrics);
    assert!(samples.errors().is_empty(), "{:?}", samples.errors());
    samples
}

/// The rows of one socket as `peer pid comm` and their values.
fn rows(samples: &Samples, socket: &Path) -> Vec<(String, f64)> {
    let of = samples
        .rows()
        .iter()
        .filter(|row| row.metric.name == CONNECTIONS && *row.labels[0] == *socket.to_str().unwrap());
    let mut rows: Vec<_> =
        of.map(|row| (format!("{} {} {}", row.labels[1], row.labels[2], row.labels[3]), row.value)).collect();
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    rows
}

fn value(samples: &Samples, name: &str, label: &str) -> Option<f64> {
    samples.rows().iter().find(|row| row.metric.name == name && *row.labels[0] == *label).map(|row| row.value)
}

fn process(child: &Helper, count: usize) -> (String, f64) {
    let comm = std::fs::read_to_string(format!("/proc/{}/comm", child.0.id())).unwrap();
    (format!("process {} {}", child.0.id(), comm.trim_end()), count as f64)
}

/// What `ss -xp` prints of the servers' ends at this path, and how many of their peers are this process's.
fn ss(socket: &Path, pid: u32) -> (usize, usize) {
    let text = shell("ss -H -O -x -p");
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    let served: Vec<_> =
        lines.iter().filter(|line| line[1] == "ESTAB" && line[4] == socket.to_str().unwrap()).collect();
    let holder = format!("pid={pid},");
    let clients = served.iter().filter(|server| {
        lines.iter().any(|line| line[5] == server[7] && line.last().is_some_and(|users| users.contains(&holder)))
    });
    (served.len(), clients.count())
}

/// A client that leaks: a connection for each byte that it is told.
trait Leak {
    fn leak(&mut self, connections: usize);
}

impl Leak for Helper {
    fn leak(&mut self, connections: usize) {
        self.0.stdin.as_mut().unwrap().write_all(&vec![b'x'; connections]).unwrap();
        let mut lines = BufReader::with_capacity(1, self.0.stdout.as_mut().unwrap());
        for _ in 0..connections {
            let mut line = String::new();
            while line != "leaked\n" {
                line.clear();
                assert_ne!(lines.read_line(&mut line).unwrap(), 0, "the helper ended");
            }
        }
    }
}

/// What a helper does. As a test without a role it does nothing.
#[test]
fn helper() {
    let Some((role, target)) = helper::role() else { return };
    let mut held: Vec<Box<dyn std::any::Any>> = Vec::new();
    println!();
    while let Ok(1) = std::io::stdin().read(&mut [0]) {
        match role.as_str() {
            "unix" => held.push(Box::new(UnixStream::connect(&target).unwrap())),
            "http" => {
                // As the incident's client: asks, reads the answer, and never closes.
                let mut stream = UnixStream::connect(&target).unwrap();
                stream.write_all(b"GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n").unwrap();
                let mut answer = [0; 1024];
                let length = stream.read(&mut answer).unwrap();
                assert!(answer[..length].starts_with(b"HTTP/1.1 200"));
                held.push(Box::new(stream));
            }
            // An exporter that is somewhere else.
            "collect" => {
                let host = Host::new(Roots::default());
                let deadline = Deadline::after(Duration::from_secs(60));
                let mode = mode(Path::new(&target), |_| {});
                let samples = mode.collect(Context::new(&host, deadline)).unwrap();
                let of_sockets = |name: &str| name.contains("runtime_socket") || name.contains("close_wait");
                let rows = samples.rows().iter().filter(|row| of_sockets(row.metric.name)).count();
                let errors: Vec<_> = samples.errors().iter().map(|error| error.reason().as_str()).collect();
                assert_eq!((rows, errors), (0, vec!["denied"]), "{:?}", samples.errors());
                assert!(samples.errors()[0].to_string().contains("hostNetwork"), "{:?}", samples.errors());
            }
            "tcp" => held.push(Box::new(TcpStream::connect((Ipv4Addr::LOCALHOST, target.parse().unwrap())).unwrap())),
            _ => panic!("no such role: {role}"),
        }
        println!("leaked");
    }
}

/// A stand-in for the daemon: accepts everything and keeps it.
struct Daemon {
    _folder: tempfile::TempDir,
    path: PathBuf,
    listener: UnixListener,
    held: Vec<UnixStream>,
}

impl Daemon {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("docker.sock");
        let listener = UnixListener::bind(&path).unwrap();
        Daemon { _folder: folder, path, listener, held: Vec::new() }
    }

    fn accept(&mut self, connections: usize) {
        self.held.extend((0..connections).map(|_| self.listener.accept().unwrap().0));
    }
}

#[test]
fn a_leaking_client_is_named_and_when_it_is_gone_its_socket_is() {
    if !common::is_root() {
        return common::say_skip("a_leaking_client_is_named: needs root");
    }
    let mut daemon = Daemon::new();
    let path = daemon.path.clone();
    let mode = mode(&path, |_| {});
    let socket = path.to_str().unwrap();
    assert_eq!(rows(&collect(&*mode), &path), []);
    let mut client = Helper::start(HELPER, &[], "unix", socket);
    for step in 1..=5 {
        client.leak(3);
        daemon.accept(3);
        let samples = collect(&*mode);
        assert_eq!(rows(&samples, &path), [process(&client, 3 * step)]);
        assert_eq!(ss(&path, client.0.id()), (3 * step, 3 * step));
        assert_eq!(value(&samples, "headroom_runtime_socket_backlog", socket), Some(0.0));
    }
    // Two wait to be accepted: a daemon that hangs is seen by that.
    client.leak(2);
    let samples = collect(&*mode);
    assert_eq!(rows(&samples, &path), [process(&client, 15)]);
    assert_eq!(value(&samples, "headroom_runtime_socket_backlog", socket), Some(2.0));
    let limit = shell(&format!("ss -H -l -x -n | grep -F '{socket} '"));
    let limit: f64 = limit.split_whitespace().nth(3).unwrap().parse().unwrap();
    assert_eq!(value(&samples, "headroom_runtime_socket_backlog_limit", socket), Some(limit));
    daemon.accept(2);

    // Ourselves are a client like any other.
    let _own = UnixStream::connect(&path).unwrap();
    daemon.accept(1);
    let samples = collect(&*mode);
    assert_eq!(rows(&samples, &path).iter().map(|(_, count)| count).sum::<f64>(), 18.0);
    assert!(rows(&samples, &path).iter().any(|(row, _)| row.starts_with(&format!("process {} ", std::process::id()))));

    drop(client);
    let samples = collect(&*mode);
    assert!(rows(&samples, &path).contains(&("none  ".to_owned(), 17.0)), "{:?}", rows(&samples, &path));
    assert_eq!(ss(&path, std::process::id()), (18, 1), "ss sees them, too");
    drop(daemon);
    assert_eq!(rows(&collect(&*mode), &path), []);
}

#[test]
fn a_socket_behind_a_link_is_the_same() {
    if !common::is_root() {
        return common::say_skip("a_socket_behind_a_link_is_the_same: needs root");
    }
    let mut daemon = Daemon::new();
    let link = daemon.path.with_file_name("link.sock");
    std::os::unix::fs::symlink(&daemon.path, &link).unwrap();
    // The client goes through the link, and so does our setting.
    let mut client = Helper::start(HELPER, &[], "unix", link.to_str().unwrap());
    client.leak(4);
    daemon.accept(4);
    let samples = collect(&*mode(&link, |_| {}));
    assert_eq!(rows(&samples, &daemon.path), [process(&client, 4)]);
    assert_eq!(rows(&samples, &link), []);
    // What listens beside it is another socket.
    let other = daemon.path.with_file_name("docker.sock.ttrpc");
    let _other = UnixListener::bind(&other).unwrap();
    let _connection = UnixStream::connect(&other).unwrap();
    let samples = collect(&*mode(&link, |_| {}));
    assert_eq!((rows(&samples, &other).len(), rows(&samples, &daemon.path).len()), (0, 1));
}

#[test]
fn without_a_budget_the_sum_is_exact_all_the_same() {
    if !common::is_root() {
        return common::say_skip("without_a_budget_the_sum_is_exact_all_the_same: needs root");
    }
    let mut daemon = Daemon::new();
    let mut client = Helper::start(HELPER, &[], "unix", daemon.path.to_str().unwrap());
    client.leak(6);
    daemon.accept(6);
    let none = mode(&daemon.path, |settings| {
        (settings.top, settings.daemons) = (0, Vec::new());
        settings.socket_max_readlinks = 0;
    });
    assert_eq!(rows(&collect(&*none), &daemon.path), [("unknown  ".to_owned(), 6.0)]);
    // With a little, it is found in the end.
    let little = mode(&daemon.path, |settings| {
        (settings.top, settings.daemons) = (0, Vec::new());
        settings.socket_max_readlinks = 20;
    });
    let mut scrapes = 0;
    loop {
        let rows = rows(&collect(&*little), &daemon.path);
        assert_eq!(rows.iter().map(|(_, count)| count).sum::<f64>(), 6.0);
        if rows == [process(&client, 6)] {
            break;
        }
        scrapes += 1;
        assert!(scrapes < 10_000, "{rows:?}");
    }
}

/// A network namespace; removed when dropped.
struct Namespace(String);

impl Namespace {
    fn new() -> Self {
        let name = format!("headroom-rt-{}", common::unique());
        shell(&format!("ip netns add {name} && ip -n {name} link set lo up"));
        Namespace(name)
    }

    fn exec(&self) -> [&str; 4] {
        ["ip", "netns", "exec", &self.0]
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

#[test]
fn clients_in_another_network_namespace_are_counted() {
    if !common::is_root() || !common::has("ip") {
        return common::say_skip(
            "clients_in_another_network_namespace_are_counted: needs root and ip (Debian: iproute2)",
        );
    }
    let mut daemon = Daemon::new();
    let (path, namespace) = (daemon.path.clone(), Namespace::new());
    let mode = mode(&path, |settings| settings.top = 100);
    let mut far = Helper::start(HELPER, &namespace.exec(), "unix", path.to_str().unwrap());
    let mut near = Helper::start(HELPER, &[], "unix", path.to_str().unwrap());
    far.leak(7);
    near.leak(2);
    daemon.accept(9);
    let samples = collect(&*mode);
    let (_, stands) = process(&far, 7);
    let comm = std::fs::read_to_string(format!("/proc/{}/comm", far.0.id())).unwrap();
    let row = format!("namespace {} {}", far.0.id(), comm.trim_end());
    assert_eq!(rows(&samples, &path), [(row, stands), process(&near, 2)]);
    let there = shell(&format!("ip netns exec {} ss -H -x -n | grep -c -F {}", namespace.0, path.display()));
    assert_eq!(there.trim(), "7");
    // Seen from in there, everything here would be somebody else's.
    Helper::start(HELPER, &namespace.exec(), "collect", path.to_str().unwrap()).leak(1);
    // Its own TCP sockets are not in our list: nothing is said of them.
    assert_eq!(value(&samples, "headroom_process_close_wait_sockets", &far.0.id().to_string()), None);

    // Whoever has a listener of that path in there is meant by its clients.
    let script = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.bind(sys.argv[1])\ns.listen()\nprint(flush=True)\nsys.stdin.read()";
    let mut inner = Command::new("ip");
    let mount = format!("mount -t tmpfs tmpfs {} && exec \"$@\"", path.parent().unwrap().display());
    inner.args(["netns", "exec", &namespace.0, "sh", "-c", &mount, "sh", "python3", "-c", script]).arg(&path);
    let mut inner = Helper(inner.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    inner.0.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    assert_eq!(rows(&collect(&*mode), &path), [process(&near, 2)]);
}

#[test]
fn sockets_in_close_wait_are_what_ss_prints() {
    if !common::is_root() {
        return common::say_skip("sockets_in_close_wait_are_what_ss_prints: needs root");
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut client = Helper::start(HELPER, &[], "tcp", &port.to_string());
    let mut server: Vec<TcpStream> = Vec::new();
    client.leak(9);
    server.extend((0..9).map(|_| listener.accept().unwrap().0));
    let pid = client.0.id().to_string();
    let nowhere = Path::new("/nowhere/x.sock");
    let mode = mode(nowhere, |settings| {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        settings.daemons = vec![comm.trim_end().to_owned()];
        settings.top = 100;
    });
    let ours = || value(&collect(&*mode), "headroom_process_close_wait_sockets", &pid);
    assert_eq!(ours(), Some(0.0));
    server.truncate(2);
    let witness = || {
        shell(&format!("ss -H -O -t -a -n -p state close-wait 'dport = :{port}'"))
            .matches(&format!("pid={pid},"))
            .count()
    };
    eventually("seven are closed by their peer", || witness() == 7);
    assert_eq!(ours(), Some(7.0));
    server.clear();
    eventually("nine are closed by their peer", || witness() == 9);
    assert_eq!(ours(), Some(9.0));
}

#[test]
fn the_docker_engine_and_a_client_that_leaks() {
    let docker = match docker::Docker::start() {
        Ok(docker) => docker,
        Err(why) => return common::say_skip(format_args!("the_docker_engine_and_a_client_that_leaks: {why}")),
    };
    let path = docker.socket();
    let mode = mode(&path, |_| {});
    let mut client = Helper::start(HELPER, &[], "http", path.to_str().unwrap());
    for polls in 1..=10 {
        client.leak(1);
        let wanted = process(&client, polls);
        assert!(rows(&collect(&*mode), &path).contains(&wanted), "{wanted:?}");
    }
    assert_eq!(ss(&path, client.0.id()).1, 10);
    // A living daemon closes its end when the client is gone.
    drop(client);
    eventually("the daemon has closed them", || rows(&collect(&*mode), &path).is_empty());
}
