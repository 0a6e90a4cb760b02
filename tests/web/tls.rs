//! `--web.config.file` of the real binary, asked by curl and by a real Prometheus: TLS, client certificates, passwords,
//! headers, and a configuration that changes, or breaks, under load.
#![allow(clippy::disallowed_methods, reason = "a test makes its own files")]

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use rustix::process::Signal;

use crate::common::tls_server::Authority;
use crate::common::{Exporter, eventually, get, has};
use crate::site::{self, Site, bcrypt, curl};

const NAMES: [&str; 2] = ["127.0.0.1", "localhost"];

#[test]
fn curl_over_tls() {
    if !has("curl") {
        skip!("curl is not installed");
    }
    let site = Site::new();
    site.config("tls_server_config: {cert_file: server.pem, key_file: server.pem}\n");
    let exporter = site.start(&[]);
    let ok = curl(&site, &exporter, "/metrics", &["-w", "\n%{http_version} %{http_code}"]);
    assert!(ok.contains("headroom_build_info") && ok.ends_with("2 200"), "{ok}");
    let expiry = "headroom_web_certificate_expiry_timestamp_seconds";
    assert!(
        ok.contains(&format!("{expiry} ")) && ok.contains("headroom_web_config_last_reload_successful 1\n"),
        "{ok}"
    );
    let ok = curl(&site, &exporter, "/healthz", &["--http1.1", "-w", "%{http_version}"]);
    assert_eq!(ok, "ok\n1.1");
    for (arguments, what) in [
        (vec!["--tls-max", "1.1"], "a version of the past"),
        (vec!["--capath", "/nonexistent", "--cacert", "/etc/hostname"], "an authority that did not sign it"),
    ] {
        assert!(curl_fails(&site, &exporter, &arguments), "{what}");
    }
    let plain = Command::new("curl").args(["-sf", &format!("http://{}/metrics", exporter.address)]).output().unwrap();
    assert!(!plain.status.success() && plain.stdout.is_empty(), "plain HTTP gets nothing");

    site.config("tls_server_config: {cert_file: server.pem, key_file: server.pem, min_version: TLS13}\nhttp_server_config: {http2: false}\n");
    eventually("the new configuration is in use", || {
        curl(&site, &exporter, "/healthz", &["-w", "%{http_version}"]) == "ok\n1.1"
    });
    assert!(curl_fails(&site, &exporter, &["--tls-max", "1.2"]), "min_version: TLS13");
}

fn curl_fails(site: &Site, exporter: &Exporter, arguments: &[&str]) -> bool {
    let url = format!("https://{}/healthz", exporter.address);
    let output =
        Command::new("curl").args(["-s", "--cacert"]).arg(site.path("ca.pem")).args(arguments).arg(url).output();
    let output = output.unwrap();
    !output.status.success() && output.stdout.is_empty()
}

#[test]
fn clients_with_a_certificate() {
    if !has("curl") {
        skip!("curl is not installed");
    }
    let site = Site::new();
    let strangers = Authority::new("strangers");
    site.write("clients-ca.pem", &site.authority.pem);
    site.write("prometheus.pem", &site.authority.issue(&["prometheus.monitoring.svc"]).pem());
    site.write("other.pem", &site.authority.issue(&["other.svc"]).pem());
    site.write("stranger.pem", &strangers.issue(&["prometheus.monitoring.svc"]).pem());
    let config = |more: &str| {
        site.config(&format!("tls_server_config: {{cert_file: server.pem, key_file: server.pem, {more}}}\n"));
    };
    let with = |exporter: &Exporter, name: Option<&str>| {
        let file = name.map(|name| site.path(name).display().to_string());
        let arguments = file.as_ref().map_or(Vec::new(), |file| vec!["--cert", file.as_str()]);
        !curl_fails(&site, exporter, &arguments)
    };
    let all = |exporter: &Exporter| {
        [None, Some("prometheus.pem"), Some("other.pem"), Some("stranger.pem")].map(|name| with(exporter, name))
    };
    let verify = "client_ca_file: clients-ca.pem, client_auth_type: RequireAndVerifyClientCert";
    for (more, expected) in [
        (verify.to_owned(), [false, true, true, false]),
        (format!("{verify}, client_allowed_sans: [prometheus.monitoring.svc]"), [false, true, false, false]),
        (verify.replace("RequireAndVerifyClientCert", "VerifyClientCertIfGiven"), [true, true, true, false]),
        ("client_auth_type: RequireAnyClientCert".to_owned(), [false, true, true, true]),
        ("client_auth_type: RequestClientCert".to_owned(), [true, true, true, true]),
    ] {
        config(&more);
        let exporter = site.start(&[]);
        assert_eq!(all(&exporter), expected, "{more}");
    }
}

#[test]
fn passwords_headers_and_a_rate() {
    if !has("curl") {
        skip!("curl is not installed");
    }
    let site = Site::new();
    site.config(&format!(
        "basic_auth_users: {{alice: {}}}\nhttp_server_config: {{headers: {{X-Frame-Options: deny}}}}\nrate_limit: {{interval: 1h, burst: 9}}\n",
        bcrypt("correct horse", 10)
    ));
    let exporter = site.start(&[]);
    let status = |user: &[&str]| {
        let url = format!("http://{}/metrics", exporter.address);
        let output =
            Command::new("curl").args(["-s", "-o", "/dev/null", "-w", "%{http_code}", &url]).args(user).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    let refused = exporter.get("/metrics", &[]);
    assert_eq!((refused.status, refused.header("x-frame-options")), (401, Some("deny")));
    assert!(refused.header("www-authenticate").is_some_and(|value| value.starts_with("Basic ")));
    assert!(!refused.text().contains("headroom_"));
    assert_eq!(status(&["-u", "alice:correct horse"]), "200");
    assert_eq!(status(&["-u", "alice:correct horse"]), "200");
    assert_eq!(status(&["-u", "alice:wrong"]), "401");
    assert_eq!(status(&["-u", "bob:correct horse"]), "401");
    assert_eq!(exporter.get("/", &[]).status, 401);
    assert_eq!(status(&["-u", ":"]), "401");
    assert_eq!(status(&["-H", "Authorization: Basic %%%"]), "401");
    assert_eq!(status(&["-H", "Authorization: Bearer x"]), "401");
    for path in ["/healthz", "/readyz"] {
        assert!([200, 503].contains(&exporter.get(path, &[]).status), "{path}: for the kubelet's probes");
    }
    assert_eq!(status(&["-u", "alice:correct horse"]), "429", "the tenth since the start");
    assert_eq!(exporter.get("/healthz", &[]).status, 200);
    let (_, log) = exporter.stop(Signal::TERM);
    assert!(log.contains("without TLS: passwords are sent in plain text"), "{log}");
    assert!(!log.contains("horse") && !log.contains("$2b"), "{log}");
}

#[test]
fn a_password_is_checked_once() {
    let site = Site::new();
    site.config(&format!("basic_auth_users: {{alice: {}}}\n", bcrypt("secret", 11)));
    let exporter = site.start(&[]);
    let authorization = site::basic("alice", "secret");
    let ask = || {
        let begun = Instant::now();
        // A path that there is not: the time is that of the check alone.
        assert_eq!(exporter.get("/none", &[&authorization]).status, 404);
        begun.elapsed()
    };
    let cpu = || site::cpu_seconds(exporter.pid());
    let first = ask();
    let (before, begun) = (cpu(), Instant::now());
    for _ in 0..100 {
        ask();
    }
    let (hundred, used) = (begun.elapsed(), cpu() - before);
    eprintln!("first {first:?}; then a hundred in {hundred:?}, {used:.2} s of CPU");
    assert!(used < first.as_secs_f64() * 20.0, "a check each time would be a hundred times {first:?}: {used} s");
}

#[test]
fn a_broken_file_is_fatal_at_start_and_says_where() {
    let site = Site::new();
    for (text, what) in [
        ("tls_server_config:\n  cert_file: server.pem\n  key_fil: x\n", "line 3"),
        ("tls_server_config: {cert_file: none.pem, key_file: server.pem}\n", "none.pem"),
        ("tls_server_config: {cert_file: server.pem, key_file: ca.pem}\n", "holds no private key"),
        ("tls_server_config: {cert_file: server.pem, key_file: other.pem}\n", "do not belong together"),
        ("basic_auth_users: {alice: secret}\n", "not a bcrypt hash"),
    ] {
        site.write("other.pem", &site.authority.issue(&NAMES).pem());
        site.config(text);
        let mut command = Command::new(env!("CARGO_BIN_EXE_headroom-exporter"));
        command.arg("--web.listen-address=127.0.0.1:0").arg(site.flag());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        let last = String::from_utf8(output.stderr).unwrap();
        let last = last.lines().last().unwrap();
        assert!(last.contains(what) && last.contains("web.yml") && last.contains("--web.config.file"), "{last}");
    }
}

#[test]
fn everything_is_read_anew_under_load() {
    if !has("curl") {
        skip!("curl is not installed");
    }
    let site = Site::new();
    let config = |password: &str, extra: &str| {
        format!(
            "tls_server_config: {{cert_file: server.pem, key_file: server.pem}}\nbasic_auth_users: {{alice: {}}}\n{extra}",
            bcrypt(password, 5)
        )
    };
    site.config(&config("first", ""));
    let exporter = site.start(&[]);
    let ask = |ca: &str, password: &str| {
        let url = format!("https://{}/metrics?collect[]=kmem", exporter.address);
        let output = Command::new("curl")
            .args(["-sg", "-u", &format!("alice:{password}"), "--cacert"])
            .arg(site.path(ca))
            .args(["-w", "%{http_code}", &url])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let ok = |ca: &str, password: &str| ask(ca, password).ends_with("200");
    assert!(ok("ca.pem", "first") && ask("ca.pem", "second").ends_with("401"));
    let (stop, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let second = Authority::new("second");
    site.write("both.pem", &format!("{}{}", site.authority.pem, second.pem));
    site.write("second-ca.pem", &second.pem);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    // Whichever certificate and password are in force, an answer comes.
                    let status = ask("both.pem", "first");
                    assert!(status.ends_with("200") || status.ends_with("401"), "{status}");
                    asked.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        // An authority that is new too, in place of the old certificate as a mounted Secret does it: by rename.
        site.write("server.pem.new", &second.issue(&NAMES).pem());
        std::fs::rename(site.path("server.pem.new"), site.path("server.pem")).unwrap();
        eventually("the new certificate is served", || ok("second-ca.pem", "first"));
        assert!(ask("ca.pem", "first").ends_with("000"), "and the old one no more");
        site.config(&config("second", ""));
        eventually("the new password counts", || ok("second-ca.pem", "second"));
        assert!(ask("second-ca.pem", "first").ends_with("401"));

        // Three ways to break it: nothing of it goes into force.
        let reload = "headroom_web_config_last_reload_successful";
        for broken in ["tls_server_config: {cert_file: [\n", "", "basic_auth_users: {alice: }\n"] {
            site.config(broken);
            eventually("the page says so", || ask("second-ca.pem", "second").contains(&format!("{reload} 0\n")));
            assert!(ask("second-ca.pem", "first").ends_with("401"), "{broken:?}");
            site.config(&config("second", ""));
            eventually("it heals", || ask("second-ca.pem", "second").contains(&format!("{reload} 1\n")));
        }
        site.write("server.pem", "half a certifi");
        eventually("the page says so", || ask("second-ca.pem", "second").contains(&format!("{reload} 0\n")));
        site.write("server.pem", &second.issue(&NAMES).pem());
        eventually("it heals", || ask("second-ca.pem", "second").contains(&format!("{reload} 1\n")));
        stop.store(true, Ordering::SeqCst);
    });
    assert!(asked.load(Ordering::SeqCst) > 5);
    let (_, log) = exporter.stop(Signal::TERM);
    let broken = log.lines().filter(|line| line.contains("web configuration is invalid")).count();
    assert_eq!(broken, 4, "once for each: {log}");
    assert!(log.contains("it would switch TLS on or off"), "{log}");
}

#[test]
fn a_file_that_hangs_costs_one_thread_and_no_scrape() {
    let site = Site::new();
    let config = format!("basic_auth_users: {{alice: {}}}\n", bcrypt("secret", 4));
    site.config(&config);
    let exporter = site.start(&[]);
    let authorization = site::basic("alice", "secret");
    let page = || {
        let begun = Instant::now();
        let response = exporter.get("/metrics?collect[]=kmem", &[&authorization]);
        assert!(response.status == 200 && begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());
        response.text()
    };
    let reload = |value: u8| format!("headroom_web_config_last_reload_successful {value}\n");
    assert!(page().contains(&reload(1)));
    // To open a pipe that nobody writes to takes for ever, as a file of a dead server does.
    let pipe = site.path("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    std::fs::hard_link(&pipe, site.path("web.yml.new")).unwrap();
    std::fs::rename(site.path("web.yml.new"), site.path("web.yml")).unwrap();
    eventually("the page says so", || page().contains(&reload(0)));
    let threads = || std::fs::read_dir(format!("/proc/{}/task", exporter.pid())).unwrap().count();
    let before = threads();
    for _ in 0..15 {
        page();
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert!(threads() <= before + 3, "{before} -> {}", threads());
    assert_eq!(exporter.get("/metrics", &[]).status, 401, "and the door stays shut");
    site.config(&config);
    assert!(page().contains(&reload(0)), "it still hangs");
    drop(std::fs::File::options().write(true).open(&pipe).unwrap());
    eventually("it heals", || page().contains(&reload(1)));
}

#[test]
fn a_real_prometheus_scrapes_over_tls_with_a_password() {
    if !has("prometheus") || !has("curl") {
        skip!("prometheus or curl (Debian packages) is not installed");
    }
    let site = Site::new();
    site.write("prometheus.pem", &site.authority.issue(&["prometheus"]).pem());
    site.config(&format!(
        "tls_server_config: {{cert_file: server.pem, key_file: server.pem, client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.pem}}\n\
         basic_auth_users: {{prometheus: {}}}\n",
        bcrypt("secret", 8)
    ));
    let exporter = site.start(&[]);
    let file = |name: &str| site.path(name).display().to_string();
    site.write("password", "secret");
    let scheme = format!(
        "scheme: https, tls_config: {{ca_file: {}, cert_file: {}, key_file: {}}}, basic_auth: {{username: prometheus, password_file: {}}}",
        file("ca.pem"),
        file("prometheus.pem"),
        file("prometheus.pem"),
        file("password")
    );
    assert!(site::prometheus_says_up(&site, &exporter, &scheme));
    // It has its whole chain right: without a certificate nobody gets even a word.
    let refused = std::panic::catch_unwind(|| get(exporter.address, "/metrics", &[]));
    assert!(refused.is_err());
}
