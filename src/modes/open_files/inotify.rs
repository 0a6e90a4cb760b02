//! Inotify instances and watches by user: an index of who holds which, kept from scrape to scrape.
//!
//! The kernel limits both per user (`inc_inotify_instances`, `inotify_new_watch` in fs/notify/inotify/inotify_user.c)
//! and tells the usage nowhere. What it shows: an fd whose link reads `anon_inode:inotify` is an instance, and each
//! `inotify wd:` line of its fdinfo is a watch. Reading the link of every fd of a node on every scrape would cost more
//! than everything else together, so the index remembers for each process how many fds it had when it was examined, and
//! which are inotify.
//!
//! On each scrape: processes that are new or whose number of fds changed are examined (one with more than 1,000 fds
//! only every fds/1,000 scrapes); then an eighth of all fds in turn, or a fixed number if that is less, so that one
//! closed and another opened in between is found in the end; then every known instance is checked and its watches
//! counted. Each step has a budget, and every pod its turn in it: what one does costs its own numbers. A process some
//! of whose instances are not known counts with what it had when they were, for [`index::HELD`] rounds.
//!
//! **Whom the kernel charges** is the effective user of the creator at that moment and, if that is in a user namespace,
//! who made the namespace, in the one above. Shown is the charge in the first namespace, whose limit is the one that
//! stops people: all instances in pods with `hostUsers: false` are root's, not those of the uids that they are mapped
//! to. We take user and namespace of the holder when we first see the instance: wrong for a daemon that gave up root
//! after making it.
//!
//! **When it misleads.** What we may not examine (processes of others without `CAP_SYS_PTRACE`, a pid 1 that no one may
//! look into) is not in the sums: `headroom_inotify_unexamined_fds` tells how much that is. An instance that was
//! inherited by fork, passed on or duplicated is one for the kernel and counted once per fd here: only `kcmp(2)` could
//! tell, which takes ptrace rights and a call for each pair. A watch on an inode that was deleted is still
//! charged while its event is unread. A process with a million fds is complete after hundreds of scrapes.

mod index;
mod watches;

use std::collections::BTreeMap;

use crate::error::{Error, Reason};
use crate::host::Host;
use crate::metric::{Metric, Samples, Unit};

pub(super) use index::{Index, Look};

pub(super) static INSTANCES: Metric = Metric::gauge(
    "headroom_inotify_instances",
    Unit::None,
    &["uid"],
    "Inotify instances charged to one user, found among the file descriptors of processes.\n\n\
     What a process in a user namespace holds (hostUsers: false) is charged to who made the namespace, mostly root, and \
     not to the user that it is mapped to. At least so many while headroom_inotify_unexamined_fds is not 0, and at most so many where processes inherit an \
     instance by fork or duplicate it. A process that replaces its own counts with what it had before, for up to 40 \
     scrapes, until the new ones were looked at. Missing until every process was examined once after start. A user \
     without an instance has no series.",
);
pub(super) static INSTANCES_LIMIT: Metric = Metric::gauge(
    "headroom_inotify_instances_limit",
    Unit::None,
    &["uid"],
    "Most inotify instances that one user may have (fs.inotify.max_user_instances): at it inotify_init fails with EMFILE, which \
     programs report as too many open files.",
);
pub(super) static WATCHES: Metric = Metric::gauge(
    "headroom_inotify_watches",
    Unit::None,
    &["uid"],
    "Inotify watches charged to one user (fdinfo of its instances).\n\n\
     Up to some scrapes old for an instance with tens of thousands. A lower bound, and missing, as \
     headroom_inotify_instances is; missing too for a user of whose instances none could be counted yet.",
);
pub(super) static WATCHES_LIMIT: Metric = Metric::gauge(
    "headroom_inotify_watches_limit",
    Unit::None,
    &["uid"],
    "Most inotify watches that one user may have (fs.inotify.max_user_watches): at it inotify_add_watch fails with ENOSPC, \
     reported as no space left on device.",
);
pub(super) static UNEXAMINED: Metric = Metric::gauge(
    "headroom_inotify_unexamined_fds",
    Unit::None,
    &[],
    "File descriptors never examined for inotify. While it is not 0, headroom_inotify_instances and \
     headroom_inotify_watches may be too small.\n\n\
     Not examined since the exporter or their process started, or because the exporter may not; and instances that \
     were not counted yet, or that a process has just replaced. A process whose descriptors cannot even be counted \
     adds 1.",
);

/// Users shown: those that use the largest share of a limit. The rest is counted as dropped.
const MOST_UIDS: usize = 20;
/// What is in use by whom.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// By uid, of those that have any. `None` before the first pass is complete.
    uids: Option<BTreeMap<u32, Used>>,
    /// As [`UNEXAMINED`] says.
    unexamined: u64,
    /// Processes that we may not look at.
    pub(super) refused: u64,
    /// Processes whose instances were too many to remember.
    pub(super) overflown: Vec<u32>,
    /// Instances whose watches were not counted, by the pod; `None` of the node's own.
    pub(super) uncounted: BTreeMap<Option<String>, u64>,
    /// The deadline ended the checks.
    timeout: bool,
}

/// Usage of one user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Used {
    instances: u64,
    /// Of those instances whose are counted; `None` while there is none.
    watches: Option<u64>,
}

/// The kernel's limits for one user. `None` where this kernel has no inotify.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limits {
    instances: Option<u64>,
    watches: Option<u64>,
}

impl Limits {
    pub(super) fn read(host: &Host, samples: &mut Samples) -> Self {
        let mut read = |file: &str| match host.read_number(host.proc("sys/fs/inotify").join(file)) {
            Err(error) if error.is_gone() => None,
            result => samples.ok(result),
        };
        Limits { instances: read("max_user_instances"), watches: read("max_user_watches") }
    }
}

/// The numbers. Pure.
pub(super) fn assess(usage: &Usage, limits: &Limits, samples: &mut Samples) {
    samples.push(&UNEXAMINED, &[], usage.unexamined as f64);
    if usage.timeout {
        samples.fail(Error::new(Reason::Timeout, "inotify: known instances were not all checked before the deadline"));
    }
    let Some(uids) = &usage.uids else { return };
    let share = |used: Option<u64>, limit: Option<u64>| used.unwrap_or(0) as f64 / limit.unwrap_or(1).max(1) as f64;
    let key = |used: &Used| share(Some(used.instances), limits.instances).max(share(used.watches, limits.watches));
    let mut rows: Vec<_> = uids.iter().collect();
    rows.sort_by(|(_, a), (_, b)| key(b).total_cmp(&key(a)));
    samples.drop_count(rows.len().saturating_sub(MOST_UIDS) as u64);
    for (uid, used) in rows.into_iter().take(MOST_UIDS) {
        let uid = uid.to_string();
        samples.push(&INSTANCES, &[&uid], used.instances as f64);
        samples.push_some(&INSTANCES_LIMIT, &[&uid], limits.instances.map(|number| number as f64));
        samples.push_some(&WATCHES, &[&uid], used.watches.map(|number| number as f64));
        samples.push_some(&WATCHES_LIMIT, &[&uid], limits.watches.map(|number| number as f64));
    }
}
