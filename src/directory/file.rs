//! The CSV of recipients (`[[directory]]` in docs/configuration.md) and its faulty lines. The only file that names csv-core.
//!
//! A line is a record: a quoted field may hold commas, quotes and blanks, but no line end. So a quote that somebody
//! forgot to close costs one line, not the rest of the file, and every fault has a line's number. A faulty line is
//! reported and skipped. A file in which nothing is usable is refused as a whole; so is one that changes while it
//! is read, because half of the old and half of the new is a state that never was.
//!
//! Not here: keeping the last good table (`directory`).
//!
//! Standards: RFC 4180 (CSV).

use std::fs::{File, Metadata};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use csv_core::{ReadRecordResult, Reader};

use super::Entry;
use super::table::{Builder, Rejected, Table};
use crate::message::Address;

/// A group of ten thousand members fits; a file without line ends does not fill the memory.
const LINE_LIMIT: usize = 1024 * 1024;
/// Positions in a [`Table`] are 32 bits, and no directory of people is larger.
const FILE_LIMIT: u64 = 4 * 1024 * 1024 * 1024;
/// A file of the wrong kind has a fault on every line; nobody reads more of them than this.
const FAULT_LIMIT: usize = 1000;
/// What is read at once.
const CHUNK: usize = 256 * 1024;
/// The header line.
const COLUMNS: [&str; 3] = ["address", "type", "target"];

/// A file that was read.
#[derive(Debug)]
pub struct Loaded {
    /// Its recipients.
    pub table: Table,
    /// Lines that were skipped, in order; at most a thousand.
    pub faults: Vec<Fault>,
    /// How many more were skipped.
    pub unlisted: usize,
    /// What it looked like.
    pub fingerprint: Fingerprint,
}

/// A line that was skipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Its number, from 1; the header line counts.
    pub line: u64,
    /// What is wrong with it.
    pub text: String,
}

/// Why a file was refused as a whole.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be opened or read.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is no regular file.
    #[error("is not a regular file")]
    NotAFile,
    /// It is larger than any directory.
    #[error("is larger than 4 GiB")]
    TooLarge,
    /// Its first line is not the header line.
    #[error("line 1: expected the header line address,type,target; found {0}")]
    Header(String),
    /// No line of it is usable.
    #[error("nothing in it is usable{}", first_fault(.0))]
    NothingUsable(Vec<Fault>),
    /// It was written to in the meantime.
    #[error("changed while it was read")]
    Changing,
}

/// By what a changed file is known. The change time is in it because tools such as `cp -p` and `rsync -t` put the
/// modification time back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fingerprint {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Fingerprint {
    /// That of the file at `path` as it is now.
    ///
    /// # Errors
    /// The file cannot be asked.
    pub fn of(path: &Path) -> io::Result<Self> {
        std::fs::metadata(path).map(|metadata| Self::from(&metadata))
    }
}

impl From<&Metadata> for Fingerprint {
    fn from(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Reads the file at `path`. Blocking.
///
/// # Errors
/// Why it is of no use at all.
pub fn load(path: &Path) -> Result<Loaded, LoadError> {
    // Asked before it is opened: opening a FIFO would wait for somebody to write to it.
    if !std::fs::metadata(path)?.is_file() {
        return Err(LoadError::NotAFile);
    }
    let file = File::open(path)?;
    let before = file.metadata()?;
    if before.len() > FILE_LIMIT {
        return Err(LoadError::TooLarge);
    }
    let fingerprint = Fingerprint::from(&before);
    let (table, faults, unlisted) = read(BufReader::with_capacity(CHUNK, &file))?;
    if Fingerprint::from(&file.metadata()?) != fingerprint {
        return Err(LoadError::Changing);
    }
    Ok(Loaded { table, faults, unlisted, fingerprint })
}

/// Addresses from a file, in its order.
#[derive(Debug, Default)]
pub struct Listed {
    /// One of each line that has one.
    pub addresses: Vec<Address>,
    /// Lines without, in order; at most a thousand.
    pub faults: Vec<Fault>,
    /// How many more were skipped.
    pub unlisted: usize,
}

/// Reads the addresses of a list: one a line, or the first column of a CSV file with or without a header line. Blocking.
///
/// # Errors
/// It cannot be read.
pub fn list(path: &Path) -> io::Result<Listed> {
    read_list(BufReader::with_capacity(CHUNK, File::open(path)?))
}

/// The same of text that is in no file.
///
/// # Errors
/// It cannot be read.
pub fn read_list(from: impl BufRead) -> io::Result<Listed> {
    let mut lines = Lines { from, line: Vec::new(), number: 0 };
    let mut fields = Fields::default();
    let mut listed = Listed::default();
    while let Some(line) = lines.next()? {
        let first = line.number == 1;
        let content = line.content.map(|content| match first {
            true => content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content),
            false => content,
        });
        let text = match content.ok_or_else(|| format!("it is longer than {} KiB", LINE_LIMIT / 1024)) {
            Ok(content) => match listed_address(content, &mut fields) {
                Ok(Some(address)) => {
                    listed.addresses.push(address);
                    continue;
                }
                Ok(None) => continue,
                // The names of columns are no address.
                Err(_) if first && is_header(content, &mut fields) => continue,
                Err(text) => text,
            },
            Err(text) => text,
        };
        if listed.faults.len() == FAULT_LIMIT {
            listed.unlisted += 1;
        } else {
            listed.faults.push(Fault { line: line.number, text });
        }
    }
    Ok(listed)
}

/// `None` of a blank line.
fn listed_address(line: &[u8], fields: &mut Fields) -> Result<Option<Address>, String> {
    // A quoted local part is no quoted column.
    if let Some(address) = std::str::from_utf8(line).ok().and_then(|line| Address::parse(line.trim()).ok()) {
        return Ok(Some(address));
    }
    match fields.split(line)?.first().map(|first| first.trim()) {
        None => Ok(None),
        Some("") if line.iter().all(|byte| matches!(byte, b' ' | b'\t' | b',')) => Ok(None),
        Some(first) => parse("address", first).map(Some),
    }
}

/// Names of columns: no `@`, and several of them or the one that the directory's own header begins with.
fn is_header(line: &[u8], fields: &mut Fields) -> bool {
    !line.contains(&b'@')
        && fields.split(line).is_ok_and(|fields| {
            fields.len() > 1 || fields.first().is_some_and(|only| only.trim().eq_ignore_ascii_case(COLUMNS[0]))
        })
}

/// As [`load`], of text that is in no file: its recipients, lines that were skipped, and how many more were.
///
/// # Errors
/// Why it is of no use at all.
pub fn read(from: impl BufRead) -> Result<(Table, Vec<Fault>, usize), LoadError> {
    let mut builder = Builder::default();
    let mut faults = Vec::new();
    let mut unlisted = 0;
    each(from, |line, read| {
        let text = match read {
            Ok((address, entry)) => match builder.insert(&address, &entry) {
                Ok(()) => return Ok(()),
                Err(rejected @ (Rejected::Duplicate | Rejected::TooLong)) => format!("{address}: {rejected}"),
                Err(Rejected::Full) => return Err(LoadError::TooLarge),
            },
            Err(text) => text,
        };
        if faults.len() == FAULT_LIMIT {
            unlisted += 1;
        } else {
            faults.push(Fault { line, text });
        }
        Ok(())
    })?;
    if builder.is_empty() { Err(LoadError::NothingUsable(faults)) } else { Ok((builder.finish(), faults, unlisted)) }
}

/// Shows every line of the file at `path` that says anything, with its number; or what is wrong with it. Nothing is
/// compared: of two lines for one address both are shown. Blocking.
///
/// # Errors
/// The file cannot be read, or is of no use at all.
pub fn lines(path: &Path, show: impl FnMut(u64, Result<(Address, Entry), String>)) -> Result<(), LoadError> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(LoadError::NotAFile);
    }
    read_lines(BufReader::with_capacity(CHUNK, File::open(path)?), show)
}

/// The same of text that is in no file.
///
/// # Errors
/// It is of no use at all.
pub fn read_lines(
    from: impl BufRead,
    mut show: impl FnMut(u64, Result<(Address, Entry), String>),
) -> Result<(), LoadError> {
    each(from, |line, read| {
        show(line, read);
        Ok(())
    })
}

fn each(
    from: impl BufRead,
    mut show: impl FnMut(u64, Result<(Address, Entry), String>) -> Result<(), LoadError>,
) -> Result<(), LoadError> {
    let mut lines = Lines { from, line: Vec::new(), number: 0 };
    let mut fields = Fields::default();
    header(lines.next()?, &mut fields)?;
    while let Some(line) = lines.next()? {
        let read = match line.content {
            Some(content) => fields.split(content).and_then(|fields| record(&fields)),
            None => Err(format!("it is longer than {} KiB", LINE_LIMIT / 1024)),
        };
        match read {
            Ok(None) => {}
            Ok(Some(entry)) => show(line.number, Ok(entry))?,
            Err(text) if line.ended => show(line.number, Err(text))?,
            Err(text) => {
                show(line.number, Err(format!("{text} (the file ends in it: was it still being written?)")))?;
            }
        }
    }
    Ok(())
}

fn header(line: Option<Line<'_>>, fields: &mut Fields) -> Result<(), LoadError> {
    let Some(line) = line else { return Err(LoadError::Header("an empty file".into())) };
    let content = line.content.unwrap_or_default();
    if content.starts_with(&[0xff, 0xfe]) || content.starts_with(&[0xfe, 0xff]) {
        return Err(LoadError::Header("UTF-16; save it as UTF-8".into()));
    }
    // Spreadsheets put a byte order mark in front of UTF-8.
    let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
    let found = fields.split(content).map_err(LoadError::Header)?;
    let as_expected = found.iter().map(|field| field.trim());
    if found.len() == COLUMNS.len()
        && as_expected.zip(COLUMNS).all(|(found, column)| found.eq_ignore_ascii_case(column))
    {
        return Ok(());
    }
    let shown = shown(&String::from_utf8_lossy(content));
    Err(LoadError::Header(if content.contains(&b';') && !content.contains(&b',') {
        format!("{shown}; separate the columns by commas, not semicolons")
    } else {
        shown
    }))
}

/// One line as what it says; `None` for a blank one.
fn record(fields: &[&str]) -> Result<Option<(Address, Entry)>, String> {
    let (address, kind, target) = match *fields {
        [] => return Ok(None),
        [only] if only.trim().is_empty() => return Ok(None),
        [address, kind] => (address, kind, ""),
        [address, kind, target] => (address, kind, target.trim()),
        // Spreadsheets fill up with commas.
        [address, kind, target, ref rest @ ..] if rest.iter().all(|field| field.trim().is_empty()) => {
            (address, kind, target.trim())
        }
        [_] => return Err("expected address,type,target; found one column".into()),
        _ => {
            return Err(format!(
                "expected address,type,target; found {} columns (members of a group are separated by blanks)",
                fields.len()
            ));
        }
    };
    if address.trim().is_empty() && kind.trim().is_empty() && target.is_empty() {
        return Ok(None);
    }
    let address = parse("address", address.trim())?;
    let one = |kind: &str| match target {
        "" => Err(format!("{address}: type {kind} needs an address as its target")),
        target => parse("target", target),
    };
    let entry = match kind.trim() {
        "on-premises" if target.is_empty() => Entry::OnPremises,
        "on-premises" => return Err(format!("{address}: type on-premises takes no target; found {}", shown(target))),
        "cloud" if target.is_empty() => Entry::Cloud(None),
        "cloud" => Entry::Cloud(Some(parse("target", target)?)),
        "forward" => Entry::Forward(one("forward")?),
        "alias" => Entry::Alias(one("alias")?),
        "group" => {
            let members: Vec<_> =
                target.split_whitespace().map(|member| parse("member", member)).collect::<Result<_, _>>()?;
            if members.is_empty() {
                return Err(format!("{address}: type group needs addresses, separated by blanks, as its target"));
            }
            Entry::Group(members)
        }
        "" => return Err(format!("{address}: the type is missing")),
        other => {
            return Err(format!(
                "{address}: expected the type on-premises, cloud, forward, group or alias; found {}",
                shown(other)
            ));
        }
    };
    Ok(Some((address, entry)))
}

fn parse(what: &str, text: &str) -> Result<Address, String> {
    Address::parse(text).map_err(|malformed| format!("{what} {}: {malformed}", shown(text)))
}

/// Quoted, and short enough for a log.
fn shown(text: &str) -> String {
    const LIMIT: usize = 80;
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

fn first_fault(faults: &[Fault]) -> String {
    faults.first().map(|fault| format!("; line {}: {}", fault.line, fault.text)).unwrap_or_default()
}

/// A file's lines, however they end, none of them longer than the limit.
struct Lines<R> {
    from: R,
    line: Vec<u8>,
    number: u64,
}

struct Line<'a> {
    number: u64,
    /// Without its end; `None` where it was too long.
    content: Option<&'a [u8]>,
    /// A line end stood behind it.
    ended: bool,
}

impl<R: BufRead> Lines<R> {
    fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        self.line.clear();
        self.number += 1;
        let (mut any, mut ended, mut too_long) = (false, false, false);
        while !ended {
            let chunk = match self.from.fill_buf() {
                Ok(chunk) => chunk,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if chunk.is_empty() {
                break;
            }
            any = true;
            let (piece, taken) = match memchr::memchr(b'\n', chunk) {
                Some(end) => (&chunk[..end], end + 1),
                None => (chunk, chunk.len()),
            };
            ended = taken > piece.len();
            if self.line.len() + piece.len() > LINE_LIMIT {
                too_long = true;
            } else {
                self.line.extend_from_slice(piece);
            }
            self.from.consume(taken);
        }
        if !any {
            return Ok(None);
        }
        if self.line.last() == Some(&b'\r') {
            self.line.pop();
        }
        Ok(Some(Line { number: self.number, content: (!too_long).then_some(&self.line[..]), ended }))
    }
}

/// Splits one line into its columns; keeps its buffers.
struct Fields {
    reader: Reader,
    text: Vec<u8>,
    ends: Vec<usize>,
}

impl Default for Fields {
    fn default() -> Self {
        Self { reader: Reader::new(), text: Vec::new(), ends: vec![0; 8] }
    }
}

impl Fields {
    fn split(&mut self, line: &[u8]) -> Result<Vec<&str>, String> {
        if line.is_empty() {
            // csv-core takes no bytes for the end of the file.
            return Ok(Vec::new());
        }
        self.reader.reset();
        // What comes out is never longer than what goes in.
        self.text.resize(self.text.len().max(line.len() + 1), 0);
        let (result, read, written, columns) = self.reader.read_record(line, &mut self.text, &mut self.ends);
        let (columns, written) = match result {
            ReadRecordResult::InputEmpty => {
                // A line end ends the record, unless a quote is still open: then it is one more character.
                let (result, _, more, last) =
                    self.reader.read_record(b"\n", &mut self.text[written..], &mut self.ends[columns..]);
                match result {
                    ReadRecordResult::Record => (columns + last, written + more),
                    // It passes over blank lines.
                    ReadRecordResult::InputEmpty if written == 0 && columns == 0 && read == line.len() && more == 0 => {
                        return Ok(Vec::new());
                    }
                    ReadRecordResult::OutputEndsFull => return Err(too_many_columns(self.ends.len())),
                    _ => return Err("a quote is not closed".into()),
                }
            }
            ReadRecordResult::OutputEndsFull => return Err(too_many_columns(self.ends.len())),
            // A CR in the middle ends a record for csv-core.
            ReadRecordResult::Record if read < line.len() => return Err("a bare CR stands in it".into()),
            ReadRecordResult::Record => (columns, written),
            ReadRecordResult::OutputFull | ReadRecordResult::End => return Err("it is no CSV".into()),
        };
        let text = std::str::from_utf8(&self.text[..written]).map_err(|_| "it is not UTF-8".to_owned())?;
        let mut start = 0;
        let mut fields = Vec::with_capacity(columns);
        for &end in &self.ends[..columns] {
            // Columns end at commas and quotes, so these are never inside a character.
            fields.push(text.get(start..end).ok_or("it is not UTF-8")?);
            start = end;
        }
        Ok(fields)
    }
}

fn too_many_columns(limit: usize) -> String {
    format!("more than {limit} columns")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<(Table, Vec<Fault>, usize), LoadError> {
        read(BufReader::with_capacity(7, text.as_bytes()))
    }

    fn find(table: &Table, text: &str) -> Option<Entry> {
        let address = Address::parse(text).unwrap();
        table.find(address.local(), address.domain())
    }

    #[test]
    fn the_five_types_are_read() {
        let text = "\u{feff}Address, Type,Target\r\n\
            anna@contoso.com,on-premises,\r\n\
            otto@contoso.com,on-premises\r\n\
            \r\n\
            david@contoso.com,cloud,\n\
            dora@contoso.com,cloud,dora.x@contoso.mail.onmicrosoft.com\n\
            old@contoso.com,forward,new@fabrikam.com\n\
            team@contoso.com,group,anna@contoso.com  david@contoso.com\n\
            boss@contoso.com,group,\"anna@contoso.com \"\"odd name\"\"@contoso.com\"\n\
            a.s@contoso.com , alias , anna@contoso.com,,\n\
            \"\"\"two words\"\"@contoso.com\",cloud,\n\
            ,,\n\
            last@contoso.com,on-premises,";
        let (table, faults, unlisted) = read_text(text).unwrap();
        let address = |text| Address::parse(text).unwrap();
        // A blank inside a member's quotes separates members like any other.
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert_eq!((faults[0].line, unlisted), (9, 0));
        for (name, expected) in [
            ("anna@contoso.com", Entry::OnPremises),
            ("otto@contoso.com", Entry::OnPremises),
            ("david@contoso.com", Entry::Cloud(None)),
            ("dora@contoso.com", Entry::Cloud(Some(address("dora.x@contoso.mail.onmicrosoft.com")))),
            ("old@contoso.com", Entry::Forward(address("new@fabrikam.com"))),
            ("team@contoso.com", Entry::Group(vec![address("anna@contoso.com"), address("david@contoso.com")])),
            ("a.s@contoso.com", Entry::Alias(address("anna@contoso.com"))),
            ("\"two words\"@contoso.com", Entry::Cloud(None)),
            ("last@contoso.com", Entry::OnPremises),
        ] {
            assert_eq!(find(&table, name), Some(expected), "{name}");
        }
        assert_eq!(table.len(), 9);
    }

    #[test]
    fn a_list_is_one_address_a_line_or_the_first_column() {
        for (text, expected, faulty) in [
            ("anna@contoso.com\n\ndavid@contoso.com", &["anna@contoso.com", "david@contoso.com"][..], &[][..]),
            ("\u{feff}address,type,target\r\nanna@contoso.com,on-premises,\r\n,,\r\n", &["anna@contoso.com"], &[]),
            (
                "anna@contoso.com,on-premises,\ndavid@contoso.com,cloud,d@x.example\n",
                &["anna@contoso.com", "david@contoso.com"],
                &[],
            ),
            ("Address\n anna@contoso.com \n", &["anna@contoso.com"], &[]),
            ("\"PrimarySmtpAddress\",\"Name\"\n\"anna@contoso.com\",\"Smith, Anna\"\n", &["anna@contoso.com"], &[]),
            (
                "\"two words\"@contoso.com\n\"\"\"a b\"\"@contoso.com\",cloud\n",
                &["\"two words\"@contoso.com", "\"a b\"@contoso.com"],
                &[],
            ),
            // What is no header is a fault on the first line too, and a header is none but there.
            ("anna\ndavid@contoso.com\naddress,type,target\n", &["david@contoso.com"], &[1, 3]),
            ("", &[], &[]),
        ] {
            let listed = read_list(BufReader::with_capacity(5, text.as_bytes())).unwrap();
            let addresses: Vec<_> = listed.addresses.iter().map(ToString::to_string).collect();
            assert_eq!(addresses, expected, "{text:?}");
            assert_eq!(listed.faults.iter().map(|fault| fault.line).collect::<Vec<_>>(), faulty, "{text:?}");
        }
    }

    #[test]
    fn faulty_lines_are_named_and_skipped() {
        let long = format!("x@contoso.com,group,{}", "anna@contoso.com ".repeat(LINE_LIMIT / 16));
        for (line, expected) in [
            ("nobody", "found one column"),
            ("nobody,on-premises,", "address \"nobody\": the domain is missing"),
            ("a b@contoso.com,on-premises,", "address \"a b@contoso.com\": the local part is malformed"),
            ("x@-contoso.com,cloud,", "the domain is malformed"),
            (",cloud,", "address \"\""),
            ("x@contoso.com,,", "x@contoso.com: the type is missing"),
            (
                "x@contoso.com,onprem,",
                "expected the type on-premises, cloud, forward, group or alias; found \"onprem\"",
            ),
            ("x@contoso.com,on-premises,y@contoso.com", "takes no target; found \"y@contoso.com\""),
            ("x@contoso.com,cloud,y", "target \"y\": the domain is missing"),
            ("x@contoso.com,forward,", "type forward needs an address"),
            ("x@contoso.com,forward,a@b.example c@d.example", "target \"a@b.example c@d.example\""),
            ("x@contoso.com,alias", "type alias needs an address"),
            ("x@contoso.com,group,", "type group needs addresses"),
            ("x@contoso.com,group,a@contoso.com b", "member \"b\": the domain is missing"),
            ("x@contoso.com,group,a@contoso.com,b@contoso.com", "separated by blanks"),
            ("x@contoso.com,1,2,3,4,5,6,7,8,9,10", "more than 8 columns"),
            ("x@contoso.com,\"cloud,", "a quote is not closed"),
            ("\"x@contoso.com,cloud,", "a quote is not closed"),
            ("x@contoso.com,cl\roud,", "bare CR"),
            ("ANNA@contoso.com,cloud,", "ANNA@contoso.com: it is there already; the first line with it holds"),
            (long.as_str(), "longer than 1024 KiB"),
        ] {
            let text = format!("address,type,target\nanna@contoso.com,on-premises,\n{line}\nz@contoso.com,cloud,\n");
            let (table, faults, _) = read_text(&text).unwrap();
            let shown = &line[..line.len().min(60)];
            assert_eq!(faults.len(), 1, "{shown}: {faults:?}");
            assert_eq!(faults[0].line, 3, "{shown}");
            assert!(faults[0].text.contains(expected), "{shown}: {}", faults[0].text);
            assert!(!faults[0].text.contains("ends in it"), "{shown}: {}", faults[0].text);
            assert_eq!(table.len(), 2, "{shown}");
            assert_eq!(find(&table, "anna@contoso.com"), Some(Entry::OnPremises), "{shown}");
            assert_eq!(find(&table, "z@contoso.com"), Some(Entry::Cloud(None)), "{shown}");
        }
    }

    #[test]
    fn a_line_that_is_not_utf8_is_a_fault() {
        let text = b"address,type,target\nj\xfcrgen@contoso.com,cloud,\nj\xc3\xbcrgen@contoso.com,cloud,\n";
        let (table, faults, _) = read(&text[..]).unwrap();
        assert_eq!(faults, [Fault { line: 2, text: "it is not UTF-8".into() }]);
        assert_eq!(find(&table, "jürgen@contoso.com"), Some(Entry::Cloud(None)));
    }

    #[test]
    fn a_file_cut_off_in_its_last_line_says_so() {
        let (table, faults, _) = read_text("address,type,target\na@contoso.com,cloud,\nb@contoso.com,clo").unwrap();
        assert_eq!(table.len(), 1);
        assert_eq!(faults[0].line, 3);
        assert!(faults[0].text.ends_with("(the file ends in it: was it still being written?)"), "{}", faults[0].text);
    }

    #[test]
    fn a_file_of_no_use_is_refused() {
        for (text, expected) in [
            ("", "expected the header line address,type,target; found an empty file"),
            ("\n", "found \"\""),
            ("address,type,target", "nothing in it is usable"),
            ("address,type,target\n\n,,\n", "nothing in it is usable"),
            ("address,type,target\nnobody,cloud,\n", "nothing in it is usable; line 2: address \"nobody\""),
            ("anna@contoso.com,on-premises,\n", "found \"anna@contoso.com,on-premises,\""),
            ("address;type;target\na@contoso.com;cloud;\n", "by commas, not semicolons"),
            ("address,type\na@contoso.com,cloud\n", "found \"address,type\""),
            ("\"address,type,target\na@contoso.com,cloud,\n", "a quote is not closed"),
        ] {
            let error = read_text(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
        let utf16 = b"\xff\xfea\0d\0d\0\n\0";
        assert!(read(&utf16[..]).unwrap_err().to_string().contains("UTF-16"));
    }

    #[test]
    fn of_a_great_many_faults_a_thousand_are_listed() {
        let text = format!("address,type,target\na@contoso.com,cloud,\n{}", "x\n".repeat(2500));
        let (_, faults, unlisted) = read_text(&text).unwrap();
        assert_eq!((faults.len(), unlisted), (1000, 1500));
    }

    #[test]
    fn what_is_no_file_is_refused_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(load(folder.path()), Err(LoadError::NotAFile)));
        assert!(matches!(load(&folder.path().join("missing")), Err(LoadError::Io(_))));
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(load(&fifo), Err(LoadError::NotAFile)));
    }

    proptest::proptest! {
        /// Whatever the bytes, and however they are cut, reading ends, and with the same result.
        #[test]
        fn any_bytes_are_read_the_same_however_they_are_cut(
            lines in proptest::collection::vec("[a-c@.,\" \r\u{fc}-]{0,12}|[a-c]{1,3}@contoso.com,(cloud|on-premises),", 0..12),
            cut in 1_usize..40,
        ) {
            let text = format!("address,type,target\n{}", lines.join("\n"));
            let whole = read(text.as_bytes());
            let pieces = read(BufReader::with_capacity(cut, text.as_bytes()));
            match (whole, pieces) {
                (Ok((table, faults, _)), Ok((other, others, _))) => {
                    proptest::prop_assert_eq!(table.len(), other.len());
                    proptest::prop_assert_eq!(faults, others);
                }
                (Err(one), Err(other)) => proptest::prop_assert_eq!(one.to_string(), other.to_string()),
                _ => proptest::prop_assert!(false, "one was refused and the other not"),
            }
        }
    }
}
