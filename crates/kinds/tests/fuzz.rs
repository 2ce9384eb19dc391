//! Whatever comes in, nothing panics; and what the engine promises holds for random objects.

use std::sync::LazyLock;

use meta::field::FieldPath;
use proptest::prelude::*;
use schema::apply::{self, Context, OneVersion, Set};
use schema::decode::{self, Strictness};
use schema::types::{Ptr, Schema};
use schema::{canonical, crd, defaulting, patch, validate};
use serde_json::{Map, Value, json};

static CUSTOM: LazyLock<Schema> = LazyLock::new(|| {
    let props = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "a": {"type": "string", "default": "x", "pattern": "^[a-z]*$"},
        "b": {"type": "integer", "minimum": 1, "nullable": true},
        "containers": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            "items": {"type": "object", "properties": {"name": {"type": "string"}, "b": {"type": "integer"}}}},
        "args": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "any": {"x-kubernetes-preserve-unknown-fields": true},
    }}}});
    crd::schema(&props, &Ptr::Static(kinds::META_OBJECT_META))
});

fn pod() -> &'static Schema {
    kinds::schema_of("io.k8s.api.core.v1.Pod").expect("pod")
}

/// Member names that mean something somewhere.
fn name() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "spec",
        "metadata",
        "containers",
        "name",
        "labels",
        "annotations",
        "ports",
        "containerPort",
        "protocol",
        "env",
        "value",
        "args",
        "a",
        "b",
        "any",
        "managedFields",
        "apiVersion",
        "kind",
        "finalizers",
        "resources",
        "limits",
        "cpu",
        "volumes",
        "status",
        "$patch",
        "$retainKeys",
        "$setElementOrder/containers",
        "$deleteFromPrimitiveList/args",
        "f:spec",
        "k:{\"name\":\"a\"}",
        "v:\"a\"",
        ".",
        "creationTimestamp",
    ])
    .prop_map(str::to_owned)
}

/// Words of schemas.
fn keyword() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "type",
        "properties",
        "items",
        "additionalProperties",
        "anyOf",
        "allOf",
        "oneOf",
        "not",
        "default",
        "enum",
        "nullable",
        "required",
        "pattern",
        "minimum",
        "maxLength",
        "format",
        "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-map-type",
        "x-kubernetes-int-or-string",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-embedded-resource",
        "x-kubernetes-validations",
        "metadata",
        "spec",
        "a",
    ])
    .prop_map(str::to_owned)
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<f64>().prop_map(|float| serde_json::Number::from_f64(float).map_or(Value::Null, Value::Number)),
        prop::sample::select(vec![
            "a",
            "b",
            "1",
            "100m",
            "TCP",
            "delete",
            "replace",
            "merge",
            "2024-01-01T00:00:00Z",
            "YQ==",
            "object",
            "array",
            "string",
            "map",
            "set",
            "[",
            "",
        ])
        .prop_map(Value::from),
    ]
}

fn tree(names: impl Strategy<Value = String> + Clone + 'static) -> impl Strategy<Value = Value> {
    scalar().prop_recursive(6, 48, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::btree_map(names.clone(), inner, 0..5)
                .prop_map(|members| Value::Object(members.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

fn names() -> BoxedStrategy<String> {
    name().boxed()
}

/// A resource with a random spec and metadata.
fn resource() -> impl Strategy<Value = Value> {
    (tree(names()), tree(names())).prop_map(|(spec, labels)| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": labels}, "spec": spec})
    })
}

/// A pod with containers by name, each with some fields.
fn containers() -> impl Strategy<Value = Value> {
    let letters = |max: usize| prop::sample::subsequence(vec!["a", "b", "c", "d"], 0..=max).prop_shuffle();
    let container = (prop::option::of("[xy]"), letters(2), letters(2)).prop_map(|(image, env, args)| {
        let mut container = json!({"args": args});
        if let Some(image) = image {
            container["image"] = image.into();
        }
        if !env.is_empty() {
            container["env"] = env.iter().map(|name| json!({"name": name, "value": name})).collect();
        }
        container
    });
    let containers = (letters(3), prop::collection::vec(container, 3)).prop_map(|(names, containers)| {
        let named = names.into_iter().zip(containers).map(|(name, mut container)| {
            container["name"] = name.into();
            container
        });
        named.collect::<Vec<Value>>()
    });
    (containers, letters(3), prop::option::of("[xy]")).prop_map(|(containers, finalizers, node)| {
        let mut pod = json!({"spec": {}, "metadata": {}});
        if !containers.is_empty() {
            pod["spec"]["containers"] = containers.into();
        }
        if !finalizers.is_empty() {
            pod["metadata"]["finalizers"] = finalizers.into();
        }
        if let Some(node) = node {
            pod["spec"]["nodeName"] = node.into();
        }
        pod
    })
}

fn context<'a>(schema: &'a Schema, manager: &'a str, reset: &'a Set) -> Context<'a> {
    Context {
        schema,
        api_version: "v1",
        kind: "Pod",
        manager,
        subresource: "",
        now: "2024-01-01T00:00:00Z".parse().expect("a time"),
        reset_fields: reset,
        converter: &OneVersion,
    }
}

/// The resource as far as it decodes.
fn canonical(value: Value, schema: &Schema) -> Option<Value> {
    let mut value = decode::value(value, schema, Strictness::Ignore).ok()?.value;
    canonical::normalize(&mut value, schema);
    defaulting::apply(&mut value, schema);
    value.is_object().then_some(value)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn decoders_take_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for schema in [pod(), &*CUSTOM] {
            drop(decode::json(&bytes, schema, Strictness::Strict));
            drop(decode::yaml(&bytes, schema, Strictness::Warn));
        }
        drop(decode::type_meta(&bytes));
    }

    #[test]
    fn decoders_take_damaged_json(value in resource(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = value.to_string().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        for schema in [pod(), &*CUSTOM] {
            drop(decode::json(&bytes, schema, Strictness::Warn));
            drop(decode::json(&bytes[..at], schema, Strictness::Warn));
        }
    }

    #[test]
    fn canonical_objects_are_stable(value in resource()) {
        for schema in [pod(), &*CUSTOM] {
            let Some(first) = canonical(value.clone(), schema) else { continue };
            let text = canonical::to_vec(&first, schema);
            let again = decode::json(&text, schema, Strictness::Strict);
            let mut again = again.map_err(|error| TestCaseError::fail(error.to_string()))?.value;
            canonical::normalize(&mut again, schema);
            prop_assert_eq!(canonical::to_vec(&again, schema), text);
        }
    }

    #[test]
    fn patches_never_panic(document in resource(), change in tree(names())) {
        for schema in [pod(), &*CUSTOM] {
            drop(patch::strategic(&mut document.clone(), change.clone(), schema));
        }
        drop(patch::merge_patch(&mut document.clone(), change.clone()));
        drop(patch::json_patch(&mut document.clone(), change));
    }

    #[test]
    fn strategic_patches_can_be_repeated(document in resource(), image in "[a-z]{1,3}") {
        let change = json!({"spec": {"containers": [{"name": "a", "image": image}], "nodeSelector": {"k": null}}});
        if let Some(mut document) = canonical(document, pod()) {
            let once = patch::strategic(&mut document, change.clone(), pod()).map(|()| document.clone());
            if let Ok(once) = once {
                patch::strategic(&mut document, change, pod()).expect("applies again");
                prop_assert_eq!(document, once);
            }
        }
    }

    #[test]
    fn patches_lead_from_one_object_to_the_other(from in containers(), to in containers()) {
        let patch = patch::create_two_way(&from, &to, pod()).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let mut reached = from.clone();
        patch::strategic(&mut reached, patch, pod()).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(reached, to.clone());
        let mut merged = from.clone();
        patch::merge_patch(&mut merged, patch::create_merge(&from, &to)).expect("an object");
        prop_assert_eq!(merged, to);
    }

    #[test]
    fn three_way_patches_leave_what_is_wanted(
        original in containers(), modified in containers(), current in containers(),
    ) {
        let patch = patch::create_three_way(&original, &modified, &current, pod());
        let patch = patch.map_err(|error| TestCaseError::fail(error.to_string()))?;
        let mut reached = current.clone();
        patch::strategic(&mut reached, patch, pod()).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let again = patch::create_three_way(&modified, &modified, &reached, pod());
        let again = again.map_err(|error| TestCaseError::fail(error.to_string()))?;
        let mut same = reached.clone();
        patch::strategic(&mut same, again, pod()).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(&same, &reached);
        let named = |object: &Value| -> Vec<Value> {
            let list = object["spec"]["containers"].as_array();
            list.into_iter().flatten().map(|item| item["name"].clone()).collect()
        };
        let order: Vec<Value> = named(&reached).into_iter().filter(|name| named(&modified).contains(name)).collect();
        prop_assert_eq!(order, named(&modified));
    }

    #[test]
    fn what_is_applied_twice_is_applied_once(first in resource(), second in resource()) {
        let reset = Set::default();
        for schema in [pod(), &*CUSTOM] {
            let live = apply::apply(None, &first, false, &context(schema, "a", &reset)).ok();
            let Ok(once) = apply::apply(live.as_ref(), &second, true, &context(schema, "b", &reset)) else { continue };
            let again = apply::apply(Some(&once), &second, false, &context(schema, "b", &reset));
            let again = again.map_err(|error| TestCaseError::fail(error.to_string()))?;
            prop_assert_eq!(&again, &once);
        }
    }

    #[test]
    fn updates_leave_books_that_read(first in resource(), second in resource()) {
        let reset = Set::of_fields(&[&["status"]]);
        for schema in [pod(), &*CUSTOM] {
            let (Some(mut live), Some(mut new)) = (canonical(first.clone(), schema), canonical(second.clone(), schema))
            else { continue };
            apply::update(None, &mut live, &context(schema, "a", &reset));
            apply::update(Some(&live), &mut new, &context(schema, "b", &reset));
            for entry in new["metadata"]["managedFields"].as_array().into_iter().flatten() {
                let set = Set::parse(&entry["fieldsV1"]);
                prop_assert!(set.is_some_and(|set| set.print() == entry["fieldsV1"]));
            }
        }
    }

    #[test]
    fn sets_obey_algebra(a in tree(names()), b in tree(names())) {
        if let (Some(a), Some(b)) = (Set::parse(&a), Set::parse(&b)) {
            let union = a.clone().union(b.clone());
            prop_assert_eq!(union.intersection(&a).paths(), a.paths());
            prop_assert!(a.clone().difference(&b).intersection(&b).paths().is_empty());
            prop_assert_eq!(union.difference(&b).paths(), a.difference(&b).paths());
        }
    }

    #[test]
    fn any_schema_is_judged_and_used(props in tree(keyword().boxed()), value in resource()) {
        let metadata = Ptr::Static(kinds::META_OBJECT_META);
        drop(crd::check(&props, &metadata, &FieldPath::root("s")));
        let schema = crd::schema(&props, &metadata);
        drop(validate::validate(&value, None, &schema));
        drop(canonical(value, &schema));
    }
}
