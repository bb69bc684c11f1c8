//! `tls_domain` against the names in a certificate.
//!
//! Each name matches a subjectAltName DNS entry, or, where there is none of those, the subject's CN;
//! case-insensitive; `*.` in a certificate stands for exactly one left-most label; a name `*.contoso.com` in
//! the configuration also accepts exactly one label.
//!
//! What a certificate says is somebody else's text: before it is compared it must look like a host name, and
//! before it is shown it is made printable.
//!
//! Standards: RFC 6125 section 6.4 (matching), 5280 section 4.2.1.6 (subjectAltName).
//!
//! Not yet: a list of public suffixes; `*.com` in a certificate is refused, `*.co.uk` is not.

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME;

/// Longer names are cut when they are shown: a certificate may carry what it likes.
const SHOWN_CHARS: usize = 128;
/// More names are counted rather than shown.
const SHOWN_NAMES: usize = 8;
/// The tag of `dNSName` in a subjectAltName.
const TAG_DNS: u32 = 2;

/// Names of which a certificate must carry one. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names(Vec<String>);

impl Names {
    /// These names, in lower case and without a final dot; `None` if there are none.
    pub fn new(names: Vec<String>) -> Option<Self> {
        let plain = |name: String| name.strip_suffix('.').unwrap_or(&name).to_ascii_lowercase();
        (!names.is_empty()).then(|| Self(names.into_iter().map(plain).collect()))
    }

    /// The names.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// The name of these that the certificate `leaf` (DER) carries, in its subjectAltName or, where that has no DNS
    /// name, as its CN.
    pub fn matches(&self, leaf: &[u8]) -> Option<String> {
        self.found_in(&Presented::read(leaf)?)
    }

    pub(super) fn found_in(&self, presented: &Presented) -> Option<String> {
        // In the order of the configuration, so that the same certificate always proves the same name.
        let carries = |name: &&str| match &presented.dns {
            Some(entries) => entries.iter().any(|entry| matches(name, entry)),
            None => presented.common_name.as_deref().is_some_and(|entry| matches(name, entry)),
        };
        self.iter().find(carries).map(str::to_owned)
    }
}

impl std::fmt::Display for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join(" or "))
    }
}

/// The names that a certificate carries, as they stand in it.
#[derive(Debug)]
pub(super) struct Presented {
    /// The DNS entries of its subjectAltName; `None` if it has none of those, and only then the CN counts. Entries
    /// that cannot be read count as entries: a broken one must not open the way to the CN.
    pub(super) dns: Option<Vec<String>>,
    /// The subject's CN, if there is exactly one: of several, nobody can say which one is meant.
    pub(super) common_name: Option<String>,
    subject: String,
}

impl Presented {
    pub(super) fn read(leaf: &[u8]) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(leaf).ok()?;
        Some(Self::of(&certificate))
    }

    pub(super) fn of(certificate: &X509Certificate<'_>) -> Self {
        let mut dns = None::<Vec<String>>;
        for extension in certificate.extensions() {
            if extension.oid != OID_X509_EXT_SUBJECT_ALT_NAME {
                continue;
            }
            let ParsedExtension::SubjectAlternativeName(alternatives) = extension.parsed_extension() else {
                dns.get_or_insert_default();
                continue;
            };
            for name in &alternatives.general_names {
                match name {
                    GeneralName::DNSName(name) => dns.get_or_insert_default().push((*name).to_owned()),
                    GeneralName::Invalid(tag, _) if tag.0 == TAG_DNS => _ = dns.get_or_insert_default(),
                    _ => {}
                }
            }
        }
        let mut common_names = certificate.subject().iter_common_name();
        let common_name = match (common_names.next(), common_names.next()) {
            (Some(only), None) => only.as_str().ok().map(str::to_owned),
            _ => None,
        };
        Self { dns, common_name, subject: certificate.subject().to_string() }
    }

    /// All names, as one shows them to a person.
    pub(super) fn list(&self) -> String {
        let names = match (&self.dns, &self.common_name) {
            (Some(dns), _) => dns.as_slice(),
            (None, Some(name)) => std::slice::from_ref(name),
            (None, None) => &[],
        };
        if names.is_empty() {
            return "no name".to_owned();
        }
        let mut list = names.iter().take(SHOWN_NAMES).map(|name| printable(name)).collect::<Vec<_>>().join(", ");
        if names.len() > SHOWN_NAMES {
            list.push_str(&format!(" and {} more", names.len() - SHOWN_NAMES));
        }
        list
    }

    /// The first name, or the subject.
    pub(super) fn short(&self) -> String {
        match (self.dns.as_ref().and_then(|names| names.first()), &self.common_name) {
            (Some(name), _) | (None, Some(name)) => printable(name),
            (None, None) if self.subject.is_empty() => "no name".to_owned(),
            (None, None) => printable(&self.subject),
        }
    }
}

/// The certificate's first name or subject, for people.
pub(super) fn short(leaf: &[u8]) -> String {
    Presented::read(leaf).map_or_else(|| "not readable".to_owned(), |presented| presented.short())
}

/// Printable ASCII, and not too much of it: the text goes to logs, tracking events and reports, and its author may
/// be an attacker.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len().min(SHOWN_CHARS));
    for (count, char) in text.chars().enumerate() {
        if count == SHOWN_CHARS {
            shown.push_str("...");
            break;
        }
        match char {
            ' '..='~' => shown.push(char),
            _ => shown.extend(char.escape_default()),
        }
    }
    shown
}

/// Whether `demanded` (lower case, perhaps `*.` in front) and `entry` of a certificate mean the same host.
fn matches(demanded: &str, entry: &str) -> bool {
    let entry = entry.to_ascii_lowercase();
    let (Some(demanded), Some(entry)) = (Pattern::parse(demanded), Pattern::parse(&entry)) else {
        return false;
    };
    match (demanded, entry) {
        (Pattern::Exact(demanded), Pattern::Exact(entry)) => demanded == entry,
        // A certificate for `*.com` would be one for half of the world; nobody serious issues it.
        (Pattern::Exact(name), Pattern::Below(suffix)) => suffix.contains('.') && parent(name) == Some(suffix),
        (Pattern::Below(suffix), Pattern::Exact(name)) => parent(name) == Some(suffix),
        (Pattern::Below(demanded), Pattern::Below(entry)) => entry.contains('.') && demanded == entry,
    }
}

/// A name, or all names exactly one label below it.
enum Pattern<'a> {
    Exact(&'a str),
    Below(&'a str),
}

impl<'a> Pattern<'a> {
    /// `*` may only be the whole left-most label: `f*.d`, `a.*.d`, `*.*.d` are no names (RFC 6125 section 6.4.3 would
    /// allow the first; nobody needs it).
    fn parse(text: &'a str) -> Option<Self> {
        match text.strip_prefix("*.") {
            Some(suffix) => is_host_name(suffix).then_some(Self::Below(suffix)),
            None => is_host_name(text).then_some(Self::Exact(text)),
        }
    }
}

/// A name in A-label form without a final dot, and no IP address.
fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let numeric = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
    text.len() <= 253 && text.split('.').all(label) && !text.rsplit('.').next().is_some_and(numeric)
}

/// The name without its first label.
fn parent(name: &str) -> Option<&str> {
    name.split_once('.').map(|(_, parent)| parent)
}
