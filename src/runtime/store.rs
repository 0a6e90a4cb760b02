//! What lies in the runtime's image store, kept for a while: to list it is most of the work of a poll, for the runtime
//! and for us, and it changes when somebody pulls or removes an image.

use std::collections::HashSet;
use std::time::{Duration, Instant};

/// An answer and when it was asked for.
#[derive(Debug)]
pub(super) struct Kept<T>(Option<(Instant, T)>);

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Kept(None)
    }
}

impl<T> Kept<T> {
    /// What is known, unless it was asked for this long ago, or no longer serves.
    pub(super) fn younger_than(&self, age: Duration, serves: impl FnOnce(&T) -> bool) -> Option<&T> {
        let (asked, answer) = self.0.as_ref()?;
        (asked.elapsed() < age && serves(answer)).then_some(answer)
    }

    pub(super) fn keep(&mut self, asked: Instant, answer: T) -> &T {
        &self.0.insert((asked, answer)).1
    }
}

/// The images, and those that containers ran when they were listed. Of another one nothing is known: it may have been
/// pulled for its container.
#[derive(Debug)]
pub(super) struct Listed<I> {
    pub(super) images: Vec<I>,
    used: HashSet<String>,
}

impl<I> Listed<I> {
    pub(super) fn new(images: Vec<I>, used: &HashSet<&str>) -> Self {
        Listed { images, used: used.iter().map(|&image| image.to_owned()).collect() }
    }

    pub(super) fn has_all(&self, used: &HashSet<&str>) -> bool {
        used.iter().all(|&image| self.used.contains(image))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_serves_until_it_is_old_or_a_container_runs_another_image() {
        let mut kept = Kept::default();
        let minute = Duration::from_secs(60);
        assert!(kept.younger_than(minute, |_| true).is_none());
        let then = HashSet::from(["sha256:a", "sha256:gone"]);
        kept.keep(Instant::now(), Listed::new(vec![1, 2], &then));
        let serves = |used: &[&str]| {
            let used = used.iter().copied().collect();
            kept.younger_than(minute, |listed| listed.has_all(&used)).is_some()
        };
        assert!(serves(&["sha256:a"]) && serves(&["sha256:a", "sha256:gone"]), "one that was not in the store, too");
        assert!(!serves(&["sha256:a", "sha256:b"]));
        assert!(kept.younger_than(Duration::ZERO, |_| true).is_none());
    }
}
