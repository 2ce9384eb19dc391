//! The data model: what is known about the shape of a kind.
//!
//! Every pointer is either into a committed table (`Static`) or shared (`Shared`), so that built-in kinds cost
//! no start-up time and custom resources can come and go.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use regex::Regex;

/// A pointer into a committed table, or a shared run-time value.
pub enum Ptr<T: 'static> {
    Static(&'static T),
    Shared(Arc<T>),
}

/// A slice of a committed table, or a shared run-time list.
pub enum Slice<T: 'static> {
    Static(&'static [T]),
    Shared(Arc<[T]>),
}

/// A string of a committed table, or a shared run-time string.
#[derive(Clone)]
pub enum Text {
    Static(&'static str),
    Shared(Arc<str>),
}

/// The shape of one value.
#[derive(Debug, Clone)]
pub struct Schema {
    pub shape: Shape,
    /// Allowed values, when upstream's type is an enum. Built-in validation decides whether to enforce it.
    pub enum_values: Slice<Text>,
    /// Custom resources only: null is a value, not an absence.
    pub nullable: bool,
    /// Custom resources only: value validation (minimum, pattern, CEL rules ...).
    pub validation: Option<Ptr<Validation>>,
}

/// What a value is on the wire.
#[derive(Debug, Clone)]
pub enum Shape {
    Bool,
    Int32,
    Int64,
    /// Unsigned integers occur in a few device and metrics types.
    Uint32,
    Uint64,
    Float64,
    String,
    /// Base64 in JSON, bytes in protobuf.
    Bytes,
    /// Canonical quantity string; protobuf message `{1: string}`.
    Quantity,
    /// Number or string; protobuf message `{1: type, 2: int, 3: string}`.
    IntOrString,
    /// RFC 3339 in UTC to the second; protobuf Timestamp.
    Time,
    /// RFC 3339 in UTC with six digits; protobuf Timestamp.
    MicroTime,
    /// A Go duration string such as `1m30s`; protobuf `{1: nanoseconds}`.
    Duration,
    /// Any JSON value, kept as it came. The variant says how protobuf carries it.
    Any(AnyKind),
    Object(ObjectShape),
    Map(MapShape),
    List(ListShape),
}

/// How protobuf carries an arbitrary JSON value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnyKind {
    /// `runtime.RawExtension`: message `{1: raw bytes}`.
    RawExtension,
    /// `meta/v1 FieldsV1` and apiextensions `JSON`: message `{1: raw bytes}` holding JSON text.
    Json,
    /// Custom resources with `x-kubernetes-preserve-unknown-fields`; never in protobuf.
    Unknown,
    /// apiextensions `JSONSchemaPropsOrBool`: `{1: allows, 2: schema}`; JSON is a bool or an object. This and
    /// the next two occur in `JSONSchemaProps` only: `schema` is the object they stand in.
    SchemaOrBool,
    /// apiextensions `JSONSchemaPropsOrArray`: `{1: schema, 2: repeated schema}`; JSON is an object or a list.
    SchemaOrArray,
    /// apiextensions `JSONSchemaPropsOrStringArray`: `{1: schema, 2: repeated string}`.
    SchemaOrStringArray,
}

/// A structured object.
#[derive(Debug, Clone)]
pub struct ObjectShape {
    /// OpenAPI definition name, `io.k8s.api.core.v1.PodSpec`; empty for custom resources and all their own objects.
    /// What is empty here is decoded, defaulted and written by the rules for custom resources.
    pub name: Text,
    /// In the order Go's encoder writes them; embedded structs are flattened.
    pub fields: Slice<Field>,
    /// Indices into `fields` in the order of the protobuf encoding, when that differs from `fields`.
    pub wire_order: Slice<u16>,
    /// Server-side apply owns it as a whole.
    pub atomic: bool,
    /// Custom resources: fields not named here are kept.
    pub preserve_unknown: bool,
    /// Custom resources: `x-kubernetes-embedded-resource`.
    pub embedded_resource: bool,
    /// Custom resources: schema of fields not named here.
    pub additional: Option<Ptr<Schema>>,
}

/// One field of an object.
#[derive(Debug, Clone)]
pub struct Field {
    pub name: Text,
    pub schema: Ptr<Schema>,
    pub omit: Omit,
    /// A Go pointer: present-but-zero is kept, unlike a plain value with `omitempty`.
    pub pointer: bool,
    pub required: bool,
    /// Protobuf field number; 0 when protobuf does not carry it.
    pub number: u32,
    /// Field numbers of the protobuf messages around `number`, outermost first: a struct that JSON flattens
    /// (`VolumeSource` in `Volume`) is a message of its own in protobuf.
    pub via: Slice<u32>,
    /// JSON text of the default that the type itself declares.
    pub default: Option<Text>,
    /// Strategic merge patch directives.
    pub patch: PatchStrategy,
    /// `patchMergeKey`, when lists of objects merge by it.
    pub patch_merge_key: Text,
}

/// When Go's encoder leaves a field out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Omit {
    /// Never: an empty value is written as its zero (`null` lists and maps included).
    Never,
    /// `omitempty`: zero scalars, nil pointers, empty lists and maps. Structs by value are always written.
    Empty,
    /// `omitzero`: zero structs as well.
    Zero,
}

/// `patchStrategy` of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PatchStrategy {
    pub merge: bool,
    pub retain_keys: bool,
    pub replace: bool,
}

/// A map from string to one shape.
#[derive(Debug, Clone)]
pub struct MapShape {
    pub value: Ptr<Schema>,
    /// Server-side apply owns it as a whole (`+mapType=atomic`).
    pub atomic: bool,
}

/// A list.
#[derive(Debug, Clone)]
pub struct ListShape {
    pub item: Ptr<Schema>,
    pub kind: ListKind,
    /// Protobuf wraps the list in a message `{1: items}` (`ExtraValue`).
    pub wrapped: bool,
}

/// How server-side apply and validation treat a list.
#[derive(Debug, Clone)]
pub enum ListKind {
    Atomic,
    Set,
    /// Items are identified by these fields, in the order upstream declares them.
    Map(Slice<Text>),
}

/// Value validation of custom resources, as in OpenAPI v3.
#[derive(Debug, Clone, Default)]
pub struct Validation {
    /// No `type` is declared: the shape says what to do with values that fit, and others are welcome too.
    pub untyped: bool,
    /// Members that must be there, in the order the schema names them.
    pub required: Vec<Text>,
    pub format: Option<Text>,
    pub minimum: Option<f64>,
    pub exclusive_minimum: bool,
    pub maximum: Option<f64>,
    pub exclusive_maximum: bool,
    pub multiple_of: Option<f64>,
    pub min_length: Option<u64>,
    pub max_length: Option<u64>,
    pub pattern: Option<Text>,
    pub min_items: Option<u64>,
    pub max_items: Option<u64>,
    pub unique_items: bool,
    pub min_properties: Option<u64>,
    pub max_properties: Option<u64>,
    /// `enum` values as JSON.
    pub enum_values: Vec<serde_json::Value>,
    pub all_of: Vec<Schema>,
    pub any_of: Vec<Schema>,
    pub one_of: Vec<Schema>,
    pub not: Option<Box<Schema>>,
    /// `x-kubernetes-validations`.
    pub rules: Vec<ValidationRule>,
    /// `pattern`, compiled when it is first needed.
    pub(crate) regex: OnceLock<Option<Regex>>,
}

/// One `x-kubernetes-validations` entry.
#[derive(Debug, Clone, Default)]
pub struct ValidationRule {
    pub rule: String,
    pub message: String,
    pub message_expression: String,
    pub reason: String,
    pub field_path: String,
    pub optional_old_self: bool,
}

impl<T> Deref for Ptr<T> {
    type Target = T;
    fn deref(&self) -> &T {
        match self {
            Self::Static(value) => value,
            Self::Shared(value) => value,
        }
    }
}

impl<T> Clone for Ptr<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Static(value) => Self::Static(value),
            Self::Shared(value) => Self::Shared(Arc::clone(value)),
        }
    }
}

/// Prints no contents: schemas are recursive.
impl<T> fmt::Debug for Ptr<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ptr")
    }
}

impl<T> Slice<T> {
    pub const EMPTY: Self = Self::Static(&[]);
}

impl<T> Deref for Slice<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        match self {
            Self::Static(values) => values,
            Self::Shared(values) => values,
        }
    }
}

impl<T> Clone for Slice<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Static(values) => Self::Static(values),
            Self::Shared(values) => Self::Shared(Arc::clone(values)),
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Slice<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<T> FromIterator<T> for Slice<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        Self::Shared(items.into_iter().collect())
    }
}

impl Text {
    pub const EMPTY: Self = Self::Static("");

    pub fn as_str(&self) -> &str {
        self
    }
}

impl Deref for Text {
    type Target = str;
    fn deref(&self) -> &str {
        match self {
            Self::Static(text) => text,
            Self::Shared(text) => text,
        }
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self::Shared(text.into())
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Text {}

impl PartialEq<str> for Text {
    fn eq(&self, other: &str) -> bool {
        &**self == other
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl Schema {
    /// A schema with nothing but a shape.
    pub const fn of(shape: Shape) -> Self {
        Self { shape, enum_values: Slice::EMPTY, nullable: false, validation: None }
    }

    /// True for custom resources and what they are made of: objects without a name.
    pub fn is_custom(&self) -> bool {
        self.object().is_some_and(|object| object.name.is_empty())
    }

    /// The object shape, if this is an object.
    pub fn object(&self) -> Option<&ObjectShape> {
        match &self.shape {
            Shape::Object(object) => Some(object),
            _ => None,
        }
    }

    /// The named field of an object schema.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.object()?.field(name)
    }
}

impl ObjectShape {
    /// An unnamed object with these fields and nothing special about it.
    pub fn of(fields: Slice<Field>) -> Self {
        Self {
            name: Text::EMPTY,
            fields,
            wire_order: Slice::EMPTY,
            atomic: false,
            preserve_unknown: false,
            embedded_resource: false,
            additional: None,
        }
    }

    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| &*field.name == name)
    }
}

impl Field {
    /// An optional field that protobuf does not carry, as custom resources have.
    pub fn optional(name: Text, schema: Ptr<Schema>) -> Self {
        Self {
            name,
            schema,
            omit: Omit::Empty,
            pointer: true,
            required: false,
            number: 0,
            via: Slice::EMPTY,
            default: None,
            patch: PatchStrategy::NONE,
            patch_merge_key: Text::EMPTY,
        }
    }
}

impl ListShape {
    pub fn of(item: Ptr<Schema>, kind: ListKind) -> Self {
        Self { item, kind, wrapped: false }
    }
}

impl PatchStrategy {
    pub const NONE: Self = Self { merge: false, retain_keys: false, replace: false };
}
