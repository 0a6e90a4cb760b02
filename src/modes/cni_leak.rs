//! Addresses, mounts, network namespaces and shims of pods that are gone add up until no pod can start.
//!
//! **What fails.** What a pod takes from the node beside memory and disk is given back by its removal: a reservation of
//! an address, mounts, a network namespace. A runtime that is killed in the middle of a removal, a plugin that fails, a
//! machine that reboots with reservations on its disk: each leaves some behind, and nothing takes them back later. At
//! the end `no IP addresses available in range set` keeps every pod in ContainerCreating, or `mount(2)` says `ENOSPC`
//! on a disk that is not full, and the node stays Ready.
//!
//! **Evidence.**
//! - host-local keeps a file for each address below its `dataDir`, called by the address, with the id of the sandbox in
//!   its first line (`plugins/ipam/host-local/backend/disk/backend.go`). It gives back what it finds under that id,
//!   when the runtime asks; nobody else looks. Which addresses it may give: `cni_leak/ranges.rs`. Its `free` is exact.
//! - Since Linux 4.9 one mount namespace has at most `fs.mount-max` mounts (100,000 unless it is set). A mount that is
//!   passed on to other namespaces counts in each, and fails for all if one of them is full (`count_mounts`,
//!   `propagate_one`): so a container with the host's root mounted, such as this exporter's, can be what keeps the
//!   kubelet from mounting. Our own table is shown beside the machine's, and the kubelet's if it has another. The
//!   kernel counts one more than the table shows, the root file system of its start.
//! - What is alive, the container runtime says. How a reservation or a mount is proven to be nobody's, and why no race
//!   makes a false one, is in `unknown_to_runtime.rs`.
//! - A network namespace keeps its name, and so itself with every interface in it, until whoever mounted it unmounts
//!   it. containerd makes it before it asks for a network, and writes down whose it is afterwards (1.6: when the
//!   sandbox runs): a containerd that is killed in between has forgotten it. The machine's mount table has each with
//!   its number; which of them a sandbox has, the runtime says when it is asked for that sandbox, once in its life
//!   (`runtime/sandbox_status.rs`).
//!
//! **What counts as leaked.** A reservation of which the runtime knows neither sandbox nor container for the grace
//! period, in a network that is the pods': the one of the file that the runtime takes, or one of which a sandbox that
//! it knows has an address, or had since the exporter started. Podman and nerdctl keep their reservations in the same
//! directory. A sandbox that has stopped and is still known is not gone: its removal will be asked for again. A
//! reservation without an id, of a host-local that was killed while it wrote, is nobody's.
//!
//! A network namespace of which all these are true: it is named as containerd (`cni-` and a UUID) or CRI-O (a UUID)
//! names what it makes for pods, in a directory `netns` of the machine, where only root can name anything; for the
//! grace period no sandbox that the runtime knows had it, running or stopped; no process is in it. So one that `ip
//! netns add` made is never counted, nor one of Podman's or Docker's. The name alone would not do where a second
//! containerd makes pods on the machine, and so processes are asked: the pods of that one have one. A process that runs
//! on in the namespace of a sandbox that was forgotten keeps it from being counted; its cgroup is an orphan
//! (`headroom_orphaned_cgroups`), its shim as well. While the runtime has not said it of each sandbox, nothing is said
//! here.
//!
//! Veths are not counted for themselves: the kernel removes both ends with the namespace of either, so one that is left
//! on the machine stands for a namespace that is, mostly one of these.
//!
//! A shim is the process that a runtime leaves with each sandbox (containerd) or container (conmon of CRI-O, Docker's),
//! to find it again after a restart. Its command line names the container (`-id`), and the containerd that made it
//! (`-namespace`, `-address`): a second containerd's and nerdctl's are not judged, and Docker's only where Docker is
//! asked. What a process calls itself proves nothing, so only those are looked at that no pod can have: root's, in the
//! machine's pid namespace and in no pod's cgroup. One that is nobody's keeps its memory, and what runs below it goes
//! on beside what the kubelet started in its place. Where CRI-O puts conmon into the pod's cgroup (`conmon_cgroup =
//! "pod"`, OpenShift) it cannot be told from what pods run, and is not counted. containerd's were tried; the command
//! lines of Docker's and CRI-O's are known by their source.
//!
//! **When it misleads.**
//! - Of a reservation whose network is gone from the configuration nothing says what it takes away: it is `used`
//!   without a range (`range_set` empty). While its sandbox lives it is not leaked; after that it is, since a runtime
//!   asks only the plugins of the present configuration. It keeps no address from the present network.
//! - Addresses that others give (Calico, Cilium, Amazon's) are on no file of this kind: their network has an info and
//!   nothing else. Ranges that another program puts in at run time (`usePodCidr`, capability `ipRanges`, the objects
//!   that multus reads) are not known: `used` and `leaked` without a range, and no `free`.
//! - The kubelet mounts volumes before it makes the first sandbox: a pod that waits for one of several volumes for
//!   longer than the grace period counts as gone. Whose mounts are of a runtime other than containerd only those below
//!   the kubelet's `pods/` tell.
//! - Ages start with the exporter, and stand still while the runtime does not answer. Without one nothing is said of
//!   leaks. A mount namespace of any other container is not looked at: the runbook says how to find the fullest.

mod assess;
mod disk;
mod mounts;
mod namespaces;
mod networks;
mod ranges;
mod shims;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::unknown_to_runtime::{SETTLE, Span, UnknownToRuntime};
use super::{Collector, Context, Mode, Slope, Utilization, alerts};
use crate::error::{Error, Reason, Result};
use crate::humanize::grouped;
use crate::kubelet::handle::Kubelet;
use crate::kubelet::kubepods::{Kind, Kubepods};
use crate::metric::{Metric, Samples, Unit};
use crate::runtime::{Poll, Runtime};
use crate::services::Services;
use crate::values::{defaults, duration_flag};
use assess::{Key, Known, Leaks, PodNetworks};
use disk::Disk;
use mounts::Tables;
use namespaces::Namespaces;
use shims::Shims;

const SET: &[&str] = &["network", "range_set"];

/// Who gives addresses.
pub static NETWORK_INFO: Metric = Metric::info(
    "headroom_cni_network_info",
    &["network", "ipam"],
    "Networks of the node's CNI configuration, with what gives their addresses.\n\n\
     Only host-local keeps reservations on the node; of a network with another one there are no addresses here.",
);
/// Given away.
pub static USED: Metric = Metric::gauge(
    "headroom_cni_addresses_used",
    Unit::None,
    SET,
    "Addresses that host-local has reserved: files in its data directory. Leaked ones are among them.\n\n\
     range_set is as in host-local's errors; without it, reservations outside every range that the configuration names.",
);
/// Left.
pub static FREE: Metric = Metric::gauge(
    "headroom_cni_addresses_free",
    Unit::None,
    SET,
    "Addresses that host-local can still hand out. At 0 no pod gets a network: no IP addresses available in range set.\n\n\
     Exact: without gateway, network and broadcast address, as host-local counts. Missing if the range is not known.",
);
/// Given to nobody.
pub static LEAKED: Metric = Metric::gauge(
    "headroom_cni_addresses_leaked",
    Unit::None,
    SET,
    "Addresses reserved for sandboxes that the container runtime has not known for the grace period. Nothing gives them \
     back.\n\n\
     Only in networks of pods. Missing without a runtime and while it does not answer. The grace period is at least 5 s; \
     ages reset when the exporter restarts.",
);
/// By what they are.
pub static MOUNTS: Metric = Metric::gauge(
    "headroom_mounts",
    Unit::None,
    &["mount_namespace", "group"],
    "Mounts in the mount namespace of the machine, of the kubelet if it has its own, and of this exporter, by what they \
     are.\n\n\
     pods and plugins: below the kubelet's directory. overlay: root file systems of containers. nsfs: namespaces kept by \
     name. The sum over groups is what fs.mount-max limits.",
);
/// `fs.mount-max`
pub static MOUNTS_LIMIT: Metric = Metric::gauge(
    "headroom_mounts_limit",
    Unit::None,
    &[],
    "Mounts that one mount namespace may have (fs.mount-max, Linux 4.9). Beyond it mount says no space left on device.\n\n\
     A mount that is passed on fails for all if one of the namespaces is full.",
);
/// Of nobody.
pub static ORPHANED_MOUNTS: Metric = Metric::gauge(
    "headroom_orphaned_mounts",
    Unit::None,
    &["mount_namespace", "group"],
    "Mounts of pods, sandboxes and containers that the container runtime has not known for the grace period.\n\n\
     pods: below the kubelet's pods directory; a pod that waits for a volume can count. overlay and shm: of containerd. \
     Missing without a runtime and while it does not answer.",
);
/// In `/run/netns`.
pub static NAMED_NAMESPACES: Metric = Metric::gauge(
    "headroom_named_network_namespaces",
    Unit::None,
    &[],
    "Network namespaces with a name in /run/netns: one for each pod that has a network of its own, and those of other \
     programs.",
);
/// Of nobody.
pub static ORPHANED_NAMESPACES: Metric = Metric::gauge(
    "headroom_orphaned_network_namespaces",
    Unit::None,
    &[],
    "Named network namespaces of pods that have belonged to no sandbox of the container runtime for the grace period, \
     with no process in them.\n\n\
     Only those named as containerd and CRI-O name them (cni- and a UUID, or a UUID) in a directory called netns. \
     Missing while the runtime does not say which namespace each sandbox has.",
);
/// Of nobody.
pub static ORPHANED_SHIMS: Metric = Metric::gauge(
    "headroom_orphaned_shims",
    Unit::None,
    &[],
    "Shims (containerd-shim-*, conmon of CRI-O) of sandboxes and containers that the container runtime has not known for \
     the grace period.\n\n\
     Only root's processes outside of pods, started by the runtime that answers. Missing with cri-dockerd, without a \
     runtime and while it does not answer.",
);

/// This mode.
pub static MODE: Mode = Mode {
    id: "cni_leak",
    title: "addresses, mounts, namespaces and shims of pods that are gone, until no pod can start",
    happened: "pods that are gone keep addresses, mounts, namespaces and shims: `no IP addresses available in range set`, \
               `mount …: no space left on device`",
    alerts: alerts!("cni_leak"),
    metrics: &[
        &NETWORK_INFO,
        &USED,
        &FREE,
        &LEAKED,
        &MOUNTS,
        &MOUNTS_LIMIT,
        &ORPHANED_MOUNTS,
        &NAMED_NAMESPACES,
        &ORPHANED_NAMESPACES,
        &ORPHANED_SHIMS,
    ],
    utilization: Some(Utilization {
        used: "headroom_cni_addresses_used or sum by (instance, mount_namespace) (headroom_mounts)",
        limit: "headroom_cni_addresses_used + headroom_cni_addresses_free \
                or 0 * sum by (instance, mount_namespace) (headroom_mounts) \
                + on (instance) group_left () headroom_mounts_limit",
        slope: Some(Slope::Rises("headroom_cni_addresses_used")),
        text: |fullest| match fullest.label("network") {
            "" => format!("{} mounts of the {}", fullest.share(grouped), fullest.label("mount_namespace")),
            network => format!("{} addresses of network {network}", fullest.share(grouped)),
        },
    }),
    keeps: Some(
        "since when the runtime has not known the owner of an address, a mount, a network namespace or a shim; \
         which process is whose shim, which namespaces have a process in them; what was read of files that have not \
         changed; two mount tables, held open",
    ),
    needs_runtime: true,
    build: |settings, services| Box::new(CniLeak::new(settings.cni_leak.clone(), services)),
};

/// Settings of this mode.
#[derive(clap::Args, Clone, Debug, PartialEq, Eq)]
#[group(skip)]
#[command(next_help_heading = "Collector cni_leak")]
pub struct Settings {
    /// How long the runtime must not have known the sandbox of an address, a network namespace or a shim, or the pod of
    /// a mount, before it counts as leaked; at least 5s
    #[arg(long = "collector.cni_leak.leak-grace", value_name = "DURATION", default_value = "5m", value_parser = duration_flag)]
    pub leak_grace: Duration,
    /// Directories of CNI configuration, on the host
    #[arg(
        long = "collector.cni_leak.configuration-dirs",
        value_name = "PATH",
        default_value = "/etc/cni/net.d,/var/lib/rancher/k3s/agent/etc/cni/net.d,/var/snap/microk8s/current/args/cni-network,/etc/kubernetes/cni/net.d",
        value_delimiter = ','
    )]
    pub configuration_dirs: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        defaults()
    }
}

/// How long the runtime may take, of the time there is.
const RUNTIME: Duration = Duration::from_secs(5);
/// How long files may take.
const FILES: Duration = Duration::from_secs(5);

/// The collector; between scrapes it remembers since when the runtime has not known what, and what it need not read
/// again.
#[derive(Debug)]
pub struct CniLeak {
    settings: Settings,
    kubelet: Kubelet,
    kubepods: Kubepods,
    runtime: Runtime,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    disk: Disk,
    mounts: mounts::Memory,
    networks: PodNetworks,
    strangers: UnknownToRuntime<Key>,
    namespaces: Namespaces,
    shims: Shims,
    /// Since when containers have run of which the runtime knows none.
    elsewhere: Option<Instant>,
}

impl CniLeak {
    /// A collector that has seen nothing yet.
    pub fn new(settings: Settings, services: &Services) -> Self {
        services.runtime.ask_networks();
        CniLeak {
            settings,
            kubelet: services.kubelet.clone(),
            kubepods: services.kubepods.clone(),
            runtime: services.runtime.clone(),
            memory: Mutex::default(),
        }
    }
}

impl Collector for CniLeak {
    fn collect(&self, context: Context<'_>) -> Result<Samples> {
        let Context { host, deadline, began } = context;
        let mut samples = Samples::new();
        // First, so that what is read afterwards proves at once: `unknown_to_runtime` tells how.
        let poll = match self.runtime.inventory_and_when(host, deadline.part(RUNTIME)) {
            Ok(poll) => Some(poll),
            Err(error) => {
                if error.reason() != Reason::Absent {
                    samples.fail(error);
                }
                None
            }
        };
        let look = self.kubelet.look(host, deadline, began)?;
        samples.ok(look.found());
        let kubelet = look.process().map(|kubelet| kubelet.pid);
        let root_dir = samples.ok(look.root_dir()).unwrap_or_else(|| PathBuf::from("/var/lib/kubelet"));

        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let read = Instant::now();
        let before = std::mem::take(&mut memory.disk);
        let disk = disk::read(host, &self.settings.configuration_dirs, before, deadline.part(FILES));
        let mut disk = samples.ok(disk).unwrap_or_default();
        disk.errors.drain(..).for_each(|error| samples.fail(error));
        let tables = memory.mounts.read(host, kubelet, &root_dir, deadline.part(FILES), &mut samples);
        let limit = samples.ok(host.read_some(host.proc("sys/fs/mount-max"))).flatten();
        // Without the machine's table the reason is told: processes are hidden from us.
        let shims = tables.machine().and_then(|_| samples.ok(memory.shims.look(context)));
        let walk = Span { began: read, ended: Instant::now() };
        if tables.of.is_empty() && limit.is_none() && disk.networks.is_empty() && disk.stores.is_empty() {
            let none = || Error::absent("no mount table, and no configuration of CNI");
            return Err(samples.errors().iter().find(|error| !error.is_gone()).cloned().unwrap_or_else(none));
        }

        let known = poll.as_ref().map(|poll| Known::new(&poll.inventory));
        let answer = poll.as_ref().zip(known.as_ref());
        let judged = samples.ok(self.judge(context, &disk, &tables, answer, walk, &mut memory)).unwrap_or(false);
        let Memory { networks, strangers, namespaces, shims: of_shims, .. } = &mut *memory;
        let leaks = Leaks { memory: strangers, networks, grace: self.settings.leak_grace };
        let leaks = Some(&leaks).filter(|_| judged);
        assess::addresses(&disk, leaks, &mut samples);
        assess::mounts(&tables, leaks, &mut samples);
        let limit = limit.and_then(|text| samples.ok(mount_max(&text)));
        samples.push_some(&MOUNTS_LIMIT, &[], limit.map(|limit| limit as f64));
        samples.push_some(&NAMED_NAMESPACES, &[], disk.named_namespaces.map(|count| count as f64));
        if let Some(table) = tables.machine() {
            let known = namespaces.update(table, poll.as_ref(), walk);
            if samples.ok(known) == Some(true) && judged {
                let count = samples.ok(namespaces.orphaned(table, self.settings.leak_grace, context));
                samples.push_some(&ORPHANED_NAMESPACES, &[], count.map(|count| count as f64));
            }
        }
        if shims.is_some() && samples.ok(of_shims.update(host, answer, walk)) == Some(true) && judged {
            samples.push(&ORPHANED_SHIMS, &[], of_shims.orphaned(self.settings.leak_grace) as f64);
        }
        memory.disk = disk;
        Ok(samples)
    }
}

fn mount_max(text: &str) -> Result<u64> {
    text.trim().parse().map_err(|_| Error::malformed(format!("fs.mount-max: not a number: {:?}", text.trim())))
}

impl CniLeak {
    /// Takes in what of all this the runtime does not know; true if it can be said what is nobody's.
    fn judge(
        &self,
        context: Context<'_>,
        disk: &Disk,
        tables: &Tables,
        answer: Option<(&Poll, &Known<'_>)>,
        walk: Span,
        memory: &mut Memory,
    ) -> Result<bool> {
        let Memory { networks, strangers, elsewhere, .. } = memory;
        let whole = disk.whole && tables.whole;
        let Some((poll, known)) = answer else {
            if !strangers.is_empty() {
                strangers.pause(&assess::keys(disk, tables, networks).collect(), whole);
            }
            return Ok(false);
        };
        assess::note_networks(disk, known, networks);
        let (mut unknown, mut all) = (Vec::new(), 0_u64);
        for key in assess::keys(disk, tables, networks) {
            all += 1;
            if !assess::is_known(&key, known) {
                unknown.push(key);
            }
        }
        let nothing_known = all > 0 && unknown.len() as u64 == all;
        strangers.update(unknown.into_iter(), Span { began: poll.began, ended: poll.ended }, walk, whole);
        let runs_elsewhere = nothing_known && self.runs_elsewhere(context, known)?;
        *elsewhere = runs_elsewhere.then(|| elsewhere.unwrap_or(walk.ended));
        if let Some(since) = *elsewhere {
            // The first pods of a node run before the runtime lists them.
            if poll.began.saturating_duration_since(since) < SETTLE {
                return Ok(false);
            }
            return Err(Error::malformed(format!(
                "{} knows none of the containers that run on this node: set --runtime.endpoint to the socket of the \
                 kubelet's runtime",
                poll.inventory.identity.endpoint
            )));
        }
        Ok(true)
    }

    /// True if containers run in pods and the runtime that answers knows none of them: it is not the one that runs
    /// them.
    fn runs_elsewhere(&self, context: Context<'_>, known: &Known<'_>) -> Result<bool> {
        let look = self.kubepods.look(context.host, context.deadline, context.began)?;
        let directories = look.value.walk.as_ref().map(|walk| &walk.tree.directories[..]).unwrap_or_default();
        let mut running = directories.iter().filter(|one| one.kind == Kind::Container && one.populated == Some(true));
        let mut ids = running.by_ref().filter_map(|one| one.container_id()).peekable();
        Ok(ids.peek().is_some() && !ids.any(|id| known.id(id)))
    }
}
