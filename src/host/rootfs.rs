//! A root file system that is not ours: the machine's, or the one that another process sees.

use std::ffi::OsString;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{Dir, FileType, Mode, OFlags};

use super::{Deadline, FileVersion, Host, read};
use crate::error::{Error, Reason, Result};

/// No directory that we list for its configuration files is anywhere near this long.
const MOST_ENTRIES: usize = 4096;

/// The file system below one root. Absolute symbolic links stay below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    root: PathBuf,
}

/// What a directory entry is, its own symbolic link not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A symbolic link, to whatever.
    Link,
    /// Anything else: a file, mostly.
    File,
}

impl From<FileType> for Kind {
    fn from(file_type: FileType) -> Self {
        match file_type {
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Link,
            _ => Kind::File,
        }
    }
}

impl Host {
    /// The machine's own root file system.
    pub fn tree(&self) -> Tree {
        Tree { root: self.roots().root.clone() }
    }

    /// The root file system that process `pid` sees, which differs from the machine's if it runs in a container. To
    /// look into it takes `CAP_SYS_PTRACE`.
    pub fn tree_of(&self, pid: u32) -> Tree {
        Tree { root: self.proc(format!("{pid}/root")) }
    }
}

impl Tree {
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The text of a file.
    ///
    /// # Errors
    /// The operating system's, with the path; malformed beyond 4 MiB.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<String> {
        read::text_in_root(&self.root, path.as_ref())
    }

    /// What `path` is. Its last symbolic link is not followed, unless `path` ends in a slash: as `lstat(2)` does it.
    ///
    /// # Errors
    /// The operating system's, with the path.
    pub fn kind(&self, path: impl AsRef<Path>) -> Result<Kind> {
        let path = path.as_ref();
        let os = |error: std::io::Error| Error::os(path.display(), &error);
        let follow = path.as_os_str().as_bytes().ends_with(b"/");
        let flags = OFlags::PATH | OFlags::CLOEXEC | if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
        let fd = read::open_in_root(&self.root, path, flags).map_err(os)?;
        let stat = rustix::fs::fstat(&fd).map_err(|errno| os(errno.into()))?;
        Ok(FileType::from_raw_mode(stat.st_mode).into())
    }

    /// How long a regular file is, in bytes; it is not opened for reading.
    ///
    /// # Errors
    /// The operating system's, with the path; malformed of what is no regular file.
    pub fn length(&self, path: impl AsRef<Path>) -> Result<u64> {
        let path = path.as_ref();
        let os = |error: std::io::Error| Error::os(path.display(), &error);
        let fd = read::open_in_root(&self.root, path, OFlags::PATH | OFlags::CLOEXEC).map_err(os)?;
        let stat = rustix::fs::fstat(&fd).map_err(|errno| os(errno.into()))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok(u64::try_from(stat.st_size).unwrap_or_default()),
            _ => Err(Error::malformed(format!("{}: not a file", path.display()))),
        }
    }

    /// The entries of a directory with what they are, sorted by name.
    ///
    /// # Errors
    /// The operating system's, with the path; malformed if there are thousands.
    pub fn list(&self, path: impl AsRef<Path>) -> Result<Vec<(OsString, Kind)>> {
        let path = path.as_ref();
        let os = |error: std::io::Error| Error::os(path.display(), &error);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = read::open_in_root(&self.root, path, flags).map_err(os)?;
        let mut entries = Vec::new();
        for entry in Dir::new(fd).map_err(|errno| os(errno.into()))? {
            let entry = entry.map_err(|errno| os(errno.into()))?;
            let name = std::ffi::OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            if entries.len() >= MOST_ENTRIES {
                return Err(Error::malformed(format!("{}: more than {MOST_ENTRIES} entries", path.display())));
            }
            let kind = match entry.file_type() {
                // Some file systems do not say it in the directory itself.
                FileType::Unknown => self.kind(path.join(name))?,
                known => known.into(),
            };
            entries.push((name.to_owned(), kind));
        }
        entries.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Ok(entries)
    }
}

/// How long a directory must have been as it is before it is taken to be unchanged.
const SETTLED: Duration = Duration::from_secs(2);
/// How much of a small file is read.
const SMALL: u64 = 512;

/// The small files of a directory.
#[derive(Clone, Debug, Default)]
pub struct SmallFiles {
    /// Name and beginning of each; a subdirectory is none.
    pub files: Vec<(OsString, String)>,
    /// False if there are more than were to be read.
    pub whole: bool,
    /// Of the directory; `None` if it may yet change without a trace.
    pub version: Option<FileVersion>,
}

impl Tree {
    /// The first half KiB of each file in a directory, at most `most` of them; `None`, and no file is opened, if the
    /// directory is as it was when it had this version. That is for files that are written once, when they are made.
    /// While one is still empty there is no version.
    ///
    /// # Errors
    /// The operating system's, with the path; timeout.
    pub fn small_files(
        &self,
        path: impl AsRef<Path>,
        most: usize,
        before: Option<FileVersion>,
        deadline: Deadline,
    ) -> Result<Option<SmallFiles>> {
        let path = path.as_ref();
        let os = |error: std::io::Error| Error::os(path.display(), &error);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = std::fs::File::from(read::open_in_root(&self.root, path, flags).map_err(os)?);
        let now = SystemTime::now();
        let version = directory.metadata().map(|metadata| FileVersion::from(&metadata)).map_err(os)?;
        if before == Some(version) {
            return Ok(None);
        }
        let mut read = SmallFiles { whole: true, ..SmallFiles::default() };
        for entry in Dir::read_from(&directory).map_err(|errno| os(errno.into()))? {
            let entry = entry.map_err(|errno| os(errno.into()))?;
            if !matches!(entry.file_type(), FileType::RegularFile | FileType::Unknown) {
                continue;
            }
            if read.files.len() >= most {
                read.whole = false;
                break;
            }
            if deadline.expired() {
                return Err(Error::new(Reason::Timeout, format!("{}: not read before the deadline", path.display())));
            }
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            // What is removed meanwhile is no longer there.
            let Ok(file) = rustix::fs::openat(&directory, entry.file_name(), flags, Mode::empty()) else { continue };
            let file = std::fs::File::from(file);
            if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
                continue;
            }
            let mut bytes = Vec::new();
            if file.take(SMALL).read_to_end(&mut bytes).is_ok() {
                let name = std::ffi::OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
                read.files.push((name, String::from_utf8_lossy(&bytes).into_owned()));
            }
        }
        let written = read.files.iter().all(|(_, text)| !text.is_empty());
        read.version = Some(version).filter(|version| written && version.had_settled(now, SETTLED));
        Ok(Some(read))
    }

    /// The names in a directory, at most `most` of them in no order, and whether these are all.
    ///
    /// # Errors
    /// The operating system's, with the path.
    pub fn names(&self, path: impl AsRef<Path>, most: usize) -> Result<(Vec<OsString>, bool)> {
        let path = path.as_ref();
        let os = |error: std::io::Error| Error::os(path.display(), &error);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = read::open_in_root(&self.root, path, flags).map_err(os)?;
        let mut names = Vec::new();
        for entry in Dir::new(fd).map_err(|errno| os(errno.into()))? {
            let entry = entry.map_err(|errno| os(errno.into()))?;
            let name = std::ffi::OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            if names.len() >= most {
                return Ok((names, false));
            }
            names.push(name.to_owned());
        }
        Ok((names, true))
    }
}

#[cfg(test)]
impl Tree {
    /// A tree of these files, which are there as long as their directory is kept.
    pub(crate) fn recorded(files: &[(&str, &str)]) -> (tempfile::TempDir, Self) {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let tree = Tree { root: dir.path().to_owned() };
        (dir, tree)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Reason;
    use crate::host::Roots;

    #[test]
    fn entries_are_sorted_and_known_for_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("conf.d")).unwrap();
        std::fs::create_dir(at("conf.d/20-sub")).unwrap();
        std::fs::write(at("conf.d/10.conf"), "x").unwrap();
        std::os::unix::fs::symlink("/conf.d/10.conf", at("conf.d/05.conf")).unwrap();
        std::os::unix::fs::symlink("conf.d", at("link")).unwrap();
        let tree = Host::new(Roots { root: dir.path().into(), ..Roots::default() }).tree();
        let names: Vec<_> = tree.list("/conf.d").unwrap();
        assert_eq!(
            names,
            [("05.conf".into(), Kind::Link), ("10.conf".into(), Kind::File), ("20-sub".into(), Kind::Directory)]
        );
        assert_eq!(tree.read("/conf.d/05.conf").unwrap(), "x", "an absolute link stays below the root");
        assert_eq!(tree.kind("/link").unwrap(), Kind::Link);
        assert_eq!(tree.kind("/link/").unwrap(), Kind::Directory);
        assert_eq!(tree.length("/conf.d/05.conf").unwrap(), 1);
        assert!(tree.length("/conf.d").is_err(), "a directory has no length");
        assert_eq!(tree.kind("/none").unwrap_err().reason(), Reason::Absent);
    }

    #[test]
    fn small_files_are_read_again_only_where_something_changed() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Host::new(Roots { root: dir.path().into(), ..Roots::default() }).tree();
        let soon = || Deadline::after(Duration::from_secs(20));
        let read = |before| tree.small_files("/a", 10, before, soon()).unwrap();
        assert!(tree.small_files("/a", 10, None, soon()).unwrap_err().is_gone());
        std::fs::create_dir_all(dir.path().join("a/sub")).unwrap();
        std::fs::write(dir.path().join("a/one"), "1").unwrap();
        std::fs::write(dir.path().join("a/long"), "x".repeat(600)).unwrap();
        let mut first = read(None).unwrap();
        first.files.sort();
        assert_eq!(first.files, [("long".into(), "x".repeat(512)), ("one".into(), "1".into())]);
        assert!(first.whole && first.version.is_none(), "it has just changed");
        let version = FileVersion::of(&dir.path().join("a")).unwrap();
        assert!(read(Some(version)).is_none(), "as it was");
        std::fs::write(dir.path().join("a/two"), "2").unwrap();
        assert_eq!(read(Some(version)).unwrap().files.len(), 3);
        let few = tree.small_files("/a", 2, None, soon()).unwrap().unwrap();
        assert!(few.files.len() == 2 && !few.whole);
        assert_eq!(tree.names("/a", 10).map(|(names, whole)| (names.len(), whole)).unwrap(), (4, true));
        assert_eq!(tree.names("/a", 3).map(|(names, whole)| (names.len(), whole)).unwrap(), (3, false));
    }

    #[test]
    fn another_process_sees_this_root() {
        let host = Host::new(Roots::default());
        let tree = host.tree_of(std::process::id());
        assert_eq!(tree.read("/proc/sys/kernel/ostype").unwrap(), "Linux\n");
    }
}
