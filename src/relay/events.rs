//! The tracking events of a message's way through the relay.

use std::fmt;
use std::net::IpAddr;

use jiff::Timestamp;

use super::recent::{Said, State, said_of};
use super::work::Tried;
use super::{Asked, Peer, Relay};
use crate::clock;
use crate::config::{ConnectorName, ReceiveConnector};
use crate::deliver::{Attempt, Delivered};
use crate::message::received::is_host_or_literal;
use crate::message::{Address, Envelope, MessageId, Recipient};
use crate::outcome::Setback;
use crate::outcome::spans::Facts;
use crate::outcome::tracking::{Event, EventKind, Try};
use crate::random::HashSet;
use crate::route::trust::Words;
use crate::route::{HopCopy, Reason, Refusal, Routed, Verdict, plan};
use crate::smtp::{Reply, Status};
use crate::spool::{Message, NewMessage, Standing};

/// What resolving one recipient found, kept until the message is accepted.
#[derive(Debug)]
pub(super) struct Noted {
    asked: Address,
    to: Address,
    via: ConnectorName,
    because: Vec<Reason>,
}

impl Noted {
    /// Where it goes and by what.
    pub(super) fn key(&self) -> (&Address, &str) {
        (&self.to, &self.via.0)
    }

    pub(super) fn because(&self) -> &[Reason] {
        &self.because
    }
}

/// RFC 3463 section 3.1: what went well.
const FINE: Status = Status(2, 0, 0);

impl Relay {
    /// Takes the reasons out of the routes: the plan does not need them once spellings are unified, the events do.
    pub(super) fn note_routes(routed: &mut [Routed]) -> Vec<Noted> {
        plan::unify_spellings(routed);
        routed
            .iter_mut()
            .map(|routed| Noted {
                asked: routed.asked.clone(),
                to: routed.route.to.clone(),
                via: routed.route.via.clone(),
                because: std::mem::take(&mut routed.route.because),
            })
            .collect()
    }

    /// RECEIVE, then RESOLVE (and EXPAND or REDIRECT) for each recipient, then TRANSFER for each copy where there
    /// are several.
    pub(super) fn track_received(&self, message: &Message, peer: &Peer, size: u64, verdict: &Verdict, noted: &[Noted]) {
        self.0.meter.accept(size);
        self.flow_in(message, Some((verdict.origin, &verdict.claim.connector)), size, noted);
        let words = verdict.words();
        let because = displays(&words);
        let mut asked: Vec<&Address> = noted.iter().map(|noted| &noted.asked).collect();
        asked.dedup();
        let tls: Option<&dyn fmt::Display> = match &peer.tls {
            Some(tls) => Some(tls),
            None => None,
        };
        let user = peer.user.as_ref().map(|user| format!("authenticated as {user}"));
        // A client that can be found by no name is found by what it said.
        let name = (!is_host_or_literal(&peer.hello)).then(|| format!("helo={}", peer.hello));
        let words: Vec<&str> = [&user, &name].into_iter().flatten().map(String::as_str).collect();
        let detail = words.join("; ");
        let detail: Option<&dyn fmt::Display> = if detail.is_empty() { None } else { Some(&detail) };
        self.0.tracker.write(&Event {
            detail,
            to: &asked,
            size: Some(size),
            connector: Some(&message.connector),
            peer: Some(&peer.ip),
            tls,
            status: Some(FINE),
            because: &because,
            ..about(message, EventKind::Receive)
        });
        self.track_plan(message, noted);
    }

    /// What [`Relay::track_received`] tells after RECEIVE.
    pub(super) fn track_plan(&self, message: &Message, noted: &[Noted]) {
        for group in noted.chunk_by(|one, other| one.asked == other.asked) {
            self.track_expansion(message, group);
            for noted in group {
                let because: Vec<&dyn fmt::Display> =
                    noted.because.iter().map(|reason| reason as &dyn fmt::Display).collect();
                self.0.tracker.write(&Event {
                    to: &[&noted.to],
                    connector: Some(&noted.via.0),
                    because: &because,
                    ..about(message, EventKind::Resolve)
                });
            }
        }
        if message.copies.len() > 1 {
            for (index, copy) in message.copies.iter().enumerate() {
                let to = recipients(copy);
                self.0.tracker.write(&Event {
                    to: &to,
                    connector: Some(&copy.via.0),
                    detail: Some(&format_args!("copy {} of {} for {}", index + 1, message.copies.len(), copy.hop)),
                    ..about(message, EventKind::Transfer)
                });
            }
        }
    }

    fn track_expansion(&self, message: &Message, group: &[Noted]) {
        let Some(first) = group.first() else { return };
        let kind = first.because.iter().find_map(|reason| match reason.found()? {
            kind if kind.starts_with("group") => Some(EventKind::Expand),
            kind if kind.starts_with("forward") => Some(EventKind::Redirect),
            _ => None,
        });
        if let Some(kind) = kind {
            let to: Vec<&Address> = group.iter().map(|noted| &noted.to).collect();
            let detail = format_args!("{} stands for these", first.asked);
            self.0.tracker.write(&Event { to: &to, detail: Some(&detail), ..about(message, kind) });
        }
    }

    /// FAIL for a recipient that was refused at RCPT: there is no message yet.
    pub(super) fn track_refusal(&self, asked: &Asked<'_>, recipient: &Recipient, refusal: &Refusal) {
        self.0.meter.refuse(refusal.status().1);
        let from = asked.mail.and_then(|(envelope, _)| envelope.sender.as_ref());
        let whence = (asked.verdict.origin, said_of(refusal));
        self.flow_refused(whence, &asked.connector.name, from, std::iter::once(&recipient.address));
        let stranger = Words::Originator(&asked.verdict.originator_org);
        let mut because: Vec<&dyn fmt::Display> =
            refusal.because.iter().map(|reason| reason as &dyn fmt::Display).collect();
        if asked.verdict.is_stranger() {
            because.insert(0, &stranger);
        }
        self.0.tracker.write(&Event {
            id: None,
            from,
            to: &[&recipient.address],
            connector: Some(&asked.connector.name.0),
            peer: Some(&asked.peer),
            status: Some(refusal.status().1),
            because: &because,
            detail: Some(refusal),
            ..Event::new(clock::wall(), EventKind::Fail, MessageId(0))
        });
    }

    /// FAIL for a message that was refused at its end.
    pub(super) fn track_refused_message(
        &self,
        envelope: &Envelope,
        connector: &ReceiveConnector,
        peer: &Peer,
        verdict: &Verdict,
        status: Status,
        why: &dyn fmt::Display,
    ) {
        self.0.meter.refuse(status);
        let words = verdict.words();
        let because = displays(&words);
        let to: Vec<&Address> = envelope.recipients.iter().map(|recipient| &recipient.address).collect();
        let whence = (verdict.origin, Said::Refused);
        self.flow_refused(whence, &connector.name, envelope.sender.as_ref(), to.iter().copied());
        self.0.tracker.write(&Event {
            id: None,
            from: envelope.sender.as_ref(),
            to: &to,
            connector: Some(&connector.name.0),
            peer: Some(&peer.ip),
            status: Some(status),
            because: &because,
            detail: Some(why),
            ..Event::new(clock::wall(), EventKind::Fail, MessageId(0))
        });
    }

    /// FAIL for a sender who was refused at MAIL: nobody has been named as a recipient.
    pub fn track_refused_sender(&self, envelope: &Envelope, peer: IpAddr, verdict: &Verdict, reply: &Reply) {
        self.0.meter.refuse(reply.status_or_class());
        let words = verdict.words();
        let because = displays(&words);
        self.0.tracker.write(&Event {
            id: None,
            from: envelope.sender.as_ref(),
            connector: Some(&verdict.claim.connector.0),
            peer: Some(&peer),
            status: Some(reply.status_or_class()),
            because: &because,
            detail: Some(reply),
            ..Event::new(clock::wall(), EventKind::Fail, MessageId(0))
        });
    }

    /// SEND for the recipients that one host took together.
    pub(super) fn track_sent(&self, tried: &Tried<'_>, done: &[(u16, Delivered)]) {
        let copy = tried.copy();
        self.flow_out(tried, done.iter().map(|(index, _)| *index), State::Delivered);
        for together in done.chunk_by(|one, other| one.1.host == other.1.host && one.1.reply == other.1.reply) {
            let to = distinct(together.iter().filter_map(|(index, _)| address(copy, *index)).collect());
            let Some((_, delivered)) = together.first() else { continue };
            self.0.tracker.write(&Event {
                to: &to,
                connector: Some(&copy.via.0),
                peer: Some(&delivered.host),
                tls: Some(delivered.proof.as_ref()),
                status: Some(FINE),
                detail: Some(&delivered.reply),
                ..about(tried.message, EventKind::Send)
            });
        }
    }

    /// DEFER or FAIL for recipients with the same setback.
    pub(super) fn track_setbacks(
        &self,
        tried: &Tried<'_>,
        kind: EventKind,
        setbacks: &[(u16, Setback)],
        next: Option<Timestamp>,
    ) {
        let copy = tried.copy();
        let which = Try { number: u32::from(tried.item.attempts) + 1, next };
        let state = if kind == EventKind::Fail { State::Failed } else { State::Deferred };
        self.flow_out(tried, setbacks.iter().map(|(index, _)| *index), state);
        for alike in setbacks.chunk_by(|one, other| one.1 == other.1) {
            let to = distinct(alike.iter().filter_map(|(index, _)| address(copy, *index)).collect());
            let Some((_, setback)) = alike.first() else { continue };
            self.0.meter.set_back(&copy.via, alike.len(), kind == EventKind::Fail, setback);
            let detail = format!("{setback}{which}");
            let peer = setback.remote_mta();
            let host: Option<&dyn fmt::Display> = match &peer {
                Some(host) => Some(host),
                None => None,
            };
            self.0.tracker.write(&Event {
                to: &to,
                connector: Some(&copy.via.0),
                peer: host,
                status: Some(if next.is_some() { setback.status_for_now() } else { setback.status() }),
                detail: Some(&detail),
                ..about(tried.message, kind)
            });
        }
    }

    /// One event about recipients of a copy.
    pub(super) fn track_recipients(&self, tried: &Tried<'_>, kind: EventKind, of: &[u16], why: &dyn fmt::Display) {
        let copy = tried.copy();
        let to = distinct(of.iter().filter_map(|index| address(copy, *index)).collect());
        self.0.tracker.write(&Event {
            to: &to,
            connector: Some(&copy.via.0),
            detail: Some(why),
            ..about(tried.message, kind)
        });
    }

    /// POISON: attempts for a copy ended inside the relay, and it is held.
    pub(super) fn track_poison(&self, id: MessageId, copy: u16, message: Option<&Standing>, why: &str) {
        let copy = message.and_then(|message| message.copies.iter().find(|one| one.number == copy));
        let open = copy.into_iter().flat_map(|copy| copy.open.iter().map(move |index| (copy, *index)));
        let to: Vec<&Address> = open.filter_map(|(copy, index)| address(&copy.plan, index)).collect();
        self.0.tracker.write(&Event {
            message_id: message.and_then(|message| message.message_id.as_deref()),
            from: message.and_then(|message| message.envelope.sender.as_ref()),
            to: &to,
            connector: copy.map(|copy| &*copy.plan.via.0),
            status: Some(Status(4, 3, 0)),
            detail: Some(&why),
            ..Event::new(clock::wall(), EventKind::Poison, id)
        });
    }

    /// DSN: a report about this message was written.
    pub(super) fn track_report(&self, about_message: &Message, report: MessageId, what: &str) {
        let Some(sender) = &about_message.envelope.sender else { return };
        self.0.meter.report();
        let detail = format_args!("{what} report {report} to the sender");
        self.0.tracker.write(&Event { to: &[sender], detail: Some(&detail), ..about(about_message, EventKind::Dsn) });
    }

    /// DROP: nobody can be told any more.
    pub(super) fn track_dropped(&self, message: &Message, to: &[&Address], why: &dyn fmt::Display) {
        self.0.tracker.write(&Event { to, detail: Some(why), ..about(message, EventKind::Drop) });
    }
}

/// What a trace says of a message's arrival; see `outcome::spans` for what it does not say.
pub(super) fn receive_span(message: &NewMessage, peer: &Peer, size: u64) -> Facts {
    let mut attributes = vec![
        ("causeway.connector", message.connector.to_string()),
        ("client.address", peer.ip.to_string()),
        ("causeway.size", size.to_string()),
    ];
    attributes.extend(peer.tls.clone().map(|tls| ("causeway.tls", tls)));
    Facts { attributes, failed: false }
}

/// Where it is to go.
pub(super) fn resolve_span(message: &NewMessage) -> Facts {
    let recipients: usize = message.copies.iter().map(|copy| copy.recipients.len()).sum();
    let mut via: Vec<&str> = message.copies.iter().map(|copy| &*copy.via.0).collect();
    via.sort_unstable();
    via.dedup();
    let attributes = vec![
        ("causeway.copies", message.copies.len().to_string()),
        ("causeway.recipients", recipients.to_string()),
        ("causeway.connectors", via.join(" ")),
    ];
    Facts { attributes, failed: false }
}

/// What an attempt came to: each host, proof and answer once, the first of them.
pub(super) fn attempt_span(copy: &HopCopy, before: u16, attempt: &Attempt) -> Facts {
    const SHOWN: usize = 8;
    let (mut hosts, mut proofs, mut replies) = (Vec::new(), Vec::new(), Vec::new());
    let mut failed = false;
    let note = |list: &mut Vec<String>, text: String| {
        if list.len() < SHOWN && !list.contains(&text) {
            list.push(text);
        }
    };
    for (_, result) in &attempt.results {
        match result {
            Ok(Delivered { host, reply, proof, .. }) => {
                note(&mut hosts, host.clone());
                note(&mut proofs, proof.to_string());
                note(&mut replies, format!("{} {}", reply.code, reply.status_or_class()));
            }
            Err(setback) => {
                failed = true;
                setback.remote_mta().into_iter().for_each(|host| note(&mut hosts, host.to_owned()));
                // What a host says may name a recipient; its code does not.
                let reply = match setback.decisive() {
                    Setback::Answered { command, reply, .. } => {
                        format!("{command}: {} {}", reply.code, reply.status_or_class())
                    }
                    other => other.status().to_string(),
                };
                note(&mut replies, reply);
            }
        }
    }
    let attributes = vec![
        ("causeway.connector", copy.via.to_string()),
        ("causeway.attempt", (u32::from(before) + 1).to_string()),
        ("causeway.recipients", attempt.results.len().to_string()),
        ("server.address", hosts.join("; ")),
        ("causeway.tls", proofs.join("; ")),
        ("causeway.reply", replies.join("; ")),
    ];
    Facts { attributes, failed }
}

fn displays<'a>(words: &'a [Words<'_>]) -> Vec<&'a dyn fmt::Display> {
    words.iter().map(|word| word as &dyn fmt::Display).collect()
}

fn about(message: &Message, kind: EventKind) -> Event<'_> {
    Event {
        message_id: message.message_id.as_deref(),
        from: message.envelope.sender.as_ref(),
        ..Event::new(clock::wall(), kind, message.id)
    }
}

fn recipients(copy: &HopCopy) -> Vec<&Address> {
    distinct(copy.recipients.iter().map(|recipient| &recipient.recipient.address).collect())
}

/// Each address once: who was named under several names stands in a copy several times.
fn distinct(mut to: Vec<&Address>) -> Vec<&Address> {
    if to.len() > 1 {
        let mut seen = HashSet::default();
        to.retain(|address| seen.insert(*address));
    }
    to
}

fn address(copy: &HopCopy, index: u16) -> Option<&Address> {
    copy.recipients.get(usize::from(index)).map(|recipient| &recipient.recipient.address)
}
