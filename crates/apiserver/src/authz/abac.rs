//! Attribute based access control: a file with one policy a line (`--authorization-policy-file`).

use async_trait::async_trait;
use serde::Deserialize;

use super::{Authorizer, Decision, Rule};
use crate::attributes::{Attributes, UserInfo};
use crate::authn::{ALL_AUTHENTICATED, ALL_UNAUTHENTICATED};

/// The policies of a file.
#[derive(Debug)]
pub struct Abac {
    policies: Vec<Policy>,
}

/// Why a policy file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("policy in line {line} is malformed")]
pub struct PolicyFileError {
    pub line: usize,
    #[source]
    pub source: serde_json::Error,
}

#[derive(Debug, Deserialize)]
struct Line {
    spec: Policy,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Policy {
    user: String,
    group: String,
    readonly: bool,
    #[serde(rename = "apiGroup")]
    api_group: String,
    resource: String,
    namespace: String,
    #[serde(rename = "nonResourcePath")]
    non_resource_path: String,
}

impl Abac {
    /// Empty lines and lines that start with `#` are skipped.
    pub fn parse(text: &str) -> Result<Self, PolicyFileError> {
        let mut policies = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let trimmed = line.trim();
            if trimmed.is_empty() || trimmed.starts_with('#') {
                continue;
            }
            let line: Line = serde_json::from_str(trimmed)
                .map_err(|source| PolicyFileError { line: index + 1, source })?;
            let mut policy = line.spec;
            // A star stands for every user that is known.
            if policy.user == "*" || policy.group == "*" {
                policy.user.clear();
                policy.group = ALL_AUTHENTICATED.to_owned();
            }
            policies.push(policy);
        }
        Ok(Self { policies })
    }
}

#[async_trait]
impl Authorizer for Abac {
    async fn authorize(&self, attributes: &Attributes) -> Decision {
        if self.policies.iter().any(|policy| policy.matches(attributes)) {
            return Decision::Allow(String::new());
        }
        Decision::NoOpinion("No policy matched.".to_owned())
    }

    async fn rules_for(&self, user: &UserInfo, namespace: &str) -> (Vec<Rule>, bool) {
        let of_user = self.policies.iter().filter(|policy| policy.is_for(user));
        let rules = of_user.flat_map(|policy| {
            let verbs: Vec<String> = if policy.readonly {
                ["get", "list", "watch"].map(str::to_owned).to_vec()
            } else {
                vec!["*".to_owned()]
            };
            let resources =
                (!policy.resource.is_empty() && in_set(&policy.namespace, namespace)).then(|| Rule {
                    verbs: verbs.clone(),
                    api_groups: vec![policy.api_group.clone()],
                    resources: vec![policy.resource.clone()],
                    ..Rule::default()
                });
            let urls = (!policy.non_resource_path.is_empty()).then(|| Rule {
                verbs: verbs.clone(),
                non_resource_urls: vec![policy.non_resource_path.clone()],
                ..Rule::default()
            });
            resources.into_iter().chain(urls)
        });
        (rules.collect(), false)
    }
}

impl Policy {
    fn matches(&self, request: &Attributes) -> bool {
        if !self.is_for(&request.user) || (self.readonly && !request.is_read_only()) {
            return false;
        }
        if request.resource_request {
            return in_set(&self.namespace, &request.namespace)
                && in_set(&self.resource, &request.resource)
                && in_set(&self.api_group, &request.api_group);
        }
        let pattern = self.non_resource_path.as_str();
        match pattern.strip_suffix('*') {
            Some(prefix) => request.path.starts_with(prefix),
            None => pattern == request.path,
        }
    }

    fn is_for(&self, user: &UserInfo) -> bool {
        if self.user.is_empty() && self.group.is_empty() {
            return false;
        }
        let known =
            !user.in_group(ALL_UNAUTHENTICATED) || self.group == ALL_UNAUTHENTICATED || !self.user.is_empty();
        known
            && (self.user.is_empty() || self.user == user.username)
            && (self.group.is_empty() || user.in_group(&self.group))
    }
}

fn in_set(pattern: &str, value: &str) -> bool {
    pattern == "*" || pattern == value
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn policies_match_by_user_group_resource_and_path() {
        let abac = Abac::parse(concat!(
            "# comment\n",
            r#"{"apiVersion":"abac.authorization.kubernetes.io/v1beta1","kind":"Policy","spec":{"user":"bob","namespace":"a","resource":"pods","apiGroup":"*","readonly":true}}"#,
            "\n",
            r#"{"spec":{"group":"ops","namespace":"*","resource":"*","apiGroup":"*","nonResourcePath":"/api/*"}}"#,
        ))
        .unwrap();
        let ask = |user: &str, groups: &[&str], verb: &str, target: &str| {
            let mut attributes = Attributes {
                user: Arc::new(UserInfo::new(user, groups)),
                verb: verb.to_owned(),
                ..Attributes::default()
            };
            if target.starts_with('/') {
                attributes.path = target.to_owned();
            } else {
                let (namespace, resource) = target.split_once('/').unwrap();
                attributes.resource_request = true;
                attributes.namespace = namespace.to_owned();
                attributes.resource = resource.to_owned();
            }
            attributes
        };
        for (request, allowed) in [
            (ask("bob", &[], "get", "a/pods"), true),
            (ask("bob", &[], "delete", "a/pods"), false),
            (ask("bob", &[], "get", "b/pods"), false),
            (ask("alice", &["ops"], "delete", "b/secrets"), true),
            (ask("alice", &["ops"], "get", "/api/v1"), true),
            (ask("alice", &["ops"], "get", "/metrics"), false),
            (ask("eve", &[], "get", "a/pods"), false),
        ] {
            assert_eq!(abac.authorize(&request).await.is_allowed(), allowed, "{request:?}");
        }
        assert_eq!(Abac::parse("{").unwrap_err().line, 1);
    }
}
