//! The OpenAPI documents: v3 for each group and version, v2 for everything at once, as JSON or as the protobuf
//! that older clients ask for.
//!
//! Pure functions over rows. A custom resource brings the schema its author wrote, through [`RawSchema`]; all
//! else comes from the tables.

#[cfg(feature = "descriptions")]
mod descriptions;
mod gnostic;
mod paths;
mod schemas;

use schema::types::Ptr;
use serde_json::{Map, Value, json};

use crate::discovery::group_version;
use crate::spec::{KindSpec, VersionSpec};
use paths::Path;
use schemas::Schemas;

pub use gnostic::encode as v2_protobuf;

/// The `openAPIV3Schema` of a custom resource in a version, as its author wrote it; `None` for built-in kinds.
pub type RawSchema<'a> = &'a dyn Fn(&KindSpec, &VersionSpec) -> Option<Value>;

/// Which OpenAPI a document is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flavor {
    V2,
    V3,
}

/// Where `/openapi/v3` lists a group version: `api/v1` or `apis/apps/v1`.
pub fn v3_path(group: &str, version: &str) -> String {
    let base = if group.is_empty() { "api" } else { "apis" };
    format!("{base}/{}", group_version(group, version))
}

/// The OpenAPI v3 document of a group version; `None` when no row has it.
pub fn v3(specs: &[&KindSpec], group: &str, version: &str, raw: RawSchema<'_>) -> Option<Value> {
    let rows: Vec<_> =
        rows(specs).filter(|(spec, row)| *spec.group == *group && *row.version == *version).collect();
    if rows.is_empty() {
        return None;
    }
    let (paths, schemas) = collect(Flavor::V3, &rows, raw);
    Some(json!({
        "openapi": "3.0.0",
        "info": info(),
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"BearerToken": security_scheme()},
        },
        "security": [{"BearerToken": []}],
    }))
}

/// The OpenAPI v2 document of all rows.
pub fn v2(specs: &[&KindSpec], raw: RawSchema<'_>) -> Value {
    let rows: Vec<_> = rows(specs).collect();
    let (paths, schemas) = collect(Flavor::V2, &rows, raw);
    json!({
        "swagger": "2.0",
        "info": info(),
        "paths": paths,
        "definitions": schemas,
        "securityDefinitions": {"BearerToken": security_scheme()},
        "security": [{"BearerToken": []}],
    })
}

type Row<'a> = (&'a KindSpec, &'a VersionSpec);

fn rows<'a>(specs: &[&'a KindSpec]) -> impl Iterator<Item = Row<'a>> {
    specs.iter().flat_map(|spec| spec.versions.iter().map(|version| (*spec, version)))
}

fn collect(flavor: Flavor, rows: &[Row<'_>], raw: RawSchema<'_>) -> (Value, Value) {
    let mut schemas = Schemas::new(flavor);
    let mut documents = Map::new();
    for (spec, row) in rows {
        let custom = raw(spec, row);
        let names = match &custom {
            Some(raw) => schemas.custom(spec, row, raw),
            None => schemas.built_in(spec, row),
        };
        for subresource in row.subresources.iter() {
            // Custom resources exchange a built-in kind too: `Scale`.
            let name =
                subresource.schema.as_ref().and_then(|schema| schema.object()).map(|object| &*object.name);
            if let Some(schema) = name.and_then(crate::schema_of) {
                schemas.want(&Ptr::Static(schema));
                schemas.kind(schema, spec, row, subresource);
            }
        }
        for path in paths::of_row(spec, row, &names) {
            let Path { url, item } = path.render(flavor);
            documents.insert(url, item);
        }
    }
    let versions = rows.iter().map(|(spec, row)| (&*spec.group, &*row.version));
    let shared = [crate::META_STATUS, crate::META_DELETE_OPTIONS, crate::META_WATCH_EVENT];
    shared.iter().for_each(|schema| schemas.want(&Ptr::Static(schema)));
    (Value::Object(documents), schemas.finish(versions))
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": "unversioned"})
}

fn security_scheme() -> Value {
    json!({"type": "apiKey", "name": "authorization", "in": "header", "description": "Bearer Token authentication"})
}
