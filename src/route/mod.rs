//! Where a recipient's mail goes, and why. Pure: no I/O, no waiting.
//!
//! [`resolve::resolve`] takes one recipient to its [`Routed`] ends (several where a group stands between) or a
//! [`Refusal`]; [`plan::plan`] makes one [`HopCopy`] per next hop of them. Every step leaves a [`Reason`]; `explain`,
//! the tracking events, the log and the reports print the same words.

use std::fmt;
use std::sync::Arc;

use crate::config::{AddressSpace, ConnectorName, Origin};
use crate::message::{Address, Domain, Recipient};

pub mod matrix;
pub mod plan;
pub mod resolve;
pub mod space;

/// Where one recipient goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The send connector.
    pub via: ConnectorName,
    /// The next hop.
    pub hop: Hop,
    /// What RCPT TO will say.
    pub to: Address,
    /// How it came about.
    pub because: Vec<Reason>,
}

/// A next hop. Recipients with the same connector and hop share one copy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Hop {
    /// The connector's smart hosts.
    SmartHosts,
    /// The MX of this domain (or the address literal).
    Mx(Domain),
}

/// One end of a recipient's way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routed {
    /// The address RCPT named.
    pub asked: Address,
    /// NOTIFY and ORCPT as the next hop gets them; `address` is `route.to`. ORCPT keeps the address first given.
    pub recipient: Recipient,
    /// Where it goes.
    pub route: Route,
}

/// One copy of a message: all the recipients of one next hop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HopCopy {
    /// The send connector.
    pub via: ConnectorName,
    /// The next hop.
    pub hop: Hop,
    /// Who gets it.
    pub recipients: Vec<CopyRecipient>,
}

/// One recipient of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyRecipient {
    /// The address that the message's sender named.
    pub asked: Address,
    /// What the next hop is told.
    pub recipient: Recipient,
}

/// One step of a decision, in words that an administrator reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The directory knows it.
    Found {
        /// The source's name.
        source: Arc<str>,
        /// `on-premises mailbox`, `cloud mailbox`, `forward to …`, `group of 3`, `alias of …`
        kind: String,
        /// It was found without its `+tag`.
        untagged: bool,
    },
    /// No source knows it; this is what its accepted domain says about that.
    NotFound {
        /// The accepted domain.
        domain: Domain,
        /// Its type, in the interface's word.
        kind: &'static str,
    },
    /// `postmaster` is always accepted.
    Postmaster {
        /// Where it goes instead, if it was not in the directory.
        instead: Option<Address>,
    },
    /// It goes on as another address.
    Rewritten {
        /// As it was.
        from: Address,
        /// As it is.
        to: Address,
    },
    /// A row of the hybrid matrix decided.
    Matrix {
        /// What the message came from.
        origin: Origin,
        /// The row, in words.
        row: &'static str,
        /// The key that names the connector, such as `hybrid.cloud`.
        key: &'static str,
    },
    /// The domain is not an accepted domain.
    Foreign {
        /// The domain.
        domain: Domain,
        /// The receive connector that lets it be relayed.
        connector: ConnectorName,
    },
    /// An address space decided.
    Space {
        /// The one that won.
        won: AddressSpace,
        /// Those that matched and lost: connector, space, why.
        lost: Vec<(ConnectorName, AddressSpace, &'static str)>,
    },
}

/// Why a recipient is refused, or cannot be judged now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What was found out.
    pub kind: RefusalKind,
    /// How far it came.
    pub because: Vec<Reason>,
}

/// The kinds of refusal; `smtp::reply` has the words for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RefusalKind {
    /// 550 5.7.1 Unable to relay.
    RelayDenied,
    /// 550 5.1.1.
    UnknownRecipient,
    /// 550 5.4.6: forwards, groups and aliases that lead back to themselves.
    Loop {
        /// The addresses of the circle, in order.
        path: Vec<Address>,
    },
    /// 550 5.4.4: no send connector serves it.
    NoRoute,
    /// 552 5.3.4: the connector does not take messages of this size.
    TooBig {
        /// Which connector.
        connector: ConnectorName,
        /// What it takes, in bytes.
        limit: u64,
    },
    /// 550 5.3.x: the expansion of groups grew beyond its limit.
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// 451 4.4.3: a directory cannot answer now.
    DirectoryUnavailable(String),
    /// 451 4.3.5: the connector that should take it is disabled.
    Disabled(ConnectorName),
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SmartHosts => f.write_str("its smart hosts"),
            Self::Mx(domain) => write!(f, "the MX of {domain}"),
        }
    }
}
