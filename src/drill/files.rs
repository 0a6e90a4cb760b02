//! Open files, connections to the runtime's socket, inotify.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::cli::{Inotify, OpenFiles};
use super::journal::{Item, Journal, MARK};
use super::{Result, Run, children, failed, refused, tried};

/// Never more connections to a socket that others need.
const MOST_CONNECTIONS: u64 = 2000;
/// Never more than this part of the system-wide table.
const PART_OF_TABLE: u64 = 2;

fn count(options: &OpenFiles) -> Result<u64> {
    if options.runtime_socket.is_some() {
        let count = options.count.unwrap_or(100);
        return if count > MOST_CONNECTIONS {
            refused(format_args!("at most {MOST_CONNECTIONS} connections"))
        } else {
            Ok(count)
        };
    }
    let count = options.count.unwrap_or(options.limit * 95 / 100);
    let table = tried("file-nr", fs::read_to_string("/proc/sys/fs/file-nr"))?;
    let numbers: Vec<u64> = table.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [allocated, _, limit] = *numbers.as_slice() else { return failed("file-nr: not three numbers") };
    if allocated.saturating_add(count) > limit / PART_OF_TABLE {
        return refused(format_args!(
            "{count} more would take over half of the system's file table ({allocated} of {limit})"
        ));
    }
    Ok(count)
}

pub(super) fn plan_open(options: &OpenFiles) -> Result<Vec<String>> {
    let count = count(options)?;
    let made = match &options.runtime_socket {
        Some(socket) => format!(
            "start a process that opens a connection to {} every {} ms, {count} in all; see \
             headroom_runtime_socket_connections, alert on one client holding many",
            socket.display(),
            options.every.as_millis()
        ),
        None => format!(
            "start a process with a limit of {} that opens {count} files; see headroom_process_open_fds and \
             headroom_process_fd_limit with comm=\"headroom-drill\", alert on a process near its limit",
            options.limit
        ),
    };
    Ok(vec![made])
}

pub(super) fn make_open(options: &OpenFiles, run: &mut Run) -> Result<()> {
    let count = count(options)?.to_string();
    let mut child = match &options.runtime_socket {
        Some(socket) => children::spawn(&[
            "connections",
            &count,
            &options.limit.to_string(),
            &socket.to_string_lossy(),
            &options.every.as_millis().to_string(),
        ])?,
        None => children::spawn(&["open-files", &count, &options.limit.to_string()])?,
    };
    children::go(&mut child)?;
    let pid = run.journal.adopt(child)?;
    watch_fds(run, pid)
}

fn watch_fds(run: &mut Run, pid: u32) -> Result<()> {
    run.every_second(|_, _| match fs::read_dir(format!("/proc/{pid}/fd")) {
        Ok(fds) => Ok(format!("pid {pid} holds {} file descriptors", fds.count())),
        Err(error) => failed(format_args!("the process of the drill is gone: {error}")),
    })
}

fn instances(options: &Inotify) -> Result<u64> {
    let limit = tried("max_user_instances", fs::read_to_string("/proc/sys/fs/inotify/max_user_instances"))?;
    let limit: u64 = tried("max_user_instances", limit.trim().parse())?;
    Ok(options.instances.unwrap_or((limit * 95 / 100).clamp(1, 8192)))
}

pub(super) fn plan_inotify(options: &Inotify) -> Result<Vec<String>> {
    Ok(vec![format!(
        "start a process as uid {} with {} inotify instances and {} watches on files below {}; see \
         headroom_inotify_instances and headroom_inotify_watches of that uid",
        options.uid,
        instances(options)?,
        options.watches,
        options.scratch.display()
    )])
}

pub(super) fn make_inotify(options: &Inotify, run: &mut Run) -> Result<()> {
    let instances = instances(options)?;
    let directory = options.scratch.join(format!("{MARK}{}", Journal::number()));
    if directory.exists() {
        return refused(format_args!("{} exists", directory.display()));
    }
    run.journal.note(Item::Tree(directory.clone()))?;
    tried(directory.display(), fs::create_dir(&directory))?;
    tried(directory.display(), fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)))?;
    for number in 0..options.watches.div_ceil(instances) {
        run.go_on()?;
        let file = directory.join(number.to_string());
        tried(file.display(), fs::write(&file, ""))?;
    }
    let (watches, uid) = (options.watches.to_string(), options.uid.to_string());
    let mut child =
        children::spawn(&["inotify", &instances.to_string(), &watches, &uid, &directory.to_string_lossy()])?;
    children::go(&mut child)?;
    let pid = run.journal.adopt(child)?;
    watch_fds(run, pid)
}
