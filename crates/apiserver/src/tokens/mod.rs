//! Service account tokens: their claims, how they are issued (`TokenRequest`), and the documents that let others
//! verify them. How they are checked is in [`crate::authn::service_account`].

pub mod keys;

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use meta::field::{FieldError, FieldPath};
use meta::names::{GroupResource, GroupVersion, GroupVersionKind};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::keys::{PublicKey, SigningKey};
use crate::objects::{ObjectExt as _, Objects};
use crate::status::ApiError;

/// What a token asks for when it says nothing.
const DEFAULT_EXPIRATION_SECONDS: i64 = 3600;
const MIN_EXPIRATION_SECONDS: i64 = 600;
const MAX_EXPIRATION_SECONDS: i64 = 1 << 32;
/// A kubelet asks for exactly this much for the token it mounts into every pod; such tokens live longer than they
/// say, so that clients that never read the file again keep working.
const EXTENDED_REQUEST_SECONDS: i64 = 3607;
const EXTENDED_SECONDS: i64 = 365 * 24 * 3600;

/// Everything about tokens that the server was started with.
#[derive(Debug, Clone)]
pub struct TokenConfig {
    /// The first one is put into tokens; all are accepted.
    pub issuers: Vec<String>,
    /// Audiences of this server; also those of a token that asks for none.
    pub api_audiences: Vec<String>,
    pub jwks_uri: String,
    pub signing_key: Option<Arc<SigningKey>>,
    /// Keys tokens are verified with.
    pub public_keys: Vec<Arc<PublicKey>>,
    pub max_expiration: Option<SignedDuration>,
    pub extend_expiration: bool,
}

/// The claims of a bound token.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Claims {
    #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub aud: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exp: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iat: Option<i64>,
    pub iss: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub jti: String,
    #[serde(rename = "kubernetes.io", skip_serializing_if = "Option::is_none")]
    pub private: Option<PrivateClaims>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nbf: Option<i64>,
    pub sub: String,
}

/// Whom and what a token is bound to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PrivateClaims {
    pub namespace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<BoundRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<BoundRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<BoundRef>,
    pub serviceaccount: BoundRef,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

/// One object a token depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BoundRef {
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// Answers `create serviceaccounts/<name>/token`. `request` is the defaulted or bare `TokenRequest`; the answer is
/// the same object with `status`.
pub fn issue(
    config: &TokenConfig,
    objects: &dyn Objects,
    namespace: &str,
    name: &str,
    mut request: Value,
    now: Timestamp,
) -> Result<Value, ApiError> {
    let account = objects
        .get(&GroupResource::new("", "serviceaccounts"), namespace, name)
        .ok_or_else(|| ApiError::not_found(&GroupResource::new("", "serviceaccounts"), name))?;
    check_names(&request, namespace, name)?;
    let Some(signing_key) = &config.signing_key else {
        return Err(ApiError::new(404, "NotFound", "the server could not find the requested resource", None));
    };
    let mut seconds = expiration_seconds(&request, name)?;
    if let Some(max) = config.max_expiration {
        seconds = seconds.min(max.as_secs());
    }
    let mut audiences = strings(request.at(&["spec", "audiences"]));
    if audiences.is_empty() {
        audiences.clone_from(&config.api_audiences);
    }
    let mut private = PrivateClaims {
        namespace: namespace.to_owned(),
        serviceaccount: BoundRef { name: name.to_owned(), uid: account.uid().to_owned() },
        ..PrivateClaims::default()
    };
    bind(&mut private, objects, &request)?;
    let extended = config.extend_expiration
        && seconds == EXTENDED_REQUEST_SECONDS
        && private.pod.is_some()
        && audiences.iter().any(|audience| config.api_audiences.contains(audience));
    let issued = now.as_second();
    if extended {
        private.warnafter = Some(issued + seconds);
    }
    let claims = Claims {
        aud: audiences.clone(),
        exp: Some(issued + if extended { EXTENDED_SECONDS } else { seconds }),
        iat: Some(issued),
        iss: config.issuers.first().cloned().unwrap_or_default(),
        jti: uuid::Uuid::new_v4().to_string(),
        private: Some(private),
        nbf: Some(issued),
        sub: format!("{}{namespace}:{name}", crate::authn::SERVICE_ACCOUNT_USER_PREFIX),
    };
    let token = signing_key.sign(&claims).map_err(ApiError::internal)?;
    let expires = Timestamp::from_second(issued + seconds).map_err(ApiError::internal)?;
    request["apiVersion"] = "authentication.k8s.io/v1".into();
    request["kind"] = "TokenRequest".into();
    let metadata = request.metadata_mut();
    metadata.insert("name".to_owned(), name.into());
    metadata.insert("namespace".to_owned(), namespace.into());
    metadata.insert("creationTimestamp".to_owned(), meta::time::format(now).into());
    if !request["spec"].is_object() {
        request["spec"] = json!({});
    }
    request["spec"]["audiences"] = audiences.into();
    request["spec"]["expirationSeconds"] = seconds.into();
    if request["spec"].get("boundObjectRef").is_none() {
        request["spec"]["boundObjectRef"] = Value::Null;
    }
    request["status"] = json!({"token": token, "expirationTimestamp": meta::time::format(expires)});
    Ok(request)
}

/// `/openid/v1/jwks`.
pub fn key_set(config: &TokenConfig) -> Value {
    let keys: Vec<&Value> = config.public_keys.iter().map(|key| key.document()).collect();
    json!({ "keys": keys })
}

/// `/.well-known/openid-configuration`.
pub fn discovery_document(config: &TokenConfig) -> Value {
    let mut algorithms: Vec<&str> = config.public_keys.iter().map(|key| key.algorithm_name()).collect();
    algorithms.sort_unstable();
    algorithms.dedup();
    json!({
        "issuer": config.issuers.first(),
        "jwks_uri": config.jwks_uri,
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": algorithms,
    })
}

fn check_names(request: &Value, namespace: &str, name: &str) -> Result<(), ApiError> {
    if !request.name().is_empty() && request.name() != name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({name})",
            request.name()
        )));
    }
    if !request.namespace().is_empty() && request.namespace() != namespace {
        return Err(ApiError::bad_request(format!(
            "the namespace of the object ({}) does not match the namespace on the request ({namespace})",
            request.namespace()
        )));
    }
    Ok(())
}

fn expiration_seconds(request: &Value, name: &str) -> Result<i64, ApiError> {
    let seconds = request
        .at(&["spec", "expirationSeconds"])
        .and_then(Value::as_i64)
        .unwrap_or(DEFAULT_EXPIRATION_SECONDS);
    let detail = if seconds < MIN_EXPIRATION_SECONDS {
        "may not specify a duration less than 10 minutes"
    } else if seconds > MAX_EXPIRATION_SECONDS {
        "may not specify a duration larger than 2^32 seconds"
    } else {
        return Ok(seconds);
    };
    let path = FieldPath::root("spec").child("expirationSeconds");
    let kind = GroupVersionKind::new("authentication.k8s.io", "v1", "TokenRequest");
    Err(ApiError::invalid(&kind, name, &[FieldError::invalid(&path, seconds, detail)]))
}

/// Binds the token to the object the request names, which must be live.
fn bind(claims: &mut PrivateClaims, objects: &dyn Objects, request: &Value) -> Result<(), ApiError> {
    let Some(reference) = request.at(&["spec", "boundObjectRef"]).filter(|reference| !reference.is_null())
    else {
        return Ok(());
    };
    let kind = reference.str_at(&["kind"]);
    let api_version = reference.str_at(&["apiVersion"]);
    let (resource, namespace) = match (api_version, kind) {
        ("v1", "Pod") => ("pods", claims.namespace.as_str()),
        ("v1", "Secret") => ("secrets", claims.namespace.as_str()),
        ("v1", "Node") => ("nodes", ""),
        _ => {
            let version = GroupVersion::parse(api_version).unwrap_or_default();
            let kind = GroupVersionKind::new(version.group, version.version, kind.to_owned());
            return Err(ApiError::bad_request(format!("cannot bind token to object of type {kind}")));
        }
    };
    let (name, uid) = (reference.str_at(&["name"]), reference.str_at(&["uid"]));
    let resource = GroupResource::new("", resource);
    let object =
        objects.get(&resource, namespace, name).ok_or_else(|| ApiError::not_found(&resource, name))?;
    if !uid.is_empty() && uid != object.uid() {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. \
             The object might have been deleted and then recreated"
        );
        return Err(ApiError::conflict(&GroupResource::new("", kind.to_owned()), name, &why));
    }
    let bound = BoundRef { name: name.to_owned(), uid: object.uid().to_owned() };
    match kind {
        "Pod" => {
            if object.str_at(&["spec", "serviceAccountName"]) != claims.serviceaccount.name {
                return Err(ApiError::bad_request(format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    claims.serviceaccount.name
                )));
            }
            claims.pod = Some(bound);
            claims.node = node_of(objects, &object);
        }
        "Secret" => claims.secret = Some(bound),
        _ => claims.node = Some(bound),
    }
    Ok(())
}

fn node_of(objects: &dyn Objects, pod: &Value) -> Option<BoundRef> {
    let name = pod.str_at(&["spec", "nodeName"]);
    if name.is_empty() {
        return None;
    }
    let node = objects.get(&GroupResource::new("", "nodes"), "", name);
    let uid = node.map(|node| node.uid().to_owned()).unwrap_or_default();
    Some(BoundRef { name: name.to_owned(), uid })
}

fn strings(value: Option<&Value>) -> Vec<String> {
    let list = value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(audience) => vec![audience],
        OneOrMany::Many(audiences) => audiences,
    })
}
