//! The words the generated tables are written in.

pub(crate) use schema::types::{ListKind, ListShape, MapShape, ObjectShape, Ptr, Schema, Shape, Slice, Text};

use schema::types::{AnyKind, Field, Omit, PatchStrategy};

use crate::spec::Column;

/// Field flags: `omitempty`, `omitzero`, a Go pointer, required; patch strategies merge, retainKeys, replace.
pub(crate) const O: u16 = 1;
pub(crate) const Z: u16 = 1 << 1;
pub(crate) const P: u16 = 1 << 2;
pub(crate) const R: u16 = 1 << 3;
pub(crate) const M: u16 = 1 << 4;
pub(crate) const K: u16 = 1 << 5;
pub(crate) const X: u16 = 1 << 6;

pub(crate) static STRING: Schema = Schema::of(Shape::String);
pub(crate) static BOOL: Schema = Schema::of(Shape::Bool);
pub(crate) static INT32: Schema = Schema::of(Shape::Int32);
pub(crate) static INT64: Schema = Schema::of(Shape::Int64);
pub(crate) static FLOAT64: Schema = Schema::of(Shape::Float64);
pub(crate) static BYTES: Schema = Schema::of(Shape::Bytes);
pub(crate) static QUANTITY: Schema = Schema::of(Shape::Quantity);
pub(crate) static INT_OR_STRING: Schema = Schema::of(Shape::IntOrString);
pub(crate) static TIME: Schema = Schema::of(Shape::Time);
pub(crate) static MICRO_TIME: Schema = Schema::of(Shape::MicroTime);
pub(crate) static RAW_EXTENSION: Schema = Schema::of(Shape::Any(AnyKind::RawExtension));
pub(crate) static JSON: Schema = Schema::of(Shape::Any(AnyKind::Json));
pub(crate) static ANY: Schema = Schema::of(Shape::Any(AnyKind::Unknown));
pub(crate) static SCHEMA_OR_BOOL: Schema = Schema::of(Shape::Any(AnyKind::SchemaOrBool));
pub(crate) static SCHEMA_OR_ARRAY: Schema = Schema::of(Shape::Any(AnyKind::SchemaOrArray));
pub(crate) static SCHEMA_OR_STRING_ARRAY: Schema = Schema::of(Shape::Any(AnyKind::SchemaOrStringArray));

pub(crate) const fn t(text: &'static str) -> Text {
    Text::Static(text)
}

/// A plain field.
pub(crate) const fn f(name: &'static str, schema: &'static Schema, number: u32, flags: u16) -> Field {
    g(name, schema, number, flags, "", "", &[])
}

/// A field with a default, a merge key or messages around it.
pub(crate) const fn g(
    name: &'static str,
    schema: &'static Schema,
    number: u32,
    flags: u16,
    default: &'static str,
    merge_key: &'static str,
    via: &'static [u32],
) -> Field {
    Field {
        name: t(name),
        schema: Ptr::Static(schema),
        omit: if flags & O != 0 {
            Omit::Empty
        } else if flags & Z != 0 {
            Omit::Zero
        } else {
            Omit::Never
        },
        pointer: flags & P != 0,
        required: flags & R != 0,
        number,
        via: Slice::Static(via),
        default: if default.is_empty() { None } else { Some(t(default)) },
        patch: PatchStrategy { merge: flags & M != 0, retain_keys: flags & K != 0, replace: flags & X != 0 },
        patch_merge_key: t(merge_key),
    }
}

pub(crate) const fn column(
    name: &'static str,
    r#type: &'static str,
    format: &'static str,
    priority: i32,
) -> Column {
    Column { name: t(name), r#type: t(r#type), format: t(format), priority, path: Text::EMPTY }
}

// Literals all the way down, not calls: only so do the tables inside live as long as the static.
macro_rules! schema {
    ($shape:expr, $values:expr) => {
        Schema { shape: $shape, enum_values: $values, nullable: false, validation: None }
    };
}

macro_rules! object {
    ($name:literal, $atomic:literal, [$($wire:literal),*], [$($field:expr),* $(,)?]) => {
        schema!(Shape::Object(ObjectShape {
            name: t($name),
            fields: Slice::Static(&[$($field),*]),
            wire_order: Slice::Static(&[$($wire),*]),
            atomic: $atomic,
            preserve_unknown: false,
            embedded_resource: false,
            additional: None,
        }), Slice::EMPTY)
    };
}

macro_rules! enumeration {
    ($($value:expr),*) => { schema!(Shape::String, Slice::Static(&[$($value),*])) };
}

macro_rules! list {
    ($item:expr, $kind:expr, $wrapped:literal) => {
        schema!(
            Shape::List(ListShape { item: Ptr::Static($item), kind: $kind, wrapped: $wrapped }),
            Slice::EMPTY
        )
    };
}

macro_rules! map {
    ($value:expr, $atomic:literal) => {
        schema!(Shape::Map(MapShape { value: Ptr::Static($value), atomic: $atomic }), Slice::EMPTY)
    };
}

macro_rules! keys {
    ($($key:expr),*) => { ListKind::Map(Slice::Static(&[$($key),*])) };
}

pub(crate) use {enumeration, keys, list, map, object, schema};
