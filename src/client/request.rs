//! What is asked, and what is made of the answer, the same over either protocol.

use std::fmt;
use std::time::Duration;

use hyper::body::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, USER_AGENT};
use hyper::{Method, StatusCode, Uri};

use super::outcome::{Exchange, Failure, Outcome};
use super::phases::Stopwatch;
use super::target::Target;

/// A health path answers in two bytes, or with one line per check.
const LARGEST_PROBE: usize = 64 << 10;

/// A GET, or a POST of a question.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    path: &'a str,
    accept: &'static str,
    /// In JSON. It may hold somebody's token.
    question: Option<&'a [u8]>,
    pub(crate) most_bytes: usize,
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("path", &self.path).finish_non_exhaustive()
    }
}

/// The answer to it: status 200 and this.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) body: Bytes,
}

impl<'a> Request<'a> {
    /// Something that is only asked for to see whether it comes.
    pub(crate) fn probe(path: &'a str) -> Self {
        Request { path, accept: "*/*", question: None, most_bytes: LARGEST_PROBE }
    }

    /// An object.
    pub(crate) fn object(path: &'a str, most_bytes: usize) -> Self {
        Request { path, accept: "application/json", question: None, most_bytes }
    }

    /// What the apiserver makes of this JSON text.
    pub(crate) fn question(path: &'a str, json: &'a [u8], most_bytes: usize) -> Self {
        Request { path, accept: "application/json", question: Some(json), most_bytes }
    }

    /// What is sent after the head; empty with a GET.
    pub(crate) fn body(&self) -> Bytes {
        self.question.map(Bytes::copy_from_slice).unwrap_or_default()
    }

    /// With an absolute URI. The token is sent as a header that no table of HTTP/2 keeps.
    pub(crate) fn request<B>(&self, entry: &Target, body: B) -> Result<hyper::Request<B>, Failure> {
        let uri = format!("https://{}{}", entry.address.authority(), entry.address.path(self.path));
        let method = if self.question.is_some() { Method::POST } else { Method::GET };
        let request = hyper::Request::builder().method(method).uri(uri).body(body);
        let mut request = request.map_err(|_| self.no_path())?;
        let headers = request.headers_mut();
        if self.question.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        headers.insert(ACCEPT, HeaderValue::from_static(self.accept));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("headroom-exporter/", env!("CARGO_PKG_VERSION"))));
        if let Some(token) = &entry.token {
            headers.insert(AUTHORIZATION, token.header());
        }
        Ok(request)
    }

    /// The URI as HTTP/1.1 sends it: the path alone.
    pub(crate) fn relative(&self, entry: &Target) -> Result<Uri, Failure> {
        entry.address.path(self.path).parse().map_err(|_| self.no_path())
    }

    fn no_path(&self) -> Failure {
        Failure::unexpected(format!("{:?} is no path of a URL (--apiserver.probe-path)", self.path))
    }

    pub(crate) fn check(&self, status: StatusCode, headers: &HeaderMap, entry: &Target) -> Result<(), Failure> {
        // A question is "created", although nothing stays of it.
        let answered = status == StatusCode::OK || (status == StatusCode::CREATED && self.question.is_some());
        if answered { Ok(()) } else { Err(Failure::status(status, headers, entry)) }
    }

    pub(crate) fn append(&self, body: &mut Vec<u8>, data: &[u8]) -> Result<(), Failure> {
        if body.len() + data.len() > self.most_bytes {
            return Err(self.too_large());
        }
        body.extend_from_slice(data);
        Ok(())
    }

    pub(crate) fn too_large(&self) -> Failure {
        Failure::unexpected(format!("the answer is larger than {} bytes", self.most_bytes))
    }

    /// What came of it.
    pub(crate) fn exchange(&self, result: Result<Answer, Failure>, watch: &Stopwatch, entry: &Target) -> Exchange {
        let timings = watch.timings(result.is_ok());
        match result {
            Ok(Answer { body }) => Exchange {
                outcome: Outcome::Ok,
                failed_in: None,
                timings,
                status: Some(StatusCode::OK.as_u16()),
                retry_after: None,
                body,
                error: None,
            },
            Err(failure) => self.failed(failure, watch, timings, entry),
        }
    }

    fn failed(
        &self,
        failure: Failure,
        watch: &Stopwatch,
        timings: Vec<(super::Phase, Duration)>,
        entry: &Target,
    ) -> Exchange {
        let Failure { outcome, error, status, retry_after, .. } = failure;
        let url = format!("{}{}", entry.address, self.path);
        let (failed_in, error) = (Some(watch.now_in()), Some(error.context(url)));
        Exchange { outcome, failed_in, timings, status, retry_after, body: Bytes::new(), error }
    }
}
