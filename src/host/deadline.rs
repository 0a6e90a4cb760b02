//! When answers must be there: of one piece of work, and of several calls that may each hang.

use std::time::{Duration, Instant};

use crate::error::{Reason, Result};

/// How long a file system may take to answer `statfs`: as long as the kubelet gives it.
const STATFS: Duration = Duration::from_secs(2);
/// How long once another one hangs: a healthy one answers in microseconds, and both may lie on the same dead mount.
const STATFS_AFTER_A_HANG: Duration = Duration::from_millis(200);

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

    /// The moment itself.
    pub fn instant(self) -> Instant {
        self.0
    }
}

/// How long each of several file systems may take that are asked one after the other, so that those that hang leave
/// time for the rest.
#[derive(Debug)]
pub struct CallBudget {
    deadline: Deadline,
    hung: bool,
}

impl CallBudget {
    /// Until `deadline`, all together.
    pub fn new(deadline: Deadline) -> Self {
        CallBudget { deadline, hung: false }
    }

    /// For the next one.
    pub fn next(&self) -> Deadline {
        self.deadline.part(if self.hung { STATFS_AFTER_A_HANG } else { STATFS })
    }

    /// Takes note of how it went.
    pub fn note<T>(&mut self, answer: &Result<T>) {
        self.hung |= answer.as_ref().is_err_and(|error| matches!(error.reason(), Reason::Timeout | Reason::Busy));
    }
}
