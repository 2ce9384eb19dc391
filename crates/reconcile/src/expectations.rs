//! Protection against acting twice on a cache that does not yet show one's own writes.
//!
//! A controller notes what it created and deleted for a key. Until the cache has seen it, the key's
//! counts cannot be trusted. Creations are known by resource version, which one API server orders (KEP-5504);
//! deletions by uid, since a deleted object may have no newer version to wait for.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::SharedClock;

/// A write that the cache never shows (its event was compacted away, say) is forgotten after this long.
const TIMEOUT: Duration = Duration::from_secs(300);

/// What each key still waits to see.
pub struct Expectations<K> {
    clock: SharedClock,
    pending: Mutex<HashMap<K, Pending>>,
}

struct Pending {
    since: Duration,
    written: u64,
    deleted: HashSet<String>,
}

impl<K> fmt::Debug for Expectations<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Expectations").finish_non_exhaustive()
    }
}

impl<K: Clone + Eq + Hash> Expectations<K> {
    #[must_use]
    pub fn new(clock: SharedClock) -> Self {
        Self { clock, pending: Mutex::default() }
    }

    /// Notes an object that was created or updated at `resource_version`.
    pub fn wrote(&self, key: &K, resource_version: u64) {
        self.note(key, |pending| pending.written = pending.written.max(resource_version));
    }

    /// Notes an object that was deleted.
    pub fn deleted(&self, key: &K, uid: &str) {
        self.note(key, |pending| {
            pending.deleted.insert(uid.to_owned());
        });
    }

    /// True if the cache shows all that was noted: it has reached `resource_version`, and of the deleted
    /// uids none `is_live` (in the cache and not being deleted).
    pub fn satisfied(&self, key: &K, resource_version: u64, is_live: impl Fn(&str) -> bool) -> bool {
        let now = self.clock.monotonic();
        let mut all = self.lock();
        let Some(pending) = all.get_mut(key) else { return true };
        pending.deleted.retain(|uid| is_live(uid));
        let seen = pending.written <= resource_version && pending.deleted.is_empty();
        let done = seen || now.saturating_sub(pending.since) > TIMEOUT;
        if done {
            all.remove(key);
        }
        done
    }

    /// Forgets a key whose object is gone.
    pub fn forget(&self, key: &K) {
        self.lock().remove(key);
    }

    fn note(&self, key: &K, change: impl FnOnce(&mut Pending)) {
        let since = self.clock.monotonic();
        let mut all = self.lock();
        let pending =
            all.entry(key.clone()).or_insert_with(|| Pending { since, written: 0, deleted: HashSet::new() });
        pending.since = since;
        change(pending);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::RealClock;

    #[test]
    fn a_key_waits_for_its_creations_and_deletions() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _guard = runtime.enter();
        let expectations = Expectations::new(RealClock::shared());
        assert!(expectations.satisfied(&"a", 0, |_| true));
        expectations.wrote(&"a", 7);
        expectations.deleted(&"a", "uid");
        assert!(!expectations.satisfied(&"a", 6, |_| false), "creation not seen");
        expectations.deleted(&"a", "uid");
        assert!(!expectations.satisfied(&"a", 7, |uid| uid == "uid"), "deletion not seen");
        assert!(expectations.satisfied(&"b", 0, |_| true), "another key");
        assert!(expectations.satisfied(&"a", 7, |_| false));
    }
}
