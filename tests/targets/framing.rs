//! Lines, DATA and BDAT: the readers against others that are too simple to be wrong, and the pair of the dot reader and
//! the dot writer.

use std::io::IoSlice;

use bytes::BytesMut;
use causeway::smtp::client::Stuffer;
use causeway::smtp::framing::{COMMAND_LIMIT, ChunkReader, DotReader, ENDLESS_LINE, LOGIN_LIMIT, Line, LineReader};

use super::{Cuts, is_clean};

/// What became of a stream of DATA.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    content: Vec<u8>,
    end: Option<usize>,
    bare_control: bool,
}

/// The words of RFC 5321 sections 4.1.1.4 and 4.5.2, octet by octet.
fn reference(data: &[u8]) -> Read {
    let (mut content, mut bare_control, mut at, mut line_start) = (Vec::new(), false, 0, true);
    while at < data.len() {
        if line_start && data[at..].starts_with(b".\r\n") {
            return Read { content, end: Some(at + 3), bare_control };
        }
        if line_start && data[at] == b'.' {
            at += 1;
            line_start = false;
            continue;
        }
        line_start = data[at..].starts_with(b"\r\n");
        bare_control |= !line_start && matches!(data[at], b'\r' | b'\n' | 0);
        let len = if line_start { 2 } else { 1 };
        content.extend_from_slice(&data[at..at + len]);
        at += len;
    }
    Read { content, end: None, bare_control }
}

fn read(data: &[u8], cuts: Cuts) -> Read {
    let mut reader = DotReader::default();
    let mut read = Read { content: Vec::new(), end: None, bare_control: false };
    let (mut buffer, mut used) = (Vec::new(), 0);
    for piece in cuts.pieces(data) {
        buffer.extend_from_slice(piece);
        let scanned = reader.scan(&mut buffer);
        assert!(scanned.content <= scanned.used && scanned.used <= buffer.len());
        read.content.extend_from_slice(&buffer[..scanned.content]);
        buffer.drain(..scanned.used);
        used += scanned.used;
        read.bare_control |= scanned.bare_control;
        if scanned.end {
            read.end = Some(used);
            return read;
        }
        assert!(buffer.len() <= 2, "little is left undecided");
    }
    read
}

/// S-001, C091. Content that has CR, LF or NUL on its own is refused, so what is made of it does not matter.
pub fn data(data: &[u8]) {
    // Octets at the very end of a stream may be undecided; behind a true end nobody is asked.
    let stream = [data, b"z\r\n.\r\n"].concat();
    let expected = reference(&stream);
    for cuts in Cuts::of(data) {
        let read = read(&stream, cuts);
        assert_eq!((read.end, read.bare_control), (expected.end, expected.bare_control), "{cuts:?}");
        if !expected.bare_control {
            assert_eq!(read.content, expected.content, "{cuts:?}");
        }
    }

    // What our client writes, our server reads, however either is cut; and it ends nowhere else.
    let clean = is_clean(data);
    for cuts in Cuts::of(data) {
        let mut stuffer = Stuffer::default();
        let mut wire = Vec::new();
        for piece in cuts.pieces(data) {
            let mut slices: Vec<IoSlice<'_>> = Vec::new();
            stuffer.cut(piece, &mut slices);
            slices.iter().for_each(|slice| wire.extend_from_slice(slice));
        }
        wire.extend_from_slice(stuffer.end());
        let heard = self::read(&wire, cuts);
        assert_eq!(heard.end, Some(wire.len()), "{:?} ends too early", wire.escape_ascii().to_string());
        // The most lenient server of all, which takes a bare LF for a line end, finds no earlier end either (S-001).
        for end in [&b"\n.\n"[..], b"\n.\r\n", b"\n.\r"] {
            let found = wire.windows(end.len()).position(|window| window == end);
            assert!(found.is_none_or(|at| at + end.len() + 2 > wire.len()), "{:?}", wire.escape_ascii().to_string());
        }
        if clean {
            let missing = if data.is_empty() || data.ends_with(b"\r\n") { &b""[..] } else { b"\r\n" };
            assert_eq!(heard.content, [data, missing].concat(), "not what was sent");
        }
    }
}

/// A chunk may be cut within a line end, and so may a message between chunks; the verdict is that of all its octets.
pub fn bdat(data: &[u8]) {
    let expected = !is_clean(data);
    for cuts in Cuts::of(data) {
        let mut reader = ChunkReader::default();
        let found = cuts.pieces(data).into_iter().any(|piece| reader.has_bare_control(piece));
        assert_eq!(found || reader.ends_in_cr(), expected, "{cuts:?}");
    }
}

/// What one line came to.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Whole(Vec<u8>),
    TooLong,
    BareControl,
    Endless,
}

fn lines_of(data: &[u8], limit: usize) -> Vec<Seen> {
    let (mut seen, mut at) = (Vec::new(), 0);
    loop {
        let line = &data[at..];
        // A CR at the very end may yet be followed by its LF.
        let control = line.iter().position(|octet| matches!(octet, b'\r' | b'\n' | 0));
        match control {
            Some(end) if end >= ENDLESS_LINE => seen.push(Seen::Endless),
            None if line.len() >= ENDLESS_LINE => seen.push(Seen::Endless),
            None => return seen,
            Some(end) => match (line[end], line.get(end + 1)) {
                (b'\r', None) => return seen,
                (b'\r', Some(b'\n')) => {
                    seen.push(if end + 2 > limit { Seen::TooLong } else { Seen::Whole(line[..end].to_vec()) });
                    at += end + 2;
                    continue;
                }
                _ => seen.push(Seen::BareControl),
            },
        }
        return seen;
    }
}

/// C020 and its neighbours: what a line is depends on its octets only. The first octet chooses the limit.
pub fn lines(data: &[u8]) {
    let (limit, data) = match data.split_first() {
        Some((b'L', rest)) => (LOGIN_LIMIT, rest),
        // As many again, so that a small case reaches every limit.
        Some((b'*', rest)) => (COMMAND_LIMIT, &rest.repeat(1 + (70_000 / rest.len().max(1)).min(2000))[..]),
        _ => (COMMAND_LIMIT, data),
    };
    let expected = lines_of(data, limit);
    for cuts in Cuts::of(data) {
        let (mut reader, mut unread, mut seen) = (LineReader::default(), BytesMut::new(), Vec::new());
        let mut pieces = cuts.pieces(data).into_iter();
        'read: loop {
            while let Some(line) = reader.next(&mut unread, limit) {
                match line {
                    Line::Whole(len) => {
                        assert_eq!(&unread[len..len + 2], b"\r\n");
                        seen.push(Seen::Whole(unread[..len].to_vec()));
                        reader.consume(&mut unread, len);
                    }
                    Line::TooLong => seen.push(Seen::TooLong),
                    Line::BareControl => {
                        seen.push(Seen::BareControl);
                        break 'read;
                    }
                    Line::Endless => {
                        seen.push(Seen::Endless);
                        break 'read;
                    }
                }
            }
            assert!(unread.len() <= limit + 1, "{} octets of a line are kept", unread.len());
            let Some(piece) = pieces.next() else { break };
            unread.extend_from_slice(piece);
        }
        assert_eq!(seen, expected, "{cuts:?}");
    }
}
