//! Whether a file is still as it was.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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
        std::fs::metadata(path).map(|metadata| Self::from(&metadata)).map_err(|error| Error::os(path.display(), &error))
    }

    /// True if it had been so for this long when it was looked at at `now`. A file system's clock ticks every few
    /// milliseconds: of two changes within one tick the second leaves no trace, so what has just changed is not known.
    pub(super) fn had_settled(&self, now: SystemTime, age: Duration) -> bool {
        let (seconds, nanoseconds) = self.changed;
        let changed = u64::try_from(seconds).map(|seconds| UNIX_EPOCH + Duration::new(seconds, nanoseconds as u32));
        changed.is_ok_and(|changed| now.duration_since(changed).is_ok_and(|since| since >= age))
    }
}

impl From<&std::fs::Metadata> for FileVersion {
    fn from(metadata: &std::fs::Metadata) -> Self {
        FileVersion {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_just_changed_has_not_settled() {
        let dir = tempfile::tempdir().unwrap();
        let version = FileVersion::of(dir.path()).unwrap();
        let (now, second) = (SystemTime::now(), Duration::from_secs(1));
        assert!(version.had_settled(now + 5 * second, second));
        assert!(!version.had_settled(now, 60 * second));
        assert!(!version.had_settled(now - 5 * second, Duration::ZERO), "the clock was set back");
    }

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
