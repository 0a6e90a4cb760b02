//! The drill `system-filesystem`: a tmpfs of its own in a directory that the exporter watches and this node has not,
//! without free bytes or inodes. Nothing of the node's is on it, so nothing but the page fails.

use std::path::PathBuf;
use std::time::Duration;

use super::cli::{bytes, duration};
use super::disk::{Filler, What};
use super::expect::{Page, page};
use super::journal::{Item, MARK};
use super::paths::{is_mounted, real};
use super::{Fault, Result, Run, refused, run as command};

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

#[derive(clap::Args, Clone, Debug)]
pub(super) struct SystemFilesystem {
    /// Mount a tmpfs here and fill that: a directory that the exporter watches and this node has not
    #[arg(long, value_name = "DIR", default_value = "/run/k0s")]
    pub(super) mount: PathBuf,
    /// Size of the tmpfs
    #[arg(long, value_name = "BYTES", default_value = "16Mi", value_parser = bytes)]
    pub(super) size: u64,
    /// Use up its inodes instead of its bytes
    #[arg(long)]
    pub(super) inodes: bool,
    /// Fill it little by little over this time
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    pub(super) over: Duration,
}

impl Fault for SystemFilesystem {
    fn plan(&self) -> Result<Vec<String>> {
        let at = check(self)?;
        let (at, resource) = (at.display(), if self.inodes { "inodes" } else { "bytes" });
        Ok(vec![
            format!("mount a tmpfs of {} bytes and {INODES} inodes at {at}", self.size),
            format!(
                "fill it until 2 % of its {resource} are left, over {}s; see \
                 headroom_system_filesystem_headroom_ratio{{mountpoint=\"{at}\",resource=\"{resource}\"}} fall, alert on that",
                self.over.as_secs()
            ),
        ])
    }

    fn make(&self, run: &mut Run) -> Result<()> {
        let (at, what) = (check(self)?, self.what());
        run.journal.make_dirs(&at)?;
        run.journal.note(Item::Mount(at.clone()))?;
        let limits = format!("size={},nr_inodes={INODES},mode=755", self.size);
        command("mount", &["-t", "tmpfs", "-o", &limits, "headroom-drill", &at.to_string_lossy()])?;
        let fill = at.join(format!("{MARK}fill"));
        Filler::of_a_mount(what, &at, fill)?.run(self.over, run)
    }

    fn pages(&self) -> Vec<Page> {
        let by_trend = "with --over 20m or more, by a trend of a quarter of an hour";
        vec![
            page("HeadroomSystemFilesystemNearFull", 115, "once less than a tenth is left"),
            page("HeadroomSystemFilesystemPredicted", 1060, by_trend),
        ]
    }
}
