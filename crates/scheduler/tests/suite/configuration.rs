//! What a configuration file turns into, and what is refused.

use std::error::Error;
use std::time::Duration;

use scheduler::Config;

fn read(body: &str) -> Result<Config, String> {
    let text =
        format!("apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n{body}");
    Config::from_yaml(&text).map_err(|error| match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    })
}

fn filters(config: &Config) -> Vec<&str> {
    config.profiles[0].filters.iter().map(|plugin| plugin.name()).collect()
}

fn scores(config: &Config) -> Vec<(&str, i64)> {
    config.profiles[0].scores.iter().map(|(plugin, weight)| (plugin.name(), *weight)).collect()
}

#[test]
fn the_default_profile_has_every_plugin_with_upstreams_weights() {
    let config = read("").expect("valid");
    assert_eq!(config.profiles[0].profile, "default-scheduler");
    assert_eq!(
        (config.initial_backoff, config.max_backoff),
        (Duration::from_secs(1), Duration::from_secs(10))
    );
    let weights = scores(&config);
    for expected in [
        ("TaintToleration", 3),
        ("NodeAffinity", 2),
        ("NodeResourcesFit", 1),
        ("PodTopologySpread", 2),
        ("InterPodAffinity", 2),
        ("NodeResourcesBalancedAllocation", 1),
        ("ImageLocality", 1),
    ] {
        assert!(weights.contains(&expected), "{expected:?} in {weights:?}");
    }
    assert_eq!(filters(&config)[..3], ["NodeUnschedulable", "NodeName", "TaintToleration"]);
    assert!(config.profiles[0].preemption.is_some());
}

#[test]
fn plugins_are_turned_off_and_weighed_anew_at_one_point_or_at_all() {
    let config = read(
        "profiles:\n- schedulerName: own\n  percentageOfNodesToScore: 30\n  plugins:\n    multiPoint:\n      disabled:\n      - \
         name: ImageLocality\n      enabled:\n      - name: NodeAffinity\n        weight: 9\n    score:\n      disabled:\n      - \
         name: InterPodAffinity\n      enabled:\n      - name: TaintToleration\n        weight: 7\n    postFilter:\n      \
         disabled:\n      - name: '*'\n",
    )
    .expect("valid");
    let weights = scores(&config);
    assert!(
        weights.contains(&("TaintToleration", 7)) && weights.contains(&("NodeAffinity", 9)),
        "{weights:?}"
    );
    assert!(
        !weights.iter().any(|(name, _)| ["ImageLocality", "InterPodAffinity"].contains(name)),
        "{weights:?}"
    );
    assert!(filters(&config).contains(&"InterPodAffinity"));
    assert!(config.profiles[0].preemption.is_none());
    assert_eq!(config.profiles[0].percentage_of_nodes_to_score, 30);
}

#[test]
fn what_cannot_be_meant_is_refused() {
    for (body, expected) in [
        ("podInitialBackoffSeconds: 0\n", "must be greater than 0"),
        (
            "podMaxBackoffSeconds: 1\npodInitialBackoffSeconds: 5\n",
            "greater than or equal to podInitialBackoffSeconds",
        ),
        ("percentageOfNodesToScore: 101\n", "not in valid range [0-100]"),
        ("profiles:\n- schedulerName: a\n- schedulerName: a\n", "Duplicate value"),
        (
            "profiles:\n- plugins:\n    filter:\n      enabled:\n      - name: Nonsense\n",
            "plugin does not exist",
        ),
        ("profiles:\n- plugins:\n    fliter: {}\n", "unknown extension point"),
        ("profiles:\n- plugins:\n    score:\n      enabled:\n      - name: NodePorts\n", "does not extend"),
        ("profiles:\n- plugins:\n    queueSort:\n      disabled:\n      - name: '*'\n", "queue sort"),
        ("profile: []\n", "unknown field"),
        (
            "profiles:\n- pluginConfig:\n  - name: NodeResourcesFit\n    args: {scoringStrategy: {type: Best}}\n",
            "unsupported value",
        ),
        (
            "profiles:\n- pluginConfig:\n  - name: InterPodAffinity\n    args: {hardPodAffinityWeight: 101}\n",
            "not in valid range [0-100]",
        ),
    ] {
        let error = read(body).expect_err(body);
        assert!(error.contains(expected), "{body}: {error}");
    }
    let other = Config::from_yaml("apiVersion: v1\nkind: Pod\n").map(|_| ()).expect_err("another kind");
    assert_eq!(other.to_string(), "no kind \"Pod\" is registered for version \"v1\"");
}
