//! Processes of a drill's own: this program again, with a hidden command. Each ends with its standard input and by the
//! parent's death.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::fs::inotify;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit};
use rustix::thread::set_thread_uid;

use super::cli::Helper;
use super::{FAILED, Result, WELL, complain, connections, tried};

/// Starts one. It does its work once [`go`] is called.
pub(super) fn spawn(arguments: &[&str]) -> Result<Child> {
    spawn_with(arguments, Stdio::null())
}

/// One that says something on its standard output.
pub(super) fn spawn_with(arguments: &[&str], output: Stdio) -> Result<Child> {
    let ours = tried("the program's own path", std::env::current_exe())?;
    let mut command = Command::new(ours);
    command.arg("helper").args(arguments).stdin(Stdio::piped()).stdout(output);
    tried("a process of the drill", command.spawn())
}

/// Lets it begin.
pub(super) fn go(child: &mut Child) -> Result<()> {
    let stdin = child.stdin.as_mut();
    tried("a process of the drill", stdin.map_or(Ok(()), |stdin| stdin.write_all(b"g")))
}

/// What it does.
pub(super) fn helper(helper: Helper) -> u8 {
    // Both: the signal is lost by a change of user, the end of the input comes late in a full system.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    if !matches!(std::io::stdin().read(&mut [0]), Ok(1)) {
        return WELL;
    }
    match work(helper) {
        Ok(held) => {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            drop(held);
            WELL
        }
        Err(error) => {
            complain(error);
            FAILED
        }
    }
}

fn work(helper: Helper) -> std::io::Result<Box<dyn std::any::Any>> {
    match helper {
        Helper::OpenFiles { count, limit } => {
            limit_files(limit)?;
            Ok(Box::new((0..count).map(|_| File::open("/dev/null")).collect::<std::io::Result<Vec<_>>>()?))
        }
        Helper::Connections { count, limit, socket, every_ms } => {
            limit_files(limit)?;
            connections::hold(count, &socket, Duration::from_millis(every_ms))?;
            Ok(Box::new(()))
        }
        Helper::Inotify { instances, watches, uid, directory } => watch(instances, watches, uid, &directory),
        Helper::Write { file, bytes } => {
            let mut file = File::options().append(true).create(true).open(file)?;
            for _ in 0..bytes.div_ceil(1 << 16) {
                file.write_all(&[b'x'; 1 << 16])?;
            }
            Ok(Box::new(()))
        }
        Helper::Tasks { count } => {
            threads(count)?;
            Ok(Box::new(()))
        }
        Helper::Sleep => Ok(Box::new(())),
    }
}

/// So many threads, this process's first one and the one that makes the others included. What is refused is tried again
/// each second.
fn threads(count: u64) -> std::io::Result<()> {
    const STACK: usize = 64 << 10;
    let thread = || std::thread::Builder::new().stack_size(STACK);
    let make = move || {
        let mut having = 2;
        loop {
            while having < count && thread().spawn(std::thread::park).is_ok() {
                having += 1;
            }
            std::thread::sleep(Duration::from_secs(1));
        }
    };
    thread().spawn(make).map(drop)
}

/// Sets its own limit of open files.
fn limit_files(limit: u64) -> std::io::Result<()> {
    let hard = getrlimit(Resource::Nofile).maximum;
    let maximum = hard.map(|hard| hard.max(limit));
    setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum }).map_err(|errno| {
        let hard = hard.unwrap_or(u64::MAX);
        std::io::Error::other(format!("a limit of {limit} open files: {errno} (the hard limit is {hard})"))
    })
}

fn watch(instances: u64, watches: u64, uid: u32, directory: &Path) -> std::io::Result<Box<dyn std::any::Any>> {
    // Instances and watches are charged to the user who makes the instance. There is one thread.
    let uid = rustix::process::Uid::from_raw(uid);
    set_thread_uid(uid)?;
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let made = (0..instances).map(|_| inotify::init(inotify::CreateFlags::CLOEXEC));
    let held = made.collect::<std::result::Result<Vec<_>, _>>()?;
    for number in 0..watches {
        let file = directory.join((number / instances).to_string());
        let instance = &held[usize::try_from(number % instances).unwrap_or(0)];
        inotify::add_watch(instance, &file, inotify::WatchFlags::DELETE_SELF)?;
    }
    Ok(Box::new(held))
}
