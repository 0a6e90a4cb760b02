//! What pods and containers are called, for those who know them by an id of their cgroup.
//!
//! A name belongs to its id for life: neither is ever given again. So what the runtime once said holds while it is away
//! and after it has forgotten the pod, and a counter keeps its labels. A pod that the runtime never named to us may
//! have a directory of logs, `<namespace>_<name>_<uid>` (`pkg/kubelet/kuberuntime/helpers.go` BuildPodLogsDirectory):
//! the kubelet makes it before the first sandbox, as root, and removes it after the last.
//!
//! An id without any name is new or a left-over. Where a runtime answers, or did, it is awaited for a minute, in which
//! its series are better held back than shown under no name and then again under theirs.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Inventory, Pod, Runtime};
use crate::error::{Error, Reason};
use crate::host::{Deadline, Host};
use crate::kubelet::configuration::DEFAULT_POD_LOGS_DIR;

/// How long an id may be without a name before it is taken for a left-over.
const AWAITED: Duration = Duration::from_secs(60);

/// Ids that the runtime has forgotten and we have not; more than a node has of pods and containers that end in an hour.
const MOST_REMEMBERED: usize = 4_096;

/// The names of some pods and containers.
#[derive(Clone, Debug, Default)]
pub struct Names {
    pods: HashMap<String, Pod>,
    containers: HashMap<String, (Pod, String)>,
    awaited: HashSet<String>,
    /// Why some have none.
    pub error: Option<Error>,
}

impl Names {
    /// The pod of this uid.
    pub fn pod(&self, uid: &str) -> Option<&Pod> {
        self.pods.get(uid)
    }

    /// The pod and the name of the container of this id; of a sandbox the name is empty.
    pub fn container(&self, id: &str) -> Option<(&Pod, &str)> {
        self.containers.get(id).map(|(pod, name)| (pod, name.as_str()))
    }

    /// True of an id so new that its name may still come.
    pub fn awaits(&self, id: &str) -> bool {
        self.awaited.contains(id)
    }
}

/// What outlives a scrape.
#[derive(Debug)]
pub(super) struct Memory {
    /// [`AWAITED`]
    pub(super) awaited: Duration,
    /// The last answer, which is not taken in twice.
    last: Option<Arc<Inventory>>,
    answers: u64,
    /// With the last answer that had it.
    pods: HashMap<String, (Pod, u64)>,
    containers: HashMap<String, ((Pod, String), u64)>,
    /// Since when nobody could name them.
    unnamed: HashMap<String, Instant>,
}

impl Default for Memory {
    fn default() -> Self {
        Memory {
            awaited: AWAITED,
            last: None,
            answers: 0,
            pods: HashMap::new(),
            containers: HashMap::new(),
            unnamed: HashMap::new(),
        }
    }
}

impl Memory {
    pub(super) fn note(&mut self, inventory: &Arc<Inventory>) {
        if self.last.as_ref().is_some_and(|last| Arc::ptr_eq(last, inventory)) {
            return;
        }
        self.last = Some(Arc::clone(inventory));
        self.answers += 1;
        let named = inventory.containers.iter().map(|one| (&one.id, &one.pod, one.name.as_str()));
        for (id, pod, name) in named.chain(inventory.sandboxes.iter().map(|one| (&one.id, &one.pod, ""))) {
            if !pod.uid.is_empty() {
                self.pods.insert(pod.uid.clone(), (pod.clone(), self.answers));
            }
            self.containers.insert(id.clone(), ((pod.clone(), name.to_owned()), self.answers));
        }
        forget(&mut self.pods, self.answers);
        forget(&mut self.containers, self.answers);
    }
}

/// The oldest of those that the last answer no longer had, so that no more than a bounded number stay.
fn forget<T>(known: &mut HashMap<String, (T, u64)>, answers: u64) {
    let mut departed: Vec<u64> = known.values().map(|(_, at)| *at).filter(|at| *at < answers).collect();
    if departed.len() > MOST_REMEMBERED {
        departed.sort_unstable();
        let oldest = departed[departed.len() - MOST_REMEMBERED / 2];
        known.retain(|_, (_, at)| *at >= oldest);
    }
}

impl Runtime {
    /// What the pods of these uids and the containers of these ids are called. Blocks, so not from asynchronous code.
    pub fn names(&self, host: &Host, deadline: Deadline, uids: &HashSet<&str>, containers: &HashSet<&str>) -> Names {
        let mut names = Names::default();
        if uids.is_empty() && containers.is_empty() {
            return names;
        }
        let answer = self.inventory(host, deadline);
        let mut memory = self.memory();
        for uid in uids {
            names.pods.extend(memory.pods.get(*uid).map(|(pod, _)| ((*uid).to_owned(), pod.clone())));
        }
        for id in containers {
            names.containers.extend(memory.containers.get(*id).map(|(named, _)| ((*id).to_owned(), named.clone())));
        }
        drop(memory);
        let nameless = |names: &Names| uids.iter().filter(|uid| names.pod(uid).is_none()).count();
        if nameless(&names) > 0 {
            let logs = self.pods_with_logs(host, deadline);
            names.pods.extend(logs.into_iter().filter(|(uid, _)| uids.contains(uid.as_str())));
        }
        memory = self.memory();
        let now = Instant::now();
        let may_be_named = memory.last.is_some();
        let without: HashSet<&str> = uids
            .iter()
            .filter(|uid| names.pod(uid).is_none())
            .chain(containers.iter().filter(|id| names.container(id).is_none()))
            .copied()
            .collect();
        for id in without {
            let since = *memory.unnamed.entry(id.to_owned()).or_insert(now);
            if may_be_named && now.duration_since(since) < memory.awaited {
                names.awaited.insert(id.to_owned());
            }
        }
        if memory.unnamed.len() > MOST_REMEMBERED {
            let awaited = memory.awaited;
            memory.unnamed.retain(|_, since| now.duration_since(*since) < awaited);
        }
        names.error = answer.err().filter(|error| error.reason() != Reason::Absent && nameless(&names) > 0);
        names
    }

    pub(super) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// By the kubelet's directories of logs. What cannot be read names nobody.
    fn pods_with_logs(&self, host: &Host, deadline: Deadline) -> HashMap<String, Pod> {
        let told = self.shared.as_ref().and_then(|shared| {
            let look = shared.look_at_kubelet(host, deadline)?;
            Some(PathBuf::from(&look.effective(host, deadline).configuration.as_ref()?.0.pod_logs_dir))
        });
        let dir = told.unwrap_or_else(|| DEFAULT_POD_LOGS_DIR.into());
        let tree = host.tree();
        let listed = host.bounded("the kubelet's directories of logs", deadline, move || tree.list(&dir));
        let pods = listed.unwrap_or_default().into_iter().filter_map(|(name, _)| of_logs(name.to_str()?));
        pods.map(|pod| (pod.uid.clone(), pod)).collect()
    }
}

/// `<namespace>_<name>_<uid>`: none of the three can have a `_` in it.
fn of_logs(directory: &str) -> Option<Pod> {
    let mut parts = directory.split('_').map(str::to_owned);
    let pod = Pod { namespace: parts.next()?, name: parts.next()?, uid: parts.next()? };
    (parts.next().is_none() && !pod.uid.is_empty()).then_some(pod)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::error::Result;
    use crate::host::Roots;
    use crate::runtime::{Identity, Protocol, Sandbox, SandboxNetwork};

    fn pod(uid: &str) -> Pod {
        Pod { namespace: "ns".into(), name: format!("pod-{uid}"), uid: uid.into() }
    }

    fn inventory(uids: &[&str]) -> Inventory {
        let identity = Identity {
            protocol: Protocol::Cri,
            name: "containerd".into(),
            version: "2".into(),
            endpoint: "unix:///x".into(),
        };
        let sandbox = |uid: &&str| Sandbox {
            id: format!("sandbox-{uid}"),
            ready: true,
            pod: pod(uid),
            network: SandboxNetwork::default(),
        };
        Inventory {
            identity,
            containers: Vec::new(),
            sandboxes: uids.iter().map(sandbox).collect(),
            images: None,
            image_filesystems: Vec::new(),
            container_filesystem: None,
            errors: Vec::new(),
        }
    }

    /// A runtime that answers what is put into its slot.
    fn runtime() -> (Runtime, Arc<Mutex<Result<Arc<Inventory>>>>) {
        let slot = Arc::new(Mutex::new(Err(Error::absent("none"))));
        let answer = Arc::clone(&slot);
        (Runtime::answering(move || answer.lock().unwrap().clone()), slot)
    }

    fn host() -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(Roots { root: dir.path().into(), ..Roots::default() });
        (dir, host)
    }

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(5))
    }

    #[test]
    fn a_name_outlives_the_runtimes_knowledge_of_it() {
        let (_dir, host) = host();
        let (runtime, slot) = runtime();
        let ask = || runtime.names(&host, soon(), &HashSet::from(["a"]), &HashSet::from(["sandbox-a"]));
        *slot.lock().unwrap() = Ok(Arc::new(inventory(&["a", "b"])));
        assert_eq!(ask().pod("a"), Some(&pod("a")));
        let away = || Err(Error::new(Reason::Io, "no such luck"));
        for answer in [away(), Ok(Arc::new(inventory(&["b"]))), Err(Error::absent("its socket is gone"))] {
            *slot.lock().unwrap() = answer;
            let names = ask();
            assert_eq!((names.pod("a"), names.container("sandbox-a")), (Some(&pod("a")), Some((&pod("a"), ""))));
            assert_eq!(names.error, None, "everybody has a name");
        }
    }

    #[test]
    fn a_new_id_is_awaited_where_somebody_could_name_it() {
        let (_dir, host) = host();
        let (runtime, slot) = runtime();
        let ask = |uid| runtime.names(&host, soon(), &HashSet::from([uid]), &HashSet::new());
        assert!(!ask("a").awaits("a"), "without a runtime nobody will");
        *slot.lock().unwrap() = Ok(Arc::new(inventory(&[])));
        assert!(ask("a").awaits("a") && ask("a").pod("a").is_none());
        *slot.lock().unwrap() = Err(Error::new(Reason::Timeout, "late"));
        assert!(ask("a").awaits("a") && ask("a").error.is_some());
        runtime.memory().awaited = Duration::ZERO;
        assert!(!ask("a").awaits("a"), "a left-over");
    }

    #[test]
    fn the_kubelets_directories_of_logs_name_pods_too() {
        let (dir, host) = host();
        let (runtime, slot) = runtime();
        for name in ["kube-system_etcd-node-1_0a1b", "x_y", "_y_", "a_b_c_d"] {
            std::fs::create_dir_all(dir.path().join("var/log/pods").join(name)).unwrap();
        }
        *slot.lock().unwrap() = Err(Error::new(Reason::Io, "the runtime is being restarted"));
        let names = runtime.names(&host, soon(), &HashSet::from(["0a1b", "c"]), &HashSet::new());
        let etcd = Pod { namespace: "kube-system".into(), name: "etcd-node-1".into(), uid: "0a1b".into() };
        assert_eq!((names.pod("0a1b"), names.pod("c")), (Some(&etcd), None));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut memory = Memory::default();
        for round in 0..3 * MOST_REMEMBERED {
            memory.note(&Arc::new(inventory(&[&round.to_string()])));
        }
        assert!(memory.pods.len() <= MOST_REMEMBERED + 1 && memory.containers.len() <= MOST_REMEMBERED + 1);
        assert!(memory.pods.contains_key(&(3 * MOST_REMEMBERED - 2).to_string()), "the youngest stay");
    }
}
