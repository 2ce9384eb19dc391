//! The API server, if there is one: a kubelet with static pods alone runs without.

use std::fmt::Debug;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;

#[derive(Clone, Default)]
pub(crate) struct Api {
    client: Option<Client>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("there is no API server")]
    NoServer,
    #[error("{kind} \"{name}\" not found")]
    NotFound { kind: &'static str, name: String },
    #[error("cannot {verb} {what}")]
    Call {
        verb: &'static str,
        what: String,
        #[source]
        source: Box<kube::Error>,
    },
}

impl Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("client", &self.client.is_some()).finish()
    }
}

impl Api {
    pub(crate) fn new(client: Option<Client>) -> Self {
        Self { client }
    }

    pub(crate) fn client(&self) -> Option<&Client> {
        self.client.as_ref()
    }

    pub(crate) fn namespaced<K>(&self, namespace: &str) -> Result<kube::Api<K>, ApiError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        let client = self.client.clone().ok_or(ApiError::NoServer)?;
        Ok(kube::Api::namespaced(client, namespace))
    }

    pub(crate) fn cluster<K>(&self) -> Result<kube::Api<K>, ApiError>
    where
        K: Resource<DynamicType = (), Scope = ClusterResourceScope>,
    {
        Ok(kube::Api::all(self.client.clone().ok_or(ApiError::NoServer)?))
    }

    pub(crate) async fn config_map(&self, namespace: &str, name: &str) -> Result<ConfigMap, ApiError> {
        found("configmap", name, self.namespaced::<ConfigMap>(namespace)?.get_opt(name).await)
    }

    pub(crate) async fn secret(&self, namespace: &str, name: &str) -> Result<Secret, ApiError> {
        found("secret", name, self.namespaced::<Secret>(namespace)?.get_opt(name).await)
    }

    pub(crate) async fn get<K>(&self, kind: &'static str, name: &str) -> Result<K, ApiError>
    where
        K: Resource<DynamicType = (), Scope = ClusterResourceScope>,
        K: Clone + DeserializeOwned + Debug,
    {
        found(kind, name, self.cluster::<K>()?.get_opt(name).await)
    }
}

fn found<K>(kind: &'static str, name: &str, answer: kube::Result<Option<K>>) -> Result<K, ApiError> {
    match answer {
        Ok(Some(object)) => Ok(object),
        Ok(None) => Err(ApiError::NotFound { kind, name: name.to_owned() }),
        Err(source) => Err(ApiError::call("get", format!("{kind} {name}"), source)),
    }
}

impl ApiError {
    pub(crate) fn call(verb: &'static str, what: impl Into<String>, source: kube::Error) -> Self {
        Self::Call { verb, what: what.into(), source: Box::new(source) }
    }

    pub(crate) fn is_not_found(&self) -> bool {
        match self {
            Self::NotFound { .. } => true,
            Self::Call { source, .. } => matches!(&**source, kube::Error::Api(status) if status.code == 404),
            Self::NoServer => false,
        }
    }

    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Call { source, .. } => match &**source {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            _ => None,
        }
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // The status of a refusal says it all; its debug form would only repeat it.
        if let Some(kube::Error::Api(status)) = error.downcast_ref::<kube::Error>() {
            return format!("{text}: {}", status.message);
        }
        let next = error.to_string();
        // Some libraries repeat the cause in their own text.
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
