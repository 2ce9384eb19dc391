//! A deployment's status: counts, `Available`, `Progressing` and `ReplicaFailure`.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};

use super::replica_sets::{actual, available, replicas};
use super::rolling::Limits;
use crate::pods::{name, whole_seconds};

const PROGRESSING: &str = "Progressing";
const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";
const RESUMED: &str = "DeploymentResumed";

/// What happened to the new replica set in this look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NewSet<'a> {
    Created(&'a str),
    Found(&'a str),
    None,
}

/// Whether this look rolls out, and so judges progress, or only scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judge {
    Progress,
    CountsOnly,
}

pub(super) fn status(
    deployment: &Deployment,
    limits: Limits,
    sets: &[Arc<ReplicaSet>],
    new: Option<&ReplicaSet>,
    new_set: NewSet<'_>,
    judge: Judge,
    now: Timestamp,
) -> DeploymentStatus {
    let mut status = counts(deployment, limits, sets, new, now);
    pause_or_resume(deployment, &mut status, now);
    if deadline(deployment).is_none() {
        remove(&mut status, PROGRESSING);
    } else {
        introduce(&mut status, new_set, now);
        if judge == Judge::Progress {
            judge_progress(deployment, limits, &mut status, new, now);
        }
    }
    if judge == Judge::Progress {
        note_failure(&mut status, sets, new);
    }
    status
}

/// How long until the deployment has to be looked at again for its progress deadline.
pub(super) fn next_look(
    deployment: &Deployment,
    limits: Limits,
    status: &DeploymentStatus,
    now: Timestamp,
) -> Option<Duration> {
    let deadline = deadline(deployment)?;
    let condition = find(status, PROGRESSING)?;
    if is_complete(deployment, limits, status) || condition.reason.as_deref() == Some(TIMED_OUT) {
        return None;
    }
    let passed = now.duration_since(condition.last_update_time.as_ref()?.0);
    let left = SignedDuration::from_secs(i64::from(deadline) + 1) - passed;
    Some(Duration::try_from(left).unwrap_or(Duration::ZERO).max(Duration::from_secs(1)))
}

pub(super) fn is_complete(deployment: &Deployment, limits: Limits, status: &DeploymentStatus) -> bool {
    status.updated_replicas.unwrap_or(0) == limits.desired
        && status.replicas.unwrap_or(0) == limits.desired
        && status.available_replicas.unwrap_or(0) == limits.desired
        && status.observed_generation.unwrap_or(0) >= deployment.metadata.generation.unwrap_or(0)
}

/// The deployment with the condition that its replica set could not be made, unless it says so already.
pub(super) fn creation_failed(deployment: &Deployment, message: &str, now: Timestamp) -> Option<Deployment> {
    deadline(deployment)?;
    let mut failed = deployment.clone();
    let status = failed.status.get_or_insert_default();
    set(status, PROGRESSING, "False", "ReplicaSetCreateError", message, now);
    (failed.status != deployment.status).then_some(failed)
}

fn counts(
    deployment: &Deployment,
    limits: Limits,
    sets: &[Arc<ReplicaSet>],
    new: Option<&ReplicaSet>,
    now: Timestamp,
) -> DeploymentStatus {
    let sum = |count: fn(&ReplicaSet) -> i32| sets.iter().map(|set| count(set)).sum::<i32>();
    let available_total = sum(available);
    let ready = sum(|set| set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0));
    let terminating =
        sum(|set| set.status.as_ref().and_then(|status| status.terminating_replicas).unwrap_or(0));
    let old = deployment.status.clone().unwrap_or_default();
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: Some(sum(actual)),
        updated_replicas: Some(new.map_or(0, actual)),
        ready_replicas: Some(ready),
        available_replicas: Some(available_total),
        unavailable_replicas: Some((sum(replicas) - available_total).max(0)),
        terminating_replicas: Some(terminating),
        collision_count: old.collision_count,
        conditions: old.conditions,
    };
    if available_total >= limits.desired - limits.max_unavailable {
        let message = "Deployment has minimum availability.";
        set(&mut status, "Available", "True", "MinimumReplicasAvailable", message, now);
    } else {
        let message = "Deployment does not have minimum availability.";
        set(&mut status, "Available", "False", "MinimumReplicasUnavailable", message, now);
    }
    status
}

fn pause_or_resume(deployment: &Deployment, status: &mut DeploymentStatus, now: Timestamp) {
    let paused = deployment.spec.as_ref().and_then(|spec| spec.paused).unwrap_or(false);
    let reason = find(status, PROGRESSING).and_then(|condition| condition.reason.clone()).unwrap_or_default();
    if deadline(deployment).is_none() || reason == TIMED_OUT {
        return;
    }
    if paused && reason != PAUSED {
        set(status, PROGRESSING, "Unknown", PAUSED, "Deployment is paused", now);
    } else if !paused && reason == PAUSED {
        set(status, PROGRESSING, "Unknown", RESUMED, "Deployment is resumed", now);
    }
}

fn introduce(status: &mut DeploymentStatus, new_set: NewSet<'_>, now: Timestamp) {
    match new_set {
        NewSet::Created(name) => {
            let message = format!("Created new replica set \"{name}\"");
            set(status, PROGRESSING, "True", "NewReplicaSetCreated", &message, now);
        }
        NewSet::Found(name) if find(status, PROGRESSING).is_none() => {
            let message = format!("Found new replica set \"{name}\"");
            set(status, PROGRESSING, "True", "FoundNewReplicaSet", &message, now);
        }
        NewSet::Found(_) | NewSet::None => {}
    }
}

fn judge_progress(
    deployment: &Deployment,
    limits: Limits,
    status: &mut DeploymentStatus,
    new: Option<&ReplicaSet>,
    now: Timestamp,
) {
    let was_complete = status.replicas == status.updated_replicas
        && find(status, PROGRESSING).is_some_and(|c| c.reason.as_deref() == Some(NEW_SET_AVAILABLE));
    if was_complete {
        return;
    }
    let subject = match new {
        Some(new) => format!("ReplicaSet \"{}\"", name(&new.metadata)),
        None => format!("Deployment \"{}\"", name(&deployment.metadata)),
    };
    if is_complete(deployment, limits, status) {
        let message = format!("{subject} has successfully progressed.");
        set(status, PROGRESSING, "True", NEW_SET_AVAILABLE, &message, now);
    } else if has_progressed(deployment.status.as_ref(), status) {
        let message = format!("{subject} is progressing.");
        // Progress is news even if the reason stays: the deadline counts from the last of it.
        let since = find(status, PROGRESSING)
            .filter(|condition| condition.status == "True")
            .and_then(|condition| condition.last_transition_time.clone());
        remove(status, PROGRESSING);
        set(status, PROGRESSING, "True", "ReplicaSetUpdated", &message, now);
        if let (Some(since), Some(condition)) = (since, find_mut(status, PROGRESSING)) {
            condition.last_transition_time = Some(since);
        }
    } else if has_timed_out(deployment, status, now) {
        let message = format!("{subject} has timed out progressing.");
        set(status, PROGRESSING, "False", TIMED_OUT, &message, now);
    }
}

fn has_progressed(old: Option<&DeploymentStatus>, new: &DeploymentStatus) -> bool {
    let old = old.cloned().unwrap_or_default();
    let count = |value: Option<i32>| value.unwrap_or(0);
    let outdated = |status: &DeploymentStatus| count(status.replicas) - count(status.updated_replicas);
    count(new.updated_replicas) > count(old.updated_replicas)
        || outdated(new) < outdated(&old)
        || count(new.ready_replicas) > count(old.ready_replicas)
        || count(new.available_replicas) > count(old.available_replicas)
}

fn has_timed_out(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> bool {
    let (Some(deadline), Some(condition)) = (deadline(deployment), find(status, PROGRESSING)) else {
        return false;
    };
    match condition.reason.as_deref() {
        Some(NEW_SET_AVAILABLE | PAUSED) => false,
        Some(TIMED_OUT) => true,
        _ => condition
            .last_update_time
            .as_ref()
            .is_some_and(|time| now.duration_since(time.0) > SignedDuration::from_secs(deadline.into())),
    }
}

fn note_failure(status: &mut DeploymentStatus, sets: &[Arc<ReplicaSet>], new: Option<&ReplicaSet>) {
    let failure = |set: &ReplicaSet| {
        let conditions = set.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.into_iter().find(|condition| condition.type_ == "ReplicaFailure").cloned()
    };
    let failure = new.and_then(failure).or_else(|| sets.iter().find_map(|set| failure(set)));
    let Some(failure) = failure else { return remove(status, "ReplicaFailure") };
    let same = find(status, "ReplicaFailure")
        .is_some_and(|old| old.status == failure.status && old.reason == failure.reason);
    if same {
        return;
    }
    remove(status, "ReplicaFailure");
    status.conditions.get_or_insert_default().push(DeploymentCondition {
        type_: "ReplicaFailure".to_owned(),
        status: failure.status,
        reason: failure.reason,
        message: failure.message,
        last_transition_time: failure.last_transition_time.clone(),
        last_update_time: failure.last_transition_time,
    });
}

/// `None` when there is no deadline: unset, or the largest number.
fn deadline(deployment: &Deployment) -> Option<i32> {
    let seconds = deployment.spec.as_ref()?.progress_deadline_seconds?;
    (seconds != i32::MAX).then_some(seconds)
}

fn find<'a>(status: &'a DeploymentStatus, type_: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == type_)
}

fn find_mut<'a>(status: &'a mut DeploymentStatus, type_: &str) -> Option<&'a mut DeploymentCondition> {
    status.conditions.iter_mut().flatten().find(|condition| condition.type_ == type_)
}

fn remove(status: &mut DeploymentStatus, type_: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_ != type_);
    }
}

/// Sets a condition unless it has that status and reason already; the transition time moves with the status only.
fn set(status: &mut DeploymentStatus, type_: &str, value: &str, reason: &str, message: &str, now: Timestamp) {
    let old = find(status, type_).cloned();
    if old.as_ref().is_some_and(|old| old.status == value && old.reason.as_deref() == Some(reason)) {
        return;
    }
    remove(status, type_);
    let now = whole_seconds(now);
    let since = old.filter(|old| old.status == value).and_then(|old| old.last_transition_time);
    status.conditions.get_or_insert_default().push(DeploymentCondition {
        type_: type_.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_update_time: Some(now.clone()),
        last_transition_time: Some(since.unwrap_or(now)),
    });
}
