//! Since when the runtime has not known each directory below kubepods.
//!
//! A directory and the runtime's list are never read at the same moment, and pods come and go in between. What makes a false
//! orphan of a race impossible is the order: the runtime is asked *first*, then the directories are looked at, and a directory is
//! proven unknown only if
//!
//! 1. an earlier walk had seen it (by inode number, which kernfs gives to no other directory),
//! 2. then the runtime was asked, and did not know it,
//! 3. then this walk sees it again.
//!
//! So it existed when the runtime was asked. The other way around a container that is deleted between walk and question would
//! look unknown; without the earlier walk one that is made between question and walk would. An answer may be shared with
//! other modes: what counts is when its poll began, not when we asked.
//!
//! What remains is no race of ours but a state of the runtime: containerd 1.6 lists a sandbox only when it runs, some hundred
//! milliseconds after its cgroup was made, and a pod's own directory is there before its first sandbox and after its last. This
//! is what the grace period is for, and why no grace period counts as less than [`SETTLE`].

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::idle::MOST;

/// A sandbox is registered within a second or two of its cgroup on a slow machine; with a shorter grace period each would be an
/// orphan for a moment.
pub(super) const SETTLE: Duration = Duration::from_secs(5);

/// One directory that the runtime does not know.
#[derive(Clone, Copy, Debug)]
struct Stranger {
    /// The end of the first walk that saw it while it was unknown.
    seen: Instant,
    /// The first question to the runtime after that.
    proven: Option<Instant>,
}

/// The directories that the runtime does not know. Holds only what the last complete walk saw, so it is as bounded as that.
#[derive(Debug, Default)]
pub(super) struct UnknownToRuntime {
    known: HashMap<u64, Stranger>,
    /// When the runtime was last asked and answered.
    asked: Option<Instant>,
    /// Since then it did not answer at least once: that time makes nobody older.
    paused: bool,
}

impl UnknownToRuntime {
    /// Takes in what the runtime did not know to a question that began to be `asked` then, of what the walk that ended at `walked` saw. What the runtime
    /// knows, and what is gone, is forgotten; if the walk was cut short (`complete` is false), what was not seen is not.
    pub(super) fn update(
        &mut self,
        unknown: impl Iterator<Item = u64>,
        asked: Instant,
        walked: Instant,
        complete: bool,
    ) {
        if let (true, Some(last)) = (self.paused, self.asked) {
            let gap = asked.saturating_duration_since(last);
            self.known.values_mut().for_each(|one| one.proven = one.proven.map(|proven| proven + gap));
        }
        (self.paused, self.asked) = (false, Some(asked));
        let mut now: HashMap<u64, Stranger> = HashMap::new();
        for inode in unknown.take(MOST) {
            let mut one = self.known.get(&inode).copied().unwrap_or(Stranger { seen: walked, proven: None });
            if one.proven.is_none() && asked >= one.seen {
                one.proven = Some(asked);
            }
            now.insert(inode, one);
        }
        if complete {
            self.known = now;
        } else if self.known.len() + now.len() <= MOST {
            self.known.extend(now);
        }
    }

    /// The runtime did not answer: nobody becomes an orphan by that, and nobody's age is lost. Only what is gone is forgotten.
    pub(super) fn pause(&mut self, present: &std::collections::HashSet<u64>, complete: bool) {
        self.paused = true;
        if complete {
            self.known.retain(|inode, _| present.contains(inode));
        }
    }

    /// True if there is nobody to forget.
    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// True if the runtime has not known the directory for `grace` or longer, by proof at both ends.
    pub(super) fn reached(&self, inode: u64, grace: Duration) -> bool {
        let proven = self.known.get(&inode).and_then(|one| one.proven);
        let age = proven.zip(self.asked).map(|(proven, asked)| asked.saturating_duration_since(proven));
        age.is_some_and(|age| age >= grace.max(SETTLE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, seconds: f64) -> Instant {
        start + Duration::from_secs_f64(seconds)
    }

    /// One scrape: the runtime is asked, then a walk of 0.1 s.
    fn scrape(strangers: &mut UnknownToRuntime, start: Instant, seconds: f64, unknown: &[u64]) {
        strangers.update(unknown.iter().copied(), at(start, seconds), at(start, seconds + 0.1), true);
    }

    #[test]
    fn proof_needs_an_earlier_walk_then_a_question_then_a_walk() {
        let start = Instant::now();
        let mut strangers = UnknownToRuntime::default();
        let grace = Duration::from_secs(60);
        scrape(&mut strangers, start, 0.0, &[1]);
        scrape(&mut strangers, start, 30.0, &[1]);
        scrape(&mut strangers, start, 89.0, &[1]);
        assert!(!strangers.reached(1, grace), "proven at 30, not at 0");
        scrape(&mut strangers, start, 90.0, &[1]);
        assert!(strangers.reached(1, grace));
        scrape(&mut strangers, start, 120.0, &[]);
        assert!(!strangers.reached(1, grace) && strangers.is_empty(), "gone, or known after all");
        scrape(&mut strangers, start, 150.0, &[1]);
        scrape(&mut strangers, start, 180.0, &[1]);
        assert!(!strangers.reached(1, Duration::ZERO), "begins anew");
    }

    #[test]
    fn a_shared_answer_older_than_the_first_walk_proves_nothing() {
        let start = Instant::now();
        let mut strangers = UnknownToRuntime::default();
        for walked in [10.0, 10.5, 10.9] {
            strangers.update([1].into_iter(), at(start, 9.9), at(start, walked), true);
            assert_eq!(strangers.known[&1].proven, None, "{walked}");
        }
        scrape(&mut strangers, start, 11.0, &[1]);
        assert_eq!(strangers.known[&1].proven, Some(at(start, 11.0)));
    }

    #[test]
    fn no_grace_is_a_little_grace() {
        let start = Instant::now();
        let mut strangers = UnknownToRuntime::default();
        for second in [0.0, 2.0, 6.9] {
            scrape(&mut strangers, start, second, &[1]);
            assert!(!strangers.reached(1, Duration::ZERO), "{second}");
        }
        scrape(&mut strangers, start, 7.0, &[1]);
        assert!(strangers.reached(1, Duration::ZERO));
    }

    #[test]
    fn while_the_runtime_is_silent_nobody_ages_and_nobody_is_forgotten() {
        let start = Instant::now();
        let mut strangers = UnknownToRuntime::default();
        let grace = Duration::from_secs(60);
        for second in [0.0, 10.0, 40.0] {
            scrape(&mut strangers, start, second, &[1, 2]);
        }
        strangers.pause(&[1].into(), true);
        strangers.pause(&[].into(), false);
        assert_eq!(strangers.known.len(), 1, "2 is gone; a cut walk says nothing about 1");
        scrape(&mut strangers, start, 1000.0, &[1]);
        assert!(!strangers.reached(1, grace), "30 s before, none between");
        scrape(&mut strangers, start, 1029.0, &[1]);
        assert!(!strangers.reached(1, grace));
        scrape(&mut strangers, start, 1030.0, &[1]);
        assert!(strangers.reached(1, grace), "30 s before and 30 s after");
    }

    #[test]
    fn a_cut_walk_forgets_nothing_and_stays_bounded() {
        let start = Instant::now();
        let mut strangers = UnknownToRuntime::default();
        for second in [0.0, 10.0, 20.0] {
            scrape(&mut strangers, start, second, &[1]);
        }
        strangers.update([].into_iter(), at(start, 30.0), at(start, 31.0), false);
        assert!(strangers.reached(1, Duration::from_secs(20)));
        for round in 0..3 {
            let many = (0..MOST as u64).map(|inode| inode + round * MOST as u64);
            strangers.update(many, at(start, 40.0), at(start, 41.0), false);
        }
        assert!(strangers.known.len() <= MOST);
    }

    /// A thousand containers whose cgroup is there up to 2 s before the runtime lists them (a sandbox of containerd 1.6) and up to
    /// 2 s after it has forgotten them, scraped back to back with answers up to a second old and no grace at all.
    #[test]
    fn churn_makes_no_orphan() {
        let mut seed = 1_u64;
        let mut random = move |below: f64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as f64 / f64::from(1_u32 << 31) * below
        };
        // (made, listed, forgotten, removed)
        let lives: Vec<[f64; 4]> = (0..1000)
            .map(|_| {
                let made = random(600.0);
                let listed = made + random(2.0);
                let forgotten = listed + random(8.0);
                [made, listed, forgotten, forgotten + random(2.0)]
            })
            .collect();
        let left_over = 1000;
        let start = Instant::now();
        let mut strangers = UnknownToRuntime::default();
        let (mut clock, mut sighted, mut found) = (0.0, 0, None);
        while clock < 620.0 {
            // The answer may be a shared one, and what it says is of some moment of its poll.
            let asked = (clock - random(1.0)).max(0.0);
            let polled = asked + random(clock + 0.1 - asked);
            let answered = clock + 0.1;
            // Each directory is looked at somewhere in the walk.
            let walked = answered + random(0.3);
            let mut unknown = vec![left_over];
            for (inode, &[made, listed, forgotten, removed]) in lives.iter().enumerate() {
                let looked = answered + random(walked - answered);
                if (made..removed).contains(&looked) && !(listed..forgotten).contains(&polled) {
                    unknown.push(inode as u64);
                }
            }
            sighted += unknown.len() - 1;
            strangers.update(unknown.into_iter(), at(start, asked), at(start, walked), true);
            for inode in 0..1000 {
                assert!(!strangers.reached(inode, Duration::ZERO), "{:?} at {asked}", lives[inode as usize]);
            }
            if strangers.reached(left_over, Duration::ZERO) {
                found.get_or_insert(asked);
            }
            clock = walked + random(0.1);
        }
        assert!(sighted > 1000, "the races were there: {sighted}");
        assert!(found.is_some_and(|after| after < 8.0), "{found:?}");
    }
}
