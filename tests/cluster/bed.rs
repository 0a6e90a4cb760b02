//! A cluster of one node, up and Ready, and gone without a trace when it is dropped.
//!
//! ```ignore
//! alone!();
//! let cluster = match Cluster::start() {
//!     Ok(cluster) => cluster,
//!     Err(why) => skip!("{why}"),
//! };
//! cluster.apply(&pods);
//! cluster.wait_for_pods(4);
//! ```

mod configuration;
mod daemon;
mod ground;
mod image;
mod kubectl;
mod pki;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(crate) use configuration::Kubelet;
use daemon::Daemon;
use ground::Ground;
pub(crate) use ground::hierarchies;
pub(crate) use image::{BUSYBOX, EXPORTER, import_exporter};
pub(crate) use kubectl::pod;

use crate::checks::say;
use crate::common::{self, Exporter};

pub(crate) const NODE: &str = "headroom-node";
/// On the loopback of the test's own network; the kubelet refuses 127.0.0.0/8.
pub(crate) const ADDRESS: &str = "10.250.0.1";
pub(crate) const APISERVER: &str = "10.250.0.1:6443";
/// Where the cAdvisor in the kubelet looks for it, and nowhere else.
pub(crate) const RUNTIME: &str = "/run/containerd/containerd.sock";
const SERVICES: &str = "10.96.0.0/16";
const KUBERNETES_SERVICE: &str = "10.96.0.1";

pub(crate) struct Cluster {
    daemons: BTreeMap<&'static str, Daemon>,
    ground: Ground,
    folder: tempfile::TempDir,
    kubernetes: PathBuf,
    /// One tree of kubepods on a machine.
    _lock: fs::File,
}

impl Cluster {
    /// Up to a node that is Ready and has our image, and a service account for pods.
    ///
    /// # Errors
    /// In words, what this machine lacks.
    ///
    /// # Panics
    /// If all of it is there and the node does not become Ready.
    pub(crate) fn start() -> Result<Self, String> {
        Self::start_on(|_| {})
    }

    /// The same after `prepare` had the cluster's folder, before the first daemon: a file system of its own for the
    /// kubelet, for instance.
    pub(crate) fn start_on(prepare: impl FnOnce(&Path)) -> Result<Self, String> {
        let kubernetes = lacking()?;
        let lock = common::machine_lock();
        let begun = Instant::now();
        let folder = tempfile::Builder::new().prefix("headroom-cluster-").tempdir().unwrap();
        let ground = Ground::prepare(folder.path())?;
        pki::issue(folder.path());
        configuration::write(folder.path(), ground.systemd, Kubelet::Signed);
        prepare(folder.path());
        let mut cluster = Cluster { daemons: BTreeMap::new(), ground, folder, kubernetes, _lock: lock };
        for name in ["etcd", "containerd", "kube-apiserver"] {
            cluster.launch(name);
        }
        image::import(cluster.dir());
        cluster.eventually("the apiserver is ready", 60, || cluster.kubectl(&["get", "--raw=/readyz"]));
        for name in ["kube-controller-manager", "kube-scheduler", "kubelet"] {
            cluster.launch(name);
        }
        cluster.wait_until_ready(120);
        cluster.eventually("there is a service account", 60, || cluster.kubectl(&["get", "serviceaccount", "default"]));
        let version = cluster.kubectl(&["get", "node", NODE, "-o=jsonpath={.status.nodeInfo.kubeletVersion}"]).unwrap();
        say(format_args!("{version} is Ready after {:.1} s", begun.elapsed().as_secs_f64()));
        Ok(cluster)
    }

    /// The environment of a client of the cluster, as its administrator: Helm's.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir().join("admin.kubeconfig")
    }

    /// Where everything of this cluster is.
    pub(crate) fn dir(&self) -> &Path {
        self.folder.path()
    }

    /// The kubelet's root directory.
    pub(crate) fn kubelet_root(&self) -> PathBuf {
        self.dir().join("kubelet")
    }

    pub(crate) fn pid(&self, daemon: &str) -> u32 {
        self.daemons[daemon].pid()
    }

    /// Starts this part of it, also once more after [`Cluster::stop`] or [`Cluster::kill`].
    pub(crate) fn launch(&mut self, name: &'static str) {
        let daemon = Daemon::start(name, &self.command(name), self.dir());
        self.daemons.insert(name, daemon);
    }

    fn command(&self, name: &str) -> Vec<String> {
        let program = match name {
            "etcd" | "containerd" => name.to_owned(),
            _ => self.kubernetes.join(name).display().to_string(),
        };
        std::iter::once(program).chain(configuration::arguments(name, self.dir())).collect()
    }

    /// SIGTERM, and waits for its end.
    pub(crate) fn stop(&mut self, name: &str) {
        self.daemons.remove(name).expect("it runs").stop();
    }

    /// SIGKILL to it, and leaves it a zombie until [`Cluster::bury`].
    pub(crate) fn kill(&mut self, name: &str) {
        self.daemons.get_mut(name).expect("it runs").kill();
    }

    /// Takes note of the end of what was killed.
    pub(crate) fn bury(&mut self, name: &str) {
        drop(self.daemons.remove(name).expect("it was killed"));
    }

    /// Starts the kubelet anew, with its API served in another way.
    pub(crate) fn serve_kubelet(&mut self, kubelet: Kubelet) {
        configuration::write_kubelet(self.dir(), self.ground.systemd, kubelet);
        self.restart_kubelet();
    }

    /// Starts the kubelet anew, with a client's certificate that is valid for this long, or for good.
    pub(crate) fn kubelet_with_certificate_for(&mut self, valid: Option<Duration>) {
        pki::kubelet_for(self.dir(), valid);
        self.restart_kubelet();
    }

    fn restart_kubelet(&mut self) {
        self.stop("kubelet");
        self.launch("kubelet");
        self.wait_until_ready(90);
    }

    pub(crate) fn wait_until_ready(&self, seconds: u64) {
        let condition = "-o=jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        self.eventually("the node is Ready", seconds, || match self.kubectl(&["get", "node", NODE, condition])? {
            status if status == "True" => Ok(()),
            status => Err(format!("Ready is {status:?}")),
        });
    }

    /// Asks until it is so.
    ///
    /// # Panics
    /// If it is not in this time, with what the daemons said last.
    pub(crate) fn eventually<T>(&self, what: &str, seconds: u64, mut ask: impl FnMut() -> Result<T, String>) -> T {
        let until = Instant::now() + patience(seconds);
        loop {
            match ask() {
                Ok(answer) => return answer,
                Err(why) if Instant::now() > until => {
                    panic!("not so after {seconds} s: {what}: {why}\n{}", daemon::last_words(self.dir()))
                }
                Err(_) => std::thread::sleep(Duration::from_millis(200)),
            }
        }
    }

    /// The exporter on this node, as a process of the host with an account of its own, and these further flags.
    pub(crate) fn exporter(&self, flags: &[&str]) -> Exporter {
        let own = self.exporter_flags();
        let flags: Vec<&str> = own.iter().map(String::as_str).chain(flags.iter().copied()).collect();
        Exporter::start_as(std::process::Command::new(exporter_binary()), &flags)
    }

    /// What leads it to kubelet and apiserver, and who it is there.
    pub(crate) fn exporter_flags(&self) -> Vec<String> {
        let account = pki::account(self);
        vec![
            format!("--kubeconfig={}", account.kubeconfig.display()),
            format!("--kubelet.url=https://{ADDRESS}:10250"),
            format!("--kubelet.token-file={}", account.token.display()),
            format!("--kubelet.ca-file={}", self.dir().join("pki/ca.crt").display()),
        ]
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            say(daemon::last_words(self.dir()));
        }
        // The kubelet first, which would start again what ends.
        for name in ["kubelet", "kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd", "containerd"] {
            if let Some(daemon) = self.daemons.remove(name) {
                daemon.stop();
            }
        }
        self.ground.leave(self.folder.path());
    }
}

/// So many seconds, or more on an emulated machine.
pub(crate) fn patience(seconds: u64) -> Duration {
    let factor = std::env::var("HEADROOM_TEST_PATIENCE").map_or(1, |factor| factor.parse().expect("a whole factor"));
    Duration::from_secs(seconds) * factor
}

/// The exporter's binary.
pub(crate) fn exporter_binary() -> PathBuf {
    std::env::var_os("HEADROOM_TEST_EXPORTER")
        .map_or_else(|| env!("CARGO_BIN_EXE_headroom-exporter").into(), PathBuf::from)
}

/// A file system of the kubelet's own, an ext4 of so many bytes, for [`Cluster::start_on`].
pub(crate) fn kubelet_disk(folder: &Path, bytes: u64) {
    let (image, root) = (folder.join("nodefs.img"), folder.join("kubelet"));
    fs::File::create(&image).unwrap().set_len(bytes).unwrap();
    common::shell(&format!("mkfs.ext4 -q -F -N 8192 {0}; mount -o loop {0} {1}", image.display(), root.display()));
}

/// The same, and the kubelet evicts there.
pub(crate) fn kubelet_disk_that_evicts(folder: &Path, bytes: u64) {
    configuration::evict(folder);
    kubelet_disk(folder, bytes);
}

/// `headroom-drill`.
pub(crate) fn drill_binary() -> PathBuf {
    std::env::var_os("HEADROOM_TEST_DRILL").map_or_else(|| env!("CARGO_BIN_EXE_headroom-drill").into(), PathBuf::from)
}

/// The folder of Kubernetes' commands, or what is missing.
pub(crate) fn lacking() -> Result<PathBuf, String> {
    if !common::is_root() {
        return Err("a cluster needs root".to_owned());
    }
    let programs = ["etcd", "containerd", "ctr", "runc", "busybox", "tar", "ip", "iptables", "ss"];
    if let Some(missing) = programs.into_iter().find(|program| !common::has(program)) {
        return Err(format!("no {missing} here (tests/run installs it)"));
    }
    if !Path::new("/usr/lib/cni/bridge").exists() {
        return Err("no CNI plugins here (Debian: containernetworking-plugins)".to_owned());
    }
    let folder = match std::env::var_os("HEADROOM_TEST_KUBERNETES") {
        Some(folder) => PathBuf::from(folder),
        None => built().ok_or("no Kubernetes in target/tools (tests/cluster/kubernetes/build.sh)")?,
    };
    let commands = ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kubelet"];
    match commands.into_iter().find(|command| !folder.join(command).exists()) {
        Some(missing) => Err(format!("no {missing} in {} (tests/cluster/kubernetes/build.sh)", folder.display())),
        None => Ok(folder),
    }
}

/// Which Kubernetes it is.
pub(crate) fn version() -> Option<String> {
    let folder = lacking().ok()?;
    Some(folder.file_name()?.to_str()?.strip_prefix("kubernetes-v")?.to_owned())
}

/// The newest that `kubernetes/build.sh` has made.
fn built() -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_BIN_EXE_headroom-exporter")).parent()?.parent()?;
    let folders = fs::read_dir(target.join("tools")).ok()?.flatten().map(|entry| entry.path());
    let versions = folders.filter_map(|path| {
        let version = path.file_name()?.to_str()?.strip_prefix("kubernetes-v")?.to_owned();
        let parts: Vec<u32> = version.split('.').filter_map(|part| part.parse().ok()).collect();
        path.join("stamp").exists().then_some((parts, path))
    });
    versions.max().map(|(_, path)| path)
}
