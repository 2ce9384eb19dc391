//! The default priority levels and flow schemas of API Priority and Fairness.

use meta::names::GroupResource;
use serde_json::{Value, json};

use super::BootstrapObject;

pub const GROUP: &str = "flowcontrol.apiserver.k8s.io";
/// Says that the server keeps the spec as it should be.
pub const AUTOUPDATE_ANNOTATION: &str = "apf.kubernetes.io/autoupdate-spec";

/// Name, shares, lendable percent, and queues with hand size; none rejects at once.
type Level = (&'static str, u32, u32, Option<(u32, u32)>);

const LEVELS: [Level; 7] = [
    ("catch-all", 5, 0, None),
    ("system", 30, 33, Some((64, 6))),
    ("node-high", 40, 25, Some((64, 6))),
    ("leader-election", 10, 0, Some((16, 4))),
    ("workload-high", 40, 50, Some((128, 6))),
    ("workload-low", 100, 90, Some((128, 6))),
    ("global-default", 20, 50, Some((128, 6))),
];

/// What a flow schema matches.
enum Match {
    Everything,
    Probes,
    /// Verbs; leases of any namespace.
    Leases(&'static [&'static str]),
    NodeHealth,
}

/// Name, level, precedence, distinguisher, subjects (`user:`, `group:` or `accounts:` a namespace), match.
type Schema = (&'static str, &'static str, u32, &'static str, &'static [&'static str], Match);

const EVERYONE: &[&str] = &["group:system:unauthenticated", "group:system:authenticated"];

const SCHEMAS: [Schema; 11] = [
    ("exempt", "exempt", 1, "", &["group:system:masters"], Match::Everything),
    ("catch-all", "catch-all", 10_000, "ByUser", EVERYONE, Match::Everything),
    ("system-nodes", "system", 500, "ByUser", &["group:system:nodes"], Match::Everything),
    ("system-node-high", "node-high", 400, "ByUser", &["group:system:nodes"], Match::NodeHealth),
    ("probes", "exempt", 2, "", EVERYONE, Match::Probes),
    (
        "system-leader-election",
        "leader-election",
        100,
        "ByUser",
        &["user:system:kube-controller-manager", "user:system:kube-scheduler", "accounts:kube-system"],
        Match::Leases(&["get", "create", "update"]),
    ),
    (
        "kube-controller-manager",
        "workload-high",
        800,
        "ByNamespace",
        &["user:system:kube-controller-manager"],
        Match::Everything,
    ),
    (
        "kube-scheduler",
        "workload-high",
        800,
        "ByNamespace",
        &["user:system:kube-scheduler"],
        Match::Everything,
    ),
    (
        "kube-system-service-accounts",
        "workload-high",
        900,
        "ByNamespace",
        &["accounts:kube-system"],
        Match::Everything,
    ),
    (
        "service-accounts",
        "workload-low",
        9_000,
        "ByUser",
        &["group:system:serviceaccounts"],
        Match::Everything,
    ),
    ("global-default", "global-default", 9_900, "ByUser", EVERYONE, Match::Everything),
];

/// Every default priority level and flow schema.
pub fn objects() -> Vec<BootstrapObject> {
    let exempt = json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}});
    let mut objects =
        vec![object("prioritylevelconfigurations", "PriorityLevelConfiguration", "exempt", exempt)];
    for (name, shares, lendable, queues) in LEVELS {
        let response = match queues {
            None => json!({"type": "Reject"}),
            Some((queues, hand)) => json!({
                "type": "Queue",
                "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": 50},
            }),
        };
        let limited = json!({"nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse": response});
        let spec = json!({"type": "Limited", "limited": limited});
        objects.push(object("prioritylevelconfigurations", "PriorityLevelConfiguration", name, spec));
    }
    for schema in &SCHEMAS {
        objects.push(object("flowschemas", "FlowSchema", schema.0, schema_spec(schema)));
    }
    objects
}

fn schema_spec((_, level, precedence, distinguisher, subjects, matching): &Schema) -> Value {
    let subjects: Vec<Value> = subjects.iter().map(|text| subject(text)).collect();
    let mut rules = match matching {
        Match::Everything => json!({
            "resourceRules": [resource_rule(&["*"], "*", &["*"], true)],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
        }),
        Match::Probes => json!({
            "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}],
        }),
        Match::Leases(verbs) => {
            json!({"resourceRules": [resource_rule(verbs, "coordination.k8s.io", &["leases"], false)]})
        }
        Match::NodeHealth => json!({"resourceRules": [
            resource_rule(&["*"], "", &["nodes", "nodes/status"], true),
            resource_rule(&["*"], "coordination.k8s.io", &["leases"], false),
        ]}),
    };
    rules["subjects"] = subjects.into();
    let mut spec = json!({
        "priorityLevelConfiguration": {"name": level},
        "matchingPrecedence": precedence,
        "rules": [rules],
    });
    if !distinguisher.is_empty() {
        spec["distinguisherMethod"] = json!({"type": distinguisher});
    }
    spec
}

fn resource_rule(verbs: &[&str], group: &str, resources: &[&str], cluster_scope: bool) -> Value {
    let mut rule = json!({"verbs": verbs, "apiGroups": [group], "resources": resources, "namespaces": ["*"]});
    if cluster_scope {
        rule["clusterScope"] = true.into();
    }
    rule
}

fn subject(text: &str) -> Value {
    match text.split_once(':') {
        Some(("user", name)) => json!({"kind": "User", "user": {"name": name}}),
        Some(("accounts", namespace)) => {
            json!({"kind": "ServiceAccount", "serviceAccount": {"name": "*", "namespace": namespace}})
        }
        Some((_, name)) => json!({"kind": "Group", "group": {"name": name}}),
        None => Value::Null,
    }
}

fn object(resource: &'static str, kind: &str, name: &str, spec: Value) -> BootstrapObject {
    let object = json!({
        "apiVersion": format!("{GROUP}/v1"),
        "kind": kind,
        "metadata": {"name": name, "annotations": {AUTOUPDATE_ANNOTATION: "true"}},
        "spec": spec,
    });
    (GroupResource::new(GROUP, resource), object)
}
