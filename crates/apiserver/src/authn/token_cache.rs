//! Remembers for a few seconds whom a token stands for, so that a busy client costs no signature check a request.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};

use super::{Authenticated, AuthenticationError, Clock, TokenAuthenticator};

/// Upstream's time: a revoked token may be good for this much longer.
const SUCCESS_TTL: SignedDuration = SignedDuration::from_secs(10);
/// Entries a shard holds before it is swept; when all are fresh it starts over.
const SHARD_CAPACITY: usize = 1_024;
const SHARDS: usize = 16;

type Key = [u8; 32];

/// Wraps an authenticator; only successes are kept.
pub struct TokenCache {
    inner: Arc<dyn TokenAuthenticator>,
    clock: Clock,
    shards: [Mutex<HashMap<Key, (Timestamp, Authenticated)>>; SHARDS],
}

impl fmt::Debug for TokenCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenCache").finish_non_exhaustive()
    }
}

impl TokenCache {
    pub fn new(inner: Arc<dyn TokenAuthenticator>, clock: Clock) -> Self {
        Self { inner, clock, shards: std::array::from_fn(|_| Mutex::default()) }
    }

    fn shard(&self, key: &Key) -> std::sync::MutexGuard<'_, HashMap<Key, (Timestamp, Authenticated)>> {
        self.shards[usize::from(key[0]) % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, key: Key, now: Timestamp, found: Authenticated) {
        let mut shard = self.shard(&key);
        if shard.len() >= SHARD_CAPACITY {
            shard.retain(|_, (until, _)| now < *until);
            if shard.len() >= SHARD_CAPACITY {
                shard.clear();
            }
        }
        shard.insert(key, (now + SUCCESS_TTL, found));
    }
}

#[async_trait]
impl TokenAuthenticator for TokenCache {
    async fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<Authenticated>, AuthenticationError> {
        let key = key_of(token, audiences);
        let now = (self.clock)();
        let known =
            self.shard(&key).get(&key).filter(|(until, _)| now < *until).map(|(_, found)| found.clone());
        if known.is_some() {
            return Ok(known);
        }
        let found = self.inner.authenticate_token(token, audiences).await?;
        if let Some(found) = &found {
            self.keep(key, now, found.clone());
        }
        Ok(found)
    }
}

fn key_of(token: &str, audiences: &[String]) -> Key {
    let mut digest = Sha256::new();
    digest.update(token);
    for audience in audiences {
        digest.update([0]);
        digest.update(audience);
    }
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

    use super::*;
    use crate::attributes::UserInfo;

    struct Counting(AtomicUsize);

    #[async_trait]
    impl TokenAuthenticator for Counting {
        async fn authenticate_token(
            &self,
            token: &str,
            audiences: &[String],
        ) -> Result<Option<Authenticated>, AuthenticationError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            let user = UserInfo::new(token, &[]);
            Ok((token != "bad").then(|| Authenticated { user, audiences: audiences.to_vec() }))
        }
    }

    #[tokio::test]
    async fn successes_are_kept_for_ten_seconds_per_token_and_audience() {
        let inner = Arc::new(Counting(AtomicUsize::new(0)));
        let time = Arc::new(AtomicI64::new(100));
        let clock: Clock = {
            let time = time.clone();
            Arc::new(move || Timestamp::from_second(time.load(Ordering::Relaxed)).unwrap())
        };
        let cache = TokenCache::new(inner.clone(), clock);
        let calls = || inner.0.load(Ordering::Relaxed);
        for _ in 0..3 {
            assert_eq!(cache.authenticate_token("a", &[]).await.unwrap().unwrap().user.username, "a");
        }
        assert_eq!(calls(), 1);
        cache.authenticate_token("a", &["vault".to_owned()]).await.unwrap();
        assert_eq!(calls(), 2);
        for _ in 0..2 {
            assert_eq!(cache.authenticate_token("bad", &[]).await.unwrap(), None);
        }
        assert_eq!(calls(), 4);
        time.store(111, Ordering::Relaxed);
        cache.authenticate_token("a", &[]).await.unwrap();
        assert_eq!(calls(), 5);
    }
}
