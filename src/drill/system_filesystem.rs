//! The drill `system-filesystem`: a tmpfs of its own in a directory that the exporter watches and this node has not,
//! without free bytes or inodes. Nothing of the node's is on it, so nothing but the page fails.

use std::path::PathBuf;

use super::cli::SystemFilesystem;
use super::disk::{Filler, What};
use super::journal::{Item, MARK};
use super::paths::{is_mounted, real};
use super::{Result, Run, refused, run as command};

/// Inodes of the tmpfs.
const INODES: u64 = 4096;
/// More memory than this is never taken.
const MOST: u64 = 1 << 30;

impl SystemFilesystem {
    fn what(&self) -> What {
        if self.inodes { What::Inodes } else { What::Bytes }
    }
}

fn check(options: &SystemFilesystem) -> Result<PathBuf> {
    let at = real(&options.mount)?;
    // Whatever is there may be in use, and would be hidden.
    if is_mounted(&at) || at.exists() {
        return refused(format_args!(
            "{} is there already: --mount wants a directory that the exporter watches and this node has not, such as /run/k0s, \
             /run/flannel or /var/lib/crio",
            at.display()
        ));
    }
    if !(1 << 20..=MOST).contains(&options.size) {
        return refused("the tmpfs must have 1Mi to 1Gi");
    }
    Ok(at)
}

pub(super) fn plan(options: &SystemFilesystem) -> Result<Vec<String>> {
    let at = check(options)?;
    let (at, resource) = (at.display(), if options.inodes { "inodes" } else { "bytes" });
    Ok(vec![
        format!("mount a tmpfs of {} bytes and {INODES} inodes at {at}", options.size),
        format!(
            "fill it until 2 % of its {resource} are left, over {}s; see \
             headroom_system_filesystem_headroom_ratio{{mountpoint=\"{at}\",resource=\"{resource}\"}} fall, alert on that",
            options.over.as_secs()
        ),
    ])
}

pub(super) fn make(options: &SystemFilesystem, run: &mut Run) -> Result<()> {
    let (at, what) = (check(options)?, options.what());
    run.journal.make_dirs(&at)?;
    run.journal.note(Item::Mount(at.clone()))?;
    let limits = format!("size={},nr_inodes={INODES},mode=755", options.size);
    command("mount", &["-t", "tmpfs", "-o", &limits, "headroom-drill", &at.to_string_lossy()])?;
    let fill = at.join(format!("{MARK}fill"));
    Filler::of_a_mount(what, &at, fill)?.run(options.over, run)
}
