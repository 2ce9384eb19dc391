//! The one binary: `coracle <component>`, or called through a link named after a component.
//!
//! It reads flags, wires components together and supervises them; it decides nothing itself. Start reading at
//! [`commands`].

mod commands;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    // A pod's supervisor stays small: it must not get as far as parsing flags.
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() == Some(commands::SUPERVISOR) {
        container_runtime::supervisor_main(&words.collect::<Vec<_>>());
    }
    let arguments = with_component(std::env::args_os().collect());
    let cli = match commands::Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            error.print().ok();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            commands::complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// Called as `kube-apiserver --x`, it is `coracle kube-apiserver --x`.
fn with_component(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let name = arguments
        .first()
        .and_then(|own| Path::new(own).file_name())
        .map(|own| own.to_string_lossy().into_owned());
    if let Some(name) = name
        && commands::COMPONENTS.contains(&name.as_str())
    {
        arguments.insert(1, name.into());
    }
    arguments
}
