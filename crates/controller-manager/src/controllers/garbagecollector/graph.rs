//! Who owns whom, by uid. Pure: told of objects, it answers with uids to look at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

pub(super) const FOREGROUND: &str = "foregroundDeletion";
pub(super) const ORPHAN: &str = "orphan";

/// Something to look at.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Work {
    /// Its owners or dependents changed: should it go?
    Delete(Arc<str>),
    /// It goes and leaves its dependents behind.
    Orphan(Arc<str>),
}

/// Where an object is served and found. `kind` numbers a row of the resource table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) group: Arc<str>,
    pub(super) kind: Arc<str>,
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) identity: Identity,
    pub(super) owners: Vec<OwnerReference>,
    pub(super) dependents: BTreeSet<Arc<str>>,
    /// Known only from a dependent's reference: it may not exist.
    pub(super) is_virtual: bool,
    pub(super) deleting: bool,
    /// It waits for its dependents to go first.
    pub(super) waits_for_dependents: bool,
}

#[derive(Debug, Default)]
pub(super) struct Graph {
    nodes: BTreeMap<Arc<str>, Node>,
}

impl Graph {
    pub(super) fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// An object as it is now. Objects that neither own nor are owned are not kept.
    pub(super) fn observe(&mut self, identity: impl FnOnce() -> Identity, meta: &ObjectMeta) -> Vec<Work> {
        let Some(uid) = meta.uid.as_deref() else { return Vec::new() };
        let owners = meta.owner_references.clone().unwrap_or_default();
        let known = self.nodes.get_key_value(uid).map(|(uid, _)| Arc::clone(uid));
        let finalizers = meta.finalizers.as_deref().unwrap_or_default();
        let deleting = meta.deletion_timestamp.is_some();
        let has = |name: &str| deleting && finalizers.iter().any(|finalizer| finalizer == name);
        let (orphans, waits) = (has(ORPHAN), has(FOREGROUND));
        if known.is_none() && owners.is_empty() && !orphans && !waits {
            return Vec::new();
        }
        let uid = known.unwrap_or_else(|| Arc::from(uid));
        let mut work = Vec::new();
        let before = self.nodes.get(&uid);
        let old_owners = before.map(|node| node.owners.clone()).unwrap_or_default();
        let was_waiting = before.is_some_and(|node| node.waits_for_dependents);
        let is_new = before.is_none_or(|node| node.is_virtual);
        let dependents = before.map(|node| node.dependents.clone()).unwrap_or_default();
        let identity = identity();
        if is_new && !identity.namespace.is_empty() {
            // Dependents that name it from another namespace have no such owner.
            let elsewhere = |uid: &&Arc<str>| {
                self.nodes.get(*uid).is_some_and(|node| node.identity.namespace != identity.namespace)
            };
            work.extend(dependents.iter().filter(elsewhere).cloned().map(Work::Delete));
        }
        let node = Node {
            identity,
            owners: owners.clone(),
            dependents,
            is_virtual: false,
            deleting,
            waits_for_dependents: waits,
        };
        if waits && !was_waiting {
            work.extend(node.dependents.iter().cloned().map(Work::Delete));
        }
        if waits {
            work.push(Work::Delete(Arc::clone(&uid)));
        }
        if orphans {
            work.push(Work::Orphan(Arc::clone(&uid)));
        }
        self.nodes.insert(Arc::clone(&uid), node);
        self.relink(&uid, &old_owners, &owners, is_new, &mut work);
        work
    }

    /// An object that is gone, or was never there.
    pub(super) fn forget(&mut self, uid: &str) -> Vec<Work> {
        let Some((uid, node)) = self.nodes.remove_entry(uid) else { return Vec::new() };
        let mut work: Vec<Work> = node.dependents.iter().cloned().map(Work::Delete).collect();
        for owner in &node.owners {
            self.unlink(&uid, &owner.uid, &mut work);
        }
        work
    }

    /// Dependents that keep a foreground deletion waiting.
    pub(super) fn blocking_dependents(&self, uid: &str) -> Vec<Arc<str>> {
        let blocks = |dependent: &&Arc<str>| {
            let owners = self.nodes.get(*dependent).map(|node| node.owners.as_slice()).unwrap_or_default();
            owners.iter().any(|owner| owner.uid == uid && owner.block_owner_deletion == Some(true))
        };
        let dependents = self.nodes.get(uid).into_iter().flat_map(|node| &node.dependents);
        dependents.filter(blocks).cloned().collect()
    }

    fn relink(
        &mut self,
        uid: &Arc<str>,
        old: &[OwnerReference],
        new: &[OwnerReference],
        is_new: bool,
        work: &mut Vec<Work>,
    ) {
        for owner in old.iter().filter(|owner| !new.iter().any(|other| other.uid == owner.uid)) {
            self.unlink(uid, &owner.uid, work);
        }
        let unblocked = |owner: &OwnerReference| {
            let now = new.iter().find(|other| other.uid == owner.uid);
            owner.block_owner_deletion == Some(true)
                && now.is_some_and(|now| now.block_owner_deletion != Some(true))
        };
        for owner in old.iter().filter(|owner| unblocked(owner)) {
            self.wake_if_waiting(&owner.uid, work);
        }
        let namespace =
            self.nodes.get(uid).map(|node| Arc::clone(&node.identity.namespace)).unwrap_or_default();
        for owner in new {
            let known = self.nodes.entry(Arc::from(owner.uid.as_str())).or_insert_with(|| {
                // Somebody must look whether this owner exists.
                work.push(Work::Delete(Arc::from(owner.uid.as_str())));
                virtual_node(owner, &namespace)
            });
            let newly = known.dependents.insert(Arc::clone(uid));
            if known.waits_for_dependents && newly {
                work.push(Work::Delete(Arc::clone(uid)));
            }
        }
        if !is_new && old.len() != new.len() || old.iter().zip(new).any(|(old, new)| old.uid != new.uid) {
            work.push(Work::Delete(Arc::clone(uid)));
        }
    }

    fn unlink(&mut self, uid: &Arc<str>, owner: &str, work: &mut Vec<Work>) {
        let Some(node) = self.nodes.get_mut(owner) else { return };
        node.dependents.remove(uid);
        let useless =
            node.dependents.is_empty() && (node.is_virtual || node.owners.is_empty()) && !node.deleting;
        self.wake_if_waiting(owner, work);
        if useless {
            self.nodes.remove(owner);
        }
    }

    fn wake_if_waiting(&self, uid: &str, work: &mut Vec<Work>) {
        if let Some((uid, node)) = self.nodes.get_key_value(uid)
            && node.waits_for_dependents
        {
            work.push(Work::Delete(Arc::clone(uid)));
        }
    }
}

fn virtual_node(owner: &OwnerReference, namespace: &Arc<str>) -> Node {
    let group = owner.api_version.rsplit_once('/').map_or("", |(group, _)| group);
    Node {
        identity: Identity {
            group: Arc::from(group),
            kind: Arc::from(owner.kind.as_str()),
            namespace: Arc::clone(namespace),
            name: Arc::from(owner.name.as_str()),
        },
        owners: Vec::new(),
        dependents: BTreeSet::new(),
        is_virtual: true,
        deleting: false,
        waits_for_dependents: false,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn meta(uid: &str, owners: &[&str]) -> ObjectMeta {
        let owner = |uid: &&str| OwnerReference {
            uid: (*uid).trim_end_matches('!').to_owned(),
            block_owner_deletion: Some(uid.ends_with('!')),
            api_version: "apps/v1".to_owned(),
            kind: "Thing".to_owned(),
            name: "t".to_owned(),
            ..OwnerReference::default()
        };
        ObjectMeta {
            uid: Some(uid.to_owned()),
            owner_references: Some(owners.iter().map(owner).collect()),
            ..ObjectMeta::default()
        }
    }

    fn deleting(mut meta: ObjectMeta, finalizer: &str) -> ObjectMeta {
        meta.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
        meta.finalizers = Some(vec![finalizer.to_owned()]);
        meta
    }

    fn identity() -> Identity {
        Identity { group: "".into(), kind: "".into(), namespace: "".into(), name: "".into() }
    }

    fn work(list: Vec<Work>) -> Vec<String> {
        let text = |work: &Work| match work {
            Work::Delete(uid) => format!("delete {uid}"),
            Work::Orphan(uid) => format!("orphan {uid}"),
        };
        let mut list: Vec<String> = list.iter().map(text).collect();
        list.sort();
        list.dedup();
        list
    }

    #[test]
    fn an_unknown_owner_is_looked_at_and_its_absence_wakes_its_dependents() {
        let mut graph = Graph::default();
        assert_eq!(work(graph.observe(identity, &meta("loner", &[]))), [""; 0]);
        assert_eq!(graph.len(), 0, "what is not related is not kept");
        assert_eq!(work(graph.observe(identity, &meta("pod", &["set!"]))), ["delete set"]);
        assert!(graph.get("set").unwrap().is_virtual);
        assert_eq!(work(graph.observe(identity, &meta("set", &[]))), [""; 0]);
        assert!(!graph.get("set").unwrap().is_virtual);
        assert_eq!(work(graph.forget("set")), ["delete pod"]);
        assert_eq!(work(graph.forget("pod")), [""; 0]);
        assert_eq!(graph.len(), 0);
    }

    #[test]
    fn foreground_deletion_waits_for_blocking_dependents_only() {
        let mut graph = Graph::default();
        graph.observe(identity, &meta("pod", &["set!"]));
        graph.observe(identity, &meta("other", &["set"]));
        graph.observe(identity, &meta("set", &[]));
        let going = deleting(meta("set", &[]), FOREGROUND);
        assert_eq!(work(graph.observe(identity, &going)), ["delete other", "delete pod", "delete set"]);
        assert_eq!(graph.blocking_dependents("set"), [Arc::from("pod")]);
        assert_eq!(work(graph.forget("pod")), ["delete set"]);
        assert!(graph.blocking_dependents("set").is_empty());
    }

    #[test]
    fn an_orphaning_owner_is_handed_over_and_a_changed_reference_is_looked_at() {
        let mut graph = Graph::default();
        graph.observe(identity, &meta("pod", &["set!"]));
        let going = deleting(meta("set", &[]), ORPHAN);
        assert!(work(graph.observe(identity, &going)).contains(&"orphan set".to_owned()));
        assert_eq!(work(graph.observe(identity, &meta("pod", &[]))), ["delete pod"]);
        assert!(graph.get("set").unwrap().dependents.is_empty());
    }
}
