//! DNS: the only module that names the resolver.
//!
//! Answers are three-way: found, proven absent, unknown. Only a proven absence may ever bounce a message.

use std::net::{IpAddr, SocketAddr};

use crate::message::Domain;

pub mod records;
pub mod zone;

pub use zone::Zone;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<T> {
    /// It exists, and this is it. Never empty.
    Found(T),
    /// A server that may say so says that it does not exist.
    Absent(Absence),
    /// Nobody could tell: time-out, SERVFAIL, REFUSED, nonsense. With what went wrong.
    Unknown(String),
}

/// How something does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absence {
    /// NXDOMAIN: there is no such name.
    NoName,
    /// The name exists, but has no record of this type.
    NoRecord,
}

/// One MX record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mx {
    /// Lower is preferred.
    pub preference: u16,
    /// The host; `None` is the null MX, `.` (RFC 7505).
    pub host: Option<Domain>,
}

/// The questions a relay asks. A trait because tests answer from tables.
pub trait Resolve: Send + Sync {
    /// The MX records of `domain`, following CNAMEs at the domain itself.
    fn mx(&self, domain: &Domain) -> impl Future<Output = Answer<Vec<Mx>>> + Send;
    /// The addresses of `host`, IPv6 and IPv4.
    fn addresses(&self, host: &Domain) -> impl Future<Output = Answer<Vec<IpAddr>>> + Send;
}

/// Asks name servers, and remembers their answers. Cheap to clone.
#[derive(Clone)]
pub struct Resolver {}

impl Resolver {
    /// Asks `servers`, or, if there are none, those of the system's configuration.
    ///
    /// # Errors
    /// What is wrong with the system's configuration.
    pub fn new(servers: &[SocketAddr]) -> Result<Self, String> {
        let _ = servers;
        todo!()
    }
}

impl Resolve for Resolver {
    async fn mx(&self, domain: &Domain) -> Answer<Vec<Mx>> {
        let _ = domain;
        todo!()
    }

    async fn addresses(&self, host: &Domain) -> Answer<Vec<IpAddr>> {
        let _ = host;
        todo!()
    }
}
