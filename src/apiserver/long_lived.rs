//! What becomes of the long-lived connection from check to check.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use h2::client::SendRequest;
use hyper::body::Bytes;

use super::target_source::TargetSource;
use crate::client::connect::{Connector, Protocol};
use crate::client::http2::{self, Connection};
use crate::client::phases::Stopwatch;
use crate::client::request::Request;
use crate::client::target::Target;
use crate::client::{Exchange, Failure, Outcome, Phase, Pong, ReconnectReason};
use crate::error::Result;
use crate::host::Deadline;

/// A connection that a check had to make first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reconnect {
    /// Why it had to.
    pub why: ReconnectReason,
    /// Its phases that ended well; with [`Phase::Total`] if it stands.
    pub timings: Vec<(Phase, Duration)>,
}

/// What came of one check of the long-lived connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The PING; `None` if there was no connection to send it on.
    pub ping: Option<Pong>,
    /// The GET, whose total is that of the request alone. Without a connection: why there is none.
    pub request: Exchange,
    /// If this check had to make the connection first.
    pub made: Option<Reconnect>,
}

impl Check {
    /// How it ended, in one word, and where if not well: a dead connection before all else.
    pub fn outcome(&self) -> (Outcome, Option<Phase>) {
        match &self.ping {
            Some(Pong { outcome: Outcome::Timeout, .. }) => (Outcome::Timeout, Some(Phase::Ping)),
            Some(Pong { outcome, .. }) if *outcome != Outcome::Ok && self.request.outcome == Outcome::Ok => {
                (*outcome, Some(Phase::Ping))
            }
            _ => (self.request.outcome, self.request.failed_in),
        }
    }
}

/// The connection, if there is one.
#[derive(Debug)]
enum Slot {
    Live(Connection),
    Gone(ReconnectReason),
}

#[derive(Debug)]
pub(super) struct LongLived {
    /// Held by the check that is under way: there is one PING at a time.
    slot: tokio::sync::Mutex<Slot>,
    /// For requests beside the checks, while the last check was well.
    well: Mutex<Option<(u64, SendRequest<Bytes>)>>,
}

impl Default for LongLived {
    fn default() -> Self {
        LongLived { slot: tokio::sync::Mutex::new(Slot::Gone(ReconnectReason::Start)), well: Mutex::default() }
    }
}

impl LongLived {
    pub(super) async fn check(
        &self,
        targets: &TargetSource,
        connector: &Connector,
        request: Request<'_>,
    ) -> Result<Check> {
        let timeout = targets.settings().timeout;
        let mut slot = self.slot.lock().await;
        let target = targets.target(Deadline::after(super::FILES)).await?;
        // Making it has a timeout of its own, or a slow handshake would make a dead connection of a live one.
        let whole = Deadline::after(timeout * 2);
        let mut made = None;
        let mut second_try = false;
        loop {
            // Taken out: whoever drops this future drops the connection, with a PING on it that nobody waits for.
            let mut connection = match (std::mem::replace(&mut *slot, Slot::Gone(ReconnectReason::Closed)), &target) {
                (Slot::Live(connection), target) => match stale(&connection, target).await {
                    None => connection,
                    Some(why) => {
                        self.unwell();
                        connection.close().await;
                        *slot = Slot::Gone(why);
                        continue;
                    }
                },
                (Slot::Gone(why), target) => {
                    let (opened, timings) = open(connector, target, &request, soonest(whole, timeout)).await;
                    made = Some(Reconnect { why, timings });
                    match opened {
                        Ok(connection) => connection,
                        Err(exchange) => {
                            *slot = Slot::Gone(why);
                            return Ok(Check { ping: None, request: *exchange, made });
                        }
                    }
                }
            };
            let deadline = soonest(whole, timeout);
            let sender = connection.sender();
            let watch = Stopwatch::start();
            let (ping, answer) =
                tokio::join!(connection.ping(deadline), ask(sender, &target, &request, &watch, deadline));
            let unprocessed = matches!(&answer, Err(failure) if failure.unprocessed);
            let answered = match &answer {
                Ok(_) => true,
                Err(failure) => failure.status.is_some() && failure.outcome != Outcome::Timeout,
            };
            // Its total is that of the phases, PING apart: the two went out together.
            let exchange = request.exchange(answer, &watch, &target);
            let gone = match (connection.ended().await, ping.outcome) {
                (_, Outcome::Timeout) => Some(ReconnectReason::Dead),
                (Some(why), _) => Some(why),
                (None, Outcome::Ok) if unprocessed => Some(ReconnectReason::Refused),
                (None, Outcome::Ok) => None,
                (None, _) => Some(ReconnectReason::Reset),
            };
            self.note(gone.is_none() && answered, &connection);
            match gone {
                None => *slot = Slot::Live(connection),
                Some(why) => {
                    connection.close().await;
                    *slot = Slot::Gone(why);
                }
            }
            if unprocessed && !second_try && ping.outcome != Outcome::Timeout {
                second_try = true;
                continue;
            }
            return Ok(Check { ping: Some(ping), request: exchange, made });
        }
    }

    /// A request beside the checks. `None`: the connection is not known to be well.
    pub(super) async fn get(&self, target: &Target, request: &Request<'_>, deadline: Deadline) -> Option<Exchange> {
        let (generation, sender) = self.well.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        if generation != target.tls.generation {
            return None;
        }
        let watch = Stopwatch::start();
        let answer = ask(sender, target, request, &watch, deadline).await;
        let exchange = request.exchange(answer, &watch, target);
        if matches!(exchange.outcome, Outcome::Timeout | Outcome::Reset) {
            // Until a check says otherwise: the next request must not wait for it again.
            self.unwell();
            return None;
        }
        Some(exchange)
    }

    fn note(&self, well: bool, connection: &Connection) {
        let sender = well.then(|| (connection.generation, connection.sender()));
        *self.well.lock().unwrap_or_else(PoisonError::into_inner) = sender;
    }

    fn unwell(&self) {
        *self.well.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

async fn stale(connection: &Connection, target: &Target) -> Option<ReconnectReason> {
    let renewed = connection.generation != target.tls.generation;
    connection.ended().await.or(renewed.then_some(ReconnectReason::Renewed))
}

fn soonest(whole: Deadline, timeout: Duration) -> Deadline {
    Deadline::after(timeout.min(whole.remaining()))
}

type Opened = std::result::Result<Connection, Box<Exchange>>;

async fn open(
    connector: &Connector,
    target: &Target,
    request: &Request<'_>,
    deadline: Deadline,
) -> (Opened, Vec<(Phase, Duration)>) {
    let watch = Stopwatch::start();
    let work = async {
        let stream = connector.connect(target, Protocol::Http2, &watch, deadline).await?;
        Connection::open(stream, target.tls.generation).await
    };
    let opened = watch.within(deadline, work).await;
    let timings = watch.timings(opened.is_ok());
    (opened.map_err(|failure| Box::new(request.exchange(Err(failure), &watch, target))), timings)
}

async fn ask(
    sender: SendRequest<Bytes>,
    target: &Target,
    request: &Request<'_>,
    watch: &Stopwatch,
    deadline: Deadline,
) -> std::result::Result<Bytes, Failure> {
    watch.within(deadline, watch.phase(Phase::Request, http2::ask(sender, target, request))).await
}
