//! Leader election by a Lease: of several processes with the same work, one does it.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock::SharedClock;
use crate::object::chain;

/// Which lease, in whose name, and how patiently. The durations of [`LeaderConfig::new`] are upstream's.
#[derive(Debug, Clone)]
pub struct LeaderConfig {
    pub namespace: String,
    pub name: String,
    /// Unlike that of any other process: host name and a uuid.
    pub identity: String,
    pub lease_duration: Duration,
    pub renew_deadline: Duration,
    pub retry_period: Duration,
}

/// Acquires a lease, keeps it while there is work, and gives it back.
pub struct LeaderElector {
    config: LeaderConfig,
    api: Api<Lease>,
    clock: SharedClock,
}

/// The lease was lost while its work was going on.
#[derive(Debug, thiserror::Error)]
#[error("leader election lost")]
pub struct LeaseLost;

/// The lease as last seen, and when it last changed by our own clock: clocks of other machines are not trusted.
#[derive(Debug, Default)]
struct Observed {
    spec: Option<LeaseSpec>,
    changed: Duration,
}

impl LeaderConfig {
    #[must_use]
    pub fn new(namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity: identity.to_owned(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

impl fmt::Debug for LeaderElector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaderElector").field("config", &self.config).finish_non_exhaustive()
    }
}

impl LeaderElector {
    #[must_use]
    pub fn new(client: Client, clock: SharedClock, config: LeaderConfig) -> Self {
        let api = Api::namespaced(client, &config.namespace);
        Self { config, api, clock }
    }

    /// Waits to lead, then runs `lead` until shutdown. The token given to `lead` is cancelled when the lease
    /// is lost, and its end is awaited before this returns.
    pub async fn run<F, Fut>(&self, shutdown: CancellationToken, lead: F) -> Result<(), LeaseLost>
    where
        F: FnOnce(CancellationToken) -> Fut,
        Fut: Future<Output = ()>,
    {
        let mut observed = Observed::default();
        if shutdown.run_until_cancelled(self.acquire(&mut observed)).await.is_none() {
            return Ok(());
        }
        info!(name = self.config.name, identity = self.config.identity, "lease acquired");
        let token = shutdown.child_token();
        let mut work = std::pin::pin!(lead(token.clone()));
        let lost = tokio::select! {
            () = &mut work => false,
            () = self.renew(&mut observed) => true,
        };
        if lost {
            token.cancel();
            work.await;
            return Err(LeaseLost);
        }
        self.release(&observed).await;
        Ok(())
    }

    async fn acquire(&self, observed: &mut Observed) {
        while !self.attempt(observed).await {
            let jitter = 1.0 + rand::random::<f64>() * 0.2;
            self.clock.sleep(self.config.retry_period.mul_f64(jitter)).await;
        }
    }

    /// Ends when the lease could not be renewed in time.
    async fn renew(&self, observed: &mut Observed) {
        let mut renewed = self.clock.monotonic();
        loop {
            self.clock.sleep(self.config.retry_period).await;
            let since = self.clock.monotonic().saturating_sub(renewed);
            let left = self.config.renew_deadline.saturating_sub(since);
            let ok = tokio::select! {
                ok = self.attempt(observed) => ok,
                () = self.clock.sleep(left) => false,
            };
            if ok {
                renewed = self.clock.monotonic();
            } else if self.clock.monotonic().saturating_sub(renewed) >= self.config.renew_deadline {
                warn!(name = self.config.name, identity = self.config.identity, "lease lost");
                return;
            }
        }
    }

    /// One try to take or renew the lease.
    async fn attempt(&self, observed: &mut Observed) -> bool {
        match self.try_attempt(observed).await {
            Ok(held) => held,
            Err(error) => {
                warn!(name = self.config.name, error = %chain(&error), "lease not updated");
                false
            }
        }
    }

    async fn try_attempt(&self, observed: &mut Observed) -> Result<bool, kube::Error> {
        let Some(mut lease) = self.api.get_opt(&self.config.name).await? else {
            let spec = claim(&self.config, None, self.clock.now());
            let metadata = ObjectMeta { name: Some(self.config.name.clone()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(spec) };
            let created = self.api.create(&PostParams::default(), &lease).await?;
            observed.note(created.spec, self.clock.monotonic());
            return Ok(true);
        };
        observed.note(lease.spec.clone(), self.clock.monotonic());
        if !observed.may_take(&self.config, self.clock.monotonic()) {
            return Ok(false);
        }
        lease.spec = Some(claim(&self.config, lease.spec.as_ref(), self.clock.now()));
        match self.api.replace(&self.config.name, &PostParams::default(), &lease).await {
            Ok(updated) => {
                observed.note(updated.spec, self.clock.monotonic());
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.is_conflict() => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn release(&self, observed: &Observed) {
        let ours = |lease: &Lease| {
            lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref())
                == Some(&self.config.identity)
        };
        let released = async {
            let Some(mut lease) = self.api.get_opt(&self.config.name).await?.filter(ours) else {
                return Ok(());
            };
            let now = MicroTime(self.clock.now());
            lease.spec = Some(LeaseSpec {
                holder_identity: Some(String::new()),
                lease_duration_seconds: Some(1),
                acquire_time: Some(now.clone()),
                renew_time: Some(now),
                lease_transitions: observed.spec.as_ref().and_then(|spec| spec.lease_transitions),
                ..LeaseSpec::default()
            });
            self.api.replace(&self.config.name, &PostParams::default(), &lease).await.map(drop)
        };
        if let Err(error) = released.await {
            warn!(name = self.config.name, error = %chain(&error), "lease not released");
        }
    }
}

impl Observed {
    fn note(&mut self, spec: Option<LeaseSpec>, now: Duration) {
        if self.spec != spec || self.spec.is_none() {
            self.spec = spec;
            self.changed = now;
        }
    }

    fn may_take(&self, config: &LeaderConfig, now: Duration) -> bool {
        let holder = self.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
        let seconds = self.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
        let valid = seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(config.lease_duration, Duration::from_secs);
        holder.is_empty() || holder == config.identity || now.saturating_sub(self.changed) >= valid
    }
}

fn claim(config: &LeaderConfig, old: Option<&LeaseSpec>, now: Timestamp) -> LeaseSpec {
    let holder = old.and_then(|spec| spec.holder_identity.as_deref());
    let ours = holder == Some(config.identity.as_str());
    let transitions = old.and_then(|spec| spec.lease_transitions).unwrap_or(0);
    let acquired = old.and_then(|spec| spec.acquire_time.clone()).filter(|_| ours);
    LeaseSpec {
        holder_identity: Some(config.identity.clone()),
        lease_duration_seconds: i32::try_from(config.lease_duration.as_secs()).ok(),
        acquire_time: Some(acquired.unwrap_or(MicroTime(now))),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(if ours || old.is_none() { transitions } else { transitions + 1 }),
        ..LeaseSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_when_its_holder_has_been_silent_for_its_duration() {
        let config = LeaderConfig::new("kube-system", "test", "me");
        let held = |by: &str, renewed: i64| {
            Some(LeaseSpec {
                holder_identity: Some(by.to_owned()),
                lease_duration_seconds: Some(15),
                renew_time: Some(MicroTime(Timestamp::from_second(renewed).unwrap())),
                ..LeaseSpec::default()
            })
        };
        let mut observed = Observed::default();
        observed.note(held("other", 1), Duration::from_secs(100));
        assert!(!observed.may_take(&config, Duration::from_secs(114)));
        observed.note(held("other", 2), Duration::from_secs(114));
        assert!(!observed.may_take(&config, Duration::from_secs(120)));
        observed.note(held("other", 2), Duration::from_secs(120));
        assert!(observed.may_take(&config, Duration::from_secs(129)));
        observed.note(held("me", 3), Duration::from_secs(129));
        assert!(observed.may_take(&config, Duration::from_secs(130)));
    }

    #[test]
    fn taking_a_lease_from_another_counts_as_a_transition() {
        let config = LeaderConfig::new("kube-system", "test", "me");
        let now = Timestamp::from_second(50).unwrap();
        let first = claim(&config, None, now);
        assert_eq!(first.lease_transitions, Some(0));
        let renewed = claim(&config, Some(&first), Timestamp::from_second(60).unwrap());
        assert_eq!(
            (renewed.lease_transitions, renewed.acquire_time.clone()),
            (Some(0), Some(MicroTime(now)))
        );
        let other = LeaderConfig::new("kube-system", "test", "you");
        assert_eq!(claim(&other, Some(&renewed), now).lease_transitions, Some(1));
    }
}
