//! The process that holds connections for the drill `open-files --runtime-socket`, and what it says of them.
//!
//! A server closes what does not speak to it: gRPC (containerd, CRI-O, cri-dockerd) after 120 s without a client's
//! preface (`connectionTimeout` of grpc-go's `server.go`), Docker after five minutes without a request
//! (`ReadHeaderTimeout` of its `http.Server`). A client that leaks did speak, once. So each connection says as much as
//! the server's protocol asks for, and then no more; HTTP/2 also answers the server's settings and pings. Which
//! protocol it is, a first connection finds out.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// How long a server may take to show which protocol it has.
pub(super) const FIRST_WORD: Duration = Duration::from_secs(2);

/// What the process says of its connections, a line each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) open: u64,
    /// Closed by the server, or never made.
    pub(super) lost: u64,
    pub(super) protocol: String,
    /// Why the last of these was lost.
    pub(super) why: String,
}

impl State {
    fn line(&self) -> String {
        format!("{}\t{}\t{}\t{}", self.open, self.lost, self.protocol, self.why)
    }

    pub(super) fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(4, '\t');
        let mut number = || words.next()?.parse().ok();
        let (open, lost) = (number()?, number()?);
        Some(State { open, lost, protocol: words.next()?.to_owned(), why: words.next()?.to_owned() })
    }
}

/// What a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Http2,
    Http1,
    /// It says nothing before it is asked in its own way.
    Unknown,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Protocol::Http2 => "HTTP/2",
            Protocol::Http1 => "HTTP/1.1",
            Protocol::Unknown => "a protocol that is not known",
        }
    }

    /// By what comes back for a client's preface of HTTP/2 (RFC 9113, 3.4): the server's own begins with a SETTINGS
    /// frame, whose type is 4; a server of HTTP/1 refuses it in its own words.
    fn of_answer(answer: &[u8]) -> Self {
        match answer {
            [b'H', b'T', b'T', b'P', b'/', ..] => Protocol::Http1,
            [_, _, _, 4, ..] => Protocol::Http2,
            _ => Protocol::Unknown,
        }
    }
}

/// The preface with settings that change nothing.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// What Docker answers without a body, and anything else with an error: both leave the connection open.
const REQUEST: &[u8] = b"HEAD /_ping HTTP/1.1\r\nHost: docker\r\nUser-Agent: headroom-drill\r\n\r\n";

/// The process that holds them: makes one at a time, makes those anew that are lost, and says twice a second how many
/// are open. It does not return as long as that is read.
pub(super) fn hold(count: u64, socket: &Path, every: Duration) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    // It ends with its input, as every process of a drill.
    std::thread::spawn(|| {
        let _ = io::Read::read_to_end(&mut io::stdin(), &mut Vec::new());
        std::process::exit(0);
    });
    runtime.block_on(hold_all(count, socket, every))
}

async fn hold_all(count: u64, socket: &Path, every: Duration) -> io::Result<()> {
    let protocol = probe(socket).await?;
    let open = Arc::new(AtomicU64::new(0));
    let mut state = State { protocol: protocol.name().to_owned(), ..State::default() };
    let mut held = JoinSet::new();
    let mut next = interval(every.max(Duration::from_millis(1)));
    // Those that were lost all at once come back one at a time.
    next.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut report = interval(Duration::from_millis(500));
    loop {
        tokio::select! {
            _ = next.tick(), if (held.len() as u64) < count => {
                held.spawn(hold_one(socket.to_owned(), protocol, Open(Arc::clone(&open))));
            }
            Some(ended) = held.join_next() => {
                state.lost += 1;
                state.why = match ended {
                    Ok(Err(error)) => error.to_string().replace(['\t', '\n'], " "),
                    Ok(Ok(())) | Err(_) => "it ended".to_owned(),
                };
            }
            _ = report.tick() => {
                state.open = open.load(Ordering::Relaxed);
                writeln!(io::stdout(), "{}", state.line())?;
            }
        }
    }
}

async fn probe(socket: &Path) -> io::Result<Protocol> {
    let stream = UnixStream::connect(socket).await?;
    write(&stream, PREFACE).await?;
    let mut answer = [0; 16];
    Ok(match timeout(FIRST_WORD, read(&stream, &mut answer)).await {
        Ok(Ok(length)) => Protocol::of_answer(&answer[..length]),
        Ok(Err(_)) | Err(_) => Protocol::Unknown,
    })
}

/// Counts while it is there.
struct Open(Arc<AtomicU64>);

impl Open {
    fn count(self) -> Counted {
        self.0.fetch_add(1, Ordering::Relaxed);
        Counted(self)
    }
}

struct Counted(Open);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One connection, until the server ends it.
async fn hold_one(socket: PathBuf, protocol: Protocol, open: Open) -> io::Result<()> {
    let stream = UnixStream::connect(&socket).await?;
    match protocol {
        Protocol::Http2 => {
            // The connection ends with the last handle for requests.
            let (_requests, connection) = h2::client::handshake(stream).await.map_err(io::Error::other)?;
            let _open = open.count();
            connection.await.map_err(io::Error::other)?;
        }
        Protocol::Http1 | Protocol::Unknown => {
            if protocol == Protocol::Http1 {
                write(&stream, REQUEST).await?;
            }
            let _open = open.count();
            while read(&stream, &mut [0; 4096]).await? > 0 {}
        }
    }
    Err(io::Error::other("the server closed it"))
}

async fn write(stream: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn read(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        stream.readable().await?;
        match stream.try_read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_known_by_its_first_word() {
        assert_eq!(Protocol::of_answer(b"\0\0\x06\x04\0\0\0\0\0\0\x05\0\0\x40\0"), Protocol::Http2);
        assert_eq!(Protocol::of_answer(b"HTTP/1.1 400 Bad Request\r\n"), Protocol::Http1);
        for other in [&b""[..], b"+OK", b"HTT", b"\0\0\0\x07"] {
            assert_eq!(Protocol::of_answer(other), Protocol::Unknown, "{other:?}");
        }
    }

    #[test]
    fn a_state_is_read_as_it_was_written() {
        let state = State { open: 7, lost: 2, protocol: "HTTP/2".to_owned(), why: "a word, and more".to_owned() };
        assert_eq!(State::parse(&state.line()), Some(state));
        assert_eq!(State::parse(&State::default().line()), Some(State::default()));
        assert_eq!(State::parse("7\tx\t\t"), None);
    }
}
