//! Two machines in one: the namespaces `node` and `cp` (control plane) with a cable between them, and what can go wrong
//! on it.
//!
//! A namespace lives as long as its first process, and that ends with its standard input: whatever happens to a test,
//! killed with no chance to clean up included, nothing stays behind. Network, mounts and processes are its own: a
//! `kubelet` in it is the only one to be seen there, and `/etc/resolv.conf` can be replaced in it alone.
//!
//! A packet is dropped where it arrives: refused on its way out it would never have been sent, and the socket knows
//! that.

#![allow(unreachable_pub, missing_docs, reason = "shared by several test binaries")]
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1));
pub const CP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2));
pub const NODE6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1));
pub const CP6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2));

/// What the tests with namespaces need and this machine lacks.
pub fn lacking() -> Option<String> {
    if !crate::common::is_root() {
        return Some("root".to_owned());
    }
    let programs = ["unshare", "nsenter", "ip", "ss", "iptables", "ip6tables", "python3"];
    if let Some(program) = programs.into_iter().find(|program| !crate::common::has(program)) {
        return Some(program.to_owned());
    }
    let may = Command::new("unshare").args(["--net", "--mount", "--pid", "--fork", "--mount-proc", "true"]).output();
    if may.is_ok_and(|output| !output.status.success()) {
        return Some("right to make namespaces".to_owned());
    }
    let files = ["/dev/net/tun", "/proc/net/if_inet6"];
    files.into_iter().find(|file| !std::path::Path::new(file).exists()).map(str::to_owned)
}

pub struct Namespace {
    holder: Child,
    init: u32,
}

impl Namespace {
    pub fn new() -> Self {
        let mut holder = Command::new("unshare")
            .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // The echo says that everything is in place.
        holder.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", holder.id())).unwrap();
        let init = children.trim().parse().unwrap_or_else(|_| panic!("no namespace: {children:?}"));
        let namespace = Namespace { holder, init };
        namespace.run("ip link set lo up");
        namespace
    }

    /// Its first process, as it is numbered outside.
    pub fn init(&self) -> u32 {
        self.init
    }

    /// A command in its network and with its mounts. Started as any other it is not among its processes; see
    /// [`Namespace::spawn`].
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--net", "--mount", "--"]).arg(program);
        command
    }

    /// Runs a shell command in it and returns what that printed.
    ///
    /// # Panics
    /// If it fails.
    pub fn run(&self, script: &str) -> String {
        let output = self.command("sh").args(["-ec", script]).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts a command among its processes, with no other process between.
    pub fn spawn(&self, command: &mut Command) -> std::io::Result<Child> {
        self.on_a_thread("pid", LinkNameSpaceType::ProcessID, || command.spawn())
    }

    /// What this gives in its network.
    pub fn inside<T: Send>(&self, there: impl FnOnce() -> T + Send) -> T {
        self.on_a_thread("net", LinkNameSpaceType::Network, there)
    }

    fn on_a_thread<T: Send>(&self, link: &str, of: LinkNameSpaceType, there: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/proc/{}/ns/{link}", self.init)).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(namespace.as_fd(), Some(of)).unwrap();
                there()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        // It ends once its processes are reaped. One that is still held elsewhere must not hang the test.
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until && !matches!(self.holder.try_wait(), Ok(Some(_))) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// The cable and its two ends.
pub struct Pair {
    pub node: Namespace,
    pub cp: Namespace,
}

/// One connection: the client's end on the node, the server's in the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Connection {
    pub node: SocketAddr,
    pub cp: SocketAddr,
}

impl Connection {
    fn iptables(&self) -> &'static str {
        if self.node.is_ipv4() { "iptables" } else { "ip6tables" }
    }

    fn sent(&self) -> String {
        let (node, cp) = (self.node, self.cp);
        format!("-p tcp -s {} --sport {} -d {} --dport {}", node.ip(), node.port(), cp.ip(), cp.port())
    }

    fn replies(&self) -> String {
        Connection { node: self.cp, cp: self.node }.sent()
    }
}

impl Pair {
    /// # Panics
    /// Where [`lacking`] says so.
    pub fn new() -> Self {
        let pair = Pair { node: Namespace::new(), cp: Namespace::new() };
        // A name is taken by the one who creates: both ends are made where they belong.
        pair.node.run(&format!("ip link add cable type veth peer name cable netns {}", pair.cp.init));
        for (namespace, address, address6) in [(&pair.node, NODE, NODE6), (&pair.cp, CP, CP6)] {
            namespace.run(&format!(
                "ip addr add {address}/24 dev cable; ip -6 addr add {address6}/64 dev cable nodad; ip link set cable up"
            ));
        }
        pair
    }

    /// Every packet of one connection vanishes, without a word to either end. New connections pass.
    pub fn drop_connection(&self, connection: Connection) -> Fault<'_> {
        let mut fault = self.drop_replies(connection);
        fault.input(&self.cp, connection.iptables(), &format!("{} -j DROP", connection.sent()));
        fault
    }

    /// What the server sends on one connection vanishes.
    pub fn drop_replies(&self, connection: Connection) -> Fault<'_> {
        let mut fault = Fault::default();
        fault.input(&self.node, connection.iptables(), &format!("{} -j DROP", connection.replies()));
        fault
    }

    /// Nothing passes.
    pub fn drop_everything(&self) -> Fault<'_> {
        self.everywhere("! -i lo -j DROP")
    }

    /// This part of all packets is lost, each direction by itself.
    pub fn lose(&self, part: f64) -> Fault<'_> {
        self.everywhere(&format!("! -i lo -m statistic --mode random --probability {part} -j DROP"))
    }

    fn everywhere(&self, rule: &str) -> Fault<'_> {
        let mut fault = Fault::default();
        for namespace in [&self.node, &self.cp] {
            for iptables in ["iptables", "ip6tables"] {
                fault.input(namespace, iptables, rule);
            }
        }
        fault
    }

    /// The next packet of one connection that arrives is answered with a reset.
    pub fn reset(&self, connection: Connection) -> Fault<'_> {
        let mut fault = Fault::default();
        let rule = format!("{} -j REJECT --reject-with tcp-reset", connection.sent());
        fault.input(&self.cp, connection.iptables(), &rule);
        fault
    }

    /// Each packet takes this much longer in each direction, on connections there are and on new ones.
    pub fn delay(&self, each_way: Duration) -> Relay {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/relay.py");
        let mut command = self.cp.command("python3");
        command.args([script, &format!("{}", each_way.as_secs_f64() * 1000.0), "far", "near"]);
        let mut relay = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(relay.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "the relay failed");
        let relay = Relay(relay);
        // A route to one host beats the cable's. With the relay go its devices, and with them these routes.
        self.cp.run(&format!("ip link set far netns {}", self.node.init));
        let route = |device, to, from, to6, from6| {
            format!(
                "ip link set {device} up; ip route add {to}/32 dev {device} src {from};
                 ip -6 route add {to6}/128 dev {device} src {from6}"
            )
        };
        self.cp.run(&route("near", NODE, CP, NODE6, CP6));
        self.node.run(&route("far", CP, NODE, CP6, NODE6));
        relay
    }
}

/// Rules in force until it is dropped.
#[derive(Default)]
#[must_use = "a fault is lifted when this is dropped"]
pub struct Fault<'a>(Vec<(&'a Namespace, &'static str, String)>);

impl<'a> Fault<'a> {
    fn input(&mut self, namespace: &'a Namespace, iptables: &'static str, rule: &str) {
        namespace.run(&format!("{iptables} -w -I INPUT {rule}"));
        self.0.push((namespace, iptables, rule.to_owned()));
    }
}

impl Drop for Fault<'_> {
    fn drop(&mut self) {
        for (namespace, iptables, rule) in &self.0 {
            namespace.run(&format!("{iptables} -w -D INPUT {rule}"));
        }
    }
}

/// A longer way, until it is dropped.
#[must_use = "a fault is lifted when this is dropped"]
pub struct Relay(Child);

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
