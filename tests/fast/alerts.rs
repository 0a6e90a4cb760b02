//! Alerts ≡ runbooks ≡ catalog: red for a mode without its folder, for an alert without its runbook or its cases, and
//! for a metric or label that nobody declares. promtool's word on them is in `replay/alerts.rs`.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use headroom::catalog;
use headroom::metric::Kind;
use headroom::modes::MODES;
use serde::Deserialize;

use crate::common::generated;
use crate::links;

/// What a section of a runbook opens with, in this order, and what follows.
const ANSWERS: [&str; 3] = ["Is it real?", "How long do I have?", "What do I do first?"];
const PARTS: [&str; 4] = ["Check", "Mitigate", "Prevent", "When to silence"];
/// What Prometheus adds to every series; `cluster` is the one that fleets add.
const TARGET_LABELS: [&str; 3] = ["cluster", "instance", "job"];
/// Words of PromQL that are no metric and no label.
const WORDS: &str = "and or unless on ignoring group_left group_right by without offset bool sum min max avg count group topk bottomk \
    count_values quantile stddev rate irate increase delta idelta deriv predict_linear changes resets abs absent absent_over_time \
    min_over_time max_over_time avg_over_time sum_over_time count_over_time last_over_time present_over_time quantile_over_time clamp \
    clamp_min clamp_max ceil floor round time timestamp vector scalar label_replace label_join histogram_quantile inf nan";

#[derive(Deserialize)]
struct Rules {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    name: String,
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    alert: Option<String>,
    record: Option<String>,
    expr: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Cases {
    tests: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    #[serde(default)]
    alert_rule_test: Vec<Check>,
}

#[derive(Deserialize)]
struct Check {
    eval_time: String,
    alertname: String,
    #[serde(default)]
    exp_alerts: Vec<serde_json::Value>,
}

/// `1h30m` in seconds.
fn seconds(text: &str) -> u64 {
    let mut number = 0;
    text.chars().fold(0, |sum, character| match character.to_digit(10) {
        Some(digit) => {
            number = number * 10 + u64::from(digit);
            sum
        }
        None => {
            let unit = match character {
                'd' => 86_400,
                'h' => 3_600,
                'm' => 60,
                's' => 1,
                _ => panic!("{text}"),
            };
            sum + std::mem::take(&mut number) * unit
        }
    })
}

fn folder(mode: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("alerts").join(mode)
}

/// Every folder that there must be, and those that there are.
fn demanded() -> Vec<&'static str> {
    MODES.iter().map(|mode| mode.id).chain(["exporter"]).collect()
}

fn present() -> Vec<&'static str> {
    demanded().into_iter().filter(|mode| folder(mode).join("rules.yaml").exists()).collect()
}

fn read(mode: &str, file: &str) -> String {
    let path = folder(mode).join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn rules(mode: &str) -> Rules {
    serde_saphyr::from_str(&read(mode, "rules.yaml")).unwrap_or_else(|error| panic!("{mode}/rules.yaml: {error}"))
}

/// Metric name → labels; the rows of a histogram under their own names.
fn declared() -> BTreeMap<String, BTreeSet<String>> {
    let mut all = BTreeMap::new();
    for (_, metric) in catalog::metrics() {
        let labels = || metric.labels.iter().map(ToString::to_string).chain(TARGET_LABELS.map(String::from));
        if metric.kind == Kind::Histogram {
            let mut bucket: BTreeSet<String> = labels().collect();
            bucket.insert("le".into());
            all.insert(format!("{}_bucket", metric.name), bucket);
            all.insert(format!("{}_sum", metric.name), labels().collect());
            all.insert(format!("{}_count", metric.name), labels().collect());
        } else {
            all.insert(metric.name.to_owned(), labels().collect());
        }
    }
    all.insert("up".into(), TARGET_LABELS.map(String::from).into());
    all
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Sign(char),
}

/// An expression without its strings, numbers and durations.
fn tokens(expression: &str) -> Vec<Token> {
    let mut found = Vec::new();
    let mut rest = expression.chars().peekable();
    while let Some(character) = rest.next() {
        if character == '"' || character == '\'' {
            while let Some(inner) = rest.next() {
                match inner {
                    '\\' => drop(rest.next()),
                    _ if inner == character => break,
                    _ => {}
                }
            }
        } else if character.is_alphanumeric() || character == '_' || character == ':' {
            let mut word = String::from(character);
            while let Some(next) = rest.next_if(|next| next.is_alphanumeric() || matches!(next, '_' | ':' | '.')) {
                word.push(next);
            }
            if !character.is_ascii_digit() {
                found.push(Token::Word(word));
            }
        } else if !character.is_whitespace() {
            found.push(Token::Sign(character));
        }
    }
    found
}

/// What is wrong with the names in an expression, and which labels its metrics have.
fn names(expression: &str, known: &BTreeMap<String, BTreeSet<String>>) -> (Vec<String>, BTreeSet<String>) {
    let tokens = tokens(expression);
    let mut wrong = Vec::new();
    let mut labels: BTreeSet<String> = TARGET_LABELS.map(String::from).into();
    let mut grouped = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let Token::Word(word) = &tokens[at] else {
            at += 1;
            continue;
        };
        at += 1;
        let open = tokens.get(at).cloned();
        if matches!(word.as_str(), "by" | "without" | "on" | "ignoring" | "group_left" | "group_right") {
            if open == Some(Token::Sign('(')) {
                while tokens[at] != Token::Sign(')') {
                    if let Token::Word(label) = &tokens[at] {
                        grouped.push(label.clone());
                    }
                    at += 1;
                }
            }
        } else if !WORDS.split_whitespace().any(|known| known.eq_ignore_ascii_case(word)) {
            let Some(own) = known.get(word) else {
                wrong.push(format!("unknown metric {word}"));
                continue;
            };
            labels.extend(own.iter().cloned());
            if open == Some(Token::Sign('{')) {
                while tokens[at] != Token::Sign('}') {
                    if let Token::Word(label) = &tokens[at]
                        && !own.contains(label)
                    {
                        wrong.push(format!("{word} has no label {label}"));
                    }
                    at += 1;
                }
            }
        }
    }
    wrong.extend(grouped.iter().filter(|label| !labels.contains(*label)).map(|label| format!("unknown label {label}")));
    (wrong, labels)
}

fn complain(complaints: &[String]) {
    assert!(complaints.is_empty(), "{} complaints:\n{}", complaints.len(), complaints.join("\n"));
}

#[test]
fn every_mode_has_its_alerts() {
    let mut missing = Vec::new();
    for mode in demanded() {
        for file in ["rules.yaml", "test.yaml", "runbook.md"] {
            if !folder(mode).join(file).exists() {
                missing.push(format!("alerts/{mode}/{file} is missing"));
            }
        }
    }
    let known: BTreeSet<_> = demanded().into_iter().collect();
    for entry in std::fs::read_dir(folder("")).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
        let name = entry.file_name().into_string().unwrap();
        if !known.contains(name.as_str()) {
            missing.push(format!("alerts/{name}: no mode of that name"));
        }
    }
    complain(&missing);
}

#[test]
fn every_metric_and_label_in_a_rule_is_declared() {
    let mut known = declared();
    let every: Vec<_> = present().into_iter().map(|mode| (mode, rules(mode))).collect();
    for rule in every.iter().flat_map(|(_, rules)| &rules.groups).flat_map(|group| &group.rules) {
        if let Some(record) = &rule.record {
            let (_, labels) = names(&rule.expr, &known);
            assert!(known.insert(record.clone(), labels).is_none(), "{record} is recorded twice");
        }
    }
    let mut complaints = Vec::new();
    for (mode, rules) in &every {
        for rule in rules.groups.iter().flat_map(|group| &group.rules) {
            let name = rule.alert.as_ref().or(rule.record.as_ref()).unwrap();
            let (mut wrong, labels) = names(&rule.expr, &known);
            for text in rule.annotations.values() {
                for part in text.split("$labels.").skip(1) {
                    let label: String = part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                    if !labels.contains(&label) {
                        wrong.push(format!("its text has $labels.{label}"));
                    }
                }
            }
            complaints.extend(wrong.into_iter().map(|what| format!("{mode}: {name}: {what}")));
        }
    }
    complain(&complaints);
}

#[test]
fn the_reader_of_expressions_finds_what_is_wrong() {
    let known = declared();
    let wrong = |expression: &str| names(expression, &known).0;
    assert_eq!(
        wrong(r#"sum by (cluster, signal) (headroom_eviction_headroom_ratio{type="hard"} offset 5m) < 0.1"#),
        [""; 0]
    );
    assert_eq!(wrong("rate(headroom_no_such_total[5m]) > 1e3"), ["unknown metric headroom_no_such_total"]);
    assert_eq!(wrong("max by (pod) (headroom_memcg_ids_used)"), ["unknown label pod"]);
    let label = wrong(r#"headroom_memcg_ids_used{signal="up{x}"} and on (instance) up{job="a"}"#);
    assert_eq!(label, ["headroom_memcg_ids_used has no label signal"]);
}

#[test]
fn every_alert_has_its_words_and_its_runbook() {
    let mut complaints = Vec::new();
    let mut folders: BTreeMap<String, &str> = BTreeMap::new();
    for mode in present() {
        let runbook = read(mode, "runbook.md");
        let sections: BTreeMap<&str, &str> =
            runbook.split("\n## ").skip(1).filter_map(|s| s.split_once('\n')).collect();
        let mut say = |what: String| complaints.push(format!("{mode}: {what}"));
        if !runbook.starts_with(&format!("# {mode}: ")) {
            say("runbook.md does not begin with its mode and a title".into());
        }
        let mut alerts = BTreeSet::new();
        for group in rules(mode).groups {
            let recording = group.rules.iter().all(|rule| rule.record.is_some());
            let name = if recording { format!("headroom-{mode}-recording") } else { format!("headroom-{mode}") };
            if group.name != name {
                say(format!("group {} is not called {name}", group.name));
            }
            for rule in group.rules {
                if let Some(record) = &rule.record
                    && !(record.starts_with("instance:headroom_") || record.starts_with("cluster:headroom_"))
                {
                    say(format!("{record}: name of a recording rule"));
                }
                let Some(alert) = rule.alert else { continue };
                if !alert.starts_with("Headroom")
                    || folders.insert(alert.clone(), mode).is_some_and(|other| other != mode)
                {
                    say(format!("{alert}: name"));
                }
                if rule.labels.get("mode").is_none_or(|label| label != mode) {
                    say(format!("{alert}: label mode"));
                }
                let severity = rule.labels.get("severity").map_or("", String::as_str);
                if !["info", "warning", "critical"].contains(&severity) {
                    say(format!("{alert}: severity {severity:?}"));
                }
                for key in ["summary", "description"] {
                    let text = rule.annotations.get(key).map_or("", String::as_str);
                    if text.len() < 25 || (key == "summary" && text.trim().contains('\n')) {
                        say(format!("{alert}: {key} {text:?}"));
                    }
                }
                let url = format!(
                    "https://github.com/headroom-exporter/headroom-exporter/blob/main/alerts/{mode}/runbook.md#{}",
                    alert.to_lowercase()
                );
                if rule.annotations.get("runbook_url") != Some(&url) {
                    say(format!("{alert}: runbook_url is not {url}"));
                }
                match sections.get(alert.as_str()) {
                    None => say(format!("{alert}: no section in runbook.md")),
                    Some(section) => {
                        let mut rest = section.trim_start();
                        for answer in ANSWERS {
                            let own = rest.strip_prefix(&format!("**{answer}** ")).and_then(|r| r.split_once("\n\n"));
                            let Some((text, behind)) = own else {
                                say(format!("{alert}: the runbook does not open with {answer}"));
                                break;
                            };
                            if !(10..=600).contains(&text.len()) {
                                say(format!("{alert}: {answer} is answered in {} characters", text.len()));
                            }
                            rest = behind;
                        }
                        for part in PARTS {
                            if !section.lines().any(|line| line.trim() == format!("### {part}")) {
                                say(format!("{alert}: no {part} in runbook.md"));
                            }
                        }
                    }
                }
                alerts.insert(alert);
            }
        }
        for section in sections.keys().filter(|title| title.starts_with("Headroom") && !alerts.contains(**title)) {
            say(format!("runbook.md has {section}, which is no alert"));
        }
    }
    complain(&complaints);
}

/// The rows of the table at the head of a runbook: alert, what it means, time to failure, who gets it.
fn words(mode: &str) -> Vec<[String; 4]> {
    let runbook = read(mode, "runbook.md");
    let (head, _) = runbook.split_once("\n## ").unwrap_or_else(|| panic!("{mode}: an empty runbook"));
    let row = |line: &str| {
        let cells: Vec<String> = line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
        assert!(cells.iter().all(|cell| !cell.is_empty()), "{mode}/runbook.md: an empty cell: {line}");
        cells.try_into().unwrap_or_else(|_| panic!("{mode}/runbook.md: not four cells: {line}"))
    };
    head.lines().filter(|line| line.starts_with("| [Headroom")).map(row).collect()
}

/// README.md has every alert, with the severities of its rules and the words of its runbook.
#[test]
fn the_table_of_every_alert_is_up_to_date() {
    let mut table =
        String::from("| alert | what it means | severity | time to failure | who gets it |\n|---|---|---|---|---|\n");
    let mut modes = present();
    modes.sort_unstable();
    for mode in modes {
        let mut severities: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut links = Vec::new();
        for rule in rules(mode).groups.into_iter().flat_map(|group| group.rules) {
            let Some(alert) = rule.alert else { continue };
            let link = format!("[{alert}](#{})", alert.to_lowercase());
            severities.entry(link.clone()).or_default().push(rule.labels["severity"].clone());
            if !links.contains(&link) {
                links.push(link);
            }
        }
        let words = words(mode);
        assert_eq!(words.iter().map(|row| &row[0]).collect::<Vec<_>>(), links.iter().collect::<Vec<_>>(), "{mode}");
        for [link, what, time, who] in words {
            let severity = severities[&link].join(", ");
            let link = link.replace("](#", &format!("]({mode}/runbook.md#"));
            let _ = writeln!(table, "| {link} | {what} | {severity} | {time} | {who} |");
        }
    }
    generated::part("alerts/README.md", "every alert", &table);
}

#[test]
fn every_link_of_the_runbooks_leads_somewhere() {
    let mut complaints = Vec::new();
    for mode in present() {
        complaints.extend(links::check(&folder(mode).join("runbook.md")).1);
        if !read(mode, "runbook.md").contains("](../distributions.md)") {
            complaints.push(format!("{mode}: runbook.md does not say where the commands of other distributions are"));
        }
    }
    complaints.extend(["README.md", "distributions.md"].iter().flat_map(|file| links::check(&folder(file)).1));
    complain(&complaints);
}

/// Every distribution has its row wherever the runbooks send people from it.
#[test]
fn every_distribution_has_its_rows() {
    let text = std::fs::read_to_string(folder("distributions.md")).unwrap();
    let tables: Vec<&str> =
        text.split("\n## ").filter(|part| !part.starts_with("What the exporter") && part.contains("|---|")).collect();
    assert_eq!(tables.len(), 3);
    let names = "kubeadm k3s RKE2 MicroK8s k0s kind EKS GKE AKS OpenShift Talos Bottlerocket";
    let missing = |table: &&str| {
        let rows: String = table.lines().filter_map(|line| line.split('|').nth(1)).collect::<Vec<_>>().join(" ");
        names.split(' ').filter(|name| !rows.contains(name)).map(str::to_owned).collect::<Vec<_>>()
    };
    complain(&tables.iter().flat_map(missing).collect::<Vec<_>>());
}

/// The text between the first of these and the next of those.
fn between<'a>(text: &'a str, begin: &str, end: &str) -> &'a str {
    let rest = text.split_once(begin).unwrap_or_else(|| panic!("no {begin}")).1;
    rest.split_once(end).unwrap_or_else(|| panic!("no {end} after {begin}")).0
}

/// Which collectors an outage of the runtime explains is what their modes say.
#[test]
fn an_outage_of_the_runtime_explains_what_needs_it() {
    let text = read("exporter", "rules.yaml");
    let rule = text.split_once("record: instance:headroom_collector_errors:of_outage").unwrap().1;
    let listed = between(rule, "{collector=~\"", "\"");
    let mut needing: Vec<&str> = MODES.iter().filter(|mode| mode.needs_runtime).map(|mode| mode.id).collect();
    needing.sort_unstable();
    generated::file("alerts/exporter/rules.yaml", &text.replace(listed, &needing.join("|")));
}

/// A critical alert hides the warning of the very same thing: whatever tells two of a name apart must be equal.
#[test]
fn a_critical_alert_hides_no_other_things_warning() {
    let mut telling = BTreeSet::new();
    for mode in present() {
        let cases: Cases = serde_saphyr::from_str(&read(mode, "test.yaml")).unwrap();
        let alerts = cases.tests.iter().flat_map(|case| &case.alert_rule_test).flat_map(|check| &check.exp_alerts);
        let labels = alerts.filter_map(|alert| alert["exp_labels"].as_object());
        telling.extend(labels.flat_map(|labels| labels.keys().cloned()));
    }
    let first = ["alertname", "cluster", "instance"];
    telling.retain(|label| !first.contains(&&**label) && !["severity", "mode", "job"].contains(&&**label));
    let mut lines = vec![String::new()];
    for label in first.into_iter().chain(telling.iter().map(String::as_str)) {
        if lines.last().is_some_and(|line| line.len() + label.len() > 100) {
            lines.push(String::new());
        }
        lines.last_mut().unwrap().push_str(&format!("{label}, "));
    }
    let generated = lines.join("\n            ").replace(" \n", "\n");
    let text = std::fs::read_to_string(folder("alertmanager.yaml")).unwrap();
    let listed = format!("alertname,{}", between(&text, "equal: [alertname,", "]"));
    generated::file("alerts/alertmanager.yaml", &text.replace(&listed, generated.trim_end_matches(", ")));
}

/// The alerts that these documents name are there.
#[test]
fn every_alert_that_is_named_exists() {
    let alerts = present().into_iter().flat_map(|mode| rules(mode).groups).flat_map(|group| group.rules);
    let alerts: BTreeSet<String> = alerts.filter_map(|rule| rule.alert).collect();
    let texts = ["README.md", "alertmanager.yaml"].map(|file| std::fs::read_to_string(folder(file)).unwrap());
    let text = texts.concat().replace("#headroom", "");
    let named = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| word.starts_with("Headroom"));
    let unknown = named.filter(|name| *name != "Headroom" && !alerts.contains(*name)).map(str::to_owned);
    complain(&unknown.collect::<Vec<_>>());
}

/// What labels hold on the nodes that people have, in the place of the short values of the cases.
const REALISTIC: [(&str, &str); 16] = [
    ("instance", "ip-10-0-123-45.eu-central-1.compute.internal"),
    ("namespace", "payments"),
    ("pod", "checkout-api-7d9c8b6f5-x2k4q"),
    ("pod_uid", "3ae87ca0-50dc-450d-ad28-494da581d3e1"),
    ("volume", "shared-memory"),
    ("comm", "containerd-shim"),
    ("pid", "4194303"),
    ("uid", "1000730000"),
    ("owner", "kube-controller"),
    ("peer", "10.100.200.101:6443"),
    ("signal", "allocatableMemory.available"),
    ("condition", "NetworkUnavailable"),
    ("collector", "apiserver_connection"),
    ("reason", "malformed"),
    ("socket", "/run/k3s/containerd/containerd.sock"),
    ("interface", "vlan-storage100"),
];
/// What a lock screen shows of a notification.
const SUMMARY: usize = 120;
/// What one screen of a phone holds of a description.
const DESCRIPTION: usize = 650;

/// The text of a case with what its labels are on real nodes. Only whole words are such a value.
fn realistic(text: &str, labels: &serde_json::Map<String, serde_json::Value>) -> String {
    let mut values: Vec<(&str, &str)> = REALISTIC
        .iter()
        .filter_map(|(label, long)| Some((labels.get(*label)?.as_str().filter(|value| !value.is_empty())?, *long)))
        .collect();
    values.sort_by_key(|(value, _)| std::cmp::Reverse(value.len()));
    let (mut out, mut rest) = (String::new(), text);
    while let Some(next) = rest.chars().next() {
        let begins = !out.ends_with(|c: char| c.is_alphanumeric());
        let value = values.iter().find(|(value, _)| {
            let behind = rest.strip_prefix(value);
            begins && behind.is_some_and(|behind| !behind.starts_with(|c: char| c.is_alphanumeric()))
        });
        let (here, long) = value.map_or((next.len_utf8(), &rest[..next.len_utf8()]), |(v, long)| (v.len(), *long));
        out.push_str(long);
        rest = &rest[here..];
    }
    out
}

/// Every text as it is rendered: none too long for the screen that it is read on, and no template left in it.
#[test]
fn every_text_fits_the_screen_that_it_is_read_on() {
    let mut complaints = Vec::new();
    let mut read_texts = 0;
    for mode in present() {
        let cases: Cases = serde_saphyr::from_str(&read(mode, "test.yaml")).unwrap();
        for check in cases.tests.iter().flat_map(|case| &case.alert_rule_test) {
            for alert in &check.exp_alerts {
                let labels = alert["exp_labels"].as_object().unwrap();
                for (key, most) in [("summary", SUMMARY), ("description", DESCRIPTION)] {
                    let text = alert["exp_annotations"][key].as_str().unwrap_or_default();
                    let long = realistic(text, labels);
                    read_texts += 1;
                    let mut say = |what: &str| complaints.push(format!("{}: {what}: {long}", check.alertname));
                    if long.chars().count() > most {
                        say(&format!("{key} of {} characters", long.chars().count()));
                    }
                    for sign in ["{{", "}}", "<no value>", "%!", "minus sign", "  "] {
                        if text.contains(sign) {
                            say(&format!("{key} has {sign:?}"));
                        }
                    }
                    if key == "description" && !text.ends_with('.') {
                        say("the description does not end as a sentence does");
                    }
                    // What a screen shows of a description is its first sentence.
                    let first = long.split(". ").next().unwrap().split(": ").next().unwrap();
                    if key == "description" && first.chars().count() > 2 * SUMMARY {
                        say(&format!("a first sentence of {} characters", first.chars().count()));
                    }
                }
            }
        }
    }
    assert!(read_texts > 300, "{read_texts} texts");
    complaints.sort();
    complaints.dedup();
    complain(&complaints);
}

#[test]
fn short_labels_of_cases_become_those_of_real_nodes() {
    let labels = serde_json::json!({"instance": "node-a", "pid": "7", "comm": "app"});
    let text = realistic("node-a: app (7) uses 7.7% of its apps", labels.as_object().unwrap());
    let instance = REALISTIC[0].1;
    assert_eq!(text, format!("{instance}: containerd-shim (4194303) uses 4194303.4194303% of its apps"));
}

/// In one case of test.yaml: does the alert fire, is it seen not yet firing before that, is it seen silent where it
/// never fires?
#[test]
fn every_alert_has_a_case_that_fires_one_not_yet_and_one_silent() {
    let mut complaints = Vec::new();
    for mode in present() {
        let cases: Cases = serde_saphyr::from_str(&read(mode, "test.yaml"))
            .unwrap_or_else(|error| panic!("{mode}/test.yaml: {error}"));
        // Severities too: the critical half of an alert wants its own case.
        let mut wanted: BTreeSet<(String, String)> = BTreeSet::new();
        for rule in rules(mode).groups.into_iter().flat_map(|group| group.rules) {
            if let Some(alert) = rule.alert {
                wanted.insert((alert, rule.labels["severity"].clone()));
            }
        }
        for (alert, severity) in wanted {
            let (mut fires, mut not_yet, mut silent) = (false, false, false);
            for case in &cases.tests {
                let checks: Vec<_> = case.alert_rule_test.iter().filter(|check| check.alertname == alert).collect();
                let first =
                    checks.iter().filter(|check| !check.exp_alerts.is_empty()).map(|c| seconds(&c.eval_time)).min();
                let mut empty = checks.iter().filter(|check| check.exp_alerts.is_empty());
                fires |=
                    checks.iter().flat_map(|check| &check.exp_alerts).any(|a| a["exp_labels"]["severity"] == severity);
                match first {
                    Some(first) => not_yet |= empty.any(|check| seconds(&check.eval_time) < first),
                    None => silent |= empty.next().is_some(),
                }
            }
            for (what, seen) in [("that fires", fires), ("not yet firing", not_yet), ("silent", silent)] {
                if !seen {
                    complaints.push(format!("{mode}: {alert} ({severity}): no case {what} in test.yaml"));
                }
            }
        }
    }
    complain(&complaints);
}
