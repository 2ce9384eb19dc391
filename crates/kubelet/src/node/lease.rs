//! The heartbeat: a Lease renewed apart from all pod work.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::PostParams;
use tracing::warn;

use crate::api::{ApiError, chain};
use crate::context::Context;

const NAMESPACE: &str = "kube-node-lease";
const FIRST_RETRY: Duration = Duration::from_millis(200);

pub(crate) async fn run(context: Arc<Context>) {
    let duration = context.config.kubelet.node_lease_duration_seconds;
    let interval = Duration::from_secs(u64::from(duration)) / 4;
    let mut held = None;
    let mut retry = FIRST_RETRY;
    loop {
        match renew(&context, held.take()).await {
            Ok(lease) => {
                held = Some(lease);
                retry = FIRST_RETRY;
                context.clock.sleep(interval).await;
            }
            Err(error) => {
                warn!(error = %chain(&error), "node lease not renewed");
                context.clock.sleep(retry).await;
                retry = (retry * 2).min(interval);
            }
        }
    }
}

/// Renews what we hold; after a conflict or loss it is read, or made, again.
async fn renew(context: &Context, held: Option<Lease>) -> Result<Lease, ApiError> {
    let api = context.api.namespaced::<Lease>(NAMESPACE)?;
    let name = &context.config.node_name;
    let failed = |verb, e| ApiError::call(verb, "node lease", e);
    let found = match held {
        Some(lease) => Some(lease),
        None => api.get_opt(name).await.map_err(|e| failed("get", e))?,
    };
    let duration = i32::try_from(context.config.kubelet.node_lease_duration_seconds).unwrap_or(i32::MAX);
    let spec = LeaseSpec {
        holder_identity: Some(name.clone()),
        lease_duration_seconds: Some(duration),
        renew_time: Some(MicroTime(context.clock.now())),
        ..LeaseSpec::default()
    };
    match found {
        Some(mut lease) => {
            lease.spec = Some(spec);
            own(context, &mut lease.metadata);
            api.replace(name, &PostParams::default(), &lease).await.map_err(|e| failed("update", e))
        }
        None => {
            let mut metadata = ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(NAMESPACE.to_owned()),
                ..ObjectMeta::default()
            };
            own(context, &mut metadata);
            let lease = Lease { metadata, spec: Some(spec) };
            api.create(&PostParams::default(), &lease).await.map_err(|e| failed("create", e))
        }
    }
}

/// The lease goes with its node.
fn own(context: &Context, metadata: &mut ObjectMeta) {
    let uid = context.node().uid.clone();
    if uid.is_empty() {
        return;
    }
    metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: context.config.node_name.clone(),
        uid,
        ..OwnerReference::default()
    }]);
}
