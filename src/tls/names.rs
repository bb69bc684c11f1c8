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

    /// The name of these that a certificate for `name` carries: for people who ask what such a client would be.
    pub fn carried_by(&self, name: &str) -> Option<&str> {
        self.iter().find(|demanded| matches(demanded, name))
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

    /// All names: the DNS names, or else the CN. Not checked to be names, nor printable.
    pub(super) fn all(&self) -> &[String] {
        match (&self.dns, &self.common_name) {
            (Some(dns), _) => dns,
            (None, Some(name)) => std::slice::from_ref(name),
            (None, None) => &[],
        }
    }

    /// All names, as one shows them to a person.
    pub(super) fn list(&self) -> String {
        let names = self.all();
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

#[cfg(test)]
mod tests {
    use super::super::authority::{Authority, Template};
    use super::*;

    fn der(template: &Template) -> Vec<u8> {
        let (pem, _) = Authority::self_signed(template);
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        pem.contents
    }

    /// A subjectAltName with entries of these tags and octets.
    fn raw(entries: &[(u8, &[u8])]) -> Template {
        let length = |octets: usize| u8::try_from(octets).expect("short enough for the short form");
        let mut content = Vec::new();
        for (tag, octets) in entries {
            content.extend([0x80 | tag, length(octets.len())]);
            content.extend_from_slice(octets);
        }
        let mut sequence = vec![0x30, length(content.len())];
        sequence.extend(content);
        Template { raw_names: Some(sequence), common_name: Some("mail.contoso.com".to_owned()), ..Template::new(&[]) }
    }

    fn matched(names: &[&str], leaf: &[u8]) -> Option<String> {
        Names::new(names.iter().map(|&name| name.to_owned()).collect()).unwrap().matches(leaf)
    }

    #[test]
    fn names_match_as_the_interface_says() {
        for (id, demanded, carried, expected) in [
            ("S-050", "mail.contoso.com", "mail.contoso.com", true),
            ("S-050", "mail.contoso.com", "MAIL.Contoso.COM", true),
            ("S-050", "Mail.CONTOSO.com", "mail.contoso.com", true),
            ("S-050", "mail.contoso.com.", "mail.contoso.com", true),
            ("S-050", "mail.contoso.com", "mail.fabrikam.com", false),
            ("S-050", "contoso.com", "notcontoso.com", false),
            ("S-050", "mail.contoso.com", "contoso.com", false),
            ("S-050", "contoso.com", "mail.contoso.com", false),
            ("S-050", "localhost", "localhost", true),
            ("S-052", "a.d.example", "*.d.example", true),
            ("S-052", "A.D.example", "*.d.EXAMPLE", true),
            ("S-052", "d.example", "*.d.example", false),
            ("S-052", "a.b.d.example", "*.d.example", false),
            ("S-052", ".d.example", "*.d.example", false),
            ("S-053", "fa.d.example", "f*.d.example", false),
            ("S-053", "af.d.example", "*f.d.example", false),
            ("S-053", "a.b.d.example", "a.*.d.example", false),
            ("S-053", "a.b.d.example", "*.*.d.example", false),
            ("S-053", "com", "*", false),
            ("S-053", "contoso.com", "*.com", false),
            ("S-053", "*.com", "*.com", false),
            ("S-053", "xn--a.d.example", "xn--*.d.example", false),
            ("S-053", "xn--a.d.example", "*.d.example", true),
            ("S-054", "mail.contoso.com", "mail.contoso.com.", false),
            ("S-054", "mail.contoso.com", " mail.contoso.com", false),
            ("S-054", "mail.contoso.com", "mail.contoso.com ", false),
            ("S-054", "mail.contoso.com", "mail.contoso.com\0.evil.example", false),
            ("S-054", "mail.contoso.com\0.evil.example", "mail.contoso.com\0.evil.example", false),
            ("S-054", "192.0.2.1", "192.0.2.1", false),
            ("section 6", "*.contoso.com", "mail.contoso.com", true),
            ("section 6", "*.contoso.com", "*.contoso.com", true),
            ("section 6", "*.contoso.com", "contoso.com", false),
            ("section 6", "*.contoso.com", "a.b.contoso.com", false),
            ("section 6", "*.contoso.com", "*.b.contoso.com", false),
            ("section 6", "*.contoso.com", "mail.fabrikam.com", false),
            ("section 6", "*", "mail.contoso.com", false),
        ] {
            let leaf = der(&raw(&[(2, carried.as_bytes())]));
            let expected = expected.then(|| demanded.to_ascii_lowercase().trim_end_matches('.').to_owned());
            assert_eq!(matched(&[demanded], &leaf), expected, "{id}: {demanded:?} against {carried:?}");
        }
    }

    #[test]
    fn s050_one_name_among_a_hundred() {
        let names = (0..100).map(|at| format!("host{at}.example")).collect::<Vec<_>>();
        let leaf = der(&Template::new(&names.iter().map(String::as_str).collect::<Vec<_>>()));
        assert_eq!(matched(&["host99.example"], &leaf).as_deref(), Some("host99.example"));
        assert_eq!(matched(&["host100.example"], &leaf), None);
        assert!(Presented::read(&leaf).unwrap().list().ends_with("host7.example and 92 more"));
    }

    #[test]
    fn the_first_name_of_the_configuration_is_the_one_that_matched() {
        let leaf = der(&Template::new(&["b.example", "a.example"]));
        assert_eq!(matched(&["c.example", "a.example", "b.example"], &leaf).as_deref(), Some("a.example"));
    }

    /// S-051: the CN counts only where no DNS name stands beside it, well-formed or not.
    #[test]
    fn s051_the_cn_counts_where_there_is_no_dns_name() {
        let mail = "mail.contoso.com";
        for (what, template, expected) in [
            ("CN alone", Template::new(&[mail]).common_name_only(), true),
            ("only an address beside it", raw(&[(7, &[192, 0, 2, 1])]), true),
            ("only a mailbox beside it", raw(&[(1, b"anna@contoso.com")]), true),
            ("another DNS name beside it", raw(&[(2, b"other.example")]), false),
            ("a DNS name that is not UTF-8 beside it", raw(&[(2, b"m\xff")]), false),
            ("an empty DNS name beside it", raw(&[(2, b"")]), false),
            ("names that cannot be read", Template { raw_names: Some(vec![0x30, 0x05, 0x82]), ..raw(&[]) }, false),
            ("no CN", Template { common_name: None, ..Template::new(&[]) }, false),
            ("an address as CN", Template { common_name: Some("192.0.2.1".into()), ..Template::new(&[]) }, false),
        ] {
            assert_eq!(matched(&[mail], &der(&template)).is_some(), expected, "{what}");
        }
    }

    #[test]
    fn s054_u_labels_and_addresses_are_no_names() {
        for (entry, demanded) in [
            ((2, "m\u{fc}ller.example".as_bytes()), "m\u{fc}ller.example"),
            ((2, "m\u{fc}ller.example".as_bytes()), "xn--mller-kva.example"),
            ((7, [192, 0, 2, 1].as_slice()), "192.0.2.1"),
        ] {
            assert_eq!(matched(&[demanded], &der(&raw(&[entry]))), None, "{demanded}");
        }
    }

    #[test]
    fn what_is_no_certificate_carries_no_name() {
        assert_eq!(matched(&["a.example"], b""), None);
        assert_eq!(matched(&["a.example"], b"0\x82\xff\xff"), None);
        assert_eq!(short(b"nonsense"), "not readable");
    }

    /// S-142 for names in certificates: they end up in logs and in reports to senders.
    #[test]
    fn what_is_shown_is_printable_and_short() {
        let presented = Presented::read(&der(&raw(&[(2, b"a\r\nBcc: b@example.com")]))).unwrap();
        assert_eq!(presented.list(), "a\\r\\nBcc: b@example.com");
        assert_eq!(printable(&"x".repeat(1000)).len(), SHOWN_CHARS + 3);
    }
}
