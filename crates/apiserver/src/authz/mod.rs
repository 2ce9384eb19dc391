//! Authorization: whether a user may do a thing. Each mode is an [`Authorizer`]; the first with an opinion decides.

pub mod abac;
pub mod escalation;
pub mod node;
pub mod pod_references;
pub mod rbac;
pub mod reviews;
pub mod union;

use async_trait::async_trait;
use meta::names::GroupResource;

use crate::attributes::{Attributes, UserInfo};
use crate::status::ApiError;

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

impl Decision {
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }

    pub fn reason(&self) -> &str {
        match self {
            Self::Allow(reason) | Self::Deny(reason) | Self::NoOpinion(reason) => reason,
        }
    }
}

/// The refusal of a request that no authorizer allowed, in upstream's words.
pub fn forbidden(attributes: &Attributes, reason: &str) -> ApiError {
    let mut message = if attributes.resource_request {
        let mut resource = attributes.resource.clone();
        if !attributes.subresource.is_empty() {
            resource.push('/');
            resource.push_str(&attributes.subresource);
        }
        let place = if attributes.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {:?}", attributes.namespace)
        };
        format!(
            "User {:?} cannot {} resource {resource:?} in API group {:?} {place}",
            attributes.user.username, attributes.verb, attributes.api_group
        )
    } else {
        format!("User {:?} cannot {} path {:?}", attributes.user.username, attributes.verb, attributes.path)
    };
    if !reason.is_empty() {
        message.push_str(": ");
        message.push_str(reason);
    }
    let resource = GroupResource::new(attributes.api_group.clone(), attributes.resource.clone());
    ApiError::forbidden(&resource, &attributes.name, &message)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn refusals_read_as_upstreams_do() {
        let user = Arc::new(UserInfo::new("alice", &[]));
        let base = Attributes {
            user,
            verb: "list".to_owned(),
            resource_request: true,
            resource: "pods".to_owned(),
            ..Attributes::default()
        };
        assert_eq!(
            forbidden(&base, "").to_string(),
            r#"pods is forbidden: User "alice" cannot list resource "pods" in API group "" at the cluster scope"#
        );
        let log = Attributes {
            verb: "get".to_owned(),
            namespace: "y".to_owned(),
            name: "x".to_owned(),
            subresource: "log".to_owned(),
            ..base.clone()
        };
        assert_eq!(
            forbidden(&log, "").to_string(),
            r#"pods "x" is forbidden: User "alice" cannot get resource "pods/log" in API group "" in the namespace "y""#
        );
        let path = Attributes {
            resource_request: false,
            resource: String::new(),
            verb: "get".to_owned(),
            path: "/metrics".to_owned(),
            ..base
        };
        assert_eq!(
            forbidden(&path, "no").to_string(),
            r#"forbidden: User "alice" cannot get path "/metrics": no"#
        );
    }
}
