//! Dependencies point one way; this is the compiler for that rule.
#![allow(clippy::disallowed_methods, reason = "tests look at the source with their own eyes")]

use std::path::{Path, PathBuf};

/// Modules from the leaves up, and what each may name besides those before it on its own line.
const MAY_USE: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("metric", &["error"]),
    ("host", &["error"]),
    ("single_flight", &["host"]),
    ("client", &["host", "error"]),
    ("kubelet", &["client", "host", "error"]),
    ("apiserver", &["client", "kubelet", "host", "error"]),
    ("runtime", &["client", "kubelet", "host", "error"]),
    ("modes", &["apiserver", "runtime", "kubelet", "host", "metric", "error"]),
    ("probes", &["modes", "host", "error"]),
    ("scrape", &["modes", "host", "metric", "error"]),
    ("exposition", &["metric"]),
    ("self_metrics", &["metric"]),
    ("verdict", &["metric"]),
    ("report", &["verdict", "scrape", "modes", "self_metrics", "metric"]),
    (
        "http",
        &[
            "report",
            "verdict",
            "scrape",
            "exposition",
            "modes",
            "apiserver",
            "client",
            "kubelet",
            "host",
            "self_metrics",
            "metric",
            "error",
        ],
    ),
    ("check_config", &["kubelet", "host", "error"]),
    ("doctor", &["report", "verdict", "scrape", "probes", "modes", "host", "self_metrics"]),
    ("config", &["doctor", "check_config", "http", "modes", "apiserver", "runtime", "kubelet", "host", "self_metrics"]),
    // Makes failures for the binary headroom-drill, so it writes; the exporter knows nothing of it.
    ("drill", &["host", "error"]),
    ("catalog", &["config", "http", "modes", "scrape", "self_metrics", "metric"]),
];

fn sources(module: &str) -> Vec<PathBuf> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![src.join(format!("{module}.rs"))];
    let mut folders = vec![src.join(module)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files
}

#[test]
fn dependencies_point_one_way() {
    for (module, allowed) in MAY_USE {
        for file in sources(module) {
            let text = std::fs::read_to_string(&file).unwrap();
            // Unit tests may look further: only the code above them counts.
            let code = text.split("#[cfg(test)]").next().unwrap();
            let code: String = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
            for (other, _) in MAY_USE {
                let named = code.contains(&format!("crate::{other}")) || names_in_braces(&code, other);
                assert!(!named || other == module || allowed.contains(other), "{}: uses {other}", file.display());
            }
            let client = code.contains("prometheus_client");
            assert!(!client || *module == "exposition", "{}: uses prometheus_client", file.display());
        }
    }
}

/// `use crate::{about, http};`
fn names_in_braces(code: &str, module: &str) -> bool {
    code.split("use crate::{").skip(1).any(|rest| {
        let list = rest.split(';').next().unwrap();
        list.split([',', '{', '}', ':']).any(|name| name.trim() == module)
    })
}

#[test]
fn every_module_is_in_the_table() {
    let lib = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let modules = lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    for module in modules {
        assert!(MAY_USE.iter().any(|(name, _)| *name == module), "{module} has no row here");
    }
}
