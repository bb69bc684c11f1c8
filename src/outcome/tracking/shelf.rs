//! Finishing a day: its file becomes a compressed one with an index beside it.
//!
//! gzip, because every administrator has `zcat` and `zgrep`; a member for each 128 KiB of lines, because then a search
//! opens the few blocks it needs and nothing else. Both files are written under names that nobody believes, synced,
//! and only then renamed; the plain file goes last. So a crash at any point leaves the plain file or a whole
//! compressed one, and at worst an index to make again.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;

use super::files::{Form, Name};
use super::index::{Builder, Index};

/// Lines in a block, in bytes. Smaller ones compress worse, larger ones take longer to look into.
const BLOCK: usize = 128 * 1024;
/// A line is bounded by its recipients; whatever is longer is none of ours and is kept, but not looked at.
pub(super) const LINE_LIMIT: usize = 16 << 20;
/// Ten lines of mail tracking shrink to about one; the higher levels cost much time for little room.
const LEVEL: Compression = Compression::new(4);
/// Rest for each stretch of work: the thread takes a quarter of a core, whatever the night is like.
const REST: u32 = 3;

/// Tells the thread to end.
#[derive(Default)]
pub(super) struct Stop {
    wanted: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    pub fn now(&self) {
        *self.wanted.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Rests. True: it is time to end.
    fn rest(&self, time: Duration) -> bool {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(wanted, time, |wanted| !*wanted);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Why a file was not finished.
enum Unfinished {
    Stopped,
    Failed(io::Error),
}

impl From<io::Error> for Unfinished {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// Compresses the plain files among `names`, makes the indexes that are missing, and clears away halves.
pub(super) fn finish(folder: &Path, names: &[Name], stop: &Stop) {
    for form in [Form::Plain, Form::Compressed] {
        for name in names.iter().filter(|name| name.form == form) {
            let done = match form {
                Form::Plain => compress(folder, *name, stop),
                _ => index(folder, *name, stop),
            };
            match done {
                Ok(()) => {}
                Err(Unfinished::Stopped) => return,
                Err(Unfinished::Failed(error)) => {
                    tracing::warn!("tracking: {name} cannot be finished and stays as it is: {error}");
                }
            }
        }
    }
}

/// A file under a name that nobody believes; dropped, it is removed.
struct Fresh {
    path: PathBuf,
    kept: bool,
}

impl Fresh {
    fn create(folder: &Path, name: Name) -> io::Result<(Self, File)> {
        let path = folder.join(format!("{name}.new"));
        let file = File::create(&path)?;
        Ok((Self { path, kept: false }, file))
    }

    fn keep(mut self, as_path: &Path) -> io::Result<()> {
        std::fs::rename(&self.path, as_path)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if !self.kept {
            // A leftover is no harm: it is written over the next time, and removed with its day.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn compress(folder: &Path, name: Name, stop: &Stop) -> Result<(), Unfinished> {
    let plain = folder.join(name.to_string());
    let packed = folder.join(name.as_form(Form::Compressed).to_string());
    // A crash came after the compressed file had got its name.
    if !packed.exists() {
        let (fresh, mut out) = Fresh::create(folder, name.as_form(Form::Compressed))?;
        let (fresh_index, index) = Fresh::create(folder, name.as_form(Form::Index))?;
        let mut builder = Builder::new(BufWriter::new(index));
        let mut lines = Lines::new(BufReader::with_capacity(BLOCK, File::open(&plain)?));
        let (mut block, mut offset, mut more) = (Vec::with_capacity(BLOCK + 4096), 0, true);
        while more {
            let begun = Instant::now();
            block.clear();
            while block.len() < BLOCK && more {
                match lines.next()? {
                    Some(line) => {
                        builder.line(line);
                        block.extend_from_slice(line);
                        block.push(b'\n');
                    }
                    None => more = false,
                }
            }
            if !block.is_empty() {
                let mut member = GzEncoder::new(Vec::with_capacity(BLOCK / 4), LEVEL);
                member.write_all(&block)?;
                let member = member.finish()?;
                out.write_all(&member)?;
                builder.end_block(offset)?;
                offset += member.len() as u64;
            }
            if stop.rest(begun.elapsed() * REST) {
                return Err(Unfinished::Stopped);
            }
        }
        let index = builder.finish(offset)?.into_inner().map_err(io::IntoInnerError::into_error)?;
        out.sync_all()?;
        index.sync_all()?;
        fresh.keep(&packed)?;
        fresh_index.keep(&folder.join(name.as_form(Form::Index).to_string()))?;
        File::open(folder)?.sync_all()?;
    }
    std::fs::remove_file(&plain)?;
    Ok(())
}

/// Makes the index of a compressed file, unless there is a good one.
fn index(folder: &Path, name: Name, stop: &Stop) -> Result<(), Unfinished> {
    let file = File::open(folder.join(name.to_string()))?;
    let length = file.metadata()?.len();
    let path = folder.join(name.as_form(Form::Index).to_string());
    if Index::open(&path, length).is_ok() {
        return Ok(());
    }
    tracing::info!("tracking: {name} has no index; it gets one");
    let (fresh, out) = Fresh::create(folder, name.as_form(Form::Index))?;
    let mut builder = Builder::new(BufWriter::new(out));
    let mut input = Counted { inner: BufReader::with_capacity(BLOCK, file), passed: 0 };
    while !input.fill_buf()?.is_empty() {
        let (mut begun, offset, mut passed) = (Instant::now(), input.passed, 0);
        let mut lines = Lines::new(BufReader::new(GzDecoder::new(&mut input)));
        while let Some(line) = lines.next()? {
            builder.line(line);
            passed += line.len() + 1;
            // Made by gzip itself, the whole file is one block; that must not hold up the end of the daemon.
            if passed >= BLOCK {
                if stop.rest(begun.elapsed() * REST) {
                    return Err(Unfinished::Stopped);
                }
                (begun, passed) = (Instant::now(), 0);
            }
        }
        builder.end_block(offset)?;
        if stop.rest(begun.elapsed() * REST) {
            return Err(Unfinished::Stopped);
        }
    }
    let out = builder.finish(length)?.into_inner().map_err(io::IntoInnerError::into_error)?;
    out.sync_all()?;
    fresh.keep(&path)?;
    File::open(folder)?.sync_all()?;
    Ok(())
}

/// Counts what was taken, to know where each member of a compressed file begins.
struct Counted<R> {
    inner: R,
    passed: u64,
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.passed += read as u64;
        Ok(read)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.passed += count as u64;
        self.inner.consume(count);
    }
}

/// Lines without their ends. One longer than the limit ends the reading: it is no tracking file.
pub(super) struct Lines<R> {
    from: R,
    line: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    pub fn new(from: R) -> Self {
        Self { from, line: Vec::new() }
    }

    pub fn next(&mut self) -> io::Result<Option<&[u8]>> {
        self.line.clear();
        let read = (&mut self.from).take(LINE_LIMIT as u64).read_until(b'\n', &mut self.line)?;
        if read == LINE_LIMIT && self.line.last() != Some(&b'\n') {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is longer than 16 MiB"));
        }
        if read == 0 {
            return Ok(None);
        }
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
        }
        Ok(Some(&self.line))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::files::names;
    use super::super::index::Key;
    use super::*;
    use crate::message::MessageId;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    fn day(folder: &Path, count: u64) -> String {
        let lines: String = (0..count)
            .map(|id| {
                let id = MessageId(id);
                format!("{{\"time\":\"2026-11-19T12:00:00.000000Z\",\"event\":\"SEND\",\"id\":\"{id}\",\"from\":\"a{id}@b.example\"}}\n")
            })
            .collect();
        std::fs::write(folder.join("tracking-2026-11-19.jsonl"), &lines).unwrap();
        lines
    }

    fn content(path: &Path) -> String {
        let mut text = String::new();
        flate2::read::MultiGzDecoder::new(File::open(path).unwrap()).read_to_string(&mut text).unwrap();
        text
    }

    fn listed(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    const DONE: [&str; 2] = ["tracking-2026-11-19.idx", "tracking-2026-11-19.jsonl.gz"];

    #[test]
    fn a_finished_day_says_what_the_plain_one_said() {
        let folder = tempfile::tempdir().unwrap();
        let lines = day(folder.path(), 5000);
        finish(folder.path(), &names(folder.path()).unwrap(), &Stop::default());
        assert_eq!(listed(folder.path()), DONE);
        let packed = folder.path().join(DONE[1]);
        assert_eq!(content(&packed), lines);
        let length = std::fs::metadata(&packed).unwrap().len();
        assert!(length < lines.len() as u64 / 4, "{length} of {}", lines.len());

        let made_with_it = std::fs::read(folder.path().join(DONE[0])).unwrap();
        let index = Index::open(&folder.path().join(DONE[0]), length).unwrap();
        assert!(index.blocks().len() > 3, "{}", index.blocks().len());
        let mut found = BTreeSet::new();
        index.find(Key::id(MessageId(4999)), &mut found).unwrap();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [index.blocks().len() as u32 - 1]);

        // Lost or torn, it is made again, and is the same.
        for torn in [None, Some(&made_with_it[..made_with_it.len() / 2])] {
            std::fs::remove_file(folder.path().join(DONE[0])).unwrap();
            if let Some(torn) = torn {
                std::fs::write(folder.path().join(DONE[0]), torn).unwrap();
            }
            finish(folder.path(), &names(folder.path()).unwrap(), &Stop::default());
            assert_eq!(listed(folder.path()), DONE);
            assert!(std::fs::read(folder.path().join(DONE[0])).unwrap() == made_with_it, "another index");
        }
    }

    /// As logrotate or an administrator would leave it: one member, and no index.
    #[test]
    fn a_day_that_gzip_itself_compressed_gets_an_index() {
        let folder = tempfile::tempdir().unwrap();
        let lines = day(folder.path(), 5000);
        std::fs::remove_file(folder.path().join("tracking-2026-11-19.jsonl")).unwrap();
        let mut member = GzEncoder::new(File::create(folder.path().join(DONE[1])).unwrap(), LEVEL);
        member.write_all(lines.as_bytes()).unwrap();
        member.finish().unwrap();
        let stop = Stop::default();
        stop.now();
        finish(folder.path(), &names(folder.path()).unwrap(), &stop);
        assert_eq!(listed(folder.path()), [DONE[1]], "it was told to end");
        finish(folder.path(), &names(folder.path()).unwrap(), &Stop::default());
        let length = std::fs::metadata(folder.path().join(DONE[1])).unwrap().len();
        let index = Index::open(&folder.path().join(DONE[0]), length).unwrap();
        assert_eq!((index.blocks().len(), index.blocks()[0].end), (1, length));
        let mut found = BTreeSet::new();
        index.find(Key::from(b"a000000000007@b.example"), &mut found).unwrap();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn a_last_line_that_was_cut_off_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tracking-2026-11-19.jsonl"), "one\n\n\u{fc}two").unwrap();
        finish(folder.path(), &names(folder.path()).unwrap(), &Stop::default());
        assert_eq!(content(&folder.path().join(DONE[1])), "one\n\n\u{fc}two\n");
    }

    #[test]
    fn wherever_it_was_stopped_nothing_is_lost_and_nothing_is_there_twice() {
        // Each row: the files that a crash left behind.
        for (left, what) in [
            (
                vec![("tracking-2026-11-19.jsonl.gz.new", "half"), ("tracking-2026-11-19.idx.new", "half")],
                "in the middle",
            ),
            (vec![], "before it began"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let lines = day(folder.path(), 1000);
            for (name, text) in left {
                std::fs::write(folder.path().join(name), text).unwrap();
            }
            assert_eq!(names(folder.path()).unwrap(), [name("tracking-2026-11-19.jsonl")], "{what}");
            finish(folder.path(), &names(folder.path()).unwrap(), &Stop::default());
            assert_eq!(listed(folder.path()), DONE, "{what}");
            assert_eq!(content(&folder.path().join(DONE[1])), lines, "{what}");
        }
        // After the rename: both are there, and the index perhaps not.
        for with_index in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let lines = day(folder.path(), 1000);
            finish(folder.path(), &names(folder.path()).unwrap(), &Stop::default());
            day(folder.path(), 1000);
            if !with_index {
                std::fs::remove_file(folder.path().join(DONE[0])).unwrap();
            }
            assert_eq!(names(folder.path()).unwrap(), [name("tracking-2026-11-19.jsonl.gz")], "only one counts");
            let all = [name("tracking-2026-11-19.jsonl"), name("tracking-2026-11-19.jsonl.gz")];
            finish(folder.path(), &all, &Stop::default());
            assert_eq!(listed(folder.path()), DONE);
            assert_eq!(content(&folder.path().join(DONE[1])), lines);
        }
    }

    #[test]
    fn told_to_end_it_leaves_the_plain_file_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let lines = day(folder.path(), 5000);
        let stop = Stop::default();
        stop.now();
        finish(folder.path(), &names(folder.path()).unwrap(), &stop);
        assert_eq!(listed(folder.path()), ["tracking-2026-11-19.jsonl"]);
        assert_eq!(std::fs::read_to_string(folder.path().join("tracking-2026-11-19.jsonl")).unwrap(), lines);
    }
}
