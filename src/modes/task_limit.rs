//! Processes and threads run out in a cgroup, or kernel keys of a user, while the machine has plenty.
//!
//! **What fails.** `fork` and `clone` answer `EAGAIN` ("Resource temporarily unavailable", "cannot allocate new
//! thread") once a cgroup, or one above it, has as many tasks as its `pids.max`. A runtime at the `TasksMax` of its
//! unit starts no container, a kubelet there dies of "failed to create new OS thread", an sshd there lets nobody in;
//! and the signal `pid.available`, which is of the machine, is far from any threshold. Pods meet the same by
//! `podPidsLimit`, by what the kubelet leaves for all of them (`pids.max` of kubepods), and by what systemd gives to
//! each container's scope (15 % of the machine unless told otherwise). Kernel keys are alike: runc joins a new session
//! keyring for each container, and a user at its quota gets "disk quota exceeded" with no disk full.
//!
//! **Evidence.** `pids.current`, `pids.max` (Linux 4.3) and `pids.events` (4.8) of kubepods, its QoS directories, each
//! pod, and the cgroups that the kubelet, the container runtime and sshd are in, in the one hierarchy that has the
//! `pids` controller. A limit above binds too: what a cgroup may have is what it has, and the least that is left in it
//! or in one above it. Of a pod, what is left in one of its containers counts as well. The kubelet is the one that was
//! verified, the runtime is the process that listens at the socket that answers (`SO_PEERCRED`), and sshd is what is in
//! `ssh.service` or `sshd.service` of `system.slice`, where only root can make anything. `/proc/key-users`.
//!
//! **How refused forks are counted** differs by kernel ([`crate::host::cgroup::tasks`] has it, with what was seen).
//! Since 6.11 on cgroup2 a cgroup's own file counts what its limit, or one below, has refused: of a pod it outlives its
//! containers, and while that of kubepods stands still no pod's is read. Before, and on v1, a fork counts in the cgroup
//! that it was tried in, whichever limit it met: the counts of a pod's cgroups are added up here and stay when a
//! container goes, as long as the pod is there. They are read each time of pods that have half of what they may have,
//! of the others in turn (one in eight each time): a later count is no lost one, but what a container counted between
//! its last turn and its end is. There, forks in a pod that met kubepods' own limit count in that pod, and kubepods has
//! no count.
//!
//! **Limits** of pods and containers are set when these are made. They are read when first seen, each time of those
//! that are near, and of the others in turn as well: one that somebody changes by hand is seen within eight scrapes.
//!
//! **`/proc/key-users`** has a row for each user who has a key, with both quotas of that user (`proc_key_users_show`),
//! as far as the user exists in the reader's user namespace: in a pod without one of its own (hostPID needs that)
//! everybody. Users of pods with user namespaces are then the uids that these are mapped to: 65536 and more, quota 200
//! (`kernel.keys.maxkeys`); everybody else's runc is root's, quota 1,000,000. In a user namespace of our own only its
//! users are there, and the machine's root is not.
//!
//! **When it misleads.** A burst that comes and goes between two scrapes shows only as refusals. Without any limit from
//! a cgroup up to the root there is no limit here: then the machine's binds, which is signal `pid.available` of
//! `eviction`. A runtime that systemd listens for (`docker.socket`) is not found, nor is one in a container of its own
//! pids. A pod with more than `MOST_OF_POD` cgroups has no count of refusals where those must be added up. Threads
//! are counted of the processes directly in a cgroup that is shown, unless they are more than a thousand or so.

mod assess;
mod cgroups;
mod keys;
mod pods;
mod refusals;
#[cfg(test)]
mod tests;
mod threads;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::{Collector, Context, Mode, Utilization, alerts, is_whole};
use crate::error::{Error, Result};
use crate::host::cgroup::Layout;
use crate::host::cgroup::tasks::TaskFiles;
use crate::humanize::grouped;
use crate::kubelet::handle::Kubelet;
use crate::kubelet::kubepods::Kubepods;
use crate::metric::{Metric, Samples, Unit};
use crate::runtime::Runtime;
use crate::values::defaults;

const NODE: &[&str] = &["role", "cgroup"];
const POD: &[&str] = &["namespace", "pod", "pod_uid"];
const USER: &[&str] = &["uid"];

/// Of the node's own cgroups.
pub static NODE_TASKS: Metric = Metric::gauge(
    "headroom_node_cgroup_tasks",
    Unit::None,
    NODE,
    "Tasks (threads) in a cgroup that the node depends on and below it: pids.current.\n\n\
     role: kubepods, burstable and besteffort (all pods, and those of a QoS class); kubelet, runtime and sshd (the \
     cgroup that this process is in). cgroup is its path. One that is in the root of the hierarchy has none.",
);
/// What they may have.
pub static NODE_LIMIT: Metric = Metric::gauge(
    "headroom_node_cgroup_tasks_limit",
    Unit::None,
    NODE,
    "Tasks that such a cgroup may have: its pids.max, or less where a cgroup above is nearer to its own. Missing \
     without any such limit.\n\n\
     Where a limit above binds: the tasks of this cgroup and what is left up there. Without any, the machine's \
     binds: headroom_eviction_available_pids.",
);
/// What was refused.
pub static NODE_REFUSALS: Metric = Metric::counter(
    "headroom_node_cgroup_task_refusals_total",
    NODE,
    "Forks that a limit on tasks refused (pids.events). Added up over restarts of the unit.\n\n\
     Linux 6.11 and later on cgroup v2: refused by the limit of this cgroup or one below. Otherwise: wanted by a \
     process directly in it, whichever limit refused it; role kubepods, burstable and besteffort are missing. \
     Restarting the exporter resets it to the kernel's own count.",
);
/// Of pods.
pub static POD_TASKS: Metric = Metric::gauge(
    "headroom_pod_tasks",
    Unit::None,
    POD,
    "Tasks (threads) of a pod: pids.current. The pods nearest to their limit; pod_uid=\"other\" is the exact sum of \
     all others.",
);
/// What they may have.
pub static POD_LIMIT: Metric = Metric::gauge(
    "headroom_pod_tasks_limit",
    Unit::None,
    POD,
    "Tasks that a pod may have: its pids.max (podPidsLimit), or less where a container of it or a cgroup above is \
     nearer to its own. Missing without any such limit.\n\n\
     Where another limit than its own binds: the tasks of the pod and what is left there. While a pod has less than \
     half of what one container may have, all its tasks count as that container's. systemd limits the scope of each \
     container to 15 % of the machine unless DefaultTasksMax says otherwise.",
);
/// What was refused.
pub static POD_REFUSALS: Metric = Metric::counter(
    "headroom_pod_task_refusals_total",
    POD,
    "Forks in a pod that a limit on tasks refused (pids.events). Of the pods shown, and of those with the latest \
     refusals.\n\n\
     It survives restarts of containers. Linux 6.11 and later on cgroup v2: refused by the limit of the pod or of a \
     container. Otherwise: by whichever limit, added up over the pod's cgroups, up to eight scrapes late; what a \
     container counted after it was last read is lost with it.",
);
/// The largest processes.
pub static THREADS: Metric = Metric::gauge(
    "headroom_process_threads",
    Unit::None,
    &["pid", "comm", "role", "namespace", "pod", "pod_uid"],
    "Threads of the largest process in a cgroup of role kubelet, runtime or sshd, and in each of the pods nearest to \
     their limit (role pod).",
);
/// Keys of a user.
pub static KEYS: Metric = Metric::gauge(
    "headroom_keys",
    Unit::None,
    USER,
    "Kernel keys of a user that count against its quota: /proc/key-users. Root, the users nearest to their quota, \
     and uid=\"other\", the sum of all others.\n\n\
     Users are those of the exporter's own user namespace. Each container that runs has a session keyring of the \
     user that is root in it.",
);
/// How many.
pub static KEYS_LIMIT: Metric = Metric::gauge(
    "headroom_keys_limit",
    Unit::None,
    USER,
    "Kernel keys that a user may have: sysctl kernel.keys.root_maxkeys or maxkeys.",
);
/// Their bytes.
pub static KEY_BYTES: Metric = Metric::gauge(
    "headroom_key_bytes",
    Unit::Bytes,
    USER,
    "Bytes of kernel keys of a user that count against its quota: /proc/key-users.",
);
/// How many.
pub static KEY_LIMIT_BYTES: Metric = Metric::gauge(
    "headroom_key_limit_bytes",
    Unit::Bytes,
    USER,
    "Bytes of kernel keys that a user may have: sysctl kernel.keys.root_maxbytes or maxbytes.",
);

/// This mode.
pub static MODE: Mode = Mode {
    id: "task_limit",
    title: "processes and threads, or kernel keys, run out below the machine",
    happened: "the runtime meets the `TasksMax` of its unit: no container starts, and the node has \
               process ids in plenty",
    alerts: alerts!("task_limit"),
    metrics: &[
        &NODE_TASKS,
        &NODE_LIMIT,
        &NODE_REFUSALS,
        &POD_TASKS,
        &POD_LIMIT,
        &POD_REFUSALS,
        &THREADS,
        &KEYS,
        &KEYS_LIMIT,
        &KEY_BYTES,
        &KEY_LIMIT_BYTES,
    ],
    utilization: Some(Utilization {
        used: "headroom_node_cgroup_tasks or headroom_pod_tasks",
        limit: "headroom_node_cgroup_tasks_limit or headroom_pod_tasks_limit",
        slope: None,
        text: |cgroup| {
            let whose = match (cgroup.label("role"), cgroup.label("pod")) {
                ("", "") => format!("pod {}", cgroup.label("pod_uid")),
                ("", pod) => format!("pod {}/{pod}", cgroup.label("namespace")),
                (role, _) => format!("{role} ({})", cgroup.label("cgroup")),
            };
            format!("{} processes and threads of {whose}", cgroup.share(grouped))
        },
    }),
    keeps: None,
    needs_runtime: true,
    build: |settings, services| {
        Box::new(TaskLimit {
            settings: settings.task_limit.clone(),
            kubelet: services.kubelet.clone(),
            kubepods: services.kubepods.clone(),
            runtime: services.runtime.clone(),
            state: Mutex::default(),
        })
    },
};

/// A larger [`Settings::nearest_pods`] counts as this.
const MOST_SHOWN: usize = 100;
/// Pods that are shown for their refusals alone.
const MOST_REFUSED: usize = 20;
/// Pods of which the largest process is looked for.
const MOST_SEARCHED: usize = 3;
/// Cgroups of one pod that are read.
const MOST_OF_POD: usize = 32;
/// How long the runtime may take.
const RUNTIME: Duration = Duration::from_secs(5);

/// Settings.
#[derive(clap::Args, Clone, Debug, PartialEq, Eq)]
#[group(skip)]
#[command(next_help_heading = "Collector task_limit")]
pub struct Settings {
    /// Pods shown in detail: those nearest to their limit of tasks
    #[arg(long = "collector.task_limit.pods", value_name = "N", default_value_t = 10)]
    pub nearest_pods: usize,
    /// Users shown beside root: those nearest to their quota of kernel keys
    #[arg(long = "collector.task_limit.key-users", value_name = "N", default_value_t = 3)]
    pub key_users: usize,
}

impl Default for Settings {
    fn default() -> Self {
        defaults()
    }
}

struct TaskLimit {
    settings: Settings,
    kubelet: Kubelet,
    kubepods: Kubepods,
    runtime: Runtime,
    state: Mutex<State>,
}

/// What outlives a scrape.
#[derive(Debug, Default)]
struct State {
    /// How many there were: whose turn it is.
    turn: u64,
    pods: pods::Memory,
    refusals: refusals::Tallies,
    /// How this kernel counts refusals, once it is known. Only a mount of cgroup2 with other options changes it.
    by_limit: Option<bool>,
}

impl Collector for TaskLimit {
    fn collect(&self, context: Context<'_>) -> Result<Samples> {
        let Context { host, deadline, began } = context;
        let mut samples = Samples::new();
        let keys = samples.ok(keys::read(host)).flatten();
        if let Some(users) = &keys {
            keys::assess(users, self.settings.key_users.min(MOST_SHOWN), &mut samples);
        }
        let look = samples.ok(self.kubepods.look(host, deadline, began));
        let layout =
            look.as_ref().and_then(|look| samples.ok(Layout::found(host, look.value.layout.clone())).flatten());
        let Some(hierarchy) = layout.as_ref().and_then(|layout| layout.of("pids")) else {
            if keys.is_none() {
                let none = || Error::absent("no /proc/key-users and no cgroups with the pids controller");
                return Err(samples.errors().iter().find(|error| !error.is_gone()).cloned().unwrap_or_else(none));
            }
            return Ok(samples);
        };
        let Some(files) = samples.ok(TaskFiles::open(hierarchy)) else { return Ok(samples) };
        let of_kubelet = samples.ok(self.kubelet.look(host, deadline, began));
        let found = of_kubelet.as_ref().and_then(|look| samples.ok(look.found()));
        let kubelet = found.and_then(|found| found.kubelet.as_ref()).map(|kubelet| kubelet.pid);
        // Where there is no runtime none is missing; that one does not answer is told by whoever needs its answer.
        let poll = self.runtime.inventory_and_when(host, deadline.part(RUNTIME));
        let runtime = poll.ok().and_then(|poll| poll.server);

        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.turn += 1;
        let walk = look.as_ref().and_then(|look| look.value.walk.as_ref());
        let complete = walk.is_some_and(|walk| is_whole(walk, &mut samples));
        let mut chain = cgroups::Chain::new(&files, &mut samples);
        let mut node = cgroups::units(host, &mut chain, kubelet, runtime);
        let above = walk.map(cgroups::above_pods).unwrap_or_default();
        node.extend(cgroups::of_kubepods(&mut chain, &above));
        let by_limit = refusals::by_limit(host, &files, &node, &mut state.by_limit, chain.samples);
        let State { turn, pods: memory, refusals, .. } = &mut *state;
        let mut pods = match walk {
            Some(walk) => memory.read(walk, &mut chain, *turn, deadline),
            None => Vec::new(),
        };
        refusals.read(&files, &node, &pods, walk, by_limit, *turn, complete, &mut samples);
        let shown = assess::choose(&mut pods, self.settings.nearest_pods.min(MOST_SHOWN));
        let threads = threads::largest(host, &files, &node, &pods[..shown.min(MOST_SEARCHED)], walk, deadline);

        // Last, so that a runtime that does not answer takes no time from the others.
        let extra = assess::latest(&pods[shown..], refusals);
        let uids = pods[..shown].iter().map(|pod| &pod.uid).chain(extra.iter().map(|pod| &pod.uid));
        let uids = uids.map(String::as_str).collect();
        let names = self.runtime.names(host, deadline.part(RUNTIME), &uids, &std::collections::HashSet::new());
        if let Some(error) = &names.error {
            samples.fail(error.clone().context("names of pods"));
        }
        assess::node(&node, refusals, &mut samples);
        assess::pods(&pods, shown, &extra, memory.unread(), refusals, &names, &mut samples);
        assess::threads(&threads, &names, &mut samples);
        Ok(samples)
    }
}
