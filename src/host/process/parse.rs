//! Parsers of `/proc/PID/*` on bytes. They stop at what they look for: a sweep runs them thousands of times.

use std::borrow::Cow;

use memchr::{memchr, memmem};

/// The soft limit of open files of one process (`RLIMIT_NOFILE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// So many; the highest fd number is one below.
    Files(u64),
    /// `unlimited`: no Linux lets that be set for open files, but the format allows for it.
    Unlimited,
}

/// The soft "Max open files" of a `/proc/PID/limits`. `None` if there is no such row: the file of a zombie is empty.
///
/// Only this row is looked for, so that a row that a future kernel adds or renames does no harm.
pub fn soft_open_files(limits: &[u8]) -> Option<Limit> {
    const ROW: &[u8] = b"Max open files";
    let at = memmem::find(limits, ROW)?;
    if at != 0 && limits[at - 1] != b'\n' {
        return None;
    }
    let rest = limits[at + ROW.len()..].trim_ascii_start();
    let word = &rest[..memchr(b' ', rest)?];
    if word == b"unlimited" { Some(Limit::Unlimited) } else { decimal(word).map(Limit::Files) }
}

/// The effective uid of a `/proc/PID/status`: second of the four on the `Uid:` line (real, effective, saved, file
/// system).
pub fn effective_uid(status: &[u8]) -> Option<u32> {
    const ROW: &[u8] = b"\nUid:\t";
    let rest = &status[memmem::find(status, ROW)? + ROW.len()..];
    let second = rest.split(|&byte| byte == b'\t' || byte == b'\n').nth(1)?;
    decimal(second)?.try_into().ok()
}

/// The effective capabilities of a `/proc/PID/status`, one bit each.
pub fn effective_capabilities(status: &[u8]) -> Option<u64> {
    const ROW: &[u8] = b"\nCapEff:\t";
    let rest = &status[memmem::find(status, ROW)? + ROW.len()..];
    u64::from_str_radix(std::str::from_utf8(&rest[..memchr(b'\n', rest)?]).ok()?, 16).ok()
}

/// The pid in a `/proc/self/status` that names only one (`NSpid`), so that procfs and reader are in one pid namespace.
pub fn only_pid(status: &[u8]) -> Option<u64> {
    const ROW: &[u8] = b"\nNSpid:\t";
    let rest = &status[memmem::find(status, ROW)? + ROW.len()..];
    decimal(&rest[..memchr(b'\n', rest)?])
}

/// In how many pid namespaces the process of a `/proc/PID/status` has a number (`NSpid`); `None` before Linux 4.1.
pub fn pid_namespaces(status: &[u8]) -> Option<usize> {
    const ROW: &[u8] = b"\nNSpid:\t";
    let rest = &status[memmem::find(status, ROW)? + ROW.len()..];
    Some(rest[..memchr(b'\n', rest)?].split(|&byte| byte == b'\t').count())
}

/// A number that is all of `word`.
pub(in crate::host) fn decimal(word: &[u8]) -> Option<u64> {
    if word.is_empty() {
        return None;
    }
    word.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 { None } else { number.checked_mul(10)?.checked_add(digit.into()) }
    })
}

/// What a process calls itself: any 15 bytes, and the kernel cuts longer names in the middle of a character.
///
/// Only kernel workers have more than 15 in `/proc/PID/comm` (their work is appended); they are cut as other names are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Comm {
    bytes: [u8; 15],
    len: u8,
}

impl Comm {
    /// The kernel's name for a program called `name`: its first 15 bytes.
    pub fn new(name: &[u8]) -> Self {
        let len = name.len().min(15);
        let mut bytes = [0; 15];
        bytes[..len].copy_from_slice(&name[..len]);
        Comm { bytes, len: len as u8 }
    }

    /// Of a `/proc/PID/comm`. The kernel appends one newline and escapes none: others belong to the name.
    pub fn from_file(file: &[u8]) -> Self {
        Self::new(file.strip_suffix(b"\n").unwrap_or(file))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len.into()]
    }

    /// As text, with U+FFFD for what is not UTF-8. Two different names may have the same text.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.as_bytes())
    }

    /// A short hash (FNV-1a): to notice that a process calls itself something else now.
    pub fn hash32(&self) -> u32 {
        self.as_bytes().iter().fold(0x811c_9dc5, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KUBELET_V1: &[u8] = include_bytes!("../../../tests/fixtures/open_files/v1-kubelet/limits.txt");
    const KUBELET_V2: &[u8] = include_bytes!("../../../tests/fixtures/open_files/v2-kubelet/limits.txt");
    const PAUSE: &[u8] = include_bytes!("../../../tests/fixtures/open_files/v2-pause/limits.txt");
    const CONTAINER: &[u8] = include_bytes!("../../../tests/fixtures/open_files/v1-container/limits.txt");

    #[test]
    fn recorded_limits() {
        assert_eq!(soft_open_files(KUBELET_V1), Some(Limit::Files(20_000)));
        assert_eq!(soft_open_files(KUBELET_V2), Some(Limit::Files(1_000_000)));
        let row = |file: &[u8]| {
            let text = String::from_utf8(file.to_vec()).unwrap();
            let row = text.lines().find(|line| line.starts_with("Max open files")).unwrap().to_owned();
            row.split_whitespace().nth(3).unwrap().parse().ok().map(Limit::Files)
        };
        assert_eq!(soft_open_files(PAUSE), row(PAUSE));
        assert_eq!(soft_open_files(CONTAINER), row(CONTAINER));
    }

    #[test]
    fn odd_limits() {
        assert_eq!(soft_open_files(b""), None);
        assert_eq!(soft_open_files(b"Max open files            unlimited  unlimited  files\n"), Some(Limit::Unlimited));
        assert_eq!(soft_open_files(b"Max open files            0          4096       files\n"), Some(Limit::Files(0)));
        assert_eq!(soft_open_files(b"Max open files            1x24       4096       files\n"), None);
        assert_eq!(soft_open_files(b"Max open files            1024"), None, "cut: 1024 may be 1024000");
        assert_eq!(soft_open_files(b"No Max open files         1024       4096       files\n"), None);
    }

    #[test]
    fn the_effective_uid_is_the_second() {
        let recorded = include_bytes!("../../../tests/fixtures/open_files/v2-kubelet/status.txt");
        assert_eq!(effective_uid(recorded), Some(0));
        assert_eq!(effective_capabilities(recorded), Some(0x1ff_ffff_ffff));
        assert_eq!(only_pid(recorded), Some(1555));
        assert_eq!(only_pid(b"Name:\tx\nNSpid:\t4711\t7\nNSpgid:\t1\n"), None, "seen from an outer namespace");
        assert_eq!(effective_uid(b"Name:\tx\nUid:\t1000\t33\t1000\t33\nGid:\t0\t0\t0\t0\n"), Some(33));
        assert_eq!(effective_uid(b"Name:\tUid:\t1\t2\n"), None, "a process that calls itself like the row");
        assert_eq!(effective_uid(b""), None);
    }

    #[test]
    fn names_are_any_bytes() {
        assert_eq!(Comm::from_file(b"kubelet\n").text(), "kubelet");
        assert_eq!(Comm::from_file(b"say \"hi\"\nx\n").text(), "say \"hi\"\nx");
        assert_eq!(Comm::from_file(b"\n").text(), "");
        // 15 bytes of "ééééééé" + half of the eighth é.
        let cut = Comm::from_file("\u{e9}".repeat(8).as_bytes());
        assert_eq!(cut.text(), format!("{}\u{fffd}", "\u{e9}".repeat(7)));
        assert_eq!(Comm::new(b"kube-controller-manager"), Comm::from_file(b"kube-controller\n"));
        assert_ne!(Comm::new(b"a").hash32(), Comm::new(b"b").hash32());
    }
}
