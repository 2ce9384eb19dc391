//! Content negotiation: in what encoding, and as what (object, table, metadata only), an answer is wanted.

use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};

use crate::status::ApiError;

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encoding {
    #[default]
    Json,
    Yaml,
    Protobuf,
}

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    #[default]
    Object,
    /// `meta.k8s.io/v1 Table`.
    Table,
    /// `PartialObjectMetadata` or its list.
    Metadata,
}

/// The answer's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Accepted {
    pub encoding: Encoding,
    pub form: Form,
}

const SUPPORTED: [&str; 4] = [
    "application/json",
    "application/json;stream=watch",
    "application/vnd.kubernetes.protobuf",
    "application/yaml",
];

impl Encoding {
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
            Self::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }

    /// The encoding of a request body; JSON when nothing is said.
    pub fn of_body(headers: &HeaderMap) -> Result<Self, ApiError> {
        let Some(header) = headers.get(CONTENT_TYPE) else { return Ok(Self::Json) };
        let text = header.to_str().unwrap_or_default();
        let media_type = text.split(';').next().unwrap_or_default().trim();
        match media_type {
            "" | "application/json" | "*/*" => Ok(Self::Json),
            "application/yaml" | "text/yaml" | "application/x-yaml" => Ok(Self::Yaml),
            "application/vnd.kubernetes.protobuf" => Ok(Self::Protobuf),
            _ => Err(ApiError::unsupported_media_type(&[
                "application/json",
                "application/yaml",
                "application/vnd.kubernetes.protobuf",
            ])),
        }
    }
}

impl Accepted {
    /// The first acceptable clause, by quality and then by order. `forms` is false where an answer has only its
    /// own form (Status, discovery).
    pub fn of(headers: &HeaderMap, forms: bool) -> Result<Self, ApiError> {
        let mut best: Option<(f32, Self)> = None;
        let mut any = false;
        for header in headers.get_all(ACCEPT) {
            for clause in header.to_str().unwrap_or_default().split(',').map(str::trim) {
                if clause.is_empty() {
                    continue;
                }
                any = true;
                let (quality, accepted) = clause_of(clause, forms);
                if let Some(accepted) = accepted
                    && best.is_none_or(|(most, _)| quality > most)
                {
                    best = Some((quality, accepted));
                }
            }
        }
        match best {
            Some((_, accepted)) => Ok(accepted),
            None if any => Err(ApiError::not_acceptable(&SUPPORTED)),
            None => Ok(Self::default()),
        }
    }
}

fn clause_of(clause: &str, forms: bool) -> (f32, Option<Accepted>) {
    let mut parts = clause.split(';').map(str::trim);
    let encoding = match parts.next().unwrap_or_default() {
        "application/json" | "*/*" | "application/*" => Some(Encoding::Json),
        "application/yaml" => Some(Encoding::Yaml),
        "application/vnd.kubernetes.protobuf" => Some(Encoding::Protobuf),
        _ => None,
    };
    let (mut quality, mut form, mut known) = (1.0, Form::Object, true);
    for parameter in parts {
        match parameter.split_once('=').unwrap_or((parameter, "")) {
            ("q", value) => quality = value.parse().unwrap_or(0.0),
            ("as", "Table") => form = Form::Table,
            ("as", "PartialObjectMetadata" | "PartialObjectMetadataList") => form = Form::Metadata,
            ("as", _) => known = false,
            ("g", group) => known &= group == "meta.k8s.io",
            ("v", version) => known &= matches!(version, "v1" | "v1beta1"),
            _ => {}
        }
    }
    if form != Form::Object && !forms {
        known = false;
    }
    (quality, encoding.filter(|_| known).map(|encoding| Accepted { encoding, form }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(text: &str) -> Option<(Encoding, Form)> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, text.parse().unwrap());
        Accepted::of(&headers, true).ok().map(|accepted| (accepted.encoding, accepted.form))
    }

    #[test]
    fn the_best_acceptable_clause_wins() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(accepted(kubectl), Some((Encoding::Json, Form::Table)));
        assert_eq!(
            accepted("application/vnd.kubernetes.protobuf, */*"),
            Some((Encoding::Protobuf, Form::Object))
        );
        assert_eq!(accepted("text/plain"), None);
        assert_eq!(accepted("text/html, */*;q=0.1"), Some((Encoding::Json, Form::Object)));
        assert_eq!(
            accepted("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"),
            Some((Encoding::Json, Form::Metadata))
        );
    }
}
