//! A small node: network, mounts and processes of its own, in which everything is prepared that a right of the exporter
//! is for.
//!
//! - a process of another user with a known number of fds, and an inotify instance;
//! - a kubelet (by its name) with a configuration that only root may read, connected to the apiserver and to the
//!   runtime;
//! - a pod, below a kubelet's directory that only root may enter: a memory-backed volume, a cgroup, a network of its
//!   own;
//! - a runtime whose socket is root's, an apiserver and a kubelet's API that refuse what they are told to refuse;
//! - the machine's `/` and `/sys` mounted once more, read-only, as a pod has them.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::apiserver::{Apiserver, NODE};
use super::container;
use crate::common::fake_runtime::{self, Fake};
use crate::common::netns::{self, Namespace};
use crate::common::{self, Exporter, Page};

pub(crate) const STRANGER: u32 = 54_242;
pub(crate) const FDS: usize = 40;
pub(crate) const POD: &str = "bcb1982f-2628-449a-accb-e40ecdefbb3b";
const CONTAINER: &str = "c0ffee0000000000000000000000000000000000000000000000000000000001";
const SANDBOX: &str = "c0ffee0000000000000000000000000000000000000000000000000000000002";
const MEMORY: &str = "/sys/fs/cgroup/memory";

/// A right that is taken away.
#[derive(Clone, Default)]
pub(crate) struct Without {
    /// Arguments of `setpriv`; those of an exporter with every right if empty.
    pub(crate) setpriv: Vec<String>,
    /// Arguments of an `unshare` around it.
    pub(crate) unshare: Vec<&'static str>,
    /// Done in the exporter's own mount namespace before it starts.
    pub(crate) script: String,
    /// Further flags.
    pub(crate) flags: Vec<String>,
    /// Words before `setpriv`.
    pub(crate) before: Vec<String>,
    /// What the apiserver and the kubelet refuse.
    pub(crate) refused: Vec<&'static str>,
}

pub(crate) struct Lab {
    processes: Vec<Child>,
    pub(crate) runtime: Option<Fake>,
    pub(crate) apiserver: Apiserver,
    pub(crate) namespace: Namespace,
    kubepods: PathBuf,
    folder: tempfile::TempDir,
    /// Shared with the other tests that make a kubepods tree.
    _lock: File,
}

impl Lab {
    /// `None`, and a SKIP, where it cannot be made.
    pub(crate) fn new() -> Option<Self> {
        let lacking = netns::lacking().or_else(|| (!common::has("setpriv")).then(|| "setpriv".to_owned()));
        let lacking = lacking.or_else(|| {
            let there = Path::new(MEMORY).join("memory.oom_control").exists();
            (!there).then(|| "cgroup v1 memory hierarchy".to_owned())
        });
        if let Some(what) = lacking {
            common::say_skip(format_args!("privileges: no {what}"));
            return None;
        }
        let lock = common::machine_lock();
        let kubepods = Path::new(MEMORY).join("kubepods");
        if kubepods.exists() || Path::new(MEMORY).join("kubepods.slice").exists() {
            common::say_skip("privileges: kubepods exists: this is a Kubernetes node");
            return None;
        }
        let namespace = Namespace::new();
        let folder = tempfile::Builder::new().prefix("priv").tempdir().unwrap();
        open_to_all(folder.path());
        let socket = folder.path().join("run/containerd.sock");
        let images = folder.path().join("images").display().to_string();
        fs::create_dir(&images).unwrap();
        let apiserver = namespace.inside(Apiserver::start);
        let runtime = namespace.inside(|| Fake::start(&socket, replies(&images)));
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o660)).unwrap();
        let mut lab =
            Lab { processes: Vec::new(), runtime: Some(runtime), apiserver, namespace, kubepods, folder, _lock: lock };
        lab.prepare();
        Some(lab)
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.at(name).display().to_string()
    }

    fn prepare(&mut self) {
        // Where another user may start it, whatever the way to the binary is.
        fs::copy(env!("CARGO_BIN_EXE_headroom-exporter"), self.at("exporter")).unwrap();
        fs::set_permissions(self.at("exporter"), fs::Permissions::from_mode(0o755)).unwrap();
        let write = |name: &str, text: &str, mode: u32| {
            fs::write(self.at(name), text).unwrap();
            fs::set_permissions(self.at(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        write("token", "a-token", 0o644);
        write("ca.pem", &self.apiserver.ca, 0o644);
        let server = format!("https://{}", self.apiserver.address);
        let kubeconfig = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters:\n- name: a\n  cluster:\n    server: {server}\n\
             contexts:\n- name: a\n  context:\n    cluster: a\n    user: a\nusers:\n- name: a\n  user: {{}}\n"
        );
        write("kubelet.conf", &kubeconfig, 0o600);
        let configuration = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
             evictionHard:\n  memory.available: 123Mi\n  nodefs.available: 7%\n";
        write("kubelet.yaml", configuration, 0o600);

        // A pod.
        let volume = self.at(&format!("kubelet/pods/{POD}/volumes/kubernetes.io~empty-dir/scratch"));
        fs::create_dir_all(&volume).unwrap();
        for directory in ["kubelet", "kubelet/pods", &format!("kubelet/pods/{POD}")] {
            fs::set_permissions(self.at(directory), fs::Permissions::from_mode(0o750)).unwrap();
        }
        for name in ["host", "sys", "image"] {
            fs::create_dir(self.at(name)).unwrap();
        }
        let (volume, host, sys, image) =
            (volume.display().to_string(), self.text("host"), self.text("sys"), self.text("image"));
        self.namespace.run(&format!(
            "mount -t tmpfs -o size=8m tmpfs {volume}
             head -c 1048576 /dev/zero > {volume}/fill
             mount --rbind / {image}
             mount --make-runbindable {image}
             mount --rbind / {host}
             mount --make-rprivate {image}
             mount --rbind /sys {sys}
             mount -o remount,bind,ro {host}
             mount -o remount,bind,ro {sys}
             mount --make-rshared /"
        ));
        let pod = self.kubepods.join(format!("burstable/pod{POD}"));
        for id in [SANDBOX, CONTAINER] {
            fs::create_dir_all(pod.join(id)).unwrap();
        }
        for (cgroup, limit) in [(pod.clone(), "33554432"), (pod.join(CONTAINER), "16777216")] {
            fs::write(cgroup.join("memory.limit_in_bytes"), limit).unwrap();
        }
        // As a runtime does it, the volume is mounted in the container at a place of its own.
        fs::create_dir(self.at("scratch")).unwrap();
        let container = format!(
            "mount --bind {volume} {}
             ip link add eth0 type dummy 2>/dev/null || ip tuntap add eth0 mode tap; echo ready; exec sleep 600",
            self.text("scratch")
        );
        self.start(&["unshare", "--net", "--mount", "sh", "-c", &container], &[SANDBOX, CONTAINER]);

        // `tail -f` waits by inotify.
        let stranger = format!(
            "for i in $(seq {FDS}); do exec {{fd}}</dev/null; done; echo ready; exec tail -f {}",
            self.text("token")
        );
        let user = [format!("--reuid={STRANGER}"), format!("--regid={STRANGER}"), "--clear-groups".to_owned()];
        let words = ["setpriv", &user[0], &user[1], &user[2], "bash", "-c", &stranger];
        self.start(&words, &[]);

        fs::create_dir(self.at("bin")).unwrap();
        std::os::unix::fs::symlink(fs::canonicalize("/usr/bin/python3").unwrap(), self.at("bin/kubelet")).unwrap();
        let kubelet = format!(
            "import socket, time\na = socket.create_connection(('127.0.0.1', {}))\n\
             r = socket.socket(socket.AF_UNIX)\nr.connect('{}')\nprint('ready', flush=True)\ntime.sleep(600)",
            self.apiserver.address.port(),
            self.text("run/containerd.sock")
        );
        let words = [
            &self.text("bin/kubelet"),
            "-c",
            &kubelet,
            &format!("--config={}", self.text("kubelet.yaml")),
            &format!("--kubeconfig={}", self.text("kubelet.conf")),
            &format!("--root-dir={}", self.text("kubelet")),
        ];
        self.start(&words, &[]);
    }

    /// Starts a process of the node that says `ready`, in these containers' cgroups.
    fn start(&mut self, words: &[&str], containers: &[&str]) {
        let mut command = self.namespace.command(words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = self.namespace.spawn(&mut command).unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "{words:?}");
        for id in containers {
            let procs = self.kubepods.join(format!("burstable/pod{POD}/{id}/cgroup.procs"));
            fs::write(procs, child.id().to_string()).unwrap();
        }
        self.processes.push(child);
    }

    /// An exporter with everything but this.
    pub(crate) fn exporter(&self, without: &Without) -> Exporter {
        self.apiserver.refuse(&without.refused);
        let full: Vec<String> = FULL.iter().map(|&word| word.to_owned()).collect();
        let setpriv = if without.setpriv.is_empty() { full } else { without.setpriv.clone() };
        let mut command = self.namespace.command("unshare");
        command.args(["--mount", "--propagation=slave"]).args(&without.unshare);
        let script = format!("{}\nexec \"$@\"", without.script);
        command
            .args(["sh", "-ec", &script, "sh"])
            .args(&without.before)
            .arg("setpriv")
            .args(setpriv)
            .arg(self.at("exporter"));
        let flags = self.flags(&without.flags);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        Exporter::start_by(command, &flags, |command| self.namespace.spawn(command))
    }

    fn flags(&self, more: &[String]) -> Vec<String> {
        let server = format!("https://{}", self.apiserver.address);
        let mut flags = vec![
            format!("--path.rootfs={}", self.text("host")),
            format!("--path.sysfs={}", self.text("sys")),
            format!("--runtime.endpoint=unix://{}", self.text("run/containerd.sock")),
            format!("--apiserver.url={server}"),
            format!("--apiserver.token-file={}", self.text("token")),
            format!("--apiserver.ca-file={}", self.text("ca.pem")),
            "--apiserver.probe-interval=300ms".to_owned(),
            "--apiserver.probe-kubelet".to_owned(),
            format!("--kubelet.url={server}"),
            format!("--kubelet.token-file={}", self.text("token")),
            format!("--kubelet.ca-file={}", self.text("ca.pem")),
            "--collector.node_status.lease-interval=500ms".to_owned(),
            "--collector.node_status.node-interval=500ms".to_owned(),
            format!("--node-name={NODE}"),
        ];
        flags.extend(more.iter().cloned());
        flags
    }

    /// An exporter as a runtime starts it, with every right that it asks for and as this user.
    pub(crate) fn container(&self, uid: u32) -> Container<'_> {
        self.apiserver.refuse(&[]);
        let id = format!("headroom-privileges-{}", common::unique());
        let bundle = self.at(&id);
        fs::create_dir(&bundle).unwrap();
        let command = [self.text("exporter"), "--web.listen-address=127.0.0.1:0".to_owned()];
        let command: Vec<String> = command.into_iter().chain(self.flags(&[])).collect();
        let config = container::config(&id, uid, &self.at("image"), &[&self.at("host"), &self.at("sys")], &command);
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        let mut runc = self.namespace.command("sh");
        // What Exporter adds to the command line goes to the shell, which does not care.
        runc.args(["-c", &format!("exec runc run --bundle {} {id}", bundle.display()), "runc"]);
        let guard = Deleted { namespace: &self.namespace, id };
        let exporter = Exporter::start_by(runc, &[], |command| self.namespace.spawn(command));
        Container { guard, exporter }
    }

    /// A page of this exporter on which every probe has ended once.
    pub(crate) fn page(&self, exporter: &Exporter) -> Page {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let page = Page::parse(&self.get(exporter));
            let some = |family: &str, part: &str, at_least: usize| {
                page.family(family).filter(|(series, value)| series.contains(part) && *value > 0.0).count() >= at_least
            };
            let asked = some("headroom_apiserver_probe_total", "reused", 1)
                && some("headroom_apiserver_probe_total", "fresh", 1)
                && some("headroom_apiserver_to_kubelet_total", "", 1)
                && some("headroom_node_object_requests_total", "lease", 1)
                && some("headroom_node_object_requests_total", "\"node\"", 1);
            if asked {
                // The slice is read after the health; where it is refused or out of reach it never comes.
                let patience = Duration::from_secs(3);
                let begun = Instant::now();
                loop {
                    std::thread::sleep(Duration::from_millis(300));
                    let page = Page::parse(&self.get(exporter));
                    let read = page.0.keys().any(|series| series.contains("source=\"endpointslice\""));
                    // A connection is nobody's in the moment in which it is made; where it stays so, a right is
                    // missing.
                    let owned = !page.0.keys().any(|series| series.contains("owner=\"unknown\""));
                    let waited = begun.elapsed();
                    if (owned && (read || waited > patience)) || waited > 2 * patience {
                        return page;
                    }
                }
            }
            assert!(Instant::now() < until, "the probes did not end: {page:#?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The text of its page, asked for in its own network.
    pub(crate) fn get(&self, exporter: &Exporter) -> String {
        let output = self.curl(exporter, &["-sS"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The status of the answer to somebody with this token.
    pub(crate) fn status(&self, exporter: &Exporter, token: Option<&str>) -> u16 {
        let header = token.map_or_else(|| "Accept: */*".to_owned(), |token| format!("Authorization: Bearer {token}"));
        let output = self.curl(exporter, &["-sS", "-o", "/dev/null", "-w", "%{http_code}", "-H", &header]);
        String::from_utf8(output.stdout).unwrap().parse().unwrap()
    }

    fn curl(&self, exporter: &Exporter, words: &[&str]) -> std::process::Output {
        let network = format!("--net=/proc/{}/ns/net", exporter.pid());
        let url = format!("http://{}/metrics", exporter.address);
        Command::new("nsenter").args([&network, "curl", "--max-time", "20"]).args(words).arg(&url).output().unwrap()
    }
}

/// The rights of the DaemonSet: uid 0, and of the capabilities the two that are proved necessary.
pub(crate) const FULL: [&str; 4] =
    ["--bounding-set=-all,+sys_ptrace,+dac_read_search", "--inh-caps=-all", "--no-new-privs", "--clear-groups"];

/// A container that runs. Dropped, it goes.
pub(crate) struct Container<'a> {
    guard: Deleted<'a>,
    pub(crate) exporter: Exporter,
}

impl Container<'_> {
    /// A file of the process in it, as those of the lab see it.
    pub(crate) fn proc(&self, file: &str) -> String {
        let state: serde_json::Value = serde_json::from_str(&self.guard.runc(&["state"])).unwrap();
        self.guard.namespace.run(&format!("cat /proc/{}/{file}", state["pid"]))
    }
}

struct Deleted<'a> {
    namespace: &'a Namespace,
    id: String,
}

impl Deleted<'_> {
    /// Among the processes of the lab: pids are those of its namespace.
    fn runc(&self, words: &[&str]) -> String {
        let mut command = self.namespace.command("runc");
        let child =
            self.namespace.spawn(command.args(words).arg(&self.id).stdout(Stdio::piped()).stderr(Stdio::null()));
        String::from_utf8(child.unwrap().wait_with_output().unwrap().stdout).unwrap()
    }
}

impl Drop for Deleted<'_> {
    fn drop(&mut self) {
        self.runc(&["delete", "--force"]);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
        self.runtime = None;
        let until = Instant::now() + Duration::from_secs(5);
        while self.kubepods.exists() && Instant::now() < until {
            remove(&self.kubepods);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Removes a cgroup with all below it, as far as that goes.
fn remove(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(path);
}

fn open_to_all(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn replies(images: &str) -> fake_runtime::Replies {
    use fake_runtime::{
        Container, ContainerMetadata, Containers, Filesystem, ImageFsInfo, Metadata, Sandbox, Sandboxes, Usage, reply,
    };
    let metadata =
        Metadata { name: "web".to_owned(), uid: POD.to_owned(), namespace: "shop".to_owned(), ..Metadata::default() };
    let sandbox = Sandbox { id: SANDBOX.to_owned(), metadata: Some(metadata), ..Sandbox::default() };
    let container = Container {
        id: CONTAINER.to_owned(),
        pod_sandbox_id: SANDBOX.to_owned(),
        metadata: Some(ContainerMetadata { name: "main".to_owned(), attempt: 0 }),
        state: 1,
        ..Container::default()
    };
    let mut replies = fake_runtime::empty();
    let filesystem = Filesystem { mountpoint: images.to_owned() };
    let usage = Usage { fs_id: Some(filesystem), ..Usage::default() };
    replies.insert("ImageFsInfo", reply(&ImageFsInfo { image_filesystems: vec![usage] }));
    replies.insert("ListPodSandbox", reply(&Sandboxes { items: vec![sandbox] }));
    replies.insert("ListContainers", reply(&Containers { containers: vec![container] }));
    replies.insert("PodSandboxStatus", fake_runtime::sandbox_status(None));
    replies
}
