//! `coracle reset`: takes away everything a data directory's cluster made on this machine, and nothing else.

use std::io::BufRead as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use nix::mount::{MntFlags, umount2};

use super::up::components::images_dir;

#[derive(Debug, Args)]
pub(crate) struct Reset {
    /// Where the cluster keeps its state.
    #[arg(long, default_value = "/var/lib/coracle")]
    data_dir: PathBuf,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

impl Reset {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        if !self.data_dir.exists() {
            return Ok(());
        }
        if !self.yes {
            super::say(&format!(
                "This removes the cluster in {} for good. Type yes:",
                self.data_dir.display()
            ));
            let mut answer = String::new();
            std::io::stdin().lock().read_line(&mut answer)?;
            if answer.trim() != "yes" {
                bail!("nothing was removed");
            }
        }
        let containers = images_dir(&self.data_dir);
        if containers.exists() {
            container_runtime::reset(&containers).context("cannot end the pods")?;
        }
        unmount_below(&self.data_dir)?;
        std::fs::remove_dir_all(&self.data_dir)
            .with_context(|| format!("cannot remove {}", self.data_dir.display()))
    }
}

/// Unmounts what is mounted in the directory, innermost first.
fn unmount_below(directory: &Path) -> anyhow::Result<()> {
    let directory = directory.canonicalize()?;
    let table = std::fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    let mounts = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut mounts: Vec<PathBuf> = mounts.filter(|mount| mount.starts_with(&directory)).collect();
    mounts.sort();
    for mount in mounts.iter().rev() {
        umount2(mount, MntFlags::MNT_DETACH)
            .with_context(|| format!("cannot unmount {}", mount.display()))?;
    }
    Ok(())
}
