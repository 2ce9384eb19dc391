//! Counts of pods by node for the label selectors in use, kept as pods come and go, so that a decision
//! never walks over pods. Two kinds of entries share one lookup by namespace and label:
//!
//! - a *group* counts the pods that some selector matches (topology spread, the incoming pod's affinity);
//! - a *term* counts the pods that carry some affinity term (existing pods' affinity).

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use crate::labels::Labels;
use crate::node::NodeIdx;
use crate::pod::{AffinityTerm, PodFilter, PodInfo};

/// Groups kept at most; the one unused for longest makes room.
const MAX_GROUPS: usize = 4_096;

/// Pods matched by every one of the filters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Group {
    pub filters: Vec<PodFilter>,
    /// Topology spread does not count pods on their way out; affinity does.
    pub skip_terminating: bool,
}

/// Why a pod carries a term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TermKind {
    RequiredAffinity,
    RequiredAntiAffinity,
    /// With its signed weight.
    Preferred(i64),
}

pub type NodeCounts = HashMap<NodeIdx, u32>;

#[derive(Debug, Default)]
pub struct PodIndex {
    groups: Table<Group>,
    terms: Table<(AffinityTerm, TermKind)>,
    clock: u64,
}

#[derive(Debug)]
struct Entry<K> {
    key: Arc<K>,
    nodes: NodeCounts,
    used: u64,
}

/// Entries by identity and by what a matching pod must have.
#[derive(Debug)]
struct Table<K> {
    entries: Vec<Option<Entry<K>>>,
    free: Vec<usize>,
    by_key: HashMap<Arc<K>, usize>,
    lookup: Lookup,
}

impl<K> Default for Table<K> {
    fn default() -> Self {
        Self { entries: Vec::new(), free: Vec::new(), by_key: HashMap::new(), lookup: Lookup::default() }
    }
}

/// Candidates for a pod: by namespace (none: any) and by one label that every match carries (none: any).
#[derive(Debug, Default)]
struct Lookup {
    by_namespace: HashMap<Arc<str>, Bucket>,
    any_namespace: Bucket,
}

#[derive(Debug, Default)]
struct Bucket {
    by_label: HashMap<Box<str>, HashMap<Box<str>, Vec<usize>>>,
    any_label: Vec<usize>,
}

trait Filtered {
    /// The filter the entry is found by.
    fn filter(&self) -> Option<&PodFilter>;
}

impl Filtered for Group {
    fn filter(&self) -> Option<&PodFilter> {
        self.filters.first()
    }
}

impl Filtered for (AffinityTerm, TermKind) {
    fn filter(&self) -> Option<&PodFilter> {
        Some(&self.0.filter)
    }
}

impl Group {
    pub fn matches(&self, pod: &PodInfo, namespace_labels: Option<&Labels>) -> bool {
        !(self.skip_terminating && pod.terminating)
            && self.filters.iter().all(|filter| filter.matches(pod, namespace_labels))
    }

    fn selects_namespaces(&self) -> bool {
        self.filters.iter().any(|filter| filter.namespace_selector.is_some())
    }
}

impl PodIndex {
    pub fn add_pod(&mut self, pod: &PodInfo, node: NodeIdx, namespace_labels: Option<&Labels>) {
        self.count_groups(pod, node, namespace_labels, 1);
        for_each_term(pod, |term, kind| {
            let at = self.terms.get_or_insert((term.clone(), kind), 0);
            self.terms.count(at, node, 1);
        });
    }

    pub fn remove_pod(&mut self, pod: &PodInfo, node: NodeIdx, namespace_labels: Option<&Labels>) {
        self.count_groups(pod, node, namespace_labels, -1);
        for_each_term(pod, |term, kind| {
            let key = (term.clone(), kind);
            if let Some(at) = self.terms.by_key.get(&key).copied() {
                self.terms.count(at, node, -1);
                if self.terms.entry(at).is_some_and(|entry| entry.nodes.is_empty()) {
                    self.terms.remove(at);
                }
            }
        });
    }

    fn count_groups(&mut self, pod: &PodInfo, node: NodeIdx, namespace_labels: Option<&Labels>, change: i32) {
        let mut matched = Vec::new();
        self.groups.lookup.for_each_candidate(pod, |at| {
            if self.groups.entry(at).is_some_and(|entry| entry.key.matches(pod, namespace_labels)) {
                matched.push(at);
            }
        });
        for at in matched {
            self.groups.count(at, node, change);
        }
    }

    /// The counts of a group, if it is kept already.
    pub fn group(&self, group: &Group) -> Option<&NodeCounts> {
        let at = self.groups.by_key.get(group)?;
        self.groups.entry(*at).map(|entry| &entry.nodes)
    }

    /// Marks a group as used; false when it is not kept.
    pub fn touch(&mut self, group: &Group) -> bool {
        self.clock += 1;
        let Some(at) = self.groups.by_key.get(group).copied() else { return false };
        if let Some(entry) = self.groups.entries.get_mut(at).and_then(Option::as_mut) {
            entry.used = self.clock;
        }
        true
    }

    pub fn insert_group(&mut self, group: Group, nodes: NodeCounts) {
        if self.groups.by_key.len() >= MAX_GROUPS {
            let oldest = self.groups.live().min_by_key(|(_, entry)| entry.used).map(|(at, _)| at);
            if let Some(at) = oldest {
                self.groups.remove(at);
            }
        }
        let at = self.groups.get_or_insert(group, self.clock);
        if let Some(entry) = self.groups.entries.get_mut(at).and_then(Option::as_mut) {
            entry.nodes = nodes;
        }
    }

    /// Forgets the groups that look at namespace labels; they are counted again when next asked for.
    pub fn namespaces_changed(&mut self) {
        let stale: Vec<usize> = self
            .groups
            .live()
            .filter(|(_, entry)| entry.key.selects_namespaces())
            .map(|(at, _)| at)
            .collect();
        for at in stale {
            self.groups.remove(at);
        }
    }

    /// Every term of existing pods that means this pod, with how many pods on which nodes carry it.
    pub fn for_each_matching_term(
        &self,
        pod: &PodInfo,
        namespace_labels: Option<&Labels>,
        mut visit: impl FnMut(&AffinityTerm, TermKind, &NodeCounts),
    ) {
        self.terms.lookup.for_each_candidate(pod, |at| {
            if let Some(entry) = self.terms.entry(at)
                && entry.key.0.filter.matches(pod, namespace_labels)
            {
                visit(&entry.key.0, entry.key.1, &entry.nodes);
            }
        });
    }
}

/// The terms other pods' decisions must look at.
pub fn for_each_term(pod: &PodInfo, mut visit: impl FnMut(&AffinityTerm, TermKind)) {
    for term in &pod.spec.affinity {
        visit(term, TermKind::RequiredAffinity);
    }
    for term in &pod.spec.anti_affinity {
        visit(term, TermKind::RequiredAntiAffinity);
    }
    for (weight, term) in &pod.spec.preferred_pods {
        visit(term, TermKind::Preferred(*weight));
    }
}

impl<K: Eq + Hash + Filtered> Table<K> {
    fn entry(&self, at: usize) -> Option<&Entry<K>> {
        self.entries.get(at).and_then(Option::as_ref)
    }

    fn live(&self) -> impl Iterator<Item = (usize, &Entry<K>)> {
        self.entries.iter().enumerate().filter_map(|(at, entry)| Some((at, entry.as_ref()?)))
    }

    fn get_or_insert(&mut self, key: K, used: u64) -> usize {
        if let Some(at) = self.by_key.get(&key) {
            return *at;
        }
        let key = Arc::new(key);
        let entry = Some(Entry { key: Arc::clone(&key), nodes: NodeCounts::new(), used });
        let at = match self.free.pop() {
            Some(at) => {
                self.entries[at] = entry;
                at
            }
            None => {
                self.entries.push(entry);
                self.entries.len() - 1
            }
        };
        self.lookup.insert(key.filter(), at);
        self.by_key.insert(key, at);
        at
    }

    fn count(&mut self, at: usize, node: NodeIdx, change: i32) {
        let Some(entry) = self.entries.get_mut(at).and_then(Option::as_mut) else { return };
        let count = entry.nodes.entry(node).or_default();
        *count = count.saturating_add_signed(change);
        if *count == 0 {
            entry.nodes.remove(&node);
        }
    }

    fn remove(&mut self, at: usize) {
        let Some(entry) = self.entries.get_mut(at).and_then(Option::take) else { return };
        self.by_key.remove(&entry.key);
        self.lookup.remove(entry.key.filter(), at);
        self.free.push(at);
    }
}

impl Lookup {
    fn insert(&mut self, filter: Option<&PodFilter>, at: usize) {
        self.for_each_bucket(filter, |bucket, anchor| match anchor {
            Some((key, value)) => {
                let values = bucket.by_label.entry(key.into()).or_default();
                values.entry(value.into()).or_default().push(at);
            }
            None => bucket.any_label.push(at),
        });
    }

    fn remove(&mut self, filter: Option<&PodFilter>, at: usize) {
        self.for_each_bucket(filter, |bucket, anchor| match anchor {
            Some((key, value)) => {
                let Some(values) = bucket.by_label.get_mut(key) else { return };
                if let Some(list) = values.get_mut(value) {
                    list.retain(|own| *own != at);
                    if list.is_empty() {
                        values.remove(value);
                    }
                }
                if values.is_empty() {
                    bucket.by_label.remove(key);
                }
            }
            None => bucket.any_label.retain(|own| *own != at),
        });
        self.by_namespace.retain(|_, bucket| !bucket.is_empty());
    }

    fn for_each_bucket(
        &mut self,
        filter: Option<&PodFilter>,
        mut visit: impl FnMut(&mut Bucket, Option<(&str, &str)>),
    ) {
        let Some(filter) = filter else { return visit(&mut self.any_namespace, None) };
        if filter.selector.is_nothing() {
            return;
        }
        let anchor = filter.selector.anchor();
        if filter.namespace_selector.is_some() {
            return visit(&mut self.any_namespace, anchor);
        }
        for namespace in &filter.namespaces {
            visit(self.by_namespace.entry(Arc::clone(namespace)).or_default(), anchor);
        }
    }

    fn for_each_candidate(&self, pod: &PodInfo, mut visit: impl FnMut(usize)) {
        let buckets = [self.by_namespace.get(&pod.namespace), Some(&self.any_namespace)];
        for bucket in buckets.into_iter().flatten() {
            bucket.any_label.iter().copied().for_each(&mut visit);
            if bucket.by_label.is_empty() {
                continue;
            }
            for (key, value) in pod.labels.iter() {
                let found = bucket.by_label.get(key).and_then(|values| values.get(value));
                found.into_iter().flatten().copied().for_each(&mut visit);
            }
        }
    }
}

impl Bucket {
    fn is_empty(&self) -> bool {
        self.by_label.is_empty() && self.any_label.is_empty()
    }
}
