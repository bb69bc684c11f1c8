//! `tls_domain` against the names in a certificate.
//!
//! Each name matches a subjectAltName DNS entry, or, where there is none of those, the subject's CN;
//! case-insensitive; `*.` in a certificate stands for exactly one left-most label; a name `*.contoso.com` in
//! the configuration also accepts exactly one label.

/// Names of which a certificate must carry one. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names(Vec<String>);

impl Names {
    /// These names, in lower case; `None` if there are none.
    pub fn new(names: Vec<String>) -> Option<Self> {
        (!names.is_empty()).then(|| Self(names.into_iter().map(|name| name.to_ascii_lowercase()).collect()))
    }

    /// The names.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// The name of these that the certificate `leaf` (DER) carries.
    pub fn matches(&self, leaf: &[u8]) -> Option<String> {
        let _ = leaf;
        todo!()
    }
}
