//! How asking a server can end, and where.

use std::io;
use std::time::{Duration, SystemTime};

use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::{HeaderMap, RETRY_AFTER};

use super::target::Target;
use crate::error::{Error, Reason};

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// Status 200 and a whole body.
    Ok,
    /// No answer in time, ours or the kernel's (`ETIMEDOUT`).
    Timeout,
    /// Nobody listens there (`ECONNREFUSED`).
    Refused,
    /// The other side ended it: RST, FIN before the answer was complete, GOAWAY, `RST_STREAM`.
    Reset,
    /// There is no way there, or none is permitted (`EHOSTUNREACH`, `ENETUNREACH`, `EPERM`).
    Unreachable,
    /// The name was not resolved.
    Dns,
    /// The certificate does not verify, an alert, no TLS.
    Tls,
    /// 401 or 403.
    Unauthorized,
    /// 429: the server has no seat for the request.
    Throttled,
    /// 5xx.
    ServerError,
    /// Any other status (a redirect too), a body that is too large, nonsense.
    Unexpected,
}

impl Outcome {
    /// Every outcome, in the order in which they are exposed.
    pub const ALL: [Outcome; 11] = [
        Outcome::Ok,
        Outcome::Timeout,
        Outcome::Refused,
        Outcome::Reset,
        Outcome::Unreachable,
        Outcome::Dns,
        Outcome::Tls,
        Outcome::Unauthorized,
        Outcome::Throttled,
        Outcome::ServerError,
        Outcome::Unexpected,
    ];

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Timeout => "timeout",
            Outcome::Refused => "refused",
            Outcome::Reset => "reset",
            Outcome::Unreachable => "unreachable",
            Outcome::Dns => "dns",
            Outcome::Tls => "tls",
            Outcome::Unauthorized => "unauthorized",
            Outcome::Throttled => "throttled",
            Outcome::ServerError => "server_error",
            Outcome::Unexpected => "unexpected",
        }
    }
}

/// A part of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Looking the name up. An IP address has no such phase.
    Dns,
    /// The TCP connection; of a name with several addresses: until the first that answers.
    Connect,
    /// The TLS handshake.
    Tls,
    /// From the request to the last byte of the answer.
    Request,
    /// From an HTTP/2 PING to its acknowledgement.
    Ping,
    /// All of it.
    Total,
}

impl Phase {
    /// Every phase, in the order in which they are exposed.
    pub const ALL: [Phase; 6] = [Phase::Dns, Phase::Connect, Phase::Tls, Phase::Request, Phase::Ping, Phase::Total];

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Dns => "dns",
            Phase::Connect => "connect",
            Phase::Tls => "tls",
            Phase::Request => "request",
            Phase::Ping => "ping",
            Phase::Total => "total",
        }
    }
}

/// What came of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// How it ended.
    pub outcome: Outcome,
    /// Where it ended, if not well. A status other than 200 is the request's.
    pub failed_in: Option<Phase>,
    /// The phases that ended well; with [`Phase::Total`] if all did.
    pub timings: Vec<(Phase, Duration)>,
    /// The status, if there was one.
    pub status: Option<u16>,
    /// When the server wants to be asked again. It may have said any number.
    pub retry_after: Option<Duration>,
    /// The body of a 200, else empty.
    pub body: Bytes,
    /// What went wrong, for the log.
    pub error: Option<Error>,
}

impl Exchange {
    /// The duration of a phase, if it ended well.
    pub fn timing(&self, phase: Phase) -> Option<Duration> {
        self.timings.iter().find_map(|(ended, duration)| (*ended == phase).then_some(*duration))
    }
}

/// What an error of hyper's means for its connection, which is of no use any more.
#[derive(Debug)]
pub(crate) enum Ending<'a> {
    /// The connection failed, or TLS did.
    Io(&'a io::Error),
    /// The other side ended it.
    Early,
    /// What came was not the protocol.
    Nonsense,
}

impl<'a> Ending<'a> {
    pub(crate) fn of(mut error: &'a hyper::Error) -> Self {
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            if let Some(io) = cause.downcast_ref() {
                return Ending::Io(io);
            }
            // A request that was cancelled because of it.
            error = cause.downcast_ref().unwrap_or(error);
            source = cause.source();
        }
        let early = error.is_incomplete_message() || error.is_closed() || error.is_canceled();
        if early { Ending::Early } else { Ending::Nonsense }
    }
}

/// Why there is no answer, or not the one that was wanted.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) outcome: Outcome,
    pub(crate) error: Error,
    pub(crate) status: Option<u16>,
    pub(crate) retry_after: Option<Duration>,
    /// The server said that it did not begin with the request.
    pub(crate) unprocessed: bool,
}

impl Failure {
    pub(crate) fn new(outcome: Outcome, error: Error) -> Self {
        Failure { outcome, error, status: None, retry_after: None, unprocessed: false }
    }

    pub(crate) fn unexpected(what: impl Into<String>) -> Self {
        Failure::new(Outcome::Unexpected, Error::malformed(what))
    }

    /// The head was fine.
    pub(super) fn after_200(self) -> Self {
        Failure { status: Some(StatusCode::OK.as_u16()), unprocessed: false, ..self }
    }

    pub(crate) fn timeout(phase: Phase) -> Self {
        let what = match phase {
            Phase::Dns => "the name was not resolved",
            Phase::Connect => "no TCP connection",
            Phase::Tls => "the TLS handshake did not end",
            Phase::Ping => "the connection is dead: no answer to an HTTP/2 PING",
            Phase::Request | Phase::Total => "no answer",
        };
        Failure::new(Outcome::Timeout, Error::new(Reason::Timeout, format!("{what} before the deadline")))
    }

    /// An error of a socket, met while doing `what`.
    pub(super) fn io(what: &str, error: &io::Error) -> Self {
        Failure::new(of_io(error), Error::os(what, error))
    }

    /// An error of a TLS stream: in the handshake, or an alert later on.
    pub(super) fn tls(target: &Target, error: &io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(rustls::Error::InvalidCertificate(why)) => Failure::new(Outcome::Tls, target.refusal(why)),
            Some(error) => Failure::new(Outcome::Tls, Error::malformed(format!("TLS: {error}"))),
            None => Failure::io("TLS", error),
        }
    }

    /// A failed exchange over HTTP/1.1.
    pub(super) fn http1(target: &Target, error: &hyper::Error) -> Self {
        match Ending::of(error) {
            Ending::Io(io) => {
                let Failure { outcome, error, .. } = Failure::tls(target, io);
                Failure::new(outcome, error.context("HTTP/1.1"))
            }
            Ending::Early => Failure::new(Outcome::Reset, Error::new(Reason::Io, format!("HTTP/1.1: {error}"))),
            Ending::Nonsense => Failure::unexpected(format!("HTTP/1.1: {error}")),
        }
    }

    /// A failed exchange over HTTP/2.
    pub(super) fn http2(error: &h2::Error) -> Self {
        if let Some(io) = error.get_io() {
            // h2 keeps of an error only its kind and its words. The bytes that TLS cannot make sense of, and its
            // alerts, are of this kind.
            if io.kind() == io::ErrorKind::InvalidData {
                return Failure::new(Outcome::Tls, Error::malformed(format!("TLS: {io}")));
            }
            return Failure::io("HTTP/2", io);
        }
        let text = format!("HTTP/2: {error}");
        if !error.is_remote() {
            return Failure::unexpected(text);
        }
        // h2 gives a GOAWAY only to streams above the last one that the server says it may have processed.
        let unprocessed = error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM);
        Failure { unprocessed, ..Failure::new(Outcome::Reset, Error::new(Reason::Io, text)) }
    }

    /// A status other than 200.
    pub(super) fn status(status: StatusCode, headers: &HeaderMap, target: &Target) -> Self {
        let code = status.as_u16();
        let token_file = target.address.server().flag("token-file");
        let anonymous = format!(": it wants credentials, and the exporter has none: set {token_file}");
        let (outcome, reason, words) = match code {
            401 if target.is_anonymous() => (Outcome::Unauthorized, Reason::Denied, anonymous.as_str()),
            401 => (
                Outcome::Unauthorized,
                Reason::Denied,
                ": it does not accept the credentials: they have expired, or are another cluster's",
            ),
            403 => (Outcome::Unauthorized, Reason::Denied, ": the credentials do not permit it"),
            429 => (
                Outcome::Throttled,
                Reason::Busy,
                ": the apiserver takes no more requests like this for now (API Priority and Fairness)",
            ),
            500..=599 => (Outcome::ServerError, Reason::Io, ""),
            300..=399 => (
                Outcome::Unexpected,
                Reason::Malformed,
                ": a redirect, which is not followed, since the token would be sent along",
            ),
            404 => (Outcome::Unexpected, Reason::Absent, ""),
            _ => (Outcome::Unexpected, Reason::Malformed, ""),
        };
        let error = Error::new(reason, format!("HTTP status {code}{words}"));
        let retry_after = headers.get(RETRY_AFTER).and_then(|value| retry_after(value.to_str().ok()?));
        Failure { status: Some(code), retry_after, ..Failure::new(outcome, error) }
    }
}

fn of_io(error: &io::Error) -> Outcome {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, NetworkDown,
        NetworkUnreachable, NotConnected, PermissionDenied, TimedOut, UnexpectedEof,
    };
    match error.kind() {
        TimedOut => Outcome::Timeout,
        ConnectionRefused => Outcome::Refused,
        ConnectionReset | ConnectionAborted | BrokenPipe | NotConnected | UnexpectedEof => Outcome::Reset,
        HostUnreachable | NetworkUnreachable | NetworkDown | PermissionDenied => Outcome::Unreachable,
        _ => Outcome::Unexpected,
    }
}

/// A number of seconds or a date (RFC 9110, 10.2.3). A date that is past: now.
fn retry_after(text: &str) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_distinct_and_plain() {
        let outcomes = Outcome::ALL.map(Outcome::as_str);
        let phases = Phase::ALL.map(Phase::as_str);
        for names in [&outcomes[..], &phases[..]] {
            let distinct: std::collections::BTreeSet<_> = names.iter().collect();
            assert_eq!(distinct.len(), names.len());
            assert!(names.iter().all(|name| name.bytes().all(|byte| byte == b'_' || byte.is_ascii_lowercase())));
        }
    }

    #[test]
    fn errors_of_sockets() {
        let of = |errno| of_io(&io::Error::from_raw_os_error(errno));
        assert_eq!(of(1), Outcome::Unreachable); // EPERM: a packet filter on this machine
        assert_eq!(of(24), Outcome::Unexpected); // EMFILE
        assert_eq!(of(32), Outcome::Reset); // EPIPE
        assert_eq!(of(100), Outcome::Unreachable); // ENETDOWN
        assert_eq!(of(101), Outcome::Unreachable); // ENETUNREACH
        assert_eq!(of(104), Outcome::Reset); // ECONNRESET
        assert_eq!(of(110), Outcome::Timeout); // ETIMEDOUT
        assert_eq!(of(111), Outcome::Refused); // ECONNREFUSED
        assert_eq!(of(113), Outcome::Unreachable); // EHOSTUNREACH
    }

    #[test]
    fn when_to_ask_again() {
        assert_eq!(retry_after(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(90));
        let seconds = retry_after(&soon).unwrap().as_secs();
        assert!((80..=90).contains(&seconds), "{seconds}");
        assert_eq!(retry_after("-1"), None);
        assert_eq!(retry_after("soon"), None);
    }
}
