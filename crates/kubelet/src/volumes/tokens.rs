//! Service account tokens by `TokenRequest`, bound to their pod, kept until they want renewal.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ServiceAccount, ServiceAccountTokenProjection};
use kube::api::PostParams;

use super::VolumeError;
use super::atomic::ProjectedFile;
use super::payload::mode;
use crate::api::{Api, ApiError};
use crate::pod::model::PodModel;

const DEFAULT_EXPIRATION_SECONDS: i64 = 3600;
const LONGEST_USE: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Clone)]
struct Token {
    text: String,
    renew_at: Timestamp,
}

/// Pod uid, then file path and audience.
type Key = (String, String, String);

#[derive(Debug)]
pub(crate) struct Tokens {
    api: Api,
    cache: Mutex<BTreeMap<Key, Token>>,
}

impl Tokens {
    pub(crate) fn new(api: Api) -> Self {
        Self { api, cache: Mutex::default() }
    }

    /// The token's file, and when to ask for the next one.
    pub(crate) async fn file(
        &self,
        model: &PodModel,
        projection: &ServiceAccountTokenProjection,
        default_mode: i32,
        now: Timestamp,
    ) -> Result<(ProjectedFile, Timestamp), VolumeError> {
        let audience = projection.audience.clone().unwrap_or_default();
        let key = (model.uid.clone(), projection.path.clone(), audience.clone());
        let cached = self.cache.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let token = match cached.filter(|token| token.renew_at > now) {
            Some(token) => token,
            None => {
                let token = self.request(model, projection, audience, now).await?;
                self.cache.lock().unwrap_or_else(PoisonError::into_inner).insert(key, token.clone());
                token
            }
        };
        let owner = common_user(model);
        let private = owner.is_some() || super::fs_group(model).is_some();
        let mode = if private { 0o600 } else { mode(default_mode) };
        Ok((ProjectedFile { data: token.text.into_bytes(), mode, owner }, token.renew_at))
    }

    async fn request(
        &self,
        model: &PodModel,
        projection: &ServiceAccountTokenProjection,
        audience: String,
        now: Timestamp,
    ) -> Result<Token, VolumeError> {
        let account =
            model.spec.service_account_name.as_deref().filter(|n| !n.is_empty()).unwrap_or("default");
        let seconds = projection.expiration_seconds.unwrap_or(DEFAULT_EXPIRATION_SECONDS);
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(vec![audience]).filter(|a| !a[0].is_empty()),
                expiration_seconds: Some(seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(model.name.clone()),
                    uid: Some(model.uid.clone()),
                }),
            }),
            ..TokenRequest::default()
        };
        let api = self.api.namespaced::<ServiceAccount>(&model.namespace)?;
        let answer = api.create_token_request(account, &PostParams::default(), &request).await;
        let answer = answer.map_err(|e| ApiError::call("create", format!("token for {account}"), e))?;
        let status = answer.status.unwrap_or_default();
        let life = status.expiration_timestamp.map_or(now, |t| t.0).duration_since(now).unsigned_abs();
        let use_for = (life * 4 / 5).min(LONGEST_USE);
        Ok(Token { text: status.token.unwrap_or_default(), renew_at: now + use_for })
    }

    pub(crate) fn forget(&self, uid: &str) {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).retain(|(owner, _, _), _| owner != uid);
    }
}

/// The one user all containers run as, if there is one.
fn common_user(model: &PodModel) -> Option<u32> {
    let pod = model.spec.security_context.as_ref().and_then(|s| s.run_as_user);
    let mut users =
        model.containers.iter().map(|c| c.spec.security_context.as_ref().and_then(|s| s.run_as_user).or(pod));
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok())?
}
