//! What a kubelet would make of configuration files and flags, and the traps in them.
use std::path::PathBuf;

/// What to check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The files of `--config`, each checked by itself; none: flags and drop-ins alone.
    pub configs: Vec<PathBuf>,
    /// `--config-dir`
    pub config_dir: Option<PathBuf>,
    /// Further arguments of the kubelet.
    pub flags: Vec<String>,
    /// What the node has.
    pub capacities: Vec<Capacity>,
    /// Print JSON.
    pub json: bool,
    /// Colour the output.
    pub color: bool,
}

/// What a node has of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// One of [`Capacity::NAMES`].
    pub name: &'static str,
    /// Bytes, inodes or pids.
    pub amount: u64,
}

impl Capacity {
    /// What can have one.
    pub const NAMES: [&str; 6] = ["memory", "nodefs", "nodefs-inodes", "imagefs", "imagefs-inodes", "pids"];
}

/// x
pub fn run(options: &Options) -> (String, u8) {
    (format!("{options:?}"), 0)
}
