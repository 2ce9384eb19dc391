//! Roles and bindings: their names are path segments, their references have defaults.

use serde_json::Value;

use super::{default_text, items};
use crate::objects::ObjectExt;
use crate::registry::strategy::Strategy;

const GROUP: &str = "rbac.authorization.k8s.io";

/// Roles and cluster roles.
#[derive(Debug)]
pub(super) struct RoleStrategy;

/// Bindings of either.
#[derive(Debug)]
pub(super) struct BindingStrategy;

impl Strategy for RoleStrategy {
    fn name_errors(&self, name: &str) -> Vec<String> {
        path_segment_errors(name)
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }
}

impl Strategy for BindingStrategy {
    fn default(&self, binding: &mut Value) {
        default_text(&mut binding["roleRef"], "apiGroup", GROUP);
        for subject in items(binding, "subjects") {
            if matches!(subject.str_at(&["kind"]), "User" | "Group") {
                default_text(subject, "apiGroup", GROUP);
            }
        }
    }

    fn name_errors(&self, name: &str) -> Vec<String> {
        path_segment_errors(name)
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }
}

/// Anything that can stand between two slashes of a URL.
pub(super) fn path_segment_errors(name: &str) -> Vec<String> {
    if matches!(name, "." | "..") {
        return vec![format!("may not be '{name}'")];
    }
    ["/", "%"]
        .into_iter()
        .filter(|part| name.contains(part))
        .map(|part| format!("may not contain '{part}'"))
        .collect()
}
