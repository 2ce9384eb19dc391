//! The pipeline of one request: who, whether, what, then the verb.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, USER_AGENT, WARNING};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use serde_json::Value;

use crate::attributes::{Attributes, UserInfo};
use crate::authn::{Authenticator, Peer};
use crate::authz::{Authorizer, Decision};
use crate::front::body::Body;
use crate::front::negotiate::{Accepted, Encoding};
use crate::front::options::Options;
use crate::front::path::RequestPath;
use crate::registry::Registry;
use crate::registry::patch::PatchType;
use crate::registry::render::{ListBody, Renderer, encode_plain};
use crate::registry::write::{Outcome, Write, Written};
use crate::status::ApiError;

/// Upstream's limit of a request body.
const MAX_BODY: usize = 3 << 20;
/// Upstream's `--request-timeout`.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Everything a request needs.
pub struct Server {
    pub registry: Arc<Registry>,
    pub authenticator: Arc<dyn Authenticator>,
    pub authorizer: Arc<dyn Authorizer>,
    pub extensions: crate::extensions::Extensions,
    pub connector: crate::connect::Connector,
}

/// A request that has been understood.
pub(crate) struct Call {
    pub path: RequestPath,
    pub options: Options,
    pub user: Arc<UserInfo>,
    pub parts: Parts,
}

impl Server {
    /// Answers one request; never fails, refusals are answers.
    pub async fn handle<B>(self: &Arc<Self>, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let (parts, body) = request.into_parts();
        let accept = parts.headers.clone();
        let is_head = parts.method == Method::HEAD;
        let mut response = match self.answer(parts, body).await {
            Ok(response) => response,
            Err(error) => refusal(&error, &accept),
        };
        response.headers_mut().insert("audit-id", audit_id());
        response.headers_mut().entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
        if is_head {
            *response.body_mut() = Body::empty();
        }
        response
    }

    async fn answer<B>(self: &Arc<Self>, parts: Parts, body: B) -> Result<Response<Body>, ApiError>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let options = Options::parse(parts.uri.query().unwrap_or_default())?;
        let path =
            RequestPath::parse(&parts.method, parts.uri.path(), options.watch, options.selected_name());
        let user = self.authenticate(&parts).await?;
        let user = match crate::authn::impersonation::impersonate(
            &user,
            parts.uri.path(),
            &parts.headers,
            self.authorizer.as_ref(),
        )
        .await?
        {
            Some(other) => other,
            None => user,
        };
        self.authorize(&user, &path, &options, &parts).await?;
        let call = Call { path, options, user, parts };
        if !call.path.resource_request {
            return self.extensions.non_resource(self, call).await;
        }
        let work = self.resource(call, body);
        // Watches and connections have limits of their own; what a timeout covers is the work before the answer.
        match tokio::time::timeout(REQUEST_TIMEOUT, work).await {
            Ok(answer) => answer,
            Err(_) => Err(ApiError::timeout("request did not complete within the allotted timeout")),
        }
    }

    async fn authenticate(&self, parts: &Parts) -> Result<Arc<UserInfo>, ApiError> {
        let nobody = Peer::default();
        let peer = parts.extensions.get::<Peer>().unwrap_or(&nobody);
        match self.authenticator.authenticate(parts, peer).await {
            Ok(Some(authenticated)) => Ok(Arc::new(authenticated.user)),
            Ok(None) => Err(ApiError::unauthorized()),
            Err(error) => {
                tracing::debug!(%error, "authentication failed");
                Err(ApiError::unauthorized())
            }
        }
    }

    async fn authorize(
        &self,
        user: &Arc<UserInfo>,
        path: &RequestPath,
        options: &Options,
        parts: &Parts,
    ) -> Result<(), ApiError> {
        let attributes = Attributes {
            user: Arc::clone(user),
            verb: path.verb.clone(),
            resource_request: path.resource_request,
            api_group: path.group.clone(),
            api_version: path.version.clone(),
            resource: path.resource.clone(),
            subresource: path.subresource.clone(),
            namespace: path.namespace.clone(),
            name: path.name.clone(),
            path: parts.uri.path().to_owned(),
            label_selector: options.label_selector.clone(),
            field_selector: options.field_selector.clone(),
        };
        match self.authorizer.authorize(&attributes).await {
            Decision::Allow(_) => Ok(()),
            Decision::Deny(reason) | Decision::NoOpinion(reason) => {
                Err(crate::authz::forbidden(&attributes, &reason))
            }
        }
    }

    async fn resource<B>(self: &Arc<Self>, call: Call, body: B) -> Result<Response<Body>, ApiError>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let path = &call.path;
        let catalog = self.registry.catalog();
        let Some(target) = catalog.find(&path.group, &path.version, &path.resource) else {
            return self.extensions.unknown_resource(self, call, body).await;
        };
        if !target.spec().namespaced && !path.namespace.is_empty() && path.resource != "namespaces" {
            return Err(ApiError::path_not_found());
        }
        if crate::connect::is_connect(&target, &path.subresource) {
            return crate::connect::connect(self, &target, call, body).await;
        }
        let accepted = Accepted::of(&call.parts.headers, true)?;
        let exchange = Exchange { server: self, call: &call, target, accepted };
        exchange.check_verb()?;
        match path.verb.as_str() {
            "get" => exchange.get().await,
            "list" => exchange.list().await,
            "watch" => exchange.watch().await,
            "create" => exchange.create(read(body).await?).await,
            "update" => exchange.update(read(body).await?).await,
            "patch" => exchange.patch(read(body).await?).await,
            "delete" => exchange.delete(read(body).await?).await,
            "deletecollection" => exchange.delete_collection(read(body).await?).await,
            _ => Err(ApiError::method_not_allowed()),
        }
    }
}

/// One request on one resource.
pub(crate) struct Exchange<'a> {
    pub server: &'a Arc<Server>,
    pub call: &'a Call,
    pub target: crate::registry::catalog::Target,
    pub accepted: Accepted,
}

impl Exchange<'_> {
    fn check_verb(&self) -> Result<(), ApiError> {
        let path = &self.call.path;
        let verbs = if path.subresource.is_empty() {
            &self.target.version().verbs
        } else {
            match self.target.subresource(&path.subresource) {
                Some(subresource) => &subresource.verbs,
                None => return Err(ApiError::path_not_found()),
            }
        };
        // A named object is watched through the list's verb.
        let allowed = verbs.iter().any(|verb| **verb == *path.verb);
        if allowed { Ok(()) } else { Err(ApiError::method_not_allowed()) }
    }

    /// The subresource exchanges another kind than the resource's own.
    fn is_foreign(&self) -> bool {
        let subresource = self.target.subresource(&self.call.path.subresource);
        subresource.is_some_and(|own| own.kind != self.target.spec().kind)
    }

    pub(crate) fn renderer(&self) -> Renderer {
        Renderer {
            target: self.target.clone(),
            accepted: self.accepted,
            include_object: self.call.options.include_object.clone(),
            now: self.server.registry.now(),
        }
    }

    /// Cluster-scoped objects are stored under no namespace, also namespaces themselves.
    fn namespace(&self) -> &str {
        if self.target.spec().namespaced { &self.call.path.namespace } else { "" }
    }

    pub(crate) fn write(&self) -> Write {
        let options = &self.call.options;
        let agent = self.call.parts.headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok());
        let manager = if options.field_manager.is_empty() {
            agent.unwrap_or_default().split('/').next().unwrap_or_default().to_owned()
        } else {
            options.field_manager.clone()
        };
        Write {
            target: self.target.clone(),
            subresource: self.call.path.subresource.clone(),
            namespace: self.namespace().to_owned(),
            name: self.call.path.name.clone(),
            user: Arc::clone(&self.call.user),
            options: options.clone(),
            manager: if manager.is_empty() { "unknown".to_owned() } else { manager },
            applied: false,
        }
    }

    async fn get(&self) -> Result<Response<Body>, ApiError> {
        let path = &self.call.path;
        if self.is_foreign() {
            return crate::registry::subresources::get(self).await;
        }
        let version = &self.call.options.resource_version;
        let object = self.server.registry.get(&self.target, self.namespace(), &path.name, version).await?;
        Ok(self.respond(StatusCode::OK, self.renderer().object(&object)?))
    }

    async fn list(&self) -> Result<Response<Body>, ApiError> {
        let options = &self.call.options;
        let selection = crate::registry::selection::Selection::new(&self.target, self.namespace(), options)?;
        let page = self.server.registry.list(&self.target, &selection, options).await?;
        self.respond_list(page)
    }

    fn respond_list(&self, page: crate::registry::list::Page) -> Result<Response<Body>, ApiError> {
        let body = match self.renderer().list(page)? {
            ListBody::Whole(bytes) => Body::whole(bytes),
            ListBody::Chunks(chunks) => Body::Chunks(Box::new(chunks)),
        };
        Ok(respond(StatusCode::OK, self.accepted.encoding.media_type(), body))
    }

    async fn watch(&self) -> Result<Response<Body>, ApiError> {
        let options = &self.call.options;
        let mut selection =
            crate::registry::selection::Selection::new(&self.target, self.namespace(), options)?;
        if !self.call.path.name.is_empty() {
            selection = selection.and_name(&self.call.path.name);
        }
        let stream = self.server.registry.watch(&self.target, selection, options, self.renderer()).await?;
        let media_type = match self.accepted.encoding {
            Encoding::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
            Encoding::Json | Encoding::Yaml => "application/json",
        };
        Ok(respond(StatusCode::OK, media_type, Body::Stream(Box::pin(stream))))
    }

    async fn create(&self, body: Bytes) -> Result<Response<Body>, ApiError> {
        self.check_dry_run()?;
        if !self.call.path.subresource.is_empty() {
            return crate::registry::subresources::create(self, body).await;
        }
        let (object, mut problems) = crate::front::decode::object(self, &body, self.target.schema())?;
        if self.target.resource.mirror.is_none() {
            let answer = self.server.extensions.review(self, object).await?;
            return Ok(self.respond(StatusCode::CREATED, self.renderer().unstored(answer)?));
        }
        let mut written = self.server.registry.create(&self.write(), object).await?;
        problems.append(&mut written.warnings);
        written.warnings = problems;
        self.respond_written(written)
    }

    async fn update(&self, body: Bytes) -> Result<Response<Body>, ApiError> {
        self.check_dry_run()?;
        if self.is_foreign() {
            return crate::registry::subresources::update(self, body).await;
        }
        let (object, mut problems) = crate::front::decode::object(self, &body, self.target.schema())?;
        let mut written = self.server.registry.update(&self.write(), object).await?;
        problems.append(&mut written.warnings);
        written.warnings = problems;
        self.respond_written(written)
    }

    async fn patch(&self, body: Bytes) -> Result<Response<Body>, ApiError> {
        self.check_dry_run()?;
        let (patch_type, patch) = crate::front::decode::patch(self, &body)?;
        if self.is_foreign() {
            return crate::registry::subresources::patch(self, patch_type, patch).await;
        }
        let registry = &self.server.registry;
        let written = match patch_type {
            PatchType::Apply => registry.apply(self.write(), patch).await?,
            _ => registry.patch(&self.write(), patch_type, patch).await?,
        };
        self.respond_written(written)
    }

    async fn delete(&self, body: Bytes) -> Result<Response<Body>, ApiError> {
        let (write, preconditions) = self.delete_options(&body)?;
        let deleted = self.server.registry.delete(&write, &preconditions).await?;
        match deleted {
            crate::registry::delete::Deleted::Object(object) => {
                Ok(self.respond(StatusCode::OK, self.renderer().unstored(object)?))
            }
            crate::registry::delete::Deleted::Status(status) => {
                let value = serde_json::to_value(&status).unwrap_or_default();
                Ok(self.respond(StatusCode::OK, encode_plain(&value, self.accepted.encoding)?))
            }
        }
    }

    async fn delete_collection(&self, body: Bytes) -> Result<Response<Body>, ApiError> {
        let (write, _) = self.delete_options(&body)?;
        let selection =
            crate::registry::selection::Selection::new(&self.target, self.namespace(), &self.call.options)?;
        let items = self.server.registry.delete_collection(&write, &selection).await?;
        let revision = self.server.registry.mirror().revision();
        self.respond_list(crate::registry::list::Page {
            items,
            revision,
            continue_token: String::new(),
            remaining: None,
        })
    }

    fn delete_options(
        &self,
        body: &Bytes,
    ) -> Result<(Write, crate::registry::delete::Preconditions), ApiError> {
        let mut write = self.write();
        let mut preconditions = crate::registry::delete::Preconditions::default();
        if !body.is_empty() {
            let options = crate::front::decode::delete_options(&self.call.parts.headers, body)?;
            write.options.merge_delete_body(&options);
            preconditions = crate::registry::delete::Preconditions::of(&options);
        }
        check_dry_run(&write.options)?;
        Ok((write, preconditions))
    }

    fn check_dry_run(&self) -> Result<(), ApiError> {
        check_dry_run(&self.call.options)
    }

    pub(crate) fn respond_written(&self, written: Written) -> Result<Response<Body>, ApiError> {
        let renderer = self.renderer();
        let bytes = match written.object {
            Outcome::Stored(object) => renderer.object(&object)?,
            Outcome::Value(value) => renderer.unstored(value)?,
        };
        let status = if written.created { StatusCode::CREATED } else { StatusCode::OK };
        let mut response = self.respond(status, bytes);
        for warning in written.warnings {
            if let Ok(value) = HeaderValue::from_str(&format!("299 - {}", meta::field::go_quote(&warning))) {
                response.headers_mut().append(WARNING, value);
            }
        }
        Ok(response)
    }

    pub(crate) fn respond(&self, status: StatusCode, bytes: Bytes) -> Response<Body> {
        respond(status, self.accepted.encoding.media_type(), Body::whole(bytes))
    }
}

fn check_dry_run(options: &Options) -> Result<(), ApiError> {
    match options.dry_run.iter().find(|own| *own != "All") {
        None => Ok(()),
        Some(other) => Err(ApiError::new(
            422,
            "Invalid",
            format!(
                "Options.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: \"{other}\": supported values: \"All\""
            ),
            None,
        )),
    }
}

pub(crate) fn respond(status: StatusCode, media_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

/// A `Status` in an encoding the client takes; JSON if it takes none.
pub(crate) fn refusal(error: &ApiError, headers: &http::HeaderMap) -> Response<Body> {
    let encoding = if headers.contains_key(ACCEPT) {
        Accepted::of(headers, false).map(|accepted| accepted.encoding).unwrap_or_default()
    } else {
        Encoding::Json
    };
    let value: Value = serde_json::to_value(&error.0).unwrap_or_default();
    let (bytes, media_type) = match encode_plain(&value, encoding) {
        Ok(bytes) => (bytes, encoding.media_type()),
        Err(_) => (value.to_string().into(), Encoding::Json.media_type()),
    };
    let status = StatusCode::from_u16(error.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = respond(status, media_type, Body::whole(bytes));
    if let Some(seconds) = error.0.details.as_ref().map(|details| details.retry_after_seconds)
        && seconds > 0
    {
        response.headers_mut().insert(http::header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

async fn read<B>(body: B) -> Result<Bytes, ApiError>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin,
    B::Error: Into<BoxError>,
{
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(ApiError::request_too_large(MAX_BODY))
        }
        Err(error) => Err(ApiError::bad_request(format!("cannot read the request body: {error}"))),
    }
}

fn audit_id() -> HeaderValue {
    let id = uuid::Uuid::new_v4();
    HeaderValue::from_str(&id.to_string()).unwrap_or(HeaderValue::from_static("-"))
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("registry", &self.registry).finish_non_exhaustive()
    }
}
