//! Kernel memory charged to cgroups, and the proof that it is accounted where that differs from one to the next.

use crate::error::{Error, Reason, Result};
use crate::host::cgroup::walk::Entry;
use crate::host::text::keyed;

/// Kernel memory in bytes; what this kernel does not print is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Charged {
    /// All of it.
    pub kernel: Option<u64>,
    /// Slab that can be reclaimed.
    pub slab_reclaimable: Option<u64>,
    /// Slab that cannot.
    pub slab_unreclaimable: Option<u64>,
}

impl Charged {
    /// From the `memory.stat` of a v2 cgroup. `kernel` is there since Linux 5.18.
    pub fn from_stat(stat: &str) -> Self {
        Charged {
            kernel: keyed(stat, "kernel"),
            slab_reclaimable: keyed(stat, "slab_reclaimable"),
            slab_unreclaimable: keyed(stat, "slab_unreclaimable"),
        }
    }

    /// From `memory.kmem.usage_in_bytes` of a v1 cgroup.
    pub fn from_usage(usage: &str) -> Self {
        Charged { kernel: usage.trim().parse().ok(), ..Charged::default() }
    }

    /// The sum, of what both have.
    pub(super) fn plus(self, other: Self) -> Self {
        let sum = |a: Option<u64>, b: Option<u64>| Some(a? + b?);
        Charged {
            kernel: sum(self.kernel, other.kernel),
            slab_reclaimable: sum(self.slab_reclaimable, other.slab_reclaimable),
            slab_unreclaimable: sum(self.slab_unreclaimable, other.slab_unreclaimable),
        }
    }
}

/// True if a kernel of this version accounts kernel memory on v1 only of cgroups that asked for it. Since 4.6 (commit
/// b313aeee2509) it is all of them or none.
pub fn accounts_by_cgroup(version: (u32, u32)) -> bool {
    version < (4, 6)
}

/// What is charged to a cgroup; an error other than "not there" is noted unless there is one already.
pub(super) fn charged(entry: &Entry<'_>, unified: bool, unread: &mut Option<Error>) -> Charged {
    let file = if unified { "memory.stat" } else { "memory.kmem.usage_in_bytes" };
    let parse = if unified { Charged::from_stat } else { Charged::from_usage };
    match entry.first(file) {
        Ok(text) => parse(&text),
        Err(error) => {
            if !error.is_gone() {
                unread.get_or_insert(error);
            }
            Charged::default()
        }
    }
}

/// Whether accounting is active in a v1 cgroup: the limit reads "unlimited" either way, but usage above 0 proves it,
/// and so does a slabinfo. Inside: `None` if that cannot be read, which is noted. Outside: `None` if the cgroup went
/// away.
pub(super) fn proof(entry: &Entry<'_>, unread: &mut Option<Error>) -> Option<Option<bool>> {
    let proof = entry.first("memory.kmem.usage_in_bytes").and_then(|usage| {
        let used = usage.trim().parse::<u64>().is_ok_and(|bytes| bytes > 0);
        Ok(used || slabinfo(entry)?)
    });
    match proof {
        Ok(active) => Some(Some(active)),
        Err(error) if entry.is_gone(&error) => None,
        // No such file in a cgroup that is there: this kernel has nothing to account with.
        Err(error) if error.is_gone() => Some(Some(false)),
        Err(error) => {
            unread.get_or_insert(error);
            Some(None)
        }
    }
}

/// Whether `memory.kmem.slabinfo` can be read and has anything in it, be it only its header. While accounting is not
/// active the old kernels answer EIO.
fn slabinfo(entry: &Entry<'_>) -> Result<bool> {
    match entry.first("memory.kmem.slabinfo") {
        Ok(text) => Ok(!text.trim().is_empty()),
        Err(error) if error.reason() == Reason::Io || (error.is_gone() && !entry.is_gone(&error)) => Ok(false),
        Err(error) => Err(error),
    }
}
