//! Which thresholds the kubelet has met and not resolved yet. Pure.
//!
//! A threshold once met stays met until the threshold and the minimum reclaim are available: `synchronize` keeps those
//! it acts on (`eviction_manager.go`, `m.thresholdsMet`) and compares them with more than it compares new ones with. It
//! keeps them in memory, so between the two a look alone cannot tell, and another process knows nothing of them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::kubelet::signals::Signal;

/// What earlier looks have seen: one entry for each signal and type at the most.
#[derive(Debug, Default)]
pub(super) struct Met {
    /// The process that has met them, and when it started.
    kubelet: Option<(u32, u64)>,
    seen: BTreeMap<(Signal, bool), Seen>,
}

/// What is available, against a threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// Less than the threshold.
    Below,
    /// Less than the threshold and the minimum reclaim.
    Between,
    /// Enough.
    Above,
}

/// What is known of a threshold.
#[derive(Clone, Copy, Debug)]
enum Seen {
    /// It is not met, as of then.
    Unmet(Instant),
    /// It is crossed, and the grace period may still run. Not yet so `before`, if that was seen.
    Crossed { since: Instant, before: Option<Instant> },
    /// The kubelet acts on it, until it is resolved.
    Acting,
    /// It is not crossed, and may be met.
    Unknown,
}

impl Reading {
    pub(super) fn of(available: f64, threshold: f64, reclaim: f64) -> Self {
        match available {
            _ if available < threshold => Reading::Below,
            _ if available < threshold + reclaim => Reading::Between,
            _ => Reading::Above,
        }
    }
}

impl Met {
    /// Forgets what another process had met. `None`: it does not run, or cannot be looked at; what it had met counts
    /// until another one is seen.
    pub(super) fn is_of(&mut self, kubelet: Option<(u32, u64)>) {
        if kubelet.is_some() && self.kubelet != kubelet {
            *self = Met { kubelet, ..Met::default() };
        }
    }

    /// Takes note of a reading. True from when the threshold is crossed until it is resolved; `None`: unknown. `grace`:
    /// for so long the kubelet does not act on it, and forgets it if it is not crossed any more.
    pub(super) fn look(
        &mut self,
        threshold: (Signal, bool),
        reading: Reading,
        grace: Duration,
        now: Instant,
    ) -> Option<bool> {
        let before = self.seen.get(&threshold).copied();
        let seen = match (reading, before) {
            (Reading::Above, _) => Seen::Unmet(now),
            (Reading::Below | Reading::Between, Some(Seen::Acting)) => Seen::Acting,
            (Reading::Below, before) => {
                let (since, before) = match before {
                    Some(Seen::Crossed { since, before }) => (since, before),
                    Some(Seen::Unmet(at)) => (now, Some(at)),
                    _ => (now, None),
                };
                if now.duration_since(since) >= grace { Seen::Acting } else { Seen::Crossed { since, before } }
            }
            (Reading::Between, Some(Seen::Unmet(_))) => Seen::Unmet(now),
            // Not for the whole grace period, whenever between two looks it was crossed.
            (Reading::Between, Some(Seen::Crossed { before: Some(at), .. })) if now.duration_since(at) < grace => {
                Seen::Unmet(now)
            }
            (Reading::Between, _) => Seen::Unknown,
        };
        self.seen.insert(threshold, seen);
        match seen {
            Seen::Unmet(_) => Some(false),
            Seen::Crossed { .. } | Seen::Acting => Some(true),
            Seen::Unknown => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Reading::{Above, Below, Between};
    use super::*;

    /// What is said of one threshold with this grace period, at these seconds.
    fn told(met: &mut Met, grace: u64, start: Instant, readings: &[(u64, Reading)]) -> Vec<Option<bool>> {
        let grace = Duration::from_secs(grace);
        let look = |&(at, reading)| {
            let threshold = (Signal::NodefsAvailable, grace.is_zero());
            met.look(threshold, reading, grace, start + Duration::from_secs(at))
        };
        readings.iter().map(look).collect()
    }

    fn of_a_start(grace: u64, readings: &[(u64, Reading)]) -> Vec<Option<bool>> {
        told(&mut Met::default(), grace, Instant::now(), readings)
    }

    const YES: Option<bool> = Some(true);
    const NO: Option<bool> = Some(false);

    #[test]
    fn readings_are_strict_as_the_kubelets() {
        for (available, reading) in [(4.9, Below), (5.0, Between), (14.9, Between), (15.0, Above)] {
            assert_eq!(Reading::of(available, 5.0, 10.0), reading, "{available}");
        }
        assert_eq!(Reading::of(5.0, 5.0, 0.0), Above, "without a minimum reclaim nothing lies between");
    }

    #[test]
    fn a_hard_threshold_is_met_until_it_is_resolved() {
        let readings = [
            (0, Above),
            (15, Between),
            (30, Below),
            (45, Between),
            (60, Below),
            (75, Between),
            (7200, Between),
            (7215, Above),
            (7230, Between),
        ];
        assert_eq!(of_a_start(0, &readings), [NO, NO, YES, YES, YES, YES, YES, NO, NO]);
    }

    #[test]
    fn what_nobody_has_seen_is_not_known() {
        let readings = [(0, Between), (15, Between), (30, Below), (45, Between)];
        assert_eq!(of_a_start(0, &readings), [None, None, YES, YES]);
        assert_eq!(of_a_start(0, &[(0, Between), (15, Above), (30, Between)]), [None, NO, NO]);
        assert_eq!(of_a_start(0, &[(0, Below), (15, Between)]), [YES, YES]);
    }

    #[test]
    fn a_kubelet_that_is_away_keeps_what_it_had_and_another_starts_anew() {
        let (mut met, start) = (Met::default(), Instant::now());
        let told = |met: &mut Met, at, reading| told(met, 0, start, &[(at, reading)])[0];
        assert_eq!(told(&mut met, 0, Below), YES);
        // The first one that is seen: what was crossed before is not what it has met.
        met.is_of(Some((7, 100)));
        assert_eq!(told(&mut met, 15, Between), None);
        assert_eq!(told(&mut met, 30, Below), YES);
        for same in [Some((7, 100)), None, None, Some((7, 100))] {
            met.is_of(same);
            assert_eq!(told(&mut met, 45, Between), YES, "{same:?}");
        }
        // The same number, another process.
        met.is_of(Some((7, 900)));
        assert_eq!(told(&mut met, 60, Between), None);
        met.is_of(None);
        assert_eq!(told(&mut met, 75, Below), YES);
        met.is_of(Some((8, 901)));
        assert_eq!(told(&mut met, 90, Below), YES, "it sees that itself");
        assert_eq!(told(&mut met, 105, Above), NO);
    }

    #[test]
    fn a_soft_threshold_is_acted_on_after_its_grace_period() {
        let crossed_for = |seconds: u64| [(0, Above), (15, Below), (15 + seconds, Below), (30 + seconds, Between)];
        assert_eq!(of_a_start(60, &crossed_for(60)), [NO, YES, YES, YES]);
        // Above it again before 60 s have gone: the kubelet forgets it, and nothing was evicted.
        assert_eq!(of_a_start(60, &crossed_for(15)), [NO, YES, YES, NO]);
        // 45 s at the least and 75 s at the most.
        assert_eq!(of_a_start(60, &crossed_for(45)), [NO, YES, YES, None]);
        // Nobody saw when it began.
        assert_eq!(of_a_start(60, &[(0, Below), (15, Between), (30, Above)]), [YES, None, NO]);
        assert_eq!(of_a_start(60, &[(0, Below), (60, Below), (75, Between)]), [YES, YES, YES]);
    }

    #[test]
    fn thresholds_are_told_apart() {
        let (mut met, now) = (Met::default(), Instant::now());
        let mut look = |signal, hard, reading| met.look((signal, hard), reading, Duration::ZERO, now);
        assert_eq!(look(Signal::NodefsAvailable, true, Below), YES);
        assert_eq!(look(Signal::NodefsAvailable, false, Between), None);
        assert_eq!(look(Signal::ImagefsAvailable, true, Between), None);
        assert_eq!(look(Signal::NodefsAvailable, true, Between), YES);
    }
}
