//! From changes in caches to keys in queues.

use std::sync::Arc;

use meta::names::NamespacedName;
use reconcile::informer::Object;
use reconcile::object::controller_of;
use reconcile::{Informer, InformerEvent, Queue, Subscription, key_of};

/// Adds the key of every object that changes.
pub(crate) fn itself<K: Object>(informer: &Informer<K>, queue: &Queue<NamespacedName>) -> Subscription {
    let queue = queue.clone();
    informer.subscribe(move |event| queue.add(key_of(&**event.object())))
}

/// Adds what `keys` gives for the new and for the old state of every object that changes.
pub(crate) fn related<K: Object>(
    informer: &Informer<K>,
    queue: &Queue<NamespacedName>,
    keys: impl Fn(&K) -> Vec<NamespacedName> + Send + Sync + 'static,
) -> Subscription {
    let queue = queue.clone();
    informer.subscribe(move |event| {
        for object in states(event) {
            for key in keys(object) {
                queue.add(key);
            }
        }
    })
}

/// Adds the controller, of this kind, of every object that changes.
pub(crate) fn controller<K: Object>(
    informer: &Informer<K>,
    queue: &Queue<NamespacedName>,
    kind: &'static str,
) -> Subscription {
    related(informer, queue, move |object| controller_key(object, kind).into_iter().collect())
}

/// The key of the object's controller, if that is of this kind.
pub(crate) fn controller_key<K: Object>(object: &K, kind: &str) -> Option<NamespacedName> {
    let owner = controller_of(object.meta()).filter(|owner| owner.kind == kind)?;
    let namespace = object.meta().namespace.clone().unwrap_or_default();
    Some(NamespacedName { namespace, name: owner.name.clone() })
}

fn states<K>(event: &InformerEvent<K>) -> impl Iterator<Item = &Arc<K>> {
    event.old().into_iter().chain([event.object()])
}
