//! Services, the pods behind them, and the ports those pods give them.

use k8s_openapi::api::core::v1::{Container, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::core::{Expression, Selector};
use meta::names::NamespacedName;
use reconcile::{Informer, InformerEvent, Queue, Subscription};

use crate::{claims, pods};

pub(crate) const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// The pods a service selects; none without a selector, for then others write its endpoints.
pub(crate) fn selector(service: &Service) -> Option<Selector> {
    let spec = service.spec.as_ref().filter(|spec| spec.type_.as_deref() != Some("ExternalName"))?;
    let labels = spec.selector.as_ref().filter(|labels| !labels.is_empty())?;
    Some(labels.iter().map(|(key, value)| Expression::Equal(key.clone(), value.clone())).collect())
}

pub(crate) fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None"))
}

pub(crate) fn publishes_not_ready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false)
}

/// Adds the services whose endpoints a change of a pod may change.
pub(crate) fn enqueue_services(
    pods: &Informer<Pod>,
    services: &Informer<Service>,
    queue: &Queue<NamespacedName>,
) -> Subscription {
    let (services, queue) = (services.clone(), queue.clone());
    pods.subscribe(move |event| {
        if let InformerEvent::Updated { old, new } = event
            && !matters(old, new)
        {
            return;
        }
        for pod in event.old().into_iter().chain([event.object()]) {
            for service in services.in_namespace(pods::namespace(&pod.metadata)) {
                if selector(&service).is_some_and(|selector| claims::matches(&selector, &pod.metadata)) {
                    queue.add(pods::key(&service.metadata));
                }
            }
        }
    })
}

fn matters(old: &Pod, new: &Pod) -> bool {
    let seen = |pod: &Pod| {
        (
            pods::is_ready(pod),
            pods::is_terminal(pod),
            pods::is_terminating(pod),
            pods::node_name(pod).to_owned(),
        )
    };
    let names = |pod: &Pod| pod.spec.as_ref().map(|spec| (spec.hostname.clone(), spec.subdomain.clone()));
    seen(old) != seen(new)
        || old.metadata.labels != new.metadata.labels
        || addresses(old) != addresses(new)
        || names(old) != names(new)
}

/// The pod's addresses, as it has them.
pub(crate) fn addresses(pod: &Pod) -> Vec<String> {
    let Some(status) = &pod.status else { return Vec::new() };
    let listed: Vec<String> =
        status.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).filter(|ip| !ip.is_empty()).collect();
    if listed.is_empty() {
        status.pod_ip.iter().filter(|ip| !ip.is_empty()).cloned().collect()
    } else {
        listed
    }
}

/// The pod's name within the service's domain.
pub(crate) fn hostname(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec.hostname.clone().filter(|hostname| !hostname.is_empty())?;
    (spec.subdomain.as_deref() == service.metadata.name.as_deref()).then_some(hostname)
}

/// The number of the pod's port behind a service's port.
pub(crate) fn target_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    match port.target_port.as_ref() {
        None => Some(port.port),
        Some(IntOrString::Int(number)) => Some(if *number == 0 { port.port } else { *number }),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let sidecars = spec.init_containers.iter().flatten();
            let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
            let mut containers = spec.containers.iter().chain(sidecars);
            containers.find_map(|container| named_port(container, name, protocol(port)))
        }
    }
}

pub(crate) fn protocol(port: &ServicePort) -> &str {
    port.protocol.as_deref().unwrap_or("TCP")
}

fn named_port(container: &Container, name: &str, protocol: &str) -> Option<i32> {
    let mut ports = container.ports.iter().flatten();
    let port = ports.find(|port| {
        port.name.as_deref() == Some(name) && port.protocol.as_deref().unwrap_or("TCP") == protocol
    })?;
    Some(port.container_port)
}
