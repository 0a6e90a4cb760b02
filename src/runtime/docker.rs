//! The Docker Engine API: JSON over HTTP/1.1 on a unix socket, for nodes whose containers are Docker's.
//!
//! `/version`, `/info`, `/containers/json?all=1`, `/images/json`. Not `/system/df`, which walks every layer. The first
//! two start processes in the daemon (`runc --version`), so they are asked once per connection.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::bounds::{self, Few, Labels, MOST};
use super::connection::{Driver, Failure, LARGEST_ANSWER, within};
use super::store::{Kept, Listed};
use super::{Container, ContainerState, Identity, Images, Inventory, Pod, Protocol, Sandbox, SandboxNetwork};
use crate::client::body;
use crate::error::{Error, Reason};
use crate::host::Deadline;

/// A connection to a Docker daemon.
pub(super) struct Client {
    sender: SendRequest<Empty<Bytes>>,
    driver: Driver,
    /// Who, and where its images lie.
    about: Option<(Identity, String)>,
    images: Kept<Listed<Stored>>,
}

impl Client {
    pub(super) async fn handshake(stream: TokioIo<UnixStream>) -> Result<Self, Failure> {
        let (sender, connection) = http1::handshake(stream).await.map_err(|error| Failure::http(&error))?;
        Ok(Client { sender, driver: Driver::start(connection), about: None, images: Kept::default() })
    }

    async fn get<A: DeserializeOwned>(&mut self, path: &'static str) -> Result<A, Failure> {
        let answer = async {
            if let Err(error) = self.sender.ready().await {
                return Err(self.driver.failure(&error).await);
            }
            let request = Request::get(path).header("Host", "docker").body(Empty::new());
            let request = request.map_err(|error| Error::malformed(error.to_string()))?;
            let answer = match self.sender.send_request(request).await {
                Ok(answer) => answer,
                Err(error) => return Err(self.driver.failure(&error).await),
            };
            let status = answer.status();
            let body = body::whole(answer.into_body(), LARGEST_ANSWER).await.map_err(|error| Failure::http(&error))?;
            let body = body.ok_or_else(|| Error::malformed(format!("larger than {LARGEST_ANSWER} bytes")))?;
            if status != StatusCode::OK {
                let reason = match status {
                    StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Reason::Denied,
                    status if status.is_server_error() => Reason::Io,
                    _ => Reason::Malformed,
                };
                return Err(Failure::Failed(Error::new(reason, format!("status {status}"))));
            }
            let parsed = serde_json::from_slice(&body);
            parsed.map_err(|error| Failure::Failed(Error::malformed(error.to_string())))
        };
        answer.await.map_err(|failure: Failure| failure.context(path))
    }

    async fn about(&mut self, endpoint: &str) -> Result<(Identity, String), Failure> {
        if let Some(about) = &self.about {
            return Ok(about.clone());
        }
        let version: Version = self.get("/version").await?;
        let info: Info = self.get("/info").await?;
        let identity = Identity {
            protocol: Protocol::Docker,
            name: "docker".to_owned(),
            version: version.version,
            endpoint: endpoint.to_owned(),
        };
        Ok(self.about.insert((identity, info.docker_root_dir)).clone())
    }

    /// Everything that this daemon has. Without containers there is no answer; without images there is a lesser one.
    /// `store`: how long the list of images serves.
    pub(super) async fn inventory(
        &mut self,
        endpoint: &str,
        store: Duration,
        deadline: Deadline,
    ) -> Result<Inventory, Failure> {
        let (identity, root) = self.about(endpoint).await?;
        let Few(listed): Few<Made, MOST> = self.get("/containers/json?all=1").await?;
        let used: HashSet<String> = listed.iter().map(|container| container.image_id.clone()).collect();
        let mut inventory = Inventory {
            identity,
            containers: Vec::new(),
            sandboxes: Vec::new(),
            images: None,
            image_filesystems: Some(root).filter(|root| !root.is_empty()).into_iter().collect(),
            container_filesystem: None,
            errors: Vec::new(),
        };
        add_pods(&mut inventory, listed)?;
        let used = used.iter().map(String::as_str).collect();
        match within(deadline.part(Duration::MAX), self.images(&used, store)).await {
            Ok(images) => inventory.images = Some(images),
            Err(failure) => inventory.errors.push(failure.into_error()),
        }
        Ok(inventory)
    }

    async fn images(&mut self, used: &HashSet<&str>, store: Duration) -> Result<Images, Failure> {
        if let Some(listed) = self.images.younger_than(store, |listed| listed.has_all(used)) {
            return Ok(count(&listed.images, used));
        }
        let asked = Instant::now();
        let Few(images): Few<Stored, MOST> = self.get("/images/json").await?;
        Ok(count(&self.images.keep(asked, Listed::new(images, used)).images, used))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Version {
    version: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Info {
    #[serde(default)]
    docker_root_dir: String,
}

/// One container of `/containers/json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Made {
    id: String,
    #[serde(default)]
    names: Few<String, 256>,
    #[serde(default, rename = "ImageID")]
    image_id: String,
    state: String,
    #[serde(default)]
    labels: Labels,
}

/// One image of `/images/json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Stored {
    id: String,
    size: u64,
}

/// The labels of dockershim and cri-dockerd tell sandboxes from containers; a container without them is a plain one of
/// Docker's.
fn add_pods(inventory: &mut Inventory, listed: Vec<Made>) -> Result<(), Error> {
    for mut container in listed {
        let mut label = |key: &str| container.labels.0.remove(key).unwrap_or_default();
        let pod = Pod {
            namespace: label("io.kubernetes.pod.namespace"),
            name: label("io.kubernetes.pod.name"),
            uid: label("io.kubernetes.pod.uid"),
        };
        let (kind, mut name) = (label("io.kubernetes.docker.type"), label("io.kubernetes.container.name"));
        bounds::check(&[&container.id, &name, &container.image_id, &pod.namespace, &pod.name, &pod.uid])?;
        let state = match container.state.as_str() {
            "created" => ContainerState::Created,
            "running" | "paused" => ContainerState::Running,
            // Not running, and known to be so: a container between two tries is still on the disk.
            "exited" | "dead" | "removing" | "restarting" => ContainerState::Exited,
            _ => ContainerState::Unknown,
        };
        if kind == "podsandbox" {
            let ready = state == ContainerState::Running;
            inventory.sandboxes.push(Sandbox { id: container.id, ready, pod, network: SandboxNetwork::Untold });
            continue;
        }
        if name.is_empty() {
            name = container.names.0.first().map(|name| name.trim_start_matches('/').to_owned()).unwrap_or_default();
        }
        inventory.containers.push(Container { id: container.id, name, state, pod, image: container.image_id });
    }
    Ok(())
}

/// An image is used if a container, running or not, was made from it; Docker's sandboxes are containers.
fn count(images: &[Stored], used: &HashSet<&str>) -> Images {
    let mut sum = Images::default();
    for image in images {
        sum.count += 1;
        sum.bytes = sum.bytes.saturating_add(image.size);
        if !used.contains(image.id.as_str()) {
            sum.unused_bytes = sum.unused_bytes.saturating_add(image.size);
        }
    }
    sum
}
