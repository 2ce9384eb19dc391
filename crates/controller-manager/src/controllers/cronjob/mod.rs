//! Starts jobs by the clock.

mod plan;
mod schedule;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use kube::api::{DeleteParams, PostParams, Preconditions};
use meta::names::NamespacedName;
use reconcile::events::EventRecorder;
use reconcile::{Action, Informer, ReconcileError, Reconciler, SharedClock, chain};

use self::plan::{Plan, plan, reference};
use crate::context::{Context, api};
use crate::pods::{name, uid};
use crate::{enqueue, hash};

const ZONES: &str = "/usr/share/zoneinfo";

struct CronJobs {
    client: kube::Client,
    crons: Informer<CronJob>,
    jobs: Informer<Job>,
    events: EventRecorder,
    clock: SharedClock,
}

pub(super) async fn run(context: Context) {
    let queue = context.queue("cronjob");
    let controller = Arc::new(CronJobs {
        client: context.client.clone(),
        crons: context.informer(),
        jobs: context.informer(),
        events: context.recorder("cronjob-controller"),
        clock: context.clock.clone(),
    });
    let _crons = enqueue::itself(&controller.crons, &queue);
    let _jobs = enqueue::controller(&controller.jobs, &queue, "CronJob");
    if context.synced(&[&controller.crons, &controller.jobs]).await {
        context.run("cronjob", controller, queue, context.config.workers).await;
    }
}

/// A zone of the machine's own database.
fn time_zone(name: Option<&str>) -> Result<TimeZone, String> {
    let name = match name {
        None | Some("" | "UTC" | "Etc/UTC") => return Ok(TimeZone::UTC),
        Some(name) => name,
    };
    let unknown = || format!("unknown time zone {name}");
    // Names come from users: nothing outside the database may be read.
    let is_plain = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_+-".contains(&byte))
    };
    if !name.split('/').all(is_plain) {
        return Err(unknown());
    }
    let data = std::fs::read(Path::new(ZONES).join(name)).map_err(|_| unknown())?;
    TimeZone::tzif(name, &data).map_err(|_| unknown())
}

#[async_trait]
impl Reconciler for CronJobs {
    type Key = NamespacedName;

    async fn reconcile(&self, key: &NamespacedName) -> Result<Action, ReconcileError> {
        let Some(cron) = self.crons.get(key) else { return Ok(Action::Done) };
        let owned = self.jobs.controlled_by(uid(&cron.metadata));
        let zone = time_zone(cron.spec.time_zone.as_deref());
        let plan = plan(&cron, &owned, zone, self.clock.now());
        self.execute(key, &cron, plan).await
    }
}

impl CronJobs {
    async fn execute(
        &self,
        key: &NamespacedName,
        cron: &CronJob,
        plan: Plan,
    ) -> Result<Action, ReconcileError> {
        let Plan { create, replace, expire, mut status, events, look_again } = plan;
        for event in events {
            if event.warning {
                self.events.warning(cron, event.reason, "Schedule", event.note);
            } else {
                self.events.normal(cron, event.reason, "Schedule", event.note);
            }
        }
        for job in replace.iter().chain(&expire) {
            self.delete(cron, job).await?;
        }
        let replaced = |uid: &Option<String>| replace.iter().any(|job| job.metadata.uid == *uid);
        if let Some(active) = &mut status.active {
            active.retain(|reference| !replaced(&reference.uid));
        }
        let mut outcome = Ok(());
        if let Some(job) = create {
            match self.create(key, cron, &job).await {
                Ok(Some(created)) => status.active.get_or_insert_default().push(reference(&created)),
                Ok(None) => {}
                Err(error) => {
                    status.last_schedule_time =
                        cron.status.as_ref().and_then(|status| status.last_schedule_time.clone());
                    outcome = Err(error);
                }
            }
        }
        self.write_status(key, cron, status).await?;
        outcome?;
        Ok(look_again.map_or(Action::Done, Action::RequeueAfter))
    }

    async fn create(
        &self,
        key: &NamespacedName,
        cron: &CronJob,
        job: &Job,
    ) -> Result<Option<Job>, ReconcileError> {
        match api::<Job>(&self.client, &key.namespace).create(&PostParams::default(), job).await {
            Ok(created) => {
                let note = format!("Created job {}", name(&created.metadata));
                self.events.normal(cron, "SuccessfulCreate", "Create", note);
                Ok(Some(created))
            }
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(None),
            Err(error) => {
                self.events.warning(
                    cron,
                    "FailedCreate",
                    "Create",
                    format!("Error creating job: {}", chain(&error)),
                );
                Err(error.into())
            }
        }
    }

    async fn delete(&self, cron: &CronJob, job: &Job) -> Result<(), ReconcileError> {
        let preconditions = Preconditions { uid: job.metadata.uid.clone(), resource_version: None };
        let parameters = DeleteParams::background().preconditions(preconditions);
        let jobs = api::<Job>(&self.client, crate::pods::namespace(&cron.metadata));
        match jobs.delete(name(&job.metadata), &parameters).await {
            Ok(_) => {
                let note = format!("Deleted job {}", name(&job.metadata));
                self.events.normal(cron, "SuccessfulDelete", "Delete", note);
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
            Err(error) => {
                self.events.warning(
                    cron,
                    "FailedDelete",
                    "Delete",
                    format!("Deleted job: {}", chain(&error)),
                );
                Err(error.into())
            }
        }
    }

    async fn write_status(
        &self,
        key: &NamespacedName,
        cron: &CronJob,
        status: k8s_openapi::api::batch::v1::CronJobStatus,
    ) -> Result<(), ReconcileError> {
        if hash::same_status(cron.status.as_ref(), &status) {
            return Ok(());
        }
        let updated = CronJob { status: Some(status), ..cron.clone() };
        match api::<CronJob>(&self.client, &key.namespace)
            .replace_status(&key.name, &PostParams::default(), &updated)
            .await
        {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::time_zone;

    #[test]
    fn zones_are_names_within_the_database() {
        assert!(time_zone(None).is_ok());
        assert!(time_zone(Some("../../../etc/passwd")).is_err());
        assert_eq!(time_zone(Some("Mars/Phobos")).unwrap_err(), "unknown time zone Mars/Phobos");
    }
}
