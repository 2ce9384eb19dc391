//! What the two kinds have in common.

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::{Expression, Selector};
use serde::Serialize;

use crate::claims::{self, Namespaced};

/// The status of either kind.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Counts {
    pub(super) replicas: i32,
    pub(super) fully_labeled: i32,
    pub(super) ready: i32,
    pub(super) available: i32,
    pub(super) terminating: Option<i32>,
    pub(super) observed_generation: Option<i64>,
    pub(super) failure: Option<Failure>,
}

/// The `ReplicaFailure` condition.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Failure {
    pub(super) reason: String,
    pub(super) message: String,
    pub(super) since: Option<Time>,
}

pub(super) trait Replicated: Namespaced + Serialize {
    const KIND: &'static str;
    fn replicas(&self) -> i32;
    fn min_ready_seconds(&self) -> i32;
    fn selector(&self) -> Option<Selector>;
    fn template(&self) -> Option<&PodTemplateSpec>;
    fn counts(&self) -> Counts;
    fn with_counts(&self, counts: Counts) -> Self;
}

impl Replicated for ReplicaSet {
    const KIND: &'static str = "ReplicaSet";

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
    }

    fn selector(&self) -> Option<Selector> {
        claims::selector(self.spec.as_ref().map(|spec| &spec.selector))
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn counts(&self) -> Counts {
        let status = self.status.clone().unwrap_or_default();
        let failure = status.conditions.into_iter().flatten().find(|c| c.type_ == "ReplicaFailure");
        Counts {
            replicas: status.replicas,
            fully_labeled: status.fully_labeled_replicas.unwrap_or(0),
            ready: status.ready_replicas.unwrap_or(0),
            available: status.available_replicas.unwrap_or(0),
            terminating: status.terminating_replicas,
            observed_generation: status.observed_generation,
            failure: failure.map(|condition| Failure {
                reason: condition.reason.unwrap_or_default(),
                message: condition.message.unwrap_or_default(),
                since: condition.last_transition_time,
            }),
        }
    }

    fn with_counts(&self, counts: Counts) -> Self {
        let mut updated = self.clone();
        let others = self.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let mut conditions: Vec<_> = others.filter(|c| c.type_ != "ReplicaFailure").cloned().collect();
        conditions.extend(counts.failure.map(|failure| ReplicaSetCondition {
            type_: "ReplicaFailure".to_owned(),
            status: "True".to_owned(),
            reason: Some(failure.reason),
            message: Some(failure.message),
            last_transition_time: failure.since,
        }));
        updated.status = Some(ReplicaSetStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: Some(counts.fully_labeled),
            ready_replicas: Some(counts.ready),
            available_replicas: Some(counts.available),
            terminating_replicas: counts.terminating,
            observed_generation: counts.observed_generation,
            conditions: (!conditions.is_empty()).then_some(conditions),
        });
        updated
    }
}

impl Replicated for ReplicationController {
    const KIND: &'static str = "ReplicationController";

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
    }

    fn selector(&self) -> Option<Selector> {
        let labels = self.spec.as_ref()?.selector.as_ref().filter(|labels| !labels.is_empty())?;
        Some(labels.iter().map(|(key, value)| Expression::Equal(key.clone(), value.clone())).collect())
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn counts(&self) -> Counts {
        let status = self.status.clone().unwrap_or_default();
        let failure = status.conditions.into_iter().flatten().find(|c| c.type_ == "ReplicaFailure");
        Counts {
            replicas: status.replicas,
            fully_labeled: status.fully_labeled_replicas.unwrap_or(0),
            ready: status.ready_replicas.unwrap_or(0),
            available: status.available_replicas.unwrap_or(0),
            terminating: None,
            observed_generation: status.observed_generation,
            failure: failure.map(|condition| Failure {
                reason: condition.reason.unwrap_or_default(),
                message: condition.message.unwrap_or_default(),
                since: condition.last_transition_time,
            }),
        }
    }

    fn with_counts(&self, counts: Counts) -> Self {
        let mut updated = self.clone();
        let others = self.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let mut conditions: Vec<_> = others.filter(|c| c.type_ != "ReplicaFailure").cloned().collect();
        conditions.extend(counts.failure.map(|failure| ReplicationControllerCondition {
            type_: "ReplicaFailure".to_owned(),
            status: "True".to_owned(),
            reason: Some(failure.reason),
            message: Some(failure.message),
            last_transition_time: failure.since,
        }));
        updated.status = Some(ReplicationControllerStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: Some(counts.fully_labeled),
            ready_replicas: Some(counts.ready),
            available_replicas: Some(counts.available),
            observed_generation: counts.observed_generation,
            conditions: (!conditions.is_empty()).then_some(conditions),
        });
        updated
    }
}
