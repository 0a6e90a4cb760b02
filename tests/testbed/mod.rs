//! The test bed of the network side: a double of the apiserver in one namespace, in the other a client that behaves as
//! the kubelet and the exporter itself.
//!
//! The double and the client are this same test binary, started again with a role in the environment: `helper` must be
//! called by a test of that name.

#![allow(unreachable_pub, missing_docs, reason = "shared by several test binaries")]
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

pub mod balancer;
pub mod bed;
pub mod control;
mod double;
pub mod forwarder;
mod kubelet_like;
mod names;
pub mod objects;
pub mod series;
pub mod witness;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Mutex;

use control::{Names, Order, Report, Settings, Silent};

use crate::common::netns::{CP, CP6, Namespace};

#[allow(unused_imports, reason = "each test binary uses its own part")]
pub use kubelet_like::Embedded;
#[allow(unused_imports, reason = "each test binary uses its own part")]
pub use names::NAME;

/// A second apiserver behind the service address, which only the endpoints of the service tell of.
pub const ANOTHER: &str = "192.0.2.77";

/// Another address that the double listens at.
pub const NEXT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 3));

/// An address of the control plane's at which every packet vanishes.
pub const DEAD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 9));

/// Where a balancer on the node listens.
pub const BALANCER: (IpAddr, u16) = (IpAddr::V4(Ipv4Addr::LOCALHOST), 7443);

/// As in the recorded objects.
pub const NODE_NAME: &str = "tb-node";
pub const PORT: u16 = 6443;
pub const KUBELET_AGENT: &str = "kubelet-like";
pub const KUBELET_TOKEN: &str = "the-kubelets";
pub const TOKEN: &str = "the-exporters";

const ROLE: &str = "HEADROOM_TEST_ROLE";
const ARGUMENT: &str = "HEADROOM_TEST_ARGUMENT";

/// What a helper does. Without a role it does nothing.
pub fn helper() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let argument = std::env::var(ARGUMENT).unwrap();
    match role.as_str() {
        "apiserver" => double::run(Path::new(&argument), Settings::default()),
        "forwarder" => forwarder::run(&serde_json::from_str(&argument).unwrap()),
        "kubelet" => kubelet_like::run(serde_json::from_str(&argument).unwrap()),
        _ => panic!("{role}: no such role"),
    }
}

/// This binary with a role. It ends with its standard input; its words go to `<role>.log` in the directory.
fn start(
    namespace: &Namespace,
    role: &str,
    argument: &str,
    directory: &Path,
    environment: &[(&str, &str)],
    input: Stdio,
) -> Child {
    let mut command = namespace.command(std::env::current_exe().unwrap());
    let log = std::fs::File::options().create(true).append(true).open(directory.join(format!("{role}.log"))).unwrap();
    // A proxy of this machine's is none of the bed's.
    for name in ["HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"] {
        command.env_remove(name).env_remove(name.to_lowercase());
    }
    command
        .args(["--exact", "helper", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env(ARGUMENT, argument)
        .envs(environment.iter().copied())
        .stdin(input)
        .stdout(Stdio::null())
        .stderr(log);
    namespace.spawn(&mut command).unwrap()
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            listening: true,
            foreign: false,
            silent: Silent::Never,
            slow_ms: 0,
            refusal: None,
            tokens: vec![TOKEN.to_owned(), KUBELET_TOKEN.to_owned()],
            node: Some(objects::node(&objects::HEALTHY)),
            endpoints: vec![CP.to_string(), ANOTHER.to_owned()],
            kubelet_status: 200,
            names: Names::Answer,
            addresses: vec![CP, CP6],
        }
    }
}

/// The apiserver's double, from outside.
pub struct Double {
    child: Child,
    control: Mutex<BufReader<UnixStream>>,
    settings: Mutex<Settings>,
}

impl Double {
    /// In the control plane's namespace, listening, with the recorded objects made fresh. Its authority is `ca.pem` in
    /// the directory.
    pub fn start(namespace: &Namespace, directory: &Path) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let argument = directory.to_str().unwrap();
        let child = start(namespace, "apiserver", argument, directory, &[], Stdio::from(OwnedFd::from(theirs)));
        let double = Double { child, control: Mutex::new(BufReader::new(ours)), settings: Mutex::default() };
        double.lease(Some(objects::lease(0.0)));
        double.tell(|_| {});
        double
    }

    /// Changes how it behaves. It does so when this returns.
    pub fn tell(&self, change: impl FnOnce(&mut Settings)) {
        let mut settings = self.settings.lock().unwrap();
        change(&mut settings);
        self.order(&Order::Settings(Box::new(settings.clone())));
    }

    pub fn lease(&self, lease: Option<serde_json::Value>) {
        self.order(&Order::Lease(lease));
    }

    /// GOAWAY on each HTTP/2 connection.
    pub fn go_away(&self) {
        self.order(&Order::GoAway);
    }

    /// Closes each connection.
    pub fn close_all(&self) {
        self.order(&Order::Close);
    }

    pub fn report(&self) -> Report {
        self.order(&Order::Report)
    }

    fn order(&self, order: &Order) -> Report {
        let mut control = self.control.lock().unwrap();
        let mut line = serde_json::to_vec(order).unwrap();
        line.push(b'\n');
        control.get_mut().write_all(&line).expect("the double ended");
        let mut answer = String::new();
        control.read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).expect("the double ended")
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How the client that behaves as the kubelet reaches the apiserver.
#[derive(Clone, Debug)]
pub struct Way {
    /// `HOST:PORT`, an address or a name.
    pub server: String,
    /// It connects to this address instead, which leads there.
    pub address: Option<SocketAddr>,
    /// Through this proxy, by `CONNECT`.
    pub proxy: Option<SocketAddr>,
    pub embedded: Option<Embedded>,
}

impl Way {
    pub fn to(server: impl ToString) -> Self {
        Way { server: server.to_string(), address: None, proxy: None, embedded: None }
    }
}

/// Straight to the double.
impl Default for Way {
    fn default() -> Self {
        Way::to(SocketAddr::new(CP, PORT))
    }
}

/// A process that behaves as the kubelet. Its connections are closed by the kernel when dropped.
pub struct KubeletLike(Child);

impl KubeletLike {
    /// With these variables in its environment, renewing the lease so often.
    pub fn start(node: &Namespace, directory: &Path, way: Way, environment: &[(&str, &str)], renew_ms: u64) -> Self {
        let arguments = kubelet_like::Arguments {
            server: way.server,
            address: way.address,
            proxy: way.proxy,
            embedded: way.embedded,
            directory: directory.to_owned(),
            token: KUBELET_TOKEN.to_owned(),
            renew_ms,
        };
        let argument = serde_json::to_string(&arguments).unwrap();
        KubeletLike(start(node, "kubelet", &argument, directory, environment, Stdio::piped()))
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for KubeletLike {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
