//! `create`: a new object, or the refusal of one.

use std::sync::Arc;

use serde_json::Value;

use super::write::{Committed, Outcome, Write, Written};
use super::{Registry, managed, metadata};
use crate::admission::Operation;
use crate::objects::ObjectExt;
use crate::status::ApiError;

impl Registry {
    /// Creates `object`, given in the request's version.
    pub async fn create(&self, write: &Write, object: Value) -> Result<Written, ApiError> {
        let mut object = self.prepare_new(write, object)?;
        managed::on_write(write, &mut object, None, self.now())?;
        let mut request = write.admission(Operation::Create, object, Arc::new(Value::Null));
        self.admit(&mut request).await?;

        let strategy = Arc::clone(&write.target.resource.strategy);
        let cx = write.context(self);
        // Admission may have added parts that have defaults of their own.
        schema::defaulting::apply(&mut request.object, write.target.storage_schema());
        strategy.default(&mut request.object);
        let object = &mut request.object;
        if strategy.splits_status() && write.target.subresource("status").is_some() {
            object.as_object_mut().map(|fields| fields.remove("status"));
        }
        metadata::fill_new(object, strategy.as_ref(), cx.now);
        strategy.prepare_for_create(&cx, object);
        schema::canonical::normalize(object, write.target.storage_schema());
        let reservation = strategy.reserve(&cx, object, None).await?;
        let mut errors = metadata::validate(object, write.target.spec().namespaced, strategy.as_ref());
        errors.extend(strategy.validate(&cx, object));
        if !errors.is_empty() {
            return Err(ApiError::invalid(&write.target.gvk(), object.name(), &errors));
        }
        let mut warnings = strategy.warnings(object, None);
        request.name = request.object.name().to_owned();
        self.admit_validating(&mut request).await?;
        warnings.append(&mut request.warnings);

        let mut object = request.object;
        let name = object.name().to_owned();
        if write.dry_run() {
            let exists = super::stored_kind(&write.target)?.get(&write.namespace, &name).is_some();
            if exists {
                return Err(ApiError::already_exists(write.target.name(), &name));
            }
            return Ok(Written { object: Outcome::Value(object), created: true, warnings });
        }
        let (committed, bytes) = self.commit(&write.target, &mut object, 0).await?;
        let Committed::At(revision) = committed else {
            return Err(ApiError::already_exists(write.target.name(), &name));
        };
        if let Some(reservation) = reservation {
            reservation.commit();
        }
        let stored = self.stored(&write.target, &write.namespace, &name, bytes, revision, revision)?;
        Ok(Written { object: Outcome::Stored(stored), created: true, warnings })
    }

    /// The object with the request's namespace, in the storage version, defaulted.
    fn prepare_new(&self, write: &Write, mut object: Value) -> Result<Value, ApiError> {
        check_namespace(write, &object)?;
        if !object.resource_version().is_empty() {
            let message = "resourceVersion should not be set on objects to be created";
            return Err(ApiError::new(500, "", message, None));
        }
        let namespace = write.namespace.clone();
        let metadata = object.metadata_mut();
        if write.target.spec().namespaced {
            metadata.insert("namespace".to_owned(), namespace.into());
        } else if metadata.get("namespace").is_some_and(|own| own == "") {
            metadata.remove("namespace");
        }
        let mut object = write.to_storage(object)?;
        schema::defaulting::apply(&mut object, write.target.storage_schema());
        write.target.resource.strategy.default(&mut object);
        schema::canonical::normalize(&mut object, write.target.storage_schema());
        Ok(object)
    }
}

/// An object may name its namespace, but only the one of the request.
pub(super) fn check_namespace(write: &Write, object: &Value) -> Result<(), ApiError> {
    let own = object.namespace();
    if own.is_empty() || own == write.namespace || !write.target.spec().namespaced {
        return Ok(());
    }
    Err(ApiError::bad_request(
        "the namespace of the provided object does not match the namespace sent on the request",
    ))
}
