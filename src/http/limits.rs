//! What one client may take: connections, time, memory.
//!
//! Connections are counted by peer address. When a peer has as many as it may, its oldest one without a request makes
//! room for the new one, so that a scraper gets through even beside a mad client on its own machine; the same holds for
//! all peers together, where the one with the most connections gives way. A connection is closed when it dawdles: in
//! the handshake, in a request head, in taking its answer, or idle.

use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::body::Body;
use hyper::body::{Bytes, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, OwnedSemaphorePermit};

/// Part of an answer that is handed to a connection at once. Small, so that who does not read is noticed, and holds up,
/// early.
const CHUNK: usize = 16 << 10;

/// How much, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at the same time.
    pub connections: usize,
    /// Of these, from one address.
    pub connections_per_peer: usize,
    /// Requests under way from one address, until the last byte of the answer is handed over.
    pub requests_per_peer: usize,
    /// Requests at the same time on one HTTP/2 connection.
    pub streams: u32,
    /// For the TLS handshake.
    pub handshake: Duration,
    /// From the first byte of a request head to its last.
    pub head: Duration,
    /// Without a request.
    pub idle: Duration,
    /// Without the client having taken what we had for it.
    pub write: Duration,
    /// For a request and its answer altogether, beside the time that a scrape may take.
    pub request: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 256,
            connections_per_peer: 32,
            requests_per_peer: 16,
            streams: 8,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(10),
            // More than the longest scrape interval in use, a minute.
            idle: Duration::from_secs(90),
            write: Duration::from_secs(30),
            request: Duration::from_secs(30),
        }
    }
}

impl Limits {
    /// How often a connection is looked at.
    pub(super) fn look(&self) -> Duration {
        let shortest = self.head.min(self.idle).min(self.write).min(self.request);
        (shortest / 4).clamp(Duration::from_millis(20), Duration::from_secs(5))
    }
}

/// Why a connection was closed by us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closed {
    Handshake,
    SlowHead,
    SlowReader,
    Idle,
    Crowded,
}

impl Closed {
    pub(super) const ALL: [Closed; 5] =
        [Closed::Handshake, Closed::SlowHead, Closed::SlowReader, Closed::Idle, Closed::Crowded];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Closed::Handshake => "handshake",
            Closed::SlowHead => "slow_head",
            Closed::SlowReader => "slow_reader",
            Closed::Idle => "idle",
            Closed::Crowded => "crowded",
        }
    }
}

/// Every connection there is.
#[derive(Debug)]
pub(super) struct Registry {
    pub(super) limits: Limits,
    peers: Mutex<HashMap<IpAddr, Peer>>,
    closed: [AtomicU64; Closed::ALL.len()],
}

#[derive(Debug, Default)]
struct Peer {
    /// In the order in which they came.
    connections: Vec<Arc<Connection>>,
    requests: usize,
}

impl Peer {
    fn oldest_without_request(&self) -> Option<usize> {
        self.connections.iter().position(|connection| connection.state().under_way.is_empty())
    }
}

impl Registry {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Registry { limits, peers: Mutex::default(), closed: Default::default() })
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<IpAddr, Peer>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a connection in, if need be in the place of another one. `None`: every one of them has a request.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Admitted> {
        // An IPv4 client of an IPv6 socket is the same one.
        let address = address.to_canonical();
        let mut peers = self.peers();
        let of_peer = peers.get(&address).map_or(0, |peer| peer.connections.len());
        let all: usize = peers.values().map(|peer| peer.connections.len()).sum();
        let crowd = if of_peer >= self.limits.connections_per_peer {
            peers.get_mut(&address)
        } else if all >= self.limits.connections {
            peers.values_mut().max_by_key(|peer| peer.connections.len())
        } else {
            None
        };
        if of_peer >= self.limits.connections_per_peer || all >= self.limits.connections {
            self.count(Closed::Crowded);
            let crowd = crowd?;
            let leaves = crowd.connections.remove(crowd.oldest_without_request()?);
            leaves.leave.notify_one();
        }
        let connection = Arc::new(Connection { peer: address, leave: Notify::new(), state: Mutex::new(State::new()) });
        peers.entry(address).or_default().connections.push(Arc::clone(&connection));
        Some(Admitted { connection, registry: Arc::clone(self) })
    }

    pub(super) fn count(&self, why: Closed) {
        self.closed[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn closed(&self, why: Closed) -> u64 {
        self.closed[why as usize].load(Ordering::Relaxed)
    }

    pub(super) fn connections(&self) -> usize {
        self.peers().values().map(|peer| peer.connections.len()).sum()
    }
}

/// A connection's place. It is given back when dropped.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) connection: Arc<Connection>,
    pub(super) registry: Arc<Registry>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut peers = self.registry.peers();
        if let Some(peer) = peers.get_mut(&self.connection.peer) {
            peer.connections.retain(|other| !Arc::ptr_eq(other, &self.connection));
            if peer.connections.is_empty() && peer.requests == 0 {
                peers.remove(&self.connection.peer);
            }
        }
    }
}

impl Admitted {
    /// A request has come. `None`: its address has as many as it may.
    pub(super) fn begin(&self) -> Option<UnderWay> {
        let mut peers = self.registry.peers();
        let peer = peers.entry(self.connection.peer).or_default();
        let mut state = self.connection.state();
        state.reading_since = None;
        state.idle_since = Instant::now();
        if peer.requests >= self.registry.limits.requests_per_peer {
            return None;
        }
        peer.requests += 1;
        state.last += 1;
        let number = state.last;
        state.under_way.push((number, Instant::now()));
        drop(state);
        let (connection, registry) = (Arc::clone(&self.connection), Arc::clone(&self.registry));
        Some(UnderWay { number, connection, registry })
    }
}

/// A request, until its answer is handed over.
#[derive(Debug)]
pub(super) struct UnderWay {
    number: u64,
    connection: Arc<Connection>,
    registry: Arc<Registry>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut peers = self.registry.peers();
        if let Some(peer) = peers.get_mut(&self.connection.peer) {
            peer.requests = peer.requests.saturating_sub(1);
            if peer.connections.is_empty() && peer.requests == 0 {
                peers.remove(&self.connection.peer);
            }
        }
        let mut state = self.connection.state();
        state.under_way.retain(|(number, _)| *number != self.number);
        state.idle_since = Instant::now();
    }
}

/// What one connection is about.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) peer: IpAddr,
    /// Told when it must make room.
    pub(super) leave: Notify,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The first byte of a head that is not complete yet.
    reading_since: Option<Instant>,
    /// We have something to write and it is not taken.
    blocked_since: Option<Instant>,
    idle_since: Instant,
    under_way: Vec<(u64, Instant)>,
    last: u64,
}

impl State {
    fn new() -> Self {
        let now = Instant::now();
        State { reading_since: None, blocked_since: None, idle_since: now, under_way: Vec::new(), last: 0 }
    }
}

impl Connection {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it dawdles. Over HTTP/2 there are bytes between the requests too (PING), and h2 bounds a head by itself.
    pub(super) fn dawdles(&self, limits: &Limits, http2: bool) -> Option<Closed> {
        let state = self.state();
        let longer = |since: Option<Instant>, limit| since.is_some_and(|since| since.elapsed() > limit);
        if !http2 && longer(state.reading_since, limits.head) {
            return Some(Closed::SlowHead);
        }
        let oldest = state.under_way.iter().map(|(_, since)| *since).min();
        if longer(state.blocked_since, limits.write) || longer(oldest, limits.request) {
            return Some(Closed::SlowReader);
        }
        let idle = state.under_way.is_empty() && state.idle_since.elapsed() > limits.idle;
        idle.then_some(Closed::Idle)
    }
}

/// A stream that notices when it is kept waiting.
#[derive(Debug)]
pub(super) struct Timed<S> {
    stream: S,
    connection: Arc<Connection>,
}

impl<S> Timed<S> {
    pub(super) fn new(stream: S, connection: Arc<Connection>) -> Self {
        Timed { stream, connection }
    }

    fn waits<T>(&self, poll: &Poll<T>) {
        if poll.is_pending() {
            self.connection.state().blocked_since.get_or_insert_with(Instant::now);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Timed<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            let mut state = this.connection.state();
            if state.under_way.is_empty() {
                state.reading_since.get_or_insert_with(Instant::now);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timed<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.waits(&poll);
        poll
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.waits(&poll);
        poll
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Only here all is taken: a client that reads a byte a second lets a write through now and then.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.stream).poll_flush(cx);
        this.waits(&poll);
        if poll.is_ready() {
            this.connection.state().blocked_since = None;
        }
        poll
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.stream).poll_shutdown(cx);
        this.waits(&poll);
        poll
    }
}

/// A scrape's permit, which goes with its answer until that is handed over: pages in memory are bounded by it.
#[derive(Clone, Debug)]
pub(super) struct Permit(#[expect(dead_code, reason = "held, not read")] pub(super) Arc<OwnedSemaphorePermit>);

/// The answer to a request, in small parts.
#[derive(Debug)]
pub(super) struct Answer {
    body: Body,
    rest: Bytes,
    _under_way: Option<UnderWay>,
    _permit: Option<Permit>,
}

impl Answer {
    pub(super) fn new(body: Body, under_way: Option<UnderWay>, permit: Option<Permit>) -> Self {
        Answer { body, rest: Bytes::new(), _under_way: under_way, _permit: permit }
    }
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            let frame = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                other => return Poll::Ready(other),
            };
            match frame.into_data() {
                Ok(data) => this.rest = data,
                Err(frame) => return Poll::Ready(Some(Ok(frame))),
            }
        }
        let part = this.rest.split_to(this.rest.len().min(CHUNK));
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut whole = SizeHint::new();
        whole.set_lower(hint.lower() + rest);
        if let Some(upper) = hint.upper() {
            whole.set_upper(upper + rest);
        }
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;
    use hyper::body::Body as _;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn registry() -> Arc<Registry> {
        let limits = Limits { connections: 6, connections_per_peer: 4, requests_per_peer: 2, ..Limits::default() };
        Registry::new(limits)
    }

    /// Whether it was told to make room.
    async fn told_to_leave(admitted: &Admitted) -> bool {
        tokio::time::timeout(Duration::from_millis(1), admitted.connection.leave.notified()).await.is_ok()
    }

    #[tokio::test]
    async fn a_crowd_gives_way_to_a_newcomer_but_no_request_does() {
        let registry = registry();
        let mut ones: Vec<_> = (0..4).map(|_| registry.admit(ONE).unwrap()).collect();
        let request = ones[0].begin().unwrap();
        ones.push(registry.admit(ONE).unwrap());
        assert!(!told_to_leave(&ones[0]).await && told_to_leave(&ones[1]).await);
        // The same client by way of an IPv6 socket.
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        ones.push(registry.admit(mapped).unwrap());
        assert!(told_to_leave(&ones[2]).await);
        let others: Vec<_> = (0..3).map(|_| registry.admit(OTHER).unwrap()).collect();
        assert!(told_to_leave(&ones[3]).await, "of all, the one with the most gives way");
        assert_eq!(registry.connections(), 6);
        assert_eq!(registry.closed(Closed::Crowded), 3);
        drop((request, ones, others));
        assert_eq!(registry.connections(), 0);
        assert!(registry.peers().is_empty(), "nothing is left of a peer");
    }

    #[test]
    fn where_each_has_a_request_nobody_more_is_let_in() {
        let limits = Limits { connections: 9, connections_per_peer: 2, requests_per_peer: 2, ..Limits::default() };
        let registry = Registry::new(limits);
        let ones = [registry.admit(ONE).unwrap(), registry.admit(ONE).unwrap()];
        let requests = [ones[0].begin().unwrap(), ones[1].begin().unwrap()];
        assert!(ones[0].begin().is_none(), "two requests from there");
        assert!(registry.admit(ONE).is_none());
        assert!(registry.admit(OTHER).unwrap().begin().is_some(), "others are not concerned");
        drop(requests);
        assert!(registry.admit(ONE).is_some());
    }

    #[tokio::test]
    async fn a_large_answer_goes_in_parts_and_says_its_length() {
        let page = vec![b'x'; 3 * CHUNK + 5];
        let mut answer = Answer::new(Body::from(page.clone()), None, None);
        assert_eq!(answer.size_hint().exact(), Some(page.len() as u64));
        let mut parts = Vec::new();
        while let Some(frame) = answer.frame().await {
            parts.push(frame.unwrap().into_data().unwrap().len());
            let sent: usize = parts.iter().sum();
            assert_eq!(answer.size_hint().exact(), Some((page.len() - sent) as u64));
        }
        assert_eq!(parts, [CHUNK, CHUNK, CHUNK, 5]);
        assert!(answer.is_end_stream());
    }
}
