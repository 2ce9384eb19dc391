//! Custom resources: their schemas, and what those do to objects.

use meta::field::{FieldError, FieldPath};
use schema::apply::{self, OneVersion, Set};
use schema::decode::{self, Strictness};
use schema::types::{Ptr, Schema};
use schema::{canonical, crd, defaulting, validate};
use serde_json::{Value, json};

fn metadata() -> Ptr<Schema> {
    Ptr::Static(kinds::META_OBJECT_META)
}

fn root(spec: Value) -> Value {
    json!({"type": "object", "properties": {"spec": spec}})
}

fn schema(spec: Value) -> Schema {
    crd::schema(&root(spec), &metadata())
}

fn errors(errors: &[FieldError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

fn check(props: Value) -> Vec<String> {
    errors(&crd::check(&props, &metadata(), &FieldPath::root("s")))
}

fn validated(spec: Value, value: Value) -> Vec<String> {
    errors(&validate::validate(&json!({"spec": value}), None, &schema(spec)))
}

fn object(properties: Value) -> Value {
    json!({"type": "object", "properties": properties})
}

#[test]
fn unknown_fields_are_pruned_and_reported() {
    let schema = schema(object(json!({
        "a": {"type": "string"},
        "keep": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"b": object(json!({}))}},
        "map": {"type": "object", "additionalProperties": object(json!({"x": {"type": "integer"}}))},
        "list": {"type": "array", "items": object(json!({"x": {"type": "integer"}}))},
        "pod": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}},
        "any": {"x-kubernetes-preserve-unknown-fields": true},
    })));
    let text = r#"{"apiVersion":"e.com/v1","kind":"E","metadata":{"name":"n","bogus":1},"extra":1,"spec":{
        "a":"x","a":"y","z":1,"keep":{"c":1,"b":{"d":1}},"map":{"k":{"x":1,"y":2}},"list":[{"x":1},{"y":2}],
        "pod":{"apiVersion":"v1","kind":"Pod","metadata":{"labels":{"l":"1"}},"spec":{"q":1},"status":{}},
        "any":{"f":{"g":1,"g":2}}}}"#;
    let decoded = decode::json(text.as_bytes(), &schema, Strictness::Warn).unwrap();
    assert_eq!(
        decoded.problems,
        [
            r#"unknown field "metadata.bogus""#,
            r#"duplicate field "spec.a""#,
            r#"duplicate field "spec.any.f.g""#,
            r#"unknown field "extra""#,
            r#"unknown field "spec.keep.b.d""#,
            r#"unknown field "spec.list[1].y""#,
            r#"unknown field "spec.map.k.y""#,
            r#"unknown field "spec.pod.spec.q""#,
            r#"unknown field "spec.pod.status""#,
            r#"unknown field "spec.z""#,
        ]
    );
    assert_eq!(
        decoded.value["spec"],
        json!({
            "a": "y", "keep": {"c": 1, "b": {}}, "map": {"k": {"x": 1}}, "list": [{"x": 1}, {}],
            "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {"l": "1"}}, "spec": {}},
            "any": {"f": {"g": 2}},
        })
    );
    let mut value = decoded.value;
    canonical::normalize(&mut value, &schema);
    let written = String::from_utf8(canonical::to_vec(&value, &schema)).unwrap();
    assert!(
        written.starts_with(r#"{"apiVersion":"e.com/v1","kind":"E","metadata":{"name":"n"},"spec":{"a":"y""#)
    );
}

#[test]
fn defaults_fill_absent_fields_and_forbidden_nulls() {
    let schema = schema(object(json!({
        "a": {"type": "string", "default": "x"},
        "b": {"type": "string", "default": "x", "nullable": true},
        "c": {"type": "string"},
        "d": {"type": "object", "default": {}, "properties": {"e": {"type": "integer", "default": 3}}},
        "list": {"type": "array", "items": object(json!({"p": {"type": "string", "default": "TCP"}}))},
        "map": {"type": "object", "additionalProperties": object(json!({"p": {"type": "integer", "default": 1}}))},
    })));
    for (spec, expected) in [
        (json!({}), json!({"a": "x", "b": "x", "d": {"e": 3}})),
        (json!({"a": null, "b": null, "c": null}), json!({"a": "x", "b": null, "d": {"e": 3}})),
        (
            json!({"a": "", "b": "y", "d": {"e": 4}, "list": [{}], "map": {"k": {}, "n": null}}),
            json!({"a": "", "b": "y", "d": {"e": 4}, "list": [{"p": "TCP"}], "map": {"k": {"p": 1}}}),
        ),
    ] {
        let mut value = json!({"spec": spec});
        defaulting::apply(&mut value, &schema);
        assert_eq!(value, json!({"spec": expected}));
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn values_are_validated_with_upstreams_messages() {
    for (spec, value, expected) in [
        (
            json!({"type": "integer"}),
            json!("x"),
            &["spec: Invalid value: \"string\": spec in body must be of type integer: \"string\""][..],
        ),
        (
            json!({"type": "integer"}),
            json!(1.5),
            &["spec: Invalid value: \"number\": spec in body must be of type integer: \"number\""],
        ),
        (json!({"type": "number"}), json!(1), &[]),
        (
            json!({"type": "string"}),
            json!(null),
            &["spec: Invalid value: \"null\": spec in body must be of type string: \"null\""],
        ),
        (json!({"type": "string", "nullable": true}), json!(null), &[]),
        (
            json!({"x-kubernetes-int-or-string": true}),
            json!(true),
            &["spec: Invalid value: \"boolean\": spec in body must be of type integer,string: \"boolean\""],
        ),
        (
            json!({"type": "string", "enum": ["a", "b"]}),
            json!("c"),
            &["spec: Unsupported value: \"c\": supported values: \"a\", \"b\""],
        ),
        (
            json!({"type": "string", "maxLength": 2}),
            json!("abc"),
            &["spec: Too long: may not be more than 2 bytes"],
        ),
        (
            json!({"type": "string", "minLength": 2}),
            json!("\u{e9}"),
            &["spec: Invalid value: \"\u{e9}\": spec in body should be at least 2 chars long"],
        ),
        (
            json!({"type": "string", "pattern": "^a+$"}),
            json!("b"),
            &["spec: Invalid value: \"b\": spec in body should match '^a+$'"],
        ),
        (
            json!({"type": "string", "format": "date-time"}),
            json!("b"),
            &["spec: Invalid value: \"b\": spec in body must be of type date-time: \"b\""],
        ),
        (json!({"type": "string", "format": "what"}), json!("b"), &[]),
        (
            json!({"type": "integer", "minimum": 1, "maximum": 5}),
            json!(0),
            &["spec: Invalid value: 0: spec in body should be greater than or equal to 1"],
        ),
        (
            json!({"type": "integer", "maximum": 5, "exclusiveMaximum": true}),
            json!(5),
            &["spec: Invalid value: 5: spec in body should be less than 5"],
        ),
        (
            json!({"type": "number", "multipleOf": 0.5}),
            json!(0.75),
            &["spec: Invalid value: 0.75: spec in body should be a multiple of 0.5"],
        ),
        (
            json!({"type": "array", "items": {"type": "string"}, "maxItems": 1}),
            json!(["a", 1]),
            &[
                "spec[1]: Invalid value: \"integer\": spec[1] in body must be of type string: \"integer\"",
                "spec: Too many: 2: must have at most 1 item",
            ],
        ),
        (
            json!({"type": "array", "minItems": 1, "items": {"type": "string"}}),
            json!([]),
            &["spec: Invalid value: 0: spec in body should have at least 1 items"],
        ),
        (
            json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}}}),
            json!({}),
            &["spec.a: Required value"],
        ),
        (
            json!({"type": "object", "minProperties": 1}),
            json!({}),
            &["spec: Invalid value: 1: spec in body should have at least 1 properties"],
        ),
        (
            json!({"type": "object", "additionalProperties": {"type": "string"}}),
            json!({"a": 1}),
            &["spec.a: Invalid value: \"integer\": spec.a in body must be of type string: \"integer\""],
        ),
        (
            json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}),
            json!(["a", "a", "a"]),
            &["spec[1]: Duplicate value: \"a\""],
        ),
        (
            json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "properties": {"k": {"type": "string"}}}}),
            json!([{"k": "a"}, {"k": "a"}]),
            &["spec[1]: Duplicate value: {\"k\":\"a\"}"],
        ),
    ] {
        assert_eq!(validated(spec.clone(), value), expected, "{spec}");
    }
}

#[test]
fn alternatives_are_counted() {
    let props = json!({"a": {"type": "integer"}, "b": {"type": "integer"}});
    let with = |name: &str, nested: Value| {
        let mut spec = object(props.clone());
        spec[name] = nested;
        spec
    };
    let either = json!([{"required": ["a"]}, {"required": ["b"]}]);
    for (spec, value, expected) in [
        (with("oneOf", either.clone()), json!({"a": 1}), &[][..]),
        (
            with("oneOf", either.clone()),
            json!({"a": 1, "b": 1}),
            &[
                "<nil>: Invalid value: \"\": \"spec\" must validate one and only one schema (oneOf). Found 2 valid alternatives",
            ],
        ),
        (
            with("oneOf", either.clone()),
            json!({}),
            &[
                "<nil>: Invalid value: \"\": \"spec\" must validate one and only one schema (oneOf). Found none valid",
                "spec.a: Required value",
            ],
        ),
        (
            with("anyOf", either.clone()),
            json!({}),
            &[
                "<nil>: Invalid value: \"\": \"spec\" must validate at least one schema (anyOf)",
                "spec.a: Required value",
            ],
        ),
        (
            with("allOf", either),
            json!({"a": 1}),
            &[
                "spec.b: Required value",
                "<nil>: Invalid value: \"\": \"spec\" must validate all the schemas (allOf)",
            ],
        ),
        (
            with("not", json!({"required": ["a"]})),
            json!({"a": 1}),
            &["<nil>: Invalid value: \"\": \"spec\" must not validate the schema (not)"],
        ),
        (
            with("allOf", json!([{"properties": {"a": {"minimum": 3}}}])),
            json!({"a": 1}),
            &[
                "spec.a: Invalid value: 1: spec.a in body should be greater than or equal to 3",
                "<nil>: Invalid value: \"\": \"spec\" must validate all the schemas (allOf). None validated",
            ],
        ),
    ] {
        assert_eq!(validated(spec, value), expected);
    }
}

#[test]
fn unchanged_values_are_not_judged_again() {
    let schema = schema(object(json!({
        "a": {"type": "integer", "minimum": 5},
        "l": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
              "items": object(json!({"k": {"type": "string"}, "v": {"type": "integer", "minimum": 5}}))},
    })));
    let old = json!({"spec": {"a": 1, "l": [{"k": "x", "v": 1}]}});
    let new = json!({"spec": {"a": 1, "l": [{"k": "y", "v": 2}, {"k": "x", "v": 1}]}});
    assert_eq!(
        errors(&validate::validate(&new, Some(&old), &schema)),
        ["spec.l[0].v: Invalid value: 2: spec.l[0].v in body should be greater than or equal to 5"]
    );
    assert_eq!(validate::validate(&new, None, &schema).len(), 3);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn schemas_that_are_not_structural_are_refused() {
    for (props, expected) in [
        (
            root(json!({})),
            &["s.properties[spec].type: Required value: must not be empty for specified object fields"][..],
        ),
        (json!({"properties": {}}), &["s.type: Required value: must not be empty at the root"]),
        (json!({"type": "string"}), &["s.type: Invalid value: \"string\": must be object at the root"]),
        (
            json!({"type": "object", "nullable": true}),
            &["s.nullable: Forbidden: nullable cannot be true at the root"],
        ),
        (root(json!({"type": "array"})), &["s.properties[spec].items: Required value: must be specified"]),
        (
            root(json!({"type": "what"})),
            &[
                "s.properties[spec].type: Unsupported value: \"what\": supported values: \"array\", \"boolean\", \"integer\", \"number\", \"object\", \"string\"",
            ],
        ),
        (
            json!({"type": "object", "anyOf": [{"type": "object", "properties": {"a": {"minimum": 1}}}]}),
            &[
                "s.anyOf[0].type: Forbidden: must be empty to be structural",
                "s.properties[a]: Required value: because it is defined in s.anyOf[0].properties[a]",
            ],
        ),
        (
            root(
                json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}),
            ),
            &[],
        ),
        (
            root(json!({"type": "string", "pattern": "["})),
            &[
                "s.properties[spec].pattern: Invalid value: \"[\": must be a valid regular expression, but isn't: error parsing regexp: unclosed character class",
            ],
        ),
        (
            json!({"type": "object", "properties": {"metadata": object(json!({"labels": {"type": "object"}}))}}),
            &[
                "s.properties[metadata]: Forbidden: must not specify anything other than name and generateName, but metadata is implicitly specified",
            ],
        ),
        (
            json!({"type": "object", "properties": {"metadata": object(json!({"name": {"type": "string", "maxLength": 9}}))}}),
            &[],
        ),
        (
            root(
                json!({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "string"}}),
            ),
            &[
                "s.properties[spec].additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive",
            ],
        ),
        (
            root(json!({"type": "object", "x-kubernetes-preserve-unknown-fields": false})),
            &[
                "s.properties[spec].x-kubernetes-preserve-unknown-fields: Invalid value: false: must be true or undefined",
            ],
        ),
        (
            root(json!({"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "set"})),
            &[
                "s.properties[spec].items.x-kubernetes-map-type: Invalid value: null: must be atomic as item of a list with x-kubernetes-list-type=set",
            ],
        ),
        (
            root(
                json!({"type": "array", "items": object(json!({"k": {"type": "string"}})), "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"]}),
            ),
            &[
                "s.properties[spec].items.properties[k].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
            ],
        ),
        (
            root(json!({"type": "integer", "default": "x"})),
            &[
                "s.properties[spec].default: Invalid value: \"string\":  in body must be of type integer: \"string\"",
            ],
        ),
        (
            root(json!({"type": "object", "default": {"a": 1}})),
            &["s.properties[spec].default: Invalid value: {\"a\":1}: must not have unknown fields"],
        ),
        (
            root(
                json!({"type": "object", "x-kubernetes-validations": [{"rule": " "}, {"rule": "a", "reason": "No"}, {"rule": "a", "fieldPath": ".x"}]}),
            ),
            &[
                "s.properties[spec].x-kubernetes-validations[0].rule: Required value: rule is not specified",
                "s.properties[spec].x-kubernetes-validations[1].reason: Unsupported value: \"No\": supported values: \"FieldValueDuplicate\", \"FieldValueForbidden\", \"FieldValueInvalid\", \"FieldValueRequired\"",
                "s.properties[spec].x-kubernetes-validations[2].fieldPath: Invalid value: \".x\": must be a valid path",
            ],
        ),
    ] {
        assert_eq!(check(props.clone()), expected, "{props}");
    }
}

#[test]
fn a_status_subresource_limits_the_root() {
    let path = FieldPath::root("s");
    let fine = json!({"type": "object", "properties": {}, "required": ["spec"], "nullable": false});
    assert_eq!(crd::check_with_status(&fine, &path), None);
    let error = crd::check_with_status(&json!({"type": "object", "anyOf": [{"required": ["a"]}]}), &path);
    assert!(
        error.is_some_and(|error| error.detail.starts_with("only [Description Type Format Title Maximum"))
    );
    let error = crd::check_with_status(&json!({"type": "array"}), &path).map(|error| error.path);
    assert_eq!(error, Some(path.child("type")));
}

#[test]
fn custom_resources_are_applied_by_their_list_types() {
    let schema = schema(object(json!({
        "n": {"type": "integer"},
        "atomic": {"type": "array", "items": {"type": "string"}},
        "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": object(json!({"k": {"type": "string"}, "v": {"type": "string"}}))},
        "any": {"x-kubernetes-preserve-unknown-fields": true},
    })));
    let reset = Set::default();
    let context = |manager| apply::Context {
        schema: &schema,
        api_version: "e.com/v1",
        kind: "E",
        manager,
        subresource: "",
        now: "2024-01-01T00:00:00Z".parse().unwrap(),
        reset_fields: &reset,
        converter: &OneVersion,
    };
    let config =
        |spec: Value| json!({"apiVersion": "e.com/v1", "kind": "E", "metadata": {"name": "e"}, "spec": spec});
    let first =
        config(json!({"n": 1, "atomic": ["a"], "map": [{"k": "a", "v": "1"}], "any": {"x": {"y": 1}}}));
    let live = apply::apply(None, &first, false, &context("a")).unwrap();
    let second = config(json!({"map": [{"k": "b", "v": "1"}], "any": {"x": {"z": 2}}}));
    let live = apply::apply(Some(&live), &second, false, &context("b")).unwrap();
    assert_eq!(
        live["spec"],
        json!({"n": 1, "atomic": ["a"], "map": [{"k": "a", "v": "1"}, {"k": "b", "v": "1"}], "any": {"x": {"y": 1, "z": 2}}})
    );
    let third = config(json!({"atomic": ["a", "b"], "map": [{"k": "a", "v": "2"}], "any": {"x": {"y": 3}}}));
    let error = apply::apply(Some(&live), &third, false, &context("c")).unwrap_err().to_string();
    assert_eq!(
        error,
        "Apply failed with 3 conflicts: conflicts with \"a\":\n- .spec.atomic\n- .spec.any.x.y\n- .spec.map[k=\"a\"].v"
    );
    let dropped = apply::apply(Some(&live), &config(json!({"n": 1})), false, &context("a")).unwrap();
    assert_eq!(dropped["spec"], json!({"n": 1, "map": [{"k": "b", "v": "1"}], "any": {"x": {"z": 2}}}));
}

#[test]
fn the_deepest_objects_fit_a_small_stack() {
    let schema = schema(json!({"x-kubernetes-preserve-unknown-fields": true}));
    let deep = |leaf: &str, depth: usize| {
        let text = format!(
            r#"{{"apiVersion":"e.com/v1","kind":"E","spec":{}{leaf}{}}}"#,
            r#"{"a":"#.repeat(depth),
            "}".repeat(depth)
        );
        decode::json(text.as_bytes(), &schema, Strictness::Strict).map(|decoded| decoded.value)
    };
    let run = || {
        let (first, second) =
            (deep("1", decode::MAX_DEPTH - 1).unwrap(), deep("2", decode::MAX_DEPTH - 1).unwrap());
        assert!(deep("1", decode::MAX_DEPTH).is_err());
        let reset = Set::default();
        let context = |manager| apply::Context {
            schema: &schema,
            api_version: "e.com/v1",
            kind: "E",
            manager,
            subresource: "",
            now: "2024-01-01T00:00:00Z".parse().unwrap(),
            reset_fields: &reset,
            converter: &OneVersion,
        };
        let live = apply::apply(None, &first, false, &context("a")).unwrap();
        assert!(apply::apply(Some(&live), &second, false, &context("b")).is_err());
        let dropped = json!({"apiVersion": "e.com/v1", "kind": "E", "spec": {}});
        let mut new = apply::apply(Some(&live), &dropped, false, &context("a")).unwrap();
        apply::update(Some(&live), &mut new, &context("c"));
        defaulting::apply(&mut new, &schema);
        canonical::normalize(&mut new, &schema);
        assert_eq!(validate::validate(&live, Some(&new), &schema), []);
        assert!(!canonical::to_vec(&live, &schema).is_empty());
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(2 << 20);
        thread.spawn_scoped(scope, run).unwrap().join().unwrap();
    });
}

#[test]
fn the_deepest_schemas_fit_a_small_stack() {
    let run = || {
        for (open, close) in [
            (r#"{"type":"object","not":"#, "}"),
            (r#"{"type":"array","items":"#, "}"),
            (r#"{"type":"object","properties":{"a":"#, "}}"),
            (r#"{"type":"object","allOf":["#, "]}"),
        ] {
            let nested = |depth: usize| {
                let text = format!("{}{{}}{}", open.repeat(depth), close.repeat(depth));
                decode::any_json(text.as_bytes()).unwrap()
            };
            let refusal = "s: Forbidden: must not be nested deeper than 200 levels".to_owned();
            assert_eq!(check(nested(decode::MAX_DEPTH / close.len() - 1)), std::slice::from_ref(&refusal));
            let props = nested(crd::MAX_DEPTH / close.len() - 1);
            assert!(!check(props.clone()).contains(&refusal));
            let schema = crd::schema(&props, &metadata());
            drop(validate::validate(&json!({"a": [[]]}), None, &schema));
        }
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(2 << 20);
        thread.spawn_scoped(scope, run).unwrap().join().unwrap();
    });
}
