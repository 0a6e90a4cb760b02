//! Runs a system call that may never return, so that it costs one thread and never the caller.
//!
//! A thread stuck in uninterruptible sleep cannot be killed. What can be done is to wait for it only until a deadline,
//! to keep at most one such call per key, and to keep few of them altogether. node_exporter runs `statfs` in the
//! request path; one dead NFS server there loses every metric of the node.

use std::collections::{HashMap, VecDeque};
use std::ffi::CStr;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::CallBudget;
use super::Deadline;
use crate::error::{Error, Reason, Result};

/// More stuck threads than this are never made: the node has a larger problem by then, and we must not add to it.
const MOST_STUCK: usize = 8;

/// How long one of many calls waits for another under its key.
const OTHERS: Duration = Duration::from_millis(200);

/// How long a thread waits for the next call: longer than the pause between two scrapes.
const IDLE: Duration = Duration::from_secs(150);
/// Threads that wait at the most; as many calls are seldom under way at once.
const MOST_IDLE: usize = 3;
/// The names of a thread that runs a call, and of one that waits for the next.
const AT_WORK: &CStr = c"guarded-call";
const IDLE_NAME: &CStr = c"idle-guard";

/// Calls under way, by key.
#[derive(Default)]
pub(super) struct Guard {
    under_way: Arc<UnderWay>,
    threads: Threads,
}

#[derive(Default)]
struct UnderWay {
    /// Until when somebody waits for each: what is under way after that hangs.
    calls: Mutex<HashMap<String, Instant>>,
    ended: Condvar,
}

impl UnderWay {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guard {
    /// Runs `call` on a thread of its own and waits for it until `deadline`. Where another one is under way under this
    /// key, and does not hang, that is waited for first.
    pub(super) fn run<T: Send + 'static>(
        &self,
        key: &str,
        deadline: Deadline,
        call: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let finished = Self::admit(&self.under_way, key, deadline)?;
        let (sender, receiver) = mpsc::sync_channel(1);
        let work = move || {
            let result = call();
            drop(finished);
            // The receiver is gone if the deadline passed first.
            let _ = sender.send(result);
        };
        self.threads.run(Box::new(work)).map_err(|error| Error::os(format_args!("{key}: thread"), &error))?;
        match receiver.recv_timeout(deadline.remaining()) {
            Ok(result) => result,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                Err(Error::new(Reason::Timeout, format!("{key}: no answer before the deadline")))
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                Err(Error::new(Reason::Panic, format!("{key}: the call panicked")))
            }
        }
    }
}

impl Guard {
    fn admit(under_way: &Arc<UnderWay>, key: &str, deadline: Deadline) -> Result<Finished> {
        let mut calls = under_way.lock();
        while let Some(until) = calls.get(key) {
            let left = until.min(&deadline.instant()).saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::new(Reason::Busy, format!("{key}: an earlier call still hangs")));
            }
            let waited = under_way.ended.wait_timeout(calls, left);
            (calls, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        if calls.len() >= MOST_STUCK {
            return Err(Error::new(Reason::Busy, format!("{key}: {MOST_STUCK} earlier calls still hang")));
        }
        calls.insert(key.to_owned(), deadline.instant());
        Ok(Finished { key: key.to_owned(), under_way: Arc::clone(under_way) })
    }

    /// Runs `call` on each of `items`, known by their keys, one after the other: all on one thread as long as none
    /// hangs. One that does costs that thread, and the rest goes on on another.
    pub(super) fn run_each<I: Send + 'static, T: Send + 'static>(
        &self,
        items: Vec<(String, I)>,
        patience: &mut CallBudget,
        call: fn(I) -> Result<T>,
    ) -> Vec<Result<T>> {
        let keys: Vec<String> = items.iter().map(|(key, _)| key.clone()).collect();
        let mut answers: Vec<Option<Result<T>>> = keys.iter().map(|_| None).collect();
        let queue = Arc::new(Mutex::new(Queue { worker: 0, taken: 0, items: items.into() }));
        let lock = || queue.lock().unwrap_or_else(PoisonError::into_inner);
        while lock().taken < keys.len() {
            let (sender, receiver) = mpsc::channel();
            let worker = {
                let mut queue = lock();
                queue.worker += 1;
                queue.worker
            };
            let (shared, under_way) = (Arc::clone(&queue), Arc::clone(&self.under_way));
            let work = move || {
                while let Some((index, key, item)) = Queue::take(&shared, worker) {
                    let until = Deadline::after(OTHERS);
                    let answer = Self::admit(&under_way, &key, until).and_then(|_finished| call(item));
                    // Nobody waits any more: the others are another thread's.
                    if sender.send((index, answer)).is_err() {
                        return;
                    }
                }
            };
            if let Err(error) = self.threads.run(Box::new(work)) {
                let error = Error::os("thread", &error);
                answers.iter_mut().for_each(|answer| _ = answer.get_or_insert(Err(error.clone())));
                break;
            }
            let reason = loop {
                match receiver.recv_timeout(patience.next().remaining()) {
                    Ok((index, answer)) => {
                        patience.note(&answer);
                        answers[index] = Some(answer);
                    }
                    Err(mpsc::RecvTimeoutError::Timeout) => break Reason::Timeout,
                    Err(mpsc::RecvTimeoutError::Disconnected) => break Reason::Panic,
                }
            };
            // From here on that thread takes no more. What it took and has not answered is what it hangs on.
            let taken = {
                let mut queue = lock();
                queue.worker += 1;
                queue.taken
            };
            receiver.try_iter().for_each(|(index, answer)| answers[index] = Some(answer));
            for (answer, key) in answers.iter_mut().zip(&keys).take(taken).filter(|(answer, _)| answer.is_none()) {
                let what = if reason == Reason::Panic { "the call panicked" } else { "no answer before the deadline" };
                let error = Err(Error::new(reason, format!("{key}: {what}")));
                patience.note(&error);
                *answer = Some(error);
            }
        }
        let lost = || Err(Error::new(Reason::Panic, "a guarded call was lost"));
        answers.into_iter().map(|answer| answer.unwrap_or_else(lost)).collect()
    }
}

type Work = Box<dyn FnOnce() + Send>;

/// The threads that calls run on. To start one and to end it costs more than most calls, so one that came back waits
/// for the next, under another name: whoever counts the threads called `guarded-call` counts calls under way.
#[derive(Clone, Default)]
struct Threads(Arc<Shared>);

#[derive(Default)]
struct Shared {
    pool: Mutex<Pool>,
    given: Condvar,
}

#[derive(Default)]
struct Pool {
    /// Threads that wait and have no work coming.
    idle: usize,
    /// Work for threads that wait.
    given: VecDeque<Work>,
}

impl Threads {
    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.0.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs it on a thread that waits, or on a new one.
    fn run(&self, mut work: Work) -> io::Result<()> {
        let mut pool = self.pool();
        if pool.idle > 0 {
            pool.idle -= 1;
            pool.given.push_back(work);
            drop(pool);
            self.0.given.notify_one();
            return Ok(());
        }
        drop(pool);
        let threads = self.clone();
        let all = move || {
            loop {
                // Whoever waits for it is told by what it drops.
                let _ = catch_unwind(AssertUnwindSafe(work));
                let Some(next) = threads.next() else { return };
                work = next;
            }
        };
        thread::Builder::new().name(AT_WORK.to_string_lossy().into()).stack_size(256 << 10).spawn(all).map(drop)
    }

    /// Waits for what comes next; `None` if enough others wait, or nothing comes.
    fn next(&self) -> Option<Work> {
        let mut pool = self.pool();
        if pool.idle >= MOST_IDLE {
            return None;
        }
        pool.idle += 1;
        // A thread that keeps its name counts as one at work, which is the safe side.
        let _ = rustix::thread::set_name(IDLE_NAME);
        let wait = self.0.given.wait_timeout_while(pool, IDLE, |pool| pool.given.is_empty());
        (pool, _) = wait.unwrap_or_else(PoisonError::into_inner);
        let next = pool.given.pop_front();
        match next {
            Some(_) => _ = rustix::thread::set_name(AT_WORK),
            None => pool.idle -= 1,
        }
        next
    }
}

/// What is still to be done, and who may do it.
struct Queue<I> {
    /// The thread that is waited for.
    worker: u64,
    taken: usize,
    items: VecDeque<(String, I)>,
}

impl<I> Queue<I> {
    fn take(queue: &Mutex<Self>, worker: u64) -> Option<(usize, String, I)> {
        let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.worker != worker {
            return None;
        }
        let (key, item) = queue.items.pop_front()?;
        queue.taken += 1;
        Some((queue.taken - 1, key, item))
    }
}

/// Takes the key out again when the call is over, however it ended.
struct Finished {
    key: String,
    under_way: Arc<UnderWay>,
}

impl Drop for Finished {
    fn drop(&mut self) {
        self.under_way.lock().remove(&self.key);
        self.under_way.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Deadline {
        Deadline::after(Duration::from_millis(50))
    }

    #[test]
    fn a_hung_call_costs_one_thread_and_heals() {
        let guard = Guard::default();
        let (release, hang) = mpsc::channel::<()>();
        let first = guard.run("/mnt", soon(), move || {
            let _ = hang.recv();
            Ok(1)
        });
        assert_eq!(first.unwrap_err().reason(), Reason::Timeout);
        for _ in 0..100 {
            assert_eq!(guard.run("/mnt", soon(), || Ok(2)).unwrap_err().reason(), Reason::Busy);
        }
        assert_eq!(guard.run("/other", soon(), || Ok(3)).unwrap(), 3);
        drop(release);
        while guard.run("/mnt", soon(), || Ok(4)).is_err() {
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn calls_one_after_the_other_share_a_thread_that_says_what_it_does() {
        let guard = Guard::default();
        let mut threads = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let call = || Ok((thread::current().id(), rustix::thread::name().unwrap()));
            let (id, name) = guard.run("k", Deadline::after(Duration::from_secs(60)), call).unwrap();
            assert_eq!(name.as_c_str(), AT_WORK);
            threads.insert(format!("{id:?}"));
            let until = Instant::now() + Duration::from_secs(20);
            while guard.threads.pool().idle == 0 {
                assert!(Instant::now() < until, "it never waits");
                thread::yield_now();
            }
        }
        assert_eq!(threads.len(), 1);
        let named = |name: &CStr| {
            let tasks = std::fs::read_dir("/proc/self/task").unwrap();
            let comm = |task: io::Result<std::fs::DirEntry>| std::fs::read(task.ok()?.path().join("comm")).ok();
            tasks.filter_map(comm).filter(|comm| comm.trim_ascii() == name.to_bytes()).count()
        };
        let until = Instant::now() + Duration::from_secs(20);
        while named(IDLE_NAME) == 0 {
            assert!(Instant::now() < until, "a thread that waits says so");
            thread::yield_now();
        }
    }

    #[test]
    fn stuck_threads_are_capped() {
        let guard = Guard::default();
        let (release, hang) = mpsc::channel::<()>();
        let hang = Arc::new(Mutex::new(hang));
        for key in 0..MOST_STUCK {
            let hang = Arc::clone(&hang);
            let call = move || {
                let _ = hang.lock().map(|hang| hang.recv());
                Ok(())
            };
            assert!(guard.run(&key.to_string(), Deadline::after(Duration::from_millis(1)), call).is_err());
        }
        let error = guard.run("one more", soon(), || Ok(())).unwrap_err();
        assert_eq!(error.reason(), Reason::Busy);
        drop(release);
    }

    #[test]
    fn two_at_once_under_one_key_are_no_hang() {
        let guard = Arc::new(Guard::default());
        let one = || {
            let guard = Arc::clone(&guard);
            thread::spawn(move || {
                let call = || {
                    thread::sleep(Duration::from_millis(5));
                    Ok(())
                };
                guard.run("the kubelet's configuration", Deadline::after(Duration::from_secs(60)), call)
            })
        };
        let threads: Vec<_> = (0..40).map(|_| one()).collect();
        assert!(threads.into_iter().all(|thread| thread.join().unwrap().is_ok()));
    }

    #[test]
    fn a_panic_is_an_error_and_frees_the_key() {
        let guard = Guard::default();
        let result: Result<()> = guard.run("k", Deadline::after(Duration::from_secs(5)), || panic!("x"));
        assert_eq!(result.unwrap_err().reason(), Reason::Panic);
        assert!(guard.run("k", Deadline::after(Duration::from_secs(5)), || Ok(())).is_ok());
    }
    fn told(answers: Vec<Result<u32>>) -> Vec<std::result::Result<u32, Reason>> {
        answers.into_iter().map(|answer| answer.map_err(|error| error.reason())).collect()
    }

    #[test]
    fn of_many_calls_those_that_hang_cost_themselves_only() {
        static HANGS: Mutex<()> = Mutex::new(());
        let call = |number: u32| {
            if number == 2 || number == 4 {
                drop(HANGS.lock());
            }
            Ok(number)
        };
        let guard = Guard::default();
        let run = || {
            let items = (0..6).map(|number| (number.to_string(), number)).collect();
            told(guard.run_each(items, &mut CallBudget::new(Deadline::after(Duration::from_secs(2))), call))
        };
        // A loaded machine may not run a thread at once: what is healthy answers in the end.
        let eventually = |expected: [std::result::Result<u32, Reason>; 6]| {
            let until = std::time::Instant::now() + Duration::from_secs(20);
            while run() != expected {
                assert!(std::time::Instant::now() < until, "never {expected:?}");
                thread::sleep(Duration::from_millis(1));
            }
        };
        let held = HANGS.lock().unwrap();
        let first = run();
        assert_eq!((first[2], first[4]), (Err(Reason::Timeout), Err(Reason::Timeout)));
        eventually([Ok(0), Ok(1), Err(Reason::Busy), Ok(3), Err(Reason::Busy), Ok(5)]);
        assert_eq!(guard.under_way.lock().len(), 2, "two threads hang, however often they are asked for");
        drop(held);
        eventually([0, 1, 2, 3, 4, 5].map(Ok));
    }

    #[test]
    fn of_many_calls_one_may_panic_or_fail() {
        let call = |number: u32| match number {
            1 => panic!("x"),
            3 => Err(Error::absent("not there")),
            _ => Ok(number),
        };
        let guard = Guard::default();
        let run = |count: u32| {
            let items = (0..count).map(|number| (number.to_string(), number)).collect();
            told(guard.run_each(items, &mut CallBudget::new(Deadline::after(Duration::from_secs(60))), call))
        };
        assert_eq!(run(5), [Ok(0), Err(Reason::Panic), Ok(2), Err(Reason::Absent), Ok(4)]);
        assert_eq!(run(0), []);
        assert!(guard.under_way.lock().is_empty());
    }
}
