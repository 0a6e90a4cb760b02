//! `/configz` from end to end: a process called kubelet, a TLS server with its answers, and the real binary.
//! `fast/configz.rs` has the rest.
#![allow(clippy::disallowed_methods, reason = "a test makes its machine of files")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::common;
use crate::common::tls_server::{Act, Authority, Server};

const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.secret-of-the-first-hour.sig";

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What a node 1.36 answered.
fn recorded() -> String {
    text(&fixture("node/k8s-1.36-cgroupv2/kubelet-http/configz.json"))
}

/// A process called kubelet that takes any flags and does nothing. Gone when dropped.
struct Stand {
    child: Child,
}

impl Stand {
    fn start(program: &Path, flags: &[String]) -> Self {
        let child = Command::new(program).args(flags).stdin(Stdio::piped()).spawn().unwrap();
        let comm = format!("/proc/{}/comm", child.id());
        let stand = Stand { child };
        common::eventually("it has its name", || std::fs::read_to_string(&comm).is_ok_and(|comm| comm == "kubelet\n"));
        stand
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_exporter_from_end_to_end() {
    alone!();
    use std::os::unix::fs::PermissionsExt as _;
    let running = common::shell("cat /proc/[0-9]*/comm 2>/dev/null | grep -cx kubelet || true");
    if running.trim() != "0" {
        skip!("a kubelet runs on this machine");
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let ca = Authority::new("cluster");
    let identity = ca.issue(&["127.0.0.1"]);
    let server = Server::start(&identity, Act::configz(&recorded()));
    std::fs::write(at("ca.crt"), &ca.pem).unwrap();
    std::fs::write(at("token"), TOKEN).unwrap();
    let config = text(&fixture("node/k8s-1.36-cgroupv2/config/kubelet-config.yaml"));
    let dropin = text(&fixture("node/k8s-1.36-cgroupv2/config/kubelet.conf.d/10-eviction.conf"));
    std::fs::write(at("config.yaml"), config).unwrap();
    std::fs::create_dir(at("conf.d")).unwrap();
    std::fs::write(at("conf.d/10-eviction.conf"), &dropin).unwrap();
    std::fs::write(at("kubelet"), "#!/bin/sh\nread line\n").unwrap();
    std::fs::set_permissions(at("kubelet"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let flags = [
        format!("--config={}", at("config.yaml")),
        format!("--config-dir={}", at("conf.d")),
        format!("--root-dir={}", at("")),
    ];
    let kubelet = Stand::start(Path::new(&at("kubelet")), &flags);

    let exporter = common::Exporter::start(&[
        &format!("--kubelet.url={}", server.url()),
        &format!("--kubelet.ca-file={}", at("ca.crt")),
        &format!("--kubelet.token-file={}", at("token")),
        // Every scrape asks.
        "--kubelet.configz-interval=1ms",
        "--web.scrape-timeout=20s",
    ]);
    let info = format!("headroom_eviction_config_info{{source=\"configz\",path=\"{}/configz\"}}", server.url());
    let threshold = "headroom_eviction_threshold_pids{signal=\"pid.available\",type=\"hard\"}";
    let drift = |page: &common::Page| {
        let drifting: Vec<String> = page
            .family("headroom_eviction_config_drift")
            .filter(|(_, value)| *value == 1.0)
            .map(|(series, _)| series.to_owned())
            .collect();
        drifting
    };
    let response = exporter.get("/metrics", &[]).text();
    let first = response.lines().find(|line| line.starts_with("headroom_eviction_config_info{")).unwrap();
    assert_eq!(first, format!("{info} 1"), "the first of the sources");
    let page = exporter.scrape();
    assert_eq!(page.outcome("eviction"), "ok");
    let pids = page.value(threshold);
    assert!(drift(&page).is_empty() && page.family("headroom_eviction_config_drift").count() == 8, "{page:#?}");

    // Edited, not restarted.
    std::fs::write(at("conf.d/10-eviction.conf"), dropin.replace("9%", "19%")).unwrap();
    let page = exporter.scrape();
    assert_eq!(page.outcome("eviction"), "ok");
    assert_eq!(
        drift(&page),
        ["headroom_eviction_config_drift{signal=\"nodefs.available\",type=\"hard\",running=\"9%\",configured=\"19%\"}"]
    );
    let nodefs = "headroom_eviction_threshold_bytes{signal=\"nodefs.available\",type=\"hard\"}";
    let capacity = page.value("headroom_eviction_capacity_bytes{signal=\"nodefs.available\"}");
    assert!((page.value(nodefs) / capacity - 0.09).abs() < 0.001, "what runs counts");

    // The kubelet's server dies, its process does not: what it said is true as long as it lives, and no failure.
    let address = server.address;
    drop(server);
    let page = exporter.scrape();
    assert_eq!((page.outcome("eviction"), page.value(&info), page.value(threshold)), ("ok", 1.0, pids));
    let server = Server::start_at(address, &identity, Act::configz(&recorded()));
    let page = exporter.scrape();
    assert_eq!((page.outcome("eviction"), page.value(&info)), ("ok", 1.0));

    // However it answers, nothing is left behind.
    let fds = || std::fs::read_dir(format!("/proc/{}/fd", exporter.pid())).unwrap().count();
    let scrape = |times: usize| (0..times).for_each(|_| drop(exporter.get("/metrics?collect[]=eviction", &[])));
    let acts = [Act::configz(&recorded()), Act::answer("401 Unauthorized", ""), Act::Close, Act::Pour(5 << 20)];
    scrape(20);
    let before = fds();
    for act in acts {
        server.act(act);
        scrape(100);
    }
    common::eventually("no descriptor more", || fds() <= before + 2);
    assert!(server.connections() >= 400);

    // Restarted, and this one does not answer: its files are all that is known.
    drop(kubelet);
    let _kubelet = Stand::start(Path::new(&at("kubelet")), &flags);
    server.act(Act::answer("403 Forbidden", ""));
    let page = exporter.scrape();
    assert_eq!((page.outcome("eviction"), page.get(&info)), ("ok", None), "its files tell");
    assert!((page.value(nodefs) / capacity - 0.19).abs() < 0.001, "{}", page.value(nodefs));
    assert!(drift(&page).is_empty());
    assert!(server.heads().iter().all(|head| head.contains(TOKEN)));
    let (_, log) = exporter.stop(rustix::process::Signal::TERM);
    assert!(log.contains("nodes/configz") && !log.contains("secret-of"), "{log}");
}
