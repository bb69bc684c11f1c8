//! The PROXY protocol, versions 1 and 2: what a proxy says of the client before that client's first byte.
//!
//! A parser without a socket, and the few lines that read from one. Not a byte behind the header is touched: it is SMTP,
//! or the beginning of a TLS handshake. Written by hand: what a mail relay needs of it is two address families and two
//! commands, which is less than the rules of a library would take to say.
//!
//! Not here: whose word is taken (`remote_ips` of a connector with `proxy_protocol`).
//!
//! Standard: the PROXY protocol, versions 1 & 2 (haproxy.org, `doc/proxy-protocol.txt`), sections 2.1 and 2.2.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a proxy may take for its header.
const DEADLINE: Duration = Duration::from_secs(5);

/// The longest header of version 1, with its CRLF. Section 2.1.
const V1_LIMIT: usize = 107;

/// What begins a header of version 2. Section 2.2.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Signature, command, family, length.
const V2_FIXED: usize = 16;

/// The longest addresses there are (of UNIX sockets), and what may follow them: certificates do not belong there.
const V2_LIMIT: usize = 216 + 4096;

/// Who the header says is speaking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Client {
    /// The proxy itself, for a health check say, or it does not know: the connection's own address counts.
    Proxy,
    /// A client behind it.
    Behind(IpAddr),
}

/// Why there is no header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// What came is something else.
    #[error("no PROXY header")]
    NotProxy,
    /// It begins as one, and is none.
    #[error("malformed PROXY header")]
    Malformed,
    /// It does not end where it should.
    #[error("PROXY header too long")]
    TooLong,
}

/// Looks for a header at the beginning of `bytes`: who speaks, and how many octets it takes. `None`: so far it is one, and
/// it is not whole yet.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<(Client, usize)>, Fault> {
    let begins = |with: &[u8]| bytes.iter().zip(with).all(|(one, other)| one == other);
    if begins(SIGNATURE) {
        parse_binary(bytes)
    } else if begins(b"PROXY ") {
        parse_text(bytes)
    } else {
        Err(Fault::NotProxy)
    }
}

fn parse_text(bytes: &[u8]) -> Result<Option<(Client, usize)>, Fault> {
    let window = &bytes[..bytes.len().min(V1_LIMIT)];
    let Some(end) = memchr::memchr(b'\n', window) else {
        return if window.len() < V1_LIMIT { Ok(None) } else { Err(Fault::TooLong) };
    };
    let line = window[..end].strip_suffix(b"\r").and_then(|line| std::str::from_utf8(line).ok());
    let line = line.and_then(|line| line.strip_prefix("PROXY ")).ok_or(Fault::Malformed)?;
    let client = match line.split(' ').collect::<Vec<_>>()[..] {
        // Whatever follows is to be ignored.
        ["UNKNOWN", ..] => Client::Proxy,
        ["TCP4", source, destination, from, to] => {
            let _: Ipv4Addr = destination.parse().map_err(|_| Fault::Malformed)?;
            check_ports(from, to)?;
            Client::Behind(IpAddr::V4(source.parse().map_err(|_| Fault::Malformed)?))
        }
        ["TCP6", source, destination, from, to] => {
            let _: Ipv6Addr = destination.parse().map_err(|_| Fault::Malformed)?;
            check_ports(from, to)?;
            Client::Behind(IpAddr::V6(source.parse().map_err(|_| Fault::Malformed)?))
        }
        _ => return Err(Fault::Malformed),
    };
    Ok(Some((client.canonical(), end + 1)))
}

/// Decimal numbers up to 65535, without a sign or leading zeros.
fn check_ports(from: &str, to: &str) -> Result<(), Fault> {
    let is_port = |text: &str| {
        text.bytes().all(|byte| byte.is_ascii_digit())
            && (text == "0" || !text.starts_with('0'))
            && text.parse::<u16>().is_ok()
    };
    if is_port(from) && is_port(to) { Ok(()) } else { Err(Fault::Malformed) }
}

fn parse_binary(bytes: &[u8]) -> Result<Option<(Client, usize)>, Fault> {
    let Some((fixed, rest)) = bytes.split_first_chunk::<V2_FIXED>() else { return Ok(None) };
    let [.., command, family, high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    let addresses = match (command, family) {
        // LOCAL: the proxy's own connection, whatever else it says.
        (0x20, _) => 0,
        // PROXY, of a family that has no name: as if it were LOCAL.
        (0x21, 0x00) => 0,
        // TCP over IPv4 and IPv6: two addresses and two ports.
        (0x21, 0x11) => 12,
        (0x21, 0x21) => 36,
        // Datagrams and UNIX sockets carry no SMTP; everything else is unassigned and must be refused.
        _ => return Err(Fault::Malformed),
    };
    if length < addresses {
        return Err(Fault::Malformed);
    }
    if length > V2_LIMIT {
        return Err(Fault::TooLong);
    }
    if rest.len() < length {
        return Ok(None);
    }
    let client = match (addresses, rest) {
        (12, &[a, b, c, d, ..]) => Client::Behind(Ipv4Addr::new(a, b, c, d).into()),
        (36, rest) => {
            let source = rest.first_chunk::<16>().ok_or(Fault::Malformed)?;
            Client::Behind(Ipv6Addr::from(*source).into())
        }
        _ => Client::Proxy,
    };
    Ok(Some((client.canonical(), V2_FIXED + length)))
}

impl Client {
    fn canonical(self) -> Self {
        match self {
            Self::Proxy => Self::Proxy,
            Self::Behind(address) => Self::Behind(address.to_canonical()),
        }
    }
}

/// Takes the header off a fresh connection, and nothing behind it. `None`: the other side closed before it said anything,
/// as some health checks do.
///
/// # Errors
/// There is none, or it took too long.
pub(super) async fn receive(socket: &mut TcpStream) -> io::Result<Option<Client>> {
    timeout(DEADLINE, take(socket))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no PROXY header in time"))?
}

async fn take(socket: &mut TcpStream) -> io::Result<Option<Client>> {
    // On the heap: a session's task should not be larger for what only its first moment needs.
    let mut header = vec![0; V2_FIXED + V2_LIMIT];
    let mut taken = 0;
    loop {
        let seen = taken + socket.peek(&mut header[taken..]).await?;
        if seen == taken {
            return if taken == 0 { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        let found = parse(&header[..seen]).map_err(|fault| io::Error::new(io::ErrorKind::InvalidData, fault))?;
        // As long as the header is not whole, all that is there belongs to it.
        let end = found.map_or(seen, |(_, length)| length);
        socket.read_exact(&mut header[taken..end]).await?;
        taken = end;
        if let Some((client, _)) = found {
            return Ok(Some(client));
        }
    }
}
