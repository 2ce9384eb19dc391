//! What the API server serves, for the controllers that work on every kind.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIResource, APIResourceList, ObjectMeta};
use kube::core::{ApiResource, DynamicResourceScope};
use kube::{Api, Client, Resource};
use serde::{Deserialize, Deserializer, Serialize};
use std::borrow::Cow;

/// A resource in the version its group prefers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Discovered {
    pub(crate) resource: ApiResource,
    pub(crate) namespaced: bool,
    pub(crate) verbs: Vec<String>,
}

/// All that could be discovered, and the group versions that could not.
#[derive(Debug, Default)]
pub(crate) struct Discovery {
    pub(crate) resources: Vec<Discovered>,
    pub(crate) failures: Vec<(String, kube::Error)>,
}

/// Any object, but only the metadata that ownership needs.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Owned {
    pub(crate) metadata: ObjectMeta,
}

impl Discovered {
    pub(crate) fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|known| known == verb)
    }

    /// The API of this resource in `namespace`, which is ignored for cluster-scoped resources.
    pub(crate) fn api(&self, client: &Client, namespace: &str) -> Api<Owned> {
        if self.namespaced {
            Api::namespaced_with(client.clone(), namespace, &self.resource)
        } else {
            Api::all_with(client.clone(), &self.resource)
        }
    }
}

/// Asks for every group; a group that does not answer does not hide the others.
pub(crate) async fn discover(client: &Client) -> Result<Discovery, kube::Error> {
    let mut found = Discovery::default();
    let mut seen = BTreeSet::new();
    let core = client.list_core_api_resources("v1").await?;
    found.add("", "v1", core, &mut seen);
    for group in client.list_api_groups().await?.groups {
        let mut versions = group.versions;
        if let Some(preferred) = &group.preferred_version {
            versions.sort_by_key(|version| version.version != preferred.version);
        }
        for version in versions {
            match client.list_api_group_resources(&version.group_version).await {
                Ok(list) => found.add(&group.name, &version.version, list, &mut seen),
                Err(error) => found.failures.push((version.group_version, error)),
            }
        }
    }
    Ok(found)
}

impl Discovery {
    fn add(
        &mut self,
        group: &str,
        version: &str,
        list: APIResourceList,
        seen: &mut BTreeSet<(String, String)>,
    ) {
        for resource in list.resources {
            let APIResource { name, kind, namespaced, verbs, .. } = resource;
            if name.contains('/') || !seen.insert((group.to_owned(), name.clone())) {
                continue;
            }
            let resource = ApiResource {
                group: group.to_owned(),
                version: version.to_owned(),
                api_version: list.group_version.clone(),
                kind,
                plural: name,
            };
            self.resources.push(Discovered { resource, namespaced, verbs });
        }
    }
}

impl Resource for Owned {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&resource.kind)
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&resource.group)
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&resource.version)
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&resource.plural)
    }

    fn metadata_api() -> bool {
        true
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl<'de> Deserialize<'de> for Owned {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Whole {
            #[serde(default)]
            metadata: ObjectMeta,
        }
        let metadata = Whole::deserialize(deserializer)?.metadata;
        // Every object of the cluster may be held in this form: labels and annotations would be most of it.
        let metadata = ObjectMeta {
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            resource_version: metadata.resource_version,
            owner_references: metadata.owner_references,
            finalizers: metadata.finalizers,
            deletion_timestamp: metadata.deletion_timestamp,
            ..ObjectMeta::default()
        };
        Ok(Self { metadata })
    }
}
