//! `docs/quickstart.md`, plain Prometheus: its commands, as they stand there, in a network of their own where nobody
//! else has the ports. Only intervals are shortened.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::common;
use crate::common::netns::{self, Namespace};
use crate::common::prometheus::Release;

/// The shell blocks of one section.
fn commands(section: &str) -> Vec<String> {
    let text = fs::read_to_string("docs/quickstart.md").unwrap();
    let text = text.split("\n## ").find_map(|part| part.strip_prefix(&format!("{section}\n"))).expect("the section");
    let blocks = text.split("```sh\n").skip(1).map(|rest| rest.split("\n```").next().unwrap().to_owned());
    blocks.collect()
}

/// What an unpacked release has.
fn unpack(folder: &Path) {
    symlink(env!("CARGO_BIN_EXE_headroom-exporter"), folder.join("headroom-exporter")).unwrap();
    for entry in fs::read_dir("alerts").unwrap() {
        let entry = entry.unwrap();
        if let Ok(rules) = fs::read_to_string(entry.path().join("rules.yaml")) {
            let to = folder.join("alerts").join(entry.file_name());
            fs::create_dir_all(&to).unwrap();
            // Two minutes and the exporter's other times become seconds; thresholds and the other modes stay.
            let soon = if entry.file_name() == "exporter" { rules.replace("for: 2m", "for: 2s") } else { rules };
            fs::write(to.join("rules.yaml"), soon).unwrap();
        }
    }
}

const PROGRAMS: [&str; 4] = ["prometheus", "promtool", "prometheus-alertmanager", "amtool"];

/// Debian's alertmanager has another name.
fn programs(release: Release, folder: &Path) -> PathBuf {
    let bin = folder.join("bin");
    fs::create_dir(&bin).unwrap();
    for program in PROGRAMS {
        let path = common::shell(&format!("command -v {}", release.program(program).display()));
        symlink(path.trim_end(), bin.join(program.trim_start_matches("prometheus-"))).unwrap();
    }
    bin
}

#[test]
fn plain_prometheus_2_from_zero_to_the_first_alert_and_back() {
    from_zero_to_the_first_alert_and_back(Release::Installed);
}

#[test]
fn plain_prometheus_3_from_zero_to_the_first_alert_and_back() {
    from_zero_to_the_first_alert_and_back(Release::Three);
}

fn from_zero_to_the_first_alert_and_back(release: Release) {
    if let Some(missing) = netns::lacking() {
        skip!("no {missing} here");
    }
    for program in ["curl", "bash"] {
        if !common::has(program) {
            skip!("no {program} here");
        }
    }
    if !release.runs(&PROGRAMS) {
        return;
    }
    let blocks = commands("Plain Prometheus");
    assert_eq!(blocks.len(), 5, "{blocks:#?}");
    let folder = tempfile::tempdir().unwrap();
    unpack(folder.path());
    let bin = programs(release, folder.path());

    // One shell for all, as a reader has one. What it left running ends with it.
    let mut script = format!("set -euo pipefail\ntrap 'kill $(jobs -p)' EXIT\ncd {}\n", folder.path().display());
    for (number, block) in blocks.iter().enumerate() {
        let soon = block
            .replace("scrape_interval: 15s", "scrape_interval: 1s")
            .replace("evaluation_interval: 15s", "evaluation_interval: 1s")
            .replace("group_wait: 10s", "group_wait: 1s");
        script.push_str(&format!("{soon}\necho '# end of step {}'\n", number + 1));
    }
    assert_eq!(script.matches("_interval: 1s").count(), 2, "{script}");
    let namespace = Namespace::new();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let output = namespace
        .command("timeout")
        .args(["--kill-after=5", "120", "bash", "-c", &script])
        .env("PATH", path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let log = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    assert!(
        output.status.success(),
        "{said}\n{errors}\n{}\n{}\n{}",
        log("prometheus.log"),
        log("alertmanager.log"),
        log("exporter.log")
    );
    assert_eq!(said.matches("# end of step").count(), 5, "{said}\n{errors}");
    let steps: Vec<&str> = said.split("# end of step").collect();
    assert!(steps[0].contains("collector=\"eviction\",outcome=\""), "{said}");
    assert!(steps[3].contains("HeadroomExporterDown"), "the first alert: {said}");
}
