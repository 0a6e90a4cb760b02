use super::*;
use crate::host::Roots;

fn argv(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

#[test]
fn command_lines_of_kubelets() {
    for line in [
        "/usr/bin/kubelet --config=/x",
        "kubelet",
        "/bin/sh /usr/bin/kubelet --config=/x",
        "bash -x ./kubelet --config=/x",
        "/hyperkube kubelet --config=/x",
        "hyperkube /usr/local/bin/kubelet",
    ] {
        assert!(is_kubelet(&argv(line)), "{line}");
    }
    for line in ["", "vim kubelet", "sh -c kubelet", "hyperkube apiserver", "kubelet-wrapper", "/opt/kubelet/run", "sh"]
    {
        assert!(!is_kubelet(&argv(line)), "{line}");
    }
    assert!(!is_kubelet(&[]));
    assert_eq!(arguments(&argv("/bin/sh /usr/bin/kubelet --a --b")), ["--a", "--b"]);
    assert_eq!(arguments(&argv("/hyperkube kubelet --a")), ["--a"]);
    assert_eq!(arguments(&argv("kubelet --a")), ["--a"]);
    assert!(arguments(&argv("kubelet")).is_empty());
}

/// A procfs of these processes: pid, parent, name, arguments.
fn procfs(processes: &[(u32, u32, &str, &str)]) -> (tempfile::TempDir, Host) {
    let dir = tempfile::tempdir().unwrap();
    for &(pid, parent, comm, line) in processes {
        let at = dir.path().join(pid.to_string());
        std::fs::create_dir(&at).unwrap();
        std::fs::write(at.join("comm"), format!("{comm}\n")).unwrap();
        std::fs::write(at.join("stat"), format!("{pid} ({comm}) S {parent} 1 1")).unwrap();
        let line = if line.is_empty() { String::new() } else { line.replace(' ', "\0") + "\0" };
        std::fs::write(at.join("cmdline"), line).unwrap();
    }
    let host = Host::new(Roots { proc: dir.path().into(), ..Roots::default() });
    (dir, host)
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(5))
}

#[test]
fn of_several_the_oldest_that_is_nobodys_child() {
    let (_dir, host) = procfs(&[
        (1, 0, "systemd", "/sbin/init"),
        (40, 41, "kubelet", "/usr/bin/kubelet --child"),
        (41, 1, "kubelet", "/usr/bin/kubelet --config=/a"),
        (90, 80, "kubelet", "/usr/bin/kubelet --in-a-container"),
        (30, 1, "kubelet", ""),
    ]);
    let found = Finder::default().find(&host, soon(), Instant::now()).unwrap();
    assert_eq!(found.kubelet, Some(KubeletProcess { pid: 41, arguments: vec!["--config=/a".into()], untold: None }));
    assert_eq!(found.passed_over, [PassedOver { pid: 90, comm: "kubelet".into(), why: Why::Another(41) }]);
    assert!(!found.control_plane);
}

#[test]
fn by_its_arguments_only_if_none_has_the_name() {
    let (_dir, host) = procfs(&[(5, 1, "sleep", "kubelet 60"), (7, 1, "kubelet", "/usr/bin/kubelet")]);
    assert_eq!(Finder::default().find(&host, soon(), Instant::now()).unwrap().kubelet.unwrap().pid, 7);
    let (_dir, host) = procfs(&[(5, 1, "hyperkube", "/hyperkube kubelet --v=2"), (7, 1, "vim", "vim kubelet")]);
    let kubelet = Finder::default().find(&host, soon(), Instant::now()).unwrap().kubelet.unwrap();
    assert_eq!((kubelet.pid, kubelet.arguments), (5, vec!["--v=2".to_owned()]));
}

#[test]
fn the_control_plane() {
    for (comm, line, is) in [
        ("kube-apiserver", "kube-apiserver", true),
        ("etcd", "etcd", true),
        ("k3s-server", "/usr/local/bin/k3s server", true),
        ("k3s-agent", "/usr/local/bin/k3s agent", false),
        ("kubelite", "/snap/microk8s/1/kubelite --start-control-plane=true", true),
        ("kubelite", "/snap/microk8s/1/kubelite --start-control-plane=false", false),
        ("microshift", "microshift run", true),
        ("kube-scheduler", "kube-scheduler", false),
    ] {
        let (_dir, host) = procfs(&[(5, 1, comm, line)]);
        assert_eq!(Finder::default().find(&host, soon(), Instant::now()).unwrap().control_plane, is, "{line}");
    }
}

#[test]
fn who_keeps_the_clusters_data() {
    let (dir, host) = procfs(&[
        (5, 1, "kube-apiserver", "kube-apiserver"),
        (6, 1, "etcd", "etcd --data-dir=/main"),
        (7, 1, "etcd", "etcd --data-dir=/events"),
        (8, 1, "etcd", "etcd --data-dir=/of-a-pod"),
        (9, 1, "k3s-agent", "k3s agent"),
    ]);
    for pid in 5..10 {
        let pod = "/kubepods/burstable/pod11111111-2222-3333-4444-555555555555/x";
        stand(&dir, pid, 0, if pid == 8 { pod } else { "/system.slice/x.service" });
    }
    let of = |host: &Host| {
        let found = Finder::default().find(host, soon(), Instant::now()).unwrap();
        found.datastores.into_iter().map(|one| (one.pid, one.comm, one.started)).collect::<Vec<_>>()
    };
    assert_eq!(of(&host), [(6, "etcd".to_owned(), 1006), (7, "etcd".to_owned(), 1007)]);
    let (dir, host) = procfs(&[(9, 1, "k3s-server", "k3s server")]);
    stand(&dir, 9, 0, "/system.slice/k3s.service");
    assert_eq!(of(&host), [(9, "k3s-server".to_owned(), 1009)]);
}

/// Whatever its pid: a pod's processes may be older than the kubelet that was restarted.
#[test]
fn who_is_in_a_pod_or_a_container_is_not_the_nodes() {
    let (dir, host) = procfs(&[
        (20, 1, "kubelet", "kubelet --config=/of-a-pod"),
        (21, 1, "kubelet", "kubelet --config=/of-a-container"),
        (22, 1, "k3s-server", "k3s server"),
        (23, 1, "etcd", "etcd"),
        (24, 1, "sh", "sh /usr/bin/kubelet"),
        (41, 1, "kubelet", "kubelet --config=/own"),
    ]);
    let stand = |pid: u32, pids: &str, cgroup: &str| {
        let status = format!("Name:\tx\nUid:\t0\t0\t0\t0\nNSpid:\t{pids}\nNSpgid:\t1\n");
        std::fs::write(dir.path().join(format!("{pid}/status")), status).unwrap();
        std::fs::write(dir.path().join(format!("{pid}/cgroup")), format!("0::{cgroup}\n")).unwrap();
    };
    let pod = "/kubepods/besteffort/pod11111111-2222-3333-4444-555555555555/x";
    for pid in [20, 22, 23, 24] {
        stand(pid, &pid.to_string(), pod);
    }
    stand(21, "21\t1", "/docker/x");
    stand(41, "41", "/system.slice/kubelet.service");
    let find = || Finder::default().find(&host, soon(), Instant::now()).unwrap();
    let found = find();
    assert_eq!(found.kubelet.unwrap().arguments, ["--config=/own"]);
    assert_eq!(found.passed_over.iter().map(|passed| passed.pid).collect::<Vec<_>>(), [20, 21, 22]);
    assert!(!found.control_plane);
    // The node's own stops: nobody takes its place.
    std::fs::remove_dir_all(dir.path().join("41")).unwrap();
    assert_eq!(find().kubelet, None);
}

#[test]
fn what_was_found_is_only_looked_at_again() {
    let (dir, host) = procfs(&[(41, 1, "kubelet", "/usr/bin/kubelet --a")]);
    let finder = Finder::default();
    assert_eq!(finder.find(&host, soon(), Instant::now()).unwrap().kubelet.unwrap().pid, 41);
    // One that comes later is not seen while the first is there: no new sweep was made.
    let twin = |pid: u32| {
        let at = dir.path().join(pid.to_string());
        std::fs::create_dir(&at).unwrap();
        std::fs::write(at.join("comm"), "kubelet\n").unwrap();
        std::fs::write(at.join("stat"), format!("{pid} (kubelet) S 1 1 1")).unwrap();
        std::fs::write(at.join("cmdline"), "kubelet\0--b\0").unwrap();
    };
    twin(12);
    assert_eq!(finder.find(&host, soon(), Instant::now()).unwrap().kubelet.unwrap().pid, 41);
    // The first is gone, and another program got its pid.
    std::fs::write(dir.path().join("41/comm"), "bash\n").unwrap();
    let found = finder.find(&host, soon(), Instant::now()).unwrap();
    assert_eq!(found.kubelet, Some(KubeletProcess { pid: 12, arguments: vec!["--b".into()], untold: None }));
}

#[test]
fn no_process_at_all() {
    let (_dir, host) = procfs(&[]);
    assert_eq!(Finder::default().find(&host, soon(), Instant::now()).unwrap(), Found::default());
    let host = Host::new(Roots { proc: "/nonexistent".into(), ..Roots::default() });
    assert_eq!(Finder::default().find(&host, soon(), Instant::now()).unwrap_err().reason(), Reason::Absent);
}

#[test]
fn too_many_processes_for_the_time_left() {
    let (_dir, host) = procfs(&[(5, 1, "kubelet", "kubelet")]);
    let error = Finder::default().find(&host, Deadline::after(Duration::ZERO), Instant::now()).unwrap_err();
    assert_eq!(error.reason(), Reason::Timeout);
}

/// A file of procfs that hangs whoever opens it.
fn hangs(dir: &tempfile::TempDir, path: &str) -> std::path::PathBuf {
    let path = dir.path().join(path);
    let _ = std::fs::remove_file(&path);
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    path
}

/// True if somebody hangs on it; they go on, and read nothing.
fn release(fifo: &Path) -> bool {
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
    rustix::fs::open(fifo, flags, rustix::fs::Mode::empty()).is_ok()
}

fn stand(dir: &tempfile::TempDir, pid: u32, uid: u32, cgroup: &str) {
    let at = dir.path().join(pid.to_string());
    std::fs::write(at.join("status"), format!("Name:\tx\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nNSpid:\t{pid}\n")).unwrap();
    std::fs::write(at.join("cgroup"), format!("0::{cgroup}\n")).unwrap();
    let fields = "0 ".repeat(17);
    std::fs::write(at.join("stat"), format!("{pid} (x) S 1 {fields}{} 0", pid + 1000)).unwrap();
}

const POD: &str = "/kubepods/besteffort/pod11111111-2222-3333-4444-555555555555/x";

/// Neither of those that have the name nor of the others: nobody in a pod and no user is even asked.
#[test]
fn what_is_not_the_nodes_is_never_read() {
    let names = ["kubelet", "k3s-server", "java", "bash"];
    let processes: Vec<_> = (20..).zip(names).map(|(pid, comm)| (pid, 1, comm, "")).collect();
    let users: Vec<_> = (30..).zip(names).map(|(pid, comm)| (pid, 1, comm, "")).collect();
    let own = [(40, 1, "hyperkube", "/hyperkube kubelet --v=2")];
    let (dir, host) = procfs(&[&processes[..], &users, &own].concat());
    processes.iter().for_each(|&(pid, ..)| stand(&dir, pid, 0, POD));
    users.iter().for_each(|&(pid, ..)| stand(&dir, pid, 65534, "/user.slice"));
    stand(&dir, 40, 0, "/system.slice");
    let files = ["cmdline", "environ", "mountinfo", "maps"];
    let others = processes.iter().chain(&users);
    let hanging: Vec<_> =
        others.flat_map(|(pid, ..)| files.map(|file| hangs(&dir, &format!("{pid}/{file}")))).collect();
    let finder = Finder::default();
    for _ in 0..3 {
        let found = finder.find(&host, soon(), Instant::now()).unwrap();
        assert_eq!(found.kubelet.unwrap().arguments, ["--v=2"]);
    }
    assert!(!hanging.iter().any(|fifo| release(fifo)));
}

/// By any name but a shell's: the machine's own java is stuck, and whether there is a kubelet is known all the same.
#[test]
fn one_that_is_stuck_costs_itself_only() {
    let (dir, host) =
        procfs(&[(5, 1, "java", ""), (7, 1, "hyperkube", "/hyperkube kubelet --v=2"), (8, 1, "vim", "vim")]);
    [5, 7, 8].iter().for_each(|&pid| stand(&dir, pid, 0, "/system.slice"));
    let fifo = hangs(&dir, "5/cmdline");
    let finder = Finder::default();
    let found = finder.find(&host, soon(), Instant::now()).unwrap();
    assert_eq!(found.kubelet.unwrap().arguments, ["--v=2"]);
    std::fs::remove_dir_all(dir.path().join("7")).unwrap();
    let began = Instant::now();
    let found = finder.find(&host, soon(), Instant::now()).unwrap();
    assert_eq!(found.kubelet, None);
    assert!(began.elapsed() < Duration::from_millis(900), "{:?}: it is not waited for again", began.elapsed());
    assert!(release(&fifo), "one thread hangs on it");
}

#[test]
fn one_that_may_be_the_kubelet_and_cannot_be_read_is_not_none() {
    for (comm, argv) in [("bash", "bash /usr/bin/kubelet --a"), ("k3s-server", "k3s server")] {
        let (dir, host) = procfs(&[(5, 1, comm, "")]);
        stand(&dir, 5, 0, "/system.slice");
        let fifo = hangs(&dir, "5/cmdline");
        let error = Finder::default().find(&host, soon(), Instant::now()).unwrap_err();
        assert_eq!(error.reason(), Reason::Timeout, "{comm}: {error}");
        assert_eq!(Finder::default().find(&host, soon(), Instant::now()).unwrap_err().reason(), Reason::Busy);
        // It heals.
        assert!(release(&fifo));
        std::fs::remove_file(&fifo).unwrap();
        std::fs::write(&fifo, argv.replace(' ', "\0") + "\0").unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        while Finder::default().find(&host, soon(), Instant::now()).is_err() {
            assert!(Instant::now() < until, "{comm}");
        }
    }
}

#[test]
fn a_stuck_kubelet_is_there_with_what_it_let_us_read_before() {
    let (dir, host) = procfs(&[(41, 1, "kubelet", "kubelet --config=/a")]);
    stand(&dir, 41, 0, "/system.slice");
    let (knows, another) = (Finder::default(), Finder::default());
    let find = |finder: &Finder| finder.find(&host, soon(), Instant::now()).unwrap().kubelet.unwrap();
    assert_eq!(find(&knows).arguments, ["--config=/a"]);
    let fifo = hangs(&dir, "41/cmdline");
    for _ in 0..2 {
        let kubelet = find(&knows);
        assert_eq!((kubelet.pid, kubelet.untold), (41, None));
        assert_eq!(kubelet.arguments, ["--config=/a"]);
        // A new sweep of the same process.
        if let Some(sweep) = &mut *knows.lock() {
            sweep.at = Instant::now().checked_sub(SWEEP_HOLDS).unwrap();
        }
    }
    let kubelet = find(&another);
    assert_eq!(kubelet.pid, 41, "it runs");
    assert!(kubelet.untold.is_some_and(|untold| untold.reason() == Reason::Busy), "what it was told is unknown");
    assert!(release(&fifo));
}
