//! The runtime on a real machine, through its socket: containers made from Debian's static busybox.
//!
//! Needs root. This program is at once the test, the runtime it talks to (so that it can be killed) and the supervisors.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test that has to have a main of its own")]

mod cases;
mod image;
mod node;
mod registry;
mod stream;

use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Longer than any case may take.
const CASE_TIMEOUT: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some(node::SUPERVISOR) => container_runtime::supervisor_main(&args[1..]),
        Some(node::SERVE) => node::serve(&args[1..]),
        _ => run_cases(&args),
    }
}

fn run_cases(args: &[String]) -> ExitCode {
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    if args.iter().any(|arg| arg == "--list") {
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build().unwrap();
    let (mut passed, mut failed) = (0, Vec::new());
    for (name, case) in cases::all() {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
            continue;
        }
        let began = Instant::now();
        let outcome = runtime.block_on(async {
            // In a task of its own, so that a panic is one case's only.
            tokio::time::timeout(CASE_TIMEOUT, tokio::spawn(case())).await
        });
        let ok = matches!(outcome, Ok(Ok(())));
        println!("test {name} ... {} ({:?})", if ok { "ok" } else { "FAILED" }, began.elapsed());
        if ok {
            passed += 1;
        } else {
            failed.push(name);
        }
    }
    // The form of the standard harness, for whoever adds up sums.
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    println!("test result: {verdict}. {passed} passed; {} failed", failed.len());
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("failed: {}", failed.join(", "));
    ExitCode::FAILURE
}
