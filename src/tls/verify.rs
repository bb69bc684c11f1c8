//! Demands as certificate verifiers: the only file that may let a certificate pass that does not chain, and only
//! for a demand that says so. The signature of the handshake is checked for all (`tls::possession`).
//!
//! rustls is given a verifier that lets every certificate pass, and the certificate is judged when the handshake is
//! over, before any byte of SMTP: so a resumed session, which shows no certificate, is judged like a new one, and
//! what was seen can be said.
//!
//! Standards: RFC 5280 section 6 (chains), 4.2.1.12 (use).

use std::sync::Arc;

use jiff::Timestamp;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};
use x509_parser::certificate::X509Certificate;
use x509_parser::oid_registry::OID_X509_EXT_NAME_CONSTRAINTS;

use super::demand::{Demand, Proof, Seen, Unmet};
use super::handshake::provider;
use super::hello;
use super::names::{self, Presented, printable};
use super::possession::{self, Unproving, Version};
use super::store::{from_unix_time, unix_time};
use super::{Identity, Names, Roots};

impl Demand {
    /// Judges what a server presented.
    ///
    /// # Errors
    /// What of the demand was not met.
    pub fn judge(&self, seen: &Seen, now: Timestamp) -> Result<Proof, Unmet> {
        match self {
            Self::Plain | Self::Nothing | Self::Encryption => Ok(Proof::Encrypted { protocol: seen.protocol.clone() }),
            Self::Certificate(roots) => {
                chain(seen, roots, Holder::Server, now)?;
                let (protocol, certificate) = (seen.protocol.clone(), names::short(seen.leaf()));
                Ok(Proof::Chained { protocol, certificate, expires: seen.expiry() })
            }
            Self::Domain(roots, names) => {
                let constraints = chain(seen, roots, Holder::Server, now)?;
                named(seen, names, constraints)
            }
        }
    }
}

impl Identity {
    /// What a client would see of it in a handshake: for the question whether its demand would be met.
    pub fn as_seen(&self) -> Seen {
        Seen::new(&self.certified.cert, "TLS".to_owned()).expect("an identity has a certificate")
    }

    /// What a server that asks for a client certificate would see of it.
    pub fn as_client(&self) -> ClientCertificate {
        ClientCertificate::new(self.as_seen())
    }
}

impl Seen {
    /// Protocol version and cipher suite, such as `TLSv1.3 TLS_AES_256_GCM_SHA384`.
    pub fn protocol(&self) -> &str {
        &self.protocol
    }

    /// The names that the certificate claims, for people: it is not judged.
    pub fn names(&self) -> Vec<String> {
        let presented = Presented::read(self.leaf());
        presented.map_or_else(Vec::new, |names| names.all().iter().map(|name| printable(name)).collect())
    }

    /// When the certificate's time is over; `None`: it cannot be read.
    pub fn expiry(&self) -> Option<Timestamp> {
        let (_, certificate) = x509_parser::parse_x509_certificate(self.leaf()).ok()?;
        Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()
    }

    /// Who issued the certificate; `None`: it cannot be read.
    pub fn issuer(&self) -> Option<String> {
        let (_, certificate) = x509_parser::parse_x509_certificate(self.leaf()).ok()?;
        Some(printable(&certificate.issuer().to_string()))
    }
}

/// What a client presented. It proved that it holds the key; nothing else is decided yet.
#[derive(Debug, Clone)]
pub struct ClientCertificate {
    seen: Seen,
}

impl ClientCertificate {
    pub(super) fn new(seen: Seen) -> Self {
        Self { seen }
    }

    /// What the certificate is worth to a connector with these roots and names.
    ///
    /// # Errors
    /// Which clause failed.
    pub fn judge(&self, roots: &Roots, names: &Names, now: Timestamp) -> Result<Proof, Unmet> {
        let constraints = chain(&self.seen, roots, Holder::Client, now)?;
        named(&self.seen, names, constraints)
    }

    /// The names that the certificate claims, for people: it is not judged.
    pub fn names(&self) -> Vec<String> {
        let presented = Presented::read(self.seen.leaf());
        presented.map_or_else(Vec::new, |names| names.all().iter().map(|name| printable(name)).collect())
    }

    /// The certificate in a few words, for the log.
    pub fn description(&self) -> String {
        match x509_parser::parse_x509_certificate(self.seen.leaf()) {
            Ok((_, certificate)) => format!(
                "certificate for {}, issued by {}",
                Presented::of(&certificate).list(),
                printable(&certificate.issuer().to_string())
            ),
            Err(_) => "a certificate that cannot be read".to_owned(),
        }
    }
}

/// Who shows the certificate.
#[derive(Clone, Copy)]
enum Holder {
    Server,
    Client,
}

/// Whether a certificate of the chain limits the names that those below it may carry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Constraints {
    None,
    Some,
}

/// A chain to the roots, in time, for this use.
fn chain(seen: &Seen, roots: &Roots, holder: Holder, now: Timestamp) -> Result<Constraints, Unmet> {
    let anchors = roots.anchors_at(now);
    let refuse =
        |error| Unmet::Chain { certificate: names::short(seen.leaf()), why: explain(&error, seen, roots, now) };
    let leaf = CertificateDer::from(seen.leaf());
    // Only then did webpki check that its holder signed the handshake.
    match possession::why_unproving(&leaf) {
        Some(Unproving::Unreadable(error)) => return Err(refuse(error)),
        Some(Unproving::Key(why)) => return Err(Unmet::Chain { certificate: names::short(&leaf), why }),
        None => {}
    }
    let leaf = EndEntityCert::try_from(&leaf).map_err(refuse)?;
    let verify = |usage: KeyUsage| {
        let algorithms = provider().signature_verification_algorithms.all;
        leaf.verify_for_usage(algorithms, &anchors, seen.intermediates(), unix_time(now), usage, None, None)
            .map(|path| constraints(&path))
    };
    match holder {
        Holder::Server => verify(KeyUsage::server_auth()),
        // Public authorities no longer issue certificates for clients, and a relay that sends is a server elsewhere:
        // one for servers will do. The other way round it will not.
        Holder::Client => match verify(KeyUsage::client_auth()) {
            Err(webpki::Error::RequiredEkuNotFoundContext(_)) => verify(KeyUsage::server_auth()),
            other => other,
        },
    }
    .map_err(refuse)
}

/// Why a chain of our own does not lead to these roots, whoever is shown it; `None`: it does, or it is a matter of
/// time only.
pub(super) fn why_not(chain: &[CertificateDer<'static>], roots: &Roots, now: Timestamp) -> Option<String> {
    let seen = Seen { chain: chain.into(), protocol: String::new() };
    let anchors = roots.anchors_at(now);
    let leaf = match EndEntityCert::try_from(&chain[0]) {
        Ok(leaf) => leaf,
        Err(error) => return Some(explain(&error, &seen, roots, now)),
    };
    let algorithms = provider().signature_verification_algorithms.all;
    let verify = |usage| {
        leaf.verify_for_usage(algorithms, &anchors, seen.intermediates(), unix_time(now), usage, None, None).map(|_| ())
    };
    match verify(KeyUsage::server_auth()) {
        Err(webpki::Error::RequiredEkuNotFoundContext(_)) => verify(KeyUsage::client_auth()),
        other => other,
    }
    .err()
    .filter(|error| {
        !matches!(error, webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. })
            // Its root ended: of that the roots tell.
            && !anchors.is_empty()
    })
    .map(|error| explain(&error, &seen, roots, now))
}

fn constraints(path: &VerifiedPath<'_>) -> Constraints {
    let limits = |der: &[u8]| {
        // What cannot be read might limit.
        x509_parser::parse_x509_certificate(der).map_or(true, |(_, certificate)| {
            certificate.extensions().iter().any(|extension| extension.oid == OID_X509_EXT_NAME_CONSTRAINTS)
        })
    };
    let limited = path.anchor().name_constraints.is_some()
        || path.intermediate_certificates().any(|certificate| limits(&certificate.der()));
    if limited { Constraints::Some } else { Constraints::None }
}

/// A chain that was found good carries one of the names.
fn named(seen: &Seen, names: &Names, constraints: Constraints) -> Result<Proof, Unmet> {
    let issuer = x509_parser::parse_x509_certificate(seen.leaf())
        .map_or_else(|_| String::new(), |(_, leaf)| printable(&leaf.issuer().to_string()));
    let presented = Presented::read(seen.leaf()).ok_or_else(|| Unmet::Chain {
        certificate: names::short(seen.leaf()),
        why: "its names cannot be read".to_owned(),
    })?;
    // Name constraints are checked against the subjectAltName only: below an authority that may issue for its own
    // domain alone, a CN could say anything.
    let names_count = presented.dns.is_some() || constraints == Constraints::None;
    if names_count && let Some(name) = names.found_in(&presented) {
        let (protocol, certificate, expires) = (seen.protocol.clone(), presented.short(), seen.expiry());
        return Ok(Proof::Named { protocol, certificate, name, issuer, expires });
    }
    Err(Unmet::Name { demanded: names.to_string(), seen: presented.list() })
}

/// Why a chain is not good, with what was seen.
fn explain(error: &webpki::Error, seen: &Seen, roots: &Roots, now: Timestamp) -> String {
    use webpki::Error as E;
    match error {
        E::CertExpired { not_after, .. } => {
            let until = from_unix_time(*not_after);
            format!(
                "{} valid until {until}, and it is now {now:.0}",
                whose(seen, |leaf| leaf.not_after.timestamp(), until)
            )
        }
        E::CertNotValidYet { not_before, .. } => {
            let from = from_unix_time(*not_before);
            let whose = whose(seen, |leaf| leaf.not_before.timestamp(), from);
            format!("{whose} not valid before {from}, and it is now {now:.0}")
        }
        E::UnknownIssuer => unknown_issuer(seen, roots, now),
        E::CaUsedAsEndEntity => "it is the certificate of an authority, not of a host".to_owned(),
        E::EndEntityUsedAsCa => "a certificate of its chain was issued by one that is not an authority".to_owned(),
        E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => "it was not issued for this use".to_owned(),
        E::PathLenConstraintViolated => "its chain is longer than an authority in it allows".to_owned(),
        E::NameConstraintViolation => "it carries a name that an authority in its chain may not issue".to_owned(),
        E::InvalidSignatureForPublicKey => "a signature in its chain is wrong".to_owned(),
        E::MaximumPathBuildCallsExceeded
        | E::MaximumSignatureChecksExceeded
        | E::MaximumNameConstraintComparisonsExceeded
        | E::MaximumPathDepthExceeded => "its chain is too complicated".to_owned(),
        E::UnsupportedSignatureAlgorithmContext(_) | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            "a signature in its chain is of a kind that is not accepted any more, or not known".to_owned()
        }
        E::UnsupportedCertVersion => "it is not an X.509 version 3 certificate".to_owned(),
        E::UnsupportedCriticalExtension => {
            "a certificate of its chain has an extension that must be understood (critical), and is not known"
                .to_owned()
        }
        other => format!("a certificate of its chain is malformed ({other})"),
    }
}

/// Whether the time that was not kept is the certificate's own.
fn whose(seen: &Seen, time: impl Fn(&x509_parser::certificate::Validity) -> i64, found: Timestamp) -> &'static str {
    match x509_parser::parse_x509_certificate(seen.leaf()) {
        Ok((_, leaf)) if time(leaf.validity()) == found.as_second() => "it was",
        _ => "the certificate of one of its issuers was",
    }
}

fn unknown_issuer(seen: &Seen, roots: &Roots, now: Timestamp) -> String {
    let parsed = seen.chain.iter().map(|der| x509_parser::parse_x509_certificate(der).map(|(_, parsed)| parsed));
    let Ok(chain) = parsed.collect::<Result<Vec<X509Certificate<'_>>, _>>() else {
        return format!("no chain leads from it to {}, and one of its certificates cannot be read", roots.origin);
    };
    let raw = |name: &x509_parser::x509::X509Name<'_>| name.as_raw().to_vec();
    for certificate in &chain {
        if let Some((name, until)) = roots.expired(&raw(certificate.issuer()), now) {
            return format!("its root {name} was valid until {until}, and it is now {now:.0}");
        }
    }
    let leaf = &chain[0];
    let issuer = printable(&leaf.issuer().to_string());
    if raw(leaf.subject()) == raw(leaf.issuer()) {
        return format!("it is self-signed and not among {}", roots.origin);
    }
    let sent = chain[1..].iter().any(|certificate| raw(certificate.subject()) == raw(leaf.issuer()));
    let hint = if sent { "" } else { ", whose own certificate was not sent along: an intermediate may be missing" };
    format!("no chain leads from it to {}: it was issued by {issuer}{hint}", roots.origin)
}

impl Seen {
    pub(super) fn new(chain: &[CertificateDer<'_>], protocol: String) -> Option<Self> {
        let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect::<Arc<[_]>>();
        (!chain.is_empty()).then_some(Self { chain, protocol })
    }

    fn leaf(&self) -> &[u8] {
        &self.chain[0]
    }

    fn intermediates(&self) -> &[CertificateDer<'static>] {
        &self.chain[1..]
    }
}

/// Lets every certificate pass, and checks that its holder signed the handshake with its key.
#[derive(Debug)]
pub(super) struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion()) // judged when the handshake is over: `Demand::judge`
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        possession::check(message, certificate, signed, Version::Tls12)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        possession::check(message, certificate, signed, Version::Tls13)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        possession::schemes()
    }
}

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// None: a client that chose by our roots would keep back a certificate for another connector.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion()) // judged by each claim on it: `ClientCertificate::judge`
    }

    /// In TLS 1.2 the client signs all messages so far, its ClientHello first.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        possession::check(&hello::restored(message), certificate, signed, Version::Tls12)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        possession::check(message, certificate, signed, Version::Tls13)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        possession::schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// S-061. The chains (leaf, root) were made once with openssl, their keys thrown away; they end in 100 years. The
    /// control differs from the others in nothing but its algorithms: it shows that these are what is refused.
    #[test]
    fn s061_weak_algorithms_are_refused() {
        let names = Names::new(vec!["mail.contoso.com".to_owned()]).expect("one name");
        let now = "2040-01-01T00:00:00Z".parse().unwrap();
        for (what, pem, good) in [
            ("RSA 2048 and SHA-256", include_str!("weak/control.pem"), true),
            ("SHA-1", include_str!("weak/sha1.pem"), false),
            ("MD5", include_str!("weak/md5.pem"), false),
            ("RSA 1024", include_str!("weak/rsa1024.pem"), false),
            ("P-224", include_str!("weak/p224.pem"), false),
        ] {
            let chain = x509_parser::pem::Pem::iter_from_buffer(pem.as_bytes()).map(|pem| pem.unwrap().contents);
            let chain = chain.map(CertificateDer::from).collect::<Vec<_>>();
            let roots = Roots::from_der(&[chain[1].to_vec()], "the root").unwrap();
            let seen = Seen::new(&chain[..1], "TLSv1.3".to_owned()).unwrap();
            let verdict = Demand::Domain(roots.clone(), names.clone()).judge(&seen, now);
            assert_eq!(verdict.is_ok(), good, "{what}, as server: {verdict:?}");
            let verdict = ClientCertificate::new(seen).judge(&roots, &names, now);
            assert_eq!(verdict.is_ok(), good, "{what}, as client: {verdict:?}");
            assert!(good || matches!(verdict, Err(Unmet::Chain { .. })), "{what}: {verdict:?}");
        }
    }
}
