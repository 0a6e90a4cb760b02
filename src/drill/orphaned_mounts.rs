//! The drill `orphaned-mounts`: volumes of a pod that no runtime knows stay mounted.

use std::fs;
use std::path::PathBuf;

use super::cgroups::pod_uid;
use super::emptydir::{self, EmptyDir};
use super::expect::{Page, page};
use super::journal::{Item, MARK};
use super::kubelet::RootDir;
use super::{Fault, Result, Run, refused, run as command, tried};

/// The directories that are mounted on themselves are all that is in it.
const SIZE: u64 = 1 << 20;
/// As many as a hundred pods have.
const MOST: u32 = 1000;

fn check(options: &OrphanedMounts) -> Result<RootDir> {
    if !(1..=MOST).contains(&options.count) {
        return refused(format_args!("1 to {MOST} mounts"));
    }
    RootDir::find(options.kubelet_root_dir.as_deref())
}

#[derive(clap::Args, Clone, Debug)]
pub(super) struct OrphanedMounts {
    /// So many mounts, and the tmpfs that they are in
    #[arg(long, value_name = "N", default_value_t = 24)]
    pub(super) count: u32,
    /// The kubelet's root directory [default: that of the running kubelet, else /var/lib/kubelet]
    #[arg(long, value_name = "DIR")]
    pub(super) kubelet_root_dir: Option<PathBuf>,
}

impl Fault for OrphanedMounts {
    fn plan(&self) -> Result<Vec<String>> {
        let root = check(self)?;
        Ok(vec![
            format!("mount a tmpfs at {} ({})", emptydir::place(&root, &pod_uid()).display(), root.why),
            format!(
                "mount {} directories in it on themselves; see headroom_orphaned_mounts{{group=\"pods\"}} rise by one more \
                 after the grace period",
                self.count
            ),
        ])
    }

    fn make(&self, run: &mut Run) -> Result<()> {
        let root = check(self)?;
        let volume = EmptyDir::make(&mut run.journal, &root, &pod_uid(), SIZE)?;
        for number in 0..self.count {
            let at = volume.path.join(format!("{MARK}{number}"));
            tried(at.display(), fs::create_dir(&at))?;
            run.journal.note(Item::Mount(at.clone()))?;
            let path = at.to_string_lossy();
            command("mount", &["--bind", &path, &path])?;
        }
        run.every_second(|_, _| {
            volume.check()?;
            Ok(format!("{} mounts of a pod that nobody knows", self.count + 1))
        })
    }

    fn pages(&self) -> Vec<Page> {
        vec![page("HeadroomOrphanedMounts", 655, "twenty at least, with a container runtime that answers")]
    }
}
