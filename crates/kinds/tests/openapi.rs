//! The OpenAPI documents hold together: every reference leads somewhere, and clients find what they look for.

use std::collections::BTreeSet;

use kinds::builtin;
use kinds::openapi::{v2, v2_protobuf, v3, v3_path};
use kinds::spec::KindSpec;
use schema::types::{ObjectShape, Ptr, Schema, Shape, Slice, Text};
use serde_json::{Value, json};

fn all() -> Vec<&'static KindSpec> {
    builtin().iter().collect()
}

fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get("$ref") {
                found.insert(reference.clone());
            }
            map.values().for_each(|value| references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

fn check_references(document: &Value, prefix: &str, definitions: &Value) {
    let mut found = BTreeSet::new();
    references(document, &mut found);
    assert!(!found.is_empty());
    for reference in found {
        let name = reference.strip_prefix(prefix).expect(&reference);
        assert!(definitions.get(name).is_some(), "{reference} leads nowhere");
    }
}

#[test]
fn every_reference_is_defined() {
    let specs = all();
    let document = v2(&specs, &|_, _| None);
    check_references(&document, "#/definitions/", &document["definitions"]);
    let versions: BTreeSet<(String, String)> = specs
        .iter()
        .flat_map(|spec| spec.versions.iter().map(|row| (spec.group.to_string(), row.version.to_string())))
        .collect();
    for (group, version) in versions {
        let document = v3(&specs, &group, &version, &|_, _| None).expect("a document");
        check_references(&document, "#/components/schemas/", &document["components"]["schemas"]);
    }
    assert!(v3(&specs, "apps", "v7", &|_, _| None).is_none());
    assert_eq!((v3_path("", "v1"), v3_path("apps", "v1")), ("api/v1".to_owned(), "apis/apps/v1".to_owned()));
}

#[test]
fn every_stored_kind_can_be_found_and_patched() {
    let specs = all();
    let document = v2(&specs, &|_, _| None);
    for spec in &specs {
        for row in spec.versions.iter() {
            let name = &row.schema.object().expect("an object").name;
            let gvk = json!([{"group": &*spec.group, "version": &*row.version, "kind": &*spec.kind}]);
            assert_eq!(document["definitions"][&**name]["x-kubernetes-group-version-kind"], gvk, "{name}");
            if row.verbs.iter().any(|verb| *verb == *"patch") {
                let scope = if spec.namespaced { "/namespaces/{namespace}" } else { "" };
                let root = v3_path(&spec.group, &row.version);
                let path = format!("/{root}{scope}/{}/{{name}}", spec.resource);
                let parameters = document["paths"][&path]["patch"]["parameters"].as_array().expect(&path);
                assert!(parameters.iter().any(|parameter| parameter["name"] == "fieldValidation"), "{path}");
            }
        }
    }
}

#[test]
fn containers_carry_merge_keys_defaults_and_required_fields() {
    let document = v3(&all(), "", "v1", &|_, _| None).expect("core");
    let schemas = &document["components"]["schemas"];
    let ports = &schemas["io.k8s.api.core.v1.Container"]["properties"]["ports"];
    assert_eq!(ports["x-kubernetes-list-map-keys"], json!(["containerPort", "protocol"]));
    assert_eq!(ports["x-kubernetes-patch-merge-key"], "containerPort");
    let port = &schemas["io.k8s.api.core.v1.ContainerPort"];
    assert_eq!(port["properties"]["protocol"]["default"], "TCP");
    assert_eq!(port["required"], json!(["containerPort"]));
    let template = &schemas["io.k8s.api.core.v1.Pod"]["properties"]["spec"];
    assert_eq!(template["allOf"][0]["$ref"], "#/components/schemas/io.k8s.api.core.v1.PodSpec");
}

#[test]
fn custom_resources_bring_their_own_schema() {
    let pods = kinds::find("", "pods").expect("pods");
    let mut row = pods.versions[0].clone();
    let deployments = kinds::find("apps", "deployments").expect("deployments");
    row.subresources = deployments.versions[0].subresources.clone();
    row.schema = Ptr::Shared(Schema::of(Shape::Object(ObjectShape::of(Slice::EMPTY))).into());
    let spec = KindSpec {
        group: Text::Static("stable.example.com"),
        resource: Text::Static("crontabs"),
        singular: Text::Static("crontab"),
        kind: Text::Static("CronTab"),
        list_kind: Text::Static("CronTabList"),
        versions: [row].into_iter().collect(),
        ..pods.clone()
    };
    let raw = json!({"type": "object", "properties": {"spec": {"type": "object", "nullable": true,
        "properties": {"n": {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": true}}}}});
    let source = |_: &KindSpec, _: &kinds::spec::VersionSpec| Some(raw.clone());
    let document = v3(&[&spec], "stable.example.com", "v1", &source).expect("a document");
    let schemas = &document["components"]["schemas"];
    check_references(&document, "#/components/schemas/", schemas);
    let object = &schemas["com.example.stable.v1.CronTab"];
    assert_eq!(object["properties"]["spec"], raw["properties"]["spec"]);
    assert_eq!(object["x-kubernetes-group-version-kind"][0]["kind"], "CronTab");
    assert!(schemas["io.k8s.api.autoscaling.v1.Scale"]["properties"]["spec"].is_object());
    let path = "/apis/stable.example.com/v1/namespaces/{namespace}/crontabs";
    assert_eq!(document["paths"][path]["get"]["operationId"], "listStableExampleComV1NamespacedCronTab");
    let old = v2(&[&spec], &source);
    let spec = &old["definitions"]["com.example.stable.v1.CronTab"]["properties"]["spec"];
    assert_eq!(spec["type"], Value::Null);
    assert_eq!(spec["properties"]["n"], json!({"x-kubernetes-int-or-string": true}));
}

#[test]
fn the_protobuf_form_names_definitions() {
    let document = v2(&all(), &|_, _| None);
    let bytes = v2_protobuf(&document);
    assert!(bytes.starts_with(b"\x0a\x032.0\x12"));
    let definitions = document["definitions"].as_object().expect("definitions");
    for name in definitions.keys().step_by(definitions.len() / 5) {
        let framed = [&[0x0a, u8::try_from(name.len()).expect("short")], name.as_bytes()].concat();
        assert!(bytes.windows(framed.len()).any(|window| window == framed), "{name}");
    }
}

#[cfg(feature = "descriptions")]
#[test]
fn types_and_fields_are_described() {
    let document = v3(&all(), "", "v1", &|_, _| None).expect("core");
    let schemas = &document["components"]["schemas"];
    let container = &schemas["io.k8s.api.core.v1.Container"];
    assert!(container["description"].is_string());
    assert!(container["properties"]["image"]["description"].is_string());
    let spec = &schemas["io.k8s.api.core.v1.Pod"]["properties"]["spec"];
    assert!(spec["description"].is_string() && spec["$ref"].is_null(), "a reference has no siblings");
}
