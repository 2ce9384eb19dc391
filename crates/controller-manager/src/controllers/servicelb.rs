//! Gives services of type `LoadBalancer` the addresses of nodes, where the proxy answers for them.

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{LoadBalancerIngress, LoadBalancerStatus, Node, Service};
use kube::api::PostParams;
use meta::names::NamespacedName;
use reconcile::events::EventRecorder;
use reconcile::{Action, Informer, ReconcileError, Reconciler};

use crate::context::{Context, api};
use crate::enqueue;
use crate::pods::{self, label};

const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";

struct ServiceLb {
    client: kube::Client,
    services: Informer<Service>,
    nodes: Informer<Node>,
    events: EventRecorder,
}

pub(super) async fn run(context: Context) {
    let queue = context.queue("service");
    let controller = Arc::new(ServiceLb {
        client: context.client.clone(),
        services: context.informer(),
        nodes: context.informer(),
        events: context.recorder("service-controller"),
    });
    let _services = enqueue::itself(&controller.services, &queue);
    let _nodes = controller.nodes.subscribe({
        let (queue, services) = (queue.clone(), controller.services.clone());
        move |event| {
            if event.old().is_some_and(|old| addresses(old) == addresses(event.object())) {
                return;
            }
            let balanced = services.list().into_iter().filter(|service| wants(service));
            balanced.for_each(|service| queue.add(pods::key(&service.metadata)));
        }
    });
    if context.synced(&[&controller.services, &controller.nodes]).await {
        context.run("service", controller, queue, 1).await;
    }
}

/// Services that name a class are for another provider.
fn wants(service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    spec.type_.as_deref() == Some("LoadBalancer")
        && spec.load_balancer_class.is_none()
        && service.metadata.deletion_timestamp.is_none()
}

/// The addresses at which a ready node takes traffic: external ones if it has any.
fn addresses(node: &Node) -> Vec<String> {
    let ready = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = ready.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    if !ready || label(&node.metadata, EXCLUDE).is_some() || node.metadata.deletion_timestamp.is_some() {
        return Vec::new();
    }
    let of = |type_: &str| -> Vec<String> {
        let all = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
        all.filter(|address| address.type_ == type_).map(|address| address.address.clone()).collect()
    };
    let external = of("ExternalIP");
    if external.is_empty() { of("InternalIP") } else { external }
}

fn ingress(service: &Service, nodes: &[Arc<Node>]) -> Vec<LoadBalancerIngress> {
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.clone()).unwrap_or_default();
    let serves = |address: &String| match address.parse() {
        Ok(IpAddr::V4(_)) => families.is_empty() || families.iter().any(|family| family == "IPv4"),
        Ok(IpAddr::V6(_)) => families.iter().any(|family| family == "IPv6"),
        Err(_) => false,
    };
    let mut all: Vec<String> = nodes.iter().flat_map(|node| addresses(node)).filter(serves).collect();
    all.sort();
    all.dedup();
    let entry = |ip: String| LoadBalancerIngress {
        ip: Some(ip),
        ip_mode: Some("VIP".to_owned()),
        ..LoadBalancerIngress::default()
    };
    all.into_iter().map(entry).collect()
}

#[async_trait]
impl Reconciler for ServiceLb {
    type Key = NamespacedName;

    async fn reconcile(&self, key: &NamespacedName) -> Result<Action, ReconcileError> {
        let Some(service) = self.services.get(key) else { return Ok(Action::Done) };
        let services = api::<Service>(&self.client, &key.namespace);
        let has_finalizer =
            service.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER);
        let ours = service.spec.as_ref().is_some_and(|spec| spec.load_balancer_class.is_none());
        let old = service.status.as_ref().and_then(|status| status.load_balancer.as_ref()?.ingress.clone());
        if !wants(&service) {
            // There is nothing outside the cluster to take down: what older versions left is let go.
            if has_finalizer && ours {
                let mut freed = (*service).clone();
                freed.metadata.finalizers.get_or_insert_default().retain(|finalizer| finalizer != FINALIZER);
                services.replace(&key.name, &PostParams::default(), &freed).await?;
            }
            return Ok(Action::Done);
        }
        let wanted = ingress(&service, &self.nodes.list());
        if old.unwrap_or_default() == wanted {
            return Ok(Action::Done);
        }
        if wanted.is_empty() {
            self.events.warning(
                &*service,
                "UnAvailableLoadBalancer",
                "Ensure",
                "There are no available nodes for LoadBalancer",
            );
        }
        let mut updated = (*service).clone();
        let ingress = (!wanted.is_empty()).then_some(wanted);
        updated.status.get_or_insert_default().load_balancer = Some(LoadBalancerStatus { ingress });
        services.replace_status(&key.name, &PostParams::default(), &updated).await?;
        self.events.normal(&*service, "EnsuredLoadBalancer", "Ensure", "Ensured load balancer");
        Ok(Action::Done)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn ready_nodes_lend_their_addresses() {
        let node = |ready: &str, addresses: Value, labels: Value| -> Arc<Node> {
            let status = json!({"conditions": [{"type": "Ready", "status": ready}], "addresses": addresses});
            Arc::new(
                serde_json::from_value(json!({"metadata": {"labels": labels}, "status": status})).unwrap(),
            )
        };
        let internal = |ip: &str| json!({"type": "InternalIP", "address": ip});
        let nodes = [
            node("True", json!([internal("10.0.0.2"), internal("fd00::2")]), json!({})),
            node(
                "True",
                json!([internal("10.0.0.3"), {"type": "ExternalIP", "address": "192.0.2.1"}]),
                json!({}),
            ),
            node("False", json!([internal("10.0.0.4")]), json!({})),
            node("True", json!([internal("10.0.0.5")]), json!({EXCLUDE: ""})),
        ];
        let ips = |families: Value| -> Vec<String> {
            let service =
                serde_json::from_value(json!({"spec": {"type": "LoadBalancer", "ipFamilies": families}}))
                    .unwrap();
            ingress(&service, &nodes).into_iter().filter_map(|entry| entry.ip).collect()
        };
        assert_eq!(ips(json!(["IPv4"])), ["10.0.0.2", "192.0.2.1"]);
        assert_eq!(ips(json!(["IPv6"])), ["fd00::2"]);
    }
}
