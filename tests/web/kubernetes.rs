//! `--web.kubernetes-auth` of the real binary before an apiserver of our own: who is let in, what the apiserver is
//! asked, how often, and what becomes of it all when it is away.
#![allow(clippy::disallowed_methods, reason = "a test makes its own files")]

use std::process::Command;
use std::sync::Arc;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::apiserver::{Act, Seen, Server};
use crate::common::{Exporter, eventually, has};
use crate::site::{self, Site, bcrypt};

const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const ACCESSES: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
const PROMETHEUS: &str = "token-of-prometheus";
const SOMEBODY: &str = "token-of-somebody";
const OURS: &str = "token-of-the-exporter";

/// Knows two tokens, and lets one of them read.
fn kubernetes(seen: &Seen) -> (u16, String) {
    if seen.path.as_str() != REVIEWS && seen.path.as_str() != ACCESSES {
        return (200, "ok".to_owned());
    }
    if seen.authorization.as_deref() != Some(&format!("Bearer {OURS}")) {
        return (401, String::new());
    }
    let question: Value = serde_json::from_str(&seen.body).unwrap();
    let spec = &question["spec"];
    let status = match seen.path.as_str() {
        REVIEWS => match spec["token"].as_str().unwrap() {
            PROMETHEUS => {
                json!({"authenticated": true, "user": {"username": "system:serviceaccount:monitoring:prometheus",
                "uid": "7", "groups": ["system:authenticated"], "extra": {"authentication.kubernetes.io/pod-name": ["p-0"]}}})
            }
            SOMEBODY => json!({"authenticated": true, "user": {"username": "somebody", "groups": []}}),
            _ => json!({"error": "invalid bearer token"}),
        },
        _ => json!({"allowed": spec["user"] == "system:serviceaccount:monitoring:prometheus"}),
    };
    (201, json!({"kind": question["kind"], "status": status}).to_string())
}

struct Stage {
    site: Site,
    apiserver: Server,
    exporter: Exporter,
}

impl Stage {
    fn new(config: &str) -> Self {
        let site = Site::new();
        let identity = site.authority.issue(&["127.0.0.1"]);
        let apiserver = Server::start(identity.config(None), Act::By(Arc::new(kubernetes)));
        site.write("token", OURS);
        site.config(config);
        let arguments = [
            "--web.kubernetes-auth".to_owned(),
            format!("--apiserver.url={}", apiserver.url()),
            format!("--apiserver.token-file={}", site.path("token").display()),
            format!("--apiserver.ca-file={}", site.path("ca.pem").display()),
        ];
        let exporter = site.start(&arguments.each_ref().map(String::as_str));
        Stage { site, apiserver, exporter }
    }

    fn status(&self, token: &str) -> (u16, String) {
        let response = self.exporter.get("/metrics?collect[]=kmem", &[&format!("Authorization: Bearer {token}")]);
        (response.status, response.text())
    }

    fn asked(&self, path: &str) -> Vec<Seen> {
        self.apiserver.requests().into_iter().filter(|seen| seen.path == path).collect()
    }
}

#[test]
fn the_apiserver_says_who_may_scrape() {
    let stage = Stage::new("");
    let none = stage.exporter.get("/metrics", &[]);
    assert_eq!(none.status, 401);
    assert!(none.header("www-authenticate").is_some_and(|value| value.starts_with("Bearer ")), "{}", none.head);
    assert_eq!(stage.exporter.get("/", &[]).status, 401);
    assert_eq!(stage.exporter.get("/healthz", &[]).status, 200, "a probe of the kubelet carries no token");
    assert!(stage.asked(REVIEWS).is_empty(), "nobody is asked about nothing");
    for _ in 0..20 {
        let (status, page) = stage.status(PROMETHEUS);
        assert!(status == 200 && page.contains("headroom_build_info"), "{page}");
    }
    let (status, words) = stage.status(SOMEBODY);
    assert!(status == 403 && words.contains("\"somebody\" is not allowed to read this path"), "{words}");
    assert_eq!(stage.status("invented").0, 401);
    assert_eq!(stage.status("invented").0, 401);
    assert_eq!(stage.status("").0, 401);
    assert_eq!((stage.asked(REVIEWS).len(), stage.asked(ACCESSES).len()), (3, 2), "each once");
    let access: Value = serde_json::from_str(&stage.asked(ACCESSES)[0].body).unwrap();
    let expected = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {"user": "system:serviceaccount:monitoring:prometheus", "uid": "7", "groups": ["system:authenticated"],
            "extra": {"authentication.kubernetes.io/pod-name": ["p-0"]},
            "nonResourceAttributes": {"path": "/metrics", "verb": "get"}},
    });
    assert_eq!(access, expected);
    assert_eq!(
        stage.status(PROMETHEUS).1.matches("headroom_web_requests_refused_total{reason=\"forbidden\"} 1\n").count(),
        1
    );
    let (_, log) = stage.exporter.stop(Signal::TERM);
    assert!(log.contains("--web.kubernetes-auth without TLS"), "{log}");
    assert!(!log.contains("token-of") && !log.contains("invented"), "{log}");
}

#[test]
fn an_apiserver_that_is_away_is_503_for_whom_it_never_let_in() {
    let stage = Stage::new("");
    assert_eq!(stage.status(PROMETHEUS).0, 200);
    stage.apiserver.act(Act::status(500, "etcd is away"));
    assert_eq!(stage.status(PROMETHEUS).0, 200);
    let (status, words) = stage.status("new-token");
    assert!(status == 503 && words.contains("did not say"), "{words}");
    // And one whose answers are nonsense, or that refuses us.
    for act in [Act::status(200, "{\"status\": 7}"), Act::status(403, "{}"), Act::status(200, &"x".repeat(1 << 20))] {
        stage.apiserver.act(act);
        assert_eq!(stage.status(&format!("new-token-{}", stage.apiserver.requests().len())).0, 503);
    }
    stage.apiserver.act(Act::By(Arc::new(kubernetes)));
    eventually("it heals", || stage.status(SOMEBODY).0 == 403);
    let (_, log) = stage.exporter.stop(Signal::TERM);
    let complaints = log.lines().filter(|line| line.contains("does not review tokens")).count();
    assert_eq!(complaints, 1, "{log}");
    assert!(log.contains("reviews tokens again") && !log.contains("token-of") && !log.contains("new-token"), "{log}");
}

#[test]
fn passwords_beside_tokens_over_tls_and_a_real_prometheus() {
    if !has("prometheus") || !has("curl") {
        skip!("prometheus or curl (Debian packages) is not installed");
    }
    let stage = Stage::new(&format!(
        "tls_server_config: {{cert_file: server.pem, key_file: server.pem}}\nbasic_auth_users: {{alice: {}}}\n",
        bcrypt("secret", 6)
    ));
    let url = format!("https://{}/metrics", stage.exporter.address);
    let status = |arguments: &[&str]| {
        let mut command = Command::new("curl");
        command.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--cacert"]).arg(stage.site.path("ca.pem"));
        String::from_utf8(command.args(arguments).arg(&url).output().unwrap().stdout).unwrap()
    };
    assert_eq!(status(&["-u", "alice:secret"]), "200");
    assert_eq!(status(&["-u", "alice:wrong"]), "401");
    assert_eq!(status(&["-H", &format!("Authorization: Bearer {PROMETHEUS}")]), "200");
    assert_eq!(status(&[]), "401");
    stage.site.write("prometheus-token", PROMETHEUS);
    let file = |name: &str| stage.site.path(name).display().to_string();
    let scheme = format!(
        "scheme: https, tls_config: {{ca_file: {}}}, authorization: {{credentials_file: {}}}",
        file("ca.pem"),
        file("prometheus-token")
    );
    assert!(site::prometheus_says_up(&stage.site, &stage.exporter, &scheme));
    let (_, log) = stage.exporter.stop(Signal::TERM);
    assert!(!log.contains("without TLS"), "{log}");
}

#[test]
fn without_an_apiserver_it_does_not_start() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_headroom-exporter"));
    command.args(["--web.listen-address=127.0.0.1:0", "--web.kubernetes-auth", "--apiserver.url=off"]);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("--web.kubernetes-auth needs an apiserver to ask"), "{text}");
}
