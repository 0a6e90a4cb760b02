//! Whether a file is still as it was.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::error::{Error, Result};

/// A file's identity, size and times. A new file in its place, a symbolic link that leads elsewhere (how a mounted
/// Secret changes), and a file that was written into each make another one. `ctime` too, since a program may set the
/// `mtime` that it likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileVersion {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileVersion {
    pub(super) fn of(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|error| Error::os(path.display(), &error))?;
        Ok(FileVersion {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_change_a_file_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["one", "two"] {
            std::fs::write(path(name), "same").unwrap();
        }
        std::os::unix::fs::symlink(path("one"), path("link")).unwrap();
        let link = FileVersion::of(&path("link")).unwrap();
        assert_eq!(link, FileVersion::of(&path("one")).unwrap());
        std::fs::remove_file(path("link")).unwrap();
        std::os::unix::fs::symlink(path("two"), path("link")).unwrap();
        assert_ne!(link, FileVersion::of(&path("link")).unwrap());
        let before = FileVersion::of(&path("one")).unwrap();
        assert_eq!(before, FileVersion::of(&path("one")).unwrap());
        std::fs::write(path("one"), "longer").unwrap();
        assert_ne!(before, FileVersion::of(&path("one")).unwrap());
        assert!(FileVersion::of(&path("none")).unwrap_err().is_gone());
    }
}
