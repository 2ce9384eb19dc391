//! `delete` and `deletecollection`: preconditions, grace, finalizers, and what happens to dependents.

use std::sync::Arc;

use meta::status::StatusDetails;
use serde_json::Value;

use super::metadata::finalizers;
use super::selection::Selection;
use super::strategy::Propagation;
use super::update::is_finished;
use super::write::{Committed, Write};
use super::{Registry, stored_kind};
use crate::admission::Operation;
use crate::mirror::head::Stored;
use crate::objects::ObjectExt;
use crate::status::{ApiError, success};

const ATTEMPTS: usize = 16;
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// What a delete answers with.
#[derive(Debug)]
pub enum Deleted {
    /// The object as it stands, marked for deletion, or as it last was. In the storage version.
    Object(Value),
    Status(Box<meta::status::Status>),
}

/// `preconditions` of `DeleteOptions`.
#[derive(Debug, Clone, Default)]
pub struct Preconditions {
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

impl Preconditions {
    pub fn of(body: &Value) -> Self {
        let text = |field| body.at(&["preconditions", field]).and_then(Value::as_str).map(str::to_owned);
        Self { uid: text("uid"), resource_version: text("resourceVersion") }
    }

    fn check(&self, write: &Write, object: &Value) -> Result<(), ApiError> {
        let conflict = |what: &str, wanted: &str, found: &str| {
            let why = format!(
                "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"
            );
            Err(ApiError::conflict(write.target.name(), &write.name, &why))
        };
        match (&self.uid, &self.resource_version) {
            (Some(uid), _) if uid != object.uid() => conflict("UID", uid, object.uid()),
            (_, Some(version)) if version != object.resource_version() => {
                conflict("ResourceVersion", version, object.resource_version())
            }
            _ => Ok(()),
        }
    }
}

/// What a delete does to the stored object now.
enum Step {
    Remove,
    Mark(Box<Value>),
    /// It is already being deleted and nothing changes.
    Nothing,
}

impl Registry {
    pub async fn delete(&self, write: &Write, preconditions: &Preconditions) -> Result<Deleted, ApiError> {
        check_options(write)?;
        let mut admitted = false;
        for _ in 0..ATTEMPTS {
            let mirror = stored_kind(&write.target)?;
            let Some(current) = mirror.get(&write.namespace, &write.name) else {
                return Err(ApiError::not_found(write.target.name(), &write.name));
            };
            let object = current.to_value();
            preconditions.check(write, &object)?;
            if !admitted {
                let old = Arc::new(object.clone());
                let mut request = write.admission(Operation::Delete, Value::Null, old);
                self.admit(&mut request).await?;
                self.admit_validating(&mut request).await?;
                admitted = true;
            }
            let step = self.plan_delete(write, &object);
            if let Some(deleted) = self.take_step(write, &current, object, step).await? {
                return Ok(deleted);
            }
        }
        Err(ApiError::stale(write.target.name(), &write.name))
    }

    /// Deletes every selected object. Answers with those that were there.
    pub async fn delete_collection(
        &self,
        write: &Write,
        selection: &Selection,
    ) -> Result<Vec<Arc<Stored>>, ApiError> {
        let page = self.list(&write.target, selection, &list_part(write)).await?;
        for object in &page.items {
            let mut one = write.clone();
            object.namespace().clone_into(&mut one.namespace);
            object.name().clone_into(&mut one.name);
            match self.delete(&one, &Preconditions::default()).await {
                Err(error) if error.code() != 404 => return Err(error),
                _ => {}
            }
        }
        Ok(page.items)
    }

    fn plan_delete(&self, write: &Write, object: &Value) -> Step {
        let strategy = write.target.resource.strategy.as_ref();
        let mut marked = object.clone();
        set_propagation(&mut marked, propagation(write, object));
        let requested = write.options.grace_period_seconds;
        let grace = strategy.grace_period_seconds(object, requested).unwrap_or(0).max(0);
        let waits = !finalizers(&marked).is_empty() || strategy.has_own_finalizers(&marked) || grace > 0;
        if !waits {
            return Step::Remove;
        }
        let before = object.at(&["metadata", "deletionGracePeriodSeconds"]).and_then(Value::as_i64);
        let now = self.now();
        let metadata = marked.metadata_mut();
        let shortened = before.is_none_or(|before| grace < before);
        if shortened {
            let since = if before.is_some() {
                // The clock started at the first delete.
                let start = object.meta_str("deletionTimestamp");
                let old = meta::time::parse(start).unwrap_or(now);
                old - jiff::SignedDuration::from_secs(before.unwrap_or(0))
            } else {
                now
            };
            let at = since + jiff::SignedDuration::from_secs(grace);
            metadata.insert("deletionTimestamp".to_owned(), meta::time::format(at).into());
            metadata.insert("deletionGracePeriodSeconds".to_owned(), grace.into());
        }
        strategy.mark_terminating(&mut marked);
        if marked == *object {
            return Step::Nothing;
        }
        if shortened && strategy.generation() == super::strategy::Generation::Spec {
            let generation = object.at(&["metadata", "generation"]).and_then(Value::as_i64).unwrap_or(0) + 1;
            marked.metadata_mut().insert("generation".to_owned(), generation.into());
        }
        if is_finished(&marked, strategy) { Step::Remove } else { Step::Mark(Box::new(marked)) }
    }

    /// `None`: someone else wrote meanwhile.
    async fn take_step(
        &self,
        write: &Write,
        current: &Arc<Stored>,
        object: Value,
        step: Step,
    ) -> Result<Option<Deleted>, ApiError> {
        match step {
            Step::Nothing => Ok(Some(Deleted::Object(object))),
            Step::Mark(marked) if write.dry_run() => Ok(Some(Deleted::Object(*marked))),
            Step::Mark(mut marked) => {
                let (committed, bytes) =
                    self.commit(&write.target, &mut marked, current.mod_revision()).await?;
                let Committed::At(revision) = committed else { return Ok(None) };
                let created = current.create_revision();
                let stored =
                    self.stored(&write.target, &write.namespace, &write.name, bytes, created, revision)?;
                Ok(Some(Deleted::Object(stored.to_value())))
            }
            Step::Remove => {
                let mut object = object;
                if !write.dry_run() {
                    let Committed::At(revision) = self.commit_delete(&write.target, current).await? else {
                        return Ok(None);
                    };
                    object.metadata_mut().insert("resourceVersion".to_owned(), revision.to_string().into());
                    write.target.resource.strategy.after_delete(&object);
                }
                Ok(Some(self.removed(write, object)))
            }
        }
    }

    fn removed(&self, write: &Write, object: Value) -> Deleted {
        if write.target.resource.strategy.returns_deleted_object() {
            return Deleted::Object(object);
        }
        let name = write.target.name();
        Deleted::Status(Box::new(success(Some(StatusDetails {
            name: write.name.clone(),
            group: name.group.to_string(),
            kind: name.resource.to_string(),
            uid: object.uid().to_owned(),
            ..StatusDetails::default()
        }))))
    }
}

fn list_part(write: &Write) -> crate::front::options::Options {
    crate::front::options::Options {
        resource_version: write.options.resource_version.clone(),
        resource_version_match: write.options.resource_version_match.clone(),
        limit: write.options.limit,
        continue_token: write.options.continue_token.clone(),
        ..Default::default()
    }
}

fn check_options(write: &Write) -> Result<(), ApiError> {
    let options = &write.options;
    if options.orphan_dependents.is_some() && !options.propagation_policy.is_empty() {
        return Err(invalid_options(
            "orphanDependents and deletionPropagation cannot be both set",
            "propagationPolicy: Invalid value",
            &options.propagation_policy,
        ));
    }
    match options.propagation_policy.as_str() {
        "" | "Orphan" | "Background" | "Foreground" => Ok(()),
        other => Err(ApiError::new(
            422,
            "Invalid",
            format!(
                "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: \"{other}\": supported values: \"Background\", \"Foreground\", \"Orphan\""
            ),
            None,
        )),
    }
}

fn invalid_options(detail: &str, what: &str, value: &str) -> ApiError {
    let message = format!("DeleteOptions.meta.k8s.io \"\" is invalid: {what}: \"{value}\": {detail}");
    ApiError::new(422, "Invalid", message, None)
}

/// The client's wish, else what finalizers already say, else the kind's default.
fn propagation(write: &Write, object: &Value) -> Option<Propagation> {
    match (write.options.propagation_policy.as_str(), write.options.orphan_dependents) {
        ("Orphan", _) | ("", Some(true)) => return Some(Propagation::Orphan),
        ("Background", _) | ("", Some(false)) => return Some(Propagation::Background),
        ("Foreground", _) => return Some(Propagation::Foreground),
        _ => {}
    }
    let set = finalizers(object);
    if set.contains(&ORPHAN) || set.contains(&FOREGROUND) {
        return None;
    }
    Some(write.target.resource.strategy.default_propagation())
}

fn set_propagation(object: &mut Value, propagation: Option<Propagation>) {
    let Some(propagation) = propagation else { return };
    let mut set: Vec<String> = finalizers(object)
        .into_iter()
        .filter(|own| !matches!(*own, ORPHAN | FOREGROUND))
        .map(str::to_owned)
        .collect();
    match propagation {
        Propagation::Orphan => set.push(ORPHAN.to_owned()),
        Propagation::Foreground => set.push(FOREGROUND.to_owned()),
        Propagation::Background => {}
    }
    if set.is_empty() {
        object.metadata_mut().remove("finalizers");
    } else {
        object.metadata_mut().insert("finalizers".to_owned(), set.into());
    }
}
