//! The folder of tracking files: names, the file that is written to, finishing and removing those of other days.
//!
//! A day is `tracking-2026-11-20.jsonl`. When it is over, a thread of its own compresses it into `….jsonl.gz` with an
//! index beside it, `….idx`, and then removes it; mail is not held up, and the thread takes a quarter of a core. A
//! plain file with a compressed one of the same name beside it is done with, whatever happened in between: the
//! compressed one was whole before it got its name. Events that come later still (a clock was put back) make a second
//! part, `tracking-2026-11-20.2.jsonl`.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::ToSpan;
use jiff::civil::Date;

use super::shelf::{self, Stop};

/// So long after a day began the one before is finished; what was under way then has been written long since.
pub(super) const GRACE: Duration = Duration::from_secs(300);

/// A file of a day that was begun anew so often is the work of a clock gone mad; then the last part gets it all.
const PARTS: u32 = 1000;

/// What a file of the folder is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub day: Date,
    /// From 1; the first is not written.
    pub part: u32,
    pub form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Form {
    Plain,
    Compressed,
    Index,
    /// Half a file: the work of a process that has died, or of one at work now.
    Unfinished,
}

impl Name {
    pub fn parse(name: &str) -> Option<Self> {
        let (date, rest) = name.strip_prefix("tracking-")?.split_once('.')?;
        let day: Date = date.parse().ok()?;
        let (part, form) = match rest.split_once('.') {
            Some((part, form)) if part.bytes().all(|byte| byte.is_ascii_digit()) => (part.parse().ok()?, form),
            _ => (1, rest),
        };
        let form = match form {
            "jsonl" => Form::Plain,
            "jsonl.gz" => Form::Compressed,
            "idx" => Form::Index,
            "jsonl.gz.new" | "idx.new" => Form::Unfinished,
            _ => return None,
        };
        let parsed = Self { day, part, form };
        // `2026-1-1` and `.1.jsonl` are nobody's names.
        (form == Form::Unfinished || parsed.to_string() == name).then_some(parsed)
    }

    pub fn of(path: &Path) -> Option<Self> {
        Self::parse(path.file_name()?.to_str()?)
    }

    pub fn as_form(self, form: Form) -> Self {
        Self { form, ..self }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "tracking-{}", self.day)?;
        if self.part > 1 {
            write!(f, ".{}", self.part)?;
        }
        f.write_str(match self.form {
            Form::Plain => ".jsonl",
            Form::Compressed => ".jsonl.gz",
            Form::Index => ".idx",
            Form::Unfinished => ".new",
        })
    }
}

/// The name of the file of a day.
pub fn file_name(day: Date) -> String {
    Name { day, part: 1, form: Form::Plain }.to_string()
}

/// The day of the file with this name, whether it is being written or finished.
pub fn day_of_file(name: &str) -> Option<Date> {
    Name::parse(name).filter(|name| matches!(name.form, Form::Plain | Form::Compressed)).map(|name| name.day)
}

/// The files with events in `folder`, oldest first, for those who read them. Of a day that was just finished only the
/// compressed file counts.
///
/// # Errors
/// The folder cannot be listed.
pub fn files(folder: &Path) -> io::Result<Vec<(Date, PathBuf)>> {
    Ok(names(folder)?.into_iter().map(|name| (name.day, folder.join(name.to_string()))).collect())
}

/// Compresses and indexes, at once, the files in `folder` of days before `today`, as the daemon does by itself when a
/// day is over. No daemon may be writing there. Blocking.
///
/// # Errors
/// The folder cannot be listed.
pub fn finish_before(folder: &Path, today: Date) -> io::Result<()> {
    let over: Vec<Name> = every_name(folder)?.into_iter().filter(|name| name.day < today).collect();
    shelf::finish(folder, &over, &Stop::default());
    Ok(())
}

pub(super) fn names(folder: &Path) -> io::Result<Vec<Name>> {
    let all = every_name(folder)?;
    let events = |name: &&Name| match name.form {
        Form::Plain => all.binary_search(&name.as_form(Form::Compressed)).is_err(),
        Form::Compressed => true,
        Form::Index | Form::Unfinished => false,
    };
    Ok(all.iter().filter(events).copied().collect())
}

fn every_name(folder: &Path) -> io::Result<Vec<Name>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        names.extend(Name::of(&entry?.path()));
    }
    names.sort_unstable();
    Ok(names)
}

/// How often the writer looks whether the file that it writes to still has its name.
const PATH_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The file that is written to.
struct Current {
    day: Date,
    path: PathBuf,
    file: File,
    /// Device and inode.
    identity: (u64, u64),
    checked: Instant,
}

impl Current {
    fn open(day: Date, path: PathBuf) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.create(true).append(true).read(true);
        let mut file = match options.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Somebody removed the folder.
                path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
                options.open(&path)?
            }
            opened => opened?,
        };
        if ends_within_a_line(&mut file)? {
            file.write_all(b"\n")?;
        }
        let identity = identity(&file.metadata()?);
        Ok(Self { day, path, file, identity, checked: Instant::now() })
    }

    /// Nobody renamed or removed it. Where that cannot be told, it is written to as before.
    fn has_its_name(&self) -> bool {
        match std::fs::metadata(&self.path) {
            Ok(found) => identity(&found) == self.identity,
            Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
        }
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// The folder and today's file.
pub(super) struct Files {
    pub folder: PathBuf,
    pub keep: Duration,
    pub grace: Duration,
    current: Option<Current>,
    /// The newest day that was written to, and those before are over.
    newest: Option<Date>,
    /// When to finish what is over.
    due: Option<Instant>,
    /// Files that are being compressed, or were: nothing is written to them any more.
    closed: Vec<Name>,
    shelving: Option<(JoinHandle<()>, Arc<Stop>)>,
}

impl Files {
    pub fn new(folder: PathBuf, keep: Duration, grace: Duration) -> Self {
        Self { folder, keep, grace, current: None, newest: None, due: None, closed: Vec::new(), shelving: None }
    }

    pub fn append(&mut self, day: Date, lines: &[u8]) -> io::Result<()> {
        let written = self.of_day(day)?.write_all(lines);
        if written.is_err() {
            // A part of a line may stand there now; opening the file again looks for that.
            self.current = None;
        }
        written
    }

    /// Looks at once whether the file that was written to last still has its name, and begins it anew if not.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn reopen(&mut self) -> io::Result<()> {
        let Some(day) = self.current.as_ref().map(|current| current.day).or(self.newest) else { return Ok(()) };
        self.leave_moved(Duration::ZERO);
        self.of_day(day).map(|_| ())
    }

    /// Leaves the file if somebody renamed or removed it, and says so; looks only if the last look is `interval` old.
    fn leave_moved(&mut self, interval: Duration) {
        let Some(current) = &mut self.current else { return };
        let now = Instant::now();
        if now.saturating_duration_since(current.checked) < interval {
            return;
        }
        current.checked = now;
        if !current.has_its_name() {
            tracing::warn!(
                "tracking: {} was renamed, replaced or removed; events go into a new file of that name from now on",
                current.path.display()
            );
            self.current = None;
        }
    }

    pub fn of_day(&mut self, day: Date) -> io::Result<&mut File> {
        self.leave_moved(PATH_CHECK_INTERVAL);
        let current = match self.current.take().filter(|current| current.day == day) {
            Some(current) => current,
            None => {
                let current = Current::open(day, self.folder.join(self.part_of(day).to_string()))?;
                if self.newest.is_none_or(|newest| newest < day) {
                    self.newest = Some(day);
                    self.due = Some(Instant::now() + self.grace);
                    self.remove_old(day);
                }
                current
            }
        };
        Ok(&mut self.current.insert(current).file)
    }

    /// The first part that is not finished.
    fn part_of(&self, day: Date) -> Name {
        let mut parts = (1..=PARTS).map(|part| Name { day, part, form: Form::Plain });
        let open = |name: &Name| {
            !self.closed.contains(name) && !self.folder.join(name.as_form(Form::Compressed).to_string()).exists()
        };
        parts.find(open).unwrap_or(Name { day, part: PARTS, form: Form::Plain })
    }

    /// When [`Files::finish`] wants to be called.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Begins to compress the files of days that are over. What goes wrong is tried again a day later.
    pub fn finish(&mut self) {
        self.due = None;
        // A day's work that takes longer than a day must not be done twice at once.
        if self.shelving.as_ref().is_some_and(|(thread, _)| !thread.is_finished()) {
            return;
        }
        self.stop();
        let Some(newest) = self.newest else { return };
        let names = match every_name(&self.folder) {
            Ok(names) => names,
            Err(error) => return tracing::warn!("tracking: cannot list {}: {error}", self.folder.display()),
        };
        // A late event may have opened one of them again.
        self.current = self.current.take().filter(|current| current.day == newest);
        self.closed.retain(|name| name.day >= newest || names.contains(name));
        let over: Vec<Name> = names.into_iter().filter(|name| name.day < newest).collect();
        self.closed.extend(over.iter().filter(|name| name.form == Form::Plain));
        let stop = Arc::new(Stop::default());
        let thread = std::thread::Builder::new().name("tracking-shelf".into()).spawn({
            let (folder, stop) = (self.folder.clone(), Arc::clone(&stop));
            move || shelf::finish(&folder, &over, &stop)
        });
        match thread {
            Ok(thread) => self.shelving = Some((thread, stop)),
            Err(error) => tracing::warn!("tracking: finished days are not compressed: {error}"),
        }
    }

    /// Ends the compressing thread; what it was at is begun again next time.
    fn stop(&mut self) {
        if let Some((thread, stop)) = self.shelving.take() {
            stop.now();
            if thread.join().is_err() {
                tracing::error!("the thread that compresses tracking files panicked");
            }
        }
    }

    /// Removes the files whose last event is older than `keep`. What cannot be removed is logged and left.
    fn remove_old(&self, today: Date) {
        let days = i32::try_from(self.keep.as_secs().div_ceil(86_400)).unwrap_or(i32::MAX);
        // A `keep` that reaches back before the calendar keeps everything.
        let Ok(oldest) = today.checked_sub(days.days()) else { return };
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) => return tracing::warn!("tracking: cannot list {}: {error}", self.folder.display()),
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            if Name::of(&path).is_some_and(|name| name.day < oldest)
                && let Err(error) = std::fs::remove_file(&path)
            {
                tracing::warn!("tracking: cannot remove {}: {error}", path.display());
            }
        }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        self.stop();
    }
}

/// True if the last byte is no line end: a crash or a full disk cut the line off.
fn ends_within_a_line(file: &mut File) -> io::Result<bool> {
    if file.seek(SeekFrom::End(0))? == 0 {
        return Ok(false);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last[0] != b'\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_a_file_is() {
        for (text, expected) in [
            ("tracking-2026-11-20.jsonl", Some((1, Form::Plain))),
            ("tracking-2026-11-20.jsonl.gz", Some((1, Form::Compressed))),
            ("tracking-2026-11-20.idx", Some((1, Form::Index))),
            ("tracking-2026-11-20.2.jsonl", Some((2, Form::Plain))),
            ("tracking-2026-11-20.12.jsonl.gz", Some((12, Form::Compressed))),
            ("tracking-2026-11-20.2.idx", Some((2, Form::Index))),
            ("tracking-2026-11-20.jsonl.gz.new", Some((1, Form::Unfinished))),
            ("tracking-2026-11-20.2.idx.new", Some((2, Form::Unfinished))),
            ("tracking-2026-11-20.1.jsonl", None),
            ("tracking-2026-11-20.02.jsonl", None),
            ("tracking-2026-11-20.x.jsonl", None),
            ("tracking-2026-1-2.jsonl", None),
            ("tracking-old.jsonl", None),
            ("tracking-2026-11-20.jsonl.bak", None),
            ("notes.txt", None),
        ] {
            let name = Name::parse(text);
            assert_eq!(name.map(|name| (name.part, name.form)), expected, "{text}");
            if let Some(name) = name.filter(|name| name.form != Form::Unfinished) {
                assert_eq!(name.to_string(), text);
            }
        }
    }

    #[test]
    fn a_plain_file_with_a_compressed_one_beside_it_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "tracking-2026-11-19.jsonl",
            "tracking-2026-11-19.jsonl.gz",
            "tracking-2026-11-19.idx",
            "tracking-2026-11-19.2.jsonl",
            "tracking-2026-11-18.jsonl.gz",
            "tracking-2026-11-18.jsonl.gz.new",
            "tracking-2026-11-20.jsonl",
        ] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let found: Vec<_> = files(folder.path())
            .unwrap()
            .into_iter()
            .map(|(_, path)| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(
            found,
            [
                "tracking-2026-11-18.jsonl.gz",
                "tracking-2026-11-19.jsonl.gz",
                "tracking-2026-11-19.2.jsonl",
                "tracking-2026-11-20.jsonl"
            ]
        );
    }
}
