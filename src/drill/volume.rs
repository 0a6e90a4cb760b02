//! The drill `memory-volume`: a container with a limit writes more than that into a tmpfs that outlives it.

use std::fs;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use super::cgroups::{self, Place};
use super::cli::{Kubepods, bytes, duration};
use super::emptydir::{self, EmptyDir};
use super::expect::{Page, UNNAMED, page};
use super::kubelet::RootDir;
use super::{Fault, Result, Run, children, refused, tried};

/// More memory than this is never taken.
const MOST: u64 = 1 << 30;

fn check(options: &MemoryVolume) -> Result<RootDir> {
    if options.size <= options.limit || options.size > MOST || options.limit < 8 << 20 {
        return refused("the limit must be at least 8Mi, the size larger than the limit and at most 1Gi");
    }
    RootDir::find(options.kubelet_root_dir.as_deref())
}

#[derive(clap::Args, Debug)]
pub(super) struct MemoryVolume {
    /// The kubelet's root directory [default: that of the running kubelet, else /var/lib/kubelet]
    #[arg(long, value_name = "DIR")]
    pub(super) kubelet_root_dir: Option<PathBuf>,
    /// The container's memory limit, in bytes (suffixes Ki, Mi, Gi)
    #[arg(long, value_name = "BYTES", default_value = "32Mi", value_parser = bytes)]
    pub(super) limit: u64,
    /// Size of the tmpfs, larger than the limit
    #[arg(long, value_name = "BYTES", default_value = "64Mi", value_parser = bytes)]
    pub(super) size: u64,
    /// Stay at seven eighths of the limit for this time first, with nothing killed
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    pub(super) near_for: Duration,
    /// Time between a kill and the next start
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = duration)]
    pub(super) restart_after: Duration,
    #[command(flatten)]
    pub(super) kubepods: Kubepods,
}

impl Fault for MemoryVolume {
    fn plan(&self) -> Result<Vec<String>> {
        let root = check(self)?;
        Place::find(&self.kubepods)?;
        let mut lines = vec![format!(
            "make a pod's cgroup with a memory limit of {} bytes and a tmpfs of {} at {} ({})",
            self.limit,
            self.size,
            emptydir::place(&root, &cgroups::pod_uid()).display(),
            root.why
        )];
        if !self.near_for.is_zero() {
            lines.push(format!("write seven eighths of the limit, and leave it so for {}s", self.near_for.as_secs()));
        }
        lines.push(
            "write from inside until the kernel kills the writer, and start it again; see headroom_memory_volume_used_bytes \
             close to headroom_memory_volume_limit_bytes and headroom_oom_kills_total rising, alert on the loop"
                .to_owned(),
        );
        Ok(lines)
    }

    fn make(&self, run: &mut Run) -> Result<()> {
        let root = check(self)?;
        let place = Place::find(&self.kubepods)?;
        // Written down first and made last: what the volume holds keeps the cgroup from going, so it must be undone
        // before.
        let uid = place.note_pod(&mut run.journal)?;
        let volume = EmptyDir::make(&mut run.journal, &root, &uid, self.size)?;
        let pod = place.make_pod(uid, 1)?;
        pod.limit(self.limit)?;
        let file = volume.path.join("fill");
        let mut writer: Option<Writer> = None;
        let mut start_at = Instant::now();
        let (mut starts, mut near) = (0, !self.near_for.is_zero());
        run.every_second(|_, elapsed| {
            pod.check()?;
            volume.check()?;
            if near && elapsed >= self.near_for {
                // The container's first life ends by itself. What it wrote stays.
                (near, writer) = (false, None);
            }
            if let Some(running) = &mut writer
                && tried("the writer", running.0.try_wait())?.is_some()
            {
                writer = None;
                start_at = Instant::now() + self.restart_after.max(Duration::from_millis(200));
            }
            if writer.is_none() && Instant::now() >= start_at {
                let bytes = if near { self.limit / 8 * 7 } else { self.size };
                let mut child = Writer(children::spawn(&["write", &file.to_string_lossy(), &bytes.to_string()])?);
                pod.put(0, child.0.id())?;
                children::go(&mut child.0)?;
                writer = Some(child);
                starts += 1;
            }
            let used = fs::metadata(&file).map_or(0, |meta| meta.len());
            let kills = pod.oom_kills().map_or_else(|| "?".to_owned(), |kills| kills.to_string());
            Ok(format!(
                "pod {}: {used} bytes of a limit of {}, {starts} starts, {kills} OOM kills",
                pod.uid, self.limit
            ))
        })
    }

    fn pages(&self) -> Vec<Page> {
        let near = page("HeadroomMemoryVolumeNearLimit", 175, UNNAMED);
        let (within, note) = if self.near_for.is_zero() { (175, UNNAMED) } else { (115, "after the first kill") };
        vec![near, page("HeadroomMemoryVolumeOomLoop", within, note)]
    }
}

/// A writer, killed when dropped.
struct Writer(Child);

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
