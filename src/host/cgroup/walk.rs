//! A bounded walk over the directories of a hierarchy, in few system calls.
//!
//! A directory of a cgroup file system has `st_nlink` = 2 + the number of its child directories
//! (`kernfs_refresh_inode`, seen on 6.18 for v1 and cgroup2; ext4, xfs and tmpfs do the same). So a leaf costs one
//! `fstatat` and is never opened, and most cgroups are leaves. File systems that do not count so (btrfs, overlay) say
//! 1: there every directory is read.
//!
//! A cgroup that is removed under the walk is not an error: cgroups come and go.
//!
//! **Shares.** Whoever was given a cgroup may make as many below it, and as deep, as he likes. So what lies below some
//! directories is put off until all else was seen ([`Below::Apart`]), and each share of those gets an equal part of the
//! directories that may still be looked at, the smallest first. One that is too large or too deep, or closed to us,
//! costs itself and nobody else ([`Extent::beyond`]).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::path::Path;
use std::rc::Rc;

use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;

use crate::error::{Error, Reason, Result};
use crate::host::Deadline;
use crate::host::text::keyed;

/// No sane tree is deeper; one file descriptor per level may be open. What lies deeper is left out.
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
        self.page(file).map_err(|errno| self.error(file, errno))
    }

    fn page(&self, file: &str) -> rustix::io::Result<String> {
        page(self.parent, &[self.name.to_bytes(), b"/", file.as_bytes()].concat())
    }

    fn error(&self, file: &str, errno: Errno) -> Error {
        Error::os(format_args!("{}/{file}", self.name.to_string_lossy()), &errno.into())
    }

    /// Its `cgroup.procs`, as [`Entry::first`]; `None` for a threaded cgroup, which names none there (`EOPNOTSUPP`):
    /// its processes are those of the domain further up.
    ///
    /// # Errors
    /// As [`Entry::first`].
    pub fn processes(&self) -> Result<Option<String>> {
        match self.page("cgroup.procs") {
            Err(Errno::OPNOTSUPP) => Ok(None),
            other => other.map(Some).map_err(|errno| self.error("cgroup.procs", errno)),
        }
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

/// The first page of a file below a directory.
fn page(dir: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
    let fd = rustix::fs::openat(dir, path, flags, Mode::empty())?;
    let mut buffer = [0; FIRST];
    let length = rustix::io::read(&fd, &mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// How many directories are below this one, by the kernel's word; at least `children` where it says nothing (v1).
fn descendants(dir: BorrowedFd<'_>, path: &[u8], children: u64) -> u64 {
    let stat = page(dir, &[path, b"/cgroup.stat"].concat()).unwrap_or_default();
    keyed(&stat, "nr_descendants").unwrap_or(children.max(1))
}

/// What is to be done about the directories in one that was visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Below<T> {
    /// Nothing.
    Leave,
    /// They are walked over, visited with this.
    Enter(T),
    /// The same, but after all that is entered, and within this share.
    Apart(T, usize),
}

impl<T> From<Option<T>> for Below<T> {
    fn from(tag: Option<T>) -> Self {
        tag.map_or(Below::Leave, Below::Enter)
    }
}

/// What a walk saw.
#[derive(Debug)]
pub struct Extent {
    /// Directories, the top included.
    pub directories: u64,
    /// Directories that were left out because they lie too deep, are too many for their share, or closed to us. By
    /// share; at least so many, and on cgroup2, unless they come and go meanwhile, exactly.
    pub beyond: BTreeMap<Option<usize>, u64>,
    /// Why it is not the whole tree.
    pub stopped: Option<Stopped>,
}

impl Extent {
    /// Of a walk whose top could perhaps not be opened: then it saw nothing.
    pub fn of(walk: Result<Extent>) -> Extent {
        walk.unwrap_or_else(|error| Extent {
            directories: 0,
            beyond: BTreeMap::new(),
            stopped: Some(Stopped::Failed(error)),
        })
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
    /// From the top.
    path: Rc<[u8]>,
    depth: u32,
    children: u64,
    tag: T,
}

/// A directory that is read.
struct Start<T> {
    fd: Rc<OwnedFd>,
    path: Rc<[u8]>,
    depth: u32,
    tag: T,
}

/// One that is put off: by its path, since a file descriptor for each would be too many.
struct Apart<T> {
    share: usize,
    path: Rc<[u8]>,
    inode: u64,
    depth: u32,
    children: u64,
    tag: T,
}

/// Walks the tree at `top`. `visit` is called once for each directory below it, parents before children, with what it
/// returned for the parent (`tag` for the top).
///
/// # Errors
/// The operating system's if the top cannot be opened.
pub fn walk<T: Copy, B: Into<Below<T>>>(
    top: &Path,
    tag: T,
    bounds: Bounds,
    visit: impl FnMut(&Entry<'_>, T) -> B,
) -> Result<Extent> {
    let fd = rustix::fs::open(top, OPEN, Mode::empty()).map_err(|errno| Error::os(top.display(), &errno.into()))?;
    let fd = Rc::new(fd);
    let extent = Extent { directories: 1, beyond: BTreeMap::new(), stopped: None };
    let mut walk = Walk { bounds, extent, apart: Vec::new(), visit };
    let mut buffer = Vec::with_capacity(32 << 10);
    let result = walk.tree(
        &mut buffer,
        Start { fd: Rc::clone(&fd), path: Rc::from([]), depth: 1, tag },
        None,
        bounds.directories,
    );
    if let Err(stopped) = result.and_then(|()| walk.shares(&mut buffer, fd.as_fd())) {
        let left: u64 = walk.apart.iter().map(|apart| apart.children).sum();
        walk.extent.stopped = Some(match stopped {
            Stopped::Bound(at_least) => Stopped::Bound(at_least + left),
            Stopped::Failed(error) => Stopped::Failed(error.context(top.display())),
        });
    }
    Ok(walk.extent)
}

const OPEN: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

struct Walk<T, V> {
    bounds: Bounds,
    extent: Extent,
    /// Not looked at yet.
    apart: Vec<Apart<T>>,
    visit: V,
}

impl<T: Copy, B: Into<Below<T>>, V: FnMut(&Entry<'_>, T) -> B> Walk<T, V> {
    /// What was put off, the smallest share first, so that what it does not need is the others'.
    fn shares(&mut self, buffer: &mut Vec<u8>, top: BorrowedFd<'_>) -> std::result::Result<(), Stopped> {
        let mut shares: BTreeMap<usize, (u64, Vec<Apart<T>>)> = BTreeMap::new();
        for apart in self.apart.drain(..) {
            let (size, of_share) = shares.entry(apart.share).or_default();
            *size += descendants(top, &apart.path, apart.children);
            of_share.push(apart);
        }
        let mut shares: Vec<_> = shares.into_iter().collect();
        shares.sort_by_key(|(_, (size, _))| *size);
        let many = shares.len() as u64;
        for (done, (share, (size, of_share))) in (0..).zip(shares) {
            let before = self.extent.directories;
            let most = before + self.bounds.directories.saturating_sub(before) / (many - done);
            for apart in of_share {
                let Apart { path, inode, depth, children, tag, .. } = apart;
                let opened = rustix::fs::openat(top, &*path, OPEN | OFlags::NOFOLLOW, Mode::empty());
                let same = |fd: &OwnedFd| rustix::fs::fstat(fd).is_ok_and(|stat| stat.st_ino == inode);
                let result = match opened {
                    // Another one of its name is not this one.
                    Ok(fd) if !same(&fd) => Ok(()),
                    Ok(fd) => {
                        let start = Start { fd: Rc::new(fd), path, depth: depth + 1, tag };
                        self.tree(buffer, start, Some(share), most)
                    }
                    Err(errno) if gone(errno) => Ok(()),
                    Err(_) => {
                        self.leave_out(Some(share), descendants(top, &path, children));
                        Ok(())
                    }
                };
                match result {
                    Ok(()) => {}
                    Err(Stopped::Bound(at_least)) => {
                        let counted = size.saturating_sub(self.extent.directories - before);
                        self.leave_out(Some(share), at_least.max(counted));
                        break;
                    }
                    Err(failed) => return Err(failed),
                }
            }
        }
        Ok(())
    }

    fn leave_out(&mut self, share: Option<usize>, directories: u64) {
        *self.extent.beyond.entry(share).or_default() += directories;
    }

    /// Everything below one directory, until `most` directories were looked at altogether.
    fn tree(
        &mut self,
        buffer: &mut Vec<u8>,
        start: Start<T>,
        share: Option<usize>,
        most: u64,
    ) -> std::result::Result<(), Stopped> {
        let mut pending: Vec<Pending<T>> = Vec::new();
        let mut next = Some(start);
        while let Some(here) = next.take() {
            self.read(buffer, &here, share, most, &mut pending).map_err(|stopped| match stopped {
                Stopped::Bound(at_least) => {
                    Stopped::Bound(at_least + pending.iter().map(|pending| pending.children).sum::<u64>())
                }
                failed => failed,
            })?;
            drop(here);
            while let Some(Pending { parent, name, path, depth, children, tag }) = pending.pop() {
                match rustix::fs::openat(parent.as_fd(), &name, OPEN | OFlags::NOFOLLOW, Mode::empty()) {
                    Ok(fd) => {
                        next = Some(Start { fd: Rc::new(fd), path, depth: depth + 1, tag });
                        break;
                    }
                    Err(errno) if gone(errno) => {}
                    // Whoever was given a cgroup may close it.
                    Err(Errno::ACCESS | Errno::PERM) if share.is_some() => {
                        self.leave_out(share, descendants(parent.as_fd(), name.to_bytes(), children));
                    }
                    Err(errno) => return Err(Stopped::Failed(Error::os(name.to_string_lossy(), &errno.into()))),
                }
            }
        }
        Ok(())
    }

    fn read(
        &mut self,
        buffer: &mut Vec<u8>,
        &Start { ref fd, ref path, depth, tag }: &Start<T>,
        share: Option<usize>,
        most: u64,
        pending: &mut Vec<Pending<T>>,
    ) -> std::result::Result<(), Stopped> {
        let failed = |what: &str, errno: Errno| Stopped::Failed(Error::os(what, &errno.into()));
        let spare: &mut [MaybeUninit<u8>] = buffer.spare_capacity_mut();
        let mut entries = RawDir::new(fd.as_fd(), spare);
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(errno) if gone(errno) => break,
                Err(errno) => return Err(failed("reading a directory", errno)),
            };
            let name = entry.file_name();
            if !matches!(entry.file_type(), FileType::Directory | FileType::Unknown)
                || matches!(name.to_bytes(), b"." | b"..")
            {
                continue;
            }
            if self.bounds.deadline.expired() {
                let what = format!("the deadline passed after {} directories", self.extent.directories);
                return Err(Stopped::Failed(Error::new(Reason::Timeout, what)));
            }
            let stat = match rustix::fs::statat(fd.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(errno) if gone(errno) => continue,
                Err(Errno::ACCESS | Errno::PERM) if share.is_some() => {
                    *self.extent.beyond.entry(share).or_default() += 1;
                    continue;
                }
                Err(errno) => return Err(failed(&name.to_string_lossy(), errno)),
            };
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                continue;
            }
            if self.extent.directories >= most {
                return Err(Stopped::Bound(1));
            }
            self.extent.directories += 1;
            #[allow(clippy::useless_conversion, reason = "32 bits wide on some architectures")]
            let links = u64::from(stat.st_nlink);
            let entry = Entry { parent: fd.as_fd(), name, links, inode: stat.st_ino };
            let (tag, apart) = match (self.visit)(&entry, tag).into() {
                Below::Leave => continue,
                Below::Enter(tag) => (tag, None),
                // A share has no shares in it.
                Below::Apart(tag, to) => (tag, Some(to).filter(|_| share.is_none())),
            };
            if !entry.may_have_children() {
                continue;
            }
            let children = links.saturating_sub(2);
            if depth >= DEEPEST {
                let left = descendants(fd.as_fd(), name.to_bytes(), children);
                *self.extent.beyond.entry(share).or_default() += left;
                continue;
            }
            let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
            // Only what is put off is found again by its path.
            let path = if share.is_some() { Rc::clone(path) } else { [path, slash, name.to_bytes()].concat().into() };
            if let Some(share) = apart {
                self.apart.push(Apart { share, path, inode: entry.inode, depth, children, tag });
            } else {
                let (parent, name) = (Rc::clone(fd), name.to_owned());
                pending.push(Pending { parent, name, path, depth, children, tag });
            }
        }
        Ok(())
    }
}

/// The directory was removed meanwhile.
fn gone(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::NODEV | Errno::NOTDIR)
}

#[cfg(test)]
mod tests;
