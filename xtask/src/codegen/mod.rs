//! Turns upstream's data and `kinds.toml` into the tables in `crates/kinds/src/generated`.
//!
//! Only facts carry over: names, numbers, types, keys. [`sources`] reads, [`types`] and [`resources`] work out
//! what the tables say, [`emit`] writes them.

mod emit;
mod proto;
mod resources;
mod sources;
mod types;

use std::path::{Path, PathBuf};

use anyhow::Result;

use sources::Sources;

pub(crate) fn run(from: &Path) -> Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../crates/kinds");
    let sources = Sources::read(from, &root.join("kinds.toml"))?;
    let resources = resources::collect(&sources)?;
    let definitions = types::collect(&sources, &resources)?;
    emit::write(&root.join("src/generated"), &sources, &resources, &definitions)
}
