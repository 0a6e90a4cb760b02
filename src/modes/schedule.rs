//! When a probe that asks the apiserver asks next.

use std::time::Duration;

use tokio::time::Instant;

use crate::apiserver::{Exchange, Outcome};

/// The longest Retry-After that is obeyed: beyond it we would be blind for too long.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// How long before the first time: clocks start at a random moment, so that a fleet does not come all at once.
pub(super) fn first(interval: Duration) -> Duration {
    interval.mul_f64(fastrand::f64())
}

/// An interval, give or take a tenth.
pub(super) fn about(interval: Duration) -> Duration {
    interval.mul_f64(0.9 + 0.2 * fastrand::f64())
}

/// The moment of the next request, of one that began then and ended so just now; `None`: nobody was asked. One that
/// took longer than its interval is not followed by the next at once, and a server without a seat is left alone for as
/// long as it wants.
pub(super) fn next(began: Instant, interval: Duration, ended: Option<&Exchange>) -> Instant {
    let now = Instant::now();
    let wanted =
        ended.filter(|exchange| exchange.outcome == Outcome::Throttled).and_then(|exchange| exchange.retry_after);
    let pause = wanted.map_or(Duration::ZERO, |time| time.min(LONGEST_PAUSE));
    (began + about(interval)).max(now + interval / 10).max(now + pause)
}
