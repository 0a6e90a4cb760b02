//! A dashboard's JSON, as far as the tests look into it.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// Each dashboard's file and uid. A uid is in people's bookmarks and links: it does not change.
pub const BOARDS: [(&str, &str); 3] =
    [("fleet", "headroom-fleet"), ("node", "headroom-node"), ("apiserver", "headroom-apiserver")];
pub const RUNBOOKS: &str = "https://github.com/headroom-exporter/headroom-exporter/blob/main/alerts/";

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
