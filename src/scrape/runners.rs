//! The threads that one scrape runs its modes on: one, and another only where that one is held up.
//!
//! Most modes take a fraction of a millisecond. A thread for each costs more than they do: it has to be woken, it finds
//! the processor's caches cold, and so does whoever waits for it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::task::{AbortHandle, spawn_blocking};

/// How long what is still to be done waits for the thread that does something else.
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
        queue.threads -= usize::from(next.is_none());
        next
    }
}

async fn watch(runners: Weak<Runners>) {
    loop {
        tokio::time::sleep(PATIENCE).await;
        let Some(runners) = runners.upgrade() else { return };
        let queue = runners.lock();
        if !queue.jobs.is_empty() {
            runners.one_more(queue);
        }
    }
}
