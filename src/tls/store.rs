//! Chains, keys and roots as they were read from files; replaced whole when the files change.
//!
//! An [`Identity`] that exists is in order: its key belongs to its first certificate. Being out of time does not
//! prevent it, since a relay with an expired certificate still serves all who do not ask: [`Identity::chain_findings_among`]
//! tells.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustls::InconsistentKeys;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor, UnixTime};
use rustls::sign::CertifiedKey;

use super::handshake::provider;
use super::names::{Names, Presented, printable};
use super::verify;

/// So many names that a certificate has lost are remembered.
const LOST_NAMES: usize = 16;

/// A certificate that ends sooner is worth a warning.
pub const SOON: SignedDuration = SignedDuration::from_hours(30 * 24);

/// A certificate chain and the key that belongs to it, seen to fit together.
#[derive(Clone)]
pub struct Identity {
    /// Where the chain was read.
    pub certificate: Arc<PathBuf>,
    /// Where it and the key were read; empty if they were not.
    files: Arc<[PathBuf]>,
    pub(super) certified: Arc<CertifiedKey>,
    leaf: Arc<Facts>,
    /// Names that a certificate carried in whose place this one came, and that it does not carry.
    lost: Arc<[String]>,
}

/// Certificates that a chain may end in.
#[derive(Clone)]
pub struct Roots {
    /// Where they came from: a file, or "the system's roots".
    pub origin: Arc<str>,
    /// The file, if they came from one.
    file: Option<Arc<Path>>,
    roots: Arc<[Root]>,
    /// The anchors of `roots`, in the same order: what webpki wants to see as one slice.
    anchors: Arc<[TrustAnchor<'static>]>,
}

struct Root {
    facts: Facts,
}

/// What one certificate says, read once.
struct Facts {
    not_before: Timestamp,
    not_after: Timestamp,
    /// DER
    subject: Vec<u8>,
    /// DER
    issuer: Vec<u8>,
    names: Presented,
    issuer_name: String,
}

/// The type of a key that may sign RSASSA-PSS only, in DER. It does not stand in a key of another type: that names its own.
const RSASSA_PSS: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a";

/// What to do about a certificate whose time is over, or soon will be.
const RENEW: &str = "put a new one in its place, no restart is needed";
/// The same where it is that of an issuer in the chain.
const NEW_ISSUER: &str = "take a chain with its successor";

/// Something about a chain that its owner should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Nobody who checks will accept the chain as it is; otherwise a warning.
    pub error: bool,
    /// In words.
    pub text: String,
}

/// When the time of one certificate is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expiry {
    /// Which, for people: `the certificate for mail.contoso.com in certs/mail.crt`.
    pub what: String,
    /// Its last second.
    pub at: Timestamp,
}

impl Identity {
    /// Reads a PEM chain, its own certificate first, and the PEM key that belongs to it.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, String> {
        let (chain_name, key_name) = (certificate.display().to_string(), key.display().to_string());
        let mut identity = Self::from_bytes(&read(certificate)?, &chain_name, &read(key)?, &key_name)?;
        identity.certificate = Arc::new(certificate.to_owned());
        identity.files = [certificate.to_owned(), key.to_owned()].into();
        Ok(identity)
    }

    /// The same from text.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, String> {
        Self::from_bytes(certificate.as_bytes(), "the certificate", key.as_bytes(), "the key")
    }

    fn from_bytes(chain: &[u8], chain_name: &str, key: &[u8], key_name: &str) -> Result<Self, String> {
        let chain = certificates(chain, chain_name)?;
        let key = private_key(key, key_name)?;
        if memchr::memmem::find(key.secret_der(), RSASSA_PSS).is_some() {
            return Err(format!(
                "{key_name}: the key is of type id-RSASSA-PSS, which is not supported; take an ECDSA key, or an RSA key of \
                 the ordinary type (rsaEncryption)"
            ));
        }
        let key = provider()
            .key_provider
            .load_private_key(key)
            .map_err(|error| format!("{key_name}: the key cannot be used: {error}"))?;
        let leaf = Facts::read(&chain[0])
            .map_err(|why| format!("{chain_name}: its first certificate cannot be read: {why}"))?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                let other = (1..certified.cert.len()).find(|&at| {
                    CertifiedKey::new(vec![certified.cert[at].clone()], certified.key.clone()).keys_match().is_ok()
                });
                return Err(match other {
                    Some(at) => format!(
                        "{chain_name}: the key in {key_name} belongs to certificate number {} in it, which must stand \
                         first",
                        at + 1
                    ),
                    None => format!(
                        "{key_name}: the key does not belong to the first certificate in {chain_name}; one of the two is \
                         another server's, or was not renewed with it"
                    ),
                });
            }
            Err(error) => return Err(format!("{chain_name}: its first certificate cannot be used: {error}")),
        }
        Ok(Self {
            certificate: Arc::new(PathBuf::from(chain_name)),
            files: Arc::default(),
            certified: Arc::new(certified),
            leaf: Arc::new(leaf),
            lost: Arc::default(),
        })
    }

    /// The files it was read from, to be read again when one of them changes; none if it came from text.
    pub fn files(&self) -> Vec<PathBuf> {
        self.files.to_vec()
    }

    /// When the certificate's time is over.
    pub fn expiry(&self) -> Timestamp {
        self.leaf.not_after
    }

    /// The names that the certificate carries: the DNS names of its subjectAltName, or else its CN.
    pub fn names(&self) -> Vec<String> {
        self.leaf.names.all().iter().map(|name| printable(name)).collect()
    }

    /// Whoever asks for this name finds it in the certificate. A wildcard must stand there as it is.
    pub fn carries(&self, name: &str) -> bool {
        let wanted = name.strip_suffix('.').unwrap_or(name);
        if wanted.starts_with("*.") {
            return self.leaf.names.all().iter().any(|known| known.eq_ignore_ascii_case(wanted));
        }
        Names::new(vec![wanted.to_owned()]).is_some_and(|wanted| wanted.found_in(&self.leaf.names).is_some())
    }

    /// The same, come in the place of `last`: it knows which names were lost with that.
    #[must_use]
    pub fn succeeding(mut self, last: &Self) -> Self {
        if self.is_same_chain(last) {
            self.lost = Arc::clone(&last.lost);
            return self;
        }
        let mut lost: Vec<String> = Vec::new();
        for name in last.leaf.names.all().iter().chain(last.lost.iter()) {
            if !self.carries(name) && !lost.contains(name) && lost.len() < LOST_NAMES {
                lost.push(name.clone());
            }
        }
        self.lost = lost.into();
        self
    }

    /// The names that were lost when this certificate came in the place of others since the start, for people.
    pub fn lost(&self) -> Vec<String> {
        self.lost.iter().map(|name| printable(name)).collect()
    }

    /// The same chain: then it is the same certificate that is presented.
    pub fn is_same_chain(&self, other: &Self) -> bool {
        self.certified.cert == other.certified.cert
    }

    /// Why this pair is not to take the place of `serving` at `now`, in words: it is another certificate, and nobody
    /// who checks would accept it, while the one in use is good.
    pub fn is_no_better(&self, serving: &Self, now: Timestamp) -> Option<String> {
        let in_time = |identity: &Self| (identity.leaf.not_before..=identity.leaf.not_after).contains(&now);
        if self.certified.cert[0] == serving.certified.cert[0] || in_time(self) || !in_time(serving) {
            return None;
        }
        let (file, Facts { not_before, not_after, .. }) = (self.certificate.display(), &*self.leaf);
        Some(if now > *not_after {
            format!("{file}: the certificate was valid until {not_after}, and it is now {now:.0}")
        } else {
            format!("{file}: the certificate is valid from {not_before} on, and it is now {now:.0}")
        })
    }

    /// When the certificate's time is over, and that of each issuer that is sent along.
    pub fn expiries(&self) -> Vec<Expiry> {
        let file = self.certificate.display();
        let own = Expiry {
            what: format!("the certificate for {} in {file}", self.leaf.names.list()),
            at: self.leaf.not_after,
        };
        let issuers = self.issuers().map(|issuer| Expiry {
            what: format!("the certificate of the issuer {} in {file}", issuer.names.short()),
            at: issuer.not_after,
        });
        std::iter::once(own).chain(issuers).collect()
    }

    /// What its owner should know about the chain: out of time, soon out of time, incomplete. `known` are the roots that
    /// the configuration names; the system's are read if the file does not lead to one of them.
    pub fn chain_findings_among(&self, known: &[Roots], now: Timestamp) -> Vec<Finding> {
        self.findings(now, known, || Roots::system().ok())
    }

    /// What of that has nothing to do with time: whoever has the roots cannot check the chain as it is sent.
    pub fn gap_among(&self, known: &[Roots], now: Timestamp) -> Option<Finding> {
        self.gap(now, known, || Roots::system().ok())
    }

    fn findings(&self, now: Timestamp, known: &[Roots], system: impl FnOnce() -> Option<Roots>) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut find = |error, text| findings.push(Finding { error, text });
        let Facts { not_before, not_after, .. } = *self.leaf;
        if now > not_after {
            find(true, format!("the certificate was valid until {not_after}, and it is now {now:.0}; {RENEW}"));
        } else if now < not_before {
            find(true, format!("the certificate is valid from {not_before} on, and it is now {now:.0}"));
        } else if not_after.duration_since(now) < SOON {
            find(false, format!("the certificate ends in {}, at {not_after}; {RENEW}", left(not_after, now)));
        }
        for issuer in self.issuers() {
            let (name, until) = (issuer.names.short(), issuer.not_after);
            if now > until {
                find(false, format!("the certificate of the issuer {name} was valid until {until}; {NEW_ISSUER}"));
            } else if until < not_after && until.duration_since(now) < SOON {
                // One that outlives the certificate goes with it.
                let left = left(until, now);
                find(false, format!("the certificate of the issuer {name} ends in {left}, at {until}; {NEW_ISSUER}"));
            }
        }
        findings.extend(self.gap(now, known, system));
        findings
    }

    fn gap(&self, now: Timestamp, known: &[Roots], system: impl FnOnce() -> Option<Roots>) -> Option<Finding> {
        let warning = |text| Some(Finding { error: false, text });
        if self.leaf.subject == self.leaf.issuer {
            // Whoever wants it has it, or takes any.
            return None;
        }
        let issuers = self.issuers().collect::<Vec<_>>();
        // Upwards by name: to a root that is known, to one that is sent along, or to where the file ends.
        let mut top = &*self.leaf;
        let mut roots = None;
        for _ in 0..=issuers.len() {
            if top.subject == top.issuer {
                break;
            }
            roots = known.iter().find(|roots| roots.has(&top.issuer)).cloned();
            if roots.is_some() {
                break;
            }
            match issuers.iter().find(|issuer| issuer.subject == top.issuer) {
                Some(issuer) => top = issuer,
                None => {
                    roots = system().filter(|roots| roots.has(&top.issuer));
                    break;
                }
            }
        }
        let (is_leaf, issuer) = (std::ptr::eq(top, &*self.leaf), &top.issuer_name);
        match roots {
            None if top.subject == top.issuer => None,
            None if is_leaf => warning(format!(
                "the certificate of the issuer ({issuer}) is missing from the file: others who do not have it cannot \
                 check the chain; add it behind the certificate"
            )),
            None => warning(format!(
                "no root that is known here ends the chain: the file holds the issuer {}, and not the certificate of \
                 its issuer ({issuer}); add that, also if it is a root of your own",
                top.names.short()
            )),
            // The names lead there; do the signatures? What is out of time was said already.
            Some(roots) => verify::why_not(&self.certified.cert, &roots, now)
                .and_then(|why| warning(format!("the chain in the file is not good: {why}"))),
        }
    }

    /// What the certificates behind its own say, as far as they can be read.
    fn issuers(&self) -> impl Iterator<Item = Facts> {
        self.certified.cert[1..].iter().filter_map(|certificate| Facts::read(certificate).ok())
    }
}

/// A chain and its key are told apart by what is presented.
impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.is_same_chain(other)
    }
}

/// Roots are told apart by their certificates' subjects, keys and times.
impl PartialEq for Roots {
    fn eq(&self, other: &Self) -> bool {
        let times = |roots: &Self| roots.roots.iter().map(|root| root.facts.not_after).collect::<Vec<_>>();
        self.origin == other.origin && self.anchors == other.anchors && times(self) == times(other)
    }
}

/// How long a certificate lasts, in words.
pub fn left(at: Timestamp, now: Timestamp) -> String {
    let hours = at.duration_since(now).as_hours();
    let (count, unit) = if hours < 48 { (hours, "hour") } else { (hours / 24, "day") };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

impl Roots {
    /// Reads the certificates of a PEM file.
    ///
    /// # Errors
    /// What is wrong with it; a file without certificates too.
    pub fn load(file: &Path) -> Result<Self, String> {
        let name = file.display().to_string();
        let roots = Self::strict(certificates(&read(file)?, &name)?, &name)?;
        Ok(Self { file: Some(file.into()), ..roots })
    }

    /// The file they were read from, to be read again when it changes; `None`: the system's, or from text.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// When the time of each of them is over; of those in a file only: the system's are not ours to renew.
    pub fn expiries(&self) -> Vec<Expiry> {
        let Some(file) = self.file() else { return Vec::new() };
        let expiry = |root: &Root| Expiry {
            what: format!("the trusted certificate {} in {}", root.facts.names.short(), file.display()),
            at: root.facts.not_after,
        };
        self.roots.iter().map(expiry).collect()
    }

    /// What who wrote the file should know: roots that are out of time, or soon will be. An error where none is left.
    pub fn findings(&self, now: Timestamp) -> Vec<Finding> {
        if self.file.is_none() {
            return Vec::new();
        }
        let none_left = self.roots.iter().all(|root| now > root.facts.not_after);
        let find = |root: &Root| {
            let (name, until) = (root.facts.names.short(), root.facts.not_after);
            if now > until {
                let text = format!(
                    "the trusted certificate {name} was valid until {until}; nothing chains to it any more; replace it by its successor"
                );
                Some(Finding { error: none_left, text })
            } else if until.duration_since(now) < SOON {
                let text = format!(
                    "the trusted certificate {name} ends in {}, at {until}; add its successor",
                    left(until, now)
                );
                Some(Finding { error: false, text })
            } else {
                None
            }
        };
        self.roots.iter().filter_map(find).collect()
    }

    /// The roots that the system trusts. Reads all of them, so one keeps the result rather than asking again.
    ///
    /// # Errors
    /// If there are none.
    pub fn system() -> Result<Self, String> {
        let found = rustls_native_certs::load_native_certs();
        // The system's list is not ours to repair: what cannot be read is left out.
        let read = found.certs.into_iter().filter_map(|certificate| Some((root(&certificate).ok()?, certificate)));
        let roots = read.map(|((facts, anchor), _)| (Root { facts }, anchor)).collect::<Vec<_>>();
        if roots.is_empty() {
            let why = found.errors.first().map_or_else(String::new, |error| format!(": {error}"));
            return Err(format!("the system has no trusted roots{why}"));
        }
        Ok(Self::of(roots, "the system's roots"))
    }

    /// The certificates in PEM text; `origin` says where they came from.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_pem(pem: &str, origin: &str) -> Result<Self, String> {
        Self::strict(certificates(pem.as_bytes(), origin)?, origin)
    }

    /// These certificates; `origin` says where they came from.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn from_der(certificates: &[Vec<u8>], origin: &str) -> Result<Self, String> {
        if certificates.is_empty() {
            return Err(format!("{origin}: there is no certificate in it"));
        }
        Self::strict(certificates.iter().map(|der| CertificateDer::from(der.clone())).collect(), origin)
    }

    fn strict(certificates: Vec<CertificateDer<'static>>, origin: &str) -> Result<Self, String> {
        let mut roots = Vec::with_capacity(certificates.len());
        for (at, certificate) in certificates.iter().enumerate() {
            let (facts, anchor) = root(certificate)
                .map_err(|why| format!("{origin}: certificate number {} cannot be read: {why}", at + 1))?;
            roots.push((Root { facts }, anchor));
        }
        Ok(Self::of(roots, origin))
    }

    fn of(roots: Vec<(Root, TrustAnchor<'static>)>, origin: &str) -> Self {
        let (roots, anchors): (Vec<_>, Vec<_>) = roots.into_iter().unzip();
        Self { origin: origin.into(), file: None, roots: roots.into(), anchors: anchors.into() }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.roots.len()
    }

    /// The anchors whose own time is not over. webpki does not look: to it an anchor is a name and a key.
    pub(super) fn anchors_at(&self, now: Timestamp) -> Cow<'_, [TrustAnchor<'static>]> {
        let in_time = |root: &Root| (root.facts.not_before..=root.facts.not_after).contains(&now);
        if self.roots.iter().all(in_time) {
            return Cow::Borrowed(&self.anchors);
        }
        let pairs = self.roots.iter().zip(self.anchors.iter());
        Cow::Owned(pairs.filter(|(root, _)| in_time(root)).map(|(_, anchor)| anchor.clone()).collect())
    }

    /// When the time of the root with this subject ended, if it did, and its name.
    pub(super) fn expired(&self, subject: &[u8], now: Timestamp) -> Option<(String, Timestamp)> {
        let root = self.roots.iter().find(|root| root.facts.subject == subject && now > root.facts.not_after)?;
        Some((root.facts.names.short(), root.facts.not_after))
    }

    fn has(&self, subject: &[u8]) -> bool {
        self.roots.iter().any(|root| root.facts.subject == subject)
    }
}

impl Facts {
    fn read(der: &[u8]) -> Result<Self, String> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).map_err(|error| error.to_string())?;
        let validity = certificate.validity();
        Ok(Self {
            not_before: timestamp(validity.not_before.timestamp()),
            not_after: timestamp(validity.not_after.timestamp()),
            subject: certificate.subject().as_raw().to_vec(),
            issuer: certificate.issuer().as_raw().to_vec(),
            names: Presented::of(&certificate),
            issuer_name: printable(&certificate.issuer().to_string()),
        })
    }
}

fn root(certificate: &CertificateDer<'_>) -> Result<(Facts, TrustAnchor<'static>), String> {
    let facts = Facts::read(certificate)?;
    let anchor = webpki::anchor_from_trusted_cert(certificate).map_err(|error| error.to_string())?;
    Ok((facts, anchor.to_owned()))
}

/// The certificates of a PEM text, at least one.
fn certificates(pem: &[u8], name: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut certificates = Vec::new();
    for item in items(pem, name)? {
        if let rustls_pemfile::Item::X509Certificate(certificate) = item {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        return Err(format!("{name}: there is no certificate in it (a line -----BEGIN CERTIFICATE----- is expected)"));
    }
    Ok(certificates)
}

/// The first key of a PEM text.
fn private_key(pem: &[u8], name: &str) -> Result<PrivateKeyDer<'static>, String> {
    for item in items(pem, name)? {
        return Ok(match item {
            rustls_pemfile::Item::Pkcs1Key(key) => key.into(),
            rustls_pemfile::Item::Pkcs8Key(key) => key.into(),
            rustls_pemfile::Item::Sec1Key(key) => key.into(),
            _ => continue,
        });
    }
    if memchr::memmem::find(pem, b"ENCRYPTED").is_some() {
        return Err(format!("{name}: the key is encrypted; a key without a password is expected"));
    }
    Err(format!("{name}: there is no key in it (a line -----BEGIN PRIVATE KEY----- is expected)"))
}

/// The only function that names rustls-pemfile, which its authors have put aside (RUSTSEC-2025-0134).
fn items(pem: &[u8], name: &str) -> Result<Vec<rustls_pemfile::Item>, String> {
    rustls_pemfile::read_all(&mut &*pem).collect::<Result<_, _>>().map_err(|error| format!("{name}: not PEM: {error}"))
}

/// No chain and no bundle of roots is longer, and /dev/zero ends somewhere.
const FILE_LIMIT: u64 = 16 << 20;

fn read(file: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = File::open(file).and_then(|open| open.take(FILE_LIMIT + 1).read_to_end(&mut bytes));
    match read {
        Err(error) => Err(format!("{}: {error}", file.display())),
        Ok(_) if bytes.len() as u64 > FILE_LIMIT => Err(format!("{}: longer than 16 MiB", file.display())),
        Ok(_) => Ok(bytes),
    }
}

/// The year 9999 is more than a [`Timestamp`] can say in every time zone; certificates without an end carry it.
fn timestamp(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap_or(if seconds < 0 { Timestamp::MIN } else { Timestamp::MAX })
}

/// The time as webpki has it.
pub(super) fn unix_time(now: Timestamp) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(now.as_second().try_into().unwrap_or_default()))
}

/// The time of webpki as ours.
pub(super) fn from_unix_time(time: UnixTime) -> Timestamp {
    timestamp(time.as_secs().try_into().unwrap_or(i64::MAX))
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.certificate.display())
    }
}

impl std::fmt::Debug for Roots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Roots({})", self.origin)
    }
}

#[cfg(test)]
mod tests {
    use super::super::authority::{Authority, Powers, Template};
    use super::*;

    const DAY: SignedDuration = SignedDuration::from_hours(24);

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    /// S-067: what is wrong, with which file.
    #[test]
    fn s067_files_that_do_not_fit_are_refused() {
        let root = Authority::new("Root");
        let (chain, key) = root.intermediate("Middle").issue(&["mail.contoso.com"]);
        let (other, other_key) = root.issue(&["other.example"]);
        let half = &chain[..chain.len() / 2];
        let half_key = &key[..key.len() / 2];
        let turned = root.pem() + &other;
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (what, chain, key, expected) in [
            ("good", chain.as_str(), key.as_str(), "ok"),
            ("key and chain in one file", &(key.clone() + &chain), &(chain.clone() + &key), "ok"),
            ("key of another", &chain, &other_key, "the.key: the key does not belong to the first certificate in "),
            (
                "leaf not first (S-057)",
                &turned,
                &other_key,
                "belongs to certificate number 2 in it, which must stand first",
            ),
            ("no certificate", "", &key, "the.crt: there is no certificate in it"),
            ("a key for a certificate", &key, &key, "the.crt: there is no certificate in it"),
            ("no key", &chain, "", "the.key: there is no key in it"),
            ("encrypted key", &chain, encrypted, "the.key: the key is encrypted"),
            ("half a certificate", half, &key, "the.crt: "),
            ("half a key", &chain, half_key, "the.key: "),
            ("no real certificate", nonsense, &key, "the.crt: its first certificate cannot be read"),
        ] {
            let folder = folder(&[("the.crt", chain), ("the.key", key)]);
            let loaded = Identity::load(&folder.path().join("the.crt"), &folder.path().join("the.key"));
            let seen = loaded.as_ref().map_or_else(String::clone, |_| "ok".to_owned());
            let files = loaded.map_or(0, |identity| identity.files().len());
            assert_eq!(files, if expected == "ok" { 2 } else { 0 }, "{what}");
            assert!(if expected == "ok" { seen == "ok" } else { seen.contains(expected) }, "{what}: {seen}");
        }
        let missing = Identity::load(Path::new("/nowhere/the.crt"), Path::new("/nowhere/the.key"));
        assert!(missing.unwrap_err().starts_with("/nowhere/the.crt: "));
    }

    #[test]
    fn an_identity_knows_its_names_and_its_end() {
        let root = Authority::new("Root");
        let template = Template::new(&["mail.contoso.com", "*.contoso.com"]);
        let identity = root.identity_as(&template);
        assert_eq!(identity.names(), ["mail.contoso.com", "*.contoso.com"]);
        assert_eq!(identity.expiry().as_second(), template.not_after.as_second());
        assert_eq!(root.identity_as(&template.common_name_only()).names(), ["mail.contoso.com"]);
    }

    #[test]
    fn s067_findings_about_a_chain() {
        let root = Authority::new("Root");
        let middle = root.intermediate("Middle");
        let old = root.intermediate_with_powers("Old", &Powers { expired: true, ..Powers::default() });
        let template = || Template::new(&["mail.contoso.com"]);
        let ends_in = |days: i32| Template { not_after: Timestamp::now() + DAY * days, ..template() };
        let (self_signed, key) = Authority::self_signed(&template());
        let blocks =
            |pem: &str| pem.split_inclusive("-----END CERTIFICATE-----\n").map(str::to_owned).collect::<Vec<_>>();
        let (chain, low_key) = middle.intermediate("Low").issue(&["mail.contoso.com"]);
        let halved = blocks(&chain)[..2].concat();
        let (chain, middle_key) = middle.issue(&["mail.contoso.com"]);
        let wrong = blocks(&chain)[0].clone() + &root.intermediate("Middle").pem();
        for (what, identity, expected) in [
            ("ordinary", root.identity(&["mail.contoso.com"]), vec![]),
            ("with its intermediate", middle.identity(&["mail.contoso.com"]), vec![]),
            ("without", middle.identity_as(&template().without_chain()), vec![(false, "(CN=Middle) is missing")]),
            ("self-signed", Identity::from_pem(&self_signed, &key).unwrap(), vec![]),
            ("expired", root.identity_as(&template().expired()), vec![(true, "was valid until")]),
            ("not yet", root.identity_as(&template().not_yet_valid()), vec![(true, "is valid from")]),
            ("31 days left", root.identity_as(&ends_in(31)), vec![]),
            ("29 days left", root.identity_as(&ends_in(29)), vec![(false, "ends in 28 days")]),
            ("a day left", root.identity_as(&ends_in(1)), vec![(false, "ends in 23 hours")]),
            ("old intermediate", old.identity(&["mail.contoso.com"]), vec![(false, "issuer Old was valid until")]),
            (
                "half of its intermediates",
                Identity::from_pem(&halved, &low_key).unwrap(),
                vec![(false, "holds the issuer Low, and not the certificate of its issuer (CN=Middle)")],
            ),
            (
                "an intermediate of the right name with another key",
                Identity::from_pem(&wrong, &middle_key).unwrap(),
                vec![(false, "the chain in the file is not good: ")],
            ),
        ] {
            let now = Timestamp::now();
            let findings = identity.findings(now, &[], || Some(root.roots()));
            assert_eq!(findings, identity.findings(now, &[root.roots()], || None), "{what}");
            let fit = findings.len() == expected.len()
                && findings
                    .iter()
                    .zip(&expected)
                    .all(|(found, (error, part))| found.error == *error && found.text.contains(part));
            assert!(fit, "{what}: {findings:?}");
        }
        // Whose root nobody has: the file should hold it.
        let findings = root.identity(&["mail.contoso.com"]).findings(Timestamp::now(), &[], || None);
        assert_eq!(findings.len(), 1, "{findings:?}");
    }

    /// S-067: trust anchors end too, and then nobody proves anything by them.
    #[test]
    fn s067_findings_about_roots() {
        let (old, new) =
            (Authority::with_powers("Old", &Powers { expired: true, ..Powers::default() }), Authority::new("New"));
        let now = Timestamp::now();
        let (one, both) = (old.pem(), old.pem() + &new.pem());
        let folder = folder(&[("old.pem", &one), ("both.pem", &both), ("new.pem", &new.pem())]);
        for (file, at, expected) in [
            ("new.pem", now, vec![]),
            ("both.pem", now, vec![(false, "certificate Old was valid until")]),
            ("old.pem", now, vec![(true, "certificate Old was valid until")]),
            ("new.pem", now + DAY * 3645, vec![(false, "certificate New ends in ")]),
        ] {
            let roots = Roots::load(&folder.path().join(file)).unwrap();
            let findings = roots.findings(at);
            assert_eq!(findings.len(), expected.len(), "{file}: {findings:?}");
            for (found, (error, part)) in findings.iter().zip(expected) {
                assert!(found.error == error && found.text.contains(part), "{file}: {found:?}");
            }
            assert_eq!(roots.expiries().len(), roots.count());
        }
        assert!(new.roots().expiries().is_empty(), "of the system's, and of text, nobody is told");
    }

    /// A pair that is out of time does not take the place of one that is not.
    #[test]
    fn s067_a_worse_pair_is_no_successor() {
        let root = Authority::new("Root");
        let template = || Template::new(&["mail.contoso.com"]);
        let (good, next) = (root.identity_as(&template()), root.identity_as(&template()));
        let (expired, early) = (root.identity_as(&template().expired()), root.identity_as(&template().not_yet_valid()));
        let now = Timestamp::now();
        for (what, new, serving, refused) in [
            ("ordinary", &next, &good, false),
            ("expired", &expired, &good, true),
            ("too early", &early, &good, true),
            ("the same", &expired, &expired, false),
            ("neither is good", &early, &expired, false),
            ("better", &good, &expired, false),
        ] {
            assert_eq!(new.is_no_better(serving, now).is_some(), refused, "{what}");
        }
    }

    #[test]
    fn roots_are_read_whole_or_not_at_all() {
        let (one, other) = (Authority::new("One"), Authority::new("Other"));
        let both = one.pem() + &other.pem();
        let folder = folder(&[("ca.pem", &both), ("empty.pem", ""), ("broken.pem", &both[..both.len() - 40])]);
        let roots = Roots::load(&folder.path().join("ca.pem")).unwrap();
        assert_eq!(roots.count(), 2);
        assert!(roots.origin.ends_with("ca.pem"));
        assert!(
            Roots::load(&folder.path().join("empty.pem")).unwrap_err().contains("empty.pem: there is no certificate")
        );
        assert!(Roots::load(&folder.path().join("broken.pem")).unwrap_err().contains("broken.pem: "));
        assert!(Roots::load(Path::new("/nowhere.pem")).unwrap_err().starts_with("/nowhere.pem: "));
        assert!(Roots::from_der(&[], "nothing").is_err());
        assert!(Roots::from_der(&[b"nonsense".to_vec()], "nonsense").unwrap_err().contains("certificate number 1"));
        let der = pem_der(&one.pem());
        assert_eq!(Roots::from_der(&[der], "one").unwrap().count(), 1);
    }

    fn pem_der(pem: &str) -> Vec<u8> {
        certificates(pem.as_bytes(), "it").unwrap().remove(0).to_vec()
    }

    #[test]
    fn times_beyond_a_timestamp_are_its_ends() {
        assert_eq!(timestamp(253_402_300_799), Timestamp::MAX, "the last second of 9999");
        assert_eq!(timestamp(i64::MIN), Timestamp::MIN);
        assert_eq!(timestamp(0), Timestamp::UNIX_EPOCH);
    }
}
