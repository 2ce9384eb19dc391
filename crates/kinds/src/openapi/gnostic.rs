//! The protobuf form of an OpenAPI v2 document (gnostic's `openapi.v2`), which clients prefer for its size.

use schema::protobuf::wire::{put_bytes, put_message, put_tag, put_varint};
use serde_json::Value;

const VARINT: u8 = 0;

/// Encodes a document that [`super::v2`] built.
pub fn encode(document: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    text(&document["swagger"], 1, &mut out);
    message(2, &mut out, |out| {
        text(&document["info"]["title"], 1, out);
        text(&document["info"]["version"], 2, out);
    });
    message(8, &mut out, |out| {
        for (name, value) in entries(&document["paths"]) {
            named(2, name, out, |out| path_item(value, out));
        }
    });
    message(9, &mut out, |out| {
        for (name, value) in entries(&document["definitions"]) {
            named(1, name, out, |out| schema(value, out));
        }
    });
    for requirement in items(&document["security"]) {
        message(12, &mut out, |out| {
            for (name, scopes) in entries(requirement) {
                named(1, name, out, |out| texts(scopes, 1, out));
            }
        });
    }
    message(13, &mut out, |out| {
        for (name, definition) in entries(&document["securityDefinitions"]) {
            // Of the kinds of definition, the second is an API key.
            named(1, name, out, |out| {
                message(2, out, |out| {
                    text(&definition["type"], 1, out);
                    text(&definition["name"], 2, out);
                    text(&definition["in"], 3, out);
                    text(&definition["description"], 4, out);
                });
            });
        }
    });
    out
}

fn path_item(item: &Value, out: &mut Vec<u8>) {
    for (number, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if item[method].is_object() {
            message(number, out, |out| operation(&item[method], out));
        }
    }
    items(&item["parameters"]).for_each(|value| message(9, out, |out| parameter(value, out)));
}

fn operation(operation: &Value, out: &mut Vec<u8>) {
    texts(&operation["tags"], 1, out);
    text(&operation["description"], 3, out);
    text(&operation["operationId"], 5, out);
    texts(&operation["produces"], 6, out);
    texts(&operation["consumes"], 7, out);
    items(&operation["parameters"]).for_each(|value| message(8, out, |out| parameter(value, out)));
    message(9, out, |out| {
        for (code, response) in entries(&operation["responses"]) {
            named(1, code, out, |out| {
                message(1, out, |out| {
                    text(&response["description"], 1, out);
                    if response["schema"].is_object() {
                        message(2, out, |out| message(1, out, |out| schema(&response["schema"], out)));
                    }
                });
            });
        }
    });
    texts(&operation["schemes"], 10, out);
    extensions(operation, 13, out);
}

/// A `ParametersItem` that holds a parameter.
fn parameter(parameter: &Value, out: &mut Vec<u8>) {
    message(1, out, |out| {
        if parameter["in"] == "body" {
            return message(1, out, |out| {
                text(&parameter["description"], 1, out);
                text(&parameter["name"], 2, out);
                text(&parameter["in"], 3, out);
                flag(&parameter["required"], 4, out);
                message(5, out, |out| schema(&parameter["schema"], out));
            });
        }
        let in_path = parameter["in"] == "path";
        let (location, kind, unique) = if in_path { (4, 5, 19) } else { (3, 6, 20) };
        message(2, out, |out| {
            message(location, out, |out| {
                flag(&parameter["required"], 1, out);
                text(&parameter["in"], 2, out);
                text(&parameter["description"], 3, out);
                text(&parameter["name"], 4, out);
                text(&parameter["type"], kind, out);
                flag(&parameter["uniqueItems"], unique, out);
            });
        });
    });
}

fn schema(value: &Value, out: &mut Vec<u8>) {
    text(&value["$ref"], 1, out);
    text(&value["format"], 2, out);
    text(&value["title"], 3, out);
    text(&value["description"], 4, out);
    if !value["default"].is_null() {
        message(5, out, |out| any(&value["default"], out));
    }
    for (number, name) in [(6, "multipleOf"), (7, "maximum"), (9, "minimum")] {
        if let Some(limit) = value[name].as_f64() {
            put_tag(number, 1, out);
            out.extend_from_slice(&limit.to_le_bytes());
        }
        let exclusive = match name {
            "maximum" => (8, "exclusiveMaximum"),
            "minimum" => (10, "exclusiveMinimum"),
            _ => continue,
        };
        flag(&value[exclusive.1], exclusive.0, out);
    }
    integer(&value["maxLength"], 11, out);
    integer(&value["minLength"], 12, out);
    text(&value["pattern"], 13, out);
    integer(&value["maxItems"], 14, out);
    integer(&value["minItems"], 15, out);
    flag(&value["uniqueItems"], 16, out);
    integer(&value["maxProperties"], 17, out);
    integer(&value["minProperties"], 18, out);
    texts(&value["required"], 19, out);
    items(&value["enum"]).for_each(|value| message(20, out, |out| any(value, out)));
    match &value["additionalProperties"] {
        Value::Object(_) => message(21, out, |out| {
            message(1, out, |out| schema(&value["additionalProperties"], out));
        }),
        Value::Bool(allowed) => message(21, out, |out| {
            put_tag(2, VARINT, out);
            put_varint(u64::from(*allowed), out);
        }),
        _ => {}
    }
    if value["type"].is_string() {
        message(22, out, |out| text(&value["type"], 1, out));
    }
    if value["items"].is_object() {
        message(23, out, |out| message(1, out, |out| schema(&value["items"], out)));
    }
    items(&value["allOf"]).for_each(|value| message(24, out, |out| schema(value, out)));
    if value["properties"].is_object() {
        message(25, out, |out| {
            for (name, value) in entries(&value["properties"]) {
                named(1, name, out, |out| schema(value, out));
            }
        });
    }
    extensions(value, 31, out);
}

/// Extensions travel as YAML text, of which JSON is a part.
fn extensions(value: &Value, number: u32, out: &mut Vec<u8>) {
    for (name, value) in entries(value).filter(|(name, _)| name.starts_with("x-")) {
        named(number, name, out, |out| any(value, out));
    }
}

fn any(value: &Value, out: &mut Vec<u8>) {
    put_bytes(2, value.to_string().as_bytes(), out);
}

fn named(number: u32, name: &str, out: &mut Vec<u8>, value: impl FnOnce(&mut Vec<u8>)) {
    message(number, out, |out| {
        put_bytes(1, name.as_bytes(), out);
        message(2, out, value);
    });
}

fn message(number: u32, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    put_message(number, out, body);
}

fn text(value: &Value, number: u32, out: &mut Vec<u8>) {
    if let Some(text) = value.as_str().filter(|text| !text.is_empty()) {
        put_bytes(number, text.as_bytes(), out);
    }
}

fn texts(value: &Value, number: u32, out: &mut Vec<u8>) {
    items(value).for_each(|item| text(item, number, out));
}

fn flag(value: &Value, number: u32, out: &mut Vec<u8>) {
    if *value == true {
        put_tag(number, VARINT, out);
        put_varint(1, out);
    }
}

fn integer(value: &Value, number: u32, out: &mut Vec<u8>) {
    if let Some(value) = value.as_u64() {
        put_tag(number, VARINT, out);
        put_varint(value, out);
    }
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}
