//! Where a pod's status goes: the API server's status subresource, and the final delete.

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};

use reconcile::object::resource_version_of;

use super::model::PodModel;
use super::status_patch::patch;
use crate::api::{Api, ApiError};

#[derive(Debug)]
pub(crate) enum Sent {
    /// The status the server holds now, and its version; none where nothing was sent.
    Stored(Box<PodStatus>, Option<u64>),
    /// The pod is not there, or another of its name is.
    Gone,
    Failed(ApiError),
}

/// The object a pod is known by in the API: itself, or for a static pod its mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

pub(crate) fn identity(model: &PodModel, mirror: Option<&Pod>) -> Option<Identity> {
    let uid = if model.is_static() { mirror?.metadata.uid.clone()? } else { model.uid.clone() };
    Some(Identity { namespace: model.namespace.clone(), name: model.name.clone(), uid })
}

pub(crate) fn differs(old: &PodStatus, new: &PodStatus) -> bool {
    old != new && patch("", old, new).is_some()
}

/// Sends what differs between `old`, last known to the server, and `new`.
pub(crate) async fn send(api: Api, identity: Identity, old: PodStatus, new: PodStatus) -> Sent {
    let Some(change) = patch(&identity.uid, &old, &new) else { return Sent::Stored(Box::new(old), None) };
    let pods = match api.namespaced::<Pod>(&identity.namespace) {
        Ok(pods) => pods,
        Err(ApiError::NoServer) => return Sent::Stored(Box::new(new), None),
        Err(error) => return Sent::Failed(error),
    };
    match pods.patch_status(&identity.name, &PatchParams::default(), &Patch::Strategic(change)).await {
        Ok(stored) => {
            let version = resource_version_of(&stored.metadata);
            Sent::Stored(Box::new(stored.status.unwrap_or_default()), Some(version))
        }
        Err(source) => {
            let error = ApiError::call("patch", format!("status of pod {}", identity.name), source);
            // 409: the uid is another pod's.
            if error.is_not_found() || error.code() == Some(409) { Sent::Gone } else { Sent::Failed(error) }
        }
    }
}

/// The one delete a kubelet makes: of a pod that has ended and was asked to go.
pub(crate) async fn delete(api: Api, identity: Identity) -> Result<(), ApiError> {
    let preconditions = Preconditions { uid: Some(identity.uid), resource_version: None };
    let parameters = DeleteParams::default().grace_period(0).preconditions(preconditions);
    let pods = api.namespaced::<Pod>(&identity.namespace)?;
    match pods.delete(&identity.name, &parameters).await {
        Ok(_) => Ok(()),
        Err(source) => {
            let error = ApiError::call("delete", format!("pod {}", identity.name), source);
            if error.is_not_found() || error.code() == Some(409) { Ok(()) } else { Err(error) }
        }
    }
}
