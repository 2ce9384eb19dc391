//! Request bodies become values: objects in the resource's schema, patches, delete options.

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use schema::decode::{self, DecodeError, Decoded, Strictness};
use schema::protobuf;
use schema::types::Schema;
use serde_json::Value;

use super::negotiate::Encoding;
use crate::objects::ObjectExt;
use crate::registry::patch::{PatchType, strictness};
use crate::server::Exchange;
use crate::status::ApiError;

/// The object of a create or update, and what was wrong with it without being refused.
pub(crate) fn object(
    exchange: &Exchange<'_>,
    body: &Bytes,
    schema: &Schema,
) -> Result<(Value, Vec<String>), ApiError> {
    let (gvk, strict) = (exchange.target.gvk(), strictness(&exchange.call.options.field_validation)?);
    typed(&exchange.call.parts.headers, body, schema, strict, &gvk.api_version(), &gvk.kind)
}

/// An object of a known kind. Kind and apiVersion may be left out, but not be others.
pub(crate) fn typed(
    headers: &HeaderMap,
    body: &Bytes,
    schema: &Schema,
    strictness: Strictness,
    api_version: &str,
    kind: &str,
) -> Result<(Value, Vec<String>), ApiError> {
    let decoded = match Encoding::of_body(headers)? {
        Encoding::Protobuf => {
            let envelope =
                protobuf::envelope::envelope_decode(body).map_err(|error| undecodable(kind, &error))?;
            check_kind(envelope.api_version, envelope.kind, api_version, kind)?;
            let value = envelope.object(schema).map_err(|error| undecodable(kind, &error))?;
            Ok(Decoded { value, problems: Vec::new() })
        }
        Encoding::Json => decode::json(body, schema, strictness),
        Encoding::Yaml => decode::yaml(body, schema, strictness),
    };
    let decoded = decoded.map_err(|error| refusal(&error, body, api_version, kind))?;
    let Decoded { mut value, problems } = decoded;
    check_kind(value.str_at(&["apiVersion"]), value.str_at(&["kind"]), api_version, kind)?;
    value["apiVersion"] = api_version.into();
    value["kind"] = kind.into();
    Ok((value, problems))
}

fn check_kind(found_version: &str, found_kind: &str, api_version: &str, kind: &str) -> Result<(), ApiError> {
    let wrong_version = !found_version.is_empty() && found_version != api_version;
    let wrong_kind = !found_kind.is_empty() && found_kind != kind;
    if wrong_kind {
        let version = found_version.rsplit('/').next().unwrap_or_default();
        return Err(ApiError::bad_request(format!(
            "{found_kind} in version \"{version}\" cannot be handled as a {kind}: converting ({version}.{found_kind}) to ({}.{kind}): unknown conversion",
            api_version.rsplit('/').next().unwrap_or_default(),
        )));
    }
    if wrong_version {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({found_version}) does not match the expected API version ({api_version})"
        )));
    }
    Ok(())
}

fn refusal(error: &DecodeError, body: &Bytes, api_version: &str, kind: &str) -> ApiError {
    match error {
        DecodeError::Syntax(text) => {
            let shown = String::from_utf8_lossy(&body[..body.len().min(100)]);
            ApiError::bad_request(format!(
                "the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; json parse error: {text} ({shown})"
            ))
        }
        DecodeError::Strict(_) => ApiError::bad_request(format!(
            "{kind} in version \"{}\" cannot be handled as a {kind}: {error}",
            api_version.rsplit('/').next().unwrap_or_default()
        )),
        _ => ApiError::bad_request(format!(
            "{kind} in version \"{}\" cannot be handled as a {kind}: {error}",
            api_version.rsplit('/').next().unwrap_or_default()
        )),
    }
}

fn undecodable(kind: &str, error: &impl std::fmt::Display) -> ApiError {
    ApiError::bad_request(format!("the object provided is unrecognized (must be of type {kind}): {error}"))
}

/// A patch and how it is written.
pub(crate) fn patch(exchange: &Exchange<'_>, body: &Bytes) -> Result<(PatchType, Value), ApiError> {
    let header = exchange.call.parts.headers.get(CONTENT_TYPE);
    let content_type = header.and_then(|own| own.to_str().ok()).unwrap_or_default();
    let supported = supported_patches(exchange.target.resource.custom);
    let patch_type = PatchType::of(content_type)
        .filter(|own| *own != PatchType::Strategic || !exchange.target.resource.custom)
        .ok_or_else(|| ApiError::unsupported_media_type(supported))?;
    let patch = match patch_type {
        PatchType::Apply => decode::any_yaml(body),
        _ => decode::any_json(body),
    };
    let patch = patch.map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))?;
    Ok((patch_type, patch))
}

fn supported_patches(custom: bool) -> &'static [&'static str] {
    let all = &[
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/apply-patch+yaml",
        "application/strategic-merge-patch+json",
    ];
    if custom { &all[..3] } else { all }
}

/// `DeleteOptions` of a delete.
pub(crate) fn delete_options(headers: &HeaderMap, body: &Bytes) -> Result<Value, ApiError> {
    let schema = kinds::META_DELETE_OPTIONS;
    let decoded = match Encoding::of_body(headers)? {
        Encoding::Protobuf => {
            let envelope = protobuf::envelope::envelope_decode(body)
                .map_err(|error| undecodable("DeleteOptions", &error))?;
            return envelope.object(schema).map_err(|error| undecodable("DeleteOptions", &error));
        }
        Encoding::Json => decode::json(body, schema, Strictness::Ignore),
        Encoding::Yaml => decode::yaml(body, schema, Strictness::Ignore),
    };
    decoded.map(|decoded| decoded.value).map_err(|error| undecodable("DeleteOptions", &error))
}
