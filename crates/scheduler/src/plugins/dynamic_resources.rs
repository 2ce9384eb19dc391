//! Devices for the pod's resource claims (KEP-4381).

use std::rc::Rc;
use std::sync::Arc;

use k8s_openapi::api::resource::v1::ResourceClaim;

use crate::devices::{Allocator, HeldClaim, consumers, has_devices};
use crate::events::{ClusterEvent, DeviceEvent};
use crate::framework::{Checks, Filter, Plugin, Point, Rejection, Verdict};
use crate::labels::NodeSelector;
use crate::node::{NodeIdx, NodeInfo};
use crate::pod::PodInfo;
use crate::snapshot::Snapshot;
use crate::storage::PreBind;

const NAME: &str = "DynamicResources";

/// Pods that may share one claim.
const MAX_CONSUMERS: usize = 256;

#[derive(Debug)]
pub struct DynamicResources;

/// The claims of a pod: those that have devices, and those that need some.
struct Claims {
    allocated: Vec<Arc<ResourceClaim>>,
    wanting: Vec<Arc<ResourceClaim>>,
}

fn claims(snapshot: &Snapshot, pod: &PodInfo) -> Result<Claims, Rejection> {
    let refuse = |reason: String| Err(Rejection::unresolvable(NAME, reason));
    let mut claims = Claims { allocated: Vec::new(), wanting: Vec::new() };
    for own in &pod.claims {
        let Some(name) = &own.claim else {
            return refuse(format!(
                "pod \"{}\": pod claim {}: resource claim does not exist yet",
                pod.key(),
                own.name
            ));
        };
        let Some(claim) = snapshot.devices.claim(&pod.namespace, name) else {
            return refuse(format!("resourceclaim.resource.k8s.io \"{name}\" not found"));
        };
        if claim.metadata.deletion_timestamp.is_some() {
            return refuse(format!("resourceclaim \"{name}\" is being deleted"));
        }
        if has_devices(claim) {
            let consumers = consumers(claim);
            if consumers.len() >= MAX_CONSUMERS && !consumers.contains(&*pod.uid) {
                return Err(Rejection::unschedulable(NAME, "resourceclaim in use"));
            }
            claims.allocated.push(Arc::clone(claim));
            continue;
        }
        if let Some((request, class)) = snapshot.devices.missing_class(claim) {
            return refuse(format!("request {request}: device class {class} does not exist"));
        }
        if snapshot.devices.is_held(claim) {
            return Err(Rejection::unschedulable(NAME, "resourceclaim is in the process of being allocated"));
        }
        claims.wanting.push(Arc::clone(claim));
    }
    Ok(claims)
}

struct DeviceFilter<'s> {
    claims: Rc<Claims>,
    selectors: Rc<Vec<NodeSelector>>,
    allocator: Rc<Allocator<'s>>,
}

impl Plugin for DynamicResources {
    fn name(&self) -> &'static str {
        NAME
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter, Point::Reserve, Point::PreBind]
    }

    fn pre_filter<'s>(&'s self, snapshot: &'s Snapshot, pod: &'s PodInfo) -> Result<Checks<'s>, Rejection> {
        if pod.claims.is_empty() {
            return Checks::skip();
        }
        let claims = claims(snapshot, pod)?;
        let selectors = claims
            .allocated
            .iter()
            .filter_map(|claim| claim.status.as_ref()?.allocation.as_ref()?.node_selector.as_ref())
            .map(NodeSelector::from_api)
            .collect();
        Checks::with(DeviceFilter {
            claims: Rc::new(claims),
            selectors: Rc::new(selectors),
            allocator: Rc::new(snapshot.devices.allocator()),
        })
    }

    fn reserve(&self, snapshot: &mut Snapshot, pod: &PodInfo, node: NodeIdx) -> Verdict {
        if pod.claims.is_empty() {
            return Ok(());
        }
        let claims = claims(snapshot, pod)?;
        let found = snapshot.devices.allocator().allocate(&claims.wanting, snapshot.node(node));
        let Some(allocations) = found else { return Err(cannot_allocate()) };
        let had = claims.allocated.into_iter().map(|claim| HeldClaim { claim, allocation: None });
        let new = claims
            .wanting
            .into_iter()
            .zip(allocations)
            .map(|(claim, allocation)| HeldClaim { claim, allocation: Some(allocation) });
        snapshot.devices.hold(&pod.uid, had.chain(new).collect());
        Ok(())
    }

    fn unreserve(&self, snapshot: &mut Snapshot, pod: &PodInfo) {
        snapshot.devices.release(&pod.uid);
    }

    fn pre_bind(&self, snapshot: &Snapshot, pod: &PodInfo, _node: NodeIdx) -> Vec<PreBind> {
        let held = snapshot.devices.held_by(&pod.uid);
        held.iter()
            .filter(|own| own.allocation.is_some() || !consumers(&own.claim).contains(&*pod.uid))
            .map(|own| PreBind::ReserveClaim {
                held: Box::new(own.clone()),
                pod_name: pod.name.clone(),
                pod_uid: pod.uid.to_string(),
            })
            .collect()
    }

    fn queueing_hint(&self, _snapshot: &Snapshot, pod: &PodInfo, event: &ClusterEvent<'_>) -> bool {
        match event {
            ClusterEvent::Node { change, .. } => change.added || change.labels,
            ClusterEvent::Devices(DeviceEvent::Claim | DeviceEvent::Slice | DeviceEvent::Class) => true,
            ClusterEvent::PodReleased(gone) => !gone.claims.is_empty() && gone.uid != pod.uid,
            _ => false,
        }
    }
}

fn cannot_allocate() -> Rejection {
    Rejection::unschedulable(NAME, "cannot allocate all claims")
}

impl<'s> Filter<'s> for DeviceFilter<'s> {
    fn filter(&self, node: &NodeInfo) -> Verdict {
        if !self.selectors.iter().all(|own| own.matches(&node.name, &node.facts.labels)) {
            return Err(Rejection::unschedulable(NAME, "resourceclaim not available on the node"));
        }
        if self.claims.wanting.is_empty() {
            return Ok(());
        }
        self.allocator.allocate(&self.claims.wanting, node).map(|_| ()).ok_or_else(cannot_allocate)
    }

    fn clone_box(&self) -> Box<dyn Filter<'s> + 's> {
        Box::new(Self {
            claims: Rc::clone(&self.claims),
            selectors: Rc::clone(&self.selectors),
            allocator: Rc::clone(&self.allocator),
        })
    }
}
