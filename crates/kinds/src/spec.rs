//! What the server, the router, discovery and the clients need to know about a resource: one row a resource.

use schema::types::{Ptr, Schema, Slice, Text};

/// An API group: its place in discovery and the order of its versions.
#[derive(Debug)]
pub struct GroupSpec {
    /// Empty for the core group.
    pub name: &'static str,
    /// `groupPriorityMinimum` of its APIServices.
    pub priority: i32,
    /// The preferred one first, with the `versionPriority` of its APIService.
    pub versions: &'static [(&'static str, i32)],
}

/// A resource in every version it is served in.
#[derive(Debug, Clone)]
pub struct KindSpec {
    /// Empty for the core group.
    pub group: Text,
    /// Plural name, as in the URL.
    pub resource: Text,
    pub singular: Text,
    pub kind: Text,
    pub list_kind: Text,
    pub namespaced: bool,
    /// A delete that ends at once answers with the object instead of a `Status`.
    pub returns_deleted: bool,
    pub short_names: Slice<Text>,
    pub categories: Slice<Text>,
    /// In upstream's discovery order: the preferred version first.
    pub versions: Slice<VersionSpec>,
    /// Index into `versions` of the version objects are stored in.
    pub storage_version: usize,
    /// Set when two resources show the same stored objects (`events` in core and in `events.k8s.io`):
    /// the group and plural whose key space is used.
    pub stored_as: Option<(Text, Text)>,
}

/// One served version of a resource.
#[derive(Debug, Clone)]
pub struct VersionSpec {
    pub version: Text,
    /// Verbs in discovery's (alphabetical) order; a create-only kind (TokenReview) has just `create`.
    pub verbs: Slice<Text>,
    pub schema: Ptr<Schema>,
    pub subresources: Slice<SubresourceSpec>,
    pub columns: Slice<Column>,
    /// Field selectors beyond `metadata.name` and `metadata.namespace`, as JSON paths (`spec.nodeName`).
    pub selectable_fields: Slice<Text>,
    /// Deprecation as in `Warning` headers: deprecated in, removed in, replacement (`autoscaling/v2`).
    pub deprecated: Option<Deprecation>,
}

/// A path below an object: `status`, `scale`, `log`.
#[derive(Debug, Clone)]
pub struct SubresourceSpec {
    pub name: Text,
    /// The kind it exchanges, when it is not the resource's own (`autoscaling/v1 Scale`).
    pub group: Text,
    pub version: Text,
    pub kind: Text,
    pub verbs: Slice<Text>,
    /// `None` for connect subresources (exec, log, proxy).
    pub schema: Option<Ptr<Schema>>,
}

/// A column of the server-side table.
#[derive(Debug, Clone)]
pub struct Column {
    pub name: Text,
    /// `string`, `integer`, `number`, `boolean`, `date`.
    pub r#type: Text,
    /// `name` for the first column, else usually empty.
    pub format: Text,
    /// 0 shows always, 1 with `-o wide`.
    pub priority: i32,
    /// JSON path of the cell for custom resources and simple built-in columns; empty when a printer computes it.
    pub path: Text,
}

/// When an API version was deprecated and goes away.
#[derive(Debug, Clone)]
pub struct Deprecation {
    pub deprecated_in: (u32, u32),
    pub removed_in: Option<(u32, u32)>,
    pub replacement: Option<(Text, Text, Text)>,
}

impl KindSpec {
    pub fn version(&self, name: &str) -> Option<&VersionSpec> {
        self.versions.iter().find(|version| &*version.version == name)
    }

    /// The version objects are stored in.
    pub fn storage(&self) -> &VersionSpec {
        &self.versions[self.storage_version]
    }
}
