//! Notices that files changed: certificates, keys, directories.
//!
//! Folders are watched, not files: renewal tools replace a file by renaming another over it, or flip a link. A slow
//! poll stands behind the watch, for file systems that report nothing.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

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
    _watcher: Option<RecommendedWatcher>,
}

impl Watcher {
    pub(super) fn new(config: &Config) -> Self {
        let prints: HashMap<PathBuf, Print> =
            super::files(config).into_iter().map(|file| (file.clone(), print(&file))).collect();
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
        Self { prints, events, _watcher: watcher }
    }

    /// Waits until files changed and nothing more happened to them for a moment. Gives their names. Nothing is lost if
    /// the wait is given up.
    pub(super) async fn changed(&mut self) -> String {
        loop {
            let poll = Instant::now() + POLL;
            match timeout_at(poll, self.events.recv()).await {
                Ok(Some(())) => {
                    sleep_until(Instant::now() + SETTLE).await;
                    while self.events.try_recv().is_ok() {}
                }
                Ok(None) => sleep_until(poll).await,
                Err(_) => {}
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

fn print(file: &Path) -> Print {
    let meta = std::fs::metadata(file).ok()?;
    Some((meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
}
