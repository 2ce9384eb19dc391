//! Names: which pod is which ordinal, and which claims are its.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};

use crate::claims::owner_reference;
use crate::pods::{self, PodName, name};

pub(super) const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
pub(super) const POD_INDEX: &str = "apps.kubernetes.io/pod-index";
pub(super) const REVISION: &str = "controller-revision-hash";

/// The pod's ordinal, if its name says it is of this set.
pub(super) fn ordinal(set: &str, pod: &str) -> Option<i32> {
    let digits = pod.strip_prefix(set)?.strip_prefix('-')?;
    (digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok())?
}

pub(super) fn pod_name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", name(&set.metadata))
}

/// The pod of an ordinal, at a revision.
pub(super) fn pod(
    set: &StatefulSet,
    template: &PodTemplateSpec,
    ordinal: i32,
    revision: &str,
) -> Option<Pod> {
    let spec = set.spec.as_ref()?;
    let pod_name = pod_name(set, ordinal);
    let owner = owner_reference(set)?;
    let mut pod = pods::from_template(
        template,
        pods::namespace(&set.metadata),
        owner,
        PodName::Exact(pod_name.clone()),
    );
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME.to_owned(), pod_name.clone());
    labels.insert(POD_INDEX.to_owned(), ordinal.to_string());
    labels.insert(REVISION.to_owned(), revision.to_owned());
    let pod_spec = pod.spec.get_or_insert_default();
    pod_spec.hostname = Some(pod_name);
    pod_spec.subdomain.clone_from(&spec.service_name);
    let claims: BTreeMap<String, String> = spec
        .volume_claim_templates
        .iter()
        .flatten()
        .map(|template| (name(&template.metadata).to_owned(), claim_name(set, template, ordinal)))
        .collect();
    let volumes = pod_spec.volumes.take().unwrap_or_default();
    let mut volumes: Vec<Volume> =
        volumes.into_iter().filter(|volume| !claims.contains_key(&volume.name)).collect();
    volumes.extend(claims.into_iter().map(|(name, claim_name)| Volume {
        name,
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name,
            read_only: Some(false),
        }),
        ..Volume::default()
    }));
    pod_spec.volumes = (!volumes.is_empty()).then_some(volumes);
    Some(pod)
}

pub(super) fn claim_name(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i32) -> String {
    format!("{}-{}-{ordinal}", name(&template.metadata), name(&set.metadata))
}

/// The claims of an ordinal. `scaled_down` is the reference of the pod they go with when the set shrinks.
pub(super) fn claims(set: &StatefulSet, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let Some(spec) = set.spec.as_ref() else { return Vec::new() };
    let claim = |template: &PersistentVolumeClaim| {
        let mut labels = template.metadata.labels.clone().unwrap_or_default();
        let LabelSelector { match_labels, .. } = spec.selector.clone();
        labels.extend(match_labels.into_iter().flatten());
        PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(claim_name(set, template, ordinal)),
                namespace: set.metadata.namespace.clone(),
                labels: Some(labels),
                annotations: template.metadata.annotations.clone(),
                owner_references: claim_owner(set, None).map(|owner| vec![owner]),
                ..ObjectMeta::default()
            },
            spec: template.spec.clone(),
            status: None,
        }
    };
    spec.volume_claim_templates.iter().flatten().map(claim).collect()
}

/// Whom a claim goes with, by the retention policy: the pod that is scaled away, the set, or nobody.
pub(super) fn claim_owner(set: &StatefulSet, condemned: Option<&Pod>) -> Option<OwnerReference> {
    let policy = set.spec.as_ref()?.persistent_volume_claim_retention_policy.as_ref()?;
    let deletes = |policy: &Option<String>| policy.as_deref() == Some("Delete");
    if let Some(pod) = condemned.filter(|_| deletes(&policy.when_scaled)) {
        return kube::Resource::owner_ref(pod, &());
    }
    if deletes(&policy.when_deleted) { kube::Resource::owner_ref(set, &()) } else { None }
}
