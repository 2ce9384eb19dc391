//! What no compiler checks: the arrows between crates, where dependencies come from, and the walls of the house rules.

mod dependencies;
mod layers;
mod text;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use serde::Deserialize;

/// The part of `cargo metadata` that is looked at.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_root: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    /// None for the crates of this tree.
    source: Option<String>,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    req: String,
    source: Option<String>,
    kind: Option<String>,
}

impl Package {
    fn is_ours(&self) -> bool {
        self.source.is_none()
    }
}

/// Fails with every complaint there is, not with the first.
pub(crate) fn run(accept_duplicates: bool) -> anyhow::Result<()> {
    let metadata = metadata()?;
    let root = &metadata.workspace_root;
    if accept_duplicates {
        dependencies::write_duplicates(root, &metadata.packages)?;
    }
    let mut complaints = layers::complaints(&arrows(&metadata.packages));
    complaints.extend(dependencies::complaints(root, &metadata.packages)?);
    complaints.extend(text::complaints(root)?);
    if complaints.is_empty() {
        return Ok(());
    }
    anyhow::bail!("{} to tidy\n  {}", complaints.len(), complaints.join("\n  "))
}

fn metadata() -> anyhow::Result<Metadata> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .output()
        .context("cannot run cargo metadata")?;
    if !output.status.success() {
        anyhow::bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("cannot read what cargo metadata wrote")
}

fn arrows(packages: &[Package]) -> Vec<layers::Arrow<'_>> {
    packages
        .iter()
        .filter(|package| package.is_ours())
        .flat_map(|package| {
            package.dependencies.iter().filter(|dependency| dependency.source.is_none()).map(|dependency| {
                layers::Arrow {
                    from: &package.name,
                    to: &dependency.name,
                    dev: dependency.kind.as_deref() == Some("dev"),
                }
            })
        })
        .collect()
}
