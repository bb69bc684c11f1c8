//! A small authoritative server for a zone written in the program: the demo and the tests have their DNS here.

use std::io;
use std::net::{IpAddr, SocketAddr};

/// The records that the server knows. Names that are not in it do not exist.
#[derive(Debug, Clone, Default)]
pub struct Zone {}

/// How a server may fail to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// SERVFAIL.
    ServFail,
    /// REFUSED.
    Refused,
    /// Nothing is sent back.
    Silence,
}

impl Zone {
    /// No records.
    pub fn new() -> Self {
        Self::default()
    }

    /// `domain MX preference host`; the host `.` makes a null MX.
    #[must_use]
    pub fn mx(self, domain: &str, preference: u16, host: &str) -> Self {
        let _ = (domain, preference, host);
        todo!()
    }

    /// `host A address` or `host AAAA address`.
    #[must_use]
    pub fn address(self, host: &str, address: IpAddr) -> Self {
        let _ = (host, address);
        todo!()
    }

    /// `alias CNAME target`.
    #[must_use]
    pub fn cname(self, alias: &str, target: &str) -> Self {
        let _ = (alias, target);
        todo!()
    }

    /// Questions about `name` are answered like this.
    #[must_use]
    pub fn fails(self, name: &str, failure: Failure) -> Self {
        let _ = (name, failure);
        todo!()
    }
}

/// A running server; it ends when this is dropped.
#[derive(Debug)]
pub struct Serving {}

/// Answers questions about `zone` at `bind`, over UDP and TCP. Port 0: one that is free.
///
/// # Errors
/// If `bind` cannot be had.
pub async fn serve(zone: Zone, bind: SocketAddr) -> io::Result<(SocketAddr, Serving)> {
    let _ = (zone, bind);
    todo!()
}
