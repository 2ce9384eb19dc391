//! The encodings that are not JSON: protobuf with its envelope, and YAML.

use bytes::Bytes;
use schema::protobuf;
use schema::types::Schema;
use serde_json::Value;

use super::catalog::Target;
use super::render::Renderer;
use crate::front::negotiate::Form;
use crate::mirror::head::Stored;
use crate::objects::ObjectExt;
use crate::status::ApiError;

/// An object with its envelope.
pub(super) fn protobuf(value: &Value, schema: &Schema) -> Result<Bytes, ApiError> {
    let mut out = Vec::new();
    protobuf::envelope::object_encode(value, schema, &mut out).map_err(unencodable)?;
    Ok(out.into())
}

/// A `meta/v1` object with its envelope.
pub(super) fn protobuf_meta(value: &Value) -> Result<Bytes, ApiError> {
    protobuf(value, meta_schema(value.str_at(&["kind"]))?)
}

/// A typed list with its envelope.
pub(super) fn protobuf_list(target: &Target, list: &Value) -> Result<Bytes, ApiError> {
    let mut metadata = Vec::new();
    protobuf::encode(&list["metadata"], kinds::META_LIST_META, &mut metadata).map_err(unencodable)?;
    let mut items = Vec::new();
    for item in list["items"].as_array().into_iter().flatten() {
        let mut bytes = Vec::new();
        protobuf::encode(item, target.schema(), &mut bytes).map_err(unencodable)?;
        items.push(bytes);
    }
    let mut out = Vec::new();
    let kind = target.spec().list_kind.as_str();
    protobuf::envelope::list_encode(
        &target.api_version(),
        kind,
        &metadata,
        items.iter().map(Vec::as_slice),
        &mut out,
    );
    Ok(out.into())
}

/// Appends a watch frame with a stored object.
pub(super) fn protobuf_event(
    renderer: &Renderer,
    event: &str,
    object: &Stored,
    out: &mut Vec<u8>,
) -> Result<(), ApiError> {
    let value = renderer.value(object)?;
    match renderer.accepted.form {
        Form::Object => {
            let bytes = protobuf(&value, renderer.target.schema())?;
            protobuf::envelope::watch_frame_encode(event, &bytes, out);
            Ok(())
        }
        Form::Metadata | Form::Table => {
            let bytes = protobuf_meta(&super::render::metadata_only(value))?;
            protobuf::envelope::watch_frame_encode(event, &bytes, out);
            Ok(())
        }
    }
}

/// Appends a watch frame with a bookmark or a status.
pub(super) fn protobuf_plain_event(
    target: &Target,
    event: &str,
    object: &Value,
    out: &mut Vec<u8>,
) -> Result<(), ApiError> {
    let bytes = match object.str_at(&["kind"]) {
        "Status" | "PartialObjectMetadata" => protobuf_meta(object)?,
        _ => protobuf(object, target.schema())?,
    };
    protobuf::envelope::watch_frame_encode(event, &bytes, out);
    Ok(())
}

/// YAML as upstream prints it: sorted keys.
pub(super) fn yaml(value: &Value) -> Result<Bytes, ApiError> {
    serde_saphyr::to_string(value).map(Bytes::from).map_err(unencodable)
}

fn meta_schema(kind: &str) -> Result<&'static Schema, ApiError> {
    match kind {
        "Status" => Ok(kinds::META_STATUS),
        "PartialObjectMetadata" => Ok(kinds::META_PARTIAL_OBJECT_METADATA),
        "PartialObjectMetadataList" => Ok(kinds::META_PARTIAL_OBJECT_METADATA_LIST),
        "APIGroup" => Ok(kinds::META_API_GROUP),
        "APIGroupList" => Ok(kinds::META_API_GROUP_LIST),
        "APIResourceList" => Ok(kinds::META_API_RESOURCE_LIST),
        "APIVersions" => Ok(kinds::META_API_VERSIONS),
        other => {
            Err(ApiError::not_acceptable(&["application/json", "application/yaml"])
                .with_cause("", other, "kind"))
        }
    }
}

fn unencodable(error: impl std::fmt::Display) -> ApiError {
    ApiError::internal(error)
}
