//! Who is this node's kubelet, on the running kernel: processes with its name in a pod's cgroup, in a pid namespace of
//! their own and of another user, as any pod can make them, beside one that is outside of all that. Needs root.
#![allow(clippy::disallowed_methods, reason = "tests make the files that the library may only read through `host`")]

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use headroom::kubelet::sources::Overrides;
use headroom::metric::Samples;
use headroom::modes::eviction::CONFIG_INFO;

use crate::common;
use crate::common::hierarchies::{PURE_V2, V1, v2};
use crate::eviction::{
    Process, collect, collector, control_plane, hard_memory, look, no_kubelet_here, on_root, page, programs, start,
};

/// A pod of the API, and one that a kubelet made of a file.
const POD: &str = "pod11111111-2222-4333-8444-555555555555";
const STATIC: &str = "pod55a0906791c86e41cb268c3f20fa8205";
const NOBODY: u32 = 65534;

/// Cgroups as a kubelet makes them, in one hierarchy; removed with the test, and other tests count none meanwhile.
struct Kubepods {
    top: PathBuf,
    _lock: Option<File>,
}

impl Kubepods {
    /// In every hierarchy that a process of a pod is in here: v1 with a cgroup2 mount beside it, or v2 alone.
    fn of_this_machine() -> Vec<Self> {
        let roots = if *PURE_V2 { vec![v2()] } else { vec![V1, v2()] };
        let roots = roots.into_iter().filter(|root| Path::new(root).join("cgroup.procs").exists());
        let mut lock = Some(common::machine_lock());
        let name = format!("headroom-identity-{}", common::unique());
        roots.map(|root| Kubepods { top: Path::new(root).join(&name), _lock: lock.take() }).collect()
    }

    fn take(&self, pod: &str, process: &Process) {
        let container = self.top.join("kubepods/burstable").join(pod).join("c".repeat(64));
        fs::create_dir_all(&container).unwrap();
        fs::write(container.join("cgroup.procs"), process.0.id().to_string()).unwrap();
    }
}

impl Drop for Kubepods {
    fn drop(&mut self) {
        for _ in 0..200 {
            let _ = Command::new("find").args([self.top.as_path()]).args(["-depth", "-type", "d", "-delete"]).output();
            if !self.top.exists() {
                return;
            }
            // What was killed is in it a moment longer.
            std::thread::sleep(Duration::from_millis(10));
        }
        eprintln!("{} could not be removed", self.top.display());
    }
}

/// Programs that say what memory threshold they were given, in MiB.
struct Programs(tempfile::TempDir);

impl Programs {
    fn new() -> Self {
        let dir = programs(&["kubelet", "etcd", "kube-apiserver"]);
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Programs(dir)
    }

    fn kubelet(&self, threshold: u32) -> Vec<String> {
        let config = self.0.path().join(format!("{threshold}.yaml"));
        let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        fs::write(&config, format!("{head}evictionHard: {{memory.available: {threshold}Mi}}\n")).unwrap();
        vec![self.path("kubelet"), format!("--config={}", config.display()), "--root-dir=/".to_owned()]
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }
}

fn command(argv: &[String]) -> Command {
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]);
    command
}

fn megabytes(samples: &Samples) -> Option<f64> {
    hard_memory(samples).map(|bytes| bytes / 1_048_576.0)
}

/// The only child of a process that has one.
fn child(of: &Process) -> u32 {
    let path = format!("/proc/{0}/task/{0}/children", of.0.id());
    fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

#[test]
fn a_process_of_a_pod_a_container_or_another_user_is_no_kubelet() {
    alone!();
    if !common::is_root() {
        skip!("not root: cannot make cgroups and namespaces");
    }
    if !no_kubelet_here() {
        return;
    }
    let (programs, pods) = (Programs::new(), Kubepods::of_this_machine());
    // Each before the real one, so with a lower pid.
    let mut liars = Vec::new();
    for (place, pods) in pods.iter().enumerate() {
        let liar = start(&mut command(&programs.kubelet(1 + place as u32)), "kubelet");
        pods.take(POD, &liar);
        let why = format!("it runs in pod {}, by its cgroup", POD.trim_start_matches("pod"));
        liars.push((liar.0.id(), why, liar));
    }
    let mut unshare = Command::new("unshare");
    unshare.args(["--pid", "--fork", "--kill-child"]).args(programs.kubelet(11));
    let unshare = start(&mut unshare, "unshare");
    common::eventually("its child is a kubelet", || {
        fs::read_to_string(format!("/proc/{0}/task/{0}/children", unshare.0.id())).is_ok_and(|pids| {
            fs::read_to_string(format!("/proc/{}/comm", pids.trim())).is_ok_and(|comm| comm == "kubelet\n")
        })
    });
    liars.push((child(&unshare), "it runs in a container (its own pid namespace)".to_owned(), unshare));
    // With these alone there is no kubelet, and what one would do unconfigured counts.
    let samples = collect(&on_root());
    assert_eq!(samples.value(&CONFIG_INFO, &["default", ""]), Some(1.0));
    assert_eq!(megabytes(&samples), Some(100.0), "a kubelet's default");
    all_are_told(&samples, &liars);

    let liar = start(command(&programs.kubelet(12)).uid(NOBODY).gid(NOBODY), "kubelet");
    let rootless = format!("it runs as uid {NOBODY}: set --kubelet.uid={NOBODY} if this node's kubelet is rootless");
    liars.push((liar.0.id(), rootless.clone(), liar));
    // It may be a rootless one: then nothing is known of this node's thresholds, which is said.
    let nothing_is_known = || {
        let samples = page(&*collector(&on_root()));
        assert_eq!((megabytes(&samples), samples.value(&CONFIG_INFO, &["default", ""])), (None, None));
        let errors: Vec<String> = samples.errors().iter().map(ToString::to_string).collect();
        assert!(errors.len() == 1 && errors[0].contains(&rootless), "{errors:?}");
        all_are_told(&samples, &liars);
    };
    nothing_is_known();

    let exporter = collector(&Overrides::default());
    let kubelet = start(&mut command(&programs.kubelet(321)), "kubelet");
    assert!(liars.iter().all(|(pid, ..)| *pid < kubelet.0.id()), "each liar was there before it");
    let samples = look(&*exporter);
    assert_eq!(megabytes(&samples), Some(321.0));
    all_are_told(&samples, &liars);

    // It goes, and nobody takes its place: not for one who knew it, nor for one who did not.
    drop(kubelet);
    let samples = look(&*exporter);
    assert_eq!(megabytes(&samples), Some(321.0));
    all_are_told(&samples, &liars);
    nothing_is_known();
}

fn all_are_told(samples: &Samples, liars: &[(u32, String, Process)]) {
    for (pid, why, _) in liars {
        let note = format!("process {pid} (kubelet) looks like this node's kubelet but is ignored: {why}");
        assert!(samples.notes().contains(&note), "{note:?} is not among {:#?}", samples.notes());
    }
}

#[test]
fn an_etcd_or_apiserver_of_a_pod_makes_no_control_plane() {
    alone!();
    if !common::is_root() {
        skip!("not root: cannot make cgroups");
    }
    if control_plane() != Some(0.0) {
        skip!("a control plane runs on this machine");
    }
    let (programs, pods) = (Programs::new(), Kubepods::of_this_machine());
    for name in ["etcd", "kube-apiserver"] {
        for pods in &pods {
            let process = start(&mut Command::new(programs.path(name)), name);
            assert_eq!(control_plane(), Some(1.0), "{name} outside of any pod");
            pods.take(POD, &process);
            assert_eq!(control_plane(), Some(0.0), "{name} in {}", pods.top.display());
            pods.take(STATIC, &process);
            assert_eq!(control_plane(), Some(1.0), "{name} in a static pod in {}", pods.top.display());
        }
    }
}
