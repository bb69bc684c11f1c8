//! Header fields found without touching a byte.
//!
//! The only module that names mail-parser. A header block may be anything a stranger sent: it is read within
//! limits, once from front to back, and what cannot be read is left alone.
//!
//! The common fields are found by a scan for line ends, since every message passes here; mail-parser reads what
//! a scan cannot, such as a `Message-ID` without its brackets.
//!
//! Standards: RFC 5322 sections 2.2 (fields, folding), 3.6.4 (Message-ID), 4.5.8 (blanks before the colon).

use mail_parser::HeaderValue;
use mail_parser::parsers::MessageStream;
use memchr::memchr;

use super::Domain;
use super::firewall::is_organization;
use super::visit;

/// The longest header block we look at, in bytes. What comes after is not searched; a message whose header block goes on
/// is not taken, or forged fields could stand where nobody looks.
pub const HEADER_LIMIT: usize = 1 << 20;

/// The most fields we look at: the loop limit is 60 `Received`, and no honest message has a hundredth of this.
pub const FIELD_LIMIT: usize = 10_000;

/// The longest `Message-ID` we know again. RFC 5322 section 2.1.1: it has to fit on a line.
const MESSAGE_ID_LIMIT: usize = 998 - "Message-ID: ".len();

/// What the relay wants to know of a header block.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// `Message-ID` with its angle brackets, if there is one that fits on a line.
    pub message_id: Option<String>,
    /// How many `Received` fields there are.
    pub received: usize,
    /// True if a byte of the header block is above 127.
    pub eight_bit: bool,
    /// The marks of visits, by whichever relay; at most [`visit::MARK_LIMIT`].
    pub visits: Vec<visit::Mark>,
    /// There are organization headers, true or forged.
    pub organization: bool,
    /// How many bytes were read as fields.
    covered: usize,
    /// The empty line that ends the block follows them.
    ended: bool,
}

/// One field as it stands in the message: all its lines, with their line ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    /// Every byte of it, from its name to the end of its last line.
    pub raw: &'a [u8],
    colon: Option<usize>,
}

/// The fields of a header block, in order. Made by [`fields`].
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    head: &'a [u8],
    at: usize,
    left: usize,
}

impl Facts {
    /// Was the whole header block within our limits, in a message of so many bytes? A message without an empty line is
    /// all header.
    pub fn is_judged(&self, message_len: u64) -> bool {
        self.ended || self.covered as u64 == message_len
    }
}

/// Reads the facts from `head`, the first bytes of a message (which may be the whole of it).
pub fn facts(head: &[u8]) -> Facts {
    let mut facts = Facts::default();
    let mut fields = fields(head);
    for field in fields.by_ref() {
        // The first letter settles it for nearly every field; comparing names costs more than finding lines.
        match field.raw[0] | 0x20 {
            b'r' if field.is("Received") => facts.received += 1,
            b'm' if facts.message_id.is_none() && field.is("Message-ID") => {
                facts.message_id = message_id(field.value());
            }
            b'x' if facts.visits.len() < visit::MARK_LIMIT && field.is(visit::FIELD) => {
                facts.visits.extend(visit::Mark::parse(field.value()));
            }
            b'x' if !facts.organization => facts.organization = is_organization(&field),
            // Behind what is no letter at all a name may hide.
            _ if !field.raw[0].is_ascii_graphic() && !facts.organization => {
                facts.organization = is_organization(&field);
            }
            _ => {}
        }
    }
    facts.eight_bit = !fields.head[..fields.at].is_ascii();
    facts.covered = fields.at;
    // The block with its empty line has at most HEADER_LIMIT bytes, as in `block_len`.
    facts.ended = empty_line(&fields.head[fields.at..]).is_some();
    facts
}

/// The values of all `X-OriginatorOrg` fields: the organization of a message's author, as the cloud service vouches for
/// it. `Err` is one that names no domain.
pub fn originators(head: &[u8]) -> impl Iterator<Item = Result<Domain, String>> {
    fields(head).filter(|field| field.is("X-OriginatorOrg")).map(|field| {
        let text = without_comments(field.value());
        text.and_then(|text| Domain::parse(text.trim()).ok())
            .filter(|domain| domain.literal().is_none())
            .ok_or_else(|| field.value().trim_ascii().escape_ascii().take(128).map(char::from).collect())
    })
}

/// A field's value without its comments and folds; `None` if a comment does not end. RFC 5322 section 3.2.2.
pub(super) fn without_comments(value: &[u8]) -> Option<String> {
    let mut text = String::with_capacity(value.len().min(256));
    let (mut depth, mut quoted) = (0usize, false);
    for byte in value {
        match byte {
            _ if quoted => quoted = false,
            b'\\' if depth > 0 => quoted = true,
            b'(' => depth += 1,
            b')' if depth > 0 => depth -= 1,
            b'\r' | b'\n' => {}
            _ if depth == 0 => text.push(char::from(*byte)),
            _ => {}
        }
    }
    (depth == 0).then_some(text)
}

/// What a `Content-Type` field says, as far as the relay asks: RFC 2045 section 5.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ContentType {
    /// `text`, in lower case.
    pub main: String,
    /// `plain`, in lower case.
    pub sub: String,
    /// Of a multipart.
    pub boundary: Option<String>,
}

impl ContentType {
    /// Of a type without parameters.
    pub fn new(name: &str) -> Self {
        let (main, sub) = name.split_once('/').unwrap_or((name, ""));
        Self { main: main.to_ascii_lowercase(), sub: sub.to_ascii_lowercase(), boundary: None }
    }
}

/// Reads the value of a `Content-Type` field; `None`: it names no type and subtype.
pub(super) fn content_type(value: &[u8]) -> Option<ContentType> {
    let line = [value, b"\r\n"].concat();
    let HeaderValue::ContentType(read) = MessageStream::new(&line).parse_content_type() else { return None };
    let main = read.ctype().to_ascii_lowercase();
    let sub = match read.subtype() {
        Some(sub) => sub.to_ascii_lowercase(),
        // What RFC 1049 programs wrote: RFC 2045 section 5.2 has a reader take it for this.
        None if main == "text" => "plain".to_owned(),
        None => return None,
    };
    Some(ContentType { main, sub, boundary: read.attribute("boundary").map(str::to_owned) })
}

/// The length of the header block in `head`, with the empty line that ends it; `None` if it does not end there.
pub fn block_len(head: &[u8]) -> Option<usize> {
    let head = &head[..head.len().min(HEADER_LIMIT)];
    let mut at = 0;
    loop {
        if let Some(len) = empty_line(&head[at..]) {
            return Some(at + len);
        }
        at += memchr(b'\n', &head[at..])? + 1;
    }
}

/// The fields of the header block in `head`, up to the empty line, the end, or our limits.
///
/// A first line that begins with a blank, and a line without a colon, come as fields without a name.
pub fn fields(head: &[u8]) -> Fields<'_> {
    Fields { left: FIELD_LIMIT, ..all_fields(head) }
}

/// The same, however many they are.
pub(super) fn all_fields(head: &[u8]) -> Fields<'_> {
    Fields { head: &head[..head.len().min(HEADER_LIMIT)], at: 0, left: usize::MAX }
}

impl<'a> Field<'a> {
    /// Is this its name? Without regard to case.
    pub fn is(&self, name: &str) -> bool {
        self.name().eq_ignore_ascii_case(name.as_bytes())
    }

    /// Does its name begin so? Without regard to case.
    pub fn starts_with(&self, prefix: &str) -> bool {
        self.name().get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
    }

    /// The name; empty where there is none.
    pub fn name(&self) -> &'a [u8] {
        self.raw[..self.colon.unwrap_or(0)].trim_ascii_end()
    }

    /// What follows the colon, folded as it came.
    pub fn value(&self) -> &'a [u8] {
        self.colon.map_or(&[], |colon| &self.raw[colon + 1..])
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        let rest = &self.head[self.at..];
        if rest.is_empty() || self.left == 0 || empty_line(rest).is_some() {
            return None;
        }
        self.left -= 1;
        let mut end = 0;
        loop {
            end += memchr(b'\n', &rest[end..]).map_or(rest.len() - end, |newline| newline + 1);
            // A line that begins with a blank continues the field: RFC 5322 section 2.2.3.
            if !matches!(rest.get(end), Some(b' ' | b'\t')) {
                break;
            }
        }
        self.at += end;
        let raw = &rest[..end];
        let first_line = &raw[..memchr(b'\n', raw).unwrap_or(end)];
        let colon = memchr(b':', first_line)
            .filter(|&colon| colon > 0 && raw[..colon].trim_ascii_end().iter().all(u8::is_ascii_graphic));
        Some(Field { raw, colon })
    }
}

/// The length of the empty line that `rest` begins with, if it does. A bare LF is never let in over SMTP, but what
/// is read here may also have been written before that was so.
fn empty_line(rest: &[u8]) -> Option<usize> {
    match rest {
        [b'\r', b'\n', ..] => Some(2),
        [b'\n', ..] => Some(1),
        _ => None,
    }
}

/// The identifier in the value of a `Message-ID` field, with its brackets.
fn message_id(value: &[u8]) -> Option<String> {
    let value = &value[..value.len().min(2 * MESSAGE_ID_LIMIT)];
    let trimmed = value.trim_ascii();
    // Nearly always it is `<id>` and nothing else, perhaps on a line of its own.
    if let Some(inner) = trimmed.strip_prefix(b"<").and_then(|rest| rest.strip_suffix(b">"))
        && is_identifier(inner)
    {
        return Some(String::from_utf8_lossy(trimmed).into_owned());
    }
    // Two of them, none with brackets, blanks inside: mail-parser knows what mail programs have made of it.
    let mut line = Vec::with_capacity(value.len() + 2);
    line.extend_from_slice(value);
    line.extend_from_slice(b"\r\n");
    let id = match MessageStream::new(&line).parse_id() {
        HeaderValue::Text(id) => id,
        HeaderValue::TextList(mut ids) if !ids.is_empty() => ids.swap_remove(0),
        _ => return None,
    };
    is_identifier(id.as_bytes()).then(|| format!("<{id}>"))
}

/// Something that can stand between `<` and `>`: no blanks, controls or brackets, UTF-8, and short enough.
fn is_identifier(id: &[u8]) -> bool {
    !id.is_empty()
        && id.len() + 2 <= MESSAGE_ID_LIMIT
        && id.iter().all(|&byte| byte > b' ' && byte != 0x7f && byte != b'<' && byte != b'>')
        && (id.is_ascii() || str::from_utf8(id).is_ok_and(|id| !id.chars().any(char::is_control)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn message_ids_are_found_as_mail_programs_write_them() {
        for (head, expected) in [
            ("Message-ID: <a@b>\r\n\r\n", Some("<a@b>")),
            ("message-id:<a@b>\r\n", Some("<a@b>")),
            ("MESSAGE-Id :  <a@b>  \r\n\r\n", Some("<a@b>")),
            ("From: x\r\nMessage-ID:\r\n <long@outlook.com>\r\nTo: y\r\n\r\n", Some("<long@outlook.com>")),
            ("Message-ID: a@b\r\n\r\n", Some("<a@b>")),
            ("Message-ID: <a@b> <c@d>\r\n\r\n", Some("<a@b>")),
            ("Message-ID: <a@b> (made by hand)\r\n\r\n", Some("<a@b>")),
            ("Message-ID: <first@b>\r\nMessage-ID: <second@b>\r\n\r\n", Some("<first@b>")),
            ("Message-ID: <\u{e9}@b>\r\n\r\n", Some("<\u{e9}@b>")),
            ("Message-ID: <[guid]@host.example>\r\n\r\n", Some("<[guid]@host.example>")),
            ("Message-ID:\r\n\r\n", None),
            ("Message-ID: <>\r\n\r\n", None),
            ("Message-ID: <a\u{1b}[31m@b>\r\n\r\n", None),
            ("X-Message-ID: <a@b>\r\n\r\n", None),
            ("Subject: x\r\n\r\nMessage-ID: <in@body>\r\n", None),
            ("\r\nMessage-ID: <in@body>\r\n", None),
            ("", None),
        ] {
            assert_eq!(facts(head.as_bytes()).message_id.as_deref(), expected, "{head:?}");
        }
        let long = format!("Message-ID: <{}@b>\r\n\r\n", "a".repeat(1000));
        assert_eq!(facts(long.as_bytes()).message_id, None);
    }

    #[test]
    fn received_fields_are_counted_in_the_header_only() {
        for (head, expected) in [
            ("Received: from a\r\n\tby b; now\r\nreceived: x\r\nRECEIVED : y\r\n\r\nReceived: body\r\n", 3),
            ("Received-SPF: pass\r\nX-Received: z\r\nSubject: a\r\n Received: folded\r\n\r\n", 0),
            ("From a@b Mon Jan 1\r\nReceived: one\r\n", 1),
            (" Received: continues nothing\r\nReceived: one\r\n\r\n", 1),
            ("Received: without end", 1),
            (":\r\n: x\r\nReceived: one\nReceived: two\n\nReceived: body", 2),
        ] {
            assert_eq!(facts(head.as_bytes()).received, expected, "{head:?}");
        }
    }

    #[test]
    fn eight_bit_means_the_header_not_the_body() {
        for (head, expected) in [
            (&b"Subject: a\r\n\r\nf\xc3\xbcr"[..], false),
            (b"Subject: f\xc3\xbcr\r\n\r\nx", true),
            (b"Subject: \xff\r\n", true),
            (b"\r\n\xff", false),
        ] {
            assert_eq!(facts(head).eight_bit, expected, "{head:?}");
        }
    }

    #[test]
    fn the_block_ends_after_the_first_empty_line() {
        for (head, expected) in [
            (&b"A: b\r\n\r\nbody\r\n\r\n"[..], Some(8)),
            (b"\r\nbody", Some(2)),
            (b"A: b\n\nbody", Some(6)),
            (b"A: b\r\n", None),
            (b"A: b\r\n\r", None),
            (b"A: b\r\n \r\n\r\n", Some(11)),
            (b"", None),
        ] {
            assert_eq!(block_len(head), expected, "{head:?}");
        }
    }

    #[test]
    fn fields_come_whole_and_in_order() {
        let head = b"A: 1\r\n\t2\r\nno colon\r\nB :3\r\n\r\nbody: x\r\n";
        let found: Vec<_> = fields(head).map(|field| (field.name(), field.raw)).collect();
        assert_eq!(found, [(&b"A"[..], &b"A: 1\r\n\t2\r\n"[..]), (b"", b"no colon\r\n"), (b"B", b"B :3\r\n")]);
    }

    /// S-099: limit - 1, limit, limit + 1.
    #[test]
    fn what_is_beyond_the_limits_is_not_searched() {
        for (fields, expected) in
            [(FIELD_LIMIT - 1, FIELD_LIMIT - 1), (FIELD_LIMIT, FIELD_LIMIT), (FIELD_LIMIT + 1, FIELD_LIMIT)]
        {
            let head = "Received: x\r\n".repeat(fields);
            assert_eq!(facts(head.as_bytes()).received, expected, "{fields} fields");
        }
        for (len, expected) in [(HEADER_LIMIT, Some(HEADER_LIMIT)), (HEADER_LIMIT + 1, None)] {
            let head = format!("X: {}\r\n\r\n", "a".repeat(len - 7));
            assert_eq!(block_len(head.as_bytes()), expected, "{len} bytes");
        }
    }

    /// C116: what can be judged whole, and what goes on where nobody looks.
    #[test]
    fn c116_a_header_is_judged_whole_or_not_at_all() {
        let sized = |len: usize| format!("X: {}\r\n\r\n", "a".repeat(len - 7));
        for (what, message, expected) in [
            ("empty", String::new(), true),
            ("a body without a header", "\r\nbody".to_owned(), true),
            ("a header without a body", "A: b\r\n".to_owned(), true),
            ("without its last line end", "A: b".to_owned(), true),
            ("a header of blanks", " ".repeat(1000), true),
            ("a line of 100 KiB", format!("A: {}\r\n\r\nx", "y".repeat(100 << 10)), true),
            ("as many fields as may be", "A: b\r\n".repeat(FIELD_LIMIT) + "\r\nbody", true),
            ("as many, without a body", "A: b\r\n".repeat(FIELD_LIMIT), true),
            ("one more", "A: b\r\n".repeat(FIELD_LIMIT + 1) + "\r\nbody", false),
            ("one more, without a body", "A: b\r\n".repeat(FIELD_LIMIT + 1), false),
            ("as long as may be", sized(HEADER_LIMIT) + "body", true),
            ("longer by one", sized(HEADER_LIMIT + 1) + "body", false),
            ("one field of the whole length", format!("A: {}", "b".repeat(HEADER_LIMIT - 3)), true),
            ("one field that is longer", format!("A: {}", "b".repeat(HEADER_LIMIT - 2)), false),
            ("a long body is no header", format!("A: b\r\n\r\n{}", "x".repeat(2 * HEADER_LIMIT)), true),
        ] {
            assert_eq!(facts(message.as_bytes()).is_judged(message.len() as u64), expected, "{what}");
        }
    }

    #[test]
    fn the_organizations_of_a_message_are_read_as_they_are_written() {
        for (head, expected) in [
            ("X-OriginatorOrg: contoso.com\r\n\r\n", &["contoso.com"][..]),
            ("x-originatororg :Contoso.COM \r\n\r\n", &["contoso.com"]),
            ("X-OriginatorOrg:\r\n\tcontoso.com\r\n \r\n", &["contoso.com"]),
            ("X-OriginatorOrg: contoso.com (as we (really) say)\r\n\r\n", &["contoso.com"]),
            ("X-OriginatorOrg: (\\)) contoso.com\r\n\r\n", &["contoso.com"]),
            ("X-OriginatorOrg: a.example\r\nTo: x\r\nX-OriginatorOrg: b.example\r\n", &["a.example", "b.example"]),
            ("Subject: x\r\n X-OriginatorOrg: contoso.com\r\n\r\nX-OriginatorOrg: contoso.com\r\n", &[]),
            // What names no domain is not passed over.
            ("X-OriginatorOrg:\r\n\r\n", &["?"]),
            ("X-OriginatorOrg: contoso.com fabrikam.com\r\n", &["?contoso.com fabrikam.com"]),
            ("X-OriginatorOrg: contoso.com, fabrikam.com\r\n", &["?contoso.com, fabrikam.com"]),
            ("X-OriginatorOrg: contoso.com (\r\n", &["?contoso.com ("]),
            ("X-OriginatorOrg: [192.0.2.1]\r\n", &["?[192.0.2.1]"]),
        ] {
            let found = originators(head.as_bytes())
                .map(|one| one.map_or_else(|text| format!("?{text}"), |domain| domain.to_string()));
            assert_eq!(found.collect::<Vec<_>>(), expected, "{head:?}");
        }
    }

    #[test]
    fn a_hostile_header_takes_no_quadratic_time() {
        for head in
            ["\n ".repeat(HEADER_LIMIT / 2), "Message-ID: <\r\n".repeat(HEADER_LIMIT / 16), " ".repeat(HEADER_LIMIT)]
        {
            let started = std::time::Instant::now();
            facts(head.as_bytes());
            block_len(head.as_bytes());
            // Linear is a few milliseconds even unoptimized; quadratic would be minutes.
            assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}…", &head[..16]);
        }
    }

    proptest! {
        #[test]
        fn garbage_is_tolerated_and_fields_cover_the_header(head in prop::collection::vec(
            prop_oneof![Just(b'\r'), Just(b'\n'), Just(b':'), Just(b' '), Just(b'<'), Just(b'>'), any::<u8>()], 0..300))
        {
            let facts = facts(&head);
            let covered: usize = fields(&head).map(|field| field.raw.len()).sum();
            let end = covered + empty_line(&head[covered..]).unwrap_or(0);
            if let Some(len) = block_len(&head) {
                prop_assert_eq!(end, len);
            } else {
                prop_assert_eq!(covered, head.len());
            }
            prop_assert_eq!(facts.received, fields(&head).filter(|field| field.is("received")).count());
        }

        #[test]
        fn a_message_id_survives_any_content(value in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut head = b"Message-ID: ".to_vec();
            head.extend(value);
            if let Some(id) = facts(&head).message_id {
                prop_assert!(id.starts_with('<') && id.ends_with('>') && id.len() > 2);
                prop_assert!(!id.chars().any(|c| c.is_control() || c == ' '));
            }
        }
    }
}
