//! The web side: `/metrics`, `/healthz`, `/readyz` and at `/` the verdicts, on axum; connections on hyper, with limits,
//! TLS and authentication before them.

mod auth;
mod config_reload;
mod landing;
mod limits;
mod listen;
mod scrape_history;
mod tls;
mod web_config;
mod x509;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::Semaphore;
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;

use crate::exposition::{Format, Page};
use crate::host::Deadline;
use crate::kubelet::handle::Kubelet;
use crate::modes::MODES;
use crate::scrape::{self, Scraper, Terms};
use crate::self_metrics;
use crate::services;

pub use auth::policy::{METRICS, Security};
use landing::Name;
pub use limits::Limits;
pub use listen::{ListenAddress, serve};
use scrape_history::{Recent, Taken};

/// The header in which Prometheus says how long it will wait, in seconds.
const TIMEOUT_HEADER: &str = "x-prometheus-scrape-timeout-seconds";

/// Left for rendering, compressing and the network when Prometheus names its timeout.
const SLACK: Duration = Duration::from_millis(500);

/// Whoever names less waits this long all the same, and collectors have at least so long, whoever asks for them: what
/// they cannot read in time counts as an error.
const SHORTEST_WAIT: Duration = Duration::from_millis(100);
const SHORTEST_RUN: Duration = Duration::from_secs(2);

/// What the web side needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where `/metrics` is.
    pub telemetry_path: String,
    /// Scrapes at the same time; more are answered with 503.
    pub max_requests: usize,
    /// The longest that a scrape may take, whatever Prometheus allows.
    pub scrape_timeout: Duration,
    /// TLS, passwords, headers, in the format of exporter-toolkit.
    pub config_file: Option<PathBuf>,
    /// Whether the apiserver judges who may scrape.
    pub kubernetes_auth: bool,
    /// What one client may take.
    pub limits: Limits,
}

/// Everything that a request handler shares.
pub struct App {
    scraper: Scraper,
    settings: Settings,
    security: Arc<Security>,
    permits: Arc<Semaphore>,
    ready: AtomicBool,
    /// For `/`: what it looks back on, who this node is, and whose turn it is.
    recent: Recent,
    name: Arc<Name>,
    judging: Semaphore,
}

impl App {
    /// An application that serves this scraper of this node, and shows what became of whom `security` did not let in.
    pub fn new(scraper: Scraper, settings: Settings, security: Arc<Security>, kubelet: Kubelet) -> Arc<Self> {
        Arc::new(App {
            scraper,
            permits: Arc::new(Semaphore::new(settings.max_requests)),
            settings,
            security,
            ready: AtomicBool::new(false),
            recent: Recent::default(),
            name: Name::new(kubelet),
            judging: Semaphore::new(1),
        })
    }

    /// Says whether `/readyz` answers 200: after the first collection, until shutdown begins.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// Runs every collector once, so that the first scrape finds warm caches; then the exporter is ready.
    pub async fn warm_up(&self) {
        self.scrape_all(Deadline::after(self.settings.scrape_timeout)).await;
        self.set_ready(true);
    }

    /// A scrape of every mode, which is kept for `/`.
    async fn scrape_all(&self, terms: impl Into<Terms>) -> Arc<Taken> {
        let scrape = self.scraper.scrape(terms, |_| true).await;
        let hasty = scrape.hasty;
        let taken = Arc::new(Taken::new(SystemTime::now(), scrape, self_metrics::samples()));
        if !hasty {
            self.recent.keep(&taken);
        }
        taken
    }

    async fn scrape(&self, terms: Terms, selection: &Selection) -> Arc<Taken> {
        if *selection == Selection::All {
            return self.scrape_all(terms).await;
        }
        let scrape = self.scraper.scrape(terms, |mode| selection.picks(mode.id)).await;
        Arc::new(Taken::new(SystemTime::now(), scrape, self_metrics::samples()))
    }

    /// The routes.
    pub fn router(self: Arc<Self>) -> Router {
        // Fastest: the page is a few tens of kilobytes on a link inside the cluster, and our CPU is the node's.
        let gzip = CompressionLayer::new().quality(CompressionLevel::Fastest);
        let mut router = Router::new()
            .route(&self.settings.telemetry_path, get(metrics))
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(ready));
        if self.settings.telemetry_path != "/" {
            router = router.route("/", get(landing::index));
        }
        router.layer(gzip).with_state(self)
    }
}

/// Why a scrape request is refused.
#[derive(Debug, PartialEq, Eq)]
struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, format!("{}\n", self.1)).into_response()
    }
}

async fn metrics(
    State(app): State<Arc<App>>,
    Query(query): Query<Vec<(String, String)>>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let enabled: Vec<&str> = app.scraper.modes().map(|mode| mode.id).collect();
    let selection = Selection::parse(&query, &enabled)?;
    let permit = Arc::clone(&app.permits).try_acquire_owned().map_err(|_| {
        let most = app.settings.max_requests;
        Refused(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{most} scrapes are under way, the limit of --web.max-requests"),
        )
    })?;
    let taken = app.scrape(terms(app.settings.scrape_timeout, &headers), &selection).await;

    let mut page = Page::default();
    page.add(self_metrics::METRICS, Arc::clone(&taken.own));
    page.add(METRICS, Arc::new(app.security.samples()));
    page.add(scrape::METRICS, Arc::clone(&taken.collectors));
    page.add(services::METRICS, Arc::clone(&taken.node));
    for (mode, run) in &taken.runs {
        page.add(mode.metrics, Arc::clone(&run.samples));
    }
    let accept = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect::<Vec<_>>();
    let format = Format::negotiate(&accept.join(","));
    let text = page
        .render(format)
        .map_err(|_| Refused(StatusCode::INTERNAL_SERVER_ERROR, "the page could not be rendered".to_owned()))?;
    let mut response = ([(header::CONTENT_TYPE, format.content_type())], text).into_response();
    response.extensions_mut().insert(limits::Permit(Arc::new(permit)));
    Ok(response)
}

/// How long this reader waits, and how long what it starts may take.
fn terms(ours: Duration, headers: &HeaderMap) -> Terms {
    let wait = time_limit(ours, headers);
    let run = wait.max(SHORTEST_RUN.min(ours));
    Terms { wait: Deadline::after(wait), run: Deadline::after(run), overdue: Deadline::after(ours) }
}

/// min(our own limit, what Prometheus allows less some slack).
fn time_limit(ours: Duration, headers: &HeaderMap) -> Duration {
    let theirs = headers.get(TIMEOUT_HEADER).and_then(|value| value.to_str().ok()?.parse::<f64>().ok());
    match theirs.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()) {
        // A timeout so short that the slack would eat it is halved instead.
        Some(theirs) if !theirs.is_zero() => ours.min((theirs - SLACK.min(theirs / 2)).max(SHORTEST_WAIT)),
        _ => ours,
    }
}

/// The collectors that `collect[]` or `exclude[]` pick, with node_exporter's rules.
#[derive(Debug, PartialEq, Eq)]
enum Selection {
    All,
    Only(Vec<String>),
    Without(Vec<String>),
}

impl Selection {
    fn parse(query: &[(String, String)], enabled: &[&str]) -> Result<Self, Refused> {
        let bad = |text: String| Refused(StatusCode::BAD_REQUEST, text);
        let all = |key: &str| -> Vec<String> {
            query.iter().filter(|(name, _)| name == key).map(|(_, value)| value.clone()).collect()
        };
        let (only, without) = (all("collect[]"), all("exclude[]"));
        if !only.is_empty() && !without.is_empty() {
            return Err(bad("collect[] and exclude[] cannot be combined: use one of them".to_owned()));
        }
        for name in only.iter().chain(&without) {
            if !enabled.contains(&name.as_str()) {
                let known = MODES.iter().any(|mode| mode.id == name);
                let what = if known { "disabled" } else { "unknown" };
                return Err(bad(format!("{what} collector {name:?}; enabled are: {}", enabled.join(", "))));
            }
        }
        Ok(match (only.is_empty(), without.is_empty()) {
            (false, _) => Selection::Only(only),
            (_, false) => Selection::Without(without),
            _ => Selection::All,
        })
    }

    fn picks(&self, id: &str) -> bool {
        match self {
            Selection::All => true,
            Selection::Only(only) => only.iter().any(|name| name == id),
            Selection::Without(without) => without.iter().all(|name| name != id),
        }
    }
}

async fn ready(State(app): State<Arc<App>>) -> (StatusCode, &'static str) {
    if app.ready.load(Ordering::Relaxed) {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready: starting or shutting down\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(timeout: &str) -> HeaderMap {
        HeaderMap::from_iter([(TIMEOUT_HEADER.parse().unwrap(), timeout.parse().unwrap())])
    }

    #[test]
    fn the_deadline_is_the_smaller_one() {
        let ours = Duration::from_secs(5);
        assert_eq!(time_limit(ours, &HeaderMap::new()), ours);
        assert_eq!(time_limit(ours, &headers("10")), ours);
        assert_eq!(time_limit(ours, &headers("3")), Duration::from_millis(2500));
        assert_eq!(time_limit(ours, &headers("0.4")), Duration::from_millis(200));
        for odd in ["-1", "NaN", "inf", "soon", "0", "1e300"] {
            assert_eq!(time_limit(ours, &headers(odd)), ours, "{odd}");
        }
    }

    #[test]
    fn a_reader_in_a_hurry_gives_collectors_time() {
        for tiny in ["0.000001", "1e-9", "0.01", "0.2"] {
            assert_eq!(time_limit(Duration::from_secs(5), &headers(tiny)), SHORTEST_WAIT, "{tiny}");
            let terms = terms(Duration::from_secs(5), &headers(tiny));
            assert!(terms.run.remaining() > SHORTEST_RUN - Duration::from_millis(500), "{tiny}");
            assert!(terms.overdue.remaining() > terms.run.remaining(), "{tiny}");
        }
        let short = Duration::from_millis(50);
        assert_eq!(time_limit(short, &headers("0.000001")), short, "our own limit comes first");
        assert!(terms(short, &headers("0.000001")).run.remaining() <= short);
    }

    fn parse(query: &[(&str, &str)]) -> Result<Selection, Refused> {
        let query: Vec<_> = query.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
        Selection::parse(&query, &["kmem", "eviction"])
    }

    #[test]
    fn selections() {
        assert!(parse(&[]).unwrap().picks("kmem"));
        assert!(parse(&[("foo", "bar")]).unwrap().picks("kmem"));
        let only = parse(&[("collect[]", "kmem")]).unwrap();
        assert!(only.picks("kmem") && !only.picks("eviction"));
        let without = parse(&[("exclude[]", "kmem")]).unwrap();
        assert!(!without.picks("kmem") && without.picks("eviction"));
    }

    #[test]
    fn wrong_selections_say_what_is_wrong() {
        for (query, text) in [
            (vec![("collect[]", "kmem"), ("exclude[]", "eviction")], "cannot be combined"),
            (vec![("collect[]", "cpu")], "unknown collector \"cpu\"; enabled are: kmem, eviction"),
            (vec![("exclude[]", "cpu")], "unknown collector"),
            (vec![("collect[]", "open_files")], "disabled collector \"open_files\""),
            (vec![("collect[]", "")], "unknown collector \"\""),
        ] {
            let Refused(status, body) = parse(&query).unwrap_err();
            assert_eq!(status, StatusCode::BAD_REQUEST);
            assert!(body.contains(text), "{body}");
        }
    }
}
