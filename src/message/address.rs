//! Mail addresses and domains as checked values: what has one of these types has been parsed.
//!
//! A [`Domain`] is in A-label form, lower case, without a trailing dot, or an address literal. The local part
//! of an [`Address`] is kept byte for byte without its quotes; `Display` puts back the quoting that is needed.
//!
//! Standards: RFC 5321 section 4.1.2 (grammar) and 4.5.3.1 (lengths), 5890 (A-labels), 6531 (UTF-8 addresses).

use std::fmt;
use std::net::IpAddr;

/// A domain name in A-label form (lower case, no trailing dot) or an address literal such as `[192.0.2.1]`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Domain(Box<str>);

/// A mailbox: local part and domain.
///
/// Two addresses are equal if their local parts are equal byte for byte and their domains are. Look-ups that
/// ignore case use [`Address::key`].
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Address {
    local: Box<str>,
    domain: Domain,
}

/// Why a text is no address or domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The local part breaks the grammar, or is empty or longer than 64 octets.
    #[error("the local part is malformed")]
    Local,
    /// The domain breaks the grammar, or is longer than 255 octets.
    #[error("the domain is malformed")]
    Domain,
    /// There is no `@`.
    #[error("the domain is missing")]
    NoDomain,
    /// The whole is longer than a path may be.
    #[error("the address is longer than 254 octets")]
    TooLong,
}

impl Domain {
    /// Parses a domain name or an address literal; U-labels become A-labels.
    ///
    /// # Errors
    /// [`Malformed::Domain`] if it is neither.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let _ = text;
        todo!()
    }

    /// The domain as it is written on the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The address of an address literal.
    pub fn literal(&self) -> Option<IpAddr> {
        todo!()
    }
}

impl Address {
    /// Parses `local@domain`, with or without quotes in the local part, without angle brackets.
    ///
    /// # Errors
    /// What of it is malformed.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let _ = text;
        todo!()
    }

    /// The address made of these two parts; `local` is unquoted.
    ///
    /// # Errors
    /// [`Malformed::Local`] if no quoting could carry it (NUL, CR, LF, other controls, more than 64 octets).
    pub fn new(local: &str, domain: Domain) -> Result<Self, Malformed> {
        let _ = (local, domain);
        todo!()
    }

    /// The local part without quotes, case preserved.
    pub fn local(&self) -> &str {
        &self.local
    }

    /// The domain.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// The address in lower case, for comparisons without regard to case.
    pub fn key(&self) -> String {
        todo!()
    }

    /// True if the address can be said without SMTPUTF8.
    pub fn is_ascii(&self) -> bool {
        self.local.is_ascii()
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        todo!()
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
