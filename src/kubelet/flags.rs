//! The kubelet's command line: those of its flags that decide about eviction, and which apiserver and node it is about.
//!
//! Flags are parsed as pflag does it for the kubelet: `--a=b` or `--a b`, underscores as good as dashes (component-base
//! `cli/flag/flags.go`, `WordSepNormalizeFunc`), the last of a repeated scalar wins, maps and lists accumulate. A flag
//! that is not of interest is skipped; where its value is an argument of its own, that is skipped too, since it does
//! not begin with `--`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::values;

/// What the command line says. `None`: not on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--config`
    pub config: Option<PathBuf>,
    /// `--config-dir`
    pub config_dir: Option<PathBuf>,
    /// `--root-dir`
    pub root_dir: Option<PathBuf>,
    /// `--kubeconfig`
    pub kubeconfig: Option<PathBuf>,
    /// `--hostname-override`
    pub hostname_override: Option<String>,
    /// `--cert-dir`
    pub cert_dir: Option<PathBuf>,
    /// `--address`
    pub address: Option<String>,
    /// `--port`
    pub port: Option<u16>,
    /// `--tls-cert-file`
    pub tls_cert_file: Option<PathBuf>,
    /// `--cgroup-root`
    pub cgroup_root: Option<String>,
    /// `--container-runtime-endpoint`
    pub runtime_endpoint: Option<String>,
    /// `--eviction-hard`: replaces the whole map of the configuration files, also when it is empty.
    pub eviction_hard: Option<BTreeMap<String, String>>,
    /// `--eviction-soft`
    pub eviction_soft: Option<BTreeMap<String, String>>,
    /// `--eviction-soft-grace-period`
    pub eviction_soft_grace_period: Option<BTreeMap<String, String>>,
    /// `--eviction-minimum-reclaim`
    pub eviction_minimum_reclaim: Option<BTreeMap<String, String>>,
    /// `--eviction-pressure-transition-period`
    pub eviction_pressure_transition_period: Option<Duration>,
    /// `--image-gc-high-threshold`
    pub image_gc_high: Option<i32>,
    /// `--image-gc-low-threshold`
    pub image_gc_low: Option<i32>,
    /// `--enforce-node-allocatable`
    pub enforce_node_allocatable: Option<Vec<String>>,
    /// `--experimental-allocatable-ignore-eviction`: no threshold for allocatableMemory.available.
    pub ignore_allocatable_eviction: bool,
    /// The first thing on it that a kubelet would refuse. The paths above are as good as they can be all the same.
    pub refused: Option<Error>,
}

impl Flags {
    /// Parses the arguments that follow the program's name.
    pub fn parse<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Self {
        let mut flags = Flags::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let Some(flag) = argument.strip_prefix("--") else { continue };
            if flag.is_empty() {
                break;
            }
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (flag, None),
            };
            let name = name.replace('_', "-");
            if name == "experimental-allocatable-ignore-eviction" {
                flags.ignore_allocatable_eviction =
                    !matches!(value, Some("false" | "False" | "FALSE" | "f" | "F" | "0"));
            } else if KNOWN.contains(&name.as_str()) {
                let result = match value.or_else(|| arguments.next()) {
                    Some(value) => flags.set(&name, value),
                    None => Err(Error::malformed("needs a value")),
                };
                if let Err(error) = result {
                    flags.refused.get_or_insert(error.context(format_args!("flag --{name} of the kubelet")));
                }
            }
        }
        flags
    }

    /// True if any of the flags says something about eviction or image collection.
    pub fn decide(&self) -> bool {
        self.eviction_hard.is_some()
            || self.eviction_soft.is_some()
            || self.eviction_soft_grace_period.is_some()
            || self.eviction_minimum_reclaim.is_some()
            || self.eviction_pressure_transition_period.is_some()
            || self.image_gc_high.is_some()
            || self.image_gc_low.is_some()
            || self.enforce_node_allocatable.is_some()
            || self.ignore_allocatable_eviction
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let text = || (!value.is_empty()).then(|| value.to_owned());
        match name {
            "config" => self.config = text().map(PathBuf::from),
            "config-dir" => self.config_dir = text().map(PathBuf::from),
            "root-dir" => self.root_dir = text().map(PathBuf::from),
            "kubeconfig" => self.kubeconfig = text().map(PathBuf::from),
            "hostname-override" => self.hostname_override = text(),
            "cert-dir" => self.cert_dir = text().map(PathBuf::from),
            "address" => self.address = text(),
            "port" => self.port = u16::try_from(integer(value)?).ok().filter(|port| *port != 0),
            "tls-cert-file" => self.tls_cert_file = text().map(PathBuf::from),
            "cgroup-root" => self.cgroup_root = text(),
            "container-runtime-endpoint" => self.runtime_endpoint = text(),
            "eviction-hard" => pairs(&mut self.eviction_hard, value, '<')?,
            "eviction-soft" => pairs(&mut self.eviction_soft, value, '<')?,
            "eviction-soft-grace-period" => pairs(&mut self.eviction_soft_grace_period, value, '=')?,
            "eviction-minimum-reclaim" => pairs(&mut self.eviction_minimum_reclaim, value, '=')?,
            "eviction-pressure-transition-period" => {
                self.eviction_pressure_transition_period = Some(values::duration(value)?);
            }
            "image-gc-high-threshold" => self.image_gc_high = Some(integer(value)?),
            "image-gc-low-threshold" => self.image_gc_low = Some(integer(value)?),
            "enforce-node-allocatable" => {
                let list = self.enforce_node_allocatable.get_or_insert_default();
                list.extend(
                    value.split(',').filter(|item| !item.is_empty()).map(|item| item.trim_matches('"').to_owned()),
                );
            }
            _ => {}
        }
        Ok(())
    }
}

/// The flags that take a value and are of interest.
const KNOWN: [&str; 19] = [
    "config",
    "config-dir",
    "root-dir",
    "kubeconfig",
    "hostname-override",
    "cert-dir",
    "address",
    "port",
    "tls-cert-file",
    "cgroup-root",
    "container-runtime-endpoint",
    "eviction-hard",
    "eviction-soft",
    "eviction-soft-grace-period",
    "eviction-minimum-reclaim",
    "eviction-pressure-transition-period",
    "image-gc-high-threshold",
    "image-gc-low-threshold",
    "enforce-node-allocatable",
];

/// One use of a map flag: `a<1,b<2`. The first use makes the map, further ones add to it; an empty value makes it and
/// adds nothing (component-base `cli/flag/langle_separated_map_string_string.go:50`, `map_string_string.go`).
fn pairs(map: &mut Option<BTreeMap<String, String>>, value: &str, separator: char) -> Result<()> {
    let map = map.get_or_insert_default();
    for pair in value.split(',').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once(separator).ok_or_else(|| {
            Error::malformed(format!("{pair:?} is not a pair: the kubelet wants signal{separator}value"))
        })?;
        map.insert(key.trim().to_owned(), value.trim().to_owned());
    }
    Ok(())
}

fn integer(value: &str) -> Result<i32> {
    value.parse().map_err(|_| Error::malformed(format!("{value:?} is not a whole number")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> Option<BTreeMap<String, String>> {
        Some(pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect())
    }

    #[test]
    fn both_forms_and_underscores() {
        let flags = Flags::parse(["--config=/a", "--config_dir", "/b", "--v", "2", "-v", "3", "--root-dir", "--odd"]);
        assert_eq!(flags.config.as_deref(), Some("/a".as_ref()));
        assert_eq!(flags.config_dir.as_deref(), Some("/b".as_ref()));
        assert_eq!(flags.root_dir.as_deref(), Some("--odd".as_ref()), "a value flag takes whatever follows");
        assert_eq!(flags.refused, None);
        assert!(!flags.decide());
    }

    #[test]
    fn the_last_scalar_wins_and_empty_is_none() {
        assert_eq!(Flags::parse(["--config=/a", "--config=/b"]).config.as_deref(), Some("/b".as_ref()));
        assert_eq!(Flags::parse(["--config=/a", "--config="]).config, None);
        assert_eq!(Flags::parse(["--", "--config=/a"]).config, None);
    }

    #[test]
    fn maps_accumulate() {
        let flags = Flags::parse([
            "--eviction-hard=memory.available<1Gi,nodefs.available<10%",
            "--fail-swap-on",
            "--eviction-hard",
            " pid.available < 5% ,memory.available<2Gi,",
            "--eviction-soft-grace-period=memory.available=1m30s",
            "--eviction-minimum-reclaim=memory.available=0Mi",
        ]);
        let hard = map(&[("memory.available", "2Gi"), ("nodefs.available", "10%"), ("pid.available", "5%")]);
        assert_eq!(flags.eviction_hard, hard);
        assert_eq!(flags.eviction_soft_grace_period, map(&[("memory.available", "1m30s")]));
        assert_eq!(flags.eviction_minimum_reclaim, map(&[("memory.available", "0Mi")]));
        assert!(flags.decide());
    }

    #[test]
    fn an_empty_map_is_not_an_absent_one() {
        assert_eq!(Flags::parse(["--eviction-hard="]).eviction_hard, map(&[]));
        assert_eq!(Flags::parse(["--eviction-hard", ""]).eviction_hard, map(&[]));
        assert_eq!(Flags::parse([]).eviction_hard, None);
    }

    #[test]
    fn pairs_as_component_base_splits_them() {
        assert_eq!(Flags::parse(["--eviction-hard=a<b<c"]).eviction_hard, map(&[("a", "b<c")]));
        assert_eq!(Flags::parse(["--eviction-hard=<5"]).eviction_hard, map(&[("", "5")]));
        let error = Flags::parse(["--eviction-hard=memory.available=5"]).refused.unwrap();
        assert!(error.to_string().contains("--eviction-hard") && error.to_string().contains("signal<value"), "{error}");
    }

    #[test]
    fn durations() {
        let period = |flag| Flags::parse([flag]).eviction_pressure_transition_period;
        assert_eq!(period("--eviction-pressure-transition-period=1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(period("--eviction-pressure-transition-period=0"), Some(Duration::ZERO));
        let flags = Flags::parse(["--eviction-pressure-transition-period", "30s"]);
        assert!(flags.decide());
        assert!(Flags::parse(["--eviction-pressure-transition-period=5"]).refused.is_some());
    }

    #[test]
    fn numbers_and_lists() {
        let flags = Flags::parse(["--image-gc-high-threshold=90", "--image-gc-low-threshold", "70"]);
        assert_eq!((flags.image_gc_high, flags.image_gc_low), (Some(90), Some(70)));
        let list = |flags: &[&str]| Flags::parse(flags.iter().copied()).enforce_node_allocatable;
        assert_eq!(list(&["--enforce-node-allocatable=pods,system-reserved"]).unwrap(), ["pods", "system-reserved"]);
        assert_eq!(list(&["--enforce-node-allocatable="]), Some(vec![]));
        assert!(Flags::parse(["--image-gc-high-threshold=85%"]).refused.is_some());
        assert!(Flags::parse(["--image-gc-high-threshold"]).refused.is_some());
    }

    #[test]
    fn what_is_refused_does_not_hide_the_paths() {
        let flags = Flags::parse(["--eviction-hard=nonsense", "--root-dir=/data/kubelet"]);
        assert!(flags.refused.is_some());
        assert_eq!(flags.root_dir.as_deref(), Some("/data/kubelet".as_ref()));
    }

    #[test]
    fn switches_take_no_separate_value() {
        let name = "--experimental-allocatable-ignore-eviction";
        assert!(Flags::parse([name, "--config=/a"]).ignore_allocatable_eviction);
        assert!(!Flags::parse([format!("{name}=false").as_str()]).ignore_allocatable_eviction);
    }
}
