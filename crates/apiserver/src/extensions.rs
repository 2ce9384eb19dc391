//! Requests outside the stored resources: health, version, discovery, OpenAPI, tokens' issuer documents, and
//! the kinds that are answered instead of stored (reviews).

use std::sync::Arc;

use http::{Method, Response, StatusCode};
use kinds::discovery;
use kinds::spec::KindSpec;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::authn::TokenAuthenticator;
use crate::authz::reviews::{self, AccessReview};
use crate::front::body::Body;
use crate::front::negotiate::Accepted;
use crate::openapi::Documents;
use crate::registry::render::encode_plain;
use crate::server::{Call, Exchange, Server, respond};
use crate::status::ApiError;
use crate::tokens::{self, TokenConfig};

/// What the special paths need beyond the registry.
pub struct Extensions {
    pub tokens: Arc<TokenConfig>,
    pub token_authenticator: Arc<dyn TokenAuthenticator>,
    /// Set once the server has caught up with its store and its bootstrap objects are there.
    pub ready: CancellationToken,
    /// Set when the server begins to stop: `/readyz` fails first, so that balancers look elsewhere.
    pub stopping: CancellationToken,
    pub version: Version,
    pub documents: Documents,
    /// Where clients outside reach the server, `host:port`.
    pub advertised: String,
}

/// `/version`.
#[derive(Debug, Clone)]
pub struct Version {
    pub major: &'static str,
    pub minor: &'static str,
    pub git_version: String,
}

impl Extensions {
    pub(crate) async fn non_resource(
        &self,
        server: &Arc<Server>,
        call: Call,
    ) -> Result<Response<Body>, ApiError> {
        if !matches!(call.parts.method, Method::GET | Method::HEAD) {
            return Err(ApiError::method_not_allowed());
        }
        let path = call.parts.uri.path().trim_end_matches('/').to_owned();
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        match segments.as_slice() {
            ["healthz" | "livez" | "readyz", rest @ ..] => Ok(self.health(segments[0], rest, &call)),
            ["version"] => Ok(json_answer(&self.version.document())),
            ["api" | "apis", ..] => self.discovery(server, &call, &segments),
            ["openapi", rest @ ..] => {
                let catalog = server.registry.catalog();
                let answer = self.documents.answer(&catalog, rest, &call.parts.headers);
                Ok(answer.unwrap_or_else(not_found))
            }
            [".well-known", "openid-configuration"] => {
                Ok(json_answer(&tokens::discovery_document(&self.tokens)))
            }
            ["openid", "v1", "jwks"] => {
                let keys = tokens::key_set(&self.tokens).to_string();
                Ok(respond(StatusCode::OK, "application/jwk-set+json", Body::whole(keys)))
            }
            [] | [""] => Ok(json_answer(&json!({ "paths": PATHS }))),
            _ => Ok(not_found()),
        }
    }

    /// A resource path that names nothing served.
    pub(crate) async fn unknown_resource<B>(
        &self,
        _server: &Arc<Server>,
        call: Call,
        _body: B,
    ) -> Result<Response<Body>, ApiError> {
        tracing::trace!(path = call.parts.uri.path(), "no such resource");
        Err(ApiError::path_not_found())
    }

    /// Answers a kind that is not stored.
    pub(crate) async fn review(&self, exchange: &Exchange<'_>, object: Value) -> Result<Value, ApiError> {
        let (path, user) = (&exchange.call.path, &exchange.call.user);
        let authorizer = exchange.server.authorizer.as_ref();
        let namespace = path.namespace.as_str();
        let access = |form, object| reviews::review_access(authorizer, form, namespace, user, object);
        match &*exchange.target.name().resource {
            "subjectaccessreviews" => access(AccessReview::Subject, object).await,
            "selfsubjectaccessreviews" => access(AccessReview::SelfSubject, object).await,
            "localsubjectaccessreviews" => access(AccessReview::LocalSubject, object).await,
            "selfsubjectrulesreviews" => reviews::review_rules(authorizer, user, object).await,
            "selfsubjectreviews" => Ok(reviews::review_self(user, object)),
            "tokenreviews" => {
                let audiences = &self.tokens.api_audiences;
                reviews::review_token(self.token_authenticator.as_ref(), audiences, object).await
            }
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    /// Answers a `TokenRequest`.
    pub(crate) fn token(&self, exchange: &Exchange<'_>, request: Value) -> Result<Value, ApiError> {
        let (path, registry) = (&exchange.call.path, &exchange.server.registry);
        tokens::issue(&self.tokens, registry.as_ref(), &path.namespace, &path.name, request, registry.now())
    }

    fn health(&self, endpoint: &str, rest: &[&str], call: &Call) -> Response<Body> {
        let mut checks: Vec<(&str, bool)> = vec![("ping", true), ("log", true), ("etcd", true)];
        let ready = self.ready.is_cancelled();
        if endpoint != "livez" {
            checks.push(("informer-sync", ready));
            checks.push(("poststarthook/rbac/bootstrap-roles", ready));
        }
        if endpoint == "readyz" {
            checks.push(("shutdown", !self.stopping.is_cancelled()));
        }
        if let [one, ..] = rest {
            let name = rest.join("/");
            return match checks.iter().find(|(own, _)| *own == name) {
                Some((_, true)) => text(StatusCode::OK, "ok".to_owned()),
                Some((_, false)) => text(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    format!("internal server error: {one} not ready\n"),
                ),
                None => not_found(),
            };
        }
        let query = call.parts.uri.query().unwrap_or_default();
        checks.retain(|(name, _)| !query.split('&').any(|pair| pair == format!("exclude={name}")));
        let failed = checks.iter().any(|(_, good)| !good);
        if !failed && !query.contains("verbose") {
            return text(StatusCode::OK, "ok".to_owned());
        }
        let mut report = String::new();
        for (name, good) in checks {
            let line =
                if good { format!("[+]{name} ok\n") } else { format!("[-]{name} failed: reason withheld\n") };
            report.push_str(&line);
        }
        if failed {
            report.push_str(&format!("{endpoint} check failed\n"));
            return text(StatusCode::INTERNAL_SERVER_ERROR, report);
        }
        report.push_str(&format!("{endpoint} check passed\n"));
        text(StatusCode::OK, report)
    }

    fn discovery(
        &self,
        server: &Arc<Server>,
        call: &Call,
        segments: &[&str],
    ) -> Result<Response<Body>, ApiError> {
        let catalog = server.registry.catalog();
        let specs: Vec<&KindSpec> = catalog.iter().map(|resource| &*resource.spec).collect();
        let entries = discovery::group_entries(&specs);
        if segments.len() == 1
            && let Some(version) = wants_aggregated(call)
        {
            let own = entries.iter().filter(|entry| entry.name.is_empty() == (segments[0] == "api"));
            let items = own.map(|entry| discovery::aggregated_group(&specs, entry)).collect();
            let document = discovery::aggregated_list(&format!("apidiscovery.k8s.io/{version}"), items);
            return Ok(aggregated_answer(call, &document, version));
        }
        let document = match segments {
            ["api"] => Some(discovery::api_versions(&self.advertised)),
            ["api", version] => discovery::resource_list(&specs, "", version),
            ["apis"] => {
                let groups: Vec<_> = entries.into_iter().filter(|entry| !entry.name.is_empty()).collect();
                Some(discovery::api_group_list(&groups))
            }
            ["apis", group] => entries.iter().find(|entry| entry.name == *group).map(discovery::api_group),
            ["apis", group, version] => discovery::resource_list(&specs, group, version),
            _ => None,
        };
        let Some(document) = document else { return Ok(not_found()) };
        let accepted = Accepted::of(&call.parts.headers, false)?;
        let bytes = encode_plain(&document, accepted.encoding)?;
        Ok(respond(StatusCode::OK, accepted.encoding.media_type(), Body::whole(bytes)))
    }
}

impl Version {
    fn document(&self) -> Value {
        json!({
            "major": self.major, "minor": self.minor,
            "emulationMajor": self.major, "emulationMinor": self.minor,
            "minCompatibilityMajor": self.major, "minCompatibilityMinor": "35",
            "gitVersion": self.git_version, "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
            "goVersion": "none", "compiler": "rustc", "platform": "linux/amd64",
        })
    }
}

const PATHS: [&str; 12] = [
    "/.well-known/openid-configuration",
    "/api",
    "/api/v1",
    "/apis",
    "/healthz",
    "/livez",
    "/metrics",
    "/openapi/v2",
    "/openapi/v3",
    "/openid/v1/jwks",
    "/readyz",
    "/version",
];

/// The version of aggregated discovery the client prefers to the plain one.
fn wants_aggregated(call: &Call) -> Option<&'static str> {
    let accept = call.parts.headers.get(http::header::ACCEPT)?.to_str().ok()?;
    let first = accept.split(',').map(str::trim).find(|clause| clause.starts_with("application/json"))?;
    if !first.contains("as=APIGroupDiscoveryList") {
        return None;
    }
    if first.contains("v=v2beta1") { Some("v2beta1") } else { Some("v2") }
}

fn aggregated_answer(call: &Call, document: &Value, version: &str) -> Response<Body> {
    use sha2::Digest as _;
    let bytes = document.to_string();
    let tag = format!("\"{}\"", hex::encode_upper(sha2::Sha512::digest(bytes.as_bytes())));
    let known = call.parts.headers.get(http::header::IF_NONE_MATCH).and_then(|own| own.to_str().ok());
    let mut response = if known == Some(tag.as_str()) {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        let mut response = Response::new(Body::whole(bytes));
        let media_type =
            format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
        if let Ok(value) = media_type.parse() {
            response.headers_mut().insert(http::header::CONTENT_TYPE, value);
        }
        response
    };
    if let Ok(value) = tag.parse() {
        response.headers_mut().insert(http::header::ETAG, value);
    }
    response.headers_mut().insert(http::header::VARY, http::HeaderValue::from_static("Accept"));
    response
}

fn json_answer(document: &Value) -> Response<Body> {
    respond(StatusCode::OK, "application/json", Body::whole(document.to_string()))
}

fn text(status: StatusCode, body: String) -> Response<Body> {
    let mut response = respond(status, "text/plain; charset=utf-8", Body::whole(body));
    let nosniff = http::HeaderValue::from_static("nosniff");
    response.headers_mut().insert("x-content-type-options", nosniff);
    response
}

fn not_found() -> Response<Body> {
    text(StatusCode::NOT_FOUND, "404 page not found\n".to_owned())
}

impl std::fmt::Debug for Extensions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Extensions").field("version", &self.version).finish_non_exhaustive()
    }
}
