//! One piece of work at a time, whose result is shared by everybody who waits for it.
//!
//! Modes run at the same time, each on a thread of its own, and several need the same look at the machine. The first to
//! ask makes it, on its own thread; the others wait for that one, each until its own deadline.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::Deadline;

/// A result with its times.
#[derive(Clone, Debug)]
pub struct Landed<T> {
    /// When the work began: what it saw was so at some moment after that.
    pub began: Instant,
    /// When it ended.
    pub ended: Instant,
    /// What came of it.
    pub value: T,
}

/// The work under way, and the last result.
#[derive(Debug)]
pub struct SingleFlight<T> {
    state: Mutex<State<T>>,
    landed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    under_way: bool,
    runs: u64,
    last: Option<Landed<T>>,
}

impl<T> Default for SingleFlight<T> {
    fn default() -> Self {
        SingleFlight { state: Mutex::new(State { under_way: false, runs: 0, last: None }), landed: Condvar::new() }
    }
}

/// Ends the work, however it ends: after a panic the next caller works again.
struct Flight<'a, T> {
    shared: &'a SingleFlight<T>,
    result: Option<Landed<T>>,
}

impl<T> Drop for Flight<'_, T> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.under_way = false;
        if self.result.is_some() {
            state.last = self.result.take();
        }
        drop(state);
        self.shared.landed.notify_all();
    }
}

impl<T: Clone> SingleFlight<T> {
    /// The result of work that began at `since` or later: the last one, the one under way, or one that is made here.
    /// `None` if the work of another thread did not end before `deadline`.
    pub fn since(&self, since: Instant, deadline: Deadline, work: impl FnOnce() -> T) -> Option<Landed<T>> {
        self.get(deadline, |last, _| last.began >= since, work)
    }

    /// As [`SingleFlight::since`], with a rule of the caller's for which result it takes. The rule is also told whether
    /// the caller has waited for that result.
    pub fn get(
        &self,
        deadline: Deadline,
        usable: impl Fn(&Landed<T>, bool) -> bool,
        work: impl FnOnce() -> T,
    ) -> Option<Landed<T>> {
        let mut state = self.lock();
        let mut waited = false;
        loop {
            if !state.under_way {
                match &state.last {
                    Some(last) if usable(last, waited) => return Some(last.clone()),
                    _ => break,
                }
            }
            let time = self.landed.wait_timeout_while(state, deadline.remaining(), |state| state.under_way);
            let timeout;
            (state, timeout) = time.unwrap_or_else(PoisonError::into_inner);
            if timeout.timed_out() && state.under_way {
                return None;
            }
            waited = true;
        }
        state.under_way = true;
        state.runs += 1;
        drop(state);
        let mut flight = Flight { shared: self, result: None };
        let began = Instant::now();
        let value = work();
        let result = Landed { began, ended: Instant::now(), value };
        flight.result = Some(result.clone());
        Some(result)
    }

    /// Forgets the last result.
    pub fn forget(&self) {
        self.lock().last = None;
    }
}

impl<T> SingleFlight<T> {
    /// How often somebody worked.
    pub fn runs(&self) -> u64 {
        self.lock().runs
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, Barrier};
    use std::thread;
    use std::time::Duration;

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(10))
    }

    #[test]
    fn many_at_once_cost_one_piece_of_work() {
        let (flight, runs) = (Arc::new(SingleFlight::default()), Arc::new(AtomicU64::new(0)));
        let (since, barrier) = (Instant::now(), Arc::new(Barrier::new(8)));
        let ask = || {
            let (flight, runs, barrier) = (Arc::clone(&flight), Arc::clone(&runs), Arc::clone(&barrier));
            thread::spawn(move || {
                barrier.wait();
                let work = || {
                    thread::sleep(Duration::from_millis(50));
                    runs.fetch_add(1, Ordering::Relaxed) + 1
                };
                flight.since(since, soon(), work).unwrap().value
            })
        };
        let threads: Vec<_> = (0..8).map(|_| ask()).collect();
        assert!(threads.into_iter().all(|thread| thread.join().unwrap() == 1));
        assert_eq!(runs.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn what_began_too_early_is_made_again() {
        let flight = SingleFlight::default();
        let first = flight.since(Instant::now(), soon(), || 1).unwrap();
        assert_eq!(flight.since(first.began, soon(), || 2).unwrap().value, 1);
        assert_eq!(flight.since(first.ended + Duration::from_nanos(1), soon(), || 2).unwrap().value, 2);
        flight.forget();
        assert_eq!(flight.since(first.began, soon(), || 3).unwrap().value, 3);
    }

    #[test]
    fn nobody_waits_past_the_deadline() {
        let flight = Arc::new(SingleFlight::default());
        let (started, hung) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
        let worker = thread::spawn({
            let (flight, started, hung) = (Arc::clone(&flight), Arc::clone(&started), Arc::clone(&hung));
            move || {
                let work = || {
                    started.wait();
                    hung.wait();
                };
                flight.since(Instant::now(), soon(), work);
            }
        });
        started.wait();
        let none = flight.since(Instant::now(), Deadline::after(Duration::from_millis(20)), || ());
        assert!(none.is_none());
        hung.wait();
        worker.join().unwrap();
    }

    #[test]
    fn after_a_panic_the_next_one_works() {
        let flight = Arc::new(SingleFlight::default());
        let panicking = Arc::clone(&flight);
        let thread = thread::spawn(move || panicking.since(Instant::now(), soon(), || panic!("on purpose")));
        assert!(thread.join().is_err());
        assert_eq!(flight.since(Instant::now(), soon(), || 7).unwrap().value, 7);
    }

    #[test]
    fn a_rule_of_the_callers_knows_who_waited() {
        let flight = SingleFlight::default();
        flight.since(Instant::now(), soon(), || 1).unwrap();
        assert_eq!(flight.get(soon(), |_, waited| waited, || 2).unwrap().value, 2, "nobody waited for the 1");
    }
}
