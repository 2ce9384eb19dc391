//! Selectors of the objects that own or select pods (for default topology spread), and disruption budgets.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use crate::labels::{Labels, Selector};
use crate::pod::PodInfo;

/// Selectors by kind, namespace and name.
#[derive(Debug, Default)]
pub struct Workloads {
    services: HashMap<String, HashMap<String, Selector>>,
    owners: HashMap<OwnerKey, Selector>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct OwnerKey {
    kind: &'static str,
    namespace: String,
    name: String,
}

/// Owners whose selector stands for their pods.
const OWNER_KINDS: [(&str, &str); 3] =
    [("v1", "ReplicationController"), ("apps/v1", "ReplicaSet"), ("apps/v1", "StatefulSet")];

impl Workloads {
    /// A service without a selector selects nothing here.
    pub fn set_service(&mut self, namespace: &str, name: &str, selector: Option<&BTreeMap<String, String>>) {
        let services = self.services.entry(namespace.to_owned()).or_default();
        match selector.filter(|selector| !selector.is_empty()) {
            Some(selector) => services.insert(name.to_owned(), Selector::from_map(Some(selector))),
            None => services.remove(name),
        };
        if services.is_empty() {
            self.services.remove(namespace);
        }
    }

    pub fn set_owner(&mut self, kind: &'static str, namespace: &str, name: &str, selector: Option<Selector>) {
        let key = OwnerKey { kind, namespace: namespace.to_owned(), name: name.to_owned() };
        match selector {
            Some(selector) => self.owners.insert(key, selector),
            None => self.owners.remove(&key),
        };
    }

    /// The selector of the services and the owner of a pod, all together; absent when nothing selects it.
    pub fn default_selector(&self, pod: &PodInfo) -> Option<Selector> {
        let mut selector = Selector::everything();
        for service in self.services.get(&*pod.namespace).into_iter().flat_map(HashMap::values) {
            if service.matches(&pod.labels) {
                selector.and(service);
            }
        }
        if let Some(owner) = &pod.spec.owner
            && let Some((_, kind)) = OWNER_KINDS
                .iter()
                .find(|(version, kind)| *version == owner.api_version && *kind == owner.kind)
        {
            let namespace = pod.namespace.to_string();
            let key = OwnerKey { kind, namespace, name: owner.name.clone() };
            if let Some(own) = self.owners.get(&key) {
                selector.and(own);
            }
        }
        (!selector.is_everything()).then_some(selector)
    }
}

/// One budget as preemption reads it.
#[derive(Debug, Clone)]
pub struct Budget {
    selector: Selector,
    allowed: i32,
    disrupted: Vec<String>,
}

#[derive(Debug, Default)]
pub struct DisruptionBudgets {
    by_namespace: HashMap<String, HashMap<String, Budget>>,
}

impl DisruptionBudgets {
    pub fn set(&mut self, namespace: &str, name: &str, budget: Option<&PodDisruptionBudget>) {
        let budgets = self.by_namespace.entry(namespace.to_owned()).or_default();
        match budget {
            Some(budget) => {
                let status = budget.status.as_ref();
                let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
                let own = Budget {
                    selector: Selector::from_api(selector),
                    allowed: status.and_then(|status| status.disruptions_allowed).unwrap_or(0),
                    disrupted: status
                        .and_then(|status| status.disrupted_pods.as_ref())
                        .into_iter()
                        .flat_map(BTreeMap::keys)
                        .cloned()
                        .collect(),
                };
                budgets.insert(name.to_owned(), own);
            }
            None => {
                budgets.remove(name);
                if budgets.is_empty() {
                    self.by_namespace.remove(namespace);
                }
            }
        }
    }

    /// Splits pods into those whose loss would break a budget and the rest, keeping their order.
    pub fn split(&self, pods: Vec<Arc<PodInfo>>) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
        let mut allowed: HashMap<(&str, &str), i32> = HashMap::new();
        pods.into_iter().partition(|pod| self.violates(pod, &mut allowed))
    }

    fn violates<'a>(&'a self, pod: &PodInfo, allowed: &mut HashMap<(&'a str, &'a str), i32>) -> bool {
        let matches = |labels: &Labels, budget: &Budget| {
            // A budget with an empty selector is one for every pod, but upstream does not let it hold
            // back preemption.
            !labels.is_empty() && !budget.selector.is_everything() && budget.selector.matches(labels)
        };
        let mut violated = false;
        if let Some((namespace, budgets)) = self.by_namespace.get_key_value(&*pod.namespace) {
            for (name, budget) in budgets {
                if !matches(&pod.labels, budget) || budget.disrupted.contains(&pod.name) {
                    continue;
                }
                let left = allowed.entry((namespace, name)).or_insert(budget.allowed);
                *left -= 1;
                violated |= *left < 0;
            }
        }
        violated
    }
}
