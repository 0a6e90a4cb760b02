//! Since when each directory below kubepods has been without a process.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// More are not remembered: the kernel has not many more memory cgroups than this.
pub(super) const MOST: usize = 100_000;

/// Ages by inode number, which on a cgroup file system belongs to one directory for good, whatever its name. Holds only
/// what was idle at the last scrape, so it is as bounded as the walk.
#[derive(Debug, Default)]
pub(super) struct Ages {
    since: HashMap<u64, Instant>,
}

impl Ages {
    /// Takes in what is idle now. Whatever is not forgets its age, unless the walk was cut short (`complete` is false):
    /// then what was not seen keeps it.
    pub(super) fn update(&mut self, idle: impl Iterator<Item = u64>, complete: bool, now: Instant) {
        let idle: HashMap<u64, Instant> =
            idle.take(MOST).map(|inode| (inode, self.since.get(&inode).copied().unwrap_or(now))).collect();
        if complete {
            self.since = idle;
        } else if self.since.len() + idle.len() <= MOST {
            self.since.extend(idle);
        }
    }

    /// True if the directory has been idle for `grace` or longer.
    pub(super) fn reached(&self, inode: u64, grace: Duration, now: Instant) -> bool {
        self.since.get(&inode).is_some_and(|&since| now.duration_since(since) >= grace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(300);

    #[test]
    fn an_age_counts_from_first_seen_idle_and_is_lost_when_busy_or_gone() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut ages = Ages::default();
        ages.update([1, 2].into_iter(), true, start);
        assert!(!ages.reached(1, GRACE, at(299)) && ages.reached(1, GRACE, at(300)));
        ages.update([1].into_iter(), true, at(200));
        assert!(ages.reached(1, GRACE, at(300)), "a scrape in between does not reset it");
        ages.update([1, 2].into_iter(), true, at(250));
        assert!(!ages.reached(2, GRACE, at(549)) && ages.reached(2, GRACE, at(550)), "2 was busy at 200");
        ages.update([].into_iter(), true, at(600));
        assert!(ages.since.is_empty(), "nothing is kept of what is gone");
        assert!(!ages.reached(1, Duration::ZERO, at(600)));
    }

    #[test]
    fn a_cut_walk_forgets_nothing_and_stays_bounded() {
        let now = Instant::now();
        let mut ages = Ages::default();
        ages.update([1].into_iter(), true, now);
        ages.update([].into_iter(), false, now + GRACE);
        assert!(ages.reached(1, GRACE, now + GRACE));
        for round in 0..3 {
            ages.update((0..MOST as u64).map(|inode| inode + round * MOST as u64), false, now);
        }
        assert!(ages.since.len() <= MOST);
    }
}
