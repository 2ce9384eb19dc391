//! A deployment's view of its replica sets: which is the new one, their sizes, and what is noted on them.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde_json::Value;

use crate::claims::owner_reference;
use crate::hash;
use crate::pods::{annotation, created, name};

pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(super) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MAX: &str = "deployment.kubernetes.io/max-replicas";
const HASH_LABEL: &str = "pod-template-hash";
/// Annotations of a deployment that say nothing about its replica sets.
const NOT_COPIED: &[&str] = &[
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];

pub(super) fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

pub(super) fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

pub(super) fn actual(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |status| status.replicas)
}

pub(super) fn number(set: &ReplicaSet, key: &str) -> Option<i32> {
    annotation(&set.metadata, key)?.parse().ok()
}

pub(super) fn revision(metadata: &ObjectMeta) -> i64 {
    annotation(metadata, REVISION).and_then(|revision| revision.parse().ok()).unwrap_or(0)
}

/// The replica set of the deployment's template: the oldest, should there be several.
pub(super) fn find_new<'a>(
    deployment: &Deployment,
    sets: &'a [Arc<ReplicaSet>],
) -> Option<&'a Arc<ReplicaSet>> {
    let wanted = comparable(&deployment.spec.as_ref()?.template);
    let template =
        |set: &ReplicaSet| set.spec.as_ref().and_then(|spec| spec.template.as_ref().map(comparable));
    let same = |set: &&Arc<ReplicaSet>| template(set).as_ref() == Some(&wanted);
    sets.iter().filter(same).min_by_key(|set| (created(&set.metadata), name(&set.metadata)))
}

fn comparable(template: &PodTemplateSpec) -> Value {
    let mut template = template.clone();
    if let Some(labels) = template.metadata.as_mut().and_then(|metadata| metadata.labels.as_mut()) {
        labels.remove(HASH_LABEL);
    }
    hash::canonical(&template)
}

/// A replica set for the deployment's template.
pub(super) fn build(
    deployment: &Deployment,
    size: i32,
    max_replicas: i32,
    revision: i64,
) -> Option<ReplicaSet> {
    let spec = deployment.spec.as_ref()?;
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
    let hash = hash::template_hash(&spec.template, collisions);
    let mut template = spec.template.clone();
    let with_hash = |labels: &mut Option<BTreeMap<String, String>>| {
        labels.get_or_insert_default().insert(HASH_LABEL.to_owned(), hash.clone());
    };
    with_hash(&mut template.metadata.get_or_insert_default().labels);
    let mut selector: LabelSelector = spec.selector.clone();
    with_hash(&mut selector.match_labels);
    let metadata = ObjectMeta {
        name: Some(format!("{}-{hash}", name(&deployment.metadata))),
        namespace: deployment.metadata.namespace.clone(),
        labels: template.metadata.as_ref().and_then(|metadata| metadata.labels.clone()),
        owner_references: Some(vec![owner_reference(deployment)?]),
        ..ObjectMeta::default()
    };
    let spec = ReplicaSetSpec {
        replicas: Some(size),
        min_ready_seconds: spec.min_ready_seconds,
        selector,
        template: Some(template),
    };
    let mut set = ReplicaSet { metadata, spec: Some(spec), status: None };
    annotate(&mut set, deployment, Some(revision));
    note_size(&mut set, deployment, max_replicas);
    Some(set)
}

/// Notes on a replica set how large its deployment was when it was last scaled; true if that changed it.
pub(super) fn note_size(set: &mut ReplicaSet, deployment: &Deployment, max_replicas: i32) -> bool {
    let desired = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let annotations = set.metadata.annotations.get_or_insert_default();
    let mut changed = false;
    for (key, value) in [(DESIRED, desired), (MAX, max_replicas)] {
        let value = value.to_string();
        changed |= annotations.insert(key.to_owned(), value.clone()) != Some(value);
    }
    changed
}

/// Copies the deployment's annotations and, on the new replica set, raises the revision; true if that changed it.
pub(super) fn annotate(set: &mut ReplicaSet, deployment: &Deployment, revision_to_be: Option<i64>) -> bool {
    let old_revision = annotation(&set.metadata, REVISION).map(str::to_owned);
    let annotations = set.metadata.annotations.get_or_insert_default();
    let mut changed = false;
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !NOT_COPIED.contains(&key.as_str()) {
            changed |= annotations.insert(key.clone(), value.clone()).as_ref() != Some(value);
        }
    }
    let Some(revision) = revision_to_be else { return changed };
    if revision <= old_revision.as_deref().and_then(|old| old.parse().ok()).unwrap_or(0) {
        return changed;
    }
    annotations.insert(REVISION.to_owned(), revision.to_string());
    if let Some(old) = old_revision {
        let history = annotations.entry(REVISION_HISTORY.to_owned()).or_default();
        if !history.is_empty() {
            history.push(',');
        }
        history.push_str(&old);
    }
    true
}
