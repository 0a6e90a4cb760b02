//! What is generated: the flags in the schema of the values, the operator's rules for kustomize, the table of values in
//! the chart's README.

use std::fmt::Write as _;

use clap::{Arg, ArgAction};
use headroom::config::{command, environment_variable};
use headroom::modes::MODES;
use serde_json::{Map, Value, json};

use super::render::{parse_all, read};

/// The flags that the chart sets itself: the values that do it, and what comes of them, as an argument; none where the
/// chart's mounts and the pod decide.
pub(crate) const OWN: &[(&str, Option<&str>, &str)] = &[
    ("path.rootfs", None, "--path.rootfs=/host/root"),
    ("path.sysfs", None, "--path.sysfs=/host/sys"),
    ("node-name", None, "--node-name=node-1"),
    ("web.listen-address", Some("web: {host: 10.0.0.1, port: 1234}"), "--web.listen-address=10.0.0.1:1234"),
    (
        "web.config.file",
        Some("web: {config: {http_server_config: {http2: false}}}"),
        "--web.config.file=/etc/headroom-exporter/web/web.yml",
    ),
    ("web.kubernetes-auth", Some("web: {kubernetesAuth: true}"), "--web.kubernetes-auth"),
    ("runtime", Some("runtime: {enabled: false}"), "--no-runtime"),
    ("runtime.endpoint", Some("runtime: {endpoint: /run/x.sock}"), "--runtime.endpoint=/run/x.sock"),
    ("apiserver.probe-kubelet", Some("apiserver: {probeKubelet: true}"), "--apiserver.probe-kubelet"),
];

pub(crate) struct Flag {
    pub(crate) long: String,
    arg: Arg,
}

/// Every flag of the exporter but `--help`, `--version` and the `--no-…`.
pub(crate) fn flags() -> impl Iterator<Item = Flag> {
    let mut command = command();
    command.build();
    let flags: Vec<Flag> = command
        .get_arguments()
        .filter_map(|arg| Some(Flag { long: arg.get_long()?.to_owned(), arg: arg.clone() }))
        .filter(|flag| !matches!(flag.long.as_str(), "help" | "version") && !flag.long.starts_with("no-"))
        .collect();
    flags.into_iter()
}

impl Flag {
    /// The flag of this environment variable.
    pub(crate) fn of_variable(name: &str) -> Option<Flag> {
        flags().find(|flag| environment_variable(&flag.long) == name)
    }

    /// Whether only the daemon has a use for it, so that it is an argument; every other is in the environment, where
    /// `kubectl exec` finds it.
    pub(crate) fn is_argument(&self) -> bool {
        self.long.starts_with("web.") || self.long.starts_with("log.")
    }

    /// This flag with this value of its variable, as an argument.
    pub(crate) fn argument(&self, value: &str) -> String {
        match value {
            "true" if self.is_switch() => format!("--{}", self.long),
            "false" if self.is_switch() => format!("--no-{}", self.long),
            _ => format!("--{}={value}", self.long),
        }
    }

    pub(crate) fn is_own(&self) -> bool {
        OWN.iter().any(|(long, ..)| *long == self.long)
    }

    fn is_switch(&self) -> bool {
        self.arg.get_num_args().is_none_or(|range| range.min_values() == 0)
    }

    fn is_list(&self) -> bool {
        matches!(self.arg.get_action(), ArgAction::Append)
    }

    /// A value, and the arguments that must come of it.
    pub(crate) fn sample(&self) -> (Value, Vec<String>) {
        if self.is_switch() {
            return (json!(true), vec![format!("--{}", self.long)]);
        }
        let name = self.arg.get_value_names().and_then(|names| names.first()).map_or("", |name| name.as_str());
        let possible = self.arg.get_possible_values();
        let default = self.arg.get_default_values().first().map(|value| value.to_string_lossy().into_owned());
        let value = match (possible.last(), name) {
            (Some(value), _) => value.get_name().to_owned(),
            (None, "URL") => "https://127.0.0.1:1".to_owned(),
            (None, "HOST:PORT") => "127.0.0.1:1".to_owned(),
            (None, "DIR" | "FILE" | "PATH") => "/x".to_owned(),
            (None, "DURATION") => "1m7s".to_owned(),
            (None, "VERSION") => "v1.28.15".to_owned(),
            // Large enough that a careless template writes 1e+06.
            (None, "N") => return (json!(1_000_000), vec![format!("--{}=1000000", self.long)]),
            (None, _) => default.unwrap_or_else(|| "x".to_owned()),
        };
        let argument = format!("--{}={value}", self.long);
        if self.is_list() { (json!([value]), vec![argument]) } else { (json!(value), vec![argument]) }
    }

    fn schema(&self) -> Value {
        let help =
            self.arg.get_long_help().or_else(|| self.arg.get_help()).map(ToString::to_string).unwrap_or_default();
        if self.is_switch() {
            return json!({ "type": "boolean", "description": help });
        }
        let mut types = vec!["string", "number"];
        if self.is_list() {
            types.push("array");
        }
        json!({ "type": types, "items": { "type": "string" }, "description": help })
    }
}

/// The schema as it is, with the flags and modes that there are now.
pub(crate) fn schema() -> String {
    let mut schema: Value = serde_json::from_str(&read("deploy/helm/headroom-exporter/values.schema.json")).unwrap();
    let flags: Map<String, Value> =
        flags().filter(|flag| !flag.is_own()).map(|flag| (flag.long.clone(), flag.schema())).collect();
    schema["properties"]["flags"]["properties"] = flags.into();
    let mut modes: Vec<&str> = MODES.iter().map(|mode| mode.id).chain(["exporter"]).collect();
    modes.sort_unstable();
    schema["properties"]["prometheusRule"]["properties"]["exclude"]["items"] = json!({ "enum": modes });
    serde_json::to_string_pretty(&schema).unwrap() + "\n"
}

/// What one has and the other has not, both ways; where the schema leaves a value free, that ends it.
pub(crate) fn differences(values: &Value, schema: &Value) -> Vec<String> {
    let Some(known) = schema["properties"].as_object() else { return Vec::new() };
    let mut wrong = Vec::new();
    if schema["additionalProperties"] != false {
        wrong.push("lets anything in".to_owned());
    }
    for (name, value) in values.as_object().unwrap() {
        match known.get(name) {
            None => wrong.push(format!("{name}: not in the schema")),
            Some(_) if name == "flags" => {}
            Some(below) if value.is_object() => {
                wrong.extend(differences(value, below).into_iter().map(|what| format!("{name}.{what}")));
            }
            Some(_) => {}
        }
    }
    // A kind of Kubernetes has more fields than a default names.
    let partial = ["securityContext", "resources", "startupProbe", "livenessProbe", "readinessProbe"];
    for (name, below) in known {
        if values.get(name).is_none() && name != "global" {
            wrong.push(format!("{name}: in the schema only"));
        }
        if partial.contains(&name.as_str()) {
            let own = |what: &String| what.starts_with(&format!("{name}.")) && what.ends_with("in the schema only");
            wrong.retain(|what| !own(what));
        }
        assert!(below.is_object(), "{name}");
    }
    wrong
}

/// A mapping or a list as YAML, indented. Texts of several lines are literal blocks: kustomize's output breaks folded
/// ones (`>-`) whose lines are indented.
fn block(text: &mut String, value: &Value, indent: usize) {
    let pad = " ".repeat(indent);
    let scalar = |text: &mut String, value: &Value| match value.as_str() {
        Some(lines) if lines.contains('\n') => {
            text.push_str(" |-\n");
            for line in lines.lines() {
                let _ = writeln!(text, "{}{line}", " ".repeat(if line.is_empty() { 0 } else { indent + 2 }));
            }
        }
        _ => drop(writeln!(text, " {value}")),
    };
    for (name, value) in value.as_object().unwrap() {
        let _ = write!(text, "{pad}{name}:");
        match value {
            Value::Array(items) => {
                text.push('\n');
                for item in items {
                    let start = text.len() + indent;
                    block(text, item, indent + 2);
                    text.replace_range(start..start + 1, "-");
                }
            }
            Value::Object(_) => {
                text.push('\n');
                block(text, value, indent + 2);
            }
            _ => scalar(text, value),
        }
    }
}

/// The operator's rules for kustomize, which can neither read outside its folder nor make a PrometheusRule of a file.
pub(crate) fn rules() -> String {
    let mut text = String::from(
        "# Generated from alerts/*/rules.yaml; tests/deploy/manifests.rs fails when it differs (HEADROOM_UPDATE_DOCS=1 cargo test --test deploy manifests writes it).\n",
    );
    let mut modes: Vec<&str> = MODES.iter().map(|mode| mode.id).chain(["exporter"]).collect();
    modes.sort_unstable();
    // Nothing stands before the first document: jsonnet would take that for one as well.
    for (place, mode) in modes.into_iter().enumerate() {
        let _ = write!(
            text,
            "{}apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: headroom-exporter-{}\n  \
             namespace: headroom-exporter\n  labels:\n    app.kubernetes.io/name: headroom-exporter\n    \
             app.kubernetes.io/instance: headroom-exporter\n    app.kubernetes.io/version: \"{}\"\nspec:\n",
            if place == 0 { "" } else { "---\n" },
            mode.replace('_', "-"),
            env!("CARGO_PKG_VERSION")
        );
        block(&mut text, &parse_all(&read(&format!("alerts/{mode}/rules.yaml"))).remove(0), 2);
    }
    text
}

/// A value with the comment above it.
pub(crate) struct Row {
    pub(crate) path: String,
    words: String,
}

pub(crate) fn rows() -> Vec<Row> {
    let (mut rows, mut words, mut above) = (Vec::new(), Vec::new(), Vec::<(usize, String)>::new());
    for line in read("deploy/helm/headroom-exporter/values.yaml").lines() {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        if let Some(comment) = text.strip_prefix("# ") {
            words.push(comment.to_owned());
            continue;
        }
        if let Some((name, _)) =
            text.split_once(':').filter(|(name, _)| name.bytes().all(|b| b.is_ascii_alphanumeric()))
        {
            above.retain(|(outer, _)| *outer < indent);
            above.push((indent, name.to_owned()));
            if !words.is_empty() {
                let path = above.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>().join(".");
                rows.push(Row { path, words: words.join(" ") });
            }
        }
        words.clear();
    }
    rows
}

/// The table of the chart's values.
pub(crate) fn values() -> String {
    let values = parse_all(&read("deploy/helm/headroom-exporter/values.yaml")).remove(0);
    let rows = rows();
    let mut table = String::from("| value | default | |\n|---|---|---|\n");
    for row in &rows {
        let value = row.path.split('.').fold(&values, |value, name| &value[name]);
        let has_row = |name: &String| rows.iter().any(|other| other.path == format!("{}.{name}", row.path));
        let outer = value.as_object().is_some_and(|keys| !keys.is_empty() && keys.keys().all(has_row));
        let default = if outer { String::new() } else { format!("`{value}`") };
        let _ = writeln!(table, "| `{}` | {default} | {} |", row.path, row.words.replace('|', "\\|"));
    }
    table
}
