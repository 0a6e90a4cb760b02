//! Whoever adds a mode touches its own files and few others: `CONTRIBUTING.md` names them. What else has something of
//! every mode follows from `MODES` or from the folders of the modes.
#![allow(clippy::disallowed_methods, reason = "tests look at the project with their own eyes")]

use std::collections::BTreeSet;
use std::path::Path;

use headroom::modes::MODES;

use crate::common::board::project;

/// What somebody edits who adds a mode, beside what is the mode's own.
const TOUCHED: [&str; 5] =
    ["src/modes.rs", "docs/security.md", "tests/kernel/main.rs", "tests/replay/incidents.rs", "docs/detection.md"];

/// Files and folders that a test writes, as a whole or just there where they name the modes.
const GENERATED: [&str; 8] = [
    "alerts/exporter/rules.yaml",
    "dashboards/fleet.json",
    "dashboards/node.json",
    "deploy/helm/headroom-exporter/values.schema.json",
    "deploy/kustomize/prometheus-operator/rules.yaml",
    "docs/flags.md",
    "docs/metrics.md",
    "docs/security-matrix.md",
];

/// What names many modes and needs no further one.
const TOLD: [(&str, &str); 7] = [
    ("CHANGELOG.md", "what has become of each"),
    ("alerts/exporter/test.yaml", "cases with one mode or another"),
    ("benches/pods.rs", "what is measured together"),
    ("docs/doctor.md", "an example of a report"),
    ("docs/performance.md", "what was measured of some"),
    ("src/drill.rs", "whose failure each drill makes; a drill is a change of its own"),
    ("tests/deploy/manifests/rights.rs", "what each right of the cluster is for"),
];

/// Every file of the project that a person wrote, with its path from the project on.
fn written(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let path = entry.path();
        let name = path.strip_prefix(project("")).unwrap().to_str().unwrap().to_owned();
        let recorded = name == "tests/fixtures/node" || GENERATED.contains(&name.as_str());
        if ["target", ".git", "Cargo.lock"].contains(&name.as_str()) || recorded {
            continue;
        }
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            written(&path, found);
        } else if kind.is_file()
            && let Ok(text) = std::fs::read_to_string(&path)
        {
            found.push((name, without_generated_parts(&text)));
        }
    }
}

fn without_generated_parts(text: &str) -> String {
    let Some((head, rest)) = text.split_once(": generated from ") else { return text.to_owned() };
    let Some((_, tail)) = rest.split_once("<!-- end of ") else { return text.to_owned() };
    head.to_owned() + &without_generated_parts(tail)
}

/// The files of a mode alone are named as it is, or lie in a folder of its name.
fn is_own(file: &str, mode: &str) -> bool {
    file.split('/').any(|part| part.split('.').next() == Some(mode))
}

fn names(text: &str, mode: &str) -> bool {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == mode)
}

#[test]
fn a_new_mode_touches_five_files_beside_its_own() {
    let mut files = Vec::new();
    written(&project(""), &mut files);
    assert!(files.len() > 400, "{} files", files.len());
    // Who names more than half of the modes has a list of them.
    let is_list = |(file, text): &&(String, String)| {
        2 * MODES.iter().filter(|mode| !is_own(file, mode.id) && names(text, mode.id)).count() > MODES.len()
    };
    let lists: BTreeSet<&str> = files.iter().filter(is_list).map(|(file, _)| file.as_str()).collect();
    let told = TOLD.map(|(file, _)| file);
    let more: Vec<_> = lists.iter().filter(|file| !TOUCHED.contains(file) && !told.contains(file)).collect();
    assert!(more.is_empty(), "a list of modes by hand, which whoever adds one would have to find: {more:?}");
    assert!(told.iter().all(|file| lists.contains(file)), "no longer a list of modes: {told:?}, of {lists:?}");
    let contributing = std::fs::read_to_string(project("CONTRIBUTING.md")).unwrap();
    for file in TOUCHED {
        assert!(project(file).exists() && contributing.contains(&format!("`{file}`")), "{file}");
    }
}

#[test]
fn a_file_of_a_mode_is_its_own() {
    for (file, own) in [
        ("src/modes/cni_leak.rs", true),
        ("src/modes/cni_leak/assess.rs", true),
        ("tests/fixtures/cni_leak/failing.prom", true),
        ("docs/cni.md", false),
    ] {
        assert_eq!(is_own(file, "cni_leak"), own, "{file}");
    }
    assert!(names("`cni_leak`: a", "cni_leak") && !names("headroom_cni_leak_total", "cni_leak"));
    let text = "a <!-- x: generated from y -->\ncni_leak\n<!-- end of x -->\nb\n";
    assert_eq!(without_generated_parts(text), "a <!-- xx -->\nb\n");
}
