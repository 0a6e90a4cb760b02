//! File systems: how much is left on the one that holds a path, and which one that is.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fd::{AsRawFd as _, OwnedFd};
use rustix::fs::{AtFlags, OFlags, StatxFlags};

use super::CallBudget;
use super::bounded_call::Guard;
use super::mount_table::Rows;
use super::{Deadline, Roots, ext4, read};
use crate::error::{Error, Result};

/// One mounted file system as `statfs(2)` and mountinfo describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filesystem {
    /// `f_blocks × f_frsize`: what a percentage threshold is a percentage of.
    pub capacity_bytes: u64,
    /// `f_bavail × f_frsize`: what an unprivileged writer can still use. Root's reserve is not in it.
    pub available_bytes: u64,
    /// `f_files`; 0 on a file system that makes inodes as it needs them (btrfs).
    pub inodes: u64,
    /// `f_ffree`
    pub inodes_free: u64,
    /// Where it is mounted and from what; `None` if no mount table could be read.
    pub mount: Option<Mount>,
}

/// One row of a mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// `/dev/vda`, `tmpfs`, …
    pub device: String,
    /// On the observed machine, not in our container.
    pub mountpoint: PathBuf,
    /// `ext4`, `overlay`, …
    pub fstype: String,
    /// It takes no writes: its *superblock* is read-only, as btrfs and an older ext4 make it after an error; a newer
    /// ext4 says that it has stopped itself (`emergency_ro`, `shutdown`; Linux 6.15), or has by all that it shows
    /// (`host::ext4`; before that); or not even its directory opens, as of an XFS that has shut down. A read-only
    /// bind mount of a healthy file system (which is how we see the host from a pod) does not count.
    pub readonly: bool,
    /// Of its superblock, so one number for all mounts and subvolumes of a file system; `None` in a recording.
    pub number: Option<DeviceNumber>,
}

impl Mount {
    /// The row with this mount id in a mountinfo text, `proc_pid_mountinfo(5)`.
    pub fn find(mountinfo: &str, id: u64) -> Option<Self> {
        let id = id.to_string();
        mountinfo.lines().find(|line| line.split(' ').next() == Some(&id)).and_then(Self::parse)
    }

    /// One mountinfo line: `31 22 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2
    /// rw,nsdelegate`. The number of optional fields before ` - ` varies.
    pub fn parse(line: &str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mountpoint = before.split(' ').nth(4)?;
        let mut after = after.split(' ');
        let (fstype, device, options) = (after.next()?, after.next()?, after.next().unwrap_or(""));
        Some(Mount {
            device: unescape(device),
            mountpoint: unescape(mountpoint).into(),
            fstype: fstype.to_owned(),
            readonly: options.split(',').any(|option| ["ro", "emergency_ro", "shutdown"].contains(&option)),
            number: DeviceNumber::of_row(line),
        })
    }
}

/// Undoes the kernel's `\040` style escapes (space, tab, newline, backslash).
pub(super) fn unescape(field: &str) -> String {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = (byte == b'\\').then(|| tail.get(..3)).flatten();
        let code = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(code) => {
                bytes.push(code);
                rest = &tail[3..];
            }
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The number of a mounted file system: `st_dev` of what is on it, and the third field of its rows in every mount
/// table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceNumber {
    /// 0 for file systems without a disk.
    pub major: u32,
    /// Which of them.
    pub minor: u32,
}

impl DeviceNumber {
    /// Of a mountinfo line.
    pub fn of_row(line: &str) -> Option<Self> {
        let (major, minor) = line.split(' ').nth(2)?.split_once(':')?;
        Some(DeviceNumber { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

/// Where a row of a mount table has which part of which file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountRow {
    /// Which file system.
    pub number: DeviceNumber,
    /// The directory of it that is mounted.
    pub root: PathBuf,
    /// Where.
    pub mountpoint: PathBuf,
}

impl MountRow {
    /// Of a mountinfo line.
    pub fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(' ').skip(3);
        let (root, mountpoint) = (fields.next()?, fields.next()?);
        let number = DeviceNumber::of_row(line)?;
        Some(MountRow { number, root: unescape(root).into(), mountpoint: unescape(mountpoint).into() })
    }
}

/// How full one file system is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// `f_blocks × f_frsize`; 0 on a tmpfs without a limit (`size=0`), which does not count what is in it either.
    pub capacity_bytes: u64,
    /// `(f_blocks - f_bfree) × f_frsize`
    pub used_bytes: u64,
}

/// Who answers for file systems: the kernel, or a recording.
pub(super) enum Filesystems {
    Live(Guard),
    Recorded(Vec<(PathBuf, Filesystem)>),
}

impl Filesystems {
    pub(super) fn live() -> Self {
        Filesystems::Live(Guard::default())
    }

    pub(super) fn recorded(table: Vec<(PathBuf, Filesystem)>) -> Self {
        Filesystems::Recorded(table)
    }

    pub(super) fn of(&self, roots: &Roots, path: &Path, seen: &MountView, deadline: Deadline) -> Result<Filesystem> {
        match self {
            Filesystems::Live(guard) => {
                let key = path.display().to_string();
                let (roots, path, seen) = (roots.clone(), path.to_owned(), seen.clone());
                guard.run(&key, deadline, move || live(&roots, &path, &seen))
            }
            Filesystems::Recorded(table) => recorded(table, path),
        }
    }

    /// The same of many paths, on one thread.
    pub(super) fn of_each(
        &self,
        roots: &Roots,
        paths: &[&Path],
        seen: &MountView,
        patience: &mut CallBudget,
    ) -> Vec<Result<Filesystem>> {
        match self {
            Filesystems::Live(guard) => {
                let roots = Arc::new(roots.clone());
                let item =
                    |path: &&Path| (path.display().to_string(), (Arc::clone(&roots), path.to_path_buf(), seen.clone()));
                guard.run_each(paths.iter().map(item).collect(), patience, |(roots, path, seen)| {
                    live(&roots, &path, &seen)
                })
            }
            Filesystems::Recorded(table) => paths.iter().map(|path| recorded(table, path)).collect(),
        }
    }

    /// How full the file systems at these paths are, as far as they are the ones of these numbers.
    pub(super) fn usages(
        &self,
        root: &Path,
        mounts: &[(&Path, DeviceNumber)],
        patience: &mut CallBudget,
    ) -> Vec<Result<Option<Usage>>> {
        match self {
            Filesystems::Live(guard) => {
                let item = |&(path, number): &(&Path, _)| {
                    (path.display().to_string(), (root.to_owned(), path.to_owned(), number))
                };
                guard.run_each(mounts.iter().map(item).collect(), patience, |(root, path, number)| {
                    usage(&root, &path, number)
                })
            }
            Filesystems::Recorded(table) => {
                let here = |path: &Path| table.iter().find(|(mounted, _)| path == mounted);
                let usage = |it: &Filesystem| Usage {
                    capacity_bytes: it.capacity_bytes,
                    used_bytes: it.capacity_bytes.saturating_sub(it.available_bytes),
                };
                mounts.iter().map(|(path, _)| Ok(here(path).map(|(_, filesystem)| usage(filesystem)))).collect()
            }
        }
    }

    /// Where `path` really is below `root`, its symbolic links followed.
    pub(super) fn resolve(&self, root: &Path, path: &Path, deadline: Deadline) -> Result<PathBuf> {
        match self {
            Filesystems::Live(guard) => {
                // Another caller may ask for its size at the same time.
                let key = format!("links of {}", path.display());
                let (root, path) = (root.to_owned(), path.to_owned());
                guard.run(&key, deadline, move || resolve(&root, &path))
            }
            Filesystems::Recorded(_) => resolve(root, path),
        }
    }
}

fn usage(root: &Path, path: &Path, number: DeviceNumber) -> Result<Option<Usage>> {
    let os = |error: std::io::Error| Error::os(path.display(), &error);
    let fd = read::open_in_root(root, path, OFlags::PATH | OFlags::CLOEXEC).map_err(os)?;
    if number_of(&fd).map_err(os)? != number {
        return Ok(None);
    }
    let stat = rustix::fs::fstatvfs(&fd).map_err(|errno| os(errno.into()))?;
    Ok(Some(Usage {
        capacity_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        used_bytes: stat.f_blocks.saturating_sub(stat.f_bfree).saturating_mul(stat.f_frsize),
    }))
}

fn number_of(fd: &OwnedFd) -> std::io::Result<DeviceNumber> {
    let device = rustix::fs::fstat(fd)?.st_dev;
    Ok(DeviceNumber { major: rustix::fs::major(device), minor: rustix::fs::minor(device) })
}

fn resolve(root: &Path, path: &Path) -> Result<PathBuf> {
    let os = |error: std::io::Error| Error::os(path.display(), &error);
    let target = |fd: OwnedFd| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(os);
    let of = |root: &Path, path: &Path| {
        let fd = read::open_in_root(root, path, OFlags::PATH | OFlags::CLOEXEC).map_err(os)?;
        target(fd)
    };
    let (here, top) = (of(root, path)?, of(Path::new("/"), root)?);
    Ok(here.strip_prefix(&top).map_or(here.clone(), |below| Path::new("/").join(below)))
}

/// A path that is not listed is on the file system of its nearest listed parent.
fn recorded(table: &[(PathBuf, Filesystem)], path: &Path) -> Result<Filesystem> {
    table
        .iter()
        .filter(|(mounted, _)| path.starts_with(mounted))
        .max_by_key(|(mounted, _)| mounted.components().count())
        .map(|(_, filesystem)| filesystem.clone())
        .ok_or_else(|| Error::absent(format!("{}: not in the recording", path.display())))
}

/// Our own mount table, read as far as it is needed, for all who look at file systems in one scrape: on a node full of
/// pods it has hundreds of rows, and what is asked for mostly stands before those of the pods. Each scrape reads anew:
/// a file system that an error has made read-only is no change that `poll(2)` would tell of. A clone shares it. No lock
/// is held over a call that may hang.
#[derive(Clone, Default)]
pub struct MountView(Arc<Seen>);

#[derive(Default)]
struct Seen {
    table: Mutex<Option<Table>>,
    /// By mount id: several paths mostly lie on few mounts.
    mounts: Mutex<Vec<(u64, Option<Mount>)>>,
}

/// A mount table, and what was read of it until now.
struct Table {
    rows: Rows<File>,
    read: String,
}

impl fmt::Debug for MountView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MountView").finish_non_exhaustive()
    }
}

impl MountView {
    /// The row of a mount; the table is read again if it was mounted since.
    fn row(&self, id: u64) -> Option<Mount> {
        let table = || self.0.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mount) = table().as_ref().and_then(|table| Mount::find(&table.read, id)) {
            return Some(mount);
        }
        let before = table().take();
        for started in before.map(Some).into_iter().chain(std::iter::once_with(Table::open)) {
            let mut started = started?;
            let mount = started.read_until(id);
            *table() = Some(started);
            if mount.is_some() {
                return mount;
            }
        }
        None
    }
}

impl Table {
    fn open() -> Option<Self> {
        Some(Table { rows: Rows::of(File::open("/proc/self/mountinfo").ok()?), read: String::new() })
    }

    fn read_until(&mut self, id: u64) -> Option<Mount> {
        while let Some(row) = self.rows.next().ok()? {
            self.read.push_str(&row);
            self.read.push('\n');
            let mount = Mount::find(&row, id);
            if mount.is_some() {
                return mount;
            }
        }
        None
    }
}

fn live(roots: &Roots, path: &Path, seen: &MountView) -> Result<Filesystem> {
    let os = |error: std::io::Error| Error::os(path.display(), &error);
    let fd = read::open_in_root(&roots.root, path, OFlags::PATH | OFlags::CLOEXEC).map_err(os)?;
    let stat = rustix::fs::fstatvfs(&fd).map_err(|errno| os(errno.into()))?;
    let mount = match mount_id(&fd) {
        None => None,
        Some(id) => {
            let known = || seen.0.mounts.lock().unwrap_or_else(PoisonError::into_inner);
            let before = known().iter().find(|(known, _)| *known == id).map(|(_, mount)| mount.clone());
            match before {
                Some(mount) => mount,
                None => {
                    let mount = mount_of(roots, &fd, id, seen).map_err(os)?;
                    known().push((id, mount.clone()));
                    mount
                }
            }
        }
    };
    Ok(Filesystem {
        capacity_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        available_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        inodes: stat.f_files,
        inodes_free: stat.f_ffree,
        mount,
    })
}

/// True if the file system does not open this directory of its own: `statfs` answers from memory after all else has
/// failed. Opened and not read, it is not marked as read either.
fn is_dead(directory: &OwnedFd) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    // EIO, and EUCLEAN for what is corrupt; others (that we may not, that it is no directory) are no word on the disk.
    let opened = rustix::fs::openat(directory, c".", flags, rustix::fs::Mode::empty());
    matches!(opened, Err(rustix::io::Errno::IO | rustix::io::Errno::UCLEAN))
}

/// The mount that an open file lies on: exact where a device number is not (btrfs subvolumes, stacked mounts).
fn mount_id(fd: &OwnedFd) -> Option<u64> {
    let (at, wanted) = (AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::MNT_ID);
    if let Ok(stat) = rustix::fs::statx(fd, c"", at, wanted)
        && stat.stx_mask & wanted.bits() != 0
    {
        return Some(stat.stx_mnt_id);
    }
    // Before Linux 5.8.
    let fdinfo = read::text(Path::new(&format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))).ok()?;
    fdinfo.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()
}

/// The mount with this id, which holds `fd`. The id and the table are both of *our* mount namespace, whatever
/// `--path.procfs` says.
fn mount_of(roots: &Roots, fd: &OwnedFd, id: u64, seen: &MountView) -> std::io::Result<Option<Mount>> {
    let Some(mut mount) = seen.row(id) else { return Ok(None) };
    if let Ok(below) = mount.mountpoint.strip_prefix(&roots.root) {
        mount.mountpoint = Path::new("/").join(below);
    }
    mount.readonly |= is_dead(fd);
    if mount.fstype == "ext4" && !mount.readonly {
        let DeviceNumber { major, minor } = number_of(fd)?;
        mount.readonly = ext4::has_stopped_itself(roots, (major, minor), &mount.device);
    }
    Ok(Some(mount))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Reason;
    use std::time::Duration;

    #[test]
    fn mountinfo_rows() {
        let line = r"36 35 98:0 /mnt1 /mnt\040two rw,noatime master:1 shared:2 - ext3 /dev/ro\134ot ro,errors=continue";
        let mount = Mount::parse(line).unwrap();
        assert_eq!(mount.mountpoint, Path::new("/mnt two"));
        assert_eq!((mount.device.as_str(), mount.fstype.as_str(), mount.readonly), (r"/dev/ro\ot", "ext3", true));
        let bind = Mount::parse("27 1 254:0 / /host ro,relatime - ext4 /dev/vda rw").unwrap();
        assert!(!bind.readonly, "a read-only bind mount of a writable file system");
        for options in ["rw,errors=remount-ro,emergency_ro", "rw,shutdown", "ro,relatime"] {
            assert!(Mount::parse(&format!("27 1 7:0 / /a rw,relatime - ext4 /dev/loop0 {options}")).unwrap().readonly);
        }
        assert!(!Mount::parse("27 1 7:0 / /a rw - ext4 /dev/loop0 rw,errors=remount-ro").unwrap().readonly);
        assert_eq!(Mount::parse("no separator"), None);
    }

    #[test]
    fn device_numbers_of_rows() {
        let row = "60 42 0:58 / /a/pods/b rw,relatime shared:2 - tmpfs tmpfs rw,size=65536k,noswap";
        assert_eq!(DeviceNumber::of_row(row), Some(DeviceNumber { major: 0, minor: 58 }));
        for odd in ["", "60 42", "60 42 58 / /a", "60 42 0:x / /a", "60 42 -1:3 / /a"] {
            assert_eq!(DeviceNumber::of_row(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn usage_is_of_the_file_system_that_is_meant() {
        let host = crate::host::Host::new(crate::host::Roots::default());
        let soon = || Deadline::after(Duration::from_secs(5));
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let row = mountinfo.lines().rfind(|line| line.split(' ').nth(4) == Some("/proc")).unwrap();
        let number = DeviceNumber::of_row(row).unwrap();
        let mounts = ["/proc", "/", "/nonexistent/x"].map(|path| (Path::new(path), number));
        let answers = host.usages(&host.tree(), &mounts, &mut CallBudget::new(soon()));
        assert!(matches!(answers[0], Ok(Some(_))), "{answers:?}");
        assert_eq!(answers[1], Ok(None), "another file system");
        assert!(answers[2].as_ref().is_err_and(Error::is_gone));
    }

    #[test]
    fn links_on_the_way_are_resolved_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("root/data/kubelet")).unwrap();
        std::os::unix::fs::symlink("/data", dir.path().join("root/var")).unwrap();
        std::os::unix::fs::symlink("root", dir.path().join("rootfs")).unwrap();
        for root in ["root", "rootfs"] {
            let roots = crate::host::Roots { root: dir.path().join(root), ..crate::host::Roots::default() };
            let host = crate::host::Host::new(roots);
            let soon = Deadline::after(Duration::from_secs(5));
            assert_eq!(host.resolve("/var/kubelet", soon).unwrap(), Path::new("/data/kubelet"), "{root}");
        }
    }

    #[test]
    fn after_one_that_hangs_the_others_get_little_time() {
        let mut patience = CallBudget::new(Deadline::after(Duration::from_secs(60)));
        patience.note::<()>(&Err(Error::absent("not there")));
        assert!(patience.next().remaining() > Duration::from_secs(1));
        patience.note::<()>(&Err(Error::new(Reason::Timeout, "hangs")));
        assert!(patience.next().remaining() < Duration::from_millis(300));
    }

    #[test]
    fn figures_equal_statfs_of_another_program() {
        let host = crate::host::Host::new(crate::host::Roots::default());
        let ours = host.filesystem("/", Deadline::after(Duration::from_secs(5))).unwrap();
        let theirs = std::process::Command::new("stat").args(["-f", "-c", "%S %b %c", "/"]).output().unwrap();
        let text = String::from_utf8(theirs.stdout).unwrap();
        let n: Vec<u64> = text.split_whitespace().map(|n| n.parse().unwrap()).collect();
        assert_eq!((ours.capacity_bytes, ours.inodes), (n[0] * n[1], n[2]));
        assert_eq!(ours.mount.unwrap().mountpoint, Path::new("/"));
    }

    #[test]
    fn recorded_paths_use_their_nearest_parent() {
        let of =
            |capacity_bytes| Filesystem { capacity_bytes, available_bytes: 0, inodes: 0, inodes_free: 0, mount: None };
        let table = Filesystems::recorded(vec![("/".into(), of(1)), ("/var/lib/kubelet".into(), of(2))]);
        let capacity = |path: &str| {
            table
                .of(&Roots::default(), Path::new(path), &MountView::default(), Deadline::after(Duration::ZERO))
                .unwrap()
                .capacity_bytes
        };
        assert_eq!((capacity("/var/lib/kubelet/pods"), capacity("/var/lib")), (2, 1));
    }
}
