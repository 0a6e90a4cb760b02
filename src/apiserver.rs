//! The client that asks the apiserver, with a stopwatch for each phase.
//!
//! A kubelet has one HTTP/2 connection for everything. When the path of that one connection dies without a word, every
//! request hangs on it, while a new connection would work at once. So it is asked in two ways: over a long-lived HTTP/2
//! connection ([`Client::check`]: a PING and a cheap GET) and over a new HTTP/1.1 connection each time
//! ([`Client::fresh`]). A slow server is slow in both; of a dead connection the first hangs and the second does not.
//! Nothing here knows metrics.
//!
//! **What is sent.** `GET /livez` (`--apiserver.probe-path`) and HTTP/2 PINGs; what a mode asks for beyond that is a
//! GET of an object ([`Client::get`]). Nothing is ever changed, nothing watched, no list fetched. `User-Agent` is
//! `headroom-exporter/VERSION`. With `--web.kubernetes-auth` the web side POSTs `TokenReview`s and
//! `SubjectAccessReview`s ([`Client::post`]): questions, of which nothing is kept either.
//!
//! **Permission.** `/livez`, `/readyz` and `/healthz` need none: `system:public-info-viewer` gives them to everybody,
//! unless that ClusterRoleBinding was removed or `--anonymous-auth=false` meets a request without credentials. Node
//! objects need a ClusterRole with `get` on `nodes`, their leases a Role in `kube-node-lease` with `get` on `leases` of
//! `coordination.k8s.io`.
//!
//! **Where.** `--apiserver.url`; else the current context of `--kubeconfig`; else, in a pod with a service account,
//! `KUBERNETES_SERVICE_HOST` and `…_PORT`. Otherwise nobody is asked, which is no failure. Single values of a
//! kubeconfig are overridden by their flags. Only `https://`. `HTTPS_PROXY` is not honoured, nor is a kubeconfig's
//! `proxy-url`: what is measured is the path that the kubelet takes.
//!
//! **The token** goes to that one apiserver and nowhere else: only over TLS, only after its certificate has verified
//! (unless that was switched off by name), never along a redirect (which is an answer like any other, and not the right
//! one), never into a log or an error. Token, CA, client certificate and kubeconfig are read again for each request: a
//! mounted token is replaced about every hour, `kubelet-client-current.pem` now and then, a CA seldom. When trust or
//! certificate change, the long-lived connection is made anew. A file that is missing or wrong is an error of ours and
//! no outcome of the apiserver's: `Err`, each time, until it is there.
//!
//! **Bounds.** One exchange takes at most [`Settings::timeout`] (a check that has to make its connection first: twice
//! that; reading our own files before it: at most 5 s), an answer at most 64 KiB (objects: what the caller says), a
//! head 16 or 64 KiB. A new connection is closed before its exchange returns; of the long-lived one there is one task
//! and one descriptor, gone with it. `getaddrinfo(3)` cannot be cancelled: there is at most one at a time, and while
//! one hangs further exchanges end as timeouts in the phase dns.
//!
//! **When it misleads.** A load balancer before several apiservers: the two ways may meet different servers. A service
//! address: kube-proxy's rules choose at connect, so the long-lived connection stays with one apiserver and the new
//! ones go round. A middlebox that ends TLS answers PINGs itself.

pub mod kubeconfig;
mod long_lived;
mod target_source;

pub use crate::client::{Address, Exchange, HostPort, Outcome, Phase, Pong, ReconnectReason};
pub use long_lived::{Check, Reconnect};

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use long_lived::LongLived;
use target_source::TargetSource;

use crate::client::connect::Connector;
use crate::client::http1;
use crate::client::request::Request;
use crate::error::Result;
use crate::host::{Deadline, Host};
use crate::values::{defaults, some_time};

/// How long it may take to read our own files. It is no part of an exchange: a machine that is busy for a moment is not
/// an apiserver that does not answer.
const FILES: Duration = Duration::from_secs(5);

/// Whether there is an apiserver to ask, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Never.
    Never,
    /// That of the kubeconfig; without one that of the pod, if it has a service account; without either nobody.
    IfConfigured {
        /// What `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT` say (see [`Address::in_cluster`]).
        in_cluster: Option<Address>,
    },
    /// The one at this address.
    At(Address),
}

fn url_flag(text: &str) -> std::result::Result<Ask, String> {
    match text {
        "off" => Ok(Ask::Never),
        "auto" => Ok(Ask::IfConfigured { in_cluster: None }),
        url => Address::apiserver(url).map(Ask::At),
    }
}

fn path_flag(text: &str) -> std::result::Result<String, String> {
    let fits = |byte: u8| byte.is_ascii_graphic() && byte != b'#';
    if text.starts_with('/') && text.bytes().all(fits) {
        Ok(text.to_owned())
    } else {
        Err("expected a path such as /livez".to_owned())
    }
}

/// How the apiserver is asked.
#[derive(clap::Args, Clone, Debug, PartialEq, Eq)]
#[group(skip)]
#[command(next_help_heading = "Apiserver")]
pub struct Settings {
    /// The apiserver that our probe asks, or off
    #[arg(
        long_help = "The apiserver that this exporter's own probe asks: https://HOST:PORT, or off [default: that of --kubeconfig, else in a pod with a service account the cluster's, else off]",
        id = "apiserver.url", long = "apiserver.url", value_name = "URL", default_value = "auto", hide_default_value = true, value_parser = url_flag
    )]
    pub ask: Ask,
    /// Apiserver and credentials, outside a pod
    #[arg(
        long_help = "A kubeconfig with the apiserver, the authority that signed its certificate, and the exporter's credentials (token or client certificate)",
        id = "kubeconfig",
        long = "kubeconfig",
        value_name = "FILE"
    )]
    pub kubeconfig: Option<PathBuf>,
    /// Token for the apiserver, read for each request [default: that of the kubeconfig, else of the pod's service
    /// account]
    #[arg(id = "apiserver.token-file", long = "apiserver.token-file", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Authorities that may have signed the apiserver's certificate, as PEM [default: as for the token]
    #[arg(id = "apiserver.ca-file", long = "apiserver.ca-file", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// The name that the apiserver's certificate must be valid for [default: the host of the URL]
    #[arg(id = "apiserver.server-name", long = "apiserver.server-name", value_name = "NAME")]
    pub server_name: Option<String>,
    /// Do not verify the apiserver's certificate: the token goes to any server that answers there
    #[arg(id = "apiserver.insecure-skip-verify", long = "apiserver.insecure-skip-verify")]
    pub insecure_skip_verify: bool,
    /// What the probe asks for; /livez?exclude=etcd spares etcd, /version is answered without any check
    #[arg(id = "apiserver.probe-path", long = "apiserver.probe-path", value_name = "PATH", default_value = "/livez", value_parser = path_flag)]
    pub path: String,
    /// How long one probe, or one request for an object, may take
    #[arg(id = "apiserver.probe-timeout", long = "apiserver.probe-timeout", value_name = "DURATION", default_value = "10s", value_parser = some_time)]
    pub timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        defaults()
    }
}

/// A handle on the apiserver's client, shared by the modes, so that one long-lived connection serves them all. Cheap to
/// clone; the default one has nobody to ask.
#[derive(Clone, Debug, Default)]
pub struct Apiserver(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    settings: Settings,
    client: OnceLock<Option<Arc<Client>>>,
}

impl Apiserver {
    /// One that asks as it is told here.
    pub fn new(settings: Settings) -> Self {
        Apiserver(Arc::new(Shared { settings, client: OnceLock::new() }))
    }

    /// The client; `None` if there is no apiserver to ask, which one log line says.
    pub fn client(&self, host: &Arc<Host>) -> Option<Arc<Client>> {
        let make = || {
            let client = Client::new(self.0.settings.clone(), Arc::clone(host)).map(Arc::new);
            if client.is_none() {
                tracing::info!(
                    "no apiserver to ask: no service account is mounted, and neither --apiserver.url nor --kubeconfig is set"
                );
            }
            client
        };
        self.0.client.get_or_init(make).clone()
    }

    /// How long an exchange may take.
    pub fn timeout(&self) -> Duration {
        self.0.settings.timeout
    }
}

/// Asks the apiserver. All of it may be called at the same time; one check waits for the other.
#[derive(Debug)]
pub struct Client {
    targets: TargetSource,
    connector: Connector,
    long_lived: LongLived,
}

impl Client {
    /// One that asks as it is told here. `None`: there is no apiserver to ask, and that is no failure.
    pub fn new(settings: Settings, host: Arc<Host>) -> Option<Self> {
        let targets = TargetSource::new(settings, host)?;
        Some(Client { targets, connector: Connector::default(), long_lived: LongLived::default() })
    }

    /// How it asks.
    pub fn settings(&self) -> &Settings {
        self.targets.settings()
    }

    /// Whom it asks, by the files as they are now.
    ///
    /// # Errors
    /// If our own files do not say it.
    pub async fn address(&self) -> Result<Address> {
        Ok(self.targets.target(Deadline::after(FILES)).await?.address)
    }

    /// GET over a new HTTP/1.1 connection, which is closed when this returns.
    ///
    /// # Errors
    /// If our own files (kubeconfig, token, certificates) are missing or wrong: nobody was asked.
    pub async fn fresh(&self, path: &str) -> Result<Exchange> {
        let target = self.targets.target(Deadline::after(FILES)).await?;
        let deadline = Deadline::after(self.settings().timeout);
        Ok(http1::exchange(&self.connector, &target, &Request::probe(path), deadline).await)
    }

    /// PING and GET over the long-lived HTTP/2 connection, which is made first if there is none.
    ///
    /// A dead connection (no answer to the PING) is reported by the check that finds it and made anew by the next one.
    /// One that the server ended in an orderly way is made anew at once. A PING without an answer, or a GET without one
    /// beside a PING that has one, are told apart: the first is the connection, the second the server.
    ///
    /// # Errors
    /// As [`Client::fresh`].
    pub async fn check(&self, path: &str) -> Result<Check> {
        self.long_lived.check(&self.targets, &self.connector, Request::probe(path)).await
    }

    /// GET of an object of at most this many bytes: over the long-lived connection if its last check was well, else,
    /// and if that fails without an answer, over a new one.
    ///
    /// # Errors
    /// As [`Client::fresh`].
    pub async fn get(&self, path: &str, most_bytes: usize) -> Result<Exchange> {
        self.ask(Request::object(path, most_bytes)).await
    }

    async fn ask(&self, request: Request<'_>) -> Result<Exchange> {
        let target = self.targets.target(Deadline::after(FILES)).await?;
        let deadline = Deadline::after(self.settings().timeout);
        // Half of the time, so that a new connection still has the other half.
        match self.long_lived.get(&target, &request, deadline.part(Duration::MAX)).await {
            Some(exchange) => Ok(exchange),
            None => Ok(http1::exchange(&self.connector, &target, &request, deadline).await),
        }
    }

    /// POST of a JSON text that asks something and leaves nothing behind (a `TokenReview`), with an answer of at most
    /// this many bytes: as [`Client::get`], and like that it may be sent a second time.
    ///
    /// # Errors
    /// As [`Client::fresh`].
    pub async fn post(&self, path: &str, json: &[u8], most_bytes: usize) -> Result<Exchange> {
        self.ask(Request::question(path, json, most_bytes)).await
    }
}
