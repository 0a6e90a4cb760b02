//! Every query of every panel and variable on real Prometheus 2 and 3 that scrape a real exporter, a recorded node and
//! a failing one.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

mod picture;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use crate::common::board::{self, BOARDS, Board};
use crate::common::prometheus::Release;
use crate::common::recorded::Recorded;
use crate::common::{Exporter, eventually, eventually_within};
use crate::server::Prometheus;

/// Queries with nothing to answer on these nodes, and why. One that does answer has no place here.
const RIGHTLY_EMPTY: [(&str, &str); 1] = [("ALERTS{", "this Prometheus is given no rules, so that no alert exists")];

/// Recorded and made pages, at `/healthy` and `/failing`, for as long as the test's process lives.
struct Nodes(SocketAddr);

impl Nodes {
    fn serve() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (healthy, failing) = (overlaid(Recorded::Healthy), overlaid(Recorded::Failing));
        std::thread::spawn(move || {
            for (count, stream) in listener.incoming().flatten().enumerate() {
                let mut request = [0; 4096];
                let mut stream: TcpStream = stream;
                let length = stream.read(&mut request).unwrap_or(0);
                let fails = request[..length].starts_with(b"GET /failing");
                let wanted = if fails { &failing } else { &healthy };
                let page: String = wanted
                    .iter()
                    .map(|(series, value)| format!("{series} {}\n", grown(series, *value, count, fails)))
                    .collect();
                let head = "HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\n\r\n";
                let _ = stream.write_all(format!("{head}{page}").as_bytes());
            }
        });
        Nodes(address)
    }
}

/// Counters that stand still have no rate to show, and no quantiles.
fn grown(series: &str, value: f64, count: usize, fails: bool) -> f64 {
    let name = series.split('{').next().unwrap();
    let counts = ["_total", "_bucket", "_count", "_sum"].iter().any(|end| name.ends_with(end));
    // Disks fill, so that there is a time at which they are full.
    if fails && name == "headroom_eviction_headroom_ratio" {
        return value - 0.0001 * count as f64;
    }
    if counts { value * (count + 1) as f64 } else { value }
}

/// The page of a recorded node, series as they are written.
fn overlaid(recorded: Recorded) -> BTreeMap<String, f64> {
    let mut page = BTreeMap::new();
    for file in recorded.files() {
        let text = std::fs::read_to_string(file).unwrap();
        let rows = crate::common::Page::parse(&text).0;
        let family = |series: &str| series.split('{').next().unwrap().to_owned();
        let replaced: Vec<String> = rows.keys().map(|s| family(s)).filter(|name| name.ends_with("_info")).collect();
        page.retain(|series: &String, _| !replaced.contains(&family(series)));
        page.extend(rows);
    }
    page
}

fn filled_in(expression: &str, node: &str) -> String {
    let filled = expression
        .replace("$__rate_interval", "4s")
        .replace("$cluster", ".*")
        .replace("$job", ".+")
        .replace("$node", node);
    assert!(!filled.contains('$'), "a variable that the test does not know: {filled}");
    filled
}

/// Both scrape the same nodes, and wait for them at the same time.
#[test]
fn every_query_of_every_panel_and_variable_answers() {
    let exporter = Exporter::start(&["--apiserver.url=https://127.0.0.1:1"]);
    let nodes = Nodes::serve().0;
    let own = exporter.address.to_string();
    let config = format!(
        "global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
- job_name: headroom-exporter
  static_configs: [{{targets: ['{own}']}}]
- job_name: nodes
  static_configs:
  - {{targets: [healthy], labels: {{__metrics_path__: /healthy, cluster: recorded}}}}
  - {{targets: [failing], labels: {{__metrics_path__: /failing, cluster: recorded}}}}
  relabel_configs:
  - {{source_labels: [__address__], target_label: instance}}
  - {{target_label: __address__, replacement: '{nodes}'}}
"
    );
    let all: Vec<_> =
        Release::with(&["prometheus"]).into_iter().map(|release| Prometheus::start(release, &config)).collect();
    for prometheus in all {
        every_query_answers(&prometheus, &own);
    }
}

fn every_query_answers(prometheus: &Prometheus, own: &str) {
    let release = prometheus.release;
    eventually_within(45, "every node was scraped five times", || {
        let count = "count(count_over_time(up[1m]) >= 5 and sum_over_time(up[1m]) >= 5) == 3";
        prometheus.numbers(count, true) == Ok(1)
    });

    for (file, _) in BOARDS {
        let board = Board::read(file);
        for query in board.variable_queries() {
            // As Grafana asks: the label's values among the series that match.
            let (selector, label) = query.strip_prefix("label_values(").unwrap().rsplit_once(", ").unwrap();
            let (selector, label) = (filled_in(selector, ".*"), label.trim_end_matches(')'));
            let path = format!("/api/v1/label/{label}/values");
            let values = prometheus.ask(&path, &[("match[]", &selector)]).unwrap();
            let values: Vec<&str> = values.as_array().unwrap().iter().map(|value| value.as_str().unwrap()).collect();
            assert!(!values.is_empty(), "{file}: {query}");
            // With and without a cluster label.
            assert!(label != "instance" || (values.contains(&own) && values.contains(&"failing")), "{values:?}");
        }
        for panel in board.evidence() {
            for target in board::targets(panel) {
                let what = format!("{release:?}: {file}: {}: {}", panel["title"], target.expression);
                let nodes: &[&str] = if file == "node" { &["failing"] } else { &[".*"] };
                let reason = RIGHTLY_EMPTY.iter().find(|(part, _)| target.expression.contains(part));
                for node in nodes {
                    let expression = filled_in(&target.expression, node);
                    let answered = || {
                        prometheus.numbers(&expression, target.instant).unwrap_or_else(|why| panic!("{what}: {why}"))
                    };
                    match reason {
                        Some((_, why)) => assert_eq!(answered(), 0, "{what}: answers, although {why}"),
                        None => eventually(&format!("{what} answers"), || answered() > 0),
                    }
                }
                // The live exporter has no kubelet beside it: no data is right, an error is not.
                let on_real = filled_in(&target.expression, own);
                prometheus.numbers(&on_real, target.instant).unwrap_or_else(|why| panic!("{what}: {why}"));
            }
        }
    }
    verdicts_are_right(prometheus);
}

/// The tiles of one node: red on the failing node, not on the recorded one.
fn verdicts_are_right(prometheus: &Prometheus) {
    for (file, nodes) in [("node", ["healthy", "failing"]), ("fleet", [".*", ".*"])] {
        let board = Board::read(file);
        for panel in board.evidence().filter(|panel| panel["type"] == "stat" && panel["title"] != "Nodes that report") {
            let steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"].as_array().unwrap();
            let expression = board::targets(panel).next().unwrap().expression;
            let color = |node: &str, cluster: &str| {
                let expression = expression.replace("$cluster", cluster);
                let data = prometheus.ask("/api/v1/query", &[("query", &filled_in(&expression, node))]).unwrap();
                let value: f64 = data["result"][0]["value"][1].as_str().expect("a verdict").parse().unwrap();
                let step = steps.iter().rfind(|step| step["value"].as_f64().is_none_or(|from| value >= from)).unwrap();
                (step["color"].as_str().unwrap().to_owned(), value)
            };
            let what = format!("{:?}: {file}: {}", prometheus.release, panel["title"]);
            let (failing, value) = color(nodes[1], "recorded");
            assert!(matches!(&*failing, "red" | "orange"), "{what}: {failing} at {value} on a failing node");
            if file == "node" {
                let (healthy, value) = color(nodes[0], "recorded");
                assert_eq!(healthy, "green", "{what}: at {value} on a healthy node");
            } else if !expression.starts_with("count(up") {
                assert_eq!(value, 1.0, "{what}: one of the recorded nodes fails");
            }
        }
    }
}

#[test]
fn pages_laid_over_each_other_replace_series() {
    let page = overlaid(Recorded::Failing);
    assert_eq!(page["headroom_memcg_ids_used"], 58_210.0);
    assert_eq!(page.keys().filter(|series| series.starts_with("headroom_kernel_info")).count(), 1);
}
