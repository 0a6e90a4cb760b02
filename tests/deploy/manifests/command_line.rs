//! The exporter takes every command line and environment that is rendered, and every one of its flags can be set.

use std::collections::BTreeSet;

use headroom::config::{Invocation, command};
use serde_json::json;

use super::render::{self, Objects, arguments, kustomize_with, needs, template};
use super::{matrix, written};

#[test]
fn the_exporter_takes_every_command_line() {
    needs!("helm", "kustomize");
    let mut all: Vec<(String, Objects)> =
        matrix::CASES.iter().map(|case| (case.name.to_owned(), template(case.values, "1.33.0", &[]))).collect();
    all.push(("kustomize".into(), kustomize_with(&["no-runtime", "no-apiserver"])));
    for (name, objects) in all {
        let arguments = arguments(&objects);
        let line = || std::iter::once("headroom-exporter").chain(arguments.iter().map(|argument| argument.as_str()));
        command().try_get_matches_from(line()).unwrap_or_else(|error| panic!("{name}: {error}"));
        // The file of the web configuration is in the pod only.
        if !arguments.iter().any(|argument| argument.starts_with("--web.config.file")) {
            let invocation = Invocation::parse(line()).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(matches!(invocation, Invocation::Serve(_)), "{name}");
        }
        // Each argument is one that is listened to, not a value of the one before.
        assert!(arguments.iter().all(|argument| argument.starts_with("--")), "{name}: {arguments:?}");
    }
}

#[test]
fn every_flag_can_be_set() {
    needs!("helm");
    let (mut values, mut expected) = (serde_json::Map::new(), BTreeSet::new());
    for flag in written::flags().filter(|flag| !flag.is_own()) {
        let (value, arguments) = flag.sample();
        values.insert(flag.long.clone(), value);
        expected.extend(arguments);
    }
    assert!(values.len() > 40, "{}", values.len());
    let objects = template(&json!({ "flags": values }).to_string(), "1.33.0", &[]);
    let arguments = arguments(&objects);
    let missing: Vec<_> = expected.iter().filter(|argument| !arguments.contains(argument)).collect();
    assert!(missing.is_empty(), "{missing:?} not in {arguments:#?}");
    command().try_get_matches_from(std::iter::once("x").chain(arguments.iter().map(String::as_str))).unwrap();
    // `false` is the opposite.
    let off = template(r#"flags: {"collector.kmem": false, "apiserver.insecure-skip-verify": false}"#, "1.33.0", &[]);
    assert!(render::arguments(&off).iter().any(|argument| argument == "--no-collector.kmem"));
    assert!(!render::text(&off).to_lowercase().contains("insecure_skip_verify"));
    // The chart's own flags have values of their own.
    for (long, values, argument) in written::OWN {
        if let Some(values) = values {
            let arguments = render::arguments(&template(values, "1.33.0", &[]));
            assert!(arguments.iter().any(|one| one == argument), "{long}: no {argument} with {values}");
        }
    }
}
