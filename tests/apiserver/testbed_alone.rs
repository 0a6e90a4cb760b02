//! The test bed of the network side, tested by itself: each fault is what its name says, by the word of `ss`.

#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::io::Write as _;
use std::net::{IpAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::common;
use crate::common::netns::{self, CP, CP6, Connection};
use crate::testbed::bed::{Bed, renewal, wait};
use crate::testbed::control::{Names, Refusal, Silent};
use crate::testbed::{self, KUBELET_AGENT, NAME, PORT};

const SOON: Duration = Duration::from_secs(10);
const RENEW: Duration = Duration::from_millis(200);
/// A kubelet whose connection is found dead after two seconds.
const QUICK: [(&str, &str); 2] = [("HTTP2_READ_IDLE_TIMEOUT_SECONDS", "1"), ("HTTP2_PING_TIMEOUT_SECONDS", "1")];

fn bed(environment: &[(&str, &str)]) -> Option<Bed> {
    if let Some(lacking) = netns::lacking() {
        common::say_skip(format_args!("network namespaces: no {lacking}"));
        return None;
    }
    let mut bed = Bed::new();
    bed.start_kubelet(environment, RENEW);
    Some(bed)
}

fn the_connection(bed: &Bed) -> Connection {
    wait(SOON, "one connection of the kubelet's", || match bed.connections(bed.kubelet().pid())[..] {
        [connection] => Some(connection),
        _ => None,
    })
}

fn connects(bed: &Bed, to: IpAddr) -> bool {
    bed.pair.node.inside(|| TcpStream::connect_timeout(&(to, PORT).into(), Duration::from_secs(2)).is_ok())
}

fn renewals(bed: &Bed) -> usize {
    bed.requests(KUBELET_AGENT).into_iter().filter(renewal).count()
}

#[test]
fn one_connection_is_dropped_in_silence_and_the_client_heals() {
    let Some(bed) = bed(&QUICK) else { return };
    let first = the_connection(&bed);
    let fault = bed.pair.drop_connection(first);
    let socket = wait(SOON, "a segment that is not acknowledged", || {
        bed.socket(first).filter(|socket| socket.retransmits() >= 2 && socket.number("backoff").is_some())
    });
    assert_eq!(socket.state, "ESTAB", "nobody was told");
    assert!(socket.number("unacked") >= Some(1.0) && socket.send_queue > 0, "{socket:?}");
    assert!(connects(&bed, CP) && connects(&bed, CP6), "new connections pass");
    let second = wait(SOON, "another connection", || {
        bed.connections(bed.kubelet().pid()).into_iter().find(|&connection| connection != first)
    });
    let orphan = bed.socket(first).expect("the kernel goes on trying");
    assert_eq!((orphan.state.as_str(), &*orphan.pids), ("FIN-WAIT-1", &[] as &[u32]));
    let before = renewals(&bed);
    wait(SOON, "a renewal on the new connection", || (renewals(&bed) > before).then_some(()));
    drop(fault);
    assert_eq!(the_connection(&bed), second);
}

#[test]
fn replies_alone_are_dropped() {
    let Some(bed) = bed(&[]) else { return };
    let first = the_connection(&bed);
    let fault = bed.pair.drop_replies(first);
    let before = renewals(&bed);
    wait(SOON, "the renewal that arrives, unanswered", || (renewals(&bed) > before).then_some(()));
    wait(SOON, "it is sent again", || bed.socket(first).filter(|socket| socket.retransmits() >= 2));
    drop(fault);
    // The connection was not lost: what waited goes through, and it is still the same.
    let before = renewals(&bed);
    wait(SOON, "renewals", || (renewals(&bed) > before + 3).then_some(()));
    assert_eq!(the_connection(&bed), first);
}

#[test]
fn reset_refused_closed_and_sent_away() {
    let Some(bed) = bed(&[]) else { return };
    let mut last = the_connection(&bed);
    // What ends it is done again until it has: a connection that the double has not taken yet hears nothing of it.
    let mut another = |what: &str, end: &dyn Fn()| {
        last = wait(SOON, what, || {
            end();
            bed.connections(bed.kubelet().pid()).into_iter().find(|&connection| connection != last)
        });
    };
    let fault = bed.pair.reset(the_connection(&bed));
    another("a connection after the reset", &|| ());
    drop(fault);
    another("a connection after the close", &|| bed.double.close_all());
    another("a connection after the GOAWAY", &|| bed.double.go_away());
    bed.double.tell(|settings| settings.listening = false);
    assert!(!connects(&bed, CP) && !connects(&bed, CP6));
    bed.double.close_all();
    wait(SOON, "no connection", || bed.connections(bed.kubelet().pid()).is_empty().then_some(()));
    bed.double.tell(|settings| settings.listening = true);
    another("a connection after it listens again", &|| ());
}

#[test]
fn everything_is_dropped_and_a_part_is_lost() {
    let Some(bed) = bed(&QUICK) else { return };
    let fault = bed.pair.drop_everything();
    assert!(!connects(&bed, CP) && !connects(&bed, CP6));
    wait(SOON, "the client gave up", || bed.connections(bed.kubelet().pid()).is_empty().then_some(()));
    drop(fault);
    let connection = the_connection(&bed);
    let fault = bed.pair.lose(0.25);
    wait(SOON, "a retransmission", || bed.socket(connection).filter(|socket| socket.retransmits() > 0));
    drop(fault);
}

#[test]
fn a_longer_way() {
    let Some(bed) = bed(&[]) else { return };
    let connection = the_connection(&bed);
    let rtt = || bed.socket(connection).unwrap().rtt().0;
    let base = wait(SOON, "rtt without relay", || Some(rtt()).filter(|&rtt| rtt < 0.08));
    let fault = bed.pair.delay(Duration::from_millis(50));
    for address in [CP, CP6] {
        let start = Instant::now();
        assert!(connects(&bed, address));
        assert!(start.elapsed() >= Duration::from_millis(100), "{:?} to {address}", start.elapsed());
    }
    let longer = wait(SOON, "rtt with relay", || Some(rtt()).filter(|&rtt| rtt >= 0.098));
    drop(fault);
    wait(SOON, "rtt without relay again", || Some(rtt()).filter(|&rtt| rtt < 0.08));
    assert!(base < longer);
    assert_eq!(the_connection(&bed), connection, "the same connection all the time");
}

#[test]
fn names_are_answered_or_not() {
    let Some(bed) = bed(&[]) else { return };
    let known = || bed.pair.node.command("getent").args(["ahosts", NAME]).output().unwrap();
    let found = String::from_utf8(known().stdout).unwrap();
    assert!(found.contains(&CP.to_string()) && found.contains(&CP6.to_string()), "{found}");
    for act in [Names::Silent, Names::ServerFailure, Names::NoSuchName] {
        bed.double.tell(|settings| settings.names = act);
        assert!(!known().status.success(), "{act:?}");
    }
    bed.double.tell(|settings| settings.names = Names::Answer);
    assert!(known().status.success());
    assert!(!common::shell("cat /etc/resolv.conf").contains(&CP.to_string()), "this machine's own names are untouched");
}

/// `curl` from the node, in HTTP/1.1: the head and the body.
fn curl(bed: &Bed, token: &str, path: &str) -> String {
    let ca = bed.directory.path().join("ca.pem");
    let mut curl = bed.pair.node.command("curl");
    curl.args(["-sSi", "--http1.1", "--noproxy", "*", "--max-time", "2", "--cacert", ca.to_str().unwrap()]);
    if !token.is_empty() {
        curl.args(["-H", &format!("Authorization: Bearer {token}")]);
    }
    let output = curl.arg(format!("https://{CP}:{PORT}{path}")).output().unwrap();
    String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn the_double_answers_as_told() {
    let Some(bed) = bed(&[]) else { return };
    let node = format!("/api/v1/nodes/{}", testbed::NODE_NAME);
    let lease = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{}", testbed::NODE_NAME);
    let get = |path: &str| curl(&bed, testbed::TOKEN, path);
    for path in ["/livez", "/readyz", "/healthz", "/version"] {
        assert!(curl(&bed, "", path).starts_with("HTTP/1.1 200"), "{path}");
    }
    assert!(curl(&bed, "", &node).starts_with("HTTP/1.1 403"));
    assert!(curl(&bed, "old", "/livez").starts_with("HTTP/1.1 401"));
    assert!(get(&node).contains(r#""type":"Ready""#));
    assert!(get(&lease).contains("renewTime"));
    assert!(get(&format!("{node}/proxy/healthz")).ends_with("ok"));
    assert!(get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes").contains("10.77.0.2"));
    let refusal = Refusal { status: 429, retry_after: Some(7), objects_alone: true };
    bed.double.tell(|settings| settings.refusal = Some(refusal));
    assert!(get(&node).starts_with("HTTP/1.1 429") && get(&node).contains("retry-after: 7"));
    assert!(get("/livez").starts_with("HTTP/1.1 200"));
    bed.double.tell(|settings| settings.refusal = None);
    for silent in [Silent::Hello, Silent::Request] {
        bed.double.tell(|settings| settings.silent = silent);
        assert!(get("/livez").contains("timed out"), "{silent:?}: {}", get("/livez"));
    }
    bed.double.tell(|settings| (settings.silent, settings.foreign) = (Silent::Never, true));
    assert!(get("/livez").contains("certificate"), "{}", get("/livez"));
    bed.double.tell(|settings| settings.foreign = false);
    assert!(get("/livez").starts_with("HTTP/1.1 200"));
    let seen = bed.double.report();
    assert!(seen.recent.iter().all(|request| !request.foreign), "a client that checks never asks a stranger");
}

#[test]
fn the_client_is_what_it_says() {
    let Some(mut bed) = bed(&[("DISABLE_HTTP2", "1")]) else { return };
    let pid = bed.kubelet().pid();
    assert_eq!(common::shell(&format!("cat /proc/{pid}/comm")), "kubelet\n");
    assert!(bed.requests(KUBELET_AGENT).iter().all(|request| !request.http2));
    assert_eq!(bed.connections(pid).len(), 2, "the watch has one of its own");
    let inside = bed.pair.node.run("cat /proc/[0-9]*/comm");
    assert_eq!(inside.lines().filter(|&comm| comm == "kubelet").count(), 1, "{inside}");
    bed.stop_kubelet();
    bed.start_kubelet(&[], Duration::from_millis(4));
    let before = renewals(&bed);
    wait(SOON, "250 requests a second", || (renewals(&bed) > before + 1000).then_some(()));
    assert!(bed.requests(KUBELET_AGENT).last().unwrap().http2);
}

/// A silent client, to see what a namespace leaves behind: nothing.
#[test]
fn a_pair_leaves_nothing() {
    let Some(bed) = bed(&[]) else { return };
    let mut stream = bed.pair.node.inside(|| TcpStream::connect((CP, PORT)).unwrap());
    stream.write_all(b"x").unwrap();
    let inits = [bed.pair.node.init(), bed.pair.cp.init()];
    let panic = std::thread::spawn(move || {
        let _fault = bed.pair.drop_everything();
        let _relay = bed.pair.delay(Duration::from_millis(1));
        panic!("as a test that fails");
    });
    assert!(panic.join().is_err());
    for init in inits {
        wait(SOON, "the first process is gone", || {
            let state = std::fs::read_to_string(format!("/proc/{init}/stat")).unwrap_or_default();
            (state.is_empty() || state.contains(") Z ")).then_some(())
        });
    }
}
