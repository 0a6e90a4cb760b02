//! What stands between the client like the kubelet and the apiserver's double, tested by itself: whose sockets are
//! where, by the word of `ss`, and that each fault is what its name says. The exporter has no part in it.

#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::net::SocketAddr;
use std::time::Duration;

use crate::common::netns::{CP, Connection};
use crate::testbed::balancer::{Balancer, Program};
use crate::testbed::bed::{Bed, renewal, server, wait};
use crate::testbed::control::Names;
use crate::testbed::forwarder::{Forwarder, Manners, Onward};
use crate::testbed::witness::Socket;
use crate::testbed::{BALANCER, Embedded, KUBELET_AGENT, NAME, NEXT, PORT, Way};

const SOON: Duration = Duration::from_secs(15);
const RENEW: Duration = Duration::from_millis(200);
/// A kubelet that never finds out that its connection is dead.
const BLIND: [(&str, &str); 1] = [("HTTP2_READ_IDLE_TIMEOUT_SECONDS", "0")];

/// The other end of a connection within the node.
fn accepted(bed: &Bed, connection: Connection) -> Socket {
    bed.socket(Connection { node: connection.cp, cp: connection.node }).expect("both ends are on the node")
}

/// The kernel has all that was sent, and said so: it may take its time to (delayed ACK).
fn is_acknowledged(bed: &Bed, connection: Connection) {
    wait(SOON, "all is acknowledged", || {
        let socket = bed.socket(connection)?;
        ((socket.send_queue, socket.number("unacked")) == (0, None)).then_some(())
    });
}

fn renews(bed: &Bed) {
    let renewals = || bed.requests(KUBELET_AGENT).iter().filter(|request| renewal(request)).count();
    let before = renewals();
    wait(SOON, "renewals", || (renewals() > before + 2).then_some(()));
}

fn real(program: Program) {
    let Some(mut bed) = Bed::open() else { return };
    if let Some(lacking) = program.lacking() {
        skip!("a balancer on the node: no {lacking}");
    }
    let balancer = Balancer::start(&bed.pair.node, bed.directory.path(), program);
    bed.start_kubelet_by(Way::to(SocketAddr::from(BALANCER)), &BLIND, RENEW);
    assert!(bed.connections(bed.kubelet().pid()).is_empty(), "the kubelet itself has none to the control plane");
    let near = bed.the_one("kubelet", BALANCER.into());
    let far = bed.the_one(balancer.comm(), server());
    let held = accepted(&bed, near);
    assert_eq!(bed.socket(far).unwrap().pids, held.pids, "who accepted goes onward");
    assert!(!held.pids.is_empty() && !held.pids.contains(&bed.kubelet().pid()));

    // Behind the balancer nothing passes: the kubelet's own connection does not show it.
    let fault = bed.pair.drop_connection(far);
    wait(SOON, "the balancer sends again", || bed.socket(far).filter(|socket| socket.retransmits() >= 2));
    is_acknowledged(&bed, near);
    drop(fault);
    renews(&bed);
    assert_eq!(bed.the_one(balancer.comm(), server()), far, "the same all the time");

    let hung = balancer.hang();
    wait(SOON, "unread data", || Some(accepted(&bed, near)).filter(|socket| socket.receive_queue > 0));
    is_acknowledged(&bed, near);
    drop(hung);
    renews(&bed);
    assert_eq!(accepted(&bed, near).pids, held.pids);
}

#[test]
fn nginx_is_between() {
    real(Program::Nginx);
}

#[test]
fn haproxy_is_between() {
    real(Program::Haproxy);
}

#[test]
fn a_forwarder_that_misbehaves() {
    let Some(mut bed) = Bed::open() else { return };
    let onward = Onward::To(server());
    let forwarder = Forwarder::start(&bed.pair.node, bed.directory.path(), "forwarder", BALANCER.into(), onward);
    bed.start_kubelet_by(Way::to(SocketAddr::from(BALANCER)), &BLIND, RENEW);
    let near = bed.the_one("kubelet", BALANCER.into());
    let far = bed.the_one("forwarder", server());
    for connection in [Connection { node: near.cp, cp: near.node }, far] {
        assert_eq!(bed.socket(connection).unwrap().pids, [forwarder.pid()]);
    }
    forwarder.tell(Manners { reads: false, onward: true });
    wait(SOON, "unread data", || Some(accepted(&bed, near)).filter(|socket| socket.receive_queue > 0));
    assert_eq!(bed.socket(far).unwrap().send_queue, 0, "onward all is quiet");
    // A new client is accepted, and not read either.
    let address = forwarder.address;
    let mut another = bed.pair.node.inside(|| std::net::TcpStream::connect(address).unwrap());
    std::io::Write::write_all(&mut another, b"hello").unwrap();
    let its = Connection { node: another.local_addr().unwrap(), cp: address };
    wait(SOON, "taken and unread", || {
        Some(accepted(&bed, its)).filter(|socket| socket.receive_queue == 5 && socket.pids == [forwarder.pid()])
    });
    drop(another);
    forwarder.tell(Manners::default());
    renews(&bed);
    assert_eq!((bed.the_one("kubelet", BALANCER.into()), bed.the_one("forwarder", server())), (near, far));

    forwarder.tell(Manners { reads: true, onward: false });
    wait(SOON, "no connection onward", || bed.lasting("forwarder", server()).is_empty().then_some(()));
    std::thread::sleep(3 * RENEW);
    let held = accepted(&bed, near);
    assert_eq!((held.state.as_str(), held.receive_queue), ("ESTAB", 0), "and the kubelet is not told");
}

#[test]
fn a_proxy_on_the_node_and_one_elsewhere() {
    let Some(mut bed) = Bed::open() else { return };
    let here = SocketAddr::from(([127, 0, 0, 1], 3128));
    let there = SocketAddr::new(CP, 3128);
    let directory = bed.directory.path();
    let proxy = Forwarder::start(&bed.pair.node, directory, "proxy", here, Onward::AsAsked);
    let _other = Forwarder::start(&bed.pair.cp, directory, "proxy", there, Onward::AsAsked);
    bed.start_kubelet_by(Way { proxy: Some(here), ..Way::default() }, &[], RENEW);
    let (near, far) = (bed.the_one("kubelet", here), bed.the_one("proxy", server()));
    assert_eq!(accepted(&bed, near).pids, [proxy.pid()]);
    assert_eq!(bed.socket(far).unwrap().pids, [proxy.pid()]);
    bed.stop_kubelet();
    bed.start_kubelet_by(Way { proxy: Some(there), ..Way::to(format_args!("{NAME}:{PORT}")) }, &[], RENEW);
    bed.the_one("kubelet", there);
    renews(&bed);
    assert!(bed.connections(bed.kubelet().pid()).is_empty(), "it has none of its own to the apiserver");
    assert!(bed.lasting("proxy", server()).is_empty(), "the proxy on the node has none any more");
}

#[test]
fn a_name_moves_on_and_the_kubelet_does_not() {
    let Some(mut bed) = Bed::open() else { return };
    bed.double.tell(|settings| settings.addresses = vec![CP]);
    bed.start_kubelet_by(Way::to(format_args!("{NAME}:{PORT}")), &[], RENEW);
    let first = bed.the_one("kubelet", server());
    bed.double.tell(|settings| settings.addresses = vec![NEXT]);
    let known = String::from_utf8(bed.pair.node.command("getent").args(["ahosts", NAME]).output().unwrap().stdout);
    assert!(known.unwrap().starts_with(&NEXT.to_string()));
    renews(&bed);
    assert_eq!(bed.the_one("kubelet", server()), first);
    bed.double.tell(|settings| settings.names = Names::NoSuchName);
    renews(&bed);
    bed.double.tell(|settings| settings.names = Names::Answer);
    bed.double.close_all();
    bed.the_one("kubelet", (NEXT, PORT).into());
}

#[test]
fn a_kubelet_inside_its_own_balancer() {
    let Some(mut bed) = Bed::open() else { return };
    let listen = SocketAddr::from(([127, 0, 0, 1], 6444));
    let embedded = Embedded { comm: "k3s-agent".to_owned(), listen, onward: server() };
    bed.start_kubelet_by(Way { embedded: Some(embedded), ..Way::to(listen) }, &[], RENEW);
    let (near, far) = (bed.the_one("k3s-agent", listen), bed.the_one("k3s-agent", server()));
    for connection in [near, Connection { node: near.cp, cp: near.node }, far] {
        assert_eq!(bed.socket(connection).unwrap().pids, [bed.kubelet().pid()], "one process has it all");
    }
}
