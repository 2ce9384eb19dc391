//! Authorization: whether a user may do a thing. Each mode is an [`Authorizer`]; the first with an opinion decides.

use async_trait::async_trait;

use crate::attributes::{Attributes, UserInfo};

/// An authorizer's opinion, with the reason that `SelfSubjectAccessReview` and audit show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Allow(String),
    Deny(String),
    NoOpinion(String),
}

/// A rule a user holds, as `SelfSubjectRulesReview` lists it.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    pub verbs: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
}

/// One authorization mode (RBAC, Node, Webhook ...).
#[async_trait]
pub trait Authorizer: Send + Sync {
    async fn authorize(&self, attributes: &Attributes) -> Decision;

    /// The rules `user` holds in `namespace`, and whether the list is incomplete.
    async fn rules_for(&self, user: &UserInfo, namespace: &str) -> (Vec<Rule>, bool);
}
