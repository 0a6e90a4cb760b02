//! Verdicts on bearer tokens, remembered.
//!
//! By digest and never the token: a yes for 2 minutes, a no for 10 seconds. **When the apiserver does not answer**, a
//! yes holds on until 15 minutes after it was given. That is a choice: in an outage of the apiserver this page is what
//! one needs, it only tells figures, and who may read them seldom changes; what one loses is that a token revoked
//! during the outage reads on for that long. A no and an unknown token get 503 then, which Prometheus shows as what it
//! is.
//!
//! **Bounds.** One question at a time per token, and a few altogether: `places.rs` says whose is next. Tokens beyond
//! 8 KiB are refused unasked.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::timeout;

use super::digest_cache::{Digest, Remembered, Salt};
use super::places::Places;
use crate::error::Error;

const LONGEST_TOKEN: usize = 8 << 10;
const ENTRIES: usize = 256;
/// Whoever was let in within a day does not wait behind those who never were.
const LET_IN_BEFORE: Duration = Duration::from_secs(86_400);

/// How long things take and hold.
#[derive(Clone, Copy, Debug)]
pub(in crate::http) struct Times {
    yes: Duration,
    no: Duration,
    /// A yes that cannot be renewed.
    stale: Duration,
    /// Less than the ten seconds that a Prometheus waits.
    ask: Duration,
    /// With a yes of before at hand.
    renew: Duration,
    /// Before an apiserver that did not answer is asked again about a token with a yes at hand.
    retry: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Times {
            yes: Duration::from_secs(120),
            no: Duration::from_secs(10),
            stale: Duration::from_secs(900),
            ask: Duration::from_secs(5),
            renew: Duration::from_secs(2),
            retry: Duration::from_secs(10),
        }
    }
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::http) enum Verdict {
    Admitted,
    /// 401
    Unknown,
    /// 403, with whom the apiserver takes it for.
    Forbidden(String),
    /// 503: nobody could tell.
    Unavailable,
}

/// Whom to ask about a token.
pub(in crate::http) type Ask =
    Box<dyn Fn(String) -> Pin<Box<dyn Future<Output = Result<Verdict, Error>> + Send>> + Send + Sync>;

/// Verdicts on tokens.
pub(in crate::http) struct Judged {
    ask: Ask,
    salt: Salt,
    times: Times,
    yes: Remembered<()>,
    no: Remembered<Verdict>,
    silent: Remembered<()>,
    places: Places,
    under_way: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
    /// Whether the log knows that the apiserver does not answer.
    complained: Mutex<bool>,
}

impl fmt::Debug for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Judged(…)")
    }
}

impl Judged {
    pub(in crate::http) fn new(ask: Ask, salt: Salt, times: Times) -> Self {
        Judged {
            ask,
            salt,
            times,
            yes: Remembered::new(ENTRIES),
            no: Remembered::new(ENTRIES),
            silent: Remembered::new(ENTRIES),
            places: Places::new(),
            under_way: Mutex::default(),
            complained: Mutex::new(false),
        }
    }

    /// What becomes of a request with this token, from this address.
    pub(in crate::http) async fn judge(&self, token: &str, from: IpAddr) -> Verdict {
        if token.is_empty() || token.len() > LONGEST_TOKEN {
            return Verdict::Unknown;
        }
        let digest = self.salt.digest(&[token.as_bytes()]);
        if let Some(verdict) = self.remembers(&digest) {
            return verdict;
        }
        let turn = {
            let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(under_way.entry(digest).or_default())
        };
        let verdict = {
            let _turn = turn.lock().await;
            match self.remembers(&digest) {
                Some(verdict) => verdict,
                None => self.ask_for(token, digest, from).await,
            }
        };
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        // The map's, and ours.
        if Arc::strong_count(&turn) == 2 {
            under_way.remove(&digest);
        }
        // Of requests that were given up.
        under_way.retain(|_, turn| Arc::strong_count(turn) > 1);
        verdict
    }

    fn remembers(&self, digest: &Digest) -> Option<Verdict> {
        if self.yes.get(digest, self.times.yes).is_some() {
            return Some(Verdict::Admitted);
        }
        if let Some((since, ())) = self.silent.get(digest, self.times.retry) {
            if self.yes.get(digest, self.times.stale).is_some() {
                return Some(Verdict::Admitted);
            }
            // Those who waited for the same answer need not wait once more each.
            if since < self.times.retry / 10 {
                return Some(Verdict::Unavailable);
            }
        }
        self.no.get(digest, self.times.no).map(|(_, verdict)| verdict)
    }

    async fn ask_for(&self, token: &str, digest: Digest, from: IpAddr) -> Verdict {
        let known = self.yes.get(&digest, LET_IN_BEFORE).is_some();
        let had_yes = self.yes.get(&digest, self.times.stale).is_some();
        let patience = if had_yes { self.times.renew } else { self.times.ask };
        let asking = async {
            let place = self.places.take(from, known).await;
            ((self.ask)(token.to_owned()).await, Some(place))
        };
        let answer = timeout(patience, asking).await;
        let (answer, place) = answer.unwrap_or_else(|_| (Err(Error::absent("no answer in time")), None));
        match answer {
            Ok(verdict) => {
                self.complain(None);
                self.silent.forget(&digest);
                if verdict == Verdict::Admitted {
                    self.no.forget(&digest);
                    self.yes.put(digest, ());
                } else {
                    self.yes.forget(&digest);
                    self.no.put(digest, verdict.clone());
                    self.places.was_wrong(place);
                }
                verdict
            }
            Err(error) => {
                self.complain(Some(&error));
                self.silent.put(digest, ());
                if had_yes { Verdict::Admitted } else { Verdict::Unavailable }
            }
        }
    }

    /// One line when it begins and one when it is over.
    fn complain(&self, error: Option<&Error>) {
        let mut complained = self.complained.lock().unwrap_or_else(PoisonError::into_inner);
        match (error, *complained) {
            (Some(error), false) => tracing::warn!(
                %error,
                "the apiserver does not review tokens; those that it accepted in the last 15 minutes are let in, others get 503"
            ),
            (None, true) => tracing::info!("the apiserver reviews tokens again"),
            _ => {}
        }
        *complained = error.is_some();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::auth::places::PLACES;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    /// Knows one token, and is sometimes away.
    #[derive(Default)]
    struct Apiserver {
        asked: AtomicUsize,
        at_once: AtomicUsize,
        most_at_once: AtomicUsize,
        away: AtomicBool,
        revoked: AtomicBool,
    }

    fn judged(times: Times) -> (Arc<Apiserver>, Arc<Judged>) {
        let apiserver = Arc::new(Apiserver::default());
        let shared = Arc::clone(&apiserver);
        let ask: Ask = Box::new(move |token| {
            let apiserver = Arc::clone(&shared);
            Box::pin(async move {
                apiserver.asked.fetch_add(1, Ordering::SeqCst);
                let now = apiserver.at_once.fetch_add(1, Ordering::SeqCst) + 1;
                apiserver.most_at_once.fetch_max(now, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(10)).await;
                apiserver.at_once.fetch_sub(1, Ordering::SeqCst);
                if apiserver.away.load(Ordering::SeqCst) {
                    return Err(Error::absent("away"));
                }
                let known = token == "good" && !apiserver.revoked.load(Ordering::SeqCst);
                Ok(if known { Verdict::Admitted } else { Verdict::Unknown })
            })
        });
        (apiserver, Arc::new(Judged::new(ask, Salt::new().unwrap(), times)))
    }

    #[tokio::test(start_paused = true)]
    async fn one_question_for_many_scrapes_at_once() {
        let (apiserver, judged) = judged(Times::default());
        let scrapes: Vec<_> = (0..20)
            .map(|_| {
                let judged = Arc::clone(&judged);
                tokio::spawn(async move { judged.judge("good", HERE).await })
            })
            .collect();
        for scrape in scrapes {
            assert_eq!(scrape.await.unwrap(), Verdict::Admitted);
        }
        assert_eq!(apiserver.asked.load(Ordering::SeqCst), 1);
        assert!(judged.under_way.lock().unwrap().is_empty(), "nothing is left of it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_invented_tokens_costs_the_apiserver_little() {
        let (apiserver, judged) = judged(Times { ask: Duration::from_secs(60), ..Times::default() });
        let begun = tokio::time::Instant::now();
        let flood: Vec<_> = (0..40)
            .map(|number| {
                let judged = Arc::clone(&judged);
                tokio::spawn(async move { judged.judge(&format!("invented {number}"), HERE).await })
            })
            .collect();
        for token in flood {
            assert_eq!(token.await.unwrap(), Verdict::Unknown);
        }
        assert!(apiserver.most_at_once.load(Ordering::SeqCst) <= PLACES);
        assert!(begun.elapsed() > Duration::from_secs(3), "{:?} for forty", begun.elapsed());
        assert_eq!(judged.judge(&"x".repeat(LONGEST_TOKEN + 1), HERE).await, Verdict::Unknown);
        assert_eq!(apiserver.asked.load(Ordering::SeqCst), 40, "what cannot be a token is not asked about");
    }

    #[tokio::test]
    async fn an_apiserver_that_is_away_keeps_out_only_whom_it_never_let_in() {
        let times = Times {
            yes: Duration::from_millis(50),
            stale: Duration::from_millis(1500),
            retry: Duration::from_millis(100),
            ..Times::default()
        };
        let (apiserver, judged) = judged(times);
        assert_eq!(judged.judge("good", HERE).await, Verdict::Admitted);
        let given = std::time::Instant::now();
        apiserver.away.store(true, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(60)).await;
        let asked = apiserver.asked.load(Ordering::SeqCst);
        let verdict = judged.judge("good", HERE).await;
        assert!(verdict == Verdict::Admitted || given.elapsed() > times.stale, "{verdict:?}");
        assert_eq!(judged.judge("other", HERE).await, Verdict::Unavailable);
        assert!(apiserver.asked.load(Ordering::SeqCst) > asked);
        while given.elapsed() < times.stale {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(judged.judge("good", HERE).await, Verdict::Unavailable, "not for ever");
        apiserver.away.store(false, Ordering::SeqCst);
        tokio::time::sleep(times.retry).await;
        assert_eq!(judged.judge("good", HERE).await, Verdict::Admitted, "and it heals");
    }

    #[tokio::test]
    async fn a_revoked_token_is_out_once_its_yes_is_over() {
        let times = Times { yes: Duration::ZERO, no: Duration::ZERO, ..Times::default() };
        let (apiserver, judged) = judged(times);
        assert_eq!(judged.judge("good", HERE).await, Verdict::Admitted);
        apiserver.revoked.store(true, Ordering::SeqCst);
        assert_eq!(judged.judge("good", HERE).await, Verdict::Unknown);
        apiserver.away.store(true, Ordering::SeqCst);
        assert_eq!(judged.judge("good", HERE).await, Verdict::Unavailable, "no yes of before is left");
    }

    fn flood(judged: &Arc<Judged>, addresses: u8, each: usize) -> Vec<tokio::task::JoinHandle<Verdict>> {
        let one = |address: u8, number: usize| {
            let judged = Arc::clone(judged);
            let from = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, address));
            tokio::spawn(async move { judged.judge(&format!("invented {address} {number}"), from).await })
        };
        (0..addresses)
            .flat_map(|address| (0..each).map(move |number| (address, number)))
            .map(|(a, n)| one(a, n))
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn invented_tokens_starve_neither_who_was_let_in_before_nor_who_is_new() {
        let times = Times { yes: Duration::from_millis(1), stale: Duration::from_millis(2), ..Times::default() };
        let (apiserver, judged) = judged(times);
        assert_eq!(judged.judge("good", HERE).await, Verdict::Admitted);
        std::thread::sleep(Duration::from_millis(5));
        // As many as connections allow, from as many addresses as a node has pods.
        for (addresses, each) in [(4, 16), (16, 16), (110, 2), (250, 1)] {
            let (_, another) = (0, Arc::clone(&judged));
            let flood = flood(&another, addresses, each);
            tokio::time::sleep(Duration::from_millis(1)).await;
            let begun = tokio::time::Instant::now();
            assert_eq!(judged.judge("good", HERE).await, Verdict::Admitted, "let in before, its yes is over");
            assert!(begun.elapsed() < Duration::from_secs(1), "{addresses}: {:?}", begun.elapsed());
            // The same from where the flood comes from.
            std::thread::sleep(Duration::from_millis(5));
            let there = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 0));
            assert_eq!(judged.judge("good", there).await, Verdict::Admitted);
            // One of whom nobody knows anything.
            let new = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, addresses));
            judged.yes.forget(&judged.salt.digest(&[b"good"]));
            let begun = tokio::time::Instant::now();
            assert_eq!(judged.judge("good", new).await, Verdict::Admitted, "{addresses}");
            assert!(begun.elapsed() < Duration::from_secs(5), "{addresses}: {:?}", begun.elapsed());
            std::thread::sleep(Duration::from_millis(5));
            flood.iter().for_each(|token| token.abort());
        }
        assert!(apiserver.most_at_once.load(Ordering::SeqCst) <= 3 * PLACES);
    }
}
