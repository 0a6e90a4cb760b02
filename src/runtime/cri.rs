//! CRI v1, the protocol of the kubelet: gRPC over HTTP/2 on a unix socket.
//!
//! tonic does the framing, the status codes and the limits; the connection under it is one plain hyper connection and
//! not tonic's channel, which reconnects, balances and buffers behind one's back. Of the calls only those that list,
//! `Version`, `ListPodSandbox`, `ListContainers`, `ImageFsInfo`, `ListImages`, and one that tells, `PodSandboxStatus`.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::http::uri::PathAndQuery;
use hyper::{Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tonic::client::{Grpc, GrpcService};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use super::connection::{Driver, Failure, LARGEST_ANSWER, within};
use super::store::{Kept, Listed};
use super::{
    Container, ContainerState, Identity, Images, Inventory, Pod, Protocol, Sandbox, SandboxNetwork, bounds,
    cri_messages, sandbox_status,
};
use crate::error::{Error, Reason};
use crate::host::Deadline;

/// How long asking sandboxes one by one may take of a poll; what is left is asked in the next one. containerd answers
/// within a millisecond.
const NETWORKS: Duration = Duration::from_secs(1);

/// A connection to a runtime that speaks CRI v1.
pub(super) struct Client {
    grpc: Grpc<Service>,
    driver: Driver,
    /// Asked once per connection: it cannot change without a restart, which breaks the connection.
    identity: Option<Identity>,
    filesystems: Kept<cri_messages::ImageFilesystems>,
    images: Kept<Listed<cri_messages::Image>>,
    /// What sandboxes were asked; of those that the last answer listed.
    networks: HashMap<String, SandboxNetwork>,
}

impl Client {
    pub(super) async fn handshake(stream: TokioIo<UnixStream>) -> Result<Self, Failure> {
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), stream).await.map_err(|error| Failure::http(&error))?;
        let driver = Driver::start(connection);
        let origin = Uri::from_static("http://localhost");
        let grpc = Grpc::with_origin(Service(sender), origin).max_decoding_message_size(LARGEST_ANSWER);
        Ok(Client {
            grpc,
            driver,
            identity: None,
            filesystems: Kept::default(),
            images: Kept::default(),
            networks: HashMap::new(),
        })
    }

    /// One unary call, `/runtime.v1.RuntimeService/Version`.
    pub(super) async fn call<Q, A>(&mut self, path: &'static str, request: Q) -> Result<A, Failure>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        match self.answer(path, request).await? {
            Ok(answer) => Ok(answer),
            Err(status) => Err(self.failure(&status).await.context(name(path))),
        }
    }

    /// The same, with the status of a server that says no.
    async fn answer<Q, A>(&mut self, path: &'static str, request: Q) -> Result<Result<A, Status>, Failure>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        if let Err(error) = self.grpc.ready().await {
            return Err(self.driver.failure(&error).await.context(name(path)));
        }
        let codec = ProstCodec::<Q, A>::default();
        let answer = self.grpc.unary(tonic::Request::new(request), PathAndQuery::from_static(path), codec).await;
        Ok(answer.map(tonic::Response::into_inner))
    }

    /// What a gRPC status means for us.
    async fn failure(&mut self, status: &Status) -> Failure {
        let http = std::error::Error::source(status).and_then(|source| source.downcast_ref::<hyper::Error>());
        if let Some(error) = http {
            return self.driver.failure(error).await;
        }
        let text = format!("{:?}: {}", status.code(), status.message());
        let reason = match status.code() {
            Code::Unimplemented => return Failure::Unimplemented(Error::malformed(text)),
            Code::PermissionDenied | Code::Unauthenticated => Reason::Denied,
            Code::DeadlineExceeded => Reason::Timeout,
            Code::ResourceExhausted | Code::Unavailable => Reason::Busy,
            // What tonic itself says of answers that cannot be decoded or are too large.
            Code::Internal | Code::OutOfRange | Code::DataLoss => Reason::Malformed,
            _ => Reason::Io,
        };
        Failure::Failed(Error::new(reason, text))
    }

    async fn list<A: prost::Message + Default + 'static>(&mut self, path: &'static str) -> Result<A, Failure> {
        self.call(path, cri_messages::Empty {}).await
    }

    /// Everything that this runtime has. Without sandboxes and containers there is no answer; without images there is a
    /// lesser one. `store`: how long the image store's list serves. `networks`: sandboxes are asked for their network
    /// namespaces.
    pub(super) async fn inventory(
        &mut self,
        endpoint: &str,
        store: Duration,
        networks: bool,
        deadline: Deadline,
    ) -> Result<Inventory, Failure> {
        let identity = match &self.identity {
            Some(identity) => identity.clone(),
            None => {
                let version: cri_messages::Version = self.list("/runtime.v1.RuntimeService/Version").await?;
                let identity = Identity {
                    protocol: Protocol::Cri,
                    name: version.runtime_name,
                    version: version.runtime_version,
                    endpoint: endpoint.to_owned(),
                };
                self.identity.insert(identity).clone()
            }
        };
        let sandboxes: cri_messages::Sandboxes = self.list("/runtime.v1.RuntimeService/ListPodSandbox").await?;
        let containers: cri_messages::Containers = self.list("/runtime.v1.RuntimeService/ListContainers").await?;
        let (sandboxes, containers) = (sandboxes.all("sandboxes")?, containers.all("containers")?);
        let mut inventory = Inventory {
            identity,
            sandboxes: Vec::with_capacity(sandboxes.len()),
            containers: Vec::with_capacity(containers.len()),
            images: None,
            image_filesystems: Vec::new(),
            container_filesystem: None,
            errors: Vec::new(),
        };
        add_pods(&mut inventory, sandboxes, containers)?;

        // These two may fail by themselves, and must not take the time of the answer that is there already.
        match within(deadline.part(Duration::MAX), self.filesystems(store)).await {
            Ok(filesystems) => add_filesystems(&mut inventory, &filesystems),
            Err(failure) => inventory.errors.push(failure.into_error()),
        }
        let used: HashSet<&str> = inventory.containers.iter().map(|container| container.image.as_str()).collect();
        match within(deadline.part(Duration::MAX), self.images(&used, store)).await {
            Ok(images) => inventory.images = Some(images),
            Err(failure) => inventory.errors.push(failure.into_error()),
        }
        if networks {
            self.ask_networks(&mut inventory.sandboxes, deadline.part(NETWORKS)).await;
        }
        Ok(inventory)
    }

    /// Asks those sandboxes that were not asked yet, as many as there is time for and until asking fails.
    async fn ask_networks(&mut self, sandboxes: &mut [Sandbox], deadline: Deadline) {
        let mut before = std::mem::take(&mut self.networks);
        let mut failed = None;
        for sandbox in sandboxes {
            sandbox.network = match (before.remove(&sandbox.id), &failed) {
                (Some(known), _) => known,
                (None, Some(error)) => SandboxNetwork::Failed(Error::clone(error)),
                (None, None) if deadline.expired() => SandboxNetwork::Unasked,
                (None, None) => match within(deadline, self.network(&sandbox.id)).await {
                    Ok(network) => network,
                    Err(failure) => {
                        let error = failure.into_error();
                        let late = deadline.expired() && error.reason() == Reason::Timeout;
                        failed = Some(error.clone()).filter(|_| !late);
                        if late { SandboxNetwork::Unasked } else { SandboxNetwork::Failed(error) }
                    }
                },
            };
            if !matches!(sandbox.network, SandboxNetwork::Unasked | SandboxNetwork::Failed(_)) {
                self.networks.insert(sandbox.id.clone(), sandbox.network.clone());
            }
        }
    }

    async fn network(&mut self, id: &str) -> Result<SandboxNetwork, Failure> {
        let request = cri_messages::SandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        let path = "/runtime.v1.RuntimeService/PodSandboxStatus";
        match self.answer::<_, cri_messages::SandboxStatus>(path, request).await? {
            Ok(status) => Ok(sandbox_status::network(&status.info)?),
            // Removed since it was listed: it has none any more.
            Err(status) if status.code() == Code::NotFound => Ok(SandboxNetwork::Unnamed),
            Err(status) => Err(self.failure(&status).await.context(name(path))),
        }
    }

    async fn filesystems(&mut self, store: Duration) -> Result<cri_messages::ImageFilesystems, Failure> {
        if let Some(filesystems) = self.filesystems.younger_than(store, |_| true) {
            return Ok(filesystems.clone());
        }
        let asked = Instant::now();
        let filesystems = self.list("/runtime.v1.ImageService/ImageFsInfo").await?;
        Ok(self.filesystems.keep(asked, filesystems).clone())
    }

    async fn images(&mut self, used: &HashSet<&str>, store: Duration) -> Result<Images, Failure> {
        if let Some(listed) = self.images.younger_than(store, |listed| listed.has_all(used)) {
            return Ok(count(&listed.images, used));
        }
        let asked = Instant::now();
        let images: cri_messages::Images = self.list("/runtime.v1.ImageService/ListImages").await?;
        let listed = self.images.keep(asked, Listed::new(images.all("images")?, used));
        Ok(count(&listed.images, used))
    }
}

/// Of a call, for errors.
fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// What a container may call an image by.
fn names(image: &cri_messages::Image) -> impl Iterator<Item = &str> {
    std::iter::once(image.id.as_str()).chain(image.repo_digests.iter().map(String::as_str))
}

/// A container belongs to the pod of its sandbox; to the one that the kubelet labelled it with if the sandbox is gone.
///
/// The uid is that of the cgroup, static pods included: the kubelet gives those the hash of their manifest as uid
/// everywhere on the node (`kubernetes.io/config.hash` says the same; only the mirror pod on the apiserver has another
/// one). Seen on 1.36.
fn add_pods(
    inventory: &mut Inventory,
    sandboxes: Vec<cri_messages::Sandbox>,
    containers: Vec<cri_messages::Container>,
) -> Result<(), Error> {
    for sandbox in sandboxes {
        let metadata = sandbox.metadata.unwrap_or_default();
        bounds::check(&[&sandbox.id, &metadata.namespace, &metadata.name, &metadata.uid])?;
        let pod = Pod { namespace: metadata.namespace, name: metadata.name, uid: metadata.uid };
        let (ready, network) = (sandbox.state == 0, SandboxNetwork::Unasked);
        inventory.sandboxes.push(Sandbox { id: sandbox.id, ready, pod, network });
    }
    let pods: HashMap<&str, &Pod> =
        inventory.sandboxes.iter().map(|sandbox| (sandbox.id.as_str(), &sandbox.pod)).collect();
    for container in containers {
        let pod = match pods.get(container.pod_sandbox_id.as_str()) {
            Some(pod) => (*pod).clone(),
            None => container.labels.unwrap_or_default().pod,
        };
        let name = container.metadata.unwrap_or_default().name;
        let image = if container.image_id.is_empty() { container.image_ref } else { container.image_id };
        bounds::check(&[&container.id, &name, &image, &pod.namespace, &pod.name, &pod.uid])?;
        inventory.containers.push(Container {
            id: container.id,
            name,
            state: match container.state {
                0 => ContainerState::Created,
                1 => ContainerState::Running,
                2 => ContainerState::Exited,
                _ => ContainerState::Unknown,
            },
            pod,
            image,
        });
    }
    Ok(())
}

fn add_filesystems(inventory: &mut Inventory, filesystems: &cri_messages::ImageFilesystems) {
    fn mountpoints(all: &[cri_messages::FilesystemUsage]) -> impl Iterator<Item = String> {
        let mountpoints = all.iter().filter_map(|usage| Some(&usage.fs_id.as_ref()?.mountpoint));
        mountpoints.filter(|mountpoint| !mountpoint.is_empty()).cloned()
    }
    if inventory.identity.name == "cri-o" {
        inventory.container_filesystem = mountpoints(&filesystems.container_filesystems).next();
    }
    inventory.image_filesystems = mountpoints(&filesystems.image_filesystems).collect();
}

/// The kubelet's image GC compares the id of each image with what each container says it runs, exited ones included,
/// and leaves pinned images alone. So do we (a digest counts as well, which some runtimes give instead of the id). A
/// pause image is in no container's list: where the runtime does not pin it (containerd 1.6), the kubelet may remove
/// it, and it counts as unused.
fn count(images: &[cri_messages::Image], used: &HashSet<&str>) -> Images {
    let mut sum = Images::default();
    for image in images {
        sum.count += 1;
        sum.bytes = sum.bytes.saturating_add(image.size);
        let kept = image.pinned || names(image).any(|name| used.contains(name));
        if !kept {
            sum.unused_bytes = sum.unused_bytes.saturating_add(image.size);
        }
    }
    sum
}

/// What tonic sends its requests with.
struct Service(SendRequest<tonic::body::Body>);

impl GrpcService<tonic::body::Body> for Service {
    type ResponseBody = Incoming;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
