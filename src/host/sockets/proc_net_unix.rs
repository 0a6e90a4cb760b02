//! Unix sockets of a network namespace that we are not in: `/proc/PID/net/unix` of any process in it lists them,
//! without entering it.
//!
//! It tells less than a dump: no peer, and no file but by its path.

use std::io::Read as _;

use crate::error::{Error, Result};
use crate::host::Host;

/// `__SO_ACCEPTCON` of include/linux/net.h: it listens.
const LISTENS: u32 = 1 << 16;
/// `SOCK_STREAM`
const STREAM: u32 = 1;
/// `SS_CONNECTED` of include/uapi/linux/net.h. A connection that was not accepted yet shows as connecting, 2.
const CONNECTED: u32 = 3;

/// One line, of a stream socket that has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed<'a> {
    /// It waits for connections; otherwise it is the server's end of one that was accepted.
    pub listening: bool,
    /// As it was given to `bind(2)`.
    pub path: &'a [u8],
}

impl<'a> Listed<'a> {
    /// Reads a line. `None` for any other socket, and for the heading.
    ///
    /// `Num RefCount Protocol Flags Type St Inode Path` (`unix_seq_show` in net/unix/af_unix.c); a path may have
    /// spaces.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let mut rest = line;
        let mut fields = [0; 7];
        for (index, field) in fields.iter_mut().enumerate() {
            rest = rest.trim_ascii_start();
            let end = rest.iter().position(u8::is_ascii_whitespace)?;
            let text = std::str::from_utf8(&rest[..end]).ok()?;
            // An address of the kernel's comes first and an inode number, which is decimal, last: neither is wanted.
            *field = if matches!(index, 0 | 6) { 0 } else { u32::from_str_radix(text, 16).ok()? };
            rest = &rest[end..];
        }
        let path = rest.strip_prefix(b" ")?;
        let listening = fields[3] & LISTENS != 0;
        let wanted = fields[4] == STREAM && !path.is_empty() && (listening || fields[5] == CONNECTED);
        wanted.then_some(Listed { listening, path })
    }
}

impl Host {
    /// Shows the named stream sockets of the network namespace of a process to `visit`, reading at most `most` bytes.
    /// Returns how many were read and whether that was all.
    ///
    /// # Errors
    /// Gone if the process exited.
    pub fn unix_sockets_of(&self, pid: u32, most: usize, mut visit: impl FnMut(Listed<'_>)) -> Result<(usize, bool)> {
        let path = self.proc(format!("{pid}/net/unix"));
        let os = |error| Error::os(path.display(), &error);
        let mut file = std::fs::File::open(&path).map_err(os)?;
        let mut buffer = vec![0; 16 << 10];
        let (mut read, mut kept) = (0, 0);
        while read < most {
            let got = file.read(&mut buffer[kept..]).map_err(os)?;
            if got == 0 {
                return Ok((read, true));
            }
            read += got;
            let end = kept + got;
            let mut start = 0;
            while let Some(length) = memchr::memchr(b'\n', &buffer[start..end]) {
                Listed::parse(&buffer[start..start + length]).into_iter().for_each(&mut visit);
                start += length + 1;
            }
            buffer.copy_within(start..end, 0);
            kept = end - start;
            if kept == buffer.len() {
                return Err(Error::malformed(format!("{}: a line is longer than {kept} bytes", path.display())));
            }
        }
        Ok((read, false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Linux 6.18; the addresses are hidden from all but root.
    const LISTING: &str = "\
Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 25531 /run/docker.sock
0000000000000000: 00000003 00000000 00000000 0001 03 25532 /run/docker.sock
0000000000000000: 00000003 00000000 00000000 0001 03 25533 /run/a b.sock
0000000000000000: 00000003 00000000 00000000 0001 02     0 /run/docker.sock
0000000000000000: 00000003 00000000 00000000 0001 03 25540
0000000000000000: 00000002 00000000 00000000 0002 01 25541 /run/log
0000000000000000: 00000003 00000000 00000000 0001 03 25542 @abstract
";

    #[test]
    fn lines() {
        let found: Vec<_> = LISTING.lines().filter_map(|line| Listed::parse(line.as_bytes())).collect();
        let listed = |listening, path: &'static str| Listed { listening, path: path.as_bytes() };
        assert_eq!(
            found,
            [
                listed(true, "/run/docker.sock"),
                listed(false, "/run/docker.sock"),
                listed(false, "/run/a b.sock"),
                listed(false, "@abstract"),
            ]
        );
        // Cut anywhere before its path, a line is nothing.
        let line = LISTING.lines().nth(1).unwrap();
        let path = line.find('/').unwrap();
        assert!((0..=path).all(|cut| Listed::parse(&line.as_bytes()[..cut]).is_none()));
    }

    #[test]
    fn a_budget_cuts_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("7/net")).unwrap();
        let line = LISTING.lines().nth(2).unwrap();
        std::fs::write(dir.path().join("7/net/unix"), format!("{line}\n").repeat(2_000)).unwrap();
        let host = Host::new(crate::host::Roots { proc: dir.path().into(), ..Default::default() });
        let count = |most| {
            let mut count = 0;
            let (_, whole) = host.unix_sockets_of(7, most, |_| count += 1).unwrap();
            (count, whole)
        };
        assert_eq!(count(usize::MAX), (2_000, true));
        let (few, whole) = count(20_000);
        assert!(!whole && (1..2_000).contains(&few), "{few}");
        assert!(host.unix_sockets_of(8, 1, |_| {}).unwrap_err().is_gone());
    }
}
