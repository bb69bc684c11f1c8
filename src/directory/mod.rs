//! Who has a mailbox where: look-up over all sources, as an immutable snapshot.

use std::sync::Arc;

use crate::message::Address;

pub mod file;
pub mod table;

/// What the directory says of an address. Types as in interface section 4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A mailbox on-premises.
    OnPremises,
    /// A mailbox in the cloud; the hybrid routing address where the entry names one.
    Cloud(Option<Address>),
    /// Forwarded: resolved again.
    Forward(Address),
    /// A group: each member is resolved again.
    Group(Vec<Address>),
    /// Another name of that recipient.
    Alias(Address),
}

/// A look-up's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// This source knows it.
    Entry {
        /// The source, as the configuration names it.
        source: Arc<str>,
        /// What it says.
        entry: Entry,
        /// The entry is that of the address without its `+tag`.
        untagged: bool,
    },
    /// No source knows it.
    Unknown,
    /// A source that might know it cannot answer: 451 4.4.3, never 550. Which, and why.
    Unavailable(String),
}

/// Something that can be asked. A trait because LDAP will stand beside the file, and tests ask tables.
pub trait Lookup: Send + Sync {
    /// Finds `address`, without regard to case; `+tag` whole first, then without the tag.
    fn find(&self, address: &Address) -> Found;
}
