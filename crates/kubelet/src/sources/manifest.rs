//! Static pod manifests: parsed, defaulted and given the identity of this node.

use k8s_openapi::api::core::v1::{Pod, Toleration};
use serde_json::Value;

use super::Source;
use crate::pod::model::{HASH_ANNOTATION, SOURCE_ANNOTATION};

#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error("not YAML: {0}")]
    Yaml(String),
    #[error("not a pod")]
    Decode(#[source] serde_json::Error),
    #[error("kind is {0:?}, want Pod")]
    Kind(String),
    #[error("pod {0:?} has no containers")]
    NoContainers(String),
    #[error("metadata.name is missing")]
    NoName,
}

/// One pod, or the pods of a `PodList`.
pub(crate) fn parse(
    text: &str,
    source: Source,
    origin: &str,
    node_name: &str,
) -> Result<Vec<Pod>, ManifestError> {
    let value: Value = serde_saphyr::from_str(text).map_err(|e| ManifestError::Yaml(e.to_string()))?;
    let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default();
    let items = match kind {
        "Pod" => vec![value],
        "PodList" | "List" => value.get("items").and_then(Value::as_array).cloned().unwrap_or_default(),
        other => return Err(ManifestError::Kind(other.to_owned())),
    };
    items.into_iter().map(|item| complete(item, source, origin, node_name)).collect()
}

fn complete(value: Value, source: Source, origin: &str, node_name: &str) -> Result<Pod, ManifestError> {
    let hash = hash(&format!("{node_name} {origin} {value}"));
    let mut pod: Pod = serde_json::from_value(value).map_err(ManifestError::Decode)?;
    let name = pod.metadata.name.clone().filter(|n| !n.is_empty()).ok_or(ManifestError::NoName)?;
    let spec = pod.spec.get_or_insert_default();
    if spec.containers.is_empty() {
        return Err(ManifestError::NoContainers(name));
    }
    spec.node_name = Some(node_name.to_owned());
    spec.enable_service_links.get_or_insert(true);
    spec.restart_policy.get_or_insert_with(|| "Always".to_owned());
    spec.dns_policy.get_or_insert_with(|| "ClusterFirst".to_owned());
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.tolerations.get_or_insert_default().push(Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..Toleration::default()
    });
    let metadata = &mut pod.metadata;
    metadata.name = Some(format!("{name}-{node_name}"));
    metadata.namespace =
        Some(metadata.namespace.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| "default".into()));
    metadata.uid = Some(metadata.uid.clone().filter(|u| !u.is_empty()).unwrap_or_else(|| hash.clone()));
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.insert(SOURCE_ANNOTATION.to_owned(), source.as_str().to_owned());
    annotations.insert(HASH_ANNOTATION.to_owned(), hash);
    Ok(pod)
}

/// 128 bits of FNV-1a in hex: the same text is the same pod, in every build.
fn hash(text: &str) -> String {
    let mut hash = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128;
    for byte in text.bytes() {
        hash = (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
    }
    format!("{hash:032x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_become_pods_of_this_node() {
        let text =
            "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers: [{name: c, image: i}]\n";
        let pods = parse(text, Source::File, "/m/web.yaml", "node").unwrap();
        let metadata = &pods[0].metadata;
        assert_eq!(metadata.name.as_deref(), Some("web-node"));
        assert_eq!(metadata.namespace.as_deref(), Some("default"));
        assert_eq!(metadata.uid.as_ref().unwrap().len(), 32);
        let again = parse(text, Source::File, "/m/web.yaml", "node").unwrap();
        assert_eq!(again[0].metadata.uid, metadata.uid);
        let changed =
            parse(&text.replace("image: i", "image: j"), Source::File, "/m/web.yaml", "node").unwrap();
        assert_ne!(changed[0].metadata.uid, metadata.uid);
    }

    #[test]
    fn bad_manifests_are_named() {
        for (text, message) in [
            ("kind: Service", "kind is \"Service\", want Pod"),
            ("kind: Pod\nspec: {containers: [{name: c}]}", "metadata.name is missing"),
            ("kind: Pod\nmetadata: {name: 5}\nspec: {containers: 7}", "not a pod"),
            ("kind: Pod\nmetadata: {name: a}", "pod \"a\" has no containers"),
            ("kind: Pod\nmetadata: {name: a}\nspec: {containers: []}", "pod \"a\" has no containers"),
        ] {
            let error = parse(text, Source::File, "o", "n").unwrap_err();
            assert_eq!(error.to_string(), message, "{text}");
        }
    }
}
