//! The labels and annotations by which the runtime's objects are recognised again.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Container;

pub(crate) const POD_NAME: &str = "io.kubernetes.pod.name";
pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub(crate) const POD_UID: &str = "io.kubernetes.pod.uid";
pub(crate) const CONTAINER_NAME: &str = "io.kubernetes.container.name";
pub(crate) const HASH: &str = "io.kubernetes.container.hash";
pub(crate) const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
pub(crate) const TERMINATION_MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
pub(crate) const TERMINATION_MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
pub(crate) const POD_GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";

/// Changes when the container must be restarted to follow its spec: that is, with name or image. FNV-1a, so
/// that it is the same in every build.
pub(crate) fn hash(container: &Container) -> String {
    let image = container.image.as_deref().unwrap_or_default();
    let mut hash = 0x811c_9dc5_u32;
    for byte in container.name.bytes().chain([0]).chain(image.bytes()) {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    format!("{hash:x}")
}

pub(crate) fn pod_labels(name: &str, namespace: &str, uid: &str) -> BTreeMap<String, String> {
    [(POD_NAME, name), (POD_NAMESPACE, namespace), (POD_UID, uid)]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}
