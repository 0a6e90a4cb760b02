//! From a snapshot to numbers. Pure: no system call, no clock.

use std::cmp::Reverse;
use std::collections::HashMap;

use crate::error::{Error, Reason};
use crate::host::process::Processes;
use crate::host::process::fds::Kind;
use crate::host::process::parse::Limit;
use crate::metric::{Metric, Samples, Unit};

use super::names::unknown_pod;
use super::snapshot::{Command, Detail, Snapshot};
use super::{FileHandles, MOST_COMMANDS};

pub(super) static HANDLES_ALLOCATED: Metric = Metric::gauge(
    "headroom_file_handles_allocated",
    Unit::None,
    &[],
    "Open files of the whole machine (first field of /proc/sys/fs/file-nr), exact to a few dozen per CPU.\n\n\
     Fewer than headroom_open_fds where processes share files after fork; more where the kernel or a socket queue \
     holds files that no process has a descriptor for.",
);
pub(super) static HANDLES_LIMIT: Metric = Metric::gauge(
    "headroom_file_handles_limit",
    Unit::None,
    &[],
    "Most open files that the whole machine may have (fs.file-max). Root may exceed it.\n\n\
     About 9.2e18 means that systemd or the distribution lifted the limit.",
);
pub(super) static PROTECTED: Metric = Metric::gauge(
    "headroom_protected_processes",
    Unit::None,
    &[],
    "Processes whose file descriptors nobody may look at, root included. Their descriptors are counted, not told \
     apart.\n\n\
     The first process of some virtual machines, security agents. Which of their descriptors are inotify or sockets \
     is not known. Missing if the exporter itself lacks the right to look.",
);
pub(super) static OPEN_FDS: Metric = Metric::gauge(
    "headroom_open_fds",
    Unit::None,
    &[],
    "File descriptors of all processes together. Missing if those of even one process could not be counted: a sum without it \
     would be a lie.",
);
pub(super) static PROCESSES: Metric = Metric::gauge(
    "headroom_processes",
    Unit::None,
    &[],
    "Processes in this procfs, kernel threads and zombies included, threads of a process not. Too few if the procfs is \
     mounted with hidepid=2, or is that of a pod without hostPID.",
);
const PROCESS: &[&str] = &["pid", "comm", "pod_uid", "container_id", "namespace", "pod", "container"];
pub(super) static PROCESS_OPEN_FDS: Metric = Metric::gauge(
    "headroom_process_open_fds",
    Unit::None,
    PROCESS,
    "File descriptors of one process. Shown: processes nearest their limit or with the most, daemons of the node, \
     this exporter.\n\n\
     Nearest and most are chosen for the node and for pods apart. Of each pod up to 8 more processes that use over a \
     tenth of their limit. A soft limit below 256 counts as none. The exporter's own count includes the processes \
     that it holds open while it reads. A series ends when its process leaves that choice. Names are the runtime's, \
     by container id or pod UID; a pause process has no container name. pod_uid is empty outside of pods, and unknown \
     where that cannot be told.",
);
pub(super) static PROCESS_FD_LIMIT: Metric = Metric::gauge(
    "headroom_process_fd_limit",
    Unit::None,
    PROCESS,
    "Soft limit of open files of the same processes (/proc/PID/limits): at it, open and accept fail with EMFILE. A \
     configuration file that says otherwise is wrong about the running process.",
);
pub(super) static PROCESS_FDS: Metric = Metric::gauge(
    "headroom_process_fds",
    Unit::None,
    &["pid", "comm", "kind"],
    "File descriptors of a process by kind (links in /proc/PID/fd). The sum over kinds, unexamined included, is \
     exact.\n\n\
     For the processes of headroom_process_open_fds but those shown only as their pod's share. Read a moment later than \
     that count when it changes, and else at every fourth scrape. unexamined: what the budget of readlinks did not reach. A kind of which a process has none has \
     no series. A directory or a named pipe is a file.",
);
pub(super) static CLOSE_WAIT: Metric = Metric::gauge(
    "headroom_process_close_wait_sockets",
    Unit::None,
    &["pid", "comm"],
    "TCP sockets of a process whose peer has closed and that the process has not closed (CLOSE_WAIT). Steady growth \
     is a leak.\n\n\
     A lower bound while headroom_process_fds has kind=unexamined for the process, and of the sockets that it had when \
     its kinds were read. Missing for a process in a network \
     namespace of its own, whose sockets the host's list does not have.",
);
pub(super) static COMMAND_OPEN_FDS: Metric = Metric::gauge(
    "headroom_command_open_fds",
    Unit::None,
    &["comm"],
    "File descriptors of all processes of one name: the names with the most, and the rest as comm=other. The sum is \
     headroom_open_fds.\n\n\
     Missing for a name with a process that could not be counted.",
);
pub(super) static COMMAND_PROCESSES: Metric = Metric::gauge(
    "headroom_command_processes",
    Unit::None,
    &["comm"],
    "Processes of one name that have file descriptors. comm=other holds those of other names and all without any (kernel \
     threads, zombies), so that the sum is headroom_processes.\n\n\
     A process that changes its name and keeps the number of its descriptors has its new name after 16 scrapes at the \
     most; one that is shown by itself, at once.",
);
pub(super) static COMMAND_WORST_RATIO: Metric = Metric::gauge(
    "headroom_command_fd_worst_ratio",
    Unit::Ratio,
    &["comm"],
    "Largest share of its own soft limit that a process of this name uses. Above 1 if the limit was lowered \
     afterwards.\n\n\
     Missing for a name with a process that could not be counted. A limit that is changed while the process runs counts \
     after 16 scrapes at the most; that of headroom_process_fd_limit is read at each.",
);

/// The numbers of one snapshot. `inotify_refused`: processes in which inotify may not be looked for; `entitled`: we
/// hold the capabilities that it takes.
pub(super) fn assess(
    snapshot: Snapshot,
    commands: usize,
    handles: Option<FileHandles>,
    inotify_refused: u64,
    entitled: bool,
    samples: &mut Samples,
) {
    self::handles(handles, samples);
    for detail in &snapshot.detailed {
        process(detail, samples);
    }
    samples.drop_count(snapshot.left_out);

    let mut total = snapshot.nameless;
    snapshot.commands.values().for_each(|command| total.add(command));
    if let Some(error) = snapshot.cut {
        // Every sum would be of a part of the processes.
        samples.fail(error);
    } else {
        samples.push(&PROCESSES, &[], total.processes as f64);
        samples.push_some(&OPEN_FDS, &[], (total.uncounted == 0).then_some(total.fds as f64));
        let by_name = snapshot.commands.iter().map(|(comm, command)| (comm.text().into_owned(), *command));
        for (name, command) in largest(by_name, snapshot.nameless, commands.min(MOST_COMMANDS)) {
            let counted = command.uncounted == 0;
            samples.push(&COMMAND_PROCESSES, &[&name], command.processes as f64);
            samples.push_some(&COMMAND_OPEN_FDS, &[&name], counted.then_some(command.fds as f64));
            samples.push_some(&COMMAND_WORST_RATIO, &[&name], command.worst_ratio.filter(|_| counted));
        }
    }

    refusals(total.uncounted, snapshot.kinds_refused, inotify_refused, entitled, samples);
}

/// The files of the whole machine.
pub(super) fn handles(handles: Option<FileHandles>, samples: &mut Samples) {
    samples.push_some(&HANDLES_ALLOCATED, &[], handles.map(|handles| handles.allocated as f64));
    samples.push_some(&HANDLES_LIMIT, &[], handles.map(|handles| handles.limit as f64));
}

/// One error for everything that was refused, however many processes it was.
fn refusals(uncounted: u64, kinds: Option<(u64, Error)>, inotify: u64, entitled: bool, samples: &mut Samples) {
    let (kinds, first) = kinds.map_or((0, None), |(kinds, first)| (kinds, Some(first)));
    if uncounted + kinds + inotify == 0 {
        return samples.push_some(&PROTECTED, &[], entitled.then_some(0.0));
    }
    let refused = kinds.max(inotify);
    let protected = Processes::protect_themselves(refused, entitled);
    if protected && uncounted == 0 && first.as_ref().is_none_or(|error| error.reason() == Reason::Denied) {
        return samples.push(&PROTECTED, &[], refused as f64);
    }
    let reason = match &first {
        Some(first) if uncounted + inotify == 0 => first.reason(),
        _ => Reason::Denied,
    };
    let first = first.map(|error| format!("; first: {error}")).unwrap_or_default();
    let parts = [
        (uncounted, "could not be counted"),
        (kinds, "shown in detail could not be told apart by kind"),
        (inotify, "could not be searched for inotify"),
    ];
    let parts = parts.iter().filter(|(count, _)| *count > 0);
    let parts = parts.map(|(count, what)| format!("fds of {count} processes {what}")).collect::<Vec<_>>().join(", ");
    samples.fail(Error::new(
        reason,
        format!(
            "{parts}: give the exporter CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE, and no AppArmor profile that denies it \
             ptrace (read){first}"
        ),
    ));
}

fn process(detail: &Detail, samples: &mut Samples) {
    let pid = detail.pid.to_string();
    let place = detail.place.as_ref();
    let uid = place.map_or(unknown_pod(detail.unplaced), |place| &place.pod_uid);
    let container = place.and_then(|place| place.container_id.as_deref()).unwrap_or("");
    let names = &detail.names;
    let labels = [&pid, detail.comm.as_str(), uid, container, &names.namespace, &names.pod, &names.container];
    samples.push(&PROCESS_OPEN_FDS, &labels, detail.fds as f64);
    if let Some(Limit::Files(limit)) = detail.limit {
        samples.push(&PROCESS_FD_LIMIT, &labels, limit as f64);
    }
    if let Some(kinds) = &detail.kinds {
        let counts = Kind::ALL.iter().map(|&kind| (kind.as_str(), kinds.get(kind)));
        for (kind, count) in counts.chain([("unexamined", kinds.unexamined)]) {
            if count > 0 {
                samples.push(&PROCESS_FDS, &[&pid, &detail.comm, kind], count as f64);
            }
        }
        // None among a part of them is no 0.
        let close_wait = detail.close_wait.filter(|&count| count > 0 || kinds.unexamined == 0);
        samples.push_some(&CLOSE_WAIT, &[&pid, &detail.comm], close_wait.map(|count| count as f64));
    }
}

/// The `most` names with the most fds, then `other` with the sum of all others, which a program that is called so
/// joins.
fn largest(by_name: impl Iterator<Item = (String, Command)>, rest: Command, most: usize) -> Vec<(String, Command)> {
    // Names that differ only in bytes that are not UTF-8 have the same text, and must not become two series.
    let mut texts: HashMap<String, Command> = HashMap::new();
    for (text, command) in by_name {
        texts.entry(text).or_default().add(&command);
    }
    let mut other = rest;
    if let Some(namesake) = texts.remove("other") {
        other.add(&namesake);
    }
    let mut rows: Vec<_> = texts.into_iter().collect();
    rows.sort_unstable_by(|(a_name, a), (b_name, b)| (Reverse(a.fds), a_name).cmp(&(Reverse(b.fds), b_name)));
    let small = rows.split_off(most.min(rows.len()));
    small.iter().for_each(|(_, command)| other.add(command));
    rows.push(("other".to_owned(), other));
    rows
}
