//! The drills `open-files`, without a socket, and `inotify`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cli::OpenFiles;
use super::expect::{Page, page};
use super::journal::{Item, Journal, MARK};
use super::paths::real;
use super::{Fault, Result, Run, children, failed, refused, runtime_socket, tried};

/// Never more than this part of the system-wide table.
const PART_OF_TABLE: u64 = 2;
/// Descriptors of the process that are none of the opened files.
const SPARE: u64 = 8;

fn count(options: &OpenFiles) -> Result<u64> {
    let count = options.count.unwrap_or(options.limit * 95 / 100);
    if count + SPARE > options.limit && options.count.is_some() {
        return refused(format_args!(
            "a process with a limit of {} holds {} open files at most: raise --limit",
            options.limit,
            options.limit - SPARE
        ));
    }
    let count = count.min(options.limit - SPARE);
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

impl Fault for OpenFiles {
    fn plan(&self) -> Result<Vec<String>> {
        let made = match &self.runtime_socket {
            Some(socket) => format!(
                "start a process that opens a connection to {} every {} ms, {} in all, says as much on each as its server asks for, \
                 and makes those anew that are closed; see headroom_runtime_socket_connections, alert on one client holding many",
                socket.display(),
                self.every.as_millis(),
                runtime_socket::count(self)?
            ),
            None => format!(
                "start a process with a limit of {} that opens {} files; see headroom_process_open_fds and \
                 headroom_process_fd_limit with comm=\"headroom-drill\", alert on a process near its limit",
                self.limit,
                count(self)?
            ),
        };
        Ok(vec![made])
    }

    fn make(&self, run: &mut Run) -> Result<()> {
        if let Some(socket) = &self.runtime_socket {
            return runtime_socket::make(self, socket, run);
        }
        let count = count(self)?;
        let mut child = children::spawn(&["open-files", &count.to_string(), &self.limit.to_string()])?;
        children::go(&mut child)?;
        let pid = run.journal.adopt(child)?;
        run.every_second(|_, elapsed| {
            let held = held(pid, |_| true)?;
            if held < count && elapsed >= LONGEST_START {
                return failed(format_args!("process {pid} holds only {held} of {count} file descriptors"));
            }
            Ok(format!("pid {pid} holds {held} file descriptors"))
        })
    }

    fn pages(&self) -> Vec<Page> {
        if self.runtime_socket.is_some() {
            return vec![page("HeadroomRuntimeSocketClientLeak", 355, "after the 100th connection")];
        }
        vec![page("HeadroomProcessNearFdLimit", 175, "where --limit is at least 256")]
    }
}

/// How long a process of the drill may take to open what it shall hold.
const LONGEST_START: Duration = Duration::from_secs(30);

/// Descriptors of a process that lead to such things.
fn held(pid: u32, wanted: impl Fn(&Path) -> bool) -> Result<u64> {
    let fds = tried(format_args!("process {pid} of the drill"), fs::read_dir(format!("/proc/{pid}/fd")))?;
    Ok(fds.flatten().filter(|fd| fs::read_link(fd.path()).is_ok_and(|link| wanted(&link))).count() as u64)
}

fn instances(options: &Inotify) -> Result<u64> {
    let limit = tried("max_user_instances", fs::read_to_string("/proc/sys/fs/inotify/max_user_instances"))?;
    let limit: u64 = tried("max_user_instances", limit.trim().parse())?;
    Ok(options.instances.unwrap_or((limit * 95 / 100).clamp(1, 8192)))
}

#[derive(clap::Args, Debug)]
pub(super) struct Inotify {
    /// The user that holds them: one that nothing else runs as
    #[arg(long, default_value_t = 64_999, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) uid: u32,
    /// How many instances [default: 95 % of fs.inotify.max_user_instances]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=8192))]
    pub(super) instances: Option<u64>,
    /// How many watches
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    pub(super) watches: u64,
    /// Where the watched files are made
    #[arg(long, value_name = "DIR", default_value = "/tmp")]
    pub(super) scratch: PathBuf,
}

impl Fault for Inotify {
    fn plan(&self) -> Result<Vec<String>> {
        Ok(vec![format!(
            "start a process as uid {} with {} inotify instances and {} watches on files below {}; see \
             headroom_inotify_instances and headroom_inotify_watches of that uid",
            self.uid,
            instances(self)?,
            self.watches,
            self.scratch.display()
        )])
    }

    fn make(&self, run: &mut Run) -> Result<()> {
        let instances = instances(self)?;
        let directory = real(&self.scratch)?.join(format!("{MARK}{}", Journal::number()));
        if directory.exists() {
            return refused(format_args!("{} exists", directory.display()));
        }
        run.journal.note(Item::Tree(directory.clone()))?;
        tried(directory.display(), fs::create_dir(&directory))?;
        tried(directory.display(), fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)))?;
        let files = self.watches.div_ceil(instances);
        for number in 0..files {
            run.go_on()?;
            let file = directory.join(number.to_string());
            tried(file.display(), fs::write(&file, ""))?;
        }
        let (watches, uid) = (self.watches.to_string(), self.uid.to_string());
        let mut child =
            children::spawn(&["inotify", &instances.to_string(), &watches, &uid, &directory.to_string_lossy()])?;
        children::go(&mut child)?;
        let pid = run.journal.adopt(child)?;
        run.every_second(|_, elapsed| {
            let held = held(pid, |link| link.as_os_str() == "anon_inode:inotify")?;
            if held < instances && elapsed >= LONGEST_START {
                return failed(format_args!("process {pid} holds only {held} of {instances} inotify instances"));
            }
            // A watch goes with its file.
            let left = fs::read_dir(&directory).map_or(0, Iterator::count) as u64;
            if left < files {
                return failed(format_args!(
                    "{} of the {files} watched files in {} were removed, and the watches with them: --scratch names a directory that \
                     nobody cleans up",
                    files - left,
                    directory.display()
                ));
            }
            Ok(format!("pid {pid} holds {held} inotify instances and {} watches", self.watches))
        })
    }

    fn pages(&self) -> Vec<Page> {
        vec![page("HeadroomInotifyInstancesNearLimit", 355, "")]
    }
}
