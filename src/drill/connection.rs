//! The drill `stalled-connection`: what the peer sends on one established connection vanishes; new ones work.
//!
//! Only replies are dropped, on their way in. Dropping what is sent would not be silent: the socket that sends is told
//! (`EPERM`), and TCP keeps the segment as unsent. Seen from the process it is the same: nothing is ever acknowledged.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::cli::StalledConnection;
use super::journal::{Item, Journal, MARK};
use super::{Result, Run, refused, run as command, tried};
use crate::host::{Deadline, Host, Roots};

/// More rules are never made.
const MOST: usize = 32;

pub(super) fn plan(options: &StalledConnection) -> Result<Vec<String>> {
    let whose = match (options.pid, options.connect) {
        (Some(pid), _) => {
            let found = connections(pid, options.port)?;
            if found.is_empty() {
                return refused(format_args!("process {pid} has no established connection to port {}", options.port));
            }
            let listed = found.iter().map(|(local, peer)| format!("{local} to {peer}"));
            format!("process {pid}: {}", listed.collect::<Vec<_>>().join(", "))
        }
        (None, Some(peer)) => format!("the drill itself to {peer}"),
        (None, None) => return refused("neither --pid nor --connect"),
    };
    let again = if options.again { ", and of those made later" } else { "" };
    Ok(vec![format!(
        "drop by iptables (INPUT, comment {MARK}{}) the replies on the connection of {whose}{again}; see \
         headroom_apiserver_connection_stalled become 1, alert on a stalled connection",
        Journal::number()
    )])
}

/// Our side and the peer's, of the connections that a process has to a port.
fn connections(pid: u32, port: u16) -> Result<BTreeSet<(SocketAddr, SocketAddr)>> {
    let namespace = |of: &str| fs::read_link(format!("/proc/{of}/ns/net"));
    let theirs = tried(format_args!("process {pid}"), namespace(&pid.to_string()))?;
    if tried("our own namespace", namespace("self"))? != theirs {
        return refused(format_args!(
            "process {pid} is in another network namespace: run the drill there (nsenter -n)"
        ));
    }
    let fds = tried(format_args!("process {pid}"), fs::read_dir(format!("/proc/{pid}/fd")))?;
    let inode = |entry: fs::DirEntry| {
        let link = fs::read_link(entry.path()).ok()?;
        link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u32>().ok()
    };
    let inodes: BTreeSet<u32> = fds.flatten().filter_map(inode).collect();
    let host = Host::new(Roots::default());
    let all = tried("sock_diag", host.tcp_connections(&[port], Deadline::after(Duration::from_secs(5))))?;
    Ok(all.into_iter().filter(|one| inodes.contains(&one.inode)).map(|one| (one.local, one.peer)).collect())
}

fn stall(journal: &mut Journal, local: SocketAddr, peer: SocketAddr) -> Result<()> {
    let program = if local.is_ipv4() { "iptables" } else { "ip6tables" };
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

pub(super) fn make(options: &StalledConnection, run: &mut Run) -> Result<()> {
    let mut stalled = BTreeSet::new();
    let mut own = None;
    let first = match (options.pid, options.connect) {
        (Some(pid), _) => connections(pid, options.port)?,
        (None, Some(peer)) => {
            let stream = tried(peer, TcpStream::connect_timeout(&peer, Duration::from_secs(5)))?;
            tried(peer, stream.set_nonblocking(true))?;
            let ends = (tried(peer, stream.local_addr())?, peer);
            own = Some(stream);
            BTreeSet::from([ends])
        }
        (None, None) => BTreeSet::new(),
    };
    if first.is_empty() {
        return refused("there is no such connection");
    }
    for (local, peer) in first.into_iter().take(MOST) {
        stall(&mut run.journal, local, peer)?;
        stalled.insert((local, peer));
    }
    run.every_second(|journal, _| {
        if let Some(stream) = &mut own {
            // Something must be outstanding. A full send queue is as good.
            let _ = stream.write(b"\n");
        }
        let Some(pid) = options.pid else { return Ok(format!("stalled: {}", words(&stalled))) };
        let now = connections(pid, options.port)?;
        for (local, peer) in now.difference(&stalled.clone()) {
            if options.again && stalled.len() < MOST {
                stall(journal, *local, *peer)?;
                stalled.insert((*local, *peer));
            }
        }
        let held = now.intersection(&stalled).count();
        Ok(format!(
            "stalled: {}; process {pid} still holds {held} of them, and {} others",
            words(&stalled),
            now.len() - held
        ))
    })
}

fn words(connections: &BTreeSet<(SocketAddr, SocketAddr)>) -> String {
    connections.iter().map(|(local, peer)| format!("{local}-{peer}")).collect::<Vec<_>>().join(" ")
}
