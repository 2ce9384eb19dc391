//! Scales workloads by what their pods use.
//!
//! Resource and container resource metrics come from `metrics.k8s.io`.

mod metrics;
mod plan;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus, MetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::PostParams;
use kube::core::DynamicObject;
use meta::names::NamespacedName;
use reconcile::events::EventRecorder;
use reconcile::{Action, Informer, ReconcileError, Reconciler, SharedClock, chain};

use self::plan::{Brakes, Record};
use crate::config::Config;
use crate::context::{Context, api};
use crate::discovery::{self, Discovered};
use crate::hash;
use crate::pods::whole_seconds;

/// Past recommendations and changes are kept as long as a policy can look back.
const HISTORY: Duration = Duration::from_secs(3_600);

struct Autoscaler {
    client: kube::Client,
    config: Arc<Config>,
    autoscalers: Informer<HorizontalPodAutoscaler>,
    pods: Informer<Pod>,
    resources: Mutex<BTreeMap<(String, String), Discovered>>,
    histories: Mutex<BTreeMap<NamespacedName, History>>,
    events: EventRecorder,
    clock: SharedClock,
}

#[derive(Debug, Clone, Default)]
struct History {
    recommendations: Vec<Record>,
    ups: Vec<Record>,
    downs: Vec<Record>,
}

/// A condition that explains why there is no answer.
struct Inactive {
    type_: &'static str,
    reason: &'static str,
    message: String,
}

pub(super) async fn run(context: Context) {
    let queue = context.queue("horizontalpodautoscaler");
    let controller = Arc::new(Autoscaler {
        client: context.client.clone(),
        config: Arc::clone(&context.config),
        autoscalers: context.informer(),
        pods: context.informer(),
        resources: Mutex::default(),
        histories: Mutex::default(),
        events: context.recorder("horizontal-pod-autoscaler"),
        clock: context.clock.clone(),
    });
    // Only what is declared: its own status must not wake it before its period is over.
    let _autoscalers = controller.autoscalers.subscribe({
        let queue = queue.clone();
        move |event| {
            if event.old().is_none_or(|old| old.spec != event.object().spec) {
                queue.add(reconcile::key_of(&**event.object()));
            }
        }
    });
    if context.synced(&[&controller.autoscalers, &controller.pods]).await {
        context.run("horizontalpodautoscaler", controller, queue, context.config.workers).await;
    }
}

#[async_trait]
impl Reconciler for Autoscaler {
    type Key = NamespacedName;

    async fn reconcile(&self, key: &NamespacedName) -> Result<Action, ReconcileError> {
        let Some(autoscaler) = self.autoscalers.get(key) else {
            self.histories.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
            return Ok(Action::Done);
        };
        let mut status = autoscaler.status.clone().unwrap_or_default();
        status.observed_generation = autoscaler.metadata.generation;
        if let Err(inactive) = self.look(key, &autoscaler, &mut status).await {
            self.events.warning(&*autoscaler, inactive.reason, "Scale", inactive.message.clone());
            self.set(&mut status, inactive.type_, "False", inactive.reason, &inactive.message);
        }
        if !hash::same_status(autoscaler.status.as_ref(), &status) {
            let updated = HorizontalPodAutoscaler { status: Some(status), ..(*autoscaler).clone() };
            let autoscalers = api::<HorizontalPodAutoscaler>(&self.client, &key.namespace);
            match autoscalers.replace_status(&key.name, &PostParams::default(), &updated).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Action::RequeueAfter(self.config.autoscaler.sync_period))
    }
}

impl Autoscaler {
    async fn look(
        &self,
        key: &NamespacedName,
        autoscaler: &HorizontalPodAutoscaler,
        status: &mut HorizontalPodAutoscalerStatus,
    ) -> Result<(), Inactive> {
        let spec = &autoscaler.spec;
        let failed = |message: String| Inactive { type_: "AbleToScale", reason: "FailedGetScale", message };
        let target = self.target(key, autoscaler).await.map_err(failed)?;
        let target_name = &spec.scale_target_ref.name;
        let scale = target.get_scale(target_name).await;
        let scale = scale.map_err(|error| {
            failed(format!(
                "the HPA controller was unable to get the target's current scale: {}",
                chain(&error)
            ))
        })?;
        self.set(
            status,
            "AbleToScale",
            "True",
            "SucceededGetScale",
            "the HPA controller was able to get the target's current scale",
        );
        let current = scale.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0);
        status.current_replicas = Some(current);
        let min = spec.min_replicas.unwrap_or(1);
        if current == 0 && min != 0 {
            status.desired_replicas = 0;
            let message = "scaling is disabled since the replica count of the target is zero";
            self.set(status, "ScalingActive", "False", "ScalingDisabled", message);
            return Ok(());
        }
        let (desired, reason) = match current {
            _ if current > spec.max_replicas => {
                (spec.max_replicas, "Current number of replicas above Spec.MaxReplicas".to_owned())
            }
            _ if current < min => (min, "Current number of replicas below Spec.MinReplicas".to_owned()),
            _ => {
                let (proposed, reason) = self.propose(key, autoscaler, &scale, current, status).await?;
                (self.brake(key, autoscaler, current, proposed, status), reason)
            }
        };
        status.desired_replicas = desired;
        if desired == current {
            return Ok(());
        }
        let mut wanted = scale.clone();
        wanted.spec.get_or_insert_default().replicas = Some(desired);
        if let Err(error) = target.replace_scale(target_name, &PostParams::default(), &wanted).await {
            let message =
                format!("the HPA controller was unable to update the target scale: {}", chain(&error));
            return Err(Inactive { type_: "AbleToScale", reason: "FailedUpdateScale", message });
        }
        let message = format!("the HPA controller was able to update the target scale to {desired}");
        self.set(status, "AbleToScale", "True", "SucceededRescale", &message);
        self.events.normal(
            autoscaler,
            "SuccessfulRescale",
            "Scale",
            format!("New size: {desired}; reason: {reason}"),
        );
        status.last_scale_time = Some(whole_seconds(self.clock.now()));
        self.note_change(key, desired - current);
        Ok(())
    }

    /// The greatest proposal of all metrics; a metric that cannot be read forbids to shrink.
    async fn propose(
        &self,
        key: &NamespacedName,
        autoscaler: &HorizontalPodAutoscaler,
        scale: &Scale,
        current: i32,
        status: &mut HorizontalPodAutoscalerStatus,
    ) -> Result<(i32, String), Inactive> {
        let selector = scale.status.as_ref().and_then(|status| status.selector.clone()).unwrap_or_default();
        if selector.is_empty() {
            let message = "the HPA target's scale is missing a selector".to_owned();
            return Err(Inactive { type_: "ScalingActive", reason: "InvalidSelector", message });
        }
        let specs = autoscaler.spec.metrics.clone().unwrap_or_default();
        let reader = metrics::Reader {
            client: &self.client,
            config: &self.config.autoscaler,
            pods: &self.pods,
            namespace: &key.namespace,
            selector: &selector,
            now: self.clock.now(),
        };
        let mut best: Option<(i32, String)> = None;
        let mut failure: Option<Inactive> = None;
        let mut read: Vec<MetricStatus> = Vec::new();
        for spec in &specs {
            match reader.read(spec, current).await {
                Ok(reading) => {
                    read.push(reading.status);
                    if best.as_ref().is_none_or(|(replicas, _)| reading.replicas > *replicas) {
                        best = Some((reading.replicas, reading.reason));
                    }
                }
                Err((reason, message)) => {
                    let message = format!("the HPA was unable to compute the replica count: {message}");
                    failure.get_or_insert(Inactive { type_: "ScalingActive", reason, message });
                }
            }
        }
        status.current_metrics = (!read.is_empty()).then_some(read);
        match (best, failure) {
            (None, None) => Ok((current, "All metrics below target".to_owned())),
            (None, Some(failure)) => Err(failure),
            (Some((replicas, _)), Some(failure)) if replicas < current => Err(failure),
            (Some((replicas, reason)), _) => {
                let message =
                    format!("the HPA was able to successfully calculate a replica count from {reason}");
                self.set(status, "ScalingActive", "True", "ValidMetricFound", &message);
                let shrinks = replicas < current;
                let above = format!("{reason} above target");
                Ok((replicas, if shrinks { "All metrics below target".to_owned() } else { above }))
            }
        }
    }

    fn brake(
        &self,
        key: &NamespacedName,
        autoscaler: &HorizontalPodAutoscaler,
        current: i32,
        proposed: i32,
        status: &mut HorizontalPodAutoscalerStatus,
    ) -> i32 {
        let spec = &autoscaler.spec;
        let now = self.clock.monotonic();
        let mut histories = self.histories.lock().unwrap_or_else(PoisonError::into_inner);
        let history = histories.entry(key.clone()).or_default();
        // After a restart nothing is known of before: do not shrink at once.
        if history.recommendations.is_empty() {
            history.recommendations.push((now, current));
        }
        history.recommendations.push((now, proposed));
        for records in [&mut history.recommendations, &mut history.ups, &mut history.downs] {
            records.retain(|(at, _)| now.saturating_sub(*at) < HISTORY);
        }
        let brakes = Brakes {
            spec,
            downscale_stabilization: self.config.autoscaler.downscale_stabilization,
            recommendations: &history.recommendations,
            ups: &history.ups,
            downs: &history.downs,
            now,
        };
        let (desired, limited) = brakes.apply(current, proposed);
        match limited {
            Some((reason, message)) => self.set(status, "ScalingLimited", "True", reason, message),
            None => {
                let message = "the desired count is within the acceptable range";
                self.set(status, "ScalingLimited", "False", "DesiredWithinRange", message);
            }
        }
        desired
    }

    fn note_change(&self, key: &NamespacedName, change: i32) {
        let now = self.clock.monotonic();
        let mut histories = self.histories.lock().unwrap_or_else(PoisonError::into_inner);
        let history = histories.entry(key.clone()).or_default();
        if change > 0 {
            history.ups.push((now, change));
        } else {
            history.downs.push((now, -change));
        }
    }

    /// The API of the target's kind.
    async fn target(
        &self,
        key: &NamespacedName,
        autoscaler: &HorizontalPodAutoscaler,
    ) -> Result<Api<DynamicObject>, String> {
        let reference = autoscaler.spec.scale_target_ref.clone();
        let version = reference.api_version.as_deref().unwrap_or_default();
        let group = version.rsplit_once('/').map_or("", |(group, _)| group);
        let wanted = (group.to_owned(), reference.kind.clone());
        let known = || {
            let resources = self.resources.lock().unwrap_or_else(PoisonError::into_inner);
            resources.get(&wanted).map(|found| found.resource.clone())
        };
        let mut resource = known();
        if resource.is_none() {
            let found = discovery::discover(&self.client).await.map_err(|error| chain(&error).to_string())?;
            let mut resources = self.resources.lock().unwrap_or_else(PoisonError::into_inner);
            for found in found.resources {
                resources.insert((found.resource.group.clone(), found.resource.kind.clone()), found);
            }
            drop(resources);
            resource = known();
        }
        let resource = resource.ok_or_else(|| {
            format!("the HPA controller was unable to get the target's current scale: no matches for kind {:?} in group {group:?}", reference.kind)
        })?;
        Ok(Api::namespaced_with(self.client.clone(), &key.namespace, &resource))
    }

    fn set(
        &self,
        status: &mut HorizontalPodAutoscalerStatus,
        type_: &str,
        value: &str,
        reason: &str,
        message: &str,
    ) {
        let conditions = status.conditions.get_or_insert_default();
        let since = conditions.iter().find(|c| c.type_ == type_ && c.status == value);
        let since = since.and_then(|condition| condition.last_transition_time.clone());
        let new = HorizontalPodAutoscalerCondition {
            type_: type_.to_owned(),
            status: value.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_transition_time: since.or_else(|| Some(whole_seconds(self.clock.now()))),
        };
        match conditions.iter_mut().find(|condition| condition.type_ == type_) {
            Some(old) => *old = new,
            None => conditions.push(new),
        }
    }
}
