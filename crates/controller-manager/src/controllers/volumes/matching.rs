//! Which volume serves a claim.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as WireQuantity;
use kube::core::Selector;
use meta::quantity::Quantity;

use crate::claims;
use crate::pods::{name, namespace};

const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

pub(super) fn class_of_claim(claim: &PersistentVolumeClaim) -> &str {
    let annotated = crate::pods::annotation(&claim.metadata, CLASS_ANNOTATION);
    let named = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    annotated.or(named).unwrap_or_default()
}

pub(super) fn class_of_volume(volume: &PersistentVolume) -> &str {
    let annotated = crate::pods::annotation(&volume.metadata, CLASS_ANNOTATION);
    let named = volume.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    annotated.or(named).unwrap_or_default()
}

/// True if the volume is set aside for this claim, by uid if the reference has one.
pub(super) fn refers_to(reference: &ObjectReference, claim: &PersistentVolumeClaim) -> bool {
    reference.name.as_deref() == Some(name(&claim.metadata))
        && reference.namespace.as_deref() == Some(namespace(&claim.metadata))
        && reference.uid.as_ref().is_none_or(|uid| uid.is_empty() || Some(uid) == claim.metadata.uid.as_ref())
}

/// The volume set aside for the claim, else the smallest free one that satisfies it.
pub(super) fn find(
    claim: &PersistentVolumeClaim,
    volumes: &[Arc<PersistentVolume>],
) -> Option<Arc<PersistentVolume>> {
    let spec = claim.spec.as_ref()?;
    let selector: Option<Selector> = match &spec.selector {
        None => None,
        Some(selector) => Some(selector.clone().try_into().ok()?),
    };
    let wanted =
        size(spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()?.get("storage")));
    let mut best: Option<(Quantity, &Arc<PersistentVolume>)> = None;
    for volume in volumes {
        if !satisfies(claim, volume) {
            continue;
        }
        let Some(capacity) = capacity(volume) else { continue };
        if wanted.as_ref().is_some_and(|wanted| capacity < *wanted) {
            continue;
        }
        match volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) {
            Some(reference) if refers_to(reference, claim) => return Some(Arc::clone(volume)),
            Some(_) => continue,
            None => {}
        }
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
        let chosen = selector.as_ref().is_none_or(|selector| claims::matches(selector, &volume.metadata));
        let smaller = best.as_ref().is_none_or(|(size, _)| capacity < *size);
        if phase == Some("Available") && class_of_volume(volume) == class_of_claim(claim) && chosen && smaller
        {
            best = Some((capacity, volume));
        }
    }
    best.map(|(_, volume)| Arc::clone(volume))
}

/// True if the volume's modes serve the claim, whatever its size.
pub(super) fn satisfies(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let (Some(wanted), Some(offered)) = (&claim.spec, &volume.spec) else { return false };
    let mode = |mode: &Option<String>| mode.as_deref().unwrap_or("Filesystem").to_owned();
    let has = |access: &String| offered.access_modes.iter().flatten().any(|other| other == access);
    let attributes = |class: &Option<String>| class.clone().unwrap_or_default();
    volume.metadata.deletion_timestamp.is_none()
        && mode(&wanted.volume_mode) == mode(&offered.volume_mode)
        && attributes(&wanted.volume_attributes_class_name)
            == attributes(&offered.volume_attributes_class_name)
        && wanted.access_modes.iter().flatten().all(has)
}

pub(super) fn capacity(volume: &PersistentVolume) -> Option<Quantity> {
    size(volume.spec.as_ref()?.capacity.as_ref()?.get("storage"))
}

fn size(quantity: Option<&WireQuantity>) -> Option<Quantity> {
    quantity?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_smallest_fitting_volume_is_found_or_the_one_set_aside() {
        let volume = |name: &str, size: &str, modes: &[&str], class: &str, claim: Option<&str>| {
            let reference = claim.map(|claim| json!({"namespace": "d", "name": claim}));
            let volume = json!({
                "metadata": {"name": name, "labels": {"tier": class}},
                "spec": {"capacity": {"storage": size}, "accessModes": modes, "storageClassName": class, "claimRef": reference},
                "status": {"phase": "Available"},
            });
            Arc::new(serde_json::from_value::<PersistentVolume>(volume).unwrap())
        };
        let once: &[&str] = &["ReadWriteOnce"];
        let volumes = [
            volume("large", "10Gi", once, "fast", None),
            volume("small", "2Gi", once, "fast", None),
            volume("tiny", "500Mi", once, "fast", None),
            volume("shared", "2Gi", &["ReadWriteMany"], "fast", None),
            volume("slow", "2Gi", once, "slow", None),
            volume("mine", "50Gi", once, "", Some("reserved")),
        ];
        let find = |claim_name: &str, size: &str, mode: &str, class: &str| {
            let claim = serde_json::from_value(json!({
                "metadata": {"namespace": "d", "name": claim_name},
                "spec": {"accessModes": [mode], "storageClassName": class, "resources": {"requests": {"storage": size}}},
            }))
            .unwrap();
            find(&claim, &volumes).map_or("none".to_owned(), |volume| name(&volume.metadata).to_owned())
        };
        assert_eq!(find("c", "1Gi", "ReadWriteOnce", "fast"), "small");
        assert_eq!(find("c", "3Gi", "ReadWriteOnce", "fast"), "large");
        assert_eq!(find("c", "1Gi", "ReadWriteMany", "fast"), "shared");
        assert_eq!(find("c", "1Gi", "ReadWriteOnce", "other"), "none");
        assert_eq!(find("c", "20Gi", "ReadWriteOnce", "fast"), "none");
        assert_eq!(find("reserved", "1Gi", "ReadWriteOnce", "fast"), "mine");
    }
}
