//! One connection to a unix socket, driven only while somebody asks.
//!
//! Each link has a single-threaded tokio runtime of its own, entered by the thread that polls. Between polls nothing
//! runs, and dropping a link drops every task and file descriptor of the connection there and then: a client that
//! forgets its connections is the very failure this exporter watches for.

use std::future::Future;
use std::os::fd::AsRawFd as _;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use crate::client::Ending;
use crate::error::{Error, Reason};
use crate::host::{Deadline, Host};

/// Larger answers are refused: what the kubelet's own client takes, too.
pub(super) const LARGEST_ANSWER: usize = 16 << 20;

/// Why a call brought nothing.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    /// The other side speaks the protocol and does not have this call: containerd with its CRI plugin switched off.
    Unimplemented(Error),
    /// The connection is gone; a new one may work: the daemon was restarted.
    Lost(Error),
    /// Anything else.
    Failed(Error),
}

impl Failure {
    /// The error, whatever may be done about it.
    pub(super) fn into_error(self) -> Error {
        match self {
            Failure::Unimplemented(error) | Failure::Lost(error) | Failure::Failed(error) => error,
        }
    }

    /// The same, said of a larger thing.
    pub(super) fn context(self, context: &str) -> Self {
        match self {
            Failure::Unimplemented(error) => Failure::Unimplemented(error.context(context)),
            Failure::Lost(error) => Failure::Lost(error.context(context)),
            Failure::Failed(error) => Failure::Failed(error.context(context)),
        }
    }

    /// A failed HTTP exchange, after which a connection is of no use any more, be it an end, the daemon's orderly
    /// GOAWAY or nonsense.
    pub(super) fn http(error: &hyper::Error) -> Self {
        let reason = match Ending::of(error) {
            Ending::Io(_) | Ending::Early => Reason::Io,
            Ending::Nonsense => Reason::Malformed,
        };
        let mut text = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        Failure::Lost(Error::new(reason, text))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Failed(error)
    }
}

/// The task that drives a connection. A request that comes after the connection's end learns that it ended; why it did
/// only the task knows.
pub(super) struct Driver(Option<JoinHandle<hyper::Result<()>>>);

impl Driver {
    pub(super) fn start(connection: impl Future<Output = hyper::Result<()>> + Send + 'static) -> Self {
        Driver(Some(tokio::spawn(connection)))
    }

    /// The failure of a request.
    pub(super) async fn failure(&mut self, of_request: &hyper::Error) -> Failure {
        let told_nothing = of_request.is_canceled() || of_request.is_closed();
        let task = if told_nothing { self.0.take() } else { None };
        let ended = match task {
            Some(task) => task.await.ok().and_then(std::result::Result::err),
            None => None,
        };
        Failure::http(ended.as_ref().unwrap_or(of_request))
    }
}

/// A runtime of one thread (the caller's) and what lives in it.
pub(super) struct Link<C> {
    /// `None` only while dropping.
    runtime: Option<tokio::runtime::Runtime>,
    client: C,
    /// The process that listens there; `None` if it is not in our pid namespace.
    pub(super) server: Option<u32>,
}

impl<C> Link<C> {
    /// Connects to what the machine calls `path` and shakes hands.
    pub(super) fn connect<F>(
        host: &Host,
        path: &str,
        deadline: Deadline,
        handshake: impl FnOnce(TokioIo<UnixStream>) -> F,
    ) -> std::result::Result<Self, Failure>
    where
        F: Future<Output = std::result::Result<C, Failure>>,
    {
        // First of all, because mostly there is no such socket, and that should cost one system call.
        let handle = host.handle(path)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Error::os("the thread for the container runtime's connection", &error))?;
        let client = runtime.block_on(within(deadline, async {
            // Through the handle rather than by the path: that has resolved the links of the observed machine inside
            // its root, and is never too long for a socket address.
            let stream = UnixStream::connect(format!("/proc/self/fd/{}", handle.as_raw_fd())).await;
            let stream = stream.map_err(|error| Error::os(path, &error))?;
            // Who called listen(2), by the kernel's word (`SO_PEERCRED`).
            let server = stream.peer_cred().ok().and_then(|cred| u32::try_from(cred.pid()?).ok());
            Ok((handshake(TokioIo::new(stream)).await?, server.filter(|pid| *pid > 0)))
        }));
        match client {
            Ok((client, server)) => Ok(Link { runtime: Some(runtime), client, server }),
            Err(failure) => {
                runtime.shutdown_background();
                Err(failure)
            }
        }
    }

    /// Runs `call` on the connection until it is done or `deadline` has passed.
    pub(super) fn run<T>(
        &mut self,
        deadline: Deadline,
        call: impl AsyncFnOnce(&mut C) -> std::result::Result<T, Failure>,
    ) -> std::result::Result<T, Failure> {
        let Some(runtime) = &self.runtime else {
            return Err(Failure::Failed(Error::new(Reason::Io, "the connection is closed")));
        };
        runtime.block_on(within(deadline, call(&mut self.client)))
    }
}

impl<C> Drop for Link<C> {
    fn drop(&mut self) {
        // Not by its own Drop: that one panics on a thread that itself runs asynchronous code.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// `future`, or a timeout once `deadline` has passed.
pub(super) async fn within<T>(
    deadline: Deadline,
    future: impl Future<Output = std::result::Result<T, Failure>>,
) -> std::result::Result<T, Failure> {
    tokio::time::timeout_at(deadline.instant().into(), future)
        .await
        .unwrap_or_else(|_| Err(Failure::Failed(Error::new(Reason::Timeout, "no answer before the deadline"))))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use super::*;
    use crate::runtime::{cri, docker};

    /// Nonsense that comes before, beside or after the first request: of a hundred requests one learns only that
    /// their connection has ended.
    #[test]
    fn nonsense_is_told_from_an_end() {
        for round in 0..400 {
            let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            let nonsense = if round % 4 < 2 { &[0xff; 100_000][..] } else { b"SSH-2.0-OpenSSH_9.2\r\n\r\n" };
            let talk = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_micros(round % 300));
                let _ = theirs.write_all(nonsense);
                let _ = std::io::copy(&mut theirs, &mut std::io::sink());
            });
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let failure = runtime.block_on(async {
                let stream = TokioIo::new(UnixStream::from_std(ours).unwrap());
                let deadline = Deadline::after(Duration::from_secs(20));
                if round % 2 == 0 {
                    cri::Client::handshake(stream).await.unwrap().inventory("", Duration::ZERO, false, deadline).await
                } else {
                    docker::Client::handshake(stream).await.unwrap().inventory("", Duration::ZERO, deadline).await
                }
            });
            drop(runtime);
            let error = failure.unwrap_err().into_error();
            assert_eq!(error.reason(), Reason::Malformed, "round {round}: {error}");
            talk.join().unwrap();
        }
    }
}
