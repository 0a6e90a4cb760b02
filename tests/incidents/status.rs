//! I8: a condition that is nobody's, an apiserver out of seats, a lease that is not renewed.

use std::time::{Duration, Instant};

use crate::connection::QUICK;
use crate::pace::Pace;
use crate::stack::Stack;
use crate::testbed::bed::Bed;
use crate::testbed::control::Refusal;
use crate::testbed::objects::{self, HEALTHY, OUT_OF_DISK};
use crate::{possible, tell};

fn bed(pace: Pace) -> Option<Bed> {
    let (renew, flags): (_, &[_]) =
        if pace.is_real() { (Duration::from_secs(10), &[]) } else { (Duration::from_millis(200), &QUICK) };
    possible().then(|| Bed::new().with(&[], renew, flags))
}

#[test]
fn i8_a_condition_that_nobody_owns() {
    let pace = Pace::of_this_run();
    let Some(bed) = bed(pace) else { return };
    let stack = Stack::start(&bed.pair.node, bed.exporter().address, pace);
    stack.is_calm();
    let fault = Instant::now();
    let conditions: Vec<_> = HEALTHY.into_iter().chain([OUT_OF_DISK]).collect();
    bed.double.tell(|settings| settings.node = Some(objects::node(&conditions)));
    let notice = stack.arrives(
        "HeadroomNodeConditionOrphaned",
        &[("mode", "node_status"), ("severity", "info"), ("condition", "OutOfDisk")],
    );
    tell("I8 condition", pace, fault, &notice);
    bed.double.tell(|settings| settings.node = Some(objects::node(&HEALTHY)));
    stack.all_resolve();
    stack.only(&["HeadroomNodeConditionOrphaned"]);
}

#[test]
fn i8_the_apiserver_is_out_of_seats() {
    let pace = Pace::of_this_run();
    let Some(bed) = bed(pace) else { return };
    let stack = Stack::start(&bed.pair.node, bed.exporter().address, pace);
    stack.is_calm();
    let fault = Instant::now();
    bed.double
        .tell(|settings| settings.refusal = Some(Refusal { status: 429, retry_after: Some(1), objects_alone: false }));
    let notice = stack.arrives("HeadroomApiserverThrottled", &[]);
    tell("I8 throttled", pace, fault, &notice);
    bed.double.tell(|settings| settings.refusal = None);
    stack.all_resolve();
}

#[test]
fn i8_a_lease_that_is_not_renewed() {
    let pace = Pace::of_this_run();
    let Some(mut bed) = bed(pace) else { return };
    bed.stop_kubelet();
    bed.double.lease(Some(objects::lease(0.0)));
    let stack = Stack::start(&bed.pair.node, bed.exporter().address, pace);
    stack.is_calm();
    let fault = Instant::now();
    bed.double.lease(Some(objects::lease(20.0)));
    let notice = stack.arrives("HeadroomNodeLeaseStale", &[("mode", "node_status")]);
    tell("I8 lease", pace, fault, &notice);
    bed.double.lease(Some(objects::lease(0.0)));
    stack.all_resolve();
    stack.only(&["HeadroomNodeLeaseStale"]);
}
