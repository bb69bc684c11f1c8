//! Where a recipient's mail goes, and why. Pure: no I/O, no waiting.
//!
//! [`Rules::resolve`] takes one recipient to its [`Routed`] ends (several where a group stands between) or a
//! [`Refusal`]; [`plan()`] makes one [`HopCopy`] per next hop of them. Every step leaves a [`Reason`]; `explain`,
//! the tracking events, the log and the reports print the same words.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{AddressSpace, ConnectorName, Origin, Side};
use crate::message::{Address, Domain, Recipient};
use crate::smtp::{Reply, Status};

#[allow(clippy::disallowed_types, reason = "compares two configurations for a person; no simulated world does")]
pub mod both;
pub mod disagreement;
pub mod explain;
pub mod matrix;
pub mod plan;
pub mod resolve;
pub mod space;
pub mod trust;
#[cfg(test)]
pub(crate) mod world;

pub use disagreement::{Disagreement, Disagreements};
pub use matrix::Reached;
pub use plan::plan;
pub use resolve::{Asking, Failed, Resolution, Rules};
pub use trust::{Clause, Verdict};

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
    /// Under a name of its own, or because a group or forward led there.
    pub reached: Reached,
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
    /// What follows speaks of another address than the one asked about: a forward, a group or an alias led to it.
    About {
        /// The address.
        address: Address,
        /// What is said of it; never again an `About`.
        reason: Box<Reason>,
    },
    /// The directory knows it.
    Found {
        /// The source's name.
        source: Arc<str>,
        /// `on-premises mailbox`, `cloud mailbox`, `forward to …`, `group of 3`, `alias of …`
        kind: Cow<'static, str>,
        /// It was found without its `+tag`.
        untagged: bool,
    },
    /// The directory knows it as the hybrid routing address of another.
    FoundBehind {
        /// The source's name.
        source: Arc<str>,
        /// Whose it is.
        owner: Address,
        /// What the directory says of that: a cloud mailbox, as it should be, or something else, whose it would be.
        kind: Cow<'static, str>,
        /// It was found without its `+tag`.
        untagged: bool,
        /// The other premises knows it by this address, and so do we.
        in_cloud: bool,
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
    /// It goes on under another of its names, because its server takes from us only those in accepted domains.
    SentAs {
        /// In no accepted domain.
        from: Address,
        /// In one.
        to: Address,
    },
    /// It goes on as it stands in the directory, without its `+tag`.
    TagDropped {
        /// As it was.
        from: Address,
        /// As it is.
        to: Address,
        /// The send connector that says `tags = "drop"`.
        via: ConnectorName,
    },
    /// A row of the hybrid matrix decided.
    Matrix {
        /// The premises that this relay serves.
        side: Side,
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
    /// The domain is not an accepted domain, and the receive connector may not relay.
    NotOurs {
        /// The domain.
        domain: Domain,
        /// The receive connector.
        connector: ConnectorName,
    },
    /// The domain is an address literal of this relay, where nobody but `postmaster` is.
    Itself {
        /// The literal.
        domain: Domain,
    },
    /// An address space decided.
    Space {
        /// The send connector it belongs to.
        via: ConnectorName,
        /// The one that won.
        won: AddressSpace,
        /// Those that matched and lost: connector, space, why.
        lost: Vec<(ConnectorName, AddressSpace, &'static str)>,
    },
}

/// Why a recipient is refused, or cannot be judged now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The address that RCPT named.
    pub asked: Address,
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
    /// 550 5.4.6: the on-premises side sent it here, where it is held to be on-premises.
    Disagreement(Disagreed),
    /// 451 4.4.6: the same, seen for the first time not long ago; the mailbox may be moving.
    Moving(Disagreed),
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

/// What the two premises disagree about, seen from the cloud side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disagreed {
    /// The mailbox under its own address; the address asked about may be its hybrid routing address or an alias.
    pub mailbox: Address,
    /// The source that has it on-premises.
    pub source: Arc<str>,
}

impl Reason {
    /// The reason itself, whomever it speaks of.
    pub fn plain(&self) -> &Self {
        match self {
            Self::About { reason, .. } => reason,
            plain => plain,
        }
    }

    /// What the directory says, if this is where it says it: `cloud mailbox`, `group of 3` and so on.
    pub fn found(&self) -> Option<&str> {
        match self.plain() {
            Self::Found { kind, .. } | Self::FoundBehind { kind, .. } => Some(kind),
            _ => None,
        }
    }
}

impl Refusal {
    /// Where the two sides disagree about a mailbox that may be moving, the answer is for now only. Everything else
    /// stays as it is. `grace` is `[hybrid] disagreement_grace`.
    #[must_use]
    pub fn within_grace(mut self, known: &mut Disagreements, now: Instant, grace: Duration) -> Self {
        if let RefusalKind::Disagreement(disagreed) = &self.kind
            && let Disagreement::Moving { .. } = known.judge(&disagreed.mailbox.key(), now, grace)
        {
            self.kind = RefusalKind::Moving(disagreed.clone());
        }
        self
    }

    /// The reply to RCPT that says this.
    pub fn to_reply(&self) -> Reply {
        let to = &self.asked;
        match &self.kind {
            RefusalKind::RelayDenied => Reply::relay_denied(),
            RefusalKind::UnknownRecipient => Reply::unknown_recipient(to),
            RefusalKind::Loop { .. } => Reply::recipient_loops(to),
            RefusalKind::Disagreement(Disagreed { mailbox, source }) => {
                Reply::sides_disagree(to, (mailbox.key() != to.key()).then_some(mailbox), source)
            }
            RefusalKind::Moving(Disagreed { mailbox, source }) => {
                Reply::sides_disagree_yet(to, (mailbox.key() != to.key()).then_some(mailbox), source)
            }
            RefusalKind::NoRoute => Reply::no_route(to),
            RefusalKind::TooBig { limit, .. } => Reply::too_big_for_connector(*limit),
            RefusalKind::TooMany { limit } => Reply::too_many_after_expansion(*limit),
            RefusalKind::DirectoryUnavailable(_) => Reply::directory_unavailable(),
            RefusalKind::Disabled(_) => Reply::connector_disabled(),
        }
    }

    /// The same for somebody outside of the organization: who believes what in it stays in it.
    pub fn to_reply_outside(&self) -> Reply {
        match self.kind {
            RefusalKind::Disagreement(_) => Reply::loops_inside(false),
            RefusalKind::Moving(_) => Reply::loops_inside(true),
            _ => self.to_reply(),
        }
    }

    /// Code and enhanced status of that reply.
    pub fn status(&self) -> (u16, Status) {
        match &self.kind {
            RefusalKind::RelayDenied => (550, Status(5, 7, 1)),
            RefusalKind::UnknownRecipient => (550, Status(5, 1, 1)),
            RefusalKind::Loop { .. } => (550, Status(5, 4, 6)),
            RefusalKind::Disagreement(_) => (550, Status(5, 4, 6)),
            RefusalKind::Moving(_) => (451, Status(4, 4, 6)),
            RefusalKind::NoRoute => (550, Status(5, 4, 4)),
            RefusalKind::TooBig { .. } => (552, Status(5, 3, 4)),
            RefusalKind::TooMany { .. } => (550, Status(5, 3, 0)),
            RefusalKind::DirectoryUnavailable(_) => (451, Status(4, 4, 3)),
            RefusalKind::Disabled(_) => (451, Status(4, 3, 5)),
        }
    }

    /// It may be otherwise later: the recipient is neither taken nor refused for good.
    pub fn is_temporary(&self) -> bool {
        self.status().1.0 == 4
    }
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SmartHosts => f.write_str("its smart hosts"),
            Self::Mx(domain) => write!(f, "the MX of {domain}"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::About { address, reason } => write!(f, "{address}: {reason}"),
            Self::Found { source, kind, untagged } => {
                write!(f, "found in {source}{}: {kind}", if *untagged { " without its tag" } else { "" })
            }
            Self::FoundBehind { source, owner, kind, untagged, in_cloud } => {
                let without = if *untagged { " without its tag" } else { "" };
                let what = if *in_cloud { "the" } else { "what would be the" };
                write!(f, "found in {source}{without} as {what} hybrid routing address of {owner}: {kind}")
            }
            Self::NotFound { domain, kind: kind @ "external-relay" } => {
                write!(f, "{domain} is {kind}: by address space, no directory")
            }
            Self::NotFound { domain, kind } => write!(f, "not in the directory; {domain} is {kind}"),
            Self::Postmaster { instead: Some(address) } => {
                write!(f, "postmaster is always accepted, here as {address}")
            }
            Self::Postmaster { instead: None } => {
                f.write_str("postmaster is always accepted; the directory does not know it")
            }
            Self::Rewritten { from: _, to } => write!(f, "rewritten to {to}"),
            Self::SentAs { from, to } => write!(f, "sent as {to}: {} is not an accepted domain", from.domain()),
            Self::TagDropped { from: _, to, via } => {
                write!(f, "sent as {to}: send connector {via} drops tags")
            }
            Self::Matrix { side, origin, row, key } => {
                write!(f, "side {}, {}, {row}: {key}", side.word(), matrix::from_words(*origin))
            }
            Self::Foreign { domain, connector } => {
                write!(f, "{domain} is not an accepted domain; receive connector {connector} may relay")
            }
            Self::NotOurs { domain, connector } => {
                write!(f, "{domain} is not an accepted domain, and receive connector {connector} may not relay")
            }
            Self::Itself { domain } => write!(f, "{domain} is this relay, where only postmaster is accepted"),
            Self::Space { via, won, lost } => {
                write!(f, "address space {}: {via} (cost {})", won.pattern, won.cost)?;
                for (number, (connector, space, why)) in lost.iter().enumerate() {
                    let lead = if number == 0 { "; lost: " } else { ", " };
                    write!(f, "{lead}{connector} by {} ({why})", space.pattern)?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.kind, f)
    }
}

impl fmt::Display for Disagreed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mailbox, source } = self;
        write!(
            f,
            "the on-premises side sent it here, but {source} (here, cloud) has {mailbox} as an on-premises mailbox"
        )
    }
}

impl fmt::Display for RefusalKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RelayDenied => f.write_str("unable to relay"),
            Self::UnknownRecipient => f.write_str("no such recipient"),
            Self::Loop { path } => {
                f.write_str("leads back to itself: ")?;
                for (number, address) in path.iter().enumerate() {
                    write!(f, "{}{address}", if number == 0 { "" } else { " -> " })?;
                }
                Ok(())
            }
            Self::Disagreement(disagreed) => {
                write!(f, "{disagreed}; mend one of the two directories")
            }
            Self::Moving(disagreed) => write!(f, "{disagreed}; it may be moving"),
            Self::NoRoute => f.write_str("no send connector's address space matches"),
            Self::TooBig { connector, limit } => write!(f, "send connector {connector} takes at most {limit} bytes"),
            Self::TooMany { limit } => write!(f, "more than {limit} recipients after expansion"),
            Self::DirectoryUnavailable(why) => write!(f, "the directory cannot answer: {why}"),
            Self::Disabled(connector) => write!(f, "send connector {connector} is disabled"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_and_its_reply_say_the_same_code() {
        let name = ConnectorName("to-cloud".into());
        let to = Address::parse("anna@contoso.com").unwrap();
        for kind in [
            RefusalKind::RelayDenied,
            RefusalKind::UnknownRecipient,
            RefusalKind::Loop { path: vec![to.clone(), to.clone()] },
            RefusalKind::Disagreement(Disagreed { mailbox: to.clone(), source: "recipients.csv".into() }),
            RefusalKind::Moving(Disagreed { mailbox: to.clone(), source: "recipients.csv".into() }),
            RefusalKind::NoRoute,
            RefusalKind::TooBig { connector: name.clone(), limit: 5 },
            RefusalKind::TooMany { limit: 5 },
            RefusalKind::DirectoryUnavailable("recipients.csv cannot be read".into()),
            RefusalKind::Disabled(name),
        ] {
            let refusal = Refusal { asked: to.clone(), kind, because: Vec::new() };
            let reply = refusal.to_reply();
            assert_eq!(refusal.status(), (reply.code, reply.status.unwrap()), "{refusal}");
            assert_eq!(refusal.is_temporary(), reply.is_temporary(), "{refusal}");
        }
    }
}
