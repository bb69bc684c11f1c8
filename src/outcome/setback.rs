//! Why one attempt at one hop brought a recipient no further, and what follows.

use crate::message::Domain;
use crate::smtp::{Reply, Status};
use crate::tls::Unmet;

/// Why one attempt at one hop brought a recipient no further.
///
/// `host` is a name with the address that was tried, as a person reads it: `mx1.example.net [192.0.2.1]:25`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Setback {
    /// The host said so.
    #[error("{host} answered {command} with {reply}")]
    Answered {
        /// Which host.
        host: String,
        /// To what: `MAIL`, `RCPT`, `DATA`, `the end of data`, `the connection`, …
        command: &'static str,
        /// What it said.
        reply: Reply,
    },
    /// A TLS demand was not met.
    #[error("{host}: TLS: {unmet}")]
    Unproven {
        /// Which host.
        host: String,
        /// What was seen.
        unmet: Unmet,
    },
    /// No connection, or it broke.
    #[error("{host}: {why}")]
    Unreachable {
        /// Which host.
        host: String,
        /// What happened.
        why: String,
    },
    /// The connection ended after the final dot and before its reply: nobody knows.
    #[error("{host}: the connection ended after the message was sent and before it was answered: {why}")]
    Ambiguous {
        /// Which host.
        host: String,
        /// What happened.
        why: String,
    },
    /// The host broke the protocol.
    #[error("{host} broke the protocol: {why}")]
    Protocol {
        /// Which host.
        host: String,
        /// How.
        why: String,
    },
    /// The host cannot take such a message.
    #[error("{host} does not offer {extension}, which this message needs")]
    Unsupported {
        /// Which host.
        host: String,
        /// `8BITMIME`, `SMTPUTF8`, `REQUIRETLS`.
        extension: &'static str,
    },
    /// The host's SIZE is smaller than the message.
    #[error("{host} takes at most {limit} bytes, the message has {size}")]
    TooBig {
        /// Which host.
        host: String,
        /// Its SIZE.
        limit: u64,
        /// The message's.
        size: u64,
    },
    /// The domain takes no mail.
    #[error("{domain} takes no mail: its MX is null (RFC 7505)")]
    NullMx {
        /// Which.
        domain: Domain,
    },
    /// The domain does not exist.
    #[error("the domain {domain} does not exist")]
    NoDomain {
        /// Which.
        domain: Domain,
    },
    /// None of its mail servers has an address.
    #[error("no mail server of {domain} has an address: {why}")]
    NoAddress {
        /// Which.
        domain: Domain,
        /// What was found.
        why: String,
    },
    /// DNS could not tell.
    #[error("DNS cannot tell about {name}: {why}")]
    Dns {
        /// What was asked for.
        name: String,
        /// What happened.
        why: String,
    },
    /// All of its mail servers are this relay.
    #[error("the mail servers of {domain} lead back to this relay")]
    Ourselves {
        /// Which.
        domain: Domain,
    },
    /// REQUIRETLS, and this way cannot prove its hosts.
    #[error("REQUIRETLS: {why}")]
    RequireTls {
        /// What is missing.
        why: String,
    },
    /// The connector that was chosen is not in the configuration any more, or is disabled.
    #[error("the send connector {name} is {state} in the configuration")]
    NoConnector {
        /// Which.
        name: String,
        /// `missing` or `disabled`.
        state: &'static str,
    },
    /// Our own spool could not read the message.
    #[error("the spool cannot read the message: {why}")]
    Spool {
        /// What happened.
        why: String,
    },
    /// The lifetime is over; the last setback was this one.
    #[error("not delivered within {lifetime}: {last}")]
    Expired {
        /// In words: `2 days`.
        lifetime: String,
        /// Why the last attempt failed.
        last: Box<Setback>,
    },
}

impl Setback {
    /// RFC 3463. The first digit decides between retry and bounce, for queue, log, tracking and DSN alike.
    pub fn status(&self) -> Status {
        todo!()
    }
}
