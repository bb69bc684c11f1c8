//! One recipient: accepted domain, directory, forwards, groups, aliases, loops, then matrix or address space.
//!
//! The order is that of interface section 5. Where it is silent:
//! - What a forward or a group leads to may lie outside of the organization, whoever writes; an alias lends no such
//!   permission, because it is another name of somebody in the directory.
//! - A `+tag` under which a mailbox was found stays on the address, under an alias and a hybrid routing address too, as
//!   with Postfix. A forward and a group have another's address, which knows nothing of the tag.
//! - Without `[hybrid]` mailboxes and unknown recipients of internal-relay domains go by address space, a cloud mailbox
//!   under its hybrid routing address if its entry names one.
//! - A group of which some members cannot be reached serves the others; [`Rules::expand`] says which failed and why.
//!   A member that cannot be judged now (4yz) holds up the whole recipient: otherwise it would be lost.
//!
//! Not yet: an address literal counts as this relay's own if it is in `listen` or loopback; of wildcards we do not know
//! what they stand for.
//!
//! Standards: RFC 5321 section 4.5.1 (postmaster), 3461 section 5.2 (NOTIFY and ORCPT when relaying), 6533 (`utf-8`).

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use super::matrix::{self, Bound, Side, Way};
use super::space::{self, Choice};
use super::{Hop, Reason, Refusal, RefusalKind, Route, Routed};
use crate::config::{AcceptedDomain, Config, ConnectorName, DomainKind, Hops, Origin, SendConnector};
use crate::directory::{Entry, Found, Lookup, untagged};
use crate::message::{Address, Domain, OriginalRecipient, Recipient};

/// Recipients that one may become by groups. Exchange expands without limit and splits; a relay that promises to keep
/// what it accepted in one record does not.
const EXPANSION_LIMIT: usize = 10_000;
/// Forwards, groups and aliases one behind the other. Nobody nests so deep on purpose, and it bounds the stack.
const DEPTH_LIMIT: usize = 50;

/// What decides: the configuration and the directory of one moment. Cheap to make.
#[derive(Clone, Copy)]
pub struct Rules<'a> {
    /// Accepted domains, `[hybrid]`, send connectors.
    pub config: &'a Config,
    /// Who has a mailbox where.
    pub directory: &'a dyn Lookup,
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Asking<'a> {
    /// What the receive connector says of its senders.
    pub origin: Origin,
    /// The receive connector.
    pub connector: &'a ConnectorName,
    /// It may send to domains that are not accepted domains.
    pub may_relay: bool,
    /// The size that MAIL declared, in bytes.
    pub size: Option<u64>,
}

/// All that became of one recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolution {
    /// Where it goes; never empty.
    pub routed: Vec<Routed>,
    /// Members of groups that it cannot go to; their refusals are permanent.
    pub failed: Vec<Failed>,
}

/// A member that a group's mail cannot go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// The member's address.
    pub address: Address,
    /// Why.
    pub refusal: Refusal,
}

impl<'a> Rules<'a> {
    /// Where `recipient` goes: one end, or several where a group stands between.
    ///
    /// # Errors
    /// Why it goes nowhere, or cannot be judged now.
    pub fn resolve(&self, asking: &Asking<'_>, recipient: &Recipient) -> Result<Vec<Routed>, Refusal> {
        self.expand(asking, recipient).map(|resolution| resolution.routed)
    }

    /// The same, with the members of groups that failed while others did not.
    ///
    /// # Errors
    /// Why it goes nowhere, or cannot be judged now.
    pub fn expand(&self, asking: &Asking<'_>, recipient: &Recipient) -> Result<Resolution, Refusal> {
        let mut walk = Walk {
            rules: *self,
            asking,
            asked: recipient,
            routed: Vec::new(),
            failed: Vec::new(),
            path: Vec::new(),
            seen: HashSet::new(),
        };
        walk.visit(recipient.address.clone(), asking.may_relay, Vec::new())?;
        let Walk { routed, mut failed, .. } = walk;
        if !routed.is_empty() {
            return Ok(Resolution { routed, failed });
        }
        Err(match failed.is_empty() {
            false => failed.swap_remove(0).refusal,
            // A group without members, which no file can write: there is nobody to deliver to.
            true => {
                Refusal { asked: recipient.address.clone(), kind: RefusalKind::UnknownRecipient, because: Vec::new() }
            }
        })
    }

    /// Do the connectors take a message of `size` bytes? For sizes that MAIL did not declare, or not truly.
    ///
    /// # Errors
    /// Of the first recipient whose connector does not.
    pub fn check_size(&self, routed: &[Routed], size: u64) -> Result<(), Refusal> {
        for one in routed {
            let limit = self.config.send_connector(&one.route.via).and_then(|connector| connector.max_message_size);
            if let Some(limit) = limit.filter(|limit| size > *limit) {
                return Err(Refusal {
                    asked: one.asked.clone(),
                    kind: RefusalKind::TooBig { connector: one.route.via.clone(), limit },
                    because: one.route.because.clone(),
                });
            }
        }
        Ok(())
    }

    /// The accepted domain that `domain` is of: the longest name, and itself before a pattern.
    pub fn accepted(&self, domain: &Domain) -> Option<&'a AcceptedDomain> {
        let of = |accepted: &&AcceptedDomain| {
            if accepted.subdomains { domain.is_within(&accepted.name) } else { *domain == accepted.name }
        };
        let rank = |accepted: &&AcceptedDomain| (accepted.name.as_str().len(), !accepted.subdomains);
        // `max_by_key` would give the last of equals; of two that say the same the first holds.
        self.config.accepted_domains.iter().rev().filter(of).max_by_key(rank)
    }

    /// Is it an address literal of this relay?
    fn is_own_literal(&self, domain: &Domain) -> bool {
        let Some(ip) = domain.literal().map(|ip| ip.to_canonical()) else { return false };
        ip.is_loopback()
            || ip.is_unspecified()
            || self
                .config
                .receive_connectors
                .iter()
                .any(|connector| connector.listen.iter().any(|listen| listen.ip().to_canonical() == ip))
    }
}

/// One recipient's way through the directory.
struct Walk<'a> {
    rules: Rules<'a>,
    asking: &'a Asking<'a>,
    asked: &'a Recipient,
    routed: Vec<Routed>,
    failed: Vec<Failed>,
    /// The forwards, groups and aliases between the recipient and here.
    path: Vec<Step>,
    /// All that forwards, groups and aliases led to: who is reached twice gets one copy.
    seen: HashSet<String>,
}

struct Step {
    key: String,
    address: Address,
}

/// `Err` ends the whole recipient; a refusal of one end is kept in `Walk::failed`.
type Ended = Result<(), Refusal>;

impl Walk<'_> {
    /// Resolves `address`. `granted`: it may lie outside of the organization.
    fn visit(&mut self, address: Address, granted: bool, because: Vec<Reason>) -> Ended {
        if !self.path.is_empty() {
            let key = address.key();
            if let Some(start) = self.path.iter().position(|step| step.key == key) {
                return self.fail_loop(start, address, because);
            }
            if self.path.len() >= DEPTH_LIMIT {
                return self.fail_loop(0, address, because);
            }
            if !self.seen.insert(key) {
                return Ok(());
            }
            // Groups of groups of nobody new are bounded too.
            if self.seen.len() > 2 * EXPANSION_LIMIT {
                return Err(self.refusal(RefusalKind::TooMany { limit: EXPANSION_LIMIT }, because));
            }
        }
        let rules = self.rules;
        let accepted = rules.accepted(address.domain());
        if address.local().eq_ignore_ascii_case("postmaster")
            && (accepted.is_some()
                || *address.domain() == rules.config.hostname
                || rules.is_own_literal(address.domain()))
        {
            return self.postmaster(address, because);
        }
        match accepted {
            None => self.outside(address, granted, because),
            Some(domain) => self.inside(address, domain, granted, because),
        }
    }

    /// The domain is not an accepted domain.
    fn outside(&mut self, address: Address, granted: bool, mut because: Vec<Reason>) -> Ended {
        let domain = address.domain();
        if self.rules.is_own_literal(domain) {
            because.push(Reason::Itself { domain: domain.clone() });
            return self.fail(address, RefusalKind::RelayDenied, because);
        }
        let connector = self.asking.connector.clone();
        if !granted {
            because.push(Reason::NotOurs { domain: domain.clone(), connector });
            return self.fail(address, RefusalKind::RelayDenied, because);
        }
        if self.asking.may_relay {
            because.push(Reason::Foreign { domain: domain.clone(), connector });
        }
        self.by_matrix(Bound::Internet, address, because)
    }

    /// It is.
    fn inside(&mut self, address: Address, domain: &AcceptedDomain, granted: bool, mut because: Vec<Reason>) -> Ended {
        if domain.kind == DomainKind::ExternalRelay {
            because.push(not_found(domain));
            return self.by_space(address, because);
        }
        match self.rules.directory.find(&address) {
            Found::Entry { source, entry, untagged } => self.found(address, source, entry, untagged, granted, because),
            Found::Unavailable(why) => Err(self.refusal(RefusalKind::DirectoryUnavailable(why), because)),
            Found::Unknown => {
                because.push(not_found(domain));
                match domain.kind {
                    DomainKind::InternalRelay => self.by_matrix(Bound::Unknown, address, because),
                    DomainKind::Authoritative | DomainKind::ExternalRelay => {
                        self.fail(address, RefusalKind::UnknownRecipient, because)
                    }
                }
            }
        }
    }

    /// The directory knows it.
    fn found(
        &mut self,
        address: Address,
        source: Arc<str>,
        entry: Entry,
        untagged: bool,
        granted: bool,
        mut because: Vec<Reason>,
    ) -> Ended {
        because.push(Reason::Found { source, kind: words(&entry), untagged });
        match entry {
            Entry::OnPremises => self.by_matrix(Bound::OnPremisesMailbox, address, because),
            Entry::Cloud(target) => {
                let to = match (target, &self.rules.config.hybrid) {
                    (Some(target), _) => with_tag_of(target, &address, untagged),
                    // It has been an address's local part, so it can be another's.
                    (None, Some(hybrid)) => {
                        Address::new(address.local(), hybrid.routing_domain.clone()).unwrap_or_else(|_| address.clone())
                    }
                    (None, None) => address.clone(),
                };
                if to != address {
                    because.push(Reason::Rewritten { from: address, to: to.clone() });
                }
                self.by_matrix(Bound::CloudMailbox, to, because)
            }
            Entry::Alias(of) => {
                let of = with_tag_of(of, &address, untagged);
                self.step(address, |walk| walk.visit(of, granted, because))
            }
            Entry::Forward(to) => self.step(address, |walk| walk.visit(to, true, because)),
            Entry::Group(members) => self.step(address, |walk| {
                members.into_iter().try_for_each(|member| walk.visit(member, true, because.clone()))
            }),
        }
    }

    /// `postmaster` is always accepted. RFC 5321 section 4.5.1.
    fn postmaster(&mut self, address: Address, mut because: Vec<Reason>) -> Ended {
        let rules = self.rules;
        let configured = &rules.config.postmaster;
        if self.known_postmaster(&address, &because)? {
            return Ok(());
        }
        if address.key() == configured.key() {
            because.push(Reason::Postmaster { instead: None });
        } else {
            because.push(Reason::Postmaster { instead: Some(configured.clone()) });
            let reached = match rules.accepted(configured.domain()) {
                Some(domain) if domain.kind != DomainKind::ExternalRelay => {
                    self.known_postmaster(configured, &because)?
                }
                // There the directory is not asked: unknown to it means nothing.
                Some(_) | None => self.attempt(|walk| walk.visit(configured.clone(), true, because.clone()))?,
            };
            if reached {
                return Ok(());
            }
        }
        self.by_matrix(Bound::Postmaster, configured.clone(), because)
    }

    /// Goes where the directory says that `address` goes. False: it does not know it, or that leads nowhere.
    fn known_postmaster(&mut self, address: &Address, because: &[Reason]) -> Result<bool, Refusal> {
        match self.rules.directory.find(address) {
            Found::Entry { source, entry, untagged } => {
                self.attempt(|walk| walk.found(address.clone(), source, entry, untagged, true, because.to_vec()))
            }
            Found::Unknown => Ok(false),
            Found::Unavailable(why) => Err(self.refusal(RefusalKind::DirectoryUnavailable(why), because.to_vec())),
        }
    }

    /// True if it led somewhere; if not, its failures are forgotten.
    fn attempt(&mut self, go: impl FnOnce(&mut Self) -> Ended) -> Result<bool, Refusal> {
        let (routed, failed) = (self.routed.len(), self.failed.len());
        go(self)?;
        let reached = self.routed.len() > routed;
        if !reached {
            self.failed.truncate(failed);
        }
        Ok(reached)
    }

    /// Goes on from `address` to what it stands for.
    fn step(&mut self, address: Address, go: impl FnOnce(&mut Self) -> Ended) -> Ended {
        self.path.push(Step { key: address.key(), address });
        let ended = go(self);
        self.path.pop();
        ended
    }

    /// Where `[hybrid]` stands its matrix decides, else the address spaces.
    fn by_matrix(&mut self, bound: Bound, to: Address, mut because: Vec<Reason>) -> Ended {
        let rules = self.rules;
        let Some(hybrid) = &rules.config.hybrid else { return self.by_space(to, because) };
        let origin = self.asking.origin;
        let matrix::Row { row, key, way } = matrix::row(hybrid, Side::OnPremises, origin, bound);
        because.push(Reason::Matrix { origin, row, key });
        match way {
            Way::AddressSpace => self.by_space(to, because),
            Way::Refuse => self.fail(to, RefusalKind::UnknownRecipient, because),
            Way::To(name) => match rules.config.send_connector(name) {
                Some(connector) if connector.enabled => self.end(to, connector, because),
                Some(connector) => self.fail(to, RefusalKind::Disabled(connector.name.clone()), because),
                // The configuration was checked for that; but a route to nowhere is no route.
                None => self.fail(to, RefusalKind::NoRoute, because),
            },
        }
    }

    fn by_space(&mut self, to: Address, mut because: Vec<Reason>) -> Ended {
        let rules = self.rules;
        match space::choose(&rules.config.send_connectors, to.domain()) {
            Choice::Won(connector, reason) => {
                because.push(reason);
                self.end(to, connector, because)
            }
            Choice::Disabled(name) => self.fail(to, RefusalKind::Disabled(name), because),
            Choice::Nothing => self.fail(to, RefusalKind::NoRoute, because),
        }
    }

    /// The connector stands.
    fn end(&mut self, to: Address, connector: &SendConnector, because: Vec<Reason>) -> Ended {
        if let (Some(size), Some(limit)) = (self.asking.size, connector.max_message_size)
            && size > limit
        {
            return self.fail(to, RefusalKind::TooBig { connector: connector.name.clone(), limit }, because);
        }
        if self.routed.len() >= EXPANSION_LIMIT {
            return Err(self.refusal(RefusalKind::TooMany { limit: EXPANSION_LIMIT }, because));
        }
        let asked = &self.asked.address;
        let orcpt = match &self.asked.orcpt {
            None if to != *asked => Some(original(asked)),
            given => given.clone(),
        };
        let hop = match connector.hops {
            Hops::SmartHosts(_) => Hop::SmartHosts,
            Hops::Mx => Hop::Mx(to.domain().clone()),
        };
        self.routed.push(Routed {
            asked: asked.clone(),
            recipient: Recipient { address: to.clone(), notify: self.asked.notify, orcpt },
            route: Route { via: connector.name.clone(), hop, to, because },
        });
        Ok(())
    }

    /// This end leads nowhere; what the others of a group do is their own affair, unless it may be otherwise later.
    fn fail(&mut self, address: Address, kind: RefusalKind, because: Vec<Reason>) -> Ended {
        let refusal = self.refusal(kind, because);
        if refusal.is_temporary() {
            return Err(refusal);
        }
        if self.failed.len() >= EXPANSION_LIMIT {
            return Err(self.refusal(RefusalKind::TooMany { limit: EXPANSION_LIMIT }, refusal.because));
        }
        self.failed.push(Failed { address, refusal });
        Ok(())
    }

    fn fail_loop(&mut self, start: usize, back: Address, because: Vec<Reason>) -> Ended {
        let mut path: Vec<Address> = self.path[start..].iter().map(|step| step.address.clone()).collect();
        path.push(back.clone());
        self.fail(back, RefusalKind::Loop { path }, because)
    }

    fn refusal(&self, kind: RefusalKind, because: Vec<Reason>) -> Refusal {
        Refusal { asked: self.asked.address.clone(), kind, because }
    }
}

/// `target`, and the tag of `address` if that was found without it.
fn with_tag_of(target: Address, address: &Address, found_untagged: bool) -> Address {
    let Some(user) = untagged(address.local()).filter(|_| found_untagged && untagged(target.local()).is_none()) else {
        return target;
    };
    let mut local = String::from(target.local());
    local.push_str(&address.local()[user.len()..]);
    // A local part that grew too long goes without.
    Address::new(&local, target.domain().clone()).unwrap_or(target)
}

/// The ORCPT of a recipient whose sender gave none. RFC 3461 section 5.2.1, RFC 6533 section 3.
fn original(asked: &Address) -> OriginalRecipient {
    let kind = if asked.is_ascii() { "rfc822" } else { "utf-8" };
    OriginalRecipient { kind: kind.into(), address: asked.to_string().into() }
}

fn not_found(domain: &AcceptedDomain) -> Reason {
    let kind = match domain.kind {
        DomainKind::Authoritative => "authoritative",
        DomainKind::InternalRelay => "internal-relay",
        DomainKind::ExternalRelay => "external-relay",
    };
    Reason::NotFound { domain: domain.name.clone(), kind }
}

/// An entry in the words of `explain`.
fn words(entry: &Entry) -> Cow<'static, str> {
    match entry {
        Entry::OnPremises => "on-premises mailbox".into(),
        Entry::Cloud(_) => "cloud mailbox".into(),
        Entry::Forward(to) => format!("forward to {to}").into(),
        Entry::Group(members) => format!("group of {}", members.len()).into(),
        Entry::Alias(of) => format!("alias of {of}").into(),
    }
}
