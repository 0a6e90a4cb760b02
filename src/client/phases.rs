//! Which phase an exchange is in, and how long the past ones took.

use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::timeout_at;

use super::outcome::{Failure, Phase};
use crate::host::Deadline;

#[derive(Debug)]
pub(crate) struct Stopwatch {
    started: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    ended: Vec<(Phase, Duration)>,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        let state = State { phase: Phase::Total, ended: Vec::new() };
        Stopwatch { started: Instant::now(), state: Mutex::new(state) }
    }

    /// One phase. Its duration is kept if it ends well.
    pub(crate) async fn phase<T>(
        &self,
        phase: Phase,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let state = || self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state().phase = phase;
        let started = Instant::now();
        let done = work.await?;
        state().ended.push((phase, started.elapsed()));
        Ok(done)
    }

    /// All phases, or a timeout in the one that was under way.
    pub(crate) async fn within<T>(
        &self,
        deadline: Deadline,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        timeout_at(deadline.instant().into(), work).await.unwrap_or_else(|_| Err(Failure::timeout(self.now_in())))
    }

    /// The phase that is or was the last one under way.
    pub(super) fn now_in(&self) -> Phase {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).phase
    }

    /// The phases that ended well, and how long it took altogether if that is asked.
    pub(crate) fn timings(&self, all_well: bool) -> Vec<(Phase, Duration)> {
        let mut timings = self.state.lock().unwrap_or_else(PoisonError::into_inner).ended.clone();
        if all_well {
            timings.push((Phase::Total, self.started.elapsed()));
        }
        timings
    }
}
