//! Reads the two objects, each on a clock of its own, and keeps what it read until it is too old to be told. With the
//! node object comes, now and then, the version of the apiserver.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep_until};

use super::Settings;
use super::objects::{self, Lease, Node as NodeObject};
use crate::apiserver::{Apiserver, Client, Exchange, Outcome};
use crate::error::{Error, Reason, Result};
use crate::host::Host;
use crate::kubelet::handle::Kubelet;
use crate::kubelet::version::Version;
use crate::modes::schedule::Clock;
use crate::modes::{Probe, Work};

/// A node with 50 images and many managed fields has some hundred kilobytes.
const LARGEST: usize = 4 << 20;
/// What was read is told for so many intervals; after that we no longer know.
const HOLDS: u32 = 3;
/// An apiserver is upgraded a few times a year, and mostly misses a read of ours then, after which it is asked at once.
const VERSION_INTERVAL: Duration = Duration::from_secs(3_600);
/// Some three hundred bytes.
const LARGEST_VERSION: usize = 64 << 10;

/// What is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Object {
    Node,
    Lease,
}

impl Object {
    pub(super) const ALL: [Object; 2] = [Object::Node, Object::Lease];

    /// The label value.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Object::Node => "node",
            Object::Lease => "lease",
        }
    }

    /// The cheapest consistent enough read: `resourceVersion=0` is answered from the apiserver's cache and never
    /// reaches etcd.
    fn path(self, node: &str) -> String {
        match self {
            Object::Node => format!("/api/v1/nodes/{node}?resourceVersion=0"),
            Object::Lease => {
                format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{node}?resourceVersion=0")
            }
        }
    }

    fn permission(self) -> &'static str {
        match self {
            Object::Node => "a ClusterRole with verb get on nodes",
            Object::Lease => "a Role in kube-node-lease with verb get on leases of coordination.k8s.io",
        }
    }
}

/// Something that was read, and when.
#[derive(Clone, Debug)]
pub(super) struct Read<T> {
    pub(super) at: SystemTime,
    /// `None`: the apiserver says that there is none.
    pub(super) object: Option<T>,
}

/// What one scrape gets to see.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    pub(super) name: Option<String>,
    pub(super) node: Option<Read<NodeObject>>,
    pub(super) lease: Option<Read<Lease>>,
    pub(super) results: BTreeMap<(Object, Outcome), u64>,
    pub(super) retry_after: BTreeMap<Object, Duration>,
    pub(super) version: Option<ApiserverVersion>,
    pub(super) errors: Vec<Error>,
}

/// What is known of the apiserver's version, once it was asked.
#[derive(Clone, Debug)]
pub(super) enum ApiserverVersion {
    Known {
        version: Version,
        at: SystemTime,
    },
    /// Why not.
    Unknown(Error),
}

#[derive(Debug, Default)]
struct State {
    /// There is somebody to ask.
    in_use: bool,
    snapshot: Snapshot,
    failing: BTreeMap<Object, Error>,
    /// When the apiserver last said its version, or that it does not; `None`: the next read that goes well asks.
    version_asked: Option<Instant>,
    panics: Vec<Error>,
}

/// What the clocks share with the collector.
pub(super) struct Shared {
    apiserver: Apiserver,
    kubelet: Kubelet,
    pub(super) settings: Settings,
    state: Mutex<State>,
}

impl Shared {
    pub(super) fn new(apiserver: Apiserver, kubelet: Kubelet, settings: Settings) -> Self {
        Shared { apiserver, kubelet, settings, state: Mutex::default() }
    }

    /// There is somebody to ask.
    pub(super) fn begin(&self) {
        self.lock().in_use = true;
    }

    /// What is known; `None` if there is nobody to ask. What was read too long ago is not in it.
    pub(super) fn snapshot(&self) -> Option<Snapshot> {
        let mut state = self.lock();
        let mut snapshot = state.in_use.then(|| state.snapshot.clone())?;
        let now = SystemTime::now();
        let holds = |at: SystemTime, object| {
            now.duration_since(at).unwrap_or_default() < self.interval(object) * HOLDS + self.apiserver.timeout()
        };
        snapshot.node = snapshot.node.filter(|read| holds(read.at, Object::Node));
        snapshot.lease = snapshot.lease.filter(|read| holds(read.at, Object::Lease));
        snapshot.version = snapshot.version.filter(|version| match version {
            ApiserverVersion::Known { at, .. } => {
                now.duration_since(*at).unwrap_or_default() < VERSION_INTERVAL * HOLDS
            }
            ApiserverVersion::Unknown(_) => true,
        });
        // The same file of ours is missing to both.
        snapshot.errors = state.failing.values().cloned().collect();
        snapshot.errors.dedup();
        snapshot.errors.append(&mut state.panics);
        Some(snapshot)
    }

    fn interval(&self, object: Object) -> Duration {
        match object {
            Object::Node => self.settings.node_interval,
            Object::Lease => self.settings.lease_interval,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read(self: Arc<Self>, object: Object, host: Arc<Host>) {
        let Some(client) = self.apiserver.client(&host) else { return };
        self.begin();
        let interval = self.interval(object);
        let clock = Clock::of(interval);
        // The first read of both soon, so that a new exporter has something to tell; then each on its own clock. The
        // node object says by which kubelet's arithmetic the first scrape is made.
        let soon = match object {
            Object::Node => interval.min(Duration::from_secs(1)),
            Object::Lease => interval,
        };
        sleep_until(Clock::of(soon).tick(Instant::now())).await;
        loop {
            let asked = self.ask(object, &client, &host).await;
            let next = clock.next(asked.as_ref().ok());
            let answered = asked.as_ref().is_ok_and(|exchange| exchange.outcome == Outcome::Ok);
            self.note(object, asked);
            if object == Object::Node && answered && self.version_is_due() {
                self.note_version(client.get("/version", LARGEST_VERSION).await);
            }
            sleep_until(next).await;
        }
    }

    pub(super) fn version_is_due(&self) -> bool {
        self.lock().version_asked.is_none_or(|at| at.elapsed() >= VERSION_INTERVAL)
    }

    /// What came of the question for the version. It is no object of this node's: it is not counted, and that it cannot
    /// be had is no failure.
    pub(super) fn note_version(&self, asked: Result<Exchange>) {
        let mut state = self.lock();
        state.version_asked = Some(Instant::now());
        let version = asked.and_then(|exchange| match exchange.outcome {
            Outcome::Ok => objects::apiserver_version(&exchange.body),
            outcome => {
                // Who does not let us, or has no such path, says the same in a minute.
                if !matches!(outcome, Outcome::Unauthorized | Outcome::Unexpected) {
                    state.version_asked = None;
                }
                Err(exchange.error.unwrap_or_else(|| Error::malformed(outcome.as_str())))
            }
        });
        match version {
            Ok(version) => {
                state.snapshot.version = Some(ApiserverVersion::Known { version, at: SystemTime::now() });
            }
            // What it said before is still the best that is known.
            Err(_) if matches!(state.snapshot.version, Some(ApiserverVersion::Known { .. })) => {}
            Err(error) => state.snapshot.version = Some(ApiserverVersion::Unknown(error)),
        }
    }

    async fn ask(&self, object: Object, client: &Client, host: &Arc<Host>) -> Result<Exchange> {
        let name = self.kubelet.node_name(host).await?;
        let exchange = client.get(&object.path(&name), LARGEST).await?;
        self.lock().snapshot.name = Some(name);
        Ok(exchange)
    }

    pub(super) fn note(&self, object: Object, asked: Result<Exchange>) {
        let mut state = self.lock();
        let State { snapshot, failing, .. } = &mut *state;
        let result = asked.and_then(|exchange| {
            *snapshot.results.entry((object, exchange.outcome)).or_default() += 1;
            if let (Outcome::Throttled, Some(time)) = (exchange.outcome, exchange.retry_after) {
                snapshot.retry_after.insert(object, time);
            }
            let body = match (exchange.outcome, exchange.status) {
                (Outcome::Ok, _) => Some(exchange.body),
                (_, Some(404)) => None,
                _ => return Err(refusal(object, &exchange)),
            };
            let at = SystemTime::now();
            match object {
                Object::Node => {
                    let object = body.map(|body| NodeObject::parse(&body)).transpose()?;
                    if let Some(version) = object.as_ref().and_then(|node: &NodeObject| node.kubelet.clone()) {
                        self.kubelet.learn_version(version);
                    }
                    snapshot.node = Some(Read { at, object });
                }
                Object::Lease => {
                    let object = body.map(|body| Lease::parse(&body)).transpose()?;
                    snapshot.lease = Some(Read { at, object });
                }
            }
            Ok(())
        });
        match result {
            Ok(()) => drop(failing.remove(&object)),
            Err(error) => {
                // What was away may come back as another version; what refuses us is there and is the same.
                if error.reason() != Reason::Denied {
                    state.version_asked = None;
                }
                state.failing.insert(object, error);
            }
        }
    }
}

/// Why an object could not be had, in the words of somebody who must do something about it.
fn refusal(object: Object, exchange: &Exchange) -> Error {
    let name = object.as_str();
    let words = exchange.error.as_ref().map(ToString::to_string).unwrap_or_default();
    let reason = match exchange.outcome {
        Outcome::Unauthorized => {
            let text = format!("the {name} of this node: {words}; it needs {}", object.permission());
            return Error::new(Reason::Denied, text);
        }
        Outcome::Timeout => Reason::Timeout,
        Outcome::Throttled => Reason::Busy,
        Outcome::Unexpected => Reason::Malformed,
        _ => Reason::Io,
    };
    Error::new(reason, format!("the {name} of this node: {words}"))
}

/// One clock.
pub(super) struct Worker {
    object: Object,
    shared: Arc<Shared>,
}

impl Worker {
    /// One for each object.
    pub(super) fn all(shared: &Arc<Shared>) -> [Worker; 2] {
        Object::ALL.map(|object| Worker { object, shared: Arc::clone(shared) })
    }
}

impl Probe for Worker {
    fn name(&self) -> &'static str {
        self.object.as_str()
    }

    fn run(self: Arc<Self>, host: Arc<Host>) -> Work {
        Box::pin(Arc::clone(&self.shared).read(self.object, host))
    }

    fn panicked(&self, error: Error) {
        let panics = &mut self.shared.lock().panics;
        // Two clocks, one scrape: more than a few nobody reads.
        if panics.len() < 4 {
            panics.push(error);
        }
    }
}
