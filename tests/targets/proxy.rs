//! The PROXY header, of both versions: what comes before a connection's first own byte.

use causeway::accept::proxy::{Client, Fault, parse};

pub fn proxy(data: &[u8]) {
    // Every beginning says the same as the whole, or that more is needed.
    let whole = parse(data);
    let mut first = None;
    for end in 1..=data.len().min(600) {
        match (parse(&data[..end]), &first) {
            (Ok(None), None) => {}
            (verdict, None) => first = Some(verdict),
            (verdict, Some(first)) => assert_eq!(&verdict, first, "the verdict changes behind {end} octets"),
        }
    }
    if data.len() <= 600 {
        assert_eq!(first.unwrap_or(Ok(None)), if data.is_empty() { Ok(None) } else { whole.clone() });
    }
    let (client, taken) = match whole {
        Ok(Some(found)) => found,
        Ok(None) => return assert!(data.len() < 16 + 216 + 4096, "it never ends"),
        Err(Fault::NotProxy | Fault::Malformed | Fault::TooLong) => return,
    };
    assert!(taken <= data.len() && taken > 0);
    // What follows is not its business, and none of it is taken.
    assert_eq!(parse(&data[..taken]), Ok(Some((client, taken))));
    assert_eq!(parse(&[&data[..taken], b"\x16\x03\x01EHLO\r\n"].concat()), Ok(Some((client, taken))));
    assert!(matches!(parse(&data[..taken - 1]), Ok(None)), "it was whole before its end");
    if data.starts_with(b"PROXY ") {
        assert!(taken <= 107 && data[..taken].ends_with(b"\r\n"));
        assert_eq!(data[..taken].iter().filter(|&&octet| octet == b'\n').count(), 1);
    }
    if let Client::Behind(address) = client {
        assert_eq!(address, address.to_canonical(), "an address has one form");
        // Said again it means the same: version 1 from version 2, and back.
        let kind = if address.is_ipv4() { "TCP4 {} 192.0.2.1 1 25" } else { "TCP6 {} 2001:db8::1 1 25" };
        let line = format!("PROXY {}\r\n", kind.replace("{}", &address.to_string()));
        assert_eq!(parse(line.as_bytes()), Ok(Some((client, line.len()))), "{line:?}");
    }
}
