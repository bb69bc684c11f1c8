//! Keys with line and column; those that nobody took are unknown.
//!
//! A [`Table`] hands out its values one by one and notes which keys it was asked for, so the list of known keys is
//! the reading itself and cannot fall behind it. What is wrong goes to [`Problems`] with its place at once; the
//! reader gets [`Reported`], reads on, and gives up only after the last key. The only file that names `toml`.
//!
//! Standard: TOML 1.1.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Problem, Problems, Severity};

/// The value is missing or wrong, and that has been said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reported;

/// A value, or the knowledge that its fault has been said.
pub(super) type Read<T> = Result<T, Reported>;

/// Keys that stand above the first section. Below it TOML counts them to that section, which surprises everybody.
const TOP: [&str; 4] = ["hostname", "postmaster", "shutdown_grace", "user"];

/// Before the other sections that something wrong is named by.
const ALSO: &str = "; it is also named by ";

/// Mistakes in one file beyond which nobody reads on.
const SYNTAX_ERRORS: usize = 100;

/// The file: turns offsets into lines and columns.
pub(super) struct Document<'a> {
    path: &'a Path,
    text: &'a str,
    /// Where each line starts.
    lines: Vec<usize>,
}

impl<'a> Document<'a> {
    pub(super) fn new(path: &'a Path, text: &'a str) -> Self {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { path, text, lines }
    }

    /// Parses the whole; every break of the syntax is reported.
    pub(super) fn parse(&self, problems: &mut Problems) -> Read<DeTable<'a>> {
        let (root, errors) = DeTable::parse_recoverable(self.text);
        for error in errors.iter().take(SYNTAX_ERRORS) {
            let at = error.span().map(|span| span.start);
            let text = format!("this is not TOML: {}", error.message());
            problems.0.push(self.problem(Severity::Unreadable, at, text));
        }
        if errors.is_empty() { Ok(root.into_inner()) } else { Err(Reported) }
    }

    /// What is left of the whole where its syntax is broken.
    pub(super) fn parse_what_can_be(&self) -> DeTable<'a> {
        DeTable::parse_recoverable(self.text).0.into_inner()
    }

    /// The table of the whole file.
    pub(super) fn root<'t>(&'t self, entries: &'t DeTable<'t>) -> Table<'t> {
        Table { document: self, what: String::new(), at: None, entries: Some(entries), known: Vec::new() }
    }

    /// Where the line's header starts if `at` is the key of one: `[spool]` is shown with its bracket.
    fn header(&self, at: usize) -> usize {
        let start = self.lines[self.lines.partition_point(|start| *start <= at) - 1];
        let before = self.text.get(start..at).unwrap_or_default();
        let indent = before.len() - before.trim_start().len();
        if before.chars().all(|sign| sign == '[' || sign.is_whitespace()) { start + indent } else { at }
    }

    fn problem(&self, severity: Severity, at: Option<usize>, text: String) -> Problem {
        // What a key holds may stand in it, a path say: nothing of it may move the cursor of a terminal.
        let text = if text.contains(char::is_control) { text.replace(char::is_control, "\u{fffd}") } else { text };
        Problem { severity, file: self.path.to_owned(), place: at.map(|at| self.place(at)), text }
    }

    /// Line and column from 1; columns count characters, as editors do.
    fn place(&self, at: usize) -> (usize, usize) {
        let line = self.lines.partition_point(|start| *start <= at);
        let start = self.lines[line - 1];
        let column = self.text.get(start..at).map_or(at - start, |before| before.chars().count());
        (line, column + 1)
    }
}

/// Where the keys of a file stand, for findings that come after it was read.
#[derive(Debug, Default)]
pub struct Places {
    /// Section, its `name` (empty where it has none), key (empty: the section itself).
    known: HashMap<(String, String, String), (usize, usize)>,
}

impl Places {
    /// Reads the file at `path` again; what is no TOML has no places.
    pub fn read(path: &Path) -> Self {
        super::read(path).map_or_else(|_| Self::default(), |text| Self::of(&text, path))
    }

    /// Those of `text`.
    pub fn of(text: &str, path: &Path) -> Self {
        let document = Document::new(path, text);
        let mut places = Self::default();
        let Ok(root) = document.parse(&mut Problems::default()) else { return places };
        for (key, value) in &root {
            let at = document.place(document.header(key.span().start));
            places.known.insert((String::new(), String::new(), key.get_ref().to_string()), at);
            match value.get_ref() {
                DeValue::Table(table) => places.note(&document, key.get_ref(), key.span().start, table),
                DeValue::Array(items) => {
                    for item in items.iter() {
                        if let DeValue::Table(table) = item.get_ref() {
                            places.note(&document, key.get_ref(), item.span().start, table);
                        }
                    }
                }
                _ => {}
            }
        }
        places
    }

    fn note(&mut self, document: &Document<'_>, section: &str, at: usize, table: &DeTable<'_>) {
        let name = table.get("name").and_then(|name| name.get_ref().as_str()).unwrap_or_default();
        let mut keep = |key: &str, at: usize| {
            self.known
                .entry((section.to_owned(), name.to_owned(), key.to_owned()))
                .or_insert_with(|| document.place(at));
        };
        keep("", document.header(at));
        for (key, _) in table {
            keep(key.get_ref(), key.span().start);
        }
    }

    /// Line and column of a key: `("send_connector", "to-cloud", "tls_domain")`, `("hybrid", "", "internet")`. A key
    /// that is left out stands where its section does.
    pub fn find(&self, section: &str, name: &str, key: &str) -> Option<(usize, usize)> {
        let known = |key: &str| self.known.get(&(section.to_owned(), name.to_owned(), key.to_owned())).copied();
        known(key).or_else(|| known(""))
    }
}

/// One table of the file, or one that was left out.
pub(super) struct Table<'a> {
    document: &'a Document<'a>,
    /// How messages call it: `send_connector "to-cloud"`; empty for the top.
    what: String,
    /// Where it starts; `None` for the top and for what was left out.
    at: Option<usize>,
    /// `None`: left out.
    entries: Option<&'a DeTable<'a>>,
    /// The keys it was asked for.
    known: Vec<&'static str>,
}

impl<'a> Table<'a> {
    /// True if the file has this table.
    pub(super) fn is_written(&self) -> bool {
        self.entries.is_some()
    }

    /// True if the table has this key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entry(key).is_some()
    }

    /// The text of this key as it stands, for references from elsewhere; faults are not reported.
    pub(super) fn peek(&self, key: &str) -> Option<&'a str> {
        self.entry(key).and_then(|(_, value)| value.get_ref().as_str())
    }

    /// How messages call it.
    pub(super) fn what(&self) -> &str {
        &self.what
    }

    /// A value of text.
    pub(super) fn text<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
        problems: &mut Problems,
    ) -> Read<Option<T>> {
        let Some((_, value)) = self.take(key) else { return Ok(None) };
        self.parse(key, value, &parse, problems).map(Some)
    }

    /// A value of text; an empty one is as good as none.
    pub(super) fn text_or_empty<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
        problems: &mut Problems,
    ) -> Read<Option<T>> {
        match self.peek(key) {
            Some("") => {
                self.take(key);
                Ok(None)
            }
            _ => self.text(key, parse, problems),
        }
    }

    /// A value of text that must stand; `why` says what it is for.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        why: &str,
        parse: impl Fn(&str) -> Result<T, String>,
        problems: &mut Problems,
    ) -> Read<T> {
        match self.text(key, parse, problems)? {
            Some(value) => Ok(value),
            None => Err(self.complain(key, format!("missing; {why}"), problems)),
        }
    }

    /// A list of texts; each faulty one is reported where it stands.
    pub(super) fn texts<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
        problems: &mut Problems,
    ) -> Read<Option<Vec<T>>> {
        let Some((_, value)) = self.take(key) else { return Ok(None) };
        match value.get_ref() {
            DeValue::Array(items) => {
                // Collected twice: the first fault must not hide the others.
                let items: Vec<_> = items.iter().map(|item| self.parse(key, item, &parse, problems)).collect();
                items.into_iter().collect::<Read<Vec<T>>>().map(Some)
            }
            DeValue::String(text) if !text.is_empty() => {
                let text = format!("found {}, expected a list such as [{:?}]", describe(value.get_ref()), text);
                Err(self.report(key, value.span().start, text, problems))
            }
            other => {
                let text = format!("found {}, expected a list of texts", describe(other));
                Err(self.report(key, value.span().start, text, problems))
            }
        }
    }

    /// One word of several.
    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        words: &[(&str, T)],
        problems: &mut Problems,
    ) -> Read<Option<T>> {
        let parse = |text: &str| match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Ok(*value),
            None => {
                let mut expected = format!("expected {}", one_of(words.iter().map(|(word, _)| *word)));
                if let Some(near) = nearest(text, words.iter().map(|(word, _)| *word)) {
                    expected.push_str(&format!("; did you mean {near:?}?"));
                }
                Err(expected)
            }
        };
        self.text(key, parse, problems)
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, key: &'static str, problems: &mut Problems) -> Read<Option<bool>> {
        let Some((_, value)) = self.take(key) else { return Ok(None) };
        match value.get_ref() {
            DeValue::Boolean(flag) => Ok(Some(*flag)),
            other => {
                let text = format!("found {}, expected true or false", describe(other));
                Err(self.report(key, value.span().start, text, problems))
            }
        }
    }

    /// A whole number from `least` to `most`.
    pub(super) fn number(
        &mut self,
        key: &'static str,
        least: u32,
        most: u32,
        problems: &mut Problems,
    ) -> Read<Option<u32>> {
        let Some((_, value)) = self.take(key) else { return Ok(None) };
        let number = value.get_ref().as_integer().and_then(|it| u32::from_str_radix(it.as_str(), it.radix()).ok());
        match number.filter(|number| (least..=most).contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                let range = match (least, most) {
                    (0, u32::MAX) => "a number; 0 is no limit".to_owned(),
                    _ => format!("a number from {least} to {most}"),
                };
                let text = format!("found {}, expected {range}", describe(value.get_ref()));
                Err(self.report(key, value.span().start, text, problems))
            }
        }
    }

    /// A size: text such as `"36MiB"`, or a bare 0.
    pub(super) fn size(&mut self, key: &'static str, problems: &mut Problems) -> Read<Option<u64>> {
        match self.entry(key).and_then(|(_, value)| value.get_ref().as_integer()) {
            Some(zero) if zero.as_str() == "0" => {
                self.take(key);
                Ok(Some(0))
            }
            _ => self.text_or_empty(key, super::value::size, problems),
        }
    }

    /// A path; a relative one starts at the file's own folder. An empty one is none.
    pub(super) fn path(&mut self, key: &'static str, problems: &mut Problems) -> Read<Option<PathBuf>> {
        let folder = self.document.path.parent().unwrap_or(Path::new(""));
        let parse = |text: &str| match text.contains('\0') {
            true => Err("expected a path".to_owned()),
            false => Ok(folder.join(text)),
        };
        self.text_or_empty(key, parse, problems)
    }

    /// Where a relative path leads to.
    pub(super) fn beside(&self, path: &str) -> PathBuf {
        self.document.path.parent().unwrap_or(Path::new("")).join(path)
    }

    /// The section `[key]`; one that is left out is empty. Written with the brackets of a list it is wrong, and read
    /// all the same, so that the brackets hide nothing.
    pub(super) fn section(&mut self, key: &'static str, problems: &mut Problems) -> Read<Table<'a>> {
        let Some((at, value)) = self.take(key) else { return Ok(self.inner(key.to_owned(), None, None)) };
        let wrong = |found| format!("found {found}, expected a section in single brackets: [{key}]");
        match value.get_ref() {
            DeValue::Table(entries) => Ok(self.inner(key.to_owned(), Some(at), Some(entries))),
            DeValue::Array(items) if items.len() == 1 && items[0].get_ref().is_table() => {
                self.report(key, at, wrong("double ones".to_owned()), problems);
                Ok(self.inner(key.to_owned(), Some(at), items[0].get_ref().as_table()))
            }
            other => Err(self.report(key, at, wrong(describe(other)), problems)),
        }
    }

    /// The sections `[[key]]`, called by what stands in their key `name`. A single one with the wrong brackets is read
    /// all the same.
    pub(super) fn sections(&mut self, key: &'static str, name: &str, problems: &mut Problems) -> Read<Vec<Table<'a>>> {
        let Some((at, value)) = self.take(key) else { return Ok(Vec::new()) };
        let wrong = |found| format!("found {found}, expected a section in double brackets: [[{key}]]");
        let mut tables = Vec::new();
        match value.get_ref() {
            DeValue::Array(items) => {
                for (number, item) in (1..).zip(items.iter()) {
                    match item.get_ref() {
                        DeValue::Table(entries) => {
                            tables.push(self.named(key, number, name, item.span().start, entries));
                        }
                        other => {
                            self.report(key, item.span().start, wrong(describe(other)), problems);
                        }
                    }
                }
            }
            DeValue::Table(entries) => {
                self.report(key, at, wrong("single ones".to_owned()), problems);
                tables.push(self.named(key, 1, name, at, entries));
            }
            // A list that came out shorter than it was meant would only bring on more complaints.
            other => return Err(self.report(key, at, wrong(describe(other)), problems)),
        }
        Ok(tables)
    }

    fn named(&self, key: &str, number: usize, name: &str, at: usize, entries: &'a DeTable<'a>) -> Table<'a> {
        let mut table = self.inner(format!("{key} number {number}"), Some(at), Some(entries));
        if let Some(name) = table.peek(name).filter(|name| !name.is_empty()) {
            table.what = format!("{key} {}", quoted(name));
        }
        table
    }

    fn inner(&self, what: String, at: Option<usize>, entries: Option<&'a DeTable<'a>>) -> Table<'a> {
        Table { document: self.document, what, at, entries, known: Vec::new() }
    }

    /// Every key that nobody asked for is unknown.
    pub(super) fn finish(&self, problems: &mut Problems) {
        for (key, _) in self.entries.into_iter().flatten() {
            let name: &str = key.get_ref();
            if self.known.contains(&name) {
                continue;
            }
            let mut text = format!("unknown key {}", quoted(name));
            if let Some(near) = nearest(name, self.known.iter().copied()) {
                text.push_str(&format!("; did you mean {near:?}?"));
            } else if !self.what.is_empty() && TOP.contains(&name) {
                text.push_str("; it belongs above the first [section]");
            }
            self.say(Severity::Error, Some(self.document.header(key.span().start)), None, &text, problems);
        }
    }

    /// The feature behind `key` is not built; `instead` says what is, or how to turn it off.
    pub(super) fn refuse(&self, key: &str, instead: &str, problems: &mut Problems) {
        let at = self.entry(key).map(|(at, _)| at).or(self.at);
        let key = match self.entry(key) {
            Some((_, value)) if !value.get_ref().is_table() => format!("{key} = {}", describe_value(value.get_ref())),
            _ => key.to_owned(),
        };
        let text = match instead {
            "" => "not supported in this version".to_owned(),
            _ => format!("not supported in this version; {instead}"),
        };
        self.say(Severity::Error, at, Some(&key), &text, problems);
    }

    /// The whole section is for a feature that is not built.
    pub(super) fn refuse_whole(&self, instead: &str, problems: &mut Problems) {
        self.say(Severity::Error, self.at, None, &format!("not supported in this version; {instead}"), problems);
    }

    /// Something about `key` is wrong: at its place or, if it is missing, at the section's.
    pub(super) fn complain(&self, key: &str, text: impl AsRef<str>, problems: &mut Problems) -> Reported {
        let at = self.entry(key).map(|(at, _)| at).or(self.at);
        self.say(Severity::Error, at, Some(key), text.as_ref(), problems);
        Reported
    }

    /// Something about `key` should be looked at.
    pub(super) fn warn(&self, key: &str, text: impl AsRef<str>, problems: &mut Problems) {
        let at = self.entry(key).map(|(at, _)| at).or(self.at);
        self.say(Severity::Warning, at, Some(key), text.as_ref(), problems);
    }

    /// Something about the section should be looked at.
    pub(super) fn warn_whole(&self, text: impl AsRef<str>, problems: &mut Problems) {
        self.say(Severity::Warning, self.at, None, text.as_ref(), problems);
    }

    fn parse<T>(
        &self,
        key: &str,
        value: &Spanned<DeValue<'a>>,
        parse: impl Fn(&str) -> Result<T, String>,
        problems: &mut Problems,
    ) -> Read<T> {
        // Any parser says what it expects if it is given something that it cannot take.
        let parsed = match value.get_ref() {
            DeValue::String(text) => parse(text),
            // Only that: its reasons would speak of a text that nobody wrote.
            _ => Err(match parse("\0") {
                Err(expected) => expected.split("; ").next().unwrap_or_default().to_owned(),
                Ok(_) => "expected a text".to_owned(),
            }),
        };
        parsed.map_err(|expected| {
            let text = format!("found {}, {expected}", describe(value.get_ref()));
            self.report(key, value.span().start, text, problems)
        })
    }

    fn report(&self, key: &str, at: usize, text: String, problems: &mut Problems) -> Reported {
        self.say(Severity::Error, Some(at), Some(key), &text, problems);
        Reported
    }

    /// What is wrong with something that several sections name is said at the first; there the others are named.
    pub(super) fn complain_too(&self, first: usize, problems: &mut Problems) -> Reported {
        if let Some(problem) = problems.0.get_mut(first) {
            let link = if problem.text.contains(ALSO) { ", " } else { ALSO };
            problem.text.push_str(link);
            problem.text.push_str(&self.what);
        }
        Reported
    }

    fn say(&self, severity: Severity, at: Option<usize>, key: Option<&str>, text: &str, problems: &mut Problems) {
        let parts = [Some(self.what.as_str()).filter(|what| !what.is_empty()), key, Some(text)];
        let text = parts.into_iter().flatten().collect::<Vec<_>>().join(": ");
        problems.0.push(self.document.problem(severity, at, text));
    }

    fn take(&mut self, key: &'static str) -> Option<(usize, &'a Spanned<DeValue<'a>>)> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        self.entry(key)
    }

    fn entry(&self, key: &str) -> Option<(usize, &'a Spanned<DeValue<'a>>)> {
        let (key, value) = self.entries?.get_key_value(key)?;
        Some((self.document.header(key.span().start), value))
    }
}

/// A value as the message shows what was found.
fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::Integer(_) => format!("the number {}", describe_value(value)),
        DeValue::Float(_) => format!("the number {}", describe_value(value)),
        DeValue::Datetime(_) => format!("the date {}", describe_value(value)),
        _ => describe_value(value),
    }
}

fn describe_value(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => quoted(text),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(items) if items.iter().all(|item| item.get_ref().is_str()) => {
            let items: Vec<_> = items.iter().filter_map(|item| item.get_ref().as_str()).map(quoted).collect();
            format!("[{}]", items.join(", "))
        }
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// Text in quotes, without control characters, not longer than a line.
fn quoted(text: &str) -> String {
    let mut shown: String = text.chars().take(80).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("{shown:?}")
}

/// `"a", "b" or "c"`.
pub(super) fn one_of<'w>(words: impl Iterator<Item = &'w str>) -> String {
    let words: Vec<_> = words.map(|word| format!("{word:?}")).collect();
    match words.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

/// The word that was probably meant: a slip or two away, or the same with something more or less at its end.
pub(crate) fn nearest<'w>(found: &str, words: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    // Nothing that long is a slip of a key; and the comparison is quadratic.
    if found.len() > 64 {
        return None;
    }
    let found = found.to_ascii_lowercase().replace('-', "_");
    words
        .filter_map(|word| {
            let plain = word.replace('-', "_");
            let distance = slips(&found, &plain);
            let related = found.len() >= 4 && (plain.starts_with(&found) || plain.ends_with(&found));
            let near = distance <= 1.max(word.len() / 3).min(3);
            (near || related).then_some((if near { distance } else { 4 }, word))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// How many letters were left out, put in, exchanged or swapped with their neighbour.
fn slips(left: &str, right: &str) -> usize {
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=right.len()).collect();
    for (i, from) in left.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, to) in right.iter().enumerate() {
            let mut least = (above[j] + usize::from(from != to)).min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *from == right[j - 1] && left[i - 1] == *to {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_suggested() {
        let keys = ["tls", "tls_domain", "name", "listen", "origin", "relay", "max_errors", "password_file", "strict"];
        for (found, expected) in [
            ("tls_domian", Some("tls_domain")),
            ("tls-domain", Some("tls_domain")),
            ("TLS", Some("tls")),
            ("lisen", Some("listen")),
            ("listne", Some("listen")),
            ("max_error", Some("max_errors")),
            ("password", Some("password_file")),
            ("banner", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(found, keys.into_iter()), expected, "{found}");
        }
        assert_eq!(nearest(&"a".repeat(100_000), keys.into_iter()), None);
    }

    #[test]
    fn places_count_lines_and_characters_from_one() {
        let text = "a = 1\nä = \"ö\" # x\r\n\nlast";
        let document = Document::new(Path::new("x.toml"), text);
        for (at, expected) in [
            (0, (1, 1)),
            (4, (1, 5)),
            (6, (2, 1)),
            (text.find('=').map_or(0, |_| text.rfind('=').unwrap_or(0)), (2, 3)),
            (text.find('#').unwrap_or(0), (2, 9)),
            (text.find("last").unwrap_or(0), (4, 1)),
            (text.len(), (4, 5)),
        ] {
            assert_eq!(document.place(at), expected, "{at}");
        }
    }
}
