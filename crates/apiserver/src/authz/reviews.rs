//! The review kinds: questions about access and identity that are answered, never stored.

use std::sync::Arc;

use meta::field::{FieldError, FieldPath};
use meta::names::GroupVersionKind;
use serde_json::{Value, json};

use super::pod_references::list;
use super::{Authorizer, Decision, Rule};
use crate::attributes::{Attributes, UserInfo};
use crate::authn::{TokenAuthenticator, union::with_authenticated_group};
use crate::objects::ObjectExt as _;
use crate::status::ApiError;

const AUTHORIZATION: &str = "authorization.k8s.io";

/// The three forms of the same question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessReview {
    Subject,
    SelfSubject,
    LocalSubject,
}

impl AccessReview {
    fn kind(self) -> &'static str {
        match self {
            Self::Subject => "SubjectAccessReview",
            Self::SelfSubject => "SelfSubjectAccessReview",
            Self::LocalSubject => "LocalSubjectAccessReview",
        }
    }
}

/// Answers a `SubjectAccessReview`, `SelfSubjectAccessReview` or `LocalSubjectAccessReview`. `namespace` is that
/// of the URL; `user` asks.
pub async fn review_access(
    authorizer: &dyn Authorizer,
    form: AccessReview,
    namespace: &str,
    user: &Arc<UserInfo>,
    mut review: Value,
) -> Result<Value, ApiError> {
    let errors = validate(form, namespace, &review);
    if !errors.is_empty() {
        let kind = GroupVersionKind::new(AUTHORIZATION, "v1", form.kind());
        return Err(ApiError::invalid(&kind, review.name(), &errors));
    }
    let subject = match form {
        AccessReview::SelfSubject => user.clone(),
        _ => Arc::new(subject_of(&review)),
    };
    let decision = authorizer.authorize(&attributes_of(&review, subject)).await;
    let mut status = json!({"allowed": decision.is_allowed()});
    if matches!(decision, Decision::Deny(_)) {
        status["denied"] = true.into();
    }
    if !decision.reason().is_empty() {
        status["reason"] = decision.reason().into();
    }
    review["status"] = status;
    Ok(review)
}

/// Answers a `SelfSubjectRulesReview`.
pub async fn review_rules(
    authorizer: &dyn Authorizer,
    user: &UserInfo,
    mut review: Value,
) -> Result<Value, ApiError> {
    let namespace = review.str_at(&["spec", "namespace"]).to_owned();
    if namespace.is_empty() {
        return Err(ApiError::bad_request("no namespace on request"));
    }
    let (rules, incomplete) = authorizer.rules_for(user, &namespace).await;
    let (urls, resources): (Vec<Rule>, Vec<Rule>) =
        rules.into_iter().partition(|rule| !rule.non_resource_urls.is_empty());
    review["status"] =
        json!({"resourceRules": resources, "nonResourceRules": urls, "incomplete": incomplete});
    Ok(review)
}

/// Answers a `SelfSubjectReview`: who am I.
pub fn review_self(user: &UserInfo, mut review: Value) -> Value {
    review["status"] = json!({ "userInfo": user });
    review
}

/// Answers a `TokenReview`. `api_audiences` are the server's own.
pub async fn review_token(
    tokens: &dyn TokenAuthenticator,
    api_audiences: &[String],
    mut review: Value,
) -> Result<Value, ApiError> {
    let token = review.str_at(&["spec", "token"]).to_owned();
    if token.is_empty() {
        return Err(ApiError::bad_request("token is required for TokenReview in authentication"));
    }
    let wanted: Vec<String> =
        list(&review, &["spec", "audiences"]).iter().filter_map(|a| a.as_str().map(str::to_owned)).collect();
    review["status"] = match tokens.authenticate_token(&token, &wanted).await {
        Ok(Some(found)) => {
            let found = with_authenticated_group(found);
            let mut status = json!({"authenticated": true, "user": found.user});
            let audiences = if !found.audiences.is_empty() {
                found.audiences
            } else if wanted.is_empty() {
                api_audiences.to_vec()
            } else {
                wanted.iter().filter(|audience| api_audiences.contains(audience)).cloned().collect()
            };
            if audiences.is_empty() && !wanted.is_empty() {
                return Err(ApiError::internal("token is not valid for any of the requested audiences"));
            }
            status["audiences"] = audiences.into();
            status
        }
        Ok(None) => json!({"user": {}}),
        Err(error) => json!({"user": {}, "error": error.0}),
    };
    Ok(review)
}

fn validate(form: AccessReview, namespace: &str, review: &Value) -> Vec<FieldError> {
    let spec = FieldPath::root("spec");
    let present = |field: &str| review.at(&["spec", field]).is_some_and(|value| !value.is_null());
    let resource = present("resourceAttributes");
    let path = present("nonResourceAttributes");
    let mut errors = Vec::new();
    if resource && path {
        let why = "cannot be specified in combination with resourceAttributes";
        errors.push(FieldError::invalid(&spec.child("nonResourceAttributes"), Value::Null, why));
    }
    if !resource && !path {
        let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        errors.push(FieldError::invalid(&spec.child("resourceAttributes"), Value::Null, why));
    }
    if form != AccessReview::SelfSubject
        && review.str_at(&["spec", "user"]).is_empty()
        && list(review, &["spec", "groups"]).is_empty()
    {
        let why = "at least one of user or group must be specified";
        errors.push(FieldError::invalid(&spec.child("user"), "", why));
    }
    if form == AccessReview::LocalSubject {
        let own = review.str_at(&["spec", "resourceAttributes", "namespace"]);
        if resource && own != namespace {
            let field = spec.child("resourceAttributes").child("namespace");
            errors.push(FieldError::invalid(&field, own, "must match metadata.namespace"));
        }
        if path {
            let why = "disallowed on this kind of request";
            errors.push(FieldError::invalid(&spec.child("nonResourceAttributes"), Value::Null, why));
        }
    }
    errors
}

fn subject_of(review: &Value) -> UserInfo {
    let strings = |value: &Value| -> Vec<String> {
        let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
    };
    let extra = review.at(&["spec", "extra"]).and_then(Value::as_object);
    UserInfo {
        username: review.str_at(&["spec", "user"]).to_owned(),
        uid: review.str_at(&["spec", "uid"]).to_owned(),
        groups: review.at(&["spec", "groups"]).map(strings).unwrap_or_default(),
        extra: extra
            .map(|extra| extra.iter().map(|(key, values)| (key.clone(), strings(values))).collect())
            .unwrap_or_default(),
    }
}

fn attributes_of(review: &Value, user: Arc<UserInfo>) -> Attributes {
    if let Some(resource) = review.at(&["spec", "resourceAttributes"]).filter(|value| !value.is_null()) {
        let field = |name: &str| resource.str_at(&[name]).to_owned();
        return Attributes {
            user,
            verb: field("verb"),
            resource_request: true,
            api_group: field("group"),
            api_version: field("version"),
            resource: field("resource"),
            subresource: field("subresource"),
            namespace: field("namespace"),
            name: field("name"),
            label_selector: selector(resource.get("labelSelector")),
            field_selector: selector(resource.get("fieldSelector")),
            ..Attributes::default()
        };
    }
    let field = |name: &str| review.str_at(&["spec", "nonResourceAttributes", name]).to_owned();
    Attributes { user, verb: field("verb"), path: field("path"), ..Attributes::default() }
}

/// A selector in either form it may be given in, as the text of a query parameter.
fn selector(value: Option<&Value>) -> String {
    let Some(value) = value else { return String::new() };
    let raw = value.str_at(&["rawSelector"]);
    if !raw.is_empty() {
        return raw.to_owned();
    }
    let requirements = list(value, &["requirements"]).iter().filter_map(|requirement| {
        let key = requirement.str_at(&["key"]);
        let values: Vec<&str> = list(requirement, &["values"]).iter().filter_map(Value::as_str).collect();
        match (requirement.str_at(&["operator"]), values.as_slice()) {
            ("In", [one]) => Some(format!("{key}={one}")),
            ("NotIn", [one]) => Some(format!("{key}!={one}")),
            ("In", many) => Some(format!("{key} in ({})", many.join(","))),
            ("NotIn", many) => Some(format!("{key} notin ({})", many.join(","))),
            ("Exists", _) => Some(key.to_owned()),
            ("DoesNotExist", _) => Some(format!("!{key}")),
            _ => None,
        }
    });
    requirements.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn::static_tokens::StaticTokens;
    use crate::authz::rbac::Rbac;
    use crate::testing::FakeObjects;

    fn rbac() -> Rbac {
        Rbac::new(FakeObjects::with(&[
            (
                "clusterroles.rbac.authorization.k8s.io",
                json!({"metadata": {"name": "r"}, "rules": [
                    {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]},
                    {"verbs": ["get"], "nonResourceURLs": ["/version"]},
                ]}),
            ),
            (
                "clusterrolebindings.rbac.authorization.k8s.io",
                json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "r"},
                       "subjects": [{"kind": "User", "name": "bob"}]}),
            ),
        ]))
    }

    async fn check(form: AccessReview, spec: Value) -> Result<Value, String> {
        let user = Arc::new(UserInfo::new("bob", &[]));
        let answer = review_access(&rbac(), form, "a", &user, json!({"spec": spec})).await;
        answer.map(|mut review| review["status"].take()).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn access_is_answered_for_others_and_oneself() {
        let pods = json!({"namespace": "a", "verb": "get", "resource": "pods"});
        let reason = r#"RBAC: allowed by ClusterRoleBinding "b" of ClusterRole "r" to User "bob""#;
        assert_eq!(
            check(AccessReview::SelfSubject, json!({"resourceAttributes": pods})).await,
            Ok(json!({"allowed": true, "reason": reason}))
        );
        let eve = json!({"user": "eve", "resourceAttributes": pods});
        assert_eq!(check(AccessReview::Subject, eve).await, Ok(json!({"allowed": false})));
        let version = json!({"user": "bob", "nonResourceAttributes": {"verb": "get", "path": "/version"}});
        assert_eq!(
            check(AccessReview::Subject, version).await,
            Ok(json!({"allowed": true, "reason": reason}))
        );
    }

    #[tokio::test]
    async fn incomplete_questions_are_refused() {
        let error = check(AccessReview::Subject, json!({})).await.unwrap_err();
        assert!(error.contains("exactly one of nonResourceAttributes or resourceAttributes"), "{error}");
        assert!(error.contains("at least one of user or group must be specified"), "{error}");
        let elsewhere = json!({"user": "bob", "resourceAttributes": {"namespace": "b"}});
        let error = check(AccessReview::LocalSubject, elsewhere).await.unwrap_err();
        assert!(error.contains(
            "spec.resourceAttributes.namespace: Invalid value: \"b\": must match metadata.namespace"
        ));
    }

    #[tokio::test]
    async fn rules_are_split_by_kind() {
        let review = review_rules(&rbac(), &UserInfo::new("bob", &[]), json!({"spec": {"namespace": "a"}}))
            .await
            .unwrap();
        assert_eq!(
            review["status"],
            json!({
                "resourceRules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}],
                "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/version"]}],
                "incomplete": false,
            })
        );
    }

    #[tokio::test]
    async fn tokens_are_reviewed() {
        let tokens = StaticTokens::parse("secret,alice,1").unwrap();
        let audiences = ["api".to_owned()];
        let good = review_token(&tokens, &audiences, json!({"spec": {"token": "secret"}})).await.unwrap();
        assert_eq!(good["status"]["authenticated"], true);
        assert_eq!(good["status"]["user"]["groups"], json!(["system:authenticated"]));
        let bad = review_token(&tokens, &audiences, json!({"spec": {"token": "wrong"}})).await.unwrap();
        assert_eq!(bad["status"], json!({"user": {}}));
        assert_eq!(review_token(&tokens, &audiences, json!({})).await.unwrap_err().code(), 400);
    }
}
