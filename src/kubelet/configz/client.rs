//! One GET over TLS, with everything about it bounded: time, head, body.

use std::cell::Cell;
use std::io;
use std::sync::Arc;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, CONNECTION, HOST, USER_AGENT};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::address::Address;
use super::trust::Trust;
use crate::client::credentials::{Handshake, Token};
use crate::error::{Error, Reason};
use crate::host::Deadline;

/// The configuration of a kubelet is a few kilobytes.
const LARGEST_BODY: usize = 4 << 20;
const LARGEST_HEAD: usize = 64 << 10;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nobody listens there.
    Refused,
    /// A kubelet without `/configz`: `enableDebuggingHandlers: false`.
    Unserved,
    /// Anything else.
    Error(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Error(error)
    }
}

/// Asks for `/configz`.
///
/// In a runtime of its own, on this thread: it is gone with everything in it when the answer is there or the time is over.
pub(super) fn get(
    address: &Address,
    trust: &Trust,
    token: Option<&Token>,
    deadline: Deadline,
) -> std::result::Result<String, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::os("a runtime for the request", &error))?;
    let phase = Cell::new("connect");
    let answer = runtime.block_on(async {
        let within = tokio::time::timeout_at(deadline.instant().into(), exchange(address, trust, token, &phase));
        within.await.unwrap_or_else(|_| {
            let what = phase.get();
            Err(Error::new(Reason::Timeout, format!("no {what} before the deadline")).into())
        })
    });
    // A name that is being looked up holds a thread that cannot be stopped: it is not waited for.
    runtime.shutdown_background();
    answer
}

async fn exchange(
    address: &Address,
    trust: &Trust,
    token: Option<&Token>,
    phase: &Cell<&'static str>,
) -> std::result::Result<String, Failure> {
    phase.set("connection");
    let stream = TcpStream::connect((address.host(), address.port())).await.map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => Failure::Refused,
        _ => Error::os("connect", &error).into(),
    })?;
    phase.set("end of the TLS handshake");
    let name = ServerName::try_from(address.host().to_owned())
        .map_err(|_| Error::malformed("is not a name that a server can have (--kubelet.url)"))?;
    let connector = TlsConnector::from(Arc::clone(&trust.config));
    // Past this line the server is whom we take it for. Nothing of ours was sent before.
    let stream = connector.connect(name, stream).await.map_err(|error| handshake(trust, &error))?;
    phase.set("answer");
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(LARGEST_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| http(&error))?;
    let mut request = Request::get("/configz")
        .header(HOST, address.authority())
        .header(ACCEPT, "application/json")
        .header(CONNECTION, "close")
        .header(USER_AGENT, concat!("headroom-exporter/", env!("CARGO_PKG_VERSION")));
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, token.header());
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| Error::malformed(error.to_string()))?;
    let asking = async {
        let response = sender.send_request(request).await.map_err(|error| http(&error))?;
        status(response.status(), token.is_some())?;
        body(response).await
    };
    // The connection is driven here and not by a task: it ends where this ends. Its own end is the request's, too.
    let driving = async {
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        answer = asking => answer,
        () = driving => Err(Error::new(Reason::Io, "the connection ended").into()),
    }
}

fn handshake(trust: &Trust, error: &io::Error) -> Error {
    match Handshake::of(error) {
        Handshake::Untrusted(why) => trust.refusal(why),
        Handshake::Tls(error) => Error::malformed(format!("TLS handshake: {error}")),
        Handshake::Io(error) => Error::os("TLS handshake", error),
    }
}

fn http(error: &hyper::Error) -> Error {
    let reason = if error.is_parse() || error.is_parse_too_large() { Reason::Malformed } else { Reason::Io };
    Error::new(reason, format!("HTTP: {error}"))
}

fn status(status: StatusCode, with_token: bool) -> std::result::Result<(), Failure> {
    let error = match status {
        StatusCode::OK => return Ok(()),
        StatusCode::NOT_FOUND => return Err(Failure::Unserved),
        StatusCode::UNAUTHORIZED if !with_token => {
            Error::new(Reason::Denied, "401: it wants a token, and there is none (--kubelet.token-file)")
        }
        StatusCode::UNAUTHORIZED => Error::new(
            Reason::Denied,
            "401: it does not accept the token: expired, of another cluster, or this kubelet has no webhook authentication",
        ),
        StatusCode::FORBIDDEN => Error::new(
            Reason::Denied,
            "403: the token's service account may not: it needs a ClusterRole with verb get on nodes/configz (before Kubernetes 1.33: on nodes/proxy, which permits far more)",
        ),
        status if status.is_redirection() => {
            Error::malformed(format!("{}: a redirect, which no kubelet sends and we do not follow", status.as_u16()))
        }
        status => Error::new(Reason::Io, format!("HTTP status {}", status.as_u16())),
    };
    Err(error.into())
}

async fn body(response: Response<Incoming>) -> std::result::Result<String, Failure> {
    let large = || Error::malformed(format!("its answer is larger than {LARGEST_BODY} bytes"));
    let mut body = response.into_body();
    if body.size_hint().lower() > LARGEST_BODY as u64 {
        return Err(large().into());
    }
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| http(&error))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > LARGEST_BODY {
            return Err(large().into());
        }
        bytes.extend_from_slice(&data);
    }
    String::from_utf8(bytes).map_err(|_| Error::malformed("its answer is not text").into())
}
