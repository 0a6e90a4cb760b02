//! Bounded reads: a file that never ends, or a symbolic link out of the observed machine, must not hurt the node.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// No file that we read whole is anywhere near this size; the largest is the mountinfo of a node with thousands of
/// mounts.
const LIMIT: u64 = 4 << 20;

pub(super) fn text(path: &Path) -> Result<String> {
    File::open(path).and_then(contents).map_err(|error| Error::os(path.display(), &error))
}

/// The text of a file that may be in the root of another process: what is no file (a FIFO, a terminal, a socket's
/// device) neither blocks the opening nor is read.
pub(super) fn text_in_root(root: &Path, path: &Path) -> Result<String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = open_in_root(root, path, flags).map_err(|error| Error::os(path.display(), &error))?;
    let stat = rustix::fs::fstat(&fd).map_err(|errno| Error::os(path.display(), &errno.into()))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => contents(File::from(fd)).map_err(|error| Error::os(path.display(), &error)),
        FileType::Directory => Err(Error::os(path.display(), &Errno::ISDIR.into())),
        _ => Err(Error::malformed(format!("{}: not a file", path.display()))),
    }
}

pub(super) fn list(path: &Path) -> Result<Vec<OsString>> {
    let os = |error: io::Error| Error::os(path.display(), &error);
    std::fs::read_dir(path).map_err(os)?.map(|entry| entry.map(|entry| entry.file_name()).map_err(os)).collect()
}

/// Opens `path` as a process would whose root directory is `root`: an absolute symbolic link below it stays below it
/// (`RESOLVE_IN_ROOT`, Linux 5.6). On an older kernel links are followed as they are.
pub(super) fn open_in_root(root: &Path, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    if root != Path::new("/") {
        let dir = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        match rustix::fs::openat2(&dir, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
            Err(Errno::NOSYS) => {}
            result => return Ok(result?),
        }
    }
    let relative = path.strip_prefix("/").unwrap_or(path);
    Ok(rustix::fs::open(root.join(relative), flags, Mode::empty())?)
}

/// Opens what lies on the same file system as the directory `dir`: nothing that was mounted over it, and nothing that
/// an open waits for. Links are followed where they stay on it. On a kernel before 5.6 what was mounted over it is
/// opened, and known for it by whoever looks.
pub(super) fn open_beside(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve) {
        Err(Errno::NOSYS) => rustix::fs::openat(dir, path, flags, Mode::empty()),
        other => other,
    }
}

/// The first KiB of a regular file that lies on the same file system as the directory `dir`, beside or below it.
pub(super) fn small_beside(dir: BorrowedFd<'_>, path: &[u8]) -> Option<String> {
    let fd = open_beside(dir, path, OFlags::RDONLY).ok()?;
    let (stat, of_dir) = (rustix::fs::fstat(&fd).ok()?, rustix::fs::fstat(dir).ok()?);
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_dev != of_dir.st_dev {
        return None;
    }
    let mut buffer = [0; 1024];
    let length = rustix::io::read(&fd, &mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

pub(super) fn contents(file: File) -> io::Result<String> {
    // As much as the kernel gives of most of its files at once. An empty vector grows from 32 bytes, by a read each.
    let mut bytes = Vec::with_capacity(4096);
    file.take(LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LIMIT {
        return Err(io::Error::other(format!("larger than {LIMIT} bytes")));
    }
    Ok(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endless_file_is_refused() {
        let error = text(Path::new("/dev/zero")).unwrap_err();
        assert!(error.to_string().contains("larger than"), "{error}");
    }

    #[test]
    fn odd_bytes_become_text() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("comm"), b"caf\xc3\xa9-caf\xc3").unwrap();
        assert_eq!(text(&dir.path().join("comm")).unwrap(), "café-caf\u{fffd}");
    }

    #[test]
    fn links_stay_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        std::fs::write(dir.path().join("data/config.yaml"), "inside").unwrap();
        std::os::unix::fs::symlink("/data/config.yaml", dir.path().join("config.yaml")).unwrap();
        assert_eq!(text_in_root(dir.path(), Path::new("/config.yaml")).unwrap(), "inside");
    }

    #[test]
    fn what_is_no_file_is_neither_waited_for_nor_read() {
        let dir = tempfile::tempdir().unwrap();
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, dir.path().join("fifo"), FileType::Fifo, mode, 0).unwrap();
        std::os::unix::fs::symlink("/fifo", dir.path().join("config.yaml")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        for name in ["/fifo", "/config.yaml", "/socket", "/"] {
            assert!(text_in_root(dir.path(), Path::new(name)).is_err(), "{name}");
        }
        let error = text_in_root(dir.path(), Path::new("/config.yaml")).unwrap_err();
        assert!(error.to_string().contains("not a file"), "{error}");
        let error = text_in_root(Path::new("/"), Path::new("/dev/zero")).unwrap_err();
        assert!(error.to_string().contains("not a file"), "{error}");
    }
}
