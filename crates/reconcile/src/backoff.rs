//! Exponential back-off.

use std::time::Duration;

/// Doubles from `base` to `max`.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    pub base: Duration,
    pub max: Duration,
}

impl Backoff {
    /// The default of upstream's controllers: 5 ms doubling to 1,000 s.
    pub const CONTROLLER: Self = Self { base: Duration::from_millis(5), max: Duration::from_secs(1_000) };
    /// For connections to the API server.
    pub const CONNECTION: Self = Self { base: Duration::from_millis(50), max: Duration::from_secs(30) };

    /// The delay after `failures` earlier failures.
    #[must_use]
    pub fn delay(&self, failures: u32) -> Duration {
        let factor = 1_u32.checked_shl(failures.min(31)).unwrap_or(u32::MAX);
        self.base.checked_mul(factor).map_or(self.max, |delay| delay.min(self.max))
    }

    /// [`Backoff::delay`], and up to half as much again by chance so that many clients spread out.
    #[must_use]
    pub fn jittered(&self, failures: u32) -> Duration {
        self.delay(failures).mul_f64(1.0 + rand::random::<f64>() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_up_to_its_limit() {
        let delays: Vec<u128> =
            [0, 1, 2, 17, 18, 40].map(|n| Backoff::CONTROLLER.delay(n).as_millis()).to_vec();
        assert_eq!(delays, [5, 10, 20, 655_360, 1_000_000, 1_000_000]);
    }
}
