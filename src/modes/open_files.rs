//! placeholder, being written

use super::{Collector, Context, Mode};
use crate::error::{Error, Result};
use crate::metric::Samples;

/// This mode.
pub static MODE: Mode = Mode { id: "open_files", title: "", metrics: &[], build: |_| Box::new(C) };

/// Settings.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// x
    pub top: usize,
    /// x
    pub commands: usize,
    /// x
    pub max_readlinks: usize,
    /// x
    pub daemons: Vec<String>,
}

struct C;
impl Collector for C {
    fn collect(&self, _: Context<'_>) -> Result<Samples> {
        Err(Error::absent("not written"))
    }
}
