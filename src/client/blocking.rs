//! At most one call at a time of a kind that may hang: a name that is looked up, a file that is read.
//!
//! Such a call cannot be cancelled. It is left alone when the time is over, and until it comes back nobody starts
//! another.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::time::timeout_at;

use crate::host::Deadline;

#[derive(Clone, Debug)]
pub(crate) struct SingleBlockingCall(Arc<Semaphore>);

impl Default for SingleBlockingCall {
    fn default() -> Self {
        SingleBlockingCall(Arc::new(Semaphore::new(1)))
    }
}

impl SingleBlockingCall {
    /// Runs `call` on the blocking pool once no other is under way. `None` if the deadline passes before it is done.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        deadline: Deadline,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let turn = Arc::clone(&self.0).acquire_owned();
        let done = async move {
            let turn = turn.await.ok()?;
            let call = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                call()
            });
            call.await.ok()
        };
        timeout_at(deadline.instant().into(), done).await.ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    #[tokio::test]
    async fn a_hung_call_is_the_only_one_and_heals() {
        let gate = SingleBlockingCall::default();
        let started = Arc::new(AtomicUsize::new(0));
        let (release, hang) = mpsc::channel::<()>();
        let counter = Arc::clone(&started);
        let hung = gate.run(Deadline::after(Duration::from_millis(50)), move || {
            counter.fetch_add(1, Ordering::SeqCst);
            let _ = hang.recv();
        });
        assert_eq!(hung.await, None);
        for _ in 0..20 {
            let counter = Arc::clone(&started);
            let call = move || counter.fetch_add(1, Ordering::SeqCst);
            assert_eq!(gate.run(Deadline::after(Duration::from_millis(5)), call).await, None);
        }
        assert_eq!(started.load(Ordering::SeqCst), 1, "one call was ever started");
        drop(release);
        assert_eq!(gate.run(Deadline::after(Duration::from_secs(20)), || 7).await, Some(7));
    }
}
