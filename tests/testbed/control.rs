//! What is said between a test and the double of the apiserver: one line of JSON each way.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How the double behaves from now on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// `false`: connections are refused by the kernel. Those there are stay.
    pub listening: bool,
    /// Its certificate is of an authority nobody trusts.
    pub foreign: bool,
    pub silent: Silent,
    /// Each answer takes this long.
    pub slow_ms: u64,
    pub refusal: Option<Refusal>,
    /// The bearer tokens that are good. Another one is 401; none at all is anonymous, who may ask for the health alone.
    pub tokens: Vec<String>,
    /// The node's object; `None` is 404.
    pub node: Option<Value>,
    /// Addresses of the `kubernetes` service.
    pub endpoints: Vec<String>,
    /// What the kubelet answers to the apiserver.
    pub kubelet_status: u16,
    pub names: Names,
    /// What the name server says of the one name it knows.
    pub addresses: Vec<IpAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Silent {
    Never,
    /// Takes connections and never answers the TLS hello.
    Hello,
    /// Never answers a request.
    Request,
}

/// Answered in place of what was asked for.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Refusal {
    pub status: u16,
    /// In seconds.
    pub retry_after: Option<u64>,
    /// The health goes on.
    pub objects_alone: bool,
}

/// What the name server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Names {
    Answer,
    Silent,
    ServerFailure,
    NoSuchName,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    Settings(Box<Settings>),
    /// The node's lease; `None` is 404. A kubelet's PUT replaces it.
    Lease(Option<Value>),
    /// GOAWAY on each HTTP/2 connection, which ends when the requests under way have.
    GoAway,
    /// Closes each connection.
    Close,
    Report,
}

/// What it saw since it started.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub accepted: u64,
    pub handshakes: u64,
    /// Connections at the moment.
    pub open: u64,
    /// `GET /livez` and such → how many.
    pub requests: BTreeMap<String, u64>,
    /// The last few thousand.
    pub recent: Vec<Request>,
    pub lease: Option<Value>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Seconds since the epoch, when it had arrived.
    pub at: f64,
    /// A number per connection.
    pub connection: u64,
    pub http2: bool,
    pub agent: String,
    pub what: String,
    /// Whether a token came with it.
    pub token: bool,
    /// With a certificate that nobody trusts.
    pub foreign: bool,
    /// What it was answered; `None`: not yet, or never.
    pub status: Option<u16>,
}
