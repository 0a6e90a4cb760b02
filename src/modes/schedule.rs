//! When a probe that asks the apiserver asks next.

use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::Instant;

use crate::apiserver::{Exchange, Outcome};

/// The longest Retry-After that is obeyed: beyond it we would be blind for too long.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// When the clocks of this process began to tick: together, so that what is due at once finds code and connection warm;
/// and at a moment of its own within the hour, so that a fleet that starts at once does not come at once. Intervals are
/// mostly multiples of each other.
static BEAT: LazyLock<(Instant, Duration)> =
    LazyLock::new(|| (Instant::now(), Duration::from_secs(3_600).mul_f64(fastrand::f64())));

/// A clock of one interval.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    interval: Duration,
    offset: Duration,
}

impl Clock {
    /// One that ticks with all others of this interval.
    pub(super) fn of(interval: Duration) -> Self {
        Clock { interval, offset: Duration::ZERO }
    }

    /// The same, a third of its interval later: for what would disturb the others, or be disturbed.
    pub(super) fn apart(self) -> Self {
        Clock { offset: self.interval / 3, ..self }
    }

    /// Its first tick at this moment or later.
    pub(super) fn tick(self, from: Instant) -> Instant {
        let (began, phase) = *BEAT;
        // A whole interval more, so that the offset can be taken off.
        let since = from.saturating_duration_since(began) + phase + self.interval - self.offset;
        let interval = self.interval.as_nanos().max(1);
        let left = (interval - since.as_nanos() % interval) % interval;
        from + Duration::from_nanos(u64::try_from(left).unwrap_or(u64::MAX))
    }

    /// The moment of the next request, after one that ended so just now; `None`: nobody was asked. One that took longer
    /// than its interval is not followed by the next at once, and a server without a seat is left alone for as long as
    /// it wants.
    pub(super) fn next(self, ended: Option<&Exchange>) -> Instant {
        let now = Instant::now();
        let wanted =
            ended.filter(|exchange| exchange.outcome == Outcome::Throttled).and_then(|exchange| exchange.retry_after);
        let pause = wanted.map_or(Duration::ZERO, |time| time.min(LONGEST_PAUSE));
        self.tick(now + pause.max(self.interval / 10))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_tick_together() {
        let seconds = Duration::from_secs;
        LazyLock::force(&BEAT);
        let now = Instant::now();
        let minute = Clock::of(seconds(60)).tick(now);
        assert!(minute - now <= seconds(60));
        for interval in [5, 10, 15, 60].map(seconds) {
            let clock = Clock::of(interval);
            assert_eq!(clock.tick(minute), minute, "{interval:?}");
            assert_eq!(clock.tick(minute + Duration::from_nanos(1)) - minute, interval);
            assert_eq!(clock.apart().tick(minute) - minute, interval / 3);
        }
        assert_eq!(Clock::of(seconds(15)).apart().tick(minute), Clock::of(seconds(5)).tick(minute + seconds(1)));
        assert!(Clock::of(seconds(7)).tick(now) - now <= seconds(7));
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_is_not_at_once() {
        let interval = Duration::from_secs(15);
        let clock = Clock::of(interval);
        tokio::time::sleep_until(clock.tick(Instant::now())).await;
        // Just before a tick, as after an answer that took almost all of the time.
        tokio::time::advance(interval - Duration::from_secs(1)).await;
        let left = clock.next(None) - Instant::now();
        assert!((interval..=interval + Duration::from_secs(2)).contains(&left), "{left:?}");
    }
}
