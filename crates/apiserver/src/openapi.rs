//! `/openapi/v2` and `/openapi/v3`: the shapes of all served kinds, made when somebody asks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH};
use http::{HeaderMap, Response, StatusCode};
use kinds::openapi;
use kinds::spec::{KindSpec, VersionSpec};
use serde_json::{Map, Value, json};
use sha2::Digest as _;

use crate::front::body::Body;
use crate::registry::catalog::Catalog;
use crate::server::respond;

const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// Documents made so far, for one state of the catalog.
#[derive(Debug, Default)]
pub struct Documents {
    made: Mutex<(u64, HashMap<String, Bytes>)>,
}

impl Documents {
    /// Answers a path below `/openapi`; `None` if there is nothing there.
    pub(crate) fn answer(
        &self,
        catalog: &Arc<Catalog>,
        segments: &[&str],
        headers: &HeaderMap,
    ) -> Option<Response<Body>> {
        let specs: Vec<&KindSpec> = catalog.iter().map(|resource| &*resource.spec).collect();
        match segments {
            ["v2"] => Some(self.v2(catalog, &specs, headers)),
            ["v3"] => {
                Some(respond(StatusCode::OK, "application/json", Body::whole(index(&specs).to_string())))
            }
            ["v3", "api", version] => self.v3(catalog, &specs, "", version, headers),
            ["v3", "apis", group, version] => self.v3(catalog, &specs, group, version, headers),
            _ => None,
        }
    }

    fn v2(&self, catalog: &Catalog, specs: &[&KindSpec], headers: &HeaderMap) -> Response<Body> {
        let accept = headers.get(ACCEPT).and_then(|own| own.to_str().ok()).unwrap_or_default();
        if accept.contains("proto-openapi.spec.v2") {
            let bytes = self
                .cached(catalog, "v2.pb", || Some(openapi::v2_protobuf(&openapi::v2(specs, &no_raw_schema))));
            return tagged(bytes.unwrap_or_default(), V2_PROTOBUF, headers);
        }
        let bytes =
            self.cached(catalog, "v2", || Some(openapi::v2(specs, &no_raw_schema).to_string().into_bytes()));
        tagged(bytes.unwrap_or_default(), "application/json", headers)
    }

    fn v3(
        &self,
        catalog: &Catalog,
        specs: &[&KindSpec],
        group: &str,
        version: &str,
        headers: &HeaderMap,
    ) -> Option<Response<Body>> {
        let bytes = self.cached(catalog, &openapi::v3_path(group, version), || {
            Some(openapi::v3(specs, group, version, &no_raw_schema)?.to_string().into_bytes())
        })?;
        Some(tagged(bytes, "application/json", headers))
    }

    fn cached(&self, catalog: &Catalog, name: &str, make: impl FnOnce() -> Option<Vec<u8>>) -> Option<Bytes> {
        let mut made = self.made.lock().expect("no panic happens under this lock");
        if made.0 != catalog.generation() {
            *made = (catalog.generation(), HashMap::new());
        }
        if let Some(bytes) = made.1.get(name) {
            return Some(bytes.clone());
        }
        let bytes = Bytes::from(make()?);
        made.1.insert(name.to_owned(), bytes.clone());
        Some(bytes)
    }
}

fn no_raw_schema(_: &KindSpec, _: &VersionSpec) -> Option<Value> {
    None
}

/// The documents there are, each with a hash that changes with its kinds.
fn index(specs: &[&KindSpec]) -> Value {
    let mut hashes: std::collections::BTreeMap<String, sha2::Sha256> = std::collections::BTreeMap::new();
    for spec in specs {
        for version in spec.versions.iter() {
            let hash = hashes.entry(openapi::v3_path(&spec.group, &version.version)).or_default();
            hash.update(env!("CARGO_PKG_VERSION"));
            hash.update(&*spec.kind);
            hash.update(&*spec.resource);
        }
    }
    let paths = hashes.into_iter().map(|(path, hash)| {
        let hash = hex::encode_upper(hash.finalize());
        let url = json!({ "serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}") });
        (path, url)
    });
    json!({ "paths": Value::Object(paths.collect::<Map<_, _>>()) })
}

fn tagged(bytes: Bytes, media_type: &'static str, headers: &HeaderMap) -> Response<Body> {
    let tag = format!("\"{}\"", hex::encode_upper(sha2::Sha256::digest(&bytes)));
    let known = headers.get(IF_NONE_MATCH).and_then(|own| own.to_str().ok()) == Some(tag.as_str());
    let mut response = Response::new(if known { Body::empty() } else { Body::whole(bytes) });
    if known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    if let Ok(tag) = tag.parse() {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}
