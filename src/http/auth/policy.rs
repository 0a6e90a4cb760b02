//! Who is let in, and what became of those who were not.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, UNIX_EPOCH};

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};

use super::basic::{Passwords, Shown};
use super::buckets::Buckets;
use super::digest_cache::Salt;
use super::token_cache::{Ask, Judged, Times, Verdict};
use super::token_review::Reviewer;
use crate::apiserver::Apiserver;
use crate::error::{Error, Reason, Result};
use crate::host::Host;
use crate::http::Settings;
use crate::http::config_reload::{Loaded, Watched};
use crate::http::limits::{Closed, Limits, Registry};
use crate::http::web_config::Rate;
use crate::metric::{Metric, Samples, Unit};

/// What everybody may ask: the kubelet's probes carry no token, and these tell nothing but whether we are there.
const OPEN: [&str; 2] = ["/healthz", "/readyz"];

static RELOADED: Metric = Metric::gauge(
    "headroom_web_config_last_reload_successful",
    Unit::None,
    &[],
    "1 if the file of --web.config.file, and the files it names, were in order when they were last looked at; 0: the configuration before them stays in use, and the log says why. Absent without that flag",
);
static RELOAD_TIME: Metric = Metric::gauge(
    "headroom_web_config_last_reload_success_timestamp_seconds",
    Unit::Seconds,
    &[],
    "When the web configuration was last read with success, in seconds since 1970. It is read when one of its files changes, so this may be long ago",
);
static EXPIRY: Metric = Metric::gauge(
    "headroom_web_certificate_expiry_timestamp_seconds",
    Unit::Seconds,
    &[],
    "When the certificate that this page is served with expires, in seconds since 1970; of a chain: the first to expire (notAfter). Absent without TLS",
);
static REFUSED: Metric = Metric::counter(
    "headroom_web_requests_refused_total",
    &["reason"],
    "Requests that were refused: unauthorized (401), forbidden (403), rate_limited (429), unavailable (503: the apiserver did not judge the token), crowded (503: too many from one address)",
);
static CLOSED: Metric = Metric::counter(
    "headroom_web_connections_closed_total",
    &["reason"],
    "Connections that the exporter closed by itself: handshake (TLS failed or took too long), slow_head, slow_reader, idle, crowded (made room for another one, or found none)",
);
static CONNECTIONS: Metric = Metric::gauge(
    "headroom_web_connections",
    Unit::None,
    &[],
    "Connections to the exporter's web side that are open, that of this scrape included",
);

/// What [`Security::samples`] may contain.
pub static METRICS: &[&Metric] = &[&RELOADED, &RELOAD_TIME, &EXPIRY, &REFUSED, &CLOSED, &CONNECTIONS];

#[derive(Clone, Copy)]
enum Refusal {
    Unauthorized,
    Forbidden,
    RateLimited,
    Unavailable,
    Crowded,
}

impl Refusal {
    const NAMES: [&str; 5] = ["unauthorized", "forbidden", "rate_limited", "unavailable", "crowded"];
}

/// The doorkeeper of the web side.
#[derive(Debug)]
pub struct Security {
    watched: Option<Watched>,
    passwords: Passwords,
    kubernetes: Option<Judged>,
    buckets: Mutex<Buckets>,
    pub(in crate::http) registry: Arc<Registry>,
    refused: [AtomicU64; Refusal::NAMES.len()],
}

impl Security {
    /// What these settings ask for.
    ///
    /// # Errors
    /// If it cannot be done as it stands: a broken file, or no apiserver to ask. That is the time to say so and end.
    pub async fn start(settings: &Settings, host: &Arc<Host>, apiserver: &Apiserver) -> Result<Arc<Self>> {
        let salt = || Salt::new().ok_or_else(|| Error::new(Reason::Io, "the kernel gives no random numbers"));
        let watched = match &settings.config_file {
            None => None,
            Some(path) => Some(
                Watched::start(path.clone(), Arc::clone(host))
                    .await
                    .map_err(|error| error.context("--web.config.file"))?,
            ),
        };
        let kubernetes = if settings.kubernetes_auth {
            let client = apiserver.client(host).ok_or_else(|| {
                Error::absent(
                    "--web.kubernetes-auth needs an apiserver to ask: a pod with a service account, or --apiserver.url or --kubeconfig",
                )
            })?;
            let reviewer = Arc::new(Reviewer::new(client, settings.telemetry_path.clone()));
            let ask: Ask = Box::new(move |token| {
                let reviewer = Arc::clone(&reviewer);
                Box::pin(async move { reviewer.ask(&token).await })
            });
            Some(Judged::new(ask, salt()?, Times::default()))
        } else {
            None
        };
        let passwords = Passwords::new(salt()?);
        let limits = Limits { request: settings.scrape_timeout + settings.limits.request, ..settings.limits };
        let security = Security {
            watched,
            passwords,
            kubernetes,
            buckets: Mutex::default(),
            registry: Registry::new(limits),
            refused: Default::default(),
        };
        security.warn_of_plain_text();
        Ok(Arc::new(security))
    }

    /// What is read along the way can be used by whoever reads it.
    fn warn_of_plain_text(&self) {
        let loaded = self.watched.as_ref().map(Watched::last).unwrap_or_default();
        if loaded.tls.is_some() {
            return;
        }
        if self.kubernetes.is_some() {
            tracing::warn!(
                "--web.kubernetes-auth without TLS: scrapers send their service account's token in plain text, and anybody who reads it on the way can use it at the apiserver: set tls_server_config in --web.config.file"
            );
        }
        if !loaded.config.users.is_empty() {
            tracing::warn!(
                "basic_auth_users without TLS: passwords are sent in plain text: set tls_server_config in --web.config.file"
            );
        }
    }

    pub(in crate::http) async fn current(&self) -> Arc<Loaded> {
        match &self.watched {
            Some(watched) => watched.current().await,
            None => Arc::default(),
        }
    }

    /// Whether a request from this address for this path with these headers is answered, or how it is refused.
    pub(in crate::http) async fn admit(
        &self,
        loaded: &Loaded,
        from: IpAddr,
        path: &str,
        headers: &HeaderMap,
    ) -> std::result::Result<(), Response> {
        if OPEN.contains(&path) {
            return Ok(());
        }
        if !self.in_time(loaded.config.rate, from) {
            let words = "more requests from this address than rate_limit of the web configuration allows";
            return Err(self.refuse(Refusal::RateLimited, StatusCode::TOO_MANY_REQUESTS, words));
        }
        let users = &loaded.config.users;
        if users.is_empty() && self.kubernetes.is_none() {
            return Ok(());
        }
        let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or("");
        let (scheme, value) = shown.split_once(' ').unwrap_or((shown, ""));
        if scheme.eq_ignore_ascii_case("basic") && !users.is_empty() {
            if let Some(shown) = Shown::parse(value)
                && self.passwords.admits(users, shown).await
            {
                return Ok(());
            }
            return Err(self.unauthorized(users.is_empty(), "wrong user or password"));
        }
        let Some(kubernetes) = &self.kubernetes else {
            return Err(self.unauthorized(users.is_empty(), "a user and a password are needed"));
        };
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(self.unauthorized(users.is_empty(), "a bearer token that the apiserver knows is needed"));
        }
        match kubernetes.judge(value.trim(), from).await {
            Verdict::Admitted => Ok(()),
            Verdict::Unknown => Err(self.unauthorized(users.is_empty(), "the apiserver does not know this token")),
            Verdict::Forbidden(user) => {
                let words = format!(
                    "{user:?} is not allowed to read this path: it needs the verb get on nonResourceURLs, see docs/web.md"
                );
                Err(self.refuse(Refusal::Forbidden, StatusCode::FORBIDDEN, &words))
            }
            Verdict::Unavailable => {
                let words =
                    "the apiserver did not say whether this token may read the page; the exporter's log says why";
                Err(self.refuse(Refusal::Unavailable, StatusCode::SERVICE_UNAVAILABLE, words))
            }
        }
    }

    /// The answer to a request from an address that has too many under way.
    pub(in crate::http) fn crowded(&self) -> Response {
        let most = self.registry.limits.requests_per_peer;
        let words = format!("{most} requests from this address are under way, which is the limit");
        self.refuse(Refusal::Crowded, StatusCode::SERVICE_UNAVAILABLE, &words)
    }

    fn unauthorized(&self, no_users: bool, words: &str) -> Response {
        let mut response = self.refuse(Refusal::Unauthorized, StatusCode::UNAUTHORIZED, words);
        let headers = response.headers_mut();
        if !no_users {
            let value = HeaderValue::from_static("Basic realm=\"headroom-exporter\", charset=\"UTF-8\"");
            headers.append(header::WWW_AUTHENTICATE, value);
        }
        if self.kubernetes.is_some() {
            headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"headroom-exporter\""));
        }
        response
    }

    fn refuse(&self, why: Refusal, status: StatusCode, words: &str) -> Response {
        self.refused[why as usize].fetch_add(1, Ordering::Relaxed);
        (status, format!("{words}\n")).into_response()
    }

    fn in_time(&self, rate: Option<Rate>, from: IpAddr) -> bool {
        let Some(rate) = rate else { return true };
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner).take(rate, from, Instant::now())
    }

    /// What became of connections and requests, and how the configuration is.
    pub fn samples(&self) -> Samples {
        let mut samples = Samples::new();
        if let Some(watched) = &self.watched {
            let (successful, when) = watched.last_reload();
            samples.push(&RELOADED, &[], f64::from(u8::from(successful)));
            let when = when.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs_f64());
            samples.push_some(&RELOAD_TIME, &[], when);
            let expiry = watched.last().tls.as_ref().and_then(|tls| tls.expiry);
            samples.push_some(&EXPIRY, &[], expiry.map(|seconds| seconds as f64));
        }
        for (name, count) in Refusal::NAMES.iter().zip(&self.refused) {
            samples.push(&REFUSED, &[name], count.load(Ordering::Relaxed) as f64);
        }
        for why in Closed::ALL {
            samples.push(&CLOSED, &[why.as_str()], self.registry.closed(why) as f64);
        }
        samples.push(&CONNECTIONS, &[], self.registry.connections() as f64);
        samples
    }
}
