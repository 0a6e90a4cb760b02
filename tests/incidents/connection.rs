//! I5: the kubelet's one connection is dead, but in use.

use std::time::{Duration, Instant};

use crate::netns::{CP, Connection};
use crate::pace::Pace;
use crate::stack::Stack;
use crate::testbed::bed::{Bed, peer, wait};
use crate::{possible, tell};

const SOON: Duration = Duration::from_secs(15);
/// The exporter's own clocks at the pace of a replay.
pub const QUICK: [&str; 5] = [
    "--apiserver.probe-interval=1s",
    "--apiserver.probe-timeout=1s",
    "--apiserver.stall-threshold=2s",
    "--collector.node_status.lease-interval=1s",
    "--collector.node_status.node-interval=1s",
];

/// The bed at this pace: in real time a kubelet with default settings and an exporter with default flags.
pub fn bed(pace: Pace, environment: &[(&str, &str)]) -> Option<Bed> {
    let (renew, flags): (_, &[_]) =
        if pace.is_real() { (Duration::from_secs(10), &[]) } else { (Duration::from_millis(200), &QUICK) };
    possible().then(|| Bed::new().with(environment, renew, flags))
}

/// The kubelet's connection, and the exporter's that lasts.
fn lasting(bed: &Bed) -> [Connection; 2] {
    [bed.kubelet().pid(), bed.exporter().pid()].map(|pid| {
        wait(SOON, "a connection that lasts", || {
            let before = bed.connections(pid);
            std::thread::sleep(Duration::from_millis(300));
            bed.connections(pid).into_iter().find(|connection| before.contains(connection))
        })
    })
}

/// Every connection there is dies without a word, and new ones work. The kubelet heals itself; it was paged before.
#[test]
fn i5_the_connection_that_was_dead_but_in_use() {
    let pace = Pace::of_this_run();
    let quick = [("HTTP2_READ_IDLE_TIMEOUT_SECONDS", "5"), ("HTTP2_PING_TIMEOUT_SECONDS", "3")];
    let Some(bed) = bed(pace, if pace.is_real() { &[] } else { &quick }) else { return };
    let stack = Stack::start(&bed.pair.node, bed.exporter().address, pace);
    stack.is_calm();
    let connections = lasting(&bed);
    let fault = Instant::now();
    let dropped = connections.map(|connection| bed.pair.drop_connection(connection));
    let stalled = stack.arrives("HeadroomApiserverConnectionStalled", &[("severity", "warning")]);
    tell("I5", pace, fault, &stalled);
    stalled.says("summary", &[&peer(CP)]);
    let health_check = if pace.is_real() { "45s" } else { "8s" };
    stalled.says("description", &["nothing was acknowledged", "gives up such a connection", health_check]);
    let reused = stack.arrives("HeadroomApiserverReusedConnectionDied", &[("severity", "warning")]);
    tell("I5", pace, fault, &reused);
    stack.all_resolve();
    let mut names = vec!["HeadroomApiserverConnectionStalled", "HeadroomApiserverReusedConnectionDied"];
    if pace.is_real() {
        // 45 s without a renewal.
        names.extend(["HeadroomNodeLeaseOld", "HeadroomNodeLeaseExpiring"]);
    }
    stack.only(&names);
    drop(dropped);
}

/// A kubelet whose health check is switched off: known before, and paged as what does not heal once 25 s have passed.
#[test]
fn i5_a_kubelet_that_never_lets_go() {
    let pace = Pace::of_this_run();
    let Some(bed) = bed(pace, &[("HTTP2_READ_IDLE_TIMEOUT_SECONDS", "0")]) else { return };
    let stack = Stack::start(&bed.pair.node, bed.exporter().address, pace);
    let off = stack.arrives("HeadroomKubeletHttp2HealthCheckOff", &[("severity", "warning")]);
    off.says("description", &["read-idle timeout 0s"]);
    let [kubelets, _] = lasting(&bed);
    let fault = Instant::now();
    let dropped = bed.pair.drop_connection(kubelets);
    let stalled = stack.arrives("HeadroomApiserverConnectionStalled", &[("severity", "warning")]);
    tell("I5, no health check", pace, fault, &stalled);
    stalled.says("description", &["13 to 30 minutes"]);
    let dead = stack.arrives("HeadroomApiserverConnectionDead", &[("severity", "critical")]);
    tell("I5, no health check", pace, fault, &dead);
    dead.says("description", &["health check is switched off", "Restart the kubelet"]);
    drop(dropped);
    stack.resolves("HeadroomApiserverConnectionDead");
    let seen =
        ["HeadroomKubeletHttp2HealthCheckOff", "HeadroomApiserverConnectionStalled", "HeadroomApiserverConnectionDead"];
    let lease = ["HeadroomNodeLeaseOld", "HeadroomNodeLeaseExpiring"];
    stack.only_or(&seen, &lease);
}
