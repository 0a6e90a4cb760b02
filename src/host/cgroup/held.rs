//! What the kernel holds in a v1 hierarchy beside what a walk sees in it.

use super::walk::Extent;
use super::{Hierarchy, Subsystem, parse_subsystems};
use crate::error::Result;
use crate::host::{Deadline, Host};

/// The rows of `/proc/cgroups` that say something about one controller: those on a v1 hierarchy.
///
/// # Errors
/// The operating system's, with the path; malformed if a row is not one.
pub fn rows(host: &Host) -> Result<Vec<Subsystem>> {
    let mut rows = parse_subsystems(&host.read(host.proc("cgroups"))?)?;
    rows.retain(|row| row.hierarchy != 0);
    Ok(rows)
}

/// The kernel's count of cgroups in this hierarchy.
pub fn of(rows: &[Subsystem], hierarchy: &Hierarchy) -> Option<u64> {
    rows.iter().find(|row| hierarchy.has(&row.name)).map(|row| row.cgroups)
}

/// Makes a walk of the hierarchy, of which the kernel counted `before` cgroups, and says how many it held meanwhile.
/// Cgroups made under the walk are in one count and not in the other. So the kernel's is read again afterwards, and
/// if it moved, `walk` is called once more; if it moves again, the smaller count is taken, so that what was made
/// meanwhile is never called dying.
pub fn beside(
    host: &Host,
    hierarchy: &Hierarchy,
    mut before: Option<u64>,
    deadline: Deadline,
    mut walk: impl FnMut() -> Result<Extent>,
) -> (Extent, Option<u64>) {
    let mut first = true;
    loop {
        let started = deadline.remaining();
        let extent = Extent::of(walk());
        let after = before.and_then(|_| of(&rows(host).ok()?, hierarchy));
        let left = deadline.remaining();
        let time_for_another = started.saturating_sub(left) < left / 2;
        if first && after != before && extent.stopped.is_none() && time_for_another {
            (first, before) = (false, after);
            continue;
        }
        return (extent, before.min(after));
    }
}
