//! Nodes without machines: they register, send heartbeats and run pods in name only, for scale tests and for
//! planning capacity.
//!
//! One task serves all of them from one watch on nodes and one on pods. What a pod's status becomes is decided
//! by pure functions in [`status`]; this crate never starts anything. Start reading at [`run`].

mod agent;
mod node;
mod status;
mod timers;

pub use agent::{run, run_with};

use std::collections::BTreeMap;
use std::time::Duration;

/// Set on a node to `off`, its heart stops and its pods freeze, as if the power were cut; anything else, or
/// nothing, turns it on again.
pub const POWER_ANNOTATION: &str = "hollow.coracle.dev/power";

/// Set on a pod: how long it runs until it succeeds, in seconds.
pub const RUN_SECONDS_ANNOTATION: &str = "hollow.coracle.dev/run-seconds";

/// What hollow nodes are like.
#[derive(Debug, Clone)]
pub struct Options {
    /// Nodes are named by this and a number.
    pub name_prefix: String,
    /// Between a pod's arrival at its node and its running.
    pub startup_latency: Duration,
    /// How long pods run that are not restarted forever, until they succeed.
    pub run_time: Duration,
    /// Between a pod's deletion and its end; its own grace period is the limit.
    pub stop_latency: Duration,
    /// The share of pods, from 0 to 1, whose containers fail at the start.
    pub failure_rate: f64,
    /// Between two renewals of a node's lease.
    pub heartbeat_interval: Duration,
    pub capacity: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    /// Nodes are spread over so many zones; none when 0.
    pub zones: usize,
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        let capacity = [("cpu", "32"), ("memory", "256Gi"), ("ephemeral-storage", "1Ti"), ("pods", "110")];
        Self {
            name_prefix: "hollow-".to_owned(),
            startup_latency: Duration::ZERO,
            run_time: Duration::from_secs(1),
            stop_latency: Duration::ZERO,
            failure_rate: 0.0,
            heartbeat_interval: Duration::from_secs(10),
            capacity: capacity
                .into_iter()
                .map(|(name, amount)| (name.to_owned(), amount.to_owned()))
                .collect(),
            labels: BTreeMap::new(),
            zones: 0,
            seed: 0,
        }
    }
}
