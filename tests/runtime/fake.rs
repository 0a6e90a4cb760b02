//! The runtime's word on recorded data, and on days when the runtime is not well.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::collections::{BTreeSet, HashMap};
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use headroom::error::Reason;
use headroom::host::{Deadline, Host, Roots};
use headroom::kubelet::handle::{self, Kubelet};
use headroom::kubelet::sources::Overrides;
use headroom::runtime::{ContainerState, Protocol, Runtime, Settings};

use crate::common::fake_runtime::{self, Fake, Raw, Reply, empty, recorded, reply};

const CONTAINERD: &str = "run/containerd/containerd.sock";
const DOCKER: &str = "run/docker.sock";
const ONE: &str = r#"[{"Id":"f00d","Names":["/plain"],"ImageID":"sha256:1","State":"running","Labels":null}]"#;

struct Machine {
    root: tempfile::TempDir,
    host: Host,
    runtime: Runtime,
}

impl Machine {
    fn new() -> Self {
        Self::with(None)
    }

    fn with(endpoint: Option<&str>) -> Self {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(Roots { root: root.path().to_owned(), ..Roots::default() });
        let settings = Settings {
            endpoint: endpoint.map(str::to_owned),
            fresh: Duration::ZERO,
            store_fresh: Duration::ZERO,
            ..Settings::default()
        };
        Machine { root, host, runtime: Runtime::new(settings) }
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.root.path().join(path)
    }

    fn ask(&self) -> headroom::error::Result<std::sync::Arc<headroom::runtime::Inventory>> {
        self.runtime.inventory(&self.host, Deadline::after(Duration::from_secs(20)))
    }

    fn fails(&self) -> Reason {
        self.ask().unwrap_err().reason()
    }

    /// For what would never be answered.
    fn fails_soon(&self) -> Reason {
        let answer = self.runtime.inventory(&self.host, Deadline::after(Duration::from_millis(300)));
        answer.unwrap_err().reason()
    }
}

fn node(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/node").join(name)
}

/// The recorded answers without anything that runs, and one pod.
fn one_pod() -> fake_runtime::Replies {
    let mut replies = empty();
    let pod = fake_runtime::Sandbox { id: "beef".to_owned(), ..Default::default() };
    replies.insert("ListPodSandbox", reply(&fake_runtime::Sandboxes { items: vec![pod] }));
    replies
}

fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn threads() -> usize {
    crate::common::threads_at_work(std::process::id())
}

#[test]
fn recorded_nodes() {
    alone!();
    for (name, static_uid, mountpoint) in [
        (
            "k8s-1.36-cgroupv1",
            "55a0906791c86e41cb268c3f20fa8205",
            "/var/lib/tb/containerd/io.containerd.snapshotter.v1.overlayfs",
        ),
        (
            "k8s-1.36-cgroupv2",
            "8e27217630fd72e184db316e861ccccf",
            "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs",
        ),
    ] {
        let machine = Machine::new();
        let _fake = Fake::start(&machine.path(CONTAINERD), recorded(&node(name).join("cri")));
        let inventory = machine.ask().unwrap();
        assert_eq!(inventory.errors, []);
        let identity = &inventory.identity;
        assert_eq!(
            (identity.protocol, identity.name.as_str(), identity.version.as_str()),
            (Protocol::Cri, "containerd", "1.6.20~ds1")
        );
        let ready = inventory.sandboxes.iter().filter(|sandbox| sandbox.ready).count();
        assert_eq!((inventory.sandboxes.len(), ready), (12, 11));
        let count = |state| inventory.containers.iter().filter(|container| container.state == state).count();
        assert_eq!(
            (inventory.containers.len(), count(ContainerState::Running), count(ContainerState::Exited)),
            (13, 11, 2)
        );
        assert_eq!(inventory.image_filesystems, [mountpoint]);
        // The pause image is in no container's list and not pinned by this containerd: the kubelet's image GC may take
        // it.
        let images = inventory.images.unwrap();
        assert_eq!((images.count, images.bytes, images.unused_bytes), (2, 778_880 + 2_130_562, 778_880));
        let web = inventory.sandboxes.iter().find(|sandbox| sandbox.pod.name == "static-web-tb-node").unwrap();
        assert_eq!(web.pod.uid, static_uid, "the uid that the static pod's cgroup is named by");
        assert!(
            inventory
                .containers
                .iter()
                .all(|container| !container.pod.uid.is_empty() && container.pod.namespace == "default")
        );

        // The same node's cgroups: whatever runs has its directory below its pod's, and the other way round.
        let listing = std::fs::read_to_string(node(name).join("cgroup/kubepods-dirs.txt")).unwrap();
        let leaf = |line: &str| line.rsplit('/').next().unwrap().replace('_', "-");
        let directories: BTreeSet<String> = listing.lines().map(leaf).collect();
        for container in inventory.containers.iter().filter(|container| container.state == ContainerState::Running) {
            assert!(directories.iter().any(|name| name.contains(&container.id)), "{}", container.id);
            assert!(
                directories.iter().any(|name| name.contains(&format!("pod{}", container.pod.uid))),
                "{:?}",
                container.pod
            );
        }
        let known = |name: &str| {
            let containers = inventory.containers.iter().map(|container| &container.id);
            containers.chain(inventory.sandboxes.iter().map(|sandbox| &sandbox.id)).any(|id| name.contains(id.as_str()))
        };
        let leaves =
            directories.iter().filter(|name| name.trim_end_matches(".scope").len() >= 64 && !name.ends_with(".slice"));
        assert_eq!(leaves.filter(|name| !known(name)).count(), 0);
    }
}

#[test]
fn images_in_use_by_id_or_digest_and_pinned_ones_are_kept() {
    alone!();
    let machine = Machine::new();
    let image = |id: &str, digest: &str, size, pinned| fake_runtime::Image {
        id: id.to_owned(),
        repo_digests: vec![digest.to_owned()],
        size,
        pinned,
        ..Default::default()
    };
    let container = |image_ref: &str, image_id: &str| fake_runtime::Container {
        id: format!("{image_ref}{image_id}"),
        image_ref: image_ref.to_owned(),
        image_id: image_id.to_owned(),
        labels: HashMap::from([("io.kubernetes.pod.name".to_owned(), "left".to_owned())]),
        state: 2,
        ..Default::default()
    };
    let mut replies = empty();
    let images = vec![
        image("sha256:1", "a@sha256:a", 1, false),
        image("sha256:2", "b@sha256:b", 10, false),
        image("sha256:3", "c@sha256:c", 100, false),
        image("sha256:4", "d@sha256:d", 1_000, true),
        image("sha256:5", "e@sha256:e", 10_000, false),
    ];
    let containers =
        vec![container("sha256:1", ""), container("b@sha256:b", ""), container("localhost/c:1", "sha256:3")];
    replies.insert("ListImages", reply(&fake_runtime::Images { images }));
    replies.insert("ListContainers", reply(&fake_runtime::Containers { containers }));
    let _fake = Fake::start(&machine.path(CONTAINERD), replies);
    let inventory = machine.ask().unwrap();
    assert_eq!(inventory.images.unwrap().unused_bytes, 10_000);
    assert_eq!(inventory.images.unwrap().bytes, 11_111);
    assert_eq!(inventory.containers[0].pod.name, "left", "the sandbox is gone, the label tells");
}

#[test]
fn ten_thousand_polls_are_one_connection_and_no_descriptor_more() {
    alone!();
    let machine = Machine::new();
    let fake = Fake::start(&machine.path(CONTAINERD), recorded(&node("k8s-1.36-cgroupv1/cri")));
    machine.ask().unwrap();
    let (fds, threads_before) = (open_fds(), threads());
    for _ in 0..10_000 {
        machine.ask().unwrap();
    }
    assert!(
        open_fds() <= fds && threads() <= threads_before,
        "{fds} {threads_before}, then {} {}",
        open_fds(),
        threads()
    );
    assert_eq!(fake.accepted(), 1);
    assert_eq!(fake.calls(), 1 + 4 * 10_001, "the version is asked once");
}

#[test]
fn one_poll_serves_all_who_ask_at_once() {
    alone!();
    let machine = Machine::new();
    let fake = Fake::start(&machine.path(CONTAINERD), one_pod());
    let runtime = Runtime::new(Settings { fresh: Duration::from_secs(60), ..Settings::default() });
    let ask = || runtime.inventory(&machine.host, Deadline::after(Duration::from_secs(20)));
    let answers: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect()
    });
    assert!(answers.iter().all(|answer| std::sync::Arc::ptr_eq(answer, &answers[0])));
    assert_eq!(fake.calls(), 5);

    // An error is shared as well.
    let runtime = Runtime::new(Settings { fresh: Duration::from_secs(60), ..Settings::default() });
    fake.set("ListContainers", Reply::Status(7));
    let ask = || runtime.inventory(&machine.host, Deadline::after(Duration::from_secs(20)));
    std::thread::scope(|scope| {
        for thread in (0..8).map(|_| scope.spawn(ask)).collect::<Vec<_>>() {
            assert_eq!(thread.join().unwrap().unwrap_err().reason(), Reason::Denied);
        }
    });
    assert_eq!(fake.calls(), 5 + 3);
}

#[test]
fn an_answer_no_older_than_a_moment() {
    alone!();
    let machine = Machine::new();
    let fake = Fake::start(&machine.path(CONTAINERD), one_pod());
    let runtime = Runtime::new(Settings { fresh: Duration::from_secs(60), ..Settings::default() });
    let soon = || Deadline::after(Duration::from_secs(20));
    let start = Instant::now();
    let first = runtime.inventory(&machine.host, soon()).unwrap();
    let same = runtime.inventory_since(&machine.host, soon(), start).unwrap();
    assert!(std::sync::Arc::ptr_eq(&first, &same) && fake.calls() == 5, "young enough");
    let later = runtime.inventory_since(&machine.host, soon(), Instant::now()).unwrap();
    assert!(!std::sync::Arc::ptr_eq(&first, &later) && fake.calls() == 7, "asked again, but not for the images");
    let shared = runtime.inventory(&machine.host, soon()).unwrap();
    assert!(std::sync::Arc::ptr_eq(&later, &shared), "and that serves the others");
}

#[test]
fn whatever_the_socket_does_costs_an_error_and_nothing_else() {
    alone!();
    let machine = Machine::new();
    let path = machine.path(CONTAINERD);
    // The first tokio runtime of a process opens what all of them share.
    drop(tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap());
    let fds = open_fds();
    {
        let _silent = Raw::start(&path, |stream| {
            // Reads, so that the peer's end is noticed, and never says a word.
            let _ = std::io::copy(&mut { stream }, &mut std::io::sink());
        });
        let began = Instant::now();
        for _ in 0..5 {
            assert_eq!(machine.fails_soon(), Reason::Timeout);
        }
        assert!(began.elapsed() < Duration::from_secs(10), "each within its deadline of 0.3 s");
    }
    {
        // Listens, accepts nobody, and its queue is full.
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};
        let listener = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        listen(&listener, 0).unwrap();
        let reasons: BTreeSet<_> = (0..4).map(|_| machine.fails_soon()).collect();
        assert_eq!(reasons, BTreeSet::from([Reason::Timeout, Reason::Busy]));
        std::fs::remove_file(&path).unwrap();
    }
    for garbage in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], &[0xff; 100_000]] {
        let _garbage = Raw::start(&path, move |mut stream| {
            let _ = stream.write_all(garbage);
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        });
        assert_eq!(machine.fails(), Reason::Malformed);
    }
    {
        let _closing = Raw::start(&path, drop);
        assert_eq!(machine.fails(), Reason::Io);
    }
    let fake = Fake::start(&path, one_pod());
    for (reply, reason) in [
        (Reply::Never, Reason::Timeout),
        (Reply::Huge(50 << 20), Reason::Malformed),
        (Reply::Message(vec![0xff; 1_000]), Reason::Malformed),
        (Reply::Status(7), Reason::Denied),
        (Reply::Status(14), Reason::Busy),
        (Reply::Status(2), Reason::Io),
    ] {
        fake.set("ListContainers", reply.clone());
        let failed = if reason == Reason::Timeout { machine.fails_soon() } else { machine.fails() };
        assert_eq!(failed, reason, "{reply:?}");
        fake.set("ListContainers", Reply::Message(Vec::new()));
        assert_eq!(machine.ask().unwrap().sandboxes.len(), 1, "and back");
    }
    drop(fake);
    drop(machine);
    // The fake's threads close their ends in their own time.
    let until = Instant::now() + Duration::from_secs(10);
    while open_fds() > fds && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(open_fds() <= fds, "{} file descriptors more than before", open_fds() - fds);
}

/// So many list entries of two bytes each, in field 1.
fn vast(count: usize) -> Reply {
    Reply::Message([0x0a, 0x00].repeat(count))
}

/// Of this process, in KiB.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn answers_that_never_end_or_hold_millions_cost_an_error_and_little_memory() {
    alone!();
    let machine = Machine::new();
    let fake = Fake::start(&machine.path(CONTAINERD), one_pod());
    assert_eq!(machine.ask().unwrap().sandboxes.len(), 1);
    // 120,000 containers as they look, and eight million that hold nothing; what a client of its own cannot decode.
    let container = |number: usize| fake_runtime::Container {
        id: format!("{number:064x}"),
        pod_sandbox_id: "beef".to_owned(),
        image_ref: "sha256:0123456789abcdef".to_owned(),
        ..Default::default()
    };
    let containers = (0..120_000).map(container).collect();
    let many = reply(&fake_runtime::Containers { containers });
    for (call, answer, expected) in [
        ("ListContainers", many, Reason::Malformed),
        ("ListContainers", vast(8_000_000), Reason::Malformed),
        ("ListPodSandbox", vast(8_000_000), Reason::Malformed),
        ("ListContainers", Reply::Endless, Reason::Timeout),
        ("ListContainers", Reply::Message(vec![0x08, 0x01]), Reason::Malformed),
        ("ListContainers", Reply::Message(vec![0x0a, 0x7f]), Reason::Malformed),
    ] {
        let before = resident();
        fake.set(call, answer);
        let soon = machine.runtime.inventory(&machine.host, Deadline::after(Duration::from_secs(4)));
        assert_eq!(soon.unwrap_err().reason(), expected, "{call}");
        // The fake is in this process as well: what it sends, in its buffers and in ours.
        let more = resident().saturating_sub(before);
        assert!(more < 80 << 10, "{call}: {more} KiB");
        let good = if call == "ListPodSandbox" { one_pod()[call].clone() } else { Reply::Message(Vec::new()) };
        fake.set(call, good);
        assert_eq!(machine.ask().unwrap().sandboxes.len(), 1, "and back");
    }
    // Images are a call of their own: what lies there costs images only.
    for answer in [vast(8_000_000), Reply::Message(vec![0x08, 0x01])] {
        fake.set("ListImages", answer);
        let inventory = machine.ask().unwrap();
        assert_eq!((inventory.sandboxes.len(), inventory.images), (1, None));
        assert_eq!(inventory.errors.iter().map(|error| error.reason()).collect::<Vec<_>>(), [Reason::Malformed]);
    }
    // Without trailers the message is whole all the same, and nobody waits for them.
    fake.set("ListContainers", Reply::Untrailed(Vec::new()));
    let began = Instant::now();
    let _ = machine.ask();
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn without_images_the_rest_is_still_true() {
    alone!();
    let machine = Machine::new();
    let fake = Fake::start(&machine.path(CONTAINERD), one_pod());
    fake.set("ListImages", Reply::Huge(50 << 20));
    let inventory = machine.ask().unwrap();
    assert_eq!((inventory.sandboxes.len(), inventory.images), (1, None));
    assert_eq!(inventory.errors.iter().map(|error| error.reason()).collect::<Vec<_>>(), [Reason::Malformed]);
    fake.set("ImageFsInfo", Reply::Never);
    fake.set("ListImages", Reply::Never);
    let inventory = machine.runtime.inventory(&machine.host, Deadline::after(Duration::from_millis(800))).unwrap();
    assert_eq!(inventory.errors.iter().map(|error| error.reason()).collect::<Vec<_>>(), [Reason::Timeout; 2]);
}

#[test]
fn which_socket_is_asked() {
    alone!();
    let machine = Machine::new();
    assert_eq!(machine.ask().unwrap_err().reason(), Reason::Absent, "nothing here");
    // Docker's containerd, its CRI plugin switched off.
    let unimplemented = Fake::start(&machine.path(CONTAINERD), HashMap::new());
    assert_eq!(machine.ask().unwrap_err().reason(), Reason::Absent, "nobody speaks CRI here");
    let docker = Raw::docker(&machine.path(DOCKER), ONE);
    let inventory = machine.ask().unwrap();
    assert_eq!((inventory.identity.protocol, inventory.containers[0].name.as_str()), (Protocol::Docker, "plain"));
    assert_eq!(inventory.identity.version, "20.10.24");
    // Debian's containerd serves CRI even if only Docker uses it: its empty list is not what runs here.
    drop(unimplemented);
    let containerd = Fake::start(&machine.path(CONTAINERD), empty());
    assert_eq!(machine.ask().unwrap().identity.protocol, Protocol::Docker);
    drop(containerd);
    // A CRI runtime with pods appears: that one, and no way back.
    let containerd = Fake::start(&machine.path(CONTAINERD), one_pod());
    assert_eq!(machine.ask().unwrap().identity.protocol, Protocol::Cri);
    containerd.set("ListPodSandbox", Reply::Message(Vec::new()));
    assert_eq!(machine.ask().unwrap().identity.protocol, Protocol::Cri, "drained is not gone");
    drop(containerd);
    assert_eq!(machine.ask().unwrap_err().reason(), Reason::Vanished);
    drop(docker);
}

#[test]
fn docker_on_bad_days() {
    alone!();
    let machine = Machine::new();
    let path = machine.path(DOCKER);
    for containers in ["x".repeat(50 << 20), "<html>".to_owned(), r#"[{"Id":7}]"#.to_owned()] {
        let _docker = Raw::docker(&path, containers);
        assert_eq!(machine.ask().unwrap_err().reason(), Reason::Malformed);
    }
    {
        let _silent = Raw::start(&path, |stream| {
            let _ = std::io::copy(&mut { stream }, &mut std::io::sink());
        });
        assert_eq!(machine.fails_soon(), Reason::Timeout);
    }
    let _docker = Raw::docker(&path, ONE);
    machine.ask().unwrap();
    let before = (open_fds(), threads());
    for _ in 0..1_000 {
        assert_eq!(machine.ask().unwrap().containers.len(), 1);
    }
    // One connection, which the stand-in serves on one thread. Threads of earlier stand-ins may still end meanwhile.
    assert!(open_fds() <= before.0 && threads() <= before.1, "{before:?}, then {} {}", open_fds(), threads());
}

#[test]
fn docker_does_not_stand_in_for_a_dead_containerd() {
    alone!();
    let machine = Machine::new();
    std::fs::create_dir_all(machine.path("run/containerd")).unwrap();
    drop(std::os::unix::net::UnixListener::bind(machine.path(CONTAINERD)).unwrap());
    let _docker = Raw::docker(&machine.path(DOCKER), ONE);
    assert_eq!(machine.ask().unwrap_err().reason(), Reason::Io, "connection refused");
}

#[test]
fn a_named_socket_is_the_only_one() {
    alone!();
    let machine = Machine::with(Some("unix:///run/other.sock"));
    let _containerd = Fake::start(&machine.path(CONTAINERD), one_pod());
    assert_eq!(machine.ask().unwrap_err().reason(), Reason::Vanished);
    let other = Fake::start(&machine.path("run/other.sock"), HashMap::new());
    assert_eq!(machine.ask().unwrap_err().reason(), Reason::Malformed, "it does not speak CRI v1");
    drop(other);
    let _other = Fake::start(&machine.path("run/other.sock"), empty());
    assert_eq!(machine.ask().unwrap().identity.endpoint, "unix:///run/other.sock");

    // The kubelet's word counts as much, unless a flag says otherwise.
    let mut machine = Machine::new();
    let _containerd = Fake::start(&machine.path(CONTAINERD), one_pod());
    let overrides = Overrides { config: Some("/kubelet.yaml".into()), ..Overrides::default() };
    let kubelet = Kubelet::new(handle::Settings { overrides, ..handle::Settings::default() });
    machine.runtime = Runtime::of_kubelet(
        Settings { fresh: Duration::ZERO, store_fresh: Duration::ZERO, ..Settings::default() },
        kubelet,
    );
    let told = |socket: &str| {
        let head = "kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\n";
        let text = format!("{head}containerRuntimeEndpoint: unix://{socket}\n");
        std::fs::write(machine.path("kubelet.yaml"), text).unwrap();
    };
    told("/run/crio/crio.sock");
    assert_eq!(machine.ask().unwrap().sandboxes.len(), 1, "its socket was never there: a runtime that may come");
    let other = Fake::start(&machine.path("run/crio/crio.sock"), empty());
    assert_eq!(machine.ask().unwrap().identity.endpoint, "unix:///run/crio/crio.sock");
    drop(other);
    let _ = std::fs::remove_file(machine.path("run/crio/crio.sock"));
    assert_eq!(machine.ask().unwrap_err().reason(), Reason::Vanished);
    told(&format!("/{CONTAINERD}"));
    assert_eq!(machine.ask().unwrap().sandboxes.len(), 1);
}

#[test]
fn a_link_of_the_observed_machine_stays_in_its_root() {
    alone!();
    let machine = Machine::new();
    let _docker = Raw::docker(&machine.path(DOCKER), ONE);
    std::fs::create_dir(machine.path("var")).unwrap();
    std::os::unix::fs::symlink("/run", machine.path("var/run")).unwrap();
    assert_eq!(machine.ask().unwrap().identity.endpoint, "unix:///var/run/docker.sock");
}

#[test]
fn switched_off_is_absent() {
    alone!();
    let machine = Machine::new();
    for runtime in [Runtime::default(), Runtime::new(Settings { disabled: true, ..Settings::default() })] {
        let error = runtime.inventory(&machine.host, Deadline::after(Duration::from_secs(1))).unwrap_err();
        assert_eq!(error.reason(), Reason::Absent);
    }
}

/// As the modes ask: on a blocking thread of a tokio runtime, and the handle is dropped wherever the scraper is.
#[test]
fn from_a_thread_of_another_runtime() {
    alone!();
    let machine = Machine::new();
    let fake = Fake::start(&machine.path(CONTAINERD), one_pod());
    let runtime = machine.runtime.clone();
    let scraper = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    scraper.block_on(async {
        let ask = move || (machine.ask().map(|inventory| inventory.sandboxes.len()), machine);
        let (answer, machine) = tokio::task::spawn_blocking(ask).await.unwrap();
        assert_eq!(answer, Ok(1));
        drop((runtime, machine));
    });
    drop(fake);
}
