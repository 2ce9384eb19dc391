//! What is read: upstream's data and the hand-kept `kinds.toml`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use super::proto::Protos;

/// Everything the generator knows.
pub(super) struct Sources {
    /// Package, then type.
    pub(super) types: BTreeMap<String, BTreeMap<String, GoType>>,
    pub(super) openapi: Value,
    pub(super) protos: Protos,
    /// Type name to smd schema of upstream's server-side apply.
    pub(super) apply: BTreeMap<String, Value>,
    pub(super) discovery: BTreeMap<String, Value>,
    pub(super) columns: BTreeMap<String, Vec<ColumnRow>>,
    pub(super) kinds: KindsFile,
}

/// A Go type: a struct with fields, or another name for a type.
#[derive(Debug, Default, Deserialize)]
pub(super) struct GoType {
    #[serde(default)]
    pub(super) fields: Vec<GoField>,
    pub(super) alias: Option<String>,
    #[serde(default)]
    pub(super) values: Vec<Value>,
    #[serde(default)]
    pub(super) markers: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GoField {
    pub(super) name: String,
    pub(super) r#type: String,
    #[serde(default)]
    pub(super) inline: bool,
    pub(super) omit: Option<String>,
    pub(super) proto: Option<String>,
    #[serde(default)]
    pub(super) patch_strategy: String,
    #[serde(default)]
    pub(super) patch_merge_key: String,
    #[serde(default)]
    pub(super) markers: Vec<String>,
}

/// `kinds.toml`: what upstream's data does not hold.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KindsFile {
    pub(super) group: Vec<GroupRow>,
    #[serde(default)]
    pub(super) resource: BTreeMap<String, ResourceRow>,
    #[serde(default)]
    pub(super) subresource: BTreeMap<String, String>,
    /// Types nothing served refers to, that clients and the server exchange all the same.
    pub(super) types: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GroupRow {
    pub(super) name: String,
    pub(super) priority: i32,
    pub(super) versions: Vec<VersionRow>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VersionRow {
    pub(super) name: String,
    pub(super) priority: i32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ResourceRow {
    pub(super) short: Option<Vec<String>>,
    pub(super) categories: Option<Vec<String>>,
    #[serde(default)]
    pub(super) selectable: Vec<String>,
    pub(super) storage: Option<String>,
    pub(super) stored_as: Option<String>,
    pub(super) columns: Option<Vec<ColumnRow>>,
    pub(super) deprecated: Option<Deprecation>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Deprecation {
    pub(super) deprecated_in: (u32, u32),
    pub(super) removed_in: Option<(u32, u32)>,
    pub(super) replacement: Option<(String, String, String)>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct ColumnRow {
    pub(super) name: String,
    pub(super) r#type: String,
    #[serde(default)]
    pub(super) format: String,
    #[serde(default)]
    pub(super) priority: i32,
}

impl Sources {
    pub(super) fn read(from: &Path, kinds: &Path) -> Result<Self> {
        let apply: Value = serde_saphyr::from_str(&text(&from.join("apply-schema-1.36.yaml"))?)?;
        let apply = apply["types"].as_array().context("the apply schema has no types")?;
        Ok(Self {
            types: json(&from.join("types-1.36.json"))?,
            openapi: json(&from.join("openapi-v2-1.36.json"))?,
            protos: Protos::read(&from.join("proto"))?,
            apply: apply
                .iter()
                .map(|t| (t["name"].as_str().unwrap_or_default().to_owned(), t.clone()))
                .collect(),
            discovery: json(&from.join("recorded-1.24/discovery.json"))?,
            columns: json(&from.join("recorded-1.24/table-columns.json"))?,
            kinds: toml::from_str(&text(kinds)?)
                .with_context(|| format!("cannot read {}", kinds.display()))?,
        })
    }

    /// The OpenAPI definition of this name.
    pub(super) fn definition(&self, name: &str) -> Option<&Value> {
        self.openapi["definitions"].get(name)
    }
}

fn json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_str(&text(path)?).with_context(|| format!("cannot read {}", path.display()))
}

fn text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
