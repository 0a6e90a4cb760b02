//! Makes a failure on purpose, on a node that one can spare, to see whether anybody is paged: the binary
//! `headroom-drill`.
//!
//! It is the only part that writes, and the exporter is built without it (`--no-default-features`). What keeps it
//! harmless:
//!
//! - Nothing happens without `--i-know-this-node`; `--dry-run` says what would.
//! - Whatever it makes is written into a journal **before** it is made (`drill/journal.rs`). The journal is undone at
//!   the end, on a signal, on a panic; by a watchdog of its own if the drill is killed; and by `headroom-drill clean`
//!   or the next run if that was killed too.
//! - It undoes only what is named as its own: `headroom-drill-…`, or where a name must be hexadecimal, those letters in
//!   hexadecimal.
//! - Every count has a cap, every drill an end.
//!
//! And what keeps it honest: each second it looks with the kernel's own eyes whether what it made is still there. On a
//! node there are others who remove things, the kubelet first of all. What is taken from a drill ends it, with a word.
#![allow(clippy::disallowed_methods, reason = "it makes failures: it must write, and it is not the exporter")]

mod cgroups;
mod children;
mod cli;
mod connection;
mod connections;
mod disk;
mod emptydir;
mod expect;
mod files;
mod interface;
mod journal;
mod kubelet;
mod orphaned_mounts;
mod paths;
mod runtime_socket;
mod stop;
mod system_filesystem;
mod tasks;
mod volume;

use std::fmt;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Parser as _;

use cgroups::CgroupLeak;
use cli::{Cli, Common, Helper, OpenFiles};
use connection::StalledConnection;
use disk::{Disk, Inodes};
use expect::Page;
use files::Inotify;
use interface::PodInterface;
use journal::Journal;
use orphaned_mounts::OrphanedMounts;
use stop::Stop;
use system_filesystem::SystemFilesystem;
use tasks::TaskLimit;
use volume::MemoryVolume;

use crate::printable::printable_lines;

/// Ended with everything cleaned up, whether by itself or by a signal.
const WELL: u8 = 0;
/// The fault could not be made, or not be kept. What was made of it is gone.
const FAILED: u8 = 1;
/// Refused: not root, no `--i-know-this-node`, beyond a cap, a place that is not the drill's. clap's own code for wrong
/// flags.
const REFUSED: u8 = 2;
/// Something could not be removed. The journal is kept: `headroom-drill clean` tries again.
const LEFT: u8 = 3;

/// Why a drill did not go on.
#[derive(Debug)]
enum Trouble {
    Refused(String),
    Failed(String),
}

impl Trouble {
    fn why(&self) -> &str {
        match self {
            Trouble::Refused(why) | Trouble::Failed(why) => why,
        }
    }
}

type Result<T> = std::result::Result<T, Trouble>;

fn refused<T>(why: impl fmt::Display) -> Result<T> {
    Err(Trouble::Refused(why.to_string()))
}

fn failed<T>(why: impl fmt::Display) -> Result<T> {
    Err(Trouble::Failed(why.to_string()))
}

/// Names what was tried in the operating system's error.
fn tried<T, E: fmt::Display>(what: impl fmt::Display, result: std::result::Result<T, E>) -> Result<T> {
    result.map_err(|error| Trouble::Failed(format!("{what}: {error}")))
}

/// A line for the person who watches. That nobody reads it is no reason to stop.
fn say(line: impl fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{}", printable_lines(&line.to_string()));
}

fn complain(line: impl fmt::Display) {
    let _ = writeln!(std::io::stderr(), "headroom-drill: {}", printable_lines(&line.to_string()));
}

/// Runs a program to its end.
fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let command = format!("{program} {}", arguments.join(" "));
    let output = tried(&command, Command::new(program).args(arguments).stdin(Stdio::null()).output())?;
    if !output.status.success() {
        return failed(format_args!("{command}: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// One drill under way.
struct Run {
    journal: Journal,
    stop: Stop,
    until: Instant,
}

impl Run {
    /// Calls `each` about once a second until the time is over or a signal came, and says what it answers. Before that
    /// it looks whether the drill's processes and its journal are still there; `each` does so for the rest.
    fn every_second(&mut self, mut each: impl FnMut(&mut Journal, Duration) -> Result<String>) -> Result<()> {
        self.every_second_until(|journal, elapsed| each(journal, elapsed).map(Next::Line))
    }

    /// The same for a fault that may have an end of its own.
    fn every_second_until(&mut self, mut each: impl FnMut(&mut Journal, Duration) -> Result<Next>) -> Result<()> {
        let begin = Instant::now();
        while !self.stop.asked() && Instant::now() < self.until {
            self.journal.check()?;
            let next = each(&mut self.journal, begin.elapsed())?;
            let (Next::Line(line) | Next::End(line)) = &next;
            say(format_args!("t={}s {line}", begin.elapsed().as_secs()));
            if matches!(next, Next::End(_)) {
                break;
            }
            self.stop.wait(Duration::from_secs(1).min(self.until.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }

    /// An error once a signal came: for loops that make many things.
    fn go_on(&self) -> Result<()> {
        if self.stop.asked() { failed("ended by a signal before the fault was complete") } else { Ok(()) }
    }
}

/// What a drill says of one second.
enum Next {
    Line(String),
    /// The fault has taken its course.
    End(String),
}

/// The whole program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let code = match cli.drill {
        Drill::Helper(helper) => children::helper(helper),
        Drill::Watchdog { journal } => journal::watchdog(&journal),
        drill => match drive(&cli.common, drill.fault()) {
            Ok(code) => code,
            Err(Trouble::Refused(why)) => {
                complain(format_args!("refused: {why}"));
                REFUSED
            }
            Err(Trouble::Failed(why)) => {
                complain(why);
                FAILED
            }
        },
    };
    ExitCode::from(code)
}

/// Makes the failure; without one it removes what a killed drill left.
fn drive(common: &Common, fault: Option<&dyn Fault>) -> Result<u8> {
    if common.dry_run {
        if let Some(fault) = fault {
            say(format_args!(
                "would run for {}s, journal below {}",
                common.duration.as_secs(),
                common.state_dir.display()
            ));
            for line in fault.plan()? {
                say(format_args!("would {line}"));
            }
            expect::tell(fault, common.duration);
        } else {
            say(journal::describe(&common.state_dir));
        }
        return Ok(WELL);
    }
    if !rustix::process::geteuid().is_root() {
        return refused("it needs root (cgroups, mounts, namespaces, firewall rules)");
    }
    if fault.is_some() && !common.i_know_this_node {
        return refused(
            "this makes a real failure on this machine. Pass --i-know-this-node if it is one that may fail, or --dry-run to see what would be made",
        );
    }
    let left = journal::clean(&common.state_dir)?;
    let Some(fault) = fault else { return Ok(if left { LEFT } else { WELL }) };
    for line in fault.plan()? {
        say(format_args!("will {line}"));
    }
    expect::tell(fault, common.duration);
    // The handlers first: a signal at any later moment ends us orderly.
    let stop = Stop::install()?;
    let journal = Journal::start(&common.state_dir)?;
    let mut run = Run { journal, stop, until: Instant::now() + common.duration };
    let outcome = fault.make(&mut run);
    let asked = run.stop.asked();
    let code = match &outcome {
        Ok(()) => WELL,
        Err(Trouble::Failed(_)) if asked => WELL,
        Err(Trouble::Failed(why)) => {
            complain(format_args!("FAILED: {why}"));
            FAILED
        }
        Err(Trouble::Refused(why)) => {
            complain(format_args!("refused: {why}"));
            REFUSED
        }
    };
    let whole = run.journal.undo();
    say(if whole { "all cleaned up" } else { "NOT all cleaned up: run headroom-drill clean" });
    Ok(if whole { code } else { LEFT })
}

/// What there is to be made.
#[derive(clap::Subcommand, Debug)]
enum Drill {
    /// Cgroups below kubepods that belong to no container (cgroup_leak)
    CgroupLeak(CgroupLeak),
    /// A process close to its limit of open files, or one that leaks connections to the runtime's socket (open_files)
    OpenFiles(OpenFiles),
    /// Inotify instances and watches of a user that nothing else runs as (open_files)
    Inotify(Inotify),
    /// A memory-backed emptyDir whose writer is killed and started again (memory_volume)
    MemoryVolume(MemoryVolume),
    /// A pod at its limit of processes and threads (task_limit)
    TaskLimit(TaskLimit),
    /// A file system without free bytes (eviction)
    Disk(Disk),
    /// A file system without free inodes (eviction)
    Inodes(Inodes),
    /// A file system that nobody evicts for, without free bytes or inodes (system_filesystem)
    SystemFilesystem(SystemFilesystem),
    /// Mounts of a pod that no longer exists (cni_leak)
    OrphanedMounts(OrphanedMounts),
    /// A connection whose replies vanish while new ones work (apiserver_connection)
    StalledConnection(StalledConnection),
    /// A pod that loses its network interface (pod_interface)
    PodInterface(PodInterface),
    /// Remove what a killed drill left
    Clean,
    #[command(hide = true, subcommand)]
    Helper(Helper),
    #[command(hide = true)]
    Watchdog { journal: PathBuf },
    /// Makes a file and a process, and panics: for the test of that end
    #[command(hide = true)]
    Panic,
}

impl Drill {
    /// What it makes; nothing for what is no drill.
    fn fault(&self) -> Option<&dyn Fault> {
        Some(match self {
            Drill::CgroupLeak(fault) => fault,
            Drill::OpenFiles(fault) => fault,
            Drill::Inotify(fault) => fault,
            Drill::MemoryVolume(fault) => fault,
            Drill::TaskLimit(fault) => fault,
            Drill::Disk(fault) => fault,
            Drill::Inodes(fault) => fault,
            Drill::SystemFilesystem(fault) => fault,
            Drill::OrphanedMounts(fault) => fault,
            Drill::StalledConnection(fault) => fault,
            Drill::PodInterface(fault) => fault,
            Drill::Panic => &Panic,
            Drill::Clean | Drill::Helper(_) | Drill::Watchdog { .. } => return None,
        })
    }
}

/// A failure to be made, with what it was told on the command line.
trait Fault {
    /// What it makes and what one should see, a line each.
    fn plan(&self) -> Result<Vec<String>>;

    /// Makes it and keeps it until the run is over.
    fn make(&self, run: &mut Run) -> Result<()>;

    /// The pages that it must cause.
    fn pages(&self) -> Vec<Page>;
}

/// The end that no drill should have, with a file and a process to be cleaned up.
struct Panic;

impl Fault for Panic {
    fn plan(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn make(&self, run: &mut Run) -> Result<()> {
        let file = std::env::temp_dir().join(format!("{}{}-panic", journal::MARK, Journal::number()));
        run.journal.note(journal::Item::File(file.clone()))?;
        tried(file.display(), std::fs::write(&file, ""))?;
        let mut child = children::spawn(&["sleep"])?;
        children::go(&mut child)?;
        let pid = run.journal.adopt(child)?;
        panic!("as it was asked to, with {} and process {pid}", file.display());
    }

    fn pages(&self) -> Vec<Page> {
        Vec::new()
    }
}
