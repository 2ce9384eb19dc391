//! Mirror pods: what the API shows of static pods.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, PostParams, Preconditions};
use tracing::warn;

use crate::api::{ApiError, chain};
use crate::context::Context;
use crate::pod::model::{HASH_ANNOTATION, MIRROR_ANNOTATION, annotation};

pub(crate) fn key(pod: &Pod) -> (String, String) {
    let metadata = &pod.metadata;
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

pub(crate) fn is_mirror_of(mirror: &Pod, pod: &Pod) -> bool {
    annotation(mirror, MIRROR_ANNOTATION) == annotation(pod, HASH_ANNOTATION)
}

/// Creates the mirror; tried again until the API takes it or has one.
pub(crate) async fn create(context: &Arc<Context>, pod: &Pod) {
    if context.api.client().is_none() {
        return;
    }
    let mut delay = std::time::Duration::from_millis(500);
    loop {
        match create_once(context, pod).await {
            Ok(()) => return,
            Err(error) if matches!(error.code(), Some(409)) => return,
            Err(error) => warn!(pod = pod.metadata.name, error = %chain(&error), "mirror pod not created"),
        }
        context.clock.sleep(delay).await;
        delay = (delay * 2).min(std::time::Duration::from_secs(30));
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if context.pods.get(uid).is_none() {
            return;
        }
    }
}

async fn create_once(context: &Context, pod: &Pod) -> Result<(), ApiError> {
    let node: Node = context.api.get("node", &context.config.node_name).await?;
    let mut mirror = pod.clone();
    let hash = annotation(pod, HASH_ANNOTATION).unwrap_or_default().to_owned();
    mirror.metadata.uid = None;
    mirror.metadata.annotations.get_or_insert_default().insert(MIRROR_ANNOTATION.to_owned(), hash);
    mirror.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: context.config.node_name.clone(),
        uid: node.metadata.uid.unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: None,
    }]);
    mirror.status = None;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let created = context.api.namespaced::<Pod>(namespace)?.create(&PostParams::default(), &mirror).await;
    created.map(drop).map_err(|e| ApiError::call("create", "mirror pod", e))
}

pub(crate) async fn delete(context: &Arc<Context>, mirror: &Pod) {
    let preconditions = Preconditions { uid: mirror.metadata.uid.clone(), resource_version: None };
    let parameters = DeleteParams::default().grace_period(0).preconditions(preconditions);
    let (namespace, name) = key(mirror);
    let Ok(pods) = context.api.namespaced::<Pod>(&namespace) else { return };
    if let Err(source) = pods.delete(&name, &parameters).await {
        let error = ApiError::call("delete", "mirror pod", source);
        if !error.is_not_found() {
            warn!(pod = name, error = %chain(&error), "mirror pod not deleted");
        }
    }
}
