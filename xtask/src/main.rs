//! Tasks for people who work on the tree: `cargo xtask codegen --from DIR`.

mod codegen;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Write the tables of built-in kinds from upstream's data.
    Codegen {
        /// Directory that holds upstream's OpenAPI, types, protos and recorded answers.
        #[arg(long)]
        from: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().task {
        Task::Codegen { from } => codegen::run(&from),
    }
}
