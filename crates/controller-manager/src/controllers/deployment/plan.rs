//! One look at a deployment and its replica sets: what to write, in order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};

use super::progress::{self, Judge, NewSet};
use super::replica_sets::{
    self, DESIRED, REVISION, actual, annotate, find_new, note_size, number, replicas, revision,
};
use super::rolling::{self, Limits, Resize};
use crate::pods::{annotation, name};

#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    /// The status to write, if it differs.
    pub(super) status: Option<DeploymentStatus>,
    pub(super) look_again: Option<Duration>,
}

#[derive(Debug)]
pub(super) enum Step {
    Create(Box<ReplicaSet>),
    /// A replica set as it is to be, and what to tell people about it.
    Update {
        set: Box<ReplicaSet>,
        note: Option<String>,
    },
    Delete(Box<ReplicaSet>),
    /// The deployment's own annotations.
    Annotate(BTreeMap<String, String>),
}

struct View<'a> {
    deployment: &'a Deployment,
    limits: Limits,
    all: &'a [Arc<ReplicaSet>],
    new: Option<ReplicaSet>,
    old: Vec<ReplicaSet>,
    next_revision: i64,
}

pub(super) fn is_recreate(deployment: &Deployment) -> bool {
    !Limits::of(deployment).rolling
}

pub(super) fn plan(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
    old_pods_run: impl Fn(&ReplicaSet) -> bool,
    now: Timestamp,
) -> Plan {
    let new = find_new(deployment, sets);
    let is_new = |set: &Arc<ReplicaSet>| new.is_some_and(|new| Arc::ptr_eq(new, set));
    let old: Vec<ReplicaSet> = sets.iter().filter(|set| !is_new(set)).map(|set| (**set).clone()).collect();
    let view = View {
        deployment,
        limits: Limits::of(deployment),
        all: sets,
        next_revision: old.iter().map(|set| revision(&set.metadata)).max().unwrap_or(0) + 1,
        new: new.map(|set| (**set).clone()),
        old,
    };
    let mut plan = Plan::default();
    if deployment.metadata.deletion_timestamp.is_some() {
        view.finish(&mut plan, NewSet::None, Judge::CountsOnly, now);
        return plan;
    }
    let paused = deployment.spec.as_ref().and_then(|spec| spec.paused).unwrap_or(false);
    if paused || view.was_rescaled() {
        let resizes = rolling::rescale(deployment, view.limits, view.new.as_ref(), &view.old);
        view.resize(&mut plan, resizes);
        if paused {
            view.clean_up(&mut plan, now);
        }
        if paused || !plan.steps.is_empty() {
            view.finish(&mut plan, NewSet::None, Judge::CountsOnly, now);
            return plan;
        }
    }
    let new_set = view.roll_out(&mut plan, old_pods_run);
    if plan.steps.is_empty() {
        view.clean_up(&mut plan, now);
    }
    match new_set.as_deref() {
        Some(name) if view.new.is_none() => {
            view.finish(&mut plan, NewSet::Created(name), Judge::Progress, now)
        }
        Some(name) => view.finish(&mut plan, NewSet::Found(name), Judge::Progress, now),
        None => view.finish(&mut plan, NewSet::None, Judge::Progress, now),
    }
    plan
}

impl View<'_> {
    /// True if `spec.replicas` changed since the replica sets were last scaled.
    fn was_rescaled(&self) -> bool {
        let active = self.all.iter().filter(|set| replicas(set) > 0);
        let noted = active.filter_map(|set| number(set, DESIRED));
        noted.into_iter().any(|desired| desired != self.limits.desired)
    }

    /// Moves one step towards the new template. Returns the name of the new replica set once there is one.
    fn roll_out(&self, plan: &mut Plan, old_pods_run: impl Fn(&ReplicaSet) -> bool) -> Option<String> {
        if !self.limits.rolling {
            let running: Vec<Resize> =
                self.old.iter().filter(|set| replicas(set) > 0).map(|set| (set.clone(), 0)).collect();
            if !running.is_empty() {
                self.resize(plan, running);
                return None;
            }
            if self.old.iter().any(|set| actual(set) > 0 || old_pods_run(set)) {
                return None;
            }
        }
        let total: i32 = self.all.iter().map(|set| replicas(set)).sum();
        let Some(new) = &self.new else {
            let size = self.limits.new_size(total, 0);
            let set =
                replica_sets::build(self.deployment, size, self.limits.max_total(), self.next_revision)?;
            let name = name(&set.metadata).to_owned();
            plan.steps.push(Step::Create(Box::new(set)));
            self.note_revision(plan, self.next_revision);
            return Some(name);
        };
        let mut annotated = new.clone();
        let changed = annotate(&mut annotated, self.deployment, Some(self.next_revision));
        let min_ready = self.deployment.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
        let differs = annotated
            .spec
            .as_ref()
            .is_some_and(|spec| spec.min_ready_seconds.unwrap_or(0) != min_ready.unwrap_or(0));
        if let Some(spec) = annotated.spec.as_mut().filter(|_| differs) {
            spec.min_ready_seconds = min_ready;
        }
        let size = if replicas(new) > self.limits.desired {
            self.limits.desired
        } else {
            self.limits.new_size(total, replicas(new))
        };
        if changed || differs || size != replicas(new) {
            self.update(plan, annotated.clone(), size, changed || differs);
        } else if self.limits.rolling {
            self.resize(plan, rolling::shrink_old(self.limits, new, &self.old));
        }
        self.note_revision(plan, revision(&annotated.metadata));
        Some(name(&new.metadata).to_owned())
    }

    fn resize(&self, plan: &mut Plan, resizes: Vec<Resize>) {
        for (set, size) in resizes {
            self.update(plan, set, size, false);
        }
    }

    fn update(&self, plan: &mut Plan, mut set: ReplicaSet, size: i32, changed: bool) {
        let before = replicas(&set);
        let noted = note_size(&mut set, self.deployment, self.limits.max_total());
        if before == size && !noted && !changed {
            return;
        }
        if let Some(spec) = &mut set.spec {
            spec.replicas = Some(size);
        }
        let name = name(&set.metadata);
        let note = match size.cmp(&before) {
            std::cmp::Ordering::Equal => None,
            std::cmp::Ordering::Greater => {
                Some(format!("Scaled up replica set {name} from {before} to {size}"))
            }
            std::cmp::Ordering::Less => {
                Some(format!("Scaled down replica set {name} from {before} to {size}"))
            }
        };
        plan.steps.push(Step::Update { set: Box::new(set), note });
    }

    /// Notes the revision on the deployment itself.
    fn note_revision(&self, plan: &mut Plan, revision: i64) {
        let revision = revision.to_string();
        if annotation(&self.deployment.metadata, REVISION) != Some(&revision) {
            let mut annotations = self.deployment.metadata.annotations.clone().unwrap_or_default();
            annotations.insert(REVISION.to_owned(), revision);
            plan.steps.push(Step::Annotate(annotations));
        }
    }

    /// Deletes the oldest unused replica sets beyond the history limit, once the rollout is complete.
    fn clean_up(&self, plan: &mut Plan, now: Timestamp) {
        let limit = self.deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit);
        let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else { return };
        let status = self.status(NewSet::None, Judge::CountsOnly, now);
        if !progress::is_complete(self.deployment, self.limits, &status) {
            return;
        }
        let mut kept: Vec<&ReplicaSet> =
            self.old.iter().filter(|set| set.metadata.deletion_timestamp.is_none()).collect();
        kept.sort_by_key(|set| revision(&set.metadata));
        let excess = kept.len().saturating_sub(limit);
        let unused = |set: &&ReplicaSet| {
            let observed = set.status.as_ref().and_then(|status| status.observed_generation);
            actual(set) == 0 && replicas(set) == 0 && set.metadata.generation <= observed
        };
        let doomed = kept.into_iter().take(excess).filter(unused);
        plan.steps.extend(doomed.map(|set| Step::Delete(Box::new(set.clone()))));
    }

    fn status(&self, new_set: NewSet<'_>, judge: Judge, now: Timestamp) -> DeploymentStatus {
        progress::status(self.deployment, self.limits, self.all, self.new.as_ref(), new_set, judge, now)
    }

    fn finish(&self, plan: &mut Plan, new_set: NewSet<'_>, judge: Judge, now: Timestamp) {
        let status = self.status(new_set, judge, now);
        plan.look_again = progress::next_look(self.deployment, self.limits, &status, now);
        if !crate::hash::same_status(self.deployment.status.as_ref(), &status) {
            plan.status = Some(status);
        }
    }
}

#[cfg(test)]
mod tests;
