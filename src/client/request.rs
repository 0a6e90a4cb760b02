//! What is asked, and what is made of the answer, the same over either protocol.

use std::fmt;

use hyper::body::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, USER_AGENT};
use hyper::{Method, StatusCode};

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
    pub(super) most_bytes: usize,
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("path", &self.path).finish_non_exhaustive()
    }
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
    pub(super) fn body(&self) -> Bytes {
        self.question.map(Bytes::copy_from_slice).unwrap_or_default()
    }

    /// With an absolute URI. The token is sent as a header that no table of HTTP/2 keeps.
    pub(super) fn to_http<B>(self, target: &Target, body: B) -> Result<hyper::Request<B>, Failure> {
        let uri = format!("https://{}{}", target.address.authority(), target.address.path(self.path));
        let method = if self.question.is_some() { Method::POST } else { Method::GET };
        let message = hyper::Request::builder().method(method).uri(uri).body(body);
        let mut message = message.map_err(|_| {
            Failure::unexpected(format!("{:?} is not the path of a URL (--apiserver.probe-path)", self.path))
        })?;
        let headers = message.headers_mut();
        if self.question.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        headers.insert(ACCEPT, HeaderValue::from_static(self.accept));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("headroom-exporter/", env!("CARGO_PKG_VERSION"))));
        if let Some(token) = &target.token {
            headers.insert(AUTHORIZATION, token.header());
        }
        Ok(message)
    }

    pub(super) fn check(&self, status: StatusCode, headers: &HeaderMap, target: &Target) -> Result<(), Failure> {
        // A question is "created", although nothing stays of it.
        let answered = status == StatusCode::OK || (status == StatusCode::CREATED && self.question.is_some());
        if answered { Ok(()) } else { Err(Failure::status(status, headers, target)) }
    }

    /// The body of an answer with status 200, as far as it could be read.
    pub(super) fn whole<E>(
        &self,
        body: Result<Option<Bytes>, E>,
        failure: impl FnOnce(&E) -> Failure,
    ) -> Result<Bytes, Failure> {
        let larger = || Failure::unexpected(format!("the answer is larger than {} bytes", self.most_bytes));
        let body = body.map_err(|error| failure(&error)).and_then(|body| body.ok_or_else(larger));
        body.map_err(Failure::after_200)
    }

    /// What came of it.
    pub(crate) fn exchange(&self, result: Result<Bytes, Failure>, watch: &Stopwatch, target: &Target) -> Exchange {
        let timings = watch.timings(result.is_ok());
        match result {
            Ok(body) => Exchange {
                outcome: Outcome::Ok,
                failed_in: None,
                timings,
                status: Some(StatusCode::OK.as_u16()),
                retry_after: None,
                body,
                error: None,
            },
            Err(Failure { outcome, error, status, retry_after, .. }) => Exchange {
                outcome,
                failed_in: Some(watch.now_in()),
                timings,
                status,
                retry_after,
                body: Bytes::new(),
                error: Some(error.context(format_args!("{}{}", target.address, self.path))),
            },
        }
    }
}
