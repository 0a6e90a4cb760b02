//! What runs on this node, by the word of the container runtime: containers, sandboxes, images, and which pod a container belongs to.
//!
//! One [`Inventory`] behind one [`Runtime`], whoever answers: a CRI v1 runtime (containerd, CRI-O, cri-dockerd) or the Docker Engine
//! API. Only calls that list; nothing is ever changed. Knows no metrics.

mod connection;
mod cri;
mod cri_messages;
mod detect;
mod docker;
mod fake;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Reason, Result};
use crate::host::{Deadline, Host};
use detect::Poller;

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

impl Inventory {
    /// The pods of these uids. Whoever knows a pod by nothing but its uid asks here.
    pub fn pods<'a>(&'a self, uids: &HashSet<&str>) -> HashMap<&'a str, &'a Pod> {
        let of_containers = self.containers.iter().map(|container| &container.pod);
        let of_sandboxes = self.sandboxes.iter().map(|sandbox| &sandbox.pod);
        let mut found = HashMap::new();
        for pod in of_containers.chain(of_sandboxes).filter(|pod| uids.contains(pod.uid.as_str())) {
            found.entry(pod.uid.as_str()).or_insert(pod);
        }
        found
    }

    /// The pod of this uid.
    pub fn pod_of_uid(&self, uid: &str) -> Option<&Pod> {
        self.pods(&HashSet::from([uid])).remove(uid)
    }
}

/// What is set by flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `--runtime.endpoint`: `unix:///run/…sock`. Not set: the kubelet's word if it has one, else the well-known sockets.
    pub endpoint: Option<String>,
    /// `--no-runtime`: never talk to a socket that is as good as root.
    pub disabled: bool,
    /// How long an answer, or an error, serves further callers.
    pub fresh: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { endpoint: None, disabled: false, fresh: Duration::from_secs(1) }
    }
}

/// The path of an endpoint as it is written: `unix:///run/x.sock`, or `/run/x.sock`. `None` if it is neither.
pub fn endpoint_path(endpoint: &str) -> Option<&str> {
    detect::path(endpoint)
}

/// A handle on the runtime, shared by the modes. Cheap to clone; the default one has no runtime.
///
/// ```text
/// modes, each on a thread of its own ──► inventory() ──► an answer less than a second old      that one
///                                                        a poll under way on another thread    waits for it
///                                                        neither                               polls, on this thread
/// ```
#[derive(Clone, Default)]
pub struct Runtime {
    shared: Option<Arc<Shared>>,
    fake: fake::Fake,
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Runtime").field(&self.shared.as_ref().map(|shared| &shared.settings)).finish()
    }
}

struct Shared {
    settings: Settings,
    flight: Mutex<Flight>,
    landed: Condvar,
}

#[derive(Default)]
struct Flight {
    /// What the kubelet was told, see [`Runtime::hint`].
    hint: Option<String>,
    /// Held by the thread that polls, here between polls.
    poller: Option<Box<Poller>>,
    under_way: bool,
    last: Option<Last>,
}

/// The last answer.
#[derive(Clone)]
struct Last {
    began: Instant,
    landed: Instant,
    result: Result<Arc<Inventory>>,
}

impl Last {
    fn answer(&self) -> Result<(Arc<Inventory>, Instant)> {
        self.result.clone().map(|inventory| (inventory, self.began))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Flight> {
        self.flight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a poll, however it ends.
struct Landing<'a> {
    shared: &'a Shared,
    began: Instant,
    poller: Option<Box<Poller>>,
    result: Option<Result<Arc<Inventory>>>,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        let result =
            self.result.take().unwrap_or_else(|| Err(Error::new(Reason::Panic, "the poll of the runtime panicked")));
        let mut flight = self.shared.lock();
        flight.under_way = false;
        // A poller that panicked is not used again, and one that the kubelet has overruled in the meantime neither.
        if self.poller.as_ref().is_some_and(|poller| poller.endpoint() == self.shared.endpoint(&flight)) {
            flight.poller = self.poller.take();
        }
        flight.last = Some(Last { began: self.began, landed: Instant::now(), result });
        drop(flight);
        self.shared.landed.notify_all();
    }
}

impl Shared {
    fn endpoint<'a>(&'a self, flight: &'a Flight) -> Option<&'a str> {
        self.settings.endpoint.as_deref().or(flight.hint.as_deref())
    }
}

impl Runtime {
    /// A runtime that is looked for, and asked, when somebody wants to know.
    pub fn new(settings: Settings) -> Self {
        if settings.disabled {
            return Runtime::default();
        }
        let shared = Shared { settings, flight: Mutex::default(), landed: Condvar::new() };
        Runtime { shared: Some(Arc::new(shared)), ..Runtime::default() }
    }

    /// The endpoint that the kubelet itself uses (`containerRuntimeEndpoint`): asked instead of the well-known sockets, unless one was
    /// set. Cheap to repeat.
    pub fn hint(&self, endpoint: Option<&str>) {
        if let Some(shared) = &self.shared {
            let mut flight = shared.lock();
            let endpoint = endpoint.filter(|endpoint| endpoint_path(endpoint).is_some());
            if flight.hint.as_deref() != endpoint {
                flight.hint = endpoint.map(str::to_owned);
                flight.poller = None;
                flight.last = None;
            }
        }
    }

    /// The path of the socket that is asked, if somebody named one.
    pub fn endpoint(&self) -> Option<String> {
        let shared = self.shared.as_ref()?;
        shared.endpoint(&shared.lock()).and_then(endpoint_path).map(str::to_owned)
    }

    /// What runs now. Blocks, so not from asynchronous code. The modes of one scrape that ask within a second of each other share one poll, and its error.
    ///
    /// # Errors
    /// Absent: no runtime here (no socket, or switched off). Others: there is a socket, or was, or ought to be, and it did not answer, or nonsense.
    pub fn inventory(&self, host: &Host, deadline: Deadline) -> Result<Arc<Inventory>> {
        self.inventory_and_when(host, deadline).map(|(inventory, _)| inventory)
    }

    /// As [`Runtime::inventory`], with when its poll began: what is listed was so at some moment after that. A shared answer may
    /// be of a poll that began well before this call.
    ///
    /// # Errors
    /// As [`Runtime::inventory`].
    pub fn inventory_and_when(&self, host: &Host, deadline: Deadline) -> Result<(Arc<Inventory>, Instant)> {
        self.answer(host, deadline, None)
    }

    /// As [`Runtime::inventory`], by a poll that began at `since` or later: what is listed was so at some moment after it. An
    /// answer is shared only if it is as young.
    ///
    /// # Errors
    /// As [`Runtime::inventory`].
    pub fn inventory_since(&self, host: &Host, deadline: Deadline, since: Instant) -> Result<Arc<Inventory>> {
        self.answer(host, deadline, Some(since)).map(|(inventory, _)| inventory)
    }

    fn answer(&self, host: &Host, deadline: Deadline, since: Option<Instant>) -> Result<(Arc<Inventory>, Instant)> {
        let young = |last: &Last| since.is_none_or(|since| last.began >= since);
        if let Some(answer) = self.fake.answer() {
            return answer;
        }
        let Some(shared) = &self.shared else {
            return Err(Error::absent("asking the container runtime is switched off"));
        };
        let mut flight = shared.lock();
        loop {
            match &flight.last {
                Some(last) if !flight.under_way && young(last) && last.landed.elapsed() < shared.settings.fresh => {
                    return last.answer();
                }
                _ => {}
            }
            if !flight.under_way {
                break;
            }
            let before = flight.last.as_ref().map(|last| last.landed);
            let waited = shared.landed.wait_timeout_while(flight, deadline.remaining(), |flight| flight.under_way);
            let timeout;
            (flight, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            match &flight.last {
                Some(last) if Some(last.landed) != before && young(last) => return last.answer(),
                _ if timeout.timed_out() => {
                    return Err(Error::new(
                        Reason::Timeout,
                        "the container runtime: a poll under way did not end in time",
                    ));
                }
                _ => {}
            }
        }
        flight.under_way = true;
        let endpoint = shared.endpoint(&flight).map(str::to_owned);
        let poller = flight.poller.take();
        drop(flight);

        let began = Instant::now();
        let mut landing = Landing { shared, began, poller: None, result: None };
        let mut poller = poller.unwrap_or_else(|| Box::new(Poller::new(endpoint.as_deref())));
        let result = poller.poll(host, deadline).map(Arc::new);
        landing.poller = Some(poller);
        landing.result = Some(result.clone());
        drop(landing);
        result.map(|inventory| (inventory, began))
    }
}
