//! Asks a listener for its greeting, for container health checks: an image without a shell needs no other program.

use std::io::{BufRead as _, BufReader, Error, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// The longest greeting line we read, in bytes. RFC 5321 section 4.5.3.1.5.
const LINE_LIMIT: u64 = 512;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where the listener is: an address or a name
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:25", value_parser = place)]
    address: String,
    /// How long it may take
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    timeout: u64,
}

fn place(text: &str) -> Result<String, String> {
    let is_name =
        |host: &str| !host.is_empty() && !host.contains([':', '[', ']']) && !host.contains(char::is_whitespace);
    let is_named = text.rsplit_once(':').is_some_and(|(host, port)| is_name(host) && port.parse::<u16>().is_ok());
    match is_named || text.parse::<SocketAddr>().is_ok() {
        true => Ok(text.to_owned()),
        false => Err("expected a host and a port, such as 127.0.0.1:25, [::1]:25 or mail.contoso.com:25".to_owned()),
    }
}

pub(super) fn run(args: &Args) -> ExitCode {
    let limit = Duration::from_secs(args.timeout.max(1));
    match addresses(&args.address, limit).and_then(|(addresses, left)| first_greeting(&addresses, left)) {
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

/// What the name stands for, and how much time is left. The system's resolver knows no limit of ours.
fn addresses(place: &str, limit: Duration) -> std::io::Result<(Vec<SocketAddr>, Duration)> {
    if let Ok(address) = place.parse() {
        return Ok((vec![address], limit));
    }
    let begun = Instant::now();
    let (found, finding) = mpsc::channel();
    let name = place.to_owned();
    std::thread::spawn(move || {
        let _ = found.send(name.to_socket_addrs().map(Vec::from_iter));
    });
    let late = |_| Error::other("the name servers do not answer in time");
    let addresses = finding.recv_timeout(limit).map_err(late)??;
    Ok((addresses, limit.saturating_sub(begun.elapsed()).max(Duration::from_millis(100))))
}

/// Of the first that takes a connection: a name may stand for an IPv6 address where nobody listens.
fn first_greeting(addresses: &[SocketAddr], limit: Duration) -> std::io::Result<String> {
    let mut last = Error::other("the name has no address");
    for address in addresses {
        match TcpStream::connect_timeout(address, limit) {
            Ok(stream) => return greeting(&stream, limit),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A read that takes too long ends in EAGAIN, whose words say nothing about time.
fn in_words(error: &std::io::Error, seconds: u64) -> String {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => format!("no greeting within {seconds} s"),
        _ => error.to_string(),
    }
}

fn greeting(mut stream: &TcpStream, limit: Duration) -> std::io::Result<String> {
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let mut line = String::new();
    BufReader::new(stream.take(LINE_LIMIT)).read_line(&mut line)?;
    // The server need not wait for a client that has what it came for.
    let _ = stream.write_all(b"QUIT\r\n");
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_has_a_host_and_a_port() {
        for (text, expected) in [
            ("127.0.0.1:25", true),
            ("[::1]:25", true),
            ("mail.contoso.com:25", true),
            ("localhost:2525", true),
            ("mail.contoso.com", false),
            ("127.0.0.1", false),
            (":25", false),
            ("::1:25", false),
            ("mail.contoso.com:smtp", false),
            ("mail.contoso.com:65536", false),
            ("", false),
        ] {
            assert_eq!(place(text).is_ok(), expected, "{text}");
        }
    }

    #[test]
    fn a_name_is_looked_up() {
        let limit = Duration::from_secs(5);
        let (found, left) = addresses("localhost:25", limit).unwrap();
        assert!(found.iter().all(|address| address.ip().is_loopback() && address.port() == 25), "{found:?}");
        assert!(!found.is_empty() && left <= limit);
        assert!(addresses("nobody.invalid:25", limit).is_err());
    }
}
