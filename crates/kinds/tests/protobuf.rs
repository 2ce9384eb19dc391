//! Every kind, in every version, filled field by field: JSON to protobuf and back is the same object.

use kinds::builtin;
use schema::protobuf::{ProtobufError, decode, encode, envelope};
use schema::types::{AnyKind, Schema, Shape};
use serde_json::{Map, Value, json};

/// A value with every field set, down to `depth` levels of objects.
fn full(schema: &Schema, parent: &Schema, depth: usize) -> Option<Value> {
    Some(match &schema.shape {
        Shape::Bool => json!(true),
        Shape::Int32 => json!(-7),
        Shape::Int64 => json!(i64::MAX),
        Shape::Uint32 => json!(u32::MAX),
        Shape::Uint64 => json!(u64::MAX),
        Shape::Float64 => json!(-1.25),
        Shape::String => schema.enum_values.first().map_or(json!("text"), |value| json!(value.as_str())),
        Shape::Bytes => json!("AAECAw=="),
        Shape::Quantity => json!("500m"),
        Shape::IntOrString => json!("25%"),
        Shape::Time => json!("2030-01-02T03:04:05Z"),
        Shape::MicroTime => json!("1960-01-02T03:04:05.000006Z"),
        Shape::Duration => json!("1m30.5s"),
        Shape::Any(AnyKind::Unknown) => return None,
        Shape::Any(AnyKind::RawExtension | AnyKind::Json) => json!({"a": [1, "b", null]}),
        Shape::Any(AnyKind::SchemaOrBool) => full(parent, parent, depth.checked_sub(1)?)?,
        Shape::Any(AnyKind::SchemaOrArray) => json!([full(parent, parent, depth.checked_sub(1)?)?]),
        Shape::Any(AnyKind::SchemaOrStringArray) => json!(["x", "y"]),
        Shape::Object(object) => {
            // The schemas of CRDs hold a dozen more of themselves.
            let most = if object.name.ends_with(".JSONSchemaProps") { 2 } else { depth };
            let depth = depth.min(most).checked_sub(1)?;
            let fields = object.fields.iter().filter(|field| field.number != 0);
            let fields = fields.filter_map(|field| {
                let value = full(&field.schema, schema, depth)?;
                Some((field.name.to_string(), value))
            });
            Value::Object(fields.collect())
        }
        Shape::Map(map) => json!({"k": full(&map.value, parent, depth)?}),
        Shape::List(list) => {
            let item = full(&list.item, parent, depth)?;
            json!([item, item])
        }
    })
}

fn check_round_trip(schema: &Schema, value: &Value, name: &str) {
    let mut expected = value.clone();
    schema::canonical::normalize(&mut expected, schema);
    let mut bytes = Vec::new();
    encode(&expected, schema, &mut bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
    let decoded = decode(&bytes, schema).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(decoded, expected, "{name}");
    let mut again = Vec::new();
    encode(&decoded, schema, &mut again).expect(name);
    assert_eq!(again, bytes, "{name} is not stable");
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

#[test]
fn every_kind_survives_the_round_trip() {
    for spec in builtin() {
        for version in spec.versions.iter() {
            let name = format!("{}/{} {}", spec.group, version.version, spec.kind);
            let value = full(&version.schema, &version.schema, 12).expect("an object");
            check_round_trip(&version.schema, &value, &name);
            check_round_trip(&version.schema, &Value::Object(Map::new()), &name);
        }
    }
}

#[test]
fn embedded_structs_are_messages_of_their_own() {
    let volume = kinds::schema_of("io.k8s.api.core.v1.Volume").expect("volume");
    let mut bytes = Vec::new();
    encode(&json!({"name": "a", "emptyDir": {}}), volume, &mut bytes).expect("a volume");
    assert_eq!(bytes, b"\x0a\x01a\x12\x04\x12\x02\x0a\x00");
}

#[test]
fn cut_and_scrambled_bytes_are_refused_or_read_but_never_panic() {
    let spec = kinds::find("", "pods").expect("pods");
    let schema = &spec.versions[0].schema;
    let value = full(schema, schema, 4).expect("a pod");
    let mut bytes = Vec::new();
    encode(&value, schema, &mut bytes).expect("a pod");
    for cut in (0..bytes.len()).step_by(1 + bytes.len() / 500) {
        decode(&bytes[..cut], schema).err();
    }
    let mut state = 1_u32;
    for _ in 0..500 {
        let mut scrambled = bytes.clone();
        for _ in 0..4 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let at = state as usize % scrambled.len();
            scrambled[at] = state.to_le_bytes()[2];
        }
        decode(&scrambled, schema).err();
    }
}

#[test]
fn nesting_and_size_are_bounded() {
    let props = kinds::schema_of("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps");
    let props = props.expect("props");
    let number = props.field("not").expect("not").number;
    let mut deep = Vec::new();
    for _ in 0..2_000 {
        let mut outer = Vec::new();
        put_varint(u64::from(number << 3 | 2), &mut outer);
        put_varint(deep.len() as u64, &mut outer);
        outer.append(&mut deep);
        deep = outer;
    }
    assert!(matches!(decode(&deep, props), Err(ProtobufError::TooDeep)));
    let many = [0x1a, 0x00].repeat(3_000_000);
    let container = kinds::schema_of("io.k8s.api.core.v1.Container").expect("container");
    assert!(matches!(decode(&many, container), Err(ProtobufError::TooManyValues)));
}

#[test]
fn envelopes_lists_and_watch_frames_hold_what_was_put_in() {
    let spec = kinds::find("", "configmaps").expect("configmaps");
    let version = &spec.versions[0];
    let object =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}});
    let mut bytes = Vec::new();
    envelope::object_encode(&object, &version.schema, &mut bytes).expect("an object");
    let opened = envelope::envelope_decode(&bytes).expect("an envelope");
    assert_eq!((opened.api_version, opened.kind), ("v1", "ConfigMap"));
    assert_eq!(opened.object(&version.schema).expect("an object"), object);

    let mut list = Vec::new();
    let mut metadata = Vec::new();
    encode(&json!({"resourceVersion": "7"}), kinds::META_LIST_META, &mut metadata).expect("list meta");
    let items = [opened.raw, opened.raw];
    envelope::list_encode("v1", "ConfigMapList", &metadata, items.into_iter(), &mut list);
    let opened_list = envelope::envelope_decode(&list).expect("an envelope");
    let list = opened_list.object(&kinds::list_schema(spec, version)).expect("a list");
    assert_eq!(list["metadata"]["resourceVersion"], "7");
    assert_eq!(list["items"].as_array().map(Vec::len), Some(2));
    assert_eq!(list["items"][1]["data"]["k"], "v");

    let mut frame = Vec::new();
    envelope::watch_frame_encode("ADDED", &bytes, &mut frame);
    assert_eq!(envelope::watch_frame_decode(&frame[..frame.len() - 1]).expect("part of a frame"), None);
    let read = envelope::watch_frame_decode(&frame).expect("a frame").expect("all of it");
    assert_eq!((read.r#type, read.object, read.length), ("ADDED", &bytes[..], frame.len()));
}
