//! One request over a connection of its own.

use http_body_util::Full;
use hyper::Uri;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, HeaderValue};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::body;
use super::connect::{Connector, Protocol};
use super::outcome::{Exchange, Failure, Phase};
use super::phases::Stopwatch;
use super::request::Request;
use super::target::Target;
use crate::host::Deadline;

/// More header bytes than any server of Kubernetes sends.
const LARGEST_HEAD: usize = 64 << 10;

/// Asks over a new connection, which is closed when this returns.
pub(crate) async fn exchange(
    connector: &Connector,
    target: &Target,
    request: &Request<'_>,
    deadline: Deadline,
) -> Exchange {
    let watch = Stopwatch::start();
    let work = async {
        let stream = connector.connect(target, Protocol::Http1, &watch, deadline).await?;
        watch.phase(Phase::Request, ask(stream, target, request)).await
    };
    let result = watch.within(deadline, work).await;
    request.exchange(result, &watch, target)
}

/// The stream is closed when this ends, however it ends.
async fn ask(stream: TlsStream<TcpStream>, target: &Target, request: &Request<'_>) -> Result<Bytes, Failure> {
    let handshake = http1::Builder::new().max_buf_size(LARGEST_HEAD).handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|error| Failure::http1(target, &error))?;
    let mut message = request.to_http(target, Full::new(request.body()))?;
    // Over HTTP/1.1 the authority is a header of its own, and the URI is the path alone.
    let host = HeaderValue::try_from(target.address.authority());
    let host = host.map_err(|_| Failure::unexpected("the server's name cannot be sent in HTTP"))?;
    message.headers_mut().insert(HOST, host);
    message.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    *message.uri_mut() = message.uri().path_and_query().cloned().map(Uri::from).unwrap_or_default();
    let asking = async {
        let response = sender.send_request(message).await.map_err(|error| Failure::http1(target, &error))?;
        request.check(response.status(), response.headers(), target)?;
        let body = body::whole(response.into_body(), request.most_bytes).await;
        request.whole(body, |error| Failure::http1(target, error))
    };
    // The connection is driven here and not by a task: it ends where this ends. Its own end is the request's, too.
    let driving = async {
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        answer = asking => answer,
        () = driving => Err(Failure::unexpected("the connection ended")),
    }
}
