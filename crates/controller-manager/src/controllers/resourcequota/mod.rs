//! Keeps the usage in the status of quotas true. Admission raises it; deletions are found here.

mod usage;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaStatus, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as WireQuantity;
use kube::api::PostParams;
use kube::core::ApiResource;
use meta::names::NamespacedName;
use meta::quantity::{Format, Quantity};
use reconcile::informer::Object;
use reconcile::{
    Action, Informer, InformerEvent, Informers, Queue, ReconcileError, Reconciler, Subscription,
};

use self::usage::{Amounts, add, counts_pod, has_scopes, of_claim, of_pod, of_service, one};
use crate::context::{Context, api};
use crate::discovery::{self, Owned};
use crate::{enqueue, pods};

/// Changes in a namespace are gathered this long before its quotas are reckoned again.
const GATHER: Duration = Duration::from_millis(200);
/// Kinds that may be limited by their plain name, without `count/`.
const PLAIN: &[&str] = &["configmaps", "secrets", "replicationcontrollers", "resourcequotas"];

struct Quotas {
    client: kube::Client,
    informers: Informers,
    quotas: Informer<ResourceQuota>,
    pods: Informer<Pod>,
    services: Informer<Service>,
    claims: Informer<PersistentVolumeClaim>,
    /// Counted by metadata alone, watched from when a quota first names them.
    others: Mutex<BTreeMap<String, (Informer<Owned>, Subscription)>>,
    queue: Queue<NamespacedName>,
}

pub(super) async fn run(context: Context) {
    let queue = context.queue("resource_quota_controller_resource_changes");
    let controller = Arc::new(Quotas {
        client: context.client.clone(),
        informers: context.informers.clone(),
        quotas: context.informer(),
        pods: context.informer(),
        services: context.informer(),
        claims: context.informer(),
        others: Mutex::default(),
        queue: queue.clone(),
    });
    let _quotas = enqueue::itself(&controller.quotas, &queue);
    let _pods = recount(&controller.pods, &controller.quotas, &queue, |old: &Pod, new: &Pod| {
        pods::is_terminal(old) != pods::is_terminal(new) || old.spec != new.spec
    });
    let _services =
        recount(&controller.services, &controller.quotas, &queue, |old, new| old.spec != new.spec);
    let _claims = recount(&controller.claims, &controller.quotas, &queue, |old, new| old.spec != new.spec);
    let informers: [&dyn crate::context::Synced; 4] =
        [&controller.quotas, &controller.pods, &controller.services, &controller.claims];
    if context.synced(&informers).await {
        context.run("resource_quota_controller", controller, queue, context.config.workers).await;
    }
}

/// Reckons the quotas of a namespace again when objects come, go or change in what they use.
fn recount<K: Object>(
    objects: &Informer<K>,
    quotas: &Informer<ResourceQuota>,
    queue: &Queue<NamespacedName>,
    differs: impl Fn(&K, &K) -> bool + Send + Sync + 'static,
) -> Subscription {
    let (quotas, queue) = (quotas.clone(), queue.clone());
    objects.subscribe(move |event| {
        if matches!(event, InformerEvent::Updated { old, new } if !differs(old, new)) {
            return;
        }
        let namespace = event.object().meta().namespace.as_deref().unwrap_or_default();
        for quota in quotas.in_namespace(namespace) {
            queue.add_after(pods::key(&quota.metadata), GATHER);
        }
    })
}

#[async_trait]
impl Reconciler for Quotas {
    type Key = NamespacedName;

    async fn reconcile(&self, key: &NamespacedName) -> Result<Action, ReconcileError> {
        let Some(quota) = self.quotas.get(key) else { return Ok(Action::Done) };
        let hard = quota.spec.as_ref().and_then(|spec| spec.hard.clone()).unwrap_or_default();
        let mut amounts = self.amounts(&quota, &key.namespace);
        for name in hard.keys() {
            self.count_other(name, &key.namespace, &mut amounts).await?;
        }
        let zero = Quantity::new(0, Format::DecimalSi);
        let amount = |name: &String| WireQuantity(amounts.get(name).unwrap_or(&zero).to_string());
        let used: BTreeMap<String, WireQuantity> =
            hard.keys().map(|name| (name.clone(), amount(name))).collect();
        let status = ResourceQuotaStatus { hard: Some(hard), used: Some(used) };
        if quota.status.as_ref() == Some(&status) {
            return Ok(Action::Done);
        }
        let updated = ResourceQuota { status: Some(status), ..(*quota).clone() };
        let quotas = api::<ResourceQuota>(&self.client, &key.namespace);
        match quotas.replace_status(&key.name, &PostParams::default(), &updated).await {
            Ok(_) => Ok(Action::Done),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Action::Done),
            Err(error) => Err(error.into()),
        }
    }
}

impl Quotas {
    fn amounts(&self, quota: &ResourceQuota, namespace: &str) -> Amounts {
        let mut amounts = Amounts::new();
        let mut join =
            |of_one: Amounts| of_one.iter().for_each(|(name, amount)| add(&mut amounts, name, amount));
        for pod in self.pods.in_namespace(namespace) {
            if counts_pod(quota, &pod) {
                join(of_pod(&pod));
            }
        }
        if has_scopes(quota) {
            return amounts;
        }
        self.services.in_namespace(namespace).iter().for_each(|service| join(of_service(service)));
        self.claims.in_namespace(namespace).iter().for_each(|claim| join(of_claim(claim)));
        amounts
    }

    /// Counts objects of a kind that only its number limits: `configmaps`, `count/deployments.apps`.
    async fn count_other(
        &self,
        name: &str,
        namespace: &str,
        amounts: &mut Amounts,
    ) -> Result<(), ReconcileError> {
        let resource = match name.strip_prefix("count/") {
            Some(resource) => resource,
            None if PLAIN.contains(&name) => name,
            None => return Ok(()),
        };
        if amounts.contains_key(name) || matches!(resource, "pods" | "services" | "persistentvolumeclaims") {
            return Ok(());
        }
        let Some(objects) = self.watch(resource).await? else { return Ok(()) };
        objects.synced().await;
        objects.in_namespace(namespace).iter().for_each(|_| add(amounts, name, &one()));
        Ok(())
    }

    async fn watch(&self, resource: &str) -> Result<Option<Informer<Owned>>, ReconcileError> {
        let known = |quotas: &Self| {
            let others = quotas.others.lock().unwrap_or_else(PoisonError::into_inner);
            others.get(resource).map(|(informer, _)| informer.clone())
        };
        if let Some(informer) = known(self) {
            return Ok(Some(informer));
        }
        let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
        let found = discovery::discover(&self.client).await?.resources.into_iter();
        let mut found = found.map(|found| found.resource);
        let served: Option<ApiResource> = found.find(|found| found.plural == plural && found.group == group);
        let Some(served) = served else { return Ok(None) };
        let informer = self.informers.dynamic_as::<Owned>(&served);
        let subscription = recount(&informer, &self.quotas, &self.queue, |_, _| false);
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        others.insert(resource.to_owned(), (informer.clone(), subscription));
        Ok(Some(informer))
    }
}
