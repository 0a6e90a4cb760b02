//! placeholder, being written

use super::{Collector, Context, Mode};
use crate::error::{Error, Result};
use crate::metric::Samples;

/// This mode.
pub static MODE: Mode = Mode { id: "cgroup_leak", title: "", metrics: &[], build: |_| Box::new(C) };

/// Settings.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// x
    pub orphan_grace: std::time::Duration,
    /// x
    pub max_directories: usize,
    /// x
    pub v1_hierarchies: Vec<String>,
}

struct C;
impl Collector for C {
    fn collect(&self, _: Context<'_>) -> Result<Samples> {
        Err(Error::absent("not written"))
    }
}
