//! `/`: one fresh scrape and the last few ones, judged, as a page.
//!
//! It costs what a scrape costs, under the same permits, and after that some milliseconds of one thread. When no permit
//! is free it shows the newest scrape that is kept, and says how old it is: in an incident a page that is a minute old
//! is worth more than an error.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use axum::response::{Html, IntoResponse as _, Response};
use tokio::sync::Semaphore;

use super::scrape_history::Taken;
use super::{App, Refused, limits};
use crate::host::{Deadline, Host};
use crate::kubelet::handle::Kubelet;
use crate::report::{self, Report, html};
use crate::services;
use crate::verdict::{History, Limits};

/// How long a page waits for the node's name, which may have to be read from a file system that hangs.
const FOR_NAME: Duration = Duration::from_secs(1);

/// How long a page waits until others are judged.
const FOR_TURN: Duration = Duration::from_secs(10);

/// Who this node is, as far as is known.
#[derive(Debug)]
pub(super) struct Name {
    kubelet: Kubelet,
    known: Mutex<Option<String>>,
    /// One look at a time: one that hangs holds one thread, however many pages are asked for.
    looking: Arc<Semaphore>,
}

impl Name {
    pub(super) fn new(kubelet: Kubelet) -> Arc<Self> {
        Arc::new(Name { kubelet, known: Mutex::default(), looking: Arc::new(Semaphore::new(1)) })
    }

    async fn get(self: &Arc<Self>, host: &Arc<Host>) -> String {
        if let Ok(turn) = Arc::clone(&self.looking).try_acquire_owned() {
            let (name, host) = (Arc::clone(self), Arc::clone(host));
            let look = tokio::spawn(async move {
                if let Ok(found) = name.kubelet.node_name(&host).await {
                    *name.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
                }
                drop(turn);
            });
            let _ = tokio::time::timeout(FOR_NAME, look).await;
        }
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        known.unwrap_or_else(report::machine_name)
    }
}

/// The answer to a request for `/`.
pub(super) async fn index(State(app): State<Arc<App>>) -> Result<Response, Refused> {
    let permit = Arc::clone(&app.permits).try_acquire_owned().ok();
    let deadline = Deadline::after(app.settings.scrape_timeout);
    let scraped = async {
        match permit {
            Some(_) => Some(app.scrape_all(deadline).await),
            None => None,
        }
    };
    let (fresh, name) = tokio::join!(scraped, app.name.get(app.scraper.host()));
    // One at a time, so that however many pages are asked for, the other processor is the node's.
    let turn = tokio::time::timeout(FOR_TURN, app.judging.acquire()).await;
    let Ok(Ok(_turn)) = turn else {
        return Err(Refused(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many requests for this page are under way".to_owned(),
        ));
    };
    let page = tokio::task::spawn_blocking({
        let app = Arc::clone(&app);
        move || judged(&app, name, fresh.as_ref())
    });
    let failed = |_| Refused(StatusCode::INTERNAL_SERVER_ERROR, "the page could not be rendered".to_owned());
    let headers = [
        (CONTENT_SECURITY_POLICY, html::POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
    ];
    let mut response = (headers, Html(page.await.map_err(failed)?)).into_response();
    if let Some(permit) = permit {
        response.extensions_mut().insert(limits::Permit(Arc::new(permit)));
    }
    Ok(response)
}

/// The page, from the scrapes that are kept and the fresh one, if there is one.
fn judged(app: &App, node: String, fresh: Option<&Arc<Taken>>) -> String {
    let pages = app.recent.pages_with(fresh);
    // Judged at any earlier moment, a page would not have been taken yet, and its collectors would be off.
    let newest = pages.last().map(Arc::clone);
    let mut history = History::new(&node, Limits::default());
    for page in &pages {
        // The fresh one may be among those that are kept; the second time it is ignored.
        history.add(page.at, page.samples());
    }
    let at = newest.as_ref().map_or_else(SystemTime::now, |page| page.at);
    let runs = newest.as_ref().map_or(&[][..], |page| &page.runs);
    let host = app.scraper.host();
    let root = services::kubelet_root(&app.name.kubelet, host);
    let report = Report {
        node,
        kernel: host.kernel().ok().map(|kernel| kernel.release),
        at,
        sampled: pages.first().and_then(|first| at.duration_since(first.at).ok()).unwrap_or_default(),
        rows: report::rows(runs, &history, at, root.as_deref()),
    };
    let site = html::Site {
        telemetry_path: &app.settings.telemetry_path,
        uptime: uptime(host),
        pages: history.pages(),
        age: newest.filter(|_| fresh.is_none()).map(|page| page.at.elapsed().unwrap_or_default()),
    };
    html::render(&report, site)
}

/// From the observed machine's procfs.
fn uptime(host: &Host) -> Option<Duration> {
    let text = host.read(host.proc("uptime")).ok()?;
    Duration::try_from_secs_f64(text.split(' ').next()?.parse().ok()?).ok()
}
