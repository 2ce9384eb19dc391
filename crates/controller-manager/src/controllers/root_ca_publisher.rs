//! Puts the cluster's certificate authority into every namespace, where pods find it.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::PostParams;
use meta::names::NamespacedName;
use reconcile::{Action, Informer, ReconcileError, Reconciler};

use super::serviceaccount::{is_open, namespace_key};
use crate::context::{Context, api};
use crate::{enqueue, pods};

const NAME: &str = "kube-root-ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
const DESCRIPTION_TEXT: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";

struct Publisher {
    client: kube::Client,
    root_ca: String,
    namespaces: Informer<Namespace>,
    config_maps: Informer<ConfigMap>,
}

pub(super) async fn run(context: Context) {
    let Some(root_ca) = context.config.root_ca.clone() else {
        context.shutdown.cancelled().await;
        return;
    };
    let queue = context.queue("root_ca_cert_publisher");
    let config_maps = context.informers.selected(&format!("metadata.name={NAME}"));
    let controller = Arc::new(Publisher {
        client: context.client.clone(),
        root_ca,
        namespaces: context.informer(),
        config_maps,
    });
    let _namespaces = enqueue::itself(&controller.namespaces, &queue);
    let _config_maps = enqueue::related(&controller.config_maps, &queue, |map: &ConfigMap| {
        vec![namespace_key(pods::namespace(&map.metadata))]
    });
    if context.synced(&[&controller.namespaces, &controller.config_maps]).await {
        context.run("root_ca_cert_publisher", controller, queue, 1).await;
    }
}

#[async_trait]
impl Reconciler for Publisher {
    type Key = NamespacedName;

    async fn reconcile(&self, key: &NamespacedName) -> Result<Action, ReconcileError> {
        if !self.namespaces.get(key).is_some_and(|namespace| is_open(&namespace)) {
            return Ok(Action::Done);
        }
        let existing =
            self.config_maps.get(&NamespacedName { namespace: key.name.clone(), name: NAME.to_owned() });
        let mut wanted = existing.as_deref().cloned().unwrap_or_default();
        wanted.metadata.name = Some(NAME.to_owned());
        wanted.data = Some([("ca.crt".to_owned(), self.root_ca.clone())].into());
        wanted
            .metadata
            .annotations
            .get_or_insert_default()
            .insert(DESCRIPTION.to_owned(), DESCRIPTION_TEXT.to_owned());
        let maps = api::<ConfigMap>(&self.client, &key.name);
        let written = match existing {
            Some(existing) if *existing == wanted => return Ok(Action::Done),
            Some(_) => maps.replace(NAME, &PostParams::default(), &wanted).await,
            None => maps.create(&PostParams::default(), &wanted).await,
        };
        match written {
            Ok(_) => Ok(Action::Done),
            Err(kube::Error::Api(status))
                if matches!(status.code, 403 | 404) || status.is_already_exists() =>
            {
                Ok(Action::Done)
            }
            Err(error) => Err(error.into()),
        }
    }
}
