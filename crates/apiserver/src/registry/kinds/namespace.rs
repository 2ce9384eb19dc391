//! Namespaces: they end in two steps, content first.

use serde_json::{Value, json};

use crate::objects::ObjectExt;
use crate::registry::strategy::{Strategy, WriteContext};

const NAME_LABEL: &str = "kubernetes.io/metadata.name";

#[derive(Debug)]
pub(super) struct NamespaceStrategy;

impl Strategy for NamespaceStrategy {
    fn default(&self, namespace: &mut Value) {
        let name = namespace.name().to_owned();
        if !name.is_empty() {
            namespace["metadata"]["labels"][NAME_LABEL] = name.into();
        }
    }

    fn prepare_for_create(&self, _cx: &WriteContext<'_>, namespace: &mut Value) {
        namespace["metadata"]["labels"][NAME_LABEL] = namespace.name().to_owned().into();
        namespace["status"] = json!({ "phase": "Active" });
        let finalizers = &mut namespace["spec"]["finalizers"];
        if !finalizers.is_array() {
            *finalizers = json!([]);
        }
        let list = finalizers.as_array_mut().expect("made an array just above");
        if !list.contains(&json!("kubernetes")) {
            list.push(json!("kubernetes"));
        }
    }

    /// Finalizers change through the `finalize` subresource only.
    fn prepare_for_update(&self, cx: &WriteContext<'_>, namespace: &mut Value, old: &Value) {
        if cx.subresource != "finalize" {
            namespace["spec"]["finalizers"] = old.at(&["spec", "finalizers"]).cloned().unwrap_or_default();
        }
    }

    fn name_errors(&self, name: &str) -> Vec<String> {
        meta::content::dns1123_label(name)
    }

    fn has_own_finalizers(&self, namespace: &Value) -> bool {
        namespace.at(&["spec", "finalizers"]).and_then(Value::as_array).is_some_and(|list| !list.is_empty())
    }

    fn mark_terminating(&self, namespace: &mut Value) {
        namespace["status"]["phase"] = "Terminating".into();
    }
}
