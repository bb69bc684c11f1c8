//! 8-bit MIME bodies for a host without 8BITMIME: parts become quoted-printable or base64, as Postfix converts them.
//!
//! What is converted is what says `Content-Transfer-Encoding: 8bit` or `binary`: text becomes quoted-printable, other
//! leaf parts base64, a multipart or message/rfc822 says `7bit` instead and its parts are looked at. All else goes
//! octet for octet, also where it has octets above 127: header fields, bodies without that field, preambles. So do
//! signed and encrypted parts, and a whole message with a DKIM signature: any change would break it, while most servers that do
//! not offer 8BITMIME pass 8-bit content all the same.
//!
//! A [`Downgrade`] takes a message in pieces of any size and holds no more of it than one header block and one line.
//!
//! Not here: when a message is converted (`deliver`), and 8-bit header fields, which demand SMTPUTF8.
//!
//! Standards: RFC 6152 section 3 (what a relay may convert), RFC 2045 section 6 (encodings), RFC 2046 section 5
//! (multipart and message), RFC 6532 section 3.7 (message/global).

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use memchr::memchr;

use super::body::{BLOCK, Body};
use super::header::{self, HEADER_LIMIT};

/// The longest header block of a part, in bytes. A part with a longer one stays as it is.
const PART_HEADER_LIMIT: usize = 64 * 1024;

/// So much of a line is looked at together, in bytes: much more than a boundary may have.
const LINE_LIMIT: usize = 4096;

/// The longest boundary, in bytes: more than the 70 of RFC 2046 section 5.1.1, for those who do not count.
const BOUNDARY_LIMIT: usize = 512;

/// So many multiparts may lie in each other. What lies deeper stays as it is.
const DEPTH_LIMIT: usize = 64;

/// The longest line of quoted-printable, without its soft line break. RFC 2045 section 6.7.
const QUOTED_LINE: usize = 75;

/// So many bytes are a line of base64. RFC 2045 section 6.8.
const BASE64_LINE: usize = 57;

/// One message on its way from 8-bit to 7-bit.
#[derive(Debug)]
pub struct Downgrade {
    state: State,
    /// What came of the present line.
    line: Vec<u8>,
    /// Part of the present line was passed on already.
    begun: bool,
    /// The multiparts that are open, the innermost last.
    open: Vec<Multipart>,
}

#[derive(Debug)]
struct Multipart {
    boundary: Vec<u8>,
    /// Its parts are messages unless they say otherwise. RFC 2046 section 5.1.5.
    digest: bool,
}

#[derive(Debug)]
enum State {
    /// In a header block: what came of it.
    Header { block: Vec<u8>, of: Block },
    /// In something that stays as it is: a body, or what stands around the parts of a multipart.
    Pass,
    /// In the body of a part that becomes quoted-printable.
    Quoted(Quoted),
    /// In the body of a part that becomes base64.
    Base64(Base64),
    /// The whole message stays as it is.
    Untouched,
}

/// Whose header block it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    Message,
    EnclosedMessage,
    Part,
}

/// What follows a header block.
enum Next {
    Pass,
    Untouched,
    Quoted,
    Base64,
    Message,
    Multipart(Multipart),
}

impl Default for Downgrade {
    fn default() -> Self {
        let state = State::Header { block: Vec::new(), of: Block::Message };
        Self { state, line: Vec::new(), begun: false, open: Vec::new() }
    }
}

impl Downgrade {
    /// Takes the next piece of the message and appends to `out` what can be said so far.
    pub fn feed(&mut self, mut piece: &[u8], out: &mut Vec<u8>) {
        while !piece.is_empty() {
            if matches!(self.state, State::Untouched) {
                out.extend_from_slice(piece);
                return;
            }
            let end = memchr(b'\n', piece).map(|at| at + 1);
            let room = LINE_LIMIT - self.line.len();
            let length = end.unwrap_or(piece.len()).min(room);
            let (now, rest) = piece.split_at(length);
            self.line.extend_from_slice(now);
            piece = rest;
            if end == Some(length) {
                self.take_line(true, out);
            } else if self.line.len() == LINE_LIMIT {
                self.take_line(false, out);
            }
        }
    }

    /// The message is over: appends what is left.
    pub fn finish(mut self, out: &mut Vec<u8>) {
        if !self.line.is_empty() {
            self.take_line(true, out);
        }
        match self.state {
            // A header without a body: nothing is to be converted.
            State::Header { block, .. } => out.extend_from_slice(&block),
            State::Quoted(quoted) => quoted.finish(out),
            State::Base64(base64) => base64.finish(out),
            State::Pass | State::Untouched => {}
        }
    }

    /// Takes what stands in `line`: a line, or the next stretch of one that is longer than any that means something.
    fn take_line(&mut self, whole: bool, out: &mut Vec<u8>) {
        let mut line = std::mem::take(&mut self.line);
        let starts = !std::mem::replace(&mut self.begun, !whole);
        // The CR of a line end that is still to come.
        let held = (!whole && line.last() == Some(&b'\r')).then(|| line.pop()).flatten();
        if starts && whole && self.is_delimiter(&line) {
            self.take_delimiter(&line, out);
        } else {
            self.take_content(&line, starts, out);
        }
        line.clear();
        line.extend(held);
        self.line = line;
    }

    fn is_delimiter(&self, line: &[u8]) -> bool {
        line.starts_with(b"--") && self.open.iter().any(|multipart| multipart.ends(line).is_some())
    }

    /// A part ends, and the next begins or there is none.
    fn take_delimiter(&mut self, line: &[u8], out: &mut Vec<u8>) {
        match std::mem::replace(&mut self.state, State::Pass) {
            State::Header { block, .. } => out.extend_from_slice(&block),
            State::Quoted(quoted) => quoted.finish_part(out),
            // The line end in front of the delimiter belongs to it.
            State::Base64(base64) => base64.finish_part(out),
            State::Pass | State::Untouched => {}
        }
        out.extend_from_slice(line);
        // Whatever is open inside ends too.
        while let Some(multipart) = self.open.last() {
            match multipart.ends(line) {
                Some(false) => {
                    self.state = State::Header { block: Vec::new(), of: Block::Part };
                    return;
                }
                Some(true) => {
                    self.open.pop();
                    return;
                }
                None => drop(self.open.pop()),
            }
        }
    }

    fn take_content(&mut self, line: &[u8], starts: bool, out: &mut Vec<u8>) {
        match &mut self.state {
            State::Header { block, of } => {
                let of = *of;
                if starts && matches!(line, b"\r\n" | b"\n") {
                    let block = std::mem::take(block);
                    self.take_header(&block, of, out);
                    out.extend_from_slice(line);
                    return;
                }
                block.extend_from_slice(line);
                let limit = if of == Block::Message { HEADER_LIMIT } else { PART_HEADER_LIMIT };
                if block.len() > limit {
                    out.append(block);
                    self.state = if of == Block::Message { State::Untouched } else { State::Pass };
                }
            }
            State::Pass | State::Untouched => out.extend_from_slice(line),
            State::Quoted(quoted) => quoted.encode(line, out),
            State::Base64(base64) => base64.encode(line, out),
        }
    }

    /// Decides what becomes of a part, and writes its header.
    fn take_header(&mut self, block: &[u8], of: Block, out: &mut Vec<u8>) {
        let digest = of == Block::Part && self.open.last().is_some_and(|multipart| multipart.digest);
        let (encoding, next) = judge(block, of, digest, self.open.len() >= DEPTH_LIMIT);
        for field in header::all_fields(block) {
            match encoding {
                Some(encoding) if field.is(ENCODING) => {
                    out.extend_from_slice(format!("{ENCODING}: {encoding}\r\n").as_bytes());
                }
                _ => out.extend_from_slice(field.raw),
            }
        }
        self.state = match next {
            Next::Pass => State::Pass,
            Next::Untouched => State::Untouched,
            Next::Quoted => State::Quoted(Quoted::default()),
            Next::Base64 => State::Base64(Base64::default()),
            Next::Message => State::Header { block: Vec::new(), of: Block::EnclosedMessage },
            Next::Multipart(multipart) => {
                self.open.push(multipart);
                State::Pass
            }
        };
    }
}

const ENCODING: &str = "Content-Transfer-Encoding";

/// Fields with a signature over the body.
const SIGNATURES: [&str; 2] = ["DKIM-Signature", "ARC-Message-Signature"];

/// What `Content-Transfer-Encoding` shall say from now on, if it changes, and what follows.
fn judge(block: &[u8], of: Block, digest: bool, too_deep: bool) -> (Option<&'static str>, Next) {
    let signed = |field: header::Field<'_>| SIGNATURES.iter().any(|name| field.is(name));
    if header::all_fields(block).any(signed) {
        return (None, if of == Block::Message { Next::Untouched } else { Next::Pass });
    }
    let mut encodings = header::all_fields(block).filter(|field| field.is(ENCODING));
    let encoding = encodings.next().and_then(|field| header::without_comments(field.value()));
    if encodings.next().is_some() {
        // Whatever readers make of two of them: no third is added.
        return (None, Next::Pass);
    }
    let is_eight_bit = match encoding.as_deref().map(str::trim) {
        Some(word) if ["8bit", "binary"].iter().any(|known| word.eq_ignore_ascii_case(known)) => true,
        Some(word) if word.eq_ignore_ascii_case("7bit") => false,
        // Encoded already, or in a way that nobody knows.
        Some(_) => return (None, Next::Pass),
        None => false,
    };
    let mut types = header::all_fields(block).filter(|field| field.is("Content-Type"));
    let content_type = match types.next() {
        Some(field) => header::content_type(field.value()),
        None => Some(header::ContentType::new(if digest { "message/rfc822" } else { "text/plain" })),
    };
    // What cannot be read, or is said twice, is understood by everybody in another way.
    let Some(content_type) = content_type.filter(|_| types.next().is_none()) else { return (None, Next::Pass) };
    let relabelled = is_eight_bit.then_some("7bit");
    match (&*content_type.main, &*content_type.sub) {
        // Their content is signed as it stands, or opaque. RFC 1847.
        ("multipart", "signed" | "encrypted") => (None, Next::Pass),
        ("multipart", sub) => match content_type.boundary {
            Some(boundary) if (1..=BOUNDARY_LIMIT).contains(&boundary.len()) && !too_deep => {
                let multipart = Multipart { boundary: boundary.into_bytes(), digest: sub == "digest" };
                (relabelled, Next::Multipart(multipart))
            }
            _ => (None, Next::Pass),
        },
        ("message", "rfc822") => (relabelled, Next::Message),
        // RFC 6532 section 3.7: encoded as it is, like any other part.
        ("message", sub) if sub.starts_with("global") && is_eight_bit => (Some("quoted-printable"), Next::Quoted),
        // message/partial, external-body, delivery-status: no encoding is allowed. RFC 2046 section 5.2.
        ("message", _) => (None, Next::Pass),
        ("text", _) if is_eight_bit => (Some("quoted-printable"), Next::Quoted),
        (_, _) if is_eight_bit => (Some("base64"), Next::Base64),
        _ => (None, Next::Pass),
    }
}

impl Multipart {
    /// Is this line a delimiter of this multipart, and its last?
    fn ends(&self, line: &[u8]) -> Option<bool> {
        let rest = line.strip_prefix(b"--")?.strip_prefix(&self.boundary[..])?;
        match rest.trim_ascii_end() {
            b"" => Some(false),
            b"--" => Some(true),
            _ => None,
        }
    }
}

/// RFC 2045 section 6.7.
#[derive(Debug, Default)]
struct Quoted {
    column: usize,
    /// The line before ended in a soft line break.
    soft: bool,
    /// A blank, which may be the last of its line, or a CR, which may be half of a line end.
    held: Option<u8>,
}

impl Quoted {
    fn encode(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        for &byte in bytes {
            match (self.held.take(), byte) {
                (Some(b'\r'), b'\n') => {
                    out.extend_from_slice(b"\r\n");
                    (self.column, self.soft) = (0, false);
                    continue;
                }
                (Some(b'\r'), _) => self.put_encoded(b'\r', out),
                // A blank in front of a line end would be lost.
                (Some(blank), b'\r' | b'\n') => self.put_encoded(blank, out),
                (Some(blank), _) => self.put(blank, out),
                (None, _) => {}
            }
            match byte {
                b' ' | b'\t' | b'\r' => self.held = Some(byte),
                // A line that was broken here must not look like a delimiter.
                b'-' if self.column == 0 && self.soft => self.put_encoded(byte, out),
                b'-' if self.column == QUOTED_LINE => {
                    self.break_line(out);
                    self.put_encoded(byte, out);
                }
                b'=' => self.put_encoded(byte, out),
                b'!'..=b'~' => self.put(byte, out),
                _ => self.put_encoded(byte, out),
            }
        }
    }

    /// A delimiter follows, and must stand at the beginning of a line: a bare LF in front of it was encoded.
    fn finish_part(mut self, out: &mut Vec<u8>) {
        if self.column > 0 {
            self.break_line(out);
        }
    }

    /// The message is over.
    fn finish(mut self, out: &mut Vec<u8>) {
        if let Some(held) = self.held.take() {
            self.put_encoded(held, out);
        }
    }

    fn put(&mut self, byte: u8, out: &mut Vec<u8>) {
        if self.column + 1 > QUOTED_LINE {
            self.break_line(out);
        }
        out.push(byte);
        self.column += 1;
    }

    fn put_encoded(&mut self, byte: u8, out: &mut Vec<u8>) {
        const HEX: &[u8; 16] = b"0123456789ABCDEF";
        if self.column + 3 > QUOTED_LINE {
            self.break_line(out);
        }
        out.extend_from_slice(&[b'=', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        self.column += 3;
    }

    fn break_line(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"=\r\n");
        (self.column, self.soft) = (0, true);
    }
}

/// RFC 2045 section 6.8.
#[derive(Debug, Default)]
struct Base64 {
    /// Less than a line, and then what stands in `end`.
    unsaid: Vec<u8>,
    /// The line end that came last: it may belong to a delimiter.
    end: &'static [u8],
}

impl Base64 {
    fn encode(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let held = std::mem::take(&mut self.end);
        self.put(held, out);
        let end: &[u8] = match bytes {
            [.., b'\r', b'\n'] => b"\r\n",
            [.., b'\n'] => b"\n",
            _ => b"",
        };
        self.put(&bytes[..bytes.len() - end.len()], out);
        self.end = match end.len() {
            2 => b"\r\n",
            1 => b"\n",
            _ => b"",
        };
    }

    fn put(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        self.unsaid.extend_from_slice(bytes);
        let whole = self.unsaid.len() / BASE64_LINE * BASE64_LINE;
        for line in self.unsaid[..whole].chunks(BASE64_LINE) {
            put_line(line, out);
        }
        self.unsaid.drain(..whole);
    }

    /// The part is over, and the line end in front of the delimiter is not its own.
    fn finish_part(self, out: &mut Vec<u8>) {
        if !self.unsaid.is_empty() {
            put_line(&self.unsaid, out);
        }
    }

    /// The message is over.
    fn finish(mut self, out: &mut Vec<u8>) {
        let held = std::mem::take(&mut self.end);
        self.put(held, out);
        self.finish_part(out);
    }
}

fn put_line(line: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(BASE64.encode(line).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Text as quoted-printable.
pub fn quoted_printable(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + text.len() / 8);
    let mut quoted = Quoted::default();
    quoted.encode(text, &mut out);
    quoted.finish(&mut out);
    out
}

/// The whole message: what stands in front of its body, then that. Each piece of the result goes to `out`. Blocking where the
/// bytes lie on disk.
///
/// # Errors
/// What the file system says.
pub fn downgrade<'a>(
    lead: impl IntoIterator<Item = &'a [u8]>,
    body: &Body,
    mut out: impl FnMut(&[u8]),
) -> io::Result<()> {
    let mut downgrade = Downgrade::default();
    let mut converted = Vec::new();
    for piece in lead {
        downgrade.feed(piece, &mut converted);
    }
    let mut offset = 0;
    loop {
        let block = body.read(offset, BLOCK)?;
        if block.is_empty() {
            break;
        }
        offset += block.len() as u64;
        downgrade.feed(&block, &mut converted);
        out(&converted);
        converted.clear();
    }
    downgrade.finish(&mut converted);
    out(&converted);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn convert(message: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut downgrade = Downgrade::default();
        downgrade.feed(message, &mut out);
        downgrade.finish(&mut out);
        // However it is cut.
        for length in [1, 2, 3, 7, 64] {
            let (mut pieces, mut downgrade) = (Vec::new(), Downgrade::default());
            message.chunks(length).for_each(|piece| downgrade.feed(piece, &mut pieces));
            downgrade.finish(&mut pieces);
            assert_eq!(pieces.escape_ascii().to_string(), out.escape_ascii().to_string(), "in pieces of {length}");
        }
        out
    }

    #[track_caller]
    fn check(what: &str, message: &str, expected: &str) {
        assert_eq!(String::from_utf8_lossy(&convert(message.as_bytes())), expected, "{what}");
        assert_eq!(String::from_utf8_lossy(&convert(expected.as_bytes())), expected, "{what}: once is enough");
    }

    const TEXT: &str = "Content-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: 8bit\r\n";
    const QUOTED: &str =
        "Content-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: quoted-printable\r\n";

    #[test]
    fn leaf_parts_are_encoded() {
        for (what, body, encoded) in [
            ("nothing", "", ""),
            ("an empty line", "\r\n", "\r\n"),
            ("text", "grün\r\n", "gr=C3=BCn\r\n"),
            ("no end", "grün", "gr=C3=BCn"),
            ("an equals sign", "a=b\r\n", "a=3Db\r\n"),
            ("trailing blanks", "a \r\nb\t\r\n \r\nc d\r\n", "a=20\r\nb=09\r\n=20\r\nc d\r\n"),
            ("a blank at the very end", "a ", "a=20"),
            ("controls", "a\u{1b}\u{7f}b\r\n", "a=1B=7Fb\r\n"),
            ("dots and dashes are left alone", ".\r\n-- \r\n--\r\n", ".\r\n--=20\r\n--\r\n"),
            ("bare CR and LF", "a\rb\nc\r\n", "a=0Db=0Ac\r\n"),
        ] {
            check(what, &format!("{TEXT}\r\n{body}"), &format!("{QUOTED}\r\n{encoded}"));
        }
        let long = "ü".repeat(100) + &"-".repeat(200) + "\r\n";
        let encoded = String::from_utf8(convert(format!("{TEXT}\r\n{long}").as_bytes())).unwrap();
        let body = encoded.split_once("\r\n\r\n").unwrap().1;
        assert!(body.split("\r\n").all(|line| line.len() <= 76 && !line.starts_with('-')), "{body}");
        assert_eq!(unquoted(body.as_bytes()), long.as_bytes());

        let octets: Vec<u8> = (0..=255u8).cycle().take(5000).collect();
        let header = "Content-Transfer-Encoding: Binary (as it is)\r\nContent-Type: image/x; name=\"a\"\r\n";
        let converted = convert(&[header.as_bytes(), b"\r\n", &octets].concat());
        let text = String::from_utf8(converted).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert_eq!(head, "Content-Transfer-Encoding: base64\r\nContent-Type: image/x; name=\"a\"");
        assert!(body.lines().all(|line| line.len() <= 76) && body.ends_with("\r\n"));
        assert_eq!(BASE64.decode(body.replace("\r\n", "")).unwrap(), octets);
    }

    #[test]
    fn multiparts_are_walked_through() {
        let multipart = |sub: &str, boundary: &str| format!("Content-Type: multipart/{sub}; boundary={boundary}\r\n");
        let (mixed, alternative) = (multipart("mixed", "out"), multipart("alternative", "\"in ner\""));
        let eight = "Content-Transfer-Encoding: 8bit\r\n";
        let seven = "Content-Transfer-Encoding: 7bit\r\n";
        // One row: a message and what becomes of it.
        for (what, message, expected) in [
            (
                "two levels, a boundary with a blank in quotes, and what stands around them",
                format!(
                    "{mixed}{eight}\r\nprä\r\n--out\r\n{alternative}{eight}\r\n--in ner\r\n{TEXT}\r\nü\r\n--in ner\r\nContent-Type: text/html\r\n{eight}\r\n<ü>\r\n--in ner--\r\nmitte ü\r\n--out\r\n\r\nasis ü\r\n--out--\r\nepi ü\r\n"
                ),
                format!(
                    "{mixed}{seven}\r\nprä\r\n--out\r\n{alternative}{seven}\r\n--in ner\r\n{QUOTED}\r\n=C3=BC\r\n--in ner\r\nContent-Type: text/html\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n<=C3=BC>\r\n--in ner--\r\nmitte ü\r\n--out\r\n\r\nasis ü\r\n--out--\r\nepi ü\r\n"
                ),
            ),
            (
                "the multipart does not say it",
                format!("{mixed}\r\n--out\r\n{TEXT}\r\nü\r\n--out--\r\n"),
                format!("{mixed}\r\n--out\r\n{QUOTED}\r\n=C3=BC\r\n--out--\r\n"),
            ),
            (
                "the last delimiters are missing",
                format!("{mixed}\r\n--out\r\n{alternative}\r\n--in ner\r\n{TEXT}\r\nü\r\n--out\r\n{TEXT}\r\nü"),
                format!(
                    "{mixed}\r\n--out\r\n{alternative}\r\n--in ner\r\n{QUOTED}\r\n=C3=BC\r\n--out\r\n{QUOTED}\r\n=C3=BC"
                ),
            ),
            (
                "a delimiter with blanks behind it, and what only begins like one",
                format!("{mixed}\r\n--out \t\r\n{TEXT}\r\n--outü\r\n--outer\r\n-- out\r\n--out--  \r\nü\r\n"),
                format!("{mixed}\r\n--out \t\r\n{QUOTED}\r\n--out=C3=BC\r\n--outer\r\n-- out\r\n--out--  \r\nü\r\n"),
            ),
            (
                "base64: the line end in front of a delimiter is not the part's",
                format!(
                    "{mixed}\r\n--out\r\nContent-Type: a/b\r\n{eight}\r\nü\r\n\r\n--out\r\nContent-Type: a/b\r\n{eight}\r\n--out--\r\n"
                ),
                format!(
                    "{mixed}\r\n--out\r\nContent-Type: a/b\r\nContent-Transfer-Encoding: base64\r\n\r\nw7wNCg==\r\n--out\r\nContent-Type: a/b\r\nContent-Transfer-Encoding: base64\r\n\r\n--out--\r\n"
                ),
            ),
            (
                "a header without a body",
                format!("{mixed}\r\n--out\r\n{TEXT}--out--\r\nü\r\n"),
                format!("{mixed}\r\n--out\r\n{TEXT}--out--\r\nü\r\n"),
            ),
            (
                "a digest's parts are messages",
                format!("{}\r\n--d\r\n\r\n{TEXT}Subject: ü\r\n\r\nü\r\n--d--\r\n", multipart("digest", "d")),
                format!("{}\r\n--d\r\n\r\n{QUOTED}Subject: ü\r\n\r\n=C3=BC\r\n--d--\r\n", multipart("digest", "d")),
            ),
            (
                "a message in a message, and the part behind it",
                format!(
                    "{mixed}\r\n--out\r\nContent-Type: message/rfc822\r\n{eight}\r\nSubject: x\r\n{TEXT}\r\nü\r\n--out\r\n{TEXT}\r\nü\r\n--out--\r\n"
                ),
                format!(
                    "{mixed}\r\n--out\r\nContent-Type: message/rfc822\r\n{seven}\r\nSubject: x\r\n{QUOTED}\r\n=C3=BC\r\n--out\r\n{QUOTED}\r\n=C3=BC\r\n--out--\r\n"
                ),
            ),
            (
                "an internationalized message in a message is encoded as it is",
                format!("Content-Type: message/global\r\n{eight}\r\nSubject: ü\r\n{TEXT}\r\nü\r\n"),
                "Content-Type: message/global\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\nSubject: =C3=BC\r\nContent-Type: text/plain; charset=3Diso-8859-1\r\nContent-Transfer-Encoding: 8bit\r\n\r\n=C3=BC\r\n".to_owned(),
            ),
            (
                "the boundary in a comment is none",
                format!(
                    "Content-Type: multipart/mixed (boundary=x);\r\n\tboundary=\"out\"\r\n\r\n--x\r\n{TEXT}\r\nü\r\n--out\r\n{TEXT}\r\nü\r\n--out--\r\n"
                ),
                format!(
                    "Content-Type: multipart/mixed (boundary=x);\r\n\tboundary=\"out\"\r\n\r\n--x\r\n{TEXT}\r\nü\r\n--out\r\n{QUOTED}\r\n=C3=BC\r\n--out--\r\n"
                ),
            ),
            (
                "no type is text",
                format!("{eight}\r\nü\r\n"),
                "Content-Transfer-Encoding: quoted-printable\r\n\r\n=C3=BC\r\n".to_owned(),
            ),
        ] {
            check(what, &message, &expected);
        }
    }

    #[test]
    fn the_rest_goes_octet_for_octet() {
        let body = "\r\n--b\r\nContent-Type: text/plain\r\nContent-Transfer-Encoding: 8bit\r\n\r\nü \r\n--b--\r\n";
        let outer = |content_type: &str| format!("Subject: ü\r\nContent-Type: {content_type}; boundary=b\r\n{body}");
        for (what, message) in [
            ("no MIME", "Subject: ü\r\n\r\nü \r\n".to_owned()),
            ("no encoding", "Content-Type: text/plain; charset=utf-8\r\n\r\nü\r\n".to_owned()),
            ("7-bit, it says", "Content-Transfer-Encoding: 7bit\r\n\r\nü\r\n".to_owned()),
            ("encoded", "Content-Transfer-Encoding: base64\r\n\r\nw7w=\r\n".to_owned()),
            (
                "two encodings",
                "Content-Transfer-Encoding: 8bit\r\nContent-Transfer-Encoding: 7bit\r\n\r\nü\r\n".to_owned(),
            ),
            ("an unknown encoding", "Content-Transfer-Encoding: uuencode\r\n\r\nü\r\n".to_owned()),
            ("two types", format!("Content-Type: a/b\r\n{TEXT}\r\nü\r\n")),
            ("no header", "\r\nContent-Transfer-Encoding: 8bit\r\n\r\nü\r\n".to_owned()),
            ("no body", "Content-Transfer-Encoding: 8bit\r\n".to_owned()),
            ("an empty message", String::new()),
            ("signed by DKIM", format!("dkim-signature: v=1\r\n{TEXT}\r\nü\r\n")),
            ("sealed by ARC", format!("{TEXT}ARC-Message-Signature: i=1\r\n\r\nü\r\n")),
            ("signed", outer("multipart/signed; protocol=\"application/pkcs7-signature\"")),
            ("encrypted", outer("multipart/encrypted")),
            (
                "in pieces",
                "Content-Type: message/partial; id=x\r\nContent-Transfer-Encoding: 8bit\r\n\r\nü\r\n".to_owned(),
            ),
            ("a multipart without a boundary", outer("multipart/mixed").replace("; boundary=b", "")),
            (
                "an enclosed message that is signed",
                format!("Content-Type: message/rfc822\r\n\r\nDKIM-Signature: x\r\n{TEXT}\r\nü\r\n"),
            ),
        ] {
            check(what, &message, &message);
        }
        // A signed part among others: it stays, they do not.
        let signed = format!("Content-Type: multipart/signed; boundary=b\r\nContent-Transfer-Encoding: 8bit\r\n{body}");
        let mixed = "Content-Type: multipart/mixed; boundary=m\r\n\r\n";
        check(
            "a signed part",
            &format!("{mixed}--m\r\n{signed}--m\r\n{TEXT}\r\nü\r\n--m--\r\n"),
            &format!("{mixed}--m\r\n{signed}--m\r\n{QUOTED}\r\n=C3=BC\r\n--m--\r\n"),
        );
    }

    #[test]
    fn limits_leave_things_as_they_are() {
        let deep: String = (0..2 * DEPTH_LIMIT)
            .map(|n| format!("Content-Type: multipart/mixed; boundary=b{n}\r\n\r\n--b{n}\r\n"))
            .chain([format!("{TEXT}\r\nü\r\n")])
            .collect();
        check("too deep", &deep, &deep);
        let long = format!("{TEXT}X-Long: {}\r\n\r\nü\r\n", "y".repeat(PART_HEADER_LIMIT));
        let part = format!("Content-Type: multipart/mixed; boundary=m\r\n\r\n--m\r\n{long}--m\r\n{TEXT}\r\nü\r\n");
        check(
            "a long header",
            &part,
            &part.replace(
                "--m\r\nContent-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: 8bit\r\n\r\nü",
                &format!("--m\r\n{QUOTED}\r\n=C3=BC"),
            ),
        );
        let line = "ü-".repeat(3 * LINE_LIMIT) + "\r\n";
        let converted = convert(format!("{TEXT}\r\n{line}").as_bytes());
        let at = converted.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        assert!(unquoted(&converted[at..]) == line.as_bytes());
        // A line end across the limit.
        for extra in 0..4 {
            let line = format!("{}ü\r\n\r\n", "a".repeat(LINE_LIMIT - extra));
            let converted = convert(format!("{TEXT}\r\n{line}").as_bytes());
            assert!(converted.ends_with(b"=C3=BC\r\n\r\n"), "{extra}");
        }
    }

    /// A reader of its own.
    fn unquoted(text: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut rest = text;
        while let Some((&first, after)) = rest.split_first() {
            match (first, after) {
                (b'=', [b'\r', b'\n', after @ ..]) => rest = after,
                (b'=', [high, low, after @ ..]) => {
                    let hex = |octet: u8| char::from(octet).to_digit(16).unwrap() as u8;
                    out.push(hex(*high) << 4 | hex(*low));
                    rest = after;
                }
                (octet, after) => {
                    out.push(octet);
                    rest = after;
                }
            }
        }
        out
    }

    /// The decoded bodies of all leaf parts, by mail-parser's reading of the structure and decoders of our own.
    fn leaves(message: &[u8]) -> Vec<Vec<u8>> {
        use mail_parser::{Encoding, MessageParser, PartType};
        let Some(parsed) = MessageParser::default().parse(message) else { return Vec::new() };
        let leaf =
            |part: &mail_parser::MessagePart<'_>| !matches!(part.body, PartType::Multipart(_) | PartType::Message(_));
        let leaves = parsed.parts.iter().filter(|part| leaf(part)).map(|part| {
            let raw = &message[part.offset_body as usize..part.offset_end as usize];
            match part.encoding {
                Encoding::None => raw.to_vec(),
                Encoding::QuotedPrintable => unquoted(raw),
                Encoding::Base64 => {
                    BASE64.decode(raw.iter().copied().filter(u8::is_ascii_graphic).collect::<Vec<_>>()).unwrap()
                }
            }
        });
        leaves.collect()
    }

    fn body() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            Just(b"\r\n".to_vec()),
            Just(b" ".to_vec()),
            Just(b"--".to_vec()),
            Just(b"\r\n.\r\n".to_vec()),
            Just("ü".as_bytes().to_vec()),
            Just(
                b"a long line of words that goes on for more than seventy-six characters, to be cut - somewhere"
                    .to_vec()
            ),
            prop::collection::vec(
                any::<u8>().prop_filter("bare line ends", |byte| !matches!(byte, b'\r' | b'\n' | 0)),
                0..40
            ),
        ];
        prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        /// What a reader gets is what was sent, and what travels is 7-bit.
        #[test]
        fn decoding_gives_the_original_octets(bodies in prop::collection::vec((body(), 0..4u8), 1..5), nested: bool) {
            let mut message = b"Content-Type: multipart/mixed; boundary=\"=_x\"\r\nContent-Transfer-Encoding: 8bit\r\n\r\n".to_vec();
            for (number, (body, kind)) in bodies.iter().enumerate() {
                message.extend_from_slice(b"--=_x\r\n");
                if nested && number == 0 {
                    message.extend_from_slice(b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: 8bit\r\n\r\nSubject: y\r\n");
                }
                let kind = ["text/plain", "text/html", "application/octet-stream", "image/png"][usize::from(*kind)];
                message.extend_from_slice(format!("Content-Type: {kind}\r\nContent-Transfer-Encoding: 8bit\r\n\r\n").as_bytes());
                message.extend_from_slice(body);
                message.extend_from_slice(b"\r\n");
            }
            message.extend_from_slice(b"--=_x--\r\n");
            let converted = convert(&message);
            prop_assert!(converted.is_ascii());
            prop_assert!(converted.split(|&byte| byte == b'\n').all(|line| line.len() <= 90));
            prop_assert_eq!(leaves(&converted), leaves(&message));
        }
    }
}
