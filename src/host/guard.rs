//! Runs a system call that may never return, so that it costs one thread and never the caller.
//!
//! A thread stuck in uninterruptible sleep cannot be killed. What can be done is to wait for it only until a deadline, to
//! keep at most one such call per key, and to keep few of them altogether. node_exporter runs `statfs` in the request
//! path; one dead NFS server there loses every metric of the node.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use super::Deadline;
use crate::error::{Error, Reason, Result};

/// More stuck threads than this are never made: the node has a larger problem by then, and we must not add to it.
const MOST_STUCK: usize = 8;

/// Calls under way, by key.
#[derive(Default)]
pub(super) struct Guard {
    under_way: Arc<Mutex<HashSet<String>>>,
}

impl Guard {
    /// Runs `call` on a thread of its own and waits for it until `deadline`.
    pub(super) fn run<T: Send + 'static>(
        &self,
        key: &str,
        deadline: Deadline,
        call: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        {
            let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
            if under_way.len() >= MOST_STUCK {
                return Err(Error::new(Reason::Busy, format!("{key}: {MOST_STUCK} earlier calls still hang")));
            }
            if !under_way.insert(key.to_owned()) {
                return Err(Error::new(Reason::Busy, format!("{key}: an earlier call still hangs")));
            }
        }
        let finished = Finished { key: key.to_owned(), under_way: Arc::clone(&self.under_way) };
        let (sender, receiver) = mpsc::sync_channel(1);
        thread::Builder::new()
            .name("guarded-call".into())
            .stack_size(256 << 10)
            .spawn(move || {
                let result = call();
                drop(finished);
                // The receiver is gone if the deadline passed first.
                let _ = sender.send(result);
            })
            .map_err(|error| Error::os(format_args!("{key}: thread"), &error))?;
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

/// Takes the key out again when the call is over, however it ended.
struct Finished {
    key: String,
    under_way: Arc<Mutex<HashSet<String>>>,
}

impl Drop for Finished {
    fn drop(&mut self) {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

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
    fn a_panic_is_an_error_and_frees_the_key() {
        let guard = Guard::default();
        let result: Result<()> = guard.run("k", Deadline::after(Duration::from_secs(5)), || panic!("x"));
        assert_eq!(result.unwrap_err().reason(), Reason::Panic);
        assert!(guard.run("k", Deadline::after(Duration::from_secs(5)), || Ok(())).is_ok());
    }
}
