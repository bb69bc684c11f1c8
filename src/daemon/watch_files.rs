//! Notices that files changed: certificates, keys, directories.
//!
//! Folders are watched, not files: renewal tools replace a file by renaming another over it, or flip a link: that of
//! the file (certbot), or that of a folder on the way to it (secrets of Kubernetes). So every folder is watched in which
//! a link or a file on the way stands. A slow poll stands behind the watch, for file systems that report nothing.

use std::collections::{BTreeSet, HashMap};
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
    watcher: Option<RecommendedWatcher>,
    /// The folders that are watched.
    folders: BTreeSet<PathBuf>,
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
            Ok(watcher) => Some(watcher),
            Err(error) => {
                warn!(%error, "files cannot be watched; they are looked at every {POLL:?} instead");
                None
            }
        };
        let mut watcher = Self { prints, events, look_at: None, watcher, folders: BTreeSet::new() };
        watcher.watch();
        watcher
    }

    /// Watches the folders that lead to the files now. A link that was flipped leads to others than before.
    fn watch(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        let folders: BTreeSet<PathBuf> = self.prints.keys().flat_map(|file| folders_to(file)).collect();
        for gone in self.folders.difference(&folders) {
            // It may be gone altogether.
            let _ = watcher.unwatch(gone);
        }
        for folder in folders.difference(&self.folders) {
            if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive) {
                warn!(folder = %folder.display(), %error, "cannot be watched; looked at every {POLL:?} instead");
            }
        }
        self.folders = folders;
    }

    /// Waits until files changed and nothing more happened to them for a moment. Gives them. Nothing is lost if
    /// the wait is given up.
    pub(super) async fn changed(&mut self) -> Vec<PathBuf> {
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
            let mut changed = Vec::new();
            for (file, before) in &mut self.prints {
                let now = print(file);
                if *before != now {
                    *before = now;
                    changed.push(file.clone());
                }
            }
            if !changed.is_empty() {
                self.watch();
                return changed;
            }
        }
    }
}

/// The folders in which something stands that decides what `file` is: the file, and each link on the way to it. Without
/// links in their own names, so that a folder behind a flipped link is another.
fn folders_to(file: &Path) -> BTreeSet<PathBuf> {
    /// As many as the system follows.
    const LINKS: usize = 40;
    let mut folders = BTreeSet::new();
    let mut way = file.to_owned();
    for _ in 0..LINKS {
        // The first link on the way stands in a folder without links.
        let link = way.ancestors().collect::<Vec<_>>().into_iter().rev().find_map(|part| {
            let target = std::fs::read_link(part).ok()?;
            Some((part.to_owned(), target))
        });
        let Some((link, target)) = link else { break };
        let parent = link.parent().unwrap_or(Path::new("/"));
        folders.insert(parent.to_owned());
        let rest = way.strip_prefix(&link).unwrap_or(Path::new(""));
        let to = parent.join(target);
        way = if rest.as_os_str().is_empty() { to } else { to.join(rest) };
        way = normal(&way);
    }
    folders.extend(way.parent().map(Path::to_owned));
    folders
}

/// Without `.` and `..`; what stands before them is no link any more when it comes to them.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                normal.pop();
            }
            std::path::Component::CurDir => {}
            part => normal.push(part),
        }
    }
    normal
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

    const PATIENCE: Duration = Duration::from_secs(60);

    /// So far off that everything counts as read already.
    fn later() -> SystemTime {
        SystemTime::now() + Duration::from_secs(3600)
    }

    async fn changed(watcher: &mut Watcher) -> Vec<PathBuf> {
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
            assert_eq!(changed(&mut watcher).await, [path(name)]);
        }
    }

    /// certbot: `live/host/cert.pem` is a link, which is replaced. Kubernetes: a folder on the way is one. An edit of the
    /// file that a link leads to counts as well; and all of it again behind the new link.
    #[tokio::test]
    async fn a_flipped_link_is_noticed() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["archive", "live", "data-1", "data-2"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        for file in ["archive/1.pem", "archive/2.pem", "data-1/tls.crt", "data-2/tls.crt"] {
            std::fs::write(path(file), file).unwrap();
        }
        symlink("../archive/1.pem", path("live/cert.pem")).unwrap();
        symlink("data-1", path("data")).unwrap();
        let (certbot, secret) = (path("live/cert.pem"), path("data/tls.crt"));
        let mut watcher = Watcher::over(vec![certbot.clone(), secret.clone()], later());
        let flip = |link: &str, target: &str| {
            symlink(target, path("fresh")).unwrap();
            std::fs::rename(path("fresh"), path(link)).unwrap();
        };
        let steps: [(&Path, &dyn Fn()); 6] = [
            (&certbot, &|| std::fs::write(path("archive/1.pem"), "edited").unwrap()),
            (&certbot, &|| flip("live/cert.pem", "../archive/2.pem")),
            (&certbot, &|| std::fs::write(path("archive/2.pem"), "edited").unwrap()),
            (&secret, &|| std::fs::write(path("data-1/tls.crt"), "edited").unwrap()),
            (&secret, &|| flip("data", "data-2")),
            (&secret, &|| std::fs::write(path("data-2/tls.crt"), "edited").unwrap()),
        ];
        for (number, (file, step)) in steps.into_iter().enumerate() {
            step();
            assert_eq!(changed(&mut watcher).await, [file], "step {number}");
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
