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
pub enum Client {
    /// The proxy itself, for a health check say, or it does not know: the connection's own address counts.
    Proxy,
    /// A client behind it.
    Behind(IpAddr),
}

/// Why there is no header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
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
///
/// # Errors
/// It is none, whatever follows.
pub fn parse(bytes: &[u8]) -> Result<Option<(Client, usize)>, Fault> {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    fn behind(address: &str) -> Client {
        Client::Behind(address.parse().unwrap())
    }

    /// A header of version 2 with this command, family and what the length counts.
    fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, rest].concat()
    }

    /// 192.0.2.1:56324 to 198.51.100.1:25.
    const V4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 0x04, 0, 25];

    fn v6() -> Vec<u8> {
        let address = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
        [&address("2001:db8::7")[..], &address("2001:db8::1"), &[0xdc, 0x04, 0, 25]].concat()
    }

    #[test]
    fn headers_of_version_1() {
        let longest = "PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535";
        let filled = format!("PROXY UNKNOWN {}", "x".repeat(107 - 16));
        for (line, expected) in [
            ("PROXY TCP4 192.0.2.1 198.51.100.1 56324 25", Ok(behind("192.0.2.1"))),
            ("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535", Ok(behind("255.255.255.255"))),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 0 0", Ok(behind("192.0.2.1"))),
            ("PROXY TCP6 2001:db8::7 2001:db8::1 56324 25", Ok(behind("2001:db8::7"))),
            ("PROXY TCP6 ::ffff:192.0.2.1 ::ffff:198.51.100.1 56324 25", Ok(behind("192.0.2.1"))),
            ("PROXY UNKNOWN", Ok(Client::Proxy)),
            (longest, Ok(Client::Proxy)),
            (&filled, Ok(Client::Proxy)),
            ("PROXY", Err(Fault::NotProxy)),
            ("PROXY ", Err(Fault::Malformed)),
            ("PROXY TCP4", Err(Fault::Malformed)),
            ("PROXY TCP5 192.0.2.1 198.51.100.1 56324 25", Err(Fault::Malformed)),
            ("PROXY tcp4 192.0.2.1 198.51.100.1 56324 25", Err(Fault::Malformed)),
            ("proxy TCP4 192.0.2.1 198.51.100.1 56324 25", Err(Fault::NotProxy)),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 56324", Err(Fault::Malformed)),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 56324 25 ", Err(Fault::Malformed)),
            ("PROXY TCP4  192.0.2.1 198.51.100.1 56324 25", Err(Fault::Malformed)),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 56324 65536", Err(Fault::Malformed)),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 56324 +25", Err(Fault::Malformed)),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 056324 25", Err(Fault::Malformed)),
            ("PROXY TCP4 192.0.2.01 198.51.100.1 56324 25", Err(Fault::Malformed)),
            ("PROXY TCP4 192.0.2 198.51.100.1 56324 25", Err(Fault::Malformed)),
            ("PROXY TCP4 2001:db8::7 2001:db8::1 56324 25", Err(Fault::Malformed)),
            ("PROXY TCP6 192.0.2.1 198.51.100.1 56324 25", Err(Fault::Malformed)),
            ("PROXY TCP6 fe80::1%eth0 2001:db8::1 56324 25", Err(Fault::Malformed)),
            ("PROXY TCP4 192.0.2.1\u{0} 198.51.100.1 56324 25", Err(Fault::Malformed)),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 56324 25\nEHLO x", Err(Fault::Malformed)),
            (&format!("{filled}x"), Err(Fault::TooLong)),
            ("EHLO client.example", Err(Fault::NotProxy)),
            ("", Err(Fault::NotProxy)),
        ] {
            let bytes = format!("{line}\r\n220 what follows");
            let expected = expected.map(|client| Some((client, line.len() + 2)));
            assert_eq!(parse(bytes.as_bytes()), expected, "{line:?}");
        }
    }

    #[test]
    fn headers_of_version_2() {
        let with_more = |addresses: &[u8], more: usize| [addresses, &vec![0xea; more]].concat();
        for (what, header, expected) in [
            ("TCP over IPv4", binary(0x21, 0x11, &V4), Ok(behind("192.0.2.1"))),
            ("TCP over IPv6", binary(0x21, 0x21, &v6()), Ok(behind("2001:db8::7"))),
            ("with more behind the addresses", binary(0x21, 0x11, &with_more(&V4, 4096)), Ok(behind("192.0.2.1"))),
            ("the most there may be", binary(0x21, 0x21, &with_more(&v6(), 4276)), Ok(behind("2001:db8::7"))),
            ("LOCAL", binary(0x20, 0x00, &[]), Ok(Client::Proxy)),
            ("LOCAL with addresses", binary(0x20, 0x11, &V4), Ok(Client::Proxy)),
            ("LOCAL of a family to come", binary(0x20, 0x77, &[1, 2, 3]), Ok(Client::Proxy)),
            ("of no family", binary(0x21, 0x00, &[9; 20]), Ok(Client::Proxy)),
            ("too much", binary(0x21, 0x11, &with_more(&V4, 4301)), Err(Fault::TooLong)),
            ("too much for a LOCAL", binary(0x20, 0x00, &[0; 5000]), Err(Fault::TooLong)),
            ("too few for IPv4", binary(0x21, 0x11, &V4[..11]), Err(Fault::Malformed)),
            ("too few for IPv6", binary(0x21, 0x21, &V4), Err(Fault::Malformed)),
            ("datagrams", binary(0x21, 0x12, &V4), Err(Fault::Malformed)),
            ("a UNIX socket", binary(0x21, 0x31, &[0; 216]), Err(Fault::Malformed)),
            ("an unknown family", binary(0x21, 0x41, &[0; 216]), Err(Fault::Malformed)),
            ("an unknown command", binary(0x22, 0x11, &V4), Err(Fault::Malformed)),
            ("version 1 in version 2", binary(0x11, 0x11, &V4), Err(Fault::Malformed)),
            ("version 3", binary(0x31, 0x11, &V4), Err(Fault::Malformed)),
        ] {
            let bytes = [&header[..], b"EHLO"].concat();
            assert_eq!(parse(&bytes), expected.map(|client| Some((client, header.len()))), "{what}");
        }
    }

    fn header() -> impl Strategy<Value = Vec<u8>> {
        let (v4, v6) = (any::<[u8; 4]>().prop_map(Ipv4Addr::from), any::<[u8; 16]>().prop_map(Ipv6Addr::from));
        prop_oneof![
            (v4, any::<(u16, u16)>())
                .prop_map(|(ip, (from, to))| format!("PROXY TCP4 {ip} 198.51.100.1 {from} {to}\r\n").into_bytes()),
            (v6, any::<(u16, u16)>())
                .prop_map(|(ip, (from, to))| format!("PROXY TCP6 {ip} ::1 {from} {to}\r\n").into_bytes()),
            "PROXY [A-Z0-9 .:]{0,120}\r\n".prop_map(String::into_bytes),
            (0x1f_u8..0x23, 0x10_u8..0x13, prop::collection::vec(any::<u8>(), 0..80))
                .prop_map(|(command, family, rest)| binary(command, family, &rest)),
            (prop::sample::select(vec![0x00_u8, 0x11, 0x21]), prop::collection::vec(any::<u8>(), 36..80))
                .prop_map(|(family, rest)| binary(0x21, family, &rest)),
            prop::collection::vec(any::<u8>(), 0..40),
        ]
    }

    /// What [`take`] makes of a stream whose octets arrive in pieces: client and how many octets it took, or a fault.
    fn cut(stream: &[u8], cuts: &[usize]) -> Option<Result<(Client, usize), Fault>> {
        let mut seen = 0;
        for cut in cuts.iter().cycle() {
            if seen == stream.len() {
                return None;
            }
            seen = stream.len().min(seen + cut);
            match parse(&stream[..seen]) {
                Ok(None) => {}
                Ok(Some(found)) => return Some(Ok(found)),
                Err(fault) => return Some(Err(fault)),
            }
        }
        None
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// However the octets are cut, the same is found, and never more octets are taken than there are.
        #[test]
        fn a_header_does_not_depend_on_segments(
            header in header(),
            behind in prop::collection::vec(any::<u8>(), 0..200),
            cuts in prop::collection::vec(1_usize..40, 1..10),
        ) {
            let stream = [header, behind].concat();
            let whole = cut(&stream, &[usize::MAX / 2]);
            prop_assert_eq!(&cut(&stream, &[1]), &whole);
            prop_assert_eq!(&cut(&stream, &cuts), &whole);
            if let Some(Ok((_, taken))) = whole {
                prop_assert!(taken <= stream.len());
                // What is behind has no say.
                prop_assert_eq!(cut(&stream[..taken], &[usize::MAX / 2]), whole);
            }
        }
    }

    /// Over a socket, cut in two at every place: nothing behind the header is gone, and nothing of it is left.
    #[tokio::test]
    async fn what_follows_is_left_in_the_socket() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        for (header, expected) in [
            (b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 25\r\n".to_vec(), behind("192.0.2.1")),
            (b"PROXY UNKNOWN\r\n".to_vec(), Client::Proxy),
            (binary(0x21, 0x21, &v6()), behind("2001:db8::7")),
            (binary(0x20, 0x00, &[]), Client::Proxy),
        ] {
            let stream = [&header[..], b"\x16\x03\x01EHLO\r\n"].concat();
            for at in 0..=stream.len() {
                let mut proxy = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
                let (mut socket, _) = listener.accept().await.unwrap();
                proxy.set_nodelay(true).unwrap();
                let (front, back) = stream.split_at(at);
                let sending = async {
                    proxy.write_all(front).await.unwrap();
                    tokio::task::yield_now().await;
                    proxy.write_all(back).await.unwrap();
                    proxy.shutdown().await.unwrap();
                };
                let (found, ()) = tokio::join!(receive(&mut socket), sending);
                assert_eq!(found.unwrap(), Some(expected), "cut at {at}");
                let mut rest = Vec::new();
                socket.read_to_end(&mut rest).await.unwrap();
                assert_eq!(rest, b"\x16\x03\x01EHLO\r\n", "cut at {at}");
            }
        }
    }

    #[tokio::test]
    async fn an_end_before_the_header_is_whole() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        for (sent, expected) in [
            (&b""[..], None),
            (b"PROXY TCP4 192.0", Some(io::ErrorKind::UnexpectedEof)),
            (b"\r\n\r\n\0", Some(io::ErrorKind::UnexpectedEof)),
            (b"EHLO client.example\r\n", Some(io::ErrorKind::InvalidData)),
        ] {
            let mut proxy = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (mut socket, _) = listener.accept().await.unwrap();
            proxy.write_all(sent).await.unwrap();
            proxy.shutdown().await.unwrap();
            let found = receive(&mut socket).await;
            assert_eq!(found.as_ref().err().map(io::Error::kind), expected, "{sent:?}");
            assert!(found.is_err() || found.unwrap().is_none());
        }
    }
}
