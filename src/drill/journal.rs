//! What a drill made, written down before it is made, and undone from the last line to the first.
//!
//! A line is a kind and words, separated by tabs. The file is locked as long as the drill lives: who gets the lock,
//! finds a dead drill's.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::paths::is_mounted;
use super::{LEFT, Result, WELL, complain, failed, refused, run, say, tried};

/// What each name begins with.
pub(super) const MARK: &str = "headroom-drill-";
/// The same where a name must be hexadecimal: half of a container's id, all of a pod's uid but its last byte.
pub(super) const HEX: &str = "68656164726f6f6d2d6472696c6c2d";
/// The same where a name has fifteen bytes at most: an interface's.
pub(super) const SHORT: &str = "hrdrill-";

/// Removing a cgroup waits for its last process.
const PATIENCE: Duration = Duration::from_secs(10);

/// One thing that is to be undone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// A child, by its pid and the time of its start: a recycled pid is nobody of ours.
    Process(u32, String),
    /// A cgroup with all below it.
    Cgroup(PathBuf),
    /// Each cgroup in a directory whose name begins so.
    Cgroups(PathBuf, String),
    Mount(PathBuf),
    File(PathBuf),
    /// A directory with the files in it.
    Tree(PathBuf),
    /// A directory, if it is empty.
    Dir(PathBuf),
    Netns(String),
    Link(String),
    /// What `iptables -D INPUT` takes, and which iptables.
    Rule(String, String),
    /// Nothing: the network namespace and the mount namespace of the drill, in which alone the rest is found.
    Namespaces(String, String),
}

impl Item {
    fn line(&self) -> String {
        match self {
            Item::Process(pid, start) => format!("process\t{pid}\t{start}"),
            Item::Cgroup(path) => format!("cgroup\t{}", path.display()),
            Item::Cgroups(path, prefix) => format!("cgroups\t{}\t{prefix}", path.display()),
            Item::Mount(path) => format!("mount\t{}", path.display()),
            Item::File(path) => format!("file\t{}", path.display()),
            Item::Tree(path) => format!("tree\t{}", path.display()),
            Item::Dir(path) => format!("dir\t{}", path.display()),
            Item::Netns(name) => format!("netns\t{name}"),
            Item::Link(name) => format!("link\t{name}"),
            Item::Rule(program, rule) => format!("rule\t{program}\t{rule}"),
            Item::Namespaces(network, mounts) => format!("namespaces\t{network}\t{mounts}"),
        }
    }

    /// Where it is, if that is a path.
    fn path(&self) -> Option<&Path> {
        match self {
            Item::Cgroup(path)
            | Item::Cgroups(path, _)
            | Item::Mount(path)
            | Item::File(path)
            | Item::Tree(path)
            | Item::Dir(path) => Some(path),
            Item::Process(..) | Item::Netns(_) | Item::Link(_) | Item::Rule(..) | Item::Namespaces(..) => None,
        }
    }

    /// `None` also for a line that names something which is not a drill's.
    fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split('\t').collect();
        let ours = |path: &str| {
            let name = Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or_default();
            marked(name).then(|| PathBuf::from(path))
        };
        Some(match *words.as_slice() {
            ["process", pid, start] => Item::Process(pid.parse().ok()?, start.to_owned()),
            ["cgroup", path] => Item::Cgroup(ours(path)?),
            ["cgroups", path, prefix] if marked(prefix) => Item::Cgroups(path.into(), prefix.to_owned()),
            ["mount", path] => Item::Mount(path.into()),
            ["file", path] => Item::File(ours(path)?),
            ["tree", path] => Item::Tree(ours(path)?),
            ["dir", path] => Item::Dir(path.into()),
            ["netns", name] if marked(name) => Item::Netns(name.to_owned()),
            ["link", name] if name.starts_with(SHORT) => Item::Link(name.to_owned()),
            ["rule", program @ ("iptables" | "ip6tables"), rule] if rule.contains(MARK) => {
                Item::Rule(program.to_owned(), rule.to_owned())
            }
            ["namespaces", network, mounts] => Item::Namespaces(network.to_owned(), mounts.to_owned()),
            _ => return None,
        })
    }

    /// Our own.
    fn namespaces() -> Self {
        let of = |kind: &str| {
            let link = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap_or_default();
            link.to_string_lossy().into_owned()
        };
        Item::Namespaces(of("net"), of("mnt"))
    }

    /// True once it is gone.
    fn undo(&self) -> bool {
        match self {
            Item::Namespaces(..) => true,
            Item::Process(pid, start) => {
                let pid_of = || i32::try_from(*pid).ok().and_then(Pid::from_raw);
                if let Some(pid_of) = pid_of().filter(|_| started(*pid).as_ref() == Some(start)) {
                    let _ = kill_process(pid_of, Signal::KILL);
                }
                // A zombie holds nothing any more; who reaps it is not asked.
                eventually(|| started(*pid).as_ref() != Some(start) || is_zombie(*pid))
            }
            Item::Cgroup(path) => eventually(|| remove_cgroup(path)),
            Item::Cgroups(parent, prefix) => eventually(|| {
                let named = |name: &str| name.starts_with(prefix);
                directories(parent).into_iter().filter(|path| named(&name_of(path))).all(|path| remove_cgroup(&path))
            }),
            Item::Mount(path) => {
                let text = path.to_string_lossy();
                eventually(|| !is_mounted(path) || run("umount", &[&text]).is_ok())
                    || run("umount", &["-l", &text]).is_ok()
            }
            Item::File(path) => gone(fs::remove_file(path)),
            Item::Tree(path) => gone(fs::remove_dir_all(path)),
            // One that somebody else put something into stays.
            Item::Dir(path) => {
                gone(fs::remove_dir(path)) || fs::read_dir(path).is_ok_and(|mut inside| inside.next().is_some())
            }
            Item::Netns(name) => {
                !Path::new("/run/netns").join(name).exists() || run("ip", &["netns", "del", name]).is_ok()
            }
            Item::Link(name) => {
                run("ip", &["link", "show", name]).is_err() || run("ip", &["link", "del", name]).is_ok()
            }
            Item::Rule(program, rule) => {
                let words: Vec<&str> = rule.split(' ').collect();
                let with = |verb| [&["-w", verb, "INPUT"], words.as_slice()].concat();
                run(program, &with("-C")).is_err() || run(program, &with("-D")).is_ok()
            }
        }
    }
}

fn marked(name: &str) -> bool {
    name.contains(MARK) || name.replace(['-', '_'], "").contains(HEX)
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn gone(removed: std::io::Result<()>) -> bool {
    removed.map_or_else(|error| error.kind() == std::io::ErrorKind::NotFound, |()| true)
}

/// Those right below it.
pub(super) fn directories(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// Its processes are killed: a container's own children among them.
fn remove_cgroup(path: &Path) -> bool {
    directories(path).iter().for_each(|below| {
        remove_cgroup(below);
    });
    for pid in fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default().lines() {
        if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    let _ = fs::remove_dir(path);
    !path.exists()
}

fn eventually(mut so: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + PATIENCE;
    loop {
        if so() {
            return true;
        }
        if Instant::now() > until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the name, which may hold anything.
    Some(text.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}

/// When a process started, in clock ticks since boot: field 22 of proc(5).
fn started(pid: u32) -> Option<String> {
    stat(pid)?.get(19).cloned()
}

fn is_zombie(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| stat.first().is_some_and(|state| state == "Z"))
}

/// What cannot be seen from here of what these items name, if anything. It would be taken for gone.
fn hidden(items: &[Item]) -> Option<String> {
    let Item::Namespaces(network, mounts) = Item::namespaces() else { return None };
    let (theirs, of_mounts) = items.iter().find_map(|item| match item {
        Item::Namespaces(network, mounts) => Some((network, mounts)),
        _ => None,
    })?;
    let in_network = |item: &Item| matches!(item, Item::Link(_) | Item::Rule(..));
    let in_mounts = |item: &Item| matches!(item, Item::Mount(path) if !is_mounted(path));
    let elsewhere = if *theirs != network && items.iter().any(in_network) {
        format!("network namespace {theirs}")
    } else if *of_mounts != mounts && items.iter().any(in_mounts) {
        format!("mount namespace {of_mounts}")
    } else {
        return None;
    };
    Some(format!(
        "it is of a drill in another {elsewhere}: run clean there (nsenter, ip netns exec). If that namespace is gone, so is what was \
         in it: then remove the journal"
    ))
}

/// The journal of one drill.
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    items: Vec<Item>,
    /// Ours to reap.
    children: Vec<Child>,
    watchdog: Option<Child>,
    undone: bool,
}

impl Journal {
    pub(super) fn start(state_dir: &Path) -> Result<Self> {
        check_state_dir(state_dir)?;
        let path = state_dir.join(format!("{MARK}{}", std::process::id()));
        let options = File::options().write(true).create_new(true).to_owned();
        let file = tried(path.display(), options.open(&path))?;
        tried(path.display(), file.lock())?;
        let mut journal =
            Journal { path, file, items: Vec::new(), children: Vec::new(), watchdog: None, undone: false };
        journal.note(Item::namespaces())?;
        let ours = tried("the program's own path", std::env::current_exe())?;
        let mut watchdog = Command::new(ours);
        watchdog.arg("watchdog").arg(&journal.path).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // A group of its own: what ends the drill's whole group must not end it.
        journal.watchdog = Some(tried("the watchdog", watchdog.process_group(0).spawn())?);
        Ok(journal)
    }

    /// What names of this drill may hold so that no other drill has them.
    pub(super) fn number() -> u32 {
        std::process::id()
    }

    /// To be called before the thing is made.
    pub(super) fn note(&mut self, item: Item) -> Result<()> {
        let line = item.line();
        let anywhere = item.path().is_none_or(Path::is_absolute);
        if !anywhere || line.contains('\n') || Item::parse(&line).as_ref() != Some(&item) {
            return refused(format_args!("a name that cannot be written down: {line:?}"));
        }
        tried(self.path.display(), self.file.write_all(format!("{line}\n").as_bytes()))?;
        self.items.push(item);
        Ok(())
    }

    /// Makes a directory with its parents, each written down.
    pub(super) fn make_dirs(&mut self, path: &Path) -> Result<()> {
        let mut missing: Vec<&Path> = path.ancestors().take_while(|path| !path.exists()).collect();
        missing.reverse();
        for path in missing {
            self.note(Item::Dir(path.to_owned()))?;
            tried(path.display(), fs::create_dir(path))?;
        }
        Ok(())
    }

    /// An error once one of the drill's processes has ended, or what cleans up behind it is gone.
    pub(super) fn check(&mut self) -> Result<()> {
        for child in &mut self.children {
            if let Some(status) = tried("a process of the drill", child.try_wait())? {
                return failed(format_args!(
                    "process {} of the drill has ended ({status}): look whether somebody or the OOM killer killed it (dmesg)",
                    child.id()
                ));
            }
        }
        if let Some(watchdog) = &mut self.watchdog
            && let Some(status) = tried("the watchdog", watchdog.try_wait())?
        {
            return failed(format_args!(
                "the watchdog, process {}, has ended ({status}): without it a drill that is killed leaves everything behind",
                watchdog.id()
            ));
        }
        let number = |meta: fs::Metadata| (meta.dev(), meta.ino());
        let open = tried(self.path.display(), self.file.metadata())?;
        if fs::symlink_metadata(&self.path).map(number).ok() != Some(number(open)) {
            return failed(format_args!(
                "the journal {} was removed: without it headroom-drill clean finds nothing",
                self.path.display()
            ));
        }
        Ok(())
    }

    /// A child, killed at the end. It also ends by itself with the drill.
    pub(super) fn adopt(&mut self, child: Child) -> Result<u32> {
        let pid = child.id();
        self.children.push(child);
        match started(pid) {
            Some(start) => self.note(Item::Process(pid, start))?,
            None => return failed("a process of the drill ended at once"),
        }
        Ok(pid)
    }

    /// Undoes everything. True if nothing is left.
    pub(super) fn undo(&mut self) -> bool {
        if self.undone {
            return true;
        }
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.undone = undo_all(&self.path, &self.items);
        if let Some(mut watchdog) = self.watchdog.take() {
            if !self.undone {
                // It would try the same at once, in vain.
                let _ = watchdog.kill();
            }
            drop(watchdog.stdin.take());
            let _ = watchdog.wait();
        }
        self.undone
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.undo();
    }
}

fn undo_all(path: &Path, items: &[Item]) -> bool {
    let mut whole = true;
    for item in items.iter().rev() {
        if !item.undo() {
            complain(format_args!("could not be removed: {}", item.line().replace('\t', " ")));
            whole = false;
        }
    }
    whole && gone(fs::remove_file(path))
}

/// Waits for the end of its standard input, which is the end of the drill, and undoes what that did not.
pub(super) fn watchdog(path: &Path) -> u8 {
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    match File::open(path) {
        Ok(file) => {
            let whole = file.lock().is_ok() && (!path.exists() || undo_all(path, &read(path)));
            if whole { WELL } else { LEFT }
        }
        Err(_) => WELL,
    }
}

fn read(path: &Path) -> Vec<Item> {
    let text = fs::read_to_string(path).unwrap_or_default();
    // A last line that was cut off was written before anything of it was made.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let item = |line: &str| {
        let item = Item::parse(line);
        if item.is_none() {
            complain(format_args!("{}: not a drill's: {line:?}", path.display()));
        }
        item
    };
    whole.lines().filter_map(item).collect()
}

/// Only root may write there, or somebody else would tell us what to remove.
fn check_state_dir(state_dir: &Path) -> Result<()> {
    if !state_dir.exists() {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(state_dir);
        tried(state_dir.display(), made)?;
    }
    let meta = tried(state_dir.display(), fs::symlink_metadata(state_dir))?;
    if !meta.is_dir() || meta.uid() != 0 || meta.mode() & 0o022 != 0 {
        return refused(format_args!("{} must be a directory that only root may write to", state_dir.display()));
    }
    Ok(())
}

fn journals(state_dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(state_dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| name_of(path).starts_with(MARK)).collect()
}

/// What dead drills left, as text.
pub(super) fn describe(state_dir: &Path) -> String {
    let mut text = String::new();
    for path in journals(state_dir) {
        let alive = File::open(&path).is_ok_and(|file| file.try_lock().is_err());
        let _ = writeln!(text, "{}: {}", path.display(), if alive { "running, left alone" } else { "would be undone" });
        let items = if alive { Vec::new() } else { read(&path) };
        if let Some(why) = hidden(&items) {
            let _ = writeln!(text, "would be left: {why}");
            continue;
        }
        for item in items.iter().rev().filter(|item| !matches!(item, Item::Namespaces(..))) {
            let _ = writeln!(text, "would remove {}", item.line().replace('\t', " "));
        }
    }
    if text.is_empty() { "nothing is left of any drill".to_owned() } else { text.trim_end().to_owned() }
}

/// Removes what dead drills left; true if something still is.
pub(super) fn clean(state_dir: &Path) -> Result<bool> {
    if !state_dir.exists() {
        return Ok(false);
    }
    check_state_dir(state_dir)?;
    let mut left = false;
    for path in journals(state_dir) {
        let Ok(file) = File::open(&path) else { continue };
        if file.try_lock().is_err() {
            continue;
        }
        let items = read(&path);
        if let Some(why) = hidden(&items) {
            complain(format_args!("{}: {why}", path.display()));
            left = true;
            continue;
        }
        say(format_args!("undoing what a killed drill left: {}", path.display()));
        left |= !undo_all(&path, &items);
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_were_written_and_strangers_are_refused() {
        let items = [
            Item::Process(7, "123".to_owned()),
            Item::Cgroup(format!("/c/pod{HEX}00").into()),
            Item::Cgroups("/c".into(), HEX.to_owned()),
            Item::Mount("/m".into()),
            Item::File(format!("/f/{MARK}1.img").into()),
            Item::Tree(format!("/f/{MARK}1").into()),
            Item::Dir("/d".into()),
            Item::Netns(format!("{MARK}1")),
            Item::Link(format!("{SHORT}1a")),
            Item::Rule("iptables".to_owned(), format!("-p tcp --comment {MARK}1 -j DROP")),
            Item::Namespaces("net:[1]".to_owned(), "mnt:[2]".to_owned()),
        ];
        for item in items {
            assert_eq!(Item::parse(&item.line()).as_ref(), Some(&item));
        }
        for line in [
            "",
            "file\t/etc/passwd",
            "tree\t/",
            "cgroup\t/sys/fs/cgroup/memory/kubepods",
            "netns\tother",
            "link\teth0",
            "rule\tsh\t-c headroom-drill-",
            "rule\tiptables\t-j ACCEPT",
            "cgroups\t/c\t",
        ] {
            assert_eq!(Item::parse(line), None, "{line}");
        }
    }

    #[test]
    fn the_mark_in_hexadecimal_says_the_same() {
        let hex: String = MARK.bytes().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, HEX);
    }
}
