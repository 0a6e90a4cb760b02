//! I5: the kubelet's one connection is dead, but in use.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::drill::{Drill, number_inside};
use super::pace::Pace;
use super::stack::Stack;
use super::{possible, tell};
use crate::common;
use crate::common::netns::CP;
use crate::common::prometheus::Release;
use crate::testbed::balancer::{Balancer, Program};
use crate::testbed::bed::{Bed, peer, wait};
use crate::testbed::{BALANCER, PORT, Way};

const SOON: Duration = Duration::from_secs(15);
/// The exporter's own clocks at the pace of a replay.
pub const QUICK: [&str; 5] = [
    "--apiserver.probe-interval=1s",
    "--apiserver.probe-timeout=1s",
    "--apiserver.stall-threshold=2s",
    "--collector.node_status.lease-interval=1s",
    "--collector.node_status.node-interval=1s",
];

/// How often the kubelet renews its lease at this pace, and the exporter's flags: in real time both by their defaults.
fn at(pace: Pace) -> (Duration, &'static [&'static str]) {
    if pace.is_real() { (Duration::from_secs(10), &[]) } else { (Duration::from_millis(200), &QUICK) }
}

/// The bed at this pace.
pub fn bed(pace: Pace, environment: &[(&str, &str)]) -> Option<Bed> {
    let (renew, flags) = at(pace);
    possible().then(|| Bed::new().with(environment, renew, flags))
}

/// Stalls each connection that this process has now, once it is one that lasts.
fn stall(bed: &Bed, pid: u32) -> Drill {
    wait(SOON, "a connection that lasts", || {
        let before = bed.connections(pid);
        std::thread::sleep(Duration::from_millis(300));
        bed.connections(pid).into_iter().find(|connection| before.contains(connection))
    });
    Drill::start(&bed.pair.node, &format!("stalled-connection --pid {} --port {PORT}", number_inside(pid)))
}

/// Every connection there is dies without a word, and new ones work. The kubelet heals itself; it was paged before.
pub fn i5_the_connection_that_was_dead_but_in_use() {
    let pace = Pace::of_this_run();
    let quick = [("HTTP2_READ_IDLE_TIMEOUT_SECONDS", "5"), ("HTTP2_PING_TIMEOUT_SECONDS", "3")];
    let Some(bed) = bed(pace, if pace.is_real() { &[] } else { &quick }) else { return };
    let stack = Stack::start(&bed.pair.node, bed.exporter().address, pace, Release::Three);
    stack.is_calm();
    let mut drills = [bed.kubelet().pid(), bed.exporter().pid()].map(|pid| stall(&bed, pid));
    let fault = drills[0].says("t=0s");
    let stalled = stack.arrives("HeadroomApiserverConnectionStalled", &[("severity", "warning")]);
    tell("I5", pace, fault, &stalled);
    stalled.says("summary", &[&peer(CP)]);
    let health_check = if pace.is_real() { "45s" } else { "8s" };
    stalled.says("description", &["waited to be acknowledged", "opens a new connection", health_check]);
    let reused = stack.arrives("HeadroomApiserverReusedConnectionDied", &[("severity", "warning")]);
    tell("I5", pace, fault, &reused);
    stack.all_resolve();
    // Some 45 s without a renewal, in real time.
    let lease: &[&str] = if pace.is_real() { &["HeadroomNodeLeaseOld", "HeadroomNodeLeaseExpiring"] } else { &[] };
    stack.only_or(&["HeadroomApiserverConnectionStalled", "HeadroomApiserverReusedConnectionDied"], lease);
    for drill in drills {
        drill.end(&["HeadroomApiserverConnectionStalled"]);
    }
}

/// A kubelet whose health check is switched off: known before, and paged as what does not heal once 25 s have passed.
pub fn i5_a_kubelet_that_never_lets_go() {
    let pace = Pace::of_this_run();
    let Some(bed) = bed(pace, &[("HTTP2_READ_IDLE_TIMEOUT_SECONDS", "0")]) else { return };
    let stack = Stack::start(&bed.pair.node, bed.exporter().address, pace, Release::Installed);
    let off = stack.arrives("HeadroomKubeletHttp2HealthCheckOff", &[("severity", "warning")]);
    off.says("description", &["read-idle timeout 0s"]);
    let mut drill = stall(&bed, bed.kubelet().pid());
    let fault = drill.says("t=0s");
    let stalled = stack.arrives("HeadroomApiserverConnectionStalled", &[("severity", "warning")]);
    tell("I5, no health check", pace, fault, &stalled);
    stalled.says("description", &["13 to 30 minutes"]);
    let dead = stack.arrives("HeadroomApiserverConnectionDead", &[("severity", "critical")]);
    tell("I5, no health check", pace, fault, &dead);
    dead.says("description", &["health check is switched off", "Restart the kubelet"]);
    drill.end(&["HeadroomApiserverConnectionStalled"]);
    stack.resolves("HeadroomApiserverConnectionDead");
    let seen =
        ["HeadroomKubeletHttp2HealthCheckOff", "HeadroomApiserverConnectionStalled", "HeadroomApiserverConnectionDead"];
    let lease = ["HeadroomNodeLeaseOld", "HeadroomNodeLeaseExpiring"];
    stack.only_or(&seen, &lease);
}

/// nginx on the node, and dead is the connection behind it: to the kubelet its own looks as well as ever. One of the
/// balancer's upstreams was dead before, and nobody is paged for that.
pub fn i5_the_connection_behind_a_balancer() {
    let pace = Pace::of_this_run();
    if !possible() {
        return;
    }
    if let Some(lacking) = Program::Nginx.lacking() {
        common::say_skip(format_args!("a balancer on the node: no {lacking}"));
        return;
    }
    let mut bed = Bed::new();
    let (near, server) = (SocketAddr::from(BALANCER), SocketAddr::new(CP, PORT));
    let _balancer = Balancer::start(&bed.pair.node, bed.directory.path(), Program::Nginx);
    let (renew, flags) = at(pace);
    bed.write_kubeconfig(&bed.kubeconfig(&format!("https://{near}")));
    bed.start_kubelet_by(Way::to(near), &[("HTTP2_READ_IDLE_TIMEOUT_SECONDS", "0")], renew);
    bed.start_exporter(&format!("https://{server}"), flags);
    let stack = Stack::start(&bed.pair.node, bed.exporter().address, pace, Release::Three);
    stack.arrives("HeadroomKubeletHttp2HealthCheckOff", &[("severity", "warning")]);
    let far = wait(SOON, "the connection behind the balancer", || bed.lasting("nginx", server).first().copied());
    let began = Instant::now();
    let fault = bed.pair.drop_connection(far);
    let onward = |severity| [("severity", severity), ("leg", "onward"), ("owner", "nginx"), ("peer", "10.77.0.2:6443")];
    let stalled = stack.arrives("HeadroomApiserverConnectionStalled", &onward("warning"));
    tell("I5, behind a balancer", pace, began, &stalled);
    stalled.says("summary", &["balancer nginx", &peer(CP)]);
    let dead = stack.arrives("HeadroomApiserverConnectionDead", &onward("critical"));
    tell("I5, behind a balancer", pace, began, &dead);
    dead.says("summary", &["nginx", &peer(CP)]);
    drop(fault);
    stack.resolves("HeadroomApiserverConnectionDead");
    let seen =
        ["HeadroomKubeletHttp2HealthCheckOff", "HeadroomApiserverConnectionStalled", "HeadroomApiserverConnectionDead"];
    stack.only_or(&seen, &["HeadroomNodeLeaseOld", "HeadroomNodeLeaseExpiring"]);
}
