//! placeholder, being written

use super::{Collector, Context, Mode};
use crate::error::{Error, Result};
use crate::metric::Samples;

/// This mode.
pub static MODE: Mode = Mode { id: "eviction", title: "", metrics: &[], build: |_| Box::new(C) };

/// Settings.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// x
    pub kubelet_config: Option<std::path::PathBuf>,
    /// x
    pub kubelet_config_dir: Option<std::path::PathBuf>,
    /// x
    pub kubelet_root_dir: Option<std::path::PathBuf>,
}

struct C;
impl Collector for C {
    fn collect(&self, _: Context<'_>) -> Result<Samples> {
        Err(Error::absent("not written"))
    }
}
