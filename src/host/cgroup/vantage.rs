//! `/proc/PID/cgroup` as the machine writes it, whatever cgroup namespace we are in.
//!
//! The kernel names cgroups as they look from the root of the *reader's* cgroup namespace. containerd and CRI-O give
//! a container on cgroup v2 that is not privileged one of its own, with its own cgroup as the root. From there the
//! container of another pod is `/../../pod<uid>/<id>`, and the directories above are not named. So where we are
//! ourselves must be known: our own mount table says how far below the hierarchy's root that is (the machine's mount
//! has the root `/../../..` to us), and of the cgroups so far down ours is the one that has our pid in its
//! `cgroup.procs`. Nobody in a pod can shape either: what is above and beside a container's cgroup is not its own, and
//! what it makes below is deeper than it is itself.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Reason, Result};
use crate::host::filesystem::Mount;
use crate::host::{Deadline, Roots, read};

/// How long the search for our own cgroup may take. It is made once.
const SEARCH: Duration = Duration::from_secs(2);
/// Cgroups that are looked at on the way, and in one directory: a node has a thousand, a pod's directory a few.
const MOST_CGROUPS: usize = 50_000;
const MOST_IN_ONE: usize = 4096;
/// A search that failed is made again after so long.
const AGAIN: Duration = Duration::from_secs(60);

/// From where we see the machine's cgroups. Found out when it is first asked for, and kept: a process does not change
/// its cgroup namespace, and a cgroup not its name.
#[derive(Debug)]
pub(in crate::host) struct Vantage {
    roots: Roots,
    known: Mutex<Option<(Instant, Arc<[Seat]>)>>,
}

/// A hierarchy in which we see the cgroups from below its root.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seat {
    /// As in the mount options of v1; none on cgroup2.
    controllers: Vec<String>,
    /// The names from the hierarchy's root down to the root of our cgroup namespace.
    names: Result<Vec<String>>,
}

/// A mount of a whole hierarchy, as our mount table shows it.
#[derive(Debug, PartialEq, Eq)]
struct Mounted {
    at: PathBuf,
    controllers: Vec<String>,
    /// So many levels below its root is that of our cgroup namespace.
    levels: usize,
}

impl Vantage {
    pub(in crate::host) fn new(roots: Roots) -> Self {
        Vantage { roots, known: Mutex::default() }
    }

    /// Fails where processes cannot be told apart by their cgroups, because ours is not found.
    pub(in crate::host) fn is_known(&self) -> Result<()> {
        self.seats().iter().try_for_each(|seat| seat.names.as_ref().map(drop).map_err(Error::clone))
    }

    /// A `/proc/PID/cgroup` with each path from the root of its hierarchy. Rows of hierarchies that are not to be seen
    /// are left out, unless there are no others.
    pub(in crate::host) fn absolute(&self, text: String) -> Result<String> {
        let seats = self.seats();
        if seats.is_empty() && !text.contains(":/..") {
            return Ok(text);
        }
        let mut rows = String::with_capacity(2 * text.len());
        let mut unresolved = None;
        for line in text.lines() {
            let mut parts = line.splitn(3, ':');
            let (Some(number), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
                continue;
            };
            let path = match seats.iter().find(|seat| seat.is_of(controllers)) {
                Some(seat) => join(seat.names.as_ref().map_err(Error::clone)?, path)?,
                None if is_outside(path) => {
                    unresolved = Some(line);
                    continue;
                }
                None => path.to_owned(),
            };
            rows.extend([number, ":", controllers, ":", &path, "\n"]);
        }
        match unresolved {
            Some(line) if rows.is_empty() => Err(unknown(format_args!("no mount of the hierarchy of {line:?}"))),
            _ => Ok(rows),
        }
    }

    fn seats(&self) -> Arc<[Seat]> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((found, seats)) = &*known
            && (found.elapsed() < AGAIN || seats.iter().all(|seat| seat.names.is_ok()))
        {
            return Arc::clone(seats);
        }
        let seats: Arc<[Seat]> = self.find().into();
        *known = Some((Instant::now(), Arc::clone(&seats)));
        seats
    }

    fn find(&self) -> Vec<Seat> {
        let own = |file: &str| read::text(&self.roots.proc.join("self").join(file));
        // A machine of recorded files has no process that is us.
        let (Ok(mounts), Ok(cgroups)) = (own("mountinfo"), own("cgroup")) else { return Vec::new() };
        let pid = std::fs::read_link(self.roots.proc.join("self"));
        let deadline = Deadline::after(SEARCH);
        let below = mounted(&mounts, &self.roots.sys.join("fs/cgroup"));
        if below.is_empty() {
            return self.unseen();
        }
        let seats = below.into_iter().filter(|mount| mount.levels > 0).map(|mount| {
            let names = match &pid {
                Ok(pid) => seat(&mount, &cgroups, &pid.to_string_lossy(), deadline),
                Err(error) => Err(Error::os("self", error)),
            };
            Seat { controllers: mount.controllers, names }
        });
        seats.collect()
    }

    /// Where no hierarchy is mounted, those of which we see that we are not at the root.
    fn unseen(&self) -> Vec<Seat> {
        let first = read::text(&self.roots.proc.join("1/cgroup")).unwrap_or_default();
        let rows = first.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
        let outside = rows.filter(|(_, path)| is_outside(path)).map(|(controllers, _)| Seat {
            controllers: controllers.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
            names: Err(unknown(format_args!("no cgroup hierarchy is mounted"))),
        });
        outside.collect()
    }
}

impl Seat {
    fn is_of(&self, controllers: &str) -> bool {
        is_of(&self.controllers, controllers)
    }
}

/// True if these are the controllers in a row of `/proc/PID/cgroup`, where cgroup2 has none.
fn is_of(mounted: &[String], row: &str) -> bool {
    if row.is_empty() { mounted.is_empty() } else { row.split(',').all(|one| mounted.iter().any(|name| name == one)) }
}

/// The whole hierarchies that are mounted at or below `base`. One that something was mounted over later is still in the
/// table, but nobody gets there: a container that is a node may have the hierarchies of v1 below its own.
fn mounted(mountinfo: &str, base: &Path) -> Vec<Mounted> {
    let all: Vec<(&str, Mount)> = mountinfo.lines().filter_map(|line| Some((line, Mount::parse(line)?))).collect();
    let hides = |later: &Mount, mount: &Mount| {
        later.mountpoint != Path::new("/") && mount.mountpoint.starts_with(&later.mountpoint)
    };
    let row = |(number, (line, mount)): (usize, &(&str, Mount))| {
        if !mount.mountpoint.starts_with(base) || all[number + 1..].iter().any(|(_, later)| hides(later, mount)) {
            return None;
        }
        let controllers = match mount.fstype.as_str() {
            "cgroup2" => Vec::new(),
            "cgroup" => line.rsplit(' ').next()?.split(',').map(str::to_owned).collect(),
            _ => return None,
        };
        let root = line.split(' ').nth(3)?;
        let above = root.split('/').filter(|name| !name.is_empty());
        // With a name in it, it is a part of the hierarchy.
        let levels = above.map(|name| (name == "..").then_some(())).collect::<Option<Vec<()>>>()?.len();
        Some(Mounted { at: mount.mountpoint.clone(), controllers, levels })
    };
    all.iter().enumerate().filter_map(row).collect()
}

/// The names from the root of this hierarchy down to that of our cgroup namespace.
fn seat(mount: &Mounted, cgroups: &str, pid: &str, deadline: Deadline) -> Result<Vec<String>> {
    let rows = cgroups.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let own = rows.into_iter().find(|(controllers, _)| is_of(&mount.controllers, controllers)).map(|(_, path)| path);
    let own: Vec<&str> = own.unwrap_or("/").split('/').filter(|name| !name.is_empty()).collect();
    if own.first() == Some(&"..") {
        return Err(unknown(format_args!("it was moved to {}", own.join("/"))));
    }
    let mut names = find(&mount.at, mount.levels + own.len(), pid, deadline)?;
    names.truncate(mount.levels);
    Ok(names)
}

/// The cgroup so many levels below `top` that this process is in.
fn find(top: &Path, levels: usize, pid: &str, deadline: Deadline) -> Result<Vec<String>> {
    let mut pending: Vec<Vec<String>> = vec![Vec::new()];
    let mut seen = 0;
    while let Some(names) = pending.pop() {
        let path = names.iter().fold(top.to_owned(), |path, name| path.join(name));
        if names.len() == levels {
            // Those that were removed meanwhile, or that somebody closed to us, are not ours.
            let processes = read::text(&path.join("cgroup.procs")).unwrap_or_default();
            if processes.lines().any(|line| line == pid) {
                return Ok(names);
            }
            continue;
        }
        let Ok(entries) = std::fs::read_dir(&path) else { continue };
        let below = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        for entry in below.take(MOST_IN_ONE) {
            seen += 1;
            if seen > MOST_CGROUPS || deadline.expired() {
                return Err(unknown(format_args!("gave up after {seen} cgroups")));
            }
            if let Ok(name) = entry.file_name().into_string() {
                pending.push([names.as_slice(), &[name]].concat());
            }
        }
    }
    Err(unknown(format_args!("no cgroup {levels} levels below {} has process {pid}", top.display())))
}

fn unknown(why: std::fmt::Arguments<'_>) -> Error {
    Error::new(
        Reason::Malformed,
        format!(
            "cannot tell which pod a process belongs to: this exporter is in a cgroup namespace of its own, and its \
             cgroup is not found among the machine's ({why}): mount the host's /sys and point --path.sysfs at it"
        ),
    )
}

fn is_outside(path: &str) -> bool {
    path == "/.." || path.starts_with("/../")
}

/// What `path` is that we see from the directory of these names.
fn join(names: &[String], path: &str) -> Result<String> {
    let mut rest = path;
    let mut left = names.len();
    while is_outside(rest) {
        left = left.checked_sub(1).ok_or_else(|| unknown(format_args!("{path} is above the root")))?;
        rest = &rest[3..];
    }
    let above: String = names[..left].iter().flat_map(|name| ["/", name]).collect();
    Ok(match rest {
        "" | "/" if !above.is_empty() => above,
        "" => "/".to_owned(),
        rest => above + rest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice";

    /// A machine with these directories below `sys/fs/cgroup`, in one of which we are.
    struct Machine {
        dir: tempfile::TempDir,
    }

    impl Machine {
        fn new(mounts: &[(&str, &str, &str)], own: &str) -> Self {
            let machine = Machine { dir: tempfile::tempdir().unwrap() };
            let base = machine.dir.path().join("sys/fs/cgroup");
            let rows: String = mounts
                .iter()
                .map(|(below, root, options)| {
                    let at = if below.is_empty() { base.clone() } else { base.join(below) };
                    let fstype = if options.is_empty() { "cgroup2" } else { "cgroup" };
                    format!("31 22 0:26 {root} {} rw,nosuid shared:9 - {fstype} {fstype} rw,{options}\n", at.display())
                })
                .collect();
            machine.write("proc/4711/mountinfo", &rows.replace("rw,\n", "rw\n"));
            machine.write("proc/4711/cgroup", own);
            std::os::unix::fs::symlink("4711", machine.dir.path().join("proc/self")).unwrap();
            machine
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }

        fn cgroup(&self, path: &str, procs: &str) {
            self.write(&format!("sys/fs/cgroup/{path}/cgroup.procs"), procs);
        }

        fn vantage(&self) -> Vantage {
            let [proc, sys, root] = ["proc", "sys", "root"].map(|name| self.dir.path().join(name));
            Vantage::new(Roots { proc, sys, root })
        }
    }

    fn in_a_pod() -> Machine {
        let machine = Machine::new(&[("", "/../../../..", "")], "0::/\n");
        machine.cgroup(&format!("{POD}/cri-containerd-c.scope"), "12\n4711\n");
        machine.cgroup(&format!("{POD}/cri-containerd-p.scope"), "11\n");
        machine.cgroup("system.slice/kubelet.service", "47\n");
        machine
    }

    #[test]
    fn paths_from_a_namespace_of_our_own() {
        let machine = in_a_pod();
        let vantage = machine.vantage();
        vantage.is_known().unwrap();
        for (seen, is) in [
            ("/", format!("/{POD}/cri-containerd-c.scope")),
            ("/child", format!("/{POD}/cri-containerd-c.scope/child")),
            ("/..", format!("/{POD}")),
            ("/../cri-containerd-p.scope", format!("/{POD}/cri-containerd-p.scope")),
            (
                "/../../kubepods-burstable-pod3.slice/x (deleted)",
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod3.slice/x (deleted)".to_owned(),
            ),
            ("/../../../kubepods-pod4.slice/..x", "/kubepods.slice/kubepods-pod4.slice/..x".to_owned()),
            ("/../../../../system.slice/kubelet.service", "/system.slice/kubelet.service".to_owned()),
            ("/../../../..", "/".to_owned()),
        ] {
            assert_eq!(vantage.absolute(format!("0::{seen}\n")), Ok(format!("0::{is}\n")), "{seen}");
        }
        let above = vantage.absolute("0::/../../../../../x\n".to_owned());
        assert_eq!(above.unwrap_err().reason(), Reason::Malformed);
    }

    #[test]
    fn in_the_machines_namespace_a_text_stays_as_it_is() {
        let machine = Machine::new(&[("memory", "/", "memory"), ("unified", "/", "")], "4:memory:/\n0::/\n");
        let vantage = machine.vantage();
        let text = "4:memory:/kubepods/pod1/x\n1:name=systemd:/a:b\n0::/\n";
        assert_eq!(vantage.absolute(text.to_owned()).unwrap(), text);
        assert!(vantage.is_known().is_ok());
    }

    #[test]
    fn each_hierarchy_has_a_place_of_ours() {
        let mounts = [("cpu,cpuacct", "/..", "cpu,cpuacct"), ("unified", "/../..", ""), ("pids", "/", "pids")];
        let machine = Machine::new(&mounts, "3:cpu,cpuacct:/\n2:pids:/x\n0::/mine\n");
        machine.cgroup("cpu,cpuacct/a", "4711\n");
        machine.cgroup("unified/b/c/mine", "4711\n");
        // Deeper, or of the same number in another place, is somebody else's.
        machine.cgroup("unified/b/c/mine/deeper", "4711\n");
        let vantage = machine.vantage();
        let text = "3:cpu,cpuacct:/../v\n2:pids:/v\n1:name=systemd:/../v\n0::/../v\n";
        assert_eq!(vantage.absolute(text.to_owned()).unwrap(), "3:cpu,cpuacct:/v\n2:pids:/v\n0::/b/v\n");
    }

    #[test]
    fn what_another_mount_covers_is_not_asked() {
        // A container that is a node, on a machine with v1: its own hierarchy lies over the others.
        let machine =
            Machine::new(&[("memory", "/..", "memory"), ("unified", "/..", ""), ("", "/", "")], "4:memory:/\n0::/\n");
        let vantage = machine.vantage();
        assert_eq!(vantage.is_known(), Ok(()));
        let text = "4:memory:/\n0::/kubepods/pod1/x\n";
        assert_eq!(vantage.absolute(text.to_owned()).unwrap(), text);
    }

    #[test]
    fn without_our_own_place_nothing_is_guessed() {
        let machine = Machine::new(&[("", "/../..", "")], "0::/\n");
        machine.cgroup("kubepods/pod1", "11\n");
        let vantage = machine.vantage();
        assert_eq!(vantage.is_known().unwrap_err().reason(), Reason::Malformed);
        for seen in ["/../pod2/x", "/", "/../../system.slice"] {
            assert!(vantage.absolute(format!("0::{seen}\n")).is_err(), "{seen}");
        }
        // Nothing of it is mounted here, or these are recorded files.
        for machine in [Machine::new(&[], "0::/\n"), Machine { dir: tempfile::tempdir().unwrap() }] {
            let vantage = machine.vantage();
            assert!(vantage.is_known().is_ok());
            assert!(vantage.absolute("0::/../pod2/x\n".to_owned()).is_err());
            assert_eq!(vantage.absolute("0::/pod2/x\n".to_owned()).unwrap(), "0::/pod2/x\n");
        }
        let hidden = Machine::new(&[], "0::/\n");
        hidden.write("proc/1/cgroup", "0::/../../../init.scope\n");
        assert!(hidden.vantage().is_known().is_err());
    }

    #[test]
    fn one_directory_full_of_cgroups_does_not_hide_our_own() {
        let machine = in_a_pod();
        for number in 0..MOST_IN_ONE + 100 {
            let path = machine.dir.path().join(format!("sys/fs/cgroup/kubepods.slice/pod1/tenant/{number}"));
            std::fs::create_dir_all(path).unwrap();
        }
        assert!(machine.vantage().is_known().is_ok());
    }
}
