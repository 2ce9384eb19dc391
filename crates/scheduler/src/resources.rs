//! Amounts of resources in the scheduler's own form: integers, never strings, saturating on overflow.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

pub const CPU: &str = "cpu";
pub const MEMORY: &str = "memory";
pub const EPHEMERAL_STORAGE: &str = "ephemeral-storage";
pub const PODS: &str = "pods";

/// What a container without a request is taken to ask for when nodes are scored.
pub const DEFAULT_MILLI_CPU: i64 = 100;
pub const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// An amount of every resource; the common three are fields, the rest is a short sorted list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    pub milli_cpu: i64,
    pub memory: i64,
    pub ephemeral_storage: i64,
    pub scalars: Vec<(Arc<str>, i64)>,
}

impl Resources {
    /// Reads a resource list; `pods` is left out, for it is counted by itself.
    pub fn from_list(list: Option<&BTreeMap<String, Quantity>>) -> Self {
        let mut resources = Self::default();
        for (name, quantity) in list.into_iter().flatten() {
            if name != PODS {
                resources.set(name, quantity);
            }
        }
        resources
    }

    pub fn set(&mut self, name: &str, quantity: &Quantity) {
        match name {
            CPU => self.milli_cpu = milli_value(&quantity.0),
            MEMORY => self.memory = value(&quantity.0),
            EPHEMERAL_STORAGE => self.ephemeral_storage = value(&quantity.0),
            _ => *self.scalar_mut(name) = value(&quantity.0),
        }
    }

    pub fn get(&self, name: &str) -> i64 {
        match name {
            CPU => self.milli_cpu,
            MEMORY => self.memory,
            EPHEMERAL_STORAGE => self.ephemeral_storage,
            _ => self.scalar(name).unwrap_or(0),
        }
    }

    pub fn scalar(&self, name: &str) -> Option<i64> {
        let at = self.scalars.binary_search_by(|(key, _)| (**key).cmp(name)).ok()?;
        self.scalars.get(at).map(|(_, amount)| *amount)
    }

    fn scalar_mut(&mut self, name: &str) -> &mut i64 {
        let at = match self.scalars.binary_search_by(|(key, _)| (**key).cmp(name)) {
            Ok(at) => at,
            Err(at) => {
                self.scalars.insert(at, (name.into(), 0));
                at
            }
        };
        &mut self.scalars[at].1
    }

    pub fn is_zero(&self) -> bool {
        self.milli_cpu == 0 && self.memory == 0 && self.ephemeral_storage == 0 && self.scalars.is_empty()
    }

    pub fn add(&mut self, other: &Self) {
        self.merge(other, i64::saturating_add);
    }

    pub fn sub(&mut self, other: &Self) {
        self.merge(other, i64::saturating_sub);
    }

    pub fn max(&mut self, other: &Self) {
        self.merge(other, i64::max);
    }

    fn merge(&mut self, other: &Self, combine: impl Fn(i64, i64) -> i64) {
        self.milli_cpu = combine(self.milli_cpu, other.milli_cpu);
        self.memory = combine(self.memory, other.memory);
        self.ephemeral_storage = combine(self.ephemeral_storage, other.ephemeral_storage);
        for (name, amount) in &other.scalars {
            let own = self.scalar_mut(name);
            *own = combine(*own, *amount);
        }
    }
}

/// The whole units of a quantity, rounded up; what cannot be read counts as nothing.
pub fn value(text: &str) -> i64 {
    text.parse::<meta::quantity::Quantity>().map_or(0, |quantity| quantity.value())
}

/// The thousandths of a quantity, rounded up.
pub fn milli_value(text: &str) -> i64 {
    text.parse::<meta::quantity::Quantity>().map_or(0, |quantity| quantity.milli_value())
}
