//! One attempt for one copy, host by host.
//!
//! An attempt ends with one answer for each recipient. A host that cannot be used is followed by the next; a host that
//! has spoken about the message, or may have it, is the last.
//!
//! Not here: which copy is tried when (`relay::schedule`), and what follows (`outcome`, `relay::settle`).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use ipnet::IpNet;

use crate::clock;
use crate::config::{Config, ConnectorName, Hops, Level, SendConnector};
use crate::dns::{Resolve, Resolver};
use crate::message::{Domain, Recipient, visit};
use crate::outcome::Setback;
use crate::random::HashMap;
use crate::route::Hop;
use crate::smtp::Reply;
use crate::smtp::client::{END_OF_DATA, Fault, Mail, Remedy};
use crate::spool::Message;
use crate::tls::{self, Proof};

pub mod connect;
pub mod drive;
pub mod hosts;
pub mod issuers;
pub mod pool;

use connect::{Failure, Way};
use drive::{Connection, Content};
use hosts::{Hosts, Ourselves, Target};
pub use issuers::Issuers;
use pool::{Lease, Pool, Purpose, Turns};

/// How often a connection that was kept may turn out to be closed before a new one is opened instead.
const STALE: usize = 1;

/// Delivers copies by the send connectors of one configuration.
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

/// What lives as long as a send connector.
#[derive(Debug)]
struct Lane {
    helo: String,
    tls: Option<tls::Connector>,
    turns: Option<Turns>,
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
    /// Delivers by `config`; its send connectors' connections, TLS sessions and rates live as long as this does.
    /// Where we listen, mail is not delivered to by MX.
    pub fn new(config: Arc<Config>, resolver: R, listening: Vec<SocketAddr>) -> Self {
        let ourselves = Ourselves::new(config.hostname.clone(), listening);
        let organization = config.organization().cloned();
        let private_targets = config.dns.private_targets.clone();
        Self { organization, ..Self::with(ourselves, private_targets, &config.send_connectors, resolver) }
    }

    fn with(ourselves: Ourselves, private_targets: Vec<IpNet>, connectors: &[Arc<SendConnector>], resolver: R) -> Self {
        let lanes = connectors.iter().map(|connector| {
            let lane = Lane {
                helo: connector.helo.as_ref().unwrap_or(&ourselves.hostname).to_string(),
                tls: (!matches!(connector.tls, Level::Off)).then(|| tls::Connector::new(connector.identity.as_ref())),
                turns: connector.rate.map(Turns::new),
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

    /// The same, with every copy marked, so that it is known if it comes back.
    #[must_use]
    pub fn marking(self, key: Arc<visit::Key>) -> Self {
        Self { marks: Some(key), ..self }
    }

    /// Takes the next turn of a connector with a rate: when its message may go.
    pub fn turn(&self, connector: &ConnectorName) -> Option<Instant> {
        Some(self.lanes.get(connector)?.turns.as_ref()?.take(connect::now()))
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
        let mut pending: Vec<_> = open.iter().map(|&index| Pending { index, setback: None, only: None }).collect();
        let mut results = Vec::with_capacity(open.len());
        let last = self.go_through_hosts(connector, message, copy, taken, &mut pending, &mut results).await;
        // Nobody is left without an answer, nor gets two.
        results.extend(pending.into_iter().map(|Pending { index, setback, .. }| {
            let setback = setback.unwrap_or_else(|| last.clone());
            (index, Err(setback))
        }));
        debug_assert_eq!(results.len(), open.len());
        Attempt { results }
    }

    /// Says goodbye on idle connections and keeps none from now on: at the end, and when the configuration changes.
    pub async fn close_idle(&self) {
        self.pool.close().await;
    }

    /// Gives the setback of those who are left in `pending` without one.
    async fn go_through_hosts(
        &self,
        connector: &Arc<SendConnector>,
        message: &Message,
        copy: usize,
        taken: &(dyn Fn(u16) + Sync),
        pending: &mut Vec<Pending>,
        results: &mut Vec<(u16, Result<Delivered, Setback>)>,
    ) -> Setback {
        let missing = |state| Setback::NoConnector { name: connector.name.to_string(), state };
        let (Some(lane), Some(copy)) = (self.lanes.get(&connector.name), message.copies.get(copy)) else {
            return missing("missing");
        };
        if let Err(setback) = may_carry(connector, message) {
            return setback;
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
            Err(setback) => return setback,
        };
        let domain = match (&copy.hop, &connector.hops) {
            (Hop::Mx(domain), Hops::Mx) if domain.literal().is_none() => Some(domain),
            _ => None,
        };
        let mut content = None;
        // Addresses that failed a moment ago come last, whatever their preference: they would most likely fail again.
        let mut put_off = VecDeque::new();
        let mut has_more = true;
        let patience = OnceLock::new();
        loop {
            let next = if has_more { hosts.next().await } else { None };
            let target = match next {
                Some(target) if self.pool.is_resting(&connector.name, target.address, connect::now()) => {
                    hosts.was_not_tried();
                    put_off.push_back(target);
                    // So many are not waited for, if all of them rest.
                    has_more = put_off.len() < hosts::ADDRESSES;
                    continue;
                }
                Some(target) => target,
                None => {
                    has_more = false;
                    let Some(target) = put_off.pop_front() else { break };
                    target
                }
            };
            let tried: Vec<u16> = pending
                .iter()
                .filter(|pending| pending.only.is_none_or(|preference| preference == target.preference))
                .map(|pending| pending.index)
                .collect();
            if tried.is_empty() {
                // The hosts to come are no better; one that was put off may be.
                has_more = false;
                continue;
            }
            let way = Way { connector, helo: &lane.helo, tls: lane.tls.as_ref(), domain, patience: &patience };
            let purpose = Purpose {
                host: target.name.clone(),
                domain: domain.filter(|_| matches!(connector.tls, Level::Domain(_, None))).cloned(),
            };
            let call = Call {
                pool: &self.pool,
                issuers: &self.issuers,
                target: &target,
                way,
                message,
                copy,
                organization: self.organization.as_ref().filter(|_| connector.internal),
                marks: self.marks.as_deref(),
                taken,
            };
            match call.deliver(purpose, tried, &mut content, pending, results).await {
                Ok(()) => {}
                Err(Failure::OutOfReach(setback)) => {
                    hosts.was_not_tried();
                    tracing::debug!(%setback, "no way to this address from here");
                    note_all(pending, &setback);
                }
                Err(Failure::Setback(setback @ (Setback::Spool { .. } | Setback::Overload { .. }))) => {
                    pending.iter_mut().for_each(|pending| pending.setback = Some(setback.clone()));
                    break;
                }
                Err(Failure::Setback(setback)) => {
                    tracing::info!(connector = %connector.name, id = %message.id, %setback, "not by this host");
                    note_all(pending, &setback);
                }
            }
            if pending.is_empty() {
                break;
            }
        }
        hosts.why_nothing()
    }
}

fn note_all(pending: &mut [Pending], setback: &Setback) {
    for pending in pending {
        pending.note(setback.clone());
    }
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
    issuers: &'a Arc<Issuers>,
    target: &'a Target,
    way: Way<'a>,
    message: &'a Message,
    copy: &'a crate::route::HopCopy,
    /// For XOORG, where the host is of the other premises.
    organization: Option<&'a Domain>,
    marks: Option<&'a visit::Key>,
    /// Hears who was taken while others wait.
    taken: &'a (dyn Fn(u16) + Sync),
}

impl Call<'_> {
    /// Settles whom it can; the others stay in `pending`.
    async fn deliver(
        &self,
        purpose: Purpose,
        mut tried: Vec<u16>,
        content: &mut Option<Content>,
        pending: &mut Vec<Pending>,
        results: &mut Vec<(u16, Result<Delivered, Setback>)>,
    ) -> Result<(), Failure> {
        let connector = self.way.connector;
        let mut stale = 0;
        loop {
            let lease =
                self.pool.lease(&connector.name, self.target.address, connector.max_connections, purpose.clone()).await;
            let kept = if stale < STALE { lease.take() } else { None };
            let was_kept = kept.is_some();
            let mut connection = match kept {
                Some(connection) => connection,
                None => {
                    lease.make_room();
                    let opened = match connect::open(self.target, &self.way).await {
                        Err(Failure::Setback(setback)) if is_down(&setback) => {
                            lease.rest(connect::now());
                            return Err(Failure::Setback(setback));
                        }
                        opened => opened?,
                    };
                    lease.wake();
                    self.issuers.note(&connector.name, &opened.proof);
                    opened
                }
            };
            let content = match content {
                Some(content) => &*content,
                None => {
                    let mark = self.mark(pending);
                    content.insert(Content::of(self.message, mark, connector.internal).await.map_err(Failure::Setback)?)
                }
            };
            let mail = self.mail(&tried, content, lease.may_chunk());
            let (settled, unheard) =
                drive::transmit(&mut connection, mail, content, self.taken).await.map_err(Failure::Setback)?;
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
                        if is_down(&setback) {
                            lease.rest(connect::now());
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
            if !again.is_empty() {
                tracing::info!(
                    host = connection.host,
                    "it offers CHUNKING and fails on BDAT: it gets DATA from now on"
                );
                lease.never_chunk();
            }
            give_back(lease, connection, connector.max_messages_per_connection);
            if again.is_empty() {
                return Ok(());
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
            .filter_map(|&index| self.copy.recipients.get(usize::from(index)).map(|to| (index, &to.recipient)))
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
