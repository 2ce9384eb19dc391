//! How many replicas an autoscaler wants, and how fast it may get there.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::autoscaling::v2::{HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerSpec};

/// The greatest factor by which replicas grow at once when nothing else is said.
const GROWTH: i32 = 2;
const GROWTH_FLOOR: i32 = 4;

/// What is known of a metric over the pods of a target.
#[derive(Debug, Clone, Default)]
pub(super) struct Sample {
    /// Use and request by pod, in thousandths, for pods that count.
    pub(super) ready: BTreeMap<String, (i64, i64)>,
    /// Requests of pods that start or are not ready: they use nothing when growing.
    pub(super) unready: BTreeMap<String, i64>,
    /// Requests of pods without a sample.
    pub(super) missing: BTreeMap<String, i64>,
}

/// What the metric is to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Target {
    /// Per cent of what is requested.
    Utilization(i32),
    /// On average a pod, in thousandths.
    Average(i64),
}

/// One past recommendation, or one past change: when, and how many.
pub(super) type Record = (Duration, i32);

/// The replicas a metric asks for, and the current value in the target's unit; `None` without any sample.
pub(super) fn replicas_for(
    current: i32,
    sample: &Sample,
    target: Target,
    tolerance: f64,
) -> Option<(i32, i64)> {
    if sample.ready.is_empty() {
        return None;
    }
    let observed = value(&sample.ready, target);
    let usage = ratio(&sample.ready, target);
    let rebalanced = !sample.unready.is_empty() && usage > 1.0;
    if !rebalanced && sample.missing.is_empty() {
        if (usage - 1.0).abs() <= tolerance {
            return Some((current, observed));
        }
        return Some((ceil(usage * count(sample.ready.len())), observed));
    }
    // What is not known is taken to be whatever argues against a change.
    let mut all = sample.ready.clone();
    for (pod, request) in &sample.missing {
        let assumed = match (usage < 1.0, target) {
            (true, Target::Utilization(_)) => *request,
            (true, Target::Average(wanted)) => wanted,
            (false, _) => 0,
        };
        all.insert(pod.clone(), (assumed, *request));
    }
    if rebalanced {
        all.extend(sample.unready.iter().map(|(pod, request)| (pod.clone(), (0, *request))));
    }
    let new = ratio(&all, target);
    let turned = (usage < 1.0 && new > 1.0) || (usage > 1.0 && new < 1.0);
    if (new - 1.0).abs() <= tolerance || turned {
        return Some((current, observed));
    }
    let wanted = ceil(new * count(all.len()));
    let wrong_way = (new < 1.0 && wanted > current) || (new > 1.0 && wanted < current);
    Some((if wrong_way { current } else { wanted }, observed))
}

fn value(pods: &BTreeMap<String, (i64, i64)>, target: Target) -> i64 {
    let used: i64 = pods.values().map(|(used, _)| used).sum();
    let requested: i64 = pods.values().map(|(_, requested)| requested).sum();
    match target {
        Target::Utilization(_) => used.saturating_mul(100).checked_div(requested).unwrap_or(0),
        Target::Average(_) => used.checked_div(i64::try_from(pods.len()).unwrap_or(1)).unwrap_or(0),
    }
}

fn ratio(pods: &BTreeMap<String, (i64, i64)>, target: Target) -> f64 {
    let wanted = match target {
        Target::Utilization(percent) => i64::from(percent),
        Target::Average(milli) => milli,
    };
    float(value(pods, target)) / float(wanted.max(1))
}

/// Exact below 2^53, far beyond any use of a pod.
fn float(number: i64) -> f64 {
    let high = i32::try_from(number >> 32).unwrap_or(i32::MAX);
    let low = u32::try_from(number & 0xffff_ffff).unwrap_or(0);
    f64::from(high) * 4_294_967_296.0 + f64::from(low)
}

fn count(pods: usize) -> f64 {
    f64::from(u32::try_from(pods).unwrap_or(u32::MAX))
}

fn ceil(number: f64) -> i32 {
    let rounded = number.ceil().clamp(0.0, f64::from(i32::MAX));
    // Clamped to the range just above.
    format!("{rounded:.0}").parse().unwrap_or(i32::MAX)
}

/// The bounds and brakes of an autoscaler, and what came before.
pub(super) struct Brakes<'a> {
    pub(super) spec: &'a HorizontalPodAutoscalerSpec,
    pub(super) downscale_stabilization: Duration,
    pub(super) recommendations: &'a [Record],
    pub(super) ups: &'a [Record],
    pub(super) downs: &'a [Record],
    pub(super) now: Duration,
}

impl Brakes<'_> {
    fn rules(&self, up: bool) -> Option<&HPAScalingRules> {
        let behavior = self.spec.behavior.as_ref()?;
        if up { behavior.scale_up.as_ref() } else { behavior.scale_down.as_ref() }
    }

    pub(super) fn window(&self, up: bool) -> Duration {
        let seconds = self.rules(up).and_then(|rules| rules.stabilization_window_seconds);
        let given = seconds.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
        given.unwrap_or(if up { Duration::ZERO } else { self.downscale_stabilization })
    }

    /// The size to go to now, and the reason and message of `ScalingLimited` if something held it.
    pub(super) fn apply(&self, current: i32, desired: i32) -> (i32, Option<(&'static str, &'static str)>) {
        let min = self.spec.min_replicas.unwrap_or(1);
        let stable = self.stabilize(current, desired);
        let max = self.spec.max_replicas;
        if stable > current {
            let limit = self.up_limit(current).max(current);
            if stable > limit.min(max) {
                let why = if max < limit {
                    ("TooManyReplicas", "the desired replica count is more than the maximum replica count")
                } else {
                    (
                        "ScaleUpLimit",
                        "the desired replica count is increasing faster than the maximum scale rate",
                    )
                };
                return (limit.min(max), Some(why));
            }
        } else if stable < current {
            let limit = self.down_limit(current).min(current);
            if stable < limit.max(min) {
                let why = if min > limit {
                    ("TooFewReplicas", "the desired replica count is less than the minimum replica count")
                } else {
                    (
                        "ScaleDownLimit",
                        "the desired replica count is decreasing faster than the maximum scale rate",
                    )
                };
                return (limit.max(min), Some(why));
            }
        }
        match stable {
            _ if stable > max => (
                max,
                Some(("TooManyReplicas", "the desired replica count is more than the maximum replica count")),
            ),
            _ if stable < min => (
                min,
                Some(("TooFewReplicas", "the desired replica count is less than the minimum replica count")),
            ),
            _ => (stable, None),
        }
    }

    /// Goes up no further than the lowest, and down no further than the highest of recent recommendations.
    fn stabilize(&self, current: i32, desired: i32) -> i32 {
        let within = |up| {
            let window = self.window(up);
            let recent = self.recommendations.iter();
            recent.filter(move |(at, _)| self.now.saturating_sub(*at) < window).map(|(_, replicas)| *replicas)
        };
        let up = within(true).fold(desired, i32::min);
        let down = within(false).fold(desired, i32::max);
        current.max(up).min(down)
    }

    fn up_limit(&self, current: i32) -> i32 {
        let rules = self.rules(true);
        let policies = rules.and_then(|rules| rules.policies.as_deref()).unwrap_or_default();
        match rules.and_then(|rules| rules.select_policy.as_deref()) {
            Some("Disabled") => return current,
            _ if policies.is_empty() => return (current.saturating_mul(GROWTH)).max(GROWTH_FLOOR),
            _ => {}
        }
        let limits = policies.iter().map(|policy| {
            let before =
                current - changed(self.ups, policy, self.now) + changed(self.downs, policy, self.now);
            match policy.type_.as_str() {
                "Pods" => before.saturating_add(policy.value),
                _ => percent_up(before, policy.value),
            }
        });
        let least = rules.and_then(|rules| rules.select_policy.as_deref()) == Some("Min");
        if least { limits.min().unwrap_or(current) } else { limits.max().unwrap_or(current) }
    }

    fn down_limit(&self, current: i32) -> i32 {
        let rules = self.rules(false);
        let policies = rules.and_then(|rules| rules.policies.as_deref()).unwrap_or_default();
        match rules.and_then(|rules| rules.select_policy.as_deref()) {
            Some("Disabled") => return current,
            _ if policies.is_empty() => return 0,
            _ => {}
        }
        let limits = policies.iter().map(|policy| {
            let before =
                current - changed(self.ups, policy, self.now) + changed(self.downs, policy, self.now);
            match policy.type_.as_str() {
                "Pods" => before.saturating_sub(policy.value),
                _ => i32::try_from(i64::from(before) * i64::from(100 - policy.value.min(100)) / 100)
                    .unwrap_or(0),
            }
        });
        let least = rules.and_then(|rules| rules.select_policy.as_deref()) == Some("Min");
        if least { limits.max().unwrap_or(current) } else { limits.min().unwrap_or(current) }
    }
}

fn percent_up(before: i32, percent: i32) -> i32 {
    let grown = (i64::from(before) * (100 + i64::from(percent)) + 99) / 100;
    i32::try_from(grown).unwrap_or(i32::MAX)
}

/// How many replicas came or went within a policy's period.
fn changed(records: &[Record], policy: &HPAScalingPolicy, now: Duration) -> i32 {
    let period = Duration::from_secs(u64::try_from(policy.period_seconds).unwrap_or(0));
    let recent = records.iter().filter(|(at, _)| now.saturating_sub(*at) < period);
    recent.map(|(_, change)| *change).sum()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn sample(used: &[i64], unready: usize, missing: usize) -> Sample {
        let names =
            |prefix: &'static str, count: usize| (0..count).map(move |n| (format!("{prefix}{n}"), 100));
        Sample {
            ready: used.iter().enumerate().map(|(n, used)| (format!("p{n}"), (*used, 100))).collect(),
            unready: names("u", unready).collect(),
            missing: names("m", missing).collect(),
        }
    }

    #[test]
    fn replicas_follow_use_and_what_is_unknown_argues_against_change() {
        let half = Target::Utilization(50);
        let table = [
            (3, sample(&[50, 50, 50], 0, 0), half, 3),
            (3, sample(&[54, 54, 54], 0, 0), half, 3),
            (3, sample(&[100, 100, 100], 0, 0), half, 6),
            (3, sample(&[10, 10, 10], 0, 0), half, 1),
            (3, sample(&[100, 100], 1, 0), half, 4),
            (3, sample(&[100, 100], 0, 1), half, 4),
            (3, sample(&[20, 20], 0, 1), half, 3),
            (4, sample(&[300, 100], 0, 0), Target::Average(100), 4),
        ];
        for (current, sample, target, expected) in table {
            let (replicas, _) = replicas_for(current, &sample, target, 0.1).unwrap();
            assert_eq!(replicas, expected, "{sample:?} {target:?}");
        }
        assert!(replicas_for(3, &Sample::default(), half, 0.1).is_none());
    }

    fn go(
        behavior: Value,
        recommendations: &[Record],
        ups: &[Record],
        current: i32,
        desired: i32,
    ) -> (i32, String) {
        let spec: HorizontalPodAutoscalerSpec = serde_json::from_value(json!({
            "minReplicas": 2, "maxReplicas": 50, "behavior": behavior, "scaleTargetRef": {"kind": "Deployment", "name": "a"},
        }))
        .unwrap();
        let brakes = Brakes {
            spec: &spec,
            downscale_stabilization: Duration::from_secs(300),
            recommendations,
            ups,
            downs: &[],
            now: Duration::from_secs(1_000),
        };
        let (replicas, why) = brakes.apply(current, desired);
        (replicas, why.map_or(String::new(), |(reason, _)| reason.to_owned()))
    }

    #[test]
    fn bounds_windows_and_policies_hold_the_change() {
        let at = |second: u64, replicas: i32| (Duration::from_secs(second), replicas);
        let pods = |count: i32| json!({"scaleUp": {"policies": [{"type": "Pods", "value": count, "periodSeconds": 60}]}});
        let down = json!({"scaleDown": {"stabilizationWindowSeconds": 0, "policies": [{"type": "Percent", "value": 10, "periodSeconds": 60}]}});
        let table = [
            (json!(null), vec![], vec![], 3, 5, (5, "")),
            (json!(null), vec![], vec![], 3, 20, (6, "ScaleUpLimit")),
            (json!(null), vec![], vec![], 40, 90, (50, "TooManyReplicas")),
            (json!(null), vec![], vec![], 3, 1, (2, "TooFewReplicas")),
            (json!(null), vec![at(800, 9)], vec![], 10, 4, (9, "")),
            (json!(null), vec![at(600, 9)], vec![], 10, 4, (4, "")),
            (pods(4), vec![], vec![], 3, 20, (7, "ScaleUpLimit")),
            (pods(4), vec![], vec![at(970, 3)], 6, 20, (7, "ScaleUpLimit")),
            (pods(4), vec![], vec![at(900, 3)], 6, 20, (10, "ScaleUpLimit")),
            (down, vec![], vec![], 20, 5, (18, "ScaleDownLimit")),
            (
                json!({"scaleDown": {"selectPolicy": "Disabled", "stabilizationWindowSeconds": 0}}),
                vec![],
                vec![],
                20,
                5,
                (20, "ScaleDownLimit"),
            ),
        ];
        for (behavior, recommendations, ups, current, desired, (replicas, why)) in table {
            let found = go(behavior.clone(), &recommendations, &ups, current, desired);
            assert_eq!(found, (replicas, why.to_owned()), "{behavior} {current} to {desired}");
        }
    }
}
