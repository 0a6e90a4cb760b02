//! I8: a condition that is nobody's, an apiserver out of seats or away, a lease that is not renewed.

use std::time::{Duration, Instant};

use super::connection::bed;
use super::pace::Pace;
use super::stack::Stack;
use super::tell;
use crate::common::prometheus::Release;
use crate::testbed::control::Refusal;
use crate::testbed::objects::{self, HEALTHY, OUT_OF_DISK};
use crate::testbed::{KUBELET_TOKEN, TOKEN};

pub fn i8_a_condition_that_nobody_owns() {
    let pace = Pace::of_this_run();
    let Some(bed) = bed(pace, &[]) else { return };
    let stack = Stack::start(&bed.pair.node, bed.exporter().address, pace, Release::Installed);
    stack.is_calm();
    let fault = Instant::now();
    let conditions: Vec<_> = HEALTHY.into_iter().chain([OUT_OF_DISK]).collect();
    bed.double.tell(|settings| settings.node = Some(objects::node(&conditions)));
    let labels = [("mode", "node_status"), ("severity", "info"), ("condition", "OutOfDisk")];
    let notice = stack.arrives("HeadroomNodeConditionOrphaned", &labels);
    tell("I8, condition", pace, fault, &notice);
    notice.says("description", &["the condition OutOfDisk of this node for 200d"]);
    bed.double.tell(|settings| settings.node = Some(objects::node(&HEALTHY)));
    stack.all_resolve();
    stack.only(&["HeadroomNodeConditionOrphaned"]);
}

pub fn i8_the_apiserver_is_out_of_seats() {
    let pace = Pace::of_this_run();
    let Some(bed) = bed(pace, &[]) else { return };
    let stack = Stack::start(&bed.pair.node, bed.exporter().address, pace, Release::Three);
    stack.is_calm();
    let fault = Instant::now();
    let refusal = Refusal { status: 429, retry_after: Some(1), objects_alone: false };
    bed.double.tell(|settings| settings.refusal = Some(refusal));
    let names = ["HeadroomApiserverThrottles", "HeadroomNodeObjectThrottled"];
    for name in names {
        let notice = stack.arrives(name, &[("severity", "warning")]);
        tell("I8, 429", pace, fault, &notice);
        notice.says("description", &["In the last 10 minutes the apiserver answered", "with 429"]);
    }
    bed.double.tell(|settings| settings.refusal = None);
    stack.all_resolve();
    // The kubelet is refused as well, until its lease is late.
    stack.only_or(&names, &["HeadroomNodeLeaseOld"]);
}

/// The collector of the node's status fails for twice as long as one that fails for its own reason may.
pub fn i8_an_outage_of_the_apiserver_is_one_page() {
    let pace = Pace::of_this_run();
    let Some(bed) = bed(pace, &[]) else { return };
    let stack = Stack::start(&bed.pair.node, bed.exporter().address, pace, Release::Installed);
    stack.is_calm();
    let fault = Instant::now();
    let refusal = Refusal { status: 503, retry_after: None, objects_alone: false };
    bed.double.tell(|settings| settings.refusal = Some(refusal));
    let page = stack.arrives("HeadroomApiserverUnreachable", &[("severity", "critical")]);
    tell("I8, 503", pace, fault, &page);
    std::thread::sleep(pace.short(Duration::from_secs(11 * 60)));
    let window = pace.text(Duration::from_secs(10 * 60));
    let failed = "headroom_collector_outcome{collector=\"node_status\",outcome=\"failed\"}";
    let failed = stack.query(&format!("avg_over_time({failed}[{window}])"));
    assert!(failed.iter().any(|(_, part)| *part > 0.9), "node_status failed all the while: {failed:?}");
    bed.double.tell(|settings| settings.refusal = None);
    stack.all_resolve();
    // The kubelet is refused as well. That is what README.md lets Alertmanager hold back; this one does not.
    stack.only_or(&["HeadroomApiserverUnreachable"], &["HeadroomNodeLeaseOld", "HeadroomNodeLeaseExpiring"]);
}

/// The kubelet's credentials expired, and nothing else is wrong.
pub fn i8_a_lease_that_is_not_renewed() {
    let pace = Pace::of_this_run();
    let Some(bed) = bed(pace, &[]) else { return };
    let stack = Stack::start(&bed.pair.node, bed.exporter().address, pace, Release::Three);
    stack.is_calm();
    let fault = Instant::now();
    bed.double.tell(|settings| settings.tokens = vec![TOKEN.to_owned()]);
    if !pace.is_real() {
        // Nineteen of its forty seconds are skipped.
        bed.double.lease(Some(objects::lease(19.0)));
    }
    let old = stack.arrives("HeadroomNodeLeaseOld", &[("severity", "warning")]);
    tell("I8, lease", pace, fault, &old);
    old.says("description", &["The lease expires after 40s"]);
    let expiring = stack.arrives("HeadroomNodeLeaseExpiring", &[("severity", "critical")]);
    tell("I8, lease", pace, fault, &expiring);
    expiring.says("description", &["The node becomes NotReady 50s after"]);
    bed.double.tell(|settings| settings.tokens.push(KUBELET_TOKEN.to_owned()));
    stack.all_resolve();
    stack.only(&["HeadroomNodeLeaseOld", "HeadroomNodeLeaseExpiring"]);
}
