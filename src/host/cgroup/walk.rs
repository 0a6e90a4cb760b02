//! A bounded walk over the directories of a hierarchy, in few system calls.
//!
//! A directory of a cgroup file system has `st_nlink` = 2 + the number of its child directories
//! (`kernfs_refresh_inode`, seen on 6.18 for v1 and cgroup2; ext4, xfs and tmpfs do the same). So a leaf costs one
//! `fstatat` and is never opened, and most cgroups are leaves. File systems that do not count so (btrfs, overlay) say
//! 1: there every directory is read.
//!
//! A cgroup that is removed under the walk is not an error: cgroups come and go.

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::path::Path;
use std::rc::Rc;

use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;

use crate::error::{Error, Reason, Result};
use crate::host::Deadline;

/// No sane tree is deeper; one file descriptor per level may be open.
const DEEPEST: u32 = 128;
/// What [`Entry::first`] reads at most: more than any of the small cgroup files that it is for.
const FIRST: usize = 4096;

/// How much a walk may cost.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Directories to look at.
    pub directories: u64,
    /// When to stop.
    pub deadline: Deadline,
}

/// A directory met by the walk, before it is opened.
#[derive(Debug)]
pub struct Entry<'a> {
    parent: BorrowedFd<'a>,
    name: &'a CStr,
    links: u64,
    /// Its inode number. Unique within a hierarchy, and on kernfs not used again for another directory.
    pub inode: u64,
}

impl Entry<'_> {
    /// Its name in its parent.
    pub fn name(&self) -> Cow<'_, str> {
        self.name.to_string_lossy()
    }

    /// False if it surely has no directories in it.
    pub fn may_have_children(&self) -> bool {
        self.links != 2
    }

    /// The first page of a file in it, by one `read`: the whole of `cgroup.events` and its like.
    ///
    /// # Errors
    /// The operating system's. Absent or vanished if the file or the directory is not there (any more).
    pub fn first(&self, file: &str) -> Result<String> {
        let path = [self.name.to_bytes(), b"/", file.as_bytes()].concat();
        let os = |errno: Errno| Error::os(format_args!("{}", String::from_utf8_lossy(&path)), &errno.into());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
        let fd = rustix::fs::openat(self.parent, path.as_slice(), flags, Mode::empty()).map_err(os)?;
        let mut buffer = [0; FIRST];
        let length = rustix::io::read(&fd, &mut buffer).map_err(os)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    /// What an error of reading a file in it means: the directory went away (`true`), or it is there without that file.
    /// One of the same name may have come in its place meanwhile, and is not this one.
    pub fn is_gone(&self, error: &Error) -> bool {
        let same = || {
            let now = rustix::fs::statat(self.parent, self.name, AtFlags::SYMLINK_NOFOLLOW);
            now.is_ok_and(|stat| stat.st_ino == self.inode)
        };
        error.reason() == Reason::Vanished || (error.reason() == Reason::Absent && !same())
    }
}

/// What a walk saw.
#[derive(Debug)]
pub struct Extent {
    /// Directories, the top included.
    pub directories: u64,
    /// Why it is not the whole tree.
    pub stopped: Option<Stopped>,
}

impl Extent {
    /// Of a walk whose top could perhaps not be opened: then it saw nothing.
    pub fn of(walk: Result<Extent>) -> Extent {
        walk.unwrap_or_else(|error| Extent { directories: 0, stopped: Some(Stopped::Failed(error)) })
    }
}

/// Why a walk ended early. Whatever was counted until then is too small to be shown.
#[derive(Debug)]
pub enum Stopped {
    /// At a bound of ours; at least so many directories were left out.
    Bound(u64),
    /// At the deadline (`timeout`) or an error of the operating system.
    Failed(Error),
}

/// A directory still to be read.
struct Pending<T> {
    parent: Rc<OwnedFd>,
    name: CString,
    depth: u32,
    children: u64,
    tag: T,
}

/// Walks the tree at `top`. `visit` is called once for each directory below it, parents before children, with what it
/// returned for the parent (`tag` for the top); `None` leaves out everything below that directory.
///
/// # Errors
/// The operating system's if the top cannot be opened.
pub fn walk<T: Copy>(
    top: &Path,
    tag: T,
    bounds: Bounds,
    mut visit: impl FnMut(&Entry<'_>, T) -> Option<T>,
) -> Result<Extent> {
    let open = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(top, open, Mode::empty()).map_err(|errno| Error::os(top.display(), &errno.into()))?;
    let mut extent = Extent { directories: 1, stopped: None };
    let mut pending = Vec::new();
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut next = Some((Rc::new(fd), 1, tag));
    while let Some((fd, depth, tag)) = next.take() {
        let result = read(&fd, depth, tag, bounds, &mut buffer, &mut extent, &mut pending, &mut visit);
        if let Err(stopped) = result {
            let left: u64 = pending.iter().map(|pending| pending.children).sum();
            extent.stopped = Some(match stopped {
                Stopped::Bound(at_least) => Stopped::Bound(at_least + left),
                Stopped::Failed(error) => Stopped::Failed(error.context(top.display())),
            });
            return Ok(extent);
        }
        drop(fd);
        while let Some(Pending { parent, name, depth, tag, .. }) = pending.pop() {
            match rustix::fs::openat(parent.as_fd(), &name, open | OFlags::NOFOLLOW, Mode::empty()) {
                Ok(fd) => {
                    next = Some((Rc::new(fd), depth + 1, tag));
                    break;
                }
                Err(errno) if gone(errno) => {}
                Err(errno) => {
                    let place = format!("{}: {}", top.display(), name.to_string_lossy());
                    extent.stopped = Some(Stopped::Failed(Error::os(place, &errno.into())));
                    return Ok(extent);
                }
            }
        }
    }
    Ok(extent)
}

#[expect(clippy::too_many_arguments, reason = "the state of one walk, borrowed apart")]
fn read<T: Copy>(
    fd: &Rc<OwnedFd>,
    depth: u32,
    tag: T,
    bounds: Bounds,
    buffer: &mut Vec<u8>,
    extent: &mut Extent,
    pending: &mut Vec<Pending<T>>,
    visit: &mut impl FnMut(&Entry<'_>, T) -> Option<T>,
) -> std::result::Result<(), Stopped> {
    let failed = |what: &str, errno: Errno| Stopped::Failed(Error::os(what, &errno.into()));
    let spare: &mut [MaybeUninit<u8>] = buffer.spare_capacity_mut();
    let mut entries = RawDir::new(fd.as_fd(), spare);
    while let Some(entry) = entries.next() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(errno) if gone(errno) => return Ok(()),
            Err(errno) => return Err(failed("reading a directory", errno)),
        };
        let name = entry.file_name();
        if !matches!(entry.file_type(), FileType::Directory | FileType::Unknown)
            || matches!(name.to_bytes(), b"." | b"..")
        {
            continue;
        }
        if bounds.deadline.expired() {
            let what = format!("the deadline passed after {} directories", extent.directories);
            return Err(Stopped::Failed(Error::new(Reason::Timeout, what)));
        }
        let stat = match rustix::fs::statat(fd.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(errno) if gone(errno) => continue,
            Err(errno) => return Err(failed(&name.to_string_lossy(), errno)),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            continue;
        }
        if extent.directories >= bounds.directories {
            return Err(Stopped::Bound(1));
        }
        extent.directories += 1;
        #[allow(clippy::useless_conversion, reason = "32 bits wide on some architectures")]
        let links = u64::from(stat.st_nlink);
        let entry = Entry { parent: fd.as_fd(), name, links, inode: stat.st_ino };
        let Some(tag) = visit(&entry, tag) else { continue };
        if entry.may_have_children() {
            if depth >= DEEPEST {
                return Err(Stopped::Bound(1));
            }
            let children = links.saturating_sub(2);
            pending.push(Pending { parent: Rc::clone(fd), name: name.to_owned(), depth, children, tag });
        }
    }
    Ok(())
}

/// The directory was removed meanwhile.
fn gone(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::NODEV | Errno::NOTDIR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn bounds(directories: u64) -> Bounds {
        Bounds { directories, deadline: Deadline::after(Duration::from_secs(10)) }
    }

    /// a/{b/{c,d},e}, and files and a symbolic link that do not count.
    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for path in ["a/b/c", "a/b/d", "a/e"] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        std::fs::write(dir.path().join("a/e/cgroup.events"), "populated 1\n").unwrap();
        std::os::unix::fs::symlink("a", dir.path().join("link")).unwrap();
        dir
    }

    #[test]
    fn every_directory_once_and_parents_first() {
        let dir = tree();
        let mut seen = Vec::new();
        let extent = walk(dir.path(), 0usize, bounds(100), |entry, parent| {
            seen.push((entry.name().into_owned(), parent));
            Some(seen.len())
        })
        .unwrap();
        assert_eq!(extent.directories, 6);
        assert!(extent.stopped.is_none());
        let parent =
            |name: &str| seen.iter().find(|(n, _)| n == name).map(|&(_, p)| p.checked_sub(1).map(|i| &*seen[i].0));
        assert_eq!(parent("a"), Some(None));
        assert_eq!(parent("e"), Some(Some("a")));
        assert_eq!((parent("c"), parent("d")), (Some(Some("b")), Some(Some("b"))));
        assert_eq!(seen.len(), 5);
    }

    #[test]
    fn none_leaves_out_what_is_below() {
        let dir = tree();
        let extent = walk(dir.path(), (), bounds(100), |entry, ()| (entry.name() != "b").then_some(())).unwrap();
        assert_eq!(extent.directories, 4, "top, a, b, e");
    }

    #[test]
    fn files_of_an_entry() {
        let dir = tree();
        let mut found = None;
        walk(dir.path(), (), bounds(100), |entry, ()| {
            if entry.name() == "e" {
                let error = entry.first("none").unwrap_err();
                assert!(!entry.is_gone(&error), "the directory is there, the file is not");
                found = Some((entry.first("cgroup.events").unwrap(), error.reason()));
                std::fs::rename(dir.path().join("a/e"), dir.path().join("a/old")).unwrap();
                assert!(entry.is_gone(&error));
                std::fs::create_dir(dir.path().join("a/e")).unwrap();
                assert!(entry.is_gone(&error), "another of the same name");
            }
            Some(())
        })
        .unwrap();
        assert_eq!(found, Some(("populated 1\n".into(), Reason::Absent)));
    }

    #[test]
    fn bounds_are_kept_and_reported() {
        let dir = tree();
        let extent = walk(dir.path(), (), bounds(4), |_, ()| Some(())).unwrap();
        assert!(matches!(extent.stopped, Some(Stopped::Bound(left)) if left >= 1), "{extent:?}");
        assert_eq!(extent.directories, 4);
        let late = Bounds { directories: 100, deadline: Deadline::after(Duration::ZERO) };
        let extent = walk(dir.path(), (), late, |_, ()| Some(())).unwrap();
        assert!(
            matches!(&extent.stopped, Some(Stopped::Failed(error)) if error.reason() == Reason::Timeout),
            "{extent:?}"
        );
    }

    #[test]
    fn a_very_deep_tree_stops_at_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        let mut path = dir.path().to_owned();
        for _ in 0..=DEEPEST + 2 {
            path.push("d");
        }
        std::fs::create_dir_all(&path).unwrap();
        let extent = walk(dir.path(), (), bounds(1000), |_, ()| Some(())).unwrap();
        assert!(matches!(extent.stopped, Some(Stopped::Bound(_))), "{extent:?}");
    }

    #[test]
    fn removed_under_the_walk() {
        let dir = tree();
        let extent = walk(dir.path(), (), bounds(100), |entry, ()| {
            if entry.name() == "b" {
                std::fs::remove_dir_all(dir.path().join("a/b")).unwrap();
            }
            Some(())
        })
        .unwrap();
        assert!(extent.stopped.is_none(), "{extent:?}");
        assert_eq!(
            walk(&dir.path().join("none"), (), bounds(1), |_, ()| Some(())).unwrap_err().reason(),
            Reason::Absent
        );
    }
}
