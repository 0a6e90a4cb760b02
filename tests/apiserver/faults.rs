//! What the network, the apiserver and the kubelet do to each other, made for real between two namespaces, and what the
//! page of the exporter says about it, and when. `testbed_alone.rs` tests the test bed itself.

#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]
#![allow(clippy::print_stdout, reason = "times to detection, for whoever reads them")]

use std::time::{Duration, Instant};

use crate::common::Page;
use crate::common::netns::{CP, CP6, Connection};
use crate::testbed::bed::{Bed, peer, possible, wait};
use crate::testbed::control::{Names, Refusal, Request, Silent};
use crate::testbed::objects::{self, HEALTHY, OUT_OF_DISK};
use crate::testbed::series::Series as _;
use crate::testbed::{self, NAME, PORT};

/// The exporter's user agent.
const AGENT: &str = "headroom-exporter";
const SECOND: Duration = Duration::from_secs(1);
/// Time for a probe each second that takes at most a second, twice over: what a loaded machine may take, not what is
/// expected.
const SOON: Duration = Duration::from_secs(15);
/// From a fault to the page that shows it, at these intervals: two seconds on a quiet machine.
const DETECTED: Duration = Duration::from_secs(6);
/// Renews its lease all the time, and finds a dead connection in two seconds.
const QUICK_KUBELET: [(&str, &str); 2] =
    [("HTTP2_READ_IDLE_TIMEOUT_SECONDS", "1"), ("HTTP2_PING_TIMEOUT_SECONDS", "1")];
const QUICK: [&str; 5] = [
    "--apiserver.probe-interval=1s",
    "--apiserver.probe-timeout=1s",
    "--apiserver.stall-threshold=2s",
    "--collector.node_status.lease-interval=1s",
    "--collector.node_status.node-interval=1s",
];

/// Everything at short intervals, and well. With further flags.
fn quick(flags: &[&str]) -> Option<Bed> {
    if !possible() {
        return None;
    }
    let flags: Vec<&str> = QUICK.iter().chain(flags).copied().collect();
    let bed = Bed::new().with(&QUICK_KUBELET, Duration::from_millis(200), &flags);
    is_well(&bed);
    Some(bed)
}

fn is_well(bed: &Bed) -> Page {
    bed.until(SOON, "all is well", |page| page.both(true)).0
}

/// By itself, once the fault is lifted.
fn is_well_again(bed: &Bed, before: &Page) {
    for connection in ["reused", "fresh"] {
        let ok = before.probes(connection, "ok");
        bed.until(SOON, "well again", |page| page.both(true) && page.probes(connection, "ok") > ok + 1.0);
    }
    assert_eq!(bed.scrape().outcome("apiserver_connection"), "ok");
}

fn kubelet(page: &Page, figure: &str) -> f64 {
    page.connection(figure, "kubelet", &peer(CP)).unwrap_or_else(|| panic!("no {figure} of the kubelet: {page:#?}"))
}

/// The one connection of the kubelet.
fn kubelets(bed: &Bed) -> Connection {
    let pid = bed.kubelet().pid();
    wait(SOON, "one connection of the kubelet", || match bed.connections(pid)[..] {
        [connection] => Some(connection),
        _ => None,
    })
}

/// The exporter's connection that lasts.
fn reused(bed: &Bed) -> Connection {
    let pid = bed.exporter().pid();
    wait(SOON, "the exporter's long-lived connection", || {
        let before = bed.connections(pid);
        std::thread::sleep(Duration::from_millis(100));
        bed.connections(pid).into_iter().find(|connection| before.contains(connection))
    })
}

/// The incident: at default intervals, from the drop to the kubelet that healed itself.
#[test]
fn a_connection_dead_but_in_use_at_default_intervals() {
    if !possible() {
        return;
    }
    let renew = Duration::from_secs(10);
    let bed = Bed::new().with(&[], renew, &[]);
    let (well, _) = bed.until(Duration::from_secs(40), "the first probes", |page| page.both(true));
    let http2 = [("enabled", "true"), ("read_idle_timeout", "30s"), ("ping_timeout", "15s")];
    assert_eq!(well.of("headroom_kubelet_http2_info", &http2), Some(1.0));
    assert_eq!(kubelet(&well, "stalled"), 0.0);
    let (dead, ours) = (kubelets(&bed), reused(&bed));
    let faults = [bed.pair.drop_connection(dead), bed.pair.drop_connection(ours)];
    let dropped = Instant::now();
    let (page, _) = bed.until(Duration::from_secs(30), "the kubelet's stalled, and our reused failed", |page| {
        kubelet(page, "stalled") == 1.0 && page.success("reused") == Some(false)
    });
    println!("both known {:?} after the drop", dropped.elapsed());
    assert_eq!(page.success("fresh"), Some(true), "a new connection works");
    assert_eq!((page.failures("reused", "ping", "timeout"), page.all_failures("fresh")), (1.0, 0.0));
    assert_eq!(page.connection("stalls_total", "kubelet", &peer(CP)), Some(1.0));
    assert!(kubelet(&page, "unacked_segments") >= 1.0 && kubelet(&page, "send_queue_bytes") > 0.0);
    assert!(kubelet(&page, "backoff") >= 3.0 && kubelet(&page, "last_ack_seconds") > 10.0);
    // The kubelet's own health check: 30 s without a byte, 15 s without an answer.
    let (page, _) = bed.until(Duration::from_secs(60), "the kubelet has another connection", |page| {
        page.connection("stalled", "kubelet", &peer(CP)) == Some(0.0)
    });
    println!("the kubelet healed {:?} after the drop", dropped.elapsed());
    assert!(dropped.elapsed() < Duration::from_secs(30 + 15 + 10));
    let orphan = bed.socket(dead).expect("the kernel goes on with the old one");
    assert_eq!((orphan.state.as_str(), orphan.pids.len()), ("FIN-WAIT-1", 0));
    assert_eq!(page.connections("kubelet"), Some(1.0));
    assert_eq!(page.connection("stalls_total", "kubelet", &peer(CP)), Some(1.0), "the orphan is nobody's stall");
    assert_eq!((page.success("reused"), page.reconnects("dead")), (Some(true), 1.0), "we healed as well");
    drop(faults);
}

#[test]
fn everything_is_dropped() {
    let Some(bed) = quick(&[]) else { return };
    let before = bed.scrape();
    let fault = bed.pair.drop_everything();
    let (page, after) = bed.until(DETECTED, "both fail", |page| page.both(false));
    println!("both known {after:?} after the drop");
    assert!(page.failures("fresh", "connect", "timeout") >= 1.0);
    assert!(page.failures("reused", "ping", "timeout") >= 1.0);
    assert_eq!(page.all_failures("fresh"), page.probes("fresh", "timeout"), "a timeout, and nothing else");
    assert_eq!(page.all_failures("reused"), page.probes("reused", "timeout"));
    bed.until(SOON, "the next attempts cannot even connect", |page| {
        page.failures("reused", "connect", "timeout") >= 1.0 && page.success("reused") == Some(false)
    });
    let last = |page: &Page, connection| {
        page.of("headroom_apiserver_probe_last_success_timestamp_seconds", &[("connection", connection)]).unwrap()
    };
    let page = bed.scrape();
    for connection in ["fresh", "reused"] {
        assert!(last(&page, connection) - last(&before, connection) < 3.0, "no success since the drop");
    }
    drop(fault);
    is_well_again(&bed, &page);
    assert_eq!(bed.scrape().reconnects("dead"), 1.0, "one connection died, however often we tried to make the next");
}

/// A kubelet whose health check is switched off: nothing heals it, and the page says so.
#[test]
fn a_kubelet_that_does_not_look_stays_stalled() {
    if !possible() {
        return;
    }
    let off = [("HTTP2_READ_IDLE_TIMEOUT_SECONDS", "0")];
    let bed = Bed::new().with(&off, Duration::from_millis(200), &QUICK);
    let page = is_well(&bed);
    let http2 = [("enabled", "true"), ("read_idle_timeout", "0s"), ("ping_timeout", "15s")];
    assert_eq!(page.of("headroom_kubelet_http2_info", &http2), Some(1.0));
    let connection = kubelets(&bed);
    // Only the replies: the apiserver sees the renewals come in, and the kubelet never hears of it.
    let fault = bed.pair.drop_replies(connection);
    let (_, after) = bed.until(DETECTED, "stalled", |page| kubelet(page, "stalled") == 1.0);
    println!("known {after:?} after the drop");
    assert!(after >= SECOND, "data must have waited for two seconds, less what it had waited before");
    let stalled = Instant::now();
    while stalled.elapsed() < Duration::from_secs(6) {
        let page = bed.scrape();
        assert_eq!((kubelet(&page, "stalled"), page.both(true)), (1.0, true), "nobody else is concerned");
        std::thread::sleep(Duration::from_millis(300));
    }
    drop(fault);
    let (page, _) = bed.until(SOON, "the same connection goes on", |page| kubelet(page, "stalled") == 0.0);
    assert_eq!(page.connection("stalls_total", "kubelet", &peer(CP)), Some(1.0), "one stall, counted once");
    assert_eq!(kubelets(&bed), connection);
}

#[test]
fn a_reset_of_the_long_lived_connection() {
    let Some(bed) = quick(&[]) else { return };
    let first = reused(&bed);
    let fault = bed.pair.reset(first);
    let (page, after) = bed.until(DETECTED, "it is made anew", |page| page.reconnects("reset") == 1.0);
    println!("known {after:?} after the first reset");
    assert_eq!(page.all_failures("reused"), page.probes("reused", "reset"), "{page:#?}");
    assert_eq!(page.all_failures("fresh"), 0.0);
    assert_ne!(reused(&bed), first);
    drop(fault);
    is_well_again(&bed, &page);
}

#[test]
fn nobody_listens() {
    let Some(bed) = quick(&[]) else { return };
    bed.double.tell(|settings| settings.listening = false);
    let (page, _) = bed.until(DETECTED, "a new connection is refused", |page| page.success("fresh") == Some(false));
    assert!(page.failures("fresh", "connect", "refused") >= 1.0);
    assert_eq!(page.success("reused"), Some(true), "the old one goes on");
    bed.double.close_all();
    let (page, _) = bed.until(SOON, "both are refused", |page| {
        page.success("reused") == Some(false) && page.failures("reused", "connect", "refused") >= 1.0
    });
    assert_eq!(page.all_failures("fresh"), page.probes("fresh", "refused") + page.probes("fresh", "reset"));
    assert_eq!(page.connections("kubelet"), Some(0.0));
    bed.double.tell(|settings| settings.listening = true);
    is_well_again(&bed, &page);
    assert!(bed.scrape().reconnects("closed") + bed.scrape().reconnects("reset") >= 1.0);
    bed.until(SOON, "the kubelet is back", |page| page.connections("kubelet") == Some(1.0));
}

#[test]
fn a_hundred_milliseconds_more() {
    let Some(bed) = quick(&[]) else { return };
    let phases = [
        ("fresh", "connect"),
        ("fresh", "tls"),
        ("fresh", "request"),
        ("fresh", "total"),
        ("reused", "request"),
        ("reused", "ping"),
    ];
    let base = kubelet(&bed.scrape(), "rtt_seconds");
    let fault = bed.pair.delay(Duration::from_millis(50));
    let wanted = 0.1 + base;
    let (page, after) = bed.until(Duration::from_secs(20), "the kernel's round-trip time has followed", |page| {
        (kubelet(page, "rtt_seconds") - wanted).abs() <= wanted / 10.0
    });
    println!("rtt {base} → {} after {after:?}", kubelet(&page, "rtt_seconds"));
    // Probes that began before the delay have ended by now.
    let counts = |page: &Page| phases.map(|(connection, phase)| page.phase(connection, phase).unwrap());
    let first = counts(&page);
    let (page, _) = bed.until(SOON, "two more probes of each kind", |page| {
        counts(page).iter().zip(&first).all(|(now, first)| now.1 >= first.1 + 2.0)
    });
    for (((connection, phase), now), first) in phases.iter().zip(counts(&page)).zip(first) {
        let mean = (now.0 - first.0) / (now.1 - first.1);
        println!("{connection} {phase}: {mean:.4} s");
        let trips = if *phase == "total" { 3.0 } else { 1.0 };
        assert!(mean >= 0.1 * trips, "{connection} {phase}: {mean} s");
    }
    assert_eq!((page.all_failures("fresh"), page.all_failures("reused")), (0.0, 0.0), "slow is not broken");
    bed.until(SOON, "it has settled", |page| (0.099..=wanted * 1.1).contains(&kubelet(page, "rtt_seconds")));
    drop(fault);
    bed.until(Duration::from_secs(20), "the round-trip time is as before", |page| kubelet(page, "rtt_seconds") < 0.05);
}

#[test]
fn one_packet_in_a_hundred_is_lost() {
    if !possible() {
        return;
    }
    let bed = Bed::new().with(&[], Duration::from_millis(4), &QUICK);
    is_well(&bed);
    let connection = kubelets(&bed);
    let before = kubelet(&bed.scrape(), "retransmits");
    let witness = || bed.socket(connection).expect("the same connection").retransmits() as f64;
    let fault = bed.pair.lose(0.01);
    let (page, after) = bed.until(Duration::from_secs(30), "retransmits rise", |page| {
        assert_eq!(kubelet(page, "stalled"), 0.0, "a loss is no stall");
        kubelet(page, "retransmits") >= before + 3.0
    });
    println!("{} retransmits after {after:?}", kubelet(&page, "retransmits"));
    for _ in 0..20 {
        let (first, page, second) = (witness(), bed.scrape(), witness());
        let ours = kubelet(&page, "retransmits");
        assert!(first <= ours && ours <= second, "ss {first}, {ours} on the page, ss {second}");
    }
    drop(fault);
    let page = bed.scrape();
    is_well_again(&bed, &page);
}

#[test]
fn a_certificate_of_another_authority() {
    let Some(bed) = quick(&[]) else { return };
    bed.double.tell(|settings| settings.foreign = true);
    bed.double.close_all();
    let (page, after) = bed.until(DETECTED, "neither trusts it", |page| {
        page.failures("fresh", "tls", "tls") >= 1.0 && page.failures("reused", "tls", "tls") >= 1.0
    });
    println!("known {after:?} after the change");
    assert!(page.both(false));
    let report = bed.double.report();
    assert!(report.recent.iter().all(|request| !request.foreign), "not a byte of a request, nor of the token");
    assert!(report.recent.iter().any(|request| request.token && request.agent.starts_with(AGENT)), "others had it");
    bed.double.tell(|settings| settings.foreign = false);
    is_well_again(&bed, &page);
}

#[test]
fn a_token_expires_and_is_replaced() {
    let Some(bed) = quick(&[]) else { return };
    bed.double.tell(|settings| settings.tokens = vec![testbed::KUBELET_TOKEN.to_owned(), "the-next".to_owned()]);
    let (page, after) = bed.until(DETECTED, "neither may", |page| page.both(false));
    println!("known {after:?} after it expired");
    for connection in ["fresh", "reused"] {
        assert!(page.failures(connection, "request", "unauthorized") >= 1.0);
        assert_eq!(page.all_failures(connection), page.probes(connection, "unauthorized"));
    }
    bed.until(SOON, "node_status says so", |page| page.outcome("node_status") == "failed");
    bed.write_token("the-next");
    is_well_again(&bed, &page);
    bed.until(SOON, "node_status is well", |page| page.outcome("node_status") == "ok");
    assert_eq!(bed.scrape().reconnects("dead") + bed.scrape().reconnects("closed"), 0.0, "the connection was good");
}

/// Requests that were answered 429, by what is asked for and how: each of these is a clock of its own.
fn clocks(requests: &[Request]) -> Vec<(String, Vec<&Request>)> {
    let mut clocks: Vec<(String, Vec<&Request>)> = Vec::new();
    for request in requests.iter().filter(|request| request.agent.starts_with(AGENT)) {
        let name = format!("{} {}", request.what, if request.http2 { "reused" } else { "fresh" });
        match clocks.iter_mut().find(|(known, _)| *known == name) {
            Some((_, requests)) => requests.push(request),
            None => clocks.push((name, vec![request])),
        }
    }
    clocks
}

#[test]
fn no_seat_is_left() {
    let Some(bed) = quick(&[]) else { return };
    let refusal = Refusal { status: 429, retry_after: Some(4), objects_alone: false };
    bed.double.tell(|settings| settings.refusal = Some(refusal));
    let (page, after) = bed.until(DETECTED, "both are sent away", |page| page.both(false));
    println!("known {after:?} after the first 429");
    for connection in ["fresh", "reused"] {
        assert!(page.failures(connection, "request", "throttled") >= 1.0);
        let retry_after = page.of("headroom_apiserver_retry_after_seconds", &[("connection", connection)]);
        assert_eq!(retry_after, Some(4.0));
    }
    let (page, _) = bed.until(Duration::from_secs(25), "each has come again", |page| {
        ["fresh", "reused"].iter().all(|connection| page.probes(connection, "throttled") >= 3.0)
    });
    let requests = bed.requests(AGENT);
    let clocks = clocks(&requests);
    for wanted in ["GET /livez fresh", "GET /livez reused", "/leases/", "/nodes/"] {
        assert!(clocks.iter().any(|(name, _)| name.contains(wanted)), "{wanted}: {clocks:?}");
    }
    for (name, requests) in clocks {
        for pair in requests.windows(2).filter(|pair| pair[0].status == Some(429)) {
            let gap = pair[1].at - pair[0].at;
            assert!(gap >= 4.0, "{name} came again after {gap} s");
        }
    }
    bed.double.tell(|settings| settings.refusal = Some(Refusal { objects_alone: true, ..refusal }));
    is_well_again(&bed, &page);
    let throttled = |page: &Page, object| {
        let labels = [("object", object), ("result", "throttled")];
        page.of("headroom_node_object_requests_total", &labels).unwrap_or(0.0)
    };
    let before = bed.scrape();
    bed.until(SOON, "the objects alone are refused", |page| {
        throttled(page, "lease") > throttled(&before, "lease") && throttled(page, "node") > throttled(&before, "node")
    });
    assert!(bed.scrape().both(true));
    bed.double.tell(|settings| settings.refusal = None);
    bed.until(SOON, "the objects come again", |page| page.outcome("node_status") == "ok");
}

#[test]
fn connections_are_taken_and_never_answered() {
    let Some(bed) = quick(&[]) else { return };
    bed.double.tell(|settings| settings.silent = Silent::Request);
    let (page, _) = bed.until(DETECTED, "no answer to requests", |page| page.both(false));
    for connection in ["fresh", "reused"] {
        assert!(page.failures(connection, "request", "timeout") >= 1.0);
    }
    assert_eq!(page.failures("reused", "ping", "timeout"), 0.0, "the connection lives, the server does not");
    bed.double.tell(|settings| settings.silent = Silent::Hello);
    bed.double.close_all();
    let (page, _) = bed.until(SOON, "no answer to the hello", |page| {
        ["fresh", "reused"].iter().all(|connection| page.failures(connection, "tls", "timeout") >= 1.0)
    });
    assert!(page.both(false));
    bed.double.tell(|settings| settings.silent = Silent::Never);
    is_well_again(&bed, &page);
}

#[test]
fn an_error_of_the_server_and_a_slow_one() {
    let Some(bed) = quick(&[]) else { return };
    let refusal = Refusal { status: 500, retry_after: None, objects_alone: false };
    bed.double.tell(|settings| settings.refusal = Some(refusal));
    let (page, _) = bed.until(DETECTED, "both say so", |page| page.both(false));
    for connection in ["fresh", "reused"] {
        assert_eq!(page.all_failures(connection), page.failures(connection, "request", "server_error"));
    }
    bed.double.tell(|settings| (settings.refusal, settings.slow_ms) = (None, 300));
    is_well_again(&bed, &page);
    let of = |page: &Page, phase| page.phase("reused", phase).unwrap();
    let first = bed.scrape();
    let (second, _) = bed.until(SOON, "two more", |page| of(page, "request").1 >= of(&first, "request").1 + 2.0);
    let mean = |phase| (of(&second, phase).0 - of(&first, phase).0) / (of(&second, phase).1 - of(&first, phase).1);
    assert!(mean("request") >= 0.3, "{}", mean("request"));
    assert!(mean("ping") < 0.3, "the path is as fast as ever: {}", mean("ping"));
}

#[test]
fn sent_away_in_an_orderly_way() {
    let Some(bed) = quick(&[]) else { return };
    let first = reused(&bed);
    for times in 1..=3 {
        bed.double.go_away();
        bed.until(SOON, "a new connection", |page| page.reconnects("goaway") == f64::from(times));
    }
    let page = bed.scrape();
    is_well_again(&bed, &page);
    let page = bed.scrape();
    assert_ne!(reused(&bed), first);
    assert_eq!((page.all_failures("reused"), page.all_failures("fresh")), (0.0, 0.0), "nothing was lost");
    assert_eq!(page.reconnects("goaway") + page.reconnects("start"), 4.0);
    let reasons = page.family("headroom_apiserver_probe_reconnects_total").map(|(_, count)| count).sum::<f64>();
    assert_eq!(reasons, 4.0, "and for no other reason");
}

#[test]
fn the_name_is_not_resolved() {
    if !possible() {
        return;
    }
    let mut bed = Bed::new();
    bed.start_kubelet(&QUICK_KUBELET, Duration::from_millis(200));
    // The resolver itself gives up after a second.
    bed.start_exporter(&format!("https://{NAME}:{PORT}"), &["--apiserver.probe-timeout=3s", QUICK[0], QUICK[2]]);
    let page = is_well(&bed);
    assert!(page.phase("fresh", "dns").unwrap().1 >= 1.0 && page.phase("reused", "dns").is_some());
    for act in [Names::NoSuchName, Names::ServerFailure, Names::Silent] {
        let before = bed.scrape();
        bed.double.tell(|settings| settings.names = act);
        let failed = |page: &Page| page.failures("fresh", "dns", "dns") + page.failures("fresh", "dns", "timeout");
        let (page, after) = bed.until(DETECTED, "a name is not resolved", |page| failed(page) > failed(&before));
        println!("{act:?}: known after {after:?}");
        assert_eq!(page.success("fresh"), Some(false), "{act:?}");
        assert_eq!(page.all_failures("fresh"), failed(&page), "{act:?}");
        assert_eq!(page.success("reused"), Some(true), "{act:?}: a connection there is needs no name");
        bed.double.tell(|settings| settings.names = Names::Answer);
        is_well_again(&bed, &page);
    }
    // A connection that has to be made needs it.
    bed.double.tell(|settings| settings.names = Names::NoSuchName);
    bed.double.close_all();
    let (page, _) = bed.until(SOON, "both", |page| page.failures("reused", "dns", "dns") >= 1.0);
    bed.double.tell(|settings| settings.names = Names::Answer);
    is_well_again(&bed, &page);
}

#[test]
fn what_the_apiserver_holds_about_the_node() {
    let Some(mut bed) = quick(&[]) else { return };
    let status = |page: &Page, condition, status| {
        page.of("headroom_node_condition", &[("condition", condition), ("status", status)])
    };
    let of = |page: &Page, name, condition| page.of(name, &[("condition", condition)]);
    let age = "headroom_node_condition_heartbeat_age_seconds";
    let orphaned = "headroom_node_condition_orphaned";
    let lease = |page: &Page| page.of("headroom_node_lease_age_seconds", &[]);
    let (page, _) = bed.until(SOON, "the recorded objects", |page| {
        status(page, "Ready", "true") == Some(1.0) && lease(page).is_some()
    });
    assert_eq!(status(&page, "DiskPressure", "false"), Some(1.0));
    assert_eq!(status(&page, "OutOfDisk", "unknown"), None);
    assert_eq!(page.of("headroom_node_lease_duration_seconds", &[]), Some(40.0));
    assert!(lease(&page).unwrap() < 3.0, "renewed five times a second: {:?}", lease(&page));
    // An address that nobody else names.
    bed.until(SOON, "what stands behind the service address", |page| {
        let mut endpoints = page.family("headroom_apiserver_endpoint_info").map(|(series, _)| series);
        endpoints.any(|series| series.contains(testbed::ANOTHER) && series.contains("source=\"endpointslice\""))
    });

    let mut conditions = HEALTHY.to_vec();
    conditions.push(OUT_OF_DISK);
    conditions[0] = ("MemoryPressure", "True", 17);
    let told = Instant::now();
    bed.double.tell(|settings| settings.node = Some(objects::node(&conditions)));
    let (page, _) = bed.until(SOON, "what it was told", |page| status(page, "OutOfDisk", "unknown") == Some(1.0));
    let since = told.elapsed().as_secs_f64() + 1.0;
    assert_eq!(status(&page, "MemoryPressure", "true"), Some(1.0));
    for (condition, _, seconds) in conditions {
        let shown = of(&page, age, condition).unwrap();
        let told = seconds as f64;
        assert!((told..=told + since).contains(&shown), "{condition}: told {told}, shown {shown}");
        assert_eq!(of(&page, orphaned, condition), Some(f64::from(condition == "OutOfDisk")), "{condition}");
    }
    bed.double.tell(|settings| settings.node = Some(objects::node(&HEALTHY)));
    bed.until(SOON, "the orphan is gone", |page| of(page, orphaned, "OutOfDisk").is_none());

    // A kubelet that is gone renews nothing.
    bed.stop_kubelet();
    let stopped = Instant::now();
    let (page, _) = bed.until(SOON, "the lease grows old", |page| lease(page) >= Some(4.0));
    assert!(lease(&page).unwrap() <= stopped.elapsed().as_secs_f64() + 1.0);
    bed.double.lease(Some(objects::lease(39.0)));
    bed.until(SOON, "as it was told", |page| lease(page) >= Some(39.0) && lease(page) < Some(45.0));
    bed.double.lease(None);
    let present = "headroom_node_object_present";
    bed.until(SOON, "deleted", |page| page.of(present, &[("object", "lease")]) == Some(0.0) && lease(page).is_none());
    bed.double.tell(|settings| settings.node = None);
    bed.until(SOON, "deleted as well", |page| page.of(present, &[("object", "node")]) == Some(0.0));
    bed.double.lease(Some(objects::lease(0.0)));
    bed.double.tell(|settings| settings.node = Some(objects::node(&HEALTHY)));
    bed.start_kubelet(&QUICK_KUBELET, Duration::from_millis(200));
    bed.until(SOON, "all is as before", |page| lease(page) < Some(3.0) && status(page, "Ready", "true") == Some(1.0));
}

#[test]
fn from_the_apiserver_to_the_kubelet() {
    let Some(bed) = quick(&["--apiserver.probe-kubelet"]) else { return };
    let asked = |page: &Page, result| page.of("headroom_apiserver_to_kubelet_total", &[("result", result)]);
    let proxy = |request: &Request| request.what == format!("GET /api/v1/nodes/{}/proxy/healthz", testbed::NODE_NAME);
    bed.until(SOON, "it is reached", |page| asked(page, "ok") >= Some(2.0));
    assert!(bed.requests(AGENT).iter().any(proxy));
    bed.double.tell(|settings| settings.kubelet_status = 503);
    bed.until(DETECTED, "it is not", |page| asked(page, "server_error") >= Some(1.0));
    assert!(bed.scrape().both(true), "the apiserver is well");
    bed.double.tell(|settings| settings.kubelet_status = 200);
    let before = asked(&bed.scrape(), "ok");
    bed.until(SOON, "it is again", |page| asked(page, "ok") > before);
}

#[test]
fn nobody_asks_for_the_kubelet_unless_told_and_a_server_of_ipv6_is_one_like_any() {
    if !possible() {
        return;
    }
    let mut bed = Bed::new();
    bed.start_kubelet(&[("DISABLE_HTTP2", "1")], Duration::from_millis(200));
    bed.start_exporter(&format!("https://[{CP6}]:{PORT}"), &QUICK);
    let page = is_well(&bed);
    let off = page.family("headroom_kubelet_http2_info").any(|(series, _)| series.contains("enabled=\"false\""));
    assert!(off, "{page:#?}");
    assert_eq!(page.connections("kubelet"), Some(2.0), "HTTP/1.1");
    assert_eq!(page.connection("stalled", "self", &peer(CP6)), Some(0.0));
    assert!(page.connection("rtt_seconds", "self", &peer(CP6)) > Some(0.0));
    let ours = reused(&bed);
    assert!(ours.cp.is_ipv6());
    let fault = bed.pair.drop_connection(ours);
    bed.until(DETECTED, "dead over IPv6", |page| page.failures("reused", "ping", "timeout") >= 1.0);
    drop(fault);
    let page = bed.scrape();
    is_well_again(&bed, &page);
    assert_eq!(page.family("headroom_apiserver_to_kubelet_total").count(), 0);
    assert!(bed.requests(AGENT).iter().all(|request| !request.what.contains("/proxy/")));
}

/// Files and threads of the exporter, by the word of /proc.
fn holdings(bed: &Bed) -> (usize, usize) {
    let of = |what| std::fs::read_dir(format!("/proc/{}/{what}", bed.exporter().pid())).unwrap().count();
    (of("fd"), of("task"))
}

#[test]
fn two_hundred_faults_leave_nothing_behind() {
    let Some(bed) = quick(&["--apiserver.probe-interval=100ms", "--apiserver.probe-timeout=200ms"]) else { return };
    let cycle = |number: usize| {
        let before = is_well(&bed);
        let failed = |page: &Page| page.all_failures("fresh") + page.all_failures("reused");
        let reconnected =
            |page: &Page| page.reconnects("closed") + page.reconnects("reset") + page.reconnects("goaway");
        match number % 4 {
            0 => {
                let _fault = bed.pair.drop_everything();
                bed.until(SOON, "dropped", |page| failed(page) > failed(&before));
            }
            1 => {
                bed.double.tell(|settings| settings.listening = false);
                bed.until(SOON, "refused", |page| page.probes("fresh", "refused") > before.probes("fresh", "refused"));
                bed.double.tell(|settings| settings.listening = true);
            }
            2 => {
                bed.double.close_all();
                bed.until(SOON, "closed", |page| reconnected(page) > reconnected(&before));
            }
            _ => {
                bed.double.go_away();
                bed.until(SOON, "sent away", |page| reconnected(page) > reconnected(&before));
            }
        }
    };
    (0..20).for_each(cycle);
    is_well(&bed);
    let (fds, threads) = holdings(&bed);
    (20..220).for_each(cycle);
    let page = is_well(&bed);
    let errors =
        page.family("headroom_collector_errors_total").filter(|(series, _)| series.contains("apiserver_connection"));
    assert_eq!(errors.map(|(_, count)| count).sum::<f64>(), 0.0, "none of it is an error of ours: {page:#?}");
    // A fresh probe under way has a socket or two. A scrape takes a thread more whenever a mode holds up the others,
    // and those wait for the next one: never more than there are modes, and here are two hundred faults.
    let most = threads + headroom::modes::MODES.len() + 2;
    let (fds_now, threads_now) = wait(SOON, "as many files and threads as before", || {
        Some(holdings(&bed)).filter(|&(fds_now, threads_now)| fds_now <= fds + 2 && threads_now <= most)
    });
    println!("fds {fds} → {fds_now}, threads {threads} → {threads_now}");
    assert!(page.value("process_open_fds") <= fds as f64 + 4.0, "by its own word as well");
}

/// The kernel's figures on the page are those that `ss` shows of the same socket.
#[test]
fn figures_are_those_of_ss() {
    let Some(bed) = quick(&[]) else { return };
    let (connection, mut same) = (kubelets(&bed), 0);
    // Between two looks of the witness that agree, ours must agree with both. The connection works, so not all do.
    for _ in 0..200 {
        let Some(first) = bed.socket(connection) else { continue };
        let page = bed.scrape();
        let second = bed.socket(connection).expect("the same connection");
        if first.rtt() != second.rtt() || first.retransmits() != second.retransmits() {
            continue;
        }
        same += 1;
        let (rtt, variance) = first.rtt();
        let near = |ours: f64, witness: f64| (ours - witness).abs() <= 1e-6;
        assert!(near(kubelet(&page, "rtt_seconds"), rtt) && near(kubelet(&page, "rttvar_seconds"), variance));
        assert_eq!(kubelet(&page, "retransmits"), first.retransmits() as f64);
    }
    assert!(same >= 3, "{same} of 200 looks could be compared");
    // Dead, everything stands still or grows: each figure between the two of the witness.
    let fault = bed.pair.drop_connection(connection);
    wait(SOON, "it backs off", || bed.socket(connection)?.number("backoff").filter(|&backoff| backoff >= 2.0));
    let mut compared = 0;
    while let (Some(first), page, Some(second)) = (bed.socket(connection), bed.scrape(), bed.socket(connection)) {
        let alive = |socket: &testbed::witness::Socket| socket.state == "ESTAB";
        if !alive(&second) {
            break;
        }
        compared += 1;
        let both = |figure: &str| [&first, &second].map(|socket| socket.number(figure).unwrap_or(0.0));
        let queues = [first.send_queue as f64, second.send_queue as f64];
        let retransmits = [first.retransmits() as f64, second.retransmits() as f64];
        for (figure, [low, high], unit) in [
            ("unacked_segments", both("unacked"), 1.0),
            ("backoff", both("backoff"), 1.0),
            ("retransmits", retransmits, 1.0),
            ("send_queue_bytes", queues, 1.0),
            ("last_ack_seconds", both("lastack"), 1000.0),
            ("last_data_received_seconds", both("lastrcv"), 1000.0),
        ] {
            let ours = kubelet(&page, figure) * unit;
            assert!((low - 0.01..=high + 0.01).contains(&ours), "{figure}: ss {low}, {ours} on the page, ss {high}");
        }
    }
    assert!(compared >= 2, "the dead connection was there for {compared} looks");
    drop(fault);
    is_well(&bed);
}
