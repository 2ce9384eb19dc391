//! Runs pods to their end, so many times.

mod failure;
mod indexes;
mod plan;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use meta::names::NamespacedName;
use reconcile::events::EventRecorder;
use reconcile::expectations::Expectations;
use reconcile::object::resource_version_of;
use reconcile::{Action, Informer, Queue, ReconcileError, Reconciler, SharedClock, chain};
use serde_json::json;

use self::plan::{FINALIZER, INDEX, INDEX_FAILURES, Plan, has_finalizer, plan, pod_prefix};
use crate::context::{Context, api};
use crate::pods::{self, PodName, key, name, uid};
use crate::{bulk, claims, enqueue, hash};

const OUR_NAME: &str = "kubernetes.io/job-controller";

struct Jobs {
    client: kube::Client,
    jobs: Informer<Job>,
    pods: Informer<Pod>,
    queue: Queue<NamespacedName>,
    expectations: Expectations<NamespacedName>,
    events: EventRecorder,
    clock: SharedClock,
}

pub(super) async fn run(context: Context) {
    let queue = context.queue("job");
    let controller = Arc::new(Jobs {
        client: context.client.clone(),
        jobs: context.informer(),
        pods: context.informer(),
        queue: queue.clone(),
        expectations: Expectations::new(context.clock.clone()),
        events: context.recorder("job-controller"),
        clock: context.clock.clone(),
    });
    let _jobs = enqueue::itself(&controller.jobs, &queue);
    let jobs = controller.jobs.clone();
    let _pods = enqueue::related(&controller.pods, &queue, move |pod: &Pod| {
        if reconcile::object::controller_of(&pod.metadata).is_some() {
            return enqueue::controller_key(pod, "Job").into_iter().collect();
        }
        let candidates = jobs.in_namespace(pods::namespace(&pod.metadata)).into_iter();
        let adopts = |job: &Arc<Job>| selector(job).is_some_and(|s| claims::matches(&s, &pod.metadata));
        candidates.filter(adopts).map(|job| key(&job.metadata)).collect()
    });
    // Pods of jobs that are gone would keep our finalizer for ever.
    let _orphans = controller.pods.subscribe({
        let queue = queue.clone();
        move |event| {
            let pod = event.object();
            if has_finalizer(pod) && reconcile::object::controller_of(&pod.metadata).is_none() {
                queue.add(orphan_key(pod));
            }
        }
    });
    if context.synced(&[&controller.jobs, &controller.pods]).await {
        context.run("job", controller, queue, context.config.workers).await;
    }
}

/// Names no job: job names have no slash.
fn orphan_key(pod: &Pod) -> NamespacedName {
    NamespacedName {
        namespace: pods::namespace(&pod.metadata).to_owned(),
        name: format!("pod/{}", name(&pod.metadata)),
    }
}

fn selector(job: &Job) -> Option<kube::core::Selector> {
    claims::selector(job.spec.as_ref()?.selector.as_ref())
}

#[async_trait]
impl Reconciler for Jobs {
    type Key = NamespacedName;

    async fn reconcile(&self, key: &NamespacedName) -> Result<Action, ReconcileError> {
        if let Some(pod) = key.name.strip_prefix("pod/") {
            return self.free_orphan(&key.namespace, pod).await;
        }
        let Some(job) = self.jobs.get(key) else {
            self.expectations.forget(key);
            return self.free_pods_of(key).await;
        };
        let manager = job.spec.as_ref().and_then(|spec| spec.managed_by.as_deref());
        if manager.is_some_and(|manager| manager != OUR_NAME) {
            return Ok(Action::Done);
        }
        let Some(selector) = selector(&job) else { return Ok(Action::Done) };
        let claims = claims::plan(&job.metadata, &selector, &self.pods, |_| true);
        let caught_up = self.expectations.satisfied(key, self.pods.resource_version(), |deleted| {
            claims.owned.iter().any(|pod| uid(&pod.metadata) == deleted && !pods::is_terminating(pod))
        });
        let owned = claims::execute(&self.client, &*job, claims, Some(FINALIZER)).await?;
        if job.metadata.deletion_timestamp.is_some() {
            return self.release(owned.iter().filter(|pod| has_finalizer(pod)).cloned().collect()).await;
        }
        let plan = plan(&job, &owned, caught_up, self.clock.now());
        self.execute(key, &job, plan).await
    }
}

impl Jobs {
    async fn execute(&self, key: &NamespacedName, job: &Job, plan: Plan) -> Result<Action, ReconcileError> {
        let Plan { status, create, delete, release, events, look_again } = plan;
        // What is counted must be in the status before the finalizers that prove it go.
        if !self.write_status(key, job, status).await? {
            return Ok(Action::RequeueAfter(Duration::from_millis(10)));
        }
        for (warning, reason, note) in events {
            if warning {
                self.events.warning(job, reason, "Finish", note);
            } else {
                self.events.normal(job, reason, "Finish", note);
            }
        }
        self.release(release).await?;
        let (_, error) = bulk::concurrently(delete.into_iter().map(|pod| self.delete(key, job, pod))).await;
        if let Some(error) = error {
            return Err(error.into());
        }
        let (_, error) = bulk::slow_start(create.len(), |n| self.create(key, job, create[n])).await;
        match error {
            Some(error) => Err(error.into()),
            None => Ok(look_again.map_or(Action::Done, Action::RequeueAfter)),
        }
    }

    /// False if the job changed meanwhile and has to be looked at again.
    async fn write_status(
        &self,
        key: &NamespacedName,
        job: &Job,
        status: JobStatus,
    ) -> Result<bool, ReconcileError> {
        if hash::same_status(job.status.as_ref(), &status) {
            return Ok(true);
        }
        let updated = Job { status: Some(status), ..job.clone() };
        match api::<Job>(&self.client, &key.namespace)
            .replace_status(&key.name, &PostParams::default(), &updated)
            .await
        {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn create(
        &self,
        key: &NamespacedName,
        job: &Job,
        (index, failures): (Option<i32>, i32),
    ) -> Result<(), kube::Error> {
        let (Some(spec), Some(owner)) = (job.spec.as_ref(), claims::owner_reference(job)) else {
            return Ok(());
        };
        let prefix = PodName::Prefix(pod_prefix(job, index));
        let mut pod = pods::from_template(&spec.template, &key.namespace, owner, prefix);
        pod.metadata.finalizers.get_or_insert_default().push(FINALIZER.to_owned());
        if let Some(index) = index {
            number_pod(&mut pod, &key.name, index);
            if spec.backoff_limit_per_index.is_some() {
                let annotations = pod.metadata.annotations.get_or_insert_default();
                annotations.insert(INDEX_FAILURES.to_owned(), failures.to_string());
            }
        }
        match api::<Pod>(&self.client, &key.namespace).create(&PostParams::default(), &pod).await {
            Ok(created) => {
                self.expectations.wrote(key, resource_version_of(&created.metadata));
                let note = format!("Created pod: {}", name(&created.metadata));
                self.events.normal(job, "SuccessfulCreate", "Create", note);
                Ok(())
            }
            Err(error) => {
                self.events.warning(
                    job,
                    "FailedCreate",
                    "Create",
                    format!("Error creating: {}", chain(&error)),
                );
                Err(error)
            }
        }
    }

    async fn delete(&self, key: &NamespacedName, job: &Job, pod: Arc<Pod>) -> Result<(), kube::Error> {
        let pod_name = name(&pod.metadata);
        let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        let parameters = DeleteParams::default().preconditions(preconditions);
        match api::<Pod>(&self.client, &key.namespace).delete(pod_name, &parameters).await {
            Ok(_) => {
                self.expectations.deleted(key, uid(&pod.metadata));
                self.events.normal(job, "SuccessfulDelete", "Delete", format!("Deleted pod: {pod_name}"));
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
            Err(error) => {
                self.events.warning(
                    job,
                    "FailedDelete",
                    "Delete",
                    format!("Error deleting: {}", chain(&error)),
                );
                Err(error)
            }
        }
    }

    async fn release(&self, pods: Vec<Arc<Pod>>) -> Result<Action, ReconcileError> {
        let (_, error) = bulk::concurrently(pods.into_iter().map(|pod| self.release_one(pod))).await;
        error.map_or(Ok(Action::Done), |error| Err(error.into()))
    }

    async fn release_one(&self, pod: Arc<Pod>) -> Result<(), kube::Error> {
        let patch = Patch::Strategic(json!({"metadata": {
            "uid": pod.metadata.uid,
            "$deleteFromPrimitiveList/finalizers": [FINALIZER],
        }}));
        let pods = api::<Pod>(&self.client, pods::namespace(&pod.metadata));
        match pods.patch(name(&pod.metadata), &PatchParams::default(), &patch).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() || matches!(status.code, 409 | 422) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The pods of a job that is gone wait only for our finalizer.
    async fn free_pods_of(&self, key: &NamespacedName) -> Result<Action, ReconcileError> {
        let pods = self.pods.in_namespace(&key.namespace).into_iter();
        let ours = |pod: &Arc<Pod>| {
            has_finalizer(pod) && enqueue::controller_key(&**pod, "Job").as_ref() == Some(key)
        };
        self.release(pods.filter(ours).collect()).await
    }

    async fn free_orphan(&self, namespace: &str, pod: &str) -> Result<Action, ReconcileError> {
        let key = NamespacedName { namespace: namespace.to_owned(), name: pod.to_owned() };
        let Some(pod) = self.pods.get(&key) else { return Ok(Action::Done) };
        let adopters = self.jobs.in_namespace(namespace).into_iter();
        let mut adopters = adopters
            .filter(|job| selector(job).is_some_and(|selector| claims::matches(&selector, &pod.metadata)));
        let orphan = has_finalizer(&pod) && reconcile::object::controller_of(&pod.metadata).is_none();
        match adopters.next() {
            Some(job) if orphan => {
                self.queue.add(crate::pods::key(&job.metadata));
                Ok(Action::Done)
            }
            None if orphan => self.release(vec![pod]).await,
            _ => Ok(Action::Done),
        }
    }
}

/// Tells an indexed pod which one it is: by annotation, label, host name and environment.
fn number_pod(pod: &mut Pod, job: &str, index: i32) {
    pod.metadata.annotations.get_or_insert_default().insert(INDEX.to_owned(), index.to_string());
    pod.metadata.labels.get_or_insert_default().insert(INDEX.to_owned(), index.to_string());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(format!("{job}-{index}"));
    let variable = EnvVar {
        name: "JOB_COMPLETION_INDEX".to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: None,
                field_path: format!("metadata.labels['{INDEX}']"),
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    };
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        let env = container.env.get_or_insert_default();
        if !env.iter().any(|other| other.name == variable.name) {
            env.push(variable.clone());
        }
    }
}
