//! What becomes of the long-lived connection from check to check.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use h2::client::SendRequest;
use hyper::body::Bytes;

use super::access::{Access, Entry};
use super::connect::{Connector, Protocol};
use super::http2::{self, Connection};
use super::outcome::{Exchange, Failure, Outcome, Phase};
use super::request::{Answer, Want};
use super::stopwatch::Stopwatch;
use crate::error::{Error, Result};
use crate::host::Deadline;

/// Why a connection had to be made. The label values of whoever counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Why {
    /// There was none yet.
    Start,
    /// The server had said GOAWAY: it shuts down, or spreads its clients (`--goaway-chance`).
    Goaway,
    /// The server had closed it.
    Closed,
    /// It was broken: RST, ICMP, a violation of the protocol.
    Reset,
    /// A PING was not acknowledged: dead, though nobody had closed it.
    Dead,
    /// The server had refused a stream without looking at it (`REFUSED_STREAM`).
    Refused,
    /// Address, authority or client certificate had changed.
    Renewed,
}

impl Why {
    /// Every reason, in the order in which they are exposed.
    pub const ALL: [Why; 7] = [Why::Start, Why::Goaway, Why::Closed, Why::Reset, Why::Dead, Why::Refused, Why::Renewed];

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Why::Start => "start",
            Why::Goaway => "goaway",
            Why::Closed => "closed",
            Why::Reset => "reset",
            Why::Dead => "dead",
            Why::Refused => "refused",
            Why::Renewed => "renewed",
        }
    }
}

/// What came of a PING.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pong {
    /// `Ok`, or how it failed: `Timeout` is a dead connection.
    pub outcome: Outcome,
    /// From the PING to its acknowledgement.
    pub rtt: Option<Duration>,
    /// What went wrong, for the log.
    pub error: Option<Error>,
}

/// A connection that a check had to make first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Why.
    pub why: Why,
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
    pub made: Option<Made>,
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
    Gone(Why),
}

#[derive(Debug)]
pub(super) struct Reused {
    /// Held by the check that is under way: there is one PING at a time.
    slot: tokio::sync::Mutex<Slot>,
    /// For requests beside the checks, while the last check was well.
    well: Mutex<Option<(u64, SendRequest<Bytes>)>>,
}

impl Default for Reused {
    fn default() -> Self {
        Reused { slot: tokio::sync::Mutex::new(Slot::Gone(Why::Start)), well: Mutex::default() }
    }
}

impl Reused {
    pub(super) async fn check(&self, access: &Access, connector: &Connector, want: Want<'_>) -> Result<Check> {
        let timeout = access.settings().timeout;
        let mut slot = self.slot.lock().await;
        let entry = access.entry(Deadline::after(super::FILES)).await?;
        // Making it has a timeout of its own, or a slow handshake would make a dead connection of a live one.
        let whole = Deadline::after(timeout * 2);
        let mut made = None;
        let mut second_try = false;
        loop {
            // Taken out: whoever drops this future drops the connection, with a PING on it that nobody waits for.
            let mut connection = match (std::mem::replace(&mut *slot, Slot::Gone(Why::Closed)), &entry) {
                (Slot::Live(connection), entry) => match stale(&connection, entry).await {
                    None => connection,
                    Some(why) => {
                        self.unwell();
                        connection.close().await;
                        *slot = Slot::Gone(why);
                        continue;
                    }
                },
                (Slot::Gone(why), entry) => {
                    let (opened, timings) = open(connector, entry, &want, soonest(whole, timeout)).await;
                    made = Some(Made { why, timings });
                    match opened {
                        Ok(connection) => connection,
                        Err(request) => {
                            *slot = Slot::Gone(why);
                            return Ok(Check { ping: None, request: *request, made });
                        }
                    }
                }
            };
            let deadline = soonest(whole, timeout);
            let sender = connection.sender();
            let watch = Stopwatch::start();
            let (ping, answer) =
                tokio::join!(connection.ping(deadline), request(sender, &entry, &want, &watch, deadline));
            let unprocessed = matches!(&answer, Err(failure) if failure.unprocessed);
            let answered = match &answer {
                Ok(_) => true,
                Err(failure) => failure.status.is_some() && failure.outcome != Outcome::Timeout,
            };
            // Its total is that of the phases, PING apart: the two went out together.
            let request = want.exchange(answer, &watch, &entry);
            let gone = match (connection.ended().await, ping.outcome) {
                (_, Outcome::Timeout) => Some(Why::Dead),
                (Some(why), _) => Some(why),
                (None, Outcome::Ok) if unprocessed => Some(Why::Refused),
                (None, Outcome::Ok) => None,
                (None, _) => Some(Why::Reset),
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
            return Ok(Check { ping: Some(ping), request, made });
        }
    }

    /// A request beside the checks. `None`: the connection is not known to be well.
    pub(super) async fn get(&self, entry: &Entry, want: &Want<'_>, deadline: Deadline) -> Option<Exchange> {
        let (generation, sender) = self.well.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        if generation != entry.tls.generation {
            return None;
        }
        let watch = Stopwatch::start();
        let answer = request(sender, entry, want, &watch, deadline).await;
        let exchange = want.exchange(answer, &watch, entry);
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

async fn stale(connection: &Connection, entry: &Entry) -> Option<Why> {
    let renewed = connection.generation != entry.tls.generation;
    connection.ended().await.or(renewed.then_some(Why::Renewed))
}

fn soonest(whole: Deadline, timeout: Duration) -> Deadline {
    Deadline::after(timeout.min(whole.remaining()))
}

type Opened = std::result::Result<Connection, Box<Exchange>>;

async fn open(
    connector: &Connector,
    entry: &Entry,
    want: &Want<'_>,
    deadline: Deadline,
) -> (Opened, Vec<(Phase, Duration)>) {
    let watch = Stopwatch::start();
    let work = async {
        let stream = connector.connect(entry, Protocol::Http2, &watch, deadline).await?;
        Connection::open(stream, entry.tls.generation).await
    };
    let opened = watch.within(deadline, work).await;
    let timings = watch.timings(opened.is_ok());
    (opened.map_err(|failure| Box::new(want.exchange(Err(failure), &watch, entry))), timings)
}

async fn request(
    sender: SendRequest<Bytes>,
    entry: &Entry,
    want: &Want<'_>,
    watch: &Stopwatch,
    deadline: Deadline,
) -> std::result::Result<Answer, Failure> {
    watch.within(deadline, watch.phase(Phase::Request, http2::ask(sender, entry, want))).await
}
