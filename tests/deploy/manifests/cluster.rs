//! As much of an apiserver as `helm install --dry-run=server` asks: its version, which kinds it has, and that none of
//! the objects exists yet.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use serde_json::{Value, json};

const KINDS: &[(&str, &[&str])] = &[
    ("v1", &["Service", "ServiceAccount", "ConfigMap", "Secret", "ResourceQuota"]),
    ("apps/v1", &["DaemonSet"]),
    ("networking.k8s.io/v1", &["NetworkPolicy"]),
    ("rbac.authorization.k8s.io/v1", &["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"]),
    ("monitoring.coreos.com/v1", &["PodMonitor", "ServiceMonitor", "PrometheusRule"]),
];

pub(crate) struct Cluster {
    pub(crate) url: String,
    address: std::net::SocketAddr,
    stop: Arc<AtomicBool>,
    serving: Option<JoinHandle<()>>,
}

fn plural(kind: &str) -> String {
    let kind = kind.to_lowercase();
    kind.strip_suffix('y').map_or_else(|| format!("{kind}s"), |stem| format!("{stem}ies"))
}

fn answer(path: &str, groups: &[(&str, &[&str])]) -> Option<Value> {
    let named = groups.iter().filter_map(|(version, _)| Some((version, version.split_once('/')?)));
    let group = |(whole, (name, version)): (&&str, (&str, &str))| {
        let version = json!({ "groupVersion": whole, "version": version });
        json!({ "name": name, "versions": [version], "preferredVersion": version })
    };
    Some(match path {
        "/version" => json!({ "major": "1", "minor": "33", "gitVersion": "v1.33.0" }),
        "/api" => json!({ "kind": "APIVersions", "versions": ["v1"] }),
        "/apis" => {
            json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": named.map(group).collect::<Vec<_>>() })
        }
        _ => {
            let asked = path.strip_prefix("/apis/").or_else(|| path.strip_prefix("/api/"))?;
            let (version, kinds) = groups.iter().find(|(version, _)| *version == asked)?;
            let resource = |kind: &&str| {
                let namespaced = !kind.starts_with("Cluster");
                json!({ "name": plural(kind), "kind": kind, "namespaced": namespaced, "verbs": ["get", "create"] })
            };
            let resources: Vec<Value> = kinds.iter().map(resource).collect();
            json!({ "kind": "APIResourceList", "groupVersion": version, "resources": resources })
        }
    })
}

fn serve(mut stream: TcpStream, groups: &[(&str, &[&str])]) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let first = lines.next()?.ok()?;
    // The rest of the head: nothing is sent with a body.
    while !lines.next()?.ok()?.is_empty() {}
    let path = first.split(' ').nth(1)?.split('?').next()?;
    let missing = json!({ "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404 });
    let (status, body) = answer(path, groups).map_or(("404 Not Found", missing), |body| ("200 OK", body));
    let body = body.to_string();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .ok()
}

impl Cluster {
    pub(crate) fn start(with_operator: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let groups = if with_operator { KINDS } else { &KINDS[..KINDS.len() - 1] };
        let serving = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                for stream in listener.incoming().take_while(|_| !stop.load(Ordering::Relaxed)).flatten() {
                    let _ = serve(stream, groups);
                }
            }
        });
        Cluster { url: format!("http://{address}"), address, stop, serving: Some(serving) }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
        let _ = self.serving.take().unwrap().join();
    }
}
