//! Time as a value passed in, so that one seed replays one run.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// Wall time, monotonic time and sleeping.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Wall time, for what is written into objects.
    fn now(&self) -> Timestamp;
    /// Time since an arbitrary start, never going back: for timeouts and back-off.
    fn monotonic(&self) -> Duration;
    /// Ends after `duration` of monotonic time.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

/// A clock as components hold it.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's clock.
#[derive(Debug)]
pub struct RealClock {
    start: Instant,
}

/// A clock that starts at a chosen time and runs with the runtime's timer. Under a paused tokio runtime that is
/// virtual time; [`SimulatedClock::jump`] steps the wall clock alone, as an administrator or NTP would.
#[derive(Debug)]
pub struct SimulatedClock {
    epoch: Timestamp,
    start: Instant,
    skew_milliseconds: AtomicI64,
}

impl RealClock {
    /// A clock ready to be shared.
    #[must_use]
    pub fn shared() -> SharedClock {
        Arc::new(Self { start: Instant::now() })
    }
}

impl Clock for RealClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

impl SimulatedClock {
    #[must_use]
    pub fn new(epoch: Timestamp) -> Self {
        Self { epoch, start: Instant::now(), skew_milliseconds: AtomicI64::new(0) }
    }

    /// Moves the wall clock by `milliseconds`, leaving monotonic time alone.
    pub fn jump(&self, milliseconds: i64) {
        self.skew_milliseconds.fetch_add(milliseconds, Ordering::Relaxed);
    }
}

impl Clock for SimulatedClock {
    fn now(&self) -> Timestamp {
        let skew = SignedDuration::from_millis(self.skew_milliseconds.load(Ordering::Relaxed));
        let elapsed = SignedDuration::try_from(self.start.elapsed()).unwrap_or(SignedDuration::MAX);
        self.epoch.saturating_add(elapsed + skew).unwrap_or(self.epoch)
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_jump_moves_the_wall_clock_only() {
        let clock = SimulatedClock::new(Timestamp::from_second(1_000).unwrap());
        clock.jump(3_600_000);
        assert!(clock.now().as_second() >= 4_600);
        assert!(clock.monotonic() < Duration::from_secs(60));
    }
}
