//! A certificate authority made on the spot, for the demo and the tests: its key exists in memory only.
//!
//! What it issues is ordinary unless a [`Template`] asks for something odd: the tests of the certificate matrix are
//! made of those.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, SanType,
};

use super::{Identity, Roots};

const DAY: SignedDuration = SignedDuration::from_hours(24);

/// An authority with its key in memory.
pub struct Authority {
    name: String,
    params: CertificateParams,
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    /// What a host that it certifies sends along: its own certificate and those above it, but not the root.
    sent_along: String,
}

/// What a certificate shall be like.
#[derive(Debug, Clone)]
pub struct Template {
    /// DNS names and addresses of the subjectAltName; empty: there is no such extension.
    pub names: Vec<String>,
    /// The subject's CN; `None`: the subject is empty.
    pub common_name: Option<String>,
    /// From when on.
    pub not_before: Timestamp,
    /// Until when.
    pub not_after: Timestamp,
    /// What it may be used for; empty: the certificate does not say.
    pub uses: Vec<Use>,
    /// The certificates of the intermediate authorities follow it.
    pub with_chain: bool,
    /// It claims to be an authority itself.
    pub is_authority: bool,
    /// The content of the subjectAltName (DER) instead of `names`.
    pub raw_names: Option<Vec<u8>>,
}

/// What a certificate may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// serverAuth
    Server,
    /// clientAuth
    Client,
    /// emailProtection
    Mail,
    /// anyExtendedKeyUsage
    Any,
}

/// What an authority may do.
#[derive(Debug, Clone, Default)]
pub struct Powers {
    /// How many authorities may stand between it and a host; `None`: any number.
    pub path_length: Option<u8>,
    /// The only domains it may certify; empty: all.
    pub domains: Vec<String>,
    /// Its time ended yesterday.
    pub expired: bool,
    /// It does not say that it is an authority.
    pub unmarked: bool,
}

impl Template {
    /// An ordinary certificate for these names: since an hour, for 90 days, for servers and clients.
    pub fn new(names: &[&str]) -> Self {
        let now = Timestamp::now();
        Self {
            names: names.iter().map(|&name| name.to_owned()).collect(),
            common_name: names.first().map(|&name| name.to_owned()),
            not_before: now - SignedDuration::from_hours(1),
            not_after: now + DAY * 90,
            uses: vec![Use::Server, Use::Client],
            with_chain: true,
            is_authority: false,
            raw_names: None,
        }
    }

    /// Its time ended yesterday.
    #[must_use]
    pub fn expired(mut self) -> Self {
        (self.not_before, self.not_after) = (Timestamp::now() - DAY * 90, Timestamp::now() - DAY);
        self
    }

    /// Its time begins tomorrow.
    #[must_use]
    pub fn not_yet_valid(mut self) -> Self {
        (self.not_before, self.not_after) = (Timestamp::now() + DAY, Timestamp::now() + DAY * 90);
        self
    }

    /// For these uses only; none: the certificate does not say.
    #[must_use]
    pub fn uses(mut self, uses: &[Use]) -> Self {
        self.uses = uses.to_vec();
        self
    }

    /// The first name as CN, and no subjectAltName.
    #[must_use]
    pub fn common_name_only(mut self) -> Self {
        self.names.clear();
        self
    }

    /// Sent without the certificates of the intermediate authorities.
    #[must_use]
    pub fn without_chain(mut self) -> Self {
        self.with_chain = false;
        self
    }

    fn params(&self) -> CertificateParams {
        let mut params =
            CertificateParams::new(self.names.clone()).expect("the names of a template are ASCII, as in the program");
        params.distinguished_name = DistinguishedName::new();
        if let Some(name) = &self.common_name {
            params.distinguished_name.push(DnType::CommonName, name.clone());
        }
        valid(&mut params, self.not_before, self.not_after);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = self.uses.iter().map(|&purpose| purpose.into()).collect();
        params.use_authority_key_identifier_extension = true;
        if self.is_authority {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        if let Some(raw) = &self.raw_names {
            params.subject_alt_names = Vec::<SanType>::new();
            params.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 17], raw.clone())];
        }
        params
    }
}

impl Authority {
    /// A new authority of this name, with a certificate that it signed itself.
    pub fn new(name: &str) -> Self {
        Self::with_powers(name, &Powers::default())
    }

    /// The same, with these powers.
    pub fn with_powers(name: &str, powers: &Powers) -> Self {
        let (params, key) = (powers.params(name), new_key());
        let certificate = params.self_signed(&key).expect(SIGNS);
        let (issuer, pem) = (Issuer::new(params.clone(), key), certificate.pem());
        Self { name: name.to_owned(), params, issuer, pem, sent_along: String::new() }
    }

    /// An authority below this one. Hosts that it certifies send its certificate along.
    #[must_use]
    pub fn intermediate(&self, name: &str) -> Self {
        self.intermediate_with_powers(name, &Powers::default())
    }

    /// The same, with these powers.
    #[must_use]
    pub fn intermediate_with_powers(&self, name: &str, powers: &Powers) -> Self {
        let (params, key) = (powers.params(name), new_key());
        let pem = params.signed_by(&key, &self.issuer).expect(SIGNS).pem();
        let sent_along = format!("{pem}{}", self.sent_along);
        let issuer = Issuer::new(params.clone(), key);
        Self { name: name.to_owned(), params, issuer, pem, sent_along }
    }

    /// Another certificate (PEM) for this authority and its key, issued by `other`.
    pub fn cross_signed_by(&self, other: &Self) -> String {
        self.params.signed_by(self.issuer.key(), &other.issuer).expect(SIGNS).pem()
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The authority's own certificate: what a `ca_file` would hold.
    pub fn pem(&self) -> String {
        self.pem.clone()
    }

    /// The roots that hold this authority alone.
    pub fn roots(&self) -> Roots {
        Roots::from_pem(&self.pem, &self.name).expect("we made this certificate")
    }

    /// An ordinary certificate for these DNS names with its chain, and its key, both PEM.
    pub fn issue(&self, names: &[&str]) -> (String, String) {
        self.issue_as(&Template::new(names))
    }

    /// A certificate like this with its chain, and its key, both PEM.
    pub fn issue_as(&self, template: &Template) -> (String, String) {
        let key = new_key();
        let certificate = template.params().signed_by(&key, &self.issuer).expect(SIGNS).pem();
        let chain = if template.with_chain { format!("{certificate}{}", self.sent_along) } else { certificate };
        (chain, key.serialize_pem())
    }

    /// What [`Self::issue`] gives, as it would be read from files.
    pub fn identity(&self, names: &[&str]) -> Identity {
        self.identity_as(&Template::new(names))
    }

    /// What [`Self::issue_as`] gives, as it would be read from files.
    pub fn identity_as(&self, template: &Template) -> Identity {
        let (chain, key) = self.issue_as(template);
        Identity::from_pem(&chain, &key).expect("we made this certificate")
    }

    /// A certificate that no authority signed, and its key, both PEM.
    pub fn self_signed(template: &Template) -> (String, String) {
        let key = new_key();
        (template.params().self_signed(&key).expect(SIGNS).pem(), key.serialize_pem())
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", self.name)
    }
}

const SIGNS: &str = "a key just made signs what this file put together";

fn new_key() -> KeyPair {
    KeyPair::generate().expect("the system has randomness for a key")
}

impl Powers {
    fn params(&self, name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        let now = Timestamp::now();
        valid(&mut params, now - DAY * 30, if self.expired { now - DAY } else { now + DAY * 3650 });
        params.is_ca = match (self.unmarked, self.path_length) {
            (true, _) => IsCa::NoCa,
            (false, None) => IsCa::Ca(BasicConstraints::Unconstrained),
            (false, Some(length)) => IsCa::Ca(BasicConstraints::Constrained(length)),
        };
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        if !self.domains.is_empty() {
            let permitted_subtrees = self.domains.iter().cloned().map(GeneralSubtree::DnsName).collect();
            params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
        }
        params
    }
}

impl From<Use> for ExtendedKeyUsagePurpose {
    fn from(purpose: Use) -> Self {
        match purpose {
            Use::Server => Self::ServerAuth,
            Use::Client => Self::ClientAuth,
            Use::Mail => Self::EmailProtection,
            Use::Any => Self::Any,
        }
    }
}

/// Sets the time of a certificate. rcgen speaks of time in the words of a crate that we do not name.
fn valid(params: &mut CertificateParams, from: Timestamp, until: Timestamp) {
    let since_1970 = |at: Timestamp| Duration::from_secs(at.as_second().try_into().unwrap_or_default());
    let begin = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = begin + since_1970(from);
    params.not_after = begin + since_1970(until);
}
