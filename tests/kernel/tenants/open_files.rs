//! Mode `open_files`.
#![allow(clippy::disallowed_methods, reason = "tests make the files that the library may only read through `host`")]
#![allow(clippy::print_stdout, reason = "how a helper answers")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use headroom::host::{Deadline, Host, Roots};
use headroom::metric::Samples;
use headroom::modes::{Collector, Context, Settings, open_files};
use headroom::services::Services;
use headroom::verdict::{History, Limits, judge};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

use crate::common;
use crate::common::helper::{self, Helper};
use crate::common::hierarchies::{PURE_V2, V1, v2};

const HELPER: &str = concat!(module_path!(), "::helper");
const AS_NOBODY: [&str; 4] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
const EVIL: &str = "11111111-2222-4333-8444-00000000ef11";
const VICTIM: &str = "11111111-2222-4333-8444-000000000001";

/// Cgroups of pods, in every hierarchy that a process is in; removed with the test.
struct Pods {
    tops: Vec<PathBuf>,
    _lock: File,
}

impl Pods {
    fn new() -> Self {
        let lock = common::machine_lock();
        let roots = if *PURE_V2 { vec![v2()] } else { vec![V1, v2()] };
        let roots = roots.into_iter().filter(|root| Path::new(root).join("cgroup.procs").exists());
        let name = format!("headroom-tenants-{}", common::unique());
        Pods { tops: roots.map(|root| Path::new(root).join(&name)).collect(), _lock: lock }
    }

    fn take(&self, uid: &str, pid: u32) {
        for top in &self.tops {
            let container = top.join("kubepods/burstable").join(format!("pod{uid}")).join("c".repeat(64));
            fs::create_dir_all(&container).unwrap();
            fs::write(container.join("cgroup.procs"), pid.to_string()).unwrap();
        }
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        for top in &self.tops {
            for _ in 0..200 {
                let _ = Command::new("find").arg(top).args(["-depth", "-type", "d", "-delete"]).output();
                if !top.exists() {
                    break;
                }
                // What was killed is in it a moment longer.
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

fn mode(change: impl FnOnce(&mut open_files::Settings)) -> Box<dyn Collector> {
    let mut settings = Settings::default();
    change(&mut settings.open_files);
    (open_files::MODE.build)(&settings, &Services::default())
}

fn collect(mode: &dyn Collector) -> Samples {
    let host = Host::new(Roots::default());
    let mut samples = mode.collect(Context::new(&host, Deadline::after(Duration::from_secs(60)))).unwrap();
    samples.refuse_duplicates();
    samples.refuse_undeclared(open_files::MODE.metrics);
    assert!(samples.errors().is_empty(), "{:?}", samples.errors());
    samples
}

/// Labels of the alerts that fire when each of ten minutes looks like one of these, in turn.
fn alerts(pages: &[Samples], alert: &str) -> Vec<BTreeMap<String, String>> {
    alerts_with(pages, alert, &[])
}

/// The same, were these series of another value.
fn alerts_with(pages: &[Samples], alert: &str, other: &[(&str, f64)]) -> Vec<BTreeMap<String, String>> {
    let mut history = History::new("node-a", Limits { pages: 1_000, ..Limits::default() });
    let at = |step: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + step * 30);
    for (step, page) in (0..=20).zip(pages.iter().cycle()) {
        let rows = page.rows().iter().map(|row| {
            let labels = row.metric.labels.iter().copied().zip(row.labels.iter().map(|value| &**value));
            let labels: Vec<(&str, &str)> = labels.filter(|(_, value)| !value.is_empty()).collect();
            let value = other.iter().find(|(name, _)| *name == row.metric.name).map_or(row.value, |(_, value)| *value);
            (row.metric.name, labels, value)
        });
        history.add_rows(at(step), rows);
    }
    let verdicts = judge(&history, at(20), [(open_files::MODE.id, [].as_slice())]);
    let findings = verdicts.into_iter().flat_map(|verdict| verdict.findings);
    findings.filter(|finding| finding.alert == alert).map(|finding| finding.labels).collect()
}

fn pids_of(alerts: &[BTreeMap<String, String>]) -> BTreeSet<u32> {
    alerts.iter().filter_map(|labels| labels.get("pid")?.parse().ok()).collect()
}

fn shown(samples: &Samples) -> BTreeSet<u32> {
    let rows = samples.rows().iter().filter(|row| row.metric.name == "headroom_process_open_fds");
    rows.map(|row| row.labels[0].parse().unwrap()).collect()
}

/// What a helper does. As a test without a role it does nothing.
#[test]
fn helper() {
    let Some((role, target)) = helper::role() else { return };
    let mut held: Vec<Box<dyn std::any::Any>> = Vec::new();
    match role.as_str() {
        "files" => {
            let (files, limit) = target.split_once(' ').unwrap();
            let (files, limit) = (files.parse::<u64>().unwrap(), limit.parse::<u64>().unwrap());
            let set = |limit| {
                let now = rustix::process::Rlimit { current: Some(limit), maximum: Some(limit) };
                rustix::process::setrlimit(rustix::process::Resource::Nofile, now).unwrap();
            };
            set(limit.max(files + 20));
            held.extend((0..files).map(|_| Box::new(File::open("/dev/null").unwrap()) as Box<dyn std::any::Any>));
            set(limit);
        }
        "client" => {
            held.extend((0..110).map(|_| Box::new(UnixStream::connect(&target).unwrap()) as Box<dyn std::any::Any>))
        }
        // Binds clients to a path that is the runtime's elsewhere, and connects them to what has an abstract name; and
        // listens at the path, and connects to that.
        "impostor" => {
            let (path, server) = target.split_once(' ').unwrap();
            let own = server.is_empty().then(|| {
                let name = format!("headroom-{}", std::process::id());
                let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
                rustix::net::bind(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap()).unwrap();
                rustix::net::listen(&socket, 4_096).unwrap();
                (name, socket)
            });
            let server = own.as_ref().map_or(server, |(name, _)| name);
            let server = SocketAddrUnix::new_abstract_name(server.as_bytes()).unwrap();
            let name = SocketAddrUnix::new(path).unwrap();
            for _ in 0..111 {
                let client = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
                rustix::net::bind(&client, &name).unwrap();
                rustix::net::connect(&client, &server).unwrap();
                fs::remove_file(path).unwrap();
                held.push(Box::new(client));
                if let Some((_, socket)) = &own {
                    held.push(Box::new(rustix::net::accept(socket).unwrap()));
                }
            }
            if own.is_none() {
                let listener = UnixListener::bind(path).unwrap();
                for _ in 0..111 {
                    held.push(Box::new(UnixStream::connect(path).unwrap()));
                    held.push(Box::new(listener.accept().unwrap()));
                }
                held.push(Box::new(listener));
            }
        }
        // Watches so many files, and moves its fd to another number whenever it is told.
        "watches" => {
            use rustix::fs::inotify;
            let instance = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
            let folder = folder();
            for number in 0..target.parse::<u32>().unwrap() {
                let file = folder.path().join(number.to_string());
                fs::write(&file, "").unwrap();
                inotify::add_watch(&instance, &file, inotify::WatchFlags::DELETE_SELF).unwrap();
            }
            println!("\nready");
            let mut moved = instance;
            while let Ok(1) = std::io::stdin().read(&mut [0]) {
                // Copied before the old one is closed: never the same number again.
                moved = rustix::io::fcntl_dupfd_cloexec(&moved, rustix::fd::AsRawFd::as_raw_fd(&moved) + 1).unwrap();
                println!("ready");
            }
        }
        // Someone whom anybody may connect to.
        "server" => {
            let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
            let name = SocketAddrUnix::new_abstract_name(target.as_bytes()).unwrap();
            rustix::net::bind(&socket, &name).unwrap();
            rustix::net::listen(&socket, 4_096).unwrap();
            println!("\nready");
            loop {
                held.push(Box::new(rustix::net::accept(&socket).unwrap()));
            }
        }
        _ => panic!("no such role: {role}"),
    }
    println!("\nready");
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().read(&mut [0]);
}

fn holding(before: &[&str], role: &str, target: &str) -> Helper {
    let mut helper = Helper::start(HELPER, before, role, target);
    helper.ready();
    helper
}

/// A process of uid 65534 with so many files of so many that it may have.
fn near(files: usize, limit: u64) -> Helper {
    holding(&AS_NOBODY, "files", &format!("{files} {limit}"))
}

/// A process that has only a name.
struct Named(Child);

impl Named {
    fn new(program: &Path) -> Self {
        let mut command = Command::new("setpriv");
        command.args(&AS_NOBODY[1..]).arg(program).arg("600");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let comm = format!("/proc/{}/comm", child.id());
        common::eventually("it has its name", || fs::read_to_string(&comm).is_ok_and(|comm| comm == "kubelet\n"));
        Named(child)
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A folder that anybody may look into.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

#[test]
fn small_limits_and_names_of_daemons_hide_no_process_near_its_limit() {
    alone!();
    if !common::is_root() {
        skip!("not root: cannot make cgroups");
    }
    let (pods, folder) = (Pods::new(), folder());
    let kubelet = folder.path().join("kubelet");
    fs::copy("/bin/sleep", &kubelet).unwrap();
    let mode = mode(|settings| settings.top = 3);
    // Limits that alerts leave out, in no pod and in one; and one pod that is nearer its limits than anybody.
    let locked: Vec<Helper> = [1, 1, 1, 1, 200, 200, 200, 200].map(|limit| near(250, limit)).into();
    let evil: Vec<Helper> = (0..12).map(|_| near(400, 400)).collect();
    locked.iter().skip(2).chain(&evil).for_each(|helper| pods.take(EVIL, helper.pid()));
    let fakes: Vec<Named> = (0..40).map(|_| Named::new(&kubelet)).collect();
    fakes.iter().for_each(|fake| pods.take(EVIL, fake.0.id()));
    let (of_pod, of_node, daemon) = (near(280, 300), near(270, 300), Named::new(&kubelet));
    pods.take(VICTIM, of_pod.pid());

    let threads = || common::threads_at_work(std::process::id());
    let fds = || fs::read_dir("/proc/self/fd").unwrap().count();
    collect(&*mode);
    let before = (threads(), fds());
    let pages: Vec<Samples> = (0..4).map(|_| collect(&*mode)).collect();
    // One that answered may still be on its way out when they are counted first.
    let no_more = || threads() <= before.0 && fds() <= before.1;
    common::eventually("no more threads and descriptors than before", no_more);
    for page in &pages {
        let shown = shown(page);
        for victim in [of_pod.pid(), of_node.pid(), daemon.0.id()] {
            assert!(shown.contains(&victim), "{victim} is not among {shown:?}");
        }
        assert!(locked.iter().all(|helper| !shown.contains(&helper.pid())) || shown.len() < 40);
        let fakes = fakes.iter().filter(|fake| shown.contains(&fake.0.id())).count();
        assert!(fakes <= 3, "{fakes} of one pod are shown for their name");
        let lost: Vec<_> = page.dropped_by().pods.iter().map(|(pod, count)| (&*pod.uid, *count)).collect();
        assert_eq!((page.dropped_by().node, lost), (0, vec![(EVIL, 12 - 8)]));
    }
    let paged = alerts(&pages, "HeadroomProcessNearFdLimit");
    let pids = pids_of(&paged);
    assert!(pids.contains(&of_pod.pid()) && pids.contains(&of_node.pid()), "{paged:#?}");
    let of_victim = paged.iter().find(|labels| labels["pid"] == of_pod.pid().to_string()).unwrap();
    assert_eq!(of_victim["pod_uid"], VICTIM);
}

/// A stand-in for the daemon: accepts everything and keeps it.
fn serve(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept() {
            held.push(stream);
        }
    });
}

fn connections(samples: &Samples, socket: &Path) -> BTreeMap<(String, String, String), f64> {
    let rows = samples.rows().iter().filter(|row| row.metric.name == "headroom_runtime_socket_connections");
    let rows = rows.filter(|row| *row.labels[0] == *socket.to_str().unwrap());
    // Peer, pid, uid of the pod.
    rows.map(|row| ([1, 2, 4].map(|at| row.labels[at].to_string()).into(), row.value)).collect()
}

#[test]
fn sockets_by_the_runtimes_name_blame_nobody_and_hide_no_leak() {
    alone!();
    if !common::is_root() {
        skip!("not root: cannot make cgroups");
    }
    let (pods, folder) = (Pods::new(), folder());
    let path = folder.path().join("docker.sock");
    serve(&path);
    let socket = path.to_str().unwrap();
    let mode = mode(|settings| settings.runtime_sockets = vec![socket.to_owned()]);
    let mount = format!("mount -t tmpfs tmpfs {} && exec \"$@\"", folder.path().display());
    let tenant = |namespaces: &str, target: &str| {
        let own = ["unshare", namespaces, "sh", "-c", &mount, "sh"];
        holding(&[&AS_NOBODY[..], &own].concat(), "impostor", &format!("{socket} {target}"))
    };
    let (leaker, framed) = (holding(&AS_NOBODY, "client", socket), holding(&AS_NOBODY, "server", "headroom-framed"));
    pods.take(VICTIM, leaker.pid());
    // On the host's network: bound to the path, connected to someone else; and a listener of its own at the path.
    let on_the_host = tenant("-Urm", "headroom-framed");
    pods.take(EVIL, on_the_host.pid());
    // In sixty networks of its own.
    let elsewhere: Vec<Helper> = (0..60).map(|_| tenant("-Urmn", "")).collect();
    elsewhere.iter().for_each(|helper| pods.take(EVIL, helper.pid()));

    let pages: Vec<Samples> = (0..4).map(|_| collect(&*mode)).collect();
    let of = |peer: &str, pid: &str, uid: &str| (peer.to_owned(), pid.to_owned(), uid.to_owned());
    for page in &pages {
        let lost: u64 = page.dropped_by().pods.iter().map(|(_, count)| count).sum();
        // Emulated processors may not get into every namespace in the time that there is, and that is told.
        assert!(lost == 0 || common::vm::inside(), "{lost}");
        let expected = BTreeMap::from([
            (of("process", &leaker.pid().to_string(), VICTIM), 110.0),
            (of("namespace", "", EVIL), (60 - lost) as f64 * 111.0),
        ]);
        assert_eq!(connections(page, &path), expected, "{lost} left out");
    }
    let alerts = alerts(&pages, "HeadroomRuntimeSocketClientLeak");
    assert!(alerts.iter().any(|labels| labels.get("pod_uid").is_some_and(|uid| uid == VICTIM)), "{alerts:#?}");
    assert!(!pids_of(&alerts).contains(&framed.pid()), "{alerts:#?}");
}

#[test]
fn many_fds_do_not_put_off_the_naming_of_a_leak() {
    alone!();
    if !common::is_root() {
        skip!("not root: cannot make cgroups");
    }
    let (pods, folder) = (Pods::new(), folder());
    let path = folder.path().join("docker.sock");
    serve(&path);
    let socket = path.to_str().unwrap();
    // Few have very many, and many have some; all with lower pids.
    let evil: Vec<Helper> = (0..25).map(|number| near(if number < 5 { 5_000 } else { 150 }, 10_000)).collect();
    evil.iter().for_each(|helper| pods.take(EVIL, helper.pid()));
    let leaker = holding(&AS_NOBODY, "client", socket);
    pods.take(VICTIM, leaker.pid());
    assert!(evil.iter().all(|helper| helper.pid() < leaker.pid()));
    // A hundredth of the defaults, and nothing is met by the way.
    let mode = mode(|settings| {
        settings.runtime_sockets = vec![socket.to_owned()];
        (settings.socket_max_readlinks, settings.max_readlinks, settings.top) = (150, 0, 0);
    });
    let name = ("process".to_owned(), leaker.pid().to_string(), VICTIM.to_owned());
    let scrapes = (1..=40).find(|_| connections(&collect(&*mode), &path).get(&name) == Some(&110.0));
    assert!(scrapes.is_some_and(|scrapes| scrapes <= 15), "{scrapes:?} scrapes");
}

#[test]
fn an_inotify_fd_that_moves_hides_nobodys_watches() {
    const USER: u32 = 64_322;
    alone!();
    if !common::is_root() {
        skip!("not root: cannot make cgroups");
    }
    let pods = Pods::new();
    let user = ["setpriv", &format!("--reuid={USER}"), &format!("--regid={USER}"), "--clear-groups"];
    // More than one look at an unknown fd reads, of the victim and of the tenant, which are the same user.
    let (victim, mut tenant) = (holding(&user, "watches", "3500"), holding(&user, "watches", "3000"));
    pods.take(VICTIM, victim.pid());
    pods.take(EVIL, tenant.pid());
    let mode = mode(|_| {});
    let uid = USER.to_string();
    let of = |page: &Samples, name: &str| {
        let row = page.rows().iter().find(|row| row.metric.name == name && *row.labels[0] == *uid);
        row.map(|row| row.value)
    };
    let all = |page: &Samples| of(page, "headroom_inotify_watches") == Some(6_500.0);
    common::eventually("all are known", || all(&collect(&*mode)));
    let mut pages = Vec::new();
    for _ in 0..21 {
        tenant.0.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        tenant.ready();
        let page = collect(&*mode);
        assert!(
            all(&page) && of(&page, "headroom_inotify_instances") == Some(2.0),
            "{:?}",
            of(&page, "headroom_inotify_watches")
        );
        assert_eq!(page.dropped_by().node, 0);
        pages.push(page);
    }
    // A user whom so many bring near the limit: this machine's is another one.
    let limits = [("headroom_inotify_watches_limit", 7_000.0)];
    let alerts = alerts_with(&pages, "HeadroomInotifyWatchesNearLimit", &limits);
    assert!(alerts.iter().any(|labels| labels["uid"] == uid), "{alerts:#?}");
}
