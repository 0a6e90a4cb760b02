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
    let host = Host::recorded(roots, Vec::new());
    // The machine has a file at this path, and whatever was recorded at inode 77 is bound to it.
    std::fs::create_dir(proc.path().join("run")).unwrap();
    std::fs::write(proc.path().join(&SOCKET[1..]), "").unwrap();
    let file = host.unix_file(SOCKET).unwrap().unwrap().file;
    let unix = unix.into_iter().map(|mut socket| {
        socket.file = socket.file.map(|told| if told.inode == 77 { file } else { told });
        socket
    });
    let host = host.with_sockets(Sockets::recorded(Vec::new(), unix.collect()));
    let look =
        Look::take(&host, &paths(None, &[]), &mut Listed::default(), &Namespaces::default(), &Pods::default(), soon())
            .unwrap();
    (proc, host, look)
}

fn assessed(host: &Host, look: &Look, counts: BTreeMap<(String, Peer), u64>) -> Samples {
    let mut samples = Samples::new();
    assess(look, &Rows::of(counts, host, &Pods::default()), &mut samples);
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
    let counts = look.by_peer(&host, &met, &mut Owners::default(), &Pods::default(), 100, soon()).unwrap();
    let samples = assessed(&host, &look, counts);
    assert_eq!(samples.value(&CONNECTIONS, &plain("process", "7", "agent")), Some(3.0));
    assert_eq!(samples.value(&CONNECTIONS, &plain("none", "", "")), Some(5.0));
    assert_eq!(samples.value(&CONNECTIONS, &plain("unknown", "", "")), Some(1.0));
    assert_eq!(total(&samples), 9.0);
    assert_eq!(samples.value(&BACKLOG, &[SOCKET]), Some(3.0));
    assert_eq!(samples.value(&BACKLOG_LIMIT, &[SOCKET]), Some(4_096.0));
}

#[test]
fn the_largest_are_shown_and_the_sum_is_exact() {
    let (_proc, host, look) = look(vec![listener(SOCKET)]);
    let mut counts: BTreeMap<(String, Peer), u64> =
        (1..=200).map(|pid| (process(pid), if pid > 140 { u64::from(pid) } else { u64::from(pid) / 2 })).collect();
    counts.insert((SOCKET.to_owned(), Peer::None), 1);
    let samples = assessed(&host, &look, counts);
    assert_eq!(samples.value(&CONNECTIONS, &plain("process", "200", "agent")), Some(200.0));
    // The sixtieth that an alert tells of is shown, though there are places for fifty; the next is not.
    assert_eq!(samples.value(&CONNECTIONS, &plain("process", "141", "agent")), Some(141.0));
    assert_eq!(samples.value(&CONNECTIONS, &plain("process", "140", "agent")), None);
    assert_eq!(samples.value(&CONNECTIONS, &plain("none", "", "")), Some(1.0), "however few");
    let others: u32 = (1..=140).map(|pid| pid / 2).sum();
    assert_eq!(samples.value(&CONNECTIONS, &plain("other", "", "")), Some(f64::from(others)));
    assert_eq!(samples.dropped(), 140);
}

fn process(pid: u32) -> (String, Peer) {
    (SOCKET.to_owned(), Peer::Process { pid, comm: "agent".into() })
}

#[test]
fn a_pod_takes_its_own_rows_and_no_others() {
    let (proc, host, mut look) = look(vec![listener(SOCKET)]);
    let uid = |pod: u32| format!("11111111-2222-4333-8444-{pod:012}");
    let of_pod = |pid: u32, pod: u32| {
        std::fs::create_dir_all(proc.path().join(pid.to_string())).unwrap();
        let cgroup = format!("0::/kubepods/besteffort/pod{}/{}\n", uid(pod), "c".repeat(64));
        std::fs::write(proc.path().join(format!("{pid}/cgroup")), cgroup).unwrap();
    };
    // Fifty namespaces of one pod, sixty processes on the host's network of another, a hundred pods with one each.
    (1..=50).for_each(|pid| of_pod(pid, 1));
    (100..160).for_each(|pid| of_pod(pid, 2));
    (200..300).for_each(|pid| of_pod(pid, pid));
    (400..=401).for_each(|pid| of_pod(pid, pid));
    look.elsewhere = (1..=50).chain(200..300).map(|pid| ((SOCKET.to_owned(), pid), 111)).collect();
    look.elsewhere.insert((SOCKET.to_owned(), 400), 110);
    let mut counts =
        look.by_peer(&host, &HashMap::new(), &mut Owners::default(), &Pods::default(), 100, soon()).unwrap();
    counts.extend((100..160).map(|pid| (process(pid), 500)));
    counts.insert(process(401), 100);
    counts.insert(process(900), 3);
    let mut samples = Samples::new();
    let rows = Rows::of(counts.clone(), &host, &Pods::default());
    assess(&look, &rows, &mut samples);
    let all: u64 = counts.values().sum();
    assert_eq!(total(&samples), all as f64, "the sum is exact");
    let of = |pod: u32| [SOCKET, "namespace", "", "", &uid(pod), "", "", "", ""].map(str::to_owned);
    let value = |labels: [String; 9]| samples.value(&CONNECTIONS, &labels.each_ref().map(String::as_str));
    assert_eq!((value(of(400)), value(of(1))), (Some(110.0), Some(50.0 * 111.0)), "one row of a pod");
    let container = "c".repeat(64);
    let victim = [SOCKET, "process", "401", "agent", &uid(401), &container, "", "", ""];
    assert_eq!(samples.value(&CONNECTIONS, &victim), Some(100.0));
    assert_eq!(
        samples.value(&CONNECTIONS, &plain("process", "900", "agent")),
        Some(3.0),
        "the node's own, however small"
    );
    assert!((200..300).all(|pod| value(of(pod)) == Some(111.0)), "each would be told of");
    let evil = rows.rows.iter().filter(|row| row.place.as_ref().is_some_and(|place| place.pod_uid == uid(2))).count();
    let lost: Vec<_> = look.left_out_of_pods(&rows).map(|(uid, count)| (uid.clone(), count)).collect();
    assert_eq!((evil, lost), (MOST_OF_POD, vec![(uid(2), 60 - MOST_OF_POD as u64)]));
}

#[test]
fn a_socket_is_the_runtimes_by_its_file() {
    let tenants = |socket: UnixSocket, inode| UnixSocket { file: Some(UnixFile { device: (0, 99), inode }), ..socket };
    // In a mount namespace of its own, a tenant on the host's network has a listener at this path, connections to that,
    // and clients that it bound to the path before they connected to a victim.
    let mut unix = vec![tenants(listener(SOCKET), 5), listener(SOCKET)];
    unix.extend((10..130).map(|n| tenants(socket(n, Some(7_000), SOCKET), 5)));
    unix.extend((200..320).map(|n| tenants(socket(n, Some(8_000), SOCKET), n as u32)));
    unix.push(UnixSocket { file: None, ..socket(400, Some(8_000), SOCKET) });
    unix.push(socket(500, Some(9_000), SOCKET));
    let (_proc, _host, look) = look(unix);
    assert_eq!(look.listeners, BTreeMap::from([(SOCKET.to_owned(), Backlog { waiting: 3, limit: 4_096 })]));
    assert_eq!(look.clients(), HashSet::from([9_000]));
    assert!(look.unproven.is_none());
}

#[test]
fn a_path_without_a_file_is_nobodys() {
    let path = "/run/crio/crio.sock";
    let file = Some(UnixFile { device: (0, 25), inode: 78 });
    let unix = [listener(path), socket(2, Some(5), path)].map(|socket| UnixSocket { file, ..socket });
    let (proc, host, look) = look(unix.to_vec());
    assert!(look.listeners.is_empty() && look.connections.is_empty() && look.unproven.is_none());
    // Nor is a file that cannot be reached, which is said.
    std::fs::write(proc.path().join("run/crio"), "no directory").unwrap();
    std::os::unix::fs::symlink("crio.sock", proc.path().join("run/loop")).unwrap();
    std::os::unix::fs::symlink("loop", proc.path().join("run/crio.sock")).unwrap();
    let looping = "/run/loop".to_owned();
    let host = host.with_sockets(Sockets::recorded(Vec::new(), vec![listener(&looping)]));
    let paths = paths(Some(looping), &[]);
    let look =
        Look::take(&host, &paths, &mut Listed::default(), &Namespaces::default(), &Pods::default(), soon()).unwrap();
    assert!(look.listeners.is_empty() && look.unproven.is_some(), "{:?}", look.unproven);
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
    let counts = look.by_peer(&host, &HashMap::new(), &mut Owners::default(), &Pods::default(), 100, soon()).unwrap();
    let mut rows = Rows::of(counts, &host, &Pods::default());
    let row = rows.rows.iter_mut().find(|row| row.place.is_some()).unwrap();
    row.names = Names { namespace: "default".into(), pod: "memvol".into(), container: String::new() };
    let mut samples = Samples::new();
    assess(&look, &rows, &mut samples);
    let pod = [SOCKET, "namespace", "", "", uid, "", "default", "memvol", ""];
    assert_eq!(samples.value(&CONNECTIONS, &pod), Some(4.0));
    assert_eq!(samples.value(&CONNECTIONS, &plain("namespace", "60", "first")), Some(2.0));
}

#[test]
fn a_machine_without_a_runtime_has_no_rows() {
    let mut other = listener("/run/other.sock");
    other.file = Some(UnixFile { device: (0, 25), inode: 78 });
    let (_proc, host, look) = look(vec![other]);
    // Its file is no runtime's either: the root is empty.
    assert!(look.listeners.is_empty() && look.connections.is_empty());
    let counts = look.by_peer(&host, &HashMap::new(), &mut Owners::default(), &Pods::default(), 100, soon()).unwrap();
    assert!(assessed(&host, &look, counts).rows().is_empty());
    let bare = Host::recorded(Roots::default(), Vec::new());
    let error =
        Look::take(&bare, &paths(None, &[]), &mut Listed::default(), &Namespaces::default(), &Pods::default(), soon())
            .unwrap_err();
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

#[test]
fn where_there_are_very_many_they_are_listed_less_often() {
    let host = |count: u64| {
        let unix = (0..count).map(|cookie| socket(10 + cookie, Some(1), SOCKET)).collect();
        Host::recorded(Roots::default(), Vec::new()).with_sockets(Sockets::recorded(Vec::new(), unix))
    };
    let listener = socket(1, None, SOCKET);
    let counts = |first: u64, second: u64, listeners: [&[UnixSocket]; 2]| {
        let mut listed = Listed::default();
        let one = listed.served_by(&host(first), listeners[0], soon()).unwrap().len();
        (one, listed.served_by(&host(second), listeners[1], soon()).unwrap().len())
    };
    let same = [std::slice::from_ref(&listener); 2];
    assert_eq!(counts(3, 4, same), (3, 4), "each time on a usual node");
    let many = FEW as u64 + 1;
    assert_eq!(counts(many, 4, same), (FEW + 1, FEW + 1));
    let restarted = UnixSocket { cookie: 2, ..listener.clone() };
    assert_eq!(counts(many, 4, [same[0], &[restarted]]), (FEW + 1, 4), "a daemon that was restarted");
}
