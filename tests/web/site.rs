//! A folder with a web configuration and certificates, and clients for what is served by it.

#![allow(unreachable_pub, reason = "a module of tests")]
#![allow(clippy::disallowed_methods, reason = "a test makes its own files")]
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::PathBuf;
use std::process::Command;

use base64::Engine as _;

use crate::common::tls_server::Authority;
use crate::common::{Exporter, eventually};

pub struct Site {
    dir: tempfile::TempDir,
    pub authority: Authority,
}

impl Site {
    /// With an authority (`ca.pem`) and a certificate for the loopback (`server.pem`, its key too).
    pub fn new() -> Self {
        let site = Site { dir: tempfile::tempdir().unwrap(), authority: Authority::new("site") };
        site.write("ca.pem", &site.authority.pem);
        site.write("server.pem", &site.authority.issue(&["127.0.0.1", "localhost"]).pem());
        site
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub fn config(&self, text: &str) {
        self.write("web.yml.new", text);
        std::fs::rename(self.path("web.yml.new"), self.path("web.yml")).unwrap();
    }

    pub fn flag(&self) -> String {
        format!("--web.config.file={}", self.path("web.yml").display())
    }

    pub fn start(&self, arguments: &[&str]) -> Exporter {
        let flag = self.flag();
        Exporter::start(&[&[flag.as_str()], arguments].concat())
    }
}

pub fn bcrypt(password: &str, cost: u32) -> String {
    bcrypt::hash(password, cost).unwrap()
}

/// The header line.
pub fn basic(user: &str, password: &str) -> String {
    let value = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    format!("Authorization: Basic {value}")
}

/// What curl prints for a path over TLS.
pub fn curl(site: &Site, exporter: &Exporter, path: &str, arguments: &[&str]) -> String {
    let mut command = Command::new("curl");
    command.args(["-s", "--max-time", "20", "--cacert"]).arg(site.path("ca.pem"));
    let output = command.args(arguments).arg(format!("https://{}{path}", exporter.address)).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// User and system time of a process, from its stat.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks / rustix::param::clock_ticks_per_second() as f64
}

/// Whether a real Prometheus, with this in its scrape configuration, gets a page.
pub fn prometheus_says_up(site: &Site, exporter: &Exporter, scheme: &str) -> bool {
    let target = exporter.address;
    site.write(
        "prometheus.yml",
        &format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\n\
             scrape_configs:\n- {{job_name: headroom, {scheme}, static_configs: [{{targets: ['{target}']}}]}}\n"
        ),
    );
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut prometheus = Command::new("prometheus")
        .arg(format!("--config.file={}", site.path("prometheus.yml").display()))
        .arg(format!("--storage.tsdb.path={}", site.path("data").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .stderr(std::fs::File::create(site.path("log")).unwrap())
        .spawn()
        .unwrap();
    let up = std::panic::catch_unwind(|| {
        eventually("Prometheus says up=1", || {
            let url = format!("http://127.0.0.1:{port}/api/v1/query?query=up==1");
            let output = Command::new("curl").args(["-sf", &url]).output().unwrap();
            String::from_utf8_lossy(&output.stdout).contains("\"job\":\"headroom\"")
        });
    });
    prometheus.kill().unwrap();
    prometheus.wait().unwrap();
    up.is_ok()
}
