//! Which other objects a pod's spec names.

use std::collections::HashSet;

use serde_json::Value;

use crate::objects::ObjectExt as _;

/// Names, all in the pod's namespace.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct PodReferences {
    pub secrets: HashSet<String>,
    pub config_maps: HashSet<String>,
    pub claims: HashSet<String>,
    pub resource_claims: HashSet<String>,
    pub trust_bundles: bool,
}

/// Volume sources with a `secretRef` beside them.
const SECRET_REF_VOLUMES: [&str; 7] =
    ["cephfs", "cinder", "flexVolume", "iscsi", "rbd", "scaleIO", "storageos"];

impl PodReferences {
    pub fn of(pod: &Value) -> Self {
        let mut found = Self::default();
        for secret in list(pod, &["spec", "imagePullSecrets"]) {
            add(&mut found.secrets, secret, &["name"]);
        }
        for containers in ["initContainers", "containers", "ephemeralContainers"] {
            for container in list(pod, &["spec", containers]) {
                found.container(container);
            }
        }
        for volume in list(pod, &["spec", "volumes"]) {
            found.volume(volume, pod.name());
        }
        found.resource_claims(pod);
        found
    }

    fn container(&mut self, container: &Value) {
        for source in list(container, &["envFrom"]) {
            add(&mut self.secrets, source, &["secretRef", "name"]);
            add(&mut self.config_maps, source, &["configMapRef", "name"]);
        }
        for variable in list(container, &["env"]) {
            add(&mut self.secrets, variable, &["valueFrom", "secretKeyRef", "name"]);
            add(&mut self.config_maps, variable, &["valueFrom", "configMapKeyRef", "name"]);
        }
    }

    fn volume(&mut self, volume: &Value, pod: &str) {
        add(&mut self.secrets, volume, &["secret", "secretName"]);
        add(&mut self.secrets, volume, &["azureFile", "secretName"]);
        add(&mut self.secrets, volume, &["csi", "nodePublishSecretRef", "name"]);
        for source in SECRET_REF_VOLUMES {
            add(&mut self.secrets, volume, &[source, "secretRef", "name"]);
        }
        add(&mut self.config_maps, volume, &["configMap", "name"]);
        add(&mut self.claims, volume, &["persistentVolumeClaim", "claimName"]);
        if volume.get("ephemeral").is_some_and(Value::is_object) {
            self.claims.insert(format!("{pod}-{}", volume.str_at(&["name"])));
        }
        for source in list(volume, &["projected", "sources"]) {
            add(&mut self.secrets, source, &["secret", "name"]);
            add(&mut self.config_maps, source, &["configMap", "name"]);
            self.trust_bundles |= source.get("clusterTrustBundle").is_some_and(Value::is_object);
        }
    }

    /// Claims named directly, and those made from a template, which the status names.
    fn resource_claims(&mut self, pod: &Value) {
        for claim in list(pod, &["spec", "resourceClaims"]) {
            add(&mut self.resource_claims, claim, &["resourceClaimName"]);
        }
        for claim in list(pod, &["status", "resourceClaimStatuses"]) {
            add(&mut self.resource_claims, claim, &["resourceClaimName"]);
        }
        add(&mut self.resource_claims, pod, &["status", "extendedResourceClaimStatus", "resourceClaimName"]);
    }
}

/// The list at `path`; empty if there is none.
pub(crate) fn list<'a>(value: &'a Value, path: &[&str]) -> &'a [Value] {
    value.at(path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn add(names: &mut HashSet<String>, value: &Value, path: &[&str]) {
    let name = value.str_at(path);
    if !name.is_empty() {
        names.insert(name.to_owned());
    }
}
