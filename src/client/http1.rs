//! One request over a connection of its own.

use http_body_util::{BodyExt as _, Full};
use hyper::body::Body as _;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, HeaderValue};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::connect::{Connector, Protocol};
use super::outcome::{Exchange, Failure, Phase};
use super::phases::Stopwatch;
use super::request::{Answer, Request};
use super::target::Target;
use crate::host::Deadline;

/// More header bytes than any server of Kubernetes sends.
const LARGEST_HEAD: usize = 64 << 10;

/// Asks over a new connection, which is closed when this returns.
pub(crate) async fn exchange(
    connector: &Connector,
    entry: &Target,
    want: &Request<'_>,
    deadline: Deadline,
) -> Exchange {
    let watch = Stopwatch::start();
    let work = async {
        let stream = connector.connect(entry, Protocol::Http1, &watch, deadline).await?;
        watch.phase(Phase::Request, ask(stream, entry, want)).await
    };
    let result = watch.within(deadline, work).await;
    want.exchange(result, &watch, entry)
}

/// The stream is closed when this ends, however it ends.
async fn ask(stream: TlsStream<TcpStream>, entry: &Target, want: &Request<'_>) -> Result<Answer, Failure> {
    let handshake = http1::Builder::new().max_buf_size(LARGEST_HEAD).handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|error| Failure::http1(entry, &error))?;
    let mut request = want.request(entry, Full::new(want.body()))?;
    // Over HTTP/1.1 the authority is a header of its own.
    let host = HeaderValue::try_from(entry.address.authority());
    let host = host.map_err(|_| Failure::unexpected("the server's name cannot be sent in HTTP"))?;
    request.headers_mut().insert(HOST, host);
    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    *request.uri_mut() = want.relative(entry)?;
    let asking = async {
        let response = sender.send_request(request).await.map_err(|error| Failure::http1(entry, &error))?;
        want.check(response.status(), response.headers(), entry)?;
        let body = async move {
            let mut body = response.into_body();
            if body.size_hint().lower() > want.most_bytes as u64 {
                return Err(want.too_large());
            }
            let mut bytes = Vec::new();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| Failure::http1(entry, &error))?;
                let Ok(data) = frame.into_data() else { continue };
                want.append(&mut bytes, &data)?;
            }
            Ok(bytes)
        };
        let bytes = body.await.map_err(Failure::after_200)?;
        Ok(Answer { body: bytes.into() })
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
