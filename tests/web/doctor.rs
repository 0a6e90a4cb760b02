//! `headroom-exporter doctor` on this machine, as a person and as a program would read it.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use headroom::modes::MODES;
use serde_json::Value;

use crate::common;
use crate::common::hungry::Hungry;

/// Nobody's runtime, nobody's apiserver: what the machine has of either must not decide a test.
const ALONE: [&str; 4] = ["doctor", "--no-runtime", "--apiserver.url=off", "--kubelet.url=off"];

struct KubeletInputs {
    code: i32,
    out: String,
    err: String,
}

fn doctor(arguments: &[&str]) -> KubeletInputs {
    let mut command = Command::new(env!("CARGO_BIN_EXE_headroom-exporter"));
    let output = command.args(ALONE).args(arguments).stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    KubeletInputs { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

fn json(arguments: &[&str]) -> (Value, KubeletInputs) {
    let told = doctor(&[arguments, &["--json"]].concat());
    let value = serde_json::from_str(&told.out).unwrap_or_else(|error| panic!("{error}: {}{}", told.out, told.err));
    (value, told)
}

#[test]
fn each_mode_has_its_line_and_the_exit_code_is_the_worst_verdict() {
    alone!();
    let (report, told) = json(&["--for=1s"]);
    let modes: BTreeSet<&str> =
        report["modes"].as_array().unwrap().iter().map(|mode| mode["mode"].as_str().unwrap()).collect();
    assert_eq!(modes, MODES.iter().map(|mode| mode.id).collect());
    let rank = |mode: &Value| match mode["verdict"].as_str().unwrap() {
        "ok" => 0,
        "cannot_tell" | "watch" => 1,
        "act_now" => 2,
        other => panic!("{other}"),
    };
    let worst = report["modes"].as_array().unwrap().iter().map(rank).max().unwrap();
    assert_eq!(told.code, worst, "{}", told.out);
    assert_eq!(report["exit_code"], worst);
    assert_eq!(told.err, "", "nothing but the report");

    let told = doctor(&["--for=1s"]);
    for mode in MODES {
        let lines = told.out.lines().filter(|line| line.split_whitespace().any(|word| word == mode.id));
        assert!(lines.clone().count() >= 1, "{} has no line:\n{}", mode.id, told.out);
    }
    assert!(
        !told.out.contains('\x1b') && told.err.is_empty(),
        "no colour and no progress where no terminal is: {told:?}",
        told = told.out
    );
    assert!(
        told.out.lines().all(|line| line.chars().count() <= 110 || line.trim_start().starts_with(['$', 'h'])),
        "{}",
        told.out
    );
    assert!(doctor(&["--for=1s", "--color=always"]).out.contains("\x1b["));
}

#[test]
fn a_process_near_its_limit_is_found_with_its_evidence_and_what_to_do() {
    alone!();
    if !common::has("python3") {
        skip!("python3 is not installed");
    }
    let hungry = Hungry::new();
    let pid = hungry.0.id().to_string();
    let (report, told) = json(&["--for=1s", "--mode=open_files"]);
    assert_eq!(told.code, 2, "{}", told.out);
    let mode = &report["modes"][0];
    let finding = mode["findings"].as_array().unwrap().iter().find(|finding| finding["labels"]["pid"] == *pid).unwrap();
    assert_eq!(
        (finding["alert"].as_str(), finding["severity"].as_str()),
        (Some("HeadroomProcessNearFdLimit"), Some("critical"))
    );
    assert_eq!((finding["verdict"].as_str(), mode["verdict"].as_str()), (Some("act_now"), Some("act_now")));
    // The witness.
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as f64;
    let evidence = finding["evidence"].as_array().unwrap();
    let of = |name: &str| {
        let line = evidence.iter().find(|line| line["series"].as_str().unwrap().starts_with(&format!("{name}{{")));
        line.unwrap_or_else(|| panic!("{name} is not among {evidence:?}"))["value"].as_f64().unwrap()
    };
    assert_eq!((of("headroom_process_open_fds"), of("headroom_process_fd_limit")), (open, 300.0));
    assert_eq!(finding["value"].as_f64().unwrap(), open / 300.0);
    assert_eq!(finding["holds_for_seconds"], 120.0);
    assert!(!finding["next"].as_array().unwrap().is_empty() && !finding["commands"].as_array().unwrap().is_empty());

    let text = doctor(&["--for=1s", "--mode=open_files"]).out;
    for part in
        ["ACT NOW", "HeadroomProcessNearFdLimit (critical)", &format!("pid=\"{pid}\""), "Next", "Look", "runbook.md#"]
    {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

#[test]
fn an_apiserver_that_refuses_is_reported_within_the_time() {
    alone!();
    // Port 9 of this machine: nobody listens there, so each connection is refused at once.
    let mut command = Command::new(env!("CARGO_BIN_EXE_headroom-exporter"));
    let arguments =
        ["doctor", "--no-runtime", "--kubelet.url=off", "--mode=apiserver_connection", "--json", "--for=4s"];
    let apiserver = ["--apiserver.url=https://127.0.0.1:9", "--apiserver.insecure-skip-verify"];
    let output = command.args(arguments).args(apiserver).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let alerts: Vec<&Value> =
        report["modes"][0]["findings"].as_array().unwrap().iter().map(|found| &found["alert"]).collect();
    assert!(alerts.iter().any(|alert| **alert == "HeadroomApiserverUnreachable"), "{report:#}");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_wrong_mode_is_one_clear_line() {
    let told = doctor(&["--mode=cpu"]);
    assert_eq!((told.code, &*told.out), (2, ""));
    assert!(
        told.err.contains("cpu") && told.err.contains("cgroup_leak") && told.err.trim().lines().count() == 1,
        "{}",
        told.err
    );
}

/// The table of fields in docs/doctor.md, and the fields of a real report.
#[test]
fn every_field_is_documented_and_no_other() {
    alone!();
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/doctor.md")).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let documented: BTreeSet<String> =
        rows.map(|(field, _)| field.to_owned()).filter(|field| !field.starts_with("--")).collect();
    let hungry = common::has("python3").then(Hungry::new);
    let (report, _) = json(&["--for=1s"]);
    let mut found = BTreeSet::new();
    fields(&report, "", &mut found);
    if hungry.is_none() {
        skip!("python3 is not installed: no finding, so no fields of one");
    }
    assert_eq!(documented, found);
}

fn fields(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                found.insert(if value.is_array() { format!("{path}[]") } else { path.clone() });
                if name != "labels" {
                    fields(value, &if value.is_array() { format!("{path}[]") } else { path }, found);
                }
            }
        }
        Value::Array(array) => array.iter().for_each(|value| fields(value, path, found)),
        _ => {}
    }
}
