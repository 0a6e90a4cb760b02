//! `alerts/alertmanager.yaml` in real Alertmanagers, an old one and a new one: who gets what, and what hides what.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::process::{Child, Stdio};

use crate::common::prometheus::Release;
use crate::common::{board, eventually_within};

struct Alertmanager {
    release: Release,
    process: Child,
    url: String,
    _storage: tempfile::TempDir,
}

impl Drop for Alertmanager {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn file() -> String {
    board::project("alerts/alertmanager.yaml").display().to_string()
}

impl Alertmanager {
    fn start(release: Release) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let storage = tempfile::tempdir().unwrap();
        let process = release
            .command("prometheus-alertmanager")
            .arg(format!("--config.file={}", file()))
            .arg(format!("--storage.path={}", storage.path().display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--cluster.listen-address=")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let url = format!("--alertmanager.url=http://{address}");
        let alertmanager = Self { release, process, url, _storage: storage };
        eventually_within(30, "it is ready", || alertmanager.amtool(&["alert", "query", &alertmanager.url]).0);
        alertmanager
    }

    fn amtool(&self, arguments: &[&str]) -> (bool, String) {
        self.release.run("amtool", arguments, &[])
    }

    fn fire(&self, labels: &str) {
        let mut arguments = vec!["alert", "add", &self.url];
        arguments.extend(labels.split(' '));
        let (good, text) = self.amtool(&arguments);
        assert!(good, "{labels}: {text}");
    }

    /// The label `case` of those that are in this state.
    fn cases(&self, state: &str) -> BTreeSet<String> {
        let (good, text) = self.amtool(&["alert", "query", &self.url, state, "-o", "json"]);
        assert!(good, "{text}");
        let alerts: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        alerts.iter().map(|alert| alert["labels"]["case"].as_str().unwrap().to_owned()).collect()
    }
}

#[test]
fn the_alertmanager_to_copy_routes_by_severity_and_hides_only_the_same_thing() {
    Release::with(&["prometheus-alertmanager", "amtool"]).into_iter().for_each(routes_and_hides);
}

fn routes_and_hides(release: Release) {
    let amtool = |arguments: &[&str]| release.run("amtool", arguments, &[]);
    let (good, text) = amtool(&["check-config", &file()]);
    assert!(good, "{release:?}: {text}");
    for (labels, receiver) in [
        ("severity=critical mode=eviction", "page"),
        ("severity=critical mode=node_status", "page"),
        ("severity=warning mode=eviction", "today"),
        ("severity=info mode=node_status", "when-there-is-time"),
    ] {
        let mut arguments = vec!["config", "routes", "test"];
        let config = format!("--config.file={}", file());
        arguments.push(&config);
        arguments.extend(labels.split(' '));
        assert_eq!(amtool(&arguments).1.lines().next(), Some(receiver), "{release:?}: {labels}");
    }

    let alertmanager = Alertmanager::start(release);
    let fd = "alertname=HeadroomProcessNearFdLimit cluster=c instance=a mode=open_files";
    let predicted = "alertname=HeadroomEvictionPredicted cluster=c instance=a mode=eviction type=hard";
    let oom = "alertname=HeadroomPodOomKilledRepeatedly cluster=c instance=a mode=memory_volume namespace=shop";
    for labels in [
        format!("{fd} severity=critical pid=1 comm=containerd case=critical-pid-1"),
        format!("{fd} severity=warning pid=1 comm=containerd case=same-pid"),
        format!("{fd} severity=warning pid=2 comm=nginx case=other-pid"),
        format!("{predicted} severity=critical signal=nodefs.available case=critical-signal"),
        format!("{predicted} severity=warning signal=nodefs.available case=same-signal"),
        format!("{predicted} severity=warning signal=memory.available case=other-signal"),
        format!("{oom} severity=critical pod=x pod_uid=u1 case=critical-pod"),
        format!("{oom} severity=warning pod=x pod_uid=u2 case=other-pod"),
        "alertname=HeadroomApiserverUnreachable cluster=c instance=a mode=apiserver_connection severity=critical \
         case=outage"
            .to_owned(),
        "alertname=HeadroomNodeNotReady cluster=c instance=a mode=node_status severity=critical case=follows"
            .to_owned(),
        "alertname=HeadroomNodeNotReady cluster=c instance=b mode=node_status severity=critical case=other-node"
            .to_owned(),
        "alertname=HeadroomNodeNotReady cluster=d instance=a mode=node_status severity=critical case=other-cluster"
            .to_owned(),
    ] {
        alertmanager.fire(&labels);
    }
    let hidden = ["same-pid", "same-signal", "follows"].map(String::from).into();
    eventually_within(30, "what one alert hides is hidden", || alertmanager.cases("--inhibited") == hidden);
    let seen = [
        "critical-pid-1",
        "other-pid",
        "critical-signal",
        "other-signal",
        "critical-pod",
        "other-pod",
        "outage",
        "other-node",
        "other-cluster",
    ];
    assert_eq!(alertmanager.cases("--active"), seen.map(String::from).into(), "{release:?}");
}
