//! A real Prometheus that scrapes, and its API.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Child;

use serde_json::Value;
use tempfile::TempDir;

use crate::common::prometheus::Release;
use crate::common::{eventually_within, get};

pub(crate) struct Prometheus {
    pub(crate) release: Release,
    child: Child,
    address: SocketAddr,
    _dir: TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    pub(crate) fn start(release: Release, config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("prometheus.yml"), config).unwrap();
        Self::start_in(release, dir)
    }

    /// In a directory with its `prometheus.yml`, and with `data` if it has any.
    pub(crate) fn start_in(release: Release, dir: TempDir) -> Self {
        let file = dir.path().join("prometheus.yml");
        // A port that was free a moment ago; Prometheus cannot be asked to pick one and tell.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let log = dir.path().join("log");
        let child = release
            .command("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut prometheus = Prometheus { release, child, address, _dir: dir };
        eventually_within(30, "Prometheus answers", || {
            let ended = prometheus.child.try_wait().unwrap();
            assert_eq!(ended, None, "{release:?}: {}", std::fs::read_to_string(&log).unwrap());
            TcpStream::connect(address).is_ok() && get(address, "/-/ready", &[]).status == 200
        });
        prometheus
    }

    /// The API's `data`, or what it complains of.
    pub(crate) fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
        let mut query = String::new();
        for (name, value) in parameters {
            let value: String = value.bytes().map(|byte| format!("%{byte:02X}")).collect();
            query.push_str(&format!("{}{name}={value}", if query.is_empty() { '?' } else { '&' }));
        }
        let answer = get(self.address, &format!("{path}{query}"), &[]);
        // While it starts it says so in plain text.
        let answer: Value = serde_json::from_slice(&answer.body).map_err(|_| answer.text())?;
        if answer["status"] == "success" { Ok(answer["data"].clone()) } else { Err(answer["error"].to_string()) }
    }

    /// How many numbers (not NaN) a panel's query is answered with.
    pub(crate) fn numbers(&self, expression: &str, instant: bool) -> Result<usize, String> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let (start, end) = ((now - 10).to_string(), now.to_string());
        let data = if instant {
            self.ask("/api/v1/query", &[("query", expression)])?
        } else {
            let range = [("query", expression), ("start", &start), ("end", &end), ("step", "1")];
            self.ask("/api/v1/query_range", &range)?
        };
        let series = data["result"].as_array().unwrap();
        let is_number = |pair: &Value| pair[1].as_str().is_some_and(|number| number != "NaN");
        let points = series
            .iter()
            .flat_map(|row| row["values"].as_array().cloned().unwrap_or_else(|| vec![row["value"].clone()]));
        Ok(points.filter(|pair| is_number(pair)).count())
    }
}
