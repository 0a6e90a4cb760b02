//! The failure modes: one file each, one line each in [`MODES`].
//!
//! A mode is one way in which a node fails while every dashboard is green. Adding one means: its file under `modes/`, one
//! line in [`MODES`], its settings in [`Settings`], its fixtures, its alerts folder, its dashboard row. `tests/catalog.rs`
//! is red until each exists.

pub mod cgroup_leak;
pub mod eviction;
pub mod kmem;
pub mod open_files;
pub mod pod_interface;

use crate::error::Result;
use crate::host::{Deadline, Host};
use crate::metric::{Metric, Samples};
use crate::runtime::Runtime;

/// What a collector gets to work with for one scrape.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The machine that is read.
    pub host: &'a Host,
    /// When the answer must be there. Anything that loops looks at it now and then and stops, with a partial result.
    pub deadline: Deadline,
}

/// Reads one mode's evidence. Called once per scrape, never twice at the same time.
///
/// What is *read* is built fresh each time, so that vanished objects vanish from the page. A collector may keep state
/// between scrapes behind a mutex (ages, caches of expensive facts), bounded by a cap of its own.
pub trait Collector: Send + Sync {
    /// The numbers, and in them the errors of what could not be read.
    ///
    /// # Errors
    /// [`crate::error::Reason::Absent`] means that this machine has no such thing at all: outcome `not_applicable`. Any other error
    /// means that nothing could be read: outcome `failed`. A partial result is `Ok` with [`Samples::fail`].
    fn collect(&self, context: Context<'_>) -> Result<Samples>;
}

/// One failure mode: everything that names it, in one place.
#[derive(Debug)]
pub struct Mode {
    /// The id: Rust file, `--collector.<id>`, `collector` label, alerts folder, fixture folder, dashboard row.
    pub id: &'static str,
    /// What fails, in a few words, for `--help` and the landing page.
    pub title: &'static str,
    /// Every metric that it may expose.
    pub metrics: &'static [&'static Metric],
    /// Builds its collector.
    pub build: fn(&Settings) -> Box<dyn Collector>,
}

/// The settings of every mode, as `config` hands them down.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Of [`cgroup_leak`].
    pub cgroup_leak: cgroup_leak::Settings,
    /// Of [`eviction`].
    pub eviction: eviction::Settings,
    /// Of [`open_files`].
    pub open_files: open_files::Settings,
    /// Of [`pod_interface`].
    pub pod_interface: pod_interface::Settings,
    /// The container runtime that modes may ask; one handle for all of them, so that one scrape polls once.
    pub runtime: Runtime,
}

/// Every mode, in the order of the page.
pub static MODES: &[&Mode] =
    &[&cgroup_leak::MODE, &kmem::MODE, &eviction::MODE, &open_files::MODE, &pod_interface::MODE];
