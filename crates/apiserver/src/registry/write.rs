//! What creates, updates and deletes share: the request, the answer, admission and the store's transaction.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use schema::canonical;
use serde_json::{Map, Value};
use store::{Compare, KeyRange, KeyValue, Op, OpResult, Revision, Txn};

use super::catalog::Target;
use super::strategy::WriteContext;
use super::{Registry, store_error, stored_kind};
use crate::admission::{AdmissionRequest, Operation};
use crate::attributes::UserInfo;
use crate::front::options::Options;
use crate::mirror::head::Stored;
use crate::objects::{ObjectExt, storage_key};
use crate::status::ApiError;

/// A write, as the front understood it.
#[derive(Debug, Clone)]
pub struct Write {
    pub target: Target,
    /// Empty for the resource itself.
    pub subresource: String,
    pub namespace: String,
    /// Empty on create.
    pub name: String,
    pub user: Arc<UserInfo>,
    pub options: Options,
    /// The field manager: the option's, or the first word of the user agent.
    pub manager: String,
    /// Server-side apply, which keeps the books of ownership itself.
    pub applied: bool,
}

/// What a write came to.
#[derive(Debug)]
pub struct Written {
    pub object: Outcome,
    pub created: bool,
    pub warnings: Vec<String>,
}

/// The object after a write.
#[derive(Debug, Clone)]
pub enum Outcome {
    Stored(Arc<Stored>),
    /// Not stored: a dry run. In the storage version.
    Value(Value),
}

/// How a conditional write ended.
pub(super) enum Committed {
    At(Revision),
    /// The precondition did not hold.
    Lost,
}

impl Write {
    pub fn dry_run(&self) -> bool {
        self.options.is_dry_run()
    }

    pub(super) fn context<'a>(&'a self, registry: &'a Registry) -> WriteContext<'a> {
        WriteContext {
            user: &self.user,
            now: registry.now(),
            dry_run: self.dry_run(),
            subresource: &self.subresource,
            request_version: &self.target.version().version,
            objects: registry,
        }
    }

    pub(super) fn admission(&self, operation: Operation, object: Value, old: Arc<Value>) -> AdmissionRequest {
        let options_kind = match operation {
            Operation::Create => "CreateOptions",
            Operation::Update | Operation::Connect => "UpdateOptions",
            Operation::Delete => "DeleteOptions",
        };
        AdmissionRequest {
            operation,
            kind: self.target.gvk(),
            resource: self.target.gvr(),
            subresource: self.subresource.clone(),
            namespace: self.namespace.clone(),
            name: if self.name.is_empty() { object.name().to_owned() } else { self.name.clone() },
            user: Arc::clone(&self.user),
            dry_run: self.dry_run(),
            options: self.options.to_object(options_kind),
            object,
            old_object: old,
            warnings: Vec::new(),
            audit_annotations: BTreeMap::new(),
        }
    }

    /// Brings an object from the request's version to the one that is stored.
    pub(super) fn to_storage(&self, object: Value) -> Result<Value, ApiError> {
        let target = &self.target;
        if target.is_storage_version() {
            return Ok(object);
        }
        let mut object = target.resource.strategy.convert(object, &target.storage_api_version())?;
        canonical::normalize(&mut object, target.storage_schema());
        Ok(object)
    }
}

impl Registry {
    pub(super) async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        match self.admission.get() {
            Some(chain) => chain.admit(request).await,
            None => Ok(()),
        }
    }

    pub(super) async fn admit_validating(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        match self.admission.get() {
            Some(chain) => chain.validate(request).await,
            None => Ok(()),
        }
    }

    /// Stores an object if its key is still at `expected` (0: absent).
    pub(super) async fn commit(
        &self,
        target: &Target,
        object: &mut Value,
        expected: Revision,
    ) -> Result<(Committed, Bytes), ApiError> {
        let key = self.key(target, object.namespace(), object.name())?;
        let value = encode_stored(target, object);
        let compare = if expected == 0 {
            Compare::absent(key.clone())
        } else {
            Compare::mod_revision(key.clone(), expected)
        };
        let txn = Txn {
            compares: vec![compare],
            success: vec![Op::Put { key: key.clone(), value: value.clone(), lease: 0 }],
            failure: vec![Op::Get { range: KeyRange::key(key), limit: 1 }],
        };
        Ok((self.transact(txn).await?, value))
    }

    pub(super) async fn commit_delete(
        &self,
        target: &Target,
        object: &Stored,
    ) -> Result<Committed, ApiError> {
        let key = self.key(target, object.namespace(), object.name())?;
        let txn = Txn {
            compares: vec![Compare::mod_revision(key.clone(), object.mod_revision())],
            success: vec![Op::Delete { range: KeyRange::key(key.clone()) }],
            failure: vec![Op::Get { range: KeyRange::key(key), limit: 1 }],
        };
        self.transact(txn).await
    }

    async fn transact(&self, txn: Txn) -> Result<Committed, ApiError> {
        let result = self.store.txn(txn).await.map_err(store_error)?;
        if result.succeeded {
            // Whoever is answered can read what was written.
            self.reach(result.revision).await?;
            return Ok(Committed::At(result.revision));
        }
        let current = match result.results.into_iter().next() {
            Some(OpResult::Get { items, .. }) => items.into_iter().next(),
            _ => None,
        };
        // The mirror may lag behind the state that won; a retry must not see the old one again.
        self.reach(current.as_ref().map_or(result.revision, |current| current.mod_revision)).await?;
        Ok(Committed::Lost)
    }

    fn key(&self, target: &Target, namespace: &str, name: &str) -> Result<Bytes, ApiError> {
        Ok(storage_key(stored_kind(target)?.resource(), namespace, name))
    }

    /// The stored form of what was just written at `revision`.
    pub(super) fn stored(
        &self,
        target: &Target,
        namespace: &str,
        name: &str,
        value: Bytes,
        created_at: Revision,
        revision: Revision,
    ) -> Result<Arc<Stored>, ApiError> {
        let mirror = stored_kind(target)?;
        if let Some(own) = mirror.get(namespace, name)
            && own.revision() == revision
        {
            return Ok(own);
        }
        // Already overwritten by someone else: answer with what this request wrote.
        let kv = KeyValue {
            key: self.key(target, namespace, name)?,
            value,
            create_revision: created_at,
            mod_revision: revision,
            version: 1,
            lease: 0,
        };
        let prefix = crate::objects::storage_prefix(mirror.resource()).len();
        Stored::new(Arc::new(kv), prefix, mirror.paths())
            .map(Arc::new)
            .ok_or_else(|| ApiError::internal("the written object cannot be read"))
    }
}

/// Canonical bytes without `resourceVersion`, which is the store's to know.
fn encode_stored(target: &Target, object: &mut Value) -> Bytes {
    object.metadata_mut().remove("resourceVersion");
    let mut out = Vec::with_capacity(1024);
    canonical::write(object, target.storage_schema(), &mut out);
    out.into()
}

/// The fields of an object that are neither metadata nor status taken from `old`; or only status taken from it.
pub(super) fn split_status(object: &mut Value, old: &Value, writing_status: bool) {
    let Some(new) = object.as_object_mut() else { return };
    if writing_status {
        let status = new.remove("status");
        let metadata = new.remove("metadata");
        let mut merged: Map<String, Value> = old.as_object().cloned().unwrap_or_default();
        merged.remove("status");
        merged.extend(metadata.map(|metadata| ("metadata".to_owned(), metadata)));
        merged.extend(status.map(|status| ("status".to_owned(), status)));
        *new = merged;
    } else {
        match old.get("status") {
            Some(status) => new.insert("status".to_owned(), status.clone()),
            None => new.remove("status"),
        };
    }
}
