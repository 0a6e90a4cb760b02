//! An apiserver and a kubelet behind one port: answers a few paths, refuses those that it is told to, and remembers
//! every request.

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt as _, Collected, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;

use crate::common::tls_server::Authority;

pub(crate) const NODE: &str = "tb-node";
const SLICE: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";

const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const ACCESSES: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
/// The token of somebody who may read the page.
pub(crate) const SCRAPER: &str = "token-of-a-scraper";

/// The right that a path takes, as the `resource` of a rule.
pub(crate) fn right(path: &str) -> &'static str {
    match path {
        "/configz" => "nodes/configz",
        SLICE => "endpointslices",
        REVIEWS => "tokenreviews",
        ACCESSES => "subjectaccessreviews",
        _ if path.contains("/leases/") => "leases",
        _ if path.ends_with("/proxy/healthz") => "nodes/proxy",
        _ if path.starts_with("/api/v1/nodes/") => "nodes",
        _ => "public",
    }
}

#[derive(Default)]
pub(crate) struct State {
    /// Rights that are refused with 403.
    pub(crate) refused: Mutex<BTreeSet<&'static str>>,
    /// `GET /livez`
    pub(crate) seen: Mutex<BTreeSet<String>>,
}

pub(crate) struct Apiserver {
    pub(crate) address: SocketAddr,
    pub(crate) ca: String,
    pub(crate) state: Arc<State>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Apiserver {
    /// In the network namespace of the thread that calls.
    pub(crate) fn start() -> Self {
        let authority = Authority::new("cluster");
        let acceptor = TlsAcceptor::from(authority.issue(&["127.0.0.1"]).config(None));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let bodies = Arc::new(bodies(address));
        let state = Arc::<State>::default();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let shared = Arc::clone(&state);
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, state, bodies) = (acceptor.clone(), Arc::clone(&shared), Arc::clone(&bodies));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let two = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    let service = service_fn(move |request: Request<Incoming>| {
                        let (state, bodies) = (Arc::clone(&state), Arc::clone(&bodies));
                        async move { Ok::<_, Infallible>(answer(&state, &bodies, request).await) }
                    });
                    if two {
                        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        let _ = server.serve_connection(TokioIo::new(stream), service).await;
                    } else {
                        let server = hyper::server::conn::http1::Builder::new();
                        let _ = server.serve_connection(TokioIo::new(stream), service).await;
                    }
                });
            }
        });
        Apiserver { address, ca: authority.pem, state, runtime: Some(runtime) }
    }

    pub(crate) fn refuse(&self, rights: &[&'static str]) {
        *self.state.refused.lock().unwrap() = rights.iter().copied().collect();
    }

    pub(crate) fn seen(&self) -> BTreeSet<String> {
        self.state.seen.lock().unwrap().clone()
    }
}

impl Drop for Apiserver {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn answer(
    state: &State,
    bodies: &HashMap<&'static str, String>,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    state.seen.lock().unwrap().insert(format!("{} {}", request.method(), request.uri().path_and_query().unwrap()));
    let right = right(&path);
    let refused = state.refused.lock().unwrap().contains(right);
    let (status, body) = match (refused, right) {
        (true, _) => (403, r#"{"kind":"Status","code":403}"#.to_owned()),
        (false, "tokenreviews" | "subjectaccessreviews") => {
            let question = request.into_body().collect().await.map(Collected::to_bytes).unwrap_or_default();
            let question: Value = serde_json::from_slice(&question).unwrap_or_default();
            let known = question["spec"]["token"] == SCRAPER;
            let may = question["spec"]["user"] == "scraper";
            let status = json!({"authenticated": known, "user": {"username": "scraper"}, "allowed": may});
            (201, json!({"kind": question["kind"], "status": status}).to_string())
        }
        (false, "public") if path == "/version" => {
            (200, json!({"major": "1", "minor": "36", "gitVersion": "v1.36.1"}).to_string())
        }
        // Renewed just now, however long the test takes.
        (false, "leases") => {
            let mut lease: Value = serde_json::from_str(&bodies["leases"]).unwrap();
            lease["spec"]["renewTime"] = format!("{:.6}", jiff::Timestamp::now()).into();
            (200, lease.to_string())
        }
        (false, right) => bodies.get(right).map_or((404, String::new()), |body| (200, body.clone())),
    };
    Response::builder().status(status).body(Full::new(Bytes::from(body))).unwrap()
}

fn bodies(address: SocketAddr) -> HashMap<&'static str, String> {
    let recorded = |name: &str| -> Value {
        let at = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/node_status/k8s-1.36-cgroupv1");
        serde_json::from_slice(&std::fs::read(format!("{at}/{name}.json")).unwrap()).unwrap()
    };
    let slice = json!({
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4",
        "endpoints": [{"addresses": ["127.0.0.1", "127.0.0.9"], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": address.port(), "protocol": "TCP"}],
    });
    let configz = json!({"kubeletconfig": {
        "evictionHard": {"memory.available": "123Mi"}, "imageGCHighThresholdPercent": 85, "imageGCLowThresholdPercent": 80,
    }});
    HashMap::from([
        ("public", "ok".to_owned()),
        ("nodes/proxy", "ok".to_owned()),
        ("nodes", recorded("node").to_string()),
        ("leases", recorded("lease").to_string()),
        ("endpointslices", slice.to_string()),
        ("nodes/configz", configz.to_string()),
    ])
}
