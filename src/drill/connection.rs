//! The drill `stalled-connection`: what the peer sends on one established connection vanishes; new ones work.
//!
//! Only replies are dropped, on their way in. Dropping what is sent would not be silent: the socket that sends is told
//! (`EPERM`), and TCP keeps the segment as unsent. Seen from the process it is the same: nothing is ever acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::expect::{Page, page};
use super::journal::{Item, Journal, MARK};
use super::{Fault, Next, Result, Run, failed, refused, run as command, tried};
use crate::host::sockets::TcpConnection;
use crate::host::{Deadline, Host, Roots};

/// More rules are never made.
const MOST: usize = 32;

#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("whose").required(true).args(["pid", "connect"])))]
pub(super) struct StalledConnection {
    /// Stall a connection of this process, for example the kubelet's
    #[arg(long)]
    pub(super) pid: Option<u32>,
    /// Make a connection of its own to this address, and stall that
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(super) connect: Option<SocketAddr>,
    /// With --pid: the peer's port
    #[arg(long, default_value_t = 6443)]
    pub(super) port: u16,
    /// With --pid: stall each connection that the process makes afterwards too, up to 32
    #[arg(long)]
    pub(super) again: bool,
}

impl Fault for StalledConnection {
    fn plan(&self) -> Result<Vec<String>> {
        let whose = match (self.pid, self.connect) {
            (Some(pid), _) => {
                let found = connections(pid, self.port)?;
                if found.is_empty() {
                    return refused(format_args!("process {pid} has no established connection to port {}", self.port));
                }
                let listed = found.keys().map(|(local, peer)| format!("{local} to {peer}"));
                format!("process {pid}: {}", listed.collect::<Vec<_>>().join(", "))
            }
            (None, Some(peer)) => format!("the drill itself to {peer}"),
            (None, None) => return refused("neither --pid nor --connect"),
        };
        let again = if self.again { ", and of those made later" } else { "" };
        Ok(vec![format!(
            "drop by iptables (INPUT, comment {MARK}{}) the replies on the connection of {whose}{again}; see \
             headroom_apiserver_connection_stalled become 1, alert on a stalled connection",
            Journal::number()
        )])
    }

    fn make(&self, run: &mut Run) -> Result<()> {
        match (self.pid, self.connect) {
            (Some(pid), _) => stall_theirs(pid, self, run),
            (None, Some(peer)) => stall_ours(peer, run),
            (None, None) => refused("neither --pid nor --connect"),
        }
    }

    fn pages(&self) -> Vec<Page> {
        let of_a_process = self.pid.map(|_| page("HeadroomApiserverConnectionStalled", 42, "of a kubelet"));
        of_a_process.into_iter().collect()
    }
}

/// Our side and the peer's.
type Ends = (SocketAddr, SocketAddr);

/// The connections that a process has to a port, with what TCP counted on each.
fn connections(pid: u32, port: u16) -> Result<BTreeMap<Ends, Replies>> {
    let namespace = |of: &str| fs::read_link(format!("/proc/{of}/ns/net"));
    let theirs = tried(format_args!("process {pid}, which may have ended"), namespace(&pid.to_string()))?;
    if tried("our own namespace", namespace("self"))? != theirs {
        return refused(format_args!(
            "process {pid} is in another network namespace: run the drill there (nsenter -n)"
        ));
    }
    let fds = tried(format_args!("process {pid}, which may have ended"), fs::read_dir(format!("/proc/{pid}/fd")))?;
    let inode = |entry: fs::DirEntry| {
        let link = fs::read_link(entry.path()).ok()?;
        link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u32>().ok()
    };
    let inodes: BTreeSet<u32> = fds.flatten().filter_map(inode).collect();
    let mut all = established(port)?;
    all.retain(|one| inodes.contains(&one.inode));
    Ok(all.iter().map(|one| ((one.local, one.peer), Replies::of(one))).collect())
}

fn established(port: u16) -> Result<Vec<TcpConnection>> {
    let host = Host::new(Roots::default());
    tried("sock_diag", host.tcp_connections(&[port], Deadline::after(Duration::from_secs(5))))
}

/// What came in on a connection, by TCP's own counters: both stand still while the replies are dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Replies {
    acknowledged: u64,
    received: u64,
}

impl Replies {
    fn of(connection: &TcpConnection) -> Self {
        let info = connection.info.as_ref();
        Replies {
            acknowledged: info.and_then(|info| info.bytes_acked).unwrap_or(0),
            received: info.and_then(|info| info.bytes_received).unwrap_or(0),
        }
    }
}

/// The connections that are stalled, with what had come in on each once the rule was there.
#[derive(Default)]
struct Stalled(BTreeMap<Ends, Option<Replies>>);

impl Stalled {
    /// An error once a rule is gone, or a reply came through all the same.
    fn check(&mut self, now: &BTreeMap<Ends, Replies>) -> Result<()> {
        for program in ["iptables", "ip6tables"] {
            let wanted = self.0.keys().filter(|(local, _)| program_of(*local) == program).count();
            if wanted == 0 {
                continue;
            }
            let comment = format!("{MARK}{} ", Journal::number());
            let there =
                command(program, &["-w", "-S", "INPUT"])?.lines().filter(|line| line.contains(&comment)).count();
            if there < wanted {
                return failed(format_args!(
                    "{} of the {wanted} rules of {program} were removed: something on this node flushes INPUT (firewalld, a script)",
                    wanted - there
                ));
            }
        }
        for (ends, before) in &mut self.0 {
            let Some(now) = now.get(ends) else { continue };
            match before {
                Some(before) if before != now => {
                    return failed(format_args!(
                        "replies still arrive on {}-{}: another rule lets them in before the drill's drops them (iptables -S INPUT)",
                        ends.0, ends.1
                    ));
                }
                // One look later: what was under way when the rule was made has arrived.
                _ => *before = Some(*now),
            }
        }
        Ok(())
    }

    fn words(&self) -> String {
        self.0.keys().map(|(local, peer)| format!("{local}-{peer}")).collect::<Vec<_>>().join(" ")
    }
}

fn program_of(local: SocketAddr) -> &'static str {
    if local.is_ipv4() { "iptables" } else { "ip6tables" }
}

fn stall(journal: &mut Journal, local: SocketAddr, peer: SocketAddr) -> Result<()> {
    let program = program_of(local);
    let rule = format!(
        "-p tcp -s {} --sport {} -d {} --dport {} -m comment --comment {MARK}{} -j DROP",
        peer.ip(),
        peer.port(),
        local.ip(),
        local.port(),
        Journal::number()
    );
    journal.note(Item::Rule(program.to_owned(), rule.clone()))?;
    let words: Vec<&str> = rule.split(' ').collect();
    command(program, &[&["-w", "-I", "INPUT"], words.as_slice()].concat()).map(drop)
}

fn stall_theirs(pid: u32, options: &StalledConnection, run: &mut Run) -> Result<()> {
    let mut stalled = Stalled::default();
    let first = connections(pid, options.port)?;
    if first.is_empty() {
        return refused("there is no such connection");
    }
    for (local, peer) in first.into_keys().take(MOST) {
        stall(&mut run.journal, local, peer)?;
        stalled.0.insert((local, peer), None);
    }
    run.every_second_until(|journal, _| {
        let now = connections(pid, options.port)?;
        stalled.check(&now)?;
        for (local, peer) in now.into_keys().filter(|ends| !stalled.0.contains_key(ends)).collect::<Vec<_>>() {
            if options.again && stalled.0.len() < MOST {
                stall(journal, local, peer)?;
                stalled.0.insert((local, peer), None);
            }
        }
        let now = connections(pid, options.port)?;
        let held = now.keys().filter(|ends| stalled.0.contains_key(ends)).count();
        let others = now.len() - held;
        if held == 0 && !options.again {
            return Ok(Next::End(format!(
                "process {pid} gave up every stalled connection, and has {others} others: that was the drill"
            )));
        }
        Ok(Next::Line(format!(
            "stalled: {}; process {pid} still holds {held} of them, and {others} others",
            stalled.words()
        )))
    })
}

fn stall_ours(peer: SocketAddr, run: &mut Run) -> Result<()> {
    let mut stream = tried(peer, TcpStream::connect_timeout(&peer, Duration::from_secs(5)))?;
    tried(peer, stream.set_nonblocking(true))?;
    let ends = (tried(peer, stream.local_addr())?, peer);
    stall(&mut run.journal, ends.0, ends.1)?;
    let mut stalled = Stalled(BTreeMap::from([(ends, None)]));
    run.every_second(|_, _| {
        // Something must be outstanding. A full send queue is as good.
        match stream.write(b"\n") {
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => {
                return failed(format_args!("the kernel gave up the connection to {peer}: {error}"));
            }
            _ => {}
        }
        let now = established(peer.port())?;
        let now: BTreeMap<Ends, Replies> = now.iter().map(|one| ((one.local, one.peer), Replies::of(one))).collect();
        if !now.contains_key(&ends) {
            return failed(format_args!("the connection to {peer} is not established any more"));
        }
        stalled.check(&now)?;
        Ok(format!("stalled: {}", stalled.words()))
    })
}
