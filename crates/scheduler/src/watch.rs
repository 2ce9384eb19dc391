//! The informers the scheduler lives from.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{
    Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController, Service,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment};
use kube::Resource;
use reconcile::{Informer, Informers, Subscription, key_of};

use crate::inbox::{Inbox, Kind};

macro_rules! watches {
    ($($field:ident: $type:ty => $kind:ident,)*) => {
        /// One informer a kind, each reporting changes to the inbox.
        pub(crate) struct Watches {
            $(pub(crate) $field: Informer<$type>,)*
            _subscriptions: Vec<Subscription>,
        }

        impl Watches {
            pub(crate) fn start(informers: &Informers, inbox: &Arc<Inbox>) -> Self {
                let mut subscriptions = Vec::new();
                $(let $field = informers.of::<$type>();
                subscriptions.push(report(&$field, inbox, Kind::$kind));)*
                Self { $($field,)* _subscriptions: subscriptions }
            }

            /// Waits until every cache holds its first list.
            pub(crate) async fn synced(&self) {
                $(self.$field.synced().await;)*
            }
        }
    };
}

watches! {
    pods: Pod => Pod,
    nodes: Node => Node,
    namespaces: Namespace => Namespace,
    services: Service => Service,
    replication_controllers: ReplicationController => ReplicationController,
    replica_sets: ReplicaSet => ReplicaSet,
    stateful_sets: StatefulSet => StatefulSet,
    budgets: PodDisruptionBudget => Budget,
    claims: PersistentVolumeClaim => Claim,
    volumes: PersistentVolume => Volume,
    classes: StorageClass => Class,
    csi_nodes: CSINode => CsiNode,
    csi_drivers: CSIDriver => CsiDriver,
    capacities: CSIStorageCapacity => Capacity,
    attachments: VolumeAttachment => Attachment,
    resource_claims: ResourceClaim => ResourceClaim,
    resource_slices: ResourceSlice => ResourceSlice,
    device_classes: DeviceClass => DeviceClass,
}

fn report<K>(informer: &Informer<K>, inbox: &Arc<Inbox>, kind: Kind) -> Subscription
where
    K: reconcile::informer::Object + Resource<DynamicType = ()>,
{
    let inbox = Arc::clone(inbox);
    informer.subscribe(move |event| inbox.push((kind, key_of(&**event.object()))))
}
