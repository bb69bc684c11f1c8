//! One recipient: accepted domain, directory, forwards, groups, aliases, loops, then matrix or address space.
//!
//! The order is that of `[hybrid]` in docs/configuration.md. Where it is silent:
//! - What a forward or a group leads to may lie outside of the organization, whoever writes; an alias lends no such
//!   permission, because it is another name of somebody in the directory.
//! - A `+tag` under which a mailbox was found stays on the address, under an alias and a hybrid routing address too, as
//!   with Postfix, unless the send connector says `tags = "drop"`. A forward and a group have another's address, which
//!   knows nothing of the tag. A tag that the directory did not take off is part of a name and is never dropped.
//! - A recipient is ours if its domain is accepted, or if the directory knows it. The second does not help strangers:
//!   they may name addresses of accepted domains only, and what aliases, forwards and groups lead to. So a mailbox whose
//!   primary address is foreign (ann@gmail.example) is reached from the Internet by her address in an accepted domain.
//! - Her own server knows all her addresses, but takes from us only those of accepted domains (Exchange answers 550 5.7.1
//!   to the others, for it would have to relay). So she is sent to as the address that was asked for, else as an alias of
//!   hers that is in an accepted domain, and as the foreign address only where she has no other.
//! - A foreign address whose entry leads straight back (a contact's own external address as its alias) is the host outside.
//! - Without `[hybrid]` mailboxes and unknown recipients of internal-relay domains go by address space, a cloud mailbox
//!   under its hybrid routing address if its entry names one.
//! - The routing domain of a hybrid is an accepted domain of the cloud side, authoritative where none is listed that covers
//!   it. There a mailbox is known by its hybrid routing address too. Only the cloud knows that name: what goes on-premises
//!   goes under the mailbox's own address. The on-premises side has it so only where the domain is listed.
//! - A group of which some members cannot be reached serves the others; [`Rules::expand`] says which failed and why.
//!   A member that cannot be judged now (4yz) holds up the whole recipient: otherwise it would be lost.
//!
//! Not yet: an address literal counts as this relay's own if it is in `listen` or loopback; of wildcards we do not know
//! what they stand for.
//!
//! Standards: RFC 5321 section 4.5.1 (postmaster), 3461 section 5.2 (NOTIFY and ORCPT when relaying), 6533 (`utf-8`).

use std::borrow::Cow;
use std::sync::Arc;

use super::matrix::{self, Bound, Reached, Side, Way};
use super::space::{self, Choice};
use super::{Disagreed, Hop, Reason, Refusal, RefusalKind, Route, Routed};
use crate::config::{
    AcceptedDomain, Config, ConnectorName, DomainKind, Hops, Hybrid, Origin, ReceiveConnector, SendConnector, Tags,
};
use crate::directory::{self, Entry, Found, Lookup, untagged};
use crate::message::{Address, Domain, OriginalRecipient, Recipient};
use crate::random::HashSet;
use crate::smtp::Reply;

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

impl Resolution {
    /// Did a group stand between?
    pub fn is_group(&self) -> bool {
        let mut reasons = self.routed.iter().flat_map(|one| &one.route.because);
        reasons.any(|reason| reason.found().is_some_and(|kind| kind.starts_with(GROUP)))
    }
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
            seen: HashSet::default(),
            looped: HashSet::default(),
        };
        walk.visit(recipient.address.clone(), asking.may_relay, Trail::default())?;
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

    /// May `connector` take mail from this sender? `None` is the null reverse-path, which any may.
    ///
    /// # Errors
    /// The reply to MAIL that says why not.
    pub fn check_sender(&self, connector: &ReceiveConnector, sender: Option<&Address>) -> Result<(), Reply> {
        let Some(domain) = sender.map(Address::domain) else { return Ok(()) };
        let lists = |connector: &ReceiveConnector| {
            let mut listed = connector.sender_domains.iter();
            listed.any(|(name, below)| domain == name || (*below && domain.is_within(name)))
        };
        if !connector.sender_domains.is_empty() && !lists(connector) {
            return Err(Reply::sender_domain_not_allowed(domain));
        }
        // A partner who must come one way comes no other; two such ways are both good.
        let kept_elsewhere = |other: &Arc<ReceiveConnector>| other.only_here && lists(other);
        if self.config.receive_connectors.iter().any(kept_elsewhere) && !(connector.only_here && lists(connector)) {
            return Err(Reply::partner_comes_another_way(domain));
        }
        Ok(())
    }

    /// May somebody from the Internet, by whatever connector, send as this sender? A partner who must come one way does
    /// not come as a stranger.
    ///
    /// # Errors
    /// The reply that says why not.
    pub fn check_stranger(&self, sender: Option<&Address>) -> Result<(), Reply> {
        let Some(domain) = sender.map(Address::domain) else { return Ok(()) };
        let kept = |connector: &Arc<ReceiveConnector>| {
            let mut listed = connector.sender_domains.iter();
            connector.only_here && listed.any(|(name, below)| domain == name || (*below && domain.is_within(name)))
        };
        if self.config.receive_connectors.iter().any(kept) {
            return Err(Reply::partner_comes_another_way(domain));
        }
        Ok(())
    }

    /// The accepted domain that `domain` is of: the longest name, and itself before a pattern.
    pub fn accepted(&self, domain: &Domain) -> Option<&'a AcceptedDomain> {
        AcceptedDomain::of(&self.config.accepted_domains, domain)
    }

    /// The name and type of the accepted domain that `domain` is of. On the cloud side the routing domain is one too:
    /// the mail from on-premises arrives there.
    pub fn ours(&self, domain: &Domain) -> Option<(&'a Domain, DomainKind)> {
        if let Some(accepted) = self.accepted(domain) {
            return Some((&accepted.name, accepted.kind));
        }
        match &self.config.hybrid {
            Some(Hybrid { side: Side::Cloud { .. }, routing_domain, .. }) if routing_domain == domain => {
                Some((routing_domain, DomainKind::Authoritative))
            }
            _ => None,
        }
    }

    /// Whose hybrid routing address this is now: the mailbox's own address.
    pub fn owner(&self, routing: &Address) -> Option<Address> {
        match self.look_up(routing) {
            Looked::Entry(Known { owner: Some(owner), untagged, .. }) => Some(with_tag_of(owner, routing, untagged)),
            Looked::Entry(_) | Looked::Unknown | Looked::Unavailable(_) => None,
        }
    }

    /// What the directory knows under this address, its own or a hybrid routing address.
    fn look_up(&self, address: &Address) -> Looked {
        match self.directory.find(address) {
            Found::Entry { source, entry, untagged } => {
                return Looked::Entry(Known { source, entry, untagged, owner: None });
            }
            Found::Unavailable(why) => return Looked::Unavailable(why),
            Found::Unknown => {}
        }
        match &self.config.hybrid {
            Some(hybrid) if hybrid.routing_domain == *address.domain() => {}
            Some(_) | None => return Looked::Unknown,
        }
        match self.directory.find_owner(address, &|domain| self.rank(domain)) {
            directory::Owner::Entry { source, address, entry, untagged } => {
                Looked::Entry(Known { source, entry, untagged, owner: Some(address) })
            }
            directory::Owner::Unknown => Looked::Unknown,
            directory::Owner::Unavailable(why) => Looked::Unavailable(why),
        }
    }

    /// Which of two owners of a hybrid routing address comes first, by their domains: in the order of accepted domains, and
    /// last those of none. `None` where the directory is not asked, so nobody is found.
    pub fn rank(&self, domain: &Domain) -> Option<usize> {
        let all = &self.config.accepted_domains;
        match self.accepted(domain) {
            Some(AcceptedDomain { kind: DomainKind::ExternalRelay, .. }) => None,
            Some(accepted) => all.iter().position(|one| std::ptr::eq(one, accepted)),
            None => Some(all.len()),
        }
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
    /// Those of them that led back.
    looped: HashSet<String>,
}

struct Step {
    key: String,
    address: Address,
    /// The directory found it without its `+tag`.
    untagged: bool,
    kind: StepKind,
}

/// What stands between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StepKind {
    /// Another name of the same mailbox.
    Alias,
    /// Somebody else is meant: a forward, a group, or postmaster, who is whom the configuration says.
    Leads,
}

/// What the directory says of an address.
enum Looked {
    Entry(Known),
    Unknown,
    Unavailable(String),
}

/// An entry, and how it was found.
struct Known {
    source: Arc<str>,
    entry: Entry,
    untagged: bool,
    /// The entry's own address where it was found by its hybrid routing address.
    owner: Option<Address>,
}

/// What RCPT TO will say.
#[derive(Debug, Clone)]
struct Target {
    address: Address,
    /// The address without its `+tag`, where the directory found it so.
    untagged: Option<Address>,
}

impl Target {
    /// `address`, which the directory may have found without its `+tag`.
    fn new(address: Address, found_untagged: bool) -> Self {
        let untagged = untagged(address.local()).filter(|_| found_untagged);
        let untagged = untagged.and_then(|local| Address::new(local, address.domain().clone()).ok());
        Self { address, untagged }
    }

    /// Another name of the mailbox that was found as `address`, with the same tag.
    fn named(name: Address, address: &Address, found_untagged: bool) -> Self {
        let tagged = with_tag_of(name.clone(), address, found_untagged);
        let untagged = (tagged != name).then_some(name);
        Self { address: tagged, untagged }
    }
}

impl From<Address> for Target {
    /// A tag in it, if there is one, is no affair of ours.
    fn from(address: Address) -> Self {
        Self { address, untagged: None }
    }
}

/// The reasons so far, and of whom the next one speaks.
#[derive(Debug, Clone, Default)]
struct Trail {
    because: Vec<Reason>,
    /// Where it is not the address that RCPT named.
    about: Option<Address>,
}

impl Trail {
    fn push(&mut self, reason: Reason) {
        self.because.push(match &self.about {
            None => reason,
            Some(address) => Reason::About { address: address.clone(), reason: Box::new(reason) },
        });
    }
}

/// `Err` ends the whole recipient; a refusal of one end is kept in `Walk::failed`.
type Ended = Result<(), Refusal>;

impl Walk<'_> {
    /// Resolves `address`. `granted`: it may lie outside of the organization.
    fn visit(&mut self, address: Address, granted: bool, mut because: Trail) -> Ended {
        if !self.path.is_empty() {
            because.about = Some(address.clone());
            let key = address.key();
            if let Some(start) = self.path.iter().position(|step| step.key == key) {
                // Asked for by her external address, a contact is forwarded to it.
                let is_contact = self.path[start].kind == StepKind::Alias && start + 2 == self.path.len();
                if granted && is_contact && self.rules.ours(address.domain()).is_none() {
                    return self.leave(address, granted, because);
                }
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
        let accepted = rules.ours(address.domain());
        if address.local().eq_ignore_ascii_case("postmaster")
            && (accepted.is_some()
                || *address.domain() == rules.config.hostname
                || rules.is_own_literal(address.domain()))
        {
            return self.postmaster(address, because);
        }
        match accepted {
            None => self.outside(address, granted, because),
            Some((name, kind)) => self.inside(address, name, kind, granted, because),
        }
    }

    /// The domain is not an accepted domain. Somebody in the directory may have the address all the same.
    fn outside(&mut self, address: Address, granted: bool, because: Trail) -> Ended {
        // A stranger may not ask for it; but what is ours may lead to it.
        if granted || !self.path.is_empty() {
            match self.rules.directory.find(&address) {
                Found::Entry { source, entry, untagged } if !self.leads_back(&address, &entry) => {
                    return self.found(address, Known { source, entry, untagged, owner: None }, granted, because);
                }
                // What may leave does not wait for a directory that most probably knows nothing of it.
                Found::Unavailable(why) if !granted => {
                    return Err(self.refusal(RefusalKind::DirectoryUnavailable(why), because));
                }
                Found::Entry { .. } | Found::Unavailable(_) | Found::Unknown => {}
            }
        }
        self.leave(address, granted, because)
    }

    /// It is none of the organization's.
    fn leave(&mut self, address: Address, granted: bool, mut because: Trail) -> Ended {
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

    /// Does the entry of `address` lead to the address before it, or to itself?
    fn leads_back(&self, address: &Address, entry: &Entry) -> bool {
        let (Entry::Alias(to) | Entry::Forward(to)) = entry else { return false };
        let key = to.key();
        key == address.key() || self.path.last().is_some_and(|step| step.key == key)
    }

    /// It is.
    fn inside(
        &mut self,
        address: Address,
        name: &Domain,
        kind: DomainKind,
        granted: bool,
        mut because: Trail,
    ) -> Ended {
        if kind == DomainKind::ExternalRelay {
            because.push(not_found(name, kind));
            return self.by_space(address.into(), None, because);
        }
        match self.rules.look_up(&address) {
            Looked::Entry(known) => self.found(address, known, granted, because),
            Looked::Unavailable(why) => Err(self.refusal(RefusalKind::DirectoryUnavailable(why), because)),
            Looked::Unknown => {
                because.push(not_found(name, kind));
                match kind {
                    DomainKind::InternalRelay => self.by_matrix(Bound::Unknown, address, because),
                    DomainKind::Authoritative | DomainKind::ExternalRelay => {
                        self.fail(address, RefusalKind::UnknownRecipient, because)
                    }
                }
            }
        }
    }

    /// The directory knows it.
    fn found(&mut self, address: Address, known: Known, granted: bool, mut because: Trail) -> Ended {
        let Known { source, entry, untagged, owner } = known;
        let kind = words(&entry);
        because.push(match &owner {
            None => Reason::Found { source: source.clone(), kind, untagged },
            Some(owner) => Reason::FoundBehind {
                source: source.clone(),
                owner: owner.clone(),
                kind,
                untagged,
                in_cloud: matches!(entry, Entry::Cloud(_)),
            },
        });
        // As it stands in the directory.
        let entered = || {
            owner.clone().or_else(|| Target::new(address.clone(), untagged).untagged).unwrap_or_else(|| address.clone())
        };
        match entry {
            Entry::OnPremises => {
                let disagreed = Disagreed { mailbox: entered(), source };
                let to = match owner {
                    Some(_) => Target::new(address, untagged),
                    None => self.name_for_hop(Bound::OnPremisesMailbox, address, untagged, &mut because),
                };
                self.mailbox(Bound::OnPremisesMailbox, to, owner, disagreed, because)
            }
            Entry::Cloud(target) => {
                let disagreed = Disagreed { mailbox: entered(), source };
                let bound = Bound::CloudMailbox;
                let to = match (target, &self.rules.config.hybrid) {
                    // It is that address already, and in the cloud itself every name of the mailbox will do.
                    _ if owner.is_some() => Target::new(address, untagged),
                    (_, Some(Hybrid { side: Side::Cloud { .. }, .. })) | (None, None) => {
                        self.name_for_hop(bound, address, untagged, &mut because)
                    }
                    (target, hybrid) => {
                        let to = routing_address(target, hybrid.as_ref(), &address, untagged);
                        if to.address != address {
                            because.push(Reason::Rewritten { from: address, to: to.address.clone() });
                        }
                        to
                    }
                };
                self.mailbox(bound, to, owner, disagreed, because)
            }
            Entry::Alias(of) => {
                let of = with_tag_of(of, &address, untagged);
                self.step(StepKind::Alias, address, untagged, |walk| walk.visit(of, granted, because))
            }
            Entry::Forward(to) => self.step(StepKind::Leads, address, untagged, |walk| walk.visit(to, true, because)),
            Entry::Group(members) => self.step(StepKind::Leads, address, untagged, |walk| {
                members.into_iter().try_for_each(|member| walk.visit(member, true, because.clone()))
            }),
        }
    }

    /// The name under which a mailbox's own server takes its mail from us: `address`, unless its domain is foreign.
    fn name_for_hop(&self, bound: Bound, address: Address, found_untagged: bool, because: &mut Trail) -> Target {
        let rules = self.rules;
        if rules.ours(address.domain()).is_some() {
            return Target::new(address, found_untagged);
        }
        let rank = |domain: &Domain| match &rules.config.hybrid {
            // Only the cloud knows names in the routing domain.
            Some(hybrid) if hybrid.routing_domain == *domain => {
                (bound == Bound::CloudMailbox && rules.ours(domain).is_some()).then_some(usize::MAX)
            }
            Some(_) | None => rules.accepted(domain).and_then(|_| rules.rank(domain)),
        };
        // With its tag whole it is somebody by itself, whom an alias without a tag does not name.
        let mut names = self.path.iter().rev().take_while(|step| step.kind == StepKind::Alias);
        let asked = names.find(|step| step.untagged == found_untagged && rank(step.address.domain()).is_some());
        let to = match asked {
            Some(step) => Target::new(step.address.clone(), found_untagged),
            None => {
                let plain = Target::new(address.clone(), found_untagged).untagged;
                match rules.directory.find_alias(plain.as_ref().unwrap_or(&address), &rank) {
                    Some(alias) => Target::named(alias, &address, found_untagged),
                    None => return Target::new(address, found_untagged),
                }
            }
        };
        because.push(Reason::SentAs { from: address, to: to.address.clone() });
        to
    }

    /// `postmaster` is always accepted. RFC 5321 section 4.5.1.
    fn postmaster(&mut self, address: Address, mut because: Trail) -> Ended {
        let rules = self.rules;
        let configured = &rules.config.postmaster;
        if self.known_postmaster(&address, &because)? {
            return Ok(());
        }
        if address.key() == configured.key() {
            because.push(Reason::Postmaster { instead: None });
        } else {
            because.push(Reason::Postmaster { instead: Some(configured.clone()) });
            let asks_directory =
                rules.accepted(configured.domain()).is_some_and(|domain| domain.kind != DomainKind::ExternalRelay);
            let reached = if asks_directory {
                let mut because = because.clone();
                because.about = Some(configured.clone());
                self.push(StepKind::Leads, address, false);
                let reached = self.known_postmaster(configured, &because);
                self.path.pop();
                reached?
            } else {
                // There the directory is not asked: unknown to it means nothing.
                self.attempt(|walk| walk.visit(configured.clone(), true, because.clone()))?
            };
            if reached {
                return Ok(());
            }
        }
        self.by_matrix(Bound::Postmaster, configured.clone(), because)
    }

    /// Goes where the directory says that `address` goes. False: it does not know it, or that leads nowhere.
    fn known_postmaster(&mut self, address: &Address, because: &Trail) -> Result<bool, Refusal> {
        match self.rules.look_up(address) {
            Looked::Entry(known) => self.attempt(|walk| walk.found(address.clone(), known, true, because.clone())),
            Looked::Unknown => Ok(false),
            Looked::Unavailable(why) => Err(self.refusal(RefusalKind::DirectoryUnavailable(why), because.clone())),
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
    fn step(&mut self, kind: StepKind, address: Address, untagged: bool, go: impl FnOnce(&mut Self) -> Ended) -> Ended {
        self.push(kind, address, untagged);
        let ended = go(self);
        self.path.pop();
        ended
    }

    fn push(&mut self, kind: StepKind, address: Address, untagged: bool) {
        self.path.push(Step { key: address.key(), address, untagged, kind });
    }

    fn reached(&self) -> Reached {
        match self.path.iter().any(|step| step.kind == StepKind::Leads) {
            true => Reached::Led,
            false => Reached::ByName,
        }
    }

    /// A mailbox of the organization. `owner`: its own address, where `to` is its hybrid routing address. `disagreed`: what
    /// is said where the other premises hold it to be here.
    fn mailbox(
        &mut self,
        bound: Bound,
        to: Target,
        owner: Option<Address>,
        disagreed: Disagreed,
        mut because: Trail,
    ) -> Ended {
        let rules = self.rules;
        let Some(hybrid) = &rules.config.hybrid else { return self.by_space(to, None, because) };
        let way = self.way(hybrid, bound, &mut because);
        match (way, owner) {
            (Way::Disagree, _) => self.fail(to.address, RefusalKind::Disagreement(disagreed), because),
            (Way::To(name), Some(owner)) if *name == hybrid.on_premises => {
                let own = Target::named(owner, &to.address, to.untagged.is_some());
                because.push(Reason::Rewritten { from: to.address, to: own.address.clone() });
                let own =
                    self.name_for_hop(Bound::OnPremisesMailbox, own.address, own.untagged.is_some(), &mut because);
                self.go(way, own, because)
            }
            (way, _) => self.go(way, to, because),
        }
    }

    /// Where `[hybrid]` stands its matrix decides, else the address spaces.
    fn by_matrix(&mut self, bound: Bound, to: Address, mut because: Trail) -> Ended {
        let rules = self.rules;
        let Some(hybrid) = &rules.config.hybrid else { return self.by_space(to.into(), None, because) };
        let way = self.way(hybrid, bound, &mut because);
        self.go(way, to.into(), because)
    }

    fn way<'h>(&self, hybrid: &'h Hybrid, bound: Bound, because: &mut Trail) -> Way<'h> {
        let origin = self.asking.origin;
        let matrix::Row { row, key, way } = matrix::row(hybrid, origin, self.reached(), bound);
        because.push(Reason::Matrix { side: hybrid.side, origin, row, key });
        way
    }

    fn go(&mut self, way: Way<'_>, to: Target, because: Trail) -> Ended {
        match way {
            Way::AddressSpace => self.by_space(to, None, because),
            Way::AddressSpaceWithout(barred) => self.by_space(to, Some(barred), because),
            // Only of a mailbox can two sides say different things, and `mailbox` has seen to that.
            Way::Refuse | Way::Disagree => self.fail(to.address, RefusalKind::UnknownRecipient, because),
            Way::To(name) => match self.rules.config.send_connector(name) {
                Some(connector) if connector.enabled => self.end(to, connector, because),
                Some(connector) => self.fail(to.address, RefusalKind::Disabled(connector.name.clone()), because),
                // The configuration was checked for that; but a route to nowhere is no route.
                None => self.fail(to.address, RefusalKind::NoRoute, because),
            },
        }
    }

    fn by_space(&mut self, to: Target, barred: Option<&ConnectorName>, mut because: Trail) -> Ended {
        let rules = self.rules;
        match space::choose_without(&rules.config.send_connectors, to.address.domain(), barred) {
            Choice::Won(connector, reason) => {
                because.push(reason);
                self.end(to, connector, because)
            }
            Choice::Disabled(name) => self.fail(to.address, RefusalKind::Disabled(name), because),
            Choice::Nothing => self.fail(to.address, RefusalKind::NoRoute, because),
        }
    }

    /// The connector stands.
    fn end(&mut self, to: Target, connector: &SendConnector, mut because: Trail) -> Ended {
        if let (Some(size), Some(limit)) = (self.asking.size, connector.max_message_size)
            && size > limit
        {
            return self.fail(to.address, RefusalKind::TooBig { connector: connector.name.clone(), limit }, because);
        }
        if self.routed.len() >= EXPANSION_LIMIT {
            return Err(self.refusal(RefusalKind::TooMany { limit: EXPANSION_LIMIT }, because));
        }
        let to = match to {
            Target { address, untagged: Some(plain) } if connector.tags == Tags::Drop => {
                because.push(Reason::TagDropped { from: address, to: plain.clone(), via: connector.name.clone() });
                plain
            }
            Target { address, .. } => address,
        };
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
            route: Route { via: connector.name.clone(), hop, to, because: because.because },
            reached: self.reached(),
        });
        Ok(())
    }

    /// This end leads nowhere; what the others of a group do is their own affair, unless it may be otherwise later.
    fn fail(&mut self, address: Address, kind: RefusalKind, because: Trail) -> Ended {
        let refusal = self.refusal(kind, because);
        if refusal.is_temporary() {
            return Err(refusal);
        }
        if self.failed.len() >= EXPANSION_LIMIT {
            return Err(Refusal { kind: RefusalKind::TooMany { limit: EXPANSION_LIMIT }, ..refusal });
        }
        self.failed.push(Failed { address, refusal });
        Ok(())
    }

    /// Groups that contain each other lead back in many ways; one of them is told.
    fn fail_loop(&mut self, start: usize, back: Address, because: Trail) -> Ended {
        if !self.looped.insert(back.key()) {
            return Ok(());
        }
        let mut path: Vec<Address> = self.path[start..].iter().map(|step| step.address.clone()).collect();
        path.push(back.clone());
        self.fail(back, RefusalKind::Loop { path }, because)
    }

    fn refusal(&self, kind: RefusalKind, because: Trail) -> Refusal {
        Refusal { asked: self.asked.address.clone(), kind, because: because.because }
    }
}

/// The address under which the cloud knows the cloud mailbox `address`.
fn routing_address(
    target: Option<Address>,
    hybrid: Option<&Hybrid>,
    address: &Address,
    found_untagged: bool,
) -> Target {
    match (target, hybrid) {
        (Some(target), _) => Target::named(target, address, found_untagged),
        // It has been an address's local part, so it can be another's.
        (None, Some(hybrid)) => match Address::new(address.local(), hybrid.routing_domain.clone()) {
            Ok(to) => Target::new(to, found_untagged),
            Err(_) => Target::new(address.clone(), found_untagged),
        },
        (None, None) => Target::new(address.clone(), found_untagged),
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

fn not_found(domain: &Domain, kind: DomainKind) -> Reason {
    let kind = match kind {
        DomainKind::Authoritative => "authoritative",
        DomainKind::InternalRelay => "internal-relay",
        DomainKind::ExternalRelay => "external-relay",
    };
    Reason::NotFound { domain: domain.clone(), kind }
}

/// How the words for a group begin.
const GROUP: &str = "group of ";

/// An entry in the words of `explain`.
fn words(entry: &Entry) -> Cow<'static, str> {
    match entry {
        Entry::OnPremises => "on-premises mailbox".into(),
        Entry::Cloud(_) => "cloud mailbox".into(),
        Entry::Forward(to) => format!("forward to {to}").into(),
        Entry::Group(members) => format!("{GROUP}{}", members.len()).into(),
        Entry::Alias(of) => format!("alias of {of}").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Notify;
    use crate::route::world::{World, address, shown};

    fn check(world: &World, rows: &[(&str, &str, &str)]) {
        for (origin, to, expected) in rows {
            assert_eq!(world.route(origin, to), *expected, "{origin} -> {to}");
        }
    }

    #[test]
    fn on_premises_side_sends_each_mailbox_to_its_premises() {
        let world = World::on_premises()
            .mailbox("anna@contoso.com")
            .cloud_mailbox("david@contoso.com")
            .cloud_mailbox_at("dora@contoso.com", "dora.x@contoso.mail.onmicrosoft.com");
        for origin in ["internet", "on-premises", "cloud", "partner", "client"] {
            check(
                &world,
                &[
                    (origin, "anna@contoso.com", "to-on-premises: anna@contoso.com"),
                    (origin, "ANNA@Contoso.Com", "to-on-premises: ANNA@contoso.com"),
                    (origin, "david@contoso.com", "to-cloud: david@contoso.mail.onmicrosoft.com"),
                    (origin, "dora@contoso.com", "to-cloud: dora.x@contoso.mail.onmicrosoft.com"),
                    (origin, "nobody@contoso.com", "550 5.1.1"),
                    (
                        origin,
                        "anna@sub.contoso.com",
                        if matches!(origin, "internet" | "partner") {
                            "550 5.7.1"
                        } else {
                            "to-internet: anna@sub.contoso.com"
                        },
                    ),
                ],
            );
        }
        check(
            &world,
            &[
                ("internet", "eve@fabrikam.com", "550 5.7.1"),
                ("partner", "eve@fabrikam.com", "550 5.7.1"),
                ("client", "eve@fabrikam.com", "to-internet: eve@fabrikam.com"),
                ("on-premises", "eve@fabrikam.com", "to-internet: eve@fabrikam.com"),
                ("cloud", "eve@fabrikam.com", "to-internet: eve@fabrikam.com"),
                // The routing domain itself is no accepted domain here: an address space serves it.
                ("client", "david@contoso.mail.onmicrosoft.com", "to-cloud: david@contoso.mail.onmicrosoft.com"),
                ("internet", "david@contoso.mail.onmicrosoft.com", "550 5.7.1"),
            ],
        );
    }

    /// The cloud side, and an organization of which each entry is in another state.
    fn cloud_side() -> World {
        World::cloud()
            .accepted("fabrikam.example", "internal-relay")
            .accepted("foreign.example", "external-relay")
            .cloud_mailbox("david@contoso.com")
            .cloud_mailbox_at("dora@contoso.com", "dora.x@contoso.mail.onmicrosoft.com")
            .mailbox("julie@contoso.com")
            .forward("kate@contoso.com", "kate@tailspintoys.com")
            .forward("moved@contoso.com", "julie@contoso.com")
            .group("team@contoso.com", "david@contoso.com julie@contoso.com")
            .alias("j@contoso.com", "julie@contoso.com")
            .cloud_mailbox("kim@fabrikam.example")
            .mailbox("kim@contoso.com")
            .cloud_mailbox("lea@fabrikam.example")
            .cloud_mailbox("lea@contoso.com")
            .cloud_mailbox("max@foreign.example")
            .alias("own@contoso.mail.onmicrosoft.com", "dora@contoso.com")
    }

    const ROUTING: &str = "contoso.mail.onmicrosoft.com";

    #[test]
    fn on_the_cloud_side_a_mailbox_is_known_by_its_hybrid_routing_address() {
        let world = cloud_side();
        for (local, expected) in [
            ("david", "to-cloud: david@contoso.mail.onmicrosoft.com"),
            ("DAVID", "to-cloud: DAVID@contoso.mail.onmicrosoft.com"),
            ("david+news", "to-cloud: david+news@contoso.mail.onmicrosoft.com"),
            ("dora.x", "to-cloud: dora.x@contoso.mail.onmicrosoft.com"),
            ("dora.x+news", "to-cloud: dora.x+news@contoso.mail.onmicrosoft.com"),
            ("dora", "550 5.1.1"),
            // A cloud mailbox of a later domain is nearer than an on-premises one of an earlier.
            ("kim", "to-cloud: kim@contoso.mail.onmicrosoft.com"),
            ("lea", "to-cloud: lea@contoso.mail.onmicrosoft.com"),
            // The directory itself has it.
            ("own", "to-cloud: dora@contoso.com"),
            // A domain that no directory is asked about has no mailboxes.
            ("max", "550 5.1.1"),
            ("nobody", "550 5.1.1"),
            ("kate", "to-internet: kate@tailspintoys.com"),
            ("moved", "to-on-premises: julie@contoso.com"),
            ("postmaster", "to-cloud: postmaster@contoso.com"),
        ] {
            for origin in ["on-premises", "internet", "cloud"] {
                assert_eq!(world.route(origin, &format!("{local}@{ROUTING}")), expected, "{origin} -> {local}");
            }
        }
        // It is an on-premises mailbox, whatever it is called: there it goes under the name that is known there.
        check(
            &world,
            &[
                ("on-premises", "julie@contoso.mail.onmicrosoft.com", "550 5.4.6"),
                ("on-premises", "julie+x@contoso.mail.onmicrosoft.com", "550 5.4.6"),
                ("on-premises", "j@contoso.mail.onmicrosoft.com", "550 5.4.6"),
                ("internet", "julie@contoso.mail.onmicrosoft.com", "to-on-premises: julie@contoso.com"),
                ("cloud", "julie+x@contoso.mail.onmicrosoft.com", "to-on-premises: julie+x@contoso.com"),
                ("cloud", "j@contoso.mail.onmicrosoft.com", "to-on-premises: julie@contoso.com"),
                (
                    "on-premises",
                    "team@contoso.mail.onmicrosoft.com",
                    "to-cloud: david@contoso.com; to-on-premises: julie@contoso.com",
                ),
            ],
        );
        // On-premises first: there nobody has heard of the routing address.
        let first = cloud_side().first_hop("on-premises");
        check(
            &first,
            &[
                ("internet", "dora.x@contoso.mail.onmicrosoft.com", "to-on-premises: dora@contoso.com"),
                ("internet", "dora@contoso.com", "to-on-premises: dora@contoso.com"),
                ("on-premises", "dora.x@contoso.mail.onmicrosoft.com", "to-cloud: dora.x@contoso.mail.onmicrosoft.com"),
            ],
        );
        check(&World::cloud().unavailable(), &[("on-premises", "david@contoso.mail.onmicrosoft.com", "451 4.4.3")]);
    }

    #[test]
    fn the_routing_domain_is_what_it_is_listed_as() {
        let unknown = "nobody@contoso.mail.onmicrosoft.com";
        let known = "david@contoso.mail.onmicrosoft.com";
        for (kind, to_unknown, to_known) in [
            ("authoritative", "550 5.1.1", "to-cloud: david@contoso.mail.onmicrosoft.com"),
            (
                "internal-relay",
                "to-on-premises: nobody@contoso.mail.onmicrosoft.com",
                "to-cloud: david@contoso.mail.onmicrosoft.com",
            ),
            (
                "external-relay",
                "to-cloud: nobody@contoso.mail.onmicrosoft.com",
                "to-cloud: david@contoso.mail.onmicrosoft.com",
            ),
        ] {
            for name in ["contoso.mail.onmicrosoft.com", "*.onmicrosoft.com"] {
                let world = World::cloud().cloud_mailbox("david@contoso.com").accepted(name, kind);
                check(&world, &[("cloud", unknown, to_unknown), ("internet", known, to_known)]);
            }
        }
        // The on-premises side relays it by address space, whoever is known, unless it is listed there.
        let world = World::on_premises().cloud_mailbox("david@contoso.com").mailbox("julie@contoso.com");
        check(
            &world,
            &[("client", unknown, "to-cloud: nobody@contoso.mail.onmicrosoft.com"), ("internet", known, "550 5.7.1")],
        );
        let world = world.internet("cloud");
        check(&world, &[("client", unknown, "to-cloud: nobody@contoso.mail.onmicrosoft.com")]);
        let listed = world.accepted("contoso.mail.onmicrosoft.com", "authoritative");
        check(
            &listed,
            &[
                ("client", unknown, "550 5.1.1"),
                ("internet", known, "to-cloud: david@contoso.mail.onmicrosoft.com"),
                ("cloud", "julie@contoso.mail.onmicrosoft.com", "to-on-premises: julie@contoso.com"),
            ],
        );
    }

    #[test]
    fn two_sides_that_disagree_are_told_what_each_believes() {
        let world = cloud_side();
        let refused = |to: &str| world.resolve("on-premises", to, None).unwrap_err();
        let direct = refused("julie@contoso.com");
        assert_eq!(
            direct.to_reply().to_string().replace('\n', " "),
            "550 5.4.6 <julie@contoso.com>: the on-premises side sent this here, but recipients.csv (here, cloud) has it \
             as an on-premises mailbox; mend one of the two directories"
        );
        let behind = refused("julie+x@contoso.mail.onmicrosoft.com");
        assert!(
            behind.to_reply().to_string().contains("has julie@contoso.com as an on-premises mailbox"),
            "{}",
            behind.to_reply()
        );
        assert_eq!(
            behind.to_string(),
            "the on-premises side sent it here, but recipients.csv (here, cloud) has julie@contoso.com as an \
             on-premises mailbox; mend one of the two directories"
        );
        let because: Vec<_> = behind.because.iter().map(ToString::to_string).collect();
        assert_eq!(
            because,
            [
                "found in recipients.csv without its tag as what would be the hybrid routing address of \
                 julie@contoso.com: on-premises mailbox",
                "side cloud, from on-premises, on-premises mailbox, though it was sent here from there: none",
            ]
        );
        // No line is longer than a line may be, however long the names.
        let long = format!("{}@{}.com", "x".repeat(64), vec!["y".repeat(60); 3].join("."));
        let world = World::cloud().accepted(&long[65..], "authoritative").mailbox(&long);
        let mut wire = bytes::BytesMut::new();
        world.resolve("on-premises", &long, None).unwrap_err().to_reply().write_to(&mut wire);
        let lines: Vec<_> = std::str::from_utf8(&wire).unwrap().split_inclusive("\r\n").collect();
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines.iter().all(|line| line.len() <= crate::smtp::reply::LINE_LIMIT), "{lines:?}");
    }

    #[test]
    fn a_disagreement_is_temporary_for_the_grace_and_no_longer() {
        use std::time::{Duration, Instant};

        let world = cloud_side();
        let (start, grace) = (Instant::now(), Duration::from_secs(3600));
        let mut known = crate::route::Disagreements::default();
        // Under whatever name it comes, it is one mailbox that moves.
        for (minute, to, expected) in [
            (0, "julie@contoso.com", "451 4.4.6"),
            (30, "julie@contoso.mail.onmicrosoft.com", "451 4.4.6"),
            (59, "julie+news@contoso.com", "451 4.4.6"),
            (59, "JULIE@contoso.com", "451 4.4.6"),
            (60, "julie@contoso.mail.onmicrosoft.com", "550 5.4.6"),
            (60, "j@contoso.com", "550 5.4.6"),
            (60, "julie+x@contoso.com", "550 5.4.6"),
            (60, "kim@contoso.com", "451 4.4.6"),
            // Nothing else is softened.
            (60, "nobody@contoso.com", "550 5.1.1"),
        ] {
            let now = start + Duration::from_secs(minute * 60);
            let refusal = world.resolve("on-premises", to, None).unwrap_err().within_grace(&mut known, now, grace);
            assert_eq!(shown(Err(refusal.clone())), expected, "{to} at {minute}");
            assert_eq!(refusal.is_temporary(), expected.starts_with('4'));
        }
        let refusal = world.resolve("on-premises", "julie@contoso.com", None).unwrap_err();
        let at_once = refusal.within_grace(&mut crate::route::Disagreements::default(), start, Duration::ZERO);
        assert_eq!(shown(Err(at_once)), "550 5.4.6");
    }

    #[test]
    fn a_postmaster_on_the_other_side_is_reached_there() {
        // The configuration leads to somebody else, as a forward does: no disagreement.
        let world = World::cloud().postmaster("anna@contoso.com").mailbox("anna@contoso.com");
        check(
            &world,
            &[
                ("on-premises", "postmaster@mail.contoso.com", "to-on-premises: anna@contoso.com"),
                ("on-premises", "anna@contoso.com", "550 5.4.6"),
                ("internet", "postmaster@contoso.mail.onmicrosoft.com", "to-on-premises: anna@contoso.com"),
            ],
        );
        assert_eq!(
            world.reasons("on-premises", "postmaster@contoso.com"),
            [[
                "postmaster is always accepted, here as anna@contoso.com",
                "anna@contoso.com: found in recipients.csv: on-premises mailbox",
                "anna@contoso.com: side cloud, from on-premises, on-premises mailbox, by forward or group: \
                 hybrid.on_premises",
            ]]
        );
        // Always accepted, so also where the two sides disagree about it.
        let world = World::cloud().mailbox("postmaster@contoso.com");
        check(&world, &[("on-premises", "postmaster@contoso.com", "to-cloud: postmaster@contoso.com")]);
    }

    #[test]
    fn reasons_behind_groups_name_the_member() {
        let world = World::cloud()
            .cloud_mailbox("david@contoso.com")
            .group("team@contoso.com", "inner@contoso.com nobody@contoso.com")
            .group("inner@contoso.com", "david@contoso.com eve@fabrikam.com");
        assert_eq!(
            world.reasons("on-premises", "team@contoso.com"),
            [
                vec![
                    "found in recipients.csv: group of 2",
                    "inner@contoso.com: found in recipients.csv: group of 2",
                    "david@contoso.com: found in recipients.csv: cloud mailbox",
                    "david@contoso.com: side cloud, from on-premises, cloud mailbox: hybrid.cloud",
                ],
                vec![
                    "found in recipients.csv: group of 2",
                    "inner@contoso.com: found in recipients.csv: group of 2",
                    "eve@fabrikam.com: fabrikam.com is not an accepted domain; receive connector door may relay",
                    "eve@fabrikam.com: side cloud, from on-premises, to the Internet, and it has been on-premises: \
                     address space",
                    "eve@fabrikam.com: address space *: to-internet (cost 1)",
                ],
            ]
        );
        let failed = world.resolve("on-premises", "team@contoso.com", None).unwrap().failed;
        assert_eq!(
            failed[0].refusal.because.last().unwrap().to_string(),
            "nobody@contoso.com: not in the directory; contoso.com is authoritative"
        );
        assert_eq!(
            world.reasons("on-premises", "david@contoso.mail.onmicrosoft.com"),
            [[
                "found in recipients.csv as the hybrid routing address of david@contoso.com: cloud mailbox",
                "side cloud, from on-premises, cloud mailbox: hybrid.cloud",
            ]]
        );
    }

    #[test]
    fn the_hops_are_the_connectors() {
        let world = World::on_premises().mailbox("anna@contoso.com");
        for (to, expected) in [
            ("anna@contoso.com", Hop::SmartHosts),
            ("eve@fabrikam.com", Hop::Mx(Domain::parse("fabrikam.com").unwrap())),
            ("eve@[192.0.2.1]", Hop::Mx(Domain::parse("[192.0.2.1]").unwrap())),
        ] {
            let routed = world.resolve("client", to, None).unwrap().routed;
            assert_eq!(routed[0].route.hop, expected, "{to}");
        }
    }

    #[test]
    fn internet_mail_leaves_where_the_organization_said() {
        let direct = World::on_premises().connector("to-partner", &["*.fabrikam.com"]);
        check(
            &direct,
            &[
                ("client", "eve@fabrikam.com", "to-partner: eve@fabrikam.com"),
                ("client", "eve@x.fabrikam.com", "to-partner: eve@x.fabrikam.com"),
                ("client", "eve@example.org", "to-internet: eve@example.org"),
            ],
        );
        // Scenarios 1, 2 and 4. The address does not change, and no address space is asked.
        let cloud = direct.internet("cloud");
        for origin in ["client", "on-premises", "cloud"] {
            check(
                &cloud,
                &[
                    (origin, "eve@fabrikam.com", "to-cloud: eve@fabrikam.com"),
                    (origin, "eve@example.org", "to-cloud: eve@example.org"),
                ],
            );
        }
        check(&cloud, &[("internet", "eve@example.org", "550 5.7.1")]);
    }

    #[test]
    fn forwards_and_groups_may_lead_outside_and_aliases_may_not() {
        // A directory entry of type forward is the explicit rule.
        let world = World::on_premises()
            .mailbox("anna@contoso.com")
            .cloud_mailbox("david@contoso.com")
            .forward("old@contoso.com", "eve@fabrikam.com")
            .forward("former@contoso.com", "david@contoso.com")
            .alias("a.s@contoso.com", "anna@contoso.com")
            .alias("ghost@contoso.com", "nobody@contoso.com")
            .alias("away@contoso.com", "eve@fabrikam.com")
            .group("team@contoso.com", "anna@contoso.com david@contoso.com eve@fabrikam.com")
            .group("all@contoso.com", "team@contoso.com a.s@contoso.com former@contoso.com nobody@contoso.com")
            .group("none@contoso.com", "nobody@contoso.com ghost@contoso.com");
        for origin in ["internet", "partner", "cloud"] {
            check(
                &world,
                &[
                    (origin, "old@contoso.com", "to-internet: eve@fabrikam.com"),
                    (origin, "former@contoso.com", "to-cloud: david@contoso.mail.onmicrosoft.com"),
                    (origin, "a.s@contoso.com", "to-on-premises: anna@contoso.com"),
                    (origin, "ghost@contoso.com", "550 5.1.1"),
                    (
                        origin,
                        "team@contoso.com",
                        "to-on-premises: anna@contoso.com; to-cloud: david@contoso.mail.onmicrosoft.com; \
                     to-internet: eve@fabrikam.com",
                    ),
                    // Who is reached twice gets one copy.
                    (
                        origin,
                        "all@contoso.com",
                        "to-on-premises: anna@contoso.com; to-cloud: david@contoso.mail.onmicrosoft.com; \
                     to-internet: eve@fabrikam.com; [nobody@contoso.com: 550 5.1.1]",
                    ),
                    (origin, "none@contoso.com", "550 5.1.1"),
                ],
            );
        }
        check(
            &world,
            &[
                ("internet", "away@contoso.com", "550 5.7.1"),
                ("client", "away@contoso.com", "to-internet: eve@fabrikam.com"),
            ],
        );
        check(&world.internet("cloud"), &[("internet", "old@contoso.com", "to-cloud: eve@fabrikam.com")]);
    }

    #[test]
    fn s112_loops_end_in_5_4_6_and_harm_nobody_else() {
        let world = World::on_premises()
            .mailbox("anna@contoso.com")
            .forward("self@contoso.com", "Self@contoso.com")
            .forward("a@contoso.com", "b@contoso.com")
            .alias("b@contoso.com", "c@contoso.com")
            .group("c@contoso.com", "A@contoso.com")
            .group("team@contoso.com", "anna@contoso.com other@contoso.com a@contoso.com")
            .group("other@contoso.com", "team@contoso.com anna@contoso.com")
            .forward("tag@contoso.com", "tag+x@contoso.com");
        check(
            &world,
            &[
                ("internet", "self@contoso.com", "550 5.4.6"),
                ("internet", "a@contoso.com", "550 5.4.6"),
                ("internet", "b@contoso.com", "550 5.4.6"),
                ("internet", "c@contoso.com", "550 5.4.6"),
                ("internet", "tag@contoso.com", "550 5.4.6"),
                (
                    "internet",
                    "team@contoso.com",
                    "to-on-premises: anna@contoso.com; [team@contoso.com: 550 5.4.6]; [A@contoso.com: 550 5.4.6]",
                ),
            ],
        );
        let refusal = world.resolve("internet", "a@contoso.com", None).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "leads back to itself: a@contoso.com -> b@contoso.com -> c@contoso.com -> A@contoso.com"
        );
        // The circle is named, not the way to it.
        let refusal = World::on_premises()
            .forward("in@contoso.com", "x@contoso.com")
            .forward("x@contoso.com", "y@contoso.com")
            .forward("y@contoso.com", "x@contoso.com")
            .resolve("internet", "in@contoso.com", None)
            .unwrap_err();
        assert_eq!(refusal.asked, address("in@contoso.com"));
        assert_eq!(refusal.to_string(), "leads back to itself: x@contoso.com -> y@contoso.com -> x@contoso.com");
    }

    #[test]
    fn expansion_has_limits() {
        let chain = |length: usize| {
            (0..length).fold(World::on_premises().mailbox(&format!("u{length}@contoso.com")), |world, number| {
                world.forward(&format!("u{number}@contoso.com"), &format!("u{}@contoso.com", number + 1))
            })
        };
        check(&chain(49), &[("internet", "u0@contoso.com", "to-on-premises: u49@contoso.com")]);
        check(&chain(51), &[("internet", "u0@contoso.com", "550 5.4.6")]);

        let group = |size: usize| {
            let members: Vec<_> = (0..size).map(|number| address(&format!("u{number}@fabrikam.com"))).collect();
            World::on_premises().entry("big@contoso.com", Entry::Group(members))
        };
        assert_eq!(group(10_000).resolve("internet", "big@contoso.com", None).unwrap().routed.len(), 10_000);
        check(&group(10_001), &[("internet", "big@contoso.com", "550 5.3.0")]);

        // Every group contains all others: without a memory of what was seen this would take 40 factorial steps.
        let all: Vec<_> = (0..40).map(|number| format!("g{number}@contoso.com")).collect();
        let all = all.join(" ");
        let world = (0..40).fold(World::on_premises().mailbox("anna@contoso.com"), |world, number| {
            world.group(&format!("g{number}@contoso.com"), &format!("{all} anna@contoso.com"))
        });
        let resolution = world.resolve("internet", "g0@contoso.com", None).unwrap();
        assert_eq!(resolution.routed.len(), 1);
        assert_eq!(resolution.failed.len(), 40, "each is told of once");
    }

    #[test]
    fn tags_stay_on_mailboxes_and_not_on_what_is_anothers() {
        let world = World::on_premises()
            .mailbox("anna@contoso.com")
            .cloud_mailbox("david@contoso.com")
            .cloud_mailbox("david+special@contoso.com")
            .cloud_mailbox_at("dora@contoso.com", "d@contoso.mail.onmicrosoft.com")
            .cloud_mailbox_at("tagged@contoso.com", "t+own@contoso.mail.onmicrosoft.com")
            .mailbox("anna+vip@contoso.com")
            .alias("a.s@contoso.com", "anna@contoso.com")
            .forward("old@contoso.com", "eve@fabrikam.com")
            .group("team@contoso.com", "anna@contoso.com");
        let long = format!("dora+{}@contoso.com", "x".repeat(59));
        check(
            &world,
            &[
                ("internet", "anna+news@contoso.com", "to-on-premises: anna+news@contoso.com"),
                ("internet", "david+news@contoso.com", "to-cloud: david+news@contoso.mail.onmicrosoft.com"),
                ("internet", "david+SPECIAL@contoso.com", "to-cloud: david+SPECIAL@contoso.mail.onmicrosoft.com"),
                ("internet", "dora+News@contoso.com", "to-cloud: d+News@contoso.mail.onmicrosoft.com"),
                ("internet", "tagged+news@contoso.com", "to-cloud: t+own@contoso.mail.onmicrosoft.com"),
                ("internet", "a.s+vip@contoso.com", "to-on-premises: anna+vip@contoso.com"),
                ("internet", "old+news@contoso.com", "to-internet: eve@fabrikam.com"),
                ("internet", "team+news@contoso.com", "to-on-premises: anna@contoso.com"),
                ("internet", "nobody+anna@contoso.com", "550 5.1.1"),
                ("internet", "+anna@contoso.com", "550 5.1.1"),
                ("internet", &long, &format!("to-cloud: d+{}@contoso.mail.onmicrosoft.com", "x".repeat(59))),
            ],
        );
    }

    #[test]
    fn a_connector_may_drop_the_tag_that_the_directory_took_off() {
        let world = World::on_premises()
            .accepted("relay.example", "internal-relay")
            .mailbox("anna@contoso.com")
            .mailbox("anna+vip@contoso.com")
            .mailbox("ann@gmail.example")
            .alias("ann@contoso.com", "ann@gmail.example")
            .cloud_mailbox("david@contoso.com")
            .cloud_mailbox_at("dora@contoso.com", "d@contoso.mail.onmicrosoft.com")
            .cloud_mailbox_at("tagged@contoso.com", "t+own@contoso.mail.onmicrosoft.com")
            .alias("a.s@contoso.com", "anna@contoso.com")
            .alias("vip@contoso.com", "anna+vip@contoso.com")
            .forward("old@contoso.com", "eve+lists@fabrikam.com")
            .forward("moved@contoso.com", "anna+moved@contoso.com")
            .group("team@contoso.com", "anna+team@contoso.com david@contoso.com")
            .drops_tags("to-on-premises");
        check(
            &world,
            &[
                ("internet", "anna@contoso.com", "to-on-premises: anna@contoso.com"),
                ("internet", "Anna+news@contoso.com", "to-on-premises: Anna@contoso.com"),
                ("internet", "anna+a+b@contoso.com", "to-on-premises: anna@contoso.com"),
                ("internet", "a.s+news@contoso.com", "to-on-premises: anna@contoso.com"),
                ("internet", "ann+news@contoso.com", "to-on-premises: ann@contoso.com"),
                ("client", "ann+news@gmail.example", "to-on-premises: ann@contoso.com"),
                ("internet", "moved@contoso.com", "to-on-premises: anna@contoso.com"),
                ("internet", "moved+x@contoso.com", "to-on-premises: anna@contoso.com"),
                // A name of its own, not a tag.
                ("internet", "anna+VIP@contoso.com", "to-on-premises: anna+VIP@contoso.com"),
                ("internet", "vip@contoso.com", "to-on-premises: anna+vip@contoso.com"),
                ("internet", "a.s+vip@contoso.com", "to-on-premises: anna+vip@contoso.com"),
                // Other connectors keep it.
                ("internet", "david+news@contoso.com", "to-cloud: david+news@contoso.mail.onmicrosoft.com"),
                ("internet", "dora+news@contoso.com", "to-cloud: d+news@contoso.mail.onmicrosoft.com"),
                (
                    "internet",
                    "team+x@contoso.com",
                    "to-on-premises: anna@contoso.com; to-cloud: david@contoso.mail.onmicrosoft.com",
                ),
                // The other premises may know somebody of that name.
                ("internet", "nobody+x@relay.example", "to-cloud: nobody+x@relay.example"),
            ],
        );
        assert_eq!(
            world.reasons("internet", "a.s+news@contoso.com"),
            [[
                "found in recipients.csv without its tag: alias of anna@contoso.com",
                "anna+news@contoso.com: found in recipients.csv without its tag: on-premises mailbox",
                "anna+news@contoso.com: side on-premises, from the Internet, on-premises mailbox: hybrid.on_premises",
                "anna+news@contoso.com: sent as anna@contoso.com: send connector to-on-premises drops tags",
            ]]
        );
        let everywhere = world.drops_tags("to-cloud").drops_tags("to-internet");
        check(
            &everywhere,
            &[
                ("internet", "david+news@contoso.com", "to-cloud: david@contoso.mail.onmicrosoft.com"),
                ("internet", "dora+news@contoso.com", "to-cloud: d@contoso.mail.onmicrosoft.com"),
                // The tag of the target is the directory's.
                ("internet", "tagged+news@contoso.com", "to-cloud: t+own@contoso.mail.onmicrosoft.com"),
                // So is that of a forward; and what is outside is not ours to change.
                ("internet", "old+x@contoso.com", "to-internet: eve+lists@fabrikam.com"),
                ("client", "eve+x@fabrikam.com", "to-internet: eve+x@fabrikam.com"),
            ],
        );
        // The cloud side, where a mailbox is found by its hybrid routing address too.
        let cloud = cloud_side().drops_tags("to-cloud").drops_tags("to-on-premises");
        check(
            &cloud,
            &[
                ("internet", "david+x@contoso.com", "to-cloud: david@contoso.com"),
                ("on-premises", "david+x@contoso.mail.onmicrosoft.com", "to-cloud: david@contoso.mail.onmicrosoft.com"),
                (
                    "on-premises",
                    "dora.x+y@contoso.mail.onmicrosoft.com",
                    "to-cloud: dora.x@contoso.mail.onmicrosoft.com",
                ),
                ("internet", "julie+x@contoso.com", "to-on-premises: julie@contoso.com"),
                ("cloud", "julie+x@contoso.mail.onmicrosoft.com", "to-on-premises: julie@contoso.com"),
                ("on-premises", "julie+x@contoso.com", "550 5.4.6"),
            ],
        );
        // A plain relay.
        let plain = World::plain().connector("out", &["*"]).mailbox("anna@contoso.com").drops_tags("out");
        check(
            &plain,
            &[
                ("internet", "anna+x@contoso.com", "out: anna@contoso.com"),
                ("client", "eve+x@fabrikam.com", "out: eve+x@fabrikam.com"),
            ],
        );
    }

    /// Ann's primary address is at gmail.example, which is no accepted domain; dan's and ida's mailboxes are in the cloud.
    fn foreign_primaries(world: World) -> World {
        world
            .accepted("x.example", "external-relay")
            .mailbox("ann@gmail.example")
            .alias("ann@contoso.com", "Ann@gmail.example")
            .alias("a.b@contoso.com", "ann@gmail.example")
            .alias("other@outlook.example", "ann@gmail.example")
            .alias("ann@contoso.mail.onmicrosoft.com", "ann@gmail.example")
            .mailbox("bea@gmail.example")
            .alias("bea@x.example", "bea@gmail.example")
            .cloud_mailbox_at("dan@gmail.example", "dan.b@contoso.mail.onmicrosoft.com")
            .alias("dan@contoso.com", "dan@gmail.example")
            .cloud_mailbox("ida@gmail.example")
            .alias("i@contoso.com", "ida@gmail.example")
            .forward("eve@fabrikam.com", "eve@tailspintoys.com")
            .alias("eve@contoso.com", "eve@fabrikam.com")
            .group("club@fabrikam.com", "ann@gmail.example dan@gmail.example")
            .alias("club@contoso.com", "club@fabrikam.com")
            .group("team@contoso.com", "ann@gmail.example ann@contoso.com dan@gmail.example x@gmail.example")
            .forward("fwd@contoso.com", "ann@gmail.example")
            .forward("kate@contoso.com", "kate@tailspintoys.com")
            .alias("kate@tailspintoys.com", "kate@contoso.com")
            .alias("gone@contoso.com", "nobody@gmail.example")
    }

    #[test]
    fn a_recipient_in_a_foreign_domain_is_what_the_directory_says() {
        let world = foreign_primaries(World::on_premises());
        let dan = "to-cloud: dan.b@contoso.mail.onmicrosoft.com";
        for origin in ["internet", "partner", "on-premises", "cloud", "client"] {
            let stranger = matches!(origin, "internet" | "partner");
            let or_denied = |inside: &'static str| if stranger { "550 5.7.1" } else { inside };
            check(
                &world,
                &[
                    // The domain is not ours: strangers have no business with it, whoever stands in the directory.
                    (origin, "ann@gmail.example", or_denied("to-on-premises: ann@contoso.com")),
                    (origin, "ann+x@gmail.example", or_denied("to-on-premises: ann+x@contoso.com")),
                    (origin, "other@outlook.example", or_denied("to-on-premises: ann@contoso.com")),
                    (origin, "bea@gmail.example", or_denied("to-on-premises: bea@gmail.example")),
                    (origin, "dan@gmail.example", or_denied(dan)),
                    (origin, "ida@gmail.example", or_denied("to-cloud: ida@contoso.mail.onmicrosoft.com")),
                    (origin, "eve@fabrikam.com", or_denied("to-internet: eve@tailspintoys.com")),
                    (origin, "kate@tailspintoys.com", or_denied("to-internet: kate@tailspintoys.com")),
                    (origin, "x@gmail.example", or_denied("to-internet: x@gmail.example")),
                    // Under the name that was asked for, which her server takes from us.
                    (origin, "ann@contoso.com", "to-on-premises: ann@contoso.com"),
                    (origin, "a.b@contoso.com", "to-on-premises: a.b@contoso.com"),
                    (origin, "a.b+x@contoso.com", "to-on-premises: a.b+x@contoso.com"),
                    (origin, "dan@contoso.com", dan),
                    (origin, "i@contoso.com", "to-cloud: ida@contoso.mail.onmicrosoft.com"),
                    (origin, "eve@contoso.com", "to-internet: eve@tailspintoys.com"),
                    (origin, "fwd@contoso.com", "to-on-premises: ann@contoso.com"),
                    (origin, "club@contoso.com", &format!("to-on-premises: ann@contoso.com; {dan}")),
                    (
                        origin,
                        "team@contoso.com",
                        &format!("to-on-premises: ann@contoso.com; {dan}; to-internet: x@gmail.example"),
                    ),
                    // A contact's external address is the host outside.
                    (origin, "kate@contoso.com", "to-internet: kate@tailspintoys.com"),
                    (origin, "gone@contoso.com", or_denied("to-internet: nobody@gmail.example")),
                ],
            );
        }
        assert_eq!(
            world.reasons("client", "ann@gmail.example"),
            [[
                "found in recipients.csv: on-premises mailbox",
                "sent as ann@contoso.com: gmail.example is not an accepted domain",
                "side on-premises, from a client, on-premises mailbox: hybrid.on_premises",
            ]]
        );
        // Where Internet mail leaves through the cloud it is all the same.
        check(&world.internet("cloud"), &[("client", "ann@gmail.example", "to-on-premises: ann@contoso.com")]);
    }

    #[test]
    fn the_cloud_side_knows_a_recipient_in_a_foreign_domain_too() {
        let world = foreign_primaries(World::cloud());
        for (origin, denied) in [("internet", true), ("cloud", false)] {
            let or_denied = |inside: &'static str| if denied { "550 5.7.1" } else { inside };
            check(
                &world,
                &[
                    (origin, "ann@gmail.example", or_denied("to-on-premises: ann@contoso.com")),
                    (origin, "ann@contoso.com", "to-on-premises: ann@contoso.com"),
                    (origin, "ann@contoso.mail.onmicrosoft.com", "to-on-premises: ann@contoso.com"),
                    (origin, "fwd@contoso.com", "to-on-premises: ann@contoso.com"),
                    (origin, "dan@gmail.example", or_denied("to-cloud: dan@contoso.com")),
                    (origin, "dan@contoso.com", "to-cloud: dan@contoso.com"),
                    (origin, "dan.b@contoso.mail.onmicrosoft.com", "to-cloud: dan.b@contoso.mail.onmicrosoft.com"),
                    (origin, "ida@contoso.mail.onmicrosoft.com", "to-cloud: ida@contoso.mail.onmicrosoft.com"),
                    (
                        origin,
                        "team@contoso.com",
                        "to-on-premises: ann@contoso.com; to-cloud: dan@contoso.com; to-internet: x@gmail.example",
                    ),
                ],
            );
        }
        check(
            &world,
            &[
                // What the on-premises side sends.
                ("on-premises", "dan.b@contoso.mail.onmicrosoft.com", "to-cloud: dan.b@contoso.mail.onmicrosoft.com"),
                ("on-premises", "ida@contoso.mail.onmicrosoft.com", "to-cloud: ida@contoso.mail.onmicrosoft.com"),
                ("on-premises", "ann@contoso.com", "550 5.4.6"),
                ("on-premises", "bea@contoso.mail.onmicrosoft.com", "550 5.4.6"),
            ],
        );
        let refusal = world.resolve("on-premises", "ann@contoso.com", None).unwrap_err();
        assert!(refusal.to_string().contains("has Ann@gmail.example as an on-premises mailbox"), "{refusal}");
        // On-premises first.
        check(
            &world.first_hop("on-premises"),
            &[
                ("internet", "dan.b@contoso.mail.onmicrosoft.com", "to-on-premises: dan@contoso.com"),
                ("internet", "i@contoso.com", "to-on-premises: i@contoso.com"),
            ],
        );
    }

    #[test]
    fn a_directory_that_cannot_answer_holds_up_no_mail_for_the_internet() {
        check(&World::on_premises().unavailable(), &[("client", "eve@fabrikam.com", "to-internet: eve@fabrikam.com")]);
        // Without [hybrid] the address space of the name decides.
        let plain = World::plain()
            .smart("inside", &["contoso.com"], "mail.inside.contoso.com")
            .connector("out", &["*"])
            .mailbox("ann@gmail.example")
            .alias("ann@contoso.com", "ann@gmail.example");
        for to in ["ann@contoso.com", "ann@gmail.example"] {
            check(&plain, &[("client", to, "inside: ann@contoso.com")]);
        }
    }

    #[test]
    fn c038_postmaster_is_always_accepted() {
        let domains = |world: World| {
            world.accepted("*.fabrikam.example", "internal-relay").accepted("x.example", "external-relay")
        };
        // Nobody knows it: to the own side, as the configured postmaster.
        let nobody = domains(World::on_premises());
        for to in [
            "postmaster@contoso.com",
            "POSTMASTER@contoso.com",
            "\"postmaster\"@contoso.com",
            "PostMaster@mail.contoso.com",
            "postmaster@a.fabrikam.example",
            "postmaster@x.example",
            "postmaster@[192.0.2.25]",
            "postmaster@[127.0.0.1]",
            "postmaster@[IPv6:::ffff:192.0.2.25]",
        ] {
            for origin in ["internet", "cloud", "client"] {
                check(&nobody, &[(origin, to, "to-on-premises: postmaster@contoso.com")]);
            }
        }
        check(
            &nobody,
            &[
                ("internet", "postmaster@example.org", "550 5.7.1"),
                ("internet", "postmaster@[192.0.2.26]", "550 5.7.1"),
                ("internet", "postmaster+x@contoso.com", "550 5.1.1"),
            ],
        );
        // The configured one is known.
        let configured = domains(World::on_premises()).postmaster("anna@contoso.com").cloud_mailbox("anna@contoso.com");
        check(
            &configured,
            &[
                ("internet", "postmaster@contoso.com", "to-cloud: anna@contoso.mail.onmicrosoft.com"),
                ("internet", "postmaster@mail.contoso.com", "to-cloud: anna@contoso.mail.onmicrosoft.com"),
                ("internet", "postmaster@x.example", "to-cloud: anna@contoso.mail.onmicrosoft.com"),
            ],
        );
        // The directory comes first.
        let known = configured.mailbox("postmaster@contoso.com");
        check(
            &known,
            &[
                ("internet", "postmaster@contoso.com", "to-on-premises: postmaster@contoso.com"),
                ("internet", "postmaster@mail.contoso.com", "to-cloud: anna@contoso.mail.onmicrosoft.com"),
            ],
        );
        // Where the directory leads nowhere it is as if it did not know it.
        let looping = World::on_premises()
            .forward("postmaster@contoso.com", "abuse@contoso.com")
            .forward("abuse@contoso.com", "postmaster@contoso.com");
        check(
            &looping,
            &[
                ("internet", "postmaster@contoso.com", "to-on-premises: postmaster@contoso.com"),
                ("internet", "postmaster@mail.contoso.com", "to-on-premises: postmaster@contoso.com"),
            ],
        );
        // A postmaster elsewhere.
        let outside = World::on_premises().postmaster("hostmaster@example.org");
        check(&outside, &[("internet", "postmaster@contoso.com", "to-internet: hostmaster@example.org")]);
        // S-110: a directory that cannot answer is not one that does not know.
        check(&World::on_premises().unavailable(), &[("internet", "postmaster@contoso.com", "451 4.4.3")]);
        // Without [hybrid] there is no own side but the address spaces.
        let plain = World::plain().connector("out", &["*"]);
        check(&plain, &[("internet", "postmaster@mail.contoso.com", "out: postmaster@contoso.com")]);
    }

    #[test]
    fn each_type_of_accepted_domain_does_its_own_with_unknown_recipients() {
        let world = World::on_premises()
            .accepted("relay.example", "internal-relay")
            .accepted("*.relay.example", "authoritative")
            .accepted("deep.relay.example", "external-relay")
            .accepted("partner.example", "external-relay")
            .connector("to-partner", &["partner.example"])
            .mailbox("anna@relay.example")
            .mailbox("anna@partner.example");
        check(
            &world,
            &[
                ("internet", "anna@relay.example", "to-on-premises: anna@relay.example"),
                ("internet", "nobody@relay.example", "to-cloud: nobody@relay.example"),
                ("on-premises", "nobody@relay.example", "to-cloud: nobody@relay.example"),
                ("client", "nobody@relay.example", "to-cloud: nobody@relay.example"),
                // It came from where it would go.
                ("cloud", "nobody@relay.example", "550 5.1.1"),
                ("cloud", "anna@relay.example", "to-on-premises: anna@relay.example"),
                // The most specific accepted domain wins.
                ("internet", "nobody@sub.relay.example", "550 5.1.1"),
                ("internet", "nobody@a.b.relay.example", "550 5.1.1"),
                ("internet", "nobody@deep.relay.example", "to-internet: nobody@deep.relay.example"),
                ("internet", "nobody@notrelay.example", "550 5.7.1"),
                // No directory is asked.
                ("internet", "anna@partner.example", "to-partner: anna@partner.example"),
                ("cloud", "zoe@partner.example", "to-partner: zoe@partner.example"),
            ],
        );
        // Where internet = "cloud", an accepted domain still goes by address space.
        check(
            &world.internet("cloud"),
            &[
                ("internet", "zoe@partner.example", "to-partner: zoe@partner.example"),
                ("client", "zoe@example.org", "to-cloud: zoe@example.org"),
            ],
        );
    }

    #[test]
    fn a_plain_relay_goes_by_address_space() {
        let world = World::plain()
            .accepted("relay.example", "internal-relay")
            .smart("inside", &["contoso.com", "relay.example"], "mail.inside.contoso.com")
            .smart("cloud", &["contoso.mail.onmicrosoft.com"], "contoso-com.mail.protection.outlook.com")
            .mailbox("anna@contoso.com")
            .cloud_mailbox("david@contoso.com")
            .cloud_mailbox_at("dora@contoso.com", "dora@contoso.mail.onmicrosoft.com")
            .forward("old@contoso.com", "eve@fabrikam.com");
        check(
            &world,
            &[
                ("internet", "anna@contoso.com", "inside: anna@contoso.com"),
                ("internet", "david@contoso.com", "inside: david@contoso.com"),
                ("internet", "dora@contoso.com", "cloud: dora@contoso.mail.onmicrosoft.com"),
                ("internet", "nobody@contoso.com", "550 5.1.1"),
                ("internet", "nobody@relay.example", "inside: nobody@relay.example"),
                ("internet", "old@contoso.com", "550 5.4.4"),
                ("client", "eve@fabrikam.com", "550 5.4.4"),
                ("internet", "eve@fabrikam.com", "550 5.7.1"),
            ],
        );
    }

    #[test]
    fn s110_a_directory_that_cannot_answer_is_451_never_550() {
        let world = World::on_premises().accepted("partner.example", "external-relay").unavailable();
        check(
            &world,
            &[
                ("internet", "nobody@contoso.com", "451 4.4.3"),
                ("cloud", "nobody+x@contoso.com", "451 4.4.3"),
                // Where the directory is not asked, it does not matter.
                ("internet", "eve@fabrikam.com", "550 5.7.1"),
                ("client", "eve@fabrikam.com", "to-internet: eve@fabrikam.com"),
                ("internet", "zoe@partner.example", "to-internet: zoe@partner.example"),
            ],
        );
    }

    #[test]
    fn a_disabled_connector_means_later_not_never() {
        let world = World::on_premises()
            .mailbox("anna@contoso.com")
            .cloud_mailbox("david@contoso.com")
            .group("team@contoso.com", "anna@contoso.com david@contoso.com")
            .disabled("to-cloud")
            .disabled("to-internet");
        check(
            &world,
            &[
                ("internet", "anna@contoso.com", "to-on-premises: anna@contoso.com"),
                ("internet", "david@contoso.com", "451 4.3.5"),
                ("client", "eve@fabrikam.com", "451 4.3.5"),
                // Were it taken for anna alone, david would never get it.
                ("internet", "team@contoso.com", "451 4.3.5"),
            ],
        );
    }

    #[test]
    fn a_connector_too_small_is_not_passed_over() {
        let world = World::on_premises()
            .connector("small", &["fabrikam.com"])
            .limit("small", 1000)
            .limit("to-cloud", 2000)
            .cloud_mailbox("david@contoso.com");
        for (to, size, expected) in [
            ("eve@fabrikam.com", 1000, "small: eve@fabrikam.com"),
            ("eve@fabrikam.com", 1001, "552 5.3.4"),
            ("david@contoso.com", 2000, "to-cloud: david@contoso.mail.onmicrosoft.com"),
            ("david@contoso.com", 2001, "552 5.3.4"),
            ("eve@example.org", 1 << 40, "to-internet: eve@example.org"),
        ] {
            assert_eq!(shown(world.resolve("client", to, Some(size))), expected, "{to} {size}");

            // A size that is known later only.
            let routed = world.resolve("client", to, None).unwrap().routed;
            let directory = world.directory();
            let rules = Rules { config: &world.config, directory: &directory };
            let later = rules.check_size(&routed, size).err().map(|refusal| refusal.status());
            assert_eq!(later.is_some(), expected.starts_with("552"), "{to} {size}");
        }
    }

    #[test]
    fn orcpt_keeps_the_address_first_given() {
        let world = World::on_premises()
            .mailbox("anna@contoso.com")
            .cloud_mailbox("david@contoso.com")
            .cloud_mailbox("jürgen@contoso.com")
            .group("team@contoso.com", "david@contoso.com anna@contoso.com");
        let given = || Some(OriginalRecipient { kind: "rfc822".into(), address: "first@example.org".into() });
        let of = |kind: &str, address: &str| Some(OriginalRecipient { kind: kind.into(), address: address.into() });
        for (to, orcpt, expected) in [
            ("anna@contoso.com", None, None),
            ("anna@contoso.com", given(), given()),
            ("david@contoso.com", None, of("rfc822", "david@contoso.com")),
            ("David+x@contoso.com", None, of("rfc822", "David+x@contoso.com")),
            ("david@contoso.com", given(), given()),
            ("jürgen@contoso.com", None, of("utf-8", "jürgen@contoso.com")),
            ("team@contoso.com", None, of("rfc822", "team@contoso.com")),
        ] {
            let notify = Notify::On { success: true, failure: false, delay: false };
            let recipient = Recipient { address: address(to), notify, orcpt };
            for one in world.resolve_recipient("internet", &recipient, None).unwrap().routed {
                assert_eq!(one.recipient.orcpt, expected, "{to}");
                assert_eq!(one.recipient.notify, notify, "{to}");
                assert_eq!(one.recipient.address, one.route.to, "{to}");
                assert_eq!(one.asked, address(to), "{to}");
            }
        }
    }

    #[test]
    fn reasons_read_as_explain_prints_them() {
        let world = World::on_premises()
            .cloud_mailbox("david@contoso.com")
            .alias("d@contoso.com", "david@contoso.com")
            .forward("old@contoso.com", "eve@fabrikam.com")
            .connector("to-partner", &["fabrikam.com;5"])
            .accepted("relay.example", "internal-relay");
        for (origin, to, expected) in [
            (
                "internet",
                "david@contoso.com",
                &[
                    "found in recipients.csv: cloud mailbox",
                    "rewritten to david@contoso.mail.onmicrosoft.com",
                    "side on-premises, from the Internet, cloud mailbox: hybrid.cloud",
                ][..],
            ),
            (
                "partner",
                "d+x@contoso.com",
                &[
                    "found in recipients.csv without its tag: alias of david@contoso.com",
                    "david+x@contoso.com: found in recipients.csv without its tag: cloud mailbox",
                    "david+x@contoso.com: rewritten to david+x@contoso.mail.onmicrosoft.com",
                    "david+x@contoso.com: side on-premises, from a partner, cloud mailbox: hybrid.cloud",
                ],
            ),
            ("internet", "nobody@contoso.com", &["not in the directory; contoso.com is authoritative"]),
            (
                "internet",
                "old@contoso.com",
                &[
                    "found in recipients.csv: forward to eve@fabrikam.com",
                    "eve@fabrikam.com: side on-premises, from the Internet, to the Internet: hybrid.internet = \"direct\"",
                    "eve@fabrikam.com: address space fabrikam.com: to-partner (cost 5); lost: to-internet by * (less specific)",
                ],
            ),
            (
                "client",
                "x@example.org",
                &[
                    "example.org is not an accepted domain; receive connector door may relay",
                    "side on-premises, from a client, to the Internet: hybrid.internet = \"direct\"",
                    "address space *: to-internet (cost 1)",
                ],
            ),
            (
                "internet",
                "x@example.org",
                &["example.org is not an accepted domain, and receive connector door may not relay"],
            ),
            (
                "cloud",
                "x@relay.example",
                &[
                    "not in the directory; relay.example is internal-relay",
                    "side on-premises, from the cloud, unknown on both premises: none",
                ],
            ),
            (
                "internet",
                "postmaster@relay.example",
                &[
                    "postmaster is always accepted, here as postmaster@contoso.com",
                    "side on-premises, from the Internet, postmaster, to the own side: hybrid.on_premises",
                ],
            ),
            ("client", "x@[127.0.0.1]", &["[127.0.0.1] is this relay, where only postmaster is accepted"]),
        ] {
            assert_eq!(world.reasons(origin, to), [expected], "{origin} -> {to}");
        }
    }

    #[test]
    fn no_form_of_an_address_is_relayed_for_strangers() {
        // in.d is ours. What the parser takes must be refused here, or be for in.d; nothing reaches out.d.
        let world = World::on_premises().accepted("in.d", "authoritative").mailbox("u@in.d");
        for origin in ["internet", "partner"] {
            for form in [
                "u@out.d",
                "u%out.d@in.d",
                "u%out.d@[192.0.2.25]",
                "u%out.d@out2.d",
                "out.d!u@in.d",
                "u@out.d@in.d",
                "@in.d:u@out.d",
                "@[192.0.2.25]:u@out.d",
                "@out.d,@in.d:u@out.d",
                "\"u@out.d\"@in.d",
                "\"u%out.d\"@in.d",
                "\"u@out.d\"@[192.0.2.25]",
                "u@[192.0.2.99]",
                "u@[IPv6:::ffff:192.0.2.99]",
                "u@[IPv6:::ffff:192.0.2.25]",
                "u@192.0.2.99",
                "u@2130706433",
                "u@0x7f.1",
                "u@out.d.",
                "u@in.d.",
                "u@in.d.out.d",
                "u@out.d#in.d",
                "u@out.d?in.d",
                "u@out.d/in.d",
                "u@out.d\\in.d",
                "u@in.d%00.out.d",
                "u@out.d\0@in.d",
                "u@in.d u@out.d",
                "u@in.d,u@out.d",
                "u@in.d;u@out.d",
                "u@іn.d",
                "u＠out.d",
                "u@o\u{ad}ut.d",
                "u@in。d",
                "u@out。d",
                "postmaster@out.d",
                "\"postmaster\"@out.d",
                "SMTP:u@out.d",
                "smtp:u@out.d@in.d",
                "IMCEASMTP-u+40out+2Ed@in.d",
                "IMCEAX400-c=de@in.d",
                "u=out.d@in.d",
                "u_out.d@in.d",
                "u@sub.in.d",
                "u@localhost",
                "u@localhost.localdomain",
                "u@[127.0.0.1]",
                "u@mail.contoso.com",
                "u@d:2525",
                "u@xin.d",
                "u@in.d.",
            ] {
                let Ok(recipient) = Address::parse(form) else { continue };
                let expected = if recipient.domain().as_str() == "in.d" { "550 5.1.1" } else { "550 5.7.1" };
                assert_eq!(world.route(origin, form), expected, "{origin} -> {form}");
            }
            // This one is a tag of a mailbox of ours, and stays here.
            check(&world, &[(origin, "u+out.d@in.d", "to-on-premises: u+out.d@in.d")]);
        }
        // Literals of our own are nobody's but postmaster's, even for those who may relay. C048.
        check(
            &world,
            &[
                ("client", "u@[192.0.2.25]", "550 5.7.1"),
                ("client", "u@[IPv6:::1]", "550 5.7.1"),
                ("client", "u@[192.0.2.99]", "to-internet: u@[192.0.2.99]"),
            ],
        );
    }
}
