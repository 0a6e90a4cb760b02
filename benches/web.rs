//! What the web side's security costs the exporter: CPU of its process (user and system) while curl asks.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a bench makes its own files and prints what it found"
)]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/web/site.rs"]
mod web;

use std::process::Command;
use std::time::Instant;

use common::Exporter;
use web::{Site, basic, bcrypt, cpu_seconds};

const TLS: &str = "tls_server_config: {cert_file: server.pem, key_file: server.pem}\n";
const SCRAPES: u32 = 200;
const CONNECTIONS: u32 = 2_000;

fn main() {
    let password = format!("basic_auth_users: {{alice: {}}}\n", bcrypt("secret", 10));
    println!("| | a scrape on a kept connection | a new connection and /healthz |");
    println!("|---|---|---|");
    for (name, config) in [
        ("plain", String::new()),
        ("password (bcrypt, remembered)", password.clone()),
        ("TLS 1.3, ECDSA P-256, HTTP/2", TLS.to_owned()),
        ("TLS 1.3, ECDSA P-256, HTTP/1.1", format!("{TLS}http_server_config: {{http2: false}}\n")),
        ("the same with a password", format!("{TLS}{password}")),
    ] {
        let site = Site::new();
        site.config(&config);
        let exporter = site.start(&["--web.scrape-timeout=30s"]);
        let scheme = if config.contains("tls_server") { "https" } else { "http" };
        let url = |path: &str| format!("{scheme}://{}{path}", exporter.address);
        let ask = |arguments: &[&str], path: String| {
            let mut curl = Command::new("curl");
            curl.args(["-s", "-f", "-o", "/dev/null", "--compressed", "-u", "alice:secret", "--cacert"]);
            let status = curl.arg(site.path("ca.pem")).args(arguments).arg(path).status().unwrap();
            assert!(status.success(), "{name}: {status}");
        };
        ask(&[], url("/metrics?x=[1-20]"));
        let scrape = per(&exporter, SCRAPES, || ask(&[], url(&format!("/metrics?x=[1-{SCRAPES}]"))));
        let fresh = ["--no-sessionid", "-H", "Connection: close", "--http1.1"];
        let connection = per(&exporter, CONNECTIONS, || ask(&fresh, url(&format!("/healthz?x=[1-{CONNECTIONS}]"))));
        println!("| {name} | {:.2} ms | {:.3} ms |", scrape * 1e3, connection * 1e3);
    }
    let site = Site::new();
    site.config(&password);
    let exporter = site.start(&[]);
    let authorization = basic("alice", "secret");
    let once = || {
        let begun = Instant::now();
        assert_eq!(exporter.get("/none", &[&authorization]).status, 404);
        begun.elapsed().as_secs_f64() * 1e3
    };
    let first = once();
    let mut others: Vec<f64> = (0..100).map(|_| once()).collect();
    others.sort_by(f64::total_cmp);
    println!("\na password of cost 10: {first:.1} ms the first time, {:.2} ms after that (median)", others[50]);
}

/// CPU time of the exporter for one of so many requests.
fn per(exporter: &Exporter, count: u32, requests: impl FnOnce()) -> f64 {
    let before = cpu_seconds(exporter.pid());
    requests();
    (cpu_seconds(exporter.pid()) - before) / f64::from(count)
}
