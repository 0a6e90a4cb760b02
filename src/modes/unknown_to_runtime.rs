//! Since when the runtime has not known each thing that a walk sees: a directory below kubepods, a reserved address, a
//! mount.
//!
//! What follows is said of directories. A directory and the runtime's list are never read at the same moment, and pods
//! come and go in between. What makes a false orphan of a race impossible is a bracket around the runtime's answer. A
//! poll proves that a directory was unknown only if
//!
//! 1. an earlier scrape saw it (by a key that no other has: kernfs gives an inode number to no other directory): its
//!    walk and its poll had both ended when this poll began,
//! 2. this poll did not know it, and no poll since then did,
//! 3. a walk that began after this poll had ended sees it again.
//!
//! 1 and 3 say that it existed all the time that the runtime was asked, whichever of its lists was read when. Leave
//! out 3, and a container that is removed between walk and poll looks unknown. Leave out 1, and one that is made
//! between poll and walk does.
//!
//! 1 asks for more than a walk before the poll: both are made in each scrape, a few milliseconds apart, and a
//! directory that is made just before them is not yet listed (see below). Its age would begin there, and if it is
//! looked at next just before its end, all of its life would count as time in which nobody knew it. Two scrapes in a
//! row tell more, as long as they are not made within that moment.
//!
//! The walk is shared with other modes, and the poll too. So a walk may begin before this scrape's poll has ended, or
//! before it has begun. Then 3 is open: the poll is pending until the next scrape whose walk began late enough, and
//! until then ages stand where the poll before it left them. An orphan is shown one scrape later for that, and one
//! that is removed meanwhile is never shown. A walk that begins after the poll proves at once: so it is where this
//! mode is the only one that walks, or where somebody asks for a walk that is younger than the poll
//! ([`crate::kubelet::kubepods::Kubepods::look`] takes the moment).
//!
//! What remains is no race of ours but a state of the runtime: containerd 1.6 lists a sandbox only when it runs, some
//! hundred milliseconds after its cgroup was made, and a pod's own directory is there before its first sandbox and
//! after its last. This is what the grace period is for, and why no grace period counts as less than [`SETTLE`].

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// More than these are not remembered.
pub(super) const MOST: usize = 100_000;

/// A sandbox is registered within a second or two of its cgroup on a slow machine; with a shorter grace period each
/// would be an orphan for a moment.
pub(super) const SETTLE: Duration = Duration::from_secs(5);

/// When a poll or a walk began and ended: what it says was so at some moment between.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) began: Instant,
    pub(super) ended: Instant,
}

/// One thing that the runtime does not know.
#[derive(Clone, Copy, Debug)]
struct Stranger {
    /// The end of the first walk that saw it while it was unknown, and of the poll that did not know it then.
    seen: Instant,
    /// When the first poll after that began; it proves something once a walk has followed it.
    proven: Option<Instant>,
}

/// What the runtime does not know. Holds only what the last complete walk saw, so it is as bounded as
/// that.
#[derive(Debug)]
pub(super) struct UnknownToRuntime<K> {
    known: HashMap<K, Stranger>,
    /// When the last poll that the runtime answered began.
    asked: Option<Instant>,
    /// When the last poll began that a walk has followed: ages count until then.
    confirmed: Option<Instant>,
    /// A poll that no walk has followed yet.
    pending: Option<Span>,
    /// Since then it did not answer at least once: that time makes nobody older.
    paused: bool,
}

impl<K> Default for UnknownToRuntime<K> {
    fn default() -> Self {
        UnknownToRuntime { known: HashMap::new(), asked: None, confirmed: None, pending: None, paused: false }
    }
}

impl<K: Eq + Hash> UnknownToRuntime<K> {
    /// Takes in what of that which `walk` saw was unknown to `poll`. What the runtime knows, and what is gone, is
    /// forgotten; if the walk was cut short (`complete` is false), what was not seen is not.
    pub(super) fn update(&mut self, unknown: impl Iterator<Item = K>, poll: Span, walk: Span, complete: bool) {
        if let (true, Some(last)) = (self.paused, self.asked) {
            let gap = poll.began.saturating_duration_since(last);
            let times = self.known.values_mut().filter_map(|one| one.proven.as_mut());
            let times = times.chain(&mut self.confirmed).chain(self.pending.as_mut().map(|poll| &mut poll.began));
            times.for_each(|time| *time += gap);
        }
        (self.paused, self.asked) = (false, Some(poll.began));
        if let Some(before) = self.pending.take_if(|before| before.ended <= walk.began) {
            self.confirmed = Some(before.began);
        }
        if poll.ended <= walk.began {
            self.confirmed = Some(poll.began);
        } else {
            // The older one: so there is always one that the next walk may follow, however the two overlap.
            self.pending.get_or_insert(poll);
        }
        let seen = walk.ended.max(poll.ended);
        let mut now: HashMap<K, Stranger> = HashMap::new();
        for key in unknown.take(MOST) {
            let mut one = self.known.get(&key).copied().unwrap_or(Stranger { seen, proven: None });
            if one.proven.is_none() && one.seen <= poll.began {
                one.proven = Some(poll.began);
            }
            now.insert(key, one);
        }
        if complete {
            self.known = now;
        } else if self.known.len() + now.len() <= MOST {
            self.known.extend(now);
        }
    }

    /// The runtime did not answer: nobody becomes an orphan by that, and nobody's age is lost. Only what is gone is
    /// forgotten.
    pub(super) fn pause(&mut self, present: &HashSet<K>, complete: bool) {
        self.paused = true;
        if complete {
            self.known.retain(|key, _| present.contains(key));
        }
    }

    /// True if there is nobody to forget.
    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// True if the runtime has not known a thing that the last walk saw for `grace` or longer, by proof at both
    /// ends.
    pub(super) fn reached(&self, key: &K, grace: Duration) -> bool {
        let proven = self.known.get(key).and_then(|one| one.proven);
        let age = proven.zip(self.confirmed).map(|(proven, until)| until.saturating_duration_since(proven));
        age.is_some_and(|age| age >= grace.max(SETTLE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, seconds: f64) -> Instant {
        start + Duration::from_secs_f64(seconds)
    }

    fn span(start: Instant, began: f64, ended: f64) -> Span {
        Span { began: at(start, began), ended: at(start, ended) }
    }

    /// One scrape: the runtime is asked, then a walk of 0.1 s.
    fn scrape(strangers: &mut UnknownToRuntime<u64>, start: Instant, seconds: f64, unknown: &[u64]) {
        let (poll, walk) = (span(start, seconds, seconds), span(start, seconds, seconds + 0.1));
        strangers.update(unknown.iter().copied(), poll, walk, true);
    }

    #[test]
    fn proof_needs_an_earlier_walk_then_a_question_then_a_walk() {
        let start = Instant::now();
        let mut strangers = UnknownToRuntime::default();
        let grace = Duration::from_secs(60);
        scrape(&mut strangers, start, 0.0, &[1]);
        scrape(&mut strangers, start, 30.0, &[1]);
        scrape(&mut strangers, start, 89.0, &[1]);
        assert!(!strangers.reached(&1, grace), "proven at 30, not at 0");
        scrape(&mut strangers, start, 90.0, &[1]);
        assert!(strangers.reached(&1, grace));
        scrape(&mut strangers, start, 120.0, &[]);
        assert!(!strangers.reached(&1, grace) && strangers.is_empty(), "gone, or known after all");
        scrape(&mut strangers, start, 150.0, &[1]);
        scrape(&mut strangers, start, 180.0, &[1]);
        assert!(!strangers.reached(&1, Duration::ZERO), "begins anew");
    }

    #[test]
    fn a_shared_answer_older_than_the_first_walk_proves_nothing() {
        let start = Instant::now();
        let mut strangers = UnknownToRuntime::default();
        for walked in [10.0, 10.5, 10.9] {
            strangers.update([1].into_iter(), span(start, 9.9, 9.9), span(start, 9.9, walked), true);
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
            assert!(!strangers.reached(&1, Duration::ZERO), "{second}");
        }
        scrape(&mut strangers, start, 7.0, &[1]);
        assert!(strangers.reached(&1, Duration::ZERO));
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
        assert!(!strangers.reached(&1, grace), "30 s before, none between");
        scrape(&mut strangers, start, 1029.0, &[1]);
        assert!(!strangers.reached(&1, grace));
        scrape(&mut strangers, start, 1030.0, &[1]);
        assert!(strangers.reached(&1, grace), "30 s before and 30 s after");
    }

    #[test]
    fn a_cut_walk_forgets_nothing_and_stays_bounded() {
        let start = Instant::now();
        let mut strangers = UnknownToRuntime::default();
        for second in [0.0, 10.0, 20.0] {
            scrape(&mut strangers, start, second, &[1]);
        }
        strangers.update([].into_iter(), span(start, 30.0, 30.0), span(start, 30.0, 31.0), false);
        assert!(strangers.reached(&1, Duration::from_secs(20)));
        for round in 0..3 {
            let many = (0..MOST as u64).map(|inode| inode + round * MOST as u64);
            strangers.update(many, span(start, 40.0, 40.0), span(start, 40.0, 41.0), false);
        }
        assert!(strangers.known.len() <= MOST);
    }

    /// The runtime answers within 0.1 s.
    const POLL: (f64, f64) = (0.0, 0.1);

    /// Scrapes at these moments, with a poll and a walk so long after each; in which of them directory 1, that is
    /// always unknown, has been so for a minute.
    fn reached_at(moments: &[f64], poll: (f64, f64), walk: (f64, f64)) -> Vec<f64> {
        let start = Instant::now();
        let mut strangers = UnknownToRuntime::default();
        let mut reached = |moment: &f64| {
            let [poll, walk] = [poll, walk].map(|(began, ended)| span(start, moment + began, moment + ended));
            strangers.update([1].into_iter(), poll, walk, true);
            strangers.reached(&1, Duration::from_secs(60))
        };
        moments.iter().copied().filter(|moment| reached(moment)).collect()
    }

    #[test]
    fn a_walk_that_began_before_the_poll_had_ended_leaves_it_to_the_next() {
        let moments = [1.0, 31.0, 61.0, 91.0, 121.0, 151.0];
        assert_eq!(reached_at(&moments, POLL, (0.1, 0.2)), [91.0, 121.0, 151.0], "after the poll: proven at 31");
        for walk in [(0.05, 0.2), (0.02, 0.05), (-0.3, 0.05), (-0.3, -0.2)] {
            assert_eq!(reached_at(&moments, POLL, walk), [121.0, 151.0], "{walk:?}: what the poll at 91 said");
        }
    }

    #[test]
    fn a_scrape_does_not_prove_what_it_is_the_first_to_see() {
        let start = Instant::now();
        let mut strangers = UnknownToRuntime::default();
        // Walk, poll, and the next walk: made just before the first, listed just after the poll.
        strangers.update([1].into_iter(), span(start, 0.2, 0.3), span(start, 0.0, 0.1), true);
        assert_eq!(strangers.known[&1].proven, None);
        // The poll is shared with the next scrape.
        strangers.update([1].into_iter(), span(start, 0.2, 0.3), span(start, 0.5, 0.6), true);
        assert_eq!(strangers.known[&1].proven, None);
        strangers.update([1].into_iter(), span(start, 1.3, 1.4), span(start, 1.5, 1.6), true);
        assert_eq!(strangers.known[&1].proven, Some(at(start, 1.3)));
    }

    #[test]
    fn removed_between_walk_and_poll() {
        let start = Instant::now();
        let mut strangers = UnknownToRuntime::default();
        // Known all its life, and then seen once more by a walk that began before the poll.
        for second in [0.0, 10.0] {
            strangers.update(
                [].into_iter(),
                span(start, second + 0.2, second + 0.3),
                span(start, second, second),
                true,
            );
        }
        strangers.update([1].into_iter(), span(start, 20.2, 20.3), span(start, 20.0, 20.1), true);
        assert!(!strangers.reached(&1, Duration::ZERO));
        strangers.update([].into_iter(), span(start, 30.2, 30.3), span(start, 30.0, 30.1), true);
        assert!(strangers.is_empty());
        // The same of one that was unknown before: what the pending poll said counts only of what is still there.
        for second in [40.0, 41.0, 50.0] {
            strangers.update(
                [2].into_iter(),
                span(start, second + 0.2, second + 0.3),
                span(start, second, second),
                true,
            );
            assert!(!strangers.reached(&2, Duration::ZERO), "{second}");
        }
        strangers.update([].into_iter(), span(start, 60.2, 60.3), span(start, 60.0, 60.1), true);
        assert!(strangers.is_empty() && !strangers.reached(&2, Duration::ZERO));
    }

    #[test]
    fn made_between_poll_and_walk() {
        let start = Instant::now();
        let mut strangers = UnknownToRuntime::default();
        // Made at 0.5, and listed at once: only the poll is too old.
        let poll = span(start, 0.0, 0.1);
        for second in [0.6, 0.8] {
            strangers.update([1].into_iter(), poll, span(start, second, second + 0.1), true);
            assert_eq!(strangers.known[&1].proven, None, "{second}");
        }
        strangers.update([].into_iter(), span(start, 1.2, 1.3), span(start, 1.2, 1.3), true);
        assert!(strangers.is_empty(), "a later poll knows it");
    }

    #[test]
    fn a_shared_poll_waits_for_a_walk_that_began_after_it() {
        let start = Instant::now();
        let mut strangers = UnknownToRuntime::default();
        scrape(&mut strangers, start, 0.0, &[1]);
        scrape(&mut strangers, start, 10.0, &[1]);
        let poll = span(start, 20.0, 21.0);
        strangers.update([1].into_iter(), poll, span(start, 20.5, 20.6), true);
        assert!(!strangers.reached(&1, Duration::from_secs(10)), "begun before the poll had ended");
        // Asked for again, and with the same answer.
        strangers.update([1].into_iter(), poll, span(start, 20.9, 21.5), true);
        assert!(!strangers.reached(&1, Duration::from_secs(10)));
        strangers.update([1].into_iter(), poll, span(start, 21.0, 21.5), true);
        assert!(strangers.reached(&1, Duration::from_secs(10)));
    }

    #[test]
    fn an_age_stays_through_a_silence_while_its_last_poll_is_pending() {
        let start = Instant::now();
        let mut strangers = UnknownToRuntime::default();
        let mut update = |seconds: f64| {
            let poll = span(start, seconds + 0.2, seconds + 0.3);
            strangers.update([1].into_iter(), poll, span(start, seconds, seconds + 0.1), true);
            (strangers.reached(&1, Duration::from_secs(10)), strangers.reached(&1, Duration::from_secs(20)))
        };
        assert_eq!(
            [0.0, 10.0, 20.0, 30.0].map(&mut update),
            [(false, false), (false, false), (false, false), (true, false)]
        );
        strangers.pause(&[1].into(), true);
        let mut update = |seconds: f64| {
            let poll = span(start, seconds + 0.2, seconds + 0.3);
            strangers.update([1].into_iter(), poll, span(start, seconds, seconds + 0.1), true);
            (strangers.reached(&1, Duration::from_secs(20)), strangers.reached(&1, Duration::from_secs(30)))
        };
        // From the poll at 10 to that at 30, which the first walk after the silence confirms; the silence itself
        // counts for nothing.
        assert_eq!([1000.0, 1005.0, 1010.0].map(&mut update), [(true, false), (true, false), (true, false)]);
        assert_eq!(update(1020.0), (true, true), "10 more, by the poll at 1010");
    }

    #[test]
    fn an_age_stays_through_a_silence_that_ends_with_a_pending_poll() {
        let start = Instant::now();
        let mut strangers = UnknownToRuntime::default();
        for second in [0.0, 10.0, 30.0] {
            scrape(&mut strangers, start, second, &[1]);
        }
        strangers.pause(&[1].into(), true);
        strangers.update([1].into_iter(), span(start, 1000.2, 1000.3), span(start, 1000.0, 1000.1), true);
        assert!(strangers.reached(&1, Duration::from_secs(20)) && !strangers.reached(&1, Duration::from_secs(21)));
    }

    #[test]
    fn polls_that_are_always_longer_than_it_takes_to_the_next_walk_prove_all_the_same() {
        let start = Instant::now();
        let mut strangers = UnknownToRuntime::default();
        let mut reached = Vec::new();
        // Each walk begins before the last poll has ended, and after the one before that has.
        for number in 0..12 {
            let began = 3.0 * f64::from(number) + 3.0;
            let (poll, walk) = (span(start, began, began + 2.9), span(start, began - 0.5, began - 0.4));
            strangers.update([1].into_iter(), poll, walk, true);
            reached.push(strangers.reached(&1, Duration::from_secs(15)));
        }
        assert_eq!(reached.iter().position(|reached| *reached), Some(8), "{reached:?}");
    }

    /// A thousand containers whose cgroup is there up to 2 s before the runtime lists them (a sandbox of containerd
    /// 1.6) and up to 2 s after it has forgotten them, scraped with no grace at all. Returns when a directory is
    /// found that nobody ever knew.
    ///
    /// `order` says when the poll and the walk of a scrape begin; `life` is how long the runtime lists a container at
    /// the most.
    fn churn(seed: u64, pause: f64, life: f64, order: impl Fn(&mut dyn FnMut(f64) -> f64) -> (f64, f64)) -> f64 {
        let mut seed = seed;
        let mut random = move |below: f64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as f64 / f64::from(1_u32 << 31) * below
        };
        let last = 10.0 * (pause + life);
        // (made, listed, forgotten, removed)
        let lives: Vec<[f64; 4]> = (0..1000)
            .map(|_| {
                let made = random(last);
                let listed = made + random(2.0);
                let forgotten = listed + random(life);
                [made, listed, forgotten, forgotten + random(2.0)]
            })
            .collect();
        let left_over = 1000;
        let start = Instant::now();
        let mut strangers = UnknownToRuntime::default();
        let (mut clock, mut sighted, mut found) = (10.0, 0, None);
        while clock < last {
            let (before_poll, before_walk) = order(&mut random);
            // What it says is of some moment of its poll, and each directory is looked at somewhere in the walk.
            let asked = clock + before_poll;
            let answered = clock.max(asked) + random(0.2);
            let polled = asked + random(answered - asked);
            let walk = clock + before_walk;
            let walked = walk + random(0.3);
            let mut unknown = vec![left_over];
            for (inode, &[made, listed, forgotten, removed]) in lives.iter().enumerate() {
                let looked = walk + random(walked - walk);
                if (made..removed).contains(&looked) && !(listed..forgotten).contains(&polled) {
                    unknown.push(inode as u64);
                }
            }
            sighted += unknown.len() - 1;
            strangers.update(unknown.iter().copied(), span(start, asked, answered), span(start, walk, walked), true);
            for inode in unknown.into_iter().filter(|inode| *inode != left_over) {
                let life = lives[inode as usize];
                assert!(!strangers.reached(&inode, Duration::ZERO), "{life:?} at {asked}, every {pause} s");
            }
            if strangers.reached(&left_over, Duration::ZERO) {
                found.get_or_insert(asked - 10.0);
            }
            clock = answered.max(walked) + pause + random(0.1);
        }
        assert!(sighted > 20, "the races were there: {sighted}");
        found.unwrap()
    }

    #[test]
    fn churn_makes_no_orphan() {
        for seed in 1..10 {
            // The runtime is asked first, or answered less than a second ago; then this mode walks.
            let found = churn(seed, 0.0, 8.0, |random| (-random(1.0), 0.2));
            assert!(found < 8.0, "{found}");
            // The walk begins at any time before, during and after the poll.
            for (pause, life, soon) in [(0.0, 8.0, 8.0), (4.0, 10.0, 20.0), (15.0, 30.0, 50.0), (60.0, 120.0, 200.0)] {
                let found = churn(seed, pause, life, |random| (random(0.4), random(0.4)));
                assert!(found < soon, "every {pause} s: {found}");
            }
        }
    }
}
