//! Field numbers and wire types from upstream's `generated.proto` files.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Package (`api/core/v1`) and message to its fields.
pub(super) struct Protos(BTreeMap<(String, String), BTreeMap<String, ProtoField>>);

#[derive(Debug, Clone)]
pub(super) struct ProtoField {
    pub(super) number: u32,
    /// `string`, `int32`, `.k8s.io.api.core.v1.Container`, `map<string, bytes>` ...
    pub(super) r#type: String,
}

impl Protos {
    pub(super) fn read(root: &Path) -> Result<Self> {
        let mut protos = Self(BTreeMap::new());
        protos.walk(root, root)?;
        Ok(protos)
    }

    /// The field of a message; `None` when the message has no such field or there is no such message.
    pub(super) fn field(&self, package: &str, message: &str, field: &str) -> Option<&ProtoField> {
        self.0.get(&(package.to_owned(), message.to_owned()))?.get(field)
    }

    fn walk(&mut self, root: &Path, directory: &Path) -> Result<()> {
        for entry in
            fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?
        {
            let path = entry?.path();
            if path.is_dir() {
                self.walk(root, &path)?;
            } else if path.extension().is_some_and(|extension| extension == "proto") {
                let package = directory.strip_prefix(root)?.to_string_lossy().into_owned();
                self.parse(&package, &fs::read_to_string(&path)?)
                    .with_context(|| format!("cannot read {}", path.display()))?;
            }
        }
        Ok(())
    }

    fn parse(&mut self, package: &str, text: &str) -> Result<()> {
        let mut message = None;
        for line in text.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix("message ").and_then(|rest| rest.strip_suffix(" {")) {
                message = Some(name.to_owned());
            } else if line == "}" {
                message = None;
            } else if let Some(name) = &message
                && let Some(line) = line.strip_suffix(';')
                && !line.starts_with("//")
                && !line.starts_with("reserved")
                && !line.starts_with("option ")
            {
                let (field, value) = parse_field(line)?;
                self.0.entry((package.to_owned(), name.clone())).or_default().insert(field, value);
            }
        }
        Ok(())
    }
}

fn parse_field(line: &str) -> Result<(String, ProtoField)> {
    let Some((declaration, number)) = line.split_once(" = ") else { bail!("not a field: {line}") };
    let Some((kind, name)) = declaration.rsplit_once(' ') else { bail!("not a field: {line}") };
    let kind = kind.trim_start_matches("optional ").trim_start_matches("repeated ");
    let number = number.split_whitespace().next().unwrap_or_default().parse()?;
    Ok((name.to_owned(), ProtoField { number, r#type: kind.to_owned() }))
}
