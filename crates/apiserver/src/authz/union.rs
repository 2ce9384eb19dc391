//! Several authorizers in the order of `--authorization-mode`: the first with an opinion decides.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use super::{Authorizer, Decision, Rule};
use crate::attributes::{Attributes, UserInfo};
use crate::authn::PRIVILEGED_GROUP;

/// Asks in order; members of `system:masters` are always allowed, whatever the modes are.
pub struct AuthorizerUnion(pub Vec<Arc<dyn Authorizer>>);

/// `AlwaysAllow`.
#[derive(Debug)]
pub struct AlwaysAllow;

/// `AlwaysDeny`.
#[derive(Debug)]
pub struct AlwaysDeny;

impl fmt::Debug for AuthorizerUnion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AuthorizerUnion").field(&self.0.len()).finish()
    }
}

#[async_trait]
impl Authorizer for AuthorizerUnion {
    async fn authorize(&self, attributes: &Attributes) -> Decision {
        if attributes.user.in_group(PRIVILEGED_GROUP) {
            return Decision::Allow(String::new());
        }
        let mut reasons = Vec::new();
        for authorizer in &self.0 {
            match authorizer.authorize(attributes).await {
                Decision::NoOpinion(reason) if reason.is_empty() => {}
                Decision::NoOpinion(reason) => reasons.push(reason),
                decided => return decided,
            }
        }
        Decision::NoOpinion(reasons.join("\n"))
    }

    async fn rules_for(&self, user: &UserInfo, namespace: &str) -> (Vec<Rule>, bool) {
        let mut all = Vec::new();
        let mut incomplete = false;
        for authorizer in &self.0 {
            let (rules, partial) = authorizer.rules_for(user, namespace).await;
            all.extend(rules);
            incomplete |= partial;
        }
        (all, incomplete)
    }
}

#[async_trait]
impl Authorizer for AlwaysAllow {
    async fn authorize(&self, _attributes: &Attributes) -> Decision {
        Decision::Allow(String::new())
    }

    async fn rules_for(&self, _user: &UserInfo, _namespace: &str) -> (Vec<Rule>, bool) {
        let all = || vec!["*".to_owned()];
        let resources = Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() };
        let urls = Rule { verbs: all(), non_resource_urls: all(), ..Rule::default() };
        (vec![resources, urls], false)
    }
}

#[async_trait]
impl Authorizer for AlwaysDeny {
    async fn authorize(&self, _attributes: &Attributes) -> Decision {
        Decision::NoOpinion("Everything is forbidden.".to_owned())
    }

    async fn rules_for(&self, _user: &UserInfo, _namespace: &str) -> (Vec<Rule>, bool) {
        (Vec::new(), false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(groups: &[&str]) -> Attributes {
        Attributes { user: Arc::new(UserInfo::new("alice", groups)), ..Attributes::default() }
    }

    #[tokio::test]
    async fn the_first_opinion_counts_and_masters_always_pass() {
        let deny: Arc<dyn Authorizer> = Arc::new(AlwaysDeny);
        let allow: Arc<dyn Authorizer> = Arc::new(AlwaysAllow);
        let denied = AuthorizerUnion(vec![deny.clone()]).authorize(&ask(&[])).await;
        assert_eq!(denied, Decision::NoOpinion("Everything is forbidden.".to_owned()));
        assert!(AuthorizerUnion(vec![deny.clone(), allow]).authorize(&ask(&[])).await.is_allowed());
        assert!(AuthorizerUnion(vec![deny]).authorize(&ask(&[PRIVILEGED_GROUP])).await.is_allowed());
    }
}
