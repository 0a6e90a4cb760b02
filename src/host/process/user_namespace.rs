//! Whom the kernel charges for what a process makes: its user, or the owner of its user namespace.
//!
//! The limits per user (`inc_ucount` in kernel/ucount.c) hold in every user namespace from the process's own up to the
//! first. In its own namespace the effective user is charged, and in each one above it the user who made the namespace
//! below, there. A namespace that is not the first sets no limit of its own unless somebody inside writes one
//! (`/proc/sys/user`), so what stops people is the first namespace's limit: for a pod with `hostUsers: false` that of
//! root, who made its namespace, and not that of the uid it is mapped to.
//!
//! The kernel names parent and owner of a namespace by `ioctl(2)` alone (`NS_GET_PARENT`, Linux 4.9;
//! `NS_GET_OWNER_UID`, 4.11), for which no well-kept library has a safe function. Before them, who is charged for a
//! process in a namespace of its own cannot be said.
#![expect(unsafe_code, reason = "rustix has ioctl(2) only as a function whose caller vouches for the number's type")]

use std::ffi::{CStr, c_void};

use rustix::fd::{AsFd, FromRawFd as _, OwnedFd};
use rustix::fs::{Mode, OFlags, fstat, fstatfs};
use rustix::io::{Errno, Result};
use rustix::ioctl::{Getter, Ioctl, IoctlOutput, Opcode, ioctl, opcode};

/// `NSIO` in include/uapi/linux/nsfs.h.
const NSIO: u8 = 0xb7;
const NS_GET_PARENT: Opcode = opcode::none(NSIO, 2);
const NS_GET_OWNER_UID: Opcode = opcode::none(NSIO, 4);

/// Of nsfs (`NSFS_MAGIC`, include/uapi/linux/magic.h).
const NSFS: u64 = 0x6e73_6673;

/// Inode of the first user namespace (`PROC_USER_INIT_INO`, include/linux/proc_ns.h), since Linux 3.8.
pub(super) const FIRST: u64 = 0xEFFF_FFFD;

/// More than `create_user_ns` nests (kernel/user_namespace.c): a walk that takes longer goes in a circle.
const MOST_LEVELS: usize = 34;

/// Who is charged in the first user namespace, or in the highest that we may see, for what a process of `uid` makes
/// whose user namespace is at `path` (`PID/ns/user`).
pub(super) fn charged(proc: impl AsFd, path: &CStr, uid: u32) -> Result<u32> {
    let mut namespace = match rustix::fs::openat(proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        // A kernel without user namespaces. Of a process that is gone nothing is charged.
        Err(Errno::NOENT) => return Ok(uid),
        other => other?,
    };
    // A number means to other files what they like.
    if u64::try_from(fstatfs(&namespace)?.f_type) != Ok(NSFS) {
        return Err(Errno::NOTTY);
    }
    let mut charged = uid;
    for _ in 0..MOST_LEVELS {
        if fstat(&namespace)?.st_ino == FIRST {
            return Ok(charged);
        }
        // It is refused for what is above our own, whose limits are not ours to see.
        let parent = match parent(&namespace) {
            Err(Errno::PERM) => return Ok(charged),
            other => other?,
        };
        charged = owner(&namespace)?;
        namespace = parent;
    }
    Err(Errno::LOOP)
}

fn parent(namespace: &OwnedFd) -> Result<OwnedFd> {
    // SAFETY: The fd is of nsfs, where the number means what `Parent` says.
    unsafe { ioctl(namespace, Parent) }
}

fn owner(namespace: &OwnedFd) -> Result<u32> {
    // SAFETY: The fd is of nsfs, where the number writes one `uid_t`.
    unsafe { ioctl(namespace, Getter::<NS_GET_OWNER_UID, u32>::new()) }
}

/// [`NS_GET_PARENT`]: takes no argument, returns a new fd.
struct Parent;

// SAFETY: No memory of ours is read or written, and what the call returns is an fd that nobody else owns.
unsafe impl Ioctl for Parent {
    type Output = OwnedFd;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        NS_GET_PARENT
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(fd: IoctlOutput, _: *mut c_void) -> Result<OwnedFd> {
        // SAFETY: As above.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_the_first_namespace_a_process_is_charged_to_its_user() {
        let proc = std::fs::File::open("/proc").unwrap();
        if std::fs::metadata("/proc/self/ns/user").is_ok() {
            assert_eq!(charged(&proc, c"self/ns/user", 1234), Ok(1234));
        }
    }

    #[test]
    fn what_is_no_namespace_is_asked_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("user"), "").unwrap();
        let dir = std::fs::File::open(dir.path()).unwrap();
        assert_eq!(charged(&dir, c"user", 0), Err(Errno::NOTTY));
        assert_eq!(charged(&dir, c"nothing", 7), Ok(7), "a kernel without user namespaces");
    }
}
