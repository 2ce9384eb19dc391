//! `KubeSchedulerConfiguration` v1, read strictly, checked, and turned into profiles.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use serde::Deserialize;
use serde_json::Value;

use crate::framework::{Framework, Plugin, Point};
use crate::labels::Labels;
use crate::plugins::{self, BuiltIn, DEFAULT_BINDER, DEFAULT_PLUGINS, DEFAULT_PREEMPTION, PRIORITY_SORT};
use crate::pod::SpreadConstraint;
use crate::preemption::Preemption;

pub const DEFAULT_SCHEDULER_NAME: &str = "default-scheduler";
const API_VERSION: &str = "kubescheduler.config.k8s.io/v1";

/// What a scheduler runs with.
#[derive(Debug, Clone)]
pub struct Config {
    pub profiles: Vec<Framework>,
    pub initial_backoff: Duration,
    pub max_backoff: Duration,
    /// Binding cycles under way at most.
    pub max_bindings: usize,
    pub leader_election: LeaderElection,
    /// Seeds the choice among equal nodes.
    pub seed: u64,
    /// Who reports events, usually the host's name.
    pub identity: String,
}

/// The `leaderElection` stanza; off inside one process.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LeaderElection {
    pub leader_elect: bool,
    #[serde(deserialize_with = "go_duration::deserialize")]
    pub lease_duration: Duration,
    #[serde(deserialize_with = "go_duration::deserialize")]
    pub renew_deadline: Duration,
    #[serde(deserialize_with = "go_duration::deserialize")]
    pub retry_period: Duration,
    pub resource_lock: String,
    pub resource_name: String,
    pub resource_namespace: String,
}

impl Default for LeaderElection {
    fn default() -> Self {
        Self {
            leader_elect: true,
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
            resource_lock: "leases".to_owned(),
            resource_name: "kube-scheduler".to_owned(),
            resource_namespace: "kube-system".to_owned(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    #[error("cannot read the scheduler configuration")]
    Syntax(#[from] serde_saphyr::Error),
    #[error("cannot read the arguments of plugin {plugin}")]
    Arguments {
        plugin: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("no kind \"{kind}\" is registered for version \"{api_version}\"")]
    Kind { api_version: String, kind: String },
    #[error("{path}: Invalid value: {value}: {detail}")]
    Invalid { path: String, value: String, detail: String },
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct File {
    api_version: String,
    kind: String,
    parallelism: Option<i32>,
    leader_election: LeaderElection,
    client_connection: Option<Value>,
    enable_profiling: Option<bool>,
    enable_contention_profiling: Option<bool>,
    percentage_of_nodes_to_score: Option<i32>,
    pod_initial_backoff_seconds: Option<i64>,
    pod_max_backoff_seconds: Option<i64>,
    profiles: Vec<Profile>,
    extenders: Vec<Value>,
    delay_cache_until_active: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Profile {
    scheduler_name: Option<String>,
    percentage_of_nodes_to_score: Option<i32>,
    plugins: BTreeMap<String, PluginSet>,
    plugin_config: Vec<PluginConfig>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct PluginSet {
    enabled: Vec<PluginRef>,
    disabled: Vec<PluginRef>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PluginRef {
    name: String,
    #[serde(default)]
    weight: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PluginConfig {
    name: String,
    #[serde(default)]
    args: Value,
}

impl Default for Config {
    fn default() -> Self {
        // The empty file is valid: it means every default.
        Self::from_file(File::default()).expect("the default configuration is valid")
    }
}

impl Config {
    /// Reads a configuration file.
    pub fn from_yaml(text: &str) -> Result<Self, ConfigError> {
        let file: File = serde_saphyr::from_str(text)?;
        if file.api_version != API_VERSION || file.kind != "KubeSchedulerConfiguration" {
            return Err(ConfigError::Kind { api_version: file.api_version, kind: file.kind });
        }
        Self::from_file(file)
    }

    fn from_file(file: File) -> Result<Self, ConfigError> {
        let initial = positive("podInitialBackoffSeconds", file.pod_initial_backoff_seconds.unwrap_or(1))?;
        let max = positive("podMaxBackoffSeconds", file.pod_max_backoff_seconds.unwrap_or(10))?;
        if max < initial {
            return Err(invalid(
                "podMaxBackoffSeconds",
                max,
                "must be greater than or equal to podInitialBackoffSeconds",
            ));
        }
        positive("parallelism", i64::from(file.parallelism.unwrap_or(16)))?;
        let percentage =
            percentage("percentageOfNodesToScore", file.percentage_of_nodes_to_score)?.unwrap_or(0);
        let written = if file.profiles.is_empty() { vec![Profile::default()] } else { file.profiles };
        let mut profiles: Vec<Framework> = Vec::with_capacity(written.len());
        for (at, profile) in written.into_iter().enumerate() {
            let framework = profile.framework(&format!("profiles[{at}]"), percentage)?;
            if profiles.iter().any(|own| own.profile == framework.profile) {
                return Err(invalid(
                    &format!("profiles[{at}].schedulerName"),
                    &framework.profile,
                    "Duplicate value",
                ));
            }
            profiles.push(framework);
        }
        if !file.extenders.is_empty() {
            // Ignoring them would put pods where their owner forbids it.
            return Err(invalid("extenders", file.extenders.len(), "extenders are not supported"));
        }
        note_ignored(file.client_connection.is_some(), "clientConnection");
        note_ignored(file.enable_profiling.is_some(), "enableProfiling");
        note_ignored(file.enable_contention_profiling.is_some(), "enableContentionProfiling");
        note_ignored(file.delay_cache_until_active, "delayCacheUntilActive");
        Ok(Self {
            profiles,
            initial_backoff: Duration::from_secs(initial),
            max_backoff: Duration::from_secs(max),
            max_bindings: 256,
            leader_election: file.leader_election,
            seed: 0,
            identity: String::new(),
        })
    }
}

fn note_ignored(set: bool, field: &'static str) {
    if set {
        tracing::info!(field, "the field is accepted and has no effect here");
    }
}

fn invalid(path: &str, value: impl ToString, detail: &str) -> ConfigError {
    ConfigError::Invalid { path: path.to_owned(), value: value.to_string(), detail: detail.to_owned() }
}

fn positive(path: &str, value: i64) -> Result<u64, ConfigError> {
    match u64::try_from(value) {
        Ok(value) if value > 0 => Ok(value),
        _ => Err(invalid(path, value, "must be greater than 0")),
    }
}

fn percentage(path: &str, value: Option<i32>) -> Result<Option<u32>, ConfigError> {
    match value {
        None => Ok(None),
        Some(value) => match u32::try_from(value) {
            Ok(value) if value <= 100 => Ok(Some(value)),
            _ => Err(invalid(path, value, "not in valid range [0-100]")),
        },
    }
}

const POINTS: [(&str, Point); 12] = [
    ("preEnqueue", Point::PreEnqueue),
    ("queueSort", Point::QueueSort),
    ("preFilter", Point::PreFilter),
    ("filter", Point::Filter),
    ("postFilter", Point::PostFilter),
    ("preScore", Point::PreScore),
    ("score", Point::Score),
    ("reserve", Point::Reserve),
    ("permit", Point::Permit),
    ("preBind", Point::PreBind),
    ("bind", Point::Bind),
    ("postBind", Point::PostBind),
];

const MULTI_POINT: &str = "multiPoint";

impl Profile {
    fn framework(self, path: &str, percentage_of_nodes_to_score: u32) -> Result<Framework, ConfigError> {
        let own = percentage(&format!("{path}.percentageOfNodesToScore"), self.percentage_of_nodes_to_score)?;
        let mut arguments = BTreeMap::new();
        for config in self.plugin_config {
            if arguments.insert(config.name.clone(), config.args).is_some() {
                return Err(invalid(
                    &format!("{path}.pluginConfig"),
                    &config.name,
                    "repeated config for plugin",
                ));
            }
        }
        for name in self.plugins.keys() {
            if name != MULTI_POINT && !POINTS.iter().any(|(own, _)| own == name) {
                return Err(invalid(&format!("{path}.plugins"), name, "unknown extension point"));
            }
        }
        let mut registry = Registry { arguments, made: BTreeMap::new(), preemption: None };
        let lists = Lists::new(&self.plugins, &mut registry, path)?;
        let scores = lists.at(Point::Score);
        let names: BTreeSet<&str> = lists.names().collect();
        if !names.contains(PRIORITY_SORT) || !names.contains(DEFAULT_BINDER) {
            let detail = "at least one queue sort plugin and one bind plugin are needed";
            return Err(invalid(&format!("{path}.plugins"), "", detail));
        }
        let plugins =
            |point| lists.at(point).iter().map(|(plugin, _)| Arc::clone(plugin)).collect::<Vec<_>>();
        let preempts = lists.at(Point::PostFilter).iter().any(|(own, _)| own.name() == DEFAULT_PREEMPTION);
        Ok(Framework {
            profile: self.scheduler_name.unwrap_or_else(|| DEFAULT_SCHEDULER_NAME.to_owned()),
            pre_enqueue: plugins(Point::PreEnqueue),
            filters: plugins(Point::Filter),
            scores: scores.to_vec(),
            reserves: plugins(Point::Reserve),
            all: lists.all(),
            preemption: preempts.then(|| registry.preemption.unwrap_or_default()),
            percentage_of_nodes_to_score: own.unwrap_or(percentage_of_nodes_to_score),
        })
    }
}

type Weighted = (Arc<dyn Plugin>, i64);

/// The plugins of a profile by extension point, in running order.
struct Lists(BTreeMap<Point, Vec<Weighted>>);

impl Lists {
    /// Merges a profile's wishes with the defaults. At each point come first the plugins that the profile
    /// names there and in `multiPoint` as well, then those of `multiPoint`, then those it names there only.
    fn new(
        wishes: &BTreeMap<String, PluginSet>,
        registry: &mut Registry,
        path: &str,
    ) -> Result<Self, ConfigError> {
        let multi_point = merged(wishes.get(MULTI_POINT));
        let mut lists = BTreeMap::new();
        for (name, point) in POINTS {
            let wish = wishes.get(name).cloned().unwrap_or_default();
            let disabled =
                |plugin: &str| wish.disabled.iter().any(|own| own.name == plugin || own.name == "*");
            let weight_of = |own: &PluginRef| own.weight.filter(|weight| *weight > 0);
            let mut list: Vec<(String, Option<i64>)> = Vec::new();
            let named_twice =
                wish.enabled.iter().filter(|own| multi_point.iter().any(|m| m.name == own.name));
            list.extend(named_twice.map(|own| (own.name.clone(), weight_of(own))));
            for own in &multi_point {
                if !disabled(&own.name) && !list.iter().any(|(name, _)| *name == own.name) {
                    list.push((own.name.clone(), weight_of(own)));
                }
            }
            for own in &wish.enabled {
                if !multi_point.iter().any(|m| m.name == own.name) {
                    if list.iter().any(|(name, _)| *name == own.name) {
                        let path = format!("{path}.plugins.{name}");
                        return Err(invalid(&path, &own.name, "plugin already registered"));
                    }
                    list.push((own.name.clone(), weight_of(own)));
                }
            }
            let mut made = Vec::new();
            for (name, weight) in list {
                let plugin = registry.get(&name, path)?;
                if plugin.points().contains(&point) {
                    made.push((plugin, weight.unwrap_or(1)));
                } else if wish.enabled.iter().any(|own| own.name == name) {
                    let detail = "does not extend this extension point";
                    return Err(invalid(&format!("{path}.plugins"), &name, detail));
                }
            }
            lists.insert(point, made);
        }
        Ok(Self(lists))
    }

    fn at(&self, point: Point) -> &[Weighted] {
        self.0.get(&point).map_or(&[], Vec::as_slice)
    }

    fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.values().flatten().map(|(plugin, _)| plugin.name())
    }

    fn all(&self) -> Vec<Arc<dyn Plugin>> {
        let mut all: Vec<Arc<dyn Plugin>> = Vec::new();
        for (plugin, _) in self.0.values().flatten() {
            if !all.iter().any(|own| own.name() == plugin.name()) {
                all.push(Arc::clone(plugin));
            }
        }
        all
    }
}

/// The default plugins with a profile's own put over them.
fn merged(wish: Option<&PluginSet>) -> Vec<PluginRef> {
    let wish = wish.cloned().unwrap_or_default();
    let disabled = |name: &str| wish.disabled.iter().any(|own| own.name == name || own.name == "*");
    let mut list: Vec<PluginRef> = Vec::new();
    for (name, weight) in DEFAULT_PLUGINS {
        if !disabled(name) {
            let own = wish.enabled.iter().find(|own| own.name == name).cloned();
            list.push(own.unwrap_or_else(|| PluginRef { name: name.to_owned(), weight: Some(weight) }));
        }
    }
    for own in &wish.enabled {
        if !list.iter().any(|other| other.name == own.name) {
            list.push(own.clone());
        }
    }
    list
}

/// Makes each plugin once, with its arguments.
struct Registry {
    arguments: BTreeMap<String, Value>,
    made: BTreeMap<String, Arc<dyn Plugin>>,
    preemption: Option<Preemption>,
}

impl Registry {
    fn get(&mut self, name: &str, path: &str) -> Result<Arc<dyn Plugin>, ConfigError> {
        if let Some(plugin) = self.made.get(name) {
            return Ok(Arc::clone(plugin));
        }
        let plugin = self.make(name, path)?;
        self.made.insert(name.to_owned(), Arc::clone(&plugin));
        Ok(plugin)
    }

    fn make(&mut self, name: &str, path: &str) -> Result<Arc<dyn Plugin>, ConfigError> {
        Ok(match name {
            "SchedulingGates" => Arc::new(plugins::SchedulingGates),
            "NodeUnschedulable" => Arc::new(plugins::NodeUnschedulable),
            "NodeName" => Arc::new(plugins::NodeName),
            "TaintToleration" => Arc::new(plugins::TaintToleration),
            "NodeAffinity" => {
                let args: NodeAffinityArgs = self.args(name)?;
                Arc::new(plugins::NodeAffinity::new(args.added_affinity.as_ref()))
            }
            "NodePorts" => Arc::new(plugins::NodePorts),
            "NodeResourcesFit" => Arc::new(self.args::<FitArgs>(name)?.plugin(path)?),
            "NodeResourcesBalancedAllocation" => {
                let args: BalancedArgs = self.args(name)?;
                Arc::new(plugins::BalancedAllocation { weights: weights(args.resources) })
            }
            "ImageLocality" => Arc::new(plugins::ImageLocality),
            "PodTopologySpread" => Arc::new(self.args::<SpreadArgs>(name)?.plugin(path)?),
            "InterPodAffinity" => Arc::new(self.args::<InterPodAffinityArgs>(name)?.plugin(path)?),
            "VolumeRestrictions" => Arc::new(plugins::VolumeRestrictions),
            "NodeVolumeLimits" => Arc::new(plugins::NodeVolumeLimits),
            "VolumeBinding" => {
                let args: VolumeBindingArgs = self.args(name)?;
                let seconds = args.bind_timeout_seconds.unwrap_or(600);
                let timeout = u64::try_from(seconds).map_err(|_| {
                    invalid(
                        &format!("{path}.bindTimeoutSeconds"),
                        seconds,
                        "invalid BindTimeoutSeconds, should not be a negative value",
                    )
                })?;
                Arc::new(plugins::VolumeBinding { timeout: Duration::from_secs(timeout) })
            }
            "VolumeZone" => Arc::new(plugins::VolumeZone),
            "DynamicResources" => {
                self.args::<DynamicResourcesArgs>(name)?.check(path)?;
                Arc::new(plugins::DynamicResources)
            }
            PRIORITY_SORT => Arc::new(BuiltIn { name: PRIORITY_SORT, points: &[Point::QueueSort] }),
            DEFAULT_BINDER => Arc::new(BuiltIn { name: DEFAULT_BINDER, points: &[Point::Bind] }),
            DEFAULT_PREEMPTION => {
                self.preemption = Some(self.args::<PreemptionArgs>(name)?.preemption(path)?);
                Arc::new(BuiltIn { name: DEFAULT_PREEMPTION, points: &[Point::PostFilter] })
            }
            _ => return Err(invalid(&format!("{path}.plugins"), name, "plugin does not exist")),
        })
    }

    fn args<T: for<'de> Deserialize<'de> + Default>(&self, plugin: &str) -> Result<T, ConfigError> {
        let Some(value) = self.arguments.get(plugin).filter(|value| !value.is_null()) else {
            return Ok(T::default());
        };
        let mut value = value.clone();
        if let Some(map) = value.as_object_mut() {
            map.remove("apiVersion");
            map.remove("kind");
        }
        serde_json::from_value(value)
            .map_err(|source| ConfigError::Arguments { plugin: plugin.to_owned(), source })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct NodeAffinityArgs {
    added_affinity: Option<core::NodeAffinity>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct VolumeBindingArgs {
    bind_timeout_seconds: Option<i64>,
}

/// Deciding about devices takes no waiting here, so the times only have to be readable.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct DynamicResourcesArgs {
    filter_timeout: Option<String>,
    binding_timeout: Option<String>,
}

impl DynamicResourcesArgs {
    fn check(&self, path: &str) -> Result<(), ConfigError> {
        for text in self.filter_timeout.iter().chain(&self.binding_timeout) {
            meta::time::parse_duration(text).map_err(|error| invalid(path, text, &error.to_string()))?;
        }
        Ok(())
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct PreemptionArgs {
    min_candidate_nodes_percentage: Option<i32>,
    min_candidate_nodes_absolute: Option<i32>,
}

impl PreemptionArgs {
    fn preemption(self, path: &str) -> Result<Preemption, ConfigError> {
        let path = |field: &str| format!("{path}.pluginConfig[DefaultPreemption].{field}");
        let share = percentage(
            &path("minCandidateNodesPercentage"),
            Some(self.min_candidate_nodes_percentage.unwrap_or(10)),
        )?;
        let absolute = self.min_candidate_nodes_absolute.unwrap_or(100);
        let Ok(absolute) = usize::try_from(absolute) else {
            return Err(invalid(&path("minCandidateNodesAbsolute"), absolute, "not in valid range [0, inf)"));
        };
        Ok(Preemption {
            min_candidate_nodes_percentage: share.unwrap_or(0) as usize,
            min_candidate_nodes_absolute: absolute,
        })
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ResourceSpec {
    name: String,
    #[serde(default)]
    weight: i64,
}

fn weights(resources: Option<Vec<ResourceSpec>>) -> Vec<(String, i64)> {
    match resources {
        Some(list) if !list.is_empty() => {
            list.into_iter().map(|own| (own.name, if own.weight == 0 { 1 } else { own.weight })).collect()
        }
        _ => plugins::default_weights(),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct BalancedArgs {
    resources: Option<Vec<ResourceSpec>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct FitArgs {
    ignored_resources: Vec<String>,
    ignored_resource_groups: Vec<String>,
    scoring_strategy: Option<Strategy>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Strategy {
    r#type: String,
    resources: Option<Vec<ResourceSpec>>,
    requested_to_capacity_ratio: Option<Ratio>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Ratio {
    shape: Vec<ShapePoint>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ShapePoint {
    utilization: i64,
    #[serde(default)]
    score: i64,
}

/// Shapes are written with scores up to this.
const MAX_CUSTOM_SCORE: i64 = 10;

impl FitArgs {
    fn plugin(self, path: &str) -> Result<plugins::Fit, ConfigError> {
        let mut fit = plugins::Fit {
            ignored_resources: self.ignored_resources,
            ignored_groups: self.ignored_resource_groups,
            ..plugins::Fit::default()
        };
        let Some(strategy) = self.scoring_strategy else { return Ok(fit) };
        fit.strategy = match strategy.r#type.as_str() {
            "" | "LeastAllocated" => plugins::ScoringStrategy::LeastAllocated,
            "MostAllocated" => plugins::ScoringStrategy::MostAllocated,
            "RequestedToCapacityRatio" => {
                let shape = strategy.requested_to_capacity_ratio.unwrap_or_default().shape;
                plugins::ScoringStrategy::RequestedToCapacityRatio(checked_shape(&shape, path)?)
            }
            other => {
                return Err(invalid(&format!("{path}.scoringStrategy.type"), other, "unsupported value"));
            }
        };
        if let Some(own) = strategy.resources.iter().flatten().find(|own| !(0..=100).contains(&own.weight)) {
            let path = format!("{path}.scoringStrategy.resources.weight");
            return Err(invalid(&path, own.weight, "resource weight not in valid range [1-100]"));
        }
        fit.weights = weights(strategy.resources);
        Ok(fit)
    }
}

fn checked_shape(shape: &[ShapePoint], path: &str) -> Result<Vec<(i64, i64)>, ConfigError> {
    let path = format!("{path}.scoringStrategy.requestedToCapacityRatio.shape");
    if shape.is_empty() {
        return Err(invalid(&path, "[]", "at least one point must be specified"));
    }
    let ascending = shape.windows(2).all(|pair| pair[0].utilization < pair[1].utilization);
    if !ascending {
        return Err(invalid(&path, shape.len(), "utilization values must be sorted in increasing order"));
    }
    for point in shape {
        if !(0..=100).contains(&point.utilization) || !(0..=MAX_CUSTOM_SCORE).contains(&point.score) {
            return Err(invalid(&path, point.utilization, "not in valid range"));
        }
    }
    let scale = crate::framework::MAX_NODE_SCORE / MAX_CUSTOM_SCORE;
    Ok(shape.iter().map(|point| (point.utilization, point.score * scale)).collect())
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct InterPodAffinityArgs {
    hard_pod_affinity_weight: Option<i64>,
    ignore_preferred_terms_of_existing_pods: bool,
}

impl InterPodAffinityArgs {
    fn plugin(self, path: &str) -> Result<plugins::InterPodAffinity, ConfigError> {
        let weight = self.hard_pod_affinity_weight.unwrap_or(1);
        if !(0..=100).contains(&weight) {
            return Err(invalid(
                &format!("{path}.hardPodAffinityWeight"),
                weight,
                "not in valid range [0-100]",
            ));
        }
        Ok(plugins::InterPodAffinity {
            hard_pod_affinity_weight: weight,
            ignore_preferred_terms_of_existing_pods: self.ignore_preferred_terms_of_existing_pods,
        })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct SpreadArgs {
    default_constraints: Vec<core::TopologySpreadConstraint>,
    defaulting_type: Option<String>,
}

impl SpreadArgs {
    fn plugin(self, path: &str) -> Result<plugins::PodTopologySpread, ConfigError> {
        let system = match self.defaulting_type.as_deref() {
            None | Some("System") => self.default_constraints.is_empty(),
            Some("List") => false,
            Some(other) => {
                return Err(invalid(&format!("{path}.defaultingType"), other, "unsupported value"));
            }
        };
        if self.defaulting_type.as_deref() == Some("System") && !system {
            let path = format!("{path}.defaultingType");
            return Err(invalid(&path, "System", "when .defaultConstraints are not empty"));
        }
        if system {
            return Ok(plugins::PodTopologySpread::with_system_defaults());
        }
        for constraint in &self.default_constraints {
            if constraint.max_skew <= 0 {
                let path = format!("{path}.defaultConstraints.maxSkew");
                return Err(invalid(&path, constraint.max_skew, "not in valid range (0, inf)"));
            }
            if constraint.label_selector.is_some() {
                let path = format!("{path}.defaultConstraints.labelSelector");
                return Err(invalid(
                    &path,
                    "",
                    "constraint must not define a selector, as they deduced for each pod",
                ));
            }
        }
        let none = Labels::default();
        let list =
            self.default_constraints.iter().map(|own| SpreadConstraint::from_api(own, &none)).collect();
        Ok(plugins::PodTopologySpread::with_defaults(list))
    }
}

/// Durations as Go writes them: `1m30s`, `500ms`.
mod go_duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, de};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        let duration = meta::time::parse_duration(&text).map_err(de::Error::custom)?;
        let nanos = u64::try_from(duration.0).map_err(|_| de::Error::custom("must not be negative"))?;
        Ok(Duration::from_nanos(nanos))
    }
}
