//! What unit tests of several modules share: readers of the recordings below `tests/fixtures`; and the golden pages.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

mod golden;
pub(crate) mod inventory;
pub(crate) mod ss;

use std::path::{Path, PathBuf};

use crate::host::filesystem::{Filesystem, Mount};

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// `/var/lib/kubelet: type=ext2/ext3 bsize=4096 blocks=3 bfree=2 bavail=1 files=9 ffree=8`
pub(crate) fn filesystem(line: &str) -> (PathBuf, Filesystem) {
    let (path, rest) = line.split_once(": ").unwrap();
    let field = |name: &str| {
        let word = rest.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        word.unwrap().parse::<u64>().unwrap()
    };
    let tmpfs = rest.starts_with("type=tmpfs");
    let mount = Mount {
        device: if tmpfs { "tmpfs" } else { "/dev/vda" }.to_owned(),
        mountpoint: if tmpfs { path } else { "/" }.into(),
        fstype: if tmpfs { "tmpfs" } else { "ext4" }.to_owned(),
        readonly: false,
        number: None,
    };
    let filesystem = Filesystem {
        capacity_bytes: field("bsize") * field("blocks"),
        available_bytes: field("bsize") * field("bavail"),
        inodes: field("files"),
        inodes_free: field("ffree"),
        mount: Some(mount),
    };
    (path.into(), filesystem)
}
