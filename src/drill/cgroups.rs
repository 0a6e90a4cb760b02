//! Cgroups below kubepods, made with cgroups-rs, and the drill `cgroup-leak`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cgroups_rs::CgroupPid;
use cgroups_rs::fs::hierarchies::{V1, V2};
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::{Cgroup, Hierarchy};

use super::cli::{Kubepods, duration};
use super::expect::{HOUR, Page, page};
use super::journal::{HEX, Item, Journal, MARK, directories};
use super::paths::is_mounted;
use super::{Fault, Result, Run, children, failed, kubelet, refused, run, tried};
use crate::host::cgroup::{Layout, Stat, parse_subsystems};
use crate::host::{Host, Roots};
use crate::kubelet::cgroup_name::pods_cgroups;

/// Memory-cgroup ids there are, and how many stay free: with none left not even a login shell may start.
const IDS: u64 = 65_535;
const RESERVE: u64 = 8_192;
const SECOND: Duration = Duration::from_secs(1);

/// Where pods have their cgroups.
pub(super) struct Place {
    mount: PathBuf,
    unified: bool,
    kubepods: PathBuf,
    exists: bool,
}

impl Place {
    /// What `--kubepods` names, else the running kubelet's: by its `cgroupRoot`, and the driver's way to name it.
    pub(super) fn find(options: &Kubepods) -> Result<Self> {
        let layout = tried("cgroups", Layout::detect(&Host::new(Roots::default())))?;
        let Some(memory) = layout.of("memory") else { return failed("no memory controller on this machine") };
        let kubepods = match &options.kubepods {
            Some(named) => named.clone(),
            None => choose(&memory.path, pods_cgroups(&kubelet::cgroup_root()?))?,
        };
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

    /// Makes the QoS directory and writes down the pod that [`Place::make_pod`] makes. Between the two a pod gets what
    /// must be there before its cgroup, and is undone before it.
    pub(super) fn note_pod(&self, journal: &mut Journal) -> Result<String> {
        self.prepare(journal)?;
        let uid = pod_uid();
        let pod = self.on_disk(self.pod(&uid));
        if pod.exists() {
            return refused(format_args!("{} exists: another drill's?", pod.display()));
        }
        journal.note(Item::Cgroup(pod))?;
        Ok(uid)
    }

    /// The cgroups of a pod and of its containers.
    pub(super) fn make_pod(&self, uid: String, containers: u64) -> Result<Pod> {
        let pod = self.pod(&uid);
        let outer = Made { cgroup: self.make(&pod)?, path: self.on_disk(&pod) };
        let inside = (0..containers).map(|number| {
            let container = pod.join(self.container(number));
            Ok(Made { cgroup: self.make(&container)?, path: self.on_disk(container) })
        });
        Ok(Pod { uid, outer, containers: inside.collect::<Result<_>>()? })
    }
}

/// The one of these that is there; of two the one that pods run in. Whoever changed the cgroup driver of a node left a
/// tree of the other's behind.
fn choose(hierarchy: &Path, names: [PathBuf; 2]) -> Result<PathBuf> {
    let [first, second] = &names;
    match [first, second].map(|name| hierarchy.join(name).is_dir()) {
        [true, true] => {}
        [false, true] => return Ok(second.clone()),
        [_, false] => return Ok(first.clone()),
    }
    match [first, second].map(|name| has_process(&hierarchy.join(name))) {
        [true, false] => Ok(first.clone()),
        [false, true] => Ok(second.clone()),
        _ => refused(format_args!(
            "both {} and {} are there: name the one of this kubelet by --kubepods",
            first.display(),
            second.display()
        )),
    }
}

/// In or below it.
fn has_process(cgroup: &Path) -> bool {
    fs::read_to_string(cgroup.join("cgroup.procs")).is_ok_and(|pids| !pids.is_empty())
        || directories(cgroup).iter().any(|below| has_process(below))
}

/// A cgroup that was made.
struct Made {
    cgroup: Cgroup,
    path: PathBuf,
}

/// A made pod.
pub(super) struct Pod {
    pub(super) uid: String,
    outer: Made,
    containers: Vec<Made>,
}

impl Pod {
    pub(super) fn limit(&self, bytes: u64) -> Result<()> {
        for Made { cgroup, .. } in [&self.outer].into_iter().chain(&self.containers) {
            let Some(memory) = cgroup.controller_of::<MemController>() else { return failed("no memory controller") };
            tried("the memory limit", memory.set_limit(i64::try_from(bytes).unwrap_or(i64::MAX)))?;
        }
        Ok(())
    }

    /// Where it and one of its containers are, from the hierarchy's root.
    pub(super) fn relative(&self, place: &Place, container: usize) -> Result<(PathBuf, PathBuf)> {
        let relative =
            |made: &Made| tried(made.path.display(), made.path.strip_prefix(&place.mount)).map(PathBuf::from);
        Ok((relative(&self.outer)?, relative(&self.containers[container])?))
    }

    /// Moves a process into a container.
    pub(super) fn put(&self, container: usize, pid: u32) -> Result<()> {
        put(&self.containers[container].cgroup, pid)
    }

    /// An error once a cgroup of it was removed.
    pub(super) fn check(&self) -> Result<()> {
        let gone = [&self.outer].into_iter().chain(&self.containers).find(|made| !made.path.exists());
        match gone {
            None => Ok(()),
            Some(gone) => failed(format_args!(
                "{} was removed: a kubelet does so to a pod that it does not know and that has no volume mounted; its log says \
                 \"Orphaned pod found\" (verbosity 3)",
                gone.path.display()
            )),
        }
    }

    /// An error once this process is not in that container any more.
    pub(super) fn check_holds(&self, container: usize, pid: u32) -> Result<()> {
        let path = &self.containers[container].path;
        let pids = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
        if pids.lines().any(|line| line == pid.to_string()) {
            return Ok(());
        }
        failed(format_args!("process {pid} of the drill was moved out of {}", path.display()))
    }

    /// The kernel's count of processes that it killed for memory.
    pub(super) fn oom_kills(&self) -> Option<u64> {
        let path = &self.containers.first()?.path;
        ["memory.oom_control", "memory.events"].iter().find_map(|file| {
            let text = fs::read_to_string(path.join(file)).ok()?;
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

/// What the kernel holds, the dying ones included: the safe side. And how many of these are dying.
struct Held {
    all: u64,
    dying: u64,
}

fn held(place: &Place) -> Result<Held> {
    if place.unified {
        let text = tried("cgroup.stat", fs::read_to_string(place.mount.join("cgroup.stat")))?;
        let stat = tried("cgroup.stat", Stat::parse(&text))?;
        // Where the kernel counts those of the memory controller apart (Linux 6.12), these alone have an id.
        let (live, dying) = match stat.controller("memory") {
            Some(memory) => (memory.live, memory.dying),
            None => (stat.descendants, stat.dying_descendants),
        };
        return Ok(Held { all: live + dying, dying });
    }
    let table = tried("/proc/cgroups", fs::read_to_string("/proc/cgroups"))?;
    let rows = tried("/proc/cgroups", parse_subsystems(&table))?;
    let Some(memory) = rows.iter().find(|row| row.name == "memory") else {
        return failed("/proc/cgroups: no row of memory");
    };
    Ok(Held { all: memory.cgroups, dying: memory.cgroups.saturating_sub(count(&place.mount)) })
}

/// This directory and those below it.
fn count(cgroup: &Path) -> u64 {
    1 + directories(cgroup).iter().map(|below| count(below)).sum::<u64>()
}

fn check(options: &CgroupLeak, place: &Place) -> Result<()> {
    let held = held(place)?.all;
    if held + options.count + RESERVE > IDS {
        return refused(format_args!(
            "{held} cgroups are held: {} more would leave less than {RESERVE} ids",
            options.count
        ));
    }
    Ok(())
}

#[derive(clap::Args, Debug)]
pub(super) struct CgroupLeak {
    /// How many cgroups
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=20_000))]
    pub(super) count: u64,
    /// Make dying memory cgroups instead: removed, but kept by a page of a tmpfs
    #[arg(long)]
    pub(super) dying: bool,
    /// Make them little by little over this time
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    pub(super) over: Duration,
    #[command(flatten)]
    pub(super) kubepods: Kubepods,
}

impl Fault for CgroupLeak {
    fn plan(&self) -> Result<Vec<String>> {
        let place = Place::find(&self.kubepods)?;
        check(self, &place)?;
        Ok(vec![if self.dying {
            format!(
                "make and remove {} memory cgroups {MARK}* in {}, each held by a page of a tmpfs; see headroom_cgroups_dying, alert on dying cgroups growing",
                self.count,
                place.mount.display()
            )
        } else {
            format!(
                "make {} empty container-like cgroups {HEX}* in {}{}; see headroom_orphaned_cgroups, alert on orphans that persist",
                self.count,
                place.on_disk(place.qos()).display(),
                if place.exists { "" } else { ", which is made first" }
            )
        }])
    }

    fn make(&self, run: &mut Run) -> Result<()> {
        let place = &Place::find(&self.kubepods)?;
        check(self, place)?;
        let begun = Instant::now();
        if self.dying { leave_dying(self, place, run, begun) } else { leave_orphans(self, place, run, begun) }
    }

    fn pages(&self) -> Vec<Page> {
        if self.dying {
            return vec![page(
                "HeadroomDyingCgroupsGrowing",
                5 * HOUR + 400,
                "500 more, spread over five hours by --over",
            )];
        }
        vec![page("HeadroomOrphanedCgroups", 655, "ten at least")]
    }
}

/// Directly in the QoS directory: there the kubelet leaves for good what is no pod.
fn leave_orphans(options: &CgroupLeak, place: &Place, run: &mut Run, begun: Instant) -> Result<()> {
    place.prepare(&mut run.journal)?;
    let qos = place.qos();
    let prefix = place.container(0);
    // All but the number.
    let prefix = prefix.trim_end_matches(".scope");
    let prefix = &prefix[..prefix.len() - 26];
    let directory = place.on_disk(&qos);
    run.journal.note(Item::Cgroups(directory.clone(), prefix.to_owned()))?;
    let check = |made: u64| {
        let named = |path: &&PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
        let there = directories(&directory).iter().filter(named).count() as u64;
        if there == made {
            return Ok(());
        }
        failed(format_args!(
            "{} of the {made} cgroups in {} were removed: by a clean-up of this node, or with the whole tree by a kubelet that was \
             started with another cgroup driver or cgroupRoot",
            made - there.min(made),
            directory.display()
        ))
    };
    for_each_number(options, run, &check, |number| place.make(&qos.join(place.container(number))).map(drop))?;
    hold(options, "orphaned container-like cgroups", place, run, begun, &check)
}

/// Each held by a page of a tmpfs.
fn leave_dying(options: &CgroupLeak, place: &Place, run: &mut Run, begun: Instant) -> Result<()> {
    let pages = Path::new("/run").join(format!("{MARK}{}-pages", Journal::number()));
    run.journal.note(Item::Dir(pages.clone()))?;
    tried(pages.display(), fs::create_dir(&pages))?;
    run.journal.note(Item::Mount(pages.clone()))?;
    mount_tmpfs(&pages, 256 << 20)?;
    run.journal.note(Item::Cgroups(place.mount.clone(), format!("{MARK}{}-", Journal::number())))?;
    let check = |made: u64| {
        let there = fs::read_dir(&pages).map_or(0, Iterator::count) as u64;
        if !is_mounted(&pages) || there < made {
            return failed(format_args!(
                "{there} of the {made} pages in {} are left, which hold the dying cgroups: somebody unmounted it or cleaned it up",
                pages.display()
            ));
        }
        let dying = held(place)?.dying;
        // Of those that others left some may go meanwhile; a half is beyond doubt.
        if dying < made / 2 {
            return failed(format_args!(
                "the kernel holds {dying} dying cgroups in all, and {made} were left dying: this kernel lets go of one whose pages \
                 are still there",
            ));
        }
        Ok(())
    };
    for_each_number(options, run, &check, |number| die(place, number, &pages))?;
    hold(options, "dying memory cgroups", place, run, begun, &check)
}

fn hold(
    options: &CgroupLeak,
    what: &str,
    place: &Place,
    run: &mut Run,
    begun: Instant,
    check: &dyn Fn(u64) -> Result<()>,
) -> Result<()> {
    let made = options.count;
    super::say(format_args!("{made} {what} after {}s", begun.elapsed().as_secs()));
    run.every_second(|_, _| {
        check(made)?;
        Ok(format!("{made} {what}; the kernel holds {} cgroups in all", held(place)?.all))
    })
}

/// Calls for each number, evenly over a time, and looks about once a second whether what was made is still there.
fn for_each_number(
    options: &CgroupLeak,
    run: &mut Run,
    check: &dyn Fn(u64) -> Result<()>,
    mut each: impl FnMut(u64) -> Result<()>,
) -> Result<()> {
    let count = options.count;
    let pause = options.over.div_f64(count as f64);
    let mut checked = Instant::now();
    for number in 0..count {
        run.go_on()?;
        each(number)?;
        let next = Instant::now() + pause;
        while !run.stop.wait(next.saturating_duration_since(Instant::now()).min(SECOND)) && Instant::now() < next {}
        if checked.elapsed() >= SECOND {
            run.journal.check()?;
            check(number + 1)?;
            checked = Instant::now();
        }
        if number % 500 == 499 {
            super::say(format_args!("{} of {count}", number + 1));
        }
        if Instant::now() > run.until {
            return failed("the time is over before the fault was complete");
        }
    }
    Ok(())
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
    let until = Instant::now() + Duration::from_secs(5);
    while let Err(error) = fs::remove_dir(&path) {
        if Instant::now() > until {
            return failed(format_args!("{}: {error}", path.display()));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
