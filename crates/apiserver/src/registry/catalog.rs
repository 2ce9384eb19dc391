//! Which resources are served: the built-in rows and those that custom resources add.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use kinds::spec::{KindSpec, SubresourceSpec, VersionSpec};
use meta::names::{GroupResource, GroupVersionKind, GroupVersionResource};
use schema::types::{Ptr, Schema};

use super::strategy::Strategy;
use crate::mirror::head::FieldPaths;
use crate::mirror::resource::ResourceMirror;

/// A served resource with everything that serving it needs.
pub struct Resource {
    pub spec: Ptr<KindSpec>,
    /// What it is called at the API.
    pub name: GroupResource,
    /// `None` for kinds that are never stored (reviews).
    pub mirror: Option<Arc<ResourceMirror>>,
    pub strategy: Arc<dyn Strategy>,
    /// A custom resource: list items keep kind and apiVersion, keys are sorted.
    pub custom: bool,
}

/// A resource in one version.
#[derive(Clone)]
pub struct Target {
    pub resource: Arc<Resource>,
    version: usize,
}

/// All served resources. Immutable: a change makes a new one.
#[derive(Default, Clone)]
pub struct Catalog {
    by_name: BTreeMap<GroupResource, Arc<Resource>>,
    by_path: HashMap<String, Vec<Arc<Resource>>>,
    generation: u64,
}

impl Catalog {
    #[must_use]
    pub fn with(&self, resources: impl IntoIterator<Item = Arc<Resource>>) -> Self {
        let mut catalog = self.clone();
        for resource in resources {
            catalog.by_name.insert(resource.name.clone(), resource);
        }
        catalog.index();
        catalog
    }

    #[must_use]
    pub fn without(&self, name: &GroupResource) -> Self {
        let mut catalog = self.clone();
        catalog.by_name.remove(name);
        catalog.index();
        catalog
    }

    /// Changes with every change of what is served.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    fn index(&mut self) {
        self.generation += 1;
        self.by_path.clear();
        for resource in self.by_name.values() {
            self.by_path.entry(resource.name.resource.to_string()).or_default().push(Arc::clone(resource));
        }
    }

    pub fn get(&self, name: &GroupResource) -> Option<&Arc<Resource>> {
        self.by_name.get(name)
    }

    /// The resource of a URL.
    pub fn find(&self, group: &str, version: &str, resource: &str) -> Option<Target> {
        let resource = self.by_path.get(resource)?.iter().find(|candidate| candidate.name.group == group)?;
        let version = resource.spec.versions.iter().position(|spec| &*spec.version == version)?;
        Some(Target { resource: Arc::clone(resource), version })
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.by_name.values()
    }
}

impl Resource {
    /// The paths that field selectors may name, the union of all versions.
    pub fn field_paths(spec: &KindSpec) -> FieldPaths {
        let mut paths: Vec<schema::types::Text> = Vec::new();
        for path in spec.versions.iter().flat_map(|version| version.selectable_fields.iter()) {
            if !paths.contains(path) {
                paths.push(path.clone());
            }
        }
        FieldPaths(paths.into())
    }

    /// Where the objects are stored: usually under the resource's own name.
    pub fn storage_name(spec: &KindSpec) -> GroupResource {
        match &spec.stored_as {
            Some((group, resource)) => GroupResource::new(group.to_string(), resource.to_string()),
            None => GroupResource::new(spec.group.to_string(), spec.resource.to_string()),
        }
    }

    pub fn in_storage_version(self: &Arc<Self>) -> Target {
        Target { resource: Arc::clone(self), version: self.spec.storage_version }
    }
}

impl Target {
    pub fn spec(&self) -> &KindSpec {
        &self.resource.spec
    }

    pub fn version(&self) -> &VersionSpec {
        &self.resource.spec.versions[self.version]
    }

    pub fn schema(&self) -> &Schema {
        &self.version().schema
    }

    /// The schema of the stored form, which may be another resource's (`events` of two groups).
    pub fn storage_schema(&self) -> &Schema {
        &self.storage_spec().storage().schema
    }

    /// The `apiVersion` of the stored form.
    pub fn storage_api_version(&self) -> String {
        let spec = self.storage_spec();
        let version = spec.storage().version.to_string();
        if spec.group.is_empty() { version } else { format!("{}/{version}", spec.group) }
    }

    fn storage_spec(&self) -> &KindSpec {
        let spec = self.spec();
        let other = spec.stored_as.as_ref().and_then(|(group, resource)| kinds::find(group, resource));
        other.unwrap_or(spec)
    }

    pub fn is_storage_version(&self) -> bool {
        self.version == self.resource.spec.storage_version && self.resource.spec.stored_as.is_none()
    }

    pub fn name(&self) -> &GroupResource {
        &self.resource.name
    }

    pub fn subresource(&self, name: &str) -> Option<&SubresourceSpec> {
        self.version().subresources.iter().find(|subresource| &*subresource.name == name)
    }

    pub fn api_version(&self) -> String {
        self.gvk().api_version()
    }

    pub fn gvk(&self) -> GroupVersionKind {
        let spec = self.spec();
        GroupVersionKind::new(
            spec.group.to_string(),
            self.version().version.to_string(),
            spec.kind.to_string(),
        )
    }

    pub fn gvr(&self) -> GroupVersionResource {
        GroupVersionResource {
            group: self.name().group.clone(),
            version: self.version().version.to_string().into(),
            resource: self.name().resource.clone(),
        }
    }

    pub fn has_verb(&self, verb: &str) -> bool {
        self.version().verbs.iter().any(|own| &**own == verb)
    }

    /// `{"kind":"Pod","apiVersion":"v1",`, as every stored object of the kind begins.
    pub fn json_prefix(&self) -> String {
        format!(r#"{{"kind":"{}","apiVersion":"{}","#, self.spec().kind, self.api_version())
    }
}

impl std::fmt::Debug for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resource").field("name", &self.name).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Target").field(&self.name()).field(&self.version().version).finish()
    }
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.by_name.keys().map(ToString::to_string)).finish()
    }
}
