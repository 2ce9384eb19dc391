//! Defaults of pod specs, wherever they stand: pods, templates, job and workload kinds.

use std::collections::HashSet;

use meta::field::{FieldError, FieldPath};
use serde_json::{Value, json};

use super::{default_field, default_text, fields, items};
use crate::objects::ObjectExt;

const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];
/// 0644.
const VOLUME_MODE: i64 = 420;

/// What every container of a pod spec needs: a name of its own and an image.
pub(super) fn validate_spec(spec: &Value, path: &FieldPath) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let list = |name: &str| spec.get(name).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if list("containers").is_empty() {
        errors.push(FieldError::required(&path.child("containers"), ""));
    }
    let mut names = HashSet::new();
    for field in ["initContainers", "containers"] {
        for (index, container) in list(field).iter().enumerate() {
            let path = path.child(field).index(index);
            let name = container.str_at(&["name"]);
            if name.is_empty() {
                errors.push(FieldError::required(&path.child("name"), ""));
            } else {
                for text in meta::content::dns1123_label(name) {
                    errors.push(FieldError::invalid(&path.child("name"), name, text));
                }
                if !names.insert(name) {
                    errors.push(FieldError::duplicate(&path.child("name"), name));
                }
            }
            if container.str_at(&["image"]).is_empty() {
                errors.push(FieldError::required(&path.child("image"), ""));
            }
        }
    }
    errors
}

/// Defaults of a `PodTemplateSpec` or of a whole pod.
pub(super) fn default_spec(spec: &mut Value) {
    default_text(spec, "dnsPolicy", "ClusterFirst");
    default_text(spec, "restartPolicy", "Always");
    default_field(spec, "securityContext", json!({}));
    default_field(spec, "terminationGracePeriodSeconds", 30);
    default_text(spec, "schedulerName", "default-scheduler");
    for list in CONTAINER_LISTS {
        items(spec, list).for_each(default_container);
    }
    items(spec, "volumes").for_each(default_volume);
    // The old name of the field goes along with the new one.
    let account = spec.str_at(&["serviceAccountName"]).to_owned();
    let old = spec.str_at(&["serviceAccount"]).to_owned();
    if account.is_empty() && !old.is_empty() {
        spec["serviceAccountName"] = old.into();
    } else if !account.is_empty() {
        spec["serviceAccount"] = account.into();
    }
}

/// What only real pods get: host ports, and requests from limits.
pub(super) fn default_pod_spec(spec: &mut Value) {
    default_spec(spec);
    default_field(spec, "enableServiceLinks", true);
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["initContainers", "containers"] {
        for container in items(spec, list) {
            if host_network {
                items(container, "ports").for_each(default_host_port);
            }
            default_requests(&mut container["resources"]);
        }
    }
    if spec.get("resources").is_some() {
        default_requests(&mut spec["resources"]);
    }
}

fn default_host_port(port: &mut Value) {
    if port.get("hostPort").and_then(Value::as_i64).unwrap_or(0) == 0
        && let Some(number) = port.get("containerPort").cloned()
    {
        port["hostPort"] = number;
    }
}

/// What has a limit and no request requests its limit.
fn default_requests(resources: &mut Value) {
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { return };
    let Some(requests) =
        fields(resources).and_then(|fields| super::fields(fields.entry("requests").or_insert(Value::Null)))
    else {
        return;
    };
    for (name, quantity) in limits {
        requests.entry(name).or_insert(quantity);
    }
}

fn default_container(container: &mut Value) {
    let policy = pull_policy(container.str_at(&["image"]));
    default_text(container, "imagePullPolicy", policy);
    default_text(container, "terminationMessagePath", "/dev/termination-log");
    default_text(container, "terminationMessagePolicy", "File");
    items(container, "ports").for_each(|port| default_text(port, "protocol", "TCP"));
    for variable in items(container, "env") {
        if let Some(reference) = variable.get_mut("valueFrom").and_then(|source| source.get_mut("fieldRef")) {
            default_text(reference, "apiVersion", "v1");
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(probe) {
            default_probe(probe);
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(handler) = container.get_mut("lifecycle").and_then(|own| own.get_mut(hook)) {
            default_handler(handler);
        }
    }
}

/// `Always` for the tag `latest`, given or implied.
fn pull_policy(image: &str) -> &'static str {
    let last = image.rsplit('/').next().unwrap_or_default();
    let by_digest = last.contains('@');
    let tag = last.split('@').next().and_then(|name| name.split_once(':')).map(|(_, tag)| tag);
    match tag {
        None if !by_digest => "Always",
        Some("latest") => "Always",
        _ => "IfNotPresent",
    }
}

fn default_probe(probe: &mut Value) {
    for (field, value) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        if probe.get(field).and_then(Value::as_i64).unwrap_or(0) == 0 {
            probe[field] = value.into();
        }
    }
    default_handler(probe);
    if let Some(grpc) = probe.get_mut("grpc") {
        default_field(grpc, "service", "");
    }
}

fn default_handler(handler: &mut Value) {
    if let Some(get) = handler.get_mut("httpGet") {
        default_text(get, "path", "/");
        default_text(get, "scheme", "HTTP");
    }
}

fn default_volume(volume: &mut Value) {
    let Some(fields) = volume.as_object_mut() else { return };
    if fields.keys().all(|field| field == "name") {
        fields.insert("emptyDir".to_owned(), json!({}));
        return;
    }
    for kind in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(kind) {
            default_field(source, "defaultMode", VOLUME_MODE);
        }
    }
    if let Some(source) = volume.get_mut("downwardAPI") {
        items(source, "items").for_each(default_field_ref);
    }
    if let Some(projected) = volume.get_mut("projected") {
        for source in items(projected, "sources") {
            if let Some(token) = source.get_mut("serviceAccountToken") {
                default_field(token, "expirationSeconds", 3600);
            }
            if let Some(downward) = source.get_mut("downwardAPI") {
                items(downward, "items").for_each(default_field_ref);
            }
        }
    }
    if let Some(path) = volume.get_mut("hostPath") {
        default_field(path, "type", "");
    }
    if let Some(iscsi) = volume.get_mut("iscsi") {
        default_text(iscsi, "iscsiInterface", "default");
    }
    if let Some(rbd) = volume.get_mut("rbd") {
        default_text(rbd, "pool", "rbd");
        default_text(rbd, "user", "admin");
        default_text(rbd, "keyring", "/etc/ceph/keyring");
    }
    if let Some(spec) = volume.get_mut("ephemeral").and_then(|own| own.get_mut("volumeClaimTemplate")) {
        default_text(&mut spec["spec"], "volumeMode", "Filesystem");
    }
}

fn default_field_ref(item: &mut Value) {
    if let Some(reference) = item.get_mut("fieldRef") {
        default_text(reference, "apiVersion", "v1");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policy_follows_the_tag() {
        let table = [
            ("a", "Always"),
            ("a:latest", "Always"),
            ("a:1", "IfNotPresent"),
            ("host:5000/a", "Always"),
            ("host:5000/a:1", "IfNotPresent"),
            ("a@sha256:0", "IfNotPresent"),
        ];
        for (image, policy) in table {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }
}
