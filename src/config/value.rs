//! Values as they are written in the file: durations, sizes, networks, address spaces, smart hosts.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::message::Domain;

/// The name of a receive or send connector.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectorName(pub Arc<str>);

impl fmt::Display for ConnectorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ConnectorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `"example.com"`, `"*.example.com"` or `"*"`, with an optional cost: `"example.com;10"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressSpace {
    /// What it matches.
    pub pattern: Pattern,
    /// Lower is preferred among equally specific ones. 1 unless written.
    pub cost: u32,
}

/// Which domains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// This one only.
    Exact(Domain),
    /// It and its subdomains.
    Suffix(Domain),
    /// All.
    Any,
}

/// One entry of `smart_hosts`: `"host"`, `"host:port"`, `"192.0.2.1"`, `"[2001:db8::1]:25"`, each with `";preference"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmartHost {
    /// Name or address.
    pub host: SmartHostAddress,
    /// Where it says so.
    pub port: Option<u16>,
    /// Lower is tried first. 10 unless written.
    pub preference: u16,
}

/// Name or address of a smart host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SmartHostAddress {
    /// A host name, looked up as A and AAAA.
    Name(Domain),
    /// An address.
    Ip(IpAddr),
}
