//! The `Received:` field we put in front of every message.
//!
//! Standards: RFC 5321 section 4.4, RFC 3848 and 6531 (the words after `with`).

use std::net::IpAddr;

use jiff::Timestamp;

use super::{Address, Domain, MessageId};

/// What the field tells of how a message came in.
#[derive(Debug, Clone)]
pub struct Received<'a> {
    /// What the client called itself; anything that is not printable ASCII is escaped.
    pub hello: &'a str,
    /// Where it connected from.
    pub peer: IpAddr,
    /// Who we are.
    pub by: &'a Domain,
    /// EHLO rather than HELO.
    pub extended: bool,
    /// The session was in TLS: protocol version and cipher, if it was.
    pub tls: Option<&'a str>,
    /// The client was authenticated.
    pub authenticated: bool,
    /// SMTPUTF8 was given.
    pub utf8: bool,
    /// Our number of the message.
    pub id: MessageId,
    /// The recipient, where there is exactly one.
    pub only_recipient: Option<&'a Address>,
    /// When.
    pub at: Timestamp,
}

impl Received<'_> {
    /// The field, folded, with its final CRLF.
    pub fn to_field(&self) -> String {
        todo!()
    }
}
