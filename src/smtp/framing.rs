//! Lines, DATA and BDAT: the only place that looks for line ends.
//!
//! A line ends in CRLF and in nothing else; a message sent by DATA ends at CRLF `.` CRLF (or at `.` CRLF straight
//! after 354) and nowhere else. CR, LF and NUL on their own are seen wherever they stand, because a server
//! further on might take them for an end: that is how mail is smuggled. No switch changes any of this.
//!
//! Everything is searched a buffer at a time. What is found depends on the octets alone, never on how they were
//! cut into segments.
//!
//! Standards: RFC 5321 sections 2.3.8, 4.1.1.4 and 4.5.2, RFC 3030.

use bytes::{Buf, BytesMut};

/// The longest command line, with its CRLF. RFC 5321 section 4.5.3.1.4 has 512 and lets extensions add to it;
/// ours add about 1,200, so this leaves room for one that is badly folded together.
pub const COMMAND_LIMIT: usize = 4096;

/// The longest line of a login, with its CRLF. RFC 4954 section 4.
pub const LOGIN_LIMIT: usize = 12_288;

/// A line that has not ended by here will not.
pub const ENDLESS_LINE: usize = 64 * 1024;

/// What the reader of command lines found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// A command: so many octets of the buffer, and CRLF behind them.
    Whole(usize),
    /// A line over the limit has been skipped; the next one is in order.
    TooLong,
    /// CR, LF or NUL where it must not be.
    BareControl,
    /// More than [`ENDLESS_LINE`] octets without an end.
    Endless,
}

/// Finds command lines.
#[derive(Debug, Default)]
pub struct LineReader {
    /// So much of the buffer has been searched.
    searched: usize,
    /// So many octets of this line have been thrown away.
    skipped: usize,
}

impl LineReader {
    /// The next line in `unread`; `None`: more octets are needed. The octets of a whole line are taken off with
    /// [`LineReader::consume`], once they have been read. `limit`: [`COMMAND_LIMIT`] or [`LOGIN_LIMIT`].
    pub fn next(&mut self, unread: &mut BytesMut, limit: usize) -> Option<Line> {
        let window = unread.len().min(ENDLESS_LINE - self.skipped);
        let found = memchr::memchr3(b'\r', b'\n', 0, &unread[self.searched..window]).map(|at| self.searched + at);
        let at = match found {
            Some(at) => at,
            None if self.skipped + window == ENDLESS_LINE => return Some(Line::Endless),
            None => {
                self.searched = window;
                self.skip(unread, limit);
                return None;
            }
        };
        match (unread[at], unread.get(at + 1)) {
            (b'\r', Some(b'\n')) => {
                if self.skipped + at + 2 > limit {
                    unread.advance(at + 2);
                    *self = Self::default();
                    return Some(Line::TooLong);
                }
                Some(Line::Whole(at))
            }
            (b'\r', None) => {
                self.searched = at;
                self.skip(unread, limit);
                None
            }
            _ => Some(Line::BareControl),
        }
    }

    /// Does the buffer begin where a line does? Not while the rest of one that is too long is thrown away.
    pub fn is_at_start(&self) -> bool {
        self.skipped == 0
    }

    /// Takes a whole line of `len` octets and its CRLF off the buffer.
    pub fn consume(&mut self, unread: &mut BytesMut, len: usize) {
        unread.advance(len + 2);
        *self = Self::default();
    }

    /// Throws away what has been searched of a line that is too long already: it needs no memory.
    fn skip(&mut self, unread: &mut BytesMut, limit: usize) {
        if self.skipped + self.searched > limit {
            unread.advance(self.searched);
            self.skipped += self.searched;
            self.searched = 0;
        }
    }
}

/// What is in one buffer of DATA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scanned {
    /// The first so many octets of the buffer are content now, their stuffing undone.
    pub content: usize,
    /// So many octets of the buffer have been dealt with; the content is the beginning of them.
    pub used: usize,
    /// The end of data is among them.
    pub end: bool,
    /// CR, LF or NUL on its own is among them. From there on `content` counts nothing.
    pub bare_control: bool,
}

/// Reads the lines of DATA.
#[derive(Debug)]
pub struct DotReader {
    /// The next octet is the first of a line.
    at_line_start: bool,
}

impl Default for DotReader {
    /// Straight after 354 a line begins: `.` CRLF is an empty message.
    fn default() -> Self {
        Self { at_line_start: true }
    }
}

impl DotReader {
    /// Goes through `buffer` up to its end or the end of data. Octets that cannot be judged before the next one
    /// is there (a last CR, a first dot) are left.
    ///
    /// Where dots were stuffed, what follows moves up within the buffer, so that the content stays in one piece:
    /// a piece per dot would cost many times the memory of the message, and a message may be all dots.
    pub fn scan(&mut self, buffer: &mut [u8]) -> Scanned {
        let (mut read, mut line, mut write) = (0, 0, 0);
        let mut bare_control = false;
        let mut end = false;
        // `line..read` has been read and is content that has not been moved yet.
        loop {
            if self.at_line_start && buffer.get(read) == Some(&b'.') {
                match (buffer.get(read + 1), buffer.get(read + 2)) {
                    (Some(b'\r'), Some(b'\n')) => {
                        write = keep(buffer, line, read, write);
                        (line, read, end) = (read + 3, read + 3, true);
                        break;
                    }
                    (None, _) | (Some(b'\r'), None) => break,
                    _ => {
                        write = keep(buffer, line, read, write);
                        (line, read) = (read + 1, read + 1);
                    }
                }
                self.at_line_start = false;
            }
            let Some(at) = memchr::memchr3(b'\r', b'\n', 0, &buffer[read..]).map(|at| read + at) else {
                self.at_line_start &= read == buffer.len();
                read = buffer.len();
                break;
            };
            self.at_line_start &= at == read;
            match (buffer[at], buffer.get(at + 1)) {
                (b'\r', Some(b'\n')) => {
                    read = at + 2;
                    self.at_line_start = true;
                }
                (b'\r', None) => {
                    read = at;
                    break;
                }
                _ => {
                    bare_control = true;
                    read = at + 1;
                    self.at_line_start = false;
                }
            }
        }
        if line < read {
            write = keep(buffer, line, read, write);
        }
        Scanned { content: write, used: read, end, bare_control }
    }
}

/// Moves `from..to` up to `write`, if it is not there already; returns where the next goes.
fn keep(buffer: &mut [u8], from: usize, to: usize, write: usize) -> usize {
    if from != write {
        buffer.copy_within(from..to, write);
    }
    write + (to - from)
}

/// Looks for CR, LF and NUL on their own in chunks, which need not end where lines do.
#[derive(Debug, Default)]
pub struct ChunkReader {
    after_cr: bool,
}

impl ChunkReader {
    /// True if one of them is in `piece`, or the piece shows that one stood before it.
    pub fn has_bare_control(&mut self, piece: &[u8]) -> bool {
        let mut rest = piece;
        if std::mem::take(&mut self.after_cr) {
            match rest.split_first() {
                Some((b'\n', behind)) => rest = behind,
                Some(_) => return true,
                None => self.after_cr = true,
            }
        }
        while let Some(at) = memchr::memchr3(b'\r', b'\n', 0, rest) {
            match (rest[at], rest.get(at + 1)) {
                (b'\r', Some(b'\n')) => rest = &rest[at + 2..],
                (b'\r', None) => {
                    self.after_cr = true;
                    return false;
                }
                _ => return true,
            }
        }
        false
    }

    /// True if the last chunk ended in a CR whose LF will not come.
    pub fn ends_in_cr(&self) -> bool {
        self.after_cr
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The standard's words, octet by octet: content, end, and whether a control stood on its own before it.
    fn reference(data: &[u8]) -> (Vec<u8>, Option<usize>, bool) {
        let (mut content, mut bare, mut at, mut line_start) = (Vec::new(), false, 0, true);
        while at < data.len() {
            if line_start && data[at..].starts_with(b".\r\n") {
                return (content, Some(at + 3), bare);
            }
            if line_start && data[at] == b'.' {
                at += 1;
                line_start = false;
                continue;
            }
            line_start = data[at..].starts_with(b"\r\n");
            bare |= !line_start && matches!(data[at], b'\r' | b'\n' | 0);
            let len = if line_start { 2 } else { 1 };
            content.extend_from_slice(&data[at..at + len]);
            at += len;
        }
        (content, None, bare)
    }

    fn scan(data: &[u8], cuts: &[usize]) -> (Vec<u8>, Option<usize>, bool) {
        let (mut reader, mut content, mut used, mut bare) = (DotReader::default(), Vec::new(), 0, false);
        let (mut buffer, mut rest) = (Vec::new(), data);
        for cut in cuts.iter().copied().cycle() {
            let (piece, behind) = rest.split_at(cut.min(rest.len()));
            buffer.extend_from_slice(piece);
            rest = behind;
            let scanned = reader.scan(&mut buffer);
            content.extend_from_slice(&buffer[..scanned.content]);
            buffer.drain(..scanned.used);
            used += scanned.used;
            bare |= scanned.bare_control;
            if scanned.end {
                return (content, Some(used), bare);
            }
            assert!(buffer.len() <= 2, "little is left undecided");
            if rest.is_empty() {
                break;
            }
        }
        (content, None, bare)
    }

    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let parts = vec!["a", "bc", ".", "..", "\r\n", "\r\n.", "\r", "\n", "\0", "\r\n.\r\n", "\r\n.\r", "\r\n\0"];
        prop::collection::vec(prop::sample::select(parts), 0..30).prop_map(|parts| parts.concat().into_bytes())
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// S-001, C091, against a reader that is too simple to be wrong.
        #[test]
        fn data_is_read_as_the_standard_says(data in stream(), cuts in prop::collection::vec(1_usize..9, 1..8)) {
            // Behind a true end the reader is not asked; before it, octets at the very end may be undecided.
            let data = [&data[..], b"z\r\n.\r\n"].concat();
            let expected = reference(&data);
            prop_assert_eq!(scan(&data, &[usize::MAX]).1, expected.1);
            for cuts in [&[usize::MAX][..], &[1], &cuts] {
                let seen = scan(&data, cuts);
                prop_assert_eq!(&seen.1, &expected.1);
                prop_assert_eq!(seen.2, expected.2);
                if !expected.2 {
                    prop_assert_eq!(&seen.0, &expected.0);
                }
            }
        }

        #[test]
        fn chunks_show_the_same_controls_however_they_are_cut(data in stream(), cut in 1_usize..9) {
            let (mut whole, mut cutter) = (ChunkReader::default(), ChunkReader::default());
            let one = whole.has_bare_control(&data) || whole.ends_in_cr();
            let many = data.chunks(cut).any(|piece| cutter.has_bare_control(piece)) || cutter.ends_in_cr();
            prop_assert_eq!(one, many);
        }

        #[test]
        fn lines_are_the_same_however_they_are_cut(
            parts in prop::collection::vec(
                prop::sample::select(vec!["NOOP".to_owned(), "\r\n".to_owned(), "\r".to_owned(), "\0".to_owned(),
                    "x".repeat(4090), "y".repeat(30_000)]), 0..8),
            cut in 1_usize..2000,
        ) {
            let stream = parts.concat();
            let read = |cut: usize| {
                let (mut reader, mut unread, mut lines) = (LineReader::default(), BytesMut::new(), Vec::new());
                for piece in stream.as_bytes().chunks(cut) {
                    unread.extend_from_slice(piece);
                    while let Some(line) = reader.next(&mut unread, COMMAND_LIMIT) {
                        lines.push(line);
                        match line {
                            Line::Whole(len) => reader.consume(&mut unread, len),
                            Line::TooLong => {}
                            Line::BareControl | Line::Endless => return lines,
                        }
                    }
                }
                lines
            };
            prop_assert_eq!(read(cut), read(usize::MAX));
        }
    }
}
