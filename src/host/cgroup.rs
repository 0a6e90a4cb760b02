//! The control groups of the observed machine: which versions are mounted where, what the kernel counts, and a bounded
//! walk for what it does not. Knows nothing of Kubernetes.
//!
//! Three layouts exist. `v1`: one directory per hierarchy below `sys/fs/cgroup`, named after its controllers
//! (`cpu,cpuacct`). `hybrid`: the same, and a cgroup2 mount at `unified`. `v2`: the cgroup2 mount is `sys/fs/cgroup`
//! itself.
//!
//! In a container, `sys/fs/cgroup` often shows only the container's own subtree (a cgroup namespace, or a bind mount of
//! a part). Counting that as the machine would be a lie, so it is refused: only the true root of a v2 hierarchy has no
//! `cgroup.events`, and only the true root of a v1 hierarchy has `release_agent` (`CFTYPE_NOT_ON_ROOT` and
//! `CFTYPE_ONLY_ON_ROOT` in `kernel/cgroup`). Unless the machine itself is a container, as a node of kind is: then the
//! init among its processes has the same subtree there.

pub mod held;
#[cfg(test)]
pub(crate) mod recorded;
pub mod tasks;
pub(super) mod vantage;
pub mod walk;

use std::path::{Path, PathBuf};

use super::Host;
use crate::error::{Error, Reason, Result};

/// One row of `/proc/cgroups`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subsystem {
    /// `memory`, `cpu`, …
    pub name: String,
    /// The id of the v1 hierarchy that it is mounted on; 0 if on none: then it belongs to cgroup2, and `cgroups` is
    /// what the one cgroup2 hierarchy holds, whether or not the controller is enabled there.
    pub hierarchy: u32,
    /// Cgroups of that hierarchy, the root and dying ones included.
    pub cgroups: u64,
    /// False if switched off at boot (`cgroup_disable=`).
    pub enabled: bool,
}

impl Subsystem {
    /// True if there are cgroups of it: it is on a v1 hierarchy, or on cgroup2 with more than the root. One that nobody
    /// mounted counts its root alone.
    fn is_in_use(&self) -> bool {
        self.enabled && (self.hierarchy != 0 || self.cgroups > 1)
    }
}

/// Parses `/proc/cgroups`.
///
/// # Errors
/// Malformed, naming the line, if a row is not four fields of the right kind.
pub fn parse_subsystems(text: &str) -> Result<Vec<Subsystem>> {
    let row = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let subsystem = Subsystem {
            name: fields.next()?.to_owned(),
            hierarchy: fields.next()?.parse().ok()?,
            cgroups: fields.next()?.parse().ok()?,
            enabled: fields.next()? != "0",
        };
        fields.next().is_none().then_some(subsystem)
    };
    text.lines()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
        .map(|line| row(line).ok_or_else(|| Error::malformed(format!("/proc/cgroups: not a row: {line:?}"))))
        .collect()
}

/// The `cgroup.stat` of a v2 cgroup (Linux 4.14), here always of the root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// Cgroups below this one that one can see.
    pub descendants: u64,
    /// Cgroups below this one that were removed and are still held.
    pub dying_descendants: u64,
    /// Per controller (Linux 6.12).
    pub controllers: Vec<ControllerStat>,
}

/// `nr_subsys_<name>` and `nr_dying_subsys_<name>`: cgroups *at and below* this one that have the controller. At the
/// root of a hierarchy without children the first is therefore 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerStat {
    /// `memory`, `io`, …
    pub name: String,
    /// Live ones, this one included.
    pub live: u64,
    /// Removed, or their controller disabled, and still held.
    pub dying: u64,
}

impl Stat {
    /// Parses `cgroup.stat`. Unknown keys are of newer kernels and are passed over.
    ///
    /// # Errors
    /// Malformed without the two counts that every kernel prints, or if a value is not a number.
    pub fn parse(text: &str) -> Result<Self> {
        let mut stat = Stat::default();
        let (mut descendants, mut dying_descendants) = (None, None);
        let mut dying = Vec::new();
        for line in text.lines() {
            let bad = || Error::malformed(format!("cgroup.stat: not a count: {line:?}"));
            let (key, value) = line.split_once(' ').ok_or_else(bad)?;
            let value: u64 = value.trim().parse().map_err(|_| bad())?;
            if key == "nr_descendants" {
                descendants = Some(value);
            } else if key == "nr_dying_descendants" {
                dying_descendants = Some(value);
            } else if let Some(name) = key.strip_prefix("nr_dying_subsys_") {
                dying.push((name, value));
            } else if let Some(name) = key.strip_prefix("nr_subsys_") {
                stat.controllers.push(ControllerStat { name: name.to_owned(), live: value, dying: 0 });
            }
        }
        let missing = || Error::malformed("cgroup.stat: no nr_descendants or no nr_dying_descendants");
        stat.descendants = descendants.ok_or_else(missing)?;
        stat.dying_descendants = dying_descendants.ok_or_else(missing)?;
        for controller in &mut stat.controllers {
            controller.dying = dying.iter().find(|(name, _)| *name == controller.name).map_or(0, |(_, value)| *value);
        }
        Ok(stat)
    }

    /// The counts of one controller, if this kernel prints them.
    pub fn controller(&self, name: &str) -> Option<&ControllerStat> {
        self.controllers.iter().find(|controller| controller.name == name)
    }
}

/// A memory limit as v1 (`memory.limit_in_bytes`) and v2 (`memory.max`) print it. Inside: `None` without a limit, which
/// v1 prints as the largest number of whole pages; nobody means one of 2^62 bytes or more
/// (`pkg/kubelet/stats/helper.go:353` has the same bound).
///
/// # Errors
/// Malformed if it is neither a number nor `max`.
pub fn memory_limit(text: &str) -> Result<Option<u64>> {
    match text.trim() {
        "max" => Ok(None),
        number => match number.parse::<u64>() {
            Ok(bytes) => Ok(Some(bytes).filter(|bytes| *bytes < 1 << 62)),
            Err(_) => Err(Error::malformed(format!("not a memory limit: {number:?}"))),
        },
    }
}

/// How cgroups are mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Only v1 hierarchies.
    V1,
    /// v1 hierarchies and a cgroup2 mount beside them.
    Hybrid,
    /// Only cgroup2.
    V2,
}

impl Mode {
    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::V1 => "v1",
            Mode::Hybrid => "hybrid",
            Mode::V2 => "v2",
        }
    }
}

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Our path of its root.
    pub path: PathBuf,
    /// Its controllers: v1 by the directory's name, v2 by `cgroup.controllers`.
    pub controllers: Vec<String>,
    /// True for cgroup2.
    pub unified: bool,
}

impl Hierarchy {
    /// True if `controller` is this hierarchy's.
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }

    /// True if the root of this hierarchy has a cgroup of that name.
    pub fn has_child(&self, name: &str) -> bool {
        std::fs::symlink_metadata(self.path.join(name)).is_ok_and(|metadata| metadata.is_dir())
    }
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Which of the three layouts it is.
    pub mode: Mode,
    /// v1 hierarchies in order of name, each once, then the cgroup2 one if there is any.
    pub hierarchies: Vec<Hierarchy>,
}

impl Layout {
    /// Looks at `sys/fs/cgroup`.
    ///
    /// # Errors
    /// Absent if no cgroup file system is there; malformed if only a part of one is (see the module's documentation).
    pub fn detect(host: &Host) -> Result<Self> {
        let base = host.sys("fs/cgroup");
        if let Some(unified) = unified(host, &base)? {
            return Ok(Layout { mode: Mode::V2, hierarchies: vec![unified] });
        }
        let mut names: Vec<String> =
            host.list(&base)?.into_iter().map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort_unstable();
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        // `cpu` may be a symbolic link to `cpu,cpuacct`, and each names the same hierarchy: the longer name says more.
        names.sort_by_key(|name| std::cmp::Reverse(name.split(',').count()));
        for name in names {
            let path = base.join(&name);
            if name == "unified" || host.read_some(path.join("notify_on_release")).ok().flatten().is_none() {
                continue;
            }
            if name.split(',').all(|controller| hierarchies.iter().any(|hierarchy| hierarchy.has(controller))) {
                continue;
            }
            if !exists(host, &path.join("release_agent"))? {
                return Err(part_of_a_tree(&path));
            }
            let controllers = name.split(',').map(str::to_owned).collect();
            hierarchies.push(Hierarchy { path, controllers, unified: false });
        }
        hierarchies.sort_by(|a, b| a.path.cmp(&b.path));
        let unified = unified(host, &base.join("unified"))?;
        let mode = match (hierarchies.is_empty(), &unified) {
            (true, None) => return Err(Error::absent(format!("{}: no cgroup file system", base.display()))),
            (_, Some(_)) => Mode::Hybrid,
            (false, None) => Mode::V1,
        };
        hierarchies.extend(unified);
        Ok(Layout { mode, hierarchies })
    }

    /// As [`Layout::detect`], with `None` for a machine that has no cgroups at all: that is an answer. Cgroups that the
    /// kernel has and we are not shown are none: whoever took that for an answer would call a node without limits, pods
    /// and kills what is only a mount that is missing.
    ///
    /// # Errors
    /// Those of [`Layout::detect`]; absent if the kernel has cgroups and `sys/fs/cgroup` shows none.
    pub fn find(host: &Host) -> Result<Option<Self>> {
        Self::found(host, Self::detect(host))
    }

    /// As [`Layout::find`], for who has looked already.
    ///
    /// # Errors
    /// As [`Layout::find`].
    pub fn found(host: &Host, detected: Result<Self>) -> Result<Option<Self>> {
        match detected {
            Ok(layout) => Ok(Some(layout)),
            Err(error) if error.reason() == Reason::Absent => match host.read_some(host.proc("cgroups"))? {
                Some(rows) if parse_subsystems(&rows)?.iter().any(Subsystem::is_in_use) => {
                    Err(hidden(&host.sys("fs/cgroup")))
                }
                _ => Ok(None),
            },
            Err(error) => Err(error),
        }
    }

    /// The hierarchy that a controller is on.
    pub fn of(&self, controller: &str) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|hierarchy| hierarchy.has(controller))
    }

    /// The cgroup2 hierarchy.
    pub fn unified(&self) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|hierarchy| hierarchy.unified)
    }
}

/// The cgroup2 hierarchy at `path`, if there is one.
fn unified(host: &Host, path: &Path) -> Result<Option<Hierarchy>> {
    let Some(controllers) = host.read_some(path.join("cgroup.controllers"))? else { return Ok(None) };
    if exists(host, &path.join("cgroup.events"))? && !is_what_init_sees(host, path) {
        return Err(part_of_a_tree(path));
    }
    let controllers = controllers.split_ascii_whitespace().map(str::to_owned).collect();
    Ok(Some(Hierarchy { path: path.to_owned(), controllers, unified: true }))
}

/// Fails where a directory below `sys/fs/cgroup` is a part of a hierarchy and not its root: what it says is not said of
/// the machine.
///
/// # Errors
/// Malformed.
pub fn is_the_machines(host: &Host, path: &Path) -> Result<()> {
    let of_a_part = exists(host, &path.join("cgroup.events"))?
        || (exists(host, &path.join("notify_on_release"))? && !exists(host, &path.join("release_agent"))?);
    if of_a_part && !is_what_init_sees(host, path) { Err(part_of_a_tree(path)) } else { Ok(()) }
}

/// True if the first of the processes that we are shown has this very cgroup there: then the machine itself is a
/// container, with a cgroup namespace of its own (a node of kind or k3d, LXC), and this is all that its kubelet has.
fn is_what_init_sees(host: &Host, path: &Path) -> bool {
    let Ok(below) = path.strip_prefix(host.sys("")) else { return false };
    let init = host.proc("1/root/sys").join(below);
    let place = |path: &Path| rustix::fs::stat(path).map(|stat| (stat.st_dev, stat.st_ino));
    // The processes of our own container have a first one too.
    host.require_host_pid().is_ok() && matches!((place(path), place(&init)), (Ok(ours), Ok(its)) if ours == its)
}

fn hidden(path: &Path) -> Error {
    Error::absent(format!(
        "{}: no cgroup is visible here although the kernel has some: mount the host's /sys and point --path.sysfs at it",
        path.display()
    ))
}

fn part_of_a_tree(path: &Path) -> Error {
    Error::malformed(format!(
        "{}: shows only a part of the machine's cgroups (a cgroup namespace, or a container's bind mount): \
         mount the host's /sys and point --path.sysfs at it",
        path.display()
    ))
}

/// Whether a file is there, readable or not.
fn exists(host: &Host, path: &Path) -> Result<bool> {
    match host.read_some(path) {
        Ok(text) => Ok(text.is_some()),
        Err(error) if matches!(error.reason(), Reason::Denied | Reason::Io) => Ok(true),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Roots;

    const V1: &str = include_str!("../../tests/fixtures/node/k8s-1.36-cgroupv1/cgroup/proc-cgroups.txt");

    #[test]
    fn rows_of_proc_cgroups() {
        let rows = parse_subsystems(V1).unwrap();
        assert_eq!(rows.len(), 12);
        let memory = rows.iter().find(|row| row.name == "memory").unwrap();
        assert_eq!(memory, &Subsystem { name: "memory".into(), hierarchy: 4, cgroups: 73, enabled: true });
        assert_eq!(rows.iter().filter(|row| row.hierarchy != 0).count(), 8);
        assert!(parse_subsystems("").unwrap().is_empty());
        for garbage in ["memory", "memory 4 x 1", "memory 4 1 1 1", "\u{0}\u{1}", "memory -1 3 1"] {
            let error = parse_subsystems(garbage).unwrap_err();
            assert_eq!(error.reason(), Reason::Malformed, "{garbage:?}");
        }
    }

    #[test]
    fn memory_limits() {
        for none in ["max\n", "9223372036854771712\n", "9223372036854775807\n", "18446744073709551615"] {
            assert_eq!(memory_limit(none).unwrap(), None, "{none:?}");
        }
        assert_eq!(memory_limit("67108864\n").unwrap(), Some(64 << 20));
        assert_eq!(memory_limit("0\n").unwrap(), Some(0));
        for garbage in ["", "-1", "64Mi", "maximum"] {
            assert_eq!(memory_limit(garbage).unwrap_err().reason(), Reason::Malformed, "{garbage:?}");
        }
    }

    #[test]
    fn stats_of_old_and_new_kernels() {
        let old = Stat::parse("nr_descendants 63\nnr_dying_descendants 29\n").unwrap();
        assert_eq!(old, Stat { descendants: 63, dying_descendants: 29, controllers: vec![] });
        // A 6.18 machine with every other controller on v1.
        let new = "nr_descendants 0\nnr_subsys_perf_event 1\nnr_subsys_hugetlb 1\nnr_dying_descendants 0\n\
                   nr_dying_subsys_perf_event 0\nnr_dying_subsys_hugetlb 7\n";
        let new = Stat::parse(new).unwrap();
        assert_eq!(new.controller("hugetlb"), Some(&ControllerStat { name: "hugetlb".into(), live: 1, dying: 7 }));
        assert_eq!(new.controller("memory"), None);
        for garbage in ["", "nr_descendants 1", "nr_descendants x\nnr_dying_descendants 1", "\u{fffd}"] {
            assert_eq!(Stat::parse(garbage).unwrap_err().reason(), Reason::Malformed, "{garbage:?}");
        }
    }

    fn host(files: &[&str]) -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join("fs/cgroup").join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let host = Host::new(Roots { sys: dir.path().to_owned(), ..Roots::default() });
        (dir, host)
    }

    #[test]
    fn layouts() {
        let (dir, v1) = host(&["cpu,cpuacct/notify_on_release", "cpu,cpuacct/release_agent", "net_cls/other"]);
        std::os::unix::fs::symlink("cpu,cpuacct", dir.path().join("fs/cgroup/cpu")).unwrap();
        let layout = Layout::detect(&v1).unwrap();
        assert_eq!((layout.mode, layout.hierarchies.len()), (Mode::V1, 1));
        assert!(layout.of("cpuacct").unwrap().path.ends_with("cpu,cpuacct"));
        assert_eq!((layout.of("memory"), layout.unified()), (None, None));

        let (_dir, hybrid) = host(&["pids/notify_on_release", "pids/release_agent", "unified/cgroup.controllers"]);
        let layout = Layout::detect(&hybrid).unwrap();
        assert_eq!((layout.mode, layout.hierarchies.len()), (Mode::Hybrid, 2));

        let (_dir, v2) = host(&["cgroup.controllers"]);
        assert_eq!(Layout::detect(&v2).unwrap().mode, Mode::V2);
    }

    #[test]
    fn a_part_of_the_tree_is_never_the_machine() {
        for files in [&["cgroup.controllers", "cgroup.events"][..], &["memory/notify_on_release"][..]] {
            let (_dir, part) = host(files);
            let error = Layout::detect(&part).unwrap_err();
            assert_eq!(error.reason(), Reason::Malformed, "{files:?}");
            assert!(error.to_string().contains("mount the host's /sys"), "{error}");
        }
    }

    #[test]
    fn cgroups_that_are_hidden_are_not_taken_for_none() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots { proc: dir.path().join("proc"), sys: dir.path().join("sys"), ..Roots::default() };
        let host = Host::new(roots);
        assert_eq!(Layout::find(&host).unwrap(), None, "nothing says that there are any");
        std::fs::create_dir(dir.path().join("proc")).unwrap();
        let find = |row: &str| {
            std::fs::write(dir.path().join("proc/cgroups"), row).unwrap();
            Layout::find(&host).map_err(|error| (error.reason(), error.to_string().contains("--path.sysfs")))
        };
        assert_eq!(find("memory 0 1 1\n"), Ok(None), "built in, and mounted nowhere");
        assert_eq!(find("memory 4 73 0\n"), Ok(None), "switched off");
        assert_eq!(find("memory 4 73 1\n"), Err((Reason::Absent, true)), "v1");
        assert_eq!(find("memory 0 73 1\n"), Err((Reason::Absent, true)), "v2");
        let (_dir, v2) = self::host(&["cgroup.controllers"]);
        assert_eq!(Layout::find(&v2).unwrap().unwrap().mode, Mode::V2);
    }

    #[test]
    fn files_of_a_part_are_known_by_themselves() {
        let is = |files: &[&str], of: &str| {
            let (dir, host) = host(files);
            is_the_machines(&host, &dir.path().join("fs/cgroup").join(of)).map_err(|error| error.reason())
        };
        assert_eq!(is(&["memory.stat"], ""), Ok(()));
        assert_eq!(is(&["memory.stat", "cgroup.events"], ""), Err(Reason::Malformed));
        assert_eq!(is(&["memory/notify_on_release"], "memory"), Err(Reason::Malformed));
        assert_eq!(is(&["memory/notify_on_release", "memory/release_agent"], "memory"), Ok(()));
    }

    #[test]
    fn no_cgroups_at_all() {
        for files in [&[][..], &["README"][..]] {
            let (_dir, none) = host(files);
            assert_eq!(Layout::detect(&none).unwrap_err().reason(), Reason::Absent);
        }
    }
}
