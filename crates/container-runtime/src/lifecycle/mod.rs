//! What the runtime does to sandboxes and containers: make, start, stop, remove.

mod container;
mod sandbox;

use std::time::Duration;

/// How long a killed process may take to be gone: it may wait for a disk.
const KILL_TIMEOUT: Duration = Duration::from_secs(120);

/// How often a busy control group is tried again, and how long it is waited for each time.
const CGROUP_RETRIES: u32 = 50;
const CGROUP_RETRY_DELAY: Duration = Duration::from_millis(10);

/// Runs something that blocks where that is allowed.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
