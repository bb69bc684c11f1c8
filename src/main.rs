//! One command in, one exit status out.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// It returns what is free to the system within half a minute; the C library's keeps what many connections or messages
/// took once (benches/README.md has the figures).
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    causeway::tls::install_provider();
    causeway::cli::main()
}
