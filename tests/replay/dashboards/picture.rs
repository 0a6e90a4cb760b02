//! The pictures in docs/dashboards.md: the dashboards' JSON and a real Prometheus' answers, drawn the way Grafana lays
//! them out, in a real browser. It is no Grafana, which cannot be had where these tests run; what this one does not
//! know (a unit, a type of panel, a transformation) is a failure.

mod field;
mod panel;
mod table;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use headroom::verdict::{Labels, NAME};
use maud::{Markup, PreEscaped, html};
use serde_json::Value;

use super::Prometheus;
use crate::common::board::{self, Board};
use crate::common::browser::{self, Scheme};
use crate::common::prometheus::Release;
use crate::common::recorded::Recorded;
use crate::common::{eventually_within, has};
use panel::Seen;

/// The hour that the pictures show, and Grafana's step in it.
struct Span {
    start: f64,
    end: f64,
    step: f64,
}

/// What Prometheus answers of one series; one point if it was asked for now.
struct Series {
    labels: BTreeMap<String, String>,
    points: Vec<(f64, f64)>,
}

impl Series {
    /// `{{label}}` in a legend.
    fn named(&self, legend: &str) -> String {
        let mut name = legend.to_owned();
        while let Some((before, (label, after))) =
            name.split_once("{{").and_then(|(before, rest)| Some((before, rest.split_once("}}")?)))
        {
            name = format!("{before}{}{after}", self.labels.get(label.trim()).map_or("", String::as_str));
        }
        name
    }
}

struct Shot {
    file: &'static str,
    board: &'static str,
    node: &'static str,
    /// Panels that may have nothing to show.
    empty: &'static [&'static str],
}

const FAILS: &str = "worker-3";
const GOOD_NEWS: [&str; 3] = ["Alerts firing", "A restart of the kubelet would change", "Pods that lack an interface"];
const SHOTS: [Shot; 4] = [
    Shot { file: "fleet.png", board: "fleet", node: ".*", empty: &[] },
    Shot { file: "node-failing.png", board: "node", node: FAILS, empty: &[] },
    Shot { file: "node-healthy.png", board: "node", node: "worker-1", empty: &GOOD_NEWS },
    Shot { file: "apiserver.png", board: "apiserver", node: ".*", empty: &[] },
];

/// An hour of three nodes, of which one begins to fail after twenty minutes.
fn history(now: u64) -> String {
    let (healthy, failing) = (Recorded::Healthy.page(), Recorded::Failing.page());
    let mut text = String::new();
    for (at, node) in ["worker-1", "worker-2", FAILS].into_iter().enumerate() {
        let page = if node == FAILS { &failing } else { &healthy };
        for (labels, end) in page {
            let before = healthy.get(labels).copied();
            let pairs = labels.iter().filter(|(name, _)| *name != NAME);
            let series =
                pairs.fold(format!("{}{{job=\"headroom-exporter\"", labels.get(NAME)), |series, (name, value)| {
                    format!("{series},{name}=\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
                });
            for step in 0..=STEPS {
                let hour = f64::from(step) / f64::from(STEPS);
                let Some(value) = value(labels, before, *end, hour, at) else { continue };
                let time = now - 3600 + u64::from(step) * 3600 / u64::from(STEPS);
                let _ = writeln!(text, "{series},instance=\"{node}\"}} {value} {time}");
            }
        }
        for step in 0..=STEPS {
            let time = now - 3600 + u64::from(step) * 3600 / u64::from(STEPS);
            let _ = writeln!(text, "up{{job=\"headroom-exporter\",instance=\"{node}\"}} 1 {time}");
        }
    }
    text + "# EOF\n"
}

/// One scrape in 30 seconds.
const STEPS: u32 = 120;

/// A series at some part of the hour: as it was before, on its way, or as it ends.
fn value(labels: &Labels, before: Option<f64>, end: f64, hour: f64, node: usize) -> Option<f64> {
    let name = labels.get(NAME);
    let failed = ((hour - 0.35) / 0.65).max(0.0);
    let whole = |value: f64, like: f64| if like.fract() == 0.0 { value.floor() } else { value };
    if ["_total", "_bucket", "_count", "_sum"].iter().any(|end| name.ends_with(end)) {
        // What only the failing node counts begins when it fails.
        let counted = if before == Some(end) { hour } else { failed };
        let value = end * (1.0 + (2.0 + node as f64 / 10.0) * counted);
        // Not the buckets: of the few that are counted here, each would be a spike.
        return Some(if name.ends_with("_total") { whole(value, end) } else { value });
    }
    match before {
        None if name.ends_with("_info") => Some(end),
        None => (failed > 0.0).then_some(end),
        Some(before) if [before, end].iter().all(|value| [0.0, 1.0].contains(value)) => {
            Some(if failed > 0.4 { end } else { before })
        }
        Some(before) => Some(whole(before + (end - before) * failed, end)),
    }
}

impl Prometheus {
    /// With that hour in its database, and with every rule of `alerts/`.
    fn with_history(now: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("history"), history(now)).unwrap();
        let promtool = Command::new("promtool")
            .args(["tsdb", "create-blocks-from", "openmetrics"])
            .args([at("history"), at("data")])
            .stdout(Stdio::null())
            .output()
            .unwrap();
        assert!(promtool.status.success(), "{}", String::from_utf8_lossy(&promtool.stderr));
        std::fs::create_dir(at("rules")).unwrap();
        for folder in std::fs::read_dir(board::project("alerts")).unwrap().map(|entry| entry.unwrap().path()) {
            let Ok(rules) = std::fs::read_to_string(folder.join("rules.yaml")) else { continue };
            // Nobody waits here: what holds now fires now.
            let waits = |line: &&str| ["for:", "interval:"].iter().any(|key| line.trim_start().starts_with(key));
            let rules: Vec<&str> = rules.lines().filter(|line| !waits(line)).collect();
            let name = folder.file_name().unwrap().to_str().unwrap();
            std::fs::write(at("rules").join(format!("{name}.yaml")), rules.join("\n")).unwrap();
        }
        std::fs::write(at("prometheus.yml"), "global: {evaluation_interval: 1s}\nrule_files: [rules/*.yaml]\n")
            .unwrap();
        let prometheus = Prometheus::start_in(Release::Installed, dir);
        eventually_within(45, "every rule was evaluated", || {
            let Ok(rules) = prometheus.ask("/api/v1/rules", &[]) else { return false };
            let groups = rules["groups"].as_array().unwrap().iter();
            let rules: Vec<&Value> = groups.flat_map(|group| group["rules"].as_array().unwrap()).collect();
            assert!(rules.iter().all(|rule| rule["health"] != "err"), "{rules:?}");
            !rules.is_empty() && rules.iter().all(|rule| rule["health"] == "ok")
        });
        // Alerts are no series before they were evaluated a few times.
        eventually_within(45, "every alert is a series", || {
            let alerts = prometheus.ask("/api/v1/alerts", &[]).unwrap();
            let alerts = alerts["alerts"].as_array().unwrap().len();
            prometheus.numbers(&format!("count(count_over_time(ALERTS[1m]) >= 2) == {alerts}"), true) == Ok(1)
        });
        prometheus
    }

    fn series(&self, expression: &str, instant: bool, span: &Span) -> Vec<Series> {
        let number = |value: f64| value.to_string();
        let data = if instant {
            self.ask("/api/v1/query", &[("query", expression)])
        } else {
            let (start, end, step) = (number(span.start), number(span.end), number(span.step));
            let range = [("query", expression), ("start", &start), ("end", &end), ("step", &step)];
            self.ask("/api/v1/query_range", &range)
        };
        let data = data.unwrap_or_else(|why| panic!("{expression}: {why}"));
        let point = |pair: &Value| (pair[0].as_f64().unwrap(), pair[1].as_str().unwrap().parse::<f64>().unwrap());
        let series = data["result"].as_array().unwrap().iter().map(|row| {
            let labels = row["metric"].as_object().unwrap();
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let labels = labels.iter().map(|(name, value)| (name.clone(), text(value))).collect();
            let points = row["values"].as_array().map_or_else(
                || vec![point(&row["value"])],
                |values| values.iter().map(point).filter(|point| !point.1.is_nan()).collect(),
            );
            Series { labels, points }
        });
        series.filter(|series| !series.points.is_empty()).collect()
    }
}

/// A dashboard as Grafana shows it on a screen that is 1280 pixels wide.
fn drawn(prometheus: &Prometheus, shot: &Shot, span: &Span, seen: &mut Seen) -> (Markup, u32) {
    let board = Board::read(shot.board);
    let panels = board.panels().iter().map(|panel| {
        let targets = panel["targets"].as_array().map_or(&[][..], Vec::as_slice);
        let answers: Vec<Vec<Series>> = targets
            .iter()
            .map(|target| {
                let expression = target["expr"].as_str().unwrap().replace("$__rate_interval", "2m");
                let expression = super::filled_in(&expression, shot.node);
                prometheus.series(&expression, target["instant"] == true, span)
            })
            .collect();
        panel::panel(panel, &answers, span, seen)
    });
    let panels: Vec<Markup> = panels.collect();
    let variables = board.variables().iter().filter(|variable| variable["hide"] != 2);
    let chosen = |name: &str| match name {
        "datasource" => "Prometheus",
        "node" if shot.node != ".*" => shot.node,
        _ => "All",
    };
    let height = 88.0 + panel::height(board.panels()) + 8.0;
    let page = html! {
        main id=(shot.file) style=(format!("height:{height:.0}px")) {
            header {
                h1 { (board.json["title"].as_str().unwrap()) }
                @for variable in variables {
                    span { b { (variable["label"].as_str().unwrap()) } (chosen(variable["name"].as_str().unwrap())) }
                }
                span.right { "Last 1 hour" }
                @for link in board.json["links"].as_array().unwrap() { span { (link["title"].as_str().unwrap()) } }
            }
            div.grid-of-panels { @for panel in &panels { (panel) } }
        }
    };
    (page, height as u32)
}

/// Elements whose text does not fit into them.
const CLIPPED: &str = "document.body.dataset.clipped=[...document.querySelectorAll('.fits')].filter(e=>\
    e.scrollWidth>e.clientWidth+1||e.scrollHeight>e.clientHeight+3).map(e=>e.closest('main').id+': '+\
    (e.closest('section')?.querySelector('h3').textContent??'')+': '+e.textContent.slice(0,80)).join(' | ')";

fn page(dir: &Path, name: &str, boards: &[&Markup]) -> String {
    let style = PreEscaped(include_str!("picture/style.css"));
    let page = html! {
        (maud::DOCTYPE)
        meta charset="utf-8";
        style { (style) }
        body { @for board in boards { (board) } script { (PreEscaped(CLIPPED)) } }
    };
    let file = dir.join(name);
    std::fs::write(&file, page.into_string()).unwrap();
    format!("file://{}", file.display())
}

/// `HEADROOM_UPDATE_DOCS=1` draws them again.
#[test]
fn the_pictures_in_the_documentation() {
    for program in ["prometheus", "chromium"] {
        if !has(program) {
            skip!("{program} (Debian package) is not installed");
        }
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 30 * 30;
    let span = Span { start: (now - 3600) as f64, end: now as f64, step: 30.0 };
    let prometheus = Prometheus::with_history(now);
    let dir = tempfile::tempdir().unwrap();
    let mut drawings = Vec::new();
    let mut wrong = Vec::new();
    for shot in &SHOTS {
        let mut seen = Seen::default();
        drawings.push(drawn(&prometheus, shot, &span, &mut seen));
        if seen.empty != shot.empty {
            wrong.push(format!("{}: nothing to show in {:?}", shot.file, seen.empty));
        }
        for (title, number) in &seen.numbers {
            let decimals = number.split_once('.').map_or("", |(_, rest)| rest).chars();
            if decimals.take_while(char::is_ascii_digit).count() > 2 {
                wrong.push(format!("{}: {title}: nobody reads {number}", shot.file));
            }
        }
        for (title, first) in seen.first_rows.iter().filter(|_| shot.board == "fleet") {
            if first != FAILS {
                wrong.push(format!("{}: {title}: begins with {first}, which is healthy", shot.file));
            }
        }
    }
    let all: Vec<&Markup> = drawings.iter().map(|drawing| &drawing.0).collect();
    let dom = browser::dom(&page(dir.path(), "all.html", &all));
    let clipped = dom.split("data-clipped=\"").nth(1).expect("the script ran").split('"').next().unwrap();
    wrong.extend(clipped.split(" | ").filter(|text| !text.is_empty()).map(|text| format!("does not fit: {text}")));

    let documentation = std::fs::read_to_string(board::project("docs/dashboards.md")).unwrap();
    for (shot, (drawing, height)) in SHOTS.iter().zip(&drawings) {
        let file = board::project("docs/images").join(shot.file);
        if std::env::var_os("HEADROOM_UPDATE_DOCS").is_some() {
            let url = page(dir.path(), "one.html", &[drawing]);
            let shot =
                browser::picture(&url, Scheme::Dark, (panel::WIDTH as u32, *height), &dir.path().join("shot.png"));
            std::fs::write(&file, shot.indexed()).unwrap();
        }
        if browser::size(&std::fs::read(&file).unwrap()) != (panel::WIDTH as u32, *height) {
            wrong.push(format!("{}: the picture is of another dashboard", shot.file));
        }
        assert!(documentation.contains(&format!("images/{}", shot.file)), "{} is not in docs/dashboards.md", shot.file);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
