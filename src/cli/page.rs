//! How large the reader's terminal is, and lines that fit it.
//!
//! A terminal breaks a line wherever it ends, also within an address. So lines are broken at blanks before that, and
//! what is left of one stands under its words. A pipe gets whole lines: what reads there counts them, or greps.

use std::io::{self, IsTerminal as _, Write};

use terminal_size::{Height, Width};

/// Narrower than this nothing is readable, wider than that nobody reads.
const SENSIBLE: std::ops::RangeInclusive<usize> = 40..=120;

/// The columns of the terminal that standard output is; `None`: it is none. `COLUMNS` has the last word, for it is said
/// by a person.
pub(super) fn columns() -> Option<usize> {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let said = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let seen = || terminal_size::terminal_size_of(&stdout).map(|(Width(width), _)| usize::from(width));
    // A terminal that does not know its width says 0.
    let columns = said.or_else(seen).filter(|columns| *columns > 0).unwrap_or(80);
    Some(columns.clamp(*SENSIBLE.start(), *SENSIBLE.end()))
}

/// Rows and columns of the terminal that standard output is, where it can be drawn on; `None`: it cannot.
pub(super) fn screen() -> Option<(usize, usize)> {
    let stdout = io::stdout();
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    if is_dumb || !stdout.is_terminal() {
        return None;
    }
    match terminal_size::terminal_size_of(&stdout) {
        Some((Width(columns), Height(rows))) if columns > 0 && rows > 0 => Some((rows.into(), columns.into())),
        _ => Some((24, 80)),
    }
}

/// The line's first characters, so many that it fits; what was cut off leaves a sign, and its colours end.
pub(super) fn cut(line: &str, columns: usize) -> String {
    if visible(line) <= columns {
        return line.to_owned();
    }
    let (mut short, mut count, mut within) = (String::new(), 0, false);
    for sign in line.chars() {
        within |= sign == '\u{1b}';
        if !within {
            count += 1;
        }
        if within || count < columns {
            short.push(sign);
        } else if count == columns {
            short.push('…');
        }
        within &= sign != 'm';
    }
    short
}

/// Lines of at most so many characters, cut at blanks; a longer word has a line of its own.
pub(super) fn fold(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut length = 0;
    for word in text.split(' ') {
        let long = visible(word);
        if length > 0 && length + 1 + long > width {
            lines.push(String::new());
            length = 0;
        }
        let Some(line) = lines.last_mut() else { break };
        if length > 0 {
            line.push(' ');
            length += 1;
        }
        line.push_str(word);
        length += long;
    }
    lines
}

/// The characters that are seen: colours take no room.
fn visible(text: &str) -> usize {
    let mut count = 0;
    let mut within = false;
    for sign in text.chars() {
        match (within, sign) {
            (false, '\u{1b}') => within = true,
            (true, 'm') => within = false,
            (true, _) => {}
            (false, _) => count += 1,
        }
    }
    count
}

/// Breaks the lines that are written through it, where there is a terminal.
pub(super) struct Folding<W: Write> {
    out: W,
    columns: Option<usize>,
    /// What came since the last line's end.
    line: Vec<u8>,
}

impl<W: Write> Folding<W> {
    pub(super) fn new(out: W, columns: Option<usize>) -> Self {
        Self { out, columns, line: Vec::new() }
    }

    fn write_line(&mut self) -> io::Result<()> {
        let line = std::mem::take(&mut self.line);
        let (Some(columns), Ok(text)) = (self.columns, std::str::from_utf8(&line)) else {
            return self.out.write_all(&line);
        };
        let end = if text.ends_with('\n') { "\n" } else { "" };
        let words = text.trim_end_matches('\n').trim_start_matches(' ');
        let indent = text.len() - text.trim_start_matches(' ').len();
        if indent + visible(words) <= columns {
            return self.out.write_all(&line);
        }
        // The others hang a little deeper, so the first has more room than they need.
        let hang = indent + 2;
        let folded = fold(words, columns.saturating_sub(hang).max(1));
        for (number, part) in folded.iter().enumerate() {
            let indent = if number == 0 { indent } else { hang };
            let end = if number + 1 == folded.len() { end } else { "\n" };
            write!(self.out, "{:indent$}{part}{end}", "")?;
        }
        Ok(())
    }
}

impl<W: Write> Write for Folding<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                self.write_line()?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.write_line()?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_at_blanks() {
        for (text, width, expected) in [
            ("a bc def", 4, &["a bc", "def"][..]),
            ("a bc def", 80, &["a bc def"]),
            ("averylongword b", 4, &["averylongword", "b"]),
            ("", 4, &[""]),
            ("ä ö ü", 3, &["ä ö", "ü"]),
            ("\u{1b}[31mab\u{1b}[0m cd", 5, &["\u{1b}[31mab\u{1b}[0m cd"]),
        ] {
            assert_eq!(fold(text, width), expected, "{text:?}");
        }
    }

    #[test]
    fn a_line_that_is_cut_says_so_and_keeps_its_colours_in_order() {
        for (line, columns, expected) in [
            ("abcd", 4, "abcd"),
            ("abcde", 4, "abc…"),
            ("äöüäö", 4, "äöü…"),
            ("\u{1b}[31mab\u{1b}[0mcde", 4, "\u{1b}[31mab\u{1b}[0mc…"),
            ("\u{1b}[31mabcde\u{1b}[0m", 4, "\u{1b}[31mabc…\u{1b}[0m"),
            ("", 4, ""),
        ] {
            assert_eq!(cut(line, columns), expected, "{line:?}");
        }
    }

    #[test]
    fn what_is_left_of_a_line_stands_under_its_words() {
        for (columns, written, expected) in [
            (
                Some(12),
                &["    one two ", "three four\nshort\n"][..],
                "    one\n      two\n      three\n      four\nshort\n",
            ),
            (Some(80), &["    one two three\n"], "    one two three\n"),
            (None, &["    one two three four five six\n"], "    one two three four five six\n"),
            (Some(10), &["no end of line"], "no end\n  of line"),
            (Some(10), &["\n\n"], "\n\n"),
            (Some(6), &["äöü äöü äöü\n"], "äöü\n  äöü\n  äöü\n"),
        ] {
            let mut page = Folding::new(Vec::new(), columns);
            for piece in written {
                page.write_all(piece.as_bytes()).unwrap();
            }
            page.flush().unwrap();
            assert_eq!(String::from_utf8(page.out).unwrap(), expected, "{columns:?} {written:?}");
        }
    }
}
