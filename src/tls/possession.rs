//! Proof of possession: did the other side sign the handshake with the key of the certificate that it shows?
//!
//! A certificate with which somebody can prove who they are is read and checked by webpki and nothing else. Others
//! (X.509 v1, an unknown critical extension, RSA below 2048 bits, a key of type id-RSASSA-PSS) prove nothing to
//! anybody, but devices show them, and where nothing is verified TLS with such a certificate is worth more than no
//! TLS. Their signature is checked here as far as the key can be read. Where it cannot be read, or is of a kind that
//! nothing here knows, the handshake passes unchecked: whoever could be impersonated so could be impersonated with
//! any self-signed certificate as well. [`why_unproving`] keeps all of them from every claim and demand.
//!
//! Standards: RFC 8446 section 4.4.3 (CertificateVerify), RFC 8017 sections 8.1.2, 8.2.2, 9.1.2 and 9.2 (RSA).

use std::sync::LazyLock;

use aws_lc_rs::{digest, signature};
use num_bigint::BigUint;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use rustls::{CertificateError, DigitallySignedStruct, Error, PeerMisbehaved, SignatureScheme};
use webpki::{EndEntityCert, RawPublicKeyEntity};
use x509_parser::oid_registry::{OID_PKCS1_RSAENCRYPTION, OID_PKCS1_RSASSAPSS};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::RSAPublicKey;

use super::handshake::provider;

/// The smallest RSA key that proves something, in bits: what webpki and browsers accept.
const LEAST_RSA: u64 = 2048;

/// The largest RSA key and exponent for which a signature is computed, in bits: a stranger chooses them, and larger
/// ones cost time only.
const MOST_RSA: u64 = 8192;
const MOST_EXPONENT: u64 = 33;

/// The schemes for keys of type id-RSASSA-PSS, which rustls does not know. RFC 8446 section 4.2.3.
const RSA_PSS_PSS: [(SignatureScheme, Digest, &signature::RsaParameters); 3] = [
    (SignatureScheme::Unknown(0x0809), Digest::Sha256, &signature::RSA_PSS_2048_8192_SHA256),
    (SignatureScheme::Unknown(0x080a), Digest::Sha384, &signature::RSA_PSS_2048_8192_SHA384),
    (SignatureScheme::Unknown(0x080b), Digest::Sha512, &signature::RSA_PSS_2048_8192_SHA512),
];

/// What is offered to servers and clients, in order of preference.
static SCHEMES: LazyLock<Vec<SignatureScheme>> = LazyLock::new(|| {
    let mut schemes = provider().signature_verification_algorithms.supported_schemes();
    schemes.extend(RSA_PSS_PSS.map(|(scheme, ..)| scheme));
    schemes
});

/// Which version of TLS the signature belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    Tls12,
    Tls13,
}

/// The signature schemes that [`check`] knows.
pub(super) fn schemes() -> Vec<SignatureScheme> {
    SCHEMES.clone()
}

/// Checks the signature of a handshake.
///
/// # Errors
/// It was not made with the certificate's key.
pub(super) fn check(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
    version: Version,
) -> Result<HandshakeSignatureValid, Error> {
    let algorithms = &provider().signature_verification_algorithms;
    if why_unproving(certificate).is_none() {
        return match version {
            Version::Tls12 => verify_tls12_signature(message, certificate, signed, algorithms),
            Version::Tls13 => verify_tls13_signature(message, certificate, signed, algorithms),
        };
    }
    // An unknown scheme is not an unknown key: nobody gets past the check by inventing one.
    let pkcs1 = matches!(
        signed.scheme,
        SignatureScheme::RSA_PKCS1_SHA256 | SignatureScheme::RSA_PKCS1_SHA384 | SignatureScheme::RSA_PKCS1_SHA512
    );
    if !SCHEMES.contains(&signed.scheme) || (pkcs1 && version == Version::Tls13) {
        return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
    }
    match is_signed(message, certificate, signed.scheme, signed.signature()) {
        Some(false) => Err(Error::InvalidCertificate(CertificateError::BadSignature)),
        Some(true) | None => Ok(HandshakeSignatureValid::assertion()),
    }
}

/// Why nobody can prove anything with this certificate, whoever issued it; `None`: somebody can. What is `None` here
/// had its handshake checked by webpki.
pub(super) fn why_unproving(certificate: &CertificateDer<'_>) -> Option<Unproving> {
    let parsed = match EndEntityCert::try_from(certificate) {
        Ok(parsed) => parsed,
        Err(error) => return Some(Unproving::Unreadable(error)),
    };
    let key = parsed.subject_public_key_info();
    if let Some(rsa) = Rsa::read(&key) {
        // An even modulus or the like is webpki's to refuse.
        return match rsa.kind {
            RsaKind::Pss => Some(Unproving::Key("its key is of type id-RSASSA-PSS, which is not supported".to_owned())),
            RsaKind::Any if rsa.bits() < LEAST_RSA => {
                let bits = rsa.bits();
                Some(Unproving::Key(format!("its RSA key has {bits} bits, and at least {LEAST_RSA} are demanded")))
            }
            RsaKind::Any if rsa.bits() > MOST_RSA => {
                let bits = rsa.bits();
                Some(Unproving::Key(format!("its RSA key has {bits} bits, and at most {MOST_RSA} are supported")))
            }
            RsaKind::Any => None,
        };
    }
    let algorithms =
        provider().signature_verification_algorithms.mapping.iter().flat_map(|(_, algorithms)| *algorithms);
    let is_known = algorithms.into_iter().any(|algorithm| {
        !matches!(
            parsed.verify_signature(*algorithm, b"", b""),
            Err(webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_))
        )
    });
    (!is_known).then(|| Unproving::Key("its key is of a kind that is not supported".to_owned()))
}

/// Why a certificate proves nothing.
#[derive(Debug)]
pub(super) enum Unproving {
    /// webpki does not read it.
    Unreadable(webpki::Error),
    /// Its key is too weak or unknown, in words.
    Key(String),
}

/// Is this a signature by the certificate's key? `None`: nothing here can tell.
fn is_signed(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    scheme: SignatureScheme,
    signature: &[u8],
) -> Option<bool> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let key = SubjectPublicKeyInfoDer::from(parsed.public_key().raw);
    if let Some(rsa) = Rsa::read(&key) {
        return rsa.is_signed(message, scheme, signature);
    }
    let algorithms = &provider().signature_verification_algorithms;
    let entity = RawPublicKeyEntity::try_from(&key).ok()?;
    // The kinds of key that these algorithms know.
    let all = algorithms.mapping.iter().flat_map(|(_, algorithms)| *algorithms);
    let of_scheme = algorithms.mapping.iter().filter(|(known, _)| *known == scheme).flat_map(|(_, all)| *all);
    let verify = |algorithm: &&'static dyn rustls::pki_types::SignatureVerificationAlgorithm| {
        entity.verify_signature(*algorithm, message, signature)
    };
    let is_of_key = |result: &Result<(), webpki::Error>| {
        !matches!(result, Err(webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_)))
    };
    match of_scheme.map(verify).find(is_of_key) {
        Some(result) => Some(result.is_ok()),
        // The key is known and the scheme belongs to another kind of key, or the key is not known.
        None => all.map(verify).any(|result| is_of_key(&result)).then_some(false),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Digest {
    Sha256,
    Sha384,
    Sha512,
}

impl Digest {
    fn algorithm(self) -> &'static digest::Algorithm {
        match self {
            Self::Sha256 => &digest::SHA256,
            Self::Sha384 => &digest::SHA384,
            Self::Sha512 => &digest::SHA512,
        }
    }

    /// What stands in front of the digest: the DER of its DigestInfo. RFC 8017 section 9.2, note 1.
    fn info(self) -> &'static [u8] {
        match self {
            Self::Sha256 => b"\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20",
            Self::Sha384 => b"\x30\x41\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\x04\x30",
            Self::Sha512 => b"\x30\x51\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x03\x05\x00\x04\x40",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RsaKind {
    /// rsaEncryption
    Any,
    /// id-RSASSA-PSS
    Pss,
}

/// An RSA key.
struct Rsa {
    kind: RsaKind,
    modulus: BigUint,
    exponent: BigUint,
    /// DER of the RSAPublicKey.
    der: Vec<u8>,
}

impl Rsa {
    fn read(key: &SubjectPublicKeyInfoDer<'_>) -> Option<Self> {
        let (_, key) = x509_parser::x509::SubjectPublicKeyInfo::from_der(key).ok()?;
        let kind = match &key.algorithm.algorithm {
            oid if *oid == OID_PKCS1_RSAENCRYPTION => RsaKind::Any,
            oid if *oid == OID_PKCS1_RSASSAPSS => RsaKind::Pss,
            _ => return None,
        };
        let der = key.subject_public_key.data.to_vec();
        let (_, rsa) = RSAPublicKey::from_der(&der).ok()?;
        let (modulus, exponent) = (BigUint::from_bytes_be(rsa.modulus), BigUint::from_bytes_be(rsa.exponent));
        Some(Self { kind, modulus, exponent, der })
    }

    fn bits(&self) -> u64 {
        self.modulus.bits()
    }

    /// Is it a signature by this key? `None`: the key is larger than anybody should have to compute with.
    fn is_signed(&self, message: &[u8], scheme: SignatureScheme, signed: &[u8]) -> Option<bool> {
        if self.bits() > MOST_RSA || self.exponent.bits() > MOST_EXPONENT {
            return None;
        }
        let known = match scheme {
            SignatureScheme::RSA_PKCS1_SHA256 => Some((false, Digest::Sha256, &signature::RSA_PKCS1_2048_8192_SHA256)),
            SignatureScheme::RSA_PKCS1_SHA384 => Some((false, Digest::Sha384, &signature::RSA_PKCS1_2048_8192_SHA384)),
            SignatureScheme::RSA_PKCS1_SHA512 => Some((false, Digest::Sha512, &signature::RSA_PKCS1_2048_8192_SHA512)),
            SignatureScheme::RSA_PSS_SHA256 => Some((true, Digest::Sha256, &signature::RSA_PSS_2048_8192_SHA256)),
            SignatureScheme::RSA_PSS_SHA384 => Some((true, Digest::Sha384, &signature::RSA_PSS_2048_8192_SHA384)),
            SignatureScheme::RSA_PSS_SHA512 => Some((true, Digest::Sha512, &signature::RSA_PSS_2048_8192_SHA512)),
            _ => None,
        }
        .filter(|_| self.kind == RsaKind::Any);
        let known = known.or_else(|| {
            let of_pss = RSA_PSS_PSS.iter().find(|(known, ..)| self.kind == RsaKind::Pss && *known == scheme);
            of_pss.map(|&(_, digest, parameters)| (true, digest, parameters))
        });
        let Some((pss, digest, parameters)) = known else { return Some(false) };
        if self.bits() >= LEAST_RSA {
            let key = signature::UnparsedPublicKey::new(parameters, &self.der);
            return Some(key.verify(message, signed).is_ok());
        }
        // aws-lc-rs verifies nothing by so small a key (PKCS #1 v1.5 with some digests apart). Only public values are
        // computed with here, so nothing can leak by the time it takes.
        let hash = digest::digest(digest.algorithm(), message);
        Some(self.open(signed).is_some_and(|encoded| match pss {
            true => self.is_pss(&encoded, digest, hash.as_ref()),
            false => self.is_pkcs1(&encoded, digest, hash.as_ref()),
        }))
    }

    /// What was signed, as encoded: as long as the modulus. RFC 8017 section 5.2.2.
    fn open(&self, signature: &[u8]) -> Option<Vec<u8>> {
        let length = usize::try_from(self.bits().div_ceil(8)).ok()?;
        let signature = (signature.len() == length).then(|| BigUint::from_bytes_be(signature))?;
        if signature >= self.modulus || self.modulus.bits() == 0 {
            return None;
        }
        let encoded = signature.modpow(&self.exponent, &self.modulus).to_bytes_be();
        let mut padded = vec![0; length.checked_sub(encoded.len())?];
        padded.extend_from_slice(&encoded);
        Some(padded)
    }

    /// RFC 8017 section 9.2: made again and compared.
    fn is_pkcs1(&self, encoded: &[u8], digest: Digest, hash: &[u8]) -> bool {
        let Some(padding) = encoded.len().checked_sub(3 + digest.info().len() + hash.len()).filter(|&len| len >= 8)
        else {
            return false;
        };
        let expected = [&[0, 1][..], &vec![0xff; padding], &[0], digest.info(), hash].concat();
        encoded == expected
    }

    /// RFC 8017 section 9.1.2, with a salt as long as the digest: RFC 8446 section 4.2.3.
    fn is_pss(&self, encoded: &[u8], digest: Digest, hash: &[u8]) -> bool {
        let bits = self.bits() - 1;
        // A modulus of 8n + 1 bits has an octet that the encoded message does not have.
        let length = usize::try_from(bits.div_ceil(8)).unwrap_or(usize::MAX);
        let Some((lead, encoded)) = encoded.len().checked_sub(length).map(|at| encoded.split_at(at)) else {
            return false;
        };
        let (size, salt) = (hash.len(), hash.len());
        if lead.iter().any(|&octet| octet != 0) || encoded.len() < size + salt + 2 || encoded.last() != Some(&0xbc) {
            return false;
        }
        let (masked, rest) = encoded.split_at(encoded.len() - size - 1);
        let inner = &rest[..size];
        let unused = u32::try_from(8 * length as u64 - bits).unwrap_or(0);
        let used = 0xffu8.checked_shr(unused).unwrap_or(0);
        if masked[0] & !used != 0 {
            return false;
        }
        let mask = mask(digest, inner, masked.len());
        let mut block: Vec<u8> = masked.iter().zip(mask).map(|(octet, mask)| octet ^ mask).collect();
        block[0] &= used;
        let (padding, salt) = block.split_at(block.len() - salt);
        let Some((&1, zeros)) = padding.split_last() else { return false };
        let mut context = digest::Context::new(digest.algorithm());
        context.update(&[0; 8]);
        context.update(hash);
        context.update(salt);
        zeros.iter().all(|&octet| octet == 0) && context.finish().as_ref() == inner
    }
}

/// MGF1. RFC 8017 section B.2.1.
fn mask(digest: Digest, seed: &[u8], length: usize) -> Vec<u8> {
    let mut mask = Vec::with_capacity(length + 64);
    for counter in 0u32.. {
        if mask.len() >= length {
            break;
        }
        let mut context = digest::Context::new(digest.algorithm());
        context.update(seed);
        context.update(&counter.to_be_bytes());
        mask.extend_from_slice(context.finish().as_ref());
    }
    mask.truncate(length);
    mask
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD as BASE64;

    use super::*;

    /// One line: the key and its bits, the scheme, and both.
    fn signatures() -> impl Iterator<Item = (&'static str, SignatureScheme, Vec<u8>, Vec<u8>)> {
        include_str!("weak/signatures.txt").lines().filter(|line| !line.starts_with('#')).map(|line| {
            let [kind, scheme, key, signature] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
            let scheme = match scheme {
                "RSA_PKCS1_SHA256" => SignatureScheme::RSA_PKCS1_SHA256,
                "RSA_PKCS1_SHA384" => SignatureScheme::RSA_PKCS1_SHA384,
                "RSA_PKCS1_SHA512" => SignatureScheme::RSA_PKCS1_SHA512,
                "RSA_PSS_SHA256" => SignatureScheme::RSA_PSS_SHA256,
                "RSA_PSS_SHA384" => SignatureScheme::RSA_PSS_SHA384,
                "RSA_PSS_SHA512" => SignatureScheme::RSA_PSS_SHA512,
                "RSA_PSS_PSS_SHA256" => RSA_PSS_PSS[0].0,
                "RSA_PSS_PSS_SHA384" => RSA_PSS_PSS[1].0,
                "RSA_PSS_PSS_SHA512" => RSA_PSS_PSS[2].0,
                other => panic!("{other}"),
            };
            (kind, scheme, BASE64.decode(key).unwrap(), BASE64.decode(signature).unwrap())
        })
    }

    #[test]
    fn openssl_and_we_agree_about_signatures() {
        const MESSAGE: &[u8] = b"what is signed in a handshake";
        for (kind, scheme, key, signature) in signatures() {
            let what = format!("{kind} {scheme:?}");
            let key = Rsa::read(&SubjectPublicKeyInfoDer::from(key)).unwrap();
            assert_eq!(kind, format!("{}-{}", if key.kind == RsaKind::Pss { "pss" } else { "rsa" }, key.bits()));
            assert_eq!(key.is_signed(MESSAGE, scheme, &signature), Some(true), "{what}");
            assert_eq!(key.is_signed(b"something else", scheme, &signature), Some(false), "{what}");
            // Other schemes, among them those of the other kind of key.
            for other in schemes().into_iter().filter(|other| *other != scheme) {
                assert_eq!(key.is_signed(MESSAGE, other, &signature), Some(false), "{what} as {other:?}");
            }
            for at in [0, 1, signature.len() / 2, signature.len() - 1] {
                let mut spoilt = signature.clone();
                spoilt[at] ^= 1;
                assert_eq!(key.is_signed(MESSAGE, scheme, &spoilt), Some(false), "{what}, octet {at}");
            }
            for spoilt in
                [&signature[1..], &signature[..signature.len() - 1], &[], &[0; 128], &[0xff; 128], &[0xff; 256]]
            {
                assert_eq!(key.is_signed(MESSAGE, scheme, spoilt), Some(false), "{what}: {spoilt:?}");
            }
        }
    }

    /// Numbers that no key has cost nothing and panic nowhere.
    #[test]
    fn keys_that_are_none() {
        let number = |bytes: &[u8]| BigUint::from_bytes_be(bytes);
        for (modulus, exponent) in [(&[][..], &[3][..]), (&[0], &[3]), (&[1], &[1]), (&[2], &[]), (&[15; 16], &[2])] {
            for kind in [RsaKind::Any, RsaKind::Pss] {
                let key = Rsa { kind, modulus: number(modulus), exponent: number(exponent), der: Vec::new() };
                for scheme in schemes() {
                    for signature in [&[][..], &[0], &[1], &[7; 16]] {
                        assert_eq!(key.is_signed(b"x", scheme, signature), Some(false), "{modulus:?} {signature:?}");
                    }
                }
            }
        }
        let huge = Rsa { kind: RsaKind::Any, modulus: number(&[7; 64]), exponent: number(&[7; 64]), der: Vec::new() };
        assert_eq!(huge.is_signed(b"x", SignatureScheme::RSA_PSS_SHA256, &[1; 64]), None);
    }
}
