//! `check-config` against what a real kubelet ran with, against a file for each trap, and against input that is none.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use headroom::check_config::TRAPS;
use serde_json::Value;

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn exporter(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_headroom-exporter"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).arg("check-config").args(arguments).output().unwrap()
}

fn json(arguments: &[&str]) -> (Value, i32) {
    let output = exporter(&[&["--json"], arguments].concat());
    let value: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(value["exit_code"], output.status.code().unwrap());
    (value, output.status.code().unwrap())
}

/// The folders of a fixture with the arguments that each stands for.
fn cases(under: &str) -> Vec<(String, PathBuf, Vec<String>)> {
    let mut cases = Vec::new();
    for case in
        std::fs::read_dir(project(under)).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir())
    {
        let shown = |path: PathBuf| path.to_str().unwrap().to_owned();
        let mut arguments = Vec::new();
        if case.join("conf.d").exists() {
            arguments.push(format!("--kubelet-config-dir={}", shown(case.join("conf.d"))));
        }
        if case.join("config.yaml").exists() {
            arguments.push(shown(case.join("config.yaml")));
        }
        arguments.push("--".to_owned());
        let flags = std::fs::read_to_string(case.join("flags.txt")).unwrap_or_default();
        arguments.extend(flags.lines().filter(|line| !line.is_empty()).map(str::to_owned));
        cases.push((case.file_name().unwrap().to_str().unwrap().to_owned(), case, arguments));
    }
    cases
}

fn run(arguments: &[String]) -> (Value, i32) {
    json(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn equal_to_what_a_real_kubelet_ran_with() {
    let mut seen = 0;
    for (name, case, arguments) in cases("tests/fixtures/eviction/configz-matrix") {
        let (value, code) = run(&arguments);
        let check = &value["checks"][0];
        seen += 1;
        let Ok(configz) = std::fs::read_to_string(case.join("configz.json")) else {
            assert_eq!((check["starts"].as_bool(), code), (Some(false), 2), "{name}");
            assert_eq!(check["thresholds"], Value::Null, "{name}: nothing is made up");
            continue;
        };
        let theirs = &serde_json::from_str::<Value>(&configz).unwrap()["kubeletconfig"];
        let rows = check["thresholds"].as_array().unwrap();
        let ours = |of: &str| -> serde_json::Map<String, Value> {
            let entry = |row: &Value| Some((row["signal"].as_str()?.to_owned(), row[of].get("value")?.clone()));
            rows.iter().filter_map(entry).collect()
        };
        for (of, field) in
            [("hard", "evictionHard"), ("soft", "evictionSoft"), ("minimum_reclaim", "evictionMinimumReclaim")]
        {
            assert_eq!(ours(of), theirs[field].as_object().cloned().unwrap_or_default(), "{name} {field}");
        }
        let graces = rows.iter().filter(|row| !row["grace_period"].is_null()).count();
        assert_eq!(graces, theirs["evictionSoftGracePeriod"].as_object().map_or(0, serde_json::Map::len), "{name}");
        assert_eq!(check["image_gc"]["high_percent"], theirs["imageGCHighThresholdPercent"], "{name}");
        assert_eq!(check["image_gc"]["low_percent"], theirs["imageGCLowThresholdPercent"], "{name}");
    }
    assert_eq!(seen, 11, "every case of the matrix");
}

#[test]
fn each_trap_has_its_file() {
    let mut found = BTreeSet::new();
    for (name, case, arguments) in cases("tests/fixtures/check-config") {
        let (value, code) = run(&arguments);
        let findings = value["checks"][0]["findings"].as_array().unwrap();
        let ids: BTreeSet<&str> = findings.iter().map(|finding| finding["id"].as_str().unwrap()).collect();
        let expected = std::fs::read_to_string(case.join("expected.txt")).unwrap();
        assert_eq!(ids, expected.lines().collect(), "{name}: {findings:#?}");
        let worst = findings.iter().map(|finding| finding["severity"].as_str().unwrap());
        let worst =
            worst.map(|severity| ["note", "warning", "error"].iter().position(|one| *one == severity).unwrap()).max();
        assert_eq!(code, worst.unwrap_or(0) as i32, "{name}");
        found.extend(ids.iter().map(|id| (*id).to_owned()));
    }
    let document = std::fs::read_to_string(project("docs/check-config.md")).unwrap();
    for (id, severity) in TRAPS {
        assert!(found.contains(id) || id == "unreadable", "{id} has no file");
        assert!(document.contains(&format!("| `{id}` | {} |", severity.as_str())), "{id} is not documented");
    }
}

#[test]
fn findings_name_their_line_and_what_to_write() {
    let at = |case: &str| {
        let (value, _) = json(&[&format!("tests/fixtures/check-config/{case}/config.yaml")]);
        value["checks"][0]["findings"][0].clone()
    };
    let unit = at("unit");
    assert_eq!((&unit["line"], &unit["instead"]), (&Value::from(4), &Value::from("memory.available: \"100Mi\"")));
    assert_eq!(unit["key"], "evictionHard.memory.available");
    assert_eq!(at("partial-map")["line"], 3);
    assert!(at("partial-map")["what"].as_str().unwrap().contains("imagefs.inodesFree (default 5%)"));
    assert!(at("loose-yaml")["what"].as_str().unwrap().contains("duplicate"));
}

#[test]
fn figures_are_the_kubelets_to_the_byte() {
    let capacity = "--capacity=nodefs=100GiB,imagefs=500Gi,memory=64Gi,pids=32768,nodefs-inodes=1000";
    let (value, _) = json(&[capacity, "tests/fixtures/check-config/nothing-to-say/config.yaml"]);
    let rows = value["checks"][0]["thresholds"].as_array().unwrap();
    let figure = |signal: &str| rows.iter().find(|row| row["signal"] == signal).unwrap()["hard"]["figure"].clone();
    assert_eq!(figure("nodefs.available"), 10_737_418_400_u64);
    assert_eq!(figure("imagefs.available"), 80_530_640_000_u64);
    assert_eq!(figure("memory.available"), 104_857_600);
    assert_eq!(figure("nodefs.inodesFree"), 50);
    assert_eq!(figure("imagefs.inodesFree"), Value::Null, "no capacity was given");
}

#[test]
fn of_another_version() {
    let of = |version: &str, file: &str| {
        let (value, _) = json(&[&format!("--kubelet-version={version}"), file]);
        value["checks"][0].clone()
    };
    let default = |version: &str| {
        let check = of(version, "tests/fixtures/eviction/configz-matrix/no-eviction-in-config/config.yaml");
        let rows = check["thresholds"].as_array().unwrap().clone();
        rows.into_iter().find(|row| row["signal"] == "imagefs.inodesFree").unwrap()["hard"]["value"].clone()
    };
    assert_eq!((default("v1.29.14"), default("1.30")), (Value::Null, Value::from("5%")));
    let merge = "tests/fixtures/eviction/configz-matrix/partial-map-merge/config.yaml";
    let finding = of("1.32.13", merge)["findings"][0]["what"].clone();
    let text = finding.as_str().unwrap();
    assert!(text.contains("1.32.13 does not know the field mergeDefaultEvictionSettings"), "{text}");
    let output = exporter(&["check-config", "--kubelet-version=2.0", merge]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("v1.28.15"), "an example of what is expected");
}

#[test]
fn sources_are_named() {
    let source = |arguments: &[String], signal: &str| {
        let (value, _) = run(arguments);
        let rows = value["checks"][0]["thresholds"].as_array().unwrap().clone();
        rows.iter().find(|row| row["signal"] == signal).unwrap()["hard"]["source"]["kind"].as_str().map(str::to_owned)
    };
    let matrix = cases("tests/fixtures/eviction/configz-matrix");
    let of = |name: &str| matrix.iter().find(|(case, _, _)| case == name).unwrap().2.clone();
    assert_eq!(source(&of("partial-map-merge"), "memory.available").unwrap(), "file");
    assert_eq!(source(&of("partial-map-merge"), "nodefs.available").unwrap(), "default");
    assert_eq!(source(&of("dropin-partial-over-defaults"), "nodefs.available").unwrap(), "dropin");
    assert_eq!(source(&of("dropin-partial-over-defaults"), "memory.available").unwrap(), "default");
    assert_eq!(source(&of("flag-replaces-map"), "memory.available").unwrap(), "flag");
    assert_eq!(source(&of("flag-replaces-map"), "nodefs.available"), None);
}

/// Every path of a field in a value: `checks[].file`.
fn paths(value: &Value, at: &str, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                if !value.is_array() {
                    into.insert(path.clone());
                }
                paths(value, &path, into);
            }
        }
        Value::Array(items) => {
            into.insert(format!("{at}[]"));
            items.iter().for_each(|item| paths(item, &format!("{at}[]"), into));
        }
        _ => {}
    }
}

#[test]
fn the_documented_fields_are_those_of_the_output() {
    let document = std::fs::read_to_string(project("docs/check-config.md")).unwrap();
    let table = document.split("## JSON").nth(1).unwrap();
    let documented: BTreeSet<String> =
        table.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split('`').next()?.to_owned())).collect();
    let mut found = BTreeSet::new();
    for under in ["tests/fixtures/check-config", "tests/fixtures/eviction/configz-matrix"] {
        for (_, _, arguments) in cases(under) {
            paths(&run(&arguments).0, "", &mut found);
        }
    }
    found.remove("checks[].thresholds");
    // "Fields as in `hard`".
    let alike = |path: &str| {
        let path = path.replace("[].soft.", "[].hard.").replace("[].minimum_reclaim.", "[].hard.");
        path.replace("[].grace_period.source.", "[].hard.source.")
    };
    let found: BTreeSet<String> = found.iter().map(|path| alike(path)).collect();
    assert_eq!(found, documented);
}

#[test]
fn the_example_in_the_document_is_what_it_prints() {
    let document = std::fs::read_to_string(project("docs/check-config.md")).unwrap();
    let block = document.split("```\n$ headroom-exporter check-config ").nth(1).unwrap().split("```").next().unwrap();
    let (arguments, shown) = block.split_once('\n').unwrap();
    let output = exporter(&arguments.split_whitespace().collect::<Vec<_>>());
    assert_eq!(String::from_utf8_lossy(&output.stdout), shown);
}

#[test]
fn input_that_is_none_is_one_clear_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name).to_str().unwrap().to_owned()
    };
    let huge = dir.path().join("huge.yaml");
    std::fs::File::create(&huge).unwrap().set_len(100 << 20).unwrap();
    let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
    for (path, words) in [
        (file("empty.yaml", ""), "is empty"),
        (file("bad.yaml", "a: [1,"), "not YAML"),
        (file("kind.yaml", &head.replace("KubeletConfiguration", "Pod")), "kind \"Pod\""),
        (file("version.yaml", &head.replace("v1beta1", "v1")), "kubelet.config.k8s.io/v1\""),
        (dir.path().to_str().unwrap().to_owned(), "directory"),
        (dir.path().join("none.yaml").to_str().unwrap().to_owned(), "No such file"),
        (huge.to_str().unwrap().to_owned(), "larger than"),
        ("/dev/zero".to_owned(), "not a file"),
    ] {
        let (value, code) = json(&[&path]);
        let findings = value["checks"][0]["findings"].as_array().unwrap();
        let what = findings[0]["what"].as_str().unwrap();
        assert_eq!((findings.len(), code), (1, 2), "{path}: {findings:?}");
        assert!(what.contains(words) && what.contains(&path) && !what.contains('\n'), "{path}: {what}");
    }
    // One bad file does not hide the others.
    let (value, code) = json(&["tests/fixtures/check-config/nothing-to-say/config.yaml", "/none.yaml"]);
    assert_eq!((value["checks"].as_array().unwrap().len(), code), (2, 2));
    assert_eq!(value["checks"][0]["starts"], true);
}

#[test]
fn wrong_options_are_one_line() {
    for (arguments, words) in [
        (["--capacity=disk=1Gi", "x"], "expected NAME=QUANTITY"),
        (["--capacity=nodefs=lots", "x"], "not a quantity"),
        (["--capacity=nodefs=0", "x"], "more than nothing"),
        (["--color=red", "x"], "auto, always, never"),
    ] {
        let output = exporter(&arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), error.lines().count()), (Some(2), 1), "{error}");
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn colours_only_where_they_are_wanted() {
    let file = "tests/fixtures/check-config/partial-map/config.yaml";
    let escapes = |arguments: &[&str]| exporter(arguments).stdout.contains(&0x1b);
    assert!(!escapes(&[file]), "a pipe is no terminal");
    assert!(escapes(&["--color=always", file]) && !escapes(&["--color=never", file]));
}
