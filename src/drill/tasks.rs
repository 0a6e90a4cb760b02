//! The drill `task-limit`: a pod with few tasks to have, and a process in it that has most of them, and then wants more
//! than there are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use super::cgroups::{self, Place};
use super::cli::{Kubepods, duration};
use super::emptydir::{self, EmptyDir};
use super::expect::{Page, UNNAMED, page};
use super::journal::{Item, Journal};
use super::kubelet::RootDir;
use super::{Fault, Result, Run, children, failed, tried};
use crate::host::cgroup::Layout;
use crate::host::{Host, Roots};

/// Of the volume, without which a kubelet removes the pod.
const VOLUME: u64 = 1 << 20;
/// What the process wants beyond the limit.
const MORE: u64 = 8;

/// Most of the limit: more than what alerts ask for.
fn most(limit: u64) -> u64 {
    limit * 9 / 10
}

#[derive(clap::Args, Debug)]
pub(super) struct TaskLimit {
    /// The kubelet's root directory [default: that of the running kubelet, else /var/lib/kubelet]
    #[arg(long, value_name = "DIR")]
    pub(super) kubelet_root_dir: Option<PathBuf>,
    /// Processes and threads that the pod may have
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(20..=1000))]
    pub(super) limit: u64,
    /// Stay at nine tenths of the limit for this time first, with nothing refused
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    pub(super) near_for: Duration,
    #[command(flatten)]
    pub(super) kubepods: Kubepods,
}

impl Fault for TaskLimit {
    fn plan(&self) -> Result<Vec<String>> {
        let root = RootDir::find(self.kubelet_root_dir.as_deref())?;
        let place = Place::find(&self.kubepods)?;
        hierarchy()?;
        let mut lines = vec![format!(
            "make a pod's cgroup in {} with pids.max {} and a small tmpfs at {} ({})",
            place.on_disk("").display(),
            self.limit,
            emptydir::place(&root, &cgroups::pod_uid()).display(),
            root.why
        )];
        if !self.near_for.is_zero() {
            let most = most(self.limit);
            lines.push(format!("start {most} threads in it, and leave it so for {}s", self.near_for.as_secs()));
        }
        lines.push(format!(
            "start {} threads in it, of which the kernel refuses some, and try again each second; see headroom_pod_tasks at \
             headroom_pod_tasks_limit and headroom_pod_task_refusals_total rising, alert on both",
            self.limit + MORE
        ));
        Ok(lines)
    }

    fn make(&self, run: &mut Run) -> Result<()> {
        let root = RootDir::find(self.kubelet_root_dir.as_deref())?;
        let place = Place::find(&self.kubepods)?;
        // As `memory-volume`: what keeps a kubelet from removing the pod is made before its cgroup, and undone after.
        let uid = place.note_pod(&mut run.journal)?;
        let volume = EmptyDir::make(&mut run.journal, &root, &uid, VOLUME)?;
        let pod = place.make_pod(uid, 1)?;
        let (outer, container) = pod.relative(&place, 0)?;
        let tasks = Tasks::make(&mut run.journal, &outer, &container)?;
        tasks.limit(self.limit)?;
        let mut process: Option<(Threads, u64)> = None;
        run.every_second(|_, elapsed| {
            pod.check()?;
            volume.check()?;
            let wanted = if elapsed < self.near_for { most(self.limit) } else { self.limit + MORE };
            if let Some((running, _)) = &mut process
                && let Some(status) = tried("the process with the threads", running.0.try_wait())?
            {
                return failed(format_args!("the process of the drill has ended ({status})"));
            }
            if process.as_ref().is_none_or(|(_, having)| *having != wanted) {
                process = None;
                let mut child = Threads(children::spawn(&["tasks", &wanted.to_string()])?);
                pod.put(0, child.0.id())?;
                tasks.put(child.0.id())?;
                children::go(&mut child.0)?;
                process = Some((child, wanted));
            }
            let (count, refused) = tasks.read()?;
            Ok(format!("pod {}: {count} tasks of a limit of {}, {refused} forks refused", pod.uid, self.limit))
        })
    }

    fn pages(&self) -> Vec<Page> {
        let refused = page("HeadroomForksRefused", 40, "after the first refused fork");
        let near = page("HeadroomPodTasksNearLimit", 175, UNNAMED);
        if self.near_for.is_zero() { vec![refused, near] } else { vec![near, refused] }
    }
}

/// The root of the hierarchy with the pids controller, and whether it is cgroup2.
fn hierarchy() -> Result<(PathBuf, bool)> {
    let layout = tried("cgroups", Layout::detect(&Host::new(Roots::default())))?;
    match layout.of("pids") {
        Some(pids) => Ok((pids.path.clone(), pids.unified)),
        None => failed("no pids controller on this machine"),
    }
}

/// The pod's cgroups in the hierarchy with the pids controller.
struct Tasks {
    pod: PathBuf,
    container: PathBuf,
}

impl Tasks {
    /// On cgroup2 they are there, and are only given the controller. On v1 they are made. `pod` and `container` are
    /// relative to the hierarchy, the same in all.
    fn make(journal: &mut Journal, pod: &Path, container: &Path) -> Result<Self> {
        let (root, unified) = hierarchy()?;
        let tasks = Tasks { pod: root.join(pod), container: root.join(container) };
        if unified {
            let above: Vec<&Path> = pod.ancestors().collect();
            for path in above.into_iter().rev() {
                let file = root.join(path).join("cgroup.subtree_control");
                tried(file.display(), fs::write(&file, "+pids"))?;
            }
            return Ok(tasks);
        }
        let above: Vec<&Path> = pod.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty()).collect();
        for path in above.into_iter().rev().map(|path| root.join(path)).filter(|path| !path.is_dir()) {
            journal.note(Item::Dir(path.clone()))?;
            tried(path.display(), fs::create_dir(&path))?;
        }
        journal.note(Item::Cgroup(tasks.pod.clone()))?;
        tried(tasks.container.display(), fs::create_dir_all(&tasks.container))?;
        Ok(tasks)
    }

    fn limit(&self, limit: u64) -> Result<()> {
        let file = self.pod.join("pids.max");
        tried(file.display(), fs::write(&file, limit.to_string()))
    }

    fn put(&self, pid: u32) -> Result<()> {
        let file = self.container.join("cgroup.procs");
        tried(file.display(), fs::write(&file, pid.to_string()))
    }

    /// Tasks and refused forks.
    fn read(&self) -> Result<(u64, u64)> {
        let file = self.pod.join("pids.current");
        let text = tried(file.display(), fs::read_to_string(&file));
        let Some(tasks) = text.ok().and_then(|text| text.trim().parse().ok()) else {
            return failed(format_args!("{} was removed: look whether a kubelet did that", self.pod.display()));
        };
        // The pod's limit is counted in one of the two, by the kernel's version.
        let refused = [&self.pod, &self.container].into_iter().filter_map(|cgroup| {
            let text = fs::read_to_string(cgroup.join("pids.events")).ok()?;
            text.lines().find_map(|line| line.strip_prefix("max ")?.parse::<u64>().ok())
        });
        Ok((tasks, refused.sum()))
    }
}

/// A process with threads, killed when dropped.
struct Threads(Child);

impl Drop for Threads {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
