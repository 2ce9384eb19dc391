//! `update` and `patch`: read, change, check, write if nothing moved meanwhile; else again.

use std::sync::Arc;

use serde_json::Value;

use super::create::check_namespace;
use super::strategy::Generation;
use super::write::{Committed, Outcome, Write, Written, split_status};
use super::{Registry, managed, metadata, stored_kind};
use crate::admission::Operation;
use crate::mirror::head::Stored;
use crate::objects::ObjectExt;
use crate::status::ApiError;

/// Tries of a write whose change does not depend on the version the client saw.
const ATTEMPTS: usize = 16;

/// Makes the new object (in the storage version) from the stored one. Called again after a lost race.
pub trait Change: Send {
    /// `current` is the stored object, `resourceVersion` set.
    fn apply(&mut self, current: &Value) -> Result<Value, ApiError>;
}

impl<F: FnMut(&Value) -> Result<Value, ApiError> + Send> Change for F {
    fn apply(&mut self, current: &Value) -> Result<Value, ApiError> {
        self(current)
    }
}

enum Attempt {
    Done(Box<Written>),
    Raced,
}

impl Registry {
    /// Replaces an object by `object`, given in the request's version.
    pub async fn update(&self, write: &Write, object: Value) -> Result<Written, ApiError> {
        check_namespace(write, &object)?;
        if !object.name().is_empty() && object.name() != write.name {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({}) does not match the name on the URL ({})",
                object.name(),
                write.name
            )));
        }
        let mirror = stored_kind(&write.target)?;
        let strategy = &write.target.resource.strategy;
        if strategy.allow_create_on_update()
            && write.subresource.is_empty()
            && mirror.get(&write.namespace, &write.name).is_none()
        {
            let mut object = object;
            object.metadata_mut().insert("name".to_owned(), write.name.clone().into());
            object.metadata_mut().remove("resourceVersion");
            return self.create(write, object).await;
        }
        let object = write.to_storage(object)?;
        if object.resource_version().is_empty() && !strategy.allow_unconditional_update() {
            let path = meta::field::FieldPath::root("metadata").child("resourceVersion");
            let error = meta::field::FieldError::invalid(&path, 0, "must be specified for an update");
            return Err(ApiError::invalid(&write.target.gvk(), &write.name, &[error]));
        }
        self.change(write, move |_: &Value| Ok(object.clone())).await
    }

    /// Applies `change` to the stored object, as often as races demand.
    pub async fn change(&self, write: &Write, mut change: impl Change) -> Result<Written, ApiError> {
        for _ in 0..ATTEMPTS {
            let mirror = stored_kind(&write.target)?;
            let Some(current) = mirror.get(&write.namespace, &write.name) else {
                return Err(ApiError::not_found(write.target.name(), &write.name));
            };
            let old = current.to_value();
            let object = change.apply(&old)?;
            if let Attempt::Done(written) = self.attempt(write, &current, old, object).await? {
                return Ok(*written);
            }
        }
        Err(ApiError::stale(write.target.name(), &write.name))
    }

    async fn attempt(
        &self,
        write: &Write,
        current: &Arc<Stored>,
        old: Value,
        object: Value,
    ) -> Result<Attempt, ApiError> {
        check_preconditions(write, &old, &object)?;
        let old = Arc::new(old);
        let mut request = write.admission(Operation::Update, object, Arc::clone(&old));
        let cx = write.context(self);
        let strategy = Arc::clone(&write.target.resource.strategy);
        self.prepare_changed(write, &mut request.object, &old);
        managed::on_write(write, &mut request.object, Some(&old), cx.now)?;
        self.admit(&mut request).await?;
        self.prepare_changed(write, &mut request.object, &old);
        let object = &mut request.object;
        let reservation = strategy.reserve(&cx, object, Some(&old)).await?;
        let mut errors =
            metadata::validate_update(object, &old, write.target.spec().namespaced, strategy.as_ref());
        errors.extend(strategy.validate_update(&cx, object, &old));
        if !errors.is_empty() {
            return Err(ApiError::invalid(&write.target.gvk(), &write.name, &errors));
        }
        let mut warnings = strategy.warnings(object, Some(&old));
        self.admit_validating(&mut request).await?;
        warnings.append(&mut request.warnings);
        let mut object = request.object;
        object.metadata_mut().insert("resourceVersion".to_owned(), old.resource_version().into());
        let done =
            |object, warnings| Ok(Attempt::Done(Box::new(Written { object, created: false, warnings })));
        if schema::apply::changes_nothing(&old, &object, write.target.storage_schema()) {
            // Nothing changed: no write, no event.
            return done(Outcome::Stored(Arc::clone(current)), warnings);
        }
        if write.dry_run() {
            return done(Outcome::Value(object), warnings);
        }
        if object.is_terminating() && is_finished(&object, strategy.as_ref()) {
            return self.finish_delete(write, current, object, warnings).await;
        }
        let (committed, bytes) = self.commit(&write.target, &mut object, current.mod_revision()).await?;
        let Committed::At(revision) = committed else {
            // The next attempt finds out whether the client's version still holds.
            return Ok(Attempt::Raced);
        };
        if let Some(reservation) = reservation {
            reservation.commit();
        }
        let stored = self.stored(
            &write.target,
            &write.namespace,
            &write.name,
            bytes,
            current.create_revision(),
            revision,
        )?;
        done(Outcome::Stored(stored), warnings)
    }

    /// Defaults, and everything that this write may not change put back. Runs before and after admission.
    fn prepare_changed(&self, write: &Write, object: &mut Value, old: &Value) {
        let strategy = &write.target.resource.strategy;
        let schema = write.target.storage_schema();
        metadata::keep_old(object, old);
        schema::defaulting::apply(object, schema);
        strategy.default(object);
        if strategy.splits_status() && write.target.subresource("status").is_some() {
            split_status(object, old, write.subresource == "status");
        }
        let cx = write.context(self);
        strategy.prepare_for_update(&cx, object, old);
        schema::canonical::normalize(object, schema);
        if strategy.generation() == Generation::Spec {
            metadata::bump_generation(object, old);
        }
    }

    /// An update that takes the last finalizer off an object marked for deletion deletes it.
    async fn finish_delete(
        &self,
        write: &Write,
        current: &Arc<Stored>,
        object: Value,
        warnings: Vec<String>,
    ) -> Result<Attempt, ApiError> {
        match self.commit_delete(&write.target, current).await? {
            Committed::At(_) => {
                write.target.resource.strategy.after_delete(&object);
                Ok(Attempt::Done(Box::new(Written {
                    object: Outcome::Value(object),
                    created: false,
                    warnings,
                })))
            }
            Committed::Lost => Ok(Attempt::Raced),
        }
    }
}

/// No finalizer and no grace left.
pub(super) fn is_finished(object: &Value, strategy: &dyn super::strategy::Strategy) -> bool {
    let grace = object.at(&["metadata", "deletionGracePeriodSeconds"]).and_then(Value::as_i64).unwrap_or(0);
    metadata::finalizers(object).is_empty() && grace == 0 && !strategy.has_own_finalizers(object)
}

fn check_preconditions(write: &Write, old: &Value, object: &Value) -> Result<(), ApiError> {
    let version = object.resource_version();
    if !version.is_empty() && version != old.resource_version() {
        return Err(ApiError::stale(write.target.name(), &write.name));
    }
    let uid = object.uid();
    if !uid.is_empty() && uid != old.uid() {
        let why =
            format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", old.uid());
        return Err(ApiError::conflict(write.target.name(), &write.name, &why));
    }
    Ok(())
}
