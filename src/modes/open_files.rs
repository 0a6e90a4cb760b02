//! A node or a process runs out of file descriptors, or a user out of inotify.
//!
//! **What fails.** A process at its soft limit gets `EMFILE` from `open` and `accept`: a kubelet or a runtime in that
//! state starts nothing, and an agent that leaks one connection per poll takes the daemon at the other end with it. The
//! whole machine at `fs.file-max` gets `ENFILE`. A user at `fs.inotify.max_user_instances` or `max_user_watches` gets
//! `EMFILE` or "no space left on device" with a disk that is not full, and every watcher of configuration files fails
//! or goes blind.
//!
//! **Evidence.** `/proc/sys/fs/file-nr`; for every process the number of its fds, its limit and its name; for a chosen
//! few what each fd is (links in `/proc/PID/fd`) and which pod they belong to (`/proc/PID/cgroup`). How this is read,
//! what it costs, and which capabilities it takes, is in [`crate::host::process`]. No kernel file tells how much
//! inotify a user has: see `open_files/inotify.rs` for how it is found out.
//!
//! **What we export.** Every process is counted, on every scrape: sums are exact, and the sums by command add up to
//! them. In detail: the [`Settings::top`] processes nearest their limit, as many with the most fds, the node's own
//! daemons and ourselves. Who holds connections to the container runtime's sockets: see
//! `open_files/runtime_sockets.rs`. Kinds are read within a budget ([`Settings::max_readlinks`]), equal shares for the
//! processes that need more.
//!
//! **When it misleads.** A short-lived process that leaks is gone before it is large: look at the other end of its
//! connections (`peer=none` of the runtime's sockets). Sockets in CLOSE_WAIT are told of the host's network namespace
//! alone: a process of a pod with a network of its own has no such number. A process whose count does not move may
//! still open and close fast. A scrape sees each process at a slightly different moment. The runtime is asked for names
//! last, and only if a process of a pod is shown: what it has forgotten by then has ids only. Our own count includes up
//! to 2 × top + 32 processes that we hold open while we read. Without capabilities counts are still complete on Linux ≥
//! 6.2, kinds and inotify only for our own uid.

mod assess;
mod few;
mod inotify;
mod kinds;
mod names;
mod namespaces;
mod pods;
mod runtime_sockets;
mod snapshot;

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::{Collector, Context, Mode, Slope, Utilization, alerts};
use crate::error::{Error, Result};
use crate::host::process::Processes;
use crate::host::process::known::Known;
use crate::host::sockets::TcpState;
use crate::host::sockets::owners::Owners;
use crate::host::{Deadline, Host};
use crate::humanize::grouped;
use crate::metric::Samples;
use crate::runtime::{Runtime, endpoint_path};
use crate::services::Services;
use crate::values::defaults;
use runtime_sockets::Look;
use snapshot::{Closer, Snapshot, Wanted};

/// This mode.
pub static MODE: Mode = Mode {
    id: "open_files",
    title: "processes, the machine or a user run out of file descriptors or inotify",
    happened: "a client of the runtime's socket leaks a descriptor per poll; a user runs out of inotify instances",
    alerts: alerts!("open_files"),
    metrics: &[
        &assess::HANDLES_ALLOCATED,
        &assess::HANDLES_LIMIT,
        &assess::PROTECTED,
        &assess::OPEN_FDS,
        &assess::PROCESSES,
        &assess::PROCESS_OPEN_FDS,
        &assess::PROCESS_FD_LIMIT,
        &assess::PROCESS_FDS,
        &assess::CLOSE_WAIT,
        &assess::COMMAND_OPEN_FDS,
        &assess::COMMAND_PROCESSES,
        &assess::COMMAND_WORST_RATIO,
        &runtime_sockets::CONNECTIONS,
        &runtime_sockets::BACKLOG,
        &runtime_sockets::BACKLOG_LIMIT,
        &inotify::INSTANCES,
        &inotify::INSTANCES_LIMIT,
        &inotify::WATCHES,
        &inotify::WATCHES_LIMIT,
        &inotify::UNEXAMINED,
    ],
    utilization: Some(Utilization {
        used: "headroom_process_open_fds",
        // A low limit is a choice of the program's: systemd's helpers run with 64.
        limit: "headroom_process_fd_limit >= 256",
        slope: Some(Slope::Rises("headroom_process_open_fds")),
        text: |process| {
            let (comm, pid) = (process.label("comm"), process.label("pid"));
            format!("{} file descriptors of {comm} (pid {pid})", process.share(grouped))
        },
    }),
    keeps: Some("where inotify descriptors are, which pod a process is in"),
    needs_runtime: true,
    build: |settings, services| Box::new(OpenFiles::new(settings.open_files.clone(), services)),
};

/// A larger [`Settings::top`] counts as this: each such process is an fd of ours during the scrape and a dozen series.
const MOST_TOP: usize = 100;
/// A larger [`Settings::commands`] counts as this.
const MOST_COMMANDS: usize = 200;
/// Daemons in detail, lowest pids first. A node has about ten; anyone may call a process `kubelet`.
const MOST_DAEMONS: usize = 32;
/// How long a list of sockets may take.
const SOCKETS: Duration = Duration::from_secs(1);
/// How long the runtime may take.
const RUNTIME: Duration = Duration::from_secs(5);

/// Settings.
#[derive(clap::Args, Clone, Debug, PartialEq, Eq)]
#[group(skip)]
#[command(next_help_heading = "Collector open_files")]
pub struct Settings {
    /// Processes shown in detail: this many nearest their limit and this many with the most file descriptors
    #[arg(long = "collector.open_files.top", value_name = "N", default_value_t = 10)]
    pub top: usize,
    /// Commands shown by name; the rest is summed as "other"
    #[arg(long = "collector.open_files.commands", value_name = "N", default_value_t = 20)]
    pub commands: usize,
    /// File descriptors whose kind is read in one scrape at the most, over all processes in detail
    #[arg(long = "collector.open_files.max-readlinks", value_name = "N", default_value_t = 10_000)]
    pub max_readlinks: usize,
    /// Processes that are always shown in detail, by name
    #[arg(long = "collector.open_files.daemons", value_name = "NAME", default_values = DAEMONS, value_delimiter = ',')]
    pub daemons: Vec<String>,
    /// Path of a further socket of the container runtime whose clients are shown, beside the well-known ones; repeat it
    /// for several
    #[arg(long = "collector.open_files.runtime-sockets", value_name = "PATH", value_delimiter = ',', value_parser = socket_flag)]
    pub runtime_sockets: Vec<String>,
    /// File descriptors read in one scrape at the most to find who holds connections to the runtime's sockets
    #[arg(long = "collector.open_files.socket-max-readlinks", value_name = "N", default_value_t = 5_000)]
    pub socket_max_readlinks: usize,
    /// File descriptors read in one scrape at the most to find inotify instances
    #[arg(long = "collector.open_files.inotify-max-readlinks", value_name = "N", default_value_t = 10_000)]
    pub inotify_max_readlinks: usize,
    /// Of these, file descriptors read again in turn although nothing says that they changed; an eighth of all if that
    /// is less
    #[arg(long = "collector.open_files.inotify-reexamine", value_name = "N", default_value_t = 500)]
    pub inotify_reexamine: usize,
}

/// The kernel knows the first 15 bytes of a name.
const DAEMONS: [&str; 9] = [
    "kubelet",
    "containerd",
    "dockerd",
    "crio",
    "kube-proxy",
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
];

impl Default for Settings {
    fn default() -> Self {
        defaults()
    }
}

fn socket_flag(text: &str) -> std::result::Result<String, String> {
    let path = endpoint_path(text).ok_or("expected unix:///PATH or /PATH of a socket")?;
    Ok(path.to_owned())
}

/// Files of the whole machine, from `/proc/sys/fs/file-nr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileHandles {
    allocated: u64,
    limit: u64,
}

impl FileHandles {
    fn read(host: &Host) -> Result<Option<Self>> {
        let path = host.proc("sys/fs/file-nr");
        let Some(text) = host.read_some(&path)? else { return Ok(None) };
        let malformed = || Error::malformed(format!("{}: {:?}", path.display(), text.trim()));
        Self::parse(&text).ok_or_else(malformed).map(Some)
    }

    /// Allocated, always 0 since Linux 2.6, limit.
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split_ascii_whitespace().map(|field| field.parse().ok());
        let (allocated, _, limit) = (fields.next()??, fields.next()??, fields.next()??);
        Some(FileHandles { allocated, limit })
    }
}

struct OpenFiles {
    settings: Settings,
    runtime: Runtime,
    memory: Mutex<Memory>,
}

/// What is kept from scrape to scrape.
#[derive(Debug, Default)]
struct Memory {
    processes: Known,
    inotify: inotify::Index,
    kinds: kinds::KnownKinds,
    namespaces: namespaces::Namespaces,
    pods: pods::Pods,
    clients: Owners,
    listed: runtime_sockets::Listed,
}

impl OpenFiles {
    fn new(settings: Settings, services: &Services) -> Self {
        OpenFiles { settings, runtime: services.runtime.clone(), memory: Mutex::default() }
    }
}

impl OpenFiles {
    /// What the kernel tells of sockets: connections to the runtime, and the TCP sockets in CLOSE_WAIT.
    fn sockets(
        &self,
        host: &Host,
        listed: &mut runtime_sockets::Listed,
        namespaces: &namespaces::Namespaces,
        pods: &pods::Pods,
        deadline: Deadline,
        samples: &mut Samples,
    ) -> (Option<Look>, Option<HashSet<u32>>) {
        let (unasked, refused) = namespaces.unknown();
        samples.drop_count(unasked);
        if let Err(error) = host.in_own_network(None) {
            // One that may not look into processes says so once, for all of it.
            if refused == 0 || Processes::open(host).is_ok_and(|processes| processes.entitled()) {
                samples.fail(error);
            }
            return (None, None);
        }
        let paths =
            runtime_sockets::paths(self.runtime.endpoint(host, deadline.part(RUNTIME)), &self.settings.runtime_sockets);
        let look = Look::take(host, &paths, listed, namespaces, pods, deadline.part(SOCKETS));
        let close_wait = host.tcp_sockets_in(TcpState::CloseWait, deadline.part(SOCKETS));
        let mut told = |error| runtime_sockets::failure(error).into_iter().for_each(|error| samples.fail(error));
        let look = look.map_err(&mut told).ok();
        (look, close_wait.map(HashSet::from_iter).map_err(told).ok())
    }
}

impl Collector for OpenFiles {
    fn collect(&self, context: Context<'_>) -> Result<Samples> {
        let Context { host, deadline, began } = context;
        let mut samples = Samples::new();
        let handles = samples.ok(FileHandles::read(host)).flatten();
        if let Err(error) = host.require_host_pid() {
            // What is left is the machine's all the same.
            assess::handles(handles, &mut samples);
            samples.fail(error);
            return Ok(samples);
        }
        let processes = Processes::open(host)?;
        let pids = host.pids_since(began, deadline)?;
        // A panic of ours half-way leaves it outdated at worst, and it is checked against the kernel each time.
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let Memory { processes: known, inotify, kinds, namespaces, pods, clients, listed } = &mut *memory;
        let own = host.own_network_namespace().ok();
        let searching = clients.is_searching();
        inotify.begin();
        namespaces.begin();
        pods.begin(host);
        let (mut snapshot, few) =
            Snapshot::take(&processes, &pids, &self.settings, known, pods, deadline, |process, pods| {
                inotify.observe(process);
                if namespaces.observe(process, own) || (searching && process.fds != Some(0)) {
                    // Its namespace, or its fds, are looked into below, each pod in its turn.
                    pods.of(process);
                }
            });
        namespaces.end();
        pods.end();
        if snapshot.is_empty() && handles.is_none() {
            return Err(Error::absent(format!("{}: no processes and no sys/fs/file-nr", host.proc("").display())));
        }
        let (look, close_wait) = self.sockets(host, listed, namespaces, pods, deadline, &mut samples);
        let wanted = Wanted { clients: look.as_ref().map(Look::clients).unwrap_or_default(), close_wait };
        samples.ok(host.knows_cgroups_of_processes());
        kinds.begin();
        let with = Closer { wanted: &wanted, known: &mut *kinds, whose: &mut *pods, deadline };
        let met = snapshot.look_closer(few, self.settings.max_readlinks, with);
        kinds.end();
        if let Some(own) = own {
            // The list is of our own namespace.
            let outside = snapshot.detailed.iter_mut().filter(|detail| namespaces.may_be_outside(detail.pid, own));
            outside.for_each(|detail| detail.close_wait = None);
        }
        let mut rows = runtime_sockets::Rows::default();
        if let Some(look) = &look {
            let counts = look.by_peer(host, &met, clients, pods, self.settings.socket_max_readlinks, deadline);
            rows = samples.ok(counts).map(|counts| runtime_sockets::Rows::of(counts, host, pods)).unwrap_or_default();
            look.unproven.clone().into_iter().for_each(|error| samples.fail(error));
        }
        let with = inotify::Look { processes: &processes, host, pods, deadline };
        let usage = inotify.update(with, &self.settings, snapshot.cut.is_none());
        let mut lost = std::mem::take(&mut snapshot.left_out_of_pods);
        for (uid, count) in look.iter().flat_map(|look| look.left_out_of_pods(&rows)) {
            *lost.entry(uid.clone()).or_default() += count;
        }
        let overflown = usage.overflown.iter().map(|&pid| (pods.of_pid(host, pid).share().map(str::to_owned), 1));
        for (share, count) in overflown.chain(usage.uncounted.clone()) {
            match share.filter(|uid| !uid.is_empty()) {
                Some(uid) => *lost.entry(uid).or_default() += count,
                None => samples.drop_count(count),
            }
        }
        // After the sweep: a runtime that does not answer takes no time from it, and names only.
        let known = {
            let places = snapshot.detailed.iter().map(|detail| &detail.place);
            let places = places.chain(rows.rows.iter().map(|row| &row.place)).flatten();
            let (mut uids, containers) = names::wanted(places);
            uids.extend(lost.keys().map(String::as_str));
            self.runtime.names(host, deadline.part(RUNTIME), &uids, &containers)
        };
        if let Some(error) = &known.error {
            samples.fail(error.clone().context("names of pods and containers"));
        }
        snapshot.detailed.retain(|detail| !names::awaited(detail.place.as_ref(), &known));
        rows.rows.retain(|row| !names::awaited(row.place.as_ref(), &known));
        let slots = snapshot.detailed.iter_mut().map(|detail| (&detail.place, &mut detail.names));
        for (place, slot) in slots.chain(rows.rows.iter_mut().map(|row| (&row.place, &mut row.names))) {
            if let Some(place) = place {
                *slot = names::Names::of(place, &known);
            }
        }
        samples.drop_of_pods(lost.iter().map(|(uid, &count)| (names::dropped(uid, &known), count)));
        let entitled = processes.entitled();
        assess::assess(snapshot, self.settings.commands, handles, usage.refused, entitled, &mut samples);
        if let Some(look) = &look {
            runtime_sockets::assess(look, &rows, &mut samples);
        }
        inotify::assess(&usage, &inotify::Limits::read(host, &mut samples), &mut samples);
        Ok(samples)
    }
}

#[cfg(test)]
mod tenants;
#[cfg(test)]
mod tests;
