//! Answers a session's questions: who the peer is here, the rest by asking `relay`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::Instant;
use tracing::{debug, info};

use super::attribute::{Attribution, attribute};
use super::drive::Reception;
use super::limits::Slot;
use super::{Door, terms};
use crate::message::{Domain, Envelope};
use crate::relay::{Asked, Peer, Relay, Snapshot, Submission};
use crate::route::{Routed, Verdict, trust};
use crate::smtp::Reply;
use crate::smtp::server::{Answer, Question, Terms};
use crate::spool::Draft;
use crate::tls::{ClientCertificate, Stream};

/// How long a client may take for its handshake.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(60);

/// One connection's view of the relay.
pub(super) struct RelayReception {
    relay: Relay,
    snapshot: Arc<Snapshot>,
    door: Arc<Door>,
    peer: IpAddr,
    attribution: Attribution,
    /// What the message under way is held to be, so far.
    verdict: Arc<Verdict>,
    tls: Option<String>,
    /// What the client presented in the handshake.
    client: Option<ClientCertificate>,
    /// What MAIL said: sender and parameters, and the declared size.
    mail: Option<(Envelope, Option<u64>)>,
    routed: Vec<Routed>,
    draft: Option<Draft>,
    /// Why the draft could not be kept; the message is refused at its end.
    failed: Option<io::Error>,
    slot: Slot,
}

impl RelayReception {
    pub(super) fn new(
        relay: Relay,
        snapshot: Arc<Snapshot>,
        door: Arc<Door>,
        peer: SocketAddr,
        attribution: Attribution,
        (tls, client): (Option<String>, Option<ClientCertificate>),
        slot: Slot,
    ) -> Self {
        Self {
            relay,
            snapshot,
            door,
            peer: peer.ip().to_canonical(),
            verdict: Arc::clone(&attribution.verdict),
            attribution,
            tls,
            client,
            mail: None,
            routed: Vec::new(),
            draft: None,
            failed: None,
            slot,
        }
    }

    fn sender(&mut self, envelope: Envelope, size: Option<u64>, xoorg: Option<Domain>) -> Answer {
        self.routed = Vec::new();
        self.discard();
        self.keep_up();
        let connector = &self.attribution.connector;
        self.verdict = match xoorg {
            // What MAIL says counts; the header is asked only where it says nothing.
            Some(organization) if !connector.originator_org.is_empty() => {
                let clause = trust::originator(&connector.originator_org, [Ok(organization)]);
                Arc::new(self.attribution.verdict.with_originator(clause))
            }
            _ => Arc::clone(&self.attribution.verdict),
        };
        match self.check_sender(&envelope, size) {
            Ok(()) => {
                self.mail = Some((envelope, size));
                Answer::Go
            }
            Err(reply) => {
                if reply.is_permanent() {
                    self.relay.track_refused_sender(&envelope, self.peer, &self.verdict, &reply);
                }
                Answer::Refuse(reply)
            }
        }
    }

    fn check_sender(&self, envelope: &Envelope, size: Option<u64>) -> Result<(), Reply> {
        if let Some(clause) = &self.attribution.unproven {
            info!(peer = %self.peer, "MAIL FROM refused: {clause}");
            return Err(Reply::certificate_refused(clause));
        }
        self.relay.check_sender(&self.snapshot, &self.attribution.connector, envelope, size)?;
        if self.verdict.is_stranger() { self.relay.check_stranger(&self.snapshot, envelope) } else { Ok(()) }
    }

    /// A connection may live for days. Each of its messages is judged by the configuration and the directory of its
    /// moment, as long as the connection would be given to the same connector; else by those it began with.
    fn keep_up(&mut self) {
        let current = self.relay.snapshot();
        if !Arc::ptr_eq(&current.config, &self.snapshot.config) {
            let connectors = &current.config.receive_connectors;
            let (secure, client) = (self.tls.is_some(), self.client.as_ref());
            match attribute(connectors, self.door.listen, self.peer, secure, client, Timestamp::now()) {
                Some(found) if found.connector.name == self.attribution.connector.name => self.attribution = found,
                _ => return,
            }
        }
        self.snapshot = current;
    }

    async fn message(&mut self, envelope: Envelope, hello: String, extended: bool) -> Answer {
        let routed = std::mem::take(&mut self.routed);
        if let Some(error) = self.failed.take() {
            self.discard();
            return Answer::Done(self.relay.draft_failed(&error));
        }
        let draft = self.draft.take().unwrap_or_else(|| self.relay.draft());
        let submission = Submission {
            envelope,
            routed,
            draft,
            connector: Arc::clone(&self.attribution.connector),
            peer: Peer { ip: self.peer, hello, extended, tls: self.tls.clone() },
            verdict: Arc::clone(&self.verdict),
        };
        Answer::Done(self.relay.take(&self.snapshot, submission).await)
    }
}

impl Reception for RelayReception {
    async fn answer(&mut self, question: Question) -> Answer {
        match question {
            Question::Sender { envelope, size, xoorg } => self.sender(envelope, size, xoorg),
            Question::Recipient(recipient) => {
                let asked = Asked {
                    connector: &self.attribution.connector,
                    peer: self.peer,
                    mail: self.mail.as_ref(),
                    routed: self.routed.len(),
                    verdict: &self.verdict,
                };
                match self.relay.check_recipient(&self.snapshot, &asked, recipient) {
                    Ok(mut routed) => {
                        self.routed.append(&mut routed);
                        Answer::Go
                    }
                    Err(reply) => Answer::Refuse(reply),
                }
            }
            Question::Message { envelope, hello, extended } => self.message(envelope, hello, extended).await,
        }
    }

    async fn keep(&mut self, piece: Bytes) {
        if self.failed.is_some() {
            return;
        }
        let draft = self.draft.get_or_insert_with(|| self.relay.draft());
        if let Err(error) = draft.push(piece).await {
            self.failed = Some(error);
            self.draft = None;
        }
    }

    fn discard(&mut self) {
        self.draft = None;
        self.failed = None;
    }

    async fn start_tls(&mut self, stream: Stream) -> io::Result<(Stream, Terms)> {
        // RFC 3207 section 4.2: nothing that was said before counts any more.
        self.routed.clear();
        self.discard();
        let acceptor = self.door.acceptor(&self.attribution.connector)?;
        let accepted = match stream {
            Stream::Plain(socket) => acceptor.accept(socket, Instant::now() + HANDSHAKE_TIMEOUT).await?,
            _ => return Err(io::Error::other("STARTTLS inside TLS")),
        };
        let config = &self.snapshot.config;
        let attribution = attribute(
            &config.receive_connectors,
            self.door.listen,
            self.peer,
            true,
            accepted.client.as_ref(),
            Timestamp::now(),
        )
        .ok_or_else(|| io::Error::other("no receive connector takes this address any more"))?;
        debug!(peer = %self.peer, connector = %attribution.connector.name, proof = ?attribution.proof, "TLS");
        attribution.tell(self.peer, accepted.client.as_ref());
        self.slot.move_to(&attribution.connector);
        self.verdict = Arc::clone(&attribution.verdict);
        self.attribution = attribution;
        self.tls = Some(accepted.protocol);
        self.client = accepted.client;
        Ok((accepted.stream, terms(&self.snapshot.config, &self.attribution, true)))
    }
}
