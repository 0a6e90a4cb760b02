//! The running kernel's sockets and their owners, against `ss` and against what the test itself made.
//!
//! Helpers are this same test binary, started again with a role in the environment.
#![allow(clippy::disallowed_methods, reason = "witnesses read the machine themselves")]
#![allow(clippy::print_stdout, reason = "how a helper answers")]

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use headroom::error::Reason;
use headroom::host::sockets::owners::{Hints, Owners};
use headroom::host::sockets::{TcpConnection, UnixKind, UnixName, UnixSocket};
use headroom::host::{Deadline, Host, Roots};

use crate::common::helper::{self, Helper};
use crate::common::{self, eventually, shell};

const HELPER: &str = concat!(module_path!(), "::helper");
const MANY: usize = 1_000_000;

fn root_or_skip(test: &str) -> bool {
    let root = common::is_root();
    if !root {
        common::say_skip(format_args!("{test}: needs root"));
    }
    root
}

fn host() -> Host {
    Host::new(Roots::default())
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

fn to(port: u16) -> Vec<TcpConnection> {
    host().tcp_connections(&[port], soon()).unwrap()
}

fn unix() -> Vec<UnixSocket> {
    host().unix_sockets(soon()).unwrap()
}

fn wanted(connections: &[TcpConnection]) -> Vec<(u64, u32)> {
    connections.iter().map(|connection| (connection.cookie, connection.inode)).collect()
}

fn inode(socket: impl AsFd) -> u32 {
    rustix::fs::fstat(socket).unwrap().st_ino.try_into().unwrap()
}

/// What a helper does. As a test without a role it does nothing.
#[test]
fn helper() {
    let Some((role, target)) = helper::role() else { return };
    let mut held: Vec<Box<dyn std::any::Any>> = Vec::new();
    match role.as_str() {
        "connect" => {
            let port: u16 = target.parse().unwrap();
            held.extend(
                (0..3).map(|_| {
                    Box::new(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap()) as Box<dyn std::any::Any>
                }),
            );
        }
        "unix" => held.push(Box::new(UnixStream::connect(&target).unwrap())),
        "unprivileged" => {
            let (port, owner) = target.split_once(' ').unwrap();
            let connections = to(port.parse().unwrap());
            let with_info = connections.iter().filter(|connection| connection.info.is_some()).count();
            println!("\nconnections {} {with_info}", connections.len());
            for socket in unix().iter().filter(|socket| socket.listening) {
                println!("listening {:?}", socket.name);
            }
            let found = Owners::default().find(&host(), &wanted(&connections), Hints::default(), MANY, soon()).unwrap();
            println!("owners {} cut {}", found.owners.len(), found.cut);
            println!("refused {}", found.refused);
            println!("namespace {}", host().shares_network_namespace(owner.parse().unwrap()).unwrap());
        }
        _ => panic!("no such role: {role}"),
    }
    println!("\nready");
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().read(&mut [0]);
}

/// Clients of a listener on every address of this machine, and the accepted ends.
struct Clients {
    listener: TcpListener,
    pairs: Vec<(TcpStream, TcpStream)>,
}

impl Clients {
    fn new(addresses: &[&str]) -> Self {
        let listener = TcpListener::bind("[::]:0").unwrap();
        let mut clients = Clients { listener, pairs: Vec::new() };
        for address in addresses {
            let target = SocketAddr::new(address.parse().unwrap(), clients.port());
            let client = TcpStream::connect(target).unwrap();
            clients.pairs.push((client, clients.listener.accept().unwrap().0));
        }
        clients
    }

    fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }
}

/// The lines of `ss` on connections to this port, by inode.
fn ss(port: u16) -> BTreeMap<u32, String> {
    let text = shell(&format!("ss -H -O -t -i -n -e -m state established 'dport = :{port}'"));
    text.lines().map(|line| (word(line, "ino").unwrap().parse().unwrap(), line.to_owned())).collect()
}

/// What ss prints behind a word and a colon.
fn word<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix(':'))
}

fn number(line: &str, key: &str) -> u64 {
    word(line, key).map_or(0, |number| number.parse().unwrap())
}

/// What must be the same, in the words of ss.
fn exact_of_ss(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let plain = |address: &str| address.replace("[::ffff:127.0.0.1]", "127.0.0.1");
    let retransmitted = word(line, "retrans").map_or("0", |both| both.split_once('/').unwrap().1);
    format!(
        "{} {} {} {} sk:{} uid:{} rtt:{} unacked:{} retrans:{retransmitted} acked:{} received:{} unsent:{}",
        words[0],
        words[1],
        plain(words[2]),
        plain(words[3]),
        word(line, "sk").unwrap(),
        number(line, "uid"),
        word(line, "rtt").unwrap(),
        number(line, "unacked"),
        number(line, "bytes_acked"),
        number(line, "bytes_received"),
        number(line, "notsent"),
    )
}

fn exact_of_ours(connection: &TcpConnection) -> String {
    let info = connection.info.as_ref().unwrap();
    let millis = |time: Option<Duration>| time.unwrap().as_micros() as f64 / 1000.0;
    format!(
        "{} {} {} {} sk:{:x} uid:{} rtt:{}/{} unacked:{} retrans:{} acked:{} received:{} unsent:{}",
        connection.receive_queue_bytes,
        connection.send_queue_bytes,
        connection.local,
        connection.peer,
        connection.cookie,
        connection.uid,
        millis(info.rtt),
        millis(info.rtt_variance),
        info.unacked_segments,
        info.retransmitted_segments,
        info.bytes_acked.unwrap(),
        info.bytes_received.unwrap(),
        info.unsent_bytes.unwrap(),
    )
}

#[test]
fn connections_are_what_ss_prints() {
    alone!();
    let mut clients = Clients::new(&["127.0.0.1", "127.0.0.1", "::1", "::ffff:127.0.0.1"]);
    let other = Clients::new(&["127.0.0.1", "::1"]);
    for (one, two) in &mut clients.pairs {
        for _ in 0..3 {
            one.write_all(&[1; 100]).unwrap();
            two.read_exact(&mut [0; 100]).unwrap();
            two.write_all(&[2; 50]).unwrap();
            one.read_exact(&mut [0; 50]).unwrap();
        }
    }
    // One has an answer to read; another's peer reads nothing until both windows are full.
    clients.pairs[2].1.write_all(&[3; 77]).unwrap();
    let full = &mut clients.pairs[0].0;
    full.set_nonblocking(true).unwrap();
    loop {
        match full.write(&[4; 65_536]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    let port = clients.port();
    let held: Vec<u32> = clients.pairs.iter().map(|(client, _)| inode(client)).collect();
    // Small data waits for a delayed acknowledgement (Nagle).
    eventually("77 bytes to read", || to(port).iter().any(|connection| connection.receive_queue_bytes == 77));
    // The kernel goes on acknowledging and probing: what did not move between two looks of ss is compared.
    eventually("ss prints the same twice", || {
        let start = Instant::now();
        let before = ss(port);
        let ours = to(port);
        let elapsed = start.elapsed().as_millis() as u64;
        let after = ss(port);
        let exact = |lines: &BTreeMap<u32, String>| -> BTreeMap<u32, String> {
            lines.iter().map(|(inode, line)| (*inode, exact_of_ss(line))).collect()
        };
        if exact(&before) != exact(&after) {
            return false;
        }
        let of_ours: BTreeMap<u32, String> =
            ours.iter().map(|connection| (connection.inode, exact_of_ours(connection))).collect();
        assert_eq!(of_ours, exact(&before));
        for connection in &ours {
            let info = connection.info.as_ref().unwrap();
            let (first, last) = (&before[&connection.inode], &after[&connection.inode]);
            // Ages grow between the two looks of ss, or begin anew. ss leaves out a 0.
            for (key, age) in [
                ("lastsnd", info.last_data_sent),
                ("lastrcv", info.last_data_received),
                ("lastack", info.last_ack_received),
            ] {
                let (first, last) = (number(first, key), number(last, key));
                let age = age.as_millis() as u64;
                let anew = first > last || age <= elapsed;
                assert!(anew || (first..=last).contains(&age), "{key}: {first} {age} {last}");
            }
            let rto: f64 = word(first, "rto").unwrap().parse().unwrap();
            assert_eq!(info.rto.as_millis(), rto as u128);
        }
        true
    });
    let ours = to(port);
    let mut inodes: Vec<u32> = ours.iter().map(|connection| connection.inode).collect();
    inodes.sort_unstable();
    let mut expected = held.clone();
    expected.sort_unstable();
    assert_eq!(inodes, expected, "each client once, no accepted end, nothing of the other port");
    let of = |index: usize| ours.iter().find(|connection| connection.inode == held[index]).unwrap();
    assert!(of(0).send_queue_bytes > 100_000, "{:?}", of(0));
    assert_eq!(of(2).receive_queue_bytes, 77);
    assert!(of(2).peer.is_ipv6() && of(3).peer.ip() == Ipv4Addr::LOCALHOST);
    // Several ports, one of them twice.
    let both = host().tcp_connections(&[port, other.port(), port], soon()).unwrap();
    assert_eq!(both.len(), 6);
}

/// As the network itself makes it: a slow path, then one on which everything is lost, then a good one.
#[test]
fn a_slow_path_a_dead_one_and_one_that_is_well_again() {
    alone!();
    if !root_or_skip("a_slow_path_a_dead_one_and_one_that_is_well_again") {
        return;
    }
    let path = |verb: &str, fault: &str| {
        let arguments =
            [&["qdisc", verb, "dev", "lo", "root", "netem"], &*fault.split(' ').collect::<Vec<_>>()].concat();
        let output = Command::new("tc").args(arguments).output().unwrap();
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
    };
    if let Err(why) = path("add", "delay 50ms") {
        return common::not_in_this_kernel(format_args!("netem: {why}"));
    }
    let mut clients = Clients::new(&["127.0.0.1"]);
    let port = clients.port();
    let (one, two) = &mut clients.pairs[0];
    for _ in 0..4 {
        one.write_all(&[1; 100]).unwrap();
        two.read_exact(&mut [0; 100]).unwrap();
        two.write_all(&[2; 50]).unwrap();
        one.read_exact(&mut [0; 50]).unwrap();
    }
    let info = || to(port).remove(0).info.unwrap();
    let rtt = info().rtt.unwrap();
    assert!((Duration::from_millis(100)..Duration::from_millis(400)).contains(&rtt), "twice 50 ms: {rtt:?}");
    assert!(info().min_rtt.unwrap() >= Duration::from_millis(100));

    let before = info().retransmitted_segments;
    path("change", "loss 100%").unwrap();
    one.write_all(&[3; 100]).unwrap();
    eventually("the kernel sends it again, each time later", || info().backoff >= 2);
    let dead = info();
    assert_eq!(dead.unacked_segments, 1);
    assert!(dead.retransmitted_segments >= before + 2, "{dead:?}");
    assert!(dead.last_ack_received >= dead.last_data_sent, "nothing came back: {dead:?}");
    let word_of_ss = |key: &str| number(ss(port).values().next().unwrap(), key);
    eventually("ss says the same backoff", || {
        let (before, ours, after) = (word_of_ss("backoff"), u64::from(info().backoff), word_of_ss("backoff"));
        before == after && before == ours
    });

    path("change", "delay 1ms").unwrap();
    two.read_exact(&mut [0; 100]).unwrap();
    eventually("all is acknowledged", || {
        let info = info();
        info.unacked_segments == 0 && info.backoff == 0
    });
}

#[test]
fn known_connections_are_asked_for_one_by_one() {
    alone!();
    let (mut clients, host) = (Clients::new(&["127.0.0.1", "::1"]), host());
    let port = clients.port();
    // One more, of a socket that is IPv6 and talks IPv4.
    let mut known = to(port);
    known.extend(host.tcp_connections_of(port, soon()).unwrap());
    assert_eq!(known.len(), 4);
    std::io::Write::write_all(&mut clients.pairs[0].0, b"unread").unwrap();
    let again = |known: &[TcpConnection]| host.tcp_connections_again(known, soon()).unwrap();
    let now = again(&known).unwrap();
    let exact = |all: &[TcpConnection]| all.iter().map(|one| (one.cookie, one.local, one.peer)).collect::<Vec<_>>();
    assert_eq!(exact(&now), exact(&known));
    let queued: Vec<u32> = now.iter().map(|one| one.receive_queue_bytes).collect();
    let server = clients.pairs[0].1.local_addr().unwrap();
    let expected = known.iter().map(|one| if one.local == common_form(server) { 6 } else { 0 });
    assert_eq!(queued, expected.collect::<Vec<u32>>(), "as it is now, not as it was");
    assert!(now.iter().all(|one| one.info.as_ref().is_some_and(|info| info.bytes_received.is_some())));

    let other = TcpConnection { cookie: known[0].cookie + 1_000_000, ..known[0].clone() };
    assert!(again(&[other]).is_none(), "another socket with its addresses");
    let (client, _server) = clients.pairs.remove(1);
    drop(client);
    assert!(again(&known).is_none(), "one of them is closed");
    assert_eq!(again(&[]), Some(vec![]));
}

/// As the sockets are shown: v4-mapped addresses as IPv4.
fn common_form(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[test]
fn a_closed_connection_is_gone_at_once() {
    alone!();
    let mut clients = Clients::new(&["127.0.0.1", "::1"]);
    let port = clients.port();
    assert_eq!(to(port).len(), 2);
    let (client, server) = clients.pairs.remove(0);
    drop(client);
    // The accepted end is not closed: the client's is in FIN-WAIT for as long as we hold it.
    assert_eq!(to(port).len(), 1);
    assert_eq!(shell(&format!("ss -H -t -n -a 'dport = :{port}'")).lines().count(), 2, "ss sees it still");
    drop(server);
}

#[test]
fn owners_of_a_childs_connections() {
    alone!();
    if !root_or_skip("owners_of_a_childs_connections") {
        return;
    }
    let clients = Clients::new(&["127.0.0.1"]);
    let port = clients.port();
    let mut child = Helper::start(HELPER, &[], "connect", &port.to_string());
    child.ready();
    let connections = to(port);
    assert_eq!(connections.len(), 4);
    let ask = wanted(&connections);
    let mut owners = Owners::default();
    let found = owners.find(&host(), &ask, Hints::default(), MANY, soon()).unwrap();
    assert!(!found.cut && found.looked_at > 0);
    let comm = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim_end().to_owned();
    let ours = inode(&clients.pairs[0].0);
    for connection in &connections {
        let owner = &found.owners[&connection.cookie];
        let pid = if connection.inode == ours { std::process::id() } else { child.pid() };
        assert_eq!((owner.pid, &owner.comm), (pid, &comm(pid)));
        let witness = shell(&format!("ss -H -O -t -n -p 'dport = :{port} and sport = :{}'", connection.local.port()));
        assert!(witness.contains(&format!("pid={pid},")), "{witness}");
    }
    for _ in 0..10 {
        let again = owners.find(&host(), &ask, Hints::default(), MANY, soon()).unwrap();
        assert_eq!((again.looked_at, &again.owners), (0, &found.owners));
    }
    // A guess makes it short, on any machine.
    let guessed = Owners::default()
        .find(&host(), &ask, Hints { first: &[child.pid(), std::process::id()], share: None }, MANY, soon())
        .unwrap();
    assert_eq!(guessed.owners, found.owners);
    let few =
        ["self", &child.pid().to_string()].map(|pid| std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count());
    // While it looks, it has two more itself.
    assert!(guessed.looked_at <= few.iter().sum::<usize>() + 2, "{} links of {few:?}", guessed.looked_at);

    // Little by little.
    let (mut owners, mut calls) = (Owners::default(), 0);
    loop {
        let step = owners.find(&host(), &ask, Hints::default(), 10, soon()).unwrap();
        assert!(step.looked_at <= 10);
        calls += 1;
        assert!(calls < 100_000);
        if !step.cut {
            assert_eq!(step.owners, found.owners);
            break;
        }
    }
    assert!(calls > 1);

    // Once it is gone, so are its connections, and a search for what they were ends without any.
    drop(child);
    eventually("only our own connection is left", || to(port).len() == 1);
    let found = Owners::default().find(&host(), &ask, Hints::default(), MANY, soon()).unwrap();
    assert_eq!((found.owners.len(), found.cut), (1, false));
}

#[test]
fn without_privileges_sockets_are_seen_and_owners_are_not() {
    alone!();
    if !root_or_skip("without_privileges_sockets_are_seen_and_owners_are_not") {
        return;
    }
    let clients = Clients::new(&["127.0.0.1", "::1"]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("runtime.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let before = ["setpriv", "--reuid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"];
    let mut helper =
        Helper::start(HELPER, &before, "unprivileged", &format!("{} {}", clients.port(), std::process::id()));
    let page = helper.ready();
    let has = |line: &str| page.iter().any(|printed| printed == line);
    assert!(has("connections 2 2"), "with all their TCP information: {page:?}");
    assert!(has(&format!("listening {:?}", Some(UnixName::Path(path)))), "{page:?}");
    assert!(has("owners 0 cut false"), "{page:?}");
    let refused: u64 = page.iter().find_map(|line| line.strip_prefix("refused ")?.parse().ok()).unwrap();
    assert!(refused >= 1, "this process is another user's");
    assert!(has("namespace true"), "{page:?}");
}

#[test]
fn a_thousand_dumps_leave_nothing_open() {
    alone!();
    let clients = Clients::new(&["127.0.0.1"]);
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let host = host();
    let before = open();
    for round in 0..1000 {
        assert_eq!(host.tcp_connections(&[clients.port()], soon()).unwrap().len(), 1);
        if round % 10 == 0 {
            host.unix_sockets(soon()).unwrap();
            // Ended before the end of the dump, too.
            assert!(host.unix_sockets(Deadline::after(Duration::ZERO)).is_err());
        }
    }
    assert_eq!(open(), before);
}

/// The unix sockets with this path, the listener first.
fn at_path(sockets: &[UnixSocket], path: &Path) -> Vec<UnixSocket> {
    let name = UnixName::Path(path.into());
    let mut found: Vec<UnixSocket> =
        sockets.iter().filter(|socket| socket.name.as_ref() == Some(&name)).cloned().collect();
    found.sort_by_key(|socket| !socket.listening);
    found
}

#[test]
fn clients_of_a_unix_socket() {
    alone!();
    if !root_or_skip("clients_of_a_unix_socket") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("runtime.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut child = Helper::start(HELPER, &[], "unix", path.to_str().unwrap());
    child.ready();

    // It waits to be accepted: the client has no peer with an inode yet, and the listener counts it.
    let waiting = at_path(&unix(), &path);
    assert_eq!(waiting[0].receive_queue, Some(1));
    let (accepted, _) = listener.accept().unwrap();
    let sockets = unix();
    let [listening, served]: [UnixSocket; 2] = at_path(&sockets, &path).try_into().unwrap();
    assert_eq!((listening.inode, listening.receive_queue), (inode(&listener), Some(0)));
    assert_eq!((served.inode, served.kind, served.shut), (inode(&accepted), UnixKind::Stream, false));
    let client = sockets.iter().find(|socket| Some(socket.inode) == served.peer).unwrap();
    assert_eq!((client.peer, &client.name), (Some(served.inode), &None));
    let stat = rustix::fs::stat(&path).unwrap();
    for socket in [&listening, &served] {
        let file = socket.file.unwrap();
        assert_eq!(file.device, (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev)));
        assert_eq!(file.inode, stat.st_ino as u32);
    }
    let cookies = [(1, served.inode), (2, client.inode)];
    let found = Owners::default().find(&host(), &cookies, Hints::default(), MANY, soon()).unwrap();
    assert_eq!((found.owners[&1].pid, found.owners[&2].pid), (std::process::id(), child.pid()));
    let witness = shell("ss -H -O -x -p");
    let line = witness.lines().find(|line| line.contains(path.to_str().unwrap())).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[5..8], [&*served.inode.to_string(), "*", &client.inode.to_string()]);
    let line = witness.lines().find(|line| line.contains(&format!(" {} * {} ", client.inode, served.inode)));
    let line = line.unwrap_or_else(|| panic!("{witness}"));
    assert!(line.contains(&format!("pid={},", child.pid())), "{line}");

    // The client is gone and nobody has read from our end.
    drop(child);
    let [_, left]: [UnixSocket; 2] = at_path(&unix(), &path).try_into().unwrap();
    assert_eq!((left.inode, left.peer, left.shut), (served.inode, None, true));
}

/// A network namespace; removed when dropped.
struct Namespace(String);

impl Namespace {
    fn new() -> Self {
        let name = format!("headroom-sockets-{}", common::unique());
        shell(&format!("ip netns add {name}"));
        Namespace(name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

#[test]
fn another_network_namespace() {
    alone!();
    if !root_or_skip("another_network_namespace") {
        return;
    }
    if !common::has("ip") {
        return common::say_skip("another_network_namespace: no ip here (Debian: iproute2)");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("runtime.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let namespace = Namespace::new();
    let before = ["ip", "netns", "exec", &namespace.0];
    let mut far = Helper::start(HELPER, &before, "unix", path.to_str().unwrap());
    far.ready();
    let host = host();
    assert!(host.shares_network_namespace(std::process::id()).unwrap());
    assert!(!host.shares_network_namespace(far.pid()).unwrap());
    let here = host.network_namespace_of(std::process::id()).unwrap();
    assert_ne!(here, host.network_namespace_of(far.pid()).unwrap());

    // What the module's documentation warns of: the accepted end is in the client's namespace, although it is ours.
    let (accepted, _) = listener.accept().unwrap();
    assert_eq!(at_path(&unix(), &path).len(), 1, "the listener alone");
    let there = shell(&format!("ip netns exec {} ss -H -O -x -n", namespace.0));
    assert!(there.contains(&format!(" {} ", inode(&accepted))), "{there}");

    let pid = far.pid();
    drop(far);
    let gone = host.shares_network_namespace(pid).unwrap_err();
    assert_eq!(gone.reason(), Reason::Absent);
}
