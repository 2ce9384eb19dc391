//! Gives every namespace its `default` service account.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::PostParams;
use meta::names::NamespacedName;
use reconcile::{Action, Informer, InformerEvent, ReconcileError, Reconciler};

use crate::context::{Context, api};
use crate::enqueue;

const DEFAULT: &str = "default";

struct ServiceAccounts {
    client: kube::Client,
    namespaces: Informer<Namespace>,
    accounts: Informer<ServiceAccount>,
}

pub(super) async fn run(context: Context) {
    let queue = context.queue("serviceaccount");
    let controller = Arc::new(ServiceAccounts {
        client: context.client.clone(),
        namespaces: context.informer(),
        accounts: context.informer(),
    });
    let _namespaces = enqueue::itself(&controller.namespaces, &queue);
    let _accounts = controller.accounts.subscribe({
        let queue = queue.clone();
        move |event| {
            if let InformerEvent::Deleted(account) = event {
                queue.add(namespace_key(account.metadata.namespace.as_deref().unwrap_or_default()));
            }
        }
    });
    if context.synced(&[&controller.namespaces, &controller.accounts]).await {
        context.run("serviceaccount", controller, queue, 1).await;
    }
}

pub(super) fn namespace_key(namespace: &str) -> NamespacedName {
    NamespacedName { namespace: String::new(), name: namespace.to_owned() }
}

/// True if things may still be put into the namespace.
pub(super) fn is_open(namespace: &Namespace) -> bool {
    let phase = namespace.status.as_ref().and_then(|status| status.phase.as_deref());
    namespace.metadata.deletion_timestamp.is_none() && phase != Some("Terminating")
}

#[async_trait]
impl Reconciler for ServiceAccounts {
    type Key = NamespacedName;

    async fn reconcile(&self, key: &NamespacedName) -> Result<Action, ReconcileError> {
        let wanted = NamespacedName { namespace: key.name.clone(), name: DEFAULT.to_owned() };
        let open = self.namespaces.get(key).is_some_and(|namespace| is_open(&namespace));
        if !open || self.accounts.get(&wanted).is_some() {
            return Ok(Action::Done);
        }
        let mut account = ServiceAccount::default();
        account.metadata.name = Some(DEFAULT.to_owned());
        match api(&self.client, &key.name).create(&PostParams::default(), &account).await {
            Ok(_) => Ok(Action::Done),
            // There already, or the namespace began to go.
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404 | 409) => Ok(Action::Done),
            Err(error) => Err(error.into()),
        }
    }
}
