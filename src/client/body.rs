//! The body of an answer, which may be of any size.

use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Bytes, Incoming};

/// All of a body over hyper's HTTP/1.1; `None` if it is larger than this many bytes.
pub(crate) async fn whole(mut body: Incoming, most_bytes: usize) -> hyper::Result<Option<Bytes>> {
    if body.size_hint().lower() > most_bytes as u64 {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if bytes.len() + data.len() > most_bytes {
            return Ok(None);
        }
        bytes.extend_from_slice(&data);
    }
    Ok(Some(bytes.into()))
}

/// As [`whole`], of a stream of HTTP/2. The server may send on as soon as a part of it has come.
pub(super) async fn whole_stream(mut body: h2::RecvStream, most_bytes: usize) -> Result<Option<Bytes>, h2::Error> {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        if bytes.len() + data.len() > most_bytes {
            return Ok(None);
        }
        bytes.extend_from_slice(&data);
        body.flow_control().release_capacity(data.len())?;
    }
    Ok(Some(bytes.into()))
}
