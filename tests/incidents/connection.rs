//! I5: the kubelet's one connection is dead, but in use.

use std::time::{Duration, Instant};

use crate::netns::CP;
use crate::pace::Pace;
use crate::stack::Stack;
use crate::testbed::bed::{Bed, peer, wait};
use crate::{possible, tell};

const SOON: Duration = Duration::from_secs(15);
pub const QUICK: [&str; 5] = [
    "--apiserver.probe-interval=1s",
    "--apiserver.probe-timeout=1s",
    "--apiserver.stall-threshold=2s",
    "--collector.node_status.lease-interval=1s",
    "--collector.node_status.node-interval=1s",
];

#[test]
fn i5_the_connection_that_was_dead_but_in_use() {
    if !possible() {
        return;
    }
    let pace = Pace::of_this_run();
    let off = [("HTTP2_READ_IDLE_TIMEOUT_SECONDS", "0")];
    let (environment, renew, flags): (&[_], _, &[_]) = match pace.is_real() {
        true => (&[], Duration::from_secs(10), &[]),
        false => (&off, Duration::from_millis(200), &QUICK),
    };
    let bed = Bed::new().with(environment, renew, flags);
    let stack = Stack::start(&bed.pair.node, bed.exporter().address, pace);
    stack.is_calm();
    let pid = bed.kubelet().pid();
    let dead = wait(SOON, "one connection of the kubelet", || bed.connections(pid).first().copied());
    let fault = Instant::now();
    let drop_rule = bed.pair.drop_connection(dead);
    let notice = stack
        .arrives("HeadroomApiserverConnectionStalled", &[("severity", "warning"), ("mode", "apiserver_connection")]);
    tell("I5", pace, fault, &notice);
    assert!(notice.text("description").contains(&peer(CP)), "{}", notice.text("description"));
    drop(drop_rule);
    stack.all_resolve();
    stack.only(&["HeadroomApiserverConnectionStalled"]);
}
