//! The configuration that a kubelet runs with, from everything that it was told.
//!
//! The order of `cmd/kubelet/app/server.go:216`, which does not do what one would expect:
//! 1. defaults, which hold **no** hard eviction threshold;
//! 2. `--config` replaces them; only here are the five known thresholds filled in, all of them if `evictionHard` is not
//!    there, the missing ones if `mergeDefaultEvictionSettings` is set *in this file*;
//! 3. each drop-in of `--config-dir` is a JSON merge patch on the result: it adds to a map and `null` takes a key away;
//! 4. flags replace whole maps.
//!
//! What came of it the running kubelet tells at `/configz` ([`Configuration::of_configz`]).
//!
//! So a kubelet with flags only has no hard threshold at all, and the same partial map means "only these" in the file
//! and "these and the defaults" in a drop-in.
//!
//! That is 1.31 and later. Of the version that it is told (of an unknown one as of 1.36):
//! - `imagefs.inodesFree` has a default since 1.30, and `mergeDefaultEvictionSettings` exists since 1.33;
//! - up to 1.25 the four defaults stand in step 1 as well (`apis/config/v1beta1/defaults.go:211`);
//! - drop-ins exist since 1.28. There each is a configuration of its own, with all defaults in it, that is laid over
//!   what there is. In 1.29 and 1.30 they are patches of each other, and what comes of it is laid over the file (the
//!   keys of the two are written otherwise): `null` takes away what an earlier drop-in said, and nothing of the file.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use super::config_file::{self, Role};
use super::flags::Flags;
use super::version::{Version, before};
use crate::client::Server;
use crate::error::{Error, Result};
use crate::values;

const DEFAULT_EVICTION_HARD: [(&str, &str); 5] = [
    ("memory.available", "100Mi"),
    ("nodefs.available", "10%"),
    ("nodefs.inodesFree", "5%"),
    ("imagefs.available", "15%"),
    ("imagefs.inodesFree", "5%"),
];

/// What a kubelet fills in for a `--config` file without `evictionHard` (`pkg/kubelet/eviction/defaults_linux.go:22`).
/// The comment of the API type leaves the last one out; the code has it, since 1.30. None of them is about pids.
pub fn default_eviction_hard(version: Option<&Version>) -> &'static [(&'static str, &'static str)] {
    if before(version, 30) { &DEFAULT_EVICTION_HARD[..4] } else { &DEFAULT_EVICTION_HARD }
}

/// Where the kubelet keeps the logs of pods unless it is told otherwise.
pub const DEFAULT_POD_LOGS_DIR: &str = "/var/log/pods";

/// How long a pressure condition stays unless the kubelet is told otherwise.
const DEFAULT_TRANSITION_PERIOD: Duration = Duration::from_secs(300);

/// One place that a configuration came from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The running kubelet said so, at this address.
    Configz(String),
    /// The kubelet's command line.
    Flag,
    /// The file of `--config`.
    File(PathBuf),
    /// One file of `--config-dir`.
    Dropin(PathBuf),
    /// No kubelet was found and none of its files was named: the kubelet's own defaults.
    Default,
}

impl Source {
    /// The value of the `source` label.
    pub fn as_str(&self) -> &'static str {
        match self {
            Source::Configz(_) => "configz",
            Source::Flag => "flag",
            Source::File(_) => "file",
            Source::Dropin(_) => "dropin",
            Source::Default => "default",
        }
    }

    /// The file, on the machine, or the address.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Source::Configz(url) => Some(Path::new(url)),
            Source::File(path) | Source::Dropin(path) => Some(path),
            Source::Flag | Source::Default => None,
        }
    }
}

/// A file that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// As the machine calls it.
    pub path: PathBuf,
    /// What is in it.
    pub text: String,
}

/// What a kubelet was told, read and not yet understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KubeletInputs {
    /// Its command line; `None` if no kubelet runs.
    pub flags: Option<Flags>,
    /// The file of `--config`.
    pub file: Option<Text>,
    /// The files of `--config-dir` in the order of the walk; `None` without that flag.
    pub dropins: Option<Vec<Text>>,
    /// Which kubelet it is; `None`: unknown.
    pub version: Option<Version>,
}

/// What it runs with. The maps are as `/configz` shows them: before they are parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// `evictionHard`
    pub eviction_hard: BTreeMap<String, String>,
    /// `evictionSoft`
    pub eviction_soft: BTreeMap<String, String>,
    /// `evictionSoftGracePeriod`
    pub eviction_soft_grace_period: BTreeMap<String, String>,
    /// `evictionMinimumReclaim`
    pub eviction_minimum_reclaim: BTreeMap<String, String>,
    /// `evictionPressureTransitionPeriod`: how long a pressure condition stays after its cause is gone.
    pub eviction_pressure_transition_period: Duration,
    /// `imageGCHighThresholdPercent`: above this use of the image file system images are collected.
    pub image_gc_high_percent: i32,
    /// `imageGCLowThresholdPercent`: down to this.
    pub image_gc_low_percent: i32,
    /// `enforceNodeAllocatable`
    pub enforce_node_allocatable: Vec<String>,
    /// `--experimental-allocatable-ignore-eviction`
    pub ignore_allocatable_eviction: bool,
    /// `cgroupRoot`; empty: the root.
    pub cgroup_root: String,
    /// `containerRuntimeEndpoint`, if anyone named one.
    pub runtime_endpoint: Option<String>,
    /// `podLogsDir`: where the logs of pods are. Before 1.29 nobody could choose.
    pub pod_logs_dir: String,
    /// `address`: where its API listens; empty: on every address.
    pub address: String,
    /// `port` of its API.
    pub port: u16,
    /// `tlsCertFile`: the certificate that its API shows, if it was given one.
    pub tls_cert_file: Option<PathBuf>,
    /// Which kubelet is to run with it; `None`: unknown.
    pub version: Option<Version>,
}

impl KubeletInputs {
    /// Where this comes from, in the order in which it counts.
    pub fn sources(&self) -> Vec<Source> {
        let mut sources = Vec::new();
        sources.extend(self.file.iter().map(|file| Source::File(file.path.clone())));
        sources.extend(self.dropins.iter().flatten().map(|dropin| Source::Dropin(dropin.path.clone())));
        match &self.flags {
            Some(flags) if flags.decide() || sources.is_empty() => sources.push(Source::Flag),
            None if sources.is_empty() && self.dropins.is_none() => sources.push(Source::Default),
            _ => {}
        }
        sources
    }

    /// The configuration that a kubelet makes of it.
    ///
    /// # Errors
    /// Malformed where a kubelet would refuse to start.
    pub fn effective(&self) -> Result<Configuration> {
        let merged = self.merged(|_, _| {})?;
        let mut configuration = Configuration::of(&merged).map_err(|error| self.blame(error))?;
        configuration.version.clone_from(&self.version);
        if let Some(flags) = &self.flags {
            if let Some(refused) = &flags.refused {
                return Err(refused.clone());
            }
            configuration.override_with(flags);
        }
        configuration.validate().map_err(|error| self.blame(error))?;
        Ok(configuration)
    }

    /// Its files merged; `step` sees the result after each of them.
    pub(super) fn merged(&self, mut step: impl FnMut(Source, &Map<String, Value>)) -> Result<Map<String, Value>> {
        let version = self.version.as_ref();
        let mut merged = Map::new();
        match &self.file {
            Some(Text { path, text }) => {
                merged = base(text, version).map_err(|error| error.context(path.display()))?;
                if self.dropins.is_some() && !before(version, 31) {
                    // The kubelet writes its configuration out and reads it back to patch it; an empty list is not
                    // written.
                    merged.retain(|_, value| !value.as_array().is_some_and(Vec::is_empty));
                }
                step(Source::File(path.clone()), &merged);
            }
            // Nobody runs; or a kubelet that has the defaults however it is told.
            None if self.dropins.is_none() && (self.flags.is_none() || before(version, 26)) => {
                merged.insert("evictionHard".to_owned(), with_defaults(Map::new(), version));
                step(Source::Default, &merged);
            }
            None => {}
        }
        if let Some(version) = version.filter(|_| self.dropins.is_some() && before(version, 28)) {
            return Err(Error::malformed(format!("a kubelet {version} does not know --config-dir: it came with 1.28")));
        }
        // What the drop-ins say together, for those who lay it over the file.
        let (file, mut over) = (merged.clone(), Map::new());
        for Text { path, text } in self.dropins.iter().flatten() {
            let about = |error: Error| error.context(path.display());
            let patch = || config_file::parse(text, Role::Dropin).map_err(about);
            if before(version, 29) {
                config_file::overlay(&mut merged, whole(text, version).map_err(about)?);
            } else if before(version, 31) {
                config_file::merge(&mut over, patch()?);
                merged.clone_from(&file);
                config_file::overlay(&mut merged, over.clone());
            } else {
                config_file::merge(&mut merged, patch()?);
            }
            step(Source::Dropin(path.clone()), &merged);
        }
        Ok(merged)
    }

    /// Says of an error in the merged configuration which sources it was merged from.
    pub fn blame(&self, error: Error) -> Error {
        let mut places: Vec<String> = self
            .sources()
            .iter()
            .map(|source| source.path().map_or_else(|| "flags".to_owned(), |path| path.display().to_string()))
            .collect();
        let more = places.len().saturating_sub(4);
        places.truncate(4);
        if more > 0 {
            places.push(format!("{more} more"));
        }
        error.context(format_args!("kubelet configuration of {}", places.join(", ")))
    }
}

/// A drop-in of 1.28: a file like that of `--config`, with every default filled in
/// (`pkg/kubelet/apis/config/v1beta1/defaults.go`, as far as it is of interest here).
fn whole(text: &str, version: Option<&Version>) -> Result<Map<String, Value>> {
    let mut map = base(text, version)?;
    let mut default = |field: &str, value: Value| {
        let missing = matches!(map.get(field), None | Some(Value::Null));
        if missing || map.get(field) == Some(&Value::from("")) {
            map.insert(field.to_owned(), value);
        }
    };
    default("address", Value::from("0.0.0.0"));
    default("port", Value::from(Server::Kubelet.default_port()));
    default("containerRuntimeEndpoint", Value::from("unix:///run/containerd/containerd.sock"));
    default("enforceNodeAllocatable", Value::from(vec!["pods"]));
    default("evictionPressureTransitionPeriod", Value::from("5m0s"));
    default("imageGCHighThresholdPercent", Value::from(85));
    default("imageGCLowThresholdPercent", Value::from(80));
    // Nothing empty lies over anything (mergo's `WithOverride`).
    map.retain(|_, value| match value {
        Value::Array(list) => !list.is_empty(),
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::Bool(value) => *value,
        _ => true,
    });
    Ok(map)
}

/// Step 2: the file of `--config` with the thresholds that the kubelet fills in.
fn base(text: &str, version: Option<&Version>) -> Result<Map<String, Value>> {
    let mut map = config_file::parse(text, Role::Base)?;
    // The file is decoded into its type at once, so that a wrong value is refused even where a drop-in mends it later.
    Configuration::of(&map)?;
    let merge = boolean(&map, "mergeDefaultEvictionSettings")?.unwrap_or(false) && !before(version, 33);
    match map.get_mut("evictionHard") {
        None | Some(Value::Null) => {
            map.insert("evictionHard".to_owned(), with_defaults(Map::new(), version));
        }
        Some(Value::Object(hard)) => {
            // A key without a value is the empty string to Go, not nothing.
            hard.values_mut().filter(|value| value.is_null()).for_each(|value| *value = Value::from(""));
            if merge {
                *hard = match with_defaults(std::mem::take(hard), version) {
                    Value::Object(filled) => filled,
                    _ => Map::new(),
                };
            }
        }
        Some(_) => {}
    }
    Ok(map)
}

fn with_defaults(mut hard: Map<String, Value>, version: Option<&Version>) -> Value {
    for &(signal, value) in default_eviction_hard(version) {
        hard.entry(signal).or_insert_with(|| Value::from(value));
    }
    Value::Object(hard)
}

impl Configuration {
    /// What a kubelet answers at `/configz`. Everything is merged and every default filled in, so what is not there is
    /// not set.
    ///
    /// # Errors
    /// Malformed if it is none.
    pub fn of_configz(text: &str) -> Result<Self> {
        let not = |what: &str| Error::malformed(format!("not the answer of a kubelet's /configz: {what}"));
        let answer: Value = serde_json::from_str(text).map_err(|error| not(&format!("not JSON: {error}")))?;
        let map = answer.get("kubeletconfig").and_then(Value::as_object).ok_or_else(|| not("no kubeletconfig"))?;
        // Always there, unlike the thresholds: without it their absence would prove nothing.
        if integer(map, "imageGCHighThresholdPercent")?.is_none() {
            return Err(not("no imageGCHighThresholdPercent"));
        }
        let mut configuration = Self::of(map)?;
        // Written with omitempty: an empty list is not there.
        configuration.enforce_node_allocatable = list(map, "enforceNodeAllocatable")?.unwrap_or_default();
        // The flag can make it 0, and then it is.
        if let Some(transition) = period(map, "evictionPressureTransitionPeriod")? {
            configuration.eviction_pressure_transition_period = transition;
        }
        configuration.validate()?;
        Ok(configuration)
    }

    /// The typed fields of a merged document, defaults where it says nothing (`v1beta1/defaults.go`).
    pub(super) fn of(map: &Map<String, Value>) -> Result<Self> {
        Ok(Configuration {
            eviction_hard: strings(map, "evictionHard")?,
            eviction_soft: strings(map, "evictionSoft")?,
            eviction_soft_grace_period: strings(map, "evictionSoftGracePeriod")?,
            eviction_minimum_reclaim: strings(map, "evictionMinimumReclaim")?,
            // In a file 0 is not set.
            eviction_pressure_transition_period: period(map, "evictionPressureTransitionPeriod")?
                .filter(|period| !period.is_zero())
                .unwrap_or(DEFAULT_TRANSITION_PERIOD),
            image_gc_high_percent: integer(map, "imageGCHighThresholdPercent")?.unwrap_or(85),
            image_gc_low_percent: integer(map, "imageGCLowThresholdPercent")?.unwrap_or(80),
            enforce_node_allocatable: list(map, "enforceNodeAllocatable")?.unwrap_or_else(|| vec!["pods".to_owned()]),
            ignore_allocatable_eviction: false,
            cgroup_root: string(map, "cgroupRoot")?.unwrap_or_default(),
            runtime_endpoint: string(map, "containerRuntimeEndpoint")?.filter(|endpoint| !endpoint.is_empty()),
            pod_logs_dir: string(map, "podLogsDir")?
                .filter(|dir| !dir.is_empty())
                .unwrap_or_else(|| DEFAULT_POD_LOGS_DIR.to_owned()),
            address: string(map, "address")?.unwrap_or_default(),
            port: integer(map, "port")?
                .and_then(|port| u16::try_from(port).ok())
                .filter(|port| *port != 0)
                .unwrap_or_else(|| Server::Kubelet.default_port()),
            tls_cert_file: string(map, "tlsCertFile")?.filter(|file| !file.is_empty()).map(PathBuf::from),
            version: None,
        })
    }

    fn override_with(&mut self, flags: &Flags) {
        fn replace<T: Clone>(target: &mut T, flag: Option<&T>) {
            if let Some(value) = flag {
                target.clone_from(value);
            }
        }
        replace(&mut self.eviction_hard, flags.eviction_hard.as_ref());
        replace(&mut self.eviction_soft, flags.eviction_soft.as_ref());
        replace(&mut self.eviction_soft_grace_period, flags.eviction_soft_grace_period.as_ref());
        replace(&mut self.eviction_minimum_reclaim, flags.eviction_minimum_reclaim.as_ref());
        let transition = flags.eviction_pressure_transition_period.as_ref();
        replace(&mut self.eviction_pressure_transition_period, transition);
        replace(&mut self.image_gc_high_percent, flags.image_gc_high.as_ref());
        replace(&mut self.image_gc_low_percent, flags.image_gc_low.as_ref());
        replace(&mut self.enforce_node_allocatable, flags.enforce_node_allocatable.as_ref());
        replace(&mut self.cgroup_root, flags.cgroup_root.as_ref());
        if flags.runtime_endpoint.is_some() {
            self.runtime_endpoint.clone_from(&flags.runtime_endpoint);
        }
        self.ignore_allocatable_eviction = flags.ignore_allocatable_eviction;
        replace(&mut self.address, flags.address.as_ref());
        replace(&mut self.port, flags.port.as_ref());
        if flags.tls_cert_file.is_some() {
            self.tls_cert_file.clone_from(&flags.tls_cert_file);
        }
    }

    /// Where its API is reached from its own machine: a kubelet that listens everywhere does so on the loopback too.
    pub fn api(&self) -> (IpAddr, u16) {
        let address = self.address.parse().ok().filter(|address: &IpAddr| !address.is_unspecified());
        (address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), self.port)
    }

    /// What `pkg/kubelet/apis/config/validation` refuses of it. Thresholds are looked at where they are parsed.
    fn validate(&self) -> Result<()> {
        let (high, low) = (self.image_gc_high_percent, self.image_gc_low_percent);
        for (name, value) in [("imageGCHighThresholdPercent", high), ("imageGCLowThresholdPercent", low)] {
            if !(0..=100).contains(&value) {
                return Err(Error::malformed(format!("{name} is {value}: a kubelet wants 0 to 100")));
            }
        }
        if low >= high {
            return Err(Error::malformed(format!(
                "imageGCLowThresholdPercent is {low}: a kubelet wants less than imageGCHighThresholdPercent, {high}"
            )));
        }
        Ok(())
    }
}

fn wrong(field: &str, value: &Value, wanted: &str) -> Error {
    let found = match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    };
    let quote = if wanted == "a string" { " (put it in quotes)" } else { "" };
    Error::malformed(format!("{field} is {found}, {value}: a kubelet wants {wanted}{quote}"))
}

fn strings(map: &Map<String, Value>, field: &str) -> Result<BTreeMap<String, String>> {
    match map.get(field) {
        None | Some(Value::Null) => Ok(BTreeMap::new()),
        Some(Value::Object(values)) => values
            .iter()
            .map(|(key, value)| match value {
                Value::String(text) => Ok((key.clone(), text.clone())),
                Value::Null => Ok((key.clone(), String::new())),
                other => Err(wrong(&format!("{field} {key}"), other, "a string")),
            })
            .collect(),
        Some(other) => Err(wrong(field, other, "a mapping of signals to values")),
    }
}

fn string(map: &Map<String, Value>, field: &str) -> Result<Option<String>> {
    match map.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(wrong(field, other, "a string")),
    }
}

fn period(map: &Map<String, Value>, field: &str) -> Result<Option<Duration>> {
    string(map, field)?.map(|text| values::duration(&text).map_err(|error| error.context(field))).transpose()
}

fn boolean(map: &Map<String, Value>, field: &str) -> Result<Option<bool>> {
    match map.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(other) => Err(wrong(field, other, "true or false")),
    }
}

fn integer(map: &Map<String, Value>, field: &str) -> Result<Option<i32>> {
    let value = match map.get(field) {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value,
    };
    // `85.0` reaches the kubelet as 85: the conversion from YAML writes it so.
    let whole = value.as_i64().or_else(|| value.as_f64().filter(|n| n.fract() == 0.0).map(|n| n as i64));
    match whole.and_then(|n| i32::try_from(n).ok()) {
        Some(n) => Ok(Some(n)),
        None => Err(wrong(field, value, "a whole number")),
    }
}

fn list(map: &Map<String, Value>, field: &str) -> Result<Option<Vec<String>>> {
    match map.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| match item {
                Value::String(text) => Ok(text.clone()),
                Value::Null => Ok(String::new()),
                other => Err(wrong(field, other, "a list of strings")),
            })
            .collect::<Result<_>>()
            .map(Some),
        Some(other) => Err(wrong(field, other, "a list of strings")),
    }
}
