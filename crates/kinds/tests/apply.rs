//! Server-side apply and field ownership over built-in kinds.

use schema::apply::{self, ApplyError, Context, Converter, OneVersion, Set};
use schema::decode::{self, Strictness};
use schema::types::{Ptr, Schema};
use schema::{canonical, defaulting, patch};
use serde_json::{Value, json};

fn deployments() -> &'static Schema {
    &kinds::find("apps", "deployments").expect("deployments").versions[0].schema
}

fn context<'a>(manager: &'a str, reset_fields: &'a Set) -> Context<'a> {
    Context {
        schema: deployments(),
        api_version: "apps/v1",
        kind: "Deployment",
        manager,
        subresource: "",
        now: "2024-01-01T00:00:00Z".parse().expect("a time"),
        reset_fields,
        converter: &OneVersion,
    }
}

fn canonical(value: Value) -> Value {
    let mut value = decode::value(value, deployments(), Strictness::Strict).expect("decodes").value;
    canonical::normalize(&mut value, deployments());
    defaulting::apply(&mut value, deployments());
    value
}

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "namespace": "n"}, "spec": spec})
}

fn containers(containers: Value) -> Value {
    deployment(json!({"template": {"spec": {"containers": containers}}}))
}

/// Applies in turn; each step is manager, force, configuration.
fn run(steps: &[(&str, bool, Value)]) -> Result<Value, ApplyError> {
    let reset = Set::of_fields(&[&["status"]]);
    let mut live: Option<Value> = None;
    for (manager, force, config) in steps {
        let mut new = apply::apply(live.as_ref(), config, *force, &context(manager, &reset))?;
        defaulting::apply(&mut new, deployments());
        live = Some(new);
    }
    Ok(live.unwrap_or_default())
}

/// Who owns what: `manager operation: fields`.
fn owners(object: &Value) -> Vec<String> {
    let entries = object["metadata"]["managedFields"].as_array().into_iter().flatten();
    let text = |entry: &Value, name: &str| entry[name].as_str().unwrap_or_default().to_owned();
    entries
        .map(|entry| {
            let fields = Set::parse(&entry["fieldsV1"]).expect("a set").paths();
            let mut fields: Vec<String> =
                fields.iter().map(|path| path.iter().map(ToString::to_string).collect()).collect();
            fields.sort();
            format!("{} {}: {}", text(entry, "manager"), text(entry, "operation"), fields.join(" "))
        })
        .collect()
}

#[test]
fn a_created_object_belongs_to_its_creator() {
    let reset = Set::of_fields(&[&["status"]]);
    let mut new =
        canonical(containers(json!([{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}])));
    new["metadata"]["labels"] = json!({"a": "b"});
    new["spec"]["selector"] = json!({"matchLabels": {"a": "b"}});
    new["status"]["replicas"] = json!(1);
    apply::update(None, &mut new, &context("", &reset));
    let container = r#".spec.template.spec.containers[name="c"]"#;
    let port = format!(r#"{container}.ports[containerPort=80,protocol="TCP"]"#);
    assert_eq!(
        owners(&new),
        [format!(
            "unknown Update: .metadata.labels .metadata.labels.a .spec.selector {container} {container}.image \
             {container}.name {container}.ports {port} {port}.containerPort {port}.protocol {container}.resources"
        )]
    );
    let entry = &new["metadata"]["managedFields"][0];
    assert_eq!((&entry["fieldsType"], &entry["time"]), (&json!("FieldsV1"), &json!("2024-01-01T00:00:00Z")));
}

#[test]
fn an_update_takes_only_what_it_changes() {
    let reset = Set::of_fields(&[&["status"]]);
    let mut live = canonical(deployment(json!({"replicas": 1, "paused": true, "minReadySeconds": 3})));
    apply::update(None, &mut live, &context("a", &reset));
    let mut same = live.clone();
    let later = Context { now: "2025-01-01T00:00:00Z".parse().unwrap(), ..context("b", &reset) };
    apply::update(Some(&live), &mut same, &later);
    assert_eq!(same, live, "nothing changed, so nobody's books change");
    let mut new = live.clone();
    new["spec"]["replicas"] = json!(2);
    new["spec"].as_object_mut().unwrap().remove("paused");
    new["status"]["replicas"] = json!(7);
    apply::update(Some(&live), &mut new, &later);
    assert_eq!(owners(&new), ["a Update: .spec.minReadySeconds", "b Update: .spec.replicas"]);
    assert_eq!(new["metadata"]["managedFields"][1]["time"], "2025-01-01T00:00:00Z");
}

#[test]
fn what_is_no_longer_applied_goes() {
    let first = containers(json!([
        {"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]},
        {"name": "b", "image": "1"},
    ]));
    let second = containers(json!([{"name": "a", "image": "2", "env": [{"name": "Y", "value": "2"}]}]));
    let object = run(&[("m", false, first), ("m", false, second)]).unwrap();
    assert_eq!(
        object["spec"]["template"]["spec"]["containers"],
        json!([{"name": "a", "image": "2", "env": [{"name": "Y", "value": "2"}], "resources": {}}])
    );
}

#[test]
fn conflicts_name_managers_and_fields() {
    let base = deployment(json!({"replicas": 1, "minReadySeconds": 5}));
    let one = deployment(json!({"replicas": 2}));
    let error = run(&[("a", false, base.clone()), ("b", false, one.clone())]).unwrap_err();
    assert_eq!(error.to_string(), "Apply failed with 1 conflict: conflict with \"a\": .spec.replicas");
    let ApplyError::Conflict(conflicts) = error else { panic!("a conflict") };
    assert_eq!(
        (conflicts[0].message().as_str(), conflicts[0].field.as_str()),
        ("conflict with \"a\"", ".spec.replicas")
    );
    let both = deployment(json!({"replicas": 2, "minReadySeconds": 6}));
    let error = run(&[("a", false, base.clone()), ("b", false, both)]).unwrap_err().to_string();
    assert_eq!(
        error,
        "Apply failed with 2 conflicts: conflicts with \"a\":\n- .spec.minReadySeconds\n- .spec.replicas"
    );
    let forced = run(&[("a", false, base.clone()), ("b", true, one)]).unwrap();
    assert_eq!(owners(&forced), ["a Apply: .spec.minReadySeconds", "b Apply: .spec.replicas"]);
    assert_eq!(forced["spec"]["replicas"], 2);
    let shared =
        run(&[("a", false, base.clone()), ("b", false, base.clone()), ("a", false, deployment(json!({})))]);
    assert_eq!(shared.unwrap()["spec"]["replicas"], 1, "b still owns it");
    let reset = Set::default();
    let mut updated = run(&[("a", false, base.clone())]).unwrap();
    let live = updated.clone();
    updated["spec"]["replicas"] = json!(9);
    apply::update(Some(&live), &mut updated, &Context { subresource: "scale", ..context("hpa", &reset) });
    let error = apply::apply(Some(&updated), &base, false, &context("a", &reset)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"hpa\" with subresource \"scale\" using apps/v1: .spec.replicas"
    );
}

#[test]
fn lists_keep_their_order_and_take_new_items_in() {
    for (live, applied, expected) in [
        (vec!["a", "b", "c"], vec!["c", "a"], vec!["b", "c", "a"]),
        (vec!["a", "b"], vec!["x", "b"], vec!["a", "x", "b"]),
        (vec!["a"], vec!["x", "a", "y"], vec!["x", "a", "y"]),
        (vec!["a", "b", "c"], vec!["b"], vec!["a", "b", "c"]),
    ] {
        let list = |names: &[&str]| {
            let items: Vec<Value> = names.iter().map(|name| json!({"name": name, "image": "i"})).collect();
            containers(items.into())
        };
        let object = run(&[("m", false, list(&live)), ("n", false, list(&applied))]).unwrap();
        let found: Vec<&str> = object["spec"]["template"]["spec"]["containers"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|item| item["name"].as_str())
            .collect();
        assert_eq!(found, expected, "{live:?} then {applied:?}");
    }
}

#[test]
fn what_cannot_be_applied_is_refused() {
    for (config, error) in [
        (
            deployment(json!({"foo": 1})),
            "failed to create typed patch object (n/d; apps/v1, Kind=Deployment): .spec.foo: field not declared in schema",
        ),
        (
            deployment(json!({"replicas": "x"})),
            "failed to create typed patch object (n/d; apps/v1, Kind=Deployment): .spec.replicas: expected numeric (int or float), got string",
        ),
        (
            containers(json!([{"name": "a"}, {"name": "a"}])),
            "failed to create typed patch object (n/d; apps/v1, Kind=Deployment): .spec.template.spec.containers: duplicate entries for key [name=\"a\"]",
        ),
        (json!({"apiVersion": "v1", "kind": "Pod"}), "invalid object type: /v1, Kind=Pod"),
        (
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"managedFields": []}}),
            "metadata.managedFields must be nil",
        ),
    ] {
        assert_eq!(run(&[("m", false, config)]).unwrap_err().to_string(), error);
    }
}

#[test]
fn kubectl_takes_over_what_it_applied_on_the_client() {
    let config = deployment(json!({"replicas": 1, "minReadySeconds": 1}));
    let mut live = canonical(config.clone());
    live["metadata"]["annotations"] =
        json!({"kubectl.kubernetes.io/last-applied-configuration": config.to_string()});
    let reset = Set::default();
    apply::update(None, &mut live, &context("kubectl-client-side-apply", &reset));
    let wanted = deployment(json!({"replicas": 2, "minReadySeconds": 1}));
    let refused = apply::apply(Some(&live), &wanted, false, &context("other", &reset));
    assert!(matches!(refused, Err(ApplyError::Conflict(_))));
    let new = apply::apply(Some(&live), &wanted, false, &context("kubectl", &reset)).unwrap();
    assert_eq!(new["spec"]["replicas"], 2);
    let annotation = &new["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"];
    let refreshed: Value = serde_json::from_str(annotation.as_str().unwrap()).unwrap();
    assert_eq!(refreshed, wanted);
}

#[test]
fn many_updaters_become_ancient_changes() {
    let reset = Set::default();
    let mut live = canonical(deployment(json!({"replicas": 0})));
    apply::update(None, &mut live, &context("creator", &reset));
    for number in 0..15 {
        let mut new = live.clone();
        new["metadata"]["annotations"][format!("a{number:02}")] = json!("x");
        let manager = format!("m{number:02}");
        let now = format!("2024-02-01T00:00:{number:02}Z").parse().unwrap();
        apply::update(Some(&live), &mut new, &Context { now, ..context(&manager, &reset) });
        live = new;
    }
    let owners = owners(&live);
    assert_eq!(owners.len(), 10);
    assert!(owners[0].starts_with("ancient-changes Update: .metadata.annotations .metadata.annotations.a00"));
    assert!(owners[9].starts_with("m14 "));
}

#[test]
fn ownership_can_be_reset_and_starts_with_the_first_apply() {
    let reset = Set::default();
    let mut live = run(&[("m", false, deployment(json!({"replicas": 1})))]).unwrap();
    for emptied in [json!([]), json!([{}])] {
        let mut new = live.clone();
        new["metadata"]["managedFields"] = emptied;
        let mut new = canonical(new);
        apply::update(Some(&live), &mut new, &context("x", &reset));
        assert!(new["metadata"].get("managedFields").is_none());
    }
    live["metadata"].as_object_mut().unwrap().remove("managedFields");
    let new =
        apply::apply(Some(&live), &deployment(json!({"minReadySeconds": 1})), false, &context("m", &reset));
    assert_eq!(
        owners(&new.unwrap()),
        ["m Apply: .spec.minReadySeconds", "before-first-apply Update: .spec.replicas"]
    );
}

#[test]
fn times_and_empty_lists_are_no_change() {
    let role = kinds::schema_of("io.k8s.api.rbac.v1.Role").expect("roles");
    let books = |time: &str| json!([{"manager": "m", "operation": "Update", "time": time, "fieldsV1": {}}]);
    let object = |rules: Value, time: &str| json!({"metadata": {"name": "r", "managedFields": books(time)}, "rules": rules});
    let rule = |verb: &str| json!([{"verbs": [verb]}]);
    for (old, new, expected) in [
        (object(Value::Null, "1"), object(json!([]), "2"), true),
        (object(rule("get"), "1"), object(rule("get"), "2"), true),
        (object(rule("get"), "1"), object(rule("put"), "1"), false),
        (object(json!([{"verbs": ["get"], "resources": []}]), "1"), object(rule("get"), "1"), true),
        (object(rule("get"), "1"), json!({"metadata": {"name": "r"}, "rules": rule("get")}), false),
    ] {
        assert_eq!(apply::changes_nothing(&old, &new, role), expected, "{old} {new}");
    }
    let custom =
        Schema::of(schema::types::Shape::Object(schema::types::ObjectShape::of(schema::types::Slice::EMPTY)));
    let with = |spec: Value| json!({"metadata": {"managedFields": books("1")}, "spec": spec});
    assert!(!apply::changes_nothing(&with(json!({"l": []})), &with(json!({})), &custom));
    let later = json!({"metadata": {"managedFields": books("2")}, "spec": {}});
    assert!(apply::changes_nothing(&with(json!({})), &later, &custom));
}

/// Two versions of one kind, the second calling `replicas` `minReadySeconds`.
struct Renaming;

impl Converter for Renaming {
    fn convert(&self, object: &Value, api_version: &str) -> Option<(Value, Ptr<Schema>)> {
        let (from, to) = match api_version {
            "apps/v2" => ("replicas", "minReadySeconds"),
            "apps/v1" => ("minReadySeconds", "replicas"),
            _ => return None,
        };
        let mut object = object.clone();
        object["apiVersion"] = json!(api_version);
        if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut)
            && let Some(value) = spec.remove(from)
        {
            spec.insert(to.to_owned(), value);
        }
        Some((object, Ptr::Static(deployments())))
    }
}

#[test]
fn owned_fields_are_compared_in_the_version_they_were_owned_in() {
    let reset = Set::default();
    let v1 = Context { converter: &Renaming, ..context("a", &reset) };
    let live = apply::apply(None, &deployment(json!({"replicas": 1})), false, &v1).unwrap();
    let (live, _) = Renaming.convert(&live, "apps/v2").unwrap();
    let v2 = Context { api_version: "apps/v2", manager: "b", ..v1 };
    let mut config = deployment(json!({"minReadySeconds": 2}));
    config["apiVersion"] = json!("apps/v2");
    let error = apply::apply(Some(&live), &config, false, &v2).unwrap_err().to_string();
    assert_eq!(error, "Apply failed with 1 conflict: conflict with \"a\": .spec.replicas");
    let mut dropped = deployment(json!({}));
    dropped["apiVersion"] = json!("apps/v2");
    let new = apply::apply(Some(&live), &dropped, false, &Context { manager: "a", ..v2 }).unwrap();
    assert_eq!(new["spec"].get("minReadySeconds"), None);
    let mut gone = live.clone();
    gone["metadata"]["managedFields"][0]["apiVersion"] = json!("apps/v0");
    let new = apply::apply(Some(&gone), &config, false, &v2).unwrap();
    assert_eq!(owners(&new), ["b Apply: .spec.minReadySeconds"]);
}

#[test]
fn patches_and_applies_agree_on_field_sets() {
    let text = json!({
        "f:metadata": {"f:labels": {".": {}, "f:a.b/c": {}}},
        "f:spec": {"f:list": {"k:{\"name\":\"x\",\"port\":80}": {".": {}, "f:name": {}}, "v:\"s\"": {}, "i:3": {}}},
    });
    assert_eq!(Set::parse(&text).unwrap().print(), text);
    for bad in [json!([]), json!({"x": {}}), json!({"f:a": 1}), json!({"k:{": {}}), json!({"i:x": {}})] {
        assert_eq!(Set::parse(&bad), None, "{bad}");
    }
    let mut live = canonical(containers(json!([{"name": "a", "image": "1"}])));
    let reset = Set::default();
    apply::update(None, &mut live, &context("a", &reset));
    let mut patched = live.clone();
    let change = json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "image": "2"}]}}}});
    patch::strategic(&mut patched, change, deployments()).unwrap();
    let mut patched = canonical(patched);
    apply::update(Some(&live), &mut patched, &context("b", &reset));
    assert_eq!(owners(&patched)[1], r#"b Update: .spec.template.spec.containers[name="a"].image"#);
}
