//! What pages: a real Prometheus with the project's rules, a real Alertmanager, and whoever is paged, all in the
//! network of the node that is watched. They end with its namespace, whatever happens to the test.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::pace::Pace;
use super::webhook::{Notice, Webhook};
use crate::common;
use crate::common::netns::Namespace;
use crate::common::prometheus::Release;

/// As `docs/detection.md` reckons.
pub const SCRAPE: Duration = Duration::from_secs(15);
pub const EVALUATION: Duration = Duration::from_secs(15);
pub const GROUP_WAIT: Duration = Duration::from_secs(10);
/// Of the modes in which seconds count, by the route of `alerts/README.md`.
pub const SHORT_WAIT: Duration = Duration::from_secs(2);
const GROUP_INTERVAL: Duration = Duration::from_secs(60);
/// Prometheus's own defaults.
const LOOKBACK: Duration = Duration::from_secs(5 * 60);
const RESEND: Duration = Duration::from_secs(60);
/// What a loaded machine may take beyond what the rules ask for.
const SLACK: Duration = Duration::from_secs(25);
/// The longest `for` and window that an alert of a replay waits for.
const PATIENCE: Duration = Duration::from_secs(12 * 60);

pub const INSTANCE: &str = "node-1";
const PROMETHEUS: &str = "127.0.0.1:9090";
const ALERTMANAGER: &str = "127.0.0.1:9093";
const WEBHOOK: &str = "127.0.0.1:9095";
const RUNBOOKS: &str = "https://github.com/headroom-exporter/headroom-exporter/blob/main/alerts";

const PROGRAMS: [&str; 2] = ["prometheus", "prometheus-alertmanager"];

/// What replays need and this machine lacks.
pub fn lacking() -> Option<String> {
    Release::Installed.or_asked_for().lacking(&PROGRAMS)
}

/// Each replay has its release: all with both would take twice as long. `HEADROOM_TEST_PROMETHEUS` has all with one.
fn release(usual: Release) -> Release {
    let release = usual.or_asked_for();
    let Some(lacking) = release.lacking(&PROGRAMS) else { return release };
    common::say_skip(format_args!("{lacking}: replayed with the installed one"));
    Release::Installed
}

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A share of this machine's processors. At 30 times real pace the timeout of a scrape is half a second: with more
/// stacks than that at once they would page that the exporter is down, and it would be this machine's fault.
struct Turn;

static TAKEN: Mutex<usize> = Mutex::new(0);
static GIVEN_BACK: Condvar = Condvar::new();

impl Turn {
    /// Waits for one.
    fn take() -> Self {
        let turns = 2 * std::thread::available_parallelism().map_or(1, NonZero::get);
        let taken = TAKEN.lock().unwrap();
        *GIVEN_BACK.wait_while(taken, |taken| *taken >= turns).unwrap() += 1;
        Turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap() -= 1;
        GIVEN_BACK.notify_one();
    }
}

pub struct Stack<'a> {
    namespace: &'a Namespace,
    _daemons: [Daemon; 2],
    webhook: Webhook,
    directory: tempfile::TempDir,
    pub pace: Pace,
    /// Given back when the daemons have ended.
    _turn: Turn,
}

/// The files `alerts/*/rules.yaml`.
pub fn rules() -> Vec<PathBuf> {
    let folders = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("alerts")).expect("alerts/");
    let mut files: Vec<PathBuf> = folders.map(|folder| folder.unwrap().path().join("rules.yaml")).collect();
    files.retain(|file| file.exists());
    files.sort();
    files
}

/// Writes the project's rules at this pace into a directory; where each is.
pub fn write_rules(pace: Pace, directory: &Path) -> Vec<PathBuf> {
    let write = |file: PathBuf| {
        let mode = file.parent().unwrap().file_name().unwrap().to_str().unwrap();
        let at = directory.join(format!("{mode}.rules.yaml"));
        std::fs::write(&at, pace.rules(&std::fs::read_to_string(&file).unwrap())).unwrap();
        at
    };
    rules().into_iter().map(write).collect()
}

impl<'a> Stack<'a> {
    /// Scrapes this exporter under the name [`INSTANCE`], with this release unless another is asked for.
    pub fn start(namespace: &'a Namespace, exporter: SocketAddr, pace: Pace, usual: Release) -> Self {
        let turn = Turn::take();
        let release = release(usual);
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name).display().to_string();
        let rules: Vec<String> =
            write_rules(pace, directory.path()).iter().map(|file| file.display().to_string()).collect();
        assert!(!rules.is_empty(), "no rules");
        let prometheus = serde_json::json!({
            "global": {
                "scrape_interval": pace.text(SCRAPE),
                "scrape_timeout": pace.text(SCRAPE),
                "evaluation_interval": pace.text(EVALUATION),
            },
            "rule_files": rules,
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [ALERTMANAGER]}]}]},
            "scrape_configs": [{
                "job_name": "headroom-exporter",
                "static_configs": [{"targets": [exporter], "labels": {"instance": INSTANCE, "cluster": "test"}}],
            }],
        });
        let alertmanager = serde_json::json!({
            "route": {
                "receiver": "test",
                "group_by": ["alertname", "cluster", "instance"],
                "group_wait": pace.text(GROUP_WAIT),
                "group_interval": pace.text(GROUP_INTERVAL),
                "repeat_interval": "4h",
                "routes": [{
                    "matchers": ["mode =~ \"apiserver_connection|node_status\""],
                    "group_wait": pace.text(SHORT_WAIT),
                }],
            },
            "receivers": [{
                "name": "test",
                "webhook_configs": [{"url": format!("http://{WEBHOOK}/"), "send_resolved": true}],
            }],
        });
        std::fs::write(at("prometheus.yml"), prometheus.to_string()).unwrap();
        std::fs::write(at("alertmanager.yml"), alertmanager.to_string()).unwrap();
        let listener = namespace.inside(|| TcpListener::bind(WEBHOOK).unwrap());
        let start = |program: &str, arguments: &[String]| {
            let log = File::create(at(&format!("{program}.log"))).unwrap();
            let mut command: Command = namespace.command(release.program(program));
            command.args(arguments).env("GOMAXPROCS", "1").stdout(log.try_clone().unwrap()).stderr(log);
            Daemon(namespace.spawn(&mut command).unwrap())
        };
        let daemons = [
            start(
                "prometheus-alertmanager",
                &[
                    format!("--config.file={}", at("alertmanager.yml")),
                    format!("--storage.path={}", at("alertmanager")),
                    format!("--web.listen-address={ALERTMANAGER}"),
                    "--cluster.listen-address=".to_owned(),
                ],
            ),
            start(
                "prometheus",
                &[
                    format!("--config.file={}", at("prometheus.yml")),
                    format!("--storage.tsdb.path={}", at("prometheus")),
                    format!("--web.listen-address={PROMETHEUS}"),
                    format!("--query.lookback-delta={}", pace.text(LOOKBACK)),
                    format!("--rules.alert.resend-delay={}", pace.text(RESEND)),
                ],
            ),
        ];
        let webhook = Webhook::listen(listener);
        let stack = Stack { namespace, _daemons: daemons, webhook, directory, pace, _turn: turn };
        stack.until("both are ready", SLACK, || {
            (stack.ready(PROMETHEUS, "/-/ready") && stack.ready(ALERTMANAGER, "/-/ready")).then_some(())
        });
        stack
    }

    fn ready(&self, server: &str, path: &str) -> bool {
        let address: SocketAddr = server.parse().unwrap();
        self.namespace
            .inside(|| std::net::TcpStream::connect(address).is_ok() && common::get(address, path, &[]).status == 200)
    }

    fn api(&self, path: &str) -> Value {
        let response = self.namespace.inside(|| common::get(PROMETHEUS.parse().unwrap(), path, &[]));
        serde_json::from_slice(&response.body).unwrap_or_else(|_| panic!("{path}: {}", response.head))
    }

    /// The values of an expression now.
    pub fn query(&self, expression: &str) -> Vec<(Value, f64)> {
        let encode = |byte: u8| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        };
        let encoded: String = expression.bytes().map(encode).collect();
        let answer = self.api(&format!("/api/v1/query?query={encoded}"));
        let rows = answer["data"]["result"].as_array().unwrap_or_else(|| panic!("{expression}: {answer}"));
        let value = |row: &Value| row["value"][1].as_str().unwrap().parse().unwrap();
        rows.iter().map(|row| (row["metric"].clone(), value(row))).collect()
    }

    /// Alerts that Prometheus has as pending or firing: name and state.
    pub fn alerts(&self) -> Vec<(String, String)> {
        let answer = self.api("/api/v1/alerts");
        let of = |alert: &Value| {
            (alert["labels"]["alertname"].as_str().unwrap().to_owned(), alert["state"].as_str().unwrap().to_owned())
        };
        answer["data"]["alerts"].as_array().unwrap().iter().map(of).collect()
    }

    fn until<T>(&self, what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
        let until = Instant::now() + limit;
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(Instant::now() < until, "not so after {limit:?}: {what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A node on which nothing happens, for as many scrapes: nobody is paged.
    pub fn is_calm(&self) {
        let scrapes = |least: f64| {
            let up = self.query(&format!("count_over_time(up{{instance=\"{INSTANCE}\"}}[1h])"));
            up.first().is_some_and(|(_, count)| *count >= least).then_some(())
        };
        self.until("eight scrapes", SLACK + self.pace.short(SCRAPE * 9), || scrapes(8.0));
        assert_eq!(self.query("up").iter().map(|(_, up)| *up).collect::<Vec<_>>(), [1.0]);
        self.only(&[]);
        let firing: Vec<_> = self.alerts().into_iter().filter(|(_, state)| state == "firing").collect();
        assert_eq!(firing, [], "on a healthy node");
    }

    /// Waits for the first notification of this alert with these labels.
    pub fn arrives(&self, name: &str, labels: &[(&str, &str)]) -> Notice {
        let wanted = |notice: &Notice| {
            notice.firing && notice.name() == name && labels.iter().all(|(label, value)| notice.label(label) == *value)
        };
        let limit = SLACK + self.pace.short(PATIENCE);
        let notice = self.until(&format!("{name} {labels:?} arrives"), limit, || {
            self.webhook.received().into_iter().find(|notice| wanted(notice))
        });
        well_formed(&notice);
        notice
    }

    /// Waits until this alert is notified as resolved.
    pub fn resolves(&self, name: &str) {
        let limit = SLACK + self.pace.short(PATIENCE);
        self.until(&format!("{name} is resolved"), limit, || {
            self.webhook.received().iter().any(|notice| !notice.firing && notice.name() == name).then_some(())
        });
    }

    /// Waits until every alert that was notified is resolved, and that was notified as well.
    pub fn all_resolve(&self) {
        let limit = SLACK + self.pace.short(PATIENCE);
        let mut last = BTreeSet::new();
        self.until("everything is resolved", limit, || {
            let mut open: BTreeSet<String> = BTreeSet::new();
            for notice in self.webhook.received() {
                let who = notice.alert["labels"].to_string();
                if notice.firing {
                    open.insert(who)
                } else {
                    open.remove(&who)
                };
            }
            let done = open.is_empty();
            last = open;
            (done && !self.alerts().iter().any(|(_, state)| state == "firing")).then_some(())
        });
    }

    /// Nothing but these alerts was ever notified, and each was.
    pub fn only(&self, names: &[&str]) {
        self.only_or(names, &[]);
    }

    /// The same, and perhaps these others.
    pub fn only_or(&self, names: &[&str], perhaps: &[&str]) {
        let received = self.webhook.received();
        received.iter().for_each(well_formed);
        let mut seen: BTreeSet<&str> = received.iter().map(Notice::name).collect();
        seen.retain(|name| !perhaps.contains(name));
        assert_eq!(seen, names.iter().copied().collect(), "what was notified, and what should have been");
    }
}

/// What holds for every notification.
fn well_formed(notice: &Notice) {
    let alert = &notice.alert;
    for annotation in ["summary", "description", "runbook_url"] {
        let text = notice.text(annotation);
        assert!(!text.is_empty(), "no {annotation}: {alert:#}");
        for wrong in ["<no value>", "<error", "%!", "NaN", "{{"] {
            assert!(!text.contains(wrong), "{annotation} has {wrong}: {alert:#}");
        }
    }
    let runbook = format!("{RUNBOOKS}/{}/runbook.md#{}", notice.label("mode"), notice.name().to_lowercase());
    assert_eq!(notice.text("runbook_url"), runbook);
    assert!(["info", "warning", "critical"].contains(&notice.label("severity")), "{alert:#}");
    assert_eq!((notice.label("instance"), notice.label("cluster")), (INSTANCE, "test"), "{alert:#}");
    assert!(notice.text("summary").contains(INSTANCE), "the summary names the node: {alert:#}");
}

impl Drop for Stack<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for notice in self.webhook.received() {
            eprintln!("--- notified {:?} ago: {:#}", notice.at.elapsed(), notice.alert);
        }
        for program in PROGRAMS {
            let log = std::fs::read_to_string(self.directory.path().join(format!("{program}.log"))).unwrap_or_default();
            let lines: Vec<&str> =
                log.lines().filter(|line| line.to_lowercase().contains("level=error")).take(20).collect();
            eprintln!("--- {program}: {lines:#?}");
        }
    }
}
