//! What a kubelet of each version makes of the same files and flags. The vectors are read from the sources of 1.24 to
//! 1.36 (`cmd/kubelet/app/server.go`, `apis/config/v1beta1/defaults.go`, `eviction/defaults_linux.go`).

use headroom::kubelet::configuration::{Configuration, KubeletInputs, Text};
use headroom::kubelet::flags::Flags;
use headroom::kubelet::thresholds::Thresholds;
use headroom::kubelet::version::Version;

const HEAD: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
const FOUR: &str = "imagefs.available=15% memory.available=100Mi nodefs.available=10% nodefs.inodesFree=5%";
const FIVE: &str =
    "imagefs.available=15% imagefs.inodesFree=5% memory.available=100Mi nodefs.available=10% nodefs.inodesFree=5%";

/// The configuration of a kubelet of this version with this file, drop-ins and flags, each without its head.
fn effective(
    version: &str,
    file: Option<&str>,
    dropins: Option<&[&str]>,
    flags: &[&str],
) -> headroom::error::Result<Configuration> {
    let text = |path: &str, yaml: &str| Text { path: path.into(), text: format!("{HEAD}{yaml}") };
    KubeletInputs {
        flags: Some(Flags::parse(flags.iter().copied())),
        file: file.map(|yaml| text("/k.yaml", yaml)),
        dropins: dropins.map(|all| all.iter().map(|yaml| text("/d.conf", yaml)).collect()),
        version: Version::parse(version),
    }
    .effective()
}

fn hard(configuration: &Configuration) -> String {
    let pairs = configuration.eviction_hard.iter().map(|(signal, value)| format!("{signal}={value}"));
    pairs.collect::<Vec<_>>().join(" ")
}

#[test]
fn defaults() {
    let of = |version, file, flags: &[&str]| hard(&effective(version, file, None, flags).unwrap());
    for (version, expected) in [("1.24.17", FOUR), ("1.29.14", FOUR), ("1.30.0", FIVE), ("1.36.2", FIVE), ("?", FIVE)] {
        assert_eq!(of(version, Some(""), &[]), expected, "a file without evictionHard: {version}");
    }
    for (version, expected) in [("1.24.17", FOUR), ("1.25.16", FOUR), ("1.26.0", ""), ("1.36.2", ""), ("?", "")] {
        assert_eq!(of(version, None, &[]), expected, "flags only: {version}");
    }
    let flag = ["--eviction-hard=memory.available<1Gi"];
    assert_eq!(of("1.24.17", None, &flag), "memory.available=1Gi", "a flag replaces the map");
    let merge = "mergeDefaultEvictionSettings: true\nevictionHard: {nodefs.available: 1%}";
    assert_eq!(of("1.32.13", Some(merge), &[]), "nodefs.available=1%", "not known yet");
    assert_eq!(of("1.33.0", Some(merge), &[]), FIVE.replace("10%", "1%"));
}

#[test]
fn dropins_of_1_28_are_whole_configurations() {
    let file = "evictionHard: {memory.available: 1Gi, pid.available: 5%}\nimageGCHighThresholdPercent: 70\n\
                imageGCLowThresholdPercent: 60\nevictionPressureTransitionPeriod: 30s\n\
                containerRuntimeEndpoint: unix:///run/crio/crio.sock";
    let of = |dropins: &[&str]| effective("1.28.15", Some(file), Some(dropins), &[]).unwrap();
    assert_eq!(hard(&of(&[])), "memory.available=1Gi pid.available=5%", "no file in the folder");
    let defaults = of(&["maxPods: 50"]);
    assert_eq!(hard(&defaults), format!("{FOUR} pid.available=5%"), "the defaults are back, over the file");
    assert_eq!((defaults.image_gc_high_percent, defaults.image_gc_low_percent), (85, 80));
    assert_eq!(defaults.eviction_pressure_transition_period.as_secs(), 300);
    assert_eq!(of(&[]).eviction_pressure_transition_period.as_secs(), 30);
    assert_eq!(defaults.runtime_endpoint.as_deref(), Some("unix:///run/containerd/containerd.sock"));
    let partial = of(&["evictionHard: {nodefs.available: 3%, pid.available: null}"]);
    assert_eq!(hard(&partial), "memory.available=1Gi nodefs.available=3% pid.available=", "null is the empty text");
    assert_eq!(hard(&of(&["evictionHard: {}"])), "memory.available=1Gi pid.available=5%");
    let error = effective("1.27.16", Some(file), Some(&[]), &[]).unwrap_err().to_string();
    assert!(error.contains("1.27.16") && error.contains("--config-dir"), "{error}");
}

#[test]
fn null_in_a_dropin_takes_away_from_the_file_since_1_31() {
    let file = "evictionHard: {memory.available: 1Gi, nodefs.available: 2%}";
    let of = |version, dropins: &[&str]| hard(&effective(version, Some(file), Some(dropins), &[]).unwrap());
    let null = ["evictionHard: {nodefs.available: null, pid.available: 5%}"];
    for version in ["1.29.14", "1.30.14"] {
        assert_eq!(of(version, &null), "memory.available=1Gi nodefs.available=2% pid.available=5%", "{version}");
        let both = ["evictionHard: {pid.available: 5%, memory.available: 2Gi}", "evictionHard: {pid.available: null}"];
        assert_eq!(of(version, &both), "memory.available=2Gi nodefs.available=2%", "of a drop-in it does");
        assert_eq!(of(version, &["evictionHard: null"]), "memory.available=1Gi nodefs.available=2%");
    }
    for version in ["1.31.0", "1.36.2", "?"] {
        assert_eq!(of(version, &null), "memory.available=1Gi pid.available=5%", "{version}");
    }
}

#[test]
fn signals_of_containerfs_exist_since_1_29() {
    let parse = |version| {
        let flags = ["--eviction-hard=containerfs.available<5%"];
        Thresholds::parse(&effective(version, None, None, &flags).unwrap()).map(|thresholds| thresholds.all.len())
    };
    let error = parse("1.28.15").unwrap_err().to_string();
    assert!(error.contains("containerfs.available") && error.contains("1.29"), "{error}");
    assert!(parse("1.29.0").is_ok() && parse("?").is_ok());
}
