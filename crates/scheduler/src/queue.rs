//! Pods waiting for a node: active ones by priority, those backing off, those that no node suits until
//! something changes, and gated ones. Time is passed in, as time since some start.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::pod::{PodInfo, Uid};

/// A pod that no event released is tried again after this long.
const MAX_UNSCHEDULABLE: Duration = Duration::from_secs(300);

/// How a pod has fared so far.
#[derive(Debug, Clone)]
pub struct QueuedPod {
    pub pod: Arc<PodInfo>,
    pub attempts: u32,
    /// When it came into the queue (anew, after a failure).
    pub since: Duration,
    pub first_seen: Duration,
    /// The plugins that turned it away last.
    pub plugins: BTreeSet<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Active(ActiveKey),
    Backoff(Duration),
    Unschedulable(Duration),
    Gated,
    /// Being scheduled or bound.
    InFlight,
}

/// Highest priority first, then who waits longest.
type ActiveKey = (Reverse<i32>, Duration, u64);

#[derive(Debug)]
struct Entry {
    queued: QueuedPod,
    place: Place,
    sequence: u64,
    /// What its place was when it was last popped: an event meanwhile means a try at once.
    popped_at: u64,
}

#[derive(Debug)]
pub struct Queue {
    entries: HashMap<Uid, Entry>,
    active: BTreeSet<(ActiveKey, Uid)>,
    backoff: BTreeSet<(Duration, u64, Uid)>,
    unschedulable: BTreeSet<(Duration, u64, Uid)>,
    sequence: u64,
    /// Counts the events that moved pods.
    moves: u64,
    initial_backoff: Duration,
    max_backoff: Duration,
}

impl Queue {
    pub fn new(initial_backoff: Duration, max_backoff: Duration) -> Self {
        Self {
            entries: HashMap::new(),
            active: BTreeSet::new(),
            backoff: BTreeSet::new(),
            unschedulable: BTreeSet::new(),
            sequence: 0,
            moves: 0,
            initial_backoff,
            max_backoff,
        }
    }

    /// A new pod. `gated` keeps it out until it is updated.
    pub fn add(&mut self, pod: Arc<PodInfo>, gated: bool, now: Duration) {
        let uid = Arc::clone(&pod.uid);
        self.take(&uid);
        self.sequence += 1;
        let queued = QueuedPod { pod, attempts: 0, since: now, first_seen: now, plugins: BTreeSet::new() };
        let entry = Entry { queued, place: Place::Gated, sequence: self.sequence, popped_at: self.moves };
        self.entries.insert(Arc::clone(&uid), entry);
        if !gated {
            self.put_active(&uid);
        }
    }

    /// A waiting pod changed. `changed` says that the change may make it schedulable.
    pub fn update(&mut self, pod: Arc<PodInfo>, gated: bool, changed: bool, now: Duration) {
        let uid = Arc::clone(&pod.uid);
        let Some(entry) = self.entries.get_mut(&uid) else { return self.add(pod, gated, now) };
        entry.queued.pod = pod;
        match entry.place {
            Place::InFlight | Place::Backoff(_) => {}
            Place::Gated if gated => {}
            Place::Gated => self.put_active(&uid),
            _ if gated => {
                self.unplace(&uid);
            }
            Place::Active(_) => self.put_active(&uid),
            Place::Unschedulable(_) if changed => self.release(&uid, now),
            Place::Unschedulable(_) => {}
        }
    }

    pub fn remove(&mut self, uid: &str) -> Option<QueuedPod> {
        self.take(uid)
    }

    pub fn get(&self, uid: &str) -> Option<&QueuedPod> {
        self.entries.get(uid).map(|entry| &entry.queued)
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many pods could be popped now.
    pub fn active_len(&self) -> usize {
        self.active.len()
    }

    /// The next pod to schedule; it stays in the queue as being in flight until it is done or comes back.
    pub fn pop(&mut self, now: Duration) -> Option<QueuedPod> {
        self.flush(now);
        let (_, uid) = self.active.pop_first()?;
        let moves = self.moves;
        let entry = self.entries.get_mut(&uid)?;
        entry.place = Place::InFlight;
        entry.popped_at = moves;
        entry.queued.attempts = entry.queued.attempts.saturating_add(1);
        Some(entry.queued.clone())
    }

    /// A pod that was popped found no node: it waits for an event, or backs off when there was one already.
    pub fn unschedulable(&mut self, uid: &str, plugins: BTreeSet<&'static str>, now: Duration) {
        let moves = self.moves;
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.queued.plugins = plugins;
        entry.queued.since = now;
        let missed_event = entry.popped_at != moves;
        let uid = Arc::clone(&entry.queued.pod.uid);
        if missed_event {
            self.put_backoff(&uid);
        } else {
            self.put_unschedulable(&uid);
        }
    }

    /// A pod that was popped could not be handled for a reason of its own, such as a failed request.
    pub fn retry(&mut self, uid: &str, now: Duration) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.queued.plugins.clear();
        entry.queued.since = now;
        let uid = Arc::clone(&entry.queued.pod.uid);
        self.put_backoff(&uid);
    }

    /// Something happened: pods that `hint` picks among the unschedulable are tried again.
    pub fn on_event(&mut self, now: Duration, hint: impl Fn(&QueuedPod) -> bool) {
        self.moves += 1;
        let picked: Vec<Uid> = self
            .unschedulable
            .iter()
            .filter(|(_, _, uid)| self.entries.get(uid).is_some_and(|entry| hint(&entry.queued)))
            .map(|(_, _, uid)| Arc::clone(uid))
            .collect();
        for uid in picked {
            self.release(&uid, now);
        }
    }

    pub fn has_unschedulable(&self) -> bool {
        !self.unschedulable.is_empty()
    }

    /// When [`Queue::pop`] may next find something without any event; none when it need not be asked.
    pub fn next_deadline(&self) -> Option<Duration> {
        if !self.active.is_empty() {
            return Some(Duration::ZERO);
        }
        let backoff = self.backoff.first().map(|(at, _, _)| *at);
        let stale = self.unschedulable.first().map(|(since, _, _)| *since + MAX_UNSCHEDULABLE);
        backoff.into_iter().chain(stale).min()
    }

    fn flush(&mut self, now: Duration) {
        while let Some((at, _, uid)) = self.backoff.first()
            && *at <= now
        {
            let uid = Arc::clone(uid);
            self.put_active(&uid);
        }
        while let Some((since, _, uid)) = self.unschedulable.first()
            && *since + MAX_UNSCHEDULABLE <= now
        {
            let uid = Arc::clone(uid);
            self.release(&uid, now);
        }
    }

    /// Out of the unschedulable ones: to the active ones, or to finish backing off first.
    fn release(&mut self, uid: &Uid, now: Duration) {
        let Some(entry) = self.entries.get(uid) else { return };
        if self.backoff_until(&entry.queued) > now { self.put_backoff(uid) } else { self.put_active(uid) }
    }

    fn backoff_until(&self, queued: &QueuedPod) -> Duration {
        let doublings = queued.attempts.saturating_sub(1).min(20);
        let backoff = self.initial_backoff.saturating_mul(1 << doublings).min(self.max_backoff);
        queued.since + backoff
    }

    fn put_active(&mut self, uid: &Uid) {
        let Some(sequence) = self.unplace(uid) else { return };
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let key = (Reverse(entry.queued.pod.spec.priority), entry.queued.since, sequence);
        entry.place = Place::Active(key);
        self.active.insert((key, Arc::clone(uid)));
    }

    fn put_backoff(&mut self, uid: &Uid) {
        let Some(sequence) = self.unplace(uid) else { return };
        let Some(until) = self.entries.get(uid).map(|entry| self.backoff_until(&entry.queued)) else {
            return;
        };
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.place = Place::Backoff(until);
        }
        self.backoff.insert((until, sequence, Arc::clone(uid)));
    }

    fn put_unschedulable(&mut self, uid: &Uid) {
        let Some(sequence) = self.unplace(uid) else { return };
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.place = Place::Unschedulable(entry.queued.since);
        self.unschedulable.insert((entry.queued.since, sequence, Arc::clone(uid)));
    }

    /// Takes the pod out of whichever list it is in; it counts as gated until it is put elsewhere.
    fn unplace(&mut self, uid: &Uid) -> Option<u64> {
        let entry = self.entries.get_mut(uid)?;
        let sequence = entry.sequence;
        match std::mem::replace(&mut entry.place, Place::Gated) {
            Place::Active(key) => self.active.remove(&(key, Arc::clone(uid))),
            Place::Backoff(at) => self.backoff.remove(&(at, sequence, Arc::clone(uid))),
            Place::Unschedulable(at) => self.unschedulable.remove(&(at, sequence, Arc::clone(uid))),
            Place::Gated | Place::InFlight => true,
        };
        Some(sequence)
    }

    fn take(&mut self, uid: &str) -> Option<QueuedPod> {
        let uid = Arc::clone(&self.entries.get(uid)?.queued.pod.uid);
        self.unplace(&uid);
        self.entries.remove(&uid).map(|entry| entry.queued)
    }
}
