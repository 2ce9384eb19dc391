//! The one place where refusals become `Status` objects, with upstream's reasons, codes and messages
//! (`k8s.io/apimachinery` api errors).

use meta::field::FieldError;
use meta::names::{GroupResource, GroupVersionKind};
use meta::status::{ListMeta, Status, StatusCause, StatusDetails};

/// A refusal on its way to the client.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", .0.message)]
pub struct ApiError(pub Box<Status>);

impl ApiError {
    pub fn code(&self) -> u16 {
        self.0.code
    }

    pub fn reason(&self) -> &str {
        &self.0.reason
    }

    /// `pods "x" not found`.
    pub fn not_found(resource: &GroupResource, name: &str) -> Self {
        failure(404, "NotFound", format!("{resource} \"{name}\" not found"), of(resource, name))
    }

    /// `pods "x" already exists`.
    pub fn already_exists(resource: &GroupResource, name: &str) -> Self {
        failure(409, "AlreadyExists", format!("{resource} \"{name}\" already exists"), of(resource, name))
    }

    /// `Operation cannot be fulfilled on pods "x": why`.
    pub fn conflict(resource: &GroupResource, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {resource} \"{name}\": {why}");
        failure(409, "Conflict", message, of(resource, name))
    }

    /// The conflict of a stale `resourceVersion`.
    pub fn stale(resource: &GroupResource, name: &str) -> Self {
        Self::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// `pods "x" is forbidden: why`.
    pub fn forbidden(resource: &GroupResource, name: &str, why: &str) -> Self {
        let message = if resource.resource.is_empty() {
            format!("forbidden: {why}")
        } else if name.is_empty() {
            format!("{resource} is forbidden: {why}")
        } else {
            format!("{resource} \"{name}\" is forbidden: {why}")
        };
        failure(403, "Forbidden", message, of(resource, name))
    }

    /// `Pod "x" is invalid: ...` with one cause an error.
    pub fn invalid(kind: &GroupVersionKind, name: &str, errors: &[FieldError]) -> Self {
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let list = match texts.as_slice() {
            [] => "<nil>".to_owned(),
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let group_kind = if kind.group.is_empty() {
            kind.kind.to_string()
        } else {
            format!("{}.{}", kind.kind, kind.group)
        };
        let details = StatusDetails {
            name: name.to_owned(),
            group: kind.group.to_string(),
            kind: kind.kind.to_string(),
            causes: errors
                .iter()
                .map(|error| StatusCause {
                    reason: error.kind.reason().to_owned(),
                    message: error.body(),
                    field: error.path.to_string(),
                })
                .collect(),
            ..StatusDetails::default()
        };
        failure(422, "Invalid", format!("{group_kind} \"{name}\" is invalid: {list}"), Some(details))
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        failure(400, "BadRequest", message.into(), None)
    }

    pub fn unauthorized() -> Self {
        failure(401, "Unauthorized", "Unauthorized".to_owned(), None)
    }

    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource".to_owned();
        failure(405, "MethodNotAllowed", message, Some(StatusDetails::default()))
    }

    /// No such path.
    pub fn path_not_found() -> Self {
        failure(
            404,
            "NotFound",
            "the server could not find the requested resource".to_owned(),
            Some(StatusDetails::default()),
        )
    }

    /// 410: the history asked for is gone.
    pub fn expired(message: impl Into<String>) -> Self {
        failure(410, "Expired", message.into(), None)
    }

    pub fn too_large_resource_version(requested: u64, current: u64) -> Self {
        let mut details = StatusDetails { retry_after_seconds: 1, ..StatusDetails::default() };
        details.causes.push(StatusCause {
            reason: "ResourceVersionTooLarge".to_owned(),
            message: "Too large resource version".to_owned(),
            field: String::new(),
        });
        let message = format!("Timeout: Too large resource version: {requested}, current: {current}");
        failure(504, "Timeout", message, Some(details))
    }

    pub fn unsupported_media_type(supported: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            supported.join(", ")
        );
        failure(415, "UnsupportedMediaType", message, None)
    }

    pub fn not_acceptable(supported: &[&str]) -> Self {
        let message = format!("only the following media types are accepted: {}", supported.join(", "));
        failure(406, "NotAcceptable", message, None)
    }

    pub fn request_too_large(limit: usize) -> Self {
        failure(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit}"), None)
    }

    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: i32) -> Self {
        let details = StatusDetails { retry_after_seconds, ..StatusDetails::default() };
        failure(429, "TooManyRequests", message.into(), Some(details))
    }

    pub fn timeout(message: impl Into<String>) -> Self {
        failure(504, "Timeout", format!("Timeout: {}", message.into()), None)
    }

    pub fn service_unavailable(message: impl Into<String>) -> Self {
        failure(503, "ServiceUnavailable", message.into(), None)
    }

    /// 500 for the client; `why` must carry nothing secret.
    pub fn internal(why: impl std::fmt::Display) -> Self {
        let mut details = StatusDetails::default();
        details.causes.push(StatusCause { message: why.to_string(), ..StatusCause::default() });
        failure(500, "InternalError", format!("Internal error occurred: {why}"), Some(details))
    }

    /// Adds a cause to the details.
    #[must_use]
    pub fn with_cause(mut self, reason: &str, message: &str, field: &str) -> Self {
        self.0.details.get_or_insert_default().causes.push(StatusCause {
            reason: reason.to_owned(),
            message: message.to_owned(),
            field: field.to_owned(),
        });
        self
    }

    /// Any other refusal.
    pub fn new(code: u16, reason: &str, message: impl Into<String>, details: Option<StatusDetails>) -> Self {
        failure(code, reason, message.into(), details)
    }
}

/// The `Success` status that a finished delete answers with.
pub fn success(details: Option<StatusDetails>) -> Status {
    Status {
        kind: "Status".to_owned(),
        api_version: "v1".to_owned(),
        metadata: ListMeta::default(),
        status: "Success".to_owned(),
        details,
        ..Status::default()
    }
}

fn failure(code: u16, reason: &str, message: String, details: Option<StatusDetails>) -> ApiError {
    ApiError(Box::new(Status {
        kind: "Status".to_owned(),
        api_version: "v1".to_owned(),
        metadata: ListMeta::default(),
        status: "Failure".to_owned(),
        message,
        reason: reason.to_owned(),
        details,
        code,
    }))
}

fn of(resource: &GroupResource, name: &str) -> Option<StatusDetails> {
    Some(StatusDetails {
        name: name.to_owned(),
        group: resource.group.to_string(),
        kind: resource.resource.to_string(),
        ..StatusDetails::default()
    })
}
