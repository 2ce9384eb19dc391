//! The work queue: each key waits at most once, is never worked on by two workers at a time, and backs off on
//! its own after failures.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tokio::sync::Notify;

use crate::backoff::Backoff;
use crate::clock::SharedClock;

/// A deduplicating, rate-limited queue of keys. Clones share the queue.
pub struct Queue<K> {
    inner: Arc<Inner<K>>,
}

/// The `workqueue_*` metrics of a process, one series per queue name.
#[derive(Debug, Clone)]
pub struct QueueMetrics {
    depth: Family<NameLabel, Gauge>,
    adds: Family<NameLabel, Counter>,
    retries: Family<NameLabel, Counter>,
    queue_duration: Family<NameLabel, Histogram, fn() -> Histogram>,
    work_duration: Family<NameLabel, Histogram, fn() -> Histogram>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NameLabel {
    name: String,
}

struct Series {
    depth: Gauge,
    adds: Counter,
    retries: Counter,
    queue_duration: Histogram,
    work_duration: Histogram,
}

struct Inner<K> {
    clock: SharedClock,
    backoff: Backoff,
    series: Series,
    state: Mutex<State<K>>,
    changed: Notify,
}

struct State<K> {
    /// Keys ready to be worked on, with the time each became ready.
    ready: VecDeque<(K, Duration)>,
    /// Keys that are ready, or will be when the work on them ends.
    dirty: HashSet<K>,
    /// Keys being worked on, with the time that began.
    processing: HashMap<K, Duration>,
    failures: HashMap<K, u32>,
    /// Keys to be added later, by due time; the number keeps equal times apart.
    delayed: BTreeMap<(Duration, u64), K>,
    delayed_at: HashMap<K, (Duration, u64)>,
    sequence: u64,
    closed: bool,
}

impl QueueMetrics {
    /// Makes the metrics and puts them into `registry`.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("workqueue_depth", "Current depth of workqueue", metrics.depth.clone());
        registry.register("workqueue_adds", "Adds handled by workqueue", metrics.adds.clone());
        registry.register("workqueue_retries", "Retries handled by workqueue", metrics.retries.clone());
        registry.register(
            "workqueue_queue_duration_seconds",
            "Time an item stays in workqueue before being requested",
            metrics.queue_duration.clone(),
        );
        registry.register(
            "workqueue_work_duration_seconds",
            "Time processing an item from workqueue takes",
            metrics.work_duration.clone(),
        );
        metrics
    }

    fn series(&self, name: &str) -> Series {
        let label = NameLabel { name: name.to_owned() };
        Series {
            depth: self.depth.get_or_create_owned(&label),
            adds: self.adds.get_or_create_owned(&label),
            retries: self.retries.get_or_create_owned(&label),
            queue_duration: self.queue_duration.get_or_create_owned(&label),
            work_duration: self.work_duration.get_or_create_owned(&label),
        }
    }
}

impl Default for QueueMetrics {
    fn default() -> Self {
        Self {
            depth: Family::default(),
            adds: Family::default(),
            retries: Family::default(),
            queue_duration: Family::new_with_constructor(duration_histogram),
            work_duration: Family::new_with_constructor(duration_histogram),
        }
    }
}

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<K> fmt::Debug for Queue<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.inner.lock();
        f.debug_struct("Queue")
            .field("ready", &state.ready.len())
            .field("processing", &state.processing.len())
            .field("delayed", &state.delayed.len())
            .finish()
    }
}

impl<K: Clone + Eq + Hash> Queue<K> {
    /// A queue with the back-off of upstream's controllers.
    #[must_use]
    pub fn new(name: &str, clock: SharedClock, metrics: &QueueMetrics) -> Self {
        Self::with_backoff(name, clock, metrics, Backoff::CONTROLLER)
    }

    #[must_use]
    pub fn with_backoff(name: &str, clock: SharedClock, metrics: &QueueMetrics, backoff: Backoff) -> Self {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashSet::new(),
            processing: HashMap::new(),
            failures: HashMap::new(),
            delayed: BTreeMap::new(),
            delayed_at: HashMap::new(),
            sequence: 0,
            closed: false,
        };
        let series = metrics.series(name);
        Self {
            inner: Arc::new(Inner {
                clock,
                backoff,
                series,
                state: Mutex::new(state),
                changed: Notify::new(),
            }),
        }
    }

    /// Makes `key` ready, unless it is already waiting. A key being worked on becomes ready when that ends.
    pub fn add(&self, key: K) {
        let now = self.inner.clock.monotonic();
        let woke = self.inner.enqueue(&mut self.inner.lock(), key, now);
        if woke {
            self.inner.changed.notify_one();
        }
    }

    /// Makes `key` ready after `delay`, or earlier if it was asked for earlier.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let due = self.inner.clock.monotonic() + delay;
        {
            let state = &mut *self.inner.lock();
            if state.closed {
                return;
            }
            if let Some(at) = state.delayed_at.get(&key) {
                if at.0 <= due {
                    return;
                }
                state.delayed.remove(at);
            }
            state.sequence += 1;
            let at = (due, state.sequence);
            state.delayed.insert(at, key.clone());
            state.delayed_at.insert(key, at);
        }
        self.inner.changed.notify_one();
    }

    /// Makes `key` ready after its own back-off, which doubles each time until [`Queue::forget`].
    pub fn add_rate_limited(&self, key: K) {
        let failures = {
            let state = &mut *self.inner.lock();
            let failures = state.failures.entry(key.clone()).or_insert(0);
            *failures = failures.saturating_add(1);
            *failures - 1
        };
        self.inner.series.retries.inc();
        self.add_after(key, self.inner.backoff.delay(failures));
    }

    /// Ends the back-off of `key`.
    pub fn forget(&self, key: &K) {
        self.inner.lock().failures.remove(key);
    }

    /// How often `key` has failed since it was last forgotten.
    #[must_use]
    pub fn failures(&self, key: &K) -> u32 {
        self.inner.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// How many keys are ready.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.lock().ready.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits for a key; the caller must say [`Queue::done`] with it. `None` once the queue is closed and drained.
    pub async fn next(&self) -> Option<K> {
        loop {
            let changed = self.inner.changed.notified();
            let deadline = match self.take() {
                Taken::Key(key) => return Some(key),
                Taken::Closed => {
                    self.inner.changed.notify_one();
                    return None;
                }
                Taken::Nothing(deadline) => deadline,
            };
            match deadline {
                None => changed.await,
                Some(due) => {
                    let wait = due.saturating_sub(self.inner.clock.monotonic());
                    tokio::select! {
                        () = changed => {}
                        () = self.inner.clock.sleep(wait) => {}
                    }
                }
            }
        }
    }

    /// Ends the work on `key`; if it was added meanwhile, it becomes ready again.
    pub fn done(&self, key: &K) {
        let now = self.inner.clock.monotonic();
        let state = &mut *self.inner.lock();
        if let Some(began) = state.processing.remove(key) {
            self.inner.series.work_duration.observe(now.saturating_sub(began).as_secs_f64());
        }
        if let Some(key) = state.dirty.get(key) {
            state.ready.push_back((key.clone(), now));
            self.inner.series.depth.inc();
            self.inner.changed.notify_one();
        }
    }

    /// Refuses further keys; workers get what is ready, then `None`.
    pub fn close(&self) {
        {
            let state = &mut *self.inner.lock();
            state.closed = true;
            state.delayed.clear();
            state.delayed_at.clear();
        }
        self.inner.changed.notify_one();
    }

    fn take(&self) -> Taken<K> {
        let now = self.inner.clock.monotonic();
        let state = &mut *self.inner.lock();
        while let Some(entry) = state.delayed.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let key = entry.remove();
            state.delayed_at.remove(&key);
            self.inner.enqueue(state, key, now);
        }
        let Some((key, since)) = state.ready.pop_front() else {
            if state.closed {
                return Taken::Closed;
            }
            return Taken::Nothing(state.delayed.first_key_value().map(|(at, _)| at.0));
        };
        self.inner.series.depth.dec();
        self.inner.series.queue_duration.observe(now.saturating_sub(since).as_secs_f64());
        state.dirty.remove(&key);
        state.processing.insert(key.clone(), now);
        if !state.ready.is_empty() {
            self.inner.changed.notify_one();
        }
        Taken::Key(key)
    }
}

enum Taken<K> {
    Key(K),
    /// Nothing is ready; the time the next delayed key is due.
    Nothing(Option<Duration>),
    Closed,
}

impl<K> Inner<K> {
    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Eq + Hash> Inner<K> {
    /// True if the key is now ready and a worker should be told.
    fn enqueue(&self, state: &mut State<K>, key: K, now: Duration) -> bool {
        if state.closed || state.dirty.contains(&key) {
            return false;
        }
        self.series.adds.inc();
        let busy = state.processing.contains_key(&key);
        if !busy {
            state.ready.push_back((key.clone(), now));
            self.series.depth.inc();
        }
        state.dirty.insert(key);
        !busy
    }
}

fn duration_histogram() -> Histogram {
    Histogram::new(exponential_buckets(1e-8, 10.0, 12))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::RealClock;

    fn queue() -> Queue<&'static str> {
        Queue::new("test", RealClock::shared(), &QueueMetrics::default())
    }

    #[tokio::test]
    async fn a_key_added_twice_is_worked_on_once() {
        let queue = queue();
        queue.add("a");
        queue.add("b");
        queue.add("a");
        assert_eq!(queue.next().await, Some("a"));
        assert_eq!(queue.next().await, Some("b"));
        assert!(queue.is_empty());
    }

    #[tokio::test]
    async fn a_key_added_while_worked_on_waits_for_the_end_of_that_work() {
        let queue = queue();
        queue.add("a");
        let key = queue.next().await.unwrap();
        queue.add("a");
        queue.add("a");
        assert!(queue.is_empty());
        queue.done(&key);
        assert_eq!(queue.len(), 1);
        assert_eq!(queue.next().await, Some("a"));
    }

    #[tokio::test]
    async fn the_earliest_of_several_delays_wins() {
        let queue = queue();
        queue.add_after("a", Duration::from_secs(3_600));
        queue.add_after("a", Duration::from_millis(1));
        queue.add_after("a", Duration::from_secs(60));
        assert_eq!(queue.next().await, Some("a"));
        queue.done(&"a");
        assert!(queue.inner.lock().delayed.is_empty());
    }

    #[tokio::test]
    async fn every_waiting_worker_is_woken() {
        let queue = queue();
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.next().await })
            })
            .collect();
        for key in ["a", "b", "c"] {
            queue.add(key);
        }
        queue.close();
        let mut got = Vec::new();
        for worker in workers {
            got.push(worker.await.unwrap());
        }
        got.sort_unstable();
        assert_eq!(got, [None, Some("a"), Some("b"), Some("c")]);
    }

    #[tokio::test]
    async fn failures_are_counted_until_forgotten() {
        let queue = queue();
        queue.add_rate_limited("a");
        queue.add_rate_limited("a");
        assert_eq!(queue.failures(&"a"), 2);
        queue.forget(&"a");
        assert_eq!(queue.failures(&"a"), 0);
        assert_eq!(queue.next().await, Some("a"));
    }
}
