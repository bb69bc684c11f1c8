//! The `Received:` field we put in front of every message.
//!
//! It is written for every message, so it is put together by hand into one allocation. Every clause stands on a
//! line of its own where the line would grow beyond 78 octets; none can grow beyond 998, whatever a client says.
//!
//! Standards: RFC 5321 section 4.4, RFC 3848 and 6531 (the words after `with`), 5322 section 3.3 (the date).

use std::fmt::Write as _;
use std::net::IpAddr;

use jiff::Timestamp;
use jiff::tz::Offset;

use super::{Address, Domain, MessageId};

/// The longest name of a client we repeat, in bytes, escaped as [`clean_name`] does it: three times that of the longest
/// domain, and it still fits on a line.
const HELLO_LIMIT: usize = 3 * 255;

/// The longest text about TLS we repeat.
const TLS_LIMIT: usize = 120;

/// RFC 5322 section 2.1.1: lines should not be longer, without their CRLF.
const LINE: usize = 78;

/// What the field tells of how a message came in.
#[derive(Debug, Clone)]
pub struct Received<'a> {
    /// What the client called itself, as [`clean_name`] gives it.
    pub hello: &'a str,
    /// Where it connected from.
    pub peer: IpAddr,
    /// Who we are.
    pub by: &'a Domain,
    /// EHLO rather than HELO.
    pub extended: bool,
    /// The session was in TLS: protocol version and cipher, if it was.
    pub tls: Option<&'a str>,
    /// The client was authenticated.
    pub authenticated: bool,
    /// SMTPUTF8 was given.
    pub utf8: bool,
    /// Our number of the message.
    pub id: MessageId,
    /// The recipient, where there is exactly one.
    pub only_recipient: Option<&'a Address>,
    /// When.
    pub at: Timestamp,
}

impl Received<'_> {
    /// The field, folded, with its final CRLF.
    pub fn to_field(&self) -> String {
        let mut field = Folded::start("Received: from ");
        let peer = Domain::from_ip(self.peer.to_canonical());
        if is_host_or_literal(self.hello) {
            push_name(&mut field.text, self.hello);
            field.clause(|text| write!(text, "({peer})"));
        } else {
            // RFC 5321 section 4.4 has a domain or a literal behind `from`, and this name is neither.
            field.text.push_str(peer.as_str());
            field.clause(|text| {
                text.push_str("(helo=");
                push_name(text, self.hello);
                text.push(')');
                Ok(())
            });
        }
        field.clause(|text| write!(text, "by {}", self.by));
        field.clause(|text| write!(text, "with {}", self.protocol()));
        if let Some(tls) = self.tls {
            field.clause(|text| {
                text.push('(');
                text.extend(tls.chars().take(TLS_LIMIT).map(|c| if is_comment(c) { c } else { '?' }));
                text.push(')');
                Ok(())
            });
        }
        field.clause(|text| write!(text, "id {}", self.id));
        // Without SMTPUTF8 the header is ASCII, and an address that is not cannot be named in it.
        if let Some(recipient) = self.only_recipient.filter(|recipient| self.utf8 || recipient.is_ascii()) {
            field.clause(|text| write!(text, "for <{recipient}>"));
        }
        field.text.push(';');
        field.clause(|text| {
            push_date(text, self.at);
            Ok(())
        });
        field.text.push_str("\r\n");
        field.text
    }

    /// The word after `with`. HELO has no extensions, so it is SMTP even in TLS: RFC 3848 names no SMTPS.
    fn protocol(&self) -> &'static str {
        match (self.extended, self.utf8, self.tls.is_some(), self.authenticated) {
            (false, _, _, _) => "SMTP",
            (true, false, false, false) => "ESMTP",
            (true, false, false, true) => "ESMTPA",
            (true, false, true, false) => "ESMTPS",
            (true, false, true, true) => "ESMTPSA",
            (true, true, false, false) => "UTF8SMTP",
            (true, true, false, true) => "UTF8SMTPA",
            (true, true, true, false) => "UTF8SMTPS",
            (true, true, true, true) => "UTF8SMTPSA",
        }
    }
}

/// A date as RFC 5322 section 3.3 writes it, in UTC: `Tue, 1 Jul 2025 12:34:56 +0000`.
///
/// The offset is `+0000`: `-0000` would say that we do not know where we are.
pub fn date(at: Timestamp) -> String {
    let mut text = String::with_capacity(31);
    push_date(&mut text, at);
    text
}

fn push_date(text: &mut String, at: Timestamp) {
    const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let at = Offset::UTC.to_datetime(at);
    let day = DAYS[at.weekday().to_monday_zero_offset().unsigned_abs() as usize % 7];
    let month = MONTHS[(at.month().unsigned_abs() as usize + 11) % 12];
    let (hour, minute, second) = (at.hour(), at.minute(), at.second());
    // Writing to a String cannot fail.
    let _ = write!(text, "{day}, {} {month} {:04} {hour:02}:{minute:02}:{second:02} +0000", at.day(), at.year());
}

/// A header field under construction.
struct Folded {
    text: String,
    line: usize,
}

impl Folded {
    fn start(name: &str) -> Self {
        let mut text = String::with_capacity(320);
        text.push_str(name);
        Self { text, line: 0 }
    }

    /// Appends a clause behind a blank, or on a new line if it does not fit on this one.
    fn clause(&mut self, write: impl FnOnce(&mut String) -> std::fmt::Result) {
        let blank = self.text.len();
        self.text.push(' ');
        // Writing to a String cannot fail.
        let _ = write(&mut self.text);
        // One more for the semicolon that may follow. A tab counts as the one octet that it is.
        if self.text.len() + 1 - self.line > LINE {
            self.text.replace_range(blank..=blank, "\r\n\t");
            self.line = blank + 2;
        }
    }
}

/// What names of protocols and ciphers consist of. Fewer than RFC 5322 section 3.2.2 allows in a comment: parsers
/// have been seen to stumble over quotes in there.
fn is_comment(c: char) -> bool {
    c.is_ascii_alphanumeric() || " ._-+/:".contains(c)
}

/// What a client called itself, so that it can stand in a header field, the log and events whatever it was: octets that
/// are no part of a host name become `%XX`, and the percent sign itself too, so that nobody can pretend to have been
/// escaped. An address literal stays as it is.
pub fn clean_name(name: &[u8]) -> String {
    let literal = is_literal(name);
    let mut text = String::with_capacity(name.len());
    for &octet in name {
        push_octet(&mut text, octet, literal);
    }
    text
}

/// Can it be a host's name, or the address literal of one? What [`clean_name`] had to escape cannot.
pub fn is_host_or_literal(name: &str) -> bool {
    is_literal(name.as_bytes()) || name.bytes().all(is_host_octet)
}

fn is_literal(name: &[u8]) -> bool {
    let inner = name.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]"));
    inner.is_some_and(|inner| {
        !inner.is_empty() && inner.iter().all(|&b| b.is_ascii_alphanumeric() || b":.-".contains(&b))
    })
}

fn is_host_octet(octet: u8) -> bool {
    octet.is_ascii_alphanumeric() || b".-_".contains(&octet)
}

fn push_octet(text: &mut String, octet: u8, literal: bool) {
    if is_host_octet(octet) || literal && b"[]:".contains(&octet) {
        text.push(char::from(octet));
    } else {
        // Writing to a String cannot fail.
        let _ = write!(text, "%{octet:02X}");
    }
}

/// The client's name. It is clean already; what is not, in spite of that, is made so.
fn push_name(text: &mut String, name: &str) {
    let name = if name.is_empty() { "unknown" } else { name };
    let literal = is_literal(name.as_bytes());
    let from = text.len();
    for &octet in name.as_bytes() {
        if text.len() - from >= HELLO_LIMIT {
            break;
        }
        match octet {
            b'%' => text.push('%'),
            octet => push_octet(text, octet, literal),
        }
    }
    if name.len() > HELLO_LIMIT && literal {
        // Its closing bracket was cut off.
        text.push(']');
    }
}

#[cfg(test)]
mod tests {
    use mail_parser::{MessageParser, Protocol};
    use proptest::prelude::*;

    use super::*;

    fn received<'a>(hello: &'a str, by: &'a Domain) -> Received<'a> {
        Received {
            hello,
            peer: IpAddr::from([192, 0, 2, 1]),
            by,
            extended: true,
            tls: None,
            authenticated: false,
            utf8: false,
            id: MessageId(0x2a),
            only_recipient: None,
            at: "2025-07-01T12:34:56Z".parse().unwrap(),
        }
    }

    fn domain(text: &str) -> Domain {
        Domain::parse(text).unwrap()
    }

    #[test]
    fn c230_the_field_as_rfc_5321_wants_it() {
        let by = domain("mail.contoso.com");
        let anna = Address::parse("anna@contoso.com").unwrap();
        let mut field = received("client.example.org", &by);
        assert_eq!(
            field.to_field(),
            "Received: from client.example.org ([192.0.2.1]) by mail.contoso.com\r\n\
             \twith ESMTP id 00000000002A; Tue, 1 Jul 2025 12:34:56 +0000\r\n"
        );
        field.tls = Some("TLSv1.3 TLS_AES_256_GCM_SHA384");
        field.only_recipient = Some(&anna);
        field.peer = "2001:db8::1".parse().unwrap();
        assert_eq!(
            field.to_field(),
            "Received: from client.example.org ([IPv6:2001:db8::1]) by mail.contoso.com\r\n\
             \twith ESMTPS (TLSv1.3 TLS_AES_256_GCM_SHA384) id 00000000002A\r\n\
             \tfor <anna@contoso.com>; Tue, 1 Jul 2025 12:34:56 +0000\r\n"
        );
        field.peer = "::ffff:192.0.2.7".parse().unwrap();
        assert!(field.to_field().contains("([192.0.2.7])"), "an IPv4 client on an IPv6 socket");
    }

    #[test]
    fn the_word_after_with() {
        let by = domain("mail.contoso.com");
        for (extended, utf8, tls, authenticated, expected) in [
            (false, false, false, false, "SMTP"),
            (false, false, true, false, "SMTP"),
            (true, false, false, false, "ESMTP"),
            (true, false, false, true, "ESMTPA"),
            (true, false, true, false, "ESMTPS"),
            (true, false, true, true, "ESMTPSA"),
            (true, true, false, false, "UTF8SMTP"),
            (true, true, false, true, "UTF8SMTPA"),
            (true, true, true, false, "UTF8SMTPS"),
            (true, true, true, true, "UTF8SMTPSA"),
        ] {
            let mut field = received("a", &by);
            (field.extended, field.utf8, field.authenticated) = (extended, utf8, authenticated);
            field.tls = tls.then_some("TLSv1.3");
            let text = field.to_field();
            let words: Vec<_> = text.split_ascii_whitespace().collect();
            let with = words.iter().position(|word| *word == "with").unwrap();
            assert_eq!(words[with + 1], expected);
        }
    }

    #[test]
    fn c231_for_names_ascii_recipients_unless_smtputf8() {
        let by = domain("mail.contoso.com");
        for (address, utf8, expected) in [
            ("anna@contoso.com", false, true),
            ("j\u{fc}rgen@contoso.com", false, false),
            ("j\u{fc}rgen@contoso.com", true, true),
        ] {
            let address = Address::parse(address).unwrap();
            let mut field = received("a", &by);
            (field.utf8, field.only_recipient) = (utf8, Some(&address));
            assert_eq!(field.to_field().contains(&format!("for <{address}>")), expected, "{address} {utf8}");
        }
    }

    /// What a client said, and how the field begins. What is no host name stands in a comment, behind the address.
    #[test]
    fn names_of_clients_are_cleaned_up() {
        let by = domain("mail.contoso.com");
        for (hello, expected) in [
            (&b"x) by evil; ("[..], "[192.0.2.1] (helo=x%29%20by%20evil%3B%20%28)"),
            (b"a\\", "[192.0.2.1] (helo=a%5C)"),
            (b"a\r\nSubject: b", "[192.0.2.1] (helo=a%0D%0ASubject%3A%20b)"),
            (b"[192.0.2.9]", "[192.0.2.9] ([192.0.2.1])"),
            (b"[IPv6:2001:db8::9]", "[IPv6:2001:db8::9] ([192.0.2.1])"),
            (b"[a]b]", "[192.0.2.1] (helo=%5Ba%5Db%5D)"),
            (b"100%", "[192.0.2.1] (helo=100%25)"),
            (b"a%20b", "[192.0.2.1] (helo=a%2520b)"),
            (b"host name with blanks", "[192.0.2.1] (helo=host%20name%20with%20blanks)"),
            (b"b\xfcro-pc", "[192.0.2.1] (helo=b%FCro-pc)"),
            ("b\u{fc}ro-pc".as_bytes(), "[192.0.2.1] (helo=b%C3%BCro-pc)"),
            (b"", "unknown ([192.0.2.1])"),
            (b"WIN_PC-1", "WIN_PC-1 ([192.0.2.1])"),
        ] {
            let hello = clean_name(hello);
            let text = received(&hello, &by).to_field();
            let flat = text.replace("\r\n\t", " ");
            assert!(flat.starts_with(&format!("Received: from {expected} by mail.contoso.com")), "{hello}: {text}");
        }
        // Whoever forgot to clean it up does no harm.
        let text = received("x) (\u{fc}\r\n y", &by).to_field();
        assert!(text.starts_with("Received: from [192.0.2.1] (helo=x%29%20%28%C3%BC%0D%0A%20y)"), "{text}");
    }

    #[test]
    fn dates_have_a_numeric_offset() {
        for (at, expected) in [
            ("2025-07-01T12:34:56.999999Z", "Tue, 1 Jul 2025 12:34:56 +0000"),
            ("1999-12-31T23:59:59Z", "Fri, 31 Dec 1999 23:59:59 +0000"),
            ("2024-02-29T00:00:00Z", "Thu, 29 Feb 2024 00:00:00 +0000"),
        ] {
            assert_eq!(date(at.parse().unwrap()), expected);
        }
    }

    proptest! {
        #[test]
        fn the_field_parses_and_fits_whatever_the_client_says(
            hello in "\\PC{0,300}", tls in proptest::option::of("\\PC{0,300}"), local in "[a-z]{1,64}", label in "[a-z]{1,60}",
        ) {
            let by = domain(&format!("{label}.{label}.{label}.example"));
            let to = Address::parse(&format!("{local}@{label}.{label}.example")).unwrap();
            let mut field = received(&hello, &by);
            (field.tls, field.only_recipient) = (tls.as_deref(), Some(&to));
            let text = field.to_field();
            prop_assert!(text.is_ascii() && text.ends_with("\r\n"));
            for line in text.strip_suffix("\r\n").unwrap().split("\r\n") {
                prop_assert!(line.len() <= 998 - 2 && !line.contains(['\r', '\n']));
            }
            for line in text.strip_suffix("\r\n").unwrap().split("\r\n").skip(1) {
                prop_assert!(line.starts_with('\t') && line.trim() != "");
            }
            prop_assert_eq!(super::super::header::fields(text.as_bytes()).count(), 1);
            let parsed = MessageParser::default().parse(&text).unwrap().into_owned();
            let parsed = parsed.received().unwrap();
            prop_assert_eq!(parsed.date().map(|date| date.to_timestamp()), Some(field.at.as_second()));
            prop_assert_eq!(parsed.id(), Some("00000000002A"));
            prop_assert_eq!(parsed.for_().map(str::to_owned), Some(to.to_string()));
            prop_assert!(matches!(parsed.with(), Some(Protocol::ESMTP | Protocol::ESMTPS)));
        }
    }
}
