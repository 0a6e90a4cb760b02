//! What the file descriptors of one process are: `/proc/PID/fd`, link by link, within a budget.

use std::mem::MaybeUninit;

use rustix::fd::OwnedFd;
use rustix::fs::{RawDir, SeekFrom};
use rustix::io::Result;
use rustix::path::DecInt;

use super::parse::{Comm, decimal};
use super::{head, is_gone};

macro_rules! kinds {
    ($($(#[$doc:meta])+ $kind:ident = $label:literal,)+) => {
        /// What a file descriptor is, by the text of its link: a closed set, because these are label values.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind { $($(#[$doc])+ $kind,)+ }

        impl Kind {
            /// Every kind.
            pub const ALL: &[Kind] = &[$(Kind::$kind),+];

            /// The label value.
            pub fn as_str(self) -> &'static str {
                match self { $(Kind::$kind => $label),+ }
            }
        }
    };
}

kinds! {
    /// `socket:[…]`
    Socket = "socket",
    /// `pipe:[…]`; a named pipe is a path, so a [`Kind::File`].
    Pipe = "pipe",
    /// A path: a regular file, a directory, a named pipe; deleted or not.
    File = "file",
    /// A path below `/dev` (except the file systems that are mounted there: shm, mqueue, hugepages).
    Device = "device",
    /// `anon_inode:inotify`
    Inotify = "inotify",
    /// `anon_inode:[eventpoll]`
    Eventpoll = "eventpoll",
    /// `anon_inode:[eventfd]`
    Eventfd = "eventfd",
    /// `anon_inode:[timerfd]`
    Timerfd = "timerfd",
    /// `anon_inode:[signalfd]`
    Signalfd = "signalfd",
    /// `/memfd:…`
    Memfd = "memfd",
    /// `anon_inode:[pidfd]`
    Pidfd = "pidfd",
    /// `anon_inode:[fanotify]`
    Fanotify = "fanotify",
    /// `anon_inode:[userfaultfd]`
    Userfaultfd = "userfaultfd",
    /// `anon_inode:[perf_event]`
    PerfEvent = "perf_event",
    /// `anon_inode:bpf-map`, `bpf-prog`, `bpf_link`, …
    Bpf = "bpf",
    /// `anon_inode:[io_uring]`
    IoUring = "io_uring",
    /// `net:[…]`, `mnt:[…]`, …: a namespace held open.
    Namespace = "namespace",
    /// Any other `anon_inode:` (KVM, seccomp notify, DRM, …) or dma-buf.
    Anon = "anon",
    /// A link text that none of the above describes.
    Other = "other",
}

impl Kind {
    /// The kind of a link's text. Only the beginning is looked at, so a cut text will do.
    pub fn of(link: &[u8]) -> Self {
        if let Some(rest) = link.strip_prefix(b"/") {
            return if let Some(device) = rest.strip_prefix(b"dev/") {
                let mounted: [&[u8]; 3] = [b"shm/", b"mqueue/", b"hugepages"];
                if mounted.iter().any(|name| device.starts_with(name)) { Kind::File } else { Kind::Device }
            } else if rest.starts_with(b"memfd:") {
                Kind::Memfd
            } else if rest.starts_with(b"dmabuf:") {
                Kind::Anon
            } else {
                Kind::File
            };
        }
        let Some(colon) = memchr::memchr(b':', link) else {
            // A path that cannot be reached from our root: "(unreachable)/x".
            return if link.starts_with(b"(unreachable)") { Kind::File } else { Kind::Other };
        };
        match &link[..colon] {
            b"socket" => Kind::Socket,
            b"pipe" => Kind::Pipe,
            b"anon_inode" => Self::of_anon(&link[colon + 1..]),
            b"pidfd" => Kind::Pidfd,
            b"net" | b"mnt" | b"uts" | b"ipc" | b"pid" | b"user" | b"cgroup" | b"time" => Kind::Namespace,
            class if class.starts_with(b"(unreachable)") => Kind::File,
            _ => Kind::Other,
        }
    }

    fn of_anon(name: &[u8]) -> Self {
        // Some have brackets and some have not, and that changed between kernels.
        let name = name.strip_prefix(b"[").unwrap_or(name);
        match name.strip_suffix(b"]").unwrap_or(name) {
            b"inotify" => Kind::Inotify,
            b"eventpoll" => Kind::Eventpoll,
            b"eventfd" => Kind::Eventfd,
            b"timerfd" => Kind::Timerfd,
            b"signalfd" => Kind::Signalfd,
            b"pidfd" => Kind::Pidfd,
            b"fanotify" => Kind::Fanotify,
            b"userfaultfd" => Kind::Userfaultfd,
            b"perf_event" => Kind::PerfEvent,
            b"io_uring" => Kind::IoUring,
            name if name.starts_with(b"bpf") => Kind::Bpf,
            _ => Kind::Anon,
        }
    }
}

/// The inode number in the text of a socket's link: `socket:[16903]`.
pub fn socket_inode(link: &[u8]) -> Option<u32> {
    decimal(link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?)?.try_into().ok()
}

/// How many fds of one process are of each kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kinds {
    counts: [u64; Kind::ALL.len()],
    /// Those that the budget did not reach.
    pub unexamined: u64,
}

impl Kinds {
    /// So many fds, none of them examined.
    pub fn unexamined(fds: u64) -> Self {
        Kinds { unexamined: fds, ..Kinds::default() }
    }

    /// Counts one more.
    pub fn add(&mut self, kind: Kind) {
        self.counts[kind as usize] += 1;
    }

    /// How many are of this kind.
    pub fn get(&self, kind: Kind) -> u64 {
        self.counts[kind as usize]
    }

    /// How many fds there are, unexamined ones included.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum::<u64>() + self.unexamined
    }
}

/// How far one examination came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Examined {
    /// Entries that were looked at: what counts against a budget.
    pub looked_at: usize,
    /// Where to go on, if the budget ended before the directory did.
    pub next: Option<u64>,
}

/// The opened fd directory of one process. If the process exits it reads as empty or gone, never as another process.
#[derive(Debug)]
pub struct Fds {
    pub(super) dir: OwnedFd,
    /// `st_size` of the directory is the number of fds.
    pub(super) sized: bool,
}

impl Fds {
    /// Looks at up to `most` fds from `from` on (a [`Examined::next`] of before; `None`: from the first), and tells
    /// `visit` each one's number and kind. One that is closed at this moment is passed over.
    ///
    /// # Errors
    /// `EACCES` without `CAP_SYS_PTRACE` for a process of another user or with more capabilities than ours.
    pub fn examine(&self, from: Option<u64>, most: usize, mut visit: impl FnMut(u32, Kind)) -> Result<Examined> {
        self.links(from, most, |fd, link| {
            visit(fd, Kind::of(link));
            true
        })
    }

    /// As [`Fds::examine`], with the text of each link, cut to 64 bytes, until `visit` returns false. It has then come
    /// as far as the budget.
    ///
    /// # Errors
    /// As [`Fds::examine`].
    pub fn links(&self, from: Option<u64>, most: usize, mut visit: impl FnMut(u32, &[u8]) -> bool) -> Result<Examined> {
        rustix::fs::seek(&self.dir, SeekFrom::Start(from.unwrap_or(0)))?;
        let mut looked_at = 0;
        let mut next = from;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut entries = RawDir::new(&self.dir, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            if looked_at == most {
                return Ok(Examined { looked_at, next: Some(next.unwrap_or(0)) });
            }
            next = Some(entry.next_entry_cookie());
            let Some(fd) = decimal(entry.file_name().to_bytes()).and_then(|fd| fd.try_into().ok()) else { continue };
            looked_at += 1;
            // Longer than any name of a kind; the kernel cuts the rest of a path.
            let mut link = [MaybeUninit::uninit(); 64];
            match rustix::fs::readlinkat_raw(&self.dir, entry.file_name(), &mut link) {
                Ok((link, _)) if visit(fd, link) => {}
                Ok(_) => return Ok(Examined { looked_at, next }),
                Err(errno) if is_gone(errno) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(Examined { looked_at, next: None })
    }

    /// The inode number of the socket that fd number `fd` is now; `None` if it is none, or closed.
    ///
    /// # Errors
    /// As [`Fds::examine`].
    pub fn socket(&self, fd: u32) -> Result<Option<u32>> {
        let mut link = [MaybeUninit::uninit(); 64];
        match rustix::fs::readlinkat_raw(&self.dir, DecInt::new(fd).as_c_str(), &mut link) {
            Ok((link, _)) => Ok(socket_inode(link)),
            Err(errno) if is_gone(errno) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// What the process calls itself.
    ///
    /// # Errors
    /// `ENOENT` or `ESRCH` if it exited.
    pub fn comm(&self) -> Result<Comm> {
        // By the parent of this directory, not by number: never another process's.
        let mut buffer = [MaybeUninit::uninit(); 64];
        Ok(Comm::from_file(head(&self.dir, c"../comm", &mut buffer)?))
    }

    /// Counts the fds by kind, examining at most `most`. Returns the counts and how many were examined. `socket` is
    /// told the inode number of each socket.
    ///
    /// # Errors
    /// As [`Fds::examine`].
    pub fn kinds(&self, most: usize, mut socket: impl FnMut(u32)) -> Result<(Kinds, usize)> {
        let mut kinds = Kinds::default();
        let examined = self.links(None, most, |_, link| {
            let kind = Kind::of(link);
            kinds.add(kind);
            if kind == Kind::Socket {
                socket_inode(link).into_iter().for_each(&mut socket);
            }
            true
        })?;
        if examined.next.is_some() {
            kinds.unexamined = self.count()?.saturating_sub(kinds.total());
        }
        Ok((kinds, examined.looked_at))
    }

    /// How many there are: by size where that can be trusted, otherwise by reading the directory.
    ///
    /// # Errors
    /// The operating system's.
    pub fn count(&self) -> Result<u64> {
        if self.sized { self.size() } else { self.read_count() }
    }

    pub(super) fn size(&self) -> Result<u64> {
        Ok(rustix::fs::fstat(&self.dir)?.st_size.try_into().unwrap_or(0))
    }

    pub(super) fn read_count(&self) -> Result<u64> {
        rustix::fs::seek(&self.dir, SeekFrom::Start(0))?;
        let mut buffer = [MaybeUninit::uninit(); 8192];
        let mut entries = RawDir::new(&self.dir, &mut buffer);
        let mut count = 0;
        while let Some(entry) = entries.next() {
            count += u64::from(entry?.file_name().to_bytes()[0] != b'.');
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_texts() {
        let cases: &[(&str, Kind)] = &[
            ("socket:[16903]", Kind::Socket),
            ("pipe:[20039]", Kind::Pipe),
            ("/var/lib/tb/log/kubelet.log", Kind::File),
            ("/tmp/x (deleted)", Kind::File),
            ("/sys/fs/cgroup", Kind::File),
            ("/pipe:[1]", Kind::File),
            ("/dev/kmsg", Kind::Device),
            ("/dev/null", Kind::Device),
            ("/dev/shm/sem.x", Kind::File),
            ("/development", Kind::File),
            ("(unreachable)/x:y", Kind::File),
            ("(unreachable)/x", Kind::File),
            ("/memfd:runc_cloned (deleted)", Kind::Memfd),
            ("/dmabuf:", Kind::Anon),
            ("anon_inode:inotify", Kind::Inotify),
            ("anon_inode:[eventpoll]", Kind::Eventpoll),
            ("anon_inode:[eventfd]", Kind::Eventfd),
            ("anon_inode:[timerfd]", Kind::Timerfd),
            ("anon_inode:[signalfd]", Kind::Signalfd),
            ("anon_inode:[pidfd]", Kind::Pidfd),
            ("pidfd:[4711]", Kind::Pidfd),
            ("anon_inode:[fanotify]", Kind::Fanotify),
            ("anon_inode:[userfaultfd]", Kind::Userfaultfd),
            ("anon_inode:[perf_event]", Kind::PerfEvent),
            ("anon_inode:bpf-map", Kind::Bpf),
            ("anon_inode:bpf_link", Kind::Bpf),
            ("anon_inode:[io_uring]", Kind::IoUring),
            ("anon_inode:kvm-vcpu:0", Kind::Anon),
            ("anon_inode:seccomp notify", Kind::Anon),
            ("net:[4026531840]", Kind::Namespace),
            ("gibberish", Kind::Other),
            ("", Kind::Other),
        ];
        for (link, kind) in cases {
            assert_eq!(Kind::of(link.as_bytes()), *kind, "{link}");
        }
    }

    #[test]
    fn inodes_of_sockets() {
        assert_eq!(socket_inode(b"socket:[16903]"), Some(16_903));
        assert_eq!(socket_inode(b"socket:[4294967295]"), Some(u32::MAX));
        for other in ["pipe:[16903]", "socket:[]", "socket:[16903", "socket:[4294967296]", "socket:[-1]", "/socket:[1]"]
        {
            assert_eq!(socket_inode(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn recorded_listings() {
        let kinds = |listing: &str| {
            let mut kinds = Kinds::default();
            let links = listing.lines().filter_map(|line| line.split_once(" -> "));
            links.for_each(|(_, link)| kinds.add(Kind::of(link.as_bytes())));
            kinds
        };
        let kubelet = kinds(include_str!("../../../tests/fixtures/open_files/v2-kubelet/fd.txt"));
        let of = |kind| kubelet.get(kind);
        assert_eq!(kubelet.total(), 26, "as recorded beside it in fd-count");
        assert_eq!((of(Kind::Socket), of(Kind::Inotify), of(Kind::Device), of(Kind::File)), (10, 7, 3, 4));
        assert_eq!((of(Kind::Eventpoll), of(Kind::Eventfd)), (1, 1));
        let container = kinds(include_str!("../../../tests/fixtures/open_files/v1-container/fd.txt"));
        assert_eq!((container.get(Kind::Pipe), container.get(Kind::Device)), (2, 1));
    }
}
