//! Validation of custom resources by their schema (OpenAPI v3, list types), with upstream's messages. Rules in CEL
//! are the API server's.

mod formats;
pub(crate) mod pattern;
mod values;

use std::collections::{BTreeMap, HashMap};

use meta::field::{FieldError, FieldErrorKind, FieldPath};
use serde_json::Value;

use crate::apply::item_element;
use crate::decode::path::Path;
use crate::types::{ListKind, ListShape, ObjectShape, Schema, Shape, Validation};

pub use formats::is_supported_format;

/// Everything that is wrong with a custom resource.
///
/// With `old`, what an update did not change is not judged again.
pub fn validate(value: &Value, old: Option<&Value>, schema: &Schema) -> Vec<FieldError> {
    validate_at(value, old, schema, None)
}

/// [`validate`] for a part of a resource, whose errors stand below `base`.
pub(crate) fn validate_at(
    value: &Value,
    old: Option<&Value>,
    schema: &Schema,
    base: Option<&FieldPath>,
) -> Vec<FieldError> {
    let mut outcome = Outcome { base, errors: Vec::new(), matches: 0 };
    outcome.check(value, old, schema, &Path::ROOT);
    outcome.check_lists(value, schema, &Path::ROOT);
    outcome.errors
}

/// What a look at a value found.
struct Outcome<'a> {
    base: Option<&'a FieldPath>,
    errors: Vec<FieldError>,
    /// How many checks applied: of several alternatives that fail, the one that fits best is reported.
    matches: usize,
}

impl Outcome<'_> {
    fn path(&self, path: &Path<'_>) -> FieldPath {
        let name = path.print();
        match (self.base, name.as_str()) {
            (Some(base), "") => base.clone(),
            (Some(base), name) => base.child(name),
            (None, "") => FieldPath::root("<nil>"),
            (None, name) => FieldPath::root(name),
        }
    }

    fn refuse(&mut self, path: &Path<'_>, kind: FieldErrorKind, value: Value, detail: String) {
        let path = self.path(path);
        self.errors.push(FieldError::new(&path, kind, value, detail));
    }

    /// An error that upstream ties to no field.
    fn refuse_whole(&mut self, path: &Path<'_>, detail: &str) {
        let detail = format!("\"{}\" {detail}", path.print());
        let path = self.base.cloned().unwrap_or_else(|| FieldPath::root("<nil>"));
        self.errors.push(FieldError::new(&path, FieldErrorKind::Invalid, Value::from(""), detail));
    }

    fn check(&mut self, value: &Value, old: Option<&Value>, schema: &Schema, path: &Path<'_>) {
        if old == Some(value) || is_builtin(schema) {
            return;
        }
        self.check_type(value, schema, path);
        let validation = schema.validation.as_deref();
        if value.is_null() {
            self.check_enum(value, validation, path);
            return;
        }
        if let Some(validation) = validation {
            self.check_alternatives(value, old, validation, path);
            self.check_scalar(value, validation, path);
        }
        if let (Value::Array(items), Shape::List(list)) = (value, &schema.shape) {
            self.check_items(items, old, list, path);
        }
        if let (Value::Array(items), Some(validation)) = (value, validation) {
            self.check_item_counts(items, validation, path);
        }
        self.check_enum(value, validation, path);
        if value.is_object() {
            self.check_object(value, old, schema, path);
        }
        self.matches += 1;
    }

    fn check_type(&mut self, value: &Value, schema: &Schema, path: &Path<'_>) {
        self.matches += 1;
        let Some(wanted) = declared_type(schema) else { return };
        let found = values::json_type(value);
        let fits = match value {
            Value::Null => schema.nullable,
            _ => wanted.split(',').any(|wanted| {
                wanted == found
                    || wanted == "number" && found == "integer"
                    || wanted == "integer" && value.as_f64().is_some_and(|float| float.fract() == 0.0)
            }),
        };
        if !fits {
            let detail = format!("{} in body must be of type {wanted}: \"{found}\"", path.print());
            self.refuse(path, FieldErrorKind::TypeInvalid, Value::from(found), detail);
        }
    }

    /// `anyOf`, `oneOf`, `allOf`, `not`.
    fn check_alternatives(
        &mut self,
        value: &Value,
        old: Option<&Value>,
        validation: &Validation,
        path: &Path<'_>,
    ) {
        let base = self.base;
        let attempt = |schema: &Schema| {
            let mut outcome = Outcome { base, errors: Vec::new(), matches: 0 };
            outcome.check(value, old, schema, path);
            outcome
        };
        if !validation.any_of.is_empty() {
            let outcomes = validation.any_of.iter().map(attempt).collect();
            if let Err(best) = pick(outcomes) {
                self.refuse_whole(path, "must validate at least one schema (anyOf)");
                self.errors.extend(best);
            }
        }
        if !validation.one_of.is_empty() {
            let outcomes: Vec<Outcome<'_>> = validation.one_of.iter().map(attempt).collect();
            let valid = outcomes.iter().filter(|outcome| outcome.errors.is_empty()).count();
            let message = "must validate one and only one schema (oneOf).";
            if valid > 1 {
                self.refuse_whole(path, &format!("{message} Found {valid} valid alternatives"));
            } else if let Err(best) = pick(outcomes) {
                self.refuse_whole(path, &format!("{message} Found none valid"));
                self.errors.extend(best);
            }
        }
        if !validation.all_of.is_empty() {
            let mut valid = 0;
            for schema in &validation.all_of {
                let mut outcome = attempt(schema);
                valid += usize::from(outcome.errors.is_empty());
                self.matches += outcome.matches;
                self.errors.append(&mut outcome.errors);
            }
            if valid < validation.all_of.len() {
                let none = if valid == 0 { ". None validated" } else { "" };
                self.refuse_whole(path, &format!("must validate all the schemas (allOf){none}"));
            }
        }
        if let Some(schema) = &validation.not
            && attempt(schema).errors.is_empty()
        {
            self.refuse_whole(path, "must not validate the schema (not)");
        }
        self.matches += 1;
    }

    fn check_scalar(&mut self, value: &Value, validation: &Validation, path: &Path<'_>) {
        let problem = match value {
            Value::String(text) => values::string_problem(text, validation),
            Value::Number(number) => {
                let problems = values::number_problems(number, validation);
                for problem in problems {
                    let detail = format!("{} in body {problem}", path.print());
                    self.refuse(path, FieldErrorKind::Invalid, value.clone(), detail);
                }
                None
            }
            _ => None,
        };
        match problem {
            None => {}
            Some(values::StringProblem::TooLong(max)) => {
                let path = self.path(path);
                self.errors.push(FieldError::too_long(&path, usize::try_from(max).unwrap_or(usize::MAX)));
            }
            Some(values::StringProblem::Other(problem)) => {
                let detail = format!("{} in body {problem}", path.print());
                self.refuse(path, FieldErrorKind::Invalid, value.clone(), detail);
            }
        }
        if let (Value::String(text), Some(format)) = (value, &validation.format)
            && !formats::matches(format, text)
        {
            let quoted = meta::field::go_quote(text);
            let detail = format!("{} in body must be of type {format}: {quoted}", path.print());
            self.refuse(path, FieldErrorKind::TypeInvalid, value.clone(), detail);
        }
        self.matches += 1;
    }

    fn check_items(&mut self, items: &[Value], old: Option<&Value>, list: &ListShape, path: &Path<'_>) {
        // Items of keyed lists are known by their key, those of other lists by nothing.
        let old: BTreeMap<_, _> = match (&list.kind, old) {
            (ListKind::Map(_), Some(Value::Array(old))) => {
                old.iter().filter_map(|item| Some((item_element(list, item).ok()?, item))).collect()
            }
            _ => BTreeMap::new(),
        };
        for (index, item) in items.iter().enumerate() {
            let before = if old.is_empty() { None } else { item_element(list, item).ok() };
            let before = before.and_then(|element| old.get(&element).copied());
            self.check(item, before, &list.item, &path.index(index));
        }
    }

    fn check_item_counts(&mut self, items: &[Value], validation: &Validation, path: &Path<'_>) {
        let count = items.len() as u64;
        if let Some(min) = validation.min_items.filter(|min| count < *min) {
            let detail = format!("{} in body should have at least {min} items", path.print());
            self.refuse(path, FieldErrorKind::Invalid, Value::from(count), detail);
        }
        if let Some(max) = validation.max_items.filter(|max| count > *max) {
            self.refuse_count(items.len(), max, path);
        }
        if validation.unique_items && (1..items.len()).any(|at| items[..at].contains(&items[at])) {
            let detail = format!("{} in body shouldn't contain duplicates", path.print());
            self.refuse(path, FieldErrorKind::Invalid, Value::from(""), detail);
        }
    }

    fn refuse_count(&mut self, count: usize, max: u64, path: &Path<'_>) {
        let path = self.path(path);
        self.errors.push(FieldError::too_many(&path, count, usize::try_from(max).unwrap_or(usize::MAX)));
    }

    fn check_enum(&mut self, value: &Value, validation: Option<&Validation>, path: &Path<'_>) {
        let Some(validation) = validation.filter(|validation| !validation.enum_values.is_empty()) else {
            return;
        };
        let same = |known: &Value| known == value || value.is_number() && known.as_f64() == value.as_f64();
        if validation.enum_values.iter().any(same) {
            return;
        }
        let known: Vec<String> = validation
            .enum_values
            .iter()
            .map(|known| known.as_str().map_or_else(|| known.to_string(), str::to_owned))
            .collect();
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let path = self.path(path);
        self.errors.push(FieldError::not_supported(&path, value.clone(), &known));
    }

    fn check_object(&mut self, value: &Value, old: Option<&Value>, schema: &Schema, path: &Path<'_>) {
        let Some(object) = value.as_object() else { return };
        let validation = schema.validation.as_deref();
        let count = object.len() as u64;
        if let Some(min) = validation.and_then(|v| v.min_properties).filter(|min| count < *min) {
            let detail = format!("{} in body should have at least {min} properties", path.print());
            return self.refuse(path, FieldErrorKind::Invalid, Value::from(min), detail);
        }
        if let Some(max) = validation.and_then(|v| v.max_properties).filter(|max| count > *max) {
            // Upstream reports the limit for both numbers.
            return self.refuse_count(usize::try_from(max).unwrap_or(usize::MAX), max, path);
        }
        for (name, value) in object {
            let before = old.and_then(|old| old.get(name));
            if let Some(schema) = member(schema, name) {
                self.check(value, before, schema, &path.key(name));
            }
        }
        for name in validation.map(|validation| &validation.required[..]).unwrap_or_default() {
            if !object.contains_key(&**name) {
                let path = self.path(&path.key(name));
                self.errors.push(FieldError::required(&path, ""));
            }
        }
    }

    /// Sets must not repeat an item, keyed lists not a key.
    fn check_lists(&mut self, value: &Value, schema: &Schema, path: &Path<'_>) {
        if is_builtin(schema) {
            return;
        }
        match (value, &schema.shape) {
            (Value::Object(object), _) => {
                for (name, value) in object {
                    if let Some(schema) = member(schema, name) {
                        self.check_lists(value, schema, &path.key(name));
                    }
                }
            }
            (Value::Array(items), Shape::List(list)) => {
                self.check_unique(items, list, path);
                for (index, item) in items.iter().enumerate() {
                    self.check_lists(item, &list.item, &path.index(index));
                }
            }
            _ => {}
        }
    }

    fn check_unique(&mut self, items: &[Value], list: &ListShape, path: &Path<'_>) {
        let identity = |item: &Value| match &list.kind {
            ListKind::Atomic => None,
            ListKind::Set => Some(item.clone()),
            ListKind::Map(keys) => {
                let key = |key: &str| item.get(key).map(|value| (key.to_owned(), value.clone()));
                Some(Value::Object(keys.iter().filter_map(|name| key(name)).collect()))
            }
        };
        if let (ListKind::Map(_), Some(index)) =
            (&list.kind, items.iter().position(|item| !item.is_object() && !item.is_null()))
        {
            let detail = "must be an object for an array of list-type map".to_owned();
            return self.refuse(&path.index(index), FieldErrorKind::Invalid, items[index].clone(), detail);
        }
        let mut seen: HashMap<String, usize> = HashMap::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let Some(identity) = identity(item) else { return };
            let times = seen.entry(identity.to_string()).or_default();
            *times += 1;
            // Further repetitions are not worth another error.
            if *times == 2 {
                let path = self.path(&path.index(index));
                self.errors.push(FieldError::duplicate(&path, identity));
            }
        }
    }
}

/// The schema of an object's member, if one is declared.
fn member<'a>(schema: &'a Schema, name: &str) -> Option<&'a Schema> {
    match &schema.shape {
        Shape::Object(ObjectShape { fields, additional, .. }) => fields
            .iter()
            .find(|field| &*field.name == name)
            .map(|field| &*field.schema)
            .or(additional.as_deref()),
        Shape::Map(map) => Some(&map.value),
        _ => None,
    }
}

/// `metadata` is judged by the code for all kinds.
fn is_builtin(schema: &Schema) -> bool {
    schema.object().is_some_and(|object| !object.name.is_empty())
}

fn declared_type(schema: &Schema) -> Option<&'static str> {
    if schema.validation.as_deref().is_some_and(|validation| validation.untyped) {
        return None;
    }
    match &schema.shape {
        Shape::Bool => Some("boolean"),
        Shape::Int32 | Shape::Int64 | Shape::Uint32 | Shape::Uint64 => Some("integer"),
        Shape::Float64 => Some("number"),
        Shape::IntOrString => Some("integer,string"),
        Shape::Object(_) | Shape::Map(_) => Some("object"),
        Shape::List(_) => Some("array"),
        Shape::Any(_) => None,
        _ => Some("string"),
    }
}

/// Ok when an alternative fits, else the errors of the one that fits best.
fn pick(outcomes: Vec<Outcome<'_>>) -> Result<(), Vec<FieldError>> {
    let mut best: Option<Outcome<'_>> = None;
    for outcome in outcomes {
        if outcome.errors.is_empty() {
            return Ok(());
        }
        if best.as_ref().is_none_or(|best| outcome.matches > best.matches) {
            best = Some(outcome);
        }
    }
    Err(best.map(|best| best.errors).unwrap_or_default())
}
