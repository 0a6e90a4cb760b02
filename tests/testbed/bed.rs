//! Everything together, and waiting for what a page shows.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::common::netns::{self, CP, CP6, Connection, Pair};
use crate::common::{self, Exporter, Page};
use crate::testbed::control::Request;
use crate::testbed::witness::Socket;
use crate::testbed::{DEAD, Double, KUBELET_AGENT, KubeletLike, NEXT, NODE_NAME, PORT, TOKEN, Way};

/// What ends first comes first: a namespace is gone once its processes are.
pub struct Bed {
    /// Behind a lock, so that it can be started again while a fault lasts, which holds on to the pair.
    exporter: Mutex<Option<Arc<Exporter>>>,
    kubelet: Option<KubeletLike>,
    pub double: Double,
    pub pair: Pair,
    pub directory: tempfile::TempDir,
}

/// Whether there can be one here; if not, that is said.
pub fn possible() -> bool {
    let lacking = netns::lacking();
    if let Some(lacking) = &lacking {
        common::say_skip(format_args!("network namespaces: no {lacking}"));
    }
    lacking.is_none()
}

/// Where the double listens.
pub fn server() -> SocketAddr {
    (CP, PORT).into()
}

impl Bed {
    /// Where there can be one.
    pub fn open() -> Option<Self> {
        possible().then(Bed::new)
    }

    /// The two namespaces and the double.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let pair = Pair::new();
        let bed = |name| directory.path().join(name);
        std::fs::write(bed("resolv.conf"), format!("nameserver {CP}\noptions timeout:1 attempts:1\n")).unwrap();
        for namespace in [&pair.node, &pair.cp] {
            namespace.run(&format!("mount --bind {} /etc/resolv.conf", bed("resolv.conf").display()));
        }
        std::fs::write(bed("token"), TOKEN).unwrap();
        for address in [NEXT, DEAD] {
            pair.cp.run(&format!("ip addr add {address}/24 dev cable"));
        }
        pair.cp.run(&format!("iptables -w -I INPUT -d {DEAD} -j DROP"));
        let double = Double::start(&pair.cp, directory.path());
        let bed = Bed { exporter: Mutex::default(), kubelet: None, double, pair, directory };
        bed.write_kubeconfig(&bed.kubeconfig(&format!("https://{CP}:{PORT}")));
        bed
    }

    /// A kubelet's, with this server.
    pub fn kubeconfig(&self, server: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: default\n\
             clusters:\n- name: default\n  cluster:\n    server: {server}\n    certificate-authority: {}\n\
             contexts:\n- name: default\n  context:\n    cluster: default\n    user: default\n\
             users:\n- name: default\n  user:\n    client-certificate: /var/lib/kubelet/pki/kubelet-client-current.pem\n",
            self.directory.path().join("ca.pem").display()
        )
    }

    /// The kubeconfig that the exporter is told is the kubelet's.
    pub fn write_kubeconfig(&self, text: &str) {
        std::fs::write(self.directory.path().join("kubelet.conf"), text).unwrap();
    }

    /// With a client like the kubelet that renews its lease so often, and the exporter with these further flags.
    pub fn with(mut self, environment: &[(&str, &str)], renew: Duration, flags: &[&str]) -> Self {
        self.start_kubelet(environment, renew);
        self.start_exporter(&format!("https://{CP}:{PORT}"), flags);
        self
    }

    pub fn start_kubelet(&mut self, environment: &[(&str, &str)], renew: Duration) {
        self.start_kubelet_by(Way::default(), environment, renew);
    }

    pub fn start_kubelet_by(&mut self, way: Way, environment: &[(&str, &str)], renew: Duration) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        self.start_kubelet_in_vain(way, environment, renew);
        let its = |request: &Request| request.at > now && renewal(request);
        wait(Duration::from_secs(10), "a renewal", || self.requests(KUBELET_AGENT).iter().any(its).then_some(()));
    }

    /// One whose way is broken from the start.
    pub fn start_kubelet_in_vain(&mut self, way: Way, environment: &[(&str, &str)], renew: Duration) {
        let renew = renew.as_millis() as u64;
        self.kubelet = Some(KubeletLike::start(&self.pair.node, self.directory.path(), way, environment, renew));
    }

    pub fn stop_kubelet(&mut self) {
        self.kubelet = None;
    }

    pub fn start_exporter(&self, url: &str, flags: &[&str]) {
        let at = |name| self.directory.path().join(name).display().to_string();
        let kubeconfig = format!("--kubelet.kubeconfig={}", at("kubelet.conf"));
        self.start_exporter_bare(url, &[&[&*kubeconfig], flags].concat());
    }

    /// Not told where the kubelet's kubeconfig is.
    pub fn start_exporter_bare(&self, url: &str, flags: &[&str]) {
        self.start_exporter_by(&[], url, flags);
    }

    /// By a command that ends in the exporter (`setpriv …`).
    pub fn start_exporter_by(&self, before: &[&str], url: &str, flags: &[&str]) {
        let at = |name| self.directory.path().join(name).display().to_string();
        let words = [before, &[env!("CARGO_BIN_EXE_headroom-exporter")]].concat();
        let mut command = self.pair.node.command(words[0]);
        command.args(&words[1..]);
        let (token, ca) = (at("token"), at("ca.pem"));
        let own = [
            "--collector.disable-defaults",
            "--collector.apiserver_connection",
            "--collector.node_status",
            &format!("--apiserver.url={url}"),
            &format!("--apiserver.token-file={token}"),
            &format!("--apiserver.ca-file={ca}"),
            &format!("--node-name={NODE_NAME}"),
        ];
        let flags: Vec<&str> = own.into_iter().chain(flags.iter().copied()).collect();
        let exporter = Exporter::start_by(command, &flags, |command| self.pair.node.spawn(command));
        *self.exporter.lock().unwrap() = Some(Arc::new(exporter));
    }

    pub fn exporter(&self) -> Arc<Exporter> {
        self.exporter.lock().unwrap().clone().expect("an exporter was started")
    }

    pub fn kubelet(&self) -> &KubeletLike {
        self.kubelet.as_ref().expect("a kubelet was started")
    }

    pub fn scrape(&self) -> Page {
        self.pair.node.inside(|| self.exporter().scrape())
    }

    /// The first page on which it is so, and after how long.
    ///
    /// # Panics
    /// If it is not so within this time.
    pub fn until(&self, limit: Duration, what: &str, so: impl Fn(&Page) -> bool) -> (Page, Duration) {
        let (start, mut last) = (Instant::now(), self.scrape());
        while !so(&last) {
            if start.elapsed() > limit {
                let ours = ["headroom_apiserver", "headroom_kubelet", "headroom_node"];
                let ours = |series: &str| ours.iter().any(|name| series.starts_with(name));
                let ours = last.0.iter().filter(|(series, _)| ours(series) && !series.contains("_bucket"));
                let page: String = ours.map(|(series, value)| format!("{series} {value}\n")).collect();
                let sockets: Vec<String> = self.all_sockets().iter().map(|socket| format!("{socket:?}\n")).collect();
                panic!("not so after {limit:?}: {what}\n{page}{}", sockets.concat());
            }
            std::thread::sleep(Duration::from_millis(100));
            last = self.scrape();
        }
        (last, start.elapsed())
    }

    /// The node's TCP sockets to the apiserver, by the word of `ss`.
    pub fn sockets(&self) -> Vec<Socket> {
        self.all_sockets().into_iter().filter(|socket| socket.peer.port() == PORT).collect()
    }

    /// All of the node's TCP connections.
    pub fn all_sockets(&self) -> Vec<Socket> {
        // Not with the namespace's own /proc: processes are numbered as outside.
        let net = format!("--net=/proc/{}/ns/net", self.pair.node.init());
        let output = Command::new("nsenter").args([&net, "ss", "-tinpaH", "-O"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().filter_map(Socket::parse).collect()
    }

    /// The established connections of a process to the apiserver.
    pub fn connections(&self, pid: u32) -> Vec<Connection> {
        let held = |socket: &Socket| socket.state == "ESTAB" && socket.pids.contains(&pid);
        let sockets = self.sockets().into_iter().filter(held);
        sockets.map(|socket| Connection { node: socket.local, cp: socket.peer }).collect()
    }

    /// The one connection of this process to this peer, once it is the only one.
    pub fn the_one(&self, comm: &str, peer: SocketAddr) -> Connection {
        let within = Duration::from_secs(15);
        wait(within, &format!("one connection of {comm} to {peer}"), || match self.lasting(comm, peer)[..] {
            [connection] => Some(connection),
            _ => None,
        })
    }

    /// The established connections to this address of the processes with this name. Those that last: a balancer looks
    /// after its upstreams by connections of a moment.
    pub fn lasting(&self, comm: &str, peer: SocketAddr) -> Vec<Connection> {
        let look = || -> Vec<Connection> {
            let named = |pid: &u32| {
                std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end() == comm)
            };
            let held =
                |socket: &Socket| socket.state == "ESTAB" && socket.peer == peer && socket.pids.iter().any(named);
            let sockets = self.all_sockets().into_iter().filter(held);
            sockets.map(|socket| Connection { node: socket.local, cp: socket.peer }).collect()
        };
        let before = look();
        std::thread::sleep(Duration::from_millis(300));
        look().into_iter().filter(|connection| before.contains(connection)).collect()
    }

    pub fn socket(&self, connection: Connection) -> Option<Socket> {
        self.all_sockets().into_iter().find(|socket| (socket.local, socket.peer) == (connection.node, connection.cp))
    }

    /// The last requests of one client.
    pub fn requests(&self, agent: &str) -> Vec<Request> {
        let recent = self.double.report().recent;
        recent.into_iter().filter(|request| request.agent.starts_with(agent)).collect()
    }

    pub fn write_token(&self, token: &str) {
        // As the kubelet's projected volumes do: another file under the same name.
        let (new, old) = (self.directory.path().join("token.new"), self.directory.path().join("token"));
        std::fs::write(&new, token).unwrap();
        std::fs::rename(new, old).unwrap();
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for role in ["apiserver", "kubelet", "forwarder", "nginx", "haproxy"] {
                let log = std::fs::read_to_string(self.directory.path().join(format!("{role}.log")));
                if let Ok(log) = log {
                    eprintln!("--- {role}\n{log}");
                }
            }
        }
    }
}

pub fn renewal(request: &Request) -> bool {
    request.what.starts_with("PUT ") && request.status == Some(200)
}

/// Looks until there is something.
///
/// # Panics
/// If there is nothing within this time.
pub fn wait<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "not so after {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `IP:PORT` of the apiserver as a label has it.
pub fn peer(address: IpAddr) -> String {
    std::net::SocketAddr::new(address, PORT).to_string()
}

/// Both families of the double.
pub const PEERS: [IpAddr; 2] = [CP, CP6];
