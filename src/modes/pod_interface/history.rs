//! What is remembered of each pod: which interfaces it had, which of them it has lost.
//!
//! A pod may be seen without interfaces in its first moment (dockershim and cri-dockerd start the pause container
//! first) and in its last (CRI-O and cri-dockerd take the network away before the pause container). Between them, all
//! the time that a container of its own runs, it has its network: kubelets start containers after the sandbox is
//! complete, and stop it after they are gone. So a pod that is [`Proof::Running`] is judged at once, and one in which
//! only the pause container is known to live after the grace period, in which nothing else was seen.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::host::iflink::LinkPeer;
use crate::host::netns::NetworkNamespace;

/// Names that are remembered of one pod. A pod with more makes them itself.
const MOST_NAMES: usize = 16;
/// How long it holds what a pod's interfaces sit on. That changes only if all of it is made anew between two looks.
const STACKED_FOR: Duration = Duration::from_secs(300);
/// How long a sandbox may take to have a sysfs of its own. One that has none by then is asked as seldom as the others:
/// some pods have the machine's for good.
const SETTLING: Duration = Duration::from_secs(60);
/// What the kernel puts into each new namespace while these tunnels' modules are loaded
/// (`net.core.fb_tunnels_only_for_init_net`), as on every node with Calico's IP-in-IP. Beside `lo`, they connect
/// nobody.
const FALLBACK: [&str; 11] = [
    "tunl0",
    "gre0",
    "gretap0",
    "erspan0",
    "sit0",
    "ip_vti0",
    "ip6tnl0",
    "ip6gre0",
    "ip6gretap0",
    "ip6erspan0",
    "ip6_vti0",
];
/// What programs inside a pod make and take away as they go: Docker in Docker, virtual machines, VPNs.
const PASSING: [&str; 13] =
    ["veth", "tap", "tun", "docker", "podman", "br-", "cni", "cali", "lxc", "virbr", "vnet", "wg", "ppp"];

/// What is known of whether a pod is past its beginning and before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// A container of its own ran before this look and after it.
    Running,
    /// Its sandbox lives; nothing else is known.
    Sandbox,
    /// The runtime says that its sandbox is none, not yet or not any more.
    Terminated,
}

/// One look at a pod with a network namespace of its own.
#[derive(Clone, Debug)]
pub(super) struct Look {
    pub(super) uid: Box<str>,
    /// Inode numbers of its containers' cgroups.
    pub(super) containers: Vec<u64>,
    pub(super) namespace: NetworkNamespace,
    /// `lo` and the like left out.
    pub(super) interfaces: BTreeSet<String>,
    pub(super) proof: Proof,
}

/// A pod that has none, or lost one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) uid: Box<str>,
    pub(super) interfaces: usize,
    pub(super) lost: Vec<String>,
}

/// From a sandbox's beginning to its end.
#[derive(Debug)]
struct Life {
    begun: Instant,
    namespace: NetworkNamespace,
    containers: Vec<u64>,
    /// Seen at least once.
    expected: BTreeSet<String>,
    /// Of these, missing and counted.
    lost: BTreeSet<String>,
    /// The first of the looks without a break at which it was incomplete.
    since: Option<Instant>,
    /// It was judged since then.
    judged: bool,
    /// What its interfaces sit on, once that was asked, and when.
    stacked: Option<(Instant, Vec<LinkPeer>)>,
}

/// Every pod of the last look.
#[derive(Debug, Default)]
pub(super) struct PodHistory {
    known: HashMap<Box<str>, Life>,
    /// Interfaces lost since the exporter started.
    pub(super) lost: u64,
}

/// Of a process's interfaces those that a pod is connected by.
pub(super) fn connecting(interfaces: Vec<String>) -> BTreeSet<String> {
    interfaces.into_iter().filter(|name| name != "lo" && !FALLBACK.contains(&name.as_str())).collect()
}

impl Life {
    /// The same sandbox still: numbers of namespaces are given again, and containers come and go, but not all of them
    /// at once.
    fn same_sandbox(&self, look: &Look) -> bool {
        self.namespace == look.namespace && self.containers.iter().any(|one| look.containers.contains(one))
    }
}

impl PodHistory {
    fn of(&self, look: &Look) -> Option<&Life> {
        self.known.get(&look.uid).filter(|life| life.same_sandbox(look))
    }

    /// True if the pod has no interface or lacks one that it had: then it is worth to find proof.
    pub(super) fn is_incomplete(&self, look: &Look) -> bool {
        look.interfaces.is_empty() || self.of(look).is_some_and(|life| !life.expected.is_subset(&look.interfaces))
    }

    /// Takes in what was seen `now`, and says what is amiss. `present` are the pods that there are, looked at or not;
    /// those that are gone are forgotten, unless the walk was cut short (`whole` is false).
    pub(super) fn update(
        &mut self,
        looks: &[Look],
        present: &HashSet<&str>,
        whole: bool,
        grace: Duration,
        now: Instant,
    ) -> Vec<Finding> {
        // A cut walk adds to what is known, but not for ever.
        if whole || self.known.len() > 2 * present.len() + looks.len() {
            self.known.retain(|uid, _| present.contains(&**uid));
        }
        looks.iter().filter_map(|look| self.judge(look, grace, now)).collect()
    }

    fn judge(&mut self, look: &Look, grace: Duration, now: Instant) -> Option<Finding> {
        let incomplete = self.is_incomplete(look);
        let old = self.known.remove(&look.uid).filter(|life| life.same_sandbox(look));
        let mut life = old.unwrap_or_else(|| Life {
            begun: now,
            namespace: look.namespace,
            containers: Vec::new(),
            expected: BTreeSet::new(),
            lost: BTreeSet::new(),
            since: None,
            judged: false,
            stacked: None,
        });
        life.containers.clone_from(&look.containers);
        for name in &look.interfaces {
            if life.expected.len() < MOST_NAMES && !PASSING.iter().any(|prefix| name.starts_with(prefix)) {
                life.expected.insert(name.clone());
            }
        }
        let mut finding = None;
        if incomplete && look.proof != Proof::Terminated {
            let since = *life.since.get_or_insert(now);
            // What it sat on is asked again once it is complete.
            life.stacked = None;
            life.judged |= look.proof == Proof::Running || now.duration_since(since) >= grace;
            if life.judged {
                let missing: BTreeSet<String> = life.expected.difference(&look.interfaces).cloned().collect();
                self.lost += missing.difference(&life.lost).count() as u64;
                let lost = missing.iter().cloned().collect();
                life.lost = missing;
                finding = Some(Finding { uid: look.uid.clone(), interfaces: look.interfaces.len(), lost });
            }
        } else {
            (life.since, life.judged) = (None, false);
            if !incomplete {
                life.lost.clear();
            }
        }
        self.known.insert(look.uid.clone(), life);
        finding
    }

    /// True if it is complete, and what its interfaces sit on was not asked for some time.
    pub(super) fn wants_stacked(&self, uid: &str, now: Instant) -> bool {
        let old = |asked: Instant| now.duration_since(asked) >= STACKED_FOR;
        self.known
            .get(uid)
            .is_some_and(|life| life.since.is_none() && life.stacked.as_ref().is_none_or(|(asked, _)| old(*asked)))
    }

    /// Remembers what a pod's interfaces sit on.
    pub(super) fn set_stacked(&mut self, uid: &str, stacked: Vec<LinkPeer>, now: Instant) {
        if let Some(life) = self.known.get_mut(uid) {
            life.stacked = Some((now, stacked));
        }
    }

    /// A pod could not be asked what its interfaces sit on: its process is not in its own file system, yet or ever.
    /// What it said before holds.
    pub(super) fn set_unsettled(&mut self, uid: &str, now: Instant) {
        let settled = |life: &&mut Life| now.duration_since(life.begun) >= SETTLING;
        let silent = |life: &&mut Life| life.stacked.as_ref().is_none_or(|(_, stacked)| stacked.is_empty());
        if let Some(life) = self.known.get_mut(uid).filter(settled).filter(silent) {
            life.stacked = Some((now, Vec::new()));
        }
    }

    /// What the interfaces of all pods sit on, as far as it is known.
    pub(super) fn stacked(&self) -> impl Iterator<Item = &LinkPeer> {
        self.known.values().filter_map(|life| life.stacked.as_ref()).flat_map(|(_, stacked)| stacked)
    }
}
