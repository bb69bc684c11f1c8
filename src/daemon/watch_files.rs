//! Notices that files changed: certificates, keys, directories.
//!
//! Folders are watched, not files: renewal tools replace a file by renaming another over it, or flip a link. A slow
//! poll stands behind the watch, for file systems that report nothing.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::warn;

use crate::config::Config;

/// A tool that writes a chain and then its key gets this long to be done.
const SETTLE: Duration = Duration::from_millis(500);
/// The poll behind the watch.
const POLL: Duration = Duration::from_secs(60);

/// What tells one state of a file from another: inode, length, modification time.
type Print = Option<(u64, u64, i64, i64)>;

/// Watches the files that one configuration names.
pub(super) struct Watcher {
    prints: HashMap<PathBuf, Print>,
    events: mpsc::Receiver<()>,
    /// Something happened; the files are looked at then, also if the wait for it was given up once.
    look_at: Option<Instant>,
    _watcher: Option<RecommendedWatcher>,
}

impl Watcher {
    /// `since`: when the files began to be read. What changed then or later may have been read as it was before, and is
    /// told at the first look.
    pub(super) fn new(config: &Config, since: SystemTime) -> Self {
        Self::over(super::files(config), since)
    }

    fn over(files: Vec<PathBuf>, since: SystemTime) -> Self {
        let seen = |file: &Path| print(file).map(|print| if is_younger(file, since) { (0, 0, 0, 0) } else { print });
        let prints: HashMap<PathBuf, Print> = files.into_iter().map(|file| (file.clone(), seen(&file))).collect();
        // One waiting event is enough to look at all files again.
        let (sender, events) = mpsc::channel(1);
        let watcher = notify::recommended_watcher(move |_| {
            let _ = sender.try_send(());
        });
        let watcher = match watcher {
            Ok(mut watcher) => {
                let mut folders: Vec<&Path> = prints.keys().filter_map(|file| file.parent()).collect();
                folders.sort_unstable();
                folders.dedup();
                for folder in folders {
                    if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive) {
                        warn!(folder = %folder.display(), %error, "cannot be watched; looked at every {POLL:?} instead");
                    }
                }
                Some(watcher)
            }
            Err(error) => {
                warn!(%error, "files cannot be watched; they are looked at every {POLL:?} instead");
                None
            }
        };
        Self { prints, events, look_at: None, _watcher: watcher }
    }

    /// Waits until files changed and nothing more happened to them for a moment. Gives their names. Nothing is lost if
    /// the wait is given up.
    pub(super) async fn changed(&mut self) -> String {
        loop {
            if self.look_at.is_none() {
                let poll = Instant::now() + POLL;
                match timeout_at(poll, self.events.recv()).await {
                    Ok(Some(())) => self.look_at = Some(Instant::now() + SETTLE),
                    Ok(None) => sleep_until(poll).await,
                    Err(_) => {}
                }
            }
            if let Some(at) = self.look_at {
                sleep_until(at).await;
                while self.events.try_recv().is_ok() {}
                self.look_at = None;
            }
            let mut changed = String::new();
            for (file, before) in &mut self.prints {
                let now = print(file);
                if *before != now {
                    *before = now;
                    let _ = write!(changed, "{}{}", if changed.is_empty() { "" } else { ", " }, file.display());
                }
            }
            if !changed.is_empty() {
                return changed;
            }
        }
    }
}

/// Written, or put in its place, after `since`?
fn is_younger(file: &Path, since: SystemTime) -> bool {
    let since = since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let Ok(meta) = std::fs::metadata(file) else { return false };
    // A rename changes the time of the inode only.
    let at = (meta.mtime(), meta.mtime_nsec()).max((meta.ctime(), meta.ctime_nsec()));
    let at = (u64::try_from(at.0).unwrap_or(0), u32::try_from(at.1).unwrap_or(0));
    at >= (since.as_secs(), since.subsec_nanos())
}

fn print(file: &Path) -> Print {
    let meta = std::fs::metadata(file).ok()?;
    Some((meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// So far off that everything counts as read already.
    fn later() -> SystemTime {
        SystemTime::now() + Duration::from_secs(3600)
    }

    async fn changed(watcher: &mut Watcher) -> String {
        tokio::time::timeout(PATIENCE, watcher.changed()).await.expect("nothing was noticed")
    }

    /// Written, replaced by a rename, taken away, put back: each is noticed, and no other file is named.
    #[tokio::test]
    async fn every_way_to_change_a_file_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let (one, other) = (path("one.csv"), path("other.csv"));
        std::fs::write(&one, "1").unwrap();
        std::fs::write(&other, "1").unwrap();
        let mut watcher = Watcher::over(vec![one.clone(), other.clone()], later());
        let steps: [(&str, &dyn Fn()); 4] = [
            ("one.csv", &|| std::fs::write(&one, "22").unwrap()),
            ("other.csv", &|| {
                std::fs::write(path("fresh"), "1").unwrap();
                std::fs::rename(path("fresh"), &other).unwrap();
            }),
            ("one.csv", &|| std::fs::remove_file(&one).unwrap()),
            ("one.csv", &|| std::fs::write(&one, "22").unwrap()),
        ];
        for (name, step) in steps {
            step();
            // A wait that is given up loses nothing.
            assert!(tokio::time::timeout(Duration::ZERO, watcher.changed()).await.is_err());
            assert_eq!(changed(&mut watcher).await, path(name).display().to_string());
        }
    }

    /// A file that changed between its reading and the beginning of the watch is told at the first look.
    #[test]
    fn what_changed_before_the_watch_began_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("one.csv");
        std::fs::write(&file, "1").unwrap();
        for (since, expected) in [(SystemTime::UNIX_EPOCH, true), (later(), false)] {
            let watcher = Watcher::over(vec![file.clone()], since);
            assert_eq!(watcher.prints[&file] != print(&file), expected);
        }
    }
}
