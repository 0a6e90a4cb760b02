//! A dashboard's JSON, as far as the tests look into it.

use std::path::{Path, PathBuf};

use headroom::modes::MODES;
use serde_json::{Value, json};

/// Each dashboard's file and uid. A uid is in people's bookmarks and links: it does not change.
pub const BOARDS: [(&str, &str); 3] =
    [("fleet", "headroom-fleet"), ("node", "headroom-node"), ("apiserver", "headroom-apiserver")];
pub const RUNBOOKS: &str = "https://github.com/headroom-exporter/headroom-exporter/blob/main/alerts/";

/// The title of its own row.
const EXPORTER: &str = "what it could not read, and what it costs";

pub fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

pub struct Board {
    pub json: Value,
}

/// One query of a panel.
pub struct Target<'a> {
    pub refid: &'a str,
    pub expression: String,
    pub legend: &'a str,
    pub instant: bool,
}

impl Board {
    pub fn read(file: &str) -> Self {
        let text = std::fs::read_to_string(project(&format!("dashboards/{file}.json"))).unwrap();
        Board { json: serde_json::from_str(&text).unwrap() }
    }

    pub fn panels(&self) -> &[Value] {
        self.json["panels"].as_array().unwrap()
    }

    /// The panels that are no row.
    pub fn evidence(&self) -> impl Iterator<Item = &Value> {
        self.panels().iter().filter(|panel| panel["type"] != "row")
    }

    pub fn variables(&self) -> &[Value] {
        self.json["templating"]["list"].as_array().unwrap()
    }

    pub fn variable_queries(&self) -> impl Iterator<Item = &str> {
        let queries = self.variables().iter().filter(|variable| variable["type"] == "query");
        queries.map(|variable| variable["query"]["query"].as_str().unwrap())
    }
}

/// What a mode brings to the dashboards that have something of every mode: `alerts/MODE/panels.json`. Panels are as
/// Grafana exports them, without an id, and of `gridPos` they have the size only.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Panels {
    fleet: Part,
    node: Part,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    /// How far it is from failing, at the top of the dashboard.
    verdict: Vec<Value>,
    /// What the verdict stands on.
    evidence: Vec<Value>,
}

/// Places panels from left to right, in lines of one height.
#[derive(Default)]
struct Grid {
    placed: Vec<Value>,
    x: u64,
    y: u64,
    height: u64,
}

impl Grid {
    fn place(&mut self, id: u64, mut panel: Value) {
        let [width, height] = ["w", "h"].map(|side| panel["gridPos"][side].as_u64().expect("the size of a panel"));
        if self.x + width > 24 || height != self.height {
            (self.x, self.y, self.height) = (0, self.y + self.height, height);
        }
        panel["id"] = id.into();
        panel["gridPos"] = json!({ "x": self.x, "y": self.y, "w": width, "h": height });
        self.x += width;
        self.placed.push(panel);
    }
}

/// A dashboard with something of every mode, its panels made anew of what the modes bring; all else is as it is in its
/// file. That of one node has a row of evidence for each mode.
pub fn assembled(file: &str) -> String {
    let of_node = file == "node";
    let folders = MODES.iter().map(|mode| (mode.id, mode.title)).chain([("exporter", EXPORTER)]);
    // A mode has a hundred ids, the exporter the first of them: another mode changes nobody's links to a panel.
    let first = |place: usize| if place == MODES.len() { 1 } else { 100 * (place as u64 + 1) };
    let parts = folders.enumerate().map(|(place, (folder, title))| {
        let text = std::fs::read_to_string(project(&format!("alerts/{folder}/panels.json")));
        let text = text.unwrap_or_else(|error| panic!("alerts/{folder}/panels.json: {error}"));
        let panels: Panels =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("alerts/{folder}/panels.json: {error}"));
        let part = if of_node { panels.node } else { panels.fleet };
        (first(place)..first(place) + 100, format!("{folder}: {title}"), part)
    });
    let (mut grid, mut below) = (Grid::default(), Vec::new());
    for (mut ids, title, part) in parts {
        let mut next = || ids.next().expect("a hundred ids are enough");
        part.verdict.into_iter().for_each(|panel| grid.place(next(), panel));
        let row =
            json!({ "type": "row", "title": title, "collapsed": false, "gridPos": { "w": 24, "h": 1 }, "panels": [] });
        below.extend(of_node.then_some(row).into_iter().chain(part.evidence).map(|panel| (next(), panel)));
    }
    below.into_iter().for_each(|(id, panel)| grid.place(id, panel));
    let mut board = Board::read(file).json;
    board["panels"] = grid.placed.into();
    format!("{board:#}\n")
}

pub fn row_title(panel: &Value) -> Option<String> {
    (panel["type"] == "row").then(|| panel["title"].as_str().unwrap().to_owned())
}

pub fn targets(panel: &Value) -> impl Iterator<Item = Target<'_>> {
    panel["targets"].as_array().unwrap().iter().map(|target| Target {
        refid: target["refId"].as_str().unwrap(),
        expression: target["expr"].as_str().unwrap().to_owned(),
        legend: target["legendFormat"].as_str().unwrap(),
        instant: target["instant"] == true,
    })
}

/// The unit in which the values of a query are shown; `None` if a table hides them and shows labels only.
pub fn shown_unit<'a>(panel: &'a Value, refid: &str) -> Option<&'a str> {
    let of_panel = panel["fieldConfig"]["defaults"]["unit"].as_str().expect("a unit");
    if panel["type"] != "table" {
        return Some(of_panel);
    }
    let many = panel["targets"].as_array().unwrap().len() > 1;
    let column = if many { format!("Value #{refid}") } else { "Value".to_owned() };
    let organize = panel["transformations"].as_array().unwrap().last().unwrap();
    let shown = organize["options"]["renameByName"].get(&column)?;
    let overrides = panel["fieldConfig"]["overrides"].as_array().unwrap();
    let of_column = overrides.iter().find(|rule| rule["matcher"]["options"] == *shown);
    let properties = of_column.and_then(|rule| rule["properties"].as_array());
    let unit = properties.and_then(|list| list.iter().find(|property| property["id"] == "unit"));
    Some(unit.map_or(of_panel, |property| property["value"].as_str().unwrap()))
}

/// Every string under this key, however deep.
pub fn strings<'a>(json: &'a Value, key: &str) -> Vec<&'a str> {
    match json {
        Value::Object(map) => {
            let own = map.get(key).and_then(Value::as_str);
            own.into_iter().chain(map.values().flat_map(|value| strings(value, key))).collect()
        }
        Value::Array(list) => list.iter().flat_map(|value| strings(value, key)).collect(),
        _ => Vec::new(),
    }
}
