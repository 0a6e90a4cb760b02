//! Runs the probes of the modes, each on a task of its own, and starts one anew that panicked.
//!
//! This is the only place that starts work between scrapes. What runs here asks others and counts what came of it; what
//! is *read* belongs to a scrape (see [`crate::scrape`]).

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::error::{Error, Reason};
use crate::host::Host;
use crate::modes::{Collector, Probe};

/// How long a probe that panicked is left alone: a bug that comes back at once must not spin.
const PAUSE: Duration = Duration::from_secs(10);

/// The probes that run. Dropped, they end.
#[derive(Debug, Default)]
pub struct Probes {
    tasks: JoinSet<()>,
}

impl Probes {
    /// Starts every probe of this collector.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(&mut self, host: &Arc<Host>, collector: &dyn Collector) {
        for probe in collector.probes() {
            self.tasks.spawn(supervise(probe, Arc::clone(host)));
        }
    }

    /// How many of them run.
    pub fn running(&self) -> usize {
        self.tasks.len()
    }
}

async fn supervise(probe: Arc<dyn Probe>, host: Arc<Host>) {
    loop {
        // A task of its own turns a panic into an answer; in a set, it ends with us.
        let mut work = JoinSet::from_iter([Arc::clone(&probe).run(Arc::clone(&host))]);
        match work.join_next().await {
            Some(Err(error)) if error.is_panic() => {
                tracing::error!(probe = probe.name(), %error, "a probe panicked and is started again");
                probe.panicked(Error::new(Reason::Panic, format!("{}: the probe panicked: {error}", probe.name())));
                tokio::time::sleep(PAUSE).await;
            }
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Result;
    use crate::host::Roots;
    use crate::metric::Samples;
    use crate::modes::{Context, Work};
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Default)]
    struct Odd {
        runs: AtomicU32,
        told: AtomicU32,
    }

    impl Probe for Odd {
        fn name(&self) -> &'static str {
            "odd"
        }

        fn run(self: Arc<Self>, _: Arc<Host>) -> Work {
            Box::pin(async move {
                assert!(self.runs.fetch_add(1, Ordering::Relaxed) > 0, "the first time");
                std::future::pending::<()>().await;
            })
        }

        fn panicked(&self, error: Error) {
            assert_eq!(error.reason(), Reason::Panic);
            assert!(error.to_string().contains("odd"), "{error}");
            self.told.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Mode(Arc<Odd>);

    impl Collector for Mode {
        fn collect(&self, _: Context<'_>) -> Result<Samples> {
            Ok(Samples::new())
        }

        fn probes(&self) -> Vec<Arc<dyn Probe>> {
            vec![Arc::clone(&self.0) as Arc<dyn Probe>]
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_told_and_the_probe_starts_anew() {
        let odd = Arc::new(Odd::default());
        let mut background = Probes::default();
        background.start(&Arc::new(Host::new(Roots::default())), &Mode(Arc::clone(&odd)));
        tokio::time::sleep(PAUSE / 2).await;
        assert_eq!((odd.runs.load(Ordering::Relaxed), odd.told.load(Ordering::Relaxed)), (1, 1));
        tokio::time::sleep(PAUSE).await;
        assert_eq!((odd.runs.load(Ordering::Relaxed), background.running()), (2, 1));
        let shared = Arc::downgrade(&odd);
        drop(background);
        tokio::time::sleep(PAUSE).await;
        drop(odd);
        assert!(shared.upgrade().is_none(), "nothing holds on to a probe that has ended");
    }
}
