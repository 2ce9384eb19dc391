//! Exponential back-off as upstream's `flowcontrol.Backoff`: doubles on use, forgets after twice the maximum.

use std::time::Duration;

use jiff::Timestamp;

pub(crate) const INITIAL: Duration = Duration::from_secs(10);
pub(crate) const MAXIMUM: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Backoff {
    delay: Duration,
    updated: Option<Timestamp>,
}

impl Backoff {
    /// When waiting since `since` ends, if it has not ended by `now`.
    pub(crate) fn blocks_until(&self, since: Timestamp, now: Timestamp) -> Option<Timestamp> {
        if self.is_expired(since) {
            return None;
        }
        let until = since + self.delay;
        (until > now).then_some(until)
    }

    /// Counts one more attempt. `since` is what it follows: a long quiet time before it starts over.
    pub(crate) fn advance(&mut self, since: Timestamp, now: Timestamp, maximum: Duration) {
        self.delay =
            if self.is_expired(since) { INITIAL.min(maximum) } else { (self.delay * 2).min(maximum) };
        self.updated = Some(now);
    }

    pub(crate) fn delay(&self) -> Duration {
        self.delay
    }

    fn is_expired(&self, since: Timestamp) -> bool {
        self.updated.is_none_or(|updated| since.duration_since(updated).as_secs() > 2 * 300)
    }
}

/// A duration as Go prints it, to the second: `10s`, `1m20s`, `5m0s`.
pub(crate) fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_the_maximum_and_start_over_after_a_long_run() {
        let mut backoff = Backoff::default();
        let mut now = Timestamp::UNIX_EPOCH;
        for expected in [0, 10, 20, 40, 80, 160, 300, 300] {
            let exit = now;
            let until = backoff.blocks_until(exit, now).unwrap_or(now);
            assert_eq!(until.duration_since(now).as_secs(), expected);
            now = until;
            backoff.advance(exit, now, MAXIMUM);
        }
        let long_run = now + Duration::from_secs(601);
        assert_eq!(backoff.blocks_until(long_run, long_run), None);
    }

    #[test]
    fn durations_print_as_in_go() {
        for (seconds, text) in [(10, "10s"), (80, "1m20s"), (300, "5m0s"), (3600, "1h0m0s")] {
            assert_eq!(go_duration(Duration::from_secs(seconds)), text);
        }
    }
}
