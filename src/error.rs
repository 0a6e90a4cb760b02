//! One error type for everything a collector can meet, with a closed set of reasons.
//!
//! The [`Reason`] is what metrics carry (`headroom_collector_errors_total{reason}`), so that an alert can tell "not
//! permitted" from "the kernel hung". The path and the operating system's own words go to the log only: they would be
//! unbounded label values.

use std::fmt;
use std::io;

/// Why something could not be read. The label values of `headroom_collector_errors_total{reason}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The kernel, the kubelet or the runtime has no such thing here (`ENOENT`, `ENOTDIR`).
    Absent,
    /// It exists and we may not read it (`EACCES`, `EPERM`).
    Denied,
    /// It was read and makes no sense.
    Malformed,
    /// It was there and went away while we read: a process that exited, a cgroup that was removed (`ESRCH`, `ENODEV`).
    Vanished,
    /// It did not answer before the deadline.
    Timeout,
    /// An earlier read of the same thing still hangs, or the machine is out of a resource we need (`EMFILE`, `ENOMEM`).
    Busy,
    /// The collector itself panicked: a bug of ours.
    Panic,
    /// Any other error of the operating system (`EIO`, …).
    Io,
}

impl Reason {
    /// Every reason, in the order in which they are exposed.
    pub const ALL: [Reason; 8] = [
        Reason::Absent,
        Reason::Denied,
        Reason::Malformed,
        Reason::Vanished,
        Reason::Timeout,
        Reason::Busy,
        Reason::Panic,
        Reason::Io,
    ];

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Absent => "absent",
            Reason::Denied => "denied",
            Reason::Malformed => "malformed",
            Reason::Vanished => "vanished",
            Reason::Timeout => "timeout",
            Reason::Busy => "busy",
            Reason::Panic => "panic",
            Reason::Io => "io",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What could not be had, where, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    reason: Reason,
    /// What and where, in words for the log: a path, a signal name, the operating system's text.
    what: String,
}

/// The result of anything that reads.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error with its reason and, in words, what and where.
    pub fn new(reason: Reason, what: impl Into<String>) -> Self {
        Error { reason, what: what.into() }
    }

    /// Something was read and makes no sense.
    pub fn malformed(what: impl Into<String>) -> Self {
        Self::new(Reason::Malformed, what)
    }

    /// This machine has no such thing.
    pub fn absent(what: impl Into<String>) -> Self {
        Self::new(Reason::Absent, what)
    }

    /// An operating-system error met at `place` (a path, mostly).
    pub fn os(place: impl fmt::Display, error: &io::Error) -> Self {
        use rustix::io::Errno;
        let reason = match Errno::from_io_error(error) {
            Some(Errno::NOENT | Errno::NOTDIR) => Reason::Absent,
            Some(Errno::ACCESS | Errno::PERM) => Reason::Denied,
            Some(Errno::SRCH | Errno::NODEV) => Reason::Vanished,
            Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN) => Reason::Busy,
            Some(Errno::TIMEDOUT) => Reason::Timeout,
            _ => Reason::Io,
        };
        Self::new(reason, format!("{place}: {error}"))
    }

    /// The closed-set reason.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// True if the thing is not there, or not any more: normal for processes and cgroups that come and go.
    pub fn is_gone(&self) -> bool {
        matches!(self.reason, Reason::Absent | Reason::Vanished)
    }

    /// The same error, said of a larger thing: `context: what`.
    #[must_use]
    pub fn context(self, context: impl fmt::Display) -> Self {
        Error { what: format!("{context}: {}", self.what), ..self }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_errors_map_to_reasons() {
        let reason = |errno: i32| Error::os("/x", &io::Error::from_raw_os_error(errno)).reason();
        assert_eq!(reason(2), Reason::Absent); // ENOENT
        assert_eq!(reason(3), Reason::Vanished); // ESRCH: a process that exited mid-read
        assert_eq!(reason(5), Reason::Io); // EIO: memory.kmem.slabinfo of an old kernel
        assert_eq!(reason(13), Reason::Denied); // EACCES
        assert_eq!(reason(19), Reason::Vanished); // ENODEV: a cgroup removed mid-read
        assert_eq!(reason(24), Reason::Busy); // EMFILE
    }

    #[test]
    fn the_text_names_the_place() {
        let error = Error::os("/proc/7/limits", &io::Error::from_raw_os_error(13)).context("open_files");
        assert_eq!(error.to_string(), "open_files: /proc/7/limits: Permission denied (os error 13)");
    }
}
