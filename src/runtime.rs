//! What runs on this node, by the word of the container runtime: containers, sandboxes, images, and which pod a
//! container belongs to.
//!
//! One [`Inventory`] behind one [`Runtime`], whoever answers: a CRI v1 runtime (containerd, CRI-O, cri-dockerd) or the
//! Docker Engine API. Only calls that list or tell; nothing is ever changed. Knows no metrics.

mod bounds;
mod connection;
mod cri;
mod cri_messages;
mod detect;
mod docker;
mod fake;
mod names;
mod sandbox_status;
mod store;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::builder::BoolishValueParser;

use crate::error::{Error, Reason, Result};
use crate::host::single_flight::{Landed, SingleFlight};
use crate::host::{Deadline, Host};
use crate::kubelet::handle::{Kubelet, Look};
use crate::values::defaults;
use detect::Poller;
pub use names::Names;

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
    /// Where its network namespace has a name.
    pub network: SandboxNetwork,
}

/// The network namespace of a sandbox, by the runtime's word. A sandbox has the same one all its life.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SandboxNetwork {
    /// Nobody asked, or there was no time to.
    #[default]
    Unasked,
    /// The runtime does not say.
    Untold,
    /// Asking failed.
    Failed(Error),
    /// The machine's own, or one without a name.
    Unnamed,
    /// By this path: `/var/run/netns/cni-24b0ec5e-76e5-cd26-8c64-9d9279244df3`.
    Named(String),
}

/// The images in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Images {
    /// How many.
    pub count: u64,
    /// Sum of their sizes, as the runtime counts (layers shared by two images count twice).
    pub bytes: u64,
    /// Of these, bytes of images that no container (running or not) uses and that are not pinned: what image GC could
    /// free.
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
    /// Mount point of the file system of the containers' writable layers, where the kubelet asks for it: of CRI-O only
    /// (`pkg/kubelet/stats/cadvisor_stats_provider.go:318`; the other provider takes the images' for it).
    pub container_filesystem: Option<String>,
    /// Calls that failed, when others answered.
    pub errors: Vec<Error>,
}

/// Whether the runtime is asked, and where.
#[derive(clap::Args, Clone, Debug, PartialEq, Eq)]
#[group(skip)]
#[command(next_help_heading = "Container runtime")]
pub struct Settings {
    /// Ask the container runtime which containers and images there are (on by default). Only calls that list or tell
    /// are made
    #[arg(id = "runtime", long = "runtime", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "true",
          default_missing_value = "true", hide_possible_values = true, hide_default_value = true,
          value_parser = BoolishValueParser::new(), overrides_with = "no-runtime")]
    pub enabled: bool,
    /// Never talk to the container runtime
    #[arg(
        long_help = "Never talk to the container runtime: its socket is as good as root",
        id = "no-runtime",
        long = "no-runtime",
        overrides_with = "runtime"
    )]
    pub disabled: bool,
    /// Its socket [default: a well-known one]
    #[arg(
        long_help = "The runtime's socket: CRI v1, or the Docker Engine API if it is called docker.sock [default: the first of the well-known ones that answers]",
        id = "runtime.endpoint", long = "runtime.endpoint", value_name = "unix:///PATH", value_parser = endpoint_flag
    )]
    pub endpoint: Option<String>,
    /// How long an answer, or an error, serves further callers.
    #[arg(skip = FRESH)]
    pub fresh: Duration,
    /// How long a list of the image store serves, unless a container runs an image that it did not run then.
    #[arg(skip = STORE)]
    pub store_fresh: Duration,
}

/// How long an answer serves: the modes of one scrape.
const FRESH: Duration = Duration::from_secs(1);
/// A kubelet looks for unused images every five minutes.
const STORE: Duration = Duration::from_secs(60);

impl Default for Settings {
    fn default() -> Self {
        defaults()
    }
}

fn endpoint_flag(text: &str) -> std::result::Result<String, String> {
    match endpoint_path(text) {
        Some(path) => Ok(format!("unix://{path}")),
        None => Err("expected unix:///PATH or /PATH of a socket".to_owned()),
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
    names: Arc<Mutex<names::Memory>>,
    /// Whether it answered when it was last asked.
    answered: Arc<Mutex<Option<bool>>>,
    /// Somebody wants to know of sandboxes which network namespace they have.
    asks_networks: Arc<AtomicBool>,
    fake: fake::Fake,
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Runtime").field(&self.shared.as_ref().map(|shared| &shared.settings)).finish()
    }
}

struct Shared {
    settings: Settings,
    kubelet: Option<Kubelet>,
    polls: SingleFlight<Answer>,
    /// Between polls; whoever polls takes it.
    poller: Mutex<Option<Box<Poller>>>,
    /// The last endpoint of the kubelet's at which there was a socket.
    last_endpoint: Mutex<Option<String>>,
}

/// What a poll brought.
#[derive(Clone)]
struct Answer {
    endpoint: Option<String>,
    result: Result<Arc<Inventory>>,
    server: Option<u32>,
}

impl Shared {
    /// The socket that is asked, if somebody names one: a flag, else the kubelet. Of two runtimes on one machine the
    /// kubelet's is meant. While its socket was never there it is no runtime that fails, but one that may come.
    fn endpoint(&self, host: &Host, deadline: Deadline) -> Option<String> {
        if self.settings.endpoint.is_some() {
            return self.settings.endpoint.clone();
        }
        let look = self.look_at_kubelet(host, deadline);
        let told = look.as_ref().and_then(|look| look.runtime_endpoint(host, deadline));
        let mut last = self.last_endpoint.lock().unwrap_or_else(PoisonError::into_inner);
        let there = |endpoint: &&str| endpoint_path(endpoint).is_some_and(|path| host.tree().kind(path).is_ok());
        if let Some(endpoint) = told.filter(there) {
            *last = Some(endpoint.to_owned());
        }
        last.clone()
    }

    /// The kubelet as it was a moment ago: as young as an answer that is shared.
    fn look_at_kubelet(&self, host: &Host, deadline: Deadline) -> Option<Arc<Look>> {
        let now = Instant::now();
        let since = now.checked_sub(self.settings.fresh).unwrap_or(now);
        self.kubelet.as_ref()?.look(host, deadline, since).ok()
    }

    fn poll(&self, host: &Host, endpoint: Option<String>, networks: bool, deadline: Deadline) -> Answer {
        let take = || self.poller.lock().unwrap_or_else(PoisonError::into_inner);
        // A poller that panics is not put back. One that the kubelet has overruled in the meantime is of no use.
        let poller = take().take().filter(|poller| poller.endpoint() == endpoint.as_deref());
        let mut poller =
            poller.unwrap_or_else(|| Box::new(Poller::new(endpoint.as_deref(), self.settings.store_fresh)));
        let result = poller.poll(host, networks, deadline).map(Arc::new);
        let server = poller.server();
        *take() = Some(poller);
        Answer { endpoint, result, server }
    }
}

impl Runtime {
    /// A runtime that is looked for, and asked, when somebody wants to know: where the settings say, else at the
    /// well-known sockets.
    pub fn new(settings: Settings) -> Self {
        Self::with(settings, None)
    }

    /// As [`Runtime::new`], but before the well-known sockets the one counts that `kubelet` was told of.
    pub fn of_kubelet(settings: Settings, kubelet: Kubelet) -> Self {
        Self::with(settings, Some(kubelet))
    }

    fn with(settings: Settings, kubelet: Option<Kubelet>) -> Self {
        if settings.disabled || !settings.enabled {
            return Runtime::default();
        }
        let shared = Shared {
            settings,
            kubelet,
            polls: SingleFlight::default(),
            poller: Mutex::default(),
            last_endpoint: Mutex::default(),
        };
        Runtime { shared: Some(Arc::new(shared)), ..Runtime::default() }
    }

    /// From now on each sandbox is asked, once, which network namespace it has: that takes a call for each.
    pub fn ask_networks(&self) {
        self.asks_networks.store(true, Ordering::Relaxed);
    }

    /// The path of the socket that is asked, if somebody named one.
    pub fn endpoint(&self, host: &Host, deadline: Deadline) -> Option<String> {
        let endpoint = self.shared.as_ref()?.endpoint(host, deadline)?;
        endpoint_path(&endpoint).map(str::to_owned)
    }

    /// What runs now. Blocks, so not from asynchronous code. The modes of one scrape that ask within a second of each
    /// other share one poll, and its error.
    ///
    /// # Errors
    /// Absent: no runtime here (no socket, or switched off). Others: there is a socket, or was, or ought to be, and it
    /// did not answer, or nonsense.
    pub fn inventory(&self, host: &Host, deadline: Deadline) -> Result<Arc<Inventory>> {
        self.inventory_and_when(host, deadline).map(|poll| poll.inventory)
    }

    /// As [`Runtime::inventory`], with when its poll began and ended: what is listed was so at some moment between. A
    /// shared answer may be of a poll that began well before this call.
    ///
    /// # Errors
    /// As [`Runtime::inventory`].
    pub fn inventory_and_when(&self, host: &Host, deadline: Deadline) -> Result<Poll> {
        self.answer(host, deadline, None)
    }

    /// As [`Runtime::inventory`], by a poll that began at `since` or later: what is listed was so at some moment after
    /// it. An answer is shared only if it is as young.
    ///
    /// # Errors
    /// As [`Runtime::inventory`].
    pub fn inventory_since(&self, host: &Host, deadline: Deadline, since: Instant) -> Result<Arc<Inventory>> {
        self.answer(host, deadline, Some(since)).map(|poll| poll.inventory)
    }

    fn answer(&self, host: &Host, deadline: Deadline, since: Option<Instant>) -> Result<Poll> {
        let poll = self.ask(host, deadline, since);
        *self.answered.lock().unwrap_or_else(PoisonError::into_inner) = match &poll {
            Ok(_) => Some(true),
            // Nothing is away where there is none, and who may not ask does not know.
            Err(error) if matches!(error.reason(), Reason::Absent | Reason::Denied) => None,
            Err(_) => Some(false),
        };
        let poll = poll?;
        self.memory().note(&poll.inventory);
        Ok(poll)
    }

    /// Whether it answered when somebody last asked; `None` if nobody did, if there is none, or if we may not ask it.
    pub fn answered(&self) -> Option<bool> {
        *self.answered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, host: &Host, deadline: Deadline, since: Option<Instant>) -> Result<Poll> {
        if let Some(answer) = self.fake.answer() {
            return answer;
        }
        let Some(shared) = &self.shared else {
            return Err(Error::absent("asking the container runtime is switched off"));
        };
        let endpoint = shared.endpoint(host, deadline);
        let usable = |last: &Landed<Answer>, waited: bool| {
            last.value.endpoint == endpoint
                && since.is_none_or(|since| last.began >= since)
                && (waited || last.ended.elapsed() < shared.settings.fresh)
        };
        let late = || {
            Error::new(Reason::Timeout, "the container runtime: a request under way did not end before the deadline")
        };
        let networks = self.asks_networks.load(Ordering::Relaxed);
        let landed = shared.polls.get(deadline, usable, || shared.poll(host, endpoint.clone(), networks, deadline));
        let Landed { began, ended, value } = landed.ok_or_else(late)?;
        let server = value.server;
        value.result.map(|inventory| Poll { inventory, began, ended, server })
    }
}

/// An answer, and when it was given.
#[derive(Clone, Debug)]
pub struct Poll {
    /// What runs.
    pub inventory: Arc<Inventory>,
    /// When the poll began.
    pub began: Instant,
    /// When it ended.
    pub ended: Instant,
    /// The process that answered: the one that listens at the socket. `None` if it is not in our pid namespace. Where
    /// systemd listens for it (`docker.socket`) this is process 1.
    pub server: Option<u32>,
}
