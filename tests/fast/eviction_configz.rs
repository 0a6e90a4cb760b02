//! What a kubelet runs with, per combination of its configuration sources.
//!
//! `fixtures/eviction/configz-matrix` holds what a real kubelet 1.36 served at `/configz`; the vectors below are what
//! follows from its source. Each is held against the configuration that we make of it, and against the series that come
//! out of a whole collection on a machine made of files.
#![allow(clippy::type_complexity, reason = "tables of cases")]
#![allow(clippy::disallowed_methods, reason = "a test makes its machine of files")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use headroom::error::Reason;
use headroom::host::{Deadline, Host, Roots};
use headroom::kubelet::handle;
use headroom::kubelet::process::Finder;
use headroom::kubelet::sources::{Overrides, Sources};
use headroom::kubelet::thresholds::Thresholds;
use headroom::metric::Samples;
use headroom::modes::{Context, eviction};
use headroom::services::{CONTROL_PLANE, Services};

use crate::machine::{DISK, Files, GIB, INODES, MEMORY, PIDS};

/// A machine made of files, with one disk, on which a kubelet runs or not.
struct Machine {
    files: Files,
    settings: Overrides,
}

impl Machine {
    fn new() -> Self {
        let files = Files::new();
        files.limit_pods();
        Machine { files, settings: Overrides::default() }
    }

    fn write(&self, path: &str, text: &str) {
        self.files.write(path, text);
    }

    fn kubelet(self, flags: &[&str]) -> Self {
        let mut line = vec!["/usr/bin/kubelet", "--v=2"];
        line.extend(flags);
        self.write("proc/1234/comm", "kubelet\n");
        self.write("proc/1234/stat", "1234 (kubelet) S 1 1234 1234");
        self.write("proc/1234/cmdline", &(line.join("\0") + "\0"));
        self
    }

    fn host(&self) -> Host {
        self.files.host()
    }

    fn services(&self) -> Services {
        Services::with_kubelet(handle::Settings { overrides: self.settings.clone(), ..handle::Settings::default() })
    }

    fn collect(&self) -> Samples {
        let host = self.host();
        let mut samples =
            (eviction::MODE.build)(&Default::default(), &self.services()).collect(Context::new(&host, soon())).unwrap();
        samples.refuse_duplicates();
        samples
    }

    /// The configuration alone, by the same path.
    fn configuration(&self) -> headroom::error::Result<headroom::kubelet::configuration::Configuration> {
        let host = self.host();
        let found = Finder::default().find(&host, soon(), Instant::now())?;
        let told = Sources::of(&host, found.kubelet.as_ref(), &self.settings).read(soon())?;
        let configuration = told.effective()?;
        Thresholds::parse(&configuration)?;
        Ok(configuration)
    }
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(10))
}

type Pairs = BTreeMap<String, String>;

/// Paths below a `--config-dir`, and what is in them.
type Dropins<'a> = Option<&'a [(&'a str, &'a str)]>;

/// What `--config` and `--config-dir` hold, further flags, and what is expected of it.
type Case<'a, T> = (Option<&'a str>, Dropins<'a>, &'a [&'a str], T);

fn pairs(text: &str) -> Pairs {
    text.split(' ').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap()).map(owned).collect()
}

fn owned((key, value): (&str, &str)) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

/// Every threshold on the page, as `signal type` to its number.
fn thresholds(samples: &Samples) -> BTreeMap<String, f64> {
    let families =
        ["headroom_eviction_threshold_bytes", "headroom_eviction_threshold_inodes", "headroom_eviction_threshold_pids"];
    let rows = samples.rows().iter().filter(|row| families.contains(&row.metric.name));
    rows.map(|row| (row.labels.join(" "), row.value)).collect()
}

/// What a map of `/configz` means on this machine, worked out a second time: by hand-made arithmetic on the signals'
/// names.
fn expected(hard: &Pairs, soft: &Pairs, pods: bool) -> BTreeMap<String, f64> {
    let mut expected = BTreeMap::new();
    for (kind, map) in [("hard", hard), ("soft", soft)] {
        for (signal, value) in map {
            if signal.starts_with("containerfs") || value == "0%" || value == "100%" {
                continue;
            }
            let capacity = match signal.as_str() {
                "memory.available" => MEMORY,
                "pid.available" => PIDS,
                signal if signal.ends_with("inodesFree") => INODES,
                _ => DISK,
            };
            let number = match value.strip_suffix('%') {
                Some(percent) => (capacity as f64 * f64::from(percent.parse::<f32>().unwrap() / 100.0)).floor(),
                None => plain(value),
            };
            expected.insert(format!("{signal} {kind}"), number);
            // One disk, so the thresholds of nodefs are those of containerfs; hard memory also limits the pods.
            if let Some(name) = signal.strip_prefix("nodefs") {
                expected.insert(format!("containerfs{name} {kind}"), number);
            }
            if signal == "memory.available" && kind == "hard" && pods {
                expected.insert("allocatableMemory.available hard".to_owned(), number);
            }
        }
    }
    expected
}

fn plain(value: &str) -> f64 {
    match value.split_at(value.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(value.len())) {
        (number, "Ki") => number.parse::<f64>().unwrap() * 1024.0,
        (number, "Mi") => number.parse::<f64>().unwrap() * 1_048_576.0,
        (number, "Gi") => number.parse::<f64>().unwrap() * 1_073_741_824.0,
        (number, "") => number.parse().unwrap(),
        (_, suffix) => panic!("{suffix}"),
    }
}

fn seconds(value: &str) -> f64 {
    match value {
        "1m30s" => 90.0,
        "2m" => 120.0,
        "1h" => 3600.0,
        "30s" => 30.0,
        "5m0s" => 300.0,
        other => panic!("{other}"),
    }
}

fn configz_map(configz: &serde_json::Value, field: &str) -> Pairs {
    let map = configz["kubeletconfig"][field].as_object();
    map.into_iter().flatten().map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned())).collect()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The machine on which a case of the matrix was recorded.
fn recorded(case: &Path) -> Machine {
    let machine = Machine::new();
    let flags = std::fs::read_to_string(case.join("flags.txt")).unwrap();
    let mut flags: Vec<&str> = flags.lines().filter(|line| !line.is_empty()).collect();
    if case.join("config.yaml").exists() {
        let text = std::fs::read_to_string(case.join("config.yaml")).unwrap();
        machine.write("root/etc/kubernetes/config.yaml", &text);
        flags.push("--config=/etc/kubernetes/config.yaml");
    }
    if case.join("conf.d").exists() {
        copy(&case.join("conf.d"), &machine.files.path("root/etc/kubernetes/conf.d"));
        flags.push("--config-dir=/etc/kubernetes/conf.d");
    }
    machine.kubelet(&flags)
}

#[test]
fn equal_to_a_real_kubelet() {
    let matrix = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/eviction/configz-matrix");
    let mut cases = 0;
    for case in std::fs::read_dir(matrix).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
        let name = case.file_name().unwrap().to_str().unwrap().to_owned();
        let machine = recorded(&case);
        let Ok(text) = std::fs::read_to_string(case.join("configz.json")) else {
            // The kubelet refused to start: so do we, and nothing is made up in its place.
            let error = machine.configuration().unwrap_err();
            let theirs = std::fs::read_to_string(case.join("exits.txt")).unwrap();
            assert_eq!(error.reason(), Reason::Malformed, "{name}");
            assert!(
                theirs.contains("unsupported eviction signal")
                    && error.to_string().contains("unsupported eviction signal")
            );
            refused(&machine.collect(), &name);
            cases += 1;
            continue;
        };
        let configz: serde_json::Value = serde_json::from_str(&text).unwrap();
        let ours = machine.configuration().unwrap();
        let (hard, soft) = (configz_map(&configz, "evictionHard"), configz_map(&configz, "evictionSoft"));
        let grace = configz_map(&configz, "evictionSoftGracePeriod");
        assert_eq!(ours.eviction_hard, hard, "{name}");
        assert_eq!(ours.eviction_soft, soft, "{name}");
        assert_eq!(ours.eviction_soft_grace_period, grace, "{name}");
        assert_eq!(ours.eviction_minimum_reclaim, configz_map(&configz, "evictionMinimumReclaim"), "{name}");
        let config = &configz["kubeletconfig"];
        let transition = seconds(config["evictionPressureTransitionPeriod"].as_str().unwrap());
        assert_eq!(ours.eviction_pressure_transition_period.as_secs_f64(), transition, "{name}");
        let (high, low) = (&config["imageGCHighThresholdPercent"], &config["imageGCLowThresholdPercent"]);
        assert_eq!(i64::from(ours.image_gc_high_percent), high.as_i64().unwrap(), "{name}");
        assert_eq!(i64::from(ours.image_gc_low_percent), low.as_i64().unwrap(), "{name}");
        assert_eq!(serde_json::json!(ours.enforce_node_allocatable), config["enforceNodeAllocatable"], "{name}");

        let samples = machine.collect();
        assert!(samples.errors().is_empty(), "{name}: {:?}", samples.errors());
        assert_eq!(thresholds(&samples), expected(&hard, &soft, true), "{name}");
        for (signal, period) in &grace {
            assert_eq!(samples.value(&eviction::GRACE_PERIOD, &[signal]), Some(seconds(period)), "{name}");
        }
        assert_eq!(samples.value(&eviction::TRANSITION_PERIOD, &[]), Some(transition), "{name}");
        assert_eq!(samples.value(&eviction::IMAGE_GC, &["high"]), high.as_f64().map(|high| high / 100.0));
        assert_eq!(samples.value(&eviction::IMAGE_GC, &["low"]), low.as_f64().map(|low| low / 100.0));
        cases += 1;
    }
    assert_eq!(cases, 11, "every case of the matrix");
}

/// A kubelet whose thresholds cannot be had: they are absent, what is available is there, and the error tells.
fn refused(samples: &Samples, name: &str) {
    assert!(thresholds(samples).is_empty(), "{name}");
    assert!(!samples.rows().iter().any(|row| row.metric.name.contains("headroom_ratio")), "{name}");
    assert_eq!(samples.value(&eviction::AVAILABLE_BYTES, &["memory.available"]), Some((MEMORY - 2 * GIB) as f64));
    assert_eq!(samples.value(&eviction::AVAILABLE_BYTES, &["nodefs.available"]), Some((30 * GIB) as f64));
    assert_eq!(samples.value(&eviction::CAPACITY_PIDS, &["pid.available"]), Some(PIDS as f64));
    assert_eq!(samples.errors().len(), 1, "{name}: {:?}", samples.errors());
    let error = samples.errors()[0].to_string();
    assert!(error.contains("--kubelet.config") && !error.contains('\n'), "{name}: {error}");
}

const HEAD: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
const DEFAULTS: &str =
    "memory.available=100Mi nodefs.available=10% nodefs.inodesFree=5% imagefs.available=15% imagefs.inodesFree=5%";

/// One combination of sources and the hard thresholds that come of it.
struct Vector {
    name: &'static str,
    /// Without its head; `None`: no --config.
    config: Option<&'static str>,
    /// Path below the folder and text without its head; `None`: no --config-dir.
    dropins: Dropins<'static>,
    flags: &'static [&'static str],
    hard: &'static str,
}

fn machine(config: Option<&str>, dropins: Dropins<'_>, flags: &[&str]) -> Machine {
    let machine = Machine::new();
    let mut flags = flags.to_vec();
    if let Some(config) = config {
        machine.write("root/etc/kubernetes/config.yaml", &format!("{HEAD}{config}"));
        flags.push("--config=/etc/kubernetes/config.yaml");
    }
    if let Some(dropins) = dropins {
        std::fs::create_dir_all(machine.files.path("root/etc/kubernetes/conf.d")).unwrap();
        for (path, text) in dropins {
            machine.write(&format!("root/etc/kubernetes/conf.d/{path}"), &format!("{HEAD}{text}"));
        }
        flags.push("--config-dir=/etc/kubernetes/conf.d");
    }
    machine.kubelet(&flags)
}

#[test]
fn hard_thresholds_by_source() {
    let none = "evictionHard: {}";
    let partial = "evictionHard: {memory.available: 200Mi}";
    let vectors = [
        Vector { name: "flags only: none at all", config: None, dropins: None, flags: &[], hard: "" },
        Vector { name: "nothing said: the five", config: Some(""), dropins: None, flags: &[], hard: DEFAULTS },
        Vector {
            name: "null: the five",
            config: Some("evictionHard: null"),
            dropins: None,
            flags: &[],
            hard: DEFAULTS,
        },
        Vector {
            name: "no value: the five",
            config: Some("evictionHard:\n"),
            dropins: None,
            flags: &[],
            hard: DEFAULTS,
        },
        Vector { name: "empty: none", config: Some(none), dropins: None, flags: &[], hard: "" },
        Vector {
            name: "empty, merged",
            config: Some("mergeDefaultEvictionSettings: true\nevictionHard: {}"),
            dropins: None,
            flags: &[],
            hard: DEFAULTS,
        },
        Vector {
            name: "partial: only it",
            config: Some(partial),
            dropins: None,
            flags: &[],
            hard: "memory.available=200Mi",
        },
        Vector {
            name: "partial, merge false",
            config: Some("mergeDefaultEvictionSettings: false\nevictionHard: {pid.available: 5%}"),
            dropins: None,
            flags: &[],
            hard: "pid.available=5%",
        },
        Vector {
            name: "partial, merge yes: YAML 1.1, and 0% is an entry that stays",
            config: Some("mergeDefaultEvictionSettings: yes\nevictionHard: {nodefs.available: 0%}"),
            dropins: None,
            flags: &[],
            hard: "memory.available=100Mi nodefs.available=0% nodefs.inodesFree=5% imagefs.available=15% imagefs.inodesFree=5%",
        },
        Vector {
            name: "a drop-in takes one default away",
            config: Some(""),
            dropins: Some(&[("10.conf", "evictionHard: {imagefs.available: null}")]),
            flags: &[],
            hard: "memory.available=100Mi nodefs.available=10% nodefs.inodesFree=5% imagefs.inodesFree=5%",
        },
        Vector {
            name: "a drop-in takes the whole map away",
            config: Some(""),
            dropins: Some(&[("10.conf", "evictionHard: null")]),
            flags: &[],
            hard: "",
        },
        Vector {
            name: "an empty map in a drop-in takes nothing away",
            config: Some(""),
            dropins: Some(&[("10.conf", "evictionHard: {}")]),
            flags: &[],
            hard: DEFAULTS,
        },
        Vector {
            name: "null of what is not there",
            config: Some(partial),
            dropins: Some(&[("10.conf", "evictionHard: {pid.available: null}")]),
            flags: &[],
            hard: "memory.available=200Mi",
        },
        Vector {
            name: "a drop-in over an empty base: no defaults come back",
            config: Some(none),
            dropins: Some(&[("10.conf", "evictionHard: {nodefs.available: 12%}")]),
            flags: &[],
            hard: "nodefs.available=12%",
        },
        Vector {
            name: "merge in a drop-in comes too late",
            config: Some(partial),
            dropins: Some(&[("10.conf", "mergeDefaultEvictionSettings: true\nevictionHard: {pid.available: 5%}")]),
            flags: &[],
            hard: "memory.available=200Mi pid.available=5%",
        },
        Vector {
            name: "merge switched off in a drop-in comes too late as well",
            config: Some("mergeDefaultEvictionSettings: true\nevictionHard: {memory.available: 200Mi}"),
            dropins: Some(&[("10.conf", "mergeDefaultEvictionSettings: false")]),
            flags: &[],
            hard: "memory.available=200Mi nodefs.available=10% nodefs.inodesFree=5% imagefs.available=15% imagefs.inodesFree=5%",
        },
        Vector {
            name: "drop-ins only: what they list",
            config: None,
            dropins: Some(&[("10.conf", "evictionHard: {nodefs.available: 12%}")]),
            flags: &[],
            hard: "nodefs.available=12%",
        },
        Vector {
            name: "drop-ins only, merge without effect",
            config: None,
            dropins: Some(&[("10.conf", "mergeDefaultEvictionSettings: true\nevictionHard: {nodefs.available: 12%}")]),
            flags: &[],
            hard: "nodefs.available=12%",
        },
        Vector { name: "drop-ins only, without any", config: None, dropins: Some(&[]), flags: &[], hard: "" },
        Vector {
            name: "drop-ins only, silent on eviction",
            config: None,
            dropins: Some(&[("10.conf", "maxPods: 50")]),
            flags: &[],
            hard: "",
        },
        Vector {
            name: "later drop-ins win, folders in their place, other names not",
            config: Some(none),
            dropins: Some(&[
                ("10.conf", "evictionHard: {memory.available: 1Gi, nodefs.available: 1%}"),
                ("20-more/99.conf", "evictionHard: {memory.available: 2Gi, pid.available: 2%}"),
                ("30.conf", "evictionHard: {pid.available: 3%}"),
                ("40.yaml", "evictionHard: {pid.available: 4%}"),
                ("50.conf.disabled", "evictionHard: {pid.available: 5%}"),
                ("README", "evictionHard: {pid.available: 6%}"),
            ]),
            flags: &[],
            hard: "memory.available=2Gi nodefs.available=1% pid.available=3%",
        },
        Vector {
            name: "9 comes after 10",
            config: Some(none),
            dropins: Some(&[
                ("9.conf", "evictionHard: {memory.available: 9Gi}"),
                ("10.conf", "evictionHard: {memory.available: 1Gi}"),
            ]),
            flags: &[],
            hard: "memory.available=9Gi",
        },
        Vector {
            name: "a flag replaces everything",
            config: Some(""),
            dropins: Some(&[("10.conf", "evictionHard: {nodefs.available: 12%}")]),
            flags: &["--eviction-hard=memory.available<300Mi"],
            hard: "memory.available=300Mi",
        },
        Vector {
            name: "a repeated flag accumulates",
            config: Some(partial),
            dropins: None,
            flags: &[
                "--eviction-hard=memory.available<300Mi",
                "--eviction_hard",
                "nodefs.available<20%,memory.available<400Mi",
            ],
            hard: "memory.available=400Mi nodefs.available=20%",
        },
        Vector { name: "an empty flag: none", config: Some(""), dropins: None, flags: &["--eviction-hard="], hard: "" },
        Vector {
            name: "flags only, with the flag",
            config: None,
            dropins: None,
            flags: &["--eviction-hard=memory.available<1Gi,nodefs.inodesFree<5%"],
            hard: "memory.available=1Gi nodefs.inodesFree=5%",
        },
        Vector {
            name: "another flag does not touch the map",
            config: Some(""),
            dropins: None,
            flags: &["--image-gc-high-threshold=95"],
            hard: DEFAULTS,
        },
        Vector {
            name: "100% switches off like 0%, containerfs is overwritten",
            config: Some(
                "evictionHard: {nodefs.available: '100%', imagefs.available: 0%, containerfs.available: 40%, nodefs.inodesFree: 5%}",
            ),
            dropins: None,
            flags: &[],
            hard: "nodefs.available=100% imagefs.available=0% containerfs.available=40% nodefs.inodesFree=5%",
        },
        Vector {
            name: "JSON, a key twice, unknown fields",
            config: Some(
                "evictionHard: {memory.available: 1Gi}\nsomethingNew: {a: [1]}\nevictionHard: {\"memory.available\": \"2Gi\"}",
            ),
            dropins: None,
            flags: &[],
            hard: "memory.available=2Gi",
        },
        Vector {
            name: "a wrong value that a later drop-in mends",
            config: Some(""),
            dropins: Some(&[
                ("10.conf", "evictionHard: {memory.available: 5}"),
                ("20.conf", "evictionHard: {memory.available: 5Gi}"),
            ]),
            flags: &[],
            hard: "memory.available=5Gi nodefs.available=10% nodefs.inodesFree=5% imagefs.available=15% imagefs.inodesFree=5%",
        },
    ];
    for Vector { name, config, dropins, flags, hard } in vectors {
        let machine = machine(config, dropins, flags);
        let hard = pairs(hard);
        assert_eq!(machine.configuration().unwrap().eviction_hard, hard, "{name}");
        let samples = machine.collect();
        assert!(samples.errors().is_empty(), "{name}: {:?}", samples.errors());
        assert_eq!(thresholds(&samples), expected(&hard, &Pairs::new(), true), "{name}");
    }
}

#[test]
fn soft_thresholds_by_source() {
    let config = "evictionHard: {}\nevictionSoft: {memory.available: 1Gi, nodefs.available: 15%}\n\
        evictionSoftGracePeriod: {memory.available: 1m30s, nodefs.available: 2m}\n";
    let dropin = "evictionSoft: {memory.available: null, nodefs.available: 20%}\n\
        evictionSoftGracePeriod: {nodefs.available: 1h}";
    let flags: &[&str] = &[
        "--eviction-soft=imagefs.available<25%",
        "--eviction-soft-grace-period=imagefs.available=30s",
        "--eviction-minimum-reclaim=imagefs.available=1Gi",
    ];
    // Here the first column is the grace periods that come of it; the base is always the one above.
    let cases: [Case<'_, &str>; 4] = [
        (Some("memory.available=1m30s nodefs.available=2m"), None, &[], "memory.available=1Gi nodefs.available=15%"),
        (Some("nodefs.available=1h"), Some(&[("1.conf", dropin)]), &[], "nodefs.available=20%"),
        (Some("imagefs.available=30s"), Some(&[("1.conf", dropin)]), flags, "imagefs.available=25%"),
        (Some(""), Some(&[("1.conf", "evictionSoft: null")]), &[], ""),
    ];
    for (grace, dropins, flags, soft) in cases {
        let machine = machine(Some(config), dropins, flags);
        let grace = grace.unwrap();
        assert_eq!(machine.configuration().unwrap().eviction_soft, pairs(soft));
        let samples = machine.collect();
        assert!(samples.errors().is_empty(), "{:?}", samples.errors());
        assert_eq!(thresholds(&samples), expected(&Pairs::new(), &pairs(soft), true), "{soft}");
        let ours: BTreeMap<String, f64> = samples
            .rows()
            .iter()
            .filter(|row| row.metric.name == "headroom_eviction_grace_period_seconds")
            .map(|row| (row.labels.join(" "), row.value))
            .filter(|(signal, _)| !signal.starts_with("containerfs"))
            .collect();
        assert_eq!(ours, pairs(grace).iter().map(|(signal, period)| (signal.clone(), seconds(period))).collect());
    }
}

#[test]
fn image_collection_by_source() {
    let cases: [Case<'_, (i32, i32)>; 7] = [
        (None, None, &[], (85, 80)),
        (Some(""), None, &[], (85, 80)),
        (Some("imageGCHighThresholdPercent: 90\nimageGCLowThresholdPercent: 70"), None, &[], (90, 70)),
        (
            Some("imageGCHighThresholdPercent: 90"),
            Some(&[("1.conf", "imageGCHighThresholdPercent: 95")]),
            &[],
            (95, 80),
        ),
        (
            Some("imageGCHighThresholdPercent: 90"),
            Some(&[("1.conf", "imageGCHighThresholdPercent: null")]),
            &[],
            (85, 80),
        ),
        (Some("imageGCLowThresholdPercent: 70"), None, &["--image-gc-high-threshold=99"], (99, 70)),
        (None, None, &["--image-gc-high-threshold", "60", "--image_gc_low_threshold=50"], (60, 50)),
    ];
    for (config, dropins, flags, (high, low)) in cases {
        let samples = machine(config, dropins, flags).collect();
        assert_eq!(
            samples.value(&eviction::IMAGE_GC, &["high"]),
            Some(f64::from(high) / 100.0),
            "{config:?} {flags:?}"
        );
        assert_eq!(samples.value(&eviction::IMAGE_GC, &["low"]), Some(f64::from(low) / 100.0), "{config:?} {flags:?}");
    }
}

#[test]
fn pressure_transition_by_source() {
    let period = |text: &str| format!("evictionPressureTransitionPeriod: {text}");
    let (minute, zero) = (period("1m"), period("0s"));
    let cases: [Case<'_, f64>; 7] = [
        (None, None, &[], 300.0),
        (Some(""), None, &[], 300.0),
        (Some(&minute), None, &[], 60.0),
        (Some(&zero), None, &[], 300.0),
        (Some(&minute), Some(&[("1.conf", "evictionPressureTransitionPeriod: 30s")]), &[], 30.0),
        (Some(&minute), Some(&[("1.conf", "evictionPressureTransitionPeriod: null")]), &[], 300.0),
        (Some(&minute), None, &["--eviction-pressure-transition-period=0s"], 0.0),
    ];
    for (config, dropins, flags, seconds) in cases {
        let samples = machine(config, dropins, flags).collect();
        assert_eq!(samples.value(&eviction::TRANSITION_PERIOD, &[]), Some(seconds), "{config:?} {dropins:?} {flags:?}");
    }
    let samples = machine(Some("evictionPressureTransitionPeriod: 5"), None, &[]).collect();
    assert_eq!(samples.value(&eviction::TRANSITION_PERIOD, &[]), None, "no kubelet starts with that");
    let answer = |period: &str| {
        let configz = format!(
            r#"{{"kubeletconfig":{{"imageGCHighThresholdPercent":85,"evictionPressureTransitionPeriod":"{period}"}}}}"#
        );
        headroom::kubelet::configuration::Configuration::of_configz(&configz)
            .unwrap()
            .eviction_pressure_transition_period
            .as_secs()
    };
    assert_eq!((answer("0s"), answer("7m0s")), (0, 420));
}

#[test]
fn allocatable_memory_by_source() {
    let cases: [Case<'_, bool>; 10] = [
        (Some(""), None, &[], true),
        (Some("enforceNodeAllocatable: [pods, system-reserved]"), None, &[], true),
        (Some("enforceNodeAllocatable: [none]"), None, &[], false),
        (Some("enforceNodeAllocatable: []"), None, &[], false),
        // With --config-dir the kubelet writes the base out and reads it back, and loses the empty list on the way.
        (Some("enforceNodeAllocatable: []"), Some(&[]), &[], true),
        (Some(""), Some(&[("1.conf", "enforceNodeAllocatable: []")]), &[], false),
        (Some(""), None, &["--enforce-node-allocatable="], false),
        (Some(""), None, &["--experimental-allocatable-ignore-eviction"], false),
        // Nobody writes this, and a kubelet takes it.
        (Some("enforceNodeAllocatable: []\nevictionHard: {allocatableMemory.available: 100Mi}"), None, &[], true),
        (Some("evictionHard: {nodefs.available: 10%}"), None, &[], false),
    ];
    for (config, dropins, flags, there) in cases {
        let samples = machine(config, dropins, flags).collect();
        let signal = ["allocatableMemory.available"];
        let available = samples.value(&eviction::AVAILABLE_BYTES, &signal);
        assert_eq!(available, there.then_some((5 * GIB) as f64), "{config:?} {dropins:?} {flags:?}");
        assert_eq!(samples.value(&eviction::CAPACITY_BYTES, &signal), there.then_some((6 * GIB) as f64));
        let threshold = samples.value(&eviction::THRESHOLD_BYTES, &["allocatableMemory.available", "hard"]);
        assert_eq!(threshold, there.then_some(104_857_600.0));
        assert!(samples.errors().is_empty());
    }
}

#[test]
fn what_a_kubelet_would_refuse() {
    let cases: [(&str, Dropins<'_>, &[&str], &str); 23] = [
        ("evictionHard: {disk.available: 10%}", None, &[], "disk.available"),
        ("evictionHard: {disk.available: 0%}", None, &[], "disk.available"),
        ("evictionHard: {memory.available: 5}", None, &[], "quotes"),
        ("evictionHard: {memory.available: true}", None, &[], "boolean"),
        ("evictionHard: {memory.available: }", None, &[], "not a quantity"),
        ("evictionHard: {memory.available: 0}", None, &[], "number"),
        ("evictionHard: {memory.available: '0'}", None, &[], "above 0"),
        ("evictionHard: {memory.available: 100MB}", None, &[], "100MB"),
        ("evictionHard: {nodefs.available: 110%}", None, &[], "110%"),
        ("evictionHard: {nodefs.available: -5%}", None, &[], "-5%"),
        ("evictionHard: [memory.available]", None, &[], "list"),
        ("evictionHard: memory.available<5%", None, &[], "string"),
        ("evictionSoft: {memory.available: 1Gi}", None, &[], "evictionSoftGracePeriod"),
        ("evictionSoftGracePeriod: {memory.available: 90}", None, &[], "quotes"),
        ("evictionSoftGracePeriod: {memory.available: '90'}", None, &[], "duration"),
        ("imageGCHighThresholdPercent: 101", None, &[], "101"),
        ("imageGCHighThresholdPercent: 80", None, &[], "less than"),
        ("imageGCHighThresholdPercent: '85'", None, &[], "string"),
        ("evictionHard: {memory.available: 1Gi", None, &[], "not YAML"),
        ("", Some(&[("1.conf", "evictionHard: {x: 1%}")]), &[], "1.conf"),
        ("", Some(&[("1.conf", "a: 1\na: 2")]), &[], "not YAML"),
        (
            "evictionHard: {memory.available: 5}",
            Some(&[("1.conf", "evictionHard: {memory.available: 5Gi}")]),
            &[],
            "quotes",
        ),
        ("", None, &["--eviction-hard=memory.available=5%"], "--eviction-hard"),
    ];
    for (config, dropins, flags, word) in cases {
        let machine = machine(Some(config), dropins, flags);
        let samples = machine.collect();
        refused(&samples, config);
        let error = &samples.errors()[0];
        assert_eq!(error.reason(), Reason::Malformed, "{config}");
        assert!(error.to_string().contains(word), "{config}: {error}");
    }
}

#[test]
fn files_that_are_no_kubelet_configuration() {
    let head = HEAD.lines().next().unwrap();
    for (text, word) in [
        ("", "empty"),
        ("\t\n", ""),
        (head, "kind"),
        ("kind: KubeletConfiguration", "apiVersion"),
        ("\u{7f}ELF\u{0}", ""),
    ] {
        let machine = Machine::new();
        machine.write("root/k.yaml", text);
        let samples = machine.kubelet(&["--config=/k.yaml"]).collect();
        refused(&samples, text);
        let error = samples.errors()[0].to_string();
        assert!(error.contains("/k.yaml") && error.contains(word), "{error}");
    }
    let samples = Machine::new().kubelet(&["--config=/none.yaml"]).collect();
    refused(&samples, "not there");
    assert_eq!(samples.errors()[0].reason(), Reason::Malformed, "not \"this machine has no such thing\"");
}

fn sources(samples: &Samples) -> Vec<String> {
    let rows = samples.rows().iter().filter(|row| row.metric.name == "headroom_eviction_config_info");
    rows.map(|row| row.labels.join(" ").trim_end().to_owned()).collect()
}

#[test]
fn every_source_is_named() {
    let file = "file /etc/kubernetes/config.yaml";
    assert_eq!(sources(&machine(None, None, &[]).collect()), ["flag"]);
    assert_eq!(sources(&machine(Some(""), None, &[]).collect()), [file]);
    assert_eq!(sources(&machine(Some(""), None, &["--eviction-hard="]).collect()), [file, "flag"]);
    let dropins: &[(&str, &str)] = &[("1.conf", ""), ("2/3.conf", "")];
    let all = machine(Some(""), Some(dropins), &["--image-gc-high-threshold=90"]).collect();
    let (one, two) = ("dropin /etc/kubernetes/conf.d/1.conf", "dropin /etc/kubernetes/conf.d/2/3.conf");
    assert_eq!(sources(&all), [file, one, two, "flag"]);
}

#[test]
fn without_a_kubelet_its_defaults_and_they_say_so() {
    let machine = Machine::new();
    let samples = machine.collect();
    assert_eq!(sources(&samples), ["default"]);
    assert!(samples.errors().is_empty(), "{:?}", samples.errors());
    // Whether pods are held to a limit is then not known.
    assert_eq!(thresholds(&samples), expected(&pairs(DEFAULTS), &Pairs::new(), false));
    assert_eq!(samples.value(&eviction::AVAILABLE_BYTES, &["allocatableMemory.available"]), None);
    let about = machine.services().samples(&machine.host(), soon(), Instant::now());
    assert_eq!(about.value(&CONTROL_PLANE, &[]), Some(0.0));
}

#[test]
fn our_file_without_a_kubelet() {
    let mut machine = Machine::new();
    machine.write("root/k.yaml", &format!("{HEAD}evictionHard: {{pid.available: 5%}}"));
    machine.settings.config = Some("/k.yaml".into());
    let samples = machine.collect();
    assert_eq!(sources(&samples), ["file /k.yaml"]);
    assert_eq!(thresholds(&samples), expected(&pairs("pid.available=5%"), &Pairs::new(), true));
}

#[test]
fn our_file_in_place_of_the_kubelets() {
    let mut machine = machine(Some(""), Some(&[("1.conf", "evictionHard: {pid.available: 5%}")]), &[]);
    machine.write("root/k.yaml", &format!("{HEAD}evictionHard: {{memory.available: 1Gi}}"));
    machine.settings.config = Some("/k.yaml".into());
    let samples = machine.collect();
    let hard = pairs("memory.available=1Gi pid.available=5%");
    assert_eq!(thresholds(&samples), expected(&hard, &Pairs::new(), true), "its drop-ins still count");
    assert_eq!(sources(&samples), ["file /k.yaml", "dropin /etc/kubernetes/conf.d/1.conf"]);
}

#[test]
fn headroom_is_of_capacity() {
    let samples = machine(Some(""), None, &[]).collect();
    let headroom = |signal| samples.value(&eviction::HEADROOM, &[signal, "hard"]).unwrap();
    assert_eq!(headroom("nodefs.available"), ((30 * GIB) as f64 - 10_737_418_400.0) / DISK as f64);
    assert_eq!(headroom("imagefs.available"), ((30 * GIB) as f64 - 16_106_128_000.0) / DISK as f64);
    assert_eq!(headroom("memory.available"), ((MEMORY - 2 * GIB) as f64 - 104_857_600.0) / MEMORY as f64);
    assert_eq!(samples.value(&eviction::MEMORY_AVAILABLE, &[]), Some((MEMORY / 4) as f64));
}

#[test]
fn a_machine_without_any_of_it_is_not_applicable() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let roots = Roots { proc: at("proc"), sys: at("sys"), root: at("root") };
    let host = Host::recorded(roots, Vec::new());
    let collector = (eviction::MODE.build)(&Default::default(), &Services::default());
    let error = collector.collect(Context::new(&host, soon())).unwrap_err();
    assert_eq!(error.reason(), Reason::Absent);
}

#[test]
fn every_series_is_declared() {
    let config = "evictionSoft: {pid.available: 9%}\nevictionSoftGracePeriod: {pid.available: 1m}\n\
        evictionMinimumReclaim: {nodefs.available: 1Gi, nodefs.inodesFree: 2%, pid.available: '100'}";
    let samples = machine(Some(config), None, &[]).collect();
    for row in samples.rows() {
        assert!(eviction::MODE.metrics.iter().any(|metric| std::ptr::eq(*metric, row.metric)), "{}", row.metric.name);
    }
    // Drift takes a kubelet that tells what it runs with (configz.rs), images take a runtime.
    let not_here =
        [&eviction::CONFIG_DRIFT, &eviction::IMAGES, &eviction::IMAGES_BYTES, &eviction::IMAGES_UNUSED_BYTES];
    let here = |metric: &&&headroom::metric::Metric| !not_here.iter().any(|other| std::ptr::eq(**metric, *other));
    for metric in eviction::MODE.metrics.iter().filter(here) {
        assert!(samples.rows().iter().any(|row| std::ptr::eq(row.metric, *metric)), "{} is never filled", metric.name);
    }
}
