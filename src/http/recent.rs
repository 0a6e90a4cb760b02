//! The last few scrapes, kept for `/`: alert rules look back over minutes and hours.
//!
//! What is kept is the very samples of the scrapes that come anyway, so an exporter which only serves `/metrics` pays a few pointers
//! for each, and the memory of [`MOST`] pages; `docs/performance.md` has it. No rule is parsed before somebody opens `/`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::metric::Samples;
use crate::modes::Mode;
use crate::scrape::{Run, Scrape};

/// Pages that are kept.
const MOST: usize = 12;

/// How far back they reach: the longest window of the rules, but for one of a day.
const REACH: Duration = Duration::from_secs(6 * 3600);

/// From one page to the next: two Prometheis, or a person who reloads, must not push out the past.
const STEP: Duration = Duration::from_secs(14);

/// Up to this age pages lie about evenly, further back ever wider apart: most rules look back over minutes, some over hours.
const EVEN: Duration = Duration::from_secs(15 * 60);

/// One scrape of all modes.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) at: SystemTime,
    pub(super) runs: Vec<(&'static Mode, Arc<Run>)>,
    /// How the collectors fared.
    pub(super) collectors: Arc<Samples>,
    /// The exporter's own process.
    pub(super) own: Arc<Samples>,
}

impl Taken {
    pub(super) fn new(at: SystemTime, scrape: Scrape, own: Samples) -> Self {
        Taken { at, runs: scrape.runs, collectors: Arc::new(scrape.about), own: Arc::new(own) }
    }

    /// All its samples.
    pub(super) fn samples(&self) -> impl Iterator<Item = &Samples> {
        self.runs.iter().map(|(_, run)| &*run.samples).chain([&*self.collectors, &*self.own])
    }
}

/// The scrapes that are kept, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<Vec<Arc<Taken>>>);

impl Recent {
    /// Those that are kept.
    pub(super) fn pages(&self) -> Vec<Arc<Taken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps one more, unless it comes right after the last.
    pub(super) fn keep(&self, taken: &Arc<Taken>) {
        let mut pages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match pages.last().map(|last| taken.at.duration_since(last.at)) {
            Some(Ok(since)) if since < STEP => return,
            // A scrape may be overtaken by another one; when it is more than that, the clock was set back, and the times of the past are
            // wrong.
            Some(Err(back)) if back.duration() < REACH.min(STEP * 4) => return,
            Some(Err(_)) => pages.clear(),
            _ => {}
        }
        pages.push(Arc::clone(taken));
        thin(&mut pages, taken.at, |page| page.at);
    }
}

/// Forgets what is too old, and of the rest, but the first and the last two, those whose neighbours are closest for their age.
fn thin<T>(pages: &mut Vec<T>, now: SystemTime, at: impl Fn(&T) -> SystemTime) {
    let age = |page: &T| now.duration_since(at(page)).unwrap_or_default();
    pages.retain(|page| age(page) <= REACH);
    while pages.len() > MOST {
        let gap = |place: usize| {
            let (older, newer) = (age(&pages[place - 1]), age(&pages[place + 1]));
            (older - newer).as_secs_f64() / (older + EVEN).as_secs_f64()
        };
        let Some(place) = (1..pages.len() - 2).min_by(|a, b| gap(*a).total_cmp(&gap(*b))) else { break };
        pages.remove(place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(seconds: u64) -> Arc<Taken> {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        Arc::new(Taken { at, runs: Vec::new(), collectors: Arc::default(), own: Arc::default() })
    }

    fn ages(recent: &Recent, now: u64) -> Vec<u64> {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now);
        recent.pages().iter().map(|page| now.duration_since(page.at).unwrap().as_secs()).collect()
    }

    #[test]
    fn a_day_of_scrapes_is_a_few_pages_that_reach_back_for_hours() {
        for step in [15, 30, 60] {
            let recent = Recent::default();
            for now in (100_000..200_000).step_by(step) {
                recent.keep(&taken(now));
                let ages = ages(&recent, now);
                assert!(ages.len() <= MOST, "{ages:?}");
                if now < 100_000 + REACH.as_secs() {
                    assert_eq!(ages[0], now - 100_000, "the first one stays until it is too old");
                    continue;
                }
                assert!((3 * 3600..=6 * 3600).contains(&ages[0]), "{ages:?}");
                assert_eq!(ages[ages.len() - 2..], [step as u64, 0], "the newest two stay");
                let near = ages.iter().filter(|age| **age > step as u64 && **age <= 900).count();
                assert!(near >= 1, "nothing between the newest two and a quarter of an hour: {ages:?}");
            }
        }
    }

    #[test]
    fn who_reloads_does_not_push_out_the_past() {
        let recent = Recent::default();
        for now in [1_000, 1_001, 1_010, 1_015, 1_016] {
            recent.keep(&taken(now));
        }
        assert_eq!(ages(&recent, 1_016), [16, 1]);
    }

    #[test]
    fn a_clock_that_is_set_back_begins_anew() {
        let recent = Recent::default();
        for now in [100_000, 100_030, 100_025, 50_000] {
            recent.keep(&taken(now));
        }
        assert_eq!(ages(&recent, 50_000), [0]);
    }
}
