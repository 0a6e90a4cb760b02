//! `mixin.libsonnet`, evaluated by the real jsonnet: all rules and dashboards are in it, as they are in their files.
//! Rules reach it by way of the operator's, which are generated; here they are compared with those of `alerts/`.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::{needs, project, tool};

/// Those of a folder's entries that are wanted, in the order of their paths.
fn files(folder: &str, of: impl Fn(&Path) -> Option<PathBuf>) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(project(folder)).unwrap();
    let mut files: Vec<_> = entries.filter_map(|entry| of(&entry.unwrap().path())).collect();
    files.sort();
    assert!(files.len() > 2, "{files:?}");
    files
}

/// To jsonnet every number is a float, which it prints with all its digits; serde_json reads the last one as it likes.
fn comparable(value: Value) -> Value {
    match value {
        Value::Number(number) => json!(format!("{:.12e}", number.as_f64().unwrap())),
        Value::Array(items) => items.into_iter().map(comparable).collect(),
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (name, comparable(value))).collect(),
        other => other,
    }
}

#[test]
fn has_every_rule_and_dashboard() {
    needs!("jsonnet");
    let jsonnet = tool("jsonnet").unwrap();
    let all = "local m = import 'mixin.libsonnet'; \
               { alerts: m.prometheusAlerts, rules: m.prometheusRules, dashboards: m.grafanaDashboards }";
    let output = Command::new(jsonnet).current_dir(project("")).args(["-e", all]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mixin = comparable(serde_json::from_slice(&output.stdout).unwrap());

    let (mut alerts, mut records) = (Vec::new(), Vec::new());
    for file in files("alerts", |path| Some(path.join("rules.yaml")).filter(|file| file.exists())) {
        let text = std::fs::read_to_string(file).unwrap();
        let rules: Value = serde_saphyr::from_str(&text).unwrap();
        for group in rules["groups"].as_array().unwrap() {
            for (kind, into) in [("alert", &mut alerts), ("record", &mut records)] {
                let rules: Vec<&Value> =
                    group["rules"].as_array().unwrap().iter().filter(|rule| rule.get(kind).is_some()).collect();
                if !rules.is_empty() {
                    let mut group = group.clone();
                    group["rules"] = json!(rules);
                    into.push(group);
                }
            }
        }
    }
    assert_eq!(mixin["alerts"]["groups"], comparable(json!(alerts)));
    assert_eq!(mixin["rules"]["groups"], comparable(json!(records)));

    let dashboards = files("dashboards", |path| path.extension().filter(|end| *end == "json").map(|_| path.to_owned()));
    assert_eq!(mixin["dashboards"].as_object().unwrap().len(), dashboards.len());
    for file in dashboards {
        let dashboard: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let name = format!("headroom-{}", file.file_name().unwrap().to_str().unwrap());
        assert_eq!(mixin["dashboards"][&name], comparable(dashboard), "{name}");
    }
}
