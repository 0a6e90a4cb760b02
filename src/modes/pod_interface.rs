//! A pod's network interface vanished, and the pod is Running and Ready.
//!
//! **What fails.** A NIC is made anew (a driver upgrade, a reset, a bond taken apart): with it go the VLAN interfaces
//! on it and the macvlan and ipvlan interfaces on those, inside pods too. Or something deletes one end of a pod's veth
//! pair, which takes the other with it. The pod keeps its address in the API, stays Running and Ready and gets no
//! event; it has `lo` and nothing else. `/stats/summary` then names its network "".
//!
//! **Evidence.** Inside: `/proc/PID/net/dev` of one process per pod, found through the pod's cgroups
//! ([`crate::kubelet::kubepods`]), says which network namespace that is and which interfaces it has
//! ([`crate::host::netns`]). Outside: one rtnetlink dump of the machine's interfaces ([`crate::host::links`]). What the
//! interfaces of pods sit on is asked of the sysfs in the container, where there is one, once in five minutes
//! ([`crate::host::iflink`]): a best effort.
//!
//! **Which pods count.** Those with a network namespace of their own. Never one that is starting or ending:
//! `pod_interface/lives.rs` tells how that is known. For that, and for names, the runtime is asked only when a pod
//! looks incomplete. A sandbox made anew is a new life: what the old one had is forgotten.
//!
//! **What one needs.** Nothing for the interfaces of pods and of the machine (tried on 6.18 as uid 65534 without a
//! capability), but to be in the machine's pid namespace (hostPID) and, for the machine's interfaces, in its network
//! namespace (hostNetwork). `CAP_SYS_PTRACE` for what the interfaces of pods sit on; without it outcome `failed`,
//! reason denied, and parents are known only of what is stacked on the machine itself. A procfs with `hidepid` denies
//! all of the first.
//!
//! **When it misleads.** What is deleted on purpose (a VLAN taken out of service, a hot-plugged interface, a device
//! moved into a pod) looks the same as what was lost; a lost interface of the machine is told until it is back or the
//! exporter restarts. Names are all that is remembered: one that was renamed was lost. Made anew under the same name
//! between two scrapes, an interface of a pod was never gone; one of the machine is counted. Interfaces that a pod
//! makes for itself (`docker0`, `tun0`, …) count as interfaces, so a pod that is left with these alone is not
//! "without", but what it lost is told. Virtual-machine runtimes whose processes are in no container's cgroup are not
//! looked at, nor are pods whose cgroups are outside kubepods.

mod history;
mod parents;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Collector, Context, Mode, Utilization, alerts, is_whole};
use crate::error::{Error, Reason, Result};
use crate::host::Host;
use crate::host::cgroup::Layout;
use crate::host::netns::NetworkNamespace;
use crate::humanize::grouped;
use crate::kubelet::kubepods::{Kubepods, Pod};
use crate::metric::{DroppedPod, Metric, Samples, Unit};
use crate::runtime::{ContainerState, Inventory, Names, Runtime};
use crate::services::Services;
use crate::values::{at_least_one, defaults, duration_flag};
use history::{Finding, Look, PodHistory, Proof, connecting};
use parents::Parents;

/// Looked at.
pub static PODS: Metric = Metric::gauge(
    "headroom_pods_with_network_namespace",
    Unit::None,
    &[],
    "Pods with their own network namespace (not hostNetwork) whose interfaces were read in this scrape.\n\n\
     Missing on a machine without kubepods. The other series of pod_interface are about these pods.",
);
/// None left.
pub static WITHOUT: Metric = Metric::gauge(
    "headroom_pods_without_network_interface",
    Unit::None,
    &[],
    "Pods of headroom_pods_with_network_namespace that have no interface but lo (/proc/PID/net/dev).\n\n\
     The idle tunnels that the kernel puts into every namespace do not count as interfaces. A pod in which only the \
     pause container runs counts after the grace period; one that starts or ends never does.",
);
/// Of the afflicted.
pub static INTERFACES: Metric = Metric::gauge(
    "headroom_pod_network_interfaces",
    Unit::None,
    &["namespace", "pod", "pod_uid"],
    "Interfaces but lo of a pod that has none or lost one; there is no series for any other pod. Names are missing if \
     the runtime does not know the pod.",
);
/// By name.
pub static LOST: Metric = Metric::gauge(
    "headroom_pod_network_interface_lost",
    Unit::None,
    &["namespace", "pod", "pod_uid", "interface"],
    "1 while a pod lacks an interface that it had at an earlier scrape. The series ends when the interface is back or \
     the sandbox is made again.\n\n\
     An interface that was removed on purpose looks the same. Interfaces named as programs in a pod name their own \
     (veth, tun, docker, ...) are not watched.",
);
/// Ever.
pub static LOST_TOTAL: Metric = Metric::counter(
    "headroom_network_interfaces_lost_total",
    &["scope"],
    "Interfaces that were seen and then missed since the exporter started: scope pod (of a running pod) or host.\n\n\
     host: VLANs, bonds, bond members and parents of VLAN, macvlan and ipvlan interfaces, also those replaced by \
     another of the same name. A VLAN on which nothing stands does not count, as some network plugins make one for \
     each pod, unless its parent is lost or down as well.",
);
/// Of the machine.
pub static PARENT_UP: Metric = Metric::gauge(
    "headroom_host_parent_interface_up",
    Unit::None,
    &["device", "kind"],
    "1 if a host interface that carries others can carry packets (IFF_RUNNING), 0 if it is down or vanished since it \
     was seen.\n\n\
     0 lasts until the interface is back. kind: vlan, bond, bond_member, vlan_parent, macvlan_parent, ipvlan_parent. \
     Parents of interfaces inside pods as far as the pod's own sysfs tells.",
);

/// This mode.
pub static MODE: Mode = Mode {
    id: "pod_interface",
    title: "a pod's network interface, or what it sits on, vanishes",
    happened: "the network interface of a running pod vanishes",
    alerts: alerts!("pod_interface"),
    metrics: &[&PODS, &WITHOUT, &INTERFACES, &LOST, &LOST_TOTAL, &PARENT_UP],
    utilization: Some(Utilization {
        used: "headroom_pods_without_network_interface",
        limit: "headroom_pods_with_network_namespace > 0",
        slope: None,
        text: |pods| format!("{} of {} pods have no network interface", grouped(pods.used), grouped(pods.limit)),
    }),
    keeps: Some("which interfaces each pod and the machine had"),
    needs_runtime: true,
    build: |settings, services| Box::new(PodInterface::new(settings.pod_interface.clone(), services)),
};

/// Settings of this mode.
#[derive(clap::Args, Clone, Debug, PartialEq, Eq)]
#[group(skip)]
#[command(next_help_heading = "Collector pod_interface")]
pub struct Settings {
    /// Pods whose interfaces are read in one scrape at the most
    #[arg(long = "collector.pod_interface.max-pods", value_name = "N", default_value_t = 500, value_parser = at_least_one)]
    pub max_pods: usize,
    /// How long a pod must lack an interface before that counts, if only its pause container is known to run; and how
    /// long the machine must have had an interface before its loss counts
    #[arg(long = "collector.pod_interface.grace", value_name = "DURATION", default_value = "10s", value_parser = duration_flag)]
    pub grace: Duration,
    /// Interfaces of the machine that are not watched: a regular expression, as node_exporter takes it
    #[arg(long = "collector.pod_interface.device-exclude", value_name = "REGEX", value_parser = pattern)]
    pub device_exclude: Option<String>,
}

fn pattern(text: &str) -> std::result::Result<String, String> {
    regex::Regex::new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

impl Default for Settings {
    fn default() -> Self {
        defaults()
    }
}

/// How long the runtime may take.
const RUNTIME: Duration = Duration::from_secs(5);
/// How long the machine's interfaces, and those that pods sit on, may take.
const INTERFACES_OF_MACHINE: Duration = Duration::from_secs(2);
/// Pods that are shown by name. At 110 pods to a node, all of them.
const MOST_PODS_SHOWN: usize = 120;

/// The collector; between scrapes it remembers what each pod and the machine had.
#[derive(Debug)]
pub struct PodInterface {
    settings: Settings,
    kubepods: Kubepods,
    runtime: Runtime,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    lives: PodHistory,
    parents: Parents,
}

impl PodInterface {
    /// A collector that has seen nothing yet.
    pub fn new(settings: Settings, services: &Services) -> Self {
        let (kubepods, runtime) = (services.kubepods.clone(), services.runtime.clone());
        let exclude = settings.device_exclude.as_deref().and_then(|pattern| regex::Regex::new(pattern).ok());
        let memory = Memory { parents: Parents::without(exclude), ..Memory::default() };
        PodInterface { settings, kubepods, runtime, memory: Mutex::new(memory) }
    }
}

impl Collector for PodInterface {
    fn collect(&self, context: Context<'_>) -> Result<Samples> {
        let mut samples = Samples::new();
        let memory = &mut *self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        // The cgroup of a pod shows no process of another process namespace, as if its containers had ended.
        let visible = samples.ok(context.host.require_host_pid()).is_some();
        let found = if visible { self.find(context, &mut samples) } else { None };
        if let Some(found) = &found {
            self.pods(context, found, &mut memory.lives, &mut samples);
        }
        let links = context.host.links(context.deadline.part(INTERFACES_OF_MACHINE));
        let absent = links.as_ref().is_err_and(|error| error.reason() == Reason::Absent);
        if found.is_none() && absent && samples.errors().is_empty() {
            return Err(Error::absent("neither kubepods nor interfaces of the machine"));
        }
        if !absent && let Some(links) = samples.ok(links) {
            let (lives, now) = (&memory.lives, Instant::now());
            let claimed = parents::claimed(&links, lives.stacked());
            let taken = if claimed.is_empty() {
                Some(parents::Taken::new())
            } else {
                samples.ok(context.host.taken_addresses(claimed, context.deadline.part(INTERFACES_OF_MACHINE)))
            };
            let grace = self.settings.grace;
            let (states, dropped) = memory.parents.update(&links, lives.stacked(), taken.as_ref(), grace, now);
            samples.drop_count(dropped);
            for (device, kind, up) in states {
                samples.push(&PARENT_UP, &[&device, kind], f64::from(up));
            }
        }
        samples.push_some(&LOST_TOTAL, &["host"], memory.parents.lost.map(|lost| lost as f64));
        Ok(samples)
    }
}

/// The pods with a process.
struct Found {
    pods: Vec<Pod>,
    /// Every pod is there: the walk was not cut short.
    whole: bool,
}

/// A look, with where it came from.
struct Subject<'a> {
    pod: &'a Pod,
    /// The container through whose process it was looked at.
    through: usize,
    look: Look,
}

impl PodInterface {
    /// Looks for pods; `None` on a machine without kubepods.
    fn find(&self, context: Context<'_>, samples: &mut Samples) -> Option<Found> {
        let look = samples.ok(self.kubepods.look(context.host, context.deadline, context.began))?.value;
        samples.ok(Layout::found(context.host, look.layout.clone()))??;
        let walk = look.walk.as_ref()?;
        let whole = is_whole(walk, samples);
        if let Some(error) = &walk.tree.unread.processes {
            samples.fail(error.clone());
        }
        (walk.tree.roots > 0).then(|| Found { pods: walk.tree.running_pods(), whole })
    }

    fn pods(&self, context: Context<'_>, found: &Found, lives: &mut PodHistory, samples: &mut Samples) {
        let host = context.host;
        let Some(machine) = samples.ok(host.network_namespace_of(1)) else { return };
        let now = Instant::now();
        let mut subjects = self.look(context, found, machine, samples);
        let looked = Instant::now();

        let mut unproven = Vec::new();
        let mut afflicted = false;
        for (index, subject) in
            subjects.iter_mut().enumerate().filter(|(_, subject)| lives.is_incomplete(&subject.look))
        {
            afflicted = true;
            if !subject.second_witness(host, machine) {
                unproven.push(index);
            }
        }
        // Names from any answer; proof only from one that is younger than the look.
        let deadline = context.deadline.part(RUNTIME);
        let inventory = match (afflicted, unproven.is_empty()) {
            (false, _) => None,
            (true, true) => Some(self.runtime.inventory(host, deadline)),
            (true, false) => Some(self.runtime.inventory_since(host, deadline, looked)),
        };
        let inventory: Option<Arc<Inventory>> = match inventory {
            Some(Err(error)) if error.reason() != Reason::Absent => samples.ok(Err(error)),
            other => other.and_then(Result::ok),
        };
        if let Some(inventory) = &inventory {
            unproven.into_iter().for_each(|index| subjects[index].ask(inventory, host, machine));
        }

        let looks: Vec<Look> = subjects.into_iter().map(|subject| subject.look).collect();
        let present: HashSet<&str> = found.pods.iter().map(|pod| &*pod.uid).collect();
        let findings = lives.update(&looks, &present, found.whole, self.settings.grace, now);
        samples.push(&PODS, &[], looks.len() as f64);
        samples.push(&WITHOUT, &[], findings.iter().filter(|finding| finding.interfaces == 0).count() as f64);
        samples.push(&LOST_TOTAL, &["pod"], lives.lost as f64);
        let uids = findings.iter().take(MOST_PODS_SHOWN).map(|finding| &*finding.uid).collect();
        // An error of the runtime's is told above: it is asked wherever there is a finding.
        let names = self.runtime.names(host, deadline, &uids, &HashSet::new());
        show(&findings, &names, samples);
        ask_below(context, found, &looks, lives, now, samples);
    }

    /// Looks at each pod that has a namespace of its own, through the first of its processes that is still there.
    fn look<'a>(
        &self,
        context: Context<'_>,
        found: &'a Found,
        machine: NetworkNamespace,
        samples: &mut Samples,
    ) -> Vec<Subject<'a>> {
        let mut subjects = Vec::new();
        let mut unread = None;
        for (done, pod) in found.pods.iter().enumerate() {
            let left = found.pods.len() - done;
            if done >= self.settings.max_pods {
                samples.drop_count(left as u64);
                break;
            }
            if context.deadline.expired() {
                let what =
                    format!("interfaces of {left} of {} pods were not read before the deadline", found.pods.len());
                samples.fail(Error::new(Reason::Timeout, what));
                break;
            }
            for (through, container) in pod.containers.iter().enumerate() {
                match context.host.network_outside(machine, container.pid) {
                    Ok(Some(network)) => {
                        let look = Look {
                            uid: pod.uid.as_str().into(),
                            containers: pod.containers.iter().map(|container| container.inode).collect(),
                            namespace: network.namespace,
                            interfaces: connecting(network.interfaces),
                            proof: Proof::Sandbox,
                        };
                        subjects.push(Subject { pod, through, look });
                        break;
                    }
                    Ok(None) => break,
                    Err(error) if error.is_gone() => {}
                    // One that has interfaces without end.
                    Err(error) if error.reason() == Reason::Malformed => {
                        samples.drop_of_pods([(pod_of(&pod.uid), 1)]);
                        break;
                    }
                    Err(error) => {
                        unread.get_or_insert(error);
                        break;
                    }
                }
            }
        }
        if let Some(error) = unread {
            samples.fail(error);
        }
        subjects
    }
}

impl Subject<'_> {
    /// Looks again, through another process. False if it is gone, or elsewhere.
    fn again(&mut self, host: &Host, machine: NetworkNamespace, pid: u32) -> bool {
        match host.network_outside(machine, pid) {
            Ok(Some(network)) if network.namespace == self.look.namespace => {
                self.look.interfaces.extend(connecting(network.interfaces));
                true
            }
            _ => false,
        }
    }

    /// A second container of the pod that ran before the first look, and still does: one of the two is not the pause
    /// container.
    fn second_witness(&mut self, host: &Host, machine: NetworkNamespace) -> bool {
        let pod = self.pod;
        let others = pod.containers.iter().enumerate().filter(|(index, _)| *index != self.through);
        let others: Vec<u32> = others.map(|(_, container)| container.pid).collect();
        let seen = others.into_iter().any(|pid| self.again(host, machine, pid));
        if seen {
            self.look.proof = Proof::Running;
        }
        seen
    }

    /// What the runtime says, who was asked after the first look.
    fn ask(&mut self, inventory: &Inventory, host: &Host, machine: NetworkNamespace) {
        let through = &self.pod.containers[self.through];
        let running = |state| state == ContainerState::Running;
        self.look.proof = if inventory.containers.iter().any(|one| *one.id == *through.id && running(one.state)) {
            if self.again(host, machine, through.pid) { Proof::Running } else { Proof::Terminated }
        } else {
            let mut sandboxes = inventory.sandboxes.iter().filter(|one| one.pod.uid == *self.pod.uid);
            let ready = match inventory.sandboxes.iter().find(|one| *one.id == *through.id) {
                Some(sandbox) => sandbox.ready,
                None => sandboxes.any(|sandbox| sandbox.ready),
            };
            if ready { Proof::Sandbox } else { Proof::Terminated }
        };
    }
}

/// The pods that are afflicted, by name where anybody knows it.
fn show(findings: &[Finding], names: &Names, samples: &mut Samples) {
    for finding in findings.iter().take(MOST_PODS_SHOWN).filter(|finding| !names.awaits(&finding.uid)) {
        let pod = names.pod(&finding.uid).cloned().unwrap_or_default();
        samples.push(&INTERFACES, &[&pod.namespace, &pod.name, &finding.uid], finding.interfaces as f64);
        for interface in &finding.lost {
            samples.push(&LOST, &[&pod.namespace, &pod.name, &finding.uid, interface], 1.0);
        }
    }
    samples.drop_count(findings.len().saturating_sub(MOST_PODS_SHOWN) as u64);
}

fn pod_of(uid: &str) -> DroppedPod {
    DroppedPod { uid: uid.to_owned(), ..DroppedPod::default() }
}

/// Finds out what the interfaces of pods sit on, of those of which it is not known.
fn ask_below(
    context: Context<'_>,
    found: &Found,
    looks: &[Look],
    lives: &mut PodHistory,
    now: Instant,
    samples: &mut Samples,
) {
    let wanted: HashSet<&str> =
        looks.iter().map(|look| &*look.uid).filter(|uid| lives.wants_stacked(uid, now)).collect();
    // The youngest container: the pause container's root may be bare.
    let processes = found.pods.iter().filter(|pod| wanted.contains(&*pod.uid));
    let processes: Vec<(&str, u32)> =
        processes.filter_map(|pod| Some((&*pod.uid, pod.containers.last()?.pid))).collect();
    if processes.is_empty() {
        return;
    }
    let pids: Vec<u32> = processes.iter().map(|(_, pid)| *pid).collect();
    let answers = context.host.iflinks(&pids, context.deadline.part(INTERFACES_OF_MACHINE));
    let mut refused = None;
    for ((uid, _), answer) in processes.into_iter().zip(answers) {
        match answer {
            Ok(stacked) => lives.set_stacked(uid, stacked, now),
            Err(error) if error.reason() == Reason::Vanished => lives.set_unsettled(uid, now),
            // It exited: the pod's next process is asked.
            Err(error) if error.is_gone() => {}
            Err(error) if error.reason() == Reason::Denied => {
                refused.get_or_insert(error);
            }
            // What a pod has at /sys is its own affair. One that keeps us waiting is not asked again for some time.
            Err(error) => {
                if error.reason() == Reason::Timeout {
                    lives.set_stacked(uid, Vec::new(), now);
                }
                samples.drop_of_pods([(pod_of(uid), 1)]);
            }
        }
    }
    if let Some(error) = refused {
        samples.fail(error.context("what the interfaces of pods sit on"));
    }
}
