//! The threads that one scrape runs its modes on: one, and another only where that one is held up.
//!
//! Most modes take a fraction of a millisecond. A thread for each costs more than they do: it has to be woken, it finds
//! the processor's caches cold, and so does whoever waits for it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::task::{AbortHandle, spawn_blocking};

/// How long one job may hold up what is still to be done. However long all of them take on a busy machine: as long as
/// one ends after the other, another thread would only take the processor from them.
const PATIENCE: Duration = Duration::from_millis(25);

type Job = Box<dyn FnOnce() + Send>;

/// What one scrape has still to do.
#[derive(Default)]
pub(super) struct Runners {
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// How many were taken from it until now.
    taken: u64,
    /// Threads that take from it, or are held up by what they took.
    threads: usize,
}

/// Ends the watch over runners when nothing waits for a thread any more. What still does is wanted by others.
pub(super) struct Watch {
    task: AbortHandle,
    runners: Arc<Runners>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.runners.lock().jobs.is_empty() {
            self.task.abort();
        }
    }
}

impl Runners {
    /// Runners, and a watch that starts another thread whenever one is held up.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub(super) fn start() -> (Arc<Self>, Watch) {
        let runners = Arc::<Self>::default();
        let task = tokio::spawn(watch(Arc::downgrade(&runners))).abort_handle();
        (Arc::clone(&runners), Watch { task, runners })
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs this job, which does not panic, after those that were given before.
    pub(super) fn run(self: &Arc<Self>, job: impl FnOnce() + Send + 'static) {
        let mut queue = self.lock();
        queue.jobs.push_back(Box::new(job));
        if queue.threads == 0 {
            self.one_more(queue);
        }
    }

    fn one_more(self: &Arc<Self>, mut queue: MutexGuard<'_, Queue>) {
        queue.threads += 1;
        drop(queue);
        let runners = Arc::clone(self);
        spawn_blocking(move || {
            while let Some(job) = runners.next() {
                job();
            }
        });
    }

    fn next(&self) -> Option<Job> {
        let mut queue = self.lock();
        let next = queue.jobs.pop_front();
        queue.taken += u64::from(next.is_some());
        queue.threads -= usize::from(next.is_none());
        next
    }

    /// Starts another thread if something waits and nothing was taken since `seen`; how many are taken now.
    fn look(self: &Arc<Self>, seen: u64) -> u64 {
        let queue = self.lock();
        let taken = queue.taken;
        if taken == seen && !queue.jobs.is_empty() {
            self.one_more(queue);
        }
        taken
    }
}

async fn watch(runners: Weak<Runners>) {
    // The first is taken at once.
    let mut seen = 1;
    loop {
        tokio::time::sleep(PATIENCE).await;
        let Some(runners) = runners.upgrade() else { return };
        seen = runners.look(seen);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn only_who_is_held_up_gets_another_thread() {
        let runners = Arc::<Runners>::default();
        let (ran, order) = mpsc::channel();
        let gates = [(); 3].map(|()| mpsc::channel::<()>());
        let (opens, gates): (Vec<_>, Vec<_>) = gates.into_iter().unzip();
        for (number, gate) in gates.into_iter().enumerate() {
            let ran = ran.clone();
            runners.run(move || {
                ran.send(number).unwrap();
                let _ = gate.recv();
            });
        }
        assert_eq!(order.recv(), Ok(0));
        let seen = runners.look(0);
        // The first ended meanwhile: the second has not held up anybody yet.
        opens[0].send(()).unwrap();
        assert_eq!(order.recv(), Ok(1));
        let seen = runners.look(seen);
        assert_eq!((seen, runners.lock().threads), (2, 1));
        assert!(order.try_recv().is_err());
        runners.look(seen);
        assert_eq!(order.recv(), Ok(2), "on another thread, while the second still holds its own");
        drop(opens);
    }
}
