//! Takes what the informers saw into the snapshot and the queue. Each key is looked up afresh: only what is
//! true now counts, and what was true before is known from the snapshot.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use meta::names::NamespacedName;

use crate::events::{ClusterEvent, DeviceEvent, StorageEvent};
use crate::inbox::{Key, Kind};
use crate::labels::{Labels, Selector};
use crate::pod::PodInfo;
use crate::run::Scheduler;

impl Scheduler {
    pub(crate) fn take_in(&mut self, (kind, key): &Key) {
        match kind {
            Kind::Pod => self.take_in_pod(key),
            Kind::Node => self.take_in_node(key),
            Kind::Namespace => {
                let labels =
                    self.watches.namespaces.get(key).map(|own| Labels::from(own.metadata.labels.as_ref()));
                if self.snapshot.set_namespace(&key.name, labels) {
                    self.on_event(ClusterEvent::Namespace(&key.name));
                }
            }
            Kind::Service | Kind::ReplicationController | Kind::ReplicaSet | Kind::StatefulSet => {
                self.take_in_workload(*kind, key);
            }
            Kind::Budget => {
                let budget = self.watches.budgets.get(key);
                self.snapshot.budgets.set(&key.namespace, &key.name, budget.as_deref());
            }
            Kind::ResourceClaim | Kind::ResourceSlice | Kind::DeviceClass => self.take_in_device(*kind, key),
            _ => self.take_in_storage(*kind, key),
        }
    }

    fn take_in_node(&mut self, key: &NamespacedName) {
        let Some(node) = self.watches.nodes.get(key) else {
            return self.snapshot.remove_node(&key.name);
        };
        let change = self.snapshot.set_node(&node);
        if !change.any() || !self.queue.has_unschedulable() {
            return;
        }
        // The node lives in the snapshot that the hints read: look at a copy.
        if let Some(node) = self.snapshot.node_named(&key.name).cloned() {
            self.on_event(ClusterEvent::Node { node: &node, change });
        }
    }

    fn take_in_workload(&mut self, kind: Kind, key: &NamespacedName) {
        let (namespace, name) = (&*key.namespace, &*key.name);
        let workloads = &mut self.snapshot.workloads;
        let selected = |selector: Option<&LabelSelector>| Some(Selector::from_api(selector));
        match kind {
            Kind::Service => {
                let service = self.watches.services.get(key);
                let selector = service.as_ref().and_then(|own| own.spec.as_ref()?.selector.as_ref());
                workloads.set_service(namespace, name, selector);
            }
            Kind::ReplicationController => {
                let own = self.watches.replication_controllers.get(key);
                let selector =
                    own.and_then(|own| Some(Selector::from_map(Some(own.spec.as_ref()?.selector.as_ref()?))));
                workloads.set_owner("ReplicationController", namespace, name, selector);
            }
            Kind::ReplicaSet => {
                let own = self.watches.replica_sets.get(key);
                let selector = own.and_then(|own| selected(Some(&own.spec.as_ref()?.selector)));
                workloads.set_owner("ReplicaSet", namespace, name, selector);
            }
            _ => {
                let own = self.watches.stateful_sets.get(key);
                let selector = own.and_then(|own| selected(Some(&own.spec.as_ref()?.selector)));
                workloads.set_owner("StatefulSet", namespace, name, selector);
            }
        }
    }

    fn take_in_storage(&mut self, kind: Kind, key: &NamespacedName) {
        let storage = &mut self.snapshot.storage;
        let watches = &self.watches;
        let name = key.name.clone();
        let full = format!("{}/{}", key.namespace, key.name);
        let event = match kind {
            Kind::Claim => {
                storage.set_claim(full, watches.claims.get(key));
                self.claim_changes.send_modify(|count| *count += 1);
                StorageEvent::Claim
            }
            Kind::Volume => {
                storage.set_volume(name, watches.volumes.get(key));
                StorageEvent::Volume
            }
            Kind::Class => {
                storage.set_class(name, watches.classes.get(key));
                StorageEvent::Class
            }
            Kind::CsiNode => {
                storage.set_csi_node(name, watches.csi_nodes.get(key));
                StorageEvent::CsiNode
            }
            Kind::CsiDriver => {
                storage.set_driver(name, watches.csi_drivers.get(key));
                StorageEvent::CsiDriver
            }
            Kind::Capacity => {
                storage.set_capacity(full, watches.capacities.get(key));
                StorageEvent::Capacity
            }
            _ => {
                storage.set_attachment(name, watches.attachments.get(key));
                StorageEvent::Attachment
            }
        };
        self.on_event(ClusterEvent::Storage(event));
    }

    fn take_in_device(&mut self, kind: Kind, key: &NamespacedName) {
        let (devices, watches) = (&mut self.snapshot.devices, &self.watches);
        let event = match kind {
            Kind::ResourceClaim => {
                devices
                    .set_claim(format!("{}/{}", key.namespace, key.name), watches.resource_claims.get(key));
                DeviceEvent::Claim
            }
            Kind::ResourceSlice => {
                devices.set_slice(key.name.clone(), watches.resource_slices.get(key));
                DeviceEvent::Slice
            }
            _ => {
                devices.set_class(key.name.clone(), watches.device_classes.get(key));
                DeviceEvent::Class
            }
        };
        self.on_event(ClusterEvent::Devices(event));
    }

    fn take_in_pod(&mut self, key: &NamespacedName) {
        let pod = self.watches.pods.get(key).map(|pod| {
            let mut pod = PodInfo::new(&pod);
            self.specs.share(&mut pod);
            Arc::new(pod)
        });
        if let Some(old) = self.known.get(key).cloned()
            && pod.as_ref().is_none_or(|pod| pod.uid != old)
        {
            self.forget(&old);
        }
        let Some(pod) = pod else {
            self.known.remove(key);
            return;
        };
        self.known.insert(key.clone(), Arc::clone(&pod.uid));
        match pod.node_name.clone() {
            _ if pod.finished => self.forget(&pod.uid),
            Some(node) => self.take_in_assigned(pod, &node),
            None => self.take_in_waiting(pod),
        }
    }

    /// The pod is gone, or done: whoever waits for its place may have it.
    fn forget(&mut self, uid: &str) {
        let queued = self.queue.remove(uid);
        self.nominations.remove(uid);
        let placed = self.snapshot.remove_pod(uid);
        if let Some(pod) = placed.or_else(|| queued.map(|queued| queued.pod)) {
            self.on_event(ClusterEvent::PodReleased(&pod));
        }
    }

    fn take_in_assigned(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.queue.remove(&pod.uid);
        self.nominations.remove(&pod.uid);
        let old = self.snapshot.pod(&pod.uid).cloned();
        let was_there = old.is_some() && !self.snapshot.is_assumed(&pod.uid);
        self.snapshot.place_pod(Arc::clone(&pod), node, false);
        if !self.queue.has_unschedulable() {
            return;
        }
        if !was_there || old.as_ref().is_some_and(|old| old.labels != pod.labels) {
            self.on_event(ClusterEvent::PodAssigned(&pod));
        }
        if old.is_some_and(|old| {
            was_there && (old.requests != pod.requests || old.terminating != pod.terminating)
        }) {
            self.on_event(ClusterEvent::PodReleased(&pod));
        }
    }

    fn take_in_waiting(&mut self, pod: Arc<PodInfo>) {
        let Some(framework) = self.framework_of(&pod) else { return };
        if pod.terminating {
            return self.forget(&pod.uid);
        }
        if self.snapshot.is_assumed(&pod.uid) && self.queue.get(&pod.uid).is_none() {
            // Bound by us already; the watch will say so in a moment.
            return;
        }
        if let Some(node) = &pod.nominated_node_name
            && self.nominations.node_of(&pod.uid).is_none()
            && !self.snapshot.is_assumed(&pod.uid)
        {
            self.nominations.set(&pod, node);
        }
        let gated = framework.pre_enqueue.iter().any(|plugin| plugin.pre_enqueue(&pod).is_err());
        let now = self.now();
        match self.queue.get(&pod.uid) {
            None => self.queue.add(pod, gated, now),
            Some(queued) => {
                let old = &queued.pod;
                let changed = old.spec != pod.spec
                    || old.labels != pod.labels
                    || old.requests != pod.requests
                    || old.claims != pod.claims
                    || old.gates != pod.gates;
                self.queue.update(pod, gated, changed, now);
            }
        }
    }
}
