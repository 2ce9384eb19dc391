//! Which objects a list or watch is about: namespace, label selector and field selector.

use meta::selector::{FieldSelector, LabelSelector};

use super::catalog::Target;
use crate::front::options::Options;
use crate::mirror::head::Stored;
use crate::mirror::watcher::Topic;
use crate::status::ApiError;

/// A compiled selection. Cheap to test against an object's head.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    namespaced: bool,
    namespace: String,
    labels: Option<LabelSelector>,
    fields: Vec<FieldTerm>,
}

#[derive(Debug, Clone)]
struct FieldTerm {
    field: SelectedField,
    value: String,
    negated: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SelectedField {
    Name,
    Namespace,
    /// Index into the resource's selectable fields.
    Index(usize),
}

impl Selection {
    /// `namespace` is the request's, empty for all. Unknown field labels are refused as upstream refuses them.
    pub fn new(target: &Target, namespace: &str, options: &Options) -> Result<Self, ApiError> {
        let labels =
            match options.label_selector.as_str() {
                "" => None,
                text => Some(LabelSelector::parse(text).map_err(|error| {
                    ApiError::bad_request(format!("unable to parse requirement: {error}"))
                })?),
            };
        let mut fields = Vec::new();
        if !options.field_selector.is_empty() {
            let selector = FieldSelector::parse(&options.field_selector)
                .map_err(|error| ApiError::bad_request(error.to_string()))?;
            for requirement in selector.requirements {
                fields.push(FieldTerm {
                    field: selected_field(target, &requirement.field)?,
                    value: requirement.value,
                    negated: !requirement.equal,
                });
            }
        }
        Ok(Self {
            namespaced: target.spec().namespaced,
            namespace: namespace.to_owned(),
            labels: labels.filter(|own| !own.is_empty()),
            fields,
        })
    }

    /// Narrows to one name, as `watch` on a named object asks for.
    #[must_use]
    pub fn and_name(mut self, name: &str) -> Self {
        self.fields.push(FieldTerm { field: SelectedField::Name, value: name.to_owned(), negated: false });
        self
    }

    pub fn matches(&self, object: &Stored) -> bool {
        (self.namespace.is_empty() || object.namespace() == self.namespace)
            && self.fields.iter().all(|term| term.matches(object))
            && self.labels.as_ref().is_none_or(|labels| labels.matches(|key| object.label(key)))
    }

    /// True if every object of the resource matches.
    pub fn is_everything(&self) -> bool {
        self.namespace.is_empty() && self.labels.is_none() && self.fields.is_empty()
    }

    /// Whether labels or fields narrow it (a namespace alone does not): `remainingItemCount` is then unknown.
    pub fn has_selectors(&self) -> bool {
        self.labels.is_some() || !self.fields.is_empty()
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The one name that can match, if a field term pins it.
    pub fn name(&self) -> Option<&str> {
        let term = self.fields.iter().find(|term| term.field == SelectedField::Name && !term.negated)?;
        Some(&term.value)
    }

    /// The narrowest topic that holds every match.
    pub fn topic(&self) -> Option<Topic> {
        if let Some(name) = self.name()
            && self.namespaced != self.namespace.is_empty()
        {
            let key = if self.namespaced { format!("{}/{name}", self.namespace) } else { name.to_owned() };
            return Some(Topic::Object(key.into()));
        }
        let by_field = self.fields.iter().find_map(|term| match term.field {
            SelectedField::Index(index) if !term.negated && !term.value.is_empty() => {
                Some(Topic::Field(index, term.value.as_str().into()))
            }
            _ => None,
        });
        by_field.or_else(|| {
            (!self.namespace.is_empty()).then(|| Topic::Namespace(self.namespace.as_str().into()))
        })
    }
}

impl FieldTerm {
    fn matches(&self, object: &Stored) -> bool {
        let value = match self.field {
            SelectedField::Name => object.name(),
            SelectedField::Namespace => object.namespace(),
            SelectedField::Index(index) => object.field(index),
        };
        (value == self.value) != self.negated
    }
}

fn selected_field(target: &Target, field: &str) -> Result<SelectedField, ApiError> {
    match field {
        "metadata.name" => return Ok(SelectedField::Name),
        "metadata.namespace" if target.spec().namespaced => return Ok(SelectedField::Namespace),
        _ => {}
    }
    let known = target.version().selectable_fields.iter().any(|path| &**path == field);
    let paths = target.resource.mirror.as_ref().map(|mirror| mirror.paths());
    let index = paths.and_then(|paths| paths.0.iter().position(|path| &**path == field));
    match index {
        Some(index) if known => Ok(SelectedField::Index(index)),
        _ => Err(ApiError::bad_request(format!("field label not supported: {field}"))),
    }
}
