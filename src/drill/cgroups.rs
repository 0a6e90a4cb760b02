//! Cgroups below kubepods, made with cgroups-rs, and the drill `cgroup-leak`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cgroups_rs::CgroupPid;
use cgroups_rs::fs::hierarchies::{V1, V2};
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::{Cgroup, Hierarchy};

use super::cli::{CgroupLeak, Kubepods};
use super::journal::{HEX, Item, Journal, MARK};
use super::{Result, Run, children, failed, refused, run, tried};
use crate::host::cgroup::Layout;
use crate::host::{Host, Roots};

/// Memory-cgroup ids there are, and how many stay free: with none left not even a login shell may start.
const IDS: u64 = 65_535;
const RESERVE: u64 = 8_192;

/// Where pods have their cgroups.
pub(super) struct Place {
    mount: PathBuf,
    unified: bool,
    kubepods: PathBuf,
    exists: bool,
}

impl Place {
    pub(super) fn find(options: &Kubepods) -> Result<Self> {
        let layout = tried("cgroups", Layout::detect(&Host::new(Roots::default())))?;
        let Some(memory) = layout.of("memory") else { return failed("no memory controller on this machine") };
        let named = options.kubepods.clone();
        let found =
            || ["kubepods", "kubepods.slice"].into_iter().find(|name| memory.has_child(name)).map(PathBuf::from);
        let kubepods = named.or_else(found).unwrap_or_else(|| "kubepods".into());
        if kubepods.components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
            return refused(format_args!("{}: must be relative to the hierarchy, without ..", kubepods.display()));
        }
        let exists = memory.path.join(&kubepods).is_dir();
        if !exists && !options.make_kubepods {
            return refused(format_args!(
                "{} does not exist: name the cgroup by --kubepods, or pass --make-kubepods",
                memory.path.join(&kubepods).display()
            ));
        }
        Ok(Place { mount: memory.path.clone(), unified: memory.unified, kubepods, exists })
    }

    /// As the driver in use names it: the QoS directory, relative to the hierarchy.
    fn qos(&self) -> PathBuf {
        match self.slice() {
            None => self.kubepods.join("besteffort"),
            Some(prefix) => self.kubepods.join(format!("{prefix}-besteffort.slice")),
        }
    }

    fn slice(&self) -> Option<String> {
        Some(self.kubepods.file_name()?.to_str()?.strip_suffix(".slice")?.to_owned())
    }

    /// A pod's, with a uid of the drill's.
    fn pod(&self, uid: &str) -> PathBuf {
        self.qos().join(match self.slice() {
            None => format!("pod{uid}"),
            Some(prefix) => format!("{prefix}-besteffort-pod{}.slice", uid.replace('-', "_")),
        })
    }

    fn container(&self, number: u64) -> String {
        let id = container_id(number);
        if self.slice().is_some() { format!("cri-containerd-{id}.scope") } else { id }
    }

    pub(super) fn on_disk(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.mount.join(relative)
    }

    fn hierarchy(&self) -> Box<dyn Hierarchy> {
        if self.unified { Box::new(V2::new()) } else { Box::new(V1::new()) }
    }

    fn make(&self, relative: &Path) -> Result<Cgroup> {
        let controllers = Some(vec!["memory".to_owned()]);
        let made = Cgroup::new_with_specified_controllers(self.hierarchy(), relative, controllers);
        let cgroup = tried(format_args!("cgroup {}", relative.display()), made)?;
        // The library makes them where it finds the hierarchy mounted, which should be where we look.
        if !self.on_disk(relative).is_dir() {
            return failed(format_args!("{} was not made", self.on_disk(relative).display()));
        }
        Ok(cgroup)
    }

    /// The QoS directory, made with kubepods itself if need be.
    fn prepare(&self, journal: &mut Journal) -> Result<()> {
        let qos = self.qos();
        let mut above: Vec<&Path> = qos.ancestors().filter(|path| !path.as_os_str().is_empty()).collect();
        above.reverse();
        for path in above {
            if !self.on_disk(path).is_dir() {
                journal.note(Item::Dir(self.on_disk(path)))?;
                self.make(path)?;
            }
        }
        Ok(())
    }

    /// A pod with one container: their cgroups, the container's path, and the pod's uid.
    pub(super) fn make_pod(&self, journal: &mut Journal) -> Result<Pod> {
        self.prepare(journal)?;
        let uid = pod_uid();
        let pod = self.pod(&uid);
        if self.on_disk(&pod).exists() {
            return refused(format_args!("{} exists: another drill's?", self.on_disk(&pod).display()));
        }
        journal.note(Item::Cgroup(self.on_disk(&pod)))?;
        let outer = self.make(&pod)?;
        let relative = pod.join(self.container(0));
        let container = self.make(&relative)?;
        Ok(Pod { uid, outer, container, path: self.on_disk(relative) })
    }
}

/// A made pod.
pub(super) struct Pod {
    pub(super) uid: String,
    outer: Cgroup,
    container: Cgroup,
    /// The container's cgroup.
    pub(super) path: PathBuf,
}

impl Pod {
    pub(super) fn limit(&self, bytes: u64) -> Result<()> {
        for cgroup in [&self.outer, &self.container] {
            let Some(memory) = cgroup.controller_of::<MemController>() else { return failed("no memory controller") };
            tried("the memory limit", memory.set_limit(i64::try_from(bytes).unwrap_or(i64::MAX)))?;
        }
        Ok(())
    }

    pub(super) fn put(&self, pid: u32) -> Result<()> {
        put(&self.container, pid)
    }

    /// The kernel's count of processes that it killed for memory.
    pub(super) fn oom_kills(&self) -> Option<u64> {
        ["memory.oom_control", "memory.events"].iter().find_map(|file| {
            let text = fs::read_to_string(self.path.join(file)).ok()?;
            text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
        })
    }
}

fn put(cgroup: &Cgroup, pid: u32) -> Result<()> {
    tried("moving a process into its cgroup", cgroup.add_task_by_tgid(CgroupPid::from(u64::from(pid))))
}

/// Half of it says whose it is, the rest which drill's.
fn container_id(number: u64) -> String {
    format!("{HEX}{:08x}{number:026x}", Journal::number())
}

/// `headroom-drill-` in hexadecimal leaves one byte of a uid.
pub(super) fn pod_uid() -> String {
    let hex = format!("{HEX}{:02x}", Journal::number() & 0xff);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// What the kernel holds, the dying ones included: the safe side.
fn held(place: &Place) -> Result<u64> {
    if place.unified {
        let stat = tried("cgroup.stat", fs::read_to_string(place.mount.join("cgroup.stat")))?;
        return Ok(stat.lines().filter_map(|line| line.split_once(' ')?.1.parse::<u64>().ok()).max().unwrap_or(0));
    }
    let table = tried("/proc/cgroups", fs::read_to_string("/proc/cgroups"))?;
    let row = table.lines().find(|line| line.starts_with("memory"));
    match row.and_then(|row| row.split_whitespace().nth(2)?.parse().ok()) {
        Some(held) => Ok(held),
        None => failed("/proc/cgroups: no row of memory"),
    }
}

fn check(options: &CgroupLeak, place: &Place) -> Result<()> {
    let held = held(place)?;
    if held + options.count + RESERVE > IDS {
        return refused(format_args!(
            "{held} cgroups are held: {} more would leave less than {RESERVE} ids",
            options.count
        ));
    }
    Ok(())
}

pub(super) fn plan(options: &CgroupLeak) -> Result<Vec<String>> {
    let place = Place::find(&options.kubepods)?;
    check(options, &place)?;
    Ok(vec![if options.dying {
        format!(
            "make and remove {} memory cgroups {MARK}* in {}, each held by a page of a tmpfs; see headroom_cgroups_dying, alert on dying cgroups growing",
            options.count,
            place.mount.display()
        )
    } else {
        format!(
            "make {} empty container-like cgroups {HEX}* in {}{}; see headroom_orphaned_cgroups, alert on orphans that persist",
            options.count,
            place.on_disk(place.qos()).display(),
            if place.exists { "" } else { ", which is made first" }
        )
    }])
}

pub(super) fn make(options: &CgroupLeak, run: &mut Run) -> Result<()> {
    let place = Place::find(&options.kubepods)?;
    check(options, &place)?;
    let begin = if options.dying { prepare_dying(&place, run)? } else { prepare_orphans(&place, run)? };
    let (mut made, over) = (0, options.over);
    let until = std::time::Instant::now();
    run_until(options.count, over, run, |number| {
        made = number + 1;
        if options.dying {
            die(&place, number, &begin)
        } else {
            place.make(&begin.join(place.container(number))).map(drop)
        }
    })?;
    let place = &place;
    let what = if options.dying { "dying memory cgroups" } else { "orphaned container-like cgroups" };
    super::say(format_args!("{made} {what} after {}s", until.elapsed().as_secs()));
    run.every_second(|_, _| Ok(format!("{made} {what}; the kernel holds {} cgroups in all", held(place)?)))
}

/// Calls for each number, evenly over a time.
fn run_until(count: u64, over: Duration, run: &mut Run, mut each: impl FnMut(u64) -> Result<()>) -> Result<()> {
    let pause = over.div_f64(count as f64);
    for number in 0..count {
        run.go_on()?;
        each(number)?;
        if !pause.is_zero() {
            run.stop.wait(pause);
        }
        if number % 500 == 499 {
            super::say(format_args!("{} of {count}", number + 1));
        }
        if std::time::Instant::now() > run.until {
            return failed("the time is over before the fault was complete");
        }
    }
    Ok(())
}

/// Directly in the QoS directory: there the kubelet leaves for good what is no pod.
fn prepare_orphans(place: &Place, run: &mut Run) -> Result<PathBuf> {
    place.prepare(&mut run.journal)?;
    let qos = place.qos();
    let prefix = place.container(0);
    // All but the number.
    let prefix = prefix.trim_end_matches(".scope");
    let prefix = &prefix[..prefix.len() - 26];
    run.journal.note(Item::Cgroups(place.on_disk(&qos), prefix.to_owned()))?;
    Ok(qos)
}

/// A tmpfs whose pages hold them.
fn prepare_dying(place: &Place, run: &mut Run) -> Result<PathBuf> {
    let pages = Path::new("/run").join(format!("{MARK}{}-pages", Journal::number()));
    run.journal.note(Item::Dir(pages.clone()))?;
    tried(pages.display(), fs::create_dir(&pages))?;
    run.journal.note(Item::Mount(pages.clone()))?;
    mount_tmpfs(&pages, 256 << 20)?;
    run.journal.note(Item::Cgroups(place.mount.clone(), format!("{MARK}{}-", Journal::number())))?;
    Ok(pages)
}

pub(super) fn mount_tmpfs(at: &Path, size: u64) -> Result<()> {
    run("mount", &["-t", "tmpfs", "-o", &format!("size={size},mode=755"), "headroom-drill", &at.to_string_lossy()])
        .map(drop)
}

fn die(place: &Place, number: u64, pages: &Path) -> Result<()> {
    let name = format!("{MARK}{}-{number}", Journal::number());
    let cgroup = place.make(Path::new(&name))?;
    let mut child = children::spawn(&["write", &pages.join(number.to_string()).to_string_lossy(), "1"])?;
    put(&cgroup, child.id())?;
    children::go(&mut child)?;
    drop(child.stdin.take());
    let status = tried("a process of the drill", child.wait())?;
    if !status.success() {
        return failed("a page could not be written");
    }
    let path = place.on_disk(&name);
    let until = std::time::Instant::now() + Duration::from_secs(5);
    while let Err(error) = fs::remove_dir(&path) {
        if std::time::Instant::now() > until {
            return failed(format_args!("{}: {error}", path.display()));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
