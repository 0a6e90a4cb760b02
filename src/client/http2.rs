//! One long-lived HTTP/2 connection.
//!
//! h2 is used directly, because only there one gets at the PING. A task drives the connection: it answers the server's
//! own PINGs between two checks and sees the end when it comes. The task and its socket end with [`Connection`].

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use h2::client::{self, SendRequest};
use h2::{Ping, PingPong};
use hyper::body::Bytes;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout_at;
use tokio_rustls::client::TlsStream;

use super::body;
use super::outcome::{Failure, Outcome, Phase};
use super::request::Request;
use super::target::Target;
use crate::error::Error;
use crate::host::Deadline;

/// Of one stream, and of the connection: what may be under way unread.
const WINDOW: u32 = 64 << 10;
const LARGEST_FRAME: u32 = 16 << 10;
const LARGEST_HEAD: u32 = 16 << 10;

/// Why a connection had to be made. The label values of whoever counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReconnectReason {
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

impl ReconnectReason {
    /// Every reason, in the order in which they are exposed.
    pub const ALL: [ReconnectReason; 7] = [
        ReconnectReason::Start,
        ReconnectReason::Goaway,
        ReconnectReason::Closed,
        ReconnectReason::Reset,
        ReconnectReason::Dead,
        ReconnectReason::Refused,
        ReconnectReason::Renewed,
    ];

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            ReconnectReason::Start => "start",
            ReconnectReason::Goaway => "goaway",
            ReconnectReason::Closed => "closed",
            ReconnectReason::Reset => "reset",
            ReconnectReason::Dead => "dead",
            ReconnectReason::Refused => "refused",
            ReconnectReason::Renewed => "renewed",
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

/// The connection, its PING and its task.
#[derive(Debug)]
pub(crate) struct Connection {
    sender: SendRequest<Bytes>,
    ping: PingPong,
    task: JoinHandle<()>,
    /// What broke it, once it is known.
    broke: Arc<OnceLock<io::ErrorKind>>,
    /// Of the trust and credentials it was made with.
    pub(crate) generation: u64,
}

impl Connection {
    /// Says the client's preface. That the server understands it shows with the first answer.
    pub(crate) async fn open(stream: TlsStream<TcpStream>, generation: u64) -> Result<Self, Failure> {
        let handshake = client::Builder::new()
            .enable_push(false)
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_frame_size(LARGEST_FRAME)
            .max_header_list_size(LARGEST_HEAD)
            .max_send_buffer_size(WINDOW as usize)
            .max_concurrent_reset_streams(4)
            .reset_stream_duration(Duration::from_secs(5))
            .handshake(stream);
        let (sender, mut connection) = handshake.await.map_err(|error| Failure::http2(&error))?;
        let Some(ping) = connection.ping_pong() else {
            return Err(Failure::unexpected("HTTP/2: no PING on this connection"));
        };
        let broke = Arc::<OnceLock<io::ErrorKind>>::default();
        let tell = Arc::clone(&broke);
        let task = tokio::spawn(async move {
            // Senders hear of it when the connection is dropped, after this; and of one that broke while it was written
            // to, no more than that.
            if let Err(error) = Pin::new(&mut connection).await
                && let Some(cause) = error.get_io()
            {
                let _ = tell.set(cause.kind());
            }
        });
        Ok(Connection { sender, ping, task, broke, generation })
    }

    /// A handle for requests beside those of the checks.
    pub(crate) fn sender(&self) -> SendRequest<Bytes> {
        self.sender.clone()
    }

    /// Why nothing more can be sent on it, if so.
    pub(crate) async fn ended(&self) -> Option<ReconnectReason> {
        match self.sender.clone().ready().await {
            Ok(_) => None,
            Err(error) if error.is_go_away() && error.is_remote() => Some(ReconnectReason::Goaway),
            Err(error) => Some(match self.broke.get().copied().or(error.get_io().map(io::Error::kind)) {
                // The first is h2's name for an orderly end, the second is one without TLS's close_notify.
                Some(io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof) => ReconnectReason::Closed,
                _ => ReconnectReason::Reset,
            }),
        }
    }

    /// A PING, and how long its acknowledgement took.
    pub(crate) async fn ping(&mut self, deadline: Deadline) -> Pong {
        let started = Instant::now();
        let answer = timeout_at(deadline.instant().into(), self.ping.ping(Ping::opaque())).await;
        let failure = match answer {
            Ok(Ok(_)) => return Pong { outcome: Outcome::Ok, rtt: Some(started.elapsed()), error: None },
            Err(_) => Failure::timeout(Phase::Ping),
            // That is only "broken pipe": what broke it is known to the senders.
            Ok(Err(error)) => match self.sender.clone().ready().await {
                Err(cause) => Failure::http2(&cause),
                Ok(_) => Failure::http2(&error),
            },
        };
        Pong { outcome: failure.outcome, rtt: None, error: Some(failure.error) }
    }

    /// Ends the task and closes the socket, and waits until both are gone.
    pub(crate) async fn close(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One request as a stream. Dropped before its end, it is reset: nothing of it stays.
pub(crate) async fn ask(sender: SendRequest<Bytes>, target: &Target, request: &Request<'_>) -> Result<Bytes, Failure> {
    let failed = |error: h2::Error| Failure::http2(&error);
    let message = request.to_http(target, ())?;
    let mut sender = sender.ready().await.map_err(failed)?;
    let body = request.body();
    let (response, mut sending) = sender.send_request(message, body.is_empty()).map_err(failed)?;
    if !body.is_empty() {
        // A few kilobytes: they wait in h2 for the server's window.
        sending.send_data(body, true).map_err(failed)?;
    }
    let response = response.await.map_err(failed)?;
    request.check(response.status(), response.headers(), target)?;
    let body = body::whole_stream(response.into_body(), request.most_bytes).await;
    request.whole(body, Failure::http2)
}
