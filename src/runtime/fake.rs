//! A runtime that is not there: answers given by a test.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::{Inventory, Poll, Runtime};
use crate::error::Result;

type Answer = dyn Fn() -> Result<Arc<Inventory>> + Send + Sync;

/// What answers in place of a socket, if a test put something there.
#[derive(Clone, Default)]
pub(super) struct Fake(Option<Arc<Answer>>);

impl Fake {
    pub(super) fn answer(&self) -> Option<Result<Poll>> {
        let began = Instant::now();
        self.0
            .as_ref()
            .map(|answer| answer().map(|inventory| Poll { inventory, began, ended: Instant::now(), server: None }))
    }
}

impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Fake(answers)" } else { "Fake(none)" })
    }
}

impl Runtime {
    /// A runtime that always answers this, for tests.
    pub fn fixed(answer: Result<Inventory>) -> Self {
        let answer = answer.map(Arc::new);
        Self::answering(move || answer.clone())
    }

    /// A runtime that answers anew each time it is asked, for tests.
    pub fn answering(answer: impl Fn() -> Result<Arc<Inventory>> + Send + Sync + 'static) -> Self {
        Runtime { fake: Fake(Some(Arc::new(answer))), ..Runtime::default() }
    }

    /// This runtime for those who wait for no name, for tests.
    #[must_use]
    pub fn that_names_at_once(self) -> Self {
        self.memory().awaited = std::time::Duration::ZERO;
        self
    }
}
