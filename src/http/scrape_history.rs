//! The last few scrapes, kept for `/`: alert rules look back over minutes and hours.
//!
//! What is kept is the very samples of the scrapes that come anyway, so an exporter which only serves `/metrics` pays a
//! few pointers for each, and the memory of a dozen pages; `docs/performance.md` has it. No rule is parsed before
//! somebody opens `/`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::metric::Samples;
use crate::modes::Mode;
use crate::scrape::{Run, Scrape};

/// Pages that are kept at the most.
#[cfg(test)]
const MOST: usize = 12;

/// How far back they reach: the longest window of the rules, but for one of a day.
const REACH: Duration = Duration::from_secs(6 * 3600);

/// Of this long there is one page in each [`NEAR_STEP`]: rules compare quarters of the last hour with each other, each
/// by a window of 14 minutes. Further back there is one in each [`FAR_STEP`].
const NEAR: Duration = Duration::from_secs(62 * 60);
const NEAR_STEP: Duration = Duration::from_secs(12 * 60);
const FAR_STEP: Duration = Duration::from_secs(2 * 3600);

/// From one page to the next: two Prometheis, or a person who reloads, must not push out the past.
const STEP: Duration = Duration::from_secs(14);

/// One scrape of all modes.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) at: SystemTime,
    pub(super) runs: Vec<(&'static Mode, Arc<Run>)>,
    /// How the collectors fared.
    pub(super) collectors: Arc<Samples>,
    /// What is known of the node itself.
    pub(super) node: Arc<Samples>,
    /// The exporter's own process.
    pub(super) own: Arc<Samples>,
}

impl Taken {
    pub(super) fn new(at: SystemTime, scrape: Scrape, own: Samples) -> Self {
        Taken {
            at,
            runs: scrape.runs,
            collectors: Arc::new(scrape.about),
            node: Arc::new(scrape.node),
            own: Arc::new(own),
        }
    }

    /// All its samples.
    pub(super) fn samples(&self) -> impl Iterator<Item = &Samples> {
        self.runs.iter().map(|(_, run)| &*run.samples).chain([&*self.collectors, &*self.node, &*self.own])
    }
}

/// The scrapes that are kept, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<Vec<Arc<Taken>>>);

impl Recent {
    /// Those that are kept.
    fn pages(&self) -> Vec<Arc<Taken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Those that are kept, and a fresh one, in the order of their times: one that was begun at the same moment may be
    /// kept before the fresh one and be younger. The fresh one may be among those that are kept.
    pub(super) fn pages_with(&self, fresh: Option<&Arc<Taken>>) -> Vec<Arc<Taken>> {
        let mut pages = self.pages();
        pages.extend(fresh.map(Arc::clone));
        pages.sort_by_key(|page| page.at);
        pages
    }

    /// Keeps one more, unless it comes right after the last.
    pub(super) fn keep(&self, taken: &Arc<Taken>) {
        let mut pages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match pages.last().map(|last| taken.at.duration_since(last.at)) {
            Some(Ok(since)) if since < STEP => return,
            // A scrape may be overtaken by another one; when it is more than that, the clock was set back, and the
            // times of the past are wrong.
            Some(Err(back)) if back.duration() < REACH.min(STEP * 4) => return,
            Some(Err(_)) => pages.clear(),
            _ => {}
        }
        pages.push(Arc::clone(taken));
        thin(&mut pages, taken.at);
    }
}

/// Keeps the last two pages, and of the others the first one in each step.
fn thin(pages: &mut Vec<Arc<Taken>>, now: SystemTime) {
    let step = |at: SystemTime, length: Duration| {
        at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() / length.as_secs())
    };
    let last_two = pages.len().saturating_sub(2);
    let (mut place, mut before) = (0, None);
    pages.retain(|page| {
        let age = now.duration_since(page.at).unwrap_or_default();
        let length = if age <= NEAR { NEAR_STEP } else { FAR_STEP };
        let first = before.is_none_or(|before| step(before, length) != step(page.at, length));
        let stays = age <= REACH && (first || place >= last_two);
        place += 1;
        if stays {
            before = Some(page.at);
        }
        stays
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(seconds: u64) -> Arc<Taken> {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        Arc::new(Taken { at, runs: Vec::new(), collectors: Arc::default(), node: Arc::default(), own: Arc::default() })
    }

    fn ages(recent: &Recent, now: u64) -> Vec<u64> {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now);
        recent.pages().iter().map(|page| now.duration_since(page.at).unwrap().as_secs()).collect()
    }

    #[test]
    fn a_page_that_was_overtaken_is_not_the_newest() {
        let recent = Recent::default();
        recent.keep(&taken(100));
        let times = |fresh: Option<u64>| {
            let fresh = fresh.map(taken);
            recent.pages_with(fresh.as_ref()).iter().map(|page| page.at).collect::<Vec<_>>()
        };
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(times(Some(99)), [at(99), at(100)]);
        assert_eq!(times(Some(101)), [at(100), at(101)]);
        assert_eq!(times(None), [at(100)]);
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
                assert!((4 * 3600..=6 * 3600).contains(&ages[0]), "{ages:?}");
                assert_eq!(ages[ages.len() - 2..], [step as u64, 0], "the newest two stay");
                for quarter in 0..4 {
                    let window = quarter * 900..=quarter * 900 + 840;
                    assert!(ages.iter().any(|age| window.contains(age)), "nothing in quarter {quarter}: {ages:?}");
                }
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
