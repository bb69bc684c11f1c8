//! The daemon in the foreground.

use std::path::Path;
use std::process::ExitCode;

use super::WRONG;
use crate::daemon;

pub(super) fn run(config: &Path) -> ExitCode {
    match daemon::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(daemon::Error::Configuration(problems)) => {
            eprint!("{problems}");
            eprintln!("causeway: the configuration cannot be used; nothing was started");
            ExitCode::from(WRONG)
        }
        Err(error @ daemon::Error::NotForUser { .. }) => {
            eprint!("{error}");
            eprintln!("causeway: the configuration cannot be used; nothing was started");
            ExitCode::from(WRONG)
        }
        Err(error) => {
            eprintln!("causeway: {error}");
            ExitCode::FAILURE
        }
    }
}
