//! Conditions, leases and refusals of a recorded node, and of the same node after an upgrade that left `OutOfDisk`
//! behind.
#![allow(clippy::disallowed_methods, reason = "tests read their fixtures")]

use super::assess::*;
use super::probe::Object;
use super::*;
use crate::apiserver::{Exchange, Outcome};
use crate::error::Reason;
use serde_json::{Value, json};

fn recorded(name: &str) -> Value {
    let path = format!("{}/tests/fixtures/node_status/k8s-1.36-cgroupv1/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn ago(seconds: u64) -> String {
    let then = SystemTime::now() - Duration::from_secs(seconds);
    jiff::Timestamp::try_from(then).unwrap().to_string()
}

/// The recorded node with every heartbeat so many seconds old.
fn node(heartbeats: u64) -> Value {
    let mut node = recorded("node");
    for condition in node["status"]["conditions"].as_array_mut().unwrap() {
        condition["lastHeartbeatTime"] = ago(heartbeats).into();
    }
    node
}

fn with(mut node: Value, name: &str, status: &str, heartbeat: u64) -> Value {
    let condition = json!({"type": name, "status": status, "lastHeartbeatTime": ago(heartbeat)});
    node["status"]["conditions"].as_array_mut().unwrap().push(condition);
    node
}

fn lease(renewed: u64) -> Value {
    let mut lease = recorded("lease");
    lease["spec"]["renewTime"] = ago(renewed).into();
    lease
}

fn answer(outcome: Outcome, status: u16, body: &Value) -> Exchange {
    let error = (outcome != Outcome::Ok).then(|| Error::new(Reason::Io, format!("HTTP status {status}")));
    let body = if outcome == Outcome::Ok { body.to_string().into() } else { Default::default() };
    Exchange { outcome, failed_in: None, timings: Vec::new(), status: Some(status), retry_after: None, body, error }
}

/// What a scrape shows after these answers.
fn after(answers: Vec<(Object, Result<Exchange>)>) -> Samples {
    let shared = Shared::new(Default::default(), Default::default(), Settings::default());
    shared.begin();
    answers.into_iter().for_each(|(object, answer)| shared.note(object, answer));
    let mode = NodeStatus(Arc::new(shared));
    let host = crate::host::Host::new(Default::default());
    let deadline = crate::host::Deadline::after(Duration::from_secs(5));
    let mut samples = mode.collect(Context::new(&host, deadline)).unwrap();
    samples.refuse_undeclared(MODE.metrics);
    samples.refuse_duplicates();
    samples
}

fn ok(node: &Value, lease: &Value) -> Samples {
    let samples = after(vec![
        (Object::Node, Ok(answer(Outcome::Ok, 200, node))),
        (Object::Lease, Ok(answer(Outcome::Ok, 200, lease))),
    ]);
    assert!(samples.errors().is_empty(), "{:?}", samples.errors());
    samples
}

fn orphaned(samples: &Samples, name: &str) -> Option<f64> {
    samples.value(&ORPHANED, &[name])
}

#[test]
fn a_healthy_node() {
    let samples = ok(&node(400), &lease(7));
    assert_eq!(samples.value(&CONDITION, &["Ready", "true"]), Some(1.0));
    assert_eq!(samples.value(&CONDITION, &["Ready", "false"]), Some(0.0));
    assert_eq!(samples.value(&CONDITION, &["MemoryPressure", "false"]), Some(1.0));
    let age = samples.value(&HEARTBEAT_AGE, &["DiskPressure"]).unwrap();
    assert!((400.0..405.0).contains(&age), "{age}");
    let age = samples.value(&LEASE_AGE, &[]).unwrap();
    assert!((7.0..10.0).contains(&age), "{age}");
    assert_eq!(samples.value(&LEASE_DURATION, &[]), Some(40.0));
    assert_eq!(samples.value(&PRESENT, &["lease"]), Some(1.0));
    assert_eq!(samples.value(&REQUESTS, &["node", "ok"]), Some(1.0));
    assert_eq!(samples.value(&REQUESTS, &["node", "throttled"]), Some(0.0));
    for name in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        assert_eq!(orphaned(&samples, name), Some(0.0), "{name}");
    }
}

#[test]
fn a_condition_that_an_upgrade_left_behind() {
    let months = 90 * 86_400;
    let mut node = with(node(200), "OutOfDisk", "Unknown", months);
    node = with(node, "KernelDeadlock", "False", 299);
    node = with(node, "NetworkUnavailable", "False", months);
    let samples = ok(&node, &lease(3));
    assert_eq!(orphaned(&samples, "OutOfDisk"), Some(1.0));
    assert_eq!(samples.value(&CONDITION, &["OutOfDisk", "unknown"]), Some(1.0));
    assert_eq!(orphaned(&samples, "KernelDeadlock"), Some(0.0), "its owner reports every five minutes");
    assert_eq!(orphaned(&samples, "NetworkUnavailable"), Some(0.0), "is set once");
}

#[test]
fn conditions_that_are_events_or_say_no_time_are_no_orphans() {
    let months = 90 * 86_400;
    let mut node = with(node(200), "Drained", "True", months);
    node = with(node, "DrainScheduled", "True", months);
    node["status"]["conditions"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "SomeonesOwn", "status": "True", "lastHeartbeatTime": null}));
    let samples = ok(&node, &lease(3));
    assert_eq!(orphaned(&samples, "Drained"), Some(0.0));
    assert_eq!(orphaned(&samples, "DrainScheduled"), Some(0.0));
    assert_eq!(orphaned(&samples, "SomeonesOwn"), None, "it never says when: nothing can be said");
    assert_eq!(samples.value(&CONDITION, &["SomeonesOwn", "true"]), Some(1.0));
}

/// The apiserver merges by type; who writes the whole list may write one twice.
#[test]
fn of_a_condition_that_is_there_twice_the_newer_counts() {
    for ages in [[9_000, 100], [100, 9_000]] {
        let twice = with(with(node(200), "Twice", "True", ages[0]), "Twice", "False", ages[1]);
        let samples = ok(&twice, &lease(3));
        let newer = if ages[0] < ages[1] { "true" } else { "false" };
        assert_eq!(samples.value(&CONDITION, &["Twice", newer]), Some(1.0), "{ages:?}");
        assert_eq!(orphaned(&samples, "Twice"), Some(0.0), "{ages:?}");
    }
}

#[test]
fn of_a_kubelet_that_is_gone_nothing_is_called_orphaned() {
    // The node controller has set its conditions to Unknown; node-problem-detector lives.
    let node = with(with(node(7_200), "KernelDeadlock", "False", 100), "OutOfDisk", "Unknown", 90 * 86_400);
    let samples = ok(&node, &lease(7_000));
    for name in ["OutOfDisk", "KernelDeadlock", "Ready"] {
        assert_eq!(orphaned(&samples, name), None, "{name}");
    }
    assert!(samples.value(&LEASE_AGE, &[]).unwrap() >= 7_000.0);
    // A kubelet that renews its lease and posts no status is alive (node_lifecycle_controller.go:911), and so its own
    // are no orphans.
    let samples = ok(&node, &lease(2));
    assert_eq!((orphaned(&samples, "Ready"), orphaned(&samples, "OutOfDisk")), (Some(0.0), Some(1.0)));
}

#[test]
fn without_the_right_to_leases_the_kubelets_own_word_counts() {
    let node = with(node(200), "OutOfDisk", "Unknown", 90 * 86_400);
    let denied = answer(Outcome::Unauthorized, 403, &Value::Null);
    let samples = after(vec![(Object::Node, Ok(answer(Outcome::Ok, 200, &node))), (Object::Lease, Ok(denied))]);
    assert_eq!(orphaned(&samples, "OutOfDisk"), Some(1.0));
    assert_eq!(samples.value(&LEASE_AGE, &[]), None);
    assert_eq!(samples.errors().len(), 1);
    assert_eq!(samples.errors()[0].reason(), Reason::Denied);
    assert!(samples.errors()[0].to_string().contains("get on leases"), "{:?}", samples.errors());
}

#[test]
fn a_lease_that_is_not_there_is_no_failure_of_ours() {
    let samples = after(vec![(Object::Lease, Ok(answer(Outcome::Unexpected, 404, &Value::Null)))]);
    assert_eq!(samples.value(&PRESENT, &["lease"]), Some(0.0));
    assert_eq!(samples.value(&LEASE_AGE, &[]), None);
    assert_eq!(samples.value(&PRESENT, &["node"]), None, "nobody has asked yet");
    assert!(samples.errors().is_empty());
}

#[test]
fn a_refusal_is_counted_and_what_was_read_stays_for_a_while() {
    let mut throttled = answer(Outcome::Throttled, 429, &Value::Null);
    throttled.retry_after = Some(Duration::from_secs(7));
    let samples = after(vec![(Object::Lease, Ok(answer(Outcome::Ok, 200, &lease(1)))), (Object::Lease, Ok(throttled))]);
    assert_eq!(samples.value(&REQUESTS, &["lease", "throttled"]), Some(1.0));
    assert_eq!(samples.value(&RETRY_AFTER, &["lease"]), Some(7.0));
    assert!(samples.value(&LEASE_AGE, &[]).is_some());
    assert_eq!(samples.errors()[0].reason(), Reason::Busy);
    let samples =
        after(vec![(Object::Lease, Err(Error::malformed("token"))), (Object::Node, Err(Error::malformed("token")))]);
    assert_eq!(samples.errors().len(), 1, "the same file is missing to both");
    let samples = after(vec![
        (Object::Lease, Err(Error::malformed("token"))),
        (Object::Lease, Ok(answer(Outcome::Ok, 200, &lease(1)))),
    ]);
    assert!(samples.errors().is_empty(), "healed");
}

#[test]
fn nobody_to_ask() {
    let mode = (MODE.build)(&Default::default(), &crate::services::Services::default());
    let host = crate::host::Host::new(Default::default());
    let deadline = crate::host::Deadline::after(Duration::from_secs(5));
    let error = mode.collect(Context::new(&host, deadline)).unwrap_err();
    assert_eq!(error.reason(), Reason::Absent);
}

/// What a scrape shows after these answers to `/version`.
fn told(settings: Settings, answers: Vec<Result<Exchange>>) -> Samples {
    let shared = Shared::new(Default::default(), Default::default(), settings);
    shared.begin();
    answers.into_iter().for_each(|answer| shared.note_version(answer));
    let mut samples = Samples::new();
    assess::assess(&shared.snapshot().unwrap(), &shared.settings, SystemTime::now(), &mut samples);
    assert!(samples.errors().is_empty(), "{:?}", samples.errors());
    samples
}

fn version(text: &str) -> Result<Exchange> {
    Ok(answer(Outcome::Ok, 200, &json!({"major": "1", "minor": "31", "gitVersion": text, "platform": "linux/amd64"})))
}

#[test]
fn the_grace_period_is_that_of_the_apiservers_version() {
    for (text, period) in [("v1.31.9", 40.0), ("v1.32.0-eks-1a2b", 50.0), ("v1.36.1", 50.0), ("v1.24.17+rke2r1", 40.0)]
    {
        let samples = told(Settings::default(), vec![version(text)]);
        assert_eq!(samples.value(&MONITOR_GRACE_PERIOD, &[]), Some(period), "{text}");
        assert_eq!(samples.value(&APISERVER, &[text]), Some(1.0));
        assert!(samples.notes().is_empty());
    }
    // Not asked yet: unknown is neither, and nothing is lost that somebody must hear of.
    let samples = told(Settings::default(), Vec::new());
    assert_eq!(samples.value(&MONITOR_GRACE_PERIOD, &[]), None);
    assert!(samples.notes().is_empty());
}

#[test]
fn a_version_that_cannot_be_had_is_no_failure_and_a_note() {
    let denied = || Ok(answer(Outcome::Unauthorized, 403, &Value::Null));
    let missing = || Ok(answer(Outcome::Unexpected, 404, &Value::Null));
    for odd in [denied(), missing(), version("v0.0.0-master+$Format:%H$"), Err(Error::malformed("token"))] {
        let samples = told(Settings::default(), vec![odd]);
        assert_eq!(samples.value(&MONITOR_GRACE_PERIOD, &[]), None);
        assert!(samples.notes()[0].contains("40 s after its last renewal"), "{:?}", samples.notes());
    }
    let samples = told(Settings::default(), vec![denied()]);
    assert!(samples.notes()[0].contains("403"), "{:?}", samples.notes());
    // What it said before is still told.
    let samples = told(Settings::default(), vec![version("v1.36.1"), denied()]);
    assert_eq!((samples.value(&MONITOR_GRACE_PERIOD, &[]), samples.notes().len()), (Some(50.0), 0));
    // The flag is right whatever the version, and then less is lost.
    let mut settings = Settings { monitor_grace_period: Some(Duration::from_secs(120)), ..Settings::default() };
    let samples = told(settings.clone(), vec![version("v1.31.9")]);
    assert_eq!(samples.value(&MONITOR_GRACE_PERIOD, &[]), Some(120.0));
    assert_eq!(samples.value(&APISERVER, &["v1.31.9"]), Some(1.0));
    settings.monitor_grace_period = Some(Duration::from_secs(40));
    let samples = told(settings, vec![denied()]);
    assert_eq!(samples.value(&MONITOR_GRACE_PERIOD, &[]), Some(40.0));
    assert!(samples.notes()[0].ends_with("headroom_apiserver_info is missing"), "{:?}", samples.notes());
}

#[test]
fn the_version_is_asked_for_rarely_and_after_the_apiserver_was_away() {
    let shared = Shared::new(Default::default(), Default::default(), Settings::default());
    let due_after = |asked: Result<Exchange>| {
        shared.note_version(asked);
        shared.version_is_due()
    };
    assert!(shared.version_is_due(), "at first");
    assert!(!due_after(version("v1.31.9")), "within the hour");
    assert!(!due_after(Ok(answer(Outcome::Unauthorized, 403, &Value::Null))));
    assert!(!due_after(Ok(answer(Outcome::Unexpected, 404, &Value::Null))));
    assert!(due_after(Ok(answer(Outcome::Timeout, 0, &Value::Null))), "with the next read");
    assert!(!due_after(version("v1.31.9")));
    shared.note(Object::Lease, Ok(answer(Outcome::Ok, 200, &lease(1))));
    assert!(!shared.version_is_due());
    shared.note(Object::Lease, Ok(answer(Outcome::Unauthorized, 403, &Value::Null)));
    assert!(!shared.version_is_due(), "it refuses us, and is the same");
    shared.note(Object::Lease, Ok(answer(Outcome::Refused, 0, &Value::Null)));
    assert!(shared.version_is_due(), "it may come back as another");
}
