//! How a Kubernetes server is reached: address, credentials, trust, connection, and what came of asking.

mod address;
pub(crate) mod blocking;
pub(crate) mod body;
pub(crate) mod connect;
pub(crate) mod credentials;
pub(crate) mod host_port;
pub(crate) mod http1;
pub(crate) mod http2;
mod outcome;
pub(crate) mod phases;
pub(crate) mod request;
mod server;
pub(crate) mod target;

pub use address::Address;
pub use host_port::HostPort;
pub use http2::{Pong, ReconnectReason};
pub(crate) use outcome::{Ending, Failure};
pub use outcome::{Exchange, Outcome, Phase};
pub use server::Server;
