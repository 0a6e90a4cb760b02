//! What runs on this node, by the word of the container runtime: containers, sandboxes, images, and which pod a container belongs to.
//!
//! One [`Inventory`] behind one [`Runtime`], whoever answers: a CRI v1 runtime (containerd, CRI-O, cri-dockerd) or the Docker Engine
//! API. Only calls that list; nothing is ever changed. Knows no metrics.

mod double;

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::host::{Deadline, Host};

/// Which protocol answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The kubelet's own: CRI v1 over a unix socket.
    Cri,
    /// Docker Engine API over docker.sock, on nodes without CRI.
    Docker,
}

impl Protocol {
    /// The label value of `headroom_runtime_info{source}`.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Cri => "cri",
            Protocol::Docker => "docker",
        }
    }
}

/// Who answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// How.
    pub protocol: Protocol,
    /// `containerd`, `cri-o`, `docker`, …
    pub name: String,
    /// Its version as it says.
    pub version: String,
    /// `unix:///run/containerd/containerd.sock`
    pub endpoint: String,
}

/// The state of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Running.
    Running,
    /// Ended.
    Exited,
    /// The runtime does not know.
    Unknown,
}

/// Where something belongs in Kubernetes. Empty strings for what the runtime does not say (a plain Docker container).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Pod {
    /// Namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Pod uid: of a static pod the hash that its cgroup is named by (annotation `kubernetes.io/config.hash`).
    pub uid: String,
}

/// One container. (Pause containers of CRI are sandboxes, not containers; Docker's are told by their label.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its name in the pod.
    pub name: String,
    /// Its state.
    pub state: ContainerState,
    /// Its pod.
    pub pod: Pod,
    /// The image it runs, as the runtime refers to it (an id or digest): what makes an image "used".
    pub image: String,
}

/// One pod sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Ready, or stopped and not yet removed.
    pub ready: bool,
    /// The pod.
    pub pod: Pod,
}

/// The images in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Images {
    /// How many.
    pub count: u64,
    /// Sum of their sizes, as the runtime counts (layers shared by two images count twice).
    pub bytes: u64,
    /// Of these, bytes of images that no container (running or not) uses and that are not pinned: what image GC could free.
    pub unused_bytes: u64,
}

/// Everything that was asked in one poll.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    /// Who answered.
    pub identity: Identity,
    /// Every container.
    pub containers: Vec<Container>,
    /// Every sandbox.
    pub sandboxes: Vec<Sandbox>,
    /// `None` if this call failed while the others did not; the reason is in `errors`.
    pub images: Option<Images>,
    /// Mount points of the image file systems, in the runtime's order: the kubelet takes the first. Empty if unknown.
    pub image_filesystems: Vec<String>,
    /// Calls that failed, when others answered.
    pub errors: Vec<Error>,
}

/// What is set by flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// `--runtime.endpoint`: `unix:///run/…sock`. Not set: the kubelet's word if it has one, else the well-known sockets.
    pub endpoint: Option<String>,
    /// False: `--no-runtime`: never talk to a socket that is as good as root.
    pub disabled: bool,
}

/// A handle on the runtime, shared by the modes. Cheap to clone; the default one has no runtime.
#[derive(Clone, Debug, Default)]
pub struct Runtime {
    double: double::Double,
}

/// How old an answer may be: modes that ask within this time of each other share one poll.
pub const SHARED_FOR: Duration = Duration::from_secs(1);

impl Runtime {
    /// What runs now: the answer to a poll that began at most [`SHARED_FOR`] before this call, so that the modes of one scrape
    /// share one.
    ///
    /// # Errors
    /// Absent: no runtime here (no socket, or switched off). Others: there is a socket, and it did not answer, or nonsense.
    pub fn inventory(&self, _host: &Host, _deadline: Deadline) -> Result<Arc<Inventory>> {
        if let Some(answer) = self.double.answer() {
            return answer;
        }
        Err(Error::absent("no runtime socket"))
    }
}
