//! What is to be done later, in order of time.

use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Debug)]
pub(crate) struct Timers<T> {
    pending: BTreeMap<(Duration, u64), T>,
    sequence: u64,
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Self { pending: BTreeMap::new(), sequence: 0 }
    }
}

impl<T> Timers<T> {
    pub(crate) fn push(&mut self, at: Duration, what: T) {
        self.sequence += 1;
        self.pending.insert((at, self.sequence), what);
    }

    /// The first thing that is due.
    pub(crate) fn pop(&mut self, now: Duration) -> Option<T> {
        let first = self.pending.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    pub(crate) fn next(&self) -> Option<Duration> {
        self.pending.keys().next().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_come_in_order_of_time_then_of_arrival() {
        let mut timers = Timers::default();
        for (seconds, what) in [(2, "c"), (1, "a"), (1, "b")] {
            timers.push(Duration::from_secs(seconds), what);
        }
        let mut due = |seconds| timers.pop(Duration::from_secs(seconds));
        assert_eq!([due(0), due(1), due(1), due(1), due(2)], [None, Some("a"), Some("b"), None, Some("c")]);
    }
}
