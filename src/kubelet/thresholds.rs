//! Eviction thresholds: parsed as the kubelet parses them, and resolved against a capacity as it does
//! (`pkg/kubelet/eviction/helpers.go`, `eviction/api/types.go:111`).

use std::collections::BTreeMap;
use std::time::Duration;

use super::configuration::Configuration;
use super::quantity;
use super::signals::Signal;
use super::version::{Version, before};
use crate::error::{Error, Result};

/// How much must be left.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// So many bytes, inodes or pids.
    Quantity(i128),
    /// This part of the capacity, in single precision.
    Fraction(f32),
}

impl Value {
    /// The quantity that it means for `capacity`: `int64(float64(capacity) * float64(fraction))`.
    pub fn of(self, capacity: u64) -> f64 {
        match self {
            Value::Quantity(quantity) => quantity as f64,
            Value::Fraction(fraction) => (capacity as f64 * f64::from(fraction)).trunc(),
        }
    }
}

/// One threshold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    /// Of what.
    pub signal: Signal,
    /// How much must be left. It is crossed when *less* than this is available.
    pub value: Value,
    /// For how long it may be crossed; zero: evict at once. The kubelet takes a soft threshold of 0 s for a hard one.
    pub grace_period: Duration,
}

impl Threshold {
    /// True if the kubelet evicts at once.
    pub fn is_hard(&self) -> bool {
        self.grace_period.is_zero()
    }
}

/// Every threshold of a kubelet. A signal may have several of a kind: any of them counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Thresholds {
    /// In the order of the signals.
    pub all: Vec<Threshold>,
    /// Grace periods of the soft ones, zero included.
    pub grace_periods: BTreeMap<Signal, Duration>,
    /// How much more than the threshold must be there before the kubelet stops evicting.
    pub minimum_reclaim: BTreeMap<Signal, Value>,
}

impl Thresholds {
    /// Parses the maps of a configuration.
    ///
    /// # Errors
    /// Malformed where a kubelet would refuse to start.
    pub fn parse(configuration: &Configuration) -> Result<Self> {
        let version = configuration.version.as_ref();
        let mut all = Vec::new();
        for (signal, value) in statements("evictionHard", &configuration.eviction_hard, version)? {
            all.push(Threshold { signal, value, grace_period: Duration::ZERO });
        }
        let soft = statements("evictionSoft", &configuration.eviction_soft, version)?;
        let mut periods = grace_periods(&configuration.eviction_soft_grace_period, version)?;
        let mut minimum_reclaim = minimum_reclaims(&configuration.eviction_minimum_reclaim, version)?;
        for &(signal, value) in &soft {
            let grace_period = *periods.get(&signal).ok_or_else(|| {
                let signal = signal.as_str();
                Error::malformed(format!("evictionSoft {signal} has no entry in evictionSoftGracePeriod"))
            })?;
            all.push(Threshold { signal, value, grace_period });
        }
        periods.retain(|signal, _| soft.iter().any(|(soft, _)| soft == signal));
        let enforced = configuration.enforce_node_allocatable.iter().any(|key| key == "pods");
        let enforced = enforced && !configuration.ignore_allocatable_eviction;
        let copies: Vec<_> = all
            .iter()
            .filter(|threshold| enforced && threshold.signal == Signal::MemoryAvailable && threshold.is_hard())
            .map(|threshold| Threshold { signal: Signal::AllocatableMemoryAvailable, ..*threshold })
            .collect();
        if let Some(&reclaim) = minimum_reclaim.get(&Signal::MemoryAvailable).filter(|_| !copies.is_empty()) {
            minimum_reclaim.insert(Signal::AllocatableMemoryAvailable, reclaim);
        }
        all.extend(copies);
        all.sort_by_key(|threshold| threshold.signal);
        Ok(Thresholds { all, grace_periods: periods, minimum_reclaim })
    }

    /// The same once the kubelet knows its file systems: whatever was configured for containerfs is replaced by the
    /// thresholds of nodefs, or of imagefs if images and the containers' layers have a device of their own together
    /// (`helpers.go:186`). `None`: not known yet, then there are none.
    #[must_use]
    pub fn on_filesystems(mut self, dedicated_imagefs: Option<bool>) -> Self {
        self.all.retain(|threshold| !is_containerfs(threshold.signal));
        self.grace_periods.retain(|&signal, _| !is_containerfs(signal));
        self.minimum_reclaim.retain(|&signal, _| !is_containerfs(signal));
        let Some(dedicated) = dedicated_imagefs else { return self };
        let copy = |signal| match (dedicated, signal) {
            (false, Signal::NodefsAvailable) | (true, Signal::ImagefsAvailable) => Some(Signal::ContainerfsAvailable),
            (false, Signal::NodefsInodesFree) | (true, Signal::ImagefsInodesFree) => {
                Some(Signal::ContainerfsInodesFree)
            }
            _ => None,
        };
        let copies: Vec<_> =
            self.all.iter().filter_map(|t| Some(Threshold { signal: copy(t.signal)?, ..*t })).collect();
        let periods: Vec<_> = self.grace_periods.iter().filter_map(|(&s, &p)| Some((copy(s)?, p))).collect();
        self.all.extend(copies);
        self.all.sort_by_key(|threshold| threshold.signal);
        self.grace_periods.extend(periods);
        let reclaims: Vec<_> = self.minimum_reclaim.iter().filter_map(|(&s, &r)| Some((copy(s)?, r))).collect();
        self.minimum_reclaim.extend(reclaims);
        self
    }

    /// True if there is a threshold for this signal, hard or soft.
    pub fn watch(&self, signal: Signal) -> bool {
        self.all.iter().any(|threshold| threshold.signal == signal)
    }

    /// The threshold of a signal that is crossed first, of the hard or of the soft ones.
    pub fn resolve(&self, signal: Signal, hard: bool, capacity: u64) -> Option<f64> {
        self.all
            .iter()
            .filter(|threshold| threshold.signal == signal && threshold.is_hard() == hard)
            .map(|threshold| threshold.value.of(capacity))
            .reduce(f64::max)
    }

    /// How much more than its threshold must be available of a signal before the kubelet stops evicting. `None`: not
    /// configured, or there is no threshold that it could be more than.
    pub fn reclaim(&self, signal: Signal, capacity: u64) -> Option<f64> {
        self.minimum_reclaim.get(&signal).filter(|_| self.watch(signal)).map(|reclaim| reclaim.of(capacity))
    }
}

fn is_containerfs(signal: Signal) -> bool {
    matches!(signal, Signal::ContainerfsAvailable | Signal::ContainerfsInodesFree)
}

fn signal(field: &str, name: &str, version: Option<&Version>) -> Result<Signal> {
    let why = match Signal::parse(name) {
        Some(signal) if is_containerfs(signal) && before(version, 29) => {
            ": it came with 1.29, and an older kubelet does not start with it"
        }
        Some(signal) => return Ok(signal),
        None => "; a kubelet does not start with it",
    };
    Err(Error::malformed(format!("{field}: unsupported eviction signal {name:?}{why}")))
}

/// One map of thresholds (`helpers.go:379`). Exactly `0%` and `100%` switch a threshold off.
fn statements(field: &str, map: &BTreeMap<String, String>, version: Option<&Version>) -> Result<Vec<(Signal, Value)>> {
    let mut statements = Vec::new();
    for (name, text) in map {
        let signal = signal(field, name, version)?;
        let value = value(text).map_err(|error| error.context(format_args!("{field} {name}")))?;
        statements.extend(value.map(|value| (signal, value)));
    }
    Ok(statements)
}

/// What one threshold says; `None`: it is switched off.
///
/// # Errors
/// Malformed where a kubelet would refuse to start.
pub fn value(text: &str) -> Result<Option<Value>> {
    if text == "0%" || text == "100%" {
        return Ok(None);
    }
    if text.ends_with('%') {
        let fraction = quantity::percentage(text)?;
        if !(0.0..=1.0).contains(&fraction) {
            return Err(Error::malformed(format!("{text} is not between 0% and 100%")));
        }
        return Ok(Some(Value::Fraction(fraction)));
    }
    let quantity = quantity::quantity(text)?;
    if quantity <= 0 {
        return Err(Error::malformed(format!("{text} is not above 0")));
    }
    Ok(Some(Value::Quantity(quantity)))
}

fn grace_periods(map: &BTreeMap<String, String>, version: Option<&Version>) -> Result<BTreeMap<Signal, Duration>> {
    let field = "evictionSoftGracePeriod";
    map.iter()
        .map(|(name, text)| {
            let period =
                crate::values::duration(text).map_err(|error| error.context(format_args!("{field} {name}")))?;
            Ok((signal(field, name, version)?, period))
        })
        .collect()
}

fn minimum_reclaims(map: &BTreeMap<String, String>, version: Option<&Version>) -> Result<BTreeMap<Signal, Value>> {
    let field = "evictionMinimumReclaim";
    map.iter()
        .map(|(name, text)| {
            let signal = signal(field, name, version)?;
            let about = |error: Error| error.context(format_args!("{field} {name}"));
            if text.ends_with('%') {
                let fraction = quantity::percentage(text).map_err(about)?;
                if fraction <= 0.0 {
                    return Err(about(Error::malformed(format!("{text} is not above 0%"))));
                }
                return Ok((signal, Value::Fraction(fraction)));
            }
            let quantity = quantity::quantity(text).map_err(about)?;
            if quantity < 0 {
                return Err(about(Error::malformed(format!("{text} is below 0"))));
            }
            Ok((signal, Value::Quantity(quantity)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubelet::configuration::KubeletInputs;
    use crate::kubelet::flags::Flags;

    /// The thresholds of a kubelet with these flags only.
    fn parse(flags: &[&str]) -> Result<Thresholds> {
        let told = KubeletInputs { flags: Some(Flags::parse(flags.iter().copied())), ..KubeletInputs::default() };
        Thresholds::parse(&told.effective()?)
    }

    fn hard(pairs: &str) -> Result<Thresholds> {
        parse(&[&format!("--eviction-hard={pairs}"), "--enforce-node-allocatable="])
    }

    #[test]
    fn percentages_are_of_single_precision() {
        let gib = 1_u64 << 30;
        let of = |percent: &str, capacity| Value::Fraction(quantity::percentage(percent).unwrap()).of(capacity);
        assert_eq!(of("10%", 100 * gib), 10_737_418_400.0);
        assert_eq!(of("15%", 100 * gib), 16_106_128_000.0);
        assert_eq!(of("15%", 500 * gib), 80_530_640_000.0);
        assert_eq!(of("5%", 2048 * gib), 109_951_164_416.0);
        assert_eq!(of("10%", 382_318_592), 38_231_859.0, "the 400 MB ext4 that a real kubelet evicted on");
    }

    #[test]
    fn what_switches_a_threshold_off() {
        assert!(hard("nodefs.available<0%,imagefs.available<100%").unwrap().all.is_empty());
        let thresholds = hard("nodefs.available<0.0%").unwrap();
        assert_eq!(thresholds.resolve(Signal::NodefsAvailable, true, 1000), Some(0.0), "only the exact texts do");
        assert_eq!(hard("nodefs.available<100.0%").unwrap().resolve(Signal::NodefsAvailable, true, 1000), Some(1000.0));
    }

    #[test]
    fn what_a_kubelet_refuses() {
        let error = |flags: &[&str]| parse(flags).unwrap_err().to_string();
        assert!(
            error(&["--eviction-hard=disk.available<10%"]).contains("unsupported eviction signal \"disk.available\"")
        );
        assert!(error(&["--eviction-hard=nodefs.available<-1%"]).contains("between"));
        assert!(error(&["--eviction-hard=nodefs.available<101%"]).contains("between"));
        assert!(error(&["--eviction-hard=memory.available<0"]).contains("not above 0"));
        assert!(error(&["--eviction-hard=memory.available<0Mi"]).contains("not above 0"));
        assert!(error(&["--eviction-hard=memory.available<-5"]).contains("not above 0"));
        assert!(error(&["--eviction-hard=memory.available<"]).contains("not a quantity"));
        assert!(error(&["--eviction-hard=memory.available<lots"]).contains("memory.available"));
        assert!(error(&["--eviction-soft=memory.available<1Gi"]).contains("evictionSoftGracePeriod"));
        assert!(error(&["--eviction-soft-grace-period=memory.available=5"]).contains("not a duration"));
        assert!(error(&["--eviction-soft-grace-period=memory.available=-5s"]).contains("negative"));
        assert!(error(&["--eviction-soft-grace-period=memory=5s"]).contains("unsupported"));
        assert!(error(&["--eviction-minimum-reclaim=memory.available=0%"]).contains("not above"));
        assert!(error(&["--eviction-minimum-reclaim=memory.available=-1"]).contains("below"));
        assert!(error(&["--eviction-minimum-reclaim=x=1"]).contains("unsupported"));
        assert!(parse(&["--eviction-minimum-reclaim=memory.available=0Mi"]).is_ok());
        assert!(parse(&["--eviction-soft-grace-period=memory.available=5s"]).unwrap().grace_periods.is_empty());
    }

    #[test]
    fn allocatable_memory_follows_hard_memory() {
        let flags = "--eviction-hard=memory.available<100Mi";
        let thresholds = parse(&[flags]).unwrap();
        assert!(thresholds.watch(Signal::AllocatableMemoryAvailable));
        assert_eq!(thresholds.resolve(Signal::AllocatableMemoryAvailable, true, 1), Some(104_857_600.0));
        assert!(!parse(&[flags, "--enforce-node-allocatable=none"]).unwrap().watch(Signal::AllocatableMemoryAvailable));
        assert!(
            !parse(&[flags, "--experimental-allocatable-ignore-eviction"])
                .unwrap()
                .watch(Signal::AllocatableMemoryAvailable)
        );
        assert!(!parse(&["--eviction-hard=pid.available<5%"]).unwrap().watch(Signal::AllocatableMemoryAvailable));
        let soft = ["--eviction-soft=memory.available<1Gi", "--eviction-soft-grace-period=memory.available=1m"];
        assert!(!parse(&soft).unwrap().watch(Signal::AllocatableMemoryAvailable));
    }

    /// As k3s and RKE2 start it: `GetThresholdQuantity` of the same capacity, and copied with the thresholds.
    #[test]
    fn minimum_reclaim_goes_with_its_threshold() {
        let flags = [
            "--eviction-hard=imagefs.available<5%,nodefs.available<5%,memory.available<100Mi",
            "--eviction-minimum-reclaim=imagefs.available=10%,nodefs.available=1Gi,memory.available=7,pid.available=9",
        ];
        let parsed = parse(&flags).unwrap();
        let reclaims = |dedicated| {
            let thresholds = parsed.clone().on_filesystems(dedicated);
            let signals = [Signal::NodefsAvailable, Signal::ImagefsAvailable, Signal::ContainerfsAvailable];
            signals.map(|signal| thresholds.reclaim(signal, 382_318_592))
        };
        let (gib, tenth) = (Some(1_073_741_824.0), Some(38_231_859.0));
        assert_eq!(reclaims(Some(false)), [gib, tenth, gib], "one device: as nodefs");
        assert_eq!(reclaims(Some(true)), [gib, tenth, tenth], "a device of its own: as imagefs");
        assert_eq!(reclaims(None), [gib, tenth, None], "not known");
        assert_eq!(parsed.reclaim(Signal::AllocatableMemoryAvailable, 1), Some(7.0), "a copy of memory.available");
        assert_eq!(parsed.reclaim(Signal::PidAvailable, 1), None, "of no threshold");
        let own = parse(&["--eviction-minimum-reclaim=containerfs.available=1Gi"]).unwrap();
        let own = own.on_filesystems(Some(false));
        assert_eq!(own.minimum_reclaim.get(&Signal::ContainerfsAvailable), None, "replaced, as its threshold is");
    }

    #[test]
    fn a_soft_threshold_without_grace_is_a_hard_one() {
        let flags = [
            "--eviction-hard=nodefs.available<10%",
            "--eviction-soft=nodefs.available<15%",
            "--eviction-soft-grace-period=nodefs.available=0s",
        ];
        let thresholds = parse(&flags).unwrap();
        assert_eq!(thresholds.resolve(Signal::NodefsAvailable, false, 1000), None);
        assert_eq!(thresholds.resolve(Signal::NodefsAvailable, true, 1000), Some(150.0), "the higher one is met first");
        assert_eq!(thresholds.grace_periods[&Signal::NodefsAvailable], Duration::ZERO);
    }

    #[test]
    fn containerfs_thresholds_are_always_copies() {
        let flags = [
            "--eviction-hard=nodefs.available<10%,imagefs.available<20%,imagefs.inodesFree<7%,containerfs.available<30%",
            "--eviction-soft=nodefs.available<15%,containerfs.inodesFree<9%",
            "--eviction-soft-grace-period=nodefs.available=1m,containerfs.inodesFree=2m",
        ];
        let parsed = parse(&flags).unwrap();
        let resolved = |dedicated| {
            let thresholds = parsed.clone().on_filesystems(dedicated);
            [
                thresholds.resolve(Signal::ContainerfsAvailable, true, 1000),
                thresholds.resolve(Signal::ContainerfsAvailable, false, 1000),
                thresholds.resolve(Signal::ContainerfsInodesFree, true, 1000),
                thresholds.resolve(Signal::ContainerfsInodesFree, false, 1000),
            ]
        };
        assert_eq!(resolved(Some(false)), [Some(100.0), Some(150.0), None, None], "one device: as nodefs");
        assert_eq!(resolved(Some(true)), [Some(200.0), None, Some(70.0), None], "a device of its own: as imagefs");
        assert_eq!(resolved(None), [None; 4], "not known");
        let periods = parsed.on_filesystems(Some(false)).grace_periods;
        assert_eq!(periods.get(&Signal::ContainerfsAvailable), Some(&Duration::from_secs(60)));
        assert_eq!(periods.get(&Signal::ContainerfsInodesFree), None);
    }
}
