//! `Impersonate-*` headers: acting as somebody else, if each part of that identity may be impersonated.

use std::sync::Arc;

use http::HeaderMap;

use super::request_header::{all, extras};
use super::{
    ALL_AUTHENTICATED, ALL_UNAUTHENTICATED, ANONYMOUS, service_account_groups, service_account_identity,
};
use crate::attributes::{Attributes, UserInfo};
use crate::authz::{Authorizer, Decision, forbidden};
use crate::status::ApiError;

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA_PREFIX: &str = "impersonate-extra-";
const AUTHENTICATION_GROUP: &str = "authentication.k8s.io";

/// Whom the request acts as; `None` when it carries no impersonation header.
pub async fn impersonate(
    user: &Arc<UserInfo>,
    path: &str,
    headers: &HeaderMap,
    authorizer: &dyn Authorizer,
) -> Result<Option<Arc<UserInfo>>, ApiError> {
    // Every request passes here: nothing is built unless a header says so.
    if !headers.keys().any(|name| name.as_str().starts_with("impersonate-")) {
        return Ok(None);
    }
    let username = headers.get(USER).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let mut target = UserInfo {
        uid: headers.get(UID).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned(),
        groups: all(headers, GROUP),
        extra: extras(headers, EXTRA_PREFIX).into_iter().collect(),
        username,
    };
    if target.username.is_empty() {
        if target.groups.is_empty() && target.extra.is_empty() && target.uid.is_empty() {
            return Ok(None);
        }
        return Err(ApiError::internal("requested impersonation without impersonating a user"));
    }
    for attributes in questions(user, path, &target) {
        match authorizer.authorize(&attributes).await {
            Decision::Allow(_) => {}
            Decision::Deny(reason) | Decision::NoOpinion(reason) => {
                return Err(forbidden(&attributes, &reason));
            }
        }
    }
    if target.groups.is_empty()
        && let Some((namespace, _)) = service_account_identity(&target.username)
    {
        target.groups = service_account_groups(namespace);
    }
    if target.username == ANONYMOUS {
        if !target.in_group(ALL_UNAUTHENTICATED) {
            target.groups.push(ALL_UNAUTHENTICATED.to_owned());
        }
    } else if !target.in_group(ALL_AUTHENTICATED) && !target.in_group(ALL_UNAUTHENTICATED) {
        target.groups.push(ALL_AUTHENTICATED.to_owned());
    }
    Ok(Some(Arc::new(target)))
}

/// One `impersonate` check for each part of the identity.
fn questions(user: &Arc<UserInfo>, path: &str, target: &UserInfo) -> Vec<Attributes> {
    let ask = |group: &str, resource: &str, name: &str| Attributes {
        user: user.clone(),
        verb: "impersonate".to_owned(),
        resource_request: true,
        api_group: group.to_owned(),
        api_version: "v1".to_owned(),
        resource: resource.to_owned(),
        name: name.to_owned(),
        path: path.to_owned(),
        ..Attributes::default()
    };
    let mut questions = Vec::new();
    match service_account_identity(&target.username) {
        Some((namespace, name)) => {
            questions.push(Attributes { namespace: namespace.to_owned(), ..ask("", "serviceaccounts", name) })
        }
        None => questions.push(ask("", "users", &target.username)),
    }
    questions.extend(target.groups.iter().map(|group| ask("", "groups", group)));
    for (key, values) in &target.extra {
        questions.extend(values.iter().map(|value| Attributes {
            subresource: key.clone(),
            ..ask(AUTHENTICATION_GROUP, "userextras", value)
        }));
    }
    if !target.uid.is_empty() {
        questions.push(ask(AUTHENTICATION_GROUP, "uids", &target.uid));
    }
    questions
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::authz::Rule;

    /// Allows the listed `resource/name` pairs.
    struct Only(&'static [&'static str]);

    #[async_trait]
    impl Authorizer for Only {
        async fn authorize(&self, attributes: &Attributes) -> Decision {
            let asked = format!("{}/{}/{}", attributes.resource, attributes.namespace, attributes.name);
            if attributes.verb == "impersonate" && self.0.contains(&asked.as_str()) {
                return Decision::Allow(String::new());
            }
            Decision::NoOpinion(String::new())
        }

        async fn rules_for(&self, _user: &UserInfo, _namespace: &str) -> (Vec<Rule>, bool) {
            (Vec::new(), false)
        }
    }

    async fn check(
        allowed: &'static [&'static str],
        headers: &[(&str, &str)],
    ) -> Result<Option<UserInfo>, String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        let user = Arc::new(UserInfo::new("bob", &[]));
        impersonate(&user, "/api", &map, &Only(allowed))
            .await
            .map(|target| target.map(|target| UserInfo::clone(&target)))
            .map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn every_part_of_an_identity_needs_permission() {
        assert_eq!(check(&[], &[]).await, Ok(None));
        let target = check(&["users//alice"], &[("Impersonate-User", "alice")]).await.unwrap().unwrap();
        assert_eq!((target.username.as_str(), target.groups), ("alice", vec![ALL_AUTHENTICATED.to_owned()]));
        let both = [("Impersonate-User", "alice"), ("Impersonate-Group", "dev")];
        assert_eq!(
            check(&["users//alice"], &both).await.unwrap_err(),
            r#"groups "dev" is forbidden: User "bob" cannot impersonate resource "groups" in API group "" at the cluster scope"#
        );
        let target = check(&["users//alice", "groups//dev"], &both).await.unwrap().unwrap();
        assert_eq!(target.groups, ["dev", ALL_AUTHENTICATED]);
        let robot = [("Impersonate-User", "system:serviceaccount:a:robot")];
        let target = check(&["serviceaccounts/a/robot"], &robot).await.unwrap().unwrap();
        assert_eq!(target.groups, ["system:serviceaccounts", "system:serviceaccounts:a", ALL_AUTHENTICATED]);
        assert!(check(&[], &[("Impersonate-Group", "dev")]).await.is_err());
    }
}
