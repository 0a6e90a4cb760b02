//! When answers must be there: of one piece of work, and of several calls that may each hang.

use std::time::{Duration, Instant};

use crate::error::{Reason, Result};

/// How long a file system may take to answer `statfs`: as long as the kubelet gives it.
const STATFS: Duration = Duration::from_secs(2);
/// How long once another one hangs: a healthy one answers in microseconds, and both may lie on the same dead mount.
const STATFS_AFTER_A_HANG: Duration = Duration::from_millis(200);
/// How long it may take to read of a process what its memory lock guards: microseconds, unless it is stuck.
const PROCESS: Duration = Duration::from_secs(1);
const PROCESS_AFTER_A_HANG: Duration = Duration::from_millis(100);

/// When an answer must be there.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// A deadline `timeout` from now.
    pub fn after(timeout: Duration) -> Self {
        Deadline(Instant::now() + timeout)
    }

    /// The time left, zero once it has passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// True once it has passed.
    pub fn expired(self) -> bool {
        self.remaining().is_zero()
    }

    /// A nearer deadline for one part of the work: half of the time left, and never more than `limit`.
    #[must_use]
    pub fn part(self, limit: Duration) -> Self {
        Self::after((self.remaining() / 2).min(limit))
    }

    /// This one, or a later moment.
    #[must_use]
    pub fn or_at(self, later: Instant) -> Self {
        Deadline(self.0.max(later))
    }

    /// The moment itself.
    pub fn instant(self) -> Instant {
        self.0
    }
}

/// How long each of several file systems, or processes, may take that are asked one after the other, so that those that
/// hang leave time for the rest.
#[derive(Debug)]
pub struct CallBudget {
    deadline: Deadline,
    /// For one as long as none hangs, and after that.
    limits: [Duration; 2],
    hung: bool,
}

impl CallBudget {
    /// For file systems: until `deadline`, all together.
    pub fn new(deadline: Deadline) -> Self {
        CallBudget { deadline, limits: [STATFS, STATFS_AFTER_A_HANG], hung: false }
    }

    /// The same for processes.
    pub fn of_processes(deadline: Deadline) -> Self {
        CallBudget { deadline, limits: [PROCESS, PROCESS_AFTER_A_HANG], hung: false }
    }

    /// For the next one.
    pub fn next(&self) -> Deadline {
        self.deadline.part(self.limits[usize::from(self.hung)])
    }

    /// Takes note of how it went.
    pub fn note<T>(&mut self, answer: &Result<T>) {
        self.hung |= answer.as_ref().is_err_and(|error| matches!(error.reason(), Reason::Timeout | Reason::Busy));
    }
}
