//! Small questions about any object.

use std::error::Error;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use meta::names::NamespacedName;

/// The object's namespace and name.
pub fn key_of<K: Resource>(object: &K) -> NamespacedName {
    let meta = object.meta();
    NamespacedName {
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
    }
}

/// The owner that manages the object, if one does.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// The object's resource version as a number; 0 when it has none. Resource versions of one API server
/// are ordered numbers (KEP-5504).
pub fn resource_version_of(meta: &ObjectMeta) -> u64 {
    meta.resource_version.as_deref().map_or(0, parse_resource_version)
}

pub(crate) fn parse_resource_version(version: &str) -> u64 {
    version.parse().unwrap_or(0)
}

/// An error with all its causes, on one line.
pub fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl fmt::Display + 'a {
    Chain(error)
}

struct Chain<'a>(&'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = self.0.to_string();
        f.write_str(&last)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Some libraries repeat their source in their own text.
            if !last.ends_with(&text) {
                write!(f, ": {text}")?;
            }
            last = text;
            cause = error.source();
        }
        Ok(())
    }
}
