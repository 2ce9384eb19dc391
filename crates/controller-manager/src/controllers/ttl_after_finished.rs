//! Deletes finished jobs when their time is up.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use kube::api::{DeleteParams, Preconditions, PropagationPolicy};
use meta::names::NamespacedName;
use reconcile::{Action, Informer, ReconcileError, Reconciler, SharedClock};

use crate::context::{Context, api};
use crate::enqueue;

struct TtlAfterFinished {
    client: kube::Client,
    jobs: Informer<Job>,
    clock: SharedClock,
}

pub(super) async fn run(context: Context) {
    let queue = context.queue("ttl_jobs_to_delete");
    let controller = Arc::new(TtlAfterFinished {
        client: context.client.clone(),
        jobs: context.informer(),
        clock: context.clock.clone(),
    });
    let _jobs = enqueue::related(&controller.jobs, &queue, |job: &Job| {
        if expiry(job).is_some() { vec![crate::pods::key(&job.metadata)] } else { Vec::new() }
    });
    if context.synced(&[&controller.jobs]).await {
        context.run("ttl_jobs_to_delete", controller, queue, 1).await;
    }
}

/// When the job's time is up, if it has finished and has a time.
fn expiry(job: &Job) -> Option<Timestamp> {
    let ttl = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let mut conditions = job.status.as_ref()?.conditions.iter().flatten();
    let end = conditions.find(|c| c.status == "True" && matches!(c.type_.as_str(), "Complete" | "Failed"))?;
    if job.metadata.deletion_timestamp.is_some() {
        return None;
    }
    end.last_transition_time.as_ref()?.0.checked_add(SignedDuration::from_secs(ttl.into())).ok()
}

#[async_trait]
impl Reconciler for TtlAfterFinished {
    type Key = NamespacedName;

    async fn reconcile(&self, key: &NamespacedName) -> Result<Action, ReconcileError> {
        let now = self.clock.now();
        let left =
            |job: &Job| expiry(job).map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default());
        match self.jobs.get(key).and_then(|job| left(&job)) {
            None => return Ok(Action::Done),
            Some(wait) if !wait.is_zero() => return Ok(Action::RequeueAfter(wait)),
            Some(_) => {}
        }
        // The time may have been changed since the cache was.
        let jobs = api::<Job>(&self.client, &key.namespace);
        let Some(fresh) = jobs.get_opt(&key.name).await? else { return Ok(Action::Done) };
        match left(&fresh) {
            None => return Ok(Action::Done),
            Some(wait) if !wait.is_zero() => return Ok(Action::RequeueAfter(wait)),
            Some(_) => {}
        }
        let parameters = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Foreground),
            preconditions: Some(Preconditions { uid: fresh.metadata.uid, resource_version: None }),
            ..DeleteParams::default()
        };
        match jobs.delete(&key.name, &parameters).await {
            Ok(_) => Ok(Action::Done),
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {
                Ok(Action::Done)
            }
            Err(error) => Err(error.into()),
        }
    }
}
