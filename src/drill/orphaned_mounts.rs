//! The drill `orphaned-mounts`: volumes of a pod that no runtime knows stay mounted.

use std::fs;

use super::cgroups::pod_uid;
use super::cli::OrphanedMounts;
use super::emptydir::{self, EmptyDir};
use super::journal::{Item, MARK};
use super::kubelet::RootDir;
use super::{Result, Run, refused, run as command, tried};

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

pub(super) fn plan(options: &OrphanedMounts) -> Result<Vec<String>> {
    let root = check(options)?;
    Ok(vec![
        format!("mount a tmpfs at {} ({})", emptydir::place(&root, &pod_uid()).display(), root.why),
        format!(
            "mount {} directories in it on themselves; see headroom_orphaned_mounts{{group=\"pods\"}} rise by one more \
             after the grace period",
            options.count
        ),
    ])
}

pub(super) fn make(options: &OrphanedMounts, run: &mut Run) -> Result<()> {
    let root = check(options)?;
    let volume = EmptyDir::make(&mut run.journal, &root, &pod_uid(), SIZE)?;
    for number in 0..options.count {
        let at = volume.path.join(format!("{MARK}{number}"));
        tried(at.display(), fs::create_dir(&at))?;
        run.journal.note(Item::Mount(at.clone()))?;
        let path = at.to_string_lossy();
        command("mount", &["--bind", &path, &path])?;
    }
    run.every_second(|_, _| {
        volume.check()?;
        Ok(format!("{} mounts of a pod that nobody knows", options.count + 1))
    })
}
