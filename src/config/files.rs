//! The files that a configuration names: certificates with their keys, roots, secrets.
//!
//! Each is read once however many connectors name it, and what is wrong with it is said at every place that needs
//! it. Not here: directories, which change by themselves and are read by `directory`.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::problem::Problems;
use super::read::{Read, Reported, Table};
use crate::tls::{Identity, Roots};

/// No password is longer, and /dev/zero ends somewhere.
const SECRET_LIMIT: u64 = 4096;

/// What was read so far.
pub(super) struct Files {
    /// When certificates must be in time; `None`: whoever asks does not ask about time.
    now: Option<Timestamp>,
    identities: HashMap<(PathBuf, PathBuf), Result<Identity, String>>,
    roots: HashMap<PathBuf, Result<Roots, String>>,
    /// Read when first needed: a relay that verifies nobody runs without any.
    system: Option<Result<Roots, String>>,
}

impl Files {
    pub(super) fn new(now: Option<Timestamp>) -> Self {
        Self { now, identities: HashMap::new(), roots: HashMap::new(), system: None }
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
        if let Some(known) = self.identities.get(&pair) {
            return match known {
                Ok(identity) => Ok(Some(identity.clone())),
                Err(why) => Err(table.complain("certificate", why, problems)),
            };
        }
        let identity = Identity::load(&pair.0, &pair.1);
        let found = match &identity {
            Ok(identity) => {
                self.judge(identity, table, problems);
                if is_world_readable(&pair.1) {
                    table.warn("key", "every user of this host can read the key; chmod o= takes that away", problems);
                }
                Ok(Some(identity.clone()))
            }
            Err(why) => Err(table.complain("certificate", why, problems)),
        };
        self.identities.insert(pair, identity);
        found
    }

    /// Says what the owner of a certificate should know, once per certificate.
    fn judge(&self, identity: &Identity, table: &Table<'_>, problems: &mut Problems) {
        let Some(now) = self.now else { return };
        for finding in identity.chain_findings(now) {
            if finding.error {
                table.complain("certificate", finding.text, problems);
            } else {
                table.warn("certificate", finding.text, problems);
            }
        }
    }

    /// The roots that the file under `key` holds, or the system's.
    pub(super) fn roots(
        &mut self,
        table: &Table<'_>,
        key: &str,
        file: Option<PathBuf>,
        problems: &mut Problems,
    ) -> Read<Roots> {
        let roots = match file {
            Some(file) => self.roots.entry(file).or_insert_with_key(|file| Roots::load(file)),
            None => self.system.get_or_insert_with(Roots::system),
        };
        roots.clone().map_err(|why| table.complain(key, why, problems))
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
