//! What is special about a kind: defaults, what a write may change, what is valid. Everything else is the
//! registry's, for all kinds alike.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use meta::field::FieldError;
use serde_json::Value;

use crate::attributes::UserInfo;
use crate::objects::Objects;
use crate::status::ApiError;

/// What a strategy may know about the write at hand.
#[derive(Clone, Copy)]
pub struct WriteContext<'a> {
    pub user: &'a UserInfo,
    pub now: Timestamp,
    pub dry_run: bool,
    /// Empty for the resource itself.
    pub subresource: &'a str,
    /// The API version the client used; objects are in the storage version.
    pub request_version: &'a str,
    pub objects: &'a dyn Objects,
}

/// When `metadata.generation` moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// The kind has none.
    None,
    /// 1 at creation, one more when anything outside `metadata` and `status` changes.
    Spec,
}

/// What stays when a write is abandoned: dropping it without [`Reservation::commit`] gives everything back.
pub trait Reservation: Send {
    fn commit(self: Box<Self>);
}

/// See the module's text. Objects are in the storage version. Every method has the answer of a plain kind.
#[async_trait]
pub trait Strategy: Send + Sync {
    /// Fills in what upstream's SetDefaults functions fill in; runs after the schema's own defaults, on create,
    /// on update and again after mutating admission.
    fn default(&self, _object: &mut Value) {}

    /// Clears and sets what a client has no say in when it creates. The registry has already dropped `status`
    /// if the kind has a status subresource.
    fn prepare_for_create(&self, _cx: &WriteContext<'_>, _object: &mut Value) {}

    /// As above for updates. The registry has already put back the old `status` (or, writing the status
    /// subresource, everything but it).
    fn prepare_for_update(&self, _cx: &WriteContext<'_>, _object: &mut Value, _old: &Value) {}

    fn validate(&self, _cx: &WriteContext<'_>, _object: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    /// Full validation of the new object and of the step from the old one.
    fn validate_update(&self, cx: &WriteContext<'_>, object: &Value, _old: &Value) -> Vec<FieldError> {
        self.validate(cx, object)
    }

    /// Texts for `Warning` headers; `old` is `None` on create.
    fn warnings(&self, _object: &Value, _old: Option<&Value>) -> Vec<String> {
        Vec::new()
    }

    fn generation(&self) -> Generation {
        Generation::None
    }

    /// How names are checked (`metadata.name`); answers upstream's reasons.
    fn name_errors(&self, name: &str) -> Vec<String> {
        meta::content::dns1123_subdomain(name)
    }

    /// A PUT of a missing object creates it.
    fn allow_create_on_update(&self) -> bool {
        false
    }

    /// A PUT without `resourceVersion` overwrites.
    fn allow_unconditional_update(&self) -> bool {
        true
    }

    /// A finished delete answers with the object, not with a `Status`.
    fn returns_deleted_object(&self) -> bool {
        false
    }

    /// Whether this kind's status is cleared on create and split off into the status subresource.
    fn splits_status(&self) -> bool {
        true
    }

    /// Takes what the object needs for itself alone (cluster IPs, ports). Dry runs give it back.
    async fn reserve(
        &self,
        _cx: &WriteContext<'_>,
        _object: &mut Value,
        _old: Option<&Value>,
    ) -> Result<Option<Box<dyn Reservation>>, ApiError> {
        Ok(None)
    }

    /// The object is gone from the store.
    fn after_delete(&self, _object: &Value) {}

    /// Seconds of grace for a delete: `None` deletes at once, `Some` marks the object and waits for its owner.
    /// `requested` is the client's wish.
    fn grace_period_seconds(&self, _object: &Value, _requested: Option<i64>) -> Option<i64> {
        None
    }

    /// Finalizers beyond `metadata.finalizers` (a namespace's `spec.finalizers`).
    fn has_own_finalizers(&self, _object: &Value) -> bool {
        false
    }

    /// Changes made when a delete begins to wait (a namespace becomes Terminating).
    fn mark_terminating(&self, _object: &mut Value) {}

    /// What happens to dependents when the client does not say.
    fn default_propagation(&self) -> Propagation {
        Propagation::Background
    }

    /// Brings an object to another served version of its kind, given as an `apiVersion`.
    fn convert(&self, mut object: Value, to: &str) -> Result<Value, ApiError> {
        kinds::convert::convert(&mut object, to);
        Ok(object)
    }
}

/// `propagationPolicy` of a delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Orphan,
    Background,
    Foreground,
}

/// A kind with no behaviour of its own.
#[derive(Debug)]
pub struct Plain;

impl Strategy for Plain {}

/// The strategy of a kind; [`Plain`] for those not in the table.
pub type StrategyOf = fn(group: &str, resource: &str) -> Arc<dyn Strategy>;

impl std::fmt::Debug for WriteContext<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriteContext")
            .field("user", &self.user.username)
            .field("subresource", &self.subresource)
            .finish_non_exhaustive()
    }
}
