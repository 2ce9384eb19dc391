//! Decoding, canonical form and declared defaults over the built-in kinds.

use schema::decode::{self, DecodeError, Strictness};
use schema::types::Schema;
use schema::{canonical, defaulting};
use serde_json::{Value, json};

fn schema(name: &str) -> &'static Schema {
    kinds::schema_of(&format!("io.k8s.api.{name}")).expect(name)
}

fn decode(text: &str, name: &str) -> Result<decode::Decoded, DecodeError> {
    let from_json = decode::json(text.as_bytes(), schema(name), Strictness::Warn);
    // The same walk over a parsed value must agree; only duplicates are gone by then.
    if let (Ok(value), Ok(decoded)) = (serde_json::from_str::<Value>(text), &from_json) {
        let again = decode::value(value, schema(name), Strictness::Warn).expect("decodes as a value");
        assert_eq!(again.value, decoded.value);
    }
    from_json
}

fn canonical(text: &str, name: &str) -> String {
    let mut value = decode(text, name).expect(text).value;
    canonical::normalize(&mut value, schema(name));
    String::from_utf8(canonical::to_vec(&value, schema(name))).expect("utf-8")
}

#[test]
fn scalars_take_their_canonical_form() {
    let pod = r#"{"metadata":{"creationTimestamp":"2024-01-01T02:00:00+02:00","name":null},
        "spec":{"priority":5,"containers":[{"resources":{"limits":{"cpu":0.5,"memory":"1024Mi"}}}]}}"#;
    let value = decode(pod, "core.v1.Pod").unwrap().value;
    assert_eq!(
        value,
        json!({
            "metadata": {"creationTimestamp": "2024-01-01T00:00:00Z"},
            "spec": {"priority": 5, "containers": [{"resources": {"limits": {"cpu": "500m", "memory": "1Gi"}}}]},
        })
    );
    let secret = decode(r#"{"data":{"a":"YQ==","b":"Y\nQ==","c":null}}"#, "core.v1.Secret").unwrap().value;
    assert_eq!(secret, json!({"data": {"a": "YQ==", "b": "YQ==", "c": null}}));
    let lease = r#"{"spec":{"renewTime":"2024-01-01T00:00:00.123456+01:00"}}"#;
    let value = decode(lease, "coordination.v1.Lease").unwrap().value;
    assert_eq!(value["spec"]["renewTime"], "2023-12-31T23:00:00.123456Z");
    let map = decode(r#"{"data":{"a":null,"b":"\ud83d\ude00\u00e9\ud800"}}"#, "core.v1.ConfigMap").unwrap();
    assert_eq!(map.value, json!({"data": {"a": "", "b": "\u{1f600}\u{e9}\u{fffd}"}}));
}

#[test]
fn unknown_and_duplicate_fields_are_reported_in_order() {
    let text = r#"{"spec":{"foo":1,"nodeName":"a","containers":[{"name":"c","Image":"x","nodeName":1}],
        "nodeName":"b","foo":2},"metadata":{"labels":{"a":"1","a":"2"}},"kind":"Pod"}"#;
    let decoded = decode(text, "core.v1.Pod").unwrap();
    let problems = [
        r#"unknown field "spec.foo""#,
        r#"unknown field "spec.containers[0].Image""#,
        r#"unknown field "spec.containers[0].nodeName""#,
        r#"duplicate field "spec.nodeName""#,
        r#"duplicate field "metadata.labels.a""#,
    ];
    assert_eq!(decoded.problems, problems);
    assert_eq!(decoded.value["spec"], json!({"nodeName": "b", "containers": [{"name": "c"}]}));
    let strict = decode::json(text.as_bytes(), schema("core.v1.Pod"), Strictness::Strict).unwrap_err();
    assert_eq!(strict.to_string(), format!("strict decoding error: {}", problems.join(", ")));
    let ignored = decode::json(text.as_bytes(), schema("core.v1.Pod"), Strictness::Ignore).unwrap();
    assert!(ignored.problems.is_empty());
}

#[test]
fn wrong_types_get_upstreams_errors() {
    let at = "json: cannot unmarshal";
    for (name, text, error) in [
        (
            "core.v1.Pod",
            r#"{"spec":{"containers":[{"ports":[{"containerPort":"80"}]}]}}"#,
            format!(
                "{at} string into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32"
            ),
        ),
        (
            "core.v1.Pod",
            r#"{"spec":{"containers":{}}}"#,
            format!("{at} object into Go struct field PodSpec.spec.containers of type []v1.Container"),
        ),
        (
            "core.v1.Pod",
            r#"{"metadata":{"labels":{"a":1}}}"#,
            format!("{at} number into Go struct field ObjectMeta.metadata.labels of type string"),
        ),
        (
            "core.v1.Pod",
            r#"{"spec":{"priority":1.5}}"#,
            format!("{at} number 1.5 into Go struct field PodSpec.spec.priority of type int32"),
        ),
        (
            "core.v1.Pod",
            r#"{"spec":{"priority":3000000000}}"#,
            format!("{at} number 3000000000 into Go struct field PodSpec.spec.priority of type int32"),
        ),
        (
            "core.v1.Pod",
            r#"{"spec":"x"}"#,
            format!("{at} string into Go struct field Pod.spec of type v1.PodSpec"),
        ),
        ("core.v1.Pod", r#"[]"#, format!("{at} array into Go value of type v1.Pod")),
        (
            "core.v1.Service",
            r#"{"spec":{"ports":[{"targetPort":true}]}}"#,
            format!("{at} bool into Go struct field ServicePort.spec.ports.targetPort of type int32"),
        ),
        (
            "core.v1.ConfigMap",
            r#"{"data":["a"]}"#,
            format!("{at} array into Go struct field ConfigMap.data of type map[string]string"),
        ),
        ("core.v1.Secret", r#"{"data":{"a":"a*b="}}"#, "illegal base64 data at input byte 1".to_owned()),
        (
            "core.v1.Pod",
            r#"{"spec":{"containers":[{"resources":{"limits":{"cpu":"x"}}}]}}"#,
            meta::quantity::QuantityError::Format.to_string(),
        ),
        (
            "core.v1.Pod",
            r#"{"metadata":{"creationTimestamp":"x"}}"#,
            r#"parsing time "x" as "2006-01-02T15:04:05Z07:00": cannot parse "x" as "2006""#.to_owned(),
        ),
    ] {
        let found = decode::json(text.as_bytes(), schema(name), Strictness::Strict);
        assert_eq!(found.map_err(|error| error.to_string()).unwrap_err(), error);
        let value = serde_json::from_str(text).unwrap();
        let found = decode::value(value, schema(name), Strictness::Strict);
        assert_eq!(found.map_err(|error| error.to_string()).unwrap_err(), error);
    }
}

#[test]
fn broken_json_gets_gos_errors() {
    for (text, error) in [
        ("", "unexpected end of JSON input"),
        ("{", "unexpected end of JSON input"),
        ("{a", "invalid character 'a' looking for beginning of object key string"),
        (r#"{"a" 1}"#, "invalid character '1' after object key"),
        (r#"{"a":1 "b"}"#, "invalid character '\"' after object key:value pair"),
        (r#"{"a":[1 2]}"#, "invalid character '2' after array element"),
        (r#"{"a":tru}"#, "invalid character '}' in literal true (expecting 'e')"),
        (r#"{"a":-}"#, "invalid character '}' in numeric literal"),
        (r#"{"a":1.}"#, "invalid character '}' after decimal point in numeric literal"),
        (r#"{"a":"\x"}"#, "invalid character 'x' in string escape code"),
        ("{\"a\":\"\n\"}", "invalid character '\\n' in string literal"),
        (r#"{"a":"\u12"}"#, "invalid character '\"' in \\u hexadecimal character escape"),
        ("{}x", "invalid character 'x' after top-level value"),
        (r#"{"a":01}"#, "invalid character '1' after object key:value pair"),
        ("{\"a\":}", "invalid character '}' looking for beginning of value"),
    ] {
        let found = decode::json(text.as_bytes(), schema("core.v1.Pod"), Strictness::Warn);
        assert_eq!(found.unwrap_err().to_string(), error, "{text}");
    }
}

#[test]
fn nesting_is_bounded_on_a_small_stack() {
    let deep = |depth: usize| format!("{}{}", r#"{"a":["#.repeat(depth / 2), "]}".repeat(depth / 2));
    let run = move || {
        assert!(decode::any_json(deep(decode::MAX_DEPTH).as_bytes()).is_ok());
        let error = decode::any_json(deep(100_000).as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), "exceeded max depth");
        let yaml = "[".repeat(10_000);
        assert!(decode::any_yaml(yaml.as_bytes()).is_err());
    };
    std::thread::Builder::new().stack_size(2 << 20).spawn(run).unwrap().join().unwrap();
}

#[test]
fn yaml_decodes_as_json_does() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\nspec:\n  containers:\n  - name: c\n    ports:\n    \
                - containerPort: 80\n  volumes:\n  - name: v\n    secret: {defaultMode: 0644}\n  foo: on\n";
    let decoded = decode::yaml(text.as_bytes(), schema("core.v1.Pod"), Strictness::Warn).unwrap();
    assert_eq!(decoded.problems, [r#"unknown field "spec.foo""#]);
    assert_eq!(decoded.value["spec"]["volumes"][0]["secret"]["defaultMode"], 420);
    let doubled = "kind: Pod\nkind: Pod\n";
    let error = decode::yaml(doubled.as_bytes(), schema("core.v1.Pod"), Strictness::Strict).unwrap_err();
    assert_eq!(
        error.to_string(),
        "strict decoding error: yaml: unmarshal errors:\n  line 2: key \"kind\" already set in map"
    );
    assert!(decode::yaml(b"a: [", schema("core.v1.Pod"), Strictness::Strict).is_err());
}

#[test]
fn doubled_fields_of_patches_are_found() {
    let text = br#"{"spec":{"a":1,"a":2},"l":[{"b":1,"b":1}]}"#;
    let decoded = decode::patch_json(text, Strictness::Warn).unwrap();
    assert_eq!(decoded.problems, [r#"duplicate field "spec.a""#, r#"duplicate field "l[0].b""#]);
    assert!(decode::patch_json(text, Strictness::Strict).is_err());
    assert!(decode::patch_json(text, Strictness::Ignore).unwrap().problems.is_empty());
    assert!(decode::patch_yaml(b"a: 1\na: 2\n", Strictness::Strict).is_err());
    assert_eq!(decode::patch_yaml(b"a: 1\na: 2\n", Strictness::Ignore).unwrap().value, json!({"a": 2}));
}

#[test]
fn the_type_is_read_without_the_rest() {
    let (api_version, kind) =
        decode::type_meta(br#"{"spec":{"kind":1},"kind":"Pod","apiVersion":"v1"}"#).unwrap();
    assert_eq!((api_version.as_str(), kind.as_str()), ("v1", "Pod"));
    assert!(decode::type_meta(br#"{"kind":1}"#).is_err());
    assert!(decode::type_meta(b"[]").is_err());
}

#[test]
fn objects_are_written_as_go_writes_them() {
    for (name, input, expected) in [
        (
            "core.v1.ConfigMap",
            r#"{"metadata":{"name":"a","labels":{}},"kind":"ConfigMap","data":{"b":"<&>","a":""}}"#,
            r#"{"kind":"ConfigMap","metadata":{"name":"a"},"data":{"a":"","b":"\u003c\u0026\u003e"}}"#,
        ),
        (
            "core.v1.Pod",
            r#"{"spec":{"containers":[{"name":"c","tty":false}],"hostNetwork":true,"nodeSelector":{}}}"#,
            r#"{"metadata":{},"spec":{"containers":[{"name":"c","resources":{}}],"hostNetwork":true},"status":{}}"#,
        ),
        (
            "core.v1.Pod",
            r#"{"spec":{"containers":[{"name":"c","env":[{"name":"A","valueFrom":{"resourceFieldRef":{"resource":"limits.cpu"}}}],"volumeMounts":[{"name":"a","mountPath":"/a"}]}],"automountServiceAccountToken":false,"securityContext":{}}}"#,
            r#"{"metadata":{},"spec":{"containers":[{"name":"c","env":[{"name":"A","valueFrom":{"resourceFieldRef":{"resource":"limits.cpu","divisor":"0"}}}],"resources":{},"volumeMounts":[{"name":"a","mountPath":"/a"}]}],"automountServiceAccountToken":false,"securityContext":{}},"status":{}}"#,
        ),
        ("rbac.v1.Role", r#"{"rules":[]}"#, r#"{"metadata":{},"rules":null}"#),
        ("rbac.v1.Role", "{}", r#"{"metadata":{},"rules":null}"#),
        (
            "core.v1.Service",
            r#"{"spec":{"ports":[{"port":80}]}}"#,
            r#"{"metadata":{},"spec":{"ports":[{"port":80,"targetPort":0}]},"status":{"loadBalancer":{}}}"#,
        ),
        (
            "apps.v1.Deployment",
            r#"{"spec":{"replicas":0}}"#,
            r#"{"metadata":{},"spec":{"replicas":0,"selector":null,"template":{"metadata":{},"spec":{"containers":null}},"strategy":{}},"status":{}}"#,
        ),
        (
            "core.v1.Event",
            r#"{"firstTimestamp":"2024-01-01T00:00:00Z"}"#,
            r#"{"metadata":{},"involvedObject":{},"source":{},"firstTimestamp":"2024-01-01T00:00:00Z","lastTimestamp":null,"eventTime":null,"reportingComponent":"","reportingInstance":""}"#,
        ),
    ] {
        assert_eq!(canonical(input, name), expected, "{name}");
        assert_eq!(canonical(expected, name), expected, "{name} again");
    }
}

#[test]
fn every_kind_is_stable_in_canonical_form() {
    for spec in kinds::builtin() {
        for version in spec.versions.iter() {
            let mut empty = json!({});
            canonical::normalize(&mut empty, &version.schema);
            let text = canonical::to_vec(&empty, &version.schema);
            let mut decoded =
                decode::json(&text, &version.schema, Strictness::Strict).expect(&spec.kind).value;
            canonical::normalize(&mut decoded, &version.schema);
            assert_eq!(canonical::to_vec(&decoded, &version.schema), text, "{}", spec.kind);
        }
    }
}

#[test]
fn declared_defaults_fill_what_is_unset() {
    let mut pod = json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 1}, {"protocol": "UDP"}]}]}});
    defaulting::apply(&mut pod, schema("core.v1.Pod"));
    let ports = &pod["spec"]["containers"][0]["ports"];
    assert_eq!(*ports, json!([{"containerPort": 1, "protocol": "TCP"}, {"protocol": "UDP"}]));
}
