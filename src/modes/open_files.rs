//! A node or a process runs out of file descriptors, or a user out of inotify.
//!
//! **What fails.** A process at its soft limit gets `EMFILE` from `open` and `accept`: a kubelet or a runtime in that state
//! starts nothing, and an agent that leaks one connection per poll takes the daemon at the other end with it. The whole
//! machine at `fs.file-max` gets `ENFILE`. A user at `fs.inotify.max_user_instances` or `max_user_watches` gets `EMFILE`
//! or "no space left on device" with a disk that is not full, and every watcher of configuration files fails or goes blind.
//!
//! **Evidence.** `/proc/sys/fs/file-nr`; for every process the number of its fds, its limit and its name; for a chosen few
//! what each fd is (links in `/proc/PID/fd`) and which pod they belong to (`/proc/PID/cgroup`). How this is read, what it
//! costs, and which capabilities it takes, is in [`crate::host::process`]. No kernel file tells how much inotify a user has:
//! see `open_files/inotify.rs` for how it is found out.
//!
//! **What we export.** Every process is counted, on every scrape: sums are exact, and the sums by command add up to them.
//! In detail: the [`Settings::top`] processes nearest their limit, as many with the most fds, the node's own daemons and
//! ourselves. Kinds are read within a budget ([`Settings::max_readlinks`]), equal shares for the processes that need more.
//!
//! **When it misleads.** A short-lived process that leaks is gone before it is large: look at the other end of its
//! connections. A process whose count does not move may still open and close fast. A scrape sees each process at a slightly
//! different moment. The runtime is asked for names last, and only if a process of a pod is shown: what it has forgotten by
//! then has ids only. Our own count includes up to 2 × top + 32 processes that we hold open while we read.
//! Without capabilities counts are still complete on Linux ≥ 6.2, kinds and inotify only for our own uid.

mod assess;
mod inotify;
mod names;
mod snapshot;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::{Collector, Context, Mode};
use crate::error::{Error, Reason, Result};
use crate::host::Host;
use crate::host::process::Processes;
use crate::metric::Samples;
use crate::runtime::Runtime;
use snapshot::Snapshot;

/// This mode.
pub static MODE: Mode = Mode {
    id: "open_files",
    title: "processes, the machine or a user run out of file descriptors or inotify",
    metrics: &[
        &assess::HANDLES_ALLOCATED,
        &assess::HANDLES_LIMIT,
        &assess::OPEN_FDS,
        &assess::PROCESSES,
        &assess::PROCESS_OPEN_FDS,
        &assess::PROCESS_FD_LIMIT,
        &assess::PROCESS_FDS,
        &assess::COMMAND_OPEN_FDS,
        &assess::COMMAND_PROCESSES,
        &assess::COMMAND_WORST_RATIO,
        &inotify::INSTANCES,
        &inotify::INSTANCES_LIMIT,
        &inotify::WATCHES,
        &inotify::WATCHES_LIMIT,
        &inotify::UNEXAMINED,
    ],
    build: |settings| Box::new(OpenFiles::new(settings.open_files.clone(), settings.runtime.clone())),
};

/// A larger [`Settings::top`] counts as this: each such process is an fd of ours during the scrape and a dozen series.
const MOST_TOP: usize = 100;
/// A larger [`Settings::commands`] counts as this.
const MOST_COMMANDS: usize = 200;
/// Daemons in detail, lowest pids first. A node has about ten; anyone may call a process `kubelet`.
const MOST_DAEMONS: usize = 32;
/// How long the runtime may take.
const RUNTIME: Duration = Duration::from_secs(5);

/// Settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How many processes nearest their limit, and how many with the most fds, are shown in detail (at most 100).
    pub top: usize,
    /// How many commands have sums of their own (at most 200).
    pub commands: usize,
    /// Names of processes that are always shown in detail. The kernel knows the first 15 bytes of a name.
    pub daemons: Vec<String>,
    /// Most links of fds that one scrape reads to tell kinds of fds.
    pub max_readlinks: usize,
    /// Fds that one scrape looks at again although nothing says that they changed, to find inotify instances.
    pub inotify_reexamine: usize,
    /// Most links of fds that one scrape reads to find inotify instances.
    pub inotify_max_readlinks: usize,
}

impl Default for Settings {
    fn default() -> Self {
        let daemons = [
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
        Settings {
            top: 10,
            commands: 20,
            daemons: daemons.map(str::to_owned).to_vec(),
            max_readlinks: 10_000,
            inotify_reexamine: 500,
            inotify_max_readlinks: 10_000,
        }
    }
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
    inotify: Mutex<inotify::Index>,
}

impl OpenFiles {
    fn new(settings: Settings, runtime: Runtime) -> Self {
        OpenFiles { settings, runtime, inotify: Mutex::default() }
    }
}

impl Collector for OpenFiles {
    fn collect(&self, context: Context<'_>) -> Result<Samples> {
        let Context { host, deadline } = context;
        let mut samples = Samples::new();
        let handles = samples.ok(FileHandles::read(host)).flatten();
        let processes = Processes::open(host)?;
        // A panic of ours half-way leaves it outdated at worst, and it is checked against the kernel each time.
        let mut inotify = self.inotify.lock().unwrap_or_else(PoisonError::into_inner);
        inotify.begin();
        let mut snapshot = Snapshot::take(&processes, &self.settings, deadline, |process| inotify.observe(process))?;
        if snapshot.is_empty() && handles.is_none() {
            return Err(Error::absent(format!("{}: no processes and no sys/fs/file-nr", host.proc("").display())));
        }
        let usage = inotify.update(&processes, &self.settings, snapshot.cut.is_none(), deadline);
        // After the sweep: a runtime that does not answer takes no time from it, and names only.
        if names::wanted(&snapshot.detailed) {
            match self.runtime.inventory(host, deadline.part(RUNTIME)) {
                Ok(inventory) => names::fill(&mut snapshot.detailed, &inventory),
                Err(error) if error.reason() == Reason::Absent => {}
                Err(error) => samples.fail(error.context("names of pods and containers")),
            }
        }
        let entitled = processes.entitled();
        assess::assess(snapshot, self.settings.commands, handles, usage.refused, entitled, &mut samples);
        inotify::assess(&usage, &inotify::Limits::read(host, &mut samples), &mut samples);
        Ok(samples)
    }
}

#[cfg(test)]
mod tests;
