use super::super::MODE;
use super::*;
use crate::host::Roots;
use crate::host::sockets::{Sockets, UnixFile};
use std::time::Duration;

const SOCKET: &str = "/run/docker.sock";

fn socket(cookie: u64, peer: Option<u32>, path: &str) -> UnixSocket {
    UnixSocket {
        inode: 1_000 + cookie as u32,
        cookie,
        peer,
        shut: peer.is_none(),
        listening: false,
        kind: UnixKind::Stream,
        name: Some(UnixName::Path(path.into())),
        file: Some(UnixFile { device: (0, 25), inode: 77 }),
        receive_queue: Some(0),
        send_queue: Some(0),
    }
}

fn listener(path: &str) -> UnixSocket {
    UnixSocket { listening: true, receive_queue: Some(3), send_queue: Some(4_096), ..socket(1, None, path) }
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

fn look(unix: Vec<UnixSocket>) -> (tempfile::TempDir, Host, Look) {
    let proc = tempfile::tempdir().unwrap();
    let roots = Roots { proc: proc.path().into(), root: proc.path().into(), ..Roots::default() };
    let host = Host::recorded(roots, Vec::new()).with_sockets(Sockets::recorded(Vec::new(), unix));
    let look = Look::take(&host, &paths(None, &[]), &Namespaces::default(), soon()).unwrap();
    (proc, host, look)
}

fn assessed(look: &Look, counts: BTreeMap<(String, Peer), u64>) -> Samples {
    let mut samples = Samples::new();
    assess(look, &Rows::of(counts), &mut samples);
    samples.refuse_duplicates();
    samples.refuse_undeclared(MODE.metrics);
    assert_eq!(samples.errors(), []);
    samples
}

fn total(samples: &Samples) -> f64 {
    samples.rows().iter().filter(|row| std::ptr::eq(row.metric, &CONNECTIONS)).map(|row| row.value).sum()
}

fn plain<'a>(peer: &'a str, pid: &'a str, comm: &'a str) -> [&'a str; 9] {
    [SOCKET, peer, pid, comm, "", "", "", "", ""]
}

#[test]
fn every_connection_is_somebodys_or_nobodys() {
    let mut unix = vec![listener(SOCKET), listener("/run/containerd/containerd.sock.ttrpc")];
    unix[1].file = None;
    unix.extend((10..14).map(|n| socket(n, Some(n as u32), SOCKET)));
    unix.extend((20..25).map(|n| socket(n, None, SOCKET)));
    unix.push(socket(30, Some(30), "/run/containerd/containerd.sock.ttrpc"));
    unix.last_mut().unwrap().file = None;
    let (_proc, host, look) = look(unix);
    assert_eq!(look.listeners, BTreeMap::from([(SOCKET.to_owned(), Backlog { waiting: 3, limit: 4_096 })]));
    let agent = Owner { pid: 7, comm: "agent".into() };
    let met = HashMap::from([(10, agent.clone()), (11, agent.clone()), (12, agent)]);
    let counts = look.by_peer(&host, &met, &mut Owners::default(), 100, soon()).unwrap();
    let samples = assessed(&look, counts);
    assert_eq!(samples.value(&CONNECTIONS, &plain("process", "7", "agent")), Some(3.0));
    assert_eq!(samples.value(&CONNECTIONS, &plain("none", "", "")), Some(5.0));
    assert_eq!(samples.value(&CONNECTIONS, &plain("unknown", "", "")), Some(1.0));
    assert_eq!(total(&samples), 9.0);
    assert_eq!(samples.value(&BACKLOG, &[SOCKET]), Some(3.0));
    assert_eq!(samples.value(&BACKLOG_LIMIT, &[SOCKET]), Some(4_096.0));
}

#[test]
fn the_largest_are_shown_and_the_sum_is_exact() {
    let (_proc, _host, look) = look(vec![listener(SOCKET)]);
    let mut counts: BTreeMap<(String, Peer), u64> = (1..=200)
        .map(|pid| ((SOCKET.to_owned(), Peer::Process { pid, comm: "agent".into() }), u64::from(pid)))
        .collect();
    counts.insert((SOCKET.to_owned(), Peer::None), 1);
    let samples = assessed(&look, counts);
    assert_eq!(samples.value(&CONNECTIONS, &plain("process", "200", "agent")), Some(200.0));
    assert_eq!(samples.value(&CONNECTIONS, &plain("process", "100", "agent")), None);
    assert_eq!(samples.value(&CONNECTIONS, &plain("none", "", "")), Some(1.0), "however few");
    let others: u32 = (1..=200 - MOST_ROWS as u32 + 1).sum();
    assert_eq!(samples.value(&CONNECTIONS, &plain("other", "", "")), Some(f64::from(others)));
    assert_eq!(total(&samples), 20_101.0);
    assert_eq!(samples.dropped(), 201 - MOST_ROWS as u64);
}

#[test]
fn a_pod_with_a_network_of_its_own_is_named_without_a_process() {
    let (proc, host, mut look) = look(vec![listener(SOCKET)]);
    look.elsewhere = BTreeMap::from([((SOCKET.to_owned(), 50), 4), ((SOCKET.to_owned(), 60), 2)]);
    let uid = "bcb1982f-2628-449a-accb-e40ecdefbb3b";
    let container = "55f765a8788dcccb46fae55db15b169605b66df347604a06a4f6ed7c15f879c6";
    for (pid, cgroup) in [(50, format!("0::/kubepods/burstable/pod{uid}/{container}\n")), (60, "0::/\n".into())] {
        std::fs::create_dir_all(proc.path().join(pid.to_string())).unwrap();
        std::fs::write(proc.path().join(format!("{pid}/cgroup")), cgroup).unwrap();
        std::fs::write(proc.path().join(format!("{pid}/comm")), "first\n").unwrap();
    }
    let counts = look.by_peer(&host, &HashMap::new(), &mut Owners::default(), 100, soon()).unwrap();
    let mut rows = Rows::of(counts);
    rows.place(&host, crate::kubelet::pod_places::PodPlaces::of(&host));
    rows.rows[0].names = Names { namespace: "default".into(), pod: "memvol".into(), container: String::new() };
    let mut samples = Samples::new();
    assess(&look, &rows, &mut samples);
    let pod = [SOCKET, "namespace", "", "", uid, "", "default", "memvol", ""];
    assert_eq!(samples.value(&CONNECTIONS, &pod), Some(4.0));
    assert_eq!(samples.value(&CONNECTIONS, &plain("namespace", "60", "first")), Some(2.0));
}

#[test]
fn a_machine_without_a_runtime_has_no_rows() {
    let (_proc, host, look) = look(vec![listener("/run/other.sock")]);
    // Its file is no runtime's either: the root is empty.
    assert!(look.listeners.is_empty() && look.connections.is_empty());
    let counts = look.by_peer(&host, &HashMap::new(), &mut Owners::default(), 100, soon()).unwrap();
    assert!(assessed(&look, counts).rows().is_empty());
    let bare = Host::recorded(Roots::default(), Vec::new());
    let error = Look::take(&bare, &paths(None, &[]), &Namespaces::default(), soon()).unwrap_err();
    assert_eq!(failure(error), None, "nothing was recorded: no failure");
}

#[test]
fn where_sockets_are_looked_for() {
    let all = paths(Some("/run/my.sock".into()), &["/run/named.sock".into(), SOCKET.into()]);
    for path in
        ["/run/my.sock", "/run/named.sock", SOCKET, "/var/run/docker.sock", "/run/k3s/containerd/containerd.sock"]
    {
        assert_eq!(all.iter().filter(|one| *one == path).count(), 1, "{path}");
    }
}
