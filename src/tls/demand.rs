//! What a host must prove, and what it proved.

use std::sync::Arc;

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;

use super::{Names, Roots};

/// What one host must prove before a message may go to it. The connector's level, REQUIRETLS (and later MTA-STS
/// and TLSA records) together make it.
#[derive(Debug, Clone)]
pub enum Demand {
    /// `off`: STARTTLS is not used.
    Plain,
    /// `opportunistic`: STARTTLS if offered, any certificate; if TLS itself fails, in the clear.
    Nothing,
    /// `encrypt`: STARTTLS, any certificate.
    Encryption,
    /// `certificate`: a chain to these roots, in time, for server use.
    Certificate(Roots),
    /// `domain`: the same, and a name in it matches one of these.
    Domain(Roots, Names),
}

impl std::fmt::Display for Demand {
    /// As a report names it: `TLS and a trusted certificate for mail.contoso.com`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Plain | Self::Nothing => f.write_str("nothing"),
            Self::Encryption => f.write_str("TLS"),
            Self::Certificate(_) => f.write_str("TLS and a trusted certificate"),
            Self::Domain(_, names) => write!(f, "TLS and a trusted certificate for {names}"),
        }
    }
}

impl Demand {
    /// What was seen instead, with what was demanded, for a report that stands alone.
    pub fn unmet(&self, seen: Unmet) -> Unmet {
        match seen {
            // It says so already.
            Unmet::Name { .. } | Unmet::Demanded { .. } => seen,
            seen => Unmet::Demanded { demanded: self.to_string(), seen: Box::new(seen) },
        }
    }
}

/// What the other side of a connection in TLS presented.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its certificates as it sent them, its own first; it proved that it holds that one's key.
    pub(super) chain: Arc<[CertificateDer<'static>]>,
    /// Protocol version and cipher suite.
    pub(super) protocol: String,
}

/// What a connection proved: goes into the tracking event, the demo's output and the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// In the clear.
    Plain,
    /// Encrypted; the certificate was not asked about.
    Encrypted {
        /// Protocol version and cipher suite, such as `TLSv1.3 TLS_AES_256_GCM_SHA384`.
        protocol: String,
    },
    /// The certificate chains to the roots that were demanded.
    Chained {
        /// Protocol version and cipher suite.
        protocol: String,
        /// The subject or first name of the certificate.
        certificate: String,
        /// When its time is over; `None`: it cannot be read.
        expires: Option<Timestamp>,
    },
    /// It does, and carries a name that was demanded.
    Named {
        /// Protocol version and cipher suite.
        protocol: String,
        /// The subject or first name of the certificate.
        certificate: String,
        /// The entry of `tls_domain` that matched.
        name: String,
        /// Who issued the certificate.
        issuer: String,
        /// When its time is over; `None`: it cannot be read.
        expires: Option<Timestamp>,
    },
}

impl Proof {
    /// When the certificate that was proved ends; `None`: none was, or it cannot be read.
    pub fn expires(&self) -> Option<Timestamp> {
        match self {
            Self::Plain | Self::Encrypted { .. } => None,
            Self::Chained { expires, .. } | Self::Named { expires, .. } => *expires,
        }
    }
}

impl std::fmt::Display for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Plain => f.write_str("in the clear"),
            Self::Encrypted { protocol } => f.write_str(protocol),
            Self::Chained { protocol, certificate, .. } => {
                write!(f, "{protocol}, trusted certificate for {certificate}")
            }
            Self::Named { protocol, certificate, name, .. } if certificate == name => {
                write!(f, "{protocol}, trusted certificate for {name}")
            }
            Self::Named { protocol, certificate, name, .. } => {
                write!(f, "{protocol}, trusted certificate for {certificate}, which carries {name}")
            }
        }
    }
}

/// Why a demand was not met: what was seen instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unmet {
    /// What was demanded, and what of it was not met.
    #[error("demanded {demanded}, but {seen}")]
    Demanded {
        /// The demand.
        demanded: String,
        /// What was seen.
        seen: Box<Unmet>,
    },
    /// STARTTLS was not offered.
    #[error("the server does not offer STARTTLS")]
    NotOffered,
    /// STARTTLS was offered and then refused.
    #[error("the server refused STARTTLS: {0}")]
    Refused(String),
    /// The handshake failed for a reason of TLS itself.
    #[error("the TLS handshake failed: {0}")]
    Handshake(String),
    /// The certificate does not chain, is out of time, or is not for this use.
    #[error("its certificate ({certificate}) was not accepted: {why}")]
    Chain {
        /// The subject or first name of the certificate.
        certificate: String,
        /// In words.
        why: String,
    },
    /// The certificate chains but carries none of the names.
    #[error("demanded a certificate for {demanded}, saw one for {seen}")]
    Name {
        /// What was demanded.
        demanded: String,
        /// The names in the certificate.
        seen: String,
    },
}
