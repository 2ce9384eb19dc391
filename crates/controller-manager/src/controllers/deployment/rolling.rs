//! The arithmetic of rolling updates and of proportional scaling.

use std::cmp::Reverse;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::replica_sets::{DESIRED, MAX, available, number, replicas};
use crate::pods::{created, name};

/// The sizes a strategy allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) desired: i32,
    pub(super) max_surge: i32,
    pub(super) max_unavailable: i32,
    pub(super) rolling: bool,
}

/// A replica set and the size it is to have.
pub(super) type Resize = (ReplicaSet, i32);

impl Limits {
    pub(super) fn of(deployment: &Deployment) -> Self {
        let spec = deployment.spec.clone().unwrap_or_default();
        let desired = spec.replicas.unwrap_or(1);
        let strategy = spec.strategy.unwrap_or_default();
        if strategy.type_.as_deref() == Some("Recreate") {
            return Self { desired, max_surge: 0, max_unavailable: desired, rolling: false };
        }
        let rolling = strategy.rolling_update.unwrap_or_default();
        let quarter = IntOrString::String("25%".to_owned());
        let max_surge = scaled(rolling.max_surge.as_ref().unwrap_or(&quarter), desired, true);
        let max_unavailable = scaled(rolling.max_unavailable.as_ref().unwrap_or(&quarter), desired, false);
        // Both may round to zero, and then nothing would ever move.
        let stuck = max_surge == 0 && max_unavailable == 0;
        let max_unavailable = if stuck { 1 } else { max_unavailable.min(desired) };
        Self { desired, max_surge, max_unavailable, rolling: true }
    }

    pub(super) fn max_total(self) -> i32 {
        self.desired + self.max_surge
    }

    /// The size of the new replica set when those of all are `total`.
    pub(super) fn new_size(self, total: i32, new: i32) -> i32 {
        if !self.rolling {
            return self.desired;
        }
        if total >= self.max_total() {
            return new;
        }
        new + (self.max_total() - total).min(self.desired - new)
    }
}

/// A number, or a percentage of `total`.
pub(in crate::controllers) fn scaled(value: &IntOrString, total: i32, round_up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent: i64 = text.strip_suffix('%').and_then(|number| number.parse().ok()).unwrap_or(0);
            let hundredths = percent * i64::from(total);
            let rounded =
                if round_up { (hundredths + 99).div_euclid(100) } else { hundredths.div_euclid(100) };
            i32::try_from(rounded).unwrap_or(i32::MAX)
        }
    }
}

/// What one step of a rolling update makes smaller: first old pods that do not work, then old pods that can be spared.
pub(super) fn shrink_old(limits: Limits, new: &ReplicaSet, old: &[ReplicaSet]) -> Vec<Resize> {
    let old_total: i32 = old.iter().map(replicas).sum();
    let min_available = limits.desired - limits.max_unavailable;
    let new_unavailable = replicas(new) - available(new);
    let removable = old_total + replicas(new) - min_available - new_unavailable;
    if old_total == 0 || removable <= 0 {
        return Vec::new();
    }
    let mut sizes: Vec<(&ReplicaSet, i32)> = old.iter().map(|set| (set, replicas(set))).collect();
    sizes.sort_by_key(|(set, _)| (created(&set.metadata), name(&set.metadata).to_owned()));
    let mut left = removable;
    for (set, size) in &mut sizes {
        let unhealthy = (*size - available(set)).clamp(0, left);
        *size -= unhealthy;
        left -= unhealthy;
    }
    let available_total: i32 = old.iter().map(available).sum::<i32>() + available(new);
    let mut spare = (available_total - min_available).max(0);
    for (_, size) in &mut sizes {
        let down = (*size).min(spare);
        *size -= down;
        spare -= down;
    }
    sizes
        .into_iter()
        .filter(|(set, size)| replicas(set) != *size)
        .map(|(set, size)| (set.clone(), size))
        .collect()
}

/// What a change of `spec.replicas` alone does to the replica sets.
pub(super) fn rescale(
    deployment: &Deployment,
    limits: Limits,
    new: Option<&ReplicaSet>,
    old: &[ReplicaSet],
) -> Vec<Resize> {
    let all: Vec<&ReplicaSet> = old.iter().chain(new).collect();
    let active: Vec<&ReplicaSet> = all.iter().copied().filter(|set| replicas(set) > 0).collect();
    let latest = || new.or_else(|| old.iter().max_by_key(|set| created(&set.metadata)));
    let only = match active.as_slice() {
        [] => latest(),
        [one] => Some(*one),
        _ => None,
    };
    if let Some(only) = only {
        return vec![(only.clone(), limits.desired)];
    }
    if new.is_some_and(|new| is_saturated(limits, new)) {
        return old.iter().filter(|set| replicas(set) > 0).map(|set| (set.clone(), 0)).collect();
    }
    if limits.rolling { proportional(deployment, limits, active) } else { Vec::new() }
}

fn is_saturated(limits: Limits, new: &ReplicaSet) -> bool {
    replicas(new) == limits.desired
        && number(new, DESIRED) == Some(limits.desired)
        && available(new) == limits.desired
}

/// Spreads the difference over all active replica sets by their share; what rounding leaves goes to the largest.
fn proportional(deployment: &Deployment, limits: Limits, mut active: Vec<&ReplicaSet>) -> Vec<Resize> {
    let total: i32 = active.iter().map(|set| replicas(set)).sum();
    let allowed = if limits.desired > 0 { limits.max_total() } else { 0 };
    let to_add = allowed - total;
    if to_add >= 0 {
        active.sort_by_key(|set| (Reverse(replicas(set)), Reverse(created(&set.metadata))));
    } else {
        active.sort_by_key(|set| (Reverse(replicas(set)), created(&set.metadata)));
    }
    let mut added = 0;
    let mut sizes = Vec::with_capacity(active.len());
    for set in active {
        let share = share(deployment, limits, set, to_add, added);
        added += share;
        sizes.push((set.clone(), replicas(set) + share));
    }
    if let Some((_, largest)) = sizes.first_mut() {
        *largest = (*largest + to_add - added).max(0);
    }
    sizes
}

fn share(deployment: &Deployment, limits: Limits, set: &ReplicaSet, to_add: i32, added: i32) -> i32 {
    if replicas(set) == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let fraction = fraction(deployment, limits, set);
    let left = to_add - added;
    if to_add > 0 { fraction.min(left) } else { fraction.max(left) }
}

/// By how much this replica set would change if it kept its share of the whole.
fn fraction(deployment: &Deployment, limits: Limits, set: &ReplicaSet) -> i32 {
    if limits.desired == 0 {
        return -replicas(set);
    }
    let observed = || deployment.status.as_ref().and_then(|status| status.replicas).unwrap_or(0);
    let before = number(set, MAX).filter(|max| *max != 0).unwrap_or_else(observed);
    if before == 0 {
        return 0;
    }
    let (size, now, before) = (i64::from(replicas(set)), i64::from(limits.max_total()), i64::from(before));
    let rounded = (2 * size * now + before).div_euclid(2 * before);
    i32::try_from(rounded - size).unwrap_or(0)
}
