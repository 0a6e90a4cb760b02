//! A real containerd in a folder of its own, and as much of CRI as it takes to make pods in it.
//!
//! ```ignore
//! let containerd = match Containerd::start() {
//!     Ok(containerd) => containerd,
//!     Err(why) => skip!("{why}"),
//! };
//! let pod = containerd.run_sandbox("web", "6ae71c5f-858e-4bfd-976d-43c5b79937a0");
//! let container = containerd.run_container(&pod, "sleep", &["sleep", "1000000"]);
//! containerd.remove_sandbox(&pod.id);
//! ```
//!
//! Debian's `containerd`, `runc` and `busybox-static`; root. What it takes on a machine without CAP_SYS_RESOURCE:
//! `restrict_oom_score_adj`.
#![allow(unreachable_pub, missing_docs, reason = "shared by several test binaries")]
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::http::uri::PathAndQuery;
use hyper::{Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tonic::client::{Grpc, GrpcService};
use tonic_prost::ProstCodec;

use crate::common;

/// Image of every sandbox and container: a static busybox. `sleep` is its default command, so that it is a pause image,
/// too.
pub const IMAGE: &str = "localhost/busybox:test";

/// A sandbox that runs.
#[derive(Clone, Debug)]
pub struct Pod {
    pub id: String,
    pub name: String,
    pub uid: String,
}

/// The daemon. Dropped, it takes everything with it that it made.
pub struct Containerd {
    folder: tempfile::TempDir,
    daemon: Mutex<Option<Child>>,
    /// Cgroups below which pods are made: `/kubepods/besteffort`, in each v1 hierarchy or in the unified one.
    pub cgroup_parent: String,
    /// Pods have a network namespace of their own.
    pod_network: bool,
}

/// A CNI plugin: a tap in the pod that leads nowhere. It takes its time, so that a pod can be seen before and after.
const CNI_PLUGIN: &str = r#"#!/bin/sh
set -e
enter="nsenter --net=$CNI_NETNS ip"
address='"ips":[{"version":"4","address":"192.0.2.2/24","interface":0}]'
case "$CNI_COMMAND $CNI_IFNAME" in
    VERSION*) echo '{"cniVersion":"0.4.0","supportedVersions":["0.3.1","0.4.0"]}' ;;
    "ADD lo") $enter link set lo up; echo '{"cniVersion":"0.4.0"}' ;;
    ADD*)
        sleep 0.2
        $enter tuntap add "$CNI_IFNAME" mode tap
        echo '{"cniVersion":"0.4.0","interfaces":[{"name":"'"$CNI_IFNAME"'","sandbox":"'"$CNI_NETNS"'"}],'"$address"'}'
        ;;
    "DEL lo") ;;
    DEL*) $enter link del "$CNI_IFNAME" 2>/dev/null || true; sleep 0.2 ;;
esac
"#;

impl Containerd {
    /// Starts it with our image in its store.
    ///
    /// # Errors
    /// In words, what this machine lacks.
    pub fn start() -> Result<Self, String> {
        // A name of its own: two test binaries may run at once, and nothing here may meddle with a real kubelet's pods.
        Self::start_below(&format!("/headroom-test-{}", common::unique()))
    }

    /// As [`Containerd::start`], with the cgroups of its pods below `cgroup_parent`.
    pub fn start_below(cgroup_parent: &str) -> Result<Self, String> {
        Self::start_as(cgroup_parent, false)
    }

    /// As [`Containerd::start_below`], with pods that have a network of their own: an `eth0` that leads nowhere.
    pub fn start_with_network(cgroup_parent: &str) -> Result<Self, String> {
        Self::start_as(cgroup_parent, true)
    }

    fn start_as(cgroup_parent: &str, pod_network: bool) -> Result<Self, String> {
        if !common::is_root() {
            return Err("containerd needs root".to_owned());
        }
        if let Some(missing) =
            ["containerd", "ctr", "runc", "busybox", "tar"].into_iter().find(|program| !common::has(program))
        {
            return Err(format!("no {missing} here (Debian: containerd, runc, busybox-static)"));
        }
        let folder = tempfile::Builder::new().prefix("ctrd").tempdir().unwrap();
        let this =
            Containerd { folder, daemon: Mutex::new(None), cgroup_parent: cgroup_parent.to_owned(), pod_network };
        if pod_network {
            this.install_cni();
        }
        fs::create_dir_all(this.socket().parent().unwrap()).unwrap();
        let dir = this.dir().display();
        let config = format!(
            r#"version = 2
root = "{dir}/root"
state = "{dir}/state"
[grpc]
  address = "{socket}"
[ttrpc]
  address = "{dir}/ttrpc.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{dir}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGE}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{dir}/cni/bin"
    conf_dir = "{dir}/cni/net.d"
"#,
            socket = this.socket().display(),
            snapshotter = if overlay() { "overlayfs" } else { "native" },
        );
        fs::write(this.dir().join("config.toml"), config).unwrap();
        this.launch()?;
        this.import_image(IMAGE)?;
        this.eventually_has_image()?;
        Ok(this)
    }

    fn dir(&self) -> &Path {
        self.folder.path()
    }

    fn install_cni(&self) {
        let (bin, configuration) = (self.dir().join("cni/bin"), self.dir().join("cni/net.d"));
        fs::create_dir_all(&bin).unwrap();
        fs::create_dir_all(&configuration).unwrap();
        for name in ["loopback", "nowhere"] {
            fs::write(bin.join(name), CNI_PLUGIN).unwrap();
            fs::set_permissions(bin.join(name), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        let list = r#"{"cniVersion":"0.4.0","name":"nowhere","plugins":[{"type":"nowhere"}]}"#;
        fs::write(configuration.join("10-nowhere.conflist"), list).unwrap();
    }

    /// Its socket, where a machine whose root is [`Containerd::root`] has it.
    pub fn socket(&self) -> PathBuf {
        self.dir().join("run/containerd/containerd.sock")
    }

    /// A root directory in which the socket is at its well-known place.
    pub fn root(&self) -> &Path {
        self.dir()
    }

    /// `unix:///…/containerd.sock`
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// The daemon's process id.
    pub fn pid(&self) -> Option<u32> {
        self.daemon.lock().unwrap().as_ref().map(Child::id)
    }

    /// Starts the daemon (again): what ran before runs on, as after any restart of containerd.
    pub fn launch(&self) -> Result<(), String> {
        let log = fs::File::options().create(true).append(true).open(self.dir().join("log")).unwrap();
        let mut command = Command::new("containerd");
        command.arg("--config").arg(self.dir().join("config.toml")).stdout(Stdio::null()).stderr(log);
        *self.daemon.lock().unwrap() = Some(command.spawn().map_err(|error| format!("containerd: {error}"))?);
        let until = Instant::now() + super::patience(20);
        loop {
            match Cri::connect(&self.socket())
                .and_then(|mut cri| cri.call::<_, Version>("RuntimeService/Version", Nothing {}))
            {
                Ok(_) => return Ok(()),
                Err(why) if Instant::now() > until => {
                    let log = fs::read_to_string(self.dir().join("log")).unwrap_or_default();
                    return Err(format!(
                        "containerd does not start here: {why}: {}",
                        log.lines().last().unwrap_or_default()
                    ));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Kills the daemon. Its containers and its socket's file stay.
    pub fn kill(&self) {
        if let Some(mut daemon) = self.daemon.lock().unwrap().take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }

    /// Puts one more image of ours into the store: the same files, another name and another id.
    pub fn import_image(&self, name: &str) -> Result<(), String> {
        let archive = docker_archive(self.dir(), name);
        let mut ctr = Command::new("ctr");
        ctr.args(["--address", self.socket().to_str().unwrap(), "--namespace", "k8s.io", "images", "import"]);
        // From 2.0 on the daemon would import it, and that only for a snapshotter that it is configured to unpack for.
        let help =
            Command::new("ctr").args(["images", "import", "--help"]).output().map_err(|error| error.to_string())?;
        if String::from_utf8_lossy(&help.stdout).contains("--local") {
            ctr.arg("--local");
        }
        let ctr = ctr
            .args(["--snapshotter", if overlay() { "overlayfs" } else { "native" }])
            .arg(&archive)
            .output()
            .map_err(|error| format!("ctr: {error}"))?;
        let _ = fs::remove_file(archive);
        if ctr.status.success() { Ok(()) } else { Err(format!("ctr: {}", String::from_utf8_lossy(&ctr.stderr))) }
    }

    /// containerd's CRI plugin learns of an imported image by an event.
    fn eventually_has_image(&self) -> Result<(), String> {
        let until = Instant::now() + super::patience(10);
        loop {
            let status: ImageStatus = self.call(
                "ImageService/ImageStatus",
                ImageRequest { image: Some(ImageSpec { image: IMAGE.to_owned() }) },
            )?;
            match status.image {
                Some(_) => return Ok(()),
                None if Instant::now() > until => return Err(format!("{IMAGE} was imported and CRI does not see it")),
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// One call over a connection of its own, `RuntimeService/StopPodSandbox`.
    pub fn call<Q, A>(&self, path: &str, request: Q) -> Result<A, String>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        Cri::connect(&self.socket())?.call(path, request)
    }

    /// Runs a sandbox in the cgroup `<parent>/pod<uid>`: on the host's network, which takes no CNI, unless it was
    /// started with one for pods.
    pub fn run_sandbox(&self, name: &str, uid: &str) -> Pod {
        self.try_run_sandbox(name, uid).unwrap()
    }

    /// As [`Containerd::run_sandbox`].
    pub fn try_run_sandbox(&self, name: &str, uid: &str) -> Result<Pod, String> {
        let pod = Pod { id: String::new(), name: name.to_owned(), uid: uid.to_owned() };
        let request = RunPodSandbox { config: Some(self.sandbox_config(&pod)) };
        let answer: SandboxId = self.call("RuntimeService/RunPodSandbox", request)?;
        Ok(Pod { id: answer.pod_sandbox_id, ..pod })
    }

    fn sandbox_config(&self, pod: &Pod) -> SandboxConfig {
        SandboxConfig {
            metadata: Some(SandboxMetadata {
                name: pod.name.clone(),
                uid: pod.uid.clone(),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            log_directory: self.dir().join("logs").display().to_string(),
            labels: labels(pod, None),
            linux: Some(LinuxSandbox {
                cgroup_parent: format!("{}/pod{}", self.cgroup_parent, pod.uid),
                security_context: Some(SandboxSecurity {
                    // POD or NODE
                    namespace_options: Some(NamespaceOption { network: if self.pod_network { 0 } else { 2 } }),
                }),
            }),
        }
    }

    /// Makes a container in that sandbox and does not start it.
    pub fn create_container(&self, pod: &Pod, name: &str, command: &[&str]) -> Result<String, String> {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(ImageSpec { image: IMAGE.to_owned() }),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            labels: labels(pod, Some(name)),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainer {}),
        };
        let request = CreateContainer {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.sandbox_config(pod)),
        };
        Ok(self.call::<_, ContainerId>("RuntimeService/CreateContainer", request)?.container_id)
    }

    /// Makes a container in that sandbox, starts it, and returns its id.
    pub fn run_container(&self, pod: &Pod, name: &str, command: &[&str]) -> String {
        let id = self.create_container(pod, name, command).unwrap();
        self.start_container(&id).unwrap();
        id
    }

    pub fn start_container(&self, id: &str) -> Result<(), String> {
        let request = ContainerId { container_id: id.to_owned() };
        self.call::<_, Nothing>("RuntimeService/StartContainer", request).map(|_| ())
    }

    /// Kills it; it stays as an exited one.
    pub fn stop_container(&self, id: &str) -> Result<(), String> {
        let request = StopContainer { container_id: id.to_owned(), timeout: 0 };
        self.call::<_, Nothing>("RuntimeService/StopContainer", request).map(|_| ())
    }

    pub fn remove_container(&self, id: &str) -> Result<(), String> {
        let request = ContainerId { container_id: id.to_owned() };
        self.call::<_, Nothing>("RuntimeService/RemoveContainer", request).map(|_| ())
    }

    /// Stops a sandbox with all its containers; it stays, not ready.
    pub fn stop_sandbox(&self, id: &str) -> Result<(), String> {
        let request = SandboxId { pod_sandbox_id: id.to_owned() };
        self.call::<_, Nothing>("RuntimeService/StopPodSandbox", request).map(|_| ())
    }

    /// Stops and removes a sandbox with all its containers.
    pub fn remove_sandbox(&self, id: &str) -> Result<(), String> {
        self.stop_sandbox(id)?;
        let request = SandboxId { pod_sandbox_id: id.to_owned() };
        self.call::<_, Nothing>("RuntimeService/RemovePodSandbox", request).map(|_| ())
    }

    fn clean_up(&self) {
        if let Ok(list) = self.call::<_, SandboxList>("RuntimeService/ListPodSandbox", Nothing {}) {
            for sandbox in list.items {
                let _ = self.remove_sandbox(&sandbox.pod_sandbox_id);
            }
        }
        self.kill();
        // What is left after a test that killed the daemon: shims and their containers, mounts, cgroups.
        let sockets = shim_sockets(&self.dir().join("state"));
        end_processes_that_name(self.dir().to_str().unwrap());
        sockets.iter().for_each(|socket| drop(fs::remove_file(socket)));
        unmount_below(self.dir());
        remove_cgroups_named(self.cgroup_parent.trim_start_matches('/'));
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir().join("log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(20).collect();
            eprintln!("containerd said last (newest first):\n{}", tail.join("\n"));
        }
        self.clean_up();
    }
}

/// True if overlayfs can be mounted; containerd's `native` snapshotter copies instead.
fn overlay() -> bool {
    fs::read_to_string("/proc/filesystems").unwrap_or_default().contains("\toverlay\n")
}

/// A docker-archive of one layer with a static busybox. The name goes into the configuration, so each name is another
/// image.
pub fn docker_archive(dir: &Path, name: &str) -> PathBuf {
    let work = tempfile::tempdir_in(dir).unwrap();
    let path = work.path().display();
    common::shell(&format!(
        "cd {path}; mkdir -p rootfs/bin rootfs/etc rootfs/tmp rootfs/proc rootfs/dev rootfs/sys
         cp $(command -v busybox) rootfs/bin/busybox
         for applet in sh sleep true false cat echo; do ln -s busybox rootfs/bin/$applet; done
         tar --sort=name --mtime=@0 --owner=0 --group=0 -C rootfs -cf layer.tar ."
    ));
    let digest = common::shell(&format!("sha256sum {path}/layer.tar"));
    let digest = digest.split(' ').next().unwrap();
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": { "Env": ["PATH=/bin"], "Cmd": ["/bin/sleep", "1000000"], "Labels": { "name": name } },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
        "history": [{ "created": "1970-01-01T00:00:00Z" }],
    });
    fs::write(work.path().join("config.json"), config.to_string()).unwrap();
    let manifest = serde_json::json!([{ "Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"] }]);
    fs::write(work.path().join("manifest.json"), manifest.to_string()).unwrap();
    let archive = dir.join(format!("image-{}.tar", work.path().file_name().unwrap().to_str().unwrap()));
    common::shell(&format!("tar -C {path} -cf {} config.json manifest.json layer.tar", archive.display()));
    archive
}

/// Sockets of the shims that still have a container: they are not in our folder.
pub fn shim_sockets(state: &Path) -> Vec<PathBuf> {
    let below = |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let bundles = below(state.join("io.containerd.runtime.v2.task")).flat_map(below);
    let addresses = bundles.filter_map(|bundle| fs::read_to_string(bundle.join("address")).ok());
    addresses.filter_map(|address| Some(PathBuf::from(address.strip_prefix("unix://")?))).collect()
}

/// Kills every process with this in its command line (shims carry the socket's path) and their children: containers.
pub fn end_processes_that_name(what: &str) {
    let mut doomed = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if pid != std::process::id() as i32 && String::from_utf8_lossy(&line).contains(what) {
            let children = fs::read_to_string(entry.path().join(format!("task/{pid}/children"))).unwrap_or_default();
            doomed.extend(children.split_whitespace().filter_map(|child| child.parse::<i32>().ok()));
            doomed.push(pid);
        }
    }
    for pid in doomed.into_iter().filter_map(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Unmounts everything below a folder, deepest first.
pub fn unmount_below(folder: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points =
        mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|point| Path::new(point).starts_with(folder));
    let mut points: Vec<&str> = points.collect();
    points.sort_by_key(|point| std::cmp::Reverse(point.len()));
    for point in points {
        let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Removes these cgroups, with those below, from every hierarchy. Processes that were killed just now take a moment to
/// leave.
pub fn remove_cgroups_named(name: &str) {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]) {
        let root = hierarchy.join(name);
        for _ in 0..50 {
            remove_directories(&root);
            if !root.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn remove_directories(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_directories(&entry.path());
        }
    }
    let _ = fs::remove_dir(root);
}

fn labels(pod: &Pod, container: Option<&str>) -> Vec<Label> {
    let label = |key: &str, value: &str| Label { key: key.to_owned(), value: value.to_owned() };
    let mut labels = vec![
        label("io.kubernetes.pod.name", &pod.name),
        label("io.kubernetes.pod.namespace", "default"),
        label("io.kubernetes.pod.uid", &pod.uid),
    ];
    labels.extend(container.map(|name| label("io.kubernetes.container.name", name)));
    labels
}

/// A connection for one call.
struct Cri {
    runtime: tokio::runtime::Runtime,
    grpc: Grpc<Service>,
}

impl Cri {
    fn connect(socket: &Path) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let sender = runtime.block_on(async {
            let stream = tokio::net::UnixStream::connect(socket).await.map_err(|error| error.to_string())?;
            let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .map_err(|error| error.to_string())?;
            tokio::spawn(connection);
            Ok::<_, String>(sender)
        })?;
        Ok(Cri { runtime, grpc: Grpc::with_origin(Service(sender), Uri::from_static("http://localhost")) })
    }

    fn call<Q, A>(&mut self, path: &str, request: Q) -> Result<A, String>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let grpc = &mut self.grpc;
        let call = async {
            grpc.ready().await.map_err(|error| error.to_string())?;
            let codec = ProstCodec::<Q, A>::default();
            let path = PathAndQuery::try_from(format!("/runtime.v1.{path}")).unwrap();
            let answer = grpc.unary(tonic::Request::new(request), path, codec).await;
            answer.map(tonic::Response::into_inner).map_err(|status| format!("{status:?}"))
        };
        self.runtime.block_on(async {
            tokio::time::timeout(super::patience(30), call).await.unwrap_or_else(|_| Err(format!("{path}: timeout")))
        })
    }
}

struct Service(SendRequest<tonic::body::Body>);

impl GrpcService<tonic::body::Body> for Service {
    type ResponseBody = Incoming;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

macro_rules! message {
    ($name:ident { $($(#[$attribute:meta])* $field:ident: $type:ty,)* }) => {
        #[derive(Clone, PartialEq, prost::Message)]
        pub struct $name { $($(#[$attribute])* pub $field: $type,)* }
    };
}

message!(Nothing {});
message!(Version {
    #[prost(string, tag = "3")]
    runtime_version: String,
});
message!(Label {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
});
message!(ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
});
message!(ImageRequest { #[prost(message, optional, tag = "1")] image: Option<ImageSpec>, });
message!(ImageStatus { #[prost(message, optional, tag = "1")] image: Option<ImageSpec>, });
message!(SandboxMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
    #[prost(uint32, tag = "4")]
    attempt: u32,
});
message!(NamespaceOption {
    #[prost(int32, tag = "1")]
    network: i32,
});
message!(SandboxSecurity { #[prost(message, optional, tag = "1")] namespace_options: Option<NamespaceOption>, });
message!(LinuxSandbox {
    #[prost(string, tag = "1")] cgroup_parent: String,
    #[prost(message, optional, tag = "2")] security_context: Option<SandboxSecurity>,
});
message!(SandboxConfig {
    #[prost(message, optional, tag = "1")] metadata: Option<SandboxMetadata>,
    #[prost(string, tag = "3")] log_directory: String,
    #[prost(message, repeated, tag = "6")] labels: Vec<Label>,
    #[prost(message, optional, tag = "8")] linux: Option<LinuxSandbox>,
});
message!(RunPodSandbox { #[prost(message, optional, tag = "1")] config: Option<SandboxConfig>, });
message!(SandboxId {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
});
message!(SandboxList { #[prost(message, repeated, tag = "1")] items: Vec<SandboxId>, });
message!(ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint32, tag = "2")]
    attempt: u32,
});
message!(LinuxContainer {});
message!(ContainerConfig {
    #[prost(message, optional, tag = "1")] metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")] image: Option<ImageSpec>,
    #[prost(string, repeated, tag = "3")] command: Vec<String>,
    #[prost(message, repeated, tag = "9")] labels: Vec<Label>,
    #[prost(string, tag = "11")] log_path: String,
    #[prost(message, optional, tag = "15")] linux: Option<LinuxContainer>,
});
message!(CreateContainer {
    #[prost(string, tag = "1")] pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")] config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")] sandbox_config: Option<SandboxConfig>,
});
message!(ContainerId {
    #[prost(string, tag = "1")]
    container_id: String,
});
message!(StopContainer {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(int64, tag = "2")]
    timeout: i64,
});
