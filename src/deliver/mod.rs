//! One attempt for one copy, host by host.
//!
//! An attempt ends with one answer for each recipient. A host that cannot be used is followed by the next; a host that
//! has spoken about the message, or may have it, is the last.
//!
//! Not here: which copy is tried when (`relay::schedule`), and what follows (`outcome`, `relay::settle`).

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;

use crate::clock;
use crate::config::{Config, ConnectorName, EightBit, Hops, Level, Login, SendConnector};
use crate::dns::{Resolve, Resolver};
use crate::message::{Address, Domain, Recipient, visit};
use crate::outcome::Setback;
use crate::random::HashMap;
use crate::route::{Hop, HopCopy, plan};
use crate::smtp::Reply;
use crate::smtp::client::{END_OF_DATA, Fault, Mail, Remedy};
use crate::spool::Message;
use crate::tls::{self, Identity, Proof};

pub mod connect;
pub mod drive;
pub mod hosts;
pub mod issuers;
pub mod pool;

use connect::{Failure, Way};
use drive::{Connection, Content, Transmission};
use hosts::{Hosts, Ourselves, Target};
pub use issuers::Issuers;
pub use pool::Turns;
use pool::{Lease, Owner, Pool, Purpose};

/// How often a connection that was kept may turn out to be closed before a new one is opened instead.
const STALE: usize = 1;

/// Delivers copies by the send connectors of one configuration. What it learns of their hosts outlives it:
/// [`Deliverer::succeeding`].
#[derive(Debug)]
pub struct Deliverer<R = Resolver> {
    resolver: R,
    ourselves: Ourselves,
    private_targets: Vec<IpNet>,
    lanes: HashMap<ConnectorName, Lane>,
    /// What XOORG says of our mail on internal connectors.
    organization: Option<Domain>,
    pool: Pool,
    issuers: Arc<Issuers>,
    /// Marks what leaves; `None`: nothing is marked.
    marks: Option<Arc<visit::Key>>,
}

/// What belongs to a send connector.
#[derive(Debug)]
struct Lane {
    memory: Arc<HopMemory>,
    /// Lives as long as the rate stays the same.
    turns: Option<Arc<Turns>>,
}

/// What was learnt of a send connector's hosts, as long as its connections are opened alike: TLS sessions here; idle
/// connections, resting addresses and what a host cannot do in the pool, under the owner. A new configuration takes over this
/// very object, so an attempt that began by the former one adds to the same memory.
#[derive(Debug)]
struct HopMemory {
    terms: ConnectionTerms,
    tls: Option<tls::Connector>,
    owner: Arc<Owner>,
}

/// All that decides how a connection of a send connector is opened and kept.
#[derive(Debug, PartialEq)]
struct ConnectionTerms {
    helo: String,
    level: Level,
    identity: Option<Identity>,
    source_v4: Option<IpAddr>,
    source_v6: Option<IpAddr>,
    login: Option<Login>,
    max_connections: usize,
}

impl ConnectionTerms {
    fn of(connector: &SendConnector, hostname: &Domain) -> Self {
        // Without `..`: a new key has to decide.
        let SendConnector {
            name: _,
            serves: _,
            hops: _,
            port: _,
            tls,
            identity,
            helo,
            source_v4,
            source_v6,
            login,
            max_connections,
            max_messages_per_connection: _,
            max_recipients: _,
            max_message_size: _,
            rate: _,
            connect_timeout: _,
            chunking: _,
            eight_bit: _,
            tags: _,
            internal: _,
            enabled: _,
        } = connector;
        Self {
            helo: helo.as_ref().unwrap_or(hostname).to_string(),
            level: tls.clone(),
            identity: identity.clone(),
            source_v4: *source_v4,
            source_v6: *source_v6,
            login: login.clone(),
            max_connections: *max_connections,
        }
    }
}

impl HopMemory {
    fn new(terms: ConnectionTerms) -> Self {
        let tls = (!matches!(terms.level, Level::Off)).then(|| tls::Connector::new(terms.identity.as_ref()));
        Self { terms, tls, owner: Arc::new(Owner::unique()) }
    }
}

/// What became of one attempt: one result for each recipient that was open.
#[derive(Debug)]
pub struct Attempt {
    /// Index into the copy's recipients, and how it went.
    pub results: Vec<(u16, Result<Delivered, Setback>)>,
}

/// A host has taken the message for a recipient.
#[derive(Debug, Clone)]
pub struct Delivered {
    /// As a person reads it: `mx1.example.net [192.0.2.1]:25`.
    pub host: String,
    /// Its reply to the end of the message.
    pub reply: Reply,
    /// What it had proved.
    pub proof: Arc<Proof>,
    /// It was told what the sender wants reported, and takes that over. RFC 3461 section 5.2.1.
    pub dsn: bool,
}

/// A recipient without an answer so far.
struct Pending {
    index: u16,
    /// Why not.
    setback: Option<Setback>,
    /// Only hosts of this preference are left to it.
    only: Option<u16>,
}

impl Pending {
    /// Another host could not be used. Of several reasons a temporary one counts: that host may come back, and take
    /// what the others never will.
    fn note(&mut self, setback: Setback) {
        match &self.setback {
            Some(before) if !before.is_permanent() && setback.is_permanent() => {}
            _ => self.setback = Some(setback),
        }
    }
}

impl<R: Resolve> Deliverer<R> {
    /// Delivers by `config`. Where we listen, mail is not delivered to by MX.
    pub fn new(config: Arc<Config>, resolver: R, listening: Vec<SocketAddr>) -> Self {
        let ourselves = Ourselves::new(config.hostname.clone(), listening);
        let organization = config.organization().cloned();
        let private_targets = config.dns.private_targets.clone();
        Self { organization, ..Self::with(ourselves, private_targets, &config.send_connectors, resolver) }
    }

    fn with(ourselves: Ourselves, private_targets: Vec<IpNet>, connectors: &[Arc<SendConnector>], resolver: R) -> Self {
        let lanes = connectors.iter().map(|connector| {
            let lane = Lane {
                memory: Arc::new(HopMemory::new(ConnectionTerms::of(connector, &ourselves.hostname))),
                turns: connector.rate.map(|rate| Arc::new(Turns::new(rate))),
            };
            (connector.name.clone(), lane)
        });
        Self {
            lanes: lanes.collect(),
            ourselves,
            private_targets,
            organization: None,
            pool: Pool::default(),
            issuers: Arc::default(),
            resolver,
            marks: None,
        }
    }

    /// The same, with this memory of who issued its hosts' certificates: it outlives configurations.
    #[must_use]
    pub fn remembering(self, issuers: Arc<Issuers>) -> Self {
        Self { issuers, ..self }
    }

    /// The same, taking over what `last` has learnt: the memory of each send connector whose connections are opened alike,
    /// and the turns of each whose rate is the same. Once this one is in force, [`Deliverer::retire`] closes the rest.
    #[must_use]
    pub fn succeeding(mut self, last: &Self) -> Self {
        self.pool = last.pool.clone();
        for (name, lane) in &mut self.lanes {
            let Some(known) = last.lanes.get(name) else { continue };
            if lane.memory.terms == known.memory.terms {
                lane.memory = Arc::clone(&known.memory);
            }
            if let (Some(turns), Some(known)) = (&mut lane.turns, &known.turns)
                && turns.is_as_fast_as(known)
            {
                *turns = Arc::clone(known);
            }
        }
        self
    }

    /// `next` is in force in the place of this: what it did not take over is closed, now or when it is given back.
    pub fn retire(&self, next: &Self) {
        for (name, lane) in &self.lanes {
            let is_kept = next.lanes.get(name).is_some_and(|kept| Arc::ptr_eq(&kept.memory, &lane.memory));
            if !is_kept {
                self.pool.retire(&lane.memory.owner);
            }
        }
    }

    /// What it asks about hosts.
    pub fn resolver(&self) -> &R {
        &self.resolver
    }

    /// The same, with every copy marked, so that it is known if it comes back.
    #[must_use]
    pub fn marking(self, key: Arc<visit::Key>) -> Self {
        Self { marks: Some(key), ..self }
    }

    /// The turns of a connector with a rate. A reload that leaves the rate alone gives the same object.
    pub fn turns(&self, connector: &ConnectorName) -> Option<&Arc<Turns>> {
        self.lanes.get(connector)?.turns.as_ref()
    }

    /// Tries to bring a copy to its next hop, for the recipients that are still open. Whoever has a rate to keep has taken
    /// a turn.
    pub async fn attempt(
        &self,
        connector: &Arc<SendConnector>,
        message: &Message,
        copy: usize,
        open: &[u16],
    ) -> Attempt {
        self.attempt_telling(connector, message, copy, open, &|_| {}).await
    }

    /// The same for who cannot wait for the end: `taken` hears of a recipient (an index, as in `open`) that a host took
    /// while the attempt goes on for others, as it may for many minutes. The result names it all the same.
    pub async fn attempt_telling(
        &self,
        connector: &Arc<SendConnector>,
        message: &Message,
        copy: usize,
        open: &[u16],
        taken: &(dyn Fn(u16) + Sync),
    ) -> Attempt {
        let mailboxes = Mailboxes::of(message.copies.get(copy), open);
        let mut pending: Vec<_> =
            mailboxes.said(open).map(|index| Pending { index, setback: None, only: None }).collect();
        let mut results = Vec::with_capacity(open.len());
        let taken = |index| mailboxes.names(index).for_each(taken);
        let (last, met) =
            self.go_through_hosts(connector, message, copy, &mailboxes, &taken, &mut pending, &mut results).await;
        // Nobody is left without an answer, nor gets two.
        results.extend(pending.into_iter().map(|Pending { index, setback, .. }| {
            let setback = setback.unwrap_or_else(|| last.clone());
            (index, Err(setback))
        }));
        mailboxes.spread(&mut results);
        debug_assert_eq!(results.len(), open.len());
        if !met.is_empty() {
            for (_, result) in &mut results {
                // Why it is tried again is told of every host. What is final was said by one of them.
                if let Err(setback) = result
                    && !setback.is_permanent()
                    && !is_our_fault(setback)
                {
                    *setback = setback.clone().beside_others(&met);
                }
            }
        }
        Attempt { results }
    }

    /// Says goodbye on all idle connections and keeps none from now on: at the end.
    pub async fn close_idle(&self) {
        self.pool.close().await;
    }

    /// Gives the setback of those who are left in `pending` without one, and what was met at each host.
    #[expect(clippy::too_many_arguments, reason = "all of it is the one attempt's")]
    async fn go_through_hosts(
        &self,
        connector: &Arc<SendConnector>,
        message: &Message,
        copy: usize,
        mailboxes: &Mailboxes,
        taken: &(dyn Fn(u16) + Sync),
        pending: &mut Vec<Pending>,
        results: &mut Vec<(u16, Result<Delivered, Setback>)>,
    ) -> (Setback, Vec<Setback>) {
        let mut met = Vec::new();
        let missing = |state| Setback::NoConnector { name: connector.name.to_string(), state };
        let (Some(lane), Some(copy)) = (self.lanes.get(&connector.name), message.copies.get(copy)) else {
            return (missing("missing"), met);
        };
        let memory = &lane.memory;
        if let Err(setback) = may_carry(connector, message) {
            return (setback, met);
        }
        let found = Hosts::find(
            &self.resolver,
            connector,
            &copy.hop,
            &self.ourselves,
            &self.private_targets,
            fastrand::Rng::new(),
        );
        let mut hosts = match found.await {
            Ok(hosts) => hosts,
            Err(setback) => return (setback, met),
        };
        let domain = match (&copy.hop, &connector.hops) {
            (Hop::Mx(domain), Hops::Mx) if domain.literal().is_none() => Some(domain),
            _ => None,
        };
        let mut contents = Contents::default();
        let patience = OnceLock::new();
        while let Some(target) = hosts.next(&self.pool.known(&memory.owner)).await {
            let tried: Vec<u16> = pending
                .iter()
                .filter(|pending| pending.only.is_none_or(|preference| preference == target.preference))
                .map(|pending| pending.index)
                .collect();
            if tried.is_empty() {
                // The preferences to come are no better; another host of theirs may be.
                hosts.was_not_tried();
                hosts.look_no_further();
                continue;
            }
            let way = Way {
                connector,
                helo: &memory.terms.helo,
                own_name: &self.ourselves.hostname,
                tls: memory.tls.as_ref(),
                domain,
                patience: &patience,
            };
            let purpose = Purpose {
                host: target.name.clone(),
                domain: domain.filter(|_| matches!(connector.tls, Level::Domain(_, None))).cloned(),
            };
            let call = Call {
                pool: &self.pool,
                owner: &memory.owner,
                issuers: &self.issuers,
                target: &target,
                way,
                message,
                copy,
                mailboxes,
                organization: self.organization.as_ref().filter(|_| connector.internal),
                marks: self.marks.as_deref(),
                taken,
            };
            match call.deliver(purpose, tried, &mut contents, pending, results).await {
                Ok(setbacks) => met.extend(setbacks),
                Err(Failure::OutOfReach(setback)) => {
                    hosts.was_not_tried();
                    tracing::debug!(%setback, "no way to this address from here");
                    note_all(pending, &setback);
                    met.push(setback);
                }
                Err(Failure::Setback(setback)) if is_our_fault(&setback) => {
                    pending.iter_mut().for_each(|pending| pending.setback = Some(setback.clone()));
                    break;
                }
                Err(Failure::Setback(setback)) => {
                    tracing::info!(connector = %connector.name, id = %message.id, %setback, "not by this host");
                    if let Setback::LoopsBack { .. } = &setback {
                        hosts.leads_back(target.preference);
                    }
                    note_all(pending, &setback);
                    met.push(setback);
                }
            }
            if pending.is_empty() {
                break;
            }
        }
        (hosts.why_nothing(), met)
    }
}

/// Recipients of a copy that share an address: one mailbox under several names (`route::plan`). A host is told of it once,
/// and its answer holds for all of them. Mostly there are none.
#[derive(Debug, Default)]
struct Mailboxes {
    /// Whose answer holds for it, for all names but the first.
    others: HashMap<u16, u16>,
    /// What a host is told in place of the first name's own wish for reports, where the names' wishes differ. Its ORCPT stays:
    /// there is room for one.
    joint: HashMap<u16, Recipient>,
}

impl Mailboxes {
    fn of(copy: Option<&HopCopy>, open: &[u16]) -> Self {
        let mut mailboxes = Self::default();
        let Some(copy) = copy.filter(|_| open.len() > 1) else { return mailboxes };
        let mut firsts: HashMap<&Address, u16> = HashMap::default();
        for &index in open {
            let Some(again) = copy.recipients.get(usize::from(index)).map(|one| &one.recipient) else { continue };
            let first = *firsts.entry(&again.address).or_insert(index);
            if first == index {
                continue;
            }
            mailboxes.others.insert(index, first);
            let told =
                mailboxes.joint.get(&first).or_else(|| Some(&copy.recipients.get(usize::from(first))?.recipient));
            let Some(told) = told.filter(|told| told.notify != again.notify) else { continue };
            let joint = Recipient { notify: plan::both(told.notify, again.notify), ..told.clone() };
            mailboxes.joint.insert(first, joint);
        }
        mailboxes
    }

    /// Those of `open` that a host is told.
    fn said(&self, open: &[u16]) -> impl Iterator<Item = u16> {
        open.iter().copied().filter(|index| !self.others.contains_key(index))
    }

    /// `first`, and whoever shares its address.
    fn names(&self, first: u16) -> impl Iterator<Item = u16> {
        let others = self.others.iter().filter(move |(_, its)| **its == first).map(|(index, _)| *index);
        std::iter::once(first).chain(others)
    }

    /// Gives every other name the answer of the first.
    fn spread(&self, results: &mut Vec<(u16, Result<Delivered, Setback>)>) {
        if self.others.is_empty() {
            return;
        }
        let answers: HashMap<u16, Result<Delivered, Setback>> = results.iter().cloned().collect();
        let mut others: Vec<_> = self.others.iter().map(|(index, first)| (*index, *first)).collect();
        others.sort_unstable();
        results.extend(others.into_iter().filter_map(|(index, first)| Some((index, answers.get(&first)?.clone()))));
    }
}

fn note_all(pending: &mut [Pending], setback: &Setback) {
    for pending in pending {
        pending.note(setback.clone());
    }
}

/// A message as the hosts of one attempt get it. Each is made when the first host needs it.
#[derive(Default)]
struct Contents {
    original: Option<Content>,
    /// For hosts without 8BITMIME.
    seven_bit: Option<Content>,
}

/// No host is to blame, and none would fare better.
fn is_our_fault(setback: &Setback) -> bool {
    matches!(setback, Setback::Spool { .. } | Setback::Overload { .. })
}

/// May this message take this way at all?
fn may_carry(connector: &SendConnector, message: &Message) -> Result<(), Setback> {
    if !connector.enabled {
        return Err(Setback::NoConnector { name: connector.name.to_string(), state: "disabled" });
    }
    if message.envelope.requiretls {
        // RFC 8689 section 4.2.1: every host must be proved, and an MX that DNSSEC does not prove names nobody.
        let why = match (&connector.tls, &connector.hops) {
            (_, Hops::Mx) => "the MX records cannot be proved",
            (Level::Certificate(_) | Level::Domain(..), Hops::SmartHosts(_)) => return Ok(()),
            _ => "the send connector does not demand a certificate",
        };
        return Err(Setback::RequireTls { why: why.to_owned() });
    }
    Ok(())
}

/// One host, for some recipients.
struct Call<'a> {
    pool: &'a Pool,
    owner: &'a Arc<Owner>,
    issuers: &'a Arc<Issuers>,
    target: &'a Target,
    way: Way<'a>,
    message: &'a Message,
    copy: &'a HopCopy,
    mailboxes: &'a Mailboxes,
    /// For XOORG, where the host is of the other premises.
    organization: Option<&'a Domain>,
    marks: Option<&'a visit::Key>,
    /// Hears who was taken while others wait.
    taken: &'a (dyn Fn(u16) + Sync),
}

impl Call<'_> {
    /// Settles whom it can; the others stay in `pending`. Gives what was met that another host may do better.
    async fn deliver(
        &self,
        purpose: Purpose,
        mut tried: Vec<u16>,
        contents: &mut Contents,
        pending: &mut Vec<Pending>,
        results: &mut Vec<(u16, Result<Delivered, Setback>)>,
    ) -> Result<Vec<Setback>, Failure> {
        let connector = self.way.connector;
        let mut stale = 0;
        let mut met = Vec::new();
        loop {
            let lease =
                self.pool.lease(self.owner, self.target.address, connector.max_connections, purpose.clone()).await;
            let kept = if stale < STALE { lease.take() } else { None };
            let was_kept = kept.is_some();
            let mut connection = match kept {
                Some(connection) => connection,
                None => {
                    lease.make_room();
                    let opened = match connect::open(self.target, &self.way).await {
                        Err(Failure::Setback(setback)) => {
                            note_failure(&lease, &setback);
                            return Err(Failure::Setback(setback));
                        }
                        opened => opened?,
                    };
                    lease.wake();
                    self.issuers.note(&connector.name, &opened.proof);
                    opened
                }
            };
            let original = match &mut contents.original {
                Some(content) => content,
                missing => {
                    let mark = self.mark(pending);
                    let content = Content::of(self.message, mark, connector.internal).await;
                    missing.insert(content.map_err(Failure::Setback)?)
                }
            };
            let needs_seven_bit = original.eight_bit && !connection.session.offered().eightbitmime;
            let content = match (needs_seven_bit, connector.eight_bit) {
                (false, _) | (true, EightBit::Return | EightBit::AsIs) => &*original,
                (true, EightBit::Convert) => match &mut contents.seven_bit {
                    Some(content) => content,
                    missing => {
                        tracing::debug!(id = %self.message.id, host = connection.host, "converted: it has no 8BITMIME");
                        &*missing.insert(original.to_seven_bit().await.map_err(Failure::Setback)?)
                    }
                },
            };
            let may_chunk = lease.may_chunk() && self.pool.may_chunk(self.owner, &self.copy.hop);
            let mut mail = self.mail(&tried, content, may_chunk);
            mail.eight_bit &= !(needs_seven_bit && connector.eight_bit == EightBit::AsIs);
            let Transmission { settled, unheard, lost_chunk, unread } =
                drive::transmit(&mut connection, mail, content, self.taken).await;
            if was_kept && !unheard {
                lease.wake();
            }
            if lost_chunk && !(was_kept && unheard) {
                tracing::info!(
                    host = connection.host,
                    "it offers CHUNKING, and the session ended at BDAT: hosts of this hop get DATA from now on"
                );
                self.pool.never_chunk(self.owner, &self.copy.hop);
            }
            if was_kept && unheard && settled.iter().all(|(_, result)| result.as_ref().is_err_and(is_an_end)) {
                // It had been closed for want of work. Nothing was heard of this message on it: a new one is tried,
                // once, and no attempt is counted (C272).
                tracing::debug!(host = connection.host, "a kept connection had been closed");
                stale += 1;
                continue;
            }
            let before = results.len();
            let mut again = Vec::new();
            for (index, result) in settled {
                let fault = match result {
                    Ok(reply) => {
                        let delivered = Delivered {
                            host: connection.host.clone(),
                            reply,
                            proof: Arc::clone(&connection.proof),
                            dsn: connection.session.offered().dsn,
                        };
                        take(pending, index);
                        results.push((index, Ok(delivered)));
                        continue;
                    }
                    Err(fault) => fault,
                };
                match fault.remedy() {
                    Remedy::None => {
                        take(pending, index);
                        results.push((index, Err(connect::setback(&connection.host, fault))));
                    }
                    Remedy::WithoutChunking => again.push(index),
                    remedy @ (Remedy::NextHost | Remedy::EqualHost) => {
                        let setback = connect::setback(&connection.host, fault);
                        note_failure(&lease, &setback);
                        if !met.contains(&setback) {
                            met.push(setback.clone());
                        }
                        if let Some(pending) = pending.iter_mut().find(|pending| pending.index == index) {
                            if remedy == Remedy::EqualHost {
                                pending.only = Some(self.target.preference);
                            }
                            pending.note(setback);
                        }
                    }
                }
            }
            if !pending.is_empty() {
                // Others have a way to go yet.
                results[before..]
                    .iter()
                    .filter(|(_, result)| result.is_ok())
                    .for_each(|(index, _)| (self.taken)(*index));
            }
            if let Some(setback) = unread {
                // The connection ends in the middle of the message; so it is not taken for one.
                return Err(Failure::Setback(setback));
            }
            if !again.is_empty() {
                tracing::info!(
                    host = connection.host,
                    "it offers CHUNKING and fails on BDAT: it gets DATA from now on"
                );
                lease.never_chunk();
            }
            give_back(lease, connection, connector.max_messages_per_connection);
            if again.is_empty() {
                return Ok(met);
            }
            tried = again;
        }
    }

    /// What stands in front of this copy, beside what stands in front of all.
    fn mark(&self, pending: &[Pending]) -> Option<String> {
        let key = self.marks?;
        let recipients = pending.iter().filter_map(|pending| self.copy.recipients.get(usize::from(pending.index)));
        let visits = recipients.take(visit::TOKEN_LIMIT).map(|recipient| visit::Visit {
            by: &self.message.connector,
            asked: &recipient.asked,
            via: &self.copy.via.0,
            to: &recipient.recipient.address,
        });
        Some(key.field(self.message.id, clock::wall(), visits))
    }

    fn mail<'m>(&'m self, tried: &[u16], content: &Content, chunking: bool) -> Mail<'m> {
        let recipients: Vec<(u16, &Recipient)> = tried
            .iter()
            .filter_map(|&index| {
                let to = self.mailboxes.joint.get(&index);
                Some((index, to.or_else(|| Some(&self.copy.recipients.get(usize::from(index))?.recipient))?))
            })
            .collect();
        Mail {
            envelope: &self.message.envelope,
            recipients,
            size: content.size,
            ends_in_crlf: content.ends_in_crlf,
            eight_bit: content.eight_bit,
            utf8_header: content.utf8_header,
            max_recipients: self.way.connector.max_recipients,
            chunking: chunking && self.way.connector.chunking,
            xoorg: self.organization,
        }
    }
}

fn take(pending: &mut Vec<Pending>, index: u16) {
    if let Some(at) = pending.iter().position(|pending| pending.index == index) {
        pending.swap_remove(at);
    }
}

fn give_back(lease: Lease, mut connection: Connection, limit: usize) {
    connection.carried += 1;
    if !connection.session.is_usable() {
        return;
    }
    if connection.carried < limit {
        lease.keep(connection);
    } else {
        lease.retire(connection);
    }
}

/// Remembers that an address failed, unless that says something of this message only.
fn note_failure(lease: &Lease, setback: &Setback) {
    match setback {
        Setback::TooBig { .. } | Setback::Unsupported { .. } | Setback::Spool { .. } | Setback::Overload { .. } => {}
        setback if is_down(setback) => lease.rest(connect::now()),
        _ => lease.note_failure(connect::now()),
    }
}

/// Would other mail fare no better at this address? What it could not prove to one domain it may prove to another.
fn is_down(setback: &Setback) -> bool {
    setback.concerns_hop() && !matches!(setback, Setback::Unproven { .. })
}

/// Is this what is left of a connection that its server had closed?
fn is_an_end(fault: &Fault) -> bool {
    match fault {
        Fault::Broken(_) | Fault::Ambiguous(_) => true,
        Fault::Answered { command, reply } => reply.code == 421 && *command != END_OF_DATA,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
