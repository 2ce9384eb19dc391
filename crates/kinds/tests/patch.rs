//! Patches over built-in kinds.

use schema::patch::{self, PatchError};
use serde_json::{Value, json};

fn strategic(name: &str, document: &Value, patch: Value) -> Result<Value, PatchError> {
    let schema = kinds::schema_of(&format!("io.k8s.api.{name}")).expect(name);
    let mut document = document.clone();
    patch::strategic(&mut document, patch, schema).map(|()| document)
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(|item| item["name"].as_str()).collect()
}

#[test]
fn lists_merge_by_key_and_keep_the_servers_order() {
    let spec =
        json!({"containers": [{"name": "a", "image": "a:1", "args": ["x"]}, {"name": "b", "image": "b:1"}]});
    let patch =
        json!({"containers": [{"name": "c", "image": "c:1"}, {"name": "a", "image": "a:2", "args": ["y"]}]});
    let merged = strategic("core.v1.PodSpec", &spec, patch).unwrap();
    assert_eq!(names(&merged["containers"]), ["c", "a", "b"]);
    assert_eq!(merged["containers"][1], json!({"name": "a", "image": "a:2", "args": ["y"]}));
    let patch = json!({"containers": [{"name": "a", "$patch": "delete"}]});
    let merged = strategic("core.v1.PodSpec", &spec, patch).unwrap();
    assert_eq!(names(&merged["containers"]), ["b"]);
    let patch = json!({"containers": [{"$patch": "replace"}, {"name": "z"}]});
    let merged = strategic("core.v1.PodSpec", &spec, patch).unwrap();
    assert_eq!(merged["containers"], json!([{"name": "z"}]));
}

#[test]
fn element_order_places_items() {
    let spec = json!({"containers": [{"name": "a"}, {"name": "server"}, {"name": "b"}]});
    let patch = json!({
        "$setElementOrder/containers": [{"name": "b"}, {"name": "new"}, {"name": "a"}],
        "containers": [{"name": "new", "image": "n"}],
    });
    let merged = strategic("core.v1.PodSpec", &spec, patch).unwrap();
    assert_eq!(names(&merged["containers"]), ["server", "b", "new", "a"]);
    let patch = json!({"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "q"}]});
    let error = strategic("core.v1.PodSpec", &spec, patch).unwrap_err().to_string();
    assert_eq!(
        error,
        "The order in patch list:\n[map[name:q]]\n doesn't match $setElementOrder list:\n[map[name:a]]\n"
    );
}

#[test]
fn primitive_lists_merge_and_lose_items() {
    let meta = json!({"finalizers": ["a", "b", "c"]});
    let schema = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
    let apply = |patch: Value| {
        let mut document = meta.clone();
        patch::strategic(&mut document, patch, kinds::schema_of(schema).expect(schema)).map(|()| document)
    };
    assert_eq!(apply(json!({"finalizers": ["d", "b"]})).unwrap()["finalizers"], json!(["d", "a", "b", "c"]));
    assert_eq!(
        apply(json!({"$deleteFromPrimitiveList/finalizers": ["b"]})).unwrap()["finalizers"],
        json!(["a", "c"])
    );
    let ordered =
        json!({"$setElementOrder/finalizers": ["c", "a"], "$deleteFromPrimitiveList/finalizers": ["b"]});
    assert_eq!(apply(ordered).unwrap()["finalizers"], json!(["c", "a"]));
    assert_eq!(
        apply(json!({"$deleteFromPrimitiveList": ["b"]})),
        Err(PatchError::BadRequest("invalid patch format of primitive list".to_owned()))
    );
}

#[test]
fn directives_replace_delete_and_retain() {
    let spec =
        json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}, "replicas": 1});
    let patch = json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate"}});
    let merged = strategic("apps.v1.DeploymentSpec", &spec, patch).unwrap();
    assert_eq!(merged["strategy"], json!({"type": "Recreate"}));
    let patch = json!({"strategy": {"$retainKeys": ["x"], "type": "Recreate"}});
    assert_eq!(
        strategic("apps.v1.DeploymentSpec", &spec, patch),
        Err(PatchError::BadRequest("invalid patch format of retainKeys".to_owned()))
    );
    let patch = json!({"strategy": {"$patch": "replace", "type": "Recreate"}, "replicas": null, "selector": {"matchLabels": {"a": "b", "c": null}}});
    let merged = strategic("apps.v1.DeploymentSpec", &spec, patch).unwrap();
    assert_eq!(merged, json!({"strategy": {"type": "Recreate"}, "selector": {"matchLabels": {"a": "b"}}}));
    let merged =
        strategic("apps.v1.DeploymentSpec", &spec, json!({"strategy": {"$patch": "delete"}})).unwrap();
    assert_eq!(merged["strategy"], json!({}));
}

#[test]
fn bad_strategic_patches_get_upstreams_errors() {
    let spec = json!({"containers": [{"name": "a"}], "nodeSelector": {"a": "b"}});
    for (patch, error) in [
        (
            json!({"containers": [{"image": "x"}]}),
            "map: map[image:x] does not contain declared merge key: name",
        ),
        (json!({"nodeSelector": {"$patch": "no"}}), "unknown patch type: no in map: map[$patch:no]"),
        (
            json!({"containers": [{"name": "a", "$patch": "merge"}]}),
            "merging lists cannot yet be specified in the patch",
        ),
    ] {
        assert_eq!(strategic("core.v1.PodSpec", &spec, patch).unwrap_err().to_string(), error);
    }
    let custom = schema::types::Schema::of(schema::types::Shape::Object(schema::types::ObjectShape::of(
        schema::types::Slice::EMPTY,
    )));
    let error = patch::strategic(&mut json!({}), json!({}), &custom).unwrap_err();
    assert_eq!(error.to_string(), "strategic merge patch format is not supported");
}

#[test]
fn json_patches_apply_in_order() {
    let mut document = json!({"a": {"b": [1, 2]}, "x/y": 1});
    let operations = json!([
        {"op": "test", "path": "/missing", "value": null},
        {"op": "add", "path": "/a/b/-", "value": 3},
        {"op": "remove", "path": "/a/b/0"},
        {"op": "replace", "path": "/x~1y", "value": 2},
        {"op": "copy", "from": "/a/b", "path": "/c"},
        {"op": "move", "from": "/c", "path": "/d"},
        {"op": "test", "path": "/d", "value": [2, 3]},
    ]);
    patch::json_patch(&mut document, operations).unwrap();
    assert_eq!(document, json!({"a": {"b": [2, 3]}, "x/y": 2, "d": [2, 3]}));
    for bad in [
        json!([{"op": "remove", "path": "/nope"}]),
        json!([{"op": "test", "path": "/d", "value": 1}]),
        json!([{"op": "replace", "path": "/nope/deep", "value": 1}]),
        json!([{"op": "huh", "path": "/d"}]),
    ] {
        assert!(matches!(patch::json_patch(&mut document.clone(), bad), Err(PatchError::Unprocessable(_))));
    }
    let doubling =
        Value::Array((0..100).map(|n| json!({"op": "copy", "from": "", "path": format!("/{n}")})).collect());
    assert!(matches!(patch::json_patch(&mut document.clone(), doubling), Err(PatchError::CopyTooLarge(_))));
    let many = Value::Array(vec![json!({"op": "test", "path": "", "value": 1}); 10_001]);
    assert_eq!(patch::json_patch(&mut document, many), Err(PatchError::TooLarge(10_001)));
    assert!(matches!(patch::json_patch(&mut document, json!({})), Err(PatchError::BadRequest(_))));
}

#[test]
fn merge_patches_follow_the_rfc() {
    for (document, patch, expected) in [
        (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
        (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
        (json!({"a": {"b": "c"}}), json!({"a": {"d": "e", "b": null}}), json!({"a": {"d": "e"}})),
        (json!({"a": 1}), json!({"a": {"b": null, "c": {"d": null}}}), json!({"a": {"c": {}}})),
        (json!({}), json!({"a": [null, {"b": null}]}), json!({"a": [null, {}]})),
    ] {
        let mut document = document;
        patch::merge_patch(&mut document, patch).unwrap();
        assert_eq!(document, expected);
    }
    assert!(patch::merge_patch(&mut json!({}), json!([])).is_err());
}

fn deployment_spec() -> &'static schema::types::Schema {
    kinds::schema_of("io.k8s.api.apps.v1.DeploymentSpec").expect("a deployment's spec")
}

#[test]
fn two_way_patches_say_the_difference() {
    let before = json!({"replicas": 1, "paused": true, "template": {"metadata": {"finalizers": ["a", "b"]}, "spec": {
        "containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}, {"name": "c", "args": ["x"]}],
    }}, "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}});
    let after = json!({"replicas": 2, "template": {"metadata": {"finalizers": ["c", "b"]}, "spec": {
        "containers": [{"name": "c", "args": ["y"]}, {"name": "a", "image": "1"}, {"name": "d"}],
    }}, "strategy": {"type": "Recreate"}});
    let patch = patch::create_two_way(&before, &after, deployment_spec()).unwrap();
    assert_eq!(
        patch,
        json!({
            "replicas": 2,
            "paused": null,
            "template": {
                "metadata": {
                    "finalizers": ["c"],
                    "$deleteFromPrimitiveList/finalizers": ["a"],
                    "$setElementOrder/finalizers": ["c", "b"],
                },
                "spec": {
                    "$setElementOrder/containers": [{"name": "c"}, {"name": "a"}, {"name": "d"}],
                    "containers": [{"name": "c", "args": ["y"]}, {"name": "d"}, {"name": "b", "$patch": "delete"}],
                },
            },
            "strategy": {"$retainKeys": ["type"], "type": "Recreate", "rollingUpdate": null},
        })
    );
    let mut document = before;
    patch::strategic(&mut document, patch, deployment_spec()).unwrap();
    assert_eq!(document, after);
}

#[test]
fn three_way_patches_keep_what_others_set() {
    let original = json!({"replicas": 1, "minReadySeconds": 1, "template": {"spec": {"containers": [
        {"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "gone", "image": "1"},
    ]}}});
    let modified = json!({"replicas": 3, "template": {"spec": {"containers": [{"name": "a", "image": "2", "env": []}]}}});
    let current = json!({"replicas": 2, "minReadySeconds": 1, "paused": true, "template": {"spec": {"containers": [
        {"name": "a", "image": "1", "imagePullPolicy": "Always", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]},
        {"name": "sidecar", "image": "s"}, {"name": "gone", "image": "1"},
    ]}}});
    let patch = patch::create_three_way(&original, &modified, &current, deployment_spec()).unwrap();
    let mut document = current;
    patch::strategic(&mut document, patch, deployment_spec()).unwrap();
    assert_eq!(
        document,
        json!({"replicas": 3, "paused": true, "template": {"spec": {"containers": [
            {"name": "a", "image": "2", "imagePullPolicy": "Always", "env": [{"name": "Y", "value": "2"}]},
            {"name": "sidecar", "image": "s"},
        ]}}})
    );
    let again = patch::create_three_way(&modified, &modified, &document, deployment_spec()).unwrap();
    let mut same = document.clone();
    patch::strategic(&mut same, again, deployment_spec()).unwrap();
    assert_eq!(same, document);
}

#[test]
fn three_way_merge_patches_do_the_same_without_keys() {
    let (original, modified) = (json!({"a": 1, "b": {"c": 1, "d": 1}}), json!({"b": {"c": 2}, "l": [1]}));
    let current = json!({"a": 1, "b": {"c": 1, "d": 1, "e": 1}, "f": 1});
    let patch = patch::create_three_way_merge(&original, &modified, &current).unwrap();
    assert_eq!(patch, json!({"a": null, "b": {"c": 2, "d": null}, "l": [1]}));
    assert_eq!(
        patch::create_merge(&original, &modified),
        json!({"a": null, "b": {"c": 2, "d": null}, "l": [1]})
    );
    assert_eq!(patch::create_merge(&original, &original), json!({}));
}
