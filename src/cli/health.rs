//! Asks a listener for its greeting, for container health checks: an image without a shell needs no other program.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

/// The longest greeting line we read, in bytes. RFC 5321 section 4.5.3.1.5.
const LINE_LIMIT: u64 = 512;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where the listener is
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:25")]
    address: SocketAddr,
    /// How long it may take
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    timeout: u64,
}

pub(super) fn run(args: &Args) -> ExitCode {
    match greeting(args.address, Duration::from_secs(args.timeout.max(1))) {
        Ok(line) if line.starts_with("220") => ExitCode::SUCCESS,
        Ok(line) => {
            eprintln!("causeway: {} greets with {:?}, not with 220", args.address, line.trim_end());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("causeway: {}: {}", args.address, in_words(&error, args.timeout.max(1)));
            ExitCode::from(3)
        }
    }
}

/// A read that takes too long ends in EAGAIN, whose words say nothing about time.
fn in_words(error: &std::io::Error, seconds: u64) -> String {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => format!("no greeting within {seconds} s"),
        _ => error.to_string(),
    }
}

fn greeting(address: SocketAddr, limit: Duration) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let mut line = String::new();
    BufReader::new((&stream).take(LINE_LIMIT)).read_line(&mut line)?;
    // The server need not wait for a client that has what it came for.
    let _ = stream.write_all(b"QUIT\r\n");
    Ok(line)
}
