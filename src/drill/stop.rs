//! The signals that end a drill.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::{Result, tried};

/// Whether a signal asked for the end.
pub(super) struct Stop {
    signals: Receiver<()>,
    asked: std::cell::Cell<bool>,
}

impl Stop {
    /// From here on SIGINT, SIGTERM, SIGHUP and SIGQUIT end the drill orderly.
    pub(super) fn install() -> Result<Self> {
        let runtime = tried("signals", tokio::runtime::Builder::new_current_thread().enable_io().build())?;
        let (tell, signals) = channel();
        for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()] {
            let mut stream = {
                let _inside = runtime.enter();
                tried("signals", signal(kind))?
            };
            let tell = tell.clone();
            runtime.spawn(async move { while stream.recv().await.is_some() && tell.send(()).is_ok() {} });
        }
        std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
        Ok(Stop { signals, asked: false.into() })
    }

    pub(super) fn asked(&self) -> bool {
        self.wait(Duration::ZERO)
    }

    /// Waits for this long or until a signal came; true if one came at any time.
    pub(super) fn wait(&self, patience: Duration) -> bool {
        if !self.asked.get() {
            let timeout = self.signals.recv_timeout(patience) == Err(RecvTimeoutError::Timeout);
            self.asked.set(!timeout);
        }
        self.asked.get()
    }
}
