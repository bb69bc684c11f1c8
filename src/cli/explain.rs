//! Explains routes.
use std::path::Path;
use std::process::ExitCode;
/// Explains.
#[derive(Debug, clap::Args)]
pub struct Args {}
/// Explains.
pub fn run(_: &Path, _: &Args) -> ExitCode {
    ExitCode::SUCCESS
}
