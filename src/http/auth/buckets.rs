//! How often one address may ask (`rate_limit` of the web configuration): a bucket of tokens for each, so that nobody
//! empties another's.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use super::places::network;
use crate::http::web_config::Rate;

/// Addresses that are told apart; more than the pods of a node.
const MOST: usize = 1024;

/// A bucket for each address that asked lately.
#[derive(Debug, Default)]
pub(super) struct Buckets {
    /// Of this rate: another one in the file makes new ones.
    rate: Option<Rate>,
    of: HashMap<IpAddr, Bucket>,
}

impl Buckets {
    /// Takes a token of this address, if it has one.
    pub(super) fn take(&mut self, rate: Rate, from: IpAddr, now: Instant) -> bool {
        if self.rate != Some(rate) {
            *self = Buckets { rate: Some(rate), of: HashMap::new() };
        }
        let from = network(from);
        if self.of.len() >= MOST && !self.of.contains_key(&from) {
            self.make_room(rate, now);
        }
        self.of.entry(from).or_insert_with(|| Bucket::full(rate, now)).take(rate, now)
    }

    /// A full bucket is as good as none. Where none is full, the one that was used least lately goes.
    fn make_room(&mut self, rate: Rate, now: Instant) {
        self.of.retain(|_, bucket| bucket.tokens_at(rate, now) < f64::from(rate.burst));
        if self.of.len() >= MOST {
            let idle = self.of.iter().min_by_key(|(_, bucket)| bucket.filled).map(|(address, _)| *address);
            idle.map(|address| self.of.remove(&address));
        }
    }
}

/// A token bucket: full at first.
#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    fn full(rate: Rate, now: Instant) -> Self {
        Bucket { tokens: f64::from(rate.burst), filled: now }
    }

    fn tokens_at(&self, rate: Rate, now: Instant) -> f64 {
        let new = now.saturating_duration_since(self.filled).as_secs_f64() / rate.interval.as_secs_f64();
        (self.tokens + new).min(f64::from(rate.burst))
    }

    fn take(&mut self, rate: Rate, now: Instant) -> bool {
        self.tokens = self.tokens_at(rate, now);
        self.filled = now;
        let some = self.tokens >= 1.0;
        if some {
            self.tokens -= 1.0;
        }
        some
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const RATE: Rate = Rate { interval: Duration::from_secs(2), burst: 3 };

    fn address(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    #[test]
    fn a_bucket_fills_one_by_one_up_to_its_burst() {
        let start = Instant::now();
        let mut buckets = Buckets::default();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let mut take = |seconds: f64| buckets.take(RATE, address(1), at(seconds));
        let taken = [0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 2.5].map(&mut take);
        assert_eq!(taken, [true, true, true, false, false, true, false]);
        assert_eq!([3600.0; 4].map(take), [true, true, true, false]);
        let faster = Rate { burst: 9, ..RATE };
        assert!(buckets.take(faster, address(1), at(3600.0)), "another rate is another bucket");
    }

    #[test]
    fn a_flood_empties_its_own_bucket_only() {
        let (mut buckets, now) = (Buckets::default(), Instant::now());
        for _ in 0..10_000 {
            buckets.take(RATE, address(1), now);
            buckets.take(RATE, "2001:db8::1".parse().unwrap(), now);
        }
        assert!(!buckets.take(RATE, address(1), now));
        assert!(!buckets.take(RATE, "2001:db8::2".parse().unwrap(), now), "the same network");
        assert!((0..3).all(|_| buckets.take(RATE, address(2), now)));
    }

    #[test]
    fn however_many_addresses_come_memory_is_bounded_and_the_flood_is_not_forgotten() {
        let (mut buckets, start) = (Buckets::default(), Instant::now());
        for number in 0..100_000u32 {
            let now = start + Duration::from_micros(number.into());
            buckets.take(RATE, address(number), now);
            buckets.take(RATE, address(7), now);
        }
        assert!(buckets.of.len() <= MOST);
        assert!(!buckets.take(RATE, address(7), start + Duration::from_millis(100)), "it was used all the time");
    }
}
