//! Stand-ins for a container runtime: a gRPC server that says what the test wants, a Docker daemon of three answers,
//! and a raw socket for everything that is no protocol at all. For what a real daemon cannot be made to do.
#![allow(unreachable_pub, missing_docs, reason = "shared by several test binaries")]
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderMap;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};

/// What the server answers to one call.
#[derive(Clone, Debug)]
pub enum Reply {
    /// This message.
    Message(Vec<u8>),
    /// This gRPC status, 12 being UNIMPLEMENTED.
    Status(u32),
    /// Nothing, ever.
    Never,
    /// A message of this many bytes.
    Huge(usize),
    /// This message, and no trailers after it.
    Untrailed(Vec<u8>),
    /// One message after the other.
    Endless,
}

/// The answers by call: `ListImages`.
pub type Replies = HashMap<&'static str, Reply>;

/// A gRPC server on a unix socket. Dropped, it is gone with its socket and its connections.
pub struct Fake {
    path: PathBuf,
    replies: Arc<Mutex<Replies>>,
    accepted: Arc<AtomicUsize>,
    calls: Arc<AtomicUsize>,
    paths: Arc<Mutex<std::collections::BTreeSet<String>>>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Fake {
    pub fn start(path: &Path, replies: Replies) -> Self {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let replies = Arc::new(Mutex::new(replies));
        let (accepted, calls) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let listener = {
            let _guard = runtime.enter();
            tokio::net::UnixListener::bind(path).unwrap()
        };
        let paths = Arc::<Mutex<std::collections::BTreeSet<String>>>::default();
        let this = (Arc::clone(&replies), Arc::clone(&accepted), Arc::clone(&calls), Arc::clone(&paths));
        runtime.spawn(async move {
            let (replies, accepted, calls, paths) = this;
            while let Ok((stream, _)) = listener.accept().await {
                accepted.fetch_add(1, Ordering::Relaxed);
                let (replies, calls, paths) = (Arc::clone(&replies), Arc::clone(&calls), Arc::clone(&paths));
                let service = service_fn(move |request: Request<Incoming>| {
                    paths.lock().unwrap().insert(request.uri().path().to_owned());
                    calls.fetch_add(1, Ordering::Relaxed);
                    let call = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
                    let reply = replies.lock().unwrap().get(call.as_str()).cloned();
                    async move {
                        // As any gRPC server does; one that answers early resets the stream.
                        let _ = request.into_body().collect().await;
                        answer(reply.unwrap_or(Reply::Status(12))).await
                    }
                });
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
            }
        });
        Fake { path: path.to_owned(), replies, accepted, calls, paths, runtime: Some(runtime) }
    }

    /// From now on this call is answered so.
    pub fn set(&self, call: &'static str, reply: Reply) {
        self.replies.lock().unwrap().insert(call, reply);
    }

    /// Connections so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Every method that was ever called: `/runtime.v1.RuntimeService/Version`.
    pub fn paths(&self) -> std::collections::BTreeSet<String> {
        self.paths.lock().unwrap().clone()
    }

    /// Calls so far.
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(std::time::Duration::from_secs(5));
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

async fn answer(reply: Reply) -> Result<Response<Body>, Infallible> {
    let response = Response::builder().header("content-type", "application/grpc");
    let message = match reply {
        Reply::Never => std::future::pending().await,
        Reply::Status(code) => {
            let body = Full::new(Bytes::new()).boxed_unsync();
            let response = response.header("grpc-status", code).header("grpc-message", "as the test wants");
            return Ok(response.body(body).unwrap());
        }
        Reply::Untrailed(message) => {
            let body = Full::new(Bytes::from(framed(&message))).boxed_unsync();
            return Ok(response.body(body).unwrap());
        }
        Reply::Endless => return Ok(response.body(Endless.boxed_unsync()).unwrap()),
        Reply::Message(message) => message,
        Reply::Huge(size) => vec![0; size],
    };
    let frame = framed(&message);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", 0.into());
    let body = Full::new(Bytes::from(frame)).with_trailers(async move { Some(Ok(trailers)) });
    Ok(response.body(body.boxed_unsync()).unwrap())
}

fn framed(message: &[u8]) -> Vec<u8> {
    let mut frame = vec![0];
    frame.extend((message.len() as u32).to_be_bytes());
    frame.extend(message);
    frame
}

/// One message after the other, of 64 KiB each, for as long as somebody reads.
struct Endless;

impl hyper::body::Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Infallible>>> {
        // An unknown field of 65,531 bytes.
        let mut message = vec![0x7a, 0xfb, 0xff, 0x03];
        message.resize(4 + 65_531, 0);
        std::task::Poll::Ready(Some(Ok(hyper::body::Frame::data(framed(&message).into()))))
    }
}

/// A listener whose every connection is handled by `serve` on a thread of its own; gone when dropped.
pub struct Raw {
    path: PathBuf,
    stop: Arc<AtomicBool>,
}

impl Raw {
    pub fn start(path: &Path, serve: impl Fn(UnixStream) + Send + Sync + 'static) -> Self {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
        let (stop, serve) = (Arc::new(AtomicBool::new(false)), Arc::new(serve));
        let stopped = Arc::clone(&stop);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || serve(stream));
            }
        });
        Raw { path: path.to_owned(), stop }
    }

    /// A Docker daemon with these containers.
    pub fn docker(path: &Path, containers: impl Into<String>) -> Self {
        let containers = containers.into();
        Self::start(path, move |mut stream| {
            let mut request = Vec::new();
            let mut byte = [0];
            while stream.read(&mut byte).is_ok_and(|read| read == 1) {
                request.push(byte[0]);
                if !request.ends_with(b"\r\n\r\n") {
                    continue;
                }
                let line = String::from_utf8_lossy(&request);
                let body = match line.split(' ').nth(1) {
                    Some("/version") => r#"{"Version":"20.10.24"}"#,
                    Some("/info") => r#"{"DockerRootDir":"/var/lib/docker"}"#,
                    Some("/containers/json?all=1") => containers.as_str(),
                    _ => "[]",
                };
                let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                request.clear();
            }
        })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = UnixStream::connect(&self.path);
        let _ = std::fs::remove_file(&self.path);
    }
}

macro_rules! message {
    ($name:ident { $($(#[$attribute:meta])* $field:ident: $type:ty,)* }) => {
        #[derive(Clone, PartialEq, prost::Message)]
        pub struct $name { $($(#[$attribute])* pub $field: $type,)* }
    };
}

// With every field of the recorded JSON, annotations too: what the exporter does not declare it must skip.
message!(Version {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(string, tag = "2")]
    runtime_name: String,
    #[prost(string, tag = "3")]
    runtime_version: String,
    #[prost(string, tag = "4")]
    runtime_api_version: String,
});
message!(Metadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
    #[prost(uint32, tag = "4")]
    attempt: u32,
});
message!(Sandbox {
    #[prost(string, tag = "1")] id: String,
    #[prost(message, optional, tag = "2")] metadata: Option<Metadata>,
    #[prost(int32, tag = "3")] state: i32,
    #[prost(int64, tag = "4")] created_at: i64,
    #[prost(map = "string, string", tag = "5")] labels: HashMap<String, String>,
    #[prost(map = "string, string", tag = "6")] annotations: HashMap<String, String>,
    #[prost(string, tag = "7")] runtime_handler: String,
});
message!(Sandboxes { #[prost(message, repeated, tag = "1")] items: Vec<Sandbox>, });
message!(ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint32, tag = "2")]
    attempt: u32,
});
message!(ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
});
message!(Container {
    #[prost(string, tag = "1")] id: String,
    #[prost(string, tag = "2")] pod_sandbox_id: String,
    #[prost(message, optional, tag = "3")] metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "4")] image: Option<ImageSpec>,
    #[prost(string, tag = "5")] image_ref: String,
    #[prost(int32, tag = "6")] state: i32,
    #[prost(int64, tag = "7")] created_at: i64,
    #[prost(map = "string, string", tag = "8")] labels: HashMap<String, String>,
    #[prost(map = "string, string", tag = "9")] annotations: HashMap<String, String>,
    #[prost(string, tag = "10")] image_id: String,
});
message!(Containers { #[prost(message, repeated, tag = "1")] containers: Vec<Container>, });
message!(Image {
    #[prost(string, tag = "1")] id: String,
    #[prost(string, repeated, tag = "2")] repo_tags: Vec<String>,
    #[prost(string, repeated, tag = "3")] repo_digests: Vec<String>,
    #[prost(uint64, tag = "4")] size: u64,
    #[prost(bool, tag = "8")] pinned: bool,
});
message!(Images { #[prost(message, repeated, tag = "1")] images: Vec<Image>, });
message!(UInt64 {
    #[prost(uint64, tag = "1")]
    value: u64,
});
message!(Filesystem {
    #[prost(string, tag = "1")]
    mountpoint: String,
});
message!(Usage {
    #[prost(int64, tag = "1")] timestamp: i64,
    #[prost(message, optional, tag = "2")] fs_id: Option<Filesystem>,
    #[prost(message, optional, tag = "3")] used_bytes: Option<UInt64>,
    #[prost(message, optional, tag = "4")] inodes_used: Option<UInt64>,
});
message!(ImageFsInfo { #[prost(message, repeated, tag = "1")] image_filesystems: Vec<Usage>, });

message!(SandboxStatus { #[prost(map = "string, string", tag = "2")] info: HashMap<String, String>, });

/// What containerd says for debugging of a sandbox with this network namespace; of the machine's own without one.
pub fn sandbox_status(network: Option<&str>) -> Reply {
    let namespaces: Vec<_> = network.iter().map(|path| serde_json::json!({"type": "network", "path": path})).collect();
    let info = serde_json::json!({"pid": 7, "runtimeSpec": {"linux": {"namespaces": namespaces}}, "cniResult": null});
    reply(&SandboxStatus { info: HashMap::from([("info".to_owned(), info.to_string())]) })
}

pub fn reply(message: &impl prost::Message) -> Reply {
    Reply::Message(message.encode_to_vec())
}

/// What a runtime without pods answers.
pub fn empty() -> Replies {
    let version =
        Version { runtime_name: "containerd".to_owned(), runtime_version: "1.6.20".to_owned(), ..Version::default() };
    let nothing = Reply::Message(Vec::new());
    HashMap::from([
        ("Version", reply(&version)),
        ("ListPodSandbox", nothing.clone()),
        ("ListContainers", nothing.clone()),
        ("ImageFsInfo", nothing.clone()),
        ("ListImages", nothing),
    ])
}

/// The answers of a folder of recorded JSON (`tests/fixtures/node/*/cri`).
pub fn recorded(folder: &Path) -> Replies {
    let json = |call: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(folder.join(format!("{call}.json"))).unwrap()).unwrap()
    };
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let number = |value: &serde_json::Value| value.as_str().map_or(0, |number| number.parse().unwrap());
    let map = |value: &serde_json::Value| -> HashMap<String, String> {
        value.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), text(value))).collect()
    };
    let list = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    let version = json("Version");
    let version = Version {
        version: text(&version["version"]),
        runtime_name: text(&version["runtime_name"]),
        runtime_version: text(&version["runtime_version"]),
        runtime_api_version: text(&version["runtime_api_version"]),
    };
    let sandbox = |item: &serde_json::Value| Sandbox {
        id: text(&item["id"]),
        metadata: Some(Metadata {
            name: text(&item["metadata"]["name"]),
            uid: text(&item["metadata"]["uid"]),
            namespace: text(&item["metadata"]["namespace"]),
            attempt: item["metadata"]["attempt"].as_u64().unwrap_or_default() as u32,
        }),
        state: i32::from(item["state"] == "SANDBOX_NOTREADY"),
        created_at: number(&item["created_at"]),
        labels: map(&item["labels"]),
        annotations: map(&item["annotations"]),
        runtime_handler: text(&item["runtime_handler"]),
    };
    let states = ["CONTAINER_CREATED", "CONTAINER_RUNNING", "CONTAINER_EXITED", "CONTAINER_UNKNOWN"];
    let container = |item: &serde_json::Value| Container {
        id: text(&item["id"]),
        pod_sandbox_id: text(&item["pod_sandbox_id"]),
        metadata: Some(ContainerMetadata {
            name: text(&item["metadata"]["name"]),
            attempt: item["metadata"]["attempt"].as_u64().unwrap_or_default() as u32,
        }),
        image: Some(ImageSpec { image: text(&item["image"]["image"]) }),
        image_ref: text(&item["image_ref"]),
        state: states.iter().position(|state| item["state"] == *state).unwrap_or_default() as i32,
        created_at: number(&item["created_at"]),
        labels: map(&item["labels"]),
        annotations: map(&item["annotations"]),
        image_id: text(&item["image_id"]),
    };
    let image = |item: &serde_json::Value| Image {
        id: text(&item["id"]),
        repo_tags: list(&item["repo_tags"]).iter().map(text).collect(),
        repo_digests: list(&item["repo_digests"]).iter().map(text).collect(),
        size: number(&item["size"]) as u64,
        pinned: item["pinned"] == true,
    };
    let usage = |item: &serde_json::Value| Usage {
        timestamp: number(&item["timestamp"]),
        fs_id: Some(Filesystem { mountpoint: text(&item["fs_id"]["mountpoint"]) }),
        used_bytes: Some(UInt64 { value: number(&item["used_bytes"]["value"]) as u64 }),
        inodes_used: Some(UInt64 { value: number(&item["inodes_used"]["value"]) as u64 }),
    };
    let filesystems = list(&json("ImageFsInfo")["image_filesystems"]).iter().map(usage).collect();
    HashMap::from([
        ("Version", reply(&version)),
        (
            "ListPodSandbox",
            reply(&Sandboxes { items: list(&json("ListPodSandbox")["items"]).iter().map(sandbox).collect() }),
        ),
        (
            "ListContainers",
            reply(&Containers {
                containers: list(&json("ListContainers")["containers"]).iter().map(container).collect(),
            }),
        ),
        ("ListImages", reply(&Images { images: list(&json("ListImages")["images"]).iter().map(image).collect() })),
        ("ImageFsInfo", reply(&ImageFsInfo { image_filesystems: filesystems })),
    ])
}
