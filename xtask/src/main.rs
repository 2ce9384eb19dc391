//! Tasks for people who work on the tree: `cargo xtask codegen --from DIR`, `cargo xtask tidy`.

mod codegen;
mod tidy;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

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
    /// Check the rules of the tree that no compiler checks.
    Tidy {
        /// Take the versions that are there several times now into the list of those that may.
        #[arg(long)]
        accept_duplicates: bool,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Codegen { from } => codegen::run(&from),
        Task::Tidy { accept_duplicates } => tidy::run(accept_duplicates),
    };
    let Err(error) = done else { return ExitCode::SUCCESS };
    // Nothing is left to do if even this fails.
    writeln!(std::io::stderr(), "error: {error:#}").ok();
    ExitCode::FAILURE
}
