//! The commands, one module each.

mod image;
mod reset;
mod up;

use std::io::Write as _;

use clap::{Parser, Subcommand};

pub(crate) use up::components::SUPERVISOR;

/// Names the binary answers to as links.
pub(crate) const COMPONENTS: [&str; 8] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubeadm",
    "kubectl",
    "kubelet",
];

/// Kubernetes in one small program.
#[derive(Debug, Parser)]
#[command(name = "coracle", version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Manage the images of a data directory.
    Image(image::Image),
    /// Remove a cluster and everything it made on this machine.
    Reset(reset::Reset),
    /// Run a whole cluster in this process.
    Up(up::Up),
}

impl Cli {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Image(image) => image.run(),
            Command::Reset(reset) => reset.run(),
            Command::Up(up) => up.run(),
        }
    }
}

/// Tells the user why the program ends.
pub(crate) fn complain(error: &anyhow::Error) {
    // Nothing is left to do if even this fails.
    writeln!(std::io::stderr(), "error: {error:#}").ok();
}

/// Tells the user what happened.
pub(crate) fn say(line: &str) {
    // A closed pipe must not end the cluster.
    writeln!(std::io::stdout(), "{line}").ok();
}
