//! A message's header: the scanner, the firewall, visit marks, and the Received field that goes in front.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::Bytes;
use causeway::message::firewall::{self, is_organization};
use causeway::message::header::{self, FIELD_LIMIT, HEADER_LIMIT};
use causeway::message::received::{self, Received};
use causeway::message::visit::{FIELD, KEY_LEN, Key, MARK_LIMIT, Mark, Visit};
use causeway::message::{Address, Body, Domain, MessageId};
use jiff::Timestamp;

use super::{Cuts, directives};

/// A message as anybody may send it.
pub fn header(message: &[u8]) {
    let facts = header::facts(message);
    let fields: Vec<_> = header::fields(message).collect();
    assert!(fields.len() <= FIELD_LIMIT);
    // Every octet up to the end of the fields belongs to one field, in order.
    let covered: usize = fields.iter().map(|field| field.raw.len()).sum();
    let raw: Vec<u8> = fields.iter().flat_map(|field| field.raw).copied().collect();
    assert!(covered <= HEADER_LIMIT && raw == message[..covered], "octets lost or found");
    for (number, field) in fields.iter().enumerate() {
        assert!(!field.raw.is_empty());
        assert!(number == 0 || !matches!(field.raw[0], b' ' | b'\t'), "a fold is no field");
        assert!(number + 1 == fields.len() || field.raw.ends_with(b"\n"));
        assert!(field.name().iter().all(u8::is_ascii_graphic) && !field.name().contains(&b':'));
        assert!(field.raw.ends_with(field.value()));
        assert!(field.name().is_empty() || field.raw.starts_with(field.name()));
    }

    let named = |name: &str| fields.iter().filter(|field| field.is(name)).count();
    assert_eq!(facts.received, named("Received"));
    assert_eq!(facts.organization, fields.iter().any(is_organization));
    assert_eq!(facts.eight_bit, !message[..covered].is_ascii());
    assert!(facts.visits.len() <= MARK_LIMIT);
    if let Some(id) = &facts.message_id {
        assert!(named("Message-ID") > 0, "a Message-ID from nowhere");
        assert!(id.len() > 2 && id.len() <= 998 && id.starts_with('<') && id.ends_with('>'), "{id:?}");
        assert!(!id.chars().any(|letter| letter.is_control() || letter == ' '), "{id:?}");
        assert_eq!(id.matches(['<', '>']).count(), 2, "{id:?}");
        // It is found again where it is written as it should be, by us or by the next relay.
        let again = header::facts(format!("Message-ID: {id}\r\n\r\n").as_bytes());
        assert_eq!(again.message_id.as_ref(), Some(id));
    }

    // The block ends after the fields, at the first empty line.
    match header::block_len(message) {
        Some(end) => {
            assert!(end <= message.len() && end <= HEADER_LIMIT);
            assert!(message[..end].ends_with(b"\n"));
            assert!(fields.len() == FIELD_LIMIT || (covered < end && end - covered <= 2), "{covered} and {end}");
            // What follows the empty line is body: it changes nothing.
            assert_eq!(header::facts(&message[..end]), facts, "the body counts");
            assert!(fields.len() == FIELD_LIMIT || facts.is_judged(message.len() as u64));
        }
        None => assert!(message.len() > HEADER_LIMIT || fields.len() == FIELD_LIMIT || covered == message.len()),
    }
    // A body in front of which there is no header has none.
    let body = [b"\r\n", message].concat();
    assert_eq!(header::facts(&body), header::facts(b"\r\n"));

    for originator in header::originators(message) {
        match originator {
            Ok(domain) => assert!(domain.literal().is_none()),
            Err(text) => assert!(text.is_ascii() && text.len() <= 128 && !text.contains(['\r', '\n'])),
        }
    }
    // A Received field in front is one more, and changes nothing else.
    let ours = b"Received: from a ([192.0.2.1])\r\n\tby b; now\r\n";
    if fields.len() < FIELD_LIMIT && message.len() + ours.len() <= HEADER_LIMIT && !fold_first(message) {
        let with = header::facts(&[ours, message].concat());
        assert_eq!((with.received, with.message_id, with.visits), (facts.received + 1, facts.message_id, facts.visits));
        assert_eq!((with.eight_bit, with.organization), (facts.eight_bit, facts.organization));
    }
}

/// A first line that begins with a blank would be part of a field in front of it.
fn fold_first(message: &[u8]) -> bool {
    matches!(message.first(), Some(b' ' | b'\t'))
}

/// What the cut may leave out, by a reader of its own: lines are put together to fields, and a field whose printable
/// octets begin with one of the prefixes goes.
fn cut(message: &[u8]) -> Vec<u8> {
    let (mut left, mut field, mut rest): (Vec<u8>, Vec<u8>, &[u8]) = (Vec::new(), Vec::new(), message);
    let flush = |field: &mut Vec<u8>, left: &mut Vec<u8>| {
        let visible: String =
            field.iter().filter(|octet| (b'!'..=b'~').contains(*octet)).map(|octet| char::from(*octet)).collect();
        let visible = visible.to_ascii_lowercase();
        if !firewall::PREFIXES.iter().any(|prefix| visible.starts_with(&prefix.to_ascii_lowercase())) {
            left.append(field);
        }
        field.clear();
    };
    while !rest.is_empty() && rest[0] != b'\n' && !rest.starts_with(b"\r\n") {
        let end = rest.iter().position(|&octet| octet == b'\n').map_or(rest.len(), |end| end + 1);
        if !matches!(rest[0], b' ' | b'\t') {
            flush(&mut field, &mut left);
        }
        field.extend_from_slice(&rest[..end]);
        rest = &rest[end..];
    }
    flush(&mut field, &mut left);
    left.extend_from_slice(rest);
    left
}

/// Organization headers go, every other octet stays; and once cut, nothing is left to cut.
pub fn firewall(message: &[u8]) {
    let facts = header::facts(message);
    let left = firewall::cut(message);
    assert_eq!(left.len() == message.len(), !facts.organization, "something else was cut");
    assert_eq!(left.escape_ascii().to_string(), cut(message).escape_ascii().to_string());
    if !fold_first(&left) {
        let after = header::facts(&left);
        assert!(!after.organization, "left over: {}", left.escape_ascii());
        assert_eq!(*firewall::cut(&left), *left, "cut twice is not cut once");
        assert_eq!((after.received, &after.message_id), (facts.received, &facts.message_id));
        assert_eq!(after.is_judged(left.len() as u64), facts.is_judged(message.len() as u64));
    }
    // In pieces in memory, as a message comes from the socket.
    for cuts in Cuts::of(message) {
        let pieces: Vec<Bytes> = cuts.pieces(message).into_iter().map(Bytes::copy_from_slice).collect();
        let (front, rest) = firewall::cut_body(Body::Memory(pieces.into())).unwrap();
        let whole = [front.concat(), read(&rest).unwrap()].concat();
        assert_eq!(whole.escape_ascii().to_string(), left.escape_ascii().to_string(), "{cuts:?}");
    }
}

fn read(body: &Body) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let block = body.read(all.len() as u64, 100)?;
        if block.is_empty() {
            return Ok(all);
        }
        all.extend_from_slice(&block);
    }
}

/// The field that goes in front of every message. The first line of a case has flags, the second is what the client
/// called itself, the third what TLS calls itself, the fourth a recipient.
pub fn received(data: &[u8]) {
    let (flags, rest) = directives(data);
    let text = String::from_utf8_lossy(rest);
    let mut lines = text.split('\n');
    let (hello, tls, to) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default(), lines.next());
    let is = |word: &str| flags.contains(&word);
    let to = to.and_then(|to| Address::parse(to.trim()).ok());
    let by = Domain::parse("mail.contoso.com").unwrap();
    let at = flags.iter().find_map(|word| word.parse().ok().and_then(|second| Timestamp::from_second(second).ok()));
    let at = at.unwrap_or(Timestamp::UNIX_EPOCH);
    let peer = if is("v6") { IpAddr::V6(Ipv6Addr::LOCALHOST) } else { IpAddr::V4(Ipv4Addr::LOCALHOST) };
    let field = Received {
        hello,
        peer,
        by: &by,
        extended: !is("helo"),
        tls: Some(tls).filter(|tls| !tls.is_empty()),
        authenticated: is("auth"),
        utf8: is("utf8"),
        id: MessageId(42),
        only_recipient: to.as_ref(),
        at,
    }
    .to_field();

    // C232: one field, whatever the client says, with lines that may be sent, and nothing of the client's that acts.
    assert!(field.starts_with("Received: from ") && field.ends_with("\r\n"));
    let lines: Vec<&str> = field[..field.len() - 2].split("\r\n").collect();
    assert!(lines.iter().all(|line| line.len() <= 998 && !line.contains(['\r', '\n', '\0'])), "{field:?}");
    assert!(lines[1..].iter().all(|line| line.starts_with('\t') && !line.trim().is_empty()), "{field:?}");
    let octets = |field: &str| field.bytes().all(|octet| matches!(octet, b' '..=b'~' | b'\r' | b'\n' | b'\t'));
    let named = to.as_ref().filter(|to| is("utf8") || to.is_ascii());
    assert!(octets(&field) || (is("utf8") && named.is_some_and(|to| !to.is_ascii())), "{field:?}");
    assert_eq!(field.contains(" for <") || field.contains("\tfor <"), named.is_some(), "{field:?}");
    let mut fields = header::fields(field.as_bytes());
    let only = fields.next().expect("there is a field");
    assert!(only.is("Received") && only.raw == field.as_bytes() && fields.next().is_none(), "{field:?}");
    let facts = header::facts(field.as_bytes());
    assert_eq!((facts.received, facts.organization, facts.message_id), (1, false, None));
    let unfolded = field.replace("\r\n\t", " ");
    let date = received::date(at);
    assert!(unfolded.ends_with(&format!("; {date}\r\n")), "{unfolded:?}");
    let said: Vec<&str> = unfolded.split(' ').collect();
    let literal = format!("{}", Domain::from_ip(peer));
    match received::is_host_or_literal(hello) {
        true => {
            let word = if hello.is_empty() { "unknown" } else { said[2] };
            assert_eq!(said[2..4], [word, &format!("({literal})")], "the client's name is one word: {unfolded:?}");
        }
        false => {
            let name = said[3].strip_prefix("(helo=").and_then(|name| name.strip_suffix(')'));
            let clean = |octet: u8| octet.is_ascii_alphanumeric() || b".-_%[]:".contains(&octet);
            assert!(said[2] == literal && name.is_some_and(|name| name.bytes().all(clean)), "{unfolded:?}");
        }
    }
    assert_eq!(said[4..7], ["by", "mail.contoso.com", "with"], "{unfolded:?}");
}

/// Marks in a header: the case is the header. Ours are known, whatever stands around them, and nobody else's.
pub fn visit(message: &[u8]) {
    let key = Key::new(&[7; KEY_LEN]);
    let to = Address::parse("david@contoso.com").unwrap();
    let visit = Visit { by: "internet", asked: &to, via: "to-cloud", to: &to };
    let facts = header::facts(message);
    // Nobody can make one without the key. A case that holds a true one says so in its first line.
    let known = key.when(&facts.visits, &visit);
    let is_true = message.starts_with(b"X-True: ");
    assert!(known.is_none() || is_true, "a mark that was not made is known");
    for field in header::fields(message) {
        let _ = Mark::parse(field.value());
        if field.is(FIELD) && field.value().trim_ascii().is_empty() {
            assert_eq!(Mark::parse(field.value()), None);
        }
    }
    let at = Timestamp::from_second(1_763_737_200).unwrap();
    let ours = key.field(MessageId(0xA3F), at, [visit]);
    assert!(ours.lines().all(|line| line.len() <= 78));
    // In front of what the stranger wrote it is found, and the earlier of two counts.
    if !fold_first(message) && message.len() + ours.len() <= HEADER_LIMIT {
        let with = header::facts(&[ours.as_bytes(), message].concat());
        assert_eq!(key.when(&with.visits, &visit), Some(known.map_or(at, |known| known.min(at))));
        let other = Visit { via: "to-on-premises", ..visit };
        assert!(key.when(&with.visits, &other).is_none() || is_true);
    }
}
