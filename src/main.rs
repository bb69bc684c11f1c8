//! One command in, one exit status out.

use std::process::ExitCode;

fn main() -> ExitCode {
    causeway::tls::install_provider();
    causeway::cli::main()
}
