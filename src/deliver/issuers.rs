//! Who issued the certificates of the hosts that must prove a name, as far as was seen: a new issuer is told.
//!
//! A chain to one of many public roots proves a name whoever issued it. An administrator who reads that the other
//! premises' certificate suddenly comes from somebody else can ask why; nothing is refused for it. What was seen is kept
//! in one small file over restarts: without it nothing is lost but a warning, so no fault of it stops anything.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::{info, warn};

use crate::config::ConnectorName;
use crate::random::HashSet;
use crate::spool::disk::blocking;
use crate::tls::Proof;

/// So many issuers of one connector are remembered, the latest: a cloud service has a handful at a time.
const ISSUERS: usize = 16;
/// So many connectors. No configuration has more; those that were removed go first.
const CONNECTORS: usize = 1000;
/// An issuer's name is cut there. Somebody else wrote it.
const NAME: usize = 256;
/// The file is never longer: each character may become six, and a frame around it.
const LENGTH: u64 = (CONNECTORS * ISSUERS * (6 * NAME + 16)) as u64;

/// See the module.
#[derive(Debug, Default)]
pub struct Issuers {
    file: Option<PathBuf>,
    seen: Mutex<Seen>,
    /// Held while the file is written, so that the latest state is what stays.
    writing: Mutex<()>,
}

#[derive(Debug, Default)]
struct Seen {
    /// By connector, the latest issuer last.
    known: BTreeMap<String, Vec<String>>,
    /// Connector and issuer, in this run.
    here: HashSet<(String, String)>,
}

/// What an issuer was to a connector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sight {
    /// It was seen in this run already.
    Usual,
    /// It is the first ever.
    First,
    /// An earlier run knew it.
    Remembered,
    /// Others were seen here before: the latest of them.
    Changed(String),
}

impl Issuers {
    /// What `file` holds, which is written again when something new is seen. One that cannot be understood is set aside.
    /// Blocking.
    pub fn load(file: PathBuf) -> Self {
        let known = match read(&file) {
            Ok(known) => known,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => {
                let aside = file.with_extension("faulty");
                let moved = fs::rename(&file, &aside).is_ok();
                let (path, aside) = (file.display(), if moved { aside.display().to_string() } else { String::new() });
                warn!(%path, %error, aside, "the issuers seen so far cannot be read; all of them will look new");
                BTreeMap::new()
            }
        };
        Self { file: Some(file), seen: Mutex::new(Seen { known, here: HashSet::default() }), writing: Mutex::default() }
    }

    /// A host proved a name to this connector: tells if its certificate's issuer is new.
    pub fn note(self: &Arc<Self>, connector: &ConnectorName, proof: &Proof) {
        let Proof::Named { certificate, issuer, .. } = proof else { return };
        match self.sight(connector, issuer) {
            Sight::Usual => return,
            Sight::Remembered => {
                info!(%connector, %certificate, %issuer, "the certificate's issuer is one that was seen in an earlier run");
                return;
            }
            Sight::First => info!(%connector, %certificate, %issuer, "first sight of the certificate's issuer"),
            Sight::Changed(before) => {
                warn!(%connector, %certificate, %issuer, before, "a new issuer: this connector's certificates came from another so far");
            }
        }
        // The disk is not for the tasks that deliver.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                let issuers = Arc::clone(self);
                runtime.spawn(blocking(move || issuers.save()));
            }
            Err(_) => self.save(),
        }
    }

    /// Remembers an issuer, and says what it was until now.
    pub fn sight(&self, connector: &ConnectorName, issuer: &str) -> Sight {
        let issuer = &issuer[..issuer.floor_char_boundary(NAME)];
        let here = (connector.to_string(), issuer.to_owned());
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.here.contains(&here) {
            return Sight::Usual;
        }
        if seen.here.len() >= CONNECTORS * ISSUERS {
            seen.here.clear();
        }
        let known = seen.known.entry(here.0.clone()).or_default();
        let sight = match known.last() {
            None => Sight::First,
            Some(_) if known.iter().any(|known| known == issuer) => Sight::Remembered,
            Some(last) => Sight::Changed(last.clone()),
        };
        if sight != Sight::Remembered {
            if known.len() >= ISSUERS {
                known.remove(0);
            }
            known.push(issuer.to_owned());
        }
        seen.here.insert(here);
        while seen.known.len() > CONNECTORS {
            let Seen { known, here } = &mut *seen;
            let unseen = known.keys().find(|name| !here.iter().any(|(connector, _)| connector == *name)).cloned();
            let Some(name) = unseen.or_else(|| known.keys().next().cloned()) else { break };
            known.remove(&name);
        }
        sight
    }

    /// Writes what is known. A crash leaves the old file or the new one.
    fn save(&self) {
        let Some(file) = &self.file else { return };
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let text = serde_json::to_string(&self.seen.lock().unwrap_or_else(PoisonError::into_inner).known);
        let written = text.map_err(io::Error::other).and_then(|text| write(file, &text));
        if let Err(error) = written {
            warn!(path = %file.display(), %error, "the issuers seen so far cannot be kept over a restart");
        }
    }
}

fn read(file: &Path) -> io::Result<BTreeMap<String, Vec<String>>> {
    let mut text = String::new();
    File::open(file)?.take(LENGTH).read_to_string(&mut text)?;
    let mut known: BTreeMap<String, Vec<String>> = serde_json::from_str(&text).map_err(io::Error::other)?;
    known.retain(|_, issuers| !issuers.is_empty());
    for issuers in known.values_mut() {
        issuers.drain(..issuers.len().saturating_sub(ISSUERS));
    }
    Ok(known)
}

fn write(file: &Path, text: &str) -> io::Result<()> {
    let fresh = file.with_extension("new");
    let mut open = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    open.write_all(text.as_bytes())?;
    open.sync_all()?;
    fs::rename(&fresh, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> ConnectorName {
        ConnectorName(name.into())
    }

    /// One row, one handshake; `restart` reads the file again.
    #[test]
    fn a_new_issuer_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("issuers");
        let mut issuers = Issuers::load(file.clone());
        let changed = |before: &str| Sight::Changed(before.to_owned());
        for (restart, connector, issuer, expected) in [
            (false, "to-cloud", "CN=One", Sight::First),
            (false, "to-cloud", "CN=One", Sight::Usual),
            (false, "to-partner", "CN=One", Sight::First),
            (false, "to-cloud", "CN=Two", changed("CN=One")),
            (false, "to-cloud", "CN=One", Sight::Usual),
            (true, "to-cloud", "CN=One", Sight::Remembered),
            (false, "to-cloud", "CN=One", Sight::Usual),
            (false, "to-cloud", "CN=Three", changed("CN=Two")),
            (true, "to-partner", "CN=Three", changed("CN=One")),
        ] {
            if restart {
                issuers.save();
                issuers = Issuers::load(file.clone());
            }
            assert_eq!(issuers.sight(&name(connector), issuer), expected, "{connector} {issuer}");
        }
    }

    /// However many issuers and connectors there are, and however long their names.
    #[test]
    fn what_is_remembered_is_bounded() {
        let issuers = Issuers::default();
        for number in 0..ISSUERS + 5 {
            issuers.sight(&name("to-cloud"), &format!("CN={number}"));
        }
        let long = "ä".repeat(NAME);
        assert_eq!(issuers.sight(&name("to-cloud"), &long), Sight::Changed(format!("CN={}", ISSUERS + 4)));
        assert_eq!(issuers.sight(&name("to-cloud"), &long), Sight::Usual);
        for number in 0..CONNECTORS + 5 {
            issuers.sight(&name(&format!("connector {number}")), "CN=One");
        }
        let seen = issuers.seen.lock().unwrap();
        assert!(seen.known.len() <= CONNECTORS && seen.known.values().all(|issuers| issuers.len() <= ISSUERS));
        assert!(seen.known.values().flatten().all(|issuer| issuer.len() <= NAME));
    }

    /// A faulty file is set aside and never fatal.
    #[test]
    fn a_faulty_file_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("issuers");
        for faulty in ["", "{\"to-cloud\": ", "[1]", "{\"to-cloud\": 7}"] {
            fs::write(&file, faulty).unwrap();
            let issuers = Issuers::load(file.clone());
            assert_eq!(fs::read_to_string(file.with_extension("faulty")).unwrap(), faulty);
            assert!(!file.exists());
            assert_eq!(issuers.sight(&name("to-cloud"), "CN=One"), Sight::First, "{faulty:?}");
            issuers.save();
            assert_eq!(Issuers::load(file.clone()).sight(&name("to-cloud"), "CN=One"), Sight::Remembered);
        }
        // A folder that went away is no reason to stop.
        fs::remove_file(&file).unwrap();
        let issuers = Issuers::load(folder.path().join("nowhere/issuers"));
        issuers.sight(&name("to-cloud"), "CN=One");
        issuers.save();
    }
}
