//! `coracle image`: the images of a data directory, without a running cluster.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use container_runtime::ImageStore;

use super::up::components::images_dir;

#[derive(Debug, Args)]
pub(crate) struct Image {
    /// Where the cluster keeps its state.
    #[arg(long, global = true, default_value = "/var/lib/coracle")]
    data_dir: PathBuf,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Take images from a docker or OCI archive or layout.
    Import { file: PathBuf },
    /// List images.
    Ls,
    /// Remove an image.
    Rm { name: String },
    /// Write images to an archive.
    Export { file: PathBuf, names: Vec<String> },
}

impl Image {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let directory = images_dir(&self.data_dir);
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let store = ImageStore::open(&directory)?;
        match self.action {
            Action::Import { file } => {
                for image in store.import(&file)? {
                    super::say(&format!("imported {}", image.tags.join(" ")));
                }
            }
            Action::Ls => {
                for image in store.list()? {
                    super::say(&format!("{}\t{}", image.tags.join(" "), image.id));
                }
            }
            Action::Rm { name } => {
                for gone in store.remove(&name)? {
                    super::say(&format!("removed {gone}"));
                }
            }
            Action::Export { file, names } => store.export(&names, &file)?,
        }
        Ok(())
    }
}
