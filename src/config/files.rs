//! The files that a configuration names: certificates with their keys, roots, secrets.
//!
//! Each is read once however many connectors name it, and what is wrong with it is said once, at the first of them, with
//! the names of the others. Not here: directories, which change by themselves and are read by `directory`.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::problem::Problems;
use super::read::{Read, Reported, Table};
use super::together::Entry;
use super::{Config, ReceiveConnector, SendConnector};
use crate::message::Domain;
use crate::tls::{Finding, Identity, Roots};

/// No password is longer, and /dev/zero ends somewhere.
const SECRET_LIMIT: u64 = 4096;

/// What was read so far.
pub(super) struct Files {
    /// When certificates must be in time; `None`: whoever asks does not ask about time.
    now: Option<Timestamp>,
    identities: HashMap<(PathBuf, PathBuf), Result<Identity, Wrong>>,
    roots: HashMap<PathBuf, Result<Roots, Wrong>>,
    /// Read when first needed: a relay that verifies nobody runs without any.
    system: Option<Result<Roots, Wrong>>,
    /// What is in use now, where that is to stay rather than give way to something worse.
    serving: Option<Serving>,
    /// Why it stayed.
    kept: Vec<String>,
}

/// What cannot be used.
#[derive(Debug, Clone)]
enum Wrong {
    /// For this reason, which nobody has been told.
    Untold(String),
    /// It was told as the problem with this index.
    Told(usize),
}

impl Wrong {
    /// Tells it at `key` of `table`, or names that where it was told.
    fn tell(&mut self, table: &Table<'_>, key: &str, problems: &mut Problems) -> Reported {
        match self {
            Self::Told(first) => table.complain_too(*first, problems),
            Self::Untold(why) => {
                let first = problems.0.len();
                let reported = table.complain(key, &*why, problems);
                *self = Self::Told(first);
                reported
            }
        }
    }
}

/// The key of the configuration that names the file which a complaint about a pair begins with.
fn blamed((certificate, key): &(PathBuf, PathBuf), wrong: &Wrong) -> &'static str {
    match wrong {
        Wrong::Untold(why) if certificate != key && why.starts_with(&format!("{}: ", key.display())) => "key",
        Wrong::Untold(_) | Wrong::Told(_) => "certificate",
    }
}

/// What a running relay has of its files.
struct Serving {
    now: Timestamp,
    identities: HashMap<(PathBuf, PathBuf), Identity>,
    roots: HashMap<PathBuf, Roots>,
}

impl Files {
    pub(super) fn new(now: Option<Timestamp>) -> Self {
        let (identities, roots) = (HashMap::new(), HashMap::new());
        Self { now, identities, roots, system: None, serving: None, kept: Vec::new() }
    }

    /// For a relay that runs by `config`: what it uses stays where a file is worse now.
    pub(super) fn over(config: &Config, now: Timestamp) -> Self {
        let pair = |identity: &Identity| match identity.files().as_slice() {
            [certificate, key] => Some(((certificate.clone(), key.clone()), identity.clone())),
            _ => None,
        };
        let identities = config.identities().filter_map(pair).collect();
        let roots = config.roots().filter_map(|roots| Some((roots.file()?.to_owned(), roots.clone()))).collect();
        Self { serving: Some(Serving { now, identities, roots }), ..Self::new(None) }
    }

    /// Each pair and each file of roots that stayed as it was, and why.
    pub(super) fn into_kept(self) -> Vec<String> {
        self.kept
    }

    /// The chain and key that `certificate` and `key` name; `None` where neither stands.
    pub(super) fn identity(&mut self, table: &mut Table<'_>, problems: &mut Problems) -> Read<Option<Identity>> {
        let certificate = table.path("certificate", problems);
        let key = table.path("key", problems);
        let (certificate, key) = match (certificate?, key?) {
            (Some(certificate), Some(key)) => (certificate, key),
            (None, None) => return Ok(None),
            (Some(_), None) => {
                return Err(table.complain(
                    "key",
                    "missing; the certificate needs the key that belongs to it",
                    problems,
                ));
            }
            (None, Some(_)) => {
                return Err(table.complain(
                    "certificate",
                    "missing; the key needs the certificate it belongs to",
                    problems,
                ));
            }
        };
        let pair = (certificate, key);
        if let Some(known) = self.identities.get_mut(&pair) {
            return match known {
                Ok(identity) => Ok(Some(identity.clone())),
                Err(wrong) => Err(wrong.tell(table, blamed(&pair, wrong), problems)),
            };
        }
        let mut identity = self.load(&pair).map_err(Wrong::Untold);
        let found = match &mut identity {
            Ok(identity) => {
                if is_world_readable(&pair.1) {
                    table.warn("key", "every user of this host can read the key; chmod o= takes that away", problems);
                }
                Ok(Some(identity.clone()))
            }
            Err(wrong) => Err(wrong.tell(table, blamed(&pair, wrong), problems)),
        };
        self.identities.insert(pair, identity);
        found
    }

    /// The pair as it is in its files; or as it is in use, if that is better.
    fn load(&mut self, pair: &(PathBuf, PathBuf)) -> Result<Identity, String> {
        let read = Identity::load(&pair.0, &pair.1);
        let Some(serving) = &self.serving else { return read };
        let Some(old) = serving.identities.get(pair) else { return read };
        let why = match &read {
            Ok(new) => new.is_no_better(old, serving.now),
            Err(why) => Some(why.clone()),
        };
        match why {
            Some(why) => {
                self.kept.push(why);
                Ok(old.clone())
            }
            None => read.map(|new| new.succeeding(old)),
        }
    }

    /// Says it where receive connectors have certificates, and none of them carries `hostname`. One of several connectors may
    /// well have another name.
    pub(super) fn judge_names(
        hostname: &Domain,
        receives: &Read<Vec<Entry<'_, ReceiveConnector>>>,
        problems: &mut Problems,
    ) {
        let read = receives.iter().flatten().filter_map(|entry| Some((&entry.table, entry.read.as_ref().ok()?)));
        let identities: Vec<_> = read.filter_map(|(table, one)| Some((table, one.identity.as_ref()?))).collect();
        let Some((table, first)) = identities.first() else { return };
        if !identities.iter().any(|(_, identity)| identity.carries(hostname.as_str())) {
            let names = first.names().join(", ");
            let names = if names.is_empty() { "no name at all" } else { &names };
            let text = format!(
                "the certificate is for {names}, and no receive_connector has one for the hostname {hostname}: who looks for \
                 that name finds another"
            );
            table.warn("certificate", text, problems);
        }
    }

    /// Says what the owners of certificates and roots should know, each once, at the first place that names it. Comes
    /// when all are read: a chain may end in a root that another connector names.
    pub(super) fn judge(
        &self,
        receives: &Read<Vec<Entry<'_, ReceiveConnector>>>,
        sends: &Read<Vec<Entry<'_, SendConnector>>>,
        problems: &mut Problems,
    ) {
        let Some(now) = self.now else { return };
        let known: Vec<Roots> = self.roots.values().filter_map(|roots| roots.as_ref().ok()).cloned().collect();
        let mut judged = Vec::new();
        let mut say = |table: &Table<'_>, key: &str, files: Vec<PathBuf>, findings: &dyn Fn() -> Vec<Finding>| {
            if judged.contains(&files) {
                return;
            }
            judged.push(files);
            for finding in findings() {
                if finding.error {
                    table.complain(key, finding.text, problems);
                } else {
                    table.warn(key, finding.text, problems);
                }
            }
        };
        let mut identity = |table: &Table<'_>, identity: &Option<Identity>| {
            if let Some(identity) = identity {
                say(table, "certificate", identity.files(), &|| identity.chain_findings_among(&known, now));
            }
        };
        let receives = || receives.iter().flatten().filter_map(|entry| Some((&entry.table, entry.read.as_ref().ok()?)));
        let sends = || sends.iter().flatten().filter_map(|entry| Some((&entry.table, entry.read.as_ref().ok()?)));
        receives().for_each(|(table, connector)| identity(table, &connector.identity));
        sends().for_each(|(table, connector)| identity(table, &connector.identity));
        let mut roots = |table: &Table<'_>, key: &str, roots: Option<&Roots>| {
            if let Some((roots, file)) = roots.and_then(|roots| Some((roots, roots.file()?))) {
                say(table, key, vec![file.to_owned()], &|| roots.findings(now));
            }
        };
        receives().for_each(|(table, connector)| roots(table, "client_ca_file", connector.client_roots.as_ref()));
        sends().for_each(|(table, connector)| roots(table, "ca_file", connector.tls.roots()));
    }

    /// The roots that the file under `key` holds, or the system's.
    pub(super) fn roots(
        &mut self,
        table: &Table<'_>,
        key: &str,
        file: Option<PathBuf>,
        problems: &mut Problems,
    ) -> Read<Roots> {
        let Self { roots, system, serving, kept, .. } = self;
        let roots = match file {
            Some(file) => roots.entry(file).or_insert_with_key(|file| {
                let old = serving.as_ref().and_then(|serving| serving.roots.get(file));
                match (Roots::load(file), old) {
                    (Err(why), Some(old)) => {
                        kept.push(why);
                        Ok(old.clone())
                    }
                    (read, _) => read.map_err(Wrong::Untold),
                }
            }),
            None => system.get_or_insert_with(|| Roots::system().map_err(Wrong::Untold)),
        };
        match roots {
            Ok(roots) => Ok(roots.clone()),
            Err(wrong) => Err(wrong.tell(table, key, problems)),
        }
    }
}

/// The secret in `file`: one line, which nobody else may read.
pub(super) fn secret(table: &Table<'_>, key: &str, file: &Path, problems: &mut Problems) -> Read<String> {
    let shown = file.display();
    let complain = |text: String, problems: &mut Problems| -> Reported { table.complain(key, text, problems) };
    let mut text = String::new();
    let read = File::open(file).and_then(|open| open.take(SECRET_LIMIT + 1).read_to_string(&mut text));
    if let Err(error) = read {
        return Err(complain(format!("{shown} cannot be read: {error}"), problems));
    }
    if is_world_readable(file) {
        return Err(complain(format!("every user of this host can read {shown}; chmod 600 takes that away"), problems));
    }
    let secret = text.strip_suffix('\n').unwrap_or(&text);
    let secret = secret.strip_suffix('\r').unwrap_or(secret);
    if secret.is_empty() {
        return Err(complain(format!("{shown} is empty"), problems));
    }
    // A NUL separates the parts of AUTH PLAIN, so no secret can hold one. RFC 4616 section 2.
    if secret.len() as u64 > SECRET_LIMIT || secret.chars().any(char::is_control) {
        return Err(complain(format!("{shown} does not hold one line with a password"), problems));
    }
    Ok(secret.to_owned())
}

pub(super) fn is_world_readable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}
