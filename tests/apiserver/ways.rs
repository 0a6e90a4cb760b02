//! The way that the kubelet really takes to the apiserver: straight, by a name, through a balancer on its node, inside
//! its own balancer, through a proxy. For each what the first page says while all is well, and what the pages say when
//! it breaks where only that way breaks, after a restart of the exporter in the middle of it, and once it is whole
//! again. `ways_alone.rs` tests what stands on these ways by itself.

#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]
#![allow(clippy::print_stdout, reason = "times to detection, for whoever reads them")]

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::common::netns::{CP, CP6, NODE};
use crate::common::{self, Page};
use crate::testbed::balancer::{Balancer, Program};
use crate::testbed::bed::{Bed, server, wait};
use crate::testbed::control::Names;
use crate::testbed::forwarder::{Forwarder, Manners, Onward};
use crate::testbed::series::{Series as _, series};
use crate::testbed::{BALANCER, Embedded, KubeletLike, NAME, NEXT, NODE_NAME, PORT, Way};

const RENEW: Duration = Duration::from_millis(200);
/// What a loaded machine may take, not what is expected.
const SOON: Duration = Duration::from_secs(15);
/// From a fault to the page that shows it, at these thresholds.
const DETECTED: Duration = Duration::from_secs(6);
/// From the end of a fault: the kernel tries again at growing intervals.
const WHOLE_AGAIN: Duration = Duration::from_secs(40);
/// A kubelet that never finds out that its connection is dead.
const BLIND: [(&str, &str); 1] = [("HTTP2_READ_IDLE_TIMEOUT_SECONDS", "0")];
/// One that finds out in two seconds.
const SHARP: [(&str, &str); 2] = [("HTTP2_READ_IDLE_TIMEOUT_SECONDS", "1"), ("HTTP2_PING_TIMEOUT_SECONDS", "1")];
const QUICK: [&str; 3] =
    ["--apiserver.probe-interval=1s", "--apiserver.probe-timeout=1s", "--apiserver.stall-threshold=2s"];

const WAY: &str = "headroom_kubelet_apiserver_way_info";
const HEARD: &str = "headroom_kubelet_apiserver_last_data_received_seconds";
const CONNECTIONS: &str = "headroom_apiserver_connections";

/// A figure of a connection, by its leg.
fn figure(page: &Page, figure: &str, owner: &str, peer: SocketAddr, leg: &str) -> Option<f64> {
    let labels = [("owner", owner), ("peer", &*peer.to_string()), ("leg", leg)];
    page.of(&format!("headroom_apiserver_connection_{figure}"), &labels)
}

fn connections(page: &Page, owner: &str, leg: &str) -> Option<f64> {
    page.of(CONNECTIONS, &[("owner", owner), ("leg", leg)])
}

fn heard(page: &Page) -> Option<f64> {
    page.of(HEARD, &[])
}

/// A way, and what the page says of it.
#[derive(Clone, Copy, Debug)]
struct Expected<'a> {
    way: &'a str,
    via: &'a str,
    /// The peer of the kubelet's own connection.
    near: SocketAddr,
    /// Who goes onward, and to where.
    onward: Option<(&'a str, SocketAddr)>,
}

impl Expected<'_> {
    fn direct(peer: impl Into<SocketAddr>) -> Self {
        Expected { way: "direct", via: "", near: peer.into(), onward: None }
    }

    /// What the page says about the way itself, if that is wrong.
    fn misnamed(&self, page: &Page) -> Option<String> {
        let labels = [("way", self.way), ("via", self.via)];
        // A label without a value is none.
        let labels: Vec<_> = labels.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        let expected = series(WAY, &labels);
        let rows: Vec<(&str, f64)> = page.family(WAY).collect();
        (rows != [(&*expected, 1.0)]).then(|| format!("the way: {rows:?}, not {expected}"))
    }

    /// Everything on this page that is not as it is while all is well.
    fn wrong(&self, page: &Page) -> Vec<String> {
        let mut wrong: Vec<String> = self.misnamed(page).into_iter().collect();
        let near = [("kubelet", self.near, "kubelet")];
        let far = self.onward.map(|(owner, peer)| (owner, peer, "onward"));
        for (owner, peer, leg) in near.into_iter().chain(far) {
            match connections(page, owner, leg) {
                Some(1.0..) => {}
                other => wrong.push(format!("connections of {owner}, leg {leg}: {other:?}")),
            }
            // What arrived an instant ago may still lie there.
            for (name, most) in [("stalled", 0.0), ("unread_seconds", 1.0), ("backoff", 0.0)] {
                match figure(page, name, owner, peer, leg) {
                    Some(value) if value <= most => {}
                    other => wrong.push(format!("{name} of {owner} to {peer}, leg {leg}: {other:?}")),
                }
            }
            if leg == "onward" && connections(page, owner, "other").is_some() {
                wrong.push(format!("{owner} is somebody else as well"));
            }
        }
        wrong.extend(claims_of_none(page));
        if !heard(page).is_some_and(|seconds| seconds < 2.0) {
            wrong.push(format!("last heard: {:?}", heard(page)));
        }
        if page.outcome("apiserver_connection") != "ok" {
            wrong.push(format!("the outcome: {}", page.outcome("apiserver_connection")));
        }
        let of_a_connection = |series: &&String| series.starts_with("headroom_apiserver_connection");
        let without = page.0.keys().filter(of_a_connection).filter(|series| !series.contains(",leg=\""));
        wrong.extend(without.map(|series| format!("no leg: {series}")));
        wrong
    }

    /// On the first page of an exporter that has just begun.
    fn at_once(&self, bed: &Bed, what: &str) {
        let start = Instant::now();
        let page = bed.scrape();
        let wrong = self.wrong(&page);
        assert!(wrong.is_empty(), "{what}: on the first page: {wrong:#?}\n{}", ours(&page));
        assert!(start.elapsed() < Duration::from_secs(5), "{what}: the first page took {:?}", start.elapsed());
    }

    fn again(&self, bed: &Bed) {
        let (_, after) = bed.until(WHOLE_AGAIN, "the way is whole again", |page| self.wrong(page).is_empty());
        println!("{} {}: whole again after {after:?}", self.way, self.via);
    }
}

/// Where it says that there are none: nowhere while there are.
fn claims_of_none(page: &Page) -> Vec<String> {
    let none = page.family(CONNECTIONS).filter(|&(_, count)| count == 0.0);
    none.map(|(series, _)| format!("{series} 0")).collect()
}

/// What the page says about the apiserver, for whoever reads why a test failed.
fn ours(page: &Page) -> String {
    let about = |series: &str| {
        ["headroom_apiserver_conn", "headroom_apiserver_endpoint", "headroom_kubelet"]
            .iter()
            .any(|name| series.starts_with(name))
            || series.contains("collector=\"apiserver_connection\"")
    };
    page.0.iter().filter(|(series, _)| about(series)).fold(String::new(), |mut text, (series, value)| {
        writeln!(text, "{series} {value}").unwrap();
        text
    })
}

/// Straight to the control plane, whatever way the kubelet takes.
fn start_exporter(bed: &Bed) {
    bed.start_exporter(&format!("https://{CP}:{PORT}"), &QUICK);
}

/// The exporter is not told where an embedded kubelet's kubeconfig is.
fn start_bare_exporter(bed: &Bed) {
    bed.start_exporter_bare(&format!("https://{CP}:{PORT}"), &QUICK);
}

/// The connection behind the balancer or proxy vanishes, and the kubelet does not look.
fn dead_behind(bed: &Bed, expected: &Expected<'_>, start: fn(&Bed)) {
    let (owner, peer) = expected.onward.unwrap();
    let far = bed.the_one(owner, peer);
    let fault = bed.pair.drop_connection(far);
    let stalled = |page: &Page| figure(page, "stalled", owner, peer, "onward") == Some(1.0);
    let (page, after) = bed.until(DETECTED, "stalled, onward", stalled);
    println!("{owner}: known {after:?} after the drop");
    assert_eq!(figure(&page, "stalls_total", owner, peer, "onward"), Some(1.0), "{}", ours(&page));
    assert_eq!(figure(&page, "stalled", "kubelet", expected.near, "kubelet"), Some(0.0), "{}", ours(&page));
    assert_eq!(connections(&page, owner, "onward"), Some(1.0), "{}", ours(&page));
    bed.until(DETECTED, "the kubelet hears nothing", |page| heard(page) > Some(3.0));

    start(bed);
    let page = bed.scrape();
    assert_eq!(expected.misnamed(&page), None, "after a restart\n{}", ours(&page));
    assert!(heard(&page) > Some(3.0), "the kernel remembers\n{}", ours(&page));
    assert_eq!(claims_of_none(&page), [""; 0]);
    let (_, after) = bed.until(DETECTED, "stalled, onward, after a restart", stalled);
    println!("{owner}: known {after:?} after the restart");
    drop(fault);
    expected.again(bed);
}

fn through_a(program: Program) -> Option<(Bed, Balancer)> {
    let mut bed = Bed::open()?;
    if let Some(lacking) = program.lacking() {
        common::say_skip(format_args!("a balancer on the node: no {lacking}"));
        return None;
    }
    let balancer = Balancer::start(&bed.pair.node, bed.directory.path(), program);
    bed.write_kubeconfig(&bed.kubeconfig(&format!("https://{}", SocketAddr::from(BALANCER))));
    bed.start_kubelet_by(Way::to(SocketAddr::from(BALANCER)), &BLIND, RENEW);
    bed.the_one(program.comm(), server());
    Some((bed, balancer))
}

fn behind_a(program: Program) -> Expected<'static> {
    Expected { way: "balancer", via: program.comm(), near: BALANCER.into(), onward: Some((program.comm(), server())) }
}

/// Data that nobody reads, on the balancer's side of the kubelet's connection.
fn unread(bed: &Bed, expected: &Expected<'_>, hang: impl FnOnce(), go_on: impl FnOnce()) {
    let figure = |page: &Page, name| figure(page, name, "kubelet", expected.near, "kubelet");
    let waits = |page: &Page| figure(page, "unread_seconds") > Some(2.0) && figure(page, "stalled") == Some(1.0);
    expected.again(bed);
    hang();
    let (page, after) = bed.until(DETECTED, "unread, and stalled for that", waits);
    println!("{}: known {after:?} after it hangs", expected.via);
    assert_eq!(claims_of_none(&page), [""; 0]);
    start_exporter(bed);
    let page = bed.scrape();
    assert_eq!(expected.misnamed(&page), None, "after a restart\n{}", ours(&page));
    let (_, after) = bed.until(DETECTED, "unread after a restart", waits);
    println!("{}: known {after:?} after the restart", expected.via);
    go_on();
    expected.again(bed);
}

#[test]
fn nginx_on_the_node() {
    let Some((bed, balancer)) = through_a(Program::Nginx) else { return };
    let expected = behind_a(Program::Nginx);
    start_exporter(&bed);
    expected.at_once(&bed, "nginx");
    dead_behind(&bed, &expected, start_exporter);
    let hung = std::cell::Cell::new(None);
    unread(&bed, &expected, || hung.set(Some(balancer.hang())), || drop(hung.take()));
}

#[test]
fn haproxy_on_the_node() {
    let Some((mut bed, _balancer)) = through_a(Program::Haproxy) else { return };
    let expected = behind_a(Program::Haproxy);
    start_exporter(&bed);
    expected.at_once(&bed, "haproxy");
    dead_behind(&bed, &expected, start_exporter);

    // A kubelet that looks heals itself, through the same balancer, and what that leaves behind is nobody's stall.
    bed.stop_kubelet();
    bed.start_kubelet_by(Way::to(SocketAddr::from(BALANCER)), &SHARP, RENEW);
    let first = bed.the_one("haproxy", server());
    expected.again(&bed);
    let fault = bed.pair.drop_connection(first);
    wait(SOON, "another connection onward", || {
        bed.lasting("haproxy", server()).into_iter().find(|&connection| connection != first)
    });
    expected.again(&bed);
    drop(fault);
}

#[test]
fn a_balancer_that_misbehaves() {
    let Some(mut bed) = Bed::open() else { return };
    let near = SocketAddr::from(BALANCER);
    let expected = Expected { way: "balancer", via: "some-lb", near, onward: Some(("some-lb", server())) };
    let forwarder = Forwarder::start(&bed.pair.node, bed.directory.path(), "some-lb", near, Onward::To(server()));
    bed.write_kubeconfig(&bed.kubeconfig(&format!("https://{near}")));
    bed.start_kubelet_by(Way::to(near), &BLIND, RENEW);
    start_exporter(&bed);
    expected.at_once(&bed, "a forwarder");
    let hang = || forwarder.tell(Manners { reads: false, onward: true });
    unread(&bed, &expected, hang, || forwarder.tell(Manners::default()));

    forwarder.tell(Manners { reads: true, onward: false });
    let (page, _) = bed.until(DETECTED, "none onward", |page| connections(page, "some-lb", "onward") == Some(0.0));
    assert_eq!(connections(&page, "kubelet", "kubelet"), Some(1.0), "{}", ours(&page));
    bed.until(DETECTED, "the kubelet hears nothing", |page| heard(page) > Some(3.0));
    // One that has never seen it go onward knows of the kubelet's connection, and of nothing behind.
    start_exporter(&bed);
    let page = bed.scrape();
    assert_eq!(connections(&page, "kubelet", "kubelet"), Some(1.0), "{}", ours(&page));
    assert!(heard(&page) > Some(3.0), "{}", ours(&page));
    assert_eq!(page.family(WAY).count(), 1, "{}", ours(&page));
    // Its connections were cut; the kubelet has to make another.
    forwarder.tell(Manners::default());
    bed.stop_kubelet();
    bed.start_kubelet_by(Way::to(near), &BLIND, RENEW);
    expected.again(&bed);
}

#[test]
fn a_kubelet_inside_its_own_balancer() {
    let Some(mut bed) = Bed::open() else { return };
    let near = SocketAddr::from(([127, 0, 0, 1], 6444));
    let agent = "/var/lib/rancher/k3s/agent";
    // Where k3s has it by itself, in this namespace alone.
    bed.pair.node.run(&format!("mount -t tmpfs none /var/lib; mkdir -p {agent}"));
    let kubeconfig = bed.directory.path().join("kubelet.kubeconfig");
    std::fs::write(&kubeconfig, bed.kubeconfig(&format!("https://{near}"))).unwrap();
    bed.pair.node.run(&format!("cp {} {agent}/", kubeconfig.display()));
    let embedded = Embedded { comm: "k3s-agent".to_owned(), listen: near, onward: server() };
    bed.start_kubelet_by(Way { embedded: Some(embedded), ..Way::to(near) }, &BLIND, RENEW);
    let expected = Expected { way: "balancer", via: "k3s-agent", near, onward: Some(("k3s-agent", server())) };
    start_bare_exporter(&bed);
    expected.at_once(&bed, "k3s");
    dead_behind(&bed, &expected, start_bare_exporter);
}

#[test]
fn a_proxy() {
    let Some(mut bed) = Bed::open() else { return };
    let (here, there) = (SocketAddr::from(([127, 0, 0, 1], 3128)), SocketAddr::new(CP, 3128));
    let directory = bed.directory.path();
    let _proxies = [
        Forwarder::start(&bed.pair.node, directory, "tinyproxy", here, Onward::AsAsked),
        Forwarder::start(&bed.pair.cp, directory, "squid", there, Onward::AsAsked),
    ];
    let straight = bed.kubeconfig(&format!("https://{}", server()));
    let named =
        |proxy: SocketAddr| straight.replace("    server:", &format!("    proxy-url: http://{proxy}\n    server:"));
    let on_the_node = "127.0.0.1:3128";
    let local = Expected { way: "proxy", via: on_the_node, near: here, onward: Some(("tinyproxy", server())) };
    let remote = Expected { way: "proxy", via: "10.77.0.2:3128", near: there, onward: None };
    let url = format!("http://{here}");
    let elsewhere = format!("http://{there}");
    let except = CP.to_string();
    for (what, kubeconfig, environment, expected) in [
        ("proxy-url", named(here), vec![], local),
        ("HTTPS_PROXY", straight.clone(), vec![("HTTPS_PROXY", &*url)], local),
        (
            "https_proxy and an exception",
            straight.clone(),
            vec![("https_proxy", &*url), ("NO_PROXY", "10.0.0.1")],
            local,
        ),
        ("proxy-url wins", named(there), vec![("HTTPS_PROXY", &*url), ("NO_PROXY", &*except)], remote),
        ("HTTPS_PROXY, elsewhere", straight.clone(), vec![("HTTPS_PROXY", &*elsewhere)], remote),
        (
            "an exception",
            straight.clone(),
            vec![("HTTPS_PROXY", &*url), ("NO_PROXY", &*except)],
            Expected::direct(server()),
        ),
        ("for plain HTTP alone", straight.clone(), vec![("HTTP_PROXY", &*url)], Expected::direct(server())),
    ] {
        bed.write_kubeconfig(&kubeconfig);
        let proxy = (expected.way == "proxy").then_some(expected.near);
        bed.stop_kubelet();
        bed.start_kubelet_by(Way { proxy, ..Way::default() }, &[&BLIND[..], &environment].concat(), RENEW);
        start_exporter(&bed);
        expected.at_once(&bed, what);
        match (what, expected.way) {
            ("proxy-url", _) => dead_behind(&bed, &expected, start_exporter),
            ("HTTPS_PROXY, elsewhere", _) => {
                let fault = bed.pair.drop_connection(bed.the_one("kubelet", there));
                let stalled = |page: &Page| figure(page, "stalled", "kubelet", there, "kubelet") == Some(1.0);
                bed.until(DETECTED, "stalled on its way to the proxy", stalled);
                start_exporter(&bed);
                bed.until(DETECTED, "stalled after a restart", stalled);
                drop(fault);
                expected.again(&bed);
            }
            _ => {}
        }
    }
}

/// The exporter asks another address of the apiserver, and nobody tells it of the one that the kubelet is connected to.
fn by_name(before: impl FnOnce(&Bed)) -> Option<Bed> {
    let mut bed = Bed::open()?;
    bed.double.tell(|settings| {
        settings.addresses = vec![CP];
        settings.endpoints = vec![NEXT.to_string()];
    });
    bed.write_kubeconfig(&bed.kubeconfig(&format!("https://{NAME}:{PORT}")));
    bed.start_kubelet_by(Way::to(format_args!("{NAME}:{PORT}")), &BLIND, RENEW);
    bed.the_one("kubelet", server());
    before(&bed);
    start_elsewhere(&bed);
    Some(bed)
}

fn start_elsewhere(bed: &Bed) {
    bed.start_exporter(&format!("https://{NEXT}:{PORT}"), &QUICK);
}

/// The kubelet's connection dies, is known to be dead, also after a restart, and lives again.
fn dies_and_lives(bed: &Bed, expected: &Expected<'_>) {
    let fault = bed.pair.drop_connection(bed.the_one("kubelet", expected.near));
    let stalled = |page: &Page| figure(page, "stalled", "kubelet", expected.near, "kubelet") == Some(1.0);
    let (_, after) = bed.until(DETECTED, "stalled", stalled);
    println!("known {after:?} after the drop");
    start_elsewhere(bed);
    let (_, after) = bed.until(DETECTED, "stalled after a restart", stalled);
    println!("known {after:?} after the restart");
    drop(fault);
    bed.until(WHOLE_AGAIN, "it lives again", |page| {
        figure(page, "stalled", "kubelet", expected.near, "kubelet") == Some(0.0) && heard(page) < Some(2.0)
    });
}

#[test]
fn a_name_that_moves_on_while_the_kubelet_stays() {
    let Some(bed) = by_name(|_| ()) else { return };
    let expected = Expected::direct(server());
    expected.at_once(&bed, "a name");
    bed.double.tell(|settings| settings.addresses = vec![NEXT]);
    let moved = Instant::now();
    while moved.elapsed() < Duration::from_secs(8) {
        let page = bed.scrape();
        assert_eq!(expected.wrong(&page), [""; 0], "{:?} after it moved\n{}", moved.elapsed(), ours(&page));
        std::thread::sleep(Duration::from_millis(300));
    }
    start_elsewhere(&bed);
    expected.at_once(&bed, "a name that moved on before we came");
    dies_and_lives(&bed, &expected);

    // When it makes another, that is at the new address, at once.
    bed.double.close_all();
    bed.the_one("kubelet", (NEXT, PORT).into());
    Expected::direct((NEXT, PORT)).again(&bed);
}

#[test]
fn a_name_that_only_the_kubelet_knows() {
    let unknown = |bed: &Bed| bed.double.tell(|settings| settings.names = Names::NoSuchName);
    let Some(bed) = by_name(unknown) else { return };
    let expected = Expected::direct(server());
    let page = bed.scrape();
    assert_eq!(connections(&page, "kubelet", "kubelet"), Some(1.0), "{}", ours(&page));
    assert_eq!(figure(&page, "stalled", "kubelet", server(), "kubelet"), Some(0.0), "{}", ours(&page));
    assert!(heard(&page) < Some(2.0), "{}", ours(&page));
    assert_eq!((expected.misnamed(&page), claims_of_none(&page)), (None, vec![]), "{}", ours(&page));
    dies_and_lives(&bed, &expected);

    // A kubelet without any connection: while nobody knows where its server is, that it has none is not known either.
    bed.double.tell(|settings| settings.listening = false);
    bed.double.close_all();
    wait(SOON, "no connection", || bed.connections(bed.kubelet().pid()).is_empty().then_some(()));
    start_elsewhere(&bed);
    let page = bed.scrape();
    assert_eq!(connections(&page, "kubelet", "kubelet"), None, "{}", ours(&page));
    assert_eq!((heard(&page), page.family(WAY).count()), (None, 0), "{}", ours(&page));
    bed.double.tell(|settings| settings.names = Names::Answer);
    bed.until(Duration::from_secs(40), "none, now that the name is known", |page| {
        connections(page, "kubelet", "kubelet") == Some(0.0)
    });
    bed.double.tell(|settings| settings.listening = true);
    expected.again(&bed);
}

#[test]
fn a_name_that_is_known_late() {
    let Some(bed) = by_name(|bed| bed.double.tell(|settings| settings.names = Names::Silent)) else { return };
    let expected = Expected::direct(server());
    let start = Instant::now();
    let page = bed.scrape();
    assert!(start.elapsed() < Duration::from_secs(5), "a page does not wait for names: {:?}", start.elapsed());
    assert_eq!(connections(&page, "kubelet", "kubelet"), Some(1.0), "{}", ours(&page));
    assert_eq!((expected.misnamed(&page), claims_of_none(&page)), (None, vec![]), "{}", ours(&page));
    bed.double.tell(|settings| settings.names = Names::Answer);
    expected.again(&bed);
    dies_and_lives(&bed, &expected);
}

#[test]
fn kubeconfigs_of_all_kinds() {
    let Some(mut bed) = Bed::open() else { return };
    let directory = bed.directory.path();
    // The ports that a server without one has.
    let _ports = [443, 80]
        .map(|port| Forwarder::start(&bed.pair.cp, directory, "forwarder", (CP, port).into(), Onward::To(server())));
    let six = SocketAddr::new(CP6, PORT);
    for (text, peer) in [
        (format!("https://{six}"), six),
        // Without quotes it is no YAML.
        (format!("\"{six}\""), six),
        (server().to_string(), server()),
        (format!("{NAME}:{PORT}"), server()),
        (format!("http://{}", server()), server()),
        (format!("https://{CP}"), (CP, 443).into()),
        (CP.to_string(), (CP, 443).into()),
        (format!("http://{CP}"), (CP, 80).into()),
        (format!("https://{}/prefix/", server()), server()),
    ] {
        bed.write_kubeconfig(&bed.kubeconfig(&text));
        bed.stop_kubelet();
        bed.start_kubelet_by(Way::to(peer), &BLIND, RENEW);
        bed.start_exporter(&format!("https://{NEXT}:{PORT}"), &QUICK);
        Expected::direct(peer).at_once(&bed, &text);
    }

    let context = bed.kubeconfig(&format!("https://{}", server())).replace("current-context: default\n", "");
    bed.stop_kubelet();
    bed.start_kubelet_by(Way::default(), &BLIND, RENEW);
    for (what, text) in [("no current-context", Some(&*context)), ("empty", Some("")), ("missing", None)] {
        match text {
            Some(text) => bed.write_kubeconfig(text),
            None => std::fs::remove_file(bed.directory.path().join("kubelet.conf")).unwrap(),
        }
        bed.start_exporter(&format!("https://{NEXT}:{PORT}"), &QUICK);
        for page in [bed.scrape(), bed.scrape()] {
            assert_eq!(claims_of_none(&page), [""; 0], "{what}\n{}", ours(&page));
            let errors = page.family("headroom_collector_errors_total");
            let errors = errors.filter(|(series, _)| series.contains("collector=\"apiserver_connection\""));
            assert!(errors.map(|(_, count)| count).sum::<f64>() > 0.0, "{what}: said nowhere\n{}", ours(&page));
        }
    }
    // The file comes, as it does on a node that has just joined.
    bed.write_kubeconfig(&bed.kubeconfig(&format!("https://{}", server())));
    bed.until(Duration::from_secs(90), "the file is read", |page| Expected::direct(server()).wrong(page).is_empty());
}

/// Addresses at which a balancer may listen, and those by which a kubelet may ask for it.
#[test]
fn wherever_a_balancer_listens() {
    let Some(mut bed) = Bed::open() else { return };
    let (any, port) = (IpAddr::from(Ipv6Addr::UNSPECIFIED), BALANCER.1);
    let local = |ip: IpAddr| SocketAddr::new(ip, port);
    let (v4, v6) = (IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST));
    for (what, listen, asked, peer) in [
        // As a program in Go does: what it accepts has addresses of IPv4 in those of IPv6.
        ("both families", any, local(v4).to_string(), local(v4)),
        ("IPv6", v6, local(v6).to_string(), local(v6)),
        // As kubespray writes it.
        ("localhost", v4, format!("localhost:{port}"), local(v4)),
        ("localhost, both families", any, format!("localhost:{port}"), local(v4)),
        ("the node's own address", NODE, local(NODE).to_string(), local(NODE)),
    ] {
        let directory = bed.directory.path();
        let onward = Onward::To(server());
        let _forwarder = Forwarder::start(&bed.pair.node, directory, "some-lb", local(listen), onward);
        bed.write_kubeconfig(&bed.kubeconfig(&format!("https://{asked}")));
        bed.start_kubelet_by(Way::to(&asked), &BLIND, RENEW);
        // Whichever family the kubelet took of a name.
        let near =
            wait(SOON, what, || [peer, local(v6)].into_iter().find(|&peer| !bed.lasting("kubelet", peer).is_empty()));
        let expected = Expected { way: "balancer", via: "some-lb", near, onward: Some(("some-lb", server())) };
        start_exporter(&bed);
        expected.at_once(&bed, what);
        bed.stop_kubelet();
    }
}

/// A balancer behind a balancer, of a name that a label has to escape; and a proxy in the environment, which nobody
/// uses for what is on the loopback.
#[test]
fn two_balancers_in_a_row() {
    let Some(mut bed) = Bed::open() else { return };
    let (near, behind) = (SocketAddr::from(BALANCER), SocketAddr::from(([127, 0, 0, 1], 8443)));
    let directory = bed.directory.path();
    let _last = Forwarder::start(&bed.pair.node, directory, "last", behind, Onward::To(server()));
    let first = Forwarder::start(&bed.pair.node, directory, "a\"b\\c", near, Onward::To(behind));
    bed.write_kubeconfig(&bed.kubeconfig(&format!("https://{near}")));
    let environment = [BLIND[0], ("HTTPS_PROXY", "http://10.77.0.9:3128")];
    bed.start_kubelet_by(Way::to(near), &environment, RENEW);
    let escaped = "a\\\"b\\\\c";
    let expected = Expected { way: "balancer", via: escaped, near, onward: Some((escaped, behind)) };
    start_exporter(&bed);
    expected.at_once(&bed, "two balancers");
    first.tell(Manners { reads: false, onward: true });
    bed.until(DETECTED, "unread", |page| figure(page, "stalled", "kubelet", near, "kubelet") == Some(1.0));
    first.tell(Manners::default());
    expected.again(&bed);
}

/// A node that starts: the exporter is there before the kubelet, and the balancer comes last. And a kubelet that is
/// started anew.
#[test]
fn the_exporter_was_there_first() {
    let Some(mut bed) = Bed::open() else { return };
    let near = SocketAddr::from(BALANCER);
    bed.write_kubeconfig(&bed.kubeconfig(&format!("https://{near}")));
    start_exporter(&bed);
    let page = bed.scrape();
    assert_eq!((page.family(WAY).count(), heard(&page), claims_of_none(&page)), (0, None, vec![]), "{}", ours(&page));
    bed.start_kubelet_in_vain(Way::to(near), &BLIND, RENEW);
    let none = |page: &Page| connections(page, "kubelet", "kubelet") == Some(0.0);
    bed.until(SOON, "a kubelet, and no connection", none);
    let forwarder = Forwarder::start(&bed.pair.node, bed.directory.path(), "some-lb", near, Onward::To(server()));
    let expected = Expected { way: "balancer", via: "some-lb", near, onward: Some(("some-lb", server())) };
    expected.again(&bed);
    for _ in 0..2 {
        bed.stop_kubelet();
        bed.start_kubelet_by(Way::to(near), &BLIND, RENEW);
        let (_, after) = bed.until(SOON, "as before", |page| expected.wrong(page).is_empty());
        println!("a kubelet that is started anew: known after {after:?}");
    }
    // Another balancer takes its place.
    drop(forwarder);
    let _other = Forwarder::start(&bed.pair.node, bed.directory.path(), "other-lb", near, Onward::To(server()));
    let expected = Expected { way: "balancer", via: "other-lb", near, onward: Some(("other-lb", server())) };
    bed.stop_kubelet();
    bed.start_kubelet_by(Way::to(near), &BLIND, RENEW);
    bed.until(SOON, "the other one", |page| expected.misnamed(page).is_none());
    let page = bed.scrape();
    println!("{}", ours(&page));
    assert!(connections(&page, "other-lb", "onward") == Some(1.0), "{}", ours(&page));
}

/// Another client on the node: one that goes straight to the apiserver, and then one that shares the kubelet's
/// balancer. What is dead is theirs; the kubelet goes on to hear.
#[test]
fn other_clients_of_the_node() {
    let Some((bed, _balancer)) = through_a(Program::Nginx) else { return };
    let expected = behind_a(Program::Nginx);
    let of_the_kubelet = bed.the_one("nginx", server());
    let client = |way: Way, listen: u16| {
        let embedded =
            Embedded { comm: "kube-proxy".to_owned(), listen: ([127, 0, 0, 1], listen).into(), onward: server() };
        let way = Way { embedded: Some(embedded), ..way };
        KubeletLike::start(&bed.pair.node, bed.directory.path(), way, &BLIND, 200)
    };
    let straight = client(Way::default(), 6445);
    let its = bed.the_one("kube-proxy", server());
    start_exporter(&bed);
    expected.at_once(&bed, "beside another client");
    let fault = bed.pair.drop_connection(its);
    bed.until(DETECTED, "it is stalled", |page| figure(page, "stalled", "kube-proxy", server(), "other") == Some(1.0));
    assert_eq!(expected.wrong(&bed.scrape()), [""; 0], "the kubelet's way is as it was");
    drop(fault);
    drop(straight);

    let _shares = client(Way::to(SocketAddr::from(BALANCER)), 6446);
    let its = wait(SOON, "one more onward", || {
        bed.lasting("nginx", server()).into_iter().find(|&connection| connection != of_the_kubelet)
    });
    let fault = bed.pair.drop_connection(its);
    let stalled = |page: &Page| figure(page, "stalled", "nginx", server(), "onward") == Some(1.0);
    bed.until(DETECTED, "one onward is stalled, whose it is nobody knows", stalled);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        let page = bed.scrape();
        assert!(heard(&page) < Some(2.0) && heard(&page).is_some(), "{}", ours(&page));
        std::thread::sleep(Duration::from_millis(100));
    }
    drop(fault);
    expected.again(&bed);
}

/// A busy kubelet through a busy balancer that looks after its upstreams: no page of two hundred says otherwise.
#[test]
fn all_is_well_all_the_time() {
    let Some((mut bed, _balancer)) = through_a(Program::Haproxy) else { return };
    bed.stop_kubelet();
    bed.start_kubelet_by(Way::to(SocketAddr::from(BALANCER)), &SHARP, Duration::from_millis(4));
    bed.start_exporter(&format!("https://{}", SocketAddr::from(BALANCER)), &QUICK);
    let expected = behind_a(Program::Haproxy);
    for page in 1..=200 {
        let wrong = expected.wrong(&bed.scrape());
        assert!(wrong.is_empty(), "on page {page}: {wrong:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The kubelet itself hangs: what was answered waits in its own receive queue.
#[test]
fn a_kubelet_that_no_longer_reads() {
    let Some(mut bed) = Bed::open() else { return };
    bed.start_kubelet(&BLIND, Duration::from_millis(4));
    start_exporter(&bed);
    let expected = Expected::direct(server());
    expected.at_once(&bed, "straight");
    let kubelet = Pid::from_raw(bed.kubelet().pid().cast_signed()).unwrap();
    let connection = bed.the_one("kubelet", server());
    // Somewhere between two answers it may have read all there was.
    wait(SOON, "an answer that it does not read", || {
        kill_process(kubelet, Signal::STOP).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let unread = bed.socket(connection).unwrap().receive_queue > 0;
        if !unread {
            kill_process(kubelet, Signal::CONT).unwrap();
        }
        unread.then_some(())
    });
    let unread = |page: &Page| {
        let of = |name| figure(page, name, "kubelet", server(), "kubelet");
        of("unread_seconds") > Some(2.0) && of("stalled") == Some(1.0)
    };
    let (page, after) = bed.until(DETECTED, "unread", unread);
    println!("known {after:?} after it hangs\n{}", ours(&page));
    start_exporter(&bed);
    bed.until(DETECTED, "unread after a restart", unread);
    kill_process(kubelet, Signal::CONT).unwrap();
    expected.again(&bed);
}

/// The kernel rewrites where packets go: a service address, and one of the loopback behind which nobody is found.
#[test]
fn addresses_that_the_kernel_rewrites() {
    let Some(mut bed) = Bed::open() else { return };
    let (service, hidden) = (SocketAddr::from(([10, 96, 0, 1], 443)), SocketAddr::from(BALANCER));
    let rewrite = |address: SocketAddr| {
        let (ip, port) = (address.ip(), address.port());
        format!("iptables -w -t nat -A OUTPUT -p tcp -d {ip} --dport {port} -j DNAT --to-destination {}", server())
    };
    let script = format!(
        "sysctl -qw net.ipv4.conf.all.route_localnet=1; ip route add 10.96.0.0/16 dev cable; {}; {};
         iptables -w -t nat -A POSTROUTING -p tcp -d {CP} --dport {PORT} -j SNAT --to-source {NODE}",
        rewrite(service),
        rewrite(hidden)
    );
    bed.pair.node.run(&script);
    let unknown = Expected { way: "unknown", via: "127.0.0.1:7443", near: hidden, onward: None };
    for expected in [Expected::direct(service), unknown] {
        let near = expected.near;
        bed.write_kubeconfig(&bed.kubeconfig(&format!("https://{near}")));
        bed.stop_kubelet();
        // The certificate is not made out to a service address.
        bed.start_kubelet_by(Way { address: Some(near), ..Way::default() }, &BLIND, RENEW);
        start_exporter(&bed);
        expected.at_once(&bed, &near.to_string());
        let fault = bed.pair.drop_everything();
        let stalled = |page: &Page| figure(page, "stalled", "kubelet", near, "kubelet") == Some(1.0);
        bed.until(DETECTED, "stalled", stalled);
        start_exporter(&bed);
        bed.until(DETECTED, "stalled after a restart", stalled);
        drop(fault);
        expected.again(&bed);
    }
}

/// No upstream answers: the balancer takes the kubelet's connections, tries, and lets go of them.
#[test]
fn a_balancer_that_reaches_nobody() {
    let Some((mut bed, _balancer)) = through_a(Program::Nginx) else { return };
    bed.stop_kubelet();
    bed.start_kubelet_by(Way::to(SocketAddr::from(BALANCER)), &SHARP, RENEW);
    start_exporter(&bed);
    behind_a(Program::Nginx).at_once(&bed, "nginx");
    let fault = bed.pair.drop_everything();
    let none = |page: &Page| connections(page, "nginx", "onward") == Some(0.0);
    for what in ["it was seen to have some", "after a restart"] {
        let (page, after) = bed.until(SOON, "none onward", none);
        println!("{what}: known after {after:?}");
        assert_ne!(page.get(&series(WAY, &[("way", "direct")])), Some(1.0), "{}", ours(&page));
        start_exporter(&bed);
    }
    drop(fault);
    behind_a(Program::Nginx).again(&bed);
}

/// Without the right to see whose sockets are whose, nothing is said of the kubelet's, and never that it has none.
#[test]
fn an_exporter_that_may_not_look() {
    let Some((bed, _balancer)) = through_a(Program::Nginx) else { return };
    let kubeconfig = format!("--kubelet.kubeconfig={}", bed.directory.path().join("kubelet.conf").display());
    let flags = [&[&*kubeconfig], &QUICK[..]].concat();
    let powerless = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"];
    bed.start_exporter_by(&powerless, &format!("https://{CP}:{PORT}"), &flags);
    for _ in 0..3 {
        let page = bed.scrape();
        assert_eq!(claims_of_none(&page), [""; 0], "{}", ours(&page));
        assert_eq!(page.family(WAY).count(), 0, "{}", ours(&page));
        assert!(page.errors("apiserver_connection", "denied") > 0.0, "{}", ours(&page));
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// The exporter's own probes take the kubelet's way: behind the balancer nobody can tell one from the other.
#[test]
fn the_exporter_goes_the_same_way() {
    let Some((bed, _balancer)) = through_a(Program::Haproxy) else { return };
    bed.start_exporter(&format!("https://{}", SocketAddr::from(BALANCER)), &QUICK);
    let expected = behind_a(Program::Haproxy);
    expected.at_once(&bed, "a balancer for both");
    let (page, _) = bed.until(SOON, "a probe", |page| page.both(true));
    assert_eq!(connections(&page, "kubelet", "kubelet"), Some(1.0), "{}", ours(&page));
    assert_eq!(figure(&page, "stalled", "self", BALANCER.into(), "other"), Some(0.0), "{}", ours(&page));
    assert_eq!(expected.wrong(&page), [""; 0], "{}", ours(&page));
}

/// On a node of the control plane the kubelet's connection ends in the apiserver itself, whose own are no way onward.
#[test]
fn the_apiserver_is_on_the_node() {
    let Some(mut bed) = Bed::open() else { return };
    let near = SocketAddr::new(NODE, PORT);
    let directory = bed.directory.path();
    let _apiserver = Forwarder::start(&bed.pair.node, directory, "kube-apiserver", near, Onward::To(server()));
    bed.write_kubeconfig(&bed.kubeconfig(&format!("https://{near}")));
    bed.start_kubelet_by(Way::to(near), &BLIND, RENEW);
    start_exporter(&bed);
    Expected::direct(near).at_once(&bed, "an apiserver on the node");
    let page = bed.scrape();
    let onward = page.0.keys().filter(|series| series.contains("leg=\"onward\"")).count();
    assert_eq!(onward, 0, "{}", ours(&page));
}

/// HTTP/1.1 has a connection for each request that waits, and a second client shares the balancer.
#[test]
fn several_connections_and_one_of_them_dead() {
    let Some((mut bed, _balancer)) = through_a(Program::Nginx) else { return };
    bed.stop_kubelet();
    let way = || Way::to(SocketAddr::from(BALANCER));
    bed.start_kubelet_by(way(), &[("DISABLE_HTTP2", "1")], RENEW);
    let far = wait(SOON, "two onward", || Some(bed.lasting("nginx", server())).filter(|far| far.len() == 2));
    start_exporter(&bed);
    let expected = behind_a(Program::Nginx);
    expected.at_once(&bed, "HTTP/1.1");
    let page = bed.scrape();
    assert_eq!(connections(&page, "kubelet", "kubelet"), Some(2.0), "{}", ours(&page));
    assert_eq!(connections(&page, "nginx", "onward"), Some(2.0), "{}", ours(&page));
    // Only one of them has anything to say: the other one is the watch, on which nothing happens.
    let faults = [bed.pair.drop_connection(far[0]), bed.pair.drop_connection(far[1])];
    bed.until(DETECTED, "one is stalled", |page| {
        figure(page, "stalled", "nginx", server(), "onward") == Some(1.0) && heard(page) > Some(2.0)
    });
    drop(faults);
    expected.again(&bed);
}

/// A balancer that is there and goes away, and one that hangs before it has accepted.
#[test]
fn a_balancer_that_is_gone_or_hangs_from_the_start() {
    let Some((mut bed, balancer)) = through_a(Program::Nginx) else { return };
    let (expected, near) = (behind_a(Program::Nginx), SocketAddr::from(BALANCER));
    start_exporter(&bed);
    expected.at_once(&bed, "nginx");
    bed.stop_kubelet();
    let hung = balancer.hang();
    bed.start_kubelet_in_vain(Way::to(near), &BLIND, RENEW);
    wait(SOON, "a connection that the kernel took", || (!bed.lasting("kubelet", near).is_empty()).then_some(()));
    for what in ["while it looks", "after a restart"] {
        // The client gives up after ten seconds and tries again: there is a moment with none.
        let (page, after) = bed.until(SOON, "its hello is read by nobody", |page| {
            figure(page, "unread_seconds", "kubelet", near, "kubelet") > Some(2.0)
                && figure(page, "stalled", "kubelet", near, "kubelet") == Some(1.0)
        });
        println!("hung from the start, {what}: known after {after:?}");
        let direct = series(WAY, &[("way", "direct")]);
        assert_eq!((page.get(&direct), page.family(WAY).count()), (None, 1), "{}", ours(&page));
        start_exporter(&bed);
    }
    drop(hung);
    expected.again(&bed);

    drop(balancer);
    let none = |page: &Page| connections(page, "kubelet", "kubelet") == Some(0.0);
    let (page, _) = bed.until(DETECTED, "none at all", none);
    assert!(heard(&page).is_none() && connections(&page, "nginx", "onward").is_none_or(|count| count == 0.0));
    start_exporter(&bed);
    let page = bed.scrape();
    assert_eq!(connections(&page, "kubelet", "kubelet"), Some(0.0), "{}", ours(&page));
    let _balancer = Balancer::start(&bed.pair.node, bed.directory.path(), Program::Nginx);
    expected.again(&bed);
}

/// Words of a proxy's URL that are no address, and exceptions of all kinds.
#[test]
fn a_proxy_in_other_words() {
    let Some(mut bed) = Bed::open() else { return };
    bed.double.tell(|settings| settings.addresses = vec![CP]);
    let (here, there) = (SocketAddr::from(([127, 0, 0, 1], 3128)), SocketAddr::new(CP, 3128));
    let directory = bed.directory.path();
    let _proxies = [
        Forwarder::start(&bed.pair.node, directory, "tinyproxy", here, Onward::AsAsked),
        Forwarder::start(&bed.pair.cp, directory, "squid", there, Onward::AsAsked),
        Forwarder::start(&bed.pair.cp, directory, "squid", (CP, 80).into(), Onward::AsAsked),
    ];
    let local = Expected { way: "proxy", via: "127.0.0.1:3128", near: here, onward: Some(("tinyproxy", server())) };
    let named = Expected { way: "proxy", via: "api.test:3128", near: there, onward: None };
    let short = Expected { way: "proxy", via: "10.77.0.2:80", near: (CP, 80).into(), onward: None };
    let direct = Expected::direct(server());
    let (by_address, by_name) = (server().to_string(), format!("{NAME}:{PORT}"));
    let six = SocketAddr::new(CP6, PORT);
    let of_six = Expected { onward: Some(("tinyproxy", six)), ..local };
    // As Go has it (tried with 1.26).
    let by_six = six.to_string();
    for (what, asked, environment, expected) in [
        ("a password", &by_address, [("HTTPS_PROXY", "http://somebody:pssst@127.0.0.1:3128"), ("A", "")], local),
        ("no scheme", &by_address, [("HTTPS_PROXY", "127.0.0.1:3128"), ("A", "")], local),
        ("no port", &by_address, [("HTTPS_PROXY", "http://10.77.0.2"), ("A", "")], short),
        ("a name", &by_name, [("HTTPS_PROXY", "http://api.test:3128/"), ("A", "")], named),
        ("a network", &by_address, [("HTTPS_PROXY", "http://127.0.0.1:3128"), ("NO_PROXY", "10.77.0.0/24")], direct),
        ("a domain", &by_name, [("HTTPS_PROXY", "http://127.0.0.1:3128"), ("NO_PROXY", "x,.test")], direct),
        ("a domain itself", &by_name, [("HTTPS_PROXY", "http://127.0.0.1:3128"), ("no_proxy", "test")], direct),
        ("everything", &by_name, [("HTTPS_PROXY", "http://127.0.0.1:3128"), ("NO_PROXY", "*")], direct),
        ("another port", &by_address, [("HTTPS_PROXY", "http://127.0.0.1:3128"), ("NO_PROXY", "10.77.0.2:443")], local),
        ("another's", &by_name, [("HTTPS_PROXY", "http://127.0.0.1:3128"), ("NO_PROXY", "i.test")], local),
        ("brackets", &by_six, [("HTTPS_PROXY", "http://127.0.0.1:3128"), ("NO_PROXY", "[fd77::2]")], of_six),
        ("an empty port", &by_address, [("HTTPS_PROXY", "http://127.0.0.1:3128"), ("NO_PROXY", "10.77.0.2:")], direct),
        ("nothing", &by_address, [("HTTPS_PROXY", ""), ("A", "")], direct),
    ] {
        bed.write_kubeconfig(&bed.kubeconfig(&format!("https://{asked}")));
        let proxy = (expected.way == "proxy").then_some(expected.near);
        bed.stop_kubelet();
        bed.start_kubelet_by(Way { proxy, ..Way::to(asked) }, &[&BLIND[..], &environment].concat(), RENEW);
        start_exporter(&bed);
        expected.at_once(&bed, what);
        for page in ["/metrics", "/"] {
            let text = bed.pair.node.inside(|| bed.exporter().get(page, &[]).text());
            assert!(!text.contains("pssst"), "{what}: {page} gives a password away");
        }
    }
}

/// What a person reads: `doctor`'s report.
fn doctor(bed: &Bed) -> String {
    let at = |name| bed.directory.path().join(name).display().to_string();
    let mut command = bed.pair.node.command(env!("CARGO_BIN_EXE_headroom-exporter"));
    command.args([
        "doctor",
        "--for=3s",
        "--no-runtime",
        "--kubelet.url=off",
        &format!("--apiserver.url=https://{CP}:{PORT}"),
    ]);
    command
        .args([&format!("--apiserver.token-file={}", at("token")), &format!("--apiserver.ca-file={}", at("ca.pem"))]);
    command.args([&format!("--kubelet.kubeconfig={}", at("kubelet.conf")), &format!("--node-name={NODE_NAME}")]);
    command.arg("--apiserver.stall-threshold=2s");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = bed.pair.node.spawn(&mut command).unwrap().wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    text(output.stdout) + &text(output.stderr)
}

#[test]
fn a_person_reads_which_way_it_is() {
    let Some((bed, _balancer)) = through_a(Program::Nginx) else { return };
    let says = |text: &str, words: &[&str]| {
        let missing: Vec<&&str> = words.iter().filter(|word| !text.contains(**word)).collect();
        assert!(missing.is_empty(), "{missing:?} are not said in:\n{text}");
    };
    let way = ["127.0.0.1:7443", "nginx", "10.77.0.2:6443"];
    let told = doctor(&bed);
    println!("{told}");
    says(&told, &way);
    start_exporter(&bed);
    bed.scrape();
    says(&bed.pair.node.inside(|| bed.exporter().get("/", &[]).text()), &way);

    let fault = bed.pair.drop_connection(bed.the_one("nginx", server()));
    bed.until(DETECTED, "stalled", |page| figure(page, "stalled", "nginx", server(), "onward") == Some(1.0));
    let told = doctor(&bed);
    println!("{told}");
    says(&told, &way);
    let wrong = |line: &&str| line.contains("10.77.0.2:6443") && line.contains("STALLED");
    assert_eq!(told.lines().filter(wrong).count(), 1, "{told}");
    assert!(!told.lines().any(|line| line.contains("127.0.0.1:7443") && line.contains("STALLED")), "{told}");
    drop(fault);
}
